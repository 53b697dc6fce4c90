"""NumPy's own files, ``.npy`` and ``.npz``. Never a pickle, and no memory is taken on the word of a header alone."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kdrs.data._guard import check_unpacked, guarded
from kdrs.data._text import read_bytes
from kdrs.errors import DataError, shown

_PACKINGS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflate"}
"""How NumPy and SciPy pack the members of an archive."""


def load_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array of an ``.npy`` file, read-only. Raises ``DataError`` for anything else, arrays of objects included."""
    data, _ = read_bytes(path)
    name = shown(str(path))
    with guarded(f"{name} is no readable NumPy array"):
        return Header(io.BytesIO(data), len(data), name).load()


def load_arrays(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those arrays of an ``.npz`` file that have one of ``names``, read-only; no other is unpacked.

    Raises ``DataError`` for what is no such archive and for arrays of objects among them.
    """
    data, _ = read_bytes(path)
    name = shown(str(path))
    with guarded(f"{name} is no readable .npz file"), zipfile.ZipFile(io.BytesIO(data)) as archive:
        held = members_of(archive, name)
        return unpacked(archive, held, [wanted for wanted in names if wanted in held], name)


def array_names(path: str | os.PathLike[str]) -> list[str]:
    """The names of an ``.npz`` file's arrays."""
    data, _ = read_bytes(path)
    name = shown(str(path))
    with guarded(f"{name} is no readable .npz file"), zipfile.ZipFile(io.BytesIO(data)) as archive:
        return list(members_of(archive, name))


def members_of(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    """The members by name, each once and packed as NumPy packs."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        label = member.filename.removesuffix(".npy")
        if member.compress_type not in _PACKINGS:
            packing = {12: "bzip2", 14: "lzma"}.get(member.compress_type, f"method {member.compress_type}")
            raise DataError(
                f"{name}: member {shown(member.filename)} is packed by {packing}; allowed: stored and deflate, as NumPy writes",
                "write the file again with numpy.savez_compressed",
            )
        if label in members:
            raise DataError(f"{name} has two members {shown(label)}", "write each array once")
        members[label] = member
    return members


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Header:
    with guarded(f"{name} is no readable .npz file: {shown(member.filename)}"):
        return Header(archive.open(member), member.file_size, f"{name}, {shown(member.filename)}")


def unpacked(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], labels: list[str], name: str
) -> dict[str, NDArray[Any]]:
    """Some arrays of an archive, their stated sizes compared with the memory at hand before the first is unpacked."""
    check_unpacked(name, 2 * sum(members[label].file_size for label in labels))
    arrays = {}
    for label in labels:
        header = open_member(archive, members[label], name)
        with guarded(f"{name} is no readable .npz file: {shown(members[label].filename)}"):
            arrays[label] = header.load()
    return arrays


class Header:
    """What an ``.npy`` stream says of itself, compared with its size before anything is allocated. Never a pickle."""

    def __init__(self, stream: IO[bytes], size: int, name: str):
        self.stream, self.name = stream, name
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, self.fortran, self.dtype = read(stream)
        if self.dtype.hasobject:
            raise DataError(
                f"{name} holds Python objects, which are a pickle; kdrs never loads pickles",
                "save integers or strings: array.astype(str)",
            )
        left = size - stream.tell()
        self.n_bytes = self.dtype.itemsize * int(np.prod(self.shape, dtype=object))
        if self.n_bytes != left or min(self.shape, default=0) < 0:
            raise DataError(
                f"{name} announces {self.n_bytes:,} bytes ({self.dtype} {self.shape}) and holds {left:,}",
                "the file was cut or damaged: write it again",
            )
        if not self.dtype.itemsize:
            raise DataError(f"{name} holds values without bytes ({self.dtype})", "write it again with values")

    def load(self) -> NDArray[Any]:
        """The array, read-only."""
        data = self.stream.read(self.n_bytes)
        self.stream.read()  # to the end, where archives are checked against their checksum
        array = np.frombuffer(data, self.dtype)
        return array.reshape(self.shape, order="F" if self.fortran else "C")
