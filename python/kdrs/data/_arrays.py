"""Parquet, data frames, NumPy arrays and SciPy matrices to tables."""

from __future__ import annotations

import io
import os
import tokenize
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs.data._rows import Options, Source, make_table
from kdrs.data._text import read_bytes
from kdrs.data.readers import NAMES, find_columns
from kdrs.data.table import Table
from kdrs.errors import DataError, shown

if TYPE_CHECKING:
    import polars as pl

MOST_UNPACKED = 64 * 2**30
"""Bytes that an archive may unpack to."""


def read_parquet(path: str | os.PathLike[str], options: Options) -> Table:
    """The wanted columns of a Parquet file."""
    import polars as pl

    data, record = read_bytes(path)
    name = shown(str(path))
    try:
        names = list(pl.read_parquet_schema(io.BytesIO(data)))
        columns = find_columns(name, names, len(names), options)
        wanted = [names[place] for place in sorted(set(columns.values()))]
        frame = pl.read_parquet(io.BytesIO(data), columns=wanted)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        # Damaged files make Polars panic, which is no Exception.
        raise DataError(f"{name} is no readable Parquet file: {shown(str(error))}", "write it again") from error
    return _framed(frame, {role: names[place] for role, place in columns.items()}, name, record, options, "parquet")


def from_frame(frame: Any, options: Options) -> Table:
    """The wanted columns of a Polars, pandas or Arrow frame."""
    import polars as pl

    if not isinstance(frame, pl.DataFrame):
        try:
            frame = pl.DataFrame(frame)
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise DataError(f"a {type(frame).__name__} is no data frame: {shown(str(error))}") from error
    names = frame.columns
    columns = find_columns("the frame", names, len(names), options)
    record = {"file": "frame", "rows": frame.height}
    return _framed(
        frame, {role: names[place] for role, place in columns.items()}, "the frame", record, options, "frame"
    )


def _framed(
    frame: pl.DataFrame, columns: dict[str, str], name: str, record: dict[str, Any], options: Options, form: str
) -> Table:
    raw = {role: frame.get_column(column) for role, column in columns.items()}
    if not frame.height:
        raise DataError(f"{name} has columns and no rows", "name data with at least one interaction")

    def locate(row: int) -> tuple[str, str]:
        return f"{name}: row {row + 1}", ", ".join(f"{role} {column[row]}" for role, column in raw.items())

    source = Source(name, record, locate, frame.height)
    strings = {role: _id_strings(raw[role], role, columns[role], name, options) for role in ("user", "item")}
    return make_table({**raw, **strings}, source, options, form, ordered=True)


def _id_strings(column: pl.Series, role: str, label: str, name: str, options: Options) -> pl.Series:
    """Ids as strings. Floats are refused, unless the options say what to make of them."""
    import polars as pl

    kind = column.dtype
    if kind in (pl.String, pl.Categorical, pl.Enum) or kind.is_integer():
        return column.cast(pl.String)
    if kind.is_float():
        if options.float_ids == "error":
            nulls = column.null_count() + int(column.is_nan().sum() or 0)
            raise DataError(
                f"{name}: {role} ids in column {shown(label)} are floats ({kind}), {nulls:,} of them missing or NaN",
                "write the column as integers or strings; --float-ids whole takes 12.0 as 12",
            )
        return column.cast(pl.String)  # told apart later, with all other strings
    raise DataError(
        f"{name}: {role} ids in column {shown(label)} are {kind}; allowed: strings and integers",
        f"name another column with --{role}",
    )


def read_npy(path: str | os.PathLike[str], options: Options) -> Table:
    """A NumPy array: integers ``[rows, 2 to 4]`` (user, item, rating, time), or named fields."""
    data, record = read_bytes(path)
    name = shown(str(path))
    array = _loaded(data, name)
    if array.dtype.names:
        columns = {field: array[field] for field in array.dtype.names}
        return _from_columns(columns, name, record, options, "npy")
    if array.ndim != 2 or not 2 <= array.shape[1] <= 4:
        raise DataError(
            f"{name} is {array.dtype} of shape {array.shape}; allowed: [rows, 2 to 4] (user, item, rating, time)",
            "a matrix of users x items is read as .npz, written by scipy.sparse.save_npz",
        )
    columns = dict(zip(NAMES, array.T, strict=False))
    return _from_columns(columns, name, record, options, "npy")


def read_npz(path: str | os.PathLike[str], options: Options) -> Table:
    """Arrays ``users``, ``items`` and perhaps ``ratings``, ``timestamps``; or a matrix of ``scipy.sparse.save_npz``."""
    data, record = read_bytes(path)
    name = shown(str(path))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > MOST_UNPACKED:
                raise DataError(f"{name} unpacks to {unpacked / 2**30:.1f} GB, more than {MOST_UNPACKED >> 30} GB")
            arrays = {
                member.filename.removesuffix(".npy"): _loaded(archive.read(member), f"{name}, {member.filename}")
                for member in members
            }
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{name} is no readable .npz file: {shown(str(error))}", "write it again") from error
    if "format" in arrays and "shape" in arrays:
        return _from_matrix(arrays, name, record, options)
    return _from_columns(arrays, name, record, options, "npz")


def _loaded(data: bytes, name: str) -> NDArray[Any]:
    """An array, its announced size compared with the bytes at hand before anything is allocated. Never a pickle."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise DataError(
                f"{name} holds Python objects, which are a pickle; kdrs never loads pickles",
                "save integers or strings: array.astype(str)",
            )
        announced = dtype.itemsize * int(np.prod(shape, dtype=object))
        if announced != len(data) - stream.tell():
            raise DataError(
                f"{name} announces {announced:,} bytes ({dtype} {shape}) and holds {len(data) - stream.tell():,}",
                "the file was cut or damaged: write it again",
            )
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, TypeError, SyntaxError, tokenize.TokenError) as error:
        raise DataError(f"{name} is no readable NumPy array: {shown(str(error))}", "write it again") from error


def _from_columns(
    columns: dict[str, NDArray[Any]], name: str, record: dict[str, Any], options: Options, form: str
) -> Table:
    import polars as pl

    shapes = {label: column.shape for label, column in columns.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise DataError(f"{name}: arrays of shapes {shapes}; columns are one-dimensional and of one length")
    for label, column in columns.items():
        if column.dtype.kind not in "iufUb":
            raise DataError(f"{name}: {label} is {column.dtype}; allowed: integers, floats and strings")
    frame = pl.DataFrame({label: np.ascontiguousarray(column) for label, column in columns.items()})
    places = find_columns(name, frame.columns, frame.width, options)
    return _framed(frame, {role: frame.columns[place] for role, place in places.items()}, name, record, options, form)


def _from_matrix(arrays: dict[str, NDArray[Any]], name: str, record: dict[str, Any], options: Options) -> Table:
    """The stored places of a users x items matrix; ids are row and column numbers, values are ratings."""
    import polars as pl

    kind = arrays["format"].item()
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if kind not in ("csr", "csc", "coo"):
        raise DataError(f"{name} is a SciPy matrix of format {shown(kind)}; allowed: csr, csc, coo", "use .tocsr()")
    missing = {"data", "shape", *(("row", "col") if kind == "coo" else ("indptr", "indices"))} - arrays.keys()
    if missing or arrays["shape"].shape != (2,):
        raise DataError(f"{name} is no users x items matrix: {sorted(missing) or arrays['shape'].shape}")
    n_users, n_items = (int(size) for size in arrays["shape"])
    if kind == "coo":
        rows, columns = arrays["row"], arrays["col"]
    else:
        indptr, minor = arrays["indptr"], arrays["indices"]
        n_major = n_users if kind == "csr" else n_items
        whole = indptr.dtype.kind in "iu" and minor.dtype.kind in "iu"
        if not whole or indptr.shape != (n_major + 1,) or (np.diff(indptr) < 0).any() or indptr[-1] != minor.size:
            raise DataError(f"{name}: indptr does not describe {n_major} rows of {minor.size} places", "write it again")
        major = np.repeat(np.arange(n_major), np.diff(indptr))
        rows, columns = (major, minor) if kind == "csr" else (minor, major)
    values = arrays["data"]
    if values.shape != rows.shape or rows.shape != columns.shape or values.dtype.kind not in "iufb":
        raise DataError(f"{name}: {rows.size} rows, {columns.size} columns, {values.size} values of {values.dtype}")
    for label, ids, size in (("row", rows, n_users), ("column", columns, n_items)):
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= size):
            raise DataError(f"{name}: {label}s run from {ids.min()} to {ids.max()}; the shape allows 0 to {size - 1}")
    if not values.size:
        raise DataError(f"{name} is a matrix of {n_users:,} x {n_items:,} without a stored value")
    frame = pl.DataFrame({"user": rows, "item": columns, "rating": values.astype(np.float64)})
    table = _framed(frame, {role: role for role in frame.columns}, name, record, options, "npz")
    ones = table.ratings is not None and bool((table.ratings == 1).all())
    return replace(table, ordered=False, ratings=None if ones else table.ratings)


READERS = {"parquet": read_parquet, "npy": read_npy, "npz": read_npz}
