"""Typed columns: what may be an id, a rating or a time, and that no digit is lost on the way."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
import scipy.sparse
import torch

from kdrs.data import Options, Recipe, Table, from_frame, prepare, read, read_parts
from kdrs.errors import ConfigError, DataError

IDS = {"user": [1, 2, 3], "item": ["a", "b", "c"]}


def pairs(table):
    return [(table.user_ids[u], table.item_ids[i]) for u, i in zip(table.users, table.items, strict=True)]


EXPECTED = [("1", "a"), ("2", "b"), ("3", "c")]


# Ratings


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([3.9, 4.1, 5.0]),
        pl.Series([Decimal("3.9"), Decimal("4.1"), Decimal("5")]),
        pl.Series(["3.9", "4.1", "5"]),
        pl.Series(["3.9", "4.1", "5"], dtype=pl.Categorical),
    ],
    ids=["double", "decimal", "text", "categorical"],
)
def test_ratings_keep_their_fractions(tmp_path, column):
    frame = pl.DataFrame({**IDS, "rating": column})
    assert from_frame(frame).ratings.tolist() == [3.9, 4.1, 5.0]
    if column.dtype != pl.Categorical:
        frame.write_parquet(tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet").ratings.tolist() == [3.9, 4.1, 5.0]


def test_decimal_and_double_are_prepared_alike(tmp_path):
    rows = [(u, i) for u in range(6) for i in range(10)]
    users, items = zip(*rows, strict=True)
    results = []
    for name, kind in (("decimal", pl.Decimal(2, 1)), ("float", pl.Float64)):
        frame = pl.DataFrame({"user": users, "item": items, "rating": pl.Series([3.9] * 60).cast(kind)})
        frame.write_parquet(tmp_path / f"{name}.parquet")
        results.append(prepare(tmp_path / f"{name}.parquet", Recipe(min_rating=3.5, split="ratio")))
    assert results[0].full.n_pairs == 60
    assert results[0].fingerprint == results[1].fingerprint


@pytest.mark.parametrize(
    "rating",
    [
        pl.Series([1, 2, 2**53 + 1]),
        pl.Series(["1", "2", str(2**53 + 1)]),
        pl.Series([Decimal("1"), Decimal("2"), Decimal("0.12345678901234567891")]),
        pl.Series([1, 2, 2**64 - 1], dtype=pl.UInt64),
    ],
    ids=["integer", "text", "decimal", "unsigned"],
)
def test_a_rating_that_would_lose_digits_is_refused(rating):
    with pytest.raises(DataError, match=r"row 3: rating has more digits than a double holds"):
        from_frame(pl.DataFrame({**IDS, "rating": rating}))


WRONG_RATINGS = {
    "Date": pl.Series([date(2012, 4, 5)] * 3),
    "Datetime": pl.Series([datetime(2012, 4, 5)] * 3),
    "Duration": pl.Series([timedelta(days=1)] * 3),
    "List": pl.Series([[1.0]] * 3),
    "Struct": pl.Series([{"a": 1}] * 3),
    "Boolean": pl.Series([True, False, True]),
    "Binary": pl.Series([b"1"] * 3),
}


@pytest.mark.parametrize("kind", WRONG_RATINGS)
def test_other_types_are_no_ratings(tmp_path, kind):
    frame = pl.DataFrame({**IDS, "rating": WRONG_RATINGS[kind]})
    match = rf"rating column rating is {kind}.*; allowed: integers, floats, decimals, and text that holds numbers"
    with pytest.raises(DataError, match=match) as caught:
        from_frame(frame)
    assert "--rating none" in caught.value.remedy
    assert from_frame(frame, rating="none").n_rows == 3
    frame.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=match):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["Date", "Duration", "List", "Struct", "Boolean", "Binary"])
def test_other_types_are_no_ids(kind):
    frame = pl.DataFrame({"user": WRONG_RATINGS[kind], "item": [1, 2, 3]})
    with pytest.raises(DataError, match=rf"user ids in column user are {kind}.*; allowed: integers and text"):
        from_frame(frame)


def test_decimal_ids_are_no_ids():
    frame = pl.DataFrame({"user": pl.Series([Decimal("1.0")] * 3), "item": [1, 2, 3]})
    with pytest.raises(DataError, match=r"user ids in column user are Decimal"):
        from_frame(frame)


# Times


def test_decimal_times_keep_their_fractions(tmp_path):
    times = [Decimal("1300000000.25"), Decimal("1300000000.75"), Decimal("1300000001.5")]
    pl.DataFrame({**IDS, "timestamp": times}).write_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").times.tolist() == [1300000000250000, 1300000000750000, 1300000001500000]


def test_single_precision_times_have_lost_digits():
    frame = pl.DataFrame({**IDS, "timestamp": pl.Series([1.3e9] * 3, dtype=pl.Float32)})
    with pytest.raises(DataError, match=r"timestamp is Float32, .* the times have lost digits"):
        from_frame(frame)
    assert from_frame(frame, time_unit="order").time_unit == "order"


@pytest.mark.parametrize("kind", ["Duration", "List", "Struct", "Boolean", "Binary"])
def test_other_types_are_no_times(kind):
    frame = pl.DataFrame({**IDS, "timestamp": WRONG_RATINGS[kind]})
    with pytest.raises(DataError, match=rf"timestamp column timestamp is {kind}.*; allowed: .*dates"):
        from_frame(frame)


@pytest.mark.parametrize("unit", ["D", "s", "ms", "us", "ns"])
def test_arrays_of_dates(tmp_path, unit):
    times = np.array(["2012-04-05", "2012-04-06", "2012-04-07"], f"datetime64[{unit}]")
    np.savez(tmp_path / "a.npz", users=[1, 2, 3], items=[1, 2, 3], timestamps=times)
    assert read(tmp_path / "a.npz").times.tolist() == (times.astype("datetime64[us]").astype(np.int64)).tolist()


# Only what is used is converted


def test_unused_arrays_are_not_touched(tmp_path):
    extra = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "a.npz", users=[1, 2], items=[3, 4], notes=extra)
    assert pairs(read(tmp_path / "a.npz")) == [("1", "3"), ("2", "4")]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["i2", "u4", "i8"])
def test_arrays_of_any_byte_order(tmp_path, order, kind):
    np.save(tmp_path / "a.npy", np.array([[1, 300], [2, 400]], order + kind))
    assert pairs(read(tmp_path / "a.npy")) == [("1", "300"), ("2", "400")]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("point", [0xD800, 0x110000])
def test_text_that_is_no_unicode(tmp_path, order, point):
    items = np.array([point, 97], f"{order}u4").view(f"{order}U1")
    np.savez(tmp_path / "a.npz", users=[1, 2], items=items)
    with pytest.raises(DataError, match=r"a.npz: item array items holds text that is no Unicode"):
        read(tmp_path / "a.npz")


def test_dictionaries():
    frame = {"user": np.array([1, 2, 3]), "item": list("abc"), "junk": object(), "rating": pl.Series([1, 2, 3])}
    table = from_frame(frame)
    assert pairs(table) == EXPECTED
    assert table.ratings.tolist() == [1, 2, 3]
    with pytest.raises(DataError, match=r"columns of 2 and 3 rows"):
        from_frame({**frame, "item": ["a", "b"]})
    with pytest.raises(DataError, match=r"item column item mixes int \(row 1\) and str \(row 2\)"):
        from_frame({**frame, "item": [1, "b", 2]})
    with pytest.raises(DataError, match=r"user column user is a object, no list of values"):
        from_frame({**frame, "user": object()})
    with pytest.raises(DataError, match=r"user column user holds objects of type bool"):
        from_frame({**frame, "user": [True, False, True]})


def test_lazy_frames_are_collected_in_part():
    lazy = pl.LazyFrame({**IDS, "broken": [1, 2, 3]}).with_columns(pl.col("broken").cast(pl.String).str.to_date("%Y"))
    with pytest.raises(pl.exceptions.PolarsError):
        lazy.collect()
    assert pairs(from_frame(lazy)) == EXPECTED


def test_frames_have_no_format():
    with pytest.raises(ConfigError, match="format csv with a frame"):
        from_frame(pl.DataFrame(IDS), format="csv")


# pandas and Arrow, where they are installed


@pytest.mark.parametrize("extra", [[1, "x", 2], [[1, "a"]] * 3, [{"a": 1}] * 3])
def test_unrelated_pandas_columns_do_not_matter(extra):
    pandas = pytest.importorskip("pandas")
    assert pairs(from_frame(pandas.DataFrame(IDS).assign(extra=extra))) == EXPECTED


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (lambda p: p.Series([1, 2, 3], dtype="Int64"), ["1", "2", "3"]),
        (lambda p: p.Series(["x", "y", "z"], dtype="string"), ["x", "y", "z"]),
        (lambda p: p.Series(["x", "y", "x"], dtype="category"), ["x", "y", "x"]),
        (lambda p: p.Series([7, 8, 7], dtype="category"), ["7", "8", "7"]),
        (lambda p: p.Series(["x", "y", "z"], dtype=object), ["x", "y", "z"]),
        (lambda p: p.Series([2**70, 1, 2], dtype=object), [str(2**70), "1", "2"]),
        (lambda p: p.Series([1, 2, 3], dtype="uint8"), ["1", "2", "3"]),
    ],
)
def test_pandas_ids(column, expected):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"user": column(pandas), "item": [1, 2, 3]})
    assert [user for user, _ in pairs(from_frame(frame))] == expected


@pytest.mark.parametrize(
    ("column", "match"),
    [
        (lambda p: p.Series([1, None, 3], dtype="Int64"), r"row 2: user: the id is empty"),
        (lambda p: p.Series(["x", None, "z"], dtype="category"), r"row 2: user: the id is empty"),
        (lambda p: p.Series([1, None, 3]), r"floats \(Float64\), 1 of them missing or NaN"),
        (lambda p: p.Series([1, "x", 3]), r"user column user mixes int \(row 1\) and str \(row 2\)"),
        (lambda p: p.Series(p.to_timedelta([1, 2, 3], unit="s")), r"user column user is timedelta64"),
        (lambda p: p.Series(p.period_range("2012", periods=3, freq="Y")), r"user column user is period"),
    ],
)
def test_pandas_ids_that_are_none(column, match):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(DataError, match=match):
        from_frame(pandas.DataFrame({"user": column(pandas), "item": [1, 2, 3]}))


def test_pandas_ratings_and_times():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(IDS)
    frame["rating"] = pandas.Series([Decimal("3.9"), Decimal("4.25"), Decimal("5")], dtype=object)
    frame["time"] = pandas.date_range("2012-04-05", periods=3, tz="Europe/Berlin")
    table = from_frame(frame)
    assert table.ratings.tolist() == [3.9, 4.25, 5.0]
    assert table.times[0] == int(datetime.fromisoformat("2012-04-05T00:00:00+02:00").timestamp() * 10**6)
    frame["rating"] = [1, None, 3]
    with pytest.raises(DataError, match=r"row 2: rating is NaN"):
        from_frame(frame)


def test_pandas_columns_of_one_name():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([[1, 2, 3], [4, 5, 6]], columns=["user", "item", "item"])
    with pytest.raises(DataError, match="several columns could be the item"):
        from_frame(frame)
    assert pairs(from_frame(frame, item=2)) == [("1", "3"), ("4", "6")]


def test_arrow_tables():
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({**IDS, "extra": [[1], [2], [3]], "rating": [Decimal("3.9"), Decimal("4.1"), Decimal("5.0")]})
    assert pairs(from_frame(table)) == EXPECTED
    assert from_frame(table).ratings.tolist() == [3.9, 4.1, 5.0]
    dictionary = table.set_column(1, "item", table["item"].dictionary_encode())
    assert pairs(from_frame(dictionary)) == EXPECTED


# Narrow floats, tensors, and what is no column


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_rating_of_a_narrow_float_reaches_its_own_threshold(tmp_path, kind):
    # 3.3, 3.7 and 3.1 lie below or above themselves once a narrow float is widened
    users, items = np.repeat(np.arange(6), 10), np.tile(np.arange(10), 6)
    for rating in (3.1, 3.3, 3.7):
        ratings = np.full(60, rating, kind)
        np.savez(tmp_path / "a.npz", users=users, items=items, ratings=ratings)
        tables = [
            read(tmp_path / "a.npz"),
            from_frame({"user": users, "item": items, "rating": ratings}),
            Table.from_pairs(users, items, ratings=ratings),
        ]
        if kind != np.float16:
            pl.DataFrame({"user": users, "item": items, "rating": ratings}).write_parquet(tmp_path / "a.parquet")
            tables.append(read(tmp_path / "a.parquet"))
            scipy.sparse.save_npz(tmp_path / "m.npz", scipy.sparse.coo_array((ratings, (users, items))))
            tables.append(read(tmp_path / "m.npz"))
        for table in tables:
            assert table.ratings.tolist() == [rating] * 60
            for threshold in (rating, kind(rating)):
                assert prepare(table, Recipe(min_rating=threshold, split="ratio")).full.n_pairs == 60


def test_missing_narrow_floats_are_told():
    column = pl.Series([3.3, None, 4], dtype=pl.Float32)
    with pytest.raises(DataError, match="row 2: rating is missing"):
        from_frame({**IDS, "rating": column})


def test_columns_of_tensors():
    users, items = torch.tensor([1, 2, 3]), ["a", "b", "c"]
    assert pairs(from_frame({"user": users, "item": items})) == EXPECTED
    assert pairs(Table.from_pairs(users, items, ratings=torch.tensor([1.0, 2.0, 3.0]))) == EXPECTED


@pytest.mark.parametrize(
    "users", [{1, 2, 3}, {1: 0, 2: 0, 3: 0}, "123", b"123"], ids=lambda users: type(users).__name__
)
def test_what_has_no_rows_is_no_column(users):
    with pytest.raises(DataError, match=f"user ids are a {type(users).__name__}, which is no column"):
        Table.from_pairs(users, ["a", "b", "c"])
    assert pairs(Table.from_pairs({1: 0, 2: 0, 3: 0}.keys(), ["a", "b", "c"])) == EXPECTED  # in its order


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"ratings": ["good", "bad", "good"]}, "ratings are <U4; allowed: real numbers"),
        ({"ratings": np.ones(3) * 1j}, "ratings are complex128; allowed: real numbers"),
        ({"times": np.array([1, 2, 2**63 + 1], np.uint64)}, "times run to 9223372036854775809; allowed: int64"),
    ],
)
def test_pairs_of_wrong_numbers(given, says):
    with pytest.raises(DataError, match=says):
        Table.from_pairs([1, 2, 3], ["a", "b", "c"], **given)


def test_what_to_do_about_a_column_is_of_its_role():
    wrong = [True, False, True]
    for role, remedy in (("user", "str"), ("rating", "--rating none"), ("timestamp", "--timestamp none")):
        with pytest.raises(DataError, match="bool") as caught:
            from_frame({**IDS, role: wrong})
        assert remedy in caught.value.remedy
        if role != "user":
            assert pairs(from_frame({**IDS, role: wrong}, **{role: "none"})) == EXPECTED


def test_ids_with_values_are_told(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("0 1:4\n0 2:3\n1 1:5\n")
    read(tmp_path / "a.txt")
    assert "item ids such as 1:4 look like an index with its value" in caplog.text


# Options and sources of other types


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: Recipe(allow_leak="no"), "allow-leak is no"),
        (lambda: Recipe(complete_users=1), "complete-users is 1"),
        (lambda: Recipe(min_rating=True), "min-rating is True"),
        (lambda: Recipe(read={"user": "a"}), "read is {'user': 'a'}"),
        (lambda: Recipe(fractions=None), "three shares"),
        (lambda: Recipe(fractions=("a", "b", "c")), "three shares"),
        (lambda: Recipe(fractions=0.8), "three shares"),
        (lambda: Options(strip="no"), "strip is no"),
        (lambda: Options(header="yes"), "header is yes"),
        (lambda: prepare(pl.DataFrame(IDS)), "the source is a DataFrame"),
        (lambda: prepare(IDS), "the source is a map of user, item"),
        (lambda: prepare(None), "the source is a NoneType"),
        (lambda: prepare({"train": pl.DataFrame(IDS)}), "train is a DataFrame"),
        (lambda: read_parts(["a.csv"]), "parts are"),
        (lambda: read_parts({}), "parts are"),
    ],
)
def test_other_types_are_refused_in_words(made, says):
    with pytest.raises(ConfigError) as caught:
        made()
    assert says in str(caught.value)


def test_numbers_of_numpy_are_numbers(tmp_path):
    assert Recipe(min_rating=np.int64(3)).min_rating == 3
    (tmp_path / "a.csv").write_text("a,1\nb,2\n")
    assert read(tmp_path / "a.csv", header=False, user=np.int64(1), item=0).user_ids[0] == "1"
