"""Seconds an epoch and peak memory of every method and every model.

    python benches/costs.py [--data citeulike|gowalla|N|NxI] [--only rrd,de] [--dims 200,20] [--models] [--steps 12] [--json]

Methods train a BPR student of 20 dimensions with a BPR teacher of 200 (the paper's sizes; random vectors, whose cost is the
same), batch 1,024. ``NxI`` is a synthetic set of N users x I items with 20 pairs a user, ``N`` of N / 5 items. Each case runs
in a process of its own: what is built once, what an epoch begins with, and the median of some steps, from which the epoch is
put together; with ``--annealed`` the steps are those of epoch 300, when temperatures have fallen. No training is carried to
its end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # both as the command line does, before torch is loaded
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

OPTIONS: dict[str, dict[str, Any]] = {"hyperkdma": {"assistants": 8}, "hyperkdma bf16": {"precision": "bf16"}}
MODELS_DIM = 64


def interactions(name: str) -> Any:
    import numpy as np

    from kdrs.data import Interactions
    from measure import citeulike
    from memory import interactions as prepared

    if name == "citeulike":
        return citeulike()
    if name == "gowalla":
        return prepared(name)[0]
    sizes = [int(size) for size in name.split("x")]
    n_users, n_items = sizes if len(sizes) == 2 else (sizes[0], sizes[0] // 5)
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(n_users), 20)
    items = (n_items * rng.random(users.size) ** 2).astype(np.int64)  # popular items are drawn more often
    keys = np.unique(users * n_items + items)
    return Interactions.from_pairs(*np.divmod(keys, n_items), n_users, n_items)


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(case: str, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from kdrs.distillers import DISTILLERS
    from kdrs.fitting.fit import flushing_subnormals, step_of
    from kdrs.fitting.learner import Learner, Term
    from kdrs.models import BPR
    from kdrs.teachers.base import Stage
    from kdrs.teachers.model import ModelTeacher
    from kdrs.training.pairs import PairTask
    from kdrs.training.queries import Epoch

    torch.set_num_threads(options.threads)
    train = interactions(options.data)
    before = megabytes()
    task = PairTask(train, batch_size=options.batch_size, threads=options.threads)
    torch.manual_seed(0)
    began = time.perf_counter()
    if options.models:
        from kdrs.models import MODELS

        cls = MODELS[case]
        order = train.indices if case in ("caser", "sasrec") else None
        config = cls.Config(dim=20)
        defaults = {k: v for k, v in cls.train_defaults(config).items() if k == "batch_size"}
        task = cls.make_task(
            config, train, order=order, **{"batch_size": 1024, **defaults}, n_negatives=1, threads=options.threads
        )  # type: ignore[assignment]
        learners = [Learner(cls(config, task), task)]
    else:
        large, small = map(int, options.dims.split(","))
        student, teacher = BPR(BPR.Config(dim=small), task), BPR(BPR.Config(dim=large, init_std=0.1), task)
        terms = []
        for name in () if case == "alone" else case.split()[0].split("+"):
            method = DISTILLERS[name]
            earlier = ModelTeacher(teacher, task)
            stages = [Stage(e, lambda state=earlier: state) for e in (40, 80, 120)]  # type: ignore[misc]
            known = ModelTeacher(teacher, task, live=method.mutual, stages=stages, epoch=160)
            sources = [known] * (3 if name == "dgkd" else 1)
            chosen = {"experts": options.experts} if name == "de" and options.experts else {}
            config = method.Config(**OPTIONS.get(case, {}), **chosen)
            terms.append(Term(name, method.default_weight, method(config, sources, task, small, 1)))
        replaced = any(term.distiller.replaces_base for term in terms)
        first = Learner(student, task, terms, base=None if replaced else "model")
        learners = [first, *first.counterparts()]
    built = time.perf_counter() - began
    epoch = Epoch(300 if options.annealed else 0, 0, 1000)
    began, worked = time.perf_counter(), time.process_time()
    batches = task.draw(epoch)
    samples = [[term.distiller.draw(epoch) for term in learner.terms] for learner in learners]
    drawn = time.perf_counter() - began
    began = time.perf_counter()
    for learner, own in zip(learners, samples, strict=True):
        learner.start(epoch, own)
    started = time.perf_counter() - began
    worked = time.process_time() - worked
    taken: list[float] = []
    used: list[float] = []
    with flushing_subnormals():
        for step, batch in enumerate(batches):
            wall, cpu = time.perf_counter(), time.process_time()
            step_of(learners, batch)
            if step:
                taken.append(time.perf_counter() - wall)
                used.append(time.process_time() - cpu)
            if step == options.steps:
                break
    median = statistics.median(taken)
    return {
        "case": case,
        "once s": round(built, 2),
        "draws s": round(drawn, 3),
        "epoch start s": round(started, 3),
        "step ms": round(1e3 * median, 1),
        "step ms of processor": round(1e3 * statistics.median(used), 1),
        "steps": len(batches),
        "epoch s": round(max(drawn, median * len(batches)) + started, 2),
        "epoch s of processor": round(worked + statistics.median(used) * len(batches), 3),
        "peak MB": round(megabytes()),
        "of which data and libraries": round(before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="citeulike")
    parser.add_argument("--only")
    parser.add_argument("--models", action="store_true", help="the models alone instead of the methods")
    parser.add_argument("--annealed", action="store_true")
    parser.add_argument("--dims", default="200,20", help="sizes of teacher and student")
    parser.add_argument("--experts", type=int, help="experts of DE")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(options.case, options)))
        return
    from kdrs.distillers import DISTILLERS
    from kdrs.models import MODELS

    known = list(MODELS) if options.models else ["alone", *DISTILLERS, "hyperkdma bf16"]
    cases = known if options.only is None else options.only.split(",")
    rows = []
    for case in cases:
        command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--case", case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{case}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        if not options.json:
            print(rows[-1], file=sys.stderr)
    from measure import report

    report(f"Costs on {options.data}, {options.threads} thread(s)", rows, options)


if __name__ == "__main__":
    main()
