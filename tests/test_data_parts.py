"""One table as a folder of parts."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from commands import runner
from kdrs.cli.data import app
from kdrs.data import read
from kdrs.errors import ConfigError, DataError

SPARK = Path(__file__).parent / "cases" / "parquet-folder" / "ratings.parquet"


def pairs(table):
    return [(table.user_ids[u], table.item_ids[i]) for u, i in zip(table.users, table.items, strict=True)]


def parquet(folder, name, **columns):
    folder.mkdir(exist_ok=True)
    pl.DataFrame(columns).write_parquet(folder / name)
    return folder


def text(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return folder


def test_what_spark_writes(tmp_path):
    folder = shutil.copytree(SPARK, tmp_path / "ratings.parquet")
    (folder / ".part-00000.snappy.parquet.crc").write_bytes(b"crc")
    table = read(folder)
    assert tuple(table.counts().values()) == (8, 18, 48)
    source = table.sources[0]
    assert source["file"] == "ratings.parquet"
    assert [part["file"] for part in source["parts"]] == ["part-00000.snappy.parquet", "part-00001.snappy.parquet"]
    whole = pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("part-*"))])
    whole.write_parquet(tmp_path / "one.parquet")
    assert pairs(read(tmp_path / "one.parquet")) == pairs(table)


def test_prepare_and_describe_take_a_folder(tmp_path):
    folder = shutil.copytree(SPARK, tmp_path / "ratings.parquet")
    for command in (["prepare", str(folder), "--dry-run"], ["describe", str(folder)]):
        result = runner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0
        assert "48" in result.stdout


def test_parts_come_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "d"
    for n in (10, 9, 1):
        parquet(folder, f"part.{n}.parquet", user=[1], item=[n])
    assert [item for _, item in pairs(read(folder))] == ["1", "9", "10"]


def test_empty_parts_are_no_matter(tmp_path):
    folder = parquet(tmp_path / "d", "part-0.parquet", user=[1], item=[5])
    pl.DataFrame(schema={"user": pl.Int64, "item": pl.Int64}).write_parquet(folder / "part-1.parquet")
    assert read(folder).n_rows == 1


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"user": [1], "item": ["a"]}, r"part-1.parquet: column item is String, in part-0.parquet it is Int64"),
        ({"user": [1], "thing": [2]}, r"part-1.parquet has columns user, thing, part-0.parquet has user, item"),
        ({"user": [1], "item": [2], "x": [3]}, r"part-1.parquet has columns user, item, x"),
        ({"item": [1], "user": [2]}, r"part-1.parquet has columns item, user"),
    ],
)
def test_other_columns_are_refused_by_the_name_of_the_part(tmp_path, columns, match):
    folder = parquet(tmp_path / "d", "part-0.parquet", user=[1], item=[5])
    parquet(folder, "part-1.parquet", **columns)
    with pytest.raises(DataError, match=match):
        read(folder)


def test_wrong_rows_and_damage_name_their_part(tmp_path):
    folder = parquet(tmp_path / "d", "part-0.parquet", user=[1, 2], item=["a", "b"])
    parquet(folder, "part-1.parquet", user=[3, 4], item=["c", ""])
    with pytest.raises(DataError, match=r"part-1.parquet: row 2: item: the id is empty"):
        read(folder)
    (folder / "part-1.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"part-1.parquet is no readable Parquet file"):
        read(folder)


def test_hive_partitions_are_refused(tmp_path):
    parquet(tmp_path / "d", "part-0.parquet", user=[1], item=[5])
    (tmp_path / "d" / "user=3").mkdir()
    for invoke in (
        lambda: read(tmp_path / "d"),
        lambda: runner().invoke(app, ["prepare", str(tmp_path / "d"), "--dry-run"], catch_exceptions=False),
    ):
        with pytest.raises(DataError, match=r"is a directory with partitions inside: user=3") as caught:
            invoke()
        assert "without partition columns" in caught.value.remedy


def test_unlike_files_are_refused(tmp_path):
    folder = parquet(tmp_path / "d", "part-0.parquet", user=[1], item=[5])
    text(folder, "part-1.csv", "user,item\n1,2\n")
    with pytest.raises(DataError, match=r"unlike files: part-0.parquet is Parquet, part-1.csv is text"):
        read(folder)


HEAD = "user,item,rating\n"


def test_csv_parts_with_a_header(tmp_path):
    folder = text(tmp_path / "d", "part-00000.csv", HEAD + "1,5,3\n2,6,4\n")
    text(folder, "part-00001.csv", HEAD + "3,7,1\n")
    text(folder, "part-00002.csv", "")
    text(folder, "_SUCCESS", "")
    table = read(folder)
    assert pairs(table) == [("1", "5"), ("2", "6"), ("3", "7")]
    assert table.ratings.tolist() == [3, 4, 1]
    text(folder, "part-00001.csv", HEAD + "3,7,1\n4,8,nan\n")
    with pytest.raises(DataError, match=r"part-00001.csv:3: rating is NaN: 4,8,nan"):
        read(folder)


@pytest.mark.parametrize("second", ["3,7,1\n", "user,item,stars\n3,7,1\n"])
def test_csv_parts_with_another_header(tmp_path, second):
    folder = text(tmp_path / "d", "part-0.csv", HEAD + "1,5,3\n")
    text(folder, "part-1.csv", second)
    with pytest.raises(DataError, match=r"part-1.csv:1: .*; .*part-0.csv:1 begins with user,item,rating"):
        read(folder)


def test_csv_parts_without_a_header(tmp_path):
    folder = text(tmp_path / "d", "part-0.csv", "1,5,3\n2,6,4\n")
    text(folder, "part-1.csv", "3,7,1\n4,8\n")
    with pytest.raises(DataError, match=r"without names"):
        read(folder)
    with pytest.raises(DataError, match=r"part-1.csv:2: 2 fields, 3 expected: 4,8"):
        read(folder, user=0, item=1)
    text(folder, "part-1.csv", "3,7,1\n")
    assert pairs(read(folder, user=0, item=1)) == [("1", "5"), ("2", "6"), ("3", "7")]


def test_recbole_parts(tmp_path):
    head = "user_id:token\titem_id:token\n"
    folder = text(tmp_path / "d", "part-0.inter", head + "1\t5\n")
    text(folder, "part-1.inter", head + "2\t6\n")
    assert pairs(read(folder)) == [("1", "5"), ("2", "6")]


def test_other_folders_are_no_table(tmp_path):
    folder = text(tmp_path / "d", "clicks.csv", HEAD + "1,5,3\n")
    with pytest.raises(DataError, match=r"is a directory, and no table in parts"):
        read(folder)
    lists = text(tmp_path / "l", "part-0.dat", "2 5 6\n1 7\n")
    with pytest.raises(DataError, match=r"directory of counted-lists files"):
        read(lists)
    with pytest.raises(DataError, match=r"is a directory; in parts are read"):
        read(lists, "user-lists")
    with pytest.raises(ConfigError, match=r"separator ; with .*parquet has no use"):
        read(parquet(tmp_path / "p", "part-0.parquet", user=[1], item=[5]), separator=";")
    with pytest.raises(DataError, match="directory of Parquet files, not of csv"):
        read(tmp_path / "p", "csv")


def test_ready_made_parts_stay_ready_made_parts(tmp_path):
    for part, rows in (("train", "1,2\n1,3\n2,2\n"), ("test", "1,4\n2,3\n")):
        text(tmp_path / "d", f"{part}.csv", "user,item\n" + rows)
    result = runner().invoke(app, ["prepare", str(tmp_path / "d"), "--dry-run", "--json"], catch_exceptions=False)
    assert '"kind": "given"' in result.stdout
