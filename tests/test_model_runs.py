"""Every model from the command line: trained, distilled, evaluated in both settings, interrupted and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import fails, ok, write_clicks
from kdrs.models import MODELS
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from test_train import final_bytes, run_values, stop_after

METHODS = {
    "rrd": {"interesting": 5, "uninteresting": 5, "pool": 20},
    "de": {"experts": 2},
    "cd": {"items": 5, "pool": 30},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    source = write_clicks(folder / "clicks.csv")
    ok("data", "prepare", source, "--out", folder / "d", "--candidates", 20)
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_train_and_eval(place: Path, model: str):
    run = place / model
    common = ("--data", place / "d", "--model", model, "--device", "cpu", "--dim", 8)
    document = ok("train", *common, "--epochs", 2, "--out", run, "--json").document
    assert document["epochs"] == 2
    for protocol in ("loo-499", "default"):
        (row,) = ok("eval", run, "--protocol", protocol, "--data", place / "d", "--json").document["runs"]
        assert all(0 <= value["mean"] <= 1 for value in row["metrics"].values())
    assert ok("models", "show", model, "--json").document["reference"] == MODELS[model].reference
    taught = ok(
        "distill",
        *common,
        "--teacher",
        run,
        "--method",
        "rrd",
        "--epochs",
        1,
        "--out",
        place / f"{model}-rrd",
        "--json",
    )
    assert taught.document["epochs"] == 1


@pytest.mark.filterwarnings("ignore:teacher .* no better than popularity")
@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_run_ends_with_the_same_bytes(toy_path: Path, tmp_path: Path, model: str):
    values = run_values(toy_path, epochs=4)
    values["model"] = {"name": model, "dim": 8}
    teacher = tmp_path / "teacher"
    execute(resolve({**values, "train": {**values["train"], "epochs": 1}}), teacher)
    values["model"]["dim"] = 4
    values["distill"] = [
        {"method": method, "teacher": str(teacher), "weight": 0.1, **options} for method, options in METHODS.items()
    ]
    config = resolve(values)
    execute(config, tmp_path / "whole")
    for epoch in (0, 1):
        outcome = execute(config, tmp_path / "parts", should_stop=stop_after(epoch), resume=epoch > 0)
        assert outcome.fit.stopped == "interrupted"
    execute(config, tmp_path / "parts", resume=True)
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")


def test_models_of_whole_rows_refuse_options_of_pairs(place: Path):
    error = fails(
        2, "train", "--data", place / "d", "--model", "cdae", "--set", "train.negatives=3", "--out", place / "never"
    )
    assert "CDAE learns from whole rows" in error
    assert not (place / "never").exists()


def test_the_papers_training_is_shown_and_taken(place: Path):
    assert "trained with: batch_size 128, lr 0.002" in ok("models", "show", "cdae").out
    document = ok("train", "--data", place / "d", "--model", "cdae", "--dry-run", "--json").document
    assert document["config"]["train"]["batch_size"] == 128
    given = ("--batch-size", 7, "--dry-run", "--json")
    document = ok("train", "--data", place / "d", "--model", "cdae", *given).document
    assert document["config"]["train"]["batch_size"] == 7
