"""Wrong input and broken machines: one clear error, the right exit code, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from apart import Forks, Process
from commands import FAST, fails, kdrs, listing, ok, write_clicks


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared data set and a teacher."""
    folder = tmp_path_factory.mktemp("faults")
    source = write_clicks(folder / "clicks.csv")
    ok("data", "prepare", source, "--out", folder / "d", "--candidates", 20)
    ok("train", "--data", folder / "d", *FAST, "--dim", 8, "--epochs", 4, "--out", folder / "teacher")
    return folder


def train(place: Path, *more: object) -> tuple[object, ...]:
    return ("train", "--data", place / "d", *FAST, "--dim", 4, "--epochs", 3, *more)


def distil(place: Path, teacher: object, *more: object) -> tuple[object, ...]:
    return ("distill", *train(place)[1:], "--method", "rrd", "--teacher", teacher, *more)


# --- data (exit code 3) ---------------------------------------------------------------------------------------------

HEAD = "user,item,rating,timestamp\n"
GOOD = "".join(f"u{u},i{i},5,{1000000000 + i}\n" for u in range(4) for i in range(u, u + 4))


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (HEAD + GOOD + "u1,i1\n", (), ("clicks.csv", "18", "u1,i1")),
        (HEAD + GOOD + "u1,i1,5,1000000000,9\n", (), ("clicks.csv", "18")),
        ("", (), ("clicks.csv",)),
        (HEAD, (), ("clicks.csv",)),
        (HEAD + GOOD + "u0,i9,nan,1000000000\n", ("--min-rating", 3), ("clicks.csv", "18", "nan")),
        (
            HEAD + GOOD + "u0,i9,good,1000000000\n",
            ("--min-rating", 3),
            ("clicks.csv", "18", "good"),
        ),
        (HEAD + GOOD + ",i9,5,1000000000\n", (), ("clicks.csv", "18")),
        ("user,thing\nu1,i1\n", (), ("clicks.csv", "item")),
        (HEAD + GOOD, ("--k-core", 50), ("50",)),
        ("PK\x03\x04\x00\x00" * 9, (), ("clicks.csv",)),
    ],
    ids=[
        "short line",
        "long line",
        "empty",
        "header only",
        "NaN rating",
        "word for a rating",
        "empty id",
        "no column",
        "nothing left",
        "binary",
    ],
)
def test_unusable_data(tmp_path, content, options, words):
    source = tmp_path / "clicks.csv"
    source.write_text(content)
    before = listing(tmp_path)
    error = fails(3, "data", "prepare", source, "--out", tmp_path / "d", *options)
    for word in words:
        assert word in error
    assert listing(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps({"a": 1})])
def test_arrays_that_are_none(tmp_path, content):
    (tmp_path / "pairs.npy").write_bytes(content)
    fails(3, "data", "prepare", tmp_path / "pairs.npy", "--out", tmp_path / "d")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.npy"]


def test_an_array_of_objects_is_a_pickle_and_is_not_loaded(tmp_path):
    np.save(tmp_path / "pairs.npy", np.array([Bomb(tmp_path / "exploded")], dtype=object), allow_pickle=True)
    fails(3, "data", "prepare", tmp_path / "pairs.npy", "--out", tmp_path / "d")
    assert not (tmp_path / "exploded").exists()


def test_duplicates_are_collapsed_and_told(tmp_path):
    source = tmp_path / "clicks.csv"
    source.write_text(HEAD + GOOD + "u0,i0,1,1000000009\nu0,i0,2,1000000010\n")
    result = ok("data", "prepare", source, "--out", tmp_path / "d", "--json")
    assert result.document["pairs"]["all"] == 16
    assert "dropped 2" in result.err
    assert source.read_text().count("u0,i0") == 3  # no input is ever changed
    error = fails(3, "data", "prepare", source, "--dry-run", "--duplicates", "error")
    assert "user u0 and item i0 come twice" in error


def test_a_user_with_one_item_stays_in_train(tmp_path):
    source = tmp_path / "clicks.csv"
    source.write_text(HEAD + GOOD + "lonely,i1,5,1000000000\n")
    result = ok("data", "prepare", source, "--out", tmp_path / "d", "--split", "leave-one-out", "--json")
    facts = result.document
    assert (facts["users"], facts["pairs"]) == (5, {"train": 9, "valid": 4, "test": 4, "all": 17})
    assert "users_in_train_only 1" in result.err
    ok("train", "--data", tmp_path / "d", *FAST, "--epochs", 1, "--out", tmp_path / "run")
    report = json.loads((tmp_path / "run/report-test.json").read_text())
    assert (report["n"], report["n_queries"]) == (4, 5)


def test_a_user_who_has_seen_everything_is_left_out_and_counted(tmp_path):
    source, held = tmp_path / "train.csv", tmp_path / "test.csv"
    source.write_text("user,item\n" + "".join(f"all,i{i}\n" for i in range(6)) + "some,i1\nsome,i2\nother,i3\n")
    held.write_text("user,item\nsome,i4\nother,i5\n")
    ok("data", "prepare", source, "--test", held, "--out", tmp_path / "d")
    common = ("--data", tmp_path / "d", *FAST, "--dim", 2, "--epochs", 2)
    result = ok("train", *common, "--out", tmp_path / "run")
    assert "6 training pairs belong to users who have seen every item and are left out" in result.err
    result = ok(
        "distill", *common, "--method", "rrd", "--method", "cd", "--teacher", tmp_path / "run", "--out", tmp_path / "s"
    )
    assert (tmp_path / "s/model.safetensors").is_file()


def test_lists_longer_than_the_catalogue(place, tmp_path):
    values = ("--protocol", "default", "--set", "eval.ks=[5,10,1000]", "--out", tmp_path / "run", "--json")
    result = ok(*train(place), *values)
    assert "K=1000 is more than the catalogue's 60 items" in result.err
    means = result.document["parts"]["test"]
    assert means["recall@1000"] == 1.0
    assert means["precision@1000"] == pytest.approx(1 / 1000)
    ok(*distil(place, place / "teacher"), "--set", "distill.0.pool=5000", "--out", tmp_path / "student")


# --- teachers and checkpoints (exit code 4) -------------------------------------------------------------------------


class Bomb:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def flip(path: Path, offset: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def copied(place: Path, name: str, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(place / name, to))


@pytest.mark.parametrize("name", ["t.pkl", "t.pth", "t.safetensors"])
@pytest.mark.parametrize("writer", ["pickle", "torch", "npz"])
def test_a_pickle_as_teacher_is_never_loaded(place, tmp_path, name, writer):
    bomb, file = Bomb(tmp_path / "exploded"), tmp_path / name
    if writer == "pickle":
        file.write_bytes(pickle.dumps(bomb))
    elif writer == "torch":
        torch.save(bomb, file)
    else:
        with file.open("wb") as stream:
            np.savez(stream, users=np.array([bomb], dtype=object))
    before = listing(tmp_path)
    for command in (distil(place, file, "--out", tmp_path / "run"), ("eval", place / "teacher", file)):
        assert str(file) in fails(4, *command)
    assert listing(tmp_path) == before


def test_a_pickle_in_the_place_of_a_runs_weights(place, tmp_path):
    teacher = copied(place, "teacher", tmp_path / "teacher")
    torch.save(Bomb(tmp_path / "exploded"), teacher / "model.safetensors")
    (teacher / "STATUS.json").write_text('{"status": "finished"}')
    fails(4, *distil(place, teacher, "--out", tmp_path / "run"))
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_data_set(place, tmp_path):
    source = write_clicks(tmp_path / "other.csv", n_users=30)
    ok("data", "prepare", source, "--out", tmp_path / "d", "--candidates", 20)
    error = fails(4, *distil(tmp_path, place / "teacher", "--out", tmp_path / "run"))
    assert "was trained on data set clicks (40 users, 60 items), not on other (30 users, 60 items)" in error
    ok("data", "prepare", place / "clicks.csv", "--out", tmp_path / "d", "--seed", 1, "--candidates", 20, "--overwrite")
    assert "another split" in fails(4, *distil(tmp_path, place / "teacher", "--out", tmp_path / "run"))
    assert "another split" in fails(4, "eval", place / "teacher", "--data", tmp_path / "d")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: flip(run / "model.safetensors"), "SHA-256"),
        (lambda run: cut(run / "model.safetensors"), "SHA-256"),
        (lambda run: (run / "model.safetensors").write_bytes(b""), "SHA-256"),
        (lambda run: (run / "model.safetensors").unlink(), "no trained model (status: finished)"),
        (lambda run: cut(run / "data.json"), "data.json is damaged"),
        (lambda run: (run / "config.toml").write_text("[mod"), "config.toml is no TOML"),
        (lambda run: (run / "config.toml").unlink(), "no config.toml"),
        (lambda run: cut(run / "STATUS.json"), "STATUS.json is damaged"),
    ],
)
def test_a_damaged_teacher(place, tmp_path, damage, message):
    teacher = copied(place, "teacher", tmp_path / "teacher")
    damage(teacher)
    for command in (distil(place, teacher, "--out", tmp_path / "run"), ("eval", place / "teacher", teacher)):
        assert message in fails(4, *command)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("teacher", ["nowhere", "clicks.csv", "d"])
def test_what_is_no_teacher(place, tmp_path, teacher):
    assert teacher in fails(4, *distil(place, place / teacher, "--out", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("which", ["state", "best", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_checkpoint(place, tmp_path, which, damage):
    """The one before is taken, with a warning; without one, an error and nothing changed."""
    run, options = tmp_path / "run", ("--set", "train.checkpoint_seconds=0")
    ok(*train(place, "--out", run, *options))
    whole = (run / "model.safetensors").read_bytes()
    newest = (
        run / "checkpoint/manifest.json"
        if which == "manifest.json"
        else sorted((run / "checkpoint").glob(f"{which}-*"))[-1]
    )
    if which == "manifest.json" and damage is flip:
        newest.write_text(newest.read_text().replace('"epoch": 2', '"epoch": 1'))
    else:
        damage(newest)
    result = ok("resume", run)
    assert "going on from the checkpoint before, epoch 1" in result.err
    assert (run / "model.safetensors").read_bytes() == whole
    for path in (run / "checkpoint").iterdir():
        if which in path.name or (which == "manifest.json" and path.suffix == ".json"):
            damage(path)
    before = listing(run / "checkpoint")
    error = fails(4, "resume", run)
    assert "no whole checkpoint is left" in error
    assert listing(run / "checkpoint") == before
    assert (run / "model.safetensors").read_bytes() == whole


def test_a_data_set_that_changed_since(place, tmp_path):
    """A run neither goes on with nor is compared on other data than its own."""
    data, run = tmp_path / "d", tmp_path / "run"
    ok("data", "prepare", place / "clicks.csv", "--out", data, "--candidates", 20)
    ok("train", "--data", data, *FAST, "--dim", 2, "--epochs", 1, "--out", run)
    ok("data", "prepare", place / "clicks.csv", "--out", data, "--candidates", 20, "--min-rating", 2, "--overwrite")
    before = listing(run)
    assert "was trained on other data" in fails(4, "resume", run, "--epochs", 2)
    assert "was trained on" in fails(4, "eval", run)
    after = listing(run)
    before.pop("LOCK"), after.pop("LOCK")
    assert after == before


# --- places and machine (exit code 5) -------------------------------------------------------------------------------


def test_output_below_a_file(place, tmp_path):
    (tmp_path / "file").write_text("mine")
    error = fails(5, *train(place, "--out", tmp_path / "file/run"))
    assert "Not a directory" in error
    assert "try: check permissions and space, or name another folder with --out" in error
    fails(5, "report", place / "teacher", "--out", tmp_path / "file/report")
    assert listing(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc, whose folders take no files even of root")
def test_output_where_nothing_can_be_made(place):
    fails(5, *train(place, "--out", "/proc/kdrs/run"))
    fails(5, "report", place / "teacher", "--out", "/proc/kdrs")


@pytest.mark.skipif(os.geteuid() == 0, reason="file modes do not bind root")
def test_output_in_a_folder_without_write_permission(place, tmp_path):
    tmp_path.chmod(0o500)
    fails(5, *train(place, "--out", tmp_path / "run"))
    fails(5, "data", "prepare", place / "clicks.csv", "--out", tmp_path / "d")
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing fails beyond ``size`` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_in_training(place, tmp_path):
    """The checkpoint before stays whole, no temporary file stays, and the run goes on once there is space."""
    dim = ("--dim", 4, "--set", "train.checkpoint_seconds=0")
    ok(*train(place, *dim, "--out", tmp_path / "whole", "--epochs", 6))
    ok(*train(place, *dim, "--out", tmp_path / "run"))
    checkpoint = listing(tmp_path / "run/checkpoint")
    with largest_file(3000):
        error = fails(5, "resume", tmp_path / "run", "--epochs", 6)
    assert "File too large" in error
    assert "MB are free" in error
    assert listing(tmp_path / "run/checkpoint") == checkpoint
    assert not [path for path in (tmp_path / "run").rglob("*") if ".tmp" in path.name]
    assert json.loads((tmp_path / "run/STATUS.json").read_text())["status"] == "failed"
    ok("resume", tmp_path / "run", "--epochs", 6)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_a_full_disk_in_preparing(place, tmp_path):
    with largest_file(300):
        fails(5, "data", "prepare", place / "clicks.csv", "--out", tmp_path / "d")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_such_device(place, tmp_path):
    assert "device 'cuda' is not available" in fails(5, *train(place, "--device", "cuda", "--out", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# --- folders in use, signals ----------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten(place):
    before = listing(place / "teacher")
    error = fails(2, *train(place, "--out", place / "teacher"))
    assert "already holds a run (finished)\n  try: go on with it by --resume" in error
    assert "model.dim = 8, now it is 4" in fails(2, *train(place, "--out", place / "teacher", "--resume"))
    after = listing(place / "teacher")
    before.pop("LOCK"), after.pop("LOCK")
    assert after == before


def test_a_folder_of_something_else_is_left_alone(place, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "is no run directory" in fails(2, *train(place, "--out", tmp_path))
    assert listing(tmp_path) == {"notes.txt": b"mine"}


def test_a_head_cut_off_by_a_kill_is_begun_anew(place, tmp_path):
    """Killed before config.toml was there: what is left is not taken for somebody's folder."""
    (tmp_path / "run/ids").mkdir(parents=True)
    (tmp_path / "run/LOCK").write_text("kdrs run: process 7 on host, since 2026-01-01 00:00:00")
    (tmp_path / "run/.data.json.0123456789ab.tmp").write_text("{")
    (tmp_path / "run/ids/users.json").write_text("[")
    ok(*train(place, "--out", tmp_path / "run"))
    assert not list((tmp_path / "run").rglob("*.tmp"))


def begin(forks: Forks, place: Path, run: Path) -> Process:
    """A long training in a process of its own, some epochs in."""
    endless = ("--epochs", 10**6, "--patience", 10**6, "--out", run)
    process = forks.begin(*train(place, *endless))
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= 3):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.said()[1])
        time.sleep(0.02)
    return process


def finish(process: Process) -> tuple[int, str, str]:
    ended = process.ended(60)
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode()


def status(run: Path) -> str:
    return json.loads((run / "STATUS.json").read_text())["status"]


def test_two_runs_in_one_folder_then_ctrl_c_then_resume(forks, place, tmp_path):
    run = tmp_path / "run"
    process = begin(forks, place, run)
    try:
        for second in (train(place, "--out", run), ("resume", run), train(place, "--out", run, "--resume")):
            assert f"is in use by process {process.pid} on " in fails(5, *second)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    finally:
        code, out, err = finish(process)
    assert code == 130
    assert out == ""
    assert "stopping after this epoch" in err
    assert f"go on with: kdrs resume {run}" in err
    assert "Traceback" not in err
    assert status(run) == "interrupted"
    assert not (run / "model.safetensors").exists()
    epochs = json.loads((run / "STATUS.json").read_text())["epochs"] + 2
    ok("resume", run, "--epochs", epochs)
    ok(*train(place, "--epochs", epochs, "--patience", 10**6, "--out", tmp_path / "whole"))
    assert status(run) == "finished"
    for name in ("model.safetensors", "report-test.json", "config.toml"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_sigterm(forks, place, tmp_path):
    process = begin(forks, place, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 143
    assert "Traceback" not in err
    assert status(tmp_path / "run") == "interrupted"
    assert (tmp_path / "run/checkpoint/manifest.json").is_file()


def test_a_second_ctrl_c_stops_at_once(place, tmp_path, monkeypatch):
    """The handler itself: the first request is noted, the second interrupts."""
    from kdrs.cli.stopping import Stopper

    stopper = Stopper()
    assert not stopper.asked()
    stopper.handle(signal.SIGTERM, None)
    assert stopper.asked()
    with pytest.raises(KeyboardInterrupt):
        stopper.handle(signal.SIGTERM, None)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdrs.runs.execute.fit", interrupted)
    result = kdrs(*train(place, "--out", tmp_path / "run"))
    assert result.code == 130
    assert result.err.endswith(f"interrupted; go on with: kdrs resume {tmp_path / 'run'}\n")
    assert status(tmp_path / "run") == "interrupted"
    several = kdrs(*train(place, "--seeds", "0,1", "--out", tmp_path / "a"))
    assert several.err.endswith(f"interrupted; go on with the same command, --out {tmp_path / 'a'} and --resume\n")
    monkeypatch.undo()
    ok(*train(place, "--out", tmp_path / "run", "--resume"))


@pytest.mark.parametrize("length", [0x80, 0x480, 0x4B50])
def test_a_safetensors_header_may_begin_like_a_pickle_or_an_archive(tmp_path, length):
    """Its first bytes are the header's length: one file in 256 begins with a pickle's mark."""
    from kdrs.teachers.file import read_safetensors

    header = b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + bytes(8))
    assert path.read_bytes()[:2] in (b"\x80\x00", b"\x80\x04", b"PK")
    assert read_safetensors(path)[0]["x"].tolist() == [0, 0]
