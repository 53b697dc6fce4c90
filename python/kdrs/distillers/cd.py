"""Collaborative distillation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdrs.core import sampling
from kdrs.core.ranking import Ranking
from kdrs.core.sampling import stream
from kdrs.distillers.base import Distiller, only
from kdrs.errors import ConfigError
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher, owners_of
from kdrs.training import losses
from kdrs.training.devices import to_device
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View

HELD_BYTES = 1 << 28
"""A fixed guide's lists are kept from epoch to epoch up to this size."""


class CDConfig(Settings):
    guide: Literal["student", "teacher"] = "student"
    """Whose ranking the items are drawn from: the student's own, renewed each epoch (CD-SG), or the teacher's (CD-TG)."""
    law: Literal["linear", "exponential", "uniform"] = "linear"
    """Probability of an item of the pool: falling linearly over it (the better of two uniform draws); ∝ exp(-γ π) at the rank π
    as a share of all unseen items; or equal for all unseen items, whatever guide and pool (CD-Base)."""
    sharpness: float = Field(1.0, gt=0)
    """γ of the exponential law."""
    items: int = Field(50, ge=1)
    """Items drawn for each query and epoch, all different."""
    pool: int = Field(3000, ge=1)
    """Length of the guide's list of unseen items that they come from."""
    temperature: float = Field(2.0, gt=0)
    """T1: the teacher's logit is (t + T2) / T1."""
    shift: float = 0.0
    """T2."""


class CD(Distiller):
    """Collaborative distillation (Lee, Choi, Lee & Shim, ICDM 2019).

        L    = -Σ_u Σ_{i∈D_u} [y_ui log σ(s_ui) + (1 - y_ui) log(1 - σ(s_ui))]
        y_ui = σ((t_ui + T2) / T1)

    For each user of the batch, once: cross-entropy of the student's sigmoid(s) against the teacher's soft label
    sigmoid((t + T2) / T1), on unseen items drawn by their rank, without replacement, redrawn each epoch. Summed over items
    and users; items on lists whose entries the teacher weighs (`Teacher.confidence`) count by their weights.

    The authors' code is not public. Defaults follow the re-implementations' values, except: items are distinct (their set
    of tensors removes no repeats), users are unique in a batch (they repeat them), and the weights are the exact linear
    tournament over the pool (theirs differ from it by 5 % from first rank to last). The paper also drops the negative part
    of the base loss; here the base loss is the model's own.
    """

    Config = CDConfig
    config: CDConfig
    purpose = "match the teacher's soft scores on unseen items near the top of the list"
    reference = "Lee, Choi, Lee & Shim, Collaborative distillation for top-N recommendation, ICDM 2019"
    needs = "scores of any item"
    default_weight = 0.5
    splits = True

    def __init__(self, config: CDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        self.teacher = only(teachers)
        if config.items > config.pool and config.law != "uniform":
            raise ConfigError(f"items is {config.items}, drawn from a pool of {config.pool}", "make the pool longer")
        self.teacher.check_scores()
        self._drawn: Tensor | None = None
        fixed = config.guide == "teacher" and config.law != "uniform"
        held = fixed and 8 * task.n_queries * min(config.pool, task.n_items) <= HELD_BYTES
        if fixed:
            self.teacher.check_lists(config.pool)
        self._pool: list[tuple[slice, Ranking]] | None = None  # otherwise ranked again each epoch
        if held and not self.outlined:
            self._pool = list(self.teacher.topk_blocks(config.pool))
        self.confidence = self.teacher.confidence()

    def draw(self, epoch: Epoch) -> Tensor | None:
        if self.config.law == "uniform":
            nothing = np.full((self.task.n_queries, 1), -1, np.int32)
            seed = self.stream(epoch, "items")
            drawn = sampling.outside(self.task.seen, nothing, self.config.items, rows=self.task.owners, seed=seed)
            return to_device(drawn, self.task.device)
        if self.config.guide == "student":
            return None
        return self._sample(self.teacher.topk_blocks(self.config.pool) if self._pool is None else self._pool, epoch)

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        self._drawn = self._sample(student.topk_blocks(self.config.pool), epoch) if samples is None else samples
        self._complete = bool((self._drawn >= 0).all())

    def loss(self, student: View, batch: Batch) -> Tensor:
        assert self._drawn is not None
        users = batch.unique_queries
        drawn = self._drawn[users.ids]  # [E, N]
        ids = drawn.clamp(min=0)
        logits = self.teacher.view(self.task.queries(users.ids)).scores(ids)
        targets = torch.sigmoid((logits + self.config.shift) / self.config.temperature)
        scores = student.pairs(users.first.unsqueeze(1), ids)
        weights = None if self.confidence is None else self.confidence.of(users.ids, ids)
        return losses.soft_pointwise(scores, targets, None if self._complete else drawn >= 0, weights)

    def _sample(self, guide: Iterable[tuple[slice, Ranking]], epoch: Epoch) -> Tensor:
        """int64 [Q, N]. The guide's lists are used a block at a time: a thousand times as long as what is drawn."""
        seed, drawn = self.stream(epoch, "items"), []
        for part, ranked in guide:
            lists = np.ascontiguousarray(ranked.items)  # [b, W]
            owners = owners_of(self.task, np.arange(part.start, part.start + len(lists)))
            unseen = self.task.n_items - self.task.seen.row_degrees[owners]
            weights = rank_weights((lists >= 0).sum(axis=1), lists.shape[1], unseen, self.config)
            own = stream(seed, part.start) if part.start else seed
            drawn.append(sampling.weighted(lists, weights, self.config.items, seed=own))
        return to_device(np.concatenate(drawn), self.task.device)


def rank_weights(lengths: np.ndarray, width: int, unseen: np.ndarray, config: CDConfig) -> np.ndarray:
    """Weights of ranks 1 to ``width`` for lists of the given lengths, out of so many ``unseen`` items [Q] each.

    float64 [Q, W], or [W] where the law is linear and all lists are full.

    With N entries the linear law gives rank r the weight 2(N - r) + 1: exactly the better of two uniform draws.
    """
    alike = config.law == "linear" and bool((lengths == width).all())
    n = np.array([width]) if alike else lengths
    ranks = np.arange(1, width + 1)[None, :]
    if config.law == "linear":
        weights = 2.0 * (n[:, None] - ranks) + 1.0
    else:  # from the first on: its weight is 1 however sharp the law is
        weights = np.exp(config.sharpness * (1 - ranks) / np.maximum(unseen[:, None], 1))
    weights = np.where(ranks <= n[:, None], weights, 0.0)
    return weights[0] if alike else weights
