"""Text from outside (ids, names, paths, metadata) as it may be shown: one escaper for each place where it can end up.

A name is no command: it must not drive a terminal, break a line of a log, run as HTML or read as a formula. Every escaper takes
plain text, and the first step of all is `visible`.
"""

from __future__ import annotations

import json
import math
import re
from html import escape
from typing import Any

# Printable as far as Python knows, and yet nothing is seen of them: default-ignorable letters and marks, blank braille.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def _is_seen(character: str) -> bool:
    return character.isprintable() and not _UNSEEN.match(character)


def is_visible(text: str) -> bool:
    """Whether ``text`` holds nothing but what is seen as what it is."""
    return text.isprintable() and not _UNSEEN.search(text)


def is_unicode(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8: names of files may hold any bytes, which come as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def visible(text: str) -> str:
    """``text`` on one line, with everything unseen escaped as in Python: control characters, marks of direction, zero widths,
    line separators, odd blanks, halves of surrogate pairs. Backslashes are doubled where something was escaped. What is
    visible already comes back as it is."""
    if is_visible(text):
        return text
    return "".join(c if _is_seen(c) and c != "\\" else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return _SHORT.get(character) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


def visible_lines(text: str) -> str:
    """As `visible`, line by line: for text whose line breaks are the program's own."""
    return "\n".join(map(visible, text.split("\n")))


_INLINE = re.compile(r"[\\`*\[\]~$|]|(?<![^\W_])_|_(?![^\W_])|^[#+\-=]")


def markdown(text: str) -> str:
    """``text`` inside a line or table cell of Markdown, where it reads as it is: no emphasis, code, link, image, formula or
    HTML, and no further column. Underscores within words stay."""
    escaped = _INLINE.sub(lambda found: f"\\{found[0]}", visible(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def html(text: str) -> str:
    """``text`` inside HTML or SVG, or a quoted attribute of it, where it reads as it is: no element, attribute or entity."""
    return escape(visible(text))


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    '"': r"{\char34}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "µ": r"$\mu$",
    "–": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[]*"},
}
_LIGATURE = re.compile(r"(?<=-)-|(?<=,),|(?<=')'|(?<=[!?])(?=`)")


def latex(text: str) -> str:
    """``text`` inside a paragraph or table cell of LaTeX, where it reads as it is: no command, formula, comment, further
    column or option of ``\\\\``, and hyphens that do not join to a dash. Letters beyond Latin take LuaLaTeX or XeLaTeX."""
    parts = _LIGATURE.sub(lambda found: f"\0{found[0]}", visible(text))
    return "".join("{}" if character == "\0" else _LATEX.get(character, character) for character in parts)


def plot(text: str) -> str:
    """``text`` for matplotlib without TeX: ``$`` begins no formula, and a leading ``_`` hides no legend entry."""
    escaped = visible(text).replace("$", "\\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def json_text(value: Any, indent: int | None = None, *, ascii: bool = True) -> str:
    """``value`` as JSON; numbers that JSON has not are ``null``. In ASCII, for terminals of any encoding, or, for files in
    UTF-8, with every letter that is seen as it is."""
    text = json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=ascii)
    if is_visible(text.replace("\n", "")):
        return text
    return "".join(c if c == "\n" or _is_seen(c) else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def toml_text(text: str) -> str:
    """A TOML document whose strings escape what is not seen."""
    return "".join(c if c in "\n\t" or _is_seen(c) else _toml_escape(c) for c in text)


def _toml_escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
