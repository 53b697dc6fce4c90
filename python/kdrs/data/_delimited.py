"""Delimited text: CSV and TSV with or without a header, RecBole's typed header, MovieLens."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from kdrs.data._columns import NAMES, ROLES, bare_columns, named_columns, usual
from kdrs.data._options import Options
from kdrs.data._rows import BadRow, Source, make_table, refuse_or_count
from kdrs.data._text import Text, is_regular, read_plain, records, refuse_other
from kdrs.data._unread import tell_times
from kdrs.data.table import Table
from kdrs.errors import DataError, shown

SEPARATORS = ("\t", "::", ",", ";", "|")
_UNIT = "\x1f"
"""Stands for "::" in what Polars reads, which knows separators of one character only."""
_SAMPLE = 20
"""Records from which separator and header are told."""


def read_csv(text: Text, options: Options) -> Table:
    """Delimited text with or without a header."""
    refuse_other(text)
    try:
        return _delimited(text, options, options.separator or _separator(text, options), "csv")
    except DataError as error:
        if not (text.first_lines(1)[0].startswith(("#", "%")) and error.cause.startswith(f"{text.at(1)}:")):
            raise
        remedy = "if line 1 is a comment, take such lines out: grep -v '^[#%]' FILE > NEW"
        raise DataError(error.cause, f"{remedy}; otherwise {error.remedy}") from None


def read_tsv(text: Text, options: Options) -> Table:
    """Delimited text, separated by tabs."""
    return _delimited(text, options, "\t", "tsv")


def is_inter(first: str) -> bool:
    """Whether a first line is RecBole's typed header."""
    return any(re.fullmatch(r"[^\s:]+:(token|float)(_seq)?", field) for field in re.split(r"[\t,]", first))


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
    columns = named_columns(text.at(1), names, options)
    for role, place in columns.items():
        allowed = ("token",) if role in ("user", "item") else ("token", "float")
        if kinds[place] not in allowed:
            raise DataError(
                f"{text.at(1)}: column {shown(names[place])} is {kinds[place]}; {role} allows {', '.join(allowed)}",
                f"name another column with --{role}",
            )
    _tell_times(text, names, columns, options, _records(text, separator, False)[1:])
    return _parsed(text, options, separator, len(names), columns, names=names, quoted=False, form="inter")


def is_movielens(text: Text) -> bool:
    """Whether this is ``ratings.csv``, ``ratings.dat`` or ``u.data`` of GroupLens: by its header, or by name and values."""
    lines = text.first_lines(_SAMPLE)
    if lines[0].strip().lower().replace('"', "") == "userid,movieid,rating,timestamp":
        return True
    file = text.record["file"]
    separator = "::" if "::" in lines[0] else "\t"
    if separator == "\t" and not re.fullmatch(r"u\.data|u[1-5ab]\.(base|test)", file):
        return False
    # A rating of at most 10, then seconds since 1990: no other column reads so.
    row = re.compile(rf"\d+{separator}\d+{separator}(\d|10)(\.\d+)?{separator}[1-9]\d{{8,9}}", re.ASCII)
    fits = [row.fullmatch(line) is not None for line in lines]
    return fits[0] and 2 * sum(fits) > len(fits)


def read_movielens(text: Text, options: Options) -> Table:
    """``u.data``, ``ratings.dat`` and ``ratings.csv`` of GroupLens: user, movie, rating, time."""
    first = text.first_lines(1)[0]
    separator = next((mark for mark in ("::", "\t", ",") if mark in first), ",")
    fields = _fields(first, separator, separator == ",")
    if len(fields) != 4:
        raise DataError(
            f"{text.at(1)}: {len(fields)} fields; MovieLens has user, movie, rating, time: {shown(first)}",
            "use --format csv and name the columns",
        )
    header = fields[0].lower() == "userid"
    columns = named_columns(text.at(1), fields if header else ROLES, options)
    names = fields if header else None
    return _parsed(text, options, separator, 4, columns, names=names, quoted=separator == ",", form="movielens")


def _delimited(text: Text, options: Options, separator: str, form: str) -> Table:
    quoted = options.quotes if options.quotes is not None else separator in ",;"
    sample = _records(text, separator, quoted)
    fields = sample[0]
    if len(fields) == 1:
        raise DataError(
            f"{text.at(1)}: separator {separator!r} does not occur: {shown(text.line(1))}",
            "name the right one with --separator; two columns at least are needed, user and item",
        )
    in_quotes = [field for record in sample for field in record if re.fullmatch(r'"[^"]*"', field.strip())]
    if options.quotes is None and not quoted and in_quotes:
        raise DataError(
            f"{text.at(1)}: fields stand in quotes ({shown(in_quotes[0], 30)}), which only commas and semicolons imply",
            "say --quotes to take them off, or --no-quotes to keep them as they are",
        )
    header = options.header if options.header is not None else _has_header(text, sample, separator, options)
    if header:
        names = [name.strip() for name in fields] if options.strip else fields
        columns = named_columns(text.at(1), names, options, sample[1] if len(sample) > 1 else ())
        _tell_times(text, names, columns, options, sample[1:])
        return _parsed(text, options, separator, len(fields), columns, names=names, quoted=quoted, form=form)
    columns = bare_columns(text.at(1), fields, options)
    _tell_times(text, range(len(fields)), columns, options, sample)
    return _parsed(text, options, separator, len(fields), columns, names=None, quoted=quoted, form=form)


def _tell_times(
    text: Text, names: Sequence[str] | range, columns: dict[str, int], options: Options, sample: list[list[str]]
) -> None:
    tell_times(
        text.name, names, columns, options, lambda place: [record[place] for record in sample if place < len(record)]
    )


def has_header(text: Text, options: Options, form: str) -> bool:
    """Whether line 1 of CSV or TSV names columns, by statement or by what it holds."""
    if options.header is not None:
        return options.header
    separator = "\t" if form == "tsv" else options.separator or _separator(text, options)
    quoted = options.quotes if options.quotes is not None else separator in ",;"
    return _has_header(text, _records(text, separator, quoted), separator, options)


def _separator(text: Text, options: Options) -> str:
    """The separator that each of the first records has equally often.

    Of several, the one under which line 1 names user and item. Raises ``DataError`` where that is not certain.
    """
    lines = text.first_lines(_SAMPLE)
    fitting = []
    for mark in SEPARATORS:
        quoted = options.quotes if options.quotes is not None else mark in ",;"
        widths = {len(record) for record in _records(text, mark, quoted)}
        if len(widths) == 1 and widths != {1}:
            fitting.append(mark)
    if len(fitting) > 1:
        naming = [mark for mark in fitting if _names_roles(lines[0].replace('"', "").split(mark), options)]
        if len(naming) != 1:
            raise DataError(
                f"{text.at(1)}: {' and '.join(map(repr, fitting))} could each be the separator: {shown(lines[0])}",
                "name the right one with --separator (a character, tab, or ::)",
            )
        fitting = naming
    if fitting:
        return fitting[0]
    if len({line.count(" ") for line in lines}) == 1 and " " in lines[0]:
        return " "
    present = [mark for mark in SEPARATORS if mark in lines[0]]
    if present:
        return max(present, key=lines[0].count)  # some line does not fit: reading will name it
    raise DataError(
        f"{text.at(1)}: no separator found: {shown(lines[0])}",
        "name it with --separator; two columns at least are needed, user and item",
    )


def _names_roles(fields: Sequence[str], options: Options) -> bool:
    """Whether fields name a user and an item column, by statement or usual names."""
    return all(
        any(field.strip() == getattr(options, role) or usual(field) in NAMES[role] for field in fields)
        for role in ("user", "item")
    )


def _records(text: Text, separator: str, quoted: bool) -> list[list[str]]:
    """The fields of the first records."""
    lines = text.first_lines(3 * _SAMPLE)
    if not quoted or not any('"' in line for line in lines):
        return [line.split(separator) for line in lines[:_SAMPLE]]
    if separator == "::":
        lines, separator = [line.replace("::", _UNIT) for line in lines], _UNIT
    try:
        return list(islice(csv.reader((f"{line}\n" for line in lines), delimiter=separator), _SAMPLE))
    except csv.Error:  # an unclosed quote that swallows too much; told with its line later
        return [line.split(separator) for line in lines[:_SAMPLE]]


def _fields(line: str, separator: str, quoted: bool) -> list[str]:
    if not quoted or '"' not in line:
        return line.split(separator)
    return next(csv.reader([line], delimiter=separator))


def _has_header(text: Text, sample: list[list[str]], separator: str, options: Options) -> bool:
    """Whether line 1 names columns; ``DataError`` where that cannot be told."""
    fields = sample[0]
    numeric = any(_is_numeric(field) for field in fields)
    stated = [name for role in ROLES if isinstance(name := getattr(options, role), str) and not name.isdigit()]
    named = any(name in [*fields, *(field.strip() for field in fields)] for name in stated)
    named = named or any(usual(field) in (*NAMES["user"], *NAMES["item"]) for field in fields)
    if named and not numeric:
        return True
    if numeric and not named:
        return False
    below = sample[1:]
    if not named and below and all(any(_is_numeric(field) for field in record) for record in below):
        return True
    raise DataError(
        f"{text.at(1)}: cannot tell whether this line names the columns: {shown(separator.join(fields))}",
        "say --header (and --user COLUMN --item COLUMN) or --no-header",
    )


def _is_numeric(field: str) -> bool:
    return re.fullmatch(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", field) is not None


def _parsed(
    text: Text,
    options: Options,
    separator: str,
    n_fields: int,
    columns: dict[str, int],
    *,
    names: Sequence[str] | None,
    quoted: bool,
    form: str,
) -> Table:
    """The wanted columns of delimited text, after every line was found to have ``n_fields`` fields."""
    header = names is not None
    if header and text.n_lines == 1:
        raise DataError(f"{text.name} has a header and no rows", "name a file with at least one interaction")
    data, mark = text.data, separator
    if separator == "::":
        if _UNIT.encode() in data:
            raise DataError(
                f"{text.name} holds the control character 0x1f beside the separator '::'", "take it out of the file"
            )
        data, mark = data.replace(b"::", _UNIT.encode()), _UNIT
    lines: NDArray[np.int64] | None = None  # of each record, where they are not simply counted

    def locate(row: int) -> tuple[str, str]:
        line = row + header + 1 if lines is None else int(lines[row + header])
        return text.at(line), text.line(line)

    used = {role: place if names is None else names[place] for role, place in columns.items()}
    source = Source(text.name, text.record, locate, text.n_lines - header, used)
    has_quotes = quoted and b'"' in data
    first = data.index(b"\n") + 1 if header else 0
    if has_quotes or not is_regular(data, ord(mark), n_fields):
        starts, ends, found = records(replace(text, data=data), ord(mark), has_quotes)
        newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        lines = np.searchsorted(newlines, starts) + 1
        first = int(ends[0]) + 1 if header else 0
        wrong = np.flatnonzero(found != n_fields)
        if header and found[0] != n_fields:
            raise DataError(
                f"{text.at(1)}: {n_fields} column names by one count of the quotes, {found[0]} by another: "
                f"{shown(text.line(1))}",
                "mend the line, or switch quoting off (--no-quotes)",
            )
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
            pieces, start = [], first
            for record in wrong.tolist():
                pieces.append(data[start : starts[record]])
                start = int(ends[record]) + 1
            data, first = b"".join([*pieces, data[start:]]), 0
            lines = np.delete(lines, wrong)
        if lines.size == header:
            raise DataError(f"{text.name} has a header and no rows", "name a file with at least one interaction")
    places = sorted(columns.values())
    frame = read_plain(data[first:], mark, has_quotes, places)
    by_place = dict(zip(places, frame.get_columns(), strict=True))
    if has_quotes and separator == "::":  # those inside quotes are no separators
        by_place = {place: column.str.replace_all(_UNIT, "::", literal=True) for place, column in by_place.items()}
    return make_table({role: by_place[place] for role, place in columns.items()}, source, options, form, ordered=True)


def _wrong_width(found: int, wanted: int, empty: bool) -> str:
    if empty:
        return "blank line"
    return f"{found} {'field' if found == 1 else 'fields'}, {wanted} expected"
