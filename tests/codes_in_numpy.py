"""Codes in NumPy: the rotation, the rounding and the packing that the core must give byte for byte, slowly."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdrs.core.codes import Codes
from kdrs.core.sampling import stream

_ROUNDS = 4
"""Of signs and butterfly."""
_STEPS = {
    2: np.linspace(0.32, 0.72, 16),
    3: np.linspace(0.14, 0.44, 16),
    4: np.linspace(0.08, 0.26, 16),
    8: np.array([1.0, 0.95, 0.9]) / 127,
}
"""Scales that are tried, of the row's root mean square, or of its largest magnitude for eight bits."""


def slow_levels(table: Codes) -> np.ndarray:
    """The integers of a table, bit by bit."""
    n, dim = table.shape
    found = np.zeros((n, dim), np.int64)
    for row in range(n):
        number = int.from_bytes(table.data[row].tobytes(), "little")
        for d in range(dim):
            code = number >> (d * table.bits) & (2**table.bits - 1)
            signed = code - 256 if code > 127 else code
            found[row, d] = signed if table.bits == 8 else 2 * code - (2**table.bits - 1)
    return found


def random_codes(rng, n, dim, bits, scales="any", seed=0) -> Codes:
    """Any codes at all, also bits past the last code, scales that tie and that are 0."""
    data = rng.integers(0, 256, (n, (dim * bits + 7) // 8), np.uint8)
    if bits == 8:
        data[data == 128] = 129
    lengths = rng.choice([0.0, 0.5, 1.0], n) if scales == "few" else rng.random(n) * 3
    return Codes.from_parts(data, lengths.astype(np.float32), bits, dim, seed=seed)


def slow_codes(vectors: np.ndarray, bits: int, seed: int, turned: bool = False) -> Codes:
    """`Codes.of`."""
    columns = np.ascontiguousarray(vectors.T, np.float64)
    codes, scales = _round(columns if turned else _turn(columns, seed), bits)
    return Codes.from_parts(_pack(codes.T, bits), scales, bits, vectors.shape[1], seed=seed)


def slow_turned(vectors: np.ndarray, seed: int) -> np.ndarray:
    """`Codes.rotate`."""
    return np.ascontiguousarray(_turn(np.ascontiguousarray(vectors.T, np.float64), seed).T, np.float32)


def slow_vectors(table: Codes) -> np.ndarray:
    """`Codes.vectors`."""
    columns = np.ascontiguousarray(slow_levels(table).T, np.float64) * table.scales.astype(np.float64)
    return np.ascontiguousarray(_turn_back(columns, table.seed).T, np.float32) + np.float32(0)


def slow_sums(table: Codes, indptr: np.ndarray, indices: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """`Codes.sums`, one term after the other."""
    levels, scales = slow_levels(table).astype(np.float64), table.scales.astype(np.float64)
    out = np.zeros((len(indptr) - 1, table.shape[1]), np.float64)
    for row in range(len(out)):
        for place in range(indptr[row], indptr[row + 1]):
            weight = np.float64(1.0 if weights is None else weights[place])
            out[row] += weight * scales[indices[place]] * levels[indices[place]]
    return out.astype(np.float32) + np.float32(0)


@lru_cache(maxsize=16)
def _rotation(dim: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The order of the coordinates ``[D]``, and the signs of each round, ``[rounds, D, 1]``."""
    words = _words(stream(seed, "codes", "rotation"), (_ROUNDS + 1) * dim).reshape(_ROUNDS + 1, dim)
    signs = np.where(words[1:] >> np.uint64(63), -1.0, 1.0)[:, :, None]
    return np.argsort(words[0], kind="stable"), signs


def _words(seed: int, n: int) -> NDArray[np.uint64]:
    """SplitMix64 by counter, as in the core."""
    z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _turn(columns: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Columns ``[D, N]`` turned."""
    order, signs = _rotation(len(columns), seed)
    columns = columns[order]
    for number, of_round in enumerate(signs):
        columns *= of_round
        _butterfly(columns, number)
    return columns


def _turn_back(columns: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    order, signs = _rotation(len(columns), seed)
    for number, of_round in reversed(list(enumerate(signs))):
        _butterfly(columns, number)
        columns *= of_round
    back = np.empty_like(columns)
    back[order] = columns
    return back


def _butterfly(columns: NDArray[np.float64], number: int) -> None:
    """The orthonormal Hadamard transform, its own inverse, of the coordinates of a round, in place."""
    dim = len(columns)
    size, width = 1 << max(dim.bit_length() - 1, 0) if dim else 0, 1
    part = columns[dim - size :] if number % 2 else columns[:size]
    while width < size:
        pairs = part.reshape(size // (2 * width), 2, width, -1)
        low, high = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
        pairs[:, 0], pairs[:, 1] = low, high
        width *= 2
    part *= 1 / np.sqrt(float(max(size, 1)))


# Rounding. Sums run over the first axis, row after row, so that their order is the same everywhere.


def _round(columns: NDArray[np.float64], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes ``[D, N]`` and scales ``[N]`` of turned columns: for given levels v the best scale is <x, v> / <v, v>, and leaves
    |x|^2 - <x, v>^2 / <v, v>; levels are those of the best of some steps."""
    dim, n = columns.shape
    if bits == 1:
        unit = _sum(np.abs(columns)) / max(dim, 1)
        return (columns >= 0).astype(np.uint8), unit.astype(np.float32)
    size = np.abs(columns).max(axis=0, initial=0.0) if bits == 8 else np.sqrt(_sum(columns * columns) / max(dim, 1))
    steps = np.where(size > 0, size, 1.0)
    best, scales, tried = np.full(n, -1.0), np.zeros(n), np.ones(n)
    for factor in (*_STEPS[bits], None):  # the last step is the best scale so far
        step = np.where(scales > 0, scales, 1.0) if factor is None else steps * factor
        levels = _levels(columns, step, bits)
        product, square = _sum(levels * columns), np.maximum(_sum(levels * levels), 1.0)
        kept = product * product / square
        better = kept > best
        best, tried = np.where(better, kept, best), np.where(better, step, tried)
        scales = np.where(better, product / square, scales)
    levels = _levels(columns, tried, bits)
    scales = np.where(size > 0, scales, 0.0)
    codes = levels.astype(np.int8).view(np.uint8) if bits == 8 else ((levels + (2**bits - 1)) / 2).astype(np.uint8)
    with np.errstate(over="ignore"):
        return codes, scales.astype(np.float32)


def _sum(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each column, row after row; NumPy sums a single column in another order, so it gets a neighbour."""
    if columns.shape[1] == 1:
        return np.hstack([columns, columns]).sum(axis=0)[:1]
    total: NDArray[np.float64] = columns.sum(axis=0)
    return total


def _levels(columns: NDArray[np.float64], steps: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """The nearest levels, in units of the steps."""
    if bits == 8:
        return np.clip(np.rint(columns / steps), -127, 127)
    half = 2.0 ** (bits - 1)
    return 2 * np.clip(np.floor(columns / (2 * steps)), -half, half - 1) + 1


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes ``[N, D]`` as bytes ``[N, ceil(D * bits / 8)]``."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    n, dim = codes.shape
    planes = codes[:, :, None] >> np.arange(bits, dtype=np.uint8) & 1
    return np.packbits(planes.reshape(n, dim * bits), axis=1, bitorder="little")
