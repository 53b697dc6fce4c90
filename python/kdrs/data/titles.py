"""Titles of items, for people: a file of ids and titles in one of the forms that catalogues come in."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from kdrs._documents import DocumentError, parse_json
from kdrs.data._columns import NAMES, usual
from kdrs.data._footer import check_parquet
from kdrs.data._guard import guarded
from kdrs.data._text import Text, read_bytes, read_plain, read_text
from kdrs.data.ids import Ids
from kdrs.errors import DataError, shown

if TYPE_CHECKING:
    import polars as pl

ID_NAMES = ("id", *NAMES["item"])
TITLE_NAMES = (
    *(
        "title",
        "name",
        "item_name",
        "itemname",
        "movie_title",
        "book_title",
        "product_title",
        "track_name",
        "artist_name",
    ),
    *("label", "description"),
)
"""Names of the columns in lower case; without them, the first two columns are taken."""
_SEPARATORS = ("\t", "::", "|", ";", ",")
_UNIT = "\x1f"
"""Stands for "::" in what Polars reads, which knows separators of one character only."""
_SAMPLE = 20
_FORMS = "CSV, TSV, Parquet or JSON with an id and a title a row"


@dataclass(frozen=True)
class Titles:
    """The titles of a data set's items."""

    titles: Sequence[str | None]
    """By the item's row; None where the file has none."""
    source: str
    """The file's name."""

    @property
    def n_known(self) -> int:
        return sum(title is not None for title in self.titles)

    def __getitem__(self, item: int) -> str | None:
        return self.titles[item]


def read_titles(path: str | os.PathLike[str], items: Ids) -> Titles:
    """The titles of ``items`` in a file: delimited text (tab, ``::``, ``|``, ``;`` or comma; with names or without), Parquet,
    or JSON (an object of titles by id, a list of objects, or a list of pairs).

    The id's column is called as one of ``ID_NAMES``, the title's as one of ``TITLE_NAMES``; where names say nothing, they are
    the first two columns. Of several titles of an id the first counts; empty ones count as none.

    Raises ``DataError`` for a file that cannot be read, and for one that has no id of the data set.
    """
    from kdrs._libraries import polars as pl

    name = shown(str(path))
    with guarded(f"{name} cannot be read", f"give {_FORMS}"):
        frame = _read(path, name)
        found = frame.select(pl.col("id").str.strip_chars(), pl.col("title").str.strip_chars())
        found = found.filter(pl.col("title").is_not_null() & (pl.col("title") != ""))
        found = found.unique("id", keep="first", maintain_order=True)
        wanted = pl.DataFrame({"id": list(items)}, schema={"id": pl.String})
        titles = wanted.join(found, on="id", how="left", maintain_order="left")["title"].to_list()
    if all(title is None for title in titles):
        has = f"the first is {shown(frame['id'][0])}" if frame.height else "it has no rows"
        raise DataError(
            f"{name} has no title of an item of the data set: {has}, the data set's first is {shown(items[0])}",
            f"give {_FORMS}; ids must be written as in the data set",
        )
    return Titles(titles, os.path.basename(os.fspath(path)))


def _read(path: str | os.PathLike[str], name: str) -> pl.DataFrame:
    """Columns ``id`` and ``title``, text."""
    from kdrs._libraries import polars as pl

    data, _ = read_bytes(path)
    if data.startswith(b"PAR1"):
        schema = pl.read_parquet_schema(io.BytesIO(data))
        columns = _columns(list(schema), name)
        check_parquet(data, columns, name)
        frame = pl.read_parquet(io.BytesIO(data), columns=list(columns))
        return frame.select(
            *(pl.col(own).cast(pl.String).alias(to) for own, to in zip(columns, ("id", "title"), strict=True))
        )
    if data.lstrip()[:1] in (b"{", b"["):
        return _from_json(data, name)
    return _delimited(read_text(path))


def _columns(names: Sequence[str], name: str) -> tuple[str, str]:
    """The names of the id's and the title's column."""
    if len(names) < 2:
        raise DataError(f"{name} has one column", f"give {_FORMS}")
    own = next((column for column in names if usual(column) in ID_NAMES), None)
    title = next((column for column in names if usual(column) in TITLE_NAMES and column != own), None)
    own = own or next(column for column in names if column != title)
    return own, title or next(column for column in names if column != own)


def _from_json(data: bytes, name: str) -> pl.DataFrame:
    from kdrs._libraries import polars as pl

    try:
        values = parse_json(data)
    except DocumentError as error:
        raise DataError(f"{name} is no JSON: {error}", f"give {_FORMS}") from None
    rows: list[tuple[Any, Any]]
    if isinstance(values, dict):
        rows = list(values.items())
    elif values and all(isinstance(row, dict) for row in values):
        own, title = _columns(list(dict.fromkeys(key for row in values[:_SAMPLE] for key in row)), name)
        rows = [(row.get(own), row.get(title)) for row in values]
    else:
        rows = [(row[0], row[1]) if isinstance(row, list) and len(row) == 2 else (None, row) for row in values]
    for at, row in enumerate(rows):
        if not (isinstance(row[0], str | int) and isinstance(row[1], str | int | float | None)):
            raise DataError(
                f"{name}: entry {at} is {shown(repr(row[1] if row[0] is None else row))}, no id and title",
                "write {id: title}, or a list of {id, title}",
            )
    ids, titles = ([None if row[at] is None else str(row[at]) for row in rows] for at in (0, 1))
    return pl.DataFrame({"id": ids, "title": titles}, schema={"id": pl.String, "title": pl.String})


def _delimited(text: Text) -> pl.DataFrame:
    separator = _separator(text)
    quoted = separator in ",;"
    first = _records(text, separator, quoted, 1)[0]
    names = [column.partition(":")[0] for column in first]  # RecBole writes a type behind the name
    named = any(usual(column) in (*ID_NAMES, *TITLE_NAMES) for column in names) and len(set(names)) == len(names)
    places = (0, 1)
    if named:
        own, title = _columns(names, text.name)
        places = (names.index(own), names.index(title))
    data, mark = text.data, separator
    if separator == "::":
        data, mark = data.replace(_UNIT.encode(), b" ").replace(b"::", _UNIT.encode()), _UNIT
    with guarded(
        f"{text.name} is no table separated by {separator!r}",
        "put titles that hold the separator in quotes, or take tabs",
    ):
        frame = read_plain(data, mark, quoted and b'"' in data)
    frame = frame.select(*(frame.columns[place] for place in places)).rename(
        dict(zip((frame.columns[place] for place in places), ("id", "title"), strict=True))
    )
    return frame[1:] if named else frame


def _separator(text: Text) -> str:
    for mark in _SEPARATORS:
        widths = {len(record) for record in _records(text, mark, mark in ",;", _SAMPLE)}
        if len(widths) == 1 and widths != {1}:
            return mark
    raise DataError(
        f"{text.at(1)}: no separator parts the first lines into equally many columns: {shown(text.line(1))}",
        f"give {_FORMS}; put titles that hold the separator in quotes",
    )


def _records(text: Text, separator: str, quoted: bool, most: int) -> list[list[str]]:
    lines = text.first_lines(most)
    if not quoted:
        return [line.split(separator) for line in lines]
    try:
        return list(islice(csv.reader((f"{line}\n" for line in lines), delimiter=separator), most))
    except csv.Error:
        return [line.split(separator) for line in lines]
