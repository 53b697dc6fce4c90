"""Run directories that were changed, damaged, or are somebody else's: each is named, and a refusal changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

import kdrs
from commands import FAST, fails, listing, ok, write_clicks
from kdrs.errors import ArtefactError, ConfigError, MachineError, MissingKnowledge
from kdrs.runs.checkpoints import manifest_digest
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.opened import load_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared data set, a teacher with stages and a student of it."""
    folder = tmp_path_factory.mktemp("damage")
    ok("data", "prepare", write_clicks(folder / "clicks.csv"), "--out", folder / "d", "--candidates", 20)
    common = ("--data", folder / "d", *FAST, "--epochs", 4, "--threads", 1, "--set", "train.checkpoint_seconds=0")
    ok("train", *common, "--dim", 8, "--set", "train.stages_every=1", "--out", folder / "t")
    ok("distill", *common, "--teacher", folder / "t", "--method", "rrd", "--dim", 4, "--out", folder / "s")
    return folder


@pytest.fixture
def s(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "s", tmp_path / "s"))


@pytest.fixture
def t(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "t", tmp_path / "t"))


def unchanged(run: Path, code: int, *command: object) -> str:
    before = listing(run)
    error = fails(code, *command)
    after = listing(run)
    for files in (before, after):
        files.pop("LOCK", None)
    assert after == before
    return error


def without(path: Path, key: str) -> None:
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))


def as_of_an_older_version(run: Path) -> None:
    """Without what older versions did not write."""
    without(run / "env.json", "options")
    without(run / "STATUS.json", "metrics_sha256")
    for path in (run / "checkpoint").glob("*.json"):
        manifest = json.loads(path.read_text())
        del manifest["rows"], manifest["options"]
        path.write_text(json.dumps({**manifest, "sha256": manifest_digest(manifest)}))


# --- what is written down twice is compared -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lr = 0.01", "lr = 0.11", "says train.lr = 0.11; env.json has train.lr = 0.01"),
        ("dim = 4", "dim = 5", "says model.dim = 5"),
        ("seed = 0", "seed = 1", "says train.seed = 1"),
        ("[[distill]]", "[[distill]", "is no TOML"),
    ],
)
def test_a_changed_config_is_refused(s, old, new, words):
    config = s / "config.toml"
    assert config.read_text().count(old) == 1
    config.write_text(config.read_text().replace(old, new))
    for command in (("resume", s, "--epochs", 8), ("eval", s)):
        assert words in unchanged(s, 4, *command)


def test_a_config_without_its_terms_is_refused(place, s):
    config = s / "config.toml"
    config.write_text(config.read_text().partition("[[distill]]")[0])
    for command in (("resume", s, "--epochs", 8), ("eval", s, place / "t")):
        assert "says no distill.0" in unchanged(s, 4, *command)


def test_without_env_json_the_checkpoint_still_knows_the_options(s):
    (s / "env.json").unlink()
    config = s / "config.toml"
    config.write_text(config.read_text().replace("lr = 0.01", "lr = 0.11"))
    result = unchanged(s, 4, "resume", s, "--epochs", 8)
    assert "the checkpoint's manifest has train.lr = 0.01" in result
    assert "env.json is missing" in result


def test_options_that_may_differ_may_be_edited_and_moved_data_too(place, s, tmp_path):
    config = s / "config.toml"
    shutil.copytree(place / "d", tmp_path / "moved")
    text = config.read_text().replace("epochs = 4", "epochs = 6").replace(str(place / "d"), str(tmp_path / "moved"))
    config.write_text(text)
    ok("resume", s)
    assert len(Run.open(s).rows()) == 6


@pytest.mark.parametrize("how", ["missing", "a row less", "a row changed", "the last row less", "no UTF-8", "junk"])
def test_rows_that_are_lost_or_changed_are_refused(place, s, how):
    path = s / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if how == "missing":
        path.unlink()
    elif how == "a row less":
        path.write_bytes(b"".join(lines[:1] + lines[2:]))
    elif how == "a row changed":
        path.write_bytes(b"".join(lines).replace(b'"epoch": 1, "loss": ', b'"epoch": 1, "loss": 1'))
        assert path.read_bytes() != b"".join(lines)
    elif how == "the last row less":
        path.write_bytes(b"".join(lines[:-1]))
    else:
        path.write_bytes(b"\xff\n" if how == "no UTF-8" else b"[1]\n")
    if how == "the last row less":  # the checkpoint before has all of its own
        assert "going on from the checkpoint before, epoch 2" in ok("resume", s, "--epochs", 5).err
        assert len(Run.open(s).rows()) == 5
        return
    assert "metrics.jsonl" in unchanged(s, 4, "resume", s, "--epochs", 8)
    assert "metrics.jsonl" in unchanged(s, 4, "report", s, place / "t", "--out", s.parent / "r")


def test_the_best_epoch_is_the_one_that_the_weights_are_of(s):
    path = s / "STATUS.json"
    status = json.loads(path.read_text())
    path.write_text(json.dumps(status | {"best_epoch": status["best_epoch"] - 1}))
    for command in (("resume", s, "--epochs", 8), ("eval", s)):
        assert "is the best" in unchanged(s, 4, *command)
    path.unlink()
    assert "STATUS.json is missing" in unchanged(s, 4, "eval", s)
    ok("resume", s)  # the remedy
    assert json.loads(path.read_text()) == status
    ok("eval", s)


def test_a_finished_run_without_its_checkpoint_does_not_begin_anew(s):
    shutil.rmtree(s / "checkpoint")
    assert "holds no checkpoint, though the run has trained 4 epochs" in unchanged(s, 4, "resume", s, "--epochs", 8)


def test_stages_that_nothing_vouches_for(place, t):
    (t / "stages/0001.safetensors").unlink()
    with pytest.raises(ArtefactError, match=r"0001.safetensors is missing: a stage that the run kept"):
        load_run(t).teacher()
    (t / "stages/digests.json").unlink()
    with pytest.warns(UserWarning, match=r"digests.json is missing: changed or lost stages would not be noticed"):
        load_run(t).teacher()


def test_a_run_of_an_older_version_opens_and_says_what_cannot_be_checked(s):
    as_of_an_older_version(s)
    result = ok("eval", s)
    assert "was written by an older kdrs: a changed config.toml would not be noticed" in result.err
    result = ok("resume", s, "--epochs", 5)
    assert "lines of metrics.jsonl that were changed would not be noticed" in result.err
    (s / "metrics.jsonl").unlink()
    assert "metrics.jsonl is not as it was written" in unchanged(s, 4, "report", s, "--out", s.parent / "r")


def test_rows_of_an_older_version_must_be_all_there(s):
    as_of_an_older_version(s)
    (s / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing: 4 lines were written" in unchanged(s, 4, "resume", s, "--epochs", 8)


def test_the_weights_of_an_earlier_end_stay_vouched_for(toy_path, tmp_path):
    values = {"data": {"path": str(toy_path)}, "model": {"name": "bpr", "dim": 4}, "device": "cpu"}
    train = {"batch_size": 64, "checkpoint_seconds": 0}
    execute(resolve({**values, "train": {**train, "epochs": 2}}), tmp_path / "run")
    longer = resolve({**values, "train": {**train, "epochs": 9}})
    execute(longer, tmp_path / "run", resume=True, should_stop=lambda: True)
    assert Run.open(tmp_path / "run").status()["model_sha256"]
    with pytest.warns(UserWarning, match="goes on and has not ended"):
        load_run(tmp_path / "run")
    model = tmp_path / "run/model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtefactError, match="is damaged"):
        load_run(tmp_path / "run")


# --- records --------------------------------------------------------------------------------------------------------

RECORDS = ("STATUS.json", "data.json", "env.json", "checkpoint/manifest.json")
CONTENTS = {
    "a string": b'"finished"',
    "a list": b"[]",
    "null": b"null",
    "NaN": b'{"status": NaN}',
    "twice": b'{"a": 1, "a": 2}',
    "deep": b"[" * 100_000,
    "huge": b'{"epochs": ' + b"9" * 5000 + b"}",
    "no UTF-8": b'{"a": "\xff"}',
    "empty": b"",
    "half a pair": b'{"status": "\\ud800"}',
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", RECORDS)
def test_records_of_another_kind_are_refused_by_name(place, s, name, content):
    (s / name).write_bytes(content)
    if name == "checkpoint/manifest.json":
        (s / "checkpoint/previous.json").unlink()
        assert "manifest.json" in unchanged(s, 4, "resume", s)
        return
    for command in (
        ("resume", s),
        ("eval", s),
        ("distill", "--data", place / "d", *FAST, "--teacher", s, "--method", "rrd"),
    ):
        assert name in unchanged(s, 4, *command, *(("--out", s.parent / "n") if command[0] == "distill" else ()))
    assert not (s.parent / "n").exists()


@pytest.mark.parametrize("name", RECORDS)
def test_a_folder_in_the_place_of_a_record(s, name):
    (s / name).unlink()
    (s / name).mkdir()
    if name == "checkpoint/manifest.json":
        (s / "checkpoint/previous.json").unlink()
    assert name in unchanged(s, 4, "resume", s)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("data.json", {"fingerprint": True}, "data.json is damaged: fingerprint is True"),
        ("data.json", {"users": -1}, "users is -1"),
        ("data.json", {"digests": {"users": "x"}}, "digests.users is"),
        (
            "STATUS.json",
            {"status": "done"},
            "status is done; allowed: 'running', 'finished', 'interrupted' or 'failed'",
        ),
        ("STATUS.json", {"best_epoch": "5"}, "best_epoch is 5; allowed: a valid integer"),
        ("STATUS.json", {"model_sha256": 7}, "model_sha256 is 7"),
        ("env.json", {"folder": 7}, "folder is 7"),
        ("env.json", {"options": []}, "options is []"),
    ],
)
def test_values_of_another_kind_are_refused_by_key(s, name, change, words):
    path = s / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert words in unchanged(s, 4, "eval", s)
    assert words in unchanged(s, 4, "resume", s)


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seeds", ["4294967296,1", "0..99999999999", "0..2147483646", "0..10000", "-1,2", "1,1", "²", "3..1"]
)
def test_seeds_that_no_run_can_have_are_refused_at_once(place, tmp_path, seeds):
    command = ("train", "--data", place / "d", *FAST, "--epochs", 1, f"--seeds={seeds}", "--out", tmp_path / "x")
    assert "--seeds" in fails(2, *command)
    assert not (tmp_path / "x").exists()


def test_the_largest_seed_can_be_read_again(place, tmp_path):
    command = ("train", "--data", place / "d", *FAST, "--dim", 2, "--epochs", 1, "--out", tmp_path / "x")
    ok(*command, "--seeds", 2**31 - 1)
    ok("resume", tmp_path / f"x/seed-{2**31 - 1}", "--epochs", 2)


@pytest.mark.parametrize(
    "text", [str(2**31), str(2**63), "9" * 30, "9" * 5000], ids=["31", "63", "30 digits", "5000 digits"]
)
def test_numbers_past_what_can_be_read_again(place, tmp_path, text):
    (tmp_path / "run.toml").write_text(f"[train]\nepochs = {text}\n")
    common = ("--data", place / "d", "--model", "bpr", "--dry-run")
    fails(2, "train", tmp_path / "run.toml", *common)
    for key in ("train.epochs", "train.stages_every", "eval.ks", "model.dim"):
        fails(2, "train", *common, "--set", f"{key}={f'[{text}]' if key == 'eval.ks' else text}")


def test_a_trajectory_of_billions_is_refused(place, tmp_path):
    command = ("train", "--data", place / "d", *FAST, "--epochs", 2**31 - 1, "--out", tmp_path / "x")
    assert "train.stages_every is 1" in fails(2, *command, "--set", "train.stages_every=1")
    assert not (tmp_path / "x").exists()


def test_a_list_length_past_the_catalogue_costs_no_memory(place, tmp_path):
    """The core once made a table as long as K."""
    import resource

    k = 2**31 - 1
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc").is_dir() else 0
    )
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, before[1]))
    try:
        values = {}
        for name, ks in (("a", "[10,60]"), ("b", f"[10,60,{k}]")):
            command = ("train", "--data", place / "d", *FAST, "--dim", 2, "--epochs", 1, "--protocol", "default")
            values[name] = ok(*command, "--set", f"eval.ks={ks}", "--out", tmp_path / name, "--json").document["parts"][
                "test"
            ]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    for name, value in values["a"].items():
        assert values["b"][name] == value
    for metric in ("hit", "recall", "ndcg", "mrr", "map"):
        assert values["b"][f"{metric}@{k}"] == values["b"][f"{metric}@60"]
    assert values["b"][f"precision@{k}"] == pytest.approx(values["b"]["precision@60"] * 60 / k, rel=1e-12)


def test_metrics_by_ranks_keep_k_in_their_denominators():
    import numpy as np

    from kdrs.evaluation.measures import rank_metrics

    rng = np.random.default_rng(0)
    better, tied, degrees = rng.integers(0, 50, 40), rng.integers(0, 9, 40), np.array([1, 3, 0, 30, 6])
    for formulas in ("standard", "caser"):
        few, many = (
            rank_metrics(better, tied, degrees, ks, formulas=formulas, n_items=60)
            for ks in ((5, 200), (5, 200, 2**31 - 1))
        )
        for name, value in few.items():
            assert np.array_equal(value, many[name], equal_nan=True)


def test_memory_tells_of_draws_and_lists(place):
    def memory(*more: object) -> int:
        command = ("train", "--data", place / "d", *FAST, "--dry-run", "--json", *more)
        return ok(*command).document["memory_bytes"]

    assert memory("--set", "train.negatives=50") > memory() + 16 * 49 * 400
    assert memory("--protocol", "default", "--set", "eval.ks=[10,60]") > memory(
        "--protocol", "default", "--set", "eval.ks=[10]"
    )


def test_a_run_that_cannot_fit_is_refused_with_numbers(place, tmp_path, monkeypatch):
    monkeypatch.setattr("kdrs.runs.build.memory_limit", lambda: 2**20)
    command = ("train", "--data", place / "d", *FAST, "--set", "train.negatives=1000", "--out", tmp_path / "x")
    error = fails(5, *command)
    assert "of memory; this process may have 0.0 GiB" in error
    assert not (tmp_path / "x").exists()
    assert "of memory" in fails(5, *command, "--dry-run")


# --- folders --------------------------------------------------------------------------------------------------------


def train(place: Path, *more: object) -> tuple[object, ...]:
    return ("train", "--data", place / "d", *FAST, "--dim", 2, "--epochs", 1, *more)


@pytest.mark.parametrize(
    "files",
    [
        {"data.json": '{"precious": 1}', "env.json": "mine", "notes.tmp": "precious", "ids/users.json": "keep"},
        {"LOCK": "mine"},
        {"LOCK": ""} | {"data.json": "mine"},
        {"config.toml": "[server]\nport = 1\n"},
        {"config.toml": "", "data.json": "{}"},
        {"LOCK": "kdrs run: process 7 on host, since 2026-01-01 00:00:00", "notes.tmp": "mine"},
        {".notes.tmp": "mine"},
    ],
)
def test_folders_of_somebody_are_left_alone(place, tmp_path, files):
    mine = tmp_path / "mine"
    for name, content in files.items():
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(content)
    before = listing(tmp_path)
    fails(4 if "config.toml" in files and "data.json" in files else 2, *train(place, "--out", mine))
    assert listing(tmp_path) == before


def test_an_empty_folder_and_a_link_to_one_are_taken(place, tmp_path):
    (tmp_path / "empty").mkdir()
    ok(*train(place, "--out", tmp_path / "empty"))
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("other")
    ok(*train(place, "--out", tmp_path / "link"))
    assert (tmp_path / "other/STATUS.json").is_file()


def test_files_of_somebody_in_a_run_stay(s):
    mine = [
        s / name
        for name in ("notes.tmp", ".notes.tmp", "checkpoint/mine.safetensors", "stages.tmp", ".config.toml.tmp")
    ]
    ours = [s / name for name in (".STATUS.json.0123456789ab.tmp", "checkpoint/.tmpAb12Cd")]
    ours.append(s / "checkpoint/.state-000004.safetensors.0123456789ab.tmp")
    for path in mine + ours:
        path.write_text("x")
    ok("resume", s, "--epochs", 5)
    assert all(path.read_text() == "x" for path in mine)
    assert not any(path.exists() for path in ours)


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "pipe", "text"])
def test_a_lock_that_is_none_is_not_written_to(s, tmp_path, kind):
    (tmp_path / "notes").write_text("precious")
    lock = s / "LOCK"
    lock.unlink()
    if kind == "link":
        lock.symlink_to("../notes")
    elif kind == "hard link":
        os.link(tmp_path / "notes", lock)
    elif kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.write_text("precious")
    assert "LOCK is no lock of a kdrs run" in fails(5, "resume", s, "--epochs", 7)
    assert (tmp_path / "notes").read_text() == "precious"
    assert json.loads((s / "STATUS.json").read_text())["status"] == "finished"
    if kind != "folder":
        lock.unlink()
        ok("resume", s, "--epochs", 5)  # the remedy


@pytest.mark.parametrize(
    "name", ["config.toml", "STATUS.json", "metrics.jsonl", "model.safetensors", "checkpoint/manifest.json"]
)
def test_files_are_never_written_through_links(s, tmp_path, name):
    """What a link points to is read; the link is replaced."""
    target = tmp_path / "target"
    shutil.move(s / name, target)
    content = target.read_bytes()
    (s / name).symlink_to(target)
    ok("resume", s, "--epochs", 5)
    assert target.read_bytes() == content
    assert not (s / name).is_symlink()


@pytest.mark.parametrize("name", ["checkpoint", "stages"])
def test_folders_that_are_links_are_not_written_into(t, tmp_path, name):
    shutil.move(t / name, tmp_path / "elsewhere")
    (tmp_path / "elsewhere/mine.safetensors").write_text("mine") if name == "checkpoint" else None
    (t / name).symlink_to(tmp_path / "elsewhere")
    before = listing(tmp_path / "elsewhere")
    assert f"{name} is a link or a file" in fails(5, "resume", t, "--epochs", 5)
    assert listing(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("name", ["parts", "peers"])
def test_parts_and_peers_are_not_written_through_links(toy_path, tmp_path, name):
    values = {"data": {"path": str(toy_path)}, "model": {"name": "bpr", "dim": 4}, "device": "cpu"}
    train = {"epochs": 1, "batch_size": 64}
    execute(resolve({**values, "train": train}), tmp_path / "t")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    if name == "parts":
        more = {
            "teachers": {"big": {"model": {"name": "bpr", "dim": 8}}},
            "distill": [{"method": "rrd", "teacher": "big"}],
        }
    else:
        more = {"distill": [{"method": "bd", "teacher": str(tmp_path / "t")}], "start": str(tmp_path / "t")}
    config = resolve({**values, **more, "train": train})

    def link(known: dict) -> None:
        (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere") if name == "peers" else None

    if name == "parts":
        # begun, its parts folder put elsewhere since
        config = resolve({**values, **more, "train": {**train, "epochs": 3}})
        execute(config, tmp_path / "run", should_stop=lambda: True)
        shutil.move(tmp_path / "run/parts", tmp_path / "elsewhere/parts")
        (tmp_path / "run/parts").symlink_to(tmp_path / "elsewhere/parts")
        before = listing(tmp_path / "elsewhere")
        with pytest.raises(MachineError, match="parts is a link"):
            execute(config, tmp_path / "run", resume=True)
        assert listing(tmp_path / "elsewhere") == before
    else:
        with pytest.raises(MachineError, match="peers is a link"):
            execute(config, tmp_path / "run", on_start=link)
        assert not list((tmp_path / "elsewhere").iterdir())


def test_runs_of_one_second_have_folders_of_their_own(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = time.strftime
    monkeypatch.setattr(
        time, "strftime", lambda form, *at: "20260101-000000" if form == "%Y%m%d-%H%M%S" else real(form, *at)
    )
    for _ in range(3):
        ok(*train(place))
    assert len(list((tmp_path / "runs/d/bpr").iterdir())) == 3
    fails(2, *train(place, "--set", "train.select=['hit@77']"))
    assert len(list((tmp_path / "runs/d/bpr").iterdir())) == 3  # what is refused leaves no folder


def test_processes_of_one_second_have_folders_of_their_own(tmp_path):
    """Three at once, in threads, which the file system cannot tell from processes."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    from kdrs.runs.places import claimed

    together = Barrier(3)

    def take(_: int) -> Path:
        together.wait()
        with claimed(tmp_path / "runs/x") as place:
            (place / "mine").touch()
        return place

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(take, range(3)))) == 3


def test_a_beginning_that_fails_leaves_nothing(place, tmp_path, monkeypatch):
    from kdrs.data import Dataset

    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdrs.runs.directory.describe_data", full)
    config = resolve({"data": {"path": str(place / "d")}, "model": {"name": "bpr"}}).to_dict()
    with pytest.raises(MachineError, match=r"No space left on device.*MB are free"):
        Run.create(tmp_path / "a/run", config, Dataset.load(place / "d"))
    assert not list(tmp_path.iterdir())


def test_a_line_that_does_not_fit_on_the_disk_is_taken_back(s, monkeypatch):
    """A line cut in the middle would be lost with all that come after it."""
    run, before = Run.open(s), (s / "metrics.jsonl").read_bytes()
    real = os.write

    def short(handle: int, content: bytes) -> int:
        if len(content) > 10 and content.startswith(b"{"):
            return real(handle, content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(MachineError, match="No space left on device"):
        run.log({"epoch": 4, "loss": 1.0})
    monkeypatch.undo()
    assert (s / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_what_a_kill_leaves_is_swept_by_the_next_command(toy_path, tmp_path):
    """SIGKILL soon after the start and later: the run goes on or begins anew, and no temporary file stays."""
    run = tmp_path / "run"
    common = [
        "--data",
        toy_path,
        *FAST,
        "--dim",
        4,
        "--epochs",
        30,
        "--set",
        "train.checkpoint_seconds=0",
        "-q",
        "--out",
        run,
    ]
    command = [sys.executable, "-m", "kdrs", "train", *map(str, common)]
    for delay in (0.0, 0.02):
        begun = ["--resume"] if (run / "config.toml").is_file() else []
        process = subprocess.Popen([*command, *begun], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        lock = run / "LOCK"
        stamp = lock.stat().st_mtime_ns if lock.exists() else 0
        while process.poll() is None and not (lock.exists() and lock.stat().st_mtime_ns != stamp):
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -9), errors.decode()
    begun = ["--resume"] if (run / "config.toml").is_file() else []
    subprocess.run([*command, *begun], check=True, capture_output=True)
    names = {path.name for path in run.rglob("*")}
    assert not [name for name in names if "tmp" in name]
    assert len([name for name in names if name.startswith("state-")]) == 2
    assert len(Run.open(run).rows()) == 30


# --- without the data set -------------------------------------------------------------------------------------------


@pytest.fixture
def gone(place, tmp_path, monkeypatch):
    """A function that trains a model on data that are then taken away."""

    def make(model: str, **options: object) -> Path:
        shutil.copytree(place / "d", tmp_path / "d", dirs_exist_ok=True)
        values = {"data": {"path": str(tmp_path / "d")}, "model": {"name": model, "dim": 4, **options}, "device": "cpu"}
        execute(resolve({**values, "train": {"epochs": 1, "batch_size": 64}}), tmp_path / model)
        shutil.rmtree(tmp_path / "d")
        return tmp_path / model

    return make


def test_a_run_opens_without_its_data_set(place, gone):
    run = gone("bpr")
    alone, whole = load_run(run), load_run(run, kdrs.Dataset.load(place / "d"))
    for ours, theirs in zip(alone.factors()[:2], whole.factors()[:2], strict=True):
        assert torch.equal(ours, theirs)
    assert list(alone.users) == list(whole.dataset.users)
    assert list(alone.items) == list(whole.dataset.items)
    teacher = alone.teacher()
    assert torch.equal(teacher.score_block([3, 1]), whole.teacher().score_block([3, 1]))
    assert alone.report()["test"].means() == whole.report()["test"].means()
    (block,) = (ranked for _, ranked in teacher.topk_blocks(5, keep_seen=True))
    assert block.items.shape == (40, 5)
    with pytest.raises(MissingKnowledge, match="what users have seen in training is needed") as error:
        teacher.topk(5)
    assert "load_run(path, dataset)" in error.value.remedy
    with pytest.raises(MissingKnowledge, match=r"the data set of .* is not at"):
        _ = alone.dataset


@pytest.mark.parametrize("model", ["neumf", "cml"])
def test_other_models_of_weights_alone_open_too(gone, place, model):
    run = gone(model)
    alone, whole = load_run(run), load_run(run, kdrs.Dataset.load(place / "d"))
    assert torch.equal(alone.teacher().score_block([3, 1]), whole.teacher().score_block([3, 1]))


@pytest.mark.parametrize("model", ["lightgcn", "multvae", "sasrec"])
def test_a_model_that_computes_with_training_data_says_what_is_missing(gone, place, model):
    run = gone(model)
    with pytest.raises(MissingKnowledge, match=f"{model} computes with its training data"):
        load_run(run)
    assert load_run(run, kdrs.Dataset.load(place / "d")).model is not None
    assert "is not at" in (error := fails(3, "eval", run))
    assert "try: give it with --data" in error


def test_evaluation_of_a_run_whose_data_moved(gone, place):
    ok("eval", gone("bpr"), "--data", place / "d")


# --- terms and teachers ---------------------------------------------------------------------------------------------


def test_the_run_itself_is_no_teacher(place, tmp_path):
    values = {"data": {"path": str(tmp_path / "nowhere")}, "model": {"name": "bpr", "dim": 4}}
    values["distill"] = [{"method": "rrd", "teacher": str(tmp_path / "run")}]
    with pytest.raises(ConfigError, match="has the run itself as teacher"):  # before any data are read
        execute(resolve(values), tmp_path / "run")


@pytest.mark.parametrize(("dim", "told"), [(4, False), (8, True), (9, True)])
def test_a_student_as_large_as_its_teacher_is_told(place, tmp_path, dim, told):
    command = (
        "distill",
        "--data",
        place / "d",
        *FAST,
        "--dim",
        dim,
        "--teacher",
        place / "t",
        "--method",
        "rrd",
        "--dry-run",
    )
    assert ("nothing becomes smaller" in ok(*command).err) == told


def test_no_warnings_about_a_run_as_it_was_written(place):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_run(place / "t").teacher()
        load_run(place / "s")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rules", 5),
        ("values", "hit@5"),
        ("part", None),
        ("beyond", {"a": "b"}),
        ("tied", "x"),
        ("values", ["nothing"]),
        ("schema", []),
    ],
)
def test_reports_of_another_kind_are_refused(s, key, value):
    path = s / "report-test.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ArtefactError, match=r"report-test.json (is damaged|has schema)"):
        load_run(s).report()


def test_a_pipe_in_the_place_of_a_report_holds_nobody_up(s):
    for name in ("report-test.npz", "report-test.json"):
        (s / name).unlink()
        os.mkfifo(s / name)
        with pytest.raises(ArtefactError, match=f"{name} is no file"):
            load_run(s).report()


@pytest.mark.parametrize("kind", ["shape", "dtype", "part", "stranger", "step", "nan", "best"])
def test_a_checkpoint_that_fits_no_learner_is_named(toy_path, s, kind):
    """With digests made to fit."""
    from kdrs.runs.files import file_digest, read_run_tensors, write_safetensors

    folder = s / "checkpoint"
    manifest = json.loads((folder / "manifest.json").read_text())
    record = manifest["files"]["best" if kind == "best" else "state"]
    path = folder / record["name"]
    tensors, metadata = read_run_tensors(path)
    moment = "0/optimizer/model.items.weight/exp_avg"
    if kind == "best":
        tensors["items.weight"] = tensors["items.weight"][:, :2].clone()
    elif kind == "shape":
        tensors[moment] = tensors[moment][:5].clone()
    elif kind == "dtype":
        tensors[moment] = tensors[moment].half()
    elif kind == "part":
        del tensors[moment]
    elif kind == "stranger":
        tensors["0/optimizer/model.nobody/step"] = torch.zeros(())
    elif kind == "step":
        tensors["0/optimizer/model.items.weight/step"] = torch.tensor(3e38)
    else:
        tensors[moment][0] = float("nan")
    write_safetensors(path, tensors, metadata)
    record |= {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": manifest_digest(manifest)}))
    error = fails(4, "resume", s, "--epochs", 6)
    assert ("do not fit the model: items.weight" if kind == "best" else "does not fit the optimizer") in error
    assert Run.open(s).status()["model_sha256"] == file_digest(
        s / "model.safetensors"
    )  # the weights it ended with are still there
