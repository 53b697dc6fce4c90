"""Graph convolution reduced to neighbourhood averaging."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from kdrs import losses
from kdrs.data.interactions import Interactions
from kdrs.models.base import ModelConfig, Recommender
from kdrs.tasks import Batch, Queries, Task
from kdrs.view import DotView, Factors, View


class LightGCNConfig(ModelConfig):
    layers: int = Field(3, ge=0)
    """Propagation layers; the output is the mean of all layers, the 0th included."""
    init_std: float = Field(0.1, gt=0)
    """Standard deviation of the initial vectors. HyperKDMA's code uses 0.01."""
    reg: float = Field(0.0, ge=0)
    """Weight of the explicit L2 term on the batch's 0th-layer vectors, summed with multiplicity. HyperKDMA's code amounts
    to 2e-4; the authors' own ``1e-4 / 2``, averaged over the batch."""


class LightGCN(Recommender):
    """LightGCN (He et al., SIGIR 2020): E^(l+1) = D^-1/2 A D^-1/2 E^(l) over the training graph, output the layers' mean.

    Defaults are those of the KDs benchmark: 3 layers, N(0, 0.1²), BPR **summed** over the batch, no explicit L2. For the
    setting of HyperKDMA's experiments use ``layers=1, init_std=0.01, reg=2e-4`` with weight decay 1e-3. The authors'
    PyTorch code averages the loss over the batch and draws users uniformly; here every training pair is a row.
    """

    Config = LightGCNConfig
    reference = "He et al., LightGCN: simplifying and powering graph convolution network for recommendation, SIGIR 2020"

    def __init__(self, config: LightGCNConfig, task: Task):
        super().__init__(config, task)
        self.n_users, self.n_items = task.n_users, task.n_items
        self.layers, self.reg = config.layers, config.reg
        self.vectors = nn.Parameter(torch.empty(task.n_users + task.n_items, config.dim))
        nn.init.normal_(self.vectors, std=config.init_std)
        # not persistent: the graph is the training data, which travels with the run already
        self.register_buffer("graph", normalised_graph(task.seen).to(task.device), persistent=False)

    def propagated(self) -> Tensor:
        """float32 [U + I, D]: the output vectors of all users, then of all items."""
        layer = total = self.vectors
        for _ in range(self.layers):
            layer = _Propagate.apply(self.graph, layer)
            total = total + layer
        return total / (self.layers + 1)

    def forward(self, queries: Queries) -> View:
        output = self.propagated()
        users, items = output[: self.n_users], output[self.n_users :]
        return DotView(
            queries,
            lambda asked: nn.functional.embedding(asked.users, users),
            lambda ids: nn.functional.embedding(ids, items),
            lambda: items,
        )

    def factors(self) -> Factors:
        with torch.no_grad():
            output = self.propagated()
        return Factors(output[: self.n_users], output[self.n_users :])

    def loss(self, view: View, batch: Batch) -> Tensor:
        scores = view.scores(torch.cat([batch.positives.unsqueeze(1), batch.negatives], dim=1))  # [B, 1 + N]
        loss = losses.bpr(scores[:, :1], scores[:, 1:])
        if self.reg:
            items = torch.cat([batch.positives, batch.negatives.reshape(-1)]) + self.n_users
            rows = torch.cat([batch.queries.users, items])
            loss = loss + self.reg * nn.functional.embedding(rows, self.vectors).square().sum()
        return loss


class _Propagate(torch.autograd.Function):
    """Product with a symmetric sparse matrix: its own transpose, so that backward needs no other matrix."""

    @staticmethod
    def forward(ctx: Any, graph: Tensor, vectors: Tensor) -> Tensor:
        ctx.graph = graph
        return graph @ vectors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, ctx.graph @ gradients[0]


def normalised_graph(seen: Interactions) -> Tensor:
    """D^-1/2 A D^-1/2 of the bipartite graph as a sparse CSR tensor, float32 [U + I, U + I]; rows without edges are 0."""
    n_users, n_items = seen.shape
    transposed = seen.transpose()
    degrees = np.concatenate([seen.row_degrees, seen.column_degrees]).astype(np.float64)
    scale = np.zeros_like(degrees)
    np.divide(1.0, np.sqrt(degrees), out=scale, where=degrees > 0)
    indptr = np.concatenate([seen.indptr, seen.n_pairs + transposed.indptr[1:]])
    columns = np.concatenate([seen.indices.astype(np.int64) + n_users, transposed.indices.astype(np.int64)])
    rows = np.repeat(np.arange(n_users + n_items), np.diff(indptr))
    values = (scale[rows] * scale[columns]).astype(np.float32)
    size = (n_users + n_items, n_users + n_items)
    return torch.sparse_csr_tensor(
        torch.from_numpy(indptr), torch.from_numpy(columns), torch.from_numpy(values), size=size, check_invariants=False
    )
