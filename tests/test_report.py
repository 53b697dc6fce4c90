"""Comparisons against numbers worked by hand; tables, JSON and pictures as a reader gets them."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from kdrs.comparison.compare import Entry, compare, scoring_seconds
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError, MachineError
from kdrs.evaluation.report import Report
from kdrs.evaluation.significance import holm, paired_test, seed_test


def report(*values: float, rows: Any = None, **options: Any) -> Report:
    hits = np.array(values, float)
    rows = np.arange(hits.size) if rows is None else np.array(rows)
    options = {"setting": "sampled(499)", "n_queries": hits.size + 2, "rules": {"ties": "expected"}} | options
    return Report({"hit@5": hits, "ndcg@5": hits / 2, "hit@10": hits, "mrr@5": hits / 3}, rows, **options)


def curve(top: float) -> list[dict[str, Any]]:
    return [{"epoch": e, "loss": 1.0, "valid": {"hit@5": top * e / 9, "ndcg@5": top * e / 18}} for e in range(10)]


TEACHER, ALONE, STUDENT = [1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]


def entries(**options: Any) -> list[Entry]:
    def made(name: str, role: str, values: list[float], n: int, **more: Any) -> Entry:
        reports = {"test": report(*values, **options)}
        return Entry(name, role, reports, n, 4 * n, n / 1e8, curve(float(np.mean(values))), **more)

    return [
        made("big", "teacher", TEACHER, 6_080_400),
        made("small", "alone", ALONE, 608_040),
        made("small+rrd", "student", STUDENT, 608_040, agreement={"overlap@10": 0.4}),
    ]


def test_shares_and_differences_by_hand():
    found = compare(entries(), metrics=("hit@5",))
    big, small, student = found.lines
    assert (found.teacher, found.baseline, found.setting, found.n, found.n_queries) == (
        "big",
        "small",
        "sampled(499)",
        5,
        7,
    )
    assert [line.quality["hit@5"].mean for line in found.lines] == pytest.approx([0.8, 0.2, 0.6])
    assert [line.kept["hit@5"] for line in found.lines] == pytest.approx([1, 0.25, 0.75])
    assert small.against == {}
    # Differences 0 1 1 0 0: two signs, both equal in 2 of 4 patterns. 0 1 1 1 0: all equal in 2 of 8.
    assert student.against["hit@5"].difference == pytest.approx(0.4)
    assert (student.against["hit@5"].p, big.against["hit@5"].p) == (0.5, 0.25)
    assert (student.against["hit@5"].p_adjusted, big.against["hit@5"].p_adjusted) == (0.5, None)
    assert str(student.verdicts["hit@5"]) == "not clear (one seed)"


def test_holm_runs_over_all_models_and_metrics():
    rng = np.random.default_rng(0)
    base = rng.random(200)
    runs = [Entry("alone", "alone", {"test": report(*base)})]
    runs += [Entry(f"s{i}", "student", {"test": report(*(base + rng.normal(0.01 * i, 0.1, 200)))}) for i in range(3)]
    found = compare(runs, metrics=("hit@5", "mrr@5"), resamples=500, seed=3)
    tests = [line.against[metric] for line in found.lines[1:] for metric in found.metrics]
    assert [t.p_adjusted for t in tests] == pytest.approx(holm([t.p for t in tests]).tolist())
    alone = paired_test(runs[2].reports["test"].values["hit@5"], base, resamples=500, seed=3)
    assert found.lines[2].against["hit@5"].p == alone.p
    assert found.teacher is None
    assert found.lines[1].kept == {}


def test_seeds_of_one_name_are_one_model():
    runs = []
    for seed, (a, b) in enumerate([(0.2, 0.4), (0.3, 0.6), (0.4, 0.5)]):
        runs.append(Entry("alone", "alone", {"test": report(a, a)}, seed=seed, seconds_per_1000=seed + 1.0))
        runs.append(Entry("rrd", "student", {"test": report(b, b - 0.1)}, seed=seed))
    found = compare(runs, metrics=("hit@5",))
    alone, rrd = found.lines
    assert alone.seeds == (0, 1, 2)
    assert alone.seconds_per_1000 == 2.0
    assert (alone.quality["hit@5"].mean, alone.quality["hit@5"].sd) == pytest.approx((0.3, 0.1))
    assert rrd.against["hit@5"].n == 2
    assert rrd.against["hit@5"].difference == pytest.approx(0.15)
    expected = seed_test([0.35, 0.55, 0.45], [0.2, 0.3, 0.4])
    assert rrd.against_by_seed["hit@5"].p == pytest.approx(expected.p)
    text = found.text()
    assert "0.3000 ±0.1000" in text
    assert "over seeds" in text


def test_headline_metrics():
    assert compare(entries()).metrics == ("hit@5", "ndcg@5")
    names = [f"{name}@{k}" for name in ("hit", "recall", "ndcg", "map") for k in (5, 10, 20)]
    full = Report({name: np.ones(2) for name in names}, np.arange(2))
    assert compare([Entry("a", "alone", {"test": full})]).metrics == ("recall@10", "ndcg@10")
    other = Report({"map@all": np.ones(2), "precision@3": np.ones(2)}, np.arange(2))
    assert compare([Entry("a", "alone", {"test": other})]).metrics == ("map@all", "precision@3")


def test_sizes_are_those_of_the_largest_seed():
    """Seeds may have kept different encoders of users, one with a matrix and one without."""
    sizes = {"alone": (50, 400), "student": (100, 300), "other": (1000, 1000)}
    roles = {"alone": "alone", "student": "student", "other": "alone"}
    found = compare(
        [
            Entry(name, roles[name], {"test": report(0.1, 0.2)}, n, n, seed=seed, bytes_per_row=n / 10)
            for name, both in sizes.items()
            for seed, n in enumerate(both)
        ]
    )
    for line in found.lines:
        assert (line.n_parameters, line.n_bytes, line.bytes_per_row) == (sizes[line.name][1],) * 2 + (
            sizes[line.name][1] / 10,
        )
    assert found.lines[1].baseline == "alone"  # 400 is nearer to 300 than 1000; 50 and 100 are of no account


def test_text_names_the_setting_in_every_metric_and_lines_up():
    text = compare(entries()).text()
    both, second = text.split("\n\nagainst small\n\n")
    first, quality = both.split("\n\nquality\n\n")
    assert first.startswith("test, sampled(499), 5 queries with held-out items, of 7")
    assert "hit@5 sampled(499)" in second
    for block in (first, quality):
        head = block.split("\n")
        rule = next(at for at, line in enumerate(head) if line.startswith("---"))
        assert head[rule - 1].count("sampled(499)") == head[rule - 2].count("@5") == 2
        gaps = [at for at, mark in enumerate(head[rule]) if mark == " "]
        for row in head[rule + 1 : rule + 4]:
            assert {row[at] for at in gaps if at < len(row)} == {" "}
        assert max(len(line) for line in head) <= 120
    assert "24.3 MB" in first
    assert "60.8 ms" in first
    assert " 75.0%" in quality
    assert "not clear" in second


def test_full_ranking_names_stay_plain():
    text = compare(entries(setting="full")).text()
    assert "sampled" not in text
    assert "full ranking" in text


def test_markdown_is_a_table():
    blocks = compare(entries()).markdown().split("\n\n")
    rows = blocks[1].split("\n")
    assert rows[0].startswith("| model | role |")
    assert "hit@5<br>sampled(499)" in rows[0]
    assert len({row.count("|") for row in rows}) == 1
    assert rows[1].startswith("| :-- | :-- | --: |")


def test_json_is_plain_and_versioned():
    nothing = Entry("none", "student", {"test": report(0, 0, 0, 0, 0)})
    document = json.loads(json.dumps(compare([*entries(), nothing]).to_json(), allow_nan=False))
    assert document["schema"] == 1
    assert document["teacher"] == "big"
    student = document["runs"][2]
    assert student["metrics"]["hit@5 sampled(499)"]["mean"] == pytest.approx(0.6)
    assert student["share_of_teacher"]["hit@5 sampled(499)"] == pytest.approx(0.75)
    assert student["against_baseline"]["hit@5 sampled(499)"]["p_adjusted"] <= 1
    assert student["agreement_with_teacher"] == {"overlap@10": 0.4}
    assert document["runs"][3]["n_parameters"] is None


def test_a_teacher_without_a_hit_gives_no_share():
    runs = [Entry("t", "teacher", {"test": report(0, 0)}), Entry("s", "student", {"test": report(1, 0)})]
    found = compare(runs)
    assert math.isnan(found.lines[1].kept["hit@5"])
    assert found.to_json()["runs"][1]["share_of_teacher"]["hit@5 sampled(499)"] is None
    assert "nan" not in found.text()
    assert found.baseline is None
    assert len(found.tables()) == 1


def test_what_must_not_be_compared_is_refused():
    base = Entry("a", "alone", {"test": report(1, 0)})

    def against(**options: Any) -> list[Entry]:
        return [base, Entry("b", "student", {"test": report(1, 1, **options)})]

    with pytest.raises(DataError, match=r"'a'|a and b were measured differently: sampled\(499\) and full"):
        compare(against(setting="full"))
    with pytest.raises(DataError, match="different rules: ties"):
        compare(against(rules={"ties": "optimistic"}))
    with pytest.raises(DataError, match="different queries"):
        compare(against(rows=[0, 5]))
    with pytest.raises(DataError, match="no report on valid; it has test"):
        compare([base], part="valid")
    with pytest.raises(ConfigError, match="teacher, alone, student"):
        compare([Entry("a", "assistant", {"test": report(1)})])
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare([])
    with pytest.raises(ConfigError, match="did you mean 'hit@5'"):
        compare([base], metrics=("hitt@5",))
    with pytest.raises(ConfigError, match="no run is called"):
        compare(entries(), baseline="b")
    for option in ("baseline", "teacher"):
        with pytest.raises(ConfigError, match=f"{option} a has nothing to be compared with: there is only a"):
            compare([base], **{option: "a"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 95}, "confidence is 95; allowed: between 0 and 1"),
        ({"resamples": 0}, "resamples is 0; allowed: 1 or more"),
        ({"seed": -1}, "seed is -1\nallowed: integers from 0 on"),
        ({"metrics": ()}, "metrics is empty\nname one or more, or leave it out"),
        ({"metrics": "hit@5"}, "metrics is the text 'hit@5'\ngive a list of names: metrics=['hit@5']"),
        ({"metrics": (10,)}, "metrics is (10,)\ngive a list of names, such as metrics=['ndcg@10']"),
        ({"metrics": [["hit@5"]]}, "metrics is [['hit@5']]\ngive a list of names"),
        ({"metrics": 5}, "metrics is 5\ngive a list of names"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_drawn(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        compare(entries(), **options)


def test_a_metric_that_is_named_twice_counts_once():
    twice, once = (compare(entries(), metrics=["hit@5"] * n, resamples=50) for n in (2, 1))
    assert (twice.text(), twice.csv(), twice.to_json()) == (once.text(), once.csv(), once.to_json())


def test_a_test_needs_something_to_compare():
    teacher, alone, student = entries()
    for runs, message in (([alone], "there is only small"), ([teacher, student], "no run was trained alone")):
        with pytest.raises(ConfigError, match=f"test bootstrap has nothing to compare: {message}"):
            compare(runs, test="bootstrap")
    assert compare([teacher, student], baseline="big", test="bootstrap").lines[1].against


def test_an_unknown_k_is_no_misspelt_metric():
    with pytest.raises(ConfigError, match=r"no 'hit@500': K of hit is one of 5, 10\n.*ks=\[5, 10, 500\] of kdrs"):
        compare(entries(), metrics=("hit@500",))
    with pytest.raises(ConfigError, match=r"no 'hit@x'\ndid you mean"):
        compare(entries(), metrics=("hit@x",))
    found = entries()
    for entry in found:
        entry.reports["test"].beyond["coverage@5"] = 0.5
    for asked in ("coverage@5", "coverage@7", "coverage"):
        with pytest.raises(
            ConfigError, match=rf"^{asked} is of all lists together.*\nleave it out: --json has coverage@5"
        ):
            compare(found, metrics=(asked,))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_print_is_plain_unless_a_terminal_wants_more(monkeypatch):
    found = compare(entries())
    pipe = io.StringIO()
    found.print(pipe)
    assert pipe.getvalue() == found.text()
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    found.print(terminal)
    assert terminal.getvalue() == found.text()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    terminal = Terminal()
    found.print(terminal)
    assert "small+rrd" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()


MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", list(MAGIC))
def test_pictures_are_written_whole_and_the_same_twice(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    found = compare(entries())
    path = found.picture(tmp_path / f"runs{suffix}")
    content = path.read_bytes()
    assert content.startswith(MAGIC[suffix])
    assert [p.name for p in tmp_path.iterdir()] == [f"runs{suffix}"]
    assert found.picture(tmp_path / f"again{suffix}").read_bytes() == content


def said_in(path: Path) -> list[str]:
    """The texts of an SVG, which are text there, no outlines."""
    return ["".join(element.itertext()) for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_text_of_a_picture_stays_text(tmp_path):
    pytest.importorskip("matplotlib")
    texts = said_in(compare(entries()).picture(tmp_path / "runs.svg"))
    assert {"epoch (marked: the best)", "bytes in all"} <= set(texts)
    assert any(text.startswith("small+rrd") for text in texts)


def test_a_picture_of_little_still_stands(tmp_path):
    pytest.importorskip("matplotlib")
    found = compare([Entry("a", "alone", {"test": report(0, 0)})])
    assert found.picture(tmp_path / "little.svg").exists()


def test_pictures_say_what_they_need(tmp_path, monkeypatch):
    found = compare(entries())
    with pytest.raises(ConfigError, match=r"\.png, \.svg, \.pdf"):
        found.picture(tmp_path / "runs.gif")
    with pytest.raises(ConfigError, match="holds no"):
        found.picture(tmp_path / "runs.png", metric="hit@50")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MachineError, match=r'pip install "kdrs\[plots\]"'):
        found.picture(tmp_path / "runs.png")
    assert not list(tmp_path.iterdir())


def test_save_writes_every_form(tmp_path):
    pytest.importorskip("matplotlib")
    written = compare(entries()).save(tmp_path / "out")
    forms = ("json", "md", "tex", "csv", "png", "svg", "pdf")
    assert [path.name for path in written] == ["report.html", *(f"comparison.{form}" for form in forms)]
    assert all(path.stat().st_size > 100 for path in written)
    assert json.loads(written[1].read_text())["schema"] == 1
    (tmp_path / "out/notes.txt").write_text("mine")  # beside an earlier report
    assert compare(entries()).save(tmp_path / "out") == written
    with pytest.raises(ConfigError, match="is not empty and holds no report"):
        compare(entries()).save(tmp_path)


def test_scoring_time_is_per_thousand_queries(monkeypatch):
    from kdrs.comparison import compare as module

    clock = iter([0.0, 100.0, 100.0, 101.0, 101.0, 104.0, 104.0, 106.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    seen = Interactions.from_pairs([0], [0], 20, 30)
    factors = np.ones((20, 2), np.float32), np.ones((30, 2), np.float32)
    # Warm-up 100 s, then 1, 3 and 2 s for 20 queries: median 2 s, 100 s for 1,000.
    assert scoring_seconds(factors, seen, 5, repeats=3) == pytest.approx(100.0)
    with pytest.raises(ConfigError, match="repeats"):
        scoring_seconds(factors, seen, 5, repeats=0)


def test_the_picture_shows_bytes_a_row_and_in_all_and_the_teachers_interval(tmp_path):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    hits = rng.random(300)
    rows = {"big": ("teacher", 0.3, 400), "small": ("alone", 0.0, 40), "taught": ("student", 0.15, 40)}
    made = [
        Entry(name, role, {"test": report(*(hits + gain))}, n_bytes=100 * size, bytes_per_row=size)
        for name, (role, gain, size) in rows.items()
    ]
    texts = said_in(compare(made).picture(tmp_path / "p.svg"))
    for words in ("bytes a row", "bytes in all", "transfer ratio (0: alone, 1: teacher)", "taught  0.50 [0.50, 0.50]"):
        assert any(text.startswith(words) for text in texts), words
    text = (tmp_path / "p.svg").read_text()
    assert 'id="teacher-interval"' in text
    assert "share of the teacher" not in text
    without = compare(made[1:]).picture(tmp_path / "q.svg").read_text()
    assert "teacher-interval" not in without
