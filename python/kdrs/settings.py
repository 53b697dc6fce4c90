"""The base of every group of options: frozen, and an unknown key is refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from kdrs.errors import ConfigError, nearest, shown

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _Told(ModelMetaclass):
    """What is wrong with values that are given by hand is our own error; inside of `Settings.parse` it has a path."""

    def __call__(cls, *positional: Any, **values: Any) -> Any:
        try:
            return super().__call__(*positional, **values)
        except ValidationError as error:
            raise _config_error(cast("type[Settings]", cls), error, "") from None


class Settings(BaseModel, metaclass=_Told):
    """Options with their defaults, each written once, each with a docstring. Raises ``ConfigError`` for wrong ones."""

    # strict: without it `epochs = true` is 1 epoch and `lr = "1"` a number
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),  # pydantic before 2.10 warns of every option called model_something
    )

    @model_validator(mode="before")
    @classmethod
    def _tuples(cls, values: Any) -> Any:
        """TOML and JSON write as lists what frozen settings keep as tuples."""
        if not isinstance(values, dict):
            return values
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    @field_validator("*", mode="after")
    @classmethod
    def _countable(cls, value: Any) -> Any:
        """Counts and sizes end where 32 bits do, as the core's; text is what a run file and the system can hold."""
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str) and ("\0" in part or (not part.isascii() and _is_broken(part))):
                raise ValueError("text in UTF-8 without NUL")
        if any(isinstance(part, int) and part >= 2**31 for part in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"at most {2**31 - 1}")
        return value

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Settings from plain values. ``ConfigError`` names the key below ``where``, the value and what is allowed."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _config_error(cls, error, where) from None


def _is_broken(text: str) -> bool:
    """Whether a text holds half of a surrogate pair: a file name that is no UTF-8 does."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _config_error(cls: type[Settings], error: ValidationError, where: str) -> ConfigError:
    problem = error.errors()[0]
    # pydantic names the branches of a union too
    path = [str(part) for part in problem["loc"] if not re.fullmatch(r"int|str|constrained-.*|.*\[.*", str(part))]
    key = ".".join([part for part in [where, *path] if part])
    if problem["type"] == "extra_forbidden":
        return ConfigError(f"unknown key {key!r}", nearest(path[-1], _fields_at(cls, path[:-1])))
    if problem["type"] == "missing":
        return ConfigError(f"{key!r} is missing")
    if problem["type"] == "model_type":
        return ConfigError(f"{key} is {shown(problem['input'])}", f"write it as a table: [{key}]")
    # of a union every branch has its own say
    own = [other for other in error.errors() if other["loc"][: len(problem["loc"]) - 1] == problem["loc"][:-1]]
    said = own if len(own) > 1 and len(problem["loc"]) > len(path) else [problem]
    allowed = " or ".join(
        dict.fromkeys(one["msg"].removeprefix("Input should be ").removeprefix("Value error, ") for one in said)
    ).replace("a valid tuple", "a list")
    allowed = re.sub(
        r"Tuple should have at least (\d+) items? after validation, not \d+", r"a list of \1 or more", allowed
    )
    given = problem["input"]
    return ConfigError(f"{key} is {shown(list(given) if isinstance(given, tuple) else given)}", f"allowed: {allowed}")


def _fields_at(cls: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = cls.model_fields.get(part)
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            cls = inner
    return list(cls.model_fields)
