"""Hierarchical topology distillation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdrs.core.sampling import stream
from kdrs.distillers._experts import NO_EFFECT, Experts, temperature
from kdrs.distillers._hidden import Entities, Vectors
from kdrs.distillers.base import Distiller, noise_on, only, seeded
from kdrs.distillers.ftd import cosine_gap
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View


class HTDConfig(Settings):
    groups: int = Field(30, ge=1)
    """Groups of users, and as many of items: G."""
    gamma: float = Field(0.5, ge=0, le=1)
    """γ: share of topology against group assignment in the term. KDs' re-implementation takes 0.9."""
    pairs: Literal["positive", "all"] = "positive"
    """Pairs of a group that count: those whose cosine in the teacher's space is positive (code, which masks by
    multiplication, and so the published log), or all of them (as the paper is reported)."""
    group_level: Literal["second", "first", "first-detached"] = "second"
    """``second``: cosines between groups and entities. ``first``: between groups, with gradient through the student's
    prototypes. ``first-detached``: the same as the code has it, without gradient, so that it only adds to the printed loss."""
    final_temperature: float = Field(1e-10, gt=0, le=1)
    """τ of the group assignment falls from 1 to this over the planned epochs."""
    schedule_epochs: int = Field(100, ge=1)
    """Epochs that the fall is spread over."""
    schedule_lag: Literal[0, 1] = 1
    """Epochs by which the fall lags behind: 1 in the authors' code, 0 in KDs' re-implementation."""
    cutoff: float = Field(NO_EFFECT, gt=0)
    """Groups whose logit is this far below the best take no part in the rebuilding: their share is at most exp(-cutoff)."""


class HTD(Distiller):
    """Hierarchical topology distillation (Kang, Hwang, Kweon & Yu, "Topology distillation for recommender system", KDD 2021).

        L       = γ (L_ent + L_grp) + (1 - γ) L_GA
        L_ent   = Σ_{a,b of one group, cos_T > 0} (cos(h_T(a), h_T(b)) - cos(h_S(a), h_S(b)))²
        L_grp   = Σ_{g,e} (cos(P^T_g, h_T(e)) - cos(P^S_g, h_S(e)))²
        L_GA    = Σ_e ‖h_T(e) - Σ_g z_eg f_g(h_S(e))‖²

    Entities of the batch, unique users and unique items, belong to groups: ``argmax softmax(v(h_T))``, users' and items'
    groups apart. ``L = γ (entity level + group level) + (1 - γ) L_GA``:

    - entity level: ``Σ (cos_T(a, b) - cos_S(a, b))²`` over ordered pairs of one group (``pairs``);
    - group level: ``Σ_{g, e} (cos(P^T_g, h^T_e) - cos(P^S_g, h^S_e))²`` over present groups and all entities, a prototype
      P_g being the mean of the group's members in the batch, without gradient (``group_level``);
    - assignment: ``L_GA = Σ_e ‖h^T_e - Σ_g z_eg f_g(h^S_e)‖²`` with soft assignments z under Gumbel noise and a falling
      temperature, one network f_g a group. It alone trains v and f.

    Follows the authors' code; pairs of different groups are never formed, and groups whose share is lost in rounding are
    skipped (``cutoff``).
    """

    Config = HTDConfig
    config: HTDConfig
    purpose = "reproduce the cosines within groups of like entities, and between groups and entities"
    reference = "Kang, Hwang, Kweon & Yu, Topology distillation for recommender system, KDD 2021"
    needs = "user and item representations"
    default_weight = 1e-3

    def __init__(self, config: HTDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        self.teacher = only(teachers)
        dim = self.teacher.dim
        hidden = (student_dim + dim) // 2
        with seeded(stream(seed, "init")):
            self.users = Experts(student_dim, dim, config.groups, config.cutoff, hidden)
            self.items = Experts(student_dim, dim, config.groups, config.cutoff, hidden)
        self.to(task.device)
        self._noise = noise_on(task.device)
        self._temperature = 1.0

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        self._temperature = temperature(epoch.index, self.config)
        self._noise.manual_seed(self.stream(epoch, "noise"))

    def loss(self, student: View, batch: Batch) -> Tensor:
        entities = Entities(batch, self.task, self.teacher.sides)
        source, target = entities.of_student(student), entities.of_teacher(self.teacher)
        gamma = self.config.gamma
        topology = self.topology(torch.cat(target), torch.cat(source), self.groups(target))
        return gamma * topology + (1 - gamma) * self.assignment(target, source)

    def assignment(self, target: Vectors, source: Vectors) -> Tensor:
        """L_GA."""
        total = source.users.new_zeros(())
        for experts, goal, own in ((self.users, target.users, source.users), (self.items, target.items, source.items)):
            shares = experts.shares(goal, self._temperature, self._noise)
            total = total + (goal - experts(own, shares)).square().sum()
        return total

    @torch.no_grad()
    def groups(self, target: Vectors) -> Tensor:
        """int64 [E]: the group of each user, then of each item, whose groups count from G on."""
        users, items = self.users.selector(target.users), self.items.selector(target.items)
        return torch.cat([users.argmax(dim=-1), items.argmax(dim=-1) + self.config.groups])

    def topology(self, target: Tensor, source: Tensor, groups: Tensor) -> Tensor:
        """Entity level plus group level, from representations [E, d_T] and [E, d_S] and the groups [E]."""
        order = torch.argsort(groups, stable=True)
        target, source, groups = target[order], source[order], groups[order]
        sizes = torch.unique_consecutive(groups, return_counts=True)[1]
        t, s = (F.normalize(vectors, dim=-1, eps=1e-12) for vectors in (target, source))
        total = self._group_level(target, source, t, s, sizes)
        for rows in _runs(sizes.tolist()):
            if self.config.pairs == "all":
                total = total + cosine_gap(target[rows], source[rows])
            else:
                own = t[rows] @ t[rows].T
                total = total + (own - s[rows] @ s[rows].T).where(own > 0, 0.0).square().sum()
        return total

    def _group_level(self, target: Tensor, source: Tensor, t: Tensor, s: Tensor, sizes: Tensor) -> Tensor:
        level = self.config.group_level
        with torch.set_grad_enabled(torch.is_grad_enabled() and level == "first"):
            p_t, p_s = (F.normalize(_means(vectors, sizes), dim=-1, eps=1e-12) for vectors in (target, source))
        if level != "second":
            t, s = p_t, p_s
        return (p_t @ t.T - p_s @ s.T).square().sum()


def _means(vectors: Tensor, sizes: Tensor) -> Tensor:
    """Means of runs of rows: [E, d] -> [G, d]."""
    of = torch.repeat_interleave(torch.arange(sizes.shape[0], device=sizes.device), sizes, output_size=vectors.shape[0])
    sums = vectors.new_zeros(sizes.shape[0], vectors.shape[1]).index_add(0, of, vectors)
    return sums / sizes.unsqueeze(-1)


def _runs(sizes: Sequence[int]) -> Iterator[slice]:
    start = 0
    for size in sizes:
        yield slice(start, start + size)
        start += size
