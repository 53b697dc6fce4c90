"""Kernels that have a gradient, against torch's own operations."""

from __future__ import annotations

import gc
import os
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrs import _core
from kdrs.core import kernels
from kdrs.errors import DataError
from kdrs.training import losses

SMALL = settings(max_examples=60, deadline=None)
PATHS = _core.simd_paths()


@st.composite
def problems(draw):
    """Own vectors, a table, ids and gradients of products; rows that no id touches and ids that come up often."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, width, items = draw(st.integers(1, 40)), draw(st.integers(1, 20)), draw(st.integers(1, 2_000))
    dim = draw(st.one_of(st.integers(1, 40), st.sampled_from([48, 64, 100, 129, 200])))
    touched = draw(st.integers(1, items))
    ids = rng.choice(rng.permutation(items)[:touched], (rows, width))
    arrays = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, dim), (items, dim), (rows, width)))
    own, table, weights = (torch.from_numpy(a) for a in arrays)
    return own, table, torch.from_numpy(ids), weights


def derivatives(own, table, ids, weights, sparse):
    leaves = [own.clone().requires_grad_(), table.clone().requires_grad_()]
    scores = kernels.Table(leaves[1], sparse=sparse).products(leaves[0], ids)
    (scores * weights.to(own.dtype)).sum().backward()
    return scores.detach(), leaves[0].grad, leaves[1].grad


@SMALL
@given(problems(), st.booleans())
def test_products_and_their_gradients(problem, sparse):
    own, table, ids, weights = problem
    expected = derivatives(own.double(), table.double(), ids, weights, False)
    *found, to_table = derivatives(own, table, ids, weights, sparse)
    if sparse:
        assert torch.equal(to_table._indices()[0], torch.unique(ids))
        to_table = to_table.to_dense()
    tolerance = 2e-6 * own.shape[1] ** 0.5 * ids.numel() ** 0.5
    for left, right in zip(expected, [*found, to_table], strict=True):
        assert torch.allclose(left, right.double(), rtol=1e-4, atol=10 * tolerance)


@SMALL
@given(problems())
def test_products_are_the_same_bytes_on_all_paths_and_threads(problem):
    own, table, ids, weights = (tensor.numpy() for tensor in problem)
    expected = None
    for path in PATHS:
        for threads in (1, 2):
            found = [
                _core.products(own, table, ids, threads, path),
                _core.product_sums(weights, table, ids, threads, path),
                *_core.product_scatter([(weights, own, ids)], *table.shape, False, threads, path),
                *_core.product_scatter([(weights, own, ids)], *table.shape, True, threads, path),
            ]
            expected = found if expected is None else expected
            assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True)), path


def test_the_same_through_the_environment(monkeypatch):
    """KDRS_SIMD reaches the kernels."""
    rng = torch.Generator().manual_seed(0)
    own, table = torch.randn(50, 20, generator=rng), torch.randn(70, 20, generator=rng)
    ids = torch.randint(70, (50, 30), generator=rng)
    usual = kernels.Table(table).products(own, ids)
    monkeypatch.setitem(os.environ, "KDRS_SIMD", "portable")
    assert torch.equal(usual, kernels.Table(table).products(own, ids))


def test_only_what_needs_a_gradient_gets_one():
    own, table, ids = torch.ones(3, 4), torch.ones(5, 4), torch.zeros(3, 2, dtype=torch.int64)
    for wanted in (own, table):
        others = [t.clone() for t in (own, table)]
        others[0 if wanted is own else 1].requires_grad_()
        kernels.Table(others[1]).products(others[0], ids).sum().backward()
        assert [t.grad is not None for t in others] == [wanted is own, wanted is table]
    assert not kernels.Table(table).products(own, ids).requires_grad


def test_vectors_that_are_not_contiguous():
    wide = torch.arange(24.0).view(4, 6)
    ids = torch.tensor([[0, 1], [1, 0], [3, 3], [2, 1]])
    found = kernels.Table(wide.T[:4, :2]).products(wide[:, 1:3], ids.T.contiguous().T)
    expected = (wide[:, None, 1:3] * wide.T[:4, :2][ids]).sum(-1)
    assert torch.equal(found, expected)


@SMALL
@given(problems(), st.booleans(), st.booleans())
def test_readers_of_one_table_add_up(problem, sparse, again):
    """Two readers of a step, of different widths, and the table's rows themselves; a second backward pass starts anew."""
    own, table, ids, weights = problem
    found = []
    for dtype in (torch.float64, torch.float32):
        leaves = [t.to(dtype).clone().requires_grad_() for t in (own, table)]
        shared = kernels.Table(leaves[1], sparse=sparse)
        first, second = shared.products(leaves[0], ids), shared.products(leaves[0] * 2, ids[:, :1])
        rows = F.embedding(ids[:, 0], leaves[1], sparse=sparse)
        loss = (first * weights.to(dtype)).sum() + second.square().mean() + rows.square().mean()
        if again:
            loss.backward(retain_graph=True)
        loss.backward()
        found.append([leaf.grad.to_dense().double() for leaf in leaves])
    for expected, got in zip(*found, strict=True):
        assert torch.allclose(expected, got, rtol=1e-4, atol=1e-4 * (1 + float(expected.abs().max())))


def test_a_table_is_forgotten_with_its_step():
    """No circle holds a step's tensors."""
    values = torch.ones(5, 4, requires_grad=True)
    table = kernels.Table(values)
    scores = table.products(torch.ones(3, 4, requires_grad=True), torch.zeros(3, 2, dtype=torch.int64))
    shares = weakref.ref(table._shares)
    gc.disable()
    try:
        scores.sum().backward()
        del table, scores
        assert shares() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("bad", [-1, 5])
def test_ids_that_are_no_row_of_the_table(bad):
    ids = torch.tensor([[0, 1], [bad, 0], [3, 3]])
    with pytest.raises(DataError, match=f"row 1 holds item {bad}; allowed: 0 to 4"):
        kernels.Table(torch.ones(5, 4)).products(torch.ones(3, 4), ids)


def test_other_types_take_torchs_operations():
    assert kernels.supported(torch.ones(1))
    assert not kernels.supported(torch.ones(1), torch.ones(1, dtype=torch.float64))
    assert not kernels.supported(torch.ones(1, device="meta"))


def test_the_table_of_an_embedding_gets_what_the_embedding_would_get():
    rng = torch.Generator().manual_seed(0)
    table = torch.nn.Embedding(30, 7, sparse=True)
    own, ids = torch.randn(20, 7, generator=rng), torch.randint(30, (20, 9), generator=rng)
    found = []
    for scores in (
        kernels.Table(table.weight, sparse=True).products(own, ids),
        torch.bmm(F.embedding(ids, table.weight, sparse=True), own.unsqueeze(-1)).squeeze(-1),
    ):
        table.zero_grad()
        scores.square().sum().backward()
        found.append(table.weight.grad.to_dense())
    assert torch.allclose(*found, rtol=1e-5, atol=1e-5)


@SMALL
@given(
    st.integers(0, 2**32), st.integers(1, 50), st.integers(0, 50), st.sampled_from([1.0, 30.0, 2000.0]), st.booleans()
)
def test_relaxed_ranking_against_float64(seed, k, n, spread, padded):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(8, k + n, generator=rng) * spread
    weights = torch.rand(8, generator=rng)
    mask = torch.rand(8, k + n, generator=rng) < 0.6 if padded else None
    if mask is not None:
        mask[:, 0] = True
    found = []
    for own in (scores.double(), scores.clone()):
        leaf = own.requires_grad_()
        loss = losses.relaxed_ranking_of(leaf, k, mask)
        (loss * weights.to(loss.dtype)).sum().backward()
        found.append((loss.detach().double(), leaf.grad.double()))
    for expected, got in zip(*found, strict=True):
        assert torch.allclose(expected, got, rtol=1e-5, atol=1e-5)


@SMALL
@given(st.integers(0, 2**32), st.integers(1, 90), st.sampled_from([1.0, 2000.0]), st.booleans(), st.data())
def test_relaxed_ranking_is_the_same_bytes_on_all_paths_and_threads(seed, width, spread, padded, data):
    rng = np.random.default_rng(seed)
    scores = (rng.standard_normal((300, width)) * spread).astype(np.float32)
    known = rng.random((300, width)) < 0.7 if padded else None
    listed = data.draw(st.integers(0, width))
    expected = None
    for path in PATHS:
        for threads in (1, 2):
            found = _core.relaxed_ranking(scores, listed, known, threads, path)
            expected = found if expected is None else expected
            assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True)), path


def test_relaxed_ranking_shows_what_diverged():
    scores = torch.tensor([[1.0, float("nan"), 0.0], [1.0, 2.0, 3.0]])
    loss = losses.relaxed_ranking_of(scores, 2)
    assert torch.isnan(loss[0])
    assert torch.isfinite(loss[1])


@st.composite
def mixtures(draw):
    """Vectors [E, S], shares [E, M], some of them 0, layers [M, S, H], [M, H], [M, H, T] and [M, T], and a gradient [E, T]."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    entities, networks = draw(st.integers(0, 60)), draw(st.integers(1, 6))
    source, hidden, target = (draw(st.integers(1, 70)) for _ in range(3))
    kept = torch.rand(entities, networks, generator=rng) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    shapes = (networks, source, hidden), (networks, hidden), (networks, hidden, target), (networks, target)
    given = [torch.randn(entities, source, generator=rng), torch.rand(kept.shape, generator=rng) * kept]
    given += [torch.randn(shape, generator=rng) / shape[1] ** 0.5 for shape in shapes]
    return given, torch.randn(entities, target, generator=rng)


@SMALL
@given(mixtures())
def test_mixtures_and_their_gradients(mixture):
    given, back = mixture
    leaves = [t.to(torch.float64).requires_grad_() for t in given]
    source, shares, weight1, bias1, weight2, bias2 = leaves
    expected = torch.zeros(back.shape, dtype=torch.float64)
    for m in range(shares.shape[1]):
        out = torch.relu(source @ weight1[m] + bias1[m]) @ weight2[m] + bias2[m]
        expected = expected + shares[:, m : m + 1] * out
    expected.backward(back.double())
    for dtype in (torch.float32, torch.float64):
        own = [t.to(dtype, copy=True).requires_grad_() for t in given]
        found = kernels.mixture(*own)
        found.backward(back.to(dtype))
        assert torch.allclose(found.double(), expected, atol=1e-4)
        for place, (one, wanted) in enumerate(zip(own, leaves, strict=True)):
            gradient = one.grad * (shares != 0) if place == 1 else one.grad  # a share of 0 need not have any
            goal = wanted.grad * (shares != 0) if place == 1 else wanted.grad
            assert torch.allclose(gradient.double(), goal, rtol=1e-4, atol=1e-3)


def test_a_mixture_shows_what_diverged_and_takes_views():
    torch.manual_seed(0)
    source, shares = torch.randn(4, 6)[:, ::2], torch.rand(2, 4).T
    layers = [torch.randn(shape) for shape in ((2, 3, 5), (2, 5), (2, 5, 7), (2, 7))]
    found = kernels.mixture(source, shares, *layers)
    assert torch.equal(found, kernels.mixture(source.contiguous(), shares.contiguous(), *layers))
    for place in (0, 1):
        given = [source.clone(), shares.clone()]
        given[place][2, 0] = float("nan")
        assert torch.isnan(kernels.mixture(*given, *layers)).any(dim=1).tolist() == [False, False, True, False]


def test_mixtures_refuse_layers_that_do_not_belong_together():
    shapes = [(4, 3), (4, 2), (2, 3, 5), (2, 5), (2, 5, 7), (2, 7)]
    for place, other in ((0, (4, 4)), (1, (4, 3)), (3, (5, 2)), (4, (5, 2, 7)), (5, (7, 2))):
        given = [torch.zeros(other if index == place else shape) for index, shape in enumerate(shapes)]
        with pytest.raises(DataError):
            kernels.mixture(*given)


@SMALL
@given(st.integers(0, 2**32), st.integers(0, 70), st.integers(1, 60), st.integers(1, 70), st.booleans())
def test_quadratic_forms_and_their_gradients(seed, count, dim, outputs, bf16):
    rng = torch.Generator().manual_seed(seed)
    first, second = torch.triu_indices(dim, dim, 1)
    vectors, back = (torch.randn(count, size, generator=rng) for size in (dim, outputs))
    weights = torch.randn(len(first), outputs, generator=rng)
    rounded = [t.bfloat16() if bf16 else t for t in (2 * vectors[:, first] * vectors[:, second], weights, back)]
    features, right, gradient = (t.double() for t in rounded)
    expected = features @ right, features.T @ gradient
    found = []
    for path in PATHS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KDRS_SIMD", path)
            forms = kernels.quadratic(vectors, weights, bf16=bf16)
            found.append((forms, kernels.quadratic_gradient(vectors, back, bf16=bf16)))
    for forms, gradient in found:
        assert torch.equal(forms, found[0][0])
        assert torch.equal(gradient, found[0][1])
    for own, wanted in zip(found[0], expected, strict=True):
        assert torch.allclose(own.double(), wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("bf16", [False, True])
def test_quadratic_forms_refuse_sizes_that_do_not_agree(bf16):
    with pytest.raises(DataError, match="2 rows of weights for the 3 pairs of 3 dimensions"):
        kernels.quadratic(torch.zeros(4, 3), torch.zeros(2, 5), bf16=bf16)
    with pytest.raises(DataError, match="3 gradients of 4 vectors"):
        kernels.quadratic_gradient(torch.zeros(4, 3), torch.zeros(3, 5), bf16=bf16)


@SMALL
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.2, 0.5, 0.99999]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_dropout_and_its_gradient(shape, share, relu, seed):
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=noise, requires_grad=True)
    state = noise.get_state()
    out = kernels.dropout(x, share, noise, relu=relu)
    noise.set_state(state)
    kept = kernels.dropout(torch.ones(shape), share, noise)  # the same places, scaled
    assert torch.equal(out, (x.relu() if relu else x) * kept)
    weights = torch.randn(shape)
    if x.numel():
        (out * weights).sum().backward()
        assert torch.equal(x.grad, weights * kept * ((x > 0) if relu else 1))


@pytest.mark.parametrize("share", [0.25, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_keeps_means_and_neighbours_are_independent(share, dtype):
    torch.manual_seed(0)
    out = kernels.dropout(torch.ones(400, 1001, dtype=dtype).T, share)
    assert out[out != 0].unique().tolist() == pytest.approx([1 / (1 - share)], rel=1e-3)
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    kept = (out.reshape(-1, 8) > 0).float()
    assert torch.corrcoef(kept.T).fill_diagonal_(0).abs().max() < 0.02
    torch.manual_seed(0)
    assert torch.equal(kernels.dropout(torch.ones(1001, 400, dtype=dtype), share), out)
    assert not torch.equal(kernels.dropout(torch.ones(1001, 400, dtype=dtype), share), out)


def test_dropout_shows_what_diverged():
    x = torch.tensor([float("nan"), -1.0, 2.0])
    assert kernels.dropout(x, 0.0, relu=True).isnan().tolist() == [True, False, False]


def test_dropout_within_a_checkpoint_and_its_second_derivative():
    x = torch.randn(5, 8, requires_grad=True)
    noise = torch.Generator().manual_seed(1)
    state = noise.get_state()

    def forward(values):
        noise.set_state(state)
        return kernels.dropout(values, 0.5, noise, relu=True)

    torch.utils.checkpoint.checkpoint(forward, x, use_reentrant=False).sum().backward()
    again = torch.autograd.grad(forward(x).sum(), x)[0]
    assert torch.equal(x.grad, again)
    for relu in (False, True):
        noise.set_state(state)
        y = kernels.dropout(x, 0.5, noise, relu=relu)
        slope = (y / x).detach()
        (first,) = torch.autograd.grad((y * y * x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        assert torch.allclose(second, 6 * slope.square() * x, atol=1e-4)
