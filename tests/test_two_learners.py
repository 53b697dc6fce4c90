"""Runs of two learners, runs that start from others, and what is planned and told of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file

from kdrs.errors import ArtefactError, ConfigError
from kdrs.runs.compared import compare_runs
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute, plan
from kdrs.runs.opened import load_run
from kdrs.runs.seeds import execute_seeds
from test_parts import teacher_and_student, teacher_table, values

pytestmark = pytest.mark.filterwarnings("ignore:.*no better than")


@pytest.fixture(scope="module")
def trained(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_and_student(toy_path, tmp_path_factory.mktemp("runs"))


def bidirectional(toy_path, trained, **train) -> dict:
    described = values(
        toy_path,
        start=str(trained / "student"),
        distill=[{"method": "bd", "teacher": str(trained / "teacher"), "refresh": 2}],
    )
    described["train"].update(train)
    return described


def test_bidirectional_distillation_keeps_both_models(toy_path, trained, tmp_path):
    outcome = execute(resolve(bidirectional(toy_path, trained)), tmp_path / "run")
    assert "bd-teacher.loss" in outcome.fit.rows[0]
    before, after = load_run(trained / "teacher"), load_run(tmp_path / "run/peers/bd-teacher")
    assert after.model.dim == 16
    assert not torch.equal(before.model.users.weight, after.model.users.weight)
    assert after.report()["test"].n == 50
    compared = compare_runs([tmp_path / "run", tmp_path / "run/peers/bd-teacher"], time_scoring=False)
    assert [line.role for line in compared.lines] == ["student", "teacher"]


def test_a_plan_counts_both_learners(toy_path, trained, tmp_path):
    found = plan(resolve(bidirectional(toy_path, trained)), tmp_path / "run")
    assert found["parameters"] == 130 * 4
    assert found["trained_parameters"] == 130 * (4 + 16)
    alone = plan(resolve(values(toy_path)), tmp_path / "run")
    assert alone["trained_parameters"] == 130 * 4
    assert found["memory_bytes"] - alone["memory_bytes"] == 4 * 4 * 130 * 16


def test_lists_that_are_shorter_than_the_metrics_want_are_measured_and_compared(toy_path, tmp_path):
    """A teacher file with nothing but five items a user, under full ranking."""
    lists = torch.stack([torch.randperm(80, generator=torch.Generator().manual_seed(user))[:5] for user in range(50)])
    save_file({"topk": lists.int()}, tmp_path / "lists", metadata={"kdrs": "teacher/1"})
    term = {"method": "rd", "items": 3, "teacher": str(tmp_path / "lists")}
    for protocol, measured in (("default", True), ("bd", False)):
        place = tmp_path / protocol
        config = resolve(values(toy_path, distill=[term], eval={"protocol": protocol}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = execute(config, place)
        assert bool(outcome.teachers) is measured
    compared = compare_runs([tmp_path / "default", tmp_path / "lists"], time_scoring=False)
    assert {line.role for line in compared.lines} == {"student", "teacher"}


def test_seeds_that_are_done_are_taken_for_the_same_options_alone(toy_path, tmp_path):
    described = values(toy_path)
    (first,) = execute_seeds([0], resolve(described), tmp_path).values()
    (again,) = execute_seeds([0], resolve(described), tmp_path, resume=True).values()
    assert again["test"].means() == first["test"].means()
    described["train"]["lr"] = 0.5
    with pytest.raises(ConfigError, match=r"seed-0 was started with train\.lr = 0\.01, now it is 0\.5"):
        execute_seeds([0, 1], resolve(described), tmp_path, resume=True)
    assert not (tmp_path / "seed-1").exists()
    described["train"]["lr"], described["train"]["epochs"] = 1e-2, 4
    execute_seeds([0], resolve(described), tmp_path, resume=True)
    assert Run.open(tmp_path / "seed-0").status()["epochs"] == 4


def test_a_run_counts_once_in_a_comparison(trained):
    with pytest.raises(ConfigError, match="given twice"):
        compare_runs([trained / "student", trained / "teacher/../student"])
    with pytest.raises(ArtefactError, match="no run directory, teacher file or student file"):
        compare_runs([trained / "student", trained / "nothing"])


def test_an_interruption_within_a_part_is_told(toy_path, tmp_path, capsys):
    from kdrs.cli.ending import finish
    from kdrs.cli.stopping import Stopper

    described = values(
        toy_path,
        teachers={"big": teacher_table()},
        distill=[{"method": "cd", "items": 5, "pool": 30, "teacher": "big"}],
    )
    rows = []
    outcome = execute(resolve(described), tmp_path / "run", on_epoch=rows.append, should_stop=lambda: len(rows) == 2)
    with pytest.raises(typer.Exit):
        finish(outcome, (), Stopper(), as_json=False, verbose=False)
    assert "interrupted in part big after 2 epochs; go on with: kdrs resume" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_two_learners_go_on_with_the_same_bytes(toy_path, trained, tmp_path, cut):
    config = resolve(bidirectional(toy_path, trained, epochs=5))
    execute(config, tmp_path / "whole")
    rows = []
    execute(config, tmp_path / "cut", on_epoch=rows.append, should_stop=lambda: len(rows) == cut)
    execute(config, tmp_path / "cut", resume=True)
    for name in ("model.safetensors", "peers/bd-teacher/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_starts_from_another(toy_path, trained, tmp_path):
    described = values(toy_path, start=str(trained / "student"))
    described["train"].update(epochs=1, lr=1e-12)
    execute(resolve(described), tmp_path / "run")
    ours, theirs = (load_run(path).model.users.weight for path in (tmp_path / "run", trained / "student"))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_start_of_another_size_is_refused(toy_path, trained, tmp_path):
    with pytest.raises(ArtefactError, match="16 dimensions"):
        execute(resolve(values(toy_path, start=str(trained / "teacher"))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_plan_names_the_parts_and_trains_nothing(toy_path, tmp_path):
    config = resolve(
        values(toy_path, teachers={"big": teacher_table()}, distill=[{"method": "de", "experts": 2, "teacher": "big"}])
    )
    found = plan(config, tmp_path / "run")
    assert found["parts"] == ["big (bpr, dim 16)"]
    assert not (tmp_path / "run").exists()


def test_a_run_file_is_its_own_resolution(toy_path):
    described = values(
        toy_path,
        teachers={"big": teacher_table(distill=[{"method": "rrd", "teacher": "x"}])},
        distill=[{"method": "takd", "experts": 2, "teacher": "big"}],
    )
    config = resolve(described)
    assert config.distill[0].chain == 8
    assert resolve(config.to_dict()) == config
