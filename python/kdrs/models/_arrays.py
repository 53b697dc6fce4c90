"""Weights as NumPy arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def array_of(weights: Tensor) -> NDArray[np.float32]:
    """A copy on the host."""
    return np.array(weights.detach().cpu().numpy(), np.float32)
