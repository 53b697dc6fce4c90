"""What a run's validation curve says against its result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

FIRST = 3
"""A best epoch among this many first evaluations is early."""
AFTER = 5
"""... if as many followed without a better one: before that nothing is known."""
RISE = 0.015
"""A curve still rises if its best epoch is in its last fifth, whose mean is this share above that of the fifth before. Runs
that ended rising had 2 to 11 % (BPR, LightGCN, SASRec on MovieLens 100K and CiteULike); runs at their plateau had -6 to 3 %,
and their best epoch long before."""


def doubts_of(
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    *,
    stopped: str = "epochs",
    started: bool = False,
    part: str = "valid",
) -> tuple[str, ...]:
    """Sentences about a run whose curve says that it was trained too shortly, or too hard.

    ``rows`` are the lines of metrics.jsonl by epoch, ``metric`` is what the best epoch was selected by, and ``stopped``
    is why the run ended (``epochs`` or ``patience``). A run that ``started`` from trained weights may be best at once.
    """
    values = [(int(row["epoch"]), value) for row in rows if (value := _value(row, part, metric)) is not None]
    if len(values) < 2:
        return ()
    epochs, curve = zip(*values, strict=True)
    best = max(range(len(curve)), key=lambda at: (curve[at], -at))
    if best < FIRST and len(curve) - 1 - best >= AFTER and not started:
        return (
            f"its best epoch is {epochs[best]}, evaluation {best + 1} of {len(curve)}, and later ones were worse: it overfits "
            "or its steps are too large; try a lower learning rate or more weight decay, and look at its curve",
        )
    window = max(1, len(curve) // 5)
    if stopped == "epochs" and best >= len(curve) - window:
        last, before = (math.fsum(part) / window for part in (curve[-window:], curve[-2 * window : -window]))
        if last > before and last - before >= RISE * abs(before):
            gain = f"by {(last - before) / abs(before):.1%}" if before else f"from 0 to {last:.4f}"
            return (
                f"its validation {metric} was still rising when its {epochs[-1] + 1} epochs ended ({gain} over the last "
                f"{_evaluations(window)}): train it for more epochs before you compare it",
            )
    return ()


def _value(row: Mapping[str, Any], part: str, metric: str) -> float | None:
    measured = row.get(part)
    value = measured.get(metric) if isinstance(measured, Mapping) else None
    number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if number and value is not None and "epoch" in row else None


def _evaluations(n: int) -> str:
    return "evaluation" if n == 1 else f"{n} evaluations"
