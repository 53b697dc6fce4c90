"""One training loop for everything: learners over batches."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kdrs.core.sampling import stream
from kdrs.errors import ArtefactError, ConfigError, DataError, ScoreError, TrainingError, shown
from kdrs.evaluation.protocols import EarlyStopping, Selection
from kdrs.fitting.averaging import MEAN, Averaged, copied
from kdrs.fitting.checkpoint import Checkpoint, Journal
from kdrs.fitting.learner import Learner
from kdrs.training.hooks import stored
from kdrs.training.processes import Group
from kdrs.training.queries import Batch, Batches, Epoch, Task
from kdrs.training.sharing import differing, share
from kdrs.training.view import frozen

Means = Mapping[str, float]
Evaluate = Callable[[nn.Module], Mapping[str, Means]]
"""Model -> means by part: ``{"valid": {"ndcg@10": ...}, "test": {...}}``."""


PACED = 30
"""Batches over which the pace of a training is taken."""

FAR = 1e18
"""Weights past it have squares near the end of float32's range."""
CALMER = "lower the learning rate or the weight of the term, and train anew: in another folder"
"""No resume helps: a run goes on with the options that it was begun with."""


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
    average: float = 0.0,
    run: Journal | None = None,
    checkpoint_seconds: float = 30.0,
    stages: Collection[int] = (),
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_pace: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: bool = False,
    group: Group | None = None,
) -> Fit:
    """Trains the learners and leaves the first one's model with its best weights, or with the last ones (``keep``).

    In every batch all learners' forward passes come first, then all losses, all backward passes and all steps, so that
    learners which teach each other see one state, and one pass of it. The first learner is the one that is evaluated,
    selected and kept. ``evaluate`` gets its model in evaluation mode after every ``every``-th epoch (or after epoch
    ``every_from``, counted from 0, and so on) and after the last; ``selection`` reads its ``valid`` means. Without it, the last
    weights count. With ``average`` the model that is evaluated and kept has a mean of its weights over epochs
    (`kdrs.fitting.averaging`). All models are left in evaluation mode.

    The next epoch's draws are made in a second thread meanwhile. All randomness is derived from (``seed``, a name, the
    epoch), torch's own generator included, so that a run resumed from ``run``'s checkpoint (``resume=True``) ends with the
    same bytes; checkpoints are written at the ends of epochs, at most every ``checkpoint_seconds``. ``stages`` are epochs
    whose weights are kept in the run directory.

    ``on_epoch`` gets each epoch's line, ``on_pace`` the seconds that a batch takes, once, after the first few.

    In a ``group`` of processes each calls this with the same arguments, but for ``run``, which alone in the first one writes.
    Batches are divided among them where the losses allow it (`Learner.join`), and all take the same steps: the models stay
    equal, byte by byte. All stop where one is asked to.

    Raises ``TrainingError`` naming epoch, batch and users if a loss is not finite, epoch and user if a score is not.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int | np.integer) or epochs < 0:
        raise ConfigError(f"epochs is {shown(repr(epochs))}", "allowed: a whole number, 0 or more")
    learners = [learners] if isinstance(learners, Learner) else list(learners)
    selection = selection or Selection()
    divided = _join(learners, group)
    if len({learner.name for learner in learners}) != len(learners):
        raise ConfigError(
            f"learners are named {[learner.name for learner in learners]}", "give every learner its own name"
        )
    first = learners[0]
    first_look = every - 1 if every_from is None else every_from
    stopping = EarlyStopping(selection)
    result = Fit(skipped_pairs=getattr(task, "n_skipped", 0))
    averaged = Averaged(first.model, average)
    best: dict[str, Tensor] | None = None  # the model's own weights are the best ones until a copy is worth its memory
    start = 0
    if resume and run is not None and (checkpoint := run.load_checkpoint()) is not None:
        start = checkpoint.epoch + 1
        for index, learner in enumerate(learners):
            prefix = f"{index}/"
            learner.load_state({k.removeprefix(prefix): t for k, t in checkpoint.state.items() if k.startswith(prefix)})
        best = dict(checkpoint.best) if evaluate is not None else None
        check_fits(first.model, checkpoint.best)
        if average:
            averaged.mean = {k.removeprefix(MEAN): t for k, t in checkpoint.state.items() if k.startswith(MEAN)}
            check_fits(first.model, averaged.mean)
        stopping = EarlyStopping.from_state(selection, checkpoint.meta["stopping"])
        result.best_epoch = checkpoint.meta["best_epoch"]
        result.rows = run.keep_rows(checkpoint.epoch)
    elif resume and run is not None:
        run.keep_rows(-1)
    result.epochs = start

    def save(epoch: int) -> None:
        if group is not None:
            _check_alike(learners, group, epoch)
        if run is not None:
            state = {f"{i}/{name}": t for i, learner in enumerate(learners) for name, t in learner.stored().items()}
            mean = stored(first.model, averaged.mean) if averaged.mean else {}
            state |= {f"{MEAN}{name}": t for name, t in mean.items()}
            meta = {"stopping": stopping.state(), "best_epoch": result.best_epoch}
            kept = best or averaged.mean or first.model.state_dict()
            run.save_checkpoint(Checkpoint(epoch, state, stored(first.model, kept), meta))

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
            row: dict[str, Any] = {"epoch": index, **_train_epoch(learners, draws, seed, on_pace, divided)}
            on_pace = None
            if any(term.distiller.restarts_patience for term in first.terms):
                stopping.restart()
            averaged.add()
            row["seconds"] = round(time.perf_counter() - began, 4)
            stop = index + 1 >= epochs
            looks = index >= first_look and (index - first_look) % every == 0
            if evaluate is not None and (looks or stop):
                began = time.perf_counter()
                with averaged.shown():
                    with frozen(first.model), blaming_training(first.model, index):
                        parts = {part: dict(means) for part, means in evaluate(first.model).items()}
                    verdict = stopping.update(index, parts.get("valid", {}), row["loss"])
                    if verdict.improved or keep == "last":
                        best = copied(first.model.state_dict(), best)
                        result.best_epoch = index
                row.update(parts)
                row["evaluation_seconds"] = round(time.perf_counter() - began, 4)
                if verdict.stop:
                    stop, result.stopped = True, "patience"
            elif evaluate is None:
                result.best_epoch = index
            result.rows.append(row)
            result.epochs = index + 1
            if run is not None:
                run.log(_finite(row))
                if index in stages:
                    run.save_stage(index, stored(first.model, averaged.mean or first.model.state_dict()))
            if on_epoch is not None:
                on_epoch(row)
            asked = should_stop is not None and should_stop()
            due = time.monotonic() - saved_at >= checkpoint_seconds
            if group is not None:  # all do what one has to
                asked, due = group.any(asked, due)
            if not stop and asked:
                stop, result.stopped = True, "interrupted"
            if stop or due:
                save(index)
                saved_at = time.monotonic()
            if stop:
                if upcoming is not None:
                    upcoming.cancel()
                break
    result.best = stopping.best
    if kept := best or averaged.mean:
        first.model.load_state_dict(kept)
    for learner in learners:
        learner.model.eval()
    return result


@dataclass(frozen=True)
class _Draws:
    epoch: Epoch
    batches: Batches
    samples: list[list[Any]]


def _train_epoch(
    learners: Sequence[Learner],
    draws: _Draws,
    seed: int,
    on_pace: Callable[[float], None] | None = None,
    divided: Group | None = None,
) -> dict[str, Any]:
    """Trains one epoch; means of the batch losses, in total and by part. ``on_pace`` gets the seconds that a batch takes.
    Batches are ``divided`` among the processes of a group, if one is given."""
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
            paced = min(PACED, len(draws.batches))
            began = time.perf_counter()
            for step, batch in enumerate(draws.batches):
                if divided is not None:
                    batch = share(batch, divided)
                parts = step_of(learners, batch)
                for column, value in enumerate(value for part in parts for value in part):
                    history[step, column] = value
                if on_pace is not None and step + 1 == paced:
                    for device in _devices(learners):  # what is queued is not done yet
                        torch.cuda.synchronize(device)
                    on_pace((time.perf_counter() - began) / paced)
    table = history.double().cpu()  # [batches, parts]
    if divided is not None:
        divided.add_up(table)
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


def _join(learners: Sequence[Learner], group: Group | None) -> Group | None:
    """Lets the learners join a group; the group, if batches are to be divided among its processes."""
    for learner in learners:
        learner.join(group, alone=len(learners) == 1)
    if group is None or all(learner.divides for learner in learners):
        return group
    if not any(learner.by_columns for learner in learners):
        warnings.warn(
            "no batch is divided among the processes: what is trained here looks at whole batches (kdrs methods and models of "
            "which docs/processes.md says so), and each process works them out; the evaluation is divided",
            stacklevel=3,
        )
    return None


def _check_alike(learners: Sequence[Learner], group: Group, epoch: int) -> None:
    """Raises ``TrainingError`` where the processes' models are no longer the same."""
    for learner in learners:
        if (name := differing(learner.shared_state(), group)) is not None:
            raise TrainingError(
                f"the processes have different {shown(name)} after epoch {epoch}, which must be the same in all",
                "give all of them the same versions, kind of processor and number of threads; the last checkpoint is untouched",
            )


def _raise_divergence(learners: Sequence[Learner], draws: _Draws, table: Tensor) -> None:
    step, column = (int(i) for i in (~torch.isfinite(table)).nonzero()[0])
    names = [f"{learner.name} {part}" for learner in learners for part in learner.parts]
    users = draws.batches[step].queries.users[:5].tolist()
    raise TrainingError(
        f"the loss ({names[column]}) is {table[step, column].item()} in epoch {draws.epoch.index}, batch {step}, whose first "
        f"users are {users}",
        CALMER,
    )


@contextmanager
def blaming_training(model: nn.Module, epoch: int) -> Iterator[None]:
    """Scores that are not finite are the training's fault, not the data's: ``TrainingError`` that names the epoch. So are
    vectors and codes that cannot be made of weights as large as those of ``model`` then are."""
    try:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what comes of it is told below
            yield
    except ScoreError as error:
        raise TrainingError(f"the model after epoch {epoch}: {error.cause}", CALMER) from error
    except DataError as error:
        if not _largest_weight(model) < FAR:
            raise TrainingError(
                f"the model after epoch {epoch} has weights past {FAR:g}: {error.cause}", CALMER
            ) from error
        raise


def _largest_weight(model: nn.Module) -> float:
    """Of all weights, without their signs; NaN where one is."""
    found = [p.detach().abs().max() for p in model.parameters() if p.numel()]
    return float(torch.stack([value.float().cpu() for value in found]).max()) if found else 0.0


def _devices(learners: Sequence[Learner]) -> list[int]:
    devices = {p.device for learner in learners for p in learner.model.parameters() if p.device.type == "cuda"}
    return sorted(device.index or 0 for device in devices)


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


def check_fits(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raises ``ArtefactError`` for weights of another model or size."""
    own = model.state_dict()
    for name in sorted({*own, *weights}):
        one, other = own.get(name), weights.get(name)
        if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
            raise ArtefactError(f"the checkpoint's best weights do not fit the model: {shown(name)}")


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
