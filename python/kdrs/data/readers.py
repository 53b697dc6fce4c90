"""Files to tables: delimited text, Parquet, RecBole, MovieLens, one-line-a-user lists, NumPy and SciPy.

A file is read once, checked whole and never changed. What is wrong is told as ``file:line``, with the text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdrs.data import _folders
from kdrs.data._arrays import read_npy, read_npz
from kdrs.data._columns import NAMES
from kdrs.data._delimited import (
    has_header,
    is_inter,
    is_movielens,
    read_csv,
    read_inter,
    read_movielens,
    read_tsv,
)
from kdrs.data._frames import from_frame as _from_frame
from kdrs.data._guard import guarded
from kdrs.data._lists import list_format, read_counted_lists, read_user_lists
from kdrs.data._options import Options
from kdrs.data._parquet import read_parquet
from kdrs.data._text import Text, looks_like, read_text, refuse_other
from kdrs.data.table import Table, aligned
from kdrs.errors import ConfigError, DataError, shown

__all__ = ["NAMES", "from_frame", "read", "read_parts", "read_with"]

_BINARY_READERS = {"parquet": read_parquet, "npy": read_npy, "npz": read_npz}
_TEXT_READERS = {
    "csv": read_csv,
    "tsv": read_tsv,
    "inter": read_inter,
    "movielens": read_movielens,
    "counted-lists": read_counted_lists,
    "user-lists": read_user_lists,
}
_PARTED = ("csv", "tsv", "inter", "parquet")
"""Formats of which a folder may hold one table in parts."""


def read(
    path: str | os.PathLike[str],
    format: str = "auto",
    *,
    user: str | int | None = None,
    item: str | int | None = None,
    rating: str | int | None = None,
    timestamp: str | int | None = None,
    separator: str | None = None,
    header: bool | None = None,
    quotes: bool | None = None,
    on_bad_line: str = "error",
    strip: bool = False,
    strip_ids: bool = False,
    float_ids: str = "error",
    time_unit: str = "auto",
    time_format: str | None = None,
    keep_counts: bool = False,
    zeros: str = "drop",
) -> Table:
    """The interactions of one file, or of a folder that holds one table in parts.

    ``format`` is told from the content where it is "auto": ``csv`` and ``tsv`` (any separator and column names),
    ``parquet``, ``inter`` (RecBole's typed header), ``movielens`` (``u.data``, ``ratings.dat``, ``ratings.csv``),
    ``counted-lists`` (``users.dat``: a line a user, the count, then that many items; the user's id is the line's
    index), ``user-lists`` (a line a user: user id, then items), ``npy``, ``npz`` (arrays, or a SciPy matrix).

    Columns are given by name, or by place from 0; without a name the usual ones are recognised (``NAMES``).
    ``"none"`` takes no column for ``rating`` or ``timestamp``. Where user or item is not certain (no header and more
    than two columns, several columns of usual names) nothing is guessed: ``DataError`` shows the columns.

    ``on_bad_line="skip"`` leaves out up to 1 % of the lines, counts them and shows the first five.
    ``strip`` takes off blanks around ids, numbers, dates and column names (``strip_ids`` is another name of it).
    ``float_ids`` says what becomes of ids such as 12.0: "error", "whole" (12) or "exact".
    ``time_unit`` is the unit of times that are numbers, or "order" for bare order numbers; ``time_format`` the form of
    dates that are text (or whole numbers such as 20120405), in the notation of ``strptime``; without a zone they are UTC.
    ``keep_counts`` takes the counts of counted lists for items, a slip that one published protocol depends on.

    Rows rated 0 are not rated: they are left out and counted, or kept as positives with ``zeros="keep"``.

    What was read as what is in ``sources`` of the table: ``form``, ``columns`` and ``times``.

    Raises ``DataError`` for anything that cannot be read with certainty, ``ConfigError`` for options that make no
    sense, and for those that the form has no use for.
    """
    options = Options(
        format=format,
        user=user,
        item=item,
        rating=rating,
        timestamp=timestamp,
        separator=separator,
        header=header,
        quotes=quotes,
        on_bad_line=on_bad_line,
        strip=strip,
        strip_ids=strip_ids,
        float_ids=float_ids,
        time_unit=time_unit,
        time_format=time_format,
        keep_counts=keep_counts,
        zeros=zeros,
    )
    return read_with(path, options)


def read_with(path: str | os.PathLike[str], options: Options) -> Table:
    """``read``, its arguments in one object."""
    name = shown(str(path))
    with guarded(f"{name} cannot be read", "check the file, and say what it is with --format"):
        if is_folder(path):
            return _read_folder(Path(path), options)
        chosen = _binary_format(Path(path)) if options.format == "auto" else options.format
        if chosen in _BINARY_READERS:
            options.check_used(name, chosen)
            return _BINARY_READERS[chosen](path, options)
        text = read_text(path)
        chosen = text_format(text, options) if chosen is None else chosen
        options.check_used(name, chosen)
        return _TEXT_READERS[chosen](text, options)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a folder. Nothing is opened that is none: a pipe would wait for its writer."""
    try:
        with os.scandir(path):
            return True
    except OSError:
        return False


def _read_folder(folder: Path, options: Options) -> Table:
    """One table in parts: Parquet files, or text files with one header, or without any."""
    name = shown(str(folder))
    paths = _folders.parts_of(folder)
    if options.format not in ("auto", *_PARTED):
        raise DataError(
            f"{name} is a directory; in parts are read: {', '.join(_PARTED)}", "name a file, or leave --format out"
        )
    parquet = _folders.is_parquet(paths, folder)
    if parquet != (options.format == "parquet") and options.format != "auto":
        raise DataError(
            f"{name} is a directory of {'Parquet' if parquet else 'text'} files, not of {options.format}",
            "leave --format out",
        )
    if parquet:
        options.check_used(name, "parquet")
        return _folders.read_parquet_parts(paths, folder, options)
    first = read_text(next((path for path in paths if path.stat().st_size), paths[0]))
    form = text_format(first, options) if options.format == "auto" else options.format
    if form not in _PARTED:
        raise DataError(
            f"{name} is a directory of {form} files; in parts are read: {', '.join(_PARTED)}", "name a file"
        )
    options.check_used(name, form)
    header = form == "inter" or has_header(first, options, form)
    text = _folders.joined_text(paths, folder, header=header)
    # All parts have the header that the first was found to have.
    known = options if form == "inter" else replace(options, header=header)
    return _TEXT_READERS[form](text, known)


def read_parts(paths: Mapping[str, str | os.PathLike[str]], options: Options | None = None) -> dict[str, Table]:
    """Ready-made parts ("train", "valid", "test"), one file each, over shared id lists. ``ConfigError`` for no map of files."""
    if not isinstance(paths, Mapping) or not paths:
        raise ConfigError(f"parts are {shown(str(paths))}", 'allowed: paths by name, {"train": ..., "test": ...}')
    options = options or Options()
    tables = aligned([read_with(path, options) for path in paths.values()])
    return dict(zip(paths, tables, strict=True))


def from_frame(frame: Any, **options: Any) -> Table:
    """The interactions of a data frame: Polars, pandas, Arrow, a dictionary of columns, or anything with the Arrow
    stream interface. Only the columns that are used are converted.

    ``options`` are those of ``read`` that concern columns, ids and times.
    """
    stated = Options(**options)
    stated.check_used("a frame", "frame")
    if stated.format != "auto":
        raise ConfigError(f"format {stated.format} with a frame", "leave it out: a frame is no file")
    with guarded("the frame cannot be read", "convert its columns to integers, floats or strings"):
        return _from_frame(frame, stated)


# Telling formats apart


def _binary_format(path: Path) -> str | None:
    """The format of a file that is no text, from its first bytes; ``None`` for all others."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return None  # told better by whoever reads the file
    kind = looks_like(head)
    if kind is None:
        return None
    if kind[0] == "a zip archive":
        return "npz" if path.suffix == ".npz" else None
    return {"Parquet": "parquet", "a NumPy array": "npy"}.get(kind[0])


def text_format(text: Text, options: Options) -> str:
    """The format of a text file, from all of its content."""
    refuse_other(text)
    first, *others = text.first_lines(20)
    if is_inter(first):
        return "inter"
    if options.separator is not None or options.header is not None:
        return "csv"
    if is_movielens(text):
        return "movielens"
    if "::" in first or any(mark in first for mark in "\t,;|"):
        return "csv"
    widths = {len(line.split()) for line in (first, *others)}
    if all(field.replace("-", "").isdigit() for field in first.split()) and not (widths == {1} and len(others) > 0):
        return list_format(text)
    return "csv"
