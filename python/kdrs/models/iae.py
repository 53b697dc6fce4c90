"""A variational autoencoder over items."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdrs.data.interactions import Interactions
from kdrs.models._variational import VariationalConfig, VariationalModel
from kdrs.training.lazy import Lazy
from kdrs.training.losses import logsumexp_products
from kdrs.training.queries import Batch, Queries, Task
from kdrs.training.rows import ItemTask
from kdrs.training.view import Factors, View, products

BLOCK_ITEMS = 4096


class IAEConfig(VariationalConfig):
    dim: int = Field(128, ge=1)
    """Size of the latent vectors; CCD's code takes twice the size of its other models."""
    score: Literal["probability", "logits"] = "probability"
    """Items are ranked for a user by the probability that the item's softmax over users gives the user, or by its logit
    there: another order, since each item's softmax has its own denominator."""


class IAE(VariationalModel):
    """The item-side autoencoder among HetComp's teachers, after CCD's code: Mult-VAE's network and loss with users and items
    exchanged. Rows are items, a batch is a set of items, the softmax of an item runs over users.

        s(u, i) = D_u · z_i + f_u - log Σ_v exp(D_v · z_i + f_v)
        L       = mean over items of -Σ_u x'_ui log softmax_u(D z_i + f) + β ½ Σ(μ² + σ² - 2 log σ)

    ``s(u, i) = log p_i(u) = D_u · z_i + f_u - log Σ_v exp(D_v · z_i + f_v)``, or without the last part (``score``). CCD ranks
    by p itself, which is the same order; the logarithm keeps the values apart where p underflows and makes the model a dot
    product. h(i) is μ and h(u) is D_u; no source defines them.

    Differs from CCD's code: items that nobody has seen have x' = 0, where it divides 0 by 0; ε as in Mult-VAE.
    """

    Config = IAEConfig
    why_not_compact = "learns by a loss of its own, not of rounded vectors"
    reference = "Kang et al., Distillation from heterogeneous models for top-K recommendation, WWW 2023 (teacher I-AE)"

    def __init__(self, config: IAEConfig, task: Task):
        super().__init__(config, task, task.seen.transpose())
        self.n_users, self.n_items = task.n_users, task.n_items
        self.normalised = config.score == "probability"

    @classmethod
    def train_defaults(cls, config: Any) -> dict[str, Any]:
        return {"batch_size": 512, "weight_decay": 0.0}

    @classmethod
    def make_task(cls, config: Any, train: Interactions, **options: Any) -> Task:
        return ItemTask(train, **cls._row_options(options, "batch_size", "device"))

    def forward(self, queries: Queries) -> View:
        return ItemView(self, queries, self.pass_seed())

    def offsets(self, decoded: Tensor) -> Tensor:
        """float32 [R]: what is taken off the logits of items with these decoded vectors."""
        if not self.normalised:
            return decoded.new_zeros(decoded.shape[0])
        return logsumexp_products(decoded, self.decoder.weight, self.decoder_bias)

    def catalogue(self) -> Tensor:
        """int64 [I]"""
        return torch.arange(self.n_items, device=self.decoder_bias.device)

    @torch.no_grad()
    def factors(self) -> Factors:
        decoded = torch.cat([self.sample(block, None)[0] for block in self.catalogue().split(BLOCK_ITEMS)])
        users = torch.cat([self.decoder.weight, self.decoder_bias.unsqueeze(1)], dim=1)
        return Factors(users, F.pad(decoded, (0, 1), value=1.0), -self.offsets(decoded))

    def loss(self, view: View, batch: Batch) -> Tensor:
        assert isinstance(view, ItemView)
        return self.rows_loss(torch.unique(batch.positives), view.seed)


class ItemView:
    """Items are encoded when they are asked for, each once; all of them, once for all views of a forward state, where there
    is no gradient to keep."""

    def __init__(self, model: IAE, queries: Queries, seed: int | None, of: ItemView | None = None):
        self._model, self._users, self.seed = model, queries.users, seed
        if of is None:
            self._decoded = decoded = Lazy(lambda: model.sample(model.catalogue(), seed)[0])
            self._offsets = Lazy(lambda: model.offsets(decoded()))
            self._means = Lazy(lambda: model.represent(model.catalogue()))
        else:
            self._decoded, self._offsets, self._means = of._decoded, of._offsets, of._means

    @property
    def queries(self) -> Tensor:
        return self._model.decoder(self._users)

    def items(self, ids: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return F.embedding(ids, self._means())
        unique, places = torch.unique(ids, return_inverse=True)
        return F.embedding(places, self._model.represent(unique))

    def scores(self, ids: Tensor) -> Tensor:
        return self.pairs(torch.arange(ids.shape[0], device=ids.device).unsqueeze(1), ids)

    def pairs(self, rows: Tensor, ids: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            unique, ids = torch.unique(ids, return_inverse=True)
            decoded = self._model.sample(unique, self.seed)[0]
            offsets = self._model.offsets(decoded)
        else:
            decoded, offsets = self._decoded(), self._offsets()
        users = self._users[rows]
        logits = products(self._model.decoder(users), F.embedding(ids, decoded))
        logits = logits + F.embedding(users, self._model.decoder_bias.unsqueeze(1)).squeeze(-1)
        return logits - F.embedding(ids, offsets.unsqueeze(1)).squeeze(-1)

    def all_scores(self) -> Tensor:
        bias = self._model.decoder_bias[self._users].unsqueeze(1)
        return self.queries @ self._decoded().T + bias - self._offsets()

    def factored(self) -> None:
        return None

    def at(self, queries: Queries) -> ItemView:
        return ItemView(self._model, queries, self.seed, self)
