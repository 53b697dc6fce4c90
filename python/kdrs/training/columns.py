"""Tables divided among processes by columns: each holds the same coordinates of all vectors, and of their moments.

A product of two vectors is the sum of the processes' products, so that scores cost one all-reduce; whole vectors cost one
all-gather. All processes see the same batch, the same scores and vectors, and so the same loss; the gradient of a process's own
coordinates is the loss's own, and nothing else is exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdrs.errors import ConfigError
from kdrs.training.lazy import Lazy
from kdrs.training.processes import Group
from kdrs.training.queries import Queries
from kdrs.training.view import DotView, Factors

BLOCK_FLOATS = 1 << 22
"""Numbers of a table that are drawn, or brought together, at a time; a multiple of 16 whatever the dimension."""


@dataclass(frozen=True)
class Columns:
    """The coordinates that a process holds, of vectors of ``dim``."""

    group: Group
    dim: int

    def __post_init__(self) -> None:
        if self.dim < self.group.size:
            raise ConfigError(
                f"model.dim is {self.dim} for {self.group.size} processes, each of which holds some of the coordinates",
                f"take a larger dim, or at most {self.dim} processes",
            )

    @property
    def bounds(self) -> list[int]:
        """Where the share of each process begins, and the end of the last."""
        return [self.dim * rank // self.group.size for rank in range(self.group.size + 1)]

    @property
    def own(self) -> slice:
        bounds = self.bounds
        return slice(bounds[self.group.rank], bounds[self.group.rank + 1])

    @property
    def width(self) -> int:
        return self.own.stop - self.own.start

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all processes' values; the gradient of each is that of the sum."""
        total: Tensor = _Sum.apply(values, self.group)
        return total

    def gather(self, vectors: Tensor) -> Tensor:
        """Own coordinates [..., d] of all processes side by side: [..., D]."""
        whole: Tensor = _Gather.apply(vectors, self)
        return whole

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Tables that are made inside begin with these columns of what one process would draw, a block of rows at a time."""
        with _Drawing(self):
            yield


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        return group.add_up(values.contiguous().clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, columns: Columns) -> Tensor:
        ctx.own = columns.own
        return side_by_side(vectors, columns)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][..., ctx.own].contiguous(), None


def side_by_side(vectors: Tensor, columns: Columns) -> Tensor:
    """Own coordinates [..., d] of all processes as [..., D], without gradient."""
    bounds = columns.bounds
    widths = [stop - start for start, stop in pairwise(bounds)]
    most = max(widths)
    padded = vectors.detach()
    if vectors.shape[-1] < most:
        padded = torch.nn.functional.pad(padded, (0, most - vectors.shape[-1]))
    found = columns.group.gather(padded)
    return torch.cat([part[..., :width] for part, width in zip(found, widths, strict=True)], dim=-1)


class _Drawing(TorchFunctionMode):
    def __init__(self, columns: Columns):
        super().__init__()
        self._columns = columns

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, Tensor.normal_):
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            if tensor.ndim == 2 and tensor.shape[1] == self._columns.width and not tensor.is_meta:
                mean = args[1] if len(args) > 1 else kwargs.get("mean", 0.0)
                std = args[2] if len(args) > 2 else kwargs.get("std", 1.0)
                self._draw(tensor, float(mean), float(std))
                return tensor
        return func(*args, **kwargs)

    def _draw(self, table: Tensor, mean: float, std: float) -> None:
        """torch draws 16 numbers after 16, and the last 16 anew where they do not come out even: blocks of a multiple of 16,
        the last of which holds 16 at least, are what one draw of the whole table is."""
        rows, dim = table.shape[0], self._columns.dim
        size = max(16, BLOCK_FLOATS // dim // 16 * 16)
        with torch.no_grad():
            start = 0
            while start < rows:
                stop = rows if rows - start < size + 16 else start + size
                block = torch.empty(stop - start, dim, device=table.device, dtype=table.dtype).normal_(mean, std)
                table[start:stop] = block[:, self._columns.own]
                start = stop


class ColumnView(DotView):
    """A view of which each process has some coordinates. What it shows is the same in all of them, and all must ask alike."""

    def __init__(self, own: DotView, queries: Queries, columns: Columns):
        super().__init__(queries, own._encode, own._item_rows, own._item_table, own._bias, own._represent)
        of_own = self._queries  # not of self: a view goes with the step that it belongs to
        self._columns, self._whole = columns, Lazy(lambda: columns.gather(of_own()))

    @property
    def queries(self) -> Tensor:
        return self._whole()

    def items(self, ids: Tensor) -> Tensor:
        return self._columns.gather(super().items(ids))

    def scores(self, ids: Tensor) -> Tensor:
        return self._columns.sum(super().scores(ids))

    def pairs(self, rows: Tensor, ids: Tensor) -> Tensor:
        return self._columns.sum(super().pairs(rows, ids))

    def all_scores(self) -> Tensor:
        own, items, _ = super().factored()
        return self._columns.sum(own @ items.T)

    def factored(self) -> None:  # type: ignore[override]
        """No process has all of what the scores are products of."""
        return

    def summed(self, values: Tensor) -> Tensor:
        return self._columns.sum(values)

    def at(self, queries: Queries) -> ColumnView:
        view = ColumnView(self, queries, self._columns)
        view._table = self._table
        return view


class Spread:
    """A table of which each process has some columns, as it is stored: whole, a block of rows at a time."""

    def __init__(self, own: Tensor, columns: Columns):
        self.own, self.columns = own, columns
        self.shape, self.dtype = (own.shape[0], columns.dim), own.dtype
        self.nbytes = own.shape[0] * columns.dim * own.element_size()

    def blocks(self) -> Iterator[Tensor]:
        """Blocks of rows, [R, D] on the CPU. All processes must go through them together."""
        size = max(1, BLOCK_FLOATS // self.columns.dim)
        for part in self.own.split(size):
            yield side_by_side(part, self.columns).cpu()


class Tiles:
    """Vectors whose products are a model's scores, of which each process has some coordinates: whole ones a few at a time."""

    def __init__(self, own: Factors, columns: Columns):
        self._own, self._columns = own, columns
        self.shape = own.queries.shape[0], own.items.shape[0]

    def queries(self, shares: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """float32 [B, D]: vectors of the rows of this process's share [B]; ``shares`` are those of all of them. One share alone
        is everybody's."""
        rows = torch.from_numpy(np.concatenate(shares)).to(self._own.queries.device)
        whole = side_by_side(self._own.queries[rows], self._columns).cpu().numpy()
        if len(shares) == 1:
            return whole
        ends = np.cumsum([len(share) for share in shares])
        rank = self._columns.group.rank
        return np.ascontiguousarray(whole[ends[rank] - len(shares[rank]) : ends[rank]])

    def items(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All items' vectors, float32 [T, D] at a time, with the first id of each tile. All processes go through them
        together."""
        size = max(1, BLOCK_FLOATS // self._columns.dim)
        for start in range(0, self.shape[1], size):
            part = self._own.items[start : start + size]
            yield start, np.ascontiguousarray(side_by_side(part, self._columns).cpu().numpy())


def spread(tensors: Mapping[str, Tensor], names: Sequence[str], columns: Columns) -> dict[str, Tensor | Spread]:
    """These tensors, those of the ``names`` as tables of which each process has some columns."""
    return {
        name: Spread(tensor, columns) if name in names and tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()
    }


def drain(tensors: Mapping[str, Tensor | Spread]) -> None:
    """Does the part of a process that does not write them."""
    for name in in_order(tensors):
        tensor = tensors[name]
        if isinstance(tensor, Spread):
            for _ in tensor.blocks():
                pass


def in_order(tensors: Mapping[str, Tensor | Spread]) -> list[str]:
    """Names as safetensors orders them in a file: by the size of a number, falling, then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
