"""What a run trains before it trains itself: the models that its file declares, and chains of assistants."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrs.distillers import assistant_dims, distiller_class
from kdrs.errors import ArtefactError, ConfigError, MissingKnowledge, nearest, shown
from kdrs.models import model_class
from kdrs.runs.config import RunConfig, TermSettings, chain_of, config_of, part_seed
from kdrs.runs.directory import Run
from kdrs.runs.own import needing
from kdrs.runs.values import FROM_TEACHER
from kdrs.teachers.file import read_head, read_safetensors, trajectory_files


@dataclass(frozen=True)
class Part:
    """A run that another one needs first."""

    name: str
    config: RunConfig
    place: Path
    """Its run directory."""


def expand(
    config: RunConfig, out: Path, models: Mapping[str, dict[str, Any]] | None = None
) -> tuple[list[Part], RunConfig]:
    """The parts of a run whose directory is ``out``, in the order to carry them out, and the run itself with all
    references to parts turned into their directories. ``models`` are those of runs that will be there by then, by directory.

    Raises ``ConfigError`` for references to parts that are declared later, and for chains without room.
    """
    own_folder = out.resolve() / "parts"  # chains differ from seed to seed
    folder = folder_of(config, out)
    parts: list[Part] = []
    places: dict[str, str] = {}
    sizes = {place: size_of(model) for place, model in (models or {}).items()}

    def known(reference: str, user: str) -> str:
        if reference in config.teachers and reference not in places:
            raise ConfigError(
                f"{user} needs part {shown(reference, 300)}, which is declared after it", "declare it before"
            )
        if config.teachers and not ({reference} & {*places, *sizes} or Path(reference).exists()):
            raise ConfigError(
                f"{user} needs {shown(reference, 300)}, which is neither a part nor a path", nearest(reference, places)
            )
        return places.get(reference, reference)

    def referring(terms: Sequence[TermSettings], user: str) -> tuple[TermSettings, ...]:
        return tuple(term.model_copy(update={"teacher": tuple(known(t, user) for t in term.teacher)}) for term in terms)

    def alone(**changes: object) -> RunConfig:
        return config.model_copy(update={"teachers": {}, "parts": None, "start": None, **changes})

    for name, part in config.teachers.items():
        user = f"part {name!r}"
        start = None if part.start is None else known(part.start, user)
        own = alone(model=part.model, train=part.train, distill=referring(part.distill, user), start=start)
        places[name] = str(folder / name)
        parts.append(Part(name, own, folder / name))
        sizes[places[name]] = size_of(part.model)
    terms = []
    for term in referring(config.distill, "the run"):
        if not term.chain:
            terms.append(term)
            continue
        method, kind, (teacher,) = term.method, chain_of(term.method), term.teacher
        size = sizes[teacher] if teacher in sizes else _size(teacher, term.method)
        none = (
            "assistants = 0 and chain = 0" if kind == "given" else "chain = 0"
        )  # one teacher alone gives no assistants
        dims = _assistants(term.chain, size, config.model, none)
        options = term.options
        if kind == "given":
            method = "takd"
            options = {k: v for k, v in options.items() if k in distiller_class("takd").Config.model_fields}
        made = [teacher]
        for dim in dims:
            sources = tuple(made) if kind == "all" else (made[-1],)
            own_term = TermSettings(
                method=method,
                teacher=sources,
                weight=term.weight,
                name=term.name,
                chain=0,
                teacher_users=term.teacher_users,
                options=options,
            )
            name = f"{term.name}-{dim}"
            if name in places:
                raise ConfigError(f"part {name!r} would be made twice", "give the term, or the part, another name")
            train = config.train.model_copy(
                update={"seed": part_seed(config.train.seed, name), "stages": (), "stages_every": None}
            )
            made_as = alone(model={**config.model, "dim": dim}, distill=(own_term,), train=train)
            parts.append(Part(name, made_as, own_folder / name))
            places[name] = str(own_folder / name)
            made.append(places[name])
        sources = (made[-1],) if kind == "last" else tuple(made)
        terms.append(term.model_copy(update={"teacher": sources, "chain": 0}))
    start = config.start
    if start is not None and (start != FROM_TEACHER or start in places):
        start = known(start, "start")
    return parts, config.model_copy(update={"distill": tuple(terms), "start": start, "teachers": {}, "parts": None})


def check_teachers(config: RunConfig, out: Path) -> None:
    """What the teachers of a run at ``out`` say of it before any data are read: ``ConfigError`` for a run that would be its own
    teacher; a warning for a student as large as its teacher, unless the method trains both."""
    for term in config.distill:
        for teacher in term.teacher:
            path = Path(teacher)
            if path.resolve() == out.resolve():
                raise ConfigError(
                    f"{term.name} has the run itself as teacher: {shown(teacher)}", "name another run, or another --out"
                )
            if distiller_class(term.method).mutual or (theirs := _size_of_teacher(path)) is None:
                continue
            own = size_of(config.model)
            if own >= theirs and not _is_compact(config.model):
                warnings.warn(
                    f"the student has {own} dimensions, its teacher {shown(teacher)} {theirs}: nothing becomes smaller",
                    stacklevel=3,
                )


def folder_of(config: RunConfig, out: Path) -> Path:
    """Where the declared parts of the run at ``out`` are."""
    return Path(config.parts).resolve() if config.parts is not None else out.resolve() / "parts"


def teachers_of(config: RunConfig, out: Path) -> list[Path]:
    """Where the teachers are that the terms of the run at ``out`` name."""
    folder = folder_of(config, out)
    names = (name for term in config.distill for name in term.teacher)
    found = [folder / name if name in config.teachers else Path(name).resolve() for name in names]
    return found if config.compress is None else [*found, Path(config.compress.teacher).resolve()]


def size_of(model: dict[str, Any]) -> int:
    """Size of the representations of a resolved model, which ``dim`` need not be."""
    cls = model_class(model["name"])
    return cls.size_of(cls.Config.parse({key: value for key, value in model.items() if key != "name"}, "model"))


def _size_of_teacher(path: Path) -> int | None:
    """Size of the representations of a run or a teacher file; None for one that has none, or is told later to be unreadable."""
    if (path / "config.toml").is_file():
        return _size_of_run(path)
    with contextlib.suppress(ArtefactError):
        tensors, _ = read_head([path, *trajectory_files(path)][-1])
        if "items" in tensors and tensors["items"].ndim == 2:
            return int(tensors["items"].shape[1])
    return None


def _size_of_run(path: Path) -> int:
    """Size of a run's representations. Raises ``MissingKnowledge`` where the class of its model is not there, and needed."""
    run = Run.open(path)
    model = config_of(run).model
    try:
        with needing(run):
            return size_of(model)
    except MissingKnowledge:
        if not _is_compact(model):
            raise
        return int(model["dim"])  # its run keeps vectors of that size, and answers without the class


def _is_compact(model: Mapping[str, Any]) -> bool:
    return bool(model["bits"] != 32 or model["users"] != "table")


def _assistants(chain: int | tuple[int, ...], teacher: int, model: dict[str, Any], none: str) -> list[int]:
    """``dim`` of each assistant of the student's kind, largest first, between representations of ``teacher`` dimensions and
    those of the student ``model``. ``chain`` is their number, or the very values of ``dim``; ``none`` are the options that do
    without any.

    Sizes are those of representations; a number of assistants gets for each size of `assistant_dims` the largest model that
    does not exceed it.
    """
    dim, student = int(model["dim"]), size_of(model)

    def size(value: int) -> int:
        return size_of({**model, "dim": value})

    grows = size(2 * dim) > student
    if not isinstance(chain, int):
        sizes = [size(value) for value in chain]
        if list(chain) != sorted(set(chain), reverse=True) or not dim < chain[-1] or not (grows and sizes[0] < teacher):
            stated = "" if sizes == list(chain) else f", whose representations have {sizes},"
            own = f"{student} dimensions" if student == dim else f"{student} dimensions (dim {dim})"
            raise ConfigError(
                f"chain is {list(chain)}{stated} between a teacher of {teacher} and a student of {own}",
                "give the assistants' dim, largest first, between the two"
                if grows
                else f"representations of this {model['name']} have {student} dimensions whatever dim is: take {none}",
            )
        return list(chain)
    wanted = assistant_dims(teacher, student, chain, none=none)
    if not grows:
        raise ConfigError(
            f"chain is {chain}, and representations of this {model['name']} have {student} dimensions whatever dim is",
            f"take {none}, or a student whose representations have the size dim",
        )
    found = {max(value for value in range(dim, most + 1) if value == dim or size(value) <= most) for most in wanted}
    found.discard(dim)
    if not found:
        raise ConfigError(
            f"no assistant fits between a teacher of {teacher} and a student of {student} dimensions",
            f"take a larger teacher, a smaller student, or {none}",
        )
    return sorted(found, reverse=True)


def _size(reference: str, method: str) -> int:
    """Size of a teacher's representations, read without building it."""
    path = Path(reference)
    files = trajectory_files(path)
    if path.is_dir() and not files:
        return _size_of_run(path)
    tensors, _ = read_safetensors(files[-1] if files else path)
    if "users" not in tensors:
        raise MissingKnowledge(
            f"teacher {shown(reference, 300)} holds no user vectors; {method} needs embeddings",
            "export user and item vectors, or use a method that needs a ranking alone, such as rrd",
        )
    return int(tensors["users"].shape[1])
