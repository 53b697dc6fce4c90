"""The schema of a stored report's head."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kdrs.errors import shown


class Head(BaseModel):
    """What the JSON file of a report holds, as far as it is read again."""

    model_config = ConfigDict(strict=True, extra="ignore")

    values: list[str]
    sha256: str
    setting: str
    part: str
    n_queries: int
    rules: dict[str, str]
    beyond: dict[str, float]
    tied: float | None
    history: str = "train"


def head_of(stored: dict[str, Any]) -> Head:
    """Raises ``ValueError`` with the first key that is wrong."""
    try:
        return Head.model_validate(stored)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))} is {shown(first['input'])}") from None
