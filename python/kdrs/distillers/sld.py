"""Soft labels of teacher and student, the output part of MKD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

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

ROWS = 4096
"""Queries whose labels are worked out at a time."""


class SLDConfig(Settings):
    top: int = Field(100, ge=1)
    """Items drawn from the teacher's pool for each query and epoch."""
    rest: int = Field(200, ge=0)
    """Items drawn outside the pool for each query and epoch."""
    pool: int = Field(500, ge=1)
    """Length of the teacher's list of unseen items."""
    draw_temperature: float = Field(10.0, gt=0)
    """T of the draw from the pool: weight of rank r is exp(-r / T), the flatter the higher."""
    teacher_share: float = Field(0.5, ge=0, le=1)
    """η: the teacher's part of the label; the rest is the student's, as it stood when the epoch began."""
    temperature: float = Field(1.0, gt=0)
    """τ of all softmaxes."""
    label: Literal["soft", "order"] = "soft"
    """``order``: no labels but the teacher's order of the pool's items, by ListMLE without background, which is what the
    public class of this name computes."""


class SLD(Distiller):
    """Soft label distillation, **a reconstruction**: the output layer's part of MKD (Zhu & Zhang, arXiv 2311.04549v1, 2023).

        L = -Σ_u Σ_{i∈J} y_i log softmax(s_J / τ)_i
        y = η softmax(t_J / τ) + (1 - η) softmax(s⁰_J / τ)

    Of the published method only this could be checked: soft labels are built from the predictions of both teacher and
    student. Here, for each distinct user of the batch, over J = items of the teacher's pool and items outside it:
    ``-Σ_i y_i log softmax(s_J / τ)_i`` with y = η softmax(t_J / τ) + (1 - η) softmax(s⁰_J / τ), s⁰ the student's scores when
    the epoch began. (Mixing in the current student at one temperature would only scale the gradient by η.)

    Draws follow the authors' public code; ``label = "order"`` is that code's own loss.
    """

    Config = SLDConfig
    config: SLDConfig
    purpose = "match soft labels that mix the teacher's predictions with the student's own (a reconstruction)"
    reference = (
        "Zhu & Zhang, From input to output: a multi-layer knowledge distillation framework, arXiv 2311.04549v1, 2023"
    )
    needs = "scores of any item"
    default_weight = 1e-3
    splits = True

    def __init__(self, config: SLDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        self.teacher = only(teachers)
        if config.label == "soft":
            self.teacher.check_scores()
        width = min(config.pool, task.n_items)
        self.teacher.check_lists(width)
        self.weights = sampling.falling_weights(width, config.draw_temperature, config.top, "draw_temperature")
        self._ids: Tensor | None = None
        self._labels: Tensor | None = None
        self.confidence = self.teacher.confidence()
        if not self.outlined:
            self.pool = np.ascontiguousarray(self.teacher.topk(width).items)  # [Q, W]
            self._owners = owners_of(task, np.arange(task.n_queries))

    def draw(self, epoch: Epoch) -> Tensor:
        config = self.config
        top = sampling.weighted(self.pool, self.weights, config.top, seed=self.stream(epoch, "top"), order="list")
        if config.label == "order":
            return to_device(top, self.task.device)
        rest = sampling.outside(
            self.task.seen, self.pool, config.rest, rows=self._owners, seed=self.stream(epoch, "rest")
        )
        return to_device(np.concatenate([top, rest], axis=1), self.task.device)

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        self._ids = samples
        if self.config.label == "soft":
            rows = torch.arange(self.task.n_queries, device=self.task.device)
            parts = [self._label(part, samples[part], student) for part in rows.split(ROWS)]
            self._labels = torch.cat(parts)  # [Q, J]

    def _label(self, rows: Tensor, ids: Tensor, student: Teacher) -> Tensor:
        asked, eta = self.task.queries(rows), self.config.teacher_share
        label = eta * self._softmax(self.teacher.view(asked), ids)
        return label + (1 - eta) * self._softmax(student.view(asked), ids) if eta < 1 else label

    def _softmax(self, view: View, ids: Tensor) -> Tensor:
        return losses.masked_log_softmax(view.scores(ids.clamp(min=0)), ids >= 0, self.config.temperature).exp()

    def loss(self, student: View, batch: Batch) -> Tensor:
        assert self._ids is not None
        users = batch.unique_queries
        ids = self._ids[users.ids]  # [E, J]
        scores, mask = student.pairs(users.first.unsqueeze(1), ids.clamp(min=0)), ids >= 0
        weights = None if self.confidence is None else self.confidence.of(users.ids, ids)
        if self.config.label == "order":
            if weights is not None:
                return losses.weighted_relaxed_ranking(scores, scores.shape[1], weights, mask).sum()
            return losses.relaxed_ranking(scores, scores[:, :0], mask).sum()
        assert self._labels is not None
        labels = self._labels[users.ids]
        labels = labels if weights is None else labels * weights
        return losses.soft_cross_entropy(labels, scores, mask, self.config.temperature).sum()
