"""Of `kdrs teacher import`: cases of test_remedies.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from kdrs import save_teacher
from kdrs.data import Dataset
from remedies import TRAIN, Case

IMPORT = ("teacher", "import", "v.npz", "--from", "npz", "--data", "d")
OUT = (*IMPORT, "--out", "v.safetensors")


def vectors(folder: Path, *, items: int | None = None, ids: bool = True) -> None:
    data, rng = Dataset.load(folder / "d"), np.random.default_rng(0)
    kept = list(data.items)[:items]
    tables = {"users": rng.standard_normal((data.n_users, 3)), "items": rng.standard_normal((len(kept), 3))}
    named = {"user_ids": np.array(list(data.users)), "item_ids": np.array(kept)} if ids else {}
    np.savez(folder / "v.npz", **tables, **named)
    np.save(folder / "items.npy", tables["items"])
    (folder / "items.txt").write_text("".join(f"{one}\n" for one in kept))


def short(folder: Path) -> None:
    vectors(folder, items=-2)


def twice(folder: Path) -> None:
    vectors(folder)
    (folder / "v.safetensors").write_text("")


LISTS = ("teacher", "import", "l.csv", "--from", "lists", "--data", "d", "--out", "l.safetensors")


def listed(head: str) -> Callable[[Path], object]:
    """Lists of two items with a score each."""

    def write(folder: Path) -> None:
        data = Dataset.load(folder / "d")
        rows = [f"{user},{data.items[item]},{2 - item}" for user in data.users for item in (0, 1)]
        (folder / "l.csv").write_text("\n".join([*head.split(), *rows]))
        np.savez(folder / "l.npz", topk=np.zeros((data.n_users, 2), int))

    return write


def short_lists(folder: Path) -> None:
    """Lists of five items, fewer than methods ask for by themselves."""
    data = Dataset.load(folder / "d")
    best = np.argsort(np.random.default_rng(0).random((data.n_users, data.n_items)), axis=1)[:, :5]
    save_teacher(folder / "lists.safetensors", topk=best, user_ids=data.users, item_ids=data.items)


CASES = {
    "lists that are too short": Case(
        ("distill", *TRAIN[1:], "--teacher", "lists.safetensors", "--method", "rrd"),
        "ask for fewer",
        ("distill", *TRAIN[1:], "--teacher", "lists.safetensors", "--method", "rrd", "--set", "distill.0.pool=5"),
        short_lists,
        names=("--set distill.0.pool=5 (rrd",),
    ),
    "lists that are too short for another method": Case(
        ("distill", *TRAIN[1:], "--teacher", "lists.safetensors", "--method", "rd"),
        "ask for fewer",
        ("distill", *TRAIN[1:], "--teacher", "lists.safetensors", "--method", "rd", "--set", "distill.0.items=5"),
        short_lists,
        names=("--set distill.0.items=5 (rd",),
    ),
    "lists of other names": Case(
        LISTS, "--columns USER,ITEM", (*LISTS, "--columns", "visitor,product"), listed("visitor,product,points")
    ),
    "lists and their scores of other names": Case(
        LISTS, "USER,ITEM,SCORE", (*LISTS, "--columns", "visitor,product,points"), listed("visitor,product,points")
    ),
    "lists without a header": Case(
        (*LISTS, "--no-header"), "--columns 0,1 or 0,1,2", (*LISTS, "--no-header", "--columns", "0,1,2"), listed("")
    ),
    "lists that may have no header": Case(
        LISTS, "if line 1 is a row already, --no-header", (*LISTS, "--no-header", "--columns", "0,1,2"), listed("")
    ),
    "columns of vectors": Case((*OUT, "--columns", "user,item"), "leave --columns out", OUT, vectors),
    "vectors without a header": Case((*OUT, "--no-header"), "leave --no-header out", OUT, vectors),
    "lists in an archive": Case(
        (*LISTS[:2], "l.npz", *LISTS[3:]),
        "CSV, TSV, .parquet or .jsonl",
        LISTS,
        listed("user,item,score"),
        names=("row",),
    ),
    "a teacher without its form": Case(("teacher", "import", "v.npz", "--data", "d"), "--from FORM", IMPORT, vectors),
    "a teacher without data": Case(IMPORT[:-2], "--data DATA", IMPORT, vectors),
    "a teacher of a misspelt form": Case(
        (*IMPORT[:4], "npzz", *IMPORT[5:]), "did you mean 'npz'", IMPORT, vectors, names=("npz",)
    ),
    "JSON and more of an import": Case(
        (*IMPORT, "--json", "--verbose"), "leave --verbose out", (*IMPORT, "--json"), vectors
    ),
    "a teacher of another name": Case((*IMPORT, "--out", "v"), "NAME.safetensors", OUT, vectors),
    "a teacher that is there": Case(OUT, "--overwrite", (*OUT, "--overwrite"), twice),
    "ids that are missing": Case(OUT, "--missing mean", (*OUT, "--missing", "mean"), short),
    "what may be missing": Case((*OUT, "--missing", "keep"), "refuse, mean, drop", (*OUT, "--missing", "drop"), short),
    "users of items that are not alone": Case((*OUT, "--items-alone", "mean"), "leave --items-alone out", OUT, vectors),
    "ids that a file has": Case((*OUT, "--item-ids", "items.txt"), "leave --item-ids out", OUT, vectors),
    "rows without names": Case(
        ("teacher", "import", "items.npy", "--from", "npy", "--data", "d", "--missing", "drop"),
        "--item-ids FILE",
        (
            "teacher",
            "import",
            "items.npy",
            "--from",
            "npy",
            "--data",
            "d",
            "--missing",
            "drop",
            "--item-ids",
            "items.txt",
        ),
        short,
    ),
    "a script without its library": Case(
        ("teacher", "import", "--print-script"), "--from", ("teacher", "import", "--print-script", "--from", "recbole")
    ),
    "a script of a form that needs none": Case(
        ("teacher", "import", "--print-script", "--from", "npy"),
        "recbole",
        ("teacher", "import", "--print-script", "--from", "recbole"),
    ),
    "a script of a file": Case(
        ("teacher", "import", "x", "--print-script", "--from", "recbole"),
        "leave it out",
        ("teacher", "import", "--print-script", "--from", "recbole"),
    ),
    "an archive as teacher": Case(
        ("distill", *TRAIN[1:], "--teacher", "v.npz", "--method", "cd"),
        "kdrs teacher import v.npz --from npz --data DATA --out teacher.safetensors",
        (*IMPORT, "--out", "teacher.safetensors"),
        vectors,
    ),
}
