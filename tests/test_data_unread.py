"""Columns that look like times and that nobody named: told in one line, with the option that takes them, never taken."""

from __future__ import annotations

import logging
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import ok
from kdrs.data import from_frame, read
from kdrs.data._unread import time_options

ROWS = [(user, item) for user in range(4) for item in range(user, user + 5)]
FIRST, LAST = 631_152_000, 4_102_444_799
FORMS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%Y/%m/%d", "%Y-%m-%dT%H:%M:%S+01:00")
STATED = ("%d.%m.%Y", "%d/%m/%Y %H:%M")


def moments() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(FIRST, LAST), min_size=1, max_size=20)


@given(seconds=moments(), scale=st.sampled_from([1, 10**3, 10**6, 10**9]))
def test_numbers_of_one_unit_are_told(seconds, scale):
    assert time_options([str(one * scale) for one in seconds]) == ""
    assert time_options([f"{one * scale}.0" for one in seconds]) == ""
    assert time_options([f"{float(one * scale)!r}" for one in seconds]) == ""


@given(seconds=moments(), form=st.sampled_from(FORMS))
def test_dates_are_told(seconds, form):
    texts = [datetime.fromtimestamp(one, UTC).strftime(form) for one in seconds]
    assert time_options(texts) == ""
    assert time_options([*texts, ""]) == ""
    assert time_options([*texts, "never"]) is None


@given(seconds=moments(), form=st.sampled_from(STATED))
def test_dates_of_other_forms_are_told_with_their_form(seconds, form):
    texts = [datetime.fromtimestamp(one, UTC).strftime(form) for one in seconds]
    days = {datetime.fromtimestamp(one, UTC).day for one in seconds}
    told = f' --time-format "{form}"'
    if form[:3] in ("%d/", "%d-") and max(days) <= 12:  # they may be months
        told += f' or "%m{form[2]}%d{form[5:]}"'
    assert time_options(texts) == told


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (["09/14/20", "09/15/20"], '"%m/%d/%y"'),
        (["14/09/2020"], '"%d/%m/%Y"'),
        (["04/05/2020"], '"%d/%m/%Y" or "%m/%d/%Y"'),
        (["20200914", "20200915"], '"%Y%m%d"'),
        (["20200914050755"], '"%Y%m%d%H%M%S"'),
    ],
)
def test_only_forms_that_fit_are_told(values, form):
    assert time_options(values) == f" --time-format {form}"


def test_what_no_form_fits_is_not_told():
    assert time_options(["31/31/2020"]) is None
    assert time_options(["20201399"]) is None


@given(
    values=st.lists(
        st.one_of(st.integers(0, 10**7 - 1).map(str), st.floats(0, 1000).map(repr), st.text("abc x", min_size=1)),
        min_size=1,
    )
)
def test_other_values_are_not(values):
    assert time_options(values) is None


def table(folder: Path, name: str, values: list[str], heading: str = "user,item,when") -> Path:
    lines = (f"u{user},i{item},{value}" for (user, item), value in zip(ROWS, values, strict=True))
    (folder / name).write_text("\n".join([*([heading] if heading else []), *lines]) + "\n")
    return folder / name


EPOCH = [str(1300000000 + 60 * n) for n in range(len(ROWS))]
ISO = [f"2012-04-{1 + n:02}" for n in range(len(ROWS))]
GERMAN = [f"{1 + n:02}.04.2012" for n in range(len(ROWS))]


@pytest.mark.parametrize("values", [EPOCH, ISO, GERMAN], ids=["epoch", "iso", "german"])
def test_what_is_told_can_be_done(tmp_path, caplog, values):
    """The data set is as before; with the option of the line the rows have times, and nothing is told."""
    path = table(tmp_path, "a.csv", values)
    ok("data", "prepare", path, "--out", tmp_path / "d")
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"column when looks like times, such as {values[0]}, and none are read: --timestamp when" in line
    described = ok("data", "describe", tmp_path / "d", "--json").document
    assert described["order"] == "file"
    found = re.search(r"read: (--timestamp .*?) reads it, --timestamp none leaves it out$", line)
    assert found is not None
    caplog.clear()
    ok("data", "prepare", path, *shlex.split(found[1]), "--split", "last-n", "--out", tmp_path / "e")
    assert ok("data", "describe", tmp_path / "e", "--json").document["order"] == "time"
    ok("data", "prepare", path, "--timestamp", "none", "--out", tmp_path / "f")
    assert not caplog.records


def test_columns_without_names_are_told_by_their_place(tmp_path, caplog):
    path = table(tmp_path, "a.csv", EPOCH, heading="")
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        assert read(path, header=False, user=0, item=1).times is None
    assert "column 2 looks like times" in caplog.text
    assert "--timestamp 2 reads it" in caplog.text
    assert read(path, header=False, user=0, item=1, timestamp=2).times is not None


@pytest.mark.parametrize(
    ("heading", "values"),
    [
        ("user,item,timestamp", EPOCH),  # read
        ("user,item,price", [str(n) for n in range(len(ROWS))]),
        ("user,item,session", [f"s{n}" for n in range(len(ROWS))]),
        ("user,item,rating", EPOCH),  # somebody's rating, whatever it looks like
    ],
)
def test_nothing_else_is_told(tmp_path, caplog, heading, values):
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        read(table(tmp_path, "a.csv", values, heading))
    assert "looks like times" not in caplog.text


def test_not_where_another_column_holds_times(tmp_path, caplog):
    both = [f"{one},{other}" for one, other in zip(EPOCH, ISO, strict=True)]
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        read(table(tmp_path, "a.csv", both, "user,item,timestamp,day"))
        assert "looks like times" not in caplog.text
        read(table(tmp_path, "b.csv", both, "user,item,when,my day"))
    assert "column when looks like times, such as 1300000000 (so do my day), and none are read" in caplog.text


FRAME = {"user": [user for user, _ in ROWS], "item": [item for _, item in ROWS], "when": [int(one) for one in EPOCH]}


@pytest.mark.parametrize(
    "make",
    [
        dict,
        pl.DataFrame,
        lambda frame: pl.DataFrame(frame).with_columns(pl.from_epoch("when")),
        lambda frame: {**frame, "when": np.array(frame["when"], float), "odd": {1, 2}},
    ],
    ids=["dict", "polars", "dates", "odd"],
)
def test_frames(caplog, make):
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        assert from_frame(make(FRAME)).times is None
    assert "the frame: column when looks like times" in caplog.text


@pytest.mark.parametrize("library", ["pandas", "pyarrow"])
def test_frames_of_other_libraries(caplog, library):
    other = pytest.importorskip(library)
    frame = other.DataFrame(FRAME) if library == "pandas" else other.table(FRAME)
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        assert from_frame(frame).times is None
    assert "the frame: column when looks like times" in caplog.text


def test_parquet_and_folders_of_it(tmp_path, caplog):
    frame = pl.DataFrame(FRAME).with_columns(day=pl.from_epoch("when").cast(pl.Date), tags=pl.lit([1]))
    frame.drop("when").write_parquet(tmp_path / "a.parquet")
    (tmp_path / "parts").mkdir()
    for part in (0, 1):
        frame.drop("day").write_parquet(tmp_path / "parts" / f"part-{part}.parquet")
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        read(tmp_path / "a.parquet")
        read(tmp_path / "parts")
    told = [record.getMessage() for record in caplog.records if "looks like times" in record.getMessage()]
    assert len(told) == 2
    assert "a.parquet: column day looks like times, such as 2011-03-13, and" in told[0]
    assert "column when looks like times" in told[1]


def test_recbole(tmp_path, caplog):
    lines = (f"u{user}\ti{item}\t{value}" for (user, item), value in zip(ROWS, EPOCH, strict=True))
    (tmp_path / "a.inter").write_text("\n".join(["user_id:token\titem_id:token\twhen:float", *lines]) + "\n")
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        read(tmp_path / "a.inter")
    assert "a.inter: column when looks like times" in caplog.text
