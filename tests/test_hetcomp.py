"""HetComp against the numbers and properties of its paper."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import toy_dataset
from kdrs.core.ranking import Ranking
from kdrs.data import Interactions
from kdrs.distillers import HetComp
from kdrs.distillers.hetcomp import (
    CLAMP,
    best_seen,
    choose_stages,
    discrepancy,
    ensemble,
    progress_asked,
    ranks_of_seen,
    stability,
)
from kdrs.errors import ArtefactError, ConfigError, MissingKnowledge
from kdrs.fitting.fit import fit
from kdrs.fitting.learner import Learner, Term
from kdrs.models import BPR, MODELS
from kdrs.teachers.base import Stage
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training import losses
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Batch, Epoch, Queries


def model(task, dim=4, seed=0, std=0.5):
    torch.manual_seed(seed)
    return BPR(BPR.Config(dim=dim, init_std=std), task)


def trajectory(task, n=4, seed=0):
    """A teacher with n states, the last one itself."""
    states = [ModelTeacher(model(task, 8, seed * 100 + e), task, name=f"t{seed}@{e}", epoch=10 * e) for e in range(n)]
    last = states[-1]
    stages = [Stage(state.epoch, lambda state=state: state) for state in states[:-1]]
    return ModelTeacher(last.model, task, name=f"t{seed}", stages=stages, epoch=last.epoch)


class Lists:
    """A student whose lists are given."""

    name = "lists"

    def __init__(self, items):
        self.items = items

    def topk(self, k):
        return Ranking(self.items[:, :k], np.zeros_like(self.items[:, :k], np.float32))


@pytest.fixture
def pairs():
    return PairTask(toy_dataset().train, batch_size=64)


# --- discrepancy ----------------------------------------------------------------------------------------------------


def test_discrepancy_worked():
    teacher = np.array([[0, 1, 2]])
    for student, rank, position in (([0, 9, 1], 0.743239, 0.715169), ([2, 1, 0], 1 - 0.061105, 1.0)):
        student = np.array([student])
        assert 1 - discrepancy(student, teacher)[0] == pytest.approx(rank, abs=1e-6)
        assert 1 - discrepancy(student, teacher, by_position=True)[0] == pytest.approx(round(position, 4), abs=1e-9)
    assert discrepancy(teacher, teacher)[0] == pytest.approx(0, abs=1e-12)
    assert discrepancy(np.array([[7, 8, 9]]), teacher)[0] == 1.0
    assert discrepancy(np.array([[-1, -1, -1]]), np.array([[0, -1, -1]]))[0] == 1.0


# --- knowledge construction ------------------------------------------------------------------------------------------


def test_states_advance_one_at_a_time_and_all_arrive_by_epoch_120(pairs):
    """Worst case: the student never moves, so that every ratio is 1."""
    teachers = [trajectory(pairs, seed=seed) for seed in (0, 1)]
    distiller = HetComp(HetComp.Config(target=10), teachers, pairs, 4)
    student = Lists(np.tile(np.arange(50, dtype=np.int32), (50, 1)))
    before = distiller.v.clone()
    for index in range(122):
        distiller.on_epoch_start(Epoch(index, 0, 1000), None, student)
        step = distiller.v - before
        assert step.min() >= 0 and step.max() <= 1 and distiller.v.max() <= 3  # noqa: PT018
        if index <= 11:
            assert not step.any()  # the first look, after epoch 10, only takes the measure
        if index % 10 != 1:
            assert not step.any()
        before = distiller.v.clone()
    assert (distiller.v == 3).all()
    assert distiller.fine.all()


def test_without_the_second_test_a_still_student_waits(pairs):
    """Ratio 1 passes the threshold only once it is below 1: from epoch 100 on; a receding one never does."""
    distiller = HetComp(HetComp.Config(target=10, advance_if_receding=False), [trajectory(pairs)], pairs, 4)
    student = Lists(np.tile(np.arange(50, dtype=np.int32), (50, 1)))
    for index in range(101):
        distiller.on_epoch_start(Epoch(index, 0, 1000), None, student)
    assert not distiller.v.any()
    distiller.on_epoch_start(Epoch(101, 0, 1000), None, student)
    assert (distiller.v == 1).all()


def test_a_student_that_has_arrived_counts_as_arrived(pairs):
    """D = 0 to the next state is an infinite gain, not 0 / 0."""
    teacher = trajectory(pairs, n=2)
    distiller = HetComp(HetComp.Config(target=10, states=2, every=1), [teacher], pairs, 4)
    student = Lists(np.asarray(teacher.topk(50).items))
    for index in range(4):
        distiller.on_epoch_start(Epoch(index, 0, 10), None, student)
    assert (distiller.v == 1).all()
    assert distiller.fine.all()


def test_states_nearest_to_quarters():
    task = PairTask(toy_dataset().train)
    base = model(task)
    stages = [Stage(epoch, lambda: None) for epoch in range(0, 120, 10)]
    teacher = ModelTeacher(base, task, stages=stages, epoch=123)
    stages = teacher.stages()
    chosen = [stage.epoch for stage in choose_stages(teacher, stages, HetComp.Config())]
    assert chosen == [30, 60, 90, 123]
    assert [s.epoch for s in choose_stages(teacher, stages, HetComp.Config(choose="first", states=3))] == [0, 10, 20]
    # after 10 to 60 epochs of training, which are numbers 9 to 59; half way between two the earlier one counts
    for epochs, expected in (((9, 19), [9, 9, 9, 19]), (range(9, 60, 10), [9, 29, 39, 59])):
        some = [Stage(epoch, lambda: None) for epoch in epochs]
        assert [stage.epoch for stage in choose_stages(teacher, some, HetComp.Config())] == expected
    unknown = [Stage(-1, lambda: None) for _ in range(8)]
    for count, places in ((8, [1, 3, 5, 7]), (4, [0, 1, 2, 3]), (3, [0, 0, 1, 2]), (2, [0, 0, 0, 1])):
        found = choose_stages(teacher, unknown[:count], HetComp.Config())
        assert [next(i for i, stage in enumerate(unknown) if stage is own) for own in found] == places
    with pytest.raises(MissingKnowledge, match="stages_every"):
        choose_stages(teacher, stages[-1:], HetComp.Config())


def test_sparse_ensemble_is_the_dense_one():
    rng = np.random.default_rng(0)
    lists = np.stack([[[rng.permutation(130)[:100] for _ in range(6)] for _ in range(2)] for _ in range(3)])
    lists = lists.astype(np.int32)
    states = rng.integers(0, 2, (3, 6))
    found = ensemble(lists, states, HetComp.Config(target=20))
    for user in range(6):
        dense = np.zeros(130)
        for m in range(3):
            dense[lists[m, states[m, user], user]] += np.exp(-np.arange(100) / 10)
        assert found[user].tolist() == np.lexsort((np.arange(130), -dense))[:20].tolist()


@pytest.mark.parametrize("importance", ["exp", "ccd"])
def test_equal_importances_go_by_id_whichever_teachers_they_are_of(importance):
    config = HetComp.Config(target=4, importance=importance)
    for order in permutations(range(3)):
        lists = np.array([[7, 9, 5, 2], [5, 7, 9, 2], [9, 5, 7, 2]], np.int32)[list(order), None, None]
        assert ensemble(lists, np.zeros((3, 1), int), config)[0].tolist() == [5, 7, 9, 2]


@pytest.mark.parametrize(("importance", "best"), [("exp", 0), ("ccd", 9)])
def test_importances_of_the_ranks(importance, best):
    """First once is 1; tenth twice is 2 e^-.9 = .813 by exp, 2 · 10^-.05 = 1.783 by ccd."""
    lists = np.array([[0, *range(10, 18), 9], [*range(20, 29), 9]], np.int32)[:, None, None]
    found = ensemble(lists, np.zeros((2, 1), int), HetComp.Config(target=1, importance=importance))
    assert found.tolist() == [[best]]


def by_hand(task, order):
    """A model that ranks the items of every user in this order: float scores 1, 1/2, 1/3, ..."""
    made = BPR(BPR.Config(dim=1), task)
    with torch.no_grad():
        made.users.weight.fill_(1.0)
        made.items.weight[torch.tensor(order), 0] = 1 / torch.arange(1.0, len(order) + 1)
    return made


def test_consistency_worked():
    """Ranks of the last state's items over three stages; nobody has seen items 1 to 4."""
    task = PairTask(Interactions.from_pairs([0, 1], [0, 0], 2, 5))
    orders = [[4, 3, 2, 1, 0], [1, 2, 3, 4, 0], [1, 2, 4, 3, 0]]
    states = [ModelTeacher(by_hand(task, order), task) for order in orders]
    stages = [Stage(epoch, lambda state=state: state) for epoch, state in enumerate(states)]
    lists = np.array([[1, 2, 4, 3], [1, 2, 4, -1]], np.int32)
    ranks = {1: [3, 0, 0], 2: [2, 1, 1], 4: [0, 3, 2], 3: [1, 2, 3]}
    for count in (1, 2, 3, 9):
        found = stability(stages, stages[2], lists, count)
        expected = [np.exp(-np.std(ranks[item][-count:]) / 100) for item in (1, 2, 4, 3)]
        assert found[0] == pytest.approx(expected, abs=1e-6)
        assert found[1] == pytest.approx([*expected[:3], 0], abs=1e-6)
    first = stability(stages, stages[0], lists, 3)
    assert first[0] == pytest.approx(1)


def test_consistency_is_added_to_the_importance(pairs):
    """Once an item is in a list, a steady rank counts for more than some places."""
    lists = np.array([[[[0, 1, 2]]], [[[2, 3, 0]]]], np.int32)  # two teachers of one state, one user
    states = np.zeros((2, 1), np.int64)
    stable = np.array([[[[0.1, 1.0, 0.0]]], [[[0.0, 1.0, 0.0]]]], np.float32)
    config = HetComp.Config(target=4, states=1)
    assert ensemble(lists, states, config)[0].tolist() == [0, 2, 1, 3]  # 0 and 2: 1 + exp(-.2); 1 and 3: exp(-.1)
    assert ensemble(lists, states, config, stable)[0].tolist() == [0, 1, 3, 2]
    teacher = trajectory(pairs)
    made = HetComp(HetComp.Config(target=10, consistency=5), [teacher], pairs, 4)
    plain = HetComp(HetComp.Config(target=10), [teacher], pairs, 4)
    assert made.stability.shape == made.lists.shape
    assert not torch.equal(made.targets, plain.targets) or (made.stability[:, 0] == 1).all()
    made.v.fill_(3)
    plain.v.fill_(3)
    made._build()
    plain._build()
    assert not torch.equal(made.targets, plain.targets)
    with pytest.raises(ConfigError, match="consistency is 5 with importance"):
        HetComp(HetComp.Config(target=10, consistency=5, importance="ccd"), [teacher], pairs, 4)


# --- trajectories from files ----------------------------------------------------------------------------------------


def write_stages(folder, teacher, kind, names, length=100):
    folder.mkdir()
    for name, stage in zip(names, teacher.stages(), strict=True):
        state = stage.load()
        if kind == "vectors":
            factors = state.factors()
            tensors = {"users": factors.queries.contiguous(), "items": factors.items.contiguous()}
        else:
            tensors = {"topk": torch.from_numpy(np.ascontiguousarray(state.topk(length).items))}
        save_file(tensors, folder / f"{name}.safetensors", metadata={"kdrs": "teacher/1"})
    return FileTeacher.trajectory(folder, teacher.task)


@pytest.mark.filterwarnings("ignore:.*taken on trust")
@pytest.mark.parametrize("names", [["0", "10", "20", "30"], ["a", "b", "c", "d"]])
@pytest.mark.parametrize("kind", ["vectors", "topk"])
def test_a_trajectory_of_files_is_that_of_its_models(pairs, tmp_path, kind, names):
    teacher = trajectory(pairs)
    files = write_stages(tmp_path / "t", teacher, kind, names)
    assert [stage.epoch for stage in files.stages()] == ([0, 10, 20, 30] if names[0] == "0" else [-1] * 4)
    options = {"target": 10, "observed": "ensemble" if kind == "vectors" else "stored", "consistency": 2}
    if names[0] == "a":  # of unknown epochs all four count; the quarters of 30 are 10, 10, 20 and 30
        options["choose"] = "first"
    ours, theirs = (HetComp(HetComp.Config(**options), [source], pairs, 4) for source in (files, teacher))
    assert np.array_equal(ours.lists, theirs.lists)
    assert np.array_equal(ours.stability, theirs.stability)
    assert torch.equal(ours._observed, theirs._observed)
    assert torch.equal(ours.targets, theirs.targets)


@pytest.mark.filterwarnings("ignore:.*taken on trust")
def test_trajectories_of_rankings_say_what_they_lack(pairs, tmp_path):
    files = write_stages(tmp_path / "t", trajectory(pairs), "topk", ["9", "10", "100", "1000"])
    assert [stage.epoch for stage in files.stages()] == [9, 10, 100, 1000]  # by number, not by letter
    with pytest.raises(MissingKnowledge, match='observed = "stored"'):
        HetComp(HetComp.Config(target=10), [files], pairs, 4)
    with pytest.raises(MissingKnowledge, match="1 state"):
        HetComp(HetComp.Config(target=10), [FileTeacher(tmp_path / "t/9.safetensors", pairs)], pairs, 4)
    with pytest.raises(ArtefactError, match="no teacher files"):
        FileTeacher.trajectory(tmp_path, pairs)


def test_one_teacher_of_one_state_is_its_list_and_fine_from_the_start(pairs):
    teacher = ModelTeacher(model(pairs), pairs)
    distiller = HetComp(HetComp.Config(target=30, states=1), [teacher], pairs, 4)
    assert np.array_equal(distiller.targets.numpy(), np.asarray(teacher.topk(30).items))
    assert distiller.fine.all()


def test_no_seen_item_is_a_target(pairs):
    distiller = HetComp(HetComp.Config(target=40), [trajectory(pairs)], pairs, 4)
    seen = pairs.seen.to_csr().toarray() > 0
    rows, places = (distiller.targets >= 0).nonzero(as_tuple=True)
    assert not seen[rows.numpy(), distiller.targets[rows, places].numpy()].any()


def test_observed_items_are_ranked_among_themselves():
    task = PairTask(Interactions.from_pairs([0, 0, 0, 1, 2], [4, 1, 3, 0, 2], 4, 6))
    scores = torch.tensor([1.0, 5.0, 2.0, 3.0, 5.0, 0.0])
    teacher = BPR(BPR.Config(dim=1), task)
    with torch.no_grad():
        teacher.users.weight.fill_(1.0)
        teacher.items.weight.copy_(scores[:, None])
    ranks = ranks_of_seen(ModelTeacher(teacher, task), task)
    assert ranks.tolist() == [0, 2, 1, 0, 0]  # items 1, 3, 4 of user 0: a tie goes to the lower id
    own = best_seen(task, np.exp(-ranks / 10), 2)
    assert own.tolist() == [[1, 4], [0, -1], [2, -1], [-1, -1]]


# --- losses ---------------------------------------------------------------------------------------------------------


def worked(scores, seen, targets, observed, **options):
    """One user over the items with these scores."""
    task = PairTask(Interactions.from_pairs([0] * len(seen), seen, 1, len(scores)))
    student = BPR(BPR.Config(dim=1), task)
    with torch.no_grad():
        student.users.weight.fill_(1.0)
        student.items.weight.copy_(torch.tensor(scores)[:, None])
    distiller = HetComp(
        HetComp.Config(
            target=len(targets), states=1, observed_items=len(observed), overall_weight=1, fine_weight=1, **options
        ),
        [ModelTeacher(student, task)],
        task,
        1,
    )
    distiller.targets.copy_(torch.tensor([targets], dtype=torch.int32))
    distiller._observed = torch.tensor([observed])
    batch = Batch(Queries(torch.tensor([0, 0]), torch.tensor([0, 0])), torch.tensor([0, 0]), torch.tensor([[1], [1]]))
    return distiller, student, batch


SCORES = [2.0, 1.0, 0.0, -1.0]


def test_overall_loss_worked():
    distiller, student, batch = worked(SCORES, [0], [1, 2], [0])
    distiller.fine.fill_(False)
    loss = distiller.loss(student(batch.queries), batch)
    assert loss.item() == pytest.approx(0.048587 + 0.126928 + 0.313262, abs=1e-6)
    again = distiller.loss(student(batch.queries), batch)
    distiller.targets.copy_(torch.tensor([[2, 1]]))
    assert distiller.loss(student(batch.queries), batch).item() == pytest.approx(again.item(), abs=1e-6)


def test_fine_loss_worked_and_ordered():
    distiller, student, batch = worked(SCORES, [0], [1, 2], [0])
    loss = distiller.loss(student(batch.queries), batch).item()
    assert loss == pytest.approx(0.720868 + 0.048587, abs=1e-6)  # RR((1, 0), {-1}) + the observed item
    distiller.targets.copy_(torch.tensor([[2, 1]]))
    assert distiller.loss(student(batch.queries), batch).item() > loss + 0.1


def test_released_form_of_the_fine_loss():
    """With K = 20: lists of the first 10 and 2, each against all unseen items outside it."""
    rng = np.random.default_rng(1)
    scores = rng.normal(size=40).tolist()
    targets = rng.permutation(np.arange(5, 40))[:20].tolist()
    distiller, student, batch = worked(scores, [0, 1, 2, 3, 4], targets, [3, 1], fine="released")
    found = distiller.loss(student(batch.queries), batch).item()
    s = torch.tensor(scores, dtype=torch.float64)

    def part(listed, cut):
        rest = [i for i in range(5, 40) if i not in targets[:cut]]
        return losses.relaxed_ranking(s[listed][None], s[rest][None]).item()

    expected = part([3, 1], 10) + 0.5 * (part(targets[:10], 10) + part(targets[:2], 2))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fine", [False, True])
def test_shifts_change_nothing_and_gradients_sum_to_zero(fine):
    distiller, student, batch = worked(SCORES, [0], [1, 2], [0])
    distiller.fine.fill_(fine)
    before = distiller.loss(student(batch.queries), batch)
    before.backward()
    gradient = student.items.weight.grad.to_dense()
    assert gradient.sum().item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        student.items.weight.add_(3.0)
    assert distiller.loss(student(batch.queries), batch).item() == pytest.approx(before.item(), abs=1e-5)


def test_a_target_does_not_compete_with_another_in_the_first_stage():
    distiller, student, batch = worked(SCORES, [0], [1, 2], [0])
    distiller.fine.fill_(False)
    distiller.loss(student(batch.queries), batch).backward()
    gradient = student.items.weight.grad.to_dense()[:, 0]
    alone = -torch.sigmoid(torch.tensor([-3.0, -2.0, -1.0]))
    assert torch.allclose(gradient[:3], alone, atol=1e-6)


@pytest.mark.parametrize("name", ["bpr", "lightgcn", "neumf", "cml", "iae"])
def test_the_sum_below_the_target_whatever_the_model_and_the_blocks(pairs, monkeypatch, name: str):
    """Models whose scores are no products go through blocks of users whose scores are made twice."""
    teacher = trajectory(pairs)
    task = MODELS[name].make_task(MODELS[name].Config(dim=4), pairs.seen, batch_size=16, n_negatives=1)
    distiller = HetComp(HetComp.Config(target=10), [teacher], task, 4)
    batch = next(iter(task.draw(Epoch(0, 0, 1))))
    users = batch.unique_queries
    targets = distiller.targets[batch.queries.users[users.first]].long()
    hidden = torch.zeros(len(users.ids), task.n_items, dtype=torch.bool)
    hidden[distiller._hidden(batch.queries.users[users.first], targets)] = True

    def ours(view):
        return distiller._below(view, batch, users.first, batch.queries.users[users.first], targets)

    def dense(view):
        scores = view.at(batch.queries.at(users.first)).all_scores().clamp(-CLAMP, CLAMP)
        return scores.masked_fill(hidden, -torch.inf).logsumexp(1)

    results = []
    for function, size in ((dense, 0), (ours, 1 << 26), (ours, 300)):
        monkeypatch.setattr("kdrs.distillers.hetcomp.BLOCK_FLOATS", size)
        torch.manual_seed(3)
        student = MODELS[name](MODELS[name].Config(dim=4), task)
        value = function(student(batch.queries))
        (value * torch.arange(1.0, 1 + len(value))).sum().backward()
        gradients = [p.grad.to_dense() for p in student.parameters() if p.grad is not None]
        results.append([value.detach(), *gradients])
    for other in results[1:]:
        assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(results[0], other, strict=True))


def test_drawn_background_estimates_the_exact_sum(pairs):
    exact = HetComp(HetComp.Config(target=10), [trajectory(pairs)], pairs, 4)
    student, batch = model(pairs, seed=3), next(iter(pairs.draw(Epoch(0, 0, 1))))
    wanted = exact.loss(student(batch.queries), batch).item()
    drawn = HetComp(HetComp.Config(target=10, background=79), [trajectory(pairs)], pairs, 4)
    drawn.on_epoch_start(Epoch(0, 0, 1), None, Lists(np.zeros((50, 50), np.int32)))
    assert drawn.loss(student(batch.queries), batch).item() == pytest.approx(wanted, rel=1e-5)  # all of them: exact
    few = HetComp(HetComp.Config(target=10, background=20), [trajectory(pairs)], pairs, 4)
    found = []
    for index in range(40):
        few.on_epoch_start(Epoch(0, index, 1), None, Lists(np.zeros((50, 50), np.int32)))
        few.seed = index + 1
        found.append(few.loss(student(batch.queries), batch).item())
    assert np.mean(found) == pytest.approx(wanted, rel=0.02)


def test_users_once_a_batch_or_once_a_row(pairs):
    batch = next(iter(pairs.draw(Epoch(0, 0, 1))))
    student = model(pairs, seed=3)
    once, rows = (
        HetComp(HetComp.Config(target=10, unique_queries=unique), [trajectory(pairs)], pairs, 4).loss(
            student(batch.queries), batch
        )
        for unique in (True, False)
    )
    assert rows.item() > once.item() * 1.1


def test_the_second_stage_restarts_patience_once(pairs):
    distiller = HetComp(HetComp.Config(target=10, states=2, every=1), [trajectory(pairs, n=2)], pairs, 4)
    learner = Learner(model(pairs), pairs, [Term("hetcomp", 1.0, distiller)], base=None, lr=1e-2)
    seen = []
    fit(learner, pairs, epochs=14, on_epoch=lambda row: seen.append(distiller.restarts_patience))
    assert sum(seen) == 1
    assert distiller.fine.all()
    assert distiller.replaces_base


def test_the_second_stage_begins_when_rounded_means_are_final(pairs):
    teacher = trajectory(pairs)
    by_stage = {
        stage: HetComp(HetComp.Config(target=10, stage=stage), [teacher], pairs, 4)
        for stage in ("all", "rounded", "user")
    }
    for distiller in by_stage.values():
        distiller.v.fill_(3)
        distiller.v[0, 5] = 2
        distiller._build()
    last = pairs.n_users - 1
    assert not by_stage["all"].fine.any()
    assert not by_stage["rounded"].fine.any()  # 1 of 50 users: the mean is 2.98
    assert by_stage["user"].fine.sum() == last
    many = by_stage["rounded"]
    many.v = torch.full((2, 400), 3, dtype=torch.int64)
    many.v[0, 5] = 2
    many.fine, many.targets = torch.zeros(400, dtype=torch.bool), torch.zeros(400, 10, dtype=torch.int32)
    many.lists = np.zeros((2, 4, 400, 10), np.int32)
    many._build()  # 2.9975 rounds to 3
    assert many.fine.all()


def test_a_target_is_no_longer_than_the_lists(pairs):
    with pytest.raises(ConfigError, match="target is 101 with 1 teacher"):
        HetComp(HetComp.Config(target=101), [trajectory(pairs)], pairs, 4)
    two = [trajectory(pairs), trajectory(pairs)]
    most = pairs.n_items - int(pairs.seen.row_degrees.min())
    with pytest.raises(ConfigError, match=f"target is 150, and no user has more than {most} unseen items"):
        HetComp(HetComp.Config(target=150), two, pairs, 4)
    assert HetComp(HetComp.Config(target=most - 1), two, pairs, 4).targets.shape == (pairs.n_users, most - 1)


def test_progress_asked_by_epoch():
    found = [progress_asked(HetComp.Config(), epoch) for epoch in (10, 20, 50, 90, 100, 200)]
    assert found == pytest.approx([1.04475, 1.03953, 1.02401, 1.00368, 0.99867, 0.94984], abs=5e-6)
