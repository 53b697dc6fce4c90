"""The same run once a seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from kdrs._launch import check_launched, launched
from kdrs.errors import ConfigError, KdrsError, TrainingError, is_panic, shown
from kdrs.evaluation.report import Report
from kdrs.runs.config import RunConfig, as_begun, completed, with_seed
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute, is_done
from kdrs.runs.following import decided
from kdrs.runs.places import check_none_begun, holds_run
from kdrs.runs.pool import opened
from kdrs.runs.records import PATH
from kdrs.runs.references import OtherTeacher, check_unchanged
from kdrs.runs.reported import load_reports
from kdrs.runs.values import same_places
from kdrs.runs.vouching import MAY_CHANGE, difference
from kdrs.training.processes import current, joined

MOST_SEEDS = 10_000


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises ``ConfigError`` for seeds that a run cannot have, repeated ones, and more than ``MOST_SEEDS``."""
    if not 1 <= len(seeds) <= MOST_SEEDS:
        raise ConfigError(f"{len(seeds):,} seeds are asked for", f"allowed: 1 to {MOST_SEEDS:,} seeds")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
            raise ConfigError(f"seed is {shown(seed)}", f"allowed: integers from 0 to {2**31 - 1}")
    if len(set(seeds)) < len(seeds):
        raise ConfigError("a seed is given twice", "give each once")


def execute_seeds(
    seeds: Sequence[int],
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    jobs: int = 1,
    on_start: Callable[[dict[str, Any]], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[int, dict[str, Report] | Exception]:
    """The same run once a seed, into ``out/seed-N``, ``jobs`` at a time; reports by seed.

    A seed that fails is kept as its exception and the others go on. With ``resume`` finished seeds are taken as they are
    and begun ones go on. Stops after the seeds in hand once ``should_stop`` says so; an interrupted seed is left out. With
    several jobs each run has a process of its own, and ``on_start`` and ``on_epoch`` hear nothing. Raises ``ConfigError``
    before the first for seeds that a run cannot have, where one of them was begun with other options, and where one was begun
    and ``resume`` is not given; ``ArtefactError`` where one was begun with another teacher, unless all are finished and their
    teachers are where they were.
    """
    check_seeds(seeds)
    check_launched()
    _check_alike(seeds, config, Path(out))
    if jobs > 1:
        if (launch := launched()) is not None:
            raise ConfigError(
                f"{jobs} jobs are asked for in each of {launch.size} processes",
                "leave --jobs out, or call it without torchrun",
            )
        _check_new(seeds, Path(out), resume)
        return _side_by_side(seeds, config, Path(out), resume, jobs, should_stop or (lambda: False))
    with joined():
        _check_new(seeds, Path(out), resume)
        return _each(seeds, config, Path(out), resume, on_start, on_epoch, should_stop)


def _check_new(seeds: Sequence[int], out: Path, resume: bool) -> None:
    """Raises ``ConfigError`` where a seed was begun and is not to go on."""
    places = [out / f"seed-{seed}" for seed in seeds]
    if decided(not resume and any(map(holds_run, places))):  # none begins a seed before all have looked
        check_none_begun(places)


def _check_alike(seeds: Sequence[int], config: RunConfig, out: Path) -> None:
    """Raises ``ConfigError`` where a seed was begun with other options, ``ArtefactError`` where it was with another teacher:
    those that are to be trained would be seeds of another model."""
    changed, left = None, False
    for place in (out / f"seed-{seed}" for seed in seeds):
        try:
            if not holds_run(place):
                left = True
                continue
            run = Run.open(place)
            same_seed = as_begun(with_seed(config, run.config["train"]["seed"]), run)
            own, before = same_seed.to_dict(), completed(run.config)
            if not same_places(own["data"]["path"], before["data"]["path"]):
                _ = run.data  # which `Run.elsewhere` compares then
        except KdrsError:  # damaged: told when it is its turn
            continue
        with _in_the_same_command():
            found = difference(own, before, same=run.elsewhere(own, before))
        if found is not None:
            key, now, then = found
            raise ConfigError(
                f"{shown(str(place), PATH)} was started with {key} = {shown(then)}, now it is {shown(now)}",
                f"seeds of one model differ in nothing else (on resume in {', '.join(sorted(MAY_CHANGE))}): ask for what it "
                "was started with, or name another folder with --out",
            )
        try:
            check_unchanged(place, own, there=False)
        except OtherTeacher as error:
            changed = changed or error
        with suppress(KdrsError):
            left = left or not is_done(same_seed, place)
    if changed is not None and left:
        with _in_the_same_command():
            raise changed


@contextmanager
def _in_the_same_command() -> Iterator[None]:
    """Seeds go on by the command that began them: it says where a teacher is now."""
    try:
        yield
    except OtherTeacher as error:
        raise OtherTeacher(
            error.cause,
            "put back what it was begun with, or say where that is now, by --teacher (or --start) in the same command, or in "
            "its run file; or begin the seeds anew in another folder, by --out",
        ) from error


def _each(
    seeds: Sequence[int],
    config: RunConfig,
    out: Path,
    resume: bool,
    on_start: Callable[[dict[str, Any]], None] | None,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    should_stop: Callable[[], bool] | None,
) -> dict[int, dict[str, Report] | Exception]:
    results: dict[int, dict[str, Report] | Exception] = {}
    for seed in seeds:
        place = out / f"seed-{seed}"
        own = with_seed(config, seed)
        try:
            begun = decided(resume and (place / "config.toml").is_file())
            if begun and is_done(own, place):
                results[seed] = load_reports(Run.open(place))
                continue
            outcome = execute(own, place, resume=begun, on_start=on_start, on_epoch=on_epoch, should_stop=should_stop)
            if outcome.fit.stopped != "interrupted":
                results[seed] = outcome.reports
        except Exception as error:
            if current() is not None:  # the others may be in the middle of this seed
                raise
            results[seed] = error
        except BaseException as error:
            if not is_panic(error):
                raise
            results[seed] = TrainingError(f"internal: the core panicked: {shown(str(error), 500)}")
        if should_stop is not None and decided(should_stop()):
            break
    return results


def _side_by_side(
    seeds: Sequence[int], config: RunConfig, out: Path, resume: bool, jobs: int, asked: Callable[[], bool]
) -> dict[int, dict[str, Report] | Exception]:
    results: dict[int, dict[str, Report] | Exception] = {}
    waiting = list(seeds)
    with opened(jobs, asked) as pool:
        while True:
            while waiting and pool.free and not asked():
                seed = waiting.pop(0)
                own, place = with_seed(config, seed), out / f"seed-{seed}"
                try:
                    begun = resume and (place / "config.toml").is_file()
                    if begun and is_done(own, place):
                        results[seed] = load_reports(Run.open(place))
                        continue
                except Exception as error:
                    results[seed] = error
                    continue
                pool.start(seed, own, place, begun)
            ended = pool.next_ended()
            if not ended:
                return {seed: results[seed] for seed in seeds if seed in results}
            for seed, how in ended:
                for warning in how.warnings:
                    warnings.warn(f"seed {seed}: {warning}", stacklevel=2)
                if how.error is not None:
                    results[seed] = how.error
                elif how.stopped != "interrupted":
                    results[seed] = load_reports(Run.open(out / f"seed-{seed}"))


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
