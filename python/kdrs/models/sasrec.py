"""Self-attention over a user's latest items."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from kdrs.compact.attention import NORM_EPSILON, AttentionEncoder
from kdrs.core.tables import RowTable
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError
from kdrs.models._arrays import array_of
from kdrs.models._dropout import Dropout
from kdrs.models._sequential import SequentialRecommender, StatesView
from kdrs.models.base import ModelConfig
from kdrs.training import losses
from kdrs.training.queries import Batch, Queries, Task
from kdrs.training.sequences import SequenceBatch, SequenceTask
from kdrs.training.view import View


class SASRecConfig(ModelConfig):
    length: int = Field(50, ge=1)
    """Latest items that are read: n. The paper takes 50, and 200 for MovieLens 1M."""
    blocks: int = Field(2, ge=1)
    """Self-attention blocks."""
    heads: int = Field(1, ge=1)
    """Attention heads; they divide ``dim``."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """On input vectors, attention and both layers' outputs. The paper takes 0.5 on sparse data, 0.2 on MovieLens 1M."""
    block_form: Literal["paper", "code"] = "paper"
    """``paper``: x + g(norm(x)). ``code``: the query and the residual are norm(x), keys and values x itself."""
    objective: Literal["bce", "sampled-softmax", "softmax"] = "bce"
    """``bce``: binary cross-entropy of the next item and the drawn ones (paper, 1 negative a position). ``sampled-softmax``:
    the next item among the drawn ones, ``softmax``: among the catalogue; later work finds both better than one negative."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the batch's positions; the authors' code takes the mean. Adam is the same for both up to weight decay."""
    init: Literal["normal", "glorot"] = "normal"
    """Law of initial item and position vectors. ``normal``: N(0, ``init_std``²). ``glorot``: uniform up to
    ±sqrt(6 / (rows + dim)) of either table (code), by which positions begin several times as large as items."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of initial item and position vectors under ``init = "normal"``."""


class SASRec(SequentialRecommender):
    """Self-attentive sequential recommendation (Kang & McAuley, ICDM 2018): s(q, i) = f_q · m_i, m the input item vectors.

        s(q, i) = f_q · m_i
        L       = Σ_positions [-log σ(s(q, next)) + Σ_negatives -log(1 - σ(s(q, j)))]

    f_q is the state after the last item: item vectors times sqrt(d) plus learned positions, then blocks of causal attention
    and of a two-layer network, each x + dropout(g(norm(x))), and a last norm. In training every position predicts the item
    that follows; a batch row is a whole user. **Summed** over positions.

    The paper trains with Adam at 1e-3, batches of 128 users and 1 negative a position. Differs from the authors' code: second
    moments decay by 0.999 (there 0.98); matrices of attention have no bias, as in the paper's equations; residuals by
    ``block_form``; item and position vectors begin normal (``init``); losses are sums (``reduction``). As in the code there
    is a last norm, matrices begin Glorot-uniform, biases at 0, and norms add 1e-8 to the variance. Positions count from the
    end of the history. Users are asked after their last training items, and at test after the validation item too where it
    comes before the test items, as in the code.
    """

    Config = SASRecConfig
    config: SASRecConfig
    why_not_compact = "computes users from sequences by a network"
    reference = "Kang & McAuley, Self-attentive sequential recommendation, ICDM 2018"

    def __init__(self, config: SASRecConfig, task: Task):
        super().__init__(config, task, config.length)
        if config.dim % config.heads:
            raise ConfigError(f"dim is {config.dim} and heads {config.heads}; heads must divide dim")
        # the softmax over the catalogue touches every row
        table = nn.Embedding if config.objective == "softmax" else RowTable
        self.items = table(task.n_items + 1, config.dim, padding_idx=task.n_items)
        self.positions = nn.Parameter(torch.empty(config.length, config.dim))
        for parameter in (self.items.weight, self.positions):
            if config.init == "normal":
                nn.init.normal_(parameter, std=config.init_std)
            else:
                nn.init.xavier_uniform_(parameter)
        with torch.no_grad():
            self.items.weight[task.n_items] = 0.0
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim, eps=NORM_EPSILON)

    @classmethod
    def train_defaults(cls, config: SASRecConfig) -> dict[str, Any]:
        return {"batch_size": 128, "weight_decay": 0.0}

    @classmethod
    def make_task(
        cls, config: SASRecConfig, train: Interactions, *, order: NDArray[np.int32] | None = None, **options: Any
    ) -> SequenceTask:
        return cls.make_sequences(train, order, options, length=config.length, form="whole")

    def states(self, queries: Queries) -> Tensor:
        """float32 [B, S, D]: what is known after each place of the history. S is the longest history's length on the CPU,
        where reading it costs nothing, else ``length``."""
        history = self.history(queries)
        real = history != self.n_items
        if history.device.type == "cpu":
            width = max(1, int(real.sum(1).max())) if len(history) else 1
            history, real = history[:, -width:], real[:, -width:]
        width = history.shape[1]
        x = self.items(history) * self.config.dim**0.5 + self.positions[-width:]
        present = real.unsqueeze(-1)
        x = self.dropout(x) * present
        # a place without an item sees itself alone, so that no row of the attention is empty; what it gives is cleared
        causal = torch.ones(width, width, dtype=torch.bool, device=x.device).tril()
        visible = (causal & real.unsqueeze(1)) | torch.eye(width, dtype=torch.bool, device=x.device)
        for block in self.blocks:
            x = block(x, visible.unsqueeze(1)) * present
        return self.norm(x)

    def encode(self, queries: Queries) -> Tensor:
        return self.states(queries)[:, -1]

    def item_vectors(self) -> tuple[Tensor, None]:
        table = self.items.read() if isinstance(self.items, RowTable) else self.items.weight
        return table[: self.n_items], None

    def history_encoder(self) -> AttentionEncoder:
        blocks = [block.arrays() for block in self.blocks if isinstance(block, Block)]
        last = {"norm_weight": array_of(self.norm.weight), "norm_bias": array_of(self.norm.bias)}
        stacked = {name: np.stack([block[name] for block in blocks]) for name in blocks[0]}
        weights = {**stacked, **last, "positions": array_of(self.positions)}
        return AttentionEncoder(weights, heads=self.config.heads, code=self.config.block_form == "code")

    def forward(self, queries: Queries) -> View:
        return StatesView(queries, self.apart(self.states, queries), self.items, self.items)

    def loss(self, view: View, batch: Batch) -> Tensor:
        assert isinstance(view, StatesView)
        assert isinstance(batch, SequenceBatch)
        states = view.states
        missing = self.config.length - states.shape[1]
        states = states[batch.positive_rows, batch.steps - missing]  # [P, D]
        if self.config.objective == "softmax":
            sums = losses.logsumexp_products(states, self.items.weight[: self.n_items])
            loss = (sums - (states * self.items(batch.positives)).sum(-1)).sum()
        else:
            ids = torch.cat([batch.positives.unsqueeze(1), batch.negatives.view(len(states), -1)], dim=1)
            scores = torch.bmm(self.items(ids), states.unsqueeze(-1)).squeeze(-1)  # [P, 1 + N]
            if self.config.objective == "bce":
                loss = losses.pointwise(scores[:, :1], scores[:, 1:])
            else:
                loss = (torch.logsumexp(scores, dim=1) - scores[:, 0]).sum()
        return loss / batch.positives.shape[0] if self.averages else loss


class Block(nn.Module):
    """Causal attention and a two-layer network, each with norm, dropout and residual."""

    def __init__(self, config: SASRecConfig):
        super().__init__()
        d = config.dim
        self.heads, self.code = config.heads, config.block_form == "code"
        self.query, self.key, self.value = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(d, eps=NORM_EPSILON) for _ in range(2))
        self.inner, self.outer = nn.Linear(d, d), nn.Linear(d, d)
        self.dropout = Dropout(config.dropout)
        for layer in (self.query, self.key, self.value, self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        normed = self.norms[0](x)
        source = x if self.code else normed
        q, k, v = (
            self._split(layer(part)) for layer, part in ((self.query, normed), (self.key, source), (self.value, source))
        )
        logits = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5  # [B, H, S, S]
        shares = self.dropout(torch.softmax(logits.masked_fill(~visible, -torch.inf), dim=-1))
        attended = (shares @ v).transpose(1, 2).flatten(2)
        # the authors' code drops within the attention alone
        x = normed + attended if self.code else x + self.dropout(attended)
        normed = self.norms[1](x)
        hidden = self.dropout(torch.relu(self.inner(normed)))
        return (normed if self.code else x) + self.dropout(self.outer(hidden))

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Weights by the names of `AttentionEncoder`."""
        norms = [norm for norm in self.norms if isinstance(norm, nn.LayerNorm)]
        return {
            **{name: array_of(getattr(self, name).weight) for name in ("query", "key", "value", "inner", "outer")},
            **{f"{name}_bias": array_of(getattr(self, name).bias) for name in ("inner", "outer")},
            "norm_weights": np.stack([array_of(norm.weight) for norm in norms]),
            "norm_biases": np.stack([array_of(norm.bias) for norm in norms]),
        }

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, H, S, D / H]
