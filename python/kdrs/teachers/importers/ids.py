"""Id lists in files: text, NumPy, JSON, or a column of a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrs._documents import read_json
from kdrs.data.npy import load_array
from kdrs.data.plain import FORMS, column_of, read_frame, read_text
from kdrs.errors import DataError, shown
from kdrs.teachers.ids import in_rows, texts

if TYPE_CHECKING:
    import polars as pl

INDICES = ("index", "idx")
ROWS = ("row", "rows", "row_id", *INDICES)
"""Columns beside the ids that say which row each of them names; `INDICES` where they are 0 to n - 1, as other programs write
such columns of their own."""
_DIGITS = 18


def read_ids(path: str | Path, kind: str, *, distinct: bool = True, rows: bool = False) -> list[str]:
    """Ids of ``kind`` (user, item), in the order of the rows that they name, as strings.

    ``.npy`` of strings or integers; ``.json``, a list or a map (`kdrs.teachers.ids.in_rows`); ``.parquet``, ``.csv`` and
    ``.tsv``: the only column, or the one with a usual name; anything else is text, an id a line. Where they name ``rows``, a
    table's column of `ROWS` says which. Raises ``DataError`` for what cannot be read, ids that are empty, rows that are not 0
    to n - 1 and, if they must be ``distinct``, ids that come twice.
    """
    place, name = Path(path), shown(str(path), 300)
    suffix = place.suffix.lower()
    if suffix == ".npy":
        array = load_array(place)
        if array.ndim != 1:
            raise DataError(f"{name} is {array.dtype} of shape {array.shape}", "allowed: one id a row, shape [rows]")
        return texts(array, name, distinct=distinct)
    if suffix == ".json":
        held = read_json(place, "write a list of strings or integers", DataError)
        return texts(_plain(held) if isinstance(held, dict) else held, name, distinct=distinct)
    if suffix in (*FORMS, ".csv", ".tsv"):
        frame = read_frame(place)
        column = frame.columns[0] if frame.width == 1 else column_of(frame, kind, name, ("id",))
        ids = texts(frame[column], name, distinct=distinct)
        order = _rows_of(frame, column, name) if rows else None
        return ids if order is None else in_rows(dict(zip(ids, order, strict=True)), name)
    return texts(read_text(place).data.decode("utf-8").split("\n")[:-1], name, distinct=distinct)


def _plain(held: dict[str, Any]) -> dict[Any, Any]:
    """A JSON object, whose keys are text: integers again where all of them are."""
    if all(key.isascii() and key.isdecimal() and len(key) <= _DIGITS and str(int(key)) == key for key in held):
        return {int(key): value for key, value in held.items()}
    return held


def _rows_of(frame: pl.DataFrame, ids: str, name: str) -> list[int] | None:
    """The rows that a table names beside its ids; None where it names none."""
    import polars as pl

    found = [column for column in frame.columns if column != ids and column.strip().lower() in ROWS]
    if len(found) > 1:
        raise DataError(
            f"{name}: {' and '.join(map(shown, found))} could both be the rows", "leave one of the columns out"
        )
    if not found or not (frame.schema[found[0]] == pl.String or frame.schema[found[0]].is_integer()):
        return None
    numbers = frame[found[0]].cast(pl.Int64, strict=False)
    own = found[0].strip().lower() in INDICES and numbers.sort().to_list() != list(range(len(numbers)))
    return None if numbers.null_count() or own else numbers.to_list()
