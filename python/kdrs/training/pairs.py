"""The task of models that learn from pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrs.core import sampling
from kdrs.data.interactions import Interactions, as_interactions
from kdrs.errors import ConfigError, DataError
from kdrs.training.devices import known, to_device
from kdrs.training.queries import Batch, Epoch, Queries


class PairTask:
    """One training row for each observed (user, item) pair: BPR-MF, NeuMF, graph models, metric learning.

    Each epoch every pair gets ``n_negatives`` fresh items drawn uniformly from those its user has not seen, with
    replacement across pairs; validation and test items are legal negatives, unless ``never`` holds them: pairs that are not
    drawn, those of ``seen`` among them. ``layout="triples"`` makes a row of each (pair, negative), as the papers' code does;
    ``"rows"`` keeps a pair's negatives together, [B, N].

    ``draws="users"`` makes as many rows otherwise: a user drawn uniformly from those with pairs, one of its pairs, negatives of
    its own, all with replacement.

    Users who have seen every item have no negative: their pairs are left out and counted in ``n_skipped``. Raises
    ``DataError`` if that leaves nothing.
    """

    owners: NDArray[np.int64] | None = None
    flat = False

    def __init__(
        self,
        seen: Interactions,
        *,
        batch_size: int = 1024,
        n_negatives: int = 1,
        layout: str = "triples",
        draws: str = "pairs",
        never: Interactions | None = None,
        device: torch.device | str = "cpu",
        threads: int | None = None,
    ):
        if batch_size < 1 or n_negatives < 1:
            raise ConfigError(f"batch_size is {batch_size} and n_negatives {n_negatives}", "allowed: from 1")
        if layout not in ("triples", "rows"):
            raise ConfigError(f"layout is {layout!r}", "allowed: triples, rows")
        if draws not in ("pairs", "users"):
            raise ConfigError(f"draws is {draws!r}", "allowed: pairs, users")
        seen = as_interactions(seen, "seen")
        self.draws = draws
        self.seen, self.batch_size, self.n_negatives, self.layout = seen, batch_size, n_negatives, layout
        self.n_queries = self.n_users = seen.shape[0]
        self.n_items = seen.shape[1]
        self.device, self.threads = torch.device(device), threads
        self._never = seen if never is None else never
        users = seen.row_of_pair
        full = self._never.row_degrees >= self.n_items
        self.n_skipped = int(seen.row_degrees[full].sum())
        self._users, self._items = users, seen.indices
        if self.n_skipped:
            usable = ~full[users]
            self._users, self._items = users[usable], seen.indices[usable]
        if not self._users.size:
            raise DataError(
                f"no training pair is left: of {seen.n_pairs} pairs {self.n_skipped} belong to users who have seen every "
                "item, so that no negative can be drawn for them",
                "check the data set's filters and split with `kdrs data describe`",
            )

    def queries(self, rows: Tensor) -> Queries:
        return Queries(rows, rows)

    @property
    def n_rows(self) -> int:
        """Training rows an epoch."""
        return self._users.size * (self.n_negatives if self.layout == "triples" else 1)

    @property
    def n_batches(self) -> int:
        return -(-self.n_rows // self.batch_size)

    @property
    def row_users(self) -> NDArray[np.int32]:
        """int32 [n_rows], ascending: the user of each training row, in the order of ``Batch.places``."""
        return np.repeat(self._users, self.n_negatives) if self.layout == "triples" else self._users

    @property
    def positives_per_user(self) -> NDArray[np.int64]:
        return np.bincount(self.row_users, minlength=self.n_users)

    def fresh_negatives(self, seed: int) -> NDArray[np.int32]:
        """int32 [n_rows, N]: fresh negatives for every training row."""
        drawn = sampling.negatives(self._never, self._users, self.n_negatives, seed=seed, threads=self.threads)
        return drawn.reshape(-1, 1) if self.layout == "triples" else drawn

    def redrawn(self, batch: Batch, seed: int) -> Batch:
        raise TypeError("batches of pairs are not flat: their rows are drawn by fresh_negatives")

    def draw(self, epoch: Epoch) -> PairBatches:
        rng, seed = np.random.default_rng(epoch.stream("order")), epoch.stream("negatives")
        per_row = self.n_negatives if self.layout == "triples" else 1
        drawn = self.draws == "users"
        if drawn:
            order = self._drawn(rng)
            owners, count = self._users[order // per_row], 1 if self.layout == "triples" else self.n_negatives
            negatives = sampling.negatives(self._never, owners, count, seed=seed, threads=self.threads)
        else:
            negatives = self.fresh_negatives(seed)
            order = np.arange(self.n_rows, dtype=np.int32)
            rng.shuffle(order)
        return PairBatches(
            self._users, self._items, negatives, order, per_row, self.batch_size, self.device, ordered=drawn
        )

    def _drawn(self, rng: np.random.Generator) -> NDArray[np.int32]:
        """Training rows by the law of uniform users."""
        counts = self.positives_per_user
        users = rng.choice(np.flatnonzero(counts), self.n_rows)
        first = np.cumsum(counts) - counts
        return (first[users] + rng.integers(counts[users])).astype(np.int32)


class PairBatches:
    """An epoch of pair batches. Holds int32 arrays as long as the epoch and nothing per batch: a batch is gathered, and
    moved to the device, when its turn comes, some dozens at a time."""

    GATHER = 1 << 16
    """Rows gathered at a time."""

    def __init__(
        self,
        users: np.ndarray,
        items: np.ndarray,
        negatives: np.ndarray,
        order: np.ndarray,
        per_pair: int,
        batch_size: int,
        device: torch.device,
        *,
        ordered: bool = False,
    ):
        """``negatives`` stand by training row, or, ``ordered``, by place in ``order``."""
        self._users, self._items, self._negatives, self._order = users, items, negatives, order
        self._per_pair, self.batch_size, self.device, self._ordered = per_pair, batch_size, device, ordered

    def __len__(self) -> int:
        return -(-self._order.size // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        return next(self._batches(slice(index * self.batch_size, (index + 1) * self.batch_size)))

    def __iter__(self) -> Iterator[Batch]:
        step = max(1, self.GATHER // self.batch_size) * self.batch_size
        for start in range(0, self._order.size, step):
            yield from self._batches(slice(start, start + step))

    def _batches(self, part: slice) -> Iterator[Batch]:
        rows = self._order[part]
        negatives = self._negatives[part if self._ordered else rows]
        pairs = rows // self._per_pair if self._per_pair > 1 else rows
        columns = (self._pieces(ids) for ids in (self._users[pairs], self._items[pairs], negatives, rows))
        for asked, positives, drawn, places in zip(*columns, strict=True):
            yield Batch(Queries(asked, asked, targets=positives), positives, drawn, places)

    def _pieces(self, ids: np.ndarray) -> list[Tensor]:
        """Of each batch, on the device: one copy for all."""
        tensors = to_device(ids, self.device).split(self.batch_size)
        return [known(t, ids[at * self.batch_size :][: len(t)]) for at, t in enumerate(tensors)]
