"""The charts of a page: transfer ratios, quality against bytes and time, learning curves, quality by groups of queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdrs.comparison.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    Look,
    Scale,
    bar,
    decimals,
    drawing,
    frame,
    labels,
    linear,
    logarithmic,
    mark,
    round_size,
)
from kdrs.comparison.learning import learning_of, learnt_part
from kdrs.comparison.markup import Child, Markup, tag
from kdrs.comparison.tables import duration, number, ratio_text, size

if TYPE_CHECKING:
    from kdrs.comparison.groups import Breakdown
    from kdrs.comparison.result import Comparison, Line
    from kdrs.evaluation.transfer import Transfer

Looks = Mapping[str, Look]
_POINTS = 160
"""Of a curve; longer ones are thinned out."""
_TIPS = 24
"""Places of a curve that say their value."""


def interval_text(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{number(ends[0])} to {number(ends[1])}"


def ratio_of(transfer: Transfer | None) -> str:
    """``0.52 (0.40 to 0.66)``, or that there is none."""
    if transfer is None or transfer.ratio is None:
        return ratio_text(transfer)
    return f"{transfer.ratio:.2f} ({transfer.low:.2f} to {transfer.high:.2f})"


# --- transfer -------------------------------------------------------------------------------------------------------


def ratios(comparison: Comparison, metric: str, looks: Looks) -> Markup | None:
    """Transfer ratios with their intervals, a line a model; None where there are none."""
    rows = [(line, line.transfer[metric]) for line in comparison.lines if metric in line.transfer]
    known = [transfer for _, transfer in rows if transfer.ratio is not None]
    if not known:
        return None
    left, right, top = 120.0, 344.0, 26.0
    step = min(max(230 / len(rows), 28.0), 60.0)
    ends = [value for t in known for value in (t.ratio, t.low, t.high) if value is not None and math.isfinite(value)]
    low, high = max(min(ends), -1.0), min(max(ends), max(2.0, 1.5 * max(t.ratio or 0.0 for t in known)))
    x = linear([0.0, 1.0, low, high], left, right, margin=0.06)
    bottom = top + step * len(rows)
    drawn: list[Child] = []
    text = decimals(x.ticks(5))
    for value in x.ticks(5):
        at = x(value)
        drawn += [
            tag("line", x1=at, x2=at, y1=top - 8, y2=bottom, class_="grid"),
            tag("text", text(value), x=at, y=bottom + 17, class_="tick", text_anchor="middle"),
        ]
    for value, named in ((0.0, "alone"), (1.0, "teacher")):
        drawn += [
            tag("line", x1=x(value), x2=x(value), y1=top - 8, y2=bottom, class_="reference"),
            tag("text", named, x=x(value), y=top - 13, class_="tick", text_anchor="middle"),
        ]
    said = []
    for at, (line, transfer) in enumerate(rows):
        y = top + step * (at + 0.5)
        look = looks[line.name]
        name = line.name if len(line.name) <= 17 else f"{line.name[:16]}…"
        drawn.append(tag("text", name, x=left - 14, y=y + 4, class_="label", text_anchor="end"))
        drawn.append(tag("text", ratio_of(transfer), x=right + 12, y=y + 4, class_="value"))
        said.append(f"{line.name} {ratio_of(transfer)}")
        if transfer.ratio is None or transfer.low is None or transfer.high is None:
            continue
        ends_at = [x(min(max(end, x.low), x.high)) for end in (transfer.low, transfer.high)]
        drawn.append(tag("path", d=f"M{ends_at[0]:.1f} {y:.1f}H{ends_at[1]:.1f}", class_=f"bar {look.class_}"))
        for end, beyond, way in ((ends_at[0], transfer.low < x.low, -1), (ends_at[1], transfer.high > x.high, 1)):
            if beyond:
                back = end - 5 * way
                arrow = f"M{back:.1f} {y - 4:.1f}L{end:.1f} {y:.1f}L{back:.1f} {y + 4:.1f}"
                drawn.append(tag("path", d=arrow, class_=f"bar {look.class_}"))
        if x.low <= transfer.ratio <= x.high:
            tip = f"{line.name}: transfer ratio {ratio_of(transfer)} by {comparison.shown_name(metric)}"
            drawn.append(mark(look, x(transfer.ratio), y, tip))
    drawn.append(
        tag("text", "transfer ratio", x=(left + right) / 2, y=bottom + 36, class_="title", text_anchor="middle")
    )
    return drawing(f"Transfer ratio by {comparison.shown_name(metric)}: {'; '.join(said)}.", *drawn, height=bottom + 44)


# --- quality against what it costs ----------------------------------------------------------------------------------


def scatter(comparison: Comparison, metric: str, looks: Looks, kind: str) -> Markup | None:
    """Quality against ``bytes`` or ``time``, on a logarithmic axis; None where fewer than two models have a number."""
    points = []
    for line in comparison.lines:
        cost = line.n_bytes if kind == "bytes" else line.seconds_per_1000
        if cost and math.isfinite(cost) and math.isfinite(line.quality[metric].mean):
            points.append((line, float(cost), line.quality[metric].mean))
    if len(points) < 2:
        return None
    metric_name = comparison.shown_name(metric)
    x = logarithmic([cost for _, cost, _ in points], LEFT, RIGHT)
    y = linear([*(value for *_, value in points), *_ends([line for line, *_ in points], metric)], BOTTOM, TOP)
    title, shown, tick = _COSTS[kind]
    drawn = frame(x, y, title, f"{comparison.part} {metric_name}", tick)
    drawn += _levels(comparison, metric, y)
    said = []
    for line, cost, value in points:
        ends = line.intervals.get(metric)
        if ends is not None:
            drawn.append(bar(looks[line.name], x(cost), y(ends[0]), y(ends[1])))
        said.append(f"{line.name} {number(value)} at {shown(cost)}")
    for line, cost, value in points:
        between = interval_text(line.intervals.get(metric))
        tip = f"{line.name}: {metric_name} {number(value)}{f' ({between})' if between else ''}; {shown(cost)}"
        drawn.append(mark(looks[line.name], x(cost), y(value), tip))
    drawn += labels([(x(cost), y(value), line.name) for line, cost, value in points])
    return drawing(f"{metric_name} against {title}: {'; '.join(said)}.", *drawn)


def _round_duration(seconds: float) -> str:
    return duration(seconds).replace(".00 ", " ").replace(".0 ", " ")


_COSTS: dict[str, tuple[str, Callable[[float], str], Callable[[float], str]]] = {
    "bytes": ("bytes of all tables (logarithmic)", size, round_size),
    "time": ("time for the lists of 1,000 queries (logarithmic)", duration, _round_duration),
}
"""By what a model costs: the axis, its values and its ticks."""


def _ends(lines: Sequence[Line], metric: str) -> list[float]:
    return [end for line in lines if metric in line.intervals for end in line.intervals[metric]]


def _levels(comparison: Comparison, metric: str, y: Scale) -> list[Child]:
    """Lines at the teacher's mean, and at the one's trained alone where all are compared with the same one."""
    found: list[Child] = []
    bases = {line.baseline for line in comparison.lines if line.baseline is not None}
    for name, class_ in ((comparison.teacher, "reference"), (min(bases) if len(bases) == 1 else None, "reference low")):
        line = next((line for line in comparison.lines if line.name == name), None)
        if line is not None and math.isfinite(line.quality[metric].mean):
            at = y(line.quality[metric].mean)
            found.append(tag("line", x1=LEFT, x2=RIGHT, y1=at, y2=at, class_=class_))
    return found


# --- learning curves ------------------------------------------------------------------------------------------------


def curves(comparison: Comparison, metric: str, looks: Looks) -> Markup | None:
    """Validation by epoch: over seeds the mean and a band from the lowest to the highest, while all of them train."""
    part = learnt_part(comparison)
    learnt = [(line, learning_of(line, part, metric)) for line in comparison.lines]
    found = [(line, learning) for line, learning in learnt if learning is not None]
    if not found:
        return None
    # what comes after the first tenth: the steep beginning would leave little room for all that follows
    late = [values[values.size // 10 :] for _, own in found for _, values in own.singles]
    every = [float(v) for values in late for v in (values.min(), values.max())]
    last = max(int(epochs[-1]) for _, own in found for epochs, _ in own.singles)
    x = Scale(0, max(last, 1), LEFT, RIGHT)
    y = linear(every, BOTTOM, TOP)
    metric_name = comparison.shown_name(metric)
    axes = frame(x, y, "epoch", f"{part} {metric_name}", lambda value: f"{value:g}")
    drawn: list[Child] = []
    said, tops = [], []
    for line, own in found:
        look, seeds = looks[line.name], len(own.singles)
        if own.epochs.size:
            drawn.append(_band(look, x, y, own.epochs, own.low, own.high))
            for epochs, values in own.singles:  # seeds that train longer than the first that stops
                rest = epochs >= own.epochs[-1]
                drawn.append(_polyline(look, x, y, epochs[rest], values[rest], "curve lone"))
            drawn.append(_polyline(look, x, y, own.epochs, own.mean, "curve"))
            tops += _tips(look, x, y, own.epochs, own.mean, f"{line.name}, mean of {seeds} seeds", metric_name)
        else:
            for epochs, values in own.singles:
                drawn.append(_polyline(look, x, y, epochs, values, "curve" if seeds == 1 else "curve lone"))
                tops += _tips(look, x, y, epochs, values, line.name, metric_name)
        for epochs, values in own.singles:
            best = int(np.argmax(values))
            tip = f"{line.name}: best {metric_name} {number(float(values[best]))} at epoch {epochs[best]}"
            tops.append(mark(look, x(float(epochs[best])), y(float(values[best])), tip, small=seeds > 1))
            said.append(f"{line.name} {number(float(values[best]))} at epoch {epochs[best]}")
    cut = f"cut-{metric}".replace("@", "-")
    shape = tag("clipPath", tag("rect", x=LEFT, y=TOP - 8, width=RIGHT - LEFT, height=BOTTOM - TOP + 8), id=cut)
    inner = tag("g", drawn, clip_path=f"url(#{cut})")
    return drawing(f"{part} {metric_name} by epoch; best: {'; '.join(said)}.", shape, *axes, inner, *tops)


def _thinned(n: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def _polyline(look: Look, x: Scale, y: Scale, epochs: np.ndarray, values: np.ndarray, class_: str) -> Markup | None:
    if epochs.size < 2:
        return None
    kept = _thinned(epochs.size, _POINTS)
    points = " ".join(
        f"{x(e):.1f},{y(v):.1f}" for e, v in zip(epochs[kept].tolist(), values[kept].tolist(), strict=True)
    )
    return tag("polyline", points=points, class_=f"{class_} {look.class_}")


def _band(look: Look, x: Scale, y: Scale, epochs: np.ndarray, low: np.ndarray, high: np.ndarray) -> Markup:
    kept = _thinned(epochs.size, _POINTS)
    there = [(float(epochs[at]), float(high[at])) for at in kept]
    back = [(float(epochs[at]), float(low[at])) for at in kept[::-1]]
    points = " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in [*there, *back])
    return tag("polygon", points=points, class_=f"band {look.class_}")


def _tips(
    look: Look, x: Scale, y: Scale, epochs: np.ndarray, values: np.ndarray, name: str, metric: str
) -> list[Markup]:
    return [
        tag(
            "g",
            tag("title", f"{name}: {metric} {number(float(values[at]))} at epoch {epochs[at]}"),
            tag("circle", r=8, class_="hit"),
            tag("circle", r=3, class_="dot"),
            class_=f"mark point {look.class_}",
            transform=f"translate({x(float(epochs[at])):.1f} {y(float(values[at])):.1f})",
        )
        for at in _thinned(epochs.size, _TIPS).tolist()
        if values[at] >= y.low
    ]


# --- groups of queries ----------------------------------------------------------------------------------------------


def by_group(comparison: Comparison, breakdown: Breakdown, metric: str, looks: Looks) -> Markup:
    """The mean of each group with its interval, models side by side."""
    groups, names = breakdown.groups, [line.name for line in comparison.lines]
    ends = [value for group in groups for three in group.quality[metric].values() for value in three]
    y = linear(ends, BOTTOM - 12, TOP)
    x = Scale(0, len(groups), LEFT, RIGHT)
    metric_name = comparison.shown_name(metric)
    width = (RIGHT - LEFT) / len(groups)
    step = min(11.0, 0.62 * width / max(1, len(names)))
    drawn: list[Child] = [
        tag("rect", x=x(at), y=TOP, width=width, height=BOTTOM - TOP, class_="stripe")
        for at in range(0, len(groups), 2)
    ]
    drawn += frame(x, y, breakdown.unit, f"{comparison.part} {metric_name}", str, x_ticks=False, x_title_at=HEIGHT + 6)
    said = []
    for at, group in enumerate(groups):
        middle = x(at + 0.5)
        drawn += [
            tag("text", group.label, x=middle, y=BOTTOM + 15, class_="tick", text_anchor="middle"),
            tag("text", f"n = {group.n:,}", x=middle, y=BOTTOM + 28, class_="tick faint", text_anchor="middle"),
        ]
    places = {name: (at - (len(names) - 1) / 2) * step for at, name in enumerate(names)}
    for name in names:
        points = " ".join(
            f"{x(at + 0.5) + places[name]:.1f},{y(group.quality[metric][name][0]):.1f}"
            for at, group in enumerate(groups)
        )
        drawn.append(tag("polyline", points=points, class_=f"curve faint {looks[name].class_}"))
    for at, group in enumerate(groups):
        told = []
        for name in names:
            mean, low, high = group.quality[metric][name]
            place = x(at + 0.5) + places[name]
            tip = f"{name}, {group.label} {breakdown.unit}: {metric_name} {number(mean)} ({interval_text((low, high))})"
            drawn += [bar(looks[name], place, y(low), y(high)), mark(looks[name], place, y(mean), tip, small=True)]
            told.append(f"{name} {number(mean)}")
        said.append(f"{group.label}: {', '.join(told)}")
    return drawing(f"{metric_name} by {breakdown.unit}. {'; '.join(said)}.", *drawn, height=HEIGHT + 14)
