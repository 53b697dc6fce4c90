"""Item-side ranking regularised distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from kdrs.core import sampling
from kdrs.distillers.base import distinct
from kdrs.distillers.rrd import RRD, Lists, RRDConfig
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View


class IRRRDConfig(RRDConfig):
    item_weight: float = Field(0.5, ge=0)
    """Weight of an item's loss beside a user's: λ_I / λ_U. At 0 this is RRD."""
    interesting_users: int = Field(20, ge=1)
    """Users drawn from the teacher's pool for each item and epoch: P."""
    uninteresting_users: int = Field(20, ge=0)
    """Users drawn outside the pool for each item and epoch: N."""
    user_temperature: float = Field(10.0, gt=0)
    """T of the draw over the ranks of an item's pool: weight of rank r is exp(-r / T), the flatter the higher."""
    user_pool: int = Field(500, ge=1)
    """Length of the teacher's list of users, for each item, who have not seen it."""


class IRRRD(RRD):
    """Item-side ranking regularised RRD (Kang, Hwang, Kweon & Yu, Information Sciences 580, 2021).

        L = Σ_u ℓ(s_u·) + item_weight · Σ_i ℓ(s_·i)
        ℓ = Σ_{k=1..K} [log(Σ_{m=k..K} exp s_m + Σ_{n∈N} exp s_n) - s_k]

    ``Σ_u ℓ_RRD(u) + item_weight · Σ_i ℓ_IR(i)``: RRD over the batch's users and, for every item that RRD drew for one of
    them, the same loss with users and items exchanged: P interesting users in the teacher's order, above N others. Items
    that nobody has seen in training have lists too.

    Pools, draws and masks are RRD's, transposed. The streams of the user side are RRD's own, so that ``item_weight`` 0 gives
    RRD to the byte. Differs from the authors' code: where an item is missing from its pool file, that ranks user 0 P times.
    """

    Config = IRRRDConfig
    config: IRRRDConfig
    purpose = "RRD, and the same for each item's list of users"
    reference = "Kang, Hwang, Kweon & Yu, Item-side ranking regularized distillation, Information Sciences 580, 2021"
    needs = "a ranking of at least `pool` items a query, and scores of any item"
    default_weight = 1e-3

    def __init__(self, config: IRRRDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        teacher, width, drawn = teachers[0], min(config.user_pool, task.n_users), config.interesting_users
        teacher.check_users()
        self.user_weights = sampling.falling_weights(width, config.user_temperature, drawn, "user_temperature")
        self._user_lists: Lists | None = None
        if not self.outlined:
            self.user_pool = teacher.top_users(width)  # [I, W]
            self._seen_by = task.seen.transpose()

    def draw(self, epoch: Epoch) -> tuple[Tensor, ...]:
        config = self.config
        interesting = sampling.weighted(
            self.user_pool, self.user_weights, config.interesting_users, seed=self.stream(epoch, "interesting users")
        )
        uninteresting = sampling.outside(
            self._seen_by, self.user_pool, config.uninteresting_users, seed=self.stream(epoch, "uninteresting users")
        )
        device = self.task.device
        return (
            *super().draw(epoch),
            *(torch.from_numpy(ids).to(device) for ids in (interesting, uninteresting)),
        )

    def on_epoch_start(self, epoch: Epoch, samples: tuple[Tensor, ...], student: Teacher) -> None:
        super().on_epoch_start(epoch, samples[:2], student)
        self._user_lists = Lists(samples[2], samples[3], self.config.clip)

    def loss(self, student: View, batch: Batch) -> Tensor:
        loss = super().loss(student, batch)
        return loss + self.config.item_weight * self.item_loss(student, batch) if self.config.item_weight else loss

    def item_loss(self, student: View, batch: Batch) -> Tensor:
        """Σ ℓ_IR over the items on the lists of the batch's users."""
        assert self._lists is not None
        rows = batch.unique_queries.ids
        drawn = torch.cat([self._lists.ordered[rows], self._lists.background[rows]], dim=1).long()
        assert self._user_lists is not None
        return user_ranking(student, self.task, distinct(drawn, self.task.n_items), self._user_lists)


def user_ranking(student: View, task: Task, items: Tensor, lists: Lists) -> Tensor:
    """Σ over items, int64 [J], of the relaxed ranking loss over each item's lists of users."""
    users, mask = lists.rows(items)  # [J, P + N]
    asked = distinct(users, task.n_users)
    places = torch.empty(task.n_users, dtype=torch.int64, device=asked.device)
    places[asked] = torch.arange(asked.shape[0], device=asked.device)
    scores = student.at(task.queries(asked)).pairs(places[users], items.unsqueeze(1))
    return lists.loss(scores, mask)
