"""A comparison in LaTeX and CSV, what is marked as best in every form, and the band over seeds."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrs.comparison.charts import looks_of
from kdrs.comparison.compare import Entry, compare
from kdrs.comparison.latex import tabular
from kdrs.comparison.learning import learning_of
from kdrs.comparison.picture import _looks
from kdrs.comparison.result import Comparison
from kdrs.comparison.standing import places_of
from kdrs.comparison.tables import Table
from kdrs.escaping import latex
from kdrs.evaluation.protocols import METRICS
from kdrs.evaluation.report import Report
from kdrs.evaluation.significance import Spread, holm, paired_test, seed_test

SPECIALS = r"a_b & 50% #1 $x$ {y} ~z ^w \n <b> [c] *d* | ``q'' 'r' \"s\" e--f--- g,,h ?` é"
"""A name that holds all that LaTeX takes for something else."""
LATEX = shutil.which("pdflatex")


def spread(mean: float) -> Spread:
    return Spread(mean, float("nan"), float("nan"), float("nan"), 1)


def made(gains: dict[str, float], seeds: int = 3, n: int = 400, curves: bool = False) -> Comparison:
    """A teacher with a lead of 0.2, a model alone, and students with shares of it; noise differs by seed."""
    base = np.random.default_rng(0).random(n) * 0.4

    def entry(name: str, role: str, gain: float, seed: int, size: int) -> Entry:
        noise = np.random.default_rng([seed, *name.encode("utf-8", "surrogatepass")]).normal(0, 0.03, n)
        values = base + 0.2 * gain + noise
        report = Report({"recall@10": values, "ndcg@10": values / 2}, np.arange(n), n_queries=n + 5)
        rows: Any = [{"epoch": e, "valid": {"recall@10": (e + seed) / 50}} for e in range(10 + seed)] if curves else ()
        return Entry(name, role, {"test": report}, size, 4 * size, size / 1e7, rows, seed, bytes_per_row=size / 10)

    entries = [entry("big", "teacher", 1.0, 0, 1000)]
    for seed in range(seeds):
        entries.append(entry("small", "alone", 0.0, seed, 100))
        entries += [entry(name, "student", gain, seed, 100) for name, gain in gains.items()]
    return compare(entries, metrics=("recall@10", "ndcg@10"), resamples=1000)


# --- what is marked -------------------------------------------------------------------------------------------------


def test_places_go_by_the_mean_as_it_is_shown():
    means = {"a": spread(0.30001), "b": spread(0.29999), "c": spread(0.2), "d": spread(float("nan")), "e": spread(0.1)}
    assert places_of(means) == {"a": 1, "b": 1, "c": 3, "e": 4}


def test_more_is_better_of_every_metric_of_kdrs():
    """Places take the highest mean: a metric of which less is better would need its direction stated."""
    assert set(METRICS) == {"hit", "recall", "precision", "ndcg", "mrr", "map"}


def test_the_best_is_none_of_the_teachers():
    found = made({"weak": 0.2, "good": 0.6})
    by_name = {line.name: line for line in found.lines}
    assert by_name["big"].standings == {}
    assert by_name["big"].quality["recall@10"].mean > by_name["good"].quality["recall@10"].mean
    assert {name: line.standings["recall@10"].place for name, line in by_name.items() if line.standings} == {
        "good": 1, "weak": 2, "small": 3,
    }  # fmt: skip
    assert by_name["good"].standings["recall@10"].to_best is None
    assert not by_name["weak"].standings["recall@10"].is_alike
    assert made({}).lines[1].standings == {}  # one alone is no best


def test_tests_against_the_best_carry_holms_correction_over_all_of_them():
    found = made({"a": 0.6, "b": 0.59})
    by_name = {line.name: line for line in found.lines}
    values = {}
    for name in ("a", "b", "small"):
        gain = {"a": 0.6, "b": 0.59, "small": 0.0}[name]
        base = np.random.default_rng(0).random(400) * 0.4
        values[name] = [
            base + 0.2 * gain + np.random.default_rng([seed, *name.encode()]).normal(0, 0.03, 400) for seed in range(3)
        ]
    means = {name: np.mean(rows, axis=0) for name, rows in values.items()}
    best = max(means, key=lambda name: means[name].mean())
    others = [name for name in means if name != best]
    p = {name: paired_test(means[name], means[best], resamples=1000).p for name in others}
    seeds = {name: seed_test(*([v.mean() for v in values[who]] for who in (name, best))).p for name in others}
    # both metrics have the same p-values here: one is half the other
    expected = holm([p[name] for name in others] * 2)
    over_seeds = holm([seeds[name] for name in others] * 2)
    for at, name in enumerate(others):
        standing = by_name[name].standings["recall@10"]
        assert standing.best == best
        assert standing.to_best is not None
        assert standing.to_best_by_seed is not None
        assert standing.to_best.p_adjusted == pytest.approx(expected[at])
        assert standing.to_best_by_seed.p_adjusted == pytest.approx(over_seeds[at], rel=1e-5)
        assert standing.is_alike == (max(expected[at], over_seeds[at]) >= 0.05)
    document = json.loads(json.dumps(found.to_json()))
    stated = {run["name"]: run["standings"] for run in document["runs"]}
    assert stated["big"] == {}
    assert stated[best]["recall@10"] == {
        "place": 1, "best": best, "to_best": None, "to_best_by_seed": None, "verdict": None,
    }  # fmt: skip
    assert stated["small"]["ndcg@10"]["verdict"]["word"] == "worse"


def test_every_form_marks_the_same():
    found = made({"first": 0.6, "near": 0.597, "far": 0.2})
    by_name = {line.name: line.standings["recall@10"] for line in found.lines if line.standings}
    order = sorted(by_name, key=lambda name: by_name[name].place)
    assert order[2:] == ["far", "small"]
    best, second = order[:2]
    assert by_name[second].is_alike
    mean = {line.name: f"{line.quality['recall@10'].mean:.4f}" for line in found.lines}
    markdown, tex, page = found.markdown(), found.latex(), found.page()
    assert f"**{mean[best]} ±" in markdown
    assert re.search(rf"<ins>{mean[second]} ±[\d.]+</ins> ≈ \|", markdown)
    assert f"\\textbf{{{mean[best]} $\\pm$" in tex
    assert re.search(rf"\\underline\{{{mean[second]} \$\\pm\$[\d.]+\}}\$\^\{{\\approx\}}\$ &", tex)
    assert f"<strong>{mean[best]}</strong> ±" in page
    assert re.search(rf"<u>{mean[second]}</u> ± [\d.]+ ≈<small>", page)
    for form in (markdown, tex, page):
        assert mean["big"] in form
        assert not re.search(rf"(\*\*|textbf{{|<strong>){mean['big']}", form)
        assert "Bold: the best by a metric, the teacher left out" in form
    text = found.text()
    assert f"Best by recall@10: {best}; not clearly different: {second}; the others are clearly worse." in text
    assert "Clearly: p (Holm, 6 comparisons with the best) below 0.05, over queries and over seeds." in text
    assert "≈" not in text
    equal = made({"one": 0.5})
    line = equal.lines[-1]
    twin = replace(equal, lines=(*equal.lines, replace(line, name="two")))
    assert twin.markdown().count("**0.") == 4  # of two metrics


# --- LaTeX ----------------------------------------------------------------------------------------------------------


def test_latex_escapes_what_it_would_take_for_something_else():
    assert latex("a_b & 50%") == r"a\_b \& 50\%"
    assert latex(r"\input{x}") == r"\textbackslash{}input\{x\}"
    assert latex("a--b---c") == "a-{}-b-{}-{}-c"
    assert latex("[1] *") == "{[}1{]} {*}"
    assert latex("``a''") == r"\textasciigrave{}\textasciigrave{}a'{}'"
    assert latex("a\u202eb") == r"a\textbackslash{}u202eb"
    for character in "&%$#_":
        assert not re.search(rf"(?<!\\){re.escape(character)}", latex(SPECIALS))


def test_the_tables_of_the_file_are_whole():
    tex = made({SPECIALS: 0.5, "b": 0.1}).latex()
    assert tex.startswith("% Written by kdrs")
    for name in ("table", "tabular"):
        assert tex.count(f"\\begin{{{name}}}") == tex.count(f"\\end{{{name}}}") == 3
    for align, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", tex, re.S):
        assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
        rows = [row for row in body.split("\n") if row.endswith(r"\\")]
        assert len(rows) > 4
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(align) - 1}
    assert "$-$" in made({"b": -0.4}).latex()


@given(
    low=st.floats(-9, 9, allow_subnormal=False),
    high=st.floats(-9, 9),
    layout=st.sampled_from(["{}", "{} [{}, {}]", "{} ±{}"]),
)
def test_every_minus_of_a_number_is_one_in_latex(low, high, layout):
    """Behind brackets too, which are escaped with braces; hyphens of words stay."""
    cell = layout.format(*(f"{value:.2f}" for value in (low, high, low)))
    tex = (
        tabular(Table("t", ("name", "metric", "value"), (("a-b", "c-1", cell),))).split("\\midrule\n")[1].split("\n")[0]
    )
    assert tex.startswith("a-b & c-1 & ")
    assert tex.replace("$-$", "", cell.count("-")).count("-") == 2
    assert tex.count("$-$") == cell.count("-")


def test_words_between_numbers_are_escaped_in_markdown():
    """A page of a recipe says where a number is printed, in the words of whoever wrote it."""
    cells = ("0.5 [-0.1, +0.2]", "table 2 & 3_b | x", "-", "[a](b)", "≤ 0.0001", "12.5%", "better (one seed)")
    table = Table(
        "t", ("run", "state", *map(str, range(len(cells)))), (("a|b", "done", *cells),), marks={(0, 5): ("best",)}
    )
    row = table.markdown().split("\n")[4]
    assert len(re.findall(r"(?<!\\)\|", row)) == len(cells) + 3
    assert row == (
        r"| a\|b | done | 0.5 [-0.1, +0.2] | table 2 &amp; 3_b \| x | - | **\[a\](b)** | ≤ 0.0001 | 12.5% | better (one seed) |"
    )


@given(
    gains=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from([0.1, 0.5, -0.4]), max_size=2),
    part=st.one_of(st.sampled_from(["valid", "test"]), st.text(max_size=6)),
)
@settings(max_examples=15)
def test_every_latex_table_has_a_label_of_its_own(gains, part):
    """Of letters, digits and hyphens, behind its caption, which it takes its number from."""
    found = replace(made(gains, seeds=1, n=30), part=part)
    for one in (found, replace(found, lines=tuple(replace(line, transfer={}) for line in found.lines)), alone()):
        tex = one.latex()
        labels = re.findall(r"^\\caption\{.*\}\\label\{(tab:kdrs-[A-Za-z0-9-]+)\}$", tex, re.M)
        assert len(labels) == len(set(labels)) == tex.count(r"\begin{table}")
    assert made({"b": 0.1}).latex().count(r"\label{tab:kdrs-test-") == 3
    assert made({"b": 0.1}).latex("a_b c").count(r"\label{tab:a-b-c-test-") == 3
    assert made({"b": 0.1}).latex("é").count(r"\label{tab:kdrs-test-") == 3


def test_two_reports_have_labels_of_their_own(tmp_path):
    for name in ("movies", "papers"):
        made({"b": 0.1}).save(tmp_path / name, picture=False)
        tex = (tmp_path / name / "comparison.tex").read_text("utf-8")
        assert tex.count(rf"\label{{tab:{name}-test-") == 3


def alone() -> Comparison:
    """Of one model, with nothing to compare it with."""
    report = Report({"recall@10": np.ones(3)}, np.arange(3), n_queries=3)
    return compare([Entry("one", "student", {"test": report})])


@pytest.mark.skipif(
    LATEX is None, reason="no pdflatex is installed (Debian: apt-get install texlive-latex-recommended)"
)
def test_latex_takes_the_file(tmp_path):
    assert LATEX is not None
    (tmp_path / "tables.tex").write_text(made({SPECIALS: 0.5, "b": 0.1}).latex(), "utf-8")
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n\\input{tables.tex}\n\\end{document}\n"
    )
    done = subprocess.run(
        [LATEX, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"], cwd=tmp_path, capture_output=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-2000:]
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")
    assert b"undefined" not in done.stdout


# --- CSV ------------------------------------------------------------------------------------------------------------


def test_csv_is_read_back_as_it_was():
    name = 'a,"b"\n=c'
    found = made({name: 0.5, "b": 0.1})
    frame = pl.read_csv(io.StringIO(found.csv()), infer_schema_length=None)
    assert frame.height == len(found.lines) * len(found.metrics)
    rows = {(row["model"], row["metric"]): row for row in frame.iter_rows(named=True)}
    for line in found.lines:
        for metric in found.metrics:
            row = rows[line.name.replace("\n", "\\n"), metric]
            spread, transfer = line.quality[metric], line.transfer.get(metric)
            assert (row["role"], row["mean"], row["n"]) == (line.role, spread.mean, spread.n)
            assert row["sd"] == (spread.sd if spread.n > 1 else None)
            assert (row["low"], row["high"]) == line.intervals[metric]
            assert (row["n_bytes"], row["bytes_per_row"]) == (line.n_bytes, line.bytes_per_row)
            assert row["seeds"] == " ".join(map(str, line.seeds))
            ratio = (None, None, None) if transfer is None else (transfer.ratio, transfer.low, transfer.high)
            assert (row["transfer_ratio"], row["transfer_ratio_low"], row["transfer_ratio_high"]) == ratio
            assert row["p_over_queries"] == (line.against[metric].p if metric in line.against else None)
            assert row["place"] == (line.standings[metric].place if line.standings else None)
    assert {row["n_queries"] for row in rows.values()} == {400}


def test_csv_names_the_setting_and_leaves_out_what_is_not_there():
    report = Report({"hit@5": np.zeros(3)}, np.arange(3), setting="sampled(99)")
    runs = [Entry("t", "teacher", {"test": report}), Entry("s", "student", {"test": report})]
    frame = pl.read_csv(io.StringIO(compare(runs).csv()))
    assert frame["metric"].unique().to_list() == ["hit@5 sampled(99)"]
    assert frame["share_of_teacher"].null_count() == 2
    assert "nan" not in compare(runs).csv()


# --- the band over seeds --------------------------------------------------------------------------------------------


def test_the_band_is_from_the_lowest_seed_to_the_highest():
    found = made({"a": 0.5}, curves=True)
    big, small, _ = found.lines
    band = learning_of(small, "valid", "recall@10")
    assert band is not None
    assert band.epochs.tolist() == list(range(10))  # the first seed stops there
    np.testing.assert_allclose(band.low, np.arange(10) / 50)
    np.testing.assert_allclose(band.mean, (np.arange(10) + 1) / 50)
    np.testing.assert_allclose(band.high, (np.arange(10) + 2) / 50)
    assert [epochs.size for epochs, _ in band.singles] == [10, 11, 12]
    lone = learning_of(big, "valid", "recall@10")
    assert lone is not None
    assert lone.epochs.size == 0
    assert learning_of(big, "valid", "ndcg@10") is None


def test_picture_and_page_draw_the_band_and_say_what_it_is(tmp_path):
    pytest.importorskip("matplotlib")
    found = made({"a": 0.5}, curves=True)
    place = found.picture(tmp_path / "p.svg")
    root = ElementTree.parse(place).getroot()
    assert len([e for e in root.iter() if e.get("id") == "band"]) == 2  # the teacher has one seed
    texts = {"".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text")}
    assert any("line: mean of the seeds; band: lowest to highest" in text for text in texts)
    page = found.page()
    assert page.count('class="band ') == 2
    assert "mean and a band from the lowest to the highest" in page
    assert "epoch" not in Path(found.picture(tmp_path / "r.svg", metric="ndcg@10")).read_text()  # no curve has it
    without = made({"a": 0.5}, seeds=1, curves=True)
    assert "band" not in Path(without.picture(tmp_path / "q.svg")).read_text()


def test_pictures_tell_models_alone_apart_as_the_page_does():
    taught = made({"a": 0.5, "b": 0.2}, seeds=1).lines
    alone = [replace(line, role="alone") if line.name == "b" else line for line in taught]
    untaught = [replace(line, role="alone") if line.role == "student" else line for line in taught]
    for lines, hollow in ((taught, ["small"]), (alone, ["small", "b"]), (untaught, ["small"])):
        looks, page = _looks(lines), looks_of(lines)
        assert [name for name, look in looks.items() if "markerfacecolor" in look] == hollow
        assert [name for name, look in page.items() if look.class_.startswith("alone")] == hollow
        assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(lines)
    many = [replace(taught[2], name=f"m{n}") for n in range(20)]
    assert len({(look["color"], look["marker"]) for look in _looks(many).values()}) == 20
