"""The page of a comparison: what it says, that nothing from outside is markup, and that a browser takes it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import FAST, fails, ok
from kdrs.comparison.background import Background, Item, Listed, Person, spread
from kdrs.comparison.charts import looks_of
from kdrs.comparison.compare import Entry, compare
from kdrs.comparison.figures import ratios
from kdrs.comparison.groups import GROUPS, Trait
from kdrs.comparison.markup import Markup, joined, tag
from kdrs.comparison.page import METRICS, page_of
from kdrs.comparison.result import Comparison
from kdrs.data import Dataset
from kdrs.errors import DataError
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.report import Report
from kdrs.runs.background import LISTED, PEOPLE, traits_of
from kdrs.runs.compared import compare_runs
from kdrs.runs.opened import load_run
from report_pages import EVIL, Read, page_at, write_report


def curve(top: float, n: int = 30) -> list[dict[str, Any]]:
    return [
        {"epoch": e, "loss": 1.0, "valid": {"recall@10": top * e / n, "ndcg@10": top * e / n / 2}} for e in range(n)
    ]


def made(n: int = 400, seeds: Sequence[int] = (0, 1), name: str = "taught", **options: Any) -> Comparison:
    """A teacher, a model alone and a student between them; the last quarter of the queries has no lead."""
    rng = np.random.default_rng(0)
    lead = np.where(np.arange(n) < 0.75 * n, 0.3, 0.0)
    base = rng.random(n) * 0.4

    def entry(who: str, role: str, gain: float, size: int, seed: int) -> Entry:
        values = base + gain * lead + np.random.default_rng(seed + size).normal(0, 0.02, n)
        report = Report({"recall@10": values, "ndcg@10": values / 2}, np.arange(n), n_queries=n)
        return Entry(
            who, role, {"test": report}, size, 4 * size, size / 1e6, curve(0.3 + gain / 9, 30 + 3 * seed), seed,
            bytes_per_row=size / 10,
        )  # fmt: skip

    entries = [entry("big", "teacher", 1.0, 1000, 0)]
    for seed in seeds:
        entries += [entry("small", "alone", 0.0, 100, seed), entry(name, "student", 0.5, 90, seed)]
    place = np.arange(n, dtype=float)
    by = [Trait("place", "By place", "places", "Places count from 0.", place)]
    return compare(entries, metrics=("recall@10", "ndcg@10"), by=by, resamples=2000, **options)


def own(kind: str) -> str:
    return resources.files("kdrs.comparison").joinpath(f"page.{kind}").read_text("utf-8")


# --- markup ---------------------------------------------------------------------------------------------------------


def test_what_is_no_markup_is_escaped():
    assert tag("p", "<b>", class_='a"b', aria_label="&") == '<p class="a&quot;b" aria-label="&amp;">&lt;b&gt;</p>'
    assert joined("a\u202eb\n", None, [Markup("<i>"), ["<"]]) == "a\\u202eb\\n<i>&lt;"
    assert tag("line", x1=1 / 3, x2=2.0, hidden=False, open=True) == '<line x1="0.3" x2="2" open/>'


def test_nothing_from_outside_is_markup():
    """Names of runs, ids of users and items, titles, facts, warnings."""
    item = Item(EVIL, EVIL)
    person = Person(EVIL, 1, (item, Item(EVIL)), (item,), {EVIL: (Listed(item, True, False),), "big": ()})
    found = replace(
        made(name=EVIL), warnings=(EVIL,), background=Background(((EVIL, EVIL),), (person,), (EVIL,)), part=EVIL
    )
    read = Read(page_of(found))
    assert [data for element, data in read.texts if element == "script"] == [own("js")]
    assert not read.all("b") or all("onload" not in attributes for attributes in read.all("b"))
    assert not any(name.startswith("on") for _, attributes in read.elements for name in attributes)
    assert read.text.count(EVIL) > 10


def test_a_page_takes_nothing_from_elsewhere():
    page = page_of(made())
    read = Read(page)
    for element, attributes in read.elements:
        assert element not in ("link", "img", "iframe", "object", "embed", "base", "form", "audio", "video"), element
        assert not {"src", "srcset", "action", "style", "xlink:href"} & attributes.keys(), element
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in page.replace("url(#", "")
    assert "@import" not in page
    assert not re.search(r"https?:|//[a-z]", page)


def test_the_policy_names_the_digests_of_the_script_and_the_style():
    read = Read(page_of(made()))
    (policy,) = [a["content"] for a in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, directive in (("css", "style-src"), ("js", "script-src")):
        digest = base64.b64encode(hashlib.sha256(own(kind).encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


# --- what it says ---------------------------------------------------------------------------------------------------


def test_the_table_has_the_numbers_of_the_comparison():
    found = made()
    page = page_of(found)
    for metric in found.metrics:
        table = re.search(rf'<table aria-label="models by {metric}">(.*?)</table>', page, re.S)
        assert table is not None
        rows = re.findall(r"<tr>(.*?)</tr>", table[1].partition("<tbody>")[2], re.S)
        for line, row in zip(found.lines, rows, strict=True):
            keys = re.findall(r'data-value="([^"]*)"', row)
            assert keys[0] == line.name
            assert repr(line.quality[metric].mean) in keys
            text = Read(f"<i>{row}</i>").text
            assert f"{line.intervals[metric][0]:.4f} to {line.intervals[metric][1]:.4f}" in text
            if line.quality[metric].n > 1:
                assert f"± {line.quality[metric].sd:.4f}" in text
            if line.transfer:
                transfer = line.transfer[metric]
                assert f"{transfer.ratio:.2f}" in text
                assert f"{transfer.low:.2f} to {transfer.high:.2f}" in text
            for verdict in line.verdicts.values():
                assert str(verdict) in text
    assert "90 × 4" not in page
    assert ">360 B<" in page


def test_every_part_is_there_without_scripts():
    """Nothing waits for a script: blocks of all metrics, charts with a description, and the values of their marks."""
    found = made()
    page = page_of(found)
    read = Read(page)
    charts = [a for a in read.all("svg") if a.get("class") == "chart"]
    assert len(charts) == 2 * 5  # ratio, bytes, time, curves, one trait
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 20 for a in charts)
    assert "hidden" not in {name for _, a in read.elements for name in a}
    tips = [data for element, data in read.texts if element == "title"]
    for line in found.lines:
        mean = f"{line.quality['recall@10'].mean:.4f}"
        assert any(tip.startswith(f"{line.name}: recall@10 {mean} (") for tip in tips)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_intervals_that_go_on_have_an_arrow_on_their_side():
    """A ratio far below the axis, and one whose interval leaves it above."""
    found = made()
    line = next(line for line in found.lines if line.transfer)
    ratio = line.transfer["recall@10"]
    low = replace(ratio, ratio=-3.0, low=-8.0, high=-1.5)
    high = replace(ratio, ratio=1.2, low=0.9, high=9.0)
    lines = tuple(
        replace(line, name=name, transfer={"recall@10": transfer, "ndcg@10": transfer})
        for name, transfer in (("low", low), ("high", high))
    )
    drawn = ratios(replace(found, lines=lines), "recall@10", looks_of(lines))
    assert drawn is not None
    tips = [float(x) for x in re.findall(r'd="M[\d.]+ [\d.]+L([\d.]+) ', drawn)]
    backs = [float(x) for x in re.findall(r'd="M([\d.]+) [\d.]+L', drawn)]
    assert [tip < back for tip, back in zip(tips, backs, strict=True)] == [True, False]
    assert drawn.count("<title>") == 1  # the other mark lies outside
    assert "-3.00 (-8.00 to -1.50)" in drawn


def test_marks_differ_in_form_and_colour():
    lines = made().lines
    many = [replace(lines[-1], name=f"m{at}") for at in range(16)]
    looks = looks_of(many)
    assert len({(look.class_, look.path) for look in looks.values()}) == 16
    alone = [replace(lines[-1], name=f"a{at}", role="alone", baseline="a0" if at else None) for at in range(3)]
    assert [look.class_ for look in looks_of(alone).values()] == ["alone", "s0", "s1"]
    mixed = looks_of([*alone, many[0]])
    assert [look.class_ for look in mixed.values()] == ["alone", "alone dash1", "alone dash2", "s0"]


def test_a_page_depends_on_its_comparison_alone():
    assert page_of(made()) == page_of(made())


@pytest.mark.parametrize(
    "change",
    [
        lambda: made(n=1),
        lambda: made(seeds=(0,)),
        lambda: compare([Entry("a", "alone", {"test": Report({"m": np.zeros(0)}, np.zeros(0, np.int64))})]),
        lambda: compare([Entry("a", "alone", {"test": Report({"ndcg@10": np.zeros(5)}, np.arange(5))})]),
        lambda: compare(
            [
                Entry("a", "teacher", {"test": Report({"ndcg@10": np.ones(5)}, np.arange(5))}, n_bytes=0),
                Entry(
                    "b",
                    "student",
                    {"test": Report({"ndcg@10": np.ones(5)}, np.arange(5))},
                    n_bytes=4,
                    seconds_per_1000=0.0,
                ),
            ]
        ),
        lambda: replace(made(), lines=tuple(replace(line, curves=([{"epoch": 0}],)) for line in made().lines)),
    ],
    ids=["one query", "one seed", "no query", "no hit", "no bytes", "no curve"],
)
def test_pages_of_little(change):
    page = page_of(change())
    assert not re.search(r"\bnan\b|\binf\b|None", Read(page).text)
    assert "NaN" not in page.partition("<script>")[0]


def test_a_page_stays_small():
    """Whatever the number of queries, epochs, seeds and metrics."""
    small, large = made(n=400), made(n=40_000)
    long = replace(
        large,
        lines=tuple(replace(line, curves=tuple(curve(0.2, 5000) for _ in range(20))) for line in large.lines),
    )
    assert len(page_of(large)) < 1.1 * len(page_of(small))
    assert len(page_of(long)) < 400_000
    names = [f"m{at}@10" for at in range(METRICS + 5)]
    report = Report({name: np.ones(3) for name in names}, np.arange(3))
    page = page_of(
        compare([Entry("a", "alone", {"test": report}), Entry("b", "student", {"test": report})], metrics=names)
    )
    assert page.count('<table aria-label="models by') == METRICS
    assert "Not on this page, but in comparison.json: " + ", ".join(names[METRICS:]) in Read(page).text


# --- groups ---------------------------------------------------------------------------------------------------------


def test_groups_have_the_means_of_their_queries():
    found = made(n=400)
    (breakdown,) = found.breakdowns
    assert [(group.low, group.high, group.n) for group in breakdown.groups] == [
        (0, 79, 80), (80, 159, 80), (160, 239, 80), (240, 319, 80), (320, 399, 80)
    ]  # fmt: skip
    whole = {line.name: line.quality["recall@10"].mean for line in found.lines}
    for name, mean in whole.items():
        assert np.mean([group.quality["recall@10"][name][0] for group in breakdown.groups]) == pytest.approx(mean)
        for group in breakdown.groups:
            middle, low, high = group.quality["recall@10"][name]
            assert low < middle < high
    ratios = [group.transfer["recall@10"]["taught"].ratio for group in breakdown.groups]
    assert ratios[:3] == pytest.approx([0.5] * 3, abs=0.1)
    assert ratios[4] is None  # no lead there
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["groups"][0]["groups"][0]["n"] == 80


def test_equal_values_are_one_group_and_unknown_ones_none():
    values = np.array([1.0] * 50 + [2.0] * 5 + [np.nan] * 45)
    report = Report({"ndcg@10": np.arange(100.0)}, np.arange(100), n_queries=100)
    found = compare([Entry("a", "alone", {"test": report})], by=[Trait("t", "T", "u", "n", values)])
    groups = found.breakdowns[0].groups
    assert [(group.label, group.n) for group in groups] == [("1", 50), ("2", 5)]
    assert [group.quality["ndcg@10"]["a"][0] for group in groups] == [24.5, 52.0]
    one = compare([Entry("a", "alone", {"test": report})], by=[Trait("t", "T", "u", "n", np.ones(100))])
    assert "Who gains" not in page_of(one)
    with pytest.raises(DataError, match=r"allowed: \(100,\)"):
        compare([Entry("a", "alone", {"test": report})], by=[Trait("t", "T", "u", "n", np.ones(99))])


def test_groups_follow_the_rows_of_the_reports():
    """A report of some queries: their own values count, not the first ones."""
    rows = np.array([1, 3, 5, 7, 9])
    report = Report({"ndcg@10": np.arange(5.0)}, rows, n_queries=10)
    found = compare([Entry("a", "alone", {"test": report})], by=[Trait("t", "T", "u", "n", np.arange(10.0) ** 2)])
    assert [group.label for group in found.breakdowns[0].groups] == ["1", "9", "25", "49", "81"]


def test_popularity_and_activity_by_hand():
    from kdrs.data import Interactions

    train = Interactions.from_pairs([0, 0, 0, 1, 2], [0, 1, 2, 0, 0], 4, 4)
    test = Interactions.from_pairs([1, 1, 2], [1, 3, 2], 4, 4)
    popularity, activity = traits_of(Dataset.from_interactions(train, None, test), "test")
    assert activity.values.tolist() == [3, 1, 1, 0]
    np.testing.assert_array_equal(popularity.values, [np.nan, 0.5, 1.0, np.nan])


# --- users ----------------------------------------------------------------------------------------------------------


def test_users_are_spread_over_activity_and_always_the_same():
    activity = np.array([5, 1, 9, 1, 7, 3, 0])
    rows = np.array([0, 1, 2, 3, 4, 5])
    assert spread(activity, rows, 3).tolist() == [1, 5, 2]
    assert spread(activity, rows, 99).tolist() == [1, 3, 5, 0, 4, 2]
    assert spread(activity, rows[:0], 5).tolist() == []


@pytest.mark.parametrize("mask", ["all-other-parts", "train"])
def test_lists_are_those_that_were_measured(toy, mask):
    """A list's hits are the report's; what the mask hides is not in it."""
    evaluator = Evaluator(toy.train, {"valid": toy.valid, "test": toy.test}, ks=(10,), metrics=("hit",), mask=mask)
    rng = np.random.default_rng(0)
    factors = tuple(rng.standard_normal((n, 4)).astype(np.float32) for n in toy.train.shape)
    report = evaluator(factors)["test"]
    lists = evaluator.lists(factors, "test", report.rows, 10)
    assert lists.shape == (report.n, 10)
    hits = [toy.test.row(row)[0] in found for row, found in zip(report.rows.tolist(), lists, strict=True)]
    assert report.values["hit@10"].tolist() == [float(hit) for hit in hits]
    hidden = toy.train if mask == "train" else toy.train.union(toy.valid)
    assert not any(np.isin(found, hidden.row(row)).any() for row, found in enumerate(lists))
    ready = evaluator.lists(np.tile(np.arange(3, dtype=np.int32), (toy.n_users, 1)), "test", report.rows[:4], 10)
    assert ready.shape == (4, 10)
    assert (ready[:, 3:] == -1).all()


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("page"))


def test_the_command_shows_titles_and_ids_where_there_are_none(place):
    read = Read(page_at(place))
    data = Dataset.load(place / "d")
    assert f"names.csv: {data.n_items - 1:,} of {data.n_items:,} items" in read.text
    entries = [text for element, text in read.texts if element == "li"]
    assert sum(text.startswith("Thing ") for text in entries) > 100
    assert "i7" in entries
    assert EVIL in entries
    assert "alert(1)" not in "".join(text for element, text in read.texts if element == "script")


def test_the_users_of_the_command_are_those_of_the_data(place):
    runs = [place / "t", place / "rrd/seed-1", place / "rrd/seed-0", place / "alone/seed-0"]
    found = compare_runs(runs, page=True, time_scoring=False, item_names=place / "names.csv")
    assert found.background is not None
    data = Dataset.load(place / "d")
    people = found.background.people
    assert len(people) == PEOPLE
    sizes = [person.n_history for person in people]
    assert sizes == sorted(sizes)
    measured = data.train.row_degrees[data.test.row_degrees > 0]
    assert (sizes[0], sizes[-1]) == (measured.min(), measured.max())
    (reports,) = [load_run(place / "rrd/seed-0").report()["test"]]
    for person in people:
        row = data.users.index([person.user])[0]
        assert person.n_history == data.train.row_degrees[row]
        held = {data.items[item] for item in data.test.row(int(row))}
        assert {item.id for item in person.held_out} == held
        seen = {data.items[item] for part in (data.train, data.valid) for item in part.row(int(row))}
        assert list(person.lists) == ["t", "rrd", "alone"]  # the teacher first
        teachers = {entry.item.id for entry in person.lists["t"]}
        for entries in person.lists.values():
            assert len(entries) == LISTED
            assert not {entry.item.id for entry in entries} & seen
            assert all(entry.hit == (entry.item.id in held) for entry in entries)
            assert all(entry.shared == (entry.item.id in teachers) for entry in entries)
        # of the first seed, whatever the order in which they are given
        hits = sum(entry.hit for entry in person.lists["rrd"])
        at = int(np.flatnonzero(reports.rows == row)[0])
        assert hits / len(held) == pytest.approx(reports.values["recall@10"][at])
    latest = data.order[data.train.indptr[row] : data.train.indptr[row + 1]][-1]
    assert people[-1].history[0].id == data.items[latest]
    assert {breakdown.name for breakdown in found.breakdowns} == {"popularity", "activity"}
    assert all(1 < len(breakdown.groups) <= GROUPS for breakdown in found.breakdowns)


def test_eval_takes_no_time_for_a_page(place):
    found = compare_runs([place / "t", place / "rrd/seed-0"], time_scoring=False)
    assert (found.background, found.breakdowns) == (None, ())


@pytest.mark.usefixtures("png_alone")
def test_a_report_with_candidates_and_of_lists_alone(place, tmp_path):
    """Metrics that rank candidates, and a teacher that is ready lists."""
    from safetensors.numpy import save_file

    ok("data", "prepare", place / "clicks.csv", "--out", tmp_path / "d", "--candidates", 20)
    ok("train", "--data", tmp_path / "d", *FAST, "--dim", 2, "--epochs", 1, "--out", tmp_path / "a")
    ok("report", tmp_path / "a", "--out", tmp_path / "r")
    text = Read((tmp_path / "r/report.html").read_text("utf-8")).text
    assert "20 stored candidates" in text
    assert "These lists rank all items; the metrics above rank stored candidates." in text
    data = Dataset.load(place / "d")
    lists = np.tile(np.arange(12, dtype=np.int32), (data.n_users, 1))
    save_file({"topk": lists}, tmp_path / "lists.safetensors", metadata={"kdrs": "teacher/1"})
    ok("report", tmp_path / "lists.safetensors", place / "alone/seed-0", "--data", place / "d", "--out", tmp_path / "l",
       "--protocol", "default")  # fmt: skip
    assert "lists.safetensors" in Read((tmp_path / "l/report.html").read_text("utf-8")).text


def test_wrong_titles_are_told_before_anything_is_evaluated(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("none.csv").write_text("item_id,title\nx,y\n")
    error = fails(3, "report", place / "t", "--out", "r", "--item-names", "none.csv")
    assert "none.csv has no title of an item of the data set: the first is x, the data set's first is i" in error
    assert "cannot read nowhere" in fails(3, "report", place / "t", "--out", "r", "--item-names", "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["none.csv"]


def test_the_pages_numbers_are_finite(place):
    for _, attributes in Read(page_at(place)).elements:
        for name, value in attributes.items():
            if name in ("x", "y", "x1", "x2", "y1", "y2", "d", "points", "transform", "data-value"):
                assert not re.search("nan|inf", value or "", re.I), (name, value)
    assert math.isfinite(len(page_at(place)))
