"""What came of a study, for people: a row an arm, and the comparison of the best runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdrs._documents import read_toml
from kdrs.comparison.tables import Table
from kdrs.errors import ArtefactError, ConfigError, shown
from kdrs.runs.compared import compare_runs
from kdrs.runs.config import config_of
from kdrs.runs.directory import Run
from kdrs.runs.reported import load_reports
from kdrs.studies.plan import shown_teachers, stored_study
from kdrs.studies.sweep import HEAD, Found
from kdrs.studies.trials import recorded

REMEDY = "restore it, or take the study's folder away: the same command begins it anew"


def rows_of(found: Found) -> dict[str, dict[str, Any]]:
    """By arm: trials, what they took, the best point, its validation value, and the test values of its runs.

    No test value has chosen anything.
    """
    return {arm.name: _row(found, arm.name, arm.metric) for arm in found.study.arms}


def _row(found: Found, name: str, metric: str) -> dict[str, Any]:
    trials, best = found.trials[name], found.best(name)
    row: dict[str, Any] = {
        "trials": len(trials),
        "failed": sum(trial.value is None for trial in trials),
        "seconds": round(sum(trial.seconds for trial in trials), 1),
        "best": None if best is None else {"trial": best.number, "point": best.point, "valid": best.value},
        "runs": [str(path) for path in found.runs.get(name, [])],
    }
    if trials and trials[0].number == 0:
        row["default"] = trials[0].value
    reports = [load_reports(Run.open(path)) for path in found.runs.get(name, [])]
    values = [report["test"].mean(metric) for report in reports if "test" in report]
    if values:
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        row["test"] = {"mean": float(np.mean(values)), "sd": sd, "n": len(values)}
    return row


def so_far(out: Path, values: Mapping[str, Any] | None = None) -> Found | None:
    """What the folder of a study holds, whether it has ended or not: trials that have ended, and of arms that have all of them
    the finished runs of their best points. None where no study was begun. ``values`` are those of the study's file: they say
    where the data set is now, and which seeds are asked for.

    Raises ``ArtefactError`` for damaged records, ``DataError`` for a data set that is needed and not there."""
    values = values or {}
    head = out / HEAD
    if not head.is_file():
        return None
    try:
        told = read_toml(head, REMEDY, ArtefactError)
        data, seeds = values.get("data", {}).get("path"), values.get("sweep", {}).get("seeds", ())
        study = stored_study(told, data=data, seeds=seeds)
    except ConfigError as error:
        raise ArtefactError(f"{shown(str(head), 300)}: {error.cause}", REMEDY) from error
    found = Found(out, study, {arm.name: recorded(out, arm.name) for arm in study.arms})
    for arm in study.arms:
        if len(found.trials[arm.name]) >= (study.settings.trials if arm.space else 1):
            reports = sorted((out / "best" / arm.name).glob("seed-*/report.json"))
            found.runs[arm.name] = [path.parent for path in reports]
    return found


def table_of(found: Found) -> Table:
    """A row an arm."""
    metric = found.study.arms[0].metric
    rows: list[tuple[str, ...]] = []
    for arm, (name, row) in zip(found.study.arms, rows_of(found).items(), strict=True):
        best, test = row["best"], row.get("test")
        point = "" if best is None else " ".join(f"{key}={_short(value)}" for key, value in best["point"].items())
        rows.append(
            (
                name,
                f"{row['trials']}" + (f" ({row['failed']} failed)" if row["failed"] else ""),
                f"{row['seconds'] / 60:.1f}",
                _number(row.get("default")),
                _number(None if best is None else best["valid"]),
                "" if test is None else _number(test["mean"]) + ("" if test["sd"] is None else f" ± {test['sd']:.4f}"),
                counted(0 if test is None else test["n"], len(found.study.seeds(arm))),
                point,
            )
        )
    head = ["arm", "trials", "minutes", f"valid {metric}, default", "best", f"test {metric}", "seeds", "best point"]
    notes = ("Validation alone chose; test values are those of the best point's runs, one a seed.",)
    return Table("study", tuple(head), tuple(rows), notes, words=1)


def write_report(found: Found) -> list[Path]:
    """study.md, and a comparison of the best runs with their teachers in ``report``. Paths of what was written."""
    from kdrs._files import write_bytes

    written = [found.out / "study.md", found.out / "trials.csv"]
    write_bytes(written[0], (table_of(found).markdown() + "\n").encode())
    runs = [path for paths in found.runs.values() for path in paths]
    teachers: dict[Path, None] = {}
    for path in runs:
        teachers.update(dict.fromkeys(shown_teachers(config_of(Run.open(path)))))
    known = [path for path in teachers if path.resolve() not in {run.resolve() for run in runs}]
    if len(runs) + len(known) > 1:
        compared = compare_runs([*known, *runs])
        written += compared.save(found.out / "report")
    return written


def counted(n: int, of: int) -> str:
    """How many seeds a value is of, and, if there are more, of how many."""
    return str(n) if n == of else f"{n} of {of}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
