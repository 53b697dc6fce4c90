"""Full-catalogue evaluation: top-50, Recall and NDCG of every user."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch

from kdrs.core import ranking
from kdrs.data.interactions import Interactions
from measure import arguments, citeulike, factors, report, times

K = 50


def main() -> None:
    options = arguments(__doc__)
    seen = citeulike()
    n_users, n_items = seen.shape
    rng = np.random.default_rng(1)
    truth = Interactions.from_pairs(
        np.repeat(np.arange(n_users), 2), rng.integers(0, n_items, 2 * n_users), *seen.shape
    )
    truth_csr, seen_csr = (scipy.sparse.csr_matrix(side.to_csr()) for side in (truth, seen))
    gains = 1 / np.log2(np.arange(2, K + 2))
    ideal = np.concatenate([[1], np.cumsum(gains)])[np.minimum(truth.row_degrees, K)]

    def by_matrix(ids: np.ndarray) -> tuple[float, float]:
        hits = np.asarray(truth_csr[np.repeat(np.arange(n_users), K), ids.ravel()]).reshape(ids.shape)
        return (hits.sum(1) / truth.row_degrees.clip(1)).mean(), ((hits * gains).sum(1) / ideal).mean()

    rows = []
    for dim in (20, 200):
        q, x = factors(n_users, n_items, dim)
        tq, tx, out = torch.from_numpy(q), torch.from_numpy(x), torch.empty(n_users, n_items)
        users, items = torch.tensor(seen.row_of_pair).long(), torch.tensor(seen.indices).long()

        def ours(q: Any = q, x: Any = x) -> None:
            lists = ranking.topk(q, x, K, seen=seen, threads=options.threads).items
            ranking.metrics(lists, truth, [K], ["recall", "ndcg"], threads=options.threads)

        def by_torch(tq: Any = tq, tx: Any = tx, out: Any = out, pairs: Any = (users, items)) -> None:
            scores = torch.mm(tq, tx.T, out=out)
            scores[pairs] = -torch.inf
            by_matrix(scores.topk(K).indices.numpy().copy())

        calls: dict[str, Any] = {"kdrs": ours, "torch + NumPy": by_torch}
        try:
            from implicit.cpu.topk import topk as implicit_topk

            def by_implicit(q: Any = q, x: Any = x) -> None:
                by_matrix(implicit_topk(x, q, K, filter_query_items=seen_csr, num_threads=options.threads)[0])

            calls["implicit + NumPy"] = by_implicit
        except ImportError:
            pass
        try:
            from irspack.evaluation import Evaluator

            calls["irspack"] = irspack_call(Evaluator, q, x, seen_csr, truth_csr, options.threads)
        except (ImportError, TypeError, AttributeError) as error:
            print(f"irspack left out: {error}")
        ms = {name: t * 1e3 for name, t in times(calls, options.repeats, 8).items()}
        best = min(value for name, value in ms.items() if name != "kdrs")
        rows.append({"dim": dim} | {f"{n}, ms": v for n, v in ms.items()} | {"times best peer": best / ms["kdrs"]})
    report("Full evaluation, 5,219 x 25,182", rows, options)


def irspack_call(evaluator_class: Any, q: np.ndarray, x: np.ndarray, seen: Any, truth: Any, threads: int) -> Any:
    from irspack.recommenders.base import BaseRecommender

    class Factors(BaseRecommender):
        def __init__(self) -> None:
            super().__init__(scipy.sparse.csr_matrix(seen))

        def _learn(self) -> None:
            pass

        def get_score(self, user_indices: Any) -> Any:
            return q[user_indices] @ x.T

        def get_score_block(self, begin: int, end: int) -> Any:
            return q[begin:end] @ x.T

    model = Factors()
    evaluator = evaluator_class(scipy.sparse.csr_matrix(truth), cutoff=K, n_threads=threads)
    evaluator.get_score(model)
    return lambda: evaluator.get_score(model)


if __name__ == "__main__":
    main()
