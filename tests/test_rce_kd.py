"""Rejuvenated cross-entropy: the properties of section 9 of the specification."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdrs.distillers import RCEKD, rce_kd
from kdrs.distillers.rce_kd import RCEKDConfig, counts_below, draw_weights, item_sets, places_of
from kdrs.errors import MissingKnowledge
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.losses import soft_cross_entropy
from kdrs.training.queries import Epoch
from test_distillers import batch_of, bpr, started

BEST, OWN = (
    np.array([[0, 1]], np.int32),
    np.array([[1, 2, 3, 0]], np.int32),
)  # z^T = (3, 2, 1, ...), z^S = (0, 3, 2, 1, ...)
SMALL = {"top": 8, "sampled": 6, "pool": 20}


def made(task, student, **options):
    return started(
        RCEKD(RCEKD.Config(**(SMALL | options)), [ModelTeacher(bpr(task, 6), task)], task, 3, 5), student, task
    )


def test_counts_and_draws_worked_example():
    places = places_of(BEST, OWN)
    assert places.tolist() == [[3, 0]]
    assert counts_below(places, places < 4, 4).tolist() == [[2, 1, 1, 1]]  # the code's
    assert counts_below(places, places >= 2, 4).tolist() == [[1, 1, 1, 1]]  # the paper's: item 0 alone is missed
    weights = draw_weights(places, places >= 2, OWN, RCEKDConfig(top=2, pool=4, counted="all"))[0]
    assert (weights / weights.sum()).tolist() == pytest.approx([0.2692, 0.2436, 0.2436, 0.2436], abs=1e-4)


def test_no_more_than_50_of_the_teachers_items_count():
    """60 of them: the first 11 places have 60 to 50 at or below, and so one weight; by the paper's count they differ."""
    own = np.arange(60, dtype=np.int32)[None]
    places, none = places_of(own, own), np.zeros((1, 60), bool)
    weights = draw_weights(places, none, own, RCEKDConfig(top=60, pool=60, counted="all"))[0]
    assert (weights[:11] == weights[0]).all()
    assert (np.diff(weights[10:]) < 0).all()


def test_losses_worked_example():
    teacher, student = torch.tensor([3.0, 2, 1, 0, -1, -2]), torch.tensor([0.0, 3, 2, 1, -1, -3])

    def loss(items):
        label, mask = torch.softmax(teacher[items], 0)[None], torch.ones(1, len(items), dtype=torch.bool)
        return soft_cross_entropy(label, student[items][None], mask, 1.0).item()

    first, second, mix = loss([1, 2]), loss([1, 3, 0]), math.exp(-3 / 2)
    assert first == pytest.approx(0.582203, abs=1e-6)
    assert second == pytest.approx(2.356238, abs=1e-6)
    assert mix == pytest.approx(0.223130, abs=1e-6)
    assert (1 - mix) * first + mix * second == pytest.approx(0.978044, abs=1e-6)


@pytest.mark.parametrize("overlap", ["top", "sampled"])
def test_sets_worked_example(overlap):
    config = RCEKDConfig(top=2, sampled=2, pool=4, overlap=overlap)
    by_draw = {}
    for seed in range(60):
        sets, mix = item_sets(BEST, OWN, config, seed)
        drawn = frozenset(sets[0, 2:4].tolist())
        by_draw[drawn] = sets[0], float(mix[0])
    assert len(by_draw) == 6  # every pair of four
    sets, mix = by_draw[frozenset({1, 3})]
    assert sets[:2].tolist() == [1, 2]
    assert sorted(i for i in sets[2:].tolist() if i >= 0) == [0, 1, 3]
    assert mix == pytest.approx(math.exp(-3 / 2))
    sets, mix = by_draw[frozenset({0, 1})]
    assert sorted(i for i in sets[2:].tolist() if i >= 0) == [0, 1]  # item 0, missed and drawn, counts once
    assert mix == pytest.approx(math.exp(-3 * (0.5 if overlap == "top" else 1.0)))
    shared, _ = item_sets(BEST, OWN, RCEKDConfig(top=2, sampled=2, pool=4, first="shared"), 0)
    assert shared[0, :2].tolist() == [-1, 1]


def test_gamma_falls_with_the_overlap():
    config, best = RCEKDConfig(top=4, sampled=2, pool=6), np.arange(4, dtype=np.int32)[None]
    mixes = []
    for shared in range(5):
        own = np.array([[*range(shared), *range(10, 16 - shared)]], np.int32)
        mixes.append(float(item_sets(best, own, config, 0)[1][0]))
    assert mixes == pytest.approx([math.exp(-3 * n / 4) for n in range(5)])


def test_counts_never_rise_down_the_list():
    rng = np.random.default_rng(0)
    best = np.argsort(rng.random((50, 40)), axis=1)[:, :10].astype(np.int32)
    own = np.argsort(rng.random((50, 40)), axis=1)[:, :20].astype(np.int32)
    places = places_of(best, own)
    counts = counts_below(places, best >= 0, 20)
    assert (np.diff(counts, axis=1) <= 0).all()
    for row in range(50):
        for place in range(20):
            assert counts[row, place] == sum(p >= place for p in places[row])


@pytest.mark.parametrize("first", ["student", "shared"])
def test_loss_against_its_definition(task, toy, first, monkeypatch):
    monkeypatch.setattr(rce_kd, "ROWS", 7)
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    method = made(task, student, first=first, temperature=2.0)
    batch, scores = batch_of([4, 4, 9], [0, 1, 2], [3, 4, 5]), []
    for model in (teacher, student):
        scores.append((model.users.weight @ model.items.weight.T).detach())
    expected = 0.0
    tops = [ModelTeacher(model, task).topk(20).items for model in (teacher, student)]
    for user in (4, 9):
        best, own = tops[0][user, :8].tolist(), tops[1][user, :8].tolist()
        one, two = ([i for i in part[user].tolist() if i >= 0] for part in method._sets)
        assert one == (own if first == "student" else [i for i in best if i in own])
        assert len(two) == len(set(two))
        assert {i for i in best if i not in own} <= set(two) <= {*best, *tops[1][user].tolist()}
        assert not set(toy.train.row(user).tolist()) & {*one, *two}
        losses = [
            -(torch.softmax(scores[0][user, s] / 2, 0) * torch.log_softmax(scores[1][user, s] / 2, 0)).sum().item()
            for s in (one, two)
            if s
        ]
        gamma = math.exp(-3 * len(set(best) & set(own)) / 8)
        expected += ((1 - gamma) * losses[0] if one else 0.0) + gamma * losses[-1]
    assert method.loss(student(batch.queries), batch).item() == pytest.approx(expected, rel=1e-4)
    by_rows = made(task, student, first=first, temperature=2.0, unique_queries=False)
    four = batch_of([4], [0], [1])
    once = method.loss(student(four.queries), four).item()
    assert by_rows.loss(student(batch.queries), batch).item() == pytest.approx(expected + once, rel=1e-4)


def test_gradient_of_a_query_sums_to_zero_and_shifts_change_nothing():
    rng = torch.Generator().manual_seed(0)
    teacher, scores = torch.randn(3, 9, generator=rng), torch.randn(3, 9, generator=rng, requires_grad=True)
    mask = torch.arange(9)[None] < torch.tensor([[9], [4], [1]])
    label = torch.softmax(teacher.masked_fill(~mask, -torch.inf), dim=1)
    loss = soft_cross_entropy(label, scores, mask, 0.7)
    loss.sum().backward()
    assert scores.grad.sum(1).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert (scores.grad[~mask] == 0).all()
    shifted = soft_cross_entropy(label, scores.detach() + torch.tensor([[5.0], [-3.0], [1.0]]), mask, 0.7)
    assert torch.allclose(loss.detach(), shifted, atol=1e-5)
    entropy = -(label * label.log()).masked_fill(~mask, 0).sum(1)
    best = soft_cross_entropy(label, 0.7 * teacher + 2.0, mask, 0.7)
    assert torch.allclose(best, entropy, atol=1e-5)
    assert (loss.detach()[:2] > entropy[:2]).all()


def test_seen_items_can_stay(task, toy):
    student = bpr(task, 3, seed=1)
    kept = made(task, student, keep_seen=True)
    assert any(set(toy.train.row(u).tolist()) & set(kept.best[u].tolist()) for u in range(task.n_users))
    assert any(set(toy.train.row(u).tolist()) & set(kept._sets[0][u].tolist()) for u in range(task.n_users))


def test_sets_are_renewed_when_the_period_is_over(task):
    method = RCEKD(RCEKD.Config(**SMALL, refresh=2), [ModelTeacher(bpr(task, 6), task)], task, 3)
    assert method.state_dict()["kept_sets"].shape == (task.n_queries, 8 + 6 + 8)
    sets, labels = [], []
    for index, seed in enumerate((1, 2, 3)):
        method.on_epoch_start(Epoch(index, 0, 9), None, ModelTeacher(bpr(task, 3, seed=seed), task, live=True))
        sets.append(torch.cat(method._sets, dim=1).clone())
        labels.append(method._labels[1].clone())
    assert torch.equal(sets[0], sets[1])
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(sets[1], sets[2])


def test_a_catalogue_shorter_than_the_lists(task):
    student = bpr(task, 3, seed=1)
    method = made(task, student, top=500, pool=500, sampled=90)
    batch = batch_of([4, 9], [0, 1], [2, 3])
    loss = method.loss(student(batch.queries), batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.items.weight.grad.coalesce().values()).all()


def test_a_ranking_alone_is_refused_at_once(task, tmp_path):
    from safetensors.torch import save_file

    lists = torch.from_numpy(ModelTeacher(bpr(task, 6), task).topk(60).items.copy())
    save_file({"topk": lists}, tmp_path / "lists", metadata={"kdrs": "teacher/1"})
    with pytest.raises(MissingKnowledge, match="scores and embeddings"):
        RCEKD(RCEKD.Config(), [FileTeacher(tmp_path / "lists", task)], task, 3)
