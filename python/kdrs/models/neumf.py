"""Matrix factorisation and a multi-layer perceptron side by side."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdrs.core.tables import RowTable
from kdrs.errors import ConfigError
from kdrs.models.base import ModelConfig, Recommender
from kdrs.training import losses
from kdrs.training.lazy import Lazy
from kdrs.training.queries import Batch, Queries, Task
from kdrs.training.view import View, products

TILE_FLOATS = 1 << 18
"""Size of the hidden layer that is held at a time when a catalogue is scored: a megabyte stays in the processor's cache."""
TILE_ITEMS = 1024


class NeuMFConfig(ModelConfig):
    dim: int = Field(64, ge=1)
    """Width d of each of the four tables."""
    layers: int = Field(1, ge=1)
    """Hidden layers of the perceptron: widths d, d/2, d/4, ..."""
    init_std: float = Field(0.01, gt=0)
    """Standard deviation of the initial vectors."""
    hidden: Literal["mf", "both"] = "mf"
    """What h(u) and h(i) are to methods that read representations: the vectors of the factorisation (d), as in HyperKDMA's
    code, or those of both parts, one after the other (2d)."""


class NeuMF(Recommender):
    """NeuMF (He et al., WWW 2017), as HyperKDMA's code has it:
    ``s(u, i) = w · [p_u ∘ q_i ; MLP([p'_u ; q'_i])] + b`` with tables p, q and p', q' of their own.

        s(u, i) = w · [p_u ∘ q_i ; MLP([p'_u ; q'_i])] + b
        L       = Σ_positives -log σ(s) + Σ_negatives -log(1 - σ(s))

    The loss is the **sum** of the cross-entropy with logits over positives and negatives. Biases start at 0, hidden weights
    Xavier-uniform, final ones uniform within ±√(6 / fan-in). The original's setting: 4 negatives, batches of 256, no decay,
    four layers.

    Methods that read representations see the factorisation's alone (``hidden``). With ``both``, kdrs's own, a method has one
    set of helpers for the two vectors together, where HyperKDMA's code allocates a set for each and never trains the second.

    Differs from the authors' code in cost alone: the first layer is split into a users' and an items' part, so that a
    catalogue is scored without a product for each pair.
    """

    Config = NeuMFConfig
    splits = True
    reference = "He et al., Neural collaborative filtering, WWW 2017"

    def __init__(self, config: NeuMFConfig, task: Task):
        super().__init__(config, task)
        width = config.dim
        if width >> (config.layers - 1) < 1:
            raise ConfigError(
                f"layers is {config.layers} with dim {width}: each layer is half as wide as the one before",
                f"allowed: 1 to {width.bit_length()}",
            )
        self.hidden, self.n_items = config.hidden, task.n_items
        self.users_mf, self.users_mlp = (RowTable(task.n_users, width) for _ in range(2))
        self.items_mf, self.items_mlp = (RowTable(task.n_items, width) for _ in range(2))
        for table in (self.users_mf, self.items_mf, self.users_mlp, self.items_mlp):
            nn.init.normal_(table.weight, std=config.init_std)
        self.first = nn.Linear(2 * width, width)
        self.layers = nn.ModuleList(
            nn.Linear(width >> level, width >> (level + 1)) for level in range(config.layers - 1)
        )
        self.final = nn.Linear((width >> (config.layers - 1)) + width, 1)
        for layer in (self.first, *self.layers):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.kaiming_uniform_(self.final.weight, nonlinearity="relu")
        nn.init.zeros_(self.final.bias)

    @classmethod
    def size_of(cls, config: NeuMFConfig) -> int:
        return config.dim if config.hidden == "mf" else 2 * config.dim

    def forward(self, queries: Queries) -> View:
        return NeuMFView(self, queries, Lazy(lambda: self.item_part(self.items_mlp.read())))

    def user_part(self, users: Tensor) -> Tensor:
        """The users' share of the first layer, its bias included."""
        width = self.first.weight.shape[0]
        return nn.functional.linear(self.users_mlp(users), self.first.weight[:, :width], self.first.bias)

    def item_part(self, vectors: Tensor) -> Tensor:
        """The items' share of the first layer."""
        return nn.functional.linear(vectors, self.first.weight[:, self.first.weight.shape[0] :])

    def mlp(self, first: Tensor) -> Tensor:
        """The perceptron's share of the score [...] from the first layer before its ReLU [..., d]; may overwrite it."""
        hidden = first.relu() if torch.is_grad_enabled() else first.relu_()
        for layer in self.layers:
            hidden = layer(hidden).relu()
        return hidden @ self.final.weight[0, self.first.weight.shape[0] :]

    def mf_weight(self) -> Tensor:
        return self.final.weight[0, : self.first.weight.shape[0]]

    def loss(self, view: View, batch: Batch) -> Tensor:
        scores = view.scores(torch.cat([batch.positives.unsqueeze(1), batch.negatives], dim=1))  # [B, 1 + N]
        return losses.pointwise(scores[:, :1], scores[:, 1:])


class NeuMFView:
    """``item_table`` is the items' share of the first layer for the whole catalogue, one for all views of a forward state."""

    def __init__(self, model: NeuMF, queries: Queries, item_table: Lazy):
        self._model, self._request, self._item_table = model, queries, item_table
        self._user_part = Lazy(lambda: model.user_part(queries.users))
        self._weighted = Lazy(lambda: model.users_mf(queries.users) * model.mf_weight())

    @property
    def queries(self) -> Tensor:
        return self._represent(self._model.users_mf, self._model.users_mlp, self._request.users)

    def items(self, ids: Tensor) -> Tensor:
        return self._represent(self._model.items_mf, self._model.items_mlp, ids)

    def _represent(self, mf: nn.Embedding, mlp: nn.Embedding, ids: Tensor) -> Tensor:
        return mf(ids) if self._model.hidden == "mf" else torch.cat([mf(ids), mlp(ids)], dim=-1)

    def scores(self, ids: Tensor) -> Tensor:
        return self.pairs(torch.arange(ids.shape[0], device=ids.device).unsqueeze(1), ids)

    def pairs(self, rows: Tensor, ids: Tensor) -> Tensor:
        model, embedding = self._model, nn.functional.embedding
        # past a catalogue's worth of pairs its table is the smaller product, and a teacher's table is made once
        if ids.numel() < model.n_items and torch.is_grad_enabled():
            item_part = model.item_part(model.items_mlp(ids))
        else:
            item_part = embedding(ids, self._item_table())
        mlp = model.mlp(embedding(rows, self._user_part()) + item_part)
        return products(embedding(rows, self._weighted()), model.items_mf(ids)) + mlp + model.final.bias

    def all_scores(self) -> Tensor:
        users, items = self._user_part(), self._item_table()
        mf = self._weighted() @ self._model.items_mf.read().T  # [B, I]
        rows = [
            torch.cat([self._tile(block, tile) for tile in items.split(TILE_ITEMS)], dim=1)
            for block in users.split(max(1, TILE_FLOATS // (TILE_ITEMS * items.shape[1])))
        ]
        return mf + torch.cat(rows) + self._model.final.bias

    def _tile(self, users: Tensor, items: Tensor) -> Tensor:
        """The perceptron's scores of some users for some items; with gradients the hidden layers are worked out twice."""
        if torch.is_grad_enabled():
            return checkpoint(self._pairwise, users, items, use_reentrant=False, preserve_rng_state=False)
        return self._pairwise(users, items)

    def _pairwise(self, users: Tensor, items: Tensor) -> Tensor:
        return self._model.mlp(users.unsqueeze(1) + items)

    def factored(self) -> None:
        return None

    def at(self, queries: Queries) -> NeuMFView:
        return NeuMFView(self._model, queries, self._item_table)
