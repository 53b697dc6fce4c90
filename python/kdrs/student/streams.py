"""Lists of many users, written as they are made: Parquet, CSV or JSON lines, in memory that does not grow with the users.

Rows are ``user``, ``item``, ``score``, ``rank``. The bytes of a file follow from its rows alone, so parts that were made by
several machines and joined are the file that one machine makes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrs._files import replacing
from kdrs._parts import digest, parts_beside
from kdrs.errors import ConfigError, quoted, shown
from kdrs.student.answers import Recommendations

if TYPE_CHECKING:
    import polars

    from kdrs.student.student import Student

ENDINGS = (".parquet", ".csv", ".jsonl")
GROUP = 1 << 17
"""Rows of a row group."""


def check_ending(path: Path) -> None:
    """Raises ``ConfigError`` for another kind of file than is written."""
    if path.suffix not in ENDINGS:
        raise ConfigError(
            f"{shown(str(path), 300)} is the file of lists, and its ending names no kind of file",
            f"allowed: {', '.join(ENDINGS)}",
        )


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


def made_of(student: Student, options: Mapping[str, Any]) -> dict[str, Any]:
    """What lists follow from, for parts to be told apart: the student, and how it was asked (plain values)."""
    large = (list, dict)
    return {
        "the student": student.fingerprint(),
        **{name: digest(value) if isinstance(value, large) else value for name, value in options.items()},
    }


def merge(path: Path) -> tuple[int, int]:
    """Joins the parts of a file that lie beside it, in their order, and returns how many there were and the rows of Parquet
    files.

    Parts stay. Raises ``DataError`` where one is missing, cut short or no such part, where one was made of another student or
    with other options than the first, and where parts of several divisions lie there.
    """
    check_ending(path)
    parts = parts_beside(path, lambda part, of: f"kdrs recommend STUDENT --part {part}/{of} --out {quoted(path)}")
    of = len(parts)
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
