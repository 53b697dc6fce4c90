"""Dual correction strategy for distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdrs.core import sampling
from kdrs.core.sampling import stream
from kdrs.data.interactions import Interactions
from kdrs.distillers.base import distinct
from kdrs.distillers.ir_rrd import user_ranking
from kdrs.distillers.rrd import RRD, Lists, RRDConfig
from kdrs.errors import ConfigError
from kdrs.teachers.base import Teacher, owners_of, row_blocks, without_seen
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View


class DCDConfig(RRDConfig):
    ranking_weight: float = Field(1.0, ge=0)
    """Weight of the ordinary relaxed ranking distillation; its options are RRD's."""
    user_weight: float = Field(1.0, ge=0)
    """Weight of the users' corrections."""
    item_weight: float = Field(1.0, ge=0)
    """Weight of the items' corrections."""
    under: int = Field(100, ge=1)
    """Entries drawn that the student ranks too low: K."""
    over: int = Field(100, ge=1)
    """Entries drawn that it ranks too high: L."""
    correction_pool: int = Field(500, ge=1)
    """Length of the teacher's lists, of unseen items and of users, that they come from."""
    error_sharpness: float = Field(0.1, gt=0)
    """ε: weight of an entry is tanh(ε · error), the error in ranks."""
    floor: float = Field(0.0, ge=0)
    """Least weight. The re-implementation's 1e-5 lets entries without error be drawn, and into both sets."""
    order: Literal["teacher", "drawn"] = "teacher"
    """The order that the underestimated entries should have: the teacher's, or (the re-implementation) as they were drawn."""
    student_ranks: Literal["unseen", "all"] = "unseen"
    """Among which entries the student's rank counts; ``all`` is the re-implementation's."""
    refresh: int = Field(1, ge=1)
    """Epochs between two looks at the student's ranking, each followed by new draws."""


class DCD(RRD):
    """Dual correction strategy (Lee & Kim, CIKM 2021): distil where the student is wrong.

        L = ranking_weight · L_RKD + user_weight · L_UCD + item_weight · L_ICD
        ℓ = Σ_{k∈under} [log(Σ_{m∈under, m≥k} exp s_m + Σ_{n∈over} exp s_n) - s_k]
        P(k ∈ under) ∝ tanh(max(ε (r_S - r_T), 0))
        P(n ∈ over)  ∝ tanh(max(ε (r_T - r_S), 0))
        L_UCD = Σ_u ℓ over items,  L_ICD = Σ_i ℓ over users

    ``L_RKD + L_UCD + L_ICD``, by their weights. L_RKD is RRD. For each distinct user of the batch, L_UCD is the relaxed ranking
    loss of K items that the student underestimates, drawn without replacement by tanh(max(ε (r_S - r_T), 0)), in the teacher's
    order, above L items that it overestimates, drawn by tanh(max(ε (r_T - r_S), 0)). L_ICD is the same with the users ranked
    for each distinct item of the batch, positive or negative. Ranks are the student's of an epoch's start; ties share the mean
    of their places. Sets are short where there are few errors; without any the loss is 0.

    The default weight is a tenth of the re-implementation's 0.01, with which a student on CiteULike forgets its own data.

    No code of the authors is public, and **that the three weights are equal is a reconstruction**. ``floor = 1e-5``, ``order
    = "drawn"``, ``student_ranks = "all"``, ``ranking_weight = item_weight = 0`` is the re-implementation in the KDs benchmark.
    """

    Config = DCDConfig
    config: DCDConfig
    purpose = "correct what the student ranks too low and too high, for users' lists and for items' lists"
    reference = "Lee & Kim, Dual correction strategy for ranking distillation in top-N recommender system, CIKM 2021"
    needs = "a ranking of at least `pool` and `correction_pool` items a query, and scores of any item unless `item_weight` is 0"
    default_weight = 1e-3
    published_weight = 1e-2

    def __init__(self, config: DCDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        if not (config.ranking_weight or config.user_weight or config.item_weight):
            raise ConfigError(
                "nothing has a weight: ranking_weight, user_weight and item_weight are 0", "give one a weight above 0"
            )
        teacher, kept = teachers[0], config.refresh > 1
        self._best: dict[str, np.ndarray] = {}
        self._corrections: dict[str, Lists] = {}
        if config.user_weight:
            teacher.check_lists(config.correction_pool)
        if config.item_weight:
            teacher.check_users()
        if self.outlined:
            return
        if config.user_weight:
            self._best["users"] = np.ascontiguousarray(teacher.topk(config.correction_pool).items)  # [Q, C]
        if config.item_weight:
            self._best["items"] = teacher.top_users(config.correction_pool)  # [I, C]
        for side, lists in self._best.items():
            # lists that outlive their epoch belong to the checkpoint
            empty = torch.full((len(lists), config.under + config.over if kept else 0), -1, dtype=torch.int32)
            self.register_buffer(f"drawn_{side}", empty, persistent=kept)

    def draw(self, epoch: Epoch) -> Any:
        return super().draw(epoch) if self.config.ranking_weight else None

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        if samples is not None:
            super().on_epoch_start(epoch, samples, student)
        for side, lists in self._best.items():
            seed, kept = self.stream(epoch, f"corrections of {side}"), self.get_buffer(f"drawn_{side}")
            if epoch.index % self.config.refresh == 0:
                find = item_ranks if side == "users" else user_ranks
                ranks = find(student, lists, self.config.student_ranks == "unseen")
                drawn = draw_corrections(lists, ranks, self.config, seed)
                if self.config.refresh > 1:
                    kept.copy_(drawn)
            else:
                drawn = kept
            drawn = drawn.to(self.task.device)
            under, over = drawn[:, : self.config.under], drawn[:, self.config.under :]
            self._corrections[side] = Lists(under, over, self.config.clip)

    def loss(self, student: View, batch: Batch) -> Tensor:
        config, total = self.config, torch.zeros((), device=batch.positives.device)
        if config.ranking_weight:
            total = total + config.ranking_weight * super().loss(student, batch)
        if config.user_weight:
            total = total + config.user_weight * self.user_loss(student, batch)
        if config.item_weight:
            total = total + config.item_weight * self.item_loss(student, batch)
        return total

    def user_loss(self, student: View, batch: Batch) -> Tensor:
        """L_UCD: Σ over the batch's distinct queries."""
        return self.ranked(student, batch.unique_queries, self._corrections["users"])

    def item_loss(self, student: View, batch: Batch) -> Tensor:
        """L_ICD: Σ over the batch's distinct items."""
        items = distinct(torch.cat([batch.positives, batch.negatives.reshape(-1)]), self.task.n_items)
        return user_ranking(student, self.task, items, self._corrections["items"])


def draw_corrections(lists: np.ndarray, ranks: np.ndarray, config: DCDConfig, seed: int) -> Tensor:
    """int32 [R, K + L]: of lists in the teacher's order, int32 [R, C], entries that the student's ranks (float [R, C], from 0)
    put too low, then entries that they put too high; -1 pads both."""
    under, over = error_weights(lists, ranks, config)
    order = "list" if config.order == "teacher" else "draw"
    low = sampling.weighted(lists, under, config.under, seed=stream(seed, "under"), order=order)  # type: ignore[arg-type]
    high = sampling.weighted(lists, over, config.over, seed=stream(seed, "over"))
    return torch.from_numpy(np.concatenate([low, high], axis=1))


def error_weights(lists: np.ndarray, ranks: np.ndarray, config: DCDConfig) -> tuple[np.ndarray, np.ndarray]:
    """How much the student under- and overestimates each entry of lists in the teacher's order: float32 [R, C] each."""
    errors = config.error_sharpness * (ranks - np.arange(lists.shape[1]))
    under, over = (np.maximum(np.tanh(np.maximum(e, 0)), config.floor) for e in (errors, -errors))
    present = lists >= 0
    return np.where(present, under, 0).astype(np.float32), np.where(present, over, 0).astype(np.float32)


def item_ranks(student: Teacher, lists: np.ndarray, unseen: bool) -> np.ndarray:
    """The student's rank, from 0, of each query's own items, int32 [Q, C] -> float32 [Q, C], among those it has not seen.

    ``unseen=False`` counts seen items too. Ties share the mean of their places; padding has rank -0.5.
    """
    task = student.asked
    factors = student.factors()
    factors = None if factors is None else factors.plain()

    def scores(rows: np.ndarray) -> np.ndarray:
        if factors is None or task.owners is not None:  # factors hold the users as of now
            found = student.score_block(rows)
        else:
            found = factors.queries[rows[0] : rows[-1] + 1] @ factors.items.T
            found = found if factors.bias is None else found + factors.bias
        return sampling.numpy_of(found)

    return _ranks(
        scores, lists, task.seen if unseen else None, task.n_items, owners_of(task, np.arange(task.n_queries))
    )


def user_ranks(student: Teacher, lists: np.ndarray, unseen: bool) -> np.ndarray:
    """``item_ranks`` with users and items exchanged: int32 [I, C] -> float32 [I, C]."""
    task = student.asked
    factors = student.factors()
    if factors is not None:
        users, items, _ = factors.plain()
        users = users[: task.n_users]
        seen_by = task.seen.transpose() if unseen else None
        return _ranks(
            lambda rows: sampling.numpy_of(items[rows[0] : rows[-1] + 1] @ users.T), lists, seen_by, task.n_users
        )
    # scores come by users: a first pass picks those of the lists, a second counts what is above them
    own = np.full(lists.shape, -np.inf, np.float32)
    found = [np.zeros(lists.shape, np.float32) for _ in range(2)]
    for counting in (False, True):
        for rows in row_blocks(task.n_users, task.n_items):
            block = sampling.numpy_of(student.score_block(rows))
            scores = np.array((without_seen(block, rows, task.seen) if unseen else block).T, order="C")  # [I, b]
            if not counting:
                places = np.clip(lists - rows[0], 0, rows.size - 1).astype(np.int64)
                inside = (lists >= rows[0]) & (lists <= rows[-1])
                own = np.where(inside, np.take_along_axis(scores, places, axis=1), own)
            else:
                for total, counts in zip(found, _counts(scores, own), strict=True):
                    total += counts
    return _middle(lists, *found)


def _ranks(
    scores_of: Callable[[np.ndarray], np.ndarray],
    lists: np.ndarray,
    seen: Interactions | None,
    n_columns: int,
    owners: np.ndarray | None = None,
) -> np.ndarray:
    """Ranks of each row's own columns: a sort a row, and a binary search an entry. ``owners`` are the rows of ``seen``."""
    parts = []
    for rows in row_blocks(len(lists), n_columns):
        listed, scores = lists[rows[0] : rows[-1] + 1], scores_of(rows)
        scores = (
            np.array(scores, np.float32)
            if seen is None
            else without_seen(scores, rows if owners is None else owners[rows], seen)
        )
        own = np.take_along_axis(scores, np.maximum(listed, 0).astype(np.int64), axis=1)
        parts.append(_middle(listed, *_counts(scores, own)))
    return np.concatenate(parts)


def _counts(scores: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of each row's scores, which are sorted in place, are at least its own ones, and how many are above them."""
    scores.sort(axis=1)
    ordered, wanted = torch.from_numpy(scores), torch.from_numpy(np.ascontiguousarray(own))
    at_least, above = (scores.shape[1] - torch.searchsorted(ordered, wanted, right=r).numpy() for r in (False, True))
    return at_least, above


def _middle(lists: np.ndarray, at_least: np.ndarray, above: np.ndarray) -> np.ndarray:
    return np.where(lists >= 0, above + (at_least - above - 1) / 2, -0.5).astype(np.float32)
