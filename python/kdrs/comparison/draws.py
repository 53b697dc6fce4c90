"""What a comparison resamples: the same queries for all models and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kdrs.evaluation.report import Report
from kdrs.evaluation.significance import Difference, enough_resamples, paired_tests, resampled_means
from kdrs.evaluation.transfer import SeedWeights, Transfer, seeds_drawn, transfer_of


class Draws:
    """All that is resampled: the same queries for all models and metrics, which pairs them and draws once."""

    def __init__(
        self,
        seeds: Mapping[str, tuple[int | None, ...]],
        found: Mapping[str, Sequence[Report]],
        metrics: Sequence[str],
        test: str,
        resamples: int,
        confidence: float,
        seed: int,
    ):
        self.confidence, self.resamples, self.seed = confidence, resamples, seed
        self.values = {
            (name, metric): np.stack([report.values[metric] for report in reports])
            for name, reports in found.items()
            for metric in metrics
        }
        """float64 [seeds, n] by model and metric."""
        columns = np.concatenate(list(self.values.values()))
        # p-values of the bootstrap need all resamples, the ends of intervals do not.
        drawn = resamples if test == "bootstrap" else enough_resamples(columns.shape[1], resamples)
        self.means: dict[tuple[str, str], NDArray[np.float64]] = {}
        """float64 [resamples, seeds]: resampled means."""
        if columns.shape[1]:
            means = resampled_means(columns, drawn, seed=seed)
            ends = np.cumsum([len(rows) for rows in self.values.values()])
            self.means = dict(zip(self.values, np.split(means, ends[:-1], axis=1), strict=True))
        self.weights = SeedWeights(drawn, seed)
        # Models of the same seeds have them resampled together.
        kinds = list(dict.fromkeys(own if None not in own else (name, *own) for name, own in seeds.items()))
        self.kinds = {name: kinds.index(own if None not in own else (name, *own)) for name, own in seeds.items()}

    def mean(self, name: str, metric: str) -> NDArray[np.float64]:
        """float64 [resamples]: means over resampled queries and seeds."""
        return self.weights.mean(self.means[name, metric], self.kinds[name])

    def interval(self, name: str, metric: str) -> tuple[float, float]:
        tails = [(1 - self.confidence) / 2, (1 + self.confidence) / 2]
        low, high = np.quantile(self.mean(name, metric), tails)
        return float(low), float(high)

    def transfer(self, name: str, base: str, teacher: str, metric: str) -> Transfer:
        three = (name, base, teacher)
        points = [float(self.values[who, metric].mean()) for who in three]
        seeds = seeds_drawn(len(self.values[who, metric]) for who in three)
        return transfer_of(points, [self.mean(who, metric) for who in three], seeds=seeds, confidence=self.confidence)

    def differences(self, pairs: Sequence[tuple[str, str, str]], test: str) -> dict[tuple[str, str, str], Difference]:
        """Of each (model, other, metric), over queries, values averaged over seeds."""
        if not pairs:
            return {}
        rows = [self.values[name, m].mean(axis=0) - self.values[base, m].mean(axis=0) for name, base, m in pairs]
        means = [self.means[name, m].mean(axis=1) - self.means[base, m].mean(axis=1) for name, base, m in pairs]
        tests = paired_tests(
            np.stack(rows),
            test=test,
            resamples=self.resamples,
            confidence=self.confidence,
            seed=self.seed,
            means=np.stack(means, axis=1),
        )
        return dict(zip(pairs, tests, strict=True))
