"""Caser's encoder without torch: convolutions over a user's latest items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from kdrs.compact.encoders import Items, blocks, check_catalogue, products
from kdrs.compact.networks import ACTIVATIONS, Array, activated, float_parts
from kdrs.data.histories import Histories
from kdrs.data.interactions import Interactions
from kdrs.errors import DataError


class ConvolutionEncoder:
    """``[z; 0]`` of a user's ``length`` latest items (Tang & Wang, WSDM 2018; `kdrs.models.Caser`): a user who is new has 0 for
    the vector that Caser learns of each user.

    ``table`` float32 ``[I + 1, d]``, its last row for places before the first item; vertical filters ``down`` ``[V, length]``
    and ``down_bias`` ``[V]``, if any; horizontal ones of each height h ``across_h`` ``[H, h d]`` and ``across_bias``
    ``[length, H]``, if any; ``joined`` ``[d, V d + length H]`` and ``joined_bias`` ``[d]``. ``activations`` name those after
    horizontal filters and after the last layer. Each product is one user's own.
    """

    kind, ordered = "convolution", True

    def __init__(self, weights: Mapping[str, Array], *, length: int, activations: tuple[str, str]):
        self.weights = {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}
        self.length, self.activations = int(length), activations

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts().values())

    def encode(self, histories: Interactions, items: Items) -> Array:
        """Raises ``DataError`` for histories without order."""
        check_catalogue(histories, self.weights["table"][:-1])
        if not isinstance(histories, Histories):
            raise DataError(
                "histories have no order, and a model of sequences reads them oldest first", "give Histories"
            )
        dim = self.weights["table"].shape[1]
        out = np.zeros((histories.shape[0], items.shape[1]), np.float32)
        ends, degrees = histories.indptr[1:, None], histories.row_degrees[:, None]
        window = np.arange(-self.length, 0)
        order = np.append(histories.order, np.int32(0))  # places before the first item read something
        for part in blocks(len(out), self.length**2 * dim):
            own = order[np.maximum(ends[part] + window, 0)]
            own = np.where(window < -degrees[part], histories.shape[1], own)
            out[part, :dim] = self._sequence(self.weights["table"][own])
        return out

    def _sequence(self, image: Array) -> Array:
        """z, float32 [B, d], of the vectors [B, length, d]."""
        parts, (n, length, dim) = self.weights, image.shape
        found = []
        if "down" in parts:
            found.append((parts["down"] @ image + parts["down_bias"][:, None]).reshape(n, -1))
        if "across_bias" in parts:
            flat, best = image.reshape(n, -1), []
            for height in range(1, length + 1):
                places = np.ascontiguousarray(sliding_window_view(flat, height * dim, axis=1)[:, ::dim])
                best.append((places @ parts[f"across_{height}"].T).max(1))
            found.append(activated(np.concatenate(best, 1) + parts["across_bias"].reshape(-1), self.activations[0]))
        joined = products(np.concatenate(found, 1), parts["joined"]) + parts["joined_bias"]
        return activated(joined, self.activations[1])

    def parts(self) -> dict[str, NDArray[Any]]:
        numbers = np.array([ACTIVATIONS.index(name) for name in self.activations], np.uint8)
        return {**self.weights, "length": np.array(self.length, np.int32), "activations": numbers}

    @classmethod
    def of_parts(cls, parts: Mapping[str, NDArray[Any]], n_items: int, dim: int) -> ConvolutionEncoder | None:
        """None where the arrays are none of such an encoder, or not of these sizes."""
        told = {
            name: (str(parts[name].dtype), parts[name].shape) for name in ("length", "activations") if name in parts
        }
        if told != {"length": ("int32", ()), "activations": ("uint8", (2,))} or dim % 2:
            return None
        length, numbers, own = int(parts["length"]), parts["activations"].tolist(), dim // 2
        down, across = (parts[name].shape if name in parts else () for name in ("down", "across_bias"))
        if length < 1 or max(numbers) >= len(ACTIVATIONS) or not (down or across):
            return None
        shapes: dict[str, tuple[int, ...]] = {"table": (n_items + 1, own), "joined_bias": (own,)}
        width = 0
        if len(down) == 2 and down[0]:
            shapes |= {"down": (down[0], length), "down_bias": (down[0],)}
            width += down[0] * own
        if len(across) == 2 and across[1] and across[0] == length:
            shapes |= {f"across_{height}": (across[1], height * own) for height in range(1, length + 1)}
            shapes["across_bias"] = (length, across[1])
            width += length * across[1]
        shapes["joined"] = (own, width)
        if set(parts) != {*shapes, "length", "activations"} or not float_parts(parts, shapes):
            return None
        weights = {name: parts[name] for name in shapes}
        return cls(weights, length=length, activations=(ACTIVATIONS[numbers[0]], ACTIVATIONS[numbers[1]]))
