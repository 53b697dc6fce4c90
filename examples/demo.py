"""From nothing to a distilled student: fetch, prepare, train, distil, compare. Each step is a kdrs command.

python examples/demo.py --out runs/demo
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

STUDENTS = {
    "alone": [],
    "de": [("de", "0.01")],
    "rrd": [("rrd", "0.001")],
    "de+rrd": [("de", "0.01"), ("rrd", "0.001")],
}


def kdrs(*arguments: str) -> None:
    print("\n$ kdrs", shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "kdrs", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="made anew each time")
    parser.add_argument("--data", type=Path, default=Path("datasets/ml-100k"))
    parser.add_argument("--teacher-dim", default="100")
    parser.add_argument("--student-dim", default="5")
    options = parser.parse_args()
    began = time.monotonic()
    if not options.data.exists():
        kdrs("data", "prepare", "ml-100k", "--out", str(options.data))
    if (options.out / "teacher" / "config.toml").is_file():
        shutil.rmtree(options.out)
    # a higher rate and fewer epochs than the papers', to be done in minutes
    common = ["--data", str(options.data), "--model", "bpr", "--device", "cpu", "--lr", "3e-3", "--epochs", "50"]
    teacher = options.out / "teacher"
    kdrs("train", *common, "--dim", options.teacher_dim, "--out", str(teacher))
    for name, methods in STUDENTS.items():
        place = ["--dim", options.student_dim, "--out", str(options.out / name)]
        if methods:
            terms = [part for method, weight in methods for part in ("--method", method, "--weight", weight)]
            if "de" in name:
                terms += ["--set", "distill.0.experts=5"]  # 30 suit catalogues of tens of thousands
            kdrs("distill", *common, "--teacher", str(teacher), *terms, *place)
        else:
            kdrs("train", *common, *place)
    runs = [str(teacher), *(str(options.out / name) for name in STUDENTS)]
    kdrs("report", *runs, "--out", str(options.out / "report"))
    kdrs("eval", *runs)
    print(f"picture: {options.out / 'report' / 'comparison.png'} ({time.monotonic() - began:.0f} s in all)")


if __name__ == "__main__":
    main()
