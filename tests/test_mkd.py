"""MKD's parts: NKD, CPD, SLD and their sum (section 4 of the specification)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdrs.distillers import CPD, MKD, NKD, SLD
from kdrs.distillers._features import Projector, cosine_losses
from kdrs.distillers.nkd import NKDConfig, nearest
from kdrs.errors import MissingKnowledge
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.losses import masked_log_softmax
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


@pytest.mark.parametrize(("hidden", "width"), [("half", 4), ("mean", 6)])
@pytest.mark.parametrize("method", [NKD, MKD])
def test_nkd_projectors_are_as_wide_as_their_revision_has_it(task, method, hidden, width):
    """⌊9 / 2⌋ = 4 at the head, ⌊(3 + 9) / 2⌋ = 6 in the first revision."""
    made = method(method.Config(hidden=hidden, neighbours=2), [ModelTeacher(bpr(task, 9), task)], task, 3)
    for projector in (made.users, made.items):
        assert projector.weight1.shape == (5, 3, width)
        assert projector.weight2.shape == (5, width, 9)


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
