"""What a small model is in a file: tables of codes or vectors, an encoder in place of users, a bias. NumPy alone.

A run's ``model.safetensors`` and a student file hold the same tensors, described by the same few words. bfloat16, which NumPy
does not have, is uint16 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdrs.compact.encoders import Encoder, Items
from kdrs.compact.parts import NETWORKS, encoder_of
from kdrs.core import codes
from kdrs.core.codes import MAX_DIM, Codes
from kdrs.errors import DataError, KdrsError, shown

BITS = (*codes.BITS, 32)
"""Of a coordinate; 32 is float32."""
Tensors = Mapping[str, NDArray[Any]]


class Tables(NamedTuple):
    """A ranking by products of stored vectors."""

    items: Items
    users: Items | None = None
    encoder: Encoder | None = None
    bias: NDArray[np.float32] | None = None

    @property
    def dim(self) -> int:
        return int(self.items.shape[1])

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, NDArray[Any]]:
        """``items_codes``, ``items_scales`` or ``items_vectors``, the same of ``users``, ``encoder_...``, ``bias``. Scales are
        cut to bfloat16, a relative error of 2^-9 at most: `short` codes lose nothing."""
        found: dict[str, NDArray[Any]] = {} if self.bias is None else {"bias": self.bias}
        for name, side in (("items", self.items), ("users", self.users)):
            if isinstance(side, Codes):
                found |= {f"{name}_codes": side.data, f"{name}_scales": to_bfloat16(side.scales)}
            elif side is not None:
                found[f"{name}_vectors"] = side
        parts = {} if self.encoder is None else self.encoder.parts()
        return found | {f"encoder_{name}": value for name, value in parts.items()}

    def description(self) -> dict[str, Any]:
        """What a file says of its tensors, for JSON."""
        found: dict[str, Any] = {"dim": self.dim}
        for name, side in (("items", self.items), ("users", self.users)):
            if side is not None:
                found[name] = {"bits": side.bits, "seed": side.seed} if isinstance(side, Codes) else {"bits": 32}
        if self.encoder is not None:
            found["encoder"] = self.encoder.kind
        return found

    @classmethod
    def from_tensors(
        cls, tensors: Tensors, description: Mapping[str, Any], n_users: int, n_items: int, *, copy: bool = True
    ) -> Tables:
        """What ``tensors`` and ``description`` gave to a file, of a data set of these sizes.

        Without ``copy`` tables are read where they lie, and whether float ones are finite is found out where they are used.
        Raises ``DataError`` where they do not fit each other or the sizes, and for tensors that nothing is known of.
        """
        left = dict(tensors)
        try:
            told = _Described.of(dict(description))
            items = _side(left, "items", told.items, n_items, told.dim, copy)
            users = None if told.users is None else _side(left, "users", told.users, n_users, told.dim, copy)
            if told.users is not None and told.users.way != told.items.way:
                raise DataError("users and items are no tables that go together")
            encoder = None
            if told.encoder is not None:
                names = [name for name in left if name.startswith("encoder_")]
                own = {name.removeprefix("encoder_"): left.pop(name) for name in names}
                encoder = encoder_of(told.encoder, own, n_items, told.dim)
                if isinstance(items, Codes) and told.encoder in NETWORKS:
                    raise DataError("a network encodes users, and the items are codes")
            bias = left.pop("bias", None)
            if bias is not None:
                if (bias.shape, bias.dtype) != ((n_items,), np.float32):
                    raise DataError(f"bias is {bias.dtype} {bias.shape}")
                if not np.isfinite(bias).all():
                    raise DataError("the bias is not finite")
            if left:
                raise DataError(f"nothing is known of the tensor {shown(sorted(left)[0])}")
            if users is None and encoder is None:
                raise DataError("it has neither users nor an encoder of them")
            return cls(items, users, encoder, bias)
        except (KeyError, TypeError, ValueError, KdrsError) as error:
            raise DataError(_cause(error)) from None


def _cause(error: Exception) -> str:
    if isinstance(error, KdrsError):
        return error.cause
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to the nearest, ties to even; finite values alone."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def of_bfloat16(values: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (values.astype(np.uint32) << 16).view(np.float32)


def short(side: Codes) -> Codes:
    """Codes whose scales are bfloat16 numbers, as files hold them: two bytes, a relative error of 2^-9 at most."""
    scales = of_bfloat16(to_bfloat16(side.scales))
    if np.array_equal(scales, side.scales):
        return side
    return Codes.from_parts(side.data, scales, side.bits, side.shape[1], seed=side.seed)


class _Table(NamedTuple):
    """What a file says of a table."""

    bits: int
    seed: int | None = None

    @property
    def way(self) -> tuple[bool, int | None]:
        """What must be the same on both sides of a product."""
        return self.bits == 32, self.seed

    @classmethod
    def of(cls, told: Any, name: str) -> _Table:
        if not isinstance(told, dict):
            raise DataError(f"{name} is {shown(told)}; allowed: bits and seed")
        _only(told, cls._fields, f"{name}.")
        bits, seed = told["bits"], told.get("seed")
        if type(bits) is not int or bits not in BITS:
            raise DataError(f"{name}.bits is {shown(bits)}; allowed: {', '.join(map(str, BITS))}")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**64):
            raise DataError(f"{name}.seed is {shown(seed)}; allowed: 0 to 2^64 - 1")
        return cls(bits, seed)


class _Described(NamedTuple):
    """What a file says of its tables, each value checked. By hand: a student file is opened where NumPy is all there is."""

    dim: int
    items: _Table
    users: _Table | None = None
    encoder: str | None = None

    @classmethod
    def of(cls, told: dict[str, Any]) -> _Described:
        """Raises ``DataError`` for a value that is wrong or a key that is unknown, ``KeyError`` for one that is missing."""
        _only(told, cls._fields)
        dim, encoder = told["dim"], told.get("encoder")
        if type(dim) is not int or not 1 <= dim <= MAX_DIM:
            raise DataError(f"dim is {shown(dim)}; allowed: 1 to {MAX_DIM}")
        if encoder is not None and not isinstance(encoder, str):
            raise DataError(f"encoder is {shown(encoder)}; allowed: a name")
        users = None if told.get("users") is None else _Table.of(told["users"], "users")
        return cls(dim, _Table.of(told["items"], "items"), users, encoder)


def _only(told: dict[str, Any], allowed: tuple[str, ...], where: str = "") -> None:
    unknown = [key for key in told if key not in allowed]
    if unknown:
        raise DataError(f"unknown key {where}{shown(unknown[0])}; allowed: {', '.join(allowed)}")


def _side(left: dict[str, NDArray[Any]], name: str, told: _Table, n: int, dim: int, copy: bool) -> Items:
    if told.bits != 32:
        data, scales = left.pop(f"{name}_codes"), left.pop(f"{name}_scales")
        if scales.dtype != np.uint16:
            raise DataError(f"the scales of {name} are {scales.dtype}; allowed: bfloat16")
        if told.seed is None:
            raise DataError(f"the codes of {name} have no seed")
        side: Items = Codes.from_parts(data, of_bfloat16(scales), told.bits, dim, seed=told.seed, copy=copy)
    else:
        side = left.pop(f"{name}_vectors")
        if side.dtype != np.float32 or side.ndim != 2 or (copy and not np.isfinite(side).all()):
            raise DataError(f"the vectors of {name} are {side.dtype}, or not finite")
    if tuple(side.shape) != (n, dim):
        raise DataError(f"the table of {name} is {tuple(side.shape)}, the data have {n}, the model {dim} dimensions")
    return side
