"""SciPy matrices of every format where pairs are taken: the answers of `Interactions`, and the matrix as it was."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import scipy.sparse

import kdrs
from kdrs.core import ranking, sampling
from test_student import N_ITEMS, N_USERS, made

N, M = 30, 200


def pairs(n: int, m: int) -> kdrs.Interactions:
    rng = np.random.default_rng(3)
    return kdrs.Interactions.from_pairs(rng.integers(0, n, 15 * n), rng.integers(0, m, 15 * n), n, m)


def unsorted(seen: kdrs.Interactions):
    """Each row's places backwards."""
    found = seen.to_csr()
    for row in range(seen.shape[0]):
        own = slice(*found.indptr[row : row + 2])
        found.indices[own] = found.indices[own][::-1].copy()
    found.has_sorted_indices = False
    return found


def wide(seen: kdrs.Interactions):
    """Of int64 ids."""
    found = scipy.sparse.csr_array(seen.to_csr())
    found.indices, found.indptr = found.indices.astype(np.int64), found.indptr.astype(np.int64)
    return found


def twice(seen: kdrs.Interactions):
    """Every place stored twice."""
    rows, columns = np.tile(seen.row_of_pair, 2), np.tile(seen.indices, 2)
    return scipy.sparse.coo_array((np.ones(len(rows)), (rows, columns)), seen.shape)


def twice_in_rows(seen: kdrs.Interactions):
    ends, places = 2 * seen.indptr, np.repeat(seen.indices, 2)
    return scipy.sparse.csr_array((np.ones(len(places)), places, ends), seen.shape)


KINDS = {
    "csr matrix": lambda seen: seen.to_csr(),
    "csr array": lambda seen: scipy.sparse.csr_array(seen.to_csr()),
    "unsorted": unsorted,
    "int64": wide,
    "twice": twice,
    "twice in rows": twice_in_rows,
    "csc matrix": lambda seen: seen.to_csr().tocsc(),
    "csc array": lambda seen: scipy.sparse.csc_array(seen.to_csr()),
    "coo matrix": lambda seen: seen.to_csr().tocoo(),
    "coo array": lambda seen: scipy.sparse.coo_array(seen.to_csr()),
    "lil matrix": lambda seen: seen.to_csr().tolil(),
    "dok array": lambda seen: scipy.sparse.dok_array(seen.to_csr()),
    "bsr matrix": lambda seen: seen.to_csr().tobsr((1, 1)),
    "bool": lambda seen: seen.to_csr().astype(bool),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def stored(matrix):
    coo = matrix.copy().tocoo()
    return coo.row.tobytes(), coo.col.tobytes(), coo.data.tobytes()


def same(one, other) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(one, other, strict=True))


def test_what_was_seen(kind):
    rng = np.random.default_rng(0)
    queries, items = (rng.normal(size=(n, 8)).astype(np.float32) for n in (N, M))
    seen = pairs(N, M)
    matrix = kind(seen)
    before = stored(matrix)
    assert same(ranking.topk(queries, items, 10, seen=matrix), ranking.topk(queries, items, 10, seen=seen))
    rows = np.array([4, 0])
    catalogue = ranking.Catalogue(items)
    for asked in ({"queries": queries}, {"queries": queries[rows], "rows": rows}):
        assert same(catalogue.topk(k=10, seen=matrix, **asked), catalogue.topk(k=10, seen=seen, **asked))
    assert same(ranking.ranks(queries, items, matrix), ranking.ranks(queries, items, seen))
    lists = ranking.topk(queries, items, 10).items
    assert same(
        ranking.metrics(lists, matrix, [5], ["ndcg"]).values(), ranking.metrics(lists, seen, [5], ["ndcg"]).values()
    )
    drawn = sampling.negatives(matrix, np.arange(N), 3, seed=1)
    assert np.array_equal(drawn, sampling.negatives(seen, np.arange(N), 3, seed=1))
    assert stored(matrix) == before


def test_a_student(kind):
    student, own = made(), pairs(N_USERS, N_ITEMS)
    matrix = kind(own)
    before = stored(matrix)
    users = list(student.users)
    for name in ("seen", "items", "exclude"):
        found = student.recommend(users, 5, **{"seen": False, name: matrix})
        expected = student.recommend(users, 5, **{"seen": False, name: own})
        assert same((found.places, found.scores), (expected.places, expected.scores))
    found, expected = (student.recommend(histories=given, k=5) for given in (matrix, own))
    assert same((found.places, found.scores), (expected.places, expected.scores))
    assert stored(matrix) == before


def test_a_large_matrix_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(sampling, "LARGE", 100)
    monkeypatch.setattr(sampling, "_TOLD", set())
    queries, items = np.ones((N, 4), np.float32), np.ones((M, 4), np.float32)
    seen = pairs(N, M)
    with caplog.at_level(logging.WARNING, "kdrs.core"):
        for _ in range(3):
            ranking.topk(queries, items, 3, seen=seen)
            ranking.topk(queries, items, 3, seen=seen.to_csr().tocsc())
            ranking.topk(queries, items, 3, seen=seen.to_csr().tocoo())
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "CSC" in told[0]
    assert "COO" in told[1]
    assert "kdrs.Interactions.from_csr(matrix)" in told[0]
    monkeypatch.setattr(sampling, "LARGE", 10_000)
    monkeypatch.setattr(sampling, "_TOLD", set())
    caplog.clear()
    ranking.topk(queries, items, 3, seen=seen.to_csr())
    assert not caplog.records
