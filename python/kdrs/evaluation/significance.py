"""Is one model better than another? Paired tests on per-query values, t-tests over seeds, Holm's correction.

Both resampling tests work on the differences d of one metric, query by query. Where d takes few distinct values, as
the metrics of one held-out item do, resamples are drawn as counts of those values: the same law, a fraction of the
work. Otherwise several metrics and models share the draws, which are most of the work (each p-value keeps its law, and
Holm's correction holds whatever the dependence). Memory stays at some hundred megabytes for any number of queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdrs.errors import ConfigError, DataError, shown

TESTS = ("randomisation", "bootstrap")
RESAMPLES = 10_000
"""Unless others are asked for."""

# Numbers held at once by a block of resamples: 4 Mi float64 are 32 MiB.
_BLOCK = 1 << 22

# Blocks that are multiplied at once stay in the cache: 1 Mi float64 (measured, n = 25,000: a third less time).
_CACHED = 1 << 20

# Draws of queries that the ends of intervals may take, a second of one core where there are no more than 67,000 queries.
_DRAWN = 1 << 26

_ENUMERATED = 16

# Drawing one count costs about as much as this many single draws with their sum (measured, n = 5,219).
_DRAWS_A_COUNT = 16
_FLIPS_A_COUNT = 128


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences ``a - b``, its confidence interval and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p: float
    n: int
    """Pairs: queries, or seeds."""
    test: str
    """``randomisation``, ``randomisation (exact)``, ``bootstrap`` or ``t over seeds``."""
    resamples: int | None = None
    confidence: float = 0.95
    p_adjusted: float | None = None
    """Holm's correction over all comparisons made together."""

    def to_json(self) -> dict[str, Any]:
        return {name: _finite(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, standard deviation (n - 1 in the denominator) and t-interval of the mean; NaN for one seed."""

    mean: float
    sd: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, Any]:
        return {name: _finite(value) for name, value in asdict(self).items()}


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    test: str = "randomisation",
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Compares two models on the same queries; ``a`` and ``b`` are floats ``[n]``, one value a query, aligned.

    The p-value is that of ``test``; the interval is the bootstrap's percentile interval in both cases.
    Raises ``DataError`` for arrays that are not aligned, empty or not finite, ``ConfigError`` for other options.
    """
    d = _differences(a, b)
    return paired_tests(d[None], test=test, resamples=resamples, confidence=confidence, seed=seed)[0]


def paired_tests(
    differences: NDArray[np.float64],
    *,
    test: str = "randomisation",
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
    means: NDArray[np.float64] | None = None,
) -> list[Difference]:
    """:func:`paired_test` of each row of ``differences``, finite float64 ``[m, n]``: the same p-values, with draws in common.

    ``means``, float64 ``[resamples, m]``, are the rows' resampled means where they are at hand.
    """
    if test not in TESTS:
        raise ConfigError(f"unknown test {shown(test)!r}", f"allowed: {', '.join(TESTS)}")
    checked(resamples, confidence)
    if means is None:
        columns = [bootstrap_means(d, resamples, seed=seed) for d in differences]
    else:
        columns = list(means.T)
    ends = [np.quantile(column, [(1 - confidence) / 2, (1 + confidence) / 2]) for column in columns]
    if test == "bootstrap":
        found = [(bootstrap_p(d, column), test) for d, column in zip(differences, columns, strict=True)]
    else:
        found = [
            (p, "randomisation (exact)" if exact else test)
            for p, exact in _randomisation_ps(differences, resamples, seed)
        ]
    return [
        Difference(float(d.mean()), float(low), float(high), p, d.size, name, resamples, confidence)
        for d, (low, high), (p, name) in zip(differences, ends, found, strict=True)
    ]


def enough_resamples(n: int, resamples: int = RESAMPLES) -> int:
    """Of ``resamples`` as many as the ends of an interval over ``n`` queries need: 2,684 of 25,000 queries put them within a
    twentieth of a standard error, after a second of one core. Fewer queries have more, and none fewer than a thousand."""
    return min(resamples, max(1000, _DRAWN // max(1, n)))


def resampled_means(values: NDArray[np.float64], resamples: int, *, seed: int) -> NDArray[np.float64]:
    """float64 ``[resamples, m]``: means of the rows of ``values`` [m, n] over n queries drawn with replacement, the same
    queries for all rows (the paired bootstrap; Efron, 1979)."""
    rng = np.random.default_rng([0, seed])
    m, n = values.shape
    means = np.empty((resamples, m))
    columns = np.ascontiguousarray(values.T)
    for part in _blocks(resamples, n, _CACHED):
        drawn = rng.integers(0, n, size=(part.stop - part.start, n), dtype=np.int32)
        counts = np.empty(drawn.shape)
        for at, row in enumerate(drawn):
            counts[at] = np.bincount(row, minlength=n)
        means[part] = counts @ columns
    return means / n


def bootstrap_means(d: NDArray[np.float64], resamples: int, *, seed: int) -> NDArray[np.float64]:
    """float64 ``[resamples]``: means of n draws with replacement from ``d`` [n] (Efron, 1979)."""
    rng = np.random.default_rng([0, seed])
    values, counts = np.unique(d, return_counts=True)
    n = d.size
    means = np.empty(resamples)
    if values.size * _DRAWS_A_COUNT < n:
        for part in _blocks(resamples, values.size):
            drawn = rng.multinomial(n, counts / n, size=part.stop - part.start)
            means[part] = drawn @ values / n
    else:
        for part in _blocks(resamples, n):
            drawn = rng.integers(0, n, size=(part.stop - part.start, n), dtype=np.int32)
            means[part] = d[drawn].mean(axis=1)
    return means


def bootstrap_p(d: NDArray[np.float64], means: NDArray[np.float64]) -> float:
    """Two-sided p of "the mean is zero" by the shifted bootstrap: (1 + #{|mean* - mean| >= |mean|}) / (R + 1)."""
    observed = d.mean()
    beyond = np.abs(means - observed) >= abs(observed) - _slack(d) / d.size
    return float((1 + np.count_nonzero(beyond)) / (means.size + 1))


def randomisation_p(d: NDArray[np.float64], resamples: int, *, seed: int) -> tuple[float, bool]:
    """Two-sided p of the sign-flip test (Fisher, 1935), and whether it is exact.

    Under the null every difference is as likely with either sign: p = P(|sum of flipped d| >= |sum of d|). All sign
    patterns are enumerated where they are at most ``resamples`` (and 2^16); else p is (1 + count) / (resamples + 1).
    """
    return _randomisation_ps(d[None], resamples, seed)[0]


def _randomisation_ps(differences: NDArray[np.float64], resamples: int, seed: int) -> list[tuple[float, bool]]:
    found: dict[int, tuple[float, bool]] = {}
    shared = []
    for row, d in enumerate(differences):
        size = np.abs(d[d != 0])
        observed = _observed(d)
        values, counts = np.unique(size, return_counts=True)
        if size.size <= _ENUMERATED and (1 << size.size) <= resamples:
            signs = np.arange(1 << size.size)[:, None] >> np.arange(size.size)[None, :] & 1
            sums = (2 * signs - 1) @ size
            found[row] = float(np.count_nonzero(np.abs(sums) >= observed) / sums.size), True
        elif values.size * _FLIPS_A_COUNT < size.size:
            rng = np.random.default_rng([1, seed])
            beyond, total = 0, float(size.sum())
            for part in _blocks(resamples, values.size):
                positive = rng.binomial(counts, 0.5, size=(part.stop - part.start, values.size))
                beyond += int(np.count_nonzero(np.abs(2 * (positive @ values) - total) >= observed))
            found[row] = (1 + beyond) / (resamples + 1), False
        else:
            shared.append(row)
    if shared:
        counted = _flipped_beyond(differences[shared], resamples, seed)
        found.update({row: ((1 + int(n)) / (resamples + 1), False) for row, n in zip(shared, counted, strict=True)})
    return [found[row] for row in range(len(differences))]


def _flipped_beyond(differences: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.int64]:
    """int64 [m]: resamples whose sum of ``differences`` [m, n] with drawn signs is as far from 0 as the observed one. A query
    has the same sign in all rows."""
    rng = np.random.default_rng([1, seed])
    columns = np.ascontiguousarray(differences.T)
    totals = columns.sum(axis=0)
    observed = np.array([_observed(d) for d in differences])
    beyond = np.zeros(len(differences), np.int64)
    width = -(-columns.shape[0] // 8)
    for part in _blocks(resamples, columns.shape[0], _CACHED):
        rows = part.stop - part.start
        bits = np.frombuffer(rng.bytes(rows * width), np.uint8).reshape(rows, width)
        positive = np.unpackbits(bits, axis=1, count=columns.shape[0]).astype(np.float64)
        beyond += np.count_nonzero(np.abs(2 * (positive @ columns) - totals) >= observed, axis=0)
    return beyond


def _observed(d: NDArray[np.float64]) -> float:
    return abs(float(d.sum())) - _slack(d)


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """p-values ``[m]`` adjusted for m comparisons (Holm, 1979), in the order given; NaN is kept and not counted.

    The i-th smallest becomes max over j <= i of min(1, (m - j + 1) p_j): rejecting those below alpha keeps the chance
    of any false rejection below alpha, whatever the dependence.
    """
    values = np.asarray(p, np.float64)
    adjusted = np.full(values.shape, np.nan)
    given = np.flatnonzero(~np.isnan(values))
    order = given[np.argsort(values[given], kind="stable")]
    steps = values[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if order.size else steps
    return adjusted


def seed_test(a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95) -> Difference:
    """Paired t-test on the means of runs: ``a`` and ``b`` are floats ``[seeds]``, aligned by seed, two or more.

    It speaks about training again with other seeds; ``paired_test`` about other queries for these very weights.
    """
    d = _differences(a, b)
    checked(1, confidence)
    if d.size < 2:
        raise ConfigError("a t-test over seeds needs two seeds or more; got 1", "train with --seeds 0..4")
    spread = seed_spread(d, confidence=confidence)
    if spread.sd == 0:
        p = 1.0 if spread.mean == 0 else 0.0
    else:
        from kdrs._libraries import scipy

        p = float(scipy.stats.ttest_1samp(d, 0.0).pvalue)
    return Difference(spread.mean, spread.low, spread.high, p, d.size, "t over seeds", None, confidence)


def seed_spread(values: ArrayLike, *, confidence: float = 0.95) -> Spread:
    """Mean, standard deviation and t-interval of one number a seed, floats ``[seeds]``."""
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise DataError(f"got values of shape {x.shape}; allowed: finite numbers, one a seed")
    mean = float(x.mean())
    if x.size == 1:
        return Spread(mean, math.nan, math.nan, math.nan, 1)
    sd = float(x.std(ddof=1))
    # Equal values have a mean that is off by rounding only, and then a deviation that is rounding alone.
    if np.ptp(x) == 0:
        return Spread(float(x[0]), 0.0, float(x[0]), float(x[0]), x.size)
    from kdrs._libraries import scipy

    half = float(scipy.stats.t.ppf((1 + confidence) / 2, x.size - 1)) * sd / math.sqrt(x.size)
    return Spread(mean, sd, mean - half, mean + half, x.size)


def adjusted(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences with ``p_adjusted`` set by Holm's correction over all of them."""
    return [
        replace(difference, p_adjusted=None if math.isnan(p) else float(p))
        for difference, p in zip(differences, holm([d.p for d in differences]), strict=True)
    ]


def _differences(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.ndim != 1 or left.shape != right.shape or left.size == 0:
        raise DataError(
            f"got values of shapes {left.shape} and {right.shape}; allowed: one value each for the same queries"
        )
    d = left - right
    if not np.isfinite(d).all():
        raise DataError(f"the values of query {int(np.flatnonzero(~np.isfinite(d))[0])} are not finite")
    return d


def checked(resamples: int, confidence: float) -> None:
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}; allowed: 1 or more, 10,000 for p-values to three decimals")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; allowed: between 0 and 1, such as 0.95")


def _slack(d: NDArray[np.float64]) -> float:
    # Sums of the same numbers in another order differ by rounding; equal outcomes must count as equal.
    return 1e-12 * float(np.abs(d).sum())


def _blocks(n: int, width: int, numbers: int = _BLOCK) -> Iterator[slice]:
    rows = max(1, numbers // max(width, 1))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def _finite(value: Any) -> Any:
    # JSON has no NaN.
    return None if isinstance(value, float) and not math.isfinite(value) else value
