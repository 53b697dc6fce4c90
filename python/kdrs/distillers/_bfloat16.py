"""Products in bfloat16, weights and gradients staying float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 64
"""Products whose inner size is no multiple of this run at half the speed or less (AMX): zeros fill it up."""


def product(left: Tensor, right: Tensor) -> Tensor:
    """[M, K] x [K, N] -> bfloat16 [M, N], summed in float32."""
    fill = -left.shape[1] % LANES
    # contiguous: products with transposed factors are up to three times slower
    left, right = (factor.to(torch.bfloat16).contiguous() for factor in (left, right))
    return torch.mm(F.pad(left, (0, fill)), F.pad(right, (0, 0, 0, fill)))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return product(inputs, weight.T) + bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        rounded = gradient.to(torch.bfloat16)
        to_inputs = product(rounded, weight).to(inputs.dtype) if ctx.needs_input_grad[0] else None
        return to_inputs, product(rounded.T, inputs).to(weight.dtype), gradient.sum(0)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`torch.nn.functional.linear`, the products in bfloat16; float32 [E, N]."""
    return _Linear.apply(inputs, weight, bias)
