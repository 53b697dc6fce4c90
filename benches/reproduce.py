"""The long trainings behind docs/results: BPR 200 -> 20 on CiteULike, leave-one-out with 499 candidates.

Every run is a kdrs command, printed before it starts; finished runs are skipped and begun ones resumed, so that this
program can be stopped at any time. Needs the real data sets in the folder that KDRS_DATA names.

    python benches/reproduce.py --out runs/reproduce [--seeds 0,1,2] [--only student,rrd | all] [--dims 100,10] [--threads 2]
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

COMMON = ["--lr", "1e-3", "--weight-decay", "1e-3", "--batch-size", "1024", "--device", "cpu"]
Term = tuple[str, dict[str, object]]
METHODS: dict[str, list[Term]] = {
    "student": [],
    "rrd": [("rrd", {"weight": 1e-3})],
    "de": [("de", {})],
    "de+rrd": [("de", {}), ("rrd", {"weight": 1e-3})],
    "ir-rrd": [("ir-rrd", {})],
    "cd": [("cd", {})],
    "cd-2": [("cd", {"items": 2})],
    "rd": [("rd", {})],
    "score-matching": [("score-matching", {})],
    "hint": [("hint", {})],
    "ftd": [("ftd", {})],
    "htd": [("htd", {})],
    "unkd": [("unkd", {})],
    "dcd": [("dcd", {"weight": 1e-2})],
    "dcd-1e-3": [("dcd", {"weight": 1e-3})],
    "rce-kd": [("rce-kd", {})],
    "nkd": [("nkd", {})],
    "cpd": [("cpd", {})],
    "sld": [("sld", {})],
    "mkd": [("mkd", {})],
    "freqd": [("freqd", {})],
    "bd": [("bd", {})],
    "hetcomp": [("hetcomp", {})],
    "phr": [("phr", {})],
    "takd": [("takd", {"chain": 4})],
    "dgkd": [("dgkd", {"chain": 4})],
    "hyperkdma": [("hyperkdma", {"assistants": 4})],
    "hyperkdma-anchor": [("hyperkdma", {"assistants": 4, "anchor": 1.0})],
    "hyperkdma-bf16": [("hyperkdma", {"assistants": 4, "precision": "bf16"})],
}
"""Each with its published weight and options, but for the number of assistants; and variants that docs/results speaks of."""


def kdrs(*arguments: str) -> None:
    print("$ kdrs", shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "kdrs", *arguments], check=True)


def carry_out(place: Path, *arguments: str) -> None:
    """Starts, resumes or skips one run."""
    from kdrs.runs.directory import Run

    if not (place / "config.toml").is_file():
        kdrs(*arguments, "--out", str(place), "--quiet")
    elif Run.open(place).status().get("status") != "finished":
        kdrs("resume", str(place), "--quiet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--data", type=Path, default=Path("datasets/citeulike_loo"))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default="student,rrd,de,de+rrd", help=f"of {', '.join(METHODS)}; or all")
    parser.add_argument("--dims", default="200,20", help="sizes of teacher and student")
    parser.add_argument("--epochs", default="1000")
    parser.add_argument("--threads", default="2")
    options = parser.parse_args()
    if not options.data.exists():
        kdrs("data", "prepare", "citeulike-loo", "--name", "citeulike_loo", "--out", str(options.data))
    large, small = options.dims.split(",")
    common = ["--data", str(options.data), "--model", "bpr", *COMMON, "--epochs", options.epochs]
    common += ["--threads", options.threads]
    names = list(METHODS) if options.only == "all" else options.only.split(",")
    teacher = options.out / "teacher"
    if names != ["student"]:
        # its trajectory is kept for hetcomp; the weights that are kept for all others are the same without it
        stages = ["--set", "train.stages_every=10"] if "hetcomp" in names else []
        place = options.out / "trajectory" if stages else teacher
        carry_out(place, "train", *common, "--dim", large, "--seed", "0", *stages)
    for seed in options.seeds.split(","):
        for name in names:
            place = options.out / name / f"seed-{seed}"
            own = [*common, "--dim", small, "--seed", seed]
            if not METHODS[name]:
                carry_out(place, "train", *own)
                continue
            for index, (method, settings) in enumerate(METHODS[name]):
                own += ["--method", method]
                for key, value in settings.items():
                    own += ["--set", f"distill.{index}.{key}={value}"]
            if name == "bd":  # both models are trained before; a hundred epochs together
                student = options.out / "student" / f"seed-{seed}"
                carry_out(student, "train", *common, "--dim", small, "--seed", seed)
                own += ["--start", str(student), "--epochs", "100"]
            if name == "ftd":  # dips before it helps, as its authors' log does
                own += ["--set", "train.patience=100"]
            carry_out(
                place, "distill", *own, "--teacher", str(options.out / "trajectory" if name == "hetcomp" else teacher)
            )


if __name__ == "__main__":
    main()
