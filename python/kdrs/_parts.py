"""A file that several machines make, each a part: how parts are called, what each says of itself, and whether they belong
together.

Beside each part lies a small JSON file, ``PART.json``, with the part's number, its checksum and what it was made of.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdrs._documents import read_json, write_json
from kdrs._files import write_bytes
from kdrs.errors import ConfigError, DataError, shown

FORMAT = "part/1"
_NUMBERED = re.compile(r"part-(\d+)-of-(\d+)")
_BLOCK = 1 << 24


def share_of(text: str, option: str) -> tuple[int, int]:
    """``I/N`` as two numbers, I from 1 to N. Raises ``ConfigError``, naming the option, for anything else."""
    part, slash, of = text.partition("/")
    if slash and part.isdecimal() and of.isdecimal() and len(of) < 10 and 1 <= int(part) <= int(of):
        return int(part), int(of)
    raise ConfigError(f"{option} is {shown(text)}", "allowed: I/N, as 2/8, I from 1 to N")


def span_of(share: tuple[int, int], total: int) -> tuple[int, int]:
    """The first of ``total`` things that belong to a share, and the first that belongs to the next."""
    part, of = share
    return total * (part - 1) // of, total * part // of


def part_of(path: Path, part: int, of: int) -> Path:
    """Where part ``part`` of ``of`` of a file goes: beside it."""
    return path.with_name(f"{path.stem}.part-{part}-of-{of}{path.suffix}")


def digest(value: Any) -> str:
    """32 hexadecimal digits that stand for plain values: two lists of users, say, without a copy of either."""
    return hashlib.blake2b(write_json(value, indent=None), digest_size=16).hexdigest()


def describe(place: Path, share: tuple[int, int], made_of: Mapping[str, Any]) -> None:
    """Writes what a finished part says of itself. Raises ``MachineError`` where the disk does not take it."""
    told = {"kdrs": FORMAT, "part": list(share), "crc32": _checksum(place), "made_of": dict(made_of)}
    write_bytes(_beside(place), write_json(told))


def parts_beside(path: Path, again: Callable[[int, int], str]) -> list[Path]:
    """The parts of a file that lie beside it, in their order. ``again`` says how one is made.

    Raises ``DataError`` where there are none, where one is missing, damaged or cut short, says nothing of itself, or was made
    of something else than the first, and where parts of several divisions lie there.
    """
    found: dict[tuple[int, int], Path] = {}
    pattern = re.compile(re.escape(path.stem) + r"\." + _NUMBERED.pattern + re.escape(path.suffix))
    for one in path.parent.iterdir() if path.parent.is_dir() else ():
        if match := pattern.fullmatch(one.name):
            found[int(match[1]), int(match[2])] = one
    counts = {of for _, of in found}
    name = shown(str(path), 300)
    if not found:
        raise DataError(f"there are no parts of {name}", f"make them: {again(1, 4)}, and the others")
    if len(counts) > 1:
        raise DataError(
            f"parts of {', '.join(map(str, sorted(counts)))} lie beside {name}", "leave those of one division"
        )
    (of,) = counts
    missing = [part for part in range(1, of + 1) if (part, of) not in found]
    if missing:
        raise DataError(
            f"part {missing[0]} of {of} is missing" + (f", and {len(missing) - 1} others" if len(missing) > 1 else ""),
            f"make it: {again(missing[0], of)}",
        )
    parts = [found[part, of] for part in range(1, of + 1)]
    first: dict[str, Any] = {}
    for part, place in enumerate(parts, 1):
        remedy = f"make it again: {again(part, of)}"
        made_of = _told(place, (part, of), remedy)
        first = first or made_of
        for key in [*first, *made_of]:
            ours, theirs = first.get(key), made_of.get(key)
            if ours != theirs:
                both = f"{shown(str(ours))} and {shown(str(theirs))}"
                raise DataError(
                    f"parts 1 and {part} of {of} were not made alike: {shown(key)} is {both}",
                    f"make {part} again as 1, or 1 as {part}: {again(part, of)}",
                )
    return parts


def _beside(place: Path) -> Path:
    return place.with_name(f"{place.name}.json")


def _told(place: Path, share: tuple[int, int], remedy: str) -> dict[str, Any]:
    """What a part was made of, if it is the file that it says."""
    name, beside = shown(str(place), 300), _beside(place)
    if not place.is_file():
        raise DataError(f"{name} is no file", remedy)
    if not beside.is_file():
        raise DataError(
            f"what {name} was made of is not known: {shown(beside.name, 300)} does not lie beside it",
            f"bring it there too, or {remedy}",
        )
    told = read_json(beside, remedy, DataError)
    made_of = told.get("made_of") if isinstance(told, dict) else None
    if not isinstance(made_of, dict) or not made_of or told.get("kdrs") != FORMAT or told.get("part") != list(share):
        raise DataError(f"{shown(str(beside), 300)} does not tell of part {share[0]} of {share[1]}", remedy)
    if told.get("crc32") != _checksum(place):
        raise DataError(f"{name} is damaged, cut short, or not the file that was written", remedy)
    return made_of


def _checksum(place: Path) -> str:
    found = 0
    with place.open("rb") as file:
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
    return f"{found:08x}"
