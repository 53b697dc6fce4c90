"""How a file is read, and which of the options each form has a use for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kdrs.data._dates import checked_format
from kdrs.data.checks import ZEROS
from kdrs.errors import ConfigError, nearest, shown

FORMATS = ("auto", "csv", "tsv", "parquet", "inter", "movielens", "counted-lists", "user-lists", "npy", "npz")
ON_BAD_LINE = ("error", "skip")
FLOAT_IDS = ("error", "whole", "exact")
TIME_UNITS = ("auto", "s", "ms", "us", "ns", "order")

_COLUMNS = ("user", "item", "rating", "timestamp", "zeros")
_ROWS = ("on_bad_line", "strip", "float_ids")
_TIMES = ("time_unit", "time_format")
READS: dict[str, tuple[str, ...]] = {
    "csv": (*_COLUMNS, "separator", "header", "quotes", *_ROWS, *_TIMES),
    "tsv": (*_COLUMNS, "header", "quotes", *_ROWS, *_TIMES),
    "inter": (*_COLUMNS, "separator", *_ROWS, *_TIMES),
    "movielens": (*_COLUMNS, *_ROWS, *_TIMES),
    "counted-lists": (*_ROWS, "keep_counts"),
    "user-lists": _ROWS,
    "parquet": (*_COLUMNS, *_ROWS, *_TIMES),
    "frame": (*_COLUMNS, *_ROWS, *_TIMES),
    "npy": (*_COLUMNS, *_ROWS, *_TIMES),
    "npz": (*_COLUMNS, *_ROWS, *_TIMES),
    "matrix": ("on_bad_line", "zeros"),
}
"""The options that the reader of each form has a use for, besides the format itself."""


@dataclass(frozen=True)
class Options:
    """How a file is read; ``kdrs.data.read`` explains each. ``strip_ids`` is another name of ``strip``."""

    format: str = "auto"
    user: str | int | None = None
    item: str | int | None = None
    rating: str | int | None = None
    timestamp: str | int | None = None
    separator: str | None = None
    header: bool | None = None
    quotes: bool | None = None
    on_bad_line: str = "error"
    strip: bool = False
    strip_ids: bool = False
    float_ids: str = "error"
    time_unit: str = "auto"
    time_format: str | None = None
    keep_counts: bool = False
    zeros: str = "drop"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("format", self.format, FORMATS),
            ("on_bad_line", self.on_bad_line, ON_BAD_LINE),
            ("float_ids", self.float_ids, FLOAT_IDS),
            ("time_unit", self.time_unit, TIME_UNITS),
            ("zeros", self.zeros, ZEROS),
        ):
            if value not in allowed:
                raise ConfigError(f"unknown {name.replace('_', ' ')} {shown(value)}", nearest(str(value), allowed))
        one = self.separator is not None and len(self.separator) == 1 and self.separator.isascii()
        if (
            self.separator is not None
            and not (one and not self.separator.isalnum() and self.separator not in '\n\r"\0')
            and self.separator != "::"
        ):
            raise ConfigError(
                f"separator {shown(self.separator)}; allowed: one ASCII character, or '::'; no letter, digit or quote",
                "blanks after a separator are taken off by --strip",
            )
        for role in ("user", "item", "rating", "timestamp"):
            stated = getattr(self, role)
            if isinstance(stated, np.integer):
                object.__setattr__(self, role, stated := int(stated))
            if isinstance(stated, bool) or not isinstance(stated, str | int | None):
                raise ConfigError(f"{role} column {shown(stated)}; allowed: a name, or a place from 0")
        check_flags(self, "strip", "strip_ids", "keep_counts")
        check_flags(self, "header", "quotes", unset=True)
        if self.time_format is not None:
            checked_format(self.time_format)
            if self.time_unit != "auto":
                raise ConfigError(
                    f"time-format {shown(self.time_format)} and time-unit {self.time_unit} contradict each other",
                    "leave one of them out: dates have a format, numbers have a unit",
                )
        if self.strip_ids:
            object.__setattr__(self, "strip", True)
            object.__setattr__(self, "strip_ids", False)

    def stated(self) -> dict[str, Any]:
        """The options that differ from the defaults."""
        default = asdict(Options())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    def check_used(self, source: str, form: str) -> None:
        """Raises ``ConfigError`` for a stated option that the reader of a form has no use for."""
        for name, value in self.stated().items():
            if name == "format" or name in READS[form]:
                continue
            flag, text = name.replace("_", "-"), "" if isinstance(value, bool) else f" {shown(str(value), 30)}"
            lists = form in ("counted-lists", "user-lists")
            why = f"{form} have no columns" if lists and name in _COLUMNS else f"format {form} has no use for it"
            forms = ", ".join(other for other, read in READS.items() if name in read)
            raise ConfigError(f"{flag}{text} with {source}: {why}", f"leave it out: only {forms} read it")


def check_flags(given: Any, *names: str, unset: bool = False) -> None:
    """Raises ``ConfigError`` for an attribute that is neither True nor False, nor None where it may be ``unset``: "no" would
    count as yes."""
    for name in names:
        value = getattr(given, name)
        if not (isinstance(value, bool) or (unset and value is None)):
            raise ConfigError(
                f"{name.replace('_', '-')} is {shown(value)}", f"allowed: True, False{', None' if unset else ''}"
            )
