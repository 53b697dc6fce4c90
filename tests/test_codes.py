"""Tables of codes against slow, obvious NumPy: packing, rounding, scores bit for bit, lists and ranks on every path."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdrs
from codes_in_numpy import random_codes, slow_levels
from kdrs import Codes, Evaluator, _core
from kdrs.core import codes as coding
from kdrs.core import ranking
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError

SMALL = settings(max_examples=50, deadline=None)
PATHS = _core.simd_paths()
BITS = (1, 2, 3, 4, 8)


def slow_scores(queries: Codes, items: Codes, bias: np.ndarray | None) -> np.ndarray:
    sums = slow_levels(queries) @ slow_levels(items).T
    scores = (queries.scales[:, None] * items.scales) * sums.astype(np.float32)
    assert scores.dtype == np.float32
    return (scores if bias is None else scores + bias) + np.float32(0)


def slow_topk(scores, seen, k):
    left = scores.copy()
    left[seen.row_of_pair, seen.indices] = -np.inf
    ids = np.argsort(-left, axis=1, kind="stable")[:, :k].astype(np.int32)
    best = np.take_along_axis(left, ids.astype(np.int64), axis=1)
    return np.where(best == -np.inf, -1, ids), best


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_queries, n_items = draw(st.integers(0, 30)), draw(st.integers(0, 150))
    dim = draw(st.one_of(st.integers(0, 40), st.integers(41, 300)))
    bits = draw(st.sampled_from([(1, 1), (1, 1), (8, 8), (8, 3), (8, 1), (1, 4), *((b, b) for b in BITS)]))
    scales = draw(st.sampled_from(["any", "few"]))
    queries, items = (random_codes(rng, n, dim, b, scales) for n, b in zip((n_queries, n_items), bits, strict=True))
    bias = (rng.integers(-2, 3, n_items) * 20).astype(np.float32) if draw(st.booleans()) else None
    density = rng.choice([0.0, 0.1, 0.5, 1.0], n_queries)
    seen = Interactions.from_pairs(*np.nonzero(rng.random((n_queries, n_items)) < density[:, None]), n_queries, n_items)
    return queries, items, bias, seen, draw(st.integers(0, n_items + 3)), draw(st.sampled_from(PATHS))


@SMALL
@given(problems())
def test_lists_and_ranks(problem):
    queries, items, bias, seen, k, path = problem
    scores = slow_scores(queries, items, bias)
    ids, best = slow_topk(scores, seen, k)
    n_queries, n_items = scores.shape
    rng = np.random.default_rng(k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRS_SIMD", path)
        for threads in (None, 1):
            found = ranking.topk(queries, items, k, seen=seen, bias=bias, threads=threads)
            np.testing.assert_array_equal(found.items, ids)
            assert found.scores.tobytes() == best.tobytes()
        ranks = ranking.ranks(queries, items, seen, bias=bias)
        lists = (
            rng.integers(-1, n_items, (n_queries, 12)).astype(np.int32)
            if n_items
            else np.full((n_queries, 12), -1, np.int32)
        )
        among = ranking.candidate_ranks(queries, items, lists[:, :2], lists[:, 2:], bias=bias)
        rows = np.arange(n_queries)[::-1].copy()
        turned = ranking.candidate_ranks(queries, items, lists[rows, :2], lists[rows, 2:], rows=rows, bias=bias)
    goals = scores[seen.row_of_pair, seen.indices][:, None]
    np.testing.assert_array_equal(ranks.better, (scores[seen.row_of_pair] > goals).sum(1))
    np.testing.assert_array_equal(ranks.tied, (scores[seen.row_of_pair] == goals).sum(1) - 1)
    for q in range(n_queries):
        pool = lists[q, 2:][lists[q, 2:] >= 0]
        for place, target in enumerate(lists[q, :2]):
            better, tied = -1, -1
            if target >= 0:
                others = scores[q, pool[pool != target]]
                better, tied = (scores[q, pool] > scores[q, target]).sum(), (others == scores[q, target]).sum()
            assert (among.better[q, place], among.tied[q, place]) == (better, tied)
    np.testing.assert_array_equal(turned.better, among.better[rows])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("mine", "theirs"), [(1, 1), (8, 8), (4, 4), (8, 3), (2, 2)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_catalogue_with_a_sample(path, mine, theirs, biased, monkeypatch):
    """Past 4,096 items thresholds are guessed; some queries have seen what the guess rests on."""
    monkeypatch.setenv("KDRS_SIMD", path)
    rng = np.random.default_rng(mine * 10 + theirs)
    queries, items = random_codes(rng, 25, 37, mine), random_codes(rng, 6000, 37, theirs)
    bias = rng.standard_normal(6000).astype(np.float32) * 50 if biased else None
    scores = slow_scores(queries, items, bias)
    density = np.where(np.arange(25) % 5 == 0, 0.98, 0.01)[:, None]
    top = np.zeros_like(scores, bool)
    np.put_along_axis(top, np.argsort(-scores, axis=1)[:, :300], True, axis=1)
    top[1::2] = False
    seen = Interactions.from_pairs(*np.nonzero(top | (rng.random(scores.shape) < density)), 25, 6000)
    for k in (1, 20, 200, 3000):
        ids, best = slow_topk(scores, seen, k)
        for threads in (1, 2):
            found = ranking.topk(queries, items, k, seen=seen, bias=bias, threads=threads)
            np.testing.assert_array_equal(found.items, ids)
            assert found.scores.tobytes() == best.tobytes()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("biased", [False, True])
def test_a_catalogue_full_of_ties(path, bits, biased, monkeypatch):
    """Far more items reach a threshold than are asked for; what is held must be cut back, and lower ids win."""
    monkeypatch.setenv("KDRS_SIMD", path)
    rng = np.random.default_rng(bits)
    queries, items = random_codes(rng, 14, 2, bits, "few"), random_codes(rng, 5000, 2, bits, "few")
    bias = rng.integers(-1, 2, 5000).astype(np.float32) if biased else None
    scores = slow_scores(queries, items, bias)
    seen = Interactions.from_pairs(*np.nonzero(rng.random(scores.shape) < 0.1), 14, 5000)
    for k in (1, 30, 900):
        ids, best = slow_topk(scores, seen, k)
        found = ranking.topk(queries, items, k, seen=seen, bias=bias)
        np.testing.assert_array_equal(found.items, ids)
        assert found.scores.tobytes() == best.tobytes()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", BITS)
def test_extremes(path, bits, monkeypatch):
    """The largest sums of the largest dimension, scales whose product is below the normal numbers, thresholds below 0."""
    monkeypatch.setenv("KDRS_SIMD", path)
    dim = coding.MAX_DIM
    for level in (0, 255) if bits < 8 else (127, 129):
        data = np.full((2, (dim * bits + 7) // 8), level, np.uint8)
        data[1] = 255 - level if bits < 8 else 256 - level
        table = Codes.from_parts(data, np.array([1, 0.5], np.float32), bits, dim)
        found = ranking.topk(table, table, 2)
        np.testing.assert_array_equal(found.scores, np.sort(slow_scores_of_signs(table))[:, ::-1])
    rng = np.random.default_rng(bits)
    for scale in (1e-22, 1e-20, 1e15):
        queries, items = random_codes(rng, 30, 65, bits), random_codes(rng, 5000, 65, bits)
        queries, items = (Codes.from_parts(c.data, c.scales * np.float32(scale), bits, 65) for c in (queries, items))
        ids, best = slow_topk(slow_scores(queries, items, None), Interactions.from_pairs([], [], 30, 5000), 7)
        found = ranking.topk(queries, items, 7)
        np.testing.assert_array_equal(found.items, ids)
        assert found.scores.tobytes() == best.tobytes()


def slow_scores_of_signs(table: Codes) -> np.ndarray:
    """Scores of rows that are one level throughout."""
    levels = slow_levels(Codes.from_parts(table.data[:, : table.bits], table.scales, table.bits, 8))[:, 0]
    sums = (levels[:, None] * levels * table.shape[1]).astype(np.float32)
    return (table.scales[:, None] * table.scales) * sums


def test_queries_made_at_run_time():
    rng = np.random.default_rng(0)
    vectors, items = rng.standard_normal((5, 33), np.float32), Codes.of(rng.standard_normal((60, 33)), 3, seed=4)
    expected = ranking.topk(Codes.of(vectors, 8, seed=4), items, 6)
    assert items.like(vectors).bits == 8
    for given_as in (vectors, vectors.astype(np.float64), torch.from_numpy(vectors)):
        found = ranking.topk(given_as, items, 6)
        assert isinstance(found.items, torch.Tensor) == isinstance(given_as, torch.Tensor)
        np.testing.assert_array_equal(found.items, expected.items)
        np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("bits", BITS)
def test_neighbours(bits):
    table = random_codes(np.random.default_rng(bits), 40, 19, bits)
    scores = slow_scores(table, table, None)
    np.fill_diagonal(scores, -np.inf)
    found = ranking.neighbours(table, 7, metric="dot")
    np.testing.assert_array_equal(found.items, np.argsort(-scores, axis=1, kind="stable")[:, :7])
    assert ranking.neighbours(table, 100, metric="dot").items.shape == (40, 39)
    for metric in ("cosine", "euclidean"):
        with pytest.raises(ConfigError, match=r"codes\.vectors\(\)"):
            ranking.neighbours(table, 3, metric=metric)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("given_as", ["tuple", "object", "floats"])
def test_the_evaluator_takes_codes(bits, biased, given_as):
    rng = np.random.default_rng(bits)
    queries, items = (
        random_codes(rng, 50, 21, 8 if given_as == "floats" else bits),
        random_codes(rng, 90, 21, bits, "few"),
    )
    bias = rng.standard_normal(90).astype(np.float32) if biased else None
    if given_as == "floats":
        vectors = rng.standard_normal((50, 21)).astype(np.float32)
        queries = items.like(vectors)
    pairs = rng.permutation(50 * 90)
    seen, truth = (Interactions.from_pairs(part // 90, part % 90, 50, 90) for part in (pairs[:300], pairs[300:400]))
    scores = slow_scores(queries, items, bias)

    class Model:
        def factors(self):
            return scorer

    scorer = (vectors if given_as == "floats" else queries, items, *((bias,) if biased else ()))
    evaluator = Evaluator(seen, {"test": truth}, ks=(5, 10))
    found = evaluator(Model() if given_as == "object" else scorer, "test")["test"]
    expected = evaluator(lambda rows: scores[rows], "test")["test"]
    assert found.means() == expected.means()
    assert kdrs.scoring_seconds(scorer, seen, 5, repeats=1) > 0
    users, ids = np.arange(50), rng.integers(0, 90, 50)
    part = coding.pair_scores(queries, items, bias, users, ids)
    assert part.tobytes() == np.ascontiguousarray(scores[users, ids]).tobytes()


def test_a_table_is_never_changed():
    data, scales = np.zeros((3, 2), np.uint8), np.ones(3, np.float32)
    table = Codes.from_parts(data, scales, 4, 3, seed=2)
    data[:], scales[:] = 255, 7
    assert not table.data.any()
    assert (table.scales == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        table.data[0, 0] = 1
    again = pickle.loads(pickle.dumps(table))
    assert again == table
    assert again.seed == 2
    assert again != Codes.from_parts(table.data, table.scales, 4, 3)
    assert "bits=4" in repr(table)
    assert table[1:].shape == (2, 3)
    assert table[[2, 0]].shape == (2, 3)
    assert table[torch.tensor([1])].shape == (1, 3)


@pytest.mark.parametrize("bits", [0, 5, 16, True, "3", 2.0, None])
def test_bits_are_refused(bits):
    with pytest.raises(ConfigError, match="allowed: 1, 2, 3, 4, 8"):
        Codes.of(np.zeros((2, 3)), bits)
    with pytest.raises(ConfigError, match="allowed: 1, 2, 3, 4, 8"):
        Codes.from_parts(np.zeros((2, 3), np.uint8), np.ones(2, np.float32), bits, 3)


def test_what_is_refused():
    data, scales = np.zeros((2, 3), np.uint8), np.ones(2, np.float32)
    for wrong, match in [
        (lambda: Codes.of(np.array([[1.0, 2], [np.nan, 0]]), 3), "row 1 holds NaN"),
        (lambda: Codes.of(np.zeros(3), 3), "shape"),
        (lambda: Codes.of(np.zeros((2, coding.MAX_DIM + 1), np.float32), 1), "65536"),
        (lambda: Codes.of([["a"]], 3), "allowed"),
        (lambda: Codes.from_parts(data.astype(np.int8), scales, 8, 3), "allowed: uint8"),
        (lambda: Codes.from_parts(data, scales, 8, 4), r"\[N, 4\]"),
        (lambda: Codes.from_parts(data, scales[:1], 8, 3), r"float32 \[2\]"),
        (lambda: Codes.from_parts(data, scales.astype(np.complex64), 8, 3), "complex64"),
        (lambda: Codes.from_parts(data, -scales, 8, 3), "row 0 is -1"),
        (lambda: Codes.from_parts(data, scales * np.float32(np.nan), 8, 3), "NaN"),
        (lambda: Codes.from_parts(data + 128, scales, 8, 3), "row 0 holds -128"),
    ]:
        with pytest.raises(DataError, match=match):
            wrong()
    with pytest.raises(ConfigError, match="dim is -1"):
        Codes.from_parts(data, scales, 8, -1)
    with pytest.raises(ConfigError, match=r"Codes\.of"):
        Codes(np.zeros((2, 3)), 3)
    table, other = Codes.from_parts(data, scales, 8, 3), Codes.from_parts(data, scales, 8, 3, seed=1)
    with pytest.raises(ConfigError, match="codes already"):
        Codes.of(table, 3)
    for wrong, match in [
        (lambda: ranking.topk(table, other, 1), "seed"),
        (lambda: ranking.topk(table, np.zeros((4, 3)), 1), "items are not"),
        (lambda: ranking.topk(np.zeros((4, 2)), table, 1), "dim 2"),
        (lambda: ranking.topk(Codes.of(np.zeros((2, 5)), 8), table, 1), "dim 5"),
        (lambda: ranking.topk(table, table, 1, bias=np.zeros(3)), "3 biases for 2 items"),
        (lambda: ranking.topk(table, table, 1, bias=np.array([0, np.inf])), "bias"),
        (lambda: table.take(np.array([2])), "rows hold 2"),
        (lambda: ranking.ranks(table, table, np.array([[5], [0]])), "item 5"),
        (lambda: ranking.candidate_ranks(table, table, np.array([[0], [0]]), np.array([[9], [0]])), "item 9"),
    ]:
        with pytest.raises(DataError, match=match):
            wrong()
    huge = Codes.from_parts(data, np.full(2, 1e30, np.float32), 8, 3)
    with pytest.raises(DataError, match="overflow"):
        ranking.topk(huge, huge, 1)
    for index in (0, "a", None, (0, 1)):
        with pytest.raises(ConfigError, match="allowed: slices"):
            table[index]
    with pytest.raises(TypeError):
        iter(table)
