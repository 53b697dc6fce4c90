"""What this machine offers, as ``kdrs doctor`` prints it."""

from __future__ import annotations

import os
import tempfile
from importlib import metadata
from typing import Any

from kdrs._memory import memory_limit


def examine() -> dict[str, Any]:
    """Versions, processor, threads, devices, memory and write access; ``problems`` lists what keeps kdrs from working."""
    from kdrs.runs import environment

    problems: list[str] = []
    found = environment()
    found.pop("command")
    for package in ("scipy", "polars", "pydantic", "safetensors", "typer", "matplotlib"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
            if package != "matplotlib":
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
    try:
        import numpy as np

        from kdrs import ranking

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
