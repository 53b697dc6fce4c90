"""A comparison as one HTML file that people open: no network, no fonts, all of it there without scripts.

Everything that comes from outside (names, ids, titles) goes through `kdrs.comparison.markup`, which escapes it. The file also
states, by their digests, that no script and no style but its own may run.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from kdrs import __version__
from kdrs.comparison.charts import glyph, looks_of
from kdrs.comparison.figures import Looks, by_group, curves, interval_text, ratio_of, ratios, scatter
from kdrs.comparison.markup import Child, Markup, joined, tag
from kdrs.comparison.people import people_of
from kdrs.comparison.tables import ALIKE, duration, key_of, number, resampled_for_ratios, size, tables_of, title_of
from kdrs.comparison.verdicts import decisive_p

if TYPE_CHECKING:
    from kdrs.comparison.groups import Breakdown
    from kdrs.comparison.result import Comparison, Line
    from kdrs.comparison.verdicts import Verdict

METRICS = 8
"""Metrics that are drawn; the tables have all."""


def page_of(comparison: Comparison) -> str:
    """The whole file."""
    style, script = (
        resources.files("kdrs.comparison").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    looks = looks_of(comparison.lines)
    sections = [
        _section("models", "Models", _models(comparison, looks)),
        _section("costs", "Costs and curves", _charts(comparison, looks)),
        _section("groups", "Who gains", _groups(comparison, looks)),
        _section("users", "Lists side by side", people_of(comparison, looks)),
        _section("reading", "How to read it", _reading(comparison)),
    ]
    present = [section for section in sections if section is not None]
    links = [tag("a", title, href=f"#{name}") for name, title, _ in present]
    body = tag(
        "body",
        tag("header", _head(comparison), class_="top"),
        tag("nav", tag("div", tag("span", _spaced(links), class_="links"), _chooser(comparison), class_="top")),
        tag("main", _cards(comparison, looks), [drawn for *_, drawn in present], _foot()),
        tag("script", Markup(script)),
    )
    title = f"{comparison.part}: {', '.join(line.name for line in comparison.lines)}"
    own = f"style-src {_digest(style)}; script-src {_digest(script)}"
    policy = f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title if len(title) <= 120 else f"{title[:119]}…"),
        tag("style", Markup(style)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _section(name: str, title: str, inner: Child) -> tuple[str, str, Markup] | None:
    drawn = joined(inner)
    return (name, title, tag("section", tag("h2", title), drawn, id=name)) if drawn else None


def _spaced(links: Sequence[Markup]) -> Markup:
    return Markup(" &nbsp; ".join(links))


def drawn_metrics(comparison: Comparison) -> tuple[str, ...]:
    return comparison.metrics[:METRICS]


def by_metric(comparison: Comparison, make: Callable[[str], Child]) -> list[Markup]:
    """A block for each metric; scripts show one at a time."""
    blocks = []
    for metric in drawn_metrics(comparison):
        inner = joined(make(metric))
        if inner:
            several = len(comparison.metrics) > 1
            named = tag("p", f"by {comparison.shown_name(metric)}", class_="of") if several else None
            blocks.append(tag("div", named, inner, data_metric=metric))
    return blocks


# --- the head -------------------------------------------------------------------------------------------------------


def _head(comparison: Comparison) -> list[Child]:
    background = comparison.background
    facts = [] if background is None else list(background.facts)
    shown = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]
    warnings = [tag("li", warning) for warning in comparison.warnings]
    distilled = any(line.role == "student" for line in comparison.lines)
    return [
        tag("h1", "Distillation report" if distilled else "Comparison of models"),
        tag("p", title_of(comparison), class_="lead"),
        tag("dl", shown, class_="facts") if shown else None,
        tag("div", tag("h2", "What not to trust"), tag("ul", warnings), class_="warnings", role="note")
        if warnings
        else None,
    ]


def _chooser(comparison: Comparison) -> Markup | None:
    metrics = drawn_metrics(comparison)
    if len(metrics) < 2:
        return None
    buttons = [
        tag("button", comparison.shown_name(metric), type="button", value=metric, aria_pressed="false")
        for metric in metrics
    ]
    return tag("div", tag("span", "metric"), buttons, class_="metrics", role="group", aria_label="metric")


def _foot() -> Markup:
    return tag("footer", f"Written by kdrs {__version__}. The same numbers for programs: comparison.json.")


# --- in short -------------------------------------------------------------------------------------------------------


def _cards(comparison: Comparison, looks: Looks) -> Child:
    """What each student is worth, by each metric; nothing where there is no student."""
    students = [line for line in comparison.lines if line.role == "student"]
    teacher = _line(comparison, comparison.teacher)
    if not students:
        return None

    def of(line: Line, metric: str) -> Markup:
        transfer = line.transfer.get(metric)
        name, mean = comparison.shown_name(metric), number(line.quality[metric].mean)
        lead = f"{comparison.teacher}'s lead over {line.baseline}"
        if transfer is not None and transfer.ratio is not None:
            ends = f"{transfer.low:.2f} to {transfer.high:.2f}"
            big = tag("p", f"{transfer.ratio:.2f}", tag("small", f"transfer ratio ({ends})"), class_="big")
            facts = [f"of {lead}", f"{name} {mean}{_share(line, metric)}"]
        else:
            big = tag("p", mean, tag("small", name), class_="big")
            facts = [_share(line, metric).removeprefix(", ")] if _share(line, metric) else []
            facts += [] if transfer is None else [f"no transfer ratio: {lead} is not clear"]
        if teacher is not None and teacher.n_bytes and line.n_bytes:
            facts.append(f"{size(line.n_bytes)}: {_times(teacher.n_bytes / line.n_bytes)} of the teacher's bytes")
        elif line.n_bytes:
            facts.append(size(line.n_bytes))
        verdict = line.verdicts.get(metric)
        against = tag("span", f" against {line.baseline}", class_="note")
        return tag(
            "article",
            tag("h3", glyph(looks[line.name]), tag("span", line.name)),
            big,
            tag("ul", [tag("li", fact) for fact in facts]),
            None if verdict is None else tag("p", _pill(verdict), against),
            class_="card",
        )

    return by_metric(comparison, lambda metric: tag("div", [of(line, metric) for line in students], class_="cards"))


def _share(line: Line, metric: str) -> str:
    share = line.kept.get(metric, math.nan)
    return f", {share:.1%} of the teacher's" if math.isfinite(share) else ""


def _times(ratio: float) -> str:
    """How many times smaller, or larger where it is that."""
    return f"1/{ratio:.3g}" if ratio >= 1.05 else f"{1 / ratio:.3g} times"


def _pill(verdict: Verdict) -> Markup:
    kind = {"better": "pill better", "worse": "pill worse"}.get(verdict.word, "pill")
    return tag("span", str(verdict), class_=kind)


def _line(comparison: Comparison, name: str | None) -> Line | None:
    return next((line for line in comparison.lines if line.name == name), None)


# --- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """A column of a table: cells as they are shown, and what they are sorted by."""

    head: str
    cells: Sequence[Child]
    keys: Sequence[float | str | None]
    words: bool = False


def table(label: str, columns: Sequence[_Column]) -> Markup:
    """A table whose heads sort it; the first column are its rows' names. Columns without any cell are left out."""
    kept = [column for column in columns if any(joined(cell) for cell in column.cells)]
    heads = [
        tag(
            "th",
            tag("button", _lines(column.head), type="button", class_="sort"),
            scope="col",
            class_="words" if column.words else None,
            data_kind="words" if column.words else "number",
        )
        for column in kept
    ]
    rows = []
    for at in range(len(kept[0].cells)):
        cells = []
        for place, column in enumerate(kept):
            key = column.keys[at]
            known = key is not None and not (isinstance(key, float) and not math.isfinite(key))
            value = None if not known else key if isinstance(key, str) else f"{key!r}"
            if place:
                cells.append(tag("td", column.cells[at], class_="words" if column.words else None, data_value=value))
            else:
                cells.append(tag("th", column.cells[at], scope="row", data_value=value))
        rows.append(tag("tr", cells))
    drawn = tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), aria_label=label)
    return tag("div", drawn, class_="scroll", tabindex="0", role="region", aria_label=label)


def _lines(text: str) -> list[Child]:
    """A head of several lines."""
    first, *rest = text.split("\n")
    return [first, *([tag("br"), line] for line in rest)]


def _models(comparison: Comparison, looks: Looks) -> list[Child]:
    return [
        tag(
            "p",
            f"Every run on the same queries. Small: the {comparison.confidence:.0%} interval, and bytes as a share of the "
            "teacher's. Several seeds of a model are one row: mean ± standard deviation over them.",
            *(f" {note}" for note in key_of(comparison)),
            class_="note",
        ),
        by_metric(comparison, lambda metric: table(f"models by {metric}", _columns(comparison, metric, looks))),
        _others(comparison),
    ]


def _others(comparison: Comparison) -> Child:
    left = comparison.metrics[METRICS:]
    if not left:
        return None
    return tag(
        "p", f"Not on this page, but in comparison.json: {', '.join(map(comparison.shown_name, left))}.", class_="note"
    )


def _columns(comparison: Comparison, metric: str, looks: Looks) -> list[_Column]:
    lines = comparison.lines
    teacher = _line(comparison, comparison.teacher)
    whole = None if teacher is None else teacher.n_bytes
    bases = {line.baseline for line in lines if line.against and line.baseline is not None}

    def quality(line: Line) -> Child:
        spread = line.quality[metric]
        sd = f" ± {spread.sd:.4f}" if spread.n > 1 and math.isfinite(spread.sd) else None
        marks = line.standings[metric].marks if metric in line.standings else ()
        kind = "strong" if "best" in marks else "u" if "second" in marks else "span"
        alike = f" {ALIKE}" if "alike" in marks else None
        return [tag(kind, number(spread.mean)), sd, alike, _small(interval_text(line.intervals.get(metric)))]

    def transferred(line: Line) -> Child:
        transfer = line.transfer.get(metric)
        if transfer is None or transfer.ratio is None:
            return ratio_of(transfer)
        return [f"{transfer.ratio:.2f}", _small(f"{transfer.low:.2f} to {transfer.high:.2f}")]

    def against(line: Line) -> Child:
        d = line.against.get(metric)
        return None if d is None else [f"{d.difference:+.4f}", _small(f"{d.low:+.4f} to {d.high:+.4f}")]

    def verdict(line: Line) -> Child:
        found = line.verdicts.get(metric)
        if found is None:
            return None
        d = line.against[metric]
        said = f"p {_p_text(decisive_p(d))}" + (" (Holm)" if d.p_adjusted is not None else "")
        return [_pill(found), _small(said if len(bases) == 1 else f"{said}; against {line.baseline}")]

    def n_bytes(line: Line) -> Child:
        if not whole or not line.n_bytes or line is teacher:
            return size(line.n_bytes)
        return [size(line.n_bytes), _small(f"{_times(whole / line.n_bytes)}")]

    ratios_ = [line.transfer[metric].ratio if metric in line.transfer else None for line in lines]
    named = [tag("span", glyph(looks[line.name]), tag("span", line.name, tag("small", line.role))) for line in lines]
    found = [line.against.get(metric) for line in lines]
    columns = [_Column("model", named, [line.name for line in lines], True)]
    if any(len(line.seeds) > 1 for line in lines):
        columns.append(_Column("seeds", [str(len(line.seeds)) for line in lines], [len(line.seeds) for line in lines]))
    return [
        *columns,
        _Column(comparison.shown_name(metric), [quality(x) for x in lines], [x.quality[metric].mean for x in lines]),
        _Column(
            "of the\nteacher's", [_percent(x.kept.get(metric)) for x in lines], [x.kept.get(metric) for x in lines]
        ),
        _Column("transfer\nratio", [transferred(line) for line in lines], ratios_),
        _Column(
            "difference\nto alone" if len(bases) != 1 else f"difference\nto {_short(min(bases))}",
            [against(line) for line in lines],
            [None if d is None else d.difference for d in found],
        ),
        _Column("verdict", [verdict(line) for line in lines], [_word(line, metric) for line in lines], True),
        _Column("bytes\nin all", [n_bytes(line) for line in lines], [line.n_bytes for line in lines]),
        _Column("bytes\na row", [size(line.bytes_per_row) for line in lines], [line.bytes_per_row for line in lines]),
        _Column(
            "time/1,000\nqueries",
            [duration(line.seconds_per_1000) for line in lines],
            [line.seconds_per_1000 for line in lines],
        ),
    ]


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def _small(text: str) -> Markup | None:
    return tag("small", text) if text else None


def _word(line: Line, metric: str) -> str | None:
    return str(line.verdicts[metric]) if metric in line.verdicts else None


def _percent(share: float | None) -> str:
    return "" if share is None or not math.isfinite(share) else f"{share:.1%}"


def _p_text(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


# --- charts ---------------------------------------------------------------------------------------------------------


def legend(comparison: Comparison, looks: Looks) -> Markup:
    entries = [
        tag("li", glyph(looks[line.name]), tag("span", line.name), tag("span", f"({line.role})", class_="role"))
        for line in comparison.lines
    ]
    return tag("ul", entries, class_="legend", aria_label="legend")


def _figure(title: str, drawn: Markup | None, caption: str) -> Markup | None:
    return None if drawn is None else tag("figure", tag("h3", title), drawn, tag("figcaption", caption))


def _charts(comparison: Comparison, looks: Looks) -> list[Child]:
    level = f"{comparison.confidence:.0%}"
    over = "queries and seeds" if any(len(line.seeds) > 1 for line in comparison.lines) else "queries"
    drawn_over = resampled_for_ratios(comparison)
    bases = {line.baseline for line in comparison.lines if line.baseline is not None}
    levels = [] if comparison.teacher is None else [f"dashed: {comparison.teacher}"]
    levels += [f"dotted: {min(bases)}"] if len(bases) == 1 else []
    told = "".join(f"; {level}" for level in levels)

    def figures(metric: str) -> Child:
        drawn = [
            _figure(
                "Transfer ratio",
                ratios(comparison, metric, looks),
                f"Lines: {level} interval, paired bootstrap over {drawn_over}. Past an arrow the interval goes on.",
            ),
            _figure(
                "Quality against bytes",
                scatter(comparison, metric, looks, "bytes"),
                f"Up and left is better. Lines: {level} interval of the mean over {over}{told}.",
            ),
            _figure(
                "Quality against time",
                scatter(comparison, metric, looks, "time"),
                "Time to score, leave out what was seen and select, on the machine that wrote this page. Lines as before.",
            ),
            _figure(
                "Learning curves",
                curves(comparison, metric, looks),
                "Marked: each seed's best epoch; of encoded users as they are trained, whichever encoder was kept in the end. "
                "What is far below, at the beginning, is cut off. Of several seeds: their "
                "mean and a band from the lowest to the highest, as long as all train; then thin lines are single seeds.",
            ),
        ]
        return tag("div", drawn, class_="charts") if any(drawn) else None

    blocks = by_metric(comparison, figures)
    if not blocks:
        return []
    note = (
        "Intervals of two models may overlap although one is clearly better: both were measured on the same queries. The "
        "verdicts come from paired tests."
    )
    return [legend(comparison, looks), tag("p", note, class_="note"), blocks]


# --- groups of queries ----------------------------------------------------------------------------------------------


def _groups(comparison: Comparison, looks: Looks) -> list[Child]:
    shown = [breakdown for breakdown in comparison.breakdowns if len(breakdown.groups) > 1]
    if not shown:
        return []
    level = f"{comparison.confidence:.0%}"

    def figures(metric: str) -> Child:
        drawn = [_figure(b.title, by_group(comparison, b, metric, looks), b.note) for b in shown]
        tables = [_group_table(comparison, breakdown, metric) for breakdown in shown]
        return [tag("div", drawn, class_="charts"), tables]

    note = (
        f"Queries in groups of about equal size, equal values together. Lines: {level} interval. Nothing is tested here: with "
        "so many groups some differ by luck."
    )
    return [legend(comparison, looks), tag("p", note, class_="note"), by_metric(comparison, figures)]


def _group_table(comparison: Comparison, breakdown: Breakdown, metric: str) -> Markup:
    groups = breakdown.groups
    columns = [
        _Column(breakdown.name, [group.label for group in groups], [group.low for group in groups]),
        _Column("queries", [f"{group.n:,}" for group in groups], [group.n for group in groups]),
    ]
    for line in comparison.lines:
        found = [group.quality[metric][line.name] for group in groups]
        cells = [[number(mean), tag("small", interval_text((low, high)))] for mean, low, high in found]
        columns.append(_Column(line.name, cells, [mean for mean, *_ in found]))
    label = f"{breakdown.title}: numbers"
    for line in comparison.lines:
        transfers = [group.transfer[metric].get(line.name) for group in groups]
        if any(transfers):
            label = f"{breakdown.title}: numbers, and transfer ratios"
            columns.append(
                _Column(
                    f"transfer ratio\n{line.name}",
                    [ratio_of(transfer) for transfer in transfers],
                    [None if transfer is None else transfer.ratio for transfer in transfers],
                )
            )
    return tag("details", tag("summary", label), table(f"{label} by {metric}", columns))


# --- how to read it -------------------------------------------------------------------------------------------------


def _reading(comparison: Comparison) -> Markup:
    said = list(dict.fromkeys(note for found in tables_of(comparison) for note in found.notes))
    said += [
        "Verdict: better or worse takes a p-value below 0.05 after Holm's correction over all comparisons of students; with "
        "several seeds the test over queries and the one over seeds must agree. What stands in brackets says which test spoke.",
        "Bytes are those of all tables of numbers, ids left out. Bytes a row: one user or one item, the larger of the two.",
        "Of the teacher's: the share of its mean. A student alone often has most of it, so the transfer ratio says more.",
    ]
    return tag("ul", [tag("li", note) for note in said], class_="read note")
