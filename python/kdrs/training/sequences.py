"""The task of models that learn what comes next in a user's sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrs.core import sampling
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError
from kdrs.training.devices import host_of, known, numbers_of
from kdrs.training.queries import Batch, Epoch, Queries, Task, Triples, id_tensors


class SequenceTask:
    """What comes next after a user's latest items: Caser, SASRec.

    ``order`` int32 [pairs] holds each user's training items oldest first, parallel to ``seen.indptr`` (``Dataset.order``).
    Query rows 0 to U-1 are the users asking now, after their last ``length`` training items; rows U to Q-1 are the training
    instances. ``seen`` stays [U, I] and ``owners`` names each query's user.

    ``form="windows"`` (Caser): ``length`` items and the ``targets`` items after them, all windows of stride 1 that end in a
    user's sequence; a user with too few items for a whole window, but more than ``targets``, has one, padded on the left.
    ``form="whole"`` (SASRec): one instance a user with two items or more, the last ``length`` items before the very last
    one; each of them has the item after it as target. Users with fewer items have no instance (``n_short``).

    Each epoch every target gets ``n_negatives`` fresh items drawn uniformly from those its user has not seen in training.
    Windows with one target give batches of the shape of `PairTask`'s rows ([B] and [B, N]), all others are
    `SequenceBatch`es. Only ints are held: a history is gathered when its batch is.

    Users who have seen every item have no negative: their instances are left out, their targets counted in ``n_skipped``.
    Raises ``DataError`` for data without order and if nothing is left to train on.
    """

    draws = "pairs"

    def __init__(
        self,
        seen: Interactions,
        order: NDArray[np.int32] | None,
        *,
        length: int,
        targets: int = 1,
        form: str = "windows",
        batch_size: int = 512,
        n_negatives: int = 1,
        device: torch.device | str = "cpu",
        threads: int | None = None,
    ):
        for name, value in (
            ("length", length),
            ("targets", targets),
            ("batch_size", batch_size),
            ("n_negatives", n_negatives),
        ):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if form not in ("windows", "whole") or (form == "whole" and targets != 1):
            raise ConfigError(f"form is {form!r} with {targets} targets", "allowed: windows, or whole with 1 target")
        if order is None:
            raise DataError(
                "a sequential model was asked for, and the data set has no order: it was prepared from a source whose rows "
                "have neither timestamps nor a meaningful order, or its parts were joined",
                "prepare it from a file with timestamps (--timestamp), or with each user's items oldest first; for a whole "
                "data set take that file too: kdrs data prepare FILE --split none",
            )
        self.seen, self.length, self.form, self.batch_size, self.n_negatives = (
            seen,
            length,
            form,
            batch_size,
            n_negatives,
        )
        self.n_users, self.n_items = seen.shape
        self.padding = self.n_items
        self.flat = form == "whole" or targets > 1
        """Whether instances may have several targets, so that batches are `SequenceBatch`es."""
        self.device, self.threads = torch.device(device), threads
        self._targets = targets
        self._after: tuple[Interactions, SequenceTask] | None = None
        self.items = _checked_order(order, seen)
        owners, ends, firsts, counts = _instances(seen, length, targets, form)
        self.n_short = int(np.count_nonzero(seen.row_degrees > 0) - np.count_nonzero(np.bincount(owners)))
        usable = seen.row_degrees[owners] < self.n_items
        self.n_skipped = int(counts[~usable].sum())
        if self.n_skipped:
            owners, ends, firsts, counts = owners[usable], ends[usable], firsts[usable], counts[usable]
        if not owners.size:
            raise DataError(
                f"no training instance is left: of {self.n_users} users {self.n_short} have too few items for one, and "
                f"{self.n_skipped} targets belong to users who have seen every item",
                "check the data set's filters and split with `kdrs data describe`",
            )
        self.n_queries = self.n_users + owners.size
        self.owners: NDArray[np.int64] | None = np.concatenate([np.arange(self.n_users), owners])
        self._instance_owners = owners.astype(np.int32)
        self._firsts, self._counts = firsts, counts
        self._instance_ends = ends
        self._users = torch.from_numpy(self.owners).to(self.device)
        self._ends = torch.from_numpy(np.concatenate([seen.indptr[1:], ends])).to(self.device)
        self._starts = torch.from_numpy(seen.indptr[:-1].copy()).to(self.device)
        self._order = torch.from_numpy(self.items).to(self.device)
        self._window = torch.arange(-length, 0, device=self.device)

    def after(self, pairs: Interactions) -> SequenceTask:
        """This task once users have these items too, [U, I], after those of training. Made once for the same pairs.

        Raises ``DataError`` if a user has more than one, whose order would be unknown.
        """
        if self._after is None or self._after[0] is not pairs:
            more = pairs.row_degrees
            if more.size and more.max() > 1:
                raise DataError(
                    f"user {int(more.argmax())} has {int(more.max())} later items, whose order is unknown",
                    "allowed: at most one a user",
                )
            order = np.insert(self.items, self.seen.indptr[1:][more > 0], pairs.indices)
            users = np.repeat(np.arange(self.n_users), self.seen.row_degrees + more)
            seen = Interactions.from_pairs(users, order.astype(np.int64), *self.seen.shape)
            task = SequenceTask(
                seen,
                order,
                length=self.length,
                targets=self._targets,
                form=self.form,
                batch_size=self.batch_size,
                n_negatives=self.n_negatives,
                device=self.device,
                threads=self.threads,
            )
            self._after = pairs, task
        return self._after[1]

    def queries(self, rows: Tensor) -> Queries:
        users, host = self._users[rows], host_of(rows)
        if host is not None and self.owners is not None:
            users = known(users, self.owners[host])
        return Queries(rows, users, self._history(users, self._ends[rows]))

    def ends(self, rows: Tensor) -> Tensor:
        """int64 [B]: how many of its user's items a query knows."""
        return self._ends[rows] - self._starts[self._users[rows]]

    def queries_at(self, users: Tensor, ends: Tensor) -> Queries:
        """Users as they stood after their first ``ends`` items. Their key is the user, for there need be no such row."""
        return Queries(users, users, self._history(users, self._starts[users] + ends))

    def _history(self, users: Tensor, ends: Tensor) -> Tensor:
        places = ends.unsqueeze(1) + self._window  # [B, S]
        items = self._order[places.clamp(min=0)].long()
        return items.masked_fill_(places < self._starts[users].unsqueeze(1), self.padding)

    @property
    def n_rows(self) -> int:
        """Training instances an epoch."""
        return self._instance_owners.size

    @property
    def n_batches(self) -> int:
        return -(-self.n_rows // self.batch_size)

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self._counts)])

    @property
    def row_users(self) -> NDArray[np.int32] | None:
        """int32 [n_rows], ascending: the user of each training row, in the order of ``Batch.places``; None where rows have
        several targets."""
        return None if self.flat else self._instance_owners

    @property
    def positives_per_user(self) -> NDArray[np.int64]:
        return np.bincount(np.repeat(self._instance_owners, self._counts), minlength=self.n_users)

    def redrawn(self, batch: Batch, seed: int) -> Batch:
        """A batch of this task with other negatives, for a model that learns from the same instances beside another one."""
        owners = numbers_of(batch.queries.users)[numbers_of(batch.positive_rows)]
        drawn = sampling.negatives(self.seen, owners, self.n_negatives, seed=seed, threads=self.threads)
        (negatives,) = id_tensors(self.device, drawn.reshape(-1) if self.flat else drawn)
        return replace(batch, negatives=negatives)

    def fresh_negatives(self, seed: int) -> NDArray[np.int32] | None:
        return None if self.flat else self.negatives(seed)

    def negatives(self, seed: int) -> NDArray[np.int32]:
        """int32 [targets, N]: fresh negatives for every target of every instance."""
        owners = np.repeat(self._instance_owners, self._counts) if self.flat else self._instance_owners
        return sampling.negatives(self.seen, owners, self.n_negatives, seed=seed, threads=self.threads)

    def draw(self, epoch: Epoch) -> SequenceBatches:
        negatives = self.negatives(epoch.stream("negatives"))
        order = np.arange(self.n_rows, dtype=np.int32)
        np.random.default_rng(epoch.stream("order")).shuffle(order)
        return SequenceBatches(self, negatives, order)


@dataclass(frozen=True, kw_only=True)
class SequenceBatch(Batch):
    """A batch whose instances have several targets, hence flat; each target has N negatives of its own, in order."""

    steps: Tensor
    """int64 [P]: the place in the history, 0 to S-1, after which the target comes."""

    @cached_property
    def triples(self) -> Triples:
        return Triples(self.positive_rows, self.positives, self.negatives.view(self.positives.shape[0], -1))


class SequenceBatches:
    """An epoch of instances. Holds the order and the negatives; histories and targets are gathered batch by batch."""

    def __init__(self, task: SequenceTask, negatives: NDArray[np.int32], order: NDArray[np.int32]):
        self._task, self._negatives, self._order = task, negatives, order

    def __len__(self) -> int:
        return self._task.n_batches

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Batch:
        task = self._task
        chosen = self._order[index * task.batch_size : (index + 1) * task.batch_size].astype(np.int64)
        queries = task.queries(self._tensor(task.n_users + chosen))
        firsts, counts = task._firsts[chosen], task._counts[chosen]
        if not task.flat:
            positives, drawn = self._tensor(task.items[firsts]), self._tensor(self._negatives[chosen])
            return Batch(queries, positives, drawn, self._tensor(chosen))
        rows = np.repeat(np.arange(chosen.size), counts)
        within = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
        targets = firsts[rows] + within
        if task.form == "whole":
            steps = targets - 1 - task._instance_ends[chosen][rows] + task.length
        else:
            steps = np.full(rows.size, task.length - 1)
        negatives = self._negatives[task._offsets[chosen][rows] + within]
        return SequenceBatch(
            queries,
            self._tensor(task.items[targets]),
            self._tensor(negatives.reshape(-1)),
            rows=(self._tensor(rows), self._tensor(np.repeat(rows, task.n_negatives))),
            steps=self._tensor(steps),
        )

    def _tensor(self, ids: NDArray[np.integer]) -> Tensor:
        return id_tensors(self._task.device, ids)[0]


def translated(queries: Queries, asked: Task, own: Task) -> Queries:
    """Queries of the task ``asked`` as a model that was trained on the task ``own`` understands them.

    A model of users is asked for each query's user. A sequential model is asked for the user at the same moment where the
    queries are moments themselves, and else for the user as of now, after the last training items.
    """
    if own is asked:
        return queries
    if isinstance(own, SequenceTask) and isinstance(asked, SequenceTask):
        return own.queries_at(queries.users, asked.ends(queries.rows))
    return own.queries(queries.users)


def _instances(
    seen: Interactions, length: int, targets: int, form: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each instance: its user, the end of its history, its first target (both places in the order), its targets' number."""
    degrees, starts = seen.row_degrees, seen.indptr[:-1]
    if form == "whole":
        owners = np.flatnonzero(degrees > 1)
        counts = np.minimum(degrees[owners] - 1, length)
        ends = starts[owners] + degrees[owners] - 1
        return owners, ends, ends - counts + 1, counts
    per_user = np.where(degrees > targets, np.maximum(degrees - length - targets + 1, 1), 0)
    owners = np.repeat(np.arange(degrees.size), per_user)
    later = np.repeat(np.cumsum(per_user), per_user) - np.arange(owners.size) - 1  # windows of the user after this one
    ends = starts[owners] + degrees[owners] - targets - later
    return owners, ends, ends, np.full(owners.size, targets)


def _checked_order(order: NDArray[np.int32], seen: Interactions) -> NDArray[np.int32]:
    items = np.array(order, np.int32)  # a copy: torch wants to share memory that may be written
    fits = items.shape == seen.indices.shape and (not items.size or 0 <= items.min() <= items.max() < seen.shape[1])
    if fits:
        starts = seen.row_of_pair * np.int64(seen.shape[1])
        keys = starts + items
        keys.sort()  # a third of what np.lexsort takes
        fits = np.array_equal(keys, starts + seen.indices)
    if not fits:
        raise DataError(
            f"the order of shape {items.shape} does not hold the {seen.n_pairs} training items, user by user",
            "give Dataset.order, or each user's training items oldest first",
        )
    return items
