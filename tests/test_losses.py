"""Losses against numbers small enough to check on paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdrs.training import losses


def test_bpr_of_equal_scores_is_ln_2_a_triple():
    assert losses.bpr(torch.zeros(3), torch.zeros(3, 2)).item() == pytest.approx(6 * math.log(2))


def test_bpr_survives_differences_that_overflow_a_sigmoid():
    positive = torch.tensor([-200.0], requires_grad=True)
    loss = losses.bpr(positive, torch.tensor([[200.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(400.0)
    assert positive.grad.item() == pytest.approx(-1.0)


def test_pointwise_of_zero_logits():
    assert losses.pointwise(torch.zeros(4), torch.zeros(4)).item() == pytest.approx(8 * math.log(2))


def test_relaxed_ranking_worked_example():
    listed, background = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[-1.0]], requires_grad=True)
    loss = losses.relaxed_ranking(listed, background)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.720868, abs=1e-6)
    gradient = torch.cat([listed.grad[0], background.grad[0]])
    assert gradient.tolist() == pytest.approx([-0.33476, -0.02421, 0.35897], abs=1e-5)
    assert gradient.sum().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("k", "n", "expected"), [(2, 1, math.log(6)), (40, 40, 163.3525), (1, 0, 0.0)])
def test_relaxed_ranking_of_equal_scores(k, n, expected):
    assert losses.relaxed_ranking(torch.zeros(1, k), torch.zeros(1, n)).item() == pytest.approx(expected, rel=1e-5)


def slow_relaxed_ranking(listed: list[float], background: list[float]) -> float:
    rest = sum(math.exp(s) for s in background)
    return sum(math.log(sum(math.exp(s) for s in listed[k:]) + rest) - listed[k] for k in range(len(listed)))


scores = st.floats(-5, 5, width=32)


@given(st.lists(scores, min_size=1, max_size=6), st.lists(scores, max_size=6), st.floats(-30, 30), st.data())
def test_relaxed_ranking_against_its_definition(listed, background, shift, data):
    def loss(a, b):
        return losses.relaxed_ranking(torch.tensor([a]), torch.tensor([b]).reshape(1, -1)).item()

    expected = slow_relaxed_ranking(listed, background)
    assert loss(listed, background) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert loss([s + shift for s in listed], [s + shift for s in background]) == pytest.approx(
        expected, rel=1e-3, abs=1e-3
    )
    assert loss(listed, data.draw(st.permutations(background))) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(st.lists(scores, min_size=1, max_size=5), st.lists(scores, max_size=5), st.integers(0, 3), st.integers(0, 3))
def test_relaxed_ranking_leaves_padding_out(listed, background, pad, pad_rest):
    full = losses.relaxed_ranking(torch.tensor([listed]), torch.tensor([background]).reshape(1, -1))
    padded = torch.tensor([listed + [7.0] * pad], requires_grad=True)
    rest = torch.tensor([background + [9.0] * pad_rest]).reshape(1, -1)
    masks = (torch.arange(padded.shape[1])[None] < len(listed), torch.arange(rest.shape[1])[None] < len(background))
    masked = losses.relaxed_ranking(padded, rest, *masks)
    masked.sum().backward()
    assert masked.item() == pytest.approx(full.item(), rel=1e-5, abs=1e-5)
    assert torch.isfinite(padded.grad).all()
    assert (padded.grad[0, len(listed) :] == 0).all()


def autograd_relaxed_ranking(listed, background, listed_mask, background_mask):
    """The definition by torch's own log-cumulative sums, differentiated by autograd."""
    tails = torch.logcumsumexp(listed.masked_fill(~listed_mask, -torch.inf).flip(-1), dim=-1).flip(-1)
    if background.shape[-1]:
        rest = torch.logsumexp(background.masked_fill(~background_mask, -torch.inf), dim=-1, keepdim=True)
        tails = torch.logaddexp(tails, rest)
    return torch.where(listed_mask, tails - listed, 0.0).sum(-1)


@pytest.mark.parametrize("spread", [1.0, 30.0, 300.0, 3000.0])
@pytest.mark.parametrize(("k", "n"), [(40, 40), (7, 3), (1, 2), (9, 0)])
@pytest.mark.parametrize("padded", [False, True])
def test_relaxed_ranking_and_its_gradient_are_exact(k, n, spread, padded):
    """Spreads past 700 leave the range of float64's exp: the sums then go through logarithms."""
    rng = torch.Generator().manual_seed(k + n)
    values = [torch.randn(30, width, generator=rng, dtype=torch.float64) * spread for width in (k, n)]
    weights = torch.rand(30, generator=rng, dtype=torch.float64)
    masks = [torch.ones(30, width, dtype=torch.bool) for width in (k, n)]
    if padded:
        masks = [
            torch.arange(w)[None] < torch.randint(1, w + 1, (30, 1), generator=rng) if w else m
            for w, m in zip((k, n), masks, strict=True)
        ]
    found = []
    for loss in (autograd_relaxed_ranking, losses.relaxed_ranking):
        leaves = [v.clone().requires_grad_() for v in values]
        out = loss(*leaves, *(masks if padded or loss is autograd_relaxed_ranking else (None, None)))
        (out * weights).sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    for expected, got in zip(*found, strict=False):
        assert torch.allclose(expected, got, rtol=1e-9, atol=1e-9)


def test_relaxed_ranking_of_a_query_without_entries_is_zero():
    listed, background = torch.ones(2, 3, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    nothing = torch.tensor([[False] * 3, [True] * 3])
    loss = losses.relaxed_ranking(listed, background, nothing, torch.tensor([[True, False], [True, True]]))
    loss.sum().backward()
    assert loss[0].item() == 0
    assert (listed.grad[0] == 0).all()
    assert (background.grad[0] == 0).all()
    assert loss[1].item() == pytest.approx(math.log(5 * 4 * 3))


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=8))
def test_logcumsumexp_against_its_definition(values):
    expected = [max(values[: k + 1]) for k in range(len(values))]
    expected = [top + math.log(sum(math.exp(v - top) for v in values[: k + 1])) for k, top in enumerate(expected)]
    found = losses.logcumsumexp(torch.tensor([values], dtype=torch.float64))[0]
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_putting_two_neighbours_into_score_order_lowers_relaxed_ranking():
    wrong = losses.relaxed_ranking(torch.tensor([[0.0, 1.0, -1.0]]), torch.zeros(1, 2))
    right = losses.relaxed_ranking(torch.tensor([[1.0, 0.0, -1.0]]), torch.zeros(1, 2))
    assert right.item() < wrong.item()


def test_soft_pointwise_is_the_entropy_at_its_minimum():
    target = torch.sigmoid(torch.tensor([[1.0]]))
    at = torch.tensor([[1.0]], requires_grad=True)
    loss = losses.soft_pointwise(at, target)
    loss.backward()
    assert loss.item() == pytest.approx(0.582203, abs=1e-6)
    assert at.grad.item() == pytest.approx(0, abs=1e-6)
    assert losses.soft_pointwise(torch.zeros(1, 1), target).item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_squared_distances_and_their_gradient(wanted):
    rng = torch.Generator().manual_seed(0)
    sides = [torch.randn(5, 7, generator=rng, dtype=torch.float64) for _ in range(2)]
    weights = torch.rand(5, generator=rng, dtype=torch.float64)
    found = []
    for distances in (losses.squared_distances, lambda a, b: (a - b).square().sum(-1)):
        leaves = [side.clone().requires_grad_(needed) for side, needed in zip(sides, wanted, strict=True)]
        (distances(*leaves) * weights).sum().backward()
        found.append([distances(*leaves).detach(), *(leaf.grad for leaf in leaves if leaf.requires_grad)])
    for left, right in zip(*found, strict=True):
        assert torch.allclose(left, right, rtol=1e-12, atol=1e-12)
