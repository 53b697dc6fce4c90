"""What interactions, their values and lists of items must be: one rule for files, arrays, matrices and lists.

Readers count and skip what a rule names; every other door refuses it. The words are the same at each.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kdrs._memory import memory_limit
from kdrs.errors import ConfigError, DataError, MachineError, nearest, shown

log = logging.getLogger("kdrs.data")

INT32_MAX = 2**31 - 1
ZEROS = ("drop", "keep")
Zeros: TypeAlias = Literal["drop", "keep"]
ZEROS_STEP = "rated 0: not rated (--zeros keep counts it as positive)"
KEEP_ZEROS = "a rating of 0 says 'not rated'; zeros='keep' (--zeros keep) counts it as positive"
MEND_VALUES = "leave such rows out, or turn them into positive ratings, before they are handed over"
_BLOCK = 2**22
"""Entries of lists that are looked at together."""
_SPARE = 2**25
"""Empty rows and columns that are always allowed, whatever the number of pairs: 256 MB of row ends."""
_LITTLE = 2**24
"""Bytes that every machine has."""


def wrong_values(values: NDArray[Any]) -> list[tuple[NDArray[np.bool_], str]]:
    """Which values are no ratings, by reason: NaN, infinite or negative. Only reasons that occur are listed."""
    if values.dtype.kind in "bu":
        return []
    if values.dtype.kind == "i":
        found = [(values < 0, "is negative")]
    else:
        found = [
            (np.isnan(values), "is NaN"),
            (np.isinf(values), "is infinite"),
            (np.isfinite(values) & (values < 0), "is negative"),
        ]
    return [(rows, reason) for rows, reason in found if rows.any()]


def check_values(values: NDArray[Any], place: Callable[[int], str]) -> None:
    """Refuse values that are no ratings. ``place`` names one for the message.

    Raises ``DataError`` for NaN, infinite and negative values, and for what is no real number.
    """
    if values.dtype.kind not in "biuf":
        raise DataError(f"values are {values.dtype}; allowed: real numbers", "use .astype(float)")
    wrong = wrong_values(values)
    if wrong:
        first, reason = min((int(np.argmax(rows)), reason) for rows, reason in wrong)
        count = sum(int(np.count_nonzero(rows)) for rows, _ in wrong)
        more = f" ({count:,} such values)" if count > 1 else ""
        raise DataError(f"{place(first)}: rating {reason}: {values[first]}{more}", MEND_VALUES)


def as_doubles(values: NDArray[Any]) -> NDArray[np.float64]:
    """float64, the same shape: narrower floats as they are written, so that 3.3 is not below a threshold of 3.3."""
    if values.dtype.kind != "f" or values.dtype.itemsize >= 8:
        return values.astype(np.float64)
    distinct, places = np.unique(values, return_inverse=True)
    return distinct.astype("U24").astype(np.float64)[places].reshape(values.shape)


def check_zeros(zeros: str) -> None:
    if zeros not in ZEROS:
        raise ConfigError(f"unknown zeros {shown(zeros)}", nearest(str(zeros), ZEROS))


def is_rated(values: NDArray[Any], zeros: str, name: str) -> NDArray[np.bool_] | None:
    """Which places count, ``None`` for all; those that are left out are told."""
    check_zeros(zeros)
    kept = values != 0
    left_out = int(kept.size - np.count_nonzero(kept))
    if zeros == "keep" or not left_out:
        return None
    log.warning("%s: %s places hold 0 and are left out; %s", name, f"{left_out:,}", KEEP_ZEROS)
    return kept


def check_indptr(indptr: NDArray[Any], n_rows: int, n_places: int, name: str = "indptr") -> None:
    """Refuse row ends that do not describe ``n_rows`` rows of ``n_places`` places. Raises ``DataError``."""
    good = (
        indptr.dtype.kind in "iu"
        and indptr.shape == (n_rows + 1,)
        and indptr[0] == 0
        and indptr[-1] == n_places
        and not (indptr[1:] < indptr[:-1]).any()
    )
    if not good:
        raise DataError(f"{name} does not describe {n_rows} rows of {n_places} pairs", "build the matrix anew")


def check_ids(ids: NDArray[Any], size: int, name: str) -> None:
    """Refuse ids that are no integers from 0 to ``size - 1``. Raises ``DataError``."""
    if ids.size and ids.dtype.kind not in "iu":
        raise DataError(f"{name} ids are {ids.dtype}; allowed: integers", "map your own ids to 0, 1, 2, ... first")
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= size):
        raise DataError(f"{name} ids run from {ids.min()} to {ids.max()}; allowed: 0 to {size - 1}")


def check_shape(shape: tuple[int, ...], n_pairs: int, *, stated: bool) -> None:
    """Refuse sizes past int32, sizes that no memory holds, and sizes that one huge id would make.

    ``stated`` says whether somebody asked for them; sizes taken from the largest id have to be near the number of
    pairs. Raises ``DataError``, or ``MachineError`` where the machine is too small.
    """
    if len(shape) != 2 or not all(0 <= size <= INT32_MAX for size in shape):
        raise DataError(f"shape {shape} does not fit int32 ids", f"at most {INT32_MAX} users and items")
    needed = 8 * (sum(shape) + 2)
    if not stated and max(shape) > _SPARE + 1000 * n_pairs:
        raise DataError(
            f"ids run to {max(shape) - 1}, and there are {n_pairs:,} pairs: an index takes {needed / 1e9:.1f} GB",
            "map your own ids to 0, 1, 2, ... first, or state n_users and n_items",
        )
    # the system is not asked for the sake of a little: that takes longer than one user's list
    if needed > _LITTLE and needed > memory():
        raise MachineError(
            f"{shape[0]:,} users and {shape[1]:,} items take {needed / 1e9:.1f} GB before the first pair",
            "map your own ids to 0, 1, 2, ... first",
        )


def memory() -> int:
    """Bytes of memory that this process may use; past counting where the system does not say."""
    return memory_limit() or 2**63 - 1


def check_lists(lists: NDArray[Any], n_items: int, name: str) -> None:
    """Refuse lists ``[Q, K]`` that hold an item twice, an id outside 0 to ``n_items - 1`` or an item after the padding.

    -1 pads the end. ``name`` says what they are, as in "the list of query"; the row follows. Raises ``DataError``.
    """
    if lists.dtype.kind not in "iu":
        raise DataError(f"{name}s: ids are {lists.dtype}; allowed: integers")
    step = max(1, _BLOCK // max(lists.shape[1], 1))
    for start in range(0, lists.shape[0], step):
        block = lists[start : start + step]
        outside = ((block >= n_items) | (block < -1)).any(axis=1)
        if outside.any():
            row = int(np.argmax(outside))
            bad = block[row][(block[row] >= n_items) | (block[row] < -1)][0]
            raise DataError(
                f"{name} {start + row} holds an item outside 0 to {n_items - 1}: {bad}", "-1 pads the end of a list"
            )
        late = ((block[:, :-1] < 0) & (block[:, 1:] >= 0)).any(axis=1)
        if late.any():
            raise DataError(
                f"{name} {start + int(np.argmax(late))} is padded with -1 in the middle", "padding stands at the end"
            )
        ordered = np.sort(block, axis=1)
        twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
        if twice.any():
            row = int(np.argmax(twice))
            again = ordered[row, 1:][(ordered[row, 1:] == ordered[row, :-1]) & (ordered[row, 1:] >= 0)][0]
            raise DataError(f"{name} {start + row} holds an item twice: {again}", "each item once a list")


def check_sparse(matrix: Any) -> None:
    """Refuse a SciPy matrix whose parts do not fit together, before SciPy's own code walks through them.

    Raises ``DataError`` for what is no SciPy sparse matrix or array of two dimensions, for row ends that are broken
    and for ids outside the shape.
    """
    scipy = sys.modules.get("scipy.sparse")  # nobody has a matrix of a module that was never imported
    if scipy is None or not scipy.issparse(matrix):
        raise DataError(
            f"got {type(matrix).__name__}; allowed: a SciPy sparse matrix or array", "scipy.sparse.csr_array"
        )
    if len(matrix.shape) != 2:
        raise DataError(f"the matrix has shape {matrix.shape}; allowed: users x items")
    n_rows, n_columns = matrix.shape
    if matrix.format in ("csr", "csc"):
        major, minor = (n_rows, n_columns) if matrix.format == "csr" else (n_columns, n_rows)
        check_indptr(np.asarray(matrix.indptr), major, int(np.asarray(matrix.indices).size))
        check_ids(np.asarray(matrix.indices), minor, "item" if matrix.format == "csr" else "user")
        if matrix.data.shape != matrix.indices.shape:
            raise DataError(f"the matrix has {matrix.indices.size} places and {matrix.data.size} values")
    elif matrix.format == "bsr":
        height, width = matrix.blocksize
        check_indptr(np.asarray(matrix.indptr), n_rows // height, int(np.asarray(matrix.indices).size))
        check_ids(np.asarray(matrix.indices), n_columns // width, "block")
    elif matrix.format == "coo":
        if not matrix.row.shape == matrix.col.shape == matrix.data.shape:
            raise DataError(
                f"the matrix has {matrix.row.size} rows, {matrix.col.size} columns, {matrix.data.size} values"
            )
        check_ids(np.asarray(matrix.row), n_rows, "user")
        check_ids(np.asarray(matrix.col), n_columns, "item")
