"""What another library's files hold, in their own order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.errors import DataError
from kdrs.teachers.values import as_float32


@dataclass
class Side:
    """Vectors of users or of items."""

    vectors: NDArray[np.float32]
    """float32 [n, D]"""
    ids: list[str] | None = None
    """None where the file has none: the rows are in the data set's order, or ids come from another file."""
    bias: NDArray[np.float32] | None = None
    """float32 [n]"""

    @property
    def n_empty(self) -> int:
        """Rows of zeros: what the library has learnt nothing of."""
        return int(np.count_nonzero(~self.vectors.any(axis=1)))


@dataclass
class Listed:
    """Ranked lists of users."""

    users: list[str]
    items: list[str]
    topk: NDArray[np.int32]
    """int32 [U, K]: places in ``items``, best first, -1 at the end"""
    scores: NDArray[np.float32] | None = None
    weights: NDArray[np.float32] | None = None


@dataclass
class Found:
    """Vectors of both sides or of items alone, or lists."""

    users: Side | None = None
    items: Side | None = None
    lists: Listed | None = None
    notes: list[str] = field(default_factory=list)
    """What was recognised, in words."""


def as_vectors(array: Any, what: str) -> NDArray[np.float32]:
    """float32 [n, D]. Raises ``DataError`` for another shape, for what is no number and for values that are not finite."""
    found = np.asarray(array)
    if found.ndim != 2 or found.dtype.kind not in "fiu" or not found.size:
        raise DataError(
            f"{what} is {found.dtype} of shape {found.shape}", "allowed: numbers of shape [rows, dimensions]"
        )
    return as_float32(found, what)


def as_bias(array: Any, n: int, what: str) -> NDArray[np.float32]:
    """float32 [n]."""
    found = np.asarray(array)
    if found.shape not in ((n,), (n, 1)) or found.dtype.kind not in "fiu":
        raise DataError(f"{what} is {found.dtype} of shape {found.shape}", f"allowed: numbers of shape [{n}]")
    return as_float32(found.reshape(n), what)
