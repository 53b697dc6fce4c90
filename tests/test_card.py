"""The card of a run: README.md says what the run is, in words that do not change, and a run never fails for it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from commands import FAST, listing, ok, write_clicks
from kdrs.data import Dataset
from kdrs.data.known import KNOWN, known_by_files
from kdrs.evaluation.transfer import transfer_ratio
from kdrs.runs import card
from kdrs.runs.card import NAME, card_of
from kdrs.runs.compared import compare_runs
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from kdrs.runs.opened import load_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    ok("data", "prepare", write_clicks(folder / "clicks.csv"), "--out", folder / "d", "--candidates", 20)
    common = ("--data", folder / "d", *FAST, "--epochs", 4)
    ok("train", *common, "--dim", 8, "--out", folder / "t")
    ok("distill", *common, "--teacher", folder / "t", "--method", "rrd", "--dim", 4, "--out", folder / "s")
    ok("compress", folder / "t", "--bits", 2, "--out", folder / "c")
    return folder


def text_of(run: Path) -> str:
    """The card without the line that vouches for it."""
    text = (run / NAME).read_text("utf-8")
    assert text.count("<!--") == 1
    return text.partition("\n<!--")[0]


def settings(place: Path, **train: object) -> dict:
    own = {"epochs": 5, "batch_size": 64, "lr": 1e-2, "checkpoint_seconds": 0, **train}
    return {"data": {"path": str(place / "d")}, "model": {"name": "bpr", "dim": 4}, "train": own, "device": "cpu"}


# --- what it says ---------------------------------------------------------------------------------------------------


def test_a_card_says_what_the_run_is(place):
    text = text_of(place / "s")
    assert text.startswith("# bpr, dim 4: a student of t by rrd\n")
    data = Dataset.load(place / "d")
    numbers = 4 * (data.n_users + data.n_items)
    assert f"| bytes | {4 * numbers:,} of all its tables, ids left out |" in text
    assert f"| teacher | t (bpr, dim 8); {8 * numbers:,} bytes, 2 times this |" in text
    assert f"| counts | {data.n_users:,} users, {data.n_items:,} items |" in text
    assert f"| fingerprint | {data.fingerprint} |" in text
    assert "| licence | see the source of the data |" in text
    assert "ransfer ratio" not in text
    report = load_run(place / "s").report()["test"]
    found = re.findall(r"^\| (\S+@5 sampled\(20\)) \| (\d\.\d{4}) \| (\d\.\d{4}) to (\d\.\d{4}) \|", text, re.M)
    assert [name for name, *_ in found] == ["hit@5 sampled(20)", "ndcg@5 sampled(20)", "mrr@5 sampled(20)"]
    for name, *told in found:
        mean, low, high = map(float, told)
        assert mean == pytest.approx(report.mean(name.partition(" ")[0]), abs=1e-4)
        assert low < mean < high


def test_the_interval_is_that_of_the_mean(place):
    """Against the normal interval of the same values, which a bootstrap over 40 queries is near."""
    values = load_run(place / "s").report()["test"].values["ndcg@5"]
    (low,), (high,) = card._intervals(values[None])
    half = 1.96 * values.std() / values.size**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.25 * half)
    (line,) = compare_runs([place / "s"], metrics=["ndcg@5"], time_scoring=False).lines
    assert line.intervals["ndcg@5"] == pytest.approx((low, high), abs=1e-12)  # eval and report tell the same


def test_a_compressed_run_has_a_card_too(place):
    text = text_of(place / "c")
    assert re.match(r"# bpr, dim 8, bits 2(, users without a table)?: t, compressed\n", text)
    assert "| method | kdrs compress, users: " in text
    assert "| training |" not in text


@pytest.mark.parametrize("name", ["t", "s", "c"])
def test_the_card_of_an_opened_run_is_the_one_beside_it(place, name):
    assert card_of(load_run(place / name)) == text_of(place / name)


def test_a_known_comparison_adds_its_ratio(place):
    ratio = transfer_ratio([0.4, 0.6] * 20, [0.1, 0.3] * 20, [0.7, 0.9] * 20)
    text = card_of(load_run(place / "s"), transfer={"ndcg@5": ratio, "hit@5": replace(ratio, ratio=None)})
    assert "Transfer ratio by ndcg@5 sampled(20): 0.50 (95% interval 0.50 to 0.50)" in text
    assert text.count("Transfer ratio") == 1


def test_known_data_have_their_source_and_terms(place):
    file = KNOWN["ml-100k"].files["all"]
    assert known_by_files([{"file": "renamed.csv", "sha256": file.sha256}]) is KNOWN["ml-100k"]
    assert known_by_files([]) is None
    assert known_by_files([{"sha256": file.sha256}, {"sha256": "0" * 64}]) is None
    dataset = replace(Dataset.load(place / "d"), sources=({"file": "u.data", "sha256": file.sha256},))
    text = card_of(load_run(place / "s", dataset))
    assert "| licence | research use; " in text
    assert "grouplens.org" in text


def test_names_from_outside_are_text(place, tmp_path):
    ok("data", "prepare", place / "clicks.csv", "--name", "<script>alert(1)</script>|x\n# y", "--out", tmp_path / "d")
    ok("train", "--data", tmp_path / "d", *FAST, "--dim", 2, "--epochs", 1, "--out", tmp_path / "r")
    text = text_of(tmp_path / "r")
    assert "| name | &lt;script&gt;alert(1)&lt;/script&gt;\\|x\\\\n# y |" in text
    assert "<script" not in text


def runs_as_it_says(run: Path) -> int:
    """Carries out a card's blocks in the run's folder; how many of Python it has."""
    text = text_of(run)
    commands = iter(re.findall(r"```sh\nkdrs (.*?)\n```", text))
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    for block in blocks:
        if "Student" in block:
            ok(*next(commands).split())
        names: dict = {}
        exec(block, names)
        found = names["lists"][0] if "lists" in names else names["found"].items[0]
        assert len(found) == 10
    return len(blocks)


@pytest.mark.parametrize("name", ["s", "c"])
def test_what_a_card_says_runs(place, tmp_path, monkeypatch, name):
    run = tmp_path / name
    shutil.copytree(place / name, run)
    monkeypatch.chdir(run)
    assert runs_as_it_says(run) == 2


@pytest.mark.parametrize(("model", "blocks"), [("neumf", 1), ("lightgcn", 2), ("sasrec", 2), ("multvae", 2)])
def test_it_says_of_each_model_what_can_be_done(place, tmp_path, monkeypatch, model, blocks):
    """Scores that are no products of vectors are in no student file."""
    short = ("--batch-size", 64, "--epochs", 1, "--device", "cpu")
    ok("train", "--data", place / "d", "--model", model, "--dim", 4, *short, "--out", tmp_path / "r")
    monkeypatch.chdir(tmp_path / "r")
    assert runs_as_it_says(tmp_path / "r") == blocks


# --- what it must not do --------------------------------------------------------------------------------------------


def test_a_resumed_run_has_the_same_card(place, tmp_path):
    config = resolve(settings(place))
    execute(config, tmp_path / "whole")
    seen: list[int] = []
    execute(
        config, tmp_path / "cut", on_epoch=lambda row: seen.append(row["epoch"]), should_stop=lambda: len(seen) == 2
    )
    assert not (tmp_path / "cut" / NAME).exists()
    execute(config, tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / NAME).read_bytes() == (tmp_path / "whole" / NAME).read_bytes()
    execute(resolve(settings(place, epochs=7)), tmp_path / "cut", resume=True)
    assert "| training | 7 epochs" in text_of(tmp_path / "cut")


@pytest.mark.parametrize("how", ["missing", "edited"])
def test_a_missing_or_edited_card_is_no_damage(place, tmp_path, how):
    run = tmp_path / "s"
    shutil.copytree(place / "s", run)
    whole = (run / NAME).read_bytes()
    if how == "missing":
        (run / NAME).unlink()
    else:
        (run / NAME).write_bytes(whole.replace(b"# bpr", b"# mine", 1))
    before = listing(run)
    assert ok("eval", run, place / "t").err == ok("eval", place / "s", place / "t").err
    assert listing(run) == before
    result = ok("resume", run, "--threads", 1)
    if how == "missing":
        assert (run / NAME).read_bytes() == whole
    else:
        assert "README.md was edited and is left as it is" in result.err
        assert (run / NAME).read_bytes() == before[NAME]


def test_a_card_never_fails_a_run(place, tmp_path, monkeypatch):
    def broken(*_: object) -> str:
        raise ZeroDivisionError("of the card")

    monkeypatch.setattr(card, "_text", broken)
    result = ok("train", "--data", place / "d", *FAST, "--dim", 2, "--epochs", 1, "--out", tmp_path / "r")
    assert "README.md was not written: ZeroDivisionError: of the card" in result.err
    assert not (tmp_path / "r" / NAME).exists()
    assert load_run(tmp_path / "r").run.status()["status"] == "finished"


def test_something_else_in_its_place_stays(place, tmp_path):
    config = resolve(settings(place, epochs=2))
    execute(config, tmp_path / "r")
    (tmp_path / "r" / NAME).unlink()
    (tmp_path / "r" / NAME).mkdir()
    with pytest.warns(UserWarning, match=r"README\.md was edited"):
        execute(resolve(settings(place, epochs=3)), tmp_path / "r", resume=True)
    assert (tmp_path / "r" / NAME).is_dir()
    assert load_run(tmp_path / "r").run.status()["epochs"] == 3


def test_what_a_killed_writer_left_is_swept(place, tmp_path):
    execute(resolve(settings(place, epochs=2)), tmp_path / "r")
    left = tmp_path / "r" / f".{NAME}.0123456789ab.tmp"
    left.write_text("half")
    execute(resolve(settings(place, epochs=3)), tmp_path / "r", resume=True)
    assert not left.exists()
