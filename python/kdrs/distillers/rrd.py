"""Relaxed ranking distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdrs.core import sampling
from kdrs.distillers.base import Distiller, only
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher
from kdrs.training import losses
from kdrs.training.queries import Batch, Epoch, Task, Unique
from kdrs.training.view import View


class RRDConfig(Settings):
    interesting: int = Field(40, ge=1)
    """Items drawn from the teacher's pool for each query and epoch: K."""
    uninteresting: int = Field(40, ge=0)
    """Items drawn outside the pool for each query and epoch: L."""
    temperature: float = Field(10.0, gt=0)
    """T of the draw over the pool's ranks: weight of rank r is exp(-r / T), the flatter the higher."""
    pool: int = Field(500, ge=1)
    """Length of the teacher's list of unseen items that the interesting ones come from."""
    choice: Literal["sampled", "topk"] = "sampled"
    """``topk`` takes the pool's first K items instead of drawing; the authors' later note prefers it."""
    clip: float | None = Field(None, gt=0)
    """Greatest score of the student that counts: one above it counts as this and gets no gradient. 80 in the KDs benchmark,
    which exponentiates raw scores; log-sum-exp needs none."""


class RRD(Distiller):
    """Relaxed ranking distillation (Kang, Hwang, Kweon & Yu, "DE-RRD", CIKM 2020, section 3.2).

        L = Σ_u Σ_{k=1..K} [log(Σ_{m=k..K} exp s(u, π_m) + Σ_{j∈N_u} exp s(u, j)) - s(u, π_k)]
        π: interesting items of u, the teacher's best first;  N_u: uninteresting ones

    For each user of the batch, once: the student's likelihood of ranking K interesting items in the teacher's order, all
    above L uninteresting ones whose inner order is free. Summed over users.

    Both lists are redrawn each epoch. Interesting items come from the teacher's best ``pool`` unseen items, without
    replacement by successive draws with weights exp(-rank / T), then sorted by rank; uninteresting ones uniformly from what
    is neither seen in training nor in the pool. Short pools shorten the lists. Where the teacher weighs its lists' entries
    (`Teacher.confidence`), each interesting item's term of the sum is multiplied by its weight.

    The default weight is thirty times the authors' 0.001: better on validation on CiteULike and MovieLens 100K.

    Differs from the authors' code: scores go through log-sum-exp, where the code exponentiates them raw (and the paper's
    formula counts the last interesting item twice; code and this class do not); no dense users x items mask is built.
    """

    Config = RRDConfig
    config: RRDConfig
    purpose = "keep the order of the teacher's best items, above everything else"
    reference = "Kang, Hwang, Kweon & Yu, DE-RRD: a knowledge distillation framework for recommender system, CIKM 2020"
    needs = "a ranking of at least `pool` items a query"
    default_weight = 0.03
    published_weight = 1e-3
    splits = True

    def __init__(self, config: RRDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        teacher, width = only(teachers), min(config.pool, task.n_items)
        teacher.check_lists(width)
        self.weights = np.ones(width)
        if config.choice != "topk":
            self.weights = sampling.falling_weights(width, config.temperature, config.interesting, "temperature")
        self._lists: Lists | None = None
        if not self.outlined:
            self.pool = np.ascontiguousarray(teacher.topk(width).items)  # [Q, W]
        self.confidence = teacher.confidence()

    def draw(self, epoch: Epoch) -> tuple[Tensor, ...]:
        config = self.config
        if config.choice == "topk":
            interesting = self.pool[:, : config.interesting]
        else:
            interesting = sampling.weighted(
                self.pool, self.weights, config.interesting, seed=self.stream(epoch, "interesting"), order="list"
            )
        uninteresting = sampling.outside(
            self.task.seen,
            self.pool,
            config.uninteresting,
            rows=self.task.owners,
            seed=self.stream(epoch, "uninteresting"),
        )
        device = self.task.device
        return torch.from_numpy(np.ascontiguousarray(interesting)).to(device), torch.from_numpy(uninteresting).to(
            device
        )

    def on_epoch_start(self, epoch: Epoch, samples: tuple[Tensor, ...], student: Teacher) -> None:
        self._lists = Lists(samples[0], samples[1], self.config.clip)

    def loss(self, student: View, batch: Batch) -> Tensor:
        assert self._lists is not None
        users = batch.unique_queries
        return self.ranked(student, users, self._lists)

    def ranked(self, student: View, users: Unique, lists: Lists) -> Tensor:
        """The loss of these queries' lists, with the teacher's weights of the entries where it has some."""
        ids, mask = lists.rows(users.ids)
        weights = None if self.confidence is None else self.confidence.of(users.ids, ids[:, : lists.width])
        return lists.loss(student.pairs(users.first.unsqueeze(1), ids), mask, weights)


class Lists:
    """An ordered list and its background for each query: integers [Q, K] and [Q, L], -1 where there is no entry. Kept as int32
    side by side. ``clip`` is the greatest score that counts."""

    def __init__(self, ordered: Tensor, background: Tensor, clip: float | None = None):
        self.width, self.clip = ordered.shape[1], clip
        self._ids = torch.cat([ordered.int(), background.int()], dim=1)
        self.complete = not bool((self._ids < 0).any())
        """Whether no entry is missing."""

    @property
    def ordered(self) -> Tensor:
        """int32 [Q, K]"""
        return self._ids[:, : self.width]

    @property
    def background(self) -> Tensor:
        """int32 [Q, L]"""
        return self._ids[:, self.width :]

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Both lists of the given queries side by side, int64 [B, K + L], and which entries exist, None if all do."""
        ids = self._ids.index_select(0, rows).long()
        if self.complete:
            return ids, None
        mask = ids >= 0
        return ids.clamp_(min=0), mask

    def loss(self, scores: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """The relaxed ranking losses of such scores [B, K + L], summed; ``weights`` [B, K] multiply the ordered ones' terms."""
        if self.clip is not None:
            scores = scores.clamp(max=self.clip)
        if weights is not None:
            return losses.weighted_relaxed_ranking(scores, self.width, weights, mask).sum()
        return losses.relaxed_ranking_of(scores, self.width, mask).sum()
