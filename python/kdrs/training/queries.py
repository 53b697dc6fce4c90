"""What a model is trained to answer: queries, batches of them, and an epoch. Training data only: truth that is
held out for validation or test cannot reach a loss from here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrs.core import sampling
from kdrs.data.interactions import Interactions
from kdrs.training.devices import counts_of, host_of, known, to_device


@dataclass(frozen=True)
class Queries:
    """B requests for a ranking."""

    rows: Tensor
    """int64 [B]: key of every per-query table. Equal to ``users`` unless the task is sequential."""
    users: Tensor
    """int64 [B]"""
    history: Tensor | None = None
    """int64 [B, S]: the latest items so far, oldest first, for sequential models; None elsewhere. Shorter histories are padded
    on the left with the id ``n_items``, one past the catalogue, so that it indexes a table of ``n_items + 1`` rows."""
    targets: Tensor | None = None
    """int64 [B]: in training the item of the pair that is learnt from; models that read the user's items leave it out."""

    def __len__(self) -> int:
        return self.rows.shape[0]

    def at(self, places: Tensor) -> Queries:
        """Some of these queries: int64 [B'] places among them."""
        history = None if self.history is None else self.history[places]
        targets = None if self.targets is None else self.targets[places]
        return Queries(self.rows[places], self.users[places], history, targets)


@dataclass(frozen=True)
class Unique:
    """The distinct ids of a batch, ascending."""

    ids: Tensor
    """int64 [E]"""
    first: Tensor
    """int64 [E]: the first batch row that holds the id."""


class Triples(NamedTuple):
    """Positives beside negatives of the same query."""

    rows: Tensor
    """int64 [T]: the batch row of each"""
    positives: Tensor
    """int64 [T]"""
    negatives: Tensor
    """int64 [T, N]"""


@dataclass(frozen=True)
class Batch:
    """Queries and what belongs to each.

    In batches of pairs query b has one positive and its own N negatives. In batches of whole users or items a query has any
    number of either: then both lists are flat, and ``rows`` names the batch row of every entry; negatives stand by rows.
    """

    queries: Queries
    positives: Tensor
    """int64 [B], flat [P]"""
    negatives: Tensor
    """int64 [B, N], flat [N']"""
    places: Tensor | None = None
    """int64 [B]: where each row stands in the task's table of training rows, for what is drawn a row and epoch."""
    rows: tuple[Tensor, Tensor] | None = None
    """int64 [P] and [N'] of flat batches: the batch row of each positive and of each negative."""

    @cached_property
    def positive_rows(self) -> Tensor:
        """int64 [P]: the batch row of each positive."""
        if self.rows is not None:
            return self.rows[0]
        return torch.arange(self.positives.shape[0], device=self.positives.device)

    @cached_property
    def negative_rows(self) -> Tensor:
        """int64 [N']: the batch row of each entry of ``negatives.flatten()``."""
        if self.rows is not None:
            return self.rows[1]
        count = self.negatives.shape[1]
        return torch.arange(self.negatives.numel(), device=self.negatives.device) // max(count, 1)

    @cached_property
    def triples(self) -> Triples:
        """The batch as pairs with their negatives: what methods read that compare the two.

        Of a flat batch each positive has one of its query's negatives, in turn; queries without any are left out, and where
        the batch has none at all N is 0.
        """
        if self.rows is None:
            return Triples(self.positive_rows, self.positives, self.negatives)
        rows, positives = self.rows[0], self.positives
        if not self.negatives.numel():
            return Triples(rows, positives, positives.new_empty(positives.shape[0], 0))
        counts = counts_of(self.rows[1], len(self.queries))
        starts = counts.cumsum(0) - counts
        kept = counts[rows] > 0
        rows, positives = rows[kept], positives[kept]
        turn = torch.arange(rows.shape[0], device=rows.device) % counts[rows]
        return Triples(rows, positives, self.negatives[starts[rows] + turn].unsqueeze(1))

    @cached_property
    def unique_queries(self) -> Unique:
        """The distinct query rows: U_B of the papers."""
        host = host_of(self.queries.rows)
        if host is not None:
            distinct, first_rows = np.unique(host, return_index=True)
            return Unique(*id_tensors(self.queries.rows.device, distinct, first_rows))
        ids, inverse = torch.unique(self.queries.rows, return_inverse=True)
        places = torch.arange(inverse.shape[0], device=ids.device)
        first = ids.new_full(ids.shape, inverse.shape[0]).scatter_reduce_(0, inverse, places, "amin")
        return Unique(ids, first)

    @cached_property
    def item_roles(self) -> tuple[Tensor, Tensor]:
        """The distinct items of the batch and how many of the two roles, positive and negative, each has.

        int64 [E] and float32 [E] of 1 or 2: I_B = P_B ∪ N_B of the papers, each role de-duplicated by itself.
        """
        hosts = self._host_roles
        if hosts is not None:
            device = self.positives.device
            return known(to_device(hosts[0], device), hosts[0]), to_device(hosts[1], device).to(torch.float32)
        positives, negatives = torch.unique(self.positives), torch.unique(self.negatives)
        ids, roles = torch.unique(torch.cat([positives, negatives]), return_counts=True)
        return ids, roles.to(torch.float32)

    @cached_property
    def both_roles(self) -> Tensor:
        """int64 [T]: places of the items of ``item_roles`` that are positive and negative, ascending."""
        hosts = self._host_roles
        if hosts is not None:
            return to_device(np.flatnonzero(hosts[1] > 1), self.positives.device)
        return (self.item_roles[1] > 1).nonzero().squeeze(1)

    @cached_property
    def _host_roles(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """``item_roles`` where they are known without waiting for the device."""
        positives, negatives = host_of(self.positives), host_of(self.negatives)
        if positives is None or negatives is None:
            return None
        both = np.concatenate([np.unique(positives), np.unique(negatives)])
        return np.unique(both, return_counts=True)


@dataclass(frozen=True)
class Epoch:
    """Where training stands. Every random stream is derived from ``seed``, a name and the epoch: nothing else has to be
    stored for a resumed run to go on with the same bytes."""

    index: int
    """Counted from 0."""
    seed: int
    """The run's seed."""
    total: int
    """Epochs planned, for schedules that are tied to them."""

    def stream(self, *names: str | int) -> int:
        """A seed for one named use in this epoch."""
        return sampling.stream(self.seed, *names, self.index)


class Batches(Protocol):
    """An epoch's batches, in order; iterated once, and asked for a single one to explain a failure."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def __getitem__(self, index: int) -> Batch: ...


class Task(Protocol):
    """Training data as queries and batches."""

    n_queries: int
    n_users: int
    n_items: int
    seen: Interactions
    """[U, I]: what each user has seen in training, never to be recommended or drawn as negative. A row a query, unless
    there are ``owners``."""
    owners: NDArray[np.int64] | None
    """int64 [Q]: the user of each query, hence its row of ``seen``; None where queries are users. The first ``n_users``
    queries are always the users as they would be asked now, in order."""
    device: torch.device
    n_skipped: int
    """Training pairs that can't be used, for want of a negative."""
    draws: str
    """``pairs``: every training row comes once an epoch. Anything else is another law."""
    flat: bool
    """Whether a row of a batch may have several positives."""

    @property
    def row_users(self) -> NDArray[np.int32] | None:
        """int32 [n_rows], ascending: the user of each training row, in the order of ``Batch.places``; None where batches are
        ``flat``."""

    @property
    def positives_per_user(self) -> NDArray[np.int64]:
        """int64 [U]: how many positives an epoch holds of each user, as often as it holds them."""

    @property
    def n_rows(self) -> int:
        """Training rows an epoch."""

    @property
    def n_batches(self) -> int:
        """Batches an epoch."""

    def queries(self, rows: Tensor) -> Queries:
        """The queries of int64 row keys [B], on the task's device."""

    def fresh_negatives(self, seed: int) -> NDArray[np.int32] | None:
        """int32 [n_rows, N]: other negatives for every training row; None where batches are ``flat``."""

    def redrawn(self, batch: Batch, seed: int) -> Batch:
        """A flat batch with other negatives, for a model that learns from the same rows beside another one; the batch itself
        where nothing is drawn."""

    def draw(self, epoch: Epoch) -> Batches:
        """All batches of an epoch, in order. Depends on the epoch alone, so it may run ahead in another thread."""


def id_tensors(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """int64, on the device, which knows what the host knows of them (`kdrs.training.devices`)."""
    return [known(to_device(array, device), array) for array in arrays]
