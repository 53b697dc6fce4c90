"""What goes wrong on the way into production: more of the table of test_remedies.py."""

from __future__ import annotations

from pathlib import Path

from commands import ok
from kdrs.data import Dataset
from kdrs.runs.config import config_of, resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from remedies import PREPARE, TRAIN, Case
from remedies_teacher import vectors

JOINED = ("data", "prepare", "d", "--split", "none", "--out", "all")
REFIT = ("refit", "s", "--data", "all", "--out", "f")


def joined(folder: Path) -> None:
    Dataset.load(folder / "d").whole().save(folder / "all")


def compressed(folder: Path) -> None:
    joined(folder)
    ok("compress", "t", "--bits", "2", "--out", "c")


def foreign(folder: Path) -> None:
    vectors(folder)
    ok("teacher", "import", "v.npz", "--from", "npz", "--data", "d", "--out", "theirs.safetensors", "--overwrite")


def compressed_file(folder: Path) -> None:
    joined(folder)
    foreign(folder)
    ok("compress", "theirs.safetensors", "--data", "d", "--bits", "2", "--out", "c")


def interrupted(folder: Path) -> None:
    joined(folder)
    values = config_of(Run.open(folder / "longer")).to_dict()
    execute(resolve({**values, "data": {"path": str(folder / "d")}}), folder / "half", should_stop=lambda: True)


CASES = {
    "a refit without data": Case(
        ("refit", "s", "--out", "f"),
        "--split none --out ALL",
        REFIT,
        then=joined,
        names=("--data",),
    ),
    "other teachers than the run has": Case(
        (*REFIT, "--teacher", "t", "--teacher", "u"), "give one --teacher for each", (*REFIT, "--teacher", "t"), joined
    ),
    "the refit of what was not trained": Case(
        ("refit", "c", "--data", "all", "--out", "f"),
        "then kdrs compress TEACHER",
        ("refit", "t", "--data", "all", "--out", "f"),
        compressed,
        names=("kdrs compress TEACHER", "bits, dim and users"),
    ),
    "the refit of what was made from a teacher file": Case(
        ("refit", "c", "--data", "all", "--out", "f"),
        "then kdrs compress FILE --data all",
        ("compress", "theirs.safetensors", "--data", "all", "--bits", "2", "--out", "f"),
        compressed_file,
        then=foreign,
        names=("kdrs teacher import", "bits"),
    ),
    "a start of what started from nothing": Case((*REFIT, "--start", "u"), "leave --start out", REFIT, joined),
    "the refit of a run that is not finished": Case(
        ("refit", "half", "--data", "all", "--out", "f"), "finish it", ("resume", "half"), interrupted
    ),
    "a refit that is measured": Case(
        ("eval", "f"),
        "compare the runs of the split",
        ("eval", "s"),
        lambda folder: (joined(folder), ok(*REFIT)),
        names=("runs",),
    ),
    "parts that are joined and filtered": Case((*JOINED, "--k-core", "2"), "leave it out", JOINED),
    "candidates of nothing": Case(
        (*PREPARE, "--split", "none", "--candidates", "3", "--out", "x"),
        "leave it out",
        (*PREPARE, "--split", "none", "--out", "x"),
    ),
    "a run on all pairs that shall stop early": Case(
        ("train", "--data", "all", *TRAIN[3:], "--patience", "2"),
        "leave it out",
        ("train", "--data", "all", *TRAIN[3:]),
        joined,
    ),
}
