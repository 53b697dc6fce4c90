"""Finished runs evaluated anew and compared."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdrs._parts import digest
from kdrs.compact.tables import Tables
from kdrs.comparison.compare import Comparison, Entry, checked_metrics, compare, scoring_seconds
from kdrs.core.ranking import Ranking
from kdrs.data import Dataset
from kdrs.data.titles import read_titles
from kdrs.errors import ConfigError, DataError, shown
from kdrs.evaluation.curves import doubts_of
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.lists import overlap
from kdrs.evaluation.portions import Portion
from kdrs.evaluation.protocols import Selection, cutoff
from kdrs.models.stored import StoredModel
from kdrs.runs.background import background_of, traits_of
from kdrs.runs.build import build_evaluator, choose_protocol, choose_selection
from kdrs.runs.card import doubts_in, model_in_words, sentences_of
from kdrs.runs.config import EvalSettings, RunConfig, config_of, resolve, with_seed
from kdrs.runs.directory import Run
from kdrs.runs.files import file_digest
from kdrs.runs.learners import load_teacher
from kdrs.runs.opened import LoadedRun
from kdrs.runs.parts import folder_of, teachers_of
from kdrs.runs.places import check_there, seeds_in
from kdrs.runs.records import PATH
from kdrs.runs.results import held_out
from kdrs.runs.served import ServedStudent, is_student, protocol_of
from kdrs.runs.vouching import MAY_CHANGE, OF_NO_ACCOUNT, difference
from kdrs.teachers.audit import teacher_doubts
from kdrs.teachers.base import Teacher
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.outline import is_outline
from kdrs.training.processes import current
from kdrs.training.rows import UserTask

_SEED = re.compile(r"seed-[0-9]+")
DISAGREES = (
    "no run's lists agree with its lists for the same user more than with those for another user: are its ids in the data "
    "set's order?"
)


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
    page: bool = False,
    item_names: str | Path | None = None,
) -> Comparison:
    """Evaluates finished runs (and teacher files, and student files) anew on one data set and compares them.

    Folders named ``seed-N`` of one parent are seeds of one model, if they differ in their seed and in nothing else that could
    alter the result; others are warned of, and each is compared by itself. The parent stands for all of them. A model is a
    teacher if another run was distilled from it, or from one of its seeds; ``teacher`` and ``baseline`` name others by their
    path. The data set is the first run's unless given; ``protocol_name`` likewise. Files are joined with it by id.
    ``metrics`` may have any K.

    Raises ``ArtefactError`` for runs that are unfinished, damaged or of other data, and for student files that lack some of
    the data set's ids; ``ConfigError`` for a run that is given twice.

    ``page`` adds what only a page shows (`Comparison.page`): groups of queries, and lists for some users. ``item_names`` is a
    file of the items' titles for it (`kdrs.data.titles.read_titles`).
    """
    metrics = None if metrics is None else checked_metrics(metrics)
    paths = with_seeds([Path(run) for run in runs])
    configs, dataset, evaluator = _setting(paths, dataset, protocol_name, threads, metrics)
    titles = None if item_names is None else read_titles(item_names, dataset.items)
    scorers = {path: _scorer(path, dataset) for path in paths}
    models = _models(paths, configs)
    labels = _labels(models)
    names = {place.resolve(): labels[path] for path, model in models.items() for place in (model, path)}
    teacher, baseline = (
        None if name is None else names.get(Path(name).resolve(), name) for name in (teacher, baseline)
    )
    taught_by = {place for path, config in configs.items() for place in teachers_of(config, path)} | _told_by(scorers)
    # of a model whose one seed taught, all seeds are a teacher's
    teachers = {labels[path] for path in paths if path.resolve() in taught_by or _is_peer(path)} | {teacher}
    entries = []
    for path in paths:
        config = configs.get(path)
        scorer = scorers[path]
        role = "teacher" if labels[path] in teachers else _role(scorer, config)
        ready = _lists_of(scorer)
        n_parameters, n_bytes, bytes_per_row = size_of(scorer, dataset)
        selection = choose_selection(config, choose_protocol(config, dataset)) if config is not None else None
        entries.append(
            Entry(
                name=labels[path],
                role=role,
                reports=evaluator(ready or scorer),
                n_parameters=n_parameters,
                n_bytes=n_bytes,
                bytes_per_row=bytes_per_row,
                seconds_per_1000=scoring_seconds(scorer, dataset.train, 50, threads=threads)
                if time_scoring and ready is None  # ready lists take no time, and hold no scores
                else None,
                curve=tuple(Run.open(path).rows()) if path.is_dir() else (),
                seed=config.train.seed if config is not None else None,
                selection=None if selection is None or not dataset.valid.n_pairs else selection.in_words(),
                doubts=_doubts(path, scorer, config, selection, dataset),
            )
        )
    chief = next((labels[path] for path in paths if labels[path] in teachers), None) if teacher is None else teacher
    seeds = {path.resolve(): path for path in paths if labels[path] == chief}
    if seeds:
        usual = next((place for place in seeds if place in taught_by), next(iter(seeds)))
        lists = {path: _first(scorers[path], 10) for path in paths}
        agreed = False
        for at, path in enumerate(paths):
            if labels[path] not in teachers:
                own = teachers_of(configs[path], path) if path in configs else []
                theirs = lists[seeds[next((place for place in own if place in seeds), usual)]]
                shared = overlap(lists[path], theirs)["overlap@10"]
                agreed |= _is_personal(shared, overlap(lists[path], np.roll(theirs, 1, axis=0))["overlap@10"])
                entries[at] = replace(entries[at], agreement={"overlap@10": float(shared.mean())})
            if labels[path] != chief and (doubt := _other_teacher(path, configs.get(path), seeds, names, str(chief))):
                entries[at] = replace(entries[at], doubts=(*entries[at].doubts, doubt))
        if not agreed and not teachers.issuperset(labels.values()):
            at = paths.index(seeds[usual])
            entries[at] = replace(entries[at], doubts=(*entries[at].doubts, DISAGREES))
    page = page and part in evaluator.truths  # else what is missing is told below
    compared = compare(
        entries,
        part=part,
        metrics=metrics,
        teacher=teacher,
        baseline=baseline,
        test=test,
        by=traits_of(dataset, part) if page else (),
    )
    if not page:
        return compared
    first: dict[str, Any] = {}
    for path in sorted(paths, key=lambda path: _seed_of(configs.get(path))):
        first.setdefault(labels[path], _lists_of(scorers[path]) or scorers[path])
    ranked = {line.name: first[line.name] for line in compared.lines}
    several = any(len(line.seeds) > 1 for line in compared.lines)
    known = background_of(dataset, evaluator, part, ranked, compared.teacher, titles, several)
    said = {labels[path]: _in_words(config) for path, config in configs.items()}
    facts = [(line.name, said[line.name]) for line in compared.lines if line.name in said]
    return replace(compared, background=replace(known, facts=(*known.facts, *facts)))


def with_seeds(paths: Sequence[Path]) -> list[Path]:
    """The same with a folder of ``seed-N`` runs, which is no run itself, as these runs."""
    return [run for path in paths for run in seeds_in(path) or [path]]


def check_comparable(path: str | Path, dataset: Dataset) -> None:
    """Raises what `compare_runs` would raise of a run or a teacher file by itself: damaged, unfinished, of other data."""
    path = Path(path)
    _scorer(path, dataset)
    if path.is_dir():
        run = Run.open(path)
        config_of(run)
        run.rows()


def measured(
    run: str | Path,
    share: tuple[int, int] = (1, 1),
    *,
    dataset: Dataset | None = None,
    protocol_name: str | None = None,
    part: str = "test",
    threads: int | None = None,
) -> tuple[Portion, dict[str, str]]:
    """What share (I, N) of the queries of a held-out part brings for one run or teacher file, and what that follows from, for
    shares to be told apart. Arguments and refusals are those of `compare_runs`."""
    path = Path(run)
    _, dataset, evaluator = _setting([path], dataset, protocol_name, threads)
    scorer = _scorer(path, dataset)
    weights = path / "model.safetensors" if path.is_dir() else path
    rules = [
        repr(getattr(evaluator, name)) for name in ("names", "ties", "mask", "average", "formulas", "leaks", "setting")
    ]
    return evaluator.portion(_lists_of(scorer) or scorer, part, share), {
        "the run": file_digest(weights),
        "the data set": dataset.fingerprint,
        "the protocol": digest(rules),
        "--part": part,
    }


def _setting(
    paths: Sequence[Path],
    dataset: Dataset | None,
    protocol_name: str | None,
    threads: int | None,
    metrics: Sequence[str] | None = None,
) -> tuple[dict[Path, RunConfig], Dataset, Evaluator]:
    """The options of runs, and the data set and the evaluator that all of them are measured with, by ``metrics`` of any K."""
    places = [path.resolve() for path in paths]
    for index, path in enumerate(paths):
        check_there([path])
        if places[index] in places[:index]:
            raise ConfigError(f"{shown(str(path), PATH)} is given twice", "name every run once")
    folders = [path for path in paths if path.is_dir()]
    if not folders and dataset is None:
        raise ConfigError("no run directory is given, so the data set is unknown", "give the data set with --data")
    configs = {path: config_of(Run.open(path)) for path in folders}
    if dataset is None:
        place = configs[folders[0]].data.path
        if not os.path.lexists(place):
            raise DataError(
                f"the data set of {shown(str(folders[0]), PATH)} is not at {shown(place, PATH)}", "give it with --data"
            )
        dataset = Dataset.load(place)
    if not dataset.holds_out:
        raise DataError(
            f"data set {shown(dataset.name)} holds nothing out, so there is nothing to measure",
            "compare the runs of the split that settings were chosen with; a run on all pairs has seen every answer",
        )
    reference = configs[folders[0]] if folders else _of_files(paths)
    if protocol_name is not None:
        reference = reference.model_copy(update={"eval": EvalSettings(protocol=protocol_name)})
    if threads is not None:
        reference = reference.model_copy(update={"threads": threads})
    if (group := current()) is not None:
        group.agree({"data": {"fingerprint": dataset.fingerprint}, "eval": reference.to_dict()["eval"]})
    evaluator = build_evaluator(reference, dataset)
    families = {name.partition("@")[0] for name in evaluator.names}
    asked = {k for name in metrics or () if name.partition("@")[0] in families and (k := cutoff(name))}
    if not asked <= set(evaluator.ks):
        settings = reference.eval.model_copy(update={"ks": tuple(sorted({*evaluator.ks, *asked}))})
        evaluator = build_evaluator(reference.model_copy(update={"eval": settings}), dataset)
    return configs, dataset, evaluator


def _of_files(paths: Sequence[Path]) -> RunConfig:
    """Options to measure files alone with: the protocol of the first student among them, whose card tells it."""
    told = next((protocol_of(path) for path in paths if is_student(path)), "auto")
    return resolve({"data": {"path": ""}, "model": {"name": "bpr"}, "eval": {"protocol": told}})


def _seed_of(config: RunConfig | None) -> int:
    return -1 if config is None else config.train.seed


def size_of(scorer: Teacher, dataset: Dataset) -> tuple[int | None, int | None, float | None]:
    """Parameters; bytes of all tables, ids left out; bytes a row: what one user or one item takes, the larger of the two.

    Whatever has an entry for each user or for each item belongs to their rows: vectors, biases, scales, all tables of them. Of
    one table of both, as models of graphs have it, the vectors are counted that come of it: they are what is served, and what
    an exported file holds.
    """
    if isinstance(scorer, FileTeacher):
        factors = scorer.factors()
        return (
            None if factors is None else sum(t.numel() for t in factors if t is not None),
            scorer.n_bytes,
            scorer.row_bytes,
        )
    if isinstance(scorer, ServedStudent):
        return scorer.size
    if not isinstance(scorer, ModelTeacher):
        return None, None, None
    if isinstance(scorer.model, StoredModel):
        return scorer.model.n_parameters, scorer.model.nbytes, scorer.model.row_bytes
    tensors = list(scorer.model.state_dict().values())
    n_users, n_items = dataset.n_users, dataset.n_items
    if any(n_users + n_items in tensor.shape for tensor in tensors):
        if is_outline(scorer.task):  # which has shapes alone
            n_numbers = (n_users + n_items) * scorer.dim
            return n_numbers, 4 * n_numbers, 4 * scorer.dim
        if (factors := scorer.factors()) is not None:
            bias = None if factors.bias is None else factors.bias.cpu().numpy()
            served = Tables(factors.items.cpu().numpy(), factors.queries.cpu().numpy(), None, bias)
            return served.n_numbers, served.nbytes, served.row_bytes
    lengths = {n_users}, {n_items, n_items + 1} - {n_users}  # of items there may be one more, for padding
    rows = [
        sum(tensor.nbytes / max(found) for tensor in tensors if (found := own.intersection(tensor.shape)))
        for own in lengths
    ]
    if n_users == n_items:  # whose tables they are cannot be told by their lengths
        factors = scorer.factors()
        rows = [] if factors is None else [factors.items.shape[1] * 4 + (0 if factors.bias is None else 4)]
    n_parameters = sum(parameter.numel() for parameter in scorer.model.parameters())
    return n_parameters, sum(tensor.nbytes for tensor in tensors), max(rows, default=0) or None


def _doubts(
    path: Path, scorer: Teacher, config: RunConfig | None, selection: Selection | None, dataset: Dataset
) -> tuple[str, ...]:
    """Of a run what its report says of its teachers, and its curve; of a teacher file what its scores say, of a student file
    what its card says of the data."""
    if isinstance(scorer, ServedStudent):
        return scorer.doubts()
    if isinstance(scorer, FileTeacher):
        return tuple(teacher_doubts(scorer, {"train": dataset.train, **held_out(dataset)}))
    if config is None or selection is None:
        return ()
    run = Run.open(path)
    stopped = str(run.status().get("stopped", "epochs"))
    told = sentences_of(doubts_in(run))
    return (*told, *doubts_of(run.rows(), selection.metrics[0], stopped=stopped, started=config.start is not None))


def _told_by(scorers: Mapping[Path, Teacher]) -> set[Path]:
    """The teachers of student files among what is compared: their cards tell names, and no places."""
    names = {name for scorer in scorers.values() if isinstance(scorer, ServedStudent) for name in scorer.teachers}
    return {path.resolve() for path in scorers if path.name in names}


def _role(scorer: Teacher, config: RunConfig | None) -> str:
    """Of what no other one was distilled from."""
    if isinstance(scorer, ServedStudent):
        return scorer.role
    if config is None:
        return "teacher"
    return "student" if config.distill or config.compress else "alone"


def _other_teacher(
    path: Path, config: RunConfig | None, seeds: Iterable[Path], names: Mapping[Path, str], chief: str
) -> str | None:
    """Of a student of other teachers than the one that all are measured by, unless it trained them itself. That one is called
    ``chief`` and has ``seeds``; ``names`` are those of all models of the comparison."""
    own = [] if config is None or not config.distill else teachers_of(config, path)
    if not own or set(own) & set(seeds) or any(place.is_relative_to(folder_of(config, path)) for place in own):  # type: ignore[arg-type]
        return None
    # a seed's folder says nothing without its parent's
    said = [f"{one.parent.name}/{one.name}" if _SEED.fullmatch(one.name) else one.name for one in own]
    named = " and ".join(dict.fromkeys(shown(names.get(at, other)) for at, other in zip(own, said, strict=True)))
    return (
        f"it was distilled from {named}, not from {shown(chief)}: the transfer ratio and what is said of the teacher are "
        "about the latter"
    )


def _in_words(config: RunConfig) -> str:
    """What a run is: its model, and how it was made."""
    how = " and ".join(term.method for term in config.distill)
    made = f", by {how}" if how else ", compressed" if config.compress is not None else ""
    return f"{model_in_words(config.model)}{made}"


def _is_personal(own: np.ndarray, others: np.ndarray) -> bool:
    """Whether lists agree more with the teacher's for the same user, by 3 standard errors, than with those for another."""
    more = own - others
    return more.size > 1 and bool(more.mean() > 3 * more.std(ddof=1) / np.sqrt(more.size))


def _lists_of(scorer: Teacher) -> Ranking | None:
    """The ready lists of a teacher that has nothing else."""
    return scorer.lists if isinstance(scorer, FileTeacher) and scorer.factors() is None else None


def _first(scorer: Teacher, k: int) -> np.ndarray:
    """int32 [U, k]: the best items of every user; -1 pads shorter lists."""
    lists = _lists_of(scorer)
    items = scorer.topk(k).items if lists is None else lists.items[:, :k]
    return np.pad(items, ((0, 0), (0, max(0, k - items.shape[1]))), constant_values=-1)


def _is_peer(path: Path) -> bool:
    """Whether a run is a teacher that another one trained along."""
    place = path.resolve()
    return place.parent.name == "peers" and (place.parents[1] / "config.toml").is_file()


def _scorer(path: Path, dataset: Dataset) -> Teacher:
    """A run or a file that answers for the users as of now, whatever it was trained on."""
    if is_student(path):
        return ServedStudent.load(path, dataset)
    users = UserTask(dataset.train)
    if path.is_dir():
        return LoadedRun.open(path, dataset).teacher(users)
    return load_teacher(path, dataset, users)


def _models(paths: Sequence[Path], configs: Mapping[Path, RunConfig]) -> dict[Path, Path]:
    """The folder of the model that each is of: of runs in folders ``seed-N`` their parent, of others itself; and with a
    warning of runs of one parent that are no seeds of one model."""
    models, spelt = {}, dict[Path, Path]()
    for path in paths:
        model = _with_name(path)
        model = _with_name(model.parent) if _is_seed(model) else model
        models[path] = spelt.setdefault(model.resolve(), model)
    for model in spelt.values():
        group = [path for path in paths if models[path] == model]
        for at, path in enumerate(group[1:], 1):
            if (why := _no_seed(path, group[:at], configs)) is not None:
                warnings.warn(f"{why}; each is compared by itself", stacklevel=3)
                models |= {one: _with_name(one) for one in group}
                break
    return models


def _labels(models: Mapping[Path, Path]) -> dict[Path, str]:
    """Short names: the folder's own; whole paths where short ones would collide, and of seeds that are none of one model."""
    short = [model.name for model in dict.fromkeys(models.values())]
    return {
        path: str(model) if short.count(model.name) > 1 or _is_seed(model) else model.name
        for path, model in models.items()
    }


def _is_seed(path: Path) -> bool:
    return path.is_dir() and _SEED.fullmatch(path.name) is not None


def _with_name(path: Path) -> Path:
    """A path that ends in a name, as ``.`` and ``..`` do not."""
    return path if path.name.strip(".") else path.resolve()


def _no_seed(path: Path, others: Sequence[Path], configs: Mapping[Path, RunConfig]) -> str | None:
    """Why a run is no further seed of the model of ``others``: it differs in more than the seed, or not even in that."""
    own, name = configs[path], shown(str(path), PATH)
    for other in others[:1]:
        if (unlike := _unlike(configs[other], own)) is not None:
            key, one, two = unlike
            pair = f"{shown(str(other), PATH)} and {name}"
            return f"{pair} are no seeds of one model: {key} is {shown(one)} in the one, {shown(two)} in the other"
    for other in others:
        if configs[other].train.seed == own.train.seed:
            pair = f"{shown(str(other), PATH)} and {name}"
            return f"{pair} are no two seeds: train.seed is {own.train.seed} in both"
    return None


def _unlike(one: RunConfig, other: RunConfig) -> tuple[str, Any, Any] | None:
    """An option in which two runs differ though all but their seeds should be the same, and what it is in either. Refits have
    the epochs of the runs that they are of, and students without training what validation found for each."""
    may = MAY_CHANGE if one.refit is not None and other.refit is not None else OF_NO_ACCOUNT
    if one.compress is not None and other.compress is not None:
        may = may | {"compress.how"}
    return difference(with_seed(one, other.train.seed).to_dict(), other.to_dict(), paths=False, may_change=may)
