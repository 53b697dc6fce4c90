"""JSON and TOML from outside, and the head of a prepared data set: every wrong value is an error with its key."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from kdrs import _documents
from kdrs._documents import DocumentError, parse_json, parse_toml, write_json
from kdrs.config import assign, read_run_file
from kdrs.data import Dataset, Recipe, Table, prepare
from kdrs.data._stored import canonical
from kdrs.errors import ConfigError, DataError, KdrsError, MachineError

DEEP = 200_000
BAD_JSON = {
    "cut": (b'{"a": ', "Expecting value"),
    "not UTF-8": (b'"\xff"', "byte 0xff at offset 1"),
    "NaN": (b"[NaN]", "it holds NaN"),
    "infinity": (b"[-Infinity]", "it holds -Infinity"),
    "past float64": (b"[1e999]", "it holds 1e999"),
    "huge integer": (b"1" * 5001, "an integer of 5,001 digits"),
    "integer past 64 bits": (b"[1" + b"0" * 30 + b"]", "an integer of 31 digits"),
    "key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "key c comes twice"),
    "deep": (b"[" * DEEP + b"]" * DEEP, "nested too deeply"),
    "half a pair": (b'["\\ud800"]', "a lone surrogate"),
    "empty": (b"", "Expecting value"),
    "mark": (b"\xef\xbb\xbf{}", "BOM"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_json_that_is_none(tmp_path, case):
    data, words = BAD_JSON[case]
    with pytest.raises(DocumentError, match=words):
        parse_json(data)
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DataError, match=rf"a.json is damaged: .*{words}"):
        _documents.read_json(tmp_path / "a.json", "make it again", DataError)


def test_what_is_written_is_read():
    value = {"a": [1, -0.0, 0.5, "é\u2028😀", None, True, 2**64 - 1], "b": {}}
    assert parse_json(write_json(value)) == value
    assert b"-0.0" not in write_json(value)
    with pytest.raises(ValueError, match="JSON"):
        write_json({"a": float("nan")})


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(alphabet='{}[]":,\\u0dDe+-1NaI ', max_size=60).map(str.encode)))
def test_any_bytes_are_values_or_one_error(data):
    for parse in (parse_json, lambda data: parse_toml(data.decode("latin1"))):
        try:
            parse(data)
        except DocumentError as error:
            assert str(error).isprintable()  # noqa: PT017


@pytest.mark.parametrize(
    ("kind", "words"),
    [("missing", "No such file"), ("folder", "Is a directory"), ("pipe", "is no file"), ("large", "allowed")],
)
def test_only_regular_files_of_a_stated_size_are_read(tmp_path, monkeypatch, kind, words):
    path = tmp_path / "a.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "large":
        path.touch()
        os.truncate(path, 2**40)  # takes no space on the disk, and would take a terabyte of memory
    with pytest.raises(DataError, match=words):
        _documents.read_json(path, "make it again", DataError)
    with pytest.raises(ConfigError, match=words):
        _documents.read_toml(path, "make it again")


def test_toml_that_is_none(tmp_path):
    for text, words in (
        (f"a = {'1' * 5001}", "Exceeds the limit|digits"),
        ("a = " + "[" * DEEP + "]" * DEEP, "nested too deeply"),
        ("a = 1\na = 2", "overwrite|Cannot"),
    ):
        with pytest.raises(DocumentError, match=words):
            parse_toml(text)
        (tmp_path / "a.toml").write_text(text)
        with pytest.raises(ConfigError, match=rf"a.toml is no TOML: .*({words})"):
            read_run_file(tmp_path / "a.toml")


@pytest.mark.parametrize("text", ["1" * 5001, "[" * DEEP + "]" * DEEP, "{a=" * DEEP])
def test_settings_that_no_parser_takes(text):
    with pytest.raises(ConfigError, match=r"--set train.epochs is .*(Exceeds the limit|nested too deeply)"):
        assign({}, f"train.epochs={text}")


# The head of a data set


@pytest.fixture
def place(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    table = Table.from_pairs(rng.integers(0, 9, 90), rng.integers(0, 25, 90))
    return prepare(table, Recipe(candidates=5), name="toy").save(tmp_path / "d")


def vouched(place: Path, head: dict[str, Any]) -> None:
    """Writes a head whose checksum is right."""
    head = {key: value for key, value in head.items() if key != "checksum"}
    head["checksum"] = hashlib.sha256(canonical(head)).hexdigest()
    (place / "dataset.json").write_text(json.dumps(head))


def keys_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in plain values."""
    found = [path] if path else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        found += keys_of(entry, (*path, key))
    return found


FREE = ("options", "sources", "name", "order", "split", "steps")
"""Values that may be others without a contradiction; their types are checked nonetheless."""


def test_every_value_of_a_head_of_another_type_is_refused_or_harmless(place):
    head = json.loads((place / "dataset.json").read_text())
    for path in keys_of(head):
        for value in (None, True, -1, 2**70, 0.5, "x", [], {}, ["x"], {"x": 1}):
            changed = copy.deepcopy(head)
            spot = changed
            for key in path[:-1]:
                spot = spot[key]
            if spot[path[-1]] == value and type(spot[path[-1]]) is type(value):
                continue
            spot[path[-1]] = value
            vouched(place, changed)
            try:
                Dataset.load(place).describe()
            except DataError as error:
                assert error.remedy, path  # noqa: PT017
            else:
                assert path[0] in (*FREE, "checksum"), (path, value)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("fingerprint",), True, "fingerprint is wrong: Input should be a valid string"),
        (("files",), [], "files is wrong"),
        (("files", "users.json"), {"sha256": "0" * 64}, r"files.users.json.bytes is wrong: Field required"),
        (("sources",), None, "sources is wrong"),
        (("steps", 1, "after", "users"), None, "steps.1.after.users is wrong"),
        (("split", "kind"), 5, "split.kind is wrong"),
        (("counts", "users"), 8, "digests|counts|bytes|users"),
        (("digests", "users"), "0" * 64, "digests.users and files.users.json.sha256 differ"),
        (("extra",), 1, "extra is wrong: Extra inputs are not permitted"),
        (("candidates",), 4, r"interactions.safetensors has .* by the counts it is|says"),
        (("order",), None, "by the counts|belongs to no data set"),
        (("counts", "train"), 2**40, "by the counts it is"),
    ],
)
def test_heads_of_wrong_types_name_the_key(place, path, value, words):
    head = json.loads((place / "dataset.json").read_text())
    spot = head
    for key in path[:-1]:
        spot = spot[key]
    spot[path[-1]] = value
    vouched(place, head)
    with pytest.raises(DataError, match=words):
        Dataset.load(place)


@pytest.mark.parametrize("missing", ["checksum", "files", "fingerprint", "digests", "interactions.safetensors"])
def test_what_vouches_may_not_be_missing(place, missing):
    head = json.loads((place / "dataset.json").read_text())
    if missing == "checksum":
        del head["checksum"]
        (place / "dataset.json").write_text(json.dumps(head))
    else:
        del (head["files"] if missing.endswith("safetensors") else head)[missing]
        vouched(place, head)
    with pytest.raises(DataError, match=missing):
        Dataset.load(place)


def rewritten(place: Path, arrays: dict[str, Any]) -> None:
    """Writes arrays, with sizes and digests in the head made right."""
    content = save(arrays)
    (place / "interactions.safetensors").write_bytes(content)
    head = json.loads((place / "dataset.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    head["files"]["interactions.safetensors"] = {"bytes": len(content), "sha256": digest}
    vouched(place, head)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("train.indptr", lambda a: a.astype(np.float64), "train.indptr is"),
        ("train.indices", lambda a: a.astype(np.int64), "train.indices is|by the counts"),
        ("train.indices", lambda a: a.astype(np.float32), "train.indices is"),
        ("train.indices", lambda a: a[::-1].copy(), "ascend strictly|no reordering"),
        ("train.indices", lambda a: a + 25, "item ids run from"),
        ("valid.indptr", lambda a: a[::-1].copy(), "indptr does not describe"),
        ("train_order", lambda a: a * 0, "no reordering"),
        ("train_order", lambda a: a[:-1], "by the counts|train_order is"),
        ("candidates", lambda a: a * 0, "holds an item twice"),
        ("candidates", lambda a: a + 100, "holds an item outside"),
        ("candidates", lambda a: a.T.copy(), "candidates is"),
        ("test.indices", lambda a: (a + 1) % 25, "fingerprint|candidate|own items"),
        ("other", lambda _: np.zeros(1, np.int32), "other, which belongs to no data set"),
        ("train.indptr", lambda _: None, "by the counts|train.indptr is missing"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_though_their_digests_are_right(place, name, change, words):
    arrays = load_file(place / "interactions.safetensors")
    changed = change(arrays.get(name))
    if changed is None:
        del arrays[name]
    else:
        arrays[name] = changed
    rewritten(place, arrays)
    with pytest.raises(DataError, match=words):
        Dataset.load(place)


def test_a_size_that_is_announced_takes_no_memory(place):
    head = json.loads((place / "dataset.json").read_text())
    head["counts"]["train"] = 2**38
    head["files"]["interactions.safetensors"]["bytes"] += 2 * 4 * (2**38 - 70)
    vouched(place, head)
    os.truncate(place / "interactions.safetensors", head["files"]["interactions.safetensors"]["bytes"])
    with pytest.raises(KdrsError, match=r"by the counts|GB of memory") as caught:
        Dataset.load(place)
    assert isinstance(caught.value, (DataError, MachineError))


def test_damaged_ids_with_right_digests(place):
    head = json.loads((place / "dataset.json").read_text())
    for content, words in (
        (b"{}", "a JSON dict"),
        (b'["a"]', "1 ids"),
        (b'["a", "a"]', "comes twice"),
        (b"[NaN]", "NaN"),
    ):
        changed = copy.deepcopy(head)
        (place / "users.json").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        changed["files"]["users.json"] = {"bytes": len(content), "sha256": digest}
        changed["digests"]["users"] = digest
        vouched(place, changed)
        with pytest.raises(DataError, match=words):
            Dataset.load(place)
