"""Interactions as they were read: one row each, in the order of the file, ids mapped to codes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, MappingView, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdrs.data.checks import KEEP_ZEROS, ZEROS_STEP, Zeros, as_doubles, check_values, check_zeros, log
from kdrs.data.ids import Ids
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError, shown

CANONICAL_INTEGER = re.compile(r"0|[1-9][0-9]*")
_INDEX_AND_VALUE = re.compile(r"\d+:\d+(\.\d*)?", re.ASCII)


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of (user, item), with ratings and times where the source has them.

    ``users`` and ``items`` are int32 ``[rows]`` into ``user_ids`` and ``item_ids``; ``ratings`` float64 ``[rows]``;
    ``times`` int64 ``[rows]``, microseconds since 1970 UTC where ``time_unit`` is "us", bare order numbers where it is
    "order". ``ordered`` says whether the order of the rows means anything (it does not in a matrix). ``steps`` tells
    what was done to the rows so far and how many each step left.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    user_ids: Ids
    item_ids: Ids
    ratings: NDArray[np.float64] | None = None
    times: NDArray[np.int64] | None = None
    time_unit: str | None = None
    ordered: bool = True
    sources: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    steps: tuple[dict[str, Any], ...] = ()

    @classmethod
    def from_pairs(
        cls,
        users: Iterable[Any],
        items: Iterable[Any],
        *,
        ratings: ArrayLike | None = None,
        times: ArrayLike | None = None,
        name: str = "pairs",
        zeros: Zeros = "drop",
    ) -> Table:
        """A table of parallel columns at hand: lists, arrays or tensors ``[rows]``; ids are strings or integers, times
        are order numbers (integers).

        Rows rated 0 are not rated: left out, counted in ``steps`` and told, or kept with ``zeros="keep"``. Raises
        ``DataError`` for columns of different lengths, for sets, maps and texts, which are no columns, for ratings that are
        NaN, infinite, negative or no real numbers, and for times past int64.
        """
        check_zeros(zeros)
        user_codes, user_ids = _coded_objects(users, "user")
        item_codes, item_ids = _coded_objects(items, "item")
        n = user_codes.size
        rated = None if ratings is None else _doubles(ratings)
        timed = None if times is None else np.asarray(times)
        if timed is not None and timed.dtype.kind not in "iu":
            raise DataError(f"times are {timed.dtype}; allowed: integers")
        if timed is not None and timed.dtype == np.uint64 and timed.size and timed.max() > np.iinfo(np.int64).max:
            raise DataError(f"times run to {timed.max()}; allowed: int64")
        for label, column in (("items", item_codes), ("ratings", rated), ("times", timed)):
            if column is not None and column.shape != (n,):
                raise DataError(f"got {n} users but {label} of shape {column.shape}; columns must be parallel")
        if rated is not None:
            check_values(rated, lambda row: f"row {row + 1}")
        table = cls(
            user_codes,
            item_codes,
            user_ids,
            item_ids,
            rated,
            None if timed is None else timed.astype(np.int64),
            None if timed is None else "order",
        )
        return table.noted(f"read {name}").rated(zeros)

    @property
    def n_rows(self) -> int:
        return int(self.users.size)

    @property
    def order_by(self) -> str | None:
        """What the rows can be ordered by: "time", "file" or nothing."""
        return "time" if self.times is not None else "file" if self.ordered else None

    def sequence(self) -> NDArray[np.int64]:
        """int64 ``[rows]``: the rows oldest first; equal times keep the order of the file."""
        if self.times is None:
            return np.arange(self.n_rows)
        return np.argsort(self.times, kind="stable")

    def counts(self) -> dict[str, int]:
        """Users, items and rows that are left."""
        return {
            "users": int(np.count_nonzero(np.bincount(self.users, minlength=1))),
            "items": int(np.count_nonzero(np.bincount(self.items, minlength=1))),
            "rows": self.n_rows,
        }

    def interactions(self) -> Interactions:
        """The distinct pairs as a matrix of all users and items of the id lists."""
        return Interactions.from_pairs(self.users, self.items, len(self.user_ids), len(self.item_ids))

    def noted(self, step: str, **facts: Any) -> Table:
        """The same rows, with one more entry in ``steps``."""
        return replace(self, steps=(*self.steps, {"step": step, "after": self.counts(), **facts}))

    def kept(self, rows: NDArray[np.bool_], step: str, **facts: Any) -> Table:
        """The rows that a filter keeps. Raises ``DataError`` if nothing is left, naming the step and the counts."""
        before = self.counts()
        smaller = self if rows.all() else self._taken(np.flatnonzero(rows))
        after = smaller.counts()
        entry = {"step": step, "before": before, "after": after, "dropped": before["rows"] - after["rows"], **facts}
        if not after["rows"]:
            raise DataError(
                f"step {step!r} leaves nothing of {before['rows']:,} rows "
                f"({before['users']:,} users, {before['items']:,} items)",
                "loosen that step",
            )
        return replace(smaller, steps=(*self.steps, entry))

    def rated(self, zeros: str) -> Table:
        """The rows that are not rated 0, which says "not rated"; all rows where ``zeros`` is "keep"."""
        if self.ratings is None or zeros == "keep" or self.ratings.all():
            return self
        left_out = int(self.n_rows - np.count_nonzero(self.ratings))
        log.warning("%s of %s rows are rated 0 and left out; %s", f"{left_out:,}", f"{self.n_rows:,}", KEEP_ZEROS)
        return self.kept(self.ratings != 0, ZEROS_STEP, zeros=left_out)

    def compact(self, id_order: str = "appearance") -> Table:
        """Ids without rows left out, the others renumbered.

        ``id_order="appearance"`` numbers ids as they first appear in the rows; ``"numeric"`` by their value, which
        asks that all of them are plain integers (``ConfigError`` otherwise).
        """
        if id_order not in ("appearance", "numeric"):
            raise ConfigError(f"id order {shown(id_order)}; allowed: appearance, numeric")
        users, user_ids = _renumbered(self.users, self.user_ids, id_order)
        items, item_ids = _renumbered(self.items, self.item_ids, id_order)
        return replace(self, users=users, items=items, user_ids=user_ids, item_ids=item_ids)

    def _taken(self, rows: NDArray[np.int64]) -> Table:
        return replace(
            self,
            users=self.users[rows],
            items=self.items[rows],
            ratings=None if self.ratings is None else self.ratings[rows],
            times=None if self.times is None else self.times[rows],
        )

    def __repr__(self) -> str:
        facts = [f"{n:,} {what}" for what, n in self.counts().items()]
        facts += [name for name in ("ratings", "times") if getattr(self, name) is not None]
        return f"Table({', '.join(facts)})"


def aligned(tables: Sequence[Table]) -> list[Table]:
    """The same rows over shared id lists; ids stand as they first appear, table after table."""
    user_ids, user_maps = _merged([table.user_ids for table in tables])
    item_ids, item_maps = _merged([table.item_ids for table in tables])
    return [
        replace(table, users=user_map[table.users], items=item_map[table.items], user_ids=user_ids, item_ids=item_ids)
        for table, user_map, item_map in zip(tables, user_maps, item_maps, strict=True)
    ]


def concatenated(tables: Sequence[Table]) -> Table:
    """The rows of aligned parts, one after the other; ratings stay if all tables have them.

    The order is that of the first, which is trained on and whose rows alone are put in order: the times of the others are 0.
    """
    first = tables[0]
    rated = all(table.ratings is not None for table in tables)
    users, items = (np.concatenate([getattr(table, side) for table in tables]) for side in ("users", "items"))
    times = None
    if first.times is not None:
        times = np.zeros(users.size, np.int64)
        times[: first.n_rows] = first.times
    return replace(
        first,
        users=users,
        items=items,
        ratings=np.concatenate([table.ratings for table in tables]) if rated else None,
        times=times,
        sources=tuple(source for table in tables for source in table.sources),
        steps=tuple(step for table in tables for step in table.steps),
    )


def clean_ids(values: list[str], *, strip: bool, floats: str) -> tuple[list[str], list[tuple[int, str]], list[str]]:
    """Ids as they will stand, the wrong ones as (place, reason), and warnings. ``values`` are distinct.

    Numbers such as ``12.0`` and ``1e5`` are suspicious where *all* ids are numbers: somewhere the column turned into
    floats. ``floats`` is what happens to them: "error", "whole" (12.0 is taken as 12) or "exact" (strings as they are).
    """
    ids = [value.strip() for value in values] if strip else list(values)
    wrong = [
        (place, "the id is empty" if not value.strip() else "blanks around the id (--strip-ids takes them off)")
        for place, value in enumerate(ids)
        if not value or value != value.strip()
    ]
    if floats != "exact" and all(value.isdigit() or _is_number(value) for value in ids):
        for place, value in enumerate(ids):
            if value.isdigit() or not _is_float(value):
                continue
            number = float(value)
            if floats != "whole":
                wrong.append((place, "ids are floats (is a value missing? --float-ids whole takes 12.0 as 12)"))
            elif number.is_integer() and abs(number) < 2**53:
                ids[place] = str(int(number))
            else:
                wrong.append((place, "the id is no whole number"))
    return ids, sorted(wrong), [*_twins(ids), *_with_values(ids)]


def _is_float(value: str) -> bool:
    return _is_number(value) and ("." in value or "e" in value.lower() or "n" in value.lower())


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return "_" not in value


def _twins(ids: list[str]) -> list[str]:
    """Warnings for ids that look alike: their NFC forms are one."""
    forms: dict[str, str] = {}
    twins = []
    for value in ids:
        if value.isascii():
            continue
        form = unicodedata.normalize("NFC", value)
        if forms.setdefault(form, value) != value:
            twins.append(value)
    if not twins:
        return []
    return [f"{len(twins)} ids differ from another one in Unicode form only (NFC), first {shown(ascii(twins[0]))}"]


def _doubles(ratings: ArrayLike) -> NDArray[np.float64]:
    """float64 ``[rows]``."""
    given = np.asarray(ratings)
    try:
        if given.dtype.kind in "OU":
            return given.astype(np.float64)
    except (TypeError, ValueError):
        pass
    if given.dtype.kind not in "biuf":
        raise DataError(f"ratings are {given.dtype}; allowed: real numbers", "give numbers, or leave ratings out")
    return as_doubles(given)


def _with_values(ids: list[str]) -> list[str]:
    """A warning for ids that are all an index and a value, as LIBSVM and others write the places of a row."""
    if len(ids) < 2 or not all(_INDEX_AND_VALUE.fullmatch(value) for value in ids):
        return []
    return [
        f"ids such as {shown(ids[0], 30)} look like an index with its value, and are taken whole, as ids; if the value is a "
        "rating, write it as a column of its own"
    ]


def _coded_objects(values: Iterable[Any], kind: str) -> tuple[NDArray[np.int32], Ids]:
    places: dict[str, int] = {}
    if isinstance(values, (str, bytes, Set, Mapping)) and not isinstance(values, MappingView):
        raise DataError(
            f"{kind} ids are a {type(values).__name__}, which is no column", "give a list or an array, one id a row"
        )
    array = np.asarray(values) if hasattr(values, "__array__") else list(values)
    for_messages = array.dtype if isinstance(array, np.ndarray) else None
    if for_messages is not None and for_messages.kind not in "iuUO":
        raise DataError(f"{kind} ids are {for_messages}; allowed: integers or strings", "were there missing values?")
    codes = np.empty(len(array), np.int32)
    for row, value in enumerate(array.tolist() if isinstance(array, np.ndarray) else array):
        if isinstance(value, bool) or not isinstance(value, (str, int, np.integer)):
            raise DataError(f"{kind} id {shown(value)} at row {row} is a {type(value).__name__}; allowed: str or int")
        codes[row] = places.setdefault(str(value), len(places))
    return codes, Ids(places, kind)


def _renumbered(codes: NDArray[np.int32], ids: Ids, id_order: str) -> tuple[NDArray[np.int32], Ids]:
    present = first_appearance(codes)
    if id_order == "numeric":
        values = [ids[place] for place in present.tolist()]
        plain = next((value for value in values if not CANONICAL_INTEGER.fullmatch(value)), None)
        if plain is not None:
            raise ConfigError(
                f"{ids.kind} id {shown(plain)} is no plain integer, so ids cannot be ordered by number",
                "keep the order of appearance (--id-order appearance)",
            )
        # Plain integers sort by length, then as text, whatever their size.
        present = present[sorted(range(len(values)), key=lambda place: (len(values[place]), values[place]))]
    lookup = np.zeros(len(ids), np.int32)
    lookup[present] = np.arange(present.size, dtype=np.int32)
    return lookup[codes], ids.take(present)


def stable_order(groups: NDArray[np.integer]) -> NDArray[np.int64]:
    """int64 ``[n]``: places by group (from 0), those of one group in their old order.

    One sort of group and place in a single key, several times as fast as a stable argsort.
    """
    n = groups.size
    keys = groups.astype(np.int64) * n + np.arange(n)
    keys.sort()
    return keys % n if n else keys


def first_appearance(codes: NDArray[np.int32]) -> NDArray[np.int64]:
    """The distinct codes, in the order in which they first appear."""
    if not codes.size:
        return np.zeros(0, np.int64)
    first = np.full(int(codes.max()) + 1, codes.size, np.int64)
    # Written backwards, so that the first row of a code is the last to be written.
    first[codes[::-1]] = np.arange(codes.size - 1, -1, -1)
    present = np.flatnonzero(first < codes.size)
    return present[np.argsort(first[present])]


def _merged(lists: Sequence[Ids]) -> tuple[Ids, list[NDArray[np.int32]]]:
    places: dict[str, int] = {}
    maps = []
    for ids in lists:
        maps.append(np.fromiter((places.setdefault(value, len(places)) for value in ids), np.int32, len(ids)))
    return Ids(places, lists[0].kind), maps
