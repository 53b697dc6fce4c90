"""Unbiased distillation: the properties of section 7 of the specification."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdrs.distillers import UnKD
from kdrs.distillers.unkd import draw_places, group_lists, pairs_of_groups, popularity_groups
from kdrs.errors import MissingKnowledge
from kdrs.teachers import base as teachers
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.queries import Epoch
from test_distillers import batch_of, bpr, started
from test_teachers import NoFactors


def made(task, **options):
    config = UnKD.Config(**({"groups": 3, "pairs": 6, "pool": 10} | options))
    return UnKD(config, [ModelTeacher(bpr(task, 6), task)], task, 3, seed=5)


@pytest.mark.parametrize(
    ("popularity", "planned", "expected"),
    [
        ((5, 3, 2, 1, 1), 2, [[0], [1, 2, 3, 4]]),
        ((3, 3, 3, 3), 2, [[0, 1], [2, 3]]),
        ((4, 3, 2, 1, 1, 1), 3, [[0], [1], [2, 3, 4, 5]]),
        ((8, 7, 4, 3, 2, 2), 2, [[0], [1, 2], [3, 4, 5]]),
        ((1, 5, 0, 3, 2, 1), 2, [[1], [3, 4, 0, 5]]),  # by popularity, then id; unseen items are in no group
        ((4,), 3, [[0]]),
    ],
)
def test_groups_worked_examples(popularity, planned, expected):
    assert [group.tolist() for group in popularity_groups(np.array(popularity), planned)] == expected


def test_groups_part_the_items_that_were_seen():
    popularity = np.random.default_rng(0).zipf(1.5, 400).clip(max=60) - 1
    groups = popularity_groups(popularity, 5)
    assert sorted(np.concatenate(groups).tolist()) == np.flatnonzero(popularity).tolist()
    assert (np.diff(popularity[np.concatenate(groups)]) <= 0).all()
    assert all(popularity[group].sum() <= popularity.sum() / 5 for group in groups[:-1] if group.size > 1)


def test_pairs_of_groups():
    assert pairs_of_groups([9.0, 5.0, 3.0, 1.0], 30, 0.0) == [8, 8, 8, 8]  # 7.5 rounds to even; a surplus is kept
    assert pairs_of_groups([9.0, 5.0, 1.0], 2, 0.0) == [1, 1, 1]
    assert pairs_of_groups([9.0, 5.0, 3.0, 1.0, 1.0], 12, 0.0) == [3, 3, 2, 2, 2]  # short by two: the first get more
    # means 6, 3, 1 -> 1, 4, 6 of 11 -> 0.09, 0.36, 0.55, floored at 0.1, of 1.01: 0.99, 3.56, 5.45 of 10
    assert pairs_of_groups([6.0, 3.0, 1.0], 10, 1.0) == [1, 4, 5]


def test_places_of_three_candidates():
    """Probabilities 0.3501, 0.3331, 0.3168, and pairs that differ."""
    p = np.array([0.3501, 0.3331, 0.3168])
    places = draw_places(np.full(40_000, 3), 2, 20.0, np.random.default_rng(0))
    assert places.shape == (40_000, 2, 2)
    assert (places[..., 0] < places[..., 1]).all()
    different = 1 - (p**2).sum()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        share = ((places[..., 0] == i) & (places[..., 1] == j)).mean()
        assert share == pytest.approx(2 * p[i] * p[j] / different, abs=0.005)


def test_places_follow_the_truncated_law():
    places = draw_places(np.full(20_000, 200), 1, 20.0, np.random.default_rng(1))
    weights = np.exp(-np.arange(200) / 20)
    p = weights / weights.sum()
    pairs = np.outer(p, p)
    np.fill_diagonal(pairs, 0)
    expected = pairs.sum(1) / pairs.sum()
    found = np.bincount(places.ravel(), minlength=200) / places.size
    assert found[:40] == pytest.approx(expected[:40], abs=0.004)
    assert places.max() <= 199


def test_too_few_candidates_give_no_pair():
    places = draw_places(np.array([0, 1, 2]), 3, 20.0, np.random.default_rng(0))
    assert (places[:2] == -1).all()
    assert places[2].tolist() == [[0, 1]] * 3


@pytest.mark.parametrize("cls", ["factors", "scores"])
def test_lists_of_a_group_are_its_best_unseen_items(task, monkeypatch, cls):
    monkeypatch.setattr(teachers, "BLOCK_BYTES", 4 * 80 * 7)
    model = bpr(task, 6)
    if cls == "scores":
        model.__class__ = NoFactors
    teacher, group = ModelTeacher(model, task), np.array([40, 3, 17, 22, 5])
    scores = teacher.score_block(np.arange(task.n_users)).numpy()
    found = group_lists(teacher, task, group, 4)
    for user in range(task.n_users):
        unseen = [i for i in group.tolist() if i not in task.seen.row(user)]
        expected = sorted(unseen, key=lambda i: -scores[user, i])[:4]
        assert found[user].tolist() == expected + [-1] * (4 - len(expected))


def test_pairs_share_a_group_are_unseen_and_in_the_teachers_order(task, toy):
    method = made(task)
    scores = method_scores(task)
    groups = [set(group.tolist()) for group in method.groups]
    pairs = method.draw(Epoch(0, 0, 1)).numpy()
    assert pairs.shape == (task.n_queries, sum(method.counts), 2)
    for user in range(task.n_users):
        for better, worse in pairs[user].tolist():
            if better >= 0:
                assert any({better, worse} <= group for group in groups)
                assert not {better, worse} & set(toy.train.row(user).tolist())
                assert scores[user, better] >= scores[user, worse]
                assert better != worse
    assert not np.array_equal(pairs, method.draw(Epoch(1, 0, 1)).numpy())


def method_scores(task):
    return ModelTeacher(bpr(task, 6), task).score_block(np.arange(task.n_users)).numpy()


def test_a_constant_for_each_group_changes_no_draw(task):
    """Whatever lifts a group as a whole, popularity above all, cancels."""
    from kdrs.models import BPR

    plain = made(task)
    lift = torch.zeros(task.n_items)
    for number, group in enumerate(plain.groups):
        lift[torch.from_numpy(group)] = 4.0 * number

    class Lifted(BPR):
        def factors(self):
            return super().factors()._replace(bias=lift)

    model = bpr(task, 6)
    model.__class__ = Lifted
    lifted = UnKD(plain.config, [ModelTeacher(model, task)], task, 3, seed=5)
    assert not np.array_equal(ModelTeacher(model, task).topk(10).items, ModelTeacher(bpr(task, 6), task).topk(10).items)
    assert torch.equal(lifted.draw(Epoch(0, 0, 1)), plain.draw(Epoch(0, 0, 1)))


def test_reductions(task):
    student = bpr(task, 3, seed=1)
    scores = (student.users.weight @ student.items.weight.T).detach()
    batch = batch_of([4, 4, 9], [0, 1, 2], [3, 4, 5])
    by_user = {}
    for user in (4, 9):
        pairs = started(made(task), student, task)._pairs[user].tolist()
        by_user[user] = [math.log1p(math.exp(scores[user, j] - scores[user, i])) for i, j in pairs if i >= 0]
    mean = {user: sum(losses) / len(losses) for user, losses in by_user.items()}
    expected = {
        "sum": 2 * mean[4] + mean[9],
        "mean": (2 * mean[4] + mean[9]) / 3,
        "paper": (sum(by_user[4]) + sum(by_user[9])) / 2,
    }
    for reduction, value in expected.items():
        method = started(made(task, reduction=reduction), student, task)
        assert method.loss(student(batch.queries), batch).item() == pytest.approx(value, rel=1e-5)


def test_missing_pairs_count_for_nothing(task):
    student = bpr(task, 3, seed=1)
    method = started(made(task), student, task)
    batch = batch_of([4], [0], [1])
    full = method.loss(student(batch.queries), batch).item()
    method._pairs = torch.cat([method._pairs, torch.full_like(method._pairs, -1)], dim=1)
    assert method.loss(student(batch.queries), batch).item() == pytest.approx(full, rel=1e-6)
    method._pairs = torch.full_like(method._pairs, -1)
    assert method.loss(student(batch.queries), batch).item() == 0


def test_a_ranking_alone_is_refused_at_once(task, tmp_path):
    from safetensors.torch import save_file

    lists = torch.from_numpy(ModelTeacher(bpr(task, 6), task).topk(30).items.copy())
    save_file({"topk": lists}, tmp_path / "lists", metadata={"kdrs": "teacher/1"})
    with pytest.raises(MissingKnowledge, match="holds only a ranking"):
        UnKD(UnKD.Config(), [FileTeacher(tmp_path / "lists", task)], task, 3)
