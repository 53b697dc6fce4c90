"""A run's options as plain values: paths in them, differences between them, TOML."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from kdrs.errors import ConfigError, shown
from kdrs.escaping import toml_text

FROM_TEACHER = "teacher"
"""What ``start`` says where the first teacher's vectors are the first weights."""


def with_paths(config: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A run's plain values with every path in them changed. Names of parts are no paths."""
    parts = config.get("teachers", {})

    def placed(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: placed(f"{key}.{name}", entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [placed(key, entry) for entry in value]
        named = value in parts or (key.endswith("start") and value == FROM_TEACHER)
        return change(value) if isinstance(value, str) and is_path(key) and not named else value

    return {key: placed(key, value) for key, value in config.items()}


def with_former(values: dict[str, Any]) -> dict[str, Any]:
    """A run's stored options, where an older kdrs wrote them: an option that did not exist and whose default is not what was
    done then states what was done. Encoded users had but the matrix that was trained."""

    def model_of(holder: Any) -> Any:
        model = holder.get("model") if isinstance(holder, Mapping) else None
        if not isinstance(model, Mapping) or model.get("users") != "encoded" or "encoder" in model:
            return holder
        return {**holder, "model": {**model, "encoder": "trained"}}

    found: dict[str, Any] = model_of(values)
    if isinstance(parts := found.get("teachers"), Mapping):
        found = {**found, "teachers": {name: model_of(part) for name, part in parts.items()}}
    return found


def is_path(key: str) -> bool:
    """Whether a run's option, named by dots, holds paths: data, parts, a refit's run, teachers and what a run starts from."""
    return key in ("data.path", "parts", "refit") or re.fullmatch(r"(.+\.)?(start|teacher)", key) is not None


def same_places(one: Any, other: Any) -> bool:
    """Whether two paths, or two lists of them, are the same places."""
    pair = [[value] if isinstance(value, str) else value for value in (one, other)]
    if not all(isinstance(paths, list) for paths in pair):
        return False
    left, right = ([os.path.realpath(path) for path in paths] for paths in pair)
    return left == right


def same_name(one: Any, other: Any) -> bool:
    """Whether two paths, or two lists of them, end alike: what they name may have moved along with the run."""
    pair = [[value] if isinstance(value, str) else value for value in (one, other)]
    if not all(isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in pair):
        return False
    left, right = ([os.path.basename(path.rstrip("/")) for path in paths] for paths in pair)
    return left == right


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The options by their names with dots, entries of lists of tables by their numbers."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        elif isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            for index, entry in enumerate(value):
                found.update(flat(entry, f"{prefix}{key}.{index}."))
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def to_toml(config: Mapping[str, Any]) -> bytes:
    import tomli_w

    try:
        return toml_text(tomli_w.dumps(without_none(config))).encode()
    except UnicodeEncodeError as error:
        bad = shown(error.object[max(0, error.start - 40) : error.end + 20])
        raise ConfigError(f"config.toml cannot hold what is no UTF-8: {bad}", "give the path another name") from None


def without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: without_none(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [without_none(entry) for entry in value]
    return value
