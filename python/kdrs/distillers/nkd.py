"""Neighbourhood knowledge distillation, the input part of MKD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdrs.core import ranking
from kdrs.core.sampling import stream
from kdrs.distillers._features import Kind, Projector, Side, all_vectors, cosine_losses, sides, vectors
from kdrs.distillers.base import Distiller, noise_on, only, seeded
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View

EDGE_KEEP = 0.7
"""Of the neighbourhood graph's edges, and half the range of its share (``mixing = "graph"``)."""


class NKDConfig(Settings):
    mixing: Literal["soft", "soft_v0", "hard", "mix", "randmix", "batchmix", "layermix", "hardmix", "graph"] = "soft"
    """How an entity's representation is mixed with a neighbour's; r is its own share. ``soft``: r ~ U(0, 2a) for each
    element. ``soft_v0``: 1 - r ~ U(0, a), the first revision's (see ``hidden``). ``hard``: each element its own with
    probability a. ``mix``: r = a. ``randmix``: one r ~ U(0, 2a) a call. ``batchmix``, ``layermix``: r ~ U(0, 1) an entity, a
    dimension. ``hardmix``: all or nothing a call, with probability a. ``graph``: with the mean of all neighbours, some edges
    dropped (GraphD)."""
    own_share: float = Field(0.5, ge=0, le=1)
    """a. The authors tuned 0.3 (MF) and 0.7 (LightGCN) on Foursquare."""
    neighbours: int = Field(5, ge=1)
    """Nearest entities in the teacher's space that one is drawn from: K."""
    components: int = Field(150, ge=1)
    """Principal components that the neighbours are looked for in; larger spaces are reduced to them."""
    experts: int = Field(5, ge=1)
    """Networks whose mean is the projector."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout before either layer of the projector; the first revision has none."""
    hidden: Literal["half", "mean"] = "half"
    """Width of the projector's hidden layer. ``half``: ⌊d_T / 2⌋. ``mean``: ⌊(d_S + d_T) / 2⌋, the first revision's."""


class NKD(Distiller):
    """Neighbourhood knowledge distillation: the input layer's part of MKD (Zhu & Zhang, arXiv 2311.04549v1, 2023).

        L   = Σ_e w_e [1 - cos(t_e, F(s_e))]    w_e: 1 for users, ½ for each role of an item
        s_e = r ∘ h_S(e) + (1 - r) ∘ h_S(n)     r, r' ~ U(0, 2a), each element for itself
        t_e = r' ∘ h_T(e) + (1 - r') ∘ h_T(n)   n: one of e's K nearest in the teacher's space

    ``Σ_e 1 - cos(t_e, F(s_e))`` over the batch's distinct users, and items by half for each of their roles: s_e and t_e mix
    an entity's representation with that of one of its K nearest neighbours in the teacher's space, the same neighbour for
    both, with shares drawn for each by itself. F is the mean of E networks Linear(d_S, d_T // 2)-ReLU-Linear(., d_T) with
    dropout, one for users and one for items. Neighbours are exact, Euclidean, after a principal component analysis of wide
    spaces, and found once. Gradients reach the student's representations of entity and neighbour.

    The paper's text was not available: this follows the head of the authors' public code. Its first revision is ``mixing =
    "soft_v0"``, ``hidden = "mean"`` and ``dropout = 0`` together. Differs from the code: an entity is left out of its own
    neighbours by its id, where the code drops the first hit; an item that is positive and negative in one batch is drawn for
    once, where the code draws for each role; lengths are guarded by 1e-12.
    """

    Config = NKDConfig
    config: NKDConfig
    purpose = "rebuild the teacher's representations, mixed with those of neighbours"
    reference = (
        "Zhu & Zhang, From input to output: a multi-layer knowledge distillation framework, arXiv 2311.04549v1, 2023"
    )
    needs = "user and item representations"
    default_weight = 0.5

    def __init__(self, config: NKDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        self.teacher = only(teachers)
        target_dim, kinds = self.teacher.dim, ("users", "items")
        width = (target_dim if config.hidden == "half" else student_dim + target_dim) // 2
        with seeded(stream(seed, "init")):
            made = [Projector(student_dim, target_dim, max(width, 1), config.experts, config.dropout) for _ in kinds]
        self.users, self.items = made
        self.to(task.device)
        self._noise = noise_on(task.device)
        if self.outlined:
            return
        both: tuple[Kind, Kind] = ("users", "items")
        self._neighbours: dict[Kind, Tensor] = {
            kind: nearest(all_vectors(self.teacher, task, kind), config) for kind in both if kind in self.teacher.sides
        }

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        self._noise.manual_seed(self.stream(epoch, "noise"))

    def loss(self, student: View, batch: Batch) -> Tensor:
        teacher = self.teacher.view(self.task.queries(batch.unique_queries.ids))
        losses = [self._loss(student, teacher, own) for own in sides(student, teacher, batch, self.teacher.sides)]
        return losses[0] if len(losses) == 1 else losses[0] + losses[1]

    def _loss(self, student: View, teacher: View, of: Side) -> Tensor:
        neighbours, weights = self._drawn(self._neighbours[of.kind][of.ids])
        mixed = []
        for view, own in ((student, of.student), (teacher, of.teacher)):
            other = vectors(view, self.task, of.kind, neighbours)
            other = other.squeeze(1) if weights is None else (other * weights.unsqueeze(-1)).sum(1)
            share = self._share(own)
            mixed.append(share * own + (1 - share) * other)
        projector = self.users if of.kind == "users" else self.items
        return (of.weights * cosine_losses(mixed[1], projector(mixed[0], self._noise))).sum()

    def _drawn(self, near: Tensor) -> tuple[Tensor, Tensor | None]:
        """Neighbours of each entity, [X, K], cut to one at random, or all with their weights."""
        count, near_or_first = (near >= 0).sum(1, keepdim=True), near.clamp(min=0)
        if self.config.mixing == "graph":
            kept = (self._uniform(near.shape) < EDGE_KEEP) & (near >= 0)
            return near_or_first, kept / (EDGE_KEEP * count.clamp(min=1))
        place = (self._uniform((near.shape[0], 1)) * count).long().clamp_(max=near.shape[1] - 1)
        return near_or_first.gather(1, place), None

    def _share(self, own: Tensor) -> Tensor:
        """The entity's own share r, of a shape that spreads over [X, D]."""
        a, mixing, (n, dim) = self.config.own_share, self.config.mixing, own.shape
        if mixing == "mix":
            return own.new_full((), a)
        if mixing in ("soft", "soft_v0", "hard"):
            uniform = self._uniform((n, dim))
            return (
                2 * a * uniform
                if mixing == "soft"
                else 1 - a * uniform
                if mixing == "soft_v0"
                else (uniform < a).float()
            )
        if mixing in ("batchmix", "layermix"):
            return self._uniform((n, 1) if mixing == "batchmix" else (1, dim))
        uniform = self._uniform(())
        if mixing == "hardmix":
            return (uniform < a).float()
        return 2 * (EDGE_KEEP if mixing == "graph" else a) * uniform

    def _uniform(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        return torch.rand(shape, generator=self._noise, device=self._noise.device)


def nearest(table: Tensor, config: NKDConfig) -> Tensor:
    """int64 [N, K]: the other rows nearest to each of ``table`` [N, D] among its principal components; -1 where too few.

    A single entity is its own neighbour.
    """
    n, dim = table.shape
    count = min(config.neighbours, n - 1)
    if not count:
        return torch.zeros(n, 1, dtype=torch.int64, device=table.device)
    reduced = table
    if min(n, dim) > config.components:
        centred = (table - table.mean(dim=0)).double()
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -config.components :]  # ascending eigenvalues
        reduced = (centred @ axes).float()
    found = ranking.neighbours(np.ascontiguousarray(reduced.cpu().numpy()), count).items
    return torch.from_numpy(found).long().to(table.device)
