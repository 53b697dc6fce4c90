"""A teacher made small without training: fewer directions, few bits, users without a table. Takes seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from kdrs.compact.encoders import Encoder, RidgeEncoder, SumEncoder, history_sums
from kdrs.compact.reduce import singular
from kdrs.core.codes import BITS, Codes
from kdrs.data import Dataset
from kdrs.errors import ArtefactError, ConfigError, DataError, MissingKnowledge, shown
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.protocols import Selection
from kdrs.evaluation.report import Report
from kdrs.fitting.fit import Fit
from kdrs.models import model_class
from kdrs.models.stored import Side, StoredModel
from kdrs.runs.build import build_evaluator, choose_protocol, choose_selection
from kdrs.runs.compared import size_of
from kdrs.runs.config import EvalSettings, RunConfig, completed, resolve
from kdrs.runs.directory import Run, check_free
from kdrs.runs.forms import Budget, Form, forms_of, usual
from kdrs.runs.learners import load_teacher
from kdrs.runs.opened import LoadedRun, check_same_data
from kdrs.runs.records import PATH
from kdrs.runs.results import save_result
from kdrs.runs.start import plain_factors, vectors_of
from kdrs.teachers.base import Teacher
from kdrs.teachers.file import trajectory_files
from kdrs.teachers.model import ModelTeacher
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
    bits: int = 3,
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
    2. Vectors become `kdrs.Codes` of 1, 2, 3, 4 or 8 ``bits``; 32 leaves them float32.
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
    if bits not in (*BITS, 32) or isinstance(bits, bool):
        raise ConfigError(f"bits is {shown(bits)}", f"allowed: {', '.join(map(str, BITS))}, 32 for float32")
    if users not in USERS:
        raise ConfigError(f"users is {shown(users)}", f"allowed: {', '.join(USERS)}")
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 1):
        raise ConfigError(f"dim is {shown(dim)}", "allowed: integers from 1 on")
    if out is not None:
        check_free(Path(out))
    given = _Source.of(source, dataset)
    if given.teacher is not None and given.path is None and out is not None:
        raise ConfigError(
            "out is given, and the data set has no folder that the run could name", "give its path: dataset=PATH"
        )
    if given.teacher is None:
        if users not in ("auto", "table") or out is not None or budget is not None:
            wanted = (
                f"users is {users!r}" if out is None and budget is None else f"{'out' if out else 'budget'} is given"
            )
            raise ConfigError(f"{wanted}, and there is no data set", "give one: dataset=")
        own, items, bias = given.vectors(dim)
        task = cast("Task", None)
        model = StoredModel(_side(items, bits), users=_side(own, bits), bias=_tensor(bias), task=task)
        return Compressed(model, model.nbytes, time.monotonic() - began, bits, "table")
    config, data = given.config(protocol_name, threads), given.dataset
    evaluator = build_evaluator(config, data)
    selects = choose_selection(config, choose_protocol(config, data)).metrics[0]
    if budget is not None:
        if dim is not None or users == "table":
            raise ConfigError(
                f"budget is {shown(budget)}, and {'dim' if dim is not None else 'users'} is given",
                "leave one of the two out: a budget chooses bits and dim, of a student of encoded users",
            )
        form = best_form(given.teacher, data, Budget.parse(budget), config)
        bits, dim, users = form.bits, form.dim, "encoded" if users == "auto" else users
        (own, items), bias = vectors_of(given.teacher, dim), None
    else:
        own, items, bias = given.vectors(dim)
    task = PairTask(data.train)
    kept, tried, best = _side(items, bits), [], None
    for name, model in _candidates(
        users, own, kept, bits, bias, task, evaluator if data.valid.n_pairs else None, selects
    ):
        value = evaluator(model.factors(), parts=["valid"])["valid"].mean(selects) if data.valid.n_pairs else 0.0
        tried.append({"users": name.partition(" ")[0], "how": name, selects: value})
        if best is None or value > best[0]:
            best = value, name, model
    assert best is not None
    _, chosen, model = best
    reports = evaluator(model.factors())
    result = Compressed(
        model,
        model.nbytes,
        time.monotonic() - began,
        bits,
        chosen.partition(" ")[0],
        reports=reports,
        source=evaluator(given.teacher),
        source_bytes=given.n_bytes,
        tried=tried if data.valid.n_pairs else [],
        selects=selects,
    )
    if out is None:
        return result
    return _saved(result, given, config, bits, Path(out), chosen)


def best_form(teacher: Teacher, data: Dataset, budget: Budget, config: RunConfig) -> Form:
    """Of the forms that fit a budget the one whose compressed teacher is best on the validation part, users as sums; without
    such a part the usual one. Biases are a coordinate."""
    _, n_bytes, _ = size_of(teacher, data)
    factors = teacher.factors()
    dim = teacher.dim if factors is None else int(factors.items.shape[1]) + (factors.bias is not None)
    if n_bytes is None:
        raise MissingKnowledge(
            f"the bytes of {shown(teacher.name)} are not known",
            "say how many the student may have: 40B an item, or 2MB in all",
        )
    forms = forms_of(budget, n_bytes, dim, data.n_items)
    if not data.valid.n_pairs or len(forms) == 1:
        return usual(forms, dim)
    evaluator, task = build_evaluator(config, data), PairTask(data.train)
    selects = choose_selection(config, choose_protocol(config, data)).metrics[0]

    def value(form: Form) -> float:
        own, items = vectors_of(teacher, form.dim)
        side = _side(items, form.bits)
        assert isinstance(side, Codes)
        encoder = SumEncoder.fit(
            side.rotate(own), history_sums(task.seen, side, POWERS[0]), POWERS[0], REGS[0]
        ).rounded()
        model = StoredModel(side, encoder=encoder, task=task)
        return evaluator(model.factors(), parts=["valid"])["valid"].mean(selects)

    return max(forms, key=value)


@dataclass
class _Source:
    """What is to be made small, however it was given."""

    name: str
    teacher: Teacher | None
    data: Dataset | None = None
    path: str | None = None
    """Of the data set."""
    own: RunConfig | None = None
    plain: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None

    @classmethod
    def of(cls, source: Any, dataset: Dataset | str | Path | None) -> _Source:
        data = dataset if isinstance(dataset, Dataset) or dataset is None else Dataset.load(dataset)
        path = None if dataset is None or isinstance(dataset, Dataset) else str(dataset)
        if isinstance(source, str | Path):
            place = Path(source)
            if not place.exists():
                raise ArtefactError(
                    f"there is no run directory or teacher file {shown(str(place), PATH)}", "check the path"
                )
            if place.is_dir() and not trajectory_files(place):
                opened = LoadedRun.open(place, data)
                return cls(
                    str(place),
                    opened.teacher(PairTask(opened.dataset.train)),
                    opened.dataset,
                    path or opened.config.data.path,
                    opened.config,
                )
            if data is None:
                raise ConfigError(
                    f"{shown(str(place))} is a teacher file, and the data set is unknown", "give it with --data"
                )
            return cls(str(place), load_teacher(place, data, PairTask(data.train)), data, path)
        if isinstance(source, LoadedRun):
            if data is not None:
                check_same_data(source.run, data)
            inner = source.teacher(PairTask(source.dataset.train))
            return cls(str(source.run.path), inner, source.dataset, source.config.data.path, source.config)
        if isinstance(source, tuple | list) and len(source) in (2, 3):
            if data is not None:
                raise ConfigError(
                    "factors are given with a data set, whose order of users and items nothing vouches for",
                    "write them to a teacher file, in the data set's order, and compress that",
                )
            return cls("factors", None, plain=_arrays(source))
        if callable(getattr(source, "topk_blocks", None)):
            if data is None:
                raise ConfigError("a teacher is given without its data set", "give it: dataset=")
            return cls(str(source.name), source, data, path)
        raise ConfigError(
            f"{type(source).__name__} cannot be compressed",
            "give a run directory, a teacher file, a Teacher or factors",
        )

    @property
    def dataset(self) -> Dataset:
        assert self.data is not None
        return self.data

    @property
    def n_bytes(self) -> int | None:
        if isinstance(self.teacher, ModelTeacher):
            return sum(tensor.nbytes for tensor in self.teacher.model.state_dict().values())
        return getattr(self.teacher, "n_bytes", None)

    def config(self, protocol_name: str | None, threads: int | None) -> RunConfig:
        found = self.own or resolve({"data": {"path": self.path or ""}, "model": {"name": "bpr"}})
        if protocol_name is not None:
            found = found.model_copy(update={"eval": EvalSettings(protocol=protocol_name)})
        return found if threads is None else found.model_copy(update={"threads": threads})

    def vectors(self, dim: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Users, items and bias, of ``dim`` dimensions where it is given."""
        if self.plain is None:
            assert self.teacher is not None
            factors = self.teacher.factors()
            if factors is None:
                if callable(getattr(self.teacher, "lists", None)) or getattr(self.teacher, "lists", None) is not None:
                    raise MissingKnowledge(
                        f"{shown(self.name)} holds lists alone, no scores of all items",
                        "export its vectors; or distil from its lists: kdrs distill --method rrd --set model.bits=2",
                    )
                users, items = vectors_of(self.teacher, dim)
                return users, items, None
            users, items, bias = plain_factors(factors)
            users = users[: self.dataset.n_users]
        else:
            users, items, bias = self.plain
        if dim is not None and dim < users.shape[1]:
            users, items = singular(users, items, dim)
        elif dim is not None and dim > users.shape[1]:
            raise ConfigError(f"dim is {dim}; {shown(self.name)} has {users.shape[1]}", "ask for as many or fewer")
        return users, items, bias


def _arrays(factors: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    from kdrs.core.sampling import array_of

    users, items = (
        side.vectors() if isinstance(side, Codes) else array_of(side, name, np.float32, 2)
        for side, name in zip(factors[:2], ("users", "items"), strict=True)
    )
    bias = None if len(factors) == 2 or factors[2] is None else array_of(factors[2], "bias", np.float32, 1)
    if users.shape[1] != items.shape[1] or (bias is not None and len(bias) != len(items)):
        raise DataError(
            f"users are {users.shape}, items {items.shape}" + ("" if bias is None else f", the bias {bias.shape}"),
            "allowed: [U, D], [I, D] and [I]",
        )
    for side, name in ((users, "users"), (items, "items"), (bias, "bias")):
        if side is not None and not np.isfinite(side).all():
            raise DataError(f"{name} hold NaN or infinity", "all values must be finite: look for a diverged model")
    return users, items, bias


def _side(vectors: np.ndarray, bits: int) -> Side:
    return torch.from_numpy(np.ascontiguousarray(vectors, np.float32)) if bits == 32 else Codes.of(vectors, bits)


def _tensor(bias: np.ndarray | None) -> torch.Tensor | None:
    return None if bias is None else torch.from_numpy(np.array(bias, np.float32))


def _candidates(
    users: str,
    own: np.ndarray,
    items: Side,
    bits: int,
    bias: np.ndarray | None,
    task: Task,
    evaluator: Evaluator | None,
    selects: str,
) -> Iterator[tuple[str, StoredModel]]:
    """Ways to have users, each with its name. With an ``evaluator`` the constants of encoders are chosen on validation, one
    after the other; else the first of each are taken."""
    told = _tensor(bias)
    if users in ("auto", "table") and not (users == "auto" and evaluator is None):
        yield "table", StoredModel(items, users=_side(own, bits), bias=told, task=task)
    plain = items if isinstance(items, Codes) else items.numpy()
    goal = items.rotate(own) if isinstance(items, Codes) else own
    if users in ("auto", "encoded", "sum"):
        sums = {}

        def fitted(power: float, reg: float) -> Encoder:
            if power not in sums:
                sums[power] = history_sums(task.seen, plain, power)
            found = SumEncoder.fit(goal, sums[power], power, reg)
            return found if bits == 32 else found.rounded()

        yield from _searched("sum", fitted, ("power", POWERS), ("reg", REGS), items, told, task, evaluator, selects)
    if users == "ridge" or (users in ("auto", "encoded") and evaluator is not None):
        grids = ("alpha", ALPHAS), ("reg", RIDGE_REGS)
        yield from _searched("ridge", RidgeEncoder, *grids, items, told, task, evaluator, selects)


def _searched(
    kind: str,
    make: Any,
    first: tuple[str, tuple[float, ...]],
    second: tuple[str, tuple[float, ...]],
    items: Side,
    bias: torch.Tensor | None,
    task: Task,
    evaluator: Evaluator | None,
    selects: str,
) -> Iterator[tuple[str, StoredModel]]:
    """Encoders of a kind: the first constant's values, then, with the best of them, the second's."""
    (one, ones), (other, others) = first, second
    best: tuple[float, float] | None = None

    def built(a: float, b: float) -> tuple[str, StoredModel]:
        return f"{kind} {one}={a:g} {other}={b:g}", StoredModel(items, encoder=make(a, b), bias=bias, task=task)

    if evaluator is None:
        yield built(ones[0], others[0])
        return
    for a in ones:
        name, model = built(a, others[0])
        value = evaluator(model.factors(), parts=["valid"])["valid"].mean(selects)
        if best is None or value > best[0]:
            best = value, a
        yield name, model
    assert best is not None
    for b in others[1:]:
        yield built(best[1], b)


def _saved(result: Compressed, given: _Source, config: RunConfig, bits: int, out: Path, how: str) -> Compressed:
    """The run directory of what was made."""
    name = str(config.model["name"])
    encoded = result.users != "table"
    needs = {key for key, used in (("bits", bits != 32), ("users", encoded)) if used}
    if not needs <= set(model_class(name).compactable):
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
