"""What is seen of a run while it goes on: a bar on a terminal, elsewhere a plain line now and then. All on stderr."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from kdrs.cli.output import tell
from kdrs.errors import shown
from kdrs.escaping import visible

BETWEEN_LINES = 60.0
"""Seconds between two lines where no terminal shows a bar."""


def nearby(name: str) -> str:
    """A path as it is called from here, where it lies below."""
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name


def span(seconds: float) -> str:
    """A time as one says it: ``40 s``, ``3 min``, ``2 h 10 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Told of a run's start and of every epoch. ``selects`` are the metrics that pick its best epoch, once they are known."""

    def __init__(self, epochs: int, quiet: bool, label: str = "training"):
        self.selects: tuple[str, ...] = ()
        self._epochs, self._quiet, self._label = epochs, quiet, label
        self._bar: Any = None
        self._begin()

    def _begin(self) -> None:
        self._best: tuple[float, int] | None = None
        self._measured: float | None = None
        self._first: int | None = None
        self._began = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}", markup=False),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(visible(self._label), total=self._epochs, note="")
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, known: dict[str, Any]) -> None:
        self.selects = tuple(known.get("selects", ()))
        self._epochs = known.get("epochs", self._epochs)
        self._label = known.get("part", "training")
        self._begin()
        if self._bar is not None:
            self._bar.update(self._task, total=self._epochs, completed=0, description=visible(self._label), note="")
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
        done = epoch + 1 - self._first
        # the first epoch's own time is not known from its end alone where a run was resumed; all of this session's count
        left = (self._epochs - epoch - 1) * (now - self._began) / done
        notes = [f"loss {row['loss']:.4g}"]
        if self._measured is not None and self._best is not None:
            notes.append(f"{self.selects[0]} {self._measured:.4f}")
            notes.append(f"best {self._best[0]:.4f} at {self._best[1]}")
        if left > 0:
            notes.append(f"at most {span(left)} left")
        if self._bar is not None:
            self._bar.update(self._task, completed=epoch + 1, note="  ".join(notes))
        elif now - self._told >= BETWEEN_LINES:
            self._told = now
            tell(f"{shown(self._label)}: epoch {epoch} of 0 to {self._epochs - 1:,}: {', '.join(notes)}")
