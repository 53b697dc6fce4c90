"""One forward pass, read by every loss of the step.

Letters of the shape comments, everywhere in kdrs: B batch rows, Q queries, U users, I items, D dimensions, K and L list
lengths, N draws, S sequence length. Ids are int64 inside torch, scores float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrs.core.codes import Codes
from kdrs.core.kernels import Table
from kdrs.core.tables import RowTable
from kdrs.training.lazy import Lazy
from kdrs.training.rounding import RoundedRows, RoundedTable

if TYPE_CHECKING:
    from kdrs.training.queries import Queries


class Factors(NamedTuple):
    """A recommender whose score is a dot product: ``queries @ items.T + bias``. Vectors of compact models are `kdrs.Codes`."""

    queries: Tensor
    """float32 [Q, D]"""
    items: Tensor
    """float32 [I, D]"""
    bias: Tensor | None = None
    """float32 [I]"""

    def plain(self) -> Factors:
        """The same with codes decoded, in their turned directions: for what computes with vectors."""

        def decoded(side: Any) -> Tensor:
            return torch.from_numpy(side.turned()) if isinstance(side, Codes) else side

        return Factors(decoded(self.queries), decoded(self.items), self.bias)


@runtime_checkable
class View(Protocol):
    """What a model answers to B queries. Everything is lazy: only what a loss reads is computed.

    ``rows`` below counts the queries of this view, 0 to B-1; it is no user id.
    """

    @property
    def queries(self) -> Tensor:
        """float32 [B, D]: the representation h(u) of the queries."""

    def items(self, ids: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., D]: the representation h(i) of items."""

    def pairs(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Scores of (query row, item) pairs; ``rows`` and ``ids`` broadcast against each other."""

    def scores(self, ids: Tensor) -> Tensor:
        """int64 [B, K] -> float32 [B, K]: scores of each query's own items."""

    def all_scores(self) -> Tensor:
        """float32 [B, I]: the whole catalogue. For blocks of queries only."""

    def factored(self) -> Factors | None:
        """What the whole catalogue's scores are products of, with gradient: vectors of this view's queries and of items; None
        where scores are no products."""

    def at(self, queries: Queries) -> View:
        """Another view of the same forward state, so that a graph model still propagates once."""


def products(left: Tensor, right: Tensor) -> Tensor:
    """Dot products [...] of vectors [..., D] that broadcast; one against many as a batched product, without the array
    [..., D] of element products."""
    if left.ndim == right.ndim == 3 and left.shape[0] == right.shape[0]:
        if left.shape[1] == 1:
            return torch.bmm(right, left.transpose(1, 2)).squeeze(-1)
        if right.shape[1] == 1:
            return torch.bmm(left, right.transpose(1, 2)).squeeze(-1)
    return (left * right).sum(-1)


class DotView:
    """A view whose score is a dot product of two vectors, plus an item bias where there is one.

    ``encode`` turns queries into vectors [B, D]; ``item_rows`` looks vectors up by id (int64 [...] -> [..., D]);
    ``item_table`` gives the whole catalogue [I, D], or is the table that holds it. ``represent`` gives h(u) of
    queries and h(i) of ids where these are others than the vectors that are multiplied, which may carry noise in training.
    """

    def __init__(
        self,
        queries: Queries,
        encode: Callable[[Queries], Tensor],
        item_rows: Callable[[Tensor], Tensor],
        item_table: Callable[[], Tensor] | nn.Embedding | RoundedRows | RoundedTable,
        bias: Tensor | None = None,
        represent: tuple[Callable[[Queries], Tensor], Callable[[Tensor], Tensor]] | None = None,
    ):
        self._encode, self._item_rows, self._item_table, self._bias = encode, item_rows, item_table, bias
        self._represent = represent
        self._table = Lazy(partial(_table_of, item_table))  # not of self: a view goes with the step that it belongs to
        self._scored = Lazy(lambda: encode(queries))
        self._queries = self._scored if represent is None else Lazy(lambda: represent[0](queries))

    @property
    def item_table(self) -> Callable[[], Tensor] | nn.Embedding | RoundedRows | RoundedTable:
        """What holds, or gives, the items' vectors that are multiplied."""
        return self._item_table

    @property
    def bias(self) -> Tensor | None:
        """float32 [I]"""
        return self._bias

    def encode(self, queries: Queries) -> Tensor:
        """float32 [B, D]: vectors that are multiplied, of other queries in the same forward state."""
        return self._encode(queries)

    @property
    def queries(self) -> Tensor:
        return self._queries()

    def items(self, ids: Tensor) -> Tensor:
        return self._item_rows(ids) if self._represent is None else self._represent[1](ids)

    def scores(self, ids: Tensor) -> Tensor:
        return self._with_bias(self._table().products(self._scored(), ids), ids)

    def pairs(self, rows: Tensor, ids: Tensor) -> Tensor:
        aligned = rows.ndim == ids.ndim == 2 and rows.shape[0] == ids.shape[0]
        if aligned and rows.shape[1] == 1:  # one query, many items
            scores = self._table().products(F.embedding(rows[:, 0], self._scored()), ids)
        elif aligned and ids.shape[1] == 1:  # one item, many queries
            scores = Table(self._scored()).products(self._item_rows(ids[:, 0]), rows)
        else:
            scores = (F.embedding(rows, self._scored()) * self._item_rows(ids)).sum(-1)
        return self._with_bias(scores, ids)

    def _with_bias(self, scores: Tensor, ids: Tensor) -> Tensor:
        return scores if self._bias is None else scores + F.embedding(ids, self._bias.unsqueeze(-1)).squeeze(-1)

    def all_scores(self) -> Tensor:
        own, items, bias = self.factored()
        scores = own @ items.T  # [B, I]
        return scores if bias is None else scores + bias

    def factored(self) -> Factors:
        """What the whole catalogue's scores are products of, with gradient: vectors of this view's queries and of items."""
        source = self._item_table
        if isinstance(source, (RowTable, RoundedRows, RoundedTable)):
            catalogue = source.read()
        else:
            catalogue = source.weight if isinstance(source, nn.Embedding) else source()
        return Factors(self._scored(), catalogue, self._bias)

    def summed(self, values: Tensor) -> Tensor:
        """A sum over the coordinates that are here, over all of them."""
        return values

    def at(self, queries: Queries) -> DotView:
        view = DotView(queries, self._encode, self._item_rows, self._item_table, self._bias, self._represent)
        view._table = self._table
        return view


def _table_of(source: Callable[[], Tensor] | nn.Embedding | RoundedRows | RoundedTable) -> Table:
    if isinstance(source, (RoundedRows, RoundedTable)):
        return source.table()
    if isinstance(source, RowTable):
        return Table(source.weight, sparse=True, asked=source.read)
    return Table(source.weight, sparse=source.sparse) if isinstance(source, nn.Embedding) else Table(source())


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradients and evaluation mode while ``module`` is read; its mode is restored afterwards."""
    training = module.training
    if training:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            module.train()


class FrozenView:
    """A view without gradients. Views are lazy, so the freeze holds on every read and not only when it is built.

    ``understood`` turns queries that it is asked ``at`` into those that the module understands.
    """

    def __init__(self, view: View, module: nn.Module, understood: Callable[[Queries], Queries] | None = None):
        self._view, self._module, self._understood = view, module, understood

    @property
    def queries(self) -> Tensor:
        with frozen(self._module):
            return self._view.queries

    def items(self, ids: Tensor) -> Tensor:
        with frozen(self._module):
            return self._view.items(ids)

    def pairs(self, rows: Tensor, ids: Tensor) -> Tensor:
        with frozen(self._module):
            return self._view.pairs(rows, ids)

    def scores(self, ids: Tensor) -> Tensor:
        with frozen(self._module):
            return self._view.scores(ids)

    def all_scores(self) -> Tensor:
        with frozen(self._module):
            return self._view.all_scores()

    def factored(self) -> Factors | None:
        with frozen(self._module):
            return self._view.factored()

    def at(self, queries: Queries) -> FrozenView:
        with frozen(self._module):
            own = queries if self._understood is None else self._understood(queries)
            return FrozenView(self._view.at(own), self._module, self._understood)


class DetachedView:
    """A view in training, read without gradients reaching it: the same forward pass, dropout and all.

    ``scores`` gives its scores another way, where there is a shorter one.
    """

    def __init__(self, view: View, scores: Callable[[Tensor], Tensor] | None = None):
        self._view, self._scores = view, scores

    @property
    def queries(self) -> Tensor:
        return self._view.queries.detach()

    def items(self, ids: Tensor) -> Tensor:
        return self._view.items(ids).detach()

    def pairs(self, rows: Tensor, ids: Tensor) -> Tensor:
        return self._view.pairs(rows, ids).detach()

    def scores(self, ids: Tensor) -> Tensor:
        return self._view.scores(ids).detach() if self._scores is None else self._scores(ids)

    def all_scores(self) -> Tensor:
        return self._view.all_scores().detach()

    def factored(self) -> Factors | None:
        found = self._view.factored()
        if found is None:
            return None
        return Factors(
            found.queries.detach(), found.items.detach(), None if found.bias is None else found.bias.detach()
        )

    def at(self, queries: Queries) -> DetachedView:
        return DetachedView(self._view.at(queries))
