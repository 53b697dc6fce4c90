"""Ranking: metrics worked by hand, refusals, kinds of arrays, many threads, forks, Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrs.core import ranking, sampling
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError


class TestMetrics:
    def test_worked_by_hand(self):
        ranked = np.array([[5, 3, 9, 1], [0, 1, 2, -1], [7, 8, 6, 5]], np.int32)
        truth = Interactions.from_pairs([0, 0, 0, 1], [3, 1, 8, 4], 3, 10)
        m = ranking.metrics(ranked, truth, [2, 4, 6])
        discounts = 1 / np.log2(np.arange(2, 6))
        expected = {
            "hit@2": 1,
            "hit@4": 1,
            "recall@2": 1 / 3,
            "recall@4": 2 / 3,
            "precision@2": 1 / 2,
            "precision@4": 2 / 4,
            "precision@6": 2 / 6,
            "ndcg@2": discounts[1] / discounts[:2].sum(),
            "ndcg@4": (discounts[1] + discounts[3]) / discounts[:3].sum(),
            "mrr@2": 1 / 2,
            "mrr@4": 1 / 2,
            "map@2": (1 / 2) / 2,
            "map@4": (1 / 2 + 2 / 4) / 3,
        }
        for name, value in expected.items():
            assert m[name][0] == pytest.approx(value, rel=1e-14), name
            assert m[name][1] == 0, name
        for name in m:
            assert m[name].dtype == np.float64
            assert np.isnan(m[name][2]), "a query without relevant items"

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**32), st.integers(0, 12), st.lists(st.integers(1, 15), min_size=1, max_size=3))
    def test_against_the_formulas(self, seed, width, ks):
        rng = np.random.default_rng(seed)
        dense = rng.random((6, 20)) < rng.choice([0.0, 0.2, 0.9], 6)[:, None]
        ranked = np.stack([rng.permutation(20)[:width] for _ in range(9)]).astype(np.int32)
        rows = rng.integers(0, 6, 9)
        got = ranking.metrics(ranked, scipy.sparse.csr_array(dense.astype(np.float32)), ks, rows=rows)
        for q, row in enumerate(rows):
            relevant = np.flatnonzero(dense[row])
            for k in ks:
                if not relevant.size:
                    assert np.isnan(got[f"map@{k}"][q])
                    continue
                hits = np.isin(ranked[q, :k], relevant)
                at = np.flatnonzero(hits) + 1
                ideal = min(relevant.size, k)
                assert got[f"hit@{k}"][q] == (at.size > 0)
                assert got[f"recall@{k}"][q] == pytest.approx(at.size / relevant.size)
                assert got[f"precision@{k}"][q] == pytest.approx(at.size / k)
                assert got[f"mrr@{k}"][q] == pytest.approx(1 / at[0] if at.size else 0)
                dcg = (1 / np.log2(at + 1)).sum() / (1 / np.log2(np.arange(1, ideal + 1) + 1)).sum()
                assert got[f"ndcg@{k}"][q] == pytest.approx(dcg)
                assert got[f"map@{k}"][q] == pytest.approx((np.arange(1, at.size + 1) / at).sum() / ideal)

    def test_refusals(self):
        truth = Interactions.from_pairs([0], [0], 1, 2)
        ranked = np.zeros((1, 1), np.int32)
        with pytest.raises(ConfigError, match="metric auc"):
            ranking.metrics(ranked, truth, [1], ["auc"])
        with pytest.raises(ConfigError, match="K is 0"):
            ranking.metrics(ranked, truth, [0])
        with pytest.raises(DataError, match="1 rows for 2 queries"):
            ranking.metrics(np.zeros((2, 1), np.int32), truth, [1])


class TestRefusals:
    q, x = np.ones((3, 4), np.float32), np.ones((5, 4), np.float32)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite_is_named(self, bad):
        q, x, bias = self.q.copy(), self.x.copy(), np.zeros(5, np.float32)
        q[2, 1] = x[4, 3] = bias[3] = bad
        lists = np.zeros((3, 1), np.int32)
        truth = Interactions.from_pairs([0], [0], 3, 5)
        for call in (
            lambda *a, **k: ranking.topk(*a, 2, **k),
            lambda *a, **k: ranking.ranks(*a, truth, **k),
            lambda *a, **k: ranking.candidate_ranks(*a, lists, lists, **k),
        ):
            with pytest.raises(DataError, match="queries: row 2 holds NaN or infinity"):
                call(q, self.x)
            with pytest.raises(DataError, match="items: row 4 holds NaN or infinity"):
                call(self.q, x)
            with pytest.raises(DataError, match="bias: row 3 holds NaN or infinity"):
                call(self.q, self.x, bias=bias)
        with pytest.raises(DataError, match="vectors: row 2"):
            ranking.neighbours(q, 1)

    def test_scores_that_cannot_be_ranked(self):
        scores = np.zeros((3, 4), np.float32)
        scores[1, 0] = -np.inf
        assert ranking.topk_scores(scores, 4).items[1].tolist() == [1, 2, 3, 0]
        for bad in (np.nan, np.inf):
            scores[2, 3] = bad
            with pytest.raises(DataError, match="scores: row 2"):
                ranking.topk_scores(scores, 2)
            with pytest.raises(DataError, match="scores: row 2"):
                ranking.ranks_scores(scores, np.zeros((3, 1), np.int32))

    def test_overflow(self):
        with pytest.raises(DataError, match="would overflow float32"):
            ranking.topk(self.q * 1e20, self.x * 1e20, 2)
        with pytest.raises(DataError, match="queries: row 0"):
            ranking.topk(self.q.astype(np.float64) * 1e300, self.x, 2)

    def test_shapes(self):
        seen = Interactions.from_pairs([0], [0], 3, 5)
        with pytest.raises(DataError, match="queries have dim 4, items 3"):
            ranking.topk(self.q, self.x[:, :3], 2)
        with pytest.raises(DataError, match="`seen` has 5 items, the catalogue 4"):
            ranking.topk(self.q, self.x[:4], 2, seen=seen)
        with pytest.raises(DataError, match="`seen` has 3 rows for 2 queries"):
            ranking.topk(self.q[:2], self.x, 2, seen=seen)
        with pytest.raises(DataError, match="row 3 is outside 0 to 2"):
            ranking.topk(self.q, self.x, 2, seen=seen, rows=[0, 1, 3])
        with pytest.raises(DataError, match="4 biases for 5 items"):
            ranking.topk(self.q, self.x, 2, bias=np.zeros(4))
        with pytest.raises(ConfigError, match="k is -1"):
            ranking.topk(self.q, self.x, -1)
        with pytest.raises(DataError, match="candidates: row 1 holds item 5"):
            ranking.candidate_ranks(self.q, self.x, np.zeros((3, 1), int), np.array([[0], [5], [0]]))
        with pytest.raises(DataError, match="targets: row 0 holds item -2"):
            ranking.ranks(self.q, self.x, np.full((3, 1), -2))
        with pytest.raises(ConfigError, match="metric manhattan"):
            ranking.neighbours(self.x, 1, metric="manhattan")

    def test_settings(self, monkeypatch):
        for bad in ("0", "abc", "-1", "2.5"):
            monkeypatch.setenv("KDRS_NUM_THREADS", bad)
            with pytest.raises(ConfigError, match="KDRS_NUM_THREADS"):
                ranking.topk(self.q, self.x, 1)
        monkeypatch.setenv("KDRS_NUM_THREADS", "3")
        ranking.topk(self.q, self.x, 1)
        with pytest.raises(ConfigError, match="threads is 0"):
            ranking.topk(self.q, self.x, 1, threads=0)
        monkeypatch.setenv("KDRS_SIMD", "sse9")
        with pytest.raises(ConfigError, match="KDRS_SIMD is sse9"):
            ranking.topk(self.q, self.x, 1)


class TestArrays:
    rng = np.random.default_rng(0)
    q, x = rng.standard_normal((20, 6), np.float32), rng.standard_normal((50, 6), np.float32)

    def test_layouts_and_read_only(self):
        expected = ranking.topk(self.q, self.x, 5)
        strided = np.repeat(self.q, 2, axis=0)[::2]
        fortran = np.asfortranarray(self.x)
        for array in (strided, fortran):
            array.flags.writeable = False
        result = ranking.topk(strided, fortran, 5)
        assert np.array_equal(result.items, expected.items)
        assert np.array_equal(ranking.topk(self.q.tolist(), self.x.tolist(), 5).items, expected.items)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
    def test_tensors_of_every_precision(self, dtype):
        q, x = torch.from_numpy(self.q).to(dtype).requires_grad_(), torch.from_numpy(self.x).to(dtype)
        result = ranking.topk(q, x, 5)
        assert result.items.dtype == torch.int32
        expected = ranking.topk(q.detach().float().numpy(), x.float().numpy(), 5)
        assert np.array_equal(result.items.numpy(), expected.items)

    def test_no_copy_of_what_fits(self):
        array = sampling.array_of(torch.from_numpy(self.q), "queries", np.float32, 2)
        assert np.shares_memory(array, self.q)

    def test_empty(self):
        assert ranking.topk(self.q[:0], self.x, 5).items.shape == (0, 5)
        assert ranking.topk(self.q, self.x[:0], 2).items.shape == (20, 0)
        assert ranking.topk(self.q, self.x, 0).items.shape == (20, 0)
        assert ranking.neighbours(self.x[:1], 3).items.shape == (1, 0)
        none = Interactions.from_pairs([], [], 20, 50)
        assert ranking.ranks(self.q, self.x, none).better.size == 0


@pytest.mark.parametrize(
    ("n", "dim", "k", "skewed", "biased"), [(9000, 20, 50, 0, 0), (20000, 8, 10, 1, 1), (6000, 3, 900, 0, 0)]
)
def test_large_catalogues_on_every_path(n, dim, k, skewed, biased, monkeypatch):
    """Sampled thresholds, pruning by length and eight-bit bounds must not show in the result."""
    rng = np.random.default_rng(n)
    q, x = rng.standard_normal((40, dim), np.float32), rng.standard_normal((n, dim), np.float32)
    if skewed:
        x *= rng.pareto(2, (n, 1)).astype(np.float32)
        x[::2] = np.round(x[::2])
        q[::3] = 0
    bias = rng.standard_normal(n).astype(np.float32) * 3 if biased else None
    seen = Interactions.from_pairs(rng.integers(0, 40, 20000), rng.integers(0, n, 20000), 40, n)
    monkeypatch.setenv("KDRS_SIMD", "portable")
    expected = ranking.topk(q, x, k, seen=seen, bias=bias)
    monkeypatch.delenv("KDRS_SIMD")
    result = ranking.topk(q, x, k, seen=seen, bias=bias)
    assert np.array_equal(result.items, expected.items)
    assert np.array_equal(result.scores, expected.scores)
    scores = q @ x.T if bias is None else q @ x.T + bias
    scores[seen.row_of_pair, seen.indices] = -np.inf
    assert np.allclose(-np.sort(-scores)[:, :k], result.scores, rtol=1e-4, atol=1e-4)


def test_adversarial_order(monkeypatch):
    """Every later item is better than all before, and the sample misleads: the best are a few outliers."""
    n = 8192
    x = np.linspace(0, 1, n, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    x[17:25] *= -5
    q = np.array([[1, 1], [-1, -1], [0, 0], [1, -1]], np.float32)
    result = ranking.topk(q, x, 12)
    scores = q @ x.T
    for row in range(4):
        assert np.array_equal(result.items[row], np.lexsort((np.arange(n), -scores[row]))[:12])


@pytest.mark.parametrize("block_bytes", [1, 4000, 2**28])
def test_device_path(block_bytes):
    """The path of other devices, run on the CPU: factors on a grid, so that scores are exact and tie."""
    rng = np.random.default_rng(1)
    q, x = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (40, 200))
    bias = rng.integers(-1, 2, 200).astype(np.float32)
    seen = Interactions.from_pairs(rng.integers(0, 9, 600), rng.integers(0, 200, 600), 9, 200)
    rows = rng.integers(0, 9, 40)
    for k in (0, 1, 30, 200, 210):
        expected = ranking.topk(q, x, k, seen=seen, rows=rows, bias=bias)
        result = ranking.topk_on_device(
            torch.from_numpy(q), torch.from_numpy(x), k, seen=seen, rows=rows, bias=bias, block_bytes=block_bytes
        )
        assert np.array_equal(result.items.numpy(), expected.items)
        assert np.array_equal(result.scores.numpy(), expected.scores)
    broken = torch.from_numpy(x).clone()
    broken[3, 0] = torch.nan
    with pytest.raises(DataError, match="items: row 3"):
        ranking.topk_on_device(torch.from_numpy(q), broken, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_path_on_cuda():
    rng = np.random.default_rng(1)
    q, x = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (40, 200))
    result = ranking.topk(torch.from_numpy(q).cuda(), torch.from_numpy(x).cuda(), 20)
    assert result.items.is_cuda
    assert np.array_equal(result.items.cpu().numpy(), ranking.topk(q, x, 20).items)


def work(seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    q, x = rng.standard_normal((200, 8), np.float32), rng.standard_normal((5000, 8), np.float32)
    seen = Interactions.from_pairs(rng.integers(0, 200, 2000), rng.integers(0, 5000, 2000), 200, 5000)
    drawn = sampling.negatives(seen, np.repeat(np.arange(200), 200), seed=seed, threads=4)
    return ranking.topk(q, x, 10, seen=seen, threads=4).items.tobytes() + drawn.tobytes()


class TestProcesses:
    def test_from_several_threads_at_once(self):
        expected = [work(seed) for seed in range(6)]
        results: dict[int, bytes] = {}

        def run(seed: int) -> None:
            results[seed] = work(seed)

        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [results[seed] for seed in range(6)] == expected

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_fork_after_use(self):
        expected = work()
        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:
            assert pool.map_async(work, [0, 0, 0]).get(timeout=30) == [expected] * 3
        assert work() == expected

    def test_other_threads_run_meanwhile(self):
        rng = np.random.default_rng(0)
        q, x = rng.standard_normal((3000, 64), np.float32), rng.standard_normal((20000, 64), np.float32)
        ticks = []
        done = threading.Event()

        def tick() -> None:
            while not done.is_set():
                ticks.append(time.monotonic())
                time.sleep(0.001)

        ticker = threading.Thread(target=tick)
        ticker.start()
        start = time.monotonic()
        ranking.topk(q, x, 10, threads=1)
        end = time.monotonic()
        done.set()
        ticker.join()
        assert sum(start < moment < end for moment in ticks) >= min(3, (end - start) / 0.05)

    @pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name != "posix", reason="needs POSIX signals")
    def test_ctrl_c_ends_a_long_call(self):
        """A call of minutes ends within seconds of the signal, with KeyboardInterrupt."""
        program = """if True:
            import numpy as np, signal, sys
            from kdrs.core import ranking
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            x = np.random.default_rng(0).standard_normal((200_000, 64), dtype=np.float32)
            print("ready", flush=True)
            try:
                ranking.neighbours(x, 10)
            except KeyboardInterrupt:
                sys.exit(77)
        """
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 77
        process.stdout.close()
