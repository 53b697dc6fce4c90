"""Top-k lists by torch, where tensors lie on another device than the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kdrs.core.sampling import array_of, csr_of, length_of
from kdrs.errors import DataError

if TYPE_CHECKING:
    import torch

    from kdrs.core.sampling import Array


def lists_on_device(
    queries: torch.Tensor,
    items: Array,
    k: int,
    *,
    seen: Any = None,
    rows: Array | None = None,
    bias: Array | None = None,
    block_bytes: int = 2**28,
) -> tuple[Any, Any]:
    """Lists and scores, as ``kdrs.core.ranking.topk`` gives them, made on the device of ``queries``; a block of scores takes at
    most ``block_bytes``."""
    import torch

    device = queries.device
    q, x = queries.detach().float(), _tensor(items, "items", 2).to(device).float()
    b = None if bias is None else _tensor(bias, "bias", 1).to(device).float()
    if q.ndim != 2 or x.ndim != 2 or q.shape[1] != x.shape[1]:
        raise DataError(f"queries have shape {tuple(q.shape)}, items {tuple(x.shape)}; allowed: [Q, D], [I, D]")
    if q.is_meta or x.is_meta:
        raise DataError("tensors on the device 'meta' have no values", "give tensors with data")
    n_items = x.shape[0]
    if b is not None and b.shape != (n_items,):
        raise DataError(f"bias has shape {tuple(b.shape)}; allowed: [{n_items}]")
    for name, values in (("queries", q), ("items", x), ("bias", b)):
        if values is None:
            continue
        finite = torch.isfinite(values if values.ndim == 2 else values[:, None]).all(1)
        if not bool(finite.all()):
            raise DataError(
                f"{name}: row {int((~finite).nonzero()[0])} holds NaN or infinity",
                "all values must be finite: look for a diverged model",
            )
    csr = None if seen is None else csr_of(seen)
    if csr is not None and csr[2] != n_items:
        raise DataError(f"`seen` has {csr[2]} items, the catalogue {n_items}")
    which = np.arange(len(q)) if rows is None else array_of(rows, "rows", np.int64, 1)
    if csr is not None and (len(which) != len(q) or (len(q) and not 0 <= which.min() <= which.max() < len(csr[0]) - 1)):
        raise DataError(f"`seen` has {len(csr[0]) - 1} rows; rows= names others, or not one for each query")
    taken = min(length_of(k, "k"), n_items)
    ids = torch.full((len(q), taken), -1, dtype=torch.int32, device=device)
    best = torch.full((len(q), taken), -torch.inf, device=device)
    step = max(1, block_bytes // (4 * max(n_items, 1)))
    for start in range(0, len(q), step) if taken else ():
        scores = q[start : start + step] @ x.T
        scores = scores if b is None else scores + b
        if csr is not None:
            lows, highs = csr[0][which[start : start + step]], csr[0][which[start : start + step] + 1]
            lengths = highs - lows
            offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            columns = torch.from_numpy(csr[1][np.repeat(lows, lengths) + offsets].astype(np.int64)).to(device)
            scores[torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device), columns] = -torch.inf
        values, places = scores.topk(taken, dim=1)
        # torch.topk takes any of the items that tie for the last place: those rows are sorted in full, stably.
        tied = ((scores >= values[:, -1:]).sum(1) > taken).nonzero().flatten()
        if len(tied):
            values[tied], places[tied] = (
                part[:, :taken] for part in scores[tied].sort(dim=1, descending=True, stable=True)
            )
        places, order = places.sort(dim=1)
        values, again = values.gather(1, order).sort(dim=1, descending=True, stable=True)
        places = places.gather(1, again).int()
        ids[start : start + step, :taken] = places.masked_fill(values == -torch.inf, -1)
        best[start : start + step, :taken] = values + 0.0  # -0.0 is 0
    return ids, best


def _tensor(values: Any, name: str, ndim: int) -> torch.Tensor:
    """Factors as a tensor without gradient, wherever they are."""
    import torch

    if isinstance(values, torch.Tensor):
        return values.detach()
    return torch.from_numpy(array_of(values, name, np.float32, ndim).copy())
