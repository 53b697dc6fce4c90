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
    sequence = table.sequence()
    if rule == "last":
        sequence = sequence[::-1]
    elif rule == "max":
        assert table.ratings is not None
        sequence = sequence[np.argsort(-table.ratings[sequence], kind="stable")]
    by_key = sequence[np.argsort(keys[sequence], kind="stable")]
    new = np.ones(keys.size, bool)
    new[1:] = keys[by_key][1:] != keys[by_key][:-1]
    chosen = np.zeros(keys.size, bool)
    chosen[by_key[new]] = True
    if rule == "error" and not chosen.all():
        row = int(np.flatnonzero(~chosen)[0])
        user, item = table.user_ids[int(table.users[row])], table.item_ids[int(table.items[row])]
        raise DataError(
            f"user {shown(user)} and item {shown(item)} come twice (row {row + 1}); {int((~chosen).sum()):,} such rows",
            "choose what is kept with --duplicates first|last|max|sum",
        )
    collapsed = table.kept(chosen, f"one row a pair ({rule})", duplicates=int((~chosen).sum()))
    if rule == "sum":
        assert table.ratings is not None
        totals = np.add.reduceat(table.ratings[by_key], np.flatnonzero(new))
        of_row = np.zeros(keys.size)
        of_row[by_key[new]] = totals
        collapsed = replace(collapsed, ratings=of_row[chosen])
    return collapsed


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
