"""Teacher files of the second form: ids inside, rows in any order, items alone."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import kdrs
from commands import ok
from conftest import toy_dataset
from kdrs.distillers import DISTILLERS
from kdrs.errors import ArtefactError, ConfigError, DataError, MissingKnowledge
from kdrs.training.outline import OUTLINE
from kdrs.training.queries import Epoch
from teacher_files import DIM, changed, lists, loss_of, method_of, teacher_of, vectors
from test_contract import build


@pytest.fixture(scope="module")
def data() -> kdrs.Dataset:
    return toy_dataset()


# --- ids inside -----------------------------------------------------------------------------------------------------


def test_fault_34_lists_are_joined_by_id(data, tmp_path):
    wanted = teacher_of(tmp_path, data, **lists(data))
    given, rng = lists(data), np.random.default_rng(1)
    users, items = rng.permutation(data.n_users), rng.permutation(data.n_items)
    place = np.empty(data.n_items, np.int32)
    place[items] = np.arange(data.n_items)
    topk = place[given["topk"]][users]
    topk = np.insert(topk, 3, data.n_items, axis=1)  # an item that the data set does not know leaves no hole
    mixed = {
        "topk": topk,
        "user_ids": [data.users[user] for user in users],
        "item_ids": [*(data.items[item] for item in items), "unknown"],
    }
    found = teacher_of(tmp_path, data, **mixed)
    for one, other in zip(found.topk(10), wanted.topk(10), strict=True):
        assert np.array_equal(one, other, equal_nan=True)
    assert found.joined["items"].n_unknown == 1


def test_users_without_lists(data, tmp_path):
    given = lists(data)
    kept = np.arange(0, data.n_users, 2)
    short = {"topk": given["topk"][kept], "user_ids": [data.users[u] for u in kept], "item_ids": given["item_ids"]}
    with pytest.raises(ArtefactError, match="lacks 25 of the data set's 50 users") as caught:
        teacher_of(tmp_path, data, **short)
    assert "--missing drop" in caught.value.remedy
    assert "mean" not in caught.value.remedy  # there is none of lists
    with pytest.warns(UserWarning, match="lacks 25 of the data set's 50 users"):
        found = teacher_of(tmp_path, data, missing="drop", **short)
    assert (found.topk(8).items[1::2] == -1).all()
    with pytest.warns(UserWarning, match="lacks 25 .*; their lists are empty"):
        mean = teacher_of(tmp_path, data, missing="mean", **short)
    assert np.array_equal(mean.topk(8).items, found.topk(8).items)
    both = {**short, "users": vectors(data)["users"][kept], "items": vectors(data)["items"]}
    with pytest.warns(UserWarning, match="lacks 25 .*; they get the mean of the others' vectors, and empty lists"):
        mean = teacher_of(tmp_path, data, missing="mean", **both)
    assert (mean.topk(8).items[1::2] == -1).all()
    assert np.allclose(mean.factors().queries[1::2], both["users"].mean(axis=0), atol=1e-6)
    task = found.task
    assert torch.isfinite(loss_of(method_of("rrd", found, task), task))


@pytest.mark.parametrize("device", ["cpu", OUTLINE])
def test_an_outline_reads_ids_and_no_values(data, tmp_path, device):
    task = kdrs.PairTask(data.train, device=device)
    found = teacher_of(tmp_path, data, task, **vectors(data))
    assert found.dim == DIM
    assert found.factors().queries.shape == (data.n_users, DIM)
    with pytest.raises(ArtefactError, match="none of its 80 items"):
        teacher_of(tmp_path, data, task, **{**vectors(data), "item_ids": [f"x{n}" for n in range(data.n_items)]})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an id twice": ({"item_ids": "twice"}, "comes twice"),
    "ends that fall": ({"item_ids_ends": "fall"}, "item ids"),
    "no ids": ({"item_ids": None, "item_ids_ends": None}, "holds items without item_ids"),
    "half of the ids": ({"item_ids_ends": None}, "holds item_ids alone"),
    "no UTF-8": ({"item_ids": "bytes"}, "UTF-8"),
    "a row too many": ({"items": np.ones((81, DIM), np.float32)}, "one row too many"),
    "other dimensions": ({"items": np.ones((80, DIM + 1), np.float32)}, "users have 6 dimensions, items 7"),
    "NaN": ({"items": np.full((80, DIM), np.nan, np.float32)}, "items row 0 is not finite"),
    "users alone": ({"items": None}, "holds users alone"),
    "a stranger": ({"itms": np.ones(3)}, "did you mean 'items'"),
    "weights alone": ({"topk_weights": np.ones((50, 3))}, "topk_weights without topk"),
    "an item outside": ({"topk": np.full((50, 3), 80, np.int32)}, "outside the catalogue"),
    "a key alone": ({"instance_users": np.ones(3, np.int32)}, "holds instance_users alone"),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_wrong_file_is_one_error(data, tmp_path, why):
    change, says = WRONG[why]
    path = tmp_path / "t.safetensors"
    kdrs.save_teacher(path, **vectors(data))
    held = load_file(path)
    change = dict(change)
    if change.get("item_ids") == "twice":
        change["item_ids"] = np.frombuffer(held["item_ids"].tobytes().replace(b"79", b"78"), np.uint8)
    if isinstance(change.get("item_ids"), str):
        change["item_ids"] = held["item_ids"].copy()
        change["item_ids"][3] = 255
    if change.get("item_ids_ends", 0) is not None and "item_ids_ends" in change:
        change["item_ids_ends"] = held["item_ids_ends"][::-1].copy()
    changed(path, **change)
    with pytest.raises(ArtefactError, match=says) as caught:
        kdrs.FileTeacher(path, kdrs.PairTask(data.train), dataset=data)
    assert caught.value.remedy


def test_wrong_words_and_no_data_set(data, tmp_path):
    path = tmp_path / "t.safetensors"
    kdrs.save_teacher(path, **vectors(data))
    with pytest.raises(ConfigError, match="the data set to join them with is not given"):
        kdrs.FileTeacher(path, kdrs.PairTask(data.train))
    for key, word in (("missing", "guess"), ("users", "all"), ("kdrs", "teacher/3")):
        kdrs.save_teacher(path, **vectors(data))
        with pytest.raises(ArtefactError, match=word):
            kdrs.FileTeacher(changed(path, {key: word}), kdrs.PairTask(data.train), dataset=data)
    kdrs.save_teacher(path, **vectors(data))
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ArtefactError):
            kdrs.FileTeacher(path, kdrs.PairTask(data.train), dataset=data)


SAVED_WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"user_ids": ["a"]}, "a teacher of nothing"),
    "users alone": ({"users": np.ones((1, 2)), "user_ids": ["a"]}, "without items|a teacher of nothing"),
    "no ids": ({"items": np.ones((1, 2))}, "items is given without item_ids"),
    "ids too few": ({"items": np.ones((2, 2)), "item_ids": ["a"]}, "items has 2 rows, item_ids 1"),
    "ids twice": ({"items": np.ones((2, 2)), "item_ids": ["a", "a"]}, "comes twice"),
    "one dimension": ({"items": np.ones(2), "item_ids": ["a", "b"]}, "two dimensions"),
    "words": ({"items": np.array([["a"]]), "item_ids": ["a"]}, "allowed: floats"),
    "scores alone": (
        {"items": np.ones((1, 2)), "item_ids": ["a"], "topk_scores": np.ones((1, 1)), "user_ids": ["b"]}, "without topk",
    ),
    "other shapes": (
        {"topk": np.zeros((1, 1), int), "topk_weights": np.ones((1, 2)), "user_ids": ["a"], "item_ids": ["a"]},
        "topk_weights is",
    ),
    "floats as lists": ({"topk": np.zeros((1, 1)), "user_ids": ["a"], "item_ids": ["a"]}, "allowed: integers"),
    "transposed": ({"items": np.ones((2, 3)), "item_ids": ["a", "b", "c"]}, "items has 2 rows, item_ids 3\n.*transposed"),
    "past float32": ({"items": np.full((1, 2), 1e60), "item_ids": ["a"]}, r"row 0 holds 1e\+60, which is past float32"),
    "scores past float32": (
        {"topk": np.zeros((1, 1), int), "topk_scores": np.full((1, 1), 1e60), "user_ids": ["a"], "item_ids": ["a"]},
        "topk_scores row 0 holds",
    ),
    "places past int32": ({"topk": np.full((1, 1), 2**32), "user_ids": ["a"], "item_ids": ["a"]}, "allowed: int32"),
    "ragged": ({"items": [[1, 2], [3]], "item_ids": ["a", "b"]}, "items: no array can be made of this list"),
}  # fmt: skip


@pytest.mark.parametrize("why", SAVED_WRONG)
def test_what_cannot_be_saved_is_said(tmp_path, why):
    given, says = SAVED_WRONG[why]
    with pytest.raises(DataError, match=says):
        kdrs.save_teacher(tmp_path / "t.safetensors", **given)
    assert not list(tmp_path.iterdir())


def test_tensors_are_saved_as_torch_holds_them(data, tmp_path):
    given = vectors(data)
    halves = {name: torch.from_numpy(given[name]).bfloat16() for name in ("users", "items")}
    halves["items"].requires_grad_()
    lists = {
        "topk": torch.tensor([[3, -1]] * data.n_users),
        "topk_scores": torch.tensor([[1.5, -np.inf]] * data.n_users),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kdrs.save_teacher(tmp_path / "t.safetensors", **{**given, **halves, **lists})
    held = load_file(tmp_path / "t.safetensors")
    for name, tensor in (halves | lists).items():
        assert np.array_equal(held[name], tensor.detach().float().numpy())
        assert held[name].dtype == (np.int32 if name == "topk" else np.float32)


def test_the_same_contents_are_the_same_bytes(data, tmp_path):
    found = set()
    for n in range(8):
        kdrs.save_teacher(tmp_path / f"{n}", **vectors(data), about={"name": "é"})
        found.add((tmp_path / f"{n}").read_bytes())
    assert len(found) == 1


# --- items alone ----------------------------------------------------------------------------------------------------


def test_users_are_the_mean_of_their_items(data, tmp_path):
    given = vectors(data)
    given.pop("users"), given.pop("user_ids")
    found = teacher_of(tmp_path, data, **given)
    users = found.factors().queries
    for user in (0, 7, 49):
        assert np.allclose(users[user], given["items"][data.train.row(user)].mean(axis=0), atol=1e-6)
    assert found.sides == ("users", "items")
    gone = int(data.train.row(7)[0])
    kept = [item for item in range(data.n_items) if item != gone]
    with pytest.warns(UserWarning, match="lacks 1 of"):
        less = teacher_of(
            tmp_path, data, items=given["items"][kept], item_ids=[data.items[i] for i in kept], missing="drop"
        )
    own = [item for item in data.train.row(7) if item != gone]
    assert np.allclose(less.factors().queries[7], given["items"][own].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("name", [name for name, cls in DISTILLERS.items() if not cls.mutual])
def test_every_method_learns_of_items_alone_with_users_of_them(data, tmp_path, name):
    given = vectors(data)
    found = teacher_of(tmp_path, data, items=given["items"], item_ids=given["item_ids"])
    assert torch.isfinite(loss_of(method_of(name, found, found.task), found.task))


WITHOUT_USERS = {
    "de": {}, "hint": {}, "htd": {}, "ftd": {}, "nkd": {}, "freqd": {}, "takd": {}, "dgkd": {}, "hyperkdma": {},
    "phr": {"enrich": "none"},
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, cls in DISTILLERS.items() if not cls.mutual])
def test_methods_on_representations_leave_users_out(data, tmp_path, name):
    given = vectors(data)
    found = teacher_of(tmp_path, data, items=given["items"], item_ids=given["item_ids"], items_alone="none")
    assert found.sides == ("items",)
    assert found.factors() is None
    if name not in WITHOUT_USERS:
        with pytest.raises(MissingKnowledge, match="item vectors alone"):
            method_of(name, found, found.task)
        return
    method = method_of(name, found, found.task, **WITHOUT_USERS[name])
    student = build(found.task, "bpr", 4, seed=1)
    method.on_epoch_start(
        Epoch(1, 0, 3), method.draw(Epoch(1, 0, 3)), kdrs.ModelTeacher(student, found.task, live=True)
    )
    batch = next(iter(found.task.draw(Epoch(1, 0, 3))))
    loss = method.loss(student(batch.queries), batch)
    loss.backward()
    assert loss > 0
    assert student.items.weight.grad.abs().sum() > 0
    assert student.users.weight.grad is None or not student.users.weight.grad.abs().sum()


def test_enrichment_needs_users(data, tmp_path):
    given = vectors(data)
    found = teacher_of(tmp_path, data, items=given["items"], item_ids=given["item_ids"], items_alone="none")
    with pytest.raises(MissingKnowledge, match="no vectors of users") as caught:
        method_of("phr", found, found.task)
    assert "enrich = none" in caught.value.remedy


def test_items_alone_from_the_command_line(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data.save("d")
    np.save("items.npy", vectors(data)["items"])
    (tmp_path / "items.json").write_text(json.dumps(list(data.items)))
    base = ("teacher", "import", "items.npy", "--from", "npy", "--item-ids", "items.json", "--data", "d")
    assert "not measured" in ok(*base, "--items-alone", "none").out
    small = ("--data", "d", "--model", "bpr", "--dim", 4, "--epochs", 1, "--device", "cpu")
    ok("distill", *small, "--teacher", "items.safetensors", "--method", "de", "--out", "run")
    ok(*base, "--out", "mean.safetensors")
    ok(
        "distill",
        *small,
        "--teacher",
        "mean.safetensors",
        "--method",
        "rrd",
        "--out",
        "other",
        "--set",
        "distill.0.pool=20",
    )
