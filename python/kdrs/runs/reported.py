"""The final evaluation of a run, read again."""

from __future__ import annotations

from contextlib import suppress

from kdrs.errors import ArtefactError, KdrsError, shown
from kdrs.evaluation.report import Report
from kdrs.runs.config import RunConfig
from kdrs.runs.directory import Run
from kdrs.runs.records import PATH


def load_reports(run: Run) -> dict[str, Report]:
    """The final evaluation of a run, by part; of a data set that holds nothing out no part. Raises ``ArtefactError`` if one is
    missing."""
    paths = sorted(run.path.glob("report-*.json"), reverse=True)  # valid before test
    if not paths and run.holds_out:
        raise ArtefactError(f"{shown(str(run.path), PATH)} has no evaluation", run.remedy())
    return {path.stem.removeprefix("report-"): Report.load(path) for path in paths}


def reports_before(config: RunConfig) -> dict[str, Report]:
    """Of a refit: the reports of the run whose settings it has, where that still is where it was."""
    if config.refit is not None:
        with suppress(KdrsError, OSError):
            return load_reports(Run.open(config.refit))
    return {}
