"""metrics.jsonl: one line an epoch, and the digest that vouches for all of them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from kdrs._documents import read_whole
from kdrs._files import sync, unwritable, write_bytes
from kdrs.errors import ArtefactError, shown
from kdrs.runs.places import append
from kdrs.runs.records import PATH, Rows, parse_row

LOST = "restore metrics.jsonl from a copy of the run, or train the run anew in another folder"


class MetricsFile:
    """The lines of a run. While a run trains their digest is carried along, so that it costs a line an epoch."""

    def __init__(self, path: Path):
        self.path = path
        self._digest: Any = None
        self._count = self._bytes = 0

    def append(self, row: dict[str, Any]) -> None:
        if self._digest is None:
            self._follow(self._lines())
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        append(self.path, line)
        self._add(line)

    def rows(self) -> list[dict[str, Any]]:
        """All lines; a last one that a crash cut off is left out. Raises ``ArtefactError`` for lines damaged or lost."""
        name = shown(str(self.path), PATH)
        rows = [parse_row(line, f"{name}:{number + 1}") for number, line in enumerate(self._lines())]
        for number, row in enumerate(rows):
            if row["epoch"] != number:
                raise ArtefactError(
                    f"{name}:{number + 1} is of epoch {row['epoch']}, not {number}: lines are lost or out of order",
                    LOST,
                )
        return rows

    def keep(self, until_epoch: int) -> list[dict[str, Any]]:
        """Drops the lines of epochs after ``until_epoch``: a resumed run writes them again."""
        rows = self.rows()[: until_epoch + 1]
        lines = self._lines()[: len(rows)]
        write_bytes(self.path, b"".join(lines))
        self._follow(lines)
        return rows

    def flush(self) -> None:
        """On the disk when it returns."""
        if os.path.lexists(self.path):
            try:
                sync(self.path)
            except OSError as error:
                raise unwritable(self.path, error) from error

    def stamp(self) -> dict[str, Any]:
        """Count, bytes and SHA-256 of all lines: what a checkpoint keeps of them."""
        if self._digest is None:
            self._follow(self._lines())
        return {"count": self._count, "bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def problem(self, stated: Rows | None, epoch: int) -> str | None:
        """What is wrong with the lines of a checkpoint after ``epoch``; None if they are all there. Checkpoints of older
        versions state no digest: then every epoch must have its line."""
        name = shown(str(self.path), PATH)
        if not self.path.is_file():
            wanted = epoch + 1 if stated is None else stated.count
            return f"{name} is missing: {wanted} lines were written" if wanted else None
        lines = self._lines()
        if stated is None:
            return None if len(lines) > epoch else f"{name} has {len(lines)} lines; {epoch + 1} were written"
        if hashlib.sha256(b"".join(lines[: stated.count])).hexdigest() != stated.sha256:
            return f"{name} is not as it was written: lines of the first {stated.count} epochs are changed or lost"
        return None

    def sha256(self) -> str | None:
        """Of the file; None if there is none."""
        return hashlib.sha256(self._content()).hexdigest() if self.path.is_file() else None

    def _content(self) -> bytes:
        return read_whole(self.path, LOST, most=2**33, kind=ArtefactError)

    def _lines(self) -> list[bytes]:
        """Whole lines."""
        if not os.path.lexists(self.path):
            return []
        return [line + b"\n" for line in self._content().split(b"\n")[:-1]]

    def _follow(self, lines: list[bytes]) -> None:
        self._digest, self._count, self._bytes = hashlib.sha256(), 0, 0
        for line in lines:
            self._add(line)

    def _add(self, line: bytes) -> None:
        self._digest.update(line)
        self._count += 1
        self._bytes += len(line)
