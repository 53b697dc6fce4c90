"""Real data: the counts that the literature states."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from commands import runner
from kdrs.cli.data import app
from kdrs.data import KNOWN, PRESETS, Options, Recipe, fetch, prepare, read
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch

WITHOUT_CANDIDATES = replace(Recipe(**PRESETS["loo-499"]), candidates=0)


def path_of(data_folder, *parts):
    path = data_folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent (KDRS_DATA names the folder of the real data sets)")
    return path


@pytest.fixture
def here(data_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("KDRS_DATA", str(data_folder))
    monkeypatch.setenv("KDRS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KDRS_OFFLINE", "1")
    return data_folder


def sizes(data):
    return data.n_users, data.n_items, data.train.n_pairs, data.valid.n_pairs, data.test.n_pairs


@pytest.mark.parametrize(
    ("parts", "form", "counts"),
    [
        (("citeulike", "users.dat"), "counted-lists", (7947, 25584, 134860)),
        (("foursquare", "users.dat"), "counted-lists", (24941, 28593, 717086)),
        (("gowalla", "train.txt"), "user-lists", (29858, 40981, 810128)),
        (("beauty", "Beauty.txt"), "user-lists", (22363, 12101, 198502)),
        (("ml-100k", "ml-100k.inter"), "inter", (943, 1682, 100000)),
    ],
)
def test_formats_are_told_and_counts_are_right(data_folder, parts, form, counts):
    table = read(path_of(data_folder, *parts))
    assert table.options["format"] == form
    assert tuple(table.counts().values()) == counts


def test_citeulike_under_the_published_protocols(data_folder):
    path = path_of(data_folder, "citeulike", "users.dat")
    loo = prepare(path, Recipe(**PRESETS["loo-499"]))
    assert sizes(loo) == (5219, 25181, 115142, 5219, 5219)
    assert loo.candidates.shape == (5219, 499)
    assert loo.candidates.min() >= 0
    assert loo.full.n_pairs == 125580
    assert (loo.train.row_degrees == 3).sum() == 701
    # Ids as the authors number them: users in file order, items as they first appear.
    assert loo.items[:4] == ["1506", "2248", "2307", "2571"]
    assert sizes(prepare(path, Recipe(**PRESETS["fr-811"]))) == (5219, 25181, 98405, 12451, 14724)
    # BD keeps the counts as items: 25,187 "items" and 130,788 distinct pairs.
    bd = prepare(path, Recipe(Options(keep_counts=True), duplicates="last", min_user=6, split="last-n", last="valid"))
    assert (bd.n_users, bd.n_items, bd.full.n_pairs) == (5219, 25187, 130788)
    last, one_before = bd.valid.indices, bd.test.indices
    numbers = np.array([int(item) for item in bd.items])
    assert (numbers[last] > numbers[one_before]).all()


def test_the_published_leave_one_out_split(here):
    path_of(here, "citeulike_loo", "train.tsv")
    data = prepare(fetch("citeulike-loo"), KNOWN["citeulike-loo"].recipe)
    assert sizes(data) == (5219, 25181, 115142, 5219, 5219)
    assert data.users[:3] == ["0", "1", "2"]
    assert data.items.index(["25180"]).tolist() == [25180]
    assert data.describe()["cold_pairs"] == {"valid": 257, "test": 258}
    assert (data.train.column_degrees > 0).sum() == 24742
    first = path_of(here, "citeulike_loo", "train.tsv").read_text().splitlines()[1:6]
    assert [f"0\t{item}" for item in data.order[:5]] == first


@pytest.mark.parametrize(
    ("folder", "size", "degrees", "train", "batches"),
    [
        ("citeulike", (5219, 25_181), (5, 10, 1995, 1), 115_142, 113),
        ("foursquare", (24_941, 28_593), (9, 23, 445, 9), 667_204, 652),  # the filter removes nobody
    ],
)
def test_both_files_under_leave_one_out(data_folder, folder, size, degrees, train, batches):
    """Users' shortest, median and longest lists, the items' shortest one; training pairs; batches of 1,024."""
    data = prepare(path_of(data_folder, folder, "users.dat"), WITHOUT_CANDIDATES)
    of_users, of_items = data.full.row_degrees, data.full.column_degrees
    assert data.full.shape == size
    assert (of_users.min(), np.median(of_users), of_users.max(), of_items.min()) == degrees
    assert data.train.n_pairs == train == data.full.n_pairs - 2 * data.n_users
    assert PairTask(data.train, batch_size=1024).n_batches == batches


def test_what_a_batch_of_citeulike_holds(data_folder):
    """Of 1,024 triples about 713 users, 955 positive and 999 negative items are distinct."""
    data = prepare(path_of(data_folder, "citeulike", "users.dat"), WITHOUT_CANDIDATES)
    batches = list(PairTask(data.train, batch_size=1024).draw(Epoch(0, 0, 1)))
    assert [len(batch.queries) for batch in batches] == [1024] * 112 + [454]
    counts = [[torch.unique(ids).numel() for ids in (b.queries.rows, b.positives, b.negatives)] for b in batches]
    assert np.mean(counts, axis=0) == pytest.approx([712.9, 955, 999], abs=2)


def test_the_published_split_holds_what_the_file_does(here):
    """For all 5,219 users, items being numbered as they first appear in the file."""
    path_of(here, "citeulike_loo", "train.tsv")
    given = prepare(fetch("citeulike-loo"), replace(KNOWN["citeulike-loo"].recipe, candidates=0))
    whole = prepare(path_of(here, "citeulike", "users.dat"), WITHOUT_CANDIDATES)
    assert np.array_equal(given.full.indptr, whole.full.indptr)
    assert np.array_equal(given.full.indices, whole.full.indices)


def test_the_same_seed_gives_the_same_split(data_folder):
    path = path_of(data_folder, "citeulike", "users.dat")
    first, second, other = (prepare(path, Recipe(candidates=9, seed=seed)) for seed in (1, 1, 2))
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_gowalla_as_given(here):
    path_of(here, "gowalla", "train.txt")
    data = prepare(fetch("gowalla"), KNOWN["gowalla"].recipe)
    assert sizes(data) == (29858, 40981, 810128, 0, 217242)
    assert data.users.index(["29857"]).tolist() == [29857]


def test_movielens_by_name(here, tmp_path):
    path_of(here, "ml-100k", "ml-100k.inter")
    result = runner().invoke(app, ["prepare", "ml-100k", "--out", str(tmp_path / "ml"), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["users"], document["items"], document["pairs"]["all"]) == (938, 1008, 54413)
    assert document["order"] == "time"
    ordered = prepare(fetch("ml-100k")["all"], Recipe(split="time"))
    assert ordered.full.n_pairs == 100000
