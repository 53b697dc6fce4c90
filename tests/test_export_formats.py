"""Students as arrays, columns, text and indexes, read back by the libraries that they are for."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import kdrs
from commands import FAST, fails, ok, write_clicks
from kdrs.compact.encoders import RidgeEncoder
from kdrs.compact.tables import Tables
from kdrs.core import ranking
from kdrs.core.codes import Codes
from kdrs.core.names import Names
from kdrs.data.interactions import Interactions
from kdrs.errors import ArtefactError, ConfigError, DataError, MachineError, MissingKnowledge
from kdrs.student import Student, formats

N, M, D = 60, 400, 8
INDEXES = ("faiss", "usearch", "onnx")


def needed(to: str) -> None:
    for module in formats.EXTRAS[to]:
        pytest.importorskip(module)


def student(*, bias: bool = True, bits: int | None = None, encoded: bool = False, ids: Any = None) -> Student:
    rng = np.random.default_rng(0)
    sides = [rng.standard_normal((n, D), np.float32) for n in (M, N)]
    items, users = (Codes.of(side, bits) if bits else side for side in sides)
    flat = rng.permutation(N * M)[: N * 9]
    seen = Interactions.from_pairs(flat // M, flat % M, N, M)
    return Student(
        Tables(
            items,
            None if encoded else users,
            RidgeEncoder(1.0, 1.0) if encoded else None,
            rng.standard_normal(M, np.float32) if bias else None,
        ),
        Names.of(ids or [f"ítem-{n}" for n in range(M)], "item"),
        Names.of([f"user-{n}" for n in range(N)], "user"),
        seen=seen,
    )


def exact(made: Student, k: int = 20) -> Any:
    """Its own lists, seen items included."""
    return made.recommend(list(made.users or ()), k, seen=False)


def agrees(items: np.ndarray, scores: np.ndarray, made: Student, *, atol: float) -> None:
    """Lists of another library against the student's own: scores are equal, and items up to ties."""
    own = exact(made, items.shape[1])
    np.testing.assert_allclose(scores, own.scores, atol=atol)
    assert (items == own.places).mean() > 0.99


# --- npz, Parquet, word2vec -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [None, 4, 1])
@pytest.mark.parametrize("encoded", [False, True])
def test_arrays_score_as_the_student_does(tmp_path, bias, bits, encoded):
    made = student(bias=bias, bits=bits, encoded=encoded)
    written = formats.write(made, tmp_path / "s.npz", "npz")
    assert written.n_bytes == (tmp_path / "s.npz").stat().st_size
    with np.load(tmp_path / "s.npz", allow_pickle=False) as found:
        arrays = dict(found)
    assert set(arrays) == {"users", "items", "item_bias", "user_ids", "item_ids"}
    assert {arrays[name].dtype for name in ("users", "items", "item_bias")} == {np.dtype(np.float32)}
    assert arrays["item_ids"].tolist() == list(made.items)
    assert arrays["user_ids"].tolist() == list(made.users)
    assert arrays["item_bias"].any() == bias
    scores = arrays["users"] @ arrays["items"].T + arrays["item_bias"]
    own = made.score(list(made.users), [list(made.items)] * N)
    np.testing.assert_allclose(scores, own, atol=1e-4)
    assert any("decoded" in note for note in written.notes) == (bits is not None)


def test_arrays_of_a_student_that_knows_no_users(tmp_path):
    whole = student(encoded=True)
    made = Student(whole.tables, whole.items)
    written = formats.write(made, tmp_path / "s.npz", "npz")
    with np.load(tmp_path / "s.npz") as found:
        assert set(found) == {"items", "item_bias", "item_ids"}
    assert any("users are left out" in note for note in written.notes)
    with pytest.raises(MissingKnowledge, match="users have no table"):
        formats.write(made, tmp_path / "u.parquet", "parquet", side="users")
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


@pytest.mark.parametrize("side", ["items", "users", None])
def test_a_column_of_vectors(tmp_path, side):
    made = student()
    formats.write(made, tmp_path / "s.parquet", "parquet", side=side)
    frame = pl.read_parquet(tmp_path / "s.parquet")
    table, names = (made.tables.users, made.users) if side == "users" else (made.tables.items, made.items)
    assert frame.schema["vector"] == pl.List(pl.Float32)
    assert frame["id"].to_list() == list(names)
    np.testing.assert_array_equal(np.array(frame["vector"].to_list(), np.float32), table)
    assert frame.columns == ["id", "vector"] + ["bias"] * (side != "users")
    if side != "users":
        np.testing.assert_array_equal(frame["bias"].to_numpy(), made.tables.bias)


def test_text_is_read_back_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_CELLS", 4 * 7 * D)  # several blocks, the last not full
    made = student()
    written = formats.write(made, tmp_path / "s.txt", "word2vec")
    head, *lines = (tmp_path / "s.txt").read_text("utf-8").split("\n")
    assert head == f"{M} {D}"
    assert lines.pop() == ""
    words = [line.split(" ") for line in lines]
    assert [word[0] for word in words] == list(made.items)
    np.testing.assert_array_equal(np.array([word[1:] for word in words], np.float32), made.tables.items)
    assert any("bias" in note for note in written.notes)
    assert not formats.write(made, tmp_path / "u.txt", "word2vec", side="users").notes


@pytest.mark.parametrize("name", ["a b", "a\tb", "a\nb", "a\u00a0b", "a\u2003b"])
def test_blanks_are_refused_in_text(tmp_path, name):
    made = student(ids=[name, *(f"i{n}" for n in range(1, M))])
    with pytest.raises(DataError, match="a blank"):
        formats.write(made, tmp_path / "s.txt", "word2vec")
    assert not list(tmp_path.iterdir())
    formats.write(made, tmp_path / "s.parquet", "parquet")
    assert pl.read_parquet(tmp_path / "s.parquet")["id"][0] == name


def test_numpy_would_cut_a_last_null(tmp_path):
    made = student(ids=["a\0", *(f"i{n}" for n in range(1, M))])
    with pytest.raises(DataError, match="null"):
        formats.write(made, tmp_path / "s.npz", "npz")
    assert not list(tmp_path.iterdir())


# --- indexes --------------------------------------------------------------------------------------------------------


def queries_of(made: Student, *, longer: bool) -> np.ndarray:
    users = made.tables.users
    vectors = users.vectors() if isinstance(users, Codes) else users
    return np.column_stack([vectors, np.ones(N, np.float32)]) if longer else vectors


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("to", ["faiss", "usearch"])
def test_an_index_finds_what_it_says(tmp_path, to, bias, bits):
    needed(to)
    made = student(bias=bias, bits=bits)
    written = formats.write(made, tmp_path / "s.index", to)
    told = json.loads((tmp_path / "s.index.json").read_text("utf-8"))
    assert told["ids"] == list(made.items)
    assert (told["recall@20"], told["users"]) == (written.facts["recall@20"], N)
    assert told["recall@20"] >= 0.99
    asked = queries_of(made, longer=bias)
    if to == "faiss":
        index = importlib.import_module("faiss").read_index(str(tmp_path / "s.index"))
        assert index.hnsw.efSearch == told["index"]["efSearch"]
        scores, found = index.search(asked, 20)
    else:
        index = importlib.import_module("usearch.index").Index.restore(str(tmp_path / "s.index"))
        index.expansion_search = told["index"]["expansion_search"]
        matches = index.search(asked, 20)
        scores, found = 1 - matches.distances, matches.keys.astype(np.int64)
    assert index.ntotal == M if to == "faiss" else len(index) == M
    own = exact(made)
    hits = np.mean(
        [len(set(one) & set(other)) / 20 for one, other in zip(found.tolist(), own.places.tolist(), strict=True)]
    )
    assert hits == pytest.approx(told["recall@20"], abs=0.005)
    np.testing.assert_allclose(scores[:, 0], own.scores[:, 0], atol=1e-4)


@pytest.mark.parametrize("bits", [None, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_graph_gives_the_exact_lists(tmp_path, bias, bits):
    needed("onnx")
    made = student(bias=bias, bits=bits)
    written = formats.write(made, tmp_path / "s.onnx", "onnx")
    assert written.facts["recall@20"] == 1.0
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"])
    for k in (1, 7, M):
        given = {"queries": queries_of(made, longer=False), "k": np.array([k])}
        items, scores = session.run(["items", "scores"], given)
        assert (items.dtype, scores.dtype) == (np.int64, np.float32)
        own = exact(made, k)
        np.testing.assert_allclose(scores, own.scores, atol=1e-4)
        if bits is None:
            assert (items == own.places).mean() > 0.99


@pytest.mark.parametrize("to", INDEXES)
def test_recall_of_users_by_their_histories_and_of_none(tmp_path, to):
    needed(to)
    made = student(encoded=True, bits=4)
    told = formats.write(made, tmp_path / "s", to).facts
    assert told["users"] == N
    assert told["recall@20"] >= 0.98
    lone = formats.write(Student(made.tables, made.items), tmp_path / "lone", to)
    assert (lone.facts["recall@20"], lone.facts["users"]) == (None, 0)
    assert any("recall is not measured" in note for note in lone.notes)


def test_recall_counts_ties_and_nothing_twice(monkeypatch):
    made = student(bias=False)
    monkeypatch.setattr(formats, "USERS", 20)
    kept = formats._Exact.of(made, D, 1)
    assert kept is not None
    assert len(kept.vectors) == 20
    own = ranking.topk(kept.queries, made.tables.items, 40)
    best = own.items.astype(np.int64)
    assert kept.recall(lambda queries, k: best[:, :k]) == 1.0
    assert kept.recall(lambda queries, k: best[:, k // 2 : k // 2 + k]) == 0.5
    assert kept.recall(lambda queries, k: best[:, k : 2 * k]) == 0.0
    assert kept.recall(lambda queries, k: np.repeat(best[:, :1], k, 1)) == 1 / 20
    assert kept.recall(lambda queries, k: np.where(np.arange(k) < 5, best[:, :k], -1)) == 5 / 20
    alike = np.tile(made.tables.items[:1], (M, 1))  # any items are as good
    same = formats._Exact.of(Student(Tables(alike, made.tables.users), made.items, made.users), D, 1)
    assert same is not None
    assert same.recall(lambda queries, k: np.tile(np.arange(M - k, M), (20, 1))) == 1.0


def test_a_hard_index_is_searched_longer(monkeypatch):
    tried = []
    kept = formats._Exact.of(student(bias=False), D, 1)
    assert kept is not None
    best = ranking.topk(kept.queries, kept.items, 20).items.astype(np.int64)

    def search(queries: Any, k: int, ef: int) -> Any:
        tried.append(ef)
        return np.where(np.arange(k) < (k if ef >= 256 else k // 2), best, -1)

    assert formats._searched(kept, search) == (1.0, 256)
    assert tried == [64, 128, 256]


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", INDEXES)
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, to):
    plain = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name == formats.EXTRAS[to][-1]:
            raise ImportError(name)
        return object() if name in formats.EXTRAS[to] else plain(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MachineError) as caught:
        formats.write(student(), tmp_path / "s", to)
    assert caught.value.remedy == f'pip install "kdrs[{to}]"'
    assert formats.EXTRAS[to][-1].partition(".")[0] in caught.value.cause
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", formats.FORMATS)
def test_vectors_that_are_not_finite(tmp_path, to):
    if to in formats.EXTRAS:
        needed(to)
    made = student()
    made.tables.items[3, 1] = np.nan
    with pytest.raises(ArtefactError, match="row 3 holds NaN"):
        formats.write(made, tmp_path / "s", to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", INDEXES)
def test_two_files_or_none(tmp_path, monkeypatch, to):
    needed(to)
    plain = formats.replacing
    first = tmp_path / "s"

    def failing(path: Path, *rest: Any, **options: Any) -> Any:
        if path == first:
            monkeypatch.setattr("os.replace", lambda source, target: refuse(source, target))
        return plain(path, *rest, **options)

    import os

    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if Path(target) == first:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(formats, "replacing", failing)
    with pytest.raises(MachineError, match="cannot write"):
        formats.write(student(), first, to)
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_has_a_limit(tmp_path, monkeypatch):
    needed("onnx")
    monkeypatch.setattr(formats, "_LARGEST", 4 * M * D)
    with pytest.raises(DataError, match="ONNX file holds 2"):
        formats.write(student(), tmp_path / "s", "onnx")
    assert not list(tmp_path.iterdir())


def test_an_onnx_graph_orders_equal_scores_by_item(tmp_path):
    needed("onnx")
    import onnxruntime

    rng = np.random.default_rng(0)
    queries, items = (
        rng.integers(-1, 2, (n, D)).astype(np.float32) for n in (20, M)
    )  # products are exact, and often equal
    names = Names.of([f"item-{n}" for n in range(M)], "item"), Names.of([f"user-{n}" for n in range(20)], "user")
    formats.write(Student(Tables(items, queries), *names), tmp_path / "s", "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "s"), providers=["CPUExecutionProvider"])
    found, scores = session.run(["items", "scores"], {"queries": queries, "k": np.array([50], np.int64)})
    own = ranking.topk(queries, items, 50)
    assert (np.diff(scores) == 0).any()
    assert np.array_equal(found, own.items)
    assert np.array_equal(scores, own.scores)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    write_clicks(folder / "clicks.csv")
    ok("data", "prepare", folder / "clicks.csv", "--out", folder / "d")
    run = ("train", "--data", folder / "d", *FAST, "--epochs", 2)
    ok(*run, "--dim", 4, "--out", folder / "plain")
    ok(*run, "--dim", 4, "--set", "model.bits=4", "--out", folder / "coded")
    ok("compress", folder / "plain", "--users", "encoded", "--bits", "2", "--out", folder / "encoded")
    ok("export", folder / "encoded", "--out", folder / "encoded.safetensors")
    ok("export", folder / "plain", "--out", folder / "plain.safetensors")
    return folder


@pytest.mark.parametrize("source", ["plain", "coded", "encoded", "plain.safetensors"])
def test_fault_39_the_command_writes_arrays_that_rank_alike(place, tmp_path, source):
    told = ok("export", place / source, "--to", "npz", "--out", tmp_path / "s.npz", "--json").document
    assert told["files"] == [str(tmp_path / "s.npz")]
    assert told["bytes"] == (tmp_path / "s.npz").stat().st_size
    with np.load(tmp_path / "s.npz") as found:
        arrays = dict(found)
    loaded = Student.load(place / source) if source.endswith("safetensors") else None
    if loaded is None:
        from kdrs.runs.export import student_of

        loaded = student_of(place / source)
    scores = arrays["users"] @ arrays["items"].T + arrays["item_bias"]
    own = loaded.score(arrays["user_ids"].tolist(), [arrays["item_ids"].tolist()] * len(arrays["users"]))
    np.testing.assert_allclose(scores, own, atol=1e-5)


def test_a_run_whose_data_are_gone(place, tmp_path):
    import shutil

    shutil.copytree(place / "plain", tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace(str(place / "d"), str(tmp_path / "gone")))
    with pytest.warns(UserWarning, match="is not there"):
        kdrs.export(tmp_path / "run", tmp_path / "s.parquet", to="parquet", side="users")
    assert len(pl.read_parquet(tmp_path / "s.parquet"))


@pytest.mark.parametrize("to", INDEXES)
def test_the_command_tells_recall(place, tmp_path, to):
    needed(to)
    out = ok("export", place / "plain", "--to", to, "--out", tmp_path / "s").out
    assert "recall@20 against the exact lists of" in out
    found = ok("export", place / "encoded", "--to", to, "--out", tmp_path / "t", "--json").document
    assert found["recall@20"] >= 0.9
    assert found["files"] == [str(tmp_path / "t"), str(tmp_path / "t.json")]


@pytest.mark.parametrize(
    ("code", "words", "says"),
    [
        (2, ("--to", "hdf5"), "allowed: student, npz"),
        (2, ("--to", "npz", "--side", "items"), "npz holds both"),
        (2, ("--to", "word2vec", "--side", "item"), "allowed: items, users"),
        (2, ("--side", "items"), "a student file holds both"),
        (2, ("--to", "npz", "--seen"), "leave --seen, --seen-parts, --no-fold-in and --alone out"),
        (2, ("--to", "npz", "--no-fold-in"), "leave --seen, --seen-parts, --no-fold-in and --alone out"),
        (2, ("--to", "npz", "--alone", "x"), "leave --seen, --seen-parts, --no-fold-in and --alone out"),
        (3, ("--to", "npz", "--data", "nowhere"), "nowhere"),
    ],
)
def test_options_that_do_nothing_are_refused(place, tmp_path, code, words, says):
    assert says in fails(code, "export", place / "plain", "--out", tmp_path / "s", *words)
    assert not list(tmp_path.iterdir())


def test_more_that_is_refused(place, tmp_path):
    (tmp_path / "there").write_text("mine")
    assert "there already" in fails(2, "export", place / "plain", "--to", "npz", "--out", tmp_path / "there")
    (tmp_path / "s.json").write_text("mine")
    for to in INDEXES:
        try:
            formats.check(to, None)
        except MachineError:
            continue
        assert "s.json is there already" in fails(2, "export", place / "plain", "--to", to, "--out", tmp_path / "s")
    given = ("--to", "npz", "--data", place / "d", "--out", tmp_path / "x")
    assert "needs none" in fails(2, "export", place / "plain.safetensors", *given)
    lone = ("--to", "parquet", "--side", "users", "--out", tmp_path / "x")
    assert "kdrs export RUN --side users" in fails(4, "export", place / "encoded.safetensors", *lone)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


def test_what_is_replaced_and_what_is_not(place, tmp_path):
    out = tmp_path / "s.safetensors"
    kdrs.export(place / "plain", out, fold_in=False)
    open_before = Student.load(out)
    lists = open_before.recommend(list(open_before.users)[:3], 5, seen=False)
    ok("export", place / "encoded", "--seen", "--out", out, "--overwrite")
    assert Student.load(out).users is not None
    assert Student.load(out).fingerprint() != open_before.fingerprint()
    assert str(open_before.recommend(list(open_before.users)[:3], 5, seen=False)) == str(lists)  # of the old one
    kept = {path: path.read_bytes() for path in (place / "plain").iterdir() if path.is_file()}
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(out)
    for target, words, why in (
        (place / "plain" / "model.safetensors", (), "no student file"),
        (tmp_path / "mine.txt", (), "no student file"),
        (tmp_path, (), "no student file"),
        (tmp_path / "link", (), "is a link"),
        (out, ("--to", "npz"), "--overwrite replaces student files"),
    ):
        assert why in fails(2, "export", place / "plain", *words, "--out", target, "--overwrite")
    assert Student.load(tmp_path / "link").users is not None
    assert kept == {path: path.read_bytes() for path in (place / "plain").iterdir() if path.is_file()}
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_the_default_is_a_student_file(place, tmp_path):
    kdrs.export(place / "plain", tmp_path / "s", to="student", fold_in=False)
    assert Student.load(tmp_path / "s").items
    with pytest.raises(ConfigError, match="there already"):
        kdrs.export(place / "plain", tmp_path / "s", to="npz")
