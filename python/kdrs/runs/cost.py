"""What a run costs beside plain training of its model: told as soon as its first batches are done."""

from __future__ import annotations

import time
import warnings

from kdrs.distillers.base import seeded
from kdrs.fitting.fit import flushing_subnormals, step_of
from kdrs.fitting.learner import Learner
from kdrs.runs.build import build_model
from kdrs.runs.config import RunConfig
from kdrs.training.queries import Epoch, Task

DEAR = 10
"""Times the cost of plain training from which on a run is warned of."""
STEPS, WARM, SECONDS = 30, 3, 1.0
"""Batches of plain training that are timed at most, those before them that are not, and how long it may take."""


def plain_seconds(config: RunConfig, task: Task) -> float:
    """Seconds a batch that the run's model takes when it is trained alone, on a copy of its own."""
    train = config.train
    with seeded(train.seed), flushing_subnormals():
        learner = Learner(
            build_model(config, task), task, lr=train.lr, weight_decay=train.weight_decay, optimizer=train.optimizer
        )
        epoch = Epoch(0, train.seed, train.epochs)
        learner.start(epoch, [])
        began, done = time.perf_counter(), 0
        first = began
        for batch in task.draw(epoch):
            step_of([learner], batch)
            done += 1
            if done == WARM:
                first = time.perf_counter()
            if done == WARM + STEPS or time.perf_counter() - began > SECONDS:
                break
        ended = time.perf_counter()
        learner.finish()
    return (ended - first) / (done - WARM) if done > WARM else (ended - began) / max(done, 1)


def warn_if_dear(config: RunConfig, task: Task, plain: float, seconds: float) -> None:
    """Warns of a run whose batches take ``seconds`` each and ``plain`` ones without its terms, if that is much more."""
    if seconds <= DEAR * plain:
        return
    epoch, alone = seconds * task.n_batches, plain * task.n_batches
    whole = _duration(epoch * config.train.epochs)
    warnings.warn(
        f"an epoch takes about {_duration(epoch)}, {seconds / plain:.0f} times what the model alone takes "
        f"({_duration(alone)}); up to {config.train.epochs:,} epochs are {whole}. Fewer epochs, or another of: kdrs methods",
        stacklevel=2,
    )


def _duration(seconds: float) -> str:
    """``0.12 s``, ``45 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
