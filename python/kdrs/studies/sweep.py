"""A study carried out: trials of every arm, then the best of each once a seed."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdrs._documents import read_toml
from kdrs._files import unwritable, write_bytes
from kdrs.errors import ArtefactError, ConfigError, InUse, KdrsError, ScoreError, TrainingError, shown
from kdrs.runs.config import RunConfig, read_run_file, with_seed
from kdrs.runs.directory import Run, holds_run
from kdrs.runs.execute import is_done
from kdrs.runs.pool import Ended, Pool, check_jobs, opened
from kdrs.runs.values import to_toml, with_paths
from kdrs.studies.moved import former_root, put_right, recipe_of, rooted
from kdrs.studies.plan import Arm, Study, parse_study
from kdrs.studies.points import has_optuna, journal, points
from kdrs.studies.rehearsal import Rehearsal
from kdrs.studies.trials import Trial, best_of, finished, place_of, read_trial, write_table, write_trial

HEAD = "study.toml"
WAIT = 2.0
"""Seconds between looks at what another process works on."""


@dataclass
class Found:
    """What came of a study."""

    out: Path
    study: Study
    trials: dict[str, list[Trial]]
    """By arm, in the order of their numbers."""
    runs: dict[str, list[Path]] = field(default_factory=dict)
    """By arm the runs of its best point, one a seed."""
    failed: dict[str, KdrsError] = field(default_factory=dict)
    """Runs of best points that failed, by ``arm, seed N``."""
    interrupted: bool = False

    def best(self, arm: str) -> Trial | None:
        return best_of(self.trials[arm])


def begin(values: Mapping[str, Any], out: str | Path, *, resume: bool = False, rehearsed: bool = False) -> Study:
    """The study of a file's plain values, its head written to ``out`` or found there. A new one is built once before, all arms
    at their default points, unless it was ``rehearsed``.

    Raises ``ConfigError`` for a wrong file, for a folder that holds something else, and for one that holds a study unless
    ``resume`` is on, which must be the same one; more trials and other seeds may be asked for, and the folder of a recipe that
    it is of may have been copied or moved. Raises, too, what building an arm raises, its name before the cause.
    """
    out = Path(out)
    head = out / HEAD
    name = shown(str(out), 300)
    before = read_toml(head, "restore it, or name another folder with --out", ArtefactError) if head.exists() else None
    if before is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{name} exists and is no study", "name another folder with --out")
    if before is not None and not resume:
        raise ConfigError(
            f"{name} already holds a study",
            "go on with it, or work on it beside others, by --resume; or name another folder",
        )
    sampler = str((before or {}).get("sampler", "tpe" if has_optuna() else "random"))
    study = parse_study(values, sampler=sampler)
    told = study.plain()
    root, former = recipe_of(out), None
    if before is not None and root is not None and (former := former_root(before, told, root)) is not None:
        before = rooted(before, former, root)
    if before is not None:
        asked, known = study.settings.trials, before.get("trials", 0)
        if isinstance(known, int) and asked < known:
            raise ConfigError(
                f"{name} has {known} trials an arm, {asked} are asked for", f"ask for as many or more: --trials {known}"
            )
        other = _difference({**before, "trials": asked}, told)
        if other is not None:
            raise ConfigError(
                f"{name} holds a study of another {other}",
                "give the file that it was begun with, or name another folder",
            )
    if before is None and not rehearsed:
        Rehearsal().arms(study, out)
    if root is not None and former is not None:
        put_right(out, former, root)
    if former is not None or before != told:  # moved, new, or longer
        write_bytes(head, to_toml(told), make_folder=True)
    return study


def sweep(
    study: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    jobs: int = 1,
    resume: bool = False,
    on_trial: Callable[[Trial], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Found:
    """Searches a run's settings: the same number of trials of each arm, chosen on validation.

    ``study`` is a run file with a table ``[sweep]`` (docs/search.md), or its plain values; ``out`` the folder of all runs.
    Raises ``ConfigError`` for a wrong file, before anything is trained; a trial that cannot be trained is kept with its error.
    """
    values = read_run_file(Path(study)) if isinstance(study, (str, Path)) else study
    return carry_out(begin(values, out, resume=resume), out, jobs=jobs, on_trial=on_trial, should_stop=should_stop)


def carry_out(
    study: Study,
    out: str | Path,
    *,
    jobs: int = 1,
    on_trial: Callable[[Trial], None] | None = None,
    on_seed: Callable[[str, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    pool: Pool | None = None,
) -> Found:
    """Trains what is left of a study that has begun, ``jobs`` runs at a time, and writes ``trials.csv``.

    Other processes may work on the same folder: each trial is trained by one of them, and all end with the same study. Once
    ``should_stop`` says so, runs in hand end after their epoch and can be gone on with. A ``pool`` that is open already is
    used, of as many jobs.
    """
    check_jobs(jobs)
    asked = should_stop or (lambda: False)
    work = _Work(study, Path(out), on_trial, on_seed)
    with opened(jobs, asked) if pool is None else nullcontext(pool) as own:
        work.all(own, asked)
    trials = {name: [ended[n] for n in sorted(ended)] for name, ended in work.ended.items()}
    write_table(Path(out), [trial for ended in trials.values() for trial in ended])
    if study.settings.sampler == "tpe" and not work.interrupted:
        _write_journal(Path(out), study, trials)
    return Found(Path(out), study, trials, work.runs(), work.failed, work.interrupted)


@dataclass(frozen=True)
class _Job:
    arm: Arm
    number: int
    """Of the trial; the seed where it is a run of the best point."""
    point: dict[str, Any] | None
    config: RunConfig
    place: Path


class _Work:
    """What is left to do, and what is known."""

    def __init__(
        self,
        study: Study,
        out: Path,
        on_trial: Callable[[Trial], None] | None,
        on_seed: Callable[[str, int], None] | None,
    ):
        self.study, self.out = study, out
        self.on_trial, self.on_seed = on_trial, on_seed
        self.ended: dict[str, dict[int, Trial]] = {arm.name: {} for arm in study.arms}
        self.failed: dict[str, KdrsError] = {}
        self.interrupted = False
        self._whole = dict.fromkeys(self.ended, 0)
        """By arm, where the first batch begins that has not ended."""
        self._drawn: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self._seeds: dict[str, set[int]] = {arm.name: set() for arm in study.arms}
        self._said: set[str] = set()

    def all(self, pool: Pool, asked: Callable[[], bool]) -> None:
        hidden: dict[Path, float] = {}  # what others work on, and when to look again
        begun: set[Path] = set()
        while True:
            left = False
            ready: list[_Job] = []  # no more than can begin: a batch may have a thousand
            for job in () if asked() else self._left():
                if job.place not in begun:
                    left = True
                    if hidden.get(job.place, 0.0) <= time.monotonic():
                        ready.append(job)
                if left and len(ready) >= pool.free:
                    break
            for job in ready[: pool.free]:
                if (job.place / "config.toml").is_file() and is_done(job.config, job.place):
                    self._note(job, Ended("before"))
                    break  # it may have been the last of its batch
                begun.add(job.place)
                pool.start(job, job.config, job.place, True)  # another process may have begun or ended it just now
                if pool.jobs == 1:
                    break
            else:
                if not begun and not left:
                    self.interrupted |= asked() and any(True for _ in self._left())
                    return
                if not begun:
                    time.sleep(0.2 if ready else WAIT / 4)
            for job, how in pool.next_ended(WAIT):
                begun.discard(job.place)
                if isinstance(how.error, InUse):
                    hidden[job.place] = time.monotonic() + WAIT
                else:
                    self._note(job, how)

    def _left(self) -> Iterator[_Job]:
        """What may be trained now, the arms in turn."""
        queues = [self._left_of(arm) for arm in self.study.arms]
        while queues:
            for queue in list(queues):
                job = next(queue, None)
                if job is None:
                    queues.remove(queue)
                else:
                    yield job

    def _left_of(self, arm: Arm) -> Iterator[_Job]:
        settings, ended = self.study.settings, self.ended[arm.name]
        n_trials = settings.trials if arm.space else 1
        for first in range(self._whole[arm.name], n_trials, settings.batch):
            drawn = self._points(arm, first)
            for offset, point in enumerate(drawn[: n_trials - first]):
                number = first + offset
                if number in ended:
                    continue
                trial = read_trial(self.out, arm, number, point)
                if trial is not None:
                    self._end(trial)
                    continue
                try:
                    config = arm.at(point)
                except KdrsError as error:
                    self._end(Trial(arm.name, number, point, None, error=_text(error)), write=True)
                    continue
                yield _Job(arm, number, point, config, place_of(self.out, arm.name, number))
            if not all(number in ended for number in range(first, min(first + settings.batch, n_trials))):
                return
            self._whole[arm.name] = first + settings.batch
        best = best_of(list(ended.values()))
        if best is not None:
            yield from self._left_of_best(arm, best)

    def _points(self, arm: Arm, first: int) -> list[dict[str, Any]]:
        key = (arm.name, first)
        if key not in self._drawn:
            settings = self.study.settings
            known = [self.ended[arm.name][n].known for n in range(first)]
            self._drawn[key] = points(arm, settings, first, first + settings.batch, known)
        return self._drawn[key]

    def _left_of_best(self, arm: Arm, best: Trial) -> Iterator[_Job]:
        config = arm.at(best.point)
        folder = self.out / "best" / arm.name
        self._keep_best(arm, best, config, folder)
        for seed in self.study.seeds(arm, best.point):
            if seed not in self._seeds[arm.name] and f"{arm.name}, seed {seed}" not in self.failed:
                yield _Job(arm, seed, None, with_seed(config, seed), folder / f"seed-{seed}")

    def _keep_best(self, arm: Arm, best: Trial, config: RunConfig, folder: Path) -> None:
        """The best trial's run under best/ARM, with its run file. Runs of a point that was best before go to former/."""
        seed = config.train.seed
        told = to_toml(with_paths(config.to_dict(), os.path.abspath))
        file = self.out / "best" / f"{arm.name}.toml"
        if seed in self._seeds[arm.name] and file.exists():
            return
        try:
            if folder.exists() and (not file.exists() or file.read_bytes() != told):
                former = self.out / "former"
                former.mkdir(exist_ok=True)
                free = (former / f"{arm.name}-{n}" for n in itertools.count(1))
                folder.rename(next(place for place in free if not place.exists()))
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, told)
            place, trained = folder / f"seed-{seed}", place_of(self.out, arm.name, best.number)
            if not place.exists():
                if not holds_run(trained):
                    return  # it was taken away, and is trained anew
                folder.mkdir(exist_ok=True)
                with tempfile.TemporaryDirectory(prefix=f".seed-{seed}.", suffix=".tmp", dir=folder) as new:
                    shutil.copytree(trained, Path(new) / "run")
                    try:
                        (Path(new) / "run").rename(place)
                    except OSError:  # another process was first
                        if not place.exists():
                            raise
        except OSError as error:
            # of a tree that could not be copied Python lists every file
            first = error.args[0][0][2] if isinstance(error, shutil.Error) else None
            raise unwritable(folder, error if first is None else OSError(str(first))) from error
        if is_done(config, place):
            self._seeds[arm.name].add(seed)

    def _note(self, job: _Job, how: Ended) -> None:
        """What a run's end means for the study. Raises what is no fault of the point."""
        # those of a default are told: other points have the same, and the comparison says what is wrong with the best
        for warning in how.warnings if job.number == 0 and job.point is not None else ():
            if warning not in self._said:
                self._said.add(warning)
                warnings.warn(f"{job.arm.name}: {warning}", stacklevel=2)
        if how.error is not None and not isinstance(how.error, (TrainingError, ScoreError, ConfigError)):
            raise how.error
        if how.stopped == "interrupted":
            self.interrupted = True
        elif job.point is None:
            if how.error is not None:
                self.failed[f"{job.arm.name}, seed {job.number}"] = how.error
            else:
                self._seeds[job.arm.name].add(job.number)
            if self.on_seed is not None and how.error is None:
                self.on_seed(job.arm.name, job.number)
        elif how.error is not None:
            run_rows = Run.open(job.place).metrics.rows() if (job.place / "metrics.jsonl").is_file() else []
            seconds = round(sum(row.get("seconds", 0.0) for row in run_rows), 3)
            failed = Trial(job.arm.name, job.number, job.point, None, len(run_rows), seconds, _text(how.error))
            self._end(failed, write=True)
        else:
            self._end(finished(job.arm, job.number, job.point, job.place), write=True)

    def _end(self, trial: Trial, *, write: bool = False) -> None:
        if write:
            write_trial(self.out, trial)
        self.ended[trial.arm][trial.number] = trial
        if self.on_trial is not None:
            self.on_trial(trial)

    def runs(self) -> dict[str, list[Path]]:
        return {
            name: [self.out / "best" / name / f"seed-{seed}" for seed in sorted(seeds)]
            for name, seeds in self._seeds.items()
            if seeds
        }


def _text(error: Exception) -> str:
    return shown(str(error).replace("\n", "; try: "), 500)


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], where: str = "") -> str | None:
    """The first key, by dots, in which plain values differ."""
    for key in sorted({*one, *other}):
        path = f"{where}.{key}" if where else key
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            inner = _difference(mine, theirs, path)
            if inner is not None:
                return inner
        elif _listed(mine) != _listed(theirs):
            return path
    return None


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _write_journal(out: Path, study: Study, trials: Mapping[str, list[Trial]]) -> None:
    """optuna.journal: every arm as a study, for Optuna's own tools. Written anew each time."""
    path = out / "optuna.journal"
    try:
        path.unlink(missing_ok=True)
        for arm in study.arms:
            if arm.space:
                journal(str(path), arm.name, arm, [trial.known for trial in trials[arm.name]])
    except OSError as error:
        raise unwritable(path, error) from error
