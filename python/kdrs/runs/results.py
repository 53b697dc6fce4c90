"""What a finished run leaves: weights, reports, status."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from kdrs.compact.encoders import SumEncoder
from kdrs.data import Dataset, Interactions
from kdrs.errors import ArtefactError, ScoreError, shown
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.lists import popularity
from kdrs.evaluation.protocols import Selection
from kdrs.evaluation.report import Report
from kdrs.fitting.fit import Fit
from kdrs.fitting.learner import Learner
from kdrs.models.compact import Compact
from kdrs.models.stored import StoredModel, encoder_of
from kdrs.runs.card import handed_down, named, write_card
from kdrs.runs.config import RunConfig, completed, config_of
from kdrs.runs.directory import Run
from kdrs.runs.files import file_digest, write_json
from kdrs.runs.following import create, decided
from kdrs.runs.places import own_folder
from kdrs.teachers.audit import teacher_doubts
from kdrs.teachers.base import Teacher
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.hooks import stored
from kdrs.training.processes import current
from kdrs.training.queries import Task


def measure_teachers(
    teachers: dict[str, Teacher],
    evaluator: Evaluator,
    dataset: Dataset,
    doubts: dict[str, list[str]] | None = None,
) -> dict[str, dict[str, Report]]:
    """The teachers' own quality on the split: the first thing that shows a wrong id map or a leak. Warns of a teacher that
    ranks no better than popularity, and asks for the ids of files alone: those of a run are known. Warns, too, of teacher
    files whose ids seem out of order or that seem to know held-out pairs, and of runs that learnt from such files: these
    sentences go into ``doubts`` too, by teacher, for the card."""
    measured = {}
    doubts = {} if doubts is None else doubts
    for name, teacher in teachers.items():
        if isinstance(teacher, FileTeacher):
            found = teacher_doubts(teacher, {"train": dataset.train, **held_out(dataset)})
        else:
            found = handed_down(name, doubts)
        _doubt("teacher", name, found, doubts)
        scorer: Any = teacher
        if isinstance(teacher, FileTeacher) and teacher.factors() is None:
            if evaluator.ties != "list" or teacher.lists is None:
                continue  # lists say nothing about positions outside them, items alone nothing about users
            scorer = teacher.lists
        try:
            measured[name] = evaluator(scorer)
        except ScoreError as error:
            raise ArtefactError(f"teacher {shown(name)}: {error.cause}", error.remedy) from error
    if not (measured and evaluator.truths):
        return measured
    baseline = evaluator(popularity(dataset.train))
    for name, reports in measured.items():
        for part, report in reports.items():
            metric = next(iter(report.values))
            own, floor = report.mean(metric), baseline[part].mean(metric)
            if own <= floor:
                from_file = isinstance(teachers[name], FileTeacher)
                doubt = ": are its ids in the data set's order?" if from_file else ": it has little to teach"
                warnings.warn(
                    f"teacher {shown(name)} has {report.shown_name(metric)} = {own:.4f} on {part}, no better than "
                    f"popularity's {floor:.4f}{doubt}",
                    stacklevel=2,
                )
                break
    return measured


def doubt_start(start: str, doubts: dict[str, list[str]]) -> None:
    """Warns of a run to start from that learnt from a teacher that seems to know held-out pairs, as `measure_teachers` does."""
    _doubt("start", start, handed_down(start, doubts), doubts)


def _doubt(role: str, name: str, found: Sequence[str], doubts: dict[str, list[str]]) -> None:
    for doubt in found:
        warnings.warn(f"{role} {shown(name)}: {doubt}", stacklevel=3)
        doubts.setdefault(name, []).append(doubt)


def held_out(dataset: Dataset) -> dict[str, Interactions]:
    return {"valid": dataset.valid, "test": dataset.test}


def save_result(
    run: Run,
    config: RunConfig,
    dataset: Dataset,
    model: nn.Module,
    outcome: Fit,
    reports: dict[str, Report],
    selection: Selection,
    doubts: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Weights, final evaluation, status and card of a finished run; ``doubts`` are sentences about its teachers, by name."""
    metadata = {"model": config.model["name"], "epoch": str(outcome.best_epoch), "data": dataset.fingerprint}
    kept = model.stored() if isinstance(model, Compact) else model
    if isinstance(kept, StoredModel):
        metadata["tables"] = json.dumps(kept.description())
    run.save_model(stored(kept, kept.state_dict()), metadata)
    done = partial(_save_rest, run, config, dataset, kept, outcome, reports, selection, doubts or {})
    group = current()
    if group is None:
        done()
    else:
        group.on_first(done)


def _save_rest(
    run: Run,
    config: RunConfig,
    dataset: Dataset,
    kept: nn.Module,
    outcome: Fit,
    reports: dict[str, Report],
    selection: Selection,
    doubts: Mapping[str, Sequence[str]],
) -> None:
    told = {named(Path(name)): list(sentences) for name, sentences in doubts.items()}
    save_reports(run, reports, outcome, selection, encoder_of(kept), told)
    run.set_status(
        "finished",
        epochs=outcome.epochs,
        best_epoch=outcome.best_epoch,
        stopped=outcome.stopped,
        model_sha256=file_digest(run.path / "model.safetensors"),
        **({} if (lines := run.metrics.sha256()) is None else {"metrics_sha256": lines}),
    )
    write_card(run, config, dataset, kept, reports, told)


def save_peer(run: Run, peer: Learner, config: RunConfig, dataset: Dataset, evaluator: Evaluator, epoch: int) -> None:
    """A teacher that was trained along, with the weights of the last epoch, as a run of its own at ``peers/NAME``."""
    (term,) = (term for term in config.distill if peer.name == f"{term.name}-teacher")
    theirs = config_of(Run.open(term.teacher[0]))
    train = config.train.model_copy(update={"lr": peer.optimizer.lr, "weight_decay": peer.optimizer.weight_decay})
    own = config.model_copy(update={"model": theirs.model, "distill": (), "start": term.teacher[0], "train": train})
    place = own_folder(run.path / "peers") / peer.name
    begun = decided((place / "config.toml").is_file())
    with create(place, own.to_dict(), dataset, resume=begun, complete=completed) as saved:
        reports = evaluator(ModelTeacher(peer.model, peer.task))
        result = Fit(best_epoch=epoch, epochs=epoch + 1)
        save_result(saved, own, dataset, peer.model, result, reports, Selection())


def save_reports(
    run: Run,
    reports: dict[str, Report],
    outcome: Fit,
    selection: Selection,
    encoder: str | None = None,
    doubts: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes report.json and one array file a part. Where the protocol reports each K from its own best epoch, those means
    stand beside the kept weights' own; not where another ``encoder`` of users is kept than the epochs were measured with."""
    for part, report in reports.items():
        report.save(run.path / f"report-{part}.json")
    summary: dict[str, Any] = {
        "schema": 1,
        "best_epoch": outcome.best_epoch,
        "epochs": outcome.epochs,
        **({} if encoder is None else {"encoder": encoder}),
        "parts": means_of(reports),
        **({"doubts": doubts} if doubts else {}),
    }
    if selection.per_metric_best and outcome.best and encoder in (None, SumEncoder.kind):
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


def means_of(reports: dict[str, Report]) -> dict[str, dict[str, float]]:
    return {
        part: {report.shown_name(name): value for name, value in report.means().items()}
        for part, report in reports.items()
    }


def parameters_of(model: nn.Module) -> int:
    """Trained numbers of a model, those of its columns that other processes hold among them."""
    whole: int | None = getattr(model, "n_parameters", None)
    return sum(parameter.numel() for parameter in model.parameters()) if whole is None else whole


def summary_of(
    config: RunConfig,
    dataset: Dataset,
    task: Task,
    learner: Learner,
    measured: dict[str, dict[str, Report]],
) -> dict[str, Any]:
    n_parameters = parameters_of(learner.model)
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
        "teachers": {name: means_of(parts) for name, parts in measured.items()},
    }
