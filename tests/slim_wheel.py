"""Uses a slim installation: python tests/slim_wheel.py, where kdrs, NumPy and safetensors are all that is installed.

Draws, ranks, evaluates, writes a student and serves it; prints the versions. Run by the workflows on each wheel.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import kdrs
from kdrs.compact.encoders import SumEncoder
from kdrs.compact.tables import Tables, short


def main() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(40, 8)).astype(np.float32), rng.normal(size=(90, 8)).astype(np.float32)
    scores = users @ items.T
    best = kdrs.ranking.topk(users, items, 10)
    assert (best.items == np.argsort(-scores, axis=1, kind="stable")[:, :10]).all()

    seen = kdrs.Interactions.from_pairs(*np.nonzero(rng.random((40, 90)) < 0.2), 40, 90)
    rows = np.arange(40)
    drawn = kdrs.sampling.negatives(seen, rows, 5, seed=kdrs.sampling.stream(0, "negatives", 0))
    assert not any(np.isin(drawn[row], seen.indices[seen.indptr[row] : seen.indptr[row + 1]]).any() for row in rows)

    truth = kdrs.Interactions.from_pairs(rows, best.items[:, 0], 40, 90)
    nothing = kdrs.Interactions.from_pairs([], [], 40, 90)
    assert kdrs.Evaluator(nothing, truth)((users, items))["test"].mean("ndcg@10") == 1.0

    names = (
        kdrs.Names.of([f"item {n}" for n in range(90)], "item"),
        kdrs.Names.of([f"user {n}" for n in range(40)], "user"),
    )
    with tempfile.TemporaryDirectory() as folder:
        for bits in (32, 2):
            side, own = (
                (items, users) if bits == 32 else (short(kdrs.Codes.of(items, bits)), short(kdrs.Codes.of(users, bits)))
            )
            encoder = SumEncoder(np.eye(8, dtype=np.float32))
            path = Path(folder) / f"student-{bits}.safetensors"
            kdrs.Student(Tables(side, own, encoder, None), *names, seen=seen).save(path)
            student = kdrs.Student.load(path)
            found = student.recommend(["user 3", "user 7"], 5, seen=False)
            if bits == 32:
                assert found.items.tolist() == [[f"item {n}" for n in best.items[row, :5]] for row in (3, 7)]
            ((_, fresh),) = student.recommend(histories=[["item 1", "item 2"]], k=5)
            assert len(fresh) == 5
            assert not {"item 1", "item 2"} & {item for item, _ in fresh}
            assert student.similar(["item 4"], 3).items.shape == (1, 3)
            del student, found  # Windows removes no file that is mapped
    heavy = sorted({"torch", "polars", "scipy", "pydantic", "typer"} & set(sys.modules))
    assert not heavy, heavy
    print(f"kdrs {kdrs.__version__} with NumPy {np.__version__} alone: works")


if __name__ == "__main__":
    main()
