"""What is seen of a run while it goes on: a bar on a terminal, elsewhere a plain line now and then. All on stderr."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kdrs.cli.output import above, tell
from kdrs.errors import shown

BETWEEN_LINES = 60.0
"""Seconds between two lines where no terminal shows a bar."""


def nearby(name: str) -> str:
    """A path as it is called from here, where it lies below."""
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name


def span(seconds: float) -> str:
    """A time as one says it: ``40 s``, ``3 min``, ``2.5 h``."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


class Progress:
    """Told of a run's start and of every epoch. ``selects`` are the metrics that pick its best epoch, once they are known."""

    def __init__(self, epochs: int, quiet: bool):
        self.selects: tuple[str, ...] = ()
        self._epochs, self._quiet = epochs, quiet
        self._bar: _Bar | None = None
        self._begin()

    def _begin(self) -> None:
        self._best: tuple[float, int] | None = None
        self._measured: float | None = None
        self._first: int | None = None
        self._began = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = _Bar()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, known: dict[str, Any]) -> None:
        self.selects = tuple(known.get("selects", ()))
        self._epochs = known.get("epochs", self._epochs)
        self._begin()
        if self._quiet:
            return
        if "part" in known:
            tell(f"part {shown(known['part'])}")
        sizes = f"{known['users']:,} users, {known['items']:,} items, {known['pairs']:,} training pairs"
        tell(
            f"{shown(known['data'])}: {sizes}; {known['model']} with {known['parameters']:,} parameters on {known['device']}"
        )
        if known["skipped_pairs"]:
            tell(f"{known['skipped_pairs']:,} training pairs belong to users who have seen every item and are left out")
        for name, parts in known["teachers"].items():
            for part, means in parts.items():
                metrics = ", ".join(f"{metric} {value:.4f}" for metric, value in list(means.items())[:3])
                tell(f"teacher {shown(nearby(name))} on {part}: {metrics}")

    def epoch(self, row: dict[str, Any]) -> None:
        if self._quiet:
            return
        epoch, now = row["epoch"], time.monotonic()
        if self._first is None:
            self._first = epoch
        measured = row.get("valid", {}).get(self.selects[0]) if self.selects else None
        if measured is not None:
            self._measured = measured
            if self._best is None or measured > self._best[0]:
                self._best = measured, epoch
        # early stopping may end the run before
        left = (self._epochs - epoch - 1) * (now - self._began) / (epoch + 1 - self._first)
        notes = [f"loss {row['loss']:.4g}"]
        if self._measured is not None and self._best is not None:
            notes += [f"{self.selects[0]} {self._measured:.4f}", f"best {self._best[0]:.4f} at {self._best[1]}"]
        if self._bar is not None:
            time_left = [f"≤ {span(left)} left"] if left > 0 else []
            self._bar.show(epoch + 1, self._epochs, "  ".join([f"{epoch + 1}/{self._epochs}", *notes, *time_left]))
        elif now - self._told >= BETWEEN_LINES:
            self._told = now
            time_left = [f"at most {span(left)} left"] if left > 0 else []
            tell(f"epoch {epoch} of 0 to {self._epochs - 1}: {', '.join([*notes, *time_left])}")


class _Bar:
    """The last line of a terminal, gone when all is done. The bar itself has what the words leave."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Columns

        self._console = Console(stderr=True)
        self._column = BarColumn()
        self._columns = Columns(
            self._column, TextColumn("{task.fields[note]}", markup=False), console=self._console, transient=True
        )
        self._task = self._columns.add_task("", total=None, note="")
        self._shown = ExitStack()

    def show(self, done: int, total: int, note: str) -> None:
        if not self._columns.live.is_started:
            self._shown.enter_context(above(self._console))
            self._columns.start()
        self._column.bar_width = max(2, min(30, self._console.width - len(note) - 2))
        self._columns.update(self._task, completed=done, total=total, note=note)

    def stop(self) -> None:
        self._columns.stop()
        self._shown.close()
