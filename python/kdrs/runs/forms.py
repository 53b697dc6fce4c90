"""How large a student may be, and the forms that fit: dimensions and bits of students without a user table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from kdrs.errors import ConfigError, shown

UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
ALLOWED = "1/20 or 0.05 of the teacher's bytes, 40B an item, or a size in all such as 500kB, 2MB or 64KiB"
SCALE = {8: 2, 4: 2, 3: 2, 2: 1, 1: 1}
"""Bytes of a row's scale in a file (`kdrs.compact.tables.short`)."""
FORMER_SCALE = dict.fromkeys(SCALE, 2)
"""What they were before: a run that was begun then goes on as it was."""
LEAST_SHARE = {8: 1.0, 4: 1.0, 3: 1.0, 2: 0.5, 1: 0.0}
"""The share of the teacher's dimensions that must fit for a number of bits to be taken, most bits first: whole tables of three
bits, two bits down to half of the dimensions, then one. As it is on CiteULike; other data want other forms
(docs/results/notes/frontier.md), which only a validation part can tell."""


@dataclass(frozen=True)
class Budget:
    """What a student may take: a share of its teacher's bytes, bytes of an item, or bytes in all."""

    text: str
    share: Fraction | None = None
    row: int | None = None
    total: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Raises ``ConfigError`` for anything but a share, bytes of a row below 10,000 (``40B``) or a size."""
        told = text.strip()
        if match := re.fullmatch(r"(\d{1,9})\s*/\s*(\d{1,9})|(0?\.\d{1,9})", told, re.ASCII):
            if match[3] is not None or int(match[2]):
                share = Fraction(match[3]) if match[3] is not None else Fraction(int(match[1]), int(match[2]))
                if 0 < share < 1:
                    return cls(told, share=share)
        elif match := re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kKMG]i?B|B)", told, re.ASCII):
            size = int(Fraction(match[1]) * UNITS.get(match[2], 0))
            if size > 0:
                return cls(told, row=size) if match[2] == "B" and size < 10_000 else cls(told, total=size)
        raise ConfigError(f"budget is {shown(text)}", f"allowed: {ALLOWED}")

    def bytes_of(self, teacher_bytes: int, n_items: int) -> int:
        """Bytes in all of a student without a user table; where a row is told its encoder comes on top."""
        if self.share is not None:
            return int(teacher_bytes * self.share)
        return self.total if self.total is not None else (self.row or 0) * n_items


@dataclass(frozen=True)
class Form:
    """A student of encoded users."""

    dim: int
    bits: int
    n_bytes: int


def bytes_of(dim: int, bits: int, n_items: int, *, encoder: bool = True, scale: Mapping[int, int] = SCALE) -> int:
    """Bytes of a student's file without its head: item codes with their scales, and the larger one of the encoders, which is
    a matrix with its own scales, or two numbers."""
    matrix = max(dim * dim + 4 * dim + 8, 16) if encoder else 0
    return n_items * (-(-dim * bits // 8) + scale[bits]) + matrix


def forms_of(
    budget: Budget, teacher_bytes: int, teacher_dim: int, n_items: int, *, scale: Mapping[int, int] = SCALE
) -> list[Form]:
    """Of each number of bits the form of most dimensions that fits, most bits first. Raises ``ConfigError`` where none does."""
    room, whole = budget.bytes_of(teacher_bytes, n_items), budget.row is None
    found = []
    for bits in LEAST_SHARE:
        sizes = ((dim, bytes_of(dim, bits, n_items, encoder=whole, scale=scale)) for dim in range(teacher_dim, 0, -1))
        dims = (dim for dim, size in sizes if size <= room)
        if dim := next(dims, 0):
            found.append(Form(dim, bits, bytes_of(dim, bits, n_items)))
    if found:
        return found
    smallest = bytes_of(1, 1, n_items, encoder=whole)
    raise ConfigError(
        f"budget {budget.text} is {room:,} bytes for {n_items:,} items; the smallest student has {smallest:,}",
        "allow more; ids and histories are not counted",
    )


def widest(forms: Sequence[Form]) -> Form:
    """The form of the most dimensions, and of these the one of the most bits."""
    return max(forms, key=lambda form: (form.dim, form.bits))


def usual(forms: Sequence[Form], teacher_dim: int) -> Form:
    """The form that is taken where there is no validation part to choose by."""
    fitting = (form for form in forms if form.dim >= LEAST_SHARE[form.bits] * teacher_dim)
    return next(fitting, forms[-1])
