"""Everything kdrs raises on purpose. Each class carries the exit code that the command line returns for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KdrsError(Exception):
    """A failure with a cause and, where there is one, a remedy.

    ``str(error)`` is one line for the cause and, if a remedy is known, one line for the remedy.
    """

    exit_code = 1

    def __init__(self, cause: str, remedy: str | None = None):
        self.cause, self.remedy = cause, remedy
        super().__init__(cause if remedy is None else f"{cause}\n{remedy}")


class ConfigError(KdrsError):
    """A wrong option, key, name or combination (exit code 2)."""

    exit_code = 2


class DataError(KdrsError):
    """Input data that cannot be used (exit code 3)."""

    exit_code = 3


class ArtefactError(KdrsError):
    """A checkpoint, run directory or teacher that cannot be used (exit code 4)."""

    exit_code = 4


class MissingKnowledge(ArtefactError):
    """A teacher was asked for something that it does not hold (exit code 4)."""


class MachineError(KdrsError):
    """The machine falls short: no space, no device, no permission, a missing extra (exit code 5)."""

    exit_code = 5


class TrainingError(KdrsError):
    """Training cannot go on, such as a loss that is not finite (exit code 1)."""


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of the compiled core: a bug, and no ``Exception``, so that ``except Exception`` misses it."""
    return type(error).__name__ == "PanicException"


def shown(value: object, width: int = 80) -> str:
    """``value`` as it may be printed: escaped, and cut to ``width`` characters."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return text if len(text) <= width else text[: width - 1] + "…"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest allowed one, then all of them."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(allowed)}"
