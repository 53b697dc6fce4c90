"""Random numbers that belong to a place: a function of (seed, stream, row, column) and of nothing else.

SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), one sequence for each (seed, stream, row), so that no draw depends on
block sizes, threads or on what other rows draw.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def bits(seed: int, stream: str, rows: NDArray[np.integer], columns: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Uniform 64-bit numbers, of the broadcast shape of ``rows`` and ``columns`` (both from 0)."""
    root = hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8]
    base = np.uint64(int.from_bytes(root, "little"))
    start = _mixed(base + (rows.astype(np.uint64) + np.uint64(1)) * _STEP)
    return _mixed(start + (columns.astype(np.uint64) + np.uint64(1)) * _STEP)


def below(n: NDArray[np.integer], drawn: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Integers from 0 to ``n - 1`` out of 64-bit numbers; the bias is below n / 2^53."""
    return np.floor((drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53 * n).astype(np.int64)


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MIX[0]
    state = (state ^ (state >> np.uint64(27))) * _MIX[1]
    return state ^ (state >> np.uint64(31))
