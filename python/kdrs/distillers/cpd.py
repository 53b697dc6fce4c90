"""Preference-preserving projectors, the intermediate part of MKD, and PCKD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrs.core import sampling
from kdrs.core.sampling import stream
from kdrs.data.interactions import Interactions
from kdrs.distillers._experts import Experts, mean_of_two, temperature
from kdrs.distillers._features import Projector, Side, cosine_losses, sides
from kdrs.distillers._hidden import ExpertConfig
from kdrs.distillers.base import Distiller, count_alike, distinct, noise_on, only, seeded
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher, best_items, owners_of
from kdrs.training import losses
from kdrs.training.outline import is_outline
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View


class PenaltyConfig(Settings):
    """Options of the penalty on projectors that change the student's preferences."""

    pairwise_weight: float = Field(0.1, ge=0)
    """α: of the penalty on pairs."""
    listwise_weight: float = Field(1.0, ge=0)
    """β: of the penalty on lists."""
    pairwise: Literal["relu", "logistic"] = "relu"
    """``relu``: Σ max(0, -Δ_post Δ_pre), the first revision's. ``logistic``: Σ -log σ(Δ_post Δ_pre), PCKD's."""
    pairs: Literal["batch", "rank", "uniform", "hybrid"] = "batch"
    """Pairs of items that the pairwise penalty compares: each batch row's positive and negatives (MKD); or one pair a query
    and epoch, whose items are drawn independently, by the guide's ranks as lists are (PCKD), uniformly from the unseen ones,
    or the first by rank and the second uniformly (PCKD's hybrid, whose two laws are a reconstruction)."""
    lists: Literal["rank", "uniform"] = "rank"
    """How the items of the list penalty are drawn for each query and epoch: by the guide's ranks (MKD), or uniformly (a choice
    of PCKD's code, which has ``repeats`` and ``keep_seen`` then)."""
    listed: int = Field(20, ge=1)
    """Items drawn for each query and epoch for the list: Q."""
    list_temperature: float = Field(5.0, gt=0)
    """τ of both softmaxes over the list."""
    list_pool: int = Field(500, ge=1)
    """Length of the guide's list of unseen items that they come from."""
    list_draw_temperature: float = Field(10.0, gt=0)
    """T of the draw: weight of rank r is exp(-r / T), the flatter the higher."""
    repeats: bool = False
    """Draw the items of a list independently, so that some may come twice (PCKD's pseudo-code), not without replacement."""
    keep_seen: bool = False
    """Rank and draw what the user has seen too, as the public code of PCKD does."""
    guide: Literal["teacher", "student"] = "teacher"
    """Whose ranking the items are drawn from: the teacher's (MKD), or the student's own as it stands (PCKD)."""
    refresh: int = Field(1, ge=1)
    """Epochs between two rankings by a student guide."""


class CPDConfig(PenaltyConfig, ExpertConfig):
    experts: int = Field(5, ge=1)
    """Networks of the projector, for users and for items."""
    projector: Literal["mean", "experts"] = "mean"
    """``mean``: the networks' mean, compared by cosine (MKD). ``experts``: DE's mixture, selected by the teacher's vector and
    compared by squared error (the public code of PCKD); the temperature and ``cutoff`` belong to it."""


class CPD(Distiller):
    """Feature distillation whose projectors keep the student's order: the intermediate layer's part of MKD (Zhu & Zhang, arXiv
    2311.04549v1, 2023), which version 2 of that paper, PCKD (TKDE 37(4), 2025), is about.

        L = Σ_e w_e [1 - cos(h_T(e), F(h_S(e)))]
            + α Σ_{(u,i,j)} max(0, -(b_ui - b_uj)(a_ui - a_uj))
            + β Σ_rows -Σ_{i∈Q_u} softmax(a_u / τ)_i log softmax(b_u / τ)_i
        a_ui = h_S(u) · h_S(i),  b_ui = F(h_S(u)) · F(h_S(i))

    ``Σ_e 1 - cos(h_T(e), F(h_S(e)))`` over the batch's distinct users, and items by half for each of their roles, plus a
    penalty that trains the projectors alone (the student's representations are constants in it). With pre-scores
    a_ui = h_u · h_i and post-scores b_ui = F(h_u) · F(h_i): α Σ max(0, -(b_ui - b_uj)(a_ui - a_uj)) over the batch's triples,
    the mean where a row has several negatives, and β Σ_u CE(softmax(a/τ), softmax(b/τ)) over Q items drawn anew each epoch;
    both over batch rows, so that users repeat. F is the mean of E networks Linear(d_S, (d_S + d_T) // 2)-ReLU-Linear(., d_T),
    of length 1.

    The text of version 1 was not available: this follows the authors' first public revision. Differs from it: lists are drawn
    and padded for all queries at once; lengths are guarded by 1e-12. PCKD's penalty is ``pairwise = "logistic"``, ``guide =
    "student"``, ``pairs = "rank"`` (pair-wise, with ``listwise_weight = 0``), lists alone (list-wise, with
    ``pairwise_weight = 0``) or both with ``pairs = "hybrid"``; its code projects by ``projector = "experts"``, whose penalty
    takes the mixture as it is, with noise of its own: drawn for each user and item of the batch, where that code draws for each
    row. Which two laws the hybrid draws its pairs by and how it weighs its two terms is not published.
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
        if "users" not in self.teacher.sides:  # its penalty compares scores of rebuilt users and items
            self.teacher.check_scores()
        hidden = max((student_dim + target_dim) // 2, 1)
        self.users: Projector | Experts
        self.items: Projector | Experts
        with seeded(stream(seed, "init")):
            if config.projector == "experts":
                sizes = student_dim, target_dim, config.experts, config.cutoff, hidden
                self.users, self.items = (Experts(*sizes) for _ in range(2))
            else:
                self.users, self.items = (Projector(student_dim, target_dim, hidden, config.experts) for _ in range(2))
        self.penalty = Penalty(config, self.teacher, task)
        self.to(task.device)
        self._noise = noise_on(task.device)
        self._temperature = 1.0

    def draw(self, epoch: Epoch) -> Any:
        return self.penalty.draw(self.stream(epoch, "lists"))

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        self.penalty.start(epoch, samples, student, self.stream(epoch, "lists"))
        self._noise.manual_seed(self.stream(epoch, "noise"))
        self._temperature = temperature(epoch.index, self.config)

    def loss(self, student: View, batch: Batch) -> Tensor:
        teacher = self.teacher.view(self.task.queries(batch.unique_queries.ids))
        loss = torch.zeros((), device=batch.positives.device)
        for own in sides(student, teacher, batch):
            weights = own.weights if self.config.item_share == "half" else torch.ones_like(own.weights)
            project = self.users if own.kind == "users" else self.items
            if isinstance(project, Experts):
                errors = self._errors(project, own)
            else:
                errors = cosine_losses(own.teacher, project(own.student))
            loss = loss + (weights * errors).sum()
        if not isinstance(self.users, Experts):
            return loss + self.penalty(student, batch, self.users, self.items)
        assert isinstance(self.items, Experts)
        items = self.penalty.items(batch)
        return loss + self.penalty(
            student,
            batch,
            self._mixed(self.users, teacher.queries),
            self._mixed(self.items, teacher.items(items)),
            normalised=False,
            items=items,
        )

    def _errors(self, experts: Experts, own: Side) -> Tensor:
        """Squared errors of entities rebuilt by the mixture, an item's two roles with noises of their own."""

        def errors(teacher: Tensor, student: Tensor) -> Tensor:
            return losses.squared_distances(teacher, self._mixed(experts, teacher)(student))

        if own.kind == "users" or not self.config.draws_by_role:
            return errors(own.teacher, own.student)
        return mean_of_two(errors, (own.weights == 1).nonzero().squeeze(1), own.teacher, own.student)

    def _mixed(self, experts: Experts, target: Tensor) -> Project:
        """The mixture that the teacher's vectors select, with noise of its own."""
        return lambda source: experts(source, experts.shares(target, self._temperature, self._noise))


Project = Callable[[Tensor], Tensor]


class Draws(NamedTuple):
    """What a penalty compares in an epoch; -1 pads."""

    lists: Tensor | None
    """int64 [Q, K]"""
    pairs: Tensor | None
    """int64 [Q, 2]"""


class Penalty(nn.Module):
    """What projectors pay for changing the order of the student's own scores."""

    def __init__(self, config: PenaltyConfig, teacher: Teacher, task: Task):
        super().__init__()
        self.config, self.task = config, task
        none = np.zeros(0, np.int32)
        self._barred = Interactions.from_pairs(none, none, *task.seen.shape) if config.keep_seen else task.seen
        width = min(config.list_pool, task.n_items)
        listed = config.listed if config.lists == "rank" and not config.repeats else 1
        self._weights = sampling.falling_weights(width, config.list_draw_temperature, listed, "list_draw_temperature")
        self._lists_on = config.listwise_weight > 0
        self._pairs_on = config.pairwise_weight > 0 and config.pairs != "batch"
        ranked = (self._lists_on and config.lists == "rank") or (self._pairs_on and config.pairs != "uniform")
        self._pool: np.ndarray | None = None
        if ranked and config.guide == "teacher":
            teacher.check_lists(config.list_pool, keep_seen=config.keep_seen)
            count_alike(teacher, "the penalty of cpd and mkd")
            self._pool = None if is_outline(task) else self._best(teacher)
        self._asks_student = ranked and config.guide == "student"
        # a list that outlives its epoch belongs to the checkpoint
        kept = self._asks_student and config.refresh > 1
        shape = (task.n_queries, width if kept else 0)
        self.register_buffer("ranked", torch.full(shape, -1, dtype=torch.int32), persistent=kept)
        self._lists: Tensor | None = None
        self._pairs: Tensor | None = None

    def draw(self, seed: int) -> Draws | None:
        return None if self._asks_student else self._sample(self._pool, seed)

    def start(self, epoch: Epoch, samples: Draws | None, student: Teacher, seed: int) -> None:
        if samples is None:
            samples = self._sample(self._ranking(epoch, student), seed)
        self._lists, self._pairs = samples

    def _best(self, guide: Teacher) -> np.ndarray:
        return best_items(guide, self.config.list_pool, keep_seen=self.config.keep_seen)

    def _ranking(self, epoch: Epoch, student: Teacher) -> np.ndarray:
        if self.config.refresh == 1:
            return self._best(student)
        ranked: Tensor = self.ranked  # type: ignore[assignment]
        if epoch.index % self.config.refresh == 0:
            ranked.copy_(torch.from_numpy(self._best(student)))
        return ranked.cpu().numpy()

    def _sample(self, pool: np.ndarray | None, seed: int) -> Draws:
        config = self.config

        def by_rank(count: int, *names: str | int) -> np.ndarray:
            assert pool is not None
            weights = self._weights[: pool.shape[1]]
            return sampling.weighted(pool, weights, count, seed=stream(seed, *names) if names else seed)

        users = owners_of(self.task, np.arange(self.task.n_queries))

        def uniform(count: int, name: str, distinct: bool) -> np.ndarray:
            own = stream(seed, name)
            if distinct:
                nothing = np.empty((users.size, 0), np.int32)
                return sampling.outside(self._barred, nothing, count, rows=users, seed=own)
            return sampling.negatives(self._barred, users, count, seed=own, exhausted="mask")

        lists = pairs = None
        if self._lists_on and config.lists == "uniform":
            lists = uniform(config.listed, "uniform list", not config.repeats)
        elif self._lists_on and config.repeats:
            lists = np.concatenate([by_rank(1, "list", place) for place in range(config.listed)], axis=1)
        elif self._lists_on:
            lists = by_rank(config.listed)
        if self._pairs_on and config.pairs == "uniform":
            pairs = uniform(2, "uniform", False)
        elif self._pairs_on:
            second = uniform(1, "uniform", False) if config.pairs == "hybrid" else by_rank(1, "second")
            pairs = np.concatenate([by_rank(1, "first"), second], axis=1)
        return Draws(*(None if d is None else torch.from_numpy(d).long().to(self.task.device) for d in (lists, pairs)))

    def items(self, batch: Batch) -> Tensor:
        """int64 [M]: the distinct items that the penalty of a batch looks at, ascending."""
        asked, wanted = batch.unique_queries.ids, []
        if self.config.pairwise_weight:
            wanted.append(self._compared(batch)[1].reshape(-1))
        if self._lists is not None:
            wanted.append(self._lists[asked].reshape(-1))
        return distinct(torch.cat(wanted), self.task.n_items) if wanted else asked.new_empty(0)

    def _compared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Places of queries among the batch's distinct ones, [B], and items to compare the first of with the others, [B, 1 +
        N]; -1 pads."""
        rows, positives, negatives = batch.triples
        asked = batch.queries.rows[rows]
        places = torch.searchsorted(batch.unique_queries.ids, asked)
        if self._pairs is not None:
            return places, self._pairs[asked]
        return places, torch.cat([positives.unsqueeze(1), negatives], dim=1)

    def forward(
        self,
        student: View,
        batch: Batch,
        project_users: Project,
        project_items: Project,
        *,
        normalised: bool = True,
        items: Tensor | None = None,
    ) -> Tensor:
        """The penalty of projectors of the batch's distinct queries and of ``items``, which are `Penalty.items`; what they
        return is brought to length 1 unless it is not to be ``normalised``."""
        config, total = self.config, torch.zeros((), device=batch.positives.device)
        if not config.pairwise_weight and not config.listwise_weight:
            return total
        asked = batch.unique_queries
        items = self.items(batch) if items is None else items
        if not items.numel():
            return total
        before = student.queries[asked.first].detach(), student.items(items).detach()
        after = project_users(before[0]), project_items(before[1])
        if normalised:
            after = F.normalize(after[0], dim=-1, eps=1e-12), F.normalize(after[1], dim=-1, eps=1e-12)
        if config.pairwise_weight:
            place_of_row, compared = self._compared(batch)
            places = torch.searchsorted(items, compared).clamp_(max=items.shape[0] - 1)
            pre, post = ((u[place_of_row].unsqueeze(1) * i[places]).sum(-1) for u, i in (before, after))
            agreement = (post[:, :1] - post[:, 1:]) * (pre[:, :1] - pre[:, 1:])
            each = torch.relu(-agreement) if config.pairwise == "relu" else F.softplus(-agreement)
            known = (compared[:, :1] >= 0) & (compared[:, 1:] >= 0)
            means = (each * known).sum(1) / known.sum(1).clamp(min=1)  # of a row with several negatives
            total = total + config.pairwise_weight * means.sum()
        if self._lists is not None:
            lists = self._lists[asked.ids]  # [E, Q]
            places = torch.searchsorted(items, lists).clamp_(max=items.shape[0] - 1)
            pre, post = (torch.bmm(i[places], u.unsqueeze(-1)).squeeze(-1) for u, i in (before, after))  # [E, Q]
            times = torch.searchsorted(asked.ids, batch.queries.rows[batch.triples.rows])
            times = torch.bincount(times, minlength=asked.ids.shape[0])
            mask, tau = lists >= 0, config.list_temperature
            label = losses.masked_log_softmax(pre, mask, tau).exp()
            each = losses.soft_cross_entropy(label, post, mask, tau)
            total = total + config.listwise_weight * (times * each).sum()
        return total
