"""Ranking distillation against its worked numbers, its paper's properties, and slow forms of its parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import toy_dataset
from kdrs.data import Interactions
from kdrs.distillers import RD
from kdrs.distillers.rd import discrepancy, estimated_ranks, importance
from kdrs.errors import ConfigError, MissingKnowledge
from kdrs.fitting.fit import fit
from kdrs.fitting.learner import Learner, Term
from kdrs.models import MODELS, LightGCN
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Batch, Epoch, Queries
from kdrs.training.view import DotView


def raw(k: int, temperature: float = 1.0) -> torch.Tensor:
    return torch.exp(-torch.arange(1, k + 1) / temperature)


def view_of(task, users: torch.Tensor, items: torch.Tensor, rows: torch.Tensor) -> DotView:
    return DotView(Queries(rows, rows), lambda q: users[q.users], lambda ids: items[ids], lambda: items)


def bpr(task, dim: int = 6, seed: int = 0, std: float = 1.0):
    torch.manual_seed(seed)
    cls = MODELS["bpr"]
    return cls(cls.Config(dim=dim, init_std=std), task)


def made(task, **options) -> RD:
    return RD(RD.Config(**options), [ModelTeacher(bpr(task, seed=1), task)], task, 6)


def start(distiller: RD, epoch: int, total: int = 20, student: ModelTeacher | None = None) -> None:
    at = Epoch(epoch, 0, total)
    distiller.on_epoch_start(
        at, distiller.draw(at), student or ModelTeacher(bpr(distiller.task), distiller.task, live=True)
    )


def first_batch(task) -> Batch:
    return task.draw(Epoch(0, 0, 1))[0]


# --- worked numbers -------------------------------------------------------------------------------------------------


def test_importance_of_two_positions_and_the_loss_of_zero_scores():
    weights = importance(raw(2), torch.ones(1, 2, dtype=torch.bool))
    assert weights[0].tolist() == pytest.approx([0.7310586, 0.2689414], abs=5e-8)
    task = PairTask(Interactions.from_pairs([0, 0, 1], [0, 1, 2], 2, 5), batch_size=4)
    distiller = made(task, items=2)
    start(distiller, 0)
    zero = view_of(task, torch.zeros(2, 3), torch.zeros(5, 3), torch.tensor([1]))
    batch = Batch(Queries(torch.tensor([1]), torch.tensor([1])), torch.tensor([2]), torch.tensor([[0]]))
    assert distiller.loss(zero, batch).item() == pytest.approx(math.log(2), abs=1e-6)


def test_importance_of_ten_positions():
    weights = importance(raw(10), torch.ones(1, 10, dtype=torch.bool))[0]
    assert weights[:3].tolist() == pytest.approx([0.632149, 0.232555, 0.085552], abs=5e-7)
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)


def test_a_short_list_shares_the_importance_of_a_whole_one():
    present = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    weights = importance(raw(3), present)
    assert weights[0].tolist() == pytest.approx([0.7310586, 0.2689414, 0.0], abs=1e-6)
    assert weights[1].tolist() == [1.0, 0.0, 0.0]
    assert weights[2].tolist() == [0.0, 0.0, 0.0]


def test_estimated_ranks_and_both_forms_of_the_weight():
    """K = 2, μ = 0.1, I = 1001, ε = 100, 3 and 0 samples above: ranks 31 and 1, discrepancies tanh 3 and 0."""
    scores = torch.tensor([[0.5, 2.0]])
    others = torch.cat([torch.full((1, 3), 1.0), torch.full((1, 97), -1.0)], dim=1)
    ranks = estimated_ranks(scores, others, None, 1001)
    assert ranks.tolist() == [[31, 1]]
    b = discrepancy(ranks, torch.tensor([1, 2]), 0.1)
    assert b[0].tolist() == pytest.approx([0.9950548, 0.0], abs=5e-8)
    product = importance(raw(2), torch.ones(1, 2, dtype=torch.bool)) * b
    assert product[0, 0].item() == pytest.approx(0.727443, abs=5e-7)
    assert (product / product.sum(-1, keepdim=True)).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(("form", "weight"), [("product", 0.727443), ("normalised", 1.0)])
def test_the_weight_in_the_loss(form: str, weight: float, monkeypatch: pytest.MonkeyPatch):
    """The same case through the loss: the second item is above all samples and counts nothing."""
    task = PairTask(Interactions.from_pairs([0], [1000], 1, 1001))
    distiller = made(task, items=2, warmup_epochs=0, weights=form)
    distiller.lists = torch.tensor([[0, 1]], dtype=torch.int32)
    monkeypatch.setattr(distiller, "_sample", lambda users, seed: np.array([[2] * 3 + [3] * 97], np.int32))
    start(distiller, 0)
    items = torch.zeros(1001, 1)
    items[:4, 0] = torch.tensor([0.5, 2.0, 1.0, -1.0])
    rows = torch.tensor([0])
    batch = Batch(Queries(rows, rows), torch.tensor([1000]), torch.tensor([[5]]))
    loss = distiller.loss(view_of(task, torch.ones(1, 1), items, rows), batch).item()
    assert loss == pytest.approx(weight * math.log1p(math.exp(-0.5)), rel=1e-6)


def test_ranks_are_exact_where_float32_is_not():
    n = 100_000_000
    ranks = estimated_ranks(torch.zeros(1, 1), torch.tensor([[1.0] * 77 + [-1.0] * 23]), None, n)
    assert ranks.item() == (n - 1) * 77 // 100 + 1


def test_samples_that_do_not_exist_count_as_not_above():
    others = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    real = torch.tensor([[[True, False, False, True]]])
    assert estimated_ranks(torch.zeros(1, 1), others, real, 101).item() == 100 * 2 // 4 + 1


# --- the whole loss against a slow form -----------------------------------------------------------------------------


def slow_loss(distiller, student, batch, users, lists, drawn, k, warming) -> float:
    """Queries, positions and samples one by one, in float64."""
    n_items, total = distiller.task.n_items, 0.0
    for row, user in enumerate(users):
        scores = student.users.weight[user].double() @ student.items.weight.double().T
        own = [i for i in lists[row] if i >= 0]
        a = [math.exp(-r / distiller.config.temperature) for r in range(1, len(own) + 1)]
        w = [x / sum(a) for x in a]
        if not warming:
            b = []
            for r, item in enumerate(own, 1):
                above = sum(bool(scores[j] > scores[item]) for j in drawn[row])
                rank = (n_items - 1) * above // len(drawn[row]) + 1
                b.append(math.tanh(max(distiller.config.sharpness * (rank - r), 0)))
            w = [x * y for x, y in zip(w, b, strict=True)]
            if distiller.config.weights == "normalised":
                w = [x / sum(w) if sum(w) else 0.0 for x in w]
        total += sum(x * F.softplus(-scores[item]).item() for x, item in zip(w, own, strict=True))
    return total


@pytest.mark.parametrize("draws", ["batch", "epoch"])
@pytest.mark.parametrize("weights", ["normalised", "product"])
@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("epoch", [0, 1])
def test_loss_against_a_slow_form(draws, weights, unique, epoch):
    task = PairTask(toy_dataset().train, batch_size=60)
    options = {"items": 5, "samples": 17, "temperature": 2.0, "warmup_epochs": 1}
    distiller = made(task, draws=draws, weights=weights, unique_queries=unique, **options)
    start(distiller, epoch)
    student = bpr(task, seed=3)
    batch = first_batch(task)
    seen_draws = []
    original = distiller._samples
    distiller._samples = lambda *a: seen_draws.append(original(*a)) or seen_draws[-1]
    loss = distiller.loss(student(batch.queries), batch).item()
    users = batch.queries.users.tolist()
    if unique:
        users = sorted(set(users))
    assert len(users) < 60 if unique else len(users) == 60
    drawn = seen_draws[0].tolist() if seen_draws else [[]] * len(users)
    seen = [set(task.seen.row(user)) for user in users]
    assert not any(set(row) & own for row, own in zip(drawn, seen, strict=True))
    lists = distiller.lists[torch.tensor(users)].tolist()
    expected = slow_loss(distiller, student, batch, users, lists, drawn, 5, epoch == 0)
    assert loss == pytest.approx(expected, rel=1e-5)
    distiller.config = RD.Config(**{**distiller.config.model_dump(), "reduction": "mean"})
    start(distiller, epoch)
    assert distiller.loss(student(batch.queries), batch).item() == pytest.approx(expected / len(users), rel=1e-5)


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize(
    ("reduction", "base", "averaged"),
    [("base", "mean", True), ("base", "sum", False), ("sum", "mean", False), ("mean", "sum", True)],
)
def test_queries_are_averaged_where_the_base_loss_is(reduction, base, averaged, unique):
    task = PairTask(toy_dataset().train, batch_size=60)
    torch.manual_seed(3)
    student = LightGCN(LightGCN.Config(dim=6, reduction=base), task)
    batch = first_batch(task)

    def loss(reduction: str) -> float:
        distiller = made(task, items=5, reduction=reduction, unique_queries=unique)
        start(distiller, 0, student=ModelTeacher(student, task, live=True))
        return distiller.loss(student(batch.queries), batch).item()

    count = len(set(batch.queries.users.tolist())) if unique else 60
    assert loss(reduction) == pytest.approx(loss("sum") / (count if averaged else 1), rel=1e-6)


def test_an_agreeing_student_has_no_loss_after_the_warm_up():
    """Nothing unseen is above the teacher's best item: all discrepancies are 0, weights are 0 and not 0/0."""
    task = PairTask(toy_dataset().train, batch_size=60)
    distiller = made(task, items=1, warmup_epochs=0)
    start(distiller, 0)
    batch = first_batch(task)
    teacher = bpr(task, seed=1)
    assert distiller.loss(teacher(batch.queries), batch).item() == 0.0


# --- properties -----------------------------------------------------------------------------------------------------


def test_the_loss_is_positive_and_falls_with_every_weighted_score():
    task = PairTask(Interactions.from_pairs([0, 1], [0, 1], 2, 6))
    distiller = made(task, items=3)
    start(distiller, 0)
    rows = torch.tensor([0])
    batch = Batch(Queries(rows, rows), torch.tensor([0]), torch.tensor([[5]]))
    listed = distiller.lists[0].long()

    def loss(scores: torch.Tensor) -> float:
        return distiller.loss(view_of(task, torch.ones(2, 1), scores.unsqueeze(1), rows), batch).item()

    scores = torch.linspace(-3, 3, 6)
    base = loss(scores)
    assert base > 0
    for item in listed:
        better = scores.clone()
        better[item] += 0.5
        assert loss(better) < base
    others = [i for i in range(6) if i not in listed.tolist()]
    better = scores.clone()
    better[others] += 5
    assert loss(better) == base


def test_gradient_reaches_the_listed_scores_alone():
    """None into weights, teacher or sampled items: the gradient is that of the loss with its weights held fixed."""
    task = PairTask(toy_dataset().train, batch_size=32)
    distiller = made(task, items=4, samples=30, warmup_epochs=0, weights="product")
    start(distiller, 0)
    student = bpr(task, seed=5)
    batch = first_batch(task)
    distiller.loss(student(batch.queries), batch).backward()
    touched = set(student.items.weight.grad.coalesce().indices()[0].tolist())
    assert touched <= set(distiller.lists[batch.queries.rows].flatten().tolist())
    assert all(p.grad is None for p in distiller.parameters())


def test_weight_zero_is_the_plain_student_and_warm_up_ends_when_stated():
    task = PairTask(toy_dataset().train, batch_size=64)

    def trained(weight: float, epochs: int = 2, **options):
        learner = Learner(bpr(task, std=0.01), task, [Term("rd", weight, made(task, **options))] if weight >= 0 else [])
        fit(learner, task, epochs=epochs)
        return learner.model.users.weight.detach()

    assert torch.equal(trained(0.0), trained(-1.0))
    late, later = trained(1.0, warmup_epochs=2), trained(1.0, warmup_epochs=7)
    assert torch.equal(late, later)
    assert not torch.equal(trained(1.0, warmup_epochs=1), late)


def test_samples_differ_from_batch_to_batch_and_are_the_same_again():
    task = PairTask(toy_dataset().train, batch_size=64)
    distiller = made(task, warmup_epochs=0)
    batch = first_batch(task)

    def drawn() -> torch.Tensor:
        return distiller._samples(batch, *distiller._queries(batch))

    start(distiller, 3)
    first, second = drawn(), drawn()
    assert not torch.equal(first, second)
    start(distiller, 3)
    assert torch.equal(drawn(), first)
    start(distiller, 4)
    assert not torch.equal(drawn(), first)


# --- lists ----------------------------------------------------------------------------------------------------------


def test_lists_are_the_teachers_best_unseen():
    task = PairTask(toy_dataset().train)
    distiller = made(task, items=7)
    teacher = bpr(task, seed=1)
    scores = (teacher.users.weight @ teacher.items.weight.T).detach().numpy()
    for user in range(task.n_users):
        scores[user, task.seen.row(user)] = -np.inf
    assert np.array_equal(distiller.lists.numpy(), np.argsort(-scores, axis=1, kind="stable")[:, :7])


def test_target_only_leaves_out_the_rows_own_target():
    task = PairTask(toy_dataset().train, batch_size=200)
    distiller = made(task, items=6, exclude="target-only")
    teacher = bpr(task, seed=1)
    scores = (teacher.users.weight @ teacher.items.weight.T).detach().numpy()
    best = np.argsort(-scores, axis=1, kind="stable")
    batch = first_batch(task)
    queries, rows = distiller._queries(batch)
    items, present = distiller._listed(batch, queries, rows)
    assert present.all()
    dropped = 0
    for row, (user, target) in enumerate(zip(batch.queries.users.tolist(), batch.positives.tolist(), strict=True)):
        expected = [i for i in best[user] if i != target][:6]
        dropped += target in best[user][:6]
        assert items[row].tolist() == expected
    assert dropped > 0


def test_target_only_with_several_targets_a_row():
    data = toy_dataset()
    cls = MODELS["sasrec"]
    task = cls.make_task(cls.Config(dim=4, length=6), data.train, order=data.order, batch_size=20)
    torch.manual_seed(0)
    teacher = ModelTeacher(cls(cls.Config(dim=4, length=6), task), task)
    distiller = RD(RD.Config(items=10, exclude="target-only"), [teacher], task, 4)
    batch = first_batch(task)
    queries, rows = distiller._queries(batch)
    items, present = distiller._listed(batch, queries, rows)
    for row in range(20):
        targets = set(batch.positives[batch.positive_rows == row].tolist())
        expected = [i for i in distiller.lists[queries[row]].tolist() if i not in targets][:10]
        assert items[row][present[row]].tolist() == expected


def test_a_list_shorter_than_k_is_what_there_is():
    """One user has seen all items but one."""
    task = PairTask(Interactions.from_pairs([0, 0, 0, 1], [0, 1, 2, 1], 2, 4), batch_size=4)
    distiller = made(task, items=3, warmup_epochs=0, samples=5)
    assert distiller.lists[0].tolist() == [3, -1, -1]
    start(distiller, 0)
    batch = first_batch(task)
    loss = distiller.loss(bpr(task, seed=2)(batch.queries), batch)
    assert torch.isfinite(loss)


def test_wrong_use_is_refused_when_built(tmp_path):
    from safetensors.torch import save_file

    task = PairTask(toy_dataset().train)
    with pytest.raises(ConfigError, match=r"items is 81, the catalogue has 80 items(.|\n)*allowed: 1 to 80"):
        made(task, items=81)
    with pytest.raises(ConfigError, match="takes exactly 1"):
        RD(RD.Config(), [], task, 6)
    made(task, items=80)
    lists = torch.arange(8, dtype=torch.int32).repeat(50, 1)
    save_file({"topk": lists}, tmp_path / "t.safetensors", metadata={"kdrs": "teacher/1"})
    with pytest.raises(MissingKnowledge):
        RD(RD.Config(items=9), [FileTeacher(tmp_path / "t.safetensors", task)], task, 6)
    with pytest.raises(MissingKnowledge):
        RD(RD.Config(exclude="target-only"), [FileTeacher(tmp_path / "t.safetensors", task)], task, 6)
