"""JSON and TOML from outside, to plain values: whatever is wrong with them is one error, never an accident of the parser."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from kdrs.errors import ArtefactError, ConfigError, DataError, KdrsError, MachineError, shown
from kdrs.escaping import json_text

MOST_HEAD = 2**26
"""Bytes that a head may have; lists of ids have no such limit, their size is stated in a head."""
_MOST_DIGITS = 20
"""Digits of an integer: 2^64 - 1 has as many, and nothing that kdrs counts is larger."""
_CUT = 200
_OF_THE_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
"""Errors that say what is wrong with the path; any other is the machine's."""


class DocumentError(ValueError):
    """Why a document cannot be read, for whoever knows which document it is."""


def parse_json(data: bytes) -> Any:
    """Plain values of JSON: UTF-8, each key once in an object, finite numbers, integers of 64 bits.

    Raises ``DocumentError`` for anything else, deep nesting and lone surrogates included.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_each_once, parse_constant=_no_number, parse_int=_integer, parse_float=_finite
        )
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # an escape may hide half of a pair
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}") from None
    except UnicodeEncodeError:
        raise DocumentError("a string holds a lone surrogate, which UTF-8 cannot write") from None
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except ValueError as error:
        raise DocumentError(shown(str(error), _CUT)) from None
    return value


def write_json(value: Any, *, indent: int | None = 2) -> bytes:
    """JSON of plain values, UTF-8 with a newline at the end; never -0. ``ValueError`` for NaN and infinity."""
    plain = _positive(value)
    json.dumps(plain, allow_nan=False)  # what is written for others may hold null; a head must not lose a number
    return (json_text(plain, indent=indent, ascii=False) + "\n").encode()


def parse_toml(text: str) -> dict[str, Any]:
    """Plain values of TOML. Raises ``DocumentError`` for anything else, deep nesting and huge integers included."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and integers of more digits than Python converts
        raise DocumentError(shown(str(error), _CUT)) from None


def toml_value(text: str, where: str) -> Any:
    """The value that ``text`` is in TOML; the text itself where it is none, as in ``--set model.name=bpr``.

    Raises ``ConfigError`` for what is TOML and too large or too deep to be a value.
    """
    if "\n" in text:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
    except (RecursionError, ValueError) as error:
        cause = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{where} is {shown(text)}: {shown(cause, _CUT)}", "write an ordinary value") from None


def read_toml(path: Path, remedy: str, kind: type[KdrsError] = ConfigError) -> dict[str, Any]:
    """The values of a TOML file. Raises ``kind`` for what cannot be read, naming the file and the line."""
    data = read_whole(path, remedy, kind=kind)
    try:
        return parse_toml(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        problem = f"byte {data[error.start]:#04x} at offset {error.start} is not UTF-8"
        raise kind(f"{shown(str(path), 300)} is no TOML: {problem}", remedy) from None
    except DocumentError as error:
        raise kind(f"{shown(str(path), 300)} is no TOML: {error}", remedy) from None


def read_json(path: Path, remedy: str, kind: type[KdrsError] = ArtefactError) -> Any:
    """The values of a JSON file. Raises ``kind`` for what cannot be read, naming the file."""
    try:
        return parse_json(read_whole(path, remedy, kind=kind))
    except DocumentError as error:
        raise kind(f"{shown(str(path), 300)} is damaged: {error}", remedy) from None


def read_whole(
    path: Path, remedy: str, *, size: int | None = None, most: int = MOST_HEAD, kind: type[KdrsError] = DataError
) -> bytes:
    """The bytes of a regular file: of ``size`` bytes where that is stated, else of at most ``most``.

    Raises ``kind`` for an absent file, for what is no file (a pipe would wait for ever) and for another size, before
    anything is read; ``MachineError`` where the machine does not give what is there.
    """
    name = shown(str(path), 300)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise kind(f"{name} is no file", remedy)
            if size is not None and found.st_size != size:
                raise kind(f"{name} has {found.st_size:,} bytes; {size:,} are stated", remedy)
            if size is None and found.st_size > most:
                raise kind(f"{name} has {found.st_size:,} bytes; allowed: {most:,}", remedy)
            data = file.read(found.st_size + 1)
    except OSError as error:
        cause = f"cannot read {name}: {error.strerror or error}"
        if error.errno in _OF_THE_PATH:
            raise kind(cause, remedy) from error
        raise MachineError(cause, "check permissions and the disk") from error
    except ValueError as error:  # a name with a NUL
        raise kind(f"cannot read {name}: {shown(str(error))}", remedy) from error
    if len(data) != found.st_size:
        raise kind(f"{name} changed while it was read", "wait until it is written, then try again")
    return data


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise DocumentError(f"key {shown(name)} comes twice")
            seen.add(name)
    return found


def _no_number(name: str) -> Any:
    raise DocumentError(f"it holds {name}, which is no number")


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise DocumentError(f"it holds an integer of {len(text):,} digits: {shown(text, 20)}")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DocumentError(f"it holds {shown(text, 20)}, which no float64 can hold")
    return value


def _positive(value: Any) -> Any:
    """The same with 0 in the place of -0, and with bytes of names that are no UTF-8 written out."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_positive(key): _positive(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_positive(entry) for entry in value]
    return value + 0.0 if isinstance(value, float) else value
