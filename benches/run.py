"""Runs every program beside it, each in a process of its own. `--json` prints one JSON object a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = ("topk", "codes", "evaluation", "negatives", "methods", "gflops", "growth")


def main() -> int:
    # Peers choose their kernels by these; a value that stands for another processor would handicap them.
    environment = {name: v for name, v in os.environ.items() if name not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    failed = [
        name
        for name in PROGRAMS
        if subprocess.run(
            [sys.executable, str(HERE / f"{name}.py"), *sys.argv[1:]], env=environment, check=False
        ).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
