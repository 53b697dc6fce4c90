"""A prepared data set on the disk: its head, checked by a schema, its lists of ids and its arrays."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs._documents import MOST_HEAD, DocumentError, parse_json, read_whole, write_json
from kdrs._files import NewFolder
from kdrs._libraries import need
from kdrs.data.checks import memory
from kdrs.data.ids import Ids
from kdrs.errors import DataError, MachineError, shown

FORMAT = "kdrs-dataset/1"
HEAD, ARRAYS, USERS, ITEMS = "dataset.json", "interactions.safetensors", "users.json", "items.json"
FILES = (HEAD, ARRAYS, USERS, ITEMS)
PREPARE_AGAIN = "prepare the data set again with kdrs data prepare, in a new folder"
_MOST_HEADER = 2**20
"""Bytes of a safetensors file beside its arrays."""


@dataclass(frozen=True)
class Stored:
    """What a prepared data set holds: its head as plain values, the ids, the arrays by name."""

    head: dict[str, Any]
    users: Ids
    items: Ids
    arrays: dict[str, NDArray[Any]]


def read(folder: Path) -> Stored:
    """Everything in the folder, each byte checked against the digests, and each size before memory is taken for it.

    Raises ``DataError`` for what is absent, damaged, of another version or does not fit together, ``MachineError`` where
    the machine cannot read or hold it.
    """
    head = read_head(folder)
    counts, files = head["counts"], head["files"]
    place = shown(str(folder / HEAD), 300)
    for name, key in ((USERS, "users"), (ITEMS, "items")):
        if files[name]["sha256"] != head["digests"][key]:
            raise DataError(f"{place}: digests.{key} and files.{name}.sha256 differ", PREPARE_AGAIN)
    layout = _layout(head)
    arrays = sum(_bytes(*parts) for parts in layout.values())
    if not arrays <= files[ARRAYS]["bytes"] <= arrays + _MOST_HEADER:
        raise DataError(
            f"{place}: {ARRAYS} has {files[ARRAYS]['bytes']:,} bytes; by the counts it is {arrays:,} and a header",
            PREPARE_AGAIN,
        )
    needed = sum(file["bytes"] for file in files.values())
    if needed > memory():
        raise MachineError(f"{shown(str(folder), 300)} takes {needed / 1e9:.1f} GB of memory", "use a larger machine")
    ids = {}
    for name, kind in ((USERS, "user"), (ITEMS, "item")):
        ids[kind] = Ids.from_json(_vouched(folder / name, files[name]), kind)
        if len(ids[kind]) != counts[f"{kind}s"]:
            found = f"{len(ids[kind]):,} ids; {HEAD} says {counts[f'{kind}s']:,}"
            raise DataError(f"{shown(str(folder / name), 300)} holds {found}", PREPARE_AGAIN)
    return Stored(head, ids["user"], ids["item"], _arrays(folder / ARRAYS, files[ARRAYS], layout))


def read_head(folder: Path) -> dict[str, Any]:
    """The head of a prepared data set, as plain values. Errors as of ``read``."""
    path = folder / HEAD
    name = shown(str(path), 300)
    if not path.exists():
        raise DataError(
            f"{shown(str(folder), 300)} is no prepared data set (it has no {HEAD})",
            "make one with kdrs data prepare SOURCE --out DIR",
        )
    try:
        head = parse_json(read_whole(path, PREPARE_AGAIN, most=MOST_HEAD))
    except DocumentError as error:
        raise DataError(f"{name} is damaged: {error}", PREPARE_AGAIN) from None
    version = head.get("format") if isinstance(head, dict) else None
    if version != FORMAT:
        raise DataError(
            f"{name} has format {shown(version)}; this kdrs reads {FORMAT}",
            "it was written by another version of kdrs: prepare the data again, or use that version",
        )
    if "checksum" not in head:
        raise DataError(f"{name} has no checksum", PREPARE_AGAIN)
    if head.pop("checksum") != hashlib.sha256(canonical(head)).hexdigest():
        raise DataError(f"{name} was changed after it was written (its checksum differs)", PREPARE_AGAIN)
    need("pydantic", "a prepared data set")
    from kdrs.data._head import problem_of

    problem = problem_of(head)
    if problem is not None:
        raise DataError(f"{name}: {problem}", PREPARE_AGAIN)
    missing = sorted({ARRAYS, USERS, ITEMS} - set(head["files"]))
    if missing:
        raise DataError(f"{name} does not list {missing[0]}", PREPARE_AGAIN)
    return head


def is_complete(folder: Path) -> bool:
    """Whether the folder has a valid head of ours: what may be replaced, and nothing else. ``MachineError`` where that
    cannot be found out."""
    try:
        read_head(folder)
    except DataError:
        return False
    return True


def write(folder: NewFolder, head: dict[str, Any], users: Ids, items: Ids, arrays: dict[str, NDArray[Any]]) -> None:
    """Writes the four files. ``head`` lacks ``files`` and ``checksum``, which are made here."""
    from safetensors.numpy import save

    files = {}
    for name, content in (
        (USERS, users.to_json()),
        (ITEMS, items.to_json()),
        (
            ARRAYS,
            save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata={"kdrs": FORMAT}),
        ),
    ):
        folder.write(name, content)
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    # as it will be read: tuples are lists then, and there is no -0
    document = parse_json(write_json({**head, "files": files}))
    document["checksum"] = hashlib.sha256(canonical(document)).hexdigest()
    folder.write(HEAD, write_json(document))


def canonical(value: Any) -> bytes:
    """One form of JSON values, for digests."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _layout(head: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array, from the counts."""
    counts = head["counts"]
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for part in ("train", "valid", "test"):
        layout[f"{part}.indptr"] = ("I64", (counts["users"] + 1,))
        layout[f"{part}.indices"] = ("I32", (counts[part],))
    if head["order"] is not None:
        layout["train_order"] = ("I32", (counts["train"],))
    if head["candidates"]:
        layout["candidates"] = ("I32", (counts["users"], head["candidates"]))
    return layout


def _bytes(kind: str, shape: tuple[int, ...]) -> int:
    total = 8 if kind == "I64" else 4
    for size in shape:
        total *= size
    return total


def _vouched(path: Path, record: dict[str, Any]) -> bytes:
    """The bytes of a file whose size and digest are stated."""
    data = read_whole(path, PREPARE_AGAIN, size=record["bytes"])
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise DataError(f"{shown(str(path), 300)} was changed after it was written (SHA-256 differs)", PREPARE_AGAIN)
    return data


def _arrays(
    path: Path, record: dict[str, Any], layout: dict[str, tuple[str, tuple[int, ...]]]
) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError, deserialize

    data = _vouched(path, record)
    name = shown(str(path), 300)
    try:
        found: dict[str, Any] = dict(deserialize(data))
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{name} cannot be read: {shown(str(error), 200)}", PREPARE_AGAIN) from error
    stated = {label: (entry["dtype"], tuple(entry["shape"])) for label, entry in found.items()}
    for label in sorted(stated.keys() | layout.keys()):
        if label not in stated:
            raise DataError(f"{name}: {label} is missing", PREPARE_AGAIN)
        if label not in layout:
            raise DataError(f"{name} holds {shown(label)}, which belongs to no data set", PREPARE_AGAIN)
        if stated[label] != layout[label]:
            raise DataError(f"{name}: {label} is {stated[label]}; {HEAD} says {layout[label]}", PREPARE_AGAIN)
    types: dict[str, Any] = {"I64": np.dtype("<i8"), "I32": np.dtype("<i4")}
    arrays = {
        label: np.frombuffer(entry["data"], types[entry["dtype"]]).reshape(entry["shape"])
        for label, entry in found.items()
    }
    for array in arrays.values():
        array.flags.writeable = False  # nobody else holds them: no copy is made
    return arrays
