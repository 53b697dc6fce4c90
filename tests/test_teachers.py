"""Lists that a teacher is asked for: users of items, blocks of queries, with and without factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdrs.distillers import CD, DISTILLERS
from kdrs.distillers.dcd import item_ranks
from kdrs.errors import ArtefactError, MissingKnowledge
from kdrs.models import BPR
from kdrs.teachers import base as teachers
from kdrs.teachers.file import FileTeacher, read_safetensors
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch, Queries


class NoFactors(BPR):
    """The same scores, known only by asking."""

    def factors(self):
        return None


def teacher_of(task, cls=BPR, dim=6):
    torch.manual_seed(0)
    return ModelTeacher(cls(cls.Config(dim=dim, init_std=0.5), task), task)


@pytest.fixture(params=["factors", "scores", "scores, small blocks"])
def teacher(request, task, monkeypatch):
    if request.param.endswith("blocks"):
        monkeypatch.setattr(teachers, "BLOCK_BYTES", 4 * 80 * 7)  # seven users a block
    return teacher_of(task, BPR if request.param == "factors" else NoFactors)


def slow_top_users(task, scores, k):
    seen = task.seen.to_csr().toarray() > 0
    lists = np.full((task.n_items, k), -1)
    for item in range(task.n_items):
        users = sorted((u for u in range(task.n_users) if not seen[u, item]), key=lambda u: (-scores[u, item], u))
        lists[item, : len(users[:k])] = users[:k]
    return lists


@pytest.mark.parametrize("k", [1, 9, 50, 60])
def test_top_users_are_the_best_who_have_not_seen_the_item(teacher, task, k):
    scores = teacher.score_block(np.arange(task.n_users)).numpy()
    found = teacher.top_users(k)
    assert found.dtype == np.int32
    assert (found == slow_top_users(task, scores, min(k, task.n_users))).all()


def test_users_who_tie_go_by_id(task, monkeypatch):
    monkeypatch.setattr(teachers, "BLOCK_BYTES", 4 * 80 * 7)
    for cls in (BPR, NoFactors):
        teacher = teacher_of(task, cls)
        with torch.no_grad():
            teacher.model.users.weight.fill_(1.0)
            teacher.model.items.weight.round_()  # exact in any order of summation
        assert (teacher.top_users(5) == slow_top_users(task, np.zeros((task.n_users, task.n_items)), 5)).all(), cls


def test_blocks_of_lists_are_the_lists(teacher, task, monkeypatch):
    monkeypatch.setattr(teachers, "BLOCK_BYTES", 8 * 12 * 9)
    blocks = list(teacher.topk_blocks(12))
    assert len(blocks) > 1
    assert [part.start for part, _ in blocks[1:]] == [part.stop for part, _ in blocks[:-1]]
    whole = teacher.topk(12)
    for name in ("items", "scores"):
        assert (np.concatenate([getattr(ranked, name) for _, ranked in blocks]) == getattr(whole, name)).all()


def test_lists_that_keep_what_was_seen(teacher, task):
    scores = teacher.score_block(np.arange(task.n_users)).numpy()
    found = np.concatenate([ranked.items for _, ranked in teacher.topk_blocks(10, keep_seen=True)])
    assert (found == np.argsort(-scores, axis=1, kind="stable")[:, :10]).all()


def saved(path, tensors, task):
    save_file(tensors, path, metadata={"kdrs": "teacher/1"})
    return FileTeacher(path, task)


def test_a_file_with_factors_answers_as_its_model_does(task, tmp_path):
    model = teacher_of(task)
    factors = model.factors()
    file = saved(tmp_path / "f", {"users": factors.queries.clone(), "items": factors.items.clone()}, task)
    rows, ids = np.array([3, 1]), np.array([[5, 6, 7], [0, 1, 2]])
    assert torch.equal(file.score_block(rows), model.score_block(rows))
    assert torch.equal(file.score_pairs(rows, ids), model.score_pairs(rows, ids))
    assert (file.top_users(7) == model.top_users(7)).all()
    assert (next(iter(file.topk_blocks(7)))[1].items == model.topk(7).items).all()


def test_a_file_of_lists_says_what_it_lacks(task, tmp_path):
    file = saved(tmp_path / "l", {"topk": torch.from_numpy(teacher_of(task).topk(9).items.copy())}, task)
    assert (next(iter(file.topk_blocks(9)))[1].items == file.topk(9).items).all()
    for ask in (
        lambda: file.top_users(5),
        lambda: file.score_block(np.arange(2)),
        lambda: file.score_pairs(np.arange(2), np.zeros((2, 1), int)),
        lambda: list(file.topk_blocks(5, keep_seen=True)),
    ):
        with pytest.raises(MissingKnowledge, match="holds only a ranking"):
            ask()


def test_cd_draws_block_by_block_what_its_law_says(task, monkeypatch):
    """Blocks are no part of the law: over many epochs each rank is drawn as often as in one block."""
    teacher = teacher_of(task)
    monkeypatch.setattr(teachers, "BLOCK_BYTES", 8 * 3 * 10)  # ten queries a block
    cd = CD(CD.Config(items=1, pool=3, guide="teacher"), [teacher], task, 4)
    lists = teacher.topk(3).items
    places = np.concatenate([(lists == cd.draw(Epoch(e, 0, 500)).numpy()).argmax(axis=1) for e in range(400)])
    assert (np.bincount(places) / places.size).tolist() == pytest.approx([5 / 9, 3 / 9, 1 / 9], abs=0.01)
    drawn = cd.draw(Epoch(0, 0, 1)).numpy()
    starts = [(lists == drawn).argmax(axis=1)[s : s + 10].tolist() for s in range(0, task.n_queries, 10)]
    assert len({tuple(s) for s in starts}) == len(starts)  # blocks have streams of their own


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_a_file_whose_header_length_looks_like_a_pickle_is_read(tmp_path, start):
    """The first bytes of a safetensors file are a length: one in 32 files begins as pickles do."""
    tensors = {"users": torch.ones(2, 3)}
    for width in range(0 if start == b"\x80" else 19_000, 20_000):
        save_file(tensors, tmp_path / "f", metadata={"kdrs": "teacher/1", "note": "x" * width})
        if (tmp_path / "f").read_bytes().startswith(start):
            break
    assert (tmp_path / "f").read_bytes().startswith(start)
    found, _ = read_safetensors(tmp_path / "f")
    assert torch.equal(found["users"], tensors["users"])


def test_pickles_are_still_refused(tmp_path):
    (tmp_path / "p").write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}")
    with pytest.raises(ArtefactError, match="is a pickle"):
        read_safetensors(tmp_path / "p")


class Twice(PairTask):
    """Two queries a user, as sequential tasks have: the users asking now, then their past."""

    def __init__(self, seen):
        super().__init__(seen)
        self.owners = np.tile(np.arange(self.n_users), 2)
        self.n_queries = 2 * self.n_users

    def queries(self, rows):
        return Queries(rows, torch.from_numpy(self.owners)[rows])


def test_a_query_leaves_out_what_its_user_has_seen(toy):
    task = Twice(toy.train)
    teacher = teacher_of(task, NoFactors)
    whole = np.concatenate([ranked.items for _, ranked in teacher.topk_blocks(9)])
    plain = teacher_of(PairTask(toy.train)).topk(9).items
    assert np.array_equal(whole, np.tile(plain, (2, 1)))
    ranks = item_ranks(teacher, np.ascontiguousarray(whole), True)
    assert np.array_equal(ranks, np.tile(np.arange(9), (len(whole), 1)))
    seen = toy.train.to_csr().toarray() > 0
    small = {
        "sld": {"pool": 9, "top": 3, "rest": 4},
        "score-matching": {"sampled": 4},
        "unkd": {"pool": 5, "pairs": 6},
    }
    for name, options in small.items():
        method = DISTILLERS[name](DISTILLERS[name].Config(**options), [teacher], task, 4)
        drawn = method.draw(Epoch(0, 0, 1)).numpy().reshape(task.n_queries, -1)
        assert not seen[task.owners[:, None], drawn][drawn >= 0].any(), name
