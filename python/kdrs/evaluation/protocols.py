"""Evaluation protocols by name, and the rule that picks the epoch whose weights are kept.

A protocol says which items are ranked, which are left out, which metrics are taken with which formulas, and how the
best epoch is selected. The presets of published code keep its traps, each as a named option; the default is clean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kdrs.core.ranking import METRICS
from kdrs.errors import ArtefactError, ConfigError, TrainingError, nearest, shown


def cutoff(name: str) -> int | None:
    """K of a metric name such as ``ndcg@10``; ``None`` for one over the whole ranking (``map@all``)."""
    k = name.rpartition("@")[2]
    return int(k) if k.isdecimal() else None


@dataclass(frozen=True)
class Plateau:
    """When to stop so that a run ends on its plateau and in no dip before it.

    A run goes on until none of its selection metrics, as means over ``smooth`` evaluations, has exceeded its best so far for
    ``least`` evaluations and for a share ``growth`` of all of them; and as long as its training loss fell by more than a share
    ``falling`` over the last ``least`` evaluations. Which weights are kept is another matter: those of the best epoch.

    The numbers were chosen on recorded curves of three data sets, five seeds each (docs/results/stopping.md): none of the
    runs ends below what a patience of 200 finds by more than 1 %, and many that end after 20 stale evaluations do.
    """

    least: int = 50
    smooth: int = 5
    growth: float = 1 / 3
    falling: float = 0.05

    def __post_init__(self) -> None:
        for name, value, most in (("least", self.least, 2**31), ("smooth", self.smooth, 1001)):
            if not 1 <= value < most:
                raise ConfigError(f"{name} is {shown(value)}", f"allowed: 1 to {most - 1} evaluations")
        for name, share in (("growth", self.growth), ("falling", self.falling)):
            if not 0 <= share < 1:
                raise ConfigError(f"{name} is {shown(share)}", "allowed: from 0 to below 1")

    def __str__(self) -> str:
        return "plateau"


@dataclass(frozen=True)
class Selection:
    """Which epoch is the best one, and when to stop.

    A metric improves when its mean, rounded to ``digits`` decimals first if that is set, exceeds its best so far by more than
    ``min_delta``. The weights kept are those of the best epoch of the first metric. Where ``patience`` is a number, an
    evaluation after which none of the ``metrics`` has improved counts against it; with ``any_of=False`` only the first metric
    counts.
    """

    metrics: tuple[str, ...] = ("ndcg@10",)
    """Names of validation metrics; the first decides which weights are kept."""
    patience: int | Plateau | None = Plateau()
    """When to stop: on the plateau (`Plateau`), or after exactly so many evaluations without improvement, as papers have it.
    ``None`` never stops."""
    min_delta: float = 0.0
    """A gain counts only if it is larger than this."""
    digits: int | None = None
    """Decimals the means are rounded to before they are compared; ``None`` compares them as they are."""
    per_metric_best: bool = False
    """Each metric is reported from its own best epoch instead of from the first metric's."""
    any_of: bool = True
    """Any of the metrics may reset the patience, not the first one alone."""

    def __post_init__(self) -> None:
        metrics = (self.metrics,) if isinstance(self.metrics, str) else tuple(self.metrics)
        object.__setattr__(self, "metrics", metrics)
        if not metrics or len(set(metrics)) != len(metrics):
            raise ConfigError(f"selection by {list(metrics)}", "name one or more different metrics, such as ndcg@10")
        for name in metrics:
            family, at, _ = name.partition("@")
            if family not in METRICS:
                raise ConfigError(f"unknown metric {shown(name)!r} for the selection", nearest(family, METRICS))
            if not at or (cutoff(name) is None and name != "map@all") or cutoff(name) == 0:
                raise ConfigError(f"metric {shown(name)!r} names no list length", f"write {family}@10, for example")
        if isinstance(self.patience, int) and self.patience < 1:
            raise ConfigError(f"patience is {self.patience}; allowed: 1 or more, or none to never stop")
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ConfigError(f"min_delta is {self.min_delta}; allowed: 0 or more")
        if self.digits is not None and not 0 <= self.digits <= 15:
            raise ConfigError(f"digits is {self.digits}; allowed: 0 to 15, or none")

    def in_words(self) -> str:
        """``ndcg@10, plateau``: what two runs should have in common if their results are compared."""
        words = [" or ".join(self.metrics) if self.any_of or self.per_metric_best else self.metrics[0]]
        rule = self.patience
        words.append(
            "no early stop" if rule is None else str(rule) if isinstance(rule, Plateau) else f"patience {rule}"
        )
        if self.min_delta:
            words.append(f"gains above {self.min_delta:g}")
        if self.digits is not None:
            words.append(f"{self.digits} decimals")
        return ", ".join(words)

    def deciding(self, name: str) -> str:
        """The selection metric whose best epoch the metric ``name`` is reported from.

        With ``per_metric_best`` that is the one with the same K (``ndcg@5`` follows ``hit@5``), else the first.
        """
        if self.per_metric_best:
            if name in self.metrics:
                return name
            for own in self.metrics:
                if cutoff(own) == cutoff(name):
                    return own
        return self.metrics[0]


@dataclass(frozen=True)
class Verdict:
    """What one evaluation meant for the run."""

    improved: bool
    """The first metric improved: this epoch's weights are the ones to keep."""
    improved_metrics: tuple[str, ...]
    """All selection metrics that improved, in their order."""
    stop: bool
    """Patience has run out."""


class EarlyStopping:
    """Follows the validation means evaluation by evaluation. Pure: it holds numbers only and does no I/O.

    ``best`` maps each selection metric to the (epoch, value) it is reported from: its own best epoch with
    ``per_metric_best``, otherwise the best epoch of the first metric. Values are rounded as the selection says.
    """

    def __init__(self, selection: Selection):
        self.selection = selection
        self.stale = 0
        """Evaluations since the last improvement."""
        self.count = 0
        """Evaluations so far."""
        self.last_epoch: int | None = None
        self._recent: dict[str, list[float]] = {}
        self._level: dict[str, float] = {}
        self._losses: list[float] = []
        self._own: dict[str, tuple[int, float]] = {}
        self._at_first: dict[str, tuple[int, float]] = {}

    @property
    def best(self) -> dict[str, tuple[int, float]]:
        return dict(self._own if self.selection.per_metric_best else self._at_first)

    @property
    def stopped(self) -> bool:
        rule = self.selection.patience
        if rule is None or isinstance(rule, int):
            return rule is not None and self.stale >= rule
        return self.stale >= max(rule.least, rule.growth * self.count) and not self._still_learns(rule)

    def _still_learns(self, rule: Plateau) -> bool:
        """Whether the training loss falls yet. A share says nothing of losses that are not above 0: they count as flat."""
        if len(self._losses) <= rule.least:
            return False
        before, now = self._losses[0], self._losses[-1]
        return before > 0 and before - now > rule.falling * before

    def restart(self) -> None:
        """Patience begins anew: what is trained for has changed."""
        self.stale, self._losses = 0, []

    def update(self, epoch: int, means: Mapping[str, float], loss: float | None = None) -> Verdict:
        """Takes the validation means of ``epoch`` and its mean training loss, if there is one; epochs must ascend.

        Raises ``ConfigError`` if a selection metric is absent, ``TrainingError`` if it is not finite.
        """
        if self.last_epoch is not None and epoch <= self.last_epoch:
            raise ConfigError(f"epoch {epoch} was given after epoch {self.last_epoch}", "give epochs in their order")
        values = {name: self._value(epoch, name, means) for name in self.selection.metrics}
        improved = tuple(
            name
            for name, value in values.items()
            if name not in self._own or value > self._own[name][1] + self.selection.min_delta
        )
        self.last_epoch, self.count = epoch, self.count + 1
        self._own.update({name: (epoch, values[name]) for name in improved})
        first = self.selection.metrics[0]
        if first in improved:
            self._at_first = {name: (epoch, value) for name, value in values.items()}
        rule, risen = self.selection.patience, improved
        if isinstance(rule, Plateau):
            risen = self._risen(values, rule)
            if loss is not None:
                self._losses = [*self._losses, float(loss)][-rule.least - 1 :]
        progressed = bool(risen) if self.selection.any_of else first in risen
        self.stale = 0 if progressed else self.stale + 1
        return Verdict(first in improved, improved, self.stopped)

    def _risen(self, values: Mapping[str, float], rule: Plateau) -> tuple[str, ...]:
        """The metrics whose mean over the last evaluations exceeds its best so far; all, as long as there are too few."""
        risen = []
        for name, value in values.items():
            recent = self._recent[name] = [*self._recent.get(name, []), value][-rule.smooth :]
            level = math.fsum(recent) / len(recent)
            if (
                len(recent) < rule.smooth
                or name not in self._level
                or level > self._level[name] + self.selection.min_delta
            ):
                risen.append(name)
                if len(recent) == rule.smooth:
                    self._level[name] = level
        return tuple(risen)

    def _value(self, epoch: int, name: str, means: Mapping[str, float]) -> float:
        if name not in means:
            raise ConfigError(f"the selection needs {name}, which is not evaluated", nearest(name, means))
        value = float(means[name])
        if not math.isfinite(value):
            raise TrainingError(
                f"validation {name} is {value} at epoch {epoch}", "check that some query has a validation item"
            )
        return value if self.selection.digits is None else round(value, self.selection.digits)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain JSON values."""
        return {
            "metrics": list(self.selection.metrics),
            "stale": self.stale,
            "count": self.count,
            "recent": {name: list(values) for name, values in self._recent.items()},
            "level": dict(self._level),
            "losses": list(self._losses),
            "last_epoch": self.last_epoch,
            "own": {name: list(pair) for name, pair in self._own.items()},
            "at_first": {name: list(pair) for name, pair in self._at_first.items()},
        }

    @classmethod
    def from_state(cls, selection: Selection, state: Mapping[str, Any]) -> EarlyStopping:
        """The object that ``state()`` was taken from. Raises ``ArtefactError`` for a state of other metrics."""
        if tuple(state.get("metrics", ())) != selection.metrics:
            raise ArtefactError(
                f"the saved run selects by {state.get('metrics')}, this one by {list(selection.metrics)}",
                "resume with the configuration that the run was started with",
            )
        made = cls(selection)
        try:
            made.stale = int(state["stale"])
            # a checkpoint from before there was the plateau's rule has none of these: they begin anew
            made.count = int(state.get("count", 0))
            made._recent = {name: [float(v) for v in values] for name, values in state.get("recent", {}).items()}
            made._level = {name: float(value) for name, value in state.get("level", {}).items()}
            made._losses = [float(value) for value in state.get("losses", [])]
            made.last_epoch = None if state["last_epoch"] is None else int(state["last_epoch"])
            made._own = {name: (int(epoch), float(value)) for name, (epoch, value) in state["own"].items()}
            made._at_first = {name: (int(epoch), float(value)) for name, (epoch, value) in state["at_first"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise ArtefactError(f"the saved early-stopping state is damaged: {shown(repr(problem))}") from problem
        return made


@dataclass(frozen=True)
class Protocol:
    """How rankings are measured. Every field but ``name``, ``source`` and ``selection`` is an ``Evaluator`` option."""

    name: str
    source: str
    ks: tuple[int, ...] = (5, 10, 20)
    metrics: tuple[str, ...] = METRICS
    setting: str = "full"
    """``full`` ranks the whole catalogue, ``candidates`` the stored candidates of each query."""
    ties: str | None = None
    """``list``, ``expected``, ``optimistic`` or ``pessimistic``; ``None``: ``list`` in full, else ``expected``."""
    mask: str = "all-other-parts"
    """``all-other-parts`` leaves out train and the other held-out part; ``train`` leaves out train only;
    ``train-zeroed`` keeps train items in the ranking with score 0 (BD's notebooks multiply scores by a 0/1 mask)."""
    average: str = "with-truth"
    """``with-truth`` means over queries that have a held-out item; ``all-queries`` counts the others as 0."""
    leaks: str = "error"
    """Held-out items that are also in train: an ``error``, or a ``miss`` that stays in the denominators."""
    formulas: str = "standard"
    """``standard``; ``bd``: rank below K, 1/log2(rank + 2); ``caser``: nDCG over the first min(#targets, K) places."""
    selection: Selection = field(default_factory=Selection)

    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``Evaluator`` (without the candidates themselves)."""
        names = ("ks", "metrics", "ties", "mask", "average", "leaks", "formulas")
        return {name: getattr(self, name) for name in names}


_LOO = Protocol(
    name="loo-499",
    source="HyperKDMA, DE-RRD and IR-RRD: leave-one-out, each target ranked among the query's stored candidates",
    ks=(5, 10, 20),
    metrics=("hit", "ndcg", "mrr"),
    setting="candidates",
    ties="expected",
    selection=Selection(("hit@5", "hit@10", "hit@20"), patience=20, digits=4, per_metric_best=True),
)

_BD = Protocol(
    name="bd",
    source="BD's notebook of MF: seen items keep a place with score 0, positions off by one; one held-out item a user",
    ks=(50, 100, 200),
    metrics=("hit", "ndcg"),
    ties="expected",
    mask="train-zeroed",
    formulas="bd",
    selection=Selection(("hit@50",), patience=None),
)

PROTOCOLS: dict[str, Protocol] = {
    "default": Protocol(name="default", source="kdrs: full ranking, clean definitions"),
    "loo-499": _LOO,
    "hyperkdma": replace(_LOO, name="hyperkdma"),
    # The manuscript's own stopping rule, where its code differs: one metric, one best epoch, nothing rounded.
    "loo-499-paper": replace(_LOO, name="loo-499-paper", selection=Selection(("hit@5",), patience=20)),
    "hetcomp": Protocol(
        name="hetcomp",
        source="HetComp: full ranking without train and the other held-out part, users with both parts",
        ks=(10, 50),
        metrics=("recall", "ndcg"),
        selection=Selection(("recall@50",), patience=5, digits=4),
    ),
    "kds": Protocol(
        name="kds",
        source="KDs, RCE-KD: full ranking, only train left out, means over all users",
        ks=(10, 20),
        metrics=("recall", "ndcg"),
        mask="train",
        average="all-queries",
        selection=Selection(("ndcg@10",), patience=30),
    ),
    "bd": _BD,
    # CDAE's scores are sigmoids there, all above 0: seen items come last, as if they were left out.
    "bd-cdae": replace(
        _BD,
        name="bd-cdae",
        source="BD's notebook of CDAE: seen items come last, positions off by one; one held-out item a user",
        mask="train",
    ),
    "caser": Protocol(
        name="caser",
        source="RD and Caser: nDCG over the first min(#targets, K) places, MAP over the whole ranking, never stops early",
        ks=(3, 5, 10),
        metrics=("precision", "ndcg", "map"),
        ties="expected",
        mask="train",
        leaks="miss",
        formulas="caser",
        selection=Selection(("map@all",), patience=None),
    ),
}


def protocol(name: str | Protocol) -> Protocol:
    """The preset of that name (or the protocol itself). Raises ``ConfigError`` with the nearest name."""
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {shown(name)!r}", nearest(name, PROTOCOLS))
    return PROTOCOLS[name]
