"""Codes as they are made: the rotation, the rounding, the packing and sums, byte for byte against NumPy on every path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codes_in_numpy import random_codes, slow_codes, slow_levels, slow_sums, slow_turned, slow_vectors
from kdrs import Codes, _core
from kdrs.core import codes as coding
from kdrs.errors import DataError

FROZEN = {
    1: "48060305",
    2: "9175395a1426",
    3: "83a879eb01ac06095401",
    4: "0685756db60ea9654015580b",
    8: "e481d407d8005ceae93b741623dde681c4d2970cd736",
}
"""Data of two rows of eleven coordinates, by bits."""
SMALL = settings(max_examples=50, deadline=None)
PATHS = _core.simd_paths()
BITS = (1, 2, 3, 4, 8)


@SMALL
@given(
    st.integers(0, 2**32),
    st.sampled_from(BITS),
    st.one_of(st.integers(0, 70), st.integers(71, 300)),
    st.integers(0, 40),
    st.sampled_from(PATHS),
    st.booleans(),
)
def test_bytes_are_those_of_numpy(seed, bits, dim, n, path, turned):
    rng = np.random.default_rng(seed)
    vectors = (rng.standard_normal((n, dim)) * rng.choice([0, 1e-40, 1e-3, 1, 1e30], (n, 1))).astype(np.float32)
    vectors[rng.random((n, dim)) < 0.1] = rng.choice([0.0, -0.0, 0.5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRS_SIMD", path)
        expected = slow_codes(vectors, bits, seed, turned)
        for threads in ("1", "2"):
            patch.setenv("KDRS_NUM_THREADS", threads)
            table = Codes.of(vectors, bits, seed=seed, turned=turned)
            assert table == expected
        assert table.rotate(vectors).tobytes() == slow_turned(vectors, seed).tobytes()
        assert table.vectors().tobytes() == slow_vectors(table).tobytes()


@pytest.mark.parametrize("bits", BITS)
def test_a_table_that_threads_share(bits, monkeypatch):
    """Tables below a certain size are made by one thread."""
    vectors = np.random.default_rng(bits).standard_normal((900, 70)).astype(np.float32)
    expected = slow_codes(vectors, bits, 3)
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("KDRS_NUM_THREADS", threads)
        table = Codes.of(vectors, bits, seed=3)
        assert table == expected
        assert table.rotate(vectors).tobytes() == slow_turned(vectors, 3).tobytes()
        assert table.vectors().tobytes() == slow_vectors(table).tobytes()
        assert Codes.from_levels(table.levels(), table.scales, bits, seed=3) == table


@SMALL
@given(
    st.integers(0, 2**32),
    st.sampled_from(BITS),
    st.integers(0, 40),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from(PATHS),
    st.sampled_from([None, 1, 2]),
)
def test_sums(seed, bits, dim, n, weighted, path, threads):
    rng = np.random.default_rng(seed)
    table = random_codes(rng, n, dim, bits)
    counts = rng.integers(0, 6, rng.integers(0, 40)) * rng.integers(0, 2)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    indices = rng.integers(0, n, indptr[-1]).astype(np.int32)
    weights = (rng.standard_normal(len(indices)) * 3).astype(np.float32) if weighted else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRS_SIMD", path)
        found = table.sums(indptr, indices, weights, threads=threads)
    assert found.dtype == np.float32
    assert found.shape == (len(counts), dim)
    assert found.tobytes() == slow_sums(table, indptr, indices, weights).tobytes()


def test_sums_that_threads_share():
    rng = np.random.default_rng(0)
    table = random_codes(rng, 50, 64, 4)
    indptr, indices = np.arange(0, 9001, 30), rng.integers(0, 50, 9000)
    weights = torch.from_numpy(rng.random(9000))  # any widths and kinds of array
    expected = slow_sums(table, indptr, indices, weights.numpy().astype(np.float32))
    for threads in (1, 2, 3):
        found = table.sums(torch.from_numpy(indptr), indices, weights, threads=threads)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dim", [0, 3])
def test_sums_that_are_refused(dim):
    table = random_codes(np.random.default_rng(0), 4, dim, 8)
    for indptr, indices, weights, match in [
        ([0, 2, 3], [0, 1, 4], None, "indices: row 1 holds item 4; allowed: 0 to 3"),
        ([0, 0, 1], [-1], None, "indices: row 1 holds item -1"),
        ([0, 2], [0], None, "indptr does not run from 0"),
        ([1, 2], [0, 0], None, "indptr does not run from 0"),
        ([], [], None, "indptr does not run from 0"),
        ([0, 2, 1, 3], [0, 1, 2], None, "indptr falls from 2 to 1 after row 1"),
        ([0, 2], [0, 1], [1.0], "1 weights for 2 rows"),
        ([0, 1, 2], [0, 1], [1.0, np.nan], "weights: row 1 holds NaN"),
        ([0, 1, 2], [0, 1], [1.0, np.inf], "weights: row 1 holds NaN or infinity"),
    ]:
        with pytest.raises(DataError, match=match):
            table.sums(
                np.array(indptr, np.int64), np.array(indices, np.int64), None if weights is None else np.array(weights)
            )
    with pytest.raises(DataError, match="dimension"):
        table.sums(np.array([[0, 0]]), np.array([], np.int32))
    with pytest.raises(DataError, match="allowed: integers"):
        table.sums(np.array([0, 1]), np.array([0.5]))
    if dim:
        big = Codes.from_levels(np.full((1, dim), 127), np.array([1e36], np.float32), 8)
        with pytest.raises(DataError, match="sums: row 1 holds NaN or infinity"):
            big.sums(np.array([0, 1, 8]), np.zeros(8, np.int32))


@SMALL
@given(st.integers(0, 2**32), st.sampled_from(BITS), st.integers(0, 300), st.integers(0, 9))
def test_rounding(seed, bits, dim, n):
    rng = np.random.default_rng(seed)
    vectors = (rng.standard_normal((n, dim)) * rng.choice([0, 1e-3, 1, 100], (n, 1))).astype(np.float32)
    table = Codes.of(vectors, bits, seed=seed % 3)
    assert table.shape == (n, dim)
    assert table.data.shape == (n, (dim * bits + 7) // 8)
    assert len(table) == n
    assert table.nbytes == table.data.nbytes + 4 * n
    levels = slow_levels(table)
    np.testing.assert_array_equal(table.levels(), levels)
    turned = table.rotate(vectors)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(vectors, axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(table.vectors(), axis=1), table.scales * np.linalg.norm(levels, axis=1), rtol=1e-5, atol=1e-30
    )
    # The scale is the best for these levels.
    product, square = (turned * levels).sum(1), (levels * levels).sum(1)
    np.testing.assert_allclose(table.scales, product / np.maximum(square, 1), rtol=2e-4, atol=1e-7)
    # A row's codes are its own.
    for row in range(n):
        alone = Codes.of(vectors[row : row + 1], bits, seed=seed % 3)
        assert alone == table[row : row + 1] == table.take(np.array([row]))


@pytest.mark.parametrize("dim", [0, 1, 2, 5, 64, 200, 300])
def test_the_rotation_is_orthogonal(dim):
    turned = Codes.of(np.zeros((0, dim), np.float32), 8, seed=5).rotate(np.eye(dim, dtype=np.float32))
    np.testing.assert_allclose(turned @ turned.T, np.eye(dim), atol=1e-6)
    if dim >= 64:
        assert np.abs(turned).max() < 0.7  # every coordinate is spread out
        other = Codes.of(np.zeros((0, dim), np.float32), 8, seed=6).rotate(np.eye(dim, dtype=np.float32))
        assert np.abs(turned - other).max() > 0.05


def test_bytes_are_the_same_for_ever():
    """Nothing in the rounding depends on the machine."""
    vectors = (np.arange(2 * 11, dtype=np.float32).reshape(2, 11) ** 2 % 17 - 8) / 4
    found = {bits: Codes.of(vectors, bits, seed=3) for bits in BITS}
    assert {bits: table.data.tobytes().hex() for bits, table in found.items()} == FROZEN


@pytest.mark.parametrize("bits", BITS)
def test_errors_are_those_of_the_best_uniform_levels(bits):
    """Normal coordinates: mean squared errors of uniform levels (Max, 1960), of the variance."""
    vectors = np.random.default_rng(0).standard_normal((400, 256), np.float32)
    error = ((Codes.of(vectors, bits).vectors() - vectors) ** 2).mean()
    best = {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154, 8: 0.0001}[bits]
    assert error < 1.03 * best


@SMALL
@given(st.integers(0, 2**32), st.sampled_from(BITS), st.integers(0, 70), st.integers(0, 9))
def test_levels_there_and_back(seed, bits, dim, n):
    rng = np.random.default_rng(seed)
    table = random_codes(rng, n, dim, bits, seed=seed)
    expected = slow_levels(table)
    scales = table.scales
    for dtype in (np.int8, np.int16, np.int64):
        levels = np.asfortranarray(expected.astype(dtype))
        for given_as in (levels, torch.from_numpy(levels)):
            made = Codes.from_levels(given_as, scales, bits, seed=seed)
            np.testing.assert_array_equal(slow_levels(made), expected)
            assert made == Codes.from_parts(made.data, scales, bits, dim, seed=seed)
    # Bits past the last code are 0.
    spare = 8 * made.data.shape[1] - bits * dim
    assert not spare or not n or (made.data[:, -1] >> (8 - spare)).max() == 0
    turned = table.turned()
    assert turned.tobytes() == (expected.astype(np.float32) * scales[:, None] + np.float32(0)).tobytes()
    back = table.vectors()
    np.testing.assert_allclose(table.rotate(back), turned, atol=1e-5 * max(1, np.abs(turned).max(initial=0)))


@pytest.mark.parametrize("bits", BITS)
def test_vectors_that_are_turned_already(bits):
    rng = np.random.default_rng(bits)
    vectors = rng.standard_normal((30, 21)).astype(np.float32)
    table = Codes.of(vectors, bits, seed=4)
    rows = table.turned()
    assert Codes.of(rows, 8, seed=4, turned=True).seed == 4
    np.testing.assert_allclose(Codes.of(rows, 8, turned=True).turned(), rows, atol=0.01 * np.abs(rows).max())
    # Turned by hand, they round to the same codes but where float32 falls on another side.
    again = Codes.of(table.rotate(vectors), bits, seed=4, turned=True)
    np.testing.assert_allclose(again.scales, table.scales, rtol=1e-4)
    assert (again.levels() == table.levels()).mean() > 0.99
    assert table.like(table.rotate(vectors), bits, turned=True) == again


@pytest.mark.parametrize("bits", BITS)
def test_levels_that_are_refused(bits):
    largest = 127 if bits == 8 else 2**bits - 1
    levels, scales = np.full((4, 5), largest, np.int16), np.ones(4, np.float32)
    wrong = [largest + 1, -largest - 1, 300, -300, 256 + largest] + ([] if bits == 8 else [0, largest - 1, largest + 2])
    for value in wrong:
        bad = levels.copy()
        bad[2, 3] = value
        with pytest.raises(DataError, match=rf"row 2 holds {value}\nallowed for {bits} bit"):
            Codes.from_levels(bad, scales, bits)
    with pytest.raises(DataError, match="row 2 holds -128"):
        Codes.from_levels(np.array([[1], [1], [-128]], np.int8), scales[:3], bits)
    for given_as in (levels.astype(np.float32), levels > 0, levels[0], np.zeros((2, coding.MAX_DIM + 1), np.int8)):
        with pytest.raises(DataError, match="allowed"):
            Codes.from_levels(given_as, scales, bits)
    with pytest.raises(DataError, match="row 1 is -1"):
        Codes.from_levels(levels, np.array([1, -1, 1, 1], np.float32), bits)
    with pytest.raises(DataError, match=r"float32 \[4\]"):
        Codes.from_levels(levels, scales[:3], bits)
