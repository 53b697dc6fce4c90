"""What the functions of the core take: empty arrays, any memory, absurd numbers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz_core import CALLS, REFUSALS, TWISTS, one
from kdrs.core import kernels, ranking, sampling
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.lists import top_lists

HUGE = (2**31 - 1, 2**31, 2**63, 2**70)
Q = np.arange(20, dtype=np.float32).reshape(5, 4)
X = np.arange(28, dtype=np.float32).reshape(7, 4)[::-1].copy()


def leaves(found: Any) -> list[np.ndarray]:
    if isinstance(found, dict):
        return [leaf for value in found.values() for leaf in leaves(value)]
    if isinstance(found, tuple | list):
        return [leaf for value in found for leaf in leaves(value)]
    return [] if found is None else [sampling.numpy_of(found)]


def outcome(call: Any, **twisted: Any) -> Any:
    try:
        return leaves(call.run(**twisted))
    except REFUSALS as refusal:
        return type(refusal)


@pytest.mark.parametrize("name", CALLS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), twist=st.sampled_from(list(TWISTS)))
def test_memory_does_not_matter(name: str, seed: int, twist: str):
    """Strides, alignment, byte order, width and kind of array: the same results, and nothing is written to."""
    call = CALLS[name](np.random.default_rng(seed))
    expected = outcome(call)
    arrays = {key: value for key, value in call.arrays.items() if isinstance(value, np.ndarray)}
    twisted = {key: TWISTS[twist](array) for key, array in arrays.items()}
    before = {key: array.copy() for key, array in arrays.items()}
    found = outcome(call, **twisted)
    if isinstance(expected, type):
        assert found == expected
        return
    assert not isinstance(found, type), found
    assert len(found) == len(expected)
    for one_, other in zip(found, expected, strict=True):
        assert one_.shape == other.shape
        np.testing.assert_array_equal(one_.astype(np.float64), other.astype(np.float64))
    for key, array in before.items():
        np.testing.assert_array_equal(arrays[key], array)
        np.testing.assert_array_equal(sampling.numpy_of(twisted[key]).astype(np.float64), array.astype(np.float64))


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 2**32))
def test_wrong_arguments_are_refused_by_name(seed: int):
    assert one(seed)[1] in ("result", "ConfigError", "DataError", "ValueError", "MemoryError")


@pytest.mark.parametrize("name", CALLS)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_no_result_is_minus_zero(name: str, seed: int):
    if name in ("table_products", "relaxed", "mixture", "quadratic"):
        return  # values in training, which nobody is shown
    found = outcome(CALLS[name](np.random.default_rng(seed)))
    for leaf in () if isinstance(found, type) else found:
        if leaf.dtype.kind == "f":
            assert not (np.signbit(leaf) & (leaf == 0)).any()


def test_metrics_without_a_hit_are_plus_zero():
    truth = Interactions.from_pairs([0], [3], 1, 5)
    found = ranking.metrics(np.array([[0, 1]], np.int32), truth, [1, 2])
    assert not any(np.signbit(values).any() for values in found.values())
    assert all((values == 0).all() for values in found.values())


class TestEmpty:
    none = np.zeros((0, 4), np.float32)
    bare = np.zeros((5, 0), np.float32)
    seen = Interactions.from_pairs([], [], 5, 7)
    no_rows = Interactions.from_pairs([], [], 0, 7)

    def test_draws(self):
        rows = np.arange(5)
        assert sampling.negatives(self.seen, rows[:0], 3, seed=1).shape == (0, 3)
        assert sampling.negatives(self.seen, rows, 0, seed=1).shape == (5, 0)
        empty = Interactions.from_pairs([], [], 5, 0)
        assert sampling.negatives(empty, rows, 2, seed=1, exhausted="mask").tolist() == [[-1, -1]] * 5
        with pytest.raises(DataError, match="row 0 has seen all 0 items"):
            sampling.negatives(empty, rows, 2, seed=1)
        lists = np.zeros((5, 3), np.int32)
        assert sampling.weighted(lists[:0], np.ones(3), 2, seed=1).shape == (0, 2)
        assert sampling.weighted(lists, np.ones(3), 0, seed=1).shape == (5, 0)
        assert sampling.weighted(lists[:, :0], np.ones(0), 2, seed=1).tolist() == [[-1, -1]] * 5
        assert sampling.outside(self.no_rows, lists[:0], 2, seed=1).shape == (0, 2)
        assert sampling.outside(self.seen, lists, 0, seed=1).shape == (5, 0)
        assert sampling.outside(self.seen, lists[:, :0], 2, seed=1).shape == (5, 2)
        assert sampling.outside(empty, lists[:, :0], 2, seed=1).tolist() == [[-1, -1]] * 5

    @pytest.mark.parametrize("draws", [0, 3])
    def test_discrepancy(self, draws: int):
        law = {"law": "exp", "sharpness": 1.0, "seed": 0}
        assert sampling.discrepancy((self.none, X), (self.none, X), None, draws, **law).shape == (0, draws)
        assert sampling.discrepancy((Q, X), (Q, X), None, draws, **law).shape == (5, draws)
        without = sampling.discrepancy((Q, self.none), (Q, self.none), None, draws, **law)
        assert without.shape == (5, draws)
        assert (without == -1).all()
        assert sampling.discrepancy((Q, X), (Q, X), None, np.zeros(5, int), **law).shape == (0,)
        several = sampling.discrepancy(
            (self.none, X), (self.none, X), None, draws, law=("exp", "tanh"), sharpness=1.0, seed=0
        )
        assert [part.shape for part in several] == [(0, draws)] * 2

    @pytest.mark.parametrize("k", [0, 2])
    def test_lists(self, k: int):
        for found, shape in (
            (ranking.topk(self.none, X, k), (0, k)),
            (ranking.topk(Q, X, k), (5, k)),
            (ranking.topk(Q, self.none, k), (5, 0)),
            (ranking.topk(self.bare, np.zeros((7, 0), np.float32), k), (5, k)),
            (ranking.topk_scores(np.zeros((0, 7)), k), (0, k)),
            (ranking.topk_scores(np.zeros((5, 0)), k), (5, 0)),
            (ranking.topk_on_device(torch.zeros(0, 4), torch.zeros(7, 4), k), (0, k)),
            (ranking.topk_on_device(torch.zeros(5, 4), torch.zeros(0, 4), k), (5, 0)),
            (ranking.neighbours(self.none, k), (0, 0)),
            (ranking.neighbours(Q[:1], k), (1, 0)),
            (ranking.neighbours(self.bare, k), (5, k)),
        ):
            assert found.items.shape == found.scores.shape == shape

    def test_ranks_and_metrics(self):
        lists = np.zeros((5, 0), np.int32)
        assert ranking.ranks(Q, X, lists).better.shape == (5, 0)
        assert ranking.ranks(self.none, X, lists[:0]).better.shape == (0, 0)
        assert ranking.ranks(Q, X, self.seen).better.shape == (0,)
        assert ranking.ranks_scores(np.zeros((0, 7)), self.no_rows).tied.shape == (0,)
        one_each = np.zeros((5, 1), np.int32)
        assert ranking.candidate_ranks(Q, X, one_each, lists).better.tolist() == [[0]] * 5
        assert ranking.candidate_ranks(Q, X, lists, one_each).better.shape == (5, 0)
        assert ranking.candidate_ranks(self.none, X, one_each[:0], one_each[:0]).better.shape == (0, 1)
        assert ranking.candidate_ranks_scores(np.zeros((5, 1)), np.zeros((5, 0))).better.tolist() == [[0]] * 5
        assert ranking.metrics(one_each[:0], self.no_rows, [3])["ndcg@3"].shape == (0,)
        assert np.isnan(ranking.metrics(lists, self.seen, [3])["ndcg@3"]).all()
        assert ranking.metrics(lists, self.seen, []) == {}

    def test_kernels(self):
        table = kernels.Table(torch.zeros(3, 4, requires_grad=True))
        for rows, width in ((0, 2), (2, 0), (0, 0)):
            assert table.products(torch.zeros(rows, 4), torch.zeros(rows, width, dtype=torch.long)).shape == (
                rows,
                width,
            )
        assert kernels.RelaxedRanking.apply(torch.zeros(0, 4), 2, None).shape == (0,)
        assert kernels.RelaxedRanking.apply(torch.zeros(3, 0), 0, None).tolist() == [0.0] * 3
        for e, m, s, h, t in ((0, 2, 3, 4, 5), (2, 0, 3, 4, 5), (2, 3, 0, 4, 5), (2, 3, 4, 0, 5), (2, 3, 4, 5, 0)):
            shapes = (e, s), (e, m), (m, s, h), (m, h), (m, h, t), (m, t)
            assert kernels.mixture(*(torch.ones(*shape) for shape in shapes)).shape == (e, t)
        for e, d, out in ((0, 3, 2), (2, 0, 2), (2, 1, 2), (2, 3, 0)):
            found = kernels.quadratic(torch.ones(e, d), torch.ones(d * (d - 1) // 2, out), bf16=False)
            assert found.shape == (e, out)
            assert d > 1 or not found.any()
        assert kernels.dropout(torch.zeros(0, 3), 0.5).shape == (0, 3)


class TestHuge:
    @pytest.mark.parametrize("k", HUGE)
    def test_lists_end_with_the_catalogue(self, k: int):
        assert ranking.topk(Q, X, k).items.shape == (5, 7)
        assert ranking.topk_scores(Q, k).scores.shape == (5, 4)
        assert ranking.topk_on_device(torch.from_numpy(Q), torch.from_numpy(X), k).items.shape == (5, 7)
        assert ranking.neighbours(Q, k).items.shape == (5, 4)
        np.testing.assert_array_equal(ranking.topk(Q, X, k).items, ranking.topk(Q, X, 7).items)

    @pytest.mark.parametrize("k", [2**31 - 1, 2**63])
    def test_metrics_keep_k_in_their_denominators(self, k: int):
        truth = Interactions.from_pairs([0, 0], [3, 4], 1, 5)
        found = ranking.metrics(np.array([[3, 0, 4]], np.int32), truth, [3, k])
        for name in ("hit", "recall", "ndcg", "mrr", "map"):
            assert found[f"{name}@{k}"] == found[f"{name}@3"]
        assert found[f"precision@{k}"][0] == 2 / k
        with pytest.raises(ConfigError, match="allowed: integers from 1 to"):
            ranking.metrics(np.array([[3]], np.int32), truth, [2**64])

    @pytest.mark.parametrize("k", HUGE[:3])
    def test_evaluation(self, k: int):
        seen = Interactions.from_pairs([0, 1], [0, 1], 3, 6)
        test = Interactions.from_pairs([0, 1, 2], [2, 3, 4], 3, 6)
        scores = np.random.default_rng(0).random((3, 6)).astype(np.float32)
        (_, lists), *_ = top_lists(lambda rows: scores[rows], seen, k)
        assert lists.items.shape == (3, 6)
        with pytest.warns(UserWarning, match="lists are shorter, denominators keep K"):
            evaluator = Evaluator(seen, test, ks=(2, k))
        (report,) = evaluator(lambda rows: scores[rows]).values()
        assert report is not None

    def test_draws_that_no_machine_holds(self):
        seen, n = Interactions.from_pairs([], [], 5, 7), 2**31 - 1
        rows, lists, scores = np.zeros(100_000, int), np.zeros((100_000, 1), np.int32), np.zeros((100_000, 1))
        law: Any = {"law": "exp", "sharpness": 1.0, "seed": 1}
        for draw in (
            lambda: sampling.negatives(seen, rows, n, seed=1),
            lambda: sampling.weighted(lists, np.ones(1), n, seed=1),
            lambda: sampling.outside(seen, lists, n, rows=rows, seed=1),
            lambda: sampling.discrepancy(scores, scores, None, n, **law),
            lambda: sampling.discrepancy(scores, scores, None, np.full(100_000, 2**62), **law),
        ):
            with pytest.raises(MemoryError):
                draw()
        for wrong in (2**31, 2**63, 2**70, -1, 1.5, True, "3", None):
            with pytest.raises(ConfigError):
                sampling.negatives(seen, rows, wrong, seed=1)  # type: ignore[arg-type]

    def test_what_the_system_does_not_give_is_a_memory_error(self):
        """Under a limit of memory, where asking for more once ended the process."""
        resource = pytest.importorskip("resource")
        program = """
import resource, sys
import numpy as np
from kdrs.core import ranking, sampling
from kdrs.data.interactions import Interactions
x = np.zeros((5, 4), np.float32)
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**29, in_use + 2**29))
assert ranking.topk(x, x, 2**31 - 1).items.shape == (5, 5)
seen = Interactions.from_pairs([0], [0], 5, 7)
rows, lists = np.zeros(5, int), np.zeros((5, 1), np.int32)
for draw in (
    lambda: sampling.negatives(seen, rows, 2**26, seed=1),
    lambda: sampling.negatives(seen, rows, 2**26, weights=np.ones(7), seed=1),
    lambda: sampling.weighted(lists, np.ones(1), 2**26, seed=1),
    lambda: sampling.outside(seen, lists, 2**26, seed=1),
    lambda: sampling.discrepancy(x, x, None, 2**26, law="exp", sharpness=1.0, seed=1),
    lambda: ranking.metrics(np.zeros((200, 1), np.int32), seen, [1] * 2**18, rows=np.zeros(200, int)),
):
    try:
        draw()
    except MemoryError:
        continue
    sys.exit("no MemoryError")
"""
        assert resource
        if not sys.platform.startswith("linux"):
            pytest.skip("limits of memory hold on Linux")
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]


def test_the_refusals_name_what_is_allowed():
    with pytest.raises(DataError, match=r"queries: no array can be made of this torch.float32 tensor"):
        ranking.topk(torch.zeros(2, 2).to_sparse(), X, 1)
    with pytest.raises(DataError, match="queries are complex128; allowed: real numbers"):
        ranking.topk(Q.astype(complex), X, 1)
    with pytest.raises(DataError, match="rows run to 18446744073709551615; allowed: int64"):
        ranking.topk(Q, X, 1, seen=Interactions.from_pairs([], [], 5, 7), rows=np.full(5, 2**64 - 1, np.uint64))
    with pytest.raises(DataError, match="draws for 3 rows, not 5"):
        sampling.discrepancy((Q, X), (Q, X), None, np.ones(3, int), law="exp", sharpness=1.0, seed=1)
    with pytest.raises(ConfigError, match=r"dropout of 1\.5"):
        kernels.dropout(torch.zeros(3), 1.5)


def test_metrics_take_one_length_and_one_name_as_the_evaluator_does():
    truth = Interactions.from_pairs([0, 1], [2, 0], 2, 3)
    lists = np.array([[2, 0], [1, 0]], np.int32)
    whole = ranking.metrics(lists, truth, [1, 2], ["ndcg", "hit"])
    assert ranking.metrics(lists, truth, 2, "ndcg")["ndcg@2"].tolist() == whole["ndcg@2"].tolist()
    assert ranking.metrics(lists, truth, np.int64(1), ["hit"])["hit@1"].tolist() == whole["hit@1"].tolist()
    with pytest.raises(ConfigError, match="metric ndcgg"):
        ranking.metrics(lists, truth, 2, "ndcgg")
    with pytest.raises(DataError, match="`truth` has 2 rows for 1 queries"):
        ranking.metrics(lists[:1], truth, 2)
    assert ranking.metrics(lists[:1], truth, 2, "hit", rows=[0])["hit@2"].tolist() == [1]


def test_padding_is_minus_one_and_no_other_number():
    with pytest.raises(DataError, match="lists: row 1 holds item -5"):
        sampling.weighted([[0, -1], [2, -5]], [1.0, 1.0], 1, seed=0)
    with pytest.raises(DataError, match="candidates: row 0 holds item -2"):
        ranking.candidate_ranks_scores(np.ones((1, 1)), np.ones((1, 2)), candidates=[[0, -2]])
