"""Runs side by side: quality, what was kept of the teacher, size, speed, and whether a difference is more than luck."""

from __future__ import annotations

import io
import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from kdrs._files import write_bytes
from kdrs.comparison.picture import figure_of
from kdrs.comparison.tables import Table, difference_table, quality_table
from kdrs.errors import ConfigError, DataError, nearest, shown
from kdrs.escaping import json_text
from kdrs.evaluation.lists import top_lists
from kdrs.evaluation.protocols import cutoff
from kdrs.evaluation.report import Report
from kdrs.evaluation.significance import TESTS, Difference, Spread, adjusted, paired_test, seed_spread, seed_test

SCHEMA = 1
ROLES = ("teacher", "alone", "student")


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
    """Of the model's file."""
    seconds_per_1000: float | None = None
    """Seconds for the top-k of 1,000 queries, see ``scoring_seconds``."""
    curve: Sequence[Mapping[str, Any]] = ()
    """Lines of metrics.jsonl: ``{"epoch": 3, "valid": {"ndcg@10": 0.2}, ...}``."""
    seed: int | None = None
    agreement: Mapping[str, float] = field(default_factory=dict)
    """Of its lists with the teacher's, such as ``{"overlap@10": 0.4}``, see ``kdrs.evaluation.lists.overlap``."""


@dataclass(frozen=True)
class Line:
    """One model of a comparison, over its seeds."""

    name: str
    role: str
    seeds: tuple[int | None, ...]
    quality: dict[str, Spread]
    kept: dict[str, float]
    """Share of the teacher's mean, by metric; empty without a teacher."""
    against: dict[str, Difference]
    """Difference to the baseline over queries (values averaged over seeds), by metric; empty for the baseline."""
    against_by_seed: dict[str, Difference]
    """The same over seeds, where both have two common seeds or more."""
    beyond: dict[str, float]
    agreement: dict[str, float]
    n_parameters: int | None
    n_bytes: int | None
    seconds_per_1000: float | None
    curves: tuple[Sequence[Mapping[str, Any]], ...]


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found; it prints itself as text, Markdown, JSON and a picture."""

    lines: tuple[Line, ...]
    metrics: tuple[str, ...]
    part: str
    setting: str
    n: int
    n_queries: int
    teacher: str | None
    baseline: str | None
    confidence: float

    def shown_name(self, metric: str) -> str:
        return metric if self.setting == "full" else f"{metric} {self.setting}"

    def tables(self) -> list[Table]:
        """Quality and cost of every model, then the differences to the baseline."""
        return [quality_table(self)] + ([difference_table(self)] if self.baseline is not None else [])

    def text(self) -> str:
        """For a terminal or a log, plain."""
        return "\n\n".join(table.text() for table in self.tables()) + "\n"

    def markdown(self) -> str:
        return "\n\n".join(table.markdown() for table in self.tables()) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Plain values under ``"schema": 1``; numbers that do not exist are ``null``."""
        return {
            "schema": SCHEMA,
            "part": self.part,
            "setting": self.setting,
            "n": self.n,
            "n_queries": self.n_queries,
            "teacher": self.teacher,
            "baseline": self.baseline,
            "runs": [
                {
                    "name": line.name,
                    "role": line.role,
                    "seeds": list(line.seeds),
                    "n_parameters": line.n_parameters,
                    "n_bytes": line.n_bytes,
                    "seconds_per_1000_queries": line.seconds_per_1000,
                    "metrics": {self.shown_name(name): spread.to_json() for name, spread in line.quality.items()},
                    "share_of_teacher": {self.shown_name(name): _or_none(share) for name, share in line.kept.items()},
                    "against_baseline": {self.shown_name(name): d.to_json() for name, d in line.against.items()},
                    "against_baseline_by_seed": {
                        self.shown_name(name): d.to_json() for name, d in line.against_by_seed.items()
                    },
                    "beyond": line.beyond,
                    "agreement_with_teacher": line.agreement,
                }
                for line in self.lines
            ],
        }

    def print(self, file: TextIO | None = None) -> None:
        """Writes the tables to ``file`` (stdout), with rules and colour where it is a terminal that wants them."""
        file = sys.stdout if file is None else file
        if not file.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            file.write(self.text())
            return
        from rich.console import Console
        from rich.text import Text

        console = Console(file=file)
        for table in self.tables():
            console.print(table.rich())
            for note in table.notes:
                console.print(Text(note), style="dim")
            console.print()

    def save(self, folder: str | Path, *, picture: bool = True) -> list[Path]:
        """Writes ``comparison.json``, ``comparison.md`` and, if asked, ``comparison.png`` into ``folder``, which must be new,
        empty or that of an earlier comparison."""
        folder = Path(folder)
        check_folder(folder)
        written = [folder / "comparison.json", folder / "comparison.md"]
        write_bytes(
            written[0], (json_text(self.to_json(), indent=1, ascii=False) + "\n").encode(), make_folder=True
        )
        write_bytes(written[1], self.markdown().encode())
        if picture:
            written.append(self.picture(folder / "comparison.png"))
        else:  # that of an earlier comparison would pass for this one's
            (folder / "comparison.png").unlink(missing_ok=True)
        return written

    def picture(self, path: str | Path, *, metric: str | None = None) -> Path:
        """Quality against size, against scoring time, and learning curves; ``.png``, ``.svg`` or ``.pdf``.

        ``metric`` is the first one by default. Raises ``MachineError`` where matplotlib is not installed.
        """
        path = Path(path)
        if path.suffix not in (".png", ".svg", ".pdf"):
            raise ConfigError(f"a picture as {shown(path.suffix or path.name)}", "allowed: .png, .svg, .pdf")
        metric = self.metrics[0] if metric is None else metric
        if metric not in self.metrics:
            raise ConfigError(f"the comparison holds no {shown(metric)!r}", nearest(metric, self.metrics))
        figure = figure_of(self, metric)
        import matplotlib

        content = io.BytesIO()
        # No date and no version in the file: the same comparison gives the same bytes.
        unstamped = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]
        with matplotlib.rc_context({"svg.hashsalt": "kdrs", "text.usetex": False}):
            figure.savefig(content, format=path.suffix[1:], metadata=unstamped)
        write_bytes(path, content.getvalue(), make_folder=True)
        return path


def compare(
    entries: Iterable[Entry],
    *,
    part: str = "test",
    metrics: Sequence[str] | None = None,
    teacher: str | None = None,
    baseline: str | None = None,
    test: str | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compares models on the same queries.

    ``metrics`` defaults to two: recall and NDCG near K = 10, or with sampled candidates hit and NDCG near K = 5.
    ``teacher`` names the entry that shares are of (the first with that role), ``baseline`` the one that differences
    are to (the first trained alone); naming either takes two models. ``test`` is ``randomisation`` unless given, which takes a
    baseline and another model. p-values carry Holm's correction over all models and metrics of the comparison.
    Raises ``DataError`` for reports of other queries, settings or rules: such numbers must not be compared.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.role not in ROLES:
            raise ConfigError(f"{entry.name} has the role {shown(entry.role)!r}", f"allowed: {', '.join(ROLES)}")
        groups.setdefault(entry.name, []).append(entry)
    if not groups:
        raise ConfigError("nothing to compare", "name one run or more")
    found = {name: [_part_of(entry, part) for entry in group] for name, group in groups.items()}
    first = next(iter(found.values()))[0]
    _check_comparable(found)
    metrics = _headline(first) if metrics is None else tuple(metrics)
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
    baseline = _named(groups, baseline, "alone")
    if test is not None and (baseline is None or len(groups) < 2):
        missing = "no run was trained alone" if baseline is None else f"there is only {shown(baseline)}"
        raise ConfigError(
            f"test {shown(test)} has nothing to compare: {missing}", "add a run, name a baseline, or leave the test out"
        )
    paired = TESTS[0] if test is None else test

    # One value a query, over the seeds of a model.
    values: dict[tuple[str, str], NDArray[np.float64]] = {}
    for name, reports in found.items():
        for metric in metrics:
            values[name, metric] = np.mean([report.values[metric] for report in reports], axis=0)
    against: dict[tuple[str, str], Difference] = {}
    if baseline is not None and first.n:
        pairs = [(name, metric) for name in groups if name != baseline for metric in metrics]
        tests = [
            paired_test(
                values[name, metric],
                values[baseline, metric],
                test=paired,
                resamples=resamples,
                confidence=confidence,
                seed=seed,
            )
            for name, metric in pairs
        ]
        against = dict(zip(pairs, adjusted(tests), strict=True))

    over_seeds = _over_seeds(groups, found, baseline, metrics, confidence)

    lines = []
    for name, group in groups.items():
        means = {metric: [report.mean(metric) for report in found[name]] for metric in metrics}
        quality = {metric: _spread(numbers, confidence) for metric, numbers in means.items()}
        kept = {}
        if teacher is not None:
            for metric in metrics:
                whole = statistics.fmean(report.mean(metric) for report in found[teacher])
                kept[metric] = quality[metric].mean / whole if whole else math.nan
        lines.append(
            Line(
                name,
                group[0].role,
                tuple(entry.seed for entry in group),
                quality,
                kept,
                {metric: against[name, metric] for metric in metrics if (name, metric) in against},
                {metric: over_seeds[name, metric] for metric in metrics if (name, metric) in over_seeds},
                _mean_of([report.beyond for report in found[name]]),
                _mean_of([entry.agreement for entry in group]),
                group[0].n_parameters,
                group[0].n_bytes,
                _median([entry.seconds_per_1000 for entry in group]),
                tuple(entry.curve for entry in group if entry.curve),
            )
        )
    return Comparison(
        tuple(lines), metrics, part, first.setting, first.n, first.n_queries, teacher, baseline, confidence
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
    cause = f"the reports hold no {shown(metric)!r}"
    if not lengths or not re.fullmatch(r"[1-9]\d{0,8}", length):
        return ConfigError(cause, nearest(metric, report.values))
    return ConfigError(
        f"{cause}: K of {family} is one of {', '.join(map(str, lengths))}",
        f"train the run that is named first with --set 'eval.ks={sorted({*lengths, int(length)})}': its K count for all; "
        "or take a --protocol that has this K",
    )


def check_folder(folder: Path) -> None:
    """Raises ``ConfigError`` for a folder that holds anything but an earlier comparison."""
    if folder.is_dir() and any(entry.suffix != ".tmp" for entry in folder.iterdir()) and not _holds_comparison(folder):
        raise ConfigError(
            f"{shown(str(folder))} is not empty and holds no report of kdrs", "name another folder with --out"
        )


def _holds_comparison(folder: Path) -> bool:
    try:
        document = json.loads((folder / "comparison.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and {"schema", "baseline", "runs"} <= document.keys()


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


def _over_seeds(
    groups: Mapping[str, Sequence[Entry]],
    found: Mapping[str, Sequence[Report]],
    baseline: str | None,
    metrics: Sequence[str],
    confidence: float,
) -> dict[tuple[str, str], Difference]:
    """t-tests of the models that share two seeds or more with the baseline, Holm's correction over all of them."""
    if baseline is None:
        return {}
    by_seed = {
        name: {entry.seed: report for entry, report in zip(group, found[name], strict=True) if entry.seed is not None}
        for name, group in groups.items()
    }
    tests = {}
    for name in groups:
        common = sorted(by_seed[name].keys() & by_seed[baseline].keys())
        if name != baseline and len(common) > 1:
            for metric in metrics:
                own, base = ([by_seed[who][seed].mean(metric) for seed in common] for who in (name, baseline))
                tests[name, metric] = seed_test(own, base, confidence=confidence)
    return dict(zip(tests, adjusted(list(tests.values())), strict=True))


def _spread(numbers: Sequence[float], confidence: float) -> Spread:
    if not all(math.isfinite(number) for number in numbers):
        return Spread(math.nan, math.nan, math.nan, math.nan, len(numbers))
    return seed_spread(numbers, confidence=confidence)


def _mean_of(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: statistics.fmean(table[name] for table in tables) for name in names}


def _median(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return statistics.median(known) if known else None


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
