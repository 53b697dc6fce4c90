"""Graph convolution with a self-supervised term."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrs.core.sampling import stream
from kdrs.models._graph import BipartiteGraph
from kdrs.models.base import PairwiseConfig
from kdrs.models.lightgcn import LightGCN
from kdrs.training import losses
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View


class SGLConfig(PairwiseConfig):
    layers: int = Field(3, ge=0)
    """Propagation layers; the output is the mean of all layers, the 0th included."""
    augmentation: Literal["edges", "nodes", "walk"] = "edges"
    """What a view leaves out: training edges, users and items with their edges, or edges anew for each layer."""
    drop: float = Field(0.1, ge=0, lt=1)
    """Share ρ that is left out."""
    ssl: float = Field(0.1, ge=0)
    """Weight of the self-supervised term."""
    temperature: float = Field(0.2, gt=0)
    """T of its softmax over cosines."""
    reg: float = Field(1e-4, ge=0)
    """Weight of ½‖·‖² of the batch's 0th-layer vectors, summed with multiplicity."""
    hidden: Literal["propagated", "layer0"] = "propagated"
    """What h(u) and h(i) of the model in training are to methods that read representations: the output vectors, or those of
    the 0th layer. As a teacher it gives the output."""


class SGL(LightGCN):
    """SGL (Wu et al., SIGIR 2021), as in the authors' PyTorch code: LightGCN and a contrast of two views of the graph.

        L = Σ_{(u,i,j)} -log σ(s(u, i) - s(u, j)) + reg · ½‖·‖²
            + ssl · Σ_u [log Σ_v exp(z'_u · z''_v / T) - z'_u · z''_u / T] + the same for positive items

    Each epoch draws two sub-graphs, normalised by their own degrees. The loss, all **sums** over the batch: BPR on the whole
    graph; ``ssl · Σ_u [log Σ_v exp(z'_u · z''_v / T) - z'_u · z''_u / T]`` with z', z'' the views' outputs of length 1, v over
    all users, and the same for the positive items; ``reg · ½‖·‖²``. Vectors start Xavier-uniform. Defaults are Yelp2018's;
    Amazon-Book has ``ssl=0.5``, iFashion ``ssl=0.02, drop=0.4, temperature=0.5, reg=1e-3``.

    Differs from the authors' code in cost alone: a user or item that the batch holds n times is contrasted once, with weight
    n, and the products with all users are made in blocks.
    """

    Config = SGLConfig
    config: SGLConfig
    reference = "Wu et al., Self-supervised graph learning for recommendation, SIGIR 2021"

    def __init__(self, config: SGLConfig, task: Task):
        super().__init__(config, task)
        self.reg = config.reg / 2
        self._structure = BipartiteGraph(task.seen)
        self._views: list[list[Tensor]] = [[self.graph] * self.layers] * 2

    def _initialise(self) -> None:
        for table in self.vectors.detach().split([self.n_users, self.n_items]):
            nn.init.xavier_uniform_(table)

    @classmethod
    def train_defaults(cls, config: Any) -> dict[str, Any]:
        return {"batch_size": 2048, "weight_decay": 0.0}

    def on_epoch_start(self, epoch: Epoch) -> None:
        if self.config.ssl and self.layers:
            self._views = [self._draw(epoch.stream("augmentation", view)) for view in range(2)]

    def _draw(self, seed: int) -> list[Tensor]:
        """A view: one graph a layer."""
        count = self.layers if self.config.augmentation == "walk" else 1
        graphs = [
            self._structure.normalised(self._kept(np.random.default_rng(stream(seed, layer)))).to(self.vectors.device)
            for layer in range(count)
        ]
        return graphs * (self.layers // count)

    def _kept(self, rng: np.random.Generator) -> np.ndarray:
        """bool [n]: the training edges of a sub-graph."""
        structure, drop = self._structure, self.config.drop
        if self.config.augmentation == "nodes":
            users, items = (_without(n, int(n * drop), rng) for n in (self.n_users, self.n_items))
            return users[structure.users] & items[structure.items]
        return _without(structure.n_edges, structure.n_edges - int(structure.n_edges * (1 - drop)), rng)

    def loss(self, view: View, batch: Batch) -> Tensor:
        loss = super().loss(view, batch)
        if not self.config.ssl:
            return loss
        first, second = (
            F.normalize(self.propagated(graphs), dim=1).split([self.n_users, self.n_items]) for graphs in self._views
        )
        return loss + self.config.ssl * (
            self._contrast(first[0], second[0], batch.queries.users)
            + self._contrast(first[1], second[1], batch.positives)
        )

    def _contrast(self, first: Tensor, second: Tensor, ids: Tensor) -> Tensor:
        """-Σ log softmax of each id's own pair of vectors among all, ids with multiplicity."""
        unique, counts = torch.unique(ids, return_counts=True)
        own = F.embedding(unique, first) / self.config.temperature
        together = (own * F.embedding(unique, second)).sum(-1)
        return (counts * (losses.logsumexp_products(own, second) - together)).sum()


def _without(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """bool [size]: all but ``count`` places, drawn without replacement."""
    kept = np.ones(size, bool)
    kept[rng.choice(size, count, replace=False)] = False
    return kept
