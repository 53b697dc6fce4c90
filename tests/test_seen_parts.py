"""What a student file keeps of its users: the items of training, or those of all parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdrs
from commands import FAST, fails, ok
from conftest import toy_dataset
from kdrs.compact.encoders import asked
from kdrs.data import Dataset, Histories, Interactions
from kdrs.errors import ConfigError
from kdrs.runs import kept

FEW = ("--batch-size", "32", "--lr", "0.01", "--epochs", "2", "--device", "cpu", "--threads", "1", "--quiet")


class Ordered:
    """Stands for an encoder that reads sequences."""

    ordered = True


@st.composite
def datasets(draw: Any) -> Dataset:
    """Some users and items in three parts, each pair in one; training items in an order."""
    n_users, n_items = draw(st.integers(1, 6)), draw(st.integers(2, 9))
    kinds = st.sampled_from(["none", "train", "valid", "test"])
    size = n_users * n_items
    grid = np.array(draw(st.lists(kinds, min_size=size, max_size=size)), dtype="U5").reshape(n_users, n_items)
    grid[0, :2] = "train", "none"
    parts = [
        Interactions.from_pairs(*np.nonzero(grid == part), n_users, n_items) for part in ("train", "valid", "test")
    ]
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    train = parts[0]
    order = np.concatenate([rng.permutation(train.rows([user]).indices.copy()) for user in range(n_users)])
    return Dataset.from_interactions(*parts, order=order.astype(np.int32), split={"kind": "time"})


@given(data=datasets())
@settings(max_examples=60)
def test_all_are_the_items_of_all_parts_and_the_held_out_ones_are_the_latest(data):
    assert kept.seen_of(data, None) is data.train
    assert kept.seen_of(data, None, "train") is data.train
    assert kept.seen_of(data, None, "all") == data.full
    own = kept.seen_of(data, Ordered())  # type: ignore[arg-type]
    assert isinstance(own, Histories)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept.warnings, "warn", lambda *_, **__: None)
        found = kept.seen_of(data, Ordered(), "all")  # type: ignore[arg-type]
    assert isinstance(found, Histories)
    assert np.array_equal(found.indptr, data.full.indptr)
    assert np.array_equal(found.indices, data.full.indices)
    for user in range(data.n_users):
        parts = (own.rows([user]).order, data.valid.rows([user]).indices, data.test.rows([user]).indices)
        assert found.rows([user]).order.tolist() == np.concatenate(parts).tolist()
    parts = [part for part in ("train", "valid", "test") if part == "train" or getattr(data, part).n_pairs]
    assert kept.told(data, found, "all") == {"parts": parts, "pairs": data.full.n_pairs}
    assert kept.told(data, own, None) == {"parts": ["train"], "pairs": data.train.n_pairs}


@given(data=datasets(), dim=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_no_list_holds_what_its_user_has_in_any_part(tmp_path_factory, data, dim, seed):
    """And it holds the best of all others, in their order."""
    folder, rng = tmp_path_factory.mktemp("any"), np.random.default_rng(seed)
    users, items = (rng.standard_normal((len(ids), dim), np.float32) for ids in (data.users, data.items))
    teacher = folder / "t.safetensors"
    kdrs.save_teacher(teacher, users=users, items=items, user_ids=list(data.users), item_ids=list(data.items))
    made = kdrs.export(teacher, folder / "s.safetensors", dataset=data, seen=True, seen_parts="all", fold_in=False)
    student = kdrs.Student.load(made.path)
    found = student.recommend(list(data.users), data.n_items)
    best = kdrs.ranking.topk(users, items, data.n_items, seen=data.full)
    assert np.array_equal(found.places, np.asarray(best.items))
    hidden = data.full
    for user in range(data.n_users):
        own = set(hidden.rows([user]).indices.tolist())
        assert set(found.places[user][found.places[user] >= 0].tolist()) == set(range(data.n_items)) - own


# --- of runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seen")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toy_dataset(60, 50, candidates=None).save("d")
        ok("train", "--data", "d", *FAST, "--dim", "6", "--epochs", "4", "--threads", "1", "--quiet", "--out", "table")
        ok("compress", "table", "--bits", "4", "--users", "sum", "--out", "sums")
        for model in ("sasrec", "multvae"):
            ok("train", "--data", "d", "--model", model, "--dim", "8", *FEW, "--out", model)
    return folder


@pytest.fixture
def here(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("name", ["table", "sums", "multvae", "sasrec"])
def test_encoded_users_are_made_of_what_is_kept(here, tmp_path, name):
    file = tmp_path / "s.safetensors"
    if name == "sasrec":
        with pytest.warns(UserWarning, match="in their order, and the data set keeps none of held-out items"):
            kdrs.export(name, file, seen=True, seen_parts="all")
    else:
        kdrs.export(name, file, seen=True, seen_parts="all")
    student, data = kdrs.Student.load(file), Dataset.load("d")
    assert student.seen_parts == ("train", "valid", "test")
    assert student.card["seen"] == {"parts": ["train", "valid", "test"], "pairs": data.full.n_pairs}
    assert np.array_equal(student.seen.indices, data.full.indices)
    found = student.recommend(list(data.users), 10)
    tables = student.tables
    queries = tables.users
    if queries is None:
        queries = asked(tables.encoder, student.seen, tables.items)
        history = [student.items.take(row).tolist() for row in rows_of(student.seen)]
        new = student.recommend(list(data.users), 10, histories=history)
        assert np.array_equal(new.places, found.places)  # one who comes with the same items has the same list
    best = kdrs.ranking.topk(queries, tables.items, 10, seen=data.full, bias=tables.bias)
    assert np.array_equal(np.asarray(best.items), found.places)
    for user, items in enumerate(rows_of(data.full)):
        assert not set(items.tolist()) & set(found.places[user].tolist())


def rows_of(pairs: Interactions) -> list[np.ndarray]:
    held = pairs.order if isinstance(pairs, Histories) else pairs.indices
    return [held[start:stop] for start, stop in zip(pairs.indptr[:-1], pairs.indptr[1:], strict=True)]


def test_what_new_users_cost_is_measured_on_training_items_whatever_is_kept(here, tmp_path):
    cards = []
    for parts in ("train", "all"):
        made = kdrs.export("table", tmp_path / f"{parts}.safetensors", seen=True, seen_parts=parts)
        cards.append(made.student.card)
    assert cards[0]["new_users"] == cards[1]["new_users"]
    assert cards[0]["metrics"] == cards[1]["metrics"]


def test_train_is_what_it_was(here, tmp_path):
    for name, more in (("bare", ()), ("train", ("--seen-parts", "train"))):
        ok("export", "table", "--seen", *more, "--out", tmp_path / f"{name}.safetensors")
    assert (tmp_path / "bare.safetensors").read_bytes() == (tmp_path / "train.safetensors").read_bytes()
    student = kdrs.Student.load(tmp_path / "bare.safetensors")
    assert student.seen_parts == ("train",)
    assert "in the training part of the data set" in student.readme


def test_the_command_says_which_parts(here, tmp_path):
    file = tmp_path / "s.safetensors"
    told = ok("export", "sums", "--seen", "--seen-parts", "all", "--out", file).out
    assert "60 users, with what they have seen in all parts, 50 items" in told
    student, data = kdrs.Student.load(file), Dataset.load("d")
    assert "what users have in any part of the data set: training, validation and test." in student.readme
    lists = ok("recommend", file, "--user", data.users[0], "--k", "10", "--json").document["lists"]
    got = {one["item"] for one in lists[0]["items"]}
    assert not got & {data.items[int(item)] for item in data.full.rows([0]).indices}


def test_cards_of_before_and_of_others(here, tmp_path):
    """A file that says nothing of parts keeps training items; what is no list of names says nothing."""
    student = kdrs.export("table", tmp_path / "s.safetensors", seen=True, seen_parts="all").student
    for told in (None, [], {}, {"parts": "all"}, {"parts": [1]}, {"parts": []}):
        student.card["seen"] = told
        assert student.seen_parts == ("train",)
    bare = kdrs.export("table", tmp_path / "t.safetensors").student
    assert bare.seen_parts == ()
    assert "seen" not in bare.card


def test_what_is_refused(here, tmp_path):
    out = tmp_path / "s.safetensors"
    assert "allowed: all, train" in fails(2, "export", "table", "--seen", "--seen-parts", "none", "--out", out)
    error = fails(2, "export", "table", "--seen-parts", "all", "--out", out)
    assert "what users have seen is not kept" in error
    assert "--seen --seen-parts all" in error
    assert "--seen-parts" in fails(2, "export", "table", "--to", "npz", "--seen-parts", "all", "--out", out)
    with pytest.raises(ConfigError, match="seen_parts is valid"):
        kdrs.export("table", out, seen=True, seen_parts="valid")
    assert not out.exists()
