"""The evaluator against slow oracles, enumeration of all orders of equal scores, and numbers worked by hand."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrs.core.ranking import Ranking
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.measures import rank_metrics
from kdrs.evaluation.protocols import protocol
from kdrs.evaluation.report import Report
from kdrs.evaluation.scorers import members, merged

ALL = ("hit", "recall", "precision", "ndcg", "mrr", "map")


def of_ranked(ranked: list[int], truth: set[int], k: int, formulas: str = "standard") -> dict[str, float]:
    """The metrics of one ranked list, written down from their definitions."""
    places = [place for place, item in enumerate(ranked, 1) if item in truth]
    if formulas == "bd":
        counted = [p for p in places if p < k]
        return {"hit": float(bool(counted)), "ndcg": sum(1 / math.log2(p + 2) for p in counted)}
    inside = [p for p in places if p <= k]
    depth = min(len(truth), k)
    in_dcg = [p for p in places if p <= depth] if formulas == "caser" else inside
    found = {
        "hit": float(bool(inside)),
        "recall": len(inside) / len(truth),
        "precision": len(inside) / k,
        "ndcg": sum(1 / math.log2(p + 1) for p in in_dcg) / sum(1 / math.log2(p + 1) for p in range(1, depth + 1)),
        "mrr": 1 / inside[0] if inside else 0.0,
        "map": sum(n / p for n, p in enumerate(inside, 1)) / depth,
    }
    if formulas == "caser":
        found["map"] = sum(n / p for n, p in enumerate(places, 1)) / len(truth)
    return found


def over_all_orders(scores: list[int], truth: set[int], k: int, formulas: str) -> dict[str, float]:
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    found = [of_ranked(list(order), truth, k, formulas) for order in orders]
    return {name: sum(f[name] for f in found) / len(found) for name in found[0]}


def counted(scores: list[int], truth: set[int]) -> tuple[np.ndarray, np.ndarray]:
    better = [sum(s > scores[t] for s in scores) for t in sorted(truth)]
    tied = [sum(s == scores[t] for s in scores) - 1 for t in sorted(truth)]
    return np.array(better), np.array(tied)


cases = st.lists(st.integers(0, 2), min_size=1, max_size=6).flatmap(
    lambda scores: st.tuples(st.just(scores), st.sets(st.integers(0, len(scores) - 1), min_size=1))
)


@settings(max_examples=60, deadline=None)
@given(st.lists(cases, min_size=1, max_size=3), st.sampled_from(["standard", "caser"]))
def test_expected_ties_are_the_mean_over_all_orders(queries, formulas):
    ranks = [counted(*query) for query in queries]
    better, tied = (np.concatenate(side) for side in zip(*ranks, strict=True))
    # Every query is the last of one catalogue of six items, the absent ones scored below everything.
    ks = (1, 2, 3, 5, 8)
    found = rank_metrics(better, tied, [len(truth) for _, truth in queries], ks, ALL, formulas=formulas, n_items=6)
    for q, (scores, truth) in enumerate(queries):
        for k in ks:
            expected = over_all_orders(scores, truth, k, formulas)
            for name in ALL:
                key = "map@all" if formulas == "caser" and name == "map" else f"{name}@{k}"
                assert found[key][q] == pytest.approx(expected[name], abs=1e-12), key


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.data())
def test_expected_ties_of_the_bd_formulas(scores, data):
    truth = {data.draw(st.integers(0, len(scores) - 1))}
    found = rank_metrics(*counted(scores, truth), [1], (1, 2, 4), ("hit", "ndcg"), formulas="bd")
    for k in (1, 2, 4):
        expected = over_all_orders(scores, truth, k, "bd")
        assert found[f"hit@{k}"][0] == pytest.approx(expected["hit"], abs=1e-12)
        assert found[f"ndcg@{k}"][0] == pytest.approx(expected["ndcg"], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_optimistic_and_pessimistic_put_targets_first_and_last(case):
    scores, truth = case
    for ties, sign in (("optimistic", -1), ("pessimistic", 1)):
        order = sorted(range(len(scores)), key=lambda i, sign=sign: (-scores[i], sign * (i in truth)))
        found = rank_metrics(*counted(scores, truth), [len(truth)], (1, 2, 4), ALL, ties=ties)
        for k in (1, 2, 4):
            expected = of_ranked(order, truth, k)
            for name in ALL:
                assert found[f"{name}@{k}"][0] == pytest.approx(expected[name], abs=1e-12)


def test_one_target_by_hand():
    def at(better: int, tied: int = 0, **options: Any) -> dict[str, float]:
        found = rank_metrics(np.array([better]), np.array([tied]), [1], (5,), **options)
        return {name: float(values[0]) for name, values in found.items()}

    third = at(2)
    assert (third["hit@5"], third["ndcg@5"], third["mrr@5"]) == (1.0, 0.5, 1 / 3)
    assert at(0)["ndcg@5"] == at(0)["mrr@5"] == at(0)["map@5"] == 1.0
    assert at(5)["hit@5"] == at(5)["ndcg@5"] == 0.0
    # Four better, four more tied: places 5 to 9, one of five inside.
    assert at(4, 4)["hit@5"] == pytest.approx(0.2)
    assert at(4, 4)["ndcg@5"] == pytest.approx(0.2 / math.log2(6))
    assert at(4, 4)["mrr@5"] == pytest.approx(0.2 / 5)
    assert (at(4, 4, ties="optimistic")["hit@5"], at(4, 4, ties="pessimistic")["hit@5"]) == (1.0, 0.0)
    bd = at(0, formulas="bd")
    assert bd["ndcg@5"] == pytest.approx(0.6309, abs=1e-4)
    assert (at(3, formulas="bd")["hit@5"], at(4, formulas="bd")["hit@5"]) == (1.0, 0.0)


def test_caser_by_hand():
    # Targets at places 2 and 3. K=1 looks at one place; K=3 at min(2, 3) = 2 places.
    found = rank_metrics(np.array([1, 2]), np.array([0, 0]), [2], (1, 3), formulas="caser", n_items=10)
    assert found["ndcg@1"][0] == 0.0
    assert found["ndcg@3"][0] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert found["map@all"][0] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert "map@3" not in found


@dataclass
class Case:
    train: Interactions
    valid: Interactions
    test: Interactions
    queries: np.ndarray
    items: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        return self.queries @ self.items.T

    @property
    def truths(self) -> dict[str, Interactions]:
        return {"valid": self.valid, "test": self.test}


def made(seed: int = 0, n_users: int = 30, n_items: int = 50, heavy: bool = False) -> Case:
    """Random parts; small integer vectors, so that every product is exact and many scores are equal."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(4, size=(n_users, n_items), p=[0.4, 0.2, 0.1, 0.3] if heavy else [0.1, 0.04, 0.05, 0.81])
    kind[:2] = 3
    kind[2, kind[2] == 2] = 3
    parts = [Interactions.from_pairs(*np.nonzero(kind == part), n_users, n_items) for part in range(3)]
    queries, items = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (n_users, n_items))
    return Case(*parts, queries, items)


def oracle(case: Case, part: str, ks: tuple[int, ...], mask: str = "all-other-parts") -> dict[str, list[float]]:
    truth, other = (case.test, case.valid) if part == "test" else (case.valid, case.test)
    found: dict[str, list[float]] = {f"{name}@{k}": [] for name in ALL for k in ks}
    for user in range(truth.shape[0]):
        targets = set(truth.row(user).tolist())
        if not targets:
            continue
        hidden = set(case.train.row(user).tolist())
        if mask == "all-other-parts":
            hidden |= set(other.row(user).tolist())
        scores = case.scores[user].tolist()
        ranked = sorted((i for i in range(len(scores)) if i not in hidden), key=lambda i: (-scores[i], i))
        for k in ks:
            for name, value in of_ranked(ranked, targets, k).items():
                found[f"{name}@{k}"].append(value)
    return found


class Scorer:
    """What kdrs's own teachers offer."""

    def __init__(self, case: Case, factors: bool):
        self.case, self.offers_factors = case, factors

    def factors(self):
        return (
            (torch.from_numpy(self.case.queries), torch.from_numpy(self.case.items), None)
            if self.offers_factors
            else None
        )

    def score_block(self, rows):
        return torch.from_numpy(self.case.scores[rows])

    def score_pairs(self, rows, ids):
        return torch.from_numpy(np.take_along_axis(self.case.scores[rows], np.asarray(ids), axis=1))


def scorers(case: Case) -> dict[str, Any]:
    return {
        "arrays": (case.queries, case.items),
        "tensors": (torch.from_numpy(case.queries), torch.from_numpy(case.items), None),
        "float64": (case.queries.astype(np.float64), case.items.astype(np.float64)),
        "object with factors": Scorer(case, True),
        "object without": Scorer(case, False),
        "function": lambda rows: case.scores[rows],
        "torch function": lambda rows: torch.from_numpy(case.scores[rows]).requires_grad_(),
    }


@pytest.mark.parametrize("heavy", [False, True], ids=["few held out", "many held out"])
@pytest.mark.parametrize("kind", sorted(scorers(made())))
def test_full_ranking_against_the_oracle(kind, heavy):
    case = made(heavy=heavy)
    reports = Evaluator(case.train, case.truths, ks=(1, 3, 10))(scorers(case)[kind])
    for part, report in reports.items():
        expected = oracle(case, part, (1, 3, 10))
        assert report.n == len(expected["hit@1"]) < report.n_queries
        assert report.rows.tolist() == np.flatnonzero(case.truths[part].row_degrees).tolist()
        assert set(report.values) == set(expected)
        for name, values in report.values.items():
            assert values == pytest.approx(expected[name], abs=1e-12), (part, name)
            assert report.mean(name) == pytest.approx(np.mean(expected[name]))


@pytest.mark.parametrize("mask", ["all-other-parts", "train"])
def test_one_part_alone_equals_both_together(mask):
    case = made(3)
    evaluator = Evaluator(case.train, case.truths, mask=mask)
    both = evaluator((case.queries, case.items))
    for part in both:
        alone = evaluator((case.queries, case.items), part)
        assert list(alone) == [part]
        assert_same(alone[part], both[part])
        expected = oracle(case, part, (5,), mask)
        assert both[part].values["ndcg@5"] == pytest.approx(expected["ndcg@5"])


def assert_same(a: Report, b: Report) -> None:
    assert a.rows.tobytes() == b.rows.tobytes()
    assert {n: v.tobytes() for n, v in a.values.items()} == {n: v.tobytes() for n, v in b.values.items()}
    assert a.to_json() == b.to_json()


@pytest.mark.parametrize("setting", ["list", "expected", "sampled"])
def test_block_and_threads_never_change_a_byte(setting):
    rng = np.random.default_rng(1)
    case = made(1, n_users=70)
    # Real vectors, so that a sum in another order would show.
    case.queries, case.items = rng.normal(size=(70, 19)).astype("f4"), rng.normal(size=(50, 19)).astype("f4")
    options: dict[str, Any] = {"ties": setting} if setting != "sampled" else {"candidates": candidates(case, rng)}
    first = None
    for block in (1, 7, 64, None):
        for threads in (1, 2, 8):
            evaluator = Evaluator(case.train, case.truths, block=block, threads=threads, **options)
            reports = evaluator((case.queries, case.items))
            first = first or reports
            for part in reports:
                assert_same(reports[part], first[part])


def candidates(case: Case, rng: np.random.Generator, n: int = 12) -> np.ndarray:
    own = case.train.union(case.valid).union(case.test)
    table = np.full((own.shape[0], n), -1, np.int32)
    for user in range(own.shape[0]):
        free = rng.permutation(np.setdiff1d(np.arange(own.shape[1]), own.row(user)))[: n - user % 3]
        table[user, : free.size] = free
    return table


@pytest.mark.parametrize("kind", sorted(scorers(made())))
@pytest.mark.parametrize("ties", ["expected", "optimistic", "pessimistic"])
def test_candidates_against_the_oracle(kind, ties):
    case = made(5)
    table = candidates(case, np.random.default_rng(0))
    reports = Evaluator(case.train, case.truths, ks=(1, 4), candidates=table, ties=ties)(scorers(case)[kind])
    for part, truth in case.truths.items():
        for at, user in enumerate(reports[part].rows):
            rivals = [i for i in table[user].tolist() if i >= 0]
            for k in (1, 4):
                expected = []
                for target in truth.row(int(user)).tolist():
                    g = sum(case.scores[user, i] > case.scores[user, target] for i in rivals)
                    q = sum(case.scores[user, i] == case.scores[user, target] for i in rivals)
                    places = {"expected": range(g + 1, g + q + 2), "optimistic": [g + 1], "pessimistic": [g + q + 1]}
                    expected.append(np.mean([of_ranked([0] * (p - 1) + [1], {1}, k)["ndcg"] for p in places[ties]]))
                assert reports[part].values[f"ndcg@{k}"][at] == pytest.approx(np.mean(expected))


def left_one_out(n_users: int, n_items: int = 3000, seed: int = 0):
    """Each user's own 501 items: test, valid, 499 candidates."""
    rng = np.random.default_rng(seed)
    items = np.argpartition(rng.random((n_users, n_items)), 501, axis=1)[:, :501].astype(np.int32)
    users = np.arange(n_users)
    truths = {
        "test": Interactions.from_pairs(users, items[:, 0], n_users, n_items),
        "valid": Interactions.from_pairs(users, items[:, 1], n_users, n_items),
    }
    empty = Interactions.from_pairs([], [], n_users, n_items)
    return Evaluator(empty, truths, candidates=items[:, 2:]), items, rng


def test_an_all_equal_scorer_gets_its_expected_value():
    evaluator, _, _ = left_one_out(20)
    for report in evaluator((np.zeros((20, 2)), np.zeros((3000, 2)))).values():
        assert report.mean("hit@5") == pytest.approx(5 / 500)
        assert report.mean("ndcg@5") == pytest.approx(2.9485 / 500, abs=1e-7)
        assert report.mean("mrr@20") == pytest.approx(sum(1 / p for p in range(1, 21)) / 500)
        assert report.tied == 1.0


def test_random_scores_hit_one_in_a_hundred():
    evaluator, _, rng = left_one_out(1500)
    report = evaluator(lambda rows: rng.random((rows.size, 3000)))["test"]
    # sd of the mean: sqrt(.01 * .99 / 1500) = 0.0026.
    assert report.mean("hit@5") == pytest.approx(0.01, abs=0.008)
    assert report.mean("hit@20") == pytest.approx(0.04, abs=0.016)
    for k, (low, high) in {5: (math.log2(6), 1), 20: (math.log2(21), 1)}.items():
        hit, ndcg, mrr = (report.values[f"{name}@{k}"] for name in ("hit", "ndcg", "mrr"))
        assert (hit / low <= ndcg + 1e-12).all()
        assert (ndcg <= hit * high + 1e-12).all()
        assert (mrr <= ndcg + 1e-12).all()


def test_sampled_metrics_depend_on_nothing_but_the_order_of_test_item_and_candidates():
    evaluator, items, rng = left_one_out(40)
    scores = rng.integers(-30, 30, (40, 3000)).astype(np.float32)
    base = evaluator(lambda rows: scores[rows])
    slopes = rng.integers(1, 9, (40, 1)).astype(np.float32)
    assert_same(base["test"], evaluator(lambda rows: (slopes * scores + 7)[rows])["test"])
    moved = scores.copy()
    moved[np.arange(40), items[:, 1]] = 1000.0
    after = evaluator(lambda rows: moved[rows])
    assert_same(base["test"], after["test"])
    assert after["valid"].mean("hit@5") == 1.0 > base["valid"].mean("hit@5")
    shuffled = rng.permuted(items[:, 2:], axis=1)
    again = Evaluator(evaluator.seen, evaluator.truths, candidates=shuffled)
    assert_same(base["test"], again(lambda rows: scores[rows])["test"])


def test_a_validation_item_on_top_takes_no_place_in_the_test_list():
    users = np.arange(3)
    train = Interactions.from_pairs(users, [0, 0, 0], 3, 6)
    valid, test = (Interactions.from_pairs(users, [i] * 3, 3, 6) for i in (1, 2))
    scores = np.tile([9.0, 8.0, 7.0, 6.0, 5.0, 4.0], (3, 1))
    clean = Evaluator(train, {"valid": valid, "test": test}, ks=(1, 2))(lambda rows: scores[rows])
    assert (clean["valid"].mean("hit@1"), clean["test"].mean("hit@1")) == (1.0, 1.0)
    trap = Evaluator(train, {"valid": valid, "test": test}, ks=(1, 2), mask="train")(lambda rows: scores[rows])
    assert (trap["valid"].mean("hit@1"), trap["test"].mean("hit@1"), trap["test"].mean("hit@2")) == (1.0, 0.0, 1.0)


def test_zeroed_seen_items_keep_a_place():
    # Scores 2, -1, -3, seen item 0 has score 0 then: it stands before every negative score.
    train = Interactions.from_pairs([0], [0], 1, 3)
    scores = np.array([[2.0, -1.0, -3.0]])
    for target, hits in ((1, {1: 0.0, 2: 0.0, 3: 1.0}), (2, {1: 0.0, 3: 0.0, 4: 1.0})):
        test = Interactions.from_pairs([0], [target], 1, 3)
        with pytest.warns(UserWarning, match="catalogue"):
            evaluator = Evaluator(
                train, test, ks=(1, 2, 3, 4), metrics="hit", ties="expected", mask="train-zeroed", formulas="bd"
            )
        report = evaluator(lambda rows: scores[rows])["test"]
        assert {k: report.mean(f"hit@{k}") for k in hits} == hits
        factors = evaluator((np.ones((1, 1)), scores.T.copy()))["test"]
        assert_same(report, factors)


def test_bds_notebook_of_cdae_ranks_probabilities():
    """Seen items, at 0, come behind all others, whose scores are above 0 there; logits are not."""
    rng = np.random.default_rng(0)
    train = Interactions.from_pairs([0, 0, 0, 1], [0, 3, 5, 2], 2, 9)
    logits = rng.normal(-1.0, 1.0, (2, 9))
    test = Interactions.from_pairs([0, 1], [1, 4], 2, 9)
    options = protocol("bd-cdae").options() | {"ks": (1, 2, 4, 6)}
    report = Evaluator(train, test, **options)(lambda rows: logits[rows])["test"]
    shown = np.where(train.to_csr().toarray() > 0, 0.0, 1 / (1 + np.exp(-logits)))
    ranks = [(shown[user] > shown[user, item]).sum() + 1 for user, item in ((0, 1), (1, 4))]
    for k in options["ks"]:
        assert report.values[f"hit@{k}"].tolist() == [float(rank < k) for rank in ranks]


def test_mean_over_all_queries_counts_those_without_truth_as_zero():
    train = Interactions.from_pairs([], [], 4, 3)
    test = Interactions.from_pairs([1, 3], [0, 1], 4, 3)
    scores = np.tile([3.0, 2.0, 1.0], (4, 1))
    clean = Evaluator(train, test, ks=(1,))(lambda rows: scores[rows])["test"]
    assert (clean.n, clean.n_queries, clean.mean("recall@1")) == (2, 4, 0.5)
    trap = Evaluator(train, test, ks=(1,), average="all-queries")(lambda rows: scores[rows])["test"]
    assert (trap.n, trap.mean("recall@1"), trap.values["recall@1"].tolist()) == (4, 0.25, [0.0, 1.0, 0.0, 0.0])


def test_k_past_the_catalogue_keeps_the_denominator():
    train = Interactions.from_pairs([0], [0], 1, 3)
    test = Interactions.from_pairs([0], [1], 1, 3)
    with pytest.warns(UserWarning, match="K=10 is more than the catalogue's 3 items"):
        evaluator = Evaluator(train, test, ks=(1, 10))
    report = evaluator((np.ones((1, 1)), np.ones((3, 1))))["test"]
    assert report.mean("precision@10") == 0.1
    assert report.mean("recall@10") == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_by_name(bad):
    case = made(2)
    table = candidates(case, np.random.default_rng(0))
    scores = case.scores.copy()
    scores[4, table[4, 0]] = bad
    scores[9, :] = bad
    for options in ({}, {"candidates": table}):
        evaluator = Evaluator(case.train, case.truths, **options)
        with pytest.raises(DataError, match=f"user 4 for item {table[4, 0]} is"):
            evaluator(lambda rows: scores[rows])
    pairs = Scorer(case, False)
    pairs.score_pairs = lambda rows, ids: np.take_along_axis(scores[rows], ids, axis=1)  # type: ignore[method-assign]
    with pytest.raises(DataError, match=f"user 4 for item {table[4, 0]} is"):
        Evaluator(case.train, case.truths, candidates=table)(pairs)
    for side, word in (("queries", "user"), ("items", "item")):
        spoilt = made(2)
        getattr(spoilt, side)[7, 1] = bad
        for options in ({}, {"ties": "expected"}, {"candidates": table}):
            with pytest.raises(DataError, match=f"{word} 7 holds {bad}"):
                Evaluator(case.train, case.truths, **options)((spoilt.queries, spoilt.items))


def test_scores_past_the_float32_range_are_refused():
    case = made(2)
    with pytest.raises(DataError, match="past the float32 range"):
        Evaluator(case.train, case.truths)((case.queries * 1e20, case.items * 1e20))


def test_leaks_are_named_or_counted_as_misses():
    train = Interactions.from_pairs([0, 1], [0, 1], 2, 4)
    test = Interactions.from_pairs([0, 1], [3, 1], 2, 4)
    with pytest.raises(DataError, match="test pairs are also in train, the first is user 1, item 1"):
        Evaluator(train, test, ks=(2,))
    scores = np.tile([1.0, 4.0, 2.0, 3.0], (2, 1))
    for ties in ("list", "expected"):
        report = Evaluator(train, test, ks=(2,), leaks="miss", ties=ties)(lambda rows: scores[rows])["test"]
        assert report.values["hit@2"].tolist() == [1.0, 0.0]
    with pytest.raises(DataError, match="candidate of user 1"):
        Evaluator(Interactions.from_pairs([], [], 2, 4), test, ks=(2,), candidates=np.array([[0, 1], [2, 1]]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.3, 0.9]))
def test_members_and_merged_against_sets(seed, density):
    rng = np.random.default_rng(seed)
    a, b = (Interactions.from_pairs(*np.nonzero(rng.random((9, 40)) < d), 9, 40) for d in (density, density / 4))
    assert merged(a, b) == a.union(b)
    rows = np.sort(rng.integers(0, 9, 5))
    items = rng.integers(-1, 40, (5, 7)).astype(np.int32)
    found = members(a, rows, items)
    for row, listed, flags in zip(rows, items, found, strict=True):
        assert flags.tolist() == [item in set(a.row(row).tolist()) for item in listed.tolist()]


def test_ready_lists():
    train = Interactions.from_pairs([0], [5], 2, 6)
    valid = Interactions.from_pairs([0, 1], [1, 0], 2, 6)
    test = Interactions.from_pairs([0, 1], [2, 3], 2, 6)
    lists = np.array([[5, 1, 2, 0], [4, 3, -1, -1]], np.int32)
    evaluator = Evaluator(train, {"valid": valid, "test": test}, ks=(1, 2))
    for given_lists in (lists, torch.from_numpy(lists), Ranking(lists, np.zeros((2, 4), np.float32))):
        reports = evaluator(given_lists)
        # The seen item 5 and the other part's item are passed over.
        assert reports["test"].values["hit@1"].tolist() == [1.0, 0.0]
        assert reports["test"].values["hit@2"].tolist() == [1.0, 1.0]
        assert reports["valid"].values["hit@1"].tolist() == [1.0, 0.0]
    with pytest.raises(DataError, match="query 1 holds an item twice"):
        evaluator(np.array([[0, 1], [3, 3]]))
    with pytest.raises(DataError, match="query 0 holds an item outside"):
        evaluator(np.array([[0, 6], [3, 2]]))
    with pytest.raises(ConfigError, match="lambda rows: scores"):
        evaluator(np.zeros((2, 6)))
    with pytest.raises(ConfigError, match="candidates"):
        Evaluator(train, test, ks=(2,), candidates=np.array([[0], [1]]))(lists)
    with pytest.raises(ConfigError, match="ties='list'"):
        Evaluator(train, test, ks=(2,), ties="expected", beyond=False)(lists)


def test_lists_that_end_before_k_are_told():
    seen, truth = (Interactions.from_pairs([0, 1], columns, 2, 9) for columns in ([0, 1], [2, 3]))
    lists = np.array([[1, 2], [0, 3]], np.int32)
    with pytest.warns(UserWarning, match="the lists hold 2 items a query: metrics at 5 count no more than these"):
        Evaluator(seen, truth, ks=[1, 5])(lists)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Evaluator(seen, truth, ks=[1, 2])(lists)
