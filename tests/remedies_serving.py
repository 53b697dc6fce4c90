"""Of `kdrs export`, `recommend` and `similar`: cases of test_remedies.py."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from commands import FAST, ok
from kdrs import save_teacher
from kdrs.data import Dataset
from remedies import Case
from remedies_compact import neumf, vectors
from remedies_teacher import short_lists

EXPORT = ("export", "t", "--out", "e.safetensors")
BY = ("distill", "--data", "d", *FAST, "--epochs", "1", "--method", "rrd", "--out", "k", "--teacher")
ALL = ("recommend", "e.safetensors", "--seen", "none", "--out", "l.csv")


def exported(folder: Path) -> None:
    ok(*EXPORT)


def seen(folder: Path) -> None:
    ok(*EXPORT, "--seen")


def halves(folder: Path) -> None:
    exported(folder)
    ok(*ALL, "--part", "1/2")


def both_halves(folder: Path) -> None:
    halves(folder)
    ok(*ALL, "--part", "2/2")


def of_more_items(folder: Path) -> None:
    exported(folder)
    data = Dataset.load(folder / "d")
    train, valid, test = (one.to_csr() for one in (data.train, data.valid, data.test))
    train.resize((data.n_users, data.n_items + 1))
    valid.resize(train.shape)
    test.resize(train.shape)
    items = [*data.items, "new"]
    Dataset.from_interactions(train, valid, test, users=data.users, items=items).save(folder / "more")


def sequential(folder: Path) -> None:
    ok("train", "--data", "d", "--model", "sasrec", "--dim", "8", "--epochs", "1", "--device", "cpu", "--out", "seq")
    ok("export", "seq", "--out", "seq.safetensors")
    replace(Dataset.load(folder / "d"), order=None, order_by=None).save(folder / "unordered")


def items_alone(folder: Path) -> None:
    data, vectors = Dataset.load(folder / "d"), np.random.default_rng(0).standard_normal((60, 3), np.float32)
    vectors = vectors[: data.n_items]
    save_teacher(folder / "alone.safetensors", items=vectors, item_ids=list(data.items), items_alone="none")
    np.save(folder / "vectors.npy", vectors)
    (folder / "alone.txt").write_text("".join(f"{item}\n" for item in data.items))


def one_id(folder: Path) -> None:
    exported(folder)
    (folder / "one.txt").write_text("i3\n")


def headed(folder: Path) -> None:
    exported(folder)
    (folder / "headed.txt").write_text("id\nu1\n")
    (folder / "one.txt").write_text("u1\n")


def table(folder: Path) -> None:
    seen(folder)
    (folder / "pairs.csv").write_text("user,item\n,i3\n")
    (folder / "whole.csv").write_text("user,item\nu1,i3\n")


def without_data(folder: Path) -> None:
    shutil.copytree(folder / "d", folder / "elsewhere")
    shutil.rmtree(folder / "d")


CASES = {
    "a file that is there": Case(
        EXPORT, "another file with --out", ("export", "t", "--out", "f.safetensors"), exported
    ),
    "a file that is to be replaced": Case(EXPORT, "replace it with --overwrite", (*EXPORT, "--overwrite"), exported),
    "a file of another kind": Case(
        ("export", "t", "--out", "t/config.toml", "--overwrite"),
        "another file with --out",
        ("export", "t", "--out", "f.safetensors", "--overwrite"),
    ),
    "another format to be replaced": Case(
        ("export", "e.safetensors", "--to", "npz", "--out", "e.safetensors", "--overwrite"),
        "another file with --out",
        ("export", "e.safetensors", "--to", "npz", "--out", "v.npz"),
        exported,
    ),
    "no products to export": Case(
        ("export", "neumf", "--out", "e.safetensors"),
        "kdrs compress neumf --dim 64 --bits 32 --out SMALL",
        ("compress", "neumf", "--dim", "4", "--bits", "32", "--out", "small"),
        neumf,
        names=("kdrs compress",),
    ),
    "lists alone to export": Case(
        ("export", "lists.safetensors", "--data", "d", "--out", "e.safetensors"),
        "kdrs distill --data d --teacher lists.safetensors --method rrd --set distill.0.pool=5 --model bpr --dim 16 "
        "--out STUDENT",
        (
            "distill",
            "--data",
            "d",
            "--teacher",
            "lists.safetensors",
            "--method",
            "rrd",
            "--set",
            "distill.0.pool=5",
            "--model",
            "bpr",
            "--dim",
            "16",
            "--out",
            "STUDENT",
            "--epochs",
            "1",
            "--device",
            "cpu",
        ),
        short_lists,
        names=("kdrs distill",),
    ),
    "item vectors alone to export": Case(
        ("export", "alone.safetensors", "--data", "d", "--out", "e.safetensors"),
        "kdrs teacher import --items-alone mean",
        (
            "teacher",
            "import",
            "vectors.npy",
            "--from",
            "npy",
            "--item-ids",
            "alone.txt",
            "--data",
            "d",
            "--items-alone",
            "mean",
        ),
        items_alone,
        names=("kdrs teacher import",),
    ),
    "a student to export": Case(
        ("export", "e.safetensors", "--out", "f.safetensors"),
        "--to npz",
        ("export", "e.safetensors", "--to", "npz", "--out", "f.npz"),
        exported,
    ),
    "a student as a teacher": Case(
        (*BY, "e.safetensors"), "such as kdrs distill --teacher RUN", (*BY, "t"), exported, names=("kdrs distill",)
    ),
    "a student without the data set": Case(
        ("eval", "e.safetensors"), "give the data set with --data", ("eval", "e.safetensors", "--data", "d"), exported
    ),
    "a student that lacks items": Case(
        ("eval", "e.safetensors", "--data", "more"),
        "on the data set that it was made of, which is called clicks: --data",
        ("eval", "e.safetensors", "--data", "d"),
        of_more_items,
    ),
    "a sequential student without an order": Case(
        ("eval", "seq.safetensors", "--data", "unordered"),
        "with --data; or the data set that it was made of",
        ("eval", "seq.safetensors", "--data", "d"),
        sequential,
    ),
    "a folder that is not there": Case(
        (*EXPORT[:-1], "new/e.safetensors"),
        "mkdir -p new",
        (*EXPORT[:-1], "new/e.safetensors"),
        then=lambda folder: (folder / "new").mkdir(),
    ),
    "lists in a folder that is not there": Case(
        (*ALL[:-1], "new/l.csv"),
        "mkdir -p new",
        (*ALL[:-1], "new/l.csv"),
        exported,
        then=lambda folder: (folder / "new").mkdir(),
    ),
    "a teacher as the student alone": Case(
        ("export", "s", "--alone", "t", "--out", "e.safetensors"),
        "the teacher of s, and no student alone",
        ("export", "s", "--alone", "wide", "--out", "e.safetensors"),
    ),
    "parts of what is not kept": Case(
        (*EXPORT, "--seen-parts", "all"), "--seen --seen-parts all", (*EXPORT, "--seen", "--seen-parts", "all")
    ),
    "seen pairs without the data": Case(
        (*EXPORT, "--seen"), "give it: --data", (*EXPORT, "--seen", "--data", "elsewhere"), without_data
    ),
    "a baseline of a teacher file": Case(
        ("export", "vectors.safetensors", "--data", "d", "--alone", "u", "--out", "e.safetensors"),
        "leave --alone out",
        ("export", "vectors.safetensors", "--data", "d", "--out", "e.safetensors"),
        vectors,
    ),
    "a baseline without a teacher": Case((*EXPORT, "--alone", "u"), "leave --alone out", EXPORT),
    "data for a student file": Case((*ALL, "--data", "d"), "leave --data out", ALL, exported),
    "all users on the screen": Case(
        ("recommend", "e.safetensors", "--seen", "none"), "name one by --out", ALL, exported
    ),
    "no student": Case(
        ("recommend", "--out", "l.csv"),
        "kdrs recommend STUDENT_OR_RUN",
        ("recommend", "e.safetensors", "--out", "l.csv"),
        seen,
    ),
    "a part without its file": Case(
        ("recommend", "e.safetensors", "--seen", "none", "--part", "1/2", "--user", "u1"),
        "name the whole file",
        (*ALL, "--part", "1/2"),
        exported,
    ),
    "a share that is none": Case((*ALL, "--part", "3/2"), "as 2/8", (*ALL, "--part", "2/2"), exported),
    "users named twice": Case(
        (*ALL, "--user", "u1", "--histories", "whole.csv"), "in one way", (*ALL, "--user", "u1"), table
    ),
    "a student to merge": Case(
        ("recommend", "e.safetensors", "--merge", "--out", "l.csv"),
        "kdrs recommend --merge --out FILE",
        ("recommend", "--merge", "--out", "l.csv"),
        both_halves,
        names=("kdrs recommend --merge",),
    ),
    "a user without an item": Case(
        ("recommend", "e.safetensors", "--histories", "pairs.csv", "--out", "l.csv"),
        "in every row",
        ("recommend", "e.safetensors", "--histories", "whole.csv", "--out", "l.csv"),
        table,
    ),
    "no table of pairs": Case(
        ("recommend", "e.safetensors", "--histories", "nowhere.csv", "--out", "l.csv"),
        "check the path",
        ("recommend", "e.safetensors", "--histories", "whole.csv", "--out", "l.csv"),
        table,
    ),
    "an id in the place of a file": Case(
        (*ALL, "--exclude", "i3"), "a file of item ids, one a line", (*ALL, "--exclude", "one.txt"), one_id
    ),
    "a header among ids": Case(
        (*ALL, "--users", "headed.txt"), "is line 1 of headed.txt a header?", (*ALL, "--users", "one.txt"), headed
    ),
    "items named twice": Case(
        ("similar", "e.safetensors", "--item", "i1", "--items", "ids.txt"),
        "in one way",
        ("similar", "e.safetensors", "--item", "i1"),
        exported,
    ),
    "all items on the screen": Case(
        ("similar", "e.safetensors"), "name one by --out", ("similar", "e.safetensors", "--out", "n.csv"), exported
    ),
    "a metric that is none": Case(
        ("similar", "e.safetensors", "--item", "i1", "--metric", "x"),
        "cosine, dot",
        ("similar", "e.safetensors", "--item", "i1", "--metric", "dot"),
        exported,
    ),
}
ARRAYS = ("export", "t", "--to", "npz", "--out", "a.npz")
CASES |= {
    "a side of a student file": Case(
        (*EXPORT, "--side", "users"), "--to parquet", (*EXPORT, "--side", "users", "--to", "parquet")
    ),
    "seen pairs in arrays": Case((*ARRAYS, "--seen"), "leave --seen", ARRAYS),
    "data for arrays of a student file": Case(
        ("export", "e.safetensors", *ARRAYS[2:], "--data", "d"),
        "leave --data out",
        ("export", "e.safetensors", *ARRAYS[2:]),
        exported,
    ),
    "arrays that are there": Case(
        ARRAYS, "another file with --out", (*ARRAYS[:-1], "b.npz"), lambda folder: (folder / "a.npz").write_text("mine")
    ),
}
NAMED = ("recommend", "t", "--user", "u0", "--k", "3", "--seen", "clicks.csv", "--columns")
CASES |= {"one name for two columns": Case((*NAMED, "user"), "give two names", (*NAMED, "user,item"))}
