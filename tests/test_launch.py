"""What the environment says of other processes: all of it, or nothing is done."""

from __future__ import annotations

import re

import pytest

from commands import FAST, fails, ok
from kdrs.training import processes

TOLD = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"LOCAL_RANK": None}, r"WORLD_SIZE=2 and RANK=1\), with LOCAL_RANK not set"),
        ({"RANK": None, "MASTER_PORT": ""}, r"WORLD_SIZE=2\), with RANK, MASTER_PORT not set"),
        ({"WORLD_SIZE": None}, r"RANK=1\), with WORLD_SIZE not set"),
        ({"RANK": "0", "LOCAL_RANK": None}, "LOCAL_RANK not set"),
        ({"RANK": "2"}, "RANK=2.* do not go together"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two.* do not go together"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x: they do not go together"),
    ],
)
def test_one_of_several_that_was_not_told_all_does_nothing(monkeypatch, toy_path, tmp_path, changed, words):
    for name, value in (TOLD | changed).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    train = ("train", "--data", toy_path, *FAST, "--dim", 2, "--epochs", 1, "--out", out)
    study = tmp_path / "study.toml"
    study.write_text(f"[data]\npath = '{toy_path}'\n[model]\nname = 'bpr'\n[sweep.space]\n'train.lr' = [0.1, 0.2]\n")
    for arguments in (train, (*train, "--seeds", "0,1"), ("eval", "x"), ("sweep", study, "--out", out)):
        assert re.search(words, fails(2, *arguments))
        assert not out.exists()
    ok("models")  # what is one process anyway goes on
    for name in ("WORLD_SIZE", "RANK"):  # the remedy
        monkeypatch.delenv(name, raising=False)
    ok(*train)


@pytest.mark.parametrize(
    "told", [{}, {"RANK": "0"}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"LOCAL_RANK": "3"}]
)
def test_a_process_alone_is_alone(monkeypatch, told):
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with processes.joined() as group:
        assert group is None
