"""Vectors rounded to few bits in training: what is read is rounded, gradients pass straight through (Bengio et al., 2013).

The levels are those of `kdrs.Codes`: odd integers for 1 to 4 bits, integers from -127 to 127 for 8. The scale of a row is a
fixed share of its root mean square, the best one for normal coordinates, of its mean magnitude for one bit, and of its largest
for eight. No search: it is done again in every step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrs.core.kernels import Table
from kdrs.core.tables import RowTable

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
        return torch.where(vectors >= 0, 1.0, -1.0).to(vectors.dtype), vectors.abs().mean(-1)
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
    """A `RowTable` of which rounded rows are read. Only rows that a step asks for are rounded, into memory of its own."""

    def __init__(self, table: RowTable, bits: int):
        self._source, self._bits = table, bits
        self._memory = torch.empty_like(table.weight, requires_grad=False)
        self._touched = torch.zeros(len(table.weight), dtype=torch.bool, device=table.weight.device)

    def __call__(self, ids: Tensor) -> Tensor:
        """float32 [..., D] of ids, int64 [...]; the gradient reaches the table as rows."""
        return rounded(self._source(ids), self._bits)

    def table(self) -> Table:
        """What products of a step are made with."""
        return Table(self._source.weight, sparse=True, asked=self.bring, memory=self._memory)

    @torch.no_grad()
    def bring(self, ids: Tensor) -> None:
        """Rounds the rows of some ids anew."""
        self._touched.zero_()
        self._touched[ids.reshape(-1)] = True
        rows = self._touched.nonzero().squeeze(1)
        weight = self._source.read(rows)
        levels, scales = levels_of(weight.detach()[rows], self._bits)
        self._memory[rows] = levels.mul_(scales.unsqueeze(-1))

    def sums(self, ids: Tensor, starts: Tensor) -> Tensor:
        """float32 [R, D]: sums of the rows of flat ids, int64 [P], row r from ``starts``[r] on."""
        self.bring(ids)
        return row_sums(self._source.weight, ids, starts, self._memory)

    def read(self) -> Tensor:
        """The whole table, rounded, float32 [I, D]."""
        return rounded(self._source.read(), self._bits)


def row_sums(table: Tensor, ids: Tensor, starts: Tensor, memory: Tensor | None = None) -> Tensor:
    """float32 [R, D]: sums of the rows of flat ids, int64 [P], row r from ``starts``[r] on; read from ``memory`` where that is
    given. The gradient of the table comes as rows, each once, ascending."""
    out: Tensor = _Sums.apply(table, table.detach() if memory is None else memory, ids, starts)
    return out


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, memory: Tensor, ids: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(ids, starts)
        ctx.shape = table.shape
        return F.embedding_bag(ids, memory, starts, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ids, starts = ctx.saved_tensors
        counts = torch.diff(starts, append=starts.new_tensor([len(ids)]))
        places = torch.repeat_interleave(counts)
        ordered, order = ids.sort(stable=True)
        rows, lengths = torch.unique_consecutive(ordered, return_counts=True)
        bounds = lengths.cumsum(0) - lengths
        # the transposed sums: of each item the gradients of those who have it
        values = F.embedding_bag(places[order], gradients[0], bounds, mode="sum")
        return torch.sparse_coo_tensor(rows.unsqueeze(0), values, ctx.shape, check_invariants=False), None, None, None
