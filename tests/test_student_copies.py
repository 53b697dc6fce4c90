"""A student in other processes and in copies: the same answers, and nothing twice. Lists of no stated length."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from commands import fails, ok
from kdrs.compact.tables import Tables
from kdrs.core.names import Names
from kdrs.student import Student
from test_student import N_ITEMS, made

HOW = {
    "fresh": lambda s: None,
    "after lists": lambda s: s.recommend(["ü1"], 5),
    "after neighbours": lambda s: s.similar(["item 1"], 5),
    "after all": lambda s: (s.recommend(["ü1"], 5), s.similar(["item 1"], 5), s.score(["ü1"], ["item 1"])),
}


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("bits", [2, 32])
@pytest.mark.parametrize("how", HOW)
def test_a_copy_answers_alike(tmp_path, how, bits, encoded, opened):
    student = made(bits, encoded=encoded)
    if opened:  # its tables are then mapped from the file
        student.save(tmp_path / "s")
        student = Student.load(tmp_path / "s")
    size = len(pickle.dumps(student))
    HOW[how](student)
    held = pickle.dumps(student)
    assert len(held) == size  # what is worked out of the tables stays behind
    if opened:
        (tmp_path / "s").unlink()
    users, items = list(student.users)[:5], ["item 1"] * 5
    for one in (pickle.loads(held), copy.deepcopy(student), copy.copy(student)):
        assert one.fingerprint() == student.fingerprint()
        assert (one.card, one.readme) == (student.card, student.readme)
        for ask in (
            lambda s: s.recommend(users, 7),
            lambda s: s.recommend(histories=[["item 1", "item 3"]], k=7),
            lambda s: s.similar(["item 2", "item 1"], 7),
        ):
            found, wanted = ask(one), ask(student)
            assert np.array_equal(found.places, wanted.places)
            assert found.scores.tobytes() == wanted.scores.tobytes()
            assert pickle.loads(pickle.dumps(found)).items.tolist() == wanted.items.tolist()
        assert one.score(users, items).tobytes() == student.score(users, items).tobytes()
        one.save(tmp_path / "again")
        student.save(tmp_path / "before")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "before").read_bytes()


def small(n_items: int, n_users: int = 25) -> Student:
    rng = np.random.default_rng(0)
    users, items = (rng.normal(size=(n, 3)).astype(np.float32) for n in (n_users, n_items))
    names = (Names.of([str(n) for n in range(size)], kind) for size, kind in ((n_items, "item"), (n_users, "user")))
    return Student(Tables(items, users, None, None), *names)


@pytest.mark.parametrize(("n_items", "listed", "near"), [(N_ITEMS, 20, 20), (12, 12, 11), (1, 1, 1)])
def test_lists_of_no_stated_length_fit_the_catalogue(n_items, listed, near):
    student = small(n_items)
    assert student.recommend(["3"], seen=False).places.shape == (1, listed)
    assert student.similar(["0"]).places.shape == (1, near)
    assert student.similar_users(["0"]).places.shape == (1, 20)


def test_so_do_those_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small(12).save(tmp_path / "tiny.safetensors")
    ask = ("recommend", "tiny.safetensors", "--seen", "none", "--out")
    ok(*ask, "stated.csv", "--k", 12)
    ok(*ask, "whole.csv")
    ok(*ask, "parts.csv", "--part", "1/2")
    ok(*ask, "parts.csv", "--part", "2/2", "--k", 12)  # the same question
    ok("recommend", "--merge", "--out", "parts.csv")
    wanted = (tmp_path / "stated.csv").read_bytes()
    assert wanted.count(b"\n") == 1 + 25 * 12
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "parts.csv").read_bytes() == wanted
    (lists,) = ok("similar", "tiny.safetensors", "--item", "3", "--json").document["lists"]
    assert len(lists["items"]) == 11
    assert "k is 13" in fails(2, *ask, "x.csv", "--k", 13)
