"""Tables whose columns are nobody's yet, as data frames: Parquet, JSON lines and delimited text. The door to this room's
guarded reading for the rooms above."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kdrs.data._columns import NAMES, usual
from kdrs.data._footer import check_parquet
from kdrs.data._guard import check_unpacked, guarded
from kdrs.data._text import read_bytes, read_plain, read_text
from kdrs.errors import DataError, shown

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "FORMS",
    "check_unpacked",
    "column_of",
    "guarded",
    "has_role",
    "may_lack_header",
    "read_bytes",
    "read_frame",
    "read_plain",
    "read_text",
]

FORMS = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
"""By the ending of the name; anything else is delimited text, with the columns' names in line 1."""


def read_frame(path: str | os.PathLike[str], *, header: bool = True) -> pl.DataFrame:
    """All columns of a file; those of delimited text (commas, or tabs if line 1 has one) as text, and called 0, 1, ... where it
    has no ``header``.

    Raises ``DataError`` for what cannot be read.
    """
    from kdrs._libraries import polars as pl

    name, form = shown(str(path), 300), FORMS.get(Path(path).suffix.lower(), "text")
    if form == "parquet":
        data, _ = read_bytes(path)
        with guarded(f"{name} is no readable Parquet file"):
            check_parquet(data, (), name)
            return pl.read_parquet(io.BytesIO(data))
    text = read_text(path)
    if form == "jsonl":
        with guarded(f"{name} is no readable JSON lines file", "write one object a line, all with the same keys"):
            return pl.read_ndjson(io.BytesIO(text.data), infer_schema_length=None)
    separator = "\t" if "\t" in text.first_lines(1)[0] else ","
    with guarded(f"{name} is no readable table", "write as many fields a line as line 1 names"):
        # Polars unpacks what begins like a compressed file, as text may: so it begins otherwise
        frame = pl.read_csv(b"#\n" + text.data, skip_rows=1, has_header=header, separator=separator, infer_schema=False)
    return frame if header else frame.rename(dict(zip(frame.columns, map(str, range(frame.width)), strict=True)))


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


def may_lack_header(frame: pl.DataFrame, path: str | os.PathLike[str]) -> bool:
    """Whether line 1 of a file of text was taken for names, and names neither a user nor an item."""
    names = any(has_role(frame, role) for role in ("user", "item"))
    return Path(path).suffix.lower() not in FORMS and not names


def has_role(frame: pl.DataFrame, role: str) -> bool:
    """Whether a column has a usual name of ``role``."""
    return any(usual(column) in NAMES[role] for column in frame.columns)
