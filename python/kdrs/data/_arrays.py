"""NumPy arrays and SciPy matrices to tables."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.data._columns import bare_columns, named_columns
from kdrs.data._frames import columns_of_arrays, framed
from kdrs.data._guard import guarded
from kdrs.data._options import Options
from kdrs.data._text import read_bytes
from kdrs.data.checks import as_doubles
from kdrs.data.npy import Header, members_of, open_member, unpacked
from kdrs.data.table import Table
from kdrs.errors import DataError, shown

_MATRIX = {
    "csr": ("data", "indptr", "indices"),
    "csc": ("data", "indptr", "indices"),
    "coo": ("data", "row", "col"),
}


def read_npy(path: str | os.PathLike[str], options: Options) -> Table:
    """A NumPy array: numbers or text ``[rows, columns]``, or named fields. Of two columns the first is the user."""
    data, record = read_bytes(path)
    name = shown(str(path))
    with guarded(f"{name} is no readable NumPy array"):
        array = Header(io.BytesIO(data), len(data), name).load()
    if array.dtype.names:
        fields = list(array.dtype.names)
        places = named_columns(name, fields, options)
        arrays: dict[str, NDArray[Any]] = {fields[place]: array[fields[place]] for place in places.values()}
        labels: dict[str, str | int] = {role: fields[place] for role, place in places.items()}
    elif array.ndim == 2 and array.shape[1] >= 2:
        if not len(array):
            raise DataError(f"{name} has columns and no rows", "name data with at least one interaction")
        places = bare_columns(name, [str(value) for value in array[0].tolist()], options, no_header="")
        arrays, labels = {str(place): array[:, place] for place in places.values()}, dict(places)
    else:
        raise DataError(
            f"{name} is {array.dtype} of shape {array.shape}; allowed: [rows, columns], a user and an item column at least",
            "a matrix of users x items is read as .npz, written by scipy.sparse.save_npz",
        )
    columns = columns_of_arrays(arrays, labels, name)
    return _framed(columns, labels, name, record, options, "npy")


def read_npz(path: str | os.PathLike[str], options: Options) -> Table:
    """Arrays ``users``, ``items`` and perhaps ``ratings``, ``timestamps``; or a matrix of ``scipy.sparse.save_npz``.

    Only the arrays that are used are unpacked.
    """
    data, record = read_bytes(path)
    name = shown(str(path))
    with guarded(f"{name} is no readable .npz file"), zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = members_of(archive, name)
        if {"format", "shape"} <= members.keys():
            options.check_used(name, "matrix")
            return _from_matrix(archive, members, name, record, options)
        places = _placed(archive, members, name, options)
        labels: dict[str, str | int] = {role: list(members)[place] for role, place in places.items()}
        arrays = unpacked(archive, members, [str(label) for label in labels.values()], name)
    return _framed(columns_of_arrays(arrays, labels, name), labels, name, record, options, "npz")


def _framed(
    columns: dict[str, Any],
    labels: dict[str, str | int],
    name: str,
    record: dict[str, Any],
    options: Options,
    form: str,
) -> Table:
    shown_as = {role: role if isinstance(label, int) else label for role, label in labels.items()}
    table = framed(columns, shown_as, name, record, options, form)
    return replace(table, sources=({**table.sources[0], "columns": labels},))


def _placed(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, options: Options
) -> dict[str, int]:
    try:
        return named_columns(name, list(members), options)
    except DataError:
        for member in members.values():  # pickles are told before missing columns: they may be the columns
            open_member(archive, member, name)
        raise


# Matrices


def _from_matrix(
    archive: zipfile.ZipFile,
    members: dict[str, zipfile.ZipInfo],
    name: str,
    record: dict[str, Any],
    options: Options,
) -> Table:
    """The stored places of a users x items matrix; ids are row and column numbers, values are ratings."""
    from kdrs._libraries import polars as pl

    head = unpacked(archive, members, ["format", "shape"], name)
    kind = head["format"].item()
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if kind not in _MATRIX:
        raise DataError(f"{name} is a SciPy matrix of format {shown(kind)}; allowed: csr, csc, coo", "use .tocsr()")
    missing = set(_MATRIX[kind]) - members.keys()
    shape = head["shape"]
    if missing or shape.shape != (2,) or shape.dtype.kind not in "iu":
        raise DataError(f"{name} is no users x items matrix: {sorted(missing) or shown(str(shape.tolist()))}")
    n_users, n_items = (int(size) for size in shape)
    arrays = unpacked(archive, members, list(_MATRIX[kind]), name)
    values = arrays["data"]
    if kind == "coo":
        rows, columns = _whole(arrays["row"], "row", name), _whole(arrays["col"], "col", name)
    else:
        indptr, minor = _whole(arrays["indptr"], "indptr", name), _whole(arrays["indices"], "indices", name)
        n_major = n_users if kind == "csr" else n_items
        counts = np.diff(indptr)
        if indptr.shape != (n_major + 1,) or indptr[0] != 0 or (counts < 0).any() or indptr[-1] != minor.size:
            raise DataError(f"{name}: indptr does not describe {n_major} rows of {minor.size} places", "write it again")
        major = np.repeat(np.arange(n_major), counts)
        rows, columns = (major, minor) if kind == "csr" else (minor, major)
    if values.shape != rows.shape or rows.shape != columns.shape or values.dtype.kind not in "iufb":
        raise DataError(f"{name}: {rows.size} rows, {columns.size} columns, {values.size} values of {values.dtype}")
    for label, ids, size in (("row", rows, n_users), ("column", columns, n_items)):
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= size):
            raise DataError(f"{name}: {label}s run from {ids.min()} to {ids.max()}; the shape allows 0 to {size - 1}")
    if not values.size:
        raise DataError(f"{name} is a matrix of {n_users:,} x {n_items:,} without a stored value")
    labels = {"user": "row", "item": "column", "rating": "value"}
    frame = {"user": pl.Series(rows), "item": pl.Series(columns), "rating": pl.Series(as_doubles(values))}
    table = framed(frame, labels, name, record, options, "npz")
    ones = table.ratings is not None and bool((table.ratings == 1).all())
    return replace(table, ordered=False, ratings=None if ones else table.ratings)


def _whole(array: NDArray[Any], label: str, name: str) -> NDArray[np.int64]:
    """int64 ``[n]``: differences of unsigned numbers would wrap round."""
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array.dtype == np.uint64 and (array >> 63).any()):
        raise DataError(f"{name}: {label} is {array.dtype} of shape {array.shape}, no list of places", "write it again")
    return array.astype(np.int64)
