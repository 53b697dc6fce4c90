"""Weights that are means over epochs: the mean is ranked with, selected and kept, and training goes on from the weights.

Polyak and Juditsky, SIAM J. Control Optim. 1992; over epochs as in Izmailov et al., UAI 2018, whose mean weighs all alike: here
an epoch's share falls with its age.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
MEAN = "mean/"
"""Before the names of averaged weights in a checkpoint."""


class Averaged:
    """The mean of a model's weights at the ends of epochs: ``share`` of the mean before, the rest of what is new."""

    def __init__(self, model: nn.Module, share: float):
        self.model, self.share = model, share
        self.mean: State = {}
        """Empty before the first epoch, and where nothing is averaged."""
        self._own: State = {}

    @torch.no_grad()
    def add(self) -> None:
        """Takes the weights of an epoch that has ended."""
        if not self.share:
            return
        weights = self.model.state_dict()
        if not self.mean:
            self.mean = copied(weights)
            return
        for name, tensor in weights.items():
            mean = self.mean[name]
            if tensor.is_floating_point():
                mean.mul_(self.share).add_(tensor, alpha=1 - self.share)
            else:
                mean.copy_(tensor)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The model has the mean inside, and its own weights again outside."""
        if not self.mean:
            yield
            return
        self._own = copied(self.model.state_dict(), self._own)
        self.model.load_state_dict(self.mean)
        try:
            yield
        finally:
            self.model.load_state_dict(self._own)


def copied(weights: Mapping[str, Tensor], into: State | None = None) -> State:
    """A copy, in the former one where there is one."""
    if not into:
        return {name: tensor.detach().clone() for name, tensor in weights.items()}
    for name, tensor in weights.items():
        into[name].copy_(tensor)
    return into
