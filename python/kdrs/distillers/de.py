"""Distillation experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrs.distillers.base import Distiller, only, seeded
from kdrs.sampling import stream
from kdrs.settings import Settings
from kdrs.tasks import Batch, Epoch, Task
from kdrs.teachers import Teacher
from kdrs.view import View

EXACT_CUTOFF = 104.0
"""exp(-Δ) is exactly 0 in float32 for Δ > 150 ln 2 = 103.97, below half the smallest subnormal."""


class DEConfig(Settings):
    experts: int = Field(30, ge=1)
    """Experts for users, and as many for items: M."""
    final_temperature: float = Field(1e-10, gt=0, le=1)
    """τ falls from 1 to this over the planned epochs."""
    schedule_epochs: int = Field(1000, ge=1)
    """Epochs that the fall is spread over; the published runs plan 1,000, whenever they stop."""
    item_weight: Literal["half", "full"] = "half"
    """``half``: an item counts ½ for each of its roles, positive and negative, in the batch (code, and all published
    numbers). ``full``: every item counts 1 (HyperKDMA's equation 8)."""
    cutoff: float = Field(EXACT_CUTOFF, gt=0)
    """Experts whose logit is this far below the best take no part. The default changes nothing, for their share is exactly
    0 in float32; 20 changes results by a rounding unit and is faster."""


class DE(Distiller):
    """Distillation experts (Kang, Hwang, Kweon & Yu, "DE-RRD", CIKM 2020, section 3.1).

    The teacher's representation of every user and item of the batch is reconstructed from the student's by a mixture of M
    small networks; a selection network on the teacher's representation mixes them, with Gumbel noise and a temperature that
    falls until each entity has one expert. ``ℓ(e) = ‖h_T(e) - Σ_m q_m E_m(h_S(e))‖²``, summed over coordinates, over
    unique users, and over unique items by ``item_weight``.

    Differs from the authors' code: an item that is both positive and negative in a batch is processed once, with one noise
    draw for its two roles (same expectation); the hidden layer is weighted before one product with all experts' second
    layers, and experts of share 0 are skipped (same values). The paper prints the norm without its square; code, and this
    class, square it.
    """

    Config = DEConfig
    config: DEConfig
    purpose = "rebuild the teacher's representations from the student's, a specialist for each group of entities"
    reference = "Kang, Hwang, Kweon & Yu, DE-RRD: a knowledge distillation framework for recommender system, CIKM 2020"
    needs = "user and item representations"
    default_weight = 1e-2

    def __init__(self, config: DEConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        self.teacher = only(teachers)
        with seeded(stream(seed, "init")):
            self.users = Experts(student_dim, self.teacher.dim, config.experts, config.cutoff)
            self.items = Experts(student_dim, self.teacher.dim, config.experts, config.cutoff)
        self.to(task.device)
        self._noise = torch.Generator(task.device)
        self._temperature = 1.0

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        self._temperature = temperature(epoch.index, self.config.schedule_epochs, self.config.final_temperature)
        self._noise.manual_seed(self.stream(epoch, "noise"))

    def loss(self, student: View, batch: Batch) -> Tensor:
        users, (items, roles) = batch.unique_queries, batch.item_roles
        teacher = self.teacher.view(self.task.queries(users.ids))
        user_losses = self._losses(self.users, teacher.queries, student.queries[users.first])   # [E]
        item_losses = self._losses(self.items, teacher.items(items), student.items(items))      # [E']
        weights = roles / 2 if self.config.item_weight == "half" else torch.ones_like(roles)
        return user_losses.sum() + (weights * item_losses).sum()

    def _losses(self, experts: Experts, target: Tensor, source: Tensor) -> Tensor:
        rebuilt = experts(source, experts.shares(target, self._temperature, self._noise))
        return (target - rebuilt).square().sum(-1)


class Experts(nn.Module):
    """M networks Linear-ReLU-Linear from the student's space to the teacher's, and the network that selects among them."""

    def __init__(self, source_dim: int, target_dim: int, n_experts: int, cutoff: float):
        super().__init__()
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
        # Σ_m q_m W2_m h_m = [W2_1 … W2_M] (q_1 h_1 … q_M h_M): the weights go on the hidden layer, then one product
        n = source.shape[0]
        weight1 = self.weight1.transpose(0, 1).reshape(-1, self.n_experts * self.hidden)
        hidden = F.relu(torch.addmm(self.bias1.reshape(-1), source, weight1)).view(n, self.n_experts, self.hidden)
        weighted = (hidden * shares.unsqueeze(-1)).view(n, -1)
        return torch.addmm(shares @ self.bias2, weighted, self.weight2.reshape(-1, self.weight2.shape[-1]))

    def _grouped(self, source: Tensor, shares: Tensor, active: Tensor) -> Tensor:
        expert, entity = active.T.nonzero(as_tuple=True)                         # sorted by expert
        sizes = torch.bincount(expert, minlength=self.n_experts).tolist()
        inputs = source.index_select(0, entity).split(sizes)
        outputs = [
            torch.addmm(self.bias2[m], F.relu(torch.addmm(self.bias1[m], rows, self.weight1[m])), self.weight2[m])
            for m, rows in enumerate(inputs)  # an expert without rows keeps its zero gradient, so decay and momentum act
        ]
        weighted = torch.cat(outputs) * shares[entity, expert].unsqueeze(-1)
        return torch.zeros(source.shape[0], weighted.shape[1], device=source.device).index_add(0, entity, weighted)


def temperature(epoch: int, planned: int, final: float) -> float:
    """τ of an epoch, counted from 0: final^((epoch - 1) / planned), 1 in epochs 0 and 1, never below ``final``.

    The authors' code updates τ after an epoch with that epoch's number, hence the lag of one.
    """
    return max(final, math.exp(math.log(final) * max(epoch - 1, 0) / planned))


def _uniform(fan_in: int, *shape: int) -> nn.Parameter:
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
