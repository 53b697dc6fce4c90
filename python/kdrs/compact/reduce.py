"""Fewer directions: the best factors of a given dimension for all scores at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.errors import ConfigError

OVERSAMPLED = 16
"""Directions that a range finder takes beyond those asked for."""
PASSES = 2
"""Over all scores, after the first."""


def with_bias(
    users: NDArray[np.float32], items: NDArray[np.float32], bias: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same scores without a bias: users have one more coordinate, 1, and items the bias there."""
    if bias is None:
        return users, items
    ones = np.ones((len(users), 1), np.float32)
    return np.hstack([users, ones]), np.hstack([items, bias[:, None].astype(np.float32)])


def singular(
    users: NDArray[np.float32], items: NDArray[np.float32], dim: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors ``[U, dim]`` and ``[I, dim]`` whose products are nearest to those of ``[U, D]`` and ``[I, D]`` in squared error:
    singular directions, the root of each singular value to either side (Eckart & Young, 1936).

    By the Gram matrices of both sides, float64: memory of the tables, no QR of them. Raises ``ConfigError`` for ``dim``
    above D.
    """
    if dim > users.shape[1]:
        raise ConfigError(f"dim is {dim}; the vectors have {users.shape[1]}", "ask for as many or fewer")
    roots = [_root(gram(part)) for part in (users, items)]  # X = Q S with S [r, D], Qᵀ Q = I
    left, values, right = np.linalg.svd(roots[0][0] @ roots[1][0].T, full_matrices=False)
    kept = np.sqrt(values[:dim])
    to_users = roots[0][1] @ (left[:, : len(kept)] * kept)
    to_items = roots[1][1] @ (right[: len(kept)].T * kept)
    return tuple(_padded(part @ to.astype(np.float32), dim) for part, to in ((users, to_users), (items, to_items)))  # type: ignore[return-value]


def gram(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """``VᵀV`` of vectors [N, D], float64 [D, D], a block of rows at a time."""
    total = np.zeros((vectors.shape[1],) * 2)
    step = max(1, (1 << 22) // max(vectors.shape[1], 1))
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step].astype(np.float64)
        total += part.T @ part
    return total


def _root(square: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """S [r, D] with Sᵀ S = G, and its pseudo-inverse [D, r]."""
    values, vectors = np.linalg.eigh(square)
    kept = values > values.max(initial=0.0) * len(values) * np.finfo(np.float64).eps
    root = np.sqrt(values[kept])
    return root[:, None] * vectors[:, kept].T, vectors[:, kept] / root


def _padded(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    missing = dim - vectors.shape[1]
    return np.pad(vectors, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(vectors)


def of_scores(
    block: Callable[[NDArray[np.int64]], Any], n_users: int, n_items: int, dim: int, *, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors ``[U, dim]`` and ``[I, dim]`` for scores that are no products, given block by block: ``block(rows)`` is float32
    ``[b, I]``. A randomised range finder with power passes (Halko, Martinsson & Tropp, 2011, algorithm 4.4); memory is that of
    the tables and a block.

    Each user's mean score is taken off first: it changes no ranking, and would be the first direction.
    """
    dim_kept = min(dim, n_users, n_items)
    width = min(dim_kept + OVERSAMPLED, n_users, n_items)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((n_items, width)))[0]
    step = max(1, (1 << 24) // max(n_items, 1))
    for turn in range(PASSES + 1):
        left, back = np.empty((n_users, width)), np.zeros((n_items, width))
        for start in range(0, n_users, step):
            rows = np.arange(start, min(start + step, n_users))
            scores = np.asarray(block(rows), np.float64)
            scores = scores - scores.mean(axis=1, keepdims=True)
            left[rows] = scores @ basis
            back += scores.T @ left[rows]
        if turn < PASSES:
            basis = np.linalg.qr(back)[0]
    return singular(left.astype(np.float32), basis.astype(np.float32), dim_kept)
