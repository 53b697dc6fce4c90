"""An evaluation in shares: joined, the report that one machine writes, to the last byte."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import kdrs
from commands import FAST, fails, ok
from conftest import toy_dataset
from kdrs._parts import parts_beside, span_of
from kdrs.core.codes import Codes
from kdrs.errors import DataError
from kdrs.evaluation import evaluator as module
from kdrs.evaluation.portions import Portion, joined
from kdrs.evaluation.report import Report

N, M = 70, 50


@pytest.fixture(scope="module")
def data():
    return toy_dataset(N, M)


SCORERS = {
    "factors": lambda q, x: (q, x),
    "codes": lambda q, x: (Codes.of(q, 4), Codes.of(x, 4)),
    "blocks": lambda q, x: lambda rows: q[rows] @ x.T,
    "lists": lambda q, x: kdrs.ranking.topk(q, x, 30),
}


@pytest.mark.parametrize("protocol", ["default", "loo-499", "caser", "bd"])
@pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)
@pytest.mark.parametrize("shares", [1, 2, 5, 75])  # of 70 queries
def test_shares_joined_are_the_report(data, tmp_path, monkeypatch, protocol, scorer, shares):
    rng = np.random.default_rng(0)
    made = scorer(*(rng.normal(size=(n, 6)).astype(np.float32) for n in (N, M)))
    monkeypatch.setattr("kdrs.evaluation.scorers.SCORES", 9 * M)  # several blocks
    evaluator = kdrs.Evaluator.of(data, protocol)
    if isinstance(made, tuple) and hasattr(made, "items") and evaluator.candidates is not None:
        pytest.skip("lists do not rank candidates")
    if isinstance(made, kdrs.ranking.Ranking) and evaluator.ties != "list":
        pytest.skip("lists have no ranks")
    for part in evaluator.truths:
        portions = []
        for share in range(1, shares + 1):
            evaluator.portion(made, part, (share, shares)).save(tmp_path / "p.npz")
            portions.append(Portion.load(tmp_path / "p.npz"))
        joined(portions).report().save(tmp_path / "joined.json")
        evaluator(made)[part].save(tmp_path / "whole.json")
        for ending in ("json", "npz"):
            assert (tmp_path / f"joined.{ending}").read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
        if shares == 5:
            assert sum(bool(one.rows.size) for one in portions) > 1


def test_spans_cover_all():
    for total in (0, 1, 7, 100):
        for of in (1, 3, 13):
            spans = [span_of((part, of), total) for part in range(1, of + 1)]
            assert spans[0][0] == 0
            assert spans[-1][1] == total
            assert all(one[1] == two[0] for one, two in itertools.pairwise(spans))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shares")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toy_dataset(120, 90, candidates=None).save("d")
        run = ("--data", "d", *FAST, "--epochs", "3", "--threads", "1", "--quiet", "--dim", "4")
        ok("train", *run, "--out", "a")
        ok("train", *run, "--seed", "5", "--out", "b")
        ok("train", *run, "--model", "cdae", "--out", "network")
    return folder


@pytest.mark.parametrize("run", ["a", "network"])
@pytest.mark.parametrize("part", ["valid", "test"])
def test_the_command(place, tmp_path, monkeypatch, run, part):
    monkeypatch.chdir(place)
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    told = ok("eval", run, "--part", part, "--out", whole, "--json").document
    report = Report.load(whole)
    assert told["metrics"] == report.to_json()["metrics"]
    assert report.part == part
    (line,) = kdrs.compare_runs([run], part=part, time_scoring=False).lines
    assert {name: spread.mean for name, spread in line.quality.items()} == {
        name: report.mean(name) for name in line.quality
    }
    assert line.beyond.items() <= report.beyond.items()
    for share in (2, 3, 1):
        told = ok("eval", run, "--part", part, "--out", parts, "--share", f"{share}/3", "--threads", share, "--json")
        assert Path(told.document["file"]).name == f"parts.part-{share}-of-3.npz"
    assert "the report of 3 parts" in ok("eval", "--merge", "--out", parts).out
    for ending in (".json", ".npz"):
        assert parts.with_suffix(ending).read_bytes() == whole.with_suffix(ending).read_bytes()


def test_what_does_not_belong_together(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    out = tmp_path / "r.json"
    share = lambda number, *more, run="a": ok("eval", run, "--out", out, "--share", f"{number}/2", *more)
    assert "there are no parts" in fails(3, "eval", "--merge", "--out", out)
    share(1)
    assert "part 2 of 2 is missing" in fails(3, "eval", "--merge", "--out", out)
    for more, run, named in (
        ((), "b", "the run"),
        (("--part", "valid"), "a", "--part is test and valid"),
        (("--protocol", "hetcomp"), "a", "the protocol"),
    ):
        share(2, *more, run=run)
        assert f"parts 1 and 2 of 2 were not made alike: {named}" in fails(3, "eval", "--merge", "--out", out)
    share(2)
    second = tmp_path / "r.part-2-of-2.npz"
    kept = second.read_bytes()
    for harm in (b"", kept[:-5], b"x" + kept[1:]):
        second.write_bytes(harm)
        error = fails(3, "eval", "--merge", "--out", out)
        assert "is damaged, cut short, or not the file that was written" in error
        assert f"kdrs eval RUN --share 2/2 --out {out}" in error
    second.write_bytes(kept)
    assert not out.exists()
    assert ok("eval", "--merge", "--out", out, "--json").document["parts"] == 2


def test_options_beside(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    out = tmp_path / "r.json"
    for words, message in (
        (("a", "--share", "1/2"), "--share without --out"),
        (("--merge",), "--merge without --out"),
        (("a", "--merge", "--out", out), "needs no run"),
        (("--merge", "--out", out, "--share", "1/2"), "--share is given with --merge"),
        (("--merge", "--out", out, "--data", "d"), "--data is given with --merge"),
        (("a", "b", "--out", out), "2 are named"),
        (("--out", out), "0 are named"),
        (("a", "--out", out, "--metrics", "hit@5"), "--metrics is given with --out"),
        (("a", "--out", out, "--test", "bootstrap"), "--test is given with --out"),
        (("a", "--out", out, "--share", "3/2"), "--share is 3/2"),
        (("a", "--out", out, "--part", "tset"), "--part is tset"),
        ((), "no run is named"),
    ):
        assert message in fails(2, "eval", *words)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_portions(tmp_path, data):
    rng = np.random.default_rng(0)
    factors = tuple(rng.normal(size=(n, 6)).astype(np.float32) for n in (N, M))
    path = tmp_path / "p.npz"
    kdrs.Evaluator.of(data, "default").portion(factors, "test").save(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    head = json.loads(arrays["head"].tobytes())
    for name, changed in (
        ("head", np.frombuffer(b"[]", np.uint8)),
        ("head", np.frombuffer(json.dumps({**head, "values": ["x"] * 99}).encode(), np.uint8)),
        ("head", np.frombuffer(json.dumps({**head, "more": 1}).encode(), np.uint8)),
        ("rows", arrays["rows"][:-1]),
        ("popularity", arrays["popularity"][:-1]),
        ("value 0", arrays["value 0"].astype(np.float32)),
        ("head", np.array([{}], object)),
    ):
        np.savez(path, **{**arrays, name: changed})
        with pytest.raises(DataError, match="is no part of a report"):
            Portion.load(path)
    path.write_bytes(b"PK")
    with pytest.raises(DataError, match="is no part of a report"):
        Portion.load(path)


def test_an_unknown_part(data):
    with pytest.raises(kdrs.errors.ConfigError, match="unknown part"):
        module.Evaluator.of(data).portion((np.ones((N, 2)), np.ones((M, 2))), "tset")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="there are no parts"):
        parts_beside(tmp_path / "nowhere" / "r.npz", lambda part, of: "")
