"""Adam for models whose gradients touch few rows of large tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from kdrs.errors import ConfigError, shown

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class RowGradient(NamedTuple):
    """The gradient of a table that a batch touches in few rows; repeated rows add up."""

    rows: Tensor
    """int64 [N]"""
    values: Tensor
    """float32 [N, D]"""


@dataclass
class _State:
    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    gradient: Tensor | None = None
    """Dense gradient buffer of a table, all zero between steps."""


class Adam:
    """Classical Adam (Kingma & Ba, 2015) with coupled L2: g ← g + wd·θ before the moments. Not AdamW.

    **Dense** (``lazy=False``, the default): every row of every table takes a step in every iteration, rows absent from
    the batch too, whose gradient is wd·θ and whose momentum keeps moving. That is what the published numbers were
    obtained with. Gradients of ``nn.Embedding(sparse=True)`` arrive as the rows that were touched; they are added
    into one dense buffer whose touched rows alone are cleared afterwards, and one fused pass does the rest.

    **Lazy** (``lazy=True``): of such tables only the touched rows take a step, moments, decay and all; bias correction
    counts the table's steps. Another algorithm, not a faster form of the same one: a step costs what the batch costs,
    whatever the size of the table, but rows that are seldom drawn are hardly decayed.

    A parameter without gradient is skipped; one whose gradient is zero is stepped. State is created at a parameter's
    first step.

    ``multiplicities`` names parameters each entry of which stands for n equal entries of a larger one, such as the
    off-diagonal half of a symmetric matrix (n = 2). Its gradient is n times that of each; with ε and decay taken n times it
    steps as each of them would.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        lazy: bool = False,
        multiplicities: Mapping[str, float] | None = None,
    ):
        self.parameters = dict(parameters)
        self.multiplicities = dict(multiplicities or {})
        unknown = sorted(set(self.multiplicities) - set(self.parameters))
        if unknown:
            raise ConfigError(f"multiplicity of {shown(unknown[0])}", "there is no such parameter")
        self.lr, self.weight_decay, self.lazy = lr, weight_decay, lazy
        self._state: dict[str, _State] = {}
        self._row_gradients: dict[str, RowGradient] = {}

    def zero_grad(self) -> None:
        self._row_gradients.clear()
        for parameter in self.parameters.values():
            parameter.grad = None

    def set_rows(self, gradients: Mapping[str, RowGradient]) -> None:
        """The gradients of the next step, for tables whose rows were worked out without autograd."""
        self._row_gradients.update(gradients)

    @torch.no_grad()
    def step(self) -> None:
        groups: dict[float, list[tuple[Tensor, Tensor, _State]]] = {}
        touched: list[tuple[Tensor, Tensor]] = []
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            touching = self._row_gradients.get(name)
            if gradient is not None and gradient.is_sparse:
                touching = RowGradient(gradient._indices()[0], gradient._values())
            if gradient is None and touching is None:
                continue
            state = self._state.get(name) or self._new_state(name)
            if touching is not None:
                if self.lazy:
                    self._step_rows(parameter, touching, state, self.multiplicities.get(name, 1.0))
                    continue
                if state.gradient is None:
                    state.gradient = torch.zeros_like(parameter)
                state.gradient.index_add_(0, *touching)
                touched.append((state.gradient, touching.rows))
                gradient = state.gradient
            assert gradient is not None
            groups.setdefault(self.multiplicities.get(name, 1.0), []).append((parameter, gradient, state))
        for multiplicity, group in groups.items():
            self._update([p for p, _, _ in group], [g for _, g, _ in group], [s for _, _, s in group], multiplicity)
        for buffer, rows in touched:
            if rows.shape[0] * 8 > buffer.shape[0]:
                buffer.zero_()
            else:
                buffer.index_fill_(0, rows, 0.0)

    def _step_rows(self, parameter: Tensor, gradient: RowGradient, state: _State, multiplicity: float) -> None:
        rows, places = torch.unique(gradient.rows, return_inverse=True)
        summed = gradient.values.new_zeros(rows.shape[0], gradient.values.shape[1]).index_add_(
            0, places, gradient.values
        )
        part = _State(state.step, state.exp_avg.index_select(0, rows), state.exp_avg_sq.index_select(0, rows))
        values = parameter.index_select(0, rows)
        self._update([values], [summed], [part], multiplicity)
        parameter.index_copy_(0, rows, values)
        state.exp_avg.index_copy_(0, rows, part.exp_avg)
        state.exp_avg_sq.index_copy_(0, rows, part.exp_avg_sq)

    def _update(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[_State], multiplicity: float
    ) -> None:
        adam(
            parameters,
            gradients,
            [s.exp_avg for s in states],
            [s.exp_avg_sq for s in states],
            [],
            [s.step for s in states],
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=self.lr,
            weight_decay=self.weight_decay * multiplicity,
            eps=EPS * multiplicity,
            maximize=False,
        )

    def _new_state(self, name: str) -> _State:
        parameter = self.parameters[name]
        zeros = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        state = _State(torch.zeros((), device=parameter.device), zeros, zeros.clone())
        self._state[name] = state
        return state

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by ``parameter/part``. The tensors are the live ones."""
        return {
            f"{name}/{part}": getattr(state, part)
            for name, state in self._state.items()
            for part in ("step", "exp_avg", "exp_avg_sq")
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``; copies. Parameters that are not named start anew."""
        self._state.clear()
        for name, parameter in self.parameters.items():
            if f"{name}/step" in tensors:
                parts = (
                    tensors[f"{name}/{part}"].to(parameter.device, copy=True)
                    for part in ("step", "exp_avg", "exp_avg_sq")
                )
                self._state[name] = _State(*parts)

    @property
    def n_bytes(self) -> int:
        """Bytes of the moments and gradient buffers."""
        tensors = [t for s in self._state.values() for t in (s.exp_avg, s.exp_avg_sq, s.gradient) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)
