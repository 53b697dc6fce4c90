"""Columns of raw values to numbers, without losing a digit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs.data.checks import as_doubles, wrong_values

if TYPE_CHECKING:
    import polars as pl

MOST_WHOLE = 2**53
"""Whole numbers up to here are doubles exactly."""


def numbers(column: pl.Series) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], bool]:
    """Values (int64 if all are whole, else float64; 0 where there is none), which are missing or unreadable, and
    whether those unreadable are numbers with blanks around them."""
    from kdrs._libraries import polars as pl

    missing = column.is_null()
    if column.dtype == pl.String:
        missing = missing | (column == "").fill_null(True)
    whole = column.dtype == pl.String or column.dtype.is_integer()
    for kind in (pl.Int64, pl.Float64) if whole else (pl.Float64,):
        cast = column.cast(kind, strict=False)
        unreadable = cast.is_null() & ~missing
        if not unreadable.any():
            break
    with_blanks = False
    if column.dtype == pl.String and unreadable.any():
        first = column.filter(unreadable)[0]
        with_blanks = padded(first)
    return cast.fill_null(0).to_numpy(), missing.to_numpy(), unreadable.to_numpy(), with_blanks


def padded(text: str) -> bool:
    """Whether there are blanks around a text."""
    return text != text.strip()


def ratings_of(column: pl.Series) -> tuple[NDArray[np.float64], list[tuple[NDArray[np.int64], str]]]:
    """float64 ``[rows]``, and the rows that hold no usable rating, with the reason."""
    from kdrs._libraries import polars as pl

    if column.dtype.is_float() and column.dtype != pl.Float64:
        column = pl.Series(as_doubles(column.fill_null(0).to_numpy())).set(column.is_null(), None)
    values, missing, unreadable, with_blanks = numbers(column)
    ratings = values.astype(np.float64)
    usable = ~(missing | unreadable)
    inexact = np.zeros(ratings.size, bool)
    if values.dtype.kind == "i":
        large = np.flatnonzero(usable & (np.abs(ratings) >= MOST_WHOLE))
        inexact[large] = [int(ratings[row]) != int(values[row]) for row in large]
    elif not column.dtype.is_float():
        inexact = usable & (np.abs(ratings) > MOST_WHOLE) & np.isfinite(ratings)
    if isinstance(column.dtype, pl.Decimal):
        # Fifteen digits always fit; of longer ones, what a double cannot hold comes back as another text.
        form = f".{column.dtype.scale}f"
        long = np.flatnonzero((column.to_physical().abs() >= 10**15).fill_null(False).to_numpy())
        inexact[long] = [format(ratings[row], form) != format(column[int(row)], form) for row in long]
    unread = "rating has blanks around it (--strip takes them off)" if with_blanks else "rating is no number"
    reasons = (
        (missing, "rating is missing"),
        (unreadable, unread),
        *((rows & usable, f"rating {reason}") for rows, reason in wrong_values(ratings)),
        (inexact & ~(ratings < 0), "rating has more digits than a double holds"),
    )
    return ratings, [(np.flatnonzero(rows), reason) for rows, reason in reasons if rows.any()]
