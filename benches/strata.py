"""What a student kept of its teacher, by depth of the teacher's list: two Markdown tables of finished runs.

    python benches/strata.py --data datasets/citeulike_loo --teacher runs/reproduce/teacher runs/reproduce/cd/seed-0 ...

First: shares of the teacher's first 10, 50 and 100 unseen items that are among the model's own first as many, and how many
held-out test items are among its first 10 and 50 of the whole catalogue (less training items). Then hits among the first
five of the data set's candidates, apart by the teacher's rank of the held-out item in that catalogue. Dot-product models; one
test item a user. "20 singular vectors" is the closest approximation of the teacher's scores of that many dimensions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import kdrs
from kdrs.core import ranking

DEPTHS = (10, 50, 100)
STRATA = ((1, 10), (11, 50), (51, 200), (201, 800), (801, None))


def factors_of(run: Path, data: kdrs.Dataset) -> tuple[np.ndarray, np.ndarray]:
    found = kdrs.load_run(run, data).teacher().factors()
    if found is None or found.bias is not None:
        raise SystemExit(f"{run}: not a dot product without biases")
    return found.queries.numpy(), found.items.numpy()


def approximated(queries: np.ndarray, items: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Truncated singular value decomposition of queries @ items.T."""
    (q, r), (p, s) = np.linalg.qr(queries), np.linalg.qr(items)
    left, values, right = np.linalg.svd(r @ s.T)
    return (q @ (left[:, :dim] * values[:dim])).astype(np.float32), (p @ right[:dim].T).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--dim", type=int, default=20, help="singular vectors of the teacher's scores to compare with")
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    data = kdrs.Dataset.load(options.data)
    if data.candidates is None or (data.test.row_degrees != 1).any():
        raise SystemExit(f"{options.data} has no candidates, or not one test item for each user")
    models = {"teacher": factors_of(options.teacher, data)}
    name = lambda run: run.parent.name if run.name.startswith("seed-") else run.name
    models |= {name(run): factors_of(run, data) for run in options.runs}
    models[f"{options.dim} singular vectors"] = approximated(*models["teacher"], options.dim)
    lists = {name: ranking.topk(*own, DEPTHS[-1], seen=data.train).items for name, own in models.items()}
    ranks = {name: ranking.ranks(*own, data.test, seen=data.train).better + 1 for name, own in models.items()}
    targets = data.test.indices[:, None]
    hits = {
        name: ranking.candidate_ranks(*own, targets, data.candidates).better[:, 0] < 5 for name, own in models.items()
    }
    print("| model | " + " | ".join(f"of the first {k}" for k in DEPTHS) + " | Recall@10 | Recall@50 |")
    print("|---|" + "---|" * (len(DEPTHS) + 2))
    for name, own in lists.items():
        shares = [
            np.mean([np.intersect1d(a[:k], b[:k]).size / k for a, b in zip(own, lists["teacher"], strict=True)])
            for k in DEPTHS
        ]
        values = [f"{x:.3f}" for x in shares] + [f"{(ranks[name] <= k).mean():.4f}" for k in (10, 50)]
        print(f"| {name} | " + " | ".join(values) + " |")
    print("\n| teacher's rank | users | " + " | ".join(models) + " |\n|---|---|" + "---|" * len(models))
    for first, last in (*STRATA, (1, None)):
        here = (ranks["teacher"] >= first) & (ranks["teacher"] <= (last or np.inf))
        label = "all" if (first, last) == (1, None) else f"{first} to {last}" if last else f"{first} and on"
        print(f"| {label} | {here.sum():,} | " + " | ".join(f"{own[here].mean():.3f}" for own in hits.values()) + " |")


if __name__ == "__main__":
    main()
