"""Collaborative distillation against numbers worked by hand, and methods that draw as it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdrs.data import Interactions
from kdrs.distillers import CD, CPD, DCD, IRRRD, RRD, SLD
from kdrs.distillers.cd import CDConfig, rank_weights
from kdrs.distillers.rrd import Lists
from kdrs.errors import ConfigError
from kdrs.teachers.model import ModelTeacher
from kdrs.training import losses
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch, Queries
from test_distillers import batch_of, bpr, started

# --- CD -------------------------------------------------------------------------------------------------------------


def test_cd_tournament_of_three():
    weights = rank_weights(np.array([3, 3]), 3, np.array([9, 9]), CDConfig())
    assert (weights / weights.sum()).tolist() == pytest.approx([5 / 9, 3 / 9, 1 / 9])
    ragged = rank_weights(np.array([3, 1]), 3, np.array([9, 9]), CDConfig())
    assert ragged.tolist() == [[5.0, 3.0, 1.0], [1.0, 0.0, 0.0]]


def test_cds_exponential_law_counts_in_all_unseen_items():
    config = CDConfig(law="exponential", sharpness=2.0)
    weights = rank_weights(np.array([3, 2]), 3, np.array([10, 4]), config)
    shares = weights / weights.sum(1, keepdims=True)
    first = np.exp(-2.0 * np.arange(1, 4) / 10)
    second = np.exp(-2.0 * np.arange(1, 3) / 4)
    assert shares[0].tolist() == pytest.approx((first / first.sum()).tolist())
    assert shares[1].tolist() == pytest.approx([*(second / second.sum()), 0.0])
    sharp = rank_weights(np.array([3]), 3, np.array([10]), CDConfig(law="exponential", sharpness=1e6))
    assert sharp.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("law", ["linear", "exponential", "uniform"])
@pytest.mark.parametrize("guide", ["student", "teacher"])
def test_cd_takes_all_where_fewer_are_unseen_than_asked_for(guide: str, law: str):
    """What fills the lists up counts nothing, nor does a user who has seen everything."""
    seen = {0: {0, 1, 2, 3}, 1: {0, 1, 5}, 2: set(range(6))}
    pairs = [(user, item) for user, items in seen.items() for item in items]
    task = PairTask(Interactions.from_pairs(*zip(*pairs, strict=True), 3, 6))
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    config = CD.Config(items=4, pool=5, guide=guide, law=law)
    distiller = started(CD(config, [ModelTeacher(teacher, task)], task, 3), student, task)
    expected = 0.0
    for user, items in seen.items():
        unseen = sorted(set(range(6)) - items)
        assert sorted(distiller._drawn[user].tolist()) == [-1] * (4 - len(unseen)) + unseen
        for item in unseen:
            target = torch.sigmoid(teacher.users.weight[user] @ teacher.items.weight[item] / 2)
            own = torch.sigmoid(student.users.weight[user] @ student.items.weight[item])
            expected -= (target * own.log() + (1 - target) * (1 - own).log()).item()
    batch = batch_of([0, 1, 2, 0], [0, 1, 2, 3], [4, 2, 0, 5])
    assert distiller.loss(student(batch.queries), batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("guide", ["student", "teacher"])
def test_cds_uniform_law_draws_from_all_unseen_items(task, toy, guide):
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    config = CD.Config(items=9, pool=3, law="uniform", guide=guide)
    counts = np.zeros((task.n_users, task.n_items))
    distiller = CD(config, [ModelTeacher(teacher, task)], task, 3)
    for index in range(60):
        epoch = Epoch(index, 0, 100)
        distiller.on_epoch_start(epoch, distiller.draw(epoch), ModelTeacher(student, task))
        drawn = distiller._drawn.numpy()
        assert all(len(set(row)) == 9 for row in drawn.tolist())
        np.add.at(counts, (np.arange(task.n_users)[:, None], drawn), 1)
    seen = toy.train.to_csr().toarray() > 0
    assert (counts[seen] == 0).all()
    assert (counts[~seen] > 0).mean() > 0.99
    with pytest.raises(ConfigError, match="items is 9, drawn from a pool of 3"):
        CD(CD.Config(items=9, pool=3), [ModelTeacher(teacher, task)], task, 3)


def test_cds_gradient_is_the_students_probability_less_the_label(task):
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    distiller = started(CD(CD.Config(items=9, pool=30), [ModelTeacher(teacher, task)], task, 3), student, task)
    batch, asked = batch_of([5, 8], [0, 1], [3, 4]), torch.tensor([5, 8])
    drawn = distiller._drawn[asked]
    scores = student(Queries(asked, asked)).scores(drawn).detach().requires_grad_()
    label = torch.sigmoid(teacher(Queries(asked, asked)).scores(drawn).detach() / 2)

    def loss():
        return distiller.loss(Scored(scores, drawn), batch)

    (gradient,) = torch.autograd.grad(loss(), scores)
    assert torch.allclose(gradient, torch.sigmoid(scores.detach()) - label, atol=1e-6)
    before = loss().item()
    distiller._drawn = distiller._drawn.flip(1)  # the order of a user's items does not matter
    assert loss().item() == pytest.approx(before, rel=1e-6)
    with torch.no_grad():
        teacher.users.weight[5] *= 2  # but the scale of the teacher's scores does
    distiller.teacher = ModelTeacher(teacher, task)
    assert loss().item() != pytest.approx(before, rel=1e-3)


class Scored:
    """A view of given scores of given items."""

    def __init__(self, values, ids):
        self.values, self.ids = values, ids

    def pairs(self, rows, ids):
        places = (self.ids[rows.squeeze(1)].unsqueeze(1) == ids.unsqueeze(2)).int().argmax(2)
        return self.values[rows, places]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (RRD, {"interesting": 10, "pool": 30, "temperature": 0.01}),
        (IRRRD, {"interesting": 10, "pool": 30, "temperature": 0.01}),
        (SLD, {"top": 10, "pool": 30, "draw_temperature": 0.01}),
        (CPD, {"listed": 10, "list_pool": 30, "list_draw_temperature": 0.01}),
    ],
)
def test_weights_that_vanish_are_refused(task, method, options):
    config = method.Config(**options)
    with pytest.raises(ConfigError, match="only the first 7 ranks have a weight above 0; 10 are drawn"):
        method(config, [ModelTeacher(bpr(task, 6), task)], task, 3)
    RRD(
        RRD.Config(interesting=10, pool=30, temperature=0.01, choice="topk"),
        [ModelTeacher(bpr(task, 6), task)],
        task,
        3,
    )


def test_rrd_pulls_the_first_up_and_pushes_the_background_down(task):
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    config = RRD.Config(interesting=6, uninteresting=9, pool=20)
    distiller = started(RRD(config, [ModelTeacher(teacher, task)], task, 3), student, task)
    batch = batch_of([5], [0], [3])
    listed, background = distiller._lists.ordered[5].long(), distiller._lists.background[5].long()
    ids = torch.cat([listed, background])[None]
    scores = student(batch.queries).scores(ids).detach().requires_grad_()
    loss = losses.relaxed_ranking_of(scores, 6).sum()
    assert loss.item() == pytest.approx(distiller.loss(student(batch.queries), batch).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[0, 0] < 0
    assert (gradient[0, 6:] > 0).all()


@pytest.mark.parametrize("method", [RRD, IRRRD, DCD])
def test_scores_above_the_clip_count_as_it_and_get_no_gradient(task, method):
    teacher, student = ModelTeacher(bpr(task, 6), task), bpr(task, 3, seed=1)
    with torch.no_grad():
        for table in (student.users.weight, student.items.weight):
            table.mul_(5)
    batch = batch_of([5, 8], [0, 1], [3, 4])

    def loss(**options):
        student.zero_grad()
        found = started(method(method.Config(pool=20, **options), [teacher], task, 3), student, task)
        value = found.loss(student(batch.queries), batch)
        value.backward()
        return value.item(), student.users.weight.grad.abs().sum().item()

    plain, low = loss(), loss(clip=1e-6)
    assert loss(clip=1e6) == plain
    assert 0 < low[1] < plain[1]
    clipped = started(method(method.Config(pool=20, clip=0.5), [teacher], task, 3), student, task)
    lists = [clipped._lists, *getattr(clipped, "_corrections", {}).values()]
    lists += [clipped._user_lists] if method is IRRRD else []
    assert len(lists) == {RRD: 1, IRRRD: 2, DCD: 3}[method]
    assert {own.clip for own in lists} == {0.5}
    scores = torch.tensor([[3.0, 1.0, 2.5]], requires_grad=True)
    Lists(torch.zeros(1, 2), torch.zeros(1, 1), clip=2.0).loss(scores, None).backward()
    assert (scores.grad[0, [0, 2]] == 0).all()
    assert scores.grad[0, 1] != 0


@pytest.mark.parametrize("guide", ["student", "teacher"])
def test_cd_loss_against_its_definition(task, toy, guide):
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    config = CD.Config(items=9, pool=30, guide=guide, shift=0.5)
    distiller = started(CD(config, [ModelTeacher(teacher, task)], task, 3), student, task)
    batch = batch_of([5, 5, 8], [0, 1, 2], [3, 4, 5])
    expected = 0.0
    for user in (5, 8):
        drawn = distiller._drawn[user]
        assert len(set(drawn.tolist())) == 9
        assert not set(drawn.tolist()) & set(toy.train.row(user).tolist())
        targets = torch.sigmoid((teacher.items.weight[drawn] @ teacher.users.weight[user] + 0.5) / 2)
        own = torch.sigmoid(student.items.weight[drawn] @ student.users.weight[user])
        expected -= (targets * own.log() + (1 - targets) * (1 - own).log()).sum().item()
    assert distiller.loss(student(batch.queries), batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "options", "matters"),
    [
        (CD, {"items": 9, "pool": 30, "guide": "student"}, True),
        (CD, {"items": 9, "pool": 30, "guide": "teacher"}, True),
        (RRD, {"interesting": 5, "uninteresting": 7, "pool": 20}, False),
    ],
)
def test_what_a_teacher_adds_to_all_scores_of_a_user_matters_to_cd_alone(task, method, options, matters):
    teacher, student, batch = bpr(task, 6), bpr(task, 3, seed=1), batch_of([5, 8], [0, 1], [3, 4])
    losses = []
    for shift in (0.0, 1.5):
        with torch.no_grad():
            teacher.users.weight[:, 5], teacher.items.weight[:, 5] = shift, 1.0
        distiller = started(method(method.Config(**options), [ModelTeacher(teacher, task)], task, 3), student, task)
        losses.append(distiller.loss(student(batch.queries), batch).item())
    assert (losses[1] != pytest.approx(losses[0], rel=1e-3)) is matters


def test_cd_follows_its_guide(task):
    """Student-guided items change when the student does; teacher-guided ones do not."""
    teacher, one, other = bpr(task, 6), bpr(task, 3, seed=1), bpr(task, 3, seed=2)
    for guide, same in (("student", False), ("teacher", True)):
        distiller = CD(CD.Config(items=5, pool=10, guide=guide), [ModelTeacher(teacher, task)], task, 3)
        draws = [started(distiller, model, task)._drawn for model in (one, other)]
        assert torch.equal(*draws) is same
