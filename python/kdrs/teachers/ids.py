"""Ids inside a teacher file, and the join of its rows with a data set's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

    ``values`` is a list, a NumPy array or a Polars series of strings or integers. Raises ``DataError`` for anything else.
    """
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
        found = [one.decode("utf-8", "strict") if isinstance(one, bytes) else str(one) for one in found]
    check_distinct(found if distinct else list(dict.fromkeys(found)), what)
    return found


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
