"""The notebooks of examples/notebooks: their code is run from top to bottom on small data, and what it finds is looked at."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import kdrs
from conftest import toy_dataset
from docs_check import ROOT

FOLDER = ROOT / "examples" / "notebooks"


def run(name: str) -> dict[str, Any]:
    """The names that a notebook ends with. The last expression of each cell, which a notebook would show, is worked out too."""
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"<{name}:{number}>", "exec"), names)
        if shown is not None:
            repr(eval(compile(ast.Expression(shown.value), f"<{name}:{number}>", "eval"), names))
    return names


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toy_dataset(400, 80, candidates=None).save("datasets/ml-100k")
    torch.manual_seed(0)


def test_first_student(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("first-student")
    found, data = names["found"], names["data"]
    popular = names["measure"](kdrs.popularity(data.train))["test"].mean("ndcg@10")
    assert min(found.values()) > 2 * popular
    assert names["tiny"].n_bytes < names["tiny"].source_bytes / 10
    assert "transfer ratio" in capsys.readouterr().out


def test_bring_a_teacher() -> None:
    names = run("bring-a-teacher")
    found = names["found"]
    assert found["teacher"] > 2 * found["popularity"]
    assert min(found["alone"], found["student"]) > 2 * found["popularity"]
    # the shuffled file is the same teacher
    best = kdrs.ranking.topk(names["user_vectors"], names["item_vectors"], 5).items
    users, items = (names["teacher"].factors()[side].numpy() for side in (0, 1))
    assert (kdrs.ranking.topk(users, items, 5).items == best).mean() > 0.99  # float32 may exchange two of equal score


def test_serve(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("serve")
    student, data = names["student"], names["data"]
    printed = capsys.readouterr().out
    assert len(names["best"]) == 5
    assert not set(names["likes"]) & {item for item, _ in names["best"]}
    assert printed.count("[") == 3
    teacher = kdrs.Evaluator.of(data)(names["model"].factors())["test"].mean("ndcg@10")
    popular = kdrs.Evaluator.of(data)(kdrs.popularity(data.train))["test"].mean("ndcg@10")
    found = student.recommend(list(data.users), 10)
    truth = data.test
    hits = sum(data.items[int(truth.indices[row])] in set(items) for row, items in enumerate(found.items.tolist()))
    assert hits / len(data.users) > popular
    assert teacher > popular
