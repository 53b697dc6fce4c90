"""Seconds an epoch of BPR training on CiteULike's leave-one-out split, beside the plain torch loop.

    python benches/epochs.py [--repeats 5] [--json]

The plain loop is what published code does: dense embedding gradients and torch.optim.Adam; its negatives and batches are made
beforehand and not counted, while kdrs's time includes its own. Needs datasets/citeulike_loo (see benches/reproduce.py).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # both as the command line does, before torch is loaded
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
import torch.nn.functional as F
from torch import nn

from kdrs.data import Dataset
from kdrs.fitting.learner import Learner
from kdrs.models import BPR
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch


def kdrs_epoch(task: PairTask, dim: int, optimizer: str) -> Callable[[int], None]:
    learner = Learner(BPR(BPR.Config(dim=dim), task), task, weight_decay=1e-3, optimizer=optimizer)

    def run(index: int) -> None:
        epoch = Epoch(index, 0, 1000)
        learner.start(epoch, [])
        for batch in task.draw(epoch):
            learner.step_alone(batch)
        learner.finish()

    return run


def plain_epoch(task: PairTask, dim: int) -> Callable[[int], None]:
    users, items = nn.Embedding(task.n_users, dim), nn.Embedding(task.n_items, dim)
    for table in (users, items):
        nn.init.normal_(table.weight, std=0.01)
    optimizer = torch.optim.Adam([users.weight, items.weight], lr=1e-3, weight_decay=1e-3)
    batches = [(b.queries.users, b.positives, b.negatives[:, 0]) for b in task.draw(Epoch(0, 0, 1000))]

    def run(index: int) -> None:
        for user, positive, negative in batches:
            p = users(user)
            loss = F.softplus((p * items(negative)).sum(-1) - (p * items(positive)).sum(-1)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("datasets/citeulike_loo"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    task = PairTask(Dataset.load(options.data).train)
    found = []
    for dim in (20, 200):
        runs = {
            "plain torch loop": plain_epoch(task, dim),
            "kdrs, adam": kdrs_epoch(task, dim, "adam"),
            "kdrs, lazy-adam": kdrs_epoch(task, dim, "lazy-adam"),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for index in range(options.repeats + 1):  # in turn, so that all see the same machine; the first warms up
            for name, run in runs.items():
                began = time.perf_counter()
                run(index)
                times[name].append(time.perf_counter() - began)
        plain = statistics.median(times["plain torch loop"][1:])
        for name, seconds in times.items():
            median = statistics.median(seconds[1:])
            row = {"dim": dim, "loop": name, "seconds": round(median, 4), "of_plain": round(median / plain, 2)}
            found.append(row | {"least": round(min(seconds[1:]), 4), "threads": torch.get_num_threads()})
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("| dim | loop | seconds an epoch (median) | least | of the plain loop |\n|---|---|---|---|---|")
        for row in found:
            print(
                f"| {row['dim']} | {row['loop']} | {row['seconds']:.3f} | {row['least']:.3f} | {row['of_plain']:.2f} |"
            )


if __name__ == "__main__":
    main()
