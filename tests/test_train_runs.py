"""What a training leaves in its run directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kdrs.data import Dataset
from kdrs.errors import ArtefactError, ConfigError, MachineError
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.opened import load_run
from test_train import final_bytes, run_values, stop_after

# --- run directories ------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(toy_path, tmp_path) -> Path:
    execute(resolve(run_values(toy_path, epochs=3)), tmp_path / "run")
    return tmp_path / "run"


def test_a_run_opens_again(toy_path, finished):
    loaded = load_run(finished)
    report = loaded.report()["test"]
    from kdrs.evaluation.evaluator import Evaluator

    again = Evaluator.of(loaded.dataset)(loaded.teacher())["test"]
    assert again.means() == report.means()
    assert loaded.run.status()["best_epoch"] == loaded.run.rows()[loaded.run.status()["best_epoch"]]["epoch"]
    names = {p.name for p in finished.iterdir()}
    assert {"config.toml", "env.json", "data.json", "ids", "metrics.jsonl", "model.safetensors", "checkpoint"} <= names
    assert not list(finished.rglob("*.tmp"))


@pytest.mark.parametrize(("protocol", "separate"), [("loo-499", True), ("loo-499-paper", False)])
def test_each_list_length_is_reported_from_its_own_best_epoch(toy_path, tmp_path, protocol: str, separate: bool):
    """The test metrics at K of the first epoch whose validation hit@K, to four decimals, is the highest."""
    values = {**run_values(toy_path, epochs=9 if separate else 1), "eval": {"protocol": protocol}}
    rows = execute(resolve(values), tmp_path / "run").run.rows()
    report = json.loads((tmp_path / "run/report.json").read_text())
    if not separate:
        assert "per_metric_best" not in report
        return
    expected, epochs = {}, set()
    for k in (5, 10, 20):
        hits = [round(row["valid"][f"hit@{k}"], 4) for row in rows]
        best = rows[hits.index(max(hits))]
        epochs.add(best["epoch"])
        for name in (f"hit@{k}", f"ndcg@{k}", f"mrr@{k}"):
            expected[name] = {"epoch": best["epoch"], "test": best["test"][name], "valid": best["valid"][name]}
    assert len(epochs) > 1
    assert report["per_metric_best"] == expected


def test_no_second_run_in_one_directory(toy_path, finished):
    config = resolve(run_values(toy_path, epochs=3))
    with pytest.raises(ConfigError, match=r"already holds a run \(finished\)"):
        execute(config, finished)


def test_a_running_run_is_locked(toy_path, tmp_path):

    dataset, config = Dataset.load(toy_path), resolve(run_values(toy_path))
    with (
        Run.create(tmp_path / "run", config.to_dict(), dataset),
        pytest.raises(MachineError, match=f"in use by process {os.getpid()}"),
    ):
        Run.create(tmp_path / "run", config.to_dict(), dataset, resume=True)
    Run.create(tmp_path / "run", config.to_dict(), dataset, resume=True).close()


def test_options_may_not_change_on_resume(toy_path, finished):
    with pytest.raises(ConfigError, match=r"started with train.lr = 0.01, now it is 0.02"):
        execute(resolve(run_values(toy_path, epochs=3, lr=0.02)), finished, resume=True)


def test_a_folder_of_something_else_is_left_alone(toy_path, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is no run directory"):
        execute(resolve(run_values(toy_path)), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing"])
@pytest.mark.parametrize("part", ["state", "best"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(toy_path, tmp_path, damage, part):
    config = resolve(run_values(toy_path))
    execute(config, tmp_path / "run", should_stop=stop_after(3))
    hurt(sorted((tmp_path / "run/checkpoint").glob(f"{part}-*"))[-1], damage)
    with pytest.warns(UserWarning, match="going on from the checkpoint before"):
        execute(config, tmp_path / "run", resume=True)
    execute(config, tmp_path / "whole")
    assert final_bytes(tmp_path / "run") == final_bytes(tmp_path / "whole")


def test_no_whole_checkpoint_is_an_error(toy_path, tmp_path):
    config = resolve(run_values(toy_path))
    execute(config, tmp_path / "run", should_stop=stop_after(3))
    for path in (tmp_path / "run/checkpoint").glob("state-*"):
        hurt(path, "flip")
    with pytest.raises(ArtefactError, match="SHA-256"):
        execute(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing"])
def test_a_damaged_model_is_refused(finished, damage):
    hurt(finished / "model.safetensors", damage)
    with pytest.raises(ArtefactError):
        load_run(finished)


def hurt(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
    elif damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content)
