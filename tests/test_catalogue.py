"""A catalogue that is packed once answers as `ranking.topk` does, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdrs
from kdrs import _core
from kdrs.core import ranking
from kdrs.core.codes import Codes
from kdrs.errors import ConfigError, DataError, KdrsError

PATHS = _core.simd_paths()


@st.composite
def catalogues(draw):
    """Items of any number and dimension, with ties, rows of many lengths or of none, and biases of any size."""
    n = draw(st.one_of(st.integers(0, 70), st.integers(0, 700), st.integers(4000, 9000)))
    dim = draw(st.one_of(st.integers(0, 9), st.integers(1, 70)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["ties", "normal", "lengths", "tiny"]))

    def values(*shape):
        if kind == "ties":
            return rng.integers(-2, 3, shape).astype(np.float32)
        found = rng.normal(size=shape).astype(np.float32)
        if kind == "lengths" and len(shape) == 2:
            found *= (rng.random((shape[0], 1)) ** 8).astype(np.float32)
        return found * np.float32(1e-18 if kind == "tiny" else 1)

    bias = values(n) * np.float32(draw(st.sampled_from([1, 1e-3, 1e3]))) if draw(st.booleans()) else None
    hidden = rng.random((3, n)) < draw(st.sampled_from([0.0, 0.2, 0.99, 1.0]))
    return values(3, dim), values(n, dim), bias, hidden


@given(
    catalogues(),
    st.sampled_from([32, 1, 2, 3, 4, 8]),
    st.sampled_from([1, 2, 20, 200, 10_000]),
    st.sampled_from(PATHS),
    st.sampled_from([1, 2]),
)
@settings(deadline=None, max_examples=300)
def test_lists_are_those_of_topk(made, bits, k, path, threads):
    queries, items, bias, hidden = made
    seen = kdrs.Interactions.from_pairs(*np.nonzero(hidden), *hidden.shape)
    coded = items if bits == 32 else Codes.of(items, bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRS_SIMD", path)
        catalogue = ranking.Catalogue(coded, bias=bias, threads=threads)
        for asked, rows in (
            (queries, np.arange(3)),
            (queries[1:2], [1]),
            (np.repeat(queries, 9, 0), np.repeat(range(3), 9)),
        ):
            for mask in ({}, {"seen": seen, "rows": np.asarray(rows)}):
                own = catalogue.topk(asked, k, threads=threads, **mask)
                patch.delenv("KDRS_SIMD")
                expected = ranking.topk(asked, coded, k, bias=bias, **mask)
                patch.setenv("KDRS_SIMD", path)
                assert own.items.tobytes() == expected.items.tobytes()
                assert own.scores.tobytes() == expected.scores.tobytes()
                assert own.items.shape == expected.items.shape


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("path", PATHS)
def test_queries_of_every_width(monkeypatch, bits, path):
    rng = np.random.default_rng(0)
    items = Codes.of(rng.normal(size=(900, 33)), bits)
    vectors = rng.normal(size=(20, 33))
    monkeypatch.setenv("KDRS_SIMD", path)
    catalogue = ranking.Catalogue(items)
    for own in (1, 2, 3, 4, 8):
        for count in (1, 20):
            queries = Codes.of(vectors[:count], own)
            found, expected = catalogue.topk(queries, 30), ranking.topk(queries, items, 30)
            assert np.array_equal(found.items, expected.items)
            assert found.scores.tobytes() == expected.scores.tobytes()


@pytest.mark.parametrize("asking", PATHS)
@pytest.mark.parametrize("packing", PATHS)
def test_packed_by_one_path_and_asked_by_another(monkeypatch, packing, asking):
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(40, 50)).astype(np.float32), rng.normal(size=(5000, 50)).astype(np.float32)
    expected = ranking.topk(queries, items, 20)
    monkeypatch.setenv("KDRS_SIMD", packing)
    catalogue = ranking.Catalogue(items)
    monkeypatch.setenv("KDRS_SIMD", asking)
    for count in (1, 8, 40):
        found = catalogue.topk(queries[:count], 20)
        assert np.array_equal(found.items, expected.items[:count])
        assert found.scores.tobytes() == expected.scores[:count].tobytes()


def test_many_threads_and_a_large_catalogue():
    rng = np.random.default_rng(0)
    items, queries = rng.normal(size=(60_000, 24)).astype(np.float32), rng.normal(size=(5, 24)).astype(np.float32)
    expected = ranking.topk(queries, items, 50)
    for made in (items, Codes.of(items, 4)):
        catalogue = ranking.Catalogue(made)
        expected = ranking.topk(queries, made, 50)
        for threads in (1, 2, 3, 7):
            for _ in range(10):
                found = catalogue.topk(queries, 50, threads=threads)
                assert np.array_equal(found.items, expected.items)
                assert found.scores.tobytes() == expected.scores.tobytes()


def test_an_error_of_the_bytes_never_leaves_an_item_out():
    """Items whose scores differ by less than their bytes tell, and one coordinate that leaves the others no steps."""
    rng = np.random.default_rng(0)
    items = np.repeat(rng.normal(size=(1, 16)), 6000, 0).astype(np.float32)
    items += rng.normal(size=items.shape).astype(np.float32) * np.float32(1e-5)
    items[::7, 3] = 1000
    query = rng.normal(size=(1, 16)).astype(np.float32)
    query[0, 3] = 0
    found, expected = ranking.Catalogue(items).topk(query, 100), ranking.topk(query, items, 100)
    assert np.array_equal(found.items, expected.items)
    assert found.scores.tobytes() == expected.scores.tobytes()


@pytest.mark.parametrize(
    ("items", "bias", "message"),
    [
        ((700, np.nan), None, "items: row 700 holds NaN or infinity"),
        ((700, np.inf), None, "items: row 700 holds NaN or infinity"),
        (None, (3, np.nan), "bias: row 3 holds NaN or infinity"),
    ],
)
def test_what_is_refused_of_items(items, bias, message):
    x, b = np.ones((900, 4), np.float32), np.zeros(900, np.float32)
    for change, array in ((items, x), (bias, b)):
        if change is not None:
            array[change[0], ...] = change[1]
    with pytest.raises(DataError, match=message):
        ranking.Catalogue(x, bias=b)


@pytest.mark.parametrize("count", [2, 40])
def test_what_is_refused_of_queries(count):
    items = np.ones((900, 4), np.float32)
    catalogue = ranking.Catalogue(items)
    q = np.ones((count, 4), np.float32)
    q[1] = np.nan
    with pytest.raises(DataError, match="queries: row 1 holds NaN or infinity"):
        catalogue.topk(q, 5)
    with pytest.raises(DataError, match="queries have dim 3, items 4"):
        catalogue.topk(q[:, :3], 5)
    with pytest.raises(DataError, match="scores"):
        ranking.Catalogue(items * np.float32(3e38)).topk(np.full((count, 4), 3e38, np.float32), 5)
    q[:] = 1
    with pytest.raises(ConfigError, match="k is -1"):
        catalogue.topk(q, -1)
    with pytest.raises(DataError, match="has 899 items, the catalogue 900"):
        catalogue.topk(q, 5, seen=kdrs.Interactions.from_pairs([], [], count, 899))
    with pytest.raises(DataError, match="rows"):
        catalogue.topk(q, 5, seen=kdrs.Interactions.from_pairs([], [], count + 1, 900))
    with pytest.raises(DataError, match="queries are codes, items are not"):
        catalogue.topk(Codes.of(q, 8), 5)
    with pytest.raises(KdrsError, match="899 biases for 900 items"):
        ranking.Catalogue(items, bias=np.zeros(899))
    with pytest.raises(DataError, match="turned by seed"):
        ranking.Catalogue(Codes.of(items, 4)).topk(Codes.of(q, 8, seed=3), 5)
    with pytest.raises(DataError, match="vectors have dim 3"):
        ranking.Catalogue(Codes.of(items, 4)).topk(q[:, :3], 5)
    assert "900 items, 4 dimensions of float32" in repr(catalogue)
    assert len(catalogue) == 900
    assert catalogue.nbytes < 900 * (4 + 14) + 100


def test_kinds_of_arrays():
    import torch

    rng = np.random.default_rng(0)
    items, queries, bias = rng.normal(size=(300, 8)), rng.normal(size=(6, 8)), rng.normal(size=300)
    expected = ranking.topk(queries, items, 10, bias=bias)
    for x, q, b in (
        (items.astype(np.float32), queries, bias),
        (items.astype(">f4"), np.asfortranarray(queries), list(bias)),
        (torch.tensor(items), torch.tensor(queries), torch.tensor(bias)),
    ):
        found = ranking.Catalogue(x, bias=b).topk(q, 10)
        assert np.array_equal(np.asarray(found.items), expected.items)
        assert np.array_equal(np.asarray(found.scores), expected.scores)
        assert isinstance(found.items, torch.Tensor) == isinstance(q, torch.Tensor)


def test_dimensions_that_bytes_cannot_sum():
    rng = np.random.default_rng(0)
    items, query = rng.normal(size=(3, 70_000)).astype(np.float32), rng.normal(size=(1, 70_000)).astype(np.float32)
    catalogue = ranking.Catalogue(items)
    assert catalogue.nbytes == 0
    assert catalogue.topk(query, 3).scores.tobytes() == ranking.topk(query, items, 3).scores.tobytes()
