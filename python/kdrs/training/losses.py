"""Losses as plain functions of scores. They **sum** over the batch, as the papers' code does, whose weights of distillation
terms are calibrated for sums; those that give one value a query say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdrs.core.kernels import RelaxedRanking, supported
from kdrs.training.devices import counts_of, host_of, to_device


def bpr(positive: Tensor, negative: Tensor, *, average: bool = False) -> Tensor:
    """Bayesian personalised ranking: sum of -log sigmoid(s_ui - s_uj) (Rendle et al., UAI 2009).

    ``positive`` [B] or [B, 1], ``negative`` [B, N]; every negative counts as one triple, or, with ``average``, as 1/N of one.
    As softplus, so that a score difference below -88 gives its loss and no infinity.
    """
    if positive.ndim < negative.ndim:
        positive = positive.unsqueeze(-1)
    loss = F.softplus(negative - positive).sum()
    return loss / negative.shape[1] if average else loss


def bpr_gradient(scores: Tensor, *, average: bool = False) -> tuple[Tensor, Tensor]:
    """`bpr` of [B, 1 + N], the positive first, and its gradient in the scores, without autograd."""
    gap = scores[:, 1:] - scores[:, :1]
    loss, gradient = F.softplus(gap).sum(), torch.sigmoid(gap)
    if average:
        loss, gradient = loss / gap.shape[1], gradient.div_(gap.shape[1])
    return loss, torch.cat([-gradient.sum(dim=1, keepdim=True), gradient], dim=1)


def pointwise(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy with logits, target 1 for positives and 0 for negatives (NeuMF)."""
    return F.softplus(-positive).sum() + F.softplus(negative).sum()


def soft_pointwise(
    scores: Tensor, targets: Tensor, mask: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy with logits against soft targets in [0, 1]; ``mask`` (bool, same shape) keeps entries,
    ``weights`` multiply them."""
    losses = F.binary_cross_entropy_with_logits(scores, targets, weights, reduction="none")
    return losses.sum() if mask is None else losses.masked_fill(~mask, 0.0).sum()


class ScoreLoss(NamedTuple):
    """A loss that reads nothing of a model but its scores of a few items for every query of a batch."""

    ids: Tensor
    """int64 [B, K]"""
    of: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Scores float32 [B, K] -> the loss, a scalar, and its gradient [B, K]."""


def soft_pointwise_gradient(scores: Tensor, targets: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`soft_pointwise` and its gradient in the scores, sigmoid(s) - target, without autograd."""
    losses, gradient = F.softplus(scores).sub_(targets * scores), torch.sigmoid(scores).sub_(targets)
    if mask is not None:
        losses, gradient = losses.masked_fill_(~mask, 0.0), gradient.masked_fill_(~mask, 0.0)
    return losses.sum(), gradient


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


def weighted_relaxed_ranking(scores: Tensor, listed: int, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """`relaxed_ranking_of` with a weight for the term of each interesting item, float32 [B, K]:
    ``sum_k w_k [ log( sum_{i>=k} exp s_i + sum_j exp s_j ) - s_k ]``."""
    known = scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min / 2)
    own, background = known[:, :listed], known[:, listed:]
    start = [torch.logsumexp(background, dim=-1, keepdim=True)] if background.shape[1] else []
    tails = torch.logcumsumexp(torch.cat([*start, own.flip(-1)], dim=-1), dim=-1)[:, len(start) :].flip(-1)
    losses = weights * (tails - own)
    return (losses if mask is None else losses.masked_fill(~mask[:, :listed], 0.0)).sum(-1)


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


def masked_log_softmax(scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """log softmax(scores / τ) over the entries of each row, [B, K]; where there is no entry, about the lowest float."""
    floor = torch.finfo(scores.dtype).min / 2
    return torch.log_softmax((scores / temperature).masked_fill(~mask, floor), dim=-1)


def soft_cross_entropy(label: Tensor, scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """-Σ_i label_i log softmax(scores / τ)_i over the entries of each row: [B, K] -> [B]."""
    return -(label * masked_log_softmax(scores, mask, temperature)).masked_fill(~mask, 0.0).sum(-1)


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


def logsumexp_products(
    left: Tensor,
    right: Tensor,
    bias: Tensor | None = None,
    *,
    hidden: tuple[Tensor, Tensor] | None = None,
    bound: float | None = None,
) -> Tensor:
    """float32 [B]: log Σ_n exp(left_b · right_n + bias_n) for ``left`` [B, D], ``right`` [N, D], ``bias`` [N].

    The denominator of a softmax over a whole catalogue. ``hidden``, two int64 [H], leaves (row, column) pairs out of their
    rows' sums; a row of which nothing is left gets the least finite number. ``bound`` holds the products, bias
    included, within ±bound, and none gets a gradient beyond. Scores are made in tiles that stay in the processor's cache,
    and again in the backward pass, so the array [B, N] never exists.
    """
    sums: Tensor = _LogSumExp.apply(left, right, bias, hidden, bound)
    return sums


class _LogSumExp(torch.autograd.Function):
    TILE_FLOATS = 1 << 19
    """Scores made at a time on a CPU, 2 MB and as much again where there is a bound; elsewhere 32 times as many."""
    TILE_ROWS = 2048

    @staticmethod
    def forward(
        ctx: Any,
        left: Tensor,
        right: Tensor,
        bias: Tensor | None,
        hidden: tuple[Tensor, Tensor] | None,
        bound: float | None,
    ) -> Tensor:
        least = torch.finfo(left.dtype).min
        top, sums = left.new_full(left.shape[:1], least), left.new_zeros(left.shape[0])
        shape = left.shape[0], right.shape[0]
        ctx.hidden = None if hidden is None else _HiddenPairs(*hidden, _LogSumExp._steps(left, right), shape)
        for rows, _, scores, _ in _LogSumExp._tiles(left, right, bias, ctx.hidden, bound):
            raised = torch.maximum(top[rows], scores.amax(1)).clamp_(max=-least)  # inf - inf is no number
            scores.sub_(raised.unsqueeze(1)).exp_()
            sums[rows] = sums[rows] * (top[rows] - raised).exp_() + scores.sum(1)
            top[rows] = raised
        out = sums.log_().add_(top).clamp_(min=least)
        ctx.save_for_backward(left, right, bias, out)
        ctx.bound = bound
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        left, right, bias, out = ctx.saved_tensors
        weights = gradients[0]
        weighted = left * weights.unsqueeze(1)
        to_left, to_right = torch.zeros_like(left), torch.zeros_like(right)
        to_bias = None if bias is None else torch.zeros_like(bias)
        for rows, columns, shares, free in _LogSumExp._tiles(left, right, bias, ctx.hidden, ctx.bound):
            shares.sub_(out[rows].unsqueeze(1)).exp_()
            if free is not None:  # beyond the bound nothing passes
                torch.ops.aten.hardtanh_backward.grad_input(shares, free, -ctx.bound, ctx.bound, grad_input=shares)
            to_left[rows].addmm_(shares, right[columns])
            to_right[columns].addmm_(shares.T, weighted[rows])
            if to_bias is not None:
                to_bias[columns].addmv_(shares.T, weights[rows])
        return to_left.mul_(weights.unsqueeze(1)), to_right, to_bias, None, None

    @staticmethod
    def _steps(left: Tensor, right: Tensor) -> tuple[int, int]:
        """Rows and columns of a tile."""
        floats = _LogSumExp.TILE_FLOATS * (1 if left.device.type == "cpu" else 32)
        rows = max(1, min(left.shape[0], _LogSumExp.TILE_ROWS))
        return rows, max(1, min(floats // rows, right.shape[0]))

    @staticmethod
    def _tiles(
        left: Tensor, right: Tensor, bias: Tensor | None, hidden: _HiddenPairs | None, bound: float | None
    ) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
        """Rows, columns, their scores, hidden ones -inf, and, where there is a bound, their scores without it; in buffers that
        the next tile overwrites."""
        height, width = _LogSumExp._steps(left, right)
        buffers = left.new_empty(1 if bound is None else 2, height * width)
        for top in range(0, left.shape[0], height):
            own, rows = left[top : top + height], slice(top, top + height)
            for start in range(0, right.shape[0], width):
                others, columns, free = right[start : start + width], slice(start, start + width), None
                scores = buffers[0, : own.shape[0] * others.shape[0]].view(own.shape[0], -1)
                if bias is None:
                    torch.mm(own, others.T, out=scores)
                else:
                    torch.addmm(bias[columns], own, others.T, out=scores)
                if bound is not None:
                    free, scores = scores, buffers[1, : scores.numel()].view_as(scores)
                    torch.clamp(free, -bound, bound, out=scores)
                if hidden is not None:
                    scores[hidden.within(top // height, start // width)] = -torch.inf
                yield rows, columns, scores, free


class _HiddenPairs:
    """(row, column) pairs of a matrix, sorted by the tiles of ``steps`` rows and columns that they lie in."""

    def __init__(self, rows: Tensor, columns: Tensor, steps: tuple[int, int], shape: tuple[int, int]):
        (n_rows, n_columns), (height, width) = shape, steps
        self._across = -(-n_columns // width)
        count, known = -(-n_rows // height) * self._across, (host_of(rows), host_of(columns))
        if known[0] is not None and known[1] is not None:  # nothing to wait for
            tiles = known[0] // height * self._across + known[1] // width
            in_tiles = np.argsort(tiles, kind="stable")
            pairs = known[0][in_tiles] % height, known[1][in_tiles] % width
            self._rows, self._columns = (to_device(ids, rows.device) for ids in pairs)
            self._ends = [0, *np.bincount(tiles, minlength=count).cumsum().tolist()]
            return
        tiles, order = torch.sort(rows // height * self._across + columns // width)
        self._rows, self._columns = rows[order] % height, columns[order] % width
        self._ends = [0, *counts_of(tiles, count).cumsum(0).tolist()]

    def within(self, down: int, across: int) -> tuple[Tensor, Tensor]:
        """Those of a tile, counted from its corner."""
        tile = down * self._across + across
        pairs = slice(self._ends[tile], self._ends[tile + 1])
        return self._rows[pairs], self._columns[pairs]
