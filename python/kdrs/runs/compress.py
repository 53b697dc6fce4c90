"""A teacher made small without training: fewer directions, few bits, users without a table. Takes seconds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch

from kdrs.compact.encoders import RidgeEncoder, SumEncoder, history_sums
from kdrs.core.codes import BITS, Codes
from kdrs.data import Dataset
from kdrs.errors import ConfigError, MissingKnowledge, shown
from kdrs.evaluation.protocols import Selection
from kdrs.evaluation.report import Report
from kdrs.fitting.fit import Fit
from kdrs.models import MODELS
from kdrs.models.stored import Side, StoredModel
from kdrs.runs.build import build_evaluator, choose_protocol, choose_selection
from kdrs.runs.compared import size_of
from kdrs.runs.config import RunConfig, completed, resolve
from kdrs.runs.directory import Run, check_free
from kdrs.runs.forms import Budget, Form, forms_of, usual
from kdrs.runs.results import save_result
from kdrs.runs.source import Source
from kdrs.runs.start import vectors_of
from kdrs.teachers.base import Teacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Task

Users = Literal["auto", "table", "encoded", "sum", "ridge"]
USERS: tuple[Users, ...] = ("auto", "table", "encoded", "sum", "ridge")
POWERS = (0.5, 1.0, 0.0)
REGS = (0.01, 0.001, 0.03)
"""Of the sum: what its Gram matrix's diagonal is raised by, as a share of its mean."""
ALPHAS = (0.1, 0.03, 0.3)
RIDGE_REGS = (1.0, 0.3, 3.0, 10.0)
"""Of ridge regression a user, likewise. The first of each is taken where there is no validation part to choose by."""


@dataclass(frozen=True)
class Compressed:
    """What `compress` made."""

    model: StoredModel
    """``factors()`` for ranking and evaluation; ``encode(histories)`` for users, known or new, where they are encoded."""
    n_bytes: int
    """Of all its tables."""
    seconds: float
    bits: int
    users: str
    """``table``, ``sum`` or ``ridge``."""
    reports: dict[str, Report] = field(default_factory=dict)
    """Quality on the data set's parts, as `Evaluator` has it; empty without one."""
    source: dict[str, Report] = field(default_factory=dict)
    """The source's own."""
    source_bytes: int | None = None
    tried: list[dict[str, Any]] = field(default_factory=list)
    """Ways to have users, with their values on validation, in the order that they were tried."""
    selects: str = ""
    run: Run | None = None


def compress(
    source: Any,
    bits: int | None = None,
    dim: int | None = None,
    *,
    budget: str | None = None,
    users: Users = "auto",
    dataset: Dataset | str | Path | None = None,
    out: str | Path | None = None,
    protocol_name: str | None = None,
    threads: int | None = None,
) -> Compressed:
    """Makes a run, a teacher file, a `Teacher` or factors ``(users [U, D], items [I, D]`` and perhaps a bias ``[I])`` small.

    1. ``dim`` below D keeps the best directions for all scores at once (`kdrs.compact.reduce.singular`). Scores that are no
       products (NeuMF) are taken block by block, and need a ``dim``.
    2. Vectors become `kdrs.Codes` of 1, 2, 3, 4 or 8 ``bits``, 3 unless given; 32 leaves them float32.
    3. ``users``: ``table`` keeps one; ``sum`` and ``ridge`` replace it by a function of each user's training items
       (`kdrs.compact.encoders`), which serves new users too; ``encoded`` is the better of these, ``auto`` of all three, on the
       validation part. Without a validation part both mean ``sum``.

    ``budget`` (``"1/20"`` of the source's bytes, ``"40B"`` an item, ``"2MB"`` in all) chooses bits and dimension instead: those
    that are best on the validation part. Users are then encoded.

    The result is measured on the data set's split. ``out`` leaves a run directory, which `kdrs eval`, ``report`` and
    ``distill --teacher`` take. The data set is the run's own unless given (the folder's path, for ``out``); factors need none
    with ``users="table"``.

    Raises ``ConfigError`` for other bits, dimensions and users, ``MissingKnowledge`` for a source without scores, and what
    opening a run raises.
    """
    began = time.monotonic()
    if budget is not None and not (bits is None and dim is None and users != "table"):
        name = "bits" if bits is not None else "dim" if dim is not None else "users"
        raise ConfigError(
            f"budget is {shown(budget)}, and {name} is given",
            "leave one of the two out: a budget chooses bits and dim, of a student of encoded users",
        )
    bits = 3 if bits is None else bits
    if bits not in (*BITS, 32) or isinstance(bits, bool):
        raise ConfigError(f"bits is {shown(repr(bits))}", f"allowed: {', '.join(map(str, BITS))}, 32 for float32")
    if users not in USERS:
        raise ConfigError(f"users is {shown(users)}", f"allowed: {', '.join(USERS)}")
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 1):
        raise ConfigError(f"dim is {shown(dim)}", "allowed: integers from 1 on")
    if out is not None:
        check_free(Path(out))
    given = Source.of(source, dataset)
    if given.teacher is not None and given.path is None and out is not None:
        raise ConfigError(
            "out is given, and the data set has no folder that the run could name", "give its path: dataset=PATH"
        )
    if given.teacher is None:
        if budget is not None:
            raise ConfigError(f"budget is {shown(budget)}, and there is no data set to choose by", "give bits and dim")
        if users not in ("auto", "table") or out is not None:
            wanted = f"users is {users!r}" if out is None else "out is given"
            raise ConfigError(f"{wanted}, and there is no data set", "give one: dataset=")
        own, items, bias = given.vectors(dim)
        task = cast("Task", None)
        model = StoredModel(_side(items, bits), users=_side(own, bits), bias=_tensor(bias), task=task)
        return Compressed(model, model.nbytes, time.monotonic() - began, bits, "table")
    config, data = given.config(protocol_name, threads), given.dataset
    evaluator = build_evaluator(config, data)
    selects = choose_selection(config, choose_protocol(config, data)).metrics[0]
    if budget is not None:
        form = best_form(given.teacher, data, Budget.parse(budget), config)
        bits, dim, users = form.bits, form.dim, "encoded" if users == "auto" else users
        (own, items), bias = vectors_of(given.teacher, dim), None
    else:
        own, items, bias = given.vectors(dim)
    task = PairTask(data.train)

    def value(model: StoredModel) -> float:
        return evaluator(model.factors(), parts=["valid"])["valid"].mean(selects)

    measure = value if data.valid.n_pairs else None
    tried, best = [], None
    for one in candidates(users, own, _side(items, bits), bits, bias, task, measure):  # held one by one: each has users
        tried.append({"users": one.users, "how": one.name, selects: one.value})
        if best is None or one.value > best.value:
            best = one
    assert best is not None
    model = best.model
    reports = evaluator(model.factors())
    result = Compressed(
        model,
        model.nbytes,
        time.monotonic() - began,
        bits,
        best.users,
        reports=reports,
        source=evaluator(given.teacher),
        source_bytes=given.n_bytes,
        tried=tried if measure else [],
        selects=selects,
    )
    if result.source_bytes is not None and result.n_bytes >= result.source_bytes:
        warnings.warn(
            f"the result has {result.n_bytes:,} bytes, {shown(given.name)} {result.source_bytes:,}: nothing became smaller",
            stacklevel=2,
        )
    if out is None:
        return result
    return _saved(result, given, config, bits, Path(out), best.name)


TRAINED = {1: 1.1, 2: 1.05}
"""What training through the rounding adds to a compressed form of one bit, of two, beyond what it adds to others: CiteULike,
docs/results/notes/frontier.md."""


def best_form(
    teacher: Teacher,
    data: Dataset,
    budget: Budget,
    config: RunConfig,
    *,
    trained: bool = False,
    measured: bool = True,
) -> Form:
    """Of the forms that fit a budget the one whose compressed teacher is best on the validation part, users as sums; without
    such a part, and where nothing is to be ``measured``, the usual one. Biases are a coordinate. Of a student that is to be
    ``trained`` fewer bits are expected to gain more."""
    _, n_bytes, _ = size_of(teacher, data)
    factors = teacher.factors() if measured else None
    dim = teacher.dim if factors is None else int(factors.items.shape[1]) + (factors.bias is not None)
    if n_bytes is None:
        raise MissingKnowledge(
            f"the bytes of {shown(teacher.name)} are not known",
            "say how many the student may have: 40B an item, or 2MB in all",
        )
    forms = forms_of(budget, n_bytes, dim, data.n_items)
    if not measured or not data.valid.n_pairs or len(forms) == 1:
        return usual(forms, dim)
    evaluator, task = build_evaluator(config, data), PairTask(data.train)
    selects = choose_selection(config, choose_protocol(config, data)).metrics[0]

    def value(form: Form) -> float:
        own, items = vectors_of(teacher, form.dim)
        side = _side(items, form.bits)
        assert isinstance(side, Codes)
        sums = history_sums(task.seen, side, POWERS[0])
        encoder = SumEncoder.fit(side.rotate(own), sums, POWERS[0], REGS[0]).rounded()
        model = StoredModel(side, encoder=encoder, task=task)
        found = evaluator(model.factors(), parts=["valid"])["valid"].mean(selects)
        return found * TRAINED.get(form.bits, 1.0) if trained else found

    return max(forms, key=value)


def _side(vectors: np.ndarray, bits: int) -> Side:
    return torch.from_numpy(np.ascontiguousarray(vectors, np.float32)) if bits == 32 else Codes.of(vectors, bits)


def _tensor(bias: np.ndarray | None) -> torch.Tensor | None:
    return None if bias is None else torch.from_numpy(np.array(bias, np.float32))


class _Candidate(NamedTuple):
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
) -> Iterator[_Candidate]:
    """Ways to have users. Constants of encoders are chosen by ``measure``, one after the other; without it the first of each
    are taken."""

    def model(**parts: Any) -> StoredModel:
        return StoredModel(items, bias=_tensor(bias), task=task, **parts)

    if users == "table" or (users == "auto" and measure is not None):
        table = model(users=_side(own, bits))
        yield _Candidate("table", table, 0.0 if measure is None else measure(table))
    plain = items if isinstance(items, Codes) else items.numpy()
    goal = items.rotate(own) if isinstance(items, Codes) else own
    if users in ("auto", "encoded", "sum"):
        sums: dict[float, np.ndarray] = {}

        def fitted(power: float, reg: float) -> StoredModel:
            if power not in sums:
                sums[power] = history_sums(task.seen, plain, power)
            found = SumEncoder.fit(goal, sums[power], power, reg)
            return model(encoder=found if bits == 32 else found.rounded())

        yield from _searched("sum", fitted, ("power", POWERS), ("reg", REGS), measure)
    if users == "ridge" or (users in ("auto", "encoded") and measure is not None):

        def ridge(alpha: float, reg: float) -> StoredModel:
            return model(encoder=RidgeEncoder(alpha, reg))

        yield from _searched("ridge", ridge, ("alpha", ALPHAS), ("reg", RIDGE_REGS), measure)


def _searched(
    kind: str,
    make: Callable[[float, float], StoredModel],
    first: tuple[str, tuple[float, ...]],
    second: tuple[str, tuple[float, ...]],
    measure: Measure | None,
) -> Iterator[_Candidate]:
    """Encoders of a kind: the first constant's values, then, with the best of them, the second's."""
    (one, ones), (other, others) = first, second

    def built(a: float, b: float) -> _Candidate:
        model = make(a, b)
        return _Candidate(f"{kind} {one}={a:g} {other}={b:g}", model, 0.0 if measure is None else measure(model))

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


def _saved(result: Compressed, given: Source, config: RunConfig, bits: int, out: Path, how: str) -> Compressed:
    """The run directory of what was made."""
    name = str(config.model["name"])
    encoded = result.users != "table"
    needs = {key for key, used in (("bits", bits != 32), ("users", encoded)) if used}
    if name not in MODELS or not needs <= set(MODELS[name].compactable):
        name = "bpr"  # the model of plain vectors
    model = {"name": name, "dim": result.model.dim, "bits": bits, "users": "encoded" if encoded else "table"}
    own = resolve(
        {
            "data": {"path": given.path},
            "model": model,
            "train": {"seed": config.train.seed},
            "eval": config.eval.model_dump(exclude_none=True),
            "compress": {"teacher": given.name, "how": how},
        }
    )
    selection: Selection = choose_selection(own, choose_protocol(own, given.dataset))
    with Run.create(out, own.to_dict(), given.dataset, complete=completed) as run, run.whole():
        done = Fit(best_epoch=None, epochs=0, stopped="compressed")
        save_result(run, own, given.dataset, result.model, done, result.reports, selection)
    return Compressed(**{**vars(result), "run": run})
