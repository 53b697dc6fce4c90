"""One table as a folder of parts, as Spark, Dask and others write it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdrs.data._frames import framed
from kdrs.data._options import Options
from kdrs.data._parquet import parquet_columns, parquet_schema, tell_times_of, wanted_columns
from kdrs.data._text import Text, looks_like, read_bytes, read_text
from kdrs.data.table import Table
from kdrs.errors import DataError, shown

WANTED = "a folder is one table if it holds Parquet files, or text files named part-0, part-1, ..., and nothing else"


def looks_parted(folder: Path) -> bool:
    """Whether a folder means one table: it holds Parquet files, Hive partitions, or text files named as parts are."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(("_", "."))]
        if any(entry.is_dir() and "=" in entry.name for entry in entries):
            return True
        if any(entry.is_file() and _kind(entry) == "Parquet" for entry in entries):
            return True
    except OSError:
        return False
    names = [entry.name for entry in entries]
    numbered = len(names) > 1 and len({re.sub(r"[0-9]+", "0", name) for name in names}) == 1
    return bool(names) and (numbered or all(re.match(r"part[-_.0-9]|[0-9]+\.part$", name) for name in names))


def _kind(path: Path) -> str | None:
    with path.open("rb") as file:
        kind = looks_like(file.read(8))
    return None if kind is None else kind[0]


def parts_of(folder: Path) -> list[Path]:
    """The parts of a folder in the order of their numbers; ``_SUCCESS``, ``_metadata`` and hidden files are none.

    Raises ``DataError`` for folders inside it (Hive partitions), and for a folder without parts.
    """
    name = shown(str(folder))
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(("_", "."))]
    except OSError as error:
        raise DataError(
            f"cannot read {name}: {error.strerror or error}", "check the path and its permissions"
        ) from error
    inner = sorted(entry.name for entry in entries if entry.is_dir())
    if inner:
        partitioned = "=" in inner[0]
        raise DataError(
            f"{name} is a directory with {'partitions' if partitioned else 'folders'} inside: {shown(inner[0], 40)}"
            + (f" and {len(inner) - 1:,} more" if len(inner) > 1 else ""),
            "write one table without partition columns (Spark: without partitionBy)" if partitioned else WANTED,
        )
    if not entries or not looks_parted(folder):
        raise DataError(f"{name} is a directory, and no table in parts", f"name a file; {WANTED}")
    return sorted(entries, key=lambda entry: [int(word) if word.isdigit() else word for word in _words(entry.name)])


def _words(name: str) -> list[str]:
    """Digits and the rest by turns, so that part-10 comes after part-9."""
    return re.split(r"([0-9]+)", name)


def is_parquet(paths: Sequence[Path], folder: Path) -> bool:
    """Whether the parts are Parquet files; ``DataError`` if only some of them are, or if they are no text either."""
    kinds = {path.name: _kind(path) for path in paths}
    found = set(kinds.values())
    if found == {"Parquet"}:
        return True
    if found == {None}:
        return False
    first = kinds[paths[0].name]
    other = next((name for name, kind in kinds.items() if kind != first), paths[0].name)
    raise DataError(
        f"{shown(str(folder))} is a directory of unlike files: {shown(paths[0].name)} is {first or 'text'}, "
        f"{shown(other)} is {kinds[other] or 'text'}",
        WANTED,
    )


def read_parquet_parts(paths: Sequence[Path], folder: Path, options: Options) -> Table:
    """The wanted columns of Parquet parts, one after the other. ``DataError`` names a part with other columns or types."""
    from kdrs._libraries import polars as pl

    name = shown(str(folder))
    frames, records, first = [], [], None
    for path in paths:
        data, record = read_bytes(path)
        part = shown(str(path))
        schema = parquet_schema(data, part)
        if first is None:
            first, columns = schema, wanted_columns(schema, part, options)
            tell_times_of(data, schema, columns, part, options)
        elif list(schema) != list(first):
            raise DataError(
                f"{part} has columns {_some(schema)}, {shown(paths[0].name)} has {_some(first)}",
                "write all parts with the same columns, or read them one by one",
            )
        for label in columns.values():
            if schema[label] != first[label]:
                raise DataError(
                    f"{part}: column {shown(label)} is {schema[label]}, in {shown(paths[0].name)} it is {first[label]}",
                    "write all parts with the same types, or read them one by one",
                )
        frames.append(parquet_columns(data, columns, part))
        records.append(record)
    starts = np.cumsum([0, *(frame.height for frame in frames)])

    def place_of(row: int) -> str:
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{shown(str(paths[part]))}: row {row - int(starts[part]) + 1}"

    whole = pl.concat(frames)
    series = {role: whole[label] for role, label in columns.items()}
    return framed(series, columns, name, _joint_record(folder, records), options, "parquet", place_of)


def _some(schema: Any) -> str:
    names = list(schema)
    return ", ".join(shown(name, 20) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def joined_text(paths: Sequence[Path], folder: Path, *, header: bool) -> JoinedText:
    """Text parts as one text; with a header it is taken from the first, and all others must begin with the same line.

    Parts without a byte, as Spark writes them for empty partitions, are left out.
    """
    texts = [read_text(path) for path in paths if path.stat().st_size]
    if not texts:
        raise DataError(
            f"{shown(str(folder))} is a directory of empty files", "name data with at least one interaction"
        )
    heading = texts[0].first_lines(1)[0]
    pieces, first_lines = [texts[0].data], [1]
    for text in texts[1:]:
        begins = text.first_lines(1)[0]
        if header and begins != heading:
            raise DataError(
                f"{text.at(1)}: {shown(begins)}; {shown(texts[0].at(1))} begins with {shown(heading)}",
                "write all parts with the same header, or all without one and say --no-header",
            )
        pieces.append(text.data[text.data.index(b"\n") + 1 :] if header else text.data)
        first_lines.append(2 if header else 1)
    record = _joint_record(folder, [text.record for text in texts])
    counts = [piece.count(b"\n") for piece in pieces]
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    parts = [(start, line, text.name) for start, line, text in zip(starts, first_lines, texts, strict=True)]
    return JoinedText(shown(str(folder)), b"".join(pieces), record, parts)


@dataclass
class JoinedText(Text):
    """Text of several files; ``parts`` are (lines before it, the first line's number in its file, name)."""

    parts: list[tuple[int, int, str]]

    def at(self, number: int) -> str:
        """``file:line`` in the part."""
        before, first, name = next(part for part in reversed(self.parts) if part[0] < number)
        return f"{name}:{number - before - 1 + first}"


def _joint_record(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """One record of several files; its SHA-256 is over the lines ``SHA-256, two blanks, name`` of the parts."""
    lines = "".join(f"{record['sha256']}  {record['file']}\n" for record in records)
    return {
        "file": Path(os.path.abspath(folder)).name,
        "bytes": sum(record["bytes"] for record in records),
        "sha256": hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest(),
        "parts": records,
    }
