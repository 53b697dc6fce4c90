"""Masked top-50 lists of all users, against a bare matrix product and the peers."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch

from kdrs.core import ranking
from measure import arguments, citeulike, factors, made_up, report, spectral_factors, times

K = 50


def peers(q: np.ndarray, x: np.ndarray, seen: Any, threads: int) -> dict[str, Any]:
    """Every way of doing it that is installed, and ours."""
    tq, tx = torch.from_numpy(q), torch.from_numpy(x)
    step = max(1, 2**29 // (4 * len(x)))
    out = torch.empty(min(step, len(q)), len(x))
    users, items = torch.tensor(seen.row_of_pair).long(), torch.tensor(seen.indices).long()
    starts = seen.indptr

    def product() -> None:
        for start in range(0, len(q), step):
            part = tq[start : start + step]
            torch.mm(part, tx.T, out=out[: len(part)])

    def by_torch() -> None:
        for start in range(0, len(q), step):
            part = tq[start : start + step]
            scores = torch.mm(part, tx.T, out=out[: len(part)])
            pairs = slice(starts[start], starts[start + len(part)])
            scores[users[pairs] - start, items[pairs]] = -torch.inf
            scores.topk(K)

    def by_numpy() -> None:
        for start in range(0, len(q), 512):
            scores = q[start : start + 512] @ x.T
            pairs = slice(starts[start], starts[start + len(scores)])
            scores[seen.row_of_pair[pairs] - start, seen.indices[pairs]] = -np.inf
            best = np.argpartition(scores, -K, axis=1)[:, -K:]
            np.take_along_axis(scores, best, 1).argsort(axis=1)

    calls = {
        "kdrs": lambda: ranking.topk(q, x, K, seen=seen, threads=threads),
        "torch.mm": product,
        "torch mask + topk": by_torch,
        "NumPy argpartition": by_numpy,
    }
    try:
        from implicit.cpu.topk import topk as implicit_topk

        matrix = scipy.sparse.csr_matrix(seen.to_csr())
        calls["implicit"] = lambda: implicit_topk(x, q, K, filter_query_items=matrix, num_threads=threads)
    except ImportError:
        pass
    try:
        import faiss

        faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(x.shape[1])
        index.add(x)
        calls["faiss flat, no mask"] = lambda: index.search(q, K)
    except ImportError:
        pass
    return calls


def main() -> None:
    options = arguments(__doc__)
    seen = citeulike()
    large = made_up(4096, 100_000, 400_000)
    cases = [(f"normal, {d}", seen, factors(*seen.shape, d)) for d in (20, 64, 200)]
    cases += [(f"spectral, {d}", seen, spectral_factors(seen, d)) for d in (20, 64)]
    cases.append(("normal, 64", large, factors(*large.shape, 64)))
    rows = []
    for name, pairs, (q, x) in cases:
        ms = {peer: t * 1e3 for peer, t in times(peers(q, x, pairs, options.threads), options.repeats, 8).items()}
        masking = [ms[p] for p in ("torch mask + topk", "NumPy argpartition", "implicit") if p in ms]
        rows.append(
            {"factors, dim": name, "queries x items": f"{len(q):,} x {len(x):,}"}
            | {f"{peer}, ms": value for peer, value in ms.items()}
            | {
                "of torch.mm": ms["kdrs"] / ms["torch.mm"],
                "times best that masks": min(masking) / ms["kdrs"],
                "GFLOP/s": 2e-6 * q.size * len(x) / ms["kdrs"],
            }
        )
    report("Masked top-50", rows, options)


if __name__ == "__main__":
    main()
