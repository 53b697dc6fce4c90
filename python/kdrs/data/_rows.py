"""Columns of raw values to a table: ids to codes, ratings and times to numbers, and what to do about wrong rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdrs.data._numbers import ratings_of
from kdrs.data._options import Options
from kdrs.data._times import read_times
from kdrs.data.ids import Ids
from kdrs.data.table import Table, clean_ids, first_appearance
from kdrs.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger("kdrs.data")

MOST_SKIPPED = 0.01
"""Share of the lines that ``on_bad_line="skip"`` may leave out; more is no stray line but a wrong format."""


class BadRow(NamedTuple):
    """A row that cannot be used: where it is, why, and what stands there."""

    place: str
    reason: str
    text: str


@dataclass
class Source:
    """Where rows come from: for messages, and for the record of what was read.

    ``locate`` turns a row into its place (``file:line``) and text. ``columns`` says which columns were taken for what,
    by name, or by place where they have none. ``bad`` holds what was left out already.
    """

    name: str
    record: dict[str, Any]
    locate: Callable[[int], tuple[str, str]]
    n_lines: int
    columns: dict[str, str | int] = field(default_factory=dict)
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
    from kdrs._libraries import polars as pl

    if options.strip:
        columns = {
            role: column.str.strip_chars() if column.dtype == pl.String else column for role, column in columns.items()
        }
    wrong: list[tuple[NDArray[np.int64], str]] = []
    coded = {role: _coded(columns[role], role, options, source, wrong) for role in ("user", "item")}
    ratings = times = None
    if "rating" not in columns and options.zeros != "drop":
        raise ConfigError(
            f"zeros {options.zeros} with {source.name}, of which no column is taken for the rating",
            "name the column with --rating, or leave the option out",
        )
    if "rating" in columns:
        ratings, unrated = ratings_of(columns["rating"])
        wrong += unrated
    record = {**source.record, "form": form, "columns": source.columns}
    if "timestamp" in columns:
        times = read_times(columns["timestamp"], options, source.name)
        wrong += times.wrong
        record["times"] = times.read_as
    else:
        _refuse_time_options(options, source.name)

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
        times=None if times is None else times.values[kept],
        time_unit=None if times is None else times.unit,
        ordered=ordered,
        sources=(record,),
        options={**options.stated(), "format": form},
    )
    return finished(table, source).rated(options.zeros)


def _refuse_time_options(options: Options, name: str) -> None:
    for option, value in (("time-unit", options.time_unit), ("time-format", options.time_format)):
        if value not in (None, "auto"):
            raise ConfigError(
                f"{option} {shown(value)} with {name}, of which no column is taken for the time",
                "name the column with --timestamp, or leave the option out",
            )


def finished(table: Table, source: Source) -> Table:
    """The table with its first step noted; skipped lines are told. ``DataError`` if no row is left."""
    for row in source.bad:
        log.warning("left out %s: %s: %s", row.place, row.reason, shown(row.text))
    if source.n_bad:
        log.warning("%s: %d of %d lines left out", source.name, source.n_bad, source.n_lines)
    if not table.n_rows:
        raise DataError(f"{source.name} holds no interaction ({source.n_lines:,} lines read)", "name another file")
    facts: dict[str, Any] = {"bad_lines": source.n_bad} if source.n_bad else {}
    if source.columns:
        facts["columns"] = source.columns
    return table.noted(f"read {source.record['file']}", lines=source.n_lines, **facts)


def string_codes(values: pl.Series) -> tuple[NDArray[np.int32], list[str]]:
    """int32 ``[n]`` codes of strings without nulls, and the distinct strings as they first appear."""
    from kdrs._libraries import polars as pl

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
    ids, bad, warnings = clean_ids(values, strip=options.strip, floats=options.float_ids)
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
