"""Files that are complete or absent, and on the disk once a call has returned."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from kdrs.errors import MachineError, shown

REMEDY = "check permissions and space, or name another folder with --out"


@contextlib.contextmanager
def replacing(path: Path, remedy: str = REMEDY, *, make_folder: bool = False) -> Iterator[Path]:
    """A temporary name, ending in ``.tmp``, in the folder of ``path``: what is written there takes its place in one go at the
    end. Raises ``MachineError`` if the disk does not take it; ``path`` is then what it was."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error, remedy) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, remedy: str = REMEDY, *, make_folder: bool = False) -> None:
    """Writes a file in one go; errors as of ``replacing``."""
    with replacing(path, remedy, make_folder=make_folder) as temporary:
        temporary.write_bytes(content)


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(path: Path, error: OSError, remedy: str = REMEDY) -> MachineError:
    """What is wrong with writing there, with the space that is left where that is the cause."""
    free = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with contextlib.suppress(OSError):
            free = f"; {shutil.disk_usage(path if path.exists() else path.parent).free / 1e6:.0f} MB are free"
    return MachineError(f"cannot write {shown(str(path), 300)}: {error.strerror or error}{free}", remedy)
