"""Lists of a student: among all items, some of them, or some of each user's own; and of the most popular."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.compact.encoders import Items
from kdrs.compact.tables import Tables
from kdrs.core import ranking
from kdrs.core.codes import Codes
from kdrs.core.ranking import Ranking
from kdrs.data.interactions import Interactions

Allowed = Interactions | NDArray[np.int32] | None
"""Items that may be listed: of each query, of all (int32, ascending), or all there are."""
_CELLS = 1 << 24
"""Places of users' own lists against the items of all of them, at a time."""


def ranked(
    tables: Tables,
    catalogue: Callable[[], ranking.Catalogue],
    queries: Any,
    k: int,
    mask: Interactions | None,
    allowed: Allowed,
    threads: int | None,
) -> Ranking:
    """Lists of exactly ``k`` places. ``catalogue`` gives the packed items, of who asks for lists among all of them."""
    if isinstance(allowed, Interactions):
        return _own(tables, queries, k, mask, allowed, threads)
    if allowed is not None:
        return _among(tables, queries, k, mask, allowed, threads)
    return filled(catalogue().topk(queries, k, seen=mask, threads=threads), k)


def _among(
    tables: Tables, queries: Any, k: int, mask: Interactions | None, chosen: NDArray[np.int32], threads: int | None
) -> Ranking:
    """Of some items alone, int32 ascending."""
    side, bias = tables.items[chosen], None if tables.bias is None else tables.bias[chosen]
    if mask is not None:
        at = np.searchsorted(chosen, mask.indices)
        inside = chosen[np.minimum(at, max(len(chosen) - 1, 0))] == mask.indices if len(chosen) else at < 0
        mask = Interactions.from_pairs(mask.row_of_pair[inside], at[inside], mask.shape[0], len(chosen))
    found = ranking.topk(queries, side, k, seen=mask, bias=bias, threads=threads)
    places = np.append(chosen, -1)[found.items]  # -1 is the last
    return filled(Ranking(places.astype(np.int32), found.scores), k)


def _own(
    tables: Tables, queries: Any, k: int, mask: Interactions | None, allowed: Interactions, threads: int | None
) -> Ranking:
    """Each query among items of its own: some queries at a time, among the items of all of them less those of others."""
    n, n_items = allowed.shape
    out = Ranking(np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32))
    step = max(1, _CELLS // max(n_items, 1))
    for start in range(0, n, step):
        rows = np.arange(start, min(n, start + step))
        own = allowed.rows(rows)
        union = np.unique(own.indices)
        hidden = np.ones((len(rows), len(union)), bool)
        hidden[own.row_of_pair, np.searchsorted(union, own.indices)] = False
        row, column = np.nonzero(hidden)
        others = Interactions.from_pairs(row, union[column], len(rows), n_items)
        whole = others if mask is None else others.union(mask.rows(rows))
        found = _among(tables, queries[start : start + step], k, whole, union, threads)
        out.items[rows], out.scores[rows] = found
    return out


def popular(
    places: NDArray[np.int32], counts: NDArray[np.float32], k: int, mask: Interactions | None, allowed: Allowed, n: int
) -> Ranking:
    """The most popular items, for ``n`` users, some at a time; scores are counts."""
    if isinstance(allowed, np.ndarray):
        kept = np.isin(places, allowed)
        places, counts, allowed = places[kept], counts[kept], None
    out = Ranking(np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32))
    step = max(1, _CELLS // 4 // max(len(places), 1))
    for start in range(0, n, step):
        rows = np.arange(start, min(n, start + step))
        own, listed = part(mask, rows), part(allowed, rows)
        out.items[rows], out.scores[rows] = _popular(places, counts, k, own, listed, len(rows))
    return out


def _popular(
    places: NDArray[np.int32],
    counts: NDArray[np.float32],
    k: int,
    mask: Interactions | None,
    allowed: Interactions | None,
    n: int,
) -> Ranking:
    n_items = int(places.max(initial=-1)) + 1
    of = np.full(n_items + 1, -1, np.int64)
    of[places] = np.arange(len(places))

    def among(pairs: Interactions) -> tuple[NDArray[Any], NDArray[Any]]:
        at = of[np.minimum(pairs.indices, n_items)]
        return pairs.row_of_pair[at >= 0], at[at >= 0]

    scores = np.repeat(counts[None], n, 0)
    if allowed is not None:
        rows, at = among(allowed)
        scores = np.full(scores.shape, -np.inf, np.float32)
        scores[rows, at] = counts[at]
    if mask is not None:
        scores[among(mask)] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, 1)
    found = np.where(best > -np.inf, places[order] if len(places) else -1, -1).astype(np.int32)
    return filled(Ranking(found, best), k)


def unit(side: Items) -> Items:
    """Rows of length 1; of codes by their scales alone."""
    if isinstance(side, Codes):
        levels = side.levels().astype(np.float32)
        lengths = np.sqrt(np.einsum("nd,nd->n", levels, levels))
        scales = np.where((side.scales > 0) & (lengths > 0), 1 / np.maximum(lengths, 1), 0).astype(np.float32)
        return Codes.from_parts(side.data, scales, side.bits, side.shape[1], seed=side.seed, copy=False)
    lengths = np.sqrt(np.einsum("nd,nd->n", side, side, dtype=np.float64))
    return (side / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)


def blank(side: Items) -> NDArray[np.bool_]:
    """bool [N]: rows that are 0, of which nothing was learnt."""
    return np.asarray(side.scales == 0 if isinstance(side, Codes) else ~side.any(axis=1))


def less(allowed: Allowed, blocked: NDArray[np.int32], n_items: int) -> Allowed:
    """What may be listed without the ``blocked`` items of all."""
    if isinstance(allowed, Interactions):
        kept = ~np.isin(allowed.indices, blocked)
        return Interactions.from_pairs(allowed.row_of_pair[kept], allowed.indices[kept], *allowed.shape)
    whole = np.arange(n_items, dtype=np.int32) if allowed is None else allowed
    return whole[~np.isin(whole, blocked)]


def part(value: Any, rows: NDArray[np.int64]) -> Any:
    """What holds for some of the queries, which ascend."""
    return value.rows(rows) if isinstance(value, Interactions) and len(rows) < value.shape[0] else value


def rows_of(pairs: Interactions, rows: NDArray[np.int32]) -> Interactions:
    """Some rows, in their order; an empty one where it is -1."""
    known = rows >= 0
    found = pairs.rows(rows[known])
    if found.shape[0] == len(rows):
        return found
    ends = np.zeros(len(rows) + 1, np.int64)
    ends[1:][known] = found.row_degrees
    return replace(found, indptr=np.cumsum(ends), shape=(len(rows), found.shape[1]))


def mask_of(blocked: list[Any], n: int, n_items: int) -> Interactions | None:
    """All that is left out, a row a query: lists of each, or of all (int32)."""
    whole = None
    for one in blocked:
        if isinstance(one, np.ndarray):
            one = Interactions.from_pairs(np.repeat(np.arange(n), len(one)), np.tile(one, n), n, n_items)
        whole = one if whole is None else whole.union(one)
    return whole


def filled(found: Ranking, k: int) -> Ranking:
    """Lists of exactly ``k`` places."""
    places, scores = np.asarray(found.items), np.asarray(found.scores)
    if (missing := k - places.shape[1]) > 0:
        places = np.pad(places, ((0, 0), (0, missing)), constant_values=-1)
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    return Ranking(places, scores)


def merged(one: Ranking, rows: NDArray[Any], other: Ranking, others: NDArray[Any]) -> Ranking:
    """Two parts of the queries together, each at its ``rows``."""
    n, k = len(rows) + len(others), one.items.shape[1]
    items, scores = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    items[rows], scores[rows] = one
    items[others], scores[others] = other
    return Ranking(items, scores)
