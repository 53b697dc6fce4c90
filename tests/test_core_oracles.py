"""Every kernel against slow, obvious NumPy, on ragged input with empty rows and ties; same bytes on every path."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrs import _core
from kdrs.core import ranking, sampling
from kdrs.data.interactions import Interactions

SMALL = settings(max_examples=60, deadline=None)


@st.composite
def problems(draw, max_dim=9):
    """Factors on a coarse grid (so that ties abound), what is seen, and k up to past the catalogue."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_queries, n_items = draw(st.integers(1, 30)), draw(st.integers(1, 90))
    dim = draw(st.integers(0, max_dim))
    grid = draw(st.sampled_from([1, 2, 1000]))
    queries = (rng.integers(-grid, grid + 1, (n_queries, dim)) / 4).astype(np.float32)
    items = (rng.integers(-grid, grid + 1, (n_items, dim)) / 4).astype(np.float32)
    bias = (rng.integers(-2, 3, n_items) / 2).astype(np.float32) if draw(st.booleans()) else None
    density = rng.choice([0.0, 0.1, 0.5, 1.0], n_queries)
    seen = Interactions.from_pairs(*np.nonzero(rng.random((n_queries, n_items)) < density[:, None]), n_queries, n_items)
    return queries, items, bias, seen, draw(st.integers(0, n_items + 3))


def exact_scores(queries, items, bias):
    """Quarters times quarters: every sum is exact in float32, so any order of summing agrees."""
    scores = queries.astype(np.float64) @ items.T.astype(np.float64)
    return (scores if bias is None else scores + bias).astype(np.float32)


def slow_topk(scores, seen, k):
    n_queries, n_items = scores.shape
    k = min(k, n_items)  # lists are no longer than the catalogue
    ids = np.full((n_queries, k), -1, np.int32)
    best = np.full((n_queries, k), -np.inf, np.float32)
    for q in range(n_queries):
        left = np.setdiff1d(np.arange(n_items), seen.row(q))
        order = left[np.lexsort((left, -scores[q, left]))][:k]
        ids[q, : order.size], best[q, : order.size] = order, scores[q, order]
    return ids, best


@SMALL
@given(problems())
def test_topk(problem):
    queries, items, bias, seen, k = problem
    scores = exact_scores(queries, items, bias)
    ids, best = slow_topk(scores, seen, min(k, len(items)))
    for result in (
        ranking.topk(queries, items, k, seen=seen, bias=bias),
        ranking.topk(queries, items, k, seen=seen, bias=bias, threads=1),
        ranking.topk_scores(scores, k, seen=seen),
    ):
        assert np.array_equal(result.items, ids)
        assert np.array_equal(result.scores, best)
        assert result.items.dtype == np.int32
        assert result.scores.dtype == np.float32


@SMALL
@given(problems(), st.integers(0, 2**32))
def test_topk_of_some_rows(problem, seed):
    queries, items, bias, seen, k = problem
    rows = np.random.default_rng(seed).integers(0, len(queries), 7)
    whole = ranking.topk(queries, items, k, seen=seen, bias=bias)
    some = ranking.topk(queries[rows], items, k, seen=seen, bias=bias, rows=rows)
    assert np.array_equal(some.items, whole.items[rows])
    assert np.array_equal(some.scores, whole.scores[rows])


def slow_ranks(scores, q, target, excluded):
    others = np.setdiff1d(np.arange(scores.shape[1]), np.append(excluded, target))
    return (scores[q, others] > scores[q, target]).sum(), (scores[q, others] == scores[q, target]).sum()


@SMALL
@given(problems(), st.integers(0, 2**32))
def test_ranks(problem, seed):
    queries, items, bias, seen, _ = problem
    scores = exact_scores(queries, items, bias)
    rng = np.random.default_rng(seed)
    truth = Interactions.from_pairs(*np.nonzero(rng.random(scores.shape) < rng.choice([0, 0.1, 0.9])), *scores.shape)
    expected = [slow_ranks(scores, q, t, seen.row(q)) for q in range(len(queries)) for t in truth.row(q)]
    expected = np.array(expected, np.int32).reshape(-1, 2)
    for result in (
        ranking.ranks(queries, items, truth, seen=seen, bias=bias),
        ranking.ranks_scores(scores, truth, seen=seen),
    ):
        assert np.array_equal(result.better, expected[:, 0])
        assert np.array_equal(result.tied, expected[:, 1])


@SMALL
@given(problems(), st.integers(0, 2**32))
def test_ranks_of_lists(problem, seed):
    queries, items, bias, seen, _ = problem
    scores = exact_scores(queries, items, bias)
    lists = np.random.default_rng(seed).integers(-1, len(items), (len(queries), 4)).astype(np.int32)
    for result in (
        ranking.ranks(queries, items, lists, seen=seen, bias=bias),
        ranking.ranks_scores(scores, lists, seen=seen),
    ):
        for q, row in enumerate(lists):
            for t, target in enumerate(row):
                expected = (-1, -1) if target < 0 else slow_ranks(scores, q, target, seen.row(q))
                assert (result.better[q, t], result.tied[q, t]) == expected


@SMALL
@given(problems(), st.integers(0, 2**32))
def test_candidate_ranks(problem, seed):
    queries, items, bias, _, _ = problem
    scores = exact_scores(queries, items, bias)
    rng = np.random.default_rng(seed)
    targets = rng.integers(-1, len(items), (len(queries), 2)).astype(np.int32)
    width = min(40, len(items))
    candidates = np.stack([rng.choice(len(items), width, replace=False) for _ in queries]).astype(np.int32)
    candidates[rng.random(candidates.shape) < 0.2] = -1
    result = ranking.candidate_ranks(queries, items, targets, candidates, bias=bias)
    for q in range(len(queries)):
        for t, target in enumerate(targets[q]):
            if target < 0:
                assert (result.better[q, t], result.tied[q, t]) == (-1, -1)
                continue
            others = candidates[q][(candidates[q] >= 0) & (candidates[q] != target)]
            assert result.better[q, t] == (scores[q, others] > scores[q, target]).sum()
            assert result.tied[q, t] == (scores[q, others] == scores[q, target]).sum()


@SMALL
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 70))
def test_candidate_ranks_of_scores(seed, targets, candidates):
    rng = np.random.default_rng(seed)
    goal = rng.integers(0, 4, (5, targets)).astype(np.float32)
    goal[rng.random(goal.shape) < 0.2] = np.nan
    scores = rng.integers(0, 4, (5, candidates)).astype(np.float32)
    ids = np.where(rng.random(scores.shape) < 0.2, -1, 7).astype(np.int32)
    result = ranking.candidate_ranks_scores(goal, scores, candidates=ids)
    for q in range(5):
        others = scores[q][ids[q] >= 0]
        for t in range(targets):
            missing = np.isnan(goal[q, t])
            assert result.better[q, t] == (-1 if missing else (others > goal[q, t]).sum())
            assert result.tied[q, t] == (-1 if missing else (others == goal[q, t]).sum())


@SMALL
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 6), st.integers(0, 9))
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_neighbours(metric, seed, n, dim, k):
    x = np.random.default_rng(seed).integers(-3, 4, (n, dim)).astype(np.float32)
    if metric == "euclidean":
        scores = -((x[:, None] - x[None]) ** 2).sum(-1)
    else:
        y = x.astype(np.float64)
        lengths = np.linalg.norm(y, axis=1, keepdims=True)
        unit = np.divide(y, lengths, out=np.zeros_like(y), where=lengths > 0).astype(np.float32)
        factor = unit if metric == "cosine" else x
        scores = np.array([[chain(a, b) for b in factor] for a in factor], np.float32)
    itself = Interactions.from_pairs(np.arange(n), np.arange(n), n, n)
    ids, best = slow_topk(scores, itself, min(k, n - 1))
    result = ranking.neighbours(x, k, metric=metric)
    assert np.array_equal(result.items, ids)
    best = -np.sqrt(-best) if metric == "euclidean" else best
    assert np.array_equal(result.scores, best)


def chain(a, b):
    """The definition of a score: fused multiply-adds in index order, each rounded once."""
    total = np.float32(0)
    for x, y in zip(a, b, strict=True):
        # A product of two float32 is exact in float64; longdouble then holds the sum exactly for these ranges.
        total = np.float32(np.longdouble(np.float64(x) * np.float64(y)) + np.longdouble(total))
    return total


@SMALL
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_a_score_is_one_chain(seed, dim):
    rng = np.random.default_rng(seed)
    queries, items = rng.standard_normal((3, dim), np.float32), rng.standard_normal((35, dim), np.float32)
    result = ranking.topk(queries, items, 35)
    for q in range(3):
        for item, score in zip(result.items[q], result.scores[q], strict=True):
            assert score == chain(queries[q], items[item])


@pytest.mark.parametrize("path", _core.simd_paths())
@pytest.mark.parametrize("dim", [0, 1, 7, 20, 64, 130])
def test_every_instruction_set_gives_the_same_bytes(path, dim, monkeypatch):
    rng = np.random.default_rng(dim)
    queries, items = rng.standard_normal((37, dim), np.float32), rng.standard_normal((700, dim), np.float32)
    items[::3] = items[0]
    bias = rng.standard_normal(700, dtype=np.float32)
    seen = Interactions.from_pairs(rng.integers(0, 37, 900), rng.integers(0, 700, 900), 37, 700)
    lists = rng.integers(-1, 700, (37, 50)).astype(np.int32)

    def results():
        return [
            *ranking.topk(queries, items, 20, seen=seen, bias=bias),
            *ranking.topk(queries, items, 20),
            *ranking.ranks(queries, items, seen, bias=bias),
            *ranking.candidate_ranks(queries, items, lists[:, :2], lists[:, 2:], bias=bias),
            *ranking.neighbours(queries, 5),
            *ranking.neighbours(queries, 5, metric="cosine"),
            sampling.discrepancy((queries, items), (-queries, items), seen, 30, law="exp", sharpness=0.01, seed=3),
            sampling.negatives(seen, np.arange(37), 40, seed=1),
            sampling.weighted(lists, np.arange(50.0), 9, seed=1),
            sampling.outside(seen, lists, 30, seed=1),
        ]

    monkeypatch.setenv("KDRS_SIMD", "portable")
    expected = [array.tobytes() for array in results()]
    monkeypatch.setenv("KDRS_SIMD", path)
    assert [array.tobytes() for array in results()] == expected


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_thread_count_gives_the_same_bytes(threads):
    rng = np.random.default_rng(0)
    queries, items = rng.standard_normal((500, 8), np.float32), rng.standard_normal((900, 8), np.float32)
    seen = Interactions.from_pairs(rng.integers(0, 500, 9000), rng.integers(0, 900, 9000), 500, 900)
    lists = np.tile(np.arange(60, dtype=np.int32), (500, 1))
    rows = np.repeat(np.arange(500), 90)

    def results(threads):
        top = ranking.topk(queries, items, 10, seen=seen, threads=threads)
        return [
            *top,
            *ranking.ranks(queries, items, seen, threads=threads),
            *ranking.ranks(queries, items, lists[:, :3], threads=threads),
            *ranking.candidate_ranks(queries, items, lists[:, :2], lists, threads=threads),
            ranking.metrics(top.items, seen, [5], threads=threads)["ndcg@5"],
            sampling.negatives(seen, rows, 2, seed=5, threads=threads),
            sampling.negatives(seen, rows, 1, weights=np.arange(900.0), seed=5, threads=threads),
            sampling.weighted(lists, np.linspace(1, 2, 60), 20, seed=5, threads=threads),
            sampling.outside(seen, lists, 30, seed=5, threads=threads),
            *sampling.discrepancy(
                (queries, items),
                (items[:500], items),
                seen,
                9,
                law=("exp", "tanh"),
                sharpness=0.1,
                seed=5,
                threads=threads,
            ),
        ]

    assert [a.tobytes() for a in results(threads)] == [a.tobytes() for a in results(2)]
