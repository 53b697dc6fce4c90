"""A comparison as tables: for a terminal, as plain text and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdrs.escaping import markdown, visible, visible_lines
from kdrs.evaluation.significance import Difference

if TYPE_CHECKING:
    from kdrs.comparison.compare import Comparison


LEVEL = 0.05


# Tables.


@dataclass(frozen=True)
class Table:
    """Cells as text; a header may hold a line break. The first two columns are words, the others numbers."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: int = 2

    def __post_init__(self) -> None:
        """Names of runs are other people's: what is unseen in them is escaped, whatever the table is shown as."""
        object.__setattr__(self, "title", visible_lines(self.title))
        object.__setattr__(self, "headers", tuple(map(visible_lines, self.headers)))
        object.__setattr__(self, "rows", tuple(tuple(map(visible, row)) for row in self.rows))
        object.__setattr__(self, "notes", tuple(map(visible_lines, self.notes)))

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
            return "| " + " | ".join(cells) + " |"

        headers = ("<br>".join(map(markdown, header.split("\n"))) for header in self.headers)
        rows = [
            [markdown(cell) if column < self.words else cell for column, cell in enumerate(row)] for row in self.rows
        ]
        align = [":--" if column < self.words else "--:" for column in range(len(self.headers))]
        notes = [f"\n{markdown(note)}" for note in self.notes]
        return "\n".join([f"**{markdown(self.title)}**", "", line(headers), line(align), *map(line, rows), *notes])

    def rich(self) -> Any:
        import rich.box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=Text(self.title), title_justify="left", title_style="bold", box=rich.box.SIMPLE_HEAD)
        for column, header in enumerate(self.headers):
            table.add_column(Text(header), justify="left" if column < self.words else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table


def quality_table(comparison: Comparison) -> Table:
    lines = comparison.lines
    several = any(len(line.seeds) > 1 for line in lines)
    columns: list[tuple[str, list[str]]] = [
        ("model", [line.name for line in lines]),
        ("role", [line.role for line in lines]),
    ]
    if several:
        columns.append(("seeds", [str(len(line.seeds)) for line in lines]))
    for header, cells in (
        ("parameters", [count(line.n_parameters) for line in lines]),
        ("size", [size(line.n_bytes) for line in lines]),
        ("time/1,000\nqueries", [duration(line.seconds_per_1000) for line in lines]),
    ):
        if any(cells):
            columns.append((header, cells))
    for metric in comparison.metrics:
        cells = []
        for line in lines:
            spread = line.quality[metric]
            cell = number(spread.mean)
            if several:
                cell += f" ±{spread.sd:.4f}" if spread.n > 1 else " " * 8
            if line.kept:
                share = line.kept[metric]
                cell += f" {share:6.1%}" if math.isfinite(share) else " " * 7
            cells.append(cell)
        columns.append((comparison.shown_name(metric).replace(" ", "\n"), cells))
    for name in dict.fromkeys(name for line in lines for name in line.agreement):
        columns.append((f"teacher's\n{name}", [number(line.agreement.get(name)) for line in lines]))
    notes = []
    if comparison.teacher is not None:
        notes.append(f"Percentages are shares of the teacher's ({visible(comparison.teacher)}) mean.")
    if several:
        notes.append("± is the standard deviation over seeds.")
    queries = f"{comparison.n:,} queries"
    if comparison.n_queries > comparison.n:
        queries += f" with held-out items, of {comparison.n_queries:,}"
    ranked = "full ranking" if comparison.setting == "full" else comparison.setting
    rows = tuple(zip(*(cells for _, cells in columns), strict=True))
    return Table(f"{comparison.part}, {ranked}, {queries}", tuple(h for h, _ in columns), rows, tuple(notes))


def difference_table(comparison: Comparison) -> Table:
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
    return Table(f"against {visible(comparison.baseline or '')}", tuple(headers), tuple(rows), tuple(notes))


def _holm(d: Difference) -> float:
    return d.p if d.p_adjusted is None else d.p_adjusted


def number(value: float | None) -> str:
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


def count(n: int | None) -> str:
    return "" if n is None else _scaled(n, ("", "k", "M", "G"))


def size(n: int | None) -> str:
    return "" if n is None else _scaled(n, ("B", "kB", "MB", "GB"))


def duration(seconds: float | None) -> str:
    return "" if seconds is None else _scaled(seconds * 1e6, ("µs", "ms", "s"))
