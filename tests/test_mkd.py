"""MKD's parts: NKD, CPD, SLD and their sum (section 4 of the specification)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdrs.distillers import CPD, MKD, NKD, SLD
from kdrs.distillers._features import Projector, cosine_losses
from kdrs.distillers.cpd import Penalty, PenaltyConfig
from kdrs.distillers.nkd import NKDConfig, nearest
from kdrs.errors import MissingKnowledge
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.losses import masked_log_softmax, soft_cross_entropy
from kdrs.training.queries import Epoch
from test_distillers import batch_of, bpr, started

MIXINGS = ["soft", "soft_v0", "hard", "mix", "randmix", "batchmix", "layermix", "hardmix", "graph"]


class Same(nn.Module):
    """The projector that changes nothing."""

    def forward(self, source, noise=None, combine=None):
        return source if combine is None else combine(source)


def feature_loss(task, student, **options):
    """NKD of a teacher of the student's size through the identity."""
    method = NKD(NKD.Config(neighbours=3, **options), [ModelTeacher(bpr(task, 4), task)], task, 4)
    method.users = method.items = Same()
    batch = batch_of([0, 1, 1, 7], [3, 4, 5, 3], [6, 3, 7, 8])
    return started(method, student, task).loss(student(batch.queries), batch).item()


# --- features -------------------------------------------------------------------------------------------------------


def test_cosine_losses_lie_in_0_to_2_whatever_the_lengths():
    target = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    losses = cosine_losses(target, -target.flip(0))
    assert ((losses >= 0) & (losses <= 2)).all()
    assert torch.allclose(cosine_losses(7 * target, -target.flip(0)), losses, atol=1e-6)
    assert cosine_losses(target, target).abs().max() < 1e-6
    assert torch.allclose(cosine_losses(target, -target), torch.full((50,), 2.0))
    assert cosine_losses(torch.zeros(1, 6), target[:1]).item() == 1.0


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_projector_is_the_mean_of_its_networks(dropout):
    torch.manual_seed(0)
    projector, source = Projector(3, 4, 5, 2, dropout), torch.randn(6, 3)
    networks = [
        (source @ projector.weight1[m] + projector.bias1[m]).relu() @ projector.weight2[m] + projector.bias2[m]
        for m in range(2)
    ]
    assert torch.allclose(projector(source), (networks[0] + networks[1]) / 2, atol=1e-6)
    noise = torch.Generator().manual_seed(1)
    many = torch.stack([projector(source, noise) for _ in range(300)])
    assert bool((many.std(0) > 0).all()) is bool(dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_projector_combines_rows_before_its_second_layers(dropout):
    """The same as after them, dropout and all: both are linear."""
    torch.manual_seed(0)
    projector, source, mix = Projector(3, 4, 5, 2, dropout), torch.randn(6, 3), torch.randn(2, 6)
    before = projector(source, torch.Generator().manual_seed(1), lambda rows: mix @ rows)
    after = mix @ projector(source, torch.Generator().manual_seed(1))
    assert torch.allclose(before, after, atol=1e-5)


# --- NKD ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", MIXINGS)
def test_nkd_of_a_student_that_is_the_teacher_is_zero_where_both_mix_alike(task, mixing):
    """With one share for both, equal spaces stay equal: the neighbour is the same for teacher and student."""
    loss = feature_loss(task, bpr(task, 4), mixing=mixing, own_share=0.0)
    if mixing in ("soft", "hard", "mix", "randmix", "hardmix"):
        assert loss == pytest.approx(0, abs=1e-5)  # a = 0: all are the neighbour
    elif mixing != "soft_v0":
        assert loss > 1e-3  # shares of their own
    assert feature_loss(task, bpr(task, 4, seed=1), mixing=mixing) > 0.1


def test_nkd_that_keeps_everything_is_plain_feature_distillation(task):
    student, teacher = bpr(task, 4, seed=1), bpr(task, 4)
    expected = cosine_losses(teacher.users.weight[[0, 1, 7]], student.users.weight[[0, 1, 7]]).sum()
    items = cosine_losses(teacher.items.weight, student.items.weight)
    expected += (items[[3, 4, 5]].sum() + items[[6, 3, 7, 8]].sum()) / 2
    assert feature_loss(task, student, mixing="mix", own_share=1.0) == pytest.approx(expected.item(), rel=1e-5)
    assert feature_loss(task, student, mixing="soft_v0", own_share=0.0) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("mixing", "mean"), [("soft", 0.3), ("soft_v0", 0.85), ("hard", 0.3), ("mix", 0.3),
    ("randmix", 0.3), ("batchmix", 0.5), ("layermix", 0.5), ("hardmix", 0.3), ("graph", 0.7)])  # fmt: skip
def test_nkd_shares_have_the_mean_and_the_shape_of_their_strategy(task, mixing, mean):
    method = NKD(NKD.Config(mixing=mixing, own_share=0.3), [ModelTeacher(bpr(task, 4), task)], task, 4)
    shares = [method._share(torch.zeros(5, 4)) for _ in range(3000)]
    assert torch.stack(shares).mean().item() == pytest.approx(mean, abs=0.03)
    wide = {"batchmix": (5, 1), "layermix": (1, 4)}
    elementwise = ("soft", "soft_v0", "hard")
    assert shares[0].shape == torch.Size(wide.get(mixing, (5, 4) if mixing in elementwise else ()))


@pytest.mark.parametrize("components", [2, 150])
def test_neighbours_are_the_nearest_others(components):
    table = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9, 5, 1, 1, 1, 1.0])
    found = nearest(table, NKDConfig(neighbours=5, components=components))
    reduced = table - table.mean(0)
    if components == 2:
        reduced = reduced @ torch.linalg.svd(reduced).Vh[:2].T
    distances = torch.cdist(reduced, reduced) + torch.eye(40) * 1e9
    assert (found == distances.topk(5, largest=False).indices).float().mean() > 0.99
    assert not (found == torch.arange(40)[:, None]).any()


def test_too_few_neighbours_are_used_as_they_are():
    table = torch.randn(3, 4)
    assert nearest(table, NKDConfig(neighbours=5)).shape == (3, 2)
    assert nearest(table[:1], NKDConfig(neighbours=5)).tolist() == [[0]]


def test_nkd_draws_every_neighbour(task):
    method = NKD(NKD.Config(neighbours=4), [ModelTeacher(bpr(task, 4), task)], task, 4)
    near = torch.tensor([[5, 6, 7, -1]]).repeat(3000, 1)
    drawn, _ = method._drawn(near)
    assert (torch.bincount(drawn.flatten())[5:] / 3000).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_nkd_graph_keeps_the_mean_of_the_neighbours(task):
    method = NKD(NKD.Config(neighbours=4, mixing="graph"), [ModelTeacher(bpr(task, 4), task)], task, 4)
    near = torch.tensor([[5, 6, 7, -1]]).repeat(4000, 1)
    ids, weights = method._drawn(near)
    assert ids.shape == near.shape
    assert weights.mean(0).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=0.02)


def test_nkd_reaches_entity_and_neighbour(task):
    teacher, student = ModelTeacher(bpr(task, 6), task), bpr(task, 3)
    method = started(NKD(NKD.Config(neighbours=1), [teacher], task, 3), student, task)
    batch = batch_of([2], [3], [4])
    method.loss(student(batch.queries), batch).backward()
    touched = set(student.items.weight.grad.coalesce().indices()[0].tolist())
    assert touched == {3, 4, *method._neighbours["items"][[3, 4], 0].tolist()}
    assert student.users.weight.grad.coalesce().indices()[0].tolist() == sorted(
        {2, int(method._neighbours["users"][2, 0])}
    )


# --- CPD ------------------------------------------------------------------------------------------------------------


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


# --- SLD ------------------------------------------------------------------------------------------------------------


def sld(task, student, **options):
    config = SLD.Config(**{"pool": 20, "top": 5, "rest": 6} | options)
    return started(SLD(config, [ModelTeacher(bpr(task, 6), task)], task, 3), student, task)


def gradient(method, student, scores_of):
    """Of the loss of user 4 by her scores."""
    batch = batch_of([4], [0], [1])
    scores = scores_of.clone().requires_grad_()

    class Fixed:
        def pairs(self, rows, ids):
            return scores

    loss = method.loss(Fixed(), batch)
    loss.backward()
    return loss.item(), scores.grad


def test_sld_gradient_is_prediction_less_label(task, toy):
    student, tau = bpr(task, 3, seed=1), 0.5
    method = sld(task, student, temperature=tau)
    ids = method._ids[4]
    assert len(set(ids.tolist())) == 11
    assert not set(ids.tolist()) & set(toy.train.row(4).tolist())
    teacher = method.teacher.score_block([4])[0, ids]
    start = student.items.weight.detach()[ids] @ student.users.weight.detach()[4]
    label = 0.5 * torch.softmax(teacher / tau, 0) + 0.5 * torch.softmax(start / tau, 0)
    now = start + torch.linspace(-1, 1, 11)
    loss, found = gradient(method, student, now[None])
    assert loss == pytest.approx(-(label * torch.log_softmax(now / tau, 0)).sum().item(), rel=1e-5)
    assert torch.allclose(found[0], (torch.softmax(now / tau, 0) - label) / tau, atol=1e-5)
    assert found.sum().item() == pytest.approx(0, abs=1e-5)
    pure = sld(task, student, temperature=tau, teacher_share=1.0)
    assert torch.allclose(
        gradient(method, student, start[None])[1], gradient(pure, student, start[None])[1] / 2, atol=1e-6
    )


def test_sld_counts_users_once_and_masks_short_lists(task):
    student = bpr(task, 3, seed=1)
    method = sld(task, student, top=40, rest=60, pool=60)
    assert (method._ids < 0).any()
    assert torch.allclose(method._labels.sum(1), torch.ones(task.n_queries), atol=1e-5)
    assert (method._labels[method._ids < 0] == 0).all()

    def loss(users):
        batch = batch_of(users, [0] * len(users), [1] * len(users))
        return method.loss(student(batch.queries), batch)

    assert loss([4, 4, 9]).item() == pytest.approx((loss([4]) + loss([9])).item(), rel=1e-5)
    loss([4]).backward()
    assert torch.isfinite(student.users.weight.grad.coalesce().values()).all()


def test_sld_by_order_is_listmle(task):
    from test_losses import slow_relaxed_ranking

    student = bpr(task, 3, seed=1)
    method = sld(task, student, label="order")
    batch = batch_of([4], [0], [1])
    scores = student.items.weight[method._ids[4]] @ student.users.weight[4]
    places = [method.pool[4].tolist().index(item) for item in method._ids[4].tolist()]
    assert places == sorted(places)  # the teacher's order, whatever the order of the draw
    loss = method.loss(student(batch.queries), batch).item()
    assert loss == pytest.approx(slow_relaxed_ranking(scores.tolist(), []), rel=1e-5)


def test_masked_softmax_is_that_of_the_entries():
    scores, mask = torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([[True, False, True]])
    found = masked_log_softmax(scores, mask, 2.0)[0, [0, 2]]
    assert torch.allclose(found, torch.log_softmax(torch.tensor([0.5, 1.0]), 0))


# --- their sum ------------------------------------------------------------------------------------------------------


def test_mkd_is_the_sum_of_its_parts_and_each_can_be_off(task):
    student, teacher = bpr(task, 3, seed=1), ModelTeacher(bpr(task, 6), task)
    batch = batch_of([4, 4, 9], [0, 1, 2], [3, 4, 5])
    small = {"list_pool": 20, "listed": 5, "pool": 20, "top": 5, "rest": 5, "neighbours": 3}

    def loss(cls, seed=2, **options):
        method = started(cls(cls.Config(**options), [teacher], task, 3, seed=seed), student, task)
        return method.loss(student(batch.queries), batch).item()

    off = {"pairwise_weight": 0.0, "listwise_weight": 0.0, "output_weight": 0.0}
    nkd = loss(NKD, neighbours=3)
    assert loss(MKD, **small | off) == nkd
    output = loss(SLD, pool=20, top=5, rest=5)
    assert loss(MKD, **small | off | {"output_weight": 0.5}) == pytest.approx(nkd + 0.5 * output, rel=1e-5)
    lists = loss(MKD, **small | off | {"listwise_weight": 1.0}) - nkd
    assert lists > 1.0
    everything = loss(MKD, **small | {"pairwise_weight": 0.0, "listwise_weight": 2.0, "output_weight": 0.5})
    assert everything == pytest.approx(nkd + 2 * lists + 0.5 * output, rel=1e-5)


def test_what_reads_representations_refuses_a_ranking_at_once(task, tmp_path):
    from safetensors.torch import save_file

    lists = torch.from_numpy(ModelTeacher(bpr(task, 6), task).topk(60).items.copy())
    save_file({"topk": lists}, tmp_path / "lists", metadata={"kdrs": "teacher/1"})
    teacher = FileTeacher(tmp_path / "lists", task)
    for method in (NKD, CPD, MKD):
        with pytest.raises(MissingKnowledge, match="holds only a ranking; embeddings"):
            method(method.Config(), [teacher], task, 3)
    with pytest.raises(MissingKnowledge, match="scores and embeddings"):
        SLD(SLD.Config(pool=60), [teacher], task, 3)
    SLD(SLD.Config(pool=60, label="order"), [teacher], task, 3)
