"""Base models against slow forms of their definitions."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import toy_dataset
from kdrs.errors import ConfigError
from kdrs.fitting.fit import fit, step_of
from kdrs.fitting.learner import Learner
from kdrs.models import BPR, MODELS, LightGCN, model_class
from kdrs.teachers.model import ModelTeacher
from kdrs.training import losses
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch, Queries
from test_distillers import batch_of


def build(task, name, **options):
    torch.manual_seed(0)
    cls = MODELS[name]
    return cls(cls.Config(**{"dim": 5, **options}), task)


def own_task(name, **options):
    """The toy data in the form that the model learns from."""
    cls, data = MODELS[name], toy_dataset()
    return cls.make_task(cls.Config(**{"dim": 5, **options}), data.train, order=data.order, batch_size=64)


@pytest.mark.parametrize("name", MODELS)
def test_every_way_to_ask_for_scores_agrees(name: str):
    task = own_task(name)
    model = build(task, name).eval()
    rows = torch.tensor([3, 0, 7])
    view = model(task.queries(rows))
    every = view.all_scores()
    ids = torch.tensor([[1, 5, 9, 2], [4, 0, 79, 3], [8, 8, 1, 60]])
    expected = every.gather(1, ids)
    at = torch.tensor([[2], [0]])
    assert torch.allclose(view.scores(ids), expected, atol=1e-6)
    assert torch.allclose(view.scores(ids[:, :2]), expected[:, :2], atol=1e-6)
    assert torch.allclose(view.pairs(at, ids[[2, 0]]), expected[[2, 0]], atol=1e-6)
    assert torch.allclose(view.pairs(torch.tensor([0, 1, 2]), ids[:, 0]), expected[:, 0], atol=1e-6)
    lists = torch.tensor([[0, 2], [1, 1]])
    items = torch.tensor([[5], [60]])
    assert torch.allclose(view.pairs(lists, items), every[lists, items], atol=1e-6)
    again = torch.tensor([7, 7])
    assert torch.allclose(view.at(task.queries(again)).all_scores(), every[[2, 2]], atol=1e-6)
    factors = model.factors()
    if factors is not None:
        full = factors.queries @ factors.items.T + (0 if factors.bias is None else factors.bias)
        assert torch.allclose(full[rows], every, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_dropout_keeps_shares_and_means(share: float):
    from kdrs.models._dropout import Dropout

    layer, x = Dropout(share), torch.ones(1000, 1001, requires_grad=True)
    torch.manual_seed(0)
    out = layer(x)
    assert ((out == 0).float().mean() - share).abs() < 0.002
    assert out[out != 0].unique().tolist() == pytest.approx([1 / (1 - share)], rel=1e-3)
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    # neighbours come out of one draw and are independent none the less
    pairs = (out.detach()[:, :1000] != 0).view(-1, 4).float()
    if share:
        assert torch.corrcoef(pairs.T).fill_diagonal_(0).abs().max() < 0.01
    torch.manual_seed(0)
    assert torch.equal(layer(x), out)
    assert layer.eval()(x) is x


def test_bpr_scores_survive_a_rotation(task: PairTask):
    model = build(task, "bpr", init_std=1.0)
    rows = torch.arange(4)
    before = model(Queries(rows, rows)).all_scores()
    rotation, _ = torch.linalg.qr(torch.randn(5, 5))
    with torch.no_grad():
        model.users.weight.copy_(model.users.weight @ rotation)
        model.items.weight.copy_(model.items.weight @ rotation)
    assert torch.allclose(model(Queries(rows, rows)).all_scores(), before, atol=1e-5)


def test_lightgcn_propagation_against_a_dense_matrix(task: PairTask, toy):
    model = build(task, "lightgcn", layers=2)
    n = toy.n_users
    adjacency = np.zeros((n + toy.n_items,) * 2)
    adjacency[toy.train.row_of_pair, n + toy.train.indices] = 1
    adjacency += adjacency.T
    degrees = adjacency.sum(1)
    scale = np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    dense = torch.from_numpy(scale[:, None] * adjacency * scale[None, :]).float()
    reference = model.vectors.detach().clone().requires_grad_()
    expected = (reference + dense @ reference + dense @ dense @ reference) / 3
    output = model.propagated()
    assert torch.allclose(output, expected, atol=1e-5)
    direction = torch.randn_like(expected)
    (output * direction).sum().backward()
    (expected * direction).sum().backward()
    assert torch.allclose(model.vectors.grad, reference.grad, atol=1e-5)


def test_lightgcn_without_layers_is_matrix_factorisation(task: PairTask):
    graph, plain = build(task, "lightgcn", layers=0), build(task, "bpr")
    with torch.no_grad():
        plain.users.weight.copy_(graph.vectors[: task.n_users])
        plain.items.weight.copy_(graph.vectors[task.n_users :])
    rows = torch.arange(6)
    assert torch.allclose(graph(Queries(rows, rows)).all_scores(), plain(Queries(rows, rows)).all_scores())


def test_lightgcn_leaves_isolated_nodes_in_place(toy):
    from kdrs.data import Interactions

    task = PairTask(Interactions.from_pairs([0, 1], [0, 1], 3, 4))
    model = build(task, "lightgcn", layers=3)
    assert torch.allclose(model.propagated()[[2, 5, 6]], model.vectors[[2, 5, 6]] / 4)


def test_lightgcn_reg_counts_rows_with_multiplicity(task: PairTask):
    plain, regular = build(task, "lightgcn"), build(task, "lightgcn", reg=0.5)
    batch = batch_of([1, 1], [2, 3], [4, 2])
    difference = regular.loss(regular(batch.queries), batch) - plain.loss(plain(batch.queries), batch)
    v = plain.vectors.detach()
    n = task.n_users
    expected = 0.5 * v[[1, 1, n + 2, n + 3, n + 4, n + 2]].square().sum()
    assert difference.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_lightgcn_loss(task: PairTask, reduction: str):
    """The authors' own: (Σ softplus(s_uj - s_ui) + 0.3 · (‖u‖² + ‖i‖² + ‖j‖²)) / B, of which the sum leaves out B."""
    model = build(task, "lightgcn", reg=0.3, reduction=reduction)
    assert model.averages is (reduction == "mean")
    users, positives, negatives = torch.tensor([[1, 4, 4], [2, 3, 9], [5, 2, 7]])
    batch = batch_of(users.tolist(), positives.tolist(), negatives.tolist())
    nodes = [users, positives + task.n_users, negatives + task.n_users]
    u, i, j = (model.propagated().detach()[rows] for rows in nodes)
    expected = sum(math.log1p(math.exp(gap)) for gap in ((u * j).sum(1) - (u * i).sum(1)).tolist())
    expected += 0.3 * model.vectors.detach()[torch.cat(nodes)].square().sum().item()
    expected /= 3 if reduction == "mean" else 1
    assert model.loss(model(batch.queries), batch).item() == pytest.approx(expected, rel=1e-5)


def test_a_triple_that_stands_twice_counts_twice(task: PairTask):
    model = build(task, "bpr", init_std=1.0)
    once, twice = batch_of([3], [1], [7]), batch_of([3, 3], [1, 1], [7, 7])
    loss = model.loss(model(once.queries), once).item()
    assert model.loss(model(twice.queries), twice).item() == pytest.approx(2 * loss, rel=1e-6)


def test_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'lightgcn'"):
        model_class("lightgnc")
    with pytest.raises(ConfigError, match=r"unknown key 'model\.dims'"):
        BPR.Config.parse({"dims": 3}, "model")
    with pytest.raises(ConfigError, match=r"model\.layers is -1"):
        LightGCN.Config.parse({"layers": -1}, "model")


@pytest.mark.parametrize(
    "shapes", [((1, 6), (3, 1)), ((6, 1), (1, 3)), ((1, 1), (3, 4)), ((3, 4), (3, 4)), ((5,), (5,))]
)
@pytest.mark.parametrize("name", MODELS)
def test_pairs_broadcast(name: str, shapes):
    task = own_task(name)
    model = build(task, name).eval()
    view = model(task.queries(torch.arange(7)))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 7, shapes[0], generator=generator)
    ids = torch.randint(0, task.n_items, shapes[1], generator=generator)
    assert torch.allclose(view.pairs(rows, ids), view.all_scores()[rows, ids], atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_view_first_read_without_gradient_gives_one_later(name: str):
    task = own_task(name)
    model = build(task, name)
    users = torch.arange(7)
    view = model(task.queries(users))
    with torch.no_grad():
        _ = view.queries
    view.pairs(users, users).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.to_dense().abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", MODELS)
def test_a_view_goes_with_its_step(name: str):
    """Whatever a forward pass keeps is freed by counting references, not when the collector comes by."""
    task = own_task(name)
    model = build(task, name)
    users = torch.arange(7)
    gc.collect()
    gc.disable()
    try:
        view = model(task.queries(users))
        (view.pairs(users, users).sum() + view.scores(users.unsqueeze(1)).sum() + view.queries.sum()).backward()
        with torch.no_grad():
            view.all_scores()
        watched = weakref.ref(view)
        del view
        assert watched() is None
    finally:
        gc.enable()


def test_a_teacher_at_rest_propagates_once(task: PairTask, monkeypatch: pytest.MonkeyPatch):
    from kdrs.teachers.model import ModelTeacher

    model = build(task, "lightgcn")
    calls = []
    original = model.propagated
    monkeypatch.setattr(model, "propagated", lambda: calls.append(None) or original())
    for live, expected in ((False, 1), (True, 3)):
        calls.clear()
        teacher = ModelTeacher(model.train(), task, live=live)
        for _ in range(3):
            users = torch.arange(4)
            assert not teacher.view(Queries(users, users)).queries.requires_grad
        assert len(calls) == expected
        assert model.training is live


@pytest.mark.parametrize("negatives", ["sum", "mean"])
@pytest.mark.parametrize("count", [1, 3])
def test_bpr_gradient_in_closed_form_is_autograds(task: PairTask, count: int, negatives: str):
    from kdrs.training.queries import Batch

    model = build(task, "bpr", init_std=0.7, negative_reduction=negatives)
    generator = torch.Generator().manual_seed(0)
    users, positives = (torch.randint(0, n, (9,), generator=generator) for n in (task.n_users, task.n_items))
    batch = Batch(Queries(users, users), positives, torch.randint(0, task.n_items, (9, count), generator=generator))
    view = model(batch.queries)
    part = model.score_loss(batch)
    scores = view.scores(part.ids).detach().requires_grad_()
    found, slopes = part.of(scores.detach())
    expected = losses.bpr(scores[:, :1], scores[:, 1:], average=negatives == "mean")
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.item() == pytest.approx(model.loss(view, batch).item(), rel=1e-6)
    assert torch.allclose(slopes, scores.grad, atol=1e-6)


@pytest.mark.parametrize("name", ["bpr", "lightgcn", "ngcf", "sgl"])
def test_the_negatives_of_a_row_count_each_or_by_their_mean(name: str):
    task = PairTask(toy_dataset().train, batch_size=16, n_negatives=4, layout="rows")
    steps = {}
    for negatives in ("sum", "mean"):
        options = {"reg": 0.0, "ssl": 0.0, "node_dropout": 0.0, "message_dropout": 0.0}
        known = MODELS[name].Config.model_fields
        own = {key: value for key, value in options.items() if key in known}
        model = build(task, name, negative_reduction=negatives, **own)
        batch = next(iter(task.draw(Epoch(0, 0, 1))))
        loss = model.loss(model(batch.queries), batch)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        learner = Learner(model, task, optimizer="adagrad", lr=0.1)
        step_of([learner], batch)
        steps[negatives] = loss.item(), any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert steps["sum"][0] == pytest.approx(4 * steps["mean"][0], rel=1e-5)
    assert steps["sum"][1]
    assert steps["mean"][1]


def test_bpr_with_averaged_negatives_trains_as_its_loss_says():
    """Through the trainer, whose step in one pass sums: as by autograd."""
    task, ends = PairTask(toy_dataset().train, batch_size=16, n_negatives=3, layout="rows"), []
    for reduction, closed in (("mean", True), ("mean", False), ("sum", True)):
        learner = Learner(build(task, "bpr", negative_reduction=reduction), task, lr=1e-2, weight_decay=0.1)
        assert learner._tables is not None
        if not closed:
            learner._tables = None
        fit(learner, task, epochs=2)
        ends.append(learner.model.factors().queries)
    assert torch.allclose(ends[0], ends[1], atol=1e-4)
    assert not torch.allclose(ends[0], ends[2], atol=1e-2)


@pytest.mark.parametrize("name", ["bpr", "lightgcn", "ngcf", "sgl"])
def test_a_mean_of_negatives_that_are_rows_of_their_own_is_refused(name: str):
    config, train = MODELS[name].Config(negative_reduction="mean"), toy_dataset().train
    with pytest.raises(ConfigError, match="is 'triples' with 3 negatives"):
        MODELS[name].make_task(config, train, n_negatives=3)
    assert MODELS[name].make_task(config, train, n_negatives=3, layout="rows").layout == "rows"
    MODELS[name].make_task(config, train)


def test_the_documented_model_of_ones_own_trains_and_is_measured(toy, capsys):
    page = Path(__file__).parents[1].joinpath("docs/methods.md").read_text("utf-8")
    block = page.partition("## A model of your own")[2].partition("```python\n")[2].partition("```")[0]
    task = PairTask(toy.train)
    exec(block, {"data": toy, "teacher": ModelTeacher(build(task, "bpr", dim=8), task)})
    assert "ndcg@10" in capsys.readouterr().out
