"""A denoising autoencoder over users."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from kdrs.compact.networks import RowNetwork
from kdrs.core.tables import RowTable
from kdrs.data.interactions import Interactions
from kdrs.models._arrays import array_of
from kdrs.models._rows import RowModel, Rows
from kdrs.models.base import ModelConfig
from kdrs.training import losses
from kdrs.training.queries import Batch, Queries, Task
from kdrs.training.rows import UserTask
from kdrs.training.view import DotView, Factors, View

BLOCK_USERS = 4096


class CDAEConfig(ModelConfig):
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of a user's items that the encoder does not see in training; the others count 1 / (1 - share)."""
    negatives: float = Field(5.0, ge=0)
    """Unseen items drawn for each of the user's items."""


class CDAE(RowModel):
    """CDAE (Wu et al., WSDM 2016), as in BD's notebook: ``z_u = σ(W_e · dropout(x_u) + b_e + v_u)``,
    ``s(u, i) = W_d[i] · z_u + b_d[i]``.

        z_u     = σ(W_e · dropout(x_u) + b_e + v_u)
        s(u, i) = W_d[i] · z_u + b_d[i]
        L       = Σ_u [Σ_{i∈O_u} -log σ(s(u, i)) + Σ_{j drawn} -log(1 - σ(s(u, j)))]

    Trained on batches of users: the **sum** of the cross-entropy with logits over a user's items and over ``int(5 · |O_u|)``
    items drawn with replacement from the others, duplicates counting once, redrawn in every batch. User vectors start
    N(0, 1), the rest uniform within ±1/√fan-in. h(u) is z_u without dropout, in training too, h(i) is W_d[i]; scores in
    training are those of the pass with dropout.

    Differs from the notebook: negatives are drawn from everything that training does not show, where it also leaves out
    validation and test items (``train.leak_held_out``). The first layer adds up the columns of the user's items and the last
    one is worked out for the drawn items alone: the same loss without a row of the catalogue's length.
    """

    Config = CDAEConfig
    config: CDAEConfig
    compactable = ("bits",)
    encodes_known = False
    why_not_compact = "computes its users from their items already"
    reference = "Wu et al., Collaborative denoising auto-encoders for top-N recommender systems, WSDM 2016"

    def __init__(self, config: CDAEConfig, task: Task):
        super().__init__(config, task)
        self.n_users = task.n_users
        self.rows = Rows(task.seen, task.device)
        self.users = RowTable(task.n_users, config.dim)
        self.encoder = nn.Parameter(torch.empty(task.n_items, config.dim))
        self.encoder_bias = nn.Parameter(torch.empty(config.dim))
        self.items = RowTable(task.n_items, config.dim)
        self.item_bias = nn.Parameter(torch.empty(task.n_items))
        for fan_in, parameters in (
            (task.n_items, (self.encoder, self.encoder_bias)),
            (config.dim, (self.items.weight, self.item_bias)),
        ):
            for parameter in parameters:
                nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)

    @classmethod
    def train_defaults(cls, config: Any) -> dict[str, Any]:
        return {"batch_size": 128, "lr": 2e-3}

    @classmethod
    def make_task(cls, config: CDAEConfig, train: Interactions, **options: Any) -> Task:
        own = cls._row_options(options, "batch_size", "never", "device", "threads")
        return UserTask(train, ratio=config.negatives, **own)

    def encode(self, users: Tensor, seed: int | None = None) -> Tensor:
        """z [B, D]; with dropout where a ``seed`` is given."""
        sums = self.rows.sums(users, self.encoder, self.config.dropout, seed)
        return torch.sigmoid(sums + self.encoder_bias + self.users(users))

    def forward(self, queries: Queries) -> View:
        seed = self.pass_seed()
        return DotView(
            queries,
            lambda asked: self.encode(asked.users, seed),
            self.items,
            self.items,
            self.item_bias,
            None if seed is None else (lambda asked: self.encode(asked.users), self.items),
        )

    @torch.no_grad()
    def factors(self) -> Factors:
        users = torch.arange(self.n_users, device=self.item_bias.device)
        encoded = torch.cat([self.encode(block) for block in users.split(BLOCK_USERS)])
        return Factors(encoded, self.items.read().detach(), self.item_bias.detach())

    def history_encoder(self) -> RowNetwork:
        """Without v_u, that is with v_u = 0, the mean of what user vectors start from: what is known of a new user."""
        table, bias = array_of(self.encoder), array_of(self.encoder_bias)
        return RowNetwork(table, bias, activations=["sigmoid"], power=0.0)

    def loss(self, view: View, batch: Batch) -> Tensor:
        positive = view.pairs(batch.positive_rows, batch.positives.reshape(-1))
        return losses.pointwise(positive, view.pairs(batch.negative_rows, batch.negatives.reshape(-1)))
