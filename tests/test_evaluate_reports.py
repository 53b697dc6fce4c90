"""Reports, what goes beyond accuracy, and options of the evaluator that are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kdrs.data.dataset import Dataset
from kdrs.data.interactions import Interactions
from kdrs.errors import ArtefactError, ConfigError, DataError
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.lists import overlap, popularity, top_lists
from kdrs.evaluation.measures import beyond_accuracy
from kdrs.evaluation.protocols import PROTOCOLS
from kdrs.evaluation.report import Report
from test_evaluate import assert_same, left_one_out, made


def test_wrong_options_say_what_is_allowed():
    train, test = Interactions.from_pairs([], [], 2, 9), Interactions.from_pairs([0], [1], 2, 9)
    for options, words in [
        ({"ks": (0,)}, "K is 0"),
        ({"ks": ()}, "no list length"),
        ({"ks": (2.5,)}, "K is 2.5"),
        ({"metrics": ("ndgc",)}, "did you mean 'ndcg'"),
        ({"mask": "trian"}, "did you mean 'train'"),
        ({"ties": "list", "candidates": np.zeros((2, 1), int)}, "expected, optimistic"),
        ({"formulas": "bd", "ties": "expected", "candidates": np.zeros((2, 1), int)}, "full ranking"),
        ({"formulas": "caser"}, "ties"),
        ({"block": 0}, "block is 0"),
    ]:
        with pytest.raises(ConfigError, match=words):
            Evaluator(train, test, **{"ks": (5,)} | options)
    with pytest.raises(DataError, match="candidates are"):
        Evaluator(train, test, ks=(5,), candidates=np.zeros((3, 1), int))
    with pytest.raises(DataError, match="outside 0 to 8"):
        Evaluator(train, test, ks=(5,), candidates=np.full((2, 1), 9))
    with pytest.raises(DataError, match="test is"):
        Evaluator(train, Interactions.from_pairs([0], [1], 3, 9))
    with pytest.raises(DataError, match="one held-out item"):
        Evaluator(train, Interactions.from_pairs([0, 0], [1, 2], 2, 9), formulas="bd", ties="expected", ks=(5,))
    evaluator = Evaluator(train, test, ks=(5,))
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        evaluator((np.ones((2, 1)), np.ones((9, 1))), "tset")
    with pytest.raises(DataError, match="3 queries and 9 items, the data 2 and 9"):
        evaluator((np.ones((3, 1)), np.ones((9, 1))))
    with pytest.raises(DataError, match="10 items"):
        evaluator((np.ones((2, 1)), np.ones((10, 1))))
    with pytest.raises(DataError, match="dimensions"):
        evaluator((np.ones((2, 1)), np.ones((9, 2))))
    with pytest.raises(DataError, match=r"shape \(1, 8\)"):
        evaluator(lambda rows: np.ones((rows.size, 8)))
    with pytest.raises(ConfigError, match="str is no scorer"):
        evaluator("model")


def test_bias_counts():
    train, test = Interactions.from_pairs([], [], 1, 3), Interactions.from_pairs([0], [2], 1, 3)
    factors = np.zeros((1, 1)), np.zeros((3, 1)), np.array([0.0, 0.0, 1.0])
    assert Evaluator(train, test, ks=(1,))(factors)["test"].mean("hit@1") == 1.0
    table = np.array([[0, 1]])
    assert Evaluator(train, test, ks=(1,), candidates=table)(factors)["test"].mean("hit@1") == 1.0


def test_beyond_accuracy_by_hand():
    # Three lists of two: items 0 0 0 1 1 2 of four; train counts 8, 4, 2, 0 among 8 users.
    found = beyond_accuracy(np.array([3, 2, 1, 0]), np.array([8, 4, 2, 0]), 8)
    assert found == pytest.approx(
        {
            "coverage": 0.75,
            "popularity": (3 * 8 + 2 * 4 + 2) / 6,
            "gini": (-3 * 0 - 1 * 1 + 1 * 2 + 3 * 3) / (4 * 6),
            "novelty": (0 * 3 + 1 * 2 + 2 * 1) / 6,
        }
    )
    assert beyond_accuracy(np.array([2, 2]), np.array([1, 0]), 2) == pytest.approx(
        {"coverage": 1.0, "popularity": 0.5, "gini": 0.0, "novelty": 1.0}
    )
    assert beyond_accuracy(np.zeros(3, int), np.ones(3, int), 2) == {}


def test_beyond_accuracy_in_a_report():
    case = made(7)
    report = Evaluator(case.train, case.truths, ks=(2, 4), block=11)((case.queries, case.items))["test"]
    exposure = {2: np.zeros(50, int), 4: np.zeros(50, int)}
    for rows, lists in top_lists((case.queries, case.items), case.train.union(case.valid), 4, block=9):
        for row, items in zip(rows, lists.items, strict=True):
            if case.test.row(int(row)).size:
                for k, counts in exposure.items():
                    counts[items[:k][items[:k] >= 0]] += 1
    for k, counts in exposure.items():
        expected = beyond_accuracy(counts, case.train.column_degrees, 30)
        assert {name: report.beyond[f"{name}@{k}"] for name in expected} == pytest.approx(expected)


def test_popularity_ranks_by_train_count():
    train = Interactions.from_pairs([0, 1, 2, 0, 1], [2, 2, 2, 1, 1], 4, 4)
    (_, lists), *rest = top_lists(popularity(train), train, 3)
    assert not rest
    assert lists.items.tolist() == [[0, 3, -1], [0, 3, -1], [1, 0, 3], [2, 1, 0]]


def test_overlap_by_hand():
    a = np.array([[1, 2, 3], [4, 5, -1], [-1, -1, -1]])
    b = np.array([[3, 2, 9], [6, 7, 8], [-1, -1, -1]])
    found = overlap(a, b, (1, 3))
    assert found["overlap@1"].tolist() == [0.0, 0.0, 0.0]
    assert found["overlap@3"] == pytest.approx([2 / 3, 0, 0])
    assert found["jaccard@3"] == pytest.approx([2 / 4, 0, 1])
    with pytest.raises(ConfigError, match="lists hold 3"):
        overlap(a, b, (4,))
    with pytest.raises(DataError, match="same queries"):
        overlap(a, b[:2], (1,))


def test_reports_survive_the_disk(tmp_path):
    evaluator, _, _ = left_one_out(10)
    report = evaluator((np.ones((10, 1)), np.arange(3000.0)[:, None]))["test"]
    report.save(tmp_path / "eval" / "test.json")
    assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == ["test.json", "test.npz"]
    again = Report.load(tmp_path / "eval" / "test")
    assert_same(report, again)
    head = json.loads((tmp_path / "eval" / "test.json").read_text())
    assert head["schema"] == 1
    assert set(head["metrics"]) == {f"{name} sampled(499)" for name in evaluator.names}
    assert "hit@5 sampled(499)=" in repr(again)
    first = (tmp_path / "eval" / "test.npz").read_bytes()
    report.save(tmp_path / "eval" / "test.json")
    assert (tmp_path / "eval" / "test.npz").read_bytes() == first


def test_damaged_reports_are_refused(tmp_path):
    with pytest.raises(ArtefactError, match="no report"):
        Report.load(tmp_path / "none.json")
    evaluator, _, _ = left_one_out(3)
    evaluator((np.ones((3, 1)), np.ones((3000, 1))))["test"].save(tmp_path / "test.json")
    arrays, head = tmp_path / "test.npz", tmp_path / "test.json"
    whole, text = arrays.read_bytes(), head.read_text()
    arrays.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="damaged"):
        Report.load(head)
    arrays.write_bytes(whole)
    for broken in (text[:20], "[]", text.replace('"schema": 1', '"schema": 2'), text.replace('"rules"', '"rule"')):
        head.write_text(broken)
        with pytest.raises(ArtefactError, match=r"damaged|schema"):
            Report.load(head)
    with pytest.raises(ConfigError, match="holds no"):
        evaluator((np.ones((3, 1)), np.ones((3000, 1))))["test"].mean("hit@7")


def prepared(n_users: int, candidates: bool = True) -> Dataset:
    evaluator, items, _ = left_one_out(n_users)
    valid, test = evaluator.truths["valid"], evaluator.truths["test"]
    return Dataset.from_interactions(evaluator.seen, valid, test, candidates=items[:, 2:] if candidates else None)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_preset_evaluates_what_it_selects_by(name):
    evaluator = Evaluator.of(prepared(6), protocol=name)
    reports = evaluator((np.ones((6, 1)), np.ones((3000, 1))))
    assert set(reports) == {"valid", "test"}
    assert set(PROTOCOLS[name].selection.metrics) <= set(reports["valid"].values) == set(evaluator.names)
    assert (reports["test"].setting == "full") == (PROTOCOLS[name].setting == "full")


def test_the_data_set_decides_the_default_protocol():
    data = prepared(4)
    assert Evaluator.of(data).setting == "sampled(499)"
    assert Evaluator.of(data, ks=(3,)).ks == (3,)
    bare = prepared(4, candidates=False)
    assert Evaluator.of(bare).setting == "full"
    with pytest.raises(DataError, match="stored candidates"):
        Evaluator.of(bare, "loo-499")
    with pytest.raises(DataError, match="holds nothing out"):
        Evaluator.of(Dataset.from_interactions(bare.train))


def test_hits_and_ndcg_of_one_target_bound_each_other():
    """Places 6 to 10 count between 1 / log2 11 and 1 / log2 7 in NDCG, and 1 in hits."""
    rng = np.random.default_rng(4)
    scores, users = rng.normal(size=(300, 40)), np.arange(300)
    train = Interactions.from_pairs(users, [0] * 300, 300, 40)
    test = Interactions.from_pairs(users, rng.integers(1, 40, 300), 300, 40)
    report = Evaluator(train, test, ks=(5, 10), metrics=("hit", "ndcg"))(lambda rows: scores[rows])["test"]
    hits, gains = (report.values[f"{name}@10"] - report.values[f"{name}@5"] for name in ("hit", "ndcg"))
    assert hits.sum() > 0
    assert (gains >= hits / np.log2(11) - 1e-12).all()
    assert (gains <= hits / np.log2(7) + 1e-12).all()
