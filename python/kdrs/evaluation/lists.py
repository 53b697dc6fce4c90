"""Lists of any scorer, and how far two sets of them agree."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.core.ranking import Ranking
from kdrs.data.checks import INT32_MAX, check_lists
from kdrs.data.interactions import as_interactions
from kdrs.errors import ConfigError, DataError, shown
from kdrs.evaluation.scorers import (
    LISTS,
    as_lists,
    as_source,
    no_grad,
)


def popularity(seen: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The scorer that ranks items by their train count: what any model has to beat."""
    seen = as_interactions(seen, "seen")
    counts = seen.column_degrees.astype(np.float32)
    return np.ones((seen.shape[0], 1), np.float32), counts[:, None]


def top_lists(
    scorer: Any, seen: Any, k: int, *, threads: int | None = None, block: int | None = None
) -> Iterator[tuple[NDArray[np.int64], Ranking]]:
    """The best ``k`` unseen items of every query, block by block: (rows [B], ``Ranking`` [B, k])."""
    seen = as_interactions(seen, "seen")
    k = min(*checked_ks([k], None), seen.shape[1])
    source = as_source(scorer, seen.shape[0], seen.shape[1], threads)
    size = block or source.queries_a_block(max(k, 1), pairs=False)
    with no_grad():
        for start in range(0, seen.shape[0], size):
            rows = np.arange(start, min(start + size, seen.shape[0]))
            yield rows, source.block(rows).topk(k, seen)


def overlap(one: Any, other: Any, ks: Sequence[int] = (10,)) -> dict[str, NDArray[np.float64]]:
    """How far two sets of lists agree: float64 ``[Q]`` by name, for teacher and student for example.

    ``one`` and ``other`` are lists of the same queries (``Ranking`` or int [Q, K], best first, -1 pads the end).
    With A and B the first K of each: ``overlap@K`` is |A and B| / K, ``jaccard@K`` is |A and B| / |A or B| (1 where
    both are empty). Raises ``DataError`` for a list that holds an item twice, an id below -1 or an item after -1.
    """
    a, b = as_lists(one), as_lists(other)
    for lists in (a, b):
        check_lists(lists, INT32_MAX, "the list of query")
    if a.shape[0] != b.shape[0]:
        raise DataError(f"got lists of {a.shape[0]} and of {b.shape[0]} queries; they must be the same queries")
    ks = checked_ks(ks, None)
    if max(ks) > min(a.shape[1], b.shape[1]):
        raise ConfigError(f"K is {max(ks)}; the lists hold {min(a.shape[1], b.shape[1])} items")
    found: dict[str, NDArray[np.float64]] = {}
    size = max(1, LISTS // (2 * max(ks)))
    for k in ks:
        both, either = np.empty(a.shape[0]), np.empty(a.shape[0])
        for start in range(0, a.shape[0], size):
            part = slice(start, start + size)
            pair = np.sort(np.concatenate([a[part, :k], b[part, :k]], axis=1), axis=1)
            shared = ((pair[:, 1:] == pair[:, :-1]) & (pair[:, 1:] >= 0)).sum(axis=1)
            both[part] = shared
            either[part] = (pair >= 0).sum(axis=1) - shared
        found[f"overlap@{k}"] = both / k
        found[f"jaccard@{k}"] = np.divide(both, either, out=np.ones_like(both), where=either > 0)
    return found


def checked_ks(ks: Sequence[int], n_items: int | None) -> tuple[int, ...]:
    given = tuple(np.atleast_1d(np.asarray(ks, object)))
    if not given:
        raise ConfigError("no list length", "give ks, such as (5, 10, 20)")
    for k in given:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ConfigError(f"K is {shown(k)}; allowed: integers from 1")
    if n_items is not None and max(given) > n_items:
        warnings.warn(
            f"K={max(given)} is more than the catalogue's {n_items} items: lists are shorter, denominators keep K",
            stacklevel=3,
        )
    return tuple(sorted({int(k) for k in given}))
