"""What a training step computes with gradients of its own: products of gathered vectors, the relaxed ranking loss, dropout,
mixtures of networks, quadratic forms, products with sparse matrices.

The Rust core does what is float32 on the CPU, torch's own operations everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdrs import _core
from kdrs.core.sampling import simd_path, threads_of
from kdrs.errors import ConfigError, DataError, shown


def torch_threads() -> int:
    """torch's number of threads, or, if it is less, KDRS_NUM_THREADS or the processors this process may use: the core's threads
    wait for each other."""
    return min(torch.get_num_threads(), threads_of(None))


def supported(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors."""
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)


def _vectorised(*tensors: Tensor) -> bool:
    """Whether large products of these belong to the core: its portable path multiplies a hundred times slower than torch."""
    return supported(*tensors) and (simd_path() or _core.simd_paths()[0]) != "portable"


class Table:
    """A table [M, D] whose rows the products of a step read.

    ``sparse`` hands its gradient on as the rows that were touched; ``asked`` is told the ids before their rows are read.
    Where a ``memory`` [M, D] is given its values are what is read; the gradient is that of ``values`` all the same.
    However often it is read, its gradient is worked out once, when all gradients of products have come in: with most rows
    touched, adding tables up costs more than the products.
    """

    def __init__(
        self,
        values: Tensor,
        *,
        sparse: bool = False,
        asked: Callable[[Tensor], object] | None = None,
        memory: Tensor | None = None,
    ):
        self.values, self.sparse, self._asked, self._memory = values, sparse, asked, memory
        self._supported = supported(values)
        if self._supported:
            self._shares = _Shares((values.detach() if memory is None else memory).contiguous(), sparse)
            # stands for the table in the graph
            self._token: Tensor = _Token.apply(values, self._shares)

    def products(self, own: Tensor, ids: Tensor) -> Tensor:
        """Products of own vectors [R, D] with those of each row's ids, int64 [R, K]: [R, K]."""
        _agree(own=(own, "RD"), table=(self.values, "MD"), ids=(ids, "RK"))
        if self._asked is not None:
            self._asked(ids)
        if self._supported and supported(own):
            scores: Tensor = _Products.apply(own, self._token, ids.long(), self._shares)
            return scores
        return torch.bmm(self._gathered(ids), own.unsqueeze(-1)).squeeze(-1)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of ids, int64 [...]: [..., D]."""
        if self._asked is not None:
            self._asked(ids)
        if not self._supported:
            return self._gathered(ids)
        found: Tensor = _Rows.apply(self._token, ids.reshape(-1), self._shares)
        return found.view(*ids.shape, found.shape[-1])

    def sums(self, ids: Tensor, starts: Tensor) -> Tensor:
        """Sums of the rows of flat ids, int64 [P], sum r from ``starts``[r] on: [R, D]."""
        if self._asked is not None:
            self._asked(ids)
        if not self._supported:
            counts = torch.diff(starts, append=starts.new_full((1,), len(ids)))
            out = self.values.new_zeros(len(starts), self.values.shape[1])
            return out.index_add(0, torch.repeat_interleave(counts, output_size=len(ids)), self._gathered(ids))
        found: Tensor = _Sums.apply(self._token, ids, starts, self._shares)
        return found

    def _gathered(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.values, sparse=self.sparse)
        if self._memory is None:
            return rows
        return rows + (F.embedding(ids, self._memory) - rows).detach()


class _Shares:
    """Collects, in a backward pass, what each product with a table adds to the table's gradient. The graph refers to it; it
    does not refer to the graph, or neither would be freed."""

    def __init__(self, values: Tensor, sparse: bool):
        self.values, self.sparse = values, sparse
        self.groups: list[tuple[Any, Any, Any]] = []

    def gradient(self) -> Tensor | None:
        """Of all shares that came in since it was last asked for."""
        groups, self.groups = self.groups, []
        if not groups:
            return None
        (size, dim), threads = self.values.shape, torch_threads()
        parts = _core.product_scatter(groups, size, dim, not self.sparse, threads, simd_path())
        rows, values = (torch.from_numpy(part) for part in parts)
        if not self.sparse:
            return values
        return torch.sparse_coo_tensor(rows.unsqueeze(0), values, self.values.shape, check_invariants=False)


class _Token(torch.autograd.Function):
    """An empty tensor between a table and its products: its gradient is empty too, the table's is that of the shares."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shares: _Shares) -> Tensor:
        ctx.shares = shares
        return values.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        return ctx.shares.gradient(), None


class _Products(torch.autograd.Function):
    """`Table.products` without an array [R, K, D].

    Backward sums the weighted vectors of each own vector's ids, and of each id's own vectors, for which the pairs are first
    ordered by id; touched rows come once each, ascending. The results are the same bytes for any number of threads.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, token: Tensor, ids: Tensor, shares: _Shares) -> Tensor:
        own, ids = own.contiguous(), ids.contiguous()
        ctx.save_for_backward(own, ids)
        ctx.shares = shares
        scores = _core.products(_array(own), _array(shares.values), ids.numpy(), torch_threads(), simd_path())
        return torch.from_numpy(scores)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own, ids = ctx.saved_tensors
        shares: _Shares = ctx.shares
        weights = _array(gradients[0].contiguous())
        to_own = to_token = None
        if ctx.needs_input_grad[0]:
            sums = _core.product_sums(weights, _array(shares.values), ids.numpy(), torch_threads(), simd_path())
            to_own = torch.from_numpy(sums)
        if ctx.needs_input_grad[1]:
            shares.groups.append((weights, _array(own), ids.numpy()))
            to_token = own.new_empty(0)
        return to_own, to_token, None, None


class _Rows(torch.autograd.Function):
    """`Table.rows`: their gradients join those of the table's products."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, ids: Tensor, shares: _Shares) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shares = shares
        return F.embedding(ids, shares.values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        _share(ctx.shares, ids, gradients[0])
        return gradients[0].new_empty(0), None, None


class _Sums(torch.autograd.Function):
    """`Table.sums`, likewise."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, ids: Tensor, starts: Tensor, shares: _Shares) -> Tensor:
        ctx.save_for_backward(ids, starts)
        ctx.shares = shares
        return F.embedding_bag(ids, shares.values, starts, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ids, starts = ctx.saved_tensors
        if len(ids):
            # rows of a few ids each, which the core takes: a gradient is not copied for every id
            counts = torch.diff(starts, append=starts.new_tensor([len(ids)]))
            pieces = (counts + _PIECE - 1) // _PIECE
            owners = torch.repeat_interleave(pieces)
            first = starts[owners] + _PIECE * (torch.arange(len(owners)) - (pieces.cumsum(0) - pieces)[owners])
            places = first.unsqueeze(1) + torch.arange(_PIECE)
            held = places < (starts + counts)[owners].unsqueeze(1)
            parts = held.float(), gradients[0][owners], ids[torch.where(held, places, first.unsqueeze(1))]
            ctx.shares.groups.append(tuple(_array(part) for part in parts))
        return gradients[0].new_empty(0), None, None, None


_PIECE = 8


def _share(shares: _Shares, ids: Tensor, gradient: Tensor) -> None:
    """Adds a gradient [P, D] to the shares of the rows of ids, int64 [P]."""
    if len(ids):
        ones = torch.ones(len(ids), 1)
        shares.groups.append((_array(ones), _array(gradient.contiguous()), ids.unsqueeze(1).contiguous().numpy()))


class RelaxedRanking(torch.autograd.Function):
    """The relaxed ranking loss of score rows [B, W] whose first ``listed`` entries are in order, float32 [B]; ``known`` (bool
    [B, W], or None) leaves padding out. The gradient is worked out along with the loss."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, listed: int, known: Tensor | None) -> Tensor:
        if not isinstance(listed, int):
            raise DataError(f"{shown(listed)} scores are listed", "allowed: an integer")
        if (
            scores.ndim != 2
            or not 0 <= listed <= scores.shape[1]
            or (known is not None and known.shape != scores.shape)
        ):
            shapes = f"scores have shape {tuple(scores.shape)}, {listed} of them listed"
            masks = "" if known is None else f", known ones {tuple(known.shape)}"
            raise DataError(shapes + masks, "allowed: [B, W], 0 to W of them, and [B, W]")
        if not scores.shape[1]:
            ctx.save_for_backward(torch.zeros_like(scores))
            return scores.new_zeros(scores.shape[0])
        mask = None if known is None else _array(known.bool())
        losses, gradient = _core.relaxed_ranking(_array(scores.float()), listed, mask, torch_threads(), simd_path())
        ctx.save_for_backward(torch.from_numpy(gradient).to(scores.dtype))
        return torch.from_numpy(losses).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].unsqueeze(-1), None, None


def mixture(source: Tensor, shares: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Mixed outputs ``Σ_m q_m (relu(x W1_m + b1_m) W2_m + b2_m)``, [E, d_T], of vectors [E, d_S] and shares [E, M]; layers are
    [M, d_S, H], [M, H], [M, H, d_T] and [M, d_T].

    The core leaves out pairs whose share is 0, and gives their share no gradient; torch, for CUDA, other types and processors
    without vector instructions that the core knows, computes all networks for every vector and keeps [E, M, H] hidden values
    for the gradient.
    """
    given = (source, shares, weight1, bias1, weight2, bias2)
    _agree(
        source=(source, "ES"),
        shares=(shares, "EM"),
        weight1=(weight1, "MSH"),
        bias1=(bias1, "MH"),
        weight2=(weight2, "MHT"),
        bias2=(bias2, "MT"),
    )
    if _vectorised(*given) and all(part.numel() for part in given[2:]):
        out: Tensor = _Mixture.apply(*given)
        return out
    hidden = torch.relu(torch.einsum("es,msh->emh", source, weight1) + bias1) * shares.unsqueeze(-1)
    return hidden.flatten(1) @ weight2.flatten(0, 1) + shares @ bias2


class _Mixture(torch.autograd.Function):
    """`mixture` in the core: no hidden layer is kept, backward computes them again, a small part of its work."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        given = tuple(t.contiguous() for t in given)
        ctx.save_for_backward(*given)
        source, shares, *layers = (_array(t) for t in given)
        out = given[0].new_empty(source.shape[0], layers[-1].shape[1])
        _core.mixture(source, shares, tuple(layers), out.numpy(), torch_threads(), simd_path())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        source, shares, *layers = (_array(t) for t in ctx.saved_tensors)
        gradient = _array(gradients[0].contiguous())
        found = _core.mixture_gradient(source, shares, tuple(layers), gradient, torch_threads(), simd_path())
        return tuple(torch.from_numpy(each) for each in found)


def has_quadratic(*tensors: Tensor, bf16: bool) -> bool:
    """Whether the core is the best for quadratic forms of these tensors: float32 on the CPU with vector instructions that it
    knows, and in bfloat16 with tile registers."""
    return _vectorised(*tensors) and (not bf16 or _core.has_bfloat16_tiles(simd_path()))


def quadratic(vectors: Tensor, weights: Tensor, *, bf16: bool) -> Tensor:
    """``Σ_{b<c} 2 h_b h_c weights[(b, c)]``, float32 [E, D], of vectors [E, d] and weights [d (d-1) / 2, D], row after row of
    the triangle. There is no array of features; ``bf16`` rounds features and weights to bfloat16, sums are float32. Without
    gradient."""
    _agree(vectors=(vectors, "Ed"), weights=(weights, "PD"))
    out = vectors.new_empty(vectors.shape[0], weights.shape[1])
    left, right = _array(vectors), _array(weights)
    _core.quadratic(left, right, out.numpy(), bf16, torch_threads(), simd_path())
    return out


def quadratic_gradient(vectors: Tensor, gradient: Tensor, *, bf16: bool) -> Tensor:
    """Gradient of the weights of `quadratic`, float32 [d (d-1) / 2, D], from that of its result, [E, D]."""
    _agree(vectors=(vectors, "Ed"), gradient=(gradient, "RD"))  # the core counts both
    dim = vectors.shape[1]
    out = vectors.new_empty(dim * (dim - 1) // 2, gradient.shape[1])
    left, right = _array(vectors), _array(gradient)
    _core.quadratic_gradient(left, right, out.numpy(), bf16, torch_threads(), simd_path())
    return out


LEVELS = 1 << 16
"""What `dropout` counts shares in."""


def dropout(x: Tensor, share: float, noise: torch.Generator | None = None, *, relu: bool = False) -> Tensor:
    """Inverted dropout of a tensor of any shape, after a ReLU if asked for; ``noise`` is torch's own generator for None.

    On the CPU in one pass, in which random numbers of 16 bits are made, and made again for the gradient instead of being
    kept: ``share`` is rounded to 1/65,536, and what is kept is scaled by that, so that means are exact. Raises ``ConfigError``
    for a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"dropout of {shown(share)}", "allowed: 0 to 1")
    dropped = min(round(share * LEVELS), LEVELS - 1)
    if not dropped and not relu:
        return x
    if supported(x):
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=noise)) if dropped else 0
        out: Tensor = _Dropout.apply(x, None, seed, dropped, relu)
        return out
    x = torch.relu(x) if relu else x
    if not dropped:
        return x
    lost = torch.rand(x.shape, generator=noise, device=x.device) < dropped / LEVELS
    return x.masked_fill(lost, 0.0) * (LEVELS / (LEVELS - dropped))


class _Dropout(torch.autograd.Function):
    """Dropout; the result is 0 also where ``gate`` (x itself for ``relu``) is 0 or less. Given the gate it is linear in x, so
    that its gradient is the same function of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor | None, seed: int, dropped: int, relu: bool) -> Tensor:
        x = x.contiguous()
        gate, out = x if relu else gate, torch.empty_like(x)
        gates = None if gate is None else _array(gate).reshape(-1)
        source, goal = _array(x).reshape(-1), _array(out).reshape(-1)
        _core.dropout(source, goal, gates, seed, dropped, torch_threads(), simd_path())
        ctx.chance = seed, dropped
        ctx.save_for_backward(out if relu else gate)  # what came out of a ReLU is positive where a value lives
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gate,) = ctx.saved_tensors
        to_x: Tensor = _Dropout.apply(gradients[0], gate, *ctx.chance, False)
        return to_x, None, None, None, None


def sparse_csr(indptr: Tensor, columns: Tensor, values: Tensor, n_columns: int | None = None) -> Tensor:
    """A sparse CSR tensor, square unless its columns are counted."""
    n_rows = indptr.shape[0] - 1
    size = (n_rows, n_rows if n_columns is None else n_columns)
    return torch.sparse_csr_tensor(indptr, columns, values, size=size, check_invariants=False)


def propagate(graph: Tensor, vectors: Tensor, transposed: Tensor | None = None) -> Tensor:
    """``graph @ vectors``; the gradient takes ``transposed``, which a symmetric graph is itself."""
    return _Propagate.apply(graph, graph if transposed is None else transposed, vectors)


class _Propagate(torch.autograd.Function):
    """A product whose backward needs no transposition: that would sort all entries at every step."""

    @staticmethod
    def forward(ctx: Any, graph: Tensor, transposed: Tensor, vectors: Tensor) -> Tensor:
        ctx.transposed = transposed
        return graph @ vectors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ gradients[0]


def _agree(**given: tuple[Tensor, str]) -> None:
    """Raises ``DataError`` unless the tensors have the sizes that their letters say, a letter for each dimension."""
    sizes: dict[str, int] = {}
    for tensor, letters in given.values():
        if tensor.ndim != len(letters) or any(
            sizes.setdefault(letter, size) != size for letter, size in zip(letters, tensor.shape, strict=True)
        ):
            shapes = ", ".join(f"{name} {list(each.shape)}" for name, (each, _) in given.items())
            wanted = ", ".join(f"{name} [{', '.join(letters)}]" for name, (_, letters) in given.items())
            raise DataError(f"shapes that do not go together: {shapes}", f"allowed: {wanted}")


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().resolve_neg().numpy()
