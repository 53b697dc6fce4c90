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

if TYPE_CHECKING:
    from torch import Tensor


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, dumps(value))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors. The metadata go under one key: safetensors writes several in an order that changes from run to run."""
    from safetensors.torch import save_file

    one = {"kdrs": json.dumps(dict(metadata), sort_keys=True)}
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with replacing(path, needed=needed) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, metadata=one)
        allow_as_usual(temporary)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_run_tensors(path: Path, *, head: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that a run wrote; of its ``head`` alone tensors without values. Raises ``ArtefactError``
    for any other file."""
    try:
        tensors, metadata = read_head(path) if head else read_safetensors(path)
    except ArtefactError as error:
        raise ArtefactError(error.cause, RESTORE) from error
    return tensors, parse_metadata(metadata.get("kdrs"), shown(str(path), PATH))
