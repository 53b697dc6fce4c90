"""Trainings that diverge: an error of the training, whatever the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import FAST, fails, kdrs


def train(data: Path, *more: object) -> tuple[object, ...]:
    return ("train", "--data", data, *FAST, "--dim", 4, "--epochs", 3, *more)


def test_divergence_is_code_1_and_keeps_the_run(toy_path, tmp_path):
    error = fails(1, *train(toy_path, "--lr", 1e30, "--out", tmp_path / "run"))
    assert "in epoch" in error
    assert json.loads((tmp_path / "run/STATUS.json").read_text())["status"] == "failed"
    assert not (tmp_path / "run/model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "lr"),
    [
        (("--model", "elsa"), 1e38),
        (("--model", "elsa", "--set", "model.bits=1"), 1e38),
        (("--set", "model.bits=2"), 1e20),
        (("--set", "model.bits=2"), 1e38),
        (("--model", "lightgcn"), 1e30),
    ],
)
def test_divergence_of_other_models_is_the_trainings_fault_too(toy_path, tmp_path, options, lr):
    """Where vectors or codes cannot be made of such weights, it is no fault of the data."""
    result = kdrs(*train(toy_path, *options, "--lr", lr, "--out", tmp_path / "run"))
    assert result.code == 1, result.err
    assert "lower the learning rate" in result.err
    assert "Warning" not in result.err
    assert "warning" not in result.err
    assert json.loads((tmp_path / "run/STATUS.json").read_text())["status"] == "failed"
