"""Columns of NumPy, pandas and Python objects as Polars series, without guessing at mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs.data.checks import as_doubles

if TYPE_CHECKING:
    import polars as pl


class MixedTypes(TypeError):
    """A column holds what no role allows; the message continues "column X"."""


def array_series(array: NDArray[Any]) -> pl.Series:
    """A one-dimensional array. Raises ``MixedTypes`` for types that no column may have."""
    from kdrs._libraries import polars as pl

    kind, size = array.dtype.kind, array.dtype.itemsize
    if array.ndim != 1:
        raise MixedTypes(f"has shape {array.shape}; columns are one-dimensional")
    if kind == "O":
        return object_series(array.tolist())
    if kind not in "iufUM" or (kind == "f" and size > 8):
        raise MixedTypes(f"is {array.dtype}")
    if kind == "M":
        unit = np.datetime_data(array.dtype)[0]
        if unit not in ("D", "h", "m", "s", "ms", "us", "ns"):
            raise MixedTypes(f"is {array.dtype}")
        array = array.astype("datetime64[us]" if unit in ("D", "h", "m", "s") else f"datetime64[{unit}]")
    elif kind == "f" and size == 2:
        array = as_doubles(array)
    # Polars wants the machine's byte order.
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    if kind == "U" and size:
        points = native.view(np.uint32)
        if ((points > 0x10FFFF) | ((points >= 0xD800) & (points < 0xE000))).any():
            raise MixedTypes("holds text that is no Unicode (half a surrogate pair, or a number past U+10FFFF)")
    return pl.Series(native)


def pandas_series(column: Any) -> pl.Series:
    """A pandas column, without pyarrow unless the column is Arrow's. Raises ``MixedTypes`` as ``array_series``."""
    from kdrs._libraries import polars as pl

    kind = column.dtype
    if isinstance(kind, np.dtype):
        return array_series(column.to_numpy())
    family = type(kind).__name__
    if hasattr(kind, "pyarrow_dtype"):
        return pl.Series(column.array.__arrow_array__())
    if family == "StringDtype":
        return object_series(column.to_numpy(dtype=object, na_value=None).tolist())
    if family == "CategoricalDtype":
        values = pandas_series(column.cat.categories.to_series())
        codes = pl.Series(np.asarray(column.cat.codes, np.int64))
        return values.gather(codes.set(codes < 0, None))
    if family == "DatetimeTZDtype":
        return array_series(column.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy())
    numpy_kind = getattr(kind, "numpy_dtype", None)
    if isinstance(numpy_kind, np.dtype) and numpy_kind.kind in "iuf":  # Int64 and others that know missing values
        values = pl.Series(column.to_numpy(dtype=numpy_kind, na_value=0))
        return values.set(pl.Series(column.isna().to_numpy()), None)
    raise MixedTypes(f"is {kind}")


def object_series(values: Sequence[Any]) -> pl.Series:
    """Python objects of one type, some of them perhaps missing. Raises ``MixedTypes`` for mixtures and other objects."""
    from kdrs._libraries import polars as pl

    present = [None if _is_missing(value) else value for value in values]
    kinds = {_kind(value): row for row, value in reversed(list(enumerate(present))) if value is not None}
    if set(kinds) == {"int", "float"}:  # as in [1, 2.5]; missing values of integers are None by now
        return pl.Series([None if value is None else float(value) for value in present], dtype=pl.Float64)
    if len(kinds) > 1:
        mixture = " and ".join(f"{kind} (row {row + 1})" for kind, row in sorted(kinds.items(), key=lambda at: at[1]))
        raise MixedTypes(f"mixes {mixture}")
    kind = next(iter(kinds), "str")
    if kind == "str":
        return pl.Series([None if value is None else str(value) for value in present], dtype=pl.String)
    if kind == "int":
        whole = [None if value is None else int(value) for value in present]
        fits = all(value is None or -(2**63) <= value < 2**63 for value in whole)
        return pl.Series(whole if fits else [None if v is None else str(v) for v in whole], strict=True)
    if kind == "float":
        return pl.Series([None if value is None else float(value) for value in present], dtype=pl.Float64)
    if kind == "Decimal":
        if all(value is None or value.is_finite() for value in present):
            scale = max((-value.as_tuple().exponent for value in present if value is not None), default=0)
            return pl.Series(present, dtype=pl.Decimal(38, max(scale, 0)))
        return pl.Series([None if value is None else str(value) for value in present], dtype=pl.String)
    if kind in ("date", "datetime"):
        return pl.Series(present)
    raise MixedTypes(f"holds objects of type {kind}")


def _kind(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "bool"
    for name, kinds in (("int", int | np.integer), ("float", float | np.floating), ("str", str), ("Decimal", Decimal)):
        if isinstance(value, kinds):
            return name
    if isinstance(value, date):
        return "datetime" if hasattr(value, "hour") else "date"
    return type(value).__name__


def _is_missing(value: Any) -> bool:
    """None, NaN (which pandas writes for a missing value), and pandas' NA and NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value
