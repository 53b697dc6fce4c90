"""Peak memory of training and full evaluation, beside what the data, the model and the optimizer need.

    python benches/memory.py [citeulike gowalla synthetic] [--json]

Each case runs in a process of its own: one epoch (CiteULike, Gowalla: three) and a full-ranking evaluation. The bound is
1.5 x (interactions + parameters + optimizer state) + what importing torch takes + 300 MB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

CASES = {
    "citeulike": {"dim": 200, "batch_size": 1024, "epochs": 3},
    "gowalla": {"dim": 64, "batch_size": 2048, "epochs": 3},
    "synthetic": {"dim": 32, "batch_size": 8192, "epochs": 1},
}


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def interactions(name: str) -> tuple:
    """Train and test interactions."""
    import numpy as np

    from kdrs.data import Dataset, Interactions

    if name != "synthetic":
        known = "citeulike-loo" if name == "citeulike" else name
        path = Path("datasets") / known.replace("-", "_")
        if not path.exists():
            subprocess.run([sys.executable, "-m", "kdrs", "data", "prepare", known, "--out", str(path)], check=True)
        data = Dataset.load(path)
        return data.train, data.test
    n_users, n_items, n_pairs = 300_000, 100_000, 10_000_000
    rng = np.random.default_rng(0)
    keys = np.empty(0, np.int64)
    while keys.size < n_pairs + n_users:  # popular items are drawn more often
        users = rng.integers(0, n_users, n_pairs // 4)
        items = (n_items * rng.random(n_pairs // 4) ** 2).astype(np.int64)
        keys = np.union1d(keys, users * n_items + items)
    keys = rng.permutation(keys)[: n_pairs + n_users]
    users, items = np.divmod(keys, n_items)
    train = Interactions.from_pairs(users[n_users:], items[n_users:], n_users, n_items)
    return train, Interactions.from_pairs(users[:n_users], items[:n_users], n_users, n_items)


def build(name: str, folder: Path) -> None:
    """Writes the interactions, so that making them does not count."""
    import numpy as np

    train, test = interactions(name)
    for part, pairs in (("train", train), ("test", test)):
        np.savez(folder / f"{name}-{part}.npz", indptr=pairs.indptr, indices=pairs.indices, shape=pairs.shape)


def measure(name: str, folder: Path) -> dict:
    import torch

    after_torch = megabytes()
    import numpy as np

    from kdrs.data import Interactions
    from kdrs.evaluation.evaluator import Evaluator
    from kdrs.fitting.fit import fit
    from kdrs.fitting.learner import Learner
    from kdrs.models import BPR
    from kdrs.training.pairs import PairTask

    def load(part: str) -> Interactions:
        with np.load(folder / f"{name}-{part}.npz", allow_pickle=False) as stored:
            return Interactions(stored["indptr"], stored["indices"], tuple(int(n) for n in stored["shape"]))

    case, train, test = CASES[name], load("train"), load("test")
    task = PairTask(train, batch_size=case["batch_size"])
    torch.manual_seed(0)
    learner = Learner(BPR(BPR.Config(dim=case["dim"]), task), task, weight_decay=1e-3)
    fit(learner, task, epochs=case["epochs"])
    trained = megabytes()
    report = Evaluator(train, test)(learner.knowledge)["test"]
    parameters = 4 * sum(p.numel() for p in learner.model.parameters())
    needed = (8 * train.indptr.size + 4 * train.indices.size + 3 * parameters) / 2**20
    return {
        "case": name,
        "users": train.shape[0],
        "items": train.shape[1],
        "pairs": train.n_pairs,
        "dim": case["dim"],
        "torch_mb": round(after_torch),
        "needed_mb": round(needed),
        "peak_after_training_mb": round(trained),
        "peak_mb": round(megabytes()),
        "bound_mb": round(1.5 * needed + after_torch + 300),
        "recall@20": round(report.mean("recall@20"), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("runs/memory"))
    parser.add_argument("--step", choices=("build", "measure"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.step:
        (name,) = options.cases
        if options.step == "build":
            build(name, options.folder)
        else:
            print(json.dumps(measure(name, options.folder)))
        return
    found = []
    for name in options.cases:
        command = [sys.executable, __file__, name, "--folder", str(options.folder), "--step"]
        subprocess.run([*command, "build"], check=True)
        output = subprocess.run([*command, "measure"], check=True, capture_output=True, text=True).stdout
        found.append(json.loads(output.splitlines()[-1]))
        if not options.json:
            row = found[-1]
            verdict = "within" if row["peak_mb"] <= row["bound_mb"] else "ABOVE"
            print(f"{name}: peak {row['peak_mb']} MB, {verdict} the bound of {row['bound_mb']} MB; {row}", flush=True)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
