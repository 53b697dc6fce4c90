"""Noise that is decided by what it belongs to: the same key and seed always give the same value.

A term of a loss that asks for other queries, or for the same ones again, then changes nobody else's noise, and one forward
state has one noise, whatever is read of it and in whatever order.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN, FIRST, SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""SplitMix64's constants (Steele, Lea & Flood, 2014) as signed integers."""


def uniform(seed: int, keys: Tensor) -> Tensor:
    """float32 in [0, 1), multiples of 2^-24, one for each int64 key."""
    x = _shift(keys * GOLDEN + _signed(seed), 30) * FIRST
    x = _shift(x, 27) * SECOND
    x = _shift(x, 31)
    return ((x >> 40) & (2**24 - 1)).to(torch.float32) * 2.0**-24


def normal(seed: int, keys: Tensor) -> Tensor:
    """Standard normal float32, one for each int64 key; at most 5.4 in size."""
    return torch.special.ndtri(uniform(seed, keys).double() + 2.0**-25).to(torch.float32)


def _shift(x: Tensor, bits: int) -> Tensor:
    """x ^ (x >> bits), the shift filling with zeros."""
    return x ^ ((x >> bits) & (2 ** (64 - bits) - 1))


def _signed(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed
