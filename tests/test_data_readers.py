"""Readers: whatever was written is read again, and what cannot be read is refused with its line."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrs.data import Table, _text, from_frame, read
from kdrs.errors import ConfigError, DataError

FEW = settings(max_examples=25, deadline=None)

# No blanks at the ends, no quotes, nothing that looks like a number: the plain case of an id.
word = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp"), exclude_characters='",;|:\t'),
    min_size=1,
    max_size=6,
)
plain_id = word.map(lambda text: f"x{text}")
# Anything that a quoted CSV field can hold.
quoted_id = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=6).map(lambda text: f"x{text}x")


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pairs(table: Table) -> list[tuple[str, str]]:
    return [
        (table.user_ids[u], table.item_ids[i]) for u, i in zip(table.users.tolist(), table.items.tolist(), strict=True)
    ]


# Round trips


@FEW
@given(st.lists(st.tuples(plain_id, plain_id), min_size=1, max_size=30), st.sampled_from([",", "\t", ";", "|"]))
def test_delimited_text_is_read_as_written(tmp_path_factory, rows, separator):
    folder = tmp_path_factory.mktemp("csv")
    lines = [f"user{separator}item", *(f"{user}{separator}{item}" for user, item in rows)]
    assert pairs(read(write(folder, "a.csv", "\n".join(lines)), separator=separator)) == rows


@FEW
@given(st.lists(st.tuples(quoted_id, quoted_id, st.integers(1, 5)), min_size=1, max_size=20))
def test_quoted_fields_follow_rfc_4180(tmp_path_factory, rows):
    def quote(text):
        return '"' + text.replace('"', '""') + '"'

    folder = tmp_path_factory.mktemp("quoted")
    text = "".join(f"{quote(user)},{quote(item)},{rating}\n" for user, item, rating in rows)
    table = read(write(folder, "a.csv", "user,item,rating\n" + text))
    assert pairs(table) == [(user, item) for user, item, _ in rows]
    assert table.ratings.tolist() == [rating for _, _, rating in rows]


@FEW
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=40, unique=True))
def test_every_format_gives_the_same_pairs(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("formats")
    users, items = map(np.array, zip(*rows, strict=True))
    frame = pl.DataFrame({"user": users, "item": items})
    frame.write_csv(folder / "a.csv")
    frame.write_parquet(folder / "a.parquet")
    np.save(folder / "a.npy", np.stack([users, items], axis=1))
    np.savez(folder / "columns.npz", users=users, items=items)
    matrix = scipy.sparse.coo_array((np.ones(len(rows)), (users, items)))
    scipy.sparse.save_npz(folder / "matrix.npz", matrix.tocsr())
    write(folder, "a.inter", "user_id:token\titem_id:token\n" + "".join(f"{u}\t{i}\n" for u, i in rows))
    by_user = {str(u): [str(i) for v, i in rows if v == u] for u in dict.fromkeys(users.tolist())}
    write(folder, "lists.txt", "".join(f"{u} {' '.join(mine)}\n" for u, mine in by_user.items()))
    expected = [(str(u), str(i)) for u, i in rows]
    for name in ("a.csv", "a.parquet", "a.npy", "columns.npz", "a.inter"):
        assert pairs(read(folder / name)) == expected, name
    assert sorted(pairs(read(folder / "matrix.npz"))) == sorted(expected)
    assert sorted(pairs(read(folder / "lists.txt", "user-lists"))) == sorted(expected)
    assert pairs(from_frame(frame)) == expected


@FEW
@given(st.lists(st.lists(st.integers(0, 30), max_size=8, unique=True), min_size=1, max_size=20))
def test_counted_lists_are_read_as_written(tmp_path_factory, lists):
    if not any(lists):
        return
    folder = tmp_path_factory.mktemp("counted")
    path = write(folder, "users.dat", "\n".join(" ".join(map(str, [len(mine), *mine])) for mine in lists))
    table = read(path)
    assert table.options["format"] == "counted-lists"
    assert pairs(table) == [(str(user), str(item)) for user, mine in enumerate(lists) for item in mine]
    empty = sum(not mine for mine in lists)
    assert [step["users"] for step in table.steps if "users without items" in step["step"]] == [empty] * bool(empty)


def test_lists_keep_their_order_and_user_ids(tmp_path):
    table = read(write(tmp_path, "train.txt", "7 3 1 2\n5 2 9\n6 1\n"))
    assert table.options["format"] == "user-lists"
    assert pairs(table) == [("7", "3"), ("7", "1"), ("7", "2"), ("5", "2"), ("5", "9"), ("6", "1")]
    assert table.order_by == "file"


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("u.data", "1\t5\t3\t881250949\n2\t5\t4\t881250950\n", "movielens"),
        ("ratings.dat", "1::5::3::881250949\n2::5::4::881250950\n", "movielens"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,5,3.0,881250949\n2,5,4.0,881250950\n", "movielens"),
        (
            "x.inter",
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t5\t3\t881250949\n2\t5\t4\t881250950\n",
            "inter",
        ),
        ("x.csv", "uid;iid;stars;time\n1;5;3;881250949\n2;5;4;881250950\n", "csv"),
    ],
)
def test_known_layouts(tmp_path, name, content, form):
    table = read(write(tmp_path, name, content))
    assert table.options["format"] == form
    assert pairs(table) == [("1", "5"), ("2", "5")]
    assert table.ratings.tolist() == [3, 4]
    assert table.times.tolist() == [881250949000000, 881250950000000]


def test_columns_by_name_and_by_place(tmp_path):
    path = write(tmp_path, "a.csv", "who,stars,what\na,1,b\n")
    assert pairs(read(path, user="who", item="what")) == [("a", "b")]
    assert pairs(read(path, header=True, user=2, item="0")) == [("b", "a")]
    with pytest.raises(
        DataError, match=r"no column whom for the user; columns found: who, stars, what\ndid you mean 'who'"
    ):
        read(path, user="whom", item="what")
    with pytest.raises(DataError, match=r"no item column; columns found: who, stars, what\nname it with --item"):
        read(path, user="who")
    with pytest.raises(ConfigError, match=r"one column is named for two roles"):
        read(path, user="who", item="who")


# Row 3 of the faults: headers and separators


def test_a_missing_header_is_no_lost_row(tmp_path):
    assert pairs(read(write(tmp_path, "a.csv", "1,2\n3,4\n"))) == [("1", "2"), ("3", "4")]


def test_an_undecidable_header_is_an_error(tmp_path):
    path = write(tmp_path, "a.csv", "anna,book\nbob,film\n")
    with pytest.raises(
        DataError, match=r"a.csv:1: cannot tell whether this line names the columns: anna,book\nsay --header"
    ):
        read(path)
    assert len(pairs(read(path, header=False))) == 2


def test_wrong_separator_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"a.csv:1: separator ';' does not occur: 1,2"):
        read(write(tmp_path, "a.csv", "1,2\n3,4\n"), separator=";")
    with pytest.raises(DataError, match=r"no separator found"):
        read(write(tmp_path, "a.csv", "alpha\nbeta\n"), "csv")


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 1000])
def test_lines_are_checked_across_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(_text, "_CHUNK", chunk)
    good = "user,item,rating\n" + "ä,bcd,1\n" * 20
    assert read(write(tmp_path, "a.csv", good)).n_rows == 20
    with pytest.raises(DataError, match=r"a.csv:22: 2 fields, 3 expected: a,b"):
        read(write(tmp_path, "a.csv", good + "a,b\n" + "a,b,3\n" * 9))
    with pytest.raises(DataError, match=r"byte 0xff at offset 197, line 22"):
        read(write(tmp_path, "a.csv", good.encode() + b"\xff,b,3\n"))


# Row 4: harmless differences


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text + b"\n\n\n",
        lambda text: text.rstrip(b"\n"),
        lambda text: text.replace(b"\n", b"\r"),
    ],
    ids=["byte order mark", "CRLF", "blank lines at the end", "no last newline", "CR"],
)
@pytest.mark.parametrize("clean", [b"user,item,rating\na,b,1\nc,d,2\n", b"2 5 6\n1 7\n"], ids=["csv", "lists"])
def test_harmless_differences(tmp_path, clean, change):
    first, second = read(write(tmp_path, "a", clean)), read(write(tmp_path, "b", change(clean)))
    assert pairs(first) == pairs(second)
    assert first.options == second.options


# Rows 1, 2, 5-10, 12, 13, 18-20: wrong input, each with its line and remedy

LONG = "z" * 300
WRONG = {
    "too few columns": ("a.csv", "user,item\na,b\nc\n", r"a.csv:3: 1 field, 2 expected: c\nmend"),
    "too many columns": ("a.csv", "user,item\na,b\nc,d,e\n", r"a.csv:3: 3 fields, 2 expected: c,d,e"),
    "one short, one long": ("a.csv", "user,item\na,b\nc\nd,e,f\n", r"a.csv:3: 1 field, 2 expected: c \(2 such lines\)"),
    "long lines are cut": ("a.csv", f"user,item\n{LONG}\n", r"a.csv:2: 1 field, 2 expected: z{79}…"),
    "text is escaped": ("a.csv", "user,item\na\x1b[31m\n", r"a.csv:2: 1 field, 2 expected: a\\x1b\[31m"),
    "blank line inside": ("a.csv", "user,item\na,b\n\nc,d\n", r"a.csv:3: blank line"),
    "empty file": ("a.csv", "", "a.csv is empty"),
    "blank file": ("a.csv", "\n\n", "holds nothing but blank lines"),
    "header only": ("a.csv", "user,item\n", "has a header and no rows"),
    "invalid UTF-8": (
        "a.csv",
        b"user,item\na,b\nc,\xff\n",
        r"a.csv is not UTF-8: byte 0xff at offset 16, line 3\nconvert",
    ),
    "UTF-16": ("a.csv", "user,item\n".encode("utf-16"), "byte 0, it looks like UTF-16\nconvert"),
    "UTF-16 without mark": ("a.csv", "user,item\na,b\n".encode("utf-16-le"), "NUL at byte 1, it looks like UTF-16"),
    "NUL": ("a.csv", b"user,item\na,b\0\n", "NUL at byte 13, it looks like binary"),
    "stray carriage return": ("a.csv", b"user,item\na\rb,c\n", r"a.csv:2: a carriage return inside the line"),
    "control separator": ("a.txt", b"2 5 6\n1 7\x1f\n", r"holds the control character 0x1f"),
    "gzip": ("a.csv", b"\x1f\x8b\x08\x00abc", "it looks like gzip\nunpack"),
    "zip": ("a.csv", b"PK\x03\x04abc", "it looks like a zip archive"),
    "pickle": ("a.csv", b"\x80\x04\x95abc", "it looks like a pickle\nkdrs never loads pickles"),
    "unclosed quote": ("a.csv", 'user,item\na,b\nc,"d\ne,f\n', r'a.csv:3: a quote is opened and never closed: c,"d'),
    "unclosed quote before others": (
        "a.csv",
        'user,item\n"a,b\n"c","d"\n',
        r'a.csv:2: a quote is opened and never closed: "a,b',
    ),
    "stray quote": ("a.csv", 'user,item\na,b"c"\n', r"a.csv:2: a quote inside an unquoted field"),
    "empty id": ("a.csv", "user,item\na,b\n,c\n", r"a.csv:3: user: the id is empty: ,c"),
    "empty quoted id": ("a.csv", 'user,item\na,""\n', r"a.csv:2: item: the id is empty"),
    "blanks around id": (
        "a.csv",
        "user,item\na, b\n",
        r"a.csv:2: item: blanks around the id \(--strip-ids takes them off\)",
    ),
    "float ids": ("a.csv", "user,item\n1.0,2\n3.0,4\n", r"a.csv:2: user: ids are floats .* \(2 such lines\)"),
    "exponent ids": ("a.csv", "user,item\n1,2\n1e5,4\n", r"a.csv:3: user: ids are floats"),
    "NaN ids": ("a.csv", "user,item\n1,2\nnan,4\n", r"a.csv:3: user: ids are floats"),
    "NaN rating": ("a.csv", "user,item,rating\na,b,1\nc,d,nan\n", r"a.csv:3: rating is NaN: c,d,nan"),
    "infinite rating": ("a.csv", "user,item,rating\na,b,inf\n", r"a.csv:2: rating is infinite"),
    "negative rating": ("a.csv", "user,item,rating\na,b,-1\n", r"a.csv:2: rating is negative"),
    "missing rating": ("a.csv", "user,item,rating\na,b,\n", r"a.csv:2: rating is missing"),
    "no rating": ("a.csv", "user,item,rating\na,b,good\n", r"a.csv:2: rating is no number"),
    "missing time": ("a.csv", "user,item,time\na,b,881250949\nc,d,\n", r"a.csv:3: timestamp is missing"),
    "no time": (
        "a.csv",
        "user,item,time\na,b,881250949\nc,d,soon\n",
        r"a.csv:3: timestamp is no number and no ISO date",
    ),
    "negative time": (
        "a.csv",
        "user,item,time\na,b,881250949\nc,d,881250950\ne,f,-5\n",
        r"a.csv:4: timestamp is outside the years",
    ),
    "mixed units": (
        "a.csv",
        "user,item,time\na,b,881250949\nc,d,881250950\ne,f,881250949000\n",
        r"a.csv:4: timestamp is outside the years 1990 to 2099; the other rows are in s",
    ),
    "year 3000": ("a.csv", "user,item,date\na,b,3000-01-01\nc,d,2001-01-01\n", r"a.csv:2: timestamp is outside"),
    "unit unknown": (
        "a.csv",
        "user,item,time\na,b,1\nc,d,2\n",
        r"the unit of the timestamps cannot be told: values from 1 to 2\nsay --time-unit",
    ),
    "inter without types": (
        "a.inter",
        "user_id:token\titem_id\n1\t2\n",
        r"a.inter:1: field item_id has no type; RecBole writes name:token",
    ),
    "inter list column": (
        "a.inter",
        "user_id:token\titem_id:token_seq\n1\t2\n",
        "item_id is token_seq; item allows token",
    ),
    "count too large": (
        "users.dat",
        "2 5 6\n3 7 8\n1 9\n",
        r"users.dat:2: 66.7% of the lines begin with .* this one says 3 and holds 2: 3 7 8",
    ),
    "count too small": ("users.dat", "2 5 6\n1 7 8\n", r"users.dat:2: .* this one says 1 and holds 2"),
    "blank list": ("lists.txt", "7 3 1 2\n\n5 2 9 1 1 1\n", r"lists.txt:2: blank line"),
    "ambiguous pairs": (
        "pairs.txt",
        "7 3\n7 4\n5 2\n",
        r"could hold a pair on each line or a list of items: 7 3\nsay --format",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_with_its_line(tmp_path, case):
    name, content, message = WRONG[case]
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert caught.value.exit_code == 3
    assert "\n" not in caught.value.cause
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)


BITS = [
    b"\n",
    b",",
    b'"',
    b"\t",
    b" ",
    b"::",
    b"\r",
    b"nan",
    b"1e5",
    b"\xff",
    b"\0",
    b"-1",
    b"9" * 20,
    b"2001-01-01",
    b"\x1f",
]
FILES = [
    b'user,item,rating,timestamp\na,b,1,881250949\n"c,c",d,2,881250950\n',
    b"2 5 6\n1 7\n3 1 2 3\n",
    b"user_id:token\titem_id:token\trating:float\n1\t2\t3\n",
    b"1::2::3::881250949\n2::3::4::881250950\n",
    b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (4, 2), }"
    + b" " * 57
    + b"\n"
    + b"\0" * 64,
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_the_bytes_there_is_a_table_or_a_clear_error(tmp_path_factory, data):
    content = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        stop = min(start + data.draw(st.sampled_from([0, 1, 3, 9])), len(content))
        content[start:stop] = data.draw(st.one_of(st.sampled_from(BITS), st.binary(max_size=2)))
    path = write(tmp_path_factory.getbasetemp(), "anything", bytes(content))
    refused = None
    try:
        table = read(path, on_bad_line=data.draw(st.sampled_from(["error", "skip"])))
    except DataError as error:
        refused = error
    if refused is None:
        assert table.interactions().n_pairs > 0
    else:
        assert refused.cause.isprintable()
        assert len(refused.cause) < 600


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*no.csv: No such file"):
        read(tmp_path / "no.csv")
    with pytest.raises(DataError, match=r"is a directory"):
        read(tmp_path)


def test_counts_are_checked_when_the_format_is_stated(tmp_path):
    path = write(tmp_path, "lists.txt", "2 5 6\n3 7 8\n")
    with pytest.raises(DataError, match=r"lists.txt:2: the line begins with 3, but 2 items follow"):
        read(path, "counted-lists")
    assert pairs(read(path, "user-lists"))[0] == ("2", "5")


def test_ids_are_exact_strings(tmp_path):
    rows = [("007", "+1"), ("7", "1"), ("é", "e\u0301"), ("A", "a"), ("a b", "9" * 30)]
    table = read(write(tmp_path, "a.csv", "user,item\n" + "".join(f"{u},{i}\n" for u, i in rows)))
    assert pairs(table) == rows


def test_unicode_twins_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        read(write(tmp_path, "a.csv", "user,item\né,x\ne\u0301,x\n"))
    assert "1 ids differ from another one in Unicode form only" in caplog.text


def test_id_options(tmp_path):
    path = write(tmp_path, "a.csv", "user,item\n1.0, x\n1,x \n")
    table = read(path, strip_ids=True, float_ids="whole")
    assert pairs(table) == [("1", "x"), ("1", "x")]
    assert pairs(read(path, strip_ids=True, float_ids="exact")) == [("1.0", "x"), ("1", "x")]
    with pytest.raises(DataError, match=r"the id is no whole number"):
        read(write(tmp_path, "b.csv", "user,item\n1.5,2\n"), float_ids="whole")


def test_strings_that_look_like_floats_among_others_are_strings(tmp_path):
    assert pairs(read(write(tmp_path, "a.csv", "user,item\n12e4,x\nab12,x\n"))) == [("12e4", "x"), ("ab12", "x")]


# Bad lines may be skipped, up to one in a hundred


def test_skipped_lines_are_counted_and_shown(tmp_path, caplog):
    lines = [f"u{n},i{n},{n % 5 + 1}" for n in range(1000)]
    lines[10], lines[500], lines[700], lines[800] = "broken", "u500,i500,nan", ",i700,1", "a,b,c,d"
    path = write(tmp_path, "a.csv", "\n".join(["user,item,rating", *lines]))
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        table = read(path, on_bad_line="skip")
    assert table.n_rows == 996
    assert table.steps[0]["bad_lines"] == 4
    assert "" not in table.user_ids
    for place in (
        "a.csv:12: 1 field",
        "a.csv:802: 4 fields",
        "a.csv:502: rating is NaN",
        "a.csv:702: user: the id is empty",
    ):
        assert place in caplog.text
    assert "u500" not in table.user_ids


def test_too_many_bad_lines_are_an_error(tmp_path):
    path = write(tmp_path, "a.csv", "user,item\n" + "a,b\n" * 90 + "broken\n" * 10)
    with pytest.raises(DataError, match=r"10 of 100 lines are bad, more than 1 %; first .*a.csv:92: 1 field"):
        read(path, on_bad_line="skip")


def test_skipping_in_lists_keeps_the_other_users(tmp_path):
    lines = [f"1 {n}" for n in range(200)]
    lines[5] = "3 1"
    table = read(write(tmp_path, "users.dat", "\n".join(lines)), "counted-lists", on_bad_line="skip")
    assert ("6", "6") in pairs(table)
    assert "5" not in table.user_ids
