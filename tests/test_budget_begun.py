"""``--budget`` of a run that goes on, and what is wrong with a run that is told before methods are tried."""

from __future__ import annotations

import shutil

import pytest

from commands import fails, ok
from commands import kdrs as run
from kdrs.runs.budget import begun_at
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from kdrs.runs.forms import FORMER_SCALE, SCALE, Budget, Form, bytes_of, forms_of
from kdrs.runs.opened import LoadedRun


def distil(teacher, *words):
    return ["distill", "--data", teacher.parent / "toy", "--teacher", teacher, "--device", "cpu", *words]


@pytest.fixture
def asked(wide_teacher, monkeypatch):
    """A command whose budget has methods to try, and how often they were."""
    tried = []
    monkeypatch.setattr("kdrs.runs.budget.best_form", lambda *_, **__: Form(32, 1, bytes_of(32, 1, 80)))
    monkeypatch.setattr("kdrs.runs.budget.race", lambda runs, dataset: tried.append(runs) or [0.0] * len(runs))
    return distil(wide_teacher, "--budget", "1/40", "--epochs", 1), tried


@pytest.mark.parametrize(
    ("code", "told", "options"),
    [
        (2, "holds no run to resume", ["--resume"]),
        (2, "--seeds is 0..x", ["--seeds", "0..x"]),
        (2, "--jobs is 0", ["--seeds", "0..1", "--jobs", 0]),
        (2, "selected by ndcg@7, which is not evaluated", ["--set", 'train.select=["ndcg@7"]']),
        (2, "selected by hit@5, which is not evaluated", ["--set", "eval.ks=[1]"]),
        (2, "unknown protocol", ["--protocol", "none-such"]),
        (2, "unknown tracker", ["--log", "none-such"]),
        (2, 'train.shard is "columns"', ["--set", "train.shard=columns"]),
        (2, "train is 5", ["--set", "train=5", "--epochs", None]),
    ],
)
def test_what_is_wrong_is_told_before_methods_are_tried(asked, tmp_path, code, told, options):
    command, tried = asked
    if None in options:
        options, command = options[:2], [word for word in command if word not in ("--epochs", 1)]
    assert told in fails(code, *command, *options, "--out", tmp_path / "s")
    assert not tried
    assert not (tmp_path / "s").exists()


def test_places_are_looked_at_before_methods_are_tried(asked, tmp_path):
    command, tried = asked
    (tmp_path / "file").touch()
    fails(5, *command, "--seeds", "0..1", "--out", tmp_path / "file")
    fails(2, *command, "--out", tmp_path / "file")
    ok(*command, "--seeds", "0", "--out", tmp_path / "several")
    assert len(tried) == 1
    assert "go on with it by --resume" in fails(2, *command, "--seeds", "0", "--out", tmp_path / "several")
    assert len(tried) == 1
    error = fails(2, *command, "--seeds", "0..1", "--out", tmp_path / "several")  # nor is the other one trained
    assert "several holds a run already: seed-0\n  try: --resume takes" in error
    assert not (tmp_path / "several/seed-1").exists()
    assert len(tried) == 1
    assert run(*command, "--seeds", "0..1", "--out", tmp_path / "several", "--resume").code == 0
    assert (tmp_path / "several/seed-1/report.json").is_file()


def test_torchrun_goes_on_with_what_it_began(asked, tmp_path, monkeypatch):
    """It starts the same command anew, without --resume."""
    command, _ = asked
    ok(*command, "--out", tmp_path / "s")
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 2), ("MASTER_ADDR", "x"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    assert "already holds a run" in fails(2, *command, "--out", tmp_path / "s")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    begun = begun_at([tmp_path / "s"], resume=False)
    assert begun is not None
    assert begun.distill[0].method == "rrd"
    assert begun_at([tmp_path / "none"], resume=False) is None


@pytest.mark.parametrize(
    "way", [{"method": "rrd", "weight": 0.03, "teacher_users": "encoded"}, {"method": "cd", "weight": 0.2}]
)
def test_a_run_of_before_goes_on_by_the_same_command(wide_teacher, tmp_path, way):
    """Begun when scales took two bytes and nothing was averaged: fewer dimensions, another way, no mean."""
    n_bytes = 4 * 40 * (50 + 80)
    told = Budget.parse("1/12")
    former = {form.bits: form.dim for form in forms_of(told, n_bytes, 40, 80, scale=FORMER_SCALE)}
    now = {form.bits: form.dim for form in forms_of(told, n_bytes, 40, 80, scale=SCALE)}
    assert former[1] < now[1]
    data = wide_teacher.parent / "toy"
    model = {"name": "bpr", "dim": former[1], "bits": 1, "users": "encoded"}
    train = {"lr": 2e-3, "weight_decay": 0.0, "epochs": 1}
    values = {"data": {"path": str(data)}, "device": "cpu", "start": "teacher", "model": model, "train": train}
    execute(resolve({**values, "distill": [{**way, "teacher": str(wide_teacher)}]}), tmp_path / "s")
    command = distil(wide_teacher, "--epochs", 2, "--out", tmp_path / "s")
    again = ok(*command, "--budget", "1/12", "--resume").err
    assert "trying" not in again
    config = LoadedRun.open(tmp_path / "s").config
    assert (config.train.epochs, config.train.average, config.model["dim"]) == (2, 0, former[1])
    assert "the run was started with" in fails(
        2, *command, "--budget", "1/3", "--resume"
    )  # another budget is another run


def test_a_folder_that_cannot_be_written_is_found_before_methods_are_tried(asked, tmp_path, monkeypatch):
    command, tried = asked
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdrs.runs.places.os.access", lambda *_, **__: False)
    error = fails(5, *command)
    assert "cannot write runs/toy: Permission denied" in error
    assert "name another folder with --out" in error
    fails(5, *command, "--out", "s")
    assert not tried


def test_ctrl_c_in_a_trial_says_that_nothing_is_kept(asked, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    command, _ = asked
    monkeypatch.setattr("kdrs.runs.budget.race", interrupted)
    result = run(*command, "--out", tmp_path / "s")
    assert result.code == 130
    assert result.err.endswith("\ninterrupted before the run began; nothing was kept\n")
    assert not (tmp_path / "s").exists()


def test_ctrl_c_before_a_run_goes_on_says_how_it_does(tmp_path, wide_teacher, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    begun = tmp_path / "t"
    shutil.copytree(wide_teacher, begun)
    monkeypatch.setattr("kdrs.runs.config.resolve", interrupted)
    again = ("train", begun / "config.toml", "--out", begun, "--resume")
    for command in (("resume", begun), again):
        result = run(*command)
        assert (result.code, result.err) == (
            130,
            f"interrupted before the run began; go on with: kdrs resume {begun}\n",
        )
