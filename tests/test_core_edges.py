"""The core at the edges of numbers, memory and threads; and what holds its inputs."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kdrs
from kdrs import Codes, Interactions
from kdrs.core import ranking, sampling
from kdrs.core.names import Names
from kdrs.data.histories import Histories
from kdrs.errors import ConfigError, DataError

RNG = np.random.default_rng(3)


def test_equal_distances_are_ordered_by_id() -> None:
    """Several squares share a root: the order is that of the scores that are given."""
    x = (1 + RNG.random((900, 3)) * 1e-3).astype(np.float32)
    x[0] = 100
    whole = ranking.neighbours(x, 899)
    order = np.lexsort((whole.items, -whole.scores), axis=1)
    assert np.array_equal(np.take_along_axis(whole.items, order, axis=1), whole.items)
    assert (np.diff(whole.scores[0]) == 0).any()
    for k in (1, 7, 300):
        few = ranking.neighbours(x, k)
        assert np.array_equal(few.items, whole.items[:, :k])
        assert np.array_equal(few.scores, whole.scores[:, :k])


@pytest.mark.parametrize("power", [-140, -100, -41, -20, 20, 51, 63, 100, 120])
def test_neighbours_do_not_depend_on_the_unit(power: int) -> None:
    x = RNG.normal(size=(60, 5)).astype(np.float32)
    scaled = np.ldexp(x, power)
    plain, other = ranking.neighbours(x, 9), ranking.neighbours(scaled, 9)
    if power > -100:  # numbers below the normal ones lose digits
        assert np.array_equal(plain.items, other.items)
        assert np.array_equal(np.ldexp(plain.scores, power), other.scores)
    near, far = ranking.neighbours(x, 9, metric="cosine"), ranking.neighbours(scaled, 9, metric="cosine")
    if power > -100:
        assert np.array_equal(near.items, far.items)


def test_neighbours_of_extreme_vectors() -> None:
    large = np.array([[1.2e19], [-1.2e19], [1e19]], np.float32)
    assert ranking.neighbours(large, 2).items.tolist() == [[2, 1], [2, 0], [0, 1]]
    small = np.array([[0], [3e-24], [1e-24], [2e-24]], np.float32)
    assert ranking.neighbours(small, 3).items.tolist() == [[2, 3, 1], [3, 2, 0], [0, 3, 1], [1, 2, 0]]
    with pytest.raises(DataError, match="overflow"):
        ranking.neighbours(np.full((2, 4), 3e38, np.float32), 1)
    with pytest.raises(DataError, match="vectors: row 1"):
        ranking.neighbours(np.array([[1.0], [np.nan]]), 1)


@pytest.mark.parametrize("bias", [np.full(5, np.nan), np.ones(2), np.ones(9)])
def test_scores_of_codes_refuse_what_lists_refuse(bias: np.ndarray) -> None:
    q, x = (Codes.of(RNG.normal(size=(n, 8)), 4, seed=0) for n in (2, 5))
    for call in (
        lambda: ranking.scores(q, x, np.zeros((2, 1), int), bias=bias),
        lambda: ranking.topk(q, x, 1, bias=bias),
    ):
        with pytest.raises(DataError):
            call()
    large = Codes.from_parts(np.full((2, 8), 127, np.uint8), np.full(2, 3e38, np.float32), 8, 8, seed=0)
    with pytest.raises(DataError, match="overflow"):
        ranking.scores(large, large, np.zeros((2, 1), int))


def test_a_candidate_that_is_the_target_does_not_count_by_scores_either() -> None:
    goal, block = np.array([[2.0, 1.0]]), np.array([[2.0, 2.0, 1.0, 3.0]])
    ids = np.array([[7, 3, 4, -1]])
    plain = ranking.candidate_ranks_scores(goal, block, candidates=ids)
    assert (plain.better.tolist(), plain.tied.tolist()) == ([[0, 2]], [[2, 1]])
    known = ranking.candidate_ranks_scores(goal, block, candidates=ids, targets=np.array([[7, 4]]))
    assert (known.better.tolist(), known.tied.tolist()) == ([[0, 2]], [[1, 0]])
    other = ranking.candidate_ranks_scores(goal, block, candidates=ids, targets=np.array([[9, 3]]))
    assert (other.better.tolist(), other.tied.tolist()) == ([[0, 1]], [[2, 1]])
    with pytest.raises(ConfigError, match="without candidates"):
        ranking.candidate_ranks_scores(goal, block, targets=ids[:, :2])
    with pytest.raises(DataError, match="ids of shape"):
        ranking.candidate_ranks_scores(goal, block, candidates=ids, targets=ids)


def test_factors_and_functions_have_the_same_metrics_among_candidates() -> None:
    rng = np.random.default_rng(8)
    queries, items = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (6, 9))
    scores = queries @ items.T
    truth = Interactions.from_pairs(np.arange(6), rng.integers(0, 9, 6), 6, 9)
    candidates = np.stack([rng.permutation(9)[:6] for _ in range(6)])
    seen = Interactions.from_pairs([], [], 6, 9)
    evaluator = kdrs.Evaluator(seen, {"test": truth}, candidates=candidates, leaks="miss", ks=(3,))
    by_factors, by_function = evaluator((queries, items))["test"], evaluator(lambda rows: scores[rows])["test"]
    assert np.array_equal(by_factors.values["ndcg@3"], by_function.values["ndcg@3"])


def test_tiny_weights_are_drawn() -> None:
    lists = np.arange(10)[None]
    assert sorted(sampling.weighted(lists, np.full(10, 1e-310), 10, seed=1)[0].tolist()) == list(range(10))
    mixed = np.array([1e-320, 1.0, 0.0, 1e-312, 1e300])
    for seed in range(20):
        drawn = sampling.weighted(lists[:, :5], mixed, 5, seed=seed, order="draw")[0].tolist()
        assert drawn[:2] == [4, 1]
        assert sorted(drawn[2:]) == [-1, 0, 3]
    law = np.array([3.0, 1.0])
    many = np.tile(np.arange(2), (4000, 1))
    assert np.array_equal(
        sampling.weighted(many, law, 1, seed=5, order="draw"),
        sampling.weighted(many, law * 2.0**-1000, 1, seed=5, order="draw"),
    )


def test_blocks_wider_than_ids_are_refused() -> None:
    try:
        block = np.zeros((1, 2**31), np.float32)
    except MemoryError:
        pytest.skip("8 GiB of addresses are not to be had")
    with pytest.raises(DataError, match="do not fit int32"):
        ranking.topk_scores(block, 1)
    with pytest.raises(DataError, match="do not fit int32"):
        ranking.ranks_scores(block, [[3]])


def test_overlap_refuses_what_is_no_list() -> None:
    good = np.array([[0, 1, -1]])
    assert kdrs.overlap(good, good, (2,))["overlap@2"].tolist() == [1]
    for bad in ([[1, 1, 2]], [[0, -1, 2]], [[0, -5, -5]]):
        for pair in ((bad, good), (good, bad)):
            with pytest.raises(DataError):
                kdrs.overlap(*map(np.array, pair), (2,))


def test_masked_arrays_are_refused() -> None:
    masked = np.ma.array([[1.0, 5, 2]], mask=[[0, 1, 0]])
    with pytest.raises(DataError, match=r"filled\(-np.inf\)"):
        ranking.topk_scores(masked, 1)
    assert ranking.topk_scores(masked.filled(-np.inf), 1).items.tolist() == [[2]]
    assert ranking.topk_scores(np.ma.array([[1.0, 5]]), 1).items.tolist() == [[1]]
    with pytest.raises(TypeError):
        sampling.stream(1.9)  # type: ignore[arg-type]


def test_nobody_can_write_to_interactions() -> None:
    own = Interactions.from_pairs([0, 0, 2, 2, 2], [1, 4, 0, 2, 3], 4, 5)
    ordered = Histories.of(own, np.array([4, 1, 3, 0, 2], np.int32))
    for pairs in (own, ordered):
        _ = pairs.row_of_pair  # kept from now on
        for one in (
            pairs,
            pickle.loads(pickle.dumps(pairs)),
            copy.deepcopy(pairs),
            copy.copy(pairs),
            pairs.rows([2, 0]),
        ):
            assert type(one) is type(pairs)
            arrays = [one.indptr, one.indices, one.row_of_pair, one.row_degrees, one.column_degrees]
            for array in arrays + ([one.order] if isinstance(one, Histories) else []):
                with pytest.raises(ValueError, match="read-only"):
                    array[:1] = 0
        assert pickle.loads(pickle.dumps(pairs)) == pairs
    assert pickle.loads(pickle.dumps(ordered)).order.tolist() == [4, 1, 3, 0, 2]


def test_what_older_versions_pickled_is_read() -> None:
    pairs = Interactions.from_pairs([0, 1], [1, 0])
    made = object.__new__(Interactions)
    made.__setstate__(
        {"indptr": pairs.indptr.copy(), "indices": pairs.indices.copy(), "shape": (2, 2), "row_degrees": 3}
    )
    assert made == pairs
    assert made.row_degrees.tolist() == [1, 1]


@pytest.mark.parametrize(
    "rows", [[True, False, False, True], [1.7], [-2], [4], np.array([[0]]), "0", np.array([0, 2**40])], ids=repr
)
def test_rows_that_are_none_are_refused(rows) -> None:
    pairs = Interactions.from_pairs([0, 0, 2], [1, 2, 0], 4, 3)
    for call in (pairs.rows, pairs.pairs_of):
        with pytest.raises(DataError):
            call(rows)
    assert pairs.rows([]).shape == (0, 3)
    assert pairs.rows(np.array([2, 0, 2], np.uint8)).indices.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("row", [-1, 4, 1.5])
def test_a_row_that_is_none_is_refused(row) -> None:
    with pytest.raises(DataError):
        Interactions.from_pairs([0, 0, 2], [1, 2, 0], 4, 3).row(row)


@pytest.mark.parametrize("size", [1.5, -1, "1", True])
def test_sizes_are_counts(size) -> None:
    with pytest.raises(DataError, match="the number of users is"):
        Interactions.from_pairs([0], [0], size, 3)


def test_catalogues_and_names_can_be_pickled() -> None:
    q, x, bias = RNG.normal(size=(4, 6)), RNG.normal(size=(70, 6)), RNG.normal(size=70)
    for items in (x, Codes.of(x, 2, seed=1)):
        catalogue = ranking.Catalogue(items, bias=bias)
        for again in (pickle.loads(pickle.dumps(catalogue)), copy.deepcopy(catalogue)):
            assert again.nbytes == catalogue.nbytes
            for part, other in zip(catalogue.topk(q, 5), again.topk(q, 5), strict=True):
                assert np.array_equal(part, other)
    names = Names.of(["a", "b", "ü"], "item")
    names.index(["b"])
    assert pickle.loads(pickle.dumps(names)).index(["ü", "a"]).tolist() == [2, 0]


HEAVY = """
import resource, sys
import numpy as np
from kdrs.core import ranking, sampling
from kdrs import Interactions
name, room = sys.argv[1], int(sys.argv[2]) << 20
x = np.zeros((1_000_000, 16), np.float32)
wide = np.zeros((2, 4_000_000), np.float32)
none = Interactions.from_pairs([], [], 2, 20_000_000)
weights = np.ones(20_000_000)
calls = {
    "catalogue": lambda: ranking.Catalogue(x, threads=1),
    "neighbours": lambda: ranking.neighbours(x, 1, threads=1),
    "discrepancy": lambda: sampling.discrepancy(wide, wide, None, 3, law="exp", sharpness=0.1, seed=1, threads=1),
    "negatives": lambda: sampling.negatives(none, np.zeros(2, int), 3, weights=weights, seed=1, threads=1),
}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
try:
    calls[name]()
except MemoryError:
    print("MemoryError")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize(
    ("name", "room"), [("catalogue", 12), ("neighbours", 30), ("discrepancy", 120), ("negatives", 200)]
)
def test_working_memory_that_is_not_there_is_an_error(name: str, room: int) -> None:
    run = subprocess.run([sys.executable, "-c", HEAVY, name, str(room)], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.strip()) == (0, "MemoryError"), run.stderr[-500:]


THREADS = """
import os
import numpy as np
from kdrs.core import ranking
x = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)
before = len(os.listdir("/proc/self/task"))
first = None
for threads in [*range(1, 13), 5, 2]:
    found = ranking.topk(x, x, 5, threads=threads)
    first = found if first is None else first
    assert all(map(np.array_equal, found, first))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")
def test_one_team_serves_calls_of_several_sizes() -> None:
    run = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120, check=True)
    assert int(run.stdout) == 11
