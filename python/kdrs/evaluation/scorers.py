"""Whatever can score items, behind one small face: lists, counted ranks, ranks among candidates, block by block."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.core import ranking
from kdrs.core.codes import pair_scores, paired
from kdrs.core.ranking import Ranking
from kdrs.core.tiles import topk as topk_of_tiles
from kdrs.data.checks import check_lists
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError, ScoreError

# What a block of queries may hold: numbers of a score block, of a list block, and of scored (query, item) pairs. A
# model gathers one vector a pair, so a pair stands for some hundred numbers.
SCORES = 1 << 23
LISTS = 1 << 21
PAIRS = 1 << 17

DIVERGED = "look for diverged training or float16 overflow; give raw scores, the evaluator itself leaves out seen items"

# Rows of up to this many items are compared column by column, longer ones looked up.
SHORT = 16


class _Factors:
    """Scores are dot products, of floats or of codes: the fused kernels never hold a score block."""

    by_query = True

    def __init__(self, factors: Sequence[Any], n_queries: int, n_items: int, threads: int | None):
        if len(factors) not in (2, 3):
            raise ConfigError(f"got {len(factors)} factor arrays; allowed: queries [Q, D], items [I, D] and a bias [I]")
        bias = factors[2] if len(factors) == 3 else None
        self.coded = ranking.coded(factors[0], factors[1])
        self.queries: Any
        self.items: Any
        if self.coded:
            self.queries, self.items = paired(factors[0], factors[1])
        else:
            # The kernels run on the host: a tensor elsewhere is brought over once, not once a block.
            self.queries = as_numpy(_float32(factors[0], 2, "queries"))
            self.items = as_numpy(_float32(factors[1], 2, "items"))
        self.bias = None if bias is None else as_numpy(_float32(bias, 1, "bias"))
        self.threads = threads
        got = (self.queries.shape[0], self.items.shape[0], None if self.bias is None else self.bias.shape[0])
        if got[0] != n_queries or got[1] != n_items or got[2] not in (None, n_items):
            raise DataError(
                f"the scorer has {got[0]} queries and {got[1]} items"
                + ("" if got[2] is None else f" ({got[2]} biases)")
                + f", the data {n_queries} and {n_items}",
                "evaluate on the data that the scorer was made for; drop padding rows",
            )
        if self.queries.shape[1] != self.items.shape[1]:
            raise DataError(f"queries have {self.queries.shape[1]} dimensions, items {self.items.shape[1]}")
        offset = 0.0 if self.bias is None else _largest(self.bias, "item")
        if self.coded:
            return  # the kernels refuse scales whose scores would overflow
        largest = [_largest(self.queries, "user"), _largest(self.items, "item")]
        if largest[0] * largest[1] * self.queries.shape[1] + offset > float(np.finfo(np.float32).max):
            raise ScoreError(
                f"vectors with entries up to {largest[0]:.3g} and {largest[1]:.3g} have scores past the float32 range",
                DIVERGED,
            )

    def queries_a_block(self, width: int, *, pairs: bool) -> int:
        return max(1, LISTS // width)

    def block(self, rows: NDArray[np.int64]) -> _FactorBlock:
        return _FactorBlock(self, self._take(rows), rows)

    def candidate_ranks(
        self, rows: NDArray[np.int64], targets: NDArray[np.int32], candidates: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        found = ranking.candidate_ranks(
            self._take(rows), self.items, targets, candidates, bias=self.bias, threads=self.threads
        )
        return as_numpy(found.better), as_numpy(found.tied)

    def _take(self, rows: NDArray[np.int64]) -> Any:
        if is_range(rows):
            return self.queries[int(rows[0]) : int(rows[-1]) + 1]
        return self.queries[rows]


class _FactorBlock:
    is_list = False

    def __init__(self, source: _Factors, queries: Any, rows: NDArray[np.int64]):
        self.source, self.queries, self.rows = source, queries, rows

    def topk(self, k: int, seen: Interactions) -> Ranking:
        source = self.source
        found = ranking.topk(
            self.queries, source.items, k, seen=seen, rows=self.rows, bias=source.bias, threads=source.threads
        )
        return Ranking(as_numpy(found.items), as_numpy(found.scores))

    def ranks(self, truth: Interactions, seen: Interactions) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        source = self.source
        found = ranking.ranks(
            self.queries, source.items, truth, seen=seen, rows=self.rows, bias=source.bias, threads=source.threads
        )
        return as_numpy(found.better), as_numpy(found.tied)

    def pair_scores(self, query: NDArray[np.int64], items: NDArray[np.int32]) -> NDArray[np.float32]:
        source = self.source
        if source.coded:
            return pair_scores(self.queries, source.items, source.bias, query, items)
        scores = (self.queries[query] * source.items[items.astype(np.int64)]).sum(-1)
        if source.bias is not None:
            scores = scores + source.bias[items.astype(np.int64)]
        return as_numpy(scores)


class Tiled:
    """Factors of which each process has some coordinates. Each ranks its share of the queries; whole vectors come a few at a
    time."""

    def __init__(self, tiles: Any, rank: int, threads: int | None):
        self.tiles, self.rank, self.threads = tiles, rank, threads

    def queries_a_block(self, width: int, *, pairs: bool) -> int:
        return max(1, LISTS // width)

    def block(self, shares: Sequence[NDArray[np.int64]]) -> _TiledBlock:
        """Of the rows of this process's share; ``shares`` are those of all processes, which ask together."""
        return _TiledBlock(self, self.tiles.queries(shares), shares[self.rank])


class _TiledBlock:
    is_list = False

    def __init__(self, source: Tiled, queries: NDArray[np.float32], rows: NDArray[np.int64]):
        self.source, self.queries, self.rows = source, queries, rows

    def topk(self, k: int, seen: Interactions) -> Ranking:
        tiles, threads = self.source.tiles.items(), self.source.threads
        return topk_of_tiles(self.queries, tiles, k, seen=seen, rows=self.rows, threads=threads)

    def ranks(self, *_: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        raise TypeError("a tile has no ranks: lists alone are made")

    def pair_scores(self, *_: Any) -> NDArray[np.float32]:
        raise TypeError("a tile has no scores of pairs: lists alone are made")


class _Blocks:
    """Scores come as blocks [B, I] and, where the scorer offers it, as pairs [B, C]."""

    by_query = False

    def __init__(
        self, blocks: Callable[[Any], Any], pairs: Callable[[Any, Any], Any] | None, n_items: int, threads: int | None
    ):
        self.blocks, self.pairs, self.n_items, self.threads = blocks, pairs, n_items, threads

    def queries_a_block(self, width: int, *, pairs: bool) -> int:
        if pairs and self.pairs is not None:
            return max(1, PAIRS // width)
        return max(1, SCORES // max(self.n_items, 1))

    def block(self, rows: NDArray[np.int64]) -> _ScoreBlock:
        return _ScoreBlock(_scores(self.blocks(rows), (rows.size, self.n_items), rows), rows, self.threads)

    def candidate_ranks(
        self, rows: NDArray[np.int64], targets: NDArray[np.int32], candidates: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        ids = np.concatenate([targets, candidates], axis=1)
        if self.pairs is None:
            at = np.arange(rows.size)[:, None], np.maximum(ids, 0).astype(np.int64)
            scores = self.block(rows).scores[at]
        else:
            # Padding is scored as item 0 and never counted.
            scores = _scores(self.pairs(rows, np.maximum(ids, 0).astype(np.int64)), ids.shape, rows, ids)
        n = targets.shape[1]
        found = ranking.candidate_ranks_scores(
            scores[:, :n], scores[:, n:], targets=targets, candidates=candidates, threads=self.threads
        )
        return as_numpy(found.better), as_numpy(found.tied)


class _ScoreBlock:
    is_list = False

    def __init__(self, scores: Any, rows: NDArray[np.int64], threads: int | None):
        self.scores, self.rows, self.threads = scores, rows, threads

    def topk(self, k: int, seen: Interactions) -> Ranking:
        found = ranking.topk_scores(self.scores, k, seen=seen, rows=self.rows, threads=self.threads)
        return Ranking(as_numpy(found.items), as_numpy(found.scores))

    def ranks(self, truth: Interactions, seen: Interactions) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        found = ranking.ranks_scores(self.scores, truth, seen=seen, rows=self.rows, threads=self.threads)
        return as_numpy(found.better), as_numpy(found.tied)

    def pair_scores(self, query: NDArray[np.int64], items: NDArray[np.int32]) -> NDArray[np.float32]:
        return as_numpy(self.scores[query, items.astype(np.int64)])


class Lists:
    """Ready lists: nothing is known of items that are not in them."""

    by_query = True

    def __init__(self, lists: NDArray[np.int32], n_queries: int, n_items: int):
        if lists.shape[0] != n_queries:
            raise DataError(f"got lists of {lists.shape[0]} queries; the data has {n_queries}")
        check_lists(lists, n_items, "the list of query")
        self.lists = lists

    def queries_a_block(self, width: int, *, pairs: bool) -> int:
        return max(1, LISTS // max(self.lists.shape[1], 1))

    def block(self, rows: NDArray[np.int64]) -> _ListBlock:
        return _ListBlock(self, rows)

    def candidate_ranks(self, *_: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        raise ConfigError("ready lists do not rank stored candidates", "give scores, or evaluate with full ranking")


class _ListBlock:
    is_list = True

    def __init__(self, source: Lists, rows: NDArray[np.int64]):
        self.source, self.rows = source, rows

    def topk(self, k: int, seen: Interactions) -> Ranking:
        lists = self.source.lists[self.rows]
        gone = members(seen, self.rows, lists) | (lists < 0)
        order = np.argsort(gone, axis=1, kind="stable")
        items = np.where(np.take_along_axis(gone, order, axis=1), -1, np.take_along_axis(lists, order, axis=1))
        items = items[:, :k].astype(np.int32)
        # No score is known: descending places stand for them, so that nothing counts as tied.
        places = np.broadcast_to(-np.arange(items.shape[1], dtype=np.float32), items.shape)
        return Ranking(items, np.where(items >= 0, places, np.float32(-np.inf)))

    def ranks(self, *_: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        raise ConfigError("ready lists have no scores to count ranks with", "use ties='list', or give scores")

    def pair_scores(self, *_: Any) -> NDArray[np.float32]:
        raise ConfigError("ready lists have no scores", "use ties='list', or give scores")


Source = _Factors | _Blocks | Lists
Block = _FactorBlock | _ScoreBlock | _ListBlock | _TiledBlock


def as_source(scorer: Any, n_queries: int, n_items: int, threads: int | None) -> Source:
    if isinstance(scorer, Ranking):
        return Lists(as_lists(scorer), n_queries, n_items)
    if isinstance(scorer, (tuple, list)) and scorer and all(x is None or hasattr(x, "shape") for x in scorer):
        return _Factors(scorer, n_queries, n_items, threads)
    if callable(getattr(scorer, "factors", None)):
        factors = scorer.factors()
        if factors is not None:
            return _Factors(factors, n_queries, n_items, threads)
    if callable(getattr(scorer, "score_block", None)):
        return _Blocks(scorer.score_block, getattr(scorer, "score_pairs", None), n_items, threads)
    if hasattr(scorer, "shape") and hasattr(scorer, "dtype"):
        return Lists(as_lists(scorer), n_queries, n_items)
    if callable(scorer) and not hasattr(scorer, "factors"):
        return _Blocks(scorer, None, n_items, threads)
    raise ConfigError(
        f"{type(scorer).__name__} is no scorer",
        "give factors or codes (queries, items), an object with score_block(rows), a function rows -> scores [B, I], or lists",
    )


def _scores(scores: Any, shape: tuple[int, ...], rows: NDArray[np.int64], ids: NDArray[np.int32] | None = None) -> Any:
    """The scores as a float32 array or tensor of that shape, all finite."""
    if not hasattr(scores, "detach"):
        scores = np.asarray(scores)
    if tuple(scores.shape) != shape:
        raise DataError(f"the scorer gave scores of shape {tuple(scores.shape)} for {rows.size} queries, not {shape}")
    scores = _float32(scores, 2, "scores")
    finite = np.isfinite(scores) if isinstance(scores, np.ndarray) else scores.isfinite()
    if ids is not None:
        finite = finite | (ids < 0) if isinstance(finite, np.ndarray) else finite | finite.new_tensor(ids < 0)
    if not bool(finite.all()):
        query, column = (int(x[0]) for x in np.nonzero(~as_numpy(finite)))
        item = column if ids is None else int(ids[query, column])
        raise ScoreError(
            f"the score of user {rows[query]} for item {item} is {float(scores[query, column])}; scores must be finite",
            DIVERGED,
        )
    return scores


def _float32(values: Any, ndim: int, name: str) -> Any:
    if hasattr(values, "detach"):
        values = values.detach().float().contiguous()
    else:
        values = np.asarray(values)
        if values.dtype.kind not in "fiu":
            raise DataError(f"{name} are {values.dtype}; allowed: floats")
        values = np.ascontiguousarray(values, np.float32)
    if values.ndim != ndim:
        raise DataError(f"{name} have shape {tuple(values.shape)}; allowed: {ndim} dimension{'s' * (ndim > 1)}")
    return values


def _largest(values: Any, name: str) -> float:
    """The largest absolute entry; ``ScoreError`` naming the first row that is not finite."""
    if not values.shape[0] or not values.shape[-1]:
        return 0.0
    high, low = float(values.max()), float(values.min())
    if not (math.isfinite(high) and math.isfinite(low)):
        rows = as_numpy(values).reshape(values.shape[0], -1)
        first = int(np.argmin(np.isfinite(rows).all(axis=1)))
        entry = rows[first][~np.isfinite(rows[first])][0]
        raise ScoreError(f"the vector of {name} {first} holds {entry}; scores must be finite", DIVERGED)
    return max(high, -low)


def as_numpy(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def as_lists(lists: Any) -> NDArray[np.int32]:
    items = as_numpy(lists.items if isinstance(lists, Ranking) else lists)
    if items.ndim != 2 or items.dtype.kind not in "iu":
        raise ConfigError(
            f"got an array of {items.dtype}, shape {items.shape}; lists are integers of shape queries x K",
            "a matrix of scores is given as lambda rows: scores[rows]",
        )
    if items.size and not -(2**31) <= int(items.min()) <= int(items.max()) < 2**31:
        raise DataError("the lists hold ids that do not fit int32")
    return items.astype(np.int32, copy=False)


def no_grad() -> AbstractContextManager[Any]:
    # Scorers may run a torch model; NumPy-only use must not import torch for it.
    torch = sys.modules.get("torch")
    return nullcontext() if torch is None else torch.no_grad()


def members(pairs: Interactions, rows: NDArray[np.int64], items: NDArray[np.int32]) -> NDArray[np.bool_]:
    """bool [B, W]: which ``items`` [B, W] the ``rows`` [B] hold in ``pairs``; -1 is in none."""
    found = np.zeros(items.shape, bool)
    if not pairs.n_pairs or not items.size:
        return found
    if pairs.row_degrees[rows].max() <= SHORT:
        for column in padded(pairs, rows).T:
            # Padding of the list must not meet padding of the row.
            found |= items == np.where(column < 0, -2, column)[:, None]
        return found
    query, held = pairs.pairs_of(rows)
    keys = query * pairs.shape[1] + held  # ascending, as the rows and their items are
    wanted = np.arange(rows.size)[:, None] * pairs.shape[1] + items
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return (keys[at] == wanted) & (items >= 0)


def merged(pairs: Interactions, more: Interactions) -> Interactions:
    """Pairs of either side, without sorting anew: ``more`` is few, ``pairs`` may be millions."""
    places, added = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    degrees = pairs.row_degrees.copy()
    step = max(1, 8 * PAIRS // max(1, pairs.n_pairs // max(1, pairs.shape[0])))
    for start in range(0, pairs.shape[0], step):
        rows = np.arange(start, min(start + step, pairs.shape[0]))
        own_query, own = pairs.pairs_of(rows)
        query, items = more.pairs_of(rows)
        keys, wanted = own_query * pairs.shape[1] + own, query * pairs.shape[1] + items
        at = np.searchsorted(keys, wanted)
        new = np.append(keys, -1)[at] != wanted
        places.append(at[new] + pairs.indptr[start])
        added.append(items[new])
        degrees[rows] += np.bincount(query[new], minlength=rows.size)
    indptr = np.concatenate([[0], np.cumsum(degrees)])
    indices = np.insert(pairs.indices, np.concatenate(places), np.concatenate(added))
    return Interactions(indptr, indices, pairs.shape)


def padded(pairs: Interactions, rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """int32 [B, longest row]: the rows, -1 at the end."""
    degrees = pairs.row_degrees[rows]
    width = int(degrees.max(initial=0))
    table = np.full((rows.size, width), -1, np.int32)
    table[np.arange(width) < degrees[:, None]] = pairs.pairs_of(rows)[1]
    return table


def is_range(rows: NDArray[np.int64]) -> bool:
    return bool(rows.size and rows[-1] - rows[0] + 1 == rows.size and (np.diff(rows) == 1).all())
