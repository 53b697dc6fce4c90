"""What a run trains before it trains itself: the models that its file declares, and chains of assistants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdrs.config import RunConfig, TermSettings, chain_of, resolve
from kdrs.distillers import assistant_dims, distiller_class
from kdrs.errors import ConfigError, nearest, shown
from kdrs.runs import Run
from kdrs.teachers import read_safetensors


@dataclass(frozen=True)
class Part:
    """A run that another one needs first."""

    name: str
    config: RunConfig
    place: Path
    """Its run directory."""


def expand(config: RunConfig, out: Path) -> tuple[list[Part], RunConfig]:
    """The parts of a run whose directory is ``out``, in the order to carry them out, and the run itself with all
    references to parts turned into their directories.

    Raises ``ConfigError`` for references to parts that are declared later, and for chains without room.
    """
    own_folder = out.resolve() / "parts"  # chains differ from seed to seed
    folder = folder_of(config, out)
    parts: list[Part] = []
    places: dict[str, str] = {}
    models: dict[str, int] = {}

    def known(reference: str, user: str) -> str:
        if reference in config.teachers and reference not in places:
            raise ConfigError(f"{user} needs part {shown(reference)}, which is declared after it", "declare it before")
        if config.teachers and reference not in places and not Path(reference).exists():
            raise ConfigError(
                f"{user} needs {shown(reference)}, which is neither a part nor a path", nearest(reference, places)
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
        models[places[name]] = part.model["dim"]
    terms = []
    for term in referring(config.distill, "the run"):
        if not term.chain:
            terms.append(term)
            continue
        method, kind, (teacher,) = term.method, chain_of(term.method), term.teacher
        dims, size = term.chain, models[teacher] if teacher in models else _dim(teacher)
        if isinstance(dims, int):
            dims = assistant_dims(size, config.model["dim"], dims)[::-1]
        elif list(dims) != sorted(set(dims), reverse=True) or not config.model["dim"] < dims[-1] <= dims[0] < size:
            raise ConfigError(
                f"chain is {list(dims)} between a teacher of {size} and a student of {config.model['dim']} dimensions",
                "give the assistants' sizes, largest first, between the two",
            )
        options = term.options
        if kind == "given":
            method = "takd"
            options = {k: v for k, v in options.items() if k in distiller_class("takd").Config.model_fields}
        made = [teacher]
        for index, dim in enumerate(dims):
            sources = tuple(made) if kind == "all" else (made[-1],)
            own_term = TermSettings(
                method=method, teacher=sources, weight=term.weight, name=term.name, chain=0, options=options
            )
            name = f"{term.name}-{dim}"
            if name in places:
                raise ConfigError(f"part {name!r} would be made twice", "give the term, or the part, another name")
            train = config.train.model_copy(
                update={"seed": config.train.seed + index + 1, "stages": (), "stages_every": None}
            )
            made_as = alone(model={**config.model, "dim": dim}, distill=(own_term,), train=train)
            parts.append(Part(name, made_as, own_folder / name))
            places[name] = str(own_folder / name)
            made.append(places[name])
        sources = (made[-1],) if kind == "last" else tuple(made)
        terms.append(term.model_copy(update={"teacher": sources, "chain": 0}))
    start = None if config.start is None else known(config.start, "start")
    return parts, config.model_copy(update={"distill": tuple(terms), "start": start, "teachers": {}, "parts": None})


def folder_of(config: RunConfig, out: Path) -> Path:
    """Where the declared parts of the run at ``out`` are."""
    return Path(config.parts).resolve() if config.parts is not None else out.resolve() / "parts"


def teachers_of(config: RunConfig, out: Path) -> list[Path]:
    """Where the teachers are that the terms of the run at ``out`` name."""
    folder = folder_of(config, out)
    names = (name for term in config.distill for name in term.teacher)
    return [folder / name if name in config.teachers else Path(name).resolve() for name in names]


def _dim(reference: str) -> int:
    """Size of a teacher's representations, read without building it."""
    path = Path(reference)
    if path.is_dir():
        return int(resolve(Run.open(path).config).model["dim"])
    tensors, _ = read_safetensors(path)
    if "users" not in tensors:
        raise ConfigError(
            f"{shown(reference)} holds no user vectors, so that no sizes lie between it and the student",
            f"give the sizes of the chain; {nearest('users', tensors)}",
        )
    return int(tensors["users"].shape[1])
