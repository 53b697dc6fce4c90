"""A run that goes on with what it was begun with: other teachers are refused, moved ones and moved data sets are taken."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from commands import FAST, fails, kdrs, listing, ok, write_clicks
from kdrs import Dataset, save_teacher
from kdrs.errors import ArtefactError
from kdrs.runs import execute as execution
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.references import digest_of
from test_run_damage import unchanged, without
from test_train import final_bytes, stop_after

COMMON = ("--data", "d", *FAST, "--epochs", "4", "--threads", "1", "--set", "train.checkpoint_seconds=0")


def vectors(data: Dataset, place: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    users, items = (rng.standard_normal((n, 6), np.float32) for n in (data.n_users, data.n_items))
    save_teacher(place, users=users, items=items, user_ids=list(data.users), item_ids=list(data.items))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers of each form, and of each a run that was interrupted after an epoch and one that was not."""
    folder = tmp_path_factory.mktemp("moved") / "made"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ok("data", "prepare", write_clicks(folder / "clicks.csv"), "--out", "d", "--candidates", 20)
        ok("train", *COMMON, "--dim", 8, "--set", "train.stages_every=1", "--out", "run")
        ok("train", *COMMON, "--dim", 8, "--seed", 1, "--set", "train.stages_every=1", "--out", "other-run")
        data = Dataset.load("d")
        vectors(data, folder / "file", 0)
        vectors(data, folder / "other-file", 1)
        for name, seed in (("folder", 2), ("other-folder", 3)):
            (folder / name).mkdir()
            for epoch in (0, 5):
                vectors(data, folder / name / f"{epoch}.safetensors", seed + 10 * epoch)
        for kind in ("run", "file", "folder"):
            config = resolve(values(kind))
            execute(config, f"whole-{kind}")
            execute(config, f"cut-{kind}", should_stop=stop_after(0))
    return folder.rename(folder.with_name("kept"))


def values(*teachers: str, **others: object) -> dict:
    return {
        "data": {"path": "d"},
        "model": {"name": "bpr", "dim": 4},
        "train": {"epochs": 4, "batch_size": 64, "lr": 1e-2, "checkpoint_seconds": 0},
        "distill": [{"method": "rrd", "teacher": list(teachers)}] if teachers else [],
        "device": "cpu",
        "threads": 1,
        **others,
    }


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(made, tmp_path / "here"))
    monkeypatch.chdir(folder)
    return folder


def swap(name: str) -> None:
    Path(name).rename("aside")
    Path(f"other-{name}").rename(name)


# --- another teacher ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "file", "folder"])
def test_a_run_does_not_go_on_with_another_teacher(here, kind):
    run, teachers = here / f"cut-{kind}", here / f"cut-{kind}/teachers.json"
    told, again = teachers.read_bytes(), ("--teacher", kind, "--method", "rrd", "--dim", 4, "--out", run, "--resume")
    swap(kind)
    for command in (("resume", run), ("distill", *COMMON, *again)):
        error = unchanged(run, 4, *command)
        assert f"error: {kind}" in error or f"/{kind} is not what" in error
        assert "was begun with (SHA-256" in error
    assert teachers.read_bytes() == told
    Path(kind).rename(f"other-{kind}")
    Path("aside").rename(kind)  # the remedy
    ok("resume", run)
    assert final_bytes(run) == final_bytes(here / f"whole-{kind}")


def test_a_trajectory_is_its_stages_too_and_a_lengthened_one_is_the_same(here):
    best, before = json.loads((here / "run/STATUS.json").read_text())["best_epoch"], digest_of(here / "run")
    assert best > 0
    listed = here / "run/stages/digests.json"
    digests = json.loads(listed.read_text())
    listed.write_text(
        json.dumps({**digests, "0099.safetensors": "0" * 64})
    )  # later than the weights: nobody learns from it
    assert digest_of(here / "run") == before
    listed.write_text(json.dumps({**digests, "0000.safetensors": "0" * 64}))
    assert digest_of(here / "run") != before
    assert digest_of(here / "clicks.csv") is not None
    assert digest_of(here / "none") is None


def test_a_teacher_of_an_older_kdrs_is_the_same_once_it_was_resumed(here):
    """What it was begun with it does not say, and its config.toml is given the options that are younger."""
    without(here / "run/env.json", "options")
    head = here / "run/config.toml"
    head.write_text(re.sub(r"(?m)^bits = .*\n", "", head.read_text()))
    before = digest_of(here / "run")
    execute(resolve(values("run")), "begun", should_stop=stop_after(0))
    ok("resume", "run")
    assert "bits = 32" in head.read_text()
    assert digest_of(here / "run") == before
    ok("resume", "begun")


def test_what_a_run_starts_from_counts_until_it_has_a_checkpoint(here):
    config = resolve(values(model={"name": "bpr", "dim": 8}, start="run"))
    execute(config, "started", should_stop=stop_after(0))
    shutil.copytree("started", "begun")
    shutil.rmtree("begun/checkpoint")
    Path("begun/metrics.jsonl").unlink()
    Path("begun/STATUS.json").write_text('{"status": "running"}')
    swap("run")
    assert "is not what begun was begun with" in fails(4, "resume", "begun")
    ok("resume", "started")
    Path("run").rename("gone")
    assert remedy(fails(4, "resume", "started"))[2:] == ["--teacher", "PATH"]
    Path("gone").rename("other-run")
    Path("aside").rename("run")
    Path("run").rename("moved")
    ok("resume", "started", "--teacher", "moved")


def test_runs_of_an_older_kdrs_go_on_as_before(here):
    without(here / "cut-file/env.json", "teachers")
    swap("file")
    ok("resume", "cut-file")
    without(here / "cut-run/env.json", "teachers")
    Path("run").rename("moved")
    error = fails(2, "resume", "cut-run", "--teacher", "moved")
    assert "put it back there: the run has no digest to know it by elsewhere" in error


@pytest.mark.parametrize("method", ["dcd", "takd"])
def test_teachers_that_are_trained_within_a_run_may_go_on(here, method):
    parts = {"big": {"model": {"name": "bpr", "dim": 12}, "train": {"epochs": 2}}}
    chain = {"chain": 2} if method == "takd" else {}
    config = resolve(values(teachers=parts, distill=[{"method": method, "teacher": ["big"], **chain}]))
    for done in range(4):
        execute(config, "all", resume=done > 0, should_stop=stop_after(done))
    execute(config, "all", resume=True)
    assert json.loads(Path("all/env.json").read_text())["teachers"] == {"distill.0.teacher": [None]}
    longer = ("--set", "teachers.big.train.epochs=3", "--set", "train.epochs=6")
    ok("distill", "all/config.toml", *longer, "--out", "all", "--resume")
    assert len(Run.open("all/parts/big").rows()) == 3
    assert len(Run.open("all").rows()) == 6


def test_chains_know_their_own_teacher_and_go_on_where_assistants_do(here):
    taught = values(distill=[{"method": "takd", "teacher": ["run"], "chain": [6, 5]}])
    execute(resolve(taught), "begun", should_stop=stop_after(5))
    told = [json.loads(Path("begun", part, "env.json").read_text())["teachers"] for part in (".", "parts/takd-5")]
    assert told == [{"distill.0.teacher": [digest_of(Path("run"))]}, {"distill.0.teacher": [None]}]
    Path("begun").rename("chain")  # with its parts
    ok("resume", "chain")
    ok("resume", "chain", "--epochs", 6)  # the assistants too
    assert len(Run.open("chain/parts/takd-6").rows()) == 6
    swap("run")
    assert "run is not what chain was begun with" in fails(4, "resume", "chain", "--epochs", 8)


def test_a_seed_is_not_trained_with_another_teacher_than_the_others(here):
    seeds = ("distill", *COMMON, "--teacher", "file", "--method", "rrd", "--dim", 4, "--out", "a", "--seeds")
    ok(*seeds, "0")
    swap("file")
    error = fails(4, *seeds, "0..1", "--resume")
    assert "file is not what a/seed-0 was begun with" in error
    assert "by --teacher (or --start) in the same command" in error
    assert not Path("a/seed-1").exists()
    before = listing(here / "a")
    ok(*seeds, "0", "--resume")  # where nothing is trained nothing is mixed
    assert listing(here / "a") == before
    assert "file is not what a/seed-0" in fails(4, *seeds, "0", "--resume", "--epochs", 5)
    named = [word if word != "file" else "other-file" for word in seeds]
    Path("file").rename("other-file")
    assert "other-file is not what a/seed-0" in fails(4, *named, "0..1", "--resume")
    Path("aside").rename("kept")
    ok(*("kept" if word == "file" else word for word in seeds), "0..1", "--resume")  # the remedy


def test_a_damaged_seed_leaves_the_others(here):
    seeds = ("distill", *COMMON, "--teacher", "file", "--method", "rrd", "--dim", 4, "--out", "a", "--seeds")
    ok(*seeds, "0..1")
    Path("a/seed-0/data.json").write_text("{broken")
    ok(*seeds, "0..2", "--resume")
    Path("d").rename("data")
    moved = ["data" if word == "d" else word for word in seeds]
    result = kdrs(*moved, "0..3", "--resume")
    assert result.code != 0
    assert "data.json" in result.err
    assert Run.open("a/seed-3").status()["status"] == "finished"


@pytest.mark.parametrize("inner", ["load_learners", "_carry_out_parts"])
def test_a_teacher_that_is_replaced_while_it_is_read_is_told(here, monkeypatch, inner):
    """What the run was begun with is what lay there before it was read."""
    before, own = digest_of(here / "file"), getattr(execution, inner)

    def replaced(*given, **named):
        found = own(*given, **named)
        swap("file")
        return found

    monkeypatch.setattr(execution, inner, replaced)
    with pytest.raises(ArtefactError, match="file is not what x was begun with"):
        execute(resolve(values("file")), "x")
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert json.loads(Path("x/env.json").read_text())["teachers"] == {"distill.0.teacher": [before]}
    assert not Path("x/metrics.jsonl").exists()
    Path("file").rename("other-file")
    Path("aside").rename("file")  # the remedy
    ok("resume", "x")
    assert final_bytes(here / "x") == final_bytes(here / "whole-file")


def test_processes_with_other_teachers_are_told(here, monkeypatch):
    """What each process says of itself holds what its teachers are."""
    said: list[dict] = []

    class Alone:
        first = True

        def agree(self, options: dict) -> None:
            said.append(options)
            raise ArtefactError("enough")

    monkeypatch.setattr("kdrs.runs.execute.current", lambda: Alone())
    for name in ("file", "other-file"):
        with pytest.raises(ArtefactError, match="enough"):
            execute(resolve(values(name)), "x")
    one, other = (options["sha256"]["distill.0.teacher"] for options in said)
    assert [one, other] == [[digest_of(Path("file"))], [digest_of(Path("other-file"))]]


# --- elsewhere ------------------------------------------------------------------------------------------------------


def remedy(error: str) -> list[str]:
    """The command that an error's remedy spells out."""
    return shlex.split(error.rstrip().partition("kdrs ")[2].partition(";")[0])


def unnamed(run: Path) -> dict[str, object]:
    """What a run ends with, but for the names of teachers."""
    found = final_bytes(run)
    report = dict(found["report"])
    doubts = list(report.pop("doubts", {}).values())
    return {**found, "report": report, "doubts": doubts}


@pytest.mark.parametrize("kind", ["run", "file", "folder"])
def test_a_run_goes_on_where_its_data_and_teacher_have_moved(here, kind):
    run = f"cut-{kind}"
    Path("away").mkdir()
    Path("d").rename("away/data")
    Path(kind).rename("away/teacher")
    error = unchanged(here / run, 3, "resume", run)
    assert f"the data set of {run} is not at" in error
    command = [word.replace("PATH", "away/data") for word in remedy(error)]
    error = unchanged(here / run, 4, *command)
    assert f"{kind}, and no run and no teacher file is there" in error
    ok(*command, *(word.replace("PATH", "away/teacher") for word in remedy(error)[2:]))
    assert unnamed(here / run) == unnamed(here / f"whole-{kind}")
    ok("eval", run)
    ok("resume", run, "--epochs", 5)  # config.toml has them, and what vouches for it knows
    Path("away/teacher").rename(kind)
    ok("resume", run, "--epochs", 6, "--teacher", kind)


def test_other_data_and_another_teacher_are_not_taken_for_moved_ones(here):
    ok("data", "prepare", "clicks.csv", "--out", "e", "--candidates", 20, "--seed", 1)
    assert "was trained on other data" in unchanged(here / "cut-file", 4, "resume", "cut-file", "--data", "e")
    error = unchanged(here / "cut-file", 4, "resume", "cut-file", "--teacher", "other-file")
    assert "other-file is not what cut-file was begun with" in error
    error = fails(2, "resume", "cut-file", "--teacher", "file", "--teacher", "file")
    assert "got 2 teachers, and cut-file has 1: file" in error
    assert "check the path" in fails(4, "resume", "cut-file", "--teacher", "none")
    assert "no prepared data set" in fails(3, "resume", "cut-file", "--data", "none")


def test_the_command_that_began_a_run_goes_on_with_what_has_moved(here):
    command = ("distill", *COMMON[2:], "--method", "rrd", "--dim", 4, "--out", "cut-file", "--resume")
    Path("d").rename("data")
    Path("file").rename("teacher")
    assert "say where it is now: --data PATH" in fails(3, *command, "--data", "d", "--teacher", "teacher")
    assert "say where it is now: --teacher PATH" in fails(4, *command, "--data", "data", "--teacher", "file")
    ok(*command, "--data", "data", "--teacher", "teacher")
    assert unnamed(here / "cut-file") == unnamed(here / "whole-file")


def test_several_teachers_are_named_in_their_order(here):
    execute(
        resolve(values(distill=[{"method": "rrd", "teacher": ["file"]}, {"method": "cd", "teacher": ["other-file"]}])),
        "two",
        should_stop=stop_after(0),
    )
    Path("other-file").rename("second")
    error = fails(4, "resume", "two")
    assert [Path(word).name for word in remedy(error)] == ["resume", "two", "--teacher", "file", "--teacher", "PATH"]
    assert "second is not what two" in fails(4, "resume", "two", "--teacher", "second", "--teacher", "file")
    ok(*(word.replace("PATH", "second") for word in remedy(error)))


def test_finished_parts_and_seeds_are_taken_where_the_data_have_moved(here):
    taught = values(distill=[{"method": "takd", "teacher": ["file"], "chain": [5]}])
    for done in range(2):
        execute(resolve(taught), "chain", resume=done > 0, should_stop=stop_after(5 if done else 0))
    seeds = ("distill", *COMMON[2:], "--method", "rrd", "--dim", 4, "--out", "a")
    ok(*seeds, "--data", "d", "--teacher", "file", "--seeds", "0")
    before = listing(here / "a/seed-0")
    Path("d").rename("data")
    Path("file").rename("teacher")
    ok("resume", "chain", "--data", "data", "--teacher", "teacher", "--epochs", 5)
    ok(*seeds, "--data", "data", "--teacher", "teacher", "--seeds", "0..1", "--resume")
    assert listing(here / "a/seed-0") == before


# --- a folder that cannot be written --------------------------------------------------------------------------------


def test_where_a_run_cannot_be_written_a_copy_goes_on(here, monkeypatch):
    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    again = ("distill", *COMMON, "--teacher", "file", "--method", "rrd", "--dim", 4, "--out", "cut-file", "--resume")
    monkeypatch.setattr("kdrs.runs.directory.Lock", refused)
    for command in (("resume", "cut-file"), again):
        error = unchanged(here / "cut-file", 5, *command)
        assert "make cut-file writable" in error
        assert "cp -r cut-file COPY, then kdrs resume COPY" in error
    monkeypatch.undo()
    monkeypatch.chdir(here)
    shutil.copytree("cut-file", "COPY")
    ok("resume", "COPY")
    assert final_bytes(here / "COPY") == final_bytes(here / "whole-file")
