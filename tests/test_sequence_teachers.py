"""Knowledge between models of sequences and of users, and runs of sequences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from commands import fails, ok, write_clicks
from conftest import toy_dataset
from kdrs.core import ranking
from kdrs.data import Dataset, Interactions
from kdrs.distillers import IRRRD
from kdrs.errors import ConfigError
from kdrs.evaluation.evaluator import Evaluator
from kdrs.fitting.learner import Learner, Term
from kdrs.models import BPR
from kdrs.runs.compared import compare_runs
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch
from kdrs.training.sequences import translated
from test_sequential import built, toy_task
from test_train import final_bytes, stop_after

# --- teachers of another kind ---------------------------------------------------------------------------------------


def slow_lists(scores: torch.Tensor, owners: np.ndarray, seen: Interactions, k: int) -> np.ndarray:
    table = scores.detach().numpy().copy()
    for row, owner in enumerate(owners):
        table[row, seen.row(owner)] = -np.inf
    return np.argsort(-table, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("name", ["caser", "sasrec"])
def test_lists_of_a_sequential_teacher_leave_out_what_the_owner_has_seen(name: str, monkeypatch: pytest.MonkeyPatch):
    from kdrs.teachers import base as teachers

    task = toy_task(name)
    model = built(name, task)
    monkeypatch.setattr(teachers, "BLOCK_BYTES", 4096)  # several blocks
    monkeypatch.setattr(teachers, "ENCODED", 33)
    every = model(task.queries(torch.arange(task.n_queries))).all_scores()
    expected = slow_lists(every, task.owners, task.seen, 7)
    ranked = ModelTeacher(model, task).topk(7)
    assert np.array_equal(ranked.items, expected)
    assert np.allclose(ranked.scores, np.take_along_axis(every.detach().numpy(), expected, 1), atol=1e-6)
    monkeypatch.setattr(model, "factors", lambda: None)
    assert np.array_equal(ModelTeacher(model, task).topk(7).items, expected)


@pytest.mark.parametrize("name", ["caser", "sasrec"])
def test_a_sequential_teacher_of_users_speaks_of_now(name: str):
    own, task = toy_task(name), PairTask(toy_dataset().train)
    model = built(name, own)
    teacher = ModelTeacher(model, own, asked=task)
    users = torch.tensor([3, 0, 44])
    expected = model(own.queries(torch.arange(50))).all_scores()
    assert torch.allclose(teacher.view(task.queries(users)).all_scores(), expected[users], atol=1e-6)
    # a view of it, asked for others, understands the student's queries too
    view = teacher.view(task.queries(users[:1]))
    for _ in range(2):
        view = view.at(task.queries(users))
        assert torch.allclose(view.all_scores(), expected[users], atol=1e-6)
    ranked = teacher.topk(9)
    assert ranked.items.shape == (50, 9)
    assert np.array_equal(ranked.items, slow_lists(expected, np.arange(50), task.seen, 9))


def test_a_teacher_of_users_answers_all_of_a_users_instances():
    data = toy_dataset()
    own, task = PairTask(data.train), toy_task("caser")
    torch.manual_seed(0)
    model = BPR(BPR.Config(dim=4, init_std=1.0), own)
    teacher = ModelTeacher(model, own, asked=task)
    rows = torch.tensor([70, 2, 120])
    users = torch.from_numpy(task.owners[rows])
    expected = model.users(users) @ model.items.weight.T
    assert torch.allclose(teacher.view(task.queries(rows)).all_scores(), expected, atol=1e-6)
    ranked = teacher.topk(6)
    of_users = ranking.topk(model.users.weight.detach(), model.items.weight.detach(), 6, seen=data.train)
    assert np.array_equal(ranked.items, of_users.items.numpy()[task.owners])


def test_sequential_teachers_of_other_lengths_are_asked_at_the_same_moment():
    own, task = toy_task("sasrec", length=7), toy_task("caser", length=3)
    rows = torch.tensor([60, 4, 101])
    queries = translated(task.queries(rows), task, own)
    order, starts = own.items, own.seen.indptr
    ends = task.ends(rows)
    for n, row in enumerate(rows.tolist()):
        user = int(task.owners[row])
        known = order[starts[user] : starts[user] + int(ends[n])].tolist()
        wanted = ([80] * 7 + known)[-7:]
        assert queries.history[n].tolist() == wanted
        assert task.queries(rows).history[n].tolist() == ([80] * 3 + known)[-3:]
    model = built("sasrec", own, length=7)
    teacher = ModelTeacher(model, own, asked=task)
    assert torch.allclose(teacher.view(task.queries(rows)).all_scores(), model(queries).all_scores(), atol=1e-6)
    everything = model(translated(task.queries(torch.arange(task.n_queries)), task, own)).all_scores()
    assert np.array_equal(teacher.topk(5).items, slow_lists(everything, task.owners, task.seen, 5))


def test_teachers_must_know_the_students_users_and_items():
    own, task = PairTask(toy_dataset(n_items=60).train), toy_task("caser")
    with pytest.raises(ConfigError, match="knows 50 users and 60 items, the student's task has 50 and 80"):
        ModelTeacher(BPR(BPR.Config(dim=4), own), own, asked=task)


def test_a_teacher_file_serves_a_sequential_student(tmp_path: Path):
    task = toy_task("caser")
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(50, 3, generator=generator), torch.randn(80, 3, generator=generator)
    path = tmp_path / "t.safetensors"
    save_file({"users": users, "items": items}, path, metadata={"kdrs": "teacher/1"})
    teacher = FileTeacher(path, task)
    expected = slow_lists(users @ items.T, np.arange(50), task.seen, 6)
    assert np.array_equal(teacher.topk(6).items, expected[task.owners])
    rows = torch.tensor([80, 3])
    assert torch.allclose(
        teacher.view(task.queries(rows)).all_scores(), users[task.queries(rows).users] @ items.T, atol=1e-6
    )
    save_file({"topk": torch.from_numpy(expected.copy())}, path, metadata={"kdrs": "teacher/1"})
    assert np.array_equal(FileTeacher(path, task).topk(6).items, expected[task.owners])


def test_rrd_draws_outside_what_the_owner_has_seen():
    from kdrs.distillers import RRD

    task = toy_task("caser")
    distiller = RRD(
        RRD.Config(interesting=5, uninteresting=6, pool=20), [ModelTeacher(built("caser", task), task)], task, 8
    )
    interesting, uninteresting = distiller.draw(Epoch(0, 0, 1))
    assert interesting.shape[0] == uninteresting.shape[0] == task.n_queries
    seen = task.seen.to_csr().toarray() > 0
    for drawn in (interesting, uninteresting):
        real = drawn >= 0
        assert not seen[np.repeat(task.owners, real.sum(1)), drawn[real].numpy()].any()


@pytest.mark.parametrize("name", ["caser", "sasrec"])
def test_terms_that_ask_for_other_queries_have_noise_of_their_own(name: str):
    """What a term draws depends neither on the terms before it nor on the step's own noise."""
    task, found = toy_task(name), {}
    teacher, epoch = ModelTeacher(built(name, task), task), Epoch(0, 3, 1)
    for names in (("a", "b"), ("b",), ("b", "a")):
        terms = [Term(own, 0.1, IRRRD(IRRRD.Config(pool=20), [teacher], task, 4, 5)) for own in names]
        learner = Learner(built(name, task, seed=1, dropout=0.5), task, terms)
        learner.start(epoch, [term.distiller.draw(epoch) for term in terms])
        torch.manual_seed(0)
        for batch in list(task.draw(epoch))[:2]:
            parts = learner.losses(batch)
        found[names] = dict(zip(learner.parts, parts, strict=True))
    whole = found["a", "b"]
    assert whole["a"] != whole["b"]
    for other in found.values():
        assert all(torch.equal(value, whole[part]) for part, value in other.items())


def test_bd_refuses_a_teacher_that_can_not_read_the_students_queries():
    from kdrs.distillers import BD

    own, task = toy_task("caser"), PairTask(toy_dataset().train)
    teacher = ModelTeacher(built("caser", own), own, asked=task, live=True)
    with pytest.raises(ConfigError, match="learns from SequenceTask, its student from PairTask"):
        BD(BD.Config(), [teacher], task, 4)
    whole = toy_task("sasrec")
    teacher = ModelTeacher(built("caser", own), own, asked=whole, live=True)
    with pytest.raises(ConfigError, match="sequences with one target each, its student with several targets each"):
        BD(BD.Config(), [teacher], whole, 4)
    longer = toy_task("caser", length=7)
    teacher = ModelTeacher(built("caser", own), own, asked=longer, live=True)
    with pytest.raises(ConfigError, match="reads histories of 5 items, its student of 7"):
        BD(BD.Config(), [teacher], longer, 4)


def test_the_evaluator_asks_the_users_alone():
    data = toy_dataset(candidates=None)
    task = toy_task("caser")
    model = built("caser", task)
    evaluator = Evaluator.of(data)
    table = model(task.queries(torch.arange(50))).all_scores().detach()
    by_model, by_table = evaluator(ModelTeacher(model, task))["test"], evaluator(lambda rows: table[rows])["test"]
    for name, values in by_table.values.items():
        assert np.allclose(by_model.values[name], values), name


# --- runs -----------------------------------------------------------------------------------------------------------


def values_of(data: Path, model: str, dim: int, **train) -> dict:
    options = {"caser": {"horizontal": 3}, "sasrec": {"length": 8, "blocks": 1}}.get(model, {})
    return {
        "data": {"path": str(data)},
        "model": {"name": model, "dim": dim, **options},
        "train": {"epochs": 4, "batch_size": 64, "lr": 1e-2, "checkpoint_seconds": 0, **train},
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def teachers(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sequential")
    for name in ("bpr", "caser", "sasrec"):
        execute(resolve(values_of(toy_path, name, 8)), folder / name)
    return {name: folder / name for name in ("bpr", "caser", "sasrec")}


@pytest.mark.parametrize(
    ("student", "teacher"), [("caser", "caser"), ("caser", "bpr"), ("bpr", "sasrec"), ("sasrec", "caser")]
)
def test_a_resumed_run_ends_with_the_same_bytes(student, teacher, teachers, toy_path, tmp_path):
    values = values_of(toy_path, student, 4)
    values["distill"] = [
        {"method": "rd", "teacher": str(teachers[teacher]), "items": 5, "samples": 20, "warmup_epochs": 2},
        {"method": "de", "teacher": str(teachers[teacher]), "weight": 0.1, "experts": 2},
        {"method": "rrd", "teacher": str(teachers[teacher]), "weight": 0.1, "interesting": 5, "uninteresting": 5, "pool": 20},
    ]  # fmt: skip
    config = resolve(values)
    whole = execute(config, tmp_path / "whole")
    assert set(whole.fit.rows[0]["losses"]) == {"base", "rd", "de", "rrd"}
    for epoch in (0, 1):
        execute(config, tmp_path / "parts", should_stop=stop_after(epoch), resume=epoch > 0)
    execute(config, tmp_path / "parts", resume=True)
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")


def test_runs_of_different_kinds_are_compared(teachers, toy_path):
    found = compare_runs(list(teachers.values()), teacher=str(teachers["caser"]), time_scoring=False)
    assert {line.name for line in found.lines} == {"bpr", "caser", "sasrec"}
    for line in found.lines:
        assert line.role == "teacher" or 0 <= line.agreement["overlap@10"] <= 1


def test_on_the_command_line(tmp_path: Path):
    source = write_clicks(tmp_path / "clicks.csv")
    ok("data", "prepare", source, "--out", tmp_path / "d", "--preset", "fr-caser")
    common = ("--data", tmp_path / "d", "--batch-size", 64, "--lr", 0.01, "--device", "cpu", "--epochs", 2)
    caser = (*common, "--protocol", "caser", "--model", "caser", "--set", "train.negatives=3", "--weight-decay", 1e-6)
    ok("train", *caser, "--dim", 8, "--out", tmp_path / "caser")
    ok("train", *common, "--model", "sasrec", "--dim", 8, "--set", "model.length=10", "--out", tmp_path / "sasrec")
    taught = ("--teacher", tmp_path / "caser", "--method", "rd", "--set", "distill.0.warmup_epochs=1")
    ok("distill", *caser, "--dim", 4, *taught, "--out", tmp_path / "rd")
    ok("distill", *common, "--model", "bpr", "--dim", 4, *taught, "--out", tmp_path / "bpr")
    means = json.loads((tmp_path / "rd/report.json").read_text())["parts"]["test"]
    assert set(means) == {f"{m}@{k}" for m in ("precision", "ndcg") for k in (3, 5, 10)} | {"map@all"}
    assert all(0 < value < 1 for value in means.values())
    plan = json.loads(ok("train", *caser, "--dry-run", "--json").out)
    assert plan["plan"]["batches_per_epoch"] > 0 if "plan" in plan else plan["batches_per_epoch"] > 0
    text = ok("methods", "show", "rd").out
    for word in ("KDD 2018", "Differs from the authors' code", "warmup_epochs = 10", "needs of a teacher"):
        assert word in text


@pytest.mark.parametrize("name", ["caser", "sasrec"])
def test_data_without_order_is_refused_before_training(name: str, tmp_path: Path):
    path = toy_dataset(ordered=False).save(tmp_path / "d")
    assert Dataset.load(path).order is None
    error = fails(3, "train", "--data", path, "--model", name, "--device", "cpu", "--out", tmp_path / "run")
    assert "the data set has no order" in error
    assert "--timestamp" in error
    assert not (tmp_path / "run").exists()
