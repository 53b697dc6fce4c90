"""How far the entries of a teacher's lists are to be trusted."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Confidence:
    """Weights of the entries of lists, looked up by query and item. What is on no list counts 1.

    ``lists`` int [R, K] (-1 pads) and ``weights`` float [R, K], 0 or more; ``rows`` int [Q] names the list of each query,
    None where query and list are the same.
    """

    def __init__(
        self,
        lists: np.ndarray,
        weights: np.ndarray,
        n_items: int,
        rows: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ):
        listed = lists >= 0
        keys = (np.arange(len(lists), dtype=np.int64)[:, None] * n_items + lists)[listed]
        order = np.argsort(keys, kind="stable")
        self.n_items = n_items
        self._keys = torch.from_numpy(keys[order]).to(device)
        self._weights = torch.from_numpy(weights[listed][order].astype(np.float32)).to(device)
        self._rows = None if rows is None else torch.from_numpy(np.asarray(rows, np.int64)).to(device)

    def of(self, rows: Tensor, ids: Tensor) -> Tensor:
        """float32 [B, K]: the weights of items int64 [B, K] on the lists of queries int64 [B]; -1 is no item and counts 1."""
        own = rows if self._rows is None else self._rows[rows]
        if not self._keys.numel():
            return torch.ones(ids.shape, device=ids.device)
        keys = own.unsqueeze(1) * self.n_items + ids.long()
        places = torch.searchsorted(self._keys, keys).clamp_(max=self._keys.numel() - 1)
        found = (self._keys[places] == keys) & (ids >= 0)
        return torch.where(found, self._weights[places], 1.0)
