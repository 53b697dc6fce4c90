"""Selection and early stopping against numbers followed by hand; presets by their published traps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrs.errors import ArtefactError, ConfigError, TrainingError
from kdrs.evaluation.protocols import METRICS, PROTOCOLS, EarlyStopping, Plateau, Selection, cutoff, protocol


def fed(selection: Selection, rows: list[dict[str, float]]):
    stop = EarlyStopping(selection)
    return stop, [stop.update(epoch, row) for epoch, row in enumerate(rows)]


def test_clean_rule_one_metric():
    stop, verdicts = fed(Selection(("ndcg@10",), patience=2), [{"ndcg@10": v} for v in (0.1, 0.3, 0.3, 0.2)])
    assert [v.improved for v in verdicts] == [True, True, False, False]
    assert [v.stop for v in verdicts] == [False, False, False, True]
    assert stop.best == {"ndcg@10": (1, 0.3)}


def test_min_delta_compares_with_the_kept_best():
    # Small steps add up: 0.10 -> 0.14 does not count, 0.16 exceeds 0.10 + 0.05.
    stop, verdicts = fed(Selection(patience=20, min_delta=0.05), [{"ndcg@10": v} for v in (0.10, 0.14, 0.16)])
    assert [v.improved for v in verdicts] == [True, False, True]
    assert stop.best["ndcg@10"] == (2, 0.16)


def test_published_rule_each_k_keeps_its_epoch_and_any_resets_patience():
    rows = [
        {"hit@5": 0.10, "hit@10": 0.20, "hit@20": 0.30},
        {"hit@5": 0.12, "hit@10": 0.19, "hit@20": 0.30},
        {"hit@5": 0.11, "hit@10": 0.19, "hit@20": 0.31},
        {"hit@5": 0.11, "hit@10": 0.19, "hit@20": 0.31},
    ]
    selection = Selection(("hit@5", "hit@10", "hit@20"), patience=1, digits=4, per_metric_best=True)
    stop, verdicts = fed(selection, rows)
    assert [v.improved_metrics for v in verdicts] == [("hit@5", "hit@10", "hit@20"), ("hit@5",), ("hit@20",), ()]
    assert [v.stop for v in verdicts] == [False, False, False, True]
    assert [v.improved for v in verdicts] == [True, True, False, False]
    assert stop.best == {"hit@5": (1, 0.12), "hit@10": (0, 0.20), "hit@20": (2, 0.31)}


def test_rounding_comes_before_the_comparison():
    rows = [{"hit@5": 0.45001}, {"hit@5": 0.45004}, {"hit@5": 0.45006}]
    _, rounded = fed(Selection(("hit@5",), digits=4), rows)
    _, plain = fed(Selection(("hit@5",)), rows)
    assert [v.improved for v in rounded] == [True, False, True]
    assert [v.improved for v in plain] == [True, True, True]


def test_without_per_metric_best_all_come_from_the_first_metrics_epoch():
    rows = [{"hit@5": 0.1, "hit@10": 0.4}, {"hit@5": 0.2, "hit@10": 0.3}]
    stop, _ = fed(Selection(("hit@5", "hit@10")), rows)
    assert stop.best == {"hit@5": (1, 0.2), "hit@10": (1, 0.3)}


def test_any_of_false_counts_the_first_metric_only():
    rows = [{"hit@5": 0.2, "hit@10": 0.1}, {"hit@5": 0.2, "hit@10": 0.3}]
    assert not fed(Selection(("hit@5", "hit@10"), patience=1), rows)[1][-1].stop
    assert fed(Selection(("hit@5", "hit@10"), patience=1, any_of=False), rows)[1][-1].stop


def plateaued(values, losses=None, **options):
    """After how many evaluations a run of these values ends; None if it goes on."""
    stopping = EarlyStopping(Selection(("ndcg@10",), patience=Plateau(**options)))
    for epoch, value in enumerate(values):
        loss = None if losses is None else losses[epoch]
        if stopping.update(epoch, {"ndcg@10": value}, loss).stop:
            return epoch + 1
    return None


def test_a_plateau_ends_a_run_by_the_means_of_its_last_evaluations():
    # means of two: .1 (one alone), .2, .35, .3, .25, .25: the third is the best, and three later ones are stale
    values = [0.1, 0.3, 0.4, 0.2, 0.3, 0.2, 0.3]
    assert plateaued(values, least=3, smooth=2, growth=0) == 6
    assert plateaued(values, least=4, smooth=2, growth=0) == 7
    # one high value does not raise the bar by itself: .2, .2, .5, .5, .2, ... against means of .2, .35, .5, .35
    assert plateaued([0.2, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], least=3, smooth=4, growth=0) is None


def test_patience_grows_with_the_evaluations_done():
    values = [0.01 * n for n in range(30)] + [0.0] * 40
    assert plateaued(values, least=2, smooth=1, growth=0) == 32
    assert plateaued(values, least=2, smooth=1, growth=0.5) == 60  # 30 stale of 60
    assert plateaued(values, least=2, smooth=1, growth=0.9) is None


def test_a_run_goes_on_while_its_loss_falls():
    values, flat = [0.5] + [0.1] * 30, [1.0] * 31
    assert plateaued(values, flat, least=5, smooth=1, growth=0) == 6
    falling = [100 * 0.9**n for n in range(11)] + [100 * 0.9**10] * 20
    # a tenth an evaluation until the tenth; then, five later, it has fallen by nothing over the last five
    assert plateaued(values, falling, least=5, smooth=1, growth=0) == 16
    assert plateaued(values, [-loss for loss in falling], least=5, smooth=1, growth=0) == 6  # a share of what?
    assert plateaued(values, falling, least=5, smooth=1, growth=0, falling=0.99) == 6


def test_a_plateau_is_resumed_to_the_same_end():
    rng = np.random.default_rng(0)
    values = (0.3 + 0.05 * rng.standard_normal(80)).tolist()
    losses = np.linspace(1.2, 1, 80).tolist()
    selection = Selection(("ndcg@10",), patience=Plateau(least=6, smooth=3, growth=0.1, falling=0.03))
    whole = EarlyStopping(selection)
    ends = [whole.update(n, {"ndcg@10": v}, loss) for n, (v, loss) in enumerate(zip(values, losses, strict=True))]
    cut = EarlyStopping(selection)
    for n, (v, loss) in enumerate(zip(values, losses, strict=True)):
        cut = EarlyStopping.from_state(selection, json.loads(json.dumps(cut.state())))
        assert cut.update(n, {"ndcg@10": v}, loss) == ends[n]
    assert any(end.stop for end in ends)


def test_a_restart_forgets_the_loss_before_it():
    stopping = EarlyStopping(Selection(patience=Plateau(least=2, smooth=1, growth=0)))
    for epoch, loss in enumerate((9.0, 3.0, 1.0)):
        stopping.update(epoch, {"ndcg@10": 0.5}, loss)
    stopping.restart()
    assert not stopping.stopped
    assert not stopping.update(3, {"ndcg@10": 0.1}, 1.0).stop
    assert stopping.update(4, {"ndcg@10": 0.1}, 1.0).stop


@pytest.mark.parametrize("options", [{"least": 0}, {"smooth": 0}, {"growth": 1.0}, {"growth": -0.1}, {"falling": 1.0}])
def test_a_plateau_of_nonsense_is_refused(options):
    with pytest.raises(ConfigError, match=rf"{next(iter(options))} is .*"):
        Plateau(**options)


def test_patience_none_never_stops():
    _, verdicts = fed(Selection(patience=None), [{"ndcg@10": 0.1}] * 50)
    assert not any(v.stop for v in verdicts)


def test_patience_counts_anew_after_a_restart():
    stop, verdicts = fed(Selection(patience=3), [{"ndcg@10": value} for value in (0.5, 0.4, 0.4)])
    stop.restart()
    verdicts += [stop.update(epoch, {"ndcg@10": 0.4}) for epoch in (3, 4, 5)]
    assert [v.stop for v in verdicts] == [False] * 5 + [True]


values = st.lists(
    st.fixed_dictionaries({name: st.floats(0, 1).map(lambda v: round(v, 3)) for name in ("hit@5", "hit@10")}),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(values, st.data(), st.booleans())
def test_resumed_at_any_epoch_decides_the_same(rows, data, per_metric_best):
    selection = Selection(("hit@5", "hit@10"), patience=3, digits=2, per_metric_best=per_metric_best)
    stop, verdicts = fed(selection, rows)
    cut = data.draw(st.integers(0, len(rows)))
    first, begun = fed(selection, rows[:cut])
    resumed = EarlyStopping.from_state(selection, json.loads(json.dumps(first.state())))
    ended = [resumed.update(epoch, rows[epoch]) for epoch in range(cut, len(rows))]
    assert begun + ended == verdicts
    assert resumed.state() == stop.state()
    assert resumed.best == stop.best


@settings(max_examples=60, deadline=None)
@given(values)
def test_best_is_the_first_epoch_of_the_maximum(rows):
    stop, _ = fed(Selection(("hit@5", "hit@10"), per_metric_best=True), rows)
    for name in ("hit@5", "hit@10"):
        column = [row[name] for row in rows]
        assert stop.best[name] == (column.index(max(column)), max(column))


def test_wrong_input_says_what_is_allowed():
    with pytest.raises(ConfigError, match="ndcg"):
        Selection(("ndgc@10",))
    with pytest.raises(ConfigError, match="list length"):
        Selection(("ndcg",))
    with pytest.raises(ConfigError, match="different metrics"):
        Selection(())
    with pytest.raises(ConfigError, match="patience"):
        Selection(patience=0)
    with pytest.raises(ConfigError, match="min_delta"):
        Selection(min_delta=float("nan"))
    with pytest.raises(ConfigError, match=r"needs ndcg@10.*\n.*ndcg@20"):
        EarlyStopping(Selection()).update(0, {"ndcg@20": 0.5})
    with pytest.raises(TrainingError, match="nan at epoch 3"):
        EarlyStopping(Selection()).update(3, {"ndcg@10": float("nan")})
    stop = EarlyStopping(Selection())
    stop.update(4, {"ndcg@10": 0.5})
    with pytest.raises(ConfigError, match="epoch 4 was given after epoch 4"):
        stop.update(4, {"ndcg@10": 0.5})
    with pytest.raises(ArtefactError, match="selects by"):
        EarlyStopping.from_state(Selection(("hit@5",)), stop.state())
    with pytest.raises(ArtefactError, match="damaged"):
        EarlyStopping.from_state(Selection(), {"metrics": ["ndcg@10"], "stale": "x"})


def test_presets_hold_the_published_traps():
    loo = protocol("hyperkdma")
    assert loo.setting == "candidates"
    assert loo.selection == Selection(
        ("hit@5", "hit@10", "hit@20"), patience=20, digits=4, per_metric_best=True, any_of=True
    )
    assert loo.selection.deciding("ndcg@10") == "hit@10"
    assert protocol("loo-499-paper").selection.deciding("ndcg@10") == "hit@5"
    assert (protocol("kds").mask, protocol("kds").average, protocol("kds").selection.patience) == (
        "train",
        "all-queries",
        30,
    )
    assert protocol("bd").formulas == "bd"
    caser = protocol("caser")
    assert (caser.formulas, caser.mask, caser.leaks, caser.selection.patience) == ("caser", "train", "miss", None)
    with pytest.raises(ConfigError, match="did you mean 'hetcomp'"):
        protocol("hetcmp")


@pytest.mark.parametrize(
    ("name", "ks", "metrics", "mask", "average", "formulas", "select", "patience"),
    [
        (
            "loo-499", (5, 10, 20), ("hit", "ndcg", "mrr"), "all-other-parts", "with-truth", "standard",
            ("hit@5", "hit@10", "hit@20"), 20,
        ),
        ("bd", (50, 100, 200), ("hit", "ndcg"), "train-zeroed", "with-truth", "bd", ("hit@50",), None),
        ("bd-cdae", (50, 100, 200), ("hit", "ndcg"), "train", "with-truth", "bd", ("hit@50",), None),
        ("hetcomp", (10, 50), ("recall", "ndcg"), "all-other-parts", "with-truth", "standard", ("recall@50",), 5),
        ("kds", (10, 20), ("recall", "ndcg"), "train", "all-queries", "standard", ("ndcg@10",), 30),
        ("caser", (3, 5, 10), ("precision", "ndcg", "map"), "train", "with-truth", "caser", ("map@all",), None),
    ],
)  # fmt: skip
def test_presets_are_the_published_protocols(name, ks, metrics, mask, average, formulas, select, patience):
    preset = protocol(name)
    assert (preset.ks, preset.metrics, preset.mask) == (ks, metrics, mask)
    assert (preset.average, preset.formulas) == (average, formulas)
    assert (preset.selection.metrics, preset.selection.patience) == (select, patience)


def test_hetcomp_rounds_to_four_decimals_as_its_code_does():
    """Its evaluation returns round(mean, 4), and that is what it compares."""
    assert protocol("hetcomp").selection.digits == 4
    stopping = EarlyStopping(protocol("hetcomp").selection)
    found = [
        stopping.update(10 * n, {"recall@50": value}).improved for n, value in enumerate((0.53611, 0.53614, 0.5362))
    ]
    assert found == [True, False, True]


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_preset_selects_by_a_metric_that_it_evaluates(name):
    preset = protocol(name)
    assert set(preset.metrics) <= set(METRICS)
    for metric in preset.selection.metrics:
        assert metric.partition("@")[0] in preset.metrics
        assert cutoff(metric) in preset.ks or (metric == "map@all" and preset.formulas == "caser")
