"""Teachers of other libraries: files that these wrote, joined by id, beside what they recommend themselves."""

from __future__ import annotations

import json
import shlex
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kdrs
from commands import fails, listing, ok
from kdrs.data import Recipe, prepare_given, read_parts
from kdrs.errors import ArtefactError, ConfigError, DataError, KdrsError
from kdrs.runs.importing import next_command
from kdrs.teachers.importers import SCRIPTS, read_source
from teacher_files import vectors

HERE = Path(__file__).parent / "fixtures" / "teachers"
IMPLICIT = {"user_ids": HERE / "implicit-users.txt", "item_ids": HERE / "implicit-items.txt"}
SOURCES: dict[str, dict[str, Any]] = {
    "implicit-als": {"form": "implicit", **IMPLICIT},
    "implicit-bpr": {"form": "implicit", **IMPLICIT},
    "implicit-lmf": {"form": "implicit", **IMPLICIT},
    "recbole-bpr": {"form": "recbole"},
    "recbole-lightgcn": {"form": "recbole-npz"},
    "lenskit-implicitmf": {"form": "lenskit"},
    "lightfm-warp": {"form": "lightfm"},
}


@pytest.fixture(scope="module")
def data() -> kdrs.Dataset:
    return prepare_given(
        read_parts({part: HERE / f"{part}.csv" for part in ("train", "valid", "test")}), Recipe(split="given")
    )


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("prepared") / "d"
    data.save(place)
    return place


def opened(path: Path, data: kdrs.Dataset) -> kdrs.FileTeacher:
    return kdrs.FileTeacher(path, kdrs.PairTask(data.train), dataset=data)


def lists_of(teacher: kdrs.FileTeacher, data: kdrs.Dataset, k: int) -> dict[str, list[str]]:
    return {
        data.users[row]: [data.items[item] for item in items if item >= 0]
        for row, items in enumerate(teacher.topk(k).items)
    }


def refused(kind: type[KdrsError], path: Path, data: kdrs.Dataset, **options: Any) -> str:
    """The error of an import, which leaves nothing behind."""
    place = path.parent / "refused"
    place.mkdir(exist_ok=True)
    with pytest.raises(kind) as caught:
        kdrs.import_teacher(path, dataset=data, out=place / "t.safetensors", **options)
    assert not listing(place)
    return str(caught.value)


# --- what the libraries recommend themselves ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_a_teacher_recommends_what_its_library_does(data, tmp_path, name):
    options = dict(SOURCES[name])
    made = kdrs.import_teacher(HERE / f"{name}.npz", options.pop("form"), data, tmp_path / "t.safetensors", **options)
    theirs = json.loads((HERE / f"{name}.json").read_text("utf-8"))
    assert lists_of(opened(made.path, data), data, 10) == theirs
    users = made.matched.joined["users"]
    assert (users.n_matched, users.n_missing) == (60, 0)
    assert users.unknown == (("never-seen",) if name.startswith("implicit") else ())
    assert made.reports["test"].mean("ndcg@10") > 0.25


@pytest.mark.parametrize(
    ("name", "says", "dim"), [("als", [], 8), ("bpr", ["BPR"], 8), ("lmf", ["logistic matrix factorisation"], 8)]
)
def test_columns_of_ones_are_biases(name, says, dim):
    found = read_source(HERE / f"implicit-{name}.npz", "implicit")
    assert [note.partition(",")[0] for note in found.notes] == says
    assert found.items.vectors.shape == (80, dim)
    assert (found.items.bias is not None) == bool(says)
    whole = np.load(HERE / f"implicit-{name}.npz", allow_pickle=False)
    plain = whole["user_factors"].astype(float) @ whole["item_factors"].T.astype(float)
    own = found.users.vectors.astype(float) @ found.items.vectors.T.astype(float)
    own = own if found.items.bias is None else own + found.items.bias
    offset = plain - own  # a user's own bias, the same for every item
    assert np.ptp(offset, axis=1).max() < 1e-5


def test_factors_of_a_gpu_in_half_precision(data, tmp_path):
    whole = np.load(HERE / "implicit-als.npz", allow_pickle=False)
    half = {name: whole[name].astype(np.float16) for name in ("user_factors", "item_factors")}
    np.savez(tmp_path / "half.npz", **half)
    kdrs.import_teacher(tmp_path / "half.npz", "implicit", data, tmp_path / "t.safetensors", **IMPLICIT)
    items = opened(tmp_path / "t.safetensors", data).factors().items
    ids = (HERE / "implicit-items.txt").read_text().split()
    assert np.array_equal(items[data.items.index([ids[5]])[0]], half["item_factors"][5].astype(np.float32))


def test_both_forms_of_word2vec_hold_the_same(data, tmp_path):
    text, binary = (read_source(HERE / f"items.w2v.{form}", "word2vec").items for form in ("txt", "bin"))
    assert text.ids == binary.ids
    assert set(text.ids) == set(data.items)
    assert np.allclose(text.vectors, binary.vectors, atol=1e-6)
    c = (HERE / "items.w2v.txt").read_bytes().replace(b"\n", b" \n")  # as word2vec.c ends its lines
    (tmp_path / "c").write_bytes(c.replace(b"80 8 \n", b"80 8\n"))
    assert np.array_equal(read_source(tmp_path / "c", "word2vec").items.vectors, text.vectors)
    raw = b"".join(  # as word2vec.c writes it: a newline after each vector
        word.encode() + b" " + row.tobytes() + b"\n" for word, row in zip(binary.ids, binary.vectors, strict=True)
    )
    (tmp_path / "c.bin").write_bytes(b"80 8\n" + raw)
    again = read_source(tmp_path / "c.bin", "word2vec").items
    assert (again.ids, again.vectors.tobytes()) == (binary.ids, binary.vectors.tobytes())


def test_the_scripts_are_python_and_name_what_is_read():
    for form, script in SCRIPTS.items():
        compile(script, form, "exec")
        assert "pickle" not in script
        assert f"--from {form}" in script
        assert ok("teacher", "import", "--from", form, "--print-script").out == script


# --- the other forms ------------------------------------------------------------------------------------------------


def test_parquet_and_arrays_with_users_in_a_file_of_their_own(data, tmp_path):
    held = vectors(data, 4)
    for side in ("user", "item"):
        table, ids = held[f"{side}s"], held[f"{side}_ids"]
        frame = pl.DataFrame({f"{side}_id": ids, "vector": table.tolist(), "name": ["x"] * len(ids)})
        frame.write_parquet(tmp_path / f"{side}s.parquet")
        frame.with_columns(pl.col("vector").list.to_array(4)).write_parquet(tmp_path / f"{side}s-array.parquet")
        np.save(tmp_path / f"{side}s.npy", table)
        np.save(tmp_path / f"{side}-ids.npy", np.array(ids))
        (tmp_path / f"{side}-ids.json").write_text(json.dumps(ids))
        pl.DataFrame({"row": range(len(ids)), side: ids}).write_csv(tmp_path / f"{side}-ids.csv")
    cases: list[dict[str, Any]] = [
        {"form": "parquet", "source": "items.parquet", "users": "users.parquet"},
        {"form": "parquet", "source": "items-array.parquet", "users": "users-array.parquet"},
        *(
            {"form": "npy", "source": "items.npy", "users": "users.npy"}
            | {f"{side}_ids": tmp_path / f"{side}-ids.{end}" for side in ("user", "item")}
            for end in ("npy", "json", "csv")
        ),
        {"form": "npy", "source": "items.npy", "users": "users.npy", **{k: held[k] for k in ("user_ids", "item_ids")}},
    ]
    for case in cases:
        source, users = (tmp_path / case.pop(name) for name in ("source", "users"))
        kdrs.import_teacher(source, dataset=data, out=tmp_path / "t.safetensors", users=users, overwrite=True, **case)
        factors = opened(tmp_path / "t.safetensors", data).factors()
        assert np.array_equal(factors.queries, held["users"])
        assert np.array_equal(factors.items, held["items"])


def test_rows_without_ids_are_taken_on_trust(data, tmp_path):
    np.save(tmp_path / "items.npy", vectors(data, 4)["items"])
    with pytest.warns(UserWarning, match="no ids of items.*on trust"):
        made = kdrs.import_teacher(tmp_path / "items.npy", "npy", data, tmp_path / "t.safetensors")
    assert made.matched.trusted == ["items"]
    np.save(tmp_path / "items.npy", vectors(data, 4)["items"][1:])
    assert "--item-ids FILE" in refused(DataError, tmp_path / "items.npy", data, form="npy")


def test_first_dimensions_of_length_one(data, tmp_path):
    held = vectors(data, 6)
    np.save(tmp_path / "items.npy", held["items"])
    made = kdrs.import_teacher(
        tmp_path / "items.npy",
        "npy",
        data,
        tmp_path / "t.safetensors",
        item_ids=held["item_ids"],
        dim=2,
        normalise=True,
    )
    cut = held["items"][:, :2]
    items = opened(made.path, data).factors().items
    assert np.allclose(items, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-6)
    assert made.dim == 2
    for dim in (0, 7):
        error = refused(ConfigError, tmp_path / "items.npy", data, form="npy", item_ids=held["item_ids"], dim=dim)
        assert "allowed: 1 to 6" in error


@pytest.mark.parametrize("name", ["implicit-als", "recbole-lightgcn"])
def test_a_teacher_of_lists_is_what_its_file_says(data, tmp_path, name):
    theirs = json.loads((HERE / f"{name}.json").read_text())
    rows = [{"user": user, "items": [*items, "unknown"]} for user, items in theirs.items()]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = kdrs.import_teacher(tmp_path / "l.jsonl", "lists", data, tmp_path / "t.safetensors")
    assert lists_of(opened(made.path, data), data, 10) == theirs
    assert made.matched.joined["items"].unknown == ("unknown",)
    assert made.listed == 10
    assert made.reports["test"].mean("hit@10") > 0.5


# --- ids ------------------------------------------------------------------------------------------------------------


def test_ids_that_do_not_match(data, tmp_path):
    held = vectors(data, 4)
    np.save(tmp_path / "i.npy", held["items"])
    strange = [f"x{n}" for n in range(data.n_items)]
    error = refused(ArtefactError, tmp_path / "i.npy", data, form="npy", item_ids=strange)
    assert "none of its 80 items is in the data set" in error
    assert "x0" in error
    assert "one id for each row" in refused(DataError, tmp_path / "i.npy", data, form="npy", item_ids=strange[1:])
    twice = [*held["item_ids"][:-1], held["item_ids"][0]]
    error = refused(DataError, tmp_path / "i.npy", data, form="npy", item_ids=twice)
    assert "comes twice, in rows 0 and 79" in error
    assert "is empty" in refused(DataError, tmp_path / "i.npy", data, form="npy", item_ids=[*twice[:-1], ""])
    floats = [float(n) for n in range(80)]
    assert "0.0 is float" in refused(DataError, tmp_path / "i.npy", data, form="npy", item_ids=floats)


def test_missing_ids_are_refused_averaged_or_dropped(data, tmp_path):
    held = vectors(data, 4)
    kept = {"users": np.arange(3, data.n_users), "items": np.arange(data.n_items - 2)}
    arrays = {side: held[side][rows] for side, rows in kept.items()}
    ids = {f"{side[:-1]}_ids": np.array(held[f"{side[:-1]}_ids"])[rows] for side, rows in kept.items()}
    np.savez(tmp_path / "a.npz", **arrays, **ids)
    error = refused(ArtefactError, tmp_path / "a.npz", data, form="npz")
    assert "lacks 3 of the data set's 60 users" in error
    assert "--missing mean" in error
    for word in ("mean", "drop"):
        with pytest.warns(UserWarning, match="lacks 2 of the data set's 80 items"):
            made = kdrs.import_teacher(tmp_path / "a.npz", "npz", data, tmp_path / f"{word}.safetensors", missing=word)
        assert made.matched.joined["users"].n_missing == 3
        with pytest.warns(UserWarning, match="lacks"):
            teacher = opened(made.path, data)
        factors = teacher.factors()
        assert np.array_equal(factors.queries[3:], arrays["users"])
        assert np.array_equal(factors.items[:-2], arrays["items"])
        if word == "mean":
            assert np.allclose(factors.queries[:3], arrays["users"].mean(axis=0), atol=1e-6)
            assert np.allclose(factors.items[-2:], arrays["items"].mean(axis=0), atol=1e-6)
            continue
        lists = teacher.topk(data.n_items).items
        assert (lists[:3] == -1).all()
        scores = teacher.score_block(np.arange(3, data.n_users)).numpy()
        assert (scores[:, -2:].max(axis=1) < scores[:, :-2].min(axis=1)).all()
        assert scores[:, -2:].min() > scores[:, :-2].min() - 1  # and not without bounds
        of_items = teacher.top_users(data.n_users)
        assert not np.isin(of_items, [0, 1, 2]).any()
        plain = kdrs.ranking.topk(factors.items, factors.queries, data.n_users, seen=data.train.transpose()).items
        for row, other in zip(of_items, np.asarray(plain), strict=True):
            assert [u for u in row if u >= 0] == [u for u in other if u > 2]
        (block,) = list(teacher.topk_blocks(5, keep_seen=True))
        assert (block[1].items[:3] == -1).all()
    with pytest.raises(ConfigError, match="missing is"):
        kdrs.import_teacher(tmp_path / "a.npz", "npz", data, tmp_path / "x.safetensors", missing="guess")


@pytest.mark.parametrize(
    ("change", "cause", "hint"),
    [
        (lambda users, items: (np.vstack([users[:1] * 0, users]), items), "60 user ids for 61 rows", "padding row"),
        (lambda users, items: (users, np.vstack([items[:1] * 0, items])), "80 item ids for 81 rows", "padding row"),
        (lambda users, items: (users[:-1], items), "60 user ids for 59 rows", "padding row"),
        (lambda users, items: (users, items[:-7]), "80 item ids for 73 rows", "one id for each row"),
        (lambda users, items: (items, users), "60 user ids for 80 rows", "are users and items exchanged?"),
        (lambda users, items: (users.T, items.T), "60 user ids for 4 rows", "are the vectors transposed?"),
    ],
)
@pytest.mark.parametrize("form", ["npz", "recbole", "lightfm", "lenskit"])
def test_as_many_ids_as_rows(data, tmp_path, form, change, cause, hint):
    """Ids that lie beside the vectors in one file: with another number of rows each would belong to another id."""
    held = vectors(data, 4)
    users, items = change(held["users"], held["items"])
    ids = {name: np.array(held[name]) for name in ("user_ids", "item_ids")}
    np.savez(tmp_path / "a.npz", users=users, items=items, **ids)
    error = refused(DataError, tmp_path / "a.npz", data, form=form)
    assert cause in error
    assert hint in error


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), extra=st.integers(0, 4))
def test_the_order_of_rows_changes_nothing(data, tmp_path, seed, extra):
    """Nor do rows of strangers, to the byte."""
    held, rng = vectors(data, 4), np.random.default_rng(seed)
    kdrs.save_teacher(tmp_path / "plain.safetensors", **held)
    wanted = opened(tmp_path / "plain.safetensors", data)
    mixed: dict[str, Any] = {}
    for side in ("users", "items"):
        strangers = rng.standard_normal((extra, 4)).astype(np.float32)
        order = rng.permutation(len(held[side]) + extra)
        mixed[side] = np.concatenate([held[side], strangers])[order]
        ids = [*held[f"{side[:-1]}_ids"], *(f"stranger {n}" for n in range(extra))]
        mixed[f"{side[:-1]}_ids"] = [ids[place] for place in order]
    kdrs.save_teacher(tmp_path / "mixed.safetensors", **mixed)
    found = opened(tmp_path / "mixed.safetensors", data)
    for one, other in zip(found.factors()[:2], wanted.factors()[:2], strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()
    assert found.topk(20).items.tobytes() == wanted.topk(20).items.tobytes()
    np.savez(tmp_path / "mixed.npz", **{name: np.asarray(value) for name, value in mixed.items()})
    np.savez(tmp_path / "plain.npz", **{name: np.asarray(value) for name, value in held.items()})
    files = []
    for name in ("plain", "mixed"):
        shutil.copy(tmp_path / f"{name}.npz", tmp_path / "a.npz")
        kdrs.import_teacher(tmp_path / "a.npz", "npz", data, tmp_path / "t.safetensors", overwrite=True)
        files.append((tmp_path / "t.safetensors").read_bytes())
    assert files[0] == files[1]


# --- wrong files ----------------------------------------------------------------------------------------------------


def test_arrays_of_objects_are_refused(data, tmp_path):
    whole = np.load(HERE / "implicit-als.npz", allow_pickle=False)
    old = np.array(whole["user_factors"], dtype=object)
    np.savez(tmp_path / "old.npz", user_factors=old, item_factors=whole["item_factors"])
    error = refused(DataError, tmp_path / "old.npz", data, form="implicit", **IMPLICIT)
    assert "which are a pickle" in error
    assert "save it again with implicit 0.5 or newer" in error
    # others in the file are none of our business: implicit saves settings beside the factors
    np.savez(
        tmp_path / "new.npz",
        **{name: whole[name] for name in ("user_factors", "item_factors")},
        random_state=np.array(None),
    )
    kdrs.import_teacher(tmp_path / "new.npz", "implicit", data, tmp_path / "t.safetensors", **IMPLICIT)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("implicit-als.npz", "implicit"),
        ("recbole-bpr.npz", "recbole"),
        ("items.w2v.bin", "word2vec"),
        ("items.w2v.txt", "word2vec"),
    ],
)
def test_cut_files(data, tmp_path, name, form):
    whole = (HERE / name).read_bytes()
    for size in (0, 3, len(whole) // 3, len(whole) // 2, len(whole) - 30):
        (tmp_path / name).write_bytes(whole[:size])
        refused(DataError, tmp_path / name, data, form=form, **(IMPLICIT if form == "implicit" else {}))


def test_values_that_are_not_finite_are_named(data, tmp_path):
    held = vectors(data, 4)
    held["items"][7, 1] = np.nan
    np.save(tmp_path / "i.npy", held["items"])
    error = refused(DataError, tmp_path / "i.npy", data, form="npy", item_ids=held["item_ids"])
    assert "row 7 is not finite, it holds nan" in error
    with pytest.raises(DataError, match="items row 7 is not finite"):
        kdrs.save_teacher(tmp_path / "t.safetensors", **held)


def test_pickles_are_told_with_the_way_out(data, tmp_path):
    import pickle

    import torch

    torch.save({"a": torch.ones(2)}, tmp_path / "model.pth")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"a": 1}))
    for name in ("model.pth", "model.pkl"):
        error = refused(DataError, tmp_path / name, data, form="recbole")
        assert "kdrs never loads one" in error
        assert "--from recbole --print-script" in error


def test_wrong_tables(data, tmp_path):
    pl.DataFrame({"item": ["a", "b"], "vector": [[1.0, 2.0], [1.0]]}).write_parquet(tmp_path / "ragged.parquet")
    pl.DataFrame({"item": ["a"], "size": [1.0]}).write_parquet(tmp_path / "flat.parquet")
    pl.DataFrame({"item": ["a"], "v": [["x", "y"]]}).write_parquet(tmp_path / "text.parquet")
    for name, says in (("ragged", "row 1"), ("flat", "0 columns of lists"), ("text", "write lists of numbers")):
        assert says in refused(DataError, tmp_path / f"{name}.parquet", data, form="parquet")
    (tmp_path / "glove").write_text("the 0.1 0.2\n")
    assert "GloVe" in refused(DataError, tmp_path / "glove", data, form="word2vec")
    np.savez(tmp_path / "other.npz", factors=np.ones(3))
    assert "it holds factors" in refused(DataError, tmp_path / "other.npz", data, form="implicit")
    assert "it holds factors" in refused(DataError, tmp_path / "other.npz", data, form="npz")
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("x.txt", "y")
    refused(DataError, tmp_path / "z.npz", data, form="npz")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"form": "implicit", "users": "x"}, "holds both sides"),
        ({"form": "recbole", "user_ids": ["a"]}, "has the ids of its own"),
        ({"form": "implict"}, "did you mean 'implicit'"),
    ],
)
def test_options_that_do_not_go_together(data, tmp_path, options, says):
    shutil.copy(HERE / "recbole-bpr.npz", tmp_path / "a.npz")
    assert says in refused(ConfigError, tmp_path / "a.npz", data, **options)


# --- the command line -----------------------------------------------------------------------------------------------


def test_the_command_writes_a_teacher_that_distils(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = (
        "teacher",
        "import",
        HERE / "implicit-als.npz",
        "--from",
        "implicit",
        "--data",
        folder,
        "--out",
        "t.safetensors",
    )
    ids = ("--user-ids", HERE / "implicit-users.txt", "--item-ids", HERE / "implicit-items.txt")
    told = ok(*command, *ids)
    assert "users: 60 of the data set's 60; 1 of the source's 61 are not in the data set, first never-seen" in told.out
    assert "ndcg@10" in told.out
    assert "exists" in fails(2, *command, *ids)
    document = ok(*command, *ids, "--overwrite", "--json").document
    assert document["users"] == {
        "source": 61, "data": 60, "matched": 60, "unknown": 1, "missing": 0, "first_unknown": ["never-seen"],
        "first_missing": [],
    }  # fmt: skip
    assert document["parts"]["test"]["ndcg@10"] > 0.25
    small = ("--model", "bpr", "--dim", 4, "--epochs", 1, "--device", "cpu")
    ok("distill", "--data", folder, "--teacher", "t.safetensors", "--method", "de", *small, "--out", "run")
    dry = ok("distill", "--data", folder, "--teacher", "t.safetensors", "--method", "rrd", *small, "--dry-run")
    assert dry.code == 0
    ok("eval", "run", "t.safetensors")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "SOURCE is not given"),
        (("a.npz",), "--from is not given"),
        (("a.npz", "--from", "npz"), "--data is not given"),
        (("--print-script",), "--print-script without --from"),
        (("--print-script", "--from", "word2vec"), "no script for word2vec"),
        (("a.npz", "--print-script", "--from", "recbole"), "SOURCE has no use"),
        (("a.npz", "--from", "npz", "--data", "d", "--out", "t", "--json", "--verbose"), "leave --verbose out"),
        (("a.npz", "--from", "npz", "--data", "d", "--out", "t"), "NAME.safetensors"),
    ],
)
def test_what_is_lacking_is_said(tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    assert says in fails(2, "teacher", "import", *words)


@pytest.mark.parametrize(("dim", "proposed"), [(1, 1), (4, 2), (20, 10), (40, 16)])
def test_the_student_that_comes_next_is_smaller(data, tmp_path, dim, proposed):
    np.savez(tmp_path / "v.npz", **{name: np.asarray(value) for name, value in vectors(data, dim).items()})
    made = kdrs.import_teacher(tmp_path / "v.npz", "npz", data, tmp_path / "t.safetensors")
    assert f" --dim {proposed} --out" in next_command(made, "d")


@pytest.mark.parametrize("length", [3, 12])
def test_what_comes_next_runs_with_short_lists_too(data, tmp_path, monkeypatch, length):
    """The method's usual pool of 500 is more than they have."""
    rng, rows = np.random.default_rng(0), ["user,item,rank"]
    for user in data.users:
        listed = rng.permutation(data.n_items)[:length]
        rows += [f"{user},{data.items[int(item)]},{rank}" for rank, item in enumerate(listed, 1)]
    (tmp_path / "lists.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    data.save("d")
    said = ok("teacher", "import", "lists.csv", "--from", "lists", "--data", "d", "--out", "t.safetensors").out
    (command,) = [line.removeprefix("next: kdrs ") for line in said.splitlines() if line.startswith("next: ")]
    assert f"distill.0.pool={length}" in command
    ok(*shlex.split(command), "--epochs", 1, "--device", "cpu")
