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
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from kdrs._files import write_bytes
from kdrs.errors import ConfigError, DataError, MachineError, nearest, shown
from kdrs.evaluate import Report, top_lists
from kdrs.protocols import cutoff
from kdrs.significance import TESTS, Difference, Spread, adjusted, paired_test, seed_spread, seed_test

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA = 1
ROLES = ("teacher", "alone", "student")
LEVEL = 0.05


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
    """Of its lists with the teacher's, such as ``{"overlap@10": 0.4}``, see ``kdrs.evaluate.overlap``."""


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
        return [_quality_table(self)] + ([_difference_table(self)] if self.baseline is not None else [])

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

        console = Console(file=file)
        for table in self.tables():
            console.print(table.rich())
            for note in table.notes:
                console.print(note, style="dim", highlight=False)
            console.print()

    def save(self, folder: str | Path, *, picture: bool = True) -> list[Path]:
        """Writes ``comparison.json``, ``comparison.md`` and, if asked, ``comparison.png`` into ``folder``, which must be new,
        empty or that of an earlier comparison."""
        folder = Path(folder)
        check_folder(folder)
        written = [folder / "comparison.json", folder / "comparison.md"]
        write_bytes(
            written[0], (json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n").encode(), make_folder=True
        )
        write_bytes(written[1], self.markdown().encode())
        if picture:
            written.append(self.picture(folder / "comparison.png"))
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
        figure = _figure(self, metric)
        import matplotlib

        content = io.BytesIO()
        # No date and no version in the file: the same comparison gives the same bytes.
        unstamped = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]
        with matplotlib.rc_context({"svg.hashsalt": "kdrs"}):
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
    test: str = "randomisation",
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compares models on the same queries.

    ``metrics`` defaults to two: recall and NDCG near K = 10, or with sampled candidates hit and NDCG near K = 5.
    ``teacher`` names the entry that shares are of (the first with that role), ``baseline`` the one that differences
    are to (the first trained alone). p-values carry Holm's correction over all models and metrics of the comparison.
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
    teacher = _named(groups, teacher, "teacher")
    baseline = _named(groups, baseline, "alone")
    if test != TESTS[0] and (baseline is None or len(groups) < 2):
        missing = "no run was trained alone" if baseline is None else f"there is only {shown(baseline)}"
        raise ConfigError(
            f"test {shown(test)} has nothing to compare: {missing}", "add a run, name a baseline, or leave the test out"
        )

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
                test=test,
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


# Tables.


@dataclass(frozen=True)
class Table:
    """Cells as text; a header may hold a line break. The first two columns are words, the others numbers."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: int = 2

    def text(self) -> str:
        tall = max(header.count("\n") for header in self.headers) + 1
        heads = [([""] * tall + header.split("\n"))[-tall:] for header in self.headers]
        widths = [
            max(len(cell) for cell in [*head, *(row[column] for row in self.rows)]) for column, head in enumerate(heads)
        ]

        def line(cells: Sequence[str]) -> str:
            padded = [
                cell.ljust(width) if column < self.words else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return "  ".join(padded).rstrip()

        rule = "  ".join("-" * width for width in widths)
        body = [line([head[at] for head in heads]) for at in range(tall)]
        return "\n".join([self.title, "", *body, rule, *(line(row) for row in self.rows), *self.notes])

    def markdown(self) -> str:
        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"

        align = [":--" if column < self.words else "--:" for column in range(len(self.headers))]
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([f"**{self.title}**", "", line(self.headers), line(align), *map(line, self.rows), *notes])

    def rich(self) -> Any:
        import rich.box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title, title_justify="left", title_style="bold", box=rich.box.SIMPLE_HEAD)
        for column, header in enumerate(self.headers):
            table.add_column(Text(header), justify="left" if column < self.words else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table


def _quality_table(comparison: Comparison) -> Table:
    lines = comparison.lines
    several = any(len(line.seeds) > 1 for line in lines)
    columns: list[tuple[str, list[str]]] = [
        ("model", [line.name for line in lines]),
        ("role", [line.role for line in lines]),
    ]
    if several:
        columns.append(("seeds", [str(len(line.seeds)) for line in lines]))
    for header, cells in (
        ("parameters", [_count(line.n_parameters) for line in lines]),
        ("size", [_size(line.n_bytes) for line in lines]),
        ("time/1,000\nqueries", [_duration(line.seconds_per_1000) for line in lines]),
    ):
        if any(cells):
            columns.append((header, cells))
    for metric in comparison.metrics:
        cells = []
        for line in lines:
            spread = line.quality[metric]
            cell = _number(spread.mean)
            if several:
                cell += f" ±{spread.sd:.4f}" if spread.n > 1 else " " * 8
            if line.kept:
                share = line.kept[metric]
                cell += f" {share:6.1%}" if math.isfinite(share) else " " * 7
            cells.append(cell)
        columns.append((comparison.shown_name(metric).replace(" ", "\n"), cells))
    for name in dict.fromkeys(name for line in lines for name in line.agreement):
        columns.append((f"teacher's\n{name}", [_number(line.agreement.get(name)) for line in lines]))
    notes = []
    if comparison.teacher is not None:
        notes.append(f"Percentages are shares of the teacher's ({comparison.teacher}) mean.")
    if several:
        notes.append("± is the standard deviation over seeds.")
    queries = f"{comparison.n:,} queries"
    if comparison.n_queries > comparison.n:
        queries += f" with held-out items, of {comparison.n_queries:,}"
    ranked = "full ranking" if comparison.setting == "full" else comparison.setting
    rows = tuple(zip(*(cells for _, cells in columns), strict=True))
    return Table(f"{comparison.part}, {ranked}, {queries}", tuple(h for h, _ in columns), rows, tuple(notes))


def _difference_table(comparison: Comparison) -> Table:
    by_seed = any(line.against_by_seed for line in comparison.lines)
    level = f"{comparison.confidence:.0%} interval"
    headers = ["model", "metric", "difference", level, "p", "p (Holm)", ""]
    if by_seed:
        headers += ["over seeds\np (Holm)"]
    rows = []
    resamples, tests = 0, []
    for line in comparison.lines:
        for metric, d in line.against.items():
            resamples = d.resamples or 0
            tests.append(d.test)
            holm = _holm(d)
            row = [
                line.name,
                comparison.shown_name(metric),
                f"{d.difference:+.4f}",
                f"[{d.low:+.4f}, {d.high:+.4f}]",
                _p(d.p, resamples),
                _p(holm, 0),
                ("better" if d.difference > 0 else "worse") if holm < LEVEL else "not clear",
            ]
            if by_seed:
                over_seeds = line.against_by_seed.get(metric)
                row.append("" if over_seeds is None else _p(_holm(over_seeds), 0))
            rows.append(tuple(row))
    notes = []
    if tests:
        named = " and ".join(dict.fromkeys(tests))
        notes.append(
            f"Paired {named} test over queries, {resamples:,} resamples, bootstrap interval; "
            f"better and worse: p (Holm, {len(rows)} comparisons) below {LEVEL}."
        )
    if by_seed:
        notes.append("Over seeds: paired t-test on the means of common seeds.")
    return Table(f"against {comparison.baseline}", tuple(headers), tuple(rows), tuple(notes))


def _holm(d: Difference) -> float:
    return d.p if d.p_adjusted is None else d.p_adjusted


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if math.isfinite(value) else "-"


def _p(p: float, resamples: int) -> str:
    if resamples and p <= 1.0000001 / (resamples + 1):
        return f"≤ {1 / (resamples + 1):.1g}"
    return f"{p:.4f}" if p >= 0.0001 else f"{p:.0e}"


def _scaled(value: float, units: Sequence[str]) -> str:
    """Three figures and a unit; whole numbers of the first unit as they are."""
    if value == int(value) and value < 1000:
        return f"{int(value)} {units[0]}".rstrip()
    for unit in units:
        if value < 999.5 or unit == units[-1]:
            break
        value /= 1000
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}".rstrip()


def _count(n: int | None) -> str:
    return "" if n is None else _scaled(n, ("", "k", "M", "G"))


def _size(n: int | None) -> str:
    return "" if n is None else _scaled(n, ("B", "kB", "MB", "GB"))


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else _scaled(seconds * 1e6, ("µs", "ms", "s"))


# Picture.

# Okabe and Ito's colours without yellow: told apart by colour-blind readers. Teacher and baseline are black and grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B3294", "#8C510A")
_MARKERS = ("o", "D", "^", "v", "P", "X", "<", ">")


def _figure(comparison: Comparison, metric: str) -> Figure:
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.ticker import FuncFormatter, MaxNLocator
    except ImportError as problem:
        raise MachineError("pictures need matplotlib, which is not installed", 'pip install "kdrs[plots]"') from problem

    lines = comparison.lines
    looks = _looks(lines)
    panels = []
    if any(line.n_parameters for line in lines):
        panels.append("size")
    if any(line.seconds_per_1000 for line in lines):
        panels.append("time")
    if any(line.curves for line in lines):
        panels.append("curves")
    panels = panels or ["quality"]
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(4.6 * len(panels) + 0.6, 4.5), dpi=150, layout=layout)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    levels = {line.name: line.quality[metric].mean for line in lines}
    whole = levels.get(comparison.teacher) if comparison.teacher is not None else None
    for panel, axis in zip(panels, axes, strict=True):
        axis.grid(True, color="0.92", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        if panel == "curves":
            _draw_curves(axis, comparison, metric, looks)
            continue
        if panel == panels[0]:
            axis.set_ylabel(f"{comparison.part} {comparison.shown_name(metric)}")
        else:
            axis.tick_params(labelleft=False)
        if whole is not None:
            axis.axhline(whole, color="black", linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
        if comparison.baseline is not None:
            axis.axhline(levels[comparison.baseline], color="0.55", linewidth=0.9, linestyle=(0, (1, 3)), zorder=1)
        for line in lines:
            x = {
                "size": line.n_parameters,
                "time": None if line.seconds_per_1000 is None else line.seconds_per_1000 * 1000,
                "quality": 1.0,
            }[panel]
            if x is None or not math.isfinite(levels[line.name]):
                continue
            spread = line.quality[metric]
            error = spread.sd if spread.n > 1 and math.isfinite(spread.sd) else None
            axis.errorbar(x, spread.mean, yerr=error, capsize=2.5, linestyle="none", **looks[line.name])
        if panel == "quality":
            axis.set_xticks([])
        else:
            _log_axis(axis, panel)
        axis.set_ylim(*_reach(lines, metric))
        if whole and panel == panels[0]:
            share = axis.secondary_yaxis("right", functions=(lambda y: y / whole, lambda y: y * whole))
            share.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
            share.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
            share.tick_params(length=0, labelcolor="0.45", labelsize=8)
            share.spines["right"].set_visible(False)
            share.set_ylabel("share of the teacher's", color="0.45", fontsize=8)
    figure.suptitle(_quality_table(comparison).title, fontsize=10, color="0.3")
    handles, labels = _legend(lines, looks)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(lines), 6), frameon=False, fontsize=9)
    return figure


def _reach(lines: Sequence[Line], metric: str) -> tuple[float, float]:
    """Limits that hold every mean and its deviation, the same for every panel of quality."""
    spreads = [line.quality[metric] for line in lines if math.isfinite(line.quality[metric].mean)]
    ends = [
        spread.mean + side * (spread.sd if math.isfinite(spread.sd) else 0.0) for spread in spreads for side in (-1, 1)
    ]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = 0.08 * (high - low) or max(0.05 * abs(high), 0.01)
    return low - margin, high + margin


def _looks(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    looks, students = {}, 0
    for line in lines:
        if line.role == "teacher":
            look = {"color": "black", "marker": "*", "markersize": 13}
        elif line.role == "alone":
            look = {"color": "0.45", "marker": "s", "markersize": 7, "markerfacecolor": "white", "markeredgewidth": 1.6}
        else:
            look = {
                "color": _COLOURS[students % len(_COLOURS)],
                "marker": _MARKERS[students % len(_MARKERS)],
                "markersize": 7,
            }
            students += 1
        looks[line.name] = look
    return looks


def _legend(lines: Sequence[Line], looks: Mapping[str, Mapping[str, Any]]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linewidth=1.4, **looks[line.name]) for line in lines]
    return handles, [line.name for line in lines]


def _log_axis(axis: Axes, panel: str) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    if high / low < 4:  # a scale shorter than that has no round numbers to show
        middle = math.sqrt(low * high)
        low, high = middle / 2.2, middle * 2.2
    axis.set_xlim(low / 1.12, high * 1.12)
    steps = (1.0,) if high / low > 60 else (1.0, 2.0, 5.0)
    axis.xaxis.set_major_locator(LogLocator(subs=steps))
    axis.xaxis.set_minor_formatter(NullFormatter())
    if panel == "size":
        axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axis.set_xlabel("parameters")
    else:
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.set_xlabel("milliseconds for the lists of 1,000 queries")


def _draw_curves(axis: Axes, comparison: Comparison, metric: str, looks: Mapping[str, Mapping[str, Any]]) -> None:
    parts = [row for line in comparison.lines for curve in line.curves for row in curve]
    part = "valid" if any("valid" in row for row in parts) else comparison.part
    for line in comparison.lines:
        for curve in line.curves:
            points = [
                (row["epoch"], row[part][metric])
                for row in curve
                if "epoch" in row and row.get(part, {}).get(metric) is not None
            ]
            if not points:
                continue
            epochs, values = zip(*points, strict=True)
            lone = len(line.curves) == 1
            width, alpha = (1.5, 1.0) if lone else (1.0, 0.6)
            axis.plot(epochs, values, color=looks[line.name]["color"], linewidth=width, alpha=alpha)
            best = int(np.argmax(values))
            look = (
                looks[line.name] if lone else {**looks[line.name], "markersize": 0.7 * looks[line.name]["markersize"]}
            )
            axis.plot(epochs[best], values[best], linestyle="none", **look)
    axis.set_xlabel("epoch (marked: the best)")
    axis.set_ylabel(f"{part} {comparison.shown_name(metric)}")
