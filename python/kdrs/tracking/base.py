"""What a tracker is told."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from kdrs.errors import MachineError

Option = bool | int | float | str


@dataclass
class Watched:
    """The run that is watched."""

    path: Path
    """Its directory."""
    name: str
    """What it may be called: its directory, as it was given."""
    first: int
    """The epoch that it goes on with, from 0: those before it were trained in an earlier session."""
    selects: tuple[str, ...]
    """Those of its values that select the best epoch, such as ``valid/ndcg@10``, the first deciding."""
    folder: Callable[[str], Path]
    """Makes, or finds, a folder of that name in the directory."""
    kept: dict[str, str] = field(default_factory=dict)
    """What the tracker kept of an earlier session. What is entered is there in the next: saved after ``begin`` and ``end``."""


@runtime_checkable
class Tracker(Protocol):
    """Told of a run. Made without arguments, and called in one thread, in this order.

    Whatever it raises is warned of once; it is then asked nothing more, and the run goes on.
    """

    def begin(self, run: Watched, config: dict[str, Option]) -> int | None:
        """The run begins, or goes on. ``config`` are its options by their names with dots, lists as JSON.

        Answers with the first epoch that it wants to hear of: where the tracker has some of an earlier session already, the one
        after these; 0 for all, those of earlier sessions included. None: from ``run.first`` on.
        """

    def log(self, step: int, values: dict[str, float]) -> None:
        """The values of an epoch, finite, counted from 0: ``train/loss``, ``train/losses/TERM``, ``train/seconds``,
        ``valid/ndcg@10``. At the end of a finished run, once more for its last epoch: ``final/test/ndcg@10``."""

    def end(self, status: str) -> None:
        """The session is over: ``finished``, ``interrupted`` or ``failed``."""


def check_package(name: str, module: str) -> None:
    """Raises ``MachineError`` if a tracker's module is not installed; imports nothing."""
    if importlib.util.find_spec(module) is None:
        raise MachineError(
            f"the tracker {name!r} needs {module}, which is not installed",
            f"pip install 'kdrs[{name}]'; or leave it out: --log none",
        )
