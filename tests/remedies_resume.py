"""Of `kdrs resume`, and of runs whose data set or teacher has moved: cases of test_remedies.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from commands import ok
from faulty_files import both
from remedies import TAUGHT, Case


def rename(name: str, to: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / to)


def encoded(folder: Path) -> None:
    ok("compress", "t", "--users", "encoded", "--bits", "8", "--out", "small")
    rename("d", "moved")(folder)


AGAIN = (*TAUGHT, "--out", "s", "--resume")

CASES = {
    "a run whose data set has moved": Case(
        ("resume", "s"), "say where it is now", ("resume", "s", "--data", "moved"), rename("d", "moved")
    ),
    "the command of a run whose data set has moved": Case(
        AGAIN, "say where it is now", tuple("moved" if word == "d" else word for word in AGAIN), rename("d", "moved")
    ),
    "a run whose teacher has moved": Case(
        ("resume", "s"), "say where that is now", ("resume", "s", "--teacher", "moved"), rename("t", "moved")
    ),
    "the command of a run whose teacher has moved": Case(
        AGAIN, "say where it is now", tuple("moved" if word == "t" else word for word in AGAIN), rename("t", "moved")
    ),
    "another teacher": Case(
        ("resume", "s"),
        "put back what it was begun with",
        ("resume", "s"),
        both(rename("t", "moved"), rename("u", "t")),
        both(rename("t", "u"), rename("moved", "t")),
    ),
    "another teacher, in another folder": Case(
        ("resume", "s"),
        "begin a run with this one in another folder",
        (*TAUGHT, "--out", "new"),
        both(rename("t", "moved"), rename("u", "t")),
        names=("another folder",),
    ),
    "places of more teachers than a run has": Case(
        ("resume", "s", "--teacher", "t", "--teacher", "u"),
        "give one --teacher for each",
        ("resume", "s", "--teacher", "t"),
    ),
    "what was seen, without the data set": Case(
        ("recommend", "t", "--user", "u1"),
        "--seen none",
        ("recommend", "t", "--user", "u1", "--seen", "none"),
        rename("d", "moved"),
    ),
    "encoded users without the data set": Case(
        ("recommend", "small", "--user", "u1", "--seen", "none"),
        "give it: --data",
        ("recommend", "small", "--user", "u1", "--seen", "none", "--data", "moved"),
        encoded,
    ),
}
