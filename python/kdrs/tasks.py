"""What a model is trained to answer: queries, batches of them, and the epoch's draws. Training data only: truth that is
held out for validation or test cannot reach a loss from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrs import sampling
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError


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

    def __len__(self) -> int:
        return self.rows.shape[0]

    def at(self, places: Tensor) -> Queries:
        """Some of these queries: int64 [B'] places among them."""
        history = None if self.history is None else self.history[places]
        return Queries(self.rows[places], self.users[places], history)


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
        counts = torch.bincount(self.rows[1], minlength=len(self.queries))
        starts = counts.cumsum(0) - counts
        kept = counts[rows] > 0
        rows, positives = rows[kept], positives[kept]
        turn = torch.arange(rows.shape[0], device=rows.device) % counts[rows]
        return Triples(rows, positives, self.negatives[starts[rows] + turn].unsqueeze(1))

    @cached_property
    def unique_queries(self) -> Unique:
        """The distinct query rows: U_B of the papers."""
        ids, inverse = torch.unique(self.queries.rows, return_inverse=True)
        places = torch.arange(inverse.shape[0], device=ids.device)
        first = ids.new_full(ids.shape, inverse.shape[0]).scatter_reduce_(0, inverse, places, "amin")
        return Unique(ids, first)

    @cached_property
    def item_roles(self) -> tuple[Tensor, Tensor]:
        """The distinct items of the batch and how many of the two roles, positive and negative, each has.

        int64 [E] and float32 [E] of 1 or 2: I_B = P_B ∪ N_B of the papers, each role de-duplicated by itself.
        """
        positives, negatives = torch.unique(self.positives), torch.unique(self.negatives)
        ids, roles = torch.unique(torch.cat([positives, negatives]), return_counts=True)
        return ids, roles.to(torch.float32)


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

    def draw(self, epoch: Epoch) -> Batches:
        """All batches of an epoch, in order. Depends on the epoch alone, so it may run ahead in another thread."""


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
    def row_users(self) -> np.ndarray:
        """int32 [n_rows], ascending: the user of each training row, in the order of ``Batch.places``."""
        return np.repeat(self._users, self.n_negatives) if self.layout == "triples" else self._users

    @property
    def positives_per_user(self) -> NDArray[np.int64]:
        return np.bincount(self.row_users, minlength=self.n_users)

    def negatives(self, seed: int) -> np.ndarray:
        """int32 [n_rows, N]: fresh negatives for every training row."""
        drawn = sampling.negatives(self._never, self._users, self.n_negatives, seed=seed, threads=self.threads)
        return drawn.reshape(-1, 1) if self.layout == "triples" else drawn

    def draw(self, epoch: Epoch) -> PairBatches:
        rng, seed = np.random.default_rng(epoch.stream("order")), epoch.stream("negatives")
        per_row = self.n_negatives if self.layout == "triples" else 1
        drawn = self.draws == "users"
        if drawn:
            order = self._drawn(rng)
            owners, count = self._users[order // per_row], 1 if self.layout == "triples" else self.n_negatives
            negatives = sampling.negatives(self._never, owners, count, seed=seed, threads=self.threads)
        else:
            negatives = self.negatives(seed)
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
        columns = (
            torch.from_numpy(ids).to(self.device, torch.int64).split(self.batch_size)
            for ids in (self._users[pairs], self._items[pairs], negatives, rows)
        )
        for asked, positives, drawn, places in zip(*columns, strict=True):
            yield Batch(Queries(asked, asked), positives, drawn, places)


class RowTask:
    """What tasks share whose training rows are whole rows of a matrix: those of ``rows`` that hold something.

    Raises ``DataError`` if nobody has seen anything.
    """

    owners: NDArray[np.int64] | None = None
    n_skipped = 0

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
        asked, positives, negatives, places, drawn_places = _tensors(self.device, rows, items, drawn, at, at_drawn)
        return Batch(Queries(asked, asked), positives, negatives, rows=(places, drawn_places))

    def redrawn(self, batch: Batch, seed: int) -> Batch:
        """A batch of this task with other negatives, for a model that learns from the same users beside another one."""
        rows, items = self._drawn(batch.queries.users.cpu().numpy(), seed)
        negatives, at = _tensors(self.device, items, rows)
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
        queries, positives, negatives, query_rows = _tensors(self.device, asked, rows[places], np.zeros(0), at)
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


def _tensors(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(array).to(device, torch.int64) for array in arrays]


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
                "have neither timestamps nor a meaningful order",
                "prepare it from a file with timestamps (--timestamp), or with each user's items oldest first",
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
        users = self._users[rows]
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
        owners = batch.queries.users[batch.positive_rows].cpu().numpy()
        drawn = sampling.negatives(self.seen, owners, self.n_negatives, seed=seed, threads=self.threads)
        (negatives,) = _tensors(self.device, drawn.reshape(-1) if self.flat else drawn)
        return replace(batch, negatives=negatives)

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
        return torch.from_numpy(ids).to(self._task.device, torch.int64)


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
    rows = seen.row_of_pair
    if items.shape != seen.indices.shape or not np.array_equal(items[np.lexsort((items, rows))], seen.indices):
        raise DataError(
            f"the order of shape {items.shape} does not hold the {seen.n_pairs} training items, user by user",
            "give Dataset.order, or each user's training items oldest first",
        )
    return items
