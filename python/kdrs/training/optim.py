"""Optimizers for models whose gradients touch few rows of large tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam

from kdrs.core import tables as _tables
from kdrs.core.tables import AdamTable, RowGradient, Step
from kdrs.errors import ConfigError, shown

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
FEW = 4
"""The core steps the rows that were touched, and lets the others wait, where they are fewer than 1/FEW of the table and all who
read it ask for their rows."""
SPAN = 32
"""Steps owed that lazy Adam estimates at once, at most."""


@dataclass
class _State:
    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    gradient: Tensor | None = None
    """Dense gradient buffer of a table that torch steps, all zero between steps."""
    table: AdamTable | None = None
    """Of a table that the Rust core steps."""
    taken: int | None = None
    """Iterations, where the core has stepped the table since they were last written to ``step``."""
    last: Tensor | None = None
    """float [rows]: the step that each row took last, of a lazy table that torch steps and whose rows may owe some."""
    owed: int = 0
    """Steps since all rows had taken theirs."""


class Adam:
    """Classical Adam (Kingma & Ba, 2015) with coupled L2: g ← g + wd·θ before the moments. Not AdamW.

    **Dense** (``lazy=False``, the default): every row of every table takes a step in every iteration, rows absent from
    the batch too, whose gradient is wd·θ and whose momentum keeps moving. That is what the published numbers were
    obtained with. Gradients of ``nn.Embedding(sparse=True)`` arrive as the rows that were touched; they are added into one
    dense buffer for torch's fused pass, or the Rust core steps the rows:

    A step of a row without gradient reads nothing but the row. Rows outside the batch therefore **owe** it, after
    ``score_step`` and ``bpr_step`` and where a table's readers are ``asking``, until they are next read or until ``settle``,
    and take all such steps at once, in registers: the same bytes, without the whole table passing through memory in every
    iteration. Who reads a table in between without ``catch_up`` sees rows as they were when last read or touched.

    **Lazy** (``lazy=True``): of such tables only the touched rows take a step. What an untouched row would have done, decay
    and momentum, it makes up for when it is next touched or at ``settle``, all its steps at once by an estimate in closed form:
    moments as if θ stood still meanwhile, the decay of θ as an exponential. A step then costs what the batch costs, whatever
    the size of the table, and training ends where dense Adam ends, within the noise of seeds. (torch's SparseAdam makes up for
    nothing: rows seldom drawn are hardly decayed.)

    A parameter without gradient is skipped; one whose gradient is zero is stepped. State is created at a parameter's
    first step.

    ``multiplicities`` names parameters each entry of which stands for n equal entries of a larger one, such as the
    off-diagonal half of a symmetric matrix (n = 2). Its gradient is n times that of each; with ε and decay taken n times it
    steps as each of them would.
    """

    STATE = ("step", "exp_avg", "exp_avg_sq")
    """What is kept of a parameter."""

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
        self.multiplicities = _multiplicities(multiplicities, self.parameters)
        self.lr, self.weight_decay, self.lazy = lr, weight_decay, lazy
        self.asking: set[str] = set()
        """Tables whose readers call ``catch_up`` first."""
        self._state: dict[str, _State] = {}

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        groups: dict[float, list[tuple[Tensor, Tensor, _State]]] = {}
        touched: list[tuple[Tensor, Tensor]] = []
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            touching = RowGradient(gradient._indices()[0], gradient._values()) if gradient.is_sparse else None
            state = self._state.get(name) or self._new_state(name)
            few = touching is not None and name in self.asking and FEW * touching.rows.shape[0] < parameter.shape[0]
            if touching is not None and (self.lazy or few):
                table = self._table(name)
                if table is not None:
                    table.step_rows(touching, self._next(name))
                    continue
                if self.lazy:
                    self._step_rows(name, touching)
                    continue
            self._settle(name)
            if touching is not None:
                if state.gradient is None:
                    state.gradient = torch.zeros_like(parameter)
                state.gradient.index_add_(0, *touching)
                touched.append((state.gradient, touching.rows))
                gradient = state.gradient
            groups.setdefault(self.multiplicities.get(name, 1.0), []).append((parameter, gradient, state))
        for multiplicity, group in groups.items():
            self._update([p for p, _, _ in group], [g for _, g, _ in group], [s for _, _, s in group], multiplicity)
        for buffer, rows in touched:
            if rows.shape[0] * 8 > buffer.shape[0]:
                buffer.zero_()
            else:
                buffer.index_fill_(0, rows, 0.0)

    @torch.no_grad()
    def catch_up(self, name: str, rows: Tensor | None = None) -> None:
        """Rows of a table, int64 [...], or all, take the steps they owe."""
        state = self._state.get(name)
        if state is None:
            return
        if rows is None:
            self._settle(name)
        elif (table := self._table(name)) is not None:
            table.catch_up(rows.reshape(-1))
        elif state.last is not None:
            self._catch_up(name, torch.unique(rows), state.step)

    def settle(self) -> None:
        """All rows take the steps they owe."""
        for name in self._state:
            self._settle(name)

    @torch.no_grad()
    def _settle(self, name: str) -> None:
        table, state = self._table(name), self._state[name]
        if table is not None:
            table.settle()
        if state.taken is not None:
            state.step.fill_(state.taken)
            state.taken = None
        if state.last is not None:
            self._catch_up(name, (state.last < state.step).nonzero()[:, 0], state.step)
            state.last, state.owed = None, 0

    def _table(self, name: str) -> AdamTable | None:
        """What the core steps in the place of torch."""
        state, parameter = self._state[name], self.parameters[name]
        if state.table is not None and not state.table.holds(parameter):  # the parameter was given other memory
            fits = _tables.fits(parameter)
            parts = (parameter, state.exp_avg, state.exp_avg_sq)
            state.table = AdamTable(*parts, self.lazy, state.table) if fits else None
        return state.table

    def can_step(self, users: str, items: str) -> bool:
        """Whether ``scores``, ``score_step`` and ``bpr_step`` are there for these two parameters: trained, float32 tables on
        the CPU."""
        return all(name in self.parameters and _tables.fits(self.parameters[name]) for name in (users, items))

    def scores(self, users: str, items: str, asked: Tensor, ids: Tensor) -> Tensor:
        """p · q, float32 [B, K], without gradient, of rows ``asked``, int64 [B], of one table with rows ``ids``, int64 [B, K],
        of the other. They first take the steps they owe."""
        return _tables.scores(self._core_table(users), self._core_table(items), asked, ids)

    def score_step(self, users: str, items: str, asked: Tensor, ids: Tensor, slopes: Tensor) -> None:
        """A step of two tables by ``slopes``, float32 [B, K], the gradient of a loss in their ``scores``. Call ``settle``
        before the tables are read: rows outside the batch owe the step."""
        if slopes.shape != ids.shape:
            raise ConfigError(
                f"slopes have shape {list(slopes.shape)}, ids {list(ids.shape)}", "give one slope a score"
            )
        slopes = slopes.to(torch.float32)
        own, others = ((self._core_table(name), self._next(name)) for name in (users, items))
        _tables.score_step(own, others, asked, ids, slopes)

    def bpr_step(self, users: str, items: str, asked: Tensor, positives: Tensor, negatives: Tensor) -> float:
        """``score_step`` on L = Σ softplus(s_uj - s_ui), in one pass; returns L. ``asked`` and ``positives`` are int64 [B],
        ``negatives`` int64 [B, N]."""
        own, others = ((self._core_table(name), self._next(name)) for name in (users, items))
        return _tables.bpr_step(own, others, asked, positives, negatives)

    def _core_table(self, name: str) -> AdamTable:
        if name not in self._state:
            self._new_state(name)
        table = self._table(name)
        assert table is not None, f"{name} is not for the core: see can_step"
        return table

    def _next(self, name: str) -> Step:
        """Counts a step of a table, and gives its numbers."""
        state, multiplicity = self._state[name], self.multiplicities.get(name, 1.0)
        state.taken = taken = 1 + (int(state.step) if state.taken is None else state.taken)
        correction = math.sqrt(1 - BETA2**taken)
        rate = self.lr * correction / (1 - BETA1**taken)
        return rate, EPS * multiplicity * correction, self.weight_decay * multiplicity

    def _step_rows(self, name: str, gradient: RowGradient) -> None:
        """torch's form of a lazy step, for what the core does not take."""
        parameter, state = self.parameters[name], self._state[name]
        rows, places = torch.unique(gradient.rows, return_inverse=True)
        summed = gradient.values.new_zeros(rows.shape[0], gradient.values.shape[1]).index_add_(
            0, places, gradient.values
        )
        if state.last is None:
            state.last = torch.full((parameter.shape[0],), float(state.step), device=parameter.device)
        self._catch_up(name, rows, state.step)
        part = _State(state.step, state.exp_avg.index_select(0, rows), state.exp_avg_sq.index_select(0, rows))
        values = parameter.index_select(0, rows)
        self._update([values], [summed], [part], self.multiplicities.get(name, 1.0))
        parameter.index_copy_(0, rows, values)
        state.exp_avg.index_copy_(0, rows, part.exp_avg)
        state.exp_avg_sq.index_copy_(0, rows, part.exp_avg_sq)
        state.last.index_copy_(0, rows, state.step.to(state.last.dtype).expand(rows.shape[0]))
        state.owed += 1
        if state.owed == SPAN:
            self._settle(name)

    def _catch_up(self, name: str, rows: Tensor, now: Tensor) -> None:
        """The estimate of the core (rust/core/src/tables.rs, ``Span``) in torch, with the rate of the step half way."""
        parameter, state, multiplicity = self.parameters[name], self._state[name], self.multiplicities.get(name, 1.0)
        assert state.last is not None
        k = (now - state.last.index_select(0, rows)).unsqueeze(1).to(parameter.dtype)  # [N, 1] steps owed
        middle = (now - (k - 1) / 2).clamp(min=1)
        correction = (1 - BETA2**middle).sqrt()
        rate, eps = self.lr * correction / (1 - BETA1**middle), EPS * multiplicity * correction
        value, m, v = (part.index_select(0, rows) for part in (parameter, state.exp_avg, state.exp_avg_sq))
        drift = self.weight_decay * multiplicity * value
        half = BETA2 ** ((k + 1) / 2)
        root = (v * half + (1 - half) * drift.square()).sqrt() + eps
        momentum = BETA1 * (1 - BETA1**k) / (1 - BETA1)
        shrink = rate * self.weight_decay * multiplicity * (k - momentum) / root
        moved = value / (1 + shrink + 0.5 * shrink.square()) - rate * momentum * m / root
        owing = k > 0
        parameter.index_copy_(0, rows, torch.where(owing, moved, value))
        state.exp_avg.index_copy_(0, rows, torch.where(owing, drift + (m - drift) * BETA1**k, m))
        state.exp_avg_sq.index_copy_(0, rows, v * BETA2**k + (1 - BETA2**k) * drift.square())
        state.last.index_copy_(0, rows, now.to(state.last.dtype).expand(rows.shape[0]))

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
        return self._keep(name, torch.zeros((), device=parameter.device), zeros, zeros.clone())

    def _keep(self, name: str, step: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> _State:
        parameter = self.parameters[name]
        table = AdamTable(parameter, exp_avg, exp_avg_sq, self.lazy) if _tables.fits(parameter) else None
        self._state[name] = _State(step, exp_avg, exp_avg_sq, table=table)
        return self._state[name]

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by ``parameter/part``. The tensors are the live ones."""
        self.settle()
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
                self._keep(name, *parts)


class Adagrad:
    """Adagrad (Duchi et al., 2011): the accumulator takes g², the step is lr · g / √accumulator.

    Accumulators start at ``initial``, 0.1 as in the framework of CML's code, not at 0. L2 is coupled as in `Adam`. Without
    it a row that a batch does not touch has no gradient and does not move, so that only the touched rows are stepped.
    ``multiplicities`` as in `Adam`: of n times the gradient the accumulator starts at n² times ``initial``.
    """

    EPS = 1e-10
    STATE = ("sum", "step")

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        initial: float = 0.1,
        multiplicities: Mapping[str, float] | None = None,
    ):
        self.parameters = dict(parameters)
        self.multiplicities = _multiplicities(multiplicities, self.parameters)
        self.lr, self.weight_decay, self.initial = lr, weight_decay, initial
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, Tensor] = {}

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for name, parameter in self.parameters.items():
            gradient, touching = parameter.grad, None
            if gradient is None:
                continue
            if gradient.is_sparse:
                touching, gradient = RowGradient(gradient._indices()[0], gradient._values()), None
            multiplicity = self.multiplicities.get(name, 1.0)
            if name not in self._sums:
                self._sums[name] = torch.full_like(
                    parameter, self.initial * multiplicity**2, memory_format=torch.contiguous_format
                )
                self._steps[name] = torch.zeros(())  # torch reads it in every step: an accelerator would be waited for
            if touching is not None and self.weight_decay:
                gradient = torch.zeros_like(parameter).index_add_(0, *touching)
            if gradient is not None:
                self._update(parameter, gradient, self._sums[name], self._steps[name], multiplicity)
                continue
            assert touching is not None
            rows, places = torch.unique(touching.rows, return_inverse=True)
            summed = touching.values.new_zeros(rows.shape[0], parameter.shape[1]).index_add_(0, places, touching.values)
            values, sums = parameter.index_select(0, rows), self._sums[name].index_select(0, rows)
            self._update(values, summed, sums, self._steps[name], multiplicity)
            parameter.index_copy_(0, rows, values)
            self._sums[name].index_copy_(0, rows, sums)

    def _update(self, parameter: Tensor, gradient: Tensor, sums: Tensor, step: Tensor, multiplicity: float) -> None:
        adagrad(
            [parameter],
            [gradient],
            [sums],
            [step],
            lr=self.lr,
            weight_decay=self.weight_decay * multiplicity,
            lr_decay=0.0,
            eps=self.EPS * multiplicity,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        return dict(self._parts())

    def _parts(self) -> Iterator[tuple[str, Tensor]]:
        for name, sums in self._sums.items():
            yield f"{name}/sum", sums
            yield f"{name}/step", self._steps[name]

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self._sums.clear()
        self._steps.clear()
        for name, parameter in self.parameters.items():
            if f"{name}/sum" in tensors:
                self._sums[name] = tensors[f"{name}/sum"].to(parameter.device, copy=True)
                self._steps[name] = tensors[f"{name}/step"].to("cpu", copy=True)


def _multiplicities(given: Mapping[str, float] | None, parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    found = dict(given or {})
    if unknown := sorted(set(found) - set(parameters)):
        raise ConfigError(f"multiplicity of {shown(unknown[0])}", "there is no such parameter")
    return found


OPTIMIZERS = ("adam", "lazy-adam", "adagrad")


Optimizer = Adam | Adagrad


def make_optimizer(
    name: str,
    parameters: Mapping[str, nn.Parameter],
    *,
    lr: float,
    weight_decay: float = 0.0,
    multiplicities: Mapping[str, float] | None = None,
) -> Optimizer:
    """The optimizer of that name; ``ConfigError`` for any other."""
    if name not in OPTIMIZERS:
        raise ConfigError(f"optimizer is {name!r}", f"allowed: {', '.join(OPTIMIZERS)}")
    if name == "adagrad":
        return Adagrad(parameters, lr=lr, weight_decay=weight_decay, multiplicities=multiplicities)
    lazy = name == "lazy-adam"
    return Adam(parameters, lr=lr, weight_decay=weight_decay, lazy=lazy, multiplicities=multiplicities)
