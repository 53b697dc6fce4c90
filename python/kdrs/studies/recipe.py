"""A recipe: a data set, runs and studies on it, and what a paper printed for them, carried out to a page of results.

A recipe is a TOML file (docs/search.md, "Reproduce a study"). What is there already is taken as it is, and what was stopped
goes on, so that a recipe of days is one command, given as often as needed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from kdrs._documents import read_toml
from kdrs._files import write_bytes
from kdrs.data import Dataset
from kdrs.data.known import fetch, known
from kdrs.data.prepare import PRESETS, prepare, with_options
from kdrs.data.prepare import Recipe as DataRecipe
from kdrs.errors import ArtefactError, ConfigError, KdrsError, TrainingError, nearest, quoted, shown
from kdrs.runs.config import RunConfig, read_run_file, resolve, with_seed
from kdrs.runs.execute import is_done
from kdrs.runs.pool import Pool, check_jobs, opened
from kdrs.runs.references import OtherTeacher, check_unchanged
from kdrs.runs.seeds import check_seeds
from kdrs.runs.values import FROM_TEACHER, to_toml
from kdrs.settings import Settings
from kdrs.studies.plan import check_name, merged, usual_name
from kdrs.studies.rehearsal import Rehearsal, naming
from kdrs.studies.sweep import Found, begin, carry_out
from kdrs.studies.trials import Trial

HEAD = "recipe.toml"
_TABLES = ("title", "about", "metrics", "data", "run", "runs", "studies")


class _Head(Settings):
    """What a recipe says of itself."""

    title: str
    about: tuple[str, ...] = ()
    """Sentences for the page: protocol, what was asked."""
    metrics: tuple[str, ...] = Field(("ndcg@10",), min_length=1)
    """Test metrics of the page, the first deciding."""


class _Entry(Settings):
    """A table ``[runs.NAME]`` but for the tables of its run file."""

    preset: str | None = None
    """A preset or run file that it begins from."""
    seeds: tuple[int, ...] = (0,)
    printed: dict[str, float] = Field(default_factory=dict)
    """What its source states, by metric."""
    source: str | None = None
    """Where it is stated."""
    note: str | None = None


@dataclass(frozen=True)
class Entry:
    """A run of a recipe, once a seed."""

    name: str
    config: RunConfig
    seeds: tuple[int, ...]
    after: frozenset[str]
    """Runs and studies that must be done before."""
    printed: dict[str, float] = field(default_factory=dict)
    source: str | None = None
    note: str | None = None

    def place(self, out: Path, seed: int) -> Path:
        return out / "runs" / self.name / f"seed-{seed}"


@dataclass(frozen=True)
class Recipe:
    title: str
    about: tuple[str, ...]
    metrics: tuple[str, ...]
    runs: tuple[Entry, ...]
    studies: dict[str, tuple[dict[str, Any], frozenset[str]]]
    """Plain values of each study's file, and what must be done before."""


@dataclass
class Made:
    """What a recipe has made so far."""

    out: Path
    recipe: Recipe
    done: dict[str, list[Path]] = field(default_factory=dict)
    """Finished runs by name."""
    failed: dict[str, KdrsError] = field(default_factory=dict)
    studies: dict[str, Found] = field(default_factory=dict)
    interrupted: bool = False

    def finished(self) -> list[Path]:
        """Finished runs, then those of the studies' best points, in the recipe's order: who ended first is of no account."""
        runs = [(one.place(self.out, seed), one.name) for one in self.recipe.runs for seed in one.seeds]
        own = [place for place, name in runs if place in self.done.get(name, ())]
        studies = [self.studies[name] for name in self.recipe.studies if name in self.studies]
        return own + [path for found in studies for arm in found.study.arms for path in found.runs.get(arm.name, ())]


def read_recipe(file: str | Path, out: str | Path) -> Recipe:
    """A recipe as it is carried out in ``out``, its data set prepared there.

    Raises ``ConfigError`` for a wrong file, every run and every range checked, for a folder of another recipe, and for a run
    that was begun there with other options, before anything is trained.
    """
    file, out = Path(file), Path(out)
    values = read_toml(file, "check the path, and see examples/reproduce")
    unknown = sorted(set(values) - set(_TABLES))
    if unknown:
        raise ConfigError(f"unknown key {shown(unknown[0])!r}", nearest(unknown[0], _TABLES))
    head = _Head.parse({key: values[key] for key in ("title", "about", "metrics") if key in values}, "")
    tables = {key: _table(values, key) for key in ("data", "run", "runs", "studies")}
    names = [*tables["runs"], *tables["studies"]]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{shown(name)} is a run and a study", "give one of them another name")
        check_name("a run or study", name)
    if not names:
        raise ConfigError("the recipe has no runs and no studies", "write [runs.NAME] or [studies.NAME]")
    for kind in ("runs", "studies"):
        for name in tables[kind]:
            own = _table(tables[kind], name, f"{kind}.{name}")
            for key in ("model", "train", "sweep"):
                _table(own, key, f"{kind}.{name}.{key}")
            _table(_table(own, "sweep"), "arms", f"{kind}.{name}.sweep.arms")
    begun = _check_folder(values, out)
    shared = merged(tables["run"], {"data": {"path": str(_data_of(tables["data"], out, begun))}})
    place = Path(os.path.abspath(out))  # where runs are found from any folder
    places = _Places(place, tables, shared)
    runs = tuple(_entry(name, table, shared, places) for name, table in tables["runs"].items())
    studies = {name: _study(table, shared, places) for name, table in tables["studies"].items()}
    order = _check_order(
        {**{run.name: run.after for run in runs}, **{name: after for name, (_, after) in studies.items()}}
    )
    rehearsal, by_name = Rehearsal(names, head.metrics), {run.name: run for run in runs}
    for name in order:
        if name in studies:
            rehearsal.study(f"studies.{name}", studies[name][0], place / "studies" / name)
        else:
            one = by_name[name]
            config = with_seed(one.config, one.seeds[0])
            rehearsal.run(f"runs.{name}", config, one.place(place, one.seeds[0]), one.printed)
    for one in runs if begun else ():
        _check_begun(one, place)
    write_bytes(out / HEAD, to_toml(values), make_folder=True)  # once all of it is right
    return Recipe(head.title, head.about, head.metrics, runs, studies)


def _check_begun(entry: Entry, out: Path) -> None:
    """Raises ``ConfigError``, with its name, for a run that has begun there with other options. What else is wrong with it is
    told when it is its turn."""
    for seed in entry.seeds:
        with suppress(ArtefactError), naming(f"runs.{entry.name}, seed {seed}"):
            try:
                is_done(with_seed(entry.config, seed), entry.place(out, seed))
            except ConfigError as error:
                raise ConfigError(
                    error.cause, f"{error.remedy}; or leave the run as it was, and give the changed one another name"
                ) from error


def _is_finished(config: RunConfig, place: Path) -> bool:
    """Whether a run is finished, with the teachers that are there now. Raises as `is_done`, and ``ArtefactError`` for a run
    that was begun with others, finished or not: its other seeds, of the present ones, would be averaged with it."""
    try:
        done = is_done(config, place)
        check_unchanged(place, config.to_dict(), there=not done)
        return done
    except OtherTeacher as error:
        raise ArtefactError(
            error.cause,
            f"put back what it was begun with, or take {quoted(place)} away: then the same command trains it anew",
        ) from error


def _check_order(after: Mapping[str, frozenset[str]]) -> list[str]:
    """Runs and studies, each after what it learns from. Raises ``ConfigError`` for those that wait for each other."""
    done: dict[str, None] = {}
    while ready := [name for name, first in after.items() if name not in done and first <= done.keys()]:
        done |= dict.fromkeys(ready)
    left = [name for name in after if name not in done]
    if left:
        first = shown(", ".join(f"{name} after {', '.join(sorted(after[name] - done.keys()))}" for name in left))
        raise ConfigError(
            f"some would wait for each other: {first}", "let none learn from what needs it, or from itself"
        )
    return list(done)


def reproduce(
    recipe: Recipe,
    out: str | Path,
    *,
    jobs: int = 1,
    on_run: Callable[[str, int, str], None] | None = None,
    on_trial: Callable[[str, Trial], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Made:
    """Carries out what is left of a recipe, ``jobs`` runs at a time.

    ``on_run`` hears of each run and seed how it ended. A run that fails is kept with its error, and what needs it is left out.
    """
    check_jobs(jobs)
    asked = should_stop or (lambda: False)
    work = _Work(recipe, Path(out), on_run)
    with opened(jobs, asked) as pool:  # its processes load what they need once
        while not asked():
            work.runs(pool, asked)
            name = next(work.ready_studies(), None)
            if name is None or asked():
                break
            place = Path(out) / "studies" / name
            with naming(f"studies.{name}"):
                study = begin(recipe.studies[name][0], place, resume=True, rehearsed=True)
            heard = None if on_trial is None else (lambda trial, of=name: on_trial(of, trial))
            found = carry_out(study, place, jobs=jobs, on_trial=heard, should_stop=asked, pool=pool)
            work.made.interrupted |= found.interrupted
            if not found.interrupted:
                work.made.studies[name] = found
                for arm, error in _lost(found):
                    work.made.failed[f"{name}, {arm}"] = error
    work.made.interrupted |= asked()
    return work.made


def _lost(found: Found) -> Iterator[tuple[str, KdrsError]]:
    """Arms none of whose trials could be trained, and runs of best points that could not."""
    yield from found.failed.items()
    for arm in found.study.arms:
        if found.best(arm.name) is None:
            first = next((trial.error for trial in found.trials[arm.name] if trial.error), "")
            yield (
                arm.name,
                TrainingError(f"no trial could be trained: {first}", f"mend the arm {arm.name} of the recipe"),
            )


class _Work:
    def __init__(self, recipe: Recipe, out: Path, on_run: Callable[[str, int, str], None] | None):
        self.recipe, self.out, self.on_run = recipe, out, on_run
        self.made = Made(out, recipe)

    def finished(self) -> set[str]:
        done = {e.name for e in self.recipe.runs if len(self.made.done.get(e.name, ())) == len(e.seeds)}
        return done | set(self.made.studies)

    def ready_studies(self) -> Iterator[str]:
        finished = self.finished()
        for name, (_, after) in self.recipe.studies.items():
            if name not in finished and after <= finished:
                yield name

    def left(self) -> Iterator[tuple[Entry, int]]:
        finished = self.finished()
        for entry in self.recipe.runs:
            for seed in entry.seeds:
                known = entry.place(self.out, seed) in self.made.done.get(entry.name, ())
                if not known and f"{entry.name}, seed {seed}" not in self.made.failed and entry.after <= finished:
                    yield entry, seed

    def runs(self, pool: Pool, asked: Callable[[], bool]) -> None:
        """All runs that can be had now."""
        begun: set[Path] = set()
        while True:
            waiting = [] if asked() else [one for one in self.left() if one[0].place(self.out, one[1]) not in begun]
            for entry, seed in waiting[: pool.free]:
                place, config = entry.place(self.out, seed), with_seed(entry.config, seed)
                try:
                    if _is_finished(config, place):
                        self._done(entry, seed, "was finished")
                        break
                except KdrsError as error:
                    self._failed(entry, seed, error)
                    break
                begun.add(place)
                pool.start((entry, seed), config, place, True)  # begun ones go on
                if pool.jobs == 1:
                    break
            else:
                if not begun:
                    return
            for (entry, seed), how in pool.next_ended(1.0):
                begun.discard(entry.place(self.out, seed))
                for warning in how.warnings:
                    warnings.warn(f"{entry.name}: {warning}", stacklevel=2)
                if how.error is not None:
                    if not isinstance(how.error, KdrsError):
                        raise how.error
                    self._failed(entry, seed, how.error)
                elif how.stopped == "interrupted":
                    self.made.interrupted = True
                else:
                    self._done(entry, seed, f"finished by {how.stopped}")

    def _done(self, entry: Entry, seed: int, how: str) -> None:
        self.made.done.setdefault(entry.name, []).append(entry.place(self.out, seed))
        self._say(entry, seed, how)

    def _failed(self, entry: Entry, seed: int, error: KdrsError) -> None:
        self.made.failed[f"{entry.name}, seed {seed}"] = error
        self._say(entry, seed, f"failed: {error.cause}")

    def _say(self, entry: Entry, seed: int, how: str) -> None:
        if self.on_run is not None:
            self.on_run(entry.name, seed, how)


class _Places:
    """Where what a recipe names is found: runs by their first seed, studies by the best run of their first arm, or, where they
    declare none, of the arm that has their methods."""

    def __init__(self, out: Path, tables: Mapping[str, Any], shared: Mapping[str, Any]):
        self.out, self.tables, self.shared = out, tables, shared

    def of(self, name: str) -> str | None:
        if name in self.tables["runs"]:
            seeds = self.tables["runs"][name].get("seeds") or [0]
            return str(self.out / "runs" / name / f"seed-{seeds[0]}")
        if name in self.tables["studies"]:
            study = merged(self.shared, self.tables["studies"][name])
            terms = study.get("distill", [])
            usual = usual_name([term for term in terms if isinstance(term, Mapping)] if isinstance(terms, list) else [])
            arm = next(iter(study.get("sweep", {}).get("arms", {})), usual)
            seed = study.get("train", {}).get("seed", 0)
            return str(self.out / "studies" / name / "best" / arm / f"seed-{seed}")
        return None

    def placed(self, values: Any, key: str = "") -> tuple[Any, set[str]]:
        """Plain values with names of runs and studies as paths, and which names there were."""
        if isinstance(values, Mapping):
            pairs = {name: self.placed(value, str(name)) for name, value in values.items()}
            return {name: value for name, (value, _) in pairs.items()}, set().union(*(n for _, n in pairs.values()))
        if isinstance(values, list):
            found = [self.placed(value, key) for value in values]
            return [value for value, _ in found], set().union(*(names for _, names in found))
        key = key.rpartition(".")[2]  # a range names its key by dots
        if key in ("teacher", "start") and isinstance(values, str) and not (key == "start" and values == FROM_TEACHER):
            place = self.of(values)
            if place is not None:
                return place, {values}
        return values, set()


def _entry(name: str, table: Any, shared: Mapping[str, Any], places: _Places) -> Entry:
    where = f"runs.{name}"
    own = _Entry.parse({key: value for key, value in table.items() if key in _Entry.model_fields}, where)
    check_seeds(own.seeds)
    values = {key: value for key, value in table.items() if key not in _Entry.model_fields}
    base = {} if own.preset is None else read_run_file(Path(own.preset))
    run, after = places.placed(merged(merged(base, shared), values))
    after -= set(_table(run, "teachers", f"{where}.teachers"))
    try:
        config = resolve(run)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.cause}", error.remedy) from error
    return Entry(name, config, own.seeds, frozenset(after), dict(own.printed), own.source, own.note)


def _study(table: Any, shared: Mapping[str, Any], places: _Places) -> tuple[dict[str, Any], frozenset[str]]:
    values, after = places.placed(merged(shared, table))
    return values, frozenset(after)


def _data_of(table: Mapping[str, Any], out: Path, begun: bool) -> Path:
    """The recipe's data set: at its path, or prepared in ``out/data``, once."""
    if set(table) == {"path"} and isinstance(table["path"], str):
        place = Path(os.path.abspath(table["path"]))
        Dataset.load(place)
        return place
    if set(table) - {"known", "choices"} or "known" not in table:
        raise ConfigError(
            "the recipe's data set is not named", 'write [data] with known = "ml-100k", or path = "datasets/mine"'
        )
    place = out / "data"
    if not begun or not (place / "dataset.json").is_file():
        data = known(str(table["known"]))
        choices = deepcopy(dict(_table(table, "choices")))
        preset = choices.pop("preset", None)
        if preset is not None and str(preset) not in PRESETS:
            raise ConfigError(f"unknown preset {shown(preset)}", nearest(str(preset), PRESETS))
        for key in choices:
            if key not in (allowed := [*data.recipe.__dataclass_fields__, *data.recipe.read.__dataclass_fields__]):
                raise ConfigError(f"unknown key 'data.choices.{shown(key)}'", nearest(key, allowed))
        files = fetch(data.name)
        own = DataRecipe(data.recipe.read, seed=data.recipe.seed) if preset is not None else data.recipe
        recipe = with_options(with_options(own, **PRESETS.get(preset, {})), **choices)
        source = files["all"] if set(files) == {"all"} else files
        prepare(source, recipe, name=data.name, published=True).save(place, overwrite=True)
    Dataset.load(place)
    return place


def _check_folder(values: Mapping[str, Any], out: Path) -> bool:
    """Whether the recipe has begun there. Raises ``ConfigError`` for a folder of another recipe or of something else; a data
    set alone is what a recipe with a mistake left."""
    head = out / HEAD
    if head.exists():
        before = read_toml(head, "restore it, or name another folder with --out")
        if _what(before) != _what(values):
            raise ConfigError(
                f"{shown(str(out), 300)} was made by another recipe",
                "name another folder with --out, or give that recipe",
            )
        return True
    if out.exists() and (not out.is_dir() or any(not _is_left(path.name) for path in out.iterdir())):
        raise ConfigError(f"{shown(str(out), 300)} exists and is of no recipe", "name another folder with --out")
    return False


def _is_left(name: str) -> bool:
    """Whether that is all that a recipe that never began may have left: its data set, and what writing was killed at."""
    return name == "data" or (name.startswith((".data.", f".{HEAD}.")) and name.endswith(".tmp"))


def _what(values: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change: the data set and what all runs share. Runs and words may be added."""
    return {key: values.get(key) for key in ("data", "run")}


def _table(values: Mapping[str, Any], key: str, told: str | None = None) -> Mapping[str, Any]:
    table = values.get(key, {})
    if not isinstance(table, Mapping):
        told = key if told is None else told
        raise ConfigError(f"{told} is {shown(table)}", f"write it as a table: [{told}]")
    return table
