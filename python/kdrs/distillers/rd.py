"""Ranking distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdrs.core import sampling
from kdrs.core.sampling import stream
from kdrs.distillers.base import Distiller, only
from kdrs.errors import ConfigError
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher, best_items
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View


class RDConfig(Settings):
    items: int = Field(10, ge=1)
    """Length of the teacher's list of unseen items that count as extra positives: K. The BPR re-implementation takes 30."""
    temperature: float = Field(1.0, gt=0)
    """λ of the importance of positions: weight of rank r ∝ exp(-r / λ), the flatter the higher."""
    sharpness: float = Field(0.1, gt=0)
    """μ of the ranking discrepancy tanh(μ (rank by the student - rank by the teacher))."""
    samples: int = Field(100, ge=1)
    """Unseen items, drawn uniformly with replacement, that the student's rank is estimated with: ε."""
    warmup_epochs: int = Field(10, ge=0)
    """Epochs with the importance of positions alone, before the student's ranks mean anything: E0. The BPR
    re-implementation takes 100."""
    weights: Literal["normalised", "product"] = "normalised"
    """``normalised``: the two weights' product, divided by its sum over the list (paper). ``product``: as it is (code)."""
    exclude: Literal["seen", "target-only"] = "seen"
    """``seen``: the teacher's list leaves out all that the user has seen in training (paper). ``target-only``: of its best 2K
    items of all, the row's own targets are left out and K are kept (code)."""
    draws: Literal["batch", "epoch"] = "batch"
    """``batch``: fresh samples for each row of every batch. ``epoch``: one set a query and epoch, drawn ahead (the BPR
    re-implementation); int32 [queries, samples] are held, twice."""
    unique_queries: bool = False
    """Count each query once a batch. Otherwise once a training row."""
    reduction: Literal["base", "sum", "mean"] = "base"
    """Over the batch's queries; ``base``: as the student's own loss (the model's option ``reduction``), sum if it has none."""


class RD(Distiller):
    """Ranking distillation (Tang & Wang, KDD 2018).

        L   = -Σ_q Σ_{r=1..K} w_r log σ(s(q, π_r))
        a_r = exp(-r / λ) / Σ_r' exp(-r' / λ)
        b_r = tanh(max(μ (r̂_r - r), 0))
        w_r = a_r in the warm-up, then a_r b_r / Σ_r' a_r' b_r'

    The teacher's best K unseen items π_1 … π_K are extra positives: ``L(q) = -Σ_r w_r log σ(s(q, π_r))``, summed over the
    rows of the batch, or averaged where the student's own loss is. ``w_r = a_r`` in the warm-up, then ``a_r b_r / Σ a b``:

    - position importance ``a_r = exp(-r / λ) / Σ exp(-r' / λ)``
    - ranking discrepancy ``b_r = tanh(max(μ (r̂_r - r), 0))`` with ``r̂_r = ⌊(I - 1) c_r / ε⌋ + 1``, c_r of ε random unseen
      items scored above π_r by the student as it stands

    A teacher's own weights of its entries (`Teacher.confidence`) multiply w.

    Weights carry no gradient. A list shorter than K has its a renormalised; where all b are 0, the student agrees already
    and w is 0. I counts the catalogue.

    The paper mixes (1-α) L_R + α L_D, its code adds α L_D with α = 1; here the term's weight is the code's α (α/(1-α) gives
    the paper's mix up to a common factor). Differs from the authors' code by default: w is normalised (``weights``), the
    list leaves out everything seen (``exclude``; the padding id is never in it), and samples are drawn batch by batch instead
    of for the whole epoch: the same law where each query is one training instance. Their setting: ``weights="product"``,
    ``exclude="target-only"``, with Caser (the preset rd-caser).
    """

    Config = RDConfig
    config: RDConfig
    purpose = "treat the teacher's best unseen items as positives, most of all those that the student ranks low"
    reference = (
        "Tang & Wang, Ranking distillation: learning compact ranking models with high performance for recommender "
        "system, KDD 2018"
    )
    needs = "a ranking of at least `items` items a query"
    default_weight = 1.0

    def __init__(self, config: RDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        teacher = only(teachers)
        if config.items > task.n_items:
            raise ConfigError(
                f"items is {config.items}, the catalogue has {task.n_items} items", f"allowed: 1 to {task.n_items}"
            )
        keep_seen = config.exclude == "target-only"
        length = 2 * config.items if keep_seen else config.items
        teacher.check_lists(length, keep_seen=keep_seen)
        if self.outlined:
            return
        lists = best_items(teacher, length, keep_seen=keep_seen)
        self.confidence = teacher.confidence()
        self.lists = torch.from_numpy(lists).to(task.device)  # int32 [Q, K or 2K]
        ranks = torch.arange(1, config.items + 1, device=task.device)
        # the first weight is 1 however small λ is
        self._ranks, self._importance = ranks, torch.exp((1 - ranks) / config.temperature)
        self._all_have_unseen = bool((task.seen.row_degrees < task.n_items).all())
        self._drawn: Tensor | None = None
        self._epoch, self._step, self._warming_up = Epoch(0, seed, 1), 0, True
        self._base_is_mean = False

    def draw(self, epoch: Epoch) -> Tensor | None:
        if self.config.draws == "batch" or epoch.index < self.config.warmup_epochs:
            return None
        owners = np.arange(self.task.n_queries) if self.task.owners is None else self.task.owners
        return torch.from_numpy(self._sample(owners, self.stream(epoch, "samples"))).to(self.task.device)

    def on_epoch_start(self, epoch: Epoch, samples: Tensor | None, student: Teacher) -> None:
        self._epoch, self._step, self._drawn = epoch, 0, samples
        self._warming_up = epoch.index < self.config.warmup_epochs
        self._base_is_mean = student.averages

    def loss(self, student: View, batch: Batch) -> Tensor:
        queries, rows = self._queries(batch)
        items, present = self._listed(batch, queries, rows)  # [E, K], padded at the end
        scores = student.pairs(rows.unsqueeze(1), items)
        weights = importance(self._importance, present)
        if not self._warming_up:
            drawn = self._samples(batch, queries, rows)
            with torch.no_grad():
                others = student.pairs(rows.unsqueeze(1), drawn.long().clamp_(min=0))
                # an item does not beat itself, however two products of the same vectors are rounded
                counted = drawn.unsqueeze(1) != items.int().unsqueeze(2)  # twice as fast as in int64
                if not self._all_have_unseen:
                    counted &= (drawn >= 0).unsqueeze(1)
                ranks = estimated_ranks(scores, others, counted, self.task.n_items)
                weights = weights * discrepancy(ranks, self._ranks[: items.shape[1]], self.config.sharpness)
                if self.config.weights == "normalised":
                    weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        if self.confidence is not None:
            weights = weights * self.confidence.of(queries, items)
        loss = (weights * F.softplus(-scores)).sum()
        mean = self._base_is_mean if self.config.reduction == "base" else self.config.reduction == "mean"
        return loss / max(rows.shape[0], 1) if mean else loss

    def _queries(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The queries that count, int64 [E], and a batch row of each."""
        if self.config.unique_queries:
            return batch.unique_queries.ids, batch.unique_queries.first
        keys = batch.queries.rows
        return keys, torch.arange(keys.shape[0], device=keys.device)

    def _listed(self, batch: Batch, queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        lists = self.lists[queries].long()
        present = lists >= 0
        if self.config.exclude == "target-only":
            present &= ~targeted(lists, rows, batch)
            order = torch.argsort(~present, dim=1, stable=True)[:, : self.config.items]
            lists, present = lists.gather(1, order), present.gather(1, order)
        return lists.clamp(min=0), present

    def _samples(self, batch: Batch, queries: Tensor, rows: Tensor) -> Tensor:
        """int32 [E, N]; -1 for users with nothing unseen."""
        if self._drawn is not None:
            return self._drawn[queries]
        users = batch.queries.users[rows].cpu().numpy()
        seed = stream(self.seed, "samples", self._epoch.index, self._step)
        self._step += 1
        return torch.from_numpy(self._sample(users, seed)).to(queries.device)

    def _sample(self, users: np.ndarray, seed: int) -> np.ndarray:
        return sampling.negatives(self.task.seen, users, self.config.samples, seed=seed, exhausted="mask")


def importance(raw: Tensor, present: Tensor) -> Tensor:
    """Position importance of lists, float32 [E, K]: ``raw`` [K] where an entry exists, each row divided by its sum."""
    weights = raw[: present.shape[1]] * present
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(raw.dtype).tiny)


def estimated_ranks(scores: Tensor, others: Tensor, counted: Tensor | None, n_items: int) -> Tensor:
    """Rank among ``n_items``, int64 [E, K] counted from 1, of items with ``scores`` [E, K], from those of random items
    ``others`` [E, N]; ``counted`` (bool [E, K, N] or broadcast) says which of these may stand above."""
    above = others.unsqueeze(1) > scores.unsqueeze(2)
    if counted is not None:
        above &= counted
    # in integers: the product passes what float32 holds exactly
    return (n_items - 1) * above.sum(-1) // others.shape[1] + 1


def discrepancy(student: Tensor, teacher: Tensor, sharpness: float) -> Tensor:
    """tanh(max(μ (student's rank - teacher's rank), 0))."""
    return torch.tanh(sharpness * (student - teacher).clamp(min=0))


def targeted(lists: Tensor, rows: Tensor, batch: Batch) -> Tensor:
    """Whether an entry of the lists [E, W] is a target of the batch row [E] that the list belongs to: bool [E, W]."""
    if batch.rows is None:
        return lists == batch.positives[rows].unsqueeze(1)
    place = torch.full((len(batch.queries),), -1, dtype=torch.int64, device=lists.device)
    place[rows] = torch.arange(rows.shape[0], device=lists.device)
    owners = place[batch.positive_rows]
    hit = lists[owners] == batch.positives.unsqueeze(1)  # [P, W]
    counts = torch.zeros(lists.shape, dtype=torch.int32, device=lists.device)
    kept = owners >= 0
    return counts.index_add_(0, owners[kept], hit[kept].int()) > 0
