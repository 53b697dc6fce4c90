"""What is said where a result cannot be trusted, or costs more than it seems."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from kdrs.data import PRESETS, Dataset, Recipe, Table, prepare
from kdrs.runs import execute as execute_module
from kdrs.runs.config import resolve
from kdrs.runs.cost import plain_seconds, warn_if_dear
from kdrs.runs.execute import execute
from kdrs.training.pairs import PairTask


def table(rated: bool = False, timed: bool = False) -> Table:
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((30, 20)) < 0.5)
    ratings = 1 + rng.integers(0, 5, users.size) if rated else None
    times = 10**9 + np.arange(users.size) if timed else None
    return Table.from_pairs(users.astype(str), items.astype(str), ratings=ratings, times=times)


def said(recipe: Recipe, published: bool = False, **columns: bool) -> str:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        prepare(table(**columns), recipe, published=published)
    return "\n".join(str(warning.message) for warning in found)


def test_ratings_that_all_count_as_liked_are_told():
    assert "ratings from 1 to 5 all count as liked" in said(Recipe(), rated=True)
    assert "--min-rating (1 takes all)" in said(Recipe(), rated=True)
    assert not said(Recipe(min_rating=1), rated=True)
    assert not said(Recipe(min_rating=4), rated=True)
    assert not said(Recipe())


@pytest.mark.parametrize("split", ["leave-one-out", "ratio", "ratio-users"])
def test_a_random_split_of_data_with_times_is_told(split):
    assert f"split {split!r} holds out at random" in said(Recipe(split=split), timed=True)
    assert not said(Recipe(split=split))


@pytest.mark.parametrize("split", ["last-n", "time", "ordered"])
def test_splits_in_order_are_not(split):
    assert not said(Recipe(split=split), timed=True)


def test_published_recipes_are_followed_without_a_word():
    assert not said(Recipe(**PRESETS["hetcomp"]), published=True, rated=True, timed=True)


def values(data: Path, teacher: Path) -> dict:
    term = {"method": "rrd", "teacher": str(teacher), "pool": 10, "interesting": 3, "uninteresting": 5}
    return {
        "data": {"path": str(data)}, "model": {"name": "bpr", "dim": 4}, "device": "cpu", "threads": 1,
        "train": {"epochs": 3, "batch_size": 64}, "distill": [term],
    }  # fmt: skip


@pytest.fixture(scope="module")
def teacher(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trust") / "teacher"
    plain = {key: value for key, value in values(toy_path, out).items() if key != "distill"}
    execute(resolve(plain), out)
    return out


def test_a_dear_run_is_told_of_after_its_first_batches(toy_path, teacher, tmp_path, monkeypatch):
    config = resolve(values(toy_path, teacher))
    monkeypatch.setattr(execute_module, "plain_seconds", lambda *_: 1e-9)
    rows: list[dict] = []
    with pytest.warns(
        UserWarning, match=r"an epoch takes about .* times what the model alone takes .*up to 3 epochs are"
    ):
        execute(config, tmp_path / "dear", on_epoch=rows.append)
    monkeypatch.setattr(execute_module, "plain_seconds", lambda *_: 1e9)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*times what the model alone takes.*")
        execute(config, tmp_path / "cheap")


def test_the_price_is_put_in_numbers(toy):
    config = resolve({"data": {"path": "x"}, "model": {"name": "bpr"}, "train": {"epochs": 100}})
    task = PairTask(toy.train, batch_size=64)
    with pytest.warns(UserWarning, match="an epoch takes") as told:
        warn_if_dear(config, task, 0.001, 0.06)
    alone, epoch = 0.001 * task.n_batches, 0.06 * task.n_batches
    assert f"about {epoch:.2g} s, 60 times" in str(told[0].message)
    assert f"({alone:.2g} s); up to 100 epochs are {epoch * 100:.0f} s" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_dear(config, task, 0.001, 0.01)


def test_taking_the_price_changes_nothing(toy_path, teacher, tmp_path, monkeypatch):
    config = resolve(values(toy_path, teacher))
    execute(config, tmp_path / "priced")
    monkeypatch.setattr(execute_module, "plain_seconds", lambda *_: 0.0)
    execute(config, tmp_path / "not")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("priced", "not"))
    assert first == second
    before = torch.random.get_rng_state()
    assert plain_seconds(config, PairTask(Dataset.load(toy_path).train, batch_size=64)) > 0
    assert torch.equal(before, torch.random.get_rng_state())
