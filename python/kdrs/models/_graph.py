"""The bipartite graph of the training pairs and its matrices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kdrs.core.kernels import sparse_csr
from kdrs.data.interactions import Interactions


class BipartiteGraph:
    """Users 0 to U-1, then items, each pair an edge in both directions: 2n entries, the users' rows first.

    ``indptr`` int64 [U + I + 1] and ``columns`` int64 [2n] are the CSR structure; ``edge`` int64 [2n] is the training pair of
    each entry and ``mirror`` int64 [2n] the entry of the opposite direction.
    """

    def __init__(self, seen: Interactions):
        self.n_users, self.n_items = seen.shape
        self.n_nodes, self.n_edges = sum(seen.shape), seen.n_pairs
        self.users, self.items = seen.row_of_pair, seen.indices
        by_item = np.argsort(self.items, kind="stable")
        self.edge = np.concatenate([np.arange(self.n_edges), by_item])
        self.columns = np.concatenate(
            [self.items.astype(np.int64) + self.n_users, self.users[by_item].astype(np.int64)]
        )
        counts = np.concatenate([seen.row_degrees, seen.column_degrees])
        self.indptr = np.concatenate([[0], np.cumsum(counts)])

    @property
    def rows(self) -> np.ndarray:
        """int64 [2n]: the node of each entry's row."""
        return np.repeat(np.arange(self.n_nodes), np.diff(self.indptr))

    @property
    def mirror(self) -> np.ndarray:
        by_item = self.edge[self.n_edges :]
        places = np.empty(self.n_edges, np.int64)
        places[by_item] = np.arange(self.n_edges) + self.n_edges
        return np.concatenate([places, by_item])

    def normalised(self, kept: np.ndarray | None = None) -> Tensor:
        """D^-1/2 A D^-1/2 as sparse CSR, float32 [U + I, U + I], of all edges or of those ``kept`` (bool [n]), whose own
        degrees then count; rows without edges are 0."""
        rows, columns, indptr = self.rows, self.columns, self.indptr
        if kept is not None:
            entries = kept[self.edge]
            rows, columns = rows[entries], columns[entries]
            indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=self.n_nodes))])
        scale = np.zeros(self.n_nodes)
        np.divide(1.0, np.sqrt(np.diff(indptr)), out=scale, where=np.diff(indptr) > 0)
        values = (scale[rows] * scale[columns]).astype(np.float32)
        return sparse_csr(torch.from_numpy(indptr), torch.from_numpy(columns), torch.from_numpy(values))

    def halves(self) -> tuple[Tensor, Tensor]:
        """The two blocks of `normalised` that are not 0, as sparse CSR: float32 [U, I] and its transpose [I, U]."""
        whole, middle = self.normalised(), int(self.indptr[self.n_users])
        indptr, columns, values = whole.crow_indices(), whole.col_indices(), whole.values()
        return (
            sparse_csr(indptr[: self.n_users + 1], columns[:middle] - self.n_users, values[:middle], self.n_items),
            sparse_csr(indptr[self.n_users :] - middle, columns[middle:].clone(), values[middle:], self.n_users),
        )
