"""SASRec's encoder without torch: self-attention over a user's latest items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.compact import encoders
from kdrs.compact.encoders import Items, check_catalogue, turned
from kdrs.compact.networks import Array, float_parts
from kdrs.data.histories import Histories
from kdrs.data.interactions import Interactions
from kdrs.errors import DataError

NORM_EPSILON = 1e-8
"""Added to variances before their root, as the authors' code has it; torch's default is 1e-5."""
_SQUARE = ("query", "key", "value", "inner", "outer")
_FLAT = ("norm_weights", "norm_biases", "inner_bias", "outer_bias")


class AttentionEncoder:
    """The state after a user's last item, of her ``length`` latest (Kang & McAuley, ICDM 2018; `kdrs.models.SASRec`).

    Inputs are the scored items' own vectors. ``positions`` float32 ``[length, D]``, the last for the latest item; of B blocks
    ``query``, ``key``, ``value``, ``inner``, ``outer`` float32 ``[B, D, D]``, multiplied from the right and transposed, as in
    torch; ``inner_bias``, ``outer_bias`` ``[B, D]``, ``norm_weights``, ``norm_biases`` ``[B, 2, D]``; ``norm_weight``,
    ``norm_bias`` ``[D]`` of the last norm. ``code`` takes the residuals of the authors' code.

    Users with equally many items are worked out together, and each product is one user's own: a vector does not depend on who
    else is encoded. A user without items has the last norm's bias.
    """

    kind, ordered = "attention", True

    def __init__(self, weights: Mapping[str, Array], *, heads: int, code: bool):
        self.weights = {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}
        self.heads, self.code = int(heads), bool(code)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts().values())

    def encode(self, histories: Interactions, items: Items) -> Array:
        """Raises ``DataError`` for histories without order."""
        check_catalogue(histories, items)
        if not isinstance(histories, Histories):
            raise DataError(
                "histories have no order, and a model of sequences reads them oldest first", "give Histories"
            )
        length, dim = self.weights["positions"].shape
        out = np.empty((histories.shape[0], dim), np.float32)
        out[:] = self.weights["norm_bias"]
        for width, rows in alike(np.minimum(histories.row_degrees, length), 8 * dim + length * self.heads):
            own = histories.order[histories.indptr[rows + 1][:, None] + np.arange(-width, 0)]
            out[rows] = self._states(turned(items, own.reshape(-1)).reshape(*own.shape, dim))
        return out

    def _states(self, vectors: Array) -> Array:
        """float32 [B, D] of the vectors [B, S, D] of users' items."""
        parts, (width, dim) = self.weights, vectors.shape[1:]
        x = vectors * np.float32(dim**0.5) + parts["positions"][-width:]
        n_blocks = len(parts["query"])
        for block in range(n_blocks):
            asked = slice(-1 if block == n_blocks - 1 else 0, None)  # of the last block one state is read
            x = self._block({name: parts[name][block] for name in _SQUARE + _FLAT}, x, asked)
        return norm(x[:, -1], parts["norm_weight"], parts["norm_bias"])

    def _block(self, parts: Mapping[str, Array], x: Array, asked: slice) -> Array:
        normed = norm(x, parts["norm_weights"][0], parts["norm_biases"][0])
        source = x if self.code else normed
        x, normed = np.ascontiguousarray(x[:, asked]), np.ascontiguousarray(normed[:, asked])
        q, k, v = (
            self._split(part @ parts[name].T) for name, part in (("query", normed), ("key", source), ("value", source))
        )
        logits = (q @ k.transpose(0, 1, 3, 2)) * np.float32(q.shape[-1] ** -0.5)  # [B, H, asked, S]
        width = source.shape[1]
        later = np.triu(np.ones((width, width), bool), 1)[asked]
        logits[:, :, later] = -np.inf
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        attended = np.ascontiguousarray((shares @ v).transpose(0, 2, 1, 3)).reshape(x.shape)
        x = (normed if self.code else x) + attended
        normed = norm(x, parts["norm_weights"][1], parts["norm_biases"][1])
        hidden = np.maximum(normed @ parts["inner"].T + parts["inner_bias"], np.float32(0))
        return (normed if self.code else x) + (hidden @ parts["outer"].T + parts["outer_bias"])

    def _split(self, x: Array) -> Array:
        return np.ascontiguousarray(x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3))  # [B, H, S, D / H]

    def parts(self) -> dict[str, NDArray[Any]]:
        return {**self.weights, "heads": np.array(self.heads, np.int32), "code": np.array(self.code, np.uint8)}

    @classmethod
    def of_parts(cls, parts: Mapping[str, NDArray[Any]], n_items: int, dim: int) -> AttentionEncoder | None:
        """None where the arrays are none of such an encoder, or not of these sizes."""
        shapes = {name: ("int32" if name == "heads" else "uint8", ()) for name in ("heads", "code")}
        told = {name: (str(part.dtype), part.shape) for name, part in parts.items() if name in shapes}
        blocks, positions = (parts[name].shape if name in parts else () for name in ("query", "positions"))
        if told != shapes or len(blocks) != 3 or len(positions) != 2 or not positions[0] or not blocks[0]:
            return None
        count = blocks[0]
        floats: dict[str, tuple[int, ...]] = dict.fromkeys(_SQUARE, (count, dim, dim))
        floats |= {name: (count, 2, dim) if name.startswith("norm") else (count, dim) for name in _FLAT}
        floats |= {"positions": (positions[0], dim), "norm_weight": (dim,), "norm_bias": (dim,)}
        heads, code = int(parts["heads"]), int(parts["code"])
        if set(parts) != {*floats, *shapes} or not float_parts(parts, floats):
            return None
        if not 1 <= heads <= dim or dim % heads or code > 1:
            return None
        return cls({name: parts[name] for name in floats}, heads=heads, code=bool(code))


def norm(x: Array, weight: Array, bias: Array) -> Array:
    """Rows brought to mean 0 and variance 1, times ``weight`` plus ``bias``."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(NORM_EPSILON)) * weight + bias


def alike(widths: NDArray[np.int64], numbers: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Rows of each width but 0, in blocks of at most ``BLOCK`` numbers, at ``numbers`` a place."""
    order = np.argsort(widths, kind="stable")
    ends = np.searchsorted(widths[order], np.unique(widths), side="right")
    for own in np.split(order, ends[:-1]) if len(order) else ():
        width = int(widths[own[0]])
        step = max(1, encoders.BLOCK // max(width * numbers, 1))
        for start in range(0, len(own) if width else 0, step):
            yield width, own[start : start + step]
