"""What another library's files hold, in their own order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.errors import DataError, shown


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
    with np.errstate(over="ignore"):
        kept = np.ascontiguousarray(found, np.float32)
    return _finite(kept, what)


def as_bias(array: Any, n: int, what: str) -> NDArray[np.float32]:
    """float32 [n]."""
    found = np.asarray(array)
    if found.shape not in ((n,), (n, 1)) or found.dtype.kind not in "fiu":
        raise DataError(f"{what} is {found.dtype} of shape {found.shape}", f"allowed: numbers of shape [{n}]")
    return _finite(np.ascontiguousarray(found.reshape(n), np.float32), what)


def _finite(values: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise DataError(
            f"{shown(what, 300)} row {row} holds {values[row][bad[row]] if values.ndim == 1 else values[row][bad[row]][0]}",
            "all values must be finite: look for a model that diverged, and train it again",
        )
    return values
