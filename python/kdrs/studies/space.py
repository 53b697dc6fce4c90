"""The values that a key of a run may take in a study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdrs.core.sampling import stream
from kdrs.errors import ConfigError, nearest, shown

FORM = "write a list of values, [0.1, 1.0], or a range, { low = 1e-4, high = 1e-2, log = true }"
_KEYS = ("low", "high", "log", "step")
_MOST = 1e300
"""The ends of a range: their difference must be a number too."""
_MOST_STEPS = 10**9
"""What floats still count exactly, whatever the range begins at."""


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    values: tuple[Any, ...]

    def draw(self, seed: int) -> Any:
        return self.values[int(np.random.default_rng(seed).integers(len(self.values)))]

    def holds(self, value: Any) -> bool:
        return any(same(value, own) for own in self.values)

    def ends(self) -> tuple[Any, ...]:
        return self.values

    def plain(self) -> Any:
        return list(self.values)


@dataclass(frozen=True)
class Span:
    """All numbers from ``low`` to ``high``: whole ones if both are, every ``step``-th where it is given. With ``log`` their
    logarithms are equally likely."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        return all(isinstance(x, int) for x in (self.low, self.high, 1 if self.step is None else self.step))

    def draw(self, seed: int) -> Any:
        u = float(np.random.default_rng(seed).random())
        step = 1 if self.whole and self.step is None else self.step
        if step is not None and not self.log:
            n_steps = int((self.high - self.low) / step + 1e-9)
            value = self.low + step * min(int(u * (n_steps + 1)), n_steps)
            return int(value) if self.whole else float(f"{value:.12g}")
        if not self.log:
            return self.low + (self.high - self.low) * u
        if not self.whole:
            value = math.exp(math.log(self.low) + (math.log(self.high) - math.log(self.low)) * u)
            return min(max(value, self.low), self.high)
        edges = math.log(self.low - 0.5), math.log(self.high + 0.5)  # each whole number its own share of the logarithm
        return min(max(round(math.exp(edges[0] + (edges[1] - edges[0]) * u)), int(self.low)), int(self.high))

    def holds(self, value: Any) -> bool:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or (self.whole and not isinstance(value, int))
        ):
            return False
        if not self.low <= value <= self.high:
            return False
        return self.step is None or abs(((value - self.low) / self.step + 0.5) % 1 - 0.5) < 1e-6

    def ends(self) -> tuple[Any, ...]:
        return (self.low, self.high)

    def plain(self) -> Any:
        told = {"low": self.low, "high": self.high}
        return {**told, **({"log": True} if self.log else {}), **({} if self.step is None else {"step": self.step})}


Range = Choices | Span


def same(one: Any, other: Any) -> bool:
    """Equal, and no ``True`` for 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def parse_range(value: Any, where: str) -> Range:
    """A range of what a study file says of one key. Raises ``ConfigError``."""
    if isinstance(value, list):
        if not value or any(same(one, other) for at, one in enumerate(value) for other in value[:at]):
            raise ConfigError(f"{where} is {shown(value)}", "list one or more values, each once")
        return Choices(tuple(value))
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {shown(value)}", FORM)
    for key in value:
        if key not in _KEYS:
            raise ConfigError(f"unknown key '{where}.{shown(key)}'", nearest(key, _KEYS))
    for key in ("low", "high"):
        if key not in value:
            raise ConfigError(f"{where}.{key} is missing", FORM)
    for key in ("low", "high", "step"):
        number = value.get(key, 1)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= _MOST:
            raise ConfigError(f"{where}.{key} is {shown(number)}", f"allowed: a number, -{_MOST:g} to {_MOST:g}")
    span = Span(value["low"], value["high"], value.get("log", False), value.get("step"))
    if not span.low < span.high:
        raise ConfigError(f"{where} goes from {span.low} to {span.high}", "low must be below high")
    if not isinstance(span.log, bool):
        raise ConfigError(f"{where}.log is {shown(span.log)}", "allowed: true, false")
    if span.log and (span.step is not None or span.low <= 0):
        why = "has a step" if span.step is not None else f"begins at {span.low}"
        raise ConfigError(f"{where} is logarithmic and {why}", "low must be above 0, and step left out")
    if span.step is not None and not 0 < span.step <= span.high - span.low:
        raise ConfigError(f"{where}.step is {span.step}", "allowed: above 0, and at most high - low")
    if span.step is not None and (span.high - span.low) / span.step > _MOST_STEPS:
        raise ConfigError(
            f"{where}.step is {span.step}, and more than {_MOST_STEPS:,} of them fit",
            "leave it out, or take a longer one",
        )
    return span


def draw(space: Mapping[str, Range], seed: int, number: int) -> dict[str, Any]:
    """The random point of a trial. A key has its own stream: arms that share a key try the same values of it, and another key
    changes nothing."""
    return {key: span.draw(stream(seed, "trial", key, number)) for key, span in space.items()}
