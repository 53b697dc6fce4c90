"""A comparison as tables: for a terminal, as plain text and as Markdown; `latex` has them for papers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kdrs.comparison.verdicts import LEVEL
from kdrs.escaping import markdown, visible, visible_lines
from kdrs.evaluation.transfer import Transfer

if TYPE_CHECKING:
    from kdrs.comparison.result import Comparison, Line
    from kdrs.evaluation.significance import Difference


@dataclass(frozen=True)
class Table:
    """Cells as text; a header may hold a line break. The first two columns are words, the others numbers."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: int = 2
    marks: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    """How cells are marked, by row and column: ``best``, ``second``, ``alike`` (not clearly different from the best)."""
    key: tuple[str, ...] = ()
    """What the marks mean, for forms that show them."""
    spoken: tuple[str, ...] = ()
    """What the marks say in words, for forms that do not show them all."""
    name: str = ""
    """What a document calls it by: ``transfer``, ``quality`` or ``differences``; no two of a comparison have the same."""

    def __post_init__(self) -> None:
        """Names of runs are other people's: what is unseen in them is escaped, whatever the table is shown as."""
        object.__setattr__(self, "title", visible_lines(self.title))
        object.__setattr__(self, "headers", tuple(map(visible_lines, self.headers)))
        object.__setattr__(self, "rows", tuple(tuple(map(visible, row)) for row in self.rows))
        object.__setattr__(self, "notes", tuple(map(visible_lines, self.notes)))
        object.__setattr__(self, "key", tuple(map(visible_lines, self.key)))
        object.__setattr__(self, "spoken", tuple(map(visible_lines, self.spoken)))

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
        return "\n".join([self.title, "", *body, rule, *(line(row) for row in self.rows), *self.notes, *self.spoken])

    def markdown(self) -> str:
        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        headers = ("<br>".join(map(markdown, header.split("\n"))) for header in self.headers)
        rows = [
            [
                markdown(cell) if column < self.words else _marked(_escaped(cell), self.marks.get((at, column), ()))
                for column, cell in enumerate(row)
            ]
            for at, row in enumerate(self.rows)
        ]
        align = [":--" if column < self.words else "--:" for column in range(len(self.headers))]
        notes = [f"\n{markdown(note)}" for note in (*self.key, *self.notes)]
        return "\n".join([f"**{markdown(self.title)}**", "", line(headers), line(align), *map(line, rows), *notes])

    def rich(self) -> Any:
        import rich.box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=Text(self.title), title_justify="left", title_style="bold", box=rich.box.SIMPLE_HEAD)
        for column, header in enumerate(self.headers):
            table.add_column(Text(header), justify="left" if column < self.words else "right", no_wrap=True)
        for at, row in enumerate(self.rows):
            styles = [_STYLES.get(next(iter(self.marks.get((at, place), ())), ""), "") for place in range(len(row))]
            table.add_row(*(Text(cell, style=style) for cell, style in zip(row, styles, strict=True)))
        return table


ALIKE = "≈"
_STYLES = {"best": "bold", "second": "underline"}


_NUMBERS = re.compile(r"[\d\s.,+\-±≤%\[\]]*")


def _escaped(cell: str) -> str:
    """In Markdown: numbers and intervals as they are, words between them escaped."""
    return cell if _NUMBERS.fullmatch(cell) else markdown(cell)


def _marked(cell: str, marks: Sequence[str]) -> str:
    """In Markdown."""
    text = cell.strip() if marks else cell
    text = f"**{text}**" if "best" in marks else f"<ins>{text}</ins>" if "second" in marks else text
    return f"{text} {ALIKE}" if "alike" in marks else text


Columns = list[tuple[str, list[str]]]


def tables_of(comparison: Comparison) -> list[Table]:
    """Transfer ratio and cost, quality, differences. Without ratios, cost and quality are one table."""
    names: Columns = [("model", [line.name for line in comparison.lines])]
    lead = [*names, ("role", [line.role for line in comparison.lines])]
    if _several(comparison):
        lead.append(("seeds", [str(len(line.seeds)) for line in comparison.lines]))
    ratios, notes = _ratios(comparison)
    quality, more = _quality(comparison)
    title = title_of(comparison)
    if ratios:
        tables = [
            _table(title, [*lead, *ratios, *_costs(comparison)], notes, 2, "transfer"),
            _with_marks(_table("quality", [*names, *quality], more, 1, "quality"), comparison, 1),
        ]
    else:
        before = [*lead, *_costs(comparison)]
        whole = _table(title, [*before, *quality], [*notes, *more], 2, "quality")
        tables = [_with_marks(whole, comparison, len(before))]
    if any(line.against for line in comparison.lines):
        tables.append(difference_table(comparison))
    return tables


def title_of(comparison: Comparison) -> str:
    queries = f"{comparison.n:,} queries"
    if comparison.n_queries > comparison.n:
        queries += f" with held-out items, of {comparison.n_queries:,}"
    ranked = "full ranking" if comparison.setting == "full" else comparison.setting
    return f"{comparison.part}, {ranked}, {queries}"


def ratio_text(transfer: Transfer | None) -> str:
    """``0.52 [0.40, 0.66]``, or that there is none."""
    if transfer is None:
        return ""
    if transfer.ratio is None:
        return "no clear lead"
    return f"{transfer.ratio:.2f} [{transfer.low:.2f}, {transfer.high:.2f}]"


def resampled_for_ratios(comparison: Comparison) -> str:
    """What the intervals of transfer ratios are taken over: seeds of models that take part in none are of no account."""
    several = any(t.seeds > 1 for line in comparison.lines for t in line.transfer.values())
    return "queries and seeds" if several else "queries"


def _several(comparison: Comparison) -> bool:
    return any(len(line.seeds) > 1 for line in comparison.lines)


def _table(title: str, columns: Columns, notes: Sequence[str], words: int, name: str) -> Table:
    rows = tuple(zip(*(cells for _, cells in columns), strict=True))
    return Table(title, tuple(header for header, _ in columns), rows, tuple(notes), words, name=name)


def _ratios(comparison: Comparison) -> tuple[Columns, list[str]]:
    lines = comparison.lines
    transfers = [t for line in lines for t in line.transfer.values()]
    if not transfers:
        missing = "no teacher" if comparison.teacher is None else "no model trained alone"
        if any(line.role == "student" for line in lines) and (
            comparison.teacher is None or comparison.baseline is None
        ):
            return [], [f"No transfer ratio: {missing} is among the runs."]
        return [], []
    columns = [
        (
            f"transfer ratio\n{comparison.shown_name(metric)}".replace(" sampled", "\nsampled"),
            [ratio_text(line.transfer.get(metric)) for line in lines],
        )
        for metric in comparison.metrics
    ]
    resampled = resampled_for_ratios(comparison)
    bases = " or ".join(dict.fromkeys(str(line.baseline) for line in lines if line.transfer))
    notes = [
        f"Transfer ratio: (model - alone) / (teacher - alone); 0 is {bases}, 1 is {comparison.teacher}.",
        f"In brackets: paired bootstrap over {resampled}, {comparison.confidence:.0%} interval.",
    ]
    if resampled != "queries":
        taking_part = {
            comparison.teacher,
            *(who for line in lines if line.transfer for who in (line.name, line.baseline)),
        }
        if lone := [line.name for line in lines if line.name in taking_part and len(line.seeds) == 1]:
            notes.append(f"One seed, which is not resampled: {', '.join(lone)}.")
    return columns, notes


def _with_marks(table: Table, comparison: Comparison, first: int) -> Table:
    """The table with the best and second best of each metric marked; columns of metrics begin at ``first``."""
    step = 1 if comparison.teacher is None else 2  # each has the share of the teacher's beside it
    marks = {
        (row, first + step * at): line.standings[metric].marks
        for row, line in enumerate(comparison.lines)
        for at, metric in enumerate(comparison.metrics)
        if metric in line.standings
    }
    return replace(table, marks=marks, key=tuple(key_of(comparison)), spoken=tuple(best_in_words(comparison)))


def key_of(comparison: Comparison) -> list[str]:
    """What the marks of the best mean; nothing where there are none."""
    found = [s for line in comparison.lines for s in line.standings.values()]
    if not found:
        return []
    apart = "" if comparison.teacher is None else ", the teacher left out"
    said = [f"Bold: the best by a metric{apart}. Underlined: the second best. Equal as shown, marked alike."]
    if any("alike" in standing.marks for standing in found):
        said.append(f"{ALIKE}: not clearly different from the best. {_clearly(comparison)}")
    return said


def best_in_words(comparison: Comparison) -> list[str]:
    """By each metric which models are best, and which are not clearly different from it; nothing for fewer than two."""
    said: list[str] = []
    for metric in comparison.metrics:
        by_name = {line.name: line.standings[metric] for line in comparison.lines if metric in line.standings}
        if not by_name:
            continue
        first = [name for name, standing in by_name.items() if standing.place == 1]
        alike = [name for name, standing in by_name.items() if standing.is_alike and standing.place > 1]
        more = f"; not clearly different: {', '.join(alike)}" if alike else ""
        if len(by_name) > len(first) + len(alike):
            more += "; the others are clearly worse" if alike or len(by_name) > len(first) + 1 else ", clearly"
        said.append(f"Best by {comparison.shown_name(metric)}: {', '.join(first)}{more}.")
    return [*said, _clearly(comparison)] if said else []


def _clearly(comparison: Comparison) -> str:
    found = [s for line in comparison.lines for s in line.standings.values() if s.to_best is not None]
    seeds = " and over seeds" if any(s.to_best_by_seed is not None for s in found) else ""
    many = "1 comparison" if len(found) == 1 else f"{len(found)} comparisons"
    return f"Clearly: p (Holm, {many} with the best) below {LEVEL}, over queries{seeds}."


def _costs(comparison: Comparison) -> Columns:
    lines = comparison.lines
    columns = (
        ("bytes\na row", [size(line.bytes_per_row) for line in lines]),
        ("bytes\nin all", [size(line.n_bytes) for line in lines]),
        ("time/1,000\nqueries", [duration(line.seconds_per_1000) for line in lines]),
    )
    return [(header, cells) for header, cells in columns if any(cells)]


def _quality(comparison: Comparison) -> tuple[Columns, list[str]]:
    lines, several = comparison.lines, _several(comparison)
    columns: Columns = []
    for metric in comparison.metrics:
        cells = []
        for line in lines:
            spread = line.quality[metric]
            cell = number(spread.mean)
            if several:
                cell += f" ±{spread.sd:.4f}" if spread.n > 1 else " " * 8
            cells.append(cell)
        columns.append((comparison.shown_name(metric).replace(" ", "\n"), cells))
        if comparison.teacher is not None:
            shares = [line.kept.get(metric, math.nan) for line in lines]
            columns.append(("of the\nteacher's", [f"{share:.1%}" if math.isfinite(share) else "-" for share in shares]))
    for name in dict.fromkeys(name for line in lines for name in line.agreement):
        columns.append((f"teacher's\n{name}", [number(line.agreement.get(name)) for line in lines]))
    return columns, ["± is the standard deviation over seeds."] if several else []


def difference_table(comparison: Comparison) -> Table:
    compared = [line for line in comparison.lines if line.against]
    bases = list(dict.fromkeys(line.baseline for line in compared)) or [comparison.baseline]
    by_seed = any(line.against_by_seed for line in compared)
    headers = ["model", "metric", "difference", f"{comparison.confidence:.0%} interval", "p", "p (Holm)"]
    if len(bases) > 1:
        headers.insert(1, "against")
    headers += ["over seeds\np", "over seeds\np (Holm)"] if by_seed else []
    headers.append("")
    rows = []
    resamples, tests = 0, []
    for line in compared:
        for metric, d in line.against.items():
            resamples = d.resamples or 0
            tests.append(d.test)
            row = [
                line.name,
                comparison.shown_name(metric),
                f"{d.difference:+.4f}",
                f"[{d.low:+.4f}, {d.high:+.4f}]",
                *_both(d, resamples),
            ]
            if len(bases) > 1:
                row.insert(1, str(line.baseline))
            if by_seed:
                over_seeds = line.against_by_seed.get(metric)
                row += ["", ""] if over_seeds is None else _both(over_seeds, 0)
            rows.append((*row, str(line.verdicts[metric])))
    notes = []
    if tests:
        named = " and ".join(dict.fromkeys(tests))
        notes += [
            f"Paired {named} test over queries, {resamples:,} resamples, bootstrap interval.",
            f"Better and worse: {_decisive(compared)} below {LEVEL}"
            + (", over queries and over seeds." if by_seed else "."),
        ]
    if any(verdict.lacks == "one seed" for line in compared for verdict in line.verdicts.values()):
        notes.append("One seed: it speaks about these weights, not about training again.")
    if by_seed:
        notes.append("Over seeds: paired t-test on the means of common seeds.")
    title = f"against {bases[0]}" if len(bases) == 1 else "against the models trained alone"
    words = 3 if len(bases) > 1 else 2
    return Table(title, tuple(headers), tuple(rows), tuple(notes), words, name="differences")


def _both(d: Difference, resamples: int) -> list[str]:
    """The p-value as it is, and corrected, where it is."""
    return [_p(d.p, resamples), "-" if d.p_adjusted is None else _p(d.p_adjusted, 0)]


def _decisive(compared: Sequence[Line]) -> str:
    """The p-values that verdicts go by: corrected, but for the teacher's."""
    over_queries, over_seeds = (
        sum(d.p_adjusted is not None for found in tests for d in found.values())
        for tests in ([line.against for line in compared], [line.against_by_seed for line in compared])
    )
    if not over_queries:
        return "p"
    many = "1 comparison" if over_queries == 1 else f"{over_queries} comparisons"
    if over_seeds not in (0, over_queries):
        many += f" over queries, {over_seeds} over seeds"
    teacher = "; the teacher is none of them" if any(line.role == "teacher" for line in compared) else ""
    return f"p (Holm, {many}{teacher})"


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


def size(n: float | None) -> str:
    return "" if n is None else _scaled(n, ("B", "kB", "MB", "GB"))


def duration(seconds: float | None) -> str:
    return "" if seconds is None else _scaled(seconds * 1e6, ("µs", "ms", "s"))
