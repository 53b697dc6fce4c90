"""Of runs that are there, unfinished, damaged or other ones: cases of test_remedies.py."""

from __future__ import annotations

import shutil

from faulty_files import both, copy, delete, flip, status, write
from remedies import TAUGHT, TRAIN, Case, lists_alone

CASES = {
    "a seed without its reports": Case(
        (*TRAIN, "--seeds", "0,1", "--out", "a", "--resume"),
        "see to the causes above",
        ("resume", "a/seed-0"),
        delete("a/seed-0/report-valid.json", "a/seed-0/report-test.json"),
        names=("causes above",),
    ),
    "a damaged file of a run": Case(
        ("eval", "t"),
        "from a copy of the run",
        ("eval", "t"),
        write("t/data.json", "{"),
        copy("u/data.json", "t/data.json"),
    ),
    "a place that is taken": Case(
        (*TRAIN, "--out", "t"), "go on with it by --resume", (*TRAIN, "--out", "t", "--resume")
    ),
    "a dry run in a place that is taken": Case(
        (*TRAIN, "--out", "t", "--dry-run"), "another folder with --out", (*TRAIN, "--out", "new", "--dry-run")
    ),
    "a dry run in somebody's folder": Case(
        (*TRAIN, "--out", "d", "--dry-run"), "another folder with --out", (*TRAIN, "--out", "new", "--dry-run")
    ),
    "somebody's folder": Case((*TRAIN, "--out", "d"), "another folder with --out", (*TRAIN, "--out", "new")),
    "a place below a file": Case(
        (*TRAIN, "--out", "clicks.csv/x"), "another folder with --out", (*TRAIN, "--out", "new")
    ),
    "fewer epochs": Case(
        ("resume", "longer", "--epochs", "1"), "ask for as many or more", ("resume", "longer", "--epochs", "3")
    ),
    "seeds that are there": Case(
        (*TRAIN, "--seeds", "0..2", "--out", "a"),
        "a holds runs already: seed-0, seed-1",
        (*TRAIN, "--seeds", "0..2", "--out", "a", "--resume"),
    ),
    "a seed of other options": Case(
        (*TRAIN, "--dim", 9, "--seeds", "0..2", "--out", "a", "--resume"),
        "ask for what it was started with",
        (*TRAIN, "--seeds", "0..2", "--out", "a", "--resume"),
        names=("differ in nothing else",),
    ),
    "other options on resume": Case(
        (*TRAIN, "--out", "t", "--resume", "--lr", "1"),
        "only these may differ",
        (*TRAIN, "--out", "t", "--resume", "--epochs", "2"),
        names=("train.epochs",),
    ),
    "a run that diverged": Case(
        (*TRAIN, "--out", "far", "--lr", "1e38"),
        "lower the learning rate",
        (*TRAIN, "--out", "near", "--lr", "1e-3"),
        names=("another folder",),
    ),
    "a start of another size": Case(
        (*TRAIN, "--start", "wide"),
        "--model bpr --dim 12",
        (*TRAIN, "--start", "wide", "--model", "bpr", "--dim", "12"),
    ),
    "no run directory": Case(
        ("compress", "a", "--out", "c"),
        "name one of the runs in it",
        ("compress", "a/seed-0", "--out", "c"),
        names=("a/seed-0", "a/seed-1"),
    ),
    "a run that is not there": Case(("eval", "tt"), "check the path", ("eval", "t")),
    "a run twice": Case(("eval", "t", "t"), "name every run once", ("eval", "t")),
    "teacher files alone": Case(
        ("eval", "lists.safetensors", "--protocol", "default"),
        "with --data",
        ("eval", "lists.safetensors", "--protocol", "default", "--data", "d"),
        lists_alone,
    ),
    "an unfinished run": Case(
        ("eval", "t"),
        "finish it: kdrs resume",
        None,
        both(delete("t/model.safetensors"), status("t", status="interrupted")),
    ),
    "a run that failed": Case(
        ("eval", "t"),
        "it ended with MachineError: no space is left; free some; with the options that it has",
        None,
        both(
            delete("t/model.safetensors"),
            status("t", status="failed", error="MachineError: no space is left", remedy="free some"),
        ),
    ),
    "a run without its weights": Case(("eval", "t"), "kdrs resume", None, delete("t/model.safetensors")),
    "damaged weights": Case(
        ("eval", "t"), "kdrs resume", None, flip("t/model.safetensors"), delete("t/model.safetensors")
    ),
    "lost ids": Case(
        ("eval", "t"),
        "copy users.json from the data set",
        ("eval", "t"),
        delete("t/ids/users.json"),
        copy("d/users.json", "t/ids/users.json"),
        names=("users.json",),
    ),
    "a damaged head": Case(
        ("eval", "t"),
        "from a copy of the run",
        ("eval", "t"),
        write("t/config.toml", "[mod"),
        lambda folder: shutil.copytree(folder / "u", folder / "t", dirs_exist_ok=True),
    ),
    "a run of another split": Case(
        ("distill", "--data", "other", *TAUGHT[3:]),
        "train it on this data set",
        ("train", "--data", "other", *TRAIN[3:], "--out", "new"),
        names=("train it on this data set",),
    ),
    "a resume on another split": Case(
        (*TRAIN[:2], "other", *TRAIN[3:], "--out", "t", "--resume"),
        "the data set that it was started with",
        (*TRAIN, "--out", "t", "--resume"),
    ),
    "seeds that fail": Case(
        (*TRAIN, "--seeds", "0,1", "--out", "new"),
        "--resume",
        (*TRAIN, "--seeds", "0,1", "--out", "new", "--resume"),
        write("new/seed-1", "in the way"),
        delete("new/seed-1"),
    ),
    "columns with a teacher that is trained along": Case(
        ("distill", *TRAIN[1:], "--teacher", "t", "--method", "bd", "--set", "train.shard=columns"),
        "trains its teacher along",
        ("distill", *TRAIN[1:], "--teacher", "t", "--method", "bd"),
        names=("leave train.shard out",),
    ),
    "patience without validation": Case(
        ("train", "--data", "no-valid", *TRAIN[3:], "--patience", "2"),
        "leave it out",
        ("train", "--data", "no-valid", *TRAIN[3:]),
    ),
    "selection by what is not measured": Case(
        (*TRAIN, "--set", 'train.select=["hit@7"]'),
        "set train.select to one of",
        (*TRAIN, "--set", 'train.select=["hit@5"]'),
        names=("hit@5",),
    ),
    "a damaged line": Case(
        ("eval", "longer"),
        "metrics.jsonl:1 is damaged",
        ("eval", "longer"),
        lambda folder: (folder / "longer/metrics.jsonl").write_text(
            "{\n" + (folder / "longer/metrics.jsonl").read_text()
        ),
        lambda folder: (folder / "longer/metrics.jsonl").write_text(
            (folder / "longer/metrics.jsonl").read_text().partition("\n")[2]
        ),
    ),
    "weights of another shape": Case(
        ("eval", "t", "u"),
        "from a copy",
        ("eval", "t", "u"),
        both(
            copy("wide/model.safetensors", "t/model.safetensors"),
            lambda folder: (folder / "t/STATUS.json").write_text((folder / "wide/STATUS.json").read_text()),
        ),
        lambda folder: shutil.copytree(folder / "u", folder / "t", dirs_exist_ok=True),
    ),
}
