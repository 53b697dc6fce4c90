"""Interactions that know which came first."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdrs.data.interactions import Interactions, frozen, still
from kdrs.errors import DataError

_BLOCK = 2_000_000


@dataclass(frozen=True, eq=False)
class Histories(Interactions):
    """Interactions, with each row's columns in an order too: ``order`` int32 ``[pairs]``, oldest first, parallel to
    ``indptr``. Raises ``DataError`` where it is no reordering of each row."""

    order: NDArray[np.int32]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "order", frozen(checked_order(np.asarray(self.order), self), np.int32))

    def __getstate__(self) -> tuple[Any, ...]:
        return *super().__getstate__(), self.order

    def __setstate__(self, state: tuple[Any, ...] | dict[str, Any]) -> None:
        order = state["order"] if isinstance(state, dict) else state[3]
        super().__setstate__(state if isinstance(state, dict) else state[:3])
        object.__setattr__(self, "order", still(order))

    @classmethod
    def of(cls, pairs: Interactions, order: NDArray[np.int32]) -> Histories:
        return cls(pairs.indptr, pairs.indices, pairs.shape, order)

    @classmethod
    def from_pairs(
        cls, users: ArrayLike, items: ArrayLike, n_users: int | None = None, n_items: int | None = None
    ) -> Histories:
        """Of parallel id arrays, oldest first within a user; a repeated pair counts where it comes first, as in prepared
        data. Otherwise as `Interactions.from_pairs`."""
        pairs = Interactions.from_pairs(users, items, n_users, n_items)
        user, item = np.asarray(users, np.int64), np.asarray(items, np.int64)
        _, first = np.unique(user * max(pairs.shape[1], 1) + item, return_index=True)
        first.sort()
        first = first[np.argsort(user[first], kind="stable")]
        return cls.of(pairs, item[first].astype(np.int32))

    def rows(self, chosen: ArrayLike) -> Histories:
        return Histories.of(super().rows(chosen), self.order[self.places_of(chosen)[1]])


def checked_order(order: NDArray[Any], train: Interactions) -> NDArray[np.int32]:
    """``order`` as int32. Raises ``DataError`` unless it holds each user's items of ``train``, one after the other."""
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
