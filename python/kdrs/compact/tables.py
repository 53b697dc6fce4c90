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
FEW_BITS = 2
"""Of a coordinate, up to which a row's scale takes one byte."""
LEAST_EXPONENT, MOST_EXPONENT = -120, 120
"""Of scales in a byte: none is subnormal or infinite as float32."""
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

    @property
    def n_numbers(self) -> int:
        """Numbers that are stored: of codes their coordinates and scales."""
        sides = [side for side in (self.items, self.users) if side is not None]
        numbers = sum(int(np.prod(side.shape)) + (len(side) if isinstance(side, Codes) else 0) for side in sides)
        others = (value for name, value in self.tensors().items() if not name.startswith(("items_", "users_")))
        return numbers + sum(value.size for value in others)

    @property
    def row_bytes(self) -> float:
        """Bytes of a row of the larger table, its scale and bias included."""
        sides = [side for side in (self.items, self.users) if side is not None]
        rows = [Tables(side).nbytes / max(len(side), 1) for side in sides]
        rows[0] += 0 if self.bias is None else 4
        return max(rows)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """``items_codes``, ``items_scales`` or ``items_vectors``, the same of ``users``, ``encoder_...``, ``bias``. Scales are
        bytes where those of `short` codes are, else cut to bfloat16: `short` codes lose nothing."""
        found: dict[str, NDArray[Any]] = {} if self.bias is None else {"bias": self.bias}
        for name, side in (("items", self.items), ("users", self.users)):
            if isinstance(side, Codes):
                scales, _ = _held(side)
                found |= {f"{name}_codes": side.data, f"{name}_scales": scales}
            elif side is not None:
                found[f"{name}_vectors"] = side
        parts = {} if self.encoder is None else self.encoder.parts()
        return found | {f"encoder_{name}": value for name, value in parts.items()}

    def description(self) -> dict[str, Any]:
        """What a file says of its tensors, for JSON."""
        found: dict[str, Any] = {"dim": self.dim}
        for name, side in (("items", self.items), ("users", self.users)):
            if isinstance(side, Codes):
                _, exponent = _held(side)
                found[name] = {"bits": side.bits, "seed": side.seed} | (
                    {} if exponent is None else {"exponent": exponent}
                )
            elif side is not None:
                found[name] = {"bits": 32}
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


def to_bytes(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], int] | None:
    """Floats of eight bits, and the exponent that they share: byte b > 0 is ``2^(exponent + b // 32) * (1 + (b % 32) / 32)``,
    byte 0 is 0. The nearest one, a relative error of 2^-6 at most down to 1/128 of the largest value; what is smaller
    becomes the smallest. None where the values, finite and not negative, are too small for it."""
    values = values.astype(np.float64)
    fraction, exponents = np.frexp(values)
    steps = np.rint((2 * fraction - 1) * 32).astype(np.int64) + 32 * (exponents.astype(np.int64) - 1)
    positive = values > 0
    if not positive.any():
        return np.zeros(len(values), np.uint8), 0
    exponent = int(steps[positive].max() >> 5) - 7
    if not LEAST_EXPONENT <= exponent <= MOST_EXPONENT:
        return None
    return np.where(positive, np.clip(steps - 32 * exponent, 1, 255), 0).astype(np.uint8), exponent


def of_bytes(values: NDArray[np.uint8], exponent: int) -> NDArray[np.float32]:
    known = np.ldexp(1 + np.arange(256) % 32 / 32, exponent + np.arange(256) // 32).astype(np.float32)
    known[0] = 0
    return known[values]


def _held(side: Codes) -> tuple[NDArray[Any], int | None]:
    """Scales as a file holds them: bytes and their exponent where that loses nothing, else bfloat16."""
    if side.bits <= FEW_BITS:
        found = to_bytes(side.scales)
        if found is not None and np.array_equal(of_bytes(*found), side.scales):
            return found
    return to_bfloat16(side.scales), None


def short(side: Codes) -> Codes:
    """Codes with scales as files hold them. Those of one and two bits have a byte (`to_bytes`): rankings do not notice, and
    rows of few bytes have room for eight or four dimensions more (docs/results/notes/frontier.md). Others have two, bfloat16,
    a relative error of 2^-8 at most. Codes whose scales are bfloat16 numbers are left as they are."""
    scales = of_bfloat16(to_bfloat16(side.scales))
    if np.array_equal(scales, side.scales):
        return side
    if side.bits <= FEW_BITS and (found := to_bytes(side.scales)) is not None:
        scales = of_bytes(*found)
    return Codes.from_parts(side.data, scales, side.bits, side.shape[1], seed=side.seed)


class _Table(NamedTuple):
    """What a file says of a table."""

    bits: int
    seed: int | None = None
    exponent: int | None = None
    """Of scales that are bytes; others are bfloat16."""

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
        exponent = told.get("exponent")
        if exponent is not None and (type(exponent) is not int or not LEAST_EXPONENT <= exponent <= MOST_EXPONENT):
            allowed = f"{LEAST_EXPONENT} to {MOST_EXPONENT}"
            raise DataError(f"{name}.exponent is {shown(exponent)}; allowed: {allowed}")
        return cls(bits, seed, exponent)


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
        kind, allowed = (np.uint16, "bfloat16") if told.exponent is None else (np.uint8, "uint8")
        if scales.dtype != kind:
            raise DataError(f"the scales of {name} are {scales.dtype}; allowed: {allowed}")
        if told.seed is None:
            raise DataError(f"the codes of {name} have no seed")
        lengths = of_bfloat16(scales) if told.exponent is None else of_bytes(scales, told.exponent)
        side: Items = Codes.from_parts(data, lengths, told.bits, dim, seed=told.seed, copy=copy)
    else:
        side = left.pop(f"{name}_vectors")
        if side.dtype != np.float32 or side.ndim != 2 or (copy and not np.isfinite(side).all()):
            raise DataError(f"the vectors of {name} are {side.dtype}, or not finite")
    if tuple(side.shape) != (n, dim):
        raise DataError(f"the table of {name} is {tuple(side.shape)}, the data have {n}, the model {dim} dimensions")
    return side
