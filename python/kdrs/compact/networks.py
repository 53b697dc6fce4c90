"""Networks that compute a user's vector from her items, as models were trained to: NumPy alone.

Unlike the encoders that are fitted to a table of users (`kdrs.compact.encoders`) these are the model's own: what they give is
the model's vector, up to rounding. They do not depend on who else is encoded either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.compact.encoders import Items, blocks, check_catalogue, cut, history_sums, products
from kdrs.data.interactions import Interactions

Array = NDArray[np.float32]
ACTIVATIONS = ("identity", "tanh", "sigmoid", "relu")
"""By their numbers in files."""
MOST_LAYERS = 16


def activated(values: Array, name: str) -> Array:
    """A new array, float32."""
    if name == "tanh":
        return np.tanh(values)
    if name == "sigmoid":
        with np.errstate(over="ignore", under="ignore"):  # 1 / (1 + inf) is the 0 that it should be
            return np.asarray(1 / (1 + np.exp(-values.astype(np.float64))), np.float32)
    return np.maximum(values, np.float32(0)) if name == "relu" else values


def float_parts(parts: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether ``parts`` has these float32 arrays."""
    return all(
        name in parts and parts[name].dtype == np.float32 and parts[name].shape == shape
        for name, shape in shapes.items()
    )


class RowNetwork:
    """Dense layers on the sum of a table's rows: the encoders of Mult-VAE and CDAE.

    ``h = f_0(Σ_{i in H} table_i / |H|^power + bias)``, then ``h = f_l(W_l h + b_l)`` of each layer; the last is the user's
    vector. ``table`` float32 ``[I, H]``, ``layers`` pairs of float32 ``[E, D]`` and ``[E]``, ``activations`` names of
    `ACTIVATIONS`, one more than layers. A user without items has what the network gives for a sum of zero.
    """

    kind, ordered = "dense", False

    def __init__(
        self,
        table: Array,
        bias: Array,
        layers: Sequence[tuple[Array, Array]] = (),
        *,
        activations: Sequence[str],
        power: float,
    ):
        self.table, self.bias, self.power = np.ascontiguousarray(table, np.float32), _whole(bias), float(power)
        self.layers = [(_whole(weight), _whole(offset)) for weight, offset in layers]
        self.activations = tuple(activations)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts().values())

    @property
    def _widest(self) -> int:
        return max(len(self.bias), *(len(offset) for _, offset in self.layers), 1)

    def encode(self, histories: Interactions, items: Items) -> Array:
        check_catalogue(histories, self.table)
        out = np.empty((histories.shape[0], items.shape[1]), np.float32)
        for part in blocks(len(out), self._widest):
            hidden = history_sums(cut(histories, part), self.table, self.power) + self.bias
            hidden = activated(hidden, self.activations[0])
            for (weight, offset), name in zip(self.layers, self.activations[1:], strict=True):
                hidden = activated(products(hidden, weight) + offset, name)
            out[part] = hidden
        return out

    def parts(self) -> dict[str, NDArray[Any]]:
        numbers = np.array([ACTIVATIONS.index(name) for name in self.activations], np.uint8)
        found = {"table": self.table, "bias": self.bias, "power": np.array(self.power), "activations": numbers}
        for place, (weight, offset) in enumerate(self.layers, 1):
            found |= {f"weight_{place}": weight, f"bias_{place}": offset}
        return found

    @classmethod
    def of_parts(cls, parts: Mapping[str, NDArray[Any]], n_items: int, dim: int) -> RowNetwork | None:
        """None where the arrays are none of such a network, or not of these sizes."""
        numbers = parts.get("activations", np.zeros(0))
        count = len(numbers) - 1 if numbers.ndim == 1 else -1
        if numbers.dtype != np.uint8 or not 0 <= count <= MOST_LAYERS or numbers.max() >= len(ACTIVATIONS):
            return None
        names = [(f"weight_{place}", f"bias_{place}") for place in range(1, count + 1)]
        expected = {"table", "bias", "power", "activations", *(name for pair in names for name in pair)}
        if set(parts) != expected or (parts["power"].dtype, parts["power"].shape) != (np.float64, ()):
            return None
        widths = [parts[name].size for name in ("bias", *(offset for _, offset in names))]
        shapes: dict[str, tuple[int, ...]] = {"table": (n_items, widths[0]), "bias": (widths[0],)}
        for (weight, offset), before, after in zip(names, widths, widths[1:], strict=False):
            shapes |= {weight: (after, before), offset: (after,)}
        if widths[-1] != dim or not float_parts(parts, shapes):
            return None
        return cls(
            parts["table"],
            parts["bias"],
            [(parts[weight], parts[offset]) for weight, offset in names],
            activations=[ACTIVATIONS[number] for number in numbers.tolist()],
            power=float(parts["power"]),
        )


def _whole(values: Array) -> Array:
    return np.ascontiguousarray(values, np.float32)
