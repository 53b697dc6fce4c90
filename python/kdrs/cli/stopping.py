"""Requests to stop: Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from kdrs._launch import launched


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
def stopping() -> Iterator[Stopper]:
    stopper = Stopper()
    former = {number: signal.signal(number, stopper.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopper
    except KeyboardInterrupt:
        raise typer.Exit(stopper.code) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
