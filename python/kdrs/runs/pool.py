"""Several runs at once, each in a process of its own."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as ended_of
from pathlib import Path
from typing import Any

from kdrs import plugins
from kdrs._launch import check_launched
from kdrs.errors import ConfigError, KdrsError, MachineError, TrainingError, is_panic, shown
from kdrs.runs.config import RunConfig
from kdrs.runs.execute import execute

MOST_JOBS = 256


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    stopped: str = ""
    """What stopped the training; ``interrupted`` where it can go on."""
    error: Exception | None = None
    warnings: list[str] = field(default_factory=list)


def check_jobs(jobs: int) -> None:
    """Raises ``ConfigError`` for a number of processes that cannot be had, and in one of several that was not told all that it
    must know: else every run would say so."""
    check_launched()
    if not 1 <= jobs <= MOST_JOBS:
        raise ConfigError(f"--jobs is {jobs}", f"allowed: 1 to {MOST_JOBS}")


def share_of(config: RunConfig, jobs: int) -> RunConfig:
    """The run with its share of the processors, where it states no number of threads and others train beside it."""
    if jobs == 1 or config.threads is not None:
        return config
    return config.model_copy(update={"threads": max(1, _processors() // jobs)})


def carry(config: RunConfig, place: Path, resume: bool, should_stop: Callable[[], bool], **hooks: Any) -> Ended:
    """One run, whose failure is an answer and no end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        stopped, error = "", None
        try:
            stopped = execute(config, place, resume=resume, should_stop=should_stop, **hooks).fit.stopped
        except Exception as failure:
            error = failure
        except BaseException as failure:
            if not is_panic(failure):
                raise
            error = TrainingError(f"internal: the core panicked: {shown(str(failure), 500)}")
    said = [str(w.message) for w in caught if w.category is UserWarning]
    return Ended(stopped, error, list(dict.fromkeys(said)))


class Pool:
    """Carries runs out, ``jobs`` at a time; with one job in this process. Made by `opened`."""

    def __init__(self, jobs: int, should_stop: Callable[[], bool], executor: ProcessPoolExecutor | None, stop: Any):
        self.jobs = jobs
        self._should_stop = should_stop
        self._executor = executor
        self._stop = stop
        self._begun: dict[Future[Ended], Any] = {}

    def start(self, name: Any, config: RunConfig, place: Path, resume: bool) -> None:
        """Begins a run; `next_ended` gives its ``name`` back."""
        config = share_of(config, self.jobs)
        if self._executor is None:
            future: Future[Ended] = Future()
            future.set_result(carry(config, place, resume, self._should_stop))
        else:
            try:
                with _signals_held():  # a process may begin now, and knows of no signals until `_begin`
                    future = self._executor.submit(_in_child, config, place, resume)
            except BrokenProcessPool:
                raise _killed() from None
        self._begun[future] = name

    @property
    def free(self) -> int:
        """How many more can begin."""
        return self.jobs - len(self._begun)

    def next_ended(self, seconds: float | None = None) -> list[tuple[Any, Ended]]:
        """Waits until a run has ended, at most so many seconds: names and how they ended. Empty where none has. Raises
        ``MachineError`` if a process was killed."""
        while self._begun:
            if self._should_stop() and self._stop is not None:
                self._stop.set()
            step = 0.2 if seconds is None else min(seconds, 0.2)
            done, _ = wait(self._begun, timeout=step, return_when=FIRST_COMPLETED)
            if done:
                try:
                    return [(self._begun.pop(future), future.result()) for future in done]
                except BrokenProcessPool:
                    raise _killed() from None
            if seconds is not None:
                seconds -= step
                if seconds <= 0:
                    return []
        return []


@contextmanager
def opened(jobs: int, should_stop: Callable[[], bool] | None) -> Iterator[Pool]:
    """A pool. Whatever ends the block early ends its processes too; their checkpoints stay."""
    check_jobs(jobs)
    asked = should_stop or (lambda: False)
    if jobs == 1:
        yield Pool(jobs, asked, None, None)
        return
    context = get_context("spawn")  # torch's threads and the core's survive no fork
    stop, end = context.Event(), context.Event()
    with ProcessPoolExecutor(jobs, context, _begin, (stop, end, plugins.folders())) as executor:
        try:
            yield Pool(jobs, asked, executor, stop)
        except BaseException:
            end.set()
            raise


@contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait meanwhile. A process that begins inside inherits that, and so they do not end it while it
    imports; this one gets them at the end."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_stopped: Any = None


def _begin(stop: Any, end: Any, folders: tuple[str, ...]) -> None:
    """In a new process: Ctrl-C is for the one that began it, and without that it ends."""
    global _stopped
    _stopped = stop
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    plugins.look_in(*folders)
    parent = parent_process()

    def watch() -> None:
        while not end.wait(0.2):
            if parent is not None and ended_of([parent.sentinel], timeout=0):
                break
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_child(config: RunConfig, place: Path, resume: bool) -> Ended:
    ended = carry(config, place, resume, _stopped.is_set)
    if ended.error is None or isinstance(ended.error, KdrsError):
        return ended
    # whatever else it is may not survive the way between processes; it is no fault of the run's options
    said = shown(f"{type(ended.error).__name__}: {ended.error}", 500)
    if isinstance(ended.error, (MemoryError, OSError)):
        return Ended(
            ended.stopped, MachineError(said, "fewer --jobs, a smaller batch or model, or more space"), ended.warnings
        )
    return Ended(
        ended.stopped,
        KdrsError(f"internal: {said}", "one job alone shows the traceback: kdrs --debug ..."),
        ended.warnings,
    )


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _killed() -> MachineError:
    return MachineError(
        "a process that trained was killed, perhaps for memory",
        "take fewer --jobs, then the same command with --resume",
    )
