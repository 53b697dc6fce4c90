"""Samplers: what they may give, and the laws they follow. Distribution tests have fixed seeds and stated tolerances."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrs.core import sampling
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError

SMALL = settings(max_examples=60, deadline=None)
# A true sampler fails a test at this level once in ten thousand seeds; the seeds are fixed.
LEVEL = 1e-4


def ragged(rng, n_rows, n_items, densities=(0.0, 0.1, 0.5, 0.95)):
    dense = rng.random((n_rows, n_items)) < rng.choice(densities, n_rows)[:, None]
    return Interactions.from_pairs(*np.nonzero(dense), n_rows, n_items), dense


def assert_law(drawn, law, level=LEVEL):
    """Chi-square of draws against probabilities; draws of probability 0 fail outright."""
    counts = np.bincount(drawn, minlength=law.size)
    assert not counts[law == 0].any()
    possible = law > 0
    if possible.sum() > 1:
        assert scipy.stats.chisquare(counts[possible], law[possible] / law.sum() * drawn.size).pvalue > level


class TestNegatives:
    @SMALL
    @given(st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 200), st.integers(0, 5), st.booleans())
    def test_never_a_positive(self, seed, n_rows, n_items, n, weigh):
        rng = np.random.default_rng(seed)
        seen, dense = ragged(rng, n_rows, n_items, (0.0, 0.3, 0.9, 1.0))
        rows = rng.integers(0, n_rows, 50)
        weights = rng.random(n_items) * (rng.random(n_items) < 0.5) if weigh else None
        drawn = sampling.negatives(seen, rows, n, weights=weights, seed=seed, exhausted="mask")
        assert drawn.shape == (50, n)
        assert drawn.dtype == np.int32
        eligible = ~dense if weights is None else ~dense & (weights > 0)
        for row, items in zip(rows, drawn, strict=True):
            if eligible[row].any():
                assert eligible[row, items].all()
            else:
                assert (items == -1).all()

    def test_uniform_over_the_unseen(self):
        for density in (0.02, 0.5, 0.97):
            seen, dense = ragged(np.random.default_rng(3), 1, 100, (density,))
            drawn = sampling.negatives(seen, np.zeros(100_000, np.int64), 1, seed=7)[:, 0]
            assert_law(drawn, (~dense[0]).astype(float))

    def test_shape_of_the_call_does_not_change_a_draw(self):
        seen, _ = ragged(np.random.default_rng(0), 6, 300)
        rows = np.random.default_rng(1).integers(0, 6, 40_000)
        whole = sampling.negatives(seen, rows, 1, seed=3)
        assert np.array_equal(whole[:17], sampling.negatives(seen, rows[:17], 1, seed=3))
        assert np.array_equal(whole, sampling.negatives(seen, rows.astype(np.int32), 1, seed=3))

    @pytest.mark.parametrize("density", [0.0, 0.5, 0.98])
    def test_proportional_to_weights(self, density):
        rng = np.random.default_rng(5)
        seen, dense = ragged(rng, 2, 200, (density,))
        weights = rng.pareto(1.0, 200) * (rng.random(200) < 0.9)
        drawn = sampling.negatives(seen, np.tile([0, 1], 100_000), 1, weights=weights, seed=11)[:, 0]
        for row in (0, 1):
            assert_law(drawn[row::2], weights * ~dense[row])

    def test_extreme_weights(self):
        seen = Interactions.from_pairs([0], [0], 1, 4)
        weights = np.array([1e300, 1e-300, 0.0, 1e-300])
        drawn = sampling.negatives(seen, np.zeros(50_000, np.int64), 1, weights=weights, seed=1)[:, 0]
        assert_law(drawn, np.array([0, 1.0, 0, 1.0]))

    def test_draws_are_independent(self):
        seen = Interactions.from_pairs([], [], 1, 8)
        drawn = sampling.negatives(seen, np.zeros(80_000, np.int64), 2, seed=2)
        assert_law(drawn[:, 0] * 8 + drawn[:, 1], np.ones(64))
        assert_law(drawn[:-1, 0] * 8 + drawn[1:, 0], np.ones(64))
        other = sampling.negatives(seen, np.zeros(80_000, np.int64), 2, seed=3)
        assert_law(drawn[:, 0] * 8 + other[:, 0], np.ones(64))

    def test_a_row_that_has_seen_everything(self):
        seen = Interactions.from_pairs([0, 1, 1, 1], [0, 0, 1, 2])
        with pytest.raises(DataError, match="row 1 has seen all 3 items"):
            sampling.negatives(seen, [0, 1, 0], seed=0)
        masked = sampling.negatives(seen, [0, 1, 0], 2, seed=0, exhausted="mask")
        assert (masked[1] == -1).all()
        assert (masked[[0, 2]] > 0).all()
        with pytest.raises(DataError, match="row 1 has seen all"):
            sampling.negatives(seen, [1], seed=0, weights=np.ones(3))
        with pytest.raises(DataError, match="row 0: every unseen item has weight 0"):
            sampling.negatives(seen, [0], seed=0, weights=np.array([1.0, 0, 0]))

    def test_refusals(self):
        seen = Interactions.from_pairs([0], [0], 2, 3)
        for bad in ([2], [-1], [2**40]):
            with pytest.raises(DataError, match=f"row {bad[0]} is outside 0 to 1"):
                sampling.negatives(seen, bad, seed=0)
        with pytest.raises(DataError, match="rows are float64"):
            sampling.negatives(seen, [0.5], seed=0)
        with pytest.raises(DataError, match="column 1 is -1"):
            sampling.negatives(seen, [0], seed=0, weights=[1.0, -1.0, 1.0])
        with pytest.raises(DataError, match="column 2 is NaN"):
            sampling.negatives(seen, [0], seed=0, weights=[1.0, 1.0, np.nan])
        with pytest.raises(DataError, match="2 weights for 3 items"):
            sampling.negatives(seen, [0], seed=0, weights=[1.0, 1.0])
        with pytest.raises(ConfigError, match="exhausted"):
            sampling.negatives(seen, [0], seed=0, exhausted="skip")
        with pytest.raises(ConfigError, match="n is -1"):
            sampling.negatives(seen, [0], -1, seed=0)
        with pytest.raises(ConfigError, match="seed is -1"):
            sampling.negatives(seen, [0], seed=-1)

    def test_kinds_of_arrays(self):
        seen, _ = ragged(np.random.default_rng(0), 9, 40, (0.3,))
        rows = np.arange(9)
        expected = sampling.negatives(seen, rows, 3, seed=1)
        strided = np.repeat(rows, 2)[::2]
        strided.flags.writeable = False
        assert np.array_equal(sampling.negatives(seen, strided, 3, seed=1), expected)
        assert np.array_equal(sampling.negatives(seen.to_csr(), rows, 3, seed=1), expected)
        assert np.array_equal(sampling.negatives(scipy.sparse.coo_array(seen.to_csr()), rows, 3, seed=1), expected)
        tensor = sampling.negatives(seen, torch.from_numpy(rows), 3, seed=1)
        assert tensor.dtype == torch.int32
        assert np.array_equal(tensor.numpy(), expected)


class TestWeighted:
    @SMALL
    @given(st.integers(0, 2**32), st.integers(1, 12), st.integers(0, 30), st.integers(0, 35), st.booleans())
    def test_distinct_members_of_the_list(self, seed, n_rows, width, n, shared):
        rng = np.random.default_rng(seed)
        lists = np.stack([rng.permutation(100)[:width] for _ in range(n_rows)]).astype(np.int32)
        for row in lists:
            row[width - rng.integers(0, width + 1) :] = -1
        weights = rng.random(width if shared else lists.shape) * (rng.random(width if shared else lists.shape) < 0.7)
        for order in ("list", "draw"):
            drawn = sampling.weighted(lists, weights, n, seed=seed, order=order)
            for items, row, law in zip(drawn, lists, np.broadcast_to(weights, lists.shape), strict=True):
                possible = row[(row >= 0) & (law > 0)]
                taken = items[items >= 0]
                assert taken.size == min(n, possible.size)
                assert (items[taken.size :] == -1).all()
                assert np.unique(taken).size == taken.size
                assert np.isin(taken, possible).all()
                if order == "list":
                    places = [row.tolist().index(item) for item in taken]
                    assert places == sorted(places)

    @pytest.mark.parametrize("per_row", [False, np.float32, np.float64])
    def test_law_of_successive_draws(self, per_row):
        weights = np.array([5.0, 1.0, 0.5, 2.0, 0.0])
        repeats = 60_000
        lists = np.tile(np.arange(5, dtype=np.int32), (repeats, 1))
        law = np.tile(weights, (repeats, 1)).astype(per_row) if per_row else weights
        drawn = sampling.weighted(lists, law, 2, seed=4, order="draw")
        expected = np.zeros(25)
        for i, j in itertools.permutations(range(4), 2):
            expected[i * 5 + j] = weights[i] / weights.sum() * weights[j] / (weights.sum() - weights[i])
        assert_law(drawn[:, 0] * 5 + drawn[:, 1], expected)
        sets = sampling.weighted(lists, law, 2, seed=4, order="list")
        assert np.array_equal(np.sort(drawn, axis=1), sets)

    def test_inclusion_agrees_with_torch(self):
        weights = np.exp(-np.arange(60) / 10)
        drawn = sampling.weighted(np.tile(np.arange(60, dtype=np.int32), (20_000, 1)), weights, 15, seed=8)
        torch.manual_seed(0)
        theirs = torch.multinomial(torch.from_numpy(weights).expand(20_000, -1), 15).numpy()
        ours = np.bincount(drawn.ravel(), minlength=60) / 20_000
        # Two frequencies of 20,000 rows differ by a standard deviation of at most 0.005.
        assert np.abs(ours - np.bincount(theirs.ravel(), minlength=60) / 20_000).max() < 0.02

    def test_wide_lists_keep_the_law_in_the_far_tail(self):
        width = 5000
        lists = np.tile(np.arange(width, dtype=np.int32), (4000, 1))
        drawn = sampling.weighted(lists, np.ones(width), 4, seed=5, order="draw")
        assert_law(drawn[:, 0] // 250, np.ones(20))
        assert_law(drawn[:, 3] // 250, np.ones(20))

    def test_refusals(self):
        lists = np.zeros((2, 3), np.int32)
        with pytest.raises(DataError, match=r"weights have shape \(2,\)"):
            sampling.weighted(lists, np.ones(2), 1, seed=0)
        with pytest.raises(DataError, match="row 1, column 2 is NaN"):
            sampling.weighted(lists, np.array([[1, 1, 1], [1, 1, np.nan]]), 1, seed=0)
        with pytest.raises(DataError, match="row 0, column 0 is -2"):
            sampling.weighted(lists, np.array([-2.0, 1, 1]), 1, seed=0)
        with pytest.raises(ConfigError, match="order"):
            sampling.weighted(lists, np.ones(3), 1, seed=0, order="rank")
        with pytest.raises(DataError, match="lists run from"):
            sampling.weighted(np.full((1, 3), 2**31), np.ones(3), 1, seed=0)


class TestOutside:
    @SMALL
    @given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 130), st.integers(0, 20), st.integers(0, 140))
    def test_distinct_and_outside(self, seed, n_rows, n_items, width, n):
        rng = np.random.default_rng(seed)
        seen, dense = ragged(rng, n_rows, n_items, (0.0, 0.1, 0.8, 1.0))
        lists = rng.integers(-1, n_items, (n_rows, width)).astype(np.int32)
        drawn = sampling.outside(seen, lists, n, seed=seed)
        assert drawn.shape == (n_rows, n)
        for row in range(n_rows):
            allowed = np.setdiff1d(np.flatnonzero(~dense[row]), lists[row])
            taken = drawn[row][drawn[row] >= 0]
            assert taken.size == min(n, allowed.size)
            assert (drawn[row][taken.size :] == -1).all()
            assert np.unique(taken).size == taken.size
            assert np.isin(taken, allowed).all()

    @pytest.mark.parametrize(("n_items", "n"), [(60, 3), (9, 3)])
    def test_ordered_draws_are_uniform(self, n_items, n):
        """Both ways of drawing: by rejection (60 items), from what is left (9 items)."""
        repeats = 60_000
        seen = Interactions.from_pairs(np.arange(repeats), np.full(repeats, 2), repeats, n_items)
        lists = np.tile(np.array([[5, -1]], np.int32), (repeats, 1))
        drawn = sampling.outside(seen, lists, n, seed=6)
        law = np.ones(n_items)
        law[[2, 5]] = 0
        for place in range(n):
            assert_law(drawn[:, place], law)
        if n_items == 9:
            pairs = np.outer(law, law) - np.diag(law)
            assert_law(drawn[:, 0] * 9 + drawn[:, 1], pairs.ravel())

    def test_refusals(self):
        seen = Interactions.from_pairs([0, 1], [0, 1], 2, 3)
        with pytest.raises(DataError, match="lists: row 1 holds item 3; allowed: 0 to 2"):
            sampling.outside(seen, np.array([[0], [3]]), 1, seed=0)
        with pytest.raises(DataError, match="2 rows for 1 queries"):
            sampling.outside(seen, np.zeros((1, 1), np.int32), 1, seed=0)


def slow_weights(student, teacher, seen_row, law, s):
    left = np.setdiff1d(np.arange(student.size), seen_row)
    ranks = []
    for scores in (student, teacher):
        order = np.lexsort((left, -scores[left]))
        rank = np.empty(left.size)
        rank[order] = np.arange(1, left.size + 1)
        ranks.append(rank)
    r_s, r_t = ranks
    w = {
        "exp": lambda: np.exp(s * (r_t - r_s)),
        "tanh": lambda: np.tanh(np.maximum(s * (r_s - r_t), 0)),
        "tanh-over": lambda: np.tanh(np.maximum(s * (r_t - r_s), 0)),
    }[law]()
    full = np.zeros(student.size)
    full[left] = w
    return full


class TestDiscrepancy:
    @pytest.mark.parametrize("law", ["exp", "tanh", "tanh-over"])
    def test_law(self, law):
        rng = np.random.default_rng(1)
        student, teacher = rng.integers(-4, 5, (2, 6, 40)).astype(np.float32)
        seen, _ = ragged(rng, 6, 40, (0.0, 0.2, 0.6))
        drawn = sampling.discrepancy(student, teacher, seen, 20_000, law=law, sharpness=0.07, seed=5)
        assert drawn.shape == (6, 20_000)
        for row in range(6):
            assert_law(drawn[row], slow_weights(student[row], teacher[row], seen.row(row), law, 0.07))

    def test_the_papers_example(self):
        student, teacher = np.array([[1.0, 2, 3, 4]]), np.array([[4.0, 3, 2, 1]])
        none = Interactions.from_pairs([], [], 1, 4)
        exp, tanh = sampling.discrepancy(student, teacher, none, 200_000, law=("exp", "tanh"), sharpness=0.5, seed=1)
        # Three standard deviations of a frequency of 200,000 draws are at most 0.0034.
        assert np.abs(np.bincount(exp[0]) / 200_000 - [0.0321, 0.0871, 0.2369, 0.6439]).max() < 0.0035
        assert np.abs(np.bincount(tanh[0], minlength=4) / 200_000 - [0.6620, 0.3380, 0, 0]).max() < 0.0035

    def test_factors_scores_and_blocks_agree(self):
        rng = np.random.default_rng(2)
        q, x = rng.integers(-3, 4, (30, 5)).astype(np.float32), rng.integers(-3, 4, (70, 5)).astype(np.float32)
        bias = rng.integers(-3, 4, 70).astype(np.float32)
        seen, _ = ragged(rng, 30, 70)
        options = {"law": "exp", "sharpness": 0.02, "seed": 9}
        scores = sampling.discrepancy(q @ x.T + bias, -q @ x.T, seen, 25, **options)
        assert np.array_equal(sampling.discrepancy((q, x, bias), (-q, x), seen, 25, **options), scores)
        assert np.array_equal(sampling.discrepancy((q, x, bias), (-q, x, None), seen, 25, threads=1, **options), scores)

    def test_ragged_draws(self):
        rng = np.random.default_rng(2)
        student, teacher = rng.standard_normal((2, 5, 20)).astype(np.float32)
        none = Interactions.from_pairs([], [], 5, 20)
        counts = np.array([3, 0, 7, 1, 7])
        options = {"law": "exp", "sharpness": 0.1, "seed": 4}
        flat = sampling.discrepancy(student, teacher, none, counts, **options)
        whole = sampling.discrepancy(student, teacher, none, 7, **options)
        assert np.array_equal(flat, np.concatenate([row[:count] for row, count in zip(whole, counts, strict=True)]))

    def test_agreement_and_exhaustion_give_minus_one(self):
        scores = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
        seen = Interactions.from_pairs(np.ones(6, int), np.arange(6), 2, 6)
        exp, tanh = sampling.discrepancy(scores, scores, seen, 4, law=("exp", "tanh"), sharpness=1.0, seed=1)
        assert (tanh == -1).all()
        assert (exp[0] >= 0).all()
        assert (exp[1] == -1).all()

    def test_refusals(self):
        scores = np.zeros((2, 3), np.float32)
        none = Interactions.from_pairs([], [], 2, 3)
        options = {"law": "exp", "sharpness": 1.0, "seed": 0}
        broken = scores.copy()
        broken[1, 2] = np.nan
        with pytest.raises(DataError, match="teacher: row 1 holds NaN"):
            sampling.discrepancy(scores, broken, none, 1, **options)
        with pytest.raises(DataError, match="the student scores 2 x 3, the teacher 2 x 4"):
            sampling.discrepancy(scores, np.zeros((2, 4)), none, 1, **options)
        with pytest.raises(ConfigError, match="law cosh"):
            sampling.discrepancy(scores, scores, none, 1, law="cosh", sharpness=1.0, seed=0)
        with pytest.raises(ConfigError, match="sharpness -1"):
            sampling.discrepancy(scores, scores, none, 1, law="exp", sharpness=-1.0, seed=0)
        with pytest.raises(DataError, match="row 1 asks for -2"):
            sampling.discrepancy(scores, scores, none, np.array([1, -2]), **options)


class TestStream:
    def test_never_changes(self):
        assert sampling.stream(0) == STREAM_0
        assert sampling.stream(7, "negatives", 3) == STREAM_7

    def test_names_are_separate(self):
        streams = [
            sampling.stream(1),
            sampling.stream(11),
            sampling.stream(1, 1),
            sampling.stream(1, "1"),
            sampling.stream(1, "a", "b"),
            sampling.stream(1, "ab"),
            sampling.stream(1, "b", "a"),
            sampling.stream(-1),
        ]
        assert len(set(streams)) == len(streams)
        assert all(0 <= seed < 2**63 for seed in streams)


# Recorded when the hash was settled: these values are part of every seeded result.
STREAM_0 = 6450899586159507901
STREAM_7 = 5108650807098151442
