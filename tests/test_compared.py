"""Runs compared on disk: what they weigh, how they were selected, how their curves ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from commands import FAST, fails, ok
from conftest import toy_dataset
from kdrs.errors import ConfigError
from kdrs.runs.build import build_model, build_task
from kdrs.runs.compared import compare_runs, size_of
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.teachers.model import ModelTeacher
from kdrs.training.outline import OUTLINE


@pytest.fixture(scope="module")
def runs(toy_path, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    small = ["--data", toy_path, *FAST, "--epochs", "3"]
    ok("train", *small, "--dim", "16", "--out", place / "teacher")
    ok("train", *small, "--dim", "4", "--seeds", "0,1", "--out", place / "alone")
    method = ["--teacher", place / "teacher", "--method", "score-matching"]
    ok("distill", *small, *method, "--dim", "4", "--seeds", "0,1", "--out", place / "taught")
    return place


def test_bytes_are_those_of_the_tables(runs, toy):
    found = compare_runs([runs / "teacher", runs / "alone/seed-0", runs / "taught/seed-0"], time_scoring=False)
    assert [line.n_bytes for line in found.lines] == [(50 + 80) * 4 * dim for dim in (16, 4, 4)]
    assert [line.bytes_per_row for line in found.lines] == [64, 16, 16]
    assert found.lines[0].n_bytes < (runs / "teacher/model.safetensors").stat().st_size


def train(data, model: str, dim: int, out: Path) -> None:
    ok("train", "--data", data, "--model", model, "--dim", dim, "--epochs", 1, "--device", "cpu", "--out", out)


def test_bytes_of_other_models_and_of_files(runs, toy, toy_path, tmp_path):
    train(toy_path, "neumf", 4, tmp_path / "n")
    about = {"kdrs": "teacher/1", "users_digest": toy.users.digest, "items_digest": toy.items.digest}
    half = {"users": torch.randn(50, 8).half(), "items": torch.randn(80, 8).half(), "item_bias": torch.zeros(80)}
    save_file(half, tmp_path / "t", metadata=about)
    found = compare_runs([tmp_path / "n", tmp_path / "t"], time_scoring=False)
    neumf, file = found.lines
    assert neumf.bytes_per_row == 2 * 4 * 4  # two tables
    assert neumf.n_bytes > (50 + 80) * 32
    assert (file.n_bytes, file.bytes_per_row) == (130 * 16 + 320, 16 + 4)


ROW = {"bpr": 32, "lightgcn": 32, "ngcf": 32, "sgl": 32, "lightgcn-ssm": 32, "sasrec": 32, "caser": 100, "neumf": 64}
"""Bytes of an item of 8 dimensions: float32, and of Caser two tables of outputs and a bias besides."""


@pytest.mark.parametrize("users", [50, 79])
@pytest.mark.parametrize("model", list(ROW))
def test_bytes_are_those_that_are_served(model, users):
    """Of graphs the vectors that come of one table of users and items; sequences have an item more, for padding. Of a model
    that is only planned they are the same."""
    data = toy_dataset(users, 80, candidates=None)
    config = resolve({"data": {"path": "d"}, "model": {"name": model, "dim": 8}, "device": "cpu"})
    tasks = build_task(config, data), build_task(config, data, OUTLINE)
    own, planned = (size_of(ModelTeacher(build_model(config, task), task), data) for task in tasks)
    assert own == planned
    n_parameters, n_bytes, row = own
    assert (n_bytes, row) == (4 * n_parameters, ROW[model])
    if row == 32 and model != "sasrec":
        assert n_parameters == 8 * (users + 80)


def test_graph_models_are_in_the_picture(runs, toy_path, tmp_path):
    train(toy_path, "ngcf", 8, tmp_path / "n")
    found = compare_runs([tmp_path / "n", runs / "alone/seed-0"], time_scoring=False)
    assert [line.bytes_per_row for line in found.lines] == [32, 16]
    assert [line.n_bytes for line in found.lines] == [(50 + 80) * 32, (50 + 80) * 16]


def test_runs_in_folders_of_seeds_that_are_no_seeds_of_one_model(runs, tmp_path):
    """Each by itself, with a warning: their mean would be of nothing."""
    small = ["--data", Run.open(runs / "teacher").config["data"]["path"], "--epochs", "1", "--device", "cpu"]
    for seed, (model, dim) in enumerate((("bpr", 4), ("elsa", 8), ("bpr", 4))):
        ok("train", *small, "--model", model, "--dim", dim, "--seed", seed, "--out", tmp_path / f"x/seed-{seed}")
    mixed = [tmp_path / f"x/seed-{seed}" for seed in range(3)]
    with pytest.warns(UserWarning, match="are no seeds of one model: model.name is bpr in the one, elsa in the other"):
        found = compare_runs([*mixed, *(runs / f"alone/seed-{seed}" for seed in (0, 1))], time_scoring=False)
    assert {line.name: len(line.seeds) for line in found.lines} == {**{str(path): 1 for path in mixed}, "alone": 2}
    alike = compare_runs([mixed[0], mixed[2]], time_scoring=False)
    assert [(line.name, len(line.seeds)) for line in alike.lines] == [("x", 2)]


def test_any_k_is_had(runs, toy_path, tmp_path):
    """The same values as of a run that was trained with this K."""
    own = ("train", "--data", toy_path, *FAST, "--dim", "4", "--epochs", "3", "--set", "eval.ks=[5, 7, 10, 20]")
    ok(*own, "--out", tmp_path / "run")
    asked = ("--metrics", "ndcg@7,hit@10", "--json")
    found, told = (
        {run["name"]: run["metrics"] for run in ok("eval", first, runs / "alone/seed-0", *asked).document["runs"]}
        for first in (runs / "teacher", tmp_path / "run")
    )
    assert found["alone"] == told["alone"]
    assert [name.partition(" ")[0] for name in found["alone"]] == ["ndcg@7", "hit@10"]


def test_metrics_of_a_comparison_of_runs_are_names(runs):
    """By command each counts once, as in Python."""
    with pytest.raises(ConfigError, match="metrics is the text 'ndcg@10'"):
        compare_runs([runs / "teacher"], metrics="ndcg@10", time_scoring=False)
    with pytest.raises(ConfigError, match="metrics is empty"):
        compare_runs([runs / "teacher"], metrics=[], time_scoring=False)
    told = ok("eval", runs / "teacher", runs / "alone/seed-0", "--metrics", "ndcg@7,hit@5,ndcg@7", "--json").document
    assert [[name.split()[0] for name in run["metrics"]] for run in told["runs"]] == [["ndcg@7", "hit@5"]] * 2


def test_several_seeds_are_never_better_by_one_test_alone(runs):
    seeds = [runs / f"{name}/seed-{seed}" for name in ("alone", "taught") for seed in (0, 1)]
    document = ok("eval", runs / "teacher", *seeds, "--json").document
    for run in document["runs"]:
        for metric, verdict in run["verdicts"].items():
            if run["role"] == "student":
                both = [
                    run[key][metric]["p_adjusted"] < 0.05 for key in ("against_baseline", "against_baseline_by_seed")
                ]
                assert (verdict["word"] == "not clear") == (not all(both))
                assert verdict["lacks"] is None
            else:
                assert verdict["lacks"] == "one seed"
                assert run["against_baseline"][metric]["p_adjusted"] is None
    table = ok("eval", runs / "teacher", *seeds).out
    assert "transfer ratio" in table.split("quality")[0]


def test_a_curve_that_still_rises_is_told_by_train_eval_and_report(runs, toy_path, tmp_path):
    trained = ok("train", "--data", toy_path, *FAST, "--dim", "16", "--epochs", "3", "--out", tmp_path / "again")
    assert "was still rising when its 3 epochs ended" in trained.err
    assert "teacher: its validation" in ok("eval", runs / "teacher").out
    result = ok("report", runs / "teacher", "--out", tmp_path / "report")
    assert "was still rising" in result.err
    assert any(
        "still rising" in text for text in json.loads((tmp_path / "report/comparison.json").read_text())["warnings"]
    )


def test_runs_selected_by_different_rules_are_told(runs, toy_path, tmp_path):
    ok(
        "train",
        "--data",
        toy_path,
        *FAST,
        "--dim",
        "4",
        "--epochs",
        "2",
        "--patience",
        "3",
        "--out",
        tmp_path / "other",
    )
    found = compare_runs([runs / "alone/seed-0", tmp_path / "other"], time_scoring=False)
    (warning,) = [text for text in found.warnings if "different rules" in text]
    assert "other by hit@5 or hit@10 or hit@20, patience 3" in warning
    same = compare_runs([runs / "alone/seed-0", runs / "taught/seed-0"], time_scoring=False)
    assert not any("different rules" in text for text in same.warnings)


def test_an_unknown_baseline_is_still_refused(runs):
    assert "no run is called" in fails(2, "eval", runs / "teacher", runs / "alone/seed-0", "--baseline", "nothing")


def test_a_ratio_by_a_teacher_that_it_never_had_is_told(runs, toy_path, tmp_path):
    ok("train", "--data", toy_path, *FAST, "--epochs", "3", "--dim", "12", "--seed", "7", "--out", tmp_path / "other")
    runs_of = [tmp_path / "other", runs / "alone/seed-0", runs / "taught/seed-0"]
    found = compare_runs(runs_of, teacher=str(tmp_path / "other"), time_scoring=False)
    assert any("distilled from teacher, not from other" in told for told in found.warnings)
    own = compare_runs([runs / "teacher", *runs_of[1:]], time_scoring=False)
    assert not any("distilled from" in told for told in own.warnings)
    both = compare_runs([runs / "teacher", *runs_of], time_scoring=False)
    assert not any("distilled from" in told for told in both.warnings)


def test_what_is_no_run_is_told_by_what_it_is(runs, toy_path, tmp_path):
    ok("export", runs / "alone/seed-0", "--out", tmp_path / "s.safetensors")
    for words in (("eval",), ("compress",), ("recommend", "--k", "3", "--user", "0"), ("refit", "--data", toy_path)):
        assert "it is a prepared data set" in fails(4, words[0], toy_path, *words[1:])
    assert "is a prepared data set" in fails(2, "train", toy_path, "--model", "bpr")
    assert "the run that it was made of" in fails(4, "resume", tmp_path / "s.safetensors")
    assert "is an exported student" in fails(2, "compress", tmp_path / "s.safetensors", "--data", toy_path)
