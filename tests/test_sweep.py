"""Studies: ranges, trials, arms; stopped, gone on with, shared by processes, and always the same."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apart import Forks, Process
from commands import fails, kdrs, ok
from conftest import toy_dataset
from kdrs.distillers import RRD
from kdrs.errors import ConfigError
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.studies.plan import parse_study
from kdrs.studies.space import Choices, Span, draw, parse_range
from kdrs.studies.sweep import Found, begin, carry_out
from kdrs.studies.trials import Trial

pytestmark = pytest.mark.filterwarnings("ignore:.*(rising when|an epoch takes)")
SPACE = {
    "train.lr": {"low": 1e-3, "high": 1e-1, "log": True},
    "model.dim": {"low": 2, "high": 6, "step": 2},
    "distill.0.weight": [0.1, 0.5, 1.0],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    toy_dataset(candidates=None).save(folder / "toy")
    execute(resolve(base(folder, dim=12, epochs=4)), folder / "teacher")
    return folder


def base(place: Path, *, dim: int = 4, epochs: int = 2) -> dict[str, Any]:
    train = {"epochs": epochs, "batch_size": 64, "lr": 0.02}
    data = {"path": str(place / "toy")}
    return {"data": data, "model": {"name": "bpr", "dim": dim}, "train": train, "device": "cpu", "threads": 1}


def values(place: Path, **sweep: Any) -> dict[str, Any]:
    term = {"method": "rrd", "teacher": str(place / "teacher"), "pool": 20, "interesting": 4, "uninteresting": 4}
    own = {"trials": 5, "batch": 3, "sampler": "random", "space": SPACE, **sweep}
    return {**base(place), "distill": [term], "sweep": own}


def study_of(given: dict[str, Any], out: Path, *, resume: bool = False, **how: Any) -> Found:
    return carry_out(begin(given, out, resume=resume), out, **how)


def told(found: Found) -> dict[str, list[tuple[Any, ...]]]:
    """All that a study says but for seconds."""
    return {
        arm: [(t.number, t.point, t.value, t.epochs, t.error) for t in trials] for arm, trials in found.trials.items()
    }


@pytest.fixture(scope="module")
def whole(place: Path) -> Found:
    return study_of(values(place, seeds=[0, 1]), place / "whole")


# --- ranges ---------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 1000),
    st.integers(1, 1000),
    st.booleans(),
    st.integers(0, 2**31 - 1),
    st.sampled_from(["int", "float"]),
)
def test_what_is_drawn_lies_in_the_range(low: int, more: int, log: bool, seed: int, kind: str) -> None:
    low_end, high = (low, low + more) if kind == "int" else (low / 7, (low + more) / 7)
    span = parse_range({"low": low_end, "high": high, "log": log}, "x")
    value = span.draw(seed)
    assert span.holds(value)
    assert low_end <= value <= high
    assert isinstance(value, int) == (kind == "int")


@given(st.integers(-50, 50), st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**31 - 1))
def test_steps_are_kept(low: int, step: int, n: int, seed: int) -> None:
    span = parse_range({"low": low, "high": low + step * n, "step": step}, "x")
    value = span.draw(seed)
    assert (value - low) % step == 0
    assert span.holds(value)
    assert not span.holds(float(value))


def test_all_whole_numbers_come() -> None:
    span = Span(1, 4, log=True)
    assert {span.draw(seed) for seed in range(200)} == {1, 2, 3, 4}
    assert {Span(0.0, 1.0, step=0.25).draw(seed) for seed in range(200)} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {Choices((True, "a", 3)).draw(seed) for seed in range(100)} == {True, "a", 3}


def test_logarithms_are_equally_likely() -> None:
    drawn = [math.log10(Span(1e-4, 1.0, log=True).draw(seed)) for seed in range(2000)]
    assert abs(sum(drawn) / len(drawn) + 2) < 0.1


def test_a_key_draws_the_same_whatever_else_is_searched() -> None:
    one = {"train.lr": Span(0.1, 1.0)}
    assert [draw({**one, "model.dim": Span(1, 9)}, 3, n)["train.lr"] for n in range(9)] == [
        draw(one, 3, n)["train.lr"] for n in range(9)
    ]


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ([], "x is"), ([1, 1], "x is"), (3, "x is 3"), ({"low": 1}, "x.high is missing"), ({"low": 2, "high": 1}, "2 to 1"),
        ({"low": 0, "high": 1, "log": True}, "begins at 0"), ({"low": 1, "high": 2, "log": "yes"}, "x.log"),
        ({"low": 1, "high": 9, "step": 0}, "x.step"), ({"low": 1, "high": 9, "step": 20}, "x.step"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, "has a step"), ({"low": True, "high": 9}, "x.low"),
        ({"low": 1, "high": math.inf}, "x.high"), ({"low": 1, "high": 10**400}, "x.high"),
        ({"low": -1e308, "high": 1e308}, "x.low"),
        ({"low": 0.0, "high": 1.0, "step": 1e-320}, "x.step"), ({"low": 1, "high": 2, "steps": 1}, "unknown key 'x.steps'"),
    ],
)  # fmt: skip
def test_wrong_ranges_are_named(value: Any, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause.replace(".", r"\.")):
        parse_range(value, "x")


# --- a study --------------------------------------------------------------------------------------------------------


def test_both_arms_get_the_same_trials(whole: Found) -> None:
    assert set(whole.trials) == {"alone", "rrd"}
    assert {len(trials) for trials in whole.trials.values()} == {5}
    for own, other in zip(whole.trials["alone"], whole.trials["rrd"], strict=True):
        assert own.point == {key: value for key, value in other.point.items() if not key.startswith("distill")}


def test_the_first_trial_is_the_file_itself(whole: Found, place: Path) -> None:
    assert whole.trials["rrd"][0].point == {"train.lr": 0.02, "model.dim": 4, "distill.0.weight": RRD.default_weight}
    alone = execute(resolve(base(place)), place / "by-hand")
    assert whole.trials["alone"][0].value == alone.reports["valid"].mean("ndcg@10")


def test_the_best_is_chosen_on_validation_and_has_its_seeds(whole: Found) -> None:
    for arm, trials in whole.trials.items():
        best = max(trials, key=lambda trial: (trial.value, -trial.number))
        assert whole.best(arm) == best
        assert [path.name for path in whole.runs[arm]] == ["seed-0", "seed-1"]
        for path in whole.runs[arm]:
            config = Run.open(path).config
            assert config["train"]["lr"] == best.point["train.lr"]
            assert config["train"]["seed"] == int(path.name[-1])
        repeat = tomllib.loads((whole.out / "best" / f"{arm}.toml").read_text())
        assert repeat["model"]["dim"] == best.point["model.dim"]


def test_a_stopped_study_ends_as_a_whole_one(whole: Found, place: Path) -> None:
    out, given, found = place / "stopped", values(place, seeds=[0, 1]), None
    for count, stop_after in enumerate((1, 2, 4, 100)):
        ended: list[Trial] = []
        found = study_of(
            given, out, resume=count > 0, on_trial=ended.append, should_stop=lambda e=ended, n=stop_after: len(e) >= n
        )
    assert found is not None
    assert not found.interrupted
    assert told(found) == told(whole)
    assert {n: [p.name for p in r] for n, r in found.runs.items()} == {
        n: [p.name for p in r] for n, r in whole.runs.items()
    }
    for arm, paths in found.runs.items():
        for path in paths:
            other = whole.out / "best" / arm / path.name
            assert (path / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_a_run_that_was_cut_off_goes_on(whole: Found, place: Path) -> None:
    calls = iter(range(10**9))
    found = study_of(values(place), place / "cut", should_stop=lambda: next(calls) > 4)
    assert found.interrupted
    assert told(study_of(values(place), place / "cut", resume=True)) == told(whole)


def started(forks: Forks, place: Path, name: str, until: Callable[[Path], bool]) -> Process:
    """``kdrs sweep --jobs 2`` into the folder of this name, with processes of its own, once ``until`` holds of the folder."""
    from kdrs.runs.values import to_toml

    file = place / f"{name}.toml"
    file.write_bytes(to_toml(values(place)))
    process = forks.begin("sweep", file, "--out", place / name, "--jobs", "2", session=True)
    deadline = time.monotonic() + 120
    while not until(place / name) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    return process


@pytest.mark.slow
def test_killed_with_processes_of_its_own_it_ends_as_a_whole_one(forks: Forks, whole: Found, place: Path) -> None:
    process = started(forks, place, "killed", lambda out: len(list(out.glob("trials/*/*.json"))) >= 3)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while _alive(process.pid) and time.monotonic() < deadline:  # processes that lost the one that began them end too
        time.sleep(0.1)
    assert not _alive(process.pid)
    assert told(study_of(values(place), place / "killed", resume=True)) == told(whole)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_two_workers_share_a_study(forks: Forks, whole: Found, place: Path) -> None:
    file = place / "shared.toml"
    from kdrs.runs.values import to_toml

    file.write_bytes(to_toml(values(place)))
    begin(values(place), place / "shared")
    command = ["sweep", file, "--out", place / "shared", "--resume", "--json"]
    workers = [forks.begin(*command) for _ in range(2)]
    for worker in workers:
        ended = worker.ended(180)
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["arms"]["rrd"]["trials"] == 5
    assert told(study_of(values(place), place / "shared", resume=True)) == told(whole)


def test_more_trials_begin_where_it_ended(whole: Found, place: Path) -> None:
    out = place / "longer"
    first = study_of(values(place), out)
    with pytest.raises(ConfigError, match=r"has 5 trials an arm, 3 are asked for\n.*--trials 5"):
        begin(values(place, trials=3), out, resume=True)
    more = study_of(values(place, trials=8), out, resume=True)
    for arm, trials in told(first).items():
        assert told(more)[arm][:5] == trials
        assert len(told(more)[arm]) == 8
        seed = more.runs[arm][0]
        assert Run.open(seed).config["train"]["lr"] == more.best(arm).point["train.lr"]  # type: ignore[union-attr]


def test_fault_72_a_trial_that_cannot_train_is_no_end(place: Path) -> None:
    given = values(place, trials=5, space={"train.lr": {"low": 0.01, "high": 1e38, "log": True}})
    found = study_of(given, place / "failing")
    failed = [t for trials in found.trials.values() for t in trials if t.value is None]
    assert failed
    assert all(t.error for t in failed)
    assert all(found.best(arm) is not None for arm in found.trials)
    with (place / "failing" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in rows] == [t.value is None for ts in found.trials.values() for t in ts]


def test_estimated_points_are_the_same_twice(place: Path) -> None:
    optuna = pytest.importorskip("optuna")
    given = values(place, sampler="tpe", trials=7)
    one = study_of(given, place / "tpe-1")
    calls = iter(range(10**9))
    study_of(given, place / "tpe-2", should_stop=lambda: next(calls) > 30)
    two = study_of(given, place / "tpe-2", resume=True)
    assert told(one) == told(two)
    rrd = [trial.point for trial in one.trials["rrd"]]
    assert rrd[:3] == [t.point for t in study_of(values(place, trials=3), place / "random").trials["rrd"]]
    assert rrd[3:] != [draw(parse_study(given, sampler="tpe").arms[1].space, 0, n) for n in range(3, 7)]
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal = JournalStorage(JournalFileBackend(str(place / "tpe-1" / "optuna.journal")))
    study = optuna.load_study(study_name="rrd", storage=journal)
    assert [t.value for t in study.trials] == [t.value for t in one.trials["rrd"]]


def test_a_choice_that_is_the_files_own_value_in_another_form(place: Path, tmp_path: Path) -> None:
    """0 where the run has 0.0: the journal, and the estimate after the first trials, know it."""
    pytest.importorskip("optuna")
    given = values(place, sampler="tpe", trials=5, space={"train.average": [0, 0.5], "train.weight_decay": [1, 0]})
    found = study_of(given, tmp_path / "study")
    points = [trial.point for trials in found.trials.values() for trial in trials]
    assert {0, 0.5} == {point["train.average"] for point in points}
    assert (tmp_path / "study" / "optuna.journal").is_file()


@pytest.mark.usefixtures("png_alone")
def test_an_estimator_that_is_gone_is_missed(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdrs.runs.values import to_toml

    monkeypatch.setitem(sys.modules, "optuna", None)
    assert begin(values(place, sampler="auto"), tmp_path / "auto").settings.sampler == "random"
    file = tmp_path / "study.toml"
    file.write_bytes(to_toml(values(place, sampler="tpe", trials=1)))
    error = fails(5, "sweep", file, "--out", tmp_path / "out")
    assert 'pip install "kdrs[optuna]"' in error
    ok("sweep", file, "--out", tmp_path / "other", "--sampler", "random", "--quiet")


def test_arms_of_a_file(place: Path) -> None:
    given = values(place, trials=1)
    teacher = str(place / "teacher")
    given["sweep"]["arms"] = {
        "alone": {"distill": []},
        "cd": {"distill": [{"method": "cd", "teacher": teacher}], "space": {"distill": {"0": {"items": [4, 8]}}}},
        "coded": {
            "distill": [{"method": "cd", "teacher": teacher}],
            "budget": "1/3",
            "space": {"train.epochs": [1, 2]},
        },
        "still": {"model": {"dim": 3}, "distill": []},
    }
    given["sweep"]["space"] = {"train.weight_decay": [0.0, 0.001], "distill.0.weight": [0.5, 1.0]}
    arms = {arm.name: arm for arm in parse_study(given, sampler="random").arms}
    assert set(arms["alone"].space) == {"train.weight_decay"}
    assert set(arms["cd"].space) == {"train.weight_decay", "distill.0.weight", "distill.0.items"}
    coded = arms["coded"].at({})
    assert coded.model["bits"] < 32
    assert coded.start == "teacher"
    assert coded.train.lr != 0.02, "what float32 students share is not for one that starts from its teacher"


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command(whole: Found, place: Path) -> None:
    from kdrs.runs.values import to_toml

    file = place / "study.toml"
    file.write_bytes(to_toml(values(place, seeds=[0, 1])))
    plan = ok("sweep", file, "--out", place / "command", "--dry-run", "--json").document
    assert plan["arms"]["rrd"]["default"]["distill.0.weight"] == RRD.default_weight
    assert not (place / "command").exists()
    result = ok("sweep", file, "--out", place / "command")
    assert "rrd 5/5: valid ndcg@10" in result.err
    assert "best point" in result.out
    again = ok("sweep", file, "--out", place / "command", "--resume", "--json", "--quiet").document
    assert again["arms"]["alone"]["best"]["valid"] == whole.best("alone").value  # type: ignore[union-attr]
    assert again["arms"]["alone"]["test"]["n"] == 2
    names = {line["name"] for line in json.loads((place / "command/report/comparison.json").read_text())["runs"]}
    assert {"alone", "rrd", "teacher"} <= names
    error = fails(2, "sweep", file, "--out", place / "command")
    assert "already holds a study" in error
    error = fails(2, "sweep", file, "--out", place / "command", "--resume", "--set", "train.batch_size=32")
    assert "study of another arms.alone.run.train.batch_size" in error
    assert "exists and is no study" in fails(2, "sweep", file, "--out", place / "toy")


def test_wrong_files_are_refused(place: Path, tmp_path: Path) -> None:
    from kdrs.runs.values import to_toml

    def refused(code: int = 2, **changed: Any) -> str:
        given = values(place)
        given["sweep"].update(changed)
        file = tmp_path / "study.toml"
        file.write_bytes(to_toml(given))
        error = fails(code, "sweep", file, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return error

    assert "arm alone, train.lr = -1" in refused(space={"train.lr": [0.1, -1.0]})
    assert "unknown key 'train.rate'" in refused(space={"train.rate": [0.1]})
    assert "there is no entry 1" in refused(space={"distill.1.weight": [0.1]})
    assert "is a value and has no keys" in refused(space={"train.lr.x": [0.1]})
    assert "searches nothing" in refused(space={})
    assert "unknown key 'sweep.trails'" in refused(trails=3)
    assert "sweep.trials is 0" in refused(trials=0)
    assert "sweep.seeds: a seed is given twice" in refused(seeds=[1, 1])
    assert "sweep.seeds: seed is -1" in refused(seeds=[-1])
    assert "train.lr is searched twice" in refused(space={"train.lr": [0.1], "train": {"lr": [0.2]}})
    assert "low is missing" in refused(space={"train.lr": {}, "model.dim": [2, 3]})
    assert "arm alone searches data.path" in refused(space={"data.path": [str(place / "toy")]})
    assert "arm alone searches eval.ks" in refused(space={"eval.ks": [[5], [10]]})
    assert "sweep.arms must be tables" in refused(arms=[])
    assert "arm is called" in refused(arms={"a/b": {}})
    assert "different metrics" in refused(arms={"a": {}, "b": {"train": {"select": ["recall@10"]}}})
    assert "a text such as '1/20'" in refused(arms={"a": {"budget": 20}})
    assert "arm is called a.toml" in refused(arms={"a": {}, "a.toml": {}})
    assert "arm is called aaa" in refused(arms={"a" * 101: {}})
    assert "two arms are called a and A" in refused(arms={"a": {}, "A": {}})
    for wrong in ({"distill": 3}, {"distill": ["cd"]}, {"model": 3}, {"train": 3}):
        assert f"sweep.arms.a: {next(iter(wrong))}" in refused(arms={"a": {"budget": "1/3", **wrong}})
    assert "has 0 teachers" in refused(arms={"a": {"budget": "1/3", "distill": [{"method": "cd", "teacher": 3}]}})
    given = {**values(place), "distill": 3}
    (tmp_path / "terms.toml").write_bytes(to_toml(given))
    assert "distill must be a list" in fails(2, "sweep", tmp_path / "terms.toml", "--out", tmp_path / "out")
    file = tmp_path / "plain.toml"
    file.write_bytes(to_toml(base(place)))
    assert "the file has no table [sweep]" in fails(2, "sweep", file, "--out", tmp_path / "out")


def test_a_set_without_validation_is_refused(place: Path, tmp_path: Path) -> None:
    from commands import write_clicks
    from kdrs.runs.values import to_toml

    write_clicks(tmp_path / "clicks.csv")
    ok(
        "data", "prepare", tmp_path / "clicks.csv", "--out", tmp_path / "d", "--split", "ordered", "--fractions", "0.8,0,0.2"
    )  # fmt: skip
    given = {**base(place), "data": {"path": str(tmp_path / "d")}, "sweep": {"space": {"train.lr": [0.1, 0.2]}}}
    file = tmp_path / "study.toml"
    file.write_bytes(to_toml(given))
    assert "has no validation part" in fails(2, "sweep", file, "--out", tmp_path / "out")


@pytest.mark.usefixtures("png_alone")
def test_ctrl_c_leaves_what_can_be_gone_on_with(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdrs.runs.values import to_toml
    from kdrs.studies import sweep as module

    file = place / "ctrl-c.toml"
    file.write_bytes(to_toml(values(place)))
    original, written = module.write_trial, []

    def once(out: Path, trial: Trial) -> None:
        original(out, trial)
        written.append(trial)
        if len(written) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(module, "write_trial", once)
    result = kdrs("sweep", file, "--out", place / "ctrl-c", "--quiet")
    assert result.code == 130
    assert "go on with the same command" in result.err
    assert len(ok("sweep", file, "--out", place / "ctrl-c", "--resume", "--json").document["arms"]) == 2


# --- seeds side by side ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_seeds_at_once_are_those_one_after_the_other(place: Path, request: pytest.FixtureRequest) -> None:
    run = ("--data", place / "toy", "--model", "bpr", "--dim", 4, "--epochs", 2, "--device", "cpu", "--threads", 1)
    one = ok("train", *run, "--seeds", "0..2", "--out", place / "one", "--json").document
    two = ok("train", *run, "--seeds", "0..2", "--jobs", 2, "--out", place / "two", "--json").document
    assert one["parts"] == two["parts"]
    for seed in range(3):
        left, right = (place / name / f"seed-{seed}" / "model.safetensors" for name in ("one", "two"))
        assert left.read_bytes() == right.read_bytes()
    request.getfixturevalue("ready")
    again = ok("train", *run, "--seeds", "0..2", "--jobs", 2, "--out", place / "two", "--resume", "--json").document
    assert again["parts"] == two["parts"]
    assert "holds runs already" in fails(2, "train", *run, "--seeds", "0..3", "--jobs", 2, "--out", place / "two")
    assert not (place / "two/seed-3").exists()


def test_jobs_are_counted(place: Path) -> None:
    run = ("train", "--data", place / "toy", "--model", "bpr")
    assert "--jobs is 0" in fails(2, *run, "--seeds", "0,1", "--jobs", 0)
    assert "allowed: 1 to 256" in fails(2, *run, "--seeds", "0,1", "--jobs", 300)
    assert "without --seeds" in fails(2, *run, "--jobs", 2)
    assert "leave --jobs out" in fails(2, *run, "--seeds", "0,1", "--jobs", 2, "--dry-run")
