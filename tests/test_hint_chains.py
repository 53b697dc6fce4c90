"""Hints through assistants: their sizes, TAKD and DGKD, against the numbers and properties of their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kdrs.distillers import DE, DGKD, PHR, TAKD, assistant_dims
from kdrs.distillers._hidden import Entities
from kdrs.errors import ConfigError
from kdrs.fitting.fit import _Draws, _train_epoch, fit
from kdrs.fitting.learner import Learner, Term
from kdrs.teachers.model import ModelTeacher
from kdrs.training.queries import Epoch
from test_distillers import batch_of, bpr, started

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
