"""A prepared data set: interactions in three parts, ids, and how they came to be, in one directory."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdrs import _files
from kdrs.data import _stored
from kdrs.data._stored import FILES, FORMAT, HEAD, PREPARE_AGAIN
from kdrs.data.checks import check_lists
from kdrs.data.histories import Histories, checked_order
from kdrs.data.ids import Ids
from kdrs.data.interactions import Interactions, as_interactions, frozen
from kdrs.errors import ConfigError, DataError, shown

log = logging.getLogger("kdrs.data")

PARTS = ("train", "valid", "test")
KIND = "prepared data set"
_BLOCK = 2_000_000
"""Pairs checked at a time."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train, validation and test interactions of the same users and items: a prepared data set.

    Made by ``kdrs.data.prepare`` or ``from_interactions``, kept with ``save`` and read with ``load``. ``train``, ``valid``
    and ``test`` are ``Interactions`` of one shape, users x items; ``users`` and ``items`` are the ids of the rows and
    columns. All arrays are read-only.

    ``order`` int32 ``[train pairs]`` holds the train items of each user oldest first (or first in the file first),
    parallel to ``train.indptr``; ``None`` where the data has no order. ``candidates`` int32 ``[users, C]`` holds the
    items that the held-out items are ranked among, none of them an item of the user, padded at the end with -1.
    ``split`` is the rule that parted them, ``order_by`` what ``order`` goes by ("time", "file" or "given"), ``steps`` what
    was done to the rows and how many each step left. Raises ``DataError`` for parts that contradict each other.
    """

    train: Interactions
    valid: Interactions
    test: Interactions
    users: Ids
    items: Ids
    name: str = "data"
    order: NDArray[np.int32] | None = None
    candidates: NDArray[np.int32] | None = None
    split: dict[str, Any] = field(default_factory=lambda: {"kind": "given"})
    order_by: str | None = None
    sources: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    steps: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.users), len(self.items))
        for name in PARTS:
            if getattr(self, name).shape != shape:
                raise DataError(f"{name} is {getattr(self, name).shape}, the ids say {shape} users x items")
        if (self.order is None) != (self.order_by is None):
            raise DataError(f"order is {'absent' if self.order is None else 'given'} but order_by is {self.order_by!r}")
        if self.order is not None:
            object.__setattr__(self, "order", frozen(checked_order(self.order, self.train), np.int32))
        if self.candidates is not None:
            object.__setattr__(self, "candidates", frozen(_checked_candidates(self.candidates, shape), np.int32))

    @classmethod
    def from_interactions(
        cls,
        train: Any,
        valid: Any = None,
        test: Any = None,
        *,
        users: Iterable[str] | None = None,
        items: Iterable[str] | None = None,
        name: str = "data",
        order: ArrayLike | None = None,
        order_by: str | None = None,
        candidates: ArrayLike | None = None,
        split: dict[str, Any] | None = None,
        sources: Sequence[dict[str, Any]] = (),
        options: dict[str, Any] | None = None,
        steps: Sequence[dict[str, Any]] = (),
        allow_leak: bool = False,
    ) -> Dataset:
        """A data set of interactions at hand, `Interactions` or SciPy's sparse matrices; parts not given are empty, ids not
        given are "0", "1", ....

        Raises ``DataError`` for shapes that differ, for a pair in two parts (unless ``allow_leak``), for an ``order``
        that is no reordering of the train items, and for a candidate that is one of the user's own items.
        """
        train = as_interactions(train, "train")
        n_users, n_items = train.shape
        valid = empty(train.shape) if valid is None else as_interactions(valid, "valid")
        test = empty(train.shape) if test is None else as_interactions(test, "test")
        data = cls(
            train,
            valid,
            test,
            _as_ids(users, n_users, "user"),
            _as_ids(items, n_items, "item"),
            name,
            order=None if order is None else np.asarray(order),
            order_by=(order_by or "given") if order is not None else None,
            candidates=None if candidates is None else np.asarray(candidates),
            split=dict(split or {"kind": "given"}),
            sources=tuple(sources),
            options=dict(options or {}),
            steps=tuple(steps),
        )
        data._check_leaks(allow_leak)
        data._check_candidates_unseen()
        return data

    @property
    def n_users(self) -> int:
        return len(self.users)

    @property
    def n_items(self) -> int:
        return len(self.items)

    @property
    def n_candidates(self) -> int:
        """Candidates stored for each user; 0 where there are none."""
        return 0 if self.candidates is None else int(self.candidates.shape[1])

    @cached_property
    def n_cold_users(self) -> int:
        """Users of the held-out parts who have no training pair: nothing is learnt about them."""
        held_out = (self.valid.row_degrees > 0) | (self.test.row_degrees > 0)
        return int(np.count_nonzero(held_out & (self.train.row_degrees == 0)))

    @cached_property
    def full(self) -> Interactions:
        """Train, validation and test together."""
        return self.train.union(self.valid).union(self.test)

    @property
    def holds_out(self) -> bool:
        """Whether anything is held out: without it nothing can be measured."""
        return bool(self.valid.n_pairs or self.test.n_pairs)

    @property
    def test_follows_valid(self) -> bool:
        """Whether users have at most one validation item each, between the training items and the test items."""
        kind, held = self.split.get("kind"), self.valid.row_degrees
        ordered = kind in ("ordered", "time") or (kind == "last-n" and self.split.get("last") == "test")
        return ordered and self.order is not None and held.size > 0 and int(held.max()) == 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over ids, arrays and split: two data sets with one fingerprint give the same run.

        The name, the sources and the steps are not part of it.
        """
        arrays = {
            name: [str(array.dtype), list(array.shape), hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()]
            for name, array in self._arrays().items()
        }
        parts = {"users": self.users.digest, "items": self.items.digest, "arrays": arrays, "split": self.split}
        return hashlib.sha256(_stored.canonical(parts)).hexdigest()

    def popular_share(self, count: int) -> dict[str, float | None]:
        """Of the pairs of each part, the share that asks for the ``count`` most frequent items of train, ties by lower row.
        None for a part without pairs. Raises ``ConfigError`` for a count below 1, or above the items where there are any.

        Large parts that were drawn alike have nearly the same. Where test has more than valid, what validation chooses may not
        be what is best on test.
        """
        most_allowed = max(self.n_items, 1)
        if not 1 <= count <= most_allowed:
            raise ConfigError(f"count is {count}", f"allowed: 1 to {most_allowed}")
        counts = self.train.column_degrees
        most = np.argsort(-counts.astype(np.int64), kind="stable")[:count]
        popular = np.zeros(self.n_items, bool)
        popular[most] = True
        parts = {part: getattr(self, part).indices for part in PARTS}
        return {part: float(popular[items].mean()) if items.size else None for part, items in parts.items()}

    def describe(self) -> dict[str, Any]:
        """Counts, shares and history, ready for JSON."""
        degrees = self.full.row_degrees
        popularity = self.full.column_degrees
        cold = (self.train.column_degrees == 0) & (popularity > 0)
        frequent = max(1, self.n_items // 100)
        return {
            "name": self.name,
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "users": self.n_users,
            "items": self.n_items,
            "pairs": {"all": self.full.n_pairs, **{part: getattr(self, part).n_pairs for part in PARTS}},
            "users_with": {part: int((getattr(self, part).row_degrees > 0).sum()) for part in PARTS},
            "density": self.full.density,
            "items_per_user": _spread(degrees),
            "users_per_item": _spread(popularity),
            "cold_users": self.n_cold_users,
            "cold_items": int(cold.sum()),
            "cold_pairs": {part: int(cold[getattr(self, part).indices].sum()) for part in PARTS[1:]},
            "popular_items": frequent,
            "popular_share": self.popular_share(frequent),
            "order": self.order_by,
            "candidates": self.n_candidates,
            "split": self.split,
            "digests": {"users": self.users.digest, "items": self.items.digest},
            "sources": list(self.sources),
            "options": self.options,
            "steps": list(self.steps),
        }

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the directory ``path``: complete or absent, whatever happens meanwhile.

        An existing directory is refused; ``overwrite`` replaces it if it is empty or a prepared data set, and nothing
        else. The old and the new one change places in one call, so one of them always stands there. What a writer that was
        killed left beside it is taken away. Raises ``DataError`` for a directory in the way, ``MachineError`` for a link
        in the way and for what the disk refuses, with the space that is needed.
        """
        target = Path(path)
        rules = {"overwrite": overwrite, "kind": KIND, "needed": self._n_bytes()}
        with _files.new_folder(target, FILES, _stored.is_complete, **rules) as folder:  # type: ignore[arg-type]
            _stored.write(folder, self._head(), self.users, self.items, self._arrays())
        return target

    @staticmethod
    def check(path: str | os.PathLike[str]) -> str:
        """The fingerprint that a prepared data set states. Raises ``DataError`` for a directory that holds none; its arrays are
        not read."""
        folder = Path(path)
        put_back(folder)
        return str(_stored.read_head(folder)["fingerprint"])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Dataset:
        """The data set that ``save`` wrote; every byte is checked against the digests.

        Raises ``DataError`` for a directory that holds none, for a version this kdrs does not read, and for files
        that were cut or changed or contradict each other; ``MachineError`` where the machine cannot read or hold them.
        """
        folder = Path(path)
        put_back(folder)
        stored = _stored.read(folder)
        head, arrays = stored.head, stored.arrays
        shape = (len(stored.users), len(stored.items))
        try:
            data = cls(
                **{part: Interactions(arrays[f"{part}.indptr"], arrays[f"{part}.indices"], shape) for part in PARTS},
                users=stored.users,
                items=stored.items,
                name=head["name"],
                order=arrays.get("train_order"),
                order_by=head["order"],
                candidates=arrays.get("candidates"),
                split=head["split"],
                sources=tuple(head["sources"]),
                options=head["options"],
                steps=tuple(head["steps"]),
            )
            data._check_candidates_unseen()
        except DataError as error:
            raise DataError(f"{shown(str(folder), 300)}: {error.cause}", PREPARE_AGAIN) from error
        if data.fingerprint != head["fingerprint"]:
            raise DataError(
                f"{shown(str(folder), 300)}: fingerprint {data.fingerprint[:12]}, {HEAD} says {head['fingerprint'][:12]}",
                PREPARE_AGAIN,
            )
        return data

    def whole(self) -> Dataset:
        """The same data set with all pairs in train and nothing held out: for a model that goes into production, whose
        settings were chosen with this one. All ids stay.

        The order of train is kept where held-out pairs have a place in it: splits by order (last-n, ordered, time) of which
        each part holds at most one pair a user; ``None`` elsewhere. Candidates are left out.
        """
        if not self.holds_out:
            return self
        order, held = None, self.held_in_order()
        if self.order is not None and held is not None:
            parts = [(self.train.row_of_pair, self.order), *((part.row_of_pair, part.indices) for part in held)]
            users, items = (np.concatenate(side) for side in zip(*parts, strict=True))
            order = Histories.from_pairs(users, items, *self.train.shape).order
        return replace(
            self,
            train=self.full,
            valid=empty(self.train.shape),
            test=empty(self.train.shape),
            order=order,
            order_by=None if order is None else self.order_by,
            candidates=None,
            split={"kind": "none"},
            steps=(*self.steps, {"step": "all parts trained on", "of": self.fingerprint, "train": self.full.n_pairs}),
        )

    def held_in_order(self) -> list[Interactions] | None:
        """The held-out parts in the order of time, each user's pairs after those of train; None where they have none."""
        kind, last = self.split.get("kind"), self.split.get("last", "test")
        if kind not in ("last-n", "ordered", "time") or any(
            part.row_degrees.max(initial=0) > 1 for part in (self.valid, self.test)
        ):
            return None
        return [self.valid, self.test] if last == "test" else [self.test, self.valid]

    def without_users(self, users: ArrayLike) -> Dataset:
        """The same data set without the pairs of some users, by their rows; all ids stay.

        What is trained on it has never seen these users. Measured on the whole data set, their vectors worked out of their
        train items, they are the new users of "strong generalization" (Marlin, 2004; Liang et al., WWW 2018).

        Raises ``DataError`` for rows that are none.
        """
        try:
            rows = np.unique(np.asarray(users))
        except ValueError:  # lists of several lengths
            rows = np.array([""])
        if rows.size and (rows.dtype.kind not in "iu" or rows[0] < 0 or rows[-1] >= self.n_users):
            what = f"from {rows[0]} to {rows[-1]}" if rows.dtype.kind in "iuf" else "no numbers"
            raise DataError(
                f"users are {what}",
                f"give rows of users: integers from 0 to {self.n_users - 1:,}; data.users.index(ids) are the rows of ids",
            )
        left = np.ones(self.n_users, bool)
        left[rows.astype(np.int64)] = False

        def rest(pairs: Interactions) -> Interactions:
            kept = left[pairs.row_of_pair]
            return Interactions.from_pairs(pairs.row_of_pair[kept], pairs.indices[kept], *pairs.shape)

        parts = self.train, self.valid, self.test
        train, valid, test = map(rest, parts)
        dropped = sum(part.n_pairs for part in parts) - sum(part.n_pairs for part in (train, valid, test))
        return replace(
            self,
            train=train,
            valid=valid,
            test=test,
            name=f"{self.name}-without-{rows.size}",
            order=None if self.order is None else self.order[left[self.train.row_of_pair]],
            steps=(*self.steps, {"step": "without some users", "users": int(rows.size), "pairs": dropped}),
        )

    def _head(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "counts": {
                "users": self.n_users,
                "items": self.n_items,
                **{part: getattr(self, part).n_pairs for part in PARTS},
            },
            "digests": {"users": self.users.digest, "items": self.items.digest},
            "split": self.split,
            "order": self.order_by,
            "candidates": self.n_candidates,
            "sources": list(self.sources),
            "options": self.options,
            "steps": list(self.steps),
        }

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for part in PARTS:
            interactions: Interactions = getattr(self, part)
            arrays[f"{part}.indptr"], arrays[f"{part}.indices"] = interactions.indptr, interactions.indices
        if self.order is not None:
            arrays["train_order"] = self.order
        if self.candidates is not None:
            arrays["candidates"] = self.candidates
        return arrays

    def _n_bytes(self) -> int:
        return sum(array.nbytes for array in self._arrays().values()) + 16 * (self.n_users + self.n_items)

    def _check_leaks(self, allow_leak: bool) -> None:
        for left, right in (("train", "valid"), ("train", "test"), ("valid", "test")):
            shared = getattr(self, left).intersection(getattr(self, right))
            if not shared.n_pairs:
                continue
            if allow_leak:
                log.warning("%d pairs are in %s and in %s", shared.n_pairs, left, right)
                continue
            user, item = int(shared.row_of_pair[0]), int(shared.indices[0])
            raise DataError(
                f"{shared.n_pairs:,} pairs are in {left} and in {right}, first user {shown(self.users[user])} "
                f"item {shown(self.items[item])}",
                "a target that was trained on measures nothing: mend the files, or say --allow-leak (allow_leak=True)",
            )

    def _check_candidates_unseen(self) -> None:
        if self.candidates is None or not self.candidates.size:
            return
        full = self.full
        block = max(1, _BLOCK // self.candidates.shape[1])
        for start in range(0, self.n_users, block):
            stop = min(start + block, self.n_users)
            seen = full.indices[full.indptr[start] : full.indptr[stop]]
            rows = full.row_of_pair[full.indptr[start] : full.indptr[stop]].astype(np.int64) - start
            own = rows * self.n_items + seen
            drawn = self.candidates[start:stop].astype(np.int64)
            keys = (drawn + np.arange(stop - start)[:, None] * self.n_items)[drawn >= 0]
            if not own.size or not keys.size:
                continue
            if (keys[1:] < keys[:-1]).any():
                keys.sort()
            hit = keys[np.minimum(np.searchsorted(keys, own), keys.size - 1)] == own
            if hit.any():
                user, item = divmod(int(own[np.argmax(hit)]), self.n_items)
                raise DataError(
                    f"candidate {shown(self.items[item])} of user {shown(self.users[start + user])} "
                    "is one of the user's own items",
                    "draw candidates outside train, valid and test, as kdrs.data.draw_candidates does",
                )

    def __repr__(self) -> str:
        parts = ", ".join(f"{getattr(self, part).n_pairs:,} {part}" for part in PARTS)
        return f"Dataset({self.name!r}, {self.n_users:,} users x {self.n_items:,} items, {parts})"


def empty(shape: tuple[int, int]) -> Interactions:
    """Interactions of ``shape`` without any pair."""
    return Interactions(np.zeros(shape[0] + 1, np.int64), np.zeros(0, np.int32), shape)


def is_dataset(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` looks like a directory that ``Dataset.save`` wrote: it has a head, valid or not."""
    return (Path(path) / HEAD).is_file()


def has_candidates(path: str | os.PathLike[str]) -> bool:
    """Whether the data set that was saved there has candidates, by its head alone. Raises ``DataError`` for a head that is not
    there or damaged."""
    put_back(Path(path))
    return bool(_stored.read_head(Path(path))["candidates"])


def put_back(path: Path) -> None:
    """Where nothing stands at ``path``: put back the data set that a command moved away and died over, if there is one."""
    if path.name and not os.path.lexists(path):
        _files.sweep(path, FILES, _stored.is_complete)


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse, before any work is done, a place that ``Dataset.save`` would refuse."""
    put_back(target)
    _files.check_place(target, FILES, _stored.is_complete, overwrite=overwrite, kind=KIND)


def _as_ids(values: Iterable[str] | None, n: int, kind: str) -> Ids:
    if values is None:
        return Ids.numbered(n, kind)
    return values if isinstance(values, Ids) and values.kind == kind else Ids(values, kind)


def _checked_candidates(candidates: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.int32]:
    if candidates.dtype.kind not in "iu" or candidates.ndim != 2 or candidates.shape[0] != shape[0]:
        raise DataError(f"candidates are {candidates.dtype} {candidates.shape}; allowed: int32 [{shape[0]} users, C]")
    if not candidates.shape[1]:
        raise DataError("candidates have no column", "leave them out to rank all items")
    check_lists(candidates, shape[1], "the candidate list of user")
    return np.ascontiguousarray(candidates, dtype=np.int32)


def _spread(counts: NDArray[np.int64]) -> dict[str, float]:
    if not counts.size:
        return {"min": 0, "median": 0, "mean": 0.0, "max": 0}
    return {
        "min": int(counts.min()),
        "median": float(np.median(counts)),
        "mean": float(counts.mean()),
        "max": int(counts.max()),
    }
