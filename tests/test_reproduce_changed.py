"""Recipes whose runs were changed or damaged since: told at their turn, and never averaged with the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from commands import kdrs, ok
from conftest import toy_dataset
from test_reproduce import FEW, values, written

pytestmark = pytest.mark.filterwarnings("ignore:.*(rising when|an epoch takes|transfer ratio)")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changed")
    toy_dataset(candidates=None).save(folder / "toy")
    return folder


def taught(place: Path, **teacher: Any) -> dict[str, Any]:
    learns = {"distill": [{"method": "cd", "teacher": "tea", "pool": 20, **FEW}], "seeds": [0, 1]}
    return values(place, runs={"tea": teacher, "stu": learns}, studies={})


def test_students_of_a_teacher_that_was_changed_are_not_averaged_with_others(place: Path, tmp_path: Path) -> None:
    """Here as in a copied folder; and the remedy works."""
    out, copied = tmp_path / "out", tmp_path / "copied"
    ok("reproduce", written(tmp_path / "r.toml", taught(place)), "--out", out, "--quiet")
    shutil.rmtree(out / "runs/stu/seed-1")
    shutil.copytree(out, copied)
    longer = written(tmp_path / "longer.toml", taught(place, train={"epochs": 12}))
    for folder in (out, copied):
        result = kdrs("reproduce", longer, "--out", folder)
        assert result.code == 1
        assert "stu, seed 0: failed: " in result.err
        assert "is not what" in result.err
        assert f"take {folder}/runs/stu/seed-0 away" in result.err
        assert "kdrs resume" not in result.err
        assert "| stu | 1 failed, 1 finished | 1 of 2 |" in result.out
        shutil.rmtree(folder / "runs/stu/seed-0")
        assert "| stu | finished | 2 |" in ok("reproduce", longer, "--out", folder, "--quiet").out


def test_a_damaged_run_leaves_the_others_of_a_recipe(place: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", written(tmp_path / "r.toml", taught(place))
    ok("reproduce", file, "--out", out, "--quiet")
    (out / "runs/stu/seed-0/STATUS.json").write_text("{broken")
    shutil.rmtree(out / "runs/stu/seed-1")
    result = kdrs("reproduce", file, "--out", out)
    assert result.code == 1
    assert "stu, seed 0: failed: " in result.err
    assert "STATUS.json" in result.err
    assert "| stu | 1 failed, 1 finished | 1 of 2 |" in result.out
