"""Each method against the numbers and properties of its paper, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from conftest import toy_dataset
from kdrs.core import kernels
from kdrs.data import Interactions
from kdrs.distillers import CD, DE, RRD
from kdrs.distillers._experts import Experts, temperature
from kdrs.errors import MissingKnowledge
from kdrs.fitting.learner import Learner, Term
from kdrs.models import BPR
from kdrs.teachers.model import ModelTeacher
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
    """ln(80! / 40!) each; by the published weight 116.5 for the 712.9 users of a batch, as in the log's first epoch."""
    task, teacher = by_id(20, 700)
    student = bpr(task, 1)
    with torch.no_grad():
        student.users.weight.zero_()
    distiller = started(RRD(RRD.Config(), [teacher], task, 1), student, task)
    batch = batch_of([3, 3, 9], [0, 1, 2], [4, 5, 6])
    a_user = distiller.loss(student(batch.queries), batch).item() / 2
    assert a_user == pytest.approx(163.3525, abs=1e-3)
    assert RRD.published_weight * 712.9 * a_user == pytest.approx(116.5, abs=0.1)


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
