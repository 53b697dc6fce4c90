"""An encoder as the arrays of a file, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.compact.attention import AttentionEncoder
from kdrs.compact.convolution import ConvolutionEncoder
from kdrs.compact.encoders import Encoder, RidgeEncoder, SumEncoder
from kdrs.compact.networks import RowNetwork
from kdrs.errors import DataError, shown

NETWORKS: dict[str, type[RowNetwork] | type[AttentionEncoder] | type[ConvolutionEncoder]] = {
    network.kind: network for network in (RowNetwork, AttentionEncoder, ConvolutionEncoder)
}
"""Encoders that models have of their own."""
_BOUNDS = {
    "alpha": (1e-9, 1e9),
    "reg": (1e-9, 1e9),
    "power": (0.0, 8.0),
    "scales": (0.0, np.inf),
    "levels": (-127, 127),
}
"""What the parts of an encoder may be: less or more is none that was ever made, and no system could be solved with it."""


def encoder_of(kind: str, tensors: dict[str, NDArray[Any]], n_items: int, dim: int) -> Encoder:
    """The encoder of vectors of ``dim`` dimensions, by histories of ``n_items`` items, that a file holds (`Encoder.parts`).

    Raises ``DataError`` for an unknown kind or parts that do not fit."""
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise DataError(f"encoder {shown(kind)}: {shown(name)} is not finite")
        least, most = _BOUNDS.get(name, (-np.inf, np.inf))
        if tensor.size and not least <= tensor.min() <= tensor.max() <= most:
            raise DataError(f"encoder {shown(kind)}: {shown(name)} is not from {least:g} to {most:g}")
    shapes = {name: (str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
    square = (dim, dim)
    if kind == "sum" and shapes == {"weight": ("float32", square), "power": ("float64", ())}:
        return SumEncoder(tensors["weight"], float(tensors["power"]))
    if kind == "sum" and shapes == {
        "levels": ("int8", square),
        "scales": ("float32", (dim,)),
        "power": ("float64", ()),
    }:
        return SumEncoder.of_levels(tensors["levels"], tensors["scales"], float(tensors["power"]))
    if kind == "ridge" and shapes == {"alpha": ("float64", ()), "reg": ("float64", ())}:
        return RidgeEncoder(float(tensors["alpha"]), float(tensors["reg"]))
    if kind in NETWORKS:
        found = NETWORKS[kind].of_parts(tensors, n_items, dim)
        if found is not None:
            return found
    raise DataError(f"encoder {shown(kind)} with {shown(str(shapes))} is none that this kdrs knows")
