"""Vectors rounded to few bits in training: what is read is rounded, gradients pass straight through (Bengio et al., 2013).

The levels are those of `kdrs.Codes`: odd integers for 1 to 4 bits, integers from -127 to 127 for 8. The scale of a row is a
fixed share of its root mean square, the best one for normal coordinates, of its mean magnitude for one bit, and of its largest
for eight. No search: it is done again in every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdrs.core.kernels import Table
from kdrs.core.tables import RowTable
from kdrs.training.lazy import Lazy

SHARES = {2: 0.498, 3: 0.293, 4: 0.168}
"""Half the distance between two levels, as a share of the root mean square: least squared error for normal coordinates (Max,
1960; levels evenly spaced)."""
TINY = 1e-30


def levels_of(vectors: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Levels, float32 [..., D], and scales, float32 [...], of vectors [..., D]."""
    if bits == 8:
        scales = vectors.abs().amax(-1) / 127
        levels = (vectors / scales.clamp(min=TINY).unsqueeze(-1)).round_()
        return levels, scales
    if bits == 1:
        mean = torch.linalg.vector_norm(vectors, ord=1, dim=-1) / vectors.shape[-1]
        return torch.ones_like(vectors).copysign_(vectors), mean
    scales = SHARES[bits] * torch.linalg.vector_norm(vectors, dim=-1) / vectors.shape[-1] ** 0.5
    half = 1 << (bits - 1)
    levels = vectors * (0.5 / scales.clamp(min=TINY)).unsqueeze(-1)
    return levels.floor_().clamp_(-half, half - 1).mul_(2).add_(1), scales


def rounded(vectors: Tensor, bits: int) -> Tensor:
    """Vectors [..., D] rounded to ``bits`` bits, the gradient that of the vectors themselves; as they are for 32."""
    if bits == 32:
        return vectors
    out: Tensor = _Rounded.apply(vectors, bits)
    return out


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, bits: int) -> Tensor:
        levels, scales = levels_of(vectors, bits)
        return levels.mul_(scales.unsqueeze(-1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class RoundedRows:
    """A `RowTable` of which rounded rows are read; as it is for 32 bits. Rows are rounded when they are first asked for after
    `renew`, into memory of its own."""

    def __init__(self, table: RowTable, bits: int):
        self._source, self._bits = table, bits
        self._memory = None if bits == 32 else torch.empty_like(table.weight, requires_grad=False)
        self._fresh = torch.zeros(len(table.weight), dtype=torch.bool, device=table.weight.device)
        self._table = Lazy(self._made)

    def renew(self) -> None:
        """The table has changed."""
        self._fresh.zero_()
        self._table = Lazy(self._made)

    def table(self) -> Table:
        """What reads the rows. All gradients of a step that come from it reach the table together, as rows."""
        return self._table()

    def _made(self) -> Table:
        asked = self._source.read if self._memory is None else self._bring
        return Table(self._source.weight, sparse=True, asked=asked, memory=self._memory)

    @torch.no_grad()
    def _bring(self, ids: Tensor) -> None:
        """Rounds the rows of some ids that have not been since the table changed."""
        assert self._memory is not None
        asked = torch.zeros_like(self._fresh)
        asked[ids.reshape(-1)] = True
        rows = (asked & ~self._fresh).nonzero().squeeze(1)
        levels, scales = levels_of(self._source.read(rows).detach()[rows], self._bits)
        self._memory[rows] = levels.mul_(scales.unsqueeze(-1))
        self._fresh[rows] = True

    def read(self) -> Tensor:
        """The whole table, rounded, float32 [I, D]."""
        return rounded(self._source.read(), self._bits)


class RoundedTable:
    """A computed table of vectors, rounded whole."""

    def __init__(self, compute: Callable[[], Tensor], bits: int):
        self.read = Lazy(lambda: rounded(compute(), bits))
        """The whole table, float32 [I, D]."""
        self.table = Lazy(lambda: Table(self.read()))
        """What reads its rows."""
