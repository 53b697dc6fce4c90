"""Of `kdrs compress`, ``--budget`` and starts from a teacher: cases of test_remedies.py."""

from __future__ import annotations

from pathlib import Path

from commands import FAST, ok
from remedies import TAUGHT, TRAIN, Case, lists_alone
from remedies_teacher import short_lists

WITHIN = ("distill", "--data", "d", *FAST[2:], "--epochs", "1", "--teacher", "t")
SMALL = ("compress", "t", "--out", "small")


def neumf(folder: Path) -> None:
    ok("train", "--data", "d", "--model", "neumf", *FAST[2:], "--dim", "2", "--epochs", "1", "--out", "neumf")


def vectors(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    from kdrs.data import Dataset

    data, rng = Dataset.load(folder / "d"), np.random.default_rng(0)
    tables = {name: rng.standard_normal((n, 3)) for name, n in (("users", data.n_users), ("items", data.n_items))}
    save_file(tables, folder / "vectors.safetensors", metadata={"kdrs": "teacher/1"})


def compressed(folder: Path) -> None:
    ok("compress", "t", "--out", "made")


CASES = {
    "bits that are none": Case((*SMALL, "--bits", "5"), "1, 2, 3, 4, 8", (*SMALL, "--bits", "4")),
    "users that are none": Case((*SMALL, "--users", "tables"), "table", (*SMALL, "--users", "table")),
    "a dimension that is none": Case((*SMALL, "--dim", "0"), "from 1 on", (*SMALL, "--dim", "1")),
    "more dimensions than there are": Case((*SMALL, "--dim", "3"), "as many or fewer", (*SMALL, "--dim", "2")),
    "nothing to compress": Case(("compress", "nowhere", "--out", "small"), "check the path", SMALL),
    "a teacher file without its data": Case(
        ("compress", "vectors.safetensors", "--out", "small"),
        "give it with --data",
        ("compress", "vectors.safetensors", "--out", "small", "--data", "d"),
        vectors,
    ),
    "lists to compress": Case(
        ("compress", "lists.safetensors", "--data", "d", "--out", "small"),
        "distil from its lists: kdrs distill",
        None,
        short_lists,
    ),
    "scores that are no products": Case(
        ("compress", "neumf", "--out", "small"), "--dim", ("compress", "neumf", "--out", "small", "--dim", "4"), neumf
    ),
    "training what was compressed": Case(
        ("train", "made/config.toml"), "make it anew: kdrs compress t", (*SMALL,), compressed, names=("kdrs compress",)
    ),
    "a model without a compact form": Case(
        (*TRAIN[:3], "--model", "sasrec", *FAST[2:], "--dim", "2", "--epochs", "1", "--set", "model.bits=2"),
        "kdrs compress",
        (*TRAIN, "--set", "model.bits=2"),
        names=("bpr",),
    ),
    "a budget without a teacher": Case(
        (*WITHIN[:-2], "--budget", "1/2"), "--teacher RUN", (*WITHIN, "--budget", "1/2")
    ),
    "a budget that is none": Case((*WITHIN, "--budget", "2"), "1/20", (*WITHIN, "--budget", "1/2")),
    "a budget for nothing": Case((*WITHIN, "--budget", "1/1000"), "allow more", (*WITHIN, "--budget", "1/2")),
    "a budget and a size": Case(
        (*WITHIN, "--budget", "1/2", "--dim", "1"), "leave one of the two out", (*WITHIN, "--budget", "1/2")
    ),
    "a budget of two teachers": Case(
        (*WITHIN, "--teacher", "u", "--budget", "1/2"), "give the one whose bytes count", (*WITHIN, "--budget", "1/2")
    ),
    "a budget of lists": Case(
        (*WITHIN[:-1], "lists.safetensors", "--budget", "1/2"),
        "instead of --budget",
        (
            "distill", "--data", "d", "--teacher", "lists.safetensors", "--method", "rrd", "--set", "distill.0.pool=60",
            "--model", "bpr", "--dim", "16", "--out", "STUDENT", "--epochs", "1",
        ),
        lists_alone,
        names=("--set distill.0.pool=60 --model bpr --dim 16 --out STUDENT",),
    ),
    "a start of computed vectors": Case(
        (*TAUGHT[:3], "--model", "ngcf", *TAUGHT[5:], "--start", "teacher"), "take bpr", (*TAUGHT, "--start", "teacher")
    ),
    "a start from no teacher": Case(
        (*TRAIN, "--start", "teacher"), "kdrs distill with --method and --teacher", (*TAUGHT, "--start", "teacher")
    ),
}  # fmt: skip
CASES |= {
    "bits and a budget": Case(
        (*SMALL, "--bits", "2", "--budget", "1/2"), "leave one of the two out", (*SMALL, "--budget", "1/2")
    ),
    "a dimension and a budget": Case(
        (*SMALL, "--dim", "2", "--budget", "1/2"), "leave one of the two out", (*SMALL, "--budget", "1/2")
    ),
}
CASES |= {
    "users of a teacher that is no product": Case(
        (
            *WITHIN[:-1],
            "neumf",
            "--model",
            "bpr",
            "--dim",
            "2",
            "--method",
            "rrd",
            "--set",
            "distill.0.teacher_users=encoded",
        ),
        "leave teacher_users out",
        (*WITHIN[:-1], "neumf", "--model", "bpr", "--dim", "2", "--method", "rrd"),
        neumf,
    ),
    "encoded users of a teacher that is trained on": Case(
        (*WITHIN, "--model", "bpr", "--dim", "2", "--method", "bd", "--set", "distill.0.teacher_users=encoded"),
        "leave it out",
        (*WITHIN, "--model", "bpr", "--dim", "2", "--method", "bd"),
    ),
    "a file of a run": Case(("compress", "t/model.safetensors", "--out", "small"), "name the run: kdrs compress t"),
    "a budget that starts elsewhere": Case(
        (*WITHIN, "--budget", "1/2", "--start", "t"), "leave one of the two out", (*WITHIN, "--budget", "1/2")
    ),
    "a budget of a model without a form": Case(
        (*WITHIN, "--budget", "1/2", "--model", "ngcf"), "leave --model out", (*WITHIN, "--budget", "1/2")
    ),
    "JSON and all ways": Case((*SMALL, "--json", "--verbose"), "leave --verbose out", (*SMALL, "--json")),
    "a place that is taken": Case(
        ("compress", "t", "--out", "u"), "name another folder with --out", SMALL, names=("--out",)
    ),
    "a run that is there": Case(
        (*TRAIN, "--out", "t"), "go on with it by --resume", (*TRAIN, "--out", "t", "--resume")
    ),
    "a data set that has moved": Case(
        (*SMALL,),
        "give it with --data",
        (*SMALL, "--data", "moved"),
        lambda folder: (folder / "d").rename(folder / "moved"),
    ),
}
