"""Some users of a comparison: what they had, and what each model lists for them, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdrs.comparison.charts import glyph
from kdrs.comparison.figures import Looks
from kdrs.comparison.markup import Child, Markup, tag
from kdrs.errors import shown

if TYPE_CHECKING:
    from kdrs.comparison.background import Item, Listed, Person
    from kdrs.comparison.result import Comparison

_TITLE = 90
"""Characters of a title that are shown."""


def people_of(comparison: Comparison, looks: Looks) -> list[Child]:
    background = comparison.background
    if background is None or not background.people:
        return []
    marks = ["A ✓ marks a hit, a held-out item: one that the user came to like, and that no model was shown."]
    if comparison.teacher is not None:
        marks.append("Grey entries of another model are not on the teacher's list.")
    return [
        tag("p", " ".join((*background.people_notes, *marks)), class_="note"),
        [_person(comparison, person, looks, at == 0) for at, person in enumerate(background.people)],
    ]


def _person(comparison: Comparison, person: Person, looks: Looks, first: bool) -> Markup:
    found = [
        f"{name} {sum(entry.hit for entry in entries)}"
        for name, entries in person.lists.items()
        if any(entry.hit for entry in entries)
    ]
    hits = f"hits: {', '.join(found)}" if found else "no hits"
    more = f", {len(person.history)} shown" if len(person.history) < person.n_history else ""
    history = tag(
        "section",
        tag("h3", "History"),
        tag("p", f"{person.n_history:,} training items{more}"),
        tag("ul", [tag("li", _name(item)) for item in person.history]),
        tag("section", tag("h3", "Held out"), tag("ul", [tag("li", _name(i)) for i in person.held_out]), class_="held"),
    )
    lists = [_list(comparison, name, entries, looks) for name, entries in person.lists.items()]
    return tag(
        "details",
        tag("summary", tag("b", f"User {shown(person.user)}"), f", {person.n_history:,} training items; {hits}"),
        tag("div", history, tag("div", lists, class_="lists", tabindex="0"), class_="person"),
        open=first,
    )


def _list(comparison: Comparison, name: str, entries: tuple[Listed, ...], looks: Looks) -> Markup:
    teacher = name == comparison.teacher
    n_hits = sum(entry.hit for entry in entries)
    told = f"{n_hits} hit" if n_hits == 1 else f"{n_hits} hits"
    if comparison.teacher is not None and not teacher:
        told += f", {sum(entry.shared for entry in entries)} shared with the teacher"
    rows = []
    for entry in entries:
        own = comparison.teacher is not None and not teacher and not entry.shared
        sign = tag("span", "✓ held out", class_="tag") if entry.hit else None
        rows.append(tag("li", _name(entry.item), sign, class_="hit" if entry.hit else "own" if own else None))
    return tag(
        "section",
        tag("h3", glyph(looks[name]), tag("span", name)),
        tag("p", told),
        tag("ol", rows) if rows else tag("p", "an empty list"),
    )


def _name(item: Item) -> str:
    return shown(item.id if item.title is None else item.title, _TITLE)
