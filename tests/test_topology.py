"""FTD and HTD against the numbers and properties of their paper, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kdrs.distillers import FTD, HTD
from kdrs.distillers._experts import temperature
from kdrs.distillers._hidden import Entities
from kdrs.distillers.ftd import cosine_gap
from kdrs.errors import ConfigError, MissingKnowledge
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from test_distillers import batch_of, bpr, started

BATCH = ([0, 4, 4, 9], [1, 2, 1, 7], [3, 3, 5, 1])


def pairwise(target, source, keep=None):
    """Letter by letter, in float64."""
    t, s = (torch.nn.functional.normalize(v.double(), dim=-1) for v in (target, source))
    squares = (t @ t.T - s @ s.T).square()
    return (squares if keep is None else squares * keep).sum().item()


def made(task, method, teacher_dim=6, **options):
    return method(method.Config(**options), [ModelTeacher(bpr(task, teacher_dim), task)], task, 3, 2)


# --- FTD ------------------------------------------------------------------------------------------------------------


def test_ftd_worked_example():
    assert cosine_gap(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).item() == 2.0


def test_ftd_is_zero_for_a_rotated_and_scaled_teacher():
    torch.manual_seed(0)
    target = torch.randn(300, 20)
    rotation = torch.linalg.qr(torch.randn(20, 20)).Q
    scale = torch.rand(300, 1) + 0.1
    assert cosine_gap(target, target).item() == pytest.approx(0, abs=1e-4)
    assert cosine_gap(target, scale * (target @ rotation)).item() == pytest.approx(0, abs=1e-4)
    assert pairwise(target, torch.randn(300, 5)) > 1000


def test_ftd_is_the_sum_over_pairs_with_its_gradient():
    torch.manual_seed(0)
    target, source = torch.randn(50, 8), torch.randn(50, 3, requires_grad=True)
    loss = cosine_gap(target, source)
    loss.backward()
    assert loss.item() == pytest.approx(pairwise(target, source.detach()), rel=1e-6)
    again = source.detach().double().requires_grad_()
    s = again / again.norm(dim=-1, keepdim=True)
    t = target.double() / target.double().norm(dim=-1, keepdim=True)
    (t @ t.T - s @ s.T).square().sum().backward()
    assert torch.allclose(source.grad.double(), again.grad, rtol=1e-5, atol=1e-6)


def test_ftd_of_a_zero_vector_is_finite():
    source = torch.zeros(3, 2, requires_grad=True)
    loss = cosine_gap(torch.eye(3), source)
    loss.backward()
    assert loss.item() == 3.0
    assert torch.isfinite(source.grad).all()


def test_ftd_counts_each_entity_of_the_batch_once_in_any_order(task):
    student = bpr(task, 3, seed=1)
    distiller = started(made(task, FTD), student, task)

    def loss(arguments):
        batch = batch_of(*arguments)
        return distiller.loss(student(batch.queries), batch).item()

    users, items = torch.tensor([0, 4, 9]), torch.tensor([1, 2, 3, 5, 7])
    teacher = distiller.teacher.model
    target = torch.cat([teacher.users.weight[users], teacher.items.weight[items]])
    source = torch.cat([student.users.weight[users], student.items.weight[items]])
    assert loss(BATCH) == pytest.approx(pairwise(target.detach(), source.detach()), rel=1e-5)
    shuffled = tuple([part[k] for k in (2, 3, 0, 1, 2)] for part in BATCH)
    assert loss(shuffled) == pytest.approx(loss(BATCH), rel=1e-6)


# --- HTD ------------------------------------------------------------------------------------------------------------


def test_htd_entity_level_worked_example(task):
    """One group of (1,0), (0,1), (1,1) in the teacher's space; the student's are (1,0), (1,0), (0,1).

    Positive pairs: the three diagonals (gap 0) and both orders of (a, c), (b, c): (1/√2 - 0)² = ½ each: 2. The pair (a, b)
    has cosine 0: with ``all`` it adds (0 - 1)² twice.
    """
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    source = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    groups = torch.zeros(3, dtype=torch.int64)
    for pairs, expected in (("positive", 2.0), ("all", 4.0)):
        distiller = made(task, HTD, groups=2, pairs=pairs)
        distiller._group_level = lambda *parts: torch.zeros(())
        assert distiller.topology(target, source, groups).item() == pytest.approx(expected, rel=1e-6)


def test_htd_group_level_worked_example(task):
    """Groups {a, b} and {c}: prototypes (½, ½) and (0, 2) in the teacher's space, (1, 0) and (0, 1) in the student's.

    Cosines with a, b, c: teacher (r, r, r) and (0, 1, 1), r = 1/√2; student (1, 1, 0) and (0, 0, 1). Squares:
    2 (1 - r)² + ½ + 1. Between groups: the diagonals agree, (r - 0)² twice: 1.
    """
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    source = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    groups = torch.tensor([0, 0, 3])
    entity = 1 + 1  # within {a, b}: teacher's cosine is 0 and so left out; ``all`` has (0 - 1)² twice
    r = 1 / math.sqrt(2)
    for level, expected in (("second", 2 * (1 - r) ** 2 + 1.5), ("first", 1.0), ("first-detached", 1.0)):
        for pairs, own in (("positive", 0), ("all", entity)):
            distiller = made(task, HTD, groups=2, group_level=level, pairs=pairs)
            assert distiller.topology(target, source, groups).item() == pytest.approx(own + expected, rel=1e-6)


def test_htd_against_a_loop(task):
    torch.manual_seed(0)
    target, source = torch.randn(40, 6), torch.randn(40, 3)
    groups = torch.randint(0, 8, (40,))
    t, s = (v / v.norm(dim=-1, keepdim=True) for v in (target, source))
    expected = 0.0
    for a in range(40):
        for b in range(40):
            cosine = t[a] @ t[b]
            if groups[a] == groups[b] and cosine > 0:
                expected += (cosine - s[a] @ s[b]).square().item()
    for g in groups.unique():
        p_t, p_s = target[groups == g].mean(0), source[groups == g].mean(0)
        for e in range(40):
            gap = torch.cosine_similarity(p_t, target[e], dim=0) - torch.cosine_similarity(p_s, source[e], dim=0)
            expected += gap.square().item()
    distiller = made(task, HTD, groups=4)
    assert distiller.topology(target, source, groups).item() == pytest.approx(expected, rel=1e-5)
    relabelled = torch.randperm(8)[groups]
    assert distiller.topology(target, source, relabelled).item() == pytest.approx(expected, rel=1e-5)


def test_htd_of_one_group_is_ftd_of_users_and_of_items(task):
    """With positive cosines throughout; no pair of a user and an item."""
    student = bpr(task, 3, seed=1)
    distiller = started(made(task, HTD, groups=1, gamma=1.0), student, task)
    with torch.no_grad():
        distiller.teacher.model.users.weight.abs_()
        distiller.teacher.model.items.weight.abs_()
    batch = batch_of(*BATCH)
    entities = Entities(batch, task)
    target, source = entities.of_teacher(distiller.teacher), entities.of_student(student(batch.queries))
    groups = distiller.groups(target)
    assert groups.tolist() == [0] * 3 + [1] * 5
    level = distiller._group_level(
        *(torch.cat(v) for v in (target, source)),
        *(torch.nn.functional.normalize(torch.cat(v), dim=-1) for v in (target, source)),
        torch.tensor([3, 5]),
    ).item()
    entity = cosine_gap(target.users, source.users).item() + cosine_gap(target.items, source.items).item()
    assert distiller.loss(student(batch.queries), batch).item() == pytest.approx(entity + level, rel=1e-5)


def test_htd_mixes_topology_and_assignment(task):
    student, batch = bpr(task, 3, seed=1), batch_of(*BATCH)
    values = {}
    for gamma in (0.0, 0.25, 1.0):
        distiller = started(made(task, HTD, groups=3, gamma=gamma), student, task)
        values[gamma] = distiller.loss(student(batch.queries), batch).item()
    assert values[0.25] == pytest.approx(0.25 * values[1.0] + 0.75 * values[0.0], rel=1e-5)


def test_htd_assignment_of_one_group_is_a_plain_network(task):
    student, batch = bpr(task, 3, seed=1), batch_of(*BATCH)
    distiller = started(made(task, HTD, groups=1, gamma=0.0), student, task)
    entities = Entities(batch, task)
    target, source = entities.of_teacher(distiller.teacher), entities.of_student(student(batch.queries))
    expected = 0.0
    for network, goal, own in zip((distiller.users, distiller.items), target, source, strict=True):
        hidden = torch.relu(own @ network.weight1[0] + network.bias1[0])
        expected += (goal - hidden @ network.weight2[0] - network.bias2[0]).square().sum().item()
    assert distiller.loss(student(batch.queries), batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("gamma", "moved"), [(1.0, False), (0.0, True)])
def test_htd_trains_its_networks_by_the_assignment_alone(task, gamma, moved):
    student, batch = bpr(task, 3, seed=1), batch_of(*BATCH)
    distiller = started(made(task, HTD, groups=3, gamma=gamma), student, task)
    distiller.loss(student(batch.queries), batch).backward()
    gradients = [parameter.grad for parameter in distiller.parameters()]
    assert any((g != 0).any() for g in gradients if g is not None) is moved
    assert all(p.grad is None for p in distiller.teacher.model.parameters())
    assert (student.users.weight.grad.to_dense() != 0).any()


@pytest.mark.parametrize(("level", "flows"), [("second", True), ("first", True), ("first-detached", False)])
def test_htd_gradient_of_the_group_level(task, level, flows):
    torch.manual_seed(0)
    distiller = made(task, HTD, groups=3, group_level=level)
    target, source = torch.randn(9, 6), torch.randn(9, 3, requires_grad=True)
    normal = torch.nn.functional.normalize
    loss = distiller._group_level(
        target, source, normal(target, dim=-1), normal(source, dim=-1), torch.tensor([4, 2, 3])
    )
    assert loss.requires_grad is flows


def test_htd_prototypes_carry_no_gradient_by_default(task):
    """The gradient of the group level is that of fixed prototypes."""
    torch.manual_seed(0)
    distiller, sizes = made(task, HTD, groups=3), torch.tensor([4, 2, 3])
    normal = torch.nn.functional.normalize
    target, source = torch.randn(9, 6), torch.randn(9, 3, requires_grad=True)
    distiller._group_level(target, source, normal(target, dim=-1), normal(source, dim=-1), sizes).backward()
    fixed = source.detach().clone()
    other = fixed.clone().requires_grad_()
    prototypes = [torch.stack([part.mean(0) for part in v.split([4, 2, 3])]) for v in (target, fixed)]
    cosines = [normal(p, dim=-1) @ normal(v, dim=-1).T for p, v in zip(prototypes, (target, other), strict=True)]
    (cosines[0] - cosines[1]).square().sum().backward()
    assert torch.allclose(source.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_htd_temperatures_of_the_code():
    for epoch, tau in ((0, 1.0), (1, 1.0), (2, 10**-0.1), (11, 0.1), (101, 1e-10), (500, 1e-10)):
        assert temperature(epoch, HTD.Config()) == pytest.approx(tau, rel=1e-6)


def test_htd_networks_have_the_papers_width(task):
    assert made(task, HTD, groups=2, teacher_dim=3).users.hidden == 3  # DE would take half where the sizes are equal
    assert made(task, HTD, groups=2, teacher_dim=8).items.hidden == 5


@pytest.mark.parametrize("method", [FTD, HTD])
def test_what_topology_needs(method, task, tmp_path):
    from safetensors.torch import save_file

    lists = torch.from_numpy(ModelTeacher(bpr(task, 6), task).topk(30).items.copy())
    save_file({"topk": lists}, tmp_path / "lists.safetensors", metadata={"kdrs": "teacher/1"})
    with pytest.raises(MissingKnowledge, match="holds only a ranking"):
        method(method.Config(), [FileTeacher(tmp_path / "lists.safetensors", task)], task, 3)
    with pytest.raises(ConfigError, match="got 0 teachers"):
        method(method.Config(), [], task, 3)
