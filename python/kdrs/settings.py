"""The base of every group of options: frozen, and an unknown key is refused."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from kdrs.errors import ConfigError, nearest, shown


class Settings(BaseModel):
    """Options with their defaults, each written once, each with a docstring."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Settings from plain values. ``ConfigError`` names the key below ``where``, the value and what is allowed."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _config_error(cls, error, where) from None


def _config_error(cls: type[Settings], error: ValidationError, where: str) -> ConfigError:
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    key = ".".join([part for part in [where, *path] if part])
    if problem["type"] == "extra_forbidden":
        return ConfigError(f"unknown key {key!r}", nearest(path[-1], _fields_at(cls, path[:-1])))
    if problem["type"] == "missing":
        return ConfigError(f"{key!r} is missing")
    allowed = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return ConfigError(f"{key} is {shown(problem['input'])}", f"allowed: {allowed}")


def _fields_at(cls: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = cls.model_fields.get(part)
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            cls = inner
    return list(cls.model_fields)
