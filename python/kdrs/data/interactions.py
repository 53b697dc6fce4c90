"""Who has seen what: a 0/1 matrix in CSR form, the one structure that every other part reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdrs.errors import DataError

if TYPE_CHECKING:
    import scipy.sparse

INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Interactions:
    """Observed (row, column) pairs, each once.

    Rows are users (or queries), columns are items. ``indptr`` is int64 ``[rows + 1]``; ``indices`` is int32
    ``[pairs]``, strictly ascending within a row. Both are read-only.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        n_rows, n_columns = self.shape
        if not (0 <= n_rows <= INT32_MAX and 0 <= n_columns <= INT32_MAX):
            raise DataError(f"shape {self.shape} does not fit int32 ids", f"at most {INT32_MAX} users and items")
        indptr = np.ascontiguousarray(self.indptr, dtype=np.int64)
        indices = np.ascontiguousarray(self.indices, dtype=np.int32)
        if indptr.shape != (n_rows + 1,) or indptr[0] != 0 or indptr[-1] != indices.size or (np.diff(indptr) < 0).any():
            raise DataError(f"indptr does not describe {n_rows} rows of {indices.size} pairs")
        if indices.size:
            if indices.min() < 0 or indices.max() >= n_columns:
                raise DataError(f"item ids run from {indices.min()} to {indices.max()}; allowed: 0 to {n_columns - 1}")
            starts = np.zeros(indices.size + 1, bool)
            starts[indptr] = True
            if ((indices[1:] <= indices[:-1]) & ~starts[1:-1]).any():
                raise DataError("item ids must ascend strictly within a row", "use Interactions.from_pairs")
        for name, array in (("indptr", indptr), ("indices", indices)):
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @classmethod
    def from_pairs(
        cls, users: ArrayLike, items: ArrayLike, n_users: int | None = None, n_items: int | None = None
    ) -> Interactions:
        """Interactions of parallel id arrays, in any order; repeated pairs count once.

        ``users`` and ``items`` are integers ``[pairs]`` from 0; the sizes default to the largest id plus one.
        Raises ``DataError`` for lengths that differ, floats, negative ids and ids past the stated sizes.
        """
        user, item = _ids(users, "users"), _ids(items, "items")
        if user.size != item.size:
            raise DataError(f"got {user.size} users and {item.size} items; they are pairs, so the lengths must agree")
        n_users = _size(user, n_users, "users")
        n_items = _size(item, n_items, "items")
        if n_users <= INT32_MAX and n_items <= INT32_MAX:
            keys = user * max(n_items, 1) + item
            keys.sort()  # np.unique takes ten times as long
            keys = keys[np.diff(keys, prepend=-1) > 0]
            user, item = np.divmod(keys, max(n_items, 1))
        indptr = np.zeros(n_users + 1, np.int64)
        np.cumsum(np.bincount(user, minlength=n_users), out=indptr[1:])
        return cls(indptr, item.astype(np.int32), (n_users, n_items))

    @classmethod
    def from_csr(cls, matrix: Any) -> Interactions:
        """Interactions of any SciPy sparse matrix or array: the places that are stored and not zero."""
        import scipy.sparse

        if not scipy.sparse.issparse(matrix):
            raise DataError(f"got {type(matrix).__name__}; allowed: a SciPy sparse matrix or array")
        coo: Any = scipy.sparse.coo_array(matrix)  # type: ignore[call-overload]
        kept = coo.data != 0
        return cls.from_pairs(coo.row[kept], coo.col[kept], *coo.shape)

    def to_csr(self) -> scipy.sparse.csr_array:
        """The same as a SciPy ``csr_array`` of float32 ones."""
        import scipy.sparse

        data = np.ones(self.n_pairs, np.float32)
        return scipy.sparse.csr_array((data, self.indices, self.indptr), shape=self.shape)

    @property
    def n_pairs(self) -> int:
        return int(self.indices.size)

    @property
    def density(self) -> float:
        cells = self.shape[0] * self.shape[1]
        return self.n_pairs / cells if cells else 0.0

    @cached_property
    def row_of_pair(self) -> NDArray[np.int32]:
        """int32 ``[pairs]``: the row of each stored pair."""
        return np.repeat(np.arange(self.shape[0], dtype=np.int32), self.row_degrees)

    @cached_property
    def row_degrees(self) -> NDArray[np.int64]:
        """int64 ``[rows]``: pairs of each row."""
        return np.diff(self.indptr)

    @cached_property
    def column_degrees(self) -> NDArray[np.int64]:
        """int64 ``[columns]``: pairs of each column, an item's popularity."""
        return np.bincount(self.indices, minlength=self.shape[1])

    def row(self, index: int) -> NDArray[np.int32]:
        """The columns of one row, ascending."""
        return self.indices[self.indptr[index] : self.indptr[index + 1]]

    def pairs_of(self, rows: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The pairs of some rows, in their order: which of ``rows`` (int64 [P]) and the column (int32 [P])."""
        chosen = np.asarray(rows, dtype=np.int64)
        starts, lengths = self.indptr[chosen], self.row_degrees[chosen]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.repeat(np.arange(chosen.size), lengths), self.indices[np.repeat(starts, lengths) + within]

    def transpose(self) -> Interactions:
        """Items as rows, users as columns."""
        return Interactions.from_pairs(self.indices, self.row_of_pair, self.shape[1], self.shape[0])

    def union(self, other: Interactions) -> Interactions:
        """Pairs of either side; both must have one shape."""
        self._same_shape(other)
        users = np.concatenate([self.row_of_pair, other.row_of_pair])
        items = np.concatenate([self.indices, other.indices])
        return Interactions.from_pairs(users, items, *self.shape)

    def intersection(self, other: Interactions) -> Interactions:
        """Pairs that both sides hold; both must have one shape."""
        self._same_shape(other)
        few, many = (self, other) if self.n_pairs <= other.n_pairs else (other, self)
        if not few.n_pairs:
            return few
        wanted, keys = few._keys, many._keys  # both ascend
        kept = keys[np.minimum(np.searchsorted(keys, wanted), keys.size - 1)] == wanted
        return Interactions.from_pairs(few.row_of_pair[kept], few.indices[kept], *self.shape)

    @property
    def _keys(self) -> NDArray[np.int64]:
        return self.row_of_pair.astype(np.int64) * self.shape[1] + self.indices

    def _same_shape(self, other: Interactions) -> None:
        if self.shape != other.shape:
            raise DataError(f"shapes differ: {self.shape} and {other.shape}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Interactions):
            return NotImplemented
        return (
            self.shape == other.shape
            and np.array_equal(self.indptr, other.indptr)
            and np.array_equal(self.indices, other.indices)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Interactions({self.shape[0]:,} x {self.shape[1]:,}, {self.n_pairs:,} pairs)"


def _ids(values: ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"{name} are {array.dtype} of shape {array.shape}; allowed: integers of one dimension",
            "map your own ids to 0, 1, 2, ... first, or read a file with kdrs.data.read",
        )
    if array.dtype == np.uint64 and array.max() > INT32_MAX:
        raise DataError(f"{name}: id {array.max()} does not fit int32")
    return array.astype(np.int64)


def _size(ids: NDArray[np.int64], stated: int | None, name: str) -> int:
    low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, -1)
    if low < 0:
        raise DataError(f"{name}: id {low} is negative; ids count from 0")
    if high > INT32_MAX - 1:
        raise DataError(f"{name}: id {high} does not fit int32", "map your own ids to 0, 1, 2, ... first")
    if stated is None:
        return high + 1
    if high >= stated:
        raise DataError(f"{name}: id {high} is past the stated size {stated}")
    return int(stated)
