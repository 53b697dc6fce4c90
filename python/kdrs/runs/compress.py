"""A teacher made small without training: fewer directions, few bits, users without a table. Takes seconds."""

from __future__ import annotations

import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from kdrs.compact.encoders import SumEncoder, history_sums
from kdrs.core.codes import BITS, Codes
from kdrs.data import Dataset
from kdrs.errors import ConfigError, MissingKnowledge, shown
from kdrs.evaluation.protocols import Selection
from kdrs.evaluation.report import Report
from kdrs.fitting.fit import Fit
from kdrs.models import MODELS
from kdrs.models.stored import StoredModel
from kdrs.runs.build import build_evaluator, choose_protocol, choose_selection
from kdrs.runs.compared import size_of
from kdrs.runs.config import RunConfig, completed, resolve
from kdrs.runs.directory import Run
from kdrs.runs.encoded import POWERS, REGS, bias_tensor, candidates, side_of
from kdrs.runs.forms import FORMER_SCALE, SCALE, Budget, Form, bytes_of, forms_of, usual, widest
from kdrs.runs.places import check_free
from kdrs.runs.results import measure_teachers, save_result
from kdrs.runs.source import Source
from kdrs.runs.start import vectors_of
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Task
from kdrs.training.rows import UserTask

Users = Literal["auto", "table", "encoded", "sum", "ridge"]
USERS: tuple[Users, ...] = ("auto", "table", "encoded", "sum", "ridge")


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
    doubts: dict[str, list[str]] = field(default_factory=dict)
    """Sentences about the source, as training prints them of a teacher: it seems to know held-out pairs."""
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

    The result is measured on the data set's split, and so is the source: a teacher file that seems to know held-out pairs is
    warned of. ``out`` leaves a run directory, which `kdrs eval`, ``report`` and
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
        model = StoredModel(side_of(items, bits), users=side_of(own, bits), bias=bias_tensor(bias), task=task)
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
    task = UserTask(data.train)

    def value(model: StoredModel) -> float:
        return evaluator(model.factors(), parts=["valid"])["valid"].mean(selects)

    measure = value if data.valid.n_pairs else None
    tried, best = [], None
    for one in candidates(
        users, own, side_of(items, bits), bits, bias, task, measure
    ):  # held one by one: each has users
        tried.append({"users": one.users, "how": one.name, selects: one.value})
        if best is None or one.value > best.value:
            best = one
    assert best is not None
    model = best.model
    reports = evaluator(model.factors())
    doubts: dict[str, list[str]] = {}
    result = Compressed(
        model,
        model.nbytes,
        time.monotonic() - began,
        bits,
        best.users,
        reports=reports,
        source=measure_teachers({given.name: given.teacher}, evaluator, data, doubts=doubts)[given.name],
        doubts=doubts,
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


FEW = 256
"""Bits of an item up to which training adds most, and lists teach most: between forms of 28 and of 42 bytes, on CiteULike and
MovieLens 100K."""
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
    wide: bool = False,
    begun: tuple[int, int] | None = None,
) -> Form:
    """Of the forms that fit a budget the one whose compressed teacher is best on the validation part, users as sums; without
    such a part, and where nothing is to be ``measured``, the usual one; for ``wide`` the `widest` one, unmeasured.

    Biases are a coordinate. Of a student of few bytes that is to be ``trained`` fewer bits are expected to gain more. A form
    that was ``begun`` with, dimensions and bits, stays, if this budget gives it now or gave it when scales of few bits were
    two bytes.
    """
    _, n_bytes, _ = size_of(teacher, data)
    factors = teacher.factors() if measured else None
    dim = teacher.dim if factors is None else int(factors.items.shape[1]) + (factors.bias is not None)
    if n_bytes is None:
        raise MissingKnowledge(
            f"the bytes of {shown(teacher.name)} are not known",
            "say how many the student may have: 40B an item, or 2MB in all",
        )
    forms = forms_of(budget, n_bytes, dim, data.n_items)
    for scale in (SCALE, FORMER_SCALE) if begun is not None else ():
        with suppress(ConfigError):  # where nothing fitted then
            if begun in [(form.dim, form.bits) for form in forms_of(budget, n_bytes, dim, data.n_items, scale=scale)]:
                return Form(*begun, bytes_of(*begun, data.n_items))
    if wide:
        return widest(forms)
    if not measured or not data.valid.n_pairs or len(forms) == 1:
        return usual(forms, dim)
    evaluator, task = build_evaluator(config, data), UserTask(data.train)
    selects = choose_selection(config, choose_protocol(config, data)).metrics[0]

    gains = trained and max(form.bits * form.dim for form in forms) <= FEW

    def value(form: Form) -> float:
        own, items = vectors_of(teacher, form.dim)
        side = side_of(items, form.bits)
        assert isinstance(side, Codes)
        sums = history_sums(task.seen, side, POWERS[0])
        encoder = SumEncoder.fit(side.rotate(own), sums, POWERS[0], REGS[0]).rounded()
        model = StoredModel(side, encoder=encoder, task=task)
        found = evaluator(model.factors(), parts=["valid"])["valid"].mean(selects)
        return found * TRAINED.get(form.bits, 1.0) if gains else found

    return max(forms, key=value)


def _saved(result: Compressed, given: Source, config: RunConfig, bits: int, out: Path, how: str) -> Compressed:
    """The run directory of what was made."""
    name = str(config.model["name"])
    encoded = result.users != "table"
    needs = {key for key, used in (("bits", bits != 32), ("users", encoded)) if used}
    users = "encoded" if encoded else "table"
    if (
        name not in MODELS
        or not needs <= set(MODELS[name].compactable)
        or users not in get_args(MODELS[name].Config.model_fields["users"].annotation)
    ):
        name = "bpr"  # the model of plain vectors
    model = {"name": name, "dim": result.model.dim, "bits": bits, "users": users}
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
        save_result(run, own, given.dataset, result.model, done, result.reports, selection, result.doubts)
    return Compressed(**{**vars(result), "run": run})
