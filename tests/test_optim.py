"""Our optimizers against torch's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from conftest import toy_dataset
from kdrs.errors import ConfigError
from kdrs.fitting.fit import step_of
from kdrs.fitting.learner import Learner
from kdrs.models import BPR
from kdrs.training import losses
from kdrs.training.optim import Adagrad, Adam, make_optimizer
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch


def train(model: nn.Embedding, optimizer, steps: int = 30) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(0, 20, (8,), generator=generator)
        target = torch.randn(8, 3, generator=generator)
        optimizer.zero_grad()
        (model(ids) * target).sum().add((model(ids[:3]) ** 2).sum()).backward()
        optimizer.step()
    return model.weight.detach()


def table(sparse: bool) -> nn.Embedding:
    torch.manual_seed(1)
    return nn.Embedding(40, 3, sparse=sparse)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_dense_adam_is_torchs_adam_on_dense_gradients(weight_decay: float):
    ours, theirs = table(True), table(False)
    theirs = train(theirs, torch.optim.Adam(theirs.parameters(), lr=1e-2, weight_decay=weight_decay))
    ours = train(ours, Adam({"t": ours.weight}, lr=1e-2, weight_decay=weight_decay))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours[20:], table(True).weight[20:]) is (weight_decay == 0)


def wide(dtype: torch.dtype, steps: int, lazy: bool, weight_decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A table of 60 rows of which 6 are touched at a time, none of the last 20; its values before and after."""
    torch.manual_seed(1)
    model = nn.Embedding(60, 5, sparse=True).to(dtype)
    before = model.weight.detach().clone()
    optimizer = Adam({"t": model.weight}, lr=1e-2, weight_decay=weight_decay, lazy=lazy)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids, target = torch.randint(0, 40, (6,), generator=generator), torch.randn(6, 5, generator=generator)
        optimizer.zero_grad()
        (model(ids) * target.to(dtype)).sum().backward()
        optimizer.step()
    optimizer.settle()
    return before, model.weight.detach()


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["core", "torch"])
def test_lazy_adam_ends_where_dense_adam_ends(dtype: torch.dtype, weight_decay: float):
    """Rows that are touched, and those that only decay: the estimate misses by a small part of the way."""
    before, dense = wide(dtype, 120, False, weight_decay)
    _, lazy = wide(dtype, 120, True, weight_decay)
    for rows in (slice(0, 40), slice(40, 60)):
        way, miss = (dense[rows] - before[rows]).norm(), (dense[rows] - lazy[rows]).norm()
        assert miss <= 0.12 * way, (miss / way, rows)
    assert torch.equal(dense[40:], before[40:]) is (weight_decay == 0)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_the_core_and_torch_are_lazy_in_the_same_way(weight_decay: float):
    before, core = wide(torch.float32, 60, True, weight_decay)
    _, plain = wide(torch.float64, 60, True, weight_decay)
    # torch's form takes one rate for all steps that are owed, and the core's the mean of them
    assert (core - plain).norm() <= 0.05 * (core - before).norm()


def test_lazy_adam_touches_the_batch_alone_until_it_settles():
    ours = table(True)
    before = ours.weight.detach().clone()
    optimizer = Adam({"t": ours.weight}, lr=1e-2, weight_decay=0.1, lazy=True)
    after = train(ours, optimizer).clone()
    assert torch.equal(after[20:], before[20:])
    assert not torch.equal(after[:20], before[:20])
    assert optimizer.state()["t/step"] == 30  # asking for the state settles
    assert (ours.weight[20:].abs() < before[20:].abs()).float().mean() > 0.9


def test_a_parameter_without_gradient_is_skipped_and_one_with_zero_gradient_is_not():
    absent, zero = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Adam({"absent": absent, "zero": zero}, lr=0.1, weight_decay=0.1)
    (zero * 0).sum().backward()
    optimizer.step()
    assert torch.equal(absent, torch.ones(2))
    assert (zero < 1).all()


def test_state_goes_on_where_it_was():
    one, other = table(True), table(True)
    first, second = (
        Adam({"t": one.weight}, lr=1e-2, weight_decay=1e-3),
        Adam({"t": other.weight}, lr=1e-2, weight_decay=1e-3),
    )
    train(one, first)
    train(other, second)
    restored = Adam({"t": other.weight}, lr=1e-2, weight_decay=1e-3)
    restored.load_state({name: tensor.clone() for name, tensor in second.state().items()})
    assert torch.equal(train(one, first), train(other, restored))


@pytest.mark.parametrize("kind", [Adam, Adagrad])
def test_an_entry_that_stands_for_two_steps_as_each_of_them(kind):
    """One parameter read twice against two equal ones: same steps, decay and small gradients included."""
    pair, single = nn.Parameter(torch.full((2, 3), 0.5)), nn.Parameter(torch.full((3,), 0.5))
    other = nn.Parameter(torch.full((3,), 0.5))
    first = kind({"pair": pair}, lr=1e-2, weight_decay=0.1)
    second = kind({"single": single, "other": other}, lr=1e-2, weight_decay=0.1, multiplicities={"single": 2.0})
    scale = torch.tensor([1.0, 1e-3, 0.0])
    for step in range(20):
        weight = 1e-6 * scale * (step % 3 - 0.7)
        first.zero_grad(), second.zero_grad()
        (pair * weight).sum().backward()
        (2 * single * weight).sum().backward()
        (other * weight).sum().backward()
        first.step(), second.step()
    assert torch.allclose(pair[0], single, rtol=1e-6)
    assert torch.allclose(pair[0], other, rtol=1e-6)


def test_multiplicity_of_no_parameter_is_refused():
    with pytest.raises(ConfigError, match="multiplicity of b"):
        Adam({"a": nn.Parameter(torch.ones(1))}, lr=0.1, multiplicities={"b": 2.0})


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_adagrad_is_torchs(sparse: bool, weight_decay: float):
    ours, theirs = table(sparse), table(False)
    reference = torch.optim.Adagrad(
        theirs.parameters(), lr=0.1, weight_decay=weight_decay, initial_accumulator_value=0.1
    )
    theirs = train(theirs, reference)
    ours = train(ours, Adagrad({"t": ours.weight}, lr=0.1, weight_decay=weight_decay))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours[20:], table(True).weight[20:]) is (weight_decay == 0)


def test_adagrad_first_step_by_hand():
    """Gradient 2 on an accumulator of 0.1: 0.1 · 2 / √4.1; the same row given twice adds up first."""
    parameter = nn.Parameter(torch.zeros(3, 1))
    adagrad = Adagrad({"p": parameter}, lr=0.1)
    parameter.grad = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.ones(2, 1), (3, 1))
    adagrad.step()
    assert parameter.flatten().tolist() == pytest.approx([0.0, -0.2 / 4.1**0.5, 0.0])


def test_a_lazy_table_that_torch_steps_takes_dense_gradients_too():
    """In float64, which the core does not take: one sparse gradient, then dense ones."""
    ours, reference = (torch.nn.Parameter(torch.ones(6, 2, dtype=torch.float64)) for _ in range(2))
    lazy, torchs = Adam({"t": ours}, lr=1e-2, lazy=True), torch.optim.Adam([reference], lr=1e-2)
    for step in range(11):
        lazy.zero_grad(), torchs.zero_grad()
        read = ours if step else torch.nn.functional.embedding(torch.arange(6), ours, sparse=True)
        read.sum().backward(), reference.sum().backward()
        lazy.step(), torchs.step()
    lazy.settle()
    assert torch.allclose(ours, reference, atol=1e-8)


def behind(kind: type[BPR] = BPR) -> Learner:
    """A learner in the middle of an epoch, of a table most of whose rows owe steps."""
    task = PairTask(toy_dataset().train, batch_size=8)
    torch.manual_seed(0)
    learner = Learner(kind(BPR.Config(dim=4, init_std=1.0), task), task, lr=5e-2, weight_decay=0.1)
    learner._tables = None  # by autograd
    epoch = Epoch(0, 0, 1)
    learner.start(epoch, [])
    for batch, _ in zip(task.draw(epoch), range(12), strict=False):
        step_of([learner], batch)
    return learner


def test_whoever_looks_in_the_middle_of_an_epoch_sees_rows_up_to_date():
    learner = behind()
    owing = learner.model.items.weight.detach().clone()
    learner.optimizer.settle()
    expected = learner.model.items.weight.detach()
    assert not torch.equal(owing, expected)
    assert torch.equal(behind().knowledge.factors().items, expected)
    for copied in (copy.deepcopy(behind().model), pickle.loads(pickle.dumps(behind().model))):
        assert copied.items.due is None
        assert torch.equal(copied.items.weight, expected)
    moved = behind().model
    moved.items.weight.data = moved.items.weight.data.clone()
    assert torch.equal(moved.items(torch.arange(len(expected), dtype=torch.int32)), expected)
    stated = behind()
    assert torch.equal(stated.state()["model.items.weight"], expected)
    assert stated.model.items.due is not None  # the epoch goes on


def test_tables_wait_only_where_every_holder_of_the_parameter_asks():
    class Tied(BPR):
        def __init__(self, config, task):
            super().__init__(config, task)
            self.twin = type(self.items)(task.n_items, config.dim)
            self.twin.weight = self.items.weight

    class Shared(BPR):
        def __init__(self, config, task):
            super().__init__(config, task)
            self.twin = torch.nn.Linear(config.dim, task.n_items, bias=False)
            self.twin.weight = self.items.weight

    class Unit(BPR):
        @torch.no_grad()
        def after_step(self):
            for table in (self.users, self.items):
                table.weight.div_(table.weight.norm(dim=1, keepdim=True))

    tied, shared = behind(Tied), behind(Shared)
    expected = tied.model.items(torch.arange(80)).detach()
    assert torch.equal(behind(Tied).model.twin(torch.arange(80)), expected)
    assert set(shared._row_tables) == {"model.users.weight"}
    unit = behind(Unit)
    unit.finish()
    assert torch.allclose(unit.model.items.weight.norm(dim=1), torch.ones(80))


@pytest.mark.parametrize("name", ["adam", "lazy-adam", "adagrad"])
def test_every_optimizer_goes_on_where_it_was(name: str):
    one, other = table(True), table(True)
    first, second = (make_optimizer(name, {"t": t.weight}, lr=1e-2, weight_decay=1e-3) for t in (one, other))
    train(one, first)
    train(other, second)
    first.state()  # rows take what they owe, as in a run that is kept
    restored = make_optimizer(name, {"t": other.weight}, lr=1e-2, weight_decay=1e-3)
    restored.load_state({key: tensor.clone() for key, tensor in second.state().items()})
    assert torch.equal(train(one, first), train(other, restored))


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ConfigError, match="optimizer is 'sgd'"):
        make_optimizer("sgd", {}, lr=0.1)


@pytest.mark.parametrize("call", ["bpr_step", "score_step"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_step_that_is_interrupted_leaves_an_optimizer_that_goes_on(lazy: bool, moment: str, call: str, monkeypatch):
    from kdrs import _core

    users, items = table(False).weight, table(False).weight
    optimizer = Adam({"u": users, "i": items}, lr=1e-2, lazy=lazy)
    ids = torch.randint(0, 40, (16,), generator=torch.Generator().manual_seed(0))

    def step() -> float:
        if call == "bpr_step":
            return optimizer.bpr_step("u", "i", ids, ids.flip(0), (ids[:, None] + 1) % 40)
        asked = torch.stack([ids.flip(0), (ids + 1) % 40], dim=1)
        loss, slopes = losses.bpr_gradient(optimizer.scores("u", "i", ids, asked))
        optimizer.score_step("u", "i", ids, asked, slopes)
        return loss.item()

    for _ in range(130):  # past the steps that are kept
        step()
    before = step()
    core = getattr(_core, call)

    def interrupted(*arguments: object) -> float:
        if moment == "after":
            core(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(_core, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        step()
    monkeypatch.setattr(_core, call, core)
    for _ in range(130):
        after = step()
    optimizer.settle()
    assert after < before
    assert optimizer.state()["u/step"] == optimizer.state()["i/step"] == 262
