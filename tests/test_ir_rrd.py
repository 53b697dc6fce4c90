"""Item-side ranking: the properties of section 3.6 of the specification."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdrs.distillers import IRRRD, RRD
from kdrs.distillers.ir_rrd import user_ranking
from kdrs.distillers.rrd import Lists
from kdrs.errors import MissingKnowledge
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch, Queries
from test_distillers import INCLUDED, batch_of, bpr, by_id, started
from test_losses import slow_relaxed_ranking

SMALL = {
    "interesting": 4,
    "uninteresting": 3,
    "pool": 10,
    "interesting_users": 5,
    "uninteresting_users": 6,
    "user_pool": 12,
}


def made(task, **options):
    return IRRRD(IRRRD.Config(**(SMALL | options)), [ModelTeacher(bpr(task, 6), task)], task, 3, seed=5)


def view(model):
    nobody = torch.zeros(1, dtype=torch.int64)
    return model(Queries(nobody, nobody))


def test_lists_of_users_hold_what_they_should(task, toy):
    method = made(task)
    pool = ModelTeacher(bpr(task, 6), task).top_users(12)
    _, _, interesting, uninteresting = method.draw(Epoch(0, 0, 1))
    seen = toy.train.transpose()
    for item in range(toy.n_items):
        listed = pool[item].tolist()
        best, rest = interesting[item].tolist(), uninteresting[item].tolist()
        assert [listed.index(user) for user in best] == sorted(listed.index(user) for user in best)
        assert len(set(best)) == 5
        assert not set(seen.row(item).tolist()) & {*best, *rest}
        assert not set(rest) & set(listed)
        assert len({user for user in rest if user >= 0}) == min(6, toy.n_users - len(seen.row(item)) - 12)


@pytest.mark.parametrize(
    ("temperatures", "expected"),
    [((1e6, 10.0), INCLUDED), ((10.0, 1e6), dict.fromkeys((1, 250, 500), 0.08))],
)
def test_inclusion_probabilities_follow_the_ranks_of_users(temperatures, expected):
    """By the item side's own T."""
    task, teacher = by_id(700, 4001)
    pair = dict(zip(("temperature", "user_temperature"), temperatures, strict=True))
    _, _, drawn, _ = IRRRD(IRRRD.Config(interesting_users=40, **pair), [teacher], task, 1).draw(Epoch(0, 0, 1))
    share = np.bincount(drawn[:4000].numpy().ravel(), minlength=700) / 4000
    for rank, included in expected.items():
        assert share[rank - 1] == pytest.approx(included, abs=0.02)
    assert share[500:].sum() == 0


def test_the_item_side_is_the_user_side_transposed(task, toy):
    """ℓ_IR of an item is ℓ_RRD of the query whose items are the users."""
    student = bpr(task, 3, seed=1)
    ordered, background = torch.tensor([[3, 1, 7], [2, 9, 8]]), torch.tensor([[5, 6], [0, 4]])
    lists = Lists(ordered.repeat(20, 1), background.repeat(20, 1))  # of items 0, 1, 2, 3, ...
    found = user_ranking(view(student), task, torch.tensor([10, 13]), lists)
    scores = student.users.weight @ student.items.weight.T  # [U, I]
    expected = sum(
        slow_relaxed_ranking(scores[ordered[item % 2], item].tolist(), scores[background[item % 2], item].tolist())
        for item in (10, 13)
    )
    assert found.item() == pytest.approx(expected, rel=1e-5)
    swapped = PairTask(toy.train.transpose())
    mirror = bpr(swapped, 3)
    with torch.no_grad():
        mirror.users.weight.copy_(student.items.weight), mirror.items.weight.copy_(student.users.weight)
    rrd = RRD(RRD.Config(interesting=3, uninteresting=2, pool=5), [ModelTeacher(mirror, swapped)], swapped, 3)
    rrd._lists = Lists(ordered.repeat(40, 1), background.repeat(40, 1))
    batch = batch_of([10, 13], [0, 0], [1, 1])
    assert rrd.loss(mirror(batch.queries), batch).item() == pytest.approx(found.item(), rel=1e-6)


def test_shifts_of_an_item_change_nothing_and_shifts_of_a_user_do(task):
    student, items = bpr(task, 3, seed=1), torch.tensor([4, 5, 6])
    method = started(made(task), student, task)

    def loss(user_shift=0.0, item_shift=0.0):
        """Scores p_u q_i + a_u + b_i: two further dimensions."""
        wide = bpr(task, 5)
        with torch.no_grad():
            wide.users.weight[:, :3], wide.items.weight[:, :3] = student.users.weight, student.items.weight
            wide.users.weight[:, 3], wide.items.weight[:, 3] = user_shift, 1.0
            wide.users.weight[:, 4], wide.items.weight[:, 4] = 1.0, item_shift
        return user_ranking(view(wide), task, items, method._user_lists).item()

    plain = loss()
    assert loss(item_shift=torch.linspace(-2, 2, task.n_items)) == pytest.approx(plain, rel=1e-5)
    assert loss(user_shift=torch.linspace(-2, 2, task.n_users)) != pytest.approx(plain, rel=1e-3)


def test_equal_scores(task):
    student = bpr(task, 3)
    with torch.no_grad():
        student.users.weight.zero_()
    lists = Lists(torch.arange(20).repeat(task.n_items, 1), torch.arange(20, 40).repeat(task.n_items, 1))
    loss = user_ranking(view(student), task, torch.tensor([0, 7]), lists).item()
    assert loss == pytest.approx(2 * 67.9850, abs=2e-4)
    assert loss == pytest.approx(2 * math.log(math.factorial(40) // math.factorial(20)), rel=1e-6)


def test_both_sides_of_equal_scores():
    """163.35 a user and half of 67.985 an item; by the default weight 652.8 for the 19,200 items of a batch, as in the official
    log's first epoch."""
    task, teacher = by_id(700, 700)
    student = bpr(task, 1)
    with torch.no_grad():
        student.users.weight.zero_()
    method = started(IRRRD(IRRRD.Config(), [teacher], task, 1), student, task)
    batch = batch_of([3, 3, 9], [0, 1, 2], [4, 5, 6])
    drawn = torch.cat([method._lists.ordered[[3, 9]], method._lists.background[[3, 9]]])
    found = method.loss(student(batch.queries), batch).item()
    an_item = (found - 2 * 163.3525) / len(set(drawn.flatten().tolist()))
    assert an_item == pytest.approx(67.985 / 2, rel=1e-4)
    assert IRRRD.default_weight * 19_200 * an_item == pytest.approx(1475.33 - 822.53, rel=1e-3)


def test_without_the_item_side_it_is_rrd(task):
    student, teacher = bpr(task, 3, seed=1), ModelTeacher(bpr(task, 6), task)
    batch = batch_of([4, 4, 9], [0, 1, 2], [3, 4, 5])
    options = {"interesting": 4, "uninteresting": 3, "pool": 10}
    off = started(IRRRD(IRRRD.Config(**options, item_weight=0.0), [teacher], task, 3, seed=5), student, task)
    rrd = started(RRD(RRD.Config(**options), [teacher], task, 3, seed=5), student, task)
    both = started(made(task, item_weight=0.25), student, task)
    plain = rrd.loss(student(batch.queries), batch).item()
    assert off.loss(student(batch.queries), batch).item() == plain
    items = both.item_loss(student(batch.queries), batch).item()
    assert both.loss(student(batch.queries), batch).item() == pytest.approx(plain + 0.25 * items, rel=1e-6)


def test_items_are_those_drawn_for_the_batchs_users(task):
    student = bpr(task, 3, seed=1)
    method = started(made(task), student, task)
    batch = batch_of([4, 4, 9], [0, 1, 2], [3, 4, 5])
    drawn = torch.cat([method._lists.ordered[[4, 9]], method._lists.background[[4, 9]]], dim=1).flatten()
    expected = user_ranking(student(batch.queries), task, torch.unique(drawn), method._user_lists)
    assert method.item_loss(student(batch.queries), batch).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_ranking_alone_is_refused_at_once(task, tmp_path):
    from safetensors.torch import save_file

    lists = torch.from_numpy(ModelTeacher(bpr(task, 6), task).topk(30).items.copy())
    save_file({"topk": lists}, tmp_path / "lists", metadata={"kdrs": "teacher/1"})
    with pytest.raises(MissingKnowledge, match="the users of each item"):
        IRRRD(IRRRD.Config(pool=30), [FileTeacher(tmp_path / "lists", task)], task, 3)
