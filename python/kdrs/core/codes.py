"""Tables of codes: vectors as integers of 1, 2, 3, 4 or 8 bits, with one scale a row.

Both sides of a product are turned by the same orthogonal matrix first. Scores do not change by it, and coordinates become
alike, so that one scale serves a whole row. Rotation, then rounding, is the first step of TurboQuant (arXiv 2504.19874) and of
RaBitQ (SIGMOD 2024). The levels here are evenly spaced, since sums of their products are sums of integers, and the scale is
the best for the row. The shape legend is N vectors, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs import _core
from kdrs.core.sampling import array_of, is_tensor, numpy_of, plain, seed_of, simd_path, stream, threads_of
from kdrs.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    from kdrs.core.sampling import Array

BITS = (1, 2, 3, 4, 8)
QUERY_BITS = 8
"""Of queries that are made at run time."""
MAX_DIM = 1 << 16
"""Sums of products of codes fit 32 bits up to here."""

_BLOCK = 1 << 19
"""Numbers that are looked at together."""


class Codes:
    """A packed table of vectors ``[N, D]``, never changed after it was made.

    A row is D codes of ``bits`` bits, the first in the lowest bits of the first byte, and ends with a whole byte. A code c of
    1 to 4 bits stands for the odd level 2 c - (2^bits - 1), so none is 0; eight bits are an integer from -127 to 127. The row
    is its levels times its scale, in turned directions.

    Scores are exact: with the integer sum S of products of levels, ``(scale_q * scale_i) * float32(S) + bias``, each operation
    rounded to float32 by itself; NumPy gives the same bytes. `kdrs.ranking` and `kdrs.Evaluator` take codes as they take
    factors.
    """

    __slots__ = ("_bits", "_data", "_dim", "_scales", "_seed")
    _bits: int
    _data: NDArray[np.uint8]
    _dim: int
    _scales: NDArray[np.float32]
    _seed: int

    def __init__(self, *_: Any, **__: Any):
        raise ConfigError(
            "codes are not made by calling Codes",
            "use Codes.of(vectors, bits), Codes.from_levels(...) or Codes.from_parts(...)",
        )

    @classmethod
    def of(cls, vectors: Array, bits: int, *, seed: int = 0, turned: bool = False) -> Codes:
        """Codes of float vectors ``[N, D]``, turned by the rotation that ``seed`` stands for and rounded with the scale that
        leaves each row the least squared error. ``turned``: the vectors are in the turned directions already, as those of
        ``rotate`` and ``turned()`` are, and no rotation is applied.

        The bytes are the same on every machine: nothing but additions, products, quotients, roots and comparisons in a stated
        order is done, in float64. Raises ``DataError`` for vectors that hold NaN or infinity, ``ConfigError`` for other
        ``bits``.
        """
        bits, seed = _bits(bits), seed_of(seed)
        values = _vectors(vectors)
        rotation = None if turned else _rotation(seed)
        data, scales = _core.round_codes(values, rotation, bits, threads_of(None), simd_path())
        if not np.isfinite(scales).all():
            raise DataError(
                f"vectors: row {int(np.argmin(np.isfinite(scales)))} is too long for a float32 scale",
                "scale the vectors down",
            )
        return cls._made(data, scales, bits, values.shape[1], seed)

    @classmethod
    def from_parts(cls, data: Array, scales: Array, bits: int, dim: int, *, seed: int = 0, copy: bool = True) -> Codes:
        """Codes that were made before: ``data`` uint8 ``[N, ceil(D * bits / 8)]``, ``scales`` float32 ``[N]``, D as ``dim``.
        Without ``copy`` they are read where they lie, as of a mapped file: nobody may change them.

        Raises ``DataError`` for other types and shapes, scales that are negative, NaN or infinite, and -128 among eight bits.
        """
        bits, seed = _bits(bits), seed_of(seed)
        if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)) or not 0 <= dim <= MAX_DIM:
            raise ConfigError(f"dim is {shown(dim)}", f"allowed: integers from 0 to {MAX_DIM}")
        packed, lengths = numpy_of(data, "data"), array_of(scales, "scales", np.float32, 1)
        if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != _stride(int(dim), bits):
            raise DataError(
                f"data are {packed.dtype} of shape {packed.shape}",
                f"allowed: uint8 [N, {_stride(int(dim), bits)}], for {dim} codes of {bits} bits",
            )
        if lengths.shape != packed.shape[:1]:
            raise DataError(f"scales are {lengths.dtype} of shape {lengths.shape}", f"allowed: float32 [{len(packed)}]")
        if copy:
            packed, lengths = np.array(packed, order="C"), np.array(lengths, np.float32, order="C")
        made = cls._made(packed, lengths, bits, int(dim), seed)
        _core.check_codes(made.parts(), threads_of(None), simd_path())
        return made

    @classmethod
    def from_levels(cls, levels: Array, scales: Array, bits: int, *, seed: int = 0) -> Codes:
        """Codes of rows that were rounded elsewhere: ``levels`` integers ``[N, D]`` in turned directions, ``scales`` float32
        ``[N]``. ``table.levels()`` and ``table.scales`` give them back.

        Levels are odd for 1 to 4 bits, from 1 - 2^bits to 2^bits - 1, and from -127 to 127 for 8. Raises ``DataError`` for
        others, naming the row, and for scales that are negative, NaN or infinite.
        """
        bits, seed = _bits(bits), seed_of(seed)
        given = numpy_of(levels, "levels")
        if given.dtype.kind not in "iu" or given.ndim != 2:
            raise DataError(f"levels are {given.dtype} of shape {given.shape}", "allowed: int8 or int16 [N, D]")
        (n, dim), largest = given.shape, 127 if bits == 8 else 2**bits - 1
        if dim > MAX_DIM:
            raise DataError(f"levels have dim {dim}", f"allowed: up to {MAX_DIM}, whose sums fit 32 bits")
        for rows in _blocks(n, dim):
            part = given[rows]
            wrong = (part < -largest) | (part > largest)
            if bits < 8:
                wrong |= part % 2 == 0
            if wrong.any():
                row, column = (int(place) for place in np.argwhere(wrong)[0])
                raise DataError(
                    f"levels: row {rows.start + row} holds {part[row, column]}",
                    "allowed for 8 bits: -127 to 127"
                    if bits == 8
                    else f"allowed for {bits} bit{'s' * (bits > 1)}: odd integers from {-largest} to {largest}",
                )
        data = _core.pack_codes(plain(given, np.int8), bits, threads_of(None), simd_path())
        return cls.from_parts(data, scales, bits, dim, seed=seed)

    @classmethod
    def _made(cls, data: NDArray[np.uint8], scales: NDArray[np.float32], bits: int, dim: int, seed: int) -> Codes:
        self = object.__new__(cls)
        self._data, self._scales, self._bits, self._dim, self._seed = plain(data)[:], plain(scales)[:], bits, dim, seed
        self._data.flags.writeable = self._scales.flags.writeable = False
        return self

    @property
    def data(self) -> NDArray[np.uint8]:
        """uint8 ``[N, ceil(D * bits / 8)]``, read-only."""
        return self._data

    @property
    def scales(self) -> NDArray[np.float32]:
        """float32 ``[N]``, read-only."""
        return self._scales

    @property
    def bits(self) -> int:
        return self._bits

    @property
    def seed(self) -> int:
        """Of the rotation."""
        return self._seed

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._scales), self._dim

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self._data.nbytes + self._scales.nbytes

    def __len__(self) -> int:
        return len(self._scales)

    def __repr__(self) -> str:
        return f"Codes(shape={self.shape}, bits={self.bits}, seed={self.seed}, nbytes={self.nbytes})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        mine, theirs = ((c._bits, c._dim, c._seed, c._data.tobytes(), c._scales.tobytes()) for c in (self, other))
        return mine == theirs

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return _unpickled, (np.array(self._data), np.array(self._scales), self._bits, self._dim, self._seed)

    def take(self, rows: Array) -> Codes:
        """The codes of some rows, int ``[R]``, in that order."""
        ids = array_of(rows, "rows", np.int64, 1)
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self):
            bad = ids[(ids < 0) | (ids >= len(self))][0]
            raise DataError(f"rows hold {bad}; allowed: 0 to {len(self) - 1}")
        return self._made(self._data[ids], self._scales[ids], self._bits, self._dim, self._seed)

    def __getitem__(self, rows: Any) -> Codes:
        """A block of rows, or those that an array names."""
        if isinstance(rows, slice):
            return self._made(self._data[rows], self._scales[rows], self._bits, self._dim, self._seed)
        if isinstance(rows, (int, np.integer)) or not (isinstance(rows, (list, np.ndarray)) or is_tensor(rows)):
            raise ConfigError(f"codes are not indexed by {type(rows).__name__}", "allowed: slices and arrays of rows")
        return self.take(rows)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("codes are a table, not a sequence; .vectors() gives the rows")

    def levels(self) -> NDArray[np.int8]:
        """The integers, int8 ``[N, D]``, in turned directions."""
        return _core.unpack_codes(self.parts(), threads_of(None), simd_path())

    def turned(self) -> NDArray[np.float32]:
        """The rows in turned directions, float32 ``[N, D]``: levels times scale. Products of rows of two tables of one seed are
        those of their ``vectors()``."""
        rows = self.levels().astype(np.float32)
        rows *= self._scales[:, None]
        rows += np.float32(0)  # no -0
        return rows

    def vectors(self) -> NDArray[np.float32]:
        """The vectors that the codes stand for, float32 ``[N, D]``, in the original directions."""
        return _core.code_vectors(self.parts(), _rotation(self._seed), threads_of(None), simd_path())

    def like(self, vectors: Array, bits: int = QUERY_BITS, *, turned: bool = False) -> Codes:
        """Codes of other vectors ``[M, D]`` that go with these, turned alike: of queries made at run time, hence eight bits.
        ``turned``: they are in the turned directions already."""
        values = _vectors(vectors)
        if values.shape[1] != self._dim:
            raise DataError(
                f"vectors have dim {values.shape[1]}, the codes {self._dim}", "pass vectors of the same model"
            )
        return Codes.of(values, bits, seed=self._seed, turned=turned)

    def rotate(self, vectors: Array) -> NDArray[np.float32]:
        """Vectors ``[M, D]`` in the directions of the codes, float32."""
        values = _vectors(vectors)
        if values.shape[1] != self._dim:
            raise DataError(
                f"vectors have dim {values.shape[1]}, the codes {self._dim}", "pass vectors of the same model"
            )
        return _core.turn_vectors(values, _rotation(self._seed), threads_of(None), simd_path())

    def sums(
        self, indptr: Array, indices: Array, weights: Array | None = None, *, threads: int | None = None
    ) -> NDArray[np.float32]:
        """Sums of rows, float32 ``[Q, D]``, in turned directions: of list q those that ``indices[indptr[q]:indptr[q + 1]]``
        name, times ``weights``, if any. ``indptr`` is int64 ``[Q + 1]``, ``indices`` int32 ``[P]``, ``weights`` float32
        ``[P]``.

        Rows may repeat; the sum of none is 0. Terms are ``(weight * scale) * level``, added in the order of the list. Products
        and sums are rounded to float64 one by one, and the last to float32, so that NumPy gives the same bytes. Raises
        ``DataError`` for an ``indptr`` that does not ascend from 0 to P, rows that do not exist, and weights and sums that are
        not finite.
        """
        ends, rows = array_of(indptr, "indptr", np.int64, 1), array_of(indices, "indices", np.int32, 1)
        factors = None if weights is None else array_of(weights, "weights", np.float32, 1)
        return _core.code_sums(self.parts(), ends, rows, factors, threads_of(threads), simd_path())

    def parts(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], int, int]:
        """What the core reads."""
        return self._data, self._scales, self._dim, self._bits


def paired(queries: Any, items: Any) -> tuple[Codes, Codes]:
    """Queries and items that go together, queries rounded if they are floats; ``DataError`` for what does not."""
    if not isinstance(items, Codes):
        raise DataError(
            "queries are codes, items are not", "give the items as codes: Codes.of(items, bits, seed=queries.seed)"
        )
    if not isinstance(queries, Codes):
        queries = items.like(queries)
    if queries.shape[1] != items.shape[1]:
        raise DataError(f"queries have dim {queries.shape[1]}, items {items.shape[1]}", "pass the codes of one model")
    if queries.seed != items.seed:
        raise DataError(
            f"queries were turned by seed {queries.seed}, items by {items.seed}",
            "make both with one seed: Codes.of(..., seed=...)",
        )
    return queries, items


def pair_scores(
    queries: Codes, items: Codes, bias: NDArray[np.float32] | None, rows: NDArray[np.int64], ids: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Scores float32 ``[P]`` of pairs of a row of ``queries`` and a row of ``items``, the bytes that the kernels give."""
    out = np.empty(len(rows), np.float32)
    for part in _blocks(len(rows), queries.shape[1]):
        mine, theirs = queries.take(rows[part]), items.take(ids[part])
        sums = np.einsum("pd,pd->p", mine.levels(), theirs.levels(), dtype=np.int32)
        out[part] = (mine.scales * theirs.scales) * sums.astype(np.float32)
    return out + np.float32(0) if bias is None else out + bias[ids] + np.float32(0)


def _unpickled(data: Any, scales: Any, bits: int, dim: int, seed: int) -> Codes:
    return Codes.from_parts(data, scales, bits, dim, seed=seed)


def _bits(bits: int) -> int:
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or bits not in BITS:
        raise ConfigError(f"bits is {shown(bits)}", f"allowed: {', '.join(map(str, BITS))}")
    return int(bits)


def _stride(dim: int, bits: int) -> int:
    return (dim * bits + 7) // 8


def _vectors(vectors: Array) -> NDArray[np.float32]:
    if isinstance(vectors, Codes):
        raise ConfigError("the vectors are codes already", "give floats; codes.vectors() are those of codes")
    values = array_of(vectors, "vectors", np.float32, 2)
    if values.shape[1] > MAX_DIM:
        raise DataError(f"vectors have dim {values.shape[1]}", f"allowed: up to {MAX_DIM}, whose sums fit 32 bits")
    for rows in _blocks(*values.shape):
        finite = np.isfinite(values[rows]).all(axis=1)
        if not finite.all():
            raise DataError(
                f"vectors: row {rows.start + int(np.argmin(finite))} holds NaN or infinity",
                "all values must be finite: look for a diverged model",
            )
    return values


def _blocks(n: int, dim: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(dim, 1))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _rotation(seed: int) -> int:
    """The stream of the rotation that a seed stands for."""
    return stream(seed, "codes", "rotation")
