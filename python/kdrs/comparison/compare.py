"""Runs side by side: what a student took over of its teacher, quality, size, speed, and whether it is more than luck."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np

from kdrs.comparison.draws import Draws
from kdrs.comparison.groups import Trait, breakdown_of
from kdrs.comparison.result import Comparison, Line, check_folder
from kdrs.comparison.standing import Standing, places_of
from kdrs.comparison.trust import warnings_of
from kdrs.comparison.verdicts import verdict_of
from kdrs.errors import ConfigError, DataError, nearest, shown
from kdrs.evaluation.lists import top_lists
from kdrs.evaluation.protocols import cutoff
from kdrs.evaluation.report import Report
from kdrs.evaluation.significance import (
    RESAMPLES,
    TESTS,
    Difference,
    Spread,
    adjusted,
    checked,
    seed_spread,
    seed_test,
)

__all__ = ["ROLES", "Comparison", "Entry", "Line", "check_folder", "compare", "scoring_seconds"]

ROLES = ("teacher", "alone", "student")
_Number = TypeVar("_Number", int, float)
Pair: TypeAlias = tuple[str, str, str]
"""A model, what it is compared with, and the metric."""


@dataclass(frozen=True)
class Entry:
    """One run that takes part. Entries of one name are the same model trained with several seeds."""

    name: str
    role: str
    """``teacher``, ``alone`` (trained without a teacher) or ``student``."""
    reports: Mapping[str, Report]
    """By part."""
    n_parameters: int | None = None
    n_bytes: int | None = None
    """Of all its tables, ids left out."""
    seconds_per_1000: float | None = None
    """Seconds for the top-k of 1,000 queries, see ``scoring_seconds``."""
    curve: Sequence[Mapping[str, Any]] = ()
    """Lines of metrics.jsonl: ``{"epoch": 3, "valid": {"ndcg@10": 0.2}, ...}``."""
    seed: int | None = None
    agreement: Mapping[str, float] = field(default_factory=dict)
    """Of its lists with the teacher's, such as ``{"overlap@10": 0.4}``, see ``kdrs.evaluation.lists.overlap``."""
    bytes_per_row: float | None = None
    """Of one item or user, the larger of the two, with its scale and bias."""
    selection: str | None = None
    """How its epoch was selected, in words; those of one comparison should be the same."""
    doubts: Sequence[str] = ()
    """What is wrong with it as far as is known, such as ``kdrs.evaluation.curves.doubts_of`` its curve."""


def compare(
    entries: Iterable[Entry],
    *,
    part: str = "test",
    metrics: Sequence[str] | None = None,
    teacher: str | None = None,
    baseline: str | None = None,
    test: str | None = None,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
    by: Sequence[Trait] = (),
) -> Comparison:
    """Compares models on the same queries.

    ``metrics`` defaults to two: recall and NDCG near K = 10, or with sampled candidates hit and NDCG near K = 5.
    ``teacher`` names the model that ratios and shares are of (the first with that role), which makes it one, ``baseline`` the
    one that all are compared with: unless it is named, each model is compared with the one trained alone whose bytes are
    nearest to its own. Naming either takes two models. A model is a teacher if any of its seeds is.
    ``test`` is ``randomisation`` unless given, which takes a baseline and another model.
    p-values carry Holm's correction over all models and metrics but the teacher's, over queries and over seeds.
    ``by`` are traits of the queries: each adds the quality of groups of them.
    Raises ``DataError`` for reports of other queries, settings or rules: such numbers must not be compared; ``ConfigError`` for
    entries of one name that have one seed, or are alone and students, and for names, tests and numbers that cannot be.
    """
    metrics = None if metrics is None else checked_metrics(metrics)
    checked(resamples, confidence)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed is {shown(repr(seed))}", "allowed: integers from 0 on")
    groups = _grouped(entries, teacher)
    found = {name: [_part_of(entry, part) for entry in group] for name, group in groups.items()}
    first = next(iter(found.values()))[0]
    _check_comparable(found)
    metrics = _headline(first) if metrics is None else metrics
    for metric in metrics:
        if metric not in first.values:
            raise _unknown_metric(metric, first)
        for name, reports in found.items():
            if any(metric not in report.values for report in reports):
                raise DataError(f"the report of {shown(name)} holds no {metric}", "evaluate it with the same metrics")
    for option, stated in (("teacher", teacher), ("baseline", baseline)):
        if stated is not None and len(groups) < 2:
            raise ConfigError(
                f"{option} {shown(stated)} has nothing to be compared with: there is only {shown(next(iter(groups)))}",
                f"add a run, or leave the {option} out",
            )
    teacher = _named(groups, teacher, "teacher")
    named, baseline = baseline, _named(groups, baseline, "alone")
    baselines = _baselines(groups, named)
    if test is not None and (baseline is None or len(groups) < 2):
        missing = "no run was trained alone" if baseline is None else f"there is only {shown(baseline)}"
        raise ConfigError(
            f"test {shown(test)} has nothing to compare: {missing}", "add a run, name a baseline, or leave the test out"
        )
    paired = TESTS[0] if test is None else test
    seeds_of = {name: tuple(entry.seed for entry in group) for name, group in groups.items()}
    draws = Draws(seeds_of, found, metrics, paired, resamples, confidence, seed)
    qualities = {
        name: {metric: _spread([report.mean(metric) for report in reports], confidence) for metric in metrics}
        for name, reports in found.items()
    }
    pairs = [(name, base, metric) for name, base in baselines.items() for metric in metrics] if first.n else []
    best = {} if not first.n else _best(groups, qualities, metrics)
    to_best = [(name, top, metric) for metric, (top, places) in best.items() for name in places if name != top]
    tests = draws.differences(list(dict.fromkeys([*pairs, *to_best])), paired)
    seed_tests = _over_seeds(groups, found, list(tests), confidence)
    against = _corrected(groups, {pair: tests[pair] for pair in pairs})
    over_seeds = _corrected(groups, {pair: seed_tests[pair] for pair in pairs if pair in seed_tests})
    standings = _standings(groups, best, to_best, tests, seed_tests)
    lines = []
    for name, group in groups.items():
        quality = qualities[name]
        base = baselines.get(name)
        own = {metric: against[name, base, metric] for metric in metrics if base and (name, base, metric) in against}
        by_seed = {m: over_seeds[name, base, m] for m in metrics if base and (name, base, m) in over_seeds}
        seeds = min(len(group), len(groups[base])) if base is not None else 1
        transfer = {}
        if first.n and teacher is not None and base is not None and name != teacher != base:
            transfer = {metric: draws.transfer(name, base, teacher, metric) for metric in metrics}
        lines.append(
            Line(
                name,
                group[0].role,
                tuple(entry.seed for entry in group),
                quality,
                {metric: draws.interval(name, metric) for metric in metrics} if first.n else {},
                base,
                transfer,
                {} if teacher is None else {metric: _share(found, name, teacher, metric) for metric in metrics},
                own,
                by_seed,
                {metric: verdict_of(difference, by_seed.get(metric), seeds) for metric, difference in own.items()},
                _mean_of([report.beyond for report in found[name]]),
                _mean_of([entry.agreement for entry in group]),
                _largest([entry.n_parameters for entry in group]),
                _largest([entry.n_bytes for entry in group]),
                _largest([entry.bytes_per_row for entry in group]),
                _median([entry.seconds_per_1000 for entry in group]),
                tuple(entry.curve for entry in group if entry.curve),
                standings[name],
            )
        )
    compared = Comparison(
        tuple(lines), metrics, part, first.setting, first.n, first.n_queries, teacher, baseline, confidence
    )
    together: dict[str, Any] = {"confidence": confidence, "seed": seed}
    return replace(
        compared,
        warnings=warnings_of(compared, [entry for group in groups.values() for entry in group]),
        breakdowns=tuple(
            breakdown_of(trait, found, seeds_of, metrics, teacher, baselines, **together) for trait in by if first.n
        ),
    )


def scoring_seconds(
    scorer: Any, seen: Any, k: int = 50, *, repeats: int = 5, threads: int | None = None, block: int | None = None
) -> float:
    """Seconds for the top-k of 1,000 queries: the median of ``repeats`` passes over all queries, after one to warm up.

    Scorer and ``seen`` are those of ``Evaluator``; scoring, leaving out what is seen and selection are all timed.
    """
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}; allowed: 1 or more")
    times = []
    n = 0
    for _ in range(repeats + 1):
        began = time.perf_counter()
        n = sum(rows.size for rows, _ in top_lists(scorer, seen, k, threads=threads, block=block))
        times.append(time.perf_counter() - began)
    if not n:
        raise DataError("there is no query to score")
    return statistics.median(times[1:]) / n * 1000


def checked_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """Names of metrics, each once. Raises ``ConfigError`` for none, and for what are no names."""
    if isinstance(metrics, str):
        raise ConfigError(
            f"metrics is the text {shown(metrics)!r}", f"give a list of names: metrics=[{shown(metrics)!r}]"
        )
    names = tuple(metrics) if isinstance(metrics, Iterable) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"metrics is {shown(repr(metrics))}", "give a list of names, such as metrics=['ndcg@10']")
    if not names:
        raise ConfigError("metrics is empty", "name one or more, or leave it out")
    return tuple(dict.fromkeys(map(str, names)))


def _grouped(entries: Iterable[Entry], teacher: str | None) -> dict[str, list[Entry]]:
    """The entries by their names, seeds ascending; all seeds of a model have its role: teacher, if any of them is, or it is
    named so. Raises ``ConfigError`` for entries of one name that are no seeds of one model."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.role not in ROLES:
            raise ConfigError(f"{shown(entry.name)} has the role {shown(entry.role)!r}", f"allowed: {', '.join(ROLES)}")
        groups.setdefault(entry.name, []).append(entry)
    if not groups:
        raise ConfigError("nothing to compare", "name one run or more")
    found = {}
    for name, group in groups.items():
        role = group[0].role
        if name == teacher or any(entry.role == "teacher" for entry in group):
            role = "teacher"
        elif any(entry.role != role for entry in group):
            raise ConfigError(
                f"{shown(name)} is both alone and student, and entries of one name are seeds of one model",
                "give all of them one role, or other models other names",
            )
        seeds = [entry.seed for entry in group if entry.seed is not None]
        if (twice := next((seed for at, seed in enumerate(seeds) if seed in seeds[:at]), None)) is not None:
            raise ConfigError(
                f"{shown(name)} has two entries of seed {twice}, and entries of one name are seeds of one model",
                "give each seed once, or another model another name",
            )
        if len(seeds) == len(group):
            group.sort(key=lambda entry: entry.seed or 0)
        found[name] = [replace(entry, role=role) for entry in group]
    return found


def _part_of(entry: Entry, part: str) -> Report:
    if part not in entry.reports:
        raise DataError(f"{shown(entry.name)} has no report on {part}; it has {', '.join(entry.reports) or 'none'}")
    return entry.reports[part]


def _check_comparable(found: Mapping[str, Sequence[Report]]) -> None:
    first_name, (first, *_) = next(iter(found.items()))
    for name, reports in found.items():
        for report in reports:
            pair = f"{shown(first_name)} and {shown(name)}"
            if report.setting != first.setting:
                raise DataError(
                    f"{pair} were measured differently: {first.setting} and {report.setting}",
                    "evaluate both with one protocol; sampled and full metrics are different quantities",
                )
            if report.rules != first.rules:
                changed = [key for key in first.rules if report.rules.get(key) != first.rules[key]]
                raise DataError(f"{pair} were measured by different rules: {', '.join(changed)}", "use one protocol")
            if not np.array_equal(report.rows, first.rows):
                raise DataError(
                    f"{pair} were measured on different queries", "evaluate both on one split of one data set"
                )


def _unknown_metric(metric: str, report: Report) -> ConfigError:
    family, _, length = metric.partition("@")
    lengths = sorted({k for name in report.values if name.startswith(f"{family}@") and (k := cutoff(name)) is not None})
    if family in {name.partition("@")[0] for name in report.beyond}:
        return ConfigError(
            f"{metric} is of all lists together, no mean over queries",
            f"leave it out: --json has {', '.join(sorted(report.beyond))} as runs[].beyond",
        )
    cause = f"the reports hold no {shown(metric)!r}"
    if not lengths or not re.fullmatch(r"[1-9]\d{0,8}", length):
        return ConfigError(cause, nearest(metric, report.values))
    return ConfigError(
        f"{cause}: K of {family} is one of {', '.join(map(str, lengths))}",
        f"measure them with ks={sorted({*lengths, int(length)})} of kdrs.Evaluator",
    )


def _headline(report: Report) -> tuple[str, ...]:
    families = ("recall" if report.setting == "full" else "hit", "ndcg")
    by_length: dict[int, list[str]] = {}
    for name in report.values:
        k = cutoff(name)
        if k is not None and name.partition("@")[0] in families:
            by_length.setdefault(k, []).append(name)
    if not by_length:
        return tuple(report.values)[:2]
    usual = 10 if report.setting == "full" else 5
    nearest_k = min(by_length, key=lambda k: (abs(k - usual), k))
    return tuple(sorted(by_length[nearest_k], key=lambda name: families.index(name.partition("@")[0])))


def _named(groups: Mapping[str, Sequence[Entry]], name: str | None, role: str) -> str | None:
    if name is None:
        return next((name for name, group in groups.items() if group[0].role == role), None)
    if name not in groups:
        raise ConfigError(f"no run is called {shown(name)!r}", nearest(name, groups))
    return name


def _baselines(groups: Mapping[str, Sequence[Entry]], named: str | None) -> dict[str, str]:
    """What each model is compared with; a baseline that all others of its kind are compared with has none itself."""
    alone = [name for name, group in groups.items() if group[0].role == "alone"] if named is None else [named]
    if not alone:
        return {}
    found = {}
    for name, group in groups.items():
        size = _largest([entry.n_bytes for entry in group])
        sizes = {base: _largest([entry.n_bytes for entry in groups[base]]) for base in alone}
        known = {base: abs(math.log(theirs / size)) for base, theirs in sizes.items() if theirs and size}
        student = group[0].role == "student"
        found[name] = min(known, key=known.__getitem__) if student and len(known) == len(alone) else alone[0]
    return {name: base for name, base in found.items() if name != base}


def _corrected(groups: Mapping[str, Sequence[Entry]], tests: Mapping[Pair, Difference]) -> dict[Pair, Difference]:
    """The tests with Holm's correction over all of them but the teacher's."""
    own = [pair for pair in tests if groups[pair[0]][0].role != "teacher"]
    return {**tests, **dict(zip(own, adjusted([tests[key] for key in own]), strict=True))}


def _over_seeds(
    groups: Mapping[str, Sequence[Entry]],
    found: Mapping[str, Sequence[Report]],
    pairs: Sequence[Pair],
    confidence: float,
) -> dict[Pair, Difference]:
    """t-tests of the models that share two seeds or more with what they are compared with."""
    by_seed = {
        name: {entry.seed: report for entry, report in zip(group, found[name], strict=True) if entry.seed is not None}
        for name, group in groups.items()
    }
    tests = {}
    for name, base, metric in pairs:
        common = sorted(by_seed[name].keys() & by_seed[base].keys())
        if len(common) > 1:
            own, theirs = ([by_seed[who][seed].mean(metric) for seed in common] for who in (name, base))
            tests[name, base, metric] = seed_test(own, theirs, confidence=confidence)
    return tests


def _best(
    groups: Mapping[str, Sequence[Entry]], qualities: Mapping[str, Mapping[str, Spread]], metrics: Sequence[str]
) -> dict[str, tuple[str, dict[str, int]]]:
    """By metric the best of all models that are no teachers, and the places of all of them; nothing for fewer than two."""
    ranked = [name for name, group in groups.items() if group[0].role != "teacher"]
    found = {}
    for metric in metrics:
        places = places_of({name: qualities[name][metric] for name in ranked})
        if len(places) > 1:
            found[metric] = max(places, key=lambda name: qualities[name][metric].mean), places
    return found


def _standings(
    groups: Mapping[str, Sequence[Entry]],
    best: Mapping[str, tuple[str, Mapping[str, int]]],
    pairs: Sequence[Pair],
    tests: Mapping[Pair, Difference],
    seed_tests: Mapping[Pair, Difference],
) -> dict[str, dict[str, Standing]]:
    """By model and metric. Holm's correction is over all comparisons with the best, over queries and over seeds."""
    by_seed = [pair for pair in pairs if pair in seed_tests]
    over_queries = dict(zip(pairs, adjusted([tests[pair] for pair in pairs]), strict=True))
    over_seeds = dict(zip(by_seed, adjusted([seed_tests[pair] for pair in by_seed]), strict=True))
    found: dict[str, dict[str, Standing]] = {name: {} for name in groups}
    for metric, (top, places) in best.items():
        for name, place in places.items():
            pair = name, top, metric
            if pair not in over_queries:
                found[name][metric] = Standing(place, top)
                continue
            verdict = verdict_of(over_queries[pair], over_seeds.get(pair), min(len(groups[who]) for who in (name, top)))
            found[name][metric] = Standing(place, top, over_queries[pair], over_seeds.get(pair), verdict)
    return found


def _share(found: Mapping[str, Sequence[Report]], name: str, teacher: str, metric: str) -> float:
    own, whole = (statistics.fmean(report.mean(metric) for report in found[who]) for who in (name, teacher))
    return own / whole if whole else math.nan


def _spread(numbers: Sequence[float], confidence: float) -> Spread:
    if not all(math.isfinite(number) for number in numbers):
        return Spread(math.nan, math.nan, math.nan, math.nan, len(numbers))
    return seed_spread(numbers, confidence=confidence)


def _mean_of(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: statistics.fmean(table[name] for table in tables) for name in names}


def _largest(numbers: Sequence[_Number | None]) -> _Number | None:
    """Of seeds, which may have kept different encoders of users."""
    return max((number for number in numbers if number is not None), default=None)


def _median(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return statistics.median(known) if known else None
