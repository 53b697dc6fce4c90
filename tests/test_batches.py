"""A student as a function of batches: in one process, on a local Ray cluster of two workers, of Arrow batches as Spark has."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import types

import numpy as np
import polars as pl
import pytest

import kdrs
from kdrs.errors import ArtefactError, DataError, MachineError
from test_student import N_ITEMS, made

COLUMNS = ["user", "item", "score", "rank"]


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "s.safetensors"
    made().save(place)
    return place


def frame_of(columns) -> pl.DataFrame:
    return pl.DataFrame({name: list(values) for name, values in columns.items()})


def test_batches_are_what_the_student_answers(path):
    student = kdrs.Student.load(path)
    users = list(student.users)
    expected = frame_of(student.recommend(users, 7).columns())
    lists = kdrs.Recommend(path, 7)
    for form in (np.array(users, object), users, pl.Series("user", users)):
        found = lists({"user": form, "other": np.arange(len(users))})
        assert list(found) == COLUMNS
        assert frame_of(found).equals(expected)
    assert frame_of(lists(pl.DataFrame({"user": users}))).equals(expected)
    parts = [frame_of(lists({"user": users[start : start + 5]})) for start in range(0, len(users), 5)]
    assert pl.concat(parts).equals(expected)


def test_nobody_and_strangers(path):
    lists = kdrs.Recommend(path, 1000)
    assert {name: len(values) for name, values in lists({"user": []}).items()} == dict.fromkeys(COLUMNS, 0)
    found = lists({"user": ["nobody"]})
    assert set(found["user"]) == {"nobody"}
    assert len(kdrs.Recommend(path, None, seen=False)({"user": ["ü1"]})["item"]) == 20  # as of Student.recommend
    assert len(kdrs.Recommend(path, unknown="skip")({"user": ["nobody"]})["user"]) == 0
    with pytest.raises(DataError, match="1 of 1 users are unknown"):
        kdrs.Recommend(path, unknown="error")({"user": ["nobody"]})
    with pytest.raises(DataError, match="no column user; it has id"):
        lists({"id": ["u"]})
    with pytest.raises(ArtefactError, match="no student file"):
        kdrs.Recommend(path.with_name("nowhere"))({"user": ["u"]})
    renamed = kdrs.Recommend(path, user="id")({"id": ["nobody"]})
    assert list(renamed) == COLUMNS


def test_histories(path):
    student = kdrs.Student.load(path)
    own = [[f"item {n}", f"item {n + 1}"] for n in (1, 2, 5)]
    expected = student.recommend(["a", "b", "c"], 4, histories=own)
    found = kdrs.Recommend(path, 4, histories="items")({"user": ["a", "b", "c"], "items": own})
    assert frame_of(found).equals(frame_of(expected.columns()))


def test_only_the_path_travels(path):
    lists = kdrs.Recommend(path, 5)
    before = lists({"user": ["nobody"]})
    table = lists.student.tables.items
    assert not (table.data if hasattr(table, "bits") else table).flags.owndata  # mapped
    sent = pickle.dumps(lists)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert again._student is None
    assert frame_of(again({"user": ["nobody"]})).equals(frame_of(before))


def test_arrow_batches(path):
    """As Spark's mapInArrow calls it: an iterator of record batches in, one out."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    student = kdrs.Student.load(path)
    users = list(student.users)
    batches = pa.table({"n": range(len(users)), "user": users}).to_batches(max_chunksize=6)
    lists = kdrs.Recommend(path, 7)
    found = list(lists.arrow(iter(batches)))
    assert len(found) == len(batches)
    kinds = {"string": pa.string(), "float": pa.float32(), "int": pa.int32()}
    fields = [field.split() for field in kdrs.Recommend.SCHEMA.split(", ")]
    assert found[0].schema == pa.schema([(name, kinds[kind]) for name, kind in fields])
    whole = frame_of({name: pa.Table.from_batches(found)[name].to_pylist() for name in COLUMNS})
    expected = frame_of(student.recommend(users, 7).columns())
    assert whole.equals(expected.cast(whole.schema))
    own = pa.record_batch({"user": ["a", "b"], "items": [["item 1"], ["item 2", "item 3"]]})
    (answer,) = kdrs.Recommend(path, 3, histories="items").arrow([own])
    told = student.recommend(["a", "b"], 3, histories=[["item 1"], ["item 2", "item 3"]])
    assert answer["item"].to_pylist() == list(told.columns()["item"])
    empty = pa.record_batch({"user": pa.array([], pa.string())})
    assert next(lists.arrow([empty])).num_rows == 0


def test_without_pyarrow(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MachineError, match="pyarrow is not installed"):
        next(kdrs.Recommend(path).arrow([types.SimpleNamespace()]))


ON_RAY = """
import json, os, sys

import ray

import kdrs

path, folder = sys.argv[1:]
ray.init(num_cpus=4,  # two workers, and room for what reads the users
          include_dashboard=False, log_to_driver=False, object_store_memory=10**8)


class Told(kdrs.Recommend):
    def __init__(self, *given):
        super().__init__(*given)
        with open(os.path.join(folder, str(os.getpid())), "w") as file:
            table = self.student.tables.items
            file.write(str((table.data if hasattr(table, "bits") else table).flags.owndata))


student = kdrs.Student.load(path)
users = ray.data.from_items([{"user": user} for user in student.users]).repartition(8)
lists = users.map_batches(Told, fn_constructor_args=(path, 7), concurrency=2, batch_size=5)
print(json.dumps(lists.take_all()))
ray.shutdown()
"""


def test_a_ray_cluster_of_two_workers(path, tmp_path):
    """Each worker opens the file once, mapped; together they give the lists of all users."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'kdrs[ray]'")
    folder = tmp_path / "workers"
    folder.mkdir()
    place = os.path.dirname(os.path.dirname(kdrs.__file__))
    run = subprocess.run(
        [sys.executable, "-c", ON_RAY, str(path), str(folder)], capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": place, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    rows = pl.DataFrame(json.loads(run.stdout.splitlines()[-1])).select(COLUMNS).sort("user", "rank")
    student = kdrs.Student.load(path)
    expected = frame_of(student.recommend(list(student.users), 7).columns()).cast(rows.schema).sort("user", "rank")
    assert rows.equals(expected)
    workers = list(folder.iterdir())
    assert len(workers) == 2
    assert {worker.read_text() for worker in workers} == {"False"}


def test_lists_end_with_the_catalogue(path):
    (longest,) = {len(kdrs.Recommend(path, 10**6, seen=False)({"user": [user]})["item"]) for user in ["ü1"]}
    assert longest == N_ITEMS
