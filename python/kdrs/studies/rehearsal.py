"""What a recipe or a study would carry out, built once before anything is trained: shapes alone, no weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdrs.data import Dataset
from kdrs.errors import ConfigError, KdrsError, nearest, shown
from kdrs.evaluation.evaluator import Evaluator
from kdrs.runs.build import build_evaluator
from kdrs.runs.config import EvalSettings, RunConfig
from kdrs.runs.execute import outlined
from kdrs.runs.learners import Planned
from kdrs.studies.plan import Study, parse_study
from kdrs.studies.points import has_optuna


class Rehearsal:
    """Runs and studies in the order in which they learn from each other. Each is built as an outline
    (`kdrs.training.outline.OUTLINE`), and what is built is known to those after it in the place of what is still to be trained.

    What is wrong is raised with the name of its table before it: what `kdrs.runs.execute.plan` refuses, and metrics that no
    evaluation gives.
    """

    def __init__(self, names: Iterable[str] = (), metrics: Iterable[str] = ()):
        self.names, self.metrics = tuple(names), tuple(metrics)
        self._planned: dict[str, Planned] = {}
        self._data: dict[str, Dataset] = {}
        self._evaluators: dict[tuple[str, EvalSettings], Evaluator] = {}

    def run(self, told: str, config: RunConfig, place: Path, printed: Iterable[str] = ()) -> None:
        """A run whose directory is ``place``, and the metrics that are printed for it."""
        with naming(told):
            evaluator = self._build(config, place)
            for key, names in (("metrics", self.metrics), ("printed", printed)):
                self._check(key, names, evaluator)

    def study(self, told: str, values: Mapping[str, Any], place: Path) -> None:
        """A study in ``place``, of plain values."""
        with naming(told):
            study = parse_study(values, sampler="tpe" if has_optuna() else "random", planned=self._planned)
            self.arms(study, place)

    def arms(self, study: Study, place: Path) -> None:
        """A study's arms at their default points, each named before its error."""
        for arm in study.arms:
            config = arm.at({})
            with naming(f"arm {arm.name}"):
                evaluator = self._build(config, place / "best" / arm.name / f"seed-{config.train.seed}")
            self._check("metrics", self.metrics, evaluator)

    def _build(self, config: RunConfig, place: Path) -> Evaluator:
        terms = (*config.distill, *(term for part in config.teachers.values() for term in part.distill))
        for reference in (name for term in terms for name in term.teacher):
            if not (reference in config.teachers or reference in self._planned or Path(reference).exists()):
                raise ConfigError(
                    f"teacher {shown(reference, 300)} is "
                    + ("no run and no study of the recipe, and not there" if self.names else "not there"),
                    nearest(Path(reference).name, self.names) if self.names else "check the path of the teacher",
                )
        if config.data.path not in self._data:
            self._data[config.data.path] = Dataset.load(config.data.path)
        dataset = self._data[config.data.path]
        key = config.data.path, config.eval
        if key not in self._evaluators:
            self._evaluators[key] = build_evaluator(config, dataset)
        evaluator = self._evaluators[key]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when the run begins
            learner = outlined(config, place, dataset, evaluator, self._planned)[0]
        self._planned[str(place)] = Planned(config, learner.model, learner.task, place)
        return evaluator

    @staticmethod
    def _check(key: str, names: Iterable[str], evaluator: Evaluator) -> None:
        """Raises ``ConfigError`` for what would be an empty column of the page, or end the comparison once all is trained."""
        for name in names:
            if name not in evaluator.names:
                raise ConfigError(
                    f"{key} names {shown(name)}, which is not evaluated",
                    f"take some of: {', '.join(evaluator.names)}; eval.ks of the run has the list lengths",
                )


@contextmanager
def naming(told: str) -> Iterator[None]:
    """Puts the name of what is looked at before an error's cause."""
    try:
        yield
    except KdrsError as error:
        raise type(error)(f"{told}: {error.cause}", error.remedy) from error
