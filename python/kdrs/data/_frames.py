"""Typed columns: data frames of Polars, pandas and Arrow, dictionaries, and what all typed forms share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs.data._columns import named_columns
from kdrs.data._objects import MixedTypes, array_series, object_series, pandas_series
from kdrs.data._options import Options
from kdrs.data._rows import Source, make_table
from kdrs.data._unread import SAMPLE, tell_times, texts_of
from kdrs.data.table import Table
from kdrs.errors import DataError, shown

if TYPE_CHECKING:
    import polars as pl

ALLOWED = {
    "id": "integers and text",
    "rating": "integers, floats, decimals, and text that holds numbers",
    "timestamp": "integers, floats, decimals, dates, and text that holds numbers or dates",
}
"""What a column may be, by role."""
MEND = {
    **dict.fromkeys(("user", "item"), "write all of its ids as text, or all as integers: str(id), .astype(str)"),
    "rating": 'write numbers, such as .astype(float), or leave it out: --rating none (rating="none")',
    "timestamp": 'write dates, or seconds as integers; or leave it out: --timestamp none (timestamp="none")',
}
"""What to do about a column of other objects, by role."""


def from_frame(frame: Any, options: Options) -> Table:
    """The wanted columns of a Polars, pandas or Arrow frame, or of a dictionary of columns; the others stay untouched."""
    names, column_of = _opened(frame)
    name = "the frame"
    columns = named_columns(name, names, options)
    tell_times(name, names, columns, options, lambda place: _beginning(frame, place))
    series = {}
    for role, place in columns.items():
        try:
            series[role] = column_of(place)
        except MixedTypes as error:
            raise DataError(f"{name}: {role} column {shown(names[place])} {error}", MEND[role]) from error
    lengths = {len(column) for column in series.values()}
    if len(lengths) > 1:
        raise DataError(
            f"{name}: columns of {' and '.join(f'{n:,}' for n in sorted(lengths))} rows", "columns are parallel"
        )
    record = {"file": "frame", "rows": lengths.pop()}
    return framed(series, {role: names[place] for role, place in columns.items()}, name, record, options, "frame")


def _opened(frame: Any) -> tuple[list[str], Callable[[int], pl.Series]]:
    """The names of a frame's columns, and a way to one of them."""
    from kdrs._libraries import polars as pl

    library = type(frame).__module__.partition(".")[0]
    if isinstance(frame, pl.LazyFrame):
        names = frame.collect_schema().names()
        return names, lambda place: frame.select(names[place]).collect().to_series()
    if library == "pandas" and hasattr(frame, "iloc") and hasattr(frame, "columns"):
        return [str(name) for name in frame.columns], lambda place: pandas_series(frame.iloc[:, place])
    if library == "pyarrow" and hasattr(frame, "schema") and hasattr(frame, "column"):
        return list(frame.schema.names), lambda place: pl.Series(frame.column(place))
    if isinstance(frame, Mapping):
        values = list(frame.values())
        return [str(name) for name in frame], lambda place: _column(values[place])
    if not isinstance(frame, pl.DataFrame):
        try:
            frame = pl.DataFrame(frame)
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise DataError(f"a {type(frame).__name__} is no data frame: {shown(str(error))}") from error
    return frame.columns, frame.to_series


def _beginning(frame: Any, place: int) -> list[str] | None:
    """The first values of a column as text, without converting the rest; None where that cannot be had."""
    from kdrs._libraries import polars as pl

    try:
        if isinstance(frame, Mapping):
            return texts_of(_column(list(frame.values())[place][:SAMPLE]))
        if isinstance(frame, pl.DataFrame):
            part: Any = frame.head(SAMPLE)
        elif hasattr(frame, "iloc"):
            part = frame.iloc[:SAMPLE]
        elif hasattr(frame, "num_rows") and hasattr(frame, "slice"):
            part = frame.slice(0, SAMPLE)
        else:  # a stream, which is read once; a lazy frame, of which a column may cost anything
            return None
        return texts_of(_opened(part)[1](place))
    except (MixedTypes, DataError, IndexError, KeyError, TypeError, ValueError):  # told if it is asked for
        return None


def _column(values: Any) -> pl.Series:
    """A column of a dictionary."""
    from kdrs._libraries import polars as pl

    if isinstance(values, pl.Series):
        return values
    library = type(values).__module__.partition(".")[0]
    if library == "pandas" and hasattr(values, "array"):
        return pandas_series(values)
    if library == "pyarrow":
        return pl.Series(values)
    if hasattr(values, "__array__"):
        return array_series(np.asarray(values))
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise MixedTypes(f"is a {type(values).__name__}, no list of values")
    return object_series(list(values))


def framed(
    columns: dict[str, pl.Series],
    labels: dict[str, str],
    name: str,
    record: dict[str, Any],
    options: Options,
    form: str,
    place_of: Callable[[int], str] | None = None,
) -> Table:
    """The table of typed columns by role; ``labels`` are their names, ``place_of`` names the place of a row."""
    if not len(columns["user"]):
        raise DataError(f"{name} has columns and no rows", "name data with at least one interaction")

    def locate(row: int) -> tuple[str, str]:
        place = f"{name}: row {row + 1}" if place_of is None else place_of(row)
        return place, ", ".join(f"{role} {column[row]}" for role, column in columns.items())

    source = Source(name, record, locate, len(columns["user"]), dict(labels))
    checked = {role: checked_column(column, role, labels[role], name, options) for role, column in columns.items()}
    return make_table(checked, source, options, form, ordered=True)


def is_allowed(kind: pl.DataType, role: str) -> bool:
    """Whether a column of this type may hold ids, ratings or times; float ids are a matter of options."""
    from kdrs._libraries import polars as pl

    if kind in (pl.String, pl.Categorical, pl.Enum, pl.Null) or kind.is_integer() or kind.is_float():
        return True
    if role in ("user", "item"):
        return False
    return kind.is_decimal() or (role == "timestamp" and (kind == pl.Date or isinstance(kind, pl.Datetime)))


def check_type(kind: pl.DataType, role: str, label: str, name: str) -> None:
    """``DataError`` for a type that a role does not allow."""
    if not is_allowed(kind, role):
        ids = role in ("user", "item")
        raise DataError(
            f"{name}: {role} {'ids in ' if ids else ''}column {shown(label)} {'are' if ids else 'is'} {shown(str(kind), 60)}; "
            f"allowed: {ALLOWED['id' if ids else role]}",
            f"convert it, or name another column with --{role}" + ("" if ids else f" (or --{role} none)"),
        )


def checked_column(column: pl.Series, role: str, label: str, name: str, options: Options) -> pl.Series:
    """A column of an allowed type; ids as strings. Float ids are refused, unless the options say what to make of them."""
    from kdrs._libraries import polars as pl

    kind = column.dtype
    check_type(kind, role, label, name)
    if role in ("user", "item"):
        if kind.is_float() and options.float_ids == "error":
            nulls = column.null_count() + int(column.is_nan().sum() or 0)
            raise DataError(
                f"{name}: {role} ids in column {shown(label)} are floats ({kind}), {nulls:,} of them missing or NaN",
                "write the column as integers or strings; --float-ids whole takes 12.0 as 12",
            )
        return column.cast(pl.String)  # floats are told apart later, with all other strings
    if kind in (pl.Categorical, pl.Enum, pl.Null):
        return column.cast(pl.String)
    most = column.abs().max() if kind == pl.Float32 and role == "timestamp" and options.time_unit != "order" else None
    if isinstance(most, float) and most > 2**24:
        raise DataError(
            f"{name}: {role} column {shown(label)} is {kind}, which holds whole numbers up to 2^24: the times have lost digits",
            "write it as int64 or float64; --time-unit order takes the numbers as they are",
        )
    return column


def columns_of_arrays(
    arrays: Mapping[str, NDArray[Any]], columns: dict[str, str | int], name: str
) -> dict[str, pl.Series]:
    """The columns of parallel arrays; ``columns`` names the array of each role."""
    shapes = {str(label): arrays[str(label)].shape for label in columns.values()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise DataError(
            f"{name}: arrays of shapes {shapes}; columns are one-dimensional and of one length", "write them again"
        )
    series = {}
    for role, label in columns.items():
        try:
            series[role] = array_series(arrays[str(label)])
        except MixedTypes as error:
            raise DataError(
                f"{name}: {role} array {shown(str(label))} {error}; "
                f"allowed: {ALLOWED['id' if role in ('user', 'item') else role]}",
                "convert it, for example with .astype(str) or .astype(np.int64)",
            ) from error
    return series
