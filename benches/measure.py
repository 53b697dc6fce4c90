"""Timing for the programs beside it: peers in turn, medians, ratios, a table or JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdrs.data.interactions import Interactions

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("KDRS_DATA", ROOT.parent / "shared" / "data"))


BEST = False
# OpenMP's and OpenBLAS's threads keep spinning for up to 30 ms after a call, on processors that the next call needs.
SETTLE = 0.05


def times(calls: dict[str, Callable[[], Any]], repeats: int, seconds: float = 20.0) -> dict[str, float]:
    """Median seconds of each call (the least, with ``--best``).

    The calls take turns, so that what disturbs the machine disturbs them alike; none is repeated once it has used up
    ``seconds``.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        start = time.perf_counter()
        call()
        if time.perf_counter() - start > seconds:
            taken[name].append(time.perf_counter() - start)
    for _ in range(repeats):
        for name, call in calls.items():
            if sum(taken[name]) < seconds:
                time.sleep(SETTLE)
                start = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - start)
    return {name: min(values) if BEST else statistics.median(values) for name, values in taken.items()}


def arguments(description: str | None, *, record: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if record:
        parser.add_argument("--record", type=Path, help="write a record of docs/results instead of tables")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--best", action="store_true", help="the least of the repeats instead of their median")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    global BEST
    BEST = options.best
    import torch

    torch.set_num_threads(options.threads)
    return options


def report(title: str, rows: list[dict[str, Any]], options: argparse.Namespace, notes: list[str] | None = None) -> None:
    """Prints the rows; each is a flat dict with the same keys."""
    if options.json:
        print(json.dumps({"title": title, "machine": machine(), "rows": rows, "notes": notes or []}))
        return
    print(f"\n## {title}\n")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(shown(row.get(column)) for column in columns) + " |")
    for note in notes or []:
        print(f"\n{note}")


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), model
        )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "processor": model,
        "processors": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
    }


def citeulike() -> Interactions:
    """The leave-one-out training split of CiteULike, or made-up pairs of its size where the data are absent."""
    path = DATA / "citeulike_loo" / "train.tsv"
    if path.exists():
        users, items = np.loadtxt(path, skiprows=1, dtype=np.int64).T
        return Interactions.from_pairs(users, items, 5219, 25182)
    return made_up(5219, 25182, 115_142)


def movielens() -> Interactions:
    path = DATA / "ml-100k" / "ml-100k.inter"
    if path.exists():
        pairs = np.loadtxt(path, skiprows=1, usecols=(0, 1), dtype=np.int64) - 1
        return Interactions.from_pairs(pairs[:, 0], pairs[:, 1])
    return made_up(943, 1682, 100_000)


def made_up(n_users: int, n_items: int, n_pairs: int, seed: int = 0) -> Interactions:
    """Pairs of Zipf-like users and items."""
    rng = np.random.default_rng(seed)
    users = (n_users * rng.random(n_pairs) ** 2).astype(np.int64)
    items = (n_items * rng.random(n_pairs) ** 2).astype(np.int64)
    return Interactions.from_pairs(users, items, n_users, n_items)


def factors(n_queries: int, n_items: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal factors: the hardest case, since no length tells items apart."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n_queries, dim), np.float32), rng.standard_normal((n_items, dim), np.float32)


def spectral_factors(seen: Interactions, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Truncated singular vectors of the interactions: factors with the lengths of trained ones."""
    import scipy.sparse.linalg

    u, s, v = scipy.sparse.linalg.svds(seen.to_csr(), k=dim, random_state=0)
    return np.ascontiguousarray(u * np.sqrt(s), np.float32), np.ascontiguousarray((v.T * np.sqrt(s)), np.float32)
