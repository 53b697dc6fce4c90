"""Frequency-aware feature distillation: the properties of section 8 of the specification."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.csgraph
import torch

from kdrs.data import Interactions
from kdrs.distillers import FreqD
from kdrs.distillers._features import cosine_losses
from kdrs.distillers.freqd import Graph, shared_graph
from kdrs.errors import MissingKnowledge
from kdrs.teachers import base as teachers
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from test_distillers import batch_of, bpr, started
from test_mkd import Same

CPU = torch.device("cpu")


def made(task, student, teacher=None, **options):
    """Through the identity, from a teacher of the student's size."""
    config = FreqD.Config(**({"neighbours": 3, "keep": 1.0} | options))
    method = FreqD(config, [ModelTeacher(teacher or bpr(task, 4), task)], task, 4, seed=5)
    method.users = method.items = Same()
    return started(method, student, task)


def filtered(graph, table, a):
    """(1 - a) I + a A applied to a whole table."""
    ids = torch.arange(graph.size)
    starts, linked, values = graph.rows(ids)
    dense = torch.zeros(graph.size, graph.size)
    dense[torch.repeat_interleave(ids, torch.diff(starts, append=torch.tensor([len(linked)]))), linked] = values
    return (1 - a) * table + a * dense @ table


def slow_graph(seen, count):
    dense = seen.to_csr().toarray()
    shared = dense @ dense.T
    links = np.zeros_like(shared, dtype=float)
    for row in range(len(shared)):
        others = [j for j in range(len(shared)) if j != row and shared[row, j] > 0]
        for j in sorted(others, key=lambda j: (-shared[row, j], j))[:count]:
            links[row, j] = 1
    links = (links + links.T) / 2
    degrees = links.sum(1)
    scale = 1 / np.sqrt(np.where(degrees > 0, degrees, 1))
    return scale[:, None] * links * scale[None, :]


@pytest.mark.parametrize("block", [4 * 50 * 7, 1 << 20])
def test_graph_against_its_definition(toy, monkeypatch, block):
    monkeypatch.setattr(teachers, "BLOCK_BYTES", block)
    for seen in (toy.train, toy.train.transpose()):
        graph = shared_graph(seen, 5)
        assert np.allclose(graph.toarray(), slow_graph(seen, 5))
        eigenvalues = np.linalg.eigvalsh(np.eye(seen.shape[0]) - graph.toarray())
        assert eigenvalues.min() > -1e-9
        assert eigenvalues.max() < 2 + 1e-9


def test_links_need_a_shared_interaction():
    seen = Interactions.from_pairs([0, 1, 1, 2, 3], [0, 0, 1, 2, 1], 5, 3)  # user 2 shares nothing, user 4 has nothing
    graph = shared_graph(seen, 4).toarray()
    assert (graph[[2, 4]] == 0).all()
    assert (graph[:, [2, 4]] == 0).all()
    assert (np.diag(graph) == 0).all()
    assert graph[0].nonzero()[0].tolist() == [1]
    assert graph[1].nonzero()[0].tolist() == [0, 3]


def test_rows_of_a_graph():
    matrix = scipy.sparse.csr_array(np.array([[0, 2.0, 1.0], [0, 0, 0], [3.0, 0, 0]]))
    starts, columns, values = Graph(matrix, CPU).rows(torch.tensor([2, 1, 0, 2]))
    assert starts.tolist() == [0, 1, 1, 3]
    assert columns.tolist() == [0, 1, 2, 0]
    assert values.tolist() == [3, 2, 1, 3]


def test_filter_of_two_linked_entities():
    """A = [[0, 1], [1, 0]], a = ½: the constant passes, the alternating vector is gone."""
    low_pass = Graph(scipy.sparse.csr_array(np.array([[0, 1.0], [1.0, 0]])), CPU).low_pass(torch.arange(2), 0.5)
    for vector, expected in (([1.0, 1.0], [1.0, 1.0]), ([1.0, -1.0], [0.0, 0.0])):
        found = low_pass(torch.tensor(vector)[:, None])
        assert found[:, 0].tolist() == expected


def test_a_part_of_the_filter_and_its_gradient(task):
    graph = Graph(shared_graph(task.seen.transpose(), 3), CPU)
    table = torch.randn(graph.size, 4, dtype=torch.float32, requires_grad=True)
    ids = torch.tensor([1, 5, 20, 40])
    low_pass = graph.low_pass(ids, 0.3)
    found = low_pass(table[low_pass.needed])
    expected = filtered(graph, table, 0.3)[ids]
    assert torch.allclose(found, expected, atol=1e-6)
    weights = torch.randn(4, 4)
    gradients = [torch.autograd.grad((weights * part).sum(), table, retain_graph=True)[0] for part in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-6)
    links = graph.rows(ids)[1]
    assert low_pass.needed.tolist() == sorted({*ids.tolist(), *links.tolist()})
    noise = torch.Generator().manual_seed(0)
    thinned = [graph.low_pass(ids, 0.3, 0.5, noise) for _ in range(400)]
    assert min(len(part.needed) for part in thinned) < len(low_pass.needed)
    mean = torch.stack([part(table[part.needed].detach()) for part in thinned]).mean(0)
    assert torch.allclose(mean, expected.detach(), atol=0.2)


@pytest.mark.parametrize("cosine", [True, False])
def test_loss_against_its_definition(task, cosine):
    teacher, student = bpr(task, 4), bpr(task, 4, seed=1)
    method = made(task, student, cosine=cosine)
    batch = batch_of([0, 1, 1, 7], [3, 4, 5, 3], [6, 3, 7, 8])

    def losses(kind):
        pairs = [filtered(method.graphs[kind], getattr(m, kind).weight, 0.5) for m in (teacher, student)]
        return cosine_losses(*pairs) if cosine else (pairs[0] - pairs[1]).square().sum(1)

    items = losses("items")
    expected = losses("users")[[0, 1, 7]].sum() + (items[[3, 4, 5]].sum() + items[[6, 3, 7, 8]].sum()) / 2
    loss = method.loss(student(batch.queries), batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert (student.items.weight.grad.to_dense() != 0).any()


def test_the_projector_comes_first_and_the_filter_after_it(task):
    teacher, student = ModelTeacher(bpr(task, 6), task), bpr(task, 4, seed=1)
    method = FreqD(FreqD.Config(neighbours=3, keep=1.0, dropout=0.0), [teacher], task, 4)
    started(method, student, task)
    batch = batch_of([0, 1], [3, 4], [6, 7])

    def losses(kind):
        projector = method.users if kind == "users" else method.items
        rebuilt = projector(getattr(student, kind).weight, method._noise, lambda vectors: vectors)
        target = getattr(teacher.model, kind).weight
        return cosine_losses(*(filtered(method.graphs[kind], part, 0.5) for part in (target, rebuilt)))

    expected = losses("users")[[0, 1]].sum() + losses("items")[[3, 4, 6, 7]].sum() / 2
    assert method.loss(student(batch.queries), batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_the_filter_it_is_plain_feature_distillation(task):
    teacher, student = bpr(task, 4), bpr(task, 4, seed=1)
    method = made(task, student, strength=0.0, keep=0.5)
    batch = batch_of([0, 1], [3, 4], [6, 7])
    users = cosine_losses(teacher.users.weight, student.users.weight)[[0, 1]].sum()
    items = cosine_losses(teacher.items.weight, student.items.weight)[[3, 4, 6, 7]].sum() / 2
    assert method.loss(student(batch.queries), batch).item() == pytest.approx((users + items).item(), rel=1e-5)


def test_squared_error_is_weighed_by_frequency(task):
    """Σ_k (1 - a λ_k)² ‖u_kᵀ (T - F(S))‖² over all entities, λ_k the eigenvalues of I - A."""
    method = made(task, bpr(task, 4))
    graph = method.graphs["items"]
    error = torch.randn(task.n_items, 4, dtype=torch.float64)
    matrix = shared_graph(task.seen.transpose(), 3).toarray()
    values, vectors = np.linalg.eigh(np.eye(task.n_items) - matrix)
    components = vectors.T @ error.numpy()
    assert np.linalg.norm(components) == pytest.approx(error.norm().item())
    expected = ((1 - 0.5 * values)[:, None] ** 2 * components**2).sum()
    assert filtered(graph, error.float(), 0.5).square().sum().item() == pytest.approx(expected, rel=1e-5)


def test_errors_of_frequency_zero_pass_unchanged(task):
    """Constant over a connected part, times D^1/2."""
    links = shared_graph(task.seen.transpose(), 3)
    _, part = scipy.sparse.csgraph.connected_components(links)
    inverse = slow_degrees(task.seen.transpose(), 3)
    error = torch.from_numpy(np.where(part == part[0], np.sqrt(inverse), 0.0)).float()[:, None]
    assert (error > 0).sum() > 1
    assert torch.allclose(filtered(Graph(links, CPU), error, 0.5), error, atol=1e-5)


def slow_degrees(seen, count):
    """Row sums of (B + Bᵀ) / 2, B the links before they are made symmetric."""
    dense = seen.to_csr().toarray()
    shared = dense @ dense.T
    np.fill_diagonal(shared, 0)
    links = np.zeros_like(shared)
    for row, values in enumerate(shared):
        best = np.argsort(-values, kind="stable")[:count]
        links[row, best[values[best] > 0]] = 1
    return (links + links.T).sum(1) / 2


def test_dropping_entries_keeps_the_mean_and_is_shared_by_teacher_and_student(task):
    student = bpr(task, 4)  # the teacher itself: errors are 0 only if both see one graph
    batch = batch_of([0, 1], [3, 4], [6, 7])
    method = made(task, student, keep=0.5)
    assert method.loss(student(batch.queries), batch).item() == pytest.approx(0, abs=1e-5)
    other = bpr(task, 4, seed=1)
    dropping = made(task, other, keep=0.5, cosine=False)
    values = [dropping.loss(other(batch.queries), batch).item() for _ in range(5)]
    assert len(set(values)) == 5
    kept = made(task, other, keep=1.0, cosine=False)
    assert len({kept.loss(other(batch.queries), batch).item() for _ in range(3)}) == 1


def test_a_ranking_alone_is_refused_at_once(task, tmp_path):
    from safetensors.torch import save_file

    lists = torch.from_numpy(ModelTeacher(bpr(task, 6), task).topk(30).items.copy())
    save_file({"topk": lists}, tmp_path / "lists", metadata={"kdrs": "teacher/1"})
    with pytest.raises(MissingKnowledge, match="holds only a ranking; embeddings"):
        FreqD(FreqD.Config(), [FileTeacher(tmp_path / "lists", task)], task, 3)
