"""NGCF, SGL and the graph below them against dense forms of their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdrs.data import Interactions
from kdrs.errors import ConfigError
from kdrs.models import NGCF, SGL, LightGCN
from kdrs.models._graph import BipartiteGraph
from kdrs.teachers.model import ModelTeacher
from kdrs.training import losses
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Batch, Epoch, Queries
from test_distillers import batch_of


def build(cls, task: PairTask, **options):
    torch.manual_seed(0)
    return cls(cls.Config(**{"dim": 6, **options}), task)


def dense(seen: Interactions, kept: np.ndarray | None = None) -> np.ndarray:
    """The adjacency matrix A of all nodes."""
    chosen = np.ones(seen.n_pairs, bool) if kept is None else kept
    adjacency = np.zeros((sum(seen.shape),) * 2)
    adjacency[seen.row_of_pair[chosen], seen.shape[0] + seen.indices[chosen]] = 1
    return adjacency + adjacency.T


def normalised(adjacency: np.ndarray) -> torch.Tensor:
    degrees = adjacency.sum(1)
    scale = np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    return torch.from_numpy(scale[:, None] * adjacency * scale).float()


# --- the graph ------------------------------------------------------------------------------------------------------


def test_sub_graphs_are_normalised_by_their_own_degrees(toy):
    graph = BipartiteGraph(toy.train)
    assert torch.allclose(graph.normalised().to_dense(), normalised(dense(toy.train)))
    kept = np.random.default_rng(0).random(toy.train.n_pairs) < 0.4
    kept[toy.train.row_of_pair == 3] = False  # a user without edges
    assert torch.allclose(graph.normalised(kept).to_dense(), normalised(dense(toy.train, kept)))


def test_the_mirror_of_an_entry_is_its_transpose(toy):
    graph = BipartiteGraph(toy.train)
    assert (graph.rows[graph.mirror] == graph.columns).all()
    assert (graph.columns[graph.mirror] == graph.rows).all()


def test_renaming_nodes_renames_outputs(toy, task: PairTask):
    users, items = np.random.default_rng(1).permutation(50), np.random.default_rng(2).permutation(80)
    renamed = PairTask(Interactions.from_pairs(users[toy.train.row_of_pair], items[toy.train.indices], 50, 80))
    order = torch.from_numpy(np.concatenate([users, 50 + items]))
    for cls in (LightGCN, NGCF, SGL):
        one, other = build(cls, task).eval(), build(cls, renamed).eval()
        other.load_state_dict(one.state_dict())
        with torch.no_grad():
            other.vectors[order] = one.vectors
        assert torch.allclose(other.propagated()[order], one.propagated(), atol=1e-6), cls


@pytest.mark.parametrize("cls", [LightGCN, SGL])
def test_representations_may_be_those_of_the_first_layer(task: PairTask, cls):
    """Scores stay those of the output; a method on representations then moves the vectors without propagation."""
    model, plain = (build(cls, task, hidden=hidden) for hidden in ("layer0", "propagated"))
    users, items = torch.tensor([3, 8]), torch.tensor([[1, 2], [3, 79]])
    view, other = (m(Queries(users, users)) for m in (model, plain))
    assert torch.equal(view.queries, model.vectors[users])
    assert torch.equal(view.items(items), model.vectors[50 + items])
    assert torch.allclose(other.queries, plain.propagated()[users])
    assert torch.equal(view.all_scores(), other.all_scores())
    assert torch.allclose(view.scores(items), other.scores(items))
    assert torch.equal(view.at(Queries(users[1:], users[1:])).queries, model.vectors[users[1:]])


@pytest.mark.parametrize("cls", [LightGCN, SGL])
def test_a_teacher_answers_with_its_output_whatever_it_shows_in_training(task: PairTask, cls):
    model = build(cls, task, hidden="layer0")
    users, items = torch.tensor([3, 8]), torch.tensor([1, 79])
    view = ModelTeacher(model, task).view(Queries(users, users))
    output = model.propagated().detach()
    assert not torch.allclose(output, model.vectors)
    assert torch.allclose(view.queries, output[users])
    assert torch.allclose(view.items(items), output[50 + items])


# --- NGCF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adjacency", ["row", "symmetric"])
def test_ngcf_against_dense_matrices(toy, task: PairTask, adjacency: str):
    model = build(NGCF, task, layers=2, adjacency=adjacency).eval()
    a = dense(toy.train)
    looped = a + np.eye(len(a))
    walk, plain = torch.from_numpy(looped / looped.sum(1, keepdims=True)).float(), normalised(a)
    vectors = model.vectors.detach().clone().requires_grad_()
    layer, blocks = vectors, [vectors]
    for linear, product in zip(model.linear, model.products, strict=True):
        if adjacency == "row":
            around = summed = walk @ layer
        else:
            around = plain @ layer
            summed = around + layer
        out = summed @ linear.weight + linear.bias + (around * layer) @ product.weight + product.bias
        layer = torch.where(out > 0, out, 0.2 * out)
        blocks.append(layer / layer.norm(dim=1, keepdim=True))
    expected = torch.cat(blocks, dim=1)
    output = model.propagated()
    assert torch.allclose(output, expected, atol=1e-5)
    direction = torch.randn_like(expected)
    (output * direction).sum().backward()
    (expected * direction).sum().backward()
    assert torch.allclose(model.vectors.grad, vectors.grad, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({"dim": 200}, [100, 100]),
        ({"dim": 20}, [10, 10]),
        ({"dim": 5, "layers": 2}, [2, 2, 1]),
        ({"dim": 6, "layers": 2, "size": "block"}, [6, 6, 6]),
    ],
)
def test_ngcf_size_is_that_of_the_concatenation(task: PairTask, options, widths):
    model = build(NGCF, task, **options).eval()
    assert model.dim == sum(widths) == model.propagated().shape[1]
    blocks = model.propagated().split(widths, dim=1)
    for block in blocks[1:]:
        assert torch.allclose(block.norm(dim=1), torch.ones(130), atol=1e-5)
    assert torch.equal(blocks[0], model.vectors)


def test_ngcf_dropout_is_for_training_only(task: PairTask):
    model = build(NGCF, task, dim=20)
    noisy = [model.train().propagated() for _ in range(2)]
    assert not torch.equal(*noisy)
    calm = [model.eval().propagated() for _ in range(2)]
    assert torch.equal(*calm)
    without = build(NGCF, task, dim=20, message_dropout=0, node_dropout=0).train()
    assert torch.equal(without.propagated(), calm[0])


def test_ngcf_drops_a_tenth_of_the_entries_and_scales_the_rest(task: PairTask):
    model = build(NGCF, task)
    (graph, transposed), own = model._adjacency()
    assert torch.allclose(graph.to_dense().T, transposed.to_dense())
    entries = torch.cat([graph.values() / model.values, own[:, 0] / model.own[:, 0]])
    assert ((entries == 0) | torch.isclose(entries, torch.tensor(1 / 0.9))).all()
    assert (entries == 0).float().mean().item() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(("options", "rate"), [({}, 0.1), ({"message_dropout": 0.4}, 0.4)])
def test_ngcf_drops_messages_before_it_brings_them_to_length_1(toy, task: PairTask, options, rate: float):
    """What is left out of a layer is missing in its copy for the output and in the next layer."""
    model = build(NGCF, task, dim=300, layers=2, node_dropout=0, **options)
    looped = dense(toy.train) + np.eye(130)
    walk = torch.from_numpy(looped / looped.sum(1, keepdims=True)).float()
    layer, *blocks = model.propagated().split(100, dim=1)
    for linear, product, block in zip(model.linear, model.products, blocks, strict=True):
        kept = block != 0
        assert kept.float().mean().item() == pytest.approx(1 - rate, abs=0.02)
        around = walk @ layer
        messages = around @ linear.weight + linear.bias + (around * layer) @ product.weight + product.bias
        layer = F.leaky_relu(messages, 0.2) * kept / (1 - rate)
        assert torch.allclose(block, F.normalize(layer, dim=1), atol=1e-5)


def test_ngcf_starts_xavier_uniform(task: PairTask):
    """Within ±√(6 / (rows + columns)), biases as rows."""
    model = build(NGCF, task, dim=200)
    users, items = model.vectors.split([50, 80])
    layers = [(part.weight, part.bias) for part in (model.linear[0], model.products[0])]
    for table in (users, items, *(parameter for layer in layers for parameter in layer)):
        bound = np.sqrt(6 / sum(table.shape))
        assert 0.9 * bound < table.abs().max() <= bound
        assert table.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.15)


def test_ngcf_loss(task: PairTask):
    model = build(NGCF, task, reg=0.3, message_dropout=0, node_dropout=0)
    batch = batch_of([1, 4, 4], [2, 3, 9], [5, 2, 7])
    output = model.propagated().detach()
    u, i, j = (
        output[ids + offset]
        for ids, offset in ((batch.queries.users, 0), (batch.positives, 50), (batch.negatives[:, 0], 50))
    )
    expected = F.softplus((u * j).sum(1) - (u * i).sum(1)).sum() + 0.15 * sum(v.square().sum() for v in (u, i, j))
    assert model.loss(model(batch.queries), batch).item() == pytest.approx(expected.item(), rel=1e-5)
    mean = build(NGCF, task, reg=0.3, message_dropout=0, node_dropout=0, reduction="mean")
    assert mean.loss(mean(batch.queries), batch).item() == pytest.approx(expected.item() / 3, rel=1e-5)


def test_ngcf_too_small_for_its_blocks(task: PairTask):
    with pytest.raises(ConfigError, match="dim is 2 for 3 concatenated blocks"):
        build(NGCF, task, dim=2, layers=2)


# --- SGL ------------------------------------------------------------------------------------------------------------


def random_batch(size: int = 40) -> Batch:
    users = torch.randint(0, 50, (size,))
    return Batch(Queries(users, users), torch.randint(0, 80, (size,)), torch.randint(0, 80, (size, 1)))


def ssl_term(model: SGL, batch: Batch) -> float:
    without = build(SGL, PairTask(model_seen(model)), ssl=0.0)
    without.load_state_dict(model.state_dict())
    with torch.no_grad():
        return (model.loss(model(batch.queries), batch) - without.loss(without(batch.queries), batch)).item()


def model_seen(model: SGL) -> Interactions:
    structure = model._structure
    return Interactions.from_pairs(structure.users, structure.items, model.n_users, model.n_items)


def test_sgl_without_its_term_is_lightgcn(task: PairTask):
    model = build(SGL, task, ssl=0.0, reg=0.2)
    plain = build(LightGCN, task, reg=0.1)
    plain.load_state_dict(model.state_dict())
    batch = random_batch()
    assert torch.equal(model.loss(model(batch.queries), batch), plain.loss(plain(batch.queries), batch))
    bounds = [np.sqrt(6 / (n + 6)) for n in (50, 80)]
    for table, bound in zip(model.vectors.split([50, 80]), bounds, strict=True):
        assert 0.9 * bound < table.abs().max() <= bound


def test_sgl_term_without_augmentation(task: PairTask):
    """Equal views: Σ [log Σ_v exp(z_u · z_v / T) - 1 / T], over users and positive items, with multiplicity."""
    model = build(SGL, task, drop=0.0, ssl=0.7, temperature=0.5)
    model.on_epoch_start(Epoch(0, 0, 1))
    batch = random_batch()
    users, items = F.normalize(model.propagated(), dim=1).detach().split([50, 80])
    expected = 0.0
    for table, ids in ((users, batch.queries.users), (items, batch.positives)):
        cosines = table[ids] @ table.T / 0.5
        expected += (torch.logsumexp(cosines, dim=1) - 1 / 0.5).sum().item()
    assert ssl_term(model, batch) == pytest.approx(0.7 * expected, rel=1e-4)


@pytest.mark.parametrize("augmentation", ["edges", "nodes", "walk"])
def test_sgl_term_against_its_definition(task: PairTask, augmentation: str):
    model = build(SGL, task, drop=0.3, ssl=1.0, augmentation=augmentation)
    model.on_epoch_start(Epoch(0, 0, 1))
    batch = random_batch()
    views = []
    for graphs in model._views:
        layer = total = model.vectors.detach()
        for graph in graphs:
            layer = graph.to_dense() @ layer
            total = total + layer
        views.append(F.normalize(total, dim=1).split([50, 80]))
    expected = 0.0
    for kind, ids in ((0, batch.queries.users), (1, batch.positives)):
        logits = views[0][kind][ids] @ views[1][kind].T / 0.2
        expected += F.cross_entropy(logits, ids, reduction="sum").item()
    assert expected > 0
    assert ssl_term(model, batch) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("augmentation", ["edges", "nodes", "walk"])
def test_sgl_views_leave_out_their_share(toy, task: PairTask, augmentation: str):
    model = build(SGL, task, drop=0.3, augmentation=augmentation)
    model.on_epoch_start(Epoch(0, 0, 1))
    graphs = [graph for view in model._views for graph in view]
    n = toy.train.n_pairs
    full = dense(toy.train) > 0
    for graph in graphs:
        edges = graph.to_dense().numpy() > 0
        assert not (edges & ~full).any()
        if augmentation == "nodes":
            assert (edges[:50].any(axis=1)).sum() <= 50 - 15
            assert (edges[50:].any(axis=1)).sum() <= 80 - 24
        else:
            assert edges.sum() == 2 * int(n * (1 - 0.3))
    distinct = {tuple(graph.col_indices().tolist()) for graph in graphs}
    assert len(distinct) == (6 if augmentation == "walk" else 2)


def test_sgl_views_depend_on_the_epoch_alone(task: PairTask):
    one, other = build(SGL, task), build(SGL, task)
    seen = []
    for model, epochs in ((one, (0, 1, 2)), (other, (2,))):
        for index in epochs:
            model.on_epoch_start(Epoch(index, 5, 9))
        seen.append([view[0].col_indices() for view in model._views])
    assert all(torch.equal(left, right) for left, right in zip(*seen, strict=True))
    one.on_epoch_start(Epoch(3, 5, 9))
    assert not torch.equal(one._views[0][0].col_indices(), seen[0][0])


# --- a softmax over a catalogue -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("floats", "rows"), [(1, 1), (12, 3), (70, 2048), (1 << 19, 2048)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("bound", [None, 1.5])
def test_logsumexp_of_products_is_torchs(monkeypatch, floats: int, rows: int, biased: bool, bound: float | None):
    monkeypatch.setattr(losses._LogSumExp, "TILE_FLOATS", floats)
    monkeypatch.setattr(losses._LogSumExp, "TILE_ROWS", rows)
    torch.manual_seed(0)
    inputs = [torch.randn(7, 3), torch.randn(20, 3), torch.randn(20)][: 2 + biased]
    weights, results = torch.randn(7), []
    chosen = torch.rand(7, 20) < 0.3
    chosen[2] = True  # of this row nothing is left
    for hidden in (None, chosen):
        pairs = None if hidden is None else hidden.nonzero().flip(0).unbind(1)

        def slow(left, right, bias=None, hidden=hidden):
            scores = left @ right.T if bias is None else left @ right.T + bias
            scores = scores if bound is None else scores.clamp(-bound, bound)
            return torch.logsumexp(scores if hidden is None else scores.masked_fill(hidden, -torch.inf), dim=1)

        def fast(*parts, pairs=pairs):
            return losses.logsumexp_products(*parts, hidden=pairs, bound=bound)

        results = []
        for function in (fast, slow):
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            value = function(*leaves)
            kept = torch.ones(7, dtype=torch.bool) if hidden is None else ~hidden.all(1)
            if function is fast:
                assert (value[~kept] == torch.finfo(torch.float32).min).all()
            (value * weights)[kept].sum().backward()
            results.append([value.detach()[kept], *(leaf.grad for leaf in leaves)])
        for ours, theirs in zip(*results, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_logsumexp_of_products_with_an_infinite_one():
    bias = torch.zeros(5)
    bias[3] = torch.inf
    left, right = torch.randn(2, 3, requires_grad=True), torch.randn(5, 3)
    assert losses.logsumexp_products(left, right, bias).tolist() == [torch.inf, torch.inf]


def test_logsumexp_of_no_products():
    assert (
        losses.logsumexp_products(torch.zeros(2, 3), torch.zeros(0, 3)).tolist() == [torch.finfo(torch.float32).min] * 2
    )
    assert losses.logsumexp_products(torch.zeros(0, 3), torch.zeros(4, 3)).shape == (0,)


def test_logsumexp_of_products_does_not_overflow():
    assert losses.logsumexp_products(torch.tensor([[200.0]]), torch.tensor([[1.0], [1.0]])).item() == pytest.approx(
        200.693147, abs=1e-4
    )
