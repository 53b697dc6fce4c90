"""What models of whole rows share: the training rows on the device, a sparse first layer, noise of a forward pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrs.core.sampling import stream
from kdrs.data.interactions import Interactions
from kdrs.models._noise import uniform
from kdrs.models.base import ModelConfig, Recommender
from kdrs.training.devices import host_of
from kdrs.training.queries import Epoch, Task


class Rows(nn.Module):
    """The rows of ``seen`` as buffers. Not persistent: they are the training data, which travels with the run already."""

    indptr: Tensor
    columns: Tensor

    def __init__(self, seen: Interactions, device: torch.device):
        super().__init__()
        self.n_columns, self._degrees = seen.shape[1], seen.row_degrees
        self.register_buffer("indptr", torch.from_numpy(seen.indptr.copy()).to(device), persistent=False)
        self.register_buffer("columns", torch.from_numpy(seen.indices.copy()).to(device), persistent=False)

    def degrees(self, rows: Tensor) -> Tensor:
        """int64 [R]"""
        return self.indptr[rows + 1] - self.indptr[rows]

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The entries of some rows, flat: places within ``rows`` and columns, int64 [P], and each row's start, int64 [R]."""
        degrees, host = self.degrees(rows), host_of(rows)
        starts = degrees.cumsum(0) - degrees
        count = None if host is None else int(self._degrees[host].sum())
        places = torch.repeat_interleave(degrees, output_size=count)
        within = torch.arange(places.shape[0], device=rows.device) - starts[places]
        return places, self.columns[self.indptr[rows][places] + within].long(), starts

    def sums(self, rows: Tensor, table: Tensor, dropout: float = 0.0, seed: int | None = None) -> Tensor:
        """float32 [R, D]: for each row the sum of the table's vectors of its columns, some entries left out and the others
        scaled up where a ``seed`` is given. The gradient of the table is sparse."""
        places, columns, starts = self.entries(rows)
        weights = None
        if seed is not None and dropout:
            kept = uniform(seed, rows[places] * self.n_columns + columns) >= dropout
            weights = kept.to(table.dtype) / (1 - dropout)
        return F.embedding_bag(columns, table, starts, mode="sum", per_sample_weights=weights, sparse=True)


class RowModel(Recommender):
    """A model whose forward passes in training carry noise: each pass has a seed.

    ``salt`` tells models apart that are trained side by side.
    """

    salt: Tensor

    def __init__(self, config: ModelConfig, task: Task):
        super().__init__(config, task)
        self.register_buffer("salt", torch.randint(2**62, ()))
        self._epoch_seed = self._passes = 0

    def on_epoch_start(self, epoch: Epoch) -> None:
        self._epoch_seed, self._passes = epoch.stream("noise", int(self.salt)), 0

    def pass_seed(self) -> int | None:
        """The seed of the next forward pass; None in evaluation."""
        if not self.training:
            return None
        self._passes += 1
        return stream(self._epoch_seed, self._passes)
