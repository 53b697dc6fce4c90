"""HyperKDMA's hypernetwork in its symmetric form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdrs.core import kernels
from kdrs.distillers._bfloat16 import LANES


class Hypernetwork(nn.Module):
    """Assistants' vectors ``h_TA = Θ(h) h`` whose matrix Θ [D, d] is itself linear in h: a quadratic form in h.

    Written out, ``h_TA[a] = Σ_bc S_a[b, c] h_b h_c + Σ_b β[a, b] h_b``. Of the weights ``W[(a, b), c]`` of the one linear
    layer that generates Θ only the symmetric part ``S_a = (M_a + M_aᵀ) / 2`` reaches the output, so that is what is kept:
    ``squares`` [d, D] for b = c, ``pairs`` [d (d-1) / 2, D] for b < c, row after row of the triangle, and ``linear``
    [d, D], the bias β. Half the weights and half the work, and no array of size entities x d x D.

    It trains exactly as the full layer would (each entry of ``pairs`` being two of its weights: multiplicity 2 in
    `kdrs.training.optim.Adam`), apart from what weight decay does to the antisymmetric part, which no output sees. Initial
    values follow the law that nn.Linear's have after symmetrisation.

    ``bf16=True`` does the two large products in bfloat16, weights and gradients staying float32.
    """

    MULTIPLICITIES: ClassVar[dict[str, float]] = {"pairs": 2.0}

    def __init__(self, dim: int, out_dim: int, *, bf16: bool = False):
        super().__init__()
        self.bf16 = bf16
        bound = dim**-0.5
        self.squares = nn.Parameter(torch.empty(dim, out_dim).uniform_(-bound, bound))
        pairs = torch.empty(dim * (dim - 1) // 2, out_dim).uniform_(-bound, bound)
        self.pairs = nn.Parameter(pairs.add_(torch.empty_like(pairs).uniform_(-bound, bound)).div_(2))
        self.linear = nn.Parameter(torch.empty(dim, out_dim).uniform_(-bound, bound))

    def forward(self, vectors: Tensor) -> Tensor:
        """float32 [E, d] without gradient -> float32 [E, D]."""
        small = torch.addmm(vectors @ self.linear, vectors.square(), self.squares)
        return small + _Pairs.apply(vectors, self.pairs, self.bf16)


class _Pairs(torch.autograd.Function):
    """``Σ_{b<c} 2 h_b h_c P[(b, c)]``: features [pairs, E] by rows of the triangle, some at a time, made again in backward.

    Nothing flows back to the vectors: they are a frozen teacher's. The core, where it can, makes features as it multiplies;
    blocks of them are for CUDA, other types, and bfloat16 without tile registers.
    """

    BLOCK_ROWS = 2048
    """Features made at a time, twice as many of half the size in bfloat16: 20 MB for the entities of a common batch."""

    DEVICE_ROWS = 8192
    """The same elsewhere than on the CPU, where they are made by a few large kernels."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, pairs: Tensor, bf16: bool) -> Tensor:
        ctx.save_for_backward(vectors)
        ctx.bf16 = bf16
        if kernels.has_quadratic(vectors, pairs, bf16=bf16):
            return kernels.quadratic(vectors, pairs, bf16=bf16)
        out = vectors.new_zeros(pairs.shape[1], vectors.shape[0])  # [D, E]
        for rows, features in _Pairs._features(vectors, bf16):
            if bf16:  # in this layout: others are up to three times slower
                weights = pairs[rows].to(torch.bfloat16).T
                weights = F.pad(weights, (0, features.shape[0] - weights.shape[1]))
                out += torch.mm(weights, features)[:, : out.shape[1]]
            else:
                out.addmm_(pairs[rows].T, features)
        return out.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (vectors,) = ctx.saved_tensors
        gradient = gradients[0].contiguous()  # [E, D]
        if kernels.has_quadratic(vectors, gradient, bf16=ctx.bf16):
            return None, kernels.quadratic_gradient(vectors, gradient, bf16=ctx.bf16), None
        dim = vectors.shape[1]
        to_pairs = gradient.new_empty(dim * (dim - 1) // 2, gradient.shape[1])
        if ctx.bf16:
            gradient = F.pad(gradient.to(torch.bfloat16), (0, 0, 0, -gradient.shape[0] % LANES))
        for rows, features in _Pairs._features(vectors, ctx.bf16):
            if ctx.bf16:
                to_pairs[rows] = torch.mm(features[: rows.stop - rows.start], gradient)
            else:
                torch.mm(features, gradient, out=to_pairs[rows])
        return None, to_pairs, None

    @staticmethod
    def _features(vectors: Tensor, bf16: bool) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of rows of ``2 h_b h_c``, b < c, in the order of ``pairs``; in bfloat16 rows and columns are filled up to
        ``LANES``, the columns by zeros, the rows by what may be anything finite."""
        dim = vectors.shape[1]
        columns = vectors.T.contiguous()  # [d, E]
        if bf16:
            columns = F.pad(columns.to(torch.bfloat16), (0, -columns.shape[1] % LANES))
        doubled = columns * 2
        if vectors.device.type != "cpu":  # each row of the triangle by itself would be hundreds of small kernels
            left, right = torch.triu_indices(dim, dim, 1, device=vectors.device)
            for start in range(0, left.shape[0], _Pairs.DEVICE_ROWS):
                rows = slice(start, min(start + _Pairs.DEVICE_ROWS, left.shape[0]))
                block = columns[right[rows]] * doubled[left[rows]]
                yield rows, F.pad(block, (0, 0, 0, -block.shape[0] % LANES)) if bf16 else block
            return
        size = max(_Pairs.BLOCK_ROWS * (2 if bf16 else 1), dim - 1)
        block = columns.new_zeros(size + -size % LANES, columns.shape[1])
        start = filled = 0
        for b in range(dim - 1):
            torch.mul(columns[b + 1 :], doubled[b], out=block[filled : filled + dim - 1 - b])
            filled += dim - 1 - b
            if b == dim - 2 or filled + dim - 2 - b > size:
                yield slice(start, start + filled), block[: filled + (-filled % LANES if bf16 else 0)]
                start, filled = start + filled, 0
