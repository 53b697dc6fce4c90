"""Finished runs evaluated anew and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kdrs.comparison.compare import Comparison, Entry, compare, scoring_seconds
from kdrs.core.ranking import Ranking
from kdrs.data import Dataset
from kdrs.errors import ArtefactError, ConfigError, shown
from kdrs.evaluation.lists import overlap
from kdrs.runs.build import build_evaluator
from kdrs.runs.config import EvalSettings, resolve
from kdrs.runs.directory import Run
from kdrs.runs.learners import load_teacher
from kdrs.runs.opened import LoadedRun
from kdrs.runs.parts import teachers_of
from kdrs.teachers.base import Teacher
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask


def compare_runs(
    runs: Sequence[str | Path],
    *,
    dataset: Dataset | None = None,
    protocol_name: str | None = None,
    part: str = "test",
    metrics: Sequence[str] | None = None,
    teacher: str | None = None,
    baseline: str | None = None,
    test: str | None = None,
    time_scoring: bool = True,
    threads: int | None = None,
) -> Comparison:
    """Evaluates finished runs (and teacher files) anew on one data set and compares them.

    Folders named ``seed-N`` of one parent are seeds of one model. A run that another one was distilled from is a teacher;
    ``teacher`` and ``baseline`` name others by their path. The data set is the first run's unless given; ``protocol_name``
    likewise. Raises ``ArtefactError`` for runs that are unfinished, damaged or of other data, ``ConfigError`` for a run that is
    given twice.
    """
    paths = [Path(run) for run in runs]
    places = [path.resolve() for path in paths]
    for index, path in enumerate(paths):
        if not path.exists():
            raise ArtefactError(f"there is no run directory or teacher file {shown(str(path))}", "check the path")
        if places[index] in places[:index]:
            raise ConfigError(f"{shown(str(path))} is given twice", "name every run once")
    folders = [path for path in paths if path.is_dir()]
    if not folders and dataset is None:
        raise ConfigError("no run directory is given, so the data set is unknown", "give the data set with --data")
    configs = {path: resolve(Run.open(path).config) for path in folders}
    if dataset is None:
        dataset = Dataset.load(configs[folders[0]].data.path)
    reference = configs[folders[0]] if folders else resolve({"data": {"path": ""}, "model": {"name": "bpr"}})
    if protocol_name is not None:
        reference = reference.model_copy(update={"eval": EvalSettings(protocol=protocol_name)})
    if threads is not None:
        reference = reference.model_copy(update={"threads": threads})
    evaluator = build_evaluator(reference, dataset)
    taught_by = {place for path, config in configs.items() for place in teachers_of(config, path)}
    wanted = {Path(name).resolve() for name in (teacher,) if name is not None}
    labels = _labels(paths)
    scorers: dict[Path, Teacher] = {}
    entries = []
    for path in paths:
        config = configs.get(path)
        is_teacher = path.resolve() in taught_by | wanted or config is None or _is_peer(path)
        role = "teacher" if is_teacher else "student" if config is not None and config.distill else "alone"
        scorers[path] = scorer = _scorer(path, dataset)
        ready = _lists_of(scorer)
        model = scorer.model if isinstance(scorer, ModelTeacher) else None
        factors = scorer.factors()
        size = sum(p.numel() for p in model.parameters()) if model is not None else None
        if size is None and factors is not None:
            size = sum(tensor.numel() for tensor in factors if tensor is not None)
        file = path / "model.safetensors" if path.is_dir() else path
        entries.append(
            Entry(
                name=labels[path],
                role=role,
                reports=evaluator(ready or scorer),
                n_parameters=size,
                n_bytes=file.stat().st_size,
                seconds_per_1000=scoring_seconds(scorer, dataset.train, 50, threads=threads)
                if time_scoring and ready is None  # ready lists take no time, and hold no scores
                else None,
                curve=tuple(Run.open(path).rows()) if path.is_dir() else (),
                seed=config.train.seed if config is not None else None,
            )
        )
    teachers = [path for path, entry in zip(paths, entries, strict=True) if entry.role == "teacher"]
    if teachers:
        theirs = _first(scorers[teachers[0]], 10)
        entries = [
            replace(entry, agreement={"overlap@10": float(overlap(_first(scorers[path], 10), theirs)["overlap@10"].mean())})
            if entry.role != "teacher" else entry
            for path, entry in zip(paths, entries, strict=True)
        ]  # fmt: skip
    names = {path.resolve(): label for path, label in labels.items()}
    return compare(
        entries,
        part=part,
        metrics=metrics,
        teacher=None if teacher is None else names.get(Path(teacher).resolve(), teacher),
        baseline=None if baseline is None else names.get(Path(baseline).resolve(), baseline),
        test=test,
    )


def _lists_of(scorer: Teacher) -> Ranking | None:
    """The ready lists of a teacher that has nothing else."""
    return scorer.lists if isinstance(scorer, FileTeacher) and scorer.factors() is None else None


def _first(scorer: Teacher, k: int) -> np.ndarray:
    """int32 [U, k]: the best items of every user; -1 pads the lists of a teacher that has shorter ones alone."""
    lists = _lists_of(scorer)
    if lists is None:
        return scorer.topk(k).items
    return np.pad(lists.items[:, :k], ((0, 0), (0, max(0, k - lists.items.shape[1]))), constant_values=-1)


def _is_peer(path: Path) -> bool:
    """Whether a run is a teacher that another one trained along."""
    place = path.resolve()
    return place.parent.name == "peers" and (place.parents[1] / "config.toml").is_file()


def _scorer(path: Path, dataset: Dataset) -> Teacher:
    """A run or a teacher file that answers for the users as of now, whatever it was trained on."""
    users = PairTask(dataset.train)
    if path.is_dir():
        return LoadedRun.open(path, dataset).teacher(users)
    return load_teacher(path, dataset, users)


def _labels(paths: Sequence[Path]) -> dict[Path, str]:
    """Short names: the folder's own, or its parent's for ``seed-N``; whole paths where short ones would collide."""
    models = {path: path.parent if path.name.startswith("seed-") else path for path in paths}
    distinct = dict.fromkeys(models.values())
    short = [model.name for model in distinct]
    return {path: model.name if short.count(model.name) == 1 else str(model) for path, model in models.items()}
