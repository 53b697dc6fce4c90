"""Ids as a file holds them: UTF-8 bytes end to end, found by hash, without a Python object each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs import _core
from kdrs.core.sampling import array_of, numpy_of, plain, simd_path, threads_of
from kdrs.errors import DataError, shown

if TYPE_CHECKING:
    import polars

_EACH = 4096
"""From so many names asked for at once on, all are made Python strings."""


class Names:
    """Distinct non-empty strings whose places are rows of a table: what `kdrs.data.Ids` are, in the bytes of a file.

    ``data`` uint8 ``[B]`` holds their UTF-8 bytes one behind the other, name n at ``ends[n]`` to ``ends[n + 1]``;
    ``ends`` is int64 ``[N + 1]``. Both may be mapped from a file: they are read where they lie. ``kind`` ("user",
    "item") is for messages.

    Raises ``DataError`` for ends that do not ascend, other bytes than UTF-8, an empty name, and one that comes twice.
    """

    __slots__ = ("_column", "_strings", "_table", "data", "ends", "kind")

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[np.int64], kind: str = "id"):
        packed = numpy_of(data, "data")
        if packed.dtype != np.uint8 or packed.ndim != 1:
            raise DataError(f"{kind} ids are {packed.dtype} of shape {packed.shape}", "allowed: uint8 [bytes]")
        self.kind, self.data, self.ends = kind, plain(packed), array_of(ends, "ends", np.int64, 1)
        self._strings: NDArray[np.object_] | None = None
        self._column: polars.Series | None = None
        try:
            self._table = _core.names_table(self.data, self.ends, 1, simd_path())
        except DataError as error:
            if " are the same" not in error.cause:
                raise DataError(f"{kind} ids: {error.cause}", error.remedy) from None
            again = int(error.cause.split()[3])
            name = self.data[int(self.ends[again]) : int(self.ends[again + 1])].tobytes().decode(errors="replace")
            raise DataError(f"{kind} {shown(name)} comes twice in the id list", "ids must be distinct") from None
        empty = np.flatnonzero(self.ends[1:] == self.ends[:-1])
        if empty.size:
            raise DataError(f"{kind} {empty[0]} is an empty string", "ids are non-empty strings")
        try:
            str(self.data.data, "utf-8")
            whole = not (self.data[self.ends[:-1]] & 0xC0 == 0x80).any()  # none begins inside a character
        except UnicodeDecodeError:
            whole = False
        if not whole:
            raise DataError(f"the {kind} ids are no UTF-8", "write the file again")

    def __reduce__(self) -> tuple[Any, ...]:
        return Names, (self.data, self.ends, self.kind)  # another machine may hash otherwise

    @classmethod
    def of(cls, values: Iterable[str], kind: str = "id") -> Names:
        """Names of Python strings. Raises ``DataError`` for what is no string or cannot be written in UTF-8 too."""
        return cls(*packed(values, kind), kind)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any], kind: str) -> Names:
        """The names that ``tensors`` gave to a file."""
        return cls(tensors[f"{kind}_ids"], tensors[f"{kind}_ids_ends"], kind)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What a safetensors file holds: ``KIND_ids`` uint8 ``[B]`` and ``KIND_ids_ends`` int64 ``[N + 1]``."""
        return {f"{self.kind}_ids": self.data, f"{self.kind}_ids_ends": self.ends}

    def index(self, ids: Iterable[str], *, unknown: str = "error", threads: int | None = None) -> NDArray[np.int32]:
        """int32 ``[n]``: the places of ``ids``. ``unknown="error"`` raises ``DataError`` for others, ``"mark"`` gives -1."""
        if isinstance(ids, str):
            raise DataError(f"got the string {shown(ids)}; index takes a list of ids", f"write [{shown(ids)!r}]")
        wanted = list(ids)
        data, ends = packed(wanted, self.kind)
        places = _core.names_places(self.data, self.ends, self._table, data, ends, threads_of(threads), simd_path())
        if unknown == "error" and (places < 0).any():
            count = f"{int((places < 0).sum()):,} of {len(wanted):,}"
            raise DataError(
                f"{count} {self.kind} ids are unknown, first {shown(wanted[int(np.argmax(places < 0))])}",
                'leave them out, or ask for unknown="mark", which gives -1',
            )
        return places

    def take(self, places: NDArray[np.integer]) -> NDArray[np.object_]:
        """The strings at ``places`` (int of any shape), as an object array of that shape; ``None`` where a place is -1."""
        wanted = np.asarray(places)
        if self._strings is None and wanted.size < _EACH:
            out = np.empty(wanted.size, object)
            for at, place in enumerate(wanted.ravel().tolist()):
                out[at] = self[place] if place >= 0 else None
            return out.reshape(wanted.shape)
        if self._strings is None:
            text, ends = self.data.tobytes(), self.ends.tolist()
            strings = [str(text[low:high], "utf-8") for low, high in pairwise(ends)]
            self._strings = np.array([*strings, None], object)
        return self._strings[np.maximum(wanted, -1)]

    def column(self) -> polars.Series:
        """All of them as a column of strings, made once: rows of it are gathered without a Python object each."""
        if self._column is None:
            from kdrs._libraries import polars

            text, ends = self.data.tobytes(), self.ends.tolist()
            strings = (str(text[low:high], "utf-8") for low, high in pairwise(ends))
            self._column = polars.Series(self.kind, strings, dtype=polars.String)
        return self._column

    def __getitem__(self, place: int) -> str:
        if not 0 <= place < len(self):
            raise IndexError(f"{self.kind} {place} of {len(self)}")
        return str(self.data[int(self.ends[place]) : int(self.ends[place + 1])].tobytes(), "utf-8")

    def __iter__(self) -> Any:
        return (self[place] for place in range(len(self)))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Names):
            return NotImplemented
        return np.array_equal(self.ends, other.ends) and np.array_equal(self.data, other.data)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        head = ", ".join(shown(self[place], 20) for place in range(min(3, len(self))))
        return f"Names({len(self):,} {self.kind}s: {head}{', ...' if len(self) > 3 else ''})"


def packed(values: Iterable[str], kind: str = "id") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Strings as bytes end to end, uint8 ``[B]``, and where each ends, int64 ``[N + 1]``."""
    strings = list(values)
    try:
        parts = [value.encode() for value in strings]
    except UnicodeEncodeError as error:
        raise DataError(
            f"a {kind} id holds a lone surrogate, which UTF-8 cannot write: {error}", "ids are text in UTF-8"
        ) from None
    except AttributeError:
        wrong = next(value for value in strings if not isinstance(value, str))
        raise DataError(
            f"{kind} {shown(wrong)} is no string ({type(wrong).__name__})", "turn ids into strings with str() first"
        ) from None
    ends = np.zeros(len(parts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)), out=ends[1:])
    return np.frombuffer(b"".join(parts), np.uint8), ends
