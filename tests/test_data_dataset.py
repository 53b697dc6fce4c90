"""Prepared data sets: what is saved is loaded, damage is seen, nothing is half-written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from conftest import toy_dataset
from kdrs import _files
from kdrs.data import Dataset, Ids, Interactions, Recipe, Table, prepare
from kdrs.data import dataset as dataset_module
from kdrs.errors import ConfigError, DataError, MachineError

FILES = ["dataset.json", "interactions.safetensors", "items.json", "users.json"]
name = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(0)
    pairs = sorted({(int(u), int(i)) for u, i in zip(rng.integers(0, 9, 90), rng.integers(0, 25, 90), strict=True)})
    users, items = zip(*pairs, strict=True)
    return prepare(Table.from_pairs(users, items), Recipe(candidates=5), name="toy")


def same(left: Dataset, right: Dataset) -> bool:
    return (
        all(
            getattr(left, part) == getattr(right, part) for part in ("train", "valid", "test", "users", "items", "name")
        )
        and left.describe() == right.describe()
        and np.array_equal(left.order, right.order)
        and np.array_equal(left.candidates, right.candidates)
    )


def test_saved_is_loaded(data, tmp_path):
    path = data.save(tmp_path / "deep" / "toy")
    assert same(Dataset.load(path), data)
    assert sorted(os.listdir(path)) == FILES
    assert os.listdir(path.parent) == ["toy"]
    head = json.loads((path / "dataset.json").read_text())
    assert head["format"] == "kdrs-dataset/1"
    assert head["digests"]["users"] == hashlib.sha256((path / "users.json").read_bytes()).hexdigest()
    modes = {(path / file).stat().st_mode & 0o777 for file in FILES}
    assert len(modes) == 1


@settings(max_examples=20, deadline=None)
@given(
    st.lists(name, min_size=1, max_size=6, unique=True), st.lists(name, min_size=1, max_size=6, unique=True), st.data()
)
def test_any_ids_and_parts_survive(tmp_path_factory, users, items, draw):
    shape = (len(users), len(items))
    cells = [(u, i) for u in range(shape[0]) for i in range(shape[1])]
    parts = draw.draw(st.lists(st.integers(0, 3), min_size=len(cells), max_size=len(cells)))
    split = []
    for code in (0, 1, 2):
        chosen = [cell for cell, part in zip(cells, parts, strict=True) if part == code]
        split.append(Interactions.from_pairs([u for u, _ in chosen], [i for _, i in chosen], *shape))
    data = Dataset.from_interactions(*split, users=users, items=items)
    assert same(Dataset.load(data.save(tmp_path_factory.mktemp("any") / "d")), data)


def test_fingerprint_covers_ids_arrays_and_split_only(data):
    def changed(**parts):
        fields = {field: getattr(data, field) for field in Dataset.__dataclass_fields__}
        return Dataset(**{**fields, **parts}).fingerprint

    assert changed(name="other", steps=(), sources=()) == data.fingerprint
    others = [
        changed(split={"kind": "other"}),
        changed(candidates=None),
        changed(valid=data.test, test=data.valid),
        changed(order=None, order_by=None),
        changed(users=Ids([f"u{user}" for user in data.users], "user")),
    ]
    assert len({data.fingerprint, *others}) == 6


@pytest.mark.parametrize("file", FILES)
def test_every_damaged_byte_is_seen(data, tmp_path, file):
    path = data.save(tmp_path / "toy")
    whole = (path / file).read_bytes()
    for place in sorted({0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 2}):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (path / file).write_bytes(damaged)
        with pytest.raises(DataError, match=r"kdrs data prepare|another version"):
            Dataset.load(path)
    for content in (whole[: len(whole) // 2], b""):
        (path / file).write_bytes(content)
        with pytest.raises(DataError, match="kdrs data prepare"):
            Dataset.load(path)
    (path / file).unlink()
    with pytest.raises(DataError):
        Dataset.load(path)


def test_other_versions_are_refused(data, tmp_path):
    path = data.save(tmp_path / "toy")
    head = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps({**head, "format": "kdrs-dataset/9"}))
    with pytest.raises(DataError, match="has format kdrs-dataset/9; this kdrs reads kdrs-dataset/1"):
        Dataset.load(path)


def test_an_edited_head_is_seen(data, tmp_path):
    path = data.save(tmp_path / "toy")
    text = (path / "dataset.json").read_text()
    (path / "dataset.json").write_text(text.replace('"name": "toy"', '"name": "tox"'))
    with pytest.raises(DataError, match="its checksum differs"):
        Dataset.load(path)


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no prepared data set"):
        Dataset.load(tmp_path)


def test_nothing_is_overwritten_unless_told(data, tmp_path):
    path = data.save(tmp_path / "toy")
    with pytest.raises(DataError, match="already holds a prepared data set"):
        data.save(path)
    data.save(path, overwrite=True)
    assert same(Dataset.load(path), data)
    assert os.listdir(tmp_path) == ["toy"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="holds no prepared data set"):
        data.save(precious, overwrite=True)
    assert os.listdir(precious) == ["thesis.txt"]
    with pytest.raises(DataError, match="exists and is no folder"):
        data.save(precious / "thesis.txt", overwrite=True)
    (tmp_path / "empty").mkdir()
    assert same(Dataset.load(data.save(tmp_path / "empty")), data)


@pytest.mark.parametrize("failing", ["save", "fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_a_failed_save_leaves_nothing_and_keeps_the_old(data, tmp_path, monkeypatch, failing, code):
    path = data.save(tmp_path / "toy")
    before = {file: (path / file).read_bytes() for file in FILES}

    def full(*args, **kwargs):
        if failing == "save":  # as the Rust libraries tell it
            raise SafetensorError(f"I/O error: {os.strerror(code)} (os error {code})")
        raise OSError(code, os.strerror(code))

    if failing == "save":
        monkeypatch.setattr("safetensors.numpy.save", full)
    elif failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(_files, "exchange", lambda *_: False)
        real = os.rename
        monkeypatch.setattr(os, "rename", lambda old, new: full() if str(old).endswith(".tmp") else real(old, new))
    with pytest.raises(MachineError, match=re.escape(os.strerror(code))) as caught:
        data.save(path, overwrite=True)
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert re.search(r"0.1 MB are needed; [\d.]+ MB are free", caught.value.cause)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["toy"]
    assert {file: (path / file).read_bytes() for file in FILES} == before
    assert same(Dataset.load(data.save(path, overwrite=True)), data)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_told(data, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MachineError, match="Permission denied"):
        data.save(tmp_path / "toy")


def test_construction_refuses_contradictions():
    train = Interactions.from_pairs([0, 0, 1], [0, 1, 2], 2, 4)
    held = Interactions.from_pairs([0], [1], 2, 4)
    make = Dataset.from_interactions
    with pytest.raises(DataError, match="1 pairs are in train and in test, first user 0 item 1"):
        make(train, test=held)
    with pytest.raises(DataError, match="1 pairs are in valid and in test"):
        make(Interactions.from_pairs([0], [0], 2, 4), held, held)
    with pytest.raises(DataError, match=r"test is \(1, 4\), the ids say \(2, 4\)"):
        make(train, test=Interactions.from_pairs([0], [3], 1, 4))
    with pytest.raises(DataError, match="the ids say"):
        make(train, users=["a", "b", "c"])
    with pytest.raises(DataError, match="user a comes twice"):
        make(train, users=["a", "a"])
    with pytest.raises(DataError, match="no reordering"):
        make(train, order=[0, 0, 2])
    with pytest.raises(DataError, match="candidate 1 of user 0 is one of the user's own items"):
        make(train, candidates=[[1, 2], [0, 3]])
    with pytest.raises(DataError, match="candidate list of user 1 holds an item outside 0 to 3: 4"):
        make(train, candidates=[[2, 3], [2, 4]])
    with pytest.raises(DataError, match="padding stands at the end"):
        make(train, candidates=[[-1, 3], [0, 1]])
    with pytest.raises(DataError, match=r"allowed: int32 \[2 users, C\]"):
        make(train, candidates=[[2, 3]])
    assert make(train, order=[1, 0, 2], candidates=[[2, -1], [0, 1]]).order.tolist() == [1, 0, 2]


def test_order_is_checked_in_blocks(data, monkeypatch):
    monkeypatch.setattr(dataset_module, "_BLOCK", 3)
    parts = {"order": data.order, "order_by": "file"}
    assert np.array_equal(Dataset.from_interactions(data.train, **parts).order, data.order)
    for row in range(data.n_users):
        wrong = data.order.copy()
        start, stop = data.train.indptr[row : row + 2]
        wrong[stop - 1] = wrong[start] if stop - start > 1 else (wrong[start] + 1) % data.n_items
        with pytest.raises(DataError, match="no reordering"):
            Dataset.from_interactions(data.train, order=wrong, order_by="file")


THREADS = """
import sys
from kdrs.data import Recipe, prepare
print(prepare(sys.argv[1], Recipe(candidates=20, k_core=2)).fingerprint)
"""


def test_thread_counts_change_nothing(tmp_path):
    rng = np.random.default_rng(0)
    rows = zip(rng.integers(0, 500, 20_000), rng.integers(0, 800, 20_000), strict=True)
    (tmp_path / "a.csv").write_text("user,item\n" + "".join(f"u{u},i{i}\n" for u, i in rows))
    found = {
        subprocess.run(
            [sys.executable, "-c", THREADS, str(tmp_path / "a.csv")],
            env={**os.environ, "POLARS_MAX_THREADS": threads, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "8")
    }
    assert len(found) == 1


def test_ids_find_their_places():
    ids = Ids(["7", "007", "é"], "item")
    with pytest.raises(IndexError, match="lists are padded with -1"):
        ids[-1]
    with pytest.raises(IndexError, match="lists are padded with -1"):
        ids.take(np.array([0, -1]))
    assert ids.index(["007", "7"]).tolist() == [1, 0]
    assert ids.index(["x", "é"], unknown="mark").tolist() == [-1, 2]
    with pytest.raises(DataError, match="1 of 2 item ids are unknown, first x"):
        ids.index(["x", "7"])
    with pytest.raises(DataError, match=r"first 7 \(int; ids are strings\)"):
        ids.index([7])
    with pytest.raises(DataError, match=r"item 1 is 7 .int.; ids are non-empty strings"):
        Ids(["a", 7], "item")
    assert Ids.from_json(ids.to_json(), "item") == ids
    assert ids.digest == hashlib.sha256('["7","007","é"]'.encode()).hexdigest()
    assert list(Ids.numbered(3)) == ["0", "1", "2"]


def test_describe_counts(data):
    facts = data.describe()
    assert facts["pairs"]["all"] == sum(facts["pairs"][part] for part in ("train", "valid", "test"))
    assert facts["users"] == data.n_users == len(data.users)
    assert facts["candidates"] == 5
    json.dumps(facts, allow_nan=False)


def test_how_many_pairs_ask_for_the_most_frequent_items():
    train = Interactions.from_pairs([0, 1, 2, 0, 1, 2], [1, 1, 1, 0, 2, 2], 3, 4)
    test = Interactions.from_pairs([0, 1, 2, 2], [2, 0, 0, 3], 3, 4)
    data = Dataset.from_interactions(train, Interactions.from_pairs([], [], 3, 4), test)
    assert data.popular_share(2) == {"train": 5 / 6, "valid": None, "test": 1 / 4}  # items 1 and 2
    assert data.popular_share(1) == {"train": 1 / 2, "valid": None, "test": 0.0}
    assert data.popular_share(4) == {"train": 1.0, "valid": None, "test": 1.0}
    facts = data.describe()
    assert (facts["popular_items"], facts["popular_share"]) == (1, data.popular_share(1))  # of four, one at least
    for count in (0, 5):
        with pytest.raises(ConfigError, match="allowed: 1 to 4"):
            data.popular_share(count)


@given(st.sets(st.integers(0, 49)), st.booleans())
@settings(max_examples=20)
def test_without_some_users(rows, ordered):
    data = toy_dataset(ordered=ordered)
    rest = data.without_users(sorted(rows))
    kept = np.setdiff1d(np.arange(50), sorted(rows))
    assert list(rest.users) == list(data.users)
    for part in ("train", "valid", "test"):
        whole, left = getattr(data, part).to_csr(), getattr(rest, part).to_csr()
        assert (whole[kept] != left[kept]).nnz == 0
        assert left[sorted(rows)].nnz == 0
    if ordered:
        for user in kept:
            before, after = (one.order[one.train.indptr[user] : one.train.indptr[user + 1]] for one in (data, rest))
            assert np.array_equal(before, after)
    assert rest.steps[-1]["users"] == len(rows)
    assert rest.steps[-1]["pairs"] == sum(
        np.isin(part.row_of_pair, sorted(rows)).sum() for part in (data.train, data.valid, data.test)
    )
    assert (rest.fingerprint == data.fingerprint) == (not rows)


@pytest.mark.parametrize("rows", [[-1], [50], [0.5], ["a"], [[1], [2, 3]], True])
def test_users_that_are_none_cannot_be_left_out(rows):
    with pytest.raises(DataError, match="give rows of users: integers from 0 to 49"):
        toy_dataset().without_users(rows)
