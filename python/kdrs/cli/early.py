"""What is told before torch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kdrs._launch import check_launched, launched

MOVED = "check the path; where it has moved since the run began, say where it is now"


def check_early(paths: Iterable[str | Path] = (), data: str | Path | None = None, *, resume: bool = False) -> None:
    """Raises what is raised later for runs and teachers, and a prepared data set, that are not there; to ``resume`` a run they
    may be elsewhere. One of several processes raises nothing by itself: the others wait for it."""
    from kdrs.data import Dataset, is_dataset
    from kdrs.errors import DataError
    from kdrs.runs.places import check_there

    check_launched()
    if launched() is None:
        check_there(paths, *([f"{MOVED}: --teacher PATH"] if resume else []))
        if data is None:
            return
        try:
            Dataset.check(data)
        except DataError as error:
            if not resume or is_dataset(data):
                raise
            raise DataError(error.cause, f"{MOVED}: --data PATH") from error
