from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from apart import Forks
from kdrs.data import Dataset, Interactions
from kdrs.training.pairs import PairTask
from together import Pairs, pairs

# Toy data: a second thread costs more than it brings, and very much on a busy machine. Child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# One run is like another, unless HYPOTHESIS_PROFILE=random asks for examples that nobody has tried: the nightly run does.
settings.register_profile("kdrs", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "kdrs"))


FIRST = (
    "fault_table_cli",
    "processes",
    "sweep",
    "contract",
    "pages",
    "train",
    "reproduce",
    "sweep_damage",
    "gpu_visit",
)
"""Files that take longest: with workers of their own for each file, none of them is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="module")
def wide_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 dimensions, which students of a budget have room below; its data set lies beside it as ``toy``."""
    from kdrs.runs.config import resolve
    from kdrs.runs.execute import execute

    place = tmp_path_factory.mktemp("wide")
    toy_dataset().save(place / "toy")
    values = {"data": {"path": str(place / "toy")}, "model": {"name": "bpr", "dim": 40}, "device": "cpu"}
    execute(resolve({**values, "train": {"epochs": 5, "batch_size": 64, "lr": 1e-2}}), place / "teacher")
    return place / "teacher"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets; the test is skipped where it is absent."""
    folder = Path(os.environ.get("KDRS_DATA", Path(__file__).parents[1] / "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not at {folder} (KDRS_DATA names their folder)")
    return folder


def toy_dataset(
    n_users: int = 50, n_items: int = 80, seed: int = 0, candidates: int | None = 20, ordered: bool = True
) -> Dataset:
    """Users with tastes: each likes the items of its group, with noise. Leave-one-out, with candidates unless None; each
    user's training items in an order, unless not ``ordered``."""
    rng = np.random.default_rng(seed)
    liked = (np.arange(n_users)[:, None] % 4 == np.arange(n_items)[None, :] % 4) * 0.5 + 0.04
    users, items = np.nonzero(rng.random((n_users, n_items)) < liked)
    held = np.full((n_users, 2), -1)
    train = np.ones(users.size, bool)
    for user in range(n_users):
        own = np.flatnonzero(users == user)
        chosen = rng.choice(own, 2, replace=False)
        held[user] = items[chosen]
        train[chosen] = False
    everyone = np.arange(n_users)
    size = (n_users, n_items)
    drawn = None
    if candidates is not None:
        seen = np.zeros(size, bool)
        seen[users, items] = True
        drawn = np.stack([rng.choice(np.flatnonzero(~seen[user]), candidates, replace=False) for user in everyone])
    order = items[train][np.lexsort((np.random.default_rng(seed).random(int(train.sum())), users[train]))]
    return Dataset.from_interactions(
        Interactions.from_pairs(users[train], items[train], *size),
        Interactions.from_pairs(everyone, held[:, 0], *size),
        Interactions.from_pairs(everyone, held[:, 1], *size),
        name="toy",
        order=order if ordered else None,
        candidates=drawn,
    )


@pytest.fixture(scope="session")
def toy() -> Dataset:
    return toy_dataset()


@pytest.fixture
def task(toy: Dataset) -> PairTask:
    return PairTask(toy.train, batch_size=64)


@pytest.fixture(scope="session")
def toy_path(toy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.save(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairs]:
    """Processes that do one thing together."""
    with pairs(tmp_path_factory.mktemp("together")) as found:
        yield found


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """``kdrs`` in processes of its own."""
    found = Forks()
    yield found
    found.close()


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of ``--jobs`` are forks of one that has loaded torch, for tests of what they do and not of how they begin:
    a new interpreter for each takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kdrs.runs.pool", "kdrs.studies.sweep"])
    monkeypatch.setattr("kdrs.runs.pool.get_context", lambda _: context)


@pytest.fixture
def png_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have their picture as PNG and not as SVG and PDF, for tests that look at none: each takes a second to draw."""
    monkeypatch.setattr("kdrs.comparison.result.PICTURES", (".png",))


@pytest.fixture
def s(place: Path, tmp_path: Path) -> Path:
    """A copy of the student in the ``place`` of a file of tests."""
    return Path(shutil.copytree(place / "s", tmp_path / "s"))


@pytest.fixture
def t(place: Path, tmp_path: Path) -> Path:
    """A copy of its teacher."""
    return Path(shutil.copytree(place / "t", tmp_path / "t"))
