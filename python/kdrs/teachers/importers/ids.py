"""Id lists in files: text, NumPy, JSON, or a column of a table."""

from __future__ import annotations

from pathlib import Path

from kdrs._documents import read_json
from kdrs.data.npy import load_array
from kdrs.data.plain import FORMS, column_of, read_frame, read_text
from kdrs.errors import DataError, shown
from kdrs.teachers.ids import texts


def read_ids(path: str | Path, kind: str, *, distinct: bool = True) -> list[str]:
    """Ids of ``kind`` (user, item), in the order of the rows that they name, as strings.

    ``.npy`` of strings or integers; ``.json``, a list; ``.parquet``, ``.csv`` and ``.tsv``: the only column, or the one with
    a usual name; anything else is text, an id a line. Raises ``DataError`` for what cannot be read, ids that are empty and,
    if they must be ``distinct``, ids that come twice.
    """
    place, name = Path(path), shown(str(path), 300)
    suffix = place.suffix.lower()
    if suffix == ".npy":
        array = load_array(place)
        if array.ndim != 1:
            raise DataError(f"{name} is {array.dtype} of shape {array.shape}", "allowed: one id a row, shape [rows]")
        return texts(array, name, distinct=distinct)
    if suffix == ".json":
        return texts(read_json(place, "write a list of strings or integers", DataError), name, distinct=distinct)
    if suffix in (*FORMS, ".csv", ".tsv"):
        frame = read_frame(place)
        column = frame.columns[0] if frame.width == 1 else column_of(frame, kind, name, ("id",))
        return texts(frame[column], name, distinct=distinct)
    return texts(read_text(place).data.decode("utf-8").split("\n")[:-1], name, distinct=distinct)
