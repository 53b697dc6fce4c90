"""Studies in trouble: names that collide, records and runs changed by hand, processes that get in each other's way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from apart import Forks
from commands import fails
from kdrs.errors import ArtefactError
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.values import to_toml
from kdrs.studies.plan import parse_study
from kdrs.studies.sweep import Found, begin
from test_sweep import place, started, study_of, told, values, whole

__all__ = ["place", "whole"]
pytestmark = pytest.mark.filterwarnings("ignore:.*(rising when|an epoch takes)")


@pytest.mark.slow
def test_ctrl_c_while_processes_begin_is_heard_as_ever(forks: Forks, whole: Found, place: Path) -> None:
    process = started(forks, place, "early", lambda out: (out / "study.toml").exists())
    time.sleep(0.3)  # the processes import now
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    ended = process.ended(180)
    assert ended.returncode == 130, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert b"go on with the same command" in ended.stderr
    assert told(study_of(values(place), place / "early", resume=True)) == told(whole)


def test_a_trial_that_another_process_began_is_no_failure(
    whole: Found, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ends it after this one has looked, and before it begins."""
    from kdrs.runs.pool import Pool

    original, pending = Pool.start, [True]

    def late(self: Pool, name: Any, config: Any, out: Path, resume: bool) -> None:
        if pending:
            pending.clear()
            execute(config, out)
        original(self, name, config, out, resume)

    monkeypatch.setattr(Pool, "start", late)
    assert told(study_of(values(place), place / "raced")) == told(whole)


@pytest.mark.parametrize(("name", "arm"), [("alone", "run"), ("mine", "mine")])
def test_the_arm_of_a_run_is_never_the_one_alone(place: Path, name: str, arm: str) -> None:
    given = values(place)
    given["distill"][0]["name"] = name
    assert [one.name for one in parse_study(given, sampler="random").arms] == ["alone", arm]


def test_a_best_trial_whose_run_was_taken_away_is_trained_anew(whole: Found, place: Path) -> None:
    out = place / "thrown"
    study_of(values(place), out)
    shutil.rmtree(out / "best")
    shutil.rmtree(out / "trials" / "rrd" / f"{whole.best('rrd').number:04d}")  # type: ignore[union-attr]
    again = study_of(values(place, seeds=[0, 1]), out, resume=True)
    assert told(again) == told(whole)
    for path in again.runs["rrd"]:
        other = whole.out / "best" / "rrd" / path.name
        assert (path / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert not list(out.rglob("*.tmp"))


def test_former_runs_are_kept_whatever_is_there(place: Path) -> None:
    out = place / "formers"
    study_of(values(place), out)
    for taken in ("rrd-1", "rrd-3"):
        (out / "former" / taken).mkdir(parents=True)
        (out / "former" / taken / "mine.txt").write_text("mine")
    (out / "best" / "rrd.toml").write_text("# of a point that is no longer the best\n")
    found = study_of(values(place), out, resume=True)
    assert Run.open(out / "former" / "rrd-2" / "seed-0").status()["status"] == "finished"
    assert found.runs["rrd"][0].is_dir()


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"number": 3}, "the record of trial 3"), ({"arm": "rrd"}, "of rrd"),
        ({"seconds": "x"}, "no record"), ({"value": None}, "no record"),
        ({"epochs": 1.5}, "no record"), ({"point": {}}, "has the point"),
        ({"value": "0.5"}, "no record"), ({"other": 1}, "no record"),
    ],
)  # fmt: skip
def test_a_record_that_is_not_its_own_is_refused(
    place: Path, tmp_path: Path, changed: dict[str, Any], cause: str
) -> None:
    given = values(place, trials=1, batch=1)
    begin(given, tmp_path / "s")
    study = parse_study(given, sampler="random")
    arm = study.arms[0]
    record = {
        "arm": arm.name,
        "number": 0,
        "point": arm.default(),
        "value": 0.5,
        "epochs": 2,
        "seconds": 1.0,
        "error": None,
    }
    file = tmp_path / "s" / "trials" / arm.name / "0000.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"schema": 1, **record, **changed}))
    with pytest.raises(ArtefactError, match=cause):
        study_of(given, tmp_path / "s", resume=True)


@pytest.mark.parametrize("name", ["metrics.jsonl", "model.safetensors"])
def test_a_damaged_teacher_is_found_before_anything_is_trained(place: Path, tmp_path: Path, name: str) -> None:
    """Its report would else fail once all is trained."""
    given = values(place)
    (teacher,) = {term["teacher"] for term in given["distill"]}
    copy = shutil.copytree(teacher, tmp_path / "teacher")
    with (copy / name).open("r+b") as file:
        file.seek(40)
        file.write(b"\0{nothing}")
    searched = values(place)
    searched["sweep"]["space"]["distill.0.teacher"] = [str(teacher), str(copy)]
    given["distill"][0]["teacher"] = str(copy)
    for one in (given, searched):
        for check in (lambda v=one: parse_study(v, sampler="random"), lambda v=one: begin(v, tmp_path / "out")):
            with pytest.raises(ArtefactError, match="teacher"):
                check()
        assert not (tmp_path / "out").exists()


def test_paths_of_a_study_hold_from_any_folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = values(place)
    (teacher,) = {term["teacher"] for term in given["distill"]}
    monkeypatch.chdir(place)
    near = os.path.relpath(teacher)
    given["distill"][0]["teacher"] = near
    given["sweep"]["space"]["distill.0.teacher"] = [near]
    arm = parse_study(given, sampler="random").arms[-1]
    assert arm.default()["distill.0.teacher"] == str(teacher)
    monkeypatch.chdir(tmp_path)
    for point in ({}, arm.default()):
        assert [Path(one) for one in arm.at(point).distill[0].teacher] == [Path(teacher)]


def test_a_folder_of_stages_is_no_line_of_the_report(place: Path, tmp_path: Path) -> None:
    from kdrs.runs.config import resolve
    from kdrs.studies.plan import shown_teachers

    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "0.safetensors").touch()
    run = {key: value for key, value in values(place).items() if key != "sweep"}
    run["distill"] = [{**run["distill"][0], "teacher": str(tmp_path / "stages")}]
    assert shown_teachers(resolve(run)) == []


@pytest.mark.parametrize(
    ("arm", "cause"),
    [
        ({"distill": [{"method": "rrd", "teacher": "nowhere"}]}, "nowhere is not there"),
        ({"train": {"select": ["hit@7"]}}, "hit@7"),
        ({"model": {"name": "caser", "bits": 2}}, "arm lost: model.bits is 2"),
    ],
)
def test_all_arms_are_built_before_any_is_trained(place: Path, tmp_path: Path, monkeypatch, arm, cause) -> None:
    monkeypatch.chdir(tmp_path)
    given = values(place, arms={"first": {}, "lost": arm})
    (tmp_path / "study.toml").write_bytes(to_toml(given))
    for more in (("--dry-run",), ()):
        assert cause in fails(2, "sweep", "study.toml", "--out", "study", *more)
        assert not (tmp_path / "study").exists()
