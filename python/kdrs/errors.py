"""Everything kdrs raises on purpose. Each class carries the exit code that the command line returns for it."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterable

from kdrs.escaping import is_visible, visible


class KdrsError(Exception):
    """A failure with a cause and, where there is one, a remedy.

    ``str(error)`` is one line for the cause and, if a remedy is known, one line for the remedy.
    """

    exit_code = 1

    def __init__(self, cause: str, remedy: str | None = None):
        self.cause, self.remedy = cause, remedy
        super().__init__(cause if remedy is None else f"{cause}\n{remedy}")

    def __reduce__(self) -> tuple[type[KdrsError], tuple[str, str | None]]:
        return type(self), (self.cause, self.remedy)  # between processes


class ConfigError(KdrsError):
    """A wrong option, key, name or combination (exit code 2)."""

    exit_code = 2


class DataError(KdrsError):
    """Input data that cannot be used (exit code 3)."""

    exit_code = 3


class ScoreError(DataError):
    """Scores that are not finite, or vectors of such (exit code 3; 1 where training made them, 4 where a teacher did)."""


class ArtefactError(KdrsError):
    """A checkpoint, run directory or teacher that cannot be used (exit code 4)."""

    exit_code = 4


class MissingKnowledge(ArtefactError):
    """A teacher was asked for something that it does not hold (exit code 4)."""


class MachineError(KdrsError):
    """The machine falls short: no space, no device, no permission, a missing extra (exit code 5)."""

    exit_code = 5


class InUse(MachineError):
    """Another process works in a run directory (exit code 5)."""


class TrainingError(KdrsError):
    """Training cannot go on, such as a loss that is not finite (exit code 1)."""


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of the compiled core: a bug, and no ``Exception``, so that ``except Exception`` misses it."""
    return type(error).__name__ == "PanicException"


def shown(value: object, width: int = 80) -> str:
    """``value`` as it may be printed: what is unseen escaped (`kdrs.escaping.visible`), and cut to ``width`` characters."""
    text = visible(value if isinstance(value, str) else repr(value))
    return text if len(text) <= width else text[: width - 1] + "…"


def quoted(path: object) -> str:
    """A path as a shell takes it, for remedies that can be run as they stand. What is unseen is written as bash's $'...'."""
    text = str(path)
    if is_visible(text):
        return shlex.quote(text)
    escaped = "".join(
        c if is_visible(c) and c not in "\\'" else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c)) for c in text
    )
    return f"$'{escaped}'"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest allowed one, then all of them."""
    allowed = sorted(allowed)
    plain = {value.lower(): value for value in allowed}
    close = difflib.get_close_matches(name.lower(), plain, n=1, cutoff=0.5)
    hint = f"did you mean '{shown(plain[close[0]])}'? " if close else ""
    return f"{hint}allowed: {', '.join(map(shown, allowed))}"
