"""Two processes against one: metrics, bytes that travel, seconds an epoch, memory a process.

    python benches/processes.py DATASET [DATASET ...] [--repeats 3] [--epochs 8] [--record docs/results/processes.json]

BPR, LightGCN, CD and DE (BPR students of a BPR teacher of 64 dimensions), 32 dimensions, batches of 1,024, on prepared data
sets. Ways: one process with two threads; two with a thread each by gloo, batches divided; two by columns (``train.shard``). The
ways take turns, so that what disturbs the machine disturbs them alike; seconds are medians over all epochs but the first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # both as the command line does, before torch is loaded
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

CASES: dict[str, dict[str, Any]] = {
    "BPR": {"model": {"name": "bpr"}},
    "LightGCN": {"model": {"name": "lightgcn"}},
    "CD": {"model": {"name": "bpr"}, "method": "cd"},
    "DE": {"model": {"name": "bpr"}, "method": "de"},
}
WAYS = {"one process": (1, "none"), "divided batches": (2, "none"), "columns": (2, "columns")}
METRIC = "ndcg@10"
COLUMNS = [
    "data",
    "run",
    "way",
    f"{METRIC} (test)",
    "largest change of a user's",
    "bytes sent a step",
    "of an evaluation",
    "seconds an epoch",
    "of one process",
    "tables and moments",
    "peak memory",
]


def work(values: dict[str, Any], out: str, told: str) -> None:
    """One process of a run."""
    import numpy as np

    from kdrs.fitting import fit as fitting
    from kdrs.runs.config import resolve
    from kdrs.runs.execute import execute
    from kdrs.training.processes import joined

    steps: list[dict[str, float]] = []
    train_epoch = fitting._train_epoch

    def counted(learners: Any, draws: Any, *rest: Any) -> Any:
        before, began = 0 if group is None else group.sent, time.perf_counter()
        row = train_epoch(learners, draws, *rest)
        seconds = time.perf_counter() - began
        state = [t for one in learners for t in one.optimizer.state().values()]
        tables = [p for one in learners for p in one.optimizer.parameters.values()]
        steps.append(
            {
                "steps": len(draws.batches),
                "sent": 0 if group is None else group.sent - before,
                "seconds": seconds,
                "held": sum(tensor.nbytes for tensor in (*state, *tables)),
            }
        )
        return row

    fitting._train_epoch = counted
    with joined() as group:
        outcome = execute(resolve(values), out)
        evaluations = len(outcome.fit.rows)
        whole = 0 if group is None else group.sent
        found = {
            "epochs": steps,
            "evaluation": (whole - sum(step["sent"] for step in steps)) / (evaluations + 1),
            "mean": outcome.reports["test"].mean(METRIC),
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        if group is None or group.first:
            np.save(f"{told}.npy", outcome.reports["test"].values[METRIC])
            Path(told).write_text(json.dumps(found))


def launch(values: dict[str, Any], size: int, out: Path) -> dict[str, Any]:
    import numpy as np

    told = out.with_suffix(".json")
    words = [sys.executable, __file__, "--work", json.dumps(values), str(out), str(told)]
    if size > 1:
        words[1:1] = ["-m", "torch.distributed.run", "--nproc-per-node", str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(2 // size), "KDRS_NUM_THREADS": str(2 // size)}
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL, env=environment)
    found: dict[str, Any] = json.loads(told.read_text())
    return {**found, "values": np.load(f"{told}.npy")}


def values_of(case: dict[str, Any], data: str, teacher: Path, epochs: int, threads: int, shard: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "data": {"path": data},
        "model": {"dim": 32, **case["model"]},
        "train": {"epochs": epochs, "lr": 5e-3, "shard": shard, "keep": "last"},
        "device": "cpu",
        "threads": threads,
    }
    if "method" in case:
        values["distill"] = [{"method": case["method"], "teacher": str(teacher)}]
    return values


def measure(data: str, options: argparse.Namespace) -> list[list[str]]:
    import numpy as np

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        teacher = Path(scratch) / "teacher"
        values = values_of({"model": {"name": "bpr", "dim": 64}}, data, teacher, 20, 2, "none")
        launch(values, 1, teacher)
        for name, case in CASES.items():
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for repeat in range(options.repeats):
                for way, (size, shard) in WAYS.items():
                    own = values_of(case, data, teacher, options.epochs, 2 // size, shard)
                    found[way].append(launch(own, size, Path(scratch) / f"{name}-{way.split()[0]}-{repeat}"))
                    print(data, name, way, repeat, found[way][-1]["mean"], file=sys.stderr, flush=True)
            for way, ends in found.items():
                assert len({end["values"].tobytes() for end in ends}) == 1, (
                    f"{name}, {way}: other bytes in another repeat"
                )
            one = found["one process"]
            base = statistics.median(step["seconds"] for end in one for step in end["epochs"][1:])
            for way, ends in found.items():
                end, seconds = ends[0], [step["seconds"] for each in ends for step in each["epochs"][1:]]
                sent, steps = (sum(step[key] for step in end["epochs"]) for key in ("sent", "steps"))
                change = float(np.abs(end["values"] - one[0]["values"]).max())
                alone = way == "one process"
                rows.append(
                    [
                        Path(data).name,
                        name,
                        way,
                        f"{end['mean']:.4f}",
                        "" if alone else f"{change:.3f}",
                        "" if alone else f"{sent / steps:,.0f}",
                        "" if alone else f"{end['evaluation']:,.0f}",
                        f"{statistics.median(seconds):.3f}",
                        f"{statistics.median(seconds) / base:.2f}",
                        f"{end['epochs'][-1]['held'] / 1e6:.2f} MB",
                        f"{max(each['peak'] for each in ends) / 1e6:.0f} MB",
                    ]
                )
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(json.loads(sys.argv[2]), *sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="prepared data sets")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument(
        "--record", type=Path, help="these data sets' rows of this record of docs/results are written anew"
    )
    options = parser.parse_args()
    rows = [row for data in options.data for row in measure(data, options)]
    if options.record is None:
        print(json.dumps({"columns": COLUMNS, "rows": rows}, indent=1))
        return
    import torch

    from measure import machine

    record = json.loads(options.record.read_text()) if options.record.is_file() else {}
    kept = record.get("figures", [])
    done = {Path(data).name for data in options.data}
    rows = [row for figure in kept for row in figure["rows"] if row[0] not in done] + rows
    of = machine()
    names = " ".join(f"datasets/{Path(data).name}" for data in options.data)
    figure = {
        "title": "Two processes against one",
        "command": f"`python benches/processes.py {names} --repeats {options.repeats} --epochs {options.epochs}`",
        "machine": f"{of['processor']}, {of['processors']} virtual cores; torch {torch.__version__.partition('+')[0]}; "
        f"other work beside it (load {of['load']:.0f}), {time.strftime('%-d %B %Y')}",
        "commit": of["commit"],
        "reading": kept[0]["reading"] if kept else [],
        "columns": COLUMNS,
        "rows": rows,
    }
    options.record.write_text(json.dumps({**record, "figures": [figure]}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
