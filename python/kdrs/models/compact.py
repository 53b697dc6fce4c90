"""Models of few bytes in training: vectors rounded to few bits, users without a table."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrs.compact.encoders import SumEncoder, history_sums
from kdrs.core.codes import QUERY_BITS, Codes
from kdrs.core.kernels import Table
from kdrs.core.sampling import stream
from kdrs.core.tables import RowTable
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError
from kdrs.models._noise import uniform
from kdrs.models._rows import Rows
from kdrs.models.base import ModelConfig, Recommender
from kdrs.models.stored import StoredModel
from kdrs.training.devices import places_of
from kdrs.training.queries import Epoch, Queries, Task
from kdrs.training.rounding import RoundedRows, RoundedTable, levels_of, rounded
from kdrs.training.view import DotView, Factors, View, frozen

BLOCK_USERS = 4096
POWER = 0.5
"""Of the length of a history, by which its sum is divided."""


class UserEncoder(nn.Module):
    """``u = W Σ_{i in H} v_i / |H|^p`` of the training items H, less the target of a query that has one. ``dropout`` is the
    share of H that a pass with a seed does not see: one draw for each user and item of a pass."""

    power: Tensor

    def __init__(self, dim: int, seen: Interactions, device: torch.device, bits: int, dropout: float = 0.0):
        super().__init__()
        self.bits, self.dropout = bits, dropout
        """Bits of the matrix."""
        self.weight = nn.Parameter(torch.zeros(dim, dim).fill_diagonal_(1))  # eye has an outline by the compiler alone
        self.register_buffer("power", torch.tensor(POWER))
        self.rows = Rows(seen, device)

    def forward(self, asked: Queries, table: Table, seed: int | None = None) -> Tensor:
        """float32 [B, D], of the vectors in the ``table``."""
        users, places = places_of(asked.users)
        at, columns, starts = self.rows.entries(users)
        counts = self.rows.degrees(users)
        if seed is not None:
            kept = self._kept(seed, users[at], columns)
            counts = torch.zeros_like(counts).index_add_(0, at, kept.long())
            columns, starts = columns[kept], counts.cumsum(0) - counts
        sums, counts = F.embedding(places, table.sums(columns, starts)), counts[places]
        if asked.targets is not None:
            own = table.rows(asked.targets)
            if seed is None:
                sums, counts = sums - own, counts - 1
            else:
                kept = self._kept(seed, asked.users, asked.targets)
                sums, counts = sums - own * kept.unsqueeze(-1), counts - kept.long()
        sums = sums / counts.clamp(min=1).to(sums.dtype).pow(self.power).unsqueeze(-1)
        return sums @ rounded(self.weight, self.bits).T

    def _kept(self, seed: int, users: Tensor, items: Tensor) -> Tensor:
        return uniform(seed, users * self.rows.n_columns + items) >= self.dropout


class Compact(Recommender):
    """What a model of ``bits`` below 32, or of encoded users, is beside itself: put before a model's class (`compact_class`).

    What its view shows is rounded to ``bits`` bits, and gradients pass straight through; all weights are float32. With
    ``users = "encoded"`` a user's vector is ``W Σ_{i in H} v_i / |H|^p`` with her training items H and their rounded
    vectors, itself rounded to eight bits; while a pair of hers is learnt from, its item is left out of H. Vectors are in the
    turned directions of `kdrs.Codes`, which change no product.

    ``factors`` gives codes, and ``stored`` the model that a finished run keeps.
    """

    user_encoder: UserEncoder | None

    def __init__(self, config: ModelConfig, task: Task):
        super().__init__(config, task)
        self.n_users, self.n_items, self.task = task.n_users, task.n_items, task
        self.bits = int(config.bits)
        self.user_encoder = None
        if config.users == "encoded":
            if self.user_table is not None:
                delattr(self, self.user_table)
            encoder_bits = QUERY_BITS if self.bits != 32 else 32
            self.user_encoder = UserEncoder(self.dim, task.seen, task.device, encoder_bits, config.history_dropout)
        self._rounded_rows: RoundedRows | None = None
        self._histories_seed = self._histories_drawn = 0

    def on_epoch_start(self, epoch: Epoch) -> None:
        super().on_epoch_start(epoch)
        self._histories_seed, self._histories_drawn = epoch.stream("histories"), 0

    def _history_seed(self) -> int | None:
        """Of the next forward pass; None where it sees whole histories."""
        if not (self.training and self.config.history_dropout):
            return None
        self._histories_drawn += 1
        return stream(self._histories_seed, self._histories_drawn)

    def forward(self, queries: Queries) -> View:
        view = self._own_view(queries)
        table = self._rounded_table(view)
        if self.user_encoder is not None:
            encoder, seed = self.user_encoder, self._history_seed()
            encode = lambda asked: rounded(encoder(asked, table.table(), seed), encoder.bits)
        else:
            encode = lambda asked: rounded(view.encode(asked), self.bits)
        return DotView(queries, encode, lambda ids: table.table().rows(ids), table, view.bias)

    def _own_view(self, queries: Queries) -> DotView:
        view = super().forward(queries)  # of the model's own class
        if not isinstance(view, DotView):  # of ours that say compactable, all are
            raise ConfigError(
                f"{type(self).__name__.removeprefix('Compact')} says that it is compactable, and its view is a "
                f"{type(view).__name__}",
                "let forward return a kdrs.DotView, or leave compactable out",
            )
        return view

    def _rounded_table(self, view: DotView) -> RoundedRows | RoundedTable:
        source = view.item_table
        if not isinstance(source, RowTable):
            return RoundedTable(lambda: whole(view), self.bits)
        if self._rounded_rows is None:
            self._rounded_rows = RoundedRows(source, self.bits)
        self._rounded_rows.renew()
        return self._rounded_rows

    def begin_with(self, users: Tensor, items: Tensor) -> None:
        """Takes vectors, float32 [U, D] and [I, D], as the first weights; encoded users by ridge regression onto theirs."""
        if self.bits != 32:
            users, items = (turned(part) for part in (users, items))
        super().begin_with(users, items)
        if self.user_encoder is not None:
            with torch.no_grad():  # as in training
                vectors = rounded(whole(self._own_view(self._queries_of(0))), self.bits).cpu().numpy()
            history = self.task.seen
            power = float(self.user_encoder.power)
            fitted = SumEncoder.fit(users.cpu().numpy(), history_sums(history, vectors, power), power)
            self.user_encoder.weight.data.copy_(torch.from_numpy(fitted.weight))

    def factors(self) -> Factors:
        return self.stored().factors()

    @torch.no_grad()
    def stored(self) -> StoredModel:
        """What a finished run keeps: codes or vectors, without what only training needs."""
        with frozen(self):
            view = self._own_view(self._queries_of(0))
            items = self._side_of(whole(view))
            bias = None if view.bias is None else view.bias.detach().clone()
            if self.user_encoder is None:
                everyone = torch.arange(self.n_users, device=self.task.device).split(BLOCK_USERS)
                users = torch.cat([view.encode(self.task.queries(rows)) for rows in everyone])
                return StoredModel(items, users=self._side_of(users), bias=bias, task=self.task)
        encoder = SumEncoder(self.user_encoder.weight.detach().cpu().numpy(), float(self.user_encoder.power))
        encoder = encoder if self.bits == 32 else encoder.rounded()
        return StoredModel(items, encoder=encoder, bias=bias, task=self.task)

    def _queries_of(self, count: int) -> Queries:
        return self.task.queries(torch.arange(count, device=self.task.device))

    def _side_of(self, vectors: Tensor) -> Codes | Tensor:
        return vectors.detach().clone() if self.bits == 32 else codes_of(vectors, self.bits)


def whole(view: DotView) -> Tensor:
    """The table of items that a model's own view multiplies with, float32 [I, D]."""
    source = view.item_table
    if isinstance(source, RowTable):
        return source.read()
    assert not isinstance(source, (RoundedRows, RoundedTable))
    return source.weight if isinstance(source, nn.Embedding) else source()


def codes_of(vectors: Tensor, bits: int) -> Codes:
    """Codes of vectors [N, D] in turned directions, rounded as in training."""
    levels, scales = levels_of(vectors.detach(), bits)
    return Codes.from_levels(levels.to(torch.int8).cpu().numpy(), scales.cpu().numpy(), bits)


def turned(vectors: Tensor) -> Tensor:
    """Vectors [N, D] in the directions of codes."""
    if not len(vectors):
        return vectors
    pattern = Codes.of(vectors[:1].cpu().numpy(), 8)
    return torch.from_numpy(pattern.rotate(vectors.cpu().numpy())).to(vectors.device)


def is_compact(config: ModelConfig) -> bool:
    return config.bits != 32 or config.users != "table"


@cache
def compact_class(cls: Any) -> type[Recommender]:
    """The class of a model's compact form: `Compact` before it. Its losses are the model's own; its scores are read from its
    view alone, so it has no shorter way of training. A model that is one by itself is its own."""
    if issubclass(cls, Compact):
        return cls
    return type(f"Compact{cls.__name__}", (Compact, cls), {"__doc__": cls.__doc__})


def check_compact(name: str, cls: type[Recommender], config: ModelConfig) -> None:
    """Raises ``ConfigError`` for options of a model that has no compact form."""
    for key, value, plain in (("bits", config.bits, 32), ("users", config.users, "table")):
        if value != plain and key not in cls.compactable:
            raise ConfigError(
                f"model.{key} is {value!r}, and {name} {cls.why_not_compact}",
                f"train it with model.{key} = {plain!r}, and make it small afterwards: kdrs compress; or take bpr or lightgcn "
                "as student",
            )
    for key in ("encoder", "history_dropout") if config.users != "encoded" else ():
        common, own = ModelConfig.model_fields[key], type(config).model_fields[key]
        value = getattr(config, key)
        if own.annotation == common.annotation and value != common.default:  # else an option of the class's own
            remedy = f"leave model.{key} out"
            raise ConfigError(
                f"model.{key} is {value!r}, and the model's users have a table",
                f'set model.users = "encoded", or {remedy}' if "users" in cls.compactable else remedy,
            )
