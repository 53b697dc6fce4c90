"""Rows 22 to 27 of the table of faults: draws, ranking and scores at their edges.

More of their kind: test_sampling.py, test_ranking.py, test_evaluate.py, test_core_oracles.py.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import FAST, fails
from commands import kdrs as run_command
from kdrs import _core
from kdrs.core import ranking, sampling
from kdrs.data import Dataset, Interactions, Recipe, Table, draw_candidates, prepare
from kdrs.errors import ArtefactError, ConfigError, DataError
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.scorers import as_source
from kdrs.fitting import fit as fitting
from kdrs.models import MODELS
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from kdrs.runs.results import measure_teachers
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask


def values(data: Path, **train: object) -> dict:
    plain = {"epochs": 2, "batch_size": 64, **train}
    return {"data": {"path": str(data)}, "model": {"name": "bpr", "dim": 4}, "train": plain, "device": "cpu"}


def full_but(n_items: int, *left: int) -> Interactions:
    """One user a number: it has seen all but so many of the last items."""
    counts = n_items - np.array(left)
    return Interactions(np.r_[0, counts.cumsum()], np.concatenate([np.arange(n) for n in counts]), (len(left), n_items))


# 22: users who have seen everything


def test_fault_22_draws_end_however_little_is_unseen():
    """One unseen item of 200,000: by trial and error that would be 200,000 draws each."""
    seen = full_but(200_000, 1, 0, 2)
    drawn = sampling.negatives(seen, np.tile([0, 2], 5000), 4, seed=0)
    assert (drawn[::2] == 199_999).all()
    assert set(np.unique(drawn[1::2])) == {199_998, 199_999}
    with pytest.raises(DataError, match="row 1 has seen all 200000 items"):
        sampling.negatives(seen, [0, 1], seed=0)
    assert (sampling.negatives(seen, [1], 3, seed=0, exhausted="mask") == -1).all()
    assert (sampling.outside(seen, np.full((3, 1), -1, np.int32), 2, seed=0)[1] == -1).all()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_fault_22_such_users_are_left_out_counted_and_in_no_ones_way(tmp_path, name):
    """Of every model: the others are trained and ranked, and who has seen everything is told of or has nothing to lose."""
    train = [(u, i) for u in range(6) for i in range(4 + 4 * (u == 2))]
    data = Dataset.from_interactions(
        Interactions.from_pairs(*zip(*train, strict=True), 6, 8),
        test=Interactions.from_pairs([0, 1, 3, 4, 5], [5, 5, 6, 7, 4], 6, 8),
        order=np.array([item for _, item in train]),
    )
    plain = values(data.save(tmp_path / "d"), epochs=1) | {"model": {"name": name}}
    heard: list[dict] = []
    outcome = execute(resolve(plain), tmp_path / "run", on_start=heard.append)
    assert outcome.fit.skipped_pairs == heard[0]["skipped_pairs"]
    assert outcome.reports["test"].n == 5
    if isinstance(MODELS[name].make_task(MODELS[name].Config(), data.train, order=data.order), PairTask):
        assert outcome.fit.skipped_pairs == 8


def test_fault_22_if_all_users_are_such_it_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no training pair is left: of 8 pairs 8 belong to users who have seen every"):
        PairTask(full_but(4, 0, 0))
    data = Dataset.from_interactions(full_but(4, 0, 0)).save(tmp_path / "d")
    assert "no training pair is left" in fails(3, "train", "--data", data, *FAST, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# 23: fewer unseen items than negatives asked for


def test_fault_23_candidates_are_those_that_there_are():
    seen = full_but(30, 12, 3, 0, 6)
    drawn = draw_candidates(seen, 6, 0)
    for user, left in enumerate((12, 3, 0, 6)):
        mine = drawn[user][drawn[user] >= 0]
        assert mine.size == min(left, 6) == np.unique(mine).size
        assert (mine >= 30 - left).all()
        assert (drawn[user][mine.size :] == -1).all()


def test_fault_23_users_with_fewer_are_told_recorded_and_ranked():
    rows = (
        [(u, i) for u in range(12) for i in range(10)]
        + [(0, i) for i in range(10, 30)]
        + [(1, i) for i in range(10, 38)]
    )
    table = Table.from_pairs(*zip(*rows, (2, 38), (2, 39), strict=True))
    with pytest.warns(UserWarning, match=r"2 of 12 users have fewer than 25 unseen items \(the fewest 2\)"):
        data = prepare(table, Recipe(candidates=25))
    assert next(step for step in data.steps if "users_with_fewer" in step)["users_with_fewer"] == 2
    report = Evaluator.of(data, ks=(1, 25))((np.zeros((12, 1)), np.zeros((40, 1))))["test"]
    # all scores are equal: a target is at each place of its own list with equal chance
    sizes = (data.candidates >= 0).sum(1) + 1
    assert report.values["hit@1"] == pytest.approx(1 / sizes)
    assert report.values["hit@25"] == pytest.approx(np.minimum(1, 25 / sizes))


def test_fault_23_draws_without_replacement_end_with_the_list():
    drawn = sampling.weighted(np.array([[4, 7, -1, -1]], np.int32), np.ones(4), 3, seed=0)
    assert sorted(drawn[0].tolist()) == [-1, 4, 7]
    outside = sampling.outside(full_but(30, 3), np.array([[29]], np.int32), 5, seed=0)[0]
    assert sorted(outside.tolist()) == [-1, -1, -1, 27, 28]


# 24: K past the catalogue, past the unseen items, below 1


@pytest.mark.parametrize("stored", [0, 5])
def test_fault_24_lists_end_denominators_keep_k_and_it_is_said_once(stored):
    train, test = full_but(8, 6, 3), Interactions.from_pairs([0, 1], [7, 7], 2, 8)
    table = draw_candidates(train.union(test), stored, 0) if stored else None
    with pytest.warns(UserWarning, match="K=1000 is more than the catalogue's 8 items"):
        evaluator = Evaluator(train, test, ks=(2, 1000), candidates=table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = evaluator((np.ones((2, 1)), np.arange(8.0)[:, None]))["test"]
    assert report.values["precision@1000"].tolist() == [1 / 1000] * 2
    assert report.values["recall@1000"].tolist() == [1.0] * 2


def test_fault_24_lists_are_padded_past_the_unseen_items():
    train = full_but(8, 6, 3)
    best = ranking.topk(np.ones((2, 1)), np.arange(8.0)[:, None], 5, seen=train).items
    assert best.tolist() == [[7, 6, 5, 4, 3], [7, 6, 5, -1, -1]]
    assert ranking.topk(np.ones((2, 1)), np.ones((8, 1)), 10**12).items.shape == (2, 8)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "5", True])
def test_fault_24_k_below_one_is_error_2(toy, toy_path, tmp_path, bad):
    with pytest.raises(ConfigError, match="allowed: integers from 1") as caught:
        Evaluator.of(toy, ks=(5, bad))
    assert caught.value.exit_code == 2
    text = json.dumps([5, bad])
    command = ("train", "--data", toy_path, *FAST, "--set", f"eval.ks={text}", "--out", tmp_path / "x")
    assert re.search(r"K is|eval\.ks", fails(2, *command))
    assert not (tmp_path / "x").exists()


# 25: equal scores


def test_fault_25_equal_scores_are_ordered_by_item_on_every_path(monkeypatch):
    rng = np.random.default_rng(0)
    q, x = (rng.integers(-1, 2, (n, 3)).astype(np.float32) for n in (20, 300))
    scores = q @ x.T
    expected = np.lexsort((np.broadcast_to(np.arange(300), scores.shape), -scores))[:, :50]
    for path in _core.simd_paths():
        monkeypatch.setenv("KDRS_SIMD", path)
        assert np.array_equal(ranking.topk(q, x, 50).items, expected), path
        assert np.array_equal(ranking.topk_scores(scores, 50).items, expected), path
    there = ranking.topk_on_device(torch.from_numpy(q), torch.from_numpy(x), 50)
    assert np.array_equal(there.items.numpy(), expected)


@pytest.mark.parametrize("stored", [0, 20])
def test_fault_25_a_scorer_that_knows_nothing_gets_what_chance_gets(toy, stored):
    data = prepare(Table.from_pairs(*np.nonzero(toy.full.to_csr().toarray())), Recipe(candidates=stored))
    flat = (np.zeros((data.n_users, 2)), np.zeros((data.n_items, 2)))
    report = Evaluator.of(data, ks=(5,), ties="expected")(flat)["test"]
    ranked = 1 + (
        (data.candidates >= 0).sum(1) if stored else data.n_items - data.full.row_degrees
    )  # the test item is one of them
    assert report.mean("hit@5") == pytest.approx(np.mean(5 / ranked))
    assert report.tied == 1.0
    assert Evaluator.of(data, ks=(5,), ties="optimistic")(flat)["test"].mean("hit@5") == 1.0
    assert Evaluator.of(data, ks=(5,), ties="pessimistic")(flat)["test"].mean("hit@5") == 0.0


# 26: scores that are not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("stored", [0, 20])
def test_fault_26_scores_that_are_not_finite_are_never_ranked(toy, bad, stored):
    evaluator = Evaluator.of(toy) if stored else Evaluator(toy.train, toy.test)
    rng = np.random.default_rng(0)
    for side, word in (("users", "user"), ("items", "item")):
        spoilt = {"users": rng.normal(size=(50, 3)), "items": rng.normal(size=(80, 3))}
        spoilt[side][7, 1] = bad
        with pytest.raises(DataError, match=f"the vector of {word} 7 holds {bad}; scores must be finite"):
            evaluator((spoilt["users"], spoilt["items"]))
    scores = np.zeros((50, 80), np.float32)
    scores[4], scores[9] = bad, bad
    with pytest.raises(DataError, match=rf"the score of user 4 for item \d+ is {bad}"):
        evaluator(lambda rows: scores[rows])
    if bad != float("-inf"):  # there it means the last of all
        with pytest.raises(DataError, match="row 4"):
            ranking.topk_scores(scores, 5)


@pytest.mark.parametrize("validated", [True, False])
def test_fault_26_a_model_that_training_spoilt_is_error_1_with_epoch_and_user(
    toy, toy_path, tmp_path, monkeypatch, validated
):
    data = toy_path
    if not validated:
        data = Dataset.from_interactions(toy.train, test=toy.test, name="toy").save(tmp_path / "d")
    plain, done, last = fitting.step_of, [], 2 * -(-toy.train.n_pairs // 64)

    def step(learners, batch):
        losses = plain(learners, batch)
        done.append(losses)
        if len(done) == last:
            with torch.no_grad():
                learners[0].model.users.weight[3] = float("nan")
        return losses

    monkeypatch.setattr(fitting, "step_of", step)
    result = run_command("train", "--data", data, *FAST, "--epochs", 2, "--out", tmp_path / "run")
    assert result.code == 1, result.err
    assert "error: the model after epoch 1: the vector of user 3 holds nan; scores must be finite" in result.err
    assert "lower the learning rate" in result.err
    status = json.loads((tmp_path / "run/STATUS.json").read_text())
    assert (status["status"], status["error"][:13]) == ("failed", "TrainingError")
    assert not (tmp_path / "run/model.safetensors").exists()


def test_fault_26_a_teacher_whose_scores_are_not_finite_is_error_4(toy):
    task = PairTask(toy.train)
    teacher = ModelTeacher(MODELS["bpr"](MODELS["bpr"].Config(dim=4), task), task)
    with torch.no_grad():
        teacher.model.items.weight[5, 0] = float("inf")
    with pytest.raises(ArtefactError, match="teacher big: the vector of item 5 holds inf") as caught:
        measure_teachers({"big": teacher}, Evaluator.of(toy), toy)
    assert caught.value.exit_code == 4


# 27: half precision, numbers next to zero


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fault_27_scores_of_half_precision_vectors_are_summed_in_float32(dtype):
    """300 * 300 is past float16's largest number, 65504, and 2049 is none of its whole numbers."""
    q = torch.tensor([[300.0, 1.0]], dtype=dtype)
    x = torch.tensor([[300.0, 0.0], [300.0, 1.0], [-300.0, 1.0]], dtype=dtype)
    best = ranking.topk(q, x, 3)
    assert best.items.tolist() == [[1, 0, 2]]
    expected = q.float() @ x.float().T
    assert best.scores.tolist() == expected[:, [1, 0, 2]].tolist()
    source = as_source((q, x), 1, 3, None)
    assert source.block(np.arange(1)).topk(3, Interactions.from_pairs([], [], 1, 3)).items.tolist() == [[1, 0, 2]]


def test_fault_27_overflow_is_told_as_scores_that_are_not_finite(toy):
    scores = torch.zeros(50, 80, dtype=torch.float16)
    scores[6, 11] = torch.tensor(70_000.0)  # inf in float16
    with pytest.raises(DataError, match="the score of user 6 for item 11 is inf") as caught:
        Evaluator(toy.train, toy.test)(lambda rows: scores[rows])
    assert "float16 overflow" in str(caught.value.remedy)
    with pytest.raises(DataError, match="past the float32 range"):
        Evaluator(toy.train, toy.test)((np.full((50, 1), 1e25), np.full((80, 1), 1e25)))


def test_fault_27_numbers_next_to_zero_are_numbers():
    x = np.array([[1e-42], [3e-42], [-1e-42], [0.0]], np.float32)
    q = np.ones((1, 1), np.float32)
    for threads in (1, 2):
        assert ranking.topk(q, x, 4, threads=threads).items.tolist() == [[1, 0, 3, 2]]
