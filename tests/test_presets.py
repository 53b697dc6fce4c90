"""Every preset, end to end on a small data set, and what the printed numbers of BD's notebook need."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from commands import fails, ok
from conftest import toy_dataset
from kdrs import pipeline
from kdrs.config import PRESETS, resolve
from kdrs.data import Dataset
from kdrs.models import BPR
from kdrs.runs import Run
from kdrs.tasks import Epoch, PairTask, UserTask
from kdrs.train import Learner, fit

SOURCES = {
    "bd-cdae": "bd-notebook",
    "bd-mf": "bd-notebook",
    "hetcomp": "hetcomp",
    "rce-kd": "fr-811",
    "rce-kd-lightgcn": "fr-811",
    "rce-kd-lightgcn-mf": "fr-811",
    "rd-caser": "fr-caser",
    "unkd": "unkd",
}


@pytest.fixture(scope="module")
def users_dat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like citeulike-t's: a line a user, the count first, then ids in ascending order."""
    rng = np.random.default_rng(0)
    liked = rng.random((60, 220)) < np.where(np.arange(60)[:, None] % 4 == np.arange(220) % 4, 0.3, 0.03)
    path = tmp_path_factory.mktemp("source") / "users.dat"
    path.write_text("".join(f"{row.sum()} {' '.join(map(str, np.flatnonzero(row)))}\n" for row in liked))
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_end_to_end(users_dat, tmp_path, name):
    source = SOURCES.get(name, "loo-499")
    assert f"--preset {source}" in PRESETS[name].read_text()
    more = ("--candidates", 50) if source == "loo-499" else ()
    if source == "fr-caser":  # needs an order
        table = tmp_path / "clicks.csv"
        lines = [line.split()[1:] for line in users_dat.read_text().splitlines()]
        rows = [
            f"u{user},{item},{1_500_000_000 + 60 * place}"
            for user, items in enumerate(lines)
            for place, item in enumerate(items)
        ]
        table.write_text("\n".join(["user,item,time", *rows]))
        users_dat = table
    ok("data", "prepare", users_dat, "--preset", source, *more, "--out", tmp_path / "d")
    stated = tomllib.loads(PRESETS[name].read_text())
    short = ["--epochs", 2, "--set", f"data.path={tmp_path / 'd'}", "--device", "cpu"]
    for part in stated["teachers"]:
        short += ["--set", f"teachers.{part}.train.epochs=2"]
        if "stages_every" in stated["teachers"][part].get("train", {}):
            short += ["--set", f"teachers.{part}.train.stages_every=1"]
    for index, term in enumerate(stated["distill"]):  # fewer assistants, for time
        short += [
            part for key in ("chain", "assistants") if key in term for part in ("--set", f"distill.{index}.{key}=2")
        ]
    plan = ok("distill", name, *short, "--out", tmp_path / "run", "--dry-run", "--json").document
    chains = sum(2 for term in stated["distill"] if "chain" in term)
    assert len(plan["parts"]) == len(stated["teachers"]) + chains
    ok("distill", name, *short, "--out", tmp_path / "run", "-q")
    run = Run.open(tmp_path / "run")
    assert run.status()["status"] == "finished"
    for term in stated["distill"]:
        assert all(np.isfinite(row["losses"][term["method"]]) for row in run.rows())
        if term["method"] == "bd":  # the notebook prints both
            assert all(row["bd-teacher.test"].keys() == row["test"].keys() for row in run.rows())
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["parts"]["test"]
    assert all((tmp_path / f"run/parts/{part}/model.safetensors").is_file() for part in stated["teachers"])


# --- BD's notebook ----------------------------------------------------------------------------------------------------


def test_counts_are_items_if_they_are_to_be_kept(users_dat, tmp_path):
    plain = ok("data", "prepare", users_dat, "--preset", "bd", "--dry-run", "--json").document
    kept = ok("data", "prepare", users_dat, "--preset", "bd-notebook", "--out", tmp_path / "d", "--json").document
    counts = {line.split()[0] for line in users_dat.read_text().splitlines()}
    items = {item for line in users_dat.read_text().splitlines() for item in line.split()[1:]}
    assert plain["items"] == len(items)
    assert kept["items"] == len(items | counts)
    own = ok("data", "prepare", users_dat, "--keep-counts", "--dry-run", "--json").document
    assert own["items"] == len(items | counts)
    dataset = Dataset.load(tmp_path / "d")
    for user, line in enumerate(users_dat.read_text().splitlines()):
        last, one_before = (dataset.items[part.row(user)[0]] for part in (dataset.valid, dataset.test))
        assert [one_before, last] == line.split()[-2:]
    table = tmp_path / "clicks.csv"
    table.write_text("user,item\n" + "".join(f"u{n % 5},i{n}\n" for n in range(30)))
    assert "only counted-lists" in fails(2, "data", "prepare", table, "--keep-counts", "--dry-run")


@pytest.mark.parametrize("kind", [PairTask, UserTask])
def test_negatives_leave_out_held_out_items_only_if_told_to(kind):
    toy = toy_dataset()
    held = toy.full.to_csr().toarray() - toy.train.to_csr().toarray() > 0
    options = {"batch_size": 64} if kind is PairTask else {"batch_size": 16, "ratio": 5.0}
    for never, found in ((None, True), (toy.full, False)):
        task = kind(toy.train, never=never, **options)
        hits = 0
        for index in range(5):
            for batch in task.draw(Epoch(index, 0, 9)):
                users = batch.queries.users[batch.negative_rows].numpy()
                hits += held[users, batch.negatives.flatten().numpy()].sum()
        assert bool(hits) is found
        assert task.seen is toy.train  # lists and evaluation still leave out training items alone


def test_the_leak_is_an_option_of_training(toy_path, tmp_path):
    values = {
        "data": {"path": str(toy_path)}, "model": {"name": "bpr"}, "train": {"leak_held_out": True},
        "teachers": {"big": {"model": {"name": "bpr"}}},
    }  # fmt: skip
    config = resolve(values)
    assert config.teachers["big"].train.leak_held_out
    dataset = Dataset.load(toy_path)
    for model, fits in (("bpr", True), ("cdae", True), ("multvae", False), ("iae", False), ("caser", False)):
        one = resolve({**values, "model": {"name": model}})
        if fits:
            assert pipeline.build_task(one, dataset)._never is not dataset.train
        else:
            with pytest.raises(pipeline.ConfigError, match="leak_held_out"):
                pipeline.build_task(one, dataset)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_weights_kept_are_the_best_or_the_last(keep):
    toy = toy_dataset()
    task = PairTask(toy.train, batch_size=64)
    learner = Learner(BPR(BPR.Config(dim=4), task), task, lr=0.05)
    history, values = [], iter([0.2, 0.5, 0.1, 0.3])

    def evaluate(model):
        history.append(model.users.weight.detach().clone())
        return {"valid": {"ndcg@10": next(values)}}

    outcome = fit(learner, task, epochs=4, evaluate=evaluate, keep=keep)
    wanted = 1 if keep == "best" else 3
    assert outcome.best_epoch == wanted
    assert (learner.model.users.weight == history[wanted]).all()
    assert outcome.best["ndcg@10"] == (1, 0.5)


def test_the_last_weights_are_kept_over_an_interruption(toy_path, tmp_path):
    values = {
        "data": {"path": str(toy_path)}, "model": {"name": "bpr", "dim": 4}, "device": "cpu",
        "train": {"epochs": 6, "batch_size": 64, "lr": 0.1, "keep": "last", "checkpoint_seconds": 0},
    }  # fmt: skip
    pipeline.execute(resolve(values), tmp_path / "whole")
    rows: list = []
    pipeline.execute(resolve(values), tmp_path / "cut", on_epoch=rows.append, should_stop=lambda: len(rows) == 3)
    pipeline.execute(resolve(values), tmp_path / "cut", resume=True)
    assert Run.open(tmp_path / "cut").status()["best_epoch"] == 5
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert first == second


def test_a_run_that_is_older_than_an_option_goes_on(toy_path, tmp_path):
    """Options that its config.toml does not know have their defaults."""
    values = {
        "data": {"path": str(toy_path)}, "model": {"name": "bpr", "dim": 4}, "device": "cpu",
        "train": {"epochs": 2, "batch_size": 64},
    }  # fmt: skip
    pipeline.execute(resolve(values), tmp_path / "run")
    head = tmp_path / "run/config.toml"
    lines = [line for line in head.read_text().splitlines() if not line.startswith(("leak_held_out", "keep"))]
    head.write_text("\n".join(lines))
    ok("resume", tmp_path / "run", "--epochs", 3, "-q")
    assert Run.open(tmp_path / "run").status()["epochs"] == 3
