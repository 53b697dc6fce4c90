"""Score matching: the plain baseline of distillation."""

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
from kdrs.teachers.base import Teacher, owners_of
from kdrs.training import losses
from kdrs.training.devices import to_device
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View


class ScoreMatchingConfig(Settings):
    measure: Literal["kl", "mse"] = "kl"
    """``kl``: divergence of the two softmaxes over the row's items, times the squared temperature. ``mse``: mean squared
    difference of the scores themselves."""
    temperature: float = Field(1.0, gt=0)
    """Of both softmaxes; ``mse`` has none."""
    sampled: int = Field(50, ge=0)
    """Unseen items drawn for each query and epoch, uniformly and all different, beside the row's own."""


class ScoreMatching(Distiller):
    """Score matching, after Hinton, Vinyals & Dean (2015): the student's scores follow the teacher's on each batch row's
    positive, its negatives and items drawn for its query. ``T² · KL(softmax(t / T) ‖ softmax(s / T))``, which a shift of a
    row's scores leaves as it is, or the mean over the row of (t - s)². Summed over the batch's rows.

        L = T² Σ_rows Σ_{i∈J} p_i log(p_i / q_i)      p = softmax(t_J / T), q = softmax(s_J / T)
        L = Σ_rows (1/|J|) Σ_{i∈J} (t_i - s_i)²        with measure = "mse"
        J: the row's positive, its negatives, and items drawn for its query

    A baseline, not a published recommender's method: no authors' code to differ from.
    """

    Config = ScoreMatchingConfig
    config: ScoreMatchingConfig
    purpose = "match the teacher's scores on the batch's items and sampled ones: the plain baseline"
    reference = "Hinton, Vinyals & Dean, Distilling the knowledge in a neural network, arXiv 1503.02531, 2015"
    needs = "scores of any item"
    default_weight = 1.0
    splits = True

    def __init__(
        self, config: ScoreMatchingConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0
    ):
        super().__init__(config, teachers, task, student_dim, seed)
        self.teacher = only(teachers)
        self.teacher.check_scores()
        self._drawn: Tensor | None = None

    def draw(self, epoch: Epoch) -> Tensor:
        task = self.task
        nothing = np.empty((task.n_queries, 0), np.int32)
        rows = owners_of(task, np.arange(task.n_queries))
        drawn = sampling.outside(task.seen, nothing, self.config.sampled, rows=rows, seed=self.stream(epoch, "items"))
        return to_device(drawn, task.device)

    def on_epoch_start(self, epoch: Epoch, samples: Tensor, student: Teacher) -> None:
        self._drawn = samples

    def loss(self, student: View, batch: Batch) -> Tensor:
        assert self._drawn is not None
        rows, positives, negatives = batch.triples
        drawn = self._drawn[batch.queries.rows[rows]]  # [B, S]
        ids = torch.cat([positives.unsqueeze(1), negatives, drawn], dim=1)
        mask, ids = ids >= 0, ids.clamp(min=0)
        target, scores = (view.pairs(rows.unsqueeze(1), ids) for view in (self.teacher.view(batch.queries), student))
        if self.config.measure == "mse":
            return ((target - scores).square() * mask / mask.sum(1, keepdim=True)).sum()
        t = self.config.temperature
        goal, own = (losses.masked_log_softmax(values, mask, t) for values in (target, scores))
        return t * t * (goal.exp() * (goal - own)).masked_fill(~mask, 0.0).sum()
