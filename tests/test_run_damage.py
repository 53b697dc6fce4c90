"""Run directories that were changed, damaged, or are somebody else's: each is named, and a refusal changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from commands import FAST, fails, listing, ok, write_clicks
from kdrs.errors import ArtefactError, ConfigError
from kdrs.runs.checkpoints import manifest_digest
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.opened import load_run


def teacher_and_student(folder: Path) -> Path:
    """A prepared data set, a teacher with stages and a student of it, in the folder."""
    ok("data", "prepare", write_clicks(folder / "clicks.csv"), "--out", folder / "d", "--candidates", 20)
    common = ("--data", folder / "d", *FAST, "--epochs", 4, "--threads", 1, "--set", "train.checkpoint_seconds=0")
    ok("train", *common, "--dim", 8, "--set", "train.stages_every=1", "--out", folder / "t")
    ok("distill", *common, "--teacher", folder / "t", "--method", "rrd", "--dim", 4, "--out", folder / "s")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_and_student(tmp_path_factory.mktemp("damage"))


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
