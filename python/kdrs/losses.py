"""Losses as plain functions of scores. All return float32 scalars and **sum** over the batch, as the papers' code does:
the published weights of distillation terms are calibrated for sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def bpr(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalised ranking: sum of -log sigmoid(s_ui - s_uj) (Rendle et al., UAI 2009).

    ``positive`` [B] or [B, 1], ``negative`` [B, N]; every negative counts as one triple. As softplus, so that a score
    difference below -88 gives its loss and no infinity.
    """
    if positive.ndim < negative.ndim:
        positive = positive.unsqueeze(-1)
    return F.softplus(negative - positive).sum()


def pointwise(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy with logits, target 1 for positives and 0 for negatives (NeuMF)."""
    return F.softplus(-positive).sum() + F.softplus(negative).sum()


def soft_pointwise(scores: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Binary cross-entropy with logits against soft targets in [0, 1]; ``mask`` (bool, same shape) keeps entries."""
    losses = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return losses.sum() if mask is None else losses.masked_fill(~mask, 0.0).sum()


def relaxed_ranking(
    interesting: Tensor,
    uninteresting: Tensor,
    interesting_mask: Tensor | None = None,
    uninteresting_mask: Tensor | None = None,
) -> Tensor:
    """Relaxed ranking loss, float32 [B], one value a query (DE-RRD, section 3.2).

    ``sum_k [ log( sum_{i>=k} exp s_i + sum_j exp s_j ) - s_k ]`` for ``interesting`` [B, K], best first, against a
    background ``uninteresting`` [B, L] whose inner order does not matter. Masks (bool, True = entry exists) leave
    padding out. Computed through log-sum-exp; the authors' code exponentiates raw scores and overflows past 88.
    """
    floor = torch.finfo(interesting.dtype).min
    listed = interesting if interesting_mask is None else interesting.masked_fill(~interesting_mask, floor)
    tails = torch.logcumsumexp(listed.flip(-1), dim=-1).flip(-1)  # [B, K]
    if uninteresting.shape[-1]:
        background = uninteresting
        if uninteresting_mask is not None:
            background = background.masked_fill(~uninteresting_mask, floor)
        tails = torch.logaddexp(tails, torch.logsumexp(background, dim=-1, keepdim=True))
    losses = tails - interesting
    if interesting_mask is not None:
        losses = losses.masked_fill(~interesting_mask, 0.0)
    return losses.sum(-1)


def logsumexp_products(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """float32 [B]: log Σ_n exp(left_b · right_n + bias_n) for ``left`` [B, D], ``right`` [N, D], ``bias`` [N].

    The denominator of a softmax over a whole catalogue. Scores are made in blocks and again in the backward pass, so the
    array [B, N] never exists.
    """
    if bias is None:
        bias = right.new_zeros(right.shape[0])
    return _LogSumExp.apply(left, right, bias)


class _LogSumExp(torch.autograd.Function):
    BLOCK_FLOATS = 1 << 21

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
        out = left.new_empty(left.shape[0])
        for rows in _LogSumExp._blocks(left, right):
            out[rows] = torch.logsumexp(torch.addmm(bias, left[rows], right.T), dim=1)
        ctx.save_for_backward(left, right, bias, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, right, bias, out = ctx.saved_tensors
        to_left, to_right, to_bias = torch.empty_like(left), torch.zeros_like(right), torch.zeros_like(bias)
        for rows in _LogSumExp._blocks(left, right):
            shares = torch.addmm(bias, left[rows], right.T).sub_(out[rows].unsqueeze(1)).exp_()
            shares.mul_(gradients[0][rows].unsqueeze(1))
            torch.mm(shares, right, out=to_left[rows])
            to_right.addmm_(shares.T, left[rows])
            to_bias += shares.sum(0)
        return to_left, to_right, to_bias

    @staticmethod
    def _blocks(left: Tensor, right: Tensor) -> Iterator[slice]:
        size = max(1, _LogSumExp.BLOCK_FLOATS // max(right.shape[0], 1))
        return (slice(start, start + size) for start in range(0, left.shape[0], size))
