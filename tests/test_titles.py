"""Titles of items in the forms that catalogues come in."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from kdrs.data import Ids
from kdrs.data.titles import read_titles
from kdrs.errors import DataError

IDS = Ids(["1", "2", "9"], "item")
FORMS = {
    "movies.csv": 'movieId,title,genres\n1,"Gold, The (1995)",A|B\n2,Iron,C\n',
    "semicolons.csv": "id;name\n1;Gold, The (1995)\n2;Iron\n",
    "columns the other way round.tsv": "title\tyear\titem_id\nGold, The (1995)\t1\t1\nIron\t2\t2\n",
    "no names.tsv": "1\tGold, The (1995)\n2\tIron\n",
    "u.item": "1|Gold, The (1995)|01-Jan-1995||0|1\n2|Iron|01-Jan-1995||1|0\n",
    "movies.dat": "1::Gold, The (1995)::A|B\n2::Iron::C\n",
    "ml.item": "item_id:token\tmovie_title:token_seq\tclass:token_seq\n1\tGold, The (1995)\tA\n2\tIron\tB\n",
    "an id twice.csv": 'id,title\n1,"Gold, The (1995)"\n2,Iron\n2,Steel\n',
    "blanks.csv": 'id,title\n 1 ," Gold, The (1995) "\n2,Iron\n9,  \n',
    "object.json": '{"1": "Gold, The (1995)", "2": "Iron", "9": null}',
    "objects.json": '[{"year": 1, "title": "Gold, The (1995)", "item_id": 1}, {"item_id": 2, "title": "Iron"}]',
    "pairs.json": '[["1", "Gold, The (1995)"], ["2", "Iron"], ["elsewhere", "x"]]',
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name], "utf-8")
    found = read_titles(tmp_path / name, IDS)
    assert found.titles == ["Gold, The (1995)", "Iron", None]
    assert (found.n_known, found.source, found[1]) == (2, name, "Iron")


@pytest.mark.parametrize("columns", [{"title": ["a", "b"], "id": [1, 2]}, {"x": ["1", "2"], "y": ["a", "b"]}])
def test_parquet(tmp_path, columns):
    pl.DataFrame(columns).write_parquet(tmp_path / "t.parquet")
    assert read_titles(tmp_path / "t.parquet", IDS).titles == ["a", "b", None]


WRONG = {
    "": "is empty",
    "id,title\n": "has no title of an item of the data set: it has no rows",
    "id,title\n77,x\n": "the first is 77, the data set's first is 1",
    "id\n1\n": "no separator parts the first lines",
    "id,title\n1,a\n2,b, c\n": "put titles that hold the separator in quotes",
    "id,title\n" + "1,a\n" * 30 + "2,b, c\n": "put titles that hold the separator in quotes",
    '{"1": {"title": "x"}}': "entry 0 is ('1', {'title': 'x'}), no id and title",
    "[1, 2]": "entry 0 is 1, no id and title",
    '[{"id": 1}]': "has one column",
    '{"1": "x"}\n{"2": "y"}': "is no JSON",
    "{": "is no JSON",
    "PAR1 and nothing": "cannot be read",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_read_is_one_error(tmp_path, text):
    (tmp_path / "t").write_text(text)
    with pytest.raises(DataError) as found:
        read_titles(tmp_path / "t", IDS)
    assert WRONG[text] in str(found.value)
    assert found.value.remedy


def test_other_encodings_are_told_with_the_way_out(tmp_path):
    (tmp_path / "u.item").write_bytes("1|Café|x\n".encode("latin1"))
    with pytest.raises(DataError, match="iconv -f LATIN1 -t UTF-8"):
        read_titles(tmp_path / "u.item", IDS)
    with pytest.raises(DataError, match="cannot read"):
        read_titles(tmp_path / "nowhere", IDS)


def test_many_items_take_one_pass(tmp_path):
    """No loop over rows: titles of 200,000 items."""
    ids = Ids(map(str, range(200_000)), "item")
    rows = "".join(f"{at}\tTitle {at}\n" for at in range(199_999, -1, -1))
    (tmp_path / "t.tsv").write_text(rows)
    assert read_titles(Path(tmp_path / "t.tsv"), ids)[123_456] == "Title 123456"
    (tmp_path / "t.json").write_text(json.dumps({str(at): f"Title {at}" for at in range(10)}))
    assert read_titles(tmp_path / "t.json", ids).n_known == 10
