"""What a student took over of a teacher's lead over the student alone, with a bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdrs.errors import ConfigError, DataError
from kdrs.evaluation.significance import RESAMPLES, checked, resampled_means

NEARLY = 0.2
"""A lead is clear if its interval's lower end is this share of it or more. With an interval of 95 % that is a lead of 2.45
standard errors: the chance of a resampled lead below 0, where the ratio means nothing, is then below 1 %."""


@dataclass(frozen=True)
class Transfer:
    """``(student - alone) / (teacher - alone)`` of one metric's means: 0 is the student alone, 1 the teacher."""

    ratio: float | None
    """``None`` where the teacher's lead is not clear."""
    low: float | None
    high: float | None
    """Ends of the percentile interval."""
    lead: float
    """teacher - alone."""
    lead_low: float
    lead_high: float
    clear: bool
    """Whether the teacher is clearly better than the student alone (see ``NEARLY``)."""
    seeds: int
    """Seeds that were resampled, of student, baseline or teacher, the fewest of those that have several; 1: queries alone were
    resampled."""
    resamples: int
    confidence: float = 0.95

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def transfer_ratio(
    student: ArrayLike,
    alone: ArrayLike,
    teacher: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
    paired_seeds: bool = True,
) -> Transfer:
    """The transfer ratio of one metric; each argument is floats ``[n]``, one value a query, or ``[seeds, n]``.

    The interval is the percentile interval of the bootstrap, paired: each resample draws queries once for all three models,
    and seeds of each model that has several. Row i of ``student`` and ``alone`` are the same seed, drawn together, where they
    have equally many and ``paired_seeds`` is not off. Of S seeds S - 1 are drawn, which makes the variance of their mean
    unbiased (Rao & Wu, JASA 1988). Few seeds still say little: with two there are two resamples of them.

    Raises ``DataError`` for values that are not aligned, empty or not finite, ``ConfigError`` for other options.
    """
    checked(resamples, confidence)
    parts = [_rows(values, name) for values, name in ((student, "student"), (alone, "alone"), (teacher, "teacher"))]
    if len({part.shape[1] for part in parts}) > 1:
        raise DataError(
            f"got values of {', '.join(str(part.shape[1]) for part in parts)} queries; allowed: one value each for the same"
        )
    columns = np.concatenate(parts)
    ends = np.cumsum([len(part) for part in parts])
    resampled = resampled_means(columns, resamples, seed=seed)
    weights = SeedWeights(resamples, seed)
    paired = paired_seeds and len(parts[0]) == len(parts[1])
    groups = [(0, len(parts[0])), (0 if paired else 1, len(parts[1])), (2, len(parts[2]))]
    means = [
        weights.mean(resampled[:, end - size : end], group)
        for end, (group, size) in zip(ends, groups, strict=True)
    ]  # fmt: skip
    points = [float(part.mean()) for part in parts]
    return transfer_of(points, means, seeds=seeds_drawn(map(len, parts)), confidence=confidence)


def transfer_of(
    points: Sequence[float], means: Sequence[NDArray[np.float64]], *, seeds: int, confidence: float
) -> Transfer:
    """The transfer ratio out of the means of student, alone and teacher, and their resampled means, each ``[resamples]``."""
    student, alone, teacher = means
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    lead, leads = points[2] - points[1], teacher - alone
    lead_low, lead_high = (float(end) for end in np.quantile(leads, tails))
    ratio = low = high = None
    clear = lead > 0 and lead_low >= NEARLY * lead
    if clear:
        gains = student - alone
        # A resampled lead of 0 or less has no ratio; the limit keeps such a resample at the end that it belongs to.
        ratios = np.where(gains < 0, -np.inf, np.inf)
        np.divide(gains, leads, out=ratios, where=leads > 0)
        # "inverted_cdf" takes values that were drawn: between two infinite ones there is no middle.
        low, high = (float(end) for end in np.quantile(ratios, tails, method="inverted_cdf"))
        clear = math.isfinite(low) and math.isfinite(high)
        ratio, low, high = ((points[0] - points[1]) / lead, low, high) if clear else (None, None, None)
    return Transfer(ratio, low, high, lead, lead_low, lead_high, clear, seeds, leads.size, confidence)


def seeds_drawn(counts: Iterable[int]) -> int:
    """What `Transfer.seeds` is, of models with so many seeds each: of one there is nothing to draw."""
    return min((n for n in counts if n > 1), default=1)


class SeedWeights:
    """What each seed of a model counts in each resample. Models of one group have the same draws: their seeds are paired."""

    def __init__(self, resamples: int, seed: int):
        self.resamples, self.seed = resamples, seed

    def mean(self, columns: NDArray[np.float64], group: int) -> NDArray[np.float64]:
        """float64 ``[resamples]``: means over resampled seeds; ``columns`` is ``[resamples, seeds]``."""
        n = columns.shape[1]
        if n == 1:
            return columns[:, 0]
        rng = np.random.default_rng([2, self.seed, group])
        drawn = rng.multinomial(n - 1, np.full(n, 1 / n), size=self.resamples)
        return np.einsum("rs,rs->r", drawn, columns) / (n - 1)


def _rows(values: ArrayLike, name: str) -> NDArray[np.float64]:
    rows = np.atleast_2d(np.asarray(values, np.float64))
    if rows.ndim != 2 or not rows.size:
        raise DataError(f"{name} has shape {rows.shape}; allowed: [queries], or [seeds, queries], one or more of each")
    if not np.isfinite(rows).all():
        raise DataError(f"the values of {name} are not finite", "give one finite value a query")
    if rows.shape[0] > 10_000:
        raise ConfigError(f"{name} has {rows.shape[0]} seeds", "give [seeds, queries], not [queries, seeds]")
    return rows
