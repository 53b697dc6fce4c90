"""Graph convolution with feature transformations and products of neighbours."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrs.core.kernels import propagate, sparse_csr
from kdrs.errors import ConfigError
from kdrs.models._graph import BipartiteGraph
from kdrs.models.base import PairwiseConfig, Recommender
from kdrs.training import losses
from kdrs.training.queries import Batch, Queries, Task
from kdrs.training.view import DotView, Factors, View


class NGCFConfig(PairwiseConfig):
    layers: int = Field(1, ge=0)
    """Propagation layers; the output is the concatenation of all layers, the 0th included."""
    size: Literal["total", "block"] = "total"
    """``dim`` is the size of the concatenation, shared out among its layers + 1 blocks, or of each block. The public code
    has 3 layers of 64, which is ``block`` with ``layers=3``."""
    adjacency: Literal["row", "symmetric"] = "row"
    """D^-1 (A + I), of the public PyTorch code, or the paper's L = D^-1/2 A D^-1/2 with L + I in the linear part."""
    message_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of a layer's outputs that is left out in training."""
    node_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the adjacency's entries that is left out in training."""
    reg: float = Field(1e-5, ge=0)
    """Weight of ½‖·‖² of the batch's final vectors."""
    reduction: Literal["sum", "mean"] = "sum"
    """Loss of a batch: summed, as distillation weights are calibrated for, or the public code's mean."""


class NGCF(Recommender):
    """NGCF (Wang et al., SIGIR 2019), as in NGCF-PyTorch:
    ``E' = LeakyReLU(S W₁ + b₁ + (S ∘ E) W₂ + b₂)`` with ``S = Â E`` and slope 0.2, then dropout; the output puts E and every
    layer's rows, brought to length 1, side by side, and scores are inner products. All parameters start Xavier-uniform.

        E^(l+1) = LeakyReLU(S W₁ + b₁ + (S ∘ E^(l)) W₂ + b₂),  S = Â E^(l)
        s(u, i) = e_u · e_i,  e = [E^(0) ; E^(1)/‖·‖ ; …]
        L       = Σ_{(u,i,j)} -log σ(s(u, i) - s(u, j)) + reg · ½‖·‖²

    The loss is BPR plus ``reg · ½‖·‖²`` of the final vectors, **summed** over the batch unless ``reduction`` says otherwise.
    With ``adjacency="symmetric"`` it is the paper's ``(L + I) E W₁ + (L E ∘ E) W₂``, biases kept.

    Differs from that code: dropout is off in evaluation, where it re-creates the dropout module in every forward pass and so
    never switches it off; the size of a representation is that of the whole concatenation (``size``).
    """

    Config = NGCFConfig
    config: NGCFConfig
    compactable = ("bits", "users")
    reference = "Wang et al., Neural graph collaborative filtering, SIGIR 2019"
    indptr: Tensor
    columns: Tensor
    mirror: Tensor
    values: Tensor
    own: Tensor
    graph: Tensor
    transposed: Tensor

    def __init__(self, config: NGCFConfig, task: Task):
        super().__init__(config, task)
        self.n_users = task.n_users
        blocks = config.layers + 1
        if config.size == "total" and config.dim < blocks:
            raise ConfigError(
                f"dim is {config.dim} for {blocks} concatenated blocks",
                f"allowed: from {blocks} on, or fewer layers, or size = 'block'",
            )
        if config.size == "block":
            widths = [config.dim] * blocks
        else:
            widths = [config.dim // blocks + (block < config.dim % blocks) for block in range(blocks)]
        self.vectors = nn.Parameter(torch.empty(task.n_users + task.n_items, widths[0]))
        for table in self.vectors.detach().split([task.n_users, task.n_items]):
            nn.init.xavier_uniform_(table)
        shapes = list(pairwise(widths))
        self.linear, self.products = (nn.ModuleList(_Linear(*shape) for shape in shapes) for _ in range(2))
        graph = BipartiteGraph(task.seen)
        values, own = _weights(graph, config.adjacency)
        arrays = {
            "indptr": graph.indptr,
            "columns": graph.columns,
            "mirror": graph.mirror,
            "values": values,
            "own": own,
        }
        for name, array in arrays.items():
            # not persistent: the graph is the training data, which travels with the run already
            self.register_buffer(name, torch.from_numpy(array).to(task.device), persistent=False)
        for name, matrix in zip(("graph", "transposed"), self._graphs(self.values), strict=True):
            self.register_buffer(name, matrix, persistent=False)

    @classmethod
    def size_of(cls, config: NGCFConfig) -> int:
        return config.dim * (config.layers + 1) if config.size == "block" else config.dim

    def _graphs(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The adjacency without its diagonal, and its transpose, which has the same structure."""
        return sparse_csr(self.indptr, self.columns, values), sparse_csr(self.indptr, self.columns, values[self.mirror])

    def _adjacency(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """A pass's adjacency and its diagonal, some entries of both left out in training."""
        rate = self.config.node_dropout
        if not self.training or not rate:
            return (self.graph, self.transposed), self.own
        return self._graphs(F.dropout(self.values, rate)), F.dropout(self.own, rate)

    def propagated(self) -> Tensor:
        """float32 [U + I, D]: the output vectors of all users, then of all items."""
        (graph, transposed), own = self._adjacency()
        layer: Tensor = self.vectors
        blocks = [layer]
        for linear, product in zip(self.linear, self.products, strict=True):
            around = propagate(graph, layer, transposed)
            summed = around + own * layer
            if self.config.adjacency == "row":
                around = summed
            layer = F.leaky_relu(linear(summed) + product(around * layer), 0.2)
            layer = F.dropout(layer, self.config.message_dropout, self.training)
            blocks.append(F.normalize(layer, dim=1))
        return torch.cat(blocks, dim=1)

    def forward(self, queries: Queries) -> View:
        output = self.propagated()
        users, items = output[: self.n_users], output[self.n_users :]
        return DotView(
            queries,
            lambda asked: F.embedding(asked.users, users),
            lambda ids: F.embedding(ids, items),
            lambda: items,
        )

    def factors(self) -> Factors:
        with torch.no_grad():
            output = self.propagated()
        return Factors(output[: self.n_users], output[self.n_users :])

    def loss(self, view: View, batch: Batch) -> Tensor:
        ids = torch.cat([batch.positives.unsqueeze(1), batch.negatives], dim=1)  # [B, 1 + N]
        scores = view.scores(ids)
        loss = losses.bpr(scores[:, :1], scores[:, 1:], average=self.config.average)
        if self.config.reg:
            squared = view.queries.square().sum() + view.items(ids).square().sum()
            loss = loss + self.config.reg / 2 * squared
        return loss / len(batch.queries) if self.averages else loss


class _Linear(nn.Module):
    """x W + b with both Xavier-uniform, the bias as a row [1, d]."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(width, out)), nn.Parameter(torch.empty(1, out))
        nn.init.xavier_uniform_(self.weight)
        nn.init.xavier_uniform_(self.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.addmm(self.bias, vectors, self.weight)


def _weights(graph: BipartiteGraph, adjacency: str) -> tuple[np.ndarray, np.ndarray]:
    """Entries of the adjacency off its diagonal, float32 [2n], and on it, float32 [U + I, 1]."""
    degrees = np.diff(graph.indptr).astype(np.float64)
    if adjacency == "row":
        scale = 1 / (degrees + 1)
        return scale[graph.rows].astype(np.float32), scale[:, None].astype(np.float32)
    scale = np.zeros_like(degrees)
    np.divide(1, np.sqrt(degrees), out=scale, where=degrees > 0)
    return (scale[graph.rows] * scale[graph.columns]).astype(np.float32), np.ones((graph.n_nodes, 1), np.float32)
