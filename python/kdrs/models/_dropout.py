"""Dropout as a layer of models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdrs.core.kernels import dropout


class Dropout(nn.Module):
    """`nn.Dropout` by `kdrs.core.kernels.dropout`, from torch's own generator unless ``noise`` is set."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self.noise: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.noise) if self.training and self.p else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
