"""Preference-preserving projectors, the intermediate part of MKD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrs import sampling
from kdrs.distillers._features import Projector, cosine_losses, entities
from kdrs.distillers.base import Distiller, distinct, only, seeded
from kdrs.sampling import stream
from kdrs.settings import Settings
from kdrs.tasks import Batch, Epoch, Task
from kdrs.teachers import Teacher
from kdrs.view import View


class PenaltyConfig(Settings):
    """Options of the penalty on projectors that change the student's preferences."""

    pairwise_weight: float = Field(0.1, ge=0)
    """α: of the penalty on the batch's triples."""
    listwise_weight: float = Field(1.0, ge=0)
    """β: of the penalty on lists."""
    pairwise: Literal["relu", "logistic"] = "relu"
    """``relu``: Σ max(0, -Δ_post Δ_pre), the first revision's. ``logistic``: Σ -log σ(Δ_post Δ_pre), PCKD's."""
    listed: int = Field(20, ge=1)
    """Items drawn for each query and epoch for the list: Q."""
    list_temperature: float = Field(5.0, gt=0)
    """τ of both softmaxes over the list."""
    list_pool: int = Field(500, ge=1)
    """Length of the guide's list of unseen items that they come from."""
    list_sharpness: float = Field(10.0, gt=0)
    """T of the draw: weight of rank r is exp(-r / T)."""
    guide: Literal["teacher", "student"] = "teacher"
    """Whose ranking the items are drawn from: the teacher's (MKD), or the student's own as it stands (PCKD)."""
    refresh: int = Field(1, ge=1)
    """Epochs between two rankings by a student guide."""


class CPDConfig(PenaltyConfig):
    experts: int = Field(5, ge=1)
    """Networks whose mean is the projector."""


class CPD(Distiller):
    """Feature distillation whose projectors keep the student's order: the intermediate layer's part of MKD (Zhu & Zhang, arXiv
    2311.04549v1, 2023), which version 2 of that paper, PCKD (TKDE 37(4), 2025), is about.

    ``Σ_e 1 - cos(h_T(e), F(h_S(e)))`` over the batch's distinct users, and items by half for each of their roles, plus a
    penalty that trains the projectors alone (the student's representations are constants in it). With pre-scores
    a_ui = h_u · h_i and post-scores b_ui = F(h_u) · F(h_i): α Σ max(0, -(b_ui - b_uj)(a_ui - a_uj)) over the batch's triples,
    and β Σ_u CE(softmax(a/τ), softmax(b/τ)) over Q items drawn anew each epoch; both over batch rows, so that users repeat.
    F is the mean of E networks Linear(d_S, (d_S + d_T) // 2)-ReLU-Linear(., d_T), of length 1.

    The text of version 1 was not available: this follows the authors' first public revision. Differs from it: lists are drawn
    and padded for all queries at once; lengths are guarded by 1e-12. PCKD's penalty is ``pairwise = "logistic"``,
    ``guide = "student"``; its other projector, DE's experts, and its hybrid draw of pairs are not built.
    """

    Config = CPDConfig
    config: CPDConfig
    purpose = "rebuild the teacher's representations by projectors that keep the student's own order of items"
    reference = (
        "Zhu & Zhang, From input to output: a multi-layer knowledge distillation framework, arXiv 2311.04549v1, 2023"
    )
    needs = "user and item representations"
    default_weight = 0.5

    def __init__(self, config: CPDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        self.teacher = only(teachers)
        target_dim = self.teacher.dim
        with seeded(stream(seed, "init")):
            hidden = max((student_dim + target_dim) // 2, 1)
            self.users, self.items = (Projector(student_dim, target_dim, hidden, config.experts) for _ in range(2))
        self.penalty = Penalty(config, self.teacher, task)
        self.to(task.device)

    def draw(self, epoch: Epoch) -> Any:
        return self.penalty.draw(self.stream(epoch, "lists"))

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        self.penalty.start(epoch, samples, student, self.stream(epoch, "lists"))

    def loss(self, student: View, batch: Batch) -> Tensor:
        teacher = self.teacher.view(self.task.queries(batch.unique_queries.ids))
        loss = torch.zeros((), device=batch.positives.device)
        for own in entities(student, teacher, batch):
            project = self.users if own.kind == "users" else self.items
            loss = loss + (own.weights * cosine_losses(own.teacher, project(own.student))).sum()
        return loss + self.penalty(student, batch, self.users, self.items)


Project = Callable[[Tensor], Tensor]


class Penalty(nn.Module):
    """What projectors pay for changing the order of the student's own scores. Their outputs are taken at length 1."""

    def __init__(self, config: PenaltyConfig, teacher: Teacher, task: Task):
        super().__init__()
        self.config, self.task = config, task
        width = min(config.list_pool, task.n_items)
        self._weights = np.exp(-np.arange(1, width + 1) / config.list_sharpness)
        self._pool = np.ascontiguousarray(teacher.topk(config.list_pool).items) if self._taught else None
        # a list that outlives its epoch belongs to the checkpoint
        kept = not self._taught and config.refresh > 1
        shape = (task.n_queries, width if kept else 0)
        self.register_buffer("ranked", torch.full(shape, -1, dtype=torch.int32), persistent=kept)
        self._lists: Tensor | None = None

    @property
    def _taught(self) -> bool:
        return self.config.guide == "teacher"

    def draw(self, seed: int) -> Tensor | None:
        return None if self._pool is None or not self.config.listwise_weight else self._sample(self._pool, seed)

    def start(self, epoch: Epoch, samples: Tensor | None, student: Teacher, seed: int) -> None:
        if self.config.listwise_weight and samples is None:
            samples = self._sample(self._ranking(epoch, student), seed)
        self._lists = samples

    def _ranking(self, epoch: Epoch, student: Teacher) -> np.ndarray:
        if self.config.refresh == 1:
            return np.ascontiguousarray(student.topk(self.config.list_pool).items)
        ranked: Tensor = self.ranked  # type: ignore[assignment]
        if epoch.index % self.config.refresh == 0:
            ranked.copy_(torch.from_numpy(np.ascontiguousarray(student.topk(self.config.list_pool).items)))
        return ranked.cpu().numpy()

    def _sample(self, pool: np.ndarray, seed: int) -> Tensor:
        weights = self._weights[: pool.shape[1]]
        return (
            torch.from_numpy(sampling.weighted(pool, weights, self.config.listed, seed=seed))
            .long()
            .to(self.task.device)
        )

    def forward(self, student: View, batch: Batch, project_users: Project, project_items: Project) -> Tensor:
        config, total = self.config, torch.zeros((), device=batch.positives.device)
        if not config.pairwise_weight and not config.listwise_weight:
            return total
        asked = batch.unique_queries
        rows, positives, negatives = batch.triples
        place_of_row = torch.searchsorted(asked.ids, batch.queries.rows[rows])  # [B]
        lists = None if self._lists is None or not config.listwise_weight else self._lists[asked.ids]  # [E, Q]
        triples = torch.cat([positives.unsqueeze(1), negatives], dim=1)  # [B, 1 + N]
        wanted = triples.reshape(-1) if lists is None else torch.cat([triples.reshape(-1), lists.reshape(-1)])
        items = distinct(wanted, self.task.n_items)
        before = student.queries[asked.first].detach(), student.items(items).detach()
        after = (
            F.normalize(project_users(before[0]), dim=-1, eps=1e-12),
            F.normalize(project_items(before[1]), dim=-1, eps=1e-12),
        )
        if config.pairwise_weight:
            places = torch.searchsorted(items, triples)
            pre, post = ((u[place_of_row[rows]].unsqueeze(1) * i[places]).sum(-1) for u, i in (before, after))
            agreement = (post[:, :1] - post[:, 1:]) * (pre[:, :1] - pre[:, 1:])
            losses = torch.relu(-agreement) if config.pairwise == "relu" else F.softplus(-agreement)
            total = total + config.pairwise_weight * losses.sum()
        if lists is not None:
            places = torch.searchsorted(items, lists).clamp_(max=items.shape[0] - 1)
            pre, post = (torch.bmm(i[places], u.unsqueeze(-1)).squeeze(-1) for u, i in (before, after))  # [E, Q]
            times = torch.bincount(place_of_row, minlength=asked.ids.shape[0])
            losses = list_losses(pre, post, config.list_temperature, lists >= 0)
            total = total + config.listwise_weight * (times * losses).sum()
        return total


def list_losses(label: Tensor, scores: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """CE(softmax(label / τ), softmax(scores / τ)) of each list, [B, K] -> [B]; lists without entries have 0."""
    label, scores = label / temperature, scores / temperature
    if mask is not None:
        floor = torch.finfo(label.dtype).min / 2
        label, scores = label.masked_fill(~mask, floor), scores.masked_fill(~mask, floor)
    products = torch.softmax(label, dim=-1) * torch.log_softmax(scores, dim=-1)
    if mask is not None:
        products = products.masked_fill(~mask, 0.0)
    return -products.sum(-1)
