"""NeuMF against its definition, pair by pair."""

from __future__ import annotations

import math

import pytest
import torch

from kdrs.distillers import DE
from kdrs.errors import ConfigError
from kdrs.fitting.fit import fit
from kdrs.fitting.learner import Learner, Term
from kdrs.models import NeuMF, neumf
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Queries
from test_distillers import batch_of


def build(task: PairTask, dim: int = 8, seed: int = 0, **options) -> NeuMF:
    torch.manual_seed(seed)
    return NeuMF(NeuMF.Config(dim=dim, **{"init_std": 0.5, **options}), task)


def by_definition(model: NeuMF, user: int, item: int) -> float:
    hidden = torch.cat([model.users_mlp.weight[user], model.items_mlp.weight[item]])
    for layer in (model.first, *model.layers):
        hidden = torch.relu(layer.weight @ hidden + layer.bias)
    mf = model.users_mf.weight[user] * model.items_mf.weight[item]
    return (model.final.weight[0] @ torch.cat([mf, hidden]) + model.final.bias[0]).item()


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_scores_follow_the_definition(task: PairTask, layers: int):
    model = build(task, layers=layers)
    assert [layer.weight.shape[0] for layer in (model.first, *model.layers)] == [8, 4, 2, 1][:layers]
    users = torch.tensor([3, 9])
    view = model(Queries(users, users))
    every = view.all_scores()
    for row, user in enumerate(users.tolist()):
        for item in (0, 5, 79):
            assert every[row, item].item() == pytest.approx(by_definition(model, user, item), abs=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_every_split_of_the_catalogue_gives_the_same_scores(task: PairTask, monkeypatch, layers: int):
    model = build(task, layers=layers)
    users = torch.arange(11)
    view = model(Queries(users, users))
    pairwise = torch.stack([view.scores(torch.full((11, 1), item)).squeeze(1) for item in range(task.n_items)], dim=1)
    together = view.scores(torch.arange(task.n_items).expand(11, -1))  # more pairs than items: by the catalogue's table
    assert torch.allclose(together, pairwise, atol=1e-5)
    monkeypatch.setattr(neumf, "TILE_ITEMS", 7)
    monkeypatch.setattr(neumf, "TILE_FLOATS", 7 * 8 * 3)
    assert torch.allclose(view.all_scores(), pairwise, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(view.all_scores(), pairwise, atol=1e-5)


def test_gradients_of_a_catalogue_are_those_of_its_pairs(task: PairTask, monkeypatch):
    monkeypatch.setattr(neumf, "TILE_ITEMS", 32)
    users = torch.arange(5)
    weights = torch.randn(5, task.n_items)
    found = []
    for ask in (lambda view: view.all_scores(), lambda view: view.pairs(users[:, None], torch.arange(task.n_items))):
        model = build(task, layers=2)
        (ask(model(Queries(users, users))) * weights).sum().backward()
        found.append({name: parameter.grad.to_dense() for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-4), name


def test_without_its_perceptron_it_is_generalised_matrix_factorisation(task: PairTask):
    model = build(task)
    with torch.no_grad():
        model.final.weight[0, 8:] = 0
        model.final.bias.fill_(0.25)
    users = torch.arange(6)
    weighted = model.users_mf.weight[:6] * model.final.weight[0, :8]
    expected = weighted @ model.items_mf.weight.T + 0.25
    assert torch.allclose(model(Queries(users, users)).all_scores(), expected, atol=1e-6)


def test_initial_values(task: PairTask):
    """A batch of 1,024 triples starts at 2 · 1,024 · ln 2 = 1419.6."""
    model = build(task, dim=25, init_std=0.01)
    users, items = torch.randint(0, 50, (1024,)), torch.randint(0, 80, (2, 1024))
    batch = batch_of(users.tolist(), items[0].tolist(), items[1].tolist())
    assert model.loss(model(batch.queries), batch).item() == pytest.approx(2 * 1024 * math.log(2), abs=0.5)
    assert model.final.weight.abs().max() <= math.sqrt(6 / 50)
    assert model.final.weight.abs().max() > 0.8 * math.sqrt(6 / 50)
    assert model.first.weight.abs().max() <= math.sqrt(6 / 75)
    assert (model.first.bias == 0).all()
    assert (model.final.bias == 0).all()


@pytest.mark.parametrize(("options", "std"), [({}, 0.01), ({"init_std": 0.2}, 0.2)])
def test_initial_tables(task: PairTask, options, std: float):
    torch.manual_seed(0)
    model = NeuMF(NeuMF.Config(dim=64, **options), task)
    for table in (model.users_mf, model.items_mf, model.users_mlp, model.items_mlp):
        assert table.weight.std().item() == pytest.approx(std, rel=0.05)


def test_the_loss_is_the_sum_over_positives_and_negatives(task: PairTask):
    model = build(task)
    batch = batch_of([1, 4], [2, 3], [9, 2])
    expected = sum(math.log1p(math.exp(-by_definition(model, u, i))) for u, i in ((1, 2), (4, 3)))
    expected += sum(math.log1p(math.exp(by_definition(model, u, i))) for u, i in ((1, 9), (4, 2)))
    assert model.loss(model(batch.queries), batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("hidden", "moving"), [("mf", {"users_mf", "items_mf"}), ("both", None)])
def test_what_a_method_on_representations_moves(task: PairTask, hidden: str, moving: set[str] | None):
    """DE without the base loss: the factorisation's tables alone, or all four; never the perceptron."""
    student = build(task, dim=4, seed=1, hidden=hidden)
    assert student.dim == (4 if hidden == "mf" else 8)
    teacher = ModelTeacher(build(task, hidden=hidden), task)
    assert teacher.dim == (8 if hidden == "mf" else 16)
    term = Term("de", 1.0, DE(DE.Config(experts=2), [teacher], task, student.dim))
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    fit(Learner(student, task, [term], base=None), task, epochs=1)
    moved = {name.partition(".")[0] for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    assert moved == (moving or {"users_mf", "items_mf", "users_mlp", "items_mlp"})


def test_layers_end_where_their_width_does(task: PairTask):
    with pytest.raises(ConfigError, match="layers is 3 with dim 3"):
        NeuMF(NeuMF.Config(dim=3, layers=3), task)
    NeuMF(NeuMF.Config(dim=3, layers=2), task)
