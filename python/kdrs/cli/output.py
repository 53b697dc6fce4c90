"""All that the command line writes: nothing reaches a terminal but through here, and nothing unseen gets out."""

from __future__ import annotations

import codecs
import io
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from kdrs.escaping import json_text, visible, visible_lines

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN = {
    "±": "+/-",
    "≤": "<=",
    "≥": ">=",
    "µ": "u",
    "…": "...",
    "·": "-",
    "×": "x",
    "–": "-",
    "—": "-",
    "’": "'",
    "τ": "tau",
}
"""What our own tables and texts hold beyond ASCII, for terminals that cannot show it."""


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


def prepare_streams() -> None:
    """Lets a terminal of any encoding show what it can: the rest comes in plain letters or escaped."""
    codecs.register_error("kdrs-plain", _in_plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="kdrs-plain")


_muted = False


def mute(muted: bool = True) -> None:
    """Of several processes that do one thing, one speaks."""
    global _muted
    _muted = muted


def _write(stream: TextIO | None, text: str) -> None:
    # not by click's echo, which takes a terminal of ASCII for one of UTF-8
    if stream is not None and not _muted:
        stream.write(text)
        stream.flush()


def say(text: str = "", *, end: str = "\n") -> None:
    """A result, on stdout. Its line breaks are the program's own; whatever else is unseen is escaped."""
    _write(sys.stdout, visible_lines(text) + end)


def results() -> TextIO:
    """Where a result goes that writes itself: stdout, unless another process speaks."""
    return io.StringIO() if _muted or sys.stdout is None else sys.stdout


def say_json(document: dict[str, Any]) -> None:
    """The one JSON document of a command, on stdout."""
    _write(sys.stdout, json_text({"schema": 1, **document}, indent=2) + "\n")


_live: list[Console] = []
"""The console of a bar that stands on stderr's last line: lines go above it."""


def tell(line: str) -> None:
    """One line beside the results, on stderr: progress, counts, warnings, errors."""
    if _live:
        from rich.text import Text

        _live[-1].print(Text(visible(line)), soft_wrap=True)
    else:
        _write(sys.stderr, visible(line) + "\n")


@contextmanager
def above(console: Console) -> Iterator[None]:
    """While ``console`` shows a bar, `tell` writes above it."""
    _live.append(console)
    try:
        yield
    finally:
        _live.remove(console)


@contextmanager
def messages() -> Iterator[None]:
    """Warnings as single lines on stderr."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        tell(f"warning: {' '.join(str(message).splitlines())}")

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of libraries: nothing to do for who runs kdrs
        warnings.filterwarnings("ignore", module="torch")
        warnings.filterwarnings("ignore", message=".*[Ss]parse.*(beta|invariant).*")
        warnings.showwarning = show
        yield


def columns() -> int:
    """Characters of a line: the terminal's, or 80."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def wrapped(text: str, first: str = "", then: str = "") -> str:
    """A paragraph over lines that fit, the first after ``first`` and the others after ``then``. Words are never cut."""
    return textwrap.fill(
        text, columns(), initial_indent=first, subsequent_indent=then, break_long_words=False, break_on_hyphens=False
    )


def aligned(rows: dict[str, str]) -> str:
    """Names and what they mean in two columns; on a terminal folded to its width, elsewhere a line a name."""
    width = max(map(len, rows), default=0)
    if not sys.stdout.isatty():
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())
    return "\n".join(wrapped(text, f"{name:<{width}}  ", " " * (width + 2)) for name, text in rows.items())
