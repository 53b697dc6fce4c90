"""What breaks a service: questions in odd forms, odd ids, a full disk, parts that are none, company."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdrs
from commands import fails, ok
from kdrs._files import disk_errors
from kdrs.compact.tables import Tables
from kdrs.core.names import Names
from kdrs.errors import ArtefactError, ConfigError, DataError, KdrsError
from kdrs.student import Student, file
from test_student import N_ITEMS, N_USERS, made

USERS = [f"ü{n}" for n in range(N_USERS)]
ONES = ["item 1", "item 2"]
LISTS = [["item 1", "item 2"], ["item 3", "item 4"]]
FORMS = {
    "generator": lambda ids: (one for one in ids),
    "iterator": iter,
    "tuple": tuple,
    "array": np.array,
    "series": pl.Series,
    "chain": lambda ids: itertools.chain(ids[:1], ids[1:]),
}


def same(one, other) -> bool:
    return one.places.tobytes() == other.places.tobytes() and one.scores.tobytes() == other.scores.tobytes()


# --- questions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [ONES, LISTS], ids=["for all", "for each"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_ids_come_in_any_form(form, ids):
    """A generator can be read once: none of its ids is lost by a look at the first."""
    student, users = made(), ["ü1", "ü2"]
    for name in ("items", "exclude"):
        asked = {"users": users, "k": 30, "seen": False}
        assert same(student.recommend(**asked, **{name: form(ids)}), student.recommend(**asked, **{name: ids}))
    assert np.array_equal(student.score(users, form(ids)), student.score(users, ids))
    if ids is LISTS:
        assert same(student.recommend(histories=form(ids)), student.recommend(histories=ids))
        assert same(student.recommend(users, seen=form(ids)), student.recommend(users, seen=ids))
    else:
        assert same(student.similar(form(ids)), student.similar(ids))


@pytest.mark.parametrize(
    "value",
    [3, 1.5, "item 1", b"item 1", np.array("item 1"), np.int64(3), object()],
    ids=lambda value: type(value).__name__,
)
def test_one_value_is_no_list(value):
    student = made()
    for ask in (
        lambda: student.recommend(value),
        lambda: student.recommend(["ü1"], items=value),
        lambda: student.recommend(["ü1"], exclude=value),
        lambda: student.recommend(["ü1"], seen=value),
        lambda: student.recommend(histories=value),
        lambda: student.recommend(histories=[value]),
        lambda: student.score(["ü1"], value),
        lambda: student.score(["ü1", "ü2"], [["item 1"], value]),
        lambda: student.similar(value),
        lambda: student.fold_in(value),
    ):
        with pytest.raises(ConfigError, match="give a list of ids"):
            ask()


@pytest.mark.parametrize("name", ["items", "exclude", "seen", "histories"])
def test_a_dict_is_refused(name):
    """Its keys would be taken for ids of items, and a block list would block nothing."""
    with pytest.raises(ConfigError, match=r"give a list .*for each user"):
        made().recommend(["ü1"], **{name: {"ü1": ["item 1"]}})


@pytest.mark.parametrize("users", [["1", 2], [2, "1"], [np.int64(1), "2"], [1, np.int32(2)], [2**70, 1]], ids=repr)
def test_strings_and_integers_ask_together(users):
    plain = made()
    names = Names.of(map(str, range(N_USERS)), "user")
    student = Student(plain.tables, plain.items, names, seen=plain.seen)
    found = student.recommend(users, 2, unknown="skip")
    frame = found.to_polars()
    assert [str(one) for one in frame["user"]] == [str(one) for one in found.users for _ in range(2)]
    assert frame.drop("user").equals(student.recommend(found.users.tolist(), 2).to_polars().drop("user"))
    assert student.recommend(users, 2, unknown="popular").to_polars()["user"].null_count() == 0


def test_no_question_has_no_answer():
    student = made()
    assert student.score([], []).shape == (0,)
    assert student.recommend([], 3).to_polars().shape == (0, 4)
    assert student.recommend(histories=[], k=3).places.shape == (0, 3)
    assert student.similar([], 3).places.shape == (0, 3)


@given(
    st.sampled_from([1, 3, 8, 32]),
    st.booleans(),
    st.integers(0, 6),
    st.lists(st.integers(0, N_USERS - 1), min_size=1, max_size=9),
    st.sampled_from(["", "items", "exclude", "each items", "each exclude", "seen"]),
    st.integers(1, 5),
    st.data(),
)
@settings(max_examples=80)
def test_a_user_gets_the_same_list_in_any_company(bits, encoded, seed, rows, what, threads, data):
    """Users who ask twice among them."""
    student = made(bits, encoded=encoded, seed=seed)
    names = [USERS[row] for row in rows]
    some = st.lists(st.sampled_from([f"item {n}" for n in range(N_ITEMS)] + ["none"]), min_size=1, max_size=12)
    own = [data.draw(some) for _ in names]
    how = {
        "": {}, "items": {"items": ["item 0", *own[0]]}, "exclude": {"exclude": own[0]}, "each items": {"items": own},
        "each exclude": {"exclude": own}, "seen": {"seen": own},
    }[what]  # fmt: skip
    whole = student.recommend(names, 7, unknown="popular", threads=threads, **how)
    for place, name in enumerate(names):
        mine = {key: value if isinstance(value[0], str) else [value[place]] for key, value in how.items()}
        alone = student.recommend([name], 7, unknown="popular", threads=1, **mine)
        assert alone.places.tobytes() == whole.places[place : place + 1].tobytes()
        assert alone.scores.tobytes() == whole.scores[place : place + 1].tobytes()


@pytest.mark.parametrize("bits", [1, 8, 32])
@pytest.mark.parametrize("encoded", [False, True])
def test_a_block_list_for_all_is_one_for_each(bits, encoded):
    """Few items and many, all of them too, with and without an allow list; for unknown users as well."""
    student, names = made(bits, encoded=encoded), [*USERS, "nobody"]
    everything = [f"item {n}" for n in range(N_ITEMS)]
    for blocked in (everything[:1], everything[5:33], everything):
        for items in (None, everything[::3], [everything[place % 5 :: 4] for place in range(len(names))]):
            how = {"k": 6, "unknown": "popular", "items": items}
            found = student.recommend(names, exclude=blocked, **how)
            assert same(found, student.recommend(names, exclude=[blocked] * len(names), **how))
            assert not set(blocked) & set(found.items.ravel())
            for place in (0, 7, N_USERS):
                mine = {**how, "items": items[place : place + 1] if items and isinstance(items[0], list) else items}
                alone = student.recommend([names[place]], exclude=blocked, **mine)
                assert alone.items.tolist() == found.items[place : place + 1].tolist()


def test_a_long_block_list_takes_no_pair_for_each_user():
    n_users, n_items, rng = 2000, 6000, np.random.default_rng(0)
    users, items = (rng.normal(size=(n, 4)).astype(np.float32) for n in (n_users, n_items))
    names = [Names.of(map(str, range(n)), kind) for n, kind in ((n_items, "item"), (n_users, "user"))]
    student = Student(Tables(items, users, None, None), *names)
    tracemalloc.start()
    try:
        found = student.recommend(range(n_users), 5, seen=False, exclude=range(0, n_items, 2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.places % 2 == 1).all()
    assert peak < n_users * n_items


def test_company_of_threads_and_forks(tmp_path):
    made(4).save(tmp_path / "s.safetensors")
    student = Student.load(tmp_path / "s.safetensors")
    right, wrong = made(4).recommend(USERS, 9), []

    def ask() -> None:
        for _ in range(10):
            found = student.recommend(USERS, 9)
            if not same(found, right) or found.items.tolist() != right.items.tolist():
                wrong.append(found)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong
    made(4, seed=5).save(tmp_path / "s.safetensors")  # a new file takes the name; the old one stays mapped
    assert same(student.recommend(USERS, 9), right)
    if hasattr(os, "fork") and sys.platform.startswith("linux"):
        child = os.fork()
        if not child:
            os._exit(0 if same(student.recommend(USERS, 9), right) else 3)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can become nobody")
def test_a_file_that_may_not_be_read(tmp_path):
    place = tmp_path / "s.safetensors"
    made().save(place)
    place.chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(ArtefactError, match=r"cannot read .*Permission denied"):
            Student.load(place)
    finally:
        os.seteuid(0)


def twisted(value: np.ndarray) -> dict[str, np.ndarray | None]:
    """An array in forms that it should not have."""
    whole = np.atleast_1d(value)
    ends = (np.iinfo if value.dtype.kind in "iu" else np.finfo)(value.dtype)
    forms: dict[str, np.ndarray | None] = {
        "0-d": np.zeros((), value.dtype), "empty": whole[:0], "short": whole[:-1], "long": np.concatenate([whole, whole[-1:]]),
        "flat": whole.reshape(-1) if whole.ndim > 1 else whole[None], "deep": whole[None, None], "thin": whole[..., :0],
        "turned": whole[::-1].copy(), "absent": None,
        "least": np.full(value.shape, ends.min, value.dtype), "most": np.full(value.shape, ends.max, value.dtype),
    }  # fmt: skip
    for kind in (np.uint8, np.int8, np.int32, np.int64, np.float32, np.float64, np.uint16):
        if kind != value.dtype:
            forms[np.dtype(kind).name] = np.zeros(value.shape, kind)
    return forms


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("bits", "encoded"), [(32, False), (32, True), (2, False), (2, True)])
def test_tensors_of_any_form_are_refused_or_answer(tmp_path, bits, encoded):
    """With a right checksum: what wrote the file was wrong, not the disk."""
    place = tmp_path / "s.safetensors"
    made(bits, encoded=encoded).save(place)
    right = file.read(place)
    metadata = {name: value for name, value in right.metadata.items() if name not in ("crc32", "kdrs")}
    asks = (
        lambda it: it.recommend(USERS[:5], 5, unknown="popular"),
        lambda it: it.recommend(histories=[["item 0", "item 5"]], k=5, unknown="skip"),
        lambda it: it.similar(["item 3"], 4),
        lambda it: it.score(["ü1"], ["item 3"]),
    )
    refused = 0
    for name, value in right.tensors.items():
        for form in twisted(value).values():
            tensors = {**right.tensors, name: form}
            file.write(place, {key: one for key, one in tensors.items() if one is not None}, metadata)
            try:
                student = Student.load(place)
            except ArtefactError:
                refused += 1
                continue
            for ask in asks:
                with contextlib.suppress(KdrsError):
                    ask(student)
    assert refused > 8 * len(right.tensors)


# --- the command line -----------------------------------------------------------------------------------------------

ODD = ["007", "7", "=1+1", "+1", "-1", "a,b", 'q"q', "line\nbreak", "tab\tx", " lead", "trail ", "é", "e\u0301", "null",
       "1e5", "true", "\u2028", "x" * 3000, "\u202eevil", "#hash", " ", "--user", "\x1b[31mred"]  # fmt: skip


@pytest.fixture
def odd(tmp_path, monkeypatch) -> Student:
    monkeypatch.chdir(tmp_path)
    plain = made(8)
    items = [*ODD[:N_ITEMS], *(f"i{n}" for n in range(N_ITEMS - len(ODD)))]
    student = Student(
        plain.tables, Names.of(items, "item"), Names.of(ODD[:N_USERS], "user"), seen=plain.seen,
        popular=plain.popular, popular_counts=plain.popular_counts,
    )  # fmt: skip
    student.save("odd.safetensors")
    return student


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_odd_ids_come_through(odd, ending):
    want = odd.recommend(ODD, 5).to_polars()
    ok("recommend", "odd.safetensors", "--k", 5, "--out", f"all.{ending}")
    if ending == "parquet":
        found = pl.read_parquet("all.parquet")
    elif ending == "csv":
        found = pl.read_csv("all.csv", schema=want.schema)
    else:
        found = pl.read_ndjson("all.jsonl", schema=want.schema)
    assert found.equals(want)
    pl.DataFrame({"user": ODD}).write_parquet("users.parquet")
    ok("recommend", "odd.safetensors", "--k", 5, "--users", "users.parquet", "--out", f"some.{ending}")
    ok("recommend", "odd.safetensors", "--k", 5, "--out", f"[p*].{ending}", "--part", "2/2")
    ok("recommend", "odd.safetensors", "--k", 5, "--out", f"[p*].{ending}", "--part", "1/2")
    ok("recommend", "--merge", "--out", f"[p*].{ending}")
    with open(f"all.{ending}", "rb") as opened:
        whole = opened.read()
    for other in (f"some.{ending}", f"[p*].{ending}"):
        with open(other, "rb") as opened:
            assert opened.read() == whole


BAD_PARTS = {
    "other bytes": ("l.parquet", lambda place: place.write_bytes(b"garbage")),
    "cut Parquet": ("l.parquet", lambda place: place.write_bytes(place.read_bytes()[:-9])),
    "other columns": ("l.parquet", lambda place: pl.DataFrame({"a": [1]}).write_parquet(place)),
    "a line less": ("l.csv", lambda place: place.write_bytes(place.read_bytes()[:-1].rpartition(b"\n")[0] + b"\n")),
    "one digit": ("l.jsonl", lambda place: place.write_bytes(place.read_bytes().replace(b'"rank":5', b'"rank":4'))),
    "other types": (
        "l.parquet",
        lambda place: pl.read_parquet(place).with_columns(pl.col("score").cast(pl.Float64)).write_parquet(place),
    ),
    "empty CSV": ("l.csv", lambda place: place.write_bytes(b"")),
    "other CSV": ("l.csv", lambda place: place.write_bytes(b"a,b\n1,2\n")),
    "cut CSV": ("l.csv", lambda place: place.write_bytes(place.read_bytes()[:-3])),
    "cut lines": ("l.jsonl", lambda place: place.write_bytes(place.read_bytes()[:-3])),
    "other lines": ("l.jsonl", lambda place: place.write_bytes(b"[1, 2]\n")),
    "a folder": ("l.csv", lambda place: (place.unlink(), place.mkdir())),
}


@pytest.mark.parametrize(("out", "harm"), BAD_PARTS.values(), ids=BAD_PARTS)
def test_parts_that_are_none(odd, tmp_path, out, harm):
    for part in (1, 2):
        ok("recommend", "odd.safetensors", "--k", 5, "--out", out, "--part", f"{part}/2")
    stem, _, ending = out.partition(".")
    harm(tmp_path / f"{stem}.part-2-of-2.{ending}")
    error = fails(3, "recommend", "--merge", "--out", out)
    assert "is damaged, cut short, or not the file that was written" in error or "is no file" in error
    assert f"--part 2/2 --out {out}" in error
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("out", ["l.parquet", "l.csv", "l.jsonl"])
def test_parts_of_other_students_and_options(odd, tmp_path, out):
    """What was made otherwise is refused, and made again it fits."""
    (tmp_path / "some.txt").write_text("7\n8\n")
    (tmp_path / "pairs.csv").write_text("user,item\n7,7\n")
    part = lambda number, *more, of="odd.safetensors": ok(
        "recommend", of, "--k", 5, "--out", out, "--part", f"{number}/2", *more
    )
    part(1)
    other = Student.load("odd.safetensors")
    table = other.tables.items[np.arange(N_ITEMS)[::-1]]
    Student(
        Tables(table, other.tables.users, bias=other.tables.bias), other.items, other.users, seen=other.seen,
        popular=other.popular, popular_counts=other.popular_counts,
    ).save("other.safetensors")  # fmt: skip
    for more, named in (
        ((), "the student"), (("--k", 4), "--k is 5 and 4"), (("--seen", "none"), "--seen is data and none"),
        (("--items", "some.txt"), "--items"), (("--exclude", "pairs.csv"), "--exclude"),
        (("--seen", "pairs.csv"), "--seen"), (("--unknown", "skip"), "--unknown is popular and skip"),
        (("--users", "some.txt", "--unknown", "popular"), "the users"),
    ):  # fmt: skip
        part(2, *more, of="odd.safetensors" if more else "other.safetensors")
        error = fails(3, "recommend", "--merge", "--out", out)
        assert f"parts 1 and 2 of 2 were not made alike: {named}" in error
        assert not (tmp_path / out).exists()
    part(2)
    beside = tmp_path / f"{Path(out).stem}.part-2-of-2{Path(out).suffix}.json"
    kept = beside.read_bytes()
    for harm, message in (
        (lambda: beside.unlink(), "what l.part-2-of-2"),
        (lambda: beside.write_bytes(b"{"), "is damaged"),
        (lambda: beside.write_bytes(b"[]"), "does not tell of part 2 of 2"),
        (lambda: beside.write_bytes(kept.replace(b"2,", b"1,", 1)), "does not tell of part 2 of 2"),
    ):
        harm()
        assert message in fails(3, "recommend", "--merge", "--out", out)
        beside.write_bytes(kept)
    ok("recommend", "--merge", "--out", out)
    ok("recommend", "odd.safetensors", "--k", 5, "--out", f"whole{Path(out).suffix}")
    assert (tmp_path / out).read_bytes() == (tmp_path / f"whole{Path(out).suffix}").read_bytes()


def test_parts_without_lists(odd, tmp_path):
    """More parts than users: some hold none."""
    for ending in ("parquet", "csv", "jsonl"):
        for part in range(1, 31):
            ok("recommend", "odd.safetensors", "--k", 5, "--out", f"l.{ending}", "--part", f"{part}/30")
        ok("recommend", "--merge", "--out", f"l.{ending}")
        ok("recommend", "odd.safetensors", "--k", 5, "--out", f"whole.{ending}")
        assert (tmp_path / f"l.{ending}").read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()


def test_options_beside_merge(odd):
    ok("recommend", "odd.safetensors", "--out", "l.csv", "--part", "1/1")
    for more in (("--part", "1/1"), ("--user", "7"), ("--items", "x"), ("--exclude", "x"), ("--unknown", "skip")):
        assert f"{more[0]} is given with --merge" in fails(2, "recommend", "--merge", "--out", "l.csv", *more)
    assert ok("recommend", "--merge", "--out", "l.csv", "--json").document["parts"] == 1


def test_files_of_items(odd, tmp_path):
    """What is blocked may be nothing, and may be said twice: as in Python."""
    whole = ok("recommend", "odd.safetensors", "--user", "7", "--k", 4).out
    (tmp_path / "none.txt").write_bytes(b"")
    assert ok("recommend", "odd.safetensors", "--user", "7", "--k", 4, "--exclude", "none.txt").out == whole
    assert "none of the 0 ids" in fails(3, "recommend", "odd.safetensors", "--user", "7", "--items", "none.txt")
    for name in ("--items", "--exclude"):
        found = []
        for text in ("i1\ni2\n", "i1\ni2\ni1\n"):
            (tmp_path / "some.txt").write_text(text)
            found.append(ok("recommend", "odd.safetensors", "--user", "7", "--k", 4, name, "some.txt", "--json").out)
        assert found[0] == found[1]
    assert "comes twice" in fails(3, "recommend", "odd.safetensors", "--users", "some.txt")


@pytest.mark.parametrize("option", ["--histories", "--seen", "--items", "--exclude"])
@pytest.mark.parametrize("role", ["user", "item"])
def test_ids_of_other_types_are_told(odd, tmp_path, option, role):
    """Of a list no text is made, and what a float looks like as text is no id."""
    columns = {"user": ["7", "8"], "item": ["i1", "i2"]}
    for values, words in (
        ([["i1"], ["i2"]], "are List(String); allowed: integers and text"),
        ([7.0, 8.0], "are Float64; allowed: integers and text\n  try: write whole numbers as integers"),
        ([True, False], "are Boolean"),
    ):
        pl.DataFrame(columns | {role: values}).write_parquet(tmp_path / "t.parquet")
        users = () if option == "--histories" else ("--user", "7")
        assert f"ids in column {role} {words}" in fails(
            3, "recommend", "odd.safetensors", *users, option, "t.parquet", "--k", 2
        )
    pl.DataFrame(columns).cast({role: pl.Categorical}).write_parquet(tmp_path / "t.parquet")
    ok("recommend", "odd.safetensors", "--user", "7", "--exclude", "t.parquet", "--k", 2)


# --- the disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "No space left on device (os error 28)",
        "disk: IO error: gone (os error 28), sorry",
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space" })',
    ],
)
def test_an_error_of_the_disk_without_a_number(text):
    for kind in (OSError, pl.exceptions.ComputeError):
        with pytest.raises(OSError) as caught, disk_errors():
            raise kind(text)
        assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="other") as caught, disk_errors():
        raise OSError(errno.EACCES, "other (os error 28)")
    assert caught.value.errno == errno.EACCES


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files there")
@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_file_that_grows_too_large(odd, tmp_path, ending):
    import resource
    import signal

    place = tmp_path / f"l.{ending}"
    place.write_text("what was there")
    limits, how = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        error = fails(5, "recommend", "odd.safetensors", "--k", 20, "--out", place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, how)
    assert "File too large;" in error
    assert place.read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == [place.name, "odd.safetensors"]


def test_every_refusal_has_a_remedy():
    student = made()
    for ask in (lambda: student.recommend(["\ud800"]), lambda: student.recommend(histories=[["\ud800"]])):
        with pytest.raises(DataError, match="lone surrogate") as caught:
            ask()
        assert isinstance(caught.value, KdrsError)
        assert caught.value.remedy
    assert kdrs.Student is Student
