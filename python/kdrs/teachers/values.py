"""Numbers of other libraries, as float32 and int32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.errors import DataError, shown

_INT32 = np.iinfo(np.int32)


def as_float32(array: NDArray[Any], what: str, *, finite: bool = True) -> NDArray[np.float32]:
    """The same shape, C-contiguous. Raises ``DataError`` for values past float32, and for NaN and infinity where all must be
    ``finite``."""
    with np.errstate(over="ignore"):
        kept = np.ascontiguousarray(array, np.float32)
    bad = ~np.isfinite(kept)
    if not finite:
        bad &= np.isfinite(array)
    if not bad.any():
        return kept
    place = tuple(np.argwhere(bad)[0].tolist())
    row, value = f"{shown(what, 300)} row {place[0]}", array[place]
    if np.isfinite(value):
        raise DataError(
            f"{row} holds {value:g}, which is past float32 ({np.finfo(np.float32).max:.2g})",
            "divide all of its values by one number: the order of the lists stays"
            + ("" if what.endswith("scores") else "; an item_bias, by the same"),
        )
    raise DataError(
        f"{row} is not finite, it holds {value}",
        "all values must be finite: look for a model that diverged, and train it again",
    )


def as_int32(array: NDArray[Any], what: str) -> NDArray[np.int32]:
    """The same shape, C-contiguous. Raises ``DataError`` for values past int32."""
    if array.size and (array.min() < _INT32.min or array.max() > _INT32.max):
        raise DataError(f"{what} runs from {array.min()} to {array.max()}", "allowed: int32, places from 0 on")
    return np.ascontiguousarray(array, np.int32)
