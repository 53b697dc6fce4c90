"""A run file carried out: data, model, teachers and terms, training, the final evaluation, all left in a run directory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kdrs.config import EvalSettings, RunConfig, TermSettings, resolve, with_seed
from kdrs.data import Dataset
from kdrs.distillers import distiller_class
from kdrs.distillers.base import seeded
from kdrs.errors import ArtefactError, ConfigError, KdrsError, MachineError, shown
from kdrs.evaluate import Evaluator, Report, overlap, popularity
from kdrs.models import ModelConfig, Recommender, model_class
from kdrs.parts import Part, expand, teachers_of
from kdrs.protocols import Protocol, Selection, protocol
from kdrs.ranking import Ranking
from kdrs.report import Comparison, Entry, compare, scoring_seconds
from kdrs.runs import Run, describe_data, file_digest, write_json
from kdrs.sampling import stream
from kdrs.tasks import PairTask, Task
from kdrs.teachers import FileTeacher, ModelTeacher, Stage, Teacher, trajectory_files
from kdrs.train import Fit, Learner, Term, fit


@dataclass
class Outcome:
    """A finished (or interrupted) run."""

    run: Run
    fit: Fit
    reports: dict[str, Report]
    """By part: ``valid`` and ``test`` of the best weights; empty if the run was interrupted."""
    teachers: dict[str, dict[str, Report]]
    """By teacher and part: the teachers' own quality on this split."""
    part: tuple[str, int] | None = None
    """Of a run that was interrupted while it trained a part: the part, and how many epochs of it are done."""


def device_of(name: str) -> torch.device:
    """The device to compute on. Raises ``MachineError`` for a CUDA device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise MachineError(
            f"device {name!r} is not available: {torch.cuda.device_count()} CUDA devices are seen", "use --device cpu"
        )
    return device


def build_task(config: RunConfig, dataset: Dataset, device: torch.device | None = None) -> Task:
    """The training data in the form that the run's model learns from, on the run's device unless another is given."""
    train = config.train
    cls, options = _model_of(config)
    special: dict[str, Any] = {"never": dataset.full} if train.leak_held_out else {}
    if train.draws != "pairs":
        special["draws"] = train.draws
    return cls.make_task(
        options,
        dataset.train,
        **special,
        order=dataset.order,
        batch_size=train.batch_size,
        n_negatives=train.negatives,
        layout=train.layout,
        device=device or device_of(config.device),
        threads=config.threads,
    )


def build_model(config: RunConfig, task: Task) -> Recommender:
    """The run's model with its seeded initial weights, on the task's device."""
    cls, options = _model_of(config)
    with seeded(stream(config.train.seed, "init")):
        return cls(options, task).to(task.device)


def _model_of(config: RunConfig) -> tuple[type[Recommender], ModelConfig]:
    cls = model_class(config.model["name"])
    return cls, cls.Config(**{key: value for key, value in config.model.items() if key != "name"})


def build_term(settings: TermSettings, teachers: dict[str, Teacher], task: Task, dim: int, seed: int) -> Term:
    cls = distiller_class(settings.method)
    own = [teachers[reference] for reference in settings.teacher]
    distiller = cls(cls.Config(**settings.options), own, task, dim, stream(seed, "term", settings.name))
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
    digests = {"users": dataset.users.digest, "items": dataset.items.digest}
    if trajectory_files(path):
        return FileTeacher.trajectory(path, task, digests=digests)
    if path.is_dir():
        return LoadedRun.open(path, dataset, device=task.device).teacher(task, live=live)
    return FileTeacher(path, task, digests=digests)


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
    model = build_model(config, task)
    if config.start is not None:
        start_from(model, config, dataset, planned)
    terms = []
    for settings in config.distill:
        known = teachers
        if distiller_class(settings.method).mutual:  # a copy of its own, to be trained on
            known = {name: load_teacher(name, dataset, task, live=True, planned=planned) for name in settings.teacher}
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


def start_from(
    model: nn.Module, config: RunConfig, dataset: Dataset, planned: Mapping[str, Planned] | None = None
) -> None:
    """Gives a model the weights of the finished run that ``config.start`` names.

    Raises ``ArtefactError`` for a run of another model, or of other data.
    """
    assert config.start is not None
    first = planned.get(config.start) if planned else None
    if first is not None:
        theirs = first.config.model
    else:
        run = Run.open(config.start)
        _check_same_data(run, dataset)
        theirs = resolve(run.config).model
    for key in ("name", "dim"):
        if theirs[key] != config.model[key]:
            raise ArtefactError(
                f"start {shown(config.start)} is {theirs['name']} of {theirs['dim']} dimensions; the model is "
                f"{config.model['name']} of {config.model['dim']}",
                "start from a run of the same model and size",
            )
    weights = run.load_model()[0] if first is None else first.model.state_dict()
    load_weights(model, weights, Path(config.start))


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
        model = build_model(self.config, self.task) if live else self.model
        last, saved = train.epochs - 1, _stage_epochs(self.config)
        earlier = [epoch for epoch in saved if epoch < last] or saved[:1]
        stages = [Stage(epoch, lambda: teacher) for epoch in earlier]  # all the same: lists are made once
        teacher = ModelTeacher(
            model.eval(), self.task, asked=asked, name=str(self.place), live=live, stages=stages, epoch=last
        )
        return teacher


def _stage_epochs(config: RunConfig) -> list[int]:
    """Epochs whose weights a run of all its epochs keeps, ascending."""
    train = config.train
    every = train.stages_every
    regular = range(every - 1, train.epochs, every) if every else ()
    return sorted({*(epoch for epoch in train.stages if epoch < train.epochs), *regular})


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
        _check_same_data(run, dataset)
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
            f"the weights in {shown(str(where))} do not fit its configuration: {shown(detail, 200)}"
        ) from None


def _check_same_data(run: Run, dataset: Dataset) -> None:
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


def choose_protocol(config: RunConfig, dataset: Dataset) -> Protocol:
    """The evaluation protocol of a run; ``auto`` ranks stored candidates where the data set has them."""
    name = config.eval.protocol
    if name == "auto":
        name = "loo-499" if dataset.candidates is not None else "default"
    return protocol(name)


def choose_selection(config: RunConfig, chosen: Protocol) -> Selection:
    """The protocol's rule for the best epoch, changed by what the run states."""
    rule, train = chosen.selection, config.train
    metrics, per_metric, digits = rule.metrics, rule.per_metric_best, rule.digits
    if train.select is not None:
        metrics, per_metric, digits = train.select, False, None
    return Selection(
        metrics=metrics,
        patience=train.patience if train.patience is not None else rule.patience,
        min_delta=rule.min_delta,
        digits=digits,
        per_metric_best=per_metric,
        any_of=rule.any_of,
    )


def build_evaluator(config: RunConfig, dataset: Dataset) -> Evaluator:
    options: dict[str, Any] = {"threads": config.threads}
    if config.eval.ks is not None:
        options["ks"] = config.eval.ks
    return Evaluator.of(dataset, choose_protocol(config, dataset), **options)


def measure_teachers(
    teachers: dict[str, Teacher], evaluator: Evaluator, dataset: Dataset, parts: Collection[str] = ()
) -> dict[str, dict[str, Report]]:
    """The teachers' own quality on the split: the first thing that shows a wrong id map or a leak. Warns of a teacher that
    ranks no better than popularity; of the run's own ``parts`` without asking for their ids."""
    measured = {}
    for name, teacher in teachers.items():
        if isinstance(teacher, FileTeacher) and teacher.factors() is None:
            if evaluator.ties != "list":  # lists say nothing about positions outside them
                continue
            measured[name] = evaluator(teacher.lists)
        else:
            measured[name] = evaluator(teacher)
    if not measured:
        return {}
    baseline = evaluator(popularity(dataset.train))
    for name, reports in measured.items():
        for part, report in reports.items():
            metric = next(iter(report.values))
            own, floor = report.mean(metric), baseline[part].mean(metric)
            if own <= floor:
                doubt = "" if name in parts else ": are its ids in the data set's order?"
                warnings.warn(
                    f"teacher {shown(name)} has {report.shown_name(metric)} = {own:.4f} on {part}, no better than "
                    f"popularity's {floor:.4f}{doubt}",
                    stacklevel=2,
                )
                break
    return measured


def execute(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    on_start: Callable[[dict[str, Any]], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Carries a run out, start to finish or from its last checkpoint, and leaves its directory at ``out``.

    ``on_start`` gets what is known before the first epoch (sizes, teachers' own metrics), ``on_epoch`` each line of
    metrics.jsonl. Whatever is wrong with options, data, teachers and the directory is raised before training, that of parts
    included: where parts are still to be trained, all of it is built once with untrained models first.
    """
    with _threads(config.threads):
        return _execute(config, Path(out), resume, Hooks(on_start, on_epoch, should_stop))


class Hooks(NamedTuple):
    """What a caller of `execute` hears and says while it goes on."""

    on_start: Callable[[dict[str, Any]], None] | None
    on_epoch: Callable[[dict[str, Any]], None] | None
    should_stop: Callable[[], bool] | None


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """torch's threads inside, if a number is given."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _execute(config: RunConfig, out: Path, resume: bool, hooks: Hooks) -> Outcome:
    dataset = Dataset.load(config.data.path)
    if dataset.n_cold_users:
        warnings.warn(
            f"{dataset.n_cold_users:,} users of the held-out parts have no training pair, and nothing is learnt about them: "
            "kdrs data prepare --cold-users drop leaves them out",
            stacklevel=2,
        )
    parts, inner = expand(config, out)
    task = build_task(config, dataset)
    evaluator = build_evaluator(config, dataset)
    selection = choose_selection(config, choose_protocol(config, dataset))
    _check_measured(selection, evaluator, dataset)
    loaded = None
    if not all(_is_done(part.config, part.place) for part in parts):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when all is built for good
            rehearse(config, out, dataset)
    else:
        loaded = _load(inner, dataset, task)
    with Run.create(out, config.to_dict(), dataset, resume=resume) as run, _failure_noted(run):
        interrupted = _carry_out_parts(run, parts, hooks)
        if interrupted is not None:
            return interrupted
        teachers, learners = loaded or _load(inner, dataset, task)
        learner = learners[0]
        if len(learners) > 1 and config.start is None:
            warnings.warn(
                f"{learners[1].terms[0].name} lets two trained models teach each other, and the student starts untrained: "
                "name a run of it with --start",
                stacklevel=2,
            )
        measured = measure_teachers(teachers, evaluator, dataset, [str(part.place) for part in parts])
        if measured:
            write_json(run.path / "teachers.json", {name: _means(reports) for name, reports in measured.items()})
        if hooks.on_start is not None:
            hooks.on_start(_summary(config, dataset, task, learner, measured))
        outcome = fit(
            learners,
            task,
            epochs=config.train.epochs,
            seed=config.train.seed,
            evaluate=_looks(config, learners, evaluator, selection) if dataset.valid.n_pairs else None,
            every=config.train.every,
            selection=selection,
            keep=config.train.keep,
            run=run,
            checkpoint_seconds=config.train.checkpoint_seconds,
            stages=_stage_epochs(config),
            on_epoch=hooks.on_epoch,
            should_stop=hooks.should_stop,
            resume=resume,
        )
        if outcome.stopped == "interrupted":
            run.set_status("interrupted", epochs=outcome.epochs)
            return Outcome(run, outcome, {}, measured)
        for peer in learners[1:]:
            save_peer(run, peer, inner, dataset, evaluator, outcome.epochs - 1)
        reports = evaluator(ModelTeacher(learner.model, task))
        save_result(run, config, dataset, learner.model, outcome, reports, selection)
        return Outcome(run, outcome, reports, measured)


@contextmanager
def _failure_noted(run: Run) -> Iterator[None]:
    """Leaves in the run's status why it ended early."""
    try:
        yield
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        cause, remedy = (error.cause, error.remedy) if isinstance(error, KdrsError) else (str(error), None)
        details = {"error": shown(f"{type(error).__name__}: {cause}", 500)}
        run.set_status(status, **details, **({} if remedy is None else {"remedy": shown(remedy, 500)}))
        raise


def _carry_out_parts(run: Run, parts: Sequence[Part], hooks: Hooks) -> Outcome | None:
    """Carries out the parts of a run; its outcome if one of them was interrupted."""
    for part in parts:
        ended = _carry_out_part(part, hooks)
        if ended is not None and ended.fit.stopped == "interrupted":
            inner, epochs = ended.part or ("", ended.fit.epochs)
            name = f"{part.name}/{inner}" if inner else part.name
            run.set_status("interrupted", epochs=0, part=name, part_epochs=epochs)
            return Outcome(run, Fit(stopped="interrupted"), {}, {}, (name, epochs))
    return None


def _looks(
    config: RunConfig, learners: Sequence[Learner], evaluator: Evaluator, selection: Selection
) -> Callable[[nn.Module], dict[str, dict[str, float]]]:
    """What is measured while a run trains: its model on validation, and on test where the protocol needs that or it is asked
    for; where test of every epoch is asked for, the teachers that are trained along too."""
    test_too = config.train.test_every_epoch
    if test_too is None:
        test_too = selection.per_metric_best or evaluator.setting != "full"
    names = [part for part in (("valid", "test") if test_too else ("valid",)) if part in evaluator.truths]
    shown_learners = learners if config.train.test_every_epoch else learners[:1]

    def evaluate(candidate: nn.Module) -> dict[str, dict[str, float]]:
        found = {}
        for one in shown_learners:
            prefix = "" if one is learners[0] else f"{one.name}."
            reports = evaluator(one.knowledge, parts=names)
            found.update({f"{prefix}{part}": report.means() for part, report in reports.items()})
        return found

    return evaluate


def _load(
    config: RunConfig, dataset: Dataset, task: Task, planned: Mapping[str, Planned] | None = None
) -> tuple[dict[str, Teacher], list[Learner]]:
    """The teachers, and all learners of a run: its own and those of teachers that are trained along."""
    teachers = load_teachers(config, dataset, task, planned)
    learner = build_learner(config, dataset, task, teachers, planned)
    return teachers, [learner, *learner.counterparts()]


def rehearse(
    config: RunConfig, out: Path, dataset: Dataset, planned: dict[str, Planned] | None = None
) -> list[Learner]:
    """Builds a run with all its parts, in order, and trains nothing: the learners of the run. Parts that are not finished
    have untrained models, entered into ``planned`` by their directories.

    Raises whatever building them for good will raise, for a part with its name.
    """
    planned = {} if planned is None else planned
    parts, inner = expand(config, out, {place: plan.config.model for place, plan in planned.items()})
    for part in parts:
        try:
            if not _is_done(part.config, part.place):
                learner = rehearse(part.config, part.place, dataset, planned)[0]
                planned[str(part.place)] = Planned(part.config, learner.model, learner.task, part.place)
        except KdrsError as error:
            raise type(error)(f"part {part.name!r}: {error.cause}", error.remedy) from error
    task = build_task(inner, dataset)
    _check_measured(choose_selection(inner, choose_protocol(inner, dataset)), build_evaluator(inner, dataset), dataset)
    return _load(inner, dataset, task, planned)[1]


def _is_done(config: RunConfig, place: Path) -> bool:
    """Whether a run is finished as it is asked for. Raises ``ConfigError`` if its directory holds another one."""
    if not (place / "config.toml").is_file():
        return False
    run = Run.open(place)
    run.check_options(config.to_dict())
    if run.status().get("status") != "finished":
        return False
    trained, asked = resolve(run.config).train, config.train
    if trained.epochs > asked.epochs:
        raise ConfigError(
            f"{shown(str(place))} had up to {trained.epochs} epochs, now {asked.epochs} are asked for",
            "ask for as many or more, or name another folder",
        )
    return (trained.epochs, trained.patience) == (asked.epochs, asked.patience)


def _carry_out_part(part: Part, hooks: Hooks) -> Outcome | None:
    """Starts, resumes or, finished as it was asked for, takes a part as it is (None)."""
    if _is_done(part.config, part.place):
        return None
    begun = (part.place / "config.toml").is_file()

    def start(known: dict[str, Any]) -> None:
        if hooks.on_start is not None:
            hooks.on_start({**known, "part": part.name, "epochs": part.config.train.epochs})

    own = hooks._replace(on_start=start)
    return execute(part.config, part.place, resume=begun, **own._asdict())


def save_result(
    run: Run,
    config: RunConfig,
    dataset: Dataset,
    model: nn.Module,
    outcome: Fit,
    reports: dict[str, Report],
    selection: Selection,
) -> None:
    """Weights, final evaluation and status of a finished run."""
    metadata = {"model": config.model["name"], "epoch": str(outcome.best_epoch), "data": dataset.fingerprint}
    run.save_model(model.state_dict(), metadata)
    save_reports(run, reports, outcome, selection)
    run.set_status(
        "finished",
        epochs=outcome.epochs,
        best_epoch=outcome.best_epoch,
        stopped=outcome.stopped,
        model_sha256=file_digest(run.path / "model.safetensors"),
    )


def save_peer(run: Run, peer: Learner, config: RunConfig, dataset: Dataset, evaluator: Evaluator, epoch: int) -> None:
    """A teacher that was trained along, with the weights of the last epoch, as a run of its own at ``peers/NAME``."""
    (term,) = (term for term in config.distill if peer.name == f"{term.name}-teacher")
    theirs = resolve(Run.open(term.teacher[0]).config)
    train = config.train.model_copy(update={"lr": peer.optimizer.lr, "weight_decay": peer.optimizer.weight_decay})
    own = config.model_copy(update={"model": theirs.model, "distill": (), "start": term.teacher[0], "train": train})
    place = run.path / "peers" / peer.name
    with Run.create(place, own.to_dict(), dataset, resume=(place / "config.toml").is_file()) as saved:
        reports = evaluator(ModelTeacher(peer.model, peer.task))
        result = Fit(best_epoch=epoch, epochs=epoch + 1)
        save_result(saved, own, dataset, peer.model, result, reports, Selection())


def _check_measured(selection: Selection, evaluator: Evaluator, dataset: Dataset) -> None:
    missing = [name for name in selection.metrics if name not in evaluator.names]
    if missing and dataset.valid.n_pairs:
        raise ConfigError(
            f"the best epoch is selected by {missing[0]}, which is not evaluated",
            f"set train.select to one of: {', '.join(evaluator.names)}",
        )


def save_reports(run: Run, reports: dict[str, Report], outcome: Fit, selection: Selection) -> None:
    """Writes report.json and one array file a part. Where the protocol reports each K from its own best epoch, those means
    stand beside the kept weights' own."""
    for part, report in reports.items():
        report.save(run.path / f"report-{part}.json")
    summary: dict[str, Any] = {
        "schema": 1,
        "best_epoch": outcome.best_epoch,
        "epochs": outcome.epochs,
        "parts": _means(reports),
    }
    if selection.per_metric_best and outcome.best:
        summary["per_metric_best"] = per_metric_best(outcome, selection, reports)
    write_json(run.path / "report.json", summary)


def per_metric_best(outcome: Fit, selection: Selection, reports: dict[str, Report]) -> dict[str, dict[str, Any]]:
    """Every test metric at the epoch with the best validation value of its K: how the LOO-499 papers report."""
    by_epoch = {row["epoch"]: row for row in outcome.rows}
    found: dict[str, dict[str, Any]] = {}
    for name in reports["test"].values if "test" in reports else ():
        epoch, _ = outcome.best[selection.deciding(name)]
        test = by_epoch[epoch].get("test")
        if test is not None:
            found[name] = {"epoch": epoch, "test": test[name], "valid": by_epoch[epoch]["valid"][name]}
    return found


def load_reports(run: Run) -> dict[str, Report]:
    """The final evaluation of a run, by part. Raises ``ArtefactError`` if it has none."""
    paths = sorted(run.path.glob("report-*.json"))
    if not paths:
        raise ArtefactError(f"{shown(str(run.path))} has no evaluation", run.remedy())
    return {path.stem.removeprefix("report-"): Report.load(path) for path in paths}


def _means(reports: dict[str, Report]) -> dict[str, dict[str, float]]:
    return {
        part: {report.shown_name(name): value for name, value in report.means().items()}
        for part, report in reports.items()
    }


def _summary(
    config: RunConfig,
    dataset: Dataset,
    task: Task,
    learner: Learner,
    measured: dict[str, dict[str, Report]],
) -> dict[str, Any]:
    n_parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    return {
        "data": dataset.name,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "pairs": dataset.train.n_pairs,
        "skipped_pairs": task.n_skipped,
        "model": config.model["name"],
        "parameters": n_parameters,
        "trained_parameters": sum(parameter.numel() for parameter in learner.optimizer.parameters.values()),
        "device": str(task.device),
        "teachers": {name: _means(parts) for name, parts in measured.items()},
    }


def execute_seeds(
    seeds: Sequence[int],
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    on_start: Callable[[dict[str, Any]], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[int, dict[str, Report] | Exception]:
    """The same run once a seed, into ``out/seed-N``; reports by seed.

    A seed that fails is kept as its exception and the others go on. With ``resume`` finished seeds are taken as they are
    and begun ones go on. Stops after the seed in hand once ``should_stop`` says so; an interrupted seed is left out.
    """
    results: dict[int, dict[str, Report] | Exception] = {}
    for seed in seeds:
        place = Path(out) / f"seed-{seed}"
        own = with_seed(config, seed)
        try:
            begun = resume and (place / "config.toml").is_file()
            if begun and _is_done(own, place):
                results[seed] = load_reports(Run.open(place))
                continue
            outcome = execute(own, place, resume=begun, on_start=on_start, on_epoch=on_epoch, should_stop=should_stop)
            if outcome.fit.stopped != "interrupted":
                results[seed] = outcome.reports
        except Exception as error:
            results[seed] = error
        if should_stop is not None and should_stop():
            break
    return results


def summarise_seeds(results: dict[int, dict[str, Report] | Exception]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds that finished, by part and metric, and which seeds are missing."""
    finished = {seed: reports for seed, reports in results.items() if not isinstance(reports, Exception)}
    summary: dict[str, Any] = {
        "seeds": sorted(finished),
        "failed": {str(seed): str(error) for seed, error in results.items() if isinstance(error, Exception)},
        "parts": {},
    }
    for reports in finished.values():
        for part, report in reports.items():
            for name, value in report.means().items():
                summary["parts"].setdefault(part, {}).setdefault(report.shown_name(name), []).append(value)
    for metrics in summary["parts"].values():
        for name, values in metrics.items():
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            metrics[name] = {"mean": float(np.mean(values)), "sd": spread, "n": len(values), "values": values}
    return summary


def plan(config: RunConfig, out: str | Path) -> dict[str, Any]:
    """What a run would be, found out by building all of it and training nothing: parts, sizes, memory. Parts still to be
    trained are built too, and teach with their initial weights."""
    parts, _ = expand(config, Path(out))
    dataset = Dataset.load(config.data.path)
    learners = rehearse(config, Path(out), dataset)
    task = learners[0].task
    n_parameters = sum(parameter.numel() for parameter in learners[0].model.parameters())
    trained = sum(p.numel() for learner in learners for p in learner.optimizer.parameters.values())
    pairs = dataset.train.n_pairs
    return {
        "parts": [f"{part.name} ({part.config.model['name']}, dim {part.config.model['dim']})" for part in parts],
        "data": dataset.name,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "training_pairs": pairs,
        "batches_per_epoch": task.n_batches,
        "parameters": n_parameters,
        "trained_parameters": trained,
        "device": str(task.device),
        "protocol": choose_protocol(config, dataset).name,
        # parameters, best copy, gradient, two moments; ids of this and the next epoch
        "memory_bytes": 4 * (4 * trained + n_parameters) + 8 * pairs + 2 * 8 * task.n_rows,
    }


def comparison(
    runs: Sequence[str | Path],
    *,
    dataset: Dataset | None = None,
    protocol_name: str | None = None,
    part: str = "test",
    metrics: Sequence[str] | None = None,
    teacher: str | None = None,
    baseline: str | None = None,
    test: str = "randomisation",
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
                reports=evaluator(_lists_of(scorer) or scorer),
                n_parameters=size,
                n_bytes=file.stat().st_size,
                seconds_per_1000=scoring_seconds(scorer, dataset.train, 50, threads=threads) if time_scoring else None,
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
