"""What is to be made small, however it is given: a run, a teacher file, a teacher, factors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdrs.compact.reduce import singular
from kdrs.core.codes import Codes
from kdrs.core.sampling import array_of
from kdrs.data import Dataset, is_dataset
from kdrs.distillers.rrd import RRD
from kdrs.errors import ConfigError, DataError, MissingKnowledge, quoted, shown
from kdrs.runs.compared import size_of
from kdrs.runs.config import EvalSettings, RunConfig, config_of, resolve
from kdrs.runs.directory import Run
from kdrs.runs.learners import load_teacher
from kdrs.runs.opened import LoadedRun, check_same_data
from kdrs.runs.places import check_there
from kdrs.runs.records import PATH
from kdrs.runs.start import plain_factors, vectors_of
from kdrs.student import file
from kdrs.teachers.base import Teacher
from kdrs.teachers.file import FileTeacher, trajectory_files
from kdrs.training.rows import UserTask


@dataclass
class Source:
    """What is to be made small, however it was given."""

    name: str
    teacher: Teacher | None
    data: Dataset | None = None
    path: str | None = None
    """Of the data set."""
    own: RunConfig | None = None
    plain: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None

    @classmethod
    def of(cls, source: Any, dataset: Dataset | str | Path | None) -> Source:
        data = dataset if isinstance(dataset, Dataset) or dataset is None else Dataset.load(dataset)
        path = None if dataset is None or isinstance(dataset, Dataset) else str(dataset)
        if isinstance(source, str | Path):
            place = Path(source)
            check_there([place])
            if place.is_file() and (place.parent / "config.toml").is_file():
                raise ConfigError(
                    f"{shown(str(place), PATH)} is a file of a run",
                    f"name the run: kdrs compress {quoted(place.parent)}",
                )
            if file.is_one(place):
                raise ConfigError(
                    f"{shown(str(place), PATH)} is an exported student", "name the run that it was made of"
                )
            if place.is_dir() and (is_dataset(place) or not trajectory_files(place)):
                run = Run.open(place)
                where = config_of(run).data.path
                if data is None and not os.path.lexists(where):
                    raise DataError(
                        f"the data set of {shown(str(place), PATH)} is not at {shown(where, PATH)}",
                        "give it with --data",
                    )
                opened = LoadedRun.open(place, data)
                return cls(
                    str(place),
                    opened.teacher(UserTask(opened.dataset.train)),
                    opened.dataset,
                    path or opened.config.data.path,
                    opened.config,
                )
            if data is None:
                raise ConfigError(
                    f"{shown(str(place))} is a teacher file, and the data set is unknown", "give it with --data"
                )
            return cls(str(place), load_teacher(place, data, UserTask(data.train)), data, path)
        if isinstance(source, LoadedRun):
            if data is not None:
                check_same_data(source.run, data)
            inner = source.teacher(UserTask(source.dataset.train))
            return cls(str(source.run.path), inner, source.dataset, source.config.data.path, source.config)
        if isinstance(source, tuple | list) and len(source) in (2, 3):
            if data is not None:
                raise ConfigError(
                    "factors are given with a data set, whose order of users and items nothing vouches for",
                    "write them to a teacher file, in the data set's order, and compress that",
                )
            return cls("factors", None, plain=_arrays(source))
        if callable(getattr(source, "topk_blocks", None)):
            if data is None:
                raise ConfigError("a teacher is given without its data set", "give it: dataset=")
            return cls(str(source.name), source, data, path)
        raise ConfigError(
            f"{type(source).__name__} cannot be compressed",
            "give a run directory, a teacher file, a Teacher or factors",
        )

    @property
    def dataset(self) -> Dataset:
        assert self.data is not None
        return self.data

    @property
    def n_bytes(self) -> int | None:
        return None if self.teacher is None else size_of(self.teacher, self.dataset)[1]

    def config(self, protocol_name: str | None, threads: int | None) -> RunConfig:
        found = self.own or resolve({"data": {"path": self.path or ""}, "model": {"name": "bpr"}})
        if protocol_name is not None:
            found = found.model_copy(update={"eval": EvalSettings(protocol=protocol_name)})
        return found if threads is None else found.model_copy(update={"threads": threads})

    def vectors(self, dim: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Users, items and bias, of ``dim`` dimensions where it is given."""
        if self.plain is None:
            assert self.teacher is not None
            factors = self.teacher.factors()
            if factors is None:
                if isinstance(self.teacher, FileTeacher):
                    if "users" not in self.teacher.sides:
                        self.teacher.check_scores()  # says what it lacks
                    way = distil_lists(self.teacher, self.path, "--set model.bits=2 ")
                    raise MissingKnowledge(
                        f"{shown(self.name, PATH)} holds lists alone, no scores of all items",
                        f"export its vectors; or distil from its lists: {way}",
                    )
                users, items = vectors_of(self.teacher, dim)
                return users, items, None
            users, items, bias = plain_factors(factors)
            users = users[: self.dataset.n_users]
        else:
            users, items, bias = self.plain
        if dim is not None and dim < users.shape[1]:
            users, items = singular(users, items, dim)
        elif dim is not None and dim > users.shape[1]:
            raise ConfigError(f"dim is {dim}; {shown(self.name)} has {users.shape[1]}", "ask for as many or fewer")
        return users, items, bias


def distil_lists(teacher: FileTeacher, data: str | None, more: str = "") -> str:
    """The command that distils a student from a teacher of lists alone; ``more`` options end with a blank."""
    known = "DATA" if data is None else quoted(data)
    return (
        f"kdrs distill --data {known} --teacher {quoted(teacher.name)} --method rrd {pool_of(teacher.n_listed)}--model bpr "
        f"--dim 16 {more}--out STUDENT"
    )


def pool_of(listed: int | None) -> str:
    """The option of rrd, with a blank behind it, where ``listed`` items a user are fewer than it asks for; else nothing."""
    return "" if listed is None or listed >= RRD.Config().pool else f"--set distill.0.pool={listed} "


def _arrays(factors: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    users, items = (
        side.vectors() if isinstance(side, Codes) else array_of(side, name, np.float32, 2)
        for side, name in zip(factors[:2], ("users", "items"), strict=True)
    )
    bias = None if len(factors) == 2 or factors[2] is None else array_of(factors[2], "bias", np.float32, 1)
    if users.shape[1] != items.shape[1] or (bias is not None and len(bias) != len(items)):
        raise DataError(
            f"users are {users.shape}, items {items.shape}" + ("" if bias is None else f", the bias {bias.shape}"),
            "allowed: [U, D], [I, D] and [I]",
        )
    for side, name in ((users, "users"), (items, "items"), (bias, "bias")):
        if side is not None and not np.isfinite(side).all():
            raise DataError(f"{name} hold NaN or infinity", "all values must be finite: look for a diverged model")
    return users, items, bias
