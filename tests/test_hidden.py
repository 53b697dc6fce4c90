"""Hints, PHR, TAKD's stage and DGKD against the numbers and properties of their definitions, worked by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import toy_dataset
from kdrs.data import Interactions
from kdrs.distillers import DE, DGKD, PHR, TAKD, HintRegression, HyperKDMA, assistant_dims
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
from kdrs.fitting.fit import _Draws, _train_epoch, fit
from kdrs.fitting.learner import Learner, Term
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch
from test_distillers import batch_of, bpr, started

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
    left, right = (torch.cat(hint.both(*vectors)) for hint in hints)
    assert (left != right).all()


# --- sizes of assistants ----------------------------------------------------------------------------------------------


def test_assistant_sizes_of_the_paper():
    assert assistant_dims(200, 20, 8) == (40, 60, 80, 100, 120, 140, 160, 180)
    assert assistant_dims(250, 25, 8) == (50, 75, 100, 125, 150, 175, 200, 225)
    assert assistant_dims(200, 20, 1) == (110,)
    assert assistant_dims(200, 20, 0) == ()
    assert sum(assistant_dims(200, 20, 8)) == 880
    assert sum(assistant_dims(250, 25, 8)) == 1100


def test_assistant_sizes_where_the_gap_is_small():
    assert assistant_dims(8, 4, 8) == (5, 6, 7)
    for teacher, student, count in itertools.product(range(6, 40, 3), range(1, 5), range(1, 12)):
        dims = (student, *assistant_dims(teacher, student, count), teacher)
        assert list(dims) == sorted(set(dims))
    with pytest.raises(ConfigError, match="between a teacher of 5 and a student of 4"):
        assistant_dims(5, 4, 8)
    with pytest.raises(ConfigError, match="no assistant fits"):
        assistant_dims(4, 20, 8)
    assert assistant_dims(4, 20, 0) == ()


# --- TAKD -----------------------------------------------------------------------------------------------------------


def trained(task, distiller, epochs=3, dim=3):
    learner = Learner(bpr(task, dim, seed=1), task, [Term("term", 0.1, distiller)], lr=1e-2)
    fit(learner, task, epochs=epochs)
    return learner


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("hint", "method"), [("de", DE), ("phr", PHR)])
def test_takd_without_assistants_is_the_hint_itself(task, hint, method):
    knowledge = ModelTeacher(bpr(task, 6), task)
    plain_options = {"experts": 3} if hint == "de" else {}
    plain = trained(task, method(method.Config(**plain_options), [knowledge], task, 3, seed=5))
    stage = trained(task, TAKD(TAKD.Config(hint=hint, experts=3), [knowledge], task, 3, seed=5))
    assert same(plain.state(), stage.state())


def test_takd_takes_the_last_assistant_alone(task):
    teachers = [ModelTeacher(bpr(task, dim), task) for dim in (6, 8)]
    with pytest.raises(ConfigError, match="got 2 teachers"):
        TAKD(TAKD.Config(), teachers, task, 3)


# --- DGKD -----------------------------------------------------------------------------------------------------------


def sources(task, *dims):
    return [ModelTeacher(bpr(task, dim, seed=dim), task, name=f"t{dim}") for dim in dims]


@pytest.mark.parametrize(("hint", "method"), [("de", DE), ("phr", PHR)])
def test_dgkd_of_the_teacher_alone_is_the_hint_itself(task, hint, method):
    plain_options = {"experts": 3} if hint == "de" else {}
    plain = trained(task, method(method.Config(**plain_options), sources(task, 6), task, 3, seed=5))
    dense = trained(task, DGKD(DGKD.Config(hint=hint, experts=3), sources(task, 6), task, 3, seed=5))
    assert same(plain.model.state_dict(), dense.model.state_dict())


@pytest.mark.parametrize(("count", "n_drop"), [(2, 1), (4, 1), (5, 2), (3, 0), (3, 7)])
def test_dgkd_drops_each_source_equally_often(task, count, n_drop):
    distiller = DGKD(DGKD.Config(n_drop=n_drop, experts=1), sources(task, *range(3 + count, 3, -1)), task, 3)
    started(distiller, bpr(task, 3), task)
    draws = [distiller.kept() for _ in range(6000)]
    kept = max(count - n_drop, 1)
    assert {len(draw) for draw in draws} == {kept}
    share = np.bincount(np.concatenate(draws), minlength=count) / len(draws)
    assert share == pytest.approx(kept / count, abs=0.025)


def test_dgkd_bernoulli_keeps_at_least_one(task):
    distiller = DGKD(DGKD.Config(drop_probability=0.5, experts=1), sources(task, 5, 4), task, 3)
    started(distiller, bpr(task, 3), task)
    draws = [tuple(distiller.kept()) for _ in range(6000)]
    assert set(draws) == {(0,), (1,), (0, 1)}
    assert draws.count((0, 1)) / 6000 == pytest.approx(0.25, abs=0.02)
    assert draws.count((0,)) / 6000 == pytest.approx(0.375, abs=0.02)


def test_dgkd_expectation_of_the_loss(task):
    """E[loss] = (1 - n_drop / sources) of the full sum; M = 1, so that there is no other noise."""
    student, batch = bpr(task, 3, seed=1), batch_of([0, 4], [1, 2], [3, 3])
    teachers = sources(task, 6, 5, 4)
    distiller = started(DGKD(DGKD.Config(experts=1), teachers, task, 3), student, task)
    with torch.no_grad():
        view = student(batch.queries)
        mean = np.mean([distiller.loss(view, batch).item() for _ in range(1500)])
        distiller.config = replace_config(distiller.config, n_drop=0)
        full = distiller.loss(view, batch).item()
        parts = [s.losses(Entities(batch, task), Entities(batch, task).of_student(view)) for s in distiller.sources]
        assert full == pytest.approx(sum(Entities(batch, task).sum(p, "half").item() for p in parts), rel=1e-5)
    assert mean == pytest.approx(full * 2 / 3, rel=0.03)


@pytest.mark.parametrize(("teacher_weight", "assistant_weight"), [(1.0, 1.0), (0.7, 0.3), (0.0, 2.0), (2.0, 0.0)])
def test_dgkd_weighs_the_teacher_and_its_assistants(task, teacher_weight, assistant_weight):
    student, batch = bpr(task, 3, seed=1), batch_of([0, 4], [1, 2], [3, 3])
    config = DGKD.Config(experts=1, n_drop=0, teacher_weight=teacher_weight, assistant_weight=assistant_weight)
    distiller = started(DGKD(config, sources(task, 6, 5, 4), task, 3), student, task)
    entities = Entities(batch, task)
    vectors = entities.of_student(student(batch.queries))
    parts = [entities.sum(source.losses(entities, vectors), "half").item() for source in distiller.sources]
    expected = teacher_weight * parts[0] + assistant_weight * (parts[1] + parts[2])
    assert distiller.loss(student(batch.queries), batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "dims", "message"),
    [
        ({"teacher_weight": 0.0, "assistant_weight": 0.0}, (6, 5), "nothing has a weight"),
        ({"teacher_weight": 0.0}, (6,), "nothing has a weight"),
        ({"n_drop": 2, "drop_probability": 0.5}, (6, 5, 4), "n_drop is 2 and drop_probability 0.5"),
    ],
)
def test_dgkd_wrong_use_is_refused_when_it_is_built(task, options, dims, message):
    with pytest.raises(ConfigError, match=message):
        DGKD(DGKD.Config(**options), sources(task, *dims), task, 3)


def replace_config(config, **changes):
    return type(config)(**{**config.model_dump(), **changes})


def test_dgkd_leaves_modules_of_a_dropped_source_alone(task):
    teachers = sources(task, 6, 5)
    distiller = DGKD(DGKD.Config(experts=2), teachers, task, 3)
    learner = Learner(bpr(task, 3, seed=1), task, [Term("dgkd", 0.1, distiller)], lr=1e-2, weight_decay=0.1)
    epoch = Epoch(0, 0, 1)
    learner.start(epoch, [None])
    seen = set()
    for batch in task.draw(epoch):
        kept: list[list[int]] = []
        original = distiller.kept
        distiller.kept = lambda original=original, kept=kept: kept.append(original()) or kept[-1]  # type: ignore[method-assign]
        before = [{n: p.clone() for n, p in hint.named_parameters()} for hint in distiller.hints]
        learner.backward(learner.forward(batch))
        distiller.kept = original  # type: ignore[method-assign]
        gradients = [{p.grad is not None for p in hint.parameters()} for hint in distiller.hints]
        learner.step()
        for index, hint in enumerate(distiller.hints):
            stays = index in kept[0]
            assert gradients[index] == {stays}
            assert all(torch.equal(p, before[index][n]) != stays for n, p in hint.named_parameters())
        seen.add(tuple(kept[0]))
    assert seen == {(0,), (1,)}


def test_dgkd_does_not_care_how_assistants_are_numbered(task):
    student, batch = bpr(task, 3, seed=1), batch_of([0, 4], [1, 2], [3, 3])
    teachers = sources(task, 6, 5, 4)
    first = DGKD(DGKD.Config(experts=1, n_drop=0, assistant_weight=0.5), teachers, task, 3)
    second = DGKD(DGKD.Config(experts=1, n_drop=0, assistant_weight=0.5), [teachers[k] for k in (0, 2, 1)], task, 3)
    for here, there in ((0, 0), (1, 2), (2, 1)):
        second.hints[there].load_state_dict(first.hints[here].state_dict())
    values = [started(d, student, task).loss(student(batch.queries), batch).item() for d in (first, second)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_dgkd_goes_on_with_the_same_bytes(task):
    def learner():
        return Learner(
            bpr(task, 3, seed=1),
            task,
            [Term("dgkd", 0.1, DGKD(DGKD.Config(experts=2), sources(task, 6, 5, 4), task, 3))],
        )

    whole, first, second = learner(), learner(), learner()
    fit(whole, task, epochs=4)
    fit(first, task, epochs=2)
    second.load_state({name: t.clone() for name, t in first.state().items()})
    for index in (2, 3):
        epoch = Epoch(index, 0, 4)
        _train_epoch([second], _Draws(epoch, task.draw(epoch), [[None]]), 0)
    assert same(whole.state(), second.state())


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
