"""Columns of times to microseconds since 1970 UTC: numbers in a unit, typed dates, and dates as text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs.data import _dates
from kdrs.data._numbers import numbers, padded
from kdrs.data._options import Options
from kdrs.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    import polars as pl

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_YEAR_1990, _YEAR_2100, _YEAR_2200 = 631_152_000, 4_102_444_800, 7_258_118_400


@dataclass(frozen=True)
class Times:
    """int64 ``[rows]``: microseconds since 1970 UTC (``unit`` "us"), or bare order numbers ("order").

    ``read_as`` is the unit or the form of date in which they were written; ``wrong`` the rows that hold none, and why.
    """

    values: NDArray[np.int64]
    unit: str
    read_as: str
    wrong: list[tuple[NDArray[np.int64], str]]


def read_times(column: pl.Series, options: Options, name: str) -> Times:
    """The times of a column. Raises ``DataError`` where the unit or the form of date cannot be told.

    ``ConfigError`` for a unit or a form that the column has no use for.
    """
    with_blanks = False
    found = _dates_of(column, options, name)
    if found is not None:
        values, missing, unreadable, form = found
        unit = "us"
        reason = f"timestamp is no date of the form {shown(form)}"
    else:
        values, missing, unreadable, with_blanks = numbers(column)
        form = unit = options.time_unit
        reason = "timestamp has blanks around it (--strip takes them off)" if with_blanks else "timestamp is no number"
        reason = "timestamp is no number and no ISO date" if reason == "timestamp is no number" else reason
    if with_blanks and (missing | unreadable).mean() > 0.5:
        sample = str(column.filter(column.is_not_null())[0])
        raise DataError(
            f"{name}: there are blanks around the timestamps: {shown(repr(sample))}", "take them off with --strip"
        )
    wrong = [(rows, why) for rows, why in ((missing, "timestamp is missing"), (unreadable, reason))]
    usable = ~(missing | unreadable) & np.isfinite(values)
    wrong.append((~(missing | unreadable | usable), "timestamp is NaN or infinite"))
    if unit == "order":
        order = np.where(usable, values, 0)
        if order.dtype.kind == "f":
            order = np.unique(order, return_inverse=True)[1]
        return Times(order.astype(np.int64), "order", "order", _places(wrong))
    low, high = 0, _YEAR_2200
    if unit == "auto":
        form = unit = _time_unit(values[usable], name)
        low, high = _YEAR_1990, _YEAR_2100
    scale = _PER_SECOND[unit]
    outside = usable & ((values < low * scale) | (values >= high * scale))
    years = "1990 to 2099; the other rows are in" if low else "1970 to 2199 in"
    of_unit = f" {unit} (say --time-unit if that is wrong)" if found is None else ""
    wrong.append((outside, f"timestamp is outside the years {years if of_unit else '1970 to 2199'}{of_unit}"))
    values = np.where(usable & ~outside, values, 0)
    if scale > 10**6:
        return Times((values // (scale // 10**6)).astype(np.int64), "us", form, _places(wrong))
    return Times(np.round(values * (10**6 // scale)).astype(np.int64), "us", form, _places(wrong))


def _places(wrong: list[tuple[NDArray[np.bool_], str]]) -> list[tuple[NDArray[np.int64], str]]:
    return [(np.flatnonzero(rows), reason) for rows, reason in wrong if rows.any()]


def _time_unit(values: NDArray[Any], name: str) -> str:
    """The unit in which most of the times lie between 1990 and 2100; the ranges of the units do not overlap."""
    shares = {
        unit: float(np.mean((values >= _YEAR_1990 * scale) & (values < _YEAR_2100 * scale))) if values.size else 0.0
        for unit, scale in _PER_SECOND.items()
    }
    best = max(shares, key=lambda unit: shares[unit])
    written = _written_date(values)
    if shares[best] <= 0.5 or written == "%Y%m%d%H":
        span = f"from {values.min():.17g} to {values.max():.17g}" if values.size else "of which none is a number"
        if written is not None:
            raise DataError(
                f"{name}: the timestamps, {span}, are numbers in no certain unit, and may be dates that are written as numbers",
                f'if they are dates, say --time-format "{written}"; else --time-unit s, ms, us, ns, or order',
            )
        raise DataError(
            f"{name}: the unit of the timestamps cannot be told: values {span}",
            "say --time-unit s, ms, us or ns, or --time-unit order for bare order numbers",
        )
    return best


def _written_date(values: NDArray[Any]) -> str | None:
    """The form in which all of the numbers are dates, such as 20120405."""
    if not values.size or (values != np.floor(values)).any() or values.min() < 19_000_101 or values.max() > 1e15:
        return None
    whole = values.astype(np.int64)
    digits = len(str(int(whole[0])))
    form = _dates.example_for("0" * digits)
    if form is None or (whole < 10 ** (digits - 1)).any() or (whole >= 10**digits).any():
        return None
    clock, clocks = whole % 10 ** (digits - 8), {0: [], 2: [24], 4: [24, 60], 6: [24, 60, 60]}[digits - 8]
    for most in reversed(clocks):
        if (clock % 100 >= most).any():
            return None
        clock //= 100
    day = whole // 10 ** (digits - 8)
    year, month, day = day // 10_000, day // 100 % 100, day % 100
    fits = (year >= 1900) & (year < 2200) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    return form if fits.all() else None


def _dates_of(
    column: pl.Series, options: Options, name: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_], str] | None:
    """Microseconds of dates, what is missing, what is unreadable, and the form; ``None`` if these are no dates."""
    from kdrs._libraries import polars as pl

    if column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime):
        _refuse_unit(options, name, f"dates by their type ({column.dtype})")
        if column.dtype == pl.Date:
            moments = column.cast(pl.Datetime("us"))
        else:
            zoned = column.dtype.time_zone is not None  # type: ignore[attr-defined]
            moments = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if zoned else column
        typed = moments.dt.cast_time_unit("us").cast(pl.Int64)
        missing = typed.is_null().to_numpy()
        return typed.fill_null(0).to_numpy(), missing, np.zeros(len(column), bool), str(column.dtype)
    if column.dtype != pl.String and options.time_format is None:
        return None
    if column.dtype.is_integer():
        column = column.cast(pl.String)
    elif column.dtype != pl.String:
        raise ConfigError(
            f"time-format with {name}: the timestamps are {column.dtype}",
            "leave it out, or write the dates as text",
        )
    missing = (column.is_null() | (column == "").fill_null(True)).to_numpy()
    present = column.filter(pl.Series(~missing))
    if options.time_format is not None:
        form, values = options.time_format, _dates.stated_moments(present, options.time_format)
        if len(present) and (values == _dates.NONE).mean() > 0.5:
            raise DataError(
                f"{name}: most timestamps are no dates of the form {shown(form)}: {shown(str(present[0]), 40)}",
                f"another form, for example {_dates.EXAMPLES}",
            )
    else:
        sample = str(present[0]) if len(present) else ""
        known = _dates.recognised(sample)
        if known is None:
            if sample and not padded(sample) and not re.search(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$", sample):
                _refuse_unknown(present, sample, name)
            return None
        _refuse_unit(options, name, f"dates of the form {known}")
        form, values = known, _dates.moments(present, known)
    whole = np.zeros(len(column), np.int64)
    whole[~missing] = values
    unreadable = whole == _dates.NONE
    return np.where(unreadable, 0, whole), missing, unreadable, form


def _refuse_unit(options: Options, name: str, what: str) -> None:
    for option in ("time_unit", "time_format"):
        value = getattr(options, option)
        if value not in (None, "auto"):
            raise ConfigError(
                f"{option.replace('_', '-')} {shown(value)} with {name}: the timestamps are {what}", "leave it out"
            )


def _refuse_unknown(present: pl.Series, sample: str, name: str) -> None:
    """Raises ``DataError`` where most of a column's texts are neither numbers nor dates of a recognised form."""
    some = present.head(1000).to_list()
    if np.mean([_dates.recognised(text) is None and not _is_number(text) for text in some]) <= 0.5:
        return
    form = _dates.example_for(sample)
    example = (
        f'name the form, for example --time-format "{form}"' if form else f"name the form, as in {_dates.EXAMPLES}"
    )
    raise DataError(
        f"{name}: timestamps such as {shown(sample, 40)} cannot be read with certainty; dates are read as {_dates.RECOGNISED}",
        f"{example} (parts as in strptime; without a zone dates are UTC)",
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
