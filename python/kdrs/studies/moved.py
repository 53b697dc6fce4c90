"""A study of a recipe whose folder was copied or moved: what its files say of places in that folder, put right."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from kdrs._documents import read_json, read_toml, write_json
from kdrs._files import write_bytes
from kdrs.errors import ArtefactError
from kdrs.runs.values import flat, is_path, to_toml

REMEDY = "restore it, or take it away: the same command writes it anew"


def recipe_of(study: str | Path) -> Path | None:
    """The folder of the recipe that a study's folder is of; None where it is of none."""
    root = Path(os.path.abspath(study)).parent.parent
    return root if (root / "recipe.toml").is_file() else None


def former_root(before: Mapping[str, Any], told: Mapping[str, Any], root: Path) -> str | None:
    """Where a recipe's folder, now ``root``, was as its study was begun: ``before`` and ``told`` are what study.toml says and
    should say. None where it is where it was, or no place in it is named."""
    one, other = flat(before), flat(told)
    for key in one.keys() & other.keys():
        if _holds_paths(key):
            for then, now in zip(_listed(one[key]), _listed(other[key]), strict=False):
                found = _before(then, now, root)
                if found is not None:
                    return found
    return None


def rooted(values: Any, former: str, root: Path, key: str = "") -> Any:
    """Plain values with places in the ``former`` folder of the recipe as places in ``root``."""
    if isinstance(values, Mapping):
        return {
            name: rooted(value, former, root, f"{key}.{name}" if key else str(name)) for name, value in values.items()
        }
    if isinstance(values, list | tuple):
        return [rooted(value, former, root, key) for value in values]
    if isinstance(values, str) and _holds_paths(key) and PurePath(values).is_relative_to(former):
        return str(root / PurePath(values).relative_to(former))
    return values


def put_right(study: Path, former: str, root: Path) -> None:
    """The records of a study's trials and the files of its best points, written anew where they name places in the ``former``
    folder. study.toml is written by who calls, and last: what was cut off is then begun anew. Raises ``ArtefactError`` for
    damaged ones."""
    for path in sorted(study.glob("trials/*/*.json")):
        _write_anew(path, read_json(path, REMEDY), write_json, former, root)
    for path in sorted(study.glob("best/*.toml")):
        _write_anew(path, read_toml(path, REMEDY, ArtefactError), to_toml, former, root)


def _write_anew(path: Path, values: Any, form: Callable[[Any], bytes], former: str, root: Path) -> None:
    now = rooted(values, former, root)
    if now != values:
        write_bytes(path, form(now))


def _before(then: Any, now: Any, root: Path) -> str | None:
    if not (isinstance(then, str) and isinstance(now, str)) or then == now or not PurePath(now).is_relative_to(root):
        return None
    inside = PurePath(now).relative_to(root).parts
    parts = PurePath(then).parts
    return str(PurePath(*parts[: -len(inside)])) if inside and parts[-len(inside) :] == inside else None


def _holds_paths(key: str) -> bool:
    """Whether an option holds paths, wherever it is named: in an arm's run or space, and in a trial's point."""
    return is_path(key) or key.endswith((".data.path", ".parts", ".refit"))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
