"""Quality by groups of queries: whether a student takes over of its teacher where items are rare or users are new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs.comparison.draws import Draws
from kdrs.errors import DataError

if TYPE_CHECKING:
    from kdrs.evaluation.report import Report
    from kdrs.evaluation.transfer import Transfer

GROUPS = 5
_DRAWS = 1 << 24
"""Draws of queries for one group: 2,000 resamples of 8,000."""


@dataclass(frozen=True, eq=False)
class Trait:
    """A number of every query that they are grouped by, such as how many training items its user has."""

    name: str
    """One word: ``activity``, ``popularity``."""
    title: str
    unit: str
    """What is counted, for the axis."""
    note: str
    """How it is counted, in a sentence."""
    values: NDArray[np.float64]
    """float64 [Q]; NaN leaves a query out. What stands at queries that were not measured does not count."""


@dataclass(frozen=True)
class Group:
    """Queries whose trait is from ``low`` to ``high``, both included."""

    low: float
    high: float
    n: int
    quality: dict[str, dict[str, tuple[float, float, float]]]
    """By metric and model: the mean over its queries and seeds, and its bootstrap interval."""
    transfer: dict[str, dict[str, Transfer]]
    """By metric and model, where there are a teacher and a model trained alone."""

    @property
    def label(self) -> str:
        return _number(self.low) if self.low == self.high else f"{_number(self.low)}–{_number(self.high)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "metrics": {
                metric: {name: dict(zip(("mean", "low", "high"), three, strict=True)) for name, three in found.items()}
                for metric, found in self.quality.items()
            },
            "transfer_ratio": {
                metric: {name: asdict(transfer) for name, transfer in found.items()}
                for metric, found in self.transfer.items()
            },
        }


@dataclass(frozen=True)
class Breakdown:
    """Groups of about equally many queries, by one trait, ascending."""

    name: str
    title: str
    unit: str
    note: str
    groups: tuple[Group, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "note": self.note,
            "groups": [group.to_json() for group in self.groups],
        }


def breakdown_of(
    trait: Trait,
    found: Mapping[str, Sequence[Report]],
    seeds: Mapping[str, tuple[int | None, ...]],
    metrics: Sequence[str],
    teacher: str | None,
    baselines: Mapping[str, str],
    *,
    confidence: float,
    seed: int,
) -> Breakdown:
    """The reports' queries in `GROUPS` groups by a trait; queries of one value are in one group, so that there may be fewer.

    Raises ``DataError`` for a trait of other queries.
    """
    first = next(iter(found.values()))[0]
    if trait.values.shape != (first.n_queries,):
        raise DataError(
            f"{trait.name} has shape {trait.values.shape}; allowed: ({first.n_queries},), one value a query"
        )
    values = trait.values[first.rows]
    groups = []
    for chosen in _grouped(values):
        n = int(np.count_nonzero(chosen))
        part = {name: [_of(report, chosen) for report in reports] for name, reports in found.items()}
        resamples = int(np.clip(_DRAWS // n, 200, 2000))
        draws = Draws(seeds, part, metrics, "randomisation", resamples, confidence, seed)
        transfer: dict[str, dict[str, Transfer]] = {metric: {} for metric in metrics}
        for name, base in baselines.items():
            if teacher is not None and name != teacher != base:
                for metric in metrics:
                    transfer[metric][name] = draws.transfer(name, base, teacher, metric)
        quality = {
            metric: {name: (float(draws.values[name, metric].mean()), *draws.interval(name, metric)) for name in found}
            for metric in metrics
        }
        own = values[chosen]
        groups.append(Group(float(own.min()), float(own.max()), n, quality, transfer))
    return Breakdown(trait.name, trait.title, trait.unit, trait.note, tuple(groups))


def _grouped(values: NDArray[np.float64]) -> list[NDArray[np.bool_]]:
    """bool [n] each: which queries are in a group."""
    known = values[~np.isnan(values)]
    if not known.size:
        return []
    ends = np.unique(np.quantile(known, np.arange(1, GROUPS + 1) / GROUPS, method="inverted_cdf"))
    places = np.searchsorted(ends, values)  # NaN comes after the last
    return [places == at for at in range(ends.size)]


def _of(report: Report, chosen: NDArray[np.bool_]) -> Report:
    return replace(report, values={name: v[chosen] for name, v in report.values.items()}, rows=report.rows[chosen])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 10 else f"{value:.1f}"
