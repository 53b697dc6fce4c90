"""A prepared data set: interactions in three parts, ids, and how they came to be, in one directory."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdrs._files import sync
from kdrs.data.ids import Ids
from kdrs.data.interactions import Interactions
from kdrs.errors import DataError, MachineError, shown
from kdrs.escaping import json_text

log = logging.getLogger("kdrs.data")

FORMAT = "kdrs-dataset/1"
PARTS = ("train", "valid", "test")
HEAD, ARRAYS, USERS, ITEMS = "dataset.json", "interactions.safetensors", "users.json", "items.json"
_BLOCK = 2_000_000
"""Pairs checked at a time."""
PREPARE_AGAIN = "prepare the data set again with kdrs data prepare"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train, validation and test interactions of the same users and items.

    ``order`` int32 ``[train pairs]`` holds the train items of each user oldest first (or first in the file first),
    parallel to ``train.indptr``; ``None`` where the data has no order. ``candidates`` int32 ``[users, C]`` holds the
    items that the held-out items are ranked among, none of them an item of the user, padded at the end with -1.
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
            object.__setattr__(self, "order", _frozen(_checked_order(self.order, self.train)))
        if self.candidates is not None:
            object.__setattr__(self, "candidates", _frozen(_checked_candidates(self.candidates, shape)))

    @classmethod
    def from_interactions(
        cls,
        train: Interactions,
        valid: Interactions | None = None,
        test: Interactions | None = None,
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
        """A data set of interactions at hand; parts not given are empty, ids not given are "0", "1", ....

        Raises ``DataError`` for shapes that differ, for a pair in two parts (unless ``allow_leak``), for an ``order``
        that is no reordering of the train items, and for a candidate that is one of the user's own items.
        """
        n_users, n_items = train.shape
        valid = empty(train.shape) if valid is None else valid
        test = empty(train.shape) if test is None else test
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
    def full(self) -> Interactions:
        """Train, validation and test together."""
        return self.train.union(self.valid).union(self.test)

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
        return hashlib.sha256(_canonical(parts)).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Counts, shares and history, ready for JSON."""
        degrees = self.full.row_degrees
        popularity = self.full.column_degrees
        cold = (self.train.column_degrees == 0) & (popularity > 0)
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
            "cold_items": int(cold.sum()),
            "cold_pairs": {part: int(cold[getattr(self, part).indices].sum()) for part in PARTS[1:]},
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
        else. Raises ``DataError`` for a directory in the way and ``MachineError`` for what the disk refuses.
        """
        target = Path(path)
        check_target(target, overwrite)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            self._write(temporary)
            _replace_directory(temporary, target)
        except OSError as error:
            raise MachineError(
                f"cannot write {shown(str(target))}: {error.strerror or error}",
                f"it takes about {self._n_bytes() / 1e6:.1f} MB; check space and permissions, or name another folder",
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Dataset:
        """The data set that ``save`` wrote; every byte is checked against the digests.

        Raises ``DataError`` for a directory that holds none, for a version this kdrs does not read, and for files
        that were cut or changed.
        """
        folder = Path(path)
        head = _read_head(folder)
        files = {name: _checked_file(folder / name, head["files"].get(name)) for name in (USERS, ITEMS, ARRAYS)}
        users, items = (Ids.from_json(_read(files[name]), kind) for name, kind in ((USERS, "user"), (ITEMS, "item")))
        arrays = _read_arrays(files[ARRAYS])
        shape = (len(users), len(items))
        try:
            parts = {p: Interactions(arrays[f"{p}.indptr"], arrays[f"{p}.indices"], shape) for p in PARTS}
            data = cls(
                **parts,
                users=users,
                items=items,
                name=head["name"],
                order=arrays.get("train_order"),
                order_by=head["order"],
                candidates=arrays.get("candidates"),
                split=head["split"],
                sources=tuple(head["sources"]),
                options=head["options"],
                steps=tuple(head["steps"]),
            )
        except KeyError as error:
            raise DataError(f"{shown(str(folder))}: {error.args[0]} is missing", PREPARE_AGAIN) from error
        if data.fingerprint != head["fingerprint"]:
            raise DataError(
                f"{shown(str(folder))}: fingerprint {data.fingerprint[:12]}, {HEAD} says {head['fingerprint'][:12]}",
                PREPARE_AGAIN,
            )
        return data

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

    def _write(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        (folder / USERS).write_bytes(self.users.to_json())
        (folder / ITEMS).write_bytes(self.items.to_json())
        save_file(self._arrays(), folder / ARRAYS, metadata={"kdrs": FORMAT})
        shutil.copymode(folder / USERS, folder / ARRAYS)  # safetensors gives 0600, whatever the umask
        head = {
            "format": FORMAT,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "counts": {
                "users": self.n_users,
                "items": self.n_items,
                **{part: getattr(self, part).n_pairs for part in PARTS},
            },
            "digests": {"users": self.users.digest, "items": self.items.digest},
            "files": {name: _file_record(folder / name) for name in (USERS, ITEMS, ARRAYS)},
            "split": self.split,
            "order": self.order_by,
            "candidates": self.n_candidates,
            "sources": list(self.sources),
            "options": self.options,
            "steps": list(self.steps),
        }
        head["checksum"] = hashlib.sha256(_canonical(head)).hexdigest()
        text = json_text(head, indent=2, ascii=False) + "\n"
        (folder / HEAD).write_text(text, encoding="utf-8", newline="\n")
        for file in folder.iterdir():
            sync(file)
        sync(folder)

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
            keys = np.where(drawn < 0, -1, drawn + np.arange(stop - start)[:, None] * self.n_items)
            if not own.size:
                continue
            hit = own[np.minimum(np.searchsorted(own, keys), own.size - 1)] == keys
            if hit.any():
                user, place = np.argwhere(hit)[0]
                raise DataError(
                    f"candidate {shown(self.items[int(drawn[user, place])])} of user "
                    f"{shown(self.users[start + int(user)])} is one of the user's own items",
                    "draw candidates outside train, valid and test, as kdrs.data.draw_candidates does",
                )

    def __repr__(self) -> str:
        parts = ", ".join(f"{getattr(self, part).n_pairs:,} {part}" for part in PARTS)
        return f"Dataset({self.name!r}, {self.n_users:,} users x {self.n_items:,} items, {parts})"


def empty(shape: tuple[int, int]) -> Interactions:
    """Interactions of ``shape`` without any pair."""
    return Interactions(np.zeros(shape[0] + 1, np.int64), np.zeros(0, np.int32), shape)


def is_dataset(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a directory that ``Dataset.save`` wrote."""
    return (Path(path) / HEAD).is_file()


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse, before any work is done, a place that ``Dataset.save`` would refuse."""
    if not target.name:
        raise DataError(f"{shown(str(target))} is no place for a data set", "name a new folder")
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise DataError(f"{shown(str(target))} exists and is no folder", "name another folder")
    if not any(target.iterdir()):
        return
    if not is_dataset(target):
        raise DataError(
            f"{shown(str(target))} exists, is not empty and holds no prepared data set", "name another folder"
        )
    if not overwrite:
        raise DataError(
            f"{shown(str(target))} already holds a prepared data set",
            "name another folder, or replace it with --overwrite (overwrite=True)",
        )


def _as_ids(values: Iterable[str] | None, n: int, kind: str) -> Ids:
    if values is None:
        return Ids.numbered(n, kind)
    return values if isinstance(values, Ids) and values.kind == kind else Ids(values, kind)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _checked_order(order: NDArray[Any], train: Interactions) -> NDArray[np.int32]:
    if order.dtype.kind not in "iu" or order.shape != train.indices.shape:
        raise DataError(f"order is {order.dtype} {order.shape}; allowed: int32 {train.indices.shape}, as train.indices")
    if order.size and not (int(order.min()) >= 0 and int(order.max()) < train.shape[1]):
        raise DataError(f"order holds items {order.min()} to {order.max()}; allowed: 0 to {train.shape[1] - 1}")
    # In blocks of users, so that loading takes little more memory than the data.
    bounds = np.searchsorted(train.indptr, np.arange(0, order.size + _BLOCK, _BLOCK))
    for start, stop in itertools.pairwise(np.minimum(bounds, train.shape[0]).tolist()):
        pairs = slice(int(train.indptr[start]), int(train.indptr[stop]))
        rows = np.repeat(np.arange(stop - start) * train.shape[1], np.diff(train.indptr[start : stop + 1]))
        if not np.array_equal(np.sort(rows + order[pairs]), rows + train.indices[pairs]):
            raise DataError("order is no reordering of each user's train items")
    return np.ascontiguousarray(order, dtype=np.int32)


def _checked_candidates(candidates: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.int32]:
    if candidates.dtype.kind not in "iu" or candidates.ndim != 2 or candidates.shape[0] != shape[0]:
        raise DataError(f"candidates are {candidates.dtype} {candidates.shape}; allowed: int32 [{shape[0]} users, C]")
    if candidates.size:
        low, high = int(candidates.min()), int(candidates.max())
        if low < -1 or high >= shape[1]:
            raise DataError(f"candidates run from {low} to {high}; allowed: items 0 to {shape[1] - 1}, -1 for padding")
        if ((candidates[:, :-1] < 0) & (candidates[:, 1:] >= 0)).any():
            raise DataError("candidates are padded with -1 in the middle of a row; padding stands at the end")
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


def _canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")  # names of files need not be Unicode


def _file_record(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _checked_file(path: Path, record: dict[str, Any] | None) -> Path:
    if record is None:
        raise DataError(f"{shown(str(path.parent / HEAD))} does not list {path.name}", PREPARE_AGAIN)
    try:
        size = path.stat().st_size
        if size != record["bytes"]:
            raise DataError(f"{shown(str(path))} has {size:,} bytes; {HEAD} says {record['bytes']:,}", PREPARE_AGAIN)
        if _file_record(path)["sha256"] != record["sha256"]:
            raise DataError(f"{shown(str(path))} was changed after it was written (SHA-256 differs)", PREPARE_AGAIN)
    except OSError as error:
        raise DataError(f"cannot read {shown(str(path))}: {error.strerror or error}", PREPARE_AGAIN) from error
    return path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {shown(str(path))}: {error.strerror or error}", PREPARE_AGAIN) from error


def _read_head(folder: Path) -> dict[str, Any]:
    path = folder / HEAD
    if not path.is_file():
        raise DataError(
            f"{shown(str(folder))} is no prepared data set (it has no {HEAD})",
            "make one with kdrs data prepare SOURCE --out DIR",
        )
    try:
        head = json.loads(_read(path).decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{shown(str(path))} is damaged: {error}", PREPARE_AGAIN) from error
    version = head.get("format") if isinstance(head, dict) else None
    if version != FORMAT:
        raise DataError(
            f"{shown(str(path))} has format {shown(version)}; this kdrs reads {FORMAT}",
            "it was written by another version of kdrs: prepare the data again, or use that version",
        )
    checksum = head.pop("checksum", None)
    if checksum != hashlib.sha256(_canonical(head)).hexdigest():
        raise DataError(f"{shown(str(path))} was changed after it was written (its checksum differs)", PREPARE_AGAIN)
    return head


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{shown(str(path))} cannot be read: {error}", PREPARE_AGAIN) from error


def _replace_directory(new: Path, target: Path) -> None:
    """Rename ``new`` to ``target``; a directory already there is moved away first and removed last."""
    old = None
    if target.exists() and any(target.iterdir()):
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.old")
        target.rename(old)
    elif target.exists() and os.name == "nt":
        target.rmdir()
    try:
        new.rename(target)
    except BaseException:
        if old is not None:
            with contextlib.suppress(OSError):
                old.rename(target)
        raise
    sync(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
