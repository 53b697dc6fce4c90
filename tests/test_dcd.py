"""Dual correction: the properties of section 5 of the specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdrs.distillers import DCD, RRD
from kdrs.distillers.dcd import DCDConfig, draw_corrections, error_weights, item_ranks, user_ranks
from kdrs.distillers.ir_rrd import user_ranking
from kdrs.errors import MissingKnowledge
from kdrs.teachers import base as teachers
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.queries import Epoch
from test_distillers import batch_of, bpr, started
from test_losses import slow_relaxed_ranking
from test_teachers import NoFactors

SMALL = {"pool": 20, "interesting": 5, "uninteresting": 5, "correction_pool": 20, "under": 5, "over": 6}


def made(task, student, **options):
    config = DCD.Config(**(SMALL | options))
    return started(DCD(config, [ModelTeacher(bpr(task, 6), task)], task, 3, seed=5), student, task)


def test_error_weights_worked_example():
    lists, ranks = np.array([[7, 3, 9]], np.int32), np.array([[5.0, 0.0, 2.0]])
    under, over = error_weights(lists, ranks, DCDConfig())
    assert under[0].tolist() == pytest.approx([0.462117, 0, 0], abs=1e-6)
    assert over[0].tolist() == pytest.approx([0, 0.099668, 0], abs=1e-6)
    under, over = error_weights(lists, ranks, DCDConfig(floor=1e-5))
    assert under[0].tolist() == pytest.approx([0.462117, 1e-5, 1e-5], abs=1e-6)
    assert over[0].tolist() == pytest.approx([1e-5, 0.099668, 1e-5], abs=1e-6)
    padded = error_weights(np.array([[7, -1, -1]], np.int32), ranks, DCDConfig(floor=1e-5))
    assert all((part[0, 1:] == 0).all() for part in padded)


def test_sets_are_disjoint_and_hold_only_errors():
    rng = np.random.default_rng(0)
    lists = np.argsort(rng.random((200, 60)), axis=1).astype(np.int32)
    ranks = np.argsort(rng.random((200, 60)), axis=1).astype(np.float32)
    drawn = draw_corrections(lists, ranks, DCDConfig(under=40, over=40), 1).numpy()
    for row in range(200):
        teacher = {item: place for place, item in enumerate(lists[row].tolist())}
        low, high = (part[part >= 0].tolist() for part in (drawn[row, :40], drawn[row, 40:]))
        assert len(set(low) | set(high)) == len(low) + len(high)
        assert all(ranks[row, teacher[item]] > teacher[item] for item in low)
        assert all(ranks[row, teacher[item]] < teacher[item] for item in high)
        assert [teacher[item] for item in low] == sorted(teacher[item] for item in low)
        errors = ranks[row] - np.arange(60)
        assert len(low) == min(40, (errors > 0).sum())
        assert len(high) == min(40, (errors < 0).sum())


def test_without_errors_nothing_is_drawn(task):
    lists = np.arange(20, dtype=np.int32)[None]
    assert (draw_corrections(lists, np.arange(20.0)[None], DCDConfig(), 0) == -1).all()
    student = bpr(task, 6)  # the teacher itself
    method = made(task, student, ranking_weight=0.0)
    assert all((part == -1).all() for c in method._corrections.values() for part in (c.ordered, c.background))
    batch = batch_of([4, 9], [0, 1], [2, 3])
    loss = method.loss(student(batch.queries), batch)
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad.coalesce().values() == 0).all() for p in student.parameters())


def test_exchanging_teacher_and_student_exchanges_the_laws():
    rng = np.random.default_rng(3)
    one, other = (np.argsort(rng.random((50, 30)), axis=1) for _ in range(2))  # lists, best first, of all 30 items
    rank = lambda lists: np.argsort(lists, axis=1)
    weights = []
    for mine, theirs in ((one, other), (other, one)):
        lists = mine.astype(np.int32)
        found = error_weights(lists, np.take_along_axis(rank(theirs), mine, axis=1).astype(float), DCDConfig())
        weights.append([np.take_along_axis(part, rank(mine), axis=1) for part in found])  # by item
    assert np.allclose(weights[0][0], weights[1][1])
    assert np.allclose(weights[0][1], weights[1][0])


@pytest.mark.parametrize("unseen", [True, False])
@pytest.mark.parametrize("cls", ["factors", "scores"])
def test_ranks_against_their_definition(task, monkeypatch, unseen, cls):
    monkeypatch.setattr(teachers, "BLOCK_BYTES", 4 * 80 * 7)
    model = bpr(task, 3, seed=1)
    if cls == "scores":
        model.__class__ = NoFactors
    with torch.no_grad():  # ties: scores are small integers
        model.users.weight.round_(), model.items.weight.copy_((3 * model.items.weight).round())
    student = ModelTeacher(model, task, live=True)
    scores = student.score_block(np.arange(task.n_users)).numpy()
    seen = task.seen.to_csr().toarray() > 0
    scores = np.where(seen, -np.inf, scores) if unseen else scores

    def slow(table, lists):
        ranks = np.full(lists.shape, -0.5, np.float32)
        for row, place in zip(*np.nonzero(lists >= 0), strict=True):
            own = table[row, lists[row, place]]
            ranks[row, place] = (table[row] > own).sum() + ((table[row] == own).sum() - 1) / 2
        return ranks

    teacher = ModelTeacher(bpr(task, 6), task)
    items, users = teacher.topk(70).items, teacher.top_users(45)
    assert (items < 0).any()
    assert (users < 0).any()
    assert np.array_equal(item_ranks(student, np.ascontiguousarray(items), unseen), slow(scores, items))
    assert np.array_equal(user_ranks(student, users, unseen), slow(scores.T, users))


def test_loss_is_the_sum_of_its_parts(task):
    student = bpr(task, 3, seed=1)
    batch = batch_of([4, 4, 9], [0, 1, 2], [3, 4, 0])
    off = {"ranking_weight": 0.0, "user_weight": 0.0, "item_weight": 0.0}

    def loss(**weights):
        method = made(task, student, **(off | weights))
        return method.loss(student(batch.queries), batch).item(), method

    config = RRD.Config(pool=20, interesting=5, uninteresting=5)
    rrd = started(RRD(config, [ModelTeacher(bpr(task, 6), task)], task, 3, seed=5), student, task)
    ranking, _ = loss(ranking_weight=1.0)
    assert ranking == pytest.approx(rrd.loss(student(batch.queries), batch).item(), rel=1e-6)
    users, method = loss(user_weight=1.0)
    expected, scores = 0.0, student.users.weight @ student.items.weight.T
    for user in (4, 9):
        lists = method._corrections["users"]
        low, high = (part[user][part[user] >= 0] for part in (lists.ordered, lists.background))
        expected += slow_relaxed_ranking(scores[user, low].tolist(), scores[user, high].tolist())
    assert users == pytest.approx(expected, rel=1e-5)
    items, method = loss(item_weight=1.0)
    ids = torch.tensor([0, 1, 2, 3, 4])
    own = user_ranking(student(batch.queries), task, ids, method._corrections["items"]).item()
    assert items == pytest.approx(own, rel=1e-6)
    total, _ = loss(ranking_weight=0.5, user_weight=2.0, item_weight=3.0)
    assert total == pytest.approx(0.5 * ranking + 2 * users + 3 * items, rel=1e-5)


def test_order_of_drawing_is_an_option():
    rng = np.random.default_rng(0)
    lists = np.argsort(rng.random((300, 40)), axis=1).astype(np.int32)
    ranks = np.full((300, 40), 60.0, np.float32)  # all far too low: weights near 1
    drawn = draw_corrections(lists, ranks, DCDConfig(under=10, over=1, order="drawn"), 1).numpy()[:, :10]
    ordered = draw_corrections(lists, ranks, DCDConfig(under=10, over=1), 1).numpy()[:, :10]
    assert (np.sort(drawn, axis=1) == np.sort(ordered, axis=1)).all()
    places = (drawn[:, :, None] == lists[:, None, :]).argmax(axis=2)
    assert not (np.diff(places, axis=1) > 0).all()


def test_lists_are_renewed_when_the_period_is_over(task):
    students = [bpr(task, 3, seed=s) for s in (1, 2, 3)]
    config = DCD.Config(**(SMALL | {"refresh": 2}))
    method = DCD(config, [ModelTeacher(bpr(task, 6), task)], task, 3)
    assert {"drawn_users", "drawn_items"} <= set(method.state_dict())
    assert not [n for n in DCD(DCD.Config(**SMALL), [method_teacher(task)], task, 3).state_dict() if "drawn" in n]
    lists = []
    for index, student in enumerate(students):
        epoch = Epoch(index, 0, 9)
        method.on_epoch_start(epoch, method.draw(epoch), ModelTeacher(student, task, live=True))
        lists.append({side: c.ordered.clone() for side, c in method._corrections.items()})
    for side in ("users", "items"):
        assert torch.equal(lists[0][side], lists[1][side])
        assert not torch.equal(lists[1][side], lists[2][side])


def method_teacher(task):
    return ModelTeacher(bpr(task, 6), task)


def test_a_ranking_alone_serves_the_user_side(task, tmp_path):
    from safetensors.torch import save_file

    lists = torch.from_numpy(method_teacher(task).topk(30).items.copy())
    save_file({"topk": lists}, tmp_path / "lists", metadata={"kdrs": "teacher/1"})
    teacher = FileTeacher(tmp_path / "lists", task)
    with pytest.raises(MissingKnowledge, match="the users of each item"):
        DCD(DCD.Config(**SMALL), [teacher], task, 3)
    student = bpr(task, 3, seed=1)
    started(DCD(DCD.Config(**(SMALL | {"item_weight": 0.0})), [teacher], task, 3), student, task)
