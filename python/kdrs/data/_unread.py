"""Columns that look like times and that nobody named: told, and never taken by guess."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from kdrs.data import _dates
from kdrs.data._options import Options
from kdrs.data.checks import log
from kdrs.errors import quoted, shown

if TYPE_CHECKING:
    import polars as pl

SAMPLE = 20
"""Rows that are looked at."""
_NUMBER = re.compile(r"\d+(\.\d*)?([eE]\+?\d+)?", re.ASCII)
_FROM, _TO = 631_152_000, 4_102_444_800
"""1990 and 2100 in seconds: as `kdrs.data._times` tells units apart."""
_SCALES = (1, 10**3, 10**6, 10**9)


def tell_times(
    source: str,
    names: Sequence[str] | range,
    columns: Mapping[str, int],
    options: Options,
    values_of: Callable[[int], Sequence[str] | None],
) -> None:
    """One line about the columns that no role takes and that look like times, where no times are read or refused.

    ``names`` are the columns', or their places where they have none; ``values_of`` gives the first values of a place as text,
    None where they are not to be had.
    """
    if "timestamp" in columns or options.timestamp is not None:
        return
    found = []
    for place, name in enumerate(names):
        values = None if place in columns.values() else values_of(place)
        if values and (more := time_options(values)) is not None:
            found.append((str(name), values[0], more))
    if not found:
        return
    (name, sample, more), *others = found
    several = f" (so do {', '.join(shown(other[0], 30) for other in others)})" if others else ""
    log.warning(
        "%s: column %s looks like times, such as %s%s, and none are read: --timestamp %s%s reads it, --timestamp none "
        "leaves it out",
        source,
        shown(name, 30),
        shown(sample, 40),
        several,
        quoted(name),
        more,
    )


def time_options(values: Sequence[str]) -> str | None:
    """What must be said beside ``--timestamp`` for a column of these values to be read: "" where its form is told from it, both
    forms where days and months can be told apart by neither. None where they do not all look like times of one form."""
    kept = [value.strip() for value in values if value.strip()]
    if not kept:
        return None
    if all(_dates.recognised(value) for value in kept):
        return ""
    if all(_NUMBER.fullmatch(value) for value in kept):
        numbers = [float(value) for value in kept]
        if any(all(_FROM * scale <= one < _TO * scale for one in numbers) for scale in _SCALES):
            return ""
    forms = {_dates.example_for(value) for value in kept}
    form = forms.pop() if len(forms) == 1 else None
    if form is None:
        return None
    swapped = form.translate({ord("d"): "m", ord("m"): "d"}) if form[:3] in ("%d/", "%d-") else form
    fits = [one for one in dict.fromkeys((form, swapped)) if all(_is_of(value, one) for value in kept)]
    return None if not fits else " --time-format " + " or ".join(f'"{one}"' for one in fits)


def _is_of(value: str, form: str) -> bool:
    """Whether a text is a date of a form, of the years that times are taken to be of."""
    try:
        return 1990 <= datetime.strptime(value, form).year < 2100
    except ValueError:
        return False


def texts_of(column: pl.Series) -> list[str]:
    """The first values of a typed column as text; numbers that are missing are left out."""
    from kdrs._libraries import polars as pl

    kind = column.dtype
    typed = kind == pl.Date or isinstance(kind, pl.Datetime)
    if not (typed or kind == pl.String or kind.is_integer() or kind.is_float()):
        return []
    values = column.head(SAMPLE).drop_nulls()
    if kind.is_float():
        values = values.drop_nans()
    if typed:
        return [str(value)[:10] for value in values]
    return [str(value) for value in values]
