"""Whom and what ``kdrs recommend`` asks a student about: options and files, as the student takes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrs.cli.output import tell
from kdrs.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    from kdrs.core.names import Names
    from kdrs.student import Recommendations, Student

BLOCK = 4096
"""Users whose lists are made at a time."""
TABLES = (".parquet", ".pq", ".jsonl", ".ndjson", ".csv", ".tsv")
"""Endings of files whose columns have names."""
HEADERS = ("id", "item", "items", "item_id", "itemid")
"""First lines of a list of items that look like the name of a column."""


Columns = tuple[str, str] | None
"""Names of the columns of users and items in a table."""


class Asked:
    """Lists that are asked for, made block by block as they are read; and what happened on the way."""

    def __init__(self, student: Student, k: int | None, unknown: str, threads: int | None):
        from kdrs.student.requests import count_of

        self.student, self.k, self.unknown, self.threads = student, count_of(k, student.items), unknown, threads
        self.users: list[str] | None = None
        self.histories: dict[str, list[str]] | None = None
        self.items: Any = None
        self.exclude: Any = None
        self.seen: Any = True
        self.share: tuple[int, int] = (1, 1)
        self.done = self.short = self.popular = self.skipped = 0

    def take_users(self, path: Path) -> None:
        """Ids of a file. Where the first is unknown, and that is an error, it may be the name of a column."""
        from kdrs.student.requests import Strangers

        self.users = ids_in(path, "user", "--users", "--user", known=self.student.users)
        if self.unknown != "error" or self.student.users is None:
            return
        places = self.student.users.index(self.users, unknown="mark", threads=self.threads)
        if path.suffix.lower() not in TABLES and len(places) and places[0] < 0:
            raise DataError(
                f"--users: {Strangers.among(self.users, places, 'users')}",
                f"is line 1 of {shown(str(path), 300)} a header? take it out; or ask with --unknown skip or popular",
            )

    def known(self, given: Any, option: str) -> Any:
        """What the student knows of an allow or block list; a warning tells of the rest. An allow list of unknown ids alone
        stays as it is, to be refused."""
        from kdrs.student.requests import MEANING, Strangers

        if given is None:
            return None
        nested = isinstance(given, dict)
        ids = list(chain.from_iterable(given.values())) if nested else given
        places = self.student.items.index(ids, unknown="mark", threads=self.threads)
        if nested:
            self._tell_idle(given, option)
        strangers = Strangers.among(ids, places)
        if not strangers.number or (option == "--items" and not nested and strangers.number == len(ids)):
            return given
        header = "; is line 1 a header?" if not nested and places[0] < 0 and ids[0].lower() in HEADERS else ""
        tell(f"warning: {option}: {strangers}: {MEANING[option[2:]]}{header}")
        new = {one for one, place in zip(ids, places.tolist(), strict=True) if place < 0}
        if nested:
            return {user: [item for item in items if item not in new] for user, items in given.items()}
        return [item for item in given if item not in new]

    def _tell_idle(self, given: dict[str, list[str]], option: str) -> None:
        """Warns of users of a table who are neither asked for nor known."""
        from kdrs.student.requests import Strangers

        names = list(given)
        asked = set(self.users or ())
        if self.student.users is None:
            return
        places = self.student.users.index(names, unknown="mark", threads=self.threads)
        places[[name in asked for name in names]] = 0
        if (strangers := Strangers.among(names, places, "users")).number:
            tell(f"warning: {option}: {strangers}: their rows are for nobody")

    def tell_unknown(self) -> None:
        """Of lists on the screen, which have no count below: who got none of her own."""
        told = {"the most popular items, with their counts, are listed for them": self.popular, "skipped": self.skipped}
        for what, count in told.items():
            if count:
                tell(
                    f"warning: {count:,} of {self.done + self.skipped:,} users are unknown or have no trained items: {what}"
                )

    def take_histories(self, path: Path, columns: Columns = None) -> None:
        self.histories = pairs_in(path, columns)
        self.users = list(self.histories)

    def __iter__(self) -> Iterator[Recommendations]:
        from kdrs._parts import span_of

        if self.users is None and self.student.users is None:
            next(self.student.blocks())  # says what is missing
        total = len(self.users) if self.users is not None else len(self.student.users or ())
        first, last = span_of(self.share, total)
        for start in range(first, last, BLOCK):
            yield self._lists(start, min(last, start + BLOCK))

    def _lists(self, start: int, stop: int) -> Recommendations:
        import numpy as np

        if self.users is not None:
            names = self.users[start:stop]
        else:
            assert self.student.users is not None
            names = self.student.users.take(np.arange(start, stop)).tolist()

        def own(value: Any) -> Any:
            return [value.get(name, []) for name in names] if isinstance(value, dict) else value

        found = self.student.recommend(
            names,
            self.k,
            histories=None if self.histories is None else own(self.histories),
            seen=own(self.seen),
            items=own(self.items),
            exclude=own(self.exclude),
            unknown=self.unknown,  # type: ignore[arg-type]
            threads=self.threads,
        )
        self.done += len(found)
        self.short += found.n_short
        self.popular += int(found.popular.sum())
        self.skipped += len(found.skipped)
        return found


def ids_in(
    path: Path, kind: str, option: str, one: str | None = None, *, distinct: bool = True, known: Names | None = None
) -> list[str]:
    """Ids of a file; ``one`` is the option that takes a single id. Raises ``DataError`` for a column without a name, of which
    the first id is among the ``known``."""
    from kdrs.teachers.importers.ids import read_ids

    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        instead = "" if one is None else f", {one} an id"
        raise DataError(
            f"{option}: no file {shown(str(path), 300)}",
            f"check the path: {option} takes a file of {kind} ids, one a line{instead}",
        ) from None
    except OSError:
        pass  # told below
    ids = read_ids(path, kind, distinct=distinct)
    if known is not None and path.suffix.lower() in (".csv", ".tsv"):
        from kdrs.data.plain import NAMES, usual

        with path.open(encoding="utf-8-sig") as lines:
            head = lines.readline().strip().strip('"')
        if usual(head) not in (*NAMES[kind], *HEADERS) and known.index([head], unknown="mark")[0] >= 0:
            raise DataError(
                f"{option}: line 1 of {shown(str(path), 300)} is {kind} {shown(head)}, and names a column there",
                f"write {kind} above it, or give the ids as .txt",
            )
    return ids


def columns_of(text: str | None) -> Columns:
    """The names in ``USER,ITEM``. Raises ``ConfigError`` for another form."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise ConfigError(f"--columns is {shown(text)}", "give two names: --columns visitor,product")
    return names[0], names[1]


def items_in(path: Path | None, option: str, columns: Columns = None, known: Names | None = None) -> Any:
    """An allow or block list: ids for all, or a list of each user where the table has users."""
    if path is None:
        return None
    from kdrs.data.plain import has_role, read_frame

    if path.suffix.lower() in TABLES and path.exists():
        frame = read_frame(path)
        if has_role(frame, "user") if columns is None else columns[0] in frame.columns:
            return pairs_in(path, columns)
    if path.is_file() and not path.stat().st_size:
        return []  # what is blocked may be nothing
    return ids_in(path, "item", option, distinct=False, known=known)


def pairs_in(path: Path, columns: Columns = None) -> dict[str, list[str]]:
    """Items of each user, from a table of user and item; ``columns`` are their names, the usual ones unless given."""
    import polars as pl

    from kdrs.data.plain import column_of, id_texts, may_lack_header, read_frame

    if not path.is_file():
        raise DataError(f"no file {shown(str(path), 300)}", "check the path")
    if path.suffix.lower() in (".npy", ".npz"):
        raise DataError(f"{shown(str(path), 300)} holds arrays", f"write a table of user and item: {', '.join(TABLES)}")
    name = shown(str(path))
    frame = read_frame(path)
    if columns is None:
        try:
            columns = column_of(frame, "user", name), column_of(frame, "item", name)
        except DataError as error:
            above = "; if line 1 is a row already, write user,item above it" if may_lack_header(frame, path) else ""
            raise DataError(error.cause, f"{error.remedy}; or say which they are: --columns USER,ITEM{above}") from None
    user, item = columns
    for column in columns:
        if column not in frame.columns:
            raise DataError(
                f"{name}: there is no column {shown(column)}; columns found: {', '.join(map(shown, frame.columns))}",
                "name two of these: --columns USER,ITEM",
            )
    grouped = pl.DataFrame({"u": id_texts(frame, user, name), "i": id_texts(frame, item, name)})
    if grouped.null_count().sum_horizontal().item():
        raise DataError(f"{name} has rows without a user or an item", "give both in every row")
    lists = grouped.group_by("u", maintain_order=True).agg("i")
    return dict(zip(lists["u"].to_list(), lists["i"].to_list(), strict=True))
