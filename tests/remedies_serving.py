"""Of `kdrs export`, `recommend` and `similar`: cases of test_remedies.py."""

from __future__ import annotations

import shutil
from pathlib import Path

from commands import ok
from remedies import Case
from remedies_compact import neumf, vectors

EXPORT = ("export", "t", "--out", "e.safetensors")
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
    "no products to export": Case(
        ("export", "neumf", "--out", "e.safetensors"),
        "kdrs compress neumf --dim 64 --bits 32 --out SMALL",
        ("compress", "neumf", "--dim", "4", "--bits", "32", "--out", "small"),
        neumf,
        names=("kdrs compress",),
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
