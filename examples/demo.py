"""From nothing to students of a thirtieth and of a hundredth of their teacher's bytes: fetch, prepare, train, compress, distil,
compare. Each step is a kdrs command.

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

DIM = 200
ALONE = {"alone-30": DIM // 30, "alone-100": DIM // 100}
"""Students without a teacher, of a 30th and of a hundredth of its bytes, by their dimensions."""
BUDGETS = {"distilled-30": "1/30", "distilled-100": "1/100"}


def kdrs(*arguments: str) -> None:
    print("\n$ kdrs", shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "kdrs", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="made anew each time")
    parser.add_argument("--data", type=Path, default=Path("datasets/ml-100k"))
    options = parser.parse_args()
    began = time.monotonic()
    if not options.data.exists():
        kdrs("data", "prepare", "ml-100k", "--out", str(options.data))
    if (options.out / "teacher" / "config.toml").is_file():
        shutil.rmtree(options.out)
    common = ["--data", str(options.data), "--model", "bpr", "--device", "cpu"]
    teacher = options.out / "teacher"
    kdrs("train", *common, "--dim", str(DIM), "--patience", "20", "--out", str(teacher))
    for name, dim in ALONE.items():
        kdrs("train", *common, "--dim", str(dim), "--lr", "3e-3", "--out", str(options.out / name))
    kdrs("compress", str(teacher), "--budget", "1/30", "--out", str(options.out / "compressed-30"))
    for name, budget in BUDGETS.items():
        taught = ["--teacher", str(teacher), "--budget", budget]
        kdrs("distill", "--data", str(options.data), "--device", "cpu", *taught, "--out", str(options.out / name))
    runs = [str(teacher), *(str(options.out / name) for name in (*ALONE, "compressed-30", *BUDGETS))]
    kdrs("report", *runs, "--out", str(options.out / "report"))
    kdrs("eval", *runs)
    print(f"to open in a browser: {options.out / 'report' / 'report.html'} ({time.monotonic() - began:.0f} s in all)")


if __name__ == "__main__":
    main()
