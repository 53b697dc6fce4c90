"""Filters, splits and candidates against slow and obvious rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrs.data import (
    PRESETS,
    Dataset,
    Interactions,
    Options,
    Recipe,
    Table,
    draw_candidates,
    filters,
    prepare,
    read,
    splits,
)
from kdrs.data import candidates as candidates_module
from kdrs.errors import ConfigError, DataError

FEW = settings(max_examples=30, deadline=None)
THIRDS = (0.6, 0.2, 0.2)

rows = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(1, 5), st.integers(0, 20)), min_size=1, max_size=60
)
distinct = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30)), min_size=1, max_size=80, unique=True)


def table_of(rows) -> Table:
    columns = list(zip(*rows, strict=True))
    ratings, times = (columns[2], columns[3]) if len(columns) > 2 else (None, None)
    return Table.from_pairs(columns[0], columns[1], ratings=ratings, times=times)


def rows_of(table: Table) -> list[tuple[str, str]]:
    return [(table.user_ids[u], table.item_ids[i]) for u, i in zip(table.users, table.items, strict=True)]


def by_user(table: Table, part: np.ndarray) -> dict[str, dict[int, list[str]]]:
    """The items of each user and part, oldest first."""
    found: dict[str, dict[int, list[str]]] = {}
    for row in table.sequence():
        user, item = table.user_ids[table.users[row]], table.item_ids[table.items[row]]
        found.setdefault(user, {0: [], 1: [], 2: [], -1: []})[int(part[row])].append(item)
    return found


# Filters


@FEW
@given(rows, st.sampled_from(["first", "last", "max", "sum"]))
def test_collapse_keeps_the_stated_row(rows, rule):
    table = filters.collapse(table_of(rows), rule)
    kept: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for place, (user, item, rating, time) in enumerate(rows):
        kept.setdefault((user, item), []).append((time, place, rating))
    expected = {}
    for (user, item), found in kept.items():
        found.sort()
        rating = {"first": found[0][2], "last": found[-1][2]}.get(rule)
        rating = max(r for *_, r in found) if rule == "max" else rating
        rating = sum(r for *_, r in found) if rule == "sum" else rating
        expected[str(user), str(item)] = rating
    assert dict(zip(rows_of(table), table.ratings, strict=True)) == expected
    assert table.n_rows == len(expected)
    assert table.steps[-1]["duplicates"] == len(rows) - len(expected)


def test_collapse_can_refuse_duplicates():
    table = Table.from_pairs(["a", "b", "a"], ["x", "x", "x"])
    with pytest.raises(DataError, match=r"user a and item x come twice \(row 3\)"):
        filters.collapse(table, "error")
    with pytest.raises(ConfigError, match="needs ratings"):
        filters.collapse(table, "max")


@FEW
@given(distinct, st.integers(1, 4))
def test_k_core_is_the_largest_one(pairs, k):
    left = set(pairs)
    while True:
        users, items = [u for u, _ in left], [i for _, i in left]
        smaller = {(u, i) for u, i in left if users.count(u) >= k and items.count(i) >= k}
        if smaller == left:
            break
        left = smaller
    if not left:
        with pytest.raises(DataError, match=f"step '{k}-core' leaves nothing of {len(pairs)} rows"):
            filters.k_core(table_of(pairs), k)
    else:
        table = filters.k_core(table_of(pairs), k)
        assert set(rows_of(table)) == {(str(u), str(i)) for u, i in left}
        assert table.steps[-1]["dropped"] == len(pairs) - len(left)


def test_steps_count_what_they_drop():
    table = Table.from_pairs([1, 1, 1, 2, 2, 3], [1, 2, 3, 1, 2, 9], ratings=[5, 4, 1, 5, 5, 5])
    table = filters.min_per_item(filters.min_per_user(filters.min_rating(table, 4), 2), 2)
    assert [(step["step"], step["after"]["rows"]) for step in table.steps] == [
        ("read pairs", 6),
        ("rating >= 4", 5),
        ("users with at least 2 rows", 4),
        ("items with at least 2 rows", 4),
    ]
    assert table.steps[2]["before"] == {"users": 3, "items": 3, "rows": 5}
    with pytest.raises(DataError, match=r"step 'rating >= 6' leaves nothing of 6 rows \(3 users, 4 items\)"):
        prepare(Table.from_pairs([1, 1, 1, 2, 2, 3], [1, 2, 3, 1, 2, 9], ratings=[5] * 6), Recipe(min_rating=6))
    with pytest.raises(ConfigError, match="no rating column is read"):
        filters.min_rating(Table.from_pairs([1], [1]), 4)


# Splits


@FEW
@given(distinct, st.integers(0, 3))
def test_leave_one_out_holds_out_one_and_one(pairs, seed):
    table = table_of(pairs)
    split = splits.leave_one_out(table, seed)
    short = 0
    for user, parts in by_user(table, split.part).items():
        n = sum(str(u) == user for u, _ in pairs)
        assert (len(parts[1]), len(parts[2]), len(parts[0])) == ((1, 1, n - 2) if n >= 3 else (0, 0, n))
        short += n < 3
    assert split.facts["users_in_train_only"] == short


@FEW
@given(distinct, st.randoms(use_true_random=False))
def test_random_splits_do_not_depend_on_the_order_of_the_rows(pairs, random):
    shuffled = pairs.copy()
    random.shuffle(shuffled)
    first, second = (table_of(rows).compact("numeric") for rows in (pairs, shuffled))
    for split in (lambda table: splits.leave_one_out(table, 5), lambda table: splits.ratio(table, THIRDS, 5)):
        parts = [dict(zip(rows_of(table), split(table).part.tolist(), strict=True)) for table in (first, second)]
        assert parts[0] == parts[1]


def test_leave_one_out_draws_uniformly():
    table = Table.from_pairs(np.repeat(np.arange(4000), 5), np.tile(np.arange(5), 4000))
    part = splits.leave_one_out(table, 1).part
    for code in (splits.VALID, splits.TEST):
        shares = np.bincount(table.items[part == code], minlength=5) / 4000
        assert np.abs(shares - 0.2).max() < 4 * np.sqrt(0.2 * 0.8 / 4000)
    other = splits.leave_one_out(table, 2).part
    assert 0.1 < np.mean(table.items[part == 2] == table.items[other == 2]) < 0.3


@FEW
@given(distinct)
def test_ratio_counts(pairs):
    table = table_of(pairs)
    split = splits.ratio(table, THIRDS, 0)
    for user, parts in by_user(table, split.part).items():
        n = sum(str(u) == user for u, _ in pairs)
        assert (len(parts[1]), len(parts[2])) == (n * 2 // 10, n * 2 // 10)


@FEW
@given(distinct)
def test_ordered_split_is_fr_811(pairs):
    table = table_of(pairs)
    split = splits.ordered(table, (0.8, 0.1, 0.1))
    for user, parts in by_user(table, split.part).items():
        mine = [str(i) for u, i in pairs if str(u) == user]
        n = len(mine)
        train, valid = max(8 * n // 10, 1), max(9 * n // 10, 1)
        assert (parts[0], parts[1], parts[2]) == (mine[:train], mine[train:valid], mine[valid:])


@FEW
@given(rows, st.sampled_from(["test", "valid"]))
def test_last_n_follows_time_then_file(rows, last):
    table = filters.collapse(table_of(rows))
    split = splits.last_n(table, 1, 2, last=last)
    for user, parts in by_user(table, split.part).items():
        mine = [(table.times[r], r) for r in range(table.n_rows) if table.user_ids[table.users[r]] == user]
        items = [table.item_ids[table.items[row]] for _, row in sorted(mine)]
        if len(items) <= 3:
            assert parts[0] == items
        elif last == "test":
            assert (parts[0], parts[1], parts[2]) == (items[:-3], items[-3:-2], items[-2:])
        else:
            assert (parts[0], parts[2], parts[1]) == (items[:-3], items[-3:-1], items[-1:])


@FEW
@given(rows)
def test_split_by_time_never_trains_on_the_future(rows):
    table = filters.collapse(table_of(rows))
    try:
        split = splits.by_time(table, (0.5, 0.25, 0.25))
    except DataError:
        assert np.sort(table.times)[table.n_rows // 2] == table.times.min()
        return
    times = [table.times[split.part == code] for code in (0, 1, 2)]
    for earlier, later in ((0, 1), (0, 2), (1, 2)):
        if times[earlier].size and times[later].size:
            assert times[earlier].max() < times[later].min()


def test_splits_refuse_what_they_cannot_do():
    table = Table.from_pairs([1, 1, 1], [1, 2, 3])
    with pytest.raises(ConfigError, match="needs timestamps"):
        splits.by_time(table, (0.8, 0.1, 0.1))
    with pytest.raises(ConfigError, match="add up to 1"):
        Recipe(fractions=(0.5, 0.1, 0.1))
    with pytest.raises(DataError, match="holds nothing out: 2 pairs of 1 users"):
        prepare(Table.from_pairs([1, 1], [1, 2]))
    with pytest.raises(ConfigError, match="did you mean 'leave-one-out'"):
        Recipe(split="leave-on-out")


def test_short_users_stay_in_train_or_are_dropped():
    table = Table.from_pairs(["a", "a", "a", "b"], ["x", "y", "z", "x"])
    kept = prepare(table)
    assert (list(kept.users), kept.steps[-1]["users_in_train_only"]) == (["a", "b"], 1)
    dropped = prepare(table, Recipe(short_users="drop"))
    assert list(dropped.users) == ["a"]
    assert dropped.steps[-2]["dropped"] == 1


def test_hetcomp_leaves_out_cold_items_and_incomplete_users():
    rng = np.random.default_rng(0)
    pairs = {(int(u), int(i)) for u, i in zip(rng.integers(0, 20, 300), rng.integers(0, 60, 300), strict=True)}
    data = prepare(table_of(sorted(pairs)), Recipe(**PRESETS["hetcomp"]))
    trained = data.train.column_degrees > 0
    for part in (data.valid, data.test):
        assert trained[part.indices].all()
    assert np.array_equal(data.valid.row_degrees > 0, data.test.row_degrees > 0)
    assert data.steps[-1]["left_out"] > 0


# Candidates


@FEW
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 5), st.data())
def test_candidates_are_distinct_unseen_and_padded(n_items, n, seed, data):
    degrees = data.draw(st.lists(st.integers(0, n_items), min_size=1, max_size=8))
    n = min(n, n_items)
    rng = np.random.default_rng(seed)
    seen = [rng.choice(n_items, degree, replace=False) for degree in degrees]
    users = np.repeat(np.arange(len(degrees)), degrees)
    full = Interactions.from_pairs(users, np.concatenate(seen), len(degrees), n_items)
    drawn = draw_candidates(full, n, seed)
    assert drawn.dtype == np.int32
    for row, mine in zip(drawn, seen, strict=True):
        unseen = set(range(n_items)) - set(mine.tolist())
        found = row[row >= 0].tolist()
        assert found == sorted(set(found))
        assert set(found) <= unseen
        assert len(found) == min(n, len(unseen))
        assert (row[len(found) :] == -1).all()


def test_candidates_do_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(3)
    users, items = rng.integers(0, 50, 2000), rng.integers(0, 200, 2000)
    full = Interactions.from_pairs(users, items, 50, 200)
    for n in (30, 120):
        whole = draw_candidates(full, n, 7)
        monkeypatch.setattr(candidates_module, "_BLOCK", 2 * n * 3)
        assert np.array_equal(draw_candidates(full, n, 7), whole)
        monkeypatch.undo()
        assert not np.array_equal(draw_candidates(full, n, 8), whole)


@pytest.mark.parametrize(("n_items", "n"), [(40, 5), (12, 8)], ids=["rejection", "shuffle"])
def test_candidates_are_uniform(n_items, n):
    n_users = 20_000
    users, items = np.repeat(np.arange(n_users), 2), np.tile([3, 7], n_users)
    drawn = draw_candidates(Interactions.from_pairs(users, items, n_users, n_items), n, 0)
    share = n / (n_items - 2)
    shares = np.bincount(drawn.ravel(), minlength=n_items) / n_users
    assert shares[3] == shares[7] == 0
    spread = np.sqrt(share * (1 - share) / n_users)
    assert np.abs(np.delete(shares, [3, 7]) - share).max() < 4.5 * spread
    # Pairs too: two given items come together as often as drawing without replacement says.
    together = np.mean((drawn == 0).any(axis=1) & (drawn == 1).any(axis=1))
    expected = share * (n - 1) / (n_items - 3)
    assert abs(together - expected) < 4.5 * np.sqrt(expected * (1 - expected) / n_users)


def test_short_candidate_lists_are_counted():
    table = Table.from_pairs(["a"] * 4 + ["b"] * 3, [1, 2, 3, 4, 1, 2, 5])
    data = prepare(table, Recipe(candidates=2))
    assert data.candidates.tolist() == [[data.items.index(["5"])[0], -1], sorted(data.items.index(["3", "4"]))]
    assert data.steps[-1] == {"step": "2 candidates a user", "users_with_fewer": 1}


# Ready-made parts


def test_given_parts_and_leaks(tmp_path):
    paths = {part: tmp_path / f"{part}.tsv" for part in ("train", "valid", "test")}
    paths["train"].write_text("user\titem\nb\t10\nb\t9\na\t9\nb\t10\n")
    paths["valid"].write_text("user\titem\na\t10\n")
    paths["test"].write_text("user\titem\nc\t11\n")
    data = prepare(paths, Recipe(split="given", candidates=1))
    assert (list(data.users), list(data.items)) == (["b", "a", "c"], ["10", "9", "11"])
    assert data.order.tolist() == [0, 1, 1]
    assert data.steps[1]["duplicates"] == 1
    assert data.steps[-2] == {
        "step": "parts as given",
        "after": {"users": 3, "items": 3, "rows": 5},
        "users_not_in_train": 1,
        "train": 3,
        "valid": 1,
        "test": 1,
    }
    assert data.describe()["cold_pairs"] == {"valid": 0, "test": 1}
    with pytest.raises(ConfigError, match="user id b is no plain integer"):
        prepare(paths, Recipe(split="given", id_order="numeric"))
    with pytest.raises(ConfigError, match="k-core would change a ready-made split"):
        prepare(paths, Recipe(split="given", k_core=2))
    paths["test"].write_text("user\titem\nb\t10\n")
    with pytest.raises(DataError, match="1 pairs are in train and in test, first user b item 10"):
        prepare(paths, Recipe(split="given"))
    assert prepare(paths, Recipe(split="given", allow_leak=True)).test.n_pairs == 1
    with pytest.raises(ConfigError, match="one file is named for two parts"):
        prepare({"train": paths["train"], "test": paths["train"]})


def test_numeric_order(tmp_path):
    train, test = tmp_path / "train.tsv", tmp_path / "test.tsv"
    train.write_text("user\titem\n10\t2\n2\t10\n0\t1\n")
    test.write_text("user\titem\n1\t0\n")
    data = prepare({"train": train, "test": test}, Recipe(split="given", id_order="numeric"))
    assert list(data.users) == ["0", "1", "2", "10"]
    assert list(data.items) == ["0", "1", "2", "10"]
    assert isinstance(data, Dataset)
    assert data.valid.n_pairs == 0


@FEW
@given(distinct)
def test_ratio_of_users(pairs):
    table = table_of(pairs)
    split = splits.ratio_users(table, (0.5, 0.125, 0.375), 3)
    counts = np.array(
        [np.bincount(table.users[split.part == part], minlength=len(table.user_ids)) for part in range(3)]
    )
    degrees = counts.sum(0)
    assert (counts[1:].sum(0) == np.minimum(-(-degrees // 2), degrees - 1)).all()
    assert (counts[0] >= 1).all()
    assert ((counts[1] == 0) | (counts[2] == 0)).all()
    assert split.facts["users_validating"] == round(len(table.user_ids) / 4)
    assert np.array_equal(split.part, splits.ratio_users(table, (0.5, 0.125, 0.375), 3).part)


def test_ratio_of_users_holds_something_out():
    with pytest.raises(ConfigError, match="hold nothing out"):
        splits.ratio_users(table_of([(0, 0), (0, 1)]), (1.0, 0.0, 0.0), 0)


TRAIN = "user,item,timestamp\na,x,1300000300\na,y,1300000200\na,z,1300000100\nb,x,1300000000\nb,y,1300000001\n"


@pytest.mark.parametrize("test", ["user,item\na,w\nb,z\n", "user,item,time\na,w,2012-04-05\nb,z,2012-04-06\n"])
def test_given_parts_have_the_order_of_train(tmp_path, test):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "test.csv").write_text(test)
    parts = {part: tmp_path / f"{part}.csv" for part in ("train", "test")}
    data = prepare(parts)
    assert data.order_by == "time"
    assert [data.items[item] for item in data.order] == ["z", "y", "x", "x", "y"]
    whole = prepare({part: read(path) for part, path in parts.items()})  # each table has ids of its own
    assert whole.fingerprint == data.fingerprint


def test_given_tables_are_joined_by_id():
    train, test = Table.from_pairs(["a", "b"], ["x", "y"]), Table.from_pairs(["b", "a"], ["x", "y"])
    data = prepare({"train": train, "test": test})
    assert [data.test.row(data.users.index([user])[0]).tolist() for user in "ab"] == [[1], [0]]
    with pytest.raises(ConfigError, match="allowed: train"):
        prepare({"test": test})
    with pytest.raises(ConfigError, match="with a table, which is read already"):
        prepare({"train": train, "test": test}, Recipe(split="given", read=Options(user="a")))
