"""What is told before torch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kdrs._launch import check_launched, launched


def check_early(paths: Iterable[str | Path] = (), data: str | Path | None = None) -> None:
    """Raises what is raised later for runs and teachers, and a prepared data set, that are not there. One of several processes
    raises nothing by itself: the others wait for it."""
    from kdrs.data import Dataset
    from kdrs.runs.places import check_there

    check_launched()
    if launched() is None:
        check_there(paths)
        if data is not None:
            Dataset.check(data)
