"""Which of several runs is better, after the first epochs of each: nothing of them is kept."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from kdrs.data import Dataset
from kdrs.fitting.fit import fit
from kdrs.runs.build import build_evaluator, build_task, choose_protocol, choose_selection, torch_threads
from kdrs.runs.config import RunConfig
from kdrs.runs.learners import load_learners

ENOUGH = 300_000
"""Training pairs after which the better of two runs that start from the same teacher is told from the other: three epochs
of CiteULike, where one misleads, an epoch of Gowalla (docs/results/notes/frontier.md)."""


def laps_of(dataset: Dataset, epochs: int) -> int:
    """Epochs that a race has: as many as see `ENOUGH` pairs, at least one, at most those of the runs themselves."""
    return max(1, min(-(-ENOUGH // dataset.train.n_pairs), epochs))


def race(runs: Sequence[RunConfig], dataset: Dataset) -> list[float]:
    """The best value of each run on the validation part over its first epochs (`laps_of`), of the metric that it selects by.

    Each is trained from its own seed as `kdrs.runs.execute` will, so that it may be done again with the same values; but no
    weights are averaged, since a mean over so few epochs tells who is late. No directory is made. Raises what training raises.
    """
    return [_value(config, dataset) for config in runs]


def _value(config: RunConfig, dataset: Dataset) -> float:
    with torch_threads(config.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again from the run that is taken
        task, evaluator = build_task(config, dataset), build_evaluator(config, dataset)
        selection = choose_selection(config, choose_protocol(config, dataset))
        _, learners = load_learners(config, dataset, task)
        outcome = fit(
            learners,
            task,
            epochs=laps_of(dataset, config.train.epochs),
            seed=config.train.seed,
            evaluate=lambda _: {"valid": evaluator(learners[0].knowledge, parts=["valid"])["valid"].means()},
            selection=selection,
        )
        return outcome.best[selection.metrics[0]][1]
