"""Classes that a run names and kdrs does not bring along: where they came from, and what is said when they are not there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrs.distillers import KIND as METHOD
from kdrs.errors import ConfigError, MissingKnowledge, shown
from kdrs.models import KIND as MODEL
from kdrs.plugins import ClassError, Kind, Source, closed, file_of, source_of
from kdrs.runs.files import file_digest
from kdrs.runs.records import PATH, Code
from kdrs.tracking import KIND as TRACKER

if TYPE_CHECKING:
    from kdrs.runs.directory import Run


def code_of(options: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Package, file and SHA-256 of the file of every class that a run's plain options name and that is not ours."""
    found = {}
    for kind, name in _named(options):
        with suppress(ConfigError):
            if (source := source_of(kind, name)) is not None:
                found[name] = _facts(source)
    return found


def _facts(source: Source) -> dict[str, str]:
    facts = {} if source.package is None else {"package": source.package}
    if (path := file_of(source)) is not None and Path(path).is_file():
        facts |= {"file": path, "sha256": file_digest(Path(path))}
    return facts


def _named(options: Mapping[str, Any]) -> Iterator[tuple[Kind[Any], str]]:
    for part in (options, *options.get("teachers", {}).values()):
        yield MODEL, str(part["model"]["name"])
        yield from ((METHOD, str(term["method"])) for term in part.get("distill", ()))
    yield from ((TRACKER, str(name)) for name in options.get("log", ()))


def warn_of_changed_code(path: Path, options: Mapping[str, Any], before: Mapping[str, Code]) -> None:
    """Of a run that goes on: its own classes may not be what they were."""
    now = code_of(options)
    for name, was in before.items():
        sha256 = now.get(name, {}).get("sha256")
        if was.sha256 is not None and sha256 is not None and sha256 != was.sha256:
            warnings.warn(
                f"{shown(now[name]['file'], PATH)}, which has {shown(name)}, was changed since {shown(str(path), PATH)} was "
                "started: it will not end with the bytes of an uninterrupted run",
                stacklevel=2,
            )


@contextmanager
def needing(run: Run) -> Iterator[None]:
    """Says of a class that is not there inside that the run needs it, and where it was had: ``MissingKnowledge``."""
    try:
        with closed(run.path):
            yield
    except ClassError as error:
        name = str(run.stored()["model"].get("name"))
        was = run.started().code.get(name, Code())
        had = was.package or was.file
        before = "" if had is None else f"; when the run was started it was of {shown(had, PATH)}"
        raise MissingKnowledge(f"{shown(str(run.path), PATH)} needs {error.cause}{before}", error.remedy) from error
