"""HTML and SVG out of plain values. What is no `Markup` is text from outside, and is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from kdrs.escaping import html


class Markup(str):
    """Text that is HTML already: made by `tag`, or written in kdrs itself."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[Child] | None"
_VOID = frozenset(("meta", "br", "circle", "line", "path", "rect", "polyline", "polygon"))


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """An element. Attributes are written as in Python: ``class_``, ``aria_label``; None and False leave one out."""
    written = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(key if value is True else f'{key}="{html(_plain(value))}"')
    head = " ".join(written)
    inner = joined(*children)
    if not inner and name in _VOID:
        return Markup(f"<{head}/>")
    return Markup(f"<{head}>{inner}</{name}>")


def joined(*children: Child) -> Markup:
    """Children one after the other."""
    return Markup("".join(map(_child, children)))


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return html(child)
    return "".join(map(_child, child))


def _plain(value: str | float) -> str:
    """Coordinates take a tenth of a pixel."""
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
