"""Graph convolution reduced to neighbourhood averaging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdrs.core.kernels import propagate
from kdrs.models._graph import BipartiteGraph
from kdrs.models.base import ModelConfig, PairwiseConfig, Recommender
from kdrs.training import losses
from kdrs.training.queries import Batch, Queries, Task
from kdrs.training.view import DotView, Factors, View


class LightGCNConfig(PairwiseConfig):
    layers: int = Field(3, ge=0)
    """Propagation layers; the output is the mean of all layers, the 0th included."""
    init_std: float = Field(0.1, gt=0)
    """Standard deviation of the initial vectors. HyperKDMA's code uses 0.01."""
    reg: float = Field(0.0, ge=0)
    """Weight of the explicit L2 term on the batch's 0th-layer vectors, with multiplicity. HyperKDMA's code amounts to 2e-4;
    the authors' own to ``1e-4 / 2``."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the batch's rows, of both terms; the authors' code takes the mean."""
    hidden: Literal["propagated", "layer0"] = "propagated"
    """What h(u) and h(i) of the model in training are to methods that read representations: the output vectors, or those of
    the 0th layer, as HyperKDMA's code reads them of the student for PHR and assistants. As a teacher it gives the
    output."""


class LightGCN(Recommender):
    """LightGCN (He et al., SIGIR 2020): E^(l+1) = D^-1/2 A D^-1/2 E^(l) over the training graph, output the layers' mean.

        E^(l+1) = D^-½ A D^-½ E^(l)
        s(u, i) = e_u · e_i,  e = mean of E^(0) … E^(layers)
        L       = Σ_{(u,i,j)} -log σ(s(u, i) - s(u, j))

    Defaults are those of the KDs benchmark: 3 layers, N(0, 0.1²), BPR **summed** over the batch, no explicit L2. For the
    setting of HyperKDMA's experiments use ``layers=1, init_std=0.01, reg=2e-4`` with weight decay 1e-3 (the preset
    hyperkdma-lightgcn), for the authors' own ``reduction="mean", reg=5e-5`` with ``train.draws = "users"``, batches of 2,048
    and no weight decay.
    """

    Config: ClassVar[type[ModelConfig]] = LightGCNConfig
    config: Any
    graph: Tensor
    compactable = ("bits", "users")
    begins = True
    splits = True
    shards = True
    reference = "He et al., LightGCN: simplifying and powering graph convolution network for recommendation, SIGIR 2020"

    def __init__(self, config: Any, task: Task):
        super().__init__(config, task)
        self.n_users, self.n_items = task.n_users, task.n_items
        self.layers, self.reg = config.layers, config.reg
        self.vectors = nn.Parameter(torch.empty(task.n_users + task.n_items, config.dim))
        self._initialise()
        # not persistent: the graph is the training data, which travels with the run already
        self.register_buffer("graph", BipartiteGraph(task.seen).normalised().to(task.device), persistent=False)

    def _initialise(self) -> None:
        nn.init.normal_(self.vectors, std=self.config.init_std)

    def propagated(self, graphs: Sequence[Tensor] | None = None) -> Tensor:
        """float32 [U + I, D]: the output vectors of all users, then of all items; over the training graph, or one graph a
        layer."""
        layer: Tensor = self.vectors
        total = layer
        for graph in [self.graph] * self.layers if graphs is None else graphs:
            layer = propagate(graph, layer)
            total = total + layer
        return total / (self.layers + 1)

    def forward(self, queries: Queries) -> View:
        output = self.propagated()
        items = output[self.n_users :]
        return DotView(
            queries,
            lambda asked: nn.functional.embedding(asked.users, output),
            lambda ids: nn.functional.embedding(ids, items),
            lambda: items,
            represent=self._represent(),
        )

    def _represent(self) -> tuple[Callable[[Queries], Tensor], Callable[[Tensor], Tensor]] | None:
        """h(u) and h(i), where they are not the vectors that are multiplied."""
        return (self._first_users, self._first_items) if self.config.hidden == "layer0" and self.training else None

    def _first_users(self, asked: Queries) -> Tensor:
        return nn.functional.embedding(asked.users, self.vectors)

    def _first_items(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids + self.n_users, self.vectors)

    @torch.no_grad()
    def begin_with(self, users: Tensor, items: Tensor) -> None:
        """As vectors of the 0th layer."""
        self.vectors.copy_(torch.cat([users, items]))

    def factors(self) -> Factors:
        with torch.no_grad():
            output = self.propagated()
        return Factors(output[: self.n_users], output[self.n_users :])

    def loss(self, view: View, batch: Batch) -> Tensor:
        scores = view.scores(torch.cat([batch.positives.unsqueeze(1), batch.negatives], dim=1))  # [B, 1 + N]
        loss = losses.bpr(scores[:, :1], scores[:, 1:], average=self.config.average)
        if self.reg:
            squared = self._squared(batch)
            loss = loss + self.reg * (view.summed(squared) if isinstance(view, DotView) else squared)
        return loss / len(batch.queries) if self.averages else loss

    def _squared(self, batch: Batch) -> Tensor:
        """Squared length of the batch's 0th-layer vectors, with multiplicity."""
        items = torch.cat([batch.positives, batch.negatives.reshape(-1)]) + self.n_users
        rows = torch.cat([batch.queries.users, items])
        return nn.functional.embedding(rows, self.vectors).square().sum()
