"""Seeds of one model: those that are there are told before any is trained, and their folder stands for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import FAST, fails, ok
from conftest import toy_dataset
from kdrs.runs.compared import with_seeds


def train(place: Path, *more: object) -> tuple[object, ...]:
    return ("train", "--data", place / "d", *FAST, "--dim", 4, "--epochs", 1, "--threads", 1, "--quiet", *more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    toy_dataset(candidates=None).save(folder / "d")
    ok(*train(folder, "--seed", 5, "--out", folder / "one"))
    ok(*train(folder, "--seeds", "0,1", "--out", folder / "alone"))
    return folder


@pytest.mark.parametrize("jobs", [(), ("--jobs", 2)], ids=["one", "two"])
def test_seeds_that_are_there_are_told_before_any_is_trained(place, tmp_path, jobs):
    ok(*train(place, "--seeds", "0..1", "--out", tmp_path / "s"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    error = fails(2, *train(place, "--seeds", "0..3", "--out", tmp_path / "s", *jobs))
    assert "holds runs already: seed-0, seed-1" in error
    assert "try: --resume takes finished seeds as they are" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_folder_of_seeds_stands_for_them(place, tmp_path):
    """For all of them, by number; a folder that is neither is told as before."""
    options = ("--json", "--metrics", "ndcg@5")
    named = ok("eval", place / "one", place / "alone/seed-0", place / "alone/seed-1", *options).document
    asked = ok("eval", place / "one", place / "alone", *options).document
    for document in (named, asked):
        for line in document["runs"]:
            for key in [key for key in line if "seconds" in key]:
                del line[key]
    assert asked == named
    for option in ("--teacher", "--baseline"):
        one = ok("eval", place / "one", place / "alone", option, place / "alone", *options).document
        assert one[option[2:]] == "alone"
    ok("report", place / "one", place / "alone", "--out", tmp_path / "page")
    assert "is given twice" in fails(2, "eval", place / "alone", place / "alone/seed-1")
    (tmp_path / "other/seed-x").mkdir(parents=True)
    (tmp_path / "other/seed-x/config.toml").touch()
    (tmp_path / "empty").mkdir()
    assert "is no run directory: it has no config.toml" in fails(4, "eval", tmp_path / "other")
    assert "try: check the path" in fails(4, "eval", tmp_path / "empty")


@given(seeds=st.sets(st.integers(0, 10**6), max_size=8))
def test_they_come_by_number(tmp_path_factory, seeds):
    folder = tmp_path_factory.mktemp("any")
    for seed in seeds:
        (folder / f"seed-{seed}").mkdir()
        (folder / f"seed-{seed}/config.toml").touch()
    (folder / "seed-none").mkdir()
    found = with_seeds([folder, folder / "else"])
    assert found == [*([folder / f"seed-{seed}" for seed in sorted(seeds)] or [folder]), folder / "else"]
    (folder / "config.toml").touch()  # a run of its own
    assert with_seeds([folder]) == [folder]
