"""A softmax over the catalogue, or over some of it that stand for all."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kdrs.training.devices import known, numbers_of, to_device
from kdrs.training.losses import logsumexp_products


class CatalogueSoftmax:
    """log Σ_j exp(u · v_j) over all items, or estimated from ``size`` of them (sampled softmax, Jean et al., ACL 2015).

    The items that are counted are others for each batch and the same for its users: the next ones in a random order of the
    epoch, around and around, so that none is counted twice more than another.
    """

    def __init__(self, n_items: int, size: int | None):
        self._n_items, self._size = n_items, n_items if size is None else min(size, n_items)
        self.shuffle(0)

    def shuffle(self, seed: int) -> None:
        """Begins anew, with another order."""
        if self._size < self._n_items:
            self._order = np.random.default_rng(seed).permutation(self._n_items)
            self._place = np.empty_like(self._order)
            self._place[self._order] = np.arange(self._n_items)
        self._start = 0

    def others(self, queries: Tensor, items: Tensor, hidden: tuple[Tensor, Tensor]) -> Tensor:
        """float32 [B], of ``queries`` [B, D] and all ``items`` [I, D]; ``hidden``, two int64 [H], leaves (row, item) pairs
        out. Each call counts the next items."""
        if self._size == self._n_items:
            return logsumexp_products(queries, items, hidden=hidden)
        some = items[self._next(items.device)]
        found = logsumexp_products(queries, some, hidden=self._places(*hidden))
        return found + math.log(self._n_items / self._size)

    def _next(self, device: torch.device) -> Tensor:
        """int64 [size]: the items of the next turn."""
        ids = np.take(self._order, np.arange(self._start, self._start + self._size), mode="wrap")
        self._start = (self._start + self._size) % self._n_items
        return to_device(ids, device)

    def _places(self, rows: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Of pairs (row, item), two int64 [P], those whose item is in the last turn: rows, and the item's place there."""
        begun = self._start - self._size
        where = (self._place[numbers_of(items)] - begun) % self._n_items
        there = where < self._size
        found = numbers_of(rows)[there], where[there]
        of_rows, of_items = (known(to_device(ids, rows.device), ids) for ids in found)
        return of_rows, of_items
