"""Mixtures of small networks: what DE rebuilds representations with, and what others build on."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrs.kernels import gate_, gate_back_, weighted_sum

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
        uniform.clamp_(min=torch.finfo(logits.dtype).tiny, max=1 - 2**-24)
        gumbel = uniform.log_().neg_().log_().neg_()
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
        blocks = _Mixture._blocks(source, first)
        buffer = source.new_empty(blocks[0].stop if blocks else 0, first.shape[1])
        for rows in blocks:
            hidden = torch.mm(extended[rows], first, out=buffer[: rows.stop - rows.start])
            out[rows].addmm_(gate_(hidden, shares[rows]), second)
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
        blocks = _Mixture._blocks(source, first)
        buffers = source.new_empty(2, blocks[0].stop if blocks else 0, first.shape[1])
        for rows in blocks:
            hidden, back = buffers[:, : rows.stop - rows.start]  # [b, M H]
            torch.mm(extended[rows], first, out=hidden)
            torch.mm(gradient[rows], second.T, out=back)
            to_shares[rows] += gate_back_(hidden, back, shares[rows])
            to_second.addmm_(hidden.T, gradient[rows])
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
    def _blocks(source: Tensor, weight: Tensor) -> list[slice]:
        count, size = source.shape[0], max(1, _Mixture.BLOCK_FLOATS // weight.shape[1])
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]


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
        layers = (inputs, hidden, outputs)
        for x, h, w, b in zip(*(t.split(sizes) for t in layers[:2]), weight1.unbind(), bias1.unbind(), strict=True):
            torch.addmm(b, x, w, out=h)
        hidden.relu_()
        for h, y, w, b in zip(*(t.split(sizes) for t in layers[1:]), weight2.unbind(), bias2.unbind(), strict=True):
            torch.addmm(b, h, w, out=y)
        ctx.save_for_backward(inputs, shares, entity, hidden, outputs, weight1, weight2)
        ctx.sizes, ctx.n_entities = sizes, source.shape[0]
        return weighted_sum(outputs, shares, entity, source.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, shares, entity, hidden, outputs, weight1, weight2 = ctx.saved_tensors
        sizes, count = ctx.sizes, weight1.shape[0]
        back = gradients[0].index_select(0, entity)  # [P, d_T]
        to_shares = torch.linalg.vecdot(back, outputs)
        back.mul_(shares.unsqueeze(-1))
        to_weight1, to_weight2 = torch.empty_like(weight1), torch.empty_like(weight2)
        to_inputs, back_hidden = torch.empty_like(inputs), torch.empty_like(hidden)
        layers = (t.split(sizes) for t in (hidden, back, back_hidden))
        for h, g, out, w, to_w in zip(*layers, weight2.unbind(), to_weight2.unbind(), strict=True):
            torch.mm(h.T, g, out=to_w)
            torch.mm(g, w.T, out=out)
        torch.ops.aten.threshold_backward.grad_input(back_hidden, hidden, 0, grad_input=back_hidden)
        layers = (t.split(sizes) for t in (inputs, back_hidden, to_inputs))
        for x, g, out, w, to_w in zip(*layers, weight1.unbind(), to_weight1.unbind(), strict=True):
            torch.mm(x.T, g, out=to_w)
            torch.mm(g, w.T, out=out)
        expert = torch.repeat_interleave(torch.tensor(sizes, device=entity.device))
        return (
            weighted_sum(to_inputs, None, entity, ctx.n_entities),
            to_shares,
            None,
            None,
            to_weight1,
            weighted_sum(back_hidden, None, expert, count),
            to_weight2,
            weighted_sum(back, None, expert, count),
        )


class Schedule(Protocol):
    """Options of the fall of a temperature."""

    @property
    def final_temperature(self) -> float: ...
    @property
    def schedule_epochs(self) -> int: ...
    @property
    def schedule_lag(self) -> int: ...


def temperature(epoch: int, schedule: Schedule) -> float:
    """τ of an epoch, counted from 0: final^((epoch - lag) / planned), 1 up to epoch ``lag``, never below the final one.

    The authors' code updates τ after an epoch with that epoch's number, hence a lag of one.
    """
    final, passed = schedule.final_temperature, max(epoch - schedule.schedule_lag, 0)
    return max(final, math.exp(math.log(final) * passed / schedule.schedule_epochs))


def _uniform(fan_in: int, *shape: int) -> nn.Parameter:
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
