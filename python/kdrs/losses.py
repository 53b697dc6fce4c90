"""Losses as plain functions of scores. All return float32 scalars and **sum** over the batch, as the papers' code does:
the published weights of distillation terms are calibrated for sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrs.kernels import RelaxedRanking, supported


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
    listed, background, mask = interesting, uninteresting, None
    if not supported(listed, background):
        losses: Tensor = _RelaxedRanking.apply(listed, background, interesting_mask, uninteresting_mask)
        return losses
    if interesting_mask is not None or uninteresting_mask is not None:
        pairs = ((listed, interesting_mask), (background, uninteresting_mask))
        mask = torch.cat([torch.ones_like(s, dtype=torch.bool) if m is None else m for s, m in pairs], dim=1)
    return relaxed_ranking_of(torch.cat([listed, background], dim=1), listed.shape[1], mask)


def relaxed_ranking_of(scores: Tensor, listed: int, mask: Tensor | None = None) -> Tensor:
    """`relaxed_ranking` of lists side by side: ``scores`` [B, K + L], whose first ``listed`` = K are the interesting ones;
    ``mask`` (bool [B, K + L], or None) leaves padding out. float32 [B].

    With e the exponentials and t_k the sums inside the logarithm: dℓ/ds_m = e_m Σ_{k<=m} 1/t_k, less 1 where m is listed.
    """
    if scores.shape[1] and supported(scores):
        losses: Tensor = RelaxedRanking.apply(scores, listed, mask)
    else:
        masks = (None, None) if mask is None else (mask[:, :listed], mask[:, listed:])
        losses = _RelaxedRanking.apply(scores[:, :listed], scores[:, listed:], *masks)
    return losses


class _RelaxedRanking(torch.autograd.Function):
    """The loss with its gradient in closed form, for what the kernel does not take.

    With the log-tails t_k = log( Σ_{i>=k} exp s_i + Σ_j exp s_j ):
    d/ds_m = exp(s_m) Σ_{k<=m} exp(-t_k) - 1 and d/ds_j = exp(s_j) Σ_k exp(-t_k). Padding is a score of -inf."""

    @staticmethod
    def forward(
        ctx: Any, listed: Tensor, background: Tensor, listed_mask: Tensor | None, background_mask: Tensor | None
    ) -> Tensor:
        s, b = _wide(listed, listed_mask), _wide(background, background_mask)
        start = [torch.logsumexp(b, dim=-1, keepdim=True)] if b.shape[-1] else []
        tails = logcumsumexp(torch.cat([*start, s.flip(-1)], dim=-1))[:, len(start) :].flip(-1)  # [B, K]
        ctx.save_for_backward(s, b, tails, listed_mask)
        ctx.dtype = listed.dtype
        losses = tails - s
        if listed_mask is not None:
            losses = losses.masked_fill_(~listed_mask, 0.0)
        return losses.sum(-1).to(listed.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        s, b, tails, mask = ctx.saved_tensors
        inverse = tails.neg() if mask is None else tails.neg().masked_fill_(~mask, -torch.inf)
        shares = logcumsumexp(inverse)  # [B, K]: log Σ_{k<=m} exp(-t_k)
        to_listed = (s + shares).exp_() - (1.0 if mask is None else mask.to(s.dtype))
        to_background = (b + shares[:, -1:]).exp_() if b.shape[-1] else b
        weights = gradients[0].unsqueeze(-1)
        return to_listed.mul_(weights).to(ctx.dtype), to_background.mul(weights).to(ctx.dtype), None, None


def _wide(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores in float64 where that costs little (CPU), -inf where there is none."""
    wide = scores.double() if scores.device.type == "cpu" else scores
    return wide if mask is None else wide.masked_fill(~mask, -torch.inf)


def logcumsumexp(x: Tensor) -> Tensor:
    """log Σ_{i<=k} exp x_i along the last dimension, without gradient.

    torch's own takes ten times as long on a CPU: it starts a new exponential at every element. Here sums of exponentials
    less the row's maximum, which only fall short where a partial sum underflows beside that maximum (in float64 by 10^-290);
    such input goes to torch's.
    """
    if x.device.type != "cpu":
        return torch.logcumsumexp(x, dim=-1)
    top = x.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).min)
    sums = (x - top).exp_().cumsum(-1)
    tiny = torch.finfo(x.dtype).tiny / torch.finfo(x.dtype).eps
    if ((sums < tiny) & (x > -torch.inf)).any():
        return torch.logcumsumexp(x, dim=-1)
    return sums.log_().add_(top)


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """float32 [E]: ‖left_e - right_e‖² of rows [E, D], with one array [E, D] each way."""
    distances: Tensor = _SquaredDistances.apply(left, right)
    return distances


class _SquaredDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        gap = left - right
        ctx.save_for_backward(gap)
        return torch.linalg.vecdot(gap, gap)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gap,) = ctx.saved_tensors
        to_left = gap * (2 * gradients[0]).unsqueeze(-1) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_left, None
        return to_left, gap * (-2 * gradients[0]).unsqueeze(-1) if to_left is None else to_left.neg()


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
