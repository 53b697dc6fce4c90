"""A comparison as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrs.comparison.charts import drawn_as
from kdrs.comparison.learning import learning_of, learnt_part
from kdrs.comparison.tables import ratio_text, title_of
from kdrs.errors import MachineError
from kdrs.escaping import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kdrs.comparison.result import Comparison, Line

# Okabe and Ito's colours without yellow: told apart by colour-blind readers. Teacher and baseline are black and grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B3294", "#8C510A")
_MARKERS = ("o", "D", "^", "v", "P", "X", "<", ">")
_HOLLOW = ("s", "o", "D", "^", "v")
_GREYS = ("0.45", "0.2", "0.65")


def figure_of(comparison: Comparison, metric: str) -> Figure:
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as problem:
        raise MachineError("pictures need matplotlib, which is not installed", 'pip install "kdrs[plots]"') from problem

    lines = comparison.lines
    looks = _looks(lines)
    intervals = {line.name: line.intervals[metric] for line in lines if metric in line.intervals}
    panels = []
    if any(line.bytes_per_row for line in lines):
        panels.append("row")
    if any(line.n_bytes for line in lines) and not ("row" in panels and _total_a_row(lines)):
        panels.append("size")
    if any(line.seconds_per_1000 for line in lines):
        panels.append("time")
    if any(learning_of(line, learnt_part(comparison), metric) for line in lines):
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
        if whole is not None and comparison.teacher is not None:
            axis.axhline(whole, color="black", linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
            ends = intervals.get(comparison.teacher)
            if ends is not None:
                axis.axhspan(*ends, color="black", alpha=0.07, linewidth=0, zorder=0, gid="teacher-interval")
        if comparison.baseline is not None:
            axis.axhline(levels[comparison.baseline], color="0.55", linewidth=0.9, linestyle=(0, (1, 3)), zorder=1)
        for line in lines:
            x = {
                "row": line.bytes_per_row,
                "size": line.n_bytes,
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
        if panel == "row" and (rows := _total_a_row(lines)):
            _add_totals(axis, rows)
        axis.set_ylim(*_reach(lines, metric, intervals.get(comparison.teacher or "")))
        if panel == panels[0] and whole:
            _add_second_scale(axis, comparison, metric, whole)
    figure.suptitle(plot(title_of(comparison)), fontsize=10, color="0.3")
    handles, labels = _legend(lines, looks, metric)
    columns = min(len(lines), 6 if len(panels) > 2 else 4)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _total_a_row(lines: Sequence[Line]) -> float | None:
    """Bytes in all for each byte a row, where that is one number for all models: then one axis serves for both."""
    known = [line for line in lines if line.bytes_per_row and line.n_bytes]
    rates = [line.n_bytes / line.bytes_per_row for line in known if line.n_bytes and line.bytes_per_row]
    complete = all(bool(line.n_bytes) == bool(line.bytes_per_row) for line in lines)
    return rates[0] if rates and complete and max(rates) <= 1.01 * min(rates) else None


def _linear(unit: float, zero: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """From a scale to one with its 0 at ``zero`` and its 1 a ``unit`` above, and back."""
    return (lambda y: (y - zero) / unit), (lambda y: y * unit + zero)


def _add_totals(axis: Axes, rows: float) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    low, high = axis.get_xlim()
    totals = axis.secondary_xaxis("top", functions=_linear(1 / rows, 0.0))
    totals.xaxis.set_major_locator(LogLocator(subs=_steps(low, high)))
    totals.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
    totals.xaxis.set_minor_formatter(NullFormatter())
    totals.tick_params(labelcolor="0.45", labelsize=8, color="0.7")
    totals.spines["top"].set_visible(False)
    totals.set_xlabel("bytes in all", color="0.45", fontsize=8)


def _add_second_scale(axis: Axes, comparison: Comparison, metric: str, whole: float) -> None:
    """On the right: the transfer ratio, or the share of the teacher's mean where there is no ratio."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    transfers = [line.transfer[metric] for line in comparison.lines if metric in line.transfer]
    bases = {line.baseline for line in comparison.lines if line.transfer}
    if transfers and len(bases) == 1 and all(transfer.clear for transfer in transfers):
        lead = transfers[0].lead
        scale = axis.secondary_yaxis("right", functions=_linear(lead, whole - lead))
        scale.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:.3g}"))
        scale.set_ylabel("transfer ratio (0: alone, 1: teacher)", color="0.45", fontsize=8)
    else:
        scale = axis.secondary_yaxis("right", functions=_linear(whole, 0.0))
        scale.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
        scale.set_ylabel("share of the teacher's", color="0.45", fontsize=8)
    scale.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    scale.tick_params(length=0, labelcolor="0.45", labelsize=8)
    scale.spines["right"].set_visible(False)


def _reach(lines: Sequence[Line], metric: str, teacher: tuple[float, float] | None) -> tuple[float, float]:
    """Limits that hold every mean with its deviation and the teacher's interval, the same for every panel of quality."""
    spreads = [line.quality[metric] for line in lines if math.isfinite(line.quality[metric].mean)]
    ends = [
        spread.mean + side * (spread.sd if math.isfinite(spread.sd) else 0.0) for spread in spreads for side in (-1, 1)
    ]
    ends += teacher or ()
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = 0.08 * (high - low) or max(0.05 * abs(high), 0.01)
    return low - margin, high + margin


def _looks(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """As those of the page: models of one role are told apart by colour and by form."""
    looks: dict[str, dict[str, Any]] = {}
    for name, (role, at) in drawn_as(lines).items():
        if role == "teacher":
            look: dict[str, Any] = {"color": "black", "marker": "*", "markersize": 13}
        elif role == "alone":
            look = {"color": _GREYS[at % len(_GREYS)], "marker": _HOLLOW[at % len(_HOLLOW)], "markersize": 7}
            look |= {"markerfacecolor": "white", "markeredgewidth": 1.6}
        else:  # once around, colours meet other forms
            form = _MARKERS[(at + at // len(_COLOURS)) % len(_MARKERS)]
            look = {"color": _COLOURS[at % len(_COLOURS)], "marker": form, "markersize": 7}
        looks[name] = look
    return looks


def _legend(lines: Sequence[Line], looks: Mapping[str, Mapping[str, Any]], metric: str) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linewidth=1.4, **looks[line.name]) for line in lines]
    return handles, [f"{plot(line.name)}  {ratio_text(line.transfer.get(metric))}".rstrip() for line in lines]


def _log_axis(axis: Axes, panel: str) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    if high / low < 4:  # a scale shorter than that has no round numbers to show
        middle = math.sqrt(low * high)
        low, high = middle / 2.2, middle * 2.2
    axis.set_xlim(low / 1.12, high * 1.12)
    axis.xaxis.set_major_locator(LogLocator(subs=_steps(low, high)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    if panel in ("row", "size"):
        axis.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
        axis.set_xlabel("bytes a row (of an item or a user)" if panel == "row" else "bytes in all")
    else:
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.set_xlabel("milliseconds for the lists of 1,000 queries")


def _steps(low: float, high: float) -> tuple[float, ...]:
    """Marks within each power of ten on a logarithmic axis."""
    return (1.0,) if high / low > 60 else (1.0, 2.0, 5.0)


def _draw_curves(axis: Axes, comparison: Comparison, metric: str, looks: Mapping[str, Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    part = learnt_part(comparison)
    banded = several = False
    for line in comparison.lines:
        own = learning_of(line, part, metric)
        if own is None:
            continue
        look, lone = looks[line.name], len(own.singles) == 1
        several |= not lone
        if own.epochs.size:
            banded = True
            axis.fill_between(own.epochs, own.low, own.high, color=look["color"], alpha=0.18, linewidth=0, gid="band")
            axis.plot(own.epochs, own.mean, color=look["color"], linewidth=1.5)
        for epochs, values in own.singles:
            # of several seeds, what those that train longer than the first that stops have more
            rest = epochs >= own.epochs[-1] if own.epochs.size else epochs >= epochs[0]
            width, alpha = (1.5, 1.0) if lone else (0.8, 0.6)
            axis.plot(epochs[rest], values[rest], color=look["color"], linewidth=width, alpha=alpha)
            best = int(np.argmax(values))
            size = look["markersize"] * (1.0 if lone else 0.7)
            axis.plot(epochs[best], values[best], linestyle="none", **{**look, "markersize": size})
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    said = "epoch (marked: each seed's best)" if several else "epoch (marked: the best)"
    axis.set_xlabel(said + ("\nline: mean of the seeds; band: lowest to highest" if banded else ""))
    axis.set_ylabel(f"{part} {comparison.shown_name(metric)}")
