"""A softmax over the catalogue, or over some of it that stand for all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrs.data.interactions import Interactions
from kdrs.training.devices import known, to_device
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

    def others(self, queries: Tensor, items: Tensor, rows: NDArray[Any], hidden: NDArray[Any]) -> Tensor:
        """float32 [B], of ``queries`` [B, D] and all ``items`` [I, D]; pairs (row, item) of ``rows`` and ``hidden``, integers
        [H] of the host, are left out. Each call counts the next items."""
        device = items.device
        if self._size == self._n_items:
            return logsumexp_products(queries, items, hidden=(_known(rows, device), _known(hidden, device)))
        ids, start = np.take(self._order, np.arange(self._start, self._start + self._size), mode="wrap"), self._start
        self._start = (start + self._size) % self._n_items
        places = (self._place[hidden] - start) % self._n_items
        there = places < self._size
        pairs = _known(rows[there], device), _known(places[there], device)
        found = logsumexp_products(queries, items[to_device(ids, device)], hidden=pairs)
        return found + math.log(self._n_items / self._size)


def lengths_by_popularity(seen: Interactions, power: float, device: torch.device) -> Tensor:
    """float32 [I]: the number of users of each item, to that power; 0 where nobody has an item, but 0⁰ is 1."""
    return torch.from_numpy(seen.column_degrees.astype(np.float32) ** power).to(device)


def _known(ids: NDArray[Any], device: torch.device) -> Tensor:
    return known(to_device(ids, device), ids)
