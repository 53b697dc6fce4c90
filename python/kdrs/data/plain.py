"""Tables whose columns are nobody's yet, as data frames: Parquet, JSON lines and delimited text. The door to this room's
guarded reading for the rooms above."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdrs.data._columns import NAMES, usual
from kdrs.data._footer import check_parquet
from kdrs.data._guard import check_unpacked, guarded
from kdrs.data._text import Text, json_kind, read_bytes, read_plain, read_text, records
from kdrs.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "FORMS",
    "check_unpacked",
    "column_of",
    "guarded",
    "has_role",
    "id_texts",
    "may_lack_header",
    "read_bytes",
    "read_frame",
    "read_plain",
    "read_text",
]

FORMS = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
"""By the ending of the name; anything else is delimited text, with the columns' names in line 1."""


def read_frame(path: str | os.PathLike[str], *, header: bool = True) -> pl.DataFrame:
    """All columns of a file; those of delimited text as text, and called 0, 1, ... where it has no ``header``. The separator is
    a tab if line 1 has one, else what it has most of: commas, semicolons or bars.

    JSON lines are known by what is in them. Raises ``DataError`` for what cannot be read, ``ConfigError`` for a file that names
    its columns in itself without ``header``.
    """
    from kdrs._libraries import polars as pl

    name, form = shown(str(path), 300), FORMS.get(Path(path).suffix.lower(), "text")
    if not header and form != "text":
        raise _has_header(name)
    if form == "parquet":
        data, _ = read_bytes(path)
        with guarded(f"{name} is no readable Parquet file"):
            check_parquet(data, (), name)
            return pl.read_parquet(io.BytesIO(data))
    text = read_text(path)
    kind = "lines" if form == "jsonl" else json_kind(text)
    if kind == "document":
        raise DataError(f"{name} is one JSON document", "write JSON lines: one object a line, all with the same keys")
    if kind == "lines" and not header:
        raise _has_header(name)
    if kind == "lines":
        with guarded(f"{name} is no readable JSON lines file", "write one object a line, all with the same keys"):
            return pl.read_ndjson(io.BytesIO(text.data), infer_schema_length=None)
    first = text.first_lines(1)[0]
    separator = "\t" if "\t" in first else max(",;|", key=first.count)
    with (
        guarded(f"{name} is no readable table", "write as many fields a line as line 1 has"),
        _longer_lines(text, separator),
    ):
        # Polars unpacks what begins like a compressed file, as text may: so it begins otherwise
        frame = pl.read_csv(b"#\n" + text.data, skip_rows=1, has_header=header, separator=separator, infer_schema=False)
    return frame if header else frame.rename(dict(zip(frame.columns, map(str, range(frame.width)), strict=True)))


def _has_header(name: str) -> ConfigError:
    return ConfigError(f"{name} names its columns, and has no header to lack", "leave --no-header (header=False) out")


@contextmanager
def _longer_lines(text: Text, separator: str) -> Iterator[None]:
    """Names the first line that has more fields than line 1, where that is what Polars refuses."""
    from kdrs._libraries import polars as pl

    try:
        yield
    except pl.exceptions.ComputeError:
        starts, _, found = records(text, ord(separator), True)
        longer = np.flatnonzero(found > found[0])
        if not longer.size:
            raise
        line = text.data.count(b"\n", 0, int(starts[longer[0]])) + 1
        raise DataError(
            f"{text.at(line)}: {found[longer[0]]} fields, {found[0]} expected: {shown(text.line(line))}",
            "write as many fields a line as line 1 has",
        ) from None


def column_of(frame: pl.DataFrame, role: str, name: str, also: tuple[str, ...] = ()) -> str:
    """The one column with a usual name of ``role`` (``user`` or ``item``), or one of ``also``. Raises ``DataError``."""
    allowed = (*NAMES[role], *also)
    found = [column for column in frame.columns if usual(column) in allowed]
    if len(found) != 1:
        which = "no column is" if not found else f"{', '.join(map(shown, found))} could all be"
        raise DataError(
            f"{name}: {which} the {role}; columns found: {', '.join(shown(column, 30) for column in frame.columns[:12])}",
            f"name one {role} or {role}_id",
        )
    return found[0]


def id_texts(frame: pl.DataFrame, column: str, name: str) -> pl.Series:
    """A column of ids as text. Raises ``DataError`` for other types than integers and text, as of a data set's files: what
    other numbers look like as text is no id."""
    from kdrs._libraries import polars as pl

    kind = frame.schema[column]
    if not (kind.is_integer() or kind in (pl.String, pl.Binary, pl.Categorical, pl.Enum, pl.Null)):
        way = "whole numbers as integers" if kind.is_float() else "an id a row"
        raise DataError(
            f"{name}: ids in column {shown(column)} are {shown(str(kind), 60)}; allowed: integers and text",
            f"write {way}",
        )
    return frame[column].cast(pl.String, strict=False)


def may_lack_header(frame: pl.DataFrame, path: str | os.PathLike[str]) -> bool:
    """Whether line 1 of a file of text was taken for names, and names neither a user nor an item."""
    names = any(has_role(frame, role) for role in ("user", "item"))
    return Path(path).suffix.lower() not in FORMS and not names


def has_role(frame: pl.DataFrame, role: str) -> bool:
    """Whether a column has a usual name of ``role``."""
    return any(usual(column) in NAMES[role] for column in frame.columns)
