"""Requests to stop: Ctrl-C and SIGTERM; and what is said where they end a command at once."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import typer

from kdrs._launch import launched
from kdrs.cli.output import tell
from kdrs.errors import quoted


class Stopper:
    """Counts requests to stop: the first ends the run after the epoch in hand, the second at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def asked(self) -> bool:
        return self.signal is not None

    @property
    def code(self) -> int:
        """The exit code of a run that was stopped."""
        return 128 + (self.signal or signal.SIGINT)

    def handle(self, number: int, frame: object) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        if (launch := launched()) is not None and not launch.first:
            return
        # not through sys.stderr: the signal may have come in the middle of a write to it
        os.write(2, b"stopping after this epoch; once more to stop at once (the last checkpoint stays)\n")


@contextmanager
def stopping(left: Callable[[], str] | None = None) -> Iterator[Stopper]:
    """Until the end a first request is noted, a second one ends the command; ``left`` then says what is kept."""
    stopper = Stopper()
    former = {number: signal.signal(number, stopper.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopper
    except KeyboardInterrupt:
        if left is not None:
            tell(f"interrupted; {left()}")
        raise typer.Exit(stopper.code) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


Given = ParamSpec("Given")
Result = TypeVar("Result")


def spoken(command: Callable[Given, Result]) -> Callable[Given, Result]:
    """A command that trains, which says so where Ctrl-C ends it before it does."""

    @functools.wraps(command)
    def wrapped(*args: Given.args, **given: Given.kwargs) -> Result:
        try:
            return command(*args, **given)
        except KeyboardInterrupt:
            run = given.get("out") if given.get("resume") else given.get("run") if "out" not in given else None
            tell(f"interrupted before the run began; {kept(run if isinstance(run, Path) else None)}")
            raise typer.Exit(128 + signal.SIGINT) from None

    return wrapped


def kept(run: Path | None, *, several: bool = False) -> str:
    """What is kept of a run, or of ``several`` in a folder, and how it goes on."""
    if run is None:
        return "nothing was kept"
    if several or not (run / "config.toml").is_file():
        begun = any(run.glob("seed-*/config.toml"))
        return f"go on with the same command, --out {quoted(run)} and --resume" if begun else "nothing was kept"
    return f"go on with: kdrs resume {quoted(run)}"
