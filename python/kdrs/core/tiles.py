"""Lists of a catalogue that comes a tile at a time, for tables of which no process has all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.core import ranking
from kdrs.core.ranking import Ranking


def topk(
    queries: NDArray[np.float32],
    tiles: Iterable[tuple[int, NDArray[np.float32]]],
    k: int,
    *,
    seen: Any = None,
    rows: NDArray[np.int64],
    threads: int | None = None,
) -> Ranking:
    """`kdrs.core.ranking.topk` of vectors float32 [B, D] against items in tiles, each with its first id, ascending: the same
    lists, int32 and float32 [B, k]. ``rows`` [B] are those of ``seen``, whose pairs are left out."""
    held = None if seen is None else seen.pairs_of(rows)
    best = Ranking(np.zeros((len(rows), 0), np.int32), np.zeros((len(rows), 0), np.float32))
    for start, items in tiles:
        if not len(rows):  # the tile was made for others
            continue
        left_out = None if held is None else _within(held, len(rows), start, len(items), seen)
        found = ranking.topk(queries, items, min(k, len(items)), seen=left_out, threads=threads)
        ids = np.where(found.items >= 0, found.items + np.int32(start), -1).astype(np.int32)
        if not best.items.shape[1]:
            best = Ranking(ids, found.scores)
            continue
        # equal scores: those of former tiles come first and have the lower ids
        ids = np.concatenate([best.items, ids], axis=1)
        joined = np.ascontiguousarray(np.concatenate([best.scores, found.scores], axis=1))
        places, scores = ranking.topk_scores(joined, min(k, joined.shape[1]), threads=threads)
        kept = np.take_along_axis(ids, np.maximum(places, 0).astype(np.int64), axis=1)
        best = Ranking(np.where((places < 0) | (scores == -np.inf), -1, kept).astype(np.int32), scores)
    return best


def _within(held: tuple[Any, Any], n_rows: int, start: int, size: int, seen: Any) -> Any:
    """The pairs (row, item) of ``held`` whose items lie in a tile, as interactions of their own."""
    query, items = held
    inside = (items >= start) & (items < start + size)
    query, items = query[inside], items[inside] - start
    indptr = np.concatenate([[0], np.cumsum(np.bincount(query, minlength=n_rows))]).astype(np.int64)
    return type(seen)(indptr, items.astype(np.int32), (n_rows, size))
