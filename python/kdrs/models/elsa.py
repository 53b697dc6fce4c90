"""A linear autoencoder of users with one unit vector an item."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrs.core.kernels import Table, propagate
from kdrs.data.interactions import Interactions
from kdrs.models._graph import BipartiteGraph
from kdrs.models._softmax import CatalogueSoftmax, lengths_by_popularity
from kdrs.models.base import ModelConfig, Recommender
from kdrs.models.compact import Compact, UserEncoder
from kdrs.training.devices import numbers_of, taken
from kdrs.training.queries import Batch, Epoch, Queries, Task
from kdrs.training.rows import UserTask
from kdrs.training.units import unit_rows
from kdrs.training.view import DotView, View


class ELSAConfig(ModelConfig):
    users: Literal["encoded"] = "encoded"
    """There is no table of users."""
    layers: int = Field(0, ge=0)
    """How often vectors are passed on from items to their users and back, before they have length 1; the sum of all layers
    counts, the 0th included. Each passes over the training pairs four times a step, twice forward and twice back: it is two
    layers of ``lightgcn``."""
    temperature: float = Field(0.1, ge=1e-4)
    """What cosines are divided by in the softmax. Lower looks at the hardest items alone."""
    popularity: float = Field(0.05, ge=0, le=1)
    """The power of its number of users in train with which an item is ranked; 0 ranks by the angle alone."""
    softmax_items: int | None = Field(None, ge=1)
    """How many items the softmax counts, others for each batch and the same for its users; their sum of exponentials stands for
    the catalogue's. All unless given: an epoch's time is users x items x dim then. Each step passes over the whole table in any
    case."""
    reduction: Literal["mean", "sum"] = "sum"
    """Loss of a batch: sum over its pairs, or that over its users."""


class _UnitItems(Recommender):
    """The items of `ELSA`; her items' sum, which is a user, is `Compact`'s."""

    Config = ELSAConfig
    config: ELSAConfig
    compactable = ("bits", "users")
    begins = True
    user_encoder: UserEncoder | None
    lengths: Tensor
    to_users: Tensor
    to_items: Tensor

    def __init__(self, config: ELSAConfig, task: Task):
        super().__init__(config, task)
        if config.layers:
            for name, half in zip(("to_users", "to_items"), BipartiteGraph(task.seen).halves(), strict=True):
                # not persistent: the graph is the training data, which travels with the run already
                self.register_buffer(name, half.to(task.device), persistent=False)
        self.vectors = nn.Parameter(torch.empty(task.n_items, config.dim))
        nn.init.normal_(self.vectors, std=config.dim**-0.5)
        lengths = lengths_by_popularity(task.seen, config.popularity, task.device)
        self.register_buffer("lengths", lengths, persistent=False)
        self._softmax = CatalogueSoftmax(task.n_items, config.softmax_items)

    def on_epoch_start(self, epoch: Epoch) -> None:
        super().on_epoch_start(epoch)
        self._softmax.shuffle(epoch.stream("softmax"))

    def _propagated(self) -> Tensor:
        """float32 [I, D]: the sum of all layers' vectors."""
        layer: Tensor = self.vectors
        total = layer
        for _ in range(self.config.layers):
            layer = propagate(self.to_items, propagate(self.to_users, layer, self.to_items), self.to_users)
            total = total + layer
        return total

    def forward(self, queries: Queries) -> View:
        items = unit_rows(self._propagated())
        if not self.training:
            items = items * self.lengths.unsqueeze(1)
        return DotView(
            queries, lambda asked: self._encoded(asked, items), lambda ids: F.embedding(ids, items), lambda: items
        )

    def _encoded(self, asked: Queries, items: Tensor) -> Tensor:
        assert self.user_encoder is not None
        found: Tensor = self.user_encoder(asked, Table(items))
        return found

    @torch.no_grad()
    def begin_with(self, users: Tensor, items: Tensor) -> None:
        """Takes the directions of items, as vectors of the 0th layer."""
        self.vectors.copy_(items)


class ELSA(Compact, _UnitItems):
    """ELSA (Vančura et al., RecSys 2022), trained by a softmax over the catalogue.

        a^(l+1) = D_I^-½ R' D_U^-1 R D_I^-½ a^(l)
        a       = Σ a^(l), l from 0 to layers
        v_i     = a_i / |a_i|
        u(H)    = W Σ_{j in H} v_j / |H|^½
        c(H, i) = cos(u(H), v_i) / temperature
        L       = Σ_{(u,i)} -log( exp c(H - i, i) / (exp c(H - i, i) + Σ_{j not in H} exp c(H, j)) )

    A user is the sum of her items' vectors: one table, and new users are answered like known ones. A pair is learnt with its
    item left out of the history, so that nothing learns to repeat its input; it stands against all items that the user has
    not seen, and no negatives are drawn. The softmax over the catalogue is Mult-VAE's (Liang et al., WWW 2018). With
    ``softmax_items`` the sum over j is estimated from some of the items (sampled softmax, Jean et al., ACL 2015): each
    batch takes the next ones in a random order of the epoch.

    With ``layers`` items are LightGCN's (He et al., SIGIR 2020) whose users have no vectors of their own: R [U, I] are the
    training pairs, D_U and D_I the numbers of pairs of users and items. Rare items learn from those that stand beside them,
    and v_i from the other items of a user of i, whom R still has when a pair of hers is learnt. What is kept is v, so the
    student has the same bytes; who starts from it has it as a^(0), which is passed on once more.

    Angles know little of how popular an item is. Once trained, and wherever it is evaluated, v_i is n_i^γ a_i / |a_i|, in
    the sums of users too, and s(u, i) = u(H) · v_i: n_i users have item i in train, γ is ``popularity``, .05 unless given,
    which was best or within .001 on validation of three data sets (docs/results/notes/frontier.md). While it learns lengths
    are 1: learned with others it ranks worse. An item that nobody has in train has length 0: no pair of it was learnt, and its
    direction would sway the users who have it since.

    Differs from the authors' code: the softmax in place of the squared error of rows brought to length 1; W, the identity
    there, is trained, and starts as the identity; Adam in place of NAdam; ``layers``, of which it has none.
    """

    reference = "Vančura et al., Scalable linear shallow autoencoder for collaborative filtering, RecSys 2022"

    @classmethod
    def train_defaults(cls, config: Any) -> dict[str, Any]:
        return {"batch_size": 128, "lr": 1e-2 if config.bits == 1 else 3e-3, "weight_decay": 0.0}

    @classmethod
    def make_task(cls, config: Any, train: Interactions, **options: Any) -> Task:
        return UserTask(train, **cls._row_options(options, "batch_size", "device", "threads"))

    def loss(self, view: View, batch: Batch) -> Tensor:
        rows, positives = batch.positive_rows, batch.positives
        asked, temperature = taken(batch.queries.users, rows), self.config.temperature
        without = view.at(Queries(asked, asked, targets=positives)).queries  # [P, D]
        own = (F.normalize(without, dim=1) * view.items(positives)).sum(1) / temperature
        found = view.factored()
        assert found is not None
        users = F.normalize(found.queries, dim=1) / temperature
        others = self._softmax.others(users, found.items, numbers_of(rows), numbers_of(positives))
        loss = F.softplus(others[rows] - own).sum()
        return loss / len(batch.queries) if self.averages else loss
