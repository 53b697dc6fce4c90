"""kdrs: knowledge distillation for recommender systems.

Everything public is reached from here; nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Dataset": "kdrs.data",
    "Evaluator": "kdrs.evaluate",
    "FileTeacher": "kdrs.teachers",
    "Interactions": "kdrs.data",
    "Learner": "kdrs.train",
    "ModelTeacher": "kdrs.teachers",
    "PairTask": "kdrs.tasks",
    "Report": "kdrs.evaluate",
    "RunConfig": "kdrs.config",
    "Selection": "kdrs.protocols",
    "SequenceTask": "kdrs.tasks",
    "Term": "kdrs.train",
    "execute": "kdrs.pipeline",
    "fit": "kdrs.train",
    "load_run": "kdrs.pipeline",
    "resolve": "kdrs.config",
}
_MODULES = (
    "data",
    "distillers",
    "errors",
    "losses",
    "models",
    "protocols",
    "ranking",
    "report",
    "sampling",
    "significance",
)

if TYPE_CHECKING:
    from kdrs import data, distillers, errors, losses, models, protocols, ranking, report, sampling, significance
    from kdrs.config import RunConfig, resolve
    from kdrs.data import Dataset, Interactions
    from kdrs.evaluate import Evaluator, Report
    from kdrs.pipeline import execute, load_run
    from kdrs.protocols import Selection
    from kdrs.tasks import PairTask, SequenceTask
    from kdrs.teachers import FileTeacher, ModelTeacher
    from kdrs.train import Learner, Term, fit

__all__ = [
    "Dataset", "Evaluator", "FileTeacher", "Interactions", "Learner", "ModelTeacher", "PairTask", "Report", "RunConfig",
    "Selection", "SequenceTask", "Term", "__version__", "data", "distillers", "errors", "execute", "fit", "load_run", "losses",
    "models", "protocols", "ranking", "report", "resolve", "sampling", "significance",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return import_module(f"kdrs.{name}")
    raise AttributeError(f"module 'kdrs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
