"""Matrix factorisation trained by Bayesian personalised ranking."""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from kdrs.core.tables import RowTable
from kdrs.models.base import PairwiseConfig, Recommender
from kdrs.training import losses
from kdrs.training.queries import Batch, Queries, Task
from kdrs.training.view import DotView, Factors, View


class BPRConfig(PairwiseConfig):
    init_std: float = Field(0.01, gt=0)
    """Standard deviation of the initial vectors. BD's notebook uses 1."""


class BPR(Recommender):
    """BPR-MF (Rendle et al., UAI 2009): s(u, i) = p_u · q_i, no biases.

        s(u, i) = p_u · q_i
        L       = Σ_{(u,i,j)} -log σ(s(u, i) - s(u, j))

    The loss is the **sum** of -log sigmoid(s_ui - s_uj) over the batch, as in the code of DE-RRD and HyperKDMA; L2 enters
    only through the optimizer's weight decay. The code computes log(sigmoid(x)), which overflows below -88; here softplus.
    """

    Config = BPRConfig
    config: BPRConfig
    score_tables = ("users.weight", "items.weight")
    compactable = ("bits", "users")
    begins = True
    splits = True
    shards = True
    user_table = "users"
    reference = "Rendle et al., BPR: Bayesian personalized ranking from implicit feedback, UAI 2009"

    def __init__(self, config: BPRConfig, task: Task):
        super().__init__(config, task)
        self.users = RowTable(task.n_users, config.dim)
        self.items = RowTable(task.n_items, config.dim)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=config.init_std)

    @property
    def is_plain_bpr(self) -> bool:  # type: ignore[override]
        return not self.config.average

    def forward(self, queries: Queries) -> View:
        return DotView(queries, lambda asked: self.users(asked.users), self.items, self.items)

    @torch.no_grad()
    def begin_with(self, users: Tensor, items: Tensor) -> None:
        if self.config.users == "table":
            self.users.weight.copy_(users)
        self.items.weight.copy_(items)

    def factors(self) -> Factors:
        return Factors(self.users.read().detach(), self.items.read().detach())

    def loss(self, view: View, batch: Batch) -> Tensor:
        scores = view.scores(torch.cat([batch.positives.unsqueeze(1), batch.negatives], dim=1))  # [B, 1 + N]
        return losses.bpr(scores[:, :1], scores[:, 1:], average=self.config.average)

    def score_loss(self, batch: Batch) -> losses.ScoreLoss:
        ids = torch.cat([batch.positives.unsqueeze(1), batch.negatives], dim=1)
        return losses.ScoreLoss(ids, partial(losses.bpr_gradient, average=self.config.average))
