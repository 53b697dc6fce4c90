"""What is wrong with losses of one's own models and methods is told in words; weights under two names are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import FAST, fails, imports_undone, ok, write_own
from kdrs.distillers import CD
from kdrs.errors import ConfigError
from kdrs.fitting.fit import fit
from kdrs.fitting.learner import Learner, Term
from kdrs.models import BPR
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from test_train import final_bytes

WRONG = '''
import kdrs
import torch
from torch import nn

from mymethods import ListKL
from mymodels import BiasedMF


class Vector(BiasedMF):
    def loss(self, view, batch):
        return view.scores(batch.positives.unsqueeze(1))


class Number(BiasedMF):
    def loss(self, view, batch):
        return 1.0


class Detached(BiasedMF):
    def loss(self, view, batch):
        return super().loss(view, batch).detach()


class NoView(BiasedMF):
    def forward(self, queries):
        return torch.zeros(queries.rows.shape[0], 3)


class Tied(BiasedMF):
    """Two names of one table."""

    def __init__(self, config, task):
        super().__init__(config, task)
        self.other = self.items


class Rows(ListKL):
    def loss(self, student, batch):
        return student.queries.sum(1)


class Forgotten(ListKL):
    def loss(self, student, batch):
        super().loss(student, batch)


class Constant(ListKL):
    def loss(self, student, batch):
        return super().loss(student, batch).detach() + 1


class Few(ListKL):
    def __init__(self, config, teachers):
        pass


class Unbegun(kdrs.distillers.Distiller):
    def __init__(self, config, teachers, task, student_dim, seed=0):
        self.pool = 3

    def loss(self, student, batch):
        return student.queries.sum()
'''
SHORT = (*FAST[2:], "--epochs", "2", "--threads", "1", "-q")


@pytest.fixture
def here(toy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    write_own(tmp_path)
    (tmp_path / "wrong.py").write_text(WRONG)
    monkeypatch.chdir(tmp_path)
    with imports_undone():
        yield toy_path


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Vector", "the loss (base) is a tensor of shape [64, 1]\n  try: return a scalar tensor"),
        ("Number", "the loss (base) is a float"),
        ("Detached", "no part of the loss (base) has a gradient"),
        ("NoView", "mymodels.py:"),  # of the file that wrong.py inherits from
    ],
)
def test_models(here: Path, model: str, said: str):
    error = fails(1, "train", "--data", here, "--model", f"wrong:{model}", "--dim", 4, *SHORT, "--out", "r")
    assert said in error
    assert "internal" not in error


@pytest.mark.parametrize(
    ("method", "code", "said"),
    [
        ("Rows", 1, "the loss (Rows) is a tensor of shape [64]"),
        ("Forgotten", 1, "the loss (Forgotten) is a NoneType"),
        ("Few", 2, "method 'wrong:Few': Few.__init__ takes (self, config, teachers): too many positional arguments"),
        ("Unbegun", 2, "Unbegun.__init__ leaves out that of its base class"),
    ],
)
def test_methods(here: Path, method: str, code: int, said: str):
    ok("train", "--data", here, "--model", "bpr", "--dim", 8, *SHORT, "--out", "t")
    taught = ("distill", "--data", here, "--teacher", "t", "--model", "bpr", "--dim", 4, *SHORT)
    error = fails(code, *taught, "--method", f"wrong:{method}", "--out", "r")
    assert said in error
    assert "internal" not in error


def test_a_term_without_gradient_is_warned_of(here: Path):
    ok("train", "--data", here, "--model", "bpr", "--dim", 8, *SHORT, "--out", "t")
    taught = ("distill", "--data", here, "--teacher", "t", "--model", "bpr", "--dim", 4, *SHORT)
    result = ok(*taught, "--method", "wrong:Constant", "--method", "mymethods:ListKL", "--out", "r")
    assert result.err.count("had no gradient in a whole epoch") == 1
    assert "the loss of 'Constant' had no gradient" in result.err


def test_weights_under_two_names_are_stored_resumed_and_served(here: Path):
    own = ("train", "--data", here, "--model", "wrong:Tied", "--dim", 4, *SHORT)
    ok(*own, "--epochs", 4, "--out", "whole")
    ok(*own, "--out", "r")
    ok("resume", "r", "--epochs", 4, "-q")
    assert final_bytes(Path("r")) == final_bytes(Path("whole"))
    ok("train", "--data", here, "--model", "mymodels:BiasedMF", "--dim", 4, *SHORT, "--epochs", 4, "--out", "plain")
    ok("eval", "r", "plain")


def test_what_python_users_may_give_wrongly(toy):
    task = PairTask(toy.train)
    model = BPR(BPR.Config(dim=4), task)
    for teacher, said in (("runs/t", "a teacher is given as a str"), (model, "a teacher is given as a BPR")):
        with pytest.raises(ConfigError, match=said):
            CD(CD.Config(), [teacher], task, 4)  # type: ignore[list-item]
    for options in ({"lr": float("nan")}, {"lr": -1e-3}, {"weight_decay": -1.0}, {"weight_decay": float("inf")}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))} is .*"):
            Learner(model, task, **options)
    term = Term("cd", float("nan"), CD(CD.Config(), [ModelTeacher(model, task)], task, 4))
    with pytest.raises(ConfigError, match="the weight of cd is nan"):
        Learner(model, task, [term])
    for epochs in (-1, 2.5, True):
        with pytest.raises(ConfigError, match="epochs is"):
            fit(Learner(model, task), task, epochs=epochs)  # type: ignore[arg-type]
