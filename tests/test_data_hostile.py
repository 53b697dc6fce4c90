"""Damaged and hostile files: one clear error, no panic, and no memory for what a file only claims."""

from __future__ import annotations

import functools
import io
import json
import resource
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.io
import scipy.sparse

import fuzz_readers
from kdrs import _memory
from kdrs.data import _footer, _guard, read, readers
from kdrs.errors import ConfigError, DataError, MachineError


def npz(path, members, packing=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, array in members.items():
            stream = io.BytesIO()
            np.save(stream, array)
            archive.writestr(f"{name}.npy", stream.getvalue())
    return path


# The door


class PanicException(BaseException):
    """As the one of pyo3: no Exception."""


@pytest.mark.parametrize(
    "error",
    [
        zlib.error("damaged"),
        OverflowError("too large"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        PanicException("index out of bounds"),
        pl.exceptions.ComputeError("broken"),
        RecursionError(),
        KeyError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("form", ["csv", "parquet", "npz"])
def test_whatever_a_reader_raises_is_wrong_data(tmp_path, monkeypatch, error, form):
    def broken(*_):
        raise error

    table = readers._TEXT_READERS if form == "csv" else readers._BINARY_READERS
    monkeypatch.setitem(table, form, broken)
    path = tmp_path / "a.csv"
    path.write_text("user,item\n1,2\n")
    with pytest.raises(DataError, match=r"a.csv cannot be read: ") as caught:
        read(path, form)
    assert caught.value.exit_code == 3
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), MemoryError(), ConfigError("x"), MachineError("y")]
)
def test_what_is_no_fault_of_the_file_passes(error):
    with pytest.raises(type(error)) as caught, _guard.guarded("a file"):
        raise error
    assert caught.value is error


# Archives


def test_damaged_deflate(tmp_path):
    path = npz(tmp_path / "a.npz", {"users": np.arange(500), "items": np.arange(500)}, zipfile.ZIP_DEFLATED)
    whole = bytearray(path.read_bytes())
    start = whole.index(b"users.npy") + 9
    for place in range(start + 20, start + 200, 7):
        whole[place] ^= 0x55
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"a.npz is no readable .npz file: users.npy: "):
        read(path)


@pytest.mark.parametrize(("packing", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")])
def test_packings_that_numpy_never_writes(tmp_path, packing, name):
    path = npz(tmp_path / "a.npz", {"users": np.arange(5), "items": np.arange(5)}, packing)
    with pytest.raises(
        DataError, match=rf"member users.npy is packed by {name}; allowed: stored and deflate"
    ) as caught:
        read(path)
    assert "savez_compressed" in caught.value.remedy


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(_guard, "memory_at_hand", lambda: 20 * 2**20)


def test_an_archive_larger_than_the_memory_is_refused_by_its_sizes(tmp_path, little_memory):
    zeros = np.zeros(2 * 2**20, np.int64)
    path = npz(tmp_path / "a.npz", {"users": zeros, "items": zeros}, zipfile.ZIP_DEFLATED)
    with pytest.raises(
        DataError, match=r"a.npz unpacks to 0.1 GB by its own account, and 0.0 GB of memory are at hand"
    ):
        read(path)


def test_members_that_are_not_used_are_not_unpacked(tmp_path, little_memory):
    zeros = np.zeros(8 * 2**20, np.int64)
    path = npz(tmp_path / "a.npz", {"users": [1], "items": [2], "rest": zeros}, zipfile.ZIP_DEFLATED)
    assert read(path).n_rows == 1


def test_two_members_of_one_name(tmp_path):
    path = npz(tmp_path / "a.npz", {"users": [1], "items": [2]})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("users", archive.read("users.npy"))
    with pytest.raises(DataError, match="has two members users"):
        read(path)


def test_a_member_that_lies_about_its_shape(tmp_path):
    path = tmp_path / "a.npz"
    head = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("users.npy", np.lib.format.magic(1, 0) + len(head).to_bytes(2, "little") + head + b"\0" * 8)
        archive.writestr("items.npy", b"")
    with pytest.raises(DataError, match=r"users.npy announces 8,000,000,000,000 bytes .* and holds 8"):
        read(path)


@pytest.mark.parametrize("shape", ["(-1, -2)", "(2,)", "(0, 2)"])
@pytest.mark.parametrize("kind", ["<U0", "|V0", "<i8"])
def test_arrays_without_bytes(tmp_path, shape, kind):
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    (tmp_path / "a.npy").write_bytes(np.lib.format.magic(1, 0) + len(head).to_bytes(2, "little") + head)
    with pytest.raises(DataError, match=r"announces|without bytes|no rows|no readable"):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("kind", [np.uint32, np.uint64, np.int32, np.int64])
def test_an_indptr_that_wraps_round(tmp_path, kind):
    matrix = scipy.sparse.csr_array((np.ones(3), np.array([0, 1, 2]), np.array([0, 2, 3])), shape=(2, 3))
    scipy.sparse.save_npz(tmp_path / "a.npz", matrix)
    with np.load(tmp_path / "a.npz") as archive:
        arrays = dict(archive)
    arrays["indptr"] = np.array([0, 5, 3], kind)  # the difference of unsigned numbers is 4,294,967,294
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(DataError, match="indptr does not describe 2 rows of 3 places"):
        read(tmp_path / "b.npz")


# Parquet


def written(folder, n=2000, **options):
    frame = pl.DataFrame({"user": [f"u{k % 50}" for k in range(n)], "item": list(range(n))})
    frame.write_parquet(folder / "a.parquet", **options)
    return folder / "a.parquet"


@pytest.mark.parametrize("compression", ["uncompressed", "snappy", "gzip", "zstd", "lz4"])
def test_whole_files_pass(tmp_path, compression):
    path = written(tmp_path, compression=compression, row_group_size=300, data_page_size=512)
    assert read(path).n_rows == 2000
    _footer.check_parquet(path.read_bytes(), ["user", "item"], "a")


def test_files_of_other_writers_pass(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"user": [f"u{k % 50}" for k in range(2000)], "item": list(range(2000)), "x": [[1]] * 2000})
    for n, options in enumerate(
        (
            {"data_page_version": "2.0"},
            {"use_dictionary": False, "row_group_size": 100, "data_page_size": 64},
            {"compression": "zstd", "write_page_index": True, "store_schema": False},
            {"use_dictionary": False, "column_encoding": {"item": "DELTA_BINARY_PACKED", "user": "DELTA_BYTE_ARRAY"}},
            {"use_dictionary": False, "column_encoding": {"user": "DELTA_LENGTH_BYTE_ARRAY"}},
        )
    ):
        parquet.write_table(table, tmp_path / f"{n}.parquet", **options)
        assert read(tmp_path / f"{n}.parquet").n_rows == 2000


def test_a_dictionary_bomb_is_refused_by_its_sizes(tmp_path, little_memory):
    """A million times one text, in a file of some kilobytes."""
    frame = pl.DataFrame({"user": ["x"], "item": [1]})
    big = pl.concat([frame] * 1000).select(pl.all().repeat_by(1000).explode())
    big.write_parquet(tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 2**17
    with pytest.raises(DataError, match=r"a.parquet unpacks to .* by its own account"):
        read(tmp_path / "a.parquet")


def test_damage_anywhere_is_a_table_or_an_error(tmp_path):
    whole = written(tmp_path, 200).read_bytes()
    path = tmp_path / "b.parquet"
    generator = np.random.default_rng(0)
    refused = []
    for _ in range(150):
        damaged = bytearray(whole)
        for place in generator.integers(4, len(whole), 3):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read(path)
        except DataError as error:
            refused.append(error.cause)
    assert len(refused) > 50
    assert all(cause.isprintable() for cause in refused)


def test_a_page_that_states_more_than_its_column(tmp_path):
    path = written(tmp_path, 200, compression="uncompressed")
    data = path.read_bytes()
    whole = _footer._Compact(data, 0, len(data))
    footer = int.from_bytes(data[-8:-4], "little")
    facts = _footer._Compact(data, len(data) - 8 - footer, len(data) - 8).struct()[4][0][1][1][3]
    start = min(place for place in (facts[9], facts.get(11, 0)) if place > 0)
    whole.place = start
    page = whole.struct()
    head = data[start : whole.place]

    def number(value):
        value = value << 1
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    lying = head.replace(number(page[2]), number(2**30), 1)
    assert lying != head
    # The footer still states the old sizes: the page contradicts it.
    path.write_bytes(data[:start] + lying + data[start + len(head) :])
    with pytest.raises(DataError, match="no readable Parquet file: a page states 1,073,741,824 bytes"):
        read(path)


@pytest.mark.parametrize(
    "content", [b"PAR1", b"PAR1PAR1", b"PAR1" + b"\xff" * 8 + b"PAR1", b"PAR1\x19\x00" + b"\2\0\0\0PAR1"]
)
def test_footers_that_are_none(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a.parquet is no readable Parquet file"):
        read(tmp_path / "a.parquet")


# Text


def test_text_that_begins_like_a_compressed_file(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x\x01,b\nc,d\n")
    table = read(tmp_path / "a.csv", header=False)
    assert list(table.user_ids) == ["x\x01", "c"]


def test_a_file_larger_than_the_memory(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("user,item\n1,2\n")
    monkeypatch.setattr(_guard, "memory_at_hand", lambda: 10)
    with pytest.raises(MachineError, match=r"takes .* to read, and .* of memory are at hand"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("magic", [b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zXZ\x00"])
def test_compressed_text_is_never_unpacked(tmp_path, magic):
    (tmp_path / "a.csv").write_bytes(magic + b"rest")
    with pytest.raises(DataError, match="it looks like"):
        read(tmp_path / "a.csv", "csv")


# The memory at hand


def test_memory_at_hand_heeds_ulimit():
    code = (
        "import resource; from kdrs import _memory; before = _memory.memory_at_hand();"
        f"resource.setrlimit(resource.RLIMIT_AS, ({3 * 2**30}, {3 * 2**30}));"
        "print(before, _memory.memory_at_hand())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after <= min(before, 3 * 2**30)
    assert after > 2**28


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_at_hand_heeds_cgroups(tmp_path, monkeypatch):
    for folder, limit, used in ((tmp_path, "max", 0), (tmp_path / "a", str(10 * 2**20), 4 * 2**20)):
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {2**20}\n")
    monkeypatch.setattr(_memory, "_CGROUPS", tmp_path)
    real = _memory._text
    monkeypatch.setattr(_memory, "_text", lambda path: "0::/a/b" if str(path) == "/proc/self/cgroup" else real(path))
    assert _memory.memory_at_hand() == (10 - 4 + 1) * 2**20
    assert _memory.memory_limit() == 10 * 2**20


@pytest.mark.slow
def test_a_bomb_under_a_limit_ends_with_exit_code_3(tmp_path):
    """Twice 2 GiB of zeros in some 20 MB, deflated: one piece again and again, as zipfile cannot write it."""
    path = tmp_path / "bomb.npz"
    head = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({2**28},), }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    head, zeros = np.lib.format.magic(1, 0) + len(head).to_bytes(2, "little") + head, bytes(2**24)
    deflate = zlib.compressobj(1, wbits=-15)
    first, piece = (deflate.compress(part) + deflate.flush(zlib.Z_FULL_FLUSH) for part in (head, zeros))
    body = first + 128 * piece + deflate.flush()
    crc = functools.reduce(lambda crc, _: zlib.crc32(zeros, crc), range(128), zlib.crc32(head))
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("users.npy", "items.npy"):
            member = zipfile.ZipInfo(name)
            member.compress_type, member.header_offset = zipfile.ZIP_DEFLATED, archive.fp.tell()
            member.CRC, member.compress_size, member.file_size = crc, len(body), len(head) + 128 * len(zeros)
            archive.fp.write(member.FileHeader(zip64=True) + body)
            archive.filelist.append(member)
        archive.start_dir = archive.fp.tell()
        archive._didModify = True
    done = subprocess.run(
        [sys.executable, "-m", "kdrs", "data", "describe", str(path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30)),
    )
    assert done.returncode == 3, done.stderr
    assert "by its own account" in done.stderr


def test_mutated_files_of_every_form(tmp_path):
    """A short run of the fuzz program: python tests/fuzz_readers.py --seconds 600."""
    found = []
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        path, flags = fuzz_readers.case(0, number, folder)
        kind, what = fuzz_readers.run_case(path, flags)
        found.append(kind)
        assert not kind.startswith("FINDING"), (number, kind, what)
    assert {"accepted", "refused 3"} <= set(found)


def test_the_fuzz_program_sees_wrong_results(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("user,item\n1,2\n3,4\n")
    assert fuzz_readers.run_case(path, []) == ("accepted", "")
    monkeypatch.setattr(fuzz_readers, "slow_text", lambda _: ["user,item", "1,2", "3,5"])
    assert fuzz_readers.run_case(path, [])[0] == "FINDING wrong"
    monkeypatch.setattr(fuzz_readers, "slow_text", lambda _: ["user,item", "1,2", "3"])
    assert fuzz_readers.run_case(path, [])[0] == "FINDING wrong"


# Text in a form of its own


ROWS = [{"user": "a", "item": "x"}, {"user": "b", "item": "y"}]
OTHER_TEXT = {
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "a.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=1),
    "a.mtx": "%%MatrixMarket matrix coordinate integer general\n2 2 2\n1 1 1\n2 2 1\n",
}


@pytest.mark.parametrize("name", OTHER_TEXT)
@pytest.mark.parametrize("form", ["auto", "csv"])
def test_text_of_another_form_is_named_and_its_remedy_works(tmp_path, monkeypatch, name, form):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text(OTHER_TEXT[name])
    with pytest.raises(DataError, match=r"FILE:1: this is (JSON|a Matrix Market)") as caught:
        read("FILE", form)
    exec(caught.value.remedy.partition("in Python: ")[2], {"polars": pl, "scipy": scipy})
    made = next(path for path in Path().iterdir() if path.name != "FILE")
    assert read(made).counts() == {"users": 2, "items": 2, "rows": 2}


def test_pages_and_comments_are_told(tmp_path):
    (tmp_path / "a.csv").write_text("<!DOCTYPE html>\n<html>\n")
    with pytest.raises(DataError, match="this is HTML or XML"):
        read(tmp_path / "a.csv")
    for comment in ("% bip unweighted", "# a, remark", "# a remark"):
        (tmp_path / "a.csv").write_text(f"{comment}\nuser,item\na,x\n")
        with pytest.raises(DataError, match=r"a\.csv:1: ") as caught:
            read(tmp_path / "a.csv")
        assert "if line 1 is a comment, take such lines out" in caught.value.remedy
    (tmp_path / "a.csv").write_text("#user,item\na,x\n")  # a name may begin so
    assert read(tmp_path / "a.csv", user="#user").counts()["rows"] == 1
