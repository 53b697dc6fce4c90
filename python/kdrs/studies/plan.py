"""A study's file: a run file with a table ``[sweep]``."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kdrs.data import Dataset
from kdrs.errors import ConfigError, KdrsError, nearest, shown
from kdrs.evaluation.protocols import Selection
from kdrs.runs.budget import chosen
from kdrs.runs.build import build_evaluator, check_measured, choose_protocol, choose_selection, stored_protocol
from kdrs.runs.compared import check_comparable
from kdrs.runs.config import RunConfig, put, resolve
from kdrs.runs.directory import holds_run
from kdrs.runs.learners import Planned
from kdrs.runs.seeds import check_seeds
from kdrs.runs.values import flat, is_path, with_paths
from kdrs.settings import Settings
from kdrs.studies.space import Choices, Range, parse_range

_NAME = frozenset(string.ascii_letters + string.digits + "_.+-")
_MOST_NAME = 100
ALONE = "alone"
"""The arm without a teacher that is added to a study of distillation."""


class SweepSettings(Settings):
    """The table ``[sweep]`` of a study's file, but for its tables ``space`` and ``arms``."""

    trials: int = Field(20, ge=1, le=100_000)
    """Trials of each arm, the first at the file's own values."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Start of the stream that points are drawn from. Seeds of the runs are ``train.seed``."""
    sampler: Literal["auto", "random", "tpe"] = "auto"
    """``tpe`` is Optuna's tree of Parzen estimators and needs kdrs[optuna]; ``random`` needs nothing. ``auto`` is ``tpe`` where
    it can be had as the study begins."""
    batch: int = Field(8, ge=1, le=1000)
    """Trials that are drawn at once, from what all earlier ones gave. So a study does not depend on who is how fast."""
    alone: bool = True
    """Search the student without a teacher too, over the same ranges but for those of the method, with as many trials."""
    seeds: tuple[int, ...] = ()
    """Train each arm's best point anew, once with each of these seeds."""


@dataclass(frozen=True)
class Arm:
    """One way to have the run."""

    name: str
    values: dict[str, Any]
    """A run's plain values."""
    space: dict[str, Range]
    selection: Selection

    def at(self, point: Mapping[str, Any]) -> RunConfig:
        """The run at a point, checked."""
        values = deepcopy(self.values)
        for key, value in point.items():
            put(values, key, value, shown(key))
        return resolve(values)

    def default(self) -> dict[str, Any]:
        """The file's own values of the keys that are searched."""
        known = flat(self.at({}).to_dict())
        return {key: _as_searched(known[key], span) for key, span in self.space.items() if key in known}

    @property
    def metric(self) -> str:
        """The validation metric that selects."""
        return self.selection.metrics[0]


@dataclass(frozen=True)
class Study:
    """What is asked: arms, how many trials of each, how points are found."""

    settings: SweepSettings
    arms: tuple[Arm, ...]

    def seeds(self, arm: Arm, point: Mapping[str, Any] | None = None) -> tuple[int, ...]:
        """Those that an arm's best ``point`` is trained with: its own, then those that are asked for."""
        return tuple(dict.fromkeys((arm.at(point or {}).train.seed, *self.settings.seeds)))

    def plain(self) -> dict[str, Any]:
        """Plain values that tell studies apart, the same from any folder: what study.toml holds. Trials may become more, and
        seeds of best points may change."""
        told = self.settings.model_dump(include={"seed", "sampler", "batch", "trials"})
        arms = {
            arm.name: {"run": arm.values, "space": {key: span.plain() for key, span in arm.space.items()}}
            for arm in self.arms
        }
        return {**told, "arms": arms}


def parse_study(values: Mapping[str, Any], *, sampler: str, planned: Mapping[str, Planned] | None = None) -> Study:
    """The study of a file's plain values, every arm checked at its default and at the ends of every range.

    ``sampler`` is what ``auto`` means here. Where a study learns from runs that are ``planned``, by their directories, a budget
    stands for the usual form that fits: which one is best only their weights can tell.

    Raises ``ConfigError`` naming the key, and whatever wrong runs raise.
    """
    run = {key: value for key, value in values.items() if key != "sweep"}
    table = values.get("sweep")
    if not isinstance(table, Mapping):
        raise ConfigError(
            "the file has no table [sweep]", 'write [sweep.space] with ranges, such as "train.lr" = [1e-3, 1e-2]'
        )
    own = {key: value for key, value in table.items() if key not in ("space", "arms")}
    unknown = sorted(set(own) - set(SweepSettings.model_fields))
    if unknown:
        raise ConfigError(
            f"unknown key 'sweep.{shown(unknown[0])}'",
            nearest(unknown[0], {*SweepSettings.model_fields, "space", "arms"}),
        )
    settings = SweepSettings.parse(own, "sweep")
    if settings.seeds:
        try:
            check_seeds(settings.seeds)
        except ConfigError as error:
            raise ConfigError(f"sweep.seeds: {error.cause}", error.remedy) from error
    settings = settings.model_copy(update={"sampler": sampler}) if settings.sampler == "auto" else settings
    shared = _space(table.get("space", {}), "sweep.space")
    declared = table.get("arms")
    if declared is None:
        arms = _usual(run, shared, settings.alone)
    elif isinstance(declared, Mapping) and declared and all(isinstance(arm, Mapping) for arm in declared.values()):
        arms = [_declared(name, arm, run, shared, planned) for name, arm in declared.items()]
    else:
        raise ConfigError("sweep.arms must be tables", "write each as [sweep.arms.NAME]")
    if not any(arm.space for arm in arms):
        raise ConfigError(
            "the study searches nothing", 'write [sweep.space] with ranges, such as "train.lr" = [1e-3, 1e-2]'
        )
    for arm in arms:
        _check(arm)
    if planned is None:
        _check_teachers(arms)
    names: dict[str, str] = {}
    for name in (arm.name for arm in arms):
        other = names.setdefault(name.lower(), name)  # some file systems take them for one
        if other is not name:
            raise ConfigError(f"two arms are called {other} and {name}", "give one of them another name")
    metrics = {arm.metric for arm in arms}
    if len(metrics) > 1:
        raise ConfigError(
            f"arms select by different metrics: {', '.join(sorted(metrics))}", "state one: train.select of the run"
        )
    return Study(settings, tuple(arms))


def stored_study(told: Mapping[str, Any], *, data: str | None = None, seeds: Any = ()) -> Study:
    """The study of what study.toml holds (`Study.plain`), which does not hold the ``seeds`` of best points. Its data set may be
    at ``data`` now. Raises ``ConfigError`` for values that no study has, ``DataError`` where the data set alone can tell the
    protocol and is not there."""
    settings = {"seeds": seeds, **{key: value for key, value in told.items() if key != "arms"}}
    arms = []
    for name, arm in _mapping(told.get("arms"), "arms").items():
        own = _mapping(arm, f"arms.{name}")
        run = dict(_mapping(own.get("run"), f"arms.{name}.run"))
        if data is not None:
            run["data"] = {"path": data}
        config = resolve(run)
        selection = choose_selection(config, stored_protocol(config))
        arms.append(Arm(name, run, _space(own.get("space"), f"arms.{name}.space"), selection))
    return Study(SweepSettings.parse(settings, "study"), tuple(arms))


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {shown(value)}", f"write it as a table: [{where}]")
    return value


def _usual(run: dict[str, Any], space: dict[str, Range], alone: bool) -> list[Arm]:
    """The run as it stands, and without a teacher where it has one."""
    terms = run.get("distill")
    if not terms:
        return [_arm("run", run, space)]
    resolve(run)  # says of wrong terms what is wrong
    arms = [_arm(usual_name(terms), run, space)]
    if alone:
        bare = {key: value for key, value in run.items() if key not in ("distill", "start", "teachers")}
        arms.insert(0, _arm(ALONE, bare, _without_methods(space)))
    return arms


def usual_name(terms: Sequence[Mapping[str, Any]]) -> str:
    """The name of the arm of a run with these terms, in a study that declares no arms."""
    told = "+".join(str(term.get("name", term.get("method"))) for term in terms)
    # a class of somebody's own is called package:Class
    name = "".join(c if c in _NAME else "-" for c in told).lstrip("_.+-")[:_MOST_NAME]
    return name if name and name != ALONE and not name.endswith(".toml") else "run"


def _declared(
    name: str,
    arm: Mapping[str, Any],
    run: dict[str, Any],
    shared: dict[str, Range],
    planned: Mapping[str, Planned] | None,
) -> Arm:
    where = f"sweep.arms.{name}"
    own = {key: value for key, value in arm.items() if key not in ("space", "budget")}
    values = merged(run, own)
    space = shared if values.get("distill") else _without_methods(shared)
    space = {**space, **_space(arm.get("space", {}), f"{where}.space")}
    if "budget" in arm:
        terms = values.get("distill", [])
        if not isinstance(terms, list) or not all(isinstance(term, Mapping) for term in terms):
            raise ConfigError(f"{where}: distill must be a list of tables", "write each term as [[distill]]")
        for key in ("model", "train"):
            if not isinstance(values.get(key, {}), Mapping):
                raise ConfigError(f"{where}: {key} is {shown(values[key])}", f"write it as a table: [{key}]")
        named = [one for term in terms for one in _listed(term.get("teacher", []))]
        if not isinstance(arm["budget"], str) or not named:
            raise ConfigError(
                f"{where}.budget is {shown(arm['budget'])}, and its run has {len(named)} teachers",
                "write a text such as '1/20' beside a [[distill]] with a teacher",
            )
        model = {key: value for key, value in values.get("model", {}).items() if key not in ("dim", "bits", "users")}
        train = own.get("train", {})  # what all arms share is of students that begin with nothing
        rule = {key: value for key, value in values.get("train", {}).items() if key in ("seed", "select", "every")}
        values = chosen({**values, "model": model, "train": {**rule, **train}}, arm["budget"], named, planned=planned)
    return _arm(name, values, space)


def _arm(name: str, values: dict[str, Any], space: dict[str, Range]) -> Arm:
    check_name("arm", name)
    resolve(values)
    values = with_paths(values, os.path.abspath)  # a study is gone on with from any folder
    space = {key: _placed(key, span, values) for key, span in space.items()}
    config = resolve(values)
    dataset = Dataset.load(config.data.path)
    selection = choose_selection(config, choose_protocol(config, dataset))
    if not dataset.valid.n_pairs:
        raise ConfigError(
            f"{shown(config.data.path, 300)} has no validation part, and nothing else may choose",
            "prepare it with one: kdrs data prepare --split leave-one-out, or ratio",
        )
    check_measured(config, selection, build_evaluator(config, dataset), dataset)
    return Arm(name, values, space, selection)


def _placed(key: str, span: Range, values: Mapping[str, Any]) -> Range:
    """The range with its paths as they are from any folder. Names of the run's parts are none."""
    if not isinstance(span, Choices):
        return span
    parts = values.get("teachers", {})
    return Choices(tuple(with_paths({"teachers": parts, key: list(span.values)}, os.path.abspath)[key]))


def _as_searched(value: Any, span: Range) -> Any:
    """A run's value as its range has it: a teacher alone is a list of one."""
    if isinstance(value, list) and len(value) == 1 and span.holds(value[0]):
        return value[0]
    return value


def check_name(kind: str, name: str) -> None:
    """Raises ``ConfigError`` for a name that is no good folder, and for one of a file beside such folders: best/NAME.toml."""
    good = name and name[0] not in "_.+-" and name[-1] != "." and set(name) <= _NAME and len(name) <= _MOST_NAME
    if not good or name.lower().endswith(".toml"):
        allowed = f"allowed: letters, digits, _ . + -, at most {_MOST_NAME} of them, no .toml at the end"
        raise ConfigError(f"{kind} is called {shown(name)}", allowed)


def _check(arm: Arm) -> None:
    """Raises for a default or an end of a range that no run can have, naming the arm and the key."""
    for key, span in arm.space.items():
        if key.partition(".")[0] in ("data", "eval"):
            raise ConfigError(
                f"arm {arm.name} searches {shown(key)}, and values of other data or another protocol say nothing of each other",
                "state it in the file, and begin a study of each",
            )
        for value in span.ends():
            try:
                arm.at({key: value})
            except KdrsError as error:
                raise type(error)(
                    f"arm {arm.name}, {shown(key)} = {shown(value)}: {error.cause}", error.remedy
                ) from error


def shown_teachers(config: RunConfig) -> list[Path]:
    """The teachers that a study's report shows beside a run: runs and files, no parts and no folders of stages."""
    names = dict.fromkeys(name for term in config.distill for name in term.teacher if name not in config.teachers)
    return [path for path in map(Path, names) if path.is_file() or holds_run(path)]


def _check_teachers(arms: Sequence[Arm]) -> None:
    """Raises ``ArtefactError`` for teachers that the report could not show, once all trials were trained."""
    known: dict[Path, str] = {}
    for arm in arms:
        searched = [{key: value} for key, span in arm.space.items() if is_path(key) for value in span.ends()]
        for config in map(arm.at, [{}, *searched]):
            known.update(dict.fromkeys(shown_teachers(config), config.data.path))
    for path, data in known.items():
        check_comparable(path, Dataset.load(data))


def _space(table: Any, where: str) -> dict[str, Range]:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table", f'write [{where}] with keys such as "train.lr"')
    return {key: parse_range(value, f'{where}."{shown(key)}"') for key, value in _keys(table).items()}


def _keys(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys with dots, whether written so or as tables."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        # an empty table is a range that lacks its ends
        is_range = not isinstance(value, Mapping) or not value or bool({"low", "high"} & set(value))
        for name, span in ({f"{prefix}{key}": value} if is_range else _keys(value, f"{prefix}{key}.")).items():
            if name in found:
                raise ConfigError(f"{shown(name)} is searched twice", "write it once, by dots or in a table")
            found[name] = span
    return found


def _without_methods(space: Mapping[str, Range]) -> dict[str, Range]:
    return {key: span for key, span in space.items() if key.partition(".")[0] not in ("distill", "start", "teachers")}


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Tables put together, inner ones too; of everything else the second's wins."""
    found = dict(deepcopy(dict(one)))
    for key, value in other.items():
        inner = found.get(key)
        found[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return found


def _listed(names: Any) -> Sequence[str]:
    return [one for one in (names if isinstance(names, list) else [names]) if isinstance(one, str)]
