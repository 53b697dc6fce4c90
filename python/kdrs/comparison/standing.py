"""Which models are best, second best, and not clearly worse than the best, metric by metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdrs.comparison.verdicts import Verdict
from kdrs.evaluation.significance import Difference

if TYPE_CHECKING:
    from kdrs.evaluation.significance import Spread


@dataclass(frozen=True)
class Standing:
    """A model among all that are no teachers, by one metric. Of all metrics of kdrs more is better."""

    place: int
    """1 is the best. Means that are equal as they are shown, to four decimals, share a place: 1, 1, 3."""
    best: str
    """The model with the highest mean, which it is tested against."""
    to_best: Difference | None = None
    """Difference to it over queries; None for the best itself. Holm's correction is over all such tests of the comparison."""
    to_best_by_seed: Difference | None = None
    """The same over seeds, where both have two common seeds or more."""
    verdict: Verdict | None = None
    """What the two say together."""

    @property
    def is_alike(self) -> bool:
        """Whether the tests do not find it clearly different from the best."""
        return self.verdict is not None and self.verdict.word == "not clear"

    @property
    def marks(self) -> tuple[str, ...]:
        """How its number is marked: ``best``, ``second``, ``alike``."""
        found = {1: ("best",), 2: ("second",)}.get(self.place, ())
        return (*found, "alike") if self.is_alike and self.place > 1 else found

    def to_json(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "best": self.best,
            "to_best": None if self.to_best is None else self.to_best.to_json(),
            "to_best_by_seed": None if self.to_best_by_seed is None else self.to_best_by_seed.to_json(),
            "verdict": None if self.verdict is None else self.verdict.to_json(),
        }


def places_of(means: Mapping[str, Spread]) -> dict[str, int]:
    """The place of each model by its mean as it is shown, the highest first; those without a number have none."""
    shown = {name: float(f"{spread.mean:.4f}") for name, spread in means.items() if math.isfinite(spread.mean)}
    return {name: 1 + sum(other > value for other in shown.values()) for name, value in shown.items()}
