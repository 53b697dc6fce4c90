"""A finished run, opened again."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdrs._documents import parse_json
from kdrs.data import Dataset, Ids
from kdrs.errors import ArtefactError, KdrsError, MissingKnowledge, shown
from kdrs.evaluation.report import Report
from kdrs.models.stored import StoredModel
from kdrs.plugins import ClassError
from kdrs.runs.build import build_model, build_task, device_of
from kdrs.runs.config import RunConfig, config_of
from kdrs.runs.directory import Run, describe_data
from kdrs.runs.own import needing
from kdrs.runs.records import PATH, RESTORE
from kdrs.runs.reported import load_reports
from kdrs.teachers.base import Stage
from kdrs.teachers.model import ModelTeacher
from kdrs.training.outline import OUTLINE
from kdrs.training.queries import Queries, Task
from kdrs.training.rows import UserTask
from kdrs.training.view import Factors


class Sizes:
    """What a run itself knows of its task: how many users and items there are. Whatever else is asked for is in the data set,
    and asking raises ``MissingKnowledge``."""

    owners = None
    flat = False

    def __init__(self, run: Run, n_users: int, n_items: int, device: torch.device, data_path: str):
        self.n_queries = self.n_users = n_users
        self.n_items, self.device = n_items, device
        self._missing = (
            f"the data set of {shown(str(run.path), PATH)} is not at {shown(data_path)}",
            "put it there, or give it: kdrs.load_run(path, dataset); kdrs eval and compress --data",
        )

    def queries(self, rows: Tensor) -> Queries:
        return Queries(rows, rows)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        cause, remedy = self._missing
        asked = {"seen": "what users have seen in training"}.get(name, f"the task's {name}")
        raise MissingKnowledge(f"{cause}, and {asked} is needed", remedy)


class LoadedRun:
    """A finished run, opened again: its model with the best weights, its options, its ids, and its data set, which need not be
    there any more: then the model still answers for its vectors and scores (`Sizes`)."""

    def __init__(self, run: Run, config: RunConfig, dataset: Dataset | None, model: nn.Module, task: Task):
        self.run, self.config, self.model, self.task = run, config, model, task
        self._dataset = dataset

    @classmethod
    def open(cls, path: str | Path, dataset: Dataset | None = None, *, device: torch.device | None = None) -> LoadedRun:
        """Raises ``ArtefactError`` if the run is unfinished, damaged, or was trained on other data than ``dataset``, and if its
        model computes with training data (graphs, histories) that are not there, or is of a class that is not there. On the
        ``device`` of an outline the model has its shapes and no weights, and of the run's files heads are read."""
        run = Run.open(path)
        config = config_of(run)
        if dataset is None and os.path.lexists(config.data.path):
            dataset = Dataset.load(config.data.path)
        run.check_ids()
        if dataset is not None:
            check_same_data(run, dataset)
        outline = device is not None and device.type == OUTLINE.type
        tensors, metadata = run.load_model(head=outline)
        if "tables" in metadata:  # no class of a model is needed
            if outline:  # small enough to be read
                device, (tensors, metadata) = torch.device("cpu"), run.load_model()
            if dataset is None:
                task = cls._sizes(run, config, device)
            else:
                task = cast("Task", UserTask(dataset.train, device=device or device_of(config.device)))
            return cls(run, config, dataset, stored_model(tensors, metadata["tables"], task, run.path).eval(), task)
        with needing(run):
            if dataset is not None:
                task = build_task(config, dataset, device)
                model: nn.Module = build_model(config, task)
            else:
                task, model = cls._without_data(run, config, device)
        load_weights(model, tensors, run.path)
        model.eval()
        return cls(run, config, dataset, model, task)

    @staticmethod
    def _sizes(run: Run, config: RunConfig, device: torch.device | None) -> Task:
        data = run.data
        sizes = Sizes(run, data["users"], data["items"], device or device_of(config.device), config.data.path)
        return cast("Task", sizes)

    @staticmethod
    def _without_data(run: Run, config: RunConfig, device: torch.device | None) -> tuple[Task, nn.Module]:
        task = LoadedRun._sizes(run, config, device)
        try:
            return task, build_model(config, task)
        except ClassError:
            raise
        except KdrsError as error:
            raise MissingKnowledge(
                f"{config.model['name']} computes with its training data, and the data set of {shown(str(run.path), PATH)} is "
                f"not at {shown(config.data.path)}",
                "put it there, or give it: kdrs.load_run(path, dataset); kdrs eval and compress --data",
            ) from error

    @property
    def dataset(self) -> Dataset:
        """The data set. Raises ``MissingKnowledge`` if it is not where the run was trained and was not given."""
        if self._dataset is None:
            raise MissingKnowledge(
                f"the data set of {shown(str(self.run.path), PATH)} is not at {shown(self.config.data.path)}",
                "put it there, or give it: kdrs.load_run(path, dataset)",
            )
        return self._dataset

    @property
    def users(self) -> Ids:
        """The users' ids, in the order of the rows of ``factors``."""
        return self._ids("users", "user")

    @property
    def items(self) -> Ids:
        """The items' ids."""
        return self._ids("items", "item")

    def _ids(self, kind: str, name: str) -> Ids:
        if self._dataset is not None:
            return cast("Ids", getattr(self._dataset, kind))
        return Ids.from_json((self.run.path / "ids" / f"{kind}.json").read_bytes(), name)

    def factors(self) -> Factors | None:
        """The model as dot-product factors: float32 [U, D], [I, D] and [I] or None; None if its score is no dot product."""
        return self.teacher().factors()

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
        if isinstance(self.model, StoredModel):
            return self.model.n_parameters
        return sum(parameter.numel() for parameter in self.model.parameters())

    def report(self) -> dict[str, Report]:
        """The final evaluation by part, one value a query; no part where nothing was held out."""
        return load_reports(self.run)


def load_run(path: str | Path, dataset: Dataset | None = None) -> LoadedRun:
    """Opens a finished run: ``load_run(p).model``, ``.teacher()``, ``.report()``.

    The data set is taken from where the run was trained unless it is given. Where it is gone, models that need no training
    data to answer (their vectors are weights) open without it.
    """
    return LoadedRun.open(path, dataset)


def stored_model(tensors: dict[str, Tensor], description: str, task: Task, path: Path) -> StoredModel:
    """The compact model of a run's tensors. Raises ``ArtefactError`` where they do not fit."""
    where = shown(str(path / "model.safetensors"), PATH)
    try:
        told = parse_json(description.encode())
    except ValueError:  # what the file says may hide half of a pair, too
        told = None
    if not isinstance(told, dict):
        raise ArtefactError(f"{where} is damaged: what it says of its tables is no JSON", RESTORE)
    return StoredModel.from_tensors(tensors, told, task, where)


def load_weights(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Gives a model a run's weights. Raises ``ArtefactError`` for weights of another model or size, and not finite ones."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (tensor.is_meta or torch.isfinite(tensor).all()):
            raise ArtefactError(
                f"the weights in {shown(str(where), PATH)} are not finite: {shown(name)}", "train the run anew"
            )
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise ArtefactError(
            f"the weights in {shown(str(where), PATH)} do not fit its configuration: {shown(detail, 200)}",
            "restore the run's files from a copy, or train it anew in another folder",
        ) from None


def check_same_data(run: Run, dataset: Dataset) -> None:
    theirs, ours = run.data, describe_data(dataset)
    if theirs["fingerprint"] == ours["fingerprint"]:
        return
    if theirs["digests"] == ours["digests"] and not dataset.holds_out:
        return  # any split's pairs are among these, and none of them is measured by
    if theirs["digests"] != ours["digests"]:
        sizes = [f"{data['users']:,} users, {data['items']:,} items" for data in (theirs, ours)]
        difference = (
            f"{sizes[0]}), not on" if sizes[0] != sizes[1] else f"{sizes[0]}, other ids or in another order), not on"
        )
        raise ArtefactError(
            f"{shown(str(run.path), PATH)} was trained on data set {shown(theirs['name'])} ({difference} {shown(ours['name'])} "
            f"({sizes[1]})",
            "a teacher must know the same users and items in the same order: train it on this data set",
        )
    raise ArtefactError(
        f"{shown(str(run.path), PATH)} was trained on another split of these users and items",
        "its training pairs may be this split's test pairs: train it on this data set",
    )
