"""Dates that are written as text: which forms are recognised, and how a stated form is read."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdrs.errors import ConfigError, shown

if TYPE_CHECKING:
    import polars as pl

RECOGNISED = "2012-04-03, 2012-04-03 18:05[:09[.5]][Z or +01:00], 2012/04/03, Tue Apr 03 18:05:09 +0000 2012"
EXAMPLES = '--time-format "%d/%m/%Y" for 15/04/2012, "%Y%m%d" for 20120405'

_SECONDS = r":\d{2}(?:\.\d{1,9})?"
_ZONE = r" ?(?:Z|[+-]\d{2}(?::?\d{2})?)"
_WEEKDAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"


def _year_first() -> Iterator[tuple[str, str]]:
    """ISO 8601 with or without time, seconds and zone, and the same with slashes."""
    for mark in "-/":
        day, form = rf"\d{{4}}{mark}\d{{1,2}}{mark}\d{{1,2}}", f"%Y{mark}%m{mark}%d"
        yield day, form
        for gap in "T ":
            for seconds, of_seconds in (("", ""), (_SECONDS, ":%S%.f")):
                clock, of_clock = rf"{day}{gap}\d{{2}}:\d{{2}}{seconds}", f"{form}{gap}%H:%M{of_seconds}"
                yield clock, of_clock
                yield clock + _ZONE, of_clock + "%#z"


_FORMS = {
    **{form: pattern for pattern, form in _year_first()},
    "%a %b %d %H:%M:%S %z %Y": rf"{_WEEKDAY} {_MONTH} \d{{2}} \d{{2}}:\d{{2}}:\d{{2}} [+-]\d{{4}} \d{{4}}",
}
"""Forms as Polars reads them, and what the whole value must look like. Year first, or the month by name: no other reading."""

_SHORT = {"%F": "%Y-%m-%d", "%T": "%H:%M:%S", "%R": "%H:%M", "%e": "%d", "%#z": "%z", "%:z": "%z", "%.f": ".%f"}
_ALLOWED = set("aAbBdHIjmMpSfyYz%")


def checked_format(form: str) -> str:
    """A stated form as Python's ``strptime`` takes it. Raises ``ConfigError`` for one that names no day, or no known part."""
    plain = re.sub(r"%(?:\.\d?f|[#:]z|[FTRe])", lambda found: _SHORT.get(found[0], ".%f"), form)
    parts = re.findall(r"%(.?)", plain)
    unknown = [part for part in parts if part not in _ALLOWED]
    day = "j" in parts or ("d" in parts and {"m", "b", "B"} & set(parts))
    wrong = f"has no %{unknown[0]}" if unknown else None
    if wrong is None and not (day and {"y", "Y"} & set(parts)):
        wrong = "names no year, month and day"
    named = [part for part in parts if part != "%"]
    if wrong is None and len(set(named)) < len(named):
        wrong = "names a part twice"
    if wrong is not None:
        raise ConfigError(
            f"time-format {shown(form)} {wrong}; allowed: %Y %y %m %d %j %b %B %a %A %H %I %p %M %S %f %z (as in strptime)",
            EXAMPLES.removeprefix("--time-format "),
        )
    return plain


def recognised(sample: str) -> str | None:
    """The form of a date that can be read in one way only."""
    return next((form for form, pattern in _FORMS.items() if re.fullmatch(pattern, sample, re.ASCII)), None)


def looks_dated(text: str) -> bool:
    """Whether a value looks like a date or a clock, in whatever form."""
    return re.search(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,4}/\d{1,2}/\d{1,4}|\d:\d\d", text, re.ASCII) is not None


def moments(column: pl.Series, form: str) -> NDArray[np.int64]:
    """int64 ``[n]``: microseconds since 1970 UTC of texts of a recognised form; ``NONE`` where it does not fit."""
    # In a Rust pattern \d takes all of Unicode's digits.
    pattern = _FORMS[form].replace(r"\d", "[0-9]")
    fitting = column.set(~column.str.contains(f"^(?:{pattern})$").fill_null(False), None)
    if form.endswith("%#z"):
        fitting = fitting.str.replace(r" (Z|[+-][0-9:]+)$", "$1")
    return _numbers(_read(fitting, form))


def stated_moments(column: pl.Series, form: str) -> NDArray[np.int64]:
    """``moments`` of texts of a stated form, as Python's ``strptime`` reads them; without a zone they are UTC.

    Polars reads them where it and Python agree, Python alone otherwise.
    """
    from kdrs._libraries import polars as pl

    plain = checked_format(form)
    distinct = column.drop_nulls().unique(maintain_order=True)
    texts = distinct.to_list()
    found = np.full(len(texts), NONE, np.int64)
    if not {"%y", "%j", "%I"} & set(re.findall("%.", plain)):
        fast = re.sub(r"\.?%f", "%.f", plain).replace("%z", "%#z") if ".%f" in plain or "%f" not in plain else plain
        found = _numbers(_read(distinct, fast)).copy()
        some = range(0, len(texts), max(len(texts) // 200, 1))
        if any(found[place] != _python_moment(texts[place], plain) for place in some):
            found = np.full(len(texts), NONE, np.int64)
    for place in np.flatnonzero(found == NONE).tolist():
        found[place] = _python_moment(texts[place], plain)
    values = pl.DataFrame({"text": distinct, "moment": found}, schema={"text": pl.String, "moment": pl.Int64})
    joined = column.to_frame("text").join(values, on="text", how="left", maintain_order="left")
    return joined.get_column("moment").fill_null(NONE).to_numpy()


NONE = np.iinfo(np.int64).min
"""Stands for a text that is no date of the form."""


def _read(column: pl.Series, form: str) -> pl.Series:
    from kdrs._libraries import polars as pl

    zoned = "z" in re.findall(r"%#?(.)", form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if zoned:
                read = column.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC")
                return read.dt.replace_time_zone(None)
            if not re.search("%[HIMS]", form):
                return column.str.to_date(form, strict=False).cast(pl.Datetime("us"))
            return column.str.to_datetime(form, strict=False, time_unit="us")
        except pl.exceptions.PolarsError:  # a form that Polars does not take
            return pl.Series([None] * len(column), dtype=pl.Datetime("us"))


def _numbers(read: pl.Series) -> NDArray[np.int64]:
    from kdrs._libraries import polars as pl

    return read.cast(pl.Int64).fill_null(NONE).to_numpy()


def _python_moment(text: str, form: str) -> int:
    try:
        moment = datetime.strptime(text, form)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        return int(NONE)
    return (since.days * 86_400 + since.seconds) * 10**6 + since.microseconds


def example_for(sample: str) -> str | None:
    """The form in which a text may be a date, as an example for a message; ``None`` if it looks like none."""
    for pattern, form in (
        (r"\d{1,2}/\d{1,2}/\d{4}", "%d/%m/%Y"),
        (r"\d{1,2}-\d{1,2}-\d{4}", "%d-%m-%Y"),
        (r"\d{1,2}\.\d{1,2}\.\d{4}", "%d.%m.%Y"),
        (r"\d{1,2}/\d{1,2}/\d{2}", "%d/%m/%y"),
        (r"\d{8}", "%Y%m%d"),
        (r"\d{10}", "%Y%m%d%H"),
        (r"\d{12}", "%Y%m%d%H%M"),
        (r"\d{14}", "%Y%m%d%H%M%S"),
        (rf"{_MONTH}[a-z]* \d{{1,2}},? \d{{4}}", "%b %d, %Y"),
        (r"\d{2} \d{1,2}, \d{4}", "%m %d, %Y"),
    ):
        clock = re.fullmatch(pattern + r"(?P<gap>[ T])\d{1,2}:\d{2}(?P<seconds>:\d{2})?", sample, re.ASCII)
        if clock:
            return f"{form}{clock['gap']}%H:%M{':%S' if clock['seconds'] else ''}"
        if re.fullmatch(pattern, sample, re.ASCII):
            return form
    return None
