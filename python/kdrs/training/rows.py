"""Tasks whose training rows are whole users or whole items."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrs.core import sampling
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError
from kdrs.training.devices import numbers_of
from kdrs.training.queries import Batch, Epoch, Queries, id_tensors


class RowTask:
    """What tasks share whose training rows are whole rows of a matrix: those of ``rows`` that hold something.

    Raises ``DataError`` if nobody has seen anything.
    """

    owners: NDArray[np.int64] | None = None
    n_skipped = 0
    draws = "pairs"
    flat = True
    row_users: NDArray[np.int32] | None = None

    def __init__(self, seen: Interactions, rows: Interactions, batch_size: int, device: torch.device | str):
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}", "allowed: from 1")
        self.seen, self.batch_size, self.device = seen, batch_size, torch.device(device)
        self.n_queries = self.n_users = seen.shape[0]
        self.n_items = seen.shape[1]
        self._rows = np.flatnonzero(rows.row_degrees)
        if not self._rows.size:
            raise DataError(
                "no training pair is left", "check the data set's filters and split with `kdrs data describe`"
            )

    def queries(self, rows: Tensor) -> Queries:
        return Queries(rows, rows)

    @property
    def n_rows(self) -> int:
        """Training rows an epoch."""
        return self._rows.size

    @property
    def n_batches(self) -> int:
        return -(-self.n_rows // self.batch_size)

    @property
    def positives_per_user(self) -> NDArray[np.int64]:
        return self.seen.row_degrees

    def fresh_negatives(self, seed: int) -> NDArray[np.int32] | None:
        return None

    def redrawn(self, batch: Batch, seed: int) -> Batch:
        return batch

    def draw(self, epoch: Epoch) -> RowBatches:
        order = np.random.default_rng(epoch.stream("order")).permutation(self._rows)
        return RowBatches(order, self.batch_size, partial(self.batch, epoch))

    def batch(self, epoch: Epoch, rows: np.ndarray, index: int) -> Batch:
        """The batch of these rows, which is number ``index`` of the epoch."""
        raise NotImplementedError


class UserTask(RowTask):
    """One training row for each user who has seen something: autoencoders over users.

    A batch is ``batch_size`` users with all their training items as positives, flat. Each batch draws
    ``int(ratio · |O_u|)`` items a user, uniformly with replacement from those the user has not seen (``never``: the pairs that
    are not drawn, if not those of ``seen``); items drawn twice count once. Users who have seen every item get none.
    """

    def __init__(
        self,
        seen: Interactions,
        *,
        batch_size: int = 128,
        ratio: float = 0.0,
        never: Interactions | None = None,
        device: torch.device | str = "cpu",
        threads: int | None = None,
    ):
        if not 0 <= ratio < 2**31:
            raise ConfigError(f"ratio is {ratio}", "allowed: from 0")
        super().__init__(seen, seen, batch_size, device)
        self.ratio, self.threads = ratio, threads
        self._never = seen if never is None else never
        unseen = self._never.row_degrees < self.n_items
        self._draws = np.where(unseen, (seen.row_degrees * ratio).astype(np.int64), 0)

    def batch(self, epoch: Epoch, rows: np.ndarray, index: int) -> Batch:
        at, items = self.seen.pairs_of(rows)
        at_drawn, drawn = self._drawn(rows, epoch.stream("negatives", index))
        asked, positives, negatives, places, drawn_places = id_tensors(self.device, rows, items, drawn, at, at_drawn)
        return Batch(Queries(asked, asked), positives, negatives, rows=(places, drawn_places))

    def redrawn(self, batch: Batch, seed: int) -> Batch:
        """A batch of this task with other negatives, for a model that learns from the same users beside another one."""
        rows, items = self._drawn(numbers_of(batch.queries.users), seed)
        negatives, at = id_tensors(self.device, items, rows)
        return replace(batch, negatives=negatives, rows=(batch.positive_rows, at))

    def _drawn(self, users: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch rows and items of the negatives, each pair once, in order."""
        rows = np.repeat(np.arange(users.size), self._draws[users])
        if not rows.size:
            return rows, rows
        items = sampling.negatives(self._never, users[rows], 1, seed=seed, threads=self.threads)[:, 0]
        keys = rows * self.n_items + items
        keys.sort()
        return np.divmod(keys[np.diff(keys, prepend=-1) > 0], self.n_items)


class ItemTask(RowTask):
    """One training row for each item that somebody has seen: autoencoders over items.

    A batch is ``batch_size`` items. Its queries are the users who have seen any of them, each once, ascending; its
    positives, flat, are all training pairs of these items. Nothing is drawn.
    """

    def __init__(self, seen: Interactions, *, batch_size: int = 512, device: torch.device | str = "cpu"):
        self._users_of = seen.transpose()
        super().__init__(seen, self._users_of, batch_size, device)

    def batch(self, epoch: Epoch, rows: np.ndarray, index: int) -> Batch:
        places, users = self._users_of.pairs_of(rows)
        asked, at = np.unique(users, return_inverse=True)
        queries, positives, negatives, query_rows = id_tensors(self.device, asked, rows[places], np.zeros(0), at)
        return Batch(Queries(queries, queries), positives, negatives, rows=(query_rows, negatives))


class RowBatches:
    """An epoch of batches of whole users or items; a batch is gathered when its turn comes."""

    def __init__(self, order: np.ndarray, batch_size: int, batch: Callable[[np.ndarray, int], Batch]):
        self._order, self.batch_size, self._batch = order, batch_size, batch

    def __len__(self) -> int:
        return -(-self._order.size // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        return self._batch(self._order[index * self.batch_size : (index + 1) * self.batch_size], index)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))
