"""Ranked lists of other libraries, read from tables."""

from __future__ import annotations

import json

import polars as pl
import pytest

from kdrs.errors import ConfigError, DataError
from kdrs.teachers.importers.lists import read_lists

LISTS = {
    "rank": "user,item,rank\na,y,2\nb,x,1\na,x,1\n",
    "rank and score": "user_id,item_id,rank,score\na,y,2,0.5\nb,x,1,3\na,x,1,0.5\n",
    "score": "user,item,score\na,y,-1\nb,x,7\na,x,2e0\n",
    "as they stand": "user\titem\na\tx\nb\tx\na\ty\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_a_row_an_entry(tmp_path, name):
    (tmp_path / "l.csv").write_text(LISTS[name])
    found = read_lists(tmp_path / "l.csv")
    named = {user: [found.items[i] for i in row if i >= 0] for user, row in zip(found.users, found.topk, strict=True)}
    assert named == {"a": ["x", "y"], "b": ["x"]}
    assert (found.scores is not None) == ("score" in name)


def test_lists_a_row_a_user(tmp_path):
    rows = [
        {"user": 7, "items": [3, 1], "scores": [0.5, 0.25], "weights": [1.0, 0.5]},
        {"user": 9, "items": [1], "scores": [2.0], "weights": [0.0]},
    ]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pl.DataFrame(rows).write_parquet(tmp_path / "l.parquet")
    for name in ("l.jsonl", "l.parquet"):
        found = read_lists(tmp_path / name)
        assert (found.users, found.items) == (["7", "9"], ["3", "1"])
        assert found.topk.tolist() == [[0, 1], [1, -1]]
        assert found.scores.tolist() == [[0.5, 0.25], [2, 0]]
        assert found.weights.tolist() == [[1, 0.5], [0, 0]]


NAMED = "visitor,product,score\na,y,-1\nb,x,7\na,x,2\n"
COLUMNS = {
    "user and item": (NAMED, ["visitor", "product"], True),
    "the score too": (NAMED, ["visitor", "product", "score"], True),
    "a score that is called otherwise": (NAMED.replace("score", "rank"), ["visitor", "product", "rank"], True),
    "a usual name for something else": (NAMED.replace("product", "user"), ["visitor", "user"], True),
    "places": (NAMED.partition("\n")[2], ["0", "1", "2"], False),
    "places in another order": ("-1\ty\ta\n7\tx\tb\n2\tx\ta\n", ["2", "1", "0"], False),
    "two columns without names": ("a,x\nb,x\na,y\n", None, False),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_by_statement(tmp_path, name):
    text, columns, header = COLUMNS[name]
    (tmp_path / "l.csv").write_text(text)
    found = read_lists(tmp_path / "l.csv", columns, header)
    named = {user: [found.items[i] for i in row if i >= 0] for user, row in zip(found.users, found.topk, strict=True)}
    assert named == {"a": ["x", "y"], "b": ["x"]}
    assert (found.scores is not None) == (columns is not None)


def test_columns_of_lists_a_user(tmp_path):
    (tmp_path / "l.jsonl").write_text(json.dumps({"who": "a", "what": ["x", "y"], "how": [2, 1]}) + "\n")
    found = read_lists(tmp_path / "l.jsonl", ["who", "what", "how"])
    assert (found.users, found.items, found.scores.tolist()) == (["a"], ["x", "y"], [[2, 1]])
    with pytest.raises(ConfigError, match="has no header to lack"):
        read_lists(tmp_path / "l.jsonl", header=False)


@pytest.mark.parametrize(
    ("columns", "header", "kind", "says"),
    [
        (["visitor"], True, ConfigError, "two or three names"),
        (["visitor", "visitor"], True, ConfigError, "two or three names"),
        (["visitor", "product", "score", "rank"], True, ConfigError, "two or three names"),
        (["visitor", "item"], True, DataError, "no column item; columns found: visitor, product, score"),
        (["0", "3"], False, DataError, "no column 3; columns found: 0 = visitor, 1 = product, 2 = score"),
        (None, False, DataError, "3 columns without names, in row 1: 0 = visitor"),
        (None, True, DataError, "--columns USER,ITEM or USER,ITEM,SCORE; if line 1 is a row already, --no-header"),
    ],
)
def test_wrong_columns_are_one_error(tmp_path, columns, header, kind, says):
    (tmp_path / "l.csv").write_text(NAMED)
    with pytest.raises(kind) as caught:
        read_lists(tmp_path / "l.csv", columns, header)
    assert says in str(caught.value)
    assert caught.value.remedy


def test_a_header_is_asked_for_only_where_it_may_lack(tmp_path):
    (tmp_path / "l.csv").write_text("user,what\na,x\n")
    with pytest.raises(DataError, match="no column is the item") as caught:
        read_lists(tmp_path / "l.csv")
    assert "line 1" not in caught.value.remedy


WRONG_LISTS = {
    "an item twice": ("user,item\na,x\na,x\n", "'a' has item 'x' twice|a has item x twice"),
    "a rank twice": ("user,item,rank\na,x,1\na,y,1\n", "rank 1 twice"),
    "rank against score": ("user,item,rank,score\na,x,1,1\na,y,2,3\n", "ranks and scores disagree"),
    "no number": ("user,item,score\na,x,high\n", "score of row 0"),
    "NaN": ("user,item,score\na,x,nan\n", "score of row 0"),
    "negative weight": ("user,item,weight\na,x,-1\n", "weight of row 0"),
    "no item": ("user,item\na,\n", "item of row 0"),
    "no user column": ("who,item\na,x\n", "no column is the user"),
    "two scores": ("user,item,score,rating\na,x,1,2\n", "could both be the score"),
    "past float32": ("user,item,score\na,x,1\na,y,1e39\n", "score of row 1 is 1e39"),
    "weight past float32": ("user,item,weight\na,x,1e39\n", "weight of row 0 is 1e39"),
    "ragged": ("user,item\na,x\na,y,3,4\n", "l.csv:3: 4 fields, 2 expected: a,y,3,4"),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_wrong_lists_are_one_error(tmp_path, name):
    text, says = WRONG_LISTS[name]
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        read_lists(tmp_path / "l.csv")
    assert caught.value.remedy


@pytest.mark.parametrize("separator", ";|\t,")
def test_lists_of_other_separators(tmp_path, separator):
    rows = ["user,item,score", "a,x,1", "a,y,2", "b,x,1"]
    (tmp_path / "l.csv").write_text("\n".join(rows).replace(",", separator) + "\n")
    found = read_lists(tmp_path / "l.csv")
    assert (found.users, found.items, found.topk.tolist()) == (["a", "b"], ["y", "x"], [[0, 1], [1, -1]])
    bare = read_lists(tmp_path / "l.csv", [0, 1], header=False)  # places may be numbers
    assert bare.users == ["user", "a", "b"]


def test_lists_of_categories(tmp_path):
    frame = pl.DataFrame(
        {"user": ["a", "a"], "item": ["x", "y"], "score": ["2", "1"]}, schema_overrides={"item": pl.Categorical}
    )
    frame.with_columns(pl.col("user", "score").cast(pl.Categorical)).write_parquet(tmp_path / "l.parquet")
    found = read_lists(tmp_path / "l.parquet")
    assert (found.users, found.items, found.scores.tolist()) == (["a"], ["x", "y"], [[2, 1]])


def test_json_lines_are_known_by_what_is_in_them(tmp_path):
    text = json.dumps({"user": "a", "items": ["x", "y"]}) + "\n"
    (tmp_path / "l.json").write_text(text)
    found = read_lists(tmp_path / "l.json")
    assert (found.users, found.items) == (["a"], ["x", "y"])
    with pytest.raises(ConfigError, match="has no header to lack"):
        read_lists(tmp_path / "l.json", header=False)
    (tmp_path / "l.json").write_text(f"[{text}]")
    with pytest.raises(DataError, match="is one JSON document"):
        read_lists(tmp_path / "l.json")
