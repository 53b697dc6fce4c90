"""The files that runs are made of."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrs._files import replacing, write_bytes
from kdrs.errors import ArtefactError, shown
from kdrs.escaping import json_text
from kdrs.teachers.file import read_safetensors

PATH = 300
"""Characters of a path that a message shows: its end says most."""

if TYPE_CHECKING:
    from torch import Tensor


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json_text(value, indent=2, ascii=False) + "\n").encode())


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors. The metadata go under one key: safetensors writes several in an order that changes from run to run."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    one = {"kdrs": json.dumps(dict(metadata), sort_keys=True)}
    with replacing(path) as temporary:
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, metadata=one)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error)) from error
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # safetensors gives 0600, whatever the umask


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_run_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that a run wrote. Raises ``ArtefactError`` for any other."""
    tensors, metadata = read_safetensors(path)
    try:
        return tensors, json.loads(metadata["kdrs"])
    except (KeyError, ValueError):
        raise ArtefactError(f"{shown(str(path), PATH)} was not written by a kdrs run", "check the path") from None
