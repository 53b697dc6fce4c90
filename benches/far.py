"""A run far past the research sets: 5 million users, 1 million items, 100 million pairs, two processes by columns.

    python benches/far.py [--users 5000000 --items 1000000 --pairs 100000000] [--seconds 240] [--record docs/results/far.json]

BPR of 16 dimensions, ``lazy-adam``, batches of 65,536, ``train.shard = "columns"``, two gloo processes with a thread each. Of
the one epoch as many steps are taken as fit into ``--seconds``; what the machine held at most is sampled every second, both
processes together (proportional set size: shared pages count once).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # both as the command line does, before torch is loaded
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def made(users: int, items: int, pairs: int, out: Path) -> float:
    """A data set: popularity falls with the square root of an item's rank. Returns seconds."""
    import numpy as np

    from kdrs.data import Dataset, Interactions

    began = time.perf_counter()
    rng, degree = np.random.default_rng(0), pairs // users
    indices = np.empty((users, degree), np.int32)
    for first in range(0, users, 500_000):  # blocks of a few hundred megabytes
        block = (items * rng.random((min(500_000, users - first), degree)) ** 2).astype(np.int32)
        block.sort(axis=1)
        # a repeated item gives way to the next id: rows stay sorted and distinct
        for column in range(1, degree):
            np.maximum(block[:, column], block[:, column - 1] + 1, out=block[:, column])
        block -= np.maximum(block[:, -1:] - (items - 1), 0)  # a row that was pushed past the end
        indices[first : first + len(block)] = np.maximum(block, np.arange(degree))
    indptr = np.arange(0, users * degree + 1, degree, dtype=np.int64)
    few = indices[:1000]  # a run must have something to measure
    held = np.where(few[:, -1] + 1 < items, few[:, -1] + 1, few[:, 0] - 1)
    test = Interactions.from_pairs(np.arange(len(few)), held, users, items)
    train = Interactions(indptr, indices.reshape(-1), (users, items))
    Dataset.from_interactions(train, test=test, name="far").save(out)
    return time.perf_counter() - began


class Enough(Exception):
    """The time is up."""


def work(values: dict[str, Any], out: str, told: str, seconds: float) -> None:
    """One process of the run: as many steps of its epoch as fit."""
    from kdrs.fitting import fit as fitting
    from kdrs.runs.config import resolve
    from kdrs.runs.execute import execute
    from kdrs.training.processes import joined

    with joined() as group:
        assert group is not None
        found: dict[str, Any] = {}
        ends: list[float] = []
        step_of, train_epoch = fitting.step_of, fitting._train_epoch

        def counted(learners: Any, batch: Any) -> Any:
            now = time.perf_counter()
            found.setdefault("began", now)
            found.setdefault("sent", group.sent)
            if len(ends) % 16 == 15 and group.any(now - found["began"] > seconds)[0]:  # all leave at the same step
                raise Enough
            parts = step_of(learners, batch)
            ends.append(time.perf_counter())
            return parts

        def kept(learners: Any, draws: Any, *rest: Any) -> Any:
            found.update(learners=learners, of=len(draws.batches))
            return train_epoch(learners, draws, *rest)

        fitting.step_of, fitting._train_epoch = counted, kept
        with contextlib.suppress(Enough):
            execute(resolve(values), out)
        if group.first:
            state = [t for one in found["learners"] for t in one.optimizer.state().values()]
            tables = [p for one in found["learners"] for p in one.optimizer.parameters.values()]
            answer = {
                "steps": len(ends),
                "of": found["of"],
                "seconds": (ends[-1] - ends[0]) / max(1, len(ends) - 1),
                "sent": (group.sent - found["sent"]) / len(ends),
                "held": sum(tensor.nbytes for tensor in (*state, *tables)),
            }
            Path(told).write_text(json.dumps(answer))


def proportional(pids: list[int]) -> int:
    """Bytes of processes, shared pages divided among those that share them."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def children(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        for listed in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in listed.read_text().split()]
            except OSError:
                continue
    return found


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(json.loads(sys.argv[2]), sys.argv[3], sys.argv[4], float(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=5_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=100_000_000)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--folder", help="where the data set may lie meanwhile")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        place = Path(scratch)
        sizes = f"{options.users}, {options.items}, {options.pairs}"
        code = f"import far, pathlib; print(far.made({sizes}, pathlib.Path({str(place / 'data')!r})))"
        own = Path(__file__).parent  # in a process of its own: it gives its memory back
        done = subprocess.run([sys.executable, "-c", code], check=True, cwd=own, stdout=subprocess.PIPE, text=True)
        making = float(done.stdout)
        print(f"data set made in {making:.0f} s", file=sys.stderr, flush=True)
        values = {
            "data": {"path": str(place / "data")},
            "model": {"name": "bpr", "dim": 16},
            "train": {
                "epochs": 1,
                "batch_size": 65_536,
                "optimizer": "lazy-adam",
                "shard": "columns",
                "weight_decay": 0.0,
            },
            "device": "cpu",
            "threads": 1,
        }
        told = place / "told.json"
        words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", __file__, "--work"]
        words += [json.dumps(values), str(place / "run"), str(told), str(options.seconds)]
        began, most = time.perf_counter(), 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "KDRS_NUM_THREADS": "1"}
        process = subprocess.Popen(words, env=environment)
        ended = threading.Event()

        def watch() -> None:
            nonlocal most
            while not ended.wait(1.0):
                most = max(most, proportional(children(process.pid)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code_of_run = process.wait()
        ended.set()
        watcher.join()
        if code_of_run or not told.exists():
            raise SystemExit(f"the run ended with code {code_of_run}")
        found = json.loads(told.read_text())
        whole = time.perf_counter() - began
    columns = [
        "users", "items", "pairs", "steps", "of an epoch's", "seconds a step", "million pairs a second", "epoch, minutes",
        "bytes sent a step", "tables and moments a process", "most memory, both", "seconds in all",
    ]  # fmt: skip
    row = [
        f"{options.users:,}", f"{options.items:,}", f"{options.pairs:,}", f"{found['steps']:,}", f"{found['of']:,.0f}",
        f"{found['seconds']:.3f}", f"{65_536 / found['seconds'] / 1e6:.2f}", f"{found['of'] * found['seconds'] / 60:.1f}",
        f"{found['sent']:,.0f}", f"{found['held'] / 1e6:,.0f} MB", f"{most / 2**30:.1f} GiB", f"{whole:.0f}",
    ]  # fmt: skip
    print(json.dumps(dict(zip(columns, row, strict=True)), indent=1))
    if options.record:
        options.record.write_text(
            json.dumps(recorded(columns, row, making), indent=1, ensure_ascii=False) + "\n", "utf-8"
        )


def recorded(columns: list[str], row: list[str], making: float) -> dict[str, Any]:
    from measure import machine

    own = machine()
    return {
        "title": "Far: 5 million users",
        "question": "Does a run past the research sets fit into one small machine?",
        "answer": [
            f"{row[2]} pairs of {row[0]} users and {row[1]} items train within {row[10]}; an epoch takes {row[7]} minutes."
        ],
        "figures": [
            {
                "title": "BPR of 16 dimensions, two processes by columns",
                "command": "`python benches/far.py --record docs/results/far.json`",
                "machine": f"{own['processor']}, {own['processors']} processors, load {own['load']:.1f}",
                "commit": own["commit"],
                "reading": [
                    "lazy-adam, batches of 65,536, one thread a process, gloo. Steps are a share of one epoch.",
                    "Memory is sampled every second, both processes together, shared pages once.",
                    f"The data set was made and saved in {making:.0f} s before, and is not counted.",
                ],
                "columns": columns,
                "rows": [row],
            }
        ],
    }


if __name__ == "__main__":
    main()
