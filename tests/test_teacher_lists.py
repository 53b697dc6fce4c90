"""Lists in teacher files: weights of their entries, lists of training instances."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kdrs
from commands import ok
from conftest import toy_dataset
from kdrs.distillers import DISTILLERS
from kdrs.errors import ArtefactError, DataError, KdrsError, MissingKnowledge
from kdrs.teachers.confidence import Confidence
from kdrs.training import losses
from kdrs.training.queries import Epoch
from teacher_files import changed, lists, loss_of, method_of, teacher_of, vectors
from test_contract import build
from test_sequential import toy_task


@pytest.fixture(scope="module")
def data() -> kdrs.Dataset:
    return toy_dataset()


# --- weights of list entries ----------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_weights_are_looked_up_by_query_and_item(seed):
    rng = np.random.default_rng(seed)
    n_lists, n_items, k = rng.integers(1, 6), int(rng.integers(1, 9)), int(rng.integers(1, 9))
    table = np.full((n_lists, k), -1)
    for row in table:
        count = rng.integers(0, min(k, n_items) + 1)
        row[:count] = rng.permutation(n_items)[:count]
    weights = rng.random(table.shape).astype(np.float32)
    rows = rng.integers(0, n_lists, 7)
    asked, ids = rng.integers(0, 7, 5), rng.integers(-1, n_items, (5, 4))
    known = [
        {int(i): w for i, w in zip(row, own, strict=True) if i >= 0} for row, own in zip(table, weights, strict=True)
    ]
    for of, owner in ((Confidence(table, weights, n_items, rows), rows), (Confidence(table, weights, n_items), None)):
        queries = asked if owner is not None else asked % n_lists
        found = of.of(torch.from_numpy(queries), torch.from_numpy(ids)).numpy()
        lists_of = queries if owner is None else owner[queries]
        wanted = [[known[row].get(int(i), 1.0) for i in own] for row, own in zip(lists_of, ids, strict=True)]
        assert np.array_equal(found, np.array(wanted, np.float32))


def test_a_weighted_ranking_loss_on_paper():
    """Scores 2, 1 over a background of 0: terms log(e² + e + 1) - 2 and log(e + 1) - 1."""
    scores = torch.tensor([[2.0, 1.0, 0.0]])
    e = np.e
    terms = np.array([np.log(e**2 + e + 1) - 2, np.log(e + 1) - 1])
    found = losses.weighted_relaxed_ranking(scores, 2, torch.tensor([[0.5, 3.0]]))
    assert float(found) == pytest.approx(float(terms @ [0.5, 3.0]), abs=1e-6)
    mask = torch.tensor([[True, False, True]])
    alone = losses.weighted_relaxed_ranking(scores, 2, torch.tensor([[0.5, 3.0]]), mask)
    assert float(alone) == pytest.approx(0.5 * (np.log(e**2 + 1) - 2), abs=1e-6)
    rng = torch.Generator().manual_seed(0)
    many = torch.randn(5, 9, generator=rng, requires_grad=True)
    shown = torch.rand(5, 9, generator=rng) > 0.3
    ones = torch.ones(5, 4)
    plain, weighed = losses.relaxed_ranking_of(many, 4, shown), losses.weighted_relaxed_ranking(many, 4, ones, shown)
    assert torch.allclose(plain, weighed, atol=1e-5)
    (one,), (other,) = (torch.autograd.grad(loss.sum(), many, retain_graph=True) for loss in (plain, weighed))
    assert torch.allclose(one, other, atol=1e-5)


WEIGHING = {
    "rrd": {}, "ir-rrd": {"item_weight": 0.0}, "rd": {}, "dcd": {"item_weight": 0.0}, "sld": {"label": "order"},
    "cd": {"guide": "teacher"}, "rce-kd": {},
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHING)
def test_methods_on_lists_multiply_by_the_weights(data, tmp_path, name):
    """Ones change nothing, doubled weights double, zeros leave nothing of what is listed."""
    full = data.n_items
    given = lists(data, full)
    if name in ("cd", "rce-kd", "ir-rrd"):  # they ask for scores too
        given |= {key: value for key, value in vectors(data).items() if key in ("users", "items")}
    found = {}
    for what, weights in (("none", None), ("ones", 1.0), ("twice", 2.0), ("zero", 0.0)):
        more = {} if weights is None else {"topk_weights": np.full((data.n_users, full), weights, np.float32)}
        teacher = teacher_of(tmp_path, data, **given, **more)
        options = dict(WEIGHING[name])
        found[what] = loss_of(method_of(name, teacher, teacher.task, **options), teacher.task)
    assert torch.allclose(found["ones"], found["none"], rtol=1e-5)
    assert found["none"] > 0
    assert torch.allclose(found["twice"], 2 * found["none"], rtol=1e-5)
    assert abs(float(found["zero"])) < 1e-4 * float(found["none"])


def test_each_entry_has_its_own_weight(data, tmp_path):
    """RD's loss is a sum over the list: one entry's weight changes that entry's term alone."""
    given = lists(data, data.n_items)
    terms = []
    for place in (0, 2):
        weights = np.zeros((data.n_users, data.n_items), np.float32)
        teacher = teacher_of(tmp_path, data, **given)
        best = teacher.topk(5).items
        row_of = {user: {int(item): at for at, item in enumerate(given["topk"][user])} for user in range(data.n_users)}
        for user in range(data.n_users):
            weights[user, row_of[user][int(best[user, place])]] = 1.0
        own = teacher_of(tmp_path, data, **given, topk_weights=weights)
        terms.append((place, loss_of(method_of("rd", own, own.task, warmup_epochs=5), own.task)))
    student = build(own.task, "bpr", 4, seed=1)
    batch = next(iter(own.task.draw(Epoch(1, 0, 3))))
    raw = torch.exp(-torch.arange(5).float())
    for place, loss in terms:
        ids = torch.from_numpy(best[:, place].astype(np.int64))[batch.queries.users]
        scores = student(batch.queries).pairs(torch.arange(len(ids)), ids)
        wanted = (raw[place] / raw.sum() * torch.nn.functional.softplus(-scores)).sum()
        assert torch.allclose(loss, wanted, rtol=1e-4)


@pytest.mark.parametrize("name", ["cpd", "hetcomp"])
def test_methods_that_do_not_weigh_say_so(data, tmp_path, name):
    given = lists(data, data.n_items) | vectors(data)
    teacher = teacher_of(tmp_path, data, **given, topk_weights=np.ones((data.n_users, data.n_items)))
    options = {"guide": "teacher"} if name == "cpd" else {}
    with pytest.warns(UserWarning, match="counts all entries alike"):
        method_of(name, teacher, teacher.task, **options)


@pytest.mark.parametrize("bad", [-1.0, np.inf])
def test_weights_are_checked(data, tmp_path, bad):
    given = lists(data)
    weights = np.ones((data.n_users, 30), np.float32)
    path = tmp_path / "t.safetensors"
    kdrs.save_teacher(path, **given, topk_weights=weights)
    weights[4, 2] = bad
    with pytest.raises(ArtefactError, match="topk_weights row 4"):
        kdrs.FileTeacher(changed(path, topk_weights=weights), kdrs.PairTask(data.train), dataset=data)


def spoilt(given: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Lists with scores and weights, one entry of which may be wrong."""
    topk = given["topk"].copy()
    scores = -np.sort(-rng.standard_normal(topk.shape).astype(np.float32), axis=1)
    weights = rng.random(topk.shape).astype(np.float32)
    row, place = int(rng.integers(len(topk))), int(rng.integers(1, topk.shape[1]))
    table, value = [
        (topk, topk[row, place - 1]), (topk, -2), (topk, 10**6), (topk, -1), (scores, np.nan), (scores, 99.0), (weights, -1.0),
        (weights, np.inf), (weights, 0.0),
    ][int(rng.integers(9))]  # fmt: skip
    table[row, place] = value
    return {**given, "topk": topk, "topk_scores": scores, "topk_weights": weights}


@pytest.mark.parametrize("seed", range(24))
def test_what_is_written_can_be_read(data, tmp_path, seed):
    """What reading refuses is refused before there is a file."""
    given = spoilt(lists(data, 6, seed), np.random.default_rng(seed))
    path = tmp_path / "t.safetensors"
    refused = None
    try:
        kdrs.save_teacher(path, **given)
    except DataError as error:
        refused = error
    if refused is None:
        kdrs.FileTeacher(path, kdrs.PairTask(data.train), dataset=data)
        return
    assert re.match(r"topk(_scores|_weights)? row \d+ ", refused.cause)
    assert refused.remedy
    assert not list(tmp_path.iterdir())


def test_instances_that_cannot_be_read_are_not_written(data, tmp_path):
    given = lists(data)
    own = {"instance_topk": given["topk"][:2], "user_ids": given["user_ids"], "item_ids": given["item_ids"]}
    for users, told in (
        ([0, 999], "^instance_users holds 0 to 999"),
        ([-1, 0], "holds -1 to 0"),
        ([5, 5], "^lists 0 and 1 are of"),
    ):
        with pytest.raises(DataError, match=told):
            kdrs.save_teacher(
                tmp_path / "t.safetensors", **own, instance_users=np.array(users), instance_known=np.array([1, 1])
            )
    with pytest.raises(DataError, match="users have 0 dimensions"):
        kdrs.save_teacher(tmp_path / "t.safetensors", **vectors(data, 0))
    assert not list(tmp_path.iterdir())


def test_arrays_that_cannot_be_written_to_are_taken_without_a_word(data, tmp_path):
    given = lists(data)
    given["topk"].flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kdrs.save_teacher(tmp_path / "t.safetensors", **given)


def test_lists_of_nothing_are_not_written(data, tmp_path):
    given = lists(data)
    with pytest.raises(DataError, match="topk holds no item at all"):
        kdrs.save_teacher(tmp_path / "t.safetensors", **{**given, "topk": np.full_like(given["topk"], -1)})
    assert not list(tmp_path.iterdir())


# --- lists of training instances ------------------------------------------------------------------------------------


def instance_lists(data: kdrs.Dataset, task: Any, k: int = 30) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    topk = np.argsort(rng.random((task.n_rows, data.n_items)), axis=1)[:, :k].astype(np.int32)
    return {"instance_topk": topk, "item_ids": list(data.items)}


@pytest.mark.parametrize("model", ["caser", "sasrec"])
def test_lists_of_training_instances(data, tmp_path, model):
    task = toy_task(model)
    given = instance_lists(data, task)
    found = teacher_of(tmp_path, data, task, **given)
    assert found.lists is None
    ranked = found.topk(8).items
    assert ranked.shape == (task.n_queries, 8)
    assert (ranked[: task.n_users] == -1).all()
    for row in (0, 5, task.n_rows - 1):
        seen = set(data.train.row(task.owners[task.n_users + row]).tolist())
        wanted = [item for item in given["instance_topk"][row].tolist() if item not in seen][:8]
        assert ranked[task.n_users + row].tolist() == wanted
    # the same with a key for each list, in any order, and some strangers
    order = np.random.default_rng(1).permutation(task.n_rows)
    rows = torch.arange(task.n_users, task.n_queries)
    keyed = {
        "instance_topk": given["instance_topk"][order],
        "instance_users": task.owners[task.n_users :][order],
        "instance_known": task.ends(rows).numpy()[order],
        "user_ids": list(data.users),
        "item_ids": list(data.items),
    }
    assert np.array_equal(teacher_of(tmp_path, data, task, **keyed).topk(8).items, ranked)
    for name in ("rrd", "rd"):
        method = method_of(name, found, task)
        assert torch.isfinite(loss_of(method, task, model))
    own = found.topk(8)
    blocks = [block.items for _, block in found.topk_blocks(8)]
    assert np.array_equal(np.concatenate(blocks), own.items)


def test_instances_and_users_beside_each_other(data, tmp_path):
    task = toy_task("caser")
    given = instance_lists(data, task) | lists(data)
    weights = np.full(given["instance_topk"].shape, 0.5, np.float32)
    found = teacher_of(tmp_path, data, task, **given, instance_topk_weights=weights)
    of_users = teacher_of(tmp_path, data, **lists(data))
    assert np.array_equal(found.topk(8).items[: task.n_users], of_users.topk(8).items)
    confidence = found.confidence()
    rows = torch.tensor([0, task.n_users])
    ids = torch.from_numpy(found.topk(3).items[[0, task.n_users]].astype(np.int64))
    assert confidence.of(rows, ids).tolist() == [[1.0] * 3, [0.5] * 3]
    plain = kdrs.FileTeacher(tmp_path / "t.safetensors", kdrs.PairTask(data.train), dataset=data)
    assert plain.topk(8).items.shape == (data.n_users, 8)  # a model of users reads the users' lists


def test_wrong_lists_of_instances(data, tmp_path):
    task = toy_task("caser")
    given = instance_lists(data, task)
    less = {**given, "instance_topk": given["instance_topk"][1:]}
    keys = {
        "instance_users": task.owners[task.n_users :],
        "instance_known": task.ends(torch.arange(task.n_users, task.n_queries)).numpy(),
        "user_ids": list(data.users),
    }
    twice = {name: np.concatenate([value[:1], value[:-1]]) for name, value in keys.items() if name != "user_ids"}
    cases: list[tuple[dict[str, Any], str, type[KdrsError]]] = [
        (less, "holds lists for", ArtefactError),
        ({**given, **keys, **twice}, "are of the same user", DataError),
        ({**less, **{name: value[1:] for name, value in keys.items() if name != "user_ids"}, "user_ids": keys["user_ids"]},
         "has no list for 1 of", ArtefactError),
        ({**given, **keys, "instance_users": np.full(task.n_rows, 50)}, "allowed: 0 to 49", DataError),
    ]  # fmt: skip
    for case, says, kind in cases:
        with pytest.raises(kind) as caught:
            teacher_of(tmp_path, data, task, **case)
        assert says in str(caught.value)
    kdrs.save_teacher(tmp_path / "u.safetensors", **given, **keys)  # of another program, which does not look
    for wrong, says in (
        (twice, "are of the same user"),
        ({"instance_users": np.full(task.n_rows, 50)}, "allowed: 0 to 49"),
    ):
        path = changed(tmp_path / "u.safetensors", **{name: value.astype(np.int32) for name, value in wrong.items()})
        with pytest.raises(ArtefactError, match=says):
            kdrs.FileTeacher(path, task, dataset=data)
    assert (teacher_of(tmp_path, data, task, missing="drop", **cases[2][0]).topk(5).items[task.n_users] == -1).all()
    with pytest.raises(MissingKnowledge, match="the student is none"):
        teacher_of(tmp_path, data, **given)


def test_a_run_of_a_sequence_model_with_lists_of_its_instances(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data.save("d")
    config = kdrs.resolve({"data": {"path": "d"}, "model": {"name": "caser", "dim": 4}})
    from kdrs.runs.build import build_task

    task = build_task(config, data)
    kdrs.save_teacher("t.safetensors", **instance_lists(data, task))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ok(
            "distill", "--data", "d", "--model", "caser", "--dim", 4, "--epochs", 1, "--device", "cpu",
            "--teacher", "t.safetensors", "--method", "rrd", "--out", "run",
            "--set", "distill.0.pool=20", "--set", "distill.0.interesting=5",
        )  # fmt: skip


LISTS_ALONE = {"rrd": {}, "rd": {}, "dcd": {"item_weight": 0.0}, "sld": {"label": "order"}}
"""As docs/teachers.md has it."""


@pytest.mark.parametrize("name", [name for name, cls in DISTILLERS.items() if not cls.mutual])
def test_which_methods_learn_of_lists_alone(data, tmp_path, name):
    teacher = teacher_of(tmp_path, data, **lists(data, data.n_items))
    if name in LISTS_ALONE:
        assert torch.isfinite(loss_of(method_of(name, teacher, teacher.task, **LISTS_ALONE[name]), teacher.task))
        return
    with pytest.raises(KdrsError, match="holds only a ranking"):
        method_of(name, teacher, teacher.task)
