"""The card has what was printed of a teacher that seems to know held-out pairs: of runs, compact ones, exported files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse.linalg

import kdrs
from commands import FAST, ok
from commands import kdrs as command
from conftest import toy_dataset
from kdrs.data import Dataset
from kdrs.runs.card import NAME, doubts_in
from kdrs.runs.directory import Run
from kdrs.runs.opened import load_run

SAYS = "it seems to have been trained on the test part"


def teacher(path: Path, data: Dataset, *, leaks: bool) -> None:
    """Factors that a least-squares fit of train, and of test if it leaks, has."""
    known = data.train.union(data.test) if leaks else data.train
    start = np.random.default_rng(0).standard_normal(min(known.shape))
    u, s, v = scipy.sparse.linalg.svds(known.to_csr().astype(float), 40, v0=start)
    users, items = (u * s).astype(np.float32), v.T.astype(np.float32).copy()
    kdrs.save_teacher(path, users=users, items=items, user_ids=list(data.users), item_ids=list(data.items))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doubts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = toy_dataset(300, 160, candidates=None)
        data.save("d")
        run = ("--data", "d", *FAST, "--epochs", "2", "--dim", "8", "--threads", "1", "--quiet")
        for name, leaks in (("honest", False), ("leaky", True)):
            teacher(folder / f"{name}.safetensors", data, leaks=leaks)
            by = ("--teacher", f"{name}.safetensors", "--method", "cd")
            printed = ok("distill", *run, *by, "--out", f"by-{name}").err
            assert (SAYS in printed) == leaks
            ok(
                "compress",
                f"{name}.safetensors",
                "--data",
                "d",
                "--bits",
                "4",
                "--users",
                "table",
                "--out",
                f"small-{name}",
            )
            ok("export", f"by-{name}", "--out", f"by-{name}.student")
    return folder


@pytest.mark.parametrize("kind", ["by", "small"])
def test_the_card_of_a_run(place, kind):
    text = (place / f"{kind}-leaky" / NAME).read_text("utf-8")
    (told,) = [line for line in text.splitlines() if line.startswith("**Warning.**")]
    assert told.startswith(f"**Warning.** Teacher leaky.safetensors: {SAYS}")
    assert "train it on the training part alone" in told
    assert text.index("## Quality") < text.index(told) < text.index("## Use")
    assert "Warning" not in (place / f"{kind}-honest" / NAME).read_text("utf-8")
    assert "doubts" not in json.loads((place / f"{kind}-honest" / "report.json").read_text())


@pytest.mark.parametrize("way", ["taught", "small", "started"])
def test_who_learns_from_such_a_run_has_its_warning(place, monkeypatch, way):
    """A teacher's teacher, what a compressed run was, and where a run started."""
    monkeypatch.chdir(place)
    run = ("--data", "d", *FAST, "--epochs", "1", "--threads", "1", "--quiet")
    by = {
        "taught": ("distill", *run, "--dim", "8", "--teacher", "by-{}", "--method", "cd"),
        "small": ("compress", "by-{}", "--bits", "4", "--users", "table"),
        "started": ("train", *run, "--dim", "8", "--start", "by-{}"),
    }[way]
    for name in ("leaky", "honest"):
        printed = ok(*(word.format(name) for word in by), "--out", f"{way}-of-{name}").err
        assert (SAYS in printed) == (name == "leaky")
    text = f"**Warning.** by-leaky: what it learnt goes back to leaky.safetensors: {SAYS}"
    assert text in (place / f"{way}-of-leaky" / NAME).read_text("utf-8")
    assert "Warning" not in (place / f"{way}-of-honest" / NAME).read_text("utf-8")
    found = kdrs.runs.compared.compare_runs([f"{way}-of-leaky"], dataset=Dataset.load("d"), time_scoring=False)
    assert any(SAYS in warning for warning in found.warnings)


def test_a_chain_has_the_warning_once(place, monkeypatch):
    """Each assistant learns from all before it: as many ways lead back as there are sets of them."""
    monkeypatch.chdir(place)
    run = ("--data", "d", *FAST, "--epochs", "1", "--threads", "1", "--quiet", "--dim", "2", "--model", "bpr")
    chain = ("--method", "dgkd", "--set", "distill.0.chain=4", "--set", "distill.0.hint=de")
    printed = ok("distill", *run, "--teacher", "by-leaky", *chain, "--out", "chained").err
    assert printed.count(SAYS) == 5  # of four assistants and the student
    assert (place / "chained" / NAME).read_text("utf-8").count(SAYS) == 1


def test_the_card_that_is_made_anew(place):
    """Of what the run keeps: its teacher need not be there."""
    assert f"**Warning.** Teacher leaky.safetensors: {SAYS}" in kdrs.runs.card.card_of(load_run(place / "by-leaky"))


@pytest.mark.parametrize("wrong", ['"x"', "[1]", '{"leaky": 3}', '{"leaky": [3, null]}'])
def test_what_is_no_list_of_sentences_says_nothing(place, tmp_path, wrong):
    run = Path(shutil.copytree(place / "by-leaky", tmp_path / "run"))
    report = json.loads((run / "report.json").read_text())
    report["doubts"] = json.loads(wrong)
    (run / "report.json").write_text(json.dumps(report))
    assert doubts_in(Run.open(run)).get("leaky", []) == []
    assert "Warning" not in kdrs.runs.card.card_of(load_run(run, Dataset.load(place / "d")))


@pytest.mark.parametrize("wrong", ["[]", "null", '"x"', "{", ""])
def test_a_report_that_is_none_says_nothing(place, tmp_path, wrong):
    run = Path(shutil.copytree(place / "by-leaky", tmp_path / "run"))
    (run / "report.json").write_text(wrong)
    assert doubts_in(Run.open(run)) == {}


def test_the_card_of_a_file_and_its_comparison(place, monkeypatch):
    monkeypatch.chdir(place)
    leaky, honest = (kdrs.Student.load(f"by-{name}.student") for name in ("leaky", "honest"))
    (told,) = leaky.card["warnings"]
    assert told.startswith(f"Teacher leaky.safetensors: {SAYS}")
    assert f"**Warning.** {told}."[:60] in leaky.readme
    assert "warnings" not in honest.card
    found = kdrs.runs.compared.compare_runs(["by-leaky.student"], dataset=Dataset.load("d"), time_scoring=False)
    assert any(told in warning for warning in found.warnings)


def test_a_resumed_run_has_the_same_card(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    own = ("distill", "by-leaky/config.toml", "--quiet")
    monkeypatch.setattr("kdrs.cli.stopping.Stopper.asked", lambda _: True)
    assert command(*own, "--out", tmp_path / "run").code == 130
    monkeypatch.undo()
    monkeypatch.chdir(place)
    ok(*own, "--out", tmp_path / "run", "--resume")
    assert (tmp_path / "run" / NAME).read_text() == (place / "by-leaky" / NAME).read_text()
