"""Bidirectional distillation against the numbers and properties of its paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from conftest import toy_dataset
from kdrs.data import Interactions
from kdrs.distillers import BD, DE
from kdrs.errors import ConfigError
from kdrs.fitting.fit import fit, step_of
from kdrs.fitting.learner import Learner, Term
from kdrs.models import BPR, CDAE, IAE, Caser, NeuMF, SASRec
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Batch, Epoch

STUDENT_ORDER, TEACHER_ORDER = [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]


def fixed(task, scores):
    """A one-dimensional BPR whose users score item i as ``scores[i]``."""
    model = BPR(BPR.Config(dim=1), task)
    with torch.no_grad():
        model.users.weight.fill_(1.0)
        model.items.weight.copy_(torch.tensor(scores)[:, None])
    return model


def mutual(task, student, teacher, **options):
    source = ModelTeacher(teacher, task, live=True, name="teacher")
    term = Term("bd", 0.5, BD(BD.Config(**options), [source], task, student.dim, 7))
    learner = Learner(student, task, [term])
    return [learner, *learner.counterparts()]


def pools(task, student, teacher, **options):
    learners = mutual(task, student, teacher, **options)
    epoch = Epoch(0, 0, 100)
    for learner in learners:
        learner.start(epoch, [term.distiller.draw(epoch) for term in learner.terms])
    return [learner.terms[0].distiller for learner in learners]


@pytest.fixture
def five():
    """One user, five items, the last one seen: four unseen ones, as in the worked example."""
    return PairTask(Interactions.from_pairs([0], [4], 1, 5))


def shares(pool):
    return np.bincount(pool.numpy(), minlength=5)[:4] / pool.numel()


@pytest.mark.parametrize("direction", ["paper", "notebook"])
def test_draws_follow_the_worked_example(five, direction):
    """r_T = (1, 2, 3, 4), r_S = (4, 3, 2, 1), both sharpnesses 0.5."""
    orders = (TEACHER_ORDER, STUDENT_ORDER)
    ours, theirs = orders if direction == "paper" else orders[::-1]
    student, teacher = fixed(five, [*ours, 9.0]), fixed(five, [*theirs, 9.0])
    own, other = pools(
        five, student, teacher, exp_sharpness=0.5, tanh_sharpness=0.5, refresh=40_000, direction=direction
    )
    assert shares(own.pool) == pytest.approx([0.6620, 0.3380, 0, 0], abs=0.01)
    assert shares(other.pool) == pytest.approx([0.0321, 0.0871, 0.2369, 0.6439], abs=0.01)


def test_equal_rankings_teach_the_student_nothing_and_the_teacher_uniformly(five):
    model = [fixed(five, [*STUDENT_ORDER, 9.0]) for _ in range(2)]
    own, other = pools(five, *model, exp_sharpness=0.5, tanh_sharpness=0.5, refresh=40_000)
    assert (own.pool == -1).all()
    assert shares(other.pool) == pytest.approx([0.25] * 4, abs=0.01)
    own, _ = pools(five, *model, tanh_sharpness=0.5, refresh=40_000, idle="uniform")
    assert shares(own.pool) == pytest.approx([0.25] * 4, abs=0.01)


def test_masking_by_multiplication_lets_seen_items_in(five):
    student, teacher = fixed(five, [*STUDENT_ORDER, 9.0]), fixed(five, [-1.0, -2.0, -3.0, -4.0, 9.0])
    own, _ = pools(five, student, teacher, tanh_sharpness=0.5, refresh=5_000, mask="multiply")
    assert (own.pool == 4).any()  # its score of 0 is the student's worst and the teacher's best
    own, _ = pools(five, student, teacher, tanh_sharpness=0.5, refresh=5_000)
    assert not (own.pool == 4).any()


def test_label_loss_and_gradient_worked(five):
    """Teacher's logit 2, tau 5: label σ(0.4); a student's logit of 0 costs ln 2, its gradient is -0.098688."""
    student, teacher = fixed(five, [0.0] * 5), fixed(five, [2.0] * 5)
    learners = mutual(five, student, teacher, idle="uniform")
    epoch = Epoch(0, 0, 100)
    for learner in learners:
        learner.start(epoch, [term.distiller.draw(epoch) for term in learner.terms])
    (batch,) = list(five.draw(epoch))
    for learner in learners:
        learner.look(batch)
    term = learners[0].terms[0].distiller
    loss = term.loss(student(batch.queries), batch)
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)
    loss.backward()
    gradient = student.items.weight.grad
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    assert gradient.sum().item() == pytest.approx(-0.098688, abs=1e-6)
    assert teacher.items.weight.grad is None
    assert teacher.users.weight.grad is None
    with torch.no_grad():
        student.items.weight.fill_(0.4)
    student.zero_grad()
    term.loss(student(batch.queries), batch).backward()
    gradient = student.items.weight.grad
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    assert gradient.abs().max().item() == pytest.approx(0.0, abs=1e-7)
    assert math.isclose(1 / (1 + math.exp(-0.4)), 0.598688, abs_tol=1e-6)


def binary_cross_entropy(logit, label):
    return label * math.log1p(math.exp(-logit)) + (1 - label) * math.log1p(math.exp(logit))


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def begun(five, student, teacher, index=0, **options):
    """Both learners in an epoch, its batch, and what they look at."""
    learners = mutual(five, student, teacher, **options)
    epoch = Epoch(index, 0, 100)
    for learner in learners:
        learner.start(epoch, [term.distiller.draw(epoch) for term in learner.terms])
    (batch,) = list(five.draw(epoch))
    for learner in learners:
        learner.look(batch)
    return learners, batch


def test_a_temperature_divides_the_scores_of_its_own_model(five):
    """The teacher's logit 2 by 5 is the student's label, the student's 1 by 2 the teacher's."""
    student, teacher = fixed(five, [1.0] * 5), fixed(five, [2.0] * 5)
    learners, batch = begun(five, student, teacher, idle="uniform", teacher_temperature=5.0, student_temperature=2.0)
    losses = [
        learner.terms[0].distiller.loss(model(batch.queries), batch).item()
        for learner, model in zip(learners, (student, teacher), strict=True)
    ]
    assert losses == pytest.approx([binary_cross_entropy(1, sigmoid(0.4)), binary_cross_entropy(2, sigmoid(0.5))])


def test_models_are_ranked_every_so_many_epochs(five):
    student, teacher = fixed(five, [*STUDENT_ORDER, 9.0]), fixed(five, [*TEACHER_ORDER, 9.0])
    learners = mutual(five, student, teacher, refresh=2, tanh_sharpness=0.5)
    own = learners[0].terms[0].distiller
    drawn = []
    for index in range(4):
        epoch = Epoch(index, 0, 100)
        for learner in learners:
            learner.start(epoch, [term.distiller.draw(epoch) for term in learner.terms])
        drawn.append((own._drawn >= 0).all().item())
        for learner in learners:
            learner.finish()
        with torch.no_grad():  # from now on they agree, which is seen at the next ranking
            student.items.weight.copy_(teacher.items.weight)
    assert drawn == [True, True, False, False]


def test_users_who_are_idle_are_left_out(five):
    student, teacher = fixed(five, [*STUDENT_ORDER, 9.0]), fixed(five, [*STUDENT_ORDER, 9.0])
    learners, batch = begun(five, student, teacher)
    own = learners[0].terms[0].distiller
    assert own.loss(student(batch.queries), batch).item() == 0.0
    loss, gradient = own.score_loss(batch).of(torch.ones(1, 1))
    assert (loss.item(), gradient.item()) == (0.0, 0.0)


def test_shared_negatives_of_idle_users_are_the_batch_s_own(five):
    same = fixed(five, [*STUDENT_ORDER, 9.0]), fixed(five, [*STUDENT_ORDER, 9.0])
    learners, batch = begun(five, *same, negatives="shared")
    assert torch.equal(learners[0].terms[0].distiller.base_batch(batch).negatives, batch.negatives)
    differ = fixed(five, [*STUDENT_ORDER, 9.0]), fixed(five, [*TEACHER_ORDER, 9.0])
    learners, batch = begun(five, *differ, negatives="shared", tanh_sharpness=0.5)
    own = learners[0].terms[0].distiller
    assert own.base_batch(batch).negatives.item() == own._drawn.item()


@pytest.mark.parametrize("negatives", ["own", "shared"])
def test_an_epoch_uses_each_draw_once_and_never_a_seen_item(negatives):
    toy = toy_dataset()
    task = PairTask(toy.train, batch_size=64)
    torch.manual_seed(0)
    student, teacher = BPR(BPR.Config(dim=4, init_std=0.5), task), BPR(BPR.Config(dim=8, init_std=0.5), task)
    learners = mutual(task, student, teacher, refresh=3, negatives=negatives)
    seen = toy.train.to_csr().toarray() > 0
    used: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for index in range(3):
        epoch = Epoch(index, 0, 100)
        for learner in learners:
            learner.start(epoch, [term.distiller.draw(epoch) for term in learner.terms])
        for batch in task.draw(epoch):
            users = batch.queries.users.numpy()
            bases = []
            for side, learner in enumerate(learners):
                distiller = learner.terms[0].distiller
                drawn = distiller._drawn[batch.places]
                used[side].append(torch.stack([batch.queries.users, drawn]))
                known = (drawn >= 0).numpy()
                assert not seen[users[known], drawn.numpy()[known]].any()
                base = distiller.base_batch(batch).negatives
                assert not seen[users[:, None], base.numpy()].any()
                bases.append(base)
                if negatives == "shared":
                    assert torch.equal(base[known, 0], drawn[known])
            assert not torch.equal(*bases)
    for side, learner in enumerate(learners):
        users, items = torch.cat(used[side], dim=1)
        pool = learner.terms[0].distiller.pool
        owners = np.repeat(np.arange(50), toy.train.row_degrees * 3)
        assert sorted(zip(users.tolist(), items.tolist(), strict=True)) == sorted(
            zip(owners.tolist(), pool.tolist(), strict=True)
        )


def test_both_learn_and_each_from_the_state_before_the_step():
    """Exchanging the order of the learners' steps changes nothing: labels are taken before any of them."""
    task = PairTask(toy_dataset().train, batch_size=64)

    def run(reverse):
        torch.manual_seed(0)
        student, teacher = BPR(BPR.Config(dim=4, init_std=0.5), task), BPR(BPR.Config(dim=8, init_std=0.5), task)
        learners = mutual(task, student, teacher, refresh=1)
        for epoch in (Epoch(0, 0, 2), Epoch(1, 0, 2)):
            for learner in learners:
                learner.start(epoch, [term.distiller.draw(epoch) for term in learner.terms])
            for batch in task.draw(epoch):
                for learner in learners:
                    learner.look(batch)
                parts = [learner.forward(batch) for learner in learners]
                for learner, own in zip(learners, parts, strict=True):
                    learner.backward(own)
                for learner in reversed(learners) if reverse else learners:
                    learner.step()
        return [model.state_dict() for model in (student, teacher)]

    for left, right in zip(run(False), run(True), strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_teacher_weight_zero_still_trains_the_teacher_by_its_own_loss():
    task = PairTask(toy_dataset().train, batch_size=64)
    torch.manual_seed(0)
    teacher = BPR(BPR.Config(dim=8), task)
    before = teacher.users.weight.detach().clone()
    fit(mutual(task, BPR(BPR.Config(dim=4), task), teacher, teacher_weight=0.0), task, epochs=1)
    assert not torch.equal(before, teacher.users.weight)


def test_a_teacher_that_cannot_be_trained_is_refused(five):
    with pytest.raises(ConfigError, match="cannot be trained"):
        BD(BD.Config(), [ModelTeacher(fixed(five, [0.0] * 5), five)], five, 1)


def test_sums_with_methods_that_read_a_teacher_at_rest():
    task = PairTask(toy_dataset().train, batch_size=64)
    torch.manual_seed(0)
    student, teacher = BPR(BPR.Config(dim=4), task), BPR(BPR.Config(dim=8), task)
    frozen = ModelTeacher(BPR(BPR.Config(dim=8), task), task)
    terms = [
        Term("bd", 0.5, BD(BD.Config(), [ModelTeacher(teacher, task, live=True)], task, 4, 1)),
        Term("de", 0.01, DE(DE.Config(experts=2), [frozen], task, 4, 2)),
    ]
    learner = Learner(student, task, terms)
    result = fit([learner, *learner.counterparts()], task, epochs=2)
    assert {"base", "bd", "de"} == set(result.rows[0]["losses"])
    assert "bd-teacher.loss" in result.rows[0]


def test_models_of_whole_users_have_negatives_of_their_own():
    """CDAE: the user's items are the same for both, the drawn ones are drawn for each, anew in every batch and epoch."""
    train = toy_dataset().train
    torch.manual_seed(0)
    models = []
    for dim in (3, 6):
        config = CDAE.Config(dim=dim)
        task = CDAE.make_task(config, train, batch_size=25)
        models.append(CDAE(config, task))
    seen: list[list[Batch]] = [[], []]
    learners = mutual(task, *models, refresh=2)
    for own, learner, model in zip(seen, learners, models, strict=True):
        learner.base = lambda view, batch, own=own, model=model: own.append(batch) or model.loss(view, batch)
    fit(learners, task, epochs=2)
    for ours, theirs in zip(*seen, strict=True):
        assert torch.equal(ours.positives, theirs.positives)
        assert not torch.equal(ours.negatives, theirs.negatives)
    drawn = {tuple(batch.negatives.tolist()) for batches in seen for batch in batches}
    assert len(drawn) == 8


KINDS = {
    "users": (CDAE, {}),
    "items": (IAE, {}),
    "windows of two targets": (Caser, {"length": 3, "targets": 2}),
    "whole sequences": (SASRec, {"length": 6}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_draws_for_a_positive_are_used_once_whatever_the_batches_are(kind):
    """Five items a positive of the batch, and over an epoch each of its draws in one batch: nothing twice, nothing left."""
    cls, options = KINDS[kind]
    toy = toy_dataset()
    torch.manual_seed(0)
    configs = [cls.Config(dim=dim, **options) for dim in (4, 8)]
    task = cls.make_task(configs[0], toy.train, order=toy.order, batch_size=16)
    own, other = pools(task, *(cls(config, task) for config in configs), refresh=2, idle="uniform")
    seen = toy.train.to_csr().toarray() > 0
    for distiller in (own, other):
        start = distiller._first.tolist()
        expected = {user: distiller._drawn[start[user] : start[user] + n].tolist()
                    for user, n in enumerate(distiller._count.tolist())}  # fmt: skip
        positives = torch.zeros(task.n_users, dtype=torch.int64)
        for batch in task.draw(Epoch(0, 0, 100)):
            users = batch.queries.users
            per_row = torch.bincount(batch.positive_rows, minlength=len(users))
            found = set(zip(*(part.tolist() for part in distiller._of_batch(batch)), strict=True))
            wanted = set()
            for row, (user, count) in enumerate(zip(users.tolist(), per_row.tolist(), strict=True)):
                wanted |= {(row, expected[user].pop(0)) for _ in range(5 * count)}
                positives[user] += count
                assert not seen[user, [item for at, item in found if at == row]].any()
            assert found == wanted
        assert not any(expected.values())
        assert positives.tolist() == task.positives_per_user.tolist()


@pytest.mark.parametrize("kind", ["users", "windows of two targets", "whole sequences"])
def test_the_two_models_have_negatives_of_their_own(kind):
    cls, options = KINDS[kind]
    toy = toy_dataset()
    configs = [cls.Config(dim=dim, **options) for dim in (4, 8)]
    task = cls.make_task(configs[0], toy.train, order=toy.order, batch_size=16)
    own, other = pools(task, *(cls(config, task) for config in configs))
    seen = toy.train.to_csr().toarray() > 0
    for batch in task.draw(Epoch(0, 0, 100)):
        ours, theirs = own.base_batch(batch), other.base_batch(batch)
        assert torch.equal(ours.negatives, batch.negatives)
        assert theirs.negatives.numel() > 0
        assert not torch.equal(ours.negatives, theirs.negatives)
        rows = theirs.negative_rows
        assert not seen[batch.queries.users[rows], theirs.negatives].any()
        if kind != "users":
            assert torch.equal(rows, batch.negative_rows)


def test_half_a_pair_is_refused():
    task = PairTask(toy_dataset().train, batch_size=64)
    student, teacher = BPR(BPR.Config(dim=4), task), BPR(BPR.Config(dim=8), task)
    term = Term("bd", 0.5, BD(BD.Config(), [ModelTeacher(teacher, task, live=True)], task, 4))
    with pytest.raises(ConfigError, match="not trained along"):
        fit(Learner(student, task, [term]), task, epochs=1)


def test_a_teacher_of_another_kind_of_training_data_is_refused():
    from kdrs.models import CDAE

    train = toy_dataset().train
    task, users = PairTask(train), CDAE.make_task(CDAE.Config(dim=4), train)
    teacher = ModelTeacher(CDAE(CDAE.Config(dim=4), users), users, asked=task, live=True)
    with pytest.raises(ConfigError, match="UserTask, its student from PairTask"):
        BD(BD.Config(), [teacher], task, 4)
    with pytest.raises(ConfigError, match="shared"):
        BD(BD.Config(negatives="shared"), [ModelTeacher(teacher.model, users, live=True)], users, 4)


@pytest.mark.parametrize("optimizer", ["adam", "lazy-adam"])
@pytest.mark.parametrize("negatives", ["own", "shared"])
def test_the_closed_form_trains_as_autograd_does(toy, negatives, optimizer):
    task = PairTask(toy.train, batch_size=32)
    ends = []
    for closed in (True, False):
        torch.manual_seed(0)
        student, teacher = (BPR(BPR.Config(dim=dim, init_std=0.3), task) for dim in (4, 8))
        bd = BD(BD.Config(negatives=negatives, refresh=2), [ModelTeacher(teacher, task, live=True)], task, 4, 7)
        learner = Learner(student, task, [Term("bd", 0.3, bd)], lr=0.01, weight_decay=1e-3, optimizer=optimizer)
        learners = [learner, *learner.counterparts()]
        assert all(one._tables is not None for one in learners)
        if not closed:
            for one in learners:
                one._tables = None
        result = fit(learners, task, epochs=3)
        ends.append(([p.detach() for one in learners for p in one.model.parameters()], result.rows))
    for left, right in zip(ends[0][0], ends[1][0], strict=True):
        assert torch.allclose(left, right, atol=1e-4)
    for left, right in zip(ends[0][1], ends[1][1], strict=True):
        assert left["losses"] == pytest.approx(right["losses"], rel=1e-4)
        assert left["bd-teacher.losses"] == pytest.approx(right["bd-teacher.losses"], rel=1e-4)


def test_nothing_flows_back_to_the_one_who_teaches(toy):
    task = PairTask(toy.train, batch_size=16)
    student, teacher = (BPR(BPR.Config(dim=dim, init_std=0.3), task) for dim in (4, 8))
    learners = mutual(task, student, teacher)
    epoch = Epoch(0, 0, 9)
    for learner in learners:
        learner.start(epoch, [term.distiller.draw(epoch) for term in learner.terms])
    batch = next(iter(task.draw(epoch)))
    for learner, other in ((learners[0], teacher), (learners[1], student)):
        (term,) = learner.terms
        loss = term.distiller.loss(learner.model(batch.queries), batch)
        gradients = torch.autograd.grad(loss, list(other.parameters()), allow_unused=True)
        assert all(gradient is None for gradient in gradients)


@pytest.mark.parametrize("mask", ["exclude", "multiply"])
@pytest.mark.parametrize("block", [4 * 6, 1 << 20])
@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({"exp_sharpness": 0.0, "tanh_sharpness": 1e-9}, (lambda gap: 1.0 + 0 * gap, lambda gap: gap.clip(0))),
        ({"exp_sharpness": 0.5, "tanh_sharpness": 1e9}, (lambda gap: np.exp(-0.5 * gap), lambda gap: 1.0 * (gap > 0))),
    ],
    ids=["blunt", "sharp"],
)
def test_draws_follow_both_laws_at_their_limits(monkeypatch, mask, block, options, law):
    """By Pearson's statistic, whatever the blocks; ``gap`` is the student's rank less the teacher's."""
    monkeypatch.setattr("kdrs.teachers.base.BLOCK_BYTES", block)
    n_items, n_users = 6, 4
    task = PairTask(Interactions.from_pairs(np.arange(n_users), [0] * n_users, n_users, n_items), batch_size=4)
    student, teacher = fixed(task, [9.0, 5.0, 4.0, 3.0, 2.0, 1.0]), fixed(task, [9.0, 1.0, 3.0, 2.0, 5.0, 4.0])
    learners = mutual(task, student, teacher, mask=mask, refresh=3000, **options)
    learners[0].start(Epoch(0, 0, 9), [None])
    own = learners[0].terms[0].distiller
    drawn = {"teacher": own._other[0].pool.numpy(), "student": own.pool.numpy()}
    scores = [model.items.weight[:, 0].detach().numpy().copy() for model in (student, teacher)]
    if mask == "multiply":
        for one in scores:
            one[0] = 0.0
    ranks = [(-one).argsort().argsort() for one in scores]
    gap = (ranks[0] - ranks[1]).astype(float)
    for name, weights in zip(("teacher", "student"), (law[0](gap), law[1](gap)), strict=True):
        if mask == "exclude":
            weights = np.where(np.arange(n_items) == 0, 0.0, weights)
        expected = weights / weights.sum() * drawn[name].size
        counts = np.bincount(drawn[name], minlength=n_items)
        assert (counts[expected == 0] == 0).all()
        inside = expected > 0
        statistic = ((counts - expected)[inside] ** 2 / expected[inside]).sum()
        assert statistic < 25, (name, counts, expected)  # 5 degrees of freedom: once in 7,000


def test_a_loss_of_ones_own_is_not_replaced_by_the_closed_form(toy):
    class Mine(BD):
        def loss(self, student, batch):
            return 10 * super().loss(student, batch)

    task = PairTask(toy.train, batch_size=16)
    student, teacher = (BPR(BPR.Config(dim=dim, init_std=0.3), task) for dim in (4, 8))
    mine = Mine(BD.Config(), [ModelTeacher(teacher, task, live=True)], task, 4, 7)
    learner = Learner(student, task, [Term("bd", 0.5, mine)])
    assert learner._tables is None

    class Hinge(BPR):
        def score_loss(self, batch):
            part = super().score_loss(batch)
            return part._replace(of=lambda scores: (scores.sum() * 0, torch.zeros_like(scores)))

    still = Hinge(BPR.Config(dim=4), task)
    before = still.users.weight.clone()
    fit(Learner(still, task, weight_decay=0.0), task, epochs=1)
    assert torch.equal(before, still.users.weight)

    class Held(BPR):
        def score_loss(self, batch):
            return super().score_loss(batch)

        def after_step(self):
            self.norms = self.users.weight.norm(dim=1)

    assert Learner(Held(BPR.Config(dim=4), task), task)._tables is None
    users = PairTask(toy.train, draws="users")
    source = ModelTeacher(BPR(BPR.Config(dim=8), users), users, live=True)
    with pytest.raises(ConfigError, match=r"train\.draws is 'users' with bd"):
        BD(BD.Config(), [source], users, 4, 7)


def test_another_model_is_encoded_once_a_step_beside_a_closed_form(toy):
    """NeuMF beside BPR: its labels and its own loss come from one pass over the batch."""
    task = PairTask(toy.train, batch_size=16)
    student, teacher = BPR(BPR.Config(dim=4), task), NeuMF(NeuMF.Config(dim=8), task)
    learners = mutual(task, student, teacher)
    assert learners[0]._tables is not None
    sizes = []
    whole = teacher.item_part
    teacher.item_part = lambda rows: sizes.append(rows.shape[0]) or whole(rows)
    epoch = Epoch(0, 0, 9)
    for learner in learners:
        learner.start(epoch, [term.distiller.draw(epoch) for term in learner.terms])
    sizes.clear()
    step_of(learners, next(iter(task.draw(epoch))))
    assert max(sizes) <= 2 * 16
