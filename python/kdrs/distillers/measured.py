"""What has been measured of the methods: transfer ratios, cost, and what each is for.

The figures lie beside this module, written by ``benches/pages.py`` from the records of docs/results.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One method's figures."""

    ratios: dict[str, float]
    """Transfer ratio by setting (`settings`): 0 is the student alone, 1 the teacher."""
    seeds: dict[str, int]
    """How many seeds are behind each ratio: what one seed says may be chance."""
    when: str
    """What it is for, one line."""
    epoch: float | None = None
    """Seconds of an epoch, as times of plain training."""


@cache
def _record() -> dict[str, Any]:
    return json.loads(files(__package__).joinpath("measured.json").read_text("utf-8"))


def settings() -> dict[str, str]:
    """What the ratios were measured on: data, protocol, sizes, metric."""
    return dict(_record()["settings"])


def measured() -> dict[str, Measured]:
    """Every measured method, the highest transfer ratio first: the tuned ones, then those with published weights."""
    found = {name: Measured(**known) for name, known in _record()["methods"].items()}

    def rank(name: str) -> tuple[bool, float]:
        ratios = found[name].ratios
        return "tuned" not in ratios, -ratios.get("tuned", max(ratios.values()))

    return {name: found[name] for name in sorted(found, key=rank)}
