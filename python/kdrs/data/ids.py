"""Names of users and items: exact strings, their places, and a digest by which two lists are known to be the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from kdrs._documents import DocumentError, parse_json
from kdrs.errors import DataError, shown


class Ids(Sequence[str]):
    """An immutable list of distinct strings; the place of a string is its row in every array.

    Strings are compared exactly: ``007``, ``7`` and ``7.0`` are three ids. ``kind`` ("user", "item") is used in
    messages only. Raises ``DataError`` for anything but non-empty strings, and for a string that comes twice.
    """

    def __init__(self, values: Iterable[str], kind: str = "id"):
        self._values = list(values)
        self.kind = kind
        for place, value in enumerate(self._values):
            if not isinstance(value, str) or not value:
                raise DataError(
                    f"{kind} {place} is {shown(value)} ({type(value).__name__}); ids are non-empty strings",
                    "turn ids into strings with str() first",
                )
        if len(set(self._values)) != len(self._values):
            seen: set[str] = set()
            twice = next(value for value in self._values if value in seen or seen.add(value))  # type: ignore[func-returns-value]
            raise DataError(f"{kind} {shown(twice)} comes twice in the id list", "ids must be distinct")

    @classmethod
    def numbered(cls, n: int, kind: str = "id") -> Ids:
        """The ids "0", "1", ..., "n-1"."""
        return cls(map(str, range(n)), kind)

    @classmethod
    def from_json(cls, text: bytes, kind: str = "id") -> Ids:
        """Ids from the bytes that ``to_json`` gives."""
        try:
            values = parse_json(text)
        except DocumentError as error:
            raise DataError(f"the {kind} list is damaged: {error}", "prepare the data set again") from None
        if not isinstance(values, list):
            raise DataError(f"the {kind} list is a JSON {type(values).__name__}; allowed: a list of strings")
        return cls(values, kind)

    def to_json(self) -> bytes:
        """A JSON array without blanks, UTF-8. Its SHA-256 is ``digest``, so ``sha256sum users.json`` shows it."""
        text = json.dumps(self._values, ensure_ascii=False, separators=(",", ":"))
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"a {self.kind} id holds a lone surrogate, which UTF-8 cannot write: {error}") from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of ``to_json()``."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @cached_property
    def _places(self) -> dict[str, int]:
        return {value: place for place, value in enumerate(self._values)}

    def index(self, ids: Iterable[str], *, unknown: str = "error") -> NDArray[np.int32]:  # type: ignore[override]
        """int32 ``[n]``: the places of ``ids``.

        ``unknown="error"`` raises ``DataError`` for ids that are not in the list; ``"mark"`` gives them -1.
        """
        if isinstance(ids, str):
            raise DataError(f"got the string {shown(ids)}; index takes a list of ids", f"write [{shown(ids)!r}]")
        wanted = list(ids)
        places = np.fromiter((self._places.get(value, -1) for value in wanted), np.int32, len(wanted))
        if unknown == "error" and (places < 0).any():
            first = wanted[int(np.argmax(places < 0))]
            count = f"{int((places < 0).sum()):,} of {len(wanted):,}"
            kind = "" if isinstance(first, str) else f" ({type(first).__name__}; ids are strings)"
            raise DataError(
                f"{count} {self.kind} ids are unknown, first {shown(first)}{kind}",
                'leave them out, or ask for unknown="mark", which gives -1',
            )
        return places

    def __contains__(self, value: object) -> bool:
        return value in self._places

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if not isinstance(place, slice) and place < 0:  # counting from the end, lists' padding would be the last id
            raise IndexError(
                f"there is no {self.kind} {place}: lists are padded with -1 where they end; leave those out"
            )
        return self._values[place]

    def take(self, places: NDArray[np.integer]) -> Ids:
        """The ids at ``places``, in that order."""
        return Ids([self[place] for place in places.tolist()], self.kind)

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ids):
            return self._values == other._values
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        head = ", ".join(shown(value, 20) for value in self._values[:3])
        return f"Ids({len(self):,} {self.kind}s: {head}{', ...' if len(self) > 3 else ''})"
