"""Files to tables: delimited text, Parquet, RecBole, MovieLens, one-line-a-user lists, NumPy and SciPy.

A file is read once, checked whole and never changed. What is wrong is told as ``file:line``, with the text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs.data._rows import BadRow, Options, Source, make_table, refuse_or_count
from kdrs.data._text import Text, is_regular, looks_like, read_text, records
from kdrs.data.table import Table, aligned
from kdrs.errors import ConfigError, DataError, nearest, shown

if TYPE_CHECKING:
    import polars as pl

NAMES = {
    "user": ("user", "user_id", "userid", "uid", "users", "user id", "reviewerid", "visitorid", "customer_id"),
    "item": (
        *("item", "item_id", "itemid", "iid", "items", "item id", "movieid", "movie_id", "asin", "parent_asin"),
        *("product_id", "productid", "book_id", "bookid", "business_id", "artist_id", "artistid", "track_id"),
    ),
    "rating": ("rating", "ratings", "stars", "overall", "score"),
    "timestamp": ("timestamp", "timestamps", "time", "unixreviewtime", "ts", "datetime", "date"),
}
"""Column names, in lower case, that are recognised where none is stated."""


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
    strip_ids: bool = False,
    float_ids: str = "error",
    time_unit: str = "auto",
    keep_counts: bool = False,
    zeros: str = "drop",
) -> Table:
    """The interactions of one file.

    ``format`` is told from the content where it is "auto": ``csv`` and ``tsv`` (any separator and column names),
    ``parquet``, ``inter`` (RecBole's typed header), ``movielens`` (``u.data``, ``ratings.dat``, ``ratings.csv``),
    ``counted-lists`` (``users.dat``: a line a user, the count, then that many items; the user's id is the line's
    index), ``user-lists`` (a line a user: user id, then items), ``npy``, ``npz`` (arrays, or a SciPy matrix).

    Columns are given by name, or by place from 0; without a name the usual ones are recognised (``NAMES``).
    ``on_bad_line="skip"`` leaves out up to 1 % of the lines, counts them and shows the first five.
    ``keep_counts`` takes the counts of counted lists for items, a slip that one published protocol depends on.

    Rows rated 0 are not rated: they are left out and counted, or kept as positives with ``zeros="keep"``.

    Raises ``DataError`` for anything that cannot be read with certainty, ``ConfigError`` for options that make no
    sense.
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
        strip_ids=strip_ids,
        float_ids=float_ids,
        time_unit=time_unit,
        keep_counts=keep_counts,
        zeros=zeros,
    )
    return read_with(path, options)


def read_with(path: str | os.PathLike[str], options: Options) -> Table:
    """``read``, its arguments in one object."""
    chosen = _binary_format(Path(path)) if options.format == "auto" else options.format
    text = None if chosen in ("parquet", "npy", "npz") else read_text(path)
    if text is not None and chosen in (None, "auto"):
        chosen = text_format(text, options)
    if options.keep_counts and chosen != "counted-lists":
        raise ConfigError(
            f"keep-counts with {shown(str(path))}, which is {chosen}",
            "leave it out: only counted-lists (users.dat) hold counts",
        )
    if chosen in ("parquet", "npy", "npz"):
        from kdrs.data import _arrays

        return _arrays.READERS[chosen](path, options)
    assert text is not None and chosen is not None  # noqa: PT018
    return _TEXT_READERS[chosen](text, options)


def read_parts(paths: Mapping[str, str | os.PathLike[str]], options: Options | None = None) -> dict[str, Table]:
    """Ready-made parts ("train", "valid", "test"), one file each, over shared id lists."""
    options = options or Options()
    tables = aligned([read_with(path, options) for path in paths.values()])
    return dict(zip(paths, tables, strict=True))


def from_frame(frame: Any, **options: Any) -> Table:
    """The interactions of a data frame: Polars, pandas, Arrow, or anything with the Arrow stream interface.

    ``options`` are those of ``read`` that concern columns, ids and times.
    """
    from kdrs.data import _arrays

    return _arrays.from_frame(frame, Options(**options))


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
    first, *others = text.first_lines(20)
    if any(re.fullmatch(r"[^\s:]+:(token|float)(_seq)?", field) for field in re.split(r"[\t,]", first)):
        return "inter"
    if options.separator is not None or options.header is not None:
        return "csv"
    if "::" in first or (text.record["file"] == "u.data" and "\t" in first):
        return "movielens"
    if first.strip().lower().replace('"', "") == "userid,movieid,rating,timestamp":
        return "movielens"
    if any(mark in first for mark in "\t,;|"):
        return "csv"
    widths = {len(line.split()) for line in (first, *others)}
    if all(field.replace("-", "").isdigit() for field in first.split()) and not (widths == {1} and len(others) > 0):
        return _list_format(text)
    return "csv"


def _list_format(text: Text) -> str:
    """Which of the two list forms the numbers of a file are: every line is looked at."""
    tokens = _Tokens(text)
    right = tokens.counts_are_right()
    if right.all():
        return "counted-lists"
    heads = tokens.heads()
    if text.record["file"] == "users.dat" or (heads.n_unique() < len(heads) and right.mean() > 0.5):
        line = int(np.argmin(right)) + 1
        raise DataError(
            f"{text.at(line)}: {right.mean():.1%} of the lines begin with the count of their items, this one says "
            f"{shown(str(heads[line - 1]), 20)} and holds {tokens.lengths[line - 1] - 1}: {shown(text.line(line))}",
            "mend the line, or say --format user-lists if lines begin with a user id",
        )
    if heads.n_unique() == len(heads):
        return "user-lists"
    widths = set(tokens.lengths.tolist())
    if len(widths) == 1 and widths <= {2, 3, 4}:
        raise DataError(
            f"{text.name} could hold a pair on each line or a list of items: {shown(text.line(1))}",
            "say --format csv --separator ' ' or --format user-lists",
        )
    return "user-lists"


# Delimited text


def read_csv(text: Text, options: Options) -> Table:
    """Delimited text with or without a header."""
    separator = options.separator or _separator(text)
    return _delimited(text, options, separator, "csv")


def read_tsv(text: Text, options: Options) -> Table:
    """Delimited text, separated by tabs."""
    return _delimited(text, options, options.separator or "\t", "tsv")


def read_inter(text: Text, options: Options) -> Table:
    """RecBole's atomic form: names with types in the header."""
    first = text.first_lines(1)[0]
    separator = options.separator or ("\t" if "\t" in first else ",")
    names, kinds = [], []
    for field in first.split(separator):
        name, _, kind = field.partition(":")
        if kind not in ("token", "float", "token_seq", "float_seq"):
            raise DataError(
                f"{text.at(1)}: field {shown(field)} has no type; RecBole writes name:token or name:float",
                "use --format csv for a plain header",
            )
        names.append(name)
        kinds.append(kind)
    columns = find_columns(text.name, names, len(names), options)
    for role, place in columns.items():
        allowed = ("token",) if role in ("user", "item") else ("token", "float")
        if kinds[place] not in allowed:
            raise DataError(
                f"{text.at(1)}: column {shown(names[place])} is {kinds[place]}; {role} allows {', '.join(allowed)}",
                f"name another column with --{role}",
            )
    return _parsed(text, options, separator, len(names), columns, header=True, quoted=False, form="inter")


def read_movielens(text: Text, options: Options) -> Table:
    """``u.data``, ``ratings.dat`` and ``ratings.csv`` of GroupLens: user, movie, rating, time."""
    first = text.first_lines(1)[0]
    separator = next((mark for mark in ("::", "\t", ",") if mark in first), ",")
    header = first.lower().startswith("userid")
    n_fields = first.count(separator) + 1
    if n_fields != 4:
        raise DataError(
            f"{text.at(1)}: {n_fields} fields; MovieLens has user, movie, rating, time: {shown(first)}",
            "use --format csv and name the columns",
        )
    columns = {"user": 0, "item": 1, "rating": 2, "timestamp": 3}
    return _parsed(text, options, separator, 4, columns, header=header, quoted=False, form="movielens")


def _delimited(text: Text, options: Options, separator: str, form: str) -> Table:
    quoted = options.quotes if options.quotes is not None else separator in ",;"
    first = text.first_lines(1)[0]
    fields = _fields(first, separator, quoted)
    if len(fields) == 1:
        raise DataError(
            f"{text.at(1)}: separator {separator!r} does not occur: {shown(first)}",
            "name the right one with --separator; two columns at least are needed, user and item",
        )
    header = options.header if options.header is not None else _has_header(text, separator, quoted, fields, options)
    columns = find_columns(text.name, fields if header else None, len(fields), options)
    return _parsed(text, options, separator, len(fields), columns, header=header, quoted=quoted, form=form)


def _separator(text: Text) -> str:
    """The separator that every one of the first lines has equally often; the commonest wins."""
    lines = text.first_lines(20)
    for mark in ("\t", "::", ",", ";", "|", " "):
        counts = {line.count(mark) for line in lines}
        if counts == {lines[0].count(mark)} and lines[0].count(mark):
            return mark
    present = [mark for mark in ("\t", "::", ",", ";", "|") if mark in lines[0]]
    if present:
        return max(present, key=lines[0].count)
    raise DataError(
        f"{text.at(1)}: no separator found: {shown(lines[0])}",
        "name it with --separator; two columns at least are needed, user and item",
    )


def _fields(line: str, separator: str, quoted: bool) -> list[str]:
    if not quoted or '"' not in line:
        return line.split(separator)
    import csv

    return next(csv.reader([line], delimiter=separator))


def _has_header(text: Text, separator: str, quoted: bool, fields: list[str], options: Options) -> bool:
    """Whether line 1 names columns; ``DataError`` where that cannot be told."""
    lowered = {field.strip().lower() for field in fields}
    stated = [name for name in (options.user, options.item) if isinstance(name, str)]
    if any(name in fields for name in stated) or lowered & {*NAMES["user"], *NAMES["item"]}:
        return True
    if any(_is_numeric(field) for field in fields):
        return False
    below = [_fields(line, separator, quoted) for line in text.first_lines(20)[1:]]
    if below and all(any(_is_numeric(field) for field in line) for line in below):
        return True
    raise DataError(
        f"{text.at(1)}: cannot tell whether this line names the columns: {shown(separator.join(fields))}",
        "say --header (and --user COLUMN --item COLUMN) or --no-header",
    )


def _is_numeric(field: str) -> bool:
    return re.fullmatch(r"\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*", field) is not None


def find_columns(source: str, names: Sequence[str] | None, n_fields: int, options: Options) -> dict[str, int]:
    """The place of each role's column: as stated, else by its usual name, else (without a header) the first two."""
    columns: dict[str, int] = {}
    place: int | None
    found = f"columns found: {', '.join(shown(name, 30) for name in names)}" if names else f"{n_fields} columns found"
    for role in ("user", "item", "rating", "timestamp"):
        stated = getattr(options, role)
        if stated is not None:
            place = _stated_column(source, stated, names, found, role)
        elif names is None:
            place = {"user": 0, "item": 1}.get(role)
        else:
            lowered = [name.strip().lower() for name in names]
            place = next((lowered.index(name) for name in NAMES[role] if name in lowered), None)
        if place is None:
            if role in ("user", "item"):
                raise DataError(f"{source}: no {role} column; {found}", f"name it with --{role} COLUMN")
            continue
        if place >= n_fields:
            raise DataError(f"{source}: no column {place} for the {role}; {found}", f"name it with --{role} COLUMN")
        columns[role] = place
    if len(set(columns.values())) < len(columns):
        raise ConfigError(f"{source}: one column is named for two roles: {columns}", "name a column for each role")
    return columns


def _stated_column(source: str, stated: str | int, names: Sequence[str] | None, found: str, role: str) -> int:
    if names is not None and stated in names:
        if names.count(stated) > 1:
            raise DataError(f"{source}: column {shown(stated)} comes twice; {found}", f"give its place: --{role} 0")
        return list(names).index(str(stated))
    if isinstance(stated, int) or stated.isdigit():
        return int(stated)
    hint = nearest(stated, names) if names else "the file has no header: give places from 0, or say --header"
    raise DataError(f"{source}: no column {shown(stated)} for the {role}; {found}", hint)


def _parsed(
    text: Text,
    options: Options,
    separator: str,
    n_fields: int,
    columns: dict[str, int],
    *,
    header: bool,
    quoted: bool,
    form: str,
) -> Table:
    """The wanted columns of delimited text, after every line was found to have ``n_fields`` fields."""
    import polars as pl

    if header and text.n_lines == 1:
        raise DataError(f"{text.name} has a header and no rows", "name a file with at least one interaction")
    data = text.data
    if separator == "::":
        if b"\x1f" in data:
            raise DataError(f"{text.name} holds the control character 0x1f beside the separator '::'")
        data, separator = data.replace(b"::", b"\x1f"), "\x1f"
    lines: NDArray[np.int64] | None = None  # of each record, where they are not simply counted

    def locate(row: int) -> tuple[str, str]:
        line = row + header + 1 if lines is None else int(lines[row + header])
        return text.at(line), text.line(line)

    source = Source(text.name, text.record, locate, text.n_lines - header)
    has_quotes = quoted and b'"' in data
    if has_quotes or not is_regular(data, ord(separator), n_fields):
        starts, ends, found = records(replace(text, data=data), ord(separator), has_quotes)
        newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        lines = np.searchsorted(newlines, starts) + 1
        wrong = np.flatnonzero(found != n_fields)
        refuse_or_count(
            source,
            options,
            [
                BadRow(
                    text.at(int(lines[record])),
                    _wrong_width(int(found[record]), n_fields, bool(ends[record] == starts[record])),
                    text.line(int(lines[record])),
                )
                for record in wrong[:5].tolist()
            ],
            wrong.size,
        )
        if wrong.size:
            pieces, start = [], 0
            for record in wrong.tolist():
                pieces.append(data[start : starts[record]])
                start = int(ends[record]) + 1
            data = b"".join([*pieces, data[start:]])
            lines = np.delete(lines, wrong)
    places = sorted(set(columns.values()))
    frame = pl.read_csv(
        data,
        has_header=False,
        skip_rows=int(header),
        separator=separator,
        quote_char='"' if has_quotes else None,
        infer_schema=False,
        columns=places,
    )
    by_place = dict(zip(places, frame.get_columns(), strict=True))
    return make_table({role: by_place[place] for role, place in columns.items()}, source, options, form, ordered=True)


def _wrong_width(found: int, wanted: int, empty: bool) -> str:
    if empty:
        return "blank line"
    return f"{found} {'field' if found == 1 else 'fields'}, {wanted} expected"


# A line a user


class _Tokens:
    """The words of a list file: ``strings`` as a Polars series; ``starts`` and ``lengths`` int64 ``[lines]``."""

    def __init__(self, text: Text):
        import polars as pl

        if b"\x1f" in text.data:
            raise DataError(f"{text.name} holds the control character 0x1f", "words are separated by blanks or tabs")
        data = np.frombuffer(text.data, np.uint8)
        newline = data == ord("\n")
        blank = newline | (data == ord(" ")) | (data == ord("\t"))
        begins = ~blank
        begins[1:] &= blank[:-1]
        per_line = np.searchsorted(np.flatnonzero(begins), np.flatnonzero(newline))
        self.lengths: NDArray[np.int64] = np.diff(per_line, prepend=0)
        self.starts: NDArray[np.int64] = per_line - self.lengths
        words = text.data.translate(bytes.maketrans(b" \t", b"\n\n"))
        column = pl.read_csv(words, has_header=False, separator="\x1f", quote_char=None, infer_schema=False).to_series()
        self.strings = column.drop_nulls()

    @cached_property
    def line_of(self) -> NDArray[np.int64]:
        """int64 ``[words]``: the line of each word, from 0."""
        return np.repeat(np.arange(self.lengths.size), self.lengths)

    def heads(self) -> pl.Series:
        """The first word of each line, null where a line is blank."""
        import polars as pl

        places = pl.Series(np.minimum(self.starts, max(len(self.strings) - 1, 0)))
        heads = self.strings.gather(places)
        return heads if self.lengths.all() else heads.set(pl.Series(self.lengths == 0), None)

    def counts_are_right(self) -> NDArray[np.bool_]:
        """Which lines begin with the number of words that follow."""
        import polars as pl

        counts = self.heads().cast(pl.Int64, strict=False).fill_null(-1).to_numpy()
        return counts == self.lengths - 1


def read_counted_lists(text: Text, options: Options) -> Table:
    """``users.dat``: the count first, then exactly that many items; the user's id is the index of the line, from 0."""
    return _lists(text, options, counted=True)


def read_user_lists(text: Text, options: Options) -> Table:
    """A line a user: the user's id, then items, in the order in which they count."""
    return _lists(text, options, counted=False)


def _lists(text: Text, options: Options, *, counted: bool) -> Table:
    import polars as pl

    form = "counted-lists" if counted else "user-lists"
    for role in ("user", "item", "rating", "timestamp"):
        if getattr(options, role) is not None:
            raise ConfigError(f"{form} have no columns, but --{role} {shown(getattr(options, role))} was given")
    tokens = _Tokens(text)
    lengths = tokens.lengths

    def line_at(line: int) -> tuple[str, str]:
        return text.at(line + 1), text.line(line + 1)

    source = Source(text.name, text.record, line_at, lengths.size)
    wrong = lengths == 0
    if counted:
        wrong = ~tokens.counts_are_right()
    found = np.flatnonzero(wrong)
    heads = tokens.heads()
    refuse_or_count(
        source,
        options,
        [
            BadRow(text.at(line + 1), _wrong_list(heads[line], int(lengths[line]), counted), text.line(line + 1))
            for line in found[:5].tolist()
        ],
        found.size,
    )
    is_head = np.zeros(len(tokens.strings), bool)
    is_head[tokens.starts[lengths > 0]] = True
    used = ~wrong[tokens.line_of]
    if not (counted and options.keep_counts):
        used &= ~is_head
    of_word = tokens.line_of[used]
    users = pl.Series(np.arange(lengths.size)).cast(pl.String) if counted else heads
    source.locate = lambda row: line_at(int(of_word[row]))
    columns = {"user": users.gather(of_word), "item": tokens.strings.filter(pl.Series(used))}
    if not of_word.size:
        raise DataError(f"{text.name} names {lengths.size:,} users and no item", "name another file")
    table = make_table(columns, source, options, form, ordered=True)
    without = int(np.count_nonzero((lengths == 1) & ~wrong))
    return table.noted("users without items are no rows", users=without) if without else table


def _wrong_list(head: str | None, length: int, counted: bool) -> str:
    if head is None:
        return "blank line"
    if not counted:
        return "no item"
    return f"the line begins with {shown(head, 20)}, but {length - 1} items follow (the count comes first)"


_TEXT_READERS = {
    "csv": read_csv,
    "tsv": read_tsv,
    "inter": read_inter,
    "movielens": read_movielens,
    "counted-lists": read_counted_lists,
    "user-lists": read_user_lists,
}
