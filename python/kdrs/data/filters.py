"""Filters of a table. Each gives a smaller table whose ``steps`` tell what was dropped; none changes its input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kdrs.data.table import Table
from kdrs.errors import ConfigError, DataError, nearest, shown

RULES = ("first", "last", "max", "sum", "error")


def collapse(table: Table, rule: str = "first") -> Table:
    """One row for each (user, item).

    ``first`` and ``last`` keep the oldest or newest row (by time, else by place in the file), ``max`` the first row of
    the highest rating, ``sum`` the first row with the ratings added up. ``error`` raises ``DataError`` for the first
    pair that comes twice.
    """
    if rule not in RULES:
        raise ConfigError(f"unknown rule {shown(rule)} for duplicates", nearest(rule, RULES))
    if rule in ("max", "sum") and table.ratings is None:
        raise ConfigError(f"rule {rule!r} for duplicates needs ratings, and there are none", "use first or last")
    keys = table.users.astype(np.int64) * len(table.item_ids) + table.items
    ascending = np.sort(keys)
    repeated = ascending[1:][ascending[1:] == ascending[:-1]]
    chosen: NDArray[np.bool_] = np.ones(keys.size, bool)
    if not repeated.size:
        return table.kept(chosen, f"one row a pair ({rule})", duplicates=0)
    # Only the rows of repeated pairs are put in order, mostly few.
    rows = np.flatnonzero(repeated[np.minimum(np.searchsorted(repeated, keys), repeated.size - 1)] == keys)
    if table.times is not None:
        rows = rows[np.argsort(table.times[rows], kind="stable")]
    if rule == "last":
        rows = rows[::-1]
    elif rule == "max":
        assert table.ratings is not None
        rows = rows[np.argsort(-table.ratings[rows], kind="stable")]
    rows = rows[np.argsort(keys[rows], kind="stable")]
    new = np.ones(rows.size, bool)
    new[1:] = np.diff(keys[rows]) != 0
    chosen[rows[~new]] = False
    n_dropped = int(np.count_nonzero(~new))
    if rule == "error":
        row = int(np.argmin(chosen))
        user, item = table.user_ids[int(table.users[row])], table.item_ids[int(table.items[row])]
        raise DataError(
            f"user {shown(user)} and item {shown(item)} come twice (row {row + 1}); {n_dropped:,} such rows",
            "choose what is kept with --duplicates first|last|max|sum",
        )
    summed = table
    if rule == "sum":
        assert table.ratings is not None
        ratings = table.ratings.copy()
        ratings[rows[new]] = np.add.reduceat(table.ratings[rows], np.flatnonzero(new))
        summed = replace(table, ratings=ratings)
    return summed.kept(chosen, f"one row a pair ({rule})", duplicates=n_dropped)


def min_rating(table: Table, threshold: float) -> Table:
    """Rows rated ``threshold`` or more."""
    if table.ratings is None:
        raise ConfigError(
            f"a least rating of {threshold:g} was asked for, but no rating column is read",
            "name the column with --rating, or leave --min-rating out",
        )
    return table.kept(table.ratings >= threshold, f"rating >= {threshold:g}")


def min_per_user(table: Table, n: int) -> Table:
    """Users with at least ``n`` rows."""
    degrees = np.bincount(table.users, minlength=len(table.user_ids))
    return table.kept((degrees >= n)[table.users], f"users with at least {n} rows")


def min_per_item(table: Table, n: int) -> Table:
    """Items with at least ``n`` rows."""
    degrees = np.bincount(table.items, minlength=len(table.item_ids))
    return table.kept((degrees >= n)[table.items], f"items with at least {n} rows")


def k_core(table: Table, k: int, k_items: int | None = None) -> Table:
    """The largest part in which every user has ``k`` rows and every item ``k_items`` (default ``k``) or more.

    Users and items below are taken out in turn until none is left to take out.
    """
    k_items = k if k_items is None else k_items
    alive: NDArray[np.bool_] = np.ones(table.n_rows, bool)
    rounds = 0
    while True:
        users = np.bincount(table.users[alive], minlength=len(table.user_ids))
        items = np.bincount(table.items[alive], minlength=len(table.item_ids))
        kept = alive & (users >= k)[table.users] & (items >= k_items)[table.items]
        if np.array_equal(kept, alive):
            break
        alive, rounds = kept, rounds + 1
    return table.kept(alive, f"{k}-core" if k == k_items else f"{k} rows a user, {k_items} an item", rounds=rounds)
