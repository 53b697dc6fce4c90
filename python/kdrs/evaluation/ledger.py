"""The values of one part, collected block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdrs.core import ranking
from kdrs.core.ranking import Ranking
from kdrs.evaluation.measures import rank_metrics
from kdrs.evaluation.portions import Portion
from kdrs.evaluation.report import Report

if TYPE_CHECKING:
    from kdrs.evaluation.evaluator import Evaluator


class Team(Protocol):
    """Processes that measure together."""

    rank: int
    size: int

    def gather_arrays(self, arrays: Sequence[NDArray[Any]]) -> list[list[NDArray[Any]]]:
        """Each process's arrays, in order of rank: as many, and of the same types, in each; lengths [n] may differ."""


class Ledger:
    """Collects one part's values, block by block, in query order."""

    def __init__(self, evaluator: Evaluator, part: str):
        self.evaluator, self.part = evaluator, part
        self.truth = evaluator.truths[part]
        has_truth = self.truth.row_degrees > 0
        self.keeps = np.ones_like(has_truth) if evaluator.average == "all-queries" else has_truth
        self.rows = np.flatnonzero(self.keeps).astype(np.int64)
        self.values = {name: np.empty(self.rows.size) for name in evaluator.names}
        self.filled = self.tied = 0
        self.exposure = {k: np.zeros(evaluator.n_items, np.int64) for k in evaluator.ks} if evaluator.beyond else {}

    def kept(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self.keeps[rows]

    def add_lists(self, rows: NDArray[np.int64], lists: Ranking) -> None:
        evaluator = self.evaluator
        found = ranking.metrics_of_distinct(
            np.ascontiguousarray(lists.items),
            self.truth,
            evaluator.ks,
            evaluator.metrics,
            rows=rows,
            threads=evaluator.threads,
        )
        scores = lists.scores
        equal = (scores[:, 1:] == scores[:, :-1]) & (lists.items[:, 1:] >= 0)
        self._add(rows.size, found, int(equal.any(axis=1).sum()))

    def add_ranks(self, rows: NDArray[np.int64], better: NDArray[np.int64], tied: NDArray[np.int64]) -> None:
        evaluator = self.evaluator
        degrees = self.truth.row_degrees[rows]
        if evaluator.candidates is not None:
            # Targets do not compete with each other: each is ranked alone, a query's value is the mean over them.
            found = rank_metrics(
                better, tied, np.ones(better.size, np.int64), evaluator.ks, evaluator.metrics, ties=evaluator.ties
            )
            if better.size != rows.size or (degrees != 1).any():
                found = {name: _means_of_runs(values, degrees) for name, values in found.items()}
        else:
            found = rank_metrics(
                better,
                tied,
                degrees,
                evaluator.ks,
                evaluator.metrics,
                ties=evaluator.ties,
                formulas=evaluator.formulas,
                n_items=evaluator.n_items,
            )
        touched = np.bincount(np.repeat(np.arange(rows.size), degrees), weights=tied > 0, minlength=rows.size) > 0
        self._add(rows.size, found, int(touched.sum()))

    def _add(self, n: int, found: Mapping[str, NDArray[np.float64]], tied: int) -> None:
        part = slice(self.filled, self.filled + n)
        for name, values in self.values.items():
            values[part] = np.asarray(found[name])
        self.filled, self.tied = part.stop, self.tied + tied

    def add_exposure(self, lists: Ranking) -> None:
        start = 0
        for k, counts in self.exposure.items():
            # Places past the last K only: report() adds them up.
            shown_items = lists.items[:, start:k].ravel()
            start = k
            if shown_items.size * 4 > counts.size:
                counts += np.bincount(shown_items + 1, minlength=counts.size + 1)[1:]  # padding is -1
            else:
                np.add.at(counts, shown_items[shown_items >= 0], 1)

    def arrays(self) -> list[NDArray[Any]]:
        """What was collected: values by metric, ties, exposures by K."""
        values = [values[: self.filled] for values in self.values.values()]
        return [*values, np.array([self.tied], np.int64), *self.exposure.values()]

    def join(self, parts: Sequence[Sequence[NDArray[Any]]]) -> None:
        """Takes what several ledgers of this part collected, each of some queries, in query order (``arrays`` of each)."""
        columns = [list(column) for column in zip(*parts, strict=True)]
        count = len(self.values)
        for name, column in zip(self.values, columns, strict=False):
            self.values[name] = np.concatenate(column)
        self.filled, self.tied = self.rows.size, int(np.sum(columns[count]))
        for k, column in zip(self.exposure, columns[count + 1 :], strict=True):
            self.exposure[k] = np.sum(column, axis=0)

    def narrow(self, first: int, last: int) -> None:
        """Leaves some of the queries that are kept, from one place to another: the others are somebody else's."""
        self.rows = self.rows[first:last]
        self.values = {name: values[first:last] for name, values in self.values.items()}

    def portion(self) -> Portion:
        evaluator = self.evaluator
        rules = {name: getattr(evaluator, name) for name in ("ties", "mask", "average", "formulas")}
        if evaluator.candidates is not None:
            del rules["mask"]
        return Portion(
            self.values,
            self.rows,
            self.exposure,
            evaluator.seen.column_degrees if self.exposure else np.zeros(0, np.int64),
            part=self.part,
            setting=evaluator.setting,
            n_queries=evaluator.n_queries,
            average=evaluator.average,
            rules=rules,
            tied=self.tied,
        )

    def report(self) -> Report:
        return self.portion().report()


def _means_of_runs(values: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Means of consecutive runs of ``values``; NaN for a run of length 0."""
    means = np.full(lengths.size, np.nan)
    some = lengths > 0
    if some.any():
        means[some] = np.add.reduceat(values, (np.cumsum(lengths) - lengths)[some]) / lengths[some]
    return means
