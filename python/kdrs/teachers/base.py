"""What may be asked of knowledge, and lists of whatever answers queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from kdrs.core import ranking
from kdrs.core.ranking import Ranking
from kdrs.core.tiles import topk as topk_of_tiles
from kdrs.data.interactions import Interactions
from kdrs.teachers.confidence import Confidence
from kdrs.training.queries import Queries, Task
from kdrs.training.view import Factors, View

BLOCK_BYTES = 64 << 20
"""Score blocks of models without factors hold at most this much."""
ENCODED = 4096
"""Queries of sequential models that are encoded at a time."""


class Stage(NamedTuple):
    """A point of a training trajectory."""

    epoch: int
    """Counted from 0; -1 where it is not known."""
    load: Callable[[], Teacher]
    """The teacher as it was then. Earlier ones are built anew on every call: keep what is needed and let go of the rest."""


class Teacher(Protocol):
    """What may be asked of knowledge. Never a submodule of a distiller, never with a gradient."""

    name: str
    asked: Task
    """The task whose queries it answers."""

    @property
    def averages(self) -> bool:
        """Whether it is a model whose own loss is a mean over the batch."""

    @property
    def dim(self) -> int:
        """Size of the representations; ``MissingKnowledge`` if there are none."""

    @property
    def sides(self) -> tuple[str, ...]:
        """Whose representations it has: ``users`` and ``items``, or items alone."""

    def view(self, queries: Queries) -> View:
        """A view without gradients, read in evaluation mode."""

    def topk(self, k: int) -> Ranking:
        """Best ``k`` unseen items of every query: int32 [Q, k] and float32 [Q, k], NumPy, padded with -1."""

    def topk_blocks(self, k: int, *, keep_seen: bool = False) -> Iterator[tuple[slice, Ranking]]:
        """The same a block of queries at a time, for what need not be held at once; ``keep_seen`` leaves in what the query
        has seen. Blocks depend on the sizes alone, never on the machine."""

    def confidence(self) -> Confidence | None:
        """How far the entries of ``topk`` are to be trusted; None if they are all alike."""

    def top_users(self, k: int) -> np.ndarray:
        """Best ``k`` users of every item, without those who have seen it: int32 [I, k], NumPy, padded with -1."""

    @property
    def scores_are_products(self) -> bool:
        """Whether ``factors`` gives any; an outline says it too, which cannot compute them."""

    def factors(self) -> Factors | None:
        """The whole of it as dot-product factors, or None if its score is no dot product."""

    def score_block(self, rows: Any) -> Tensor:
        """float32 [b, I]: scores of all items for int query rows [b]."""

    def stages(self) -> Sequence[Stage]:
        """Saved earlier selves, oldest first, itself last."""

    def check_scores(self) -> None:
        """Raises ``MissingKnowledge`` if it cannot score: early what would fail in the first step."""

    def check_lists(self, k: int, *, keep_seen: bool = False) -> None:
        """Raises ``MissingKnowledge`` where ``topk_blocks`` would; ranks nothing."""

    def check_users(self) -> None:
        """Raises ``MissingKnowledge`` where ``top_users`` would; ranks nothing."""


class Scored:
    """Lists of whatever answers ``view`` and perhaps ``factors``, for the queries of the task ``asked``.

    ``factors``, ``score_block`` and ``top_users`` speak of the users as of now.
    """

    asked: Task
    """The student's task."""

    @property
    def averages(self) -> bool:
        return False

    @property
    def sides(self) -> tuple[str, ...]:
        return ("users", "items")

    def confidence(self) -> Confidence | None:
        return None

    @property
    def scores_are_products(self) -> bool:
        return self.factors() is not None

    def factors(self) -> Factors | None:
        raise NotImplementedError

    def tiles(self) -> Any:
        """Of a model that several processes hold, what brings its factors together (`kdrs.training.columns.Tiles`)."""
        return None

    def view(self, queries: Queries) -> View:
        raise NotImplementedError

    def score_block(self, rows: Any) -> Tensor:
        """float32 [b, I]: scores of all items for int query rows [b]."""
        return self.view(self._queries(rows)).all_scores()

    def check_scores(self) -> None:
        self.view(self._queries([0]))

    def check_lists(self, k: int, *, keep_seen: bool = False) -> None:
        """Whatever scores has lists of any length."""

    def check_users(self) -> None:
        """And users of every item."""

    def score_pairs(self, rows: Any, ids: Any) -> Tensor:
        """float32 [b, C]: scores of each row's own items, int [b, C]."""
        return self.view(self._queries(rows)).scores(torch.as_tensor(ids, device=self.asked.device).long())

    @property
    def _ranks_users(self) -> bool:
        """Whether all queries of a user are answered alike: this knowledge, or the student's task, knows no moments."""
        return True

    def _blocks(self, k: int, lists_only: bool = True) -> Iterator[slice]:
        """Queries whose lists (int32 and float32), or rows of scores, take ``BLOCK_BYTES``."""
        size = max(1, BLOCK_BYTES // (8 * k if lists_only else 4 * self.asked.n_items))
        if not self._ranks_users:  # each query is encoded, which takes more than its list
            size = min(size, ENCODED)
        for start in range(0, self.asked.n_queries, size):
            yield slice(start, min(start + size, self.asked.n_queries))

    def _queries(self, rows: Any) -> Queries:
        return self.asked.queries(torch.as_tensor(rows, device=self.asked.device).long())

    def topk_blocks(self, k: int, *, keep_seen: bool = False) -> Iterator[tuple[slice, Ranking]]:
        task, k = self.asked, min(k, self.asked.n_items)
        seen, factors = None if keep_seen else task.seen, self.factors()
        tiles = None if factors is not None else self.tiles()
        for part in self._blocks(k, factors is not None or tiles is not None):
            rows = np.arange(part.start, part.stop)
            users = owners_of(task, rows)
            places = None
            if task.owners is not None and self._ranks_users:  # each user once, though it has many queries
                users, places = np.unique(users, return_inverse=True)
                rows = users
            if tiles is not None and self._ranks_users:
                ranked = topk_of_tiles(tiles.queries([users]), tiles.items(), k, seen=seen, rows=users)
            elif factors is None:
                ranked = ranking.topk_scores(self.score_block(rows), k, seen=seen, rows=users)
            else:
                queries, items, bias = factors
                asked = queries[users] if self._ranks_users else self.view(self._queries(rows)).queries
                ranked = ranking.topk(asked, items, k, seen=seen, rows=users, bias=bias)
            lists = Ranking(as_array(ranked.items), as_array(ranked.scores))
            yield part, lists if places is None else Ranking(lists.items[places], lists.scores[places])

    def top_users(self, k: int) -> np.ndarray:
        task, k = self.asked, min(k, self.asked.n_users)
        factors = self.factors()
        if factors is not None:  # an item's bias is the same for all its users
            users = factors.queries[: task.n_users]
            ranked = ranking.topk(factors.items, users, k, seen=task.seen.transpose())
            return np.ascontiguousarray(as_array(ranked.items))
        best = Ranking(np.zeros((task.n_items, 0), np.int32), np.zeros((task.n_items, 0), np.float32))
        for rows in row_blocks(task.n_users, task.n_items):
            scores = without_seen(as_array(self.score_block(rows)), rows, task.seen).T  # [I, b]
            ids = np.concatenate([best.items, np.tile(rows.astype(np.int32), (task.n_items, 1))], axis=1)
            joined = np.ascontiguousarray(np.concatenate([best.scores, scores], axis=1))
            # users of former blocks come first and have the lower ids, so ties still go to the lower id
            places, kept = ranking.topk_scores(joined, min(k, joined.shape[1]))
            best = Ranking(np.take_along_axis(ids, places.astype(np.int64), axis=1), kept)
        return np.where(best.scores == -np.inf, -1, best.items).astype(np.int32)


def row_blocks(n_rows: int, n_columns: int) -> Iterator[np.ndarray]:
    """The rows from 0 on, int64 [b], so many at a time that their scores, float32 [b, n_columns], take ``BLOCK_BYTES``."""
    size = max(1, BLOCK_BYTES // (4 * n_columns))
    return (np.arange(start, min(start + size, n_rows)) for start in range(0, n_rows, size))


def best_items(teacher: Teacher, k: int, *, keep_seen: bool) -> np.ndarray:
    """The items of ``teacher.topk(k)``, int32 [Q, k], contiguous; ``keep_seen`` leaves in what the query has seen."""
    if not keep_seen:
        return np.ascontiguousarray(teacher.topk(k).items)
    return np.concatenate([ranked.items for _, ranked in teacher.topk_blocks(k, keep_seen=True)])


def without_seen(scores: np.ndarray, rows: np.ndarray, seen: Interactions) -> np.ndarray:
    """A copy of scores float32 [b, N], -inf where the rows [b] of ``seen`` [rows, N] have a pair."""
    masked = np.array(scores, np.float32)
    masked[seen.pairs_of(rows)] = -np.inf
    return masked


def owners_of(task: Task, rows: np.ndarray) -> np.ndarray:
    """The rows of ``task.seen`` that belong to query rows: themselves, unless the task has several queries a user."""
    return rows if task.owners is None else task.owners[rows]


def as_array(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, Tensor) else values
