"""kdrs: knowledge distillation for recommender systems.

Everything public is reached from here; nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_PUBLIC = {
    "Batch": "kdrs.training.queries",
    "Codes": "kdrs.core.codes",
    "Dataset": "kdrs.data",
    "DotView": "kdrs.training.view",
    "Entry": "kdrs.comparison.compare",
    "Evaluator": "kdrs.evaluation.evaluator",
    "Factors": "kdrs.training.view",
    "FileTeacher": "kdrs.teachers.file",
    "Interactions": "kdrs.data",
    "ItemTask": "kdrs.training.rows",
    "Learner": "kdrs.fitting.learner",
    "ModelTeacher": "kdrs.teachers.model",
    "Names": "kdrs.core.names",
    "PairTask": "kdrs.training.pairs",
    "Queries": "kdrs.training.queries",
    "Report": "kdrs.evaluation.report",
    "RunConfig": "kdrs.runs.config",
    "Recommendations": "kdrs.student",
    "Selection": "kdrs.evaluation.protocols",
    "SequenceTask": "kdrs.training.sequences",
    "Student": "kdrs.student",
    "Term": "kdrs.fitting.learner",
    "UserTask": "kdrs.training.rows",
    "View": "kdrs.training.view",
    "compare": "kdrs.comparison.compare",
    "compare_runs": "kdrs.runs.compared",
    "compress": "kdrs.runs.compress",
    "execute": "kdrs.runs.execute",
    "export": "kdrs.runs.export",
    "fit": "kdrs.fitting.fit",
    "import_teacher": "kdrs.runs.importing",
    "load_run": "kdrs.runs.opened",
    "overlap": "kdrs.evaluation.lists",
    "popularity": "kdrs.evaluation.lists",
    "resolve": "kdrs.runs.config",
    "save_teacher": "kdrs.teachers.saving",
    "scoring_seconds": "kdrs.comparison.compare",
}
"""Names and the modules that have them."""
_MODULES = {
    "data": "kdrs.data",
    "distillers": "kdrs.distillers",
    "errors": "kdrs.errors",
    "kernels": "kdrs.core.kernels",
    "losses": "kdrs.training.losses",
    "models": "kdrs.models",
    "protocols": "kdrs.evaluation.protocols",
    "ranking": "kdrs.core.ranking",
    "sampling": "kdrs.core.sampling",
    "significance": "kdrs.evaluation.significance",
    "trackers": "kdrs.tracking",
}
"""Modules by their short names."""

if TYPE_CHECKING:
    from kdrs import data, distillers, errors, models
    from kdrs import tracking as trackers
    from kdrs.comparison.compare import Entry, compare, scoring_seconds
    from kdrs.core import kernels, ranking, sampling
    from kdrs.core.codes import Codes
    from kdrs.core.names import Names
    from kdrs.data import Dataset, Interactions
    from kdrs.evaluation import protocols, significance
    from kdrs.evaluation.evaluator import Evaluator
    from kdrs.evaluation.lists import overlap, popularity
    from kdrs.evaluation.protocols import Selection
    from kdrs.evaluation.report import Report
    from kdrs.fitting.fit import fit
    from kdrs.fitting.learner import Learner, Term
    from kdrs.runs.compared import compare_runs
    from kdrs.runs.compress import compress
    from kdrs.runs.config import RunConfig, resolve
    from kdrs.runs.execute import execute
    from kdrs.runs.export import export
    from kdrs.runs.importing import import_teacher
    from kdrs.runs.opened import load_run
    from kdrs.student import Recommendations, Student
    from kdrs.teachers.file import FileTeacher
    from kdrs.teachers.model import ModelTeacher
    from kdrs.teachers.saving import save_teacher
    from kdrs.training import losses
    from kdrs.training.pairs import PairTask
    from kdrs.training.queries import Batch, Queries
    from kdrs.training.rows import ItemTask, UserTask
    from kdrs.training.sequences import SequenceTask
    from kdrs.training.view import DotView, Factors, View

__all__ = [
    "Batch", "Codes", "Dataset", "DotView", "Entry", "Evaluator", "Factors", "FileTeacher", "Interactions", "ItemTask",
    "Learner", "ModelTeacher", "Names", "PairTask", "Queries", "Recommendations", "Report", "RunConfig", "Selection",
    "SequenceTask", "Student", "Term", "UserTask", "View", "__version__", "compare", "compare_runs", "compress", "data",
    "distillers", "errors", "execute", "export", "fit", "import_teacher", "kernels", "load_run", "losses", "models",
    "overlap", "popularity", "protocols", "ranking", "resolve", "sampling", "save_teacher", "scoring_seconds",
    "significance", "trackers",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    place = _PUBLIC.get(name) or _MODULES.get(name)
    if place is None:
        raise AttributeError(f"module 'kdrs' has no attribute {name!r}")
    try:
        module = import_module(place)
    except ModuleNotFoundError as error:
        from kdrs._libraries import missing

        raise missing(error, f"kdrs.{name}") or error from None
    return getattr(module, name) if name in _PUBLIC else module


def __dir__() -> list[str]:
    return sorted(__all__)
