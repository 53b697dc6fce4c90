"""Embedding tables of which a step reads few rows, and their training by the Rust core on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kdrs import _core
from kdrs.core.kernels import torch_threads
from kdrs.core.sampling import simd_path


class RowTable(nn.Embedding):
    """A table of vectors, of which a step reads few, with the rows that were touched as its gradient.

    In training rows may owe steps of the optimizer until they are read (`kdrs.training.optim.Adam`): ``due`` then brings
    rows up to date, int64 [...] or None for all. What reads the table in training calls it, or takes its values from ``read``.
    """

    def __init__(self, rows: int, dim: int, *, padding_idx: int | None = None):
        super().__init__(rows, dim, padding_idx=padding_idx, sparse=True)
        self.due: Callable[[Tensor | None], None] | None = None

    def read(self, rows: Tensor | None = None) -> Tensor:
        """The table, float32 [M, D], with these rows up to date; with all of them for None."""
        if self.due is not None:
            self.due(rows)
        return self.weight

    def forward(self, rows: Tensor) -> Tensor:
        if self.padding_idx is None or rows.device.type == "cpu":
            return F.embedding(rows, self.read(rows), self.padding_idx, sparse=True)
        # torch would look for padding among the rows, and an accelerator be waited for
        found = F.embedding(rows, self.read(rows), sparse=True)
        return found * (rows != self.padding_idx).unsqueeze(-1)

    def __getstate__(self) -> dict[str, Any]:
        """Copies are up to date and owe nothing."""
        self.read()
        return {**self.__dict__, "due": None}


class RowGradient(NamedTuple):
    """The gradient of a table that a batch touches in few rows; repeated rows add up."""

    rows: Tensor
    """int64 [N]"""
    values: Tensor
    """float32 [N, D]"""


def fits(table: Tensor) -> bool:
    """Whether the core can train a table: float32 [rows, D], contiguous, on the CPU."""
    return (
        table.device.type == "cpu"
        and table.dtype == torch.float32
        and table.ndim == 2
        and table.is_contiguous()
        and table.shape[1] > 0
    )


Step = tuple[float, float, float]
"""Of one iteration of Adam: lr · √c2 / c1 with the bias corrections c1 and c2, ε · √c2, and the weight decay."""


class AdamTable:
    """A table and its moments, float32 [rows, D] each, stepped in place.

    Steps that rows may still owe are kept, with the number that each row has taken; rows that are ``lazy`` take an estimate of
    them in closed form, at the cost of one.
    """

    KEPT = 128
    """Steps that a row may owe at most."""

    def __init__(
        self, parameter: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, lazy: bool, before: AdamTable | None = None
    ):
        """``before`` is the same table in other memory, whose rows owe what these owe."""
        self._at = parameter.data_ptr()
        self._arrays = (parameter.detach().numpy(), exp_avg.numpy(), exp_avg_sq.numpy())
        self._lazy = lazy
        self._steps: NDArray[np.float32] = np.empty((self.KEPT, 3), np.float32)
        # how many of how many steps each row has taken, changed together: an interruption may come between any two lines
        self._clock: tuple[NDArray[np.int32], int] = np.zeros(parameter.shape[0], np.int32), 0
        if before is not None:
            self._steps, self._clock = before._steps, before._clock

    def holds(self, parameter: Tensor) -> bool:
        """Whether this is still the parameter's memory."""
        return parameter.data_ptr() == self._at

    def step_rows(self, gradient: RowGradient, step: Step) -> None:
        """A step of the touched rows, after those that they owe; the others owe it from then on."""
        rows, values = _ids(gradient.rows), _floats(gradient.values)
        _core.adam_step_rows(self._arrays, self._begin(step), rows, values, step, torch_threads(), simd_path())

    def catch_up(self, rows: Tensor) -> None:
        """The rows, int64 [N], take the steps they owe."""
        if self._clock[1]:
            _core.adam_catch_up_rows(self._arrays, self._owed(), _ids(rows), torch_threads(), simd_path())

    def settle(self) -> None:
        """All rows take the steps they owe."""
        if self._clock[1]:
            _core.adam_catch_up(self._arrays, self._owed(), torch_threads(), simd_path())
            self._clock = np.zeros_like(self._clock[0]), 0

    def _owed(self) -> tuple[NDArray[np.float32], NDArray[np.int32], bool]:
        """The steps that rows may owe, and how many of them each row has taken."""
        taken, count = self._clock
        return self._steps[:count], taken, self._lazy

    def _begin(self, step: Step) -> tuple[NDArray[np.float32], NDArray[np.int32], bool]:
        """Counts a step, which all rows owe until it is taken; what they owed before."""
        if self._clock[1] == self.KEPT:
            self.settle()
        before, (taken, count) = self._owed(), self._clock
        self._steps[count] = step
        self._clock = taken, count + 1
        return before


def scores(users: AdamTable, items: AdamTable, asked: Tensor, ids: Tensor) -> Tensor:
    """p · q of the rows asked, int64 [B], with those of the ids, int64 [B, K], which first take the steps they owe: float32
    [B, K]."""
    own, others = ((table._arrays, table._owed()) for table in (users, items))
    rows, columns = _ids(asked), _ids(ids)
    return torch.from_numpy(_core.table_scores(own, others, rows, columns, torch_threads(), simd_path()))


def score_step(
    users: tuple[AdamTable, Step], items: tuple[AdamTable, Step], asked: Tensor, ids: Tensor, slopes: Tensor
) -> None:
    """A step of both tables by ``slopes``, float32 [B, K], the gradient in what ``scores`` gives. Other rows owe the step."""
    rows, columns, numbers = _ids(asked), _ids(ids), _floats(slopes)
    own, others = ((table._arrays, table._begin(step), step) for table, step in (users, items))
    _core.score_step(own, others, rows, columns, numbers, torch_threads(), simd_path())


def bpr_step(
    users: tuple[AdamTable, Step],
    items: tuple[AdamTable, Step],
    asked: Tensor,
    positives: Tensor,
    negatives: Tensor,
) -> float:
    """A step of both tables on Σ softplus(s_uj - s_ui), s = p · q; returns the sum before it. Rows outside the batch owe the
    step.

    ``asked`` and ``positives`` are int64 [B], ``negatives`` int64 [B, N].
    """
    own, others = ((table._arrays, table._begin(step), step) for table, step in (users, items))
    return _core.bpr_step(
        own,
        others,
        _ids(asked),
        _ids(positives),
        _ids(negatives),
        torch_threads(),
        simd_path(),
    )


def _ids(rows: Tensor) -> NDArray[np.int64]:
    return rows.detach().long().contiguous().numpy()


def _floats(values: Tensor) -> NDArray[np.float32]:
    return values.detach().float().contiguous().resolve_neg().numpy()
