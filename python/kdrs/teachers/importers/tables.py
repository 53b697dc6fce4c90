"""Vectors in a table: a column of ids, and a column of lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdrs.data.plain import column_of, read_frame
from kdrs.errors import DataError, shown
from kdrs.teachers.ids import texts
from kdrs.teachers.importers.found import Side, as_vectors


def read_table(path: Path, kind: str) -> Side:
    """Parquet (or JSON lines) of an id and a list of numbers a row; ``kind`` is user or item. Other columns are not read.

    The vectors are the only column of lists (or arrays), the ids the one with a usual name, or the only one of text or
    integers.
    """
    import polars as pl

    name, frame = shown(str(path), 300), read_frame(path)
    nested = [column for column, dtype in frame.schema.items() if isinstance(dtype, pl.List | pl.Array)]
    if len(nested) != 1:
        listed = ", ".join(f"{shown(column, 30)} {dtype}" for column, dtype in list(frame.schema.items())[:12])
        raise DataError(
            f"{name} has {len(nested)} columns of lists, one of which would be the vectors; columns found: {listed}",
            "write one row an id: the id, and its vector as a list of numbers",
        )
    plain = [column for column, dtype in frame.schema.items() if dtype == pl.String or dtype.is_integer()]
    ids = plain[0] if len(plain) == 1 else column_of(frame, kind, name, ("id",))
    column = frame[nested[0]]
    column = column.arr.to_list() if isinstance(column.dtype, pl.Array) else column
    lengths = column.list.len()
    if column.null_count() or lengths.n_unique() != 1:
        row = (
            int(column.is_null().arg_max() or 0) if column.null_count() else int((lengths != lengths[0]).arg_max() or 0)
        )
        raise DataError(
            f"{name} row {row}: column {shown(nested[0])} holds {'no vector' if column[row] is None else len(column[row])}"
            + ("" if column[row] is None else f" numbers, row 0 {lengths[0]}"),
            "give every row a vector of the same length",
        )
    flat = column.explode()
    if not flat.dtype.is_numeric() or flat.null_count():
        raise DataError(f"{name}: column {shown(nested[0])} is {column.dtype}", "write lists of numbers")
    values = flat if flat.dtype == pl.Float64 else flat.cast(pl.Float32)  # what is past float32 is told below
    rows = np.array(values.to_numpy().reshape(len(frame), int(lengths[0])))
    return Side(as_vectors(rows, name), texts(frame[ids], name))
