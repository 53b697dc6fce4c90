"""Ids inside a teacher file, and the join of its rows with a data set's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MappingView, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdrs.core.names import Names
from kdrs.data.ids import Ids
from kdrs.errors import ArtefactError, DataError, shown

KINDS = {"users": "user", "items": "item"}
IDS = {side: (f"{kind}_ids", f"{kind}_ids_ends") for side, kind in KINDS.items()}
"""The tensors that hold a side's ids."""


def names_in(file: str, side: str, tensors: Mapping[str, Tensor]) -> Names | None:
    """The ids of one side of a file, None where it has none. Raises ``ArtefactError`` for damaged ones and for an id that
    comes twice."""
    held = [name for name in IDS[side] if name in tensors]
    if not held:
        return None
    again = "write the file with kdrs.save_teacher"
    if len(held) == 1:
        raise ArtefactError(f"{shown(file, 300)} holds {held[0]} alone; {' and '.join(IDS[side])} go together", again)
    try:
        return Names.from_tensors({name: tensors[name].numpy() for name in held}, KINDS[side])
    except DataError as error:
        raise ArtefactError(f"{shown(file, 300)}: {error.cause}", again) from None


def texts(values: Any, what: str, *, distinct: bool = True) -> list[str]:
    """Ids as non-empty strings, and distinct unless they may repeat; whole numbers become their digits.

    ``values`` is a list, a NumPy array or a Polars series of strings or integers, in the order of the rows that they name; or a
    map that `in_rows` puts into that order. Raises ``DataError`` for anything else, sets included: they have no order.
    """
    if isinstance(values, Mapping):
        values = in_rows(values, what)
    if isinstance(values, Set) and not isinstance(values, MappingView):
        raise DataError(
            f"{what} is a {type(values).__name__}, which has no order",
            "give a list of ids, in the order of the rows, or {id: row}",
        )
    found = values.tolist() if hasattr(values, "tolist") else values.to_list() if hasattr(values, "to_list") else values
    if isinstance(found, (str, bytes)) or not isinstance(found, Iterable):
        raise DataError(f"{what} is {shown(found)}", "give a list of ids")
    found = list(found)
    kinds = {type(one) for one in found}
    if kinds - {str, int, np.str_, bytes} and not all(issubclass(kind, np.integer) for kind in kinds - {str, int}):
        wrong = next(one for one in found if type(one) not in (str, int))
        hint = "whole numbers as integers" if isinstance(wrong, float) else "one id for each row"
        raise DataError(
            f"{what}: {shown(wrong)} is {type(wrong).__name__}; ids are strings or integers", f"write {hint}"
        )
    if kinds != {str}:
        try:
            found = [str(one, "utf-8") if isinstance(one, bytes) else str(one) for one in found]
        except UnicodeDecodeError as error:
            raise DataError(
                f"{what}: {shown(str(error.object))} is no UTF-8",
                "decode ids as they were written: np.char.decode(ids, 'latin1')",
            ) from None
    check_distinct(found if distinct else list(dict.fromkeys(found)), what)
    return found


def in_rows(given: Mapping[Any, Any], what: str) -> list[Any]:
    """The ids of ``{id: row}``, or of ``{row: id}``, in the order of the rows.

    Rows are integers, 0 to n - 1, each once. Raises ``DataError`` for other rows, for maps that are neither, and for those of
    integers to integers that are both and would be two orders.
    """
    keys, values = list(given), list(given.values())
    n = len(keys)
    orders = [
        [one for _, one in sorted(zip(rows, ids, strict=True), key=lambda pair: int(pair[0]))]
        for rows, ids in ((values, keys), (keys, values))
        if _are_whole(rows) and sorted(rows) == list(range(n))
    ]
    if len(orders) == 2 and orders[0] != orders[1]:
        raise DataError(
            f"{what} maps 0 to {n - 1:,} to themselves, in another order: it may be {{id: row}} or {{row: id}}",
            "give a list of the ids, in the order of the rows",
        )
    if orders:
        return orders[0]
    rows = next((side for side in (values, keys) if _are_whole(side)), None)
    if rows is None:
        raise DataError(
            f"{what} is a map that names no rows: its first entry is {shown(keys[0], 30)}: {shown(values[0], 30)}",
            "give a list of ids, in the order of the rows, or {id: row}",
        )
    raise DataError(
        f"{what}: {_wrong_rows(rows, values if rows is keys else keys)}",
        f"allowed: rows 0 to {n - 1:,}, each once; or give a list of the ids, in the order of the rows",
    )


def _are_whole(values: Sequence[Any]) -> bool:
    return all(isinstance(one, (int, np.integer)) and not isinstance(one, bool) for one in values)


def _wrong_rows(rows: Sequence[int], ids: Sequence[Any]) -> str:
    """Why rows are not 0 to n - 1, each once."""
    first: dict[int, Any] = {}
    for row, one in zip(rows, ids, strict=True):
        if row in first:
            return f"row {row} is that of {shown(str(first[row]), 30)} and of {shown(str(one), 30)}"
        first[row] = one
    counted = f"the rows of {len(rows):,} ids run from {min(rows):,} to {max(rows):,}"
    if (min(rows), max(rows)) == (1, len(rows)):
        return f"{counted}: count from 0 (row 0 may be padding, which has no id: leave it out of the vectors too)"
    return counted


def check_distinct(ids: Sequence[str], what: str) -> None:
    """Raises ``DataError`` for an id that is empty or comes twice."""
    if len(set(ids)) == len(ids) and "" not in ids:
        return
    if "" in ids:
        raise DataError(f"{what}: id {ids.index('')} is empty", "give every row an id")
    seen: set[str] = set()
    twice = next(one for one in ids if one in seen or seen.add(one))  # type: ignore[func-returns-value]
    raise DataError(
        f"{what}: {shown(twice)} comes twice, in rows {ids.index(twice)} and {ids.index(twice, ids.index(twice) + 1)}",
        "ids must be distinct: one row for each",
    )


@dataclass(frozen=True)
class Joined:
    """The rows of one side of a file beside those of a data set."""

    rows: NDArray[np.int64]
    """int64 [data set's ids]: the file's row of each, -1 where it has none."""
    places: NDArray[np.int64]
    """int64 [file's rows]: the data set's place of each, -1 where it knows no such id."""
    unknown: tuple[str, ...]
    """The first few ids of the file that the data set does not know."""
    missing: tuple[str, ...]
    """The first few ids of the data set that the file lacks."""

    FIRST: ClassVar[int] = 3

    @classmethod
    def of(cls, ours: Ids, theirs: Names) -> Joined:
        rows = theirs.index(ours, unknown="mark").astype(np.int64)
        places = np.full(len(theirs), -1, np.int64)
        places[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        unknown = tuple(theirs[row] for row in np.flatnonzero(places < 0)[: cls.FIRST].tolist())
        missing = tuple(ours[place] for place in np.flatnonzero(rows < 0)[: cls.FIRST].tolist())
        return cls(rows, places, unknown, missing)

    @classmethod
    def same(cls, n: int) -> Joined:
        """Of a file whose rows are in the data set's order."""
        return cls(np.arange(n), np.arange(n), (), ())

    @property
    def identical(self) -> bool:
        """Whether both have the same rows in the same order."""
        return self.rows.size == self.places.size and bool((self.rows == np.arange(self.rows.size)).all())

    @property
    def n_matched(self) -> int:
        return int(np.count_nonzero(self.rows >= 0))

    @property
    def n_missing(self) -> int:
        return self.rows.size - self.n_matched

    @property
    def n_unknown(self) -> int:
        return self.places.size - self.n_matched

    def document(self) -> dict[str, Any]:
        """Counts, for a JSON document."""
        return {
            "source": int(self.places.size),
            "data": int(self.rows.size),
            "matched": self.n_matched,
            "unknown": self.n_unknown,
            "missing": self.n_missing,
            "first_unknown": list(self.unknown),
            "first_missing": list(self.missing),
        }
