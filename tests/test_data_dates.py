"""Dates: recognised where they can be read in one way, read by a stated form, refused with an example otherwise."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrs.data import Options, from_frame, read
from kdrs.errors import ConfigError, DataError


def written(folder, values, separator=","):
    path = folder / "a.csv"
    lines = [separator.join(("user", "item", "timestamp"))]
    lines += [separator.join((f"u{n}", f"i{n}", value)) for n, value in enumerate(values)]
    path.write_text("\n".join(lines) + "\n")
    return path


def micros(*moment):
    return int(datetime(*moment, tzinfo=UTC).timestamp() * 10**6)


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata", "UTC"])
@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2012-04-03 18:05", (2012, 4, 3, 18, 5)),
        ("2012-04-03T18:05", (2012, 4, 3, 18, 5)),
        ("2012-04-03T18:05Z", (2012, 4, 3, 18, 5)),
        ("2012-04-03 18:05:09 +02:00", (2012, 4, 3, 16, 5, 9)),
        ("2012-04-03T18:05:09+0200", (2012, 4, 3, 16, 5, 9)),
        ("2012-04-03T18:05:09.25Z", (2012, 4, 3, 18, 5, 9, 250000)),
        ("2012/04/05", (2012, 4, 5)),
        ("2012/4/5", (2012, 4, 5)),
        ("2012/04/05 18:05:09", (2012, 4, 5, 18, 5, 9)),
        ("Tue Apr 03 18:05:09 +0000 2012", (2012, 4, 3, 18, 5, 9)),
        ("Tue Apr 03 18:05:09 +0100 2012", (2012, 4, 3, 17, 5, 9)),
    ],
)
def test_forms_that_are_certain(tmp_path, monkeypatch, zone, text, moment):
    monkeypatch.setenv("TZ", zone)
    assert read(written(tmp_path, [text])).times.tolist() == [micros(*moment)]


@pytest.mark.parametrize(
    ("values", "example", "moments"),
    [
        (["15/04/2012", "03/04/2012"], "%d/%m/%Y", [(2012, 4, 15), (2012, 4, 3)]),
        (["15-04-2012 18:05", "03-04-2012 00:00"], "%d-%m-%Y %H:%M", [(2012, 4, 15, 18, 5), (2012, 4, 3)]),
        (["15.04.2012"], "%d.%m.%Y", [(2012, 4, 15)]),
        (["20120405", "20120403"], "%Y%m%d", [(2012, 4, 5), (2012, 4, 3)]),
        (["20120405180509"], "%Y%m%d%H%M%S", [(2012, 4, 5, 18, 5, 9)]),
        (["2012040518"], "%Y%m%d%H", [(2012, 4, 5, 18)]),
        (["201204051805"], "%Y%m%d%H%M", [(2012, 4, 5, 18, 5)]),
    ],
)
def test_other_forms_are_refused_with_an_example_that_works(tmp_path, values, example, moments):
    path = written(tmp_path, values)
    with pytest.raises(DataError) as caught:
        read(path)
    named = re.search(r'--time-format "([^"]+)"', caught.value.remedy)
    assert named is not None
    assert named[1] == example
    table = read(path, time_format=named[1])
    assert table.times.tolist() == [micros(*moment) for moment in moments]
    assert table.sources[0]["times"] == example


def test_refused_dates_say_what_is_read(tmp_path):
    with pytest.raises(DataError, match=r"such as April 5 cannot be read with certainty; dates are read as 2012-04-03"):
        read(written(tmp_path, ["April 5"]))


@pytest.mark.parametrize(
    ("form", "text", "moment"),
    [
        ("%d/%m/%Y %H:%M", "05/04/2012 18:05", (2012, 4, 5, 18, 5)),
        ("%d.%m.%y", "05.04.69", None),
        ("%d.%m.%y", "05.04.99", (1999, 4, 5)),
        ("%Y-%m-%d %H:%M:%S.%f", "2012-04-05 18:05:09.5", (2012, 4, 5, 18, 5, 9, 500000)),
        ("%Y-%m-%d %H:%M:%S%.f", "2012-04-05 18:05:09.5", (2012, 4, 5, 18, 5, 9, 500000)),
        ("%F %T", "2012-04-05 18:05:09", (2012, 4, 5, 18, 5, 9)),
        ("%m/%d/%Y %I:%M %p", "04/05/2012 06:05 PM", (2012, 4, 5, 18, 5)),
        ("%Y-%j", "2012-096", (2012, 4, 5)),
        ("%d %B %Y", "05 April 2012", (2012, 4, 5)),
        ("%d/%m/%Y %H:%M %z", "05/04/2012 18:05 +0200", (2012, 4, 5, 16, 5)),
        ("%Y%m%d%H", "2012040518", (2012, 4, 5, 18)),
    ],
)
def test_stated_forms(tmp_path, monkeypatch, form, text, moment):
    monkeypatch.setenv("TZ", "America/New_York")
    path = written(tmp_path, [text])
    if moment is None:  # 1969: before the years that are read
        with pytest.raises(DataError, match="outside the years"):
            read(path, time_format=form)
        return
    assert read(path, time_format=form).times.tolist() == [micros(*moment)]


@pytest.mark.parametrize(
    "form", ["", "%d/%m", "%Y-%m", "%s", "%Y-%m-%d %Z", "%c", "%Y-%m-%d %Y", "day", "%Q", "%Y-%m-%d %"]
)
def test_forms_that_are_none(form):
    with pytest.raises(ConfigError, match="time-format"):
        Options(time_format=form)


def test_rows_that_do_not_fit_a_stated_form_are_named(tmp_path):
    with pytest.raises(DataError, match=r"a.csv:3: timestamp is no date of the form %d/%m/%Y: u1,i1,04/25/2012"):
        read(written(tmp_path, ["15/04/2012", "04/25/2012", "16/04/2012"]), time_format="%d/%m/%Y")
    with pytest.raises(DataError, match=r"most timestamps are no dates of the form %m/%d/%Y: 15/04/2012"):
        read(written(tmp_path, ["15/04/2012", "16/04/2012"]), time_format="%m/%d/%Y")


def test_a_form_and_a_unit_contradict_each_other():
    with pytest.raises(ConfigError, match=r"contradict each other"):
        Options(time_format="%Y%m%d", time_unit="s")


def test_a_unit_is_nothing_to_dates(tmp_path):
    with pytest.raises(ConfigError, match=r"time-unit ms with .*dates of the form %Y-%m-%d"):
        read(written(tmp_path, ["2012-04-05"]), time_unit="ms")
    frame = pl.DataFrame({"user": [1], "item": [1], "date": [datetime(2012, 4, 5)]})
    for options in ({"time_unit": "s"}, {"time_format": "%Y%m%d"}):
        with pytest.raises(ConfigError, match="dates by their type"):
            from_frame(frame, **options)


def test_typed_dates_and_numbers_of_frames(tmp_path):
    zoned = datetime(2012, 4, 5, 18, tzinfo=timezone(timedelta(hours=2)))
    frame = pl.DataFrame({"user": [1], "item": [1], "time": [zoned]})
    assert from_frame(frame).times.tolist() == [micros(2012, 4, 5, 16)]
    whole = pl.DataFrame({"user": [1], "item": [1], "time": [20120405]})
    with pytest.raises(DataError, match="may be dates that are written as numbers"):
        from_frame(whole)
    assert from_frame(whole, time_format="%Y%m%d").times.tolist() == [micros(2012, 4, 5)]


def test_ten_digits_may_be_seconds_or_hours_of_a_day(tmp_path):
    path = written(tmp_path, ["2012040518"])
    assert read(path, time_unit="s").times.tolist() == [2012040518 * 10**6]
    # One value that is no hour of a day, and they are seconds.
    assert read(written(tmp_path, ["2012040518", "2012049918"])).sources[0]["times"] == "s"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.datetimes(datetime(1971, 1, 1), datetime(2199, 12, 31)), min_size=1, max_size=20),
    st.sampled_from(
        ["%d/%m/%Y %H:%M:%S", "%Y%m%d%H%M%S", "%d %b %Y, %H:%M:%S", "%Y-%m-%d %H:%M:%S.%f", "%I:%M:%S %p %d.%m.%Y"]
    ),
)
def test_stated_forms_read_what_they_write(tmp_path_factory, moments, form):
    path = tmp_path_factory.getbasetemp() / "a.tsv"
    texts = [moment.strftime(form) for moment in moments]
    path.write_text("user\titem\ttime\n" + "".join(f"u\ti{n}\t{text}\n" for n, text in enumerate(texts)))
    expected = [datetime.strptime(text, form).replace(tzinfo=UTC) for text in texts]
    found = read(path, time_format=form).times
    assert found.tolist() == [(e - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) for e in expected]


def test_many_equal_dates_are_read_once(tmp_path):
    texts = ["15/04/2012", "16/04/2012"] * 500
    times = read(written(tmp_path, texts), time_format="%d/%m/%Y").times
    assert np.unique(times).size == 2
    assert times[0] < times[1]


def test_a_unit_is_no_remedy_for_dates_of_other_years(tmp_path):
    (tmp_path / "a.csv").write_text("user,item,timestamp\na,x,1969-01-01\nb,y,2012-01-01\n")
    with pytest.raises(DataError, match=r"a\.csv:2: timestamp is outside the years 1970 to 2199: a,x,1969-01-01"):
        read(tmp_path / "a.csv")
