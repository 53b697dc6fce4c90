"""The files that runs are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrs._files import allow_as_usual, replacing, write_bytes
from kdrs.errors import ArtefactError, shown
from kdrs.runs.records import PATH, RESTORE, dumps, parse_metadata
from kdrs.teachers.file import read_head, read_safetensors
from kdrs.training.columns import Spread, in_order

if TYPE_CHECKING:
    from torch import Tensor


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, dumps(value))


def write_safetensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes tensors. The metadata go under one key: safetensors writes several in an order that changes from run to run."""
    one = {"kdrs": json.dumps(dict(metadata), sort_keys=True)}
    needed = sum(tensor.nbytes for tensor in tensors.values())
    with replacing(path, needed=needed) as temporary:
        if any(isinstance(tensor, Spread) for tensor in tensors.values()):
            _write_by_blocks(temporary, tensors, one)
        else:
            from safetensors.torch import save_file

            save_file(
                _apart({name: t.detach().cpu().contiguous() for name, t in tensors.items()}), temporary, metadata=one
            )
        allow_as_usual(temporary)


def _apart(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of which none shares its memory with another: weights that a model has under two names are written twice."""
    found, held = {}, set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr() if tensor.numel() else None
        found[name] = tensor.clone() if place in held and place is not None else tensor
        held.add(place)
    return found


TYPES = {
    "torch.float32": "F32",
    "torch.float64": "F64",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.bool": "BOOL",
}


def _write_by_blocks(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """As safetensors writes them, but tables that are divided by columns a block of rows at a time."""
    names, head, end = in_order(tensors), {"__metadata__": dict(metadata)}, 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        head[name] = {"dtype": TYPES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [start, end]}  # type: ignore[dict-item]
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = tensors[name]
            for block in tensor.blocks() if isinstance(tensor, Spread) else [tensor.detach().cpu()]:
                file.write(block.contiguous().numpy().tobytes())


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_run_tensors(
    path: Path, *, head: bool = False, columns: Mapping[str, slice] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that a run wrote; of its ``head`` alone tensors without values, of those in ``columns``
    these alone. Raises ``ArtefactError`` for any other file."""
    try:
        tensors, metadata = read_head(path) if head else read_safetensors(path, columns)
    except ArtefactError as error:
        raise ArtefactError(error.cause, RESTORE) from error
    return tensors, parse_metadata(metadata.get("kdrs"), shown(str(path), PATH))
