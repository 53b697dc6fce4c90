"""Times, numbers, objects and files that change: what readers make of values."""

from __future__ import annotations

import os
import threading

import numpy as np
import polars as pl
import pytest
import scipy.sparse

from kdrs.data import Options, from_frame, read, read_parts
from kdrs.errors import ConfigError, DataError
from test_data_readers import pairs, write


def test_lines_are_right_after_quoted_newlines(tmp_path):
    path = write(tmp_path, "a.csv", 'user,item,rating\n"a\nb",x,1\n"c",y,-1\n')
    with pytest.raises(DataError, match=r"a.csv:4: rating is negative"):
        read(path)


# Times


@pytest.mark.parametrize(
    ("column", "micros"),
    [
        (["881250949", "881250950"], [881250949000000, 881250950000000]),
        (["881250949123", "881250950000"], [881250949123000, 881250950000000]),
        (["881250949123456", "881250950000000"], [881250949123456, 881250950000000]),
        (["881250949123456789", "881250950000000000"], [881250949123456, 881250950000000]),
        (["881250949.5", "881250950.0"], [881250949500000, 881250950000000]),
        (["2001-02-03", "2001-02-04"], [981158400000000, 981244800000000]),
        (["2001-02-03 01:00:00", "2001-02-03 02:00:00.5"], [981162000000000, 981165600500000]),
        (["2001-02-03T01:00:00+01:00", "2001-02-03T02:00:00+00:00"], [981158400000000, 981165600000000]),
        (["2001-02-03T01:00:00Z", "2001-02-03T02:00:00Z"], [981162000000000, 981165600000000]),
    ],
)
def test_times_become_microseconds_utc(tmp_path, monkeypatch, column, micros):
    monkeypatch.setenv("TZ", "America/New_York")
    path = write(tmp_path, "a.csv", "user,item,timestamp\n" + "".join(f"u,i{n},{t}\n" for n, t in enumerate(column)))
    assert read(path).times.tolist() == micros


def test_bare_order_numbers(tmp_path):
    path = write(tmp_path, "a.csv", "user,item,time\nu,a,30\nu,b,10\n")
    table = read(path, time_unit="order")
    assert (table.times.tolist(), table.time_unit) == ([30, 10], "order")
    assert table.sequence().tolist() == [1, 0]


def test_parquet_dates_and_nulls(tmp_path):
    frame = pl.DataFrame({"user": [1, 2], "item": ["a", "b"], "timestamp": ["2001-02-03", None]})
    frame.with_columns(pl.col("timestamp").str.to_date()).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: row 2: timestamp is missing"):
        read(tmp_path / "a.parquet")
    pl.DataFrame({"user": [1, None], "item": ["a", "b"]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet: row 2: user: the id is empty"):
        read(tmp_path / "b.parquet")


# Arrays


def test_float_ids_in_frames_and_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(DataError, match=r"a.npy: user ids in column user are floats"):
        read(tmp_path / "a.npy")
    assert pairs(read(tmp_path / "a.npy", float_ids="whole")) == [("1", "2"), ("3", "4")]
    with pytest.raises(DataError, match=r"floats .* 1 of them missing or NaN"):
        from_frame(pl.DataFrame({"user": [1.0, float("nan")], "item": [1, 2]}))


def test_fractional_ratings_of_frames_stay(tmp_path):
    table = from_frame(pl.DataFrame({"user": [1, 2], "item": [1, 2], "rating": [3.5, 4.0]}))
    assert table.ratings.tolist() == [3.5, 4.0]


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_objects_are_never_unpickled(tmp_path):
    marker = tmp_path / "marker"
    np.save(tmp_path / "a.npy", np.array([Marker(marker)], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", users=np.array([Marker(marker)], dtype=object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match=r"kdrs never loads pickles"):
            read(tmp_path / name)
    assert not marker.exists()


def test_announced_size_is_checked_before_memory_is_taken(tmp_path):
    header = np.lib.format.magic(1, 0)
    text = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000, 2), }"
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    write(tmp_path, "a.npy", header + len(text).to_bytes(2, "little") + text + b"\0" * 16)
    with pytest.raises(DataError, match=r"a.npy announces 16,000,000,000,000 bytes .* and holds 16"):
        read(tmp_path / "a.npy")


def test_truncated_archives(tmp_path):
    np.savez(tmp_path / "a.npz", users=np.arange(100), items=np.arange(100))
    whole = (tmp_path / "a.npz").read_bytes()
    write(tmp_path, "b.npz", whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"b.npz is no readable .npz file"):
        read(tmp_path / "b.npz")
    np.save(tmp_path / "a.npy", np.zeros((10, 2), np.int64))
    write(tmp_path, "b.npy", (tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(DataError, match=r"announces 160 bytes"):
        read(tmp_path / "b.npy")
    write(tmp_path, "b.parquet", b"PAR1abc")
    with pytest.raises(DataError, match=r"no readable Parquet file"):
        read(tmp_path / "b.parquet")


def test_a_huge_id_takes_no_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[10**12, 1], [5, 2]]))
    assert pairs(read(tmp_path / "a.npy")) == [("1000000000000", "1"), ("5", "2")]


def test_matrix_values_are_ratings_and_zeros_are_no_rows(tmp_path):
    matrix = scipy.sparse.csr_array((np.array([5.0, 0.0, 3.0]), np.array([0, 1, 2]), np.array([0, 2, 3])), shape=(2, 3))
    scipy.sparse.save_npz(tmp_path / "a.npz", matrix)
    table = read(tmp_path / "a.npz")
    assert pairs(table) == [("0", "0"), ("1", "2")]
    assert table.ratings.tolist() == [5.0, 3.0]
    assert table.order_by is None
    assert table.steps[-1]["zeros"] == 1


# Files that change, pipes, odd names, parts


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, "a.csv", "user,item\na,b\n")
    real = os.stat

    def later(name, *args, **kwargs):
        if str(name) == str(path):
            monkeypatch.setattr(os, "stat", real)
            path.write_text("user,item\na,b\nc,d\n")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "stat", later)
    with pytest.raises(DataError, match=r"changed while it was read"):
        read(path, "csv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("user,item\na,b\n"))
    writer.start()
    table = read(pipe, "csv")
    writer.join()
    assert pairs(table) == [("a", "b")]
    assert len(table.sources[0]["sha256"]) == 64


def test_odd_names(tmp_path):
    folder = tmp_path / "a folder; $HOME é"
    folder.mkdir()
    path = write(folder, "daten ü.csv", "user,item\na,b\n")
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    assert pairs(read(path)) == pairs(read(link)) == [("a", "b")]


def test_parts_share_their_ids(tmp_path):
    train = write(tmp_path, "train.tsv", "user\titem\na\tx\nb\ty\n")
    test = write(tmp_path, "test.tsv", "user\titem\nb\tz\nc\tx\n")
    parts = read_parts({"train": train, "test": test})
    assert list(parts["train"].user_ids) == list(parts["test"].user_ids) == ["a", "b", "c"]
    assert pairs(parts["test"]) == [("b", "z"), ("c", "x")]


def test_unknown_options_are_refused():
    with pytest.raises(ConfigError, match=r"unknown format csvv"):
        Options(format="csvv")
    with pytest.raises(ConfigError, match=r"allowed: one ASCII character"):
        Options(separator="ab")


def test_lists_have_no_columns(tmp_path):
    with pytest.raises(ConfigError, match=r"user-lists have no columns"):
        read(write(tmp_path, "a.txt", "1 2 3\n"), "user-lists", user="uid")


def test_counts_may_be_kept_as_items(tmp_path):
    table = read(write(tmp_path, "users.dat", "2 5 6\n1 2\n"), keep_counts=True)
    assert pairs(table) == [("0", "2"), ("0", "5"), ("0", "6"), ("1", "1"), ("1", "2")]
