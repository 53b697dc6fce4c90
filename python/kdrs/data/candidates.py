"""Items that held-out items are ranked among: drawn once, stored with the split, the same for every model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdrs.data import _draws
from kdrs.data.checks import memory
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, MachineError

_BLOCK = 4_000_000
"""Numbers drawn at a time: 32 MB for each array of the draw."""


def draw_candidates(full: Interactions, n: int, seed: int) -> NDArray[np.int32]:
    """int32 ``[users, n]``: for each user ``n`` items uniform without replacement from all items not in ``full``.

    Rows ascend. A user with fewer unseen items gets all of them, and -1 in the places left. The draw of a row depends
    on (seed, row, number of items, the user's own items) only. More candidates than items are as many as there are items.
    Raises ``ConfigError`` for fewer than 1, ``MachineError`` for lists that the machine cannot hold.
    """
    if n < 1:
        raise ConfigError(f"got {n} candidates; at least 1 is needed", "leave candidates out to rank all items")
    n_users, n_items = full.shape
    n = min(n, max(n_items, 1))  # no size that is stated is taken before it is known to make sense
    if (needed := 4 * n * n_users) > memory():
        raise MachineError(
            f"{n:,} candidates of {n_users:,} users take {needed / 1e9:.1f} GB",
            "ask for fewer, or leave candidates out to rank all items",
        )
    unseen = n_items - full.row_degrees
    candidates = np.full((n_users, n), -1, np.int32)
    # Rejection needs few draws while n is at most half of what there is; beyond, whole rows are shuffled instead.
    for rows, draw in ((np.flatnonzero(unseen >= 2 * n), _by_rejection), (np.flatnonzero(unseen < 2 * n), _by_shuffle)):
        block = max(1, _BLOCK // (2 * n))
        for start in range(0, rows.size, block):
            chunk = rows[start : start + block]
            ranks = draw(chunk, unseen[chunk], n, seed)
            candidates[chunk] = _unseen_items(full, chunk, ranks)
    return candidates


def _by_rejection(rows: NDArray[np.int64], unseen: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """int64 ``[rows, n]`` ascending: the first ``n`` distinct numbers below ``unseen`` of each row's sequence."""
    ranks = np.empty((rows.size, n), np.int64)
    smallest = float(unseen.min()) if rows.size else 1.0
    width = int(1.02 * smallest * np.log(smallest / (smallest - n))) + 16  # draws until n distinct ones, on average
    todo = np.arange(rows.size)
    while todo.size:
        drawn = _draws.bits(seed, "candidates", rows[todo, None], np.arange(width)[None, :])
        values = _draws.below(unseen[todo, None], drawn)
        order = np.argsort(values, axis=1, kind="stable")
        ordered = np.take_along_axis(values, order, axis=1)
        new = np.ones(values.shape, bool)
        np.put_along_axis(new, order[:, 1:], ordered[:, 1:] != ordered[:, :-1], axis=1)
        place = np.cumsum(new, axis=1)
        enough = place[:, -1] >= n
        kept = (new & (place <= n))[enough]
        ranks[todo[enough]] = np.sort(values[enough][kept].reshape(-1, n), axis=1)
        todo, width = todo[~enough], 2 * width
    return ranks


def _by_shuffle(rows: NDArray[np.int64], unseen: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """int64 ``[rows, n]`` ascending, then -1: the ``n`` numbers below ``unseen`` with the smallest keys."""
    width = max(int(unseen.max()) if rows.size else 0, n)
    columns = np.arange(width)
    keys = _draws.bits(seed, "candidates", rows[:, None], columns[None, :])
    absent = columns[None, :] >= unseen[:, None]
    keys[absent] = np.iinfo(np.uint64).max
    first = np.sort(np.argsort(keys, axis=1, kind="stable")[:, :n], axis=1)
    return np.where(first < unseen[:, None], first, -1)


def _unseen_items(full: Interactions, rows: NDArray[np.int64], ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ``ranks``-th smallest unseen item of each row, int64 ``[rows, n]``; -1 stays.

    The seen item at place k of an ascending row has ``seen[k] - k`` unseen items before it, so the item of rank r is
    r plus the number of seen items with ``seen[k] - k <= r``: one binary search among the keys of all rows.
    """
    n_items = full.shape[1]
    counts = full.row_degrees[rows]
    starts = np.cumsum(counts) - counts
    within = np.arange(counts.sum()) - np.repeat(starts, counts)
    seen = full.indices[np.repeat(full.indptr[rows], counts) + within]
    span = n_items + 1
    block_row = np.arange(rows.size)
    keys = np.repeat(block_row, counts) * span + (seen - within)
    passed = np.searchsorted(keys, (block_row[:, None] * span + ranks).ravel(), side="right").reshape(ranks.shape)
    return np.where(ranks >= 0, ranks + passed - starts[:, None], -1)
