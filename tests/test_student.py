"""The student file and what it answers, against plain NumPy."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdrs
from kdrs.compact.encoders import RidgeEncoder, SumEncoder, asked
from kdrs.compact.tables import Tables, short
from kdrs.core.codes import Codes
from kdrs.core.names import Names
from kdrs.errors import ConfigError, DataError, KdrsError, MissingKnowledge
from kdrs.student import Student

N_USERS, N_ITEMS, DIM = 23, 40, 6


def made(bits: int = 32, *, encoded: bool = False, bias: bool = True, seen: bool = True, seed: int = 0) -> Student:
    rng = np.random.default_rng(seed)
    users, items = (rng.normal(size=(n, DIM)).astype(np.float32) for n in (N_USERS, N_ITEMS))
    pairs = kdrs.Interactions.from_pairs(*np.nonzero(rng.random((N_USERS, N_ITEMS)) < 0.2), N_USERS, N_ITEMS)
    side, own = (items, users) if bits == 32 else (short(Codes.of(items, bits)), short(Codes.of(users, bits)))
    encoder = SumEncoder(rng.normal(size=(DIM, DIM)).astype(np.float32)) if encoded else RidgeEncoder()
    counts = pairs.column_degrees
    best = np.argsort(-counts, kind="stable")[:15].astype(np.int32)
    return Student(
        Tables(side, None if encoded else own, encoder, rng.normal(size=N_ITEMS).astype(np.float32) if bias else None),
        Names.of([f"item {n}" for n in range(N_ITEMS)], "item"),
        Names.of([f"ü{n}" for n in range(N_USERS)], "user") if seen or not encoded else None,
        seen=pairs if seen else None,
        popular=best,
        popular_counts=counts[best].astype(np.int32),
        card={"schema": 1, "bytes": 5},
        readme="# A card\n",
    )


def scores_of(student: Student, rows: np.ndarray) -> np.ndarray:
    """[users, items], float64; of codes exactly their products."""
    tables = student.tables
    queries = (
        tables.users[rows]
        if tables.users is not None
        else asked(tables.encoder, rows_of(student.seen, rows), tables.items)
    )
    parts = [side.turned() if isinstance(side, Codes) else side for side in (queries, tables.items)]
    scores = parts[0].astype(np.float64) @ parts[1].astype(np.float64).T
    return scores if tables.bias is None else scores + tables.bias


def rows_of(pairs: kdrs.Interactions, rows: np.ndarray) -> kdrs.Interactions:
    row, column = pairs.pairs_of(rows)
    return kdrs.Interactions.from_pairs(row, column, len(rows), pairs.shape[1])


def ids(student: Student, items: np.ndarray) -> list[str]:
    return [student.items[int(item)] for item in items]


@pytest.mark.filterwarnings("ignore:.*item ids are unknown")
@given(
    st.sampled_from([1, 2, 3, 4, 8, 32]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
    st.integers(1, N_ITEMS),
    st.data(),
)
@settings(max_examples=120)
def test_lists_are_those_of_the_scores(bits, encoded, bias, seed, k, data):
    """Allow lists, block lists and what was seen, for all or each user's own."""
    student, rng = made(bits, encoded=encoded, bias=bias, seed=seed % 7), np.random.default_rng(seed)
    rows = rng.choice(N_USERS, rng.integers(1, 12), replace=False)
    rows = rows[student.seen.row_degrees[rows] > 0]
    names = [student.users[int(row)] for row in rows]
    scores, allowed = scores_of(student, rows), np.ones((len(rows), N_ITEMS), bool)
    options = {}
    how = data.draw(st.sampled_from(["none", "all", "own"]))
    if how != "none":
        chosen = rng.random((1 if how == "all" else len(rows), N_ITEMS)) < 0.5
        chosen[:, int(rng.integers(N_ITEMS))] = True
        allowed &= chosen
        lists = [[*ids(student, np.flatnonzero(row)), "nobody's"] for row in chosen]
        options["items"] = lists[0] if how == "all" else lists
    how = data.draw(st.sampled_from(["none", "all", "own"]))
    if how != "none":
        blocked = rng.random((1 if how == "all" else len(rows), N_ITEMS)) < 0.2
        allowed &= ~blocked
        lists = [ids(student, np.flatnonzero(row)) for row in blocked]
        options["exclude"] = lists[0] if how == "all" else lists
    how = data.draw(st.sampled_from([True, False, "given"]))
    if how is True:
        for place, row in enumerate(rows):
            allowed[place, student.seen.row(int(row))] = False
    elif how == "given":
        hidden = rng.random((len(rows), N_ITEMS)) < 0.3
        allowed &= ~hidden
        how = [ids(student, np.flatnonzero(row)) for row in hidden]
    found = student.recommend(names, k, seen=how, **options)
    for place, row in enumerate(found.places):
        best = row[row >= 0]
        assert len(best) == min(k, int(allowed[place].sum())) == found.counts[place]
        assert allowed[place, best].all()
        assert len(set(best.tolist())) == len(best)
        mine = np.sort(np.where(allowed[place], scores[place], -np.inf))[::-1][: len(best)]
        assert np.allclose(scores[place, best], mine, atol=1e-4)
        assert np.allclose(found.scores[place, : len(best)], mine, atol=1e-4)
        assert (
            student.score([names[place]] * len(best), ids(student, best)).tolist()
            == found.scores[place, : len(best)].tolist()
        )
    assert found.n_short == int((found.counts < k).sum())
    if len(rows):
        one = student.recommend(names[:1], k, seen=how if isinstance(how, bool) else how[:1], **{
            name: value if isinstance(value[0], str) else value[:1] for name, value in options.items() if value
        })  # fmt: skip
        assert one.places.tolist() == found.places[:1].tolist()
        assert one.scores.tobytes() == found.scores[:1].tobytes()


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("encoded", [True, False])
def test_a_file_answers_as_what_it_was_made_of(tmp_path, bits, encoded):
    student = made(bits, encoded=encoded)
    size = student.save(tmp_path / "s.safetensors")
    assert size == (tmp_path / "s.safetensors").stat().st_size
    again = Student.load(tmp_path / "s.safetensors")
    assert (again.card, again.readme, again.nbytes) == (student.card, student.readme, student.nbytes)
    one, other = (s.recommend(["ü3", "ü4"], 7) for s in (student, again))
    assert one.columns()["item"].tolist() == other.columns()["item"].tolist()
    assert one.scores.tobytes() == other.scores.tobytes()
    histories = [["item 3", "item 9"], ["item 1"]]
    new = [s.recommend(histories=histories, k=5).scores.tobytes() for s in (student, again)]
    assert new[0] == new[1]
    again.save(tmp_path / "t.safetensors")
    assert (tmp_path / "s.safetensors").read_bytes() == (tmp_path / "t.safetensors").read_bytes()
    rows = again.tables.items.data if bits == 4 else again.tables.items
    assert not rows.flags.writeable
    assert not rows.flags.owndata  # mapped


def test_other_libraries_read_the_file(tmp_path):
    from safetensors.numpy import load_file

    made(32).save(tmp_path / "s.safetensors")
    tensors = load_file(tmp_path / "s.safetensors")
    assert tensors["items_vectors"].shape == (N_ITEMS, DIM)
    assert np.array_equal(tensors["items_vectors"], made(32).tables.items)


def test_frames():
    found = made().recommend(["ü1", "ü2"], 3)
    frame = found.to_polars()
    assert frame.columns == ["user", "item", "score", "rank"]
    assert frame["rank"].to_list() == [1, 2, 3, 1, 2, 3]
    assert frame["item"].to_list() == [item for _, items in found for item, _ in items]
    assert made().recommend([], 3).to_polars().shape == (0, 4)
    pandas = pytest.importorskip("pandas")
    assert isinstance(found.to_pandas(), pandas.DataFrame)


def test_the_callers_ids_come_back():
    student = Student(made().tables, made().items, Names.of([str(n) for n in range(N_USERS)], "user"), seen=made().seen)
    found = student.recommend(np.array([3, 5]), 2)
    assert found.users.tolist() == [3, 5]
    assert student.recommend(["3", "5"], 2).places.tolist() == found.places.tolist()


def test_fault_40_unknown_users():
    student = made()
    with pytest.raises(DataError, match="2 of 3 users are unknown, first x"):
        student.recommend(["ü1", "x", "y"])
    skipping = student.recommend(["x", "ü1", "y"], 3, unknown="skip")
    assert (skipping.users.tolist(), list(skipping.skipped)) == (["ü1"], ["x", "y"])
    popular = student.recommend(["x", "ü1"], 4, unknown="popular", exclude=[student.items[int(student.popular[0])]])
    assert popular.popular.tolist() == [True, False]
    assert popular.places[0].tolist() == student.popular[1:5].tolist()
    assert popular.scores[0].tolist() == student.popular_counts[1:5].tolist()
    own = student.recommend(["x", "ü1"], 4, unknown="popular", items=[ids(student, student.popular[3:5]), ["item 0"]])
    assert own.places[0].tolist() == [*student.popular[3:5].tolist(), -1, -1]


def test_fault_40_unknown_items_are_told():
    """Of how many, and the first; what is unknown means nothing."""
    student = made()
    for how, words in (
        ({"exclude": ["x", "item 1"]}, "exclude: 1 of 2 item ids are unknown, first x: they block nothing"),
        ({"exclude": [["item 1"], ["x", "y"]]}, "exclude: 2 of 3 item ids are unknown, first x: they block nothing"),
        ({"seen": [["x"], []]}, "seen: 1 of 1 item ids are unknown, first x: they leave nothing out"),
        ({"items": ["item 1", "x"]}, "items: 1 of 2 item ids are unknown, first x: no list can hold them"),
        ({"items": [["item 1", "x"], []]}, "items: 1 of 2 item ids are unknown"),
    ):
        with pytest.warns(UserWarning, match=words) as told:
            student.recommend(list(student.users)[:2], 3, **how)
        assert [one.filename for one in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student.recommend(list(student.users)[:2], 3, exclude=["item 1"], seen=[[], ["item 2"]])


def test_histories():
    student = made(4, encoded=True)
    row = int(np.argmax(student.seen.row_degrees))
    history = ids(student, student.seen.row(row))
    known, new = student.recommend([student.users[row]], 5), student.recommend(histories=[history], k=5)
    assert known.scores.tobytes() == new.scores.tobytes()
    assert known.places.tolist() == new.places.tolist()
    assert student.recommend(["me"], 5, histories=[history]).users.tolist() == ["me"]
    with pytest.raises(DataError, match="history me is empty"):
        student.recommend(["me"], 5, histories=[[]])
    assert student.recommend(["me"], 5, histories=[[]], unknown="popular").popular.all()
    with pytest.raises(DataError, match="histories: 1 of 2 item ids are unknown, first nothing"):
        student.recommend(histories=[["item 1", "nothing"]])
    some = student.recommend(histories=[["item 1", "nothing"]], unknown="skip")
    assert some.places.tolist() == student.recommend(histories=[["item 1"]]).places.tolist()
    with pytest.raises(DataError, match="history 1 is empty"):
        student.fold_in([["item 1"], []])
    sparse = rows_of(student.seen, np.array([row]))
    assert student.recommend(histories=sparse, k=5).scores.tobytes() == new.scores.tobytes()
    assert student.recommend(histories=sparse.to_csr(), k=5).scores.tobytes() == new.scores.tobytes()


@pytest.mark.parametrize("bits", [32, 3])
def test_histories_of_items_that_nobody_had(bits):
    """Their vectors are 0, and so is the sum: nothing is known, as of an empty history."""
    student = made(bits, encoded=True, bias=False)
    items = student.tables.items
    scale = np.ones(N_ITEMS, np.float32)
    scale[[3, 4]] = 0
    if bits == 32:
        items = items * scale[:, None]
    else:
        items = Codes.from_parts(items.data, items.scales * scale, bits, DIM, seed=items.seed)
    student.tables = student.tables._replace(items=items)
    mixed, blank = ["item 1", "item 3"], ["item 3", "item 4"]
    with pytest.raises(DataError, match="history you has only items that nobody had in training"):
        student.recommend(["me", "you"], 5, histories=[mixed, blank])
    assert student.recommend(["me", "you"], 5, histories=[mixed, blank], unknown="skip").skipped == ["you"]
    found = student.recommend(["me", "you"], 5, histories=[mixed, blank], unknown="popular")
    assert found.popular.tolist() == [False, True]
    assert found.scores[1].tolist() == student.popular_counts[~np.isin(student.popular, [3, 4])][:5].tolist()
    with pytest.warns(UserWarning, match="nothing was learnt of 1 of 2 items: their lists say nothing"):
        student.similar(["item 1", "item 3"], 3)
    student.seen = kdrs.Interactions.from_pairs([0, 1, 1], [1, 3, 4], N_USERS, N_ITEMS)
    with pytest.warns(UserWarning, match="nothing was learnt of 2 of 3 users: their scores say nothing"):
        student.score(["ü0", "ü1", "ü2"], ["item 1"] * 3)
    plain = made(bits, encoded=True, bias=True)
    plain.tables = plain.tables._replace(items=items)
    assert plain.recommend(histories=[blank]).n_short == 0  # by the bias


@pytest.mark.parametrize("bits", [32, 3])
def test_users_of_whom_nothing_was_learnt(bits):
    """Of a table of users those whose vector is 0, where no bias ranks: known by name alone."""
    student = made(bits, bias=False)
    users, scale = student.tables.users, np.ones(N_USERS, np.float32)
    scale[5] = 0
    users = (
        users * scale[:, None]
        if bits == 32
        else Codes.from_parts(users.data, users.scales * scale, bits, DIM, seed=users.seed)
    )
    student.tables = student.tables._replace(users=users)
    with pytest.raises(DataError, match="user ü5 is one of whom nothing was learnt"):
        student.recommend(["ü1", "ü5"], 5)
    with pytest.warns(UserWarning, match="nothing was learnt of 1 of 2 users: their scores say nothing") as told:
        student.score(["ü1", "ü5"], ["item 1", "item 1"])
    assert [one.filename for one in told] == [__file__]
    found = student.recommend(["ü1", "ü5", "x"], N_ITEMS, unknown="popular")
    assert found.popular.tolist() == [False, True, True]
    for place, seen in (1, student.seen.row(5)), (2, []):  # popular or not, nobody gets what she has
        left = student.popular[~np.isin(student.popular, seen)].tolist()
        assert found.places[place, : len(left) + 1].tolist() == [*left, -1]


@pytest.mark.parametrize("bits", [32, 3])
def test_neighbours(bits):
    student = made(bits)
    side = student.tables.items.turned() if bits == 3 else student.tables.items
    unit = side / np.linalg.norm(side, axis=1, keepdims=True)
    cosines = unit @ unit.T
    found = student.similar(["item 7", "item 9"], 6)
    for place, item in enumerate((7, 9)):
        cosines[item, item] = -np.inf
        assert np.allclose(found.scores[place], np.sort(cosines[item])[::-1][:6], atol=1e-5)
        assert item not in found.places[place]
    assert student.similar_users(["ü1"], 3).items.tolist()[0][0] in list(student.users)
    with pytest.raises(MissingKnowledge, match="users have no table"):
        made(encoded=True).similar_users(["ü1"])


@pytest.mark.parametrize(
    ("ask", "kind", "message"),
    [
        (lambda s: s.recommend(["ü1"], 0), ConfigError, "k is 0"),
        (lambda s: s.recommend(["ü1"], N_ITEMS + 1), ConfigError, "k is 41\nallowed: 1 to 40"),
        (lambda s: s.recommend(["ü1"], True), ConfigError, "k is True"),
        (lambda s: s.recommend("ü1"), ConfigError, "users is ü1"),
        (lambda s: s.recommend(), ConfigError, "neither users nor histories"),
        (lambda s: s.recommend(["ü1"], unknown="ignore"), ConfigError, "unknown is ignore"),
        (lambda s: s.recommend([1.5]), DataError, "an id is 1.5"),
        (lambda s: s.recommend(["ü1"], items=["x", "y"]), DataError, "items: none of the 2 ids is known"),
        (lambda s: s.recommend(["ü1"], items=[]), DataError, "items: none of the 0 ids is known"),
        (lambda s: s.recommend(["ü1"], seen=[["item 1"], []]), ConfigError, "seen are 2 lists for 1 users"),
        (lambda s: s.recommend(["ü1", "ü2"], histories=[["item 1"]]), ConfigError, "histories are 1 lists for 2 users"),
        (lambda s: s.recommend(histories=["item 1"]), ConfigError, "histories holds item 1"),
        (lambda s: s.recommend(histories="item 1"), ConfigError, "histories is item 1"),
        (lambda s: s.recommend(histories=np.eye(3)), KdrsError, ""),
        (lambda s: s.recommend(histories=kdrs.Interactions.from_pairs([0], [0], 1, 3)), DataError, "are of 3 items"),
        (lambda s: s.similar(["x"]), DataError, "1 of 1 items are unknown, first x"),
        (lambda s: s.similar(["item 1"], metric="euclidean"), ConfigError, "metric is euclidean"),
        (lambda s: s.score(["ü1"], ["x"]), DataError, "item x is unknown"),
        (lambda s: s.score(["ü1"], ["item 1", "item 2"]), ConfigError, "items are 2 for 1 users"),
        (lambda s: s.score(["x"], ["item 1"]), DataError, "users are unknown, first x\nleave them out"),
        (lambda s: s.score({"ü1", "ü2"}, ["item 1"] * 2), ConfigError, "users is a set, which has no order"),
        (lambda s: s.score(["ü1", "ü2"], {"item 1", "item 2"}), ConfigError, "items is a set, which has no order"),
        (lambda s: s.score(["ü1"], [{"item 1", "item 2"}]), ConfigError, "items is a set, which has no order"),
        (lambda s: s.recommend({"ü1", "ü2"}, seen=[["item 1"], []]), ConfigError, "users is a set"),
        (lambda s: s.recommend({"ü1", "ü2"}, histories=[["item 1"], []]), ConfigError, "users is a set"),
        (lambda s: s.recommend(["ü1", "ü2"], exclude={("item 1",), ("item 2",)}), ConfigError, "exclude is a set"),
        (lambda s: s.fold_in([["x"]]), DataError, "item ids are unknown, first x"),
    ],
)
def test_wrong_questions(ask, kind, message):
    with pytest.raises(kind) as error:
        ask(made())
    assert message in str(error.value)
    assert error.value.remedy


def test_what_a_file_does_not_hold():
    student = made(seen=False)
    with pytest.raises(MissingKnowledge, match="does not know what users have seen"):
        student.recommend(["ü1"])
    assert student.recommend(["ü1"], seen=False).places.shape == (1, 20)
    with pytest.raises(MissingKnowledge, match="knows no users, only histories"):
        made(encoded=True, seen=False).recommend(["ü1"])
    bare = Student(made().tables._replace(encoder=None), made().items, made().users)
    with pytest.raises(MissingKnowledge, match="has no encoder"):
        bare.fold_in([["item 1"]])


def test_no_torch_is_needed(tmp_path):
    """Importing torch raises, and nothing asks for it."""
    made(4).save(tmp_path / "s.safetensors")
    code = f"""
import importlib.util
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):  # Polars looks whether there is one
        return importlib.util.spec_from_loader(name, self) if name.split(".")[0] == "torch" else None

    def create_module(self, spec):
        raise ImportError("no torch here")

sys.meta_path.insert(0, Refuse())
import kdrs

student = kdrs.Student.load({str(tmp_path / "s.safetensors")!r})
print(student.recommend(["ü1"], 3).to_polars())
print(student.recommend(histories=[["item 1", "item 2"]], k=3, items=["item 5"]).places, student.similar(["item 1"], 2))
student.score(["ü1"], ["item 1"]), student.fold_in([["item 1"]]), student.similar_users(["ü1"])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["ridge", "sum"])
@pytest.mark.parametrize("bits", [32, 2])
def test_a_user_is_encoded_alike_in_any_company(kind, bits):
    """To the last bit: parts that several machines make are those of one."""
    student = made(bits, encoded=kind == "sum")
    rng = np.random.default_rng(1)
    sizes = [1, 2, 3, 3, 30, 5, 11, 11, 2, 1, 38]  # some longer than the dimension
    histories = [ids(student, rng.choice(N_ITEMS, size, replace=False)) for size in sizes]
    whole = student.fold_in(histories)
    for place, history in enumerate(histories):
        alone = student.fold_in([history])
        parts = (alone, whole[place : place + 1])
        one, other = ((p.data.tobytes(), p.scales.tobytes()) if bits == 2 else p.tobytes() for p in parts)
        assert one == other
