"""What a training ended with, as one short table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdrs.evaluation.protocols import cutoff

if TYPE_CHECKING:
    from kdrs.evaluation.report import Report

UNMEASURED = "nothing is held out of its data set, so nothing was measured"
USUAL = "ndcg@10"
"""What is shown first where nothing selects."""
MORE = 4
"""Metrics that are shown beside those that selected the best epoch."""


def most_telling(names: Sequence[str], selects: Sequence[str]) -> list[str]:
    """The metrics that selected, then up to four more: those of the same list length, then the same metric's others."""
    usual = [name for name in (USUAL, *names[:1]) if name in names][:1]
    chosen = [name for name in selects if name in names] or usual
    if not chosen:
        return []
    family, length = chosen[0].partition("@")[0], cutoff(chosen[0])
    others = [name for name in names if name not in chosen]
    same_length = [name for name in others if cutoff(name) == length]
    same_family = [name for name in others if name.partition("@")[0] == family and name not in same_length]
    ordered = [*same_length, *same_family, *(name for name in others if name not in {*same_length, *same_family})]
    return chosen + ordered[:MORE]


def results_table(reports: Mapping[str, Report], selects: Sequence[str], verbose: bool) -> list[str]:
    """One line a metric, one column a part."""
    if not reports:
        return []
    first = next(iter(reports.values()))
    means = {part: report.means() for part, report in reports.items()}
    names = list(first.values) if verbose else most_telling(list(first.values), selects)
    cells = {name: [f"{values[name]:.4f}" for values in means.values()] for name in names}
    counts = [f"{report.n:,}" for report in reports.values()]
    shown = {name: first.shown_name(name) for name in names}
    return _lines(shown, list(reports), cells, counts, selects, len(first.values))


def seeds_table(parts: Mapping[str, Mapping[str, Any]], selects: Sequence[str], verbose: bool) -> list[str]:
    """The same over seeds: mean, standard deviation and number of seeds."""
    if not parts:
        return []
    full = list(next(iter(parts.values())))  # names as printed: a setting may follow the metric
    shown = {name.partition(" ")[0]: name for name in full}
    names = list(shown) if verbose else most_telling(list(shown), selects)
    cells = {}
    for name in names:
        rows = [metrics[shown[name]] for metrics in parts.values()]
        cells[name] = [f"{row['mean']:.4f}" + ("" if row["sd"] is None else f" ± {row['sd']:.4f}") for row in rows]
    counts = [f"{next(iter(metrics.values()))['n']:,}" for metrics in parts.values()]
    return _lines({n: shown[n] for n in names}, list(parts), cells, counts, selects, len(full), "seeds")


def _lines(
    shown: Mapping[str, str], parts: Sequence[str], cells: Mapping[str, Sequence[str]], counts: Sequence[str],
    selects: Sequence[str], n_metrics: int, counted: str = "queries",
) -> list[str]:  # fmt: skip
    width = max(map(len, [*shown.values(), counted]))
    columns = [
        max(len(part), len(count), *(len(row[at]) for row in cells.values()))
        for at, (part, count) in enumerate(zip(parts, counts, strict=True))
    ]

    def line(head: str, row: Sequence[str], note: str = "") -> str:
        padded = (cell.rjust(size) for cell, size in zip(row, columns, strict=True))
        return "  ".join([head.ljust(width), *padded, note]).rstrip()

    lines = [line("", parts)]
    lines += [line(shown[name], row, "selects" if name in selects else "") for name, row in cells.items()]
    lines.append(line(counted, counts))
    if left := n_metrics - len(cells):
        lines.append(f"{left} more metric{'s' * (left > 1)}: --verbose or --json")
    return lines
