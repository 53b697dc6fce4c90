"""What is known of a study's trials: a record each, beside its run directory."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdrs._documents import read_json, write_json
from kdrs._files import write_bytes
from kdrs.errors import ArtefactError, shown
from kdrs.runs.directory import Run
from kdrs.runs.reported import load_reports
from kdrs.studies.plan import Arm

REMEDY = "take the record away: the same command, of kdrs sweep with --resume, reads the trial or trains it anew"


@dataclass(frozen=True)
class Trial:
    """A trial that ended."""

    arm: str
    number: int
    point: dict[str, Any]
    value: float | None
    """The validation metric of the weights that are kept; None where training failed."""
    epochs: int = 0
    seconds: float = 0.0
    """Of training and evaluating, resumed parts included, parts of the run not."""
    error: str | None = None

    @property
    def known(self) -> tuple[Mapping[str, Any], float | None]:
        return self.point, self.value


def place_of(out: Path, arm: str, number: int) -> Path:
    """The run directory of a trial."""
    return out / "trials" / arm / f"{number:04d}"


def record_of(out: Path, arm: str, number: int) -> Path:
    return out / "trials" / arm / f"{number:04d}.json"


def read_trial(out: Path, arm: Arm, number: int, point: Mapping[str, Any]) -> Trial | None:
    """The record of a trial; None if it has not ended. Raises ``ArtefactError`` for a damaged one and one of another point."""
    path = record_of(out, arm.name, number)
    if not path.exists():
        return None
    trial, name = _read(path), shown(str(path), 300)
    if (trial.arm, trial.number) != (arm.name, number):
        raise ArtefactError(f"{name} is the record of trial {trial.number} of {shown(trial.arm)}", REMEDY)
    if trial.point != dict(point):
        raise ArtefactError(f"{name} has the point {shown(trial.point)}, not {shown(dict(point))}", REMEDY)
    return trial


def recorded(out: Path, arm: str) -> list[Trial]:
    """The records of an arm's trials that have ended, in the order of their numbers. Raises ``ArtefactError`` for a damaged
    one."""
    return [_read(path) for path in sorted((out / "trials" / arm).glob("*.json"))]


def _read(path: Path) -> Trial:
    values = read_json(path, REMEDY)
    try:
        trial = Trial(**{key: value for key, value in values.items() if key != "schema"})
        good = _is_sound(trial)
    except (TypeError, AttributeError):
        good = False
    if not good:
        raise ArtefactError(f"{shown(str(path), 300)} is no record of a trial", REMEDY)
    return trial


def _is_sound(trial: Trial) -> bool:
    counts = (trial.number, trial.epochs)
    return (
        isinstance(trial.arm, str)
        and isinstance(trial.point, dict)
        and all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
        and isinstance(trial.seconds, (int, float))
        and (isinstance(trial.value, float) if trial.error is None else trial.value is None)
        and (trial.error is None or isinstance(trial.error, str))
    )


def write_trial(out: Path, trial: Trial) -> None:
    write_bytes(record_of(out, trial.arm, trial.number), write_json({"schema": 1, **asdict(trial)}), make_folder=True)


def finished(arm: Arm, number: int, point: dict[str, Any], place: Path) -> Trial:
    """The trial of a run that is finished."""
    run = Run.open(place)
    value = load_reports(run)["valid"].mean(arm.metric)
    rows = run.rows()
    return Trial(
        arm.name, number, point, float(value), len(rows), round(sum(row.get("seconds", 0.0) for row in rows), 3)
    )


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial of the largest validation value, the first of equal ones."""
    ended = [trial for trial in trials if trial.value is not None]
    return max(ended, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def write_table(out: Path, trials: Sequence[Trial]) -> Path:
    """trials.csv: a row a trial, a column a key."""
    keys = sorted({key for trial in trials for key in trial.point})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "trial", "value", "epochs", "seconds", *keys, "error"])
    for trial in trials:
        value = "" if trial.value is None else repr(trial.value)
        own = [trial.point.get(key, "") for key in keys]
        writer.writerow([trial.arm, trial.number, value, trial.epochs, trial.seconds, *own, trial.error or ""])
    path = out / "trials.csv"
    write_bytes(path, text.getvalue().encode())
    return path
