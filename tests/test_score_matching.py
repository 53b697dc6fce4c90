"""The plain baseline, against its definition."""

from __future__ import annotations

import pytest
import torch

from kdrs.distillers import ScoreMatching
from kdrs.errors import MissingKnowledge
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from test_distillers import batch_of, bpr, started


def made(task, student, **options):
    config = ScoreMatching.Config(**({"sampled": 5} | options))
    return started(ScoreMatching(config, [ModelTeacher(bpr(task, 6), task)], task, 3, seed=5), student, task)


@pytest.mark.parametrize("sampled", [0, 5])
@pytest.mark.parametrize("measure", ["kl", "mse"])
def test_loss_against_its_definition(task, toy, measure, sampled):
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    method = made(task, student, measure=measure, temperature=2.0, sampled=sampled)
    expected = 0.0
    for user, positive, negative in ((4, 0, 3), (4, 1, 4), (9, 2, 5)):
        drawn = method._drawn[user].tolist()
        assert len(set(drawn)) == sampled
        assert not set(drawn) & set(toy.train.row(user).tolist())
        ids = [positive, negative, *drawn]
        t, s = (model.items.weight[ids] @ model.users.weight[user] for model in (teacher, student))
        if measure == "mse":
            expected += (t - s).square().mean().item()
        else:
            p, q = (torch.softmax(values / 2, 0) for values in (t, s))
            expected += 4 * (p * (p / q).log()).sum().item()
    batch = batch_of([4, 4, 9], [0, 1, 2], [3, 4, 5])
    assert method.loss(student(batch.queries), batch).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("measure", ["kl", "mse"])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(task, measure):
    student = bpr(task, 6)
    batch = batch_of([4, 9], [0, 2], [3, 5])
    loss = made(task, student, measure=measure).loss(student(batch.queries), batch)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.users.weight.grad.to_dense().abs().max() < 1e-6


def test_only_mse_reads_the_level_of_the_scores(task):
    student, shifted = bpr(task, 6), bpr(task, 7)
    with torch.no_grad():
        for side, value in (("users", 1.0), ("items", 3.0)):
            getattr(shifted, side).weight[:, :6] = getattr(student, side).weight
            getattr(shifted, side).weight[:, 6] = value
    batch = batch_of([4, 9], [0, 2], [3, 5])
    losses = {m: made(task, shifted, measure=m).loss(shifted(batch.queries), batch).item() for m in ("kl", "mse")}
    assert losses["kl"] == pytest.approx(0, abs=1e-5)
    assert losses["mse"] == pytest.approx(2 * 9, rel=1e-5)


def test_short_catalogues_are_masked(task):
    student = bpr(task, 3, seed=1)
    for measure in ("kl", "mse"):
        method = made(task, student, measure=measure, sampled=90)
        assert (method._drawn < 0).any()
        batch = batch_of([4, 9], [0, 2], [3, 5])
        loss = method.loss(student(batch.queries), batch)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.items.weight.grad.coalesce().values()).all()


def test_a_ranking_alone_is_refused_at_once(task, tmp_path):
    from safetensors.torch import save_file

    lists = torch.from_numpy(ModelTeacher(bpr(task, 6), task).topk(60).items.copy())
    save_file({"topk": lists}, tmp_path / "lists", metadata={"kdrs": "teacher/1"})
    with pytest.raises(MissingKnowledge, match="scores and embeddings"):
        ScoreMatching(ScoreMatching.Config(), [FileTeacher(tmp_path / "lists", task)], task, 3)
