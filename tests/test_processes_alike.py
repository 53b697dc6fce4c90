"""Several processes that were not started alike, and commands that write one file: one error or one result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import toy_dataset
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from together import Pairs


@pytest.fixture(scope="module")
def run(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    train = {"epochs": 1, "batch_size": 64}
    values = {"data": {"path": str(toy_path)}, "model": {"name": "bpr", "dim": 4}, "device": "cpu", "threads": 1}
    execute(resolve({**values, "train": train}), out)
    return out


def command(data: Path, out: Path, *more: str) -> list[str]:
    options = ["--data", str(data), "--model", "bpr", "--dim", "4", "--epochs", "1", "--device", "cpu"]
    return ["train", *options, "--out", str(out), *more]


OTHERS = {
    "options": (["--set", "train.lr=0.5"], "train.lr is 0.001 in process 0 and 0.5 in process 1", 2),
    "epochs": (["--epochs", "3"], "train.epochs is 1 in process 0 and 3 in process 1", 2),
    "seeds": (["--seeds", "0..1"], "--seeds is None in process 0 and 0..1 in process 1", 2),
    "model": (["--model", "lightgcn"], "model.name is bpr in process 0 and lightgcn in process 1", 2),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_other_options_are_told(together: Pairs, toy_path: Path, tmp_path: Path, name: str):
    more, words, code = OTHERS[name]
    argv = command(toy_path, tmp_path / "out")
    ended = together.run(argvs=[argv, [*argv, *more]])
    assert ended.codes == [code, code], ended.err
    assert "".join(ended.err).count("error:") == 1
    assert words in "".join(ended.err)
    assert not (tmp_path / "out").exists()


def test_fault_73_another_data_set_or_command_is_told(together: Pairs, toy_path: Path, tmp_path: Path, run: Path):
    other = toy_dataset(20, 30, candidates=None).save(tmp_path / "other")
    argv = command(toy_path, tmp_path / "out")
    jobs = {
        "data.fingerprint is": [argv, command(other, tmp_path / "out")],
        "command is train in process 0 and eval in process 1": [argv, ["eval", str(run)]],
        "--part is test in process 0 and valid in process 1": [
            ["eval", str(run), "--out", str(tmp_path / "out"), "--part", part] for part in ("test", "valid")
        ],
    }
    for words, argvs in jobs.items():
        ended = together.run(argvs=argvs)
        assert ended.codes == [2, 2], ended.err
        assert "".join(ended.err).count("error:") == 1
        assert words in "".join(ended.err)
        assert not (tmp_path / "out").exists()


def test_one_that_is_refused_leaves_no_run(together: Pairs, toy_path: Path, tmp_path: Path):
    """Data that one machine lacks."""
    argv = command(toy_path, tmp_path / "out")
    ended = together.run(argvs=[argv, command(tmp_path / "none", tmp_path / "out")])
    assert ended.codes == [3, 3], ended.err
    assert "".join(ended.err).count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_a_comparison_is_printed_once(together: Pairs, run: Path):
    ended = together.run(argv=["eval", str(run)])
    assert ended.codes == [0, 0], ended.err
    assert ended.out[0].count("50 queries") == 1
    assert ended.out[1] == ""


def test_a_report_is_written_once(together: Pairs, run: Path, tmp_path: Path):
    """The bytes of one process, whole and in shares; joined by the first."""
    for folder in ("one", "two"):
        size = 1 if folder == "one" else 2
        whole, parts = tmp_path / folder / "whole.json", tmp_path / folder / "parts.json"
        for argv in (
            ["eval", str(run), "--out", str(whole)],
            ["eval", str(run), "--out", str(parts), "--share", "1/2"],
            ["eval", str(run), "--out", str(parts), "--share", "2/2"],
            ["eval", "--merge", "--out", str(parts), "--json"],
        ):
            ended = together.run(argv=argv, size=size)
            assert set(ended.codes) == {0}, ended.err
            assert "".join(ended.out[1:]) == ""
        assert json.loads(ended.out[0])["parts"] == 2
    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / f).iterdir()} for f in ("one", "two"))
    assert ours == theirs
    assert len(ours) == 8
