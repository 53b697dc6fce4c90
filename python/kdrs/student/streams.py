"""Lists of many users, written as they are made: Parquet, CSV or JSON lines, in memory that does not grow with the users.

Rows are ``user``, ``item``, ``score``, ``rank``. The bytes of a file follow from its rows alone, so parts that were made by
several machines and joined are the file that one machine makes.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrs._files import replacing
from kdrs.errors import ConfigError, DataError, quoted, shown
from kdrs.student.answers import Recommendations

if TYPE_CHECKING:
    import polars

ENDINGS = (".parquet", ".csv", ".jsonl")
GROUP = 1 << 17
"""Rows of a row group."""
_PART = re.compile(r"part-(\d+)-of-(\d+)")


def check_ending(path: Path) -> None:
    """Raises ``ConfigError`` for another kind of file than is written."""
    if path.suffix not in ENDINGS:
        raise ConfigError(
            f"{shown(str(path), 300)} is the file of lists, and its ending names no kind of file",
            f"allowed: {', '.join(ENDINGS)}",
        )


def part_of(path: Path, part: int, of: int) -> Path:
    """Where part ``part`` of ``of`` of a file goes: beside it."""
    return path.with_name(f"{path.stem}.part-{part}-of-{of}{path.suffix}")


def write(path: Path, lists: Iterable[Recommendations], *, by: str = "user") -> int:
    """Writes lists as they come and returns the number of rows. Raises ``ConfigError`` for another ending, ``MachineError``
    where the disk does not take it; the file is complete or absent."""
    check_ending(path)
    counted = [0]

    def frames() -> Iterator[polars.DataFrame]:
        from kdrs._libraries import polars as pl

        for one in lists:
            frame = one.to_polars().with_columns(pl.col(by).cast(pl.String))
            counted[0] += len(frame)
            yield frame

    _sink(path, frames, by)
    return counted[0]


def merge(path: Path) -> tuple[int, int]:
    """Joins the parts of a file that lie beside it, in their order, and returns how many there were and the rows of Parquet
    files.

    Parts stay. Raises ``DataError`` where one is missing, cut short or no such part, or where parts of several divisions lie
    there. Whether they are of the same student is not known: a part holds lists alone.
    """
    check_ending(path)
    pattern = re.compile(re.escape(path.stem) + r"\." + _PART.pattern + re.escape(path.suffix))
    found: dict[tuple[int, int], Path] = {}
    folder = path.parent
    for one in folder.iterdir() if folder.is_dir() else ():
        if match := pattern.fullmatch(one.name):
            found[int(match[1]), int(match[2])] = one
    counts = {of for _, of in found}
    if not found:
        raise DataError(
            f"there are no parts of {shown(str(path), 300)}",
            f"make them: kdrs recommend STUDENT --part 1/4 --out {quoted(path)}, and the others",
        )
    if len(counts) > 1:
        raise DataError(
            f"parts of {', '.join(map(str, sorted(counts)))} lie beside {shown(str(path), 300)}",
            "leave those of one division",
        )
    (of,) = counts
    missing = [part for part in range(1, of + 1) if (part, of) not in found]
    if missing:
        raise DataError(
            f"part {missing[0]} of {of} is missing" + (f", and {len(missing) - 1} others" if len(missing) > 1 else ""),
            f"make it: kdrs recommend STUDENT --part {missing[0]}/{of} --out {quoted(path)}",
        )
    parts = [found[part, of] for part in range(1, of + 1)]
    for number, place in enumerate(parts, 1):
        if not _is_part(place):
            raise DataError(
                f"{shown(str(place), 300)} is no file of lists, or cut short",
                f"make it again: kdrs recommend STUDENT --part {number}/{of} --out {quoted(path)}",
            )
    if path.suffix == ".parquet":
        from kdrs._libraries import polars as pl

        rows = 0

        def frames() -> Iterator[polars.DataFrame]:
            nonlocal rows
            for part in parts:
                whole = pl.scan_parquet(part, glob=False)  # a name may hold [ or *
                size = whole.select(pl.len()).collect().item()
                for start in range(0, size, GROUP):
                    frame = whole.slice(start, GROUP).collect()
                    rows += len(frame)
                    yield frame

        _sink(path, frames, "user")
        return of, rows
    with replacing(path) as temporary, temporary.open("wb") as out:
        for number, part in enumerate(parts):
            with part.open("rb") as file:
                if number and path.suffix == ".csv":
                    file.readline()  # the names of the columns
                shutil.copyfileobj(file, out)
    return of, 0


def _schema(by: str) -> dict[str, Any]:
    from kdrs._libraries import polars as pl

    return {by: pl.String, "item": pl.String, "score": pl.Float32, "rank": pl.Int32}


def _is_part(path: Path) -> bool:
    """Whether it begins and ends as `write` lets a file of users' lists begin and end."""
    from kdrs._libraries import polars as pl

    if not path.is_file():
        return False
    if path.suffix == ".parquet":
        try:
            return dict(pl.scan_parquet(path, glob=False).collect_schema()) == _schema("user")
        except pl.exceptions.PolarsError:
            return False
    with path.open("rb") as file:
        head = file.readline()
        file.seek(-min(1, path.stat().st_size), os.SEEK_END)
        whole = file.read() in (b"\n", b"")
    expected = b"user,item,score,rank\n" if path.suffix == ".csv" else b'{"user":'
    return whole and (head.startswith(expected) or (not head and path.suffix == ".jsonl"))


def _sink(path: Path, frames: Callable[[], Iterator[polars.DataFrame]], by: str) -> None:
    from polars.io.plugins import register_io_source

    from kdrs._libraries import polars as pl

    schema = _schema(by)
    failed: list[BaseException] = []

    def source(*_: Any) -> Iterator[polars.DataFrame]:
        try:
            yield pl.DataFrame(schema=schema)  # a file of no list has its columns
            yield from frames()
        except BaseException as error:  # polars would wrap it
            failed.append(error)
            raise

    lazy = register_io_source(source, schema=schema)
    # A sink of a name may make the file anew after it has failed: it gets an open one.
    with replacing(path) as temporary, temporary.open("wb") as out:
        try:
            if path.suffix == ".parquet":
                lazy.sink_parquet(out, row_group_size=GROUP, maintain_order=True)
            elif path.suffix == ".csv":
                lazy.sink_csv(out, maintain_order=True)
            else:
                lazy.sink_ndjson(out, maintain_order=True)
        except BaseException as error:
            if failed:
                raise failed[0] from None
            # One of the system has its number in the text, which `replacing` reads.
            if isinstance(error, pl.exceptions.PolarsError) and "os error" not in str(error):
                raise OSError(str(error)) from None
            raise
