"""A run's trackers at work: each in a thread of its own, so that none can stop the run, hold it up, or change its bytes."""

from __future__ import annotations

import json
import math
import os
import queue
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdrs.errors import KdrsError, shown
from kdrs.evaluation.report import Report
from kdrs.fitting.fit import Fit
from kdrs.runs.directory import Run
from kdrs.runs.files import write_json
from kdrs.runs.places import own_folder
from kdrs.runs.records import Kept, read_record
from kdrs.runs.results import means_of
from kdrs.runs.values import flat, without_none
from kdrs.tracking import Watched, tracker_class
from kdrs.tracking.base import Option

PATIENCE = {"finished": 60.0, "interrupted": 60.0, "failed": 10.0}
"""Seconds that the end of a run waits for a tracker which has done nothing meanwhile, by how it ended."""
MOST = 300.0
"""And in all."""

Values = dict[str, float]


def check_trackers(names: Sequence[str]) -> None:
    """Raises ``ConfigError`` for trackers that are none, ``MachineError`` for those whose package is not installed."""
    for name in names:
        check = getattr(tracker_class(name), "check", None)
        if check is not None:
            check()


class Watch:
    """The trackers of a run. Nothing that one does comes out of here but a warning."""

    def __init__(self, names: Sequence[str], run: Run, config: Mapping[str, Any], selects: Sequence[str], resume: bool):
        self._run, self._config, self._selects = run, _options(config), tuple(selects)
        self._feeds = [_Feed(name, run.path) for name in names]
        self._begun = False
        self.status = "failed"
        """How the run has ended, as far as is known."""
        if not resume:
            self._begin(0)

    def _begin(self, first: int) -> None:
        """Of a run that goes on once it is known with which epoch."""
        self._begun = True
        if not self._feeds:
            return
        earlier = [(row["epoch"], values_of(row)) for row in self._run.metrics.rows()[:first]] if first else []
        for feed in self._feeds:
            feed.begin(first, dict(self._config), self._selects, earlier)

    def before(self, then: Callable[[dict[str, Any]], None] | None) -> Callable[[dict[str, Any]], None] | None:
        """What hands a line of metrics.jsonl on, and then to somebody else."""
        if not self._feeds:
            return then

        def told(row: dict[str, Any]) -> None:
            self.epoch(row)
            if then is not None:
                then(row)

        return told

    def epoch(self, row: dict[str, Any]) -> None:
        """Hands a line of metrics.jsonl on."""
        if not self._begun:
            self._begin(row["epoch"])
        for feed in self._feeds:
            feed.log(row["epoch"], values_of(row))
            feed.complain()

    def final(self, fit: Fit, reports: dict[str, Report]) -> None:
        """Hands the final evaluation of a finished run on."""
        self.status = "finished"
        if not self._begun:
            self._begin(fit.epochs)
        values = {
            f"final/{part}/{name}": value for part, means in means_of(reports).items() for name, value in means.items()
        }
        if fit.best_epoch is not None:
            values["final/best_epoch"] = fit.best_epoch
        for feed in self._feeds:
            feed.log(max(fit.epochs - 1, 0), _finite(values), always=True)

    def end(self) -> None:
        """Waits until the trackers are done, as long as they do something."""
        until, patience = time.monotonic() + MOST, PATIENCE[self.status]
        for feed in self._feeds:
            feed.end(self.status)
        for feed in self._feeds:
            try:
                feed.wait(patience, until)
            except KeyboardInterrupt:  # the run has ended: whoever is tired of waiting takes nothing from it
                patience = 0.0
                feed.wait(patience, until)
            feed.complain()


@contextmanager
def watching(
    names: Sequence[str], run: Run, config: Mapping[str, Any], selects: Sequence[str], resume: bool
) -> Iterator[Watch]:
    """The trackers of a run while it trains, told how it ends."""
    watch = Watch(names, run, config, selects, resume)
    try:
        yield watch
    except KeyboardInterrupt:  # at once
        raise
    except BaseException:
        watch.status = "failed"
        watch.end()
        raise
    watch.end()


class _Feed:
    """One tracker, its thread, and what it is still to be told."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self._next = 0
        self._calls: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._failure: tuple[str, BaseException] | None = None
        self._told = False
        self._moved = time.monotonic()
        self._done = threading.Event()  # joining a thread is not safe from Ctrl-C: it is taken for dead then
        self._thread = threading.Thread(target=self._work, name=f"kdrs-{name}", daemon=True)
        self._tracker: Any = None
        self._watched: Watched | None = None

    def begin(
        self, first: int, config: dict[str, Option], selects: tuple[str, ...], earlier: list[tuple[int, Values]]
    ) -> None:
        def call() -> None:
            self._tracker = tracker_class(self.name)()
            folder: Callable[[str], Path] = lambda name: own_folder(self.path / name)
            kept = dict(read_record(self._file, Kept).state) if os.path.lexists(self._file) else {}
            self._watched = Watched(self.path, os.path.normpath(self.path), first, selects, folder, kept)
            wanted = self._tracker.begin(self._watched, config)
            self._keep()
            self._next = first if wanted is None else int(wanted)
            for step, values in earlier:
                if step >= self._next:
                    self._tracker.log(step, values)
                    self._moved = time.monotonic()

        self._calls.put(("beginning", call))
        self._thread.start()

    def log(self, step: int, values: Values, *, always: bool = False) -> None:
        def call() -> None:
            if always or step >= self._next:
                self._tracker.log(step, values)

        if self._failure is None:
            self._calls.put((f"epoch {step}", call))

    def end(self, status: str) -> None:
        def call() -> None:
            self._tracker.end(status)
            self._keep()

        self._calls.put(("its end", call))
        self._calls.put(None)

    def _keep(self) -> None:
        """Writes what the tracker wants to find in the next session."""
        assert self._watched is not None
        if self._watched.kept:
            own_folder(self._file.parent)
            write_json(self._file, {"state": {str(key): str(value) for key, value in self._watched.kept.items()}})

    @property
    def _file(self) -> Path:
        return self.path / "trackers" / (re.sub(r"[^A-Za-z0-9_.-]+", "-", self.name) + ".json")

    def _work(self) -> None:
        try:
            self._obey()
        finally:
            self._done.set()

    def _obey(self) -> None:
        while (task := self._calls.get()) is not None:
            what, call = task
            try:
                call()
            except BaseException as error:  # whatever it is, SystemExit included: the run is not concerned
                self._failure = (what, error)
                return
            self._moved = time.monotonic()

    def complain(self) -> None:
        """Warns of what has gone wrong, once, in the thread of the run."""
        if self._failure is None or self._told:
            return
        self._told = True
        what, error = self._failure
        said = error.cause if isinstance(error, KdrsError) else f"{type(error).__name__}: {error}"
        warnings.warn(
            f"the tracker {shown(self.name)} failed ({what}): {shown(said, 300)}. It is left out from here on; the run goes "
            "on, and all is in its metrics.jsonl",
            stacklevel=2,
        )

    def wait(self, patience: float, until: float) -> None:
        """Until it is done, has done nothing for so many seconds, or a time is reached."""
        if self._thread.ident is None:  # a run that failed before it was begun
            return
        self._moved = time.monotonic()
        while not self._done.is_set():
            left = min(self._moved + patience, until) - time.monotonic()
            if left <= 0:
                warnings.warn(
                    f"the tracker {shown(self.name)} does not answer: it may lack the last epochs, and all is in the run's "
                    "metrics.jsonl",
                    stacklevel=2,
                )
                return
            self._done.wait(min(left, 1.0))


def _options(config: Mapping[str, Any]) -> dict[str, Option]:
    """The options by their names with dots; lists as JSON."""
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in flat(without_none(config)).items()
    }


def values_of(row: Mapping[str, Any]) -> Values:
    """The numbers of a line of metrics.jsonl by the names that trackers get."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if key != "epoch":
            of_part = isinstance(value, Mapping) and key.rpartition(".")[2] in ("valid", "test")
            found |= _by_slash(value, key if of_part else f"train/{key}")
    return _finite(found)


def _by_slash(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {key: one for inner, entry in value.items() for key, one in _by_slash(entry, f"{name}/{inner}").items()}


def _finite(values: Mapping[str, Any]) -> Values:
    """Numbers alone: NaN and infinity, means over nothing, are left out."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
