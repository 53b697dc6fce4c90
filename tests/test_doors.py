"""One rule for every door: what a file is refused for, arrays, frames, matrices and lists are refused for in the same words."""

from __future__ import annotations

import logging

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

from commands import runner
from kdrs import Evaluator, Interactions
from kdrs.core import ranking, sampling
from kdrs.data import Dataset, Recipe, Table, from_frame, prepare, read
from kdrs.errors import ConfigError, DataError

USERS, ITEMS = [0, 0, 1], [0, 1, 2]
TRUTH = Interactions.from_pairs([1], [0], 2, 3)


def matrix_of(values, kind=sp.csr_array):
    return kind(sp.coo_array((np.array(values), (USERS, ITEMS)), shape=(2, 3)))


def csv_of(values, folder, name="a.csv"):
    rows = "".join(f"{user},{item},{value}\n" for user, item, value in zip(USERS, ITEMS, values, strict=True))
    (folder / name).write_text("user,item,rating\n" + rows)
    return folder / name


def arrays_of(values, folder):
    np.savez(folder / "arrays.npz", users=np.array(USERS), items=np.array(ITEMS), ratings=np.array(values))
    return folder / "arrays.npz"


def saved_of(values, folder):
    sp.save_npz(folder / "matrix.npz", matrix_of(values).tocsr())
    return folder / "matrix.npz"


def frame_of(values):
    return pl.DataFrame({"user": USERS, "item": ITEMS, "rating": values})


READERS = {
    "csv": lambda values, folder, **options: read(csv_of(values, folder), **options),
    "arrays": lambda values, folder, **options: read(arrays_of(values, folder), **options),
    "matrix file": lambda values, folder, **options: read(saved_of(values, folder), **options),
    "frame": lambda values, folder, **options: from_frame(frame_of(values), **options),
    "pairs": lambda values, folder, **options: Table.from_pairs(USERS, ITEMS, ratings=values, **options),
}
MATRICES = {
    "from_csr": Interactions.from_csr,
    "negatives": lambda m: sampling.negatives(m, np.zeros(4, np.int64), seed=0),
    "outside": lambda m: sampling.outside(m, np.array([[0], [0]], np.int32), 1, seed=0),
    "topk": lambda m: ranking.topk(np.ones((2, 1)), np.ones((3, 1)), 1, seen=m),
    "topk of scores": lambda m: ranking.topk_scores(np.ones((2, 3)), 1, seen=m),
    "ranks": lambda m: ranking.ranks(np.ones((2, 1)), np.ones((3, 1)), m),
    "metrics": lambda m: ranking.metrics(np.array([[0], [1]]), m, [1]),
    "seen of an evaluator": lambda m: Evaluator(m, TRUTH, ks=(1,)),
    "truth of an evaluator": lambda m: Evaluator(TRUTH, m, ks=(1,)),
    "earlier of an evaluator": lambda m: Evaluator(
        Interactions.from_pairs([], [], 2, 3), {"test": TRUTH}, ks=(1,), earlier={"test": m}
    ),
}
BAD = {"negative": -1.0, "NaN": float("nan"), "infinite": float("inf"), "negative infinity": -float("inf")}
WORDS = {"negative": "negative", "NaN": "NaN", "infinite": "infinite", "negative infinity": "infinite"}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("door", READERS)
def test_values_that_are_no_ratings_are_refused_by_readers(tmp_path, door, value):
    with pytest.raises(DataError, match=f"rating is {WORDS[value]}"):
        READERS[door]([1.0, BAD[value], 1.0], tmp_path)


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csr_array, sp.csc_array, sp.coo_array, sp.lil_array, sp.dok_array])
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("door", MATRICES)
def test_values_that_are_no_ratings_are_refused_of_matrices(door, value, kind):
    with pytest.raises(DataError, match=f"user 0, item 1: rating is {WORDS[value]}"):
        MATRICES[door](matrix_of([1.0, BAD[value], 1.0], kind))


def test_likes_and_dislikes_of_whole_numbers_and_of_one_pair():
    with pytest.raises(DataError, match=r"user 0, item 1: rating is negative: -1"):
        Interactions.from_csr(matrix_of(np.array([1, -1, 1], np.int8)))
    both = sp.coo_matrix((np.array([1.0, -1.0, 1.0]), ([0, 0, 1], [1, 1, 2])), shape=(2, 3))  # they sum to 0
    with pytest.raises(DataError, match="rating is negative"):
        Interactions.from_csr(both)
    for values in (np.ones(3, complex), np.array([1, None, 1], object)):
        broken = matrix_of([1.0, 1.0, 1.0])
        broken.data = values
        with pytest.raises(DataError, match="allowed: real numbers"):
            Interactions.from_csr(broken)
    assert Interactions.from_csr(matrix_of(np.array([True, True, True]))).n_pairs == 3
    assert Interactions.from_csr(matrix_of(np.array([1, 2, 3], np.uint8))).n_pairs == 3


@pytest.mark.parametrize("door", READERS)
def test_zero_is_not_rated_in_every_form(tmp_path, caplog, door):
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        table = READERS[door]([1.0, 0.0, 3.0], tmp_path)
    assert table.interactions().n_pairs == 2
    assert table.steps[-1]["zeros"] == 1
    assert "1 of 3 rows are rated 0 and left out" in caplog.text
    kept = READERS[door]([1.0, 0.0, 3.0], tmp_path, zeros="keep")
    assert kept.interactions().n_pairs == 3
    assert not any("zeros" in step for step in kept.steps)
    with pytest.raises(DataError, match=r"rated 0: not rated \(--zeros keep.* leaves nothing of 3 rows"):
        READERS[door]([0.0, 0.0, -0.0], tmp_path)
    with pytest.raises(ConfigError, match="unknown zeros maybe"):
        READERS[door]([1.0, 0.0, 3.0], tmp_path, zeros="maybe")


def test_zeros_of_every_form_give_one_data_set(tmp_path):
    rng = np.random.default_rng(0)
    cells = rng.choice(200, 90, replace=False)
    users, items, ratings = cells // 20, cells % 20, rng.integers(0, 4, 90).astype(float)
    assert 5 < (ratings == 0).sum() < 60
    found = set()
    for zeros in ("drop", "keep"):
        frame = pl.DataFrame({"user": users, "item": items, "rating": ratings})
        frame.write_csv(tmp_path / "a.csv")
        np.savez(tmp_path / "a.npz", users=users, items=items, ratings=ratings)
        matrix = sp.coo_array((ratings, (users, items)), shape=(10, 20)).tocsr()
        sp.save_npz(tmp_path / "m.npz", matrix)
        sizes = [prepare(read(tmp_path / name, zeros=zeros)).full.n_pairs for name in ("a.csv", "a.npz", "m.npz")]
        sizes += [from_frame(frame, zeros=zeros).n_rows, Interactions.from_csr(matrix, zeros=zeros).n_pairs]
        assert len(set(sizes)) == 1
        found.add(sizes[0])
    assert found == {90, int((ratings > 0).sum())}


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csc_array, sp.coo_array])
def test_zeros_of_matrices_are_told(caplog, kind):
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        assert Interactions.from_csr(matrix_of([1.0, 0.0, 1.0], kind)).n_pairs == 2
    assert "1 places hold 0 and are left out" in caplog.text


def test_unsorted_and_repeated_places_of_a_matrix(caplog):
    unsorted = sp.csr_array((np.ones(3), np.array([2, 0, 1]), np.array([0, 2, 3])), shape=(2, 3))
    assert Interactions.from_csr(unsorted) == Interactions.from_pairs([0, 0, 1], [0, 2, 1], 2, 3)
    assert unsorted.indices.tolist() == [2, 0, 1]  # not changed
    twice = sp.csr_array((np.ones(3), np.array([2, 2, 1]), np.array([0, 2, 3])), shape=(2, 3))
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        assert Interactions.from_csr(twice).n_pairs == 2
    assert "1 places are stored twice and count once" in caplog.text
    lying = sp.csr_array((np.ones(3), np.array([2, 0, 1]), np.array([0, 2, 3])), shape=(2, 3))
    lying.has_canonical_format = True
    assert Interactions.from_csr(lying) == Interactions.from_csr(unsorted)


LISTS = {
    "an item twice": ([[0, 1, 0]], "holds an item twice: 0"),
    "an id past the catalogue": ([[0, 5, 1]], "holds an item outside 0 to 4: 5"),
    "a negative id": ([[0, -2, 1]], "holds an item outside 0 to 4: -2"),
    "padding in the middle": ([[0, -1, 1]], "is padded with -1 in the middle"),
}
MANY = Interactions.from_pairs([0], [4], 1, 5)
NONE = Interactions.from_pairs([], [], 1, 5)
TAKERS = {
    "metrics": lambda lists: ranking.metrics(lists, MANY, [3]),
    "lists for an evaluator": lambda lists: Evaluator(NONE, MANY, ks=(3,))(lists),
    "candidates of an evaluator": lambda lists: Evaluator(NONE, MANY, ks=(3,), candidates=lists),
    "candidates of a data set": lambda lists: Dataset.from_interactions(MANY, candidates=lists),
}


@pytest.mark.parametrize("case", LISTS)
@pytest.mark.parametrize("taker", TAKERS)
def test_lists_are_checked_by_one_rule(taker, case):
    lists, words = LISTS[case]
    for kind in (np.int32, np.int64):
        with pytest.raises(DataError, match=f"list of (query|user) 0 {words}"):
            TAKERS[taker](np.array(lists, kind))


def test_no_metric_passes_one():
    values = ranking.metrics(
        np.array([[4, 0, -1], [-1, -1, -1]]), Interactions.from_pairs([0, 1], [4, 0], 2, 5), [2, 3]
    )
    assert all(0 <= value <= 1 for found in values.values() for value in found)


# Arrays that come in and go out


def test_what_the_caller_does_to_arrays_afterwards_changes_nothing():
    indptr, indices = np.array([0, 2, 3]), np.array([0, 1, 2], np.int32)
    seen = Interactions(indptr, indices, (2, 3))
    candidates, order = np.array([[2, -1], [0, 1]], np.int32), np.array([1, 0, 2], np.int32)
    data = Dataset.from_interactions(seen, candidates=candidates, order=order)
    before = data.fingerprint
    for array in (indptr, indices, candidates, order):
        array[:] = 0
    assert Interactions.from_pairs([0, 0, 1], [0, 1, 2], 2, 3) == seen
    again = Dataset.from_interactions(seen, candidates=data.candidates, order=data.order)
    assert again.fingerprint == before
    for array in (seen.indptr, seen.indices, data.candidates, data.order):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_floats_are_no_ids():
    with pytest.raises(DataError, match="item ids are float64; allowed: integers"):
        Interactions(np.array([0, 1]), np.array([0.5]), (1, 3))
    with pytest.raises(DataError, match="indptr does not describe"):
        Interactions(np.array([0.0, 1.0]), np.array([0]), (1, 3))


def test_arrays_that_go_out_are_the_callers_own():
    seen = Interactions.from_pairs([0, 0, 1], [0, 1, 2], 2, 3)
    matrix = seen.to_csr()
    assert matrix.format == "csr"
    assert (matrix.data.dtype, matrix.indices.dtype, matrix.indptr.dtype) == (np.float32, np.int32, np.int32)
    for part in (matrix.data, matrix.indices, matrix.indptr):
        assert part.flags.writeable
    matrix.indices[:] = 0
    matrix.indptr[:] = 0
    assert seen == Interactions.from_pairs([0, 0, 1], [0, 1, 2], 2, 3)
    other = seen.to_csr()
    other.sort_indices()
    other.eliminate_zeros()
    other.sum_duplicates()
    assert other.nnz == 3
    assert Interactions.from_csr(other) == seen


def random_train() -> Interactions:
    rng = np.random.default_rng(0)
    return Interactions.from_pairs(rng.integers(0, 50, 600), rng.integers(0, 40, 600), 50, 40)


def test_implicit_takes_a_data_set_as_it_is():
    als = pytest.importorskip("implicit.als")
    bpr = pytest.importorskip("implicit.bpr")
    matrix = random_train().to_csr()
    for model in (
        als.AlternatingLeastSquares(factors=4, iterations=2, use_gpu=False),
        bpr.BayesianPersonalizedRanking(factors=4, iterations=2, use_gpu=False),
    ):
        model.fit(matrix, show_progress=False)
        ids, _ = model.recommend(0, matrix[0], 3)
        assert not set(ids.tolist()) & set(random_train().row(0).tolist())


def test_irspack_takes_a_data_set_as_it_is():
    irspack = pytest.importorskip("irspack")
    matrix = random_train().to_csr()
    for recommender in (irspack.TopPopRecommender(matrix), irspack.IALSRecommender(matrix, n_components=4)):
        recommender.learn()
        assert recommender.get_score_remove_seen(np.arange(3)).shape == (3, 40)
    assert "hit" in irspack.Evaluator(matrix, cutoff=5).get_score(recommender)


def test_names_and_steps_of_a_data_set_do_not_drive_the_terminal(tmp_path):
    from kdrs.cli import app

    steps = ({"step": "a\x1b[31m", "\x1b]0;x\x07": "\x1b"},)
    data = Dataset.from_interactions(MANY, name="\x1b[31mRED\n", split={"kind": "\x1b", "x": "\u202e"}, steps=steps)
    data.save(tmp_path / "d")
    result = runner().invoke(app, ["data", "describe", str(tmp_path / "d")])
    assert result.exit_code == 0
    assert all(line.isprintable() for line in result.output.splitlines())
    assert "\\x1b[31mRED\\n" in result.output


def test_no_negative_zero_is_written(tmp_path):
    recipe = Recipe(split="ratio", fractions=(0.5, -0.0, 0.5), min_rating=-0.0)
    rng = np.random.default_rng(0)
    table = Table.from_pairs(rng.integers(0, 9, 90), rng.integers(0, 25, 90), ratings=rng.integers(1, 5, 90))
    place = prepare(table, recipe).save(tmp_path / "d")
    assert b"-0.0" not in (place / "dataset.json").read_bytes()
    assert Dataset.load(place).fingerprint == prepare(table, recipe).fingerprint
