"""Columns of raw values to a table: ids to codes, ratings and times to numbers, and what to do about wrong rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdrs.data.checks import ZEROS, wrong_values
from kdrs.data.ids import Ids
from kdrs.data.table import Table, clean_ids, first_appearance
from kdrs.errors import ConfigError, DataError, nearest, shown

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("kdrs.data")

FORMATS = ("auto", "csv", "tsv", "parquet", "inter", "movielens", "counted-lists", "user-lists", "npy", "npz")
ON_BAD_LINE = ("error", "skip")
FLOAT_IDS = ("error", "whole", "exact")
TIME_UNITS = ("auto", "s", "ms", "us", "ns", "order")
MOST_SKIPPED = 0.01
"""Share of the lines that ``on_bad_line="skip"`` may leave out; more is no stray line but a wrong format."""

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_YEAR_1990, _YEAR_2100, _YEAR_2200 = 631_152_000, 4_102_444_800, 7_258_118_400
_DATES = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f")
_ZONED = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z")


@dataclass(frozen=True)
class Options:
    """How a file is read; ``kdrs.data.read`` explains each."""

    format: str = "auto"
    user: str | int | None = None
    item: str | int | None = None
    rating: str | int | None = None
    timestamp: str | int | None = None
    separator: str | None = None
    header: bool | None = None
    quotes: bool | None = None
    on_bad_line: str = "error"
    strip_ids: bool = False
    float_ids: str = "error"
    time_unit: str = "auto"
    keep_counts: bool = False
    zeros: str = "drop"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("format", self.format, FORMATS),
            ("on_bad_line", self.on_bad_line, ON_BAD_LINE),
            ("float_ids", self.float_ids, FLOAT_IDS),
            ("time_unit", self.time_unit, TIME_UNITS),
            ("zeros", self.zeros, ZEROS),
        ):
            if value not in allowed:
                raise ConfigError(f"unknown {name.replace('_', ' ')} {shown(value)}", nearest(str(value), allowed))
        single = self.separator is not None and len(self.separator) == 1 and self.separator.isascii()
        if self.separator is not None and not single and self.separator != "::":
            raise ConfigError(f"separator {shown(self.separator)}; allowed: one ASCII character, or '::'")

    def stated(self) -> dict[str, Any]:
        """The options that differ from the defaults."""
        default = asdict(Options())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


class BadRow(NamedTuple):
    """A row that cannot be used: where it is, why, and what stands there."""

    place: str
    reason: str
    text: str


@dataclass
class Source:
    """Where rows come from: for messages, and for the record of what was read.

    ``locate`` turns a row into its place (``file:line``) and text. ``bad`` holds what was left out already.
    """

    name: str
    record: dict[str, Any]
    locate: Callable[[int], tuple[str, str]]
    n_lines: int
    bad: list[BadRow] = field(default_factory=list)
    n_bad: int = 0


def refuse_or_count(source: Source, options: Options, bad: list[BadRow], n_bad: int) -> None:
    """Raise ``DataError`` for the first bad row, or count the rows where they are to be skipped."""
    if not n_bad:
        return
    if options.on_bad_line == "error":
        more = f" ({n_bad:,} such lines)" if n_bad > 1 else ""
        raise DataError(
            f"{bad[0].place}: {bad[0].reason}: {shown(bad[0].text)}{more}",
            "mend the file, or leave out up to 1 % of its lines with --on-bad-line skip",
        )
    source.bad.extend(bad[: 5 - len(source.bad)])
    source.n_bad += n_bad
    if source.n_bad > MOST_SKIPPED * source.n_lines:
        raise DataError(
            f"{source.name}: {source.n_bad:,} of {source.n_lines:,} lines are bad, more than 1 %; "
            f"first {source.bad[0].place}: {source.bad[0].reason}: {shown(source.bad[0].text)}",
            "look at the format, the separator and the columns",
        )


def make_table(columns: dict[str, pl.Series], source: Source, options: Options, form: str, ordered: bool) -> Table:
    """The table of raw columns ("user", "item", and perhaps "rating" and "timestamp")."""
    wrong: list[tuple[NDArray[np.int64], str]] = []
    coded = {role: _coded(columns[role], role, options, source, wrong) for role in ("user", "item")}
    ratings = _ratings(columns["rating"], wrong) if "rating" in columns else None
    times, unit = _times(columns["timestamp"], options, source, wrong) if "timestamp" in columns else (None, None)

    kept: NDArray[np.bool_] | slice = slice(None)
    if wrong:
        rows = np.unique(np.concatenate([rows for rows, _ in wrong]))
        reasons = {int(row): reason for found, reason in reversed(wrong) for row in found[:5]}
        first = sorted(reasons)[:5]
        refuse_or_count(source, options, [BadRow(*_around(source, row, reasons[row])) for row in first], rows.size)
        mask = np.ones(len(columns["user"]), bool)
        mask[rows] = False
        kept = mask
    ids = {role: _final_ids(codes[kept], values, role) for role, (codes, values) in coded.items()}
    table = Table(
        users=ids["user"][0],
        items=ids["item"][0],
        user_ids=ids["user"][1],
        item_ids=ids["item"][1],
        ratings=None if ratings is None else ratings[kept],
        times=None if times is None else times[kept],
        time_unit=unit,
        ordered=ordered,
        sources=(source.record,),
        options={**options.stated(), "format": form},
    )
    return finished(table, source).rated(options.zeros)


def finished(table: Table, source: Source) -> Table:
    """The table with its first step noted; skipped lines are told. ``DataError`` if no row is left."""
    for row in source.bad:
        log.warning("left out %s: %s: %s", row.place, row.reason, shown(row.text))
    if source.n_bad:
        log.warning("%s: %d of %d lines left out", source.name, source.n_bad, source.n_lines)
    if not table.n_rows:
        raise DataError(f"{source.name} holds no interaction ({source.n_lines:,} lines read)", "name another file")
    facts = {"bad_lines": source.n_bad} if source.n_bad else {}
    return table.noted(f"read {source.record['file']}", lines=source.n_lines, **facts)


def string_codes(values: pl.Series) -> tuple[NDArray[np.int32], list[str]]:
    """int32 ``[n]`` codes of strings without nulls, and the distinct strings as they first appear."""
    import polars as pl

    categories = values.cast(pl.Categorical)
    distinct = categories.unique(maintain_order=True)
    # Physical codes may be shared with other columns of the process, so they are renumbered.
    physical = distinct.to_physical().to_numpy()
    lookup = np.zeros(int(physical.max(initial=0)) + 1, np.int32)
    lookup[physical] = np.arange(physical.size, dtype=np.int32)
    return lookup[categories.to_physical().to_numpy()], distinct.cast(pl.String).to_list()


def _around(source: Source, row: int, reason: str) -> tuple[str, str, str]:
    place, text = source.locate(row)
    return place, reason, text


def _coded(
    column: pl.Series, role: str, options: Options, source: Source, wrong: list[tuple[NDArray[np.int64], str]]
) -> tuple[NDArray[np.int32], list[str]]:
    codes, values = string_codes(column.fill_null(""))
    ids, bad, warnings = clean_ids(values, strip=options.strip_ids, floats=options.float_ids)
    for warning in warnings:
        log.warning("%s: %s %s", source.name, role, warning)
    by_reason: dict[str, list[int]] = {}
    for place, reason in bad:
        by_reason.setdefault(reason, []).append(place)
    for reason, places in by_reason.items():
        is_bad = np.zeros(len(values), bool)
        is_bad[places] = True
        wrong.append((np.flatnonzero(is_bad[codes]), f"{role}: {reason}"))
    return codes, ids


def _final_ids(codes: NDArray[np.int32], values: list[str], role: str) -> tuple[NDArray[np.int32], Ids]:
    """Codes and ids once bad rows are gone; strings that cleaning made equal share a code."""
    present = first_appearance(codes)
    places: dict[str, int] = {}
    lookup = np.zeros(len(values), np.int32)
    for code in present.tolist():
        lookup[code] = places.setdefault(values[code], len(places))
    return lookup[codes], Ids(places, role)


def _ratings(column: pl.Series, wrong: list[tuple[NDArray[np.int64], str]]) -> NDArray[np.float64]:
    values, missing, unreadable = _numbers(column)
    ratings = values.astype(np.float64)
    usable = ~(missing | unreadable)
    found = [(rows & usable, f"rating {reason}") for rows, reason in wrong_values(ratings)]
    for rows, reason in ((missing, "rating is missing"), (unreadable, "rating is no number"), *found):
        if rows.any():
            wrong.append((np.flatnonzero(rows), reason))
    return ratings


def _numbers(column: pl.Series) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
    """Values (int64 if all are whole, else float64; 0 where there is none), and which are missing or unreadable."""
    import polars as pl

    missing = column.is_null()
    if column.dtype == pl.String:
        missing = missing | (column == "").fill_null(True)
    for kind in (pl.Float64,) if column.dtype.is_float() else (pl.Int64, pl.Float64):
        numbers = column.cast(kind, strict=False)
        unreadable = numbers.is_null() & ~missing
        if not unreadable.any():
            break
    values = numbers.fill_null(0).to_numpy()
    return values, missing.to_numpy(), unreadable.to_numpy()


def _times(
    column: pl.Series, options: Options, source: Source, wrong: list[tuple[NDArray[np.int64], str]]
) -> tuple[NDArray[np.int64], str]:
    """int64 ``[rows]``: microseconds since 1970 UTC ("us"), or bare order numbers ("order")."""
    dates = _dates(column)
    if dates is not None:
        values, missing, unreadable = dates
        unit = "us"
    else:
        values, missing, unreadable = _numbers(column)
        unit = options.time_unit
    for rows, reason in ((missing, "timestamp is missing"), (unreadable, "timestamp is no number and no ISO date")):
        if rows.any():
            wrong.append((np.flatnonzero(rows), reason))
    usable = ~(missing | unreadable) & np.isfinite(values)
    not_finite = ~(missing | unreadable | usable)
    if not_finite.any():
        wrong.append((np.flatnonzero(not_finite), "timestamp is NaN or infinite"))
    if unit == "order":
        numbers = np.where(usable, values, 0)
        if numbers.dtype.kind == "f":
            numbers = np.unique(numbers, return_inverse=True)[1]
        return numbers.astype(np.int64), "order"
    low, high = 0, _YEAR_2200
    if unit == "auto":
        unit = _time_unit(values[usable], source)
        low, high = _YEAR_1990, _YEAR_2100
    scale = _PER_SECOND[unit]
    outside = usable & ((values < low * scale) | (values >= high * scale))
    if outside.any():
        years = "1990 to 2099; the other rows are in" if low else "1970 to 2199 in"
        reason = f"timestamp is outside the years {years} {unit} (say --time-unit if that is wrong)"
        wrong.append((np.flatnonzero(outside), reason))
    values = np.where(usable & ~outside, values, 0)
    if scale <= 10**6:
        return np.round(values * (10**6 // scale)).astype(np.int64), "us"
    return (values // (scale // 10**6)).astype(np.int64), "us"


def _time_unit(values: NDArray[Any], source: Source) -> str:
    """The unit in which most of the times lie between 1990 and 2100; the ranges of the units do not overlap."""
    shares = {
        unit: float(np.mean((values >= _YEAR_1990 * scale) & (values < _YEAR_2100 * scale))) if values.size else 0.0
        for unit, scale in _PER_SECOND.items()
    }
    best = max(shares, key=lambda unit: shares[unit])
    if shares[best] <= 0.5:
        span = f"from {values.min():g} to {values.max():g}" if values.size else "of which none is a number"
        raise DataError(
            f"{source.name}: the unit of the timestamps cannot be told: values {span}",
            "say --time-unit s, ms, us or ns, or --time-unit order for bare order numbers",
        )
    return best


def _dates(column: pl.Series) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Microseconds since 1970 UTC of dates, what is missing and what is unreadable; ``None`` if these are no dates.

    Dates without a zone are UTC, whatever the zone of the machine.
    """
    import polars as pl

    missing = column.is_null()
    if column.dtype == pl.String:
        missing = missing | (column == "").fill_null(True)
        sample = column.filter(~missing).head(1)
        form = next((form for form in (*_DATES, *_ZONED) if _moments(sample, form).null_count() == 0), None)
        if form is None or not len(sample) or sample[0].isdigit():
            return None
        moments = _moments(column, form)
    elif column.dtype == pl.Date:
        moments = column.cast(pl.Datetime("us"))
    elif isinstance(column.dtype, pl.Datetime):
        zoned = column.dtype.time_zone is not None
        moments = (
            column.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if zoned else column
        ).dt.cast_time_unit("us")
    else:
        return None
    unreadable = moments.is_null() & ~missing
    return moments.cast(pl.Int64).fill_null(0).to_numpy(), missing.to_numpy(), unreadable.to_numpy()


def _moments(column: pl.Series, form: str) -> pl.Series:
    """Date strings of one form as microseconds UTC, null where the form does not fit."""
    import polars as pl

    if form == "%Y-%m-%d":
        return column.str.to_date(form, strict=False).cast(pl.Datetime("us"))
    if form in _ZONED:
        return column.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC").dt.replace_time_zone(None)
    return column.str.to_datetime(form, strict=False, time_unit="us")
