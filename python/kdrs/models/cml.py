"""Collaborative metric learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError
from kdrs.models.base import ModelConfig, Recommender
from kdrs.training.lazy import Lazy
from kdrs.training.queries import Batch, Queries, Task
from kdrs.training.view import Factors, View, products

LEAST = 1e-12
"""Squared distances below this have a root without gradient: the root's slope at 0 is infinite."""


class CMLConfig(ModelConfig):
    variant: Literal["collmetric", "concf"] = "collmetric"
    """The original model after the CollMetric code, or the form of ConCF, which HetComp's teacher has."""
    margin: float | None = Field(None, ge=0)
    """Margin of the hinge; 1.5 for ``collmetric`` (its demo 1.9) and 1 for ``concf`` unless given."""
    init_std: float | None = Field(None, gt=0)
    """Standard deviation of the initial vectors; 1/√dim for ``collmetric`` and 0.01 for ``concf`` unless given."""
    covariance: float = Field(0.1, ge=0)
    """Weight of the penalty on the covariances between dimensions; ``collmetric`` alone."""
    penalty: Literal["squared", "plain"] = "squared"
    """Covariances enter the penalty squared (the paper's Frobenius norm) or as they are (the code)."""


class CML(Recommender):
    """Collaborative metric learning (Hsieh et al., WWW 2017): users and items are points, the score falls with distance.

        s(u, i) = -‖p_u - q_i‖²
        L       = Σ_{(u,i)} ln(1 + I f) [d(u, i) - min_w d(u, j_w) + margin]₊ + covariance · Σ_{a≠b} Cov_ab²
        d(u, i) = ‖p_u - q_i‖²

    ``collmetric``, the default: ``s = -‖p_u - q_i‖²``. Of W negatives a pair the nearest one counts:
    ``[d(u,i) - min_w d(u,j_w) + margin]₊ · ln(1 + I · f)``, f the share of negatives inside the margin, no gradient through
    it; summed over the batch, plus ``covariance · Σ_{a≠b} Cov_ab²`` over the dimensions of all users' and items' vectors.
    After every step all vectors are clipped to the unit ball. Its code trains with batches of up to 50,000 pairs.

    ``concf``: ``s = -‖p̂_u - q̂_i‖`` with x̂ = x / max(1, ‖x‖), loss ``Σ [margin + d(u,i) - d(u,j)]₊`` over squared distances;
    no rank weight, no covariance, no clipping, trained with the common defaults.

    Differs from CollMetric: no item features; ``penalty``; the square root has no gradient below distances of 1e-6.
    """

    Config = CMLConfig
    config: CMLConfig
    why_not_compact = "ranks by distances, whose vectors carry their lengths"
    reference = "Hsieh et al., Collaborative metric learning, WWW 2017"

    def __init__(self, config: CMLConfig, task: Task):
        super().__init__(config, task)
        self.original = config.variant == "collmetric"
        default_std = config.dim**-0.5 if self.original else 0.01
        self.margin = config.margin if config.margin is not None else 1.5 if self.original else 1.0
        self.covariance = config.covariance if self.original else 0.0
        # the covariances' gradient reaches every row
        self.users = nn.Embedding(task.n_users, config.dim, sparse=not self.covariance)
        self.items = nn.Embedding(task.n_items, config.dim, sparse=not self.covariance)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=config.init_std or default_std)

    @classmethod
    def train_defaults(cls, config: CMLConfig) -> dict[str, Any]:
        if config.variant == "concf":
            return {}
        return {"negatives": 20, "layout": "rows", "optimizer": "adagrad", "lr": 0.1, "weight_decay": 0.0}

    @classmethod
    def make_task(cls, config: CMLConfig, train: Interactions, **options: Any) -> Task:
        count, layout = options.get("n_negatives", 1), options.get("layout", "triples")
        if config.variant == "collmetric" and count > 1 and layout != "rows":
            raise ConfigError(
                f"train.layout is {layout!r} with {count} negatives, of which CML needs the nearest one to each pair",
                'set train.layout = "rows"',
            )
        return super().make_task(config, train, **options)

    def forward(self, queries: Queries) -> View:
        return DistanceView(queries, self._embed, root=not self.original)

    def _embed(self, kind: str, ids: Tensor | None) -> Tensor:
        """The points of users or items, all of them for None."""
        table: nn.Embedding = getattr(self, kind)
        vectors = table.weight if ids is None else table(ids)
        if self.original:
            return vectors
        return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=1.0)

    @property
    def scores_are_products(self) -> bool:
        return self.original

    def factors(self) -> Factors | None:
        """-‖p - q‖² = [2p ; -‖p‖²] · [q ; 1] - ‖q‖²; the distance itself is no dot product."""
        if not self.original:
            return None
        users, items = self.users.weight.detach(), self.items.weight.detach()
        lengths = users.square().sum(1, keepdim=True)
        ones = items.new_ones(items.shape[0], 1)
        return Factors(torch.cat([2 * users, -lengths], 1), torch.cat([items, ones], 1), -items.square().sum(1))

    def loss(self, view: View, batch: Batch) -> Tensor:
        scores = view.scores(torch.cat([batch.positives.unsqueeze(1), batch.negatives], dim=1))  # [B, 1 + N]
        distances = -scores if self.original else scores.square()
        near, far = distances[:, :1], distances[:, 1:]
        if not self.original:
            return (self.margin + near - far).relu().sum()
        inside = (near - far.detach() + self.margin > 0).float().mean(dim=1)
        weight = torch.log1p(self.items.num_embeddings * inside).detach()
        hinge = (near[:, 0] - far.amin(dim=1) + self.margin).relu()
        return (weight * hinge).sum() + self._penalty()

    def _penalty(self) -> Tensor:
        tables = self.users.weight, self.items.weight
        if not self.covariance:
            return tables[0].new_zeros(())
        count = tables[0].shape[0] + tables[1].shape[0]
        mean = (tables[0].sum(0) + tables[1].sum(0)) / count
        products = (tables[0].T @ tables[0] + tables[1].T @ tables[1]) / count
        covariances = products - mean.unsqueeze(1) * mean
        between = covariances - torch.diag(covariances.diagonal())
        return self.covariance * (between.square() if self.config.penalty == "squared" else between).sum()

    @torch.no_grad()
    def after_step(self) -> None:
        if self.original:
            for table in (self.users.weight, self.items.weight):
                table.div_(torch.linalg.vector_norm(table, dim=1, keepdim=True).clamp(min=1.0))


class DistanceView:
    """Scores are minus the squared distance of two points, or minus the distance (``root``)."""

    def __init__(self, queries: Queries, embed: Callable[[str, Tensor | None], Tensor], root: bool):
        self._embed, self._root = embed, root
        self._queries = Lazy(lambda: embed("users", queries.users))

    @property
    def queries(self) -> Tensor:
        return self._queries()

    def items(self, ids: Tensor) -> Tensor:
        return self._embed("items", ids)

    def scores(self, ids: Tensor) -> Tensor:
        asked, vectors = self.queries, self.items(ids)
        return self._score(products(asked.unsqueeze(1), vectors), _lengths(asked).unsqueeze(1), _lengths(vectors))

    def pairs(self, rows: Tensor, ids: Tensor) -> Tensor:
        asked, vectors = nn.functional.embedding(rows, self.queries), self.items(ids)
        return self._score(products(asked, vectors), _lengths(asked), _lengths(vectors))

    def all_scores(self) -> Tensor:
        table = self._embed("items", None)
        return self._score(self.queries @ table.T, _lengths(self.queries).unsqueeze(1), _lengths(table))

    def _score(self, product: Tensor, left: Tensor, right: Tensor) -> Tensor:
        squared = left + right - 2 * product
        return -(squared.clamp(min=LEAST).sqrt() if self._root else squared.clamp(min=0.0))

    def factored(self) -> None:
        return None

    def at(self, queries: Queries) -> DistanceView:
        return DistanceView(queries, self._embed, self._root)


def _lengths(vectors: Tensor) -> Tensor:
    return vectors.square().sum(-1)
