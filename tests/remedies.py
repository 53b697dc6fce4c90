"""What goes wrong on the command line, and what the error says to do instead: the table of test_remedies.py.

A case is a command that fails, words of its error, and what the remedy makes of the command. Options of the second command that
the first has not must stand in the remedy, and so must a command that is another one. To add a case: an entry of ``CASES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from commands import FAST, ok
from faulty_files import both, write
from kdrs.data import Dataset

TRAIN = ("train", "--data", "d", *FAST, "--dim", "2", "--epochs", "1")
TAUGHT = ("distill", *TRAIN[1:], "--teacher", "t", "--method", "rrd")
PREPARE = ("data", "prepare", "clicks.csv")


@dataclass(frozen=True)
class Case:
    wrong: tuple[str, ...]
    error: str
    """Part of cause or remedy."""
    right: tuple[str, ...] | None = None
    """The command that the remedy makes of it; None: the command that the remedy spells out after ``kdrs``."""
    before: Callable[[Path], object] | None = None
    """Brings about the fault, in a folder of its own."""
    then: Callable[[Path], object] | None = None
    """What the remedy says to do with files first."""
    names: tuple[str, ...] = field(default=())
    """Words of the remedy that lead to ``right`` where no option does."""


def lists_alone(folder: Path) -> None:
    data = Dataset.load(folder / "d")
    scores = np.random.default_rng(0).random((data.n_users, data.n_items))
    best = np.argsort(-scores, axis=1).astype(np.int32)
    save_file({"topk": np.ascontiguousarray(best)}, folder / "lists.safetensors", metadata={"kdrs": "teacher/1"})


FILE = "[data]\npath = 'd'\n[model]\nname = 'bpr'\ndim = 2\n[train]\nepochs = 1\n"
PART = "[teachers.x.model]\nname = 'bpr'\ndim = 8\n"
CHAIN = "[[distill]]\nmethod = 'takd'\nteacher = 't'\nchain = [3]\n"
TERM = "[[distill]]\nmethod = 'rrd'\nteacher = 't'\n"

CASES = {
    # the command line
    "a misspelt command": Case(("trian", *TRAIN[1:]), "did you mean 'train'", TRAIN),
    "an option of another command": Case((*TRAIN, "--method", "rrd", "--teacher", "t"), "or use kdrs distill", TAUGHT),
    "no data set": Case(TRAIN[:1] + TRAIN[3:], "give one with --data", TRAIN),
    "a data set that is no table": Case((*TRAIN, "--set", "data=3"), "leave --set data=... out", TRAIN),
    "no model": Case(
        (*TAUGHT[:3], "--teacher", "t", "--method", "cd", "--set", "model.bits=2"),
        "such as bpr",
        (*TAUGHT[:3], "--teacher", "t", "--method", "cd", "--set", "model.bits=2", "--model", "bpr", "--epochs", "1"),
        names=("bpr",),
    ),
    "a model that is no table": Case(
        ("train", "--data", "d", "--epochs", "1", "--set", "model=bpr"),
        "write it as a table: [model]",
        ("train", "--data", "d", "--epochs", "1", "--set", "model.name=bpr"),
    ),
    "a misspelt model": Case(("models", "show", "bqr"), "did you mean 'bpr'", ("models", "show", "bpr")),
    "a misspelt method": Case(("methods", "show", "rrdd"), "did you mean 'rrd'", ("methods", "show", "rrd")),
    "a misspelt preset": Case(("presets", "show", "de-rd"), "did you mean 'de-rrd'", ("presets", "show", "de-rrd")),
    "JSON in the wrong place": Case(
        ("models", "--json", "show", "bpr"), "kdrs models show", ("models", "show", "bpr", "--json")
    ),
    "a run file with terms": Case(
        ("train", "rd.toml"), "use kdrs distill", ("distill", "rd.toml"), write("rd.toml", FILE + TERM)
    ),
    "a teacher without a method": Case(TAUGHT[:-2], "give one with --method", TAUGHT),
    "the teacher of a run file": Case(
        ("distill", "rd.toml", "--teacher", "u"),
        "--set distill.0.teacher=RUN",
        ("distill", "rd.toml", "--set", "distill.0.teacher=u"),
        write("rd.toml", FILE + TERM),
    ),
    "the weight of a run file": Case(
        ("distill", "rd.toml", "--weight", "2"),
        "--set distill.0.weight=NUMBER",
        ("distill", "rd.toml", "--set", "distill.0.weight=2"),
        write("rd.toml", FILE + TERM),
    ),
    "too many weights": Case(
        (*TAUGHT, "--weight", "1", "--weight", "2"), "give one --weight a --method", (*TAUGHT, "--weight", "1")
    ),
    "a method without a teacher": Case(("distill", *TRAIN[1:], "--method", "rrd"), "give one with --teacher", TAUGHT),
    "nothing to distil": Case(("distill", *TRAIN[1:]), "give --teacher; beside it --method", TAUGHT),
    "two kinds of seed": Case(
        (*TRAIN, "--seed", "1", "--seeds", "1,2"), "leave one of them out", (*TRAIN, "--seeds", "1,2")
    ),
    "a seed by --set": Case(
        (*TRAIN, "--set", "train.seed=1", "--seeds", "1,2"), "leave one of them out", (*TRAIN, "--set", "train.seed=1")
    ),
    "a tracker and none": Case(
        (*TRAIN, "--log", "none", "--log", "wandb"), "leave one of them out", (*TRAIN, "--log", "none")
    ),
    "seeds in another form": Case((*TRAIN, "--seeds", "0-1"), "write it as 0..4 or 0,1,2", (*TRAIN, "--seeds", "0..1")),
    "resume without a place": Case(
        (*TRAIN, "--resume"), "name its directory with --out", (*TRAIN, "--out", "t", "--resume")
    ),
    "resume of nothing": Case((*TRAIN, "--out", "new", "--resume"), "leave --resume out", (*TRAIN, "--out", "new")),
    "resume of a folder of seeds": Case(("resume", "a"), "kdrs resume"),
    "a dry run that resumes": Case(
        (*TRAIN, "--out", "t", "--resume", "--dry-run"),
        "leave --resume out",
        (*TRAIN, "--out", "new", "--dry-run"),
        names=("leave",),
    ),
    "JSON and more": Case((*TRAIN, "--json", "--verbose"), "leave --verbose out", (*TRAIN, "--json")),
    "no run": Case(("eval",), "kdrs eval RUN", ("eval", "t")),
    "a share without a file": Case(
        ("eval", "t", "--share", "1/2"),
        "name the file of the whole report",
        ("eval", "t", "--share", "1/2", "--out", "r.json"),
    ),
    "a part that is none": Case(
        ("eval", "t", "--part", "tset"), "did you mean 'test'", ("eval", "t", "--part", "test")
    ),
    "a test of nothing": Case(
        ("eval", "s", "t", "--test", "bootstrap"),
        "name a baseline",
        ("eval", "s", "t", "--test", "bootstrap", "--baseline", "t"),
        names=("baseline",),
    ),
    "candidates that are not there": Case(
        (*TRAIN[:2], "plain", *TRAIN[3:], "--protocol", "loo-499"),
        "kdrs data prepare with --candidates 499",
        (*TRAIN[:2], "new", *TRAIN[3:], "--protocol", "loo-499"),
        lambda folder: ok(*PREPARE, "--out", "plain"),
        lambda folder: ok(*PREPARE, "--out", "new", "--candidates", "499"),
    ),
    "a baseline of one": Case(("eval", "t", "--baseline", "t"), "add a run", ("eval", "t", "u", "--baseline", "t")),
    "a report in a full folder": Case(
        ("report", "t", "u", "--out", "d"), "another folder with --out", ("report", "t", "u", "--out", "new")
    ),
    "a report below a file": Case(
        ("report", "t", "u", "--out", "clicks.csv/r"), "another folder with --out", ("report", "t", "u", "--out", "new")
    ),
    "fetching a list into a folder": Case(
        ("data", "fetch", "list", "--to", "x"), "leave it out", ("data", "fetch", "list")
    ),
    "prepare to nowhere": Case(PREPARE, "say --dry-run", (*PREPARE, "--dry-run")),
    "overwriting nothing": Case(
        (*PREPARE, "--dry-run", "--overwrite"), "with --out", (*PREPARE, "--dry-run", "--overwrite", "--out", "d")
    ),
    "a misspelt protocol of splits": Case(
        (*PREPARE, "--preset", "loo-49", "--dry-run"),
        "did you mean 'loo-499'",
        (*PREPARE, "--preset", "loo-499", "--candidates", "5", "--dry-run"),
        names=("loo-499",),
    ),
    "what is prepared already": Case(("data", "prepare", "d", "--out", "x"), "kdrs data describe"),
    "a source that is not there": Case(
        ("data", "prepare", "citeulik-t", "--dry-run"),
        "did you mean 'citeulike-t'",
        ("data", "fetch", "list"),
        names=("citeulike-t",),
    ),
    "a folder without parts": Case(
        ("data", "prepare", "folder", "--dry-run"),
        "kdrs data prepare TRAIN --valid FILE --test FILE",
        ("data", "prepare", "folder/a.csv", "--test", "folder/b.csv", "--dry-run"),
        both(write("folder/a.csv", "user,item\na,x\nb,y\nb,x\n"), write("folder/b.csv", "user,item\na,y\n")),
    ),
    "shares in words": Case(
        (*PREPARE, "--split", "ratio", "--fractions", "most", "--dry-run"),
        "0.8,0.1,0.1",
        (*PREPARE, "--split", "ratio", "--fractions", "0.8,0.1,0.1", "--dry-run"),
    ),
    "a seed that draws nothing": Case(
        (*PREPARE, "--split", "time", "--seed", "1", "--dry-run"),
        "leave it out",
        (*PREPARE, "--split", "time", "--dry-run"),
    ),
    "an option of other splits": Case(
        (*PREPARE, "--n-test", "2", "--dry-run"),
        "last-n",
        (*PREPARE, "--n-test", "2", "--split", "last-n", "--dry-run"),
        names=("choose another split",),
    ),
    # run files
    "no such run file": Case(
        ("train", "de-rd"), "did you mean 'de-rrd'", ("presets", "show", "de-rrd"), names=("de-rrd",)
    ),
    "a run file that is not there": Case(
        ("train", "no.toml"), "check the path", ("train", "yes.toml"), write("yes.toml", FILE)
    ),
    "no TOML": Case(
        ("train", "bad.toml"),
        "is no TOML",
        ("train", "bad.toml"),
        write("bad.toml", FILE + "x"),
        write("bad.toml", FILE),
        names=("examples",),
    ),
    "a setting without a value": Case(
        (*TRAIN, "--set", "train.lr"), "--set train.lr=1e-3", (*TRAIN, "--set", "train.lr=1e-3")
    ),
    "an entry that is not there": Case(
        (*TAUGHT, "--set", "distill.1.weight=2"), "allowed: 0 to 0", (*TAUGHT, "--set", "distill.0.weight=2")
    ),
    "a key of a value": Case(
        (*TRAIN, "--set", "start=u", "--set", "start.path=t"), "--set start=VALUE", (*TRAIN, "--set", "start=u")
    ),
    "a misspelt key": Case((*TRAIN, "--set", "train.lrr=1"), "did you mean 'lr'", (*TRAIN, "--set", "train.lr=1")),
    "a value out of bounds": Case((*TRAIN, "--lr", "0"), "greater than 0", (*TRAIN, "--lr", "0.1")),
    "a misspelt key of a term": Case(
        (*TAUGHT, "--set", "distill.0.pol=20"), "did you mean 'pool'", (*TAUGHT, "--set", "distill.0.pool=20")
    ),
    "a term without a method": Case(
        ("distill", "rd.toml"),
        "such as rrd",
        ("distill", "rd.toml", "--set", "distill.0.method=rrd"),
        write("rd.toml", FILE + "[[distill]]\nteacher = 't'\n"),
        names=("method",),
    ),
    "a term without a teacher": Case(
        ("distill", "rd.toml"),
        "a run directory",
        ("distill", "rd.toml", "--set", "distill.0.teacher=t"),
        write("rd.toml", FILE + "[[distill]]\nmethod = 'rrd'\n"),
        names=("teacher",),
    ),
    "terms that are no list": Case(
        ("distill", "rd.toml"),
        "[[distill]]",
        ("distill", "rd.toml"),
        write("rd.toml", FILE + TERM.replace("[[distill]]", "[distill]")),
        write("rd.toml", FILE + TERM),
    ),
    "terms of one name": Case(
        (*TAUGHT, "--method", "rrd"),
        "--set distill.1.name=rrd-2",
        (*TAUGHT, "--method", "rrd", "--set", "distill.1.name=rrd-2"),
    ),
    "a name that is none": Case(
        (*TAUGHT, "--set", "distill.0.name=base"), "letters, digits", (*TAUGHT, "--set", "distill.0.name=basis")
    ),
    "a chain that is not used": Case((*TAUGHT, "--set", "distill.0.chain=1"), "leave it out", TAUGHT),
    "a chain of two teachers": Case(
        ("distill", *TRAIN[1:], "--teacher", "t", "--teacher", "u", "--method", "takd", "--set", "distill.0.chain=1"),
        "give one teacher",
        ("distill", *TRAIN[1:], "--teacher", "wide", "--method", "takd", "--set", "distill.0.chain=1"),
    ),
    "two methods in one word": Case(
        (*TAUGHT[:-1], "hint+rrd"), "--method hint --method rrd", (*TAUGHT[:-1], "hint", "--method", "rrd")
    ),
    "several teachers for one of two methods": Case(
        ("distill", *TRAIN[1:], "--teacher", "wide", "--teacher", "t", "--method", "dgkd", "--method", "rrd"),
        "term rrd: got 2 teachers",
        (
            *("distill", *TRAIN[1:], "--teacher", "wide", "--teacher", "t", "--method", "dgkd", "--method", "rrd"),
            *("--set", "distill.1.teacher=t"),
        ),
    ),
    "assistants of two kinds": Case(
        ("distill", *TRAIN[1:], "--teacher", "wide", "--method", "hyperkdma", "--set", "distill.0.chain=1"),
        'set assistants = "given"',
        (
            "distill",
            *TRAIN[1:],
            "--teacher",
            "wide",
            "--method",
            "hyperkdma",
            "--set",
            "distill.0.chain=1",
            "--set",
            "distill.0.assistants=given",
        ),
    ),
    "no room for a chain": Case(
        ("distill", *TRAIN[1:], "--teacher", "t", "--method", "takd"),
        "a larger teacher",
        ("distill", *TRAIN[1:], "--teacher", "wide", "--method", "takd"),
    ),
    "a chain out of order": Case(
        ("distill", *TRAIN[1:], "--teacher", "wide", "--method", "takd", "--set", "distill.0.chain=[3, 5]"),
        "largest first",
        ("distill", *TRAIN[1:], "--teacher", "wide", "--method", "takd", "--set", "distill.0.chain=[5, 3]"),
    ),
    "a chain of lists": Case(
        ("distill", *TRAIN[1:], "--teacher", "lists.safetensors", "--method", "takd"),
        "such as rrd",
        ("distill", *TRAIN[1:], "--teacher", "lists.safetensors", "--method", "rrd"),
        lists_alone,
    ),
    "parts that are no tables": Case(
        ("distill", "p.toml"),
        "[teachers.NAME]",
        ("distill", "p.toml"),
        write("p.toml", "teachers = ['x']\n" + FILE + TERM),
        write("p.toml", FILE + "[teachers.x.model]\nname = 'bpr'\ndim = 3\n" + TERM.replace("'t'", "'x'")),
    ),
    "a part with a bad name": Case(
        ("distill", "p.toml"),
        "letters, digits",
        ("distill", "p.toml"),
        write("p.toml", FILE + "[teachers.'a b'.model]\nname = 'bpr'\ndim = 3\n" + TERM.replace("'t'", "'a b'")),
        write("p.toml", FILE + "[teachers.a-b.model]\nname = 'bpr'\ndim = 3\n" + TERM.replace("'t'", "'a-b'")),
    ),
    "a part declared too late": Case(
        ("distill", "p.toml"),
        "declare it before",
        ("distill", "p.toml"),
        write(
            "p.toml",
            FILE
            + "[teachers.x]\nstart = 'y'\n[teachers.x.model]\nname = 'bpr'\ndim = 3\n"
            + "[teachers.y.model]\nname = 'bpr'\ndim = 3\n"
            + TERM.replace("'t'", "'x'"),
        ),
        write(
            "p.toml",
            FILE
            + "[teachers.y.model]\nname = 'bpr'\ndim = 3\n"
            + "[teachers.x]\nstart = 'y'\n[teachers.x.model]\nname = 'bpr'\ndim = 3\n"
            + TERM.replace("'t'", "'x'"),
        ),
    ),
    "a part that is not declared": Case(
        ("distill", "p.toml"),
        "did you mean 'xx'",
        ("distill", "p.toml"),
        write("p.toml", FILE + "[teachers.xx.model]\nname = 'bpr'\ndim = 3\n" + TERM.replace("'t'", "'xxx'")),
        write("p.toml", FILE + "[teachers.xx.model]\nname = 'bpr'\ndim = 3\n" + TERM.replace("'t'", "'xx'")),
    ),
    "a part of a chain that is declared too": Case(
        ("distill", "p.toml"),
        "another name",
        ("distill", "p.toml"),
        write("p.toml", FILE + PART.replace("x", "takd-3") + CHAIN.replace("'t'", "'takd-3'")),
        write("p.toml", FILE + PART.replace("x", "large") + CHAIN.replace("'t'", "'large'")),
        names=("name",),
    ),
    "a part that had more epochs": Case(
        ("distill", "p.toml", "--set", "parts=shared"),
        "ask for as many or more",
        ("distill", "p.toml", "--set", "parts=shared", "--set", "teachers.x.train.epochs=2"),
        both(
            write("p.toml", FILE + PART + TERM.replace("'t'", "'x'")),
            lambda folder: ok("distill", "p.toml", "--set", "parts=shared", "--set", "teachers.x.train.epochs=2"),
        ),
        names=("as many",),
    ),
}
