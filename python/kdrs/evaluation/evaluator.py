"""How good is a ranking: one value a query and metric, exact, the same for any block size and number of threads.

Shapes: Q queries, I items, D dimensions, B queries of a block, C candidates, K list length.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs._parts import span_of
from kdrs.core.ranking import Ranking
from kdrs.data.checks import check_lists
from kdrs.data.interactions import Interactions, as_interactions
from kdrs.errors import ConfigError, DataError, nearest, shown
from kdrs.evaluation.ledger import Ledger, Team
from kdrs.evaluation.lists import checked_ks
from kdrs.evaluation.portions import Portion
from kdrs.evaluation.protocols import METRICS, Protocol
from kdrs.evaluation.protocols import protocol as preset
from kdrs.evaluation.report import Report
from kdrs.evaluation.scorers import (
    SHORT,
    Block,
    Lists,
    Source,
    Tiled,
    as_numpy,
    as_source,
    is_range,
    members,
    merged,
    no_grad,
    padded,
)

if TYPE_CHECKING:
    from kdrs.data.dataset import Dataset


TIES = ("list", "expected", "optimistic", "pessimistic")
MASKS = ("all-other-parts", "train", "train-zeroed")
AVERAGES = ("with-truth", "all-queries")
FORMULAS = ("standard", "bd", "caser")
LEAKS = ("error", "miss")

# The rank of a target that can never be shown; far from overflow when places are added.
_NEVER = np.iinfo(np.int64).max >> 2

# Queries whose held-out items are checked at once.
_CHECKED = 4096


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
    * ``formulas``: ``standard`` (``kdrs.core.ranking.metrics``); ``bd`` and ``caser`` as ``kdrs.protocols`` describes.
    * ``leaks``: a held-out item that is also masked is an ``error``, or a ``miss`` that stays in the denominators.
    * ``earlier``: by part, pairs that come between ``seen`` and that part, at most one a query: what a scorer that has
      ``after(pairs)`` (a model of sequences) knows besides ``seen`` when it is asked for the part.
    * ``beyond``: also take coverage, popularity, Gini and novelty of the lists (full ranking only).
    * ``threads``: for the kernels; ``block``: queries at once, by default as many as a few tens of megabytes hold.
    * ``team``: processes that each measure some of the queries and then have the values of all, the same bytes as one process.
    * ``nothing``: with no part at all every call gives no report; else that is an error.

    K past the catalogue gives shorter lists while the denominators keep K. Scores are compared as float32.

    A scorer is one of: ``Factors`` or any (queries [Q, D], items [I, D]), with a bias [I] behind them or none, of
    arrays, tensors or `kdrs.Codes`; an object with ``factors()``, ``score_block(rows) -> [B, I]`` and
    ``score_pairs(rows, ids [B, C]) -> [B, C]``; a callable ``rows -> [B, I]``; ready lists (``Ranking`` or int [Q,
    K], -1 pads the end; full ranking only, items that are masked are passed over).
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
        team: Team | None = None,
        nothing: bool = False,
    ):
        self.seen = as_interactions(seen, "seen")
        if not isinstance(truths, Mapping) or hasattr(truths, "tocoo"):  # SciPy's matrices of keys are mappings
            truths = {"test": truths}
        if not (truths or nothing):
            raise ConfigError("no part to evaluate", "give the held-out interactions, or a dict of them by part")
        self.truths = {str(name): as_interactions(truth, name) for name, truth in truths.items()}
        for name, truth in self.truths.items():
            if truth.shape != self.seen.shape:
                raise DataError(f"{name} is {truth.shape}, train is {self.seen.shape}; both count queries x items")
        self.earlier = {str(name): as_interactions(pairs, name) for name, pairs in (earlier or {}).items()}
        self.n_queries, self.n_items = self.seen.shape
        self.ks = checked_ks(ks, self.n_items)
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
        self.threads, self.block, self.team = threads, block, team
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
                    "choose a full-ranking protocol, such as default; or prepare the data with them, by kdrs data prepare with "
                    "--candidates 499, and train on that",
                )
            chosen["candidates"] = dataset.candidates
        parts = {"valid": dataset.valid, "test": dataset.test}
        held_out = {name: part for name, part in parts.items() if part.n_pairs}
        if not (held_out or options.get("nothing")):
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

        Raises ``ScoreError`` for scores that are not finite, naming the first query, ``DataError`` for shapes that do not fit.
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

    def portion(self, scorer: Any, part: str, share: tuple[int, int] = (1, 1)) -> Portion:
        """What share (I, N) of a part's queries brings; joined (`kdrs.evaluation.portions`), the report of all to the last bit.

        Queries are shared out one by one where their numbers are their own, else by the blocks that one machine asks for.
        """
        if part not in self.truths:
            raise ConfigError(f"unknown part {shown(part)!r}", nearest(part, self.truths))
        asked = self._at(scorer, part)
        source = as_source(asked, self.n_queries, self.n_items, self.threads)
        ledger = Ledger(self, part)
        with no_grad():
            blocks = list(self._blocks(source, ledger.rows))
            if source.by_query:
                first, last = span_of(share, ledger.rows.size)
                blocks = list(self._blocks(source, ledger.rows[first:last]))
            else:
                ends = np.cumsum([0, *map(len, blocks)])
                low, high = span_of(share, len(blocks))
                first, last, blocks = int(ends[low]), int(ends[high]), blocks[low:high]
            ledger.narrow(first, last)
            for rows in blocks:
                if self.candidates is not None:
                    self._rank_candidates(source, rows, {part: ledger})
                else:
                    self._rank_all(source.block(rows), rows, {part: ledger})
        made = ledger.portion()
        return made if asked is scorer else replace(made, history=f"train+{self._name_of(self.earlier[part])}")

    def lists(self, scorer: Any, part: str, rows: NDArray[np.int64], k: int) -> NDArray[np.int32]:
        """int32 [B, k]: the best items of some queries [B], less what the mask hides from a part's lists; -1 pads the end. All
        items are ranked, also where the metrics rank candidates; items that are masked with score 0 are left out."""
        source = as_source(self._at(scorer, part), self.n_queries, self.n_items, self.threads)
        hidden = self.seen if self.mask == "train" else self._hidden_from(part)
        found = np.full((rows.size, k), -1, np.int32)
        with no_grad():
            ranked = source.block(rows).topk(min(k, self.n_items), hidden)
        found[:, : ranked.items.shape[1]] = np.where(ranked.scores == -np.inf, -1, ranked.items)
        return found

    def _at(self, scorer: Any, part: str) -> Any:
        """The scorer as it is asked for a part."""
        after = getattr(scorer, "after", None)
        return after(self.earlier[part]) if part in self.earlier and after is not None else scorer

    def _name_of(self, pairs: Interactions) -> str:
        return next((name for name, part in self.truths.items() if part is pairs), "earlier")

    def _measure(self, scorer: Any, parts: Sequence[str]) -> dict[str, Report]:
        ledgers = {name: Ledger(self, name) for name in parts}
        asked = np.logical_or.reduce([ledger.keeps for ledger in ledgers.values()]) if ledgers else np.zeros(0, bool)
        rows = np.flatnonzero(asked)
        team, tiles = self.team, None
        if getattr(scorer, "collective", False):
            tiles = self._tiles(scorer)
            team = team if tiles is not None else None  # what all must be asked for together each of them measures
        if tiles is not None and team is not None:
            with no_grad():
                self._rank_tiles(Tiled(tiles, team.rank, self.threads), np.array_split(rows, team.size), ledgers)
            for ledger in ledgers.values():
                ledger.join(team.gather_arrays(ledger.arrays()))
            return {name: ledger.report() for name, ledger in ledgers.items()}
        if team is not None:
            rows = np.array_split(rows, team.size)[team.rank]
        source = as_source(scorer, self.n_queries, self.n_items, self.threads)
        self._warn_of_short(source)
        with no_grad():
            for block_rows in self._blocks(source, rows):
                if self.candidates is not None:
                    self._rank_candidates(source, block_rows, ledgers)
                else:
                    self._rank_all(source.block(block_rows), block_rows, ledgers)
        if team is not None:
            for ledger in ledgers.values():
                ledger.join(team.gather_arrays(ledger.arrays()))
        return {name: ledger.report() for name, ledger in ledgers.items()}

    def _warn_of_short(self, source: Source) -> None:
        """Lists that end before the longest K: nothing is known of what would follow."""
        longest = min(max(self.ks), self.n_items)
        if isinstance(source, Lists) and source.lists.shape[1] < longest:
            warnings.warn(
                f"the lists hold {source.lists.shape[1]} items a query: metrics at {longest} count no more than these; give "
                "longer lists, or read metrics of a smaller K",
                stacklevel=5,
            )

    def _tiles(self, scorer: Any) -> Any:
        """What brings the scorer's vectors together, where lists are all that is asked of it."""
        return scorer.tiles() if self.team is not None and self.candidates is None and self.ties == "list" else None

    def _rank_tiles(self, source: Tiled, shares: Sequence[NDArray[np.int64]], ledgers: dict[str, Ledger]) -> None:
        """Each process its share of the queries, all of them in step."""
        size = self.block or source.queries_a_block(min(max(self.ks), self.n_items) + SHORT, pairs=False)
        for start in range(0, max(len(share) for share in shares), size):
            parts = [share[start : start + size] for share in shares]
            block, rows = source.block(parts), parts[source.rank]
            if rows.size:
                self._rank_all(block, rows, ledgers)
            else:  # its vectors are asked for all the same
                self._lists(block, rows, list(ledgers))

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

    def _rank_all(self, block: Block, rows: NDArray[np.int64], ledgers: dict[str, Ledger]) -> None:
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

    def _rank_candidates(self, source: Source, rows: NDArray[np.int64], ledgers: dict[str, Ledger]) -> None:
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


def _checked_candidates(given: Any, shape: tuple[int, int]) -> NDArray[np.int32]:
    candidates = as_numpy(given)
    if candidates.ndim != 2 or candidates.shape[0] != shape[0] or candidates.dtype.kind not in "iu":
        raise DataError(
            f"candidates are {candidates.dtype} of shape {candidates.shape}; allowed: integers, {shape[0]} rows"
        )
    check_lists(candidates, shape[1], "the candidate list of user")
    return np.ascontiguousarray(candidates, np.int32)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ConfigError(f"{name} is {shown(value)!r}", nearest(str(value), allowed))
    return value
