"""Ranked lists: a row a user and item, or a row a user with its list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrs.data.plain import check_unpacked, column_of, may_lack_header, read_frame
from kdrs.errors import ConfigError, DataError, shown
from kdrs.teachers.ids import check_distinct
from kdrs.teachers.importers.found import Listed
from kdrs.teachers.tensors import RISE

if TYPE_CHECKING:
    import polars as pl

NUMBERS = {
    "score": ("score", "scores", "prediction", "predictions", "rating"),
    "weight": ("weight", "weights", "confidence", "confidences"),
    "rank": ("rank", "ranks", "position"),
}
"""Columns beside user and item, by their usual names."""
LARGEST = float(np.finfo(np.float32).max)


def read_lists(path: Path, columns: Sequence[str] | None = None, header: bool = True) -> Listed:
    """CSV, TSV, Parquet or JSON lines, in one of two forms: a row for each user and item, with ``score``, ``weight`` or
    ``rank`` beside them; or a row for each user with a list of items, best first, and lists of scores or weights.

    ``columns`` are the names of user and item, and of the score as a third; the usual names unless given. Without ``header``
    the columns of text are called 0, 1, ...

    Rows run best first by rank, else by score, else as they stand. Where rank and score are both given they must agree.
    Raises ``DataError`` for anything else, for an item twice in a list, and for scores and weights that are no numbers;
    ``ConfigError`` for columns of another number, and for tables that have their names in themselves without ``header``.
    """
    import polars as pl

    name = shown(str(path), 300)
    frame = read_frame(path, header=header)
    chosen = _usual(frame, path, name) if columns is None and header else _stated(frame, columns, name)
    for role, names in NUMBERS.items():
        left = frame.select(column for column in frame.columns if column not in chosen.values())
        if role not in chosen and (column := _beside(left, role, names, name)) is not None:
            chosen[role] = column
    frame = frame.select(pl.col(column).alias(role) for role, column in chosen.items())
    if isinstance(frame.schema["item"], pl.List | pl.Array):
        frame = _unrolled(frame, name)
    frame = _typed(frame, name)
    if not len(frame):
        raise DataError(f"{name} holds no list", "write one row at least")
    return _assembled(_ordered(frame, name), name)


def _usual(frame: pl.DataFrame, path: Path, name: str) -> dict[str, str]:
    """The columns of user and item, by their usual names."""
    try:
        return {role: column_of(frame, role, name) for role in ("user", "item")}
    except DataError as error:
        bare = "; if line 1 is a row already, --no-header" if may_lack_header(frame, path) else ""
        way = f"{error.remedy}; or say which they are: --columns USER,ITEM or USER,ITEM,SCORE{bare}"
        raise DataError(error.cause, way) from None


def _stated(frame: pl.DataFrame, columns: Sequence[str] | None, name: str) -> dict[str, str]:
    """The columns of user, item and perhaps score, as they were stated; of two without names, user and item."""
    first = frame.row(0) if len(frame) else ()
    held = ", ".join(
        shown(column, 30) + (f" = {shown(str(first[place]), 30)}" if column == str(place) and first else "")
        for place, column in enumerate(frame.columns[:12])
    )
    if columns is None and frame.width != 2:
        raise DataError(
            f"{name} has {frame.width} columns without names, in row 1: {held}",
            "say which are user and item, and the score if there is one: --columns 0,1 or 0,1,2",
        )
    given = ["0", "1"] if columns is None else [str(column) for column in columns]
    if len(given) not in (2, 3) or not all(given) or len(set(given)) < len(given):
        raise ConfigError(
            f"--columns is {shown(','.join(given))}", "give two or three names: --columns visitor,product,score"
        )
    for column in given:
        if column not in frame.columns:
            raise DataError(
                f"{name}: there is no column {shown(column)}; columns found: {held}",
                "name two or three of these: --columns USER,ITEM,SCORE",
            )
    return dict(zip(("user", "item", "score"), given, strict=False))


def _beside(frame: pl.DataFrame, role: str, names: tuple[str, ...], name: str) -> str | None:
    found = [column for column in frame.columns if column.strip().lower() in names]
    if len(found) > 1:
        raise DataError(
            f"{name}: {' and '.join(map(shown, found))} could both be the {role}",
            f"name one {role}, and the others otherwise",
        )
    return found[0] if found else None


def _unrolled(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """A row an entry out of a row a user."""
    import polars as pl

    check_distinct(frame["user"].cast(pl.String, strict=False).fill_null("").to_list(), f"{name}, user")
    lists = [column for column in frame.columns if column != "user"]
    frame = frame.with_columns(
        pl.col(column).arr.to_list() if isinstance(frame.schema[column], pl.Array) else pl.col(column)
        for column in lists
    )
    flat = [column for column in lists if not isinstance(frame.schema[column], pl.List)]
    if flat:
        raise DataError(f"{name}: items are lists, {flat[0]}s are not", "write a list of the same length for each user")
    frame = frame.filter(pl.col("item").list.len() > 0)
    for column in lists:
        differs = (frame["item"].list.len() != frame[column].list.len()).fill_null(True)
        if differs.any():
            row = frame.row(int(differs.arg_max() or 0), named=True)
            raise DataError(
                f"{name}: user {shown(str(row['user']))} has {len(row['item'])} items and {len(row[column] or ())} {column}s",
                "write lists of the same length",
            )
    return frame.explode(lists)


def _typed(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Ids as text, the rest as numbers."""
    import polars as pl

    frame = frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
    for role in ("user", "item"):
        dtype = frame.schema[role]
        if not (dtype == pl.String or dtype.is_integer()):
            raise DataError(f"{name}: column {role} is {dtype}", "ids are text or whole numbers")
    out = frame.with_columns(
        pl.col("user", "item").cast(pl.String),
        *(pl.col(role).cast(pl.Float64, strict=False) for role in NUMBERS if role in frame.columns),
    )
    for role in out.columns:
        bad = out[role].is_null() if role in ("user", "item") else ~out[role].is_finite().fill_null(False)
        if role in ("user", "item"):
            bad = bad | (out[role] == "")
        else:
            bad = bad | (out[role].abs() > LARGEST)
        if role == "weight":
            bad = bad | (out[role] < 0)
        if bad.any():
            row = int(bad.arg_max() or 0)
            what = {"weight": "finite numbers of 0 or more", "user": "ids", "item": "ids"}.get(role, "finite numbers")
            what += "" if role in ("user", "item") else f", up to {LARGEST:.1e}"
            raise DataError(f"{name}: {role} of row {row} is {shown(str(frame[role][row]))}", f"allowed: {what}")
    return out


def _ordered(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Rows by user in order of first appearance, each user's best first; ``place`` counts from 0."""
    import polars as pl

    twice = frame.select("user", "item").is_duplicated()
    if twice.any():
        row = frame.row(int(twice.arg_max() or 0), named=True)
        raise DataError(
            f"{name}: user {shown(row['user'])} has item {shown(row['item'])} twice", "list every item once a user"
        )
    frame = frame.with_row_index("row").with_columns(pl.col("row").min().over("user").alias("first"))
    if "rank" in frame.columns:
        tied = frame.select("user", "rank").is_duplicated()
        if tied.any():
            row = frame.row(int(tied.arg_max() or 0), named=True)
            raise DataError(
                f"{name}: user {shown(row['user'])} has rank {row['rank']:g} twice",
                "give every item of a user its own rank",
            )
        frame = frame.sort("first", "rank")
    elif "score" in frame.columns:
        frame = frame.sort("first", "score", "row", descending=[False, True, False])
    else:
        frame = frame.sort("first", "row")
    if "rank" in frame.columns and "score" in frame.columns:
        span = pl.col("score").max().over("user") - pl.col("score").min().over("user")
        rises = frame.select((pl.col("score").diff().over("user") > RISE * span).fill_null(False)).to_series()
        if rises.any():
            row = frame.row(int(rises.arg_max() or 0), named=True)
            raise DataError(
                f"{name}: ranks and scores disagree: user {shown(row['user'])}, rank {row['rank']:g} scores higher than the "
                "rank before it",
                "rank 1 is the best and has the highest score; are the scores distances? leave one of the columns out",
            )
    return frame.with_columns(pl.int_range(pl.len()).over("user").alias("place"))


def _assembled(frame: pl.DataFrame, name: str) -> Listed:
    import polars as pl

    users = frame.filter(pl.col("place") == 0)["user"].to_list()
    items = frame["item"].unique(maintain_order=True)
    row = frame["place"].eq(0).cum_sum().to_numpy().astype(np.int64) - 1
    place = frame["place"].to_numpy().astype(np.int64)
    width = int(place.max()) + 1
    check_unpacked(name, 12 * len(users) * width, "holds lists that take")
    codes = frame["item"].cast(pl.Enum(items)).to_physical().to_numpy()

    def table(values: Any, padding: float, dtype: type) -> Any:
        out: Any = np.full((len(users), width), padding, dtype)
        out[row, place] = values
        return out

    scores, weights = (
        table(frame[role].to_numpy(), 0, np.float32) if role in frame.columns else None for role in ("score", "weight")
    )
    return Listed(users, items.to_list(), table(codes, -1, np.int32), scores, weights)
