"""A teacher's file of another kind than the form that was named: what it is, and what reads it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

import kdrs
from conftest import toy_dataset
from kdrs.errors import ArtefactError, ConfigError, DataError
from kdrs.teachers.importers import SIDED, WHOLE, read_source
from teacher_files import vectors

FORMS = [form for form in (*WHOLE, *SIDED) if form != "recbole-npz"]
READ_BY = {
    "npz": ("recbole", "lightfm", "lenskit", "npz"),
    "implicit.npz": ("implicit",),
    "npy": ("npy",),
    "vectors.parquet": ("parquet",),
    "lists.parquet": ("lists",),
    "csv": ("lists",),
    "w2v": ("word2vec",),
    "safetensors": (),
}
"""By the file, the forms that read it."""


@pytest.fixture(scope="module")
def data():
    return toy_dataset()


@pytest.fixture(scope="module")
def files(data, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    made = {name: folder / f"a.{name}" for name in READ_BY}
    held = vectors(data, 4)
    users, items = np.asarray(held["users"], np.float32), np.asarray(held["items"], np.float32)
    ids = {f"{kind}_ids": np.array(held[f"{kind}_ids"]) for kind in ("user", "item")}
    np.savez(made["npz"], users=users, items=items, **ids)
    np.savez(made["implicit.npz"], user_factors=users, item_factors=items)
    np.save(made["npy"], items)
    pl.DataFrame({"item": ids["item_ids"], "vector": items.tolist()}).write_parquet(made["vectors.parquet"])
    lists = pl.DataFrame({"user": ids["user_ids"], "item": [data.items[0]] * len(users)})
    lists.write_parquet(made["lists.parquet"])
    lists.write_csv(made["csv"])
    lines = [" ".join([name, *map(str, row)]) for name, row in zip(ids["item_ids"], items.tolist(), strict=True)]
    made["w2v"].write_text("\n".join([f"{len(items)} {items.shape[1]}", *lines]) + "\n")
    safetensors.numpy.save_file({"users": users, "items": items}, made["safetensors"])
    return made


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", READ_BY)
def test_a_file_of_another_kind_is_named_with_what_reads_it(files, name, form):
    if form in READ_BY[name]:
        read_source(files[name], form)
        return
    with pytest.raises(DataError) as caught:
        read_source(files[name], form)
    told = str(caught.value)
    assert "write it again" not in told or "say what it is" in told
    assert "--format" not in told
    assert "unpack it" not in told
    forms = re.findall(r"--from (\w+)", caught.value.remedy)
    kinds = {"npz": {"npz", "implicit.npz"}, "parquet": {"vectors.parquet", "lists.parquet"}}
    alike = next((group for group in kinds.values() if name in group), {name})
    good = {reader for one in alike for reader in READ_BY[one]}
    assert not forms or set(forms) & good


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_not_there(tmp_path, form):
    for ending in ("npz", "npy", "safetensors", "csv"):
        with pytest.raises(DataError, match="No such file"):
            read_source(tmp_path / f"none.{ending}", form)


def test_the_remedy_for_a_safetensors_file_works(files, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is a safetensors file, and --from npz reads") as caught:
        read_source(files["safetensors"], "npz")
    code = caught.value.remedy.partition("in Python: ")[2]
    for side in ("users", "items"):
        code = code.replace(f"{side}=a[...]", f"{side}=a['{side}']")
    held = vectors(data, 4)
    code = code.replace("user_ids=...", "user_ids=users").replace("item_ids=...", "item_ids=items")
    names = {"users": held["user_ids"], "items": held["item_ids"], "FILE": files["safetensors"]}
    exec(code, {"safetensors": safetensors, "kdrs": kdrs, **names})
    kdrs.FileTeacher("teacher.safetensors", kdrs.PairTask(data.train), dataset=data)
    with pytest.raises(DataError, match="is a teacher file already"):
        read_source("teacher.safetensors", "npz")


def test_arrays_are_no_lists(files):
    with pytest.raises(DataError, match=r"is one NumPy array \(.npy\), and --from lists reads") as caught:
        read_source(files["npy"], "lists")
    assert "kdrs.save_teacher" in caught.value.remedy


def test_odd_values(files, data, tmp_path):
    out = tmp_path / "t.safetensors"
    for dim in (2.0, True, 0, 9):
        with pytest.raises(ConfigError, match=f"dim is {dim}"):
            kdrs.import_teacher(files["npz"], "npz", data, out, dim=dim)
    held = vectors(data, 4)
    odd = [f"é{name}".encode("latin1") for name in held["item_ids"]]
    with pytest.raises(DataError, match="is no UTF-8"):
        kdrs.import_teacher(files["npy"], "npy", data, out, item_ids=odd)
    padded = [f" {name}" for name in held["item_ids"]]
    with pytest.raises(ArtefactError, match="it has ' ") as caught:
        kdrs.import_teacher(files["npy"], "npy", data, out, item_ids=padded)
    assert caught.value.remedy == "take off the blanks around its ids"
    large = [[1e300] * 4] * len(held["item_ids"])
    pl.DataFrame({"item": held["item_ids"], "vector": large}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 0 holds 1e\+300, which is past float32"):
        kdrs.import_teacher(tmp_path / "a.parquet", "parquet", data, out)
