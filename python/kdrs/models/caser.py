"""A user's latest items as an image, read by convolutions."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from kdrs.compact.convolution import ConvolutionEncoder
from kdrs.core.tables import RowTable
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError
from kdrs.models._arrays import array_of
from kdrs.models._dropout import Dropout
from kdrs.models._sequential import PaddedView, SequentialRecommender
from kdrs.models.base import ModelConfig
from kdrs.training import losses
from kdrs.training.queries import Batch, Queries, Task
from kdrs.training.sequences import SequenceTask
from kdrs.training.view import View

ACTIVATIONS = {"identity": lambda x: x, "relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
Activation = Literal["identity", "relu", "sigmoid", "tanh"]


class CaserConfig(ModelConfig):
    dim: int = Field(64, ge=1)
    """Size d of user and item vectors and of the sequence's; representations h(u) and h(i) have 2 d."""
    length: int = Field(5, ge=1)
    """Latest items that are read: L."""
    targets: int = Field(1, ge=1)
    """Items after them that an instance predicts: T."""
    vertical: int = Field(2, ge=0)
    """Vertical filters, L x 1."""
    horizontal: int = Field(16, ge=0)
    """Horizontal filters of each height 1 to L."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of the filters' outputs that is dropped in training."""
    conv_activation: Activation = "identity"
    """After horizontal filters. The Caser paper has relu."""
    activation: Activation = "sigmoid"
    """After the fully connected layer. The Caser paper has relu."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over the batch's instances. Adam is the same for both up to weight decay, which is meant for the mean."""


class Caser(SequentialRecommender):
    """Convolutional sequence embedding (Tang & Wang, WSDM 2018): s(q, i) = w_i · [z; p_u] + b_i.

        s(q, i) = w_i · [z; p_u] + b_i
        L       = mean over instances of Σ_targets -log σ(s) + Σ_drawn -log(1 - σ(s))

    The vectors of the last L items are a matrix [L, d]. Vertical filters mix its rows, horizontal filters of each height
    slide over them and keep their largest value; a layer on all outputs gives z, joined by the user's vector p_u. Loss, an
    instance: softplus(-s) of the targets, softplus(s) of the drawn items; its **mean** over the batch.

    Defaults are those of the Gowalla experiments of ranking distillation (Tang & Wang, KDD 2018), teacher ``dim=100`` and
    student ``dim=50``; the rest of that setting is in the training defaults, and in the protocol ``caser``.

    Differs from the authors' code: histories shorter than L never contain the target (there it leaks into the padding); the
    padding id is never scored. Its rows are in the tables, so that sizes are the published ones.
    """

    Config = CaserConfig
    config: CaserConfig
    why_not_compact = "computes users from sequences by a network"
    encodes_known = False
    reference = (
        "Tang & Wang, Personalized top-N sequential recommendation via convolutional sequence embedding, WSDM 2018"
    )

    def __init__(self, config: CaserConfig, task: Task):
        super().__init__(config, task, config.length)
        if not config.vertical and not config.horizontal:
            raise ConfigError("vertical and horizontal are both 0", "allowed: one of them may be 0")
        d, length = config.dim, config.length
        self.users = RowTable(task.n_users, d)
        self.items = RowTable(task.n_items + 1, d)
        self.outputs = RowTable(task.n_items + 1, 2 * d)
        for table in (self.users, self.items, self.outputs):
            nn.init.normal_(table.weight, std=1 / table.embedding_dim)
        self.bias = nn.Parameter(torch.zeros(task.n_items + 1))
        self.down = nn.Linear(length, config.vertical) if config.vertical else None
        heights = range(1, length + 1) if config.horizontal else ()
        self.across = nn.ModuleList(nn.Linear(height * d, config.horizontal) for height in heights)
        self.dropout = Dropout(config.dropout)
        self.joined = nn.Linear(config.vertical * d + config.horizontal * len(heights), d)

    @classmethod
    def size_of(cls, config: CaserConfig) -> int:
        return 2 * config.dim

    @classmethod
    def train_defaults(cls, config: CaserConfig) -> dict[str, Any]:
        return {"epochs": 50, "batch_size": 512, "negatives": 3, "weight_decay": 1e-6, "every": 10}

    @classmethod
    def make_task(
        cls, config: CaserConfig, train: Interactions, *, order: NDArray[np.int32] | None = None, **options: Any
    ) -> SequenceTask:
        return cls.make_sequences(train, order, options, length=config.length, targets=config.targets)

    def encode(self, queries: Queries) -> Tensor:
        config = self.config
        image = self.items(self.history(queries))  # [B, L, d]
        parts = []
        if self.down is not None:
            parts.append(self.down(image.transpose(1, 2)).transpose(1, 2).flatten(1))  # [B, V d], filter by filter
        if config.horizontal:
            parts.append(ACTIVATIONS[config.conv_activation](self._slide(image.flatten(1))))
        z = ACTIVATIONS[config.activation](self.joined(self.dropout(torch.cat(parts, dim=1))))
        return torch.cat([z, self.users(queries.users)], dim=1)

    def _slide(self, flat: Tensor) -> Tensor:
        """Largest value of every horizontal filter over its places, [B, L H], before the activation, which is monotone.

        One product with all filters at all places: a row of the weight holds a filter at its place and 0 elsewhere. Twice
        the multiplications of the places alone, and still the faster for it: no copies of the image, no small products.
        """
        d, length, count = self.config.dim, self.config.length, self.config.horizontal
        placed = [
            F.pad(filters.weight, (place * d, (length - height - place) * d))  # type: ignore[arg-type]
            for height, filters in enumerate(self.across, 1)
            for place in range(length - height + 1)
        ]
        values = (flat @ torch.cat(placed).T).unflatten(1, (-1, count))  # [B, places of all heights, H]
        best = [part.max(1).values for part in values.split([length - height for height in range(length)], dim=1)]
        return torch.cat(best, dim=1) + torch.cat([filters.bias for filters in self.across])  # type: ignore[misc]

    def history_encoder(self) -> ConvolutionEncoder:
        """With p_u = 0, the mean of what user vectors start from: what is known of a new user."""
        layers: dict[str, Any] = (
            {"joined": self.joined} if self.down is None else {"joined": self.joined, "down": self.down}
        )
        weights = {"table": array_of(self.items.read())}
        for name, layer in layers.items():
            weights |= {name: array_of(layer.weight), f"{name}_bias": array_of(layer.bias)}
        filters: list[Any] = list(self.across)
        weights |= {f"across_{height}": array_of(one.weight) for height, one in enumerate(filters, 1)}
        if filters:
            weights["across_bias"] = np.stack([array_of(one.bias) for one in filters])
        config = self.config
        return ConvolutionEncoder(
            weights, length=config.length, activations=(config.conv_activation, config.activation)
        )

    def item_vectors(self) -> tuple[Tensor, Tensor]:
        return self.outputs.read()[: self.n_items], self.bias[: self.n_items]

    def forward(self, queries: Queries) -> View:
        return PaddedView(queries, self.apart(self.encode, queries), self.outputs, self.outputs, self.bias)

    def loss(self, view: View, batch: Batch) -> Tensor:
        ids = torch.cat([batch.positives.unsqueeze(1), batch.negatives.view(len(batch.positives), -1)], dim=1)
        # [B, 1 + N], or a row a target
        scores = view.scores(ids) if batch.rows is None else view.pairs(batch.positive_rows.unsqueeze(1), ids)
        loss = losses.pointwise(scores[:, :1], scores[:, 1:])
        return loss / len(batch.queries) if self.averages else loss
