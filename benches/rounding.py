"""A step through the rounding beside the same method's float32 step: CPU time of one thread, CiteULike, BPR.

    python benches/rounding.py TEACHER [--methods cd,rrd,nkd] [--dim 112] [--steps 40]

TEACHER is a finished run of 200 dimensions on the data set that it names, such as the teacher of benches/frontier.py.
"""

from __future__ import annotations

import argparse
import time

import torch

from kdrs.data import Dataset
from kdrs.fitting.learner import Learner
from kdrs.runs.build import build_task
from kdrs.runs.config import config_of, resolve
from kdrs.runs.directory import Run
from kdrs.runs.learners import load_learners
from kdrs.training.queries import Epoch, Task

FORMS = {
    "float32, table": (32, "table"),
    "float32, encoded": (32, "encoded"),
    "2 bits, table": (2, "table"),
    "2 bits, encoded": (2, "encoded"),
    "1 bit, encoded": (1, "encoded"),
}


def seconds_a_step(learner: Learner, task: Task, steps: int) -> float:
    epoch = Epoch(0, 0, 1)
    batches = iter(task.draw(epoch))
    learner.start(epoch, [term.distiller.draw(epoch) for term in learner.terms])
    began = 0.0
    for number in range(steps + 3):
        if number == 3:  # after first allocations
            began = time.process_time()
        batch = next(batches)
        learner.look(batch)
        parts = learner.forward(batch)
        learner.backward(parts)
        learner.step()
    return (time.process_time() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--methods", default="cd,rrd,nkd")
    parser.add_argument("--dim", type=int, default=112)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = config_of(Run.open(options.teacher)).data.path
    dataset = Dataset.load(data)
    for method in options.methods.split(","):
        base = None
        for title, (bits, users) in FORMS.items():
            config = resolve(
                {
                    "data": {"path": data},
                    "model": {"name": "bpr", "dim": options.dim, "bits": bits, "users": users},
                    "distill": [{"method": method, "teacher": options.teacher}],
                    "start": "teacher",
                    "device": "cpu",
                    "threads": 1,
                }
            )
            task = build_task(config, dataset)
            _, (learner, *_) = load_learners(config, dataset, task)
            taken = seconds_a_step(learner, task, options.steps)
            base = base or taken
            print(f"{method:>8}  {title:18}  {taken * 1e3:7.1f} ms  {taken / base:.2f}", flush=True)


if __name__ == "__main__":
    main()
