"""The student file, ``kdrs-student/1``: one safetensors file that needs nothing else.

Tensors of N users, M items and D dimensions, each of them little-endian and contiguous:

==========================================  =====================================================================
``items_vectors`` or ``items_codes``,       float32 [M, D]; or uint8 [M, bytes], and bfloat16 or uint8 [M]
``items_scales``
``users_...``                               the same of [N], where users have a table
``bias``                                    float32 [M], where the model has one
``encoder_...``                             of users as functions of their items (`kdrs.compact.encoders`)
``item_ids``, ``item_ids_ends``             UTF-8 bytes end to end, and int64 [M + 1]
``user_ids``, ``user_ids_ends``             the same of users, where the file knows users
``seen_ends``, ``seen_items``               int64 [N + 1], int32 [pairs]: items of each user, if kept: training, or all
``seen_order``                              int32 [pairs]: the same oldest first, where the encoder reads sequences
``popular``, ``popular_counts``             int32 [P] each: items with the most training pairs, for users who are unknown
==========================================  =====================================================================

Of the integers below the encoder's, those of `NARROWED`, bytes that are 0 in all of them are left out: such a tensor is
uint8 [n, W], the W low bytes of each, 1, 2 or 4. One of more than 16 MiB stays as it is: it is mapped, and workers share it.

Metadata: ``kdrs`` = ``student/1``; ``tables``, JSON, describes the tables; ``card``, JSON, says where it comes from and how
good it is; ``readme``, the same for people; ``crc32`` of all that, by which damage is found.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdrs._documents import DocumentError, parse_json
from kdrs._files import replacing
from kdrs.core.names import Names
from kdrs.errors import ArtefactError, DataError, quoted, shown

FORMAT = "student/1"
DTYPES = {
    "U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64, "F32": np.float32, "F64": np.float64, "BF16": np.uint16,
}  # fmt: skip
"""Types of tensors as safetensors names them; bfloat16 is uint16 to NumPy."""
_NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}
NARROWED: dict[str, type[np.generic]] = {
    "item_ids_ends": np.int64, "user_ids_ends": np.int64, "seen_ends": np.int64, "seen_items": np.int32,
    "seen_order": np.int32, "popular": np.int32, "popular_counts": np.int32,
}  # fmt: skip
"""Tensors of integers from 0 on, of which the file has the low bytes alone, with their types in memory."""
_MAPPED = 1 << 24
"""Bytes past which they stay as they are."""
_BLOCK = 1 << 26
AGAIN = "write it again: kdrs export RUN --out FILE"


class Contents(NamedTuple):
    tensors: dict[str, NDArray[Any]]
    """Read-only, and mapped from the file but for short ones of integers."""
    metadata: dict[str, str]


def write(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> int:
    """Writes a student file in one go and returns its bytes. The same contents give the same bytes.

    Raises ``MachineError`` where the disk does not take it; nothing is left behind then.
    """
    arrays = {name: narrow(name, value) for name, value in tensors.items()}
    # Widest first: every tensor is then aligned.
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    head: dict[str, Any] = {}
    end = 0
    for name in order:
        array = arrays[name]
        head[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    about = {"kdrs": FORMAT, **metadata}
    about["crc32"] = f"{_checksum(head, about, [arrays[name] for name in order]):08x}"
    text = json.dumps({"__metadata__": about, **head}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    needed = 8 + len(text) + end
    with (
        replacing(path, "check permissions and space, or name another file", needed=needed) as temporary,
        temporary.open("wb") as file,
    ):
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(arrays[name].ravel().data.cast("B") if arrays[name].nbytes else b"")
    return needed


def is_one(path: Path) -> bool:
    """Whether it says that it is a student file, of whatever version; it may be damaged otherwise."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as opened:
            return (opened.metadata() or {}).get("kdrs", "").startswith("student/")
    except (SafetensorError, OSError, ValueError):
        return False


def read(path: Path, *, verify: bool = True) -> Contents:
    """Opens a student file. Its tensors are mapped: pages are read when they are used.

    ``verify`` reads all of it once and compares the checksum. Raises ``ArtefactError`` for a file that is absent, none of kdrs,
    of another version, cut short or damaged.
    """
    from safetensors import SafetensorError, safe_open

    name = shown(str(path), 300)
    check = "check the path; kdrs export RUN --out FILE writes one"
    try:
        if not path.is_file():
            raise ArtefactError(f"no student file {name}", check)
        path.open("rb").close()  # safetensors says of what may not be read that it is absent
    except OSError as error:
        raise ArtefactError(
            f"cannot read {name}: {error.strerror or error}", f"check its permissions, or {check}"
        ) from None
    try:
        with safe_open(str(path), framework="numpy") as opened:
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(
            f"{name} is no readable safetensors file, or cut short: {shown(str(error))}", AGAIN
        ) from None
    kind = metadata.get("kdrs", "")
    if kind != FORMAT:
        raise ArtefactError(f"{name} is no student file: its metadata say kdrs = {shown(kind)}", _other(kind, path))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (length,) = struct.unpack_from("<Q", mapped)
    try:
        head = parse_json(mapped[8 : 8 + length])
        head.pop("__metadata__", None)
        tensors = {key: _tensor(mapped, 8 + length, told) for key, told in head.items()}
    except (DocumentError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"the head of {name} is damaged: {shown(str(error))}", AGAIN) from None
    if verify:
        own = {key: value for key, value in metadata.items() if key != "crc32"}
        order = sorted(head, key=lambda key: head[key]["data_offsets"])
        # safetensors gives metadata in any order
        found = f"{_checksum({key: head[key] for key in order}, own, [tensors[key] for key in order]):08x}"
        if metadata.get("crc32") != found:
            raise ArtefactError(f"{name} is damaged: its checksum is another than the one it states", AGAIN)
    try:
        return Contents({key: _wide(key, tensor) for key, tensor in tensors.items()}, metadata)
    except ValueError as error:
        raise ArtefactError(f"{name} is damaged: {error}", AGAIN) from None


def narrow(name: str, value: Any) -> NDArray[Any]:
    """A tensor as the file has it: of those of `NARROWED` the low bytes, uint8 [n, W]."""
    array = np.asarray(value, order="C")
    if name not in NARROWED or array.ndim != 1 or not array.size or array.nbytes > _MAPPED or array.min() < 0:
        return array
    kind = np.dtype(np.min_scalar_type(array.max())).newbyteorder("<")
    return array.astype(kind).view(np.uint8).reshape(len(array), -1) if kind.itemsize < array.itemsize else array


def _wide(name: str, tensor: NDArray[Any]) -> NDArray[Any]:
    """A tensor of the file as it is in memory. Raises ``ValueError`` for another number of bytes."""
    if name not in NARROWED or tensor.dtype != np.uint8 or tensor.ndim != 2:
        return tensor
    if tensor.shape[1] not in (1, 2, 4):
        raise ValueError(f"{name} has integers of {tensor.shape[1]} bytes; 1, 2 or 4 are expected")
    found: NDArray[Any] = tensor.ravel().view(f"<u{tensor.shape[1]}").astype(NARROWED[name])
    found.flags.writeable = False
    return found


def _tensor(mapped: mmap.mmap, start: int, told: dict[str, Any]) -> NDArray[Any]:
    kind, (low, high) = np.dtype(DTYPES[told["dtype"]]), told["data_offsets"]
    count = (high - low) // kind.itemsize
    return np.frombuffer(mapped, kind, count, start + low).reshape(told["shape"])


def _checksum(head: Mapping[str, Any], metadata: Mapping[str, str], arrays: list[NDArray[Any]]) -> int:
    told = json.dumps([dict(head), dict(sorted(metadata.items()))], sort_keys=True).encode()
    found = zlib.crc32(told)
    for array in arrays:
        data = array.ravel().data.cast("B") if array.nbytes else memoryview(b"")
        for first in range(0, len(data), _BLOCK):
            found = zlib.crc32(data[first : first + _BLOCK], found)
    return found


def _other(kind: str, path: Path) -> str:
    if kind.startswith("student/"):
        return f"it was written by another version of kdrs: {AGAIN}, or install the version that wrote it"
    if kind.startswith("teacher/"):
        return "it is a teacher: make a student of it first, by kdrs distill --teacher or kdrs compress"
    if (path.parent / "config.toml").is_file():
        return f"it is the model of a run: kdrs export {quoted(path.parent)} --out FILE"
    return "kdrs export RUN --out FILE writes one"


def names_of(left: dict[str, Any], kind: str) -> Names:
    """Ids of items or users, taken out of the tensors that are ``left``. Raises ``KeyError`` for tensors that are not there,
    ``DataError`` for damaged ones."""
    return Names.from_tensors({name: left.pop(name) for name in (f"{kind}_ids", f"{kind}_ids_ends")}, kind)


def object_of(metadata: dict[str, str], key: str) -> dict[str, Any]:
    """Raises ``KeyError`` where it is not there, ``DocumentError`` and ``DataError`` for what is no JSON object."""
    found = parse_json(metadata[key].encode())
    if not isinstance(found, dict):
        raise DataError(f"{key} is no JSON object")
    return found
