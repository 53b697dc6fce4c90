"""Versions, machine and commit, as a run keeps them and ``kdrs doctor`` prints them."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from kdrs._memory import memory_limit
from kdrs.errors import shown

EXTRAS = ("matplotlib", "tensorboard", "mlflow", "wandb")
"""Packages that only some commands need."""


def environment(threads: int | None = None) -> dict[str, Any]:
    """Versions, machine and commit, as stored with a run and shown by ``kdrs doctor``."""
    import numpy
    import torch

    from kdrs import __version__

    return {
        "kdrs": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "threads": threads,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": [shown(word, 10_000) for word in (Path(sys.argv[0]).name, *sys.argv[1:])],
    }


def _commit() -> str | None:
    """Commit of the checkout that this package is run from; None for an installed one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "rust").is_dir():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "") if head.returncode == 0 else None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _thread_libraries() -> list[str]:
    """Loaded libraries that have threads of their own: runtimes of OpenMP, linear algebra. kdrs brings none of them."""
    with contextlib.suppress(OSError):
        mapped = Path("/proc/self/maps").read_text().splitlines()
        names = {Path(line.split(maxsplit=5)[5]).name for line in mapped if ".so" in line}
        return sorted(name for name in names if re.match(r"lib(gomp|i?omp|mkl_\w*thread|(scipy_)?openblas|blis)", name))
    return []


def examine() -> dict[str, Any]:
    """Versions, processor, threads, devices, memory and write access; ``problems`` lists what keeps kdrs from working."""
    problems: list[str] = []
    found = environment()
    found.pop("command")
    for package in ("scipy", "polars", "pydantic", "safetensors", "typer", *EXTRAS):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
            if package not in EXTRAS:
                problems.append(f"{package} is not installed")
    limit = memory_limit()
    found["memory_gib"] = None if limit is None else round(limit / 2**30, 1)
    found["thread_variables"] = {
        name: os.environ[name]
        for name in (
            "KDRS_NUM_THREADS",
            "OMP_NUM_THREADS",
            "OMP_WAIT_POLICY",
            "THP_MEM_ALLOC_ENABLE",
            "MKL_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "OPENBLAS_CORETYPE",
        )
        if name in os.environ
    }
    found["thread_libraries"] = _thread_libraries()
    try:
        import numpy as np

        from kdrs.core import ranking

        best = ranking.topk(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), 1)
        if best.items[:, 0].tolist() != [0, 1, 2]:
            problems.append("the compiled core ranks wrongly")
        found["core"] = "works"
    except Exception as error:
        found["core"] = None
        problems.append(f"the compiled core does not work: {error}")
    try:
        with tempfile.NamedTemporaryFile(dir="."):
            found["working_folder"] = "writable"
    except OSError as error:
        found["working_folder"] = None
        problems.append(f"the working folder cannot be written: {error.strerror}")
    found["problems"] = problems
    return found
