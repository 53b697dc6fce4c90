"""CPD's projectors and its penalty, and PCKD's forms of it, against numbers worked by hand and the laws of their draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kdrs.distillers import CPD
from kdrs.distillers._features import Projector
from kdrs.distillers.cpd import Penalty, PenaltyConfig
from kdrs.teachers.model import ModelTeacher
from kdrs.training.losses import masked_log_softmax, soft_cross_entropy
from kdrs.training.queries import Epoch
from test_distillers import batch_of, bpr, started


def penalty(task, student, teacher=None, **options):
    config = PenaltyConfig(**{"list_pool": 20, "listed": 5, **options})
    part = Penalty(config, teacher or ModelTeacher(bpr(task, 6), task), task)
    part.start(Epoch(0, 0, 9), part.draw(3), ModelTeacher(student, task, live=True), 3)
    return part


@pytest.mark.parametrize(("pairwise", "expected"), [("relu", 0.3), ("logistic", 0.854355)])
def test_cpd_pairwise_worked_example(task, pairwise, expected):
    """The student has the positive 1 above the negative, the projectors put it 0.3 below."""
    student = bpr(task, 2)
    with torch.no_grad():
        student.users.weight[0] = torch.tensor([1.0, 0.0])
        student.items.weight[1], student.items.weight[2] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    turned = {(1.0, 0.0): [0.4, 0.84**0.5], (0.0, 1.0): [0.7, 0.51**0.5]}  # cosines with (1, 0): 0.4 and 0.7

    def items(source):
        return torch.tensor([turned[tuple(row)] for row in source.tolist()])

    part = penalty(task, student, pairwise=pairwise, pairwise_weight=1.0, listwise_weight=0.0)
    batch = batch_of([0], [1], [2])
    assert part(student(batch.queries), batch, lambda u: u, items).item() == pytest.approx(expected, abs=1e-6)
    kept = part(student(batch.queries), batch, lambda u: u, lambda i: i).item()
    assert kept == pytest.approx(0 if pairwise == "relu" else 0.313262, abs=1e-6)


def test_cpd_pairs_of_a_row_with_several_negatives_count_by_their_mean(task):
    """User 0: pre-scores 1 of the positive 1, and 0, 3, 2 of the negatives 2, 3, 4: gaps 1, -2, -1. After: 5, and 6, 4, 7: gaps
    -1, 1, -2. Products -1, -2, 2: costs 1, 2, 0 and their mean 1. With the negatives 2 and 3 alone the mean is 1.5."""
    student = bpr(task, 1)
    with torch.no_grad():
        student.users.weight[0], student.items.weight[1:5] = 1.0, torch.tensor([[1.0], [0.0], [3.0], [2.0]])
    after = {1.0: 5.0, 0.0: 6.0, 3.0: 4.0, 2.0: 7.0}

    def items(source):
        return torch.tensor([[after[value]] for value in source.flatten().tolist()])

    part = penalty(task, student, pairwise_weight=1.0, listwise_weight=0.0)

    def loss(negatives):
        batch = replace(batch_of([0], [1], [2]), negatives=torch.tensor(negatives))
        return part(student(batch.queries), batch, lambda u: u, items, normalised=False).item()

    assert loss([[2, 3, 4]]) == pytest.approx(1.0)
    assert loss([[2, 3]]) == pytest.approx(1.5)
    assert loss([[4, 4]]) == 0


def list_losses(label, scores, tau, mask=None):
    mask = torch.ones_like(label, dtype=torch.bool) if mask is None else mask
    return soft_cross_entropy(masked_log_softmax(label, mask, tau).exp(), scores, mask, tau)


def test_cpd_listwise_worked_example():
    label, other = torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[0.3, 0.2, 0.1]])
    assert list_losses(label, other, 0.1).item() == pytest.approx(1.982816, abs=1e-6)
    assert list_losses(label, label, 0.1).item() == pytest.approx(0.832396, abs=1e-6)
    assert list_losses(label, label + 5, 0.1).item() == pytest.approx(0.832396, abs=1e-5)
    padded = torch.tensor([[0.1, 0.2, 0.3, 9.0]]), torch.tensor([[0.3, 0.2, 0.1, -9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert list_losses(*padded, 0.1, mask).item() == pytest.approx(1.982816, abs=1e-6)
    assert list_losses(*padded, 0.1, mask & False).item() == 0


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_cpd_penalty_trains_the_projectors_alone(task, weights):
    student = bpr(task, 3)
    torch.manual_seed(0)
    projectors = [Projector(3, 6, 4, 2) for _ in range(2)]
    part = penalty(task, student, pairwise_weight=weights[0], listwise_weight=weights[1])
    batch = batch_of([0, 1, 1], [1, 2, 3], [4, 5, 6])
    part(student(batch.queries), batch, *projectors).backward()
    assert all(p.grad is None for p in student.parameters())
    assert all((p.weight1.grad != 0).any() for p in projectors)


def test_cpd_lists_count_every_row_of_a_user(task):
    student = bpr(task, 3)
    part = penalty(task, student, pairwise_weight=0.0)
    project = Projector(3, 6, 4, 2)

    def loss(users):
        batch = batch_of(users, [0] * len(users), [1] * len(users))
        return part(student(batch.queries), batch, project, project).item()

    assert loss([4, 4, 9]) == pytest.approx(2 * loss([4]) + loss([9]), rel=1e-5)
    lists = part._lists[4]
    own = student.items.weight[lists] @ student.users.weight[4]
    after = (
        nn.functional.normalize(project(student.items.weight[lists]))
        @ nn.functional.normalize(project(student.users.weight[4:5]))[0]
    )
    assert loss([4]) == pytest.approx(list_losses(own[None], after[None], 5.0).item(), rel=1e-5)


def test_cpd_lists_come_from_their_guide(task, toy):
    student, teacher = bpr(task, 3, seed=1), ModelTeacher(bpr(task, 6), task)
    for guide, source in (("teacher", teacher), ("student", ModelTeacher(student, task))):
        lists, pool = penalty(task, student, teacher, guide=guide)._lists.numpy(), source.topk(20).items
        for user in range(toy.n_users):
            assert set(lists[user].tolist()) <= set(pool[user].tolist())


def test_cpd_ranks_by_the_student_when_its_period_is_over(task):
    students = [ModelTeacher(bpr(task, 3, seed=s), task, live=True) for s in (1, 2, 3)]
    config = PenaltyConfig(list_pool=6, listed=6, guide="student", refresh=2)
    part = Penalty(config, students[0], task)
    assert "ranked" in part.state_dict()
    drawn = []
    for index, student in enumerate(students):
        part.start(Epoch(index, 0, 9), None, student, 1)
        drawn.append(part._lists.sort(dim=1).values)
    assert torch.equal(drawn[0], drawn[1])
    for index, owner in ((0, 0), (2, 2)):
        assert (drawn[index].numpy() == np.sort(students[owner].topk(6).items, axis=1)).all()


def test_pckd_pairs_are_drawn_by_their_laws(task, toy):
    """Over many epochs: by rank the share of the guide's r-th item is e^(-r/10) / Σ; uniform draws are of unseen items."""
    student, teacher = bpr(task, 3, seed=1), ModelTeacher(bpr(task, 6), task)
    pool = teacher.topk(20).items
    law = np.exp(-np.arange(1, 21) / 10)
    law /= law.sum()
    for pairs, laws in (("rank", "rr"), ("uniform", "uu"), ("hybrid", "ru")):
        part = penalty(task, student, teacher, pairs=pairs, listwise_weight=0.0)
        drawn = np.stack([part.draw(seed).pairs.numpy() for seed in range(400)])  # [epochs, Q, 2]
        assert part.draw(0).lists is None
        for side, kind in enumerate(laws):
            if kind == "r":
                ranks = (drawn[:, :, side, None] == pool).argmax(-1)
                assert (np.take_along_axis(pool[None], ranks[..., None], 2)[..., 0] == drawn[:, :, side]).all()
                shares = np.bincount(ranks.ravel(), minlength=20) / ranks.size
                assert np.abs(shares - law).max() < 0.01
            else:
                user = 3
                unseen = np.setdiff1d(np.arange(80), toy.train.row(user))
                counts = np.bincount(drawn[:, user, side], minlength=80)
                assert counts.sum() == counts[unseen].sum()
                assert counts[unseen].max() < 5 * 400 / unseen.size
        same = (drawn[..., 0] == drawn[..., 1]).mean()
        expected = (law**2).sum() if laws == "rr" else None
        assert expected is None or abs(same - expected) < 0.01  # independent draws: the same item now and then


@pytest.mark.parametrize("keep_seen", [False, True])
@pytest.mark.parametrize("repeats", [False, True])
def test_pckd_uniform_lists_hold_unseen_items_or_all(task, toy, repeats, keep_seen):
    student = bpr(task, 3)
    options = {"lists": "uniform", "repeats": repeats, "keep_seen": keep_seen}
    part = penalty(task, student, **options, listed=30, pairwise_weight=0.0)
    assert part._pool is None
    counts, user = np.zeros(80, int), 3
    for seed in range(300):
        lists = part.draw(seed).lists.numpy()
        counts += np.bincount(lists[user], minlength=80)
        assert all(len(set(row)) == 30 for row in lists.tolist()) != repeats
    allowed = np.arange(80) if keep_seen else np.setdiff1d(np.arange(80), toy.train.row(user))
    assert counts.sum() == counts[allowed].sum()
    expected = 300 * 30 / allowed.size
    assert np.abs(counts[allowed] - expected).max() < 5 * expected**0.5


def test_pckd_pair_penalty_compares_the_drawn_items(task):
    student, batch = bpr(task, 3), batch_of([4, 4, 9], [0, 1, 2], [3, 3, 3])
    project = Projector(3, 6, 4, 2)
    part = penalty(task, student, pairs="rank", pairwise="logistic", pairwise_weight=0.5, listwise_weight=0.0)
    expected = 0.0
    for user in (4, 4, 9):
        u, both = student.users.weight[user], student.items.weight[part._pairs[user]]
        before = both @ u
        after = nn.functional.normalize(project(both)) @ nn.functional.normalize(project(u[None]))[0]
        expected -= 0.5 * nn.functional.logsigmoid((after[0] - after[1]) * (before[0] - before[1])).item()
    assert part(student(batch.queries), batch, project, project).item() == pytest.approx(expected, rel=1e-5)


def test_pckd_lists_with_repeats(task):
    student = bpr(task, 3)
    once, freely = penalty(task, student), penalty(task, student, repeats=True)
    distinct = [np.array([len(set(row)) for row in part._lists.tolist()]) for part in (once, freely)]
    assert (distinct[0] == 5).all()
    assert (distinct[1] < 5).any()


def test_pckd_ranks_what_was_seen_if_told_to(task, toy):
    student = bpr(task, 3)
    seen = toy.train.to_csr().toarray() > 0
    for keep in (False, True):
        lists = penalty(task, student, keep_seen=keep)._lists.numpy()
        assert seen[np.arange(50)[:, None], lists].any() == keep


def test_pckd_experts_worked(task):
    """One expert for all is DE's loss; the penalty reads the same mixture, not brought to length 1."""
    student, teacher = bpr(task, 3), ModelTeacher(bpr(task, 6), task)
    batch = batch_of([0, 1, 1], [1, 2, 3], [4, 5, 6])
    options = {"projector": "experts", "experts": 1, "listwise_weight": 0.0, "pairwise": "logistic"}
    made = {weight: CPD(CPD.Config(**options, pairwise_weight=weight), [teacher], task, 3) for weight in (0.0, 1.0)}
    losses = [started(each, student, task).loss(student(batch.queries), batch) for each in made.values()]
    plain = made[0.0]

    def expert(experts, source):
        return torch.relu(source @ experts.weight1[0] + experts.bias1[0]) @ experts.weight2[0] + experts.bias2[0]

    users, items = student.users.weight, student.items.weight
    errors = 0.0
    for ids, table, known, networks, weight in (
        ([0, 1], users, teacher.model.users.weight, plain.users, 1.0),
        ([1, 2, 3, 4, 5, 6], items, teacher.model.items.weight, plain.items, 0.5),
    ):
        errors += weight * (known[ids] - expert(networks, table[ids])).square().sum()
    assert losses[0].item() == pytest.approx(errors.item(), rel=1e-5)
    expected = errors.item()
    for user, i, j in ((0, 1, 4), (1, 2, 5), (1, 3, 6)):
        before = items[[i, j]] @ users[user]
        after = expert(plain.items, items[[i, j]]) @ expert(plain.users, users[[user]])[0]
        expected -= nn.functional.logsigmoid((after[0] - after[1]) * (before[0] - before[1])).item()
    assert losses[1].item() == pytest.approx(expected, rel=1e-5)


def test_pckd_hybrid_trains_with_everything_on(task):
    options = {"projector": "experts", "experts": 4, "pairs": "hybrid", "guide": "student", "keep_seen": True}
    student = bpr(task, 3)
    distiller = CPD(
        CPD.Config(list_pool=20, listed=5, repeats=True, **options), [ModelTeacher(bpr(task, 6), task)], task, 3
    )
    started(distiller, student, task)
    batch = batch_of([0, 1, 1], [1, 2, 3], [4, 5, 6])
    distiller.loss(student(batch.queries), batch).backward()
    assert all(torch.isfinite(p.grad).all() for p in distiller.parameters())
    assert (distiller.items.selector.weight.grad != 0).any()
