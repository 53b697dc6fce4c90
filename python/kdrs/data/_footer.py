"""The sizes that a Parquet file states about itself, read before anything is unpacked.

Polars takes what the pages say at their word, and Rust ends the process where memory is short. The format is Apache
Thrift's compact protocol; field numbers are those of ``parquet.thrift``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kdrs.data._guard import check_unpacked
from kdrs.errors import DataError, shown

_MAGIC = b"PAR1"
_VIEW = 16
"""Bytes that Polars takes for a value of a text column, besides the text."""
_DELTA_BYTE_ARRAY = 7
"""Encoding of texts by what they share with the one before, so that small pages hold large texts."""
_WIDEST = 64


def check_parquet(data: bytes, columns: Iterable[str], name: str) -> None:
    """``DataError`` for a file whose sizes contradict each other, or ask for more memory than is at hand."""
    if len(data) < 12 or not data.startswith(_MAGIC) or not data.endswith(_MAGIC):
        raise _damaged(name, "it does not begin and end as one")
    length = int.from_bytes(data[-8:-4], "little")
    if length > len(data) - 12:
        raise _damaged(name, f"its footer has {length:,} bytes of {len(data):,}")
    footer = _Compact(data, len(data) - 8 - length, len(data) - 8).struct()
    widths = {element[4]: element.get(2, 0) for element in footer[2] if 4 in element}
    wanted = {column.encode() for column in columns}
    rows = needed = 0
    for group in footer[4]:
        rows += group[3]
        for chunk in group[1]:
            facts = chunk[3]
            if facts[3][0] not in wanted:
                continue
            if len(facts[3]) > 1 or widths.get(facts[3][0], 0) > _WIDEST:
                raise DataError(
                    f"{name}: column {shown(facts[3][0].decode())} is nested or too wide for ids and numbers"
                )
            needed += _checked_chunk(data, facts, group[3], name)
    if rows != footer[3] or rows < 0:
        raise _damaged(name, f"it states {footer[3]:,} rows and {rows:,} in its groups")
    check_unpacked(name, 2 * needed)


def _checked_chunk(data: bytes, facts: dict[int, Any], rows: int, name: str) -> int:
    """Bytes that one column of a row group takes, once its pages were found to say no more than its head does."""
    values, unpacked, packed = facts[5], facts[6], facts[7]
    start = min(place for place in (facts[9], facts.get(11, 0)) if place > 0)
    if values != rows or min(values, unpacked, packed) < 0 or start + packed > len(data):
        raise _damaged(name, f"a column states {values:,} values in {packed:,} bytes, its group {rows:,} rows")
    place, seen, largest = start, 0, 0
    while seen < values:
        reader = _Compact(data, place, start + packed)
        page = reader.struct()
        if page[2] < 0 or page[3] < 0 or reader.place + page[3] > start + packed or page[2] > unpacked:
            raise _damaged(name, f"a page states {page[2]:,} bytes unpacked, {page[3]:,} packed")
        head = page.get(5) or page.get(8)
        seen += head[1] if head is not None else 0
        if seen > values or (head is None and page.get(7, {}).get(1, 0) > unpacked) or (head and head[1] < 0):
            raise _damaged(name, f"its pages hold more than {values:,} values")
        largest = max(largest, page[2])
        place = reader.place + page[3]
    if _DELTA_BYTE_ARRAY in facts[2]:
        return int(values * largest)
    return int(unpacked + values * _VIEW)


def _damaged(name: str, why: str) -> DataError:
    return DataError(f"{name} is no readable Parquet file: {why}", "write it again")


class _Compact:
    """A reader of Thrift's compact protocol over ``data[place:end]``. Raises ``IndexError`` or ``ValueError`` at damage."""

    def __init__(self, data: bytes, place: int, end: int):
        self.data, self.place, self.end = data, place, end

    def byte(self) -> int:
        if self.place >= self.end:
            raise IndexError("a structure goes past its end")
        self.place += 1
        return self.data[self.place - 1]

    def unsigned(self) -> int:
        number = shift = 0
        while True:
            byte = self.byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("a number has more than 64 bits")

    def signed(self) -> int:
        number = self.unsigned()
        return (number >> 1) ^ -(number & 1)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while (head := self.byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self.signed()
            fields[number] = self.value(head & 15, depth)
        return fields

    def value(self, kind: int, depth: int, in_list: bool = False) -> Any:
        if depth > 32:
            raise ValueError("structures are nested too deep")
        if kind in (1, 2):
            return self.byte() == 1 if in_list else kind == 1
        if kind == 3:
            return self.byte()
        if kind in (4, 5, 6):
            return self.signed()
        if kind in (7, 8):
            length = 8 if kind == 7 else self.unsigned()
            if length > self.end - self.place:
                raise IndexError("a text goes past its end")
            self.place += length
            return self.data[self.place - length : self.place]
        if kind in (9, 10):
            head = self.byte()
            size = head >> 4 if head >> 4 < 15 else self.unsigned()
            if size > self.end - self.place:
                raise IndexError("a list goes past its end")
            return [self.value(head & 15, depth + 1, in_list=True) for _ in range(size)]
        if kind == 11:
            size = self.unsigned()
            kinds = self.byte() if size else 0
            if size > self.end - self.place:
                raise IndexError("a map goes past its end")
            return [
                (self.value(kinds >> 4, depth + 1, True), self.value(kinds & 15, depth + 1, True)) for _ in range(size)
            ]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"an unknown type {kind}")
