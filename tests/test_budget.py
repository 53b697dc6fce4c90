"""``--budget``: what it takes, what it chooses, that the file is no larger."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdrs
from commands import fails, ok
from kdrs.compact.encoders import RidgeEncoder, SumEncoder
from kdrs.compact.tables import Tables, short
from kdrs.errors import ConfigError, MissingKnowledge
from kdrs.runs.budget import chosen, model_of, training_of
from kdrs.runs.compress import best_form
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.forms import Budget, Form, bytes_of, forms_of, usual
from kdrs.runs.opened import LoadedRun
from kdrs.runs.race import ENOUGH, laps_of
from kdrs.training.pairs import PairTask


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/20", 50_000), (" 1 / 20 ", 50_000), ("0.05", 50_000), (".05", 50_000), ("2/40", 50_000), ("40B", 4_000),
        ("20kB", 20_000), ("20KB", 20_000), ("0.5MB", 500_000), ("1MiB", 1 << 20), ("20000B", 20_000),
    ],
)  # fmt: skip
def test_sizes(text, expected):
    assert Budget.parse(text).bytes_of(1_000_000, 100) == expected


@pytest.mark.parametrize(
    "text", ["", "20", "1/0", "0/5", "3/2", "1", "1.5", "-1/20", "0B", "40", "40 b", "2TB", "1/20x", "٣/٤", "1e-2"]
)
def test_other_words_are_refused(text):
    with pytest.raises(ConfigError, match=r"(?s)budget is.*allowed: 1/20 or 0\.05"):
        Budget.parse(text)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 400), st.integers(1, 2000))
def test_the_largest_form_that_fits(dim, n_items, share):
    teacher_bytes = 4 * dim * (n_items + 50)
    room = teacher_bytes // share
    try:
        forms = forms_of(Budget.parse(f"1/{share}"), teacher_bytes, dim, n_items) if share > 1 else []
    except ConfigError:
        assert bytes_of(1, 1, n_items) > room
        return
    for form in forms:
        assert form.n_bytes == bytes_of(form.dim, form.bits, n_items) <= room
        assert 1 <= form.dim <= dim
        assert form.dim == dim or bytes_of(form.dim + 1, form.bits, n_items) > room


@pytest.mark.parametrize("encoder", [RidgeEncoder(), SumEncoder(np.ones((1, 1), np.float32)).rounded()])
def test_a_form_has_room_for_either_encoder(encoder):
    """Ridge regression's two numbers take more than the matrix of one dimension."""
    items = short(kdrs.Codes.of(np.ones((9, 1), np.float32), 1))
    assert Tables(items, encoder=encoder).nbytes <= bytes_of(1, 1, 9) == 9 * 2 + 16


def test_without_a_validation_part_fewer_bytes_never_get_more_bits():
    shares = (5, 10, 16, 30, 50, 100, 200)
    forms = [usual(forms_of(Budget.parse(f"1/{share}"), 4 * 200 * 30_000, 200, 25_000), 200) for share in shares]
    assert [form.bits for form in forms] == sorted((form.bits for form in forms), reverse=True)
    assert [form.n_bytes for form in forms] == sorted((form.n_bytes for form in forms), reverse=True)


@pytest.mark.parametrize("kind", ["elsa", "lightgcn-ssm"])
def test_a_teacher_of_a_strong_kind_teaches_with_more_weight(wide_teacher, tmp_path, kind):
    """And nothing is tried: a single way is left."""
    values = {"data": {"path": str(wide_teacher.parent / "toy")}}
    train = {"epochs": 2, "batch_size": 16}
    execute(resolve({**values, "model": {"name": kind, "dim": 40}, "train": train, "device": "cpu"}), tmp_path / kind)
    kdrs.compress(tmp_path / kind, bits=4, users="sum", out=tmp_path / "small")
    for name in (kind, "small"):
        told: list[str] = []
        found = chosen(values, "1/3", [str(tmp_path / name)], tell=told.append)
        assert found["distill"] == [{"method": "rrd", "weight": 0.3, "teacher": str(tmp_path / name)}]
        assert len(told) == 1  # its bytes: there is no race
    other = chosen({**values, "model": {"name": "bpr"}}, "1/10", [str(tmp_path / kind)], raced=False)
    assert other["distill"][0]["weight"] != 0.3
    assert chosen(values, "1/10", [str(wide_teacher)], raced=False)["distill"][0]["weight"] == 0.03


def test_the_form_is_the_best_one_on_validation(wide_teacher):
    opened = LoadedRun.open(wide_teacher)
    values = {}
    for form in forms_of(Budget.parse("1/10"), 4 * 40 * 130, 40, 80):
        made = kdrs.compress(wide_teacher, form.bits, form.dim, users="sum")
        values[form.bits, form.dim] = made.tried[0][made.selects]
    known = opened.teacher(PairTask(opened.dataset.train))
    chosen = best_form(known, opened.dataset, Budget.parse("1/10"), opened.config)
    assert values[chosen.bits, chosen.dim] == max(values.values())
    made = kdrs.compress(wide_teacher, budget="1/10")
    assert (made.bits, made.model.dim) == (chosen.bits, chosen.dim)
    assert made.n_bytes <= chosen.n_bytes  # ridge regression has no matrix


@pytest.mark.parametrize("budget", ["1/12", "1/40", "9B", "1500B"])
def test_the_file_is_as_large_as_was_said(budget, wide_teacher, tmp_path):
    data = wide_teacher.parent / "toy"
    result = ok(
        "distill", "--data", data, "--teacher", wide_teacher, "--budget", budget, "--epochs", 1, "--device", "cpu",
        "--out", tmp_path / "s", "--set", "model.encoder=trained",
    )  # fmt: skip
    model = LoadedRun.open(tmp_path / "s").model
    told = Budget.parse(budget)
    opened = LoadedRun.open(wide_teacher)
    known = opened.teacher(PairTask(opened.dataset.train))
    form = best_form(known, opened.dataset, told, opened.config, trained=True, wide=True)
    assert model.nbytes == form.n_bytes
    if told.row is None:
        assert model.nbytes <= told.bytes_of(4 * 40 * (50 + 80), 80)
    else:
        assert model.row_bytes <= told.row
    # what was chosen is printed as a run file, which gives the same run
    text = result.err[result.err.index("# chosen for --budget") :]
    chosen = tomllib.loads(text[: text.index("toy:")])
    again = {"data": {"path": str(data)}, "device": "cpu", **chosen}
    execute(resolve(again), tmp_path / "again")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("s", "again")]
    assert files[0] == files[1]


def test_what_is_stated_wins_over_what_is_chosen(wide_teacher, tmp_path):
    data = wide_teacher.parent / "toy"
    ok(
        "distill", "--data", data, "--teacher", wide_teacher, "--budget", "1/12", "--method", "rrd",
        "--set", "distill.0.pool=20", "--set", "distill.0.interesting=5", "--set", "distill.0.uninteresting=5",
        "--lr", "5e-3", "--epochs", 1,
        "--model", "lightgcn",
        "--device", "cpu", "--out", tmp_path / "s",
    )  # fmt: skip
    config = LoadedRun.open(tmp_path / "s").config
    assert [term.method for term in config.distill] == ["rrd"]
    assert (config.model["name"], config.train.lr, config.train.epochs) == ("lightgcn", 5e-3, 1)
    assert config.model["users"] == "encoded"


def test_a_compressed_teacher_has_its_own_bytes(wide_teacher, tmp_path):
    data = wide_teacher.parent / "toy"
    ok("compress", wide_teacher, "--bits", 8, "--out", tmp_path / "small")
    told = fails(
        2,
        "distill",
        "--data",
        data,
        "--teacher",
        tmp_path / "small",
        "--budget",
        "1/100",
        "--device",
        "cpu",
        "--out",
        tmp_path / "s",
    )
    assert "the smallest student has" in told
    ok(
        "distill",
        "--data",
        data,
        "--teacher",
        tmp_path / "small",
        "--budget",
        "1/2",
        "--epochs",
        1,
        "--device",
        "cpu",
        "--out",
        tmp_path / "s",
    )
    sizes = [LoadedRun.open(tmp_path / name).model.nbytes for name in ("small", "s")]
    assert sizes[1] <= sizes[0] / 2


def test_a_teacher_that_does_not_tell_its_bytes(wide_teacher):
    opened = LoadedRun.open(wide_teacher)

    class Unknown:
        name, dim, asked = "mine", 40, PairTask(opened.dataset.train)

        def factors(self):
            return opened.factors()

    with pytest.raises(MissingKnowledge, match="the bytes of mine are not known"):
        best_form(Unknown(), opened.dataset, Budget.parse("1/10"), opened.config)


def test_without_method_and_size_it_is_the_recommended_student(wide_teacher: Path, tmp_path: Path) -> None:
    data = wide_teacher.parent / "toy"
    run = ("distill", "--data", data, "--teacher", wide_teacher, "--device", "cpu", "--epochs", 2)
    plain = ok(*run, "--out", tmp_path / "plain")
    assert "as --budget 1/16" in plain.err
    ok(*run, "--budget", "1/16", "--out", tmp_path / "stated")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "stated"))
    assert one == other
    assert "model.dim is 4" in fails(2, *run, "--dim", 4, "--out", tmp_path / "sized")
    told = ok(*run, "--method", "cd", "--weight", 0.2, "--dry-run")
    assert "no model and no size are given: as --budget 1/16" in told.err
    assert re.search(r'name = "elsa"(.|\n)*method = "cd"(.|\n)*weight = 0.2', told.out)
    sized = ok(*run, "--method", "cd", "--dim", 4, "--dry-run")
    assert "no model is given: elsa of 4 dimensions" in sized.err
    assert re.search(r'name = "elsa"\ndim = 4\n(.|\n)*method = "cd"', sized.out)
    started = ok(*run, "--method", "cd", "--start", wide_teacher, "--dry-run")
    assert f"that of {wide_teacher}" in started.err
    assert "model.name is missing" in fails(2, *run, "--method", "cd", "--set", "model.bits=2")
    assert "as --budget" not in ok(*run, "--method", "cd", "--model", "bpr", "--dry-run").err


@pytest.mark.parametrize(
    ("n_users", "n_items", "sample", "batch"),
    [
        (29_858, 40_981, None, None),
        (138_493, 26_744, None, None),
        (480_189, 17_770, 10_412, 512),
        (1_000_000, 200_000, 5_000, 1024),
        (1_300_000, 400, None, 1024),
        (10_000_000, 1_000_000, "bpr", 1024),
    ],
)
def test_large_data_have_a_sampled_softmax_and_larger_batches(n_users, n_items, sample, batch) -> None:
    """Beyond 10^12 products an epoch a batch counts some items alone, and beyond 10^13 not even those can be had."""
    found = model_of(n_users, n_items, 200)
    assert found == (
        {"name": "bpr"} if sample == "bpr" else {"name": "elsa"} | ({"softmax_items": sample} if sample else {})
    )
    training = training_of(Form(200, 1, 1), "elsa", n_users)
    assert training.get("batch_size") == batch
    assert training["epochs"] == 15
    rate = None if batch is None else pytest.approx(0.01 * (batch / 128) ** 0.5)
    assert training.get("lr") == rate


@pytest.mark.parametrize(
    ("dim", "n_users", "epochs"), [(200, 5219, 15), (48, 5219, 62), (200, 938, 82), (48, 938, 100), (48, 29858, 15)]
)
def test_few_dimensions_and_few_users_have_more_epochs(dim: int, n_users: int, epochs: int) -> None:
    assert training_of(Form(dim, 1, 1), "elsa", n_users)["epochs"] == epochs


def test_without_a_model_it_is_the_recommended_one(wide_teacher: Path, tmp_path: Path, monkeypatch) -> None:
    run = ("train", "--data", wide_teacher.parent / "toy", "--device", "cpu", "--epochs", 1)
    plain = ok(*run, "--out", tmp_path / "plain")
    assert "no model is given: elsa of 200 dimensions" in plain.err
    ok(*run, "--model", "elsa", "--dim", 200, "--set", "train.average=0.5", "--out", tmp_path / "stated")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "stated"))
    assert one == other
    small = ok(*run, "--dim", 12, "--set", "train.average=0", "--dry-run")
    assert re.search(r'name = "elsa"\ndim = 12\n', small.out)
    assert "average = 0.0" in small.out
    monkeypatch.setattr("kdrs.runs.budget.MOST", 1)
    monkeypatch.setattr("kdrs.runs.budget.SAMPLE", 16)
    sampled = ok(*run, "--dry-run")
    assert "elsa of 200 dimensions, its softmax over 16 items a batch" in sampled.err
    assert "softmax_items = 16\n" in sampled.out
    assert "every = 5\n" in sampled.out
    ok(*run, "--out", tmp_path / "sampled")
    (row,) = Run.open(tmp_path / "sampled").rows()
    assert "valid" in row  # the last epoch is evaluated
    told = ok("distill", *run[1:], "--teacher", wide_teacher, "--dry-run", "--set", "model.softmax_items=17").out
    assert 'name = "elsa"' in told
    assert "softmax_items = 17\n" in told
    monkeypatch.setattr("kdrs.runs.budget.DEAREST", 1)
    large = ok(*run, "--dry-run")
    assert 'name = "bpr"\ndim = 200\n' in large.out
    assert "bpr of 200 dimensions, as an epoch of elsa would take too long" in large.err
    assert "write it as a table: [model]" in fails(2, *run, "--set", "model=elsa")
    wrong = fails(2, *run, "--dim", 0)
    assert "model.dim is 0" in wrong
    assert "no model is given" not in wrong


def test_without_a_model_a_run_goes_on_or_starts_with_that_of_the_other_run(wide_teacher: Path, tmp_path: Path) -> None:
    run = ("train", "--data", wide_teacher.parent / "toy", "--device", "cpu")
    ok(*run, "--model", "bpr", "--dim", 6, "--epochs", 1, "--lr", "1e-2", "--out", tmp_path / "small")
    more = ok(*run, "--epochs", 2, "--out", tmp_path / "small", "--resume")
    assert "no model is given" not in more.err
    config = LoadedRun.open(tmp_path / "small").config
    assert (config.model["name"], config.train.epochs, config.train.lr) == ("bpr", 2, 1e-2)
    started = ok(*run, "--start", tmp_path / "small", "--epochs", 1, "--dry-run")
    assert "bpr of 6 dimensions" in started.err
    assert 'name = "bpr"\ndim = 6\n' in started.out


def test_lists_or_scores_is_told_by_the_first_epochs(wide_teacher, tmp_path, monkeypatch):
    """One bit and few bytes an item: both are tried, the better one on validation is taken, and a run that goes on keeps it."""
    monkeypatch.setattr("kdrs.runs.race.ENOUGH", 1)
    monkeypatch.setattr("kdrs.runs.budget.best_form", lambda *_, **__: Form(32, 1, bytes_of(32, 1, 80)))
    data = wide_teacher.parent / "toy"
    command = [
        "distill", "--data", data, "--teacher", wide_teacher, "--budget", "1/40", "--lr", "1e-2", "--batch-size", 64,
        "--protocol", "default", "--device", "cpu", "--out", tmp_path / "s",
    ]  # fmt: skip
    told = ok(*command, "--epochs", 2).err
    assert "trying an epoch of each method: rrd, cd\n" in told
    found = re.search(r"ndcg@10 on validation: rrd (0\.\d{4}), cd (0\.\d{4})\n", told)
    assert found, told
    run = LoadedRun.open(tmp_path / "s")
    method = run.config.distill[0].method
    values = dict(zip(("rrd", "cd"), map(float, found.groups()), strict=True))
    assert values[method] == max(values.values())
    first = json.loads((tmp_path / "s/metrics.jsonl").read_text().splitlines()[0])
    assert first["valid"]["ndcg@10"] == pytest.approx(values[method], abs=5e-5)  # the run does what was tried
    other = "cd" if method == "rrd" else "rrd"
    monkeypatch.setattr(
        "kdrs.runs.budget.race", lambda runs, dataset: [float(r.distill[0].method == other) for r in runs]
    )
    again = ok(*command, "--epochs", 3, "--resume").err
    assert "trying" not in again
    assert LoadedRun.open(tmp_path / "s").config.distill[0].method == method
    assert "go on with it by --resume" in fails(2, *command, "--epochs", 2)
    turned = ok(*command[:-1], tmp_path / "t", "--epochs", 1).err
    assert "trying" in turned
    assert LoadedRun.open(tmp_path / "t").config.distill[0].method == other


def test_a_method_is_tried_as_long_as_it_takes_and_never_in_a_dry_run(wide_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("kdrs.runs.budget.best_form", lambda *_, **__: Form(32, 1, bytes_of(32, 1, 80)))
    data = wide_teacher.parent / "toy"
    dataset = kdrs.Dataset.load(data)
    assert laps_of(dataset, 1000) == -(-ENOUGH // dataset.train.n_pairs)
    assert laps_of(dataset, 15) == 15
    command = ["distill", "--data", data, "--teacher", wide_teacher, "--budget", "1/40", "--device", "cpu"]
    told = ok(*command, "--dry-run", "--out", tmp_path / "s")
    assert "trying" not in told.err
    assert "rrd is shown; a short trial of rrd and cd decides" in told.err
    assert not (tmp_path / "s").exists()
    assert "trying" not in ok(*command, "--method", "cd", "--epochs", 1, "--out", tmp_path / "s").err
    assert "trying" in ok(*command, "--epochs", 1, "--out", tmp_path / "t").err
