"""Rows 9 to 11, 15 to 20 and 28 to 32 of the table of faults: ids, pairs, splits, files, evaluation. One test or more a row."""

from __future__ import annotations

import io
import logging
import os
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from kdrs import Evaluator, Interactions
from kdrs.core import ranking, sampling
from kdrs.data import Dataset, Recipe, Table, draw_candidates, prepare, read
from kdrs.data import _text as text_module
from kdrs.errors import ConfigError, DataError, MachineError


def write(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content)
    return folder / name


def rows_of(n_users: int = 12, n_items: int = 30, seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    return Table.from_pairs(rng.integers(0, n_users, 20 * n_users), rng.integers(0, n_items, 20 * n_users))


# 9: ids past 32 or 64 bits, negative ids


def test_fault_09_ids_in_files_are_strings_and_never_overflow(tmp_path):
    ids = ["99999999999999999999", "-5", str(2**31), str(2**63), "007", "7"]
    table = read(write(tmp_path, "a.csv", "user,item\n" + "".join(f"{name},1\n" for name in ids)))
    assert list(table.user_ids) == ids


@pytest.mark.parametrize("bad", [-1, 2**31 - 1, 2**31, 2**63 - 1, 2**32])
def test_fault_09_dense_ids_are_checked_before_anything_is_allocated(bad):
    tracemalloc.start()
    for users, items in (([0, bad], [0, 1]), ([0, 1], [0, bad])):
        with pytest.raises(DataError, match=r"is negative|does not fit int32|an index takes"):
            Interactions.from_pairs(users, items)
        with pytest.raises(DataError, match=r"is negative|does not fit int32|past the stated size"):
            Interactions.from_pairs(users, items, 2, 2)
    with pytest.raises(DataError, match="item ids run from"):
        Interactions(np.array([0, 1]), np.array([bad]), (1, 5))  # 2**32 is 0 in 32 bits
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7
    with pytest.raises(DataError, match="does not fit int32"):
        Interactions.from_pairs(np.array([0, 2**64 - 1], np.uint64), [0, 1])


# 10: one huge id


def test_fault_10_one_huge_id_allocates_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", users=np.array([10**12, 5]), items=np.array([1, 2]))
    coo = sp.coo_array((np.ones(1), ([2**31 - 2], [2**31 - 2])), shape=(2**31 - 1, 2**31 - 1))
    sp.save_npz(tmp_path / "m.npz", coo)
    tracemalloc.start()
    assert list(read(tmp_path / "a.npz").user_ids) == ["1000000000000", "5"]
    assert read(tmp_path / "m.npz").n_rows == 1
    with pytest.raises(DataError, match=r"ids run to 1999999999, and there are 1 pairs: an index takes 16.0 GB"):
        Interactions.from_pairs([1_999_999_999], [0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7


def test_fault_10_stated_sizes_are_compared_with_the_memory(monkeypatch):
    from kdrs.data import checks

    monkeypatch.setattr(checks, "memory", lambda: 10**9)
    for make in (
        lambda: Interactions.from_pairs([0], [0], 2**30, 5),
        lambda: Interactions.from_csr(sp.coo_array(([1.0], ([0], [0])), shape=(2**30, 5))),
        lambda: sampling.negatives(sp.coo_array(([1.0], ([0], [0])), shape=(2**30, 5)), np.zeros(1, np.int64), seed=0),
    ):
        with pytest.raises(MachineError, match=r"1,073,741,824 users and 5 items take 8\.6 GB"):
            make()


# 11: pairs that come twice


def test_fault_11_repeated_pairs_are_collapsed_by_a_rule_and_counted(tmp_path, caplog):
    text = "user,item,rating,timestamp\n" + "".join(f"u{n % 4},i{n},3,{n}\n" for n in range(40)) + "u0,i0,5,99\n"
    path = write(tmp_path, "a.csv", text)
    for rule, left in (("first", 1), ("last", 1), ("max", 1), ("sum", 1)):
        data = prepare(read(path, time_unit="order"), Recipe(duplicates=rule))
        assert data.full.n_pairs == 40
        assert next(step for step in data.steps if "duplicates" in step)["duplicates"] == left
    with pytest.raises(DataError, match="user u0 and item i0 come twice"):
        prepare(read(path, time_unit="order"), Recipe(duplicates="error"))
    twice = sp.coo_array((np.ones(3), ([0, 0, 1], [1, 1, 2])), shape=(2, 3))
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        assert Interactions.from_csr(twice).n_pairs == 2
    assert "1 places are stored twice and count once" in caplog.text


def test_fault_11_a_pair_in_two_parts_is_an_error_or_a_warning(tmp_path, caplog):
    train = write(tmp_path, "train.csv", "user,item\na,x\na,y\n")
    test = write(tmp_path, "test.csv", "user,item\na,x\n")
    with pytest.raises(DataError, match="1 pairs are in train and in test, first user a item x") as caught:
        prepare({"train": train, "test": test})
    assert "--allow-leak" in str(caught.value.remedy)
    with caplog.at_level(logging.WARNING, "kdrs.data"):
        prepare({"train": train, "test": test}, Recipe(split="given", allow_leak=True))
    assert "1 pairs are in train and in test" in caplog.text


# 15: k-core


@pytest.mark.parametrize("k", [5, 2**31 - 1])
def test_fault_15_a_core_that_leaves_nothing_names_the_step(k):
    chain = Table.from_pairs(list(range(10)) + list(range(10)), list(range(10)) + list(range(1, 11)))
    with pytest.raises(DataError, match=rf"step '{k}-core' leaves nothing of 20 rows \(10 users, 11 items\)"):
        prepare(chain, Recipe(k_core=k))


def test_fault_15_a_core_is_a_fixed_point():
    # taking out a user makes an item small, which makes a user small: ten rounds
    chain = Table.from_pairs([*range(10), *range(10), 20, 20, 21, 21], [*range(10), *range(1, 11), 30, 31, 30, 31])
    data = prepare(chain, Recipe(k_core=2, split="last-n", n_valid=0))
    assert (data.n_users, data.n_items) == (2, 2)
    assert next(step for step in data.steps if "rounds" in step)["rounds"] > 5


@pytest.mark.parametrize("name", ["k_core", "min_user", "min_item", "n_valid", "n_test", "candidates", "seed"])
@pytest.mark.parametrize("value", [-1, 2**31, 10**30, 1.5, True, "5"])
def test_fault_15_numbers_end_where_the_rest_of_the_program_can_read_them(name, value):
    with pytest.raises(ConfigError, match=rf"{name.replace('_', '-')} is"):
        Recipe(**{name: value})


def test_fault_15_a_huge_number_of_candidates_allocates_nothing():
    tracemalloc.start()
    with pytest.warns(UserWarning, match="fewer than 2,147,483,647 unseen items"):
        data = prepare(rows_of(), Recipe(candidates=2**31 - 1))
    assert data.candidates is not None
    assert data.candidates.shape[1] <= data.n_items
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


# 16: users with few items


def test_fault_16_users_with_one_or_two_items_stay_in_train_and_are_counted():
    table = Table.from_pairs(["a", "b", "b", *"cccc"], [*"x", *"xy", *"wxyz"])
    data = prepare(table, Recipe())
    step = next(step for step in data.steps if "users_in_train_only" in step)
    assert step["users_in_train_only"] == 2
    assert data.train.row_degrees.tolist() == [1, 2, 2]
    report = Evaluator.of(data, "default", ks=(2,))((np.ones((3, 1)), np.arange(4.0)[:, None]))["test"]
    assert (report.n, report.n_queries, report.to_json()["n"]) == (1, 3, 1)
    everyone = Evaluator.of(data, "default", ks=(2,), average="all-queries")((np.ones((3, 1)), np.arange(4.0)[:, None]))
    assert everyone["test"].n == 3
    assert everyone["test"].mean("recall@2") == pytest.approx(report.mean("recall@2") / 3)


# 17: items and users of the held-out parts alone


def cold_parts(tmp_path: Path) -> dict[str, Path]:
    return {
        "train": write(
            tmp_path, "train.csv", "user,item\n" + "".join(f"u{u},i{i}\n" for u in range(3) for i in range(4))
        ),
        "valid": write(tmp_path, "valid.csv", "user,item\nu0,i9\nnew,i0\n"),
        "test": write(tmp_path, "test.csv", "user,item\nu1,i9\nnew,i1\nnewer,i9\n"),
    }


def test_fault_17_cold_users_and_items_are_kept_and_counted(tmp_path):
    data = prepare(cold_parts(tmp_path))
    facts = data.describe()
    assert (facts["cold_users"], facts["cold_items"]) == (2, 1)
    assert facts["cold_pairs"] == {"valid": 1, "test": 2}
    assert data.steps[-1]["users_not_in_train"] == 2
    # an item that is not trained on stays a target, and counts as a miss of who does not find it
    factors = (np.ones((data.n_users, 1)), -np.arange(float(data.n_items))[:, None])
    report = Evaluator.of(data, ks=(1,))(factors)["test"]
    assert report.n == 3


@pytest.mark.parametrize("split", ["given", "time"])
def test_fault_17_cold_users_may_be_left_out(tmp_path, split):
    if split == "given":
        source, steps = cold_parts(tmp_path), 3
    else:
        users = [*("abcd" * 5), *("ab" * 4), "new", "new"]
        source, steps = Table.from_pairs(users, list(range(30)), times=list(range(30))), 2
    kept, dropped = (prepare(source, Recipe(split=split, cold_users=policy)) for policy in ("keep", "drop"))
    assert kept.n_cold_users > 0
    assert dropped.n_cold_users == 0
    assert dropped.split["cold_users"] == "drop"
    step = next(step for step in dropped.steps if "cold_user_pairs_left_out" in step)
    assert step["cold_user_pairs_left_out"] == kept.full.n_pairs - dropped.full.n_pairs == steps
    with pytest.raises(ConfigError, match="unknown cold users maybe"):
        Recipe(cold_users="maybe")


def test_fault_17_training_warns_of_cold_users(tmp_path):
    from kdrs.runs.config import resolve
    from kdrs.runs.execute import execute

    prepare(cold_parts(tmp_path)).save(tmp_path / "d")
    config = resolve(
        {
            "data": {"path": str(tmp_path / "d")},
            "model": {"name": "bpr", "dim": 2},
            "train": {"epochs": 1},
            "device": "cpu",
            "threads": 1,
        }
    )
    with pytest.warns(UserWarning, match="2 users of the held-out parts have no training pair.*--cold-users drop"):
        execute(config, tmp_path / "run")


# 18: users.dat


def test_fault_18_a_count_that_is_wrong_is_told_with_its_line(tmp_path):
    good = [f"3 {n} {n + 1} {n + 2}\n" for n in range(20)]
    assert read(write(tmp_path, "users.dat", "".join(good))).n_rows == 60
    for bad in ("2 1 2 3\n", "4 1 2 3\n"):
        with pytest.raises(DataError, match=r"users.dat:11: .*1 2 3"):
            read(write(tmp_path, "users.dat", "".join([*good[:10], bad, *good[10:]])))


def test_fault_18_repeats_in_a_line_are_told_with_it(tmp_path):
    path = write(tmp_path, "users.dat", "".join(f"4 {n} {n + 1} {n + 2} {n}\n" for n in range(20)))
    with pytest.raises(DataError, match=r"users.dat:1: item 0 comes twice: 4 0 1 2 0"):
        prepare(path)


# 19: files that change, pipes, directories


def test_fault_19_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, "a.csv", "user,item\na,x\n")
    real = os.stat

    def growing(name, *args, **kwargs):
        if str(name) == str(path):
            path.write_text("user,item\na,x\na,y\n")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(text_module.os, "stat", growing)
    with pytest.raises(DataError, match="changed while it was read"):
        read(path)


def test_fault_19_pipes_are_read_and_directories_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("user,item\na,x\nb,y\n"))
    writer.start()
    assert read(pipe, "csv").n_rows == 2
    writer.join()
    with pytest.raises(DataError, match="is a directory"):
        read(tmp_path, "csv")


def test_fault_19_a_pipe_in_a_data_set_is_refused_and_not_waited_for(tmp_path):
    place = prepare(rows_of()).save(tmp_path / "d")
    for name in ("users.json", "interactions.safetensors", "dataset.json"):
        content = (place / name).read_bytes()
        (place / name).unlink()
        os.mkfifo(place / name)
        with pytest.raises(DataError, match=f"{name} is no file"):
            Dataset.load(place)
        (place / name).unlink()
        (place / name).write_bytes(content)
    Dataset.load(place)


# 20: objects and announced sizes


def test_fault_20_objects_are_never_unpickled(tmp_path):
    marker = tmp_path / "marker"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    np.save(tmp_path / "a.npy", np.array([[Bomb(), 1]], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", users=np.array([Bomb()], object), items=np.array([1]))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match="pickle"):
            read(tmp_path / name)
    assert not marker.exists()


def test_fault_20_sizes_that_are_announced_take_no_memory(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<i8", "fortran_order": False, "shape": (2**40, 2)})
    (tmp_path / "a.npy").write_bytes(buffer.getvalue() + b"\0" * 64)
    tracemalloc.start()
    with pytest.raises(DataError, match="announces"):
        read(tmp_path / "a.npy")
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


# 28: a target that is hidden because it was trained on


def test_fault_28_a_target_that_is_in_train_too_is_named():
    train, test = Interactions.from_pairs([0, 1], [0, 1], 2, 5), Interactions.from_pairs([1], [1], 2, 5)
    with pytest.raises(DataError, match="test pairs are also in train, the first is user 1, item 1"):
        Evaluator(train, test)
    with pytest.raises(DataError, match="1 pairs are in train and in test, first user 1 item 1"):
        Dataset.from_interactions(train, test=test)
    report = Evaluator(train, test, leaks="miss", ks=(5,))((np.ones((2, 1)), np.ones((5, 1))))["test"]
    assert report.mean("recall@5") == 0


# 29: blocks and threads


@pytest.mark.parametrize("stored", [0, 7])
def test_fault_29_blocks_and_threads_change_no_byte(stored):
    data = prepare(rows_of(90, 60), Recipe(candidates=stored))
    rng = np.random.default_rng(1)
    factors = rng.integers(-2, 3, (data.n_users, 4)) / 2, rng.integers(-2, 3, (data.n_items, 4)) / 2  # many ties
    found = set()
    for block in (1, 7, 64, data.n_users):
        for threads in (1, 2, 8):
            report = Evaluator.of(data, ks=(3, 10), block=block, threads=threads)(factors)["test"]
            found.add(b"".join(values.tobytes() for values in report.values.values()))
    assert len(found) == 1


# 30: candidates


def test_fault_30_candidates_are_stored_seeded_by_user_and_named(tmp_path):
    data = Dataset.load(prepare(rows_of(), Recipe(candidates=6, seed=3)).save(tmp_path / "d"))
    assert data.split["candidates"] == 6
    assert np.array_equal(data.candidates, draw_candidates(data.full, 6, 3))
    # the draw of a user depends on nobody else
    alone = Interactions.from_pairs(np.zeros(data.full.row(0).size, int), data.full.row(0), 1, data.n_items)
    assert np.array_equal(draw_candidates(alone, 6, 3)[0], data.candidates[0])
    evaluator = Evaluator.of(data, ks=(5,))
    factors = np.ones((data.n_users, 1)), np.arange(float(data.n_items))[:, None]
    assert set(evaluator(factors)["test"].to_json()["metrics"]) >= {"hit@5 sampled(6)", "ndcg@5 sampled(6)"}
    for bad in ([[1, 1]], [[-1, 1]], [[0, data.n_items]], [[0, -2]]):
        with pytest.raises(DataError, match="the candidate list of user 0"):
            Evaluator(data.train, data.test, candidates=np.repeat(bad, data.n_users, 0))


# 31: no table of users x items


def test_fault_31_memory_of_an_evaluation_does_not_grow_with_users_x_items():
    n = 30_000  # a table of scores would take 3.6 GB
    rng = np.random.default_rng(0)
    train = Interactions.from_pairs(np.arange(n), rng.integers(0, n // 2, n), n, n)
    test = Interactions.from_pairs(np.arange(0, n, 10), rng.integers(n // 2, n, n // 10), n, n)
    evaluator = Evaluator(train, test, ks=(10,), metrics=("ndcg",))
    factors = rng.normal(size=(n, 2)).astype(np.float32), rng.normal(size=(n, 2)).astype(np.float32)
    tracemalloc.start()
    evaluator(factors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e8


# 32: row ends of 64 bits, types of SciPy's arrays


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_fault_32_row_ends_of_either_width_are_read(kind):
    seen = Interactions.from_pairs([0, 1, 1], [2, 0, 1], 2, 3)
    matrix = seen.to_csr()
    matrix.indptr, matrix.indices = matrix.indptr.astype(kind), matrix.indices.astype(kind)
    assert Interactions.from_csr(matrix) == seen
    assert seen.indptr.dtype == np.int64
    assert seen.indices.dtype == np.int32


@pytest.mark.parametrize(
    ("indptr", "indices", "match"),
    [
        ([0, 1, 2**33], [0, 1, 2], "indptr does not describe 2 rows of 3 pairs"),  # in 32 bits 2^33 is 0
        ([0, 2**32, 3], [0, 1, 2], "indptr does not describe"),
        ([0, 3, 2], [0, 1, 2], "indptr does not describe"),
        ([-1, 1, 3], [0, 1, 2], "indptr does not describe"),
        ([0, 1], [0, 1, 2], "indptr does not describe"),
        ([0, 1, 3], [0, 1, 2**32], "item ids run from 0 to 4294967296"),
        ([0, 1, 3], [0, -1, 2], "item ids run from -1"),
    ],
)
def test_fault_32_broken_row_ends_are_refused_everywhere(indptr, indices, match):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matrix = sp.csr_array((2, 3))
        matrix.data = np.ones(3, np.float32)
        matrix.indptr, matrix.indices = np.array(indptr, np.int64), np.array(indices, np.int64)
    truth = Interactions.from_pairs([0], [0], 2, 3)
    for door in (
        lambda: Interactions.from_csr(matrix),
        lambda: Interactions(matrix.indptr, matrix.indices, (2, 3)),
        lambda: Evaluator(matrix, truth),
        lambda: Evaluator(truth, matrix),
        lambda: sampling.negatives(matrix, np.zeros(1, np.int64), seed=0),
        lambda: ranking.metrics(np.array([[0], [1]]), matrix, [1]),
        lambda: ranking.topk(np.ones((2, 1)), np.ones((3, 1)), 1, seen=matrix),
    ):
        with pytest.raises(DataError, match=match):
            door()
