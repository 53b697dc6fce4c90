"""A run file carried out: data, model, teachers and terms, training, the final evaluation, all left in a run directory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from kdrs import __version__
from kdrs.core.sampling import simd_path, threads_of
from kdrs.data import Dataset
from kdrs.errors import ConfigError, KdrsError, MachineError, quoted, shown
from kdrs.evaluation.curves import doubts_of
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.protocols import Selection
from kdrs.evaluation.report import Report
from kdrs.fitting.fit import Fit, blaming_training, fit
from kdrs.fitting.learner import Learner
from kdrs.models.compact import Compact
from kdrs.models.stored import encoder_of
from kdrs.runs.build import (
    build_evaluator,
    build_task,
    check_measured,
    check_memory,
    check_room,
    check_shards,
    choose_protocol,
    choose_selection,
    device_of,
    memory_of,
    stage_epochs,
    torch_threads,
)
from kdrs.runs.card import is_product
from kdrs.runs.config import RunConfig, as_begun, completed, config_of
from kdrs.runs.cost import plain_seconds, warn_if_dear
from kdrs.runs.directory import Run
from kdrs.runs.encoded import as_named, best_encoder
from kdrs.runs.files import write_json
from kdrs.runs.following import create, decided
from kdrs.runs.learners import Planned, load_learners
from kdrs.runs.parts import Part, check_teachers, expand
from kdrs.runs.places import check_data, own_folder
from kdrs.runs.records import PATH
from kdrs.runs.references import Digests, check_unchanged, digests_of
from kdrs.runs.results import doubt_start, means_of, measure_teachers, parameters_of, save_peer, save_result, summary_of
from kdrs.runs.values import FROM_TEACHER
from kdrs.runs.vouching import check_options
from kdrs.runs.watching import check_trackers, watching
from kdrs.teachers.model import ModelTeacher
from kdrs.training.outline import OUTLINE
from kdrs.training.processes import current, joined


@dataclass
class Outcome:
    """A finished (or interrupted) run."""

    run: Run
    fit: Fit
    reports: dict[str, Report]
    """By part: ``valid`` and ``test`` of the best weights; empty if the run was interrupted."""
    teachers: dict[str, dict[str, Report]]
    """By teacher and part: the teachers' own quality on this split."""
    encoder: str | None = None
    """Of encoded users: the kind of the encoder that is kept, ``sum`` as it was trained or ``ridge``."""
    product: bool = False
    """Whether its scores are products of vectors, as exported files hold them."""
    part: tuple[str, int] | None = None
    """Of a run that was interrupted while it trained a part: the part, and how many epochs of it are done."""


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

    ``on_start`` gets what is known before the first epoch (sizes, teachers' own metrics, what selects), ``on_epoch`` each
    line of metrics.jsonl. Whatever is wrong with options, data, teachers and the directory is raised before training, that of
    parts included: where parts are still to be trained, all of it is built once with untrained models first. Of the teachers
    it is kept which they are, but for what the run trains itself; on resume they must be the same, and so once they are read.

    Called in each of several processes that torchrun started, it is one run: the first of them writes, and it alone is told of
    the start and of epochs. The others raise what it raises, and get the same outcome.
    """
    return _carried_out(config, Path(out), resume, Hooks(on_start, on_epoch, should_stop))


class Hooks(NamedTuple):
    """What a caller of `execute` hears and says while it goes on."""

    on_start: Callable[[dict[str, Any]], None] | None
    on_epoch: Callable[[dict[str, Any]], None] | None
    should_stop: Callable[[], bool] | None


def _carried_out(config: RunConfig, out: Path, resume: bool, hooks: Hooks, trained: Collection[str] = ()) -> Outcome:
    """As `execute`; runs that are ``trained`` along, by their directories, may be others later."""
    if config.compress is not None:
        raise ConfigError(
            f"this run was not trained, it was made from {shown(config.compress.teacher, PATH)}",
            f"make it anew: kdrs compress {quoted(config.compress.teacher)}, with the bits, dim and users of its config.toml",
        )
    if resume and (out / "config.toml").is_file():
        config = as_begun(config, Run.open(out))
    with torch_threads(config.threads), joined() as group:
        told = group is None or group.first
        return _execute(config, out, resume, hooks if told else Hooks(None, None, hooks.should_stop), trained)


def _execute(config: RunConfig, out: Path, resume: bool, hooks: Hooks, trained: Collection[str]) -> Outcome:
    parts, inner = expand(config, out)
    check_teachers(inner, out)
    stage_epochs(config)  # that there are not too many
    check_shards(inner)
    _check_core(config)
    check_trackers(config.log)
    if resume:
        check_data(config.data.path, out)
    dataset = Dataset.load(config.data.path)
    taught = digests_of(config.to_dict(), trained)  # before they are read: what is read is compared with it
    _agree(config, dataset, resume, taught)
    if resume:
        check_unchanged(out, config.to_dict())
    if dataset.n_cold_users:
        warnings.warn(
            f"{dataset.n_cold_users:,} users of the held-out parts have no training pair, and nothing is learnt about them: "
            "kdrs data prepare --cold-users drop leaves them out",
            stacklevel=2,
        )
    if not dataset.holds_out and config.train.keep != "last":
        warnings.warn(
            f"nothing is held out, so nothing ends the training early: all {config.train.epochs:,} epochs are trained, and the "
            "last weights are kept",
            stacklevel=2,
        )
    task = build_task(config, dataset)
    evaluator = build_evaluator(config, dataset)
    selection = choose_selection(config, choose_protocol(config, dataset))
    check_measured(config, selection, evaluator, dataset)
    check_memory(inner, dataset, task, evaluator)
    loaded = None
    if not all(is_done(part.config, part.place) for part in parts):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when all is built for good
            rehearse(config, out, dataset, evaluator)
    else:
        loaded = load_learners(inner, dataset, task)
    with (
        create(out, config.to_dict(), dataset, resume=resume, complete=completed, teachers=taught) as run,
        _failure_noted(run),
        ExitStack() as watched,
    ):
        interrupted = _carry_out_parts(run, parts, hooks, {*trained, *(str(part.place) for part in parts)})
        if interrupted is not None:
            return interrupted
        teachers, learners = loaded or load_learners(inner, dataset, task)
        check_unchanged(out, config.to_dict())
        learner = learners[0]
        if len(learners) > 1 and config.start is None:
            warnings.warn(
                f"{learners[1].terms[0].name} lets two trained models teach each other, and the student starts untrained: "
                "name a run of it with --start",
                stacklevel=2,
            )
        doubts: dict[str, list[str]] = {}
        measured = measure_teachers(teachers, evaluator, dataset, doubts)
        if inner.start is not None and inner.start not in (FROM_TEACHER, *teachers):
            doubt_start(inner.start, doubts)
        if measured and run.writes:
            write_json(run.path / "teachers.json", {name: means_of(reports) for name, reports in measured.items()})
        if hooks.on_start is not None:
            known = summary_of(config, dataset, task, learner, measured)
            hooks.on_start({**known, "selects": selection.metrics if dataset.valid.n_pairs else ()})
        run.checkpoints.columns = learner.columns
        plain = plain_seconds(config, task) if learner.terms else 0.0
        selects = [f"valid/{name}" for name in selection.metrics] if dataset.valid.n_pairs else []
        trackers = config.log if run.writes else ()
        watch = watched.enter_context(watching(trackers, run, config.to_dict(), selects, resume))
        outcome = fit(
            learners,
            task,
            epochs=config.train.epochs,
            seed=config.train.seed,
            evaluate=_looks(config, learners, evaluator, selection) if dataset.valid.n_pairs else None,
            every=config.train.every,
            every_from=config.train.every_from,
            selection=selection,
            keep=config.train.keep,
            average=config.train.average,
            run=run,
            checkpoint_seconds=config.train.checkpoint_seconds,
            stages=stage_epochs(config),
            on_epoch=watch.before(hooks.on_epoch),
            on_pace=(lambda seconds: warn_if_dear(config, task, plain, seconds)) if plain and run.writes else None,
            should_stop=hooks.should_stop,
            resume=resume,
            group=current(),
        )
        if outcome.stopped == "interrupted":
            run.set_status("interrupted", epochs=outcome.epochs)
            watch.status = "interrupted"
            return Outcome(run, outcome, {}, measured)
        for doubt in doubts_of(
            outcome.rows, selection.metrics[0], stopped=outcome.stopped, started=config.start is not None
        ):
            warnings.warn(f"{shown(str(out))}: {doubt}", stacklevel=2)
        for peer in learners[1:]:
            save_peer(run, peer, inner, dataset, evaluator, outcome.epochs - 1)
        with blaming_training(learner.model, outcome.epochs - 1):
            kept = _kept(config, learner.model, evaluator, selection)
            reports = evaluator(ModelTeacher(kept, task))
        save_result(run, config, dataset, kept, outcome, reports, selection, doubts)
        watch.final(outcome, reports)
        return Outcome(run, outcome, reports, measured, encoder_of(kept), is_product(kept))


def _kept(config: RunConfig, model: nn.Module, evaluator: Evaluator, selection: Selection) -> nn.Module:
    """What a finished run keeps of its model."""
    if not isinstance(model, Compact):
        return model
    kept = model.stored()
    if kept.user_encoder is None:
        return kept
    if config.model["encoder"] != "best" or "valid" not in evaluator.truths:
        return as_named(kept, config.model["encoder"])
    selects = selection.metrics[0]
    return best_encoder(kept, lambda one: evaluator(one.factors(), parts=["valid"])["valid"].mean(selects))


def _agree(config: RunConfig, dataset: Dataset, resume: bool, teachers: Digests) -> None:
    """Raises ``ConfigError`` where other processes of the run have other options, another data set or other teachers."""
    if (group := current()) is not None:
        options = config.to_dict()
        options["data"] = {"fingerprint": dataset.fingerprint}  # its path may be another on another machine
        options["sha256"] = teachers
        group.agree({**options, "resume": resume, "version": __version__})


def _check_core(config: RunConfig) -> None:
    """Raises ``ConfigError`` for threads or instructions that the core cannot have, of the run or of the environment."""
    threads_of(config.threads)
    simd_path()


@contextmanager
def _failure_noted(run: Run) -> Iterator[None]:
    """Leaves in the run's status why it ended early."""
    try:
        yield
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        cause, remedy = (error.cause, error.remedy) if isinstance(error, KdrsError) else (str(error), None)
        details = {"error": shown(f"{type(error).__name__}: {cause}", 500)}
        with suppress(MachineError):  # a full disk takes no status either, and the error itself says more
            run.set_status(status, **details, **({} if remedy is None else {"remedy": shown(remedy, 500)}))
        raise


def _carry_out_parts(run: Run, parts: Sequence[Part], hooks: Hooks, trained: Collection[str]) -> Outcome | None:
    """Carries out the parts of a run; its outcome if one of them was interrupted."""
    for part in parts:
        ended = _carry_out_part(run, part, hooks, trained)
        if ended is not None and ended.fit.stopped == "interrupted":
            inner, epochs = ended.part or ("", ended.fit.epochs)
            name = f"{part.name}/{inner}" if inner else part.name
            run.set_status("interrupted", epochs=0, part=name, part_epochs=epochs)
            return Outcome(run, Fit(stopped="interrupted"), {}, {}, part=(name, epochs))
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


def rehearse(
    config: RunConfig,
    out: Path,
    dataset: Dataset,
    evaluator: Evaluator,
    planned: dict[str, Planned] | None = None,
    *,
    device: torch.device | None = None,
) -> list[Learner]:
    """Builds a run with all its parts, in order, and trains nothing: the learners of the run. Parts that are not finished
    have untrained models, entered into ``planned`` by their directories. All are measured by one ``evaluator``. The
    ``device`` is the run's unless it is that of an outline.

    Raises whatever building them for good will raise, for a part with its name.
    """
    planned = {} if planned is None else planned
    parts, inner = expand(config, out, {place: plan.config.model for place, plan in planned.items()})
    for part in parts:
        try:
            if not is_done(part.config, part.place):
                learner = rehearse(part.config, part.place, dataset, evaluator, planned, device=device)[0]
                planned[str(part.place)] = Planned(part.config, learner.model, learner.task, part.place)
        except KdrsError as error:
            raise type(error)(f"part {part.name!r}: {error.cause}", error.remedy) from error
    stage_epochs(inner)
    task = build_task(inner, dataset, device)
    check_measured(inner, choose_selection(inner, choose_protocol(inner, dataset)), evaluator, dataset)
    check_memory(inner, dataset, task, evaluator)
    return load_learners(inner, dataset, task, planned)[1]


def is_done(config: RunConfig, place: Path) -> bool:
    """Whether a run is finished as it is asked for. Raises ``ConfigError`` if its directory holds another one,
    ``ArtefactError`` if data set and teachers lie elsewhere now and are others."""
    if not (place / "config.toml").is_file():
        return False
    run = Run.open(place)
    config = as_begun(config, run)
    now, before = config.to_dict(), completed(run.config)
    check_options(now, before, run.elsewhere(now, before))
    theirs = config_of(run).train
    if run.status().get("status") != "finished":
        return False
    trained, asked = theirs, config.train
    if trained.epochs > asked.epochs:
        raise ConfigError(
            f"{shown(str(place), PATH)} had up to {trained.epochs} epochs, now {asked.epochs} are asked for",
            "ask for as many or more, or name another folder",
        )
    return (trained.epochs, trained.patience) == (asked.epochs, asked.patience)


def _carry_out_part(run: Run, part: Part, hooks: Hooks, trained: Collection[str]) -> Outcome | None:
    """Starts, resumes or, finished as it was asked for, takes a part as it is (None)."""
    if is_done(part.config, part.place):
        return None
    if part.place.parent == run.path.resolve() / "parts":
        own_folder(part.place.parent)
    begun = decided((part.place / "config.toml").is_file())

    def start(known: dict[str, Any]) -> None:
        if hooks.on_start is not None:
            hooks.on_start({**known, "part": part.name, "epochs": part.config.train.epochs})

    own = hooks._replace(on_start=start)
    return _carried_out(part.config, part.place, begun, own, trained)


def outlined(
    config: RunConfig, out: Path, dataset: Dataset, evaluator: Evaluator, planned: dict[str, Planned] | None = None
) -> list[Learner]:
    """The learners of a run as an outline of it (`kdrs.training.outline.OUTLINE`). It may learn from runs that are ``planned``,
    by their directories. Raises as `plan` does."""
    _, inner = expand(config, out, {place: run.config.model for place, run in (planned or {}).items()})
    check_teachers(inner, out)
    check_shards(inner)
    _check_core(config)
    check_trackers(config.log)
    device_of(config.device)
    return rehearse(config, out, dataset, evaluator, planned, device=OUTLINE)


def plan(config: RunConfig, out: str | Path) -> dict[str, Any]:
    """What a run would be: its parts, sizes and memory, from an outline of all of it (`kdrs.training.outline.OUTLINE`).

    Reads the data set, and of runs and teacher files the heads; no weights are made or read and no lists either, so the time
    it takes does not grow with models and lists. Raises what `execute` raises before training, but for what only values show:
    weights and lists that are damaged.
    """
    dataset = Dataset.load(config.data.path)
    evaluator = build_evaluator(config, dataset)
    parts, inner = expand(config, Path(out))
    learners = outlined(config, Path(out), dataset, evaluator)
    device, task = device_of(config.device), learners[0].task
    n_parameters = parameters_of(learners[0].model)
    trained = sum(p.numel() for learner in learners for p in learner.optimizer.parameters.values())
    own_memory = memory_of(inner, dataset, task, evaluator)
    # weights are made here even for another device, and every optimizer keeps a number of its own beside each
    copies = 2 if device.type == "cpu" else 1
    check_room(copies * 4 * trained + own_memory, "the run takes", "lower model.dim, or the method's sizes")
    return {
        "parts": [f"{part.name} ({part.config.model['name']}, dim {part.config.model['dim']})" for part in parts],
        "data": dataset.name,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "training_pairs": dataset.train.n_pairs,
        "batches_per_epoch": task.n_batches,
        "parameters": n_parameters,
        "trained_parameters": trained,
        "device": str(device),
        "protocol": choose_protocol(config, dataset).name,
        # parameters, best copy, gradient, two moments; draws and lists
        "memory_bytes": 4 * (4 * trained + n_parameters) + own_memory,
    }
