"""The schema of a prepared data set's head."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdrs.data.checks import INT32_MAX
from kdrs.errors import shown

Count = Annotated[int, Field(ge=0, le=INT32_MAX)]
Size = Annotated[int, Field(ge=0, lt=2**63)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    """A part of the head: nothing is converted, and an unknown key is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Counts(_Part):
    users: Count
    items: Count
    train: Size
    valid: Size
    test: Size


class _Digests(_Part):
    users: Digest
    items: Digest


class _File(_Part):
    bytes: Size
    sha256: Digest


class _Split(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    kind: Annotated[str, Field(min_length=1)]
    last: Literal["test", "valid"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None


class _Source(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    file: str | None = None
    bytes: Size | None = None
    sha256: Digest | None = None


class _Step(BaseModel):
    """What was done; what is left of users, items and rows; facts of the step."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    step: str
    before: dict[str, Size] = {}
    after: dict[str, Size] = {}


class Head(_Part):
    """``dataset.json``, whose own ``checksum`` is the SHA-256 of the rest."""

    format: Literal["kdrs-dataset/1"]
    name: str
    fingerprint: Digest
    counts: _Counts
    digests: _Digests
    files: dict[Literal["users.json", "items.json", "interactions.safetensors"], _File]
    split: _Split
    order: Annotated[str, Field(min_length=1)] | None
    candidates: Count
    sources: list[_Source]
    options: dict[str, Any]
    steps: list[_Step]


def problem_of(head: dict[str, Any]) -> str | None:
    """What is wrong with the first key that is; None for a head that fits."""
    try:
        Head.model_validate(head)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        return f"{shown(key)} is wrong: {shown(problem['msg'], 200)}"
    return None
