"""A comparison as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrs.comparison.tables import quality_table
from kdrs.errors import MachineError
from kdrs.escaping import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kdrs.comparison.compare import Comparison, Line


# Picture.

# Okabe and Ito's colours without yellow: told apart by colour-blind readers. Teacher and baseline are black and grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B3294", "#8C510A")
_MARKERS = ("o", "D", "^", "v", "P", "X", "<", ">")


def figure_of(comparison: Comparison, metric: str) -> Figure:
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
    figure.suptitle(plot(quality_table(comparison).title), fontsize=10, color="0.3")
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
    return handles, [plot(line.name) for line in lines]


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
