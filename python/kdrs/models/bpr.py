"""Matrix factorisation trained by Bayesian personalised ranking."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrs import losses
from kdrs._tables import RowGradient, RowTable
from kdrs.models.base import PairwiseConfig, Recommender
from kdrs.tasks import Batch, Queries, Task
from kdrs.view import DotView, Factors, View


class BPRConfig(PairwiseConfig):
    init_std: float = Field(0.01, gt=0)
    """Standard deviation of the initial vectors. BD's notebook uses 1."""


class BPR(Recommender):
    """BPR-MF (Rendle et al., UAI 2009): s(u, i) = p_u · q_i, no biases.

    The loss is the **sum** of -log sigmoid(s_ui - s_uj) over the batch, as in the code of DE-RRD and HyperKDMA; L2 enters
    only through the optimizer's weight decay. The code computes log(sigmoid(x)), which overflows below -88; here softplus.
    """

    Config = BPRConfig
    config: BPRConfig
    bpr_tables: tuple[str, str] | None = ("users.weight", "items.weight")
    reference = "Rendle et al., BPR: Bayesian personalized ranking from implicit feedback, UAI 2009"

    def __init__(self, config: BPRConfig, task: Task):
        super().__init__(config, task)
        self.users = RowTable(task.n_users, config.dim)
        self.items = RowTable(task.n_items, config.dim)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=config.init_std)
        if config.average:
            self.bpr_tables = None

    def forward(self, queries: Queries) -> View:
        return DotView(queries, lambda asked: self.users(asked.users), self.items, self.items)

    def factors(self) -> Factors:
        return Factors(self.users.read().detach(), self.items.read().detach())

    def loss(self, view: View, batch: Batch) -> Tensor:
        scores = view.scores(torch.cat([batch.positives.unsqueeze(1), batch.negatives], dim=1))  # [B, 1 + N]
        return losses.bpr(scores[:, :1], scores[:, 1:], average=self.config.average)

    @torch.no_grad()
    def row_gradients(
        self, batch: Batch, more: Sequence[losses.ScoreLoss] = ()
    ) -> tuple[list[Tensor], dict[str, RowGradient]]:
        """The loss, and others of scores, with their gradient in closed form, a third of autograd's time at small sizes.

        With x = s_uj - s_ui and g = sigmoid(x), over N where negatives are averaged:
        dL/dp_u = g (q_j - q_i), dL/dq_i = -g p_u, dL/dq_j = g p_u. With h = dL/ds_uk:
        dL/dp_u = h q_k, dL/dq_k = h p_u.
        """
        users = batch.queries.users
        n, count = batch.negatives.shape
        asked = [batch.negatives.reshape(-1), batch.positives, *(part.ids.reshape(-1) for part in more)]
        item_rows = torch.cat(asked)
        own, (q_negatives, q_positives, *q_more) = (
            self.users(users),
            self.items(item_rows).split([len(a) for a in asked]),
        )
        p = own
        if count > 1:
            p, q_positives = p.repeat_interleave(count, 0), q_positives.repeat_interleave(count, 0)
        gap = q_negatives - q_positives
        x = (p * gap) @ p.new_ones(self.dim)  # not .sum(-1): slow over short rows
        g, loss = torch.sigmoid(x).unsqueeze(-1), F.softplus(x).sum()
        if self.config.average:
            g, loss = g / count, loss / count
        found, to_users, to_negatives = [loss], gap.mul_(g), p * g
        to_positives = to_negatives
        if count > 1:
            to_users, to_positives = (part.view(n, count, -1).sum(1) for part in (to_users, to_negatives))
        to_items = [to_negatives, -to_positives]
        for part, q in zip(more, q_more, strict=True):
            q = q.view(*part.ids.shape, -1)  # [B, K, D]
            value, h = part.of(torch.bmm(q, own.unsqueeze(-1)).squeeze(-1))
            found.append(value)
            to_users = to_users + torch.bmm(h.unsqueeze(1), q).squeeze(1)
            to_items.append((h.unsqueeze(-1) * own.unsqueeze(1)).flatten(0, 1))
        return found, {
            "users.weight": RowGradient(users, to_users),
            "items.weight": RowGradient(item_rows, torch.cat(to_items)),
        }
