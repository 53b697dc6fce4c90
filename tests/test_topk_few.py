"""Few queries are scored where items lie, many by packed panels: the same bytes either way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdrs
from kdrs.core import ranking
from kdrs.core.codes import Codes
from kdrs.errors import DataError, KdrsError


@st.composite
def catalogues(draw):
    """Queries of which each has a dozen copies, so that both ways are gone."""
    n, dim = draw(st.integers(1, 700)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        values = lambda *shape: rng.integers(-2, 3, shape).astype(np.float32)
    else:
        values = lambda *shape: rng.normal(size=shape).astype(np.float32)
    bias = values(n) if draw(st.booleans()) else None
    return values(3, dim), values(n, dim), bias, rng.random((3, n)) < draw(st.sampled_from([0.0, 0.2, 1.0]))


@given(catalogues(), st.sampled_from([1, 2, 3, 4, 8, 32]), st.integers(1, 40), st.sampled_from([None, "portable"]))
@settings(deadline=None, max_examples=150)
def test_few_and_many_are_the_same(made, bits, k, path):
    queries, items, bias, hidden = made
    seen = kdrs.Interactions.from_pairs(*np.nonzero(hidden), *hidden.shape)
    coded = items if bits == 32 else Codes.of(items, bits)
    few = {"bias": bias, "seen": seen, "rows": np.arange(3)}
    many = {"bias": bias, "seen": seen, "rows": np.repeat(np.arange(3), 12)}
    with pytest.MonkeyPatch.context() as patch:
        if path:
            patch.setenv("KDRS_SIMD", path)
        own = ranking.topk(queries, coded, k, **few)
        others = ranking.topk(np.repeat(queries, 12, 0), coded, k, **many)
    assert np.array_equal(own.items, others.items[::12])
    assert own.scores.tobytes() == np.ascontiguousarray(others.scores[::12]).tobytes()


@pytest.mark.parametrize(
    ("queries", "items", "bias", "message"),
    [
        ((0, np.nan), None, None, "queries: row 1 holds NaN or infinity"),
        (None, (700, np.nan), None, "items: row 700 holds NaN or infinity"),
        (None, (700, np.inf), None, "items: row 700 holds NaN or infinity"),
        (None, None, (3, np.nan), "bias: row 3 holds NaN or infinity"),
        ((0, 3e38), (700, 3e38), None, "scores"),
    ],
)
@pytest.mark.parametrize("n", [2, 40])
def test_what_is_refused_of_many_is_refused_of_few(queries, items, bias, message, n):
    q, x, b = np.ones((n, 4), np.float32), np.ones((900, 4), np.float32), np.zeros(900, np.float32)
    for change, array in ((queries, q), (items, x), (bias, b)):
        if change is not None:
            array[1 if array is q else change[0], ...] = change[1]
    with pytest.raises(DataError, match=message):
        ranking.topk(q, x, 5, bias=b)


@pytest.mark.parametrize("n", [2, 40])
def test_sizes_that_do_not_go_together(n):
    q, x = np.ones((n, 4), np.float32), np.ones((900, 4), np.float32)
    with pytest.raises(KdrsError, match="dim"):
        ranking.topk(q[:, :3], x, 5)
    with pytest.raises(KdrsError, match="899 biases for 900 items"):
        ranking.topk(q, x, 5, bias=np.zeros(899, np.float32))
    for k in (0, 900, 5000):
        assert ranking.topk(q, x, k).items.shape == (n, min(k, 900))
