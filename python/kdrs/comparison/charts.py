"""What charts are drawn with, as SVG: scales, axes, marks. Colours come from the page's style, by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdrs.comparison.markup import Child, Markup, tag

if TYPE_CHECKING:
    from kdrs.comparison.result import Line

WIDTH, HEIGHT = 480.0, 310.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 466.0, 16.0, 262.0
"""Of the frame that values are drawn in."""
COLOURS = 8
_FILLED = (
    "M0-5.2A5.2 5.2 0 1 1-.01-5.2Z",
    "M0-6.8 6.8 0 0 6.8-6.8 0Z",
    "M0-6.4 6 4.6-6 4.6Z",
    "M0 6.4 6-4.6-6-4.6Z",
    "M-2.1-6H2.1V-2.1H6V2.1H2.1V6H-2.1V2.1H-6V-2.1H-2.1Z",
    "M-5.7-2.8-2.8-5.7 0-2.8 2.8-5.7 5.7-2.8 2.8 0 5.7 2.8 2.8 5.7 0 2.8-2.8 5.7-5.7 2.8-2.8 0Z",
    "M-6.4 0 4.6-6V6Z",
    "M6.4 0-4.6-6V6Z",
)
_HOLLOW = ("M-4.6-4.6H4.6V4.6H-4.6Z", *_FILLED[:4])
_STAR = "M0-8.4 2-2.7 8-2.6 3.2 1 4.9 6.8 0 3.4-4.9 6.8-3.2 1-8-2.6-2-2.7Z"
_CHARACTER = 6.3
"""Width of a letter of a label, about."""


@dataclass(frozen=True)
class Look:
    """How a model is drawn: told apart by colour and by form."""

    class_: str
    path: str


def drawn_as(lines: Sequence[Line]) -> dict[str, tuple[str, int]]:
    """What each model is drawn as, by its name: a role, and its number among those that are drawn as the same."""
    found: dict[str, tuple[str, int]] = {}
    taught = any(line.role == "student" for line in lines)
    counts = {"teacher": 0, "alone": 0, "student": 0}
    for line in lines:
        # where none was taught, those trained alone are what is compared: all but the one that they are compared with
        role = "student" if line.role == "alone" and not taught and line.baseline is not None else line.role
        found[line.name] = role, counts[role]
        counts[role] += 1
    return found


def looks_of(lines: Sequence[Line]) -> dict[str, Look]:
    """Teachers are black stars, models alone hollow and grey, students in colours that colour-blind readers tell apart."""
    looks: dict[str, Look] = {}
    for name, (role, at) in drawn_as(lines).items():
        if role == "teacher":
            looks[name] = Look("teacher", _STAR)
        elif role == "alone":
            looks[name] = Look("alone" + (f" dash{min(at, 2)}" if at else ""), _HOLLOW[at % len(_HOLLOW)])
        else:  # once around, colours meet other forms
            looks[name] = Look(f"s{at % COLOURS}", _FILLED[(at + at // COLOURS) % len(_FILLED)])
    return looks


def mark(look: Look, x: float, y: float, tip: str | None = None, *, small: bool = False) -> Markup:
    """A model's mark at a place; ``tip`` is what pointing at it says."""
    scale = " scale(.7)" if small else ""
    hit = None if tip is None else tag("circle", r=11, class_="hit")
    return tag(
        "g",
        None if tip is None else tag("title", tip),
        hit,
        tag("path", d=look.path),
        class_=f"mark {look.class_}",
        transform=f"translate({x:.1f} {y:.1f}){scale}",
    )


def glyph(look: Look) -> Markup:
    """A model's mark beside its name."""
    drawn = tag("g", tag("path", d=look.path), class_=f"mark {look.class_}", transform="translate(9 9)")
    return tag("svg", drawn, class_="glyph", viewBox="0 0 18 18", width="18", height="18", aria_hidden="true")


# --- scales ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on a line from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log(v) if self.log else v for v in (self.low, self.high))
        share = ((math.log(value) if self.log else value) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high, most)


def linear(values: Sequence[float], start: float, end: float, *, margin: float = 0.08) -> Scale:
    """A scale that has room for finite values."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    room = margin * (high - low) or max(0.05 * abs(high), 0.01)
    return Scale(low - room, high + room, start, end)


def logarithmic(values: Sequence[float], start: float, end: float) -> Scale:
    low, high = min(values) / 1.5, max(values) * 1.5
    if high / low < 8:  # so short a scale has no round numbers to show
        middle = math.sqrt(low * high)
        low, high = middle / 3, middle * 3
    return Scale(low, high, start, end, log=True)


def _ticks(low: float, high: float, most: int) -> list[float]:
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * times for times in (1, 2, 5, 10, 20) if (high - low) / (power * times) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(at * step, 12) + 0.0 for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    steps = (1,) if high / low > 400 else (1, 3) if high / low > 60 else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for power in decades for step in steps if low <= (value := step * 10.0**power) <= high]


def decimals(ticks: Sequence[float]) -> Callable[[float], str]:
    """A form that tells ticks of one scale apart."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    places = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return lambda value: f"{value:.{places}f}"


def round_size(value: float) -> str:
    """Bytes of a tick, which are round."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:g} {unit}"


# --- the frame ------------------------------------------------------------------------------------------------------


def frame(
    x: Scale,
    y: Scale,
    x_title: str,
    y_title: str,
    x_text: Callable[[float], str],
    *,
    x_ticks: bool = True,
    x_title_at: float = HEIGHT - 8,
) -> list[Child]:
    """Grid, numbers and titles of both axes."""
    rows = y.ticks()
    y_text = decimals(rows)
    drawn: list[Child] = []
    for value in rows:
        at = y(value)
        drawn += [
            tag("line", x1=LEFT, x2=RIGHT, y1=at, y2=at, class_="grid"),
            tag("text", y_text(value), x=LEFT - 7, y=at + 4, class_="tick", text_anchor="end"),
        ]
    for value in x.ticks(7) if x_ticks else ():
        at = x(value)
        drawn += [
            tag("line", x1=at, x2=at, y1=TOP, y2=BOTTOM, class_="grid"),
            tag("text", x_text(value), x=at, y=BOTTOM + 17, class_="tick", text_anchor="middle"),
        ]
    middle = (TOP + BOTTOM) / 2
    return [
        *drawn,
        tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis"),
        tag("text", x_title, x=(LEFT + RIGHT) / 2, y=x_title_at, class_="title", text_anchor="middle"),
        tag("text", y_title, class_="title", text_anchor="middle", transform=f"translate(14 {middle:.0f}) rotate(-90)"),
    ]


def bar(look: Look, x: float, low: float, high: float) -> Markup:
    """An upright interval, of ends in pixels."""
    return tag("path", d=f"M{x:.1f} {low:.1f}V{high:.1f}", class_=f"bar {look.class_}")


def drawing(label: str, *children: Child, height: float = HEIGHT) -> Markup:
    """A chart; ``label`` says in words what it shows."""
    return tag("svg", *children, viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", class_="chart", role="img", aria_label=label)


def labels(points: Sequence[tuple[float, float, str]]) -> list[Markup]:
    """Names beside points (x, y, name) where there is room; the legend has those that find none."""
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y, _ in points]
    placed = []
    for x, y, name in points:
        text = name if len(name) <= 20 else f"{name[:19]}…"
        width = _CHARACTER * len(text)
        for left, base, anchor in (
            (x + 11, y + 4, "start"),
            (x - 11 - width, y + 4, "end"),
            (x - width / 2, y - 12, "middle"),
            (x - width / 2, y + 20, "middle"),
            (x + 9, y - 9, "start"),
            (x + 9, y + 17, "start"),
        ):
            box = (left, base - 10, left + width, base + 3)
            inside = box[0] >= LEFT + 2 and box[2] <= RIGHT + 8 and box[1] >= TOP - 10 and box[3] <= BOTTOM - 2
            if inside and not any(_meet(box, other) for other in taken):
                taken.append(box)
                at = left if anchor == "start" else left + width if anchor == "end" else left + width / 2
                placed.append(tag("text", text, x=at, y=base, class_="label", text_anchor=anchor))
                break
    return placed


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
