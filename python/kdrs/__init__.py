"""kdrs: knowledge distillation for recommender systems.

Everything public is reached from here; nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Batch": "kdrs.tasks",
    "Dataset": "kdrs.data",
    "DotView": "kdrs.view",
    "Entry": "kdrs.report",
    "Evaluator": "kdrs.evaluate",
    "Factors": "kdrs.view",
    "FileTeacher": "kdrs.teachers",
    "Interactions": "kdrs.data",
    "ItemTask": "kdrs.tasks",
    "Learner": "kdrs.train",
    "ModelTeacher": "kdrs.teachers",
    "PairTask": "kdrs.tasks",
    "Queries": "kdrs.tasks",
    "Report": "kdrs.evaluate",
    "RunConfig": "kdrs.config",
    "Selection": "kdrs.protocols",
    "SequenceTask": "kdrs.tasks",
    "Term": "kdrs.train",
    "UserTask": "kdrs.tasks",
    "View": "kdrs.view",
    "compare": "kdrs.report",
    "execute": "kdrs.pipeline",
    "fit": "kdrs.train",
    "load_run": "kdrs.pipeline",
    "overlap": "kdrs.evaluate",
    "popularity": "kdrs.evaluate",
    "resolve": "kdrs.config",
    "scoring_seconds": "kdrs.report",
}
_MODULES = (
    "data",
    "distillers",
    "errors",
    "kernels",
    "losses",
    "models",
    "protocols",
    "ranking",
    "report",
    "sampling",
    "significance",
)

if TYPE_CHECKING:
    from kdrs import (
        data,
        distillers,
        errors,
        kernels,
        losses,
        models,
        protocols,
        ranking,
        report,
        sampling,
        significance,
    )
    from kdrs.config import RunConfig, resolve
    from kdrs.data import Dataset, Interactions
    from kdrs.evaluate import Evaluator, Report, overlap, popularity
    from kdrs.pipeline import execute, load_run
    from kdrs.protocols import Selection
    from kdrs.report import Entry, compare, scoring_seconds
    from kdrs.tasks import Batch, ItemTask, PairTask, Queries, SequenceTask, UserTask
    from kdrs.teachers import FileTeacher, ModelTeacher
    from kdrs.train import Learner, Term, fit
    from kdrs.view import DotView, Factors, View

__all__ = [
    "Batch", "Dataset", "DotView", "Entry", "Evaluator", "Factors", "FileTeacher", "Interactions", "ItemTask",
    "Learner", "ModelTeacher", "PairTask", "Queries", "Report", "RunConfig", "Selection", "SequenceTask", "Term",
    "UserTask", "View", "__version__", "compare", "data", "distillers", "errors", "execute", "fit", "kernels",
    "load_run", "losses", "models", "overlap", "popularity", "protocols", "ranking", "report", "resolve", "sampling",
    "scoring_seconds", "significance",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return import_module(f"kdrs.{name}")
    raise AttributeError(f"module 'kdrs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
