"""Methods and models on protocols like those of their papers, at reduced size.

RD with Caser on MovieLens 100K (first 80 % of each user against the rest), RD and DE with SASRec on Beauty (last item tests),
HetComp with six teachers on MovieLens 100K (60/20/20 at random). Every run is a kdrs command, printed before it starts;
finished runs are skipped and begun ones resumed. Needs the data sets in the folder that KDRS_DATA names.

    python benches/protocols.py --out runs/protocols [--only caser,sasrec,hetcomp] [--seeds 0,1,2] [--threads 2]
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from reproduce import carry_out, kdrs

SOURCES = {
    "caser": "ml-100k --preset fr-caser",
    "sasrec": "beauty",
    "hetcomp": "ml-100k --min-rating 4 --k-core 5 --split ratio --fractions 0.6,0.2,0.2 --cold-items drop",
}
SIZES = {"caser": ("50", "10"), "sasrec": ("64", "8"), "hetcomp": ("64", "6")}
"""Dimensions of teacher and student."""
SETTINGS = {
    "caser": "--model caser --set eval.protocol=caser",
    "sasrec": "--model sasrec --lr 1e-3 --epochs 200 --set train.every=5",
    # of the preset
    "hetcomp": "--model bpr --lr 1e-3 --weight-decay 1e-5 --batch-size 1024 --epochs 1000 --set eval.protocol=hetcomp "
    """--set train.every=10 --set train.patience=5 --set train.select='["recall@50"]'""",
}
OWN = {"sasrec": ("--set train.patience=3", "--set train.patience=10")}
"""Settings of teacher and student alone: SASRec of 8 dimensions stands still for 15 epochs before it goes on."""
METHODS = {"caser": ["rd"], "sasrec": ["rd", "de"], "hetcomp": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/protocols"))
    parser.add_argument("--data", type=Path, default=Path("datasets"))
    parser.add_argument("--only", default=",".join(SOURCES))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", default="2")
    options = parser.parse_args()
    for name in options.only.split(","):
        data, place = options.data / f"protocol-{name}", options.out / name
        if not data.exists():
            kdrs("data", "prepare", *shlex.split(SOURCES[name]), "--out", str(data))
        large, small = SIZES[name]
        machine = ["--device", "cpu", "--threads", options.threads]
        common = ["--data", str(data), *shlex.split(SETTINGS[name]), *machine]
        of_teacher, of_student = (shlex.split(own) for own in OWN.get(name, ("", "")))
        carry_out(place / "teacher", "train", *common, *of_teacher, "--dim", large, "--seed", "0")
        for seed in options.seeds.split(","):
            own = [*common, *of_student, "--dim", small, "--seed", seed]
            carry_out(place / "student" / f"seed-{seed}", "train", *own)
            for method in METHODS[name]:
                teacher = ["--method", method, "--teacher", str(place / "teacher")]
                carry_out(place / method / f"seed-{seed}", "distill", *own, *teacher)
            if name == "hetcomp":
                preset = ["hetcomp", "--data", str(data), *machine, "--seed", seed]
                carry_out(place / "hetcomp" / f"seed-{seed}", "distill", *preset)


if __name__ == "__main__":
    main()
