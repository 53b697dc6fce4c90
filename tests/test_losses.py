"""Losses against numbers small enough to check on paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdrs import losses


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
