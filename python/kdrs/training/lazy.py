"""Values of a forward pass that are computed when they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Lazy(Generic[T]):
    """What is computed when it is first read, and again where a gradient is wanted that the first reading, under
    ``no_grad``, does not carry."""

    def __init__(self, compute: Callable[[], T]):
        self._compute = compute
        self._value: T | None = None
        self._tracked = False

    def __call__(self) -> T:
        if self._value is None or (torch.is_grad_enabled() and not self._tracked):
            self._value, self._tracked = self._compute(), torch.is_grad_enabled()
        return self._value
