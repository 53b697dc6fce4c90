"""Learning curves of runs: one for each seed, and what runs that differ in their seed alone have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from kdrs.comparison.result import Comparison, Line


@dataclass(frozen=True)
class Learning:
    """How one model learnt by one metric."""

    singles: tuple[tuple[NDArray[np.int64], NDArray[np.float64]], ...]
    """Epochs and values of each seed."""
    epochs: NDArray[np.int64]
    """int64 [E]: those at which all of several seeds were evaluated; empty where there is no band."""
    mean: NDArray[np.float64]
    """float64 [E]: over the seeds."""
    low: NDArray[np.float64]
    """float64 [E]: the lowest seed's."""
    high: NDArray[np.float64]
    """float64 [E]: the highest seed's."""


def learning_of(line: Line, part: str, metric: str) -> Learning | None:
    """The curves of a model, or None where it has no value. A band takes two seeds or more and two epochs or more."""
    singles = tuple(curve for curve in (_curve(rows, part, metric) for rows in line.curves) if curve[0].size)
    if not singles:
        return None
    common = singles[0][0]
    for epochs, _ in singles[1:]:
        common = np.intersect1d(common, epochs)
    if len(singles) < 2 or common.size < 2:
        none = np.zeros(0)
        return Learning(singles, common[:0], none, none, none)
    table = np.stack([values[np.isin(epochs, common)] for epochs, values in singles])
    return Learning(singles, common, table.mean(axis=0), table.min(axis=0), table.max(axis=0))


def learnt_part(comparison: Comparison) -> str:
    """The part that curves are drawn of: validation where any run had one."""
    rows = (row for line in comparison.lines for curve in line.curves for row in curve)
    return "valid" if any("valid" in row for row in rows) else comparison.part


def _curve(
    curve: Sequence[Mapping[str, object]], part: str, metric: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    points: dict[int, float] = {}
    for row in curve:
        measured, epoch = row.get(part), row.get("epoch")
        value = measured.get(metric) if isinstance(measured, Mapping) else None
        if isinstance(epoch, int) and isinstance(value, int | float) and math.isfinite(value):
            points[epoch] = float(value)
    return np.array(list(points), np.int64), np.array(list(points.values()), np.float64)
