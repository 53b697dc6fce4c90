"""`benches/gpu.py`, the visit to a GPU, with the CPU in its place: what is measured once stays, whatever happens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benches"))

import gpu
import gpu_cases


@pytest.fixture
def figures(tmp_path: Path) -> gpu_cases.Figures:
    return gpu_cases.Figures(tmp_path / "figures")


@pytest.mark.parametrize("method", [*gpu_cases.MODELS, *gpu_cases.METHODS])
def test_every_case_can_be_built_and_steps(method: str):
    from kdrs.fitting.fit import step_of

    learners, task = gpu_cases.learners_of(method, "cpu", quick=True)
    batches = gpu_cases.batches_of(learners, task)
    # past the end of an epoch, too
    for _, batch in zip(range(task.n_batches + 1 if task.n_batches < 10 else 2), batches, strict=False):
        parts = step_of(learners, batch)
        assert all(torch.isfinite(torch.as_tensor(value)) for part in parts for value in part)


def test_a_case_leaves_a_file_for_each_figure_and_takes_none_twice(figures, capsys):
    threads = torch.get_num_threads()
    try:
        gpu_cases.run_case("steps-bpr", "cpu", True, figures)
        gpu_cases.run_case("evaluator", "cpu", True, figures)
    finally:
        torch.set_num_threads(threads)
    found = figures.all()
    assert set(found) == {"steps-bpr-cpu-float32", "steps-bpr-cpu-tf32", "evaluator"}
    assert found["steps-bpr-cpu-float32"]["milliseconds"] > 0
    assert found["evaluator"]["20 dims, largest difference of a mean"] == 0
    page = (figures.place / "gpu.md").read_text("utf-8")
    assert "| steps-bpr-cpu-float32 |" in page
    assert "## evaluator" in page
    before = {path.name: path.read_bytes() for path in figures.place.iterdir()}
    (figures.place / "steps-bpr-cpu-tf32.json").unlink()  # as if the visit had ended there
    capsys.readouterr()
    gpu_cases.run_case("steps-bpr", "cpu", True, figures)
    assert capsys.readouterr().out.count("steps-bpr") == 1
    assert (figures.place / "steps-bpr-cpu-float32.json").read_bytes() == before["steps-bpr-cpu-float32.json"]
    # the same weights at the start of each
    again = json.loads((figures.place / "steps-bpr-cpu-tf32.json").read_text())
    assert again["loss of 3 steps"] == found["steps-bpr-cpu-float32"]["loss of 3 steps"]


def test_what_takes_too_long_is_stopped_and_noted(tmp_path):
    log = tmp_path / "log"
    assert gpu.run([sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(60)"], 3, log) is None
    assert "begun" in log.read_text()
    assert gpu.run([sys.executable, "-c", "raise SystemExit(3)"], 30, log) == 3


def test_pages_hold_no_column_of_others(figures):
    figures.add("machine", {"gpu": "A|B\nC"})
    assert "A\\|B C" in (figures.place / "gpu.md").read_text("utf-8")


def test_what_travels_along_is_what_a_machine_with_torch_lacks():
    there: dict[str, str] = {}
    needed: dict[str, str] = {}
    gpu.closure("torch", there)
    gpu.closure("pydantic", needed)
    gpu.closure("Pytest_XDist", needed)
    gpu.closure("no-such-package", needed)
    assert "typing-extensions" in there
    assert {"pydantic", "pydantic-core", "pytest-xdist", "pytest"} <= needed.keys()
    assert "no-such-package" not in needed
    assert "psutil" not in needed, "of an extra"


def test_steps_are_of_the_data_set_that_was_prepared(figures, toy, tmp_path, monkeypatch):
    toy.save(tmp_path / "data")
    monkeypatch.setattr(gpu_cases, "PREPARED", [])
    threads = torch.get_num_threads()
    try:
        gpu_cases.run_case("evaluator", "cpu", True, figures, tmp_path / "data")
        assert gpu_cases.train_pairs(quick=False).shape == toy.train.shape
        gpu_cases.run_case("evaluator", "cpu", True, figures, tmp_path / "none")
        assert gpu_cases.PREPARED == []
    finally:
        torch.set_num_threads(threads)
