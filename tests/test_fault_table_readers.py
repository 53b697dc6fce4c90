"""Rows 1 to 8, 12 to 14 and 21 of the table of faults: files of interactions as they come.

Each wrong file is prepared as a user would: code 3, file and line, a remedy, and nothing beside the file afterwards. More of
their kind: test_data_readers.py, test_data_columns.py, test_data_dates.py, test_data_hostile.py.
"""

from __future__ import annotations

import gzip
import logging
import re
import shutil
import time
import unicodedata
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from commands import fails, kdrs, listing, ok
from kdrs.data import Dataset, Recipe, Table, from_frame, prepare, read
from kdrs.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings(
    "ignore:ratings from 1 to 5 all count", "ignore:split 'leave-one-out' holds out"
)

HEAD = "user,item,rating,timestamp\n"
ROWS = [f"u{n % 8},i{n // 8},{n % 5 + 1},{881250949 + n}" for n in range(80)]
GOOD = HEAD + "\n".join(ROWS) + "\n"


def write(folder: Path, content: str | bytes, name: str = "a.csv") -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


def refused(folder: Path, content: str | bytes, *options: object, name: str = "a.csv") -> str:
    """The one error of preparing a file that cannot be used; the folder holds the file alone, and unchanged."""
    path = write(folder, content, name)
    before = listing(folder)
    error = fails(3, "data", "prepare", path, "--out", folder / "d", *options)
    assert name in error
    assert "\n  try: " in error
    assert listing(folder) == before
    return error


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, beside the file that it was made of."""
    folder = tmp_path_factory.mktemp("prepared")
    ok("data", "prepare", write(folder, GOOD), "--out", folder / "d")
    return folder / "d"


def with_row(row: str, at: int = 40) -> str:
    """The good file with another row in line ``at`` + 2."""
    return HEAD + "\n".join([*ROWS[:at], row, *ROWS[at + 1 :]]) + "\n"


# 1: lines of another length


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("u1", "1 field, 4 expected: u1"),
        ("u1,i1,3", "3 fields, 4 expected: u1,i1,3"),
        ("u1,i1,3,881250949,x", "5 fields, 4 expected"),
        ("", "blank line"),
        ("u1;i1;3;881250949", "1 field, 4 expected: u1;i1;3;881250949"),
        ("\x1b[2J" + "x" * 300, r"1 field, 4 expected: \x1b[2J"),
    ],
)
def test_fault_01_a_line_of_another_length_is_told_with_its_place(tmp_path, row, says):
    error = refused(tmp_path, with_row(row))
    assert f"a.csv:42: {says}" in error
    assert "--on-bad-line skip" in error
    assert max(map(len, error.splitlines())) < 300


def test_fault_01_bad_lines_are_left_out_up_to_a_hundredth(tmp_path, caplog):
    rows = ROWS * 10
    for place in range(100, 800, 100):
        rows[place] = f"broken {place}"
    path = write(tmp_path, HEAD + "\n".join(rows) + "\n")
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        ok("data", "prepare", path, "--out", tmp_path / "d", "--on-bad-line", "skip")
    assert re.findall(r"left out .*a.csv:(\d+): 1 field", caplog.text) == ["102", "202", "302", "402", "502"]
    assert "a.csv: 7 of 800 lines left out" in caplog.text
    assert next(step for step in Dataset.load(tmp_path / "d").steps if "bad_lines" in step)["bad_lines"] == 7
    rows[50] = rows[60] = "broken"
    path.write_text(HEAD + "\n".join(rows) + "\n")
    error = fails(3, "data", "prepare", path, "--out", tmp_path / "e", "--on-bad-line", "skip")
    assert "9 of 800 lines are bad, more than 1 %" in error
    assert not (tmp_path / "e").exists()


# 2: nothing there, or nothing left


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("", (), "a.csv is empty"),
        ("\n\n\n", (), "nothing but blank lines"),
        (HEAD, (), "has a header and no rows"),
        ("\ufeff", (), "a.csv"),
    ],
)
def test_fault_02_an_empty_file_is_named(tmp_path, content, options, says):
    assert says in refused(tmp_path, content, *options)


@pytest.mark.parametrize(
    ("options", "step"),
    [(("--min-rating", 6), "rating >= 6"), (("--k-core", 9), "9-core"), (("--min-user", 11), "11")],
)
def test_fault_02_the_step_that_leaves_nothing_is_named_with_what_was_there(tmp_path, options, step):
    path = write(tmp_path, GOOD)
    error = fails(3, "data", "prepare", path, "--out", tmp_path / "d", *options)
    assert step in error
    assert "leaves nothing of 80 rows (8 users, 10 items)" in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.csv"]


# 3: headers and separators


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("who,stars,what\na,1,b\n", (), ["columns found: who, stars, what", "--user"]),
        (GOOD, ("--item", "itme"), ["no column itme", "columns found: user, item", "did you mean 'item'"]),
        (GOOD, ("--separator", ";"), ["a.csv:1", "separator ';' does not occur"]),
        ("anna,book\nbob,film\n", (), ["a.csv:1", "cannot tell whether this line names the columns", "--header"]),
        ("1,2,3\n4,5,6\n", (), ["0 = 1, 1 = 2, 2 = 3", "--no-header --user 0 --item 1"]),
        ("7;3;1,5\n8;3;2,5\n", (), ["',' and ';' could each be the separator", "--separator"]),
        ("alpha\nbeta\n", ("--format", "csv"), ["no separator found"]),
    ],
)
def test_fault_03_what_cannot_be_told_is_asked_for_with_what_was_found(tmp_path, content, options, words):
    error = refused(tmp_path, content, *options)
    for word in words:
        assert word in error


def test_fault_03_no_first_row_is_taken_for_a_header(tmp_path):
    for separator in ",\t;|":
        path = write(tmp_path, "".join(f"{n}{separator}{n + 1}\n" for n in range(5)))
        assert read(path).n_rows == 5
        path = write(tmp_path, GOOD.replace(",", separator))
        assert read(path).n_rows == 80


# 4: what makes no difference


def test_fault_04_marks_and_line_ends_change_nothing(tmp_path):
    clean = prepare(write(tmp_path, GOOD)).fingerprint
    plain = GOOD.encode()
    changed = {
        "mark": b"\xef\xbb\xbf" + plain,
        "CRLF": plain.replace(b"\n", b"\r\n"),
        "mark and CRLF": b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"),
        "CR": plain.replace(b"\n", b"\r"),
        "blank lines at the end": plain + b"\n\r\n\n",
        "no last newline": plain.rstrip(b"\n"),
    }
    for name, content in changed.items():
        assert prepare(write(tmp_path, content)).fingerprint == clean, name


# 5: what is no text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD.encode() + b"u1,\xff,3,881250949\n", ["not UTF-8", "byte 0xff", f"offset {len(GOOD) + 3}", "line 82"]),
        ("u1,ä\n".encode("latin-1"), ["not UTF-8", "offset 3", "line 1"]),
        (GOOD.encode("utf-16"), ["byte 0", "looks like UTF-16"]),
        (GOOD.encode("utf-16-be"), ["looks like UTF-16"]),
        (GOOD.encode() + b"u1,\0,3,881250949\n", ["NUL", f"byte {len(GOOD) + 3}", "looks like binary"]),
        (gzip.compress(GOOD.encode(), mtime=0), ["looks like gzip", "unpack"]),
        (b"PK\x03\x04" + bytes(30), ["looks like a zip archive"]),
        (b"\x80\x04\x95abc", ["looks like a pickle", "never loads pickles"]),
        (b"\x28\xb5\x2f\xfdabc", ["looks like"]),
    ],
)
def test_fault_05_what_is_no_text_is_named_by_its_bytes(tmp_path, content, words):
    error = refused(tmp_path, content)
    for word in words:
        assert word in error, error


# 6: quotes


def test_fault_06_quoted_fields_are_read_as_rfc_4180_says(tmp_path):
    text = 'user,item\n"a,b","say ""yes"""\n"two\nlines",plain\n'
    table = read(write(tmp_path, text))
    assert list(table.user_ids) == ["a,b", "two\nlines"]
    assert list(table.item_ids) == ['say "yes"', "plain"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('u1,"i1,3,881250949', "a quote is opened and never closed"),
        ('"u1,i1,3,881250949', "a quote is opened and never closed"),
        ('u1,i"1",3,881250949', "a quote inside an unquoted field"),
        ('u1,"i1"x,3,881250949', "quote"),
    ],
)
@pytest.mark.parametrize("place", [0, 40, 79])
def test_fault_06_a_quote_is_told_with_the_line_that_opens_it(tmp_path, row, says, place):
    error = refused(tmp_path, with_row(row, place))
    assert f"a.csv:{place + 2}: " in error
    assert says in error


# 7: ids


def test_fault_07_ids_are_exact_strings(tmp_path, caplog):
    ids = ["007", "7", "+7", "7 7", "A", "a", "é", "日本", "1_000", "null", "NA", "0x7", "'7'", "\u200b7"]
    path = write(tmp_path, "user,item\n" + "".join(f"{name},{name}\n" for name in ids))
    table = read(path)
    assert list(table.user_ids) == list(table.item_ids) == ids
    tabbed = write(tmp_path, "user,item\na\tb,c\nd,e\n")
    assert list(read(tabbed, separator=",").user_ids) == ["a\tb", "d"]
    decomposed = unicodedata.normalize("NFD", "é")
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        assert list(read(write(tmp_path, f"user,item\né,x\n{decomposed},x\n")).user_ids) == ["é", decomposed]
    assert "1 ids differ from another one in Unicode form only" in caplog.text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (",i1,3,881250949", ["user: the id is empty"]),
        ('u1,"",3,881250949', ["item: the id is empty"]),
        (" u1,i1,3,881250949", ["user: blanks around the id", "--strip-ids"]),
        ("u1,i1 ,3,881250949", ["item: blanks around the id", "--strip-ids"]),
        ("u1,\u00a0i1,3,881250949", ["item: blanks around the id", "--strip-ids"]),
    ],
)
def test_fault_07_empty_ids_and_blanks_around_them_are_errors(tmp_path, row, words):
    error = refused(tmp_path, with_row(row))
    for word in ["a.csv:42: ", *words]:
        assert word in error
    if "--strip-ids" in words:
        result = ok("data", "prepare", tmp_path / "a.csv", "--dry-run", "--strip-ids", "--json")
        assert (result.document["users"], result.document["items"]) == (8, 10)


# 8: ids that went through floats


@pytest.mark.parametrize("values", [["1.0", "2.0"], ["1", "1e5"], ["1", "nan"], ["12.0", "7"]])
def test_fault_08_float_ids_in_files_are_asked_about(tmp_path, values):
    error = refused(tmp_path, "user,item\n" + "".join(f"{value},x\n" for value in values))
    assert "user: ids are floats" in error
    assert "--float-ids" in error


@pytest.mark.parametrize(
    ("column", "missing"), [([12.0, 1e5], 0), ([12.0, float("nan")], 1), ([12.0, None], 1), ([12.5, 1.0], 0)]
)
def test_fault_08_float_ids_in_frames_are_asked_about(column, missing):
    frame = pl.DataFrame({"user": pl.Series(column, dtype=pl.Float64), "item": [1, 2]})
    with pytest.raises(DataError, match=rf"ids in column user are floats .*{missing} of them missing or NaN") as caught:
        from_frame(frame)
    assert "--float-ids whole" in str(caught.value.remedy)
    if column == [12.0, 1e5]:
        assert list(from_frame(frame, float_ids="whole").user_ids) == ["12", "100000"]
    else:
        with pytest.raises(DataError, match=r"row [12]: user: the id is"):
            from_frame(frame, float_ids="whole")
    np_frame = {"user": np.array([1.0, 2.0]), "item": np.array([1, 2])}
    with pytest.raises(DataError, match="ids in column user are floats"):
        from_frame(np_frame)


# 12: ratings


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("nan", "rating is NaN"),
        ("NaN", "rating is NaN"),
        ("inf", "rating is infinite"),
        ("-inf", "rating is infinite"),
        ("1e999", "rating is infinite"),
        ("-1", "rating is negative"),
        ("", "rating is missing"),
        ("good", "rating is no number"),
    ],
)
def test_fault_12_ratings_that_are_none_are_told_with_their_line(tmp_path, value, says):
    assert f"a.csv:42: {says}" in refused(tmp_path, with_row(f"u1,i1,{value},881250949"))


def test_fault_12_the_threshold_is_told_with_what_it_drops(tmp_path):
    path = write(tmp_path, GOOD)
    assert (
        "rating >= 4: 8 users, 10 items, 32 rows; dropped 48"
        in ok("data", "prepare", path, "--dry-run", "--min-rating", 4).err
    )
    (tmp_path / "b.csv").write_text("user,item\n" + "".join(f"u{n % 4},i{n}\n" for n in range(40)))
    assert "rating" in kdrs("data", "prepare", tmp_path / "b.csv", "--dry-run", "--min-rating", 4).err.splitlines()[-2]


# 13: times


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "timestamp is missing"),
        ("nan", "timestamp is"),
        ("-5", "timestamp is outside the years"),
        ("0", "timestamp is outside the years"),
        ("881250949000", "timestamp is outside the years 1990 to 2099; the other rows are in s"),
        ("32503680000", "timestamp is outside the years"),
        ("soon", "timestamp is no number and no ISO date"),
    ],
)
def test_fault_13_times_that_are_none_are_told_with_their_line(tmp_path, value, says):
    assert f"a.csv:42: {says}" in refused(tmp_path, with_row(f"u1,i1,3,{value}"))


def test_fault_13_a_unit_is_taken_only_where_all_rows_fit_it(tmp_path):
    expected = None
    for unit, factor in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        table = read(write(tmp_path, HEAD + "".join(f"u,i{n},3,{(881250949 + n) * factor}\n" for n in range(9))))
        assert table.sources[0]["times"] == unit
        expected = table.times.tolist() if expected is None else expected
        assert table.times.tolist() == expected
    error = refused(tmp_path, HEAD + "".join(f"u,i{n},3,{n}\n" for n in range(9)))
    assert "the unit of the timestamps cannot be told: values from 0 to 8" in error
    assert "--time-unit" in error
    assert read(write(tmp_path, HEAD + "".join(f"u,i{n},3,{n}\n" for n in range(9))), time_unit="order").n_rows == 9


def test_fault_13_a_split_by_time_needs_times(tmp_path):
    with pytest.raises(ConfigError, match="a split by time needs timestamps"):
        prepare(Table.from_pairs(list("abcd" * 5), list(range(20))), Recipe(split="time"))
    error = refused(tmp_path, with_row("u1,i1,3,"), "--split", "time")
    assert "a.csv:42: timestamp is missing" in error


# 14: zones and equal times


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone cannot be set")
def test_fault_14_dates_are_utc_whatever_the_zone_of_the_machine(tmp_path, monkeypatch):
    # an hour that New York does not have, one that it has twice, and a moment with a zone of its own
    dates = ["2012-03-11 02:30:00", "2012-11-04 01:30:00", "2012-11-04T01:30:00+02:00"]
    path = write(tmp_path, HEAD + "".join(f"u,i{n},3,{date}\n" for n, date in enumerate(dates[:2])))
    zoned = write(tmp_path, HEAD + f"u,i,3,{dates[2]}\n", "b.csv")
    try:
        for zone in ("America/New_York", "Asia/Kolkata", "UTC"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert read(path).times.tolist() == [1331433000 * 10**6, 1351992600 * 10**6]
            assert read(zoned).times.tolist() == [(1351992600 - 7200) * 10**6]
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("split", ["last-n", "ordered"])
def test_fault_14_equal_times_keep_the_order_of_the_file(tmp_path, split):
    users = [f"u{n % 3}" for n in range(30)]
    equal = write(tmp_path, HEAD + "".join(f"{user},i{n},3,881250949\n" for n, user in enumerate(users)))
    rising = write(tmp_path, HEAD + "".join(f"{u},i{n},3,{881250949 + n}\n" for n, u in enumerate(users)), "b.csv")
    one, other = (prepare(path, Recipe(split=split)) for path in (equal, rising))
    for part in ("train", "valid", "test"):
        assert getattr(one, part) == getattr(other, part)
    assert np.array_equal(one.order, other.order)
    moment = prepare(
        write(tmp_path, HEAD + "".join(f"u{n % 3},i{n},3,{881250949 + n // 6}\n" for n in range(30)), "c.csv"),
        Recipe(split="time", fractions=(0.5, 0.25, 0.25)),
    )
    assert {part.n_pairs % 6 for part in (moment.train, moment.valid, moment.test)} == {0}  # no moment is parted


# 21: names and places


@pytest.mark.parametrize(
    "name",
    [
        "two words.csv",
        "dätä 日本.csv",
        "$HOME `id` $(id); rm x.csv",
        "-a.csv",
        "a*?[b].csv",
        "new\nline.csv",
        "'\".csv",
    ],
)
def test_fault_21_names_are_taken_as_they_are(tmp_path, monkeypatch, name):
    folder = tmp_path / f"in {name}"
    folder.mkdir()
    path = write(folder, GOOD, name)
    expected = prepare(write(tmp_path, GOOD)).fingerprint
    ok("data", "prepare", path, "--out", folder / f"out {name}")
    assert Dataset.load(folder / f"out {name}").fingerprint == expected
    path.write_text(with_row("short"))
    error = fails(3, "data", "prepare", path, "--dry-run")
    assert ":42: 1 field" in error
    assert error.count("\n") == 2


def test_fault_21_links_and_long_paths(tmp_path):
    expected = prepare(write(tmp_path, GOOD)).fingerprint
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    assert prepare(tmp_path / "link.csv").fingerprint == expected
    deep = tmp_path.joinpath(*["x" * 100] * 5)
    deep.mkdir(parents=True)
    assert len(str(deep)) > 500
    ok("data", "prepare", write(deep, GOOD), "--out", deep / "d")
    assert Dataset.load(deep / "d").fingerprint == expected


@pytest.mark.parametrize(
    "command",
    [
        ("data", "prepare", "PATH", "--dry-run"),
        ("data", "describe", "PATH"),
        ("data", "prepare", "a.csv", "--out", "PATH"),
        ("data", "prepare", "a.csv", "--test", "PATH", "--dry-run"),
        ("train", "--data", "PATH", "--model", "bpr"),
        ("train", "PATH", "--data", "d"),
        ("train", "--data", "d", "--model", "bpr", "--epochs", "1", "--out", "PATH"),
        ("train", "--data", "d", "--model", "bpr", "--start", "PATH", "--dry-run"),
        ("distill", "--data", "d", "--model", "bpr", "--method", "rrd", "--teacher", "PATH"),
        ("eval", "PATH"),
        ("report", "PATH", "--out", "r"),
        ("resume", "PATH"),
    ],
)
@pytest.mark.parametrize("kind", ["too long", "circle", "below a file"])
def test_fault_21_paths_that_lead_nowhere(prepared, tmp_path, monkeypatch, command, kind):
    """Too long for the system, a link to itself, below a file: an error of the path, whichever option named it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(prepared, tmp_path / "d")
    shutil.copy(prepared.parent / "a.csv", tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    path = {"too long": "x" * 300, "circle": "circle", "below a file": "a.csv/x"}[kind]
    before = listing(tmp_path)
    result = kdrs(*(path if word == "PATH" else word for word in command))
    assert result.code in (2, 3, 4, 5), result.err
    assert "internal" not in result.err
    assert path[:60] in result.err
    assert listing(tmp_path) == before
