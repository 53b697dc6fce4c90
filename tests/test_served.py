"""An exported student measured: the figures of its run, joined by id with whatever data set holds its users and items."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdrs
from commands import FAST, fails, ok
from conftest import toy_dataset
from kdrs.comparison.result import Comparison
from kdrs.data import Dataset, Ids, Interactions
from kdrs.errors import ArtefactError, MissingKnowledge
from kdrs.runs.compared import compare_runs
from kdrs.runs.served import SERVED_EARLIER, ServedStudent

FEW = ("--batch-size", "32", "--lr", "0.01", "--epochs", "2", "--device", "cpu", "--threads", "1", "--quiet")
GRAPHS = ("lightgcn", "ngcf", "sgl", "lightgcn-ssm")
EXACT = ("teacher", "taught", "sums", "codes", "elsa", *GRAPHS)
NETWORKS = ("sasrec", "multvae")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = toy_dataset(60, 50, candidates=None)
        replace(data, split={"kind": "ordered"}).save("d")
        run = ("--data", "d", *FAST, "--epochs", "4", "--threads", "1", "--quiet")
        ok("train", *run, "--dim", "8", "--out", "teacher")
        ok("distill", *run, "--dim", "4", "--teacher", "teacher", "--method", "cd", "--out", "taught")
        ok("compress", "teacher", "--bits", "4", "--users", "sum", "--out", "sums")
        ok("compress", "teacher", "--bits", "2", "--users", "table", "--out", "codes")
        for model in ("elsa", *GRAPHS, "sasrec", "multvae", "caser"):
            ok("train", "--data", "d", "--model", model, "--dim", "8", *FEW, "--out", model)
        for name in (*EXACT, *NETWORKS, "caser"):
            ok("export", name, "--out", f"{name}.safetensors")
        ok("export", "sums", "--seen", "--seen-parts", "all", "--out", "newest.safetensors")
    return folder


@pytest.fixture
def here(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    return place


def measured(*names: str, **options) -> Comparison:
    return compare_runs(names, time_scoring=False, **options)


@pytest.mark.parametrize("name", [*EXACT, *NETWORKS])
def test_a_file_has_the_figures_and_the_bytes_of_its_run(here, name):
    found = measured(name, f"{name}.safetensors")
    run, student = found.lines
    for metric in found.metrics:
        if name in EXACT:
            assert student.quality[metric] == run.quality[metric]
        else:  # a network in NumPy and in torch
            assert student.quality[metric].mean == pytest.approx(run.quality[metric].mean, rel=0.02)
    if name in EXACT:  # a network's run keeps what its answers do not need
        assert (student.n_bytes, student.bytes_per_row) == (run.n_bytes, run.bytes_per_row)
        assert student.n_parameters == run.n_parameters
    assert not [warning for warning in found.warnings if ".safetensors" in warning]


def test_encoded_users_are_made_of_training_items_whatever_the_file_keeps(here):
    sums, newest = measured("sums", "newest.safetensors").lines
    assert newest.quality == sums.quality


def test_roles(here):
    lines = measured("teacher", "taught.safetensors", "elsa.safetensors", "sums.safetensors").lines
    assert [line.role for line in lines] == ["teacher", "student", "alone", "student"]  # of which the cards tell
    assert [line.role for line in measured("teacher", "elsa.safetensors").lines] == ["alone", "alone"]
    lines = measured("teacher.safetensors", "taught", teacher="teacher.safetensors").lines
    assert [line.role for line in lines] == ["teacher", "student"]


def test_by_command(here, tmp_path):
    error = fails(2, "eval", "taught.safetensors")
    assert "give the data set with --data" in error
    own = ok("eval", "taught.safetensors", "--data", "d", "--json").document
    run = ok("eval", "taught", "--json").document
    assert own["runs"][0]["metrics"] == run["runs"][0]["metrics"]
    ok("eval", "taught", "--out", tmp_path / "run.json")
    ok("eval", "taught.safetensors", "--data", "d", "--out", tmp_path / "file.json")
    both = [kdrs.Report.load(tmp_path / f"{name}.json") for name in ("run", "file")]
    for metric, values in both[0].values.items():
        assert np.array_equal(values, both[1].values[metric], equal_nan=True)
    ok("report", "teacher", "taught.safetensors", "sasrec.safetensors", "--out", tmp_path / "page")
    assert "taught.safetensors" in (tmp_path / "page" / "report.html").read_text("utf-8")


def permuted(data: Dataset, users: np.ndarray, items: np.ndarray) -> Dataset:
    """The same data with row n of users where row users[n] was, and items likewise."""
    user_at, item_at = np.argsort(users), np.argsort(items)

    def moved(pairs: Interactions) -> Interactions:
        return Interactions.from_pairs(user_at[pairs.row_of_pair], item_at[pairs.indices], *pairs.shape)

    return Dataset.from_interactions(
        moved(data.train),
        moved(data.valid),
        moved(data.test),
        users=Ids([data.users[int(row)] for row in users], "user"),
        items=Ids([data.items[int(row)] for row in items], "item"),
    )


@given(seed=st.integers(0, 2**31), name=st.sampled_from(["taught", "sums", "codes"]))
@settings(max_examples=20)
def test_rows_are_joined_by_id(place, seed, name):
    """Whatever order the data set has: each user's values are the same."""
    data, rng = Dataset.load(place / "d"), np.random.default_rng(seed)
    users = rng.permutation(data.n_users)
    other = permuted(data, users, rng.permutation(data.n_items))
    student = kdrs.Student.load(place / f"{name}.safetensors")
    values = []
    for one in (data, other):  # of few bits many scores are equal
        evaluator = kdrs.Evaluator.of(one, ties="expected")
        values.append(evaluator(ServedStudent(student, one, name))["test"].values["ndcg@10"])
    assert np.allclose(values[0][users], values[1])


def test_users_without_ids_are_those_of_the_data_set(here):
    """A file of encoded users that was exported without what they have seen knows no user."""
    student = kdrs.Student.load("sums.safetensors")
    assert student.users is None
    run, own = measured("sums", "sums.safetensors").lines
    assert run.quality == own.quality


def test_a_file_that_lacks_some_of_the_data(here, tmp_path):
    toy_dataset(70, 50, candidates=None).save(tmp_path / "users")
    toy_dataset(60, 60, candidates=None).save(tmp_path / "items")
    error = fails(4, "eval", "taught.safetensors", "--data", tmp_path / "users")
    assert "taught.safetensors lacks 10 of the data set's 70 users, first 60, 61, 62" in error
    assert "which is called toy: --data" in error
    error = fails(4, "eval", "sums.safetensors", "--data", tmp_path / "items")
    assert "lacks 10 of the data set's 60 items, first 50, 51, 52" in error
    data = Dataset.load("d")
    strange = replace(data, users=Ids([f"u{user}" for user in data.users], "user"))
    with pytest.raises(ArtefactError, match="none of its 60 users is in the data set"):
        measured("taught.safetensors", dataset=strange)


def test_another_split_is_told(here, tmp_path):
    """What is held out there may have been trained on: the figures are shown, and a warning."""
    data = Dataset.load("d")
    moved = replace(data, valid=data.test, test=data.valid)
    (warning,) = [one for one in measured("taught.safetensors", dataset=moved).warnings if "another data set" in one]
    assert "was made of another data set or split (toy)" in warning
    shutil.copytree("d", tmp_path / "same")
    found = measured("taught.safetensors", dataset=Dataset.load(tmp_path / "same"))
    assert not [one for one in found.warnings if "another data set" in one]


def test_a_file_of_a_run_on_all_pairs_is_told(here, tmp_path):
    """It knows every answer: its figures are none."""
    Dataset.load("d").whole().save(tmp_path / "all")
    ok("refit", "teacher", "--data", tmp_path / "all", "--out", tmp_path / "final")
    ok("export", tmp_path / "final", "--seen", "--out", tmp_path / "final.safetensors")
    told = ok("eval", tmp_path / "final.safetensors", "--data", "d", "--json").err
    assert "final.safetensors: it was made of another data set or split" in told


def test_an_order_that_is_not_there(here, tmp_path):
    data = Dataset.load("d")
    unordered = replace(data, order=None, order_by=None)
    with pytest.raises(MissingKnowledge, match="reads items in their order"):
        measured("sasrec.safetensors", dataset=unordered)
    measured("multvae.safetensors", dataset=unordered)


def test_sequences_are_asked_as_their_runs_are(here):
    """SASRec after the validation item too; Caser, of whom a table is kept, before it: that is told."""
    data = Dataset.load("d")
    assert data.test_follows_valid
    scorer = ServedStudent.load("sasrec.safetensors", data)
    reports = kdrs.Evaluator.of(data)(scorer)
    assert (reports["valid"].history, reports["test"].history) == ("train", "train+valid")
    earlier, later = scorer.factors().queries, scorer.after(data.valid).factors().queries
    assert not np.array_equal(np.asarray(earlier), np.asarray(later))
    doubts = ServedStudent.load("caser.safetensors", data).doubts()
    network = kdrs.Student.load("caser.safetensors").tables.encoder.ordered
    assert (SERVED_EARLIER in doubts) == network


def test_a_damaged_file(here, tmp_path):
    damaged = bytearray(Path("taught.safetensors").read_bytes())
    damaged[-9] ^= 1
    (tmp_path / "s.safetensors").write_bytes(damaged)
    assert "is damaged" in fails(4, "eval", tmp_path / "s.safetensors", "--data", "d")


def test_it_teaches_nobody(here):
    error = fails(4, "distill", "--data", "d", *FAST, "--teacher", "taught.safetensors", "--method", "rrd", "--dry-run")
    assert "kdrs distill --teacher RUN" in error
