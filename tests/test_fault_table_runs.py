"""The table of faults, rows about runs, disks and settings: one test a row at least, by the row's number.

| row | what is promised |
|---|---|
| 41-43 | damaged, hostile and foreign checkpoints are refused by name; the one before is taken where it is whole |
| 44-49 | kills, power cuts, full disks, closed folders, two processes, signals |
| 50, 51 | other data and other options on resume are refused (there is no way round the fingerprint: train anew) |
| 52, 53 | damaged caches, bad downloads |
| 54 | a clock that is set back; runs that begin in one second |
| 56, 57 | too little memory, numbers of threads |
| 63 | a panic of the compiled core |
| 66-69, 72 | options, early stopping, divergence, sizes, several seeds of which one fails |
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import FAST, fails, kdrs, ok
from kdrs import save_teacher
from kdrs.data import Dataset, Interactions
from kdrs.errors import ArtefactError, ConfigError
from kdrs.runs.checkpoints import manifest_digest
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.opened import load_run
from kdrs.runs.seeds import execute_seeds
from test_data_known import cache, server, small  # noqa: F401
from test_data_known import test_a_damaged_cache_is_made_again as test_fault_52_damaged_cache  # noqa: F401
from test_data_known import test_nothing_wrong_is_kept as test_fault_53_bad_downloads  # noqa: F401
from test_data_known import test_offline_names_the_file_to_place as test_fault_53_offline  # noqa: F401
from test_divergence import test_divergence_is_code_1_and_keeps_the_run as test_fault_68_divergence  # noqa: F401
from test_faults import place  # noqa: F401
from test_faults import test_a_damaged_checkpoint as test_fault_41_damaged_checkpoint  # noqa: F401
from test_faults import test_a_data_set_that_changed_since as test_fault_50_other_data  # noqa: F401
from test_faults import test_a_full_disk_in_training as test_fault_46_full_disk  # noqa: F401
from test_faults import test_a_second_ctrl_c_stops_at_once as test_fault_49_second_ctrl_c  # noqa: F401
from test_faults import test_output_below_a_file as test_fault_47_no_output_folder  # noqa: F401
from test_faults import test_sigterm as test_fault_49_sigterm  # noqa: F401
from test_resume_moved import here, made  # noqa: F401
from test_resume_moved import test_a_run_does_not_go_on_with_another_teacher as test_fault_50_other_teachers  # noqa: F401
from test_run_damage import test_the_run_itself_is_no_teacher as test_fault_69_own_teacher  # noqa: F401
from test_run_folders import test_a_run_that_cannot_fit_is_refused_with_numbers as test_fault_56_memory  # noqa: F401
from test_run_folders import test_runs_of_one_second_have_folders_of_their_own as test_fault_54_one_second  # noqa: F401
from test_train import teacher  # noqa: F401
from test_train import test_a_resumed_run_ends_with_the_same_bytes as test_fault_44_same_bytes  # noqa: F401
from test_train_runs import finished  # noqa: F401
from test_train_runs import test_a_running_run_is_locked as test_fault_48_two_runs  # noqa: F401
from test_train_runs import test_options_may_not_change_on_resume as test_fault_51_other_options  # noqa: F401


def values(data: Path, **train: object) -> dict:
    plain = {"epochs": 3, "batch_size": 64, "checkpoint_seconds": 0, **train}
    return {"data": {"path": str(data)}, "model": {"name": "bpr", "dim": 4}, "train": plain, "device": "cpu"}


@pytest.fixture
def run(toy_path: Path, tmp_path: Path) -> Path:
    execute(resolve(values(toy_path)), tmp_path / "run")
    return tmp_path / "run"


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


HEADERS = {
    "oversize": header(b'{"x":{}}', 2**60),
    "past the end": header(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 4000),
    "overlapping": header(
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
    )
    + bytes(12),
    "twice": header(
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    )
    + bytes(8),
    "shape overflows": header(b'{"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}') + bytes(8),
    "deep": header(b'{"a":' * 60_000),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_fault_42_hostile_headers(toy_path, run, tmp_path, content):
    """In a teacher file, and in a run whose digests were made to fit."""
    from kdrs.runs.files import file_digest

    (tmp_path / "t.safetensors").write_bytes(content)
    command = ("distill", "--data", toy_path, *FAST, "--method", "rrd", "--teacher", tmp_path / "t.safetensors")
    assert "t.safetensors" in fails(4, *command, "--out", tmp_path / "n")
    model = run / "model.safetensors"
    model.write_bytes(content)
    status = json.loads((run / "STATUS.json").read_text())
    (run / "STATUS.json").write_text(json.dumps(status | {"model_sha256": file_digest(model)}))
    assert "model.safetensors" in fails(4, "eval", run)


def test_fault_43_other_formats(toy_path, run):
    for path in (run / "checkpoint").glob("*.json"):
        manifest = json.loads(path.read_text()) | {"format": "kdrs-checkpoint/99"}
        path.write_text(json.dumps({**manifest, "sha256": manifest_digest(manifest)}))
    with pytest.raises(
        ArtefactError, match=r"has format kdrs-checkpoint/99; this kdrs reads kdrs-checkpoint/1"
    ) as error:
        execute(resolve(values(toy_path, epochs=4)), run, resume=True)
    assert error.value.remedy == "use the version of kdrs that wrote it"
    loaded = Run.open(run)
    tensors, metadata = loaded.load_model()
    loaded.save_model(tensors, metadata | {"format": "kdrs-model/99"})
    from kdrs.runs.files import file_digest

    loaded.set_status("finished", model_sha256=file_digest(run / "model.safetensors"))
    with pytest.raises(ArtefactError, match="has format kdrs-model/99"):
        load_run(run)


def test_fault_43_weights_of_other_sizes(run):
    """With digests made to fit: the shapes themselves are compared."""
    from kdrs.runs.files import file_digest

    loaded = Run.open(run)
    tensors, metadata = loaded.load_model()
    loaded.save_model({name: torch.cat([tensor, tensor], 1) for name, tensor in tensors.items()}, metadata)
    status = loaded.status()
    loaded.set_status(**status | {"model_sha256": file_digest(run / "model.safetensors")})
    with pytest.raises(ArtefactError, match="do not fit its configuration"):
        load_run(run)


def test_fault_45_on_the_disk_before_it_is_said(toy_path, tmp_path, monkeypatch):
    """Every file is flushed before it takes its name, and the folder after; the lines of metrics.jsonl before the manifest."""
    events: list[tuple[str, str]] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        events.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))
        real_fsync(handle)

    def replace(source: Path, target: Path) -> None:
        events.append(("rename", f"{source}>{target}"))
        real_replace(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to name open files by")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    execute(resolve(values(toy_path, epochs=1)), tmp_path / "run")
    renames = [(at, text.split(">")) for at, (kind, text) in enumerate(events) if kind == "rename"]
    assert {Path(target).name for _, (_, target) in renames} >= {"manifest.json", "STATUS.json", "model.safetensors"}
    for position, (source, target) in renames:
        assert ("fsync", source) in events[:position]
        assert ("fsync", str(Path(target).parent)) in events[position:]
    manifest = next(position for position, (_, target) in renames if target.endswith("manifest.json"))
    assert ("fsync", str(tmp_path / "run/metrics.jsonl")) in events[:manifest]


def test_fault_48_lock_of_a_dead_process(toy_path, run):
    """What a dead process wrote into LOCK holds nobody up, on this host or another."""
    (run / "LOCK").write_text("kdrs run: process 1 on elsewhere, since 2026-01-01 00:00:00")
    execute(resolve(values(toy_path, epochs=4)), run, resume=True)
    assert f"process {os.getpid()} on" in (run / "LOCK").read_text()


def test_fault_54_clock_set_back(toy_path, tmp_path, monkeypatch):
    """Durations are of a clock that only goes forward."""
    clock = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    rows = execute(resolve(values(toy_path)), tmp_path / "run").run.rows()
    assert all(row["seconds"] >= 0 and row["evaluation_seconds"] >= 0 for row in rows)


@pytest.mark.parametrize("bad", ["0", "abc", "-1", "1025", ""])
def test_fault_57_threads_that_cannot_be(toy_path, tmp_path, monkeypatch, bad):
    monkeypatch.setenv("KDRS_NUM_THREADS", bad)
    assert "KDRS_NUM_THREADS" in fails(2, "train", "--data", toy_path, *FAST, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("bad", ["0", "1025", "-1"])
def test_fault_57_threads_option(toy_path, tmp_path, bad):
    fails(2, "train", "--data", toy_path, *FAST, f"--threads={bad}", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_fault_57_numbers_of_threads_change_no_draw_and_no_evaluation(toy_path, tmp_path, monkeypatch):
    found = []
    for threads in (1, 2, 64):
        monkeypatch.setenv("KDRS_NUM_THREADS", str(threads))
        execute(resolve(values(toy_path)), tmp_path / str(threads))
        found.append((tmp_path / str(threads) / "report-test.json").read_bytes())
    assert len(set(found)) == 1


class PanicException(BaseException):
    """Called and built as the one that the compiled core raises."""


def test_fault_63_panic(toy_path, tmp_path, monkeypatch):
    """Code 1, the run's state saved, and what to report; no Python traceback."""
    command = ("train", "--data", toy_path, *FAST, "--dim", 2, "--epochs", 3, "--out", tmp_path / "run")
    ok(*command)

    def panics(*_: object, **__: object) -> None:
        raise PanicException("index out of bounds: the len is 3 but the index is 7")

    monkeypatch.setattr("kdrs.runs.execute.fit", panics)
    result = kdrs("resume", tmp_path / "run", "--epochs", 5)
    assert result.code == 1
    assert "error: internal: the core panicked: index out of bounds" in result.err
    assert "report it with the output of kdrs doctor" in result.err
    assert "Traceback" not in result.err
    status = json.loads((tmp_path / "run/STATUS.json").read_text())
    assert (status["status"], status["error"].split(":")[0]) == ("failed", "PanicException")
    monkeypatch.undo()
    ok("resume", tmp_path / "run", "--epochs", 5)


def test_fault_63_panic_of_one_seed(toy_path, tmp_path, monkeypatch):
    from kdrs.runs import execute as module

    real = module.fit

    def fit(*arguments: object, seed: int, **options: object) -> object:
        if seed == 1:
            raise PanicException("broken")
        return real(*arguments, seed=seed, **options)

    monkeypatch.setattr(module, "fit", fit)
    results = execute_seeds([0, 1, 2], resolve(values(toy_path, epochs=1)), tmp_path / "x")
    assert [isinstance(results[seed], Exception) for seed in (0, 1, 2)] == [False, True, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nlearning_rate = 1", "unknown key 'train.learning_rate'"),
        ("[trian]\nlr = 1", "unknown key 'trian'\n  try: did you mean 'train'?"),
        ("[train]\nlr = '1e-3'", "train.lr is 1e-3\n  try: allowed: a valid number"),
        ("[train]\nleak_held_out = 'no'", "train.leak_held_out is no\n  try: allowed: a valid boolean"),
        ("[train]\nlr = 1e-3\nlr = 1e-3", "is no TOML"),
        ("[train]\nlr = nan", "train.lr is nan"),
        ("[train]\nepochs = true", "train.epochs is True"),
        ('start = "a\\u0000b"', "without NUL"),
        ("a = " + "[" * 5000, "is no TOML"),
    ],
)
def test_fault_66_options(toy_path, tmp_path, text, words):
    (tmp_path / "run.toml").write_text(text)
    assert words in fails(2, "train", tmp_path / "run.toml", "--data", toy_path, "--model", "bpr", "--dry-run")


@pytest.mark.parametrize("lr", ["1e-3", "0.001", "1_0e-4"])
def test_fault_66_numbers_as_they_are_written(toy_path, tmp_path, lr):
    (tmp_path / "run.toml").write_text(f"[train]\nlr = {lr}")
    command = ("train", tmp_path / "run.toml", "--data", toy_path, "--model", "bpr", "--dry-run", "--json")
    assert ok(*command).document["config"]["train"]["lr"] == 1e-3


def test_fault_67_selected_by_what_is_not_measured(toy_path, tmp_path):
    with pytest.raises(ConfigError, match=r"selected by hit@77, which is not evaluated"):
        execute(resolve(values(toy_path, select=["hit@77"])), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("option", [{"patience": 3}, {"select": ["hit@5"]}])
def test_fault_67_nothing_to_select_by(toy, tmp_path, option):
    empty = Interactions.from_pairs([], [], *toy.valid.shape)
    data = toy.from_interactions(toy.train, empty, toy.test, name="toy").save(tmp_path / "d")
    with pytest.raises(ConfigError, match="no validation part to select by"):
        execute(resolve(values(data, **option)), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert execute(resolve(values(data)), tmp_path / "x").fit.best_epoch == 2  # the last one


def test_fault_68_a_learning_rate_of_nothing(toy_path, tmp_path):
    assert "train.lr is 0.0" in fails(2, "train", "--data", toy_path, *FAST, "--lr", 0, "--out", tmp_path / "x")


def test_fault_69_a_student_as_large_as_its_teacher(toy_path, run):
    command = ("distill", "--data", toy_path, *FAST, "--teacher", run, "--method", "rrd", "--dry-run")
    assert "nothing becomes smaller" in ok(*command, "--dim", 4).err
    assert "nothing becomes smaller" not in ok(*command, "--dim", 3).err


def test_fault_69_a_student_as_large_as_its_teacher_file(toy_path, tmp_path):
    data, rng = Dataset.load(toy_path), np.random.default_rng(0)
    tables = {side: rng.standard_normal((n, 4)) for side, n in (("users", data.n_users), ("items", data.n_items))}
    ids = {"user_ids": data.users, "item_ids": data.items}
    (tmp_path / "stages").mkdir()
    for name in ("one.safetensors", "stages/1.safetensors", "stages/2.safetensors"):
        save_teacher(tmp_path / name, **tables, **ids)
    save_teacher(tmp_path / "lists.safetensors", topk=np.tile(np.arange(data.n_items), (data.n_users, 1)), **ids)
    command = ("distill", "--data", toy_path, *FAST, "--method", "rrd", "--dry-run")
    for name, dim, told in (
        ("one.safetensors", 4, True),
        ("one.safetensors", 3, False),
        ("stages", 4, True),
        ("lists.safetensors", 99, False),
    ):
        said = ok(*command, "--teacher", tmp_path / name, "--dim", dim).err
        assert ("nothing becomes smaller" in said) == told, (name, dim)


def test_fault_69_lists_past_the_catalogue_are_cut_to_it(toy_path, run, tmp_path):
    plain = values(toy_path) | {"model": {"name": "bpr", "dim": 2}}
    plain["distill"] = [{"method": "rrd", "teacher": str(run), "pool": 5000}]
    execute(resolve(plain), tmp_path / "x")


def test_fault_72_one_seed_of_many_fails(toy_path, tmp_path, monkeypatch):
    """The others go on, the failed one is listed, means say of how many, and a restart takes finished ones as they are."""
    from kdrs.runs import execute as module

    real, trained = module.fit, []

    def fit(*arguments: object, seed: int, **options: object) -> object:
        trained.append(seed)
        if seed == 1 and trained.count(1) == 1:
            raise RuntimeError("broken")
        return real(*arguments, seed=seed, **options)

    monkeypatch.setattr(module, "fit", fit)
    command = ("train", "--data", toy_path, *FAST, "--epochs", 1, "--seeds", "0..2", "--out", tmp_path / "x")
    result = kdrs(*command)
    assert result.code == 1
    assert "seed 1 failed: RuntimeError: broken" in result.err
    assert "seeds 0, 2;" in result.out
    assert re.search(r"^seeds +2 +2$", result.out, re.MULTILINE)
    assert re.search(r"^seeds +3 +3$", ok(*command, "--resume").out, re.MULTILINE)
    assert trained == [0, 1, 2, 1]
