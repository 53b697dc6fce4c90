"""Into production: data sets that hold nothing out, and finished runs trained again on them."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import kdrs
from commands import FAST, fails, ok, write_clicks
from commands import kdrs as command
from conftest import toy_dataset
from kdrs.compact.encoders import RidgeEncoder
from kdrs.data import Table
from kdrs.data.prepare import Recipe, prepare
from kdrs.errors import ArtefactError, ConfigError, DataError
from kdrs.models.stored import StoredModel
from kdrs.runs import execute as executing
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.opened import load_run
from kdrs.runs.refit import refitted


def values(data: Path, epochs: int = 4, **more: object) -> dict:
    train = {"epochs": epochs, "batch_size": 64, "lr": 1e-2, "checkpoint_seconds": 0}
    return {"data": {"path": str(data)}, "model": {"name": "bpr", "dim": 4}, "train": train, "device": "cpu", **more}


def final_bytes(run: Path) -> tuple[bytes, list[dict]]:
    """Weights, and the losses of all epochs."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return (run / "model.safetensors").read_bytes(), [{**row, "seconds": None} for row in rows]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split, the same joined, a teacher, a student, and the teacher's refit."""
    folder = tmp_path_factory.mktemp("refit")
    data = toy_dataset()
    data.save(folder / "d")
    data.whole().save(folder / "all")
    execute(resolve(values(folder / "d", model={"name": "bpr", "dim": 8})), folder / "teacher")
    term = {"method": "cd", "teacher": str(folder / "teacher")}
    execute(resolve(values(folder / "d", distill=[term])), folder / "student")
    ok("refit", folder / "teacher", "--data", folder / "all", "--out", folder / "final-teacher", "-q")
    return folder


# --- nothing held out -----------------------------------------------------------------------------------------------


@st.composite
def splits(draw: st.DrawFn) -> kdrs.Dataset:
    """Small data sets under any split."""
    rows = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=14, max_size=50, unique=True))
    users, items = zip(*rows, strict=True)
    times = draw(st.permutations(range(len(rows))))
    table = Table.from_pairs([f"u{u}" for u in users], [f"i{i}" for i in items], times=list(times))
    kind = draw(st.sampled_from(("leave-one-out", "ratio", "last-n", "ordered")))
    last = draw(st.sampled_from(("test", "valid")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return prepare(table, Recipe(split=kind, fractions=(0.5, 0.25, 0.25), last=last))
        except DataError:  # nothing would be held out
            reject()


@given(splits())
@settings(max_examples=50)
def test_the_whole_has_every_pair_once_and_the_same_ids(data):
    whole = data.whole()
    assert not whole.holds_out
    assert data.holds_out
    assert whole.train.n_pairs == data.train.n_pairs + data.valid.n_pairs + data.test.n_pairs
    for part in (data.train, data.valid, data.test):
        assert part.intersection(whole.train).n_pairs == part.n_pairs
    assert whole.users.digest == data.users.digest
    assert whole.items.digest == data.items.digest
    assert whole.fingerprint != data.fingerprint
    assert whole.whole() is whole


@given(splits())
@settings(max_examples=50)
def test_the_order_is_that_of_the_rows_or_none(data):
    """Where the held-out pairs have a place, the order is what preparing the same rows without a split gives."""
    whole = data.whole()
    if whole.order is None:
        return
    starts = zip(whole.train.indptr[:-1], whole.train.indptr[1:], strict=True)
    for user, (start, stop) in enumerate(starts):
        own = whole.order[start:stop].tolist()
        first = data.order[data.train.indptr[user] : data.train.indptr[user + 1]].tolist()
        parts = {
            name: getattr(data, name).indices[slice(*getattr(data, name).indptr[user : user + 2])].tolist()
            for name in ("valid", "test")
        }
        later = (
            parts["valid"] + parts["test"]
            if data.split.get("last", "test") == "test"
            else parts["test"] + parts["valid"]
        )
        assert own == first + later


def test_a_prepared_data_set_and_its_file_give_the_same_pairs(tmp_path):
    clicks = write_clicks(tmp_path / "clicks.csv")
    common = ("--min-rating", 2)
    ok("data", "prepare", clicks, *common, "--split", "last-n", "--out", tmp_path / "d")
    ok("data", "prepare", clicks, *common, "--split", "none", "--out", tmp_path / "file")
    joined = ok("data", "prepare", tmp_path / "d", "--split", "none", "--out", tmp_path / "joined", "--json").document
    one, other = (kdrs.Dataset.load(tmp_path / name) for name in ("file", "joined"))
    assert joined["pairs"] == {"all": one.train.n_pairs, "train": one.train.n_pairs, "valid": 0, "test": 0}
    assert (one.users.digest, one.items.digest) == (other.users.digest, other.items.digest)
    assert np.array_equal(one.train.indptr, other.train.indptr)
    assert np.array_equal(one.train.indices, other.train.indices)
    assert np.array_equal(one.order, other.order)  # last-n, one pair a part: the order is known


def test_what_a_data_set_without_held_out_pairs_has_no_use_for(tmp_path):
    clicks = write_clicks(tmp_path / "clicks.csv")
    ok("data", "prepare", clicks, "--min-rating", 2, "--out", tmp_path / "d")
    for options in (("--candidates", 9), ("--cold-items", "drop"), ("--seed", 3)):
        fails(2, "data", "prepare", clicks, "--split", "none", *options, "--out", tmp_path / "x")
    assert "prepared already" in fails(
        2, "data", "prepare", tmp_path / "d", "--split", "none", "--k-core", 3, "--out", tmp_path / "x"
    )
    assert "--split none" in fails(3, "data", "prepare", tmp_path / "d", "--out", tmp_path / "x")
    with pytest.raises(ConfigError, match="holds nothing out"):
        prepare(Table.from_pairs(["a"], ["b"]), Recipe(split="none", candidates=3))
    assert not (tmp_path / "x").exists()


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_refit_is_the_run_of_its_best_epochs_on_all_pairs(place, tmp_path):
    best = Run.open(place / "student").status()["best_epoch"]
    ok(
        "refit",
        place / "student",
        "--data",
        place / "all",
        "--teacher",
        place / "final-teacher",
        "--out",
        tmp_path / "f",
    )
    term = {"method": "cd", "teacher": str(place / "final-teacher")}
    execute(resolve(values(place / "all", best + 1, distill=[term])), tmp_path / "by-hand")
    assert final_bytes(tmp_path / "f") == final_bytes(tmp_path / "by-hand")
    status = Run.open(tmp_path / "f").status()
    assert (status["epochs"], status["best_epoch"]) == (best + 1, best)


def test_a_refit_says_what_was_not_measured(place, tmp_path):
    said = ok("refit", place / "student", "--data", place / "all", "--out", tmp_path / "f")
    assert "nothing was measured" in said.out
    assert "kdrs export" in said.out
    assert "was trained on other pairs" in said.err  # its teacher
    card = (tmp_path / "f/README.md").read_text()
    assert "nothing was measured. student, of the same settings" in card
    value = kdrs.load_run(place / "student").report()["test"].mean("ndcg@5")
    assert f"{value:.4f}" in card
    assert "kdrs eval" not in card
    assert kdrs.load_run(tmp_path / "f").report() == {}
    assert "holds nothing out" in fails(3, "eval", tmp_path / "f")
    assert "another split" in fails(4, "eval", tmp_path / "f", "--data", place / "d")


def test_a_refit_serves_and_leaves_out_all_that_users_have(place, tmp_path):
    ok("export", place / "final-teacher", "--seen", "--out", tmp_path / "t.safetensors")
    student = kdrs.Student.load(tmp_path / "t.safetensors")
    assert student.card["refit"]["of"] == "teacher"
    assert student.card["refit"]["metrics"]["test"]
    assert student.card["metrics"] == {}
    data = kdrs.Dataset.load(place / "d")
    found = student.recommend(list(data.users), data.n_items)
    for user, listed in found:
        row = data.users.index([user])[0]
        own = {data.items[item] for item in data.full.indices[slice(*data.full.indptr[row : row + 2])]}
        assert own.isdisjoint(item for item, _ in listed)
    assert (
        student.recommend(histories=[[data.items[0], data.items[4]]], k=3).counts[0] == 3
    )  # an encoder without validation


def test_other_commands_on_all_pairs(place, tmp_path):
    common = ("--data", place / "all", *FAST, "--dim", 4, "--epochs", 2)
    assert ok("train", *common, "--json", "--out", tmp_path / "j").document["parts"] == {}
    assert "nothing was measured" in ok("train", *common, "--seeds", "0..1", "--out", tmp_path / "s").out
    assert "nothing was measured" in ok("compress", place / "final-teacher", "--bits", 2, "--out", tmp_path / "c").out
    distilled = ok(
        "distill",
        "--data",
        place / "all",
        "--teacher",
        place / "final-teacher",
        "--budget",
        "1/3",
        "--out",
        tmp_path / "b",
    )
    assert "nothing was measured" in distilled.out
    ok("recommend", tmp_path / "b", "--k", 3, "--out", tmp_path / "lists.csv")
    assert "no validation part" in fails(2, "train", *common, "--patience", 3, "--out", tmp_path / "x")
    assert "stored candidates" in fails(3, "train", *common, "--protocol", "loo-499", "--out", tmp_path / "x")


def test_teachers_take_the_places_of_the_runs_own(place, tmp_path):
    """Also of the models that a run trains first; a chain's assistants are trained as long as they were."""
    chained = values(place / "d", 6, distill=[{"method": "takd", "teacher": str(place / "teacher"), "chain": [6]}])
    execute(resolve(chained), tmp_path / "run")
    found = refitted(tmp_path / "run", place / "all", [str(place / "final-teacher")])
    (part,) = found.teachers.values()
    (name,) = found.teachers
    best = Run.open(tmp_path / "run/parts" / name).status()["best_epoch"]
    assert part.distill[0].teacher == (str(place / "final-teacher"),)
    assert (part.train.epochs, part.train.keep, part.model["dim"]) == (best + 1, "last", 6)
    assert found.distill[0].teacher == (name,)
    outcome = execute(found, tmp_path / "final")
    assert outcome.reports == {}
    assert Run.open(tmp_path / "final/parts" / name).status()["epochs"] == best + 1
    with pytest.raises(ConfigError, match="got 2 teachers"):
        refitted(tmp_path / "run", place / "all", ["a", "b"])


def test_the_encoder_that_validation_chose_is_kept(place, tmp_path, monkeypatch):
    config = resolve(values(place / "d", model={"name": "bpr", "dim": 4, "users": "encoded"}))
    for regs, name, kind in (((0.3,), "ridge-0.3", "ridge"), ((), "trained", "sum")):
        with monkeypatch.context() as patch:
            patch.setattr("kdrs.runs.encoded.RIDGE_REGS", regs)
            if regs:  # whatever the toy prefers
                patch.setattr(executing, "best_encoder", lambda kept, measure: executing.as_named(kept, "ridge-0.3"))
            execute(config, tmp_path / name)
        found = refitted(tmp_path / name, place / "all")
        assert found.model["encoder"] == name
        execute(found, tmp_path / f"{name}-final")
        model = load_run(tmp_path / f"{name}-final").model
        assert isinstance(model, StoredModel)
        assert model.user_encoder.kind == kind
        if isinstance(model.user_encoder, RidgeEncoder):
            assert (model.user_encoder.alpha, model.user_encoder.reg) == (0.1, 0.3)


def test_on_data_with_a_validation_part_it_is_measured_and_nothing_selects(place, tmp_path):
    found = refitted(place / "teacher", place / "d")
    assert found.train.keep == "last"
    assert found.train.patience == found.train.epochs
    outcome = execute(found, tmp_path / "again")
    assert outcome.fit.epochs == Run.open(place / "teacher").status()["best_epoch"] + 1
    assert "test" in outcome.reports


def test_an_interrupted_refit_goes_on(place, tmp_path):
    whole = ("refit", place / "student", "--data", place / "all", "--teacher", place / "final-teacher")
    ok(*whole, "--out", tmp_path / "one")
    stop = iter((False, True, True, True))
    config = refitted(place / "student", place / "all", [str(place / "final-teacher")])
    execute(config, tmp_path / "two", should_stop=lambda: next(stop))
    assert Run.open(tmp_path / "two").status()["status"] == "interrupted"
    ok(*whole, "--out", tmp_path / "two", "--resume")
    assert final_bytes(tmp_path / "one") == final_bytes(tmp_path / "two")


def test_runs_that_cannot_be_refitted(place, tmp_path):
    assert "no data set is given" in fails(2, "refit", place / "teacher", "--out", tmp_path / "x")
    ok("compress", place / "teacher", "--bits", 2, "--out", tmp_path / "c")
    assert "kdrs compress TEACHER" in fails(
        2, "refit", tmp_path / "c", "--data", place / "all", "--out", tmp_path / "x"
    )
    stop = iter((True, True))
    execute(resolve(values(place / "d", 9)), tmp_path / "half", should_stop=lambda: next(stop))
    with pytest.raises(ArtefactError, match="not finished"):
        refitted(tmp_path / "half", place / "all")
    fails(4, "refit", tmp_path / "half", "--data", place / "all", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    plan = command("refit", place / "teacher", "--data", place / "all", "--dry-run", "--json")
    assert json.loads(plan.out)["training_pairs"] == kdrs.Dataset.load(place / "all").train.n_pairs


def test_pairs_of_two_parts_count_once():
    """A data set with leaked pairs, ordered."""
    rows = [("a", "x", 1), ("a", "y", 2), ("b", "y", 1), ("b", "x", 2)]
    train = Table.from_pairs(*zip(*((u, i) for u, i, _ in rows), strict=True), times=[t for *_, t in rows])
    data = prepare(train, Recipe(split="last-n", n_valid=0, n_test=1))
    leaky = kdrs.Dataset.from_interactions(
        data.full,
        test=data.test,
        users=data.users,
        items=data.items,
        order=[0, 1, 1, 0],
        split=data.split,
        allow_leak=True,
    )
    whole = leaky.whole()
    assert whole.train.n_pairs == 4
    assert whole.order.tolist() == [0, 1, 1, 0]


def test_far_fewer_pairs_are_told(place, tmp_path):
    data = kdrs.Dataset.load(place / "d")
    data.without_users(np.arange(30)).whole().save(tmp_path / "latest")
    with pytest.warns(UserWarning, match="all rows up to now"):
        refitted(place / "teacher", tmp_path / "latest")


def test_all_epochs_without_an_end_are_told(place, tmp_path):
    common = ("train", "--data", place / "all", *FAST, "--dim", 4, "--epochs", 2)
    assert "all 2 epochs are trained" in ok(*common, "--out", tmp_path / "a").err
    assert "epochs are trained" not in ok(*common, "--set", "train.keep=last", "--out", tmp_path / "b").err


def test_the_encoder_of_new_users_is_that_of_the_run(place, tmp_path):
    """Beside a table: what validation chooses for the run, fitted to the refit's vectors."""
    for name, folder in (("teacher", place / "teacher"), ("final", place / "final-teacher")):
        ok("export", folder, "--seen", "--out", tmp_path / f"{name}.safetensors")
    before, after = (kdrs.Student.load(tmp_path / f"{name}.safetensors") for name in ("teacher", "final"))
    assert after.card["new_users"] == {"encoder": before.card["new_users"]["encoder"]}
    assert after.tables.encoder.kind == before.tables.encoder.kind
    one, other = (student.tables.encoder.parts() for student in (before, after))
    for key in {"alpha", "reg", "power"} & one.keys():
        assert one[key] == other[key]


def test_where_the_run_is_gone_nothing_chose_the_encoder(place, tmp_path):
    execute(resolve(values(place / "d", 1)), tmp_path / "gone")
    ok("refit", tmp_path / "gone", "--data", place / "all", "--out", tmp_path / "f", "-q")
    shutil.rmtree(tmp_path / "gone")
    assert "nothing chose" in ok("export", tmp_path / "f", "--seen", "--out", tmp_path / "x.safetensors").err


def test_a_start_is_replaced_like_a_teacher(place, tmp_path):
    execute(
        resolve(values(place / "d", 3, model={"name": "bpr", "dim": 8}, start=str(place / "teacher"))), tmp_path / "s"
    )
    with pytest.warns(UserWarning, match="start .* was trained on other pairs"):
        assert refitted(tmp_path / "s", place / "all").start == str(place / "teacher")
    ok("refit", tmp_path / "s", "--data", place / "all", "--start", place / "final-teacher", "--out", tmp_path / "f")
    assert Run.open(tmp_path / "f").config["start"] == str(place / "final-teacher")
    assert "leave --start out" in fails(
        2, "refit", place / "student", "--data", place / "all", "--start", place / "teacher", "--out", tmp_path / "x"
    )


def test_what_is_made_of_a_refits_file_is_none(place, tmp_path):
    common = ("--data", place / "d", "--set", "train.epochs=1", "--out", tmp_path / "again")
    ok("train", place / "final-teacher/config.toml", *common)
    assert "refit" not in Run.open(tmp_path / "again").config
    assert "as many epochs" not in (tmp_path / "again/README.md").read_text()


def test_an_encoder_that_was_stated_is_not_called_chosen(place, tmp_path):
    stated = ("--set", "model.users=encoded", "--set", "model.encoder=ridge-1")
    said = ok("train", "--data", place / "all", *FAST, "--dim", 4, "--epochs", 1, *stated, "--out", tmp_path / "r")
    assert "ridge regression on their items\n" in said.out
    assert "better on validation" not in (tmp_path / "r/README.md").read_text()


@pytest.mark.parametrize(("model", "served"), [("bpr", True), ("neumf", False)])
def test_what_comes_next_works(place, tmp_path, model, served):
    """Scores that are no products cannot be exported, and export is not proposed."""
    run = ("--model", model, "--dim", 4, "--batch-size", 64, "--epochs", 1, "--device", "cpu")
    said = ok("train", "--data", place / "all", *run, "--out", tmp_path / "r").out
    assert ("next: kdrs export" in said) == served
    done = command("export", tmp_path / "r", "--seen", "--out", tmp_path / "s.safetensors")
    assert (done.code == 0) == served
