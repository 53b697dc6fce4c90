"""Processes that do one thing together, for the tests: children of one process that has loaded torch once.

As a program it reads jobs as lines of JSON and answers each with the children's exit codes. A job is a command of kdrs
(``argv``, or ``argvs`` by rank) or a function of this file (``call``, with ``arguments``); ``kill``, ``stop`` and ``hang`` name
a rank and the number of a collective before which it kills itself, sends itself SIGTERM, or does nothing more until all others
have ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apart import load

PATIENCE = 120.0
"""Seconds that a job may take."""


@dataclass(frozen=True)
class Ended:
    codes: list[int]
    """By rank; negative for a signal."""
    out: list[str]
    err: list[str]
    seconds: float


class Pairs:
    """The process that makes the children, from a test."""

    def __init__(self, folder: Path):
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "KDRS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
        )
        self._count = 0

    def run(self, **job: Any) -> Ended:
        self._count += 1
        place = self.folder / f"job-{self._count}"
        place.mkdir()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"place": str(place), **job}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        texts = {
            name: [(place / f"{name}-{rank}").read_text() for rank in range(len(answer["codes"]))]
            for name in ("out", "err")
        }
        return Ended(answer["codes"], texts["out"], texts["err"], answer["seconds"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@contextmanager
def pairs(folder: Path) -> Iterator[Pairs]:
    found = Pairs(folder)
    try:
        yield found
    finally:
        found.close()


# --- in the process that makes the children ---------------------------------------------------------------------------


def main() -> None:
    load()
    for line in sys.stdin:
        job = json.loads(line)
        began = time.monotonic()
        size, port = job.get("size", 2), free_port()
        children = [_forked(job, rank, size, port) for rank in range(size)]
        codes: list[int | None] = [None] * size
        hung = job.get("hang", {}).get("rank")
        while None in codes and time.monotonic() - began < PATIENCE:
            for rank, child in enumerate(children):
                if codes[rank] is None:
                    done, status = os.waitpid(child, os.WNOHANG)
                    if done:
                        codes[rank] = os.waitstatus_to_exitcode(status)
            if hung is not None and all(code is not None for rank, code in enumerate(codes) if rank != hung):
                os.kill(children[hung], signal.SIGKILL)
                hung = None
            time.sleep(0.005)
        for rank, child in enumerate(children):
            if codes[rank] is None:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        answer = {"codes": [-99 if code is None else code for code in codes], "seconds": time.monotonic() - began}
        print(json.dumps(answer), flush=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _forked(job: dict[str, Any], rank: int, size: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for name, number in (("out", 1), ("err", 2)):
            file = os.open(f"{job['place']}/{name}-{rank}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, number)
        known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if size > 1:
            os.environ.update({name: str(value) for name, value in known.items()})
        os.environ.update(job.get("environment", {}))
        for kind, number in (("kill", signal.SIGKILL), ("stop", signal.SIGTERM), ("hang", signal.SIGSTOP)):
            if kind in job and job[kind]["rank"] == rank:
                _at(job[kind]["at"], number)
        if "argv" in job or "argvs" in job:
            from kdrs.cli import main as kdrs

            sys.argv = ["kdrs", *(job["argvs"][rank] if "argvs" in job else job["argv"])]
            kdrs()
        else:
            globals()[job["call"]](*job["arguments"])
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _at(count: int, number: signal.Signals) -> None:
    """Sends this process a signal before its collective of that number."""
    from kdrs.training.processes import Group

    counted = Group._count

    def count_and_end(self: Group, n_bytes: int) -> None:
        counted(self, n_bytes)
        if self.calls == count:
            os.kill(os.getpid(), number)

    Group._count = count_and_end  # type: ignore[method-assign]


# --- what the children do ---------------------------------------------------------------------------------------------


def train(jobs: list[tuple[dict[str, Any], str]], told: str) -> None:
    """Runs, one after the other, in one group; what each has sent, or the error that refused it, by the first process."""
    import warnings

    from kdrs.errors import KdrsError
    from kdrs.runs.config import resolve
    from kdrs.runs.execute import execute
    from kdrs.training.processes import joined

    found = []
    with joined() as group, warnings.catch_warnings(record=True):
        for values, out in jobs:
            before = 0 if group is None else group.sent
            try:
                execute(resolve(values), out)
            except KdrsError as error:
                found.append({"error": f"{error.cause} | {error.remedy}", "left": Path(out).exists()})
            else:
                found.append({"sent": 0 if group is None else group.sent - before})
        if group is None or group.first:
            Path(told).write_text(json.dumps(found))


def evaluate(toy: str, told: str) -> None:
    """Whether processes that measure together find, to the byte, what each of them finds alone."""
    import numpy as np

    from kdrs.data import Dataset
    from kdrs.evaluation.evaluator import Evaluator
    from kdrs.training.processes import joined

    dataset = Dataset.load(toy)
    rng = np.random.default_rng(0)
    users, items = (rng.standard_normal((n, 4)).astype(np.float32).round(1) for n in (dataset.n_users, dataset.n_items))
    options: list[dict[str, Any]] = [
        {"protocol": "default"},
        {"protocol": "default", "block": 7, "beyond": False},
        {"protocol": "default", "ties": "expected", "average": "all-queries"},
        {"protocol": "loo-499"},
    ]
    same = []
    with joined() as group:
        for chosen in options:
            own, ours = (Evaluator.of(dataset, **chosen, team=team)((users, items)) for team in (None, group))
            for part, report in own.items():
                other = ours[part]
                equal = all(report.values[name].tobytes() == other.values[name].tobytes() for name in report.values)
                same.append(equal and report.to_json() == other.to_json() and report.means() == other.means())
        assert group is not None
        if group.first:
            Path(told).write_text(json.dumps(same))


def words(told: str) -> None:
    """What the collectives of a group do, of three processes."""
    import numpy as np
    import pytest
    import torch

    from kdrs.errors import DataError
    from kdrs.training.columns import Columns, side_by_side
    from kdrs.training.processes import joined
    from kdrs.training.sharing import differing, exchange

    with joined() as group:
        assert group is not None
        with joined() as inner:
            assert inner is group
        rank, size = group.rank, group.size
        assert group.any(rank == 1, False) == [True, False]
        assert group.told("héllo" if group.first else None) == "héllo"
        parts = group.gather_arrays([np.arange(rank, dtype=np.int32), np.full(2, rank / 3)])
        assert [part[0].tolist() for part in parts] == [list(range(r)) for r in range(size)]
        assert [part[1].tolist() for part in parts] == [[r / 3, r / 3] for r in range(size)]
        assert group.on_first(lambda: 5) == (5 if group.first else None)

        def refuse() -> None:
            raise DataError("no", "try")

        with pytest.raises(DataError, match="no\ntry") as caught:
            group.on_first(refuse)
        assert getattr(caught.value, "speaks", True) == group.first
        columns = Columns(group, 7)
        whole = torch.arange(21.0).view(3, 7)
        assert torch.equal(side_by_side(whole[:, columns.own].contiguous(), columns), whole)
        table, dense, none = (torch.nn.Parameter(torch.zeros(4, 2)) for _ in range(3))
        rows = torch.tensor([[1, 1] if rank else [3]]).view(1, -1)
        if rank < 2:  # the last has touched nothing
            table.grad = torch.sparse_coo_tensor(rows, torch.full((rows.shape[1], 2), 1.0 + rank), (4, 2))
            dense.grad = torch.full((4, 2), float(rank + 1))
        exchange({"table": table, "dense": dense, "none": none}, group)
        assert none.grad is None
        assert table.grad.is_sparse
        assert table.grad.to_dense()[:, 0].tolist() == [0, 4, 0, 1]
        assert dense.grad.tolist() == [[3.0, 3.0]] * 4
        assert differing({"same": whole, "counts": torch.tensor([1])}, group) is None
        assert differing({"same": whole, "other": whole + rank}, group) == "other"
        if group.first:
            Path(told).write_text(json.dumps({"sent": group.sent}))


if __name__ == "__main__":
    main()
