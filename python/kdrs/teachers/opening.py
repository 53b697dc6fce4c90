"""Safetensors files, opened: whatever else lies there is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdrs.errors import ArtefactError, shown
from kdrs.teachers.foreign import refuse_foreign
from kdrs.training.outline import OUTLINE


def read_safetensors(
    path: Path, columns: Mapping[str, slice] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, of those in ``columns`` these alone; ``ArtefactError`` for anything else,
    which is never unpickled."""

    def read(file: Any, key: str) -> Tensor:
        if columns and key in columns and len((part := file.get_slice(key)).get_shape()) == 2:
            return part[:, columns[key]]
        return file.get_tensor(key)

    return _opened(path, read)


def read_head(path: Path, whole: Collection[str] = ()) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same with the tensors' shapes and types alone: they are on torch's meta device. Costs the same for any size, but
    for those that are read ``whole``."""

    def shape_of(file: Any, key: str) -> Tensor:
        if key in whole:
            return file.get_tensor(key)
        stored = file.get_slice(key)
        shape = stored.get_shape()
        dtype = (stored[:0] if shape else file.get_tensor(key)).dtype
        return torch.empty(shape, dtype=dtype, device=OUTLINE)

    return _opened(path, shape_of)


def _opened(path: Path, read: Callable[[Any, str], Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ArtefactError(f"no file {shown(str(path), 300)}", "check the path")
    refuse_foreign(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: read(file, key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(
            f"{shown(str(path), 300)} is no readable safetensors file: {shown(str(error))}", "export it again"
        ) from None
