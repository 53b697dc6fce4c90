"""Each method against the numbers and properties of its paper, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from conftest import toy_dataset
from kdrs.core import kernels
from kdrs.data import Interactions
from kdrs.distillers import CD, CPD, DCD, DE, IRRRD, RRD, SLD
from kdrs.distillers._experts import Experts, temperature
from kdrs.distillers.cd import CDConfig, rank_weights
from kdrs.distillers.rrd import Lists
from kdrs.errors import ConfigError, MissingKnowledge
from kdrs.fitting.learner import Learner, Term
from kdrs.models import BPR
from kdrs.teachers.model import ModelTeacher
from kdrs.training import losses
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Batch, Epoch, Queries


def bpr(task, dim, seed=0, std=0.5):
    torch.manual_seed(seed)
    return BPR(BPR.Config(dim=dim, init_std=std), task)


def batch_of(users, positives, negatives):
    users = torch.tensor(users)
    return Batch(Queries(users, users), torch.tensor(positives), torch.tensor(negatives)[:, None])


def started(distiller, model, task, index=0, seed=0, total=1000):
    epoch = Epoch(index, seed, total)
    distiller.on_epoch_start(epoch, distiller.draw(epoch), ModelTeacher(model, task, live=True))
    return distiller


# --- DE -------------------------------------------------------------------------------------------------------------


def worked_experts(tau):
    """Two constant experts, 2 and 0, the target 1, equal selection, noise (0, ln 3)."""
    shares = torch.softmax(torch.tensor([0.0, math.log(3)]) / tau, dim=0)
    experts = Experts(1, 1, 2, 104.0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.zero_()
        experts.bias2[:, 0] = torch.tensor([2.0, 0.0])
    return shares, (1.0 - experts(torch.ones(1, 1), shares[None])).square().sum().item()


def test_de_worked_example():
    shares, loss = worked_experts(1.0)
    assert shares.tolist() == pytest.approx([0.25, 0.75])
    assert loss == pytest.approx(0.25)
    shares, loss = worked_experts(0.5)
    assert shares.tolist() == pytest.approx([0.1, 0.9])
    assert loss == pytest.approx(0.64)
    assert worked_experts(1e-3)[1] == pytest.approx(1.0)


def test_de_noise_follows_the_gumbel_max_law():
    experts = Experts(2, 3, 3, 104.0)
    target = torch.randn(1, 3, generator=torch.Generator().manual_seed(1))
    probabilities = torch.softmax(experts.selector(target), dim=-1)[0]
    noise = torch.Generator().manual_seed(0)
    chosen = experts.shares(target.expand(20000, 3), 1e-6, noise).argmax(dim=1)
    frequencies = torch.bincount(chosen, minlength=3) / 20000
    assert frequencies.tolist() == pytest.approx(probabilities.tolist(), abs=0.015)


def test_de_temperatures_are_the_codes():
    expected = {0: 1.0, 1: 1.0, 51: 0.31622777, 101: 0.1, 201: 0.01, 251: 10**-2.5}
    for epoch, tau in expected.items():
        assert temperature(epoch, DE.Config()) == pytest.approx(tau)
    assert temperature(5000, DE.Config()) == 1e-10
    ahead = DE.Config(schedule_epochs=100, schedule_lag=0)
    assert [temperature(epoch, ahead) for epoch in (0, 1, 10)] == pytest.approx([1, 10**-0.1, 0.1])


@pytest.mark.parametrize("tau", [1.0, 0.05, 1e-3, 1e-8])
def test_de_skipping_experts_of_share_zero_changes_nothing(tau):
    torch.manual_seed(3)
    experts, reference = Experts(4, 7, 6, 104.0), Experts(4, 7, 6, math.inf)
    reference.load_state_dict(experts.state_dict())
    source, target = torch.randn(20, 4), torch.randn(20, 7)
    shares = [each.shares(target, tau, torch.Generator().manual_seed(5)) for each in (experts, reference)]
    layers = [t.double() for t in (reference.weight1, reference.bias1, reference.weight2, reference.bias2)]
    outputs = experts(source, shares[0]), kernels.mixture(source.double(), shares[1].double(), *layers)
    for out in outputs:
        out.square().sum().backward()
    assert torch.allclose(outputs[0].double(), outputs[1], rtol=1e-5, atol=1e-6)
    for left, right in zip(experts.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(left.grad, right.grad, rtol=1e-4, atol=1e-5)


def test_de_with_one_active_expert_leaves_the_selector_and_the_others_without_gradient():
    torch.manual_seed(0)
    experts = Experts(3, 4, 5, 104.0)
    target = torch.randn(1, 4).expand(8, 4)
    with torch.no_grad():
        experts.selector.weight.zero_()
        experts.selector.bias.copy_(torch.tensor([90.0, 0, 0, 0, 0]))
    experts(torch.randn(8, 3), experts.shares(target, 1e-3, torch.Generator().manual_seed(0))).sum().backward()
    assert (experts.selector.weight.grad == 0).all()
    assert (experts.weight2.grad[1:] == 0).all()
    assert (experts.weight2.grad[0] != 0).any()


def test_de_with_one_expert_depends_on_no_temperature_and_no_seed(task):
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    batch = batch_of([0, 1, 1], [3, 4, 5], [6, 3, 7])
    values = []
    for index, seed in ((0, 0), (300, 1)):
        distiller = DE(DE.Config(experts=1), [ModelTeacher(teacher, task)], task, 3, seed=7)
        started(distiller, student, task, index, seed)
        values.append(distiller.loss(student(batch.queries), batch).item())
    assert values[0] == values[1]


def test_de_counts_each_entity_once_and_items_by_their_roles(task):
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    distiller = started(DE(DE.Config(experts=1), [ModelTeacher(teacher, task)], task, 3), student, task)

    def loss(*arguments):
        batch = batch_of(*arguments)
        return distiller.loss(student(batch.queries), batch).item()

    def entity(kind, index):
        experts = distiller.users if kind == "users" else distiller.items
        source = getattr(student, kind).weight[index : index + 1]
        target = getattr(teacher, kind).weight[index : index + 1]
        return (target - experts(source, torch.ones(1, 1))).square().sum().item()

    user, three, four = entity("users", 2), entity("items", 3), entity("items", 4)
    assert loss([2], [3], [4]) == pytest.approx(user + three / 2 + four / 2, rel=1e-5)
    assert loss([2, 2], [3, 3], [4, 4]) == pytest.approx(user + three / 2 + four / 2, rel=1e-5)
    assert loss([2, 2], [3, 4], [4, 3]) == pytest.approx(user + three + four, rel=1e-5)
    distiller.config = DE.Config(experts=1, item_share="full")
    assert loss([2, 2], [3, 3], [4, 4]) == pytest.approx(user + three + four, rel=1e-5)


@pytest.mark.parametrize(
    ("source", "target", "hidden"), [(20, 200, 110), (4, 7, 5), (7, 4, 5), (6, 6, 3), (7, 7, 3), (1, 1, 1)]
)
def test_de_experts_are_as_wide_as_the_mean_of_both_sizes_or_half_of_equal_ones(source, target, hidden):
    experts = Experts(source, target, 2, 104.0)
    assert experts.weight1.shape == (2, source, hidden)
    assert experts.weight2.shape == (2, hidden, target)


def test_de_starts_as_linear_layers_do():
    """Weights and biases uniform within ±1/√fan-in: 25 inputs, 62 in the middle, 100 for the selection."""
    torch.manual_seed(0)
    experts = Experts(25, 100, 60, 104.0)
    layers = (
        (25, experts.weight1, experts.bias1),
        (62, experts.weight2, experts.bias2),
        (100, experts.selector.weight, experts.selector.bias),
    )
    for fan_in, *parameters in layers:
        for parameter in parameters:
            assert 0.95 * fan_in**-0.5 < parameter.abs().max() <= fan_in**-0.5
            assert parameter.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)


ACTIVE = {
    50: (30.0, 28.7, 1.00),
    100: (30.0, 6.32, 1.00),
    150: (15.0, 1.85, 0.96),
    200: (2.73, 1.22, 0.65),
    250: (1.38, 1.06, 0.28),
    300: (1.11, 1.02, 0.10),
}
"""Of 30 experts, alike to all entities, by epoch: those with a share at a cutoff of 104 and of 20, and how many entities have
more than one at 104."""


@pytest.mark.parametrize("epoch", ACTIVE)
def test_de_active_experts_over_the_published_schedule(epoch: int):
    target, tau, counts = torch.zeros(20_000, 2).double(), temperature(epoch, DE.Config()), []
    for cutoff in (104.0, 20.0):
        experts = Experts(1, 2, 30, cutoff).double()  # exp(-104) is a number in float64
        with torch.no_grad():
            experts.selector.weight.zero_(), experts.selector.bias.zero_()
            shares = experts.shares(target, tau, torch.Generator().manual_seed(0))
        counts.append((shares > 0).sum(1).double())
    *active, several = ACTIVE[epoch]
    assert [count.mean().item() for count in counts] == pytest.approx(active, rel=0.015)
    assert (counts[0] > 1).double().mean().item() == pytest.approx(several, abs=0.01)


def test_de_has_as_many_parameters_as_the_official_log_prints():
    task = PairTask(toy_dataset().train)
    distiller = DE(DE.Config(), [ModelTeacher(bpr(task, 200), task)], task, 20)
    selectors = sum(p.numel() for e in (distiller.users, distiller.items) for p in e.selector.parameters())
    total = sum(p.numel() for p in distiller.parameters())
    assert selectors == 12_060
    assert total - selectors == 1_470_600


# --- RRD ------------------------------------------------------------------------------------------------------------


def test_rrd_lists_hold_what_they_should(task, toy):
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    config = RRD.Config(interesting=5, uninteresting=7, pool=20)
    distiller = RRD(config, [ModelTeacher(teacher, task)], task, 3)
    pool = ModelTeacher(teacher, task).topk(20).items
    for index in range(3):
        interesting, uninteresting = (t.numpy() for t in distiller.draw(Epoch(index, 0, 10)))
        for user in range(toy.n_users):
            seen, listed = set(toy.train.row(user).tolist()), pool[user].tolist()
            best, rest = interesting[user].tolist(), uninteresting[user].tolist()
            assert not seen & {*best, *rest}
            assert [listed.index(item) for item in best] == sorted(listed.index(item) for item in best)
            assert len(set(best)) == 5
            assert len(set(rest)) == 7
            assert not set(rest) & set(listed)
    first, second = (distiller.draw(Epoch(i, 0, 10))[0] for i in (0, 1))
    assert (first != second).any()
    assert (first == distiller.draw(Epoch(0, 0, 10))[0]).all()
    assert started(distiller, student, task)._lists.complete


def by_id(n_users: int, n_items: int) -> tuple[PairTask, ModelTeacher]:
    """A teacher that ranks items and users alike by their ids; everybody has seen the last item alone."""
    task = PairTask(Interactions.from_pairs(np.arange(n_users), np.full(n_users, n_items - 1), n_users, n_items))
    teacher = bpr(task, 1)
    with torch.no_grad():
        for table in (teacher.users.weight, teacher.items.weight):
            table[:, 0] = torch.linspace(2, 1, len(table))
    return task, ModelTeacher(teacher, task)


INCLUDED = {10: 1.00, 20: 0.98, 30: 0.81, 40: 0.45, 50: 0.19, 60: 0.08, 80: 0.01}
"""How often a rank is among 40 drawn of 500 at T = 10."""


@pytest.mark.parametrize(
    ("options", "expected"), [({}, INCLUDED), ({"temperature": 1e6}, dict.fromkeys((1, 250, 500), 0.08))]
)
def test_rrd_inclusion_probabilities_follow_the_ranks(options, expected):
    task, teacher = by_id(4000, 700)
    drawn, _ = RRD(RRD.Config(**options), [teacher], task, 1).draw(Epoch(0, 0, 1))
    share = np.bincount(drawn.numpy().ravel(), minlength=700) / 4000
    for rank, included in expected.items():
        assert share[rank - 1] == pytest.approx(included, abs=0.02)
    assert share[500:].sum() == 0


def test_rrd_of_equal_scores_costs_163_a_user():
    """ln(80! / 40!) each; by the default weight 116.5 for the 712.9 users of a batch, as in the official log's first epoch."""
    task, teacher = by_id(20, 700)
    student = bpr(task, 1)
    with torch.no_grad():
        student.users.weight.zero_()
    distiller = started(RRD(RRD.Config(), [teacher], task, 1), student, task)
    batch = batch_of([3, 3, 9], [0, 1, 2], [4, 5, 6])
    a_user = distiller.loss(student(batch.queries), batch).item() / 2
    assert a_user == pytest.approx(163.3525, abs=1e-3)
    assert RRD.default_weight * 712.9 * a_user == pytest.approx(116.5, abs=0.1)


def test_rrd_loss_is_the_sum_over_unique_users(task):
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    config = RRD.Config(interesting=3, uninteresting=4, pool=10)
    distiller = started(RRD(config, [ModelTeacher(teacher, task)], task, 3), student, task)

    def loss(users):
        batch = batch_of(users, [0] * len(users), [1] * len(users))
        return distiller.loss(student(batch.queries), batch).item()

    assert loss([4, 4, 9]) == pytest.approx(loss([4]) + loss([9]), rel=1e-5)
    scores = student.users.weight[4] @ student.items.weight.T
    best, rest = distiller._lists.ordered[4], distiller._lists.background[4]
    from test_losses import slow_relaxed_ranking

    assert loss([4]) == pytest.approx(slow_relaxed_ranking(scores[best].tolist(), scores[rest].tolist()), rel=1e-5)


def test_rrd_shortens_lists_where_the_catalogue_ends(task, toy):
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    config = RRD.Config(interesting=100, uninteresting=100, pool=60)
    distiller = started(RRD(config, [ModelTeacher(teacher, task)], task, 3), student, task)
    assert not distiller._lists.complete
    batch = batch_of([0, 1], [0, 1], [2, 3])
    loss = distiller.loss(student(batch.queries), batch)
    loss.backward()
    assert torch.isfinite(loss)
    for user in range(toy.n_users):
        unseen = toy.n_items - len(toy.train.row(user))
        interesting, uninteresting = distiller._lists.ordered[user], distiller._lists.background[user]
        assert int((interesting >= 0).sum()) == min(60, unseen)
        assert int((uninteresting >= 0).sum()) == unseen - min(60, unseen)


def test_rrd_topk_takes_the_head_of_the_pool(task):
    teacher = ModelTeacher(bpr(task, 6), task)
    distiller = RRD(RRD.Config(interesting=4, pool=20, choice="topk"), [teacher], task, 3)
    assert (distiller.draw(Epoch(0, 0, 1))[0].numpy() == teacher.topk(4).items).all()


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


# --- DE and RRD together --------------------------------------------------------------------------------------------


def test_the_gradient_of_de_and_rrd_is_the_sum_of_both(task):
    teacher, epoch = ModelTeacher(bpr(task, 6), task), Epoch(0, 0, 1)
    batch, lists = task.draw(epoch)[0], RRD.Config(interesting=5, uninteresting=7, pool=20)

    def gradient(student: BPR) -> torch.Tensor:
        return torch.cat([table.weight.grad.to_dense() for table in (student.users, student.items)])

    def taught(*names: str, base: str | None = None) -> torch.Tensor:
        de = Term("de", 1e-2, DE(DE.Config(experts=3), [teacher], task, 3, seed=5))
        rrd = Term("rrd", 1e-3, RRD(lists, [teacher], task, 3, seed=6))
        terms = [term for term in (de, rrd) if term.name in names]
        learner = Learner(bpr(task, 3, seed=1), task, terms, base=base)
        learner.start(epoch, [term.distiller.draw(epoch) for term in terms])
        learner.backward(learner.forward(batch))
        return gradient(learner.model)

    alone = bpr(task, 3, seed=1)
    alone.loss(alone(batch.queries), batch).backward()
    parts = [taught("de"), taught("rrd"), gradient(alone)]
    assert all(part.abs().max() > 1e-3 for part in parts)
    assert torch.allclose(taught("de", "rrd", base="model"), sum(parts), rtol=1e-4, atol=1e-6)


# --- what a teacher must hold ---------------------------------------------------------------------------------------


def test_a_ranking_alone_is_enough_for_rrd_only(task, toy, tmp_path):
    from safetensors.torch import save_file

    from kdrs.teachers.file import FileTeacher

    lists = torch.from_numpy(ModelTeacher(bpr(task, 6), task).topk(30).items.copy())
    path = tmp_path / "lists.safetensors"
    save_file({"topk": lists}, path, metadata={"kdrs": "teacher/1"})
    teacher = FileTeacher(path, task)
    RRD(RRD.Config(pool=30), [teacher], task, 3)
    for method in (DE, CD):
        with pytest.raises(MissingKnowledge, match="holds only a ranking"):
            method(method.Config(), [teacher], task, 3)
    with pytest.raises(MissingKnowledge, match="lists 30 items"):
        RRD(RRD.Config(pool=40), [teacher], task, 3)


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01])
def test_shares_against_their_definition_and_the_default_cutoff(tau):
    """(log(softmax + 1e-10) + g) / τ with the same noise; what the default leaves out is lost in rounding."""
    torch.manual_seed(0)
    target, source = torch.randn(40, 6), torch.randn(40, 4)
    exact, usual = Experts(4, 6, 30, 104.0), Experts(4, 6, 30, DE.Config().cutoff)
    usual.load_state_dict(exact.state_dict())
    shares = [one.shares(target, tau, torch.Generator().manual_seed(3)) for one in (exact, usual)]
    uniform = torch.rand(40, 30, generator=torch.Generator().manual_seed(3))
    logits = (torch.softmax(exact.selector(target), 1) + 1e-10).log() - (-uniform.log()).log()
    assert torch.allclose(shares[0], torch.softmax(logits / tau, dim=1), atol=1e-5)
    assert (shares[1] > 0).sum() <= (shares[0] > 0).sum()
    outputs = [one(source, share) for one, share in zip((exact, usual), shares, strict=True)]
    assert torch.allclose(*outputs, rtol=1e-6, atol=1e-6)
