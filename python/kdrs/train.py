"""One training loop for everything: learners over batches."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdrs._tables import RowTable
from kdrs.distillers.base import Distiller
from kdrs.errors import ArtefactError, ConfigError, TrainingError, shown
from kdrs.losses import ScoreLoss
from kdrs.models.base import Recommender
from kdrs.optim import Adam, make_optimizer
from kdrs.protocols import EarlyStopping, Selection
from kdrs.runs import Checkpoint, Run
from kdrs.sampling import stream
from kdrs.tasks import Batch, Batches, Epoch, Task
from kdrs.teachers import ModelTeacher
from kdrs.view import View, frozen

Means = Mapping[str, float]
Evaluate = Callable[[nn.Module], Mapping[str, Means]]
"""Model -> means by part: ``{"valid": {"ndcg@10": ...}, "test": {...}}``."""


@dataclass(frozen=True)
class Term:
    """A distillation method with its weight in a learner's loss."""

    name: str
    weight: float
    distiller: Distiller


class Learner:
    """A model in training: its optimizer, its own loss and its weighted terms.

    ``loss = base(view, batch) + Σ weight · term.loss(view, batch)``, all over one view. ``base`` is the model's own loss
    unless one is given; ``None`` where a method replaces it. One optimizer (``adam``, ``lazy-adam``, ``adagrad``) trains the
    model and every term's helpers.

    ``knowledge`` is the model as a live teacher, for its own terms and for peers: give it where a peer's term had to be
    built before the learner.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        terms: Sequence[Term] = (),
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: str = "adam",
        base: Callable[[View, Batch], Tensor] | str | None = "model",
        name: str = "student",
        knowledge: ModelTeacher | None = None,
    ):
        if len({term.name for term in terms}) != len(terms):
            raise ConfigError(f"terms are named {[term.name for term in terms]}", "give every term its own name")
        self.model, self.task, self.terms, self.name = model, task, list(terms), name
        if isinstance(base, str) and (base != "model" or not callable(getattr(model, "loss", None))):
            allowed = 'allowed: "model" (if it has a loss method), a function of (view, batch), None'
            raise ConfigError(f"base is {base!r}", allowed)
        if base is None and not any(term.weight for term in terms):
            raise ConfigError("there is nothing to train by: no base loss and no term with a weight", "add a term")
        self.base: Callable[[View, Batch], Tensor] | None = model.loss if isinstance(base, str) else base  # type: ignore[assignment]
        modules: dict[str, nn.Module] = {"model": model, **{f"terms.{term.name}": term.distiller for term in terms}}
        self._modules = modules
        parameters = {f"{key}.{name}": p for key, module in modules.items() for name, p in module.named_parameters()}
        multiplicities = {
            f"terms.{term.name}.{name}": n for term in terms for name, n in term.distiller.multiplicities.items()
        }
        trained = {k: p for k, p in parameters.items() if p.requires_grad}
        self._optimizer = optimizer
        self.optimizer = make_optimizer(
            optimizer, trained, lr=lr, weight_decay=weight_decay, multiplicities=multiplicities
        )
        self.knowledge = knowledge or ModelTeacher(model, task, name=name, live=True)
        self._on_epoch_start = getattr(model, "on_epoch_start", None)
        self._on_term = getattr(model, "on_term", None)
        self._after_step = getattr(model, "after_step", None)
        self._counterpart = False
        self._row_tables = self._find_row_tables(trained)
        # of the very classes: one that inherits may have another loss
        told = [model, *(term.distiller for term in terms if term.weight)]
        by_scores = base == "model" and all("score_loss" in vars(type(own)) for own in told)
        self._tables = self._find_tables(trained) if by_scores else None
        plain = "is_plain_bpr" in vars(type(model)) and bool(model.is_plain_bpr)
        self._is_plain_bpr = self._tables is not None and len(told) == 1 and plain
        self._slopes: tuple[Tensor, Tensor, Tensor] | None = None
        self._idle: set[str] = set()

    def _find_row_tables(self, trained: Mapping[str, nn.Parameter]) -> dict[str, list[RowTable]]:
        """The model's parameters that row tables alone hold, each with its tables; none if the model has an ``after_step``
        hook, which may work on parameters."""
        if getattr(type(self.model), "after_step", Recommender.after_step) is not Recommender.after_step:
            return {}
        holders: dict[int, list[nn.Module]] = {}
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                holders.setdefault(id(parameter), []).append(module)
        found = {name: holders.get(id(parameter), []) for name, parameter in trained.items()}
        return {
            name: [module for module in own if isinstance(module, RowTable)]
            for name, own in found.items()
            if own and all(isinstance(module, RowTable) for module in own)
        }

    def _find_tables(self, trained: Mapping[str, nn.Parameter]) -> tuple[str, str] | None:
        """The two tables of which the scores are products, if no other parameter can get a gradient, all who read them ask for
        their rows, and the optimizer can step them by gradients in scores."""
        named = getattr(self.model, "score_tables", None)
        if named is None:
            return None
        users, items = (f"model.{name}" for name in named)
        prefixes = ("model.", *(f"terms.{term.name}." for term in self._active))
        reached = {name for name in trained if name.startswith(prefixes)}
        alone = users != items and reached == {users, items} and reached <= set(self._row_tables)
        can_step = isinstance(self.optimizer, Adam) and self.optimizer.can_step(users, items)
        return (users, items) if alone and can_step else None

    def counterparts(self) -> list[Learner]:
        """The learners of the teachers that mutual terms train along, to be given to ``fit`` after this one."""
        found = []
        for term in self.terms:
            if term.distiller.mutual and term.weight:
                own = term.distiller.counterpart(self.knowledge)
                learner = Learner(
                    own.teacher.model,
                    self.task,
                    [Term(term.name, own.weight, own.distiller)],
                    lr=own.lr if own.lr is not None else self.optimizer.lr,
                    weight_decay=own.weight_decay,
                    optimizer=self._optimizer,
                    name=f"{term.name}-teacher",
                    knowledge=own.teacher,
                )
                learner._counterpart = True
                found.append(learner)
        return found

    def start(self, epoch: Epoch, samples: Sequence[Any]) -> None:
        """Begins an epoch with the samples that were drawn for its terms.

        Until ``finish`` rows of the model's tables (`RowTable`) may owe steps, which they take when they are read.
        """
        self.model.train()
        if isinstance(self.optimizer, Adam):
            for name, tables in self._row_tables.items():
                for table in tables:
                    table.due = partial(self.optimizer.catch_up, name)
                self.optimizer.asking.add(name)
        if self._on_epoch_start is not None:
            # two models of one kind must not share their noise
            own = replace(epoch, seed=epoch.stream(self.name)) if self._counterpart else epoch
            self._on_epoch_start(own)
        for term, drawn in zip(self.terms, samples, strict=True):
            term.distiller.train()
            term.distiller.on_epoch_start(epoch, drawn, self.knowledge)

    def look(self, batch: Batch) -> None:
        """The step's forward pass, which peers read too: every learner looks before any loss is taken."""
        if self._tables is None:
            self.knowledge.look(batch.queries, self.model(batch.queries))
        elif self._active:
            self.knowledge.look(batch.queries, self.model(batch.queries), partial(self._scores, batch))

    def losses(self, batch: Batch) -> list[Tensor]:
        """The parts of the loss of a batch, weights applied: base first (0 where there is none), then the terms."""
        self._slopes = None
        view = self.knowledge.looked_at(batch.queries)
        if view is None:
            view = self.model(batch.queries)
            self.knowledge.look(batch.queries, view)
        if self.base is None:
            base = torch.zeros((), device=batch.queries.rows.device)
        else:
            base = self.base(view, self._own_batch(batch))
        return [base, *(self._weighed_loss(term, view, batch) for term in self._active)]

    def _weighed_loss(self, term: Term, view: View, batch: Batch) -> Tensor:
        if self._on_term is not None:
            self._on_term(term.name)
        return term.weight * term.distiller.loss(view, batch)

    @property
    def _active(self) -> list[Term]:
        return [term for term in self.terms if term.weight]

    def _own_batch(self, batch: Batch) -> Batch:
        """What the model's own loss gets."""
        for term in self.terms if self._counterpart else self._active:
            batch = term.distiller.base_batch(batch)
        return batch

    def forward(self, batch: Batch) -> list[Tensor]:
        """``losses``; where all of them are of scores, their gradient in the scores is taken along."""
        parts = None if self._tables is None else self._score_losses(batch)
        if parts is None:
            return self.losses(batch)
        ids = torch.cat([part.ids for part in parts], dim=1)
        scores = self._scores(batch, ids).split([part.ids.shape[1] for part in parts], dim=1)
        with torch.no_grad():
            found, slopes = zip(*(part.of(own) for part, own in zip(parts, scores, strict=True)), strict=True)
            self._slopes = batch.queries.users, ids, torch.cat(slopes, dim=1)
        return list(found)

    @torch.no_grad()
    def _score_losses(self, batch: Batch) -> list[ScoreLoss] | None:
        """The model's and the terms' losses of scores, weights applied; None if one reads more than scores."""
        found = []
        for term in self._active:
            own = term.distiller.score_loss(batch)
            if own is None:
                return None
            found.append(ScoreLoss(own.ids, partial(_weighed, own, term.weight)))
        return [self.model.score_loss(self._own_batch(batch)), *found]  # type: ignore[operator]

    def _scores(self, batch: Batch, ids: Tensor) -> Tensor:
        """Of a batch's queries, without gradient."""
        assert self._tables is not None
        assert isinstance(self.optimizer, Adam)
        return self.optimizer.scores(*self._tables, batch.queries.users, ids)

    def backward(self, parts: Sequence[Tensor]) -> None:
        """Leaves the gradients of what ``forward`` returned with the optimizer."""
        self.optimizer.zero_grad()
        if self._slopes is None:
            (parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum()).backward()

    def step(self) -> None:
        self.knowledge.look_away()
        slopes, self._slopes = self._slopes, None
        if slopes is None:
            self.optimizer.step()
        else:
            assert self._tables is not None
            assert isinstance(self.optimizer, Adam)
            self.optimizer.score_step(*self._tables, *slopes)
        if self._after_step is not None:
            self._after_step()

    def step_alone(self, batch: Batch) -> list[Tensor | float] | None:
        """A whole step at once, for a learner that trains by itself; None where there is no such way. The model is up to date
        after ``finish``."""
        if self._tables is None or not self._is_plain_bpr:
            return None
        assert isinstance(self.optimizer, Adam)
        queries = batch.queries
        loss = self.optimizer.bpr_step(*self._tables, queries.users, batch.positives, batch.negatives)
        if self._after_step is not None:
            self._after_step()
        return [loss]

    def finish(self) -> None:
        """Ends an epoch: the model is up to date."""
        if isinstance(self.optimizer, Adam):
            self.optimizer.settle()
            self.optimizer.asking.clear()
        for tables in self._row_tables.values():
            for table in tables:
                table.due = None

    def note_idle(self, parts: Sequence[str]) -> None:
        """Warns, once, of terms whose loss was 0 in all of an epoch."""
        for name in parts:
            if name != "base" and name not in self._idle:
                self._idle.add(name)
                warnings.warn(
                    f"the loss of {name!r} was 0 in a whole epoch: it taught nothing (lists as long as the catalogue do that)",
                    stacklevel=2,
                )

    @property
    def parts(self) -> list[str]:
        """Names of what ``losses`` returns."""
        return ["base", *(term.name for term in self._active)]

    def state(self) -> dict[str, Tensor]:
        """Parameters, buffers and optimizer state by name; live tensors."""
        if isinstance(self.optimizer, Adam):
            self.optimizer.settle()
        tensors = {
            f"{key}.{name}": t for key, module in self._modules.items() for name, t in module.state_dict().items()
        }
        return {**tensors, **{f"optimizer/{name}": t for name, t in self.optimizer.state().items()}}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        for key, module in self._modules.items():
            prefix = f"{key}."
            stored = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            try:
                module.load_state_dict(stored, strict=True)
            except RuntimeError as error:
                detail = shown(str(error).splitlines()[-1].strip(), 200)
                raise ArtefactError(f"the checkpoint does not fit {key}: {detail}") from None
        prefix = "optimizer/"
        self.optimizer.load_state({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})


def _weighed(part: ScoreLoss, weight: float, scores: Tensor) -> tuple[Tensor, Tensor]:
    loss, gradient = part.of(scores)
    return weight * loss, gradient.mul_(weight)


@dataclass
class Fit:
    """How a training went."""

    best_epoch: int | None = None
    """Epoch of the weights that the first learner's model now holds, counted from 0."""
    epochs: int = 0
    """Epochs trained, over all sessions of the run."""
    stopped: str = "epochs"
    """``epochs``: all planned ones are done; ``patience``: early stopping; ``interrupted``: asked to stop."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One line an epoch, as in metrics.jsonl."""
    best: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Of each selection metric: (epoch, validation value)."""
    skipped_pairs: int = 0
    """Training pairs without a possible negative."""


def fit(
    learners: Learner | Sequence[Learner],
    task: Task,
    *,
    epochs: int,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    every: int = 1,
    every_from: int | None = None,
    selection: Selection | None = None,
    keep: Literal["best", "last"] = "best",
    run: Run | None = None,
    checkpoint_seconds: float = 30.0,
    stages: Collection[int] = (),
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: bool = False,
) -> Fit:
    """Trains the learners and leaves the first one's model with its best weights, or with the last ones (``keep``).

    In every batch all learners' forward passes come first, then all losses, all backward passes and all steps, so that
    learners which teach each other see one state, and one pass of it. The first learner is the one that is evaluated,
    selected and kept. ``evaluate`` gets its model in evaluation mode after every ``every``-th epoch (or after epoch
    ``every_from``, counted from 0, and so on) and after the last;
    ``selection`` reads its ``valid`` means. Without it, the last weights count. All models are left in evaluation mode.

    The next epoch's draws are made in a second thread meanwhile. All randomness is derived from (``seed``, a name, the
    epoch), torch's own generator included, so that a run resumed from ``run``'s checkpoint (``resume=True``) ends with the
    same bytes; checkpoints are written at the ends of epochs, at most every ``checkpoint_seconds``. ``stages`` are epochs
    whose weights are kept in the run directory.

    Raises ``TrainingError`` naming epoch, batch and users if a loss is not finite.
    """
    learners = [learners] if isinstance(learners, Learner) else list(learners)
    selection = selection or Selection()
    if len({learner.name for learner in learners}) != len(learners):
        raise ConfigError(
            f"learners are named {[learner.name for learner in learners]}", "give every learner its own name"
        )
    first = learners[0]
    first_look = every - 1 if every_from is None else every_from
    stopping = EarlyStopping(selection)
    result = Fit(skipped_pairs=getattr(task, "n_skipped", 0))
    best: dict[str, Tensor] | None = None  # the model's own weights are the best ones until a copy is worth its memory
    start = 0
    if resume and run is not None and (checkpoint := run.load_checkpoint()) is not None:
        start = checkpoint.epoch + 1
        for index, learner in enumerate(learners):
            prefix = f"{index}/"
            learner.load_state({k.removeprefix(prefix): t for k, t in checkpoint.state.items() if k.startswith(prefix)})
        best = checkpoint.best if evaluate is not None else None
        stopping = EarlyStopping.from_state(selection, checkpoint.meta["stopping"])
        result.best_epoch = checkpoint.meta["best_epoch"]
        result.rows = run.keep_rows(checkpoint.epoch)
    elif resume and run is not None:
        run.keep_rows(-1)
    result.epochs = start

    def save(epoch: int) -> None:
        if run is not None:
            state = {f"{i}/{name}": t for i, learner in enumerate(learners) for name, t in learner.state().items()}
            meta = {"stopping": stopping.state(), "best_epoch": result.best_epoch}
            kept = first.model.state_dict() if best is None else best
            run.save_checkpoint(Checkpoint(epoch, state, kept, meta))

    def draw(index: int) -> _Draws:
        epoch = Epoch(index, seed, epochs)
        samples = [[term.distiller.draw(epoch) for term in learner.terms] for learner in learners]
        return _Draws(epoch, task.draw(epoch), samples)

    saved_at = time.monotonic()
    done = stopping.stopped or start >= epochs
    if stopping.stopped:
        result.stopped = "patience"
    with ThreadPoolExecutor(1, thread_name_prefix="kdrs-draw") as background:
        upcoming: Future[_Draws] | None = None if done else background.submit(draw, start)
        while upcoming is not None:
            began = time.perf_counter()
            draws = upcoming.result()
            index = draws.epoch.index
            upcoming = background.submit(draw, index + 1) if index + 1 < epochs else None
            row: dict[str, Any] = {"epoch": index, **_train_epoch(learners, draws, seed)}
            if any(term.distiller.restarts_patience for term in first.terms):
                stopping.restart()
            row["seconds"] = round(time.perf_counter() - began, 4)
            stop = index + 1 >= epochs
            looks = index >= first_look and (index - first_look) % every == 0
            if evaluate is not None and (looks or stop):
                began = time.perf_counter()
                with frozen(first.model):
                    parts = {part: dict(means) for part, means in evaluate(first.model).items()}
                row.update(parts)
                row["evaluation_seconds"] = round(time.perf_counter() - began, 4)
                verdict = stopping.update(index, parts.get("valid", {}))
                if verdict.improved or keep == "last":
                    best = _copy(first.model, best)
                    result.best_epoch = index
                if verdict.stop:
                    stop, result.stopped = True, "patience"
            elif evaluate is None:
                result.best_epoch = index
            result.rows.append(row)
            result.epochs = index + 1
            if run is not None:
                run.log(_finite(row))
                if index in stages:
                    run.save_stage(index, first.model.state_dict())
            if on_epoch is not None:
                on_epoch(row)
            if not stop and should_stop is not None and should_stop():
                stop, result.stopped = True, "interrupted"
            if stop or time.monotonic() - saved_at >= checkpoint_seconds:
                save(index)
                saved_at = time.monotonic()
            if stop:
                if upcoming is not None:
                    upcoming.cancel()
                break
    result.best = stopping.best
    if best is not None:
        first.model.load_state_dict(best)
    for learner in learners:
        learner.model.eval()
    return result


@dataclass(frozen=True)
class _Draws:
    epoch: Epoch
    batches: Batches
    samples: list[list[Any]]


def _train_epoch(learners: Sequence[Learner], draws: _Draws, seed: int) -> dict[str, Any]:
    """Trains one epoch; means of the batch losses, in total and by part."""
    epoch = draws.epoch
    with torch.random.fork_rng(devices=_devices(learners)), flushing_subnormals():
        torch.manual_seed(stream(seed, "torch", epoch.index) % 2**63)  # dropout and the like
        for learner, samples in zip(learners, draws.samples, strict=True):
            learner.start(epoch, samples)
        # one table, written in place: a small tensor kept for each step would lie between the step's large ones, and the
        # allocator could reuse no hole (a megabyte lost a step, seen with glibc)
        columns = sum(len(learner.parts) for learner in learners)
        history = torch.empty(len(draws.batches), columns, device=next(learners[0].model.parameters()).device)
        with ExitStack() as ends:
            for learner in learners:
                ends.callback(learner.finish)
            for step, batch in enumerate(draws.batches):
                parts = step_of(learners, batch)
                for column, value in enumerate(value for part in parts for value in part):
                    history[step, column] = value
    table = history.double().cpu()  # [batches, parts]
    if not torch.isfinite(table).all():
        _raise_divergence(learners, draws, table)
    means, idle = iter(table.mean(dim=0).tolist()), iter((table == 0).all(dim=0).tolist())
    row: dict[str, Any] = {}
    for learner in learners:
        values = {name: next(means) for name in learner.parts}
        learner.note_idle([name for name in learner.parts if next(idle)])
        prefix = "" if learner is learners[0] else f"{learner.name}."
        row[f"{prefix}loss"] = math.fsum(values.values())
        if len(values) > 1:
            row[f"{prefix}losses"] = values
        diagnostics = {term.name: found for term in learner.terms if (found := term.distiller.diagnostics())}
        if diagnostics:
            row[f"{prefix}diagnostics"] = diagnostics
    return row


def step_of(learners: Sequence[Learner], batch: Batch) -> list[list[Tensor | float]]:
    """A step of all learners; the parts of their losses."""
    if len(learners) == 1 and (done := learners[0].step_alone(batch)) is not None:
        return [done]
    for learner in learners:
        learner.look(batch)
    parts = [learner.forward(batch) for learner in learners]
    for learner, own in zip(learners, parts, strict=True):
        learner.backward(own)
    for learner in learners:
        learner.step()
    return [[value.detach() for value in own] for own in parts]


def _raise_divergence(learners: Sequence[Learner], draws: _Draws, table: Tensor) -> None:
    step, column = (int(i) for i in (~torch.isfinite(table)).nonzero()[0])
    names = [f"{learner.name} {part}" for learner in learners for part in learner.parts]
    users = draws.batches[step].queries.users[:5].tolist()
    raise TrainingError(
        f"the loss ({names[column]}) is {table[step, column].item()} in epoch {draws.epoch.index}, batch {step}, whose first "
        f"users are {users}",
        "lower the learning rate or the weight of the term; the last checkpoint is untouched",
    )


def _devices(learners: Sequence[Learner]) -> list[int]:
    devices = {p.device for learner in learners for p in learner.model.parameters() if p.device.type == "cuda"}
    return sorted(device.index or 0 for device in devices)


def _copy(model: nn.Module, into: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """A copy of the model's state, into the former copy where there is one."""
    if into is None:
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, tensor in model.state_dict().items():
        into[name].copy_(tensor)
    return into


@contextmanager
def flushing_subnormals() -> Iterator[None]:
    """Numbers below 1e-38 are 0 inside, on processors that can.

    Weights without gradient, of hidden units that never fire, decay towards 0 and would stay subnormal for long: a
    product with them costs a hundred times its normal price (DE's step on CiteULike: from 0.2 s to above 1 s within 15
    epochs) and changes nothing.
    """
    before = bool(torch.tensor([1e-39]).mul(1.0).item() == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a mean over no query is null."""
    return {
        key: _finite(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in row.items()
    }
