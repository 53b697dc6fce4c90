"""Runs of several seeds side by side: which are seeds of one model, which is the teacher, and what each is called."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest

from commands import FAST, ok
from kdrs.runs.compared import compare_runs
from kdrs.runs.directory import Run


def train(place: Path, out: str, *more: object) -> None:
    options = more if "--epochs" in more else ("--epochs", 2, *more)
    ok("train", "--data", place / "d", *FAST, "--threads", 1, "--quiet", *options, "--out", place / out)


def distil(place: Path, teacher: str, out: str, *more: object) -> None:
    method = ("--teacher", place / teacher, "--method", "score-matching", "--dim", 4, "--epochs", 2)
    ok("distill", "--data", place / "d", *FAST, "--threads", 1, "--quiet", *method, *more, "--out", place / out)


@pytest.fixture(scope="module")
def place(toy_path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "d").symlink_to(toy_path)
    train(folder, "big", "--dim", 16, "--seeds", "0..2")
    train(folder, "wide", "--dim", 12, "--seed", 7)
    train(folder, "alone", "--dim", 4, "--seeds", "0,1")
    distil(folder, "big/seed-1", "taught", "--seeds", "0,1")
    return folder


def test_a_model_is_a_teacher_if_one_of_its_seeds_taught(place):
    """Whichever seed that was: no student ranks below it, and none is compared with it."""
    found = compare_runs([place / "big", place / "taught", place / "alone"], time_scoring=False)
    assert {line.name: line.role for line in found.lines} == {"big": "teacher", "taught": "student", "alone": "alone"}
    big, taught, alone = found.lines
    assert (found.teacher, len(big.seeds)) == ("big", 3)
    assert taught.transfer
    assert (big.baseline, taught.baseline, alone.baseline) == ("alone", "alone", None)
    assert big.standings == {}
    assert big.agreement == {}
    assert not any("distilled from" in told for told in found.warnings)


def test_a_seed_named_as_the_teacher_stands_for_its_model(place):
    runs = [place / "big", place / "wide", place / "taught", place / "alone"]
    for named in (str(place / "big/seed-2"), str(place / "big"), "big"):
        found = compare_runs(runs, teacher=named, time_scoring=False)
        assert (found.teacher, found.lines[0].role, found.lines[0].standings) == ("big", "teacher", {})
        assert not any("distilled from" in told for told in found.warnings)
    other = compare_runs(runs, teacher="wide", time_scoring=False)
    assert [line.role for line in other.lines] == ["teacher", "teacher", "student", "alone"]
    assert any(
        "taught, seed 0: it was distilled from big, not from wide: the transfer" in told for told in other.warnings
    )
    lone = compare_runs(runs[1:], teacher=str(place / "wide"), time_scoring=False)
    assert any("it was distilled from big/seed-1, not from wide" in told for told in lone.warnings)


def test_agreement_is_with_the_teacher_that_is_named(place):
    """And of each student with the very seed that taught it."""
    runs = [place / "big/seed-1", place / "taught/seed-0", place / "alone/seed-0"]
    lone = compare_runs(runs, time_scoring=False)
    whole = compare_runs([place / "big", *runs[1:]], time_scoring=False)
    assert [line.agreement for line in whole.lines] == [line.agreement for line in lone.lines]
    told = compare_runs([*runs, place / "wide"], teacher=str(place / "wide"), time_scoring=False)
    by_wide = compare_runs([place / "wide", place / "alone/seed-0"], teacher=str(place / "wide"), time_scoring=False)
    assert told.lines[2].agreement == by_wide.lines[1].agreement != lone.lines[2].agreement


def test_one_seed_is_not_two(place, tmp_path):
    (tmp_path / "d").symlink_to(place / "d")
    for seed in (0, 1):
        train(tmp_path, f"same/seed-{seed}", "--dim", 4)
    train(tmp_path, "same/seed-2", "--dim", 4, "--seed", 2)
    runs = [tmp_path / f"same/seed-{seed}" for seed in range(3)]
    with pytest.warns(
        UserWarning, match=r"same/seed-0 and .*same/seed-1 are no two seeds: train.seed is 0 in both; each"
    ):
        found = compare_runs([tmp_path / "same"], time_scoring=False)
    assert [(line.name, len(line.seeds)) for line in found.lines] == [(str(run), 1) for run in runs]
    told = ok("eval", tmp_path / "same")
    assert "are no two seeds" in told.err
    assert "±" not in told.out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(compare_runs([runs[0], runs[2]], time_scoring=False).lines[0].seeds) == 2


@pytest.mark.parametrize(("option", "value"), [("epochs", 3), ("patience", 5)])
def test_runs_of_other_epochs_or_patience_are_no_seeds_of_one_model(place, tmp_path, option, value):
    (tmp_path / "d").symlink_to(place / "d")
    train(tmp_path, "mixed/seed-0", "--dim", 4)
    train(tmp_path, "mixed/seed-1", "--dim", 4, "--seed", 1, f"--{option}", value)
    with pytest.warns(
        UserWarning, match=rf"are no seeds of one model: train.{option} is .* in the one, {value} in the oth"
    ):
        found = compare_runs([tmp_path / "mixed"], time_scoring=False)
    assert [len(line.seeds) for line in found.lines] == [1, 1]


def test_what_leaves_the_result_as_it_is_may_differ(place, tmp_path):
    for name in ("alone/seed-0", "alone/seed-1"):
        shutil.copytree(place / name, tmp_path / name)
    train(place, "slow/seed-2", "--dim", 4, "--seed", 2, "--set", "threads=2", "--set", "train.checkpoint_seconds=9")
    shutil.move(place / "slow/seed-2", tmp_path / "alone/seed-2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare_runs([tmp_path / "alone"], time_scoring=False)
    assert [len(line.seeds) for line in found.lines] == [3]


def test_refits_have_the_epochs_of_the_runs_that_they_are_of(place, tmp_path):
    """Each the number that was best: they are seeds of one model all the same."""
    for seed, epochs in ((0, 2), (1, 3)):
        run = tmp_path / f"alone/seed-{seed}"
        shutil.copytree(place / f"alone/seed-{seed}", run)
        status = json.loads((run / "STATUS.json").read_text())
        (run / "STATUS.json").write_text(json.dumps(status | {"best_epoch": epochs - 1}))
        ok("refit", run, "--data", place / "d", "--out", tmp_path / f"again/seed-{seed}", "--quiet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare_runs([tmp_path / "again"], time_scoring=False)
    assert [(line.name, len(line.seeds)) for line in found.lines] == [("again", 2)]


def test_a_model_has_one_name_however_its_seeds_are_spelt(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place / "alone")
    for runs in (["seed-0", "seed-1"], [str(place / "alone/seed-0"), "seed-1"], ["../alone/seed-1", "seed-0"]):
        found = compare_runs([*runs, "../taught"], baseline="../alone", time_scoring=False)
        assert [(line.name, len(line.seeds)) for line in found.lines] == [("alone", 2), ("taught", 2)]
    monkeypatch.chdir(place / "alone/seed-0")
    assert [(line.name, len(line.seeds)) for line in compare_runs([".", "../seed-1"], time_scoring=False).lines] == [
        ("alone", 2)
    ]


def test_a_file_is_no_seed(place, tmp_path):
    """Its run, beside which it lies, would be counted twice."""
    shutil.copytree(place / "alone", tmp_path / "alone")
    ok("export", tmp_path / "alone/seed-0", "--out", tmp_path / "alone/seed-0.st")
    found = compare_runs([tmp_path / "alone/seed-0", tmp_path / "alone/seed-0.st"], time_scoring=False)
    assert [(line.name, len(line.seeds)) for line in found.lines] == [("alone", 1), ("seed-0.st", 1)]


def test_what_validation_found_for_each_seed_is_no_other_model(place, tmp_path):
    """Of students that were made without training; bits and dimensions must agree as ever."""
    for seed, users in ((0, "ridge"), (1, "sum")):
        ok("compress", place / f"big/seed-{seed}", "--bits", 4, "--users", users, "--out", tmp_path / f"s/seed-{seed}")
    how = [Run.open(tmp_path / f"s/seed-{seed}").config["compress"]["how"] for seed in (0, 1)]
    assert how[0] != how[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare_runs([tmp_path / "s"], time_scoring=False)
    assert [len(line.seeds) for line in found.lines] == [2]
    ok("compress", place / "big/seed-2", "--bits", 2, "--users", "sum", "--out", tmp_path / "s/seed-2")
    with pytest.warns(UserWarning, match=r"are no seeds of one model: model.bits is 4 in the one, 2 in the other"):
        compare_runs([tmp_path / "s"], time_scoring=False)
