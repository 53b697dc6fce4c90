"""Entries of a comparison as models of several seeds: their role, and what must not pass for a seed."""

from __future__ import annotations

import numpy as np
import pytest

from kdrs.comparison.compare import Entry, compare
from kdrs.errors import ConfigError
from kdrs.evaluation.report import Report

N = 300
QUERIES = np.random.default_rng(0).random(N)


def entry(name: str, role: str, gain: float = 0.0, seed: int | None = None, noise: float = 0.0) -> Entry:
    rng = np.random.default_rng([7 if seed is None else seed, len(name), ord(name[0])])
    values = QUERIES + gain + noise * rng.normal() + rng.normal(0, 0.02, N)
    return Entry(name, role, {"test": Report({"ndcg@10": values}, np.arange(N))}, seed=seed, n_bytes=100)


def test_one_seed_that_teaches_makes_a_model_a_teacher():
    runs = [entry("big", "teacher" if seed == 1 else "alone", 0.3, seed) for seed in range(3)]
    runs += [
        entry(name, role, gain, seed)
        for name, role, gain in (("s", "student", 0.1), ("a", "alone", 0))
        for seed in (0, 1)
    ]
    found = compare(runs)
    big, student, alone = found.lines
    assert (found.teacher, found.baseline, big.role) == ("big", "a", "teacher")
    assert (big.standings, alone.baseline) == ({}, None)
    assert student.transfer["ndcg@10"].ratio is not None
    assert "Best by ndcg@10: s" in found.text()


def test_who_is_named_as_the_teacher_is_one():
    runs = [entry("a", "alone"), entry("big", "alone", 0.3), entry("s", "student", 0.1)]
    found = compare(runs, teacher="big")
    assert [line.role for line in found.lines] == ["alone", "teacher", "student"]
    assert found.lines[1].standings == {}
    assert [line.baseline for line in found.lines] == [None, "a", "a"]


def test_a_model_is_not_alone_and_a_student():
    with pytest.raises(
        ConfigError, match="s is both alone and student, and entries of one name are seeds of one model"
    ):
        compare([entry("s", "student", seed=0), entry("s", "alone", seed=1)])


def test_a_seed_counts_once():
    runs = [entry("s", "student", 0.1, seed) for seed in (0, 0, 1)] + [entry("a", "alone", 0, seed) for seed in (0, 1)]
    with pytest.raises(ConfigError, match=r"s has two entries of seed 0, .*\ngive each seed once, or another model"):
        compare(runs)
    assert compare(runs[1:]).lines[0].seeds == (0, 1)
    unknown = compare([entry("s", "student", 0.1), entry("s", "student", 0.2)])  # which seeds they had is not known
    assert unknown.lines[0].seeds == (None, None)
