"""Rejuvenated cross-entropy for distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdrs.core import sampling
from kdrs.core.sampling import stream
from kdrs.distillers.base import Distiller, only
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher, best_items
from kdrs.training import losses
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View

ROWS = 1024
"""Queries whose lists are compared at a time."""


class RCEKDConfig(Settings):
    top: int = Field(50, ge=1)
    """Length of the teacher's and of the student's top list: K."""
    sampled: int = Field(50, ge=1)
    """Items drawn from the student's pool for each query: L."""
    pool: int = Field(200, ge=1)
    """Length of the student's list that they come from."""
    draw_temperature: float = Field(10.0, gt=0)
    """T of the draw: weight of the item at place j is exp(c_j / T), c_j the teacher's items that stand at j or below;
    the flatter the higher."""
    overlap_decay: float = Field(3.0, ge=0)
    """β: the two losses are mixed by γ = exp(-β · overlap)."""
    temperature: float = Field(1.0, gt=0)
    """τ of all softmaxes."""
    counted: Literal["missed", "all"] = "missed"
    """Which of the teacher's items c_j counts: those that the student's top list misses (paper), or all that are in the
    student's pool, at most 50 (code)."""
    overlap: Literal["top", "sampled"] = "top"
    """What γ reads: the share of the teacher's top items in the student's top list (paper), or among the drawn ones (code)."""
    first: Literal["student", "shared"] = "student"
    """Items of the first loss: all of the student's top list, a closed set (code), or those it shares with the teacher's."""
    keep_seen: bool = False
    """Whether items that the query has seen stay in all lists (code)."""
    unique_queries: bool = True
    """Count each query once a batch. Otherwise once a training row (code)."""
    refresh: int = Field(1, ge=1)
    """Epochs between two looks at the student's lists, each followed by new draws."""


class RCEKD(Distiller):
    """Rejuvenated cross-entropy (Zhu & Zhang, ICLR 2026).

        L     = Σ_u (1 - γ_u) CE(Q_S) + γ_u CE(A ∪ (Q_T less Q_S))
        CE(J) = -Σ_{i∈J} softmax(t_J / τ)_i log softmax(s_J / τ)_i
        γ_u   = exp(-β |Q_T ∩ Q_S| / K)

    Cross-entropy of the student's softmax against the teacher's over a set J bounds a ranking measure only if J is closed: if
    it holds whatever the student ranks above a member. With Q_T and Q_S the top K of teacher and student and CE(J) =
    -Σ softmax(t_J / τ) log softmax(s_J / τ): ``Σ_u (1 - γ) CE(Q_S) + γ CE(A ∪ (Q_T less Q_S))``, γ = exp(-β |Q_T ∩ Q_S| / K).
    A are items drawn from the student's pool without replacement, those that stand above many of the teacher's items first, so
    that the second set is nearly closed. The student's lists and all draws are those of an epoch's start.

    Defaults are the paper's where it speaks; not known to us are whether its first loss runs over Q_S or the shared items, and
    whether c_j includes j. ``counted = "all"``, ``overlap = "sampled"``, ``keep_seen = true``, ``unique_queries = false`` is
    the code.
    The weight is that of CiteULike, MF from MF; the authors' others run from 10 to 10000.
    """

    Config = RCEKDConfig
    config: RCEKDConfig
    purpose = "match the teacher's softmax on sets of items that bound the ranking measure"
    reference = (
        "Zhu & Zhang, Rejuvenating cross-entropy loss in knowledge distillation for recommender systems, ICLR 2026"
    )
    needs = "scores of any item"
    default_weight = 500.0

    def __init__(self, config: RCEKDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        self.teacher = only(teachers)
        self.teacher.check_scores()
        self.teacher.check_lists(config.top, keep_seen=config.keep_seen)
        self._sets: tuple[Tensor, Tensor] | None = None
        self.confidence = self.teacher.confidence()
        if self.outlined:
            return
        self.best = best_items(self.teacher, config.top, keep_seen=config.keep_seen)  # [Q, K]
        self.width = self.best.shape[1]
        # sets that outlive their epoch belong to the checkpoint
        kept = config.refresh > 1
        rows = task.n_queries if kept else 0
        self.register_buffer("kept_sets", torch.full((rows, 2 * self.width + config.sampled), -1), persistent=kept)
        self.register_buffer("kept_mix", torch.zeros(rows), persistent=kept)

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        if epoch.index % self.config.refresh == 0:
            sets, mix = self._find(student, self.stream(epoch, "sets"))
            if self.config.refresh > 1:
                self.get_buffer("kept_sets").copy_(sets)
                self.get_buffer("kept_mix").copy_(mix)
        else:
            sets, mix = self.get_buffer("kept_sets"), self.get_buffer("kept_mix")
        self._sets, self._mix = sets.split([self.width, sets.shape[1] - self.width], dim=1), mix
        rows = torch.arange(self.task.n_queries, device=self.task.device)
        labels = [self._labels_of(part) for part in rows.split(ROWS)]
        self._labels = tuple(torch.cat(parts) for parts in zip(*labels, strict=True))

    def _find(self, student: Teacher, seed: int) -> tuple[Tensor, Tensor]:
        """Both sets of every query side by side, int64 [Q, K + (L + K)] with -1 as padding, and γ, float32 [Q]."""
        sets, mix = [], []
        for part, ranked in student.topk_blocks(
            max(self.config.pool, self.config.top), keep_seen=self.config.keep_seen
        ):
            for start in range(part.start, part.stop, ROWS):
                stop = min(start + ROWS, part.stop)
                own = np.ascontiguousarray(ranked.items[start - part.start : stop - part.start])
                found = item_sets(self.best[start:stop], own, self.config, stream(seed, start))
                sets.append(found[0])
                mix.append(found[1])
        device = self.task.device
        return torch.from_numpy(np.concatenate(sets)).long().to(device), torch.from_numpy(np.concatenate(mix)).to(
            device
        )

    def _labels_of(self, rows: Tensor) -> list[Tensor]:
        """The teacher's softmax over both sets of query rows [b]."""
        assert self._sets is not None
        view = self.teacher.view(self.task.queries(rows))
        return [
            losses.masked_log_softmax(
                view.scores(ids[rows].clamp(min=0)), ids[rows] >= 0, self.config.temperature
            ).exp()
            for ids in self._sets
        ]

    def loss(self, student: View, batch: Batch) -> Tensor:
        assert self._sets is not None
        asked = batch.unique_queries
        rows, width = asked.ids, self.width
        ids = torch.cat([part[rows] for part in self._sets], dim=1)
        scores, mask = student.pairs(asked.first.unsqueeze(1), ids.clamp(min=0)), ids >= 0
        labels = [label[rows] for label in self._labels]
        parts = (slice(width), slice(width, None))
        if self.confidence is not None:
            weights = self.confidence.of(rows, ids)
            labels = [label * weights[:, part] for label, part in zip(labels, parts, strict=True)]
        first, second = (
            losses.soft_cross_entropy(label, scores[:, part], mask[:, part], self.config.temperature)
            for label, part in zip(labels, parts, strict=True)
        )
        mix = self._mix[rows]
        each = (1 - mix) * first + mix * second  # [E]
        if not self.config.unique_queries:
            places = torch.searchsorted(rows, batch.queries.rows)
            each = each * torch.bincount(places, minlength=rows.shape[0])
        return each.sum()


def item_sets(best: np.ndarray, own: np.ndarray, config: RCEKDConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sets of the two losses, int32 [b, K + L + K] with -1 as padding, and γ, float32 [b].

    ``best`` [b, K] is the teacher's list, ``own`` [b, max(K, pool)] the student's, int32 with -1 as padding.
    """
    k, pool = best.shape[1], own[:, : config.pool]
    places = places_of(best, own)  # [b, K]
    shared = places < k
    missed = (best >= 0) & ~shared
    weights = draw_weights(places, missed, pool, config)
    drawn = sampling.weighted(np.ascontiguousarray(pool), weights, config.sampled, seed=seed)  # [b, L]
    in_drawn = places_of(best, drawn) < drawn.shape[1]
    overlap = shared if config.overlap == "top" else in_drawn
    mix = np.exp(-config.overlap_decay * overlap.sum(axis=1) / k)
    first = np.where(shared, best, -1) if config.first == "shared" else own[:, :k]
    return np.concatenate([first, drawn, np.where(missed & ~in_drawn, best, -1)], axis=1), mix.astype(np.float32)


def places_of(items: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Where each item, [b, K], stands on its row's list, [b, W]; W where it doesn't, and for padding."""
    same = (items[:, :, None] == lists[:, None, :]) & (items >= 0)[:, :, None]
    return np.where(same.any(axis=2), same.argmax(axis=2), lists.shape[1])


def draw_weights(places: np.ndarray, missed: np.ndarray, pool: np.ndarray, config: RCEKDConfig) -> np.ndarray:
    """exp(c_j / T) for each place of the student's pool, up to a factor of the row: float64 [b, W]."""
    width = pool.shape[1]
    counts = counts_below(places, missed if config.counted == "missed" else places < width, width)
    if config.counted == "all":
        counts = np.minimum(counts, 50)
    weights = np.exp((counts - counts.max(axis=1, keepdims=True, initial=0)) / config.draw_temperature)
    return np.where(pool >= 0, weights, 0.0)


def counts_below(places: np.ndarray, counted: np.ndarray, width: int) -> np.ndarray:
    """c_j, int64 [b, W]: how many of the counted places are j or further back. Those past the list count for every j."""
    rows = places.shape[0]
    flat = np.arange(rows)[:, None] * (width + 1) + np.minimum(places, width)
    at = np.bincount(flat[counted], minlength=rows * (width + 1)).reshape(rows, width + 1)
    return at[:, ::-1].cumsum(axis=1)[:, ::-1][:, :width]
