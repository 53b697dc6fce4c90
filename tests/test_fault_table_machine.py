"""Rows 55, 58 to 62 and 64 of the table of faults: devices, memory, processes, threads, libraries, instructions.

Row 55 is tried without a GPU: what happens on one that is lost or full is not promised.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import kdrs
from commands import FAST, fails, ok
from commands import kdrs as run_command
from kdrs import _core
from kdrs.core import ranking, sampling
from kdrs.core.sampling import stream
from kdrs.data import Interactions, Recipe, Table, prepare
from kdrs.evaluation.evaluator import Evaluator
from kdrs.fitting import fit as fitting
from kdrs.fitting.learner import Learner
from kdrs.models import MODELS
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch


def values(data: Path, **train: object) -> dict:
    plain = {"epochs": 2, "batch_size": 64, **train}
    return {"data": {"path": str(data)}, "model": {"name": "bpr", "dim": 4}, "train": plain, "device": "cpu"}


# 55: devices


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:99"])
def test_fault_55_a_device_that_is_not_there_is_error_5(toy_path, tmp_path, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = ("train", "--data", toy_path, "--model", "bpr", "--device", device, "--out", tmp_path / "x")
    for more in ((), ("--dry-run",)):
        error = fails(5, *command, *more)
        assert f"device '{device}' is not available" in error
        assert "--device cpu" in error
    assert not (tmp_path / "x").exists()
    assert "device" in fails(2, *command[:-4], "--device", "tpu", "--out", tmp_path / "x")


def test_fault_55_auto_is_the_processor_then(toy_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = ok("train", "--data", toy_path, "--model", "bpr", "--dry-run", "--json").document
    assert plan["device"] == "cpu"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["device", "processor", "Python"],
)
def test_fault_55_memory_that_runs_out_leaves_the_last_checkpoint(toy_path, tmp_path, monkeypatch, error):
    command = ("train", "--data", toy_path, *FAST, "--epochs", 3, "--set", "train.checkpoint_seconds=0")
    ok(*command, "--out", tmp_path / "whole")
    plain, steps = fitting.step_of, []

    def step(*arguments: object) -> object:
        steps.append(1)
        if len(steps) == 14:  # in the second epoch
            raise error
        return plain(*arguments)

    monkeypatch.setattr(fitting, "step_of", step)
    assert "out of memory" in run_command(*command, "--out", tmp_path / "run").err
    monkeypatch.undo()
    assert json.loads((tmp_path / "run/STATUS.json").read_text())["status"] == "failed"
    ok("resume", tmp_path / "run")
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


@pytest.mark.gpu
def test_fault_55_on_a_device_the_same_items_are_found():
    rng = np.random.default_rng(1)
    q, x = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (40, 200))
    there = ranking.topk(torch.from_numpy(q).cuda(), torch.from_numpy(x).cuda(), 20)
    assert np.array_equal(there.items.cpu().numpy(), ranking.topk(q, x, 20).items)


# 58 to 61: processes and threads


def work(seed: int = 0) -> bytes:
    """Draws and lists that take several of the core's threads."""
    rng = np.random.default_rng(seed)
    q, x = rng.standard_normal((200, 8), np.float32), rng.standard_normal((3000, 8), np.float32)
    seen = Interactions.from_pairs(rng.integers(0, 200, 2000), rng.integers(0, 3000, 2000), 200, 3000)
    drawn = sampling.negatives(seen, np.repeat(np.arange(200), 100), seed=seed, threads=4)
    return ranking.topk(q, x, 10, seen=seen, threads=4).items.tobytes() + drawn.tobytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fault_58_children_of_a_fork_have_threads_of_their_own():
    expected = [work(seed) for seed in range(3)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(work, range(3)).get(timeout=30) == expected
        assert work() == expected[0]  # the parent's go on meanwhile
    assert work() == expected[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fault_58_a_fork_in_the_middle_of_a_call():
    """Another thread is in the core when the process forks: its locks are copied as they are, and nobody waits for them."""
    expected, stop = work(), threading.Event()

    def busy() -> None:
        while not stop.is_set():
            work(1)

    others = [threading.Thread(target=busy) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for _ in range(5):
            child = os.fork()
            if not child:
                wrong = True
                try:
                    wrong = work() != expected
                finally:
                    os._exit(wrong)
            for _ in range(300):  # 30 s
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    break
                time.sleep(0.1)
            else:
                os.kill(child, 9)
                os.waitpid(child, 0)
                pytest.fail("the child hangs")
            assert status == 0
    finally:
        stop.set()
        for other in others:
            other.join()


class Rows(torch.utils.data.Dataset):
    """Draws negatives in a DataLoader's worker, as samplers of other libraries do."""

    def __init__(self, seen: Interactions):
        self.seen = seen

    def __len__(self) -> int:
        return 16

    def __getitem__(self, row: int) -> torch.Tensor:
        return sampling.negatives(self.seen, torch.tensor([row]), 50, seed=stream(0, "rows", row), threads=2)[0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [1, 2])
def test_fault_60_workers_draw_what_one_process_draws(toy, workers):
    plain = torch.stack(list(torch.utils.data.DataLoader(Rows(toy.train), None)))
    loader = torch.utils.data.DataLoader(Rows(toy.train), None, num_workers=workers, timeout=30)
    assert torch.equal(torch.stack(list(loader)), plain)
    assert len({tuple(row) for row in plain.tolist()}) == 16  # no worker repeats another's numbers


def test_fault_60_no_generator_of_the_process_is_read_or_moved(toy):
    def all_draws() -> list[bytes]:
        table = Table.from_pairs(*np.nonzero(toy.full.to_csr().toarray()))
        data = prepare(table, Recipe(candidates=7))
        batches = PairTask(toy.train, batch_size=64).draw(Epoch(3, 0, 5))
        return [data.fingerprint.encode(), *(b.negatives.numpy().tobytes() for b in batches), work()]

    found = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002
        found.append(all_draws())
        task = PairTask(toy.train, batch_size=64)
        torch.manual_seed(7)
        model = MODELS["bpr"](MODELS["bpr"].Config(dim=4), task)
        torch.manual_seed(seed)
        fitting.fit(Learner(model, task), task, epochs=1)
        found[-1].append(model.users.weight.detach().numpy().tobytes())
        assert (np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()) == before  # noqa: NPY002
    assert found[0] == found[1]


SPAWN = """
import json, os, pkgutil, signal, sys, threading, warnings
import torch, numpy, scipy.sparse.linalg, polars, pydantic, safetensors.torch, typer, sympy, logging, multiprocessing
import importlib

def state():
    status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
    return {
        "threads": status["Threads"].strip(), "python": threading.active_count(), "folder": os.getcwd(),
        "environment": dict(os.environ), "filters": len(warnings.filters), "handlers": len(logging.root.handlers),
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)], "torch": torch.get_num_threads(),
        "numbers": [torch.get_rng_state().sum().item(), int(numpy.random.get_state()[1].sum())], "files": os.listdir("."),
        "precision": str(torch.get_default_dtype()), "excepthook": sys.excepthook is sys.__excepthook__,
    }

before = state()
import kdrs
for found in pkgutil.walk_packages(kdrs.__path__, "kdrs."):
    if not found.name.startswith(("kdrs.cli", "kdrs.__main__")):
        importlib.import_module(found.name)
after = state()
multiprocessing.set_start_method("spawn")
q = numpy.eye(4, dtype=numpy.float32)
# no `if __name__ == "__main__"` anywhere: kdrs starts no process that would need it
task = kdrs.PairTask(kdrs.Interactions.from_pairs([0, 1, 2], [0, 1, 2], 3, 4))
kdrs.fit(kdrs.Learner(kdrs.models.BPR(kdrs.models.BPR.Config(dim=2), task), task), task, epochs=2)
print(json.dumps([before, after, len(multiprocessing.active_children())]))
"""
CHILD = """
import multiprocessing, numpy
from kdrs.core import ranking
if __name__ == "__main__":
    q = numpy.eye(4, dtype=numpy.float32)
    here = ranking.topk(q, q, 2)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply_async(ranking.topk, (q, q, 2)).get(timeout=60)
    assert (here.items == there.items).all()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_fault_59_importing_does_nothing_but_import(tmp_path):
    """No thread, no setting, no file; and training starts no process, so that scripts need no guard of their own."""
    done = subprocess.run([sys.executable, "-c", SPAWN], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    before, after, children = json.loads(done.stdout)
    assert after == before
    assert children == 0


def test_fault_59_a_spawned_child_computes_the_same(tmp_path):
    (tmp_path / "script.py").write_text(CHILD)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr


def test_fault_61_threads_may_call_at_once(toy):
    def all_of_it(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        report = Evaluator.of(toy, threads=2)((rng.normal(size=(50, 4)), rng.normal(size=(80, 4))))["test"]
        batches = PairTask(toy.train, batch_size=64).draw(Epoch(seed, 0, 9))
        return work(seed) + report.values["ndcg@5"].tobytes() + batches[0].negatives.numpy().tobytes()

    expected = [all_of_it(seed) for seed in range(6)]
    found: dict[int, bytes] = {}
    threads = [threading.Thread(target=lambda seed=seed: found.update({seed: all_of_it(seed)})) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(6)] == expected


def test_fault_61_other_threads_run_during_a_long_call():
    import test_ranking

    test_ranking.TestProcesses().test_other_threads_run_meanwhile()


# 62: runtimes of OpenMP


def test_fault_62_the_core_brings_no_runtime_of_openmp():
    core = Path(_core.__file__).read_bytes()
    for name in (b"libgomp", b"libomp", b"libiomp", b"GOMP_", b"__kmpc_", b"openblas", b"mkl_"):
        assert name not in core, name
    brought = [path.name for path in Path(kdrs.__file__).parent.rglob("*") if re.search(r"\.(so|dylib|dll)", path.name)]
    assert brought == [Path(_core.__file__).name]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_fault_62_the_doctor_names_what_others_brought(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    found = ok("doctor", "--json").document
    assert found["thread_variables"].keys() >= {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    mapped = {line.rsplit("/", 1)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    assert set(found["thread_libraries"]) <= mapped
    for kind in ("gomp", "openblas"):
        assert any(kind in name for name in found["thread_libraries"]) == any(
            name.startswith("lib") and kind in name for name in mapped
        )


# 64: processors without AVX2


def test_fault_64_the_portable_path_ends_a_run_with_the_same_bytes(toy_path, tmp_path, monkeypatch):
    found = set()
    for path in ("portable", *_core.simd_paths()):
        monkeypatch.setenv("KDRS_SIMD", path)
        place = tmp_path / f"{path}-{len(found)}"
        execute(resolve(values(toy_path)), place)
        found.add(b"".join((place / name).read_bytes() for name in ("model.safetensors", "report-test.json")))
        shutil.rmtree(place)
    assert len(found) == 1


@pytest.mark.parametrize("dim", [1, 20, 65])
def test_fault_64_counts_and_ids_are_the_same_on_every_path(monkeypatch, dim):
    rng = np.random.default_rng(dim)
    q, x = rng.standard_normal((30, dim), np.float32), rng.standard_normal((500, dim), np.float32)
    x[::3] = x[0]
    seen = Interactions.from_pairs(rng.integers(0, 30, 900), rng.integers(0, 500, 900), 30, 500)
    found = set()
    for path in _core.simd_paths():
        monkeypatch.setenv("KDRS_SIMD", path)
        results = [
            *ranking.topk(q, x, 20, seen=seen),
            *ranking.ranks(q, x, seen),
            *ranking.neighbours(q, 5, metric="cosine"),
            sampling.negatives(seen, np.arange(30), 40, seed=1),
        ]
        found.add(b"".join(array.tobytes() for array in results))
    assert len(found) == 1


@pytest.mark.parametrize("name", ["sse9", "AVX2", " portable", "1"])
def test_fault_64_a_path_that_is_not_there_is_error_2(toy_path, tmp_path, monkeypatch, name):
    monkeypatch.setenv("KDRS_SIMD", name)
    for more in (("--out", tmp_path / "x"), ("--dry-run",)):
        assert "KDRS_SIMD is" in fails(2, "train", "--data", toy_path, *FAST, *more)
    assert not (tmp_path / "x").exists()
