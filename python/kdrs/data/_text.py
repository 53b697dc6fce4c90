"""Bytes of an input file, checked before anything is parsed, so that every later error can name its line."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs.data._guard import check_size
from kdrs.errors import DataError, shown

if TYPE_CHECKING:
    import polars as pl

_COPIES = 2
"""How many times the bytes of a file are in memory while it is read, at the least."""
_CHUNK = 16 * 2**20
_NEWLINE, _QUOTE = 10, 34
_MAGIC = (
    (b"\x1f\x8b", "gzip", "unpack it first: gzip -dk FILE"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"BZh", "bzip2", "unpack it first: bzip2 -dk FILE"),
    (b"\xfd7zXZ\x00", "xz", "unpack it first: xz -dk FILE"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unpack it first: zstd -d FILE"),
    (b"PAR1", "Parquet", "read it with --format parquet"),
    (b"\x93NUMPY", "a NumPy array", "read it with --format npy"),
    (b"\x80\x02", "a pickle", "kdrs never loads pickles; export the data as text or .npz"),
    (b"\x80\x03", "a pickle", "kdrs never loads pickles; export the data as text or .npz"),
    (b"\x80\x04", "a pickle", "kdrs never loads pickles; export the data as text or .npz"),
    (b"\x80\x05", "a pickle", "kdrs never loads pickles; export the data as text or .npz"),
    (b"\xff\xfe", "UTF-16", "convert it first: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"\xfe\xff", "UTF-16", "convert it first: iconv -f UTF-16 -t UTF-8 FILE"),
)


def read_bytes(path: str | os.PathLike[str]) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a file or pipe, and its record ``{"file", "bytes", "sha256"}``.

    Raises ``DataError`` for a missing file, a directory, an empty file, and a file that changes while it is read.
    """
    name = shown(str(path))
    try:
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            if stat.S_ISREG(before.st_mode):
                check_size(name, _COPIES * before.st_size)
            data = file.read()
            after = os.stat(path)
    except IsADirectoryError as error:
        raise DataError(f"{name} is a directory", "name a file") from error
    except OSError as error:
        raise DataError(
            f"cannot read {name}: {error.strerror or error}", "check the path and its permissions"
        ) from error
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns) and len(data) == after.st_size
    if stat.S_ISREG(before.st_mode) and not same:
        raise DataError(f"{name} changed while it was read", "wait until it is written, then try again")
    if not data:
        raise DataError(f"{name} is empty", "name a file with at least one interaction")
    return data, {"file": Path(path).name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def looks_like(data: bytes) -> tuple[str, str] | None:
    """What binary kind the first bytes betray and what to do about it; ``None`` for text."""
    return next(((kind, remedy) for magic, kind, remedy in _MAGIC if data.startswith(magic)), None)


def json_kind(text: Text) -> str | None:
    """ "lines" for text whose first line is one JSON object, "document" for other JSON, None for what is none."""
    first = text.first_lines(1)[0].strip()
    if not re.match(r'[\[{] *(["\[{\]}]|$)', first):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return "lines" if isinstance(json.loads(first), dict) else "document"
    return "document"


def refuse_other(text: Text) -> None:
    """Raises ``DataError`` for text in a form of its own, whose lines are no rows of fields."""
    first, found = text.first_lines(1)[0].strip(), None
    if kind := json_kind(text):
        reader = "read_ndjson" if kind == "lines" else "read_json"
        found = "JSON lines" if kind == "lines" else "JSON", f"polars.{reader}('FILE').write_parquet('FILE.parquet')"
    elif first.lower().startswith("%%matrixmarket"):
        found = "a Matrix Market file", "scipy.sparse.save_npz('FILE.npz', scipy.io.mmread('FILE').tocsr())"
    elif re.match(r"<(!doctype|html|\?xml)", first, re.IGNORECASE):
        raise DataError(
            f"{text.at(1)}: this is HTML or XML: {shown(first)}",
            "was a page saved in the place of the data? fetch the file again",
        )
    if found:
        raise DataError(
            f"{text.at(1)}: this is {found[0]}: {shown(first)}",
            f"write it in a form that is read, in Python: {found[1]}",
        )


def read_text(path: str | os.PathLike[str]) -> Text:
    """A UTF-8 text file without byte order mark, its line ends ``\\n``, blank lines at the end left out.

    Raises ``DataError`` for what ``read_bytes`` refuses, for binary files and invalid UTF-8, with the byte offset.
    """
    data, record = read_bytes(path)
    name = shown(str(path))
    kind = looks_like(data)
    if kind is not None:
        raise DataError(f"{name} is no text: byte 0, it looks like {kind[0]}", kind[1])
    nul = data.find(b"\0")
    if nul >= 0:
        halves = data[:200].count(b"\0") * 3 > len(data[:200])
        raise DataError(
            f"{name} is no text: NUL at byte {nul}, it looks like {'UTF-16 without a mark' if halves else 'binary'}",
            "convert it to UTF-8 text first",
        )
    offset = _invalid_utf8(data)
    if offset is not None:
        raise DataError(
            f"{name} is not UTF-8: byte {data[offset]:#04x} at offset {offset}, line {data.count(10, 0, offset) + 1}",
            "convert it first, for example: iconv -f LATIN1 -t UTF-8 FILE",
        )
    data = data.removeprefix(codecs.BOM_UTF8)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
        if b"\n" not in data:
            data = data.replace(b"\r", b"\n")  # line ends of old Macs
        stray = data.find(b"\r")
        if stray >= 0:
            raise DataError(
                f"{name}:{data.count(10, 0, stray) + 1}: a carriage return inside the line",
                "write all line ends alike, for example with dos2unix",
            )
    if not data.endswith(b"\n") or data.endswith(b"\n\n"):
        data = data.rstrip(b"\n") + b"\n"
    if data.isspace():
        raise DataError(f"{name} holds nothing but blank lines", "name a file with at least one interaction")
    return Text(name, data, record)


@dataclass
class Text:
    """Checked text ending in one newline; ``name`` as it may be printed, ``record`` as of ``read_bytes``."""

    name: str
    data: bytes
    record: dict[str, Any]

    @cached_property
    def n_lines(self) -> int:
        return self.data.count(b"\n")

    def first_lines(self, n: int) -> list[str]:
        """The first ``n`` lines."""
        head: list[str] = []
        start = 0
        while len(head) < n and start < len(self.data):
            stop = self.data.index(b"\n", start)
            head.append(self.data[start:stop].decode())
            start = stop + 1
        return head

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """int64 ``[lines]``: where each line's newline stands."""
        return np.flatnonzero(np.frombuffer(self.data, np.uint8) == _NEWLINE)

    def line(self, number: int) -> str:
        """The text of a line, counted from 1."""
        start = 0 if number == 1 else int(self.ends[number - 2]) + 1
        return self.data[start : int(self.ends[number - 1])].decode()

    def at(self, number: int) -> str:
        """``file:line``."""
        return f"{self.name}:{number}"


def read_plain(data: bytes, separator: str, quoted: bool = False, columns: list[int] | None = None) -> pl.DataFrame:
    """Text columns of delimited ``data`` without a header, by Polars; of all columns, or of some places."""
    from kdrs._libraries import polars as pl

    # Polars unpacks what begins like a compressed file, as text may ("x" and a control character): so it begins otherwise.
    return pl.read_csv(
        b"#\n" + data,
        has_header=False,
        skip_rows=1,
        separator=separator,
        quote_char='"' if quoted else None,
        infer_schema=False,
        columns=columns,
    )


def _invalid_utf8(data: bytes) -> int | None:
    """The offset of the first byte that is not UTF-8."""
    if data.isascii():
        return None
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(data)
    for start in range(0, len(data), _CHUNK):
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(view[start : start + _CHUNK], final=start + _CHUNK >= len(data))
        except UnicodeDecodeError as error:
            return start - pending + error.start
    return None


def is_regular(data: bytes, separator: int, n_fields: int) -> bool:
    """Whether every line of unquoted ``data`` has ``n_fields`` fields: separators and newlines in strict rhythm."""
    column = 0
    for start in range(0, len(data), _CHUNK):
        chunk = np.frombuffer(data, np.uint8, min(_CHUNK, len(data) - start), start)
        marks = chunk[(chunk == separator) | (chunk == _NEWLINE)]
        expected_newline = (np.arange(column, column + marks.size) % n_fields) == n_fields - 1
        if not np.array_equal(marks == _NEWLINE, expected_newline):
            return False
        column = (column + marks.size) % n_fields
    return column == 0


def records(text: Text, separator: int, quoted: bool) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """int64 ``[records]`` each: where a record starts, where its newline stands, how many fields it has.

    Newlines and separators inside quotes belong to the field (RFC 4180). Raises ``DataError`` for a quote that is
    never closed, naming the line that opens it, and for a quote inside an unquoted field.
    """
    data = np.frombuffer(text.data, np.uint8)
    outside = np.ones(data.size, bool)
    if quoted and b'"' in text.data:
        is_quote = data == _QUOTE
        inside = (np.cumsum(is_quote, dtype=np.uint8) & 1).astype(bool)
        _check_quotes(text, data, is_quote, inside, separator)
        outside = ~inside
    ends = np.flatnonzero((data == _NEWLINE) & outside)
    separators = np.flatnonzero((data == separator) & outside)
    starts = np.concatenate([[0], ends[:-1] + 1])
    n_fields = np.diff(np.searchsorted(separators, ends), prepend=0) + 1
    return starts, ends, n_fields


def _check_quotes(
    text: Text, data: NDArray[np.uint8], is_quote: NDArray[np.bool_], inside: NDArray[np.bool_], separator: int
) -> None:
    places = np.flatnonzero(is_quote)
    opening, closing = places[inside[places]], places[~inside[places]]
    border = np.zeros(256, bool)
    border[[separator, _NEWLINE, _QUOTE]] = True
    before = np.where(opening > 0, data[opening - 1], _NEWLINE)
    after = data[np.minimum(closing + 1, data.size - 1)]
    stray = opening[~border[before]]
    unclosed = closing[~border[after]]
    first_stray = int(stray[0]) if stray.size else data.size
    first_unclosed = int(unclosed[0]) if unclosed.size else data.size
    if first_stray == first_unclosed == data.size and not inside[-1]:
        return
    if first_stray < first_unclosed:
        line = int(np.count_nonzero(data[:first_stray] == _NEWLINE)) + 1
        raise DataError(
            f"{text.at(line)}: a quote inside an unquoted field: {shown(text.line(line))}",
            "quote the whole field and double the quotes inside it, or switch quoting off (--no-quotes)",
        )
    opened = opening[opening < first_unclosed][-1]
    # A doubled quote closes and opens again: walk back to the quote that began the field.
    while opened > 0 and data[opened - 1] == _QUOTE and opening[0] < opened:
        opened = opening[opening < opened][-1]
    line = int(np.count_nonzero(data[:opened] == _NEWLINE)) + 1
    raise DataError(
        f"{text.at(line)}: a quote is opened and never closed: {shown(text.line(line))}",
        "close it, or switch quoting off (--no-quotes)",
    )
