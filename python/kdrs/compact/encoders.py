"""Users without a table: a user's vector as a function of the vectors of her items.

A table of users is most of a served model's bytes, and knows nobody new. An encoder has a matrix or less, and answers for any
history: known users, users after another click, and new ones. A user's vector does not depend on who else is encoded with her,
to the last bit: no product of matrices rounds by its number of rows here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdrs.compact.reduce import gram
from kdrs.core import ranking
from kdrs.core.codes import QUERY_BITS, Codes
from kdrs.data.interactions import Interactions
from kdrs.errors import DataError, MachineError

Items = Codes | NDArray[np.float32]
"""Item vectors float32 ``[I, D]``, or their codes, read in their turned directions."""

BLOCK = 1 << 22
"""Numbers of a block of users that are encoded at a time."""


class Encoder(Protocol):
    kind: str
    ordered: bool
    """Whether histories must be `Histories`, which have an order."""

    @property
    def nbytes(self) -> int:
        """What the encoder itself adds to the items' bytes."""

    def parts(self) -> dict[str, NDArray[Any]]:
        """The arrays of its file (`kdrs.compact.parts`)."""

    def encode(self, histories: Interactions, items: Items) -> NDArray[np.float32]:
        """Vectors float32 ``[Q, D]`` of users with these items ``[Q, I]``."""


class SumEncoder:
    """``u = W Σ_{i in H} v_i / |H|^p``: one matrix, W float32 ``[D, D]``. A user without items is the zero vector.

    `rounded` keeps W in eight bits, a scale a row: a fourth of the bytes.
    """

    kind, ordered = "sum", False

    def __init__(
        self,
        weight: NDArray[np.float32],
        power: float = 0.5,
        levels: tuple[NDArray[np.int8], NDArray[np.float32]] | None = None,
    ):
        self.weight, self.power, self.levels = np.ascontiguousarray(weight, np.float32), float(power), levels

    @classmethod
    def of_levels(cls, levels: NDArray[np.int8], scales: NDArray[np.float32], power: float = 0.5) -> SumEncoder:
        """W as integers int8 ``[D, D]`` times a scale a row, float32 ``[D]``."""
        return cls(levels * scales[:, None], power, (levels, scales))

    def rounded(self) -> SumEncoder:
        if self.levels is not None:
            return self
        scales = np.abs(self.weight).max(axis=1, initial=0.0) / np.float32(127)
        levels = np.rint(self.weight / np.maximum(scales, np.finfo(np.float32).tiny)[:, None])
        return SumEncoder.of_levels(levels.astype(np.int8), scales, self.power)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes if self.levels is None else sum(part.nbytes for part in self.levels)

    def parts(self) -> dict[str, NDArray[Any]]:
        power = {"power": np.array(self.power)}
        if self.levels is None:
            return {"weight": self.weight, **power}
        return {"levels": self.levels[0], "scales": self.levels[1], **power}

    def encode(self, histories: Interactions, items: Items) -> NDArray[np.float32]:
        return products(history_sums(histories, items, self.power), self.weight)

    @classmethod
    def fit(
        cls, users: NDArray[np.float32], sums: NDArray[np.float32], power: float = 0.5, reg: float = 0.01
    ) -> SumEncoder:
        """W by ridge regression of user vectors ``[U, D]`` onto ``sums`` ``[U, D]``: ``history_sums(histories, items, power)``.

        ``reg`` is a share of the mean of the diagonal of the sums' Gram matrix. Users whose sum is zero do not count.
        """
        square = gram(sums)
        diagonal = square.diagonal().mean() if len(square) else 0.0
        square[np.diag_indices_from(square)] += reg * diagonal + np.finfo(np.float64).tiny
        known = sums.any(axis=1)
        crossed = sums[known].T.astype(np.float64) @ users[known].astype(np.float64)
        return cls(np.linalg.solve(square, crossed).T.astype(np.float32), power)


class RidgeEncoder:
    """Each user by ridge regression on her items, all other items counting as zeros of weight ``alpha``: the half step of iALS
    (Hu, Koren & Volinsky, ICDM 2008).

    ``u = (V_Hᵀ V_H + alpha VᵀV + reg t I)⁻¹ V_Hᵀ 1``, with t the mean of the diagonal of alpha VᵀV. It has no bytes of its own:
    VᵀV is worked out when it is opened. Costs a system of ``min(|H|, D)`` unknowns a user.
    """

    kind, ordered = "ridge", False

    def __init__(self, alpha: float = 0.01, reg: float = 0.1):
        self.alpha, self.reg = float(alpha), float(reg)
        self._known: tuple[Any, NDArray[np.float32]] | None = None

    @property
    def nbytes(self) -> int:
        return 0

    def parts(self) -> dict[str, NDArray[Any]]:
        return {"alpha": np.array(self.alpha), "reg": np.array(self.reg)}

    def encode(self, histories: Interactions, items: Items) -> NDArray[np.float32]:
        check_catalogue(histories, items)
        root = self._root(items)  # [D, D], inverse of the Cholesky factor of A: A⁻¹ = rootᵀ root
        out = np.zeros((histories.shape[0], items.shape[1]), np.float32)
        degrees = histories.row_degrees
        order = np.argsort(degrees, kind="stable")
        order = order[degrees[order] > 0]
        for rows in _alike(order, degrees, items.shape[1]):
            out[rows] = _solved(histories, rows, items, root)
        return products(out, np.ascontiguousarray(root.T))

    def _root(self, items: Items) -> NDArray[np.float32]:
        if self._known is None or self._known[0] is not items:
            square = np.zeros((items.shape[1],) * 2)
            for part in blocks(*items.shape):
                square += gram(turned(items, part))
            square *= self.alpha
            square[np.diag_indices_from(square)] += self.reg * square.diagonal().mean() + np.finfo(np.float64).tiny
            root = np.linalg.inv(np.linalg.cholesky(square))
            if np.abs(root).max(initial=0.0) > np.finfo(np.float32).max:
                root[:] = 0  # items as good as zero say nothing of users
            self._known = items, root.astype(np.float32)
        return self._known[1]


def _alike(order: NDArray[np.int64], degrees: NDArray[np.int64], dim: int) -> Iterator[NDArray[np.int64]]:
    """Rows of one length each, in blocks whose systems are at most ``BLOCK`` numbers."""
    for length in np.unique(degrees[order]).tolist():
        own = order[degrees[order] == length]
        width = min(length, dim)
        step = max(1, BLOCK // (length * dim + width * width))
        yield from (own[start : start + step] for start in range(0, len(own), step))


def _solved(
    histories: Interactions, rows: NDArray[np.int64], items: Items, root: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Of users with equally many items: with ``Z = V_H rootᵀ`` it is ``Zᵀ (I + Z Zᵀ)⁻¹ 1``, or, where histories are longer than
    the dimension, ``(I + Zᵀ Z)⁻¹ Zᵀ 1``; the answer is ``rootᵀ`` times that."""
    _, ids = histories.pairs_of(rows)
    used, at = np.unique(ids, return_inverse=True)
    whitened = products(turned(items, used), root).astype(np.float64)
    z = whitened[at].reshape(len(rows), -1, items.shape[1])
    longest, dim = z.shape[1:]
    if longest <= dim:
        kernel = z @ z.transpose(0, 2, 1)
        kernel[:, np.arange(longest), np.arange(longest)] += 1.0
        return (np.linalg.solve(kernel, np.ones((len(rows), longest, 1))).transpose(0, 2, 1) @ z)[:, 0]
    kernel = z.transpose(0, 2, 1) @ z
    kernel[:, np.arange(dim), np.arange(dim)] += 1.0
    return np.linalg.solve(kernel, z.sum(1)[:, :, None])[:, :, 0]


def products(rows: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """``rows`` [Q, D] times the transpose of ``matrix`` [E, D]: float32 ``[Q, E]``, each number by itself, as scores are."""
    own = np.arange(len(matrix), dtype=np.int32)
    return np.asarray(ranking.scores(rows, matrix, np.broadcast_to(own, (len(rows), len(own)))))


def history_sums(histories: Interactions, items: Items, power: float = 0.5) -> NDArray[np.float32]:
    """``Σ_{i in H} v_i / |H|^power`` of each row of ``histories`` [Q, I]: float32 ``[Q, D]``, zeros where there is no item.

    Raises ``DataError`` where the histories are of another catalogue.
    """
    check_catalogue(histories, items)
    if isinstance(items, Codes):
        sums = items.sums(histories.indptr, histories.indices)
    else:
        try:
            sums = np.asarray(histories.to_csr() @ items, np.float32)
        except MachineError:  # no SciPy
            sums = row_sums(histories, items)
    lengths = np.maximum(histories.row_degrees, 1).astype(np.float32)
    return sums / (lengths ** np.float32(power))[:, None]


def row_sums(histories: Interactions, items: NDArray[np.float32]) -> NDArray[np.float32]:
    """``Σ_{i in H} v_i``: float32 ``[Q, D]``, by NumPy alone. Terms are added in the order of the row, as SciPy adds
    them, so the bytes are the same; many rows take three to five times as long."""
    lengths, starts = histories.row_degrees, histories.indptr[:-1]
    n, longest = len(lengths), int(lengths.max(initial=0))
    sums = np.zeros((n, items.shape[1]), np.float32)
    if n <= longest:
        for row in np.flatnonzero(lengths):
            own = items[histories.indices[starts[row] : histories.indptr[row + 1]]]
            sums[row] = np.add.accumulate(own, axis=0)[-1] + np.float32(0)  # -0 is 0, as in a sum that begins with it
        return sums
    # all first items, then all second ones, ...: longest rows first, so that those with an item left are in front
    order = np.argsort(-lengths, kind="stable")
    left = n - np.searchsorted(lengths[order[::-1]], np.arange(longest), side="right")
    for at, count in enumerate(left.tolist()):
        sums[:count] += items[histories.indices[starts[order[:count]] + at]]
    out = np.empty_like(sums)
    out[order] = sums
    return out


def check_catalogue(histories: Interactions, items: Items) -> None:
    if histories.shape[1] != items.shape[0]:
        raise DataError(
            f"histories are of {histories.shape[1]:,} items, the vectors of {items.shape[0]:,}",
            "give histories in the ids of the items' table",
        )


def turned(items: Items, rows: Any) -> NDArray[np.float32]:
    """Vectors float32 of some rows, in the directions that codes have."""
    return items[rows].turned() if isinstance(items, Codes) else items[rows]


def asked(encoder: Encoder, histories: Interactions, items: Items) -> Items:
    """What encoded users ask with: vectors, or, of coded items, codes of eight bits. A block of users at a time."""
    if not isinstance(items, Codes):
        return np.ascontiguousarray(encoder.encode(histories, items), np.float32)
    made = []
    for part in blocks(histories.shape[0], items.shape[1]):
        made.append(items.like(encoder.encode(cut(histories, part), items), QUERY_BITS, turned=True))
    if len(made) == 1:
        return made[0]
    if not made:
        return items.like(np.zeros((0, items.shape[1]), np.float32), QUERY_BITS, turned=True)
    data, scales = (np.concatenate([getattr(codes, name) for codes in made]) for name in ("data", "scales"))
    return Codes.from_parts(data, scales, QUERY_BITS, items.shape[1], seed=items.seed)


def cut(histories: Interactions, part: slice) -> Interactions:
    """The rows of a slice with both ends, without their order."""
    first, last = histories.indptr[part.start], histories.indptr[part.stop]
    ends = histories.indptr[part.start : part.stop + 1] - first
    return Interactions(ends, histories.indices[first:last], (part.stop - part.start, histories.shape[1]))


def blocks(n: int, dim: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(dim, 1))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
