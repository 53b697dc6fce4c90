"""One forward pass, read by every loss of the step.

Letters of the shape comments, everywhere in kdrs: B batch rows, Q queries, U users, I items, D dimensions, K and L list
lengths, N draws, S sequence length. Ids are int64 inside torch, scores float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from kdrs.tasks import Queries


class Factors(NamedTuple):
    """A recommender whose score is a dot product: ``queries @ items.T + bias``."""

    queries: Tensor
    """float32 [Q, D]"""
    items: Tensor
    """float32 [I, D]"""
    bias: Tensor | None = None
    """float32 [I]"""


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


class Lazy:
    """A tensor that is computed when it is first read, and again where a gradient is wanted that the first reading, under
    ``no_grad``, does not carry."""

    def __init__(self, compute: Callable[[], Tensor]):
        self._compute = compute
        self._value: Tensor | None = None
        self._tracked = False

    def __call__(self) -> Tensor:
        if self._value is None or (torch.is_grad_enabled() and not self._tracked):
            self._value, self._tracked = self._compute(), torch.is_grad_enabled()
        return self._value


class DotView:
    """A view whose score is a dot product of two vectors, plus an item bias where there is one.

    ``user_rows`` and ``item_rows`` look vectors up by id (int64 [...] -> [..., D]); ``item_table`` is the whole
    catalogue [I, D], for ``all_scores``; ``encode`` turns queries into vectors [B, D]. ``represent`` gives h(u) of
    queries and h(i) of ids where these are others than the vectors that are multiplied, which may carry noise in training.
    ``sparse`` says that the catalogue is a parameter whose gradient should arrive as the rows that were touched.
    """

    def __init__(
        self,
        queries: Queries,
        encode: Callable[[Queries], Tensor],
        item_rows: Callable[[Tensor], Tensor],
        item_table: Callable[[], Tensor],
        bias: Tensor | None = None,
        represent: tuple[Callable[[Queries], Tensor], Callable[[Tensor], Tensor]] | None = None,
        *,
        sparse: bool = False,
    ):
        self._encode, self._item_rows, self._item_table, self._bias = encode, item_rows, item_table, bias
        self._represent, self._sparse = represent, sparse
        self._scored = Lazy(lambda: encode(queries))
        self._queries = self._scored if represent is None else Lazy(lambda: represent[0](queries))

    @property
    def queries(self) -> Tensor:
        return self._queries()

    def items(self, ids: Tensor) -> Tensor:
        return self._item_rows(ids) if self._represent is None else self._represent[1](ids)

    def scores(self, ids: Tensor) -> Tensor:
        if ids.shape[1] <= 2:  # a handful of products is cheaper than a batched matmul's set-up
            scores = (self._item_rows(ids) * self._scored().unsqueeze(1)).sum(-1)
        else:
            scores = self._item_products(self._scored(), ids)
        return self._with_bias(scores, ids)

    def pairs(self, rows: Tensor, ids: Tensor) -> Tensor:
        aligned = rows.ndim == ids.ndim == 2 and rows.shape[0] == ids.shape[0]
        if aligned and rows.shape[1] == 1:  # one query, many items
            scores = self._item_products(F.embedding(rows[:, 0], self._scored()), ids)
        elif aligned and ids.shape[1] == 1:  # one item, many queries
            own, queries = self._item_rows(ids[:, 0]), self._scored()
            if not _many(rows):
                scores = torch.bmm(F.embedding(rows, queries), own.unsqueeze(-1)).squeeze(-1)
            else:
                scores = _Products.apply(own, queries, rows, False)
        else:
            scores = (F.embedding(rows, self._scored()) * self._item_rows(ids)).sum(-1)
        return self._with_bias(scores, ids)

    def _item_products(self, own: Tensor, ids: Tensor) -> Tensor:
        """Products of own vectors [R, D] with those of each row's items [R, K]."""
        # a gradient of touched rows should not cost what the table costs, unless it touches most of it
        tracked = torch.is_grad_enabled()
        if not _many(ids) or (tracked and self._sparse and ids.numel() < self._item_table().shape[0]):
            return torch.bmm(self._item_rows(ids), own.unsqueeze(-1)).squeeze(-1)
        scores: Tensor = _Products.apply(own, self._item_table(), ids, self._sparse)
        return scores

    def _with_bias(self, scores: Tensor, ids: Tensor) -> Tensor:
        return scores if self._bias is None else scores + F.embedding(ids, self._bias.unsqueeze(-1)).squeeze(-1)

    def all_scores(self) -> Tensor:
        scores = self._scored() @ self._item_table().T  # [B, I]
        return scores if self._bias is None else scores + self._bias

    def at(self, queries: Queries) -> DotView:
        return DotView(
            queries, self._encode, self._item_rows, self._item_table, self._bias, self._represent, sparse=self._sparse
        )


MANY = 2048
"""Products from here on are worth more than torch's own gather and scatter."""
BLOCK_FLOATS = 1 << 17
"""Vectors gathered at a time: half a megabyte, which stays in a processor's cache."""


def _many(ids: Tensor) -> bool:
    return ids.numel() >= MANY and ids.device.type == "cpu"


def _products(own: Tensor, table: Tensor, ids: Tensor) -> Tensor:
    """Products of own vectors [R, D] with those of each row's ids, [R, K], in a table [M, D], some rows at a time."""
    (rows, width), dim = ids.shape, own.shape[1]
    own, table = own.detach(), table.detach()
    scores = own.new_empty(rows, width, 1)
    step = max(1, BLOCK_FLOATS // (width * dim))
    vectors = own.new_empty(min(step, rows) * width, dim)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        block = vectors[: (part.stop - start) * width]
        torch.index_select(table, 0, ids[part].reshape(-1), out=block)
        torch.bmm(block.view(-1, width, dim), own[part].unsqueeze(-1), out=scores[part])
    return scores.squeeze(-1)


class _Products(torch.autograd.Function):
    """Products of own vectors [R, D] with those of each row's ids [R, K] in a table [M, D], without an array [R, K, D].

    With G the gradient as a sparse matrix [R, M], backward is G · table and Gᵀ · own: a quarter of the time of scattering a
    gradient for every pair. ``sparse`` hands the table's gradient on as the rows that were touched. For the CPU.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, table: Tensor, ids: Tensor, sparse: bool) -> Tensor:
        ctx.save_for_backward(own, table, ids)
        ctx.sparse = sparse
        return _products(own, table, ids)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from scipy.sparse import csc_array

        own, table, ids = (tensor.detach() for tensor in ctx.saved_tensors)
        weights = gradients[0].contiguous()
        to_own = F.embedding_bag(ids, table, mode="sum", per_sample_weights=weights)
        indptr = np.arange(0, ids.numel() + 1, ids.shape[1], dtype=np.int32)
        # Gᵀ [M, R]: column r holds the weights of row r's ids
        parts = (weights.view(-1).numpy(), ids.reshape(-1).numpy().astype(np.int32), indptr)
        product = csc_array(parts, shape=(table.shape[0], own.shape[0])) @ own.numpy()
        to_table = torch.from_numpy(product)
        if ctx.sparse:
            touched = torch.zeros(table.shape[0], dtype=torch.bool).index_fill_(0, ids.reshape(-1), True)
            rows = touched.nonzero().T
            to_table = torch.sparse_coo_tensor(
                rows, to_table.index_select(0, rows[0]), table.shape, check_invariants=False, is_coalesced=True
            )
        return to_own, to_table, None, None


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

    def at(self, queries: Queries) -> FrozenView:
        with frozen(self._module):
            own = queries if self._understood is None else self._understood(queries)
            return FrozenView(self._view.at(own), self._module, self._understood)


class DetachedView:
    """A view in training, read without gradients reaching it: the same forward pass, dropout and all."""

    def __init__(self, view: View):
        self._view = view

    @property
    def queries(self) -> Tensor:
        return self._view.queries.detach()

    def items(self, ids: Tensor) -> Tensor:
        return self._view.items(ids).detach()

    def pairs(self, rows: Tensor, ids: Tensor) -> Tensor:
        return self._view.pairs(rows, ids).detach()

    def scores(self, ids: Tensor) -> Tensor:
        return self._view.scores(ids).detach()

    def all_scores(self) -> Tensor:
        return self._view.all_scores().detach()

    def at(self, queries: Queries) -> DetachedView:
        return DetachedView(self._view.at(queries))
