"""A finished run's settings for training again, on all pairs: what goes into production once they are chosen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdrs.compact.encoders import RidgeEncoder
from kdrs.data import Dataset
from kdrs.errors import ArtefactError, ConfigError, quoted, shown
from kdrs.models.stored import StoredModel
from kdrs.runs.config import DataSettings, EvalSettings, PartSettings, RunConfig, TermSettings, TrainSettings, config_of
from kdrs.runs.directory import Run, holds_run
from kdrs.runs.encoded import named_ridge
from kdrs.runs.opened import LoadedRun
from kdrs.runs.parts import expand
from kdrs.runs.records import PATH
from kdrs.runs.values import FROM_TEACHER
from kdrs.teachers.file import trajectory_files


def refitted(path: str | Path, data: str | Path, teachers: Sequence[str] = (), start: str | None = None) -> RunConfig:
    """The options of a finished run, to be carried out again on the prepared data set at ``data``: as many epochs as its best
    weights had, the last weights kept, the encoder of users that validation chose. Models that the run trained first, parts
    and chains, are trained again in the same way.

    ``teachers`` take the places of the run's own, in their order; those that are not given stay, with a warning where they were
    trained on other pairs. So does ``start`` of the run that it started from. `kdrs.Dataset.whole` makes the data set that
    holds nothing out.

    Raises ``ArtefactError`` for a run that is not finished, ``ConfigError`` for one that was not trained, and for another
    number of teachers than the run has.
    """
    run = Run.open(path)
    config, dataset = config_of(run), Dataset.load(data)
    if config.compress is not None:
        raise _made(path, config.compress.teacher, data)
    if start is not None and config.start in (None, FROM_TEACHER, *config.teachers):
        raise ConfigError(
            f"start is {shown(start, PATH)}, and {shown(str(path), PATH)} started from no other run",
            "leave --start out",
        )
    parts, own = expand(config, run.path)
    names = {str(part.place): part.name for part in parts}
    before = [*(part.config for part in parts), own]
    renamed = {**names, **_replaced(before, names, teachers, path)}
    fixed = {part.name: _part(part.config, Run.open(part.place), dataset, renamed) for part in parts}
    result = own.model_copy(
        update={
            "data": DataSettings(path=str(data)),
            "model": _model(own, run),
            "train": _train(own.train, run, dataset),
            "eval": own.eval if dataset.holds_out else EvalSettings(),
            "distill": _terms(own.distill, renamed),
            "start": start or (None if own.start is None else renamed.get(own.start, own.start)),
            "teachers": fixed,
            "refit": str(path),
        }
    )
    _warn_of_less(run, dataset)
    _warn(result, dataset)
    return result


def _made(path: str | Path, teacher: str, data: str | Path) -> ConfigError:
    """Of a run that was made from another one, or from a teacher file, which kdrs cannot train again."""
    again, small = f"kdrs refit {quoted(teacher)} --data {quoted(data)} --out TEACHER", "kdrs compress TEACHER"
    way = f"refit that, and compress what comes of it: {again}"
    if Path(teacher).is_file() or trajectory_files(teacher):
        way = "train that again where it was trained, on all pairs, and make a file of it: kdrs teacher import"
        small = f"kdrs compress FILE --data {quoted(data)}"
    return ConfigError(
        f"{shown(str(path), PATH)} was not trained, it was made from {shown(teacher, PATH)}",
        f"{way}, then {small} with the bits, dim and users of its config.toml",
    )


def _replaced(
    before: Sequence[RunConfig], names: Mapping[str, str], teachers: Sequence[str], path: str | Path
) -> dict[str, str]:
    """The given teachers by those whose places they take."""
    references = (name for one in before for term in one.distill for name in term.teacher)
    asked = [name for name in dict.fromkeys(references) if name not in names]
    if teachers and len(teachers) != len(asked):
        theirs = ", ".join(shown(name, PATH) for name in asked) or "none"
        raise ConfigError(
            f"got {len(teachers)} teachers, and {shown(str(path), PATH)} has {len(asked)}: {theirs}",
            "give one --teacher for each, in this order, or none",
        )
    return dict(zip(asked, teachers, strict=False))


def _part(config: RunConfig, run: Run, dataset: Dataset, renamed: Mapping[str, str]) -> PartSettings:
    return PartSettings(
        model=_model(config, run),
        train=_train(config.train, run, dataset),
        distill=_terms(config.distill, renamed),
        start=None if config.start is None else renamed.get(config.start, config.start),
    )


def _terms(terms: Sequence[TermSettings], renamed: Mapping[str, str]) -> tuple[TermSettings, ...]:
    return tuple(
        term.model_copy(update={"teacher": tuple(renamed.get(name, name) for name in term.teacher)}) for term in terms
    )


def _train(train: TrainSettings, run: Run, dataset: Dataset) -> TrainSettings:
    """As many epochs as the best weights had. Raises ``ArtefactError`` for a run that has none."""
    status = run.status()
    if status.get("status") != "finished" or status.get("best_epoch") is None:
        raise ArtefactError(f"{shown(str(run.path), PATH)} is not finished", run.remedy())
    epochs = int(status["best_epoch"]) + 1
    return train.model_copy(
        update={
            "epochs": epochs,
            "keep": "last",
            "patience": epochs if dataset.valid.n_pairs else None,  # nothing ends it before
            "select": None,
            "test_every_epoch": None,
        }
    )


def _model(config: RunConfig, run: Run) -> dict[str, Any]:
    """The model's options, with the encoder of users that was kept."""
    if config.model.get("users") != "encoded" or config.model.get("encoder") != "best":
        return config.model
    model = LoadedRun.open(run.path).model
    kept = model.user_encoder if isinstance(model, StoredModel) else None
    return {**config.model, "encoder": named_ridge(kept) if isinstance(kept, RidgeEncoder) else "trained"}


LESS = 0.5
"""Of the pairs that a run was trained on: with fewer something is missing, such as all rows but the latest."""


def _warn_of_less(run: Run, dataset: Dataset) -> None:
    before, now = run.data, dataset.train.n_pairs
    if now < LESS * before["pairs"]["train"]:
        warnings.warn(
            f"{shown(dataset.name)} has {now:,} pairs of {dataset.n_users:,} users, and {shown(str(run.path), PATH)} was "
            f"trained on {before['pairs']['train']:,} of {before['users']:,}: prepare all rows up to now, not the latest alone",
            stacklevel=3,
        )


def _warn(config: RunConfig, dataset: Dataset) -> None:
    """Of teachers and starts that were trained on other pairs, and of what cannot be chosen without validation."""
    terms = [*config.distill, *(term for part in config.teachers.values() for term in part.distill)]
    roles = {name: "teacher" for term in terms for name in term.teacher}
    if config.start is not None and config.start != FROM_TEACHER:
        roles.setdefault(config.start, "start")
    for name, role in roles.items():
        known = name in config.teachers or not holds_run(Path(name))
        if known or Run.open(name).data["fingerprint"] == dataset.fingerprint:
            continue
        new = role.upper()
        warnings.warn(
            f"{role} {shown(name, PATH)} was trained on other pairs: kdrs refit {quoted(name)} --data "
            f"{quoted(config.data.path)} --out {new}, then --{role} {new} here",
            stacklevel=3,
        )
    if not dataset.valid.n_pairs and any(term.teacher_users == "encoded" for term in terms):
        warnings.warn(
            "teacher_users is encoded, which validation decides on: without a validation part the teacher's own users teach",
            stacklevel=3,
        )
