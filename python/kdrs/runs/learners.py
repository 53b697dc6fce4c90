"""Teachers, terms and learners out of a run's options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kdrs.core.sampling import stream
from kdrs.data import Dataset
from kdrs.distillers import distiller_class
from kdrs.errors import ConfigError, KdrsError, shown
from kdrs.fitting.learner import Learner, Term
from kdrs.models.compact import Compact
from kdrs.runs.build import build_model, columns_of, stage_epochs
from kdrs.runs.config import RunConfig, TermSettings
from kdrs.runs.encoded import with_encoded_users
from kdrs.runs.opened import LoadedRun
from kdrs.runs.start import start_model
from kdrs.teachers.base import Stage, Teacher
from kdrs.teachers.file import FileTeacher, trajectory_files
from kdrs.teachers.model import ModelTeacher
from kdrs.training.outline import building
from kdrs.training.queries import Task


def build_term(settings: TermSettings, teachers: dict[str, Teacher], task: Task, dim: int, seed: int) -> Term:
    cls = distiller_class(settings.method)
    own = [teachers[reference] for reference in settings.teacher]
    with building(task):
        distiller = cls(cls.Config(**settings.options), own, task, dim, stream(seed, "term", settings.name))
    if "_parameters" not in vars(distiller):
        raise ConfigError(
            f"{cls.__name__}.__init__ leaves out that of its base class",
            "begin it with super().__init__(config, teachers, task, student_dim, seed)",
        )
    return Term(settings.name, settings.weight, distiller)


def load_teacher(
    reference: str | Path,
    dataset: Dataset,
    task: Task,
    *,
    live: bool = False,
    planned: Mapping[str, Planned] | None = None,
) -> Teacher:
    """A run directory, a teacher file or a folder of such files (stages, the last one itself) as teacher for training on
    ``dataset``; ``live`` for one that is to be trained on. Runs that are still ``planned`` are by their directories.

    Raises ``ArtefactError`` if it is neither, is damaged, or was made for other data.
    """
    path = Path(reference)
    if planned and str(reference) in planned:
        return planned[str(reference)].teacher(task, live=live)
    if trajectory_files(path):
        return FileTeacher.trajectory(path, task, dataset=dataset)
    if path.is_dir():
        return LoadedRun.open(path, dataset, device=task.device).teacher(task, live=live)
    return FileTeacher(path, task, dataset=dataset)


def load_teachers(
    config: RunConfig, dataset: Dataset, task: Task, planned: Mapping[str, Planned] | None = None
) -> dict[str, Teacher]:
    """All teachers that the run's terms name, each loaded once."""
    references = dict.fromkeys(reference for term in config.distill for reference in term.teacher)
    return {reference: load_teacher(reference, dataset, task, planned=planned) for reference in references}


def build_learner(
    config: RunConfig,
    dataset: Dataset,
    task: Task,
    teachers: dict[str, Teacher] | None = None,
    planned: Mapping[str, Planned] | None = None,
) -> Learner:
    """The run's model, terms and optimizer, ready to fit."""
    if teachers is None:
        teachers = load_teachers(config, dataset, task, planned)
    model = build_model(config, task, columns_of(config))
    if config.start is not None:
        start_model(model, config, dataset, task, teachers, planned)
    terms = []
    encoded: dict[str, Teacher] = {}  # each worked out once
    for settings in config.distill:
        known = teachers
        with _naming(settings, len(config.distill)):
            if distiller_class(settings.method).mutual:  # a copy of its own, to be trained on
                known = {
                    name: load_teacher(name, dataset, task, live=True, planned=planned) for name in settings.teacher
                }
            elif settings.teacher_users == "encoded":
                for name in settings.teacher:
                    if name not in encoded:
                        encoded[name] = with_encoded_users(teachers[name], dataset, config)
                known = encoded
            terms.append(build_term(settings, known, task, model.dim, config.train.seed))
    replaced = any(term.weight and term.distiller.replaces_base for term in terms)
    return Learner(
        model,
        task,
        terms,
        base=None if replaced else "model",
        lr=config.train.lr,
        weight_decay=config.train.weight_decay,
        optimizer=config.train.optimizer,
    )


@contextmanager
def _naming(settings: TermSettings, n_terms: int) -> Iterator[None]:
    """Of several terms, says which one an error is about."""
    try:
        yield
    except KdrsError as error:
        if n_terms == 1:
            raise
        raise type(error)(f"term {settings.name}: {error.cause}", error.remedy) from error


@dataclass
class Planned:
    """A run that is still to be carried out: its model has the initial weights, which serve to build what others learn from
    it and to find out beforehand what will not go together."""

    config: RunConfig
    model: nn.Module
    task: Task
    place: Path

    def teacher(self, asked: Task, *, live: bool = False) -> ModelTeacher:
        """As `LoadedRun.teacher`, with the stages that a run of all epochs will keep."""
        train = self.config.train
        if live and isinstance(self.model, Compact):  # what the run will keep is not trained further
            raise ConfigError(
                f"{shown(str(self.place), 300)} will be rounded or have no table of users, and cannot be trained on",
                'leave bits and users out of its model: bits = 32, users = "table"',
            )
        model = build_model(self.config, self.task) if live else self.model
        last, saved = train.epochs - 1, stage_epochs(self.config)
        earlier = [epoch for epoch in saved if epoch < last] or saved[:1]
        stages = [Stage(epoch, lambda: teacher) for epoch in earlier]  # all the same: lists are made once
        teacher = ModelTeacher(
            model.eval(), self.task, asked=asked, name=str(self.place), live=live, stages=stages, epoch=last
        )
        return teacher


def load_learners(
    config: RunConfig, dataset: Dataset, task: Task, planned: Mapping[str, Planned] | None = None
) -> tuple[dict[str, Teacher], list[Learner]]:
    """The teachers, and all learners of a run: its own and those of teachers that are trained along."""
    teachers = load_teachers(config, dataset, task, planned)
    learner = build_learner(config, dataset, task, teachers, planned)
    return teachers, [learner, *learner.counterparts()]
