"""The long trainings behind docs/results: BPR 200 -> 20 on CiteULike, leave-one-out with 499 candidates.

Every run is a kdrs command, printed before it starts; finished runs are skipped and begun ones resumed, so that this
program can be stopped at any time. Needs the real data sets in the folder that KDRS_DATA names.

    python benches/reproduce.py --out runs/reproduce [--seeds 0,1,2] [--only student,rrd] [--threads 2]
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

COMMON = ["--epochs", "1000", "--lr", "1e-3", "--weight-decay", "1e-3", "--batch-size", "1024", "--device", "cpu"]
METHODS: dict[str, list[tuple[str, float]]] = {
    "student": [],
    "rrd": [("rrd", 1e-3)],
    "de": [("de", 1e-2)],
    "de+rrd": [("de", 1e-2), ("rrd", 1e-3)],
    "cd": [("cd", 0.5)],
}


def kdrs(*arguments: str) -> None:
    print("$ kdrs", shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "kdrs", *arguments], check=True)


def carry_out(place: Path, *arguments: str) -> None:
    """Starts, resumes or skips one run."""
    from kdrs.runs import Run

    if not (place / "config.toml").is_file():
        kdrs(*arguments, "--out", str(place), "--quiet")
    elif Run.open(place).status().get("status") != "finished":
        kdrs("resume", str(place), "--quiet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--data", type=Path, default=Path("datasets/citeulike_loo"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--threads", default="2")
    options = parser.parse_args()
    if not options.data.exists():
        kdrs("data", "prepare", "citeulike-loo", "--name", "citeulike_loo", "--out", str(options.data))
    common = ["--data", str(options.data), "--model", "bpr", *COMMON, "--threads", options.threads]
    teacher = options.out / "teacher"
    if options.only != "student":
        carry_out(teacher, "train", *common, "--dim", "200", "--seed", "0")
    for seed in options.seeds.split(","):
        for name in options.only.split(","):
            place = options.out / name / f"seed-{seed}"
            own = [*common, "--dim", "20", "--seed", seed]
            if not METHODS[name]:
                carry_out(place, "train", *own)
                continue
            terms = [part for method, weight in METHODS[name] for part in ("--method", method, "--weight", str(weight))]
            carry_out(place, "distill", *own, "--teacher", str(teacher), *terms)


if __name__ == "__main__":
    main()
