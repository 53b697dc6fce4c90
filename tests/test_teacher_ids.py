"""Ids of a teacher's rows: lists, maps of rows, and what has no order."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

import kdrs
from conftest import toy_dataset
from kdrs.errors import DataError
from kdrs.teachers.ids import texts
from kdrs.teachers.importers.ids import read_ids

IDS = ["ben", "7", "carla", "anna"]
ROWS = {"carla": 2, "anna": 3, "7": 1, "ben": 0}
"""The same, as a program keeps it."""

MAPS: dict[str, Any] = {
    "rows of ids": ROWS,
    "NumPy's rows of ids": {name: np.int64(row) for name, row in ROWS.items()},
    "ids of rows": {row: name for name, row in ROWS.items()},
    "the keys of a map": dict.fromkeys(IDS).keys(),
    "a generator": (one for one in IDS),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_read_by_their_rows(name):
    assert texts(MAPS[name], "user_ids") == IDS


def test_integers_are_ids_or_rows():
    assert texts({30: 1, 10: 0, 20: 2}, "item_ids") == ["10", "30", "20"]
    assert texts({1: 30, 0: 10, 2: 20}, "item_ids") == ["10", "30", "20"]
    assert texts({0: 1, 1: 0, 2: 2}, "item_ids") == ["1", "0", "2"]  # both ways the same
    assert texts({"1": 0, "2": 1, "0": 2}, "item_ids") == ["1", "2", "0"]  # text is no row
    with pytest.raises(DataError, match=r"may be \{id: row\} or \{row: id\}") as caught:
        texts({0: 1, 1: 2, 2: 0}, "item_ids")
    assert "give a list" in caught.value.remedy


WRONG: dict[str, tuple[Any, str]] = {
    "rows from 1": ({"a": 1, "b": 2}, "rows of 2 ids run from 1 to 2: count from 0"),
    "rows of another file": ({"a": 4, "b": 9}, "run from 4 to 9"),
    "a row below 0": ({"a": -1, "b": 0}, "run from -1 to 0"),
    "a row twice": ({"a": 0, "b": 1, "c": 1}, "row 1 is that of b and of c"),
    "ids of rows from 1": ({1: "a", 2: "b"}, "run from 1 to 2"),
    "no rows": ({"a": "x", "b": "y"}, "names no rows: its first entry is a: x"),
    "lists in a map": ({"users": ["a", "b"]}, "names no rows"),
    "rows that are no numbers": ({"a": True, "b": False}, "names no rows"),
    "rows of floats": ({"a": 0.0, "b": 1.0}, "names no rows"),
    "a set": ({"a", "b"}, "is a set, which has no order"),
    "a frozen set": (frozenset("ab"), "is a frozenset, which has no order"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_names_no_rows_is_one_error(name):
    given, says = WRONG[name]
    with pytest.raises(DataError, match=says) as caught:
        texts(given, "user_ids")
    assert caught.value.remedy


def test_maps_in_files(tmp_path):
    back = {str(row): name for name, row in ROWS.items()}
    for name, held in (("rows", ROWS), ("ids", back), ("list", IDS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(held))
        assert read_ids(tmp_path / f"{name}.json", "user", rows=True) == IDS
    for name, held in (("both", {"0": 1, "1": 2, "2": 0}), ("one", {"1": 1, "2": 2})):
        (tmp_path / f"{name}.json").write_text(json.dumps(held))
        with pytest.raises(DataError, match=f"{name}.json.*(may be|count from 0)"):
            read_ids(tmp_path / f"{name}.json", "user", rows=True)


@pytest.mark.parametrize("column", ["row", "Index", "idx"])
def test_a_table_says_which_row_an_id_names(tmp_path, column):
    frame = pl.DataFrame({column: list(ROWS.values()), "user_id": list(ROWS)})
    frame.write_csv(tmp_path / "ids.csv")
    frame.write_parquet(tmp_path / "ids.parquet")
    for file in ("ids.csv", "ids.parquet"):
        assert read_ids(tmp_path / file, "user", rows=True) == IDS
        assert read_ids(tmp_path / file, "user") == list(ROWS)  # of those who are asked for
    frame.with_columns(pl.col(column) + 1).write_csv(tmp_path / "one.csv")
    if column == "row":
        with pytest.raises(DataError, match="count from 0"):
            read_ids(tmp_path / "one.csv", "user", rows=True)
    else:  # what is left of a longer table has such a column of its own
        assert read_ids(tmp_path / "one.csv", "user", rows=True) == list(ROWS)
    frame.with_columns(pl.col(column) + 0.5).write_parquet(tmp_path / "other.parquet")
    frame.with_columns(pl.lit("x").alias(column)).write_csv(tmp_path / "other.csv")
    for file in ("other.csv", "other.parquet"):
        assert read_ids(tmp_path / file, "user", rows=True) == list(ROWS)
    frame.with_columns(pl.lit(0).alias("rows")).write_csv(tmp_path / "two.csv")
    with pytest.raises(DataError, match="could both be the rows"):
        read_ids(tmp_path / "two.csv", "user", rows=True)


def test_ids_in_a_table_without_a_header(tmp_path):
    data = toy_dataset()
    np.save(tmp_path / "items.npy", np.ones((data.n_items, 3)))
    (tmp_path / "ids.csv").write_text("\n".join(data.items))
    out = tmp_path / "t.safetensors"
    with pytest.raises(DataError, match=r"79 item ids for 80 rows of items\n.*no header"):
        kdrs.import_teacher(tmp_path / "items.npy", "npy", data, out, item_ids=tmp_path / "ids.csv")


def test_a_teacher_of_maps_is_that_of_lists(tmp_path):
    data, rng = toy_dataset(), np.random.default_rng(0)
    sides = {"users": list(data.users), "items": list(data.items)}
    arrays = {side: rng.standard_normal((len(ids), 3)).astype(np.float32) for side, ids in sides.items()}
    maps = {}
    for side, ids in sides.items():
        order = rng.permutation(len(ids))
        maps[side] = {ids[row]: int(row) for row in order}
        np.save(tmp_path / f"{side}.npy", arrays[side])
        (tmp_path / f"{side}.json").write_text(json.dumps(maps[side]))
    made = [tmp_path / f"{name}.safetensors" for name in ("lists", "maps")]
    for file, ids in zip(made, (sides, maps), strict=True):
        kdrs.save_teacher(file, **arrays, user_ids=ids["users"], item_ids=ids["items"])
    assert made[0].read_bytes() == made[1].read_bytes()
    for n, given in enumerate((maps, {side: tmp_path / f"{side}.json" for side in sides})):
        file = tmp_path / f"imported-{n}.safetensors"
        kdrs.import_teacher(
            tmp_path / "items.npy",
            "npy",
            data,
            file,
            users=tmp_path / "users.npy",
            user_ids=given["users"],
            item_ids=given["items"],
        )
        found = kdrs.FileTeacher(file, kdrs.PairTask(data.train), dataset=data).factors()
        assert np.array_equal(found.queries, arrays["users"])
        assert np.array_equal(found.items, arrays["items"])
