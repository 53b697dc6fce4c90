"""Parquet files, and folders of them, to tables."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from kdrs.data._columns import named_columns
from kdrs.data._footer import check_parquet
from kdrs.data._frames import check_type, framed, is_allowed
from kdrs.data._guard import guarded
from kdrs.data._options import Options
from kdrs.data._text import read_bytes
from kdrs.data._unread import SAMPLE, tell_times, texts_of
from kdrs.data.table import Table
from kdrs.errors import shown

if TYPE_CHECKING:
    import polars as pl


def read_parquet(path: str | os.PathLike[str], options: Options) -> Table:
    """The wanted columns of a Parquet file."""
    data, record = read_bytes(path)
    name = shown(str(path))
    schema = parquet_schema(data, name)
    columns = wanted_columns(schema, name, options)
    tell_times_of(data, schema, columns, name, options)
    frame = parquet_columns(data, columns, name)
    return framed({role: frame[label] for role, label in columns.items()}, columns, name, record, options, "parquet")


def parquet_schema(data: bytes, name: str) -> dict[str, pl.DataType]:
    """Names and types of the columns of a Parquet file."""
    from kdrs._libraries import polars as pl

    with guarded(f"{name} is no readable Parquet file"):
        check_parquet(data, (), name)
        return dict(pl.read_parquet_schema(io.BytesIO(data)))


def wanted_columns(schema: dict[str, pl.DataType], name: str, options: Options) -> dict[str, str]:
    """The column of each role, its type checked."""
    names = list(schema)
    columns = {role: names[place] for role, place in named_columns(name, names, options).items()}
    for role, label in columns.items():
        check_type(schema[label], role, label, name)
    return columns


def tell_times_of(
    data: bytes, schema: dict[str, pl.DataType], columns: dict[str, str], name: str, options: Options
) -> None:
    """What `tell_times` tells of a Parquet file; of columns that may hold times the first rows are read."""
    from kdrs._libraries import polars as pl

    names = list(schema)

    def values_of(place: int) -> list[str] | None:
        if not is_allowed(schema[names[place]], "timestamp"):
            return None
        with guarded(f"{name} is no readable Parquet file"):
            check_parquet(data, [names[place]], name)
            return texts_of(pl.read_parquet(io.BytesIO(data), columns=[names[place]], n_rows=SAMPLE).to_series())

    tell_times(name, names, {role: names.index(label) for role, label in columns.items()}, options, values_of)


def parquet_columns(data: bytes, columns: dict[str, str], name: str) -> pl.DataFrame:
    """The columns of some roles, and no others, once their stated sizes were found to fit."""
    from kdrs._libraries import polars as pl

    with guarded(f"{name} is no readable Parquet file"):
        check_parquet(data, columns.values(), name)
        return pl.read_parquet(io.BytesIO(data), columns=list(columns.values()))
