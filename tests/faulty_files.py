"""Changes of files in a folder, as cases of faults want them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path


def write(name: str, text: str) -> Callable[[Path], object]:
    def do(folder: Path) -> object:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        return (folder / name).write_text(text)

    return do


def delete(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def flip(name: str) -> Callable[[Path], object]:
    def do(folder: Path) -> object:
        content = bytearray((folder / name).read_bytes())
        content[-5] ^= 1
        return (folder / name).write_bytes(content)

    return do


def status(name: str, **values: object) -> Callable[[Path], object]:
    def do(folder: Path) -> object:
        path = folder / name / "STATUS.json"
        return path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return do


def both(*steps: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [step(folder) for step in steps]


def copy(source: str, to: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copy(folder / source, folder / to)
