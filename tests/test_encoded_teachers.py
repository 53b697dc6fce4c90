"""``teacher_users = "encoded"``: a teacher whose users are a function of their items, where that ranks better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kdrs
from commands import FAST, fails, ok
from conftest import toy_dataset
from kdrs.data import Dataset
from kdrs.errors import ConfigError
from kdrs.models import MODELS
from kdrs.runs import learners
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.encoded import with_encoded_users
from kdrs.runs.execute import execute
from kdrs.runs.learners import load_teacher
from kdrs.teachers.file import FileTeacher
from kdrs.training.pairs import PairTask
from test_train import final_bytes

HEAD = {"kdrs": "teacher/1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A data set, a teacher's vectors, and the same items with users that say nothing."""
    from safetensors.numpy import save_file

    place = tmp_path_factory.mktemp("encoded")
    data = toy_dataset()
    data.save(place / "d")
    ok("train", "--data", place / "d", *FAST, "--dim", 8, "--epochs", 20, "--out", place / "t")
    tables = load_teacher(place / "t", data, PairTask(data.train)).factors()
    items, noise = tables.items.numpy().copy(), np.random.default_rng(0).standard_normal((data.n_users, 8))
    save_file({"users": noise.astype(np.float32), "items": items}, place / "lost.safetensors", metadata=HEAD)
    return place


def values(place: Path, teacher: str, **term) -> dict:
    return {
        "data": {"path": str(place / "d")},
        "model": {"name": "bpr", "dim": 3},
        "train": {"epochs": 3, "batch_size": 64, "lr": 1e-2, "checkpoint_seconds": 0},
        "distill": [{"method": "rrd", "teacher": str(place / teacher), "weight": 0.1, "pool": 20, **term}],
        "device": "cpu",
    }


def encoded(place: Path, teacher: str):
    data = Dataset.load(place / "d")
    task = PairTask(data.train)
    own = load_teacher(place / teacher, data, task)
    config = resolve(values(place, teacher, teacher_users="encoded"))
    return own, with_encoded_users(own, data, config)


def test_users_that_say_nothing_are_replaced_by_the_best_function_of_their_items(place):
    """Its lists are those of the same teacher compressed to 32 bits, and rank better than its own."""
    own, found = encoded(place, "lost.safetensors")
    assert isinstance(own, FileTeacher)
    assert found is not own
    made = kdrs.compress(str(place / "lost.safetensors"), bits=32, users="auto", dataset=str(place / "d"))
    assert made.users in ("sum", "ridge")
    assert made.users in found.name
    evaluator = kdrs.Evaluator.of(Dataset.load(place / "d"))
    assert np.array_equal(evaluator(found.factors())["test"].values["ndcg@10"], made.reports["test"].values["ndcg@10"])
    better, worse = (evaluator(one.factors())["valid"].mean("ndcg@10") for one in (found, own))
    assert better > worse
    listed, alone = found.topk(20).items, own.topk(20).items
    assert listed.shape == alone.shape
    assert not np.array_equal(listed, alone)
    seen = Dataset.load(place / "d").train.to_csr()
    assert not any(seen[user, item] for user, row in enumerate(listed) for item in row if item >= 0)


def test_users_that_rank_best_are_kept(place, tmp_path):
    """Vectors of users that point at what they hold out."""
    from safetensors.numpy import save_file

    data = Dataset.load(place / "d")
    items = np.eye(data.n_items, dtype=np.float32)
    users = (data.valid.to_csr() + data.test.to_csr()).toarray().astype(np.float32)
    save_file({"users": users, "items": items}, tmp_path / "knowing.safetensors", metadata=HEAD)
    own = load_teacher(tmp_path / "knowing.safetensors", data, PairTask(data.train))
    assert with_encoded_users(own, data, resolve(values(place, "t"))) is own


def test_without_a_validation_part_nothing_is_replaced(place):
    data = Dataset.load(place / "d")
    whole = Dataset.from_interactions(data.train, test=data.test)
    own = load_teacher(place / "lost.safetensors", whole, PairTask(whole.train))
    assert with_encoded_users(own, whole, resolve(values(place, "t"))) is own


def test_a_run_learns_from_its_lists_and_is_resumed_to_the_same_bytes(place, tmp_path):
    told = resolve(values(place, "lost.safetensors", teacher_users="encoded"))
    execute(told, tmp_path / "whole")
    assert Run.open(tmp_path / "whole").config["distill"][0]["teacher_users"] == "encoded"
    stops = iter([False, True])
    execute(told, tmp_path / "cut", should_stop=lambda: next(stops, True))
    assert len(Run.open(tmp_path / "cut").rows()) < 3
    execute(told, tmp_path / "cut", resume=True)
    assert final_bytes(tmp_path / "cut") == final_bytes(tmp_path / "whole")
    execute(resolve(values(place, "lost.safetensors")), tmp_path / "own")
    assert final_bytes(tmp_path / "own")["model"] != final_bytes(tmp_path / "whole")["model"]


def test_the_usual_form_is_not_written(place):
    told = resolve(values(place, "t"))
    assert "teacher_users" not in told.to_dict()["distill"][0]
    assert told.distill[0].teacher_users == "own"


def test_what_has_no_vectors_is_refused(place, tmp_path):
    ok(
        "train",
        "--data",
        place / "d",
        "--model",
        "neumf",
        *FAST[2:],
        "--dim",
        2,
        "--epochs",
        1,
        "--out",
        tmp_path / "n",
    )
    told = (
        "distill",
        "--data",
        place / "d",
        *FAST,
        "--dim",
        2,
        "--epochs",
        1,
        "--method",
        "rrd",
        "--out",
        tmp_path / "run",
    )
    more = ("--set", "distill.0.teacher_users=encoded")
    assert "leave teacher_users out" in fails(2, *told, "--teacher", tmp_path / "n", *more)
    assert not (tmp_path / "run").exists()
    ok(*told, "--teacher", tmp_path / "n", "--set", "distill.0.pool=20")


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"neumf", "cml"}))
def test_teachers_of_every_kind_whose_scores_are_products(place, tmp_path, name):
    """Those too whose vectors an outline cannot compute: of graphs, of autoencoders, of sequences."""
    told = ("--data", place / "d", "--device", "cpu", "--threads", 1)
    ok("train", *told, "--model", name, "--epochs", 1, "--set", "model.dim=8", "--out", tmp_path / "t")
    taught = ("distill", *told, "--teacher", tmp_path / "t", "--model", "bpr")
    encoded = ("--method", "rrd", "--dim", 3, "--set", "distill.0.pool=20", "--set", "distill.0.teacher_users=encoded")
    assert "rrd" in ok(*taught, *encoded, "--dry-run", "--out", tmp_path / "run").out
    ok(
        *taught,
        "--budget",
        "1/5",
        "--epochs",
        1,
        "--set",
        "distill.0.pool=20",
        "--method",
        "rrd",
        "--out",
        tmp_path / "b",
    )


def test_a_teacher_that_is_trained_on_keeps_its_table(place):
    with pytest.raises(ConfigError, match="bd trains its teacher on"):
        resolve({**values(place, "t"), "distill": [{"method": "bd", "teacher": "t", "teacher_users": "encoded"}]})


def test_assistants_of_a_chain_learn_from_them_too(place, tmp_path):
    chained = {"method": "takd", "teacher": str(place / "t"), "chain": [6, 5], "experts": 2, "teacher_users": "encoded"}
    execute(resolve({**values(place, "t"), "distill": [chained]}), tmp_path / "run")
    parts = sorted((tmp_path / "run" / "parts").iterdir())
    assert len(parts) == 2
    for part in parts:
        assert Run.open(part).config["distill"][0]["teacher_users"] == "encoded"


def test_two_terms_of_one_teacher_work_it_out_once(place, tmp_path, monkeypatch):
    asked = []

    def counted(teacher, data, config):
        asked.append(teacher.name)
        return with_encoded_users(teacher, data, config)

    monkeypatch.setattr(learners, "with_encoded_users", counted)
    told = values(place, "lost.safetensors", teacher_users="encoded")
    told["distill"].append({**told["distill"][0], "method": "cd", "items": 5})
    execute(resolve(told), tmp_path / "run")
    assert len(set(asked)) == 1
    assert len(asked) <= 2  # once in outline, once in earnest; four of two terms
