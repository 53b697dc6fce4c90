"""What a file is by its first bytes, beside what a form reads."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from kdrs.errors import DataError, shown

ARCHIVE, ARRAY, PARQUET, TENSORS = (
    "NumPy's archive (.npz)",
    "one NumPy array (.npy)",
    "a Parquet file",
    "a safetensors file",
)
READS: dict[str, tuple[str | None, ...]] = {
    "npy": (ARRAY,),
    "parquet": (PARQUET, None),
    "word2vec": (None,),
    "lists": (PARQUET, None),
}
"""What each form is read from, None for anything that is not told by its first bytes; other forms from an archive alone."""
_SAVE = 'kdrs.save_teacher("teacher.safetensors", '
_MEND = {
    ARCHIVE: "say --from npz; or --from implicit of a model that implicit saved",
    ARRAY: "say --from npy: SOURCE holds the items' vectors, --users FILE the users', --user-ids and --item-ids their ids",
    PARQUET: "say --from parquet for vectors, or --from lists for recommendations",
    TENSORS: f"in Python: a = safetensors.numpy.load_file(FILE); {_SAVE}users=a[...], items=a[...], user_ids=..., "
    "item_ids=...)",
    None: "say what it is: --from lists for CSV, TSV or JSON lines of recommendations, --from word2vec for vectors as text; "
    "or write it again",
}
_LISTS = (
    "write lists as CSV, TSV, .parquet or .jsonl, a row for each user and item; or make a teacher file of arrays: "
    f"{_SAVE}topk=..., user_ids=..., item_ids=...)"
)
_LONGEST = 1 << 20
"""Bytes of a safetensors header that are read for its metadata."""


def check_container(path: Path, form: str) -> None:
    """Raises ``DataError`` for a file of another kind than ``form`` is read from. One that cannot be opened passes: its reader
    tells that better."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
            kind, mark = _kind(head, path.stat().st_size), None
            if kind == TENSORS:
                mark = _mark(file.read(min(int.from_bytes(head[:8], "little") - 1, _LONGEST)))
    except OSError:
        return
    allowed = READS.get(form, (ARCHIVE,))
    if kind in allowed or not head:
        return
    name, remedy = shown(str(path), 300), _MEND[kind]
    if form == "lists":
        remedy = _LISTS
    if mark is not None and mark.startswith("teacher/"):
        raise DataError(f"{name} is a teacher file already", "it needs no import: kdrs distill --teacher FILE")
    if mark is not None and mark.startswith("student/"):
        raise DataError(
            f"{name} is an exported student", "take the run that it was exported from: kdrs distill --teacher RUN"
        )
    text = {"lists": "CSV, TSV, JSON lines", "parquet": "JSON lines"}.get(form, "text")
    wanted = " or ".join(one or text for one in allowed)
    is_kind = f"is {kind}" if kind else f"begins with {shown(str(head))}"
    raise DataError(f"{name} {is_kind}, and --from {form} reads {wanted}", remedy)


def _kind(head: bytes, size: int) -> str | None:
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return ARCHIVE
    if head[:6] == b"\x93NUMPY":
        return ARRAY
    if head[:4] == b"PAR1":
        return PARQUET
    return TENSORS if head[8:] == b"{" and int.from_bytes(head[:8], "little") < size else None


def _mark(rest: bytes) -> str | None:
    """What the metadata of a safetensors header call it."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads(b"{" + rest)["__metadata__"]["kdrs"])
    return None
