"""A finished run, opened again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from kdrs.data import Dataset
from kdrs.errors import ArtefactError, shown
from kdrs.evaluation.report import Report
from kdrs.runs.build import build_model, build_task
from kdrs.runs.config import RunConfig, resolve
from kdrs.runs.directory import Run, describe_data
from kdrs.runs.results import load_reports
from kdrs.teachers.base import Stage
from kdrs.teachers.model import ModelTeacher
from kdrs.training.queries import Task


@dataclass
class LoadedRun:
    """A finished run, opened again: its model with the best weights, its data set, its options."""

    run: Run
    config: RunConfig
    dataset: Dataset
    model: nn.Module
    task: Task

    @classmethod
    def open(cls, path: str | Path, dataset: Dataset | None = None, *, device: torch.device | None = None) -> LoadedRun:
        """Raises ``ArtefactError`` if the run is unfinished, damaged, or was trained on other data than ``dataset``."""
        run = Run.open(path)
        config = resolve(run.config)
        if dataset is None:
            dataset = Dataset.load(config.data.path)
        check_same_data(run, dataset)
        run.check_ids()
        task = build_task(config, dataset, device)
        model = build_model(config, task)
        load_weights(model, run.load_model()[0], run.path)
        model.eval()
        return cls(run, config, dataset, model, task)

    def teacher(self, asked: Task | None = None, *, live: bool = False) -> ModelTeacher:
        """The model as teacher, with the stages that the run kept; ``asked`` is the student's task, which may be another
        kind; ``live`` for one that is to be trained on."""
        best = self.run.status().get("best_epoch")
        best = -1 if best is None else int(best)
        # stages later than the weights that are the teacher itself are of no use
        saved = self.run.stages()
        stages = [Stage(epoch, partial(self._stage, epoch, asked)) for epoch in saved if epoch < best]
        name = str(self.run.path)
        if saved and not stages:  # at its best before the first of them: a trajectory that stands still
            stages = [Stage(best, partial(ModelTeacher, self.model, self.task, asked=asked, name=name, epoch=best))]
        return ModelTeacher(self.model, self.task, asked=asked, name=name, live=live, stages=stages, epoch=best)

    def _stage(self, epoch: int, asked: Task | None) -> ModelTeacher:
        earlier = build_model(self.config, self.task)
        load_weights(earlier, self.run.load_stage(epoch), self.run.path)
        return ModelTeacher(earlier.eval(), self.task, asked=asked, name=f"{self.run.path}@{epoch}", epoch=epoch)

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def report(self) -> dict[str, Report]:
        """The final evaluation by part, one value a query."""
        return load_reports(self.run)


def load_run(path: str | Path, dataset: Dataset | None = None) -> LoadedRun:
    """Opens a finished run: ``load_run(p).model``, ``.teacher()``, ``.report()``.

    The data set is taken from where the run was trained unless it is given.
    """
    return LoadedRun.open(path, dataset)


def load_weights(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise ArtefactError(
            f"the weights in {shown(str(where))} do not fit its configuration: {shown(detail, 200)}",
            "restore the run's files from a copy, or train it anew in another folder",
        ) from None


def check_same_data(run: Run, dataset: Dataset) -> None:
    theirs, ours = run.data, describe_data(dataset)
    if theirs["fingerprint"] == ours["fingerprint"]:
        return
    if theirs["digests"] != ours["digests"]:
        sizes = [f"{data['users']:,} users, {data['items']:,} items" for data in (theirs, ours)]
        difference = (
            f"{sizes[0]}), not on" if sizes[0] != sizes[1] else f"{sizes[0]}, other ids or in another order), not on"
        )
        raise ArtefactError(
            f"{shown(str(run.path))} was trained on data set {shown(theirs['name'])} ({difference} {shown(ours['name'])} "
            f"({sizes[1]})",
            "a teacher must know the same users and items in the same order: train it on this data set",
        )
    raise ArtefactError(
        f"{shown(str(run.path))} was trained on another split of these users and items",
        "its training pairs may be this split's test pairs: train it on this data set",
    )
