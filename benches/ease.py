"""EASE (Steck, WWW 2019) in closed form, on users that it was not trained on: what is in the data for new users.

    python benches/ease.py DATASET [--reg 20]

One user in five is left out, the same as by `new_users.py`. Of fewer users than items the item-item matrix is never made: its
inverse is worked out over the users (Woodbury). Prints NDCG@10 over all items, of the left-out users and of the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import kdrs
from frontier import METRICS
from new_users import HELD


def ease(train: Any, reg: float) -> Any:
    """Scores of histories float32 [B, I]: x - (x P) / diag P, with P the inverse of XᵀX + reg I; X is ``train`` [U, I]."""
    square = (train @ train.T).toarray().astype(np.float32)
    square[np.diag_indices_from(square)] += reg
    solved = np.asarray(train.T @ np.linalg.inv(square), np.float32)  # [I, U]
    dense = train.toarray().astype(np.float32)
    diagonal = (1 - np.einsum("iu,ui->i", solved, dense)) / reg
    return lambda x: x - (x - (x @ solved) @ dense) / reg / diagonal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--reg", type=float, default=20.0)
    options = parser.parse_args()
    data = kdrs.Dataset.load(options.dataset)
    held = np.random.default_rng(0).permutation(data.n_users)[: data.n_users // HELD]
    whole = data.train.to_csr().astype(np.float32)
    scores = ease(whole[~np.isin(np.arange(data.n_users), held)], options.reg)
    evaluator = kdrs.Evaluator.of(data, kdrs.protocols.protocol("default"))
    reports = evaluator(lambda rows: scores(whole[np.asarray(rows)].toarray()))
    for part, report in reports.items():
        new, values = np.isin(report.rows, held), report.values[METRICS[0]]
        print(f"{part}: new {values[new].mean():.4f}, others {values[~new].mean():.4f}")


if __name__ == "__main__":
    main()
