"""Hints and PHR against the numbers and properties of their definitions, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import toy_dataset
from kdrs.data import Interactions
from kdrs.distillers import DE, DGKD, PHR, TAKD, HintRegression, HyperKDMA
from kdrs.distillers._experts import Experts
from kdrs.distillers._hidden import (
    BatchNeighbourhoods,
    Entities,
    ExpertHint,
    Neighbourhoods,
    PersonalConfig,
    PersonalHint,
    Vectors,
    noise_seed,
)
from kdrs.errors import ConfigError, MissingKnowledge
from kdrs.fitting.fit import fit
from kdrs.fitting.learner import Learner, Term
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch
from test_distillers import batch_of, bpr, started
from test_hint_chains import sources

CPU = torch.device("cpu")


def personal(d_t: int, d_s: int, **options) -> PersonalHint:
    return PersonalHint(PersonalConfig(**options), d_s, d_t, 0, CPU)


def constant(hint: PersonalHint, mapping: list[float]) -> PersonalHint:
    with torch.no_grad():
        hint.second.weight.zero_()
        hint.second.bias.copy_(torch.tensor(mapping))
    return hint


# --- PHR ------------------------------------------------------------------------------------------------------------


def test_phr_worked_example():
    hint = constant(personal(2, 1), [2.0, -1.0])
    assert hint.losses("users", torch.tensor([[5.0, -3.0]]), torch.tensor([[3.0]])).tolist() == [1.0]


def test_phr_reads_the_mapping_row_by_row():
    """Θ is d_T x d_S: with Θ = [[1, 2], [3, 4], [5, 6]] and h_S = (1, 10) the lifted vector is (21, 43, 65)."""
    hint = constant(personal(3, 2), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    target = torch.tensor([[21.0, 43.0, 65.0], [22.0, 43.0, 63.0]])
    assert hint.losses("items", target, torch.tensor([[1.0, 10.0]]).expand(2, 2)).tolist() == [0.0, 5.0]


def test_phr_enrichment_worked_example():
    """h(u) = (2, 0), neighbours (0, 2) and (4, 2): v = (2, 1). One item has no user, one user no item."""
    task = PairTask(Interactions.from_pairs([0, 0, 1], [0, 1, 1], 3, 3))
    teacher = bpr(task, 2)
    with torch.no_grad():
        teacher.users.weight.copy_(torch.tensor([[2.0, 0.0], [6.0, 2.0], [9.0, 9.0]]))
        teacher.items.weight.copy_(torch.tensor([[0.0, 2.0], [4.0, 2.0], [7.0, 5.0]]))
    knowledge = ModelTeacher(teacher, task)
    entities = Entities(batch_of([0, 1, 2], [0, 1, 0], [2, 2, 2]), task)
    enriched = Neighbourhoods(knowledge, task).enrich(entities, entities.of_teacher(knowledge))
    assert enriched.users.tolist() == [[2.0, 1.0], [5.0, 2.0], [9.0, 9.0]]
    assert enriched.items.tolist() == [[1.0, 1.0], [4.0, 1.5], [7.0, 5.0]]


def test_phr_enrichment_within_the_batch_worked_example():
    """As above, but of the items only 1 and 2 and of the users only 0 and 2 are in the batch: user 0 sees item 1 alone, item
    1 user 0 alone."""
    task = PairTask(Interactions.from_pairs([0, 0, 1], [0, 1, 1], 3, 3))
    teacher = bpr(task, 2)
    with torch.no_grad():
        teacher.users.weight.copy_(torch.tensor([[2.0, 0.0], [6.0, 2.0], [9.0, 9.0]]))
        teacher.items.weight.copy_(torch.tensor([[0.0, 2.0], [4.0, 2.0], [7.0, 5.0]]))
    knowledge = ModelTeacher(teacher, task)
    entities = Entities(batch_of([0, 2, 0], [1, 1, 1], [2, 2, 2]), task)
    enriched = BatchNeighbourhoods(task).enrich(entities, entities.of_teacher(knowledge))
    assert enriched.users.tolist() == [[3.0, 1.0], [9.0, 9.0]]
    assert enriched.items.tolist() == [[3.0, 1.0], [7.0, 5.0]]


def test_phr_enrichment_of_a_batch_that_holds_everything_is_the_full_one(task):
    knowledge = ModelTeacher(bpr(task, 6), task)
    users = torch.arange(80) % task.n_users
    entities = Entities(batch_of(users.tolist(), list(range(80)), list(range(80))), task)
    vectors = entities.of_teacher(knowledge)
    for mine, theirs in zip(
        BatchNeighbourhoods(task).enrich(entities, vectors), Neighbourhoods(knowledge, task).enrich(entities, vectors),
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_phr_enrichment_against_a_loop(task, toy):
    knowledge = ModelTeacher(bpr(task, 6), task)
    users, items = knowledge.model.users.weight, knowledge.model.items.weight
    neighbourhoods = Neighbourhoods(knowledge, task)
    dense = toy.train.to_csr().toarray() > 0
    for user in range(toy.n_users):
        assert torch.allclose(neighbourhoods.users[user], items[torch.from_numpy(dense[user])].mean(0), atol=1e-6)
    for item in np.flatnonzero(dense.any(axis=0)):
        assert torch.allclose(neighbourhoods.items[item], users[torch.from_numpy(dense[:, item])].mean(0), atol=1e-6)


def test_phr_sees_training_data_only(task, toy):
    """Held-out pairs are not in the task, so nothing that reads it can depend on them; pairs added to training do count."""
    knowledge = ModelTeacher(bpr(task, 6), task)
    before = Neighbourhoods(knowledge, task)
    other = toy_dataset().train
    assert torch.equal(Neighbourhoods(knowledge, PairTask(other)).users, before.users)
    users = np.append(other.row_of_pair, 0)
    items = np.append(other.indices, np.setdiff1d(np.arange(80), other.row(0))[0])
    more = PairTask(Interactions.from_pairs(users, items, *other.shape))
    changed = (Neighbourhoods(knowledge, more).users != before.users).any(dim=1)
    assert changed.nonzero().ravel().tolist() == [0]


def test_phr_without_second_layer_is_one_linear_map():
    hint = constant(personal(3, 2), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    source, target = torch.randn(7, 2), torch.randn(7, 3)
    mapping = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    expected = (target - source @ mapping.T).square().sum(-1)
    assert torch.allclose(hint.losses("users", target, source), expected, rtol=1e-5)
    half = constant(hint, [0.5, 1.0, 1.5, 2.0, 2.5, 3.0])  # h_S doubled, the mapping halved
    assert torch.allclose(half.losses("users", target, 2 * source), expected, rtol=1e-5)


def test_phr_users_and_items_share_the_network():
    hint = personal(4, 2)
    target, source = torch.randn(5, 4), torch.randn(5, 2)
    assert torch.equal(hint.losses("users", target, source), hint.losses("items", target, source))


@pytest.mark.parametrize(("width", "hidden", "weights"), [("half", 2100, 8_820_000), ("full", 4200, 17_640_000)])
def test_phr_sizes_of_the_paper_and_of_the_code(width, hidden, weights):
    with torch.device("meta"):
        hint = PersonalHint(PersonalConfig(hidden=width), 20, 200, 0, torch.device("meta"))
    assert hint.first.out_features == hidden
    assert hint.first.weight.numel() + hint.second.weight.numel() == weights


def test_phr_reads_the_enriched_vector_and_rebuilds_the_plain_one(task):
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    knowledge, batch = ModelTeacher(teacher, task), batch_of([0, 4], [1, 2], [3, 3])
    entities = Entities(batch, task)
    target, source = entities.of_teacher(knowledge), entities.of_student(student(batch.queries))
    ways = {"full": Neighbourhoods(knowledge, task), "batch": BatchNeighbourhoods(task), "none": None}
    for enrich, way in ways.items():
        distiller = started(PHR(PHR.Config(enrich=enrich), [knowledge], task, 3, seed=2), student, task)
        hint = distiller._hint.hint
        guide = target if way is None else way.enrich(entities, target)
        expected = 0.0
        for kind, weights in (("users", torch.ones(2)), ("items", torch.full((3,), 0.5))):
            mapping = hint.second(torch.relu(hint.first(getattr(guide, kind)))).view(-1, 6, 3)
            rebuilt = torch.einsum("eij,ej->ei", mapping, getattr(source, kind))
            expected += (weights * (getattr(target, kind) - rebuilt).square().sum(-1)).sum().item()
        loss = distiller.loss(student(batch.queries), batch)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()
        assert all(p.grad is None for p in teacher.parameters())
        assert all(p.grad is not None for p in (*distiller.parameters(), *student.parameters()))


def test_phr_in_bfloat16():
    torch.manual_seed(0)
    exact, rough = personal(30, 7), personal(30, 7, precision="bf16")
    source, target = torch.randn(45, 7), torch.randn(45, 30)
    found = []
    for hint in (exact, rough):
        own, goal = source.clone().requires_grad_(), target.clone().requires_grad_()
        losses = hint.losses("users", goal, own)
        losses.sum().backward()
        found.append(
            [losses.detach(), own.grad, goal.grad, *(p.grad for m in hint.modules.values() for p in m.parameters())]
        )
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert 0 < ((one - other).norm() / one.norm()).item() < 0.02


def test_phr_starts_as_linear_layers_do():
    torch.manual_seed(0)
    hint = personal(40, 3)
    for layer in (hint.first, hint.second):
        for parameter in layer.parameters():
            bound = layer.in_features**-0.5
            assert 0.95 * bound < parameter.abs().max() <= bound


# --- linear hints ---------------------------------------------------------------------------------------------------


def test_hint_worked_example(task):
    """W = (2, -1), b = (0, 1): student 3 -> (6, -2) against (5, -3): 1 + 1 = 2. Items count half a role."""
    teacher, student = bpr(task, 2), bpr(task, 1, seed=1)
    distiller = started(HintRegression(HintRegression.Config(), [ModelTeacher(teacher, task)], task, 1), student, task)
    with torch.no_grad():
        for name in ("users", "items"):
            projector = getattr(distiller, name)
            projector.weight.copy_(torch.tensor([[2.0], [-1.0]]))
            projector.bias.copy_(torch.tensor([0.0, 1.0]))
            getattr(teacher, name).weight[:] = torch.tensor([5.0, -3.0])
            getattr(student, name).weight[:] = 3.0

    def loss(*arguments):
        batch = batch_of(*arguments)
        return distiller.loss(student(batch.queries), batch).item()

    assert loss([0], [1], [2]) == pytest.approx(2 + 1 + 1)
    assert loss([0, 0, 3], [1, 1, 2], [2, 2, 2]) == pytest.approx(2 * 2 + 1 + 2)
    distiller.config = HintRegression.Config(item_share="full")
    assert loss([0], [1], [2]) == pytest.approx(2 + 2 + 2)


def test_hint_projectors_are_separate_and_learn(task):
    distiller = HintRegression(HintRegression.Config(), [ModelTeacher(bpr(task, 8, std=0.5), task)], task, 8)
    assert {name for name, _ in distiller.named_parameters()} == {
        "users.weight", "users.bias", "items.weight", "items.bias",
    }  # fmt: skip
    learner = Learner(bpr(task, 8, seed=1), task, [Term("hint", 1.0, distiller)], lr=1e-2, base=None)
    losses = [row["loss"] for row in fit(learner, task, epochs=40).rows]
    assert losses[-1] < losses[0] / 4


# --- the active experts of DE -----------------------------------------------------------------------------------------


def test_de_does_not_depend_on_the_order_of_experts():
    torch.manual_seed(0)
    experts, permuted = Experts(3, 4, 5, 104.0), Experts(3, 4, 5, 104.0)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for name, parameter in experts.named_parameters():
            dict(permuted.named_parameters())[name].copy_(parameter[order])
    source, shares = torch.randn(6, 3), torch.rand(6, 5)
    assert torch.allclose(experts(source, shares), permuted(source, shares[:, order]), atol=1e-5)


def test_de_adds_up_over_entities_that_have_nothing_in_common():
    torch.manual_seed(0)
    experts = Experts(3, 4, 5, 104.0)
    source, shares, target = torch.randn(6, 3), torch.softmax(torch.randn(6, 5), dim=-1), torch.randn(6, 4)
    losses = (target - experts(source, shares)).square().sum(-1)
    parts = [(target[rows] - experts(source[rows], shares[rows])).square().sum() for rows in (slice(0, 2), slice(2, 6))]
    assert losses.sum().item() == pytest.approx(sum(parts).item(), rel=1e-5)


def test_de_noise_is_new_for_every_entity_call_step_and_epoch(task):
    """Of equal vectors, at the same temperature."""
    student = bpr(task, 3, seed=1)
    hint = ExpertHint(DE.Config(experts=3), 3, 6, 0, CPU)
    hint.items.load_state_dict(hint.users.state_dict())
    rows = [torch.ones(4, 6), torch.ones(4, 3)]
    found = []
    for epoch in (0, 1):
        hint.start(Epoch(epoch, 0, 9), noise_seed(5, Epoch(epoch, 0, 9), 0))
        assert hint.temperature == 1
        found += [hint.losses(kind, *rows) for kind in ("users", "items", "users")]
    values = torch.cat(found).tolist()
    assert len(set(values)) == len(values) == 24

    distiller = started(DE(DE.Config(experts=3), sources(task, 6), task, 3), student, task)
    batch = batch_of([0, 4], [1, 2], [3, 3])
    steps = [distiller.loss(student(batch.queries), batch).item() for _ in range(2)]
    assert steps[0] != steps[1]


@pytest.mark.parametrize("method", [DGKD, HyperKDMA])
def test_sources_of_equal_experts_and_vectors_have_noises_of_their_own(task, method):
    student, twin = bpr(task, 3, seed=1), sources(task, 5)[0]
    options = {"n_drop": 0} if method is DGKD else {"assistants": "given"}
    config = method.Config(experts=3, **options)
    distiller = started(method(config, [*sources(task, 6), twin, twin], task, 3), student, task)
    hints = [source.hint for source in distiller.sources[1:]] if method is DGKD else distiller._assistants
    distiller.hints[2].load_state_dict(distiller.hints[1].state_dict())
    entities = Entities(batch_of([0, 4], [1, 2], [3, 3]), task)
    vectors = entities.of_teacher(twin), entities.of_student(student(entities.batch.queries))
    left, right = (torch.cat(hint.both(entities, *vectors)) for hint in hints)
    assert (left != right).all()


# --- what a teacher must hold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [PHR, HintRegression, TAKD, DGKD])
def test_a_ranking_alone_is_not_enough(method, task, tmp_path):
    from safetensors.torch import save_file

    lists = torch.from_numpy(ModelTeacher(bpr(task, 6), task).topk(30).items.copy())
    path = tmp_path / "lists.safetensors"
    save_file({"topk": lists}, path, metadata={"kdrs": "teacher/1"})
    with pytest.raises(MissingKnowledge, match="holds only a ranking"):
        method(method.Config(), [FileTeacher(path, task)], task, 3)


@pytest.mark.parametrize("method", [PHR, HintRegression, TAKD, DGKD])
def test_no_teacher_is_refused(method, task):
    with pytest.raises(ConfigError, match=r"got (0|no) teacher"):
        method(method.Config(), [], task, 3)


def test_vectors_of_entities_are_the_distinct_ones(task):
    student = bpr(task, 3)
    batch = batch_of([7, 2, 7], [1, 5, 5], [5, 9, 9])
    entities = Entities(batch, task)
    found = entities.of_student(student(batch.queries))
    assert torch.equal(found.users, student.users.weight[torch.tensor([2, 7])])
    assert torch.equal(found.items, student.items.weight[torch.tensor([1, 5, 9])])
    ones = Vectors(torch.ones(2), torch.ones(3))
    assert entities.sum(ones, "half").item() == 2 + 0.5 + 1 + 0.5
    assert entities.sum(ones, "full").item() == 5
    assert replace(batch, negatives=batch.negatives.repeat(1, 3)).item_roles[1].tolist() == [1, 2, 1]
