"""Other libraries' files, read: vectors with their ids, or ranked lists. Never a pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kdrs.errors import ConfigError, DataError, nearest, shown
from kdrs.teachers.foreign import pickled
from kdrs.teachers.ids import texts
from kdrs.teachers.importers.arrays import read_archive, read_implicit, read_npy
from kdrs.teachers.importers.containers import check_container
from kdrs.teachers.importers.found import Found, Listed, Side
from kdrs.teachers.importers.ids import read_ids
from kdrs.teachers.importers.lists import read_lists
from kdrs.teachers.importers.scripts import SCRIPTS
from kdrs.teachers.importers.tables import read_table
from kdrs.teachers.importers.word2vec import read_word2vec

LISTS = "lists"
WHOLE: dict[str, Callable[..., Found]] = {
    "implicit": read_implicit,
    **dict.fromkeys(("recbole", "lightfm", "lenskit", "npz", "recbole-npz"), read_archive),
    LISTS: lambda path, **options: Found(lists=read_lists(path, **options)),
}
"""Forms whose one file holds both sides."""
SIDED: dict[str, Callable[[Path, str], Side]] = {
    "word2vec": lambda path, kind: read_word2vec(path),
    "parquet": read_table,
    "npy": lambda path, kind: read_npy(path),
}
"""Forms with a file a side."""

__all__ = ["SCRIPTS", "SIDED", "WHOLE", "Found", "Listed", "Side", "print_script", "read_source"]


def print_script(form: str) -> str:
    """The lines that write ``form``'s file, to be run where that library is installed."""
    if form not in SCRIPTS:
        raise ConfigError(
            f"there is no script for {shown(form)}", f"allowed: {', '.join(SCRIPTS)}; other forms are read as they are"
        )
    return SCRIPTS[form]


def read_source(
    source: str | Path,
    form: str,
    *,
    users: str | Path | None = None,
    user_ids: str | Path | Iterable[Any] | None = None,
    item_ids: str | Path | Iterable[Any] | None = None,
    columns: str | Sequence[str] | None = None,
    header: bool = True,
) -> Found:
    """What is in the files of a teacher; ``source`` holds its items (and its users, unless ``users`` does).

    ``user_ids`` and ``item_ids`` name the rows of files without ids: a file (`kdrs.teachers.importers.ids.read_ids`), or the
    ids themselves, or ``{id: row}``. ``columns`` and ``header`` are those of `read_lists`. Raises ``DataError`` for what cannot
    be read, ``ConfigError`` for options that the form has no use for.
    """
    if form not in WHOLE.keys() | SIDED.keys():
        raise ConfigError(f"--from is {shown(form)}", nearest(form, WHOLE.keys() | SIDED.keys()))
    if form != LISTS and (columns is not None or not header):
        option = "--no-header" if columns is None else "--columns"
        raise ConfigError(f"{option} is given, and {form} has no table of lists", f"leave {option} out")
    for path in (source, users):
        if path is not None and (kind := pickled(Path(path))) is not None:
            remedy = f"kdrs teacher import --from {form} --print-script prints the lines to run there"
            raise DataError(
                f"{shown(str(path), 300)} is {kind}",
                remedy if form in SCRIPTS else "save its arrays with numpy.savez in the program that wrote it",
            )
        if path is not None:
            check_container(Path(path), form)
    if form in WHOLE:
        if users is not None:
            raise ConfigError(f"--users is given, and a file of {form} holds both sides", "leave --users out")
        names = [name.strip() for name in columns.split(",")] if isinstance(columns, str) else columns
        found = WHOLE[form](Path(source), **({"columns": names, "header": header} if form == LISTS else {}))
    else:
        read = SIDED[form]
        found = Found(None if users is None else read(Path(users), "user"), read(Path(source), "item"))
    for kind, side, given in (("user", found.users, user_ids), ("item", found.items, item_ids)):
        if given is None:
            continue
        if side is None or side.ids is not None:
            held = "has no vectors of" if side is None and found.lists is None else "has the ids of its own"
            raise ConfigError(f"--{kind}-ids is given, and the source {held} {kind}s", f"leave --{kind}-ids out")
        side.ids = read_ids(given, kind, rows=True) if isinstance(given, (str, Path)) else texts(given, f"{kind}_ids")
    _check_ids(found)
    return found


def _check_ids(found: Found) -> None:
    """Raises ``DataError`` unless each side with ids has one for every row."""
    sides = {"user": found.users, "item": found.items}
    for kind, side in sides.items():
        if side is None or side.ids is None or len(side.ids) == len(side.vectors):
            continue
        rows, columns = side.vectors.shape
        others = [other.ids for other in sides.values() if other is not None and other is not side]
        hint = "was a padding row kept, or a header line?"
        if rows - len(side.ids) == 1:
            hint = "was a padding row kept, or has a table of ids no header, and its first id is taken for one?"
        if len(side.ids) == columns:
            hint = "are the vectors transposed?"
        elif any(ids is not None and len(ids) == rows for ids in others):
            hint = "are users and items exchanged?"
        raise DataError(
            f"there are {len(side.ids):,} {kind} ids for {rows:,} rows of {kind}s",
            f"one id for each row, in the order of the rows; {hint}",
        )
