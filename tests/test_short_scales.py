"""Scales as files hold them: a byte of a row of one or two bits, two of others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdrs.compact.tables import LEAST_EXPONENT, Tables, of_bfloat16, of_bytes, short, to_bfloat16, to_bytes
from kdrs.core.codes import Codes

lengths = st.lists(st.floats(0, 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=50)


def codes(bits: int, scales: np.ndarray, dim: int = 5) -> Codes:
    levels = np.random.default_rng(0).integers(0, 2, (len(scales), dim)) * 2 - 1
    return Codes.from_levels(levels, np.float32(scales), bits, seed=3)


def through_a_file(side: Codes) -> Codes:
    made = Tables(side, users=side)
    again = Tables.from_tensors(made.tensors(), made.description(), len(side), len(side)).items
    assert isinstance(again, Codes)
    return again


@given(lengths)
def test_a_byte_is_the_nearest_it_can_be(values):
    values = np.float32(values)
    found = to_bytes(values)
    if found is None:
        assert 0 < values.max() < 2.0 ** (LEAST_EXPONENT + 8)
        return
    held, exponent = found
    assert held.dtype == np.uint8
    again = of_bytes(held, exponent)
    known = of_bytes(np.arange(256, dtype=np.uint8), exponent).astype(np.float64)
    assert known[0] == 0
    assert np.isfinite(known).all()
    assert (np.diff(known) > 0).all()
    positive = values > 0
    assert ((again > 0) == positive).all()
    distance = np.abs(known[1:] - values.astype(np.float64)[positive, None]).min(axis=1)
    assert np.array_equal(np.abs(again[positive].astype(np.float64) - values[positive]), distance)
    large = values >= values.max() / 128
    assert (np.abs(again - values)[large] <= values[large] * 2.0**-6).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(again[order]) >= 0).all()


@given(lengths)
def test_bytes_are_taken_as_they_are(values):
    found = to_bytes(np.float32(values))
    if found is not None:
        again = to_bytes(of_bytes(*found))
        assert again is not None
        assert np.array_equal(of_bytes(*again), of_bytes(*found))


@given(lengths, st.sampled_from([1, 2, 3, 4, 8]))
def test_a_file_gives_back_what_short_made(values, bits):
    side = short(codes(bits, np.float32(values)))
    assert short(side) is side
    assert through_a_file(side) == side


@pytest.mark.parametrize("bits", [1, 2])
def test_a_file_of_before_keeps_its_scales(bits):
    """Two bytes a row: what such a file says stays true, and is written again as it was."""
    scales = of_bfloat16(to_bfloat16(np.random.default_rng(1).uniform(0.1, 1, 40).astype(np.float32)))
    side = codes(bits, scales)
    assert short(side) is side
    made = Tables(side, users=side)
    assert made.tensors()["items_scales"].dtype == np.uint16
    assert made.description()["items"] == {"bits": bits, "seed": 3}
    assert through_a_file(side) == side


@pytest.mark.parametrize(("bits", "size"), [(1, 1), (2, 1), (3, 2), (4, 2), (8, 2)])
def test_bytes_of_a_row(bits, size):
    side = short(codes(bits, np.random.default_rng(1).uniform(0.1, 1, 40)))
    made = Tables(side, users=side)
    assert made.nbytes == 2 * 40 * ((5 * bits + 7) // 8 + size)
    assert made.nbytes == sum(tensor.nbytes for tensor in made.tensors().values())


def test_none_is_a_byte_where_all_are_tiny():
    assert to_bytes(np.float32([1e-38, 0])) is None
    assert through_a_file(short(codes(1, np.float32([1.1e-38, 1.2e-38])))).scales.max() > 0
    assert short(codes(1, np.zeros(3))).scales.tolist() == [0, 0, 0]
