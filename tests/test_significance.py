"""Paired tests against enumeration and SciPy, Holm against numbers worked by hand."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrs.errors import ConfigError, DataError
from kdrs.evaluation import significance
from kdrs.evaluation.significance import adjusted, holm, paired_test, randomisation_p, seed_spread, seed_test


def enumerated_randomisation(d: list[float]) -> float:
    observed = abs(sum(d))
    sums = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=len(d))
    ]
    return sum(s >= observed - 1e-9 for s in sums) / len(sums)


def enumerated_bootstrap(d: list[float]) -> tuple[float, list[float]]:
    means = sorted(sum(draw) / len(d) for draw in itertools.product(d, repeat=len(d)))
    mean = sum(d) / len(d)
    return sum(abs(m - mean) >= abs(mean) - 1e-9 for m in means) / len(means), means


small = st.lists(st.integers(-4, 4).map(lambda x: x / 4), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(small)
def test_randomisation_is_exact_on_few_queries(d):
    p, exact = randomisation_p(np.array(d), 1000, seed=0)
    assert exact
    assert p == pytest.approx(enumerated_randomisation(d))


def test_randomisation_by_hand():
    # d = 1, 2, 3: only +++ and --- reach |6|, so 2 of 8. d = 1, -1: every pattern reaches |0|.
    assert randomisation_p(np.array([1.0, 2.0, 3.0]), 100, seed=0) == (0.25, True)
    assert randomisation_p(np.array([1.0, -1.0]), 100, seed=0) == (1.0, True)
    assert randomisation_p(np.zeros(5), 100, seed=0) == (1.0, True)


@pytest.mark.parametrize("route", ["counts", "single"])
def test_randomisation_by_resampling_agrees_with_scipy(monkeypatch, route):
    monkeypatch.setattr(significance, "_FLIPS_A_COUNT", 0 if route == "counts" else 10**9)
    d = np.array([0.5, -0.25, 0.25, 1.0, 0.0, 0.5, -0.5, 0.75, 0.25, 0.5, -0.25, 0.25])
    p, exact = randomisation_p(d, 2000, seed=3)
    assert not exact
    expected = scipy.stats.permutation_test(
        (d,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    ).pvalue
    assert p == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("route", ["counts", "single"])
@pytest.mark.parametrize("d", [[0.0, 1.0, 1.0, -0.5, 0.5], [0.2, 0.4, 0.1, 0.3, 0.9]])
def test_bootstrap_agrees_with_enumeration(monkeypatch, route, d):
    monkeypatch.setattr(significance, "_DRAWS_A_COUNT", 0 if route == "counts" else 10**9)
    p, means = enumerated_bootstrap(d)
    found = paired_test(d, np.zeros(5), test="bootstrap", resamples=40_000, confidence=0.9, seed=1)
    assert found.difference == pytest.approx(np.mean(d))
    assert found.p == pytest.approx(p, abs=0.01)
    drawn = np.sort(significance.bootstrap_means(np.array(d), 40_000, seed=1))
    # Kolmogorov distance of 40,000 draws from their law: beyond 0.012 once in some 10,000 seeds.
    grid = np.unique(np.round(means, 9))
    law = np.searchsorted(means, grid + 1e-9) / len(means)
    assert np.abs(np.searchsorted(drawn, grid + 1e-9) / drawn.size - law).max() < 0.012
    assert found.low == pytest.approx(np.quantile(means, 0.05), abs=0.03)
    assert found.high == pytest.approx(np.quantile(means, 0.95), abs=0.03)


def test_bootstrap_interval_agrees_with_scipy():
    rng = np.random.default_rng(0)
    d = rng.normal(0.05, 0.3, 400)
    expected = scipy.stats.bootstrap(
        (d,), np.mean, n_resamples=4000, method="percentile", random_state=np.random.default_rng(1)
    ).confidence_interval
    found = paired_test(d, np.zeros(400), resamples=4000)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.004)


def test_both_tests_keep_their_level_and_see_a_real_gain():
    rng = np.random.default_rng(5)
    for test in significance.TESTS:
        null = [paired_test(*rng.random((2, 120)), test=test, resamples=200, seed=i).p for i in range(300)]
        # 300 trials at the 5% level: binomial sd 1.3%.
        assert np.mean(np.array(null) <= 0.05) == pytest.approx(0.05, abs=0.04)
        base = rng.random(400)
        assert paired_test(base + rng.normal(0.05, 0.2, 400), base, test=test, resamples=999).p < 0.01


def test_seed_decides_and_sides_mirror():
    rng = np.random.default_rng(2)
    a, b = rng.random((2, 300))
    one, two = paired_test(a, b, seed=4), paired_test(a, b, seed=4)
    assert one == two
    assert paired_test(a, b, seed=5).low != one.low
    back = paired_test(b, a, seed=4)
    assert back.difference == -one.difference
    assert back.p == pytest.approx(one.p, abs=0.02)


def test_a_constant_gain_has_no_spread():
    found = paired_test(np.full(50, 0.5), np.full(50, 0.25))
    assert (found.difference, found.low, found.high) == (0.25, 0.25, 0.25)
    assert found.p < 0.001
    assert paired_test(np.ones(50), np.ones(50)).p == 1.0


def test_memory_stays_bounded():
    rng = np.random.default_rng(0)
    d = rng.normal(size=200_000)
    tracemalloc.start()
    significance.bootstrap_means(d, 60, seed=0)
    randomisation_p(d, 200, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 160 << 20


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04: times 4 3 2 1 = .04 .06 .06 .04, then never falling.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]).shape == (0,)
    assert holm([0.01, np.nan, 0.02]) == pytest.approx([0.02, np.nan, 0.02], nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_as_its_definition_says(p):
    for alpha in (0.01, 0.05, 0.3):
        rejected = np.zeros(len(p), bool)
        for i, index in enumerate(np.argsort(p, kind="stable")):
            if p[index] * (len(p) - i) > alpha:
                break
            rejected[index] = True
        assert (np.array(holm(p)) <= alpha).tolist() == rejected.tolist()


def test_adjusted_keeps_the_rest():
    first, second = (paired_test([1.0, 0.5, x], [0.0, 0.0, 0.0]) for x in (0.5, -1.0))
    both = adjusted([first, second])
    assert both[0].p_adjusted == pytest.approx(min(1, 2 * first.p))
    assert (both[0].difference, both[1].low) == (first.difference, second.low)


def test_seed_test_agrees_with_scipy():
    a, b = [0.31, 0.33, 0.32, 0.35, 0.30], [0.30, 0.31, 0.33, 0.31, 0.29]
    expected = scipy.stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.9)
    found = seed_test(a, b, confidence=0.9)
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, interval.low, interval.high))
    assert seed_test([0.5, 0.6], [0.5, 0.6]).p == 1.0
    with pytest.raises(ConfigError, match="two seeds"):
        seed_test([0.5], [0.4])


def test_spread_by_hand():
    spread = seed_spread([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.302653; 4.302653 / sqrt(3) = 2.484138.
    assert (spread.mean, spread.sd, spread.low, spread.high) == pytest.approx((2, 1, -0.484138, 4.484138), abs=1e-6)
    assert seed_spread([0.1, 0.1, 0.1]).sd == 0.0
    assert seed_spread([0.4]).to_json() == {"mean": 0.4, "sd": None, "low": None, "high": None, "n": 1}


def test_wrong_input_says_what_is_allowed():
    with pytest.raises(DataError, match="shapes"):
        paired_test([1.0, 2.0], [1.0])
    with pytest.raises(DataError, match="shapes"):
        paired_test([], [])
    with pytest.raises(DataError, match="query 1"):
        paired_test([1.0, np.nan], [1.0, 1.0])
    with pytest.raises(ConfigError, match="randomisation, bootstrap"):
        paired_test([1.0], [0.0], test="wilcoxon")
    with pytest.raises(ConfigError, match="resamples"):
        paired_test([1.0], [0.0], resamples=0)
    with pytest.raises(ConfigError, match="confidence"):
        paired_test([1.0], [0.0], confidence=95)
