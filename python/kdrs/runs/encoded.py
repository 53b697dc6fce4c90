"""Ways to have users without a table of their own, and teachers whose users are had so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from kdrs.compact.encoders import RidgeEncoder, SumEncoder, history_sums
from kdrs.core.codes import Codes
from kdrs.data import Dataset
from kdrs.errors import ConfigError, shown
from kdrs.models.stored import Side, StoredModel
from kdrs.runs.build import build_evaluator, choose_protocol, choose_selection
from kdrs.runs.config import RunConfig
from kdrs.runs.start import plain_factors
from kdrs.teachers.base import Teacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.outline import is_outline
from kdrs.training.queries import Task
from kdrs.training.rows import UserTask

POWERS = (0.5, 1.0, 0.0)
REGS = (0.01, 0.001, 0.03)
"""Of the sum: what its Gram matrix's diagonal is raised by, as a share of its mean."""
ALPHAS = (0.1, 0.03, 0.3)
RIDGE = "ridge-"
RIDGE_REGS = (1.0, 0.3, 3.0, 10.0)
"""Of ridge regression a user, likewise. The first of each is taken where there is no validation part to choose by."""


class Candidate(NamedTuple):
    """A way to have users."""

    name: str
    model: StoredModel
    value: float = 0.0
    """On validation, where there is any."""

    @property
    def users(self) -> str:
        return self.name.partition(" ")[0]


Measure = Callable[[StoredModel], float]


def candidates(
    users: str,
    own: np.ndarray,
    items: Side,
    bits: int,
    bias: np.ndarray | None,
    task: Task,
    measure: Measure | None,
) -> Iterator[Candidate]:
    """Ways to have users. Constants of encoders are chosen by ``measure``, one after the other; without it the first of each
    are taken."""

    def model(**parts: Any) -> StoredModel:
        return StoredModel(items, bias=bias_tensor(bias), task=task, **parts)

    if users == "table" or (users == "auto" and measure is not None):
        table = model(users=side_of(own, bits))
        yield Candidate("table", table, 0.0 if measure is None else measure(table))
    plain, goal = _plain(items, own)
    if users in ("auto", "encoded", "sum"):
        sums: dict[float, np.ndarray] = {}

        def fitted(power: float, reg: float) -> StoredModel:
            if power not in sums:
                sums[power] = history_sums(task.seen, plain, power)
            return model(encoder=_sum(goal, sums[power], power, reg, bits))

        yield from _searched("sum", fitted, ("power", POWERS), ("reg", REGS), measure)
    if users == "ridge" or (users in ("auto", "encoded") and measure is not None):

        def ridge(alpha: float, reg: float) -> StoredModel:
            return model(encoder=RidgeEncoder(alpha, reg))

        yield from _searched("ridge", ridge, ("alpha", ALPHAS), ("reg", RIDGE_REGS), measure)


def made_as(name: str, own: np.ndarray, items: Side, bits: int, bias: np.ndarray | None, task: Task) -> StoredModel:
    """The way to have users that a `Candidate` is called by, ``sum power=0.5 reg=0.01`` or ``ridge alpha=0.1 reg=1``, of other
    vectors. Raises ``ValueError`` for another name."""
    kind, first, second = name.split(" ")
    one, other = (float(text.partition("=")[2]) for text in (first, second))
    if kind == "ridge":
        encoder: Any = RidgeEncoder(one, other)
    elif kind == "sum":
        plain, goal = _plain(items, own)
        encoder = _sum(goal, history_sums(task.seen, plain, one), one, other, bits)
    else:
        raise ValueError(f"no encoder {name!r}")
    return StoredModel(items, encoder=encoder, bias=bias_tensor(bias), task=task)


def _plain(items: Side, own: np.ndarray) -> tuple[Codes | np.ndarray, np.ndarray]:
    """Items as encoders read them, and users in the same directions."""
    return (items, items.rotate(own)) if isinstance(items, Codes) else (items.numpy(), own)


def _sum(goal: np.ndarray, sums: np.ndarray, power: float, reg: float, bits: int) -> SumEncoder:
    found = SumEncoder.fit(goal, sums, power, reg)
    return found if bits == 32 else found.rounded()


def _searched(
    kind: str,
    make: Callable[[float, float], StoredModel],
    first: tuple[str, tuple[float, ...]],
    second: tuple[str, tuple[float, ...]],
    measure: Measure | None,
) -> Iterator[Candidate]:
    """Encoders of a kind: the first constant's values, then, with the best of them, the second's."""
    (one, ones), (other, others) = first, second

    def built(a: float, b: float) -> Candidate:
        model = make(a, b)
        return Candidate(f"{kind} {one}={a:g} {other}={b:g}", model, 0.0 if measure is None else measure(model))

    if measure is None:
        yield built(ones[0], others[0])
        return
    values: dict[float, float] = {}
    for a in ones:
        made = built(a, others[0])
        values[a] = made.value
        yield made
    best = max(values, key=lambda a: values[a])
    for b in others[1:]:
        yield built(best, b)


def best_encoder(model: StoredModel, measure: Measure) -> StoredModel:
    """The model with the encoder that it was trained with, or with ridge regression on the same items, whichever ``measure``
    prefers. Ridge regression leaves more to new users; where items are few and users have many of them it is far worse."""
    best, value = model, measure(model)
    for reg in RIDGE_REGS[:3]:
        other = _with_ridge(model, reg)
        if (found := measure(other)) > value:
            best, value = other, found
    return best


def named_ridge(encoder: RidgeEncoder) -> str:
    """The value of ``model.encoder`` that makes it."""
    return f"{RIDGE}{encoder.reg:g}"


def as_named(model: StoredModel, name: str) -> StoredModel:
    """The model with the ridge regression that ``model.encoder`` names; itself for other names."""
    if not name.startswith(RIDGE):
        return model
    return _with_ridge(model, float(name.removeprefix(RIDGE)))


def _with_ridge(model: StoredModel, reg: float) -> StoredModel:
    return StoredModel(model.item_side, encoder=RidgeEncoder(ALPHAS[0], reg), bias=model.bias, task=model.task)


def side_of(vectors: np.ndarray, bits: int) -> Side:
    return torch.from_numpy(np.ascontiguousarray(vectors, np.float32)) if bits == 32 else Codes.of(vectors, bits)


def bias_tensor(bias: np.ndarray | None) -> torch.Tensor | None:
    return None if bias is None else torch.from_numpy(np.array(bias, np.float32))


def with_encoded_users(teacher: Teacher, data: Dataset, config: RunConfig) -> Teacher:
    """The teacher with its users as a sum or a ridge regression over their training items, if that ranks better on the
    validation part than its own users do; else the teacher itself, also where there is no such part or nothing to measure yet.

    Nothing but its items and the training part is used. Raises ``ConfigError`` for a teacher whose scores are no products.
    """
    if "users" not in teacher.sides or not teacher.scores_are_products:
        raise ConfigError(
            f"teacher_users is encoded, and the scores of {shown(teacher.name)} are no products of vectors",
            "leave teacher_users out",
        )
    if is_outline(teacher.asked) or not data.valid.n_pairs:
        return teacher
    factors = teacher.factors()
    assert factors is not None
    users, items, bias = plain_factors(factors)
    evaluator, task = build_evaluator(config, data), UserTask(data.train)
    selects = choose_selection(config, choose_protocol(config, data)).metrics[0]

    def value(model: StoredModel) -> float:
        return evaluator(model.factors(), parts=["valid"])["valid"].mean(selects)

    side = torch.from_numpy(items)
    best = max(candidates("auto", users[: data.n_users], side, 32, bias, task, value), key=lambda one: one.value)
    if best.users == "table":
        return teacher
    return ModelTeacher(best.model, task, asked=teacher.asked, name=f"{teacher.name}, users encoded: {best.name}")
