"""Graph convolution trained by a sampled softmax."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError
from kdrs.models._softmax import CatalogueSoftmax, lengths_by_popularity
from kdrs.models.base import ModelConfig
from kdrs.models.lightgcn import LightGCN
from kdrs.training.devices import numbers_of
from kdrs.training.queries import Batch, Epoch, Queries, Task
from kdrs.training.units import unit_rows
from kdrs.training.view import DotView, Factors, View


class LightGCNSSMConfig(ModelConfig):
    layers: int = Field(2, ge=0)
    """Propagation layers; the output is the mean of all layers, the 0th included. With 0 it is matrix factorisation."""
    init_std: float = Field(0.01, gt=0)
    """Standard deviation of the initial vectors."""
    temperature: float = Field(0.1, ge=1e-4)
    """What cosines are divided by in the softmax. Lower looks at the hardest items alone."""
    popularity: float = Field(0.05, ge=0, le=1)
    """The power of its number of users in train with which an item is ranked; 0 ranks by the angle alone."""
    softmax_items: int = Field(1024, ge=1)
    """How many items the softmax counts, others for each batch and the same for its pairs; their sum of exponentials stands for
    the catalogue's. All where there are no more."""
    reg: float = Field(0.0, ge=0)
    """Weight of the explicit L2 term on the 0th-layer vectors of the batch's users and positives, with multiplicity."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the batch's pairs, of both terms."""
    hidden: Literal["propagated", "layer0"] = "propagated"
    """What h(u) and h(i) of the model in training are to methods that read representations: the output vectors, or those of
    the 0th layer. As a teacher it gives the output."""


class LightGCNSSM(LightGCN):
    """LightGCN (He et al., SIGIR 2020) with the sampled softmax loss (SSM; Wu et al., TOIS 2024) in the place of BPR's.

        E^(l+1) = D^-½ A D^-½ E^(l),  e = mean of E^(0) … E^(layers)
        c(u, i) = cos(e_u, e_i) / temperature
        L       = Σ_{(u,i)} -log( exp c(u, i) / (exp c(u, i) + Σ_{j not in H_u} exp c(u, j)) ) + reg · ‖·‖²

    A pair is learnt against ``softmax_items`` items, drawn uniformly for the batch, in the place of one negative. So a few
    epochs are enough where BPR takes hundreds, and each propagates for large batches: a step's cost is the graph's.

    Once trained, and wherever it is evaluated, items have the length n_i^γ and users 1 / temperature, so that s(u, i) is n_i^γ
    c(u, i): n_i users have item i in train, γ is ``popularity``, as in `ELSA`. An item that nobody has has the score 0. Encoded
    users have the length that their sum has.

    Differs from the paper: the items that a user has do not count against her, the sum stands for the whole catalogue's, and
    γ, which is 0 there.
    """

    Config = LightGCNSSMConfig
    config: LightGCNSSMConfig
    shards = False
    lengths: Tensor
    reference = "Wu et al., On the effectiveness of sampled softmax loss for item recommendation, TOIS 2024"

    def __init__(self, config: LightGCNSSMConfig, task: Task):
        super().__init__(config, task)
        lengths = lengths_by_popularity(task.seen, config.popularity, task.device)
        self.register_buffer("lengths", lengths, persistent=False)
        self._seen = task.seen
        self._softmax = CatalogueSoftmax(task.n_items, config.softmax_items)

    @classmethod
    def train_defaults(cls, config: Any) -> dict[str, Any]:
        return {"batch_size": 2048, "lr": 5e-3, "weight_decay": 0.0}

    @classmethod
    def make_task(cls, config: Any, train: Interactions, **options: Any) -> Task:
        if options.get("n_negatives", 1) != 1 or options.get("layout", "triples") != "triples":
            raise ConfigError(
                f"train.negatives is {options.get('n_negatives', 1)} and train.layout {options.get('layout', 'triples')!r}, "
                "and lightgcn-ssm learns a pair against items of the whole batch",
                "leave both out, and set model.softmax_items",
            )
        cls._refuse_never(options)
        return super().make_task(config, train, **options)

    def on_epoch_start(self, epoch: Epoch) -> None:
        super().on_epoch_start(epoch)
        self._softmax.shuffle(epoch.stream("softmax"))

    def forward(self, queries: Queries) -> View:
        output = self.propagated()
        items = unit_rows(output[self.n_users :])
        if not self.training:
            items = items * self.lengths.unsqueeze(1)
        return DotView(
            queries,
            lambda asked: F.normalize(F.embedding(asked.users, output), dim=1) / self.config.temperature,
            lambda ids: F.embedding(ids, items),
            lambda: items,
            represent=self._represent(),
        )

    def factors(self) -> Factors:
        with torch.no_grad():
            users, items = self.propagated().split([self.n_users, self.n_items])
            return Factors(unit_rows(users) / self.config.temperature, unit_rows(items) * self.lengths.unsqueeze(1))

    def loss(self, view: View, batch: Batch) -> Tensor:
        found = view.factored()
        assert found is not None
        users = F.normalize(found.queries, dim=1) / self.config.temperature
        others = self._softmax.others(users, found.items, *self._seen.pairs_of(numbers_of(batch.queries.users)))
        own = (users * F.embedding(batch.positives, found.items)).sum(1)
        loss = F.softplus(others - own).sum()
        if self.reg:
            rows = torch.cat([batch.queries.users, batch.positives + self.n_users])
            loss = loss + self.reg * F.embedding(rows, self.vectors).square().sum()
        return loss / len(batch.queries) if self.averages else loss
