"""How good is a ranking: one value a query and metric, exact, the same for any block size and number of threads.

Shapes: Q queries, I items, D dimensions, B queries of a block, C candidates, K list length.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs import ranking
from kdrs._files import write_bytes
from kdrs._measures import beyond_accuracy, rank_metrics
from kdrs._scorers import (
    LISTS,
    SHORT,
    Block,
    Source,
    as_interactions,
    as_lists,
    as_numpy,
    as_source,
    is_range,
    members,
    merged,
    no_grad,
    padded,
)
from kdrs.data.interactions import Interactions
from kdrs.errors import ArtefactError, ConfigError, DataError, MachineError, nearest, shown
from kdrs.protocols import METRICS, Protocol
from kdrs.protocols import protocol as preset
from kdrs.ranking import Ranking

if TYPE_CHECKING:
    from kdrs.data.dataset import Dataset

SCHEMA = 1
TIES = ("list", "expected", "optimistic", "pessimistic")
MASKS = ("all-other-parts", "train", "train-zeroed")
AVERAGES = ("with-truth", "all-queries")
FORMULAS = ("standard", "bd", "caser")
LEAKS = ("error", "miss")

# The rank of a target that can never be shown; far from overflow when places are added.
_NEVER = np.iinfo(np.int64).max >> 2

# Queries whose held-out items are checked at once.
_CHECKED = 4096


@dataclass(frozen=True, eq=False)
class Report:
    """The metrics of one part, one value a query kept.

    Printed and JSON names carry the setting where candidates were sampled: ``hit@5 sampled(499)`` and ``hit@5`` are
    different quantities and must not be compared (Krichene and Rendle, KDD 2020).
    """

    values: dict[str, NDArray[np.float64]]
    """Metric name such as ``ndcg@10`` -> float64 [n]."""
    rows: NDArray[np.int64]
    """int64 [n]: which queries, ascending."""
    setting: str = "full"
    """``full``, or ``sampled(C)`` for C stored candidates."""
    part: str = "test"
    n_queries: int = 0
    """Queries in all; ``n_queries - n`` had nothing held out and are not in the means."""
    rules: dict[str, str] = field(default_factory=dict)
    """The options ties, mask, average and formulas that the values were made with."""
    beyond: dict[str, float] = field(default_factory=dict)
    """``coverage@K``, ``popularity@K``, ``gini@K``, ``novelty@K`` of the lists, see ``beyond_accuracy``."""
    tied: float | None = None
    """Share of queries where equal scores touch the result: a list (full) or a target (sampled) is tied."""
    history: str = "train"
    """What the scorer knew of each user: ``train``, or ``train+valid`` for a model of sequences that was asked for a test part
    whose validation items come before it (``train+earlier`` where these are no part)."""

    @property
    def n(self) -> int:
        return int(self.rows.size)

    def mean(self, name: str) -> float:
        """The mean over the queries kept, summed in their order; NaN where there are none."""
        if name not in self.values:
            raise ConfigError(f"the report holds no {shown(name)!r}", nearest(name, self.values))
        values = self.values[name]
        # A running sum has one order on every machine; a plain sum may be reassociated for the machine's vector width.
        return float(np.cumsum(values)[-1] / values.size) if values.size else math.nan

    def means(self) -> dict[str, float]:
        return {name: self.mean(name) for name in self.values}

    def shown_name(self, name: str) -> str:
        """The metric's name as it may be printed."""
        return name if self.setting == "full" else f"{name} {self.setting}"

    def to_json(self) -> dict[str, Any]:
        means = {self.shown_name(name): value if math.isfinite(value) else None for name, value in self.means().items()}
        return {
            "schema": SCHEMA,
            "part": self.part,
            "setting": self.setting,
            "n": self.n,
            "n_queries": self.n_queries,
            "rules": dict(self.rules),
            "metrics": means,
            "beyond": dict(self.beyond),
            "tied": self.tied,
            "history": self.history,
        }

    def save(self, path: str | Path) -> None:
        """Writes ``path`` (JSON) and, beside it, the per-query values (``.npz``); each appears whole or not at all."""
        path = _json_path(path)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, rows=self.rows, **self.values)  # type: ignore[arg-type]
        arrays = buffer.getvalue()
        head = self.to_json() | {"values": list(self.values), "sha256": hashlib.sha256(arrays).hexdigest()}
        write_bytes(path.with_suffix(".npz"), arrays, make_folder=True)
        write_bytes(path, (json.dumps(head, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """The report that ``save`` wrote. Raises ``ArtefactError`` if it is absent, damaged or of another version."""
        path = _json_path(path)
        remedy = "evaluate the run again with kdrs eval"
        try:
            head = json.loads(path.read_bytes())
            arrays = path.with_suffix(".npz").read_bytes()
        except FileNotFoundError as problem:
            raise ArtefactError(f"no report at {shown(str(problem.filename))}", remedy) from problem
        except OSError as problem:
            raise MachineError(f"{path} cannot be read: {problem.strerror}") from problem
        except ValueError as problem:
            raise ArtefactError(f"{path} is damaged: {shown(str(problem))}", remedy) from problem
        if not isinstance(head, dict) or head.get("schema") != SCHEMA:
            found = head.get("schema") if isinstance(head, dict) else type(head).__name__
            raise ArtefactError(f"{path} has schema {shown(found)}; this kdrs reads {SCHEMA}", remedy)
        if hashlib.sha256(arrays).hexdigest() != head.get("sha256"):
            raise ArtefactError(f"{path.with_suffix('.npz')} is damaged or belongs to another report", remedy)
        try:
            with np.load(io.BytesIO(arrays), allow_pickle=False) as stored:
                values = {name: stored[name] for name in head["values"]}
                return cls(
                    values,
                    stored["rows"],
                    setting=head["setting"],
                    part=head["part"],
                    n_queries=head["n_queries"],
                    rules=head["rules"],
                    beyond=head["beyond"],
                    tied=head["tied"],
                    history=head.get("history", "train"),
                )
        except (KeyError, ValueError) as problem:
            raise ArtefactError(f"{path} is damaged: {shown(str(problem))}", remedy) from problem

    def __repr__(self) -> str:
        means = ", ".join(f"{self.shown_name(name)}={value:.4f}" for name, value in self.means().items())
        return f"Report({self.part}, n={self.n}: {means})"


class Evaluator:
    """Measures scorers on held-out items.

    ``seen`` is the training data and ``truths`` what is held out: one part, or several by name. With ``candidates``
    (int32 [Q, C], -1 pads the end) each target is ranked among its query's candidates only, otherwise all items are
    ranked.

    Options, the default first:

    * ``ties``: ``list`` (full ranking only: score descending, then item id ascending, the list as it would be served),
      ``expected`` (with candidates the default: the mean over a random order of equal scores), ``optimistic``,
      ``pessimistic``.
    * ``mask``: ``all-other-parts`` leaves out train and the other held-out parts; ``train`` leaves out train only;
      ``train-zeroed`` ranks train items with score 0. With candidates nothing is masked: other parts are no candidates.
    * ``average``: ``with-truth`` keeps queries that have a held-out item; ``all-queries`` counts the others as 0.
    * ``formulas``: ``standard`` (``kdrs.ranking.metrics``); ``bd`` and ``caser`` as ``kdrs.protocols`` describes.
    * ``leaks``: a held-out item that is also masked is an ``error``, or a ``miss`` that stays in the denominators.
    * ``earlier``: by part, pairs that come between ``seen`` and that part, at most one a query: what a scorer that has
      ``after(pairs)`` (a model of sequences) knows besides ``seen`` when it is asked for the part.
    * ``beyond``: also take coverage, popularity, Gini and novelty of the lists (full ranking only).
    * ``threads``: for the kernels; ``block``: queries at once, by default as many as a few tens of megabytes hold.

    K past the catalogue gives shorter lists while the denominators keep K. Scores are compared as float32.

    A scorer is one of: ``Factors`` or any (queries [Q, D], items [I, D][, bias [I]]) of arrays or tensors; an object
    with ``factors()``, ``score_block(rows) -> [B, I]`` and ``score_pairs(rows, ids [B, C]) -> [B, C]``; a callable
    ``rows -> [B, I]``; ready lists (``Ranking`` or int [Q, K], -1 pads the end; full ranking only, items that are
    masked are passed over).
    """

    def __init__(
        self,
        seen: Any,
        truths: Any,
        *,
        ks: Sequence[int] = (5, 10, 20),
        metrics: Sequence[str] = METRICS,
        candidates: Any = None,
        ties: str | None = None,
        mask: str = "all-other-parts",
        average: str = "with-truth",
        formulas: str = "standard",
        leaks: str = "error",
        earlier: Mapping[str, Any] | None = None,
        beyond: bool = True,
        threads: int | None = None,
        block: int | None = None,
    ):
        self.seen = as_interactions(seen, "seen")
        if not isinstance(truths, Mapping):
            truths = {"test": truths}
        if not truths:
            raise ConfigError("no part to evaluate", "give the held-out interactions, or a dict of them by part")
        self.truths = {str(name): as_interactions(truth, name) for name, truth in truths.items()}
        for name, truth in self.truths.items():
            if truth.shape != self.seen.shape:
                raise DataError(f"{name} is {truth.shape}, train is {self.seen.shape}; both count queries x items")
        self.earlier = {str(name): as_interactions(pairs, name) for name, pairs in (earlier or {}).items()}
        self.n_queries, self.n_items = self.seen.shape
        self.ks = _checked_ks(ks, self.n_items)
        self.metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
        for name in self.metrics:
            if name not in METRICS:
                raise ConfigError(f"unknown metric {shown(name)!r}", nearest(str(name), METRICS))
        if not self.metrics:
            raise ConfigError("no metric to take", f"allowed: {', '.join(METRICS)}")
        self.candidates = None if candidates is None else _checked_candidates(candidates, self.seen.shape)
        self.ties = _one_of("ties", ties or ("list" if candidates is None else "expected"), TIES)
        self.mask = _one_of("mask", mask, MASKS)
        self.average = _one_of("average", average, AVERAGES)
        self.formulas = _one_of("formulas", formulas, FORMULAS)
        self.leaks = _one_of("leaks", leaks, LEAKS)
        self.beyond = beyond and self.candidates is None and self.mask != "train-zeroed"
        self.threads, self.block = threads, block
        if block is not None and block < 1:
            raise ConfigError(f"block is {block}; allowed: 1 query or more at once")
        if self.ties == "list" and (self.candidates is not None or self.formulas != "standard"):
            raise ConfigError(
                "ties='list' is the order of a full list; candidates and the formulas bd and caser count positions",
                "use expected, optimistic or pessimistic",
            )
        if self.candidates is not None and self.formulas != "standard":
            raise ConfigError(f"formulas={self.formulas!r} needs full ranking", "leave the candidates out")
        if self.mask == "train-zeroed" and self.ties == "list":
            raise ConfigError("mask='train-zeroed' counts positions", "use ties expected, optimistic or pessimistic")
        self._hidden: dict[str, Interactions] = {}
        self._others = {name: self._union(other for other in self.truths if other != name) for name in self.truths}
        if leaks == "error":
            self._check_leaks()
        if formulas == "bd":
            for name, truth in self.truths.items():
                if truth.n_pairs and truth.row_degrees.max() > 1:
                    raise DataError(f"formulas='bd' is defined for one held-out item a query; {name} has more")

    @classmethod
    def of(cls, dataset: Dataset, protocol: str | Protocol | None = None, **options: Any) -> Evaluator:
        """The evaluator of a data set's validation and test parts under a protocol; ``options`` override it.

        By default ``loo-499`` where the data set stores candidates, else ``default`` (full ranking). Where each user's
        validation item comes before the test items, models of sequences know it when these are asked for.
        """
        if protocol is None:
            protocol = "default" if dataset.candidates is None else "loo-499"
        rules = preset(protocol)
        chosen = rules.options() | options
        if rules.setting == "candidates" and "candidates" not in options:
            if dataset.candidates is None:
                raise DataError(
                    f"protocol {rules.name!r} ranks stored candidates, and the data set holds none",
                    "prepare the data with a leave-one-out split, or choose a full-ranking protocol",
                )
            chosen["candidates"] = dataset.candidates
        parts = {"valid": dataset.valid, "test": dataset.test}
        held_out = {name: part for name, part in parts.items() if part.n_pairs}
        if not held_out:
            raise DataError("the data set holds nothing out", "prepare it with a split")
        if dataset.test_follows_valid:
            chosen.setdefault("earlier", {"test": dataset.valid})
        return cls(dataset.train, held_out, **chosen)

    @property
    def setting(self) -> str:
        return "full" if self.candidates is None else f"sampled({self.candidates.shape[1]})"

    @property
    def names(self) -> tuple[str, ...]:
        """The metric names that each report will hold."""
        return tuple(name for metric in self.metrics for name in self._names_of(metric))

    def __call__(self, scorer: Any, parts: str | Sequence[str] | None = None) -> dict[str, Report]:
        """Reports by part, from one pass over the queries for all parts that the scorer answers alike.

        Raises ``DataError`` for scores that are not finite, naming the first query, and for shapes that do not fit.
        """
        wanted = list(self.truths) if parts is None else [parts] if isinstance(parts, str) else list(parts)
        for name in wanted:
            if name not in self.truths:
                raise ConfigError(f"unknown part {shown(name)!r}", nearest(str(name), self.truths))
        passes: dict[int, tuple[Any, list[str]]] = {}
        for name in dict.fromkeys(wanted):
            asked = self._at(scorer, name)
            passes.setdefault(id(asked), (asked, []))[1].append(name)
        reports = {}
        for asked, names in passes.values():
            reports.update(self._measure(asked, names))
            if asked is not scorer:
                for name in names:
                    reports[name] = replace(reports[name], history=f"train+{self._name_of(self.earlier[name])}")
        return {name: reports[name] for name in wanted}

    def _at(self, scorer: Any, part: str) -> Any:
        """The scorer as it is asked for a part."""
        after = getattr(scorer, "after", None)
        return after(self.earlier[part]) if part in self.earlier and after is not None else scorer

    def _name_of(self, pairs: Interactions) -> str:
        return next((name for name, part in self.truths.items() if part is pairs), "earlier")

    def _measure(self, scorer: Any, parts: Sequence[str]) -> dict[str, Report]:
        source = as_source(scorer, self.n_queries, self.n_items, self.threads)
        ledgers = {name: _Ledger(self, name) for name in parts}
        asked = np.logical_or.reduce([ledger.keeps for ledger in ledgers.values()]) if ledgers else np.zeros(0, bool)
        rows = np.flatnonzero(asked)
        with no_grad():
            for block_rows in self._blocks(source, rows):
                if self.candidates is not None:
                    self._rank_candidates(source, block_rows, ledgers)
                else:
                    self._rank_all(source.block(block_rows), block_rows, ledgers)
        return {name: ledger.report() for name, ledger in ledgers.items()}

    def _names_of(self, metric: str) -> list[str]:
        if self.formulas == "caser" and metric == "map":
            return ["map@all"]
        return [f"{metric}@{k}" for k in self.ks]

    def _blocks(self, source: Source, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        size = self.block
        if size is None:
            if self.candidates is not None:
                size = source.queries_a_block(self.candidates.shape[1] + 2, pairs=True)
            else:
                size = source.queries_a_block(min(max(self.ks), self.n_items) + SHORT, pairs=False)
        for start in range(0, rows.size, size):
            yield rows[start : start + size]

    # Full ranking.

    def _rank_all(self, block: Block, rows: NDArray[np.int64], ledgers: dict[str, _Ledger]) -> None:
        by_list = self.ties == "list"
        if by_list or self.beyond:
            lists = self._lists(block, rows, list(ledgers))
            for name, ledger in ledgers.items():
                kept = ledger.kept(rows)
                listed = lists[name] if kept.all() else Ranking(*(side[kept] for side in lists[name]))
                if by_list:
                    ledger.add_lists(rows[kept], listed)
                if self.beyond:
                    ledger.add_exposure(listed)
        if not by_list:
            for name, ledger in ledgers.items():
                kept = ledger.kept(rows)
                ledger.add_ranks(rows[kept], *self._ranks(block, rows, kept, name))

    def _lists(self, block: Block, rows: NDArray[np.int64], parts: list[str]) -> dict[str, Ranking]:
        k = min(max(self.ks), self.n_items)
        if self.mask == "train":
            return dict.fromkeys(parts, block.topk(k, self.seen))
        extra = max((int(self._others[name].row_degrees.max(initial=0)) for name in parts), default=0)
        if block.is_list or extra <= SHORT:
            base = block.topk(min(k + extra, self.n_items), self.seen)
            return {name: self._without(base, rows, self._others[name], k) for name in parts}
        return {name: block.topk(k, self._hidden_from(name)) for name in parts}

    def _without(self, lists: Ranking, rows: NDArray[np.int64], hidden: Interactions, k: int) -> Ranking:
        """The first ``k`` entries that are not in ``hidden``: what masking before the selection would have given."""
        items, scores = lists.items[:, :k], lists.scores[:, :k]
        drop = members(hidden, rows, lists.items)
        touched = np.flatnonzero(drop.any(axis=1))
        if touched.size:
            order = np.argsort(drop[touched], axis=1, kind="stable")[:, :k]
            gone = np.take_along_axis(drop[touched], order, axis=1)
            items, scores = items.copy(), scores.copy()
            items[touched] = np.where(gone, -1, np.take_along_axis(lists.items[touched], order, axis=1))
            scores[touched] = np.where(gone, -np.inf, np.take_along_axis(lists.scores[touched], order, axis=1))
        return Ranking(items, scores)

    def _ranks(
        self, block: Block, rows: NDArray[np.int64], kept: NDArray[np.bool_], name: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Better and tied counts of each truth pair of the rows kept, in CSR order, under the mask."""
        truth = self.truths[name]
        hidden = self._hidden_from(name) if self.mask == "all-other-parts" else self.seen
        better, tied = (part.astype(np.int64) for part in block.ranks(truth, hidden))
        query, items = truth.pairs_of(rows)
        if self.mask == "train-zeroed":
            scores = block.pair_scores(query, items)
            n_seen = self.seen.row_degrees[rows][query]
            better += np.where(scores < 0, n_seen, 0)
            tied += np.where(scores == 0, n_seen, 0)
        if self.leaks == "miss":
            targets = padded(truth, rows)
            leaked = members(hidden, rows, targets)[targets >= 0]
            better[leaked], tied[leaked] = _NEVER, 0
        chosen = kept[query]
        return better[chosen], tied[chosen]

    # Stored candidates.

    def _rank_candidates(self, source: Source, rows: NDArray[np.int64], ledgers: dict[str, _Ledger]) -> None:
        assert self.candidates is not None
        targets = [padded(self.truths[name], rows) for name in ledgers]
        table = self.candidates[rows] if not is_range(rows) else self.candidates[rows[0] : rows[-1] + 1]
        found = source.candidate_ranks(rows, np.concatenate(targets, axis=1), table)
        start = 0
        for target, ledger in zip(targets, ledgers.values(), strict=True):
            part = slice(start, start + target.shape[1])
            start = part.stop
            kept = ledger.kept(rows)
            real = target[kept] >= 0
            better, tied = (side[:, part][kept][real].astype(np.int64) for side in found)
            ledger.add_ranks(rows[kept], better, tied)

    # What is left out.

    def _union(self, names: Iterator[str]) -> Interactions:
        parts = [self.truths[name] for name in names]
        if not parts:
            return Interactions(np.zeros(self.n_queries + 1, np.int64), np.zeros(0, np.int32), self.seen.shape)
        joined = parts[0]
        for part in parts[1:]:
            joined = joined.union(part)
        return joined

    def _hidden_from(self, name: str) -> Interactions:
        if self.mask != "all-other-parts" or not self._others[name].n_pairs:
            return self.seen
        if name not in self._hidden:
            self._hidden[name] = merged(self.seen, self._others[name])
        return self._hidden[name]

    def _check_leaks(self) -> None:
        hiding = {"train": None if self.mask == "train-zeroed" else self.seen}
        for name, truth in self.truths.items():
            hiding["another held-out part"] = self._others[name] if self.mask == "all-other-parts" else None
            for start in range(0, self.n_queries, _CHECKED):
                rows = np.arange(start, min(start + _CHECKED, self.n_queries))
                targets = padded(truth, rows)
                for where, pairs in hiding.items():
                    if pairs is not None and (leaked := members(pairs, rows, targets)).any():
                        row, column = (int(x[0]) for x in np.nonzero(leaked))
                        raise DataError(
                            f"{name} pairs are also in {where}, the first is user {rows[row]}, item "
                            f"{targets[row, column]}",
                            "split the data again, or count such pairs as misses with leaks='miss'",
                        )
                if self.candidates is not None:
                    table = self.candidates[rows[0] : rows[-1] + 1]
                    if (own := members(truth, rows, table)).any():
                        row, column = (int(x[0]) for x in np.nonzero(own))
                        raise DataError(
                            f"item {table[row, column]} is a candidate of user {rows[row]} and also the user's "
                            f"{name} item",
                            "draw candidates among items that the user has in no part",
                        )


class _Ledger:
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
        found = ranking.metrics(
            lists.items,
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

    def report(self) -> Report:
        evaluator = self.evaluator
        if evaluator.average == "all-queries":
            for values in self.values.values():
                values[np.isnan(values)] = 0.0
        beyond: dict[str, float] = {}
        popularity = evaluator.seen.column_degrees
        for k, counts in zip(self.exposure, np.cumsum(list(self.exposure.values()), axis=0), strict=True):
            beyond |= {f"{name}@{k}": v for name, v in beyond_accuracy(counts, popularity, evaluator.n_queries).items()}
        rules = {name: getattr(evaluator, name) for name in ("ties", "mask", "average", "formulas")}
        if evaluator.candidates is not None:
            del rules["mask"]
        return Report(
            self.values,
            self.rows,
            setting=evaluator.setting,
            part=self.part,
            n_queries=evaluator.n_queries,
            rules=rules,
            beyond=beyond,
            tied=self.tied / self.rows.size if self.rows.size else None,
        )


def _means_of_runs(values: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Means of consecutive runs of ``values``; NaN for a run of length 0."""
    means = np.full(lengths.size, np.nan)
    some = lengths > 0
    if some.any():
        means[some] = np.add.reduceat(values, (np.cumsum(lengths) - lengths)[some]) / lengths[some]
    return means


def popularity(seen: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The scorer that ranks items by their train count: what any model has to beat."""
    seen = as_interactions(seen, "seen")
    counts = seen.column_degrees.astype(np.float32)
    return np.ones((seen.shape[0], 1), np.float32), counts[:, None]


def top_lists(
    scorer: Any, seen: Any, k: int, *, threads: int | None = None, block: int | None = None
) -> Iterator[tuple[NDArray[np.int64], Ranking]]:
    """The best ``k`` unseen items of every query, block by block: (rows [B], ``Ranking`` [B, k])."""
    seen = as_interactions(seen, "seen")
    k = min(*_checked_ks([k], None), seen.shape[1])
    source = as_source(scorer, seen.shape[0], seen.shape[1], threads)
    size = block or source.queries_a_block(max(k, 1), pairs=False)
    with no_grad():
        for start in range(0, seen.shape[0], size):
            rows = np.arange(start, min(start + size, seen.shape[0]))
            yield rows, source.block(rows).topk(k, seen)


def overlap(one: Any, other: Any, ks: Sequence[int] = (10,)) -> dict[str, NDArray[np.float64]]:
    """How far two sets of lists agree: float64 ``[Q]`` by name, for teacher and student for example.

    ``one`` and ``other`` are lists of the same queries (``Ranking`` or int [Q, K], best first, -1 pads the end).
    With A and B the first K of each: ``overlap@K`` is |A and B| / K, ``jaccard@K`` is |A and B| / |A or B| (1 where
    both are empty).
    """
    a, b = as_lists(one), as_lists(other)
    if a.shape[0] != b.shape[0]:
        raise DataError(f"got lists of {a.shape[0]} and of {b.shape[0]} queries; they must be the same queries")
    ks = _checked_ks(ks, None)
    if max(ks) > min(a.shape[1], b.shape[1]):
        raise ConfigError(f"K is {max(ks)}; the lists hold {min(a.shape[1], b.shape[1])} items")
    found: dict[str, NDArray[np.float64]] = {}
    size = max(1, LISTS // (2 * max(ks)))
    for k in ks:
        both, either = np.empty(a.shape[0]), np.empty(a.shape[0])
        for start in range(0, a.shape[0], size):
            part = slice(start, start + size)
            pair = np.sort(np.concatenate([a[part, :k], b[part, :k]], axis=1), axis=1)
            shared = ((pair[:, 1:] == pair[:, :-1]) & (pair[:, 1:] >= 0)).sum(axis=1)
            both[part] = shared
            either[part] = (pair >= 0).sum(axis=1) - shared
        found[f"overlap@{k}"] = both / k
        found[f"jaccard@{k}"] = np.divide(both, either, out=np.ones_like(both), where=either > 0)
    return found


# Options and files.


def _checked_ks(ks: Sequence[int], n_items: int | None) -> tuple[int, ...]:
    given = tuple(np.atleast_1d(np.asarray(ks, object)))
    if not given:
        raise ConfigError("no list length", "give ks, such as (5, 10, 20)")
    for k in given:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ConfigError(f"K is {shown(k)}; allowed: integers from 1")
    if n_items is not None and max(given) > n_items:
        warnings.warn(
            f"K={max(given)} is more than the catalogue's {n_items} items: lists are shorter, denominators keep K",
            stacklevel=3,
        )
    return tuple(sorted({int(k) for k in given}))


def _checked_candidates(given: Any, shape: tuple[int, int]) -> NDArray[np.int32]:
    candidates = as_numpy(given)
    if candidates.ndim != 2 or candidates.shape[0] != shape[0] or candidates.dtype.kind not in "iu":
        raise DataError(
            f"candidates are {candidates.dtype} of shape {candidates.shape}; allowed: integers, {shape[0]} rows"
        )
    if candidates.size and (candidates.max() >= shape[1] or candidates.min() < -1):
        raise DataError(f"candidates run from {candidates.min()} to {candidates.max()}; allowed: -1 to {shape[1] - 1}")
    return np.ascontiguousarray(candidates, np.int32)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ConfigError(f"{name} is {shown(value)!r}", nearest(str(value), allowed))
    return value


def _json_path(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" else path.with_name(path.name + ".json")
