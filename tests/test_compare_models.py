"""Entries of a comparison as models of several seeds: their role, and what must not pass for a seed."""

from __future__ import annotations

import numpy as np
import pytest

from kdrs.comparison.compare import Entry, compare
from kdrs.comparison.page import page_of
from kdrs.errors import ConfigError
from kdrs.evaluation.report import Report
from kdrs.evaluation.significance import holm
from kdrs.evaluation.transfer import transfer_ratio

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


def of_seeds(names: dict[str, tuple[str, float]], seeds: int = 3) -> list[Entry]:
    return [entry(name, role, gain, s, 0.01) for name, (role, gain) in names.items() for s in range(seeds)]


MODELS = {"big": ("teacher", 0.3), "a": ("alone", 0.0), "student": ("student", 0.05), "other": ("alone", 0.04)}


def test_holm_counts_every_model_but_the_teacher():
    """A second model trained alone too: column, note and verdict speak of the same p-values."""
    found = compare(of_seeds(MODELS), baseline="a")
    lines = {line.name: line for line in found.lines}
    for tests in ("against", "against_by_seed"):
        both = [getattr(lines[name], tests)["ndcg@10"] for name in ("student", "other")]
        assert [d.p_adjusted for d in both] == pytest.approx(holm([d.p for d in both]).tolist())
        assert getattr(lines["big"], tests)["ndcg@10"].p_adjusted is None
    table = found.tables()[-1]
    assert table.headers[-5:] == ("p", "p (Holm)", "over seeds\np", "over seeds\np (Holm)", "")
    assert any(
        "p (Holm, 2 comparisons; the teacher is none of them) below 0.05, over q" in note for note in table.notes
    )
    rows = {row[0]: row[-3:-1] for row in table.rows}
    for name in ("student", "other", "big"):
        d = lines[name].against_by_seed["ndcg@10"]
        assert rows[name] == (f"{d.p:.4f}" if d.p >= 1e-4 else f"{d.p:.0e}", rows[name][1])
        assert (rows[name][1] == "-") == (d.p_adjusted is None) == (name == "big")


@pytest.mark.parametrize("several", [(), ("student",), ("a",), ("big",), ("student", "a"), ("big", "student", "a")])
def test_what_was_resampled_is_said(several):
    """Seeds of whichever model has several, and text, page and JSON say so."""
    models = {name: MODELS[name] for name in ("big", "a", "student")}
    found = compare([each for each in of_seeds(models) if each.name in several or each.seed == 0])
    transfer = found.to_json()["runs"][2]["transfer_ratio"]["ndcg@10"]
    assert transfer["seeds"] == (3 if several else 1)
    lone = [name for name in models if name not in several]
    assert ("In brackets: paired bootstrap over queries and seeds" in found.text()) == bool(several)
    assert ("In brackets: paired bootstrap over queries, " in found.text()) == (not several)
    over = "queries and seeds" if several else "queries"
    assert f"interval, paired bootstrap over {over}. Past an arrow" in page_of(found)
    assert (f"One seed, which is not resampled: {', '.join(lone)}." in found.text()) == bool(several and lone)
    means = [np.stack([each.reports["test"].values["ndcg@10"] for each in found_of]) for found_of in split(several)]
    own = transfer_ratio(*means, resamples=10_000)
    assert (own.seeds, own.ratio) == (transfer["seeds"], pytest.approx(transfer["ratio"]))
    alone = transfer_ratio(*(rows.mean(axis=0) for rows in means))
    assert ((transfer["low"], transfer["high"]) == pytest.approx((alone.low, alone.high))) == (not several)


def split(several: tuple[str, ...]) -> list[list[Entry]]:
    """The entries of student, alone and teacher."""
    every = of_seeds(MODELS)
    return [
        [e for e in every if e.name == name and (name in several or e.seed == 0)] for name in ("student", "a", "big")
    ]


def test_the_note_counts_what_was_corrected():
    models = of_seeds(MODELS)
    one_seed = compare([each for each in models if each.name != "other" or each.seed == 0], baseline="a")
    assert "p (Holm, 2 comparisons over queries, 1 over seeds; the teacher is none of them) below" in one_seed.text()
    lone = compare([each for each in models if each.name in ("a", "student") and each.seed == 0])
    assert "Better and worse: p (Holm, 1 comparison) below 0.05." in lone.text()
    teacher = compare([each for each in models if each.name in ("a", "big") and each.seed == 0])
    assert "Better and worse: p below 0.05." in teacher.text()
