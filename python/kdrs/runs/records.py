"""The JSON records of a run directory: what each may hold, and the one way to read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdrs._documents import DocumentError, parse_json, read_json
from kdrs.errors import ArtefactError, shown
from kdrs.escaping import json_text

PATH = 300
"""Characters of a path that a message shows: its end says most."""
RESTORE = "restore it from a copy of the run, or train the run anew in another folder"

Count = Annotated[int, Field(ge=0, lt=2**31)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, hex."""


class Record(BaseModel):
    """A record. Keys that this version does not know are passed over: a later one may write more."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Status(Record):
    """STATUS.json"""

    status: Literal["running", "finished", "interrupted", "failed"]
    epochs: Count | None = None
    best_epoch: Count | None = None
    """Of the weights in model.safetensors; None where none was better than the others."""
    stopped: str | None = None
    model_sha256: Digest | None = None
    metrics_sha256: Digest | None = None
    """Of metrics.jsonl when the run ended."""
    error: str | None = None
    remedy: str | None = None
    part: str | None = None
    part_epochs: Count | None = None


class IdDigests(Record):
    users: Digest
    items: Digest


class PairCounts(Record):
    train: Count
    valid: Count
    test: Count


class DataHead(Record):
    """data.json"""

    name: str
    fingerprint: Digest
    users: Annotated[int, Field(ge=1, lt=2**31)]
    items: Annotated[int, Field(ge=1, lt=2**31)]
    pairs: PairCounts
    split: dict[str, Any]
    digests: IdDigests


class Code(Record):
    """Where a class was had when a run was started."""

    package: str | None = None
    """Name and version, of an installed one."""
    file: str | None = None
    sha256: Digest | None = None
    """Of the file."""


class Started(Record):
    """env.json, as far as it is read again."""

    kdrs: str | None = None
    folder: str | None = None
    threads: Count | None = None
    torch_threads: Count | None = None
    options: dict[str, Any] | None = None
    """The run's options when it was started: config.toml is compared with them. None in runs of older versions."""
    code: dict[str, Code] = {}
    """Where the classes that are not ours were had, by their names in the options."""
    teachers: dict[str, list[Digest | None]] = {}
    """What its teachers and starts were (`kdrs.runs.references`). Empty in runs of older versions."""
    moved: dict[str, list[str | list[str]]] = {}
    """What options that name teachers were changed to since, where they name the same ones."""


class Kept(Record):
    """trackers/NAME.json"""

    state: dict[str, str] = {}


class StageDigests(Record):
    """stages/digests.json: SHA-256 by file."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Digest]


class Rows(Record):
    """The lines of metrics.jsonl that belong to a checkpoint."""

    count: Count
    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: Digest


class CheckpointFile(Record):
    name: Annotated[str, Field(pattern=r"^(state|best)-[0-9]{6,10}\.safetensors$")]
    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: Digest


class CheckpointFiles(Record):
    state: CheckpointFile
    best: CheckpointFile


class Stopping(Record):
    metrics: list[str]
    stale: Count
    last_epoch: Count | None
    own: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]]
    at_first: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]]


class Meta(Record):
    stopping: Stopping
    best_epoch: Count | None


class Manifest(Record):
    """checkpoint/manifest.json and previous.json"""

    format: str
    epoch: Count
    files: CheckpointFiles
    meta: Meta
    rows: Rows | None = None
    options: dict[str, Any] | None = None
    sha256: Digest


class Row(Record):
    """A line of metrics.jsonl."""

    epoch: Count
    loss: float | None = None
    losses: dict[str, float | None] = {}
    seconds: float | None = None
    valid: dict[str, float | None] = {}
    test: dict[str, float | None] = {}


Kind = TypeVar("Kind", bound=Record)


def read_record(path: Path, kind: type[Kind], remedy: str = RESTORE) -> Kind:
    """A JSON record of a run. Raises ``ArtefactError`` naming the file, and the key where one is wrong."""
    return checked(read_json(path, remedy), kind, shown(str(path), PATH), remedy)


def checked(values: Any, kind: type[Kind], name: str, remedy: str = RESTORE) -> Kind:
    """Plain values as a record; ``name`` is how a message calls where they are from."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        allowed = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        allowed = allowed[:1].lower() + allowed[1:]
        found = f"{key} is {shown(problem['input'])}" if key else f"it is {shown(problem['input'])}"
        if problem["type"] == "missing":
            found, allowed = f"{key} is missing", ""
        raise ArtefactError(f"{name} is damaged: {found}{f'; allowed: {allowed}' if allowed else ''}", remedy) from None


def plain(record: Record) -> dict[str, Any]:
    """What of a record was stated."""
    return record.model_dump(exclude_unset=True)


def parse_row(line: bytes, where: str) -> dict[str, Any]:
    """A line of metrics.jsonl. Raises ``ArtefactError`` naming it."""
    remedy = "restore metrics.jsonl from a copy of the run, or train the run anew in another folder"
    try:
        values = parse_json(line)
    except DocumentError as error:
        raise ArtefactError(f"{where} is damaged: {error}", remedy) from None
    checked(values, Row, where, remedy)
    return values


def parse_metadata(text: str | None, where: str) -> dict[str, str]:
    """The metadata of tensors that a run wrote: strings by name. Raises ``ArtefactError`` for any other."""
    try:
        values = parse_json((text or "").encode("utf-8", "surrogatepass"))
    except DocumentError:
        values = None
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ArtefactError(f"{where} was not written by a kdrs run", "check the path") from None
    return values


def dumps(value: Any) -> bytes:
    """JSON of a record as it is written."""
    text = json_text(value, indent=2, ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # paths may hold bytes that are no UTF-8
