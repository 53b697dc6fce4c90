"""Dropout as a layer of models."""

from __future__ import annotations

from torch import Tensor, nn

from kdrs.kernels import dropout


class Dropout(nn.Module):
    """`nn.Dropout` by `kdrs.kernels.dropout`."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
