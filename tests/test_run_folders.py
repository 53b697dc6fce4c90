"""What a run does with numbers past its limits, with files that are not its own, and without its data set."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import kdrs
from commands import FAST, fails, listing, ok
from kdrs.errors import MachineError, MissingKnowledge
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.opened import load_run
from test_run_damage import teacher_and_student


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_and_student(tmp_path_factory.mktemp("folders"))


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
def test_what_a_kill_leaves_is_swept_by_the_next_command(forks, toy_path, tmp_path):
    """SIGKILL soon after the start and later: the run goes on or begins anew, and no temporary file stays."""
    run = tmp_path / "run"
    often = ("--set", "train.checkpoint_seconds=0", "-q")
    command = ["train", "--data", toy_path, *FAST, "--dim", 4, "--epochs", 30, *often, "--out", run]
    for delay in (0.0, 0.02):
        begun = ["--resume"] if (run / "config.toml").is_file() else []
        lock = run / "LOCK"
        stamp = lock.stat().st_mtime_ns if lock.exists() else 0
        process = forks.begin(*command, *begun)
        while process.poll() is None and not (lock.exists() and lock.stat().st_mtime_ns != stamp):
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        ended = process.ended()
        assert ended.returncode in (0, -9), ended.stderr
    begun = ["--resume"] if (run / "config.toml").is_file() else []
    assert forks.run(*command, *begun).returncode == 0
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


def test_what_needs_no_data_is_served_without_them(gone):
    run = gone("bpr")
    assert ok("recommend", run, "--user", "u1", "--seen", "none", "--k", 3).out.splitlines()[0] == "u1"
    assert ok("similar", run, "--item", "i1", "--k", 3).out.splitlines()[0] == "i1"
    error = fails(4, "recommend", run, "--user", "u1", "--k", 3)
    assert "what users have seen is in the data set of" in error
    assert "is asked for" not in error
