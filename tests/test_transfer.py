"""The transfer ratio against enumeration and numbers worked by hand; verdicts; curves."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest

from kdrs.comparison.compare import Entry, compare
from kdrs.comparison.verdicts import verdict_of
from kdrs.errors import DataError
from kdrs.evaluation.curves import doubts_of
from kdrs.evaluation.report import Report
from kdrs.evaluation.significance import Difference, resampled_means
from kdrs.evaluation.transfer import SeedWeights, transfer_ratio


def report(values: np.ndarray, **options) -> dict[str, Report]:
    return {"test": Report({"recall@10": values, "ndcg@10": values**2}, np.arange(values.size), **options)}


def test_the_ratio_by_hand():
    alone, teacher = np.array([0.0, 0.2, 0.4, 0.2]), np.array([0.4, 0.6, 0.8, 0.6])
    found = transfer_ratio(alone + 0.1, alone, teacher, resamples=500)
    assert found.clear
    # every query gains .1 of .4: so does every resample
    assert (found.ratio, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert (found.lead, found.lead_low, found.lead_high) == pytest.approx((0.4, 0.4, 0.4))
    assert transfer_ratio(teacher, alone, teacher, resamples=50).ratio == pytest.approx(1)
    assert transfer_ratio(alone, alone, teacher, resamples=50).ratio == 0


def test_the_interval_is_that_of_all_resamples():
    alone, student, teacher = np.zeros(5), np.array([0.1, 0.4, 0.2, 0.6, 0.3]), np.array([0.5, 0.9, 0.4, 0.8, 1.0])
    ratios = [student[list(d)].sum() / teacher[list(d)].sum() for d in itertools.product(range(5), repeat=5)]
    found = transfer_ratio(student, alone, teacher, resamples=40_000, confidence=0.9)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, [0.05, 0.95])), abs=0.02)


def test_queries_are_drawn_for_all_three_together():
    rng = np.random.default_rng(0)
    hard = rng.random(400)  # what queries have in common cancels only in paired draws
    found = transfer_ratio(hard + 0.02, hard, hard + 0.04, resamples=300)
    assert found.high - found.low < 1e-6


def test_seeds_widen_the_interval_and_are_paired():
    rng = np.random.default_rng(1)
    queries = rng.random(500)
    level = np.array([0.0, 0.05, 0.1])[:, None]
    alone, teacher = queries + level, queries + 0.3
    student = queries + level + 0.1  # a seed that is good for one is good for the other
    one = transfer_ratio(student[0], alone[0], teacher, resamples=2000)
    paired = transfer_ratio(student, alone, teacher, resamples=2000)
    loose = transfer_ratio(student, alone, teacher, resamples=2000, paired_seeds=False)
    assert (one.seeds, paired.seeds) == (1, 3)
    assert one.high - one.low < 1e-6
    assert 0 < paired.high - paired.low < loose.high - loose.low


def test_resampled_seeds_have_the_variance_of_a_mean():
    values = np.array([0.1, 0.4, 0.2, 0.9])
    means = SeedWeights(200_000, 0).mean(np.tile(values, (200_000, 1)), 0)
    assert means.var() == pytest.approx(values.var(ddof=1) / 4, rel=0.02)
    assert means.mean() == pytest.approx(values.mean(), abs=0.002)


@pytest.mark.parametrize("shift", [0.0, -0.05, 0.004])
def test_without_a_clear_lead_there_is_no_ratio(shift):
    rng = np.random.default_rng(2)
    alone = rng.random(300)
    teacher = alone + shift + rng.normal(0, 0.1, 300)
    found = transfer_ratio(alone + 0.1, alone, teacher, resamples=500)
    assert not found.clear
    assert (found.ratio, found.low, found.high) == (None, None, None)
    assert found.lead_low < found.lead < found.lead_high


def test_a_lead_that_is_nothing_in_some_resamples_gives_numbers_or_no_ratio():
    alone, student = np.zeros(8), np.r_[np.ones(2), np.zeros(6)]
    for wins in range(9):
        found = transfer_ratio(student, alone, np.r_[np.ones(wins), np.zeros(8 - wins)], resamples=2000)
        values = [found.ratio, found.low, found.high]
        assert found.clear == (None not in values)
        assert all(value is None or math.isfinite(value) for value in values)


def test_wrong_values_are_told():
    with pytest.raises(DataError, match="of 3, 2, 2 queries"):
        transfer_ratio(np.ones(3), np.zeros(2), np.ones(2))
    with pytest.raises(DataError, match="teacher are not finite"):
        transfer_ratio(np.ones(2), np.zeros(2), np.array([1, np.nan]))
    with pytest.raises(DataError, match=r"allowed: \[queries\]"):
        transfer_ratio(np.ones((2, 2, 2)), np.zeros(2), np.ones(2))


def test_memory_of_resampling_is_bounded():
    values = np.random.default_rng(0).random((4, 100_000))
    tracemalloc.start()
    resampled_means(values, 100, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20  # 100 resamples of 100,000 queries at once would take 80 MB for the counts alone


# Comparisons.


def three_seeds(gain: float, spread: float, seeds: int = 3, n: int = 600) -> list[Entry]:
    rng = np.random.default_rng(4)
    queries = rng.random(n)
    found = [Entry("big", "teacher", report(queries + 0.3), n_bytes=1000)]
    for seed in range(seeds):
        found.append(Entry("alone", "alone", report(queries), seed=seed, n_bytes=100))
        noise = spread * (-1) ** seed
        found.append(Entry("student", "student", report(queries + gain + noise), seed=seed, n_bytes=100))
    return found


def test_better_needs_both_tests_where_there_are_several_seeds():
    lucky = compare(three_seeds(0.02, 0.05), metrics=("recall@10",))
    line = next(line for line in lucky.lines if line.name == "student")
    assert line.against["recall@10"].p_adjusted < 0.01
    assert line.against_by_seed["recall@10"].p_adjusted > 0.3
    assert str(line.verdicts["recall@10"]) == "not clear (queries only)"
    steady = compare(three_seeds(0.02, 0.0005), metrics=("recall@10",))
    line = next(line for line in steady.lines if line.name == "student")
    assert str(line.verdicts["recall@10"]) == "better (queries, seeds)"
    rows = [row for row in lucky.text().splitlines() if row.startswith("student")]
    assert not any("better" in row or "worse" in row for row in rows)


def difference(value: float, p: float, adjusted: float | None) -> Difference:
    return Difference(value, value, value, p, 5, "t", p_adjusted=adjusted)


@pytest.mark.parametrize(
    ("queries", "seeds", "n", "says"),
    [
        ((0.1, 0.001, 0.01), None, 1, "better (one seed)"),
        ((-0.1, 0.001, 0.01), None, 1, "worse (one seed)"),
        ((0.1, 0.001, 0.2), None, 1, "not clear (one seed)"),
        ((0.1, 0.001, None), None, 1, "better (one seed)"),
        ((0.1, 0.001, 0.01), None, 3, "not clear (no common seeds)"),
        ((0.1, 0.001, 0.01), (0.1, 0.01, 0.04), 3, "better (queries, seeds)"),
        ((-0.1, 0.001, 0.01), (-0.1, 0.01, 0.04), 3, "worse (queries, seeds)"),
        ((0.1, 0.001, 0.01), (0.1, 0.01, 1.0), 3, "not clear (queries only)"),
        ((0.1, 0.1, 0.1), (0.1, 0.01, 0.02), 3, "not clear (seeds only)"),
        ((0.1, 0.001, 0.01), (-0.1, 0.01, 0.02), 3, "not clear (tests disagree)"),
        ((0.1, 0.5, 0.5), (0.1, 0.5, 0.5), 3, "not clear"),
    ],
)
def test_verdicts(queries, seeds, n, says):
    assert str(verdict_of(difference(*queries), None if seeds is None else difference(*seeds), n)) == says


def test_holm_leaves_the_teacher_out():
    entries = three_seeds(0.02, 0.0005)
    with_teacher = compare(entries)
    big = with_teacher.lines[0]
    assert big.against["recall@10"].p_adjusted is None
    assert big.verdicts["recall@10"].word == "better"
    student = with_teacher.lines[2].against
    assert student == compare(entries[1:]).lines[1].against
    assert "2 comparisons; the teacher is none of them" in with_teacher.text()


def test_each_student_is_compared_with_the_model_of_its_size():
    queries = np.random.default_rng(0).random(50)
    sizes = {
        "big": ("teacher", 1000),
        "wide": ("alone", 200),
        "thin": ("alone", 50),
        "a": ("student", 60),
        "b": ("student", 190),
    }
    entries = [Entry(name, role, report(queries), n_bytes=n) for name, (role, n) in sizes.items()]
    found = {line.name: line.baseline for line in compare(entries).lines}
    assert found == {"big": "wide", "wide": None, "thin": "wide", "a": "thin", "b": "wide"}
    assert "against" in compare(entries).tables()[-1].headers
    named = compare(entries, baseline="wide")
    assert {line.name: line.baseline for line in named.lines}["a"] == "wide"
    assert any("a has 0.3 times the bytes of wide" in warning for warning in named.warnings)
    # another model trained alone has a ratio too: the stronger opponent is seen
    assert named.lines[2].transfer


def test_ratios_lead_text_markdown_and_json():
    found = compare(three_seeds(0.15, 0.0005), metrics=("recall@10",))
    lead = found.tables()[0]
    assert lead.headers[:4] == ("model", "role", "seeds", "transfer ratio\nrecall@10")
    assert "share" not in found.text().split("quality")[0]
    cell = lead.rows[2][3]
    assert cell.startswith("0.50 [0.")
    assert cell in found.text()
    assert cell in found.markdown()
    ratio = found.to_json()["runs"][2]["transfer_ratio"]["recall@10"]
    assert ratio["ratio"] == pytest.approx(0.5, abs=0.01)
    assert ratio["low"] < ratio["ratio"] < ratio["high"]
    assert ratio["seeds"] == 3


def test_a_teacher_that_leads_nobody_is_warned_of():
    rng = np.random.default_rng(0)
    queries = rng.random(200)
    entries = [
        Entry("big", "teacher", report(queries + rng.normal(0, 0.1, 200))),
        Entry("small", "alone", report(queries)),
        Entry("taught", "student", report(queries + 0.01)),
    ]
    found = compare(entries, metrics=("recall@10",))
    assert len(found.warnings) == 1
    assert "the teacher, big, is not clearly better than the model alone, small" in found.warnings[0]
    assert "no clear lead" in found.text()
    assert "nan" not in found.text().lower().replace("resampled", "")
    assert found.to_json()["runs"][2]["transfer_ratio"]["recall@10"]["ratio"] is None
    assert found.to_json()["warnings"] == list(found.warnings)


def test_unequal_selection_and_single_doubts_are_warned_of():
    entries = three_seeds(0.1, 0.001, seeds=1)
    from dataclasses import replace

    entries[1] = replace(entries[1], selection="ndcg@10, patience 20")
    entries[2] = replace(entries[2], selection="hit@5, patience 20", doubts=("was still rising",))
    found = compare(entries)
    assert any("alone by ndcg@10, patience 20; student by hit@5, patience 20" in text for text in found.warnings)
    assert "student: was still rising" in found.warnings
    assert "**Warnings**" in found.markdown()


@pytest.mark.slow
def test_a_large_comparison_is_done():
    """6 models x 3 seeds x 25,000 queries: a handful of seconds on a free core (nothing is asserted of the time)."""
    rng = np.random.default_rng(0)
    queries = rng.random(25_000)
    entries = [Entry("t", "teacher", report(queries + 0.1))]
    for name, role in (("a", "alone"), *((f"s{i}", "student") for i in range(4))):
        entries += [
            Entry(name, role, report(queries + rng.normal(0, 0.2, queries.size)), seed=seed) for seed in range(3)
        ]
    began = time.monotonic()
    found = compare(entries)
    print(f"{time.monotonic() - began:.1f} s")
    assert len(found.lines) == 6
    assert all(line.transfer["ndcg@10"].clear for line in found.lines[2:])


# Curves.


def rows(values, start=0):
    return [{"epoch": start + at, "valid": {"ndcg@10": value}} for at, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "stopped", "says"),
    [
        ([0.1 * 0.9**at for at in range(12)], "patience", "best epoch is 0"),
        ([0.1, 0.2, 0.15, 0.1, 0.1, 0.1, 0.1], "patience", "best epoch is 1"),
        ([0.01 * at for at in range(20)], "epochs", "still rising"),
        ([0.1, 0.2, 0.3], "epochs", "still rising"),
        ([0.0, 0.1], "epochs", "from 0 to 0.1000"),
    ],
)
def test_curves_that_say_something_against_a_run(values, stopped, says):
    (doubt,) = doubts_of(rows(values), "ndcg@10", stopped=stopped)
    assert says in doubt


@pytest.mark.parametrize(
    ("values", "stopped", "started"),
    [
        ([0.01 * at for at in range(20)], "patience", False),
        ([1 - 0.5**at for at in range(30)], "epochs", False),
        ([0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2], "patience", True),
        ([0.3], "epochs", False),
        ([0.2, 0.3, 0.1], "epochs", False),
        ([float("nan")] * 9, "epochs", False),
        ([], "epochs", False),
    ],
)
def test_curves_that_say_nothing_against_a_run(values, stopped, started):
    assert doubts_of(rows(values), "ndcg@10", stopped=stopped, started=started) == ()


def test_rows_without_an_evaluation_do_not_count():
    given = [{"epoch": at, "loss": 1.0} if at % 2 else rows([0.1 + at], at)[0] for at in range(9)]
    (doubt,) = doubts_of(given, "ndcg@10")
    assert "9 epochs" in doubt
