"""Mixtures of small networks: what DE rebuilds representations with, and what others build on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NO_EFFECT = 20.0
"""exp(-20) = 2e-9, a thirtieth of float32's rounding unit: a share this small is lost in the sums it enters, and smaller ones
give subnormal products, which processors multiply many times slower. Past 104 a share is exactly 0 anyway."""


class Experts(nn.Module):
    """M networks Linear-ReLU-Linear from the student's space to the teacher's, and the network that selects among them.

    ``hidden`` is the width of their inner layer: by default the mean of both sizes, half of it where they are equal.
    """

    def __init__(self, source_dim: int, target_dim: int, n_experts: int, cutoff: float, hidden: int | None = None):
        super().__init__()
        if hidden is None:
            hidden = (source_dim + target_dim) // 2 if source_dim != target_dim else max(source_dim // 2, 1)
        self.n_experts, self.hidden, self.cutoff = n_experts, hidden, cutoff
        self.selector = nn.Linear(target_dim, n_experts)
        self.weight1 = _uniform(source_dim, n_experts, source_dim, hidden)
        self.bias1 = _uniform(source_dim, n_experts, hidden)
        self.weight2 = _uniform(hidden, n_experts, hidden, target_dim)
        self.bias2 = _uniform(hidden, n_experts, target_dim)

    def shares(self, target: Tensor, temperature: float, noise: torch.Generator) -> Tensor:
        """Shares q of the experts, float32 [E, M], from teacher representations [E, d_T]; gradient reaches the selector."""
        logits = torch.log(torch.softmax(self.selector(target), dim=-1) + 1e-10)
        if self.n_experts == 1:
            return torch.softmax(logits, dim=-1)
        uniform = torch.rand(logits.shape, generator=noise, device=logits.device, dtype=logits.dtype)
        tiny = torch.finfo(logits.dtype).tiny
        gumbel = -torch.log(-torch.log(uniform.clamp(min=tiny, max=1 - 2**-24)))
        logits = (logits + gumbel) / temperature
        best = logits.max(dim=-1, keepdim=True).values
        return torch.softmax(logits.masked_fill(best - logits >= self.cutoff, -torch.inf), dim=-1)

    def forward(self, source: Tensor, shares: Tensor) -> Tensor:
        """Mixed outputs, float32 [E, d_T]: Σ_m q_m E_m(source)."""
        active = shares.detach() > 0
        if active.sum() * 2 > active.numel():
            return self._dense(source, shares)
        return self._grouped(source, shares, active)

    def _dense(self, source: Tensor, shares: Tensor) -> Tensor:
        return _Mixture.apply(source, shares, self.weight1, self.bias1, self.weight2, self.bias2)

    def _grouped(self, source: Tensor, shares: Tensor, active: Tensor) -> Tensor:
        expert, entity = active.T.nonzero(as_tuple=True)  # sorted by expert
        sizes = torch.bincount(expert, minlength=self.n_experts).tolist()
        return _Grouped.apply(
            source, shares[entity, expert], entity, sizes, self.weight1, self.bias1, self.weight2, self.bias2
        )


class _Mixture(torch.autograd.Function):
    """Σ_m q_m E_m(x) with all experts: [W2_1 … W2_M] (q_1 h_1 … q_M h_M), one product for all second layers.

    Entities go through in blocks whose hidden layer [block, M·H] stays in the processor's cache; backward computes it
    again, a tenth of the work, instead of keeping it for all entities.
    """

    BLOCK_FLOATS = 1 << 20

    @staticmethod
    def forward(
        ctx: Any, source: Tensor, shares: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        first, second = _Mixture._flat(weight1, bias1, weight2)
        extended = _Mixture._extended(source)
        out = shares @ bias2
        for rows in _Mixture._blocks(source, first):
            weighted = torch.mm(extended[rows], first).relu_().view(-1, *bias1.shape).mul_(shares[rows].unsqueeze(-1))
            out[rows].addmm_(weighted.view(-1, second.shape[0]), second)
        ctx.save_for_backward(source, shares, weight1, bias1, weight2, bias2)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = gradients
        source, shares, weight1, bias1, weight2, bias2 = ctx.saved_tensors
        first, second = _Mixture._flat(weight1, bias1, weight2)
        extended = _Mixture._extended(source)
        to_source, to_shares = torch.empty_like(source), gradient @ bias2.T
        to_first, to_second = torch.zeros_like(first), torch.zeros_like(second)
        shape, width = (-1, *bias1.shape), second.shape[0]
        for rows in _Mixture._blocks(source, first):
            own = shares[rows].unsqueeze(-1)
            hidden = torch.mm(extended[rows], first).relu_()  # [b, M H]
            back = torch.mm(gradient[rows], second.T)
            to_shares[rows] += torch.linalg.vecdot(back.view(shape), hidden.view(shape))
            torch.ops.aten.threshold_backward.grad_input(back, hidden, 0, grad_input=back)
            back.view(shape).mul_(own)
            hidden.view(shape).mul_(own)
            to_second.addmm_(hidden.view(-1, width).T, gradient[rows])
            to_first.addmm_(extended[rows].T, back)
            torch.mm(back, first[:-1].T, out=to_source[rows])
        experts, hidden_dim = bias1.shape
        return (
            to_source,
            to_shares,
            to_first[:-1].view(-1, experts, hidden_dim).transpose(0, 1),
            to_first[-1].view_as(bias1),
            to_second.view_as(weight2),
            shares.T @ gradient,
        )

    @staticmethod
    def _flat(weight1: Tensor, bias1: Tensor, weight2: Tensor) -> tuple[Tensor, Tensor]:
        """All first layers as one matrix [d_S + 1, M H], the bias its last row, and all second layers [M H, d_T]."""
        experts, source_dim, hidden = weight1.shape
        first = weight1.transpose(0, 1).reshape(source_dim, experts * hidden)
        return torch.cat([first, bias1.reshape(1, -1)]), weight2.reshape(experts * hidden, -1)

    @staticmethod
    def _extended(source: Tensor) -> Tensor:
        return F.pad(source, (0, 1), value=1.0)

    @staticmethod
    def _blocks(source: Tensor, weight: Tensor) -> Iterator[slice]:
        size = max(1, _Mixture.BLOCK_FLOATS // weight.shape[1])
        return (slice(start, start + size) for start in range(0, source.shape[0], size))


class _Grouped(torch.autograd.Function):
    """The same sum over a list of active (entity, expert) pairs, sorted by expert: two small products an expert.

    An expert without pairs gets a zero gradient, not none, so that weight decay and momentum go on acting on it.
    """

    @staticmethod
    def forward(
        ctx: Any, source: Tensor, shares: Tensor, entity: Tensor, sizes: list[int],
        weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    ) -> Tensor:  # fmt: skip
        inputs = source.index_select(0, entity)  # [P, d_S]
        hidden = inputs.new_empty(inputs.shape[0], weight1.shape[-1])
        outputs = inputs.new_empty(inputs.shape[0], weight2.shape[-1])
        parts = list(_Grouped._parts(sizes))
        for m, rows in parts:
            torch.addmm(bias1[m], inputs[rows], weight1[m], out=hidden[rows])
        hidden.relu_()
        for m, rows in parts:
            torch.addmm(bias2[m], hidden[rows], weight2[m], out=outputs[rows])
        ctx.save_for_backward(inputs, shares, entity, hidden, outputs, weight1, weight2)
        ctx.sizes, ctx.n_entities = sizes, source.shape[0]
        total = outputs.new_zeros(source.shape[0], outputs.shape[1])
        return total.index_add_(0, entity, outputs * shares.unsqueeze(-1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, shares, entity, hidden, outputs, weight1, weight2 = ctx.saved_tensors
        back = gradients[0].index_select(0, entity)  # [P, d_T]
        to_shares = torch.linalg.vecdot(back, outputs)
        back = back * shares.unsqueeze(-1)
        to_weight1, to_weight2 = torch.zeros_like(weight1), torch.zeros_like(weight2)
        to_bias1 = weight1.new_zeros(weight1.shape[0], weight1.shape[2])
        to_bias2 = weight2.new_zeros(weight2.shape[0], weight2.shape[2])
        to_inputs, back_hidden = torch.empty_like(inputs), torch.empty_like(hidden)
        parts = list(_Grouped._parts(ctx.sizes))
        for m, rows in parts:
            torch.mm(hidden[rows].T, back[rows], out=to_weight2[m])
            torch.mm(back[rows], weight2[m].T, out=back_hidden[rows])
            torch.sum(back[rows], 0, out=to_bias2[m])
        torch.ops.aten.threshold_backward.grad_input(back_hidden, hidden, 0, grad_input=back_hidden)
        for m, rows in parts:
            torch.mm(inputs[rows].T, back_hidden[rows], out=to_weight1[m])
            torch.mm(back_hidden[rows], weight1[m].T, out=to_inputs[rows])
            torch.sum(back_hidden[rows], 0, out=to_bias1[m])
        to_source = inputs.new_zeros(ctx.n_entities, inputs.shape[1]).index_add_(0, entity, to_inputs)
        return to_source, to_shares, None, None, to_weight1, to_bias1, to_weight2, to_bias2

    @staticmethod
    def _parts(sizes: list[int]) -> Iterator[tuple[int, slice]]:
        start = 0
        for m, size in enumerate(sizes):
            if size:
                yield m, slice(start, start + size)
            start += size


def temperature(epoch: int, planned: int, final: float) -> float:
    """τ of an epoch, counted from 0: final^((epoch - 1) / planned), 1 in epochs 0 and 1, never below ``final``.

    The authors' code updates τ after an epoch with that epoch's number, hence the lag of one.
    """
    return max(final, math.exp(math.log(final) * max(epoch - 1, 0) / planned))


def _uniform(fan_in: int, *shape: int) -> nn.Parameter:
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
