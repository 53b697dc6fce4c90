"""Files that are no teacher files, told apart by their content and never loaded."""

from __future__ import annotations

import lzma
import re
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdrs.errors import ArtefactError, quoted, shown

HEAD = 4096
"""Bytes that are looked at."""
NAMED = 6
"""Arrays of an archive that are named."""
LOAD_IT_THERE = (
    "load it in the program that wrote it and save its arrays: kdrs teacher import --from recbole --print-script prints the "
    "lines (lightfm, lenskit likewise); elsewhere numpy.savez, or kdrs.save_teacher for a safetensors file (docs/teachers.md)"
)
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The magic number that torch.save wrote first before version 1.6, pickled."""
_BAD_ZIP = (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error, lzma.LZMAError)
TORCH = "a torch archive (torch.save), a pickle inside, which can run code when loaded: kdrs never loads one"
PARQUET = "a Parquet file"
_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"x\x01", "zlib"),
    (b"x\x9c", "zlib"),
    (b"x\xda", "zlib"),
)


class _Array(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{shown(self.name, 40)} {self.dtype} {list(self.shape)}"


def refuse_foreign(path: Path) -> None:
    """Raises ``ArtefactError`` for pickles, archives and arrays of other forms, saying what they are and what to do.

    Nothing in the file is unpickled or decompressed, but the headers of a NumPy archive's arrays.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    # A safetensors header is JSON behind its length in 8 bytes, whose lowest may be anything.
    if head[8:9] == b"{":
        return
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        raise _zip(path)
    if head[:6] == b"\x93NUMPY":
        raise ArtefactError(
            f"{shown(str(path), 300)} is one NumPy array (.npy)",
            _import("ITEMS.npy", "npy", "--users USERS.npy --user-ids FILE --item-ids FILE "),
        )
    kind = _pickle(head) or _other(head)
    if kind is not None:
        remedy = _import(quoted(path), "parquet") if kind == PARQUET else LOAD_IT_THERE
        raise ArtefactError(f"{shown(str(path), 300)} is {kind}", remedy)


def pickled(path: Path) -> str | None:
    """What kind of pickle a file is, or what hides one; None for anything else, absent files included."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        if head[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                return TORCH if _is_torch(archive.namelist()) else None
    except (OSError, ValueError, *_BAD_ZIP):
        return None
    return _pickle(head)


def _is_torch(names: list[str]) -> bool:
    return any(name.rpartition("/")[2] in ("data.pkl", "constants.pkl") for name in names)


def _zip(path: Path) -> ArtefactError:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            arrays = [_array(archive, name) for name in names[:NAMED] if name.endswith(".npy")]
    except (OSError, ValueError, *_BAD_ZIP):
        return ArtefactError(
            f"{shown(str(path), 300)} begins as a zip archive and is cut short or damaged: NumPy and torch write such archives",
            "export it again: docs/teachers.md shows how",
        )
    if _is_torch(names):
        return ArtefactError(f"{shown(str(path), 300)} is {TORCH}", LOAD_IT_THERE)
    if names and all(name.endswith(".npy") for name in names):
        return _npz(path, arrays, len(names))
    first = f", which holds {shown(names[0], 40)}" if names else " with nothing in it"
    return ArtefactError(f"{shown(str(path), 300)} is a zip archive{first}", LOAD_IT_THERE)


def _npz(path: Path, known: list[_Array], n: int) -> ArtefactError:
    listed = ", ".join(map(str, known)) + (", ..." if n > len(known) else "")
    cause = f"{shown(str(path), 300)} is NumPy's archive (.npz), no teacher file; it holds {listed or f'{n} arrays'}"
    objects = [array for array in known if array.dtype == "object"]
    if objects:
        return ArtefactError(
            f"{cause}; {shown(objects[0].name, 40)} is pickled, which can run code when loaded: kdrs never loads one",
            LOAD_IT_THERE,
        )
    held = {array.name for array in known}
    if {"user_factors", "item_factors"} <= held:
        return ArtefactError(cause, _import(quoted(path), "implicit", "--user-ids FILE --item-ids FILE "))
    if {"users", "items"} <= held:
        return ArtefactError(cause, _import(quoted(path), "npz"))
    tables = [array.name for array in known if len(array.shape) == 2]
    sides = [next((name for name in tables if side in name), f"{side}s") for side in ("user", "item")]
    users, items = (f"a[{shown(name, 40)!r}]" for name in sides)
    return ArtefactError(
        cause,
        "make a teacher file of its arrays: a = numpy.load(file, allow_pickle=False); kdrs.save_teacher("
        f'"teacher.safetensors", users={users}, items={items}, user_ids=..., item_ids=...)',
    )


def _import(source: str, form: str, more: str = "") -> str:
    return f"make a teacher file of it: kdrs teacher import {source} --from {form} {more}--data DATA --out teacher.safetensors"


def _array(archive: zipfile.ZipFile, name: str) -> _Array:
    """Shape and type from the array's header."""
    with archive.open(name) as file:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return _Array(name.removesuffix(".npy"), shape, "object" if dtype.hasobject else str(dtype))


def _pickle(head: bytes) -> str | None:
    """What kind of pickle it is, or None."""
    runs = "which can run code when loaded: kdrs never loads one"
    if head.startswith(_LEGACY_TORCH):
        return f"a torch archive of old form (torch.save before 1.6), a pickle, {runs}"
    by_mark = len(head) > 1 and head[0] == 0x80 and head[1] <= 5
    if not by_mark and not _is_old_pickle(head):
        return None
    for mark, name in ((b"joblib", "joblib.dump"), (b"cloudpickle", "cloudpickle")):
        if mark in head:
            return f"a pickle of {name}, {runs}"
    return f"a pickle, {runs}"


def _is_old_pickle(head: bytes) -> bool:
    """Protocols 0 and 1 have no mark: they begin with a list or dict and its memo, or with a module's name on a line."""
    return re.match(rb"[\]}]q\x00|\((lp|dp)\d|\(?c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n", head) is not None


def _other(head: bytes) -> str | None:
    for mark, name in _COMPRESSED:
        if head.startswith(mark):
            return f"compressed by {name} (joblib and others write pickles so): it is not opened"
    if head.startswith(b"\x89HDF\r\n"):
        return "an HDF5 file"
    if head.startswith(b"PAR1"):
        return PARQUET
    return None
