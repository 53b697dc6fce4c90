"""``--budget``: which student has so many bytes, and how it is best trained.

The table behind it is docs/results/frontier.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from kdrs.data import Dataset
from kdrs.errors import ConfigError, MissingKnowledge, shown
from kdrs.runs.compared import size_of
from kdrs.runs.learners import load_teacher
from kdrs.runs.values import FROM_TEACHER
from kdrs.training.pairs import PairTask

UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
ALLOWED = "1/20 or 0.05 of the teacher's bytes, 40B an item, or a size in all such as 500kB or 2MB"
SCALE = 2
"""Bytes of a row's scale in a file."""
LEAST_SHARE = {8: 1.0, 4: 1.0, 3: 1.0, 2: 0.5, 1: 0.0}
"""The share of the teacher's dimensions that must fit for a number of bits to be taken, most bits first: whole tables of three
bits lose nothing that is measured, two bits are best down to half of the dimensions, then one."""
EPOCHS = 15
"""Students that start from their teacher are best after three to ten."""


def training_of(bits: int) -> dict[str, Any]:
    """Training settings that were best on validation: signs take larger steps."""
    return {"lr": 2e-3 if bits == 1 else 1e-3, "weight_decay": 0.0, "epochs": EPOCHS}


def method_of(bits: int) -> dict[str, Any]:
    """The term that was best on validation."""
    return {"method": "cd", "weight": 0.1 if bits == 1 else 0.5}


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


def bytes_of(dim: int, bits: int, n_items: int, *, encoder: bool = True) -> int:
    """Bytes of a student's file without its head: item codes with their scales, and the encoder's matrix with its own."""
    matrix = dim * dim + 4 * dim + 8 if encoder else 0
    return n_items * (-(-dim * bits // 8) + SCALE) + matrix


def form_of(budget: Budget, teacher_bytes: int, teacher_dim: int, n_items: int) -> Form:
    """The best form that fits. Raises ``ConfigError`` where none does."""
    room, whole = budget.bytes_of(teacher_bytes, n_items), budget.row is None
    for bits, least in LEAST_SHARE.items():
        dims = [dim for dim in range(teacher_dim, 0, -1) if bytes_of(dim, bits, n_items, encoder=whole) <= room]
        if dims and dims[0] >= max(least * teacher_dim, 1):
            return Form(dims[0], bits, bytes_of(dims[0], bits, n_items))
    smallest = bytes_of(1, 1, n_items, encoder=whole)
    raise ConfigError(
        f"budget {budget.text} is {room:,} bytes for {n_items:,} items; the smallest student has {smallest:,}",
        "allow more; ids and histories are not counted",
    )


def chosen(values: Mapping[str, Any], budget: str, teachers: list[str]) -> dict[str, Any]:
    """A run's plain values with what the budget chooses: model, start, method, training. What ``values`` state already wins,
    but for the model's size.

    Raises ``ConfigError`` for sizes that are stated beside the budget, for several teachers, and for a model without a
    compact form; ``MissingKnowledge`` for a teacher of lists alone.
    """
    told = Budget.parse(budget)
    model = dict(values.get("model", {}))
    for key in ("dim", "bits", "users"):
        if key in model:
            raise ConfigError(
                f"model.{key} is {shown(model[key])}, and --budget chooses it", "leave one of the two out"
            )
    if len(set(teachers)) != 1:
        raise ConfigError(
            f"--budget with {len(set(teachers))} teachers", "give the one whose bytes count: --teacher RUN"
        )
    (reference,) = set(teachers)
    dataset = Dataset.load(values["data"]["path"])
    teacher = load_teacher(Path(reference), dataset, PairTask(dataset.train))
    _, n_bytes, _ = size_of(teacher, dataset)
    factors = teacher.factors()
    if n_bytes is None or (factors is None and getattr(teacher, "lists", None) is not None):
        raise MissingKnowledge(
            f"teacher {shown(reference)} holds lists alone, so that nothing can be started from it",
            "give --method, --dim and --set model.bits instead of --budget",
        )
    dim = teacher.dim if factors is None else int(factors.items.shape[1]) + (factors.bias is not None)
    form = form_of(told, n_bytes, dim, dataset.n_items)
    name = model.get("name", "bpr")
    terms = values.get("distill") or [{**method_of(form.bits), "teacher": reference}]
    return {
        **values,
        "model": {**model, "name": name, "dim": form.dim, "bits": form.bits, "users": "encoded"},
        "start": values.get("start", FROM_TEACHER),
        "distill": terms,
        "train": {**training_of(form.bits), **values.get("train", {})},
    }
