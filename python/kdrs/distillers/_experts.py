"""Mixtures of small networks: what DE rebuilds representations with, and what others build on."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from kdrs.core.kernels import mixture

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
        return mixture(source, shares, self.weight1, self.bias1, self.weight2, self.bias2)


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
