"""Splits: which pairs are trained on, which choose the model, which prove it.

Every rule sees the distinct pairs of a table and gives each row its part. Random rules draw a number for each pair from
the seed and the codes of user and item, so threads never change a split. Another order of the rows changes it where it
changes the codes: ids are numbered as they first appear, unless by value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.data import _draws
from kdrs.data.checks import INT32_MAX
from kdrs.data.table import Table, stable_order
from kdrs.errors import ConfigError, DataError, nearest, shown

TRAIN, VALID, TEST, LEFT_OUT = 0, 1, 2, -1
KINDS = ("leave-one-out", "ratio", "ratio-users", "ordered", "last-n", "time", "given", "none")


@dataclass(frozen=True)
class Split:
    """``part`` int8 ``[rows]``: 0 train, 1 valid, 2 test, -1 left out. ``spec`` is the rule, ``facts`` its counts."""

    part: NDArray[np.int8]
    spec: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)


def none(table: Table) -> Split:
    """All pairs are trained on: of a model that goes into production, whose settings were chosen with another split."""
    return Split(np.zeros(table.n_rows, np.int8), {"kind": "none"})


def leave_one_out(table: Table, seed: int) -> Split:
    """One pair of each user for testing and one for validation, drawn uniformly; the rest is trained on.

    Users with fewer than three pairs stay in train only and are counted.
    """
    place, degrees = _places(table, _random_sequence(table, seed))
    held_out = degrees >= 3
    part = np.zeros(table.n_rows, np.int8)
    part[held_out & (place == 0)] = TEST
    part[held_out & (place == 1)] = VALID
    return Split(part, {"kind": "leave-one-out", "seed": seed}, {"users_in_train_only": _users(table, ~held_out)})


def last_n(table: Table, n_valid: int = 1, n_test: int = 1, *, last: str = "test") -> Split:
    """The last pairs of each user, in order of time or file: ``n_valid``, then ``n_test`` pairs.

    ``last="valid"`` swaps the two. Users with no more than ``n_valid + n_test`` pairs stay in train only.
    """
    if min(n_valid, n_test) < 0 or max(n_valid, n_test) > INT32_MAX or n_valid + n_test < 1:
        raise ConfigError(f"last-n holds out {n_valid} and {n_test} pairs; allowed: 0 to {INT32_MAX} each, 1 in all")
    if last not in ("test", "valid"):
        raise ConfigError(f"last part {shown(last)}", nearest(last, ("test", "valid")))
    place, degrees = _places(table, _order(table, "last-n"))
    from_end = degrees - 1 - place
    held_out = degrees > n_valid + n_test
    tail, tail_part, other = (n_test, TEST, VALID) if last == "test" else (n_valid, VALID, TEST)
    part = np.zeros(table.n_rows, np.int8)
    part[held_out & (from_end < n_valid + n_test)] = other
    part[held_out & (from_end < tail)] = tail_part
    spec = {"kind": "last-n", "n_valid": n_valid, "n_test": n_test, "last": last, "order": table.order_by}
    return Split(part, spec, {"users_in_train_only": _users(table, ~held_out)})


def ratio(table: Table, fractions: tuple[float, float, float], seed: int) -> Split:
    """A random share of each user's pairs: of n pairs floor(test * n) and floor(valid * n) are held out."""
    _, valid, test = checked_fractions(fractions)
    place, degrees = _places(table, _random_sequence(table, seed))
    n_test, n_valid = _floor(test * degrees), _floor(valid * degrees)
    part = np.zeros(table.n_rows, np.int8)
    part[place < n_test + n_valid] = VALID
    part[place < n_test] = TEST
    spec = {"kind": "ratio", "fractions": list(fractions), "seed": seed}
    return Split(part, spec, {"users_without_test": _users(table, n_test == 0)})


def ratio_users(table: Table, fractions: tuple[float, float, float], seed: int) -> Split:
    """A random share of each user's pairs: of n pairs ceil((valid + test) * n) are held out, but one at least is trained on.

    Those of some users validate, of U users round(valid / (valid + test) * U), drawn at random; those of the others are for
    testing (UnKD's protocol with .8, .04, .16).
    """
    _, valid, test = checked_fractions(fractions)
    if not valid + test:
        raise ConfigError("split 'ratio-users' with fractions that hold nothing out", "for example 0.8,0.04,0.16")
    place, degrees = _places(table, _random_sequence(table, seed))
    held_out = place < np.minimum(-_floor(-(valid + test) * degrees), degrees - 1)
    n_users = len(table.user_ids)
    everyone = np.arange(n_users)
    validating = np.zeros(n_users, bool)
    chosen = np.argsort(_draws.bits(seed, "validating users", everyone, everyone[:1]))
    validating[chosen[: round(valid / (valid + test) * n_users)]] = True
    part = np.zeros(table.n_rows, np.int8)
    part[held_out] = np.where(validating[table.users[held_out]], VALID, TEST)
    spec = {"kind": "ratio-users", "fractions": list(fractions), "seed": seed}
    return Split(part, spec, {"users_validating": int(validating.sum())})


def ordered(table: Table, fractions: tuple[float, float, float]) -> Split:
    """The pairs of each user in order of time or file: of n pairs the first max(floor(train * n), 1) are trained on.

    Those up to floor((train + valid) * n) validate and the rest is for testing (protocol FR-811 with .8, .1, .1).
    """
    train, valid, _ = checked_fractions(fractions)
    place, degrees = _places(table, _order(table, "ordered"))
    end_train = np.maximum(_floor(train * degrees), 1)
    end_valid = np.maximum(_floor((train + valid) * degrees), end_train)
    part = np.full(table.n_rows, TEST, np.int8)
    part[place < end_valid] = VALID
    part[place < end_train] = TRAIN
    spec = {"kind": "ordered", "fractions": list(fractions), "order": table.order_by}
    return Split(part, spec, {"users_without_test": _users(table, end_valid == degrees)})


def by_time(table: Table, fractions: tuple[float, float, float]) -> Split:
    """One moment for all users: the oldest share trains, the next validates, the newest tests.

    Rows of one moment are never parted: a boundary belongs to the later part.
    """
    train, valid, _ = checked_fractions(fractions)
    if table.times is None:
        raise ConfigError("a split by time needs timestamps, and there are none", "name the column with --timestamp")
    times = np.sort(table.times)
    bounds = [int(_floor(share * times.size)) for share in (train, train + valid)]
    first_valid, first_test = (int(times[bound]) if bound < times.size else int(times[-1]) + 1 for bound in bounds)
    part = np.zeros(table.n_rows, np.int8)
    part[table.times >= first_valid] = VALID
    part[table.times >= first_test] = TEST
    if not (part == TRAIN).any():
        raise DataError(
            f"a split by time with fractions {list(fractions)} leaves nothing to train on",
            "most rows have one timestamp: use an ordered or random split, or other fractions",
        )
    trained = _trained_users(table, part)
    spec = {
        "kind": "time",
        "fractions": list(fractions),
        "valid_from": first_valid,
        "test_from": first_test,
        "unit": table.time_unit,
    }
    return Split(part, spec, {"users_not_in_train": _users(table, ~trained[table.users])})


def only_known_items(table: Table, split: Split) -> Split:
    """Held-out pairs of items that are not trained on are left out and counted."""
    trained = np.zeros(len(table.item_ids), bool)
    trained[table.items[split.part == TRAIN]] = True
    cold = (split.part > TRAIN) & ~trained[table.items]
    part = np.where(cold, np.int8(LEFT_OUT), split.part)
    return Split(part, {**split.spec, "cold_items": "drop"}, {**split.facts, "cold_pairs_left_out": int(cold.sum())})


def only_known_users(table: Table, split: Split) -> Split:
    """Held-out pairs of users who are not trained on are left out and counted."""
    cold = (split.part > TRAIN) & ~_trained_users(table, split.part)[table.users]
    part = np.where(cold, np.int8(LEFT_OUT), split.part)
    facts = {**split.facts, "cold_user_pairs_left_out": int(cold.sum())}
    return Split(part, {**split.spec, "cold_users": "drop"}, facts)


def only_complete_users(table: Table, split: Split) -> Split:
    """Users without a pair in either held-out part lose the pairs of the other one; these are counted."""
    n_users = len(table.user_ids)
    has = [np.bincount(table.users[split.part == part], minlength=n_users) > 0 for part in (VALID, TEST)]
    incomplete = (split.part > TRAIN) & ~(has[0] & has[1])[table.users]
    part = np.where(incomplete, np.int8(LEFT_OUT), split.part)
    facts = {**split.facts, "pairs_of_incomplete_users_left_out": int(incomplete.sum())}
    return Split(part, {**split.spec, "complete_users": True}, facts)


def checked_fractions(fractions: tuple[float, ...]) -> tuple[float, float, float]:
    """Three shares (train, valid, test) that add up to 1; ``ConfigError`` otherwise."""
    try:
        wrong = len(fractions) != 3 or not all(0 <= share <= 1 for share in fractions) or abs(sum(fractions) - 1) > 1e-9
    except TypeError:
        fractions, wrong = (fractions,), True  # type: ignore[assignment]
    if wrong:
        raise ConfigError(
            f"fractions {list(fractions)}; allowed: three shares for train, valid and test that add up to 1",
            "for example 0.8,0.1,0.1",
        )
    if fractions[0] == 0:
        raise ConfigError("the share of train is 0", "for example 0.8,0.1,0.1")
    train, valid, test = (float(share) + 0.0 for share in fractions)  # never -0
    return train, valid, test


def _floor(values: Any) -> NDArray[np.int64]:
    """Floor, but 2.9999999999 counts as 3: 0.1 * 3 * 10 must not lose a pair to rounding."""
    return np.floor(np.asarray(values) + 1e-9).astype(np.int64)


def _random_sequence(table: Table, seed: int) -> NDArray[np.int64]:
    """The rows, shuffled: by a number that depends on (seed, user, item)."""
    return np.argsort(_draws.bits(seed, "split", table.users, table.items))


def _order(table: Table, kind: str) -> NDArray[np.int64]:
    if table.order_by is None:
        raise ConfigError(f"split {kind!r} needs an order, and this source has none", "use leave-one-out or ratio")
    return table.sequence()


def _places(table: Table, sequence: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64 ``[rows]`` each: the place of a row among the rows of its user in ``sequence``, and how many these are."""
    by_user = sequence[stable_order(table.users[sequence])]
    degrees = np.bincount(table.users, minlength=len(table.user_ids))
    starts = np.cumsum(degrees) - degrees
    place = np.empty(table.n_rows, np.int64)
    place[by_user] = np.arange(table.n_rows) - np.repeat(starts, degrees)
    return place, degrees[table.users]


def _trained_users(table: Table, part: NDArray[np.int8]) -> NDArray[np.bool_]:
    trained = np.zeros(len(table.user_ids), bool)
    trained[table.users[part == TRAIN]] = True
    return trained


def _users(table: Table, rows: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(np.bincount(table.users[rows], minlength=1)))
