"""Every method with every model: finite loss, the student moves, the teacher does not, same seed same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from conftest import toy_dataset
from kdrs.core.sampling import stream
from kdrs.distillers import DISTILLERS
from kdrs.fitting.fit import _Draws, _train_epoch, fit, step_of
from kdrs.fitting.learner import Learner, Term
from kdrs.models import MODELS
from kdrs.teachers.model import ModelTeacher
from kdrs.training import optim
from kdrs.training.queries import Epoch, Task

SMALL = {
    "de": {"experts": 3},
    "hetcomp": {"target": 10, "states": 1},
    "dgkd": {"experts": 3},
    "ftd": {},
    "hint": {},
    "htd": {"groups": 3},
    "hyperkdma": {"experts": 3, "assistants": 2},
    "phr": {},
    "takd": {"experts": 3},
    "rrd": {"interesting": 5, "uninteresting": 5, "pool": 20},
    "bd": {"refresh": 2},
    "cd": {"items": 5, "pool": 30},
    "rd": {"items": 5, "samples": 20, "warmup_epochs": 1},
    "cpd": {"list_pool": 20, "listed": 5},
    "dcd": {"pool": 20, "interesting": 5, "uninteresting": 5, "correction_pool": 20, "under": 5, "over": 5},
    "freqd": {"neighbours": 3},
    "ir-rrd": {"interesting": 5, "uninteresting": 5, "pool": 20, "user_pool": 12, "interesting_users": 4},
    "mkd": {"list_pool": 20, "listed": 5, "pool": 20, "top": 5, "rest": 5, "neighbours": 3, "output_weight": 1.0},
    "nkd": {"neighbours": 3},
    "rce-kd": {"top": 8, "sampled": 6, "pool": 20},
    "score-matching": {"sampled": 5},
    "sld": {"pool": 20, "top": 5, "rest": 5},
    "unkd": {"groups": 3, "pairs": 6, "pool": 10},
}
"""Options that suit a catalogue of 80 items."""

SMALL_MODELS: dict[str, dict[str, Any]] = {
    "caser": {"vertical": 2, "horizontal": 3},
    "sasrec": {"length": 8, "blocks": 1},
}
"""Options of models that need any for 50 users and 80 items."""


def task_of(model: str, device: str = "cpu") -> Task:
    """Few batches, the last of them short; two where there are 80 queries."""
    cls = MODELS[model]
    config, data = cls.Config(dim=4, **SMALL_MODELS.get(model, {})), toy_dataset()
    size = 64 if model == "iae" else 128
    return cls.make_task(config, data.train, order=data.order, batch_size=size, device=device)


def build(task: Task, name: str, dim: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    cls = MODELS[name]
    return cls(cls.Config(dim=dim, **SMALL_MODELS.get(name, {})), task).to(task.device)


def distil(
    task: Task,
    method: str,
    model: str,
    teacher: nn.Module,
    epochs: int = 2,
    optimizer: str = "adam",
    own_task: Task | None = None,
) -> Learner:
    """A student of a teacher; ``own_task`` is the teacher's if it is another kind."""
    cls, student = DISTILLERS[method], build(task, model, 4, seed=1)
    known = ModelTeacher(teacher, own_task or task, asked=task, live=cls.mutual)
    distiller = cls(cls.Config(**SMALL[method]), [known], task, student.dim, stream(0, method))
    base = None if distiller.replaces_base else "model"
    learner = Learner(student, task, [Term(method, 0.1, distiller)], lr=1e-2, optimizer=optimizer, base=base)
    fit([learner, *learner.counterparts()], task, epochs=epochs)
    return learner


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", DISTILLERS)
def test_method_with_model(method: str, model: str, device: str):
    task = task_of(model, device)
    teacher = build(task, model, 8)
    before, untrained = state(teacher), state(build(task, model, 4, seed=1))
    learner = distil(task, method, model, teacher)
    if DISTILLERS[method].mutual:
        assert not same(before, state(teacher))
    else:
        assert same(before, state(teacher))
        assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not same(untrained, state(learner.model))
    assert all(torch.isfinite(tensor).all() for tensor in learner.state().values() if tensor.is_floating_point())
    if device == "cpu":
        teacher.load_state_dict(before)
        assert same(state(learner.model), state(distil(task, method, model, teacher).model))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", DISTILLERS)
def test_only_the_term_moves_the_student_when_the_base_loss_is_off(method: str, model: str):
    """The term's own gradient reaches the student, whatever the model."""
    task = task_of(model)
    cls, student = DISTILLERS[method], build(task, model, 4, seed=1)
    known = ModelTeacher(build(task, model, 8), task, live=cls.mutual)
    distiller = cls(cls.Config(**SMALL[method]), [known], task, student.dim)
    learner = Learner(student, task, [Term(method, 1.0, distiller)], base=None)
    before = state(learner.model)
    fit([learner, *learner.counterparts()], task, epochs=1)
    assert not same(before, state(learner.model))


@pytest.mark.parametrize("method", DISTILLERS)
def test_a_teacher_of_another_model(method: str, task: Task):
    distil(task, method, "bpr", build(task, "lightgcn", 8), epochs=1)


@pytest.mark.parametrize("kinds", [("caser", "bpr"), ("bpr", "caser"), ("sasrec", "caser"), ("lightgcn", "sasrec")])
@pytest.mark.parametrize("method", [name for name, cls in DISTILLERS.items() if not cls.mutual])
def test_a_teacher_of_another_kind_of_task(method: str, kinds: tuple[str, str]):
    """Sequential models teach models of users and the other way round."""
    teacher, student = kinds
    own, task = task_of(teacher), task_of(student)
    distil(task, method, student, build(own, teacher, 12), epochs=1, own_task=own)


@pytest.mark.parametrize("optimizer", ["lazy-adam", "adagrad"])
@pytest.mark.parametrize("method", DISTILLERS)
def test_optimizers(method: str, optimizer: str, task: Task):
    learner = distil(task, method, "bpr", build(task, "bpr", 8), optimizer=optimizer)
    assert all(torch.isfinite(parameter).all() for parameter in learner.model.parameters())


ROW_TABLES = ("bpr", "neumf", "caser", "cdae", "sasrec")
"""Models of tables whose rows may owe steps."""


@pytest.mark.parametrize("model", ROW_TABLES)
@pytest.mark.parametrize("method", ["rrd", "hint", "ir-rrd", "score-matching", "bd"])
def test_rows_take_the_steps_they_owe_before_anything_reads_them(method: str, model: str, monkeypatch):
    """Tables that torch steps as a whole end where those do whose rows wait."""
    ends = []
    for few in (10**9, 0):
        monkeypatch.setattr(optim, "FEW", few)
        task = task_of(model)
        learner = distil(task, method, model, build(task, model, 8))
        assert learner._row_tables
        assert all(table.due is None for tables in learner._row_tables.values() for table in tables)
        ends.append(state(learner.model))
    for name, whole in ends[0].items():
        assert torch.allclose(whole, ends[1][name], atol=1e-3), name


@pytest.mark.parametrize("model", ROW_TABLES)
def test_lazy_rows_catch_up_before_anything_reads_them(model: str):
    """A table read row by row is read as it is after all have caught up."""
    task = task_of(model)
    learner = Learner(build(task, model, 4), task, lr=1e-2, weight_decay=0.1, optimizer="lazy-adam")
    learner._tables = None  # by autograd
    epoch = Epoch(0, 0, 1)
    learner.start(epoch, [])
    for batch in task.draw(epoch):
        step_of([learner], batch)
    assert learner._row_tables
    for name, (table,) in learner._row_tables.items():
        read = table(torch.arange(table.num_embeddings)[::2]).detach()
        learner.optimizer.catch_up(name)
        assert torch.equal(read, table.weight[::2])


@pytest.mark.parametrize("model", ROW_TABLES)
@pytest.mark.parametrize("optimizer", ["adam", "lazy-adam"])
def test_off_the_core_few_rows_and_the_catalogue_are_read_in_turn(optimizer: str, model: str):
    """In float64, which torch steps: what is read twice in a step is not changed in between, where nothing is owed."""
    task, steps = task_of(model), iter(range(100))

    def loss(view, batch):
        first = torch.ones(len(batch.queries), 1, dtype=torch.int64)
        if next(steps) == 0:
            return view.scores(first).sum()
        return view.all_scores().square().sum() + view.scores(first).sum() + view.all_scores().sum()

    learner = Learner(build(task, model, 4).double(), task, lr=1e-2, optimizer=optimizer, base=loss)
    fit(learner, task, epochs=2)
    assert all(torch.isfinite(tensor).all() for tensor in learner.model.state_dict().values())


@pytest.mark.parametrize("model", ["bpr", "caser", "sasrec", "cdae", "ngcf"])
def test_a_term_that_asks_for_other_users_changes_nobodys_noise(model: str):
    ends = []
    for weight in (0.0, 1e-30):
        task = task_of(model)
        teacher, student = build(task, model, 8), build(task, model, 4, seed=1)
        method = DISTILLERS["ir-rrd"]
        distiller = method(method.Config(**SMALL["ir-rrd"]), [ModelTeacher(teacher, task)], task, student.dim, 7)
        fit(Learner(student, task, [Term("ir-rrd", weight, distiller)], lr=1e-2), task, epochs=2)
        ends.append(state(student))
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-4) for name in ends[0])


def test_weight_zero_is_the_plain_student(task: Task):
    """Random streams are separate: a term that is switched off leaves the student's trajectory as it was."""
    plain = Learner(build(task, "bpr", 4), task)
    fit(plain, task, epochs=2)
    for method, cls in DISTILLERS.items():
        teacher = ModelTeacher(build(task, "bpr", 8), task, live=cls.mutual)
        distiller = cls(cls.Config(**SMALL[method]), [teacher], task, 4)
        off = Learner(build(task, "bpr", 4), task, [Term(method, 0.0, distiller)])
        fit(off, task, epochs=2)
        assert same(state(plain.model), state(off.model)), method


def test_a_sum_with_one_weight_zero_is_the_other_term(task: Task):
    teacher = ModelTeacher(build(task, "bpr", 8), task)

    def run(weights: dict[str, float]) -> dict[str, torch.Tensor]:
        terms = [
            Term(
                name,
                weight,
                DISTILLERS[name](DISTILLERS[name].Config(**SMALL[name]), [teacher], task, 4, stream(0, name)),
            )
            for name, weight in weights.items()
        ]
        learner = Learner(build(task, "bpr", 4), task, terms)
        fit(learner, task, epochs=2)
        return state(learner.model)

    assert same(run({"de": 0.1, "rrd": 0.0}), run({"de": 0.1}))
    assert same(run({"de": 0.0, "rrd": 0.1}), run({"rrd": 0.1}))
    assert not same(run({"de": 0.1, "rrd": 0.1}), run({"de": 0.1}))


@pytest.mark.parametrize("method", DISTILLERS)
def test_a_state_holds_all_that_the_next_epochs_need(method: str, task: Task):
    """Two epochs, then two by other objects that were given the state: the bytes of four epochs in one go."""

    def learners() -> list[Learner]:
        cls = DISTILLERS[method]
        known = ModelTeacher(build(task, "bpr", 8), task, live=cls.mutual)
        distiller = cls(cls.Config(**SMALL[method]), [known], task, 4, stream(0, method))
        base = None if distiller.replaces_base else "model"
        first = Learner(build(task, "bpr", 4, seed=1), task, [Term(method, 0.1, distiller)], lr=1e-2, base=base)
        return [first, *first.counterparts()]

    whole, half, rest = learners(), learners(), learners()
    fit(whole, task, epochs=4)
    fit(half, task, epochs=4, should_stop=iter([False, True]).__next__)
    for old, new in zip(half, rest, strict=True):
        new.load_state({name: tensor.clone() for name, tensor in old.state().items()})
    for index in (2, 3):
        epoch = Epoch(index, 0, 4)
        samples = [[term.distiller.draw(epoch) for term in learner.terms] for learner in rest]
        _train_epoch(rest, _Draws(epoch, task.draw(epoch), samples), 0)
    for one, other in zip(whole, rest, strict=True):
        assert same(one.state(), other.state())
