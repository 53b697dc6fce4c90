"""`kdrs.compress` and ``kdrs compress``: what is kept, what is measured, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import kdrs
from commands import fails, ok
from conftest import toy_dataset
from kdrs import Codes, Evaluator
from kdrs.errors import ConfigError, DataError, MissingKnowledge
from kdrs.runs.compress import USERS
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.opened import LoadedRun
from kdrs.training.pairs import PairTask

HEAD = {"kdrs": "teacher/1"}


def trained(data: Path, place: Path, name: str = "bpr", **model) -> Path:
    values = {"data": {"path": str(data)}, "model": {"name": name, "dim": 12, **model}, "device": "cpu"}
    execute(resolve({**values, "train": {"epochs": 30, "batch_size": 64, "lr": 1e-2}}), place)
    return place


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("compress")
    toy_dataset().save(place / "toy")
    return trained(place / "toy", place / "teacher")


def test_the_names_on_the_command_line_are_those_of_the_function():
    from kdrs.cli import choices

    assert choices.USERS == USERS


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_factors_become_codes(bits):
    rng = np.random.default_rng(0)
    users, items, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((30, 10), (20, 10), (20,)))
    made = kdrs.compress((users, items, bias), bits)
    own, theirs, kept = made.model.factors()
    assert own.levels().tolist() == Codes.of(users, bits).levels().tolist()
    scale, close = (1, 2**-6) if bits <= 2 else (2, 2**-8)
    assert np.allclose(theirs.scales, Codes.of(items, bits).scales, rtol=close)
    assert np.array_equal(kept, bias)
    stride = (10 * bits + 7) // 8
    assert made.n_bytes == (30 + 20) * (stride + scale) + 20 * 4
    assert made.model.row_bytes == stride + scale + 4


def test_fewer_dimensions_of_float32():
    rng = np.random.default_rng(0)
    users, items = rng.standard_normal((30, 10)).astype(np.float32), rng.standard_normal((20, 10)).astype(np.float32)
    own, theirs, _ = kdrs.compress((users, torch.from_numpy(items)), 32, dim=10).model.factors()
    assert np.allclose(own @ theirs.T, users @ items.T, atol=1e-4)
    assert kdrs.compress((users, items), 32, dim=4).n_bytes == 4 * 4 * 50


@pytest.mark.parametrize("users", USERS)
def test_what_is_measured_is_what_is_kept(users, teacher, tmp_path):
    made = kdrs.compress(teacher, 4, users=users, out=tmp_path / "small")
    opened = LoadedRun.open(tmp_path / "small")
    again = Evaluator.of(opened.dataset)(opened.teacher())
    assert again["test"].means() == made.reports["test"].means() == opened.report()["test"].means()
    source = LoadedRun.open(teacher)
    assert made.source["test"].means() == source.report()["test"].means()
    assert (made.users == "table") == (opened.model.user_encoder is None)
    assert {"table": {"table"}, "sum": {"sum"}, "ridge": {"ridge"}, "encoded": {"sum", "ridge"}}.get(
        users, {made.users}
    ) >= {made.users}
    assert made.tried == sorted(made.tried, key=lambda line: made.tried.index(line))
    best = max(line[made.selects] for line in made.tried)
    assert made.reports["valid"].mean(made.selects) == best
    with safe_open(tmp_path / "small" / "model.safetensors", "pt") as file:
        assert sum(file.get_tensor(name).nbytes for name in file.keys()) == made.n_bytes  # noqa: SIM118
    assert made.source_bytes == 4 * 12 * (50 + 80)


def test_eight_bits_keep_the_ranking(teacher):
    made = kdrs.compress(teacher, 8, users="table")
    assert made.reports["test"].mean(made.selects) == pytest.approx(made.source["test"].mean(made.selects), rel=0.03)


def test_a_compressed_run_is_a_run(teacher, tmp_path):
    small = tmp_path / "small"
    kdrs.compress(teacher, 2, 8, out=small)
    assert Run.open(small).status()["stopped"] == "compressed"
    compared = ok("eval", str(teacher), str(small), "--json")
    lines = {line["name"]: line for line in json.loads(compared.out)["runs"]}
    assert lines["small"]["role"] == "student"
    assert lines["small"]["n_bytes"] == LoadedRun.open(small).model.nbytes
    data = teacher.parent / "toy"
    ok(
        "distill", "--data", str(data), "--teacher", str(small), "--method", "rrd", "--model", "bpr", "--dim", "4",
        "--epochs", "1", "--out", str(tmp_path / "student"), "--device", "cpu",
    )  # fmt: skip
    kdrs.compress(small, 1, out=tmp_path / "smaller")
    ok("report", str(teacher), str(small), str(tmp_path / "smaller"), "--out", str(tmp_path / "report"))
    again = fails(2, "train", str(small / "config.toml"), "--out", str(tmp_path / "again"))
    assert "was not trained" in again
    assert "kdrs compress" in again
    again = fails(2, "resume", str(small))
    assert "was not trained" in again


def test_a_bias_is_kept(teacher, tmp_path):
    source = trained(teacher.parent / "toy", tmp_path / "cdae", "cdae")
    made = kdrs.compress(source, 4, 6)
    assert made.model.bias is not None
    assert torch.equal(made.model.bias, LoadedRun.open(source).model.item_bias.detach())


@pytest.mark.parametrize("name", ["lightgcn", "sasrec", "multvae", "cml"])
def test_models_of_products(name, teacher, tmp_path):
    options = {"variant": "collmetric"} if name == "cml" else {"length": 8, "blocks": 1} if name == "sasrec" else {}
    source = trained(teacher.parent / "toy", tmp_path / "source", name, **options)
    made = kdrs.compress(source, 3, out=tmp_path / "small")
    assert LoadedRun.open(tmp_path / "small").factors().items == made.model.factors().items


def test_scores_that_are_no_products_need_a_dimension(teacher, tmp_path):
    source = trained(teacher.parent / "toy", tmp_path / "neumf", "neumf")
    with pytest.raises(ConfigError, match=r"(?s)are no products of vectors.*--dim"):
        kdrs.compress(source, 4)
    made = kdrs.compress(source, 8, 20, users="table")
    assert made.reports["test"].mean(made.selects) == pytest.approx(made.source["test"].mean(made.selects), rel=0.15)


def test_without_a_validation_part_users_are_sums(tmp_path):
    data = toy_dataset()
    from kdrs import Dataset, Interactions

    nothing = Interactions.from_pairs([], [], *data.train.shape)
    Dataset.from_interactions(data.train, nothing, data.test, name="toy").save(tmp_path / "toy")
    source = trained(tmp_path / "toy", tmp_path / "teacher")
    for users in ("auto", "encoded"):
        made = kdrs.compress(source, 4, users=users)  # type: ignore[arg-type]
        assert (made.users, made.tried) == ("sum", [])
    assert kdrs.compress(source, 4, users="ridge").users == "ridge"


def test_a_teacher_file(teacher, tmp_path):
    source = LoadedRun.open(teacher)
    users, items, _ = source.factors()
    path = tmp_path / "teacher.safetensors"
    save_file({"users": users.contiguous(), "items": items.contiguous()}, path, HEAD)
    made = kdrs.compress(path, 3, dataset=teacher.parent / "toy", out=tmp_path / "small")
    assert made.reports["test"].means() == kdrs.compress(teacher, 3).reports["test"].means()
    with pytest.raises(ConfigError, match=r"(?s)data set is unknown.*--data"):
        kdrs.compress(path)


def test_what_is_refused(teacher, tmp_path):
    factors = np.ones((3, 2), np.float32), np.ones((4, 2), np.float32)
    for bad in (0, 5, 16, True, "3"):
        with pytest.raises(ConfigError, match=r"(?s)bits is .*allowed: 1, 2, 3, 4, 8, 32"):
            kdrs.compress(factors, bad)
    for bad in (0, -1, 2.0, True):
        with pytest.raises(ConfigError, match=r"(?s)dim is .*allowed: integers from 1"):
            kdrs.compress(factors, 3, bad)
    with pytest.raises(ConfigError, match="dim is 3; factors has 2"):
        kdrs.compress(factors, 3, 3)
    with pytest.raises(ConfigError, match="budget is 1/2, and there is no data set to choose by"):
        kdrs.compress(factors, budget="1/2")
    with pytest.raises(ConfigError, match="budget is 1/2, and bits is given"):
        kdrs.compress(teacher, 8, budget="1/2")
    with pytest.warns(UserWarning, match="nothing became smaller"):
        kdrs.compress(teacher, 32, users="table")
    encoded = kdrs.compress(teacher, users="sum").model
    with pytest.raises(DataError, match="histories is a list"):
        encoded.encode([[1, 2]])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="users is tables"):
        kdrs.compress(factors, users="tables")
    with pytest.raises(ConfigError, match="users is 'sum', and there is no data set"):
        kdrs.compress(factors, users="sum")
    with pytest.raises(DataError, match=r"users are \(3, 2\), items \(4, 5\)"):
        kdrs.compress((factors[0], np.ones((4, 5), np.float32)))
    with pytest.raises(ConfigError, match="int cannot be compressed"):
        kdrs.compress(3)
    with pytest.raises(ConfigError, match="order of users and items nothing vouches for"):
        kdrs.compress(factors, dataset=teacher.parent / "toy")
    opened = LoadedRun.open(teacher)
    known = opened.teacher(PairTask(opened.dataset.train))
    with pytest.raises(ConfigError, match="no folder that the run could name"):
        kdrs.compress(known, dataset=opened.dataset, out=tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_lists_alone_say_what_to_do(teacher, tmp_path):
    opened = LoadedRun.open(teacher)
    path = tmp_path / "lists.safetensors"
    lists = opened.teacher().topk(10)
    save_file({"topk": torch.from_numpy(lists.items.astype(np.int32))}, path, HEAD)
    with pytest.raises(MissingKnowledge, match="holds lists alone"):
        kdrs.compress(path, dataset=teacher.parent / "toy")


def test_the_command(teacher, tmp_path):
    small = tmp_path / "small"
    shown = ok("compress", str(teacher), "--bits", "2", "--dim", "8", "--users", "encoded", "--out", str(small), "-v")
    assert "2 bits" in shown.out
    assert "source" in shown.out
    assert shown.out.count("on valid") >= 5
    before = (small / "model.safetensors").read_bytes()
    again = fails(2, "compress", str(teacher), "--out", str(small))
    assert "already holds a run" in again
    assert (small / "model.safetensors").read_bytes() == before
    document = json.loads(ok("compress", str(teacher), "--out", str(tmp_path / "three"), "--json").out)
    assert document["bytes"] == LoadedRun.open(tmp_path / "three").model.nbytes
    assert document["parts"]["test"]
    other = fails(2, "compress", str(teacher), "--bits", "5", "--out", str(tmp_path / "five"))
    assert "allowed: 1, 2, 3, 4, 8" in other
    assert not (tmp_path / "five").exists()
    missing = fails(4, "compress", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x"))
    assert "nowhere" in missing


@pytest.mark.parametrize("bits", [4, 32])
@pytest.mark.parametrize("users", ["table", "sum", "ridge", "auto"])
def test_a_model_without_a_table_of_users_is_compressed_with_and_without_one(toy_path, tmp_path, bits, users):
    values = {"data": {"path": str(toy_path)}, "model": {"name": "elsa", "dim": 8}, "device": "cpu"}
    execute(resolve({**values, "train": {"epochs": 1, "batch_size": 16}}), tmp_path / "elsa")
    made = kdrs.compress(tmp_path / "elsa", bits=bits, dim=6, users=users, out=tmp_path / "small")
    again = kdrs.load_run(tmp_path / "small", kdrs.Dataset.load(toy_path))
    for mine, theirs in zip(made.model.factors(), again.factors(), strict=True):
        if mine is not None:
            assert np.array_equal(
                *(np.asarray(side.vectors() if hasattr(side, "vectors") else side) for side in (mine, theirs))
            )
