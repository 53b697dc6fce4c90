"""Columns: what is certain is read, what is not is asked for, and no option is without effect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse

from commands import runner
from kdrs.cli.data import app
from kdrs.data import Dataset, Options, Recipe, from_frame, prepare, read
from kdrs.data._options import READS
from kdrs.errors import ConfigError, DataError


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def pairs(table):
    return [(table.user_ids[u], table.item_ids[i]) for u, i in zip(table.users, table.items, strict=True)]


CHECKINS = "0\t2010-10-10T23:53:27Z\t32.28\t-99.28\t22814\n1\t2010-10-11T18:39:27Z\t32.29\t-99.29\t22819\n"
CLICKS = "1,2014-04-07T10:51:00.000Z,105,0\n2,2014-04-07T10:51:01.001Z,119,0\n"


# Without a header


@pytest.mark.parametrize(
    ("name", "content", "shown"),
    [
        ("checkins.tsv", CHECKINS, r"1 = 2010-10-10T23:53:27Z.* 4 = 22814"),
        ("clicks.csv", CLICKS, r"0 = 1, 1 = 2014-04-07T10:51:00.000Z, 2 = 105, 3 = 0"),
        ("three.csv", "1,5,3\n2,5,4\n", r"0 = 1, 1 = 5, 2 = 3"),
        ("two.csv", "1,2014-04-07T10:51:00\n2,2014-04-08T10:51:00\n", r"1 = 2014-04-07"),
        ("blanks.txt", "u1 5 3\nu2 6 4\n", r"0 = u1, 1 = 5, 2 = 3"),
    ],
)
def test_columns_without_names_are_asked_for(tmp_path, name, content, shown):
    with pytest.raises(DataError, match=shown) as caught:
        read(write(tmp_path, name, content))
    assert caught.value.exit_code == 3
    assert "--no-header --user 0 --item 1" in caught.value.remedy


def test_the_named_flags_read_the_file(tmp_path):
    table = read(write(tmp_path, "c.tsv", CHECKINS), header=False, user=0, item="4", timestamp=1)
    assert pairs(table) == [("0", "22814"), ("1", "22819")]
    assert table.times[0] == 1286754807000000
    assert table.sources[0]["columns"] == {"user": 0, "item": 4, "timestamp": 1}
    assert table.ratings is None


def test_one_stated_column_of_many_is_not_enough(tmp_path):
    with pytest.raises(DataError, match="which column is the item"):
        read(write(tmp_path, "c.tsv", CHECKINS), header=False, user=0)


def test_of_two_columns_the_other_one_is_the_other_role(tmp_path):
    path = write(tmp_path, "a.csv", "1,9\n2,8\n")
    assert pairs(read(path)) == [("1", "9"), ("2", "8")]
    assert pairs(read(path, user=1)) == [("9", "1"), ("8", "2")]


def test_arrays_of_more_than_two_columns_are_asked_for(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 881250949, 7], [2, 881250950, 8]]))
    with pytest.raises(DataError, match=r"0 = 1, 1 = 881250949, 2 = 7") as caught:
        read(tmp_path / "a.npy")
    assert "--user 0 --item 1" in caught.value.remedy
    assert "header" not in caught.value.remedy
    assert pairs(read(tmp_path / "a.npy", user=0, item=2, timestamp=1)) == [("1", "7"), ("2", "8")]


@pytest.mark.parametrize("place", [-1, 5, "-1", "5", "²"])
def test_places_outside_the_file_are_refused(tmp_path, place):
    with pytest.raises(DataError, match="no column"):
        read(write(tmp_path, "c.tsv", CHECKINS), header=False, user=0, item=place)


# With a header


@pytest.mark.parametrize(
    ("header", "role"),
    [
        ("user,item,item", "item"),
        ("user_id,uid,item", "user"),
        ("user,Item, item", "item"),
        ("user,item,rating,rating", "rating"),
        ("user,item,rating,score", "rating"),
        ("user,item,timestamp,date", "timestamp"),
        ("user,asin,parent_asin", "item"),
    ],
)
def test_a_role_that_several_columns_may_have_is_asked_for(tmp_path, header, role):
    n = header.count(",") + 1
    path = write(tmp_path, "a.csv", f"{header}\n" + ",".join("1" * n) + "\n")
    with pytest.raises(DataError, match=f"several columns could be the {role}: .*columns found: ") as caught:
        read(path)
    assert f"--{role} " in caught.value.remedy
    assert "the first row holds" in caught.value.remedy
    places = [place for place in range(n) if f"({place})" in caught.value.cause]
    assert len(places) == 2
    for place in places:
        assert read(path, header=True, **{role: place if role != "timestamp" else "none"}).n_rows == 1


def test_a_stated_name_that_comes_twice_is_asked_for(tmp_path):
    path = write(tmp_path, "a.csv", "who,what,what\n1,2,3\n")
    with pytest.raises(DataError, match=r"column what comes 2 times") as caught:
        read(path, user="who", item="what")
    assert "--item 1" in caught.value.remedy
    assert pairs(read(path, user="who", item=2, header=True)) == [("1", "3")]


def test_unrelated_columns_may_share_a_name(tmp_path):
    assert read(write(tmp_path, "a.csv", "user,item,x,x\n1,2,3,4\n")).n_rows == 1


def test_a_line_of_names_and_numbers_is_asked_about(tmp_path):
    path = write(tmp_path, "a.csv", "user,item,0\n1,2,3\n")
    with pytest.raises(DataError, match="cannot tell whether this line names the columns"):
        read(path)
    assert read(path, header=True).n_rows == 1


def test_none_takes_no_column(tmp_path):
    path = write(tmp_path, "a.csv", "user,item,rating,time\n1,2,bad,soon\n")
    table = read(path, rating="none", timestamp="none")
    assert table.ratings is None
    assert table.times is None
    with pytest.raises(ConfigError, match="user column none"):
        read(path, user="none")


def test_two_separators_that_fit_are_asked_about(tmp_path):
    path = write(tmp_path, "a.csv", "7;3;1,5\n8;3;2,5\n")
    with pytest.raises(DataError, match=r"',' and ';' could each be the separator"):
        read(path)
    named = write(tmp_path, "b.csv", "user;item;what, how\n7;3;a, b\n")
    assert pairs(read(named)) == [("7", "3")]


def test_quotes_around_fields_between_tabs_are_asked_about(tmp_path):
    path = write(tmp_path, "a.tsv", '"user"\t"item"\n"1"\t"2"\n')
    with pytest.raises(DataError, match=r'fields stand in quotes \("user"\)') as caught:
        read(path)
    assert "--quotes" in caught.value.remedy
    assert pairs(read(path, quotes=True)) == [("1", "2")]
    assert pairs(read(path, quotes=False, header=True, user=0, item=1)) == [('"1"', '"2"')]


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.csv", "uid,iid,stars\n1,2,3\n", {"user": "uid", "item": "iid", "rating": "stars"}),
        (
            "a.inter",
            "user_id:token\titem_id:token\trating:float\n1\t2\t3\n",
            {"user": "user_id", "item": "item_id", "rating": "rating"},
        ),
        ("u.data", "1\t5\t3\t881250949\n", {"user": 0, "item": 1, "rating": 2, "timestamp": 3}),
        ("users.dat", "1 5\n", {}),
    ],
)
def test_what_was_read_is_recorded(tmp_path, name, content, columns):
    table = read(write(tmp_path, name, content))
    assert table.sources[0]["columns"] == columns
    assert table.sources[0]["form"] == table.options["format"]


def test_the_data_set_records_the_columns(tmp_path):
    rows = "".join(f"{u},{i},{1300000000 + i}\n" for u in range(4) for i in range(6))
    path = write(tmp_path, "a.csv", "visitor,product,when\n" + rows)
    data = prepare(path, Recipe(Options(user="visitor", item="product", timestamp="when"), split="last-n"))
    data.save(tmp_path / "d")
    (source,) = json.loads((tmp_path / "d" / "dataset.json").read_text())["sources"]
    assert source["columns"] == {"user": "visitor", "item": "product", "timestamp": "when"}
    assert (source["form"], source["times"]) == ("csv", "s")
    assert Dataset.load(tmp_path / "d").sources[0]["columns"] == source["columns"]


# Forms that look alike


def test_movielens_is_known_by_its_values_too(tmp_path):
    assert read(write(tmp_path, "ratings.dat", "1::5::3.5::881250949\n")).options["format"] == "movielens"
    assert read(write(tmp_path, "u1.base", "1\t5\t3\t881250949\n")).options["format"] == "movielens"
    with pytest.raises(DataError, match="without names"):  # as users.dat of MovieLens: gender, age, occupation
        read(write(tmp_path, "people.dat", "1::3::1::10\n2::3::4::16\n"))
    with pytest.raises(DataError, match="without names"):
        read(write(tmp_path, "other.tsv", "1\t5\t3\t881250949\n"))


def test_quoted_movielens(tmp_path):
    path = write(tmp_path, "ratings.csv", '"userId","movieId","rating","timestamp"\n"1","5",3.5,881250949\n')
    assert pairs(read(path)) == [("1", "5")]


@pytest.mark.parametrize("content", ["1 5 3 9\n2 7 4 9\n", "7 3 1 2\n", "1 5 7 8 9\n1 6 7 8 9\n"])
def test_lines_of_equal_length_are_no_certain_lists(tmp_path, content):
    path = write(tmp_path, "a.txt", content)
    with pytest.raises(DataError, match="could hold a pair on each line or a list of items"):
        read(path)
    assert read(path, "user-lists").n_rows


def test_an_item_twice_in_a_counted_line(tmp_path):
    path = write(tmp_path, "users.dat", "2 5 6\n3 7 8 7\n")
    with pytest.raises(DataError, match=r"users.dat:2: item 7 comes twice: 3 7 8 7"):
        read(path)
    lines = [f"2 {n} {n + 1}" for n in range(300)]
    lines[7] = "2 9 9"
    table = read(write(tmp_path, "users.dat", "\n".join(lines)), on_bad_line="skip")
    assert table.n_rows == 598
    assert "7" not in table.user_ids


def test_a_wrong_count_far_down_is_found(tmp_path):
    lines = [f"1 {n}" for n in range(500)] + ["2 7"] + ["1 3"] * 20
    with pytest.raises(DataError, match=r"users.dat:501: 99.8% of the lines begin with the count"):
        read(write(tmp_path, "users.dat", "\n".join(lines)))


# Blanks


def test_strip_holds_for_names_and_numbers(tmp_path):
    path = write(tmp_path, "a.csv", "UID, IID, RATING, TIMESTAMP\n1, 105, 5, 1300000001\n2, 106, 4, 1300000002\n")
    for options in ({"strip": True}, {"strip_ids": True}):
        table = read(path, **options)
        assert pairs(table) == [("1", "105"), ("2", "106")]
        assert table.ratings.tolist() == [5, 4]
        assert table.times.tolist() == [1300000001000000, 1300000002000000]
    assert pairs(read(path, strip=True, item="IID")) == [("1", "105"), ("2", "106")]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("user,item,rating\na,b, 5\n", r"a.csv:2: rating has blanks around it \(--strip takes them off\)"),
        (
            "user,item,time\na,b, 1300000001\n",
            r"blanks around the timestamps: ' 1300000001'\ntake them off with --strip",
        ),
        ("user,item,date\na,b, 2012-04-05\n", r"blanks around the timestamps|--strip"),
        ("user, item\na, b\n", r"blanks around the id \(--strip-ids"),
    ],
)
def test_blanks_are_named_and_the_remedy_works(tmp_path, content, match):
    path = write(tmp_path, "a.csv", content)
    with pytest.raises(DataError, match=match):
        read(path)
    assert pairs(read(path, strip=True)) == [("a", "b")]


def test_a_stated_name_with_blanks_around_it(tmp_path):
    path = write(tmp_path, "a.csv", "who, what\na,b\n")
    with pytest.raises(DataError, match=r"no column what .*\nthere are blanks around the name: --strip"):
        read(path, user="who", item="what")
    assert pairs(read(path, user="who", item="what", strip=True)) == [("a", "b")]


# Every option has an effect or is refused

STATED = {
    "user": "zzz",
    "item": "zzz",
    "rating": "none",
    "timestamp": "none",
    "separator": "@",
    "header": False,
    "quotes": None,  # by form
    "on_bad_line": "skip",
    "strip": True,
    "strip_ids": True,
    "float_ids": "exact",
    "time_unit": "order",
    "time_format": "%Y%m%d",
    "keep_counts": True,
    "zeros": "keep",
}
NBSP = "\u00a0"


def rows_for(option):
    """Rows that are read in another way where the option has its effect."""
    rows = [[f"u{n}", f"i{n % 7}", "3", str(881250949 + n)] for n in range(300)]
    if option == "on_bad_line":
        rows[5][2] = "nan"
    if option == "zeros":
        rows[5][2] = "0"
    if option in ("strip", "strip_ids"):
        rows[5][0] = rows[5][1] = f"{NBSP}a{NBSP}"
    if option == "quotes":
        rows[5][0] = '"q"'
    if option == "float_ids":
        for n, row in enumerate(rows):
            row[:2] = [f"{n}.0", f"{n % 7}.0"]
    if option == "time_format":
        for n, row in enumerate(rows):
            row[3] = f"201204{n % 30 + 1:02}"
    return rows


def made(form, folder, option):
    """A file (or frame) of a form."""
    rows = rows_for(option)
    names = ["user", "item", "rating", "timestamp"]
    lines = {"csv": ",", "tsv": "\t", "inter": "\t"}
    if form in lines:
        kinds = [":token", ":token", ":float", ":token"] if form == "inter" else [""] * 4
        head = lines[form].join(name + kind for name, kind in zip(names, kinds, strict=True))
        return write(folder, f"a.{form}", "\n".join([head, *(lines[form].join(row) for row in rows)]))
    if form == "movielens":
        return write(folder, "ratings.csv", "\n".join(["userId,movieId,rating,timestamp", *map(",".join, rows)]))
    if form == "counted-lists":
        lines = ["2 5 5" if option == "on_bad_line" and n == 5 else f"2 {row[1]} 900" for n, row in enumerate(rows)]
        return write(folder, "a.dat", "\n".join(lines))
    if form == "user-lists":
        lines = ["" if option == "on_bad_line" and n == 5 else f"{row[0]} {row[1]}" for n, row in enumerate(rows)]
        return write(folder, "a.dat", "\n".join(lines))
    if form == "matrix":
        values = np.ones(300)
        values[5] = {"on_bad_line": -1, "zeros": 0}.get(option, 1)
        scipy.sparse.save_npz(folder / "a.npz", scipy.sparse.csr_array((values, (range(300), [0] * 300))))
        return folder / "a.npz"
    columns = {name: [row[n] for row in rows] for n, name in enumerate(names)}
    columns["rating"] = [float(value) for value in columns["rating"]]
    if option == "float_ids":
        columns["user"], columns["item"] = ([float(v) for v in columns[role]] for role in ("user", "item"))
    if form == "parquet":
        pl.DataFrame(columns).write_parquet(folder / "a.parquet")
        return folder / "a.parquet"
    if form == "npz":
        np.savez(folder / "a.npz", **{name: np.array(column) for name, column in columns.items()})
        return folder / "a.npz"
    if form == "npy":
        kinds = [(name, np.array(column).dtype) for name, column in columns.items()]
        array = np.empty(300, kinds)
        for name, column in columns.items():
            array[name] = column
        np.save(folder / "a.npy", array)
        return folder / "a.npy"
    return pl.DataFrame(columns)


def read_as(form, source, **options):
    """The result in comparable form; an error's text where it is refused."""
    try:
        table = from_frame(source, **options) if form == "frame" else read(source, format_of(form), **options)
    except DataError as error:
        return error.cause
    times = None if table.times is None else (table.time_unit, table.times.tolist())
    return pairs(table), None if table.ratings is None else table.ratings.tolist(), times


def format_of(form):
    return "npz" if form == "matrix" else form


@pytest.mark.parametrize("option", STATED)
@pytest.mark.parametrize("form", READS)
def test_every_option_has_an_effect_or_is_refused(tmp_path, form, option):
    source = made(form, tmp_path, option)
    value = STATED[option] if option != "quotes" else form == "tsv"
    name = "strip" if option == "strip_ids" else option
    if name in READS[form]:
        assert read_as(form, source, **{option: value}) != read_as(form, source)
        return
    with pytest.raises(ConfigError, match=f"{name.replace('_', '-')}.* with ") as caught:
        read_as(form, source, **{option: value})
    assert "leave it out: only " in caught.value.remedy


def test_stated_columns_of_recognised_movielens_are_read(tmp_path):
    path = write(tmp_path, "u.data", "1\t5\t3\t881250949\n2\t6\t4\t881250950\n")
    assert pairs(read(path, user=1, item=0)) == [("5", "1"), ("6", "2")]
    with pytest.raises(DataError, match=r"no column zzz for the item; columns found: user, item, rating, timestamp"):
        read(path, item="zzz")


@pytest.mark.parametrize("option", ["time_unit", "time_format"])
def test_time_options_need_a_time(tmp_path, option):
    path = write(tmp_path, "a.csv", "user,item\n1,2\n")
    with pytest.raises(ConfigError, match=r"of which no column is taken for the time"):
        read(path, **{option: STATED[option]})


def test_zeros_need_a_rating(tmp_path):
    with pytest.raises(ConfigError, match=r"zeros keep with .*, of which no column is taken for the rating"):
        read(write(tmp_path, "a.csv", "user,item\n1,2\n"), zeros="keep")


def test_reader_options_with_a_table_are_refused(tmp_path):
    table = read(write(tmp_path, "a.csv", "user,item\n" + "".join(f"1,{n}\n" for n in range(9))))
    with pytest.raises(ConfigError, match=r"user with a table, which is read already"):
        prepare(table, Recipe(Options(user="x")))


def test_the_command_line_refuses_and_describes(tmp_path):
    path = write(tmp_path, "checkins.tsv", CHECKINS)
    flags = ["--no-header", "--user", "0", "--item", "4", "--timestamp", "1"]
    facts = json.loads(runner().invoke(app, ["describe", str(path), *flags, "--json"], catch_exceptions=False).stdout)
    assert (facts["users"], facts["items"]) == (2, 2)
    assert facts["steps"][0]["columns"] == {"user": 0, "item": 4, "timestamp": 1}
    lists = write(tmp_path, "users.dat", "1 5\n")
    with pytest.raises(ConfigError, match=r"separator @ with .*users.dat"):
        runner().invoke(
            app, ["describe", str(lists), "--format", "counted-lists", "--separator", "@"], catch_exceptions=False
        )
    rows = "".join(f"{u},{i}\n" for u in range(4) for i in range(6))
    prepare(write(tmp_path, "b.csv", "user,item\n" + rows)).save(tmp_path / "d")
    with pytest.raises(ConfigError, match=r"user with .* prepared already"):
        runner().invoke(app, ["describe", str(tmp_path / "d"), "--user", "0"], catch_exceptions=False)
