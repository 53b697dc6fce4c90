"""Run directories: what a refused resume leaves alone, and damage that is noticed."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from kdrs.errors import ArtefactError, ConfigError
from kdrs.runs.config import RunConfig, resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.opened import LoadedRun


def config(data: Path, **train) -> RunConfig:
    plain = {"epochs": 3, "batch_size": 64, "checkpoint_seconds": 0, "stages": [0, 2], **train}
    values = {"data": {"path": str(data)}, "model": {"name": "bpr", "dim": 4}, "train": plain, "device": "cpu"}
    return resolve(values)


@pytest.fixture
def run(toy_path: Path, tmp_path: Path) -> Path:
    execute(config(toy_path), tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "LOCK"}


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)


def test_fewer_epochs_than_were_trained_are_refused(toy_path, run):
    before = contents(run)
    with pytest.raises(ConfigError, match="has trained 3 epochs, now 2 are asked for"):
        execute(config(toy_path, epochs=2), run, resume=True)
    assert contents(run) == before


def test_a_resume_without_a_whole_checkpoint_changes_nothing(toy_path, run):
    for path in (run / "checkpoint").glob("*.safetensors"):
        flip(path)
    before = contents(run)
    with pytest.raises(ArtefactError, match="SHA-256"):
        execute(config(toy_path, epochs=4), run, resume=True)
    assert contents(run) == before


def test_damaged_stages_are_noticed(run):
    loaded = Run.open(run)
    assert loaded.stages() == [0, 2]
    assert all(torch.isfinite(tensor).all() for tensor in loaded.load_stage(0).values())
    flip(run / "stages/0000.safetensors")
    with pytest.raises(ArtefactError, match=r"0000.safetensors is damaged"):
        loaded.load_stage(0)
    loaded.load_stage(2)
    (run / "stages/abc.safetensors").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"abc.safetensors is no stage of the run"):
        loaded.stages()


@pytest.mark.parametrize(("kind", "word"), [("users", "damaged"), ("items", "missing")])
def test_ids_are_those_of_the_training(run, kind, word):
    LoadedRun.open(run)
    path = run / f"ids/{kind}.json"
    path.write_bytes(path.read_bytes()[:10]) if word == "damaged" else path.unlink()
    with pytest.raises(ArtefactError, match=f"{kind}.json is {word}"):
        LoadedRun.open(run)


def test_a_run_without_its_model_says_how_to_get_it(run):
    (run / "model.safetensors").unlink()
    with pytest.raises(ArtefactError) as error:
        LoadedRun.open(run)
    assert error.value.remedy.startswith("resume it, its checkpoint still holds the weights: kdrs resume ")
    Run(run).set_status("interrupted")
    with pytest.raises(ArtefactError) as error:
        LoadedRun.open(run)
    assert error.value.remedy == f"finish it: kdrs resume {run}"
    Run(run).set_status("failed", error="TrainingError: the loss is nan", remedy="lower the learning rate")
    with pytest.raises(ArtefactError) as error:  # finishing it alone would fail again
        LoadedRun.open(run)
    assert error.value.remedy.startswith("it ended with TrainingError: the loss is nan; lower the learning rate; ")
    assert error.value.remedy.endswith(f"kdrs resume {run}")


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("config.toml", "", "config.toml is damaged: it names no data set or no model"),
        ("config.toml", "[model", "config.toml is no TOML"),
        ("data.json", "{", "data.json is damaged"),
    ],
)
def test_damaged_heads_are_named(run, name, content, cause):
    (run / name).write_text(content)
    with pytest.raises(ArtefactError, match=cause) as error:
        _ = Run.open(run).config, Run.open(run).data
    assert error.value.remedy.startswith("restore it from a copy")


def test_bd_without_a_trained_student_is_warned_of(toy_path, run, tmp_path):
    values = config(toy_path, epochs=1).to_dict() | {"distill": [{"method": "bd", "teacher": str(run)}]}
    with pytest.warns(
        UserWarning, match="bd lets two trained models teach each other, and the student starts untrained"
    ):
        execute(resolve(values), tmp_path / "bd")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        execute(resolve(values | {"start": str(run)}), tmp_path / "started")
    assert not [warning for warning in found if "starts untrained" in str(warning.message)]
