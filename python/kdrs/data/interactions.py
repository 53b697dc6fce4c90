"""Who has seen what: a 0/1 matrix in CSR form, the one structure that every other part reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdrs.data import checks
from kdrs.data.checks import INT32_MAX
from kdrs.errors import DataError, shown

if TYPE_CHECKING:
    import scipy.sparse


@dataclass(frozen=True, eq=False)
class Interactions:
    """Who has seen what: (row, column) pairs, each once.

    Rows are users (or queries), columns are items; ``shape`` is (rows, columns), each at most 2^31 - 1. Made by
    ``from_pairs`` or ``from_csr``; the constructor takes the finished arrays and checks them.

    ``indptr`` is int64 ``[rows + 1]``: the pairs of row r are ``indices[indptr[r]:indptr[r + 1]]``. ``indices`` is int32
    ``[pairs]``, strictly ascending within a row. Both are read-only, and copies where the caller could still write to
    them; so is every array that is made of them and kept. Raises ``DataError`` for row ends that do not fit, ids outside the
    shape, ids that do not ascend, and floats.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        indptr, indices = np.asarray(self.indptr), np.asarray(self.indices)
        checks.check_shape(tuple(self.shape), indices.size, stated=True)
        n_rows, n_columns = (int(size) for size in self.shape)
        if indices.ndim != 1:
            raise DataError(f"indices have shape {indices.shape}; allowed: one dimension")
        checks.check_indptr(indptr, n_rows, indices.size)
        checks.check_ids(indices, n_columns, "item")
        if not ascends(indptr, indices):
            raise DataError("item ids must ascend strictly within a row", "use Interactions.from_pairs")
        object.__setattr__(self, "shape", (n_rows, n_columns))
        object.__setattr__(self, "indptr", frozen(indptr, np.int64))
        object.__setattr__(self, "indices", frozen(indices, np.int32))

    def __getstate__(self) -> tuple[Any, ...]:
        return self.indptr, self.indices, self.shape

    def __setstate__(self, state: tuple[Any, ...] | dict[str, Any]) -> None:
        if isinstance(state, dict):  # pickled by kdrs 0.2 or older
            state = state["indptr"], state["indices"], state["shape"]
        self._take(*state)

    def _take(self, indptr: NDArray[np.int64], indices: NDArray[np.int32], shape: tuple[int, int]) -> None:
        """Arrays that nobody else holds, without a check."""
        for name, value in (("indptr", indptr), ("indices", indices), ("shape", shape)):
            object.__setattr__(self, name, still(value) if isinstance(value, np.ndarray) else value)

    @classmethod
    def from_pairs(
        cls, users: ArrayLike, items: ArrayLike, n_users: int | None = None, n_items: int | None = None
    ) -> Interactions:
        """Interactions of parallel id arrays, in any order; repeated pairs count once.

        ``users`` and ``items`` are integers ``[pairs]`` from 0; the sizes default to the largest id plus one. Raises
        ``DataError`` for lengths that differ, floats, negative ids, ids past the stated sizes, and ids so large that an
        index up to them is no use; ``MachineError`` for stated sizes that the machine cannot hold.
        """
        user, item = _ids(users, "users"), _ids(items, "items")
        if user.size != item.size:
            raise DataError(f"got {user.size} users and {item.size} items; they are pairs, so the lengths must agree")
        stated = n_users is not None and n_items is not None
        n_users = _size(user, n_users, "users")
        n_items = _size(item, n_items, "items")
        checks.check_shape((n_users, n_items), user.size, stated=stated)
        keys = user * max(n_items, 1) + item
        keys.sort()  # np.unique takes ten times as long
        keys = keys[np.diff(keys, prepend=-1) > 0]
        user, item = np.divmod(keys, max(n_items, 1))
        indptr = np.zeros(n_users + 1, np.int64)
        np.cumsum(np.bincount(user, minlength=n_users), out=indptr[1:])
        indices = item.astype(np.int32)
        return cls(still(indptr), still(indices), (n_users, n_items))  # nobody else holds them: no copy is made

    @classmethod
    def from_csr(cls, matrix: Any, *, zeros: checks.Zeros = "drop") -> Interactions:
        """Interactions of a SciPy sparse matrix or array of any format: its stored places.

        Values are ratings, as those of a file: places that hold 0 are not rated, left out and told (logger
        ``kdrs.data``), or count with ``zeros="keep"``; a place that is stored twice counts once, and is told. The
        matrix is not changed. Raises ``DataError`` for values that are NaN, infinite or negative (+1 for likes and -1
        for dislikes: take ``matrix.multiply(matrix > 0)``), and for a matrix whose parts do not fit together.
        """
        checks.check_sparse(matrix)
        checks.check_shape(tuple(matrix.shape), matrix.nnz, stated=True)
        if matrix.format == "csr":
            values, indptr, indices = (np.asarray(part) for part in (matrix.data, matrix.indptr, matrix.indices))
            checks.check_values(
                values, lambda place: _place(int(np.searchsorted(indptr, place, "right")) - 1, indices[place])
            )
            kept = checks.is_rated(values, zeros, "the matrix")
            if kept is None and ascends(indptr, indices):
                return cls(indptr, indices, matrix.shape)
            users, items = np.repeat(np.arange(matrix.shape[0]), np.diff(indptr)), indices
        else:
            coo = matrix.tocoo()
            users, items = coo.row, coo.col
            checks.check_values(coo.data, lambda place: _place(users[place], items[place]))
            kept = checks.is_rated(coo.data, zeros, "the matrix")
        if kept is not None:
            users, items = users[kept], items[kept]
        found = cls.from_pairs(users, items, *matrix.shape)
        if found.n_pairs < users.size:
            checks.log.warning(
                "the matrix: %s places are stored twice and count once", f"{users.size - found.n_pairs:,}"
            )
        return found

    def to_csr(self) -> scipy.sparse.csr_matrix:
        """The same as a SciPy ``csr_matrix`` of float32 ones, as implicit, LightFM and irspack take it.

        All three arrays are the caller's own and may be written to; indices are int32 wherever they fit.
        """
        from kdrs._libraries import scipy

        fits = self.n_pairs <= INT32_MAX
        indptr = self.indptr.astype(np.int32 if fits else np.int64)
        parts: Any = (np.ones(self.n_pairs, np.float32), self.indices.astype(indptr.dtype), indptr)
        return scipy.sparse.csr_matrix(parts, shape=self.shape)

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
        return still(np.repeat(np.arange(self.shape[0], dtype=np.int32), self.row_degrees))

    @cached_property
    def row_degrees(self) -> NDArray[np.int64]:
        """int64 ``[rows]``: pairs of each row."""
        return still(np.diff(self.indptr))

    @cached_property
    def column_degrees(self) -> NDArray[np.int64]:
        """int64 ``[columns]``: pairs of each column, an item's popularity."""
        return still(np.bincount(self.indices, minlength=self.shape[1]))

    def row(self, index: int) -> NDArray[np.int32]:
        """The columns of one row, ascending. Raises ``DataError`` for a row that does not exist."""
        if not (isinstance(index, (int, np.integer)) and 0 <= index < self.shape[0]):
            self._chosen([index])
        return self.indices[self.indptr[index] : self.indptr[index + 1]]

    def pairs_of(self, rows: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The pairs of some ``rows``, int [R], in their order: which of them (int64 [P]) and the column (int32 [P]). Raises
        ``DataError`` for rows that do not exist, and for masks and floats."""
        which, places = self.places_of(rows)
        return which, self.indices[places]

    def places_of(self, rows: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The same as places in ``indices``, int64 [P]."""
        chosen = self._chosen(rows)
        starts, lengths = self.indptr[chosen], self.row_degrees[chosen]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.repeat(np.arange(chosen.size), lengths), np.repeat(starts, lengths) + within

    def rows(self, chosen: ArrayLike) -> Interactions:
        """Some rows, int [R], in their order. Raises ``DataError`` as `pairs_of` does."""
        at = self._chosen(chosen)
        if at.size == 1:
            start, stop = self.indptr[at[0]], self.indptr[at[0] + 1]
            indices, indptr = self.indices[start:stop], np.array([0, stop - start])
        else:
            indices = self.indices[self.places_of(at)[1]]
            indptr = np.zeros(at.size + 1, np.int64)
            np.cumsum(self.row_degrees[at], out=indptr[1:])
        made = object.__new__(Interactions)
        made._take(indptr, indices, (at.size, self.shape[1]))  # unchecked, since one user's list waits for it
        return made

    def _chosen(self, rows: ArrayLike) -> NDArray[np.int64]:
        at = np.asarray(rows)
        if at.size and (at.ndim != 1 or at.dtype.kind not in "iu"):
            raise DataError(
                f"rows are {at.dtype} of shape {at.shape}; allowed: row numbers, integers of one dimension",
                "of a mask give np.flatnonzero(mask), of one row [row]",
            )
        low, high = (at[0], at[0]) if at.size == 1 else (at.min(), at.max()) if at.size else (0, -1)
        if not 0 <= low <= high < self.shape[0] and at.size:
            bad = at[(at < 0) | (at >= self.shape[0])][0]
            raise DataError(f"row {bad} of {self.shape[0]}", f"allowed: 0 to {self.shape[0] - 1}")
        return at.astype(np.int64, copy=False)

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


def still(array: NDArray[Any]) -> NDArray[Any]:
    """The array, read-only from now on."""
    array.flags.writeable = False
    return array


def ascends(indptr: NDArray[Any], indices: NDArray[Any]) -> bool:
    """Whether the ids of each row ascend strictly; the row ends are checked already."""
    if not indices.size:
        return True
    starts = np.zeros(indices.size + 1, bool)
    starts[indptr] = True
    return not ((indices[1:] <= indices[:-1]) & ~starts[1:-1]).any()


def frozen(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """A read-only array of that type; a copy where somebody could still write to what was given."""
    own = np.ascontiguousarray(array, dtype=dtype)
    base: Any = own
    while isinstance(base, np.ndarray) and not base.flags.writeable:
        base = base.base
    if isinstance(base, np.ndarray) and np.may_share_memory(own, array):
        own = own.copy()
    view = own.view()
    view.flags.writeable = False
    return view


def _place(user: Any, item: Any) -> str:
    return f"user {int(user)}, item {int(item)}"


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
    if isinstance(stated, bool) or not isinstance(stated, (int, np.integer)) or stated < 0:
        raise DataError(f"the number of {name} is {shown(stated)}", "allowed: integers from 0")
    if high >= stated:
        raise DataError(f"{name}: id {high} is past the stated size {stated}")
    return int(stated)


def as_interactions(given: Any, name: str) -> Interactions:
    """Interactions as they are, or of a SciPy sparse matrix (`Interactions.from_csr`); ``name`` is what messages call them.
    Raises ``DataError`` for anything else."""
    if isinstance(given, Interactions):
        return given
    if hasattr(given, "tocoo"):
        return Interactions.from_csr(given)
    raise DataError(f"{name} is a {type(given).__name__}; allowed: kdrs.Interactions or a SciPy sparse matrix")
