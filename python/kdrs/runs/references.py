"""A run's teachers, and the run that it starts from: which they were when it began, by digest, and where they are now."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdrs._documents import read_json, read_toml
from kdrs.errors import ArtefactError, ConfigError, quoted, shown
from kdrs.runs.files import file_digest, write_json
from kdrs.runs.records import PATH, RESTORE, StageDigests, Started, Status, read_record
from kdrs.runs.values import FROM_TEACHER, flat, is_path, same_name, with_paths
from kdrs.teachers.file import trajectory_files

Options = dict[str, Any]
Digests = dict[str, list[str | None]]
"""By option, in the order of its paths; None for what the run trains itself."""


def references(config: Mapping[str, Any], trained: Collection[str] = ()) -> dict[str, list[str | None]]:
    """The paths of a run's teachers and starts by option, those of its parts first; None for parts and ``trained`` runs."""
    own = {*config.get("teachers", {}), *trained}
    found: dict[str, list[str | None]] = {}
    for key, value in flat(config).items():
        if not is_path(key) or key.rpartition(".")[2] not in ("teacher", "start") or key.startswith("compress."):
            continue
        inner = own | {FROM_TEACHER} if key.endswith("start") else own
        found[key] = [path if path not in inner else None for path in _listed(value)]
    return dict(sorted(found.items(), key=lambda one: not one[0].startswith("teachers.")))


def digests_of(config: Mapping[str, Any], trained: Collection[str] = ()) -> Digests:
    """What a run's teachers and starts are, by digest."""
    found = references(config, trained)
    return {key: [path and digest_of(Path(path)) for path in paths] for key, paths in found.items()}


def digest_of(path: Path) -> str | None:
    """SHA-256 of what lies there to be learnt from; None where nothing does.

    Of a teacher file it is that of the whole file: training reads it to the end too. Of a run it is that of the SHA-256 of
    its weights, which its STATUS.json has, of the options that its model began with (env.json; the model's name alone where an
    older kdrs noted none: config.toml is written anew on resume), and of the stages before the best epoch: a few bytes, and
    the weights are compared with them when they are read. Of a folder of teacher files it is that of names and files.
    """
    with suppress(OSError, ArtefactError):
        if files := trajectory_files(path):
            return _together([[file.name, _of_file(file)] for file in files])
        if path.is_dir():
            return _of_run(path)
        if path.is_file():
            return _of_file(path)
    return None


def _of_run(path: Path) -> str:
    status = read_record(path / "STATUS.json", Status)
    weights = status.model_sha256 or _of_file(path / "model.safetensors")
    began = _started(path).options
    model = began.get("model") if began else _model_name(path)
    listed = path / "stages" / "digests.json"
    stages = read_record(listed, StageDigests).model_dump() if os.path.lexists(listed) else {}
    best = -1 if status.best_epoch is None else status.best_epoch
    earlier = {
        name: sha256 for name, sha256 in stages.items() if (stem := Path(name).stem).isdecimal() and int(stem) < best
    }
    return _together([weights, model, earlier])


def _model_name(path: Path) -> Any:
    model = read_toml(path / "config.toml", RESTORE, ArtefactError).get("model")
    return model.get("name") if isinstance(model, Mapping) else None


def _of_file(path: Path) -> str:
    found = path.stat()
    return _read(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, *state: int) -> str:
    """The digest of a file in this ``state``: it is looked at before it is read, and when the run begins; once a seed too."""
    return file_digest(path)


def _together(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class OtherTeacher(ArtefactError):
    """A teacher of a run is another one than when the run began, or is not there any more (exit code 4)."""


# --- compared -------------------------------------------------------------------------------------------------------


def check_unchanged(path: Path, config: Mapping[str, Any], *, there: bool = True) -> None:
    """Raises `OtherTeacher` where a teacher of the run at ``path`` is another one than when the run began, or is not there
    and must be ``there``; so for what it starts from, until it has a checkpoint. Of what it trains itself, and of runs that an
    older kdrs began, nothing is noted."""
    then = _started(path).teachers
    now = references(config)
    for key, paths in now.items():
        begun = key == "start" and (path / "checkpoint" / "manifest.json").is_file()
        for place, digest in zip(paths, then.get(key, ()), strict=False):
            if place is None or digest is None:
                continue
            here = os.path.lexists(place)
            if not (begun and here) and (there or here):
                _check(path, place, digest, _each(now))


def _check(path: Path, place: str, digest: str, places: Sequence[str]) -> None:
    now = digest_of(Path(place))
    if now == digest:
        return
    name, run = shown(place, PATH), shown(str(path), PATH)
    remedy = f"put back what it was begun with, or say where that is now: {_resume(path, place, places)}"
    if now is None:
        raise OtherTeacher(f"{run} was begun with {name}, and no run and no teacher file is there", remedy)
    raise OtherTeacher(
        f"{name} is not what {run} was begun with (SHA-256 {digest[:12]}, now {now[:12]})",
        f"{remedy}; or begin a run with this one in another folder",
    )


def moved(path: Path, config: Mapping[str, Any], before: Mapping[str, Any]) -> set[str]:
    """Options of the run at ``path`` that name other places than ``before``, where the same teachers are. Raises as
    `check_unchanged`."""
    then, now, found = _started(path).teachers, references(config), set()
    for key, paths in now.items():
        one, other = (_listed(flat(values).get(key)) for values in (config, before))
        digests = then.get(key, [])
        if one == other or not len(one) == len(other) == len(digests):
            continue
        if not all(same_name(*pair) for *pair, digest in zip(one, other, digests, strict=True) if digest is None):
            continue  # what a run trains itself keeps its name wherever the run is
        for place, digest in zip(paths, digests, strict=True):
            if place is not None and digest is not None:
                _check(path, place, digest, _each(now))
        found.add(key)
    return found


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value or ())


def note_places(path: Path, config: Mapping[str, Any]) -> None:
    """Enters into env.json of the run at ``path`` what its teachers are called now, if they were called otherwise then:
    config.toml is compared with what env.json has."""
    started = _started(path)
    options, noted = flat(started.options or {}), dict(started.moved)
    for key in references(config):
        value = flat(config)[key]
        if key in options and not any(same_name(value, name) for name in (options[key], *noted.get(key, ()))):
            noted[key] = [*noted.get(key, ()), value]
    if noted != started.moved:
        write_json(path / "env.json", {**read_json(path / "env.json", RESTORE), "moved": noted})


def elsewhere(path: Path, config: Options, teachers: Sequence[str]) -> Options:
    """The plain values of the run at ``path`` with its teachers at other places, given in the order of the old ones. Raises
    ``ConfigError`` for another number of them."""
    asked = _each(references(config))
    if teachers and len(teachers) != len(asked):
        theirs = ", ".join(shown(name, PATH) for name in asked) or "none"
        raise ConfigError(
            f"got {len(teachers)} teachers, and {shown(str(path), PATH)} has {len(asked)}: {theirs}",
            "give one --teacher for each, in this order, or none",
        )
    now = dict(zip(asked, teachers, strict=False))
    return with_paths(config, lambda place: now.get(place, place))


def _started(path: Path) -> Started:
    return read_record(path / "env.json", Started) if os.path.lexists(path / "env.json") else Started()


def _each(places: Mapping[str, Sequence[str | None]]) -> list[str]:
    return list(dict.fromkeys(place for paths in places.values() for place in paths if place is not None))


def _resume(path: Path, place: str, places: Sequence[str]) -> str:
    """The command that says where one of several teachers is now."""
    options = " ".join(f"--teacher {'PATH' if one == place else quoted(one)}" for one in places)
    return f"kdrs resume {quoted(path)} {options}"
