"""Trackers: where a run is watched while it goes on. One file each, and the table of them.

**A tracker** is told of a run's beginning, of every epoch and of its end (`Tracker`). It is called in a thread of its own and
can neither stop a run nor change its bytes: ``kdrs.runs.watching`` sees to that. Its package is imported in ``begin``.
"""

from __future__ import annotations

from kdrs.plugins import Kind
from kdrs.tracking.base import Tracker, Watched
from kdrs.tracking.mlflow import MLflow
from kdrs.tracking.tensorboard import TensorBoard
from kdrs.tracking.wandb import WandB

TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}

KIND: Kind[Tracker] = Kind(
    "tracker", "kdrs.trackers", TRACKERS, Tracker, "kdrs.trackers.Tracker", ("begin", "log", "end")
)


def tracker_class(name: str) -> type[Tracker]:
    """The tracker of that name: one of ours, of an installed package (entry points ``kdrs.trackers``), or ``module:Class``.

    Raises `kdrs.plugins.ClassError`, a ``ConfigError``, where there is none, and for a class that is none.
    """
    return KIND.find(name)


__all__ = ["KIND", "TRACKERS", "MLflow", "TensorBoard", "Tracker", "WandB", "Watched", "tracker_class"]
