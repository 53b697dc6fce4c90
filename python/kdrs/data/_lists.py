"""Text with a line a user: counted lists (``users.dat``) and lists that begin with the user's id."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdrs.data._options import Options
from kdrs.data._rows import BadRow, Source, make_table, refuse_or_count, string_codes
from kdrs.data._text import Text, read_plain
from kdrs.data.table import Table
from kdrs.errors import DataError, shown

if TYPE_CHECKING:
    import polars as pl


def list_format(text: Text) -> str:
    """Which of the two list forms the numbers of a file are: every line is looked at."""
    tokens = _Tokens(text)
    right = tokens.counts_are_right()
    named = text.record["file"] == "users.dat"
    if right.all() and (named or right.size > 1):
        return "counted-lists"
    heads = tokens.heads()
    if named or (heads.n_unique() < len(heads) and right.mean() > 0.5):
        line = int(np.argmin(right)) + 1
        raise DataError(
            f"{text.at(line)}: {right.mean():.1%} of the lines begin with the count of their items, this one says "
            f"{shown(str(heads[line - 1]), 20)} and holds {tokens.lengths[line - 1] - 1}: {shown(text.line(line))}",
            "mend the line, or say --format user-lists if lines begin with a user id",
        )
    widths = set(tokens.lengths.tolist())
    # Two words a line, every user once: a pair and a list of one item say the same.
    if len(widths) == 1 and not (widths == {2} and heads.n_unique() == len(heads)):
        raise DataError(
            f"{text.name} could hold a pair on each line or a list of items: {shown(text.line(1))}",
            "say --format csv --separator space, --format user-lists, or --format counted-lists if the count comes first",
        )
    return "user-lists"


class _Tokens:
    """The words of a list file: ``strings`` as a Polars series; ``starts`` and ``lengths`` int64 ``[lines]``."""

    def __init__(self, text: Text):
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
        column = read_plain(words, separator="\x1f").to_series()
        self.strings = column.drop_nulls()

    @cached_property
    def line_of(self) -> NDArray[np.int64]:
        """int64 ``[words]``: the line of each word, from 0."""
        return np.repeat(np.arange(self.lengths.size), self.lengths)

    def heads(self) -> pl.Series:
        """The first word of each line, null where a line is blank."""
        from kdrs._libraries import polars as pl

        places = pl.Series(np.minimum(self.starts, max(len(self.strings) - 1, 0)))
        heads = self.strings.gather(places)
        return heads if self.lengths.all() else heads.set(pl.Series(self.lengths == 0), None)

    def counts_are_right(self) -> NDArray[np.bool_]:
        """Which lines begin with the number of words that follow."""
        from kdrs._libraries import polars as pl

        counts = self.heads().cast(pl.Int64, strict=False).fill_null(-1).to_numpy()
        return counts == self.lengths - 1


def read_counted_lists(text: Text, options: Options) -> Table:
    """``users.dat``: the count first, then exactly that many items; the user's id is the index of the line, from 0."""
    return _lists(text, options, counted=True)


def read_user_lists(text: Text, options: Options) -> Table:
    """A line a user: the user's id, then items, in the order in which they count."""
    return _lists(text, options, counted=False)


def _lists(text: Text, options: Options, *, counted: bool) -> Table:
    from kdrs._libraries import polars as pl

    form = "counted-lists" if counted else "user-lists"
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
    if counted:
        items = tokens.strings.filter(pl.Series(used & ~is_head))
        twice = _named_twice(items, tokens.line_of[used & ~is_head])
        places = np.unique([line for line, _ in twice]).astype(np.int64)
        first = dict(reversed(twice))
        bad = [
            BadRow(text.at(line + 1), f"item {shown(items[first[line]], 20)} comes twice", text.line(line + 1))
            for line in places[:5].tolist()
        ]
        refuse_or_count(source, options, bad, places.size)
        used &= ~np.isin(tokens.line_of, places)
        wrong[places] = True
    of_word = tokens.line_of[used]
    users = pl.Series(np.arange(lengths.size)).cast(pl.String) if counted else heads
    source.locate = lambda row: line_at(int(of_word[row]))
    columns = {"user": users.gather(of_word), "item": tokens.strings.filter(pl.Series(used))}
    if not of_word.size:
        raise DataError(f"{text.name} names {lengths.size:,} users and no item", "name another file")
    table = make_table(columns, source, options, form, ordered=True)
    without = int(np.count_nonzero((lengths == 1) & ~wrong))
    return table.noted("users without items are no rows", users=without) if without else table


def _named_twice(items: pl.Series, lines: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Line and place of each item that stands in its line once more, in order."""
    if not len(items):
        return []
    codes, values = string_codes(items)
    keys = lines * len(values) + codes
    order = np.argsort(keys, kind="stable")
    again = np.sort(order[1:][keys[order][1:] == keys[order][:-1]])
    return [(int(lines[place]), int(place)) for place in again]


def _wrong_list(head: str | None, length: int, counted: bool) -> str:
    if head is None:
        return "blank line"
    if not counted:
        return "no item"
    return f"the line begins with {shown(head, 20)}, but {length - 1} items follow (the count comes first)"
