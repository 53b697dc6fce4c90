"""Batches of whole users and whole items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdrs.data import Dataset, Interactions
from kdrs.errors import ConfigError, DataError
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Batch, Epoch, Queries
from kdrs.training.rows import ItemTask, UserTask
from test_distillers import batch_of


def pairs_in(batch: Batch) -> set[tuple[int, int]]:
    users = batch.queries.users[batch.positive_rows]
    return set(zip(users.tolist(), batch.positives.tolist(), strict=True))


def drawn_in(batch: Batch) -> list[tuple[int, int]]:
    users = batch.queries.users[batch.negative_rows]
    return list(zip(users.tolist(), batch.negatives.flatten().tolist(), strict=True))


def test_every_user_once_with_all_items_and_unseen_negatives(toy):
    task = UserTask(toy.train, batch_size=16, ratio=1.5)
    batches = task.draw(Epoch(0, 0, 1))
    drawn = list(batches)
    assert len(drawn) == len(batches) == task.n_batches == 4
    users = torch.cat([b.queries.rows for b in drawn])
    assert sorted(users.tolist()) == list(range(50))
    assert users.tolist() != list(range(50))
    seen = set(zip(toy.train.row_of_pair.tolist(), toy.train.indices.tolist(), strict=True))
    assert set().union(*map(pairs_in, drawn)) == seen
    assert sum(b.positives.shape[0] for b in drawn) == toy.train.n_pairs
    for batch in drawn:
        negatives = drawn_in(batch)
        assert len(set(negatives)) == len(negatives)
        assert not set(negatives) & seen
        counts = torch.bincount(batch.negative_rows, minlength=len(batch.queries))
        degrees = torch.from_numpy(toy.train.row_degrees)[batch.queries.users]
        assert (counts <= (1.5 * degrees).long()).all()
        assert (counts > 0).all()


def test_an_epoch_of_users_depends_on_the_epoch_alone(toy):
    task = UserTask(toy.train, batch_size=16, ratio=5.0)
    one, two, later = (task.draw(Epoch(index, 3, 9)) for index in (2, 2, 4))
    assert torch.equal(one[1].negatives, two[1].negatives)
    assert torch.equal(list(one)[3].queries.rows, two[3].queries.rows)
    assert not torch.equal(one[1].queries.rows, later[1].queries.rows)


def test_negatives_may_be_redrawn_for_a_second_model(toy):
    task = UserTask(toy.train, batch_size=16, ratio=1.5)
    batch = task.draw(Epoch(0, 0, 1))[0]
    other = task.redrawn(batch, 7)
    assert pairs_in(other) == pairs_in(batch)
    seen = set(zip(toy.train.row_of_pair.tolist(), toy.train.indices.tolist(), strict=True))
    assert not set(drawn_in(other)) & seen
    assert set(drawn_in(other)) != set(drawn_in(batch))
    assert drawn_in(other) == drawn_in(task.redrawn(batch, 7))
    counts = torch.bincount(other.negative_rows, minlength=16)
    assert (counts <= (1.5 * torch.from_numpy(toy.train.row_degrees)[batch.queries.users]).long()).all()


def test_flat_batches_as_triples(toy):
    """Each positive beside one of its own user's negatives; users without any are left out."""
    batch = UserTask(toy.train, batch_size=16, ratio=0.7).draw(Epoch(0, 0, 1))[0]
    rows, positives, negatives = batch.triples
    users = batch.queries.users[rows]
    assert set(zip(users.tolist(), positives.tolist(), strict=True)) == pairs_in(batch)
    assert set(zip(users.tolist(), negatives[:, 0].tolist(), strict=True)) == set(drawn_in(batch))
    uneven = Interactions.from_pairs([0, 0, 1, 1, 1], [0, 1, 0, 1, 2], 2, 3)
    (batch,) = UserTask(uneven, ratio=1.0).draw(Epoch(0, 0, 1))
    assert batch.queries.users[batch.triples.rows].tolist() == [0, 0]
    assert batch.triples.negatives.tolist() == [[2], [2]]
    (batch,) = ItemTask(uneven).draw(Epoch(0, 0, 1))
    assert batch.triples.negatives.shape == (5, 0)
    pairs = batch_of([5, 3], [1, 2], [2, 9])
    assert [part.tolist() for part in pairs.triples] == [[0, 1], [1, 2], [[2], [9]]]


def test_the_number_of_draws_follows_the_users_items():
    """1 of 1,000 items seen: 5 draws; a user who has seen everything and one without items get none."""
    pairs = [0] + [1] * 1000, [7, *range(1000)]
    task = UserTask(Interactions.from_pairs(*pairs, 3, 1000), ratio=5.0)
    assert task._draws.tolist() == [5, 0, 0]
    (batch,) = task.draw(Epoch(0, 0, 1))
    assert sorted(batch.queries.users.tolist()) == [0, 1]
    assert {user for user, _ in drawn_in(batch)} == {0}
    assert len(drawn_in(batch)) <= 5


def test_negatives_are_uniform():
    """4 unseen items, one draw an epoch."""
    task = UserTask(Interactions.from_pairs([0], [2], 1, 5), ratio=1.0)
    drawn = [int(task.draw(Epoch(index, 0, 1))[0].negatives) for index in range(4000)]
    assert (np.bincount(drawn, minlength=5) / 4000).tolist() == pytest.approx([0.25, 0.25, 0, 0.25, 0.25], abs=0.025)


def test_every_item_once_with_all_its_users(toy):
    task = ItemTask(toy.train, batch_size=32)
    batches = task.draw(Epoch(0, 0, 1))
    drawn = list(batches)
    assert len(drawn) == task.n_batches == 3
    items = [torch.unique(b.positives) for b in drawn]
    assert [i.shape[0] for i in items] == [32, 32, 16]
    assert sorted(torch.cat(items).tolist()) == list(range(80))
    for batch, own in zip(drawn, items, strict=True):
        wanted = {(u, i) for u in range(50) for i in toy.train.row(u).tolist() if i in set(own.tolist())}
        assert pairs_in(batch) == wanted
        assert batch.positives.shape[0] == len(wanted)
        assert torch.equal(batch.queries.rows, torch.unique(batch.queries.rows))
        assert torch.equal(batch.item_roles[0], own)
        assert batch.item_roles[1].eq(1).all()
    assert not torch.equal(drawn[0].positives, task.draw(Epoch(1, 0, 1))[0].positives)


def test_items_that_nobody_has_seen_are_in_no_batch():
    task = ItemTask(Interactions.from_pairs([0, 1], [1, 1], 2, 4))
    assert task.n_rows == 1
    assert pairs_in(task.draw(Epoch(0, 0, 1))[0]) == {(0, 1), (1, 1)}


def test_pair_batches_answer_the_same_questions():
    batch = batch_of([5, 3, 5], [1, 2, 2], [2, 9, 9])
    assert batch.positive_rows.tolist() == [0, 1, 2]
    assert batch.negative_rows.tolist() == [0, 1, 2]
    users = torch.tensor([4, 6])
    wide = Batch(Queries(users, users), users, torch.arange(6).view(2, 3))
    assert drawn_in(wide) == [(4, 0), (4, 1), (4, 2), (6, 3), (6, 4), (6, 5)]


@pytest.mark.parametrize("kind", [UserTask, ItemTask])
def test_wrong_use_is_refused(kind, toy):
    with pytest.raises(ConfigError, match="batch_size is 0"):
        kind(toy.train, batch_size=0)
    with pytest.raises(DataError, match="no training pair"):
        kind(Interactions.from_pairs([], [], 2, 3))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=30), st.lists(st.integers(0, 5), max_size=8))
def test_pairs_of_rows(pairs, rows):
    users, items = ([p[k] for p in pairs] for k in (0, 1))
    seen = Interactions.from_pairs(users, items, 6, 9)
    place, columns = seen.pairs_of(np.array(rows, np.int64))
    expected = [(at, item) for at, row in enumerate(rows) for item in seen.row(row).tolist()]
    assert list(zip(place.tolist(), columns.tolist(), strict=True)) == expected
    some = seen.rows(rows)
    assert some == Interactions.from_pairs(*(zip(*expected, strict=True) if expected else ([], [])), len(rows), 9)
    assert (some.indptr.dtype, some.indices.dtype) == (np.int64, np.int32)
    assert not some.indptr.flags.writeable
    assert not some.indices.flags.writeable


def test_pair_task_is_what_models_get_unless_they_say_otherwise(toy):
    from kdrs.models import BPR

    task = BPR.make_task(BPR.Config(), toy.train, batch_size=7, n_negatives=2, layout="rows")
    assert isinstance(task, PairTask)
    assert (task.batch_size, task.n_negatives, task.layout) == (7, 2, "rows")


@pytest.mark.parametrize("layout", ["triples", "rows"])
def test_users_drawn_uniformly(layout: str):
    degrees = np.array([1, 30, 0, 4, 9])
    users = np.repeat(np.arange(5), degrees)
    items = np.concatenate([np.arange(degree) for degree in degrees])
    task = PairTask(
        Interactions.from_pairs(users, items, 5, 40), batch_size=16, n_negatives=2, layout=layout, draws="users"
    )
    asked, pairs, seen = np.zeros(5), np.zeros((5, 40)), task.seen.to_csr().toarray() > 0
    for index in range(60):
        batches = task.draw(Epoch(index, 0, 99))
        assert torch.equal(batches[1].positives, list(batches)[1].positives)
        for batch in batches:
            owner, positive = batch.queries.users.numpy(), batch.positives.numpy()
            assert np.array_equal(task.row_users[batch.places.numpy()], owner)
            assert batch.negatives.shape[1] == (1 if layout == "triples" else 2)
            assert not seen[np.repeat(owner, batch.negatives.shape[1]), batch.negatives.flatten().numpy()].any()
            np.add.at(asked, owner, 1)
            np.add.at(pairs, (owner, positive), 1)
    total = 60 * task.n_rows
    assert asked.sum() == total
    assert asked[2] == 0
    share = asked[[0, 1, 3, 4]] / total
    assert abs(share - 0.25).max() < 5 * (0.25 * 0.75 / total) ** 0.5
    own = pairs[4, :9] / asked[4]
    assert abs(own - 1 / 9).max() < 5 * (1 / 9 / asked[4]) ** 0.5
    assert pairs[4, 9:].sum() == 0
    with pytest.raises(ConfigError, match="draws is 'both'"):
        PairTask(task.seen, draws="both")


@pytest.mark.parametrize("form", ["csr", "coo"])
def test_matrices_of_scipy_are_taken_as_they_are(form):
    seen, other = (Interactions.from_pairs([0, 1, 1], columns, 3, 9) for columns in ([0, 1, 2], [3, 4, 5]))
    matrix, held = (pairs.to_csr().asformat(form) for pairs in (seen, other))
    assert np.array_equal(PairTask(matrix).seen.indices, seen.indices)
    made = Dataset.from_interactions(matrix, test=held)
    assert made.fingerprint == Dataset.from_interactions(seen, test=other).fingerprint
    for wrong in ([[0, 1]], np.eye(3)):
        with pytest.raises(DataError, match="or a SciPy sparse matrix"):
            PairTask(wrong)
        with pytest.raises(DataError, match="or a SciPy sparse matrix"):
            Dataset.from_interactions(seen, test=wrong)
