"""A model in training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdrs.core.tables import RowTable
from kdrs.distillers.base import Distiller
from kdrs.errors import ArtefactError, ConfigError, TrainingError, shown
from kdrs.fitting.averaging import MEAN
from kdrs.teachers.model import ModelTeacher
from kdrs.training.columns import Columns, spread
from kdrs.training.hooks import hook, trait
from kdrs.training.losses import ScoreLoss
from kdrs.training.optim import Adam, make_optimizer
from kdrs.training.processes import Group
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.sharing import Part, exchange
from kdrs.training.view import View


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
        numbers = {"lr": lr, "weight_decay": weight_decay, **{f"the weight of {t.name}": t.weight for t in terms}}
        for option, value in numbers.items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{option} is {value}", "allowed: a finite number, 0 or more")
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
        self._on_epoch_start = hook(model, "on_epoch_start")
        self._on_term = hook(model, "on_term")
        self._after_step = hook(model, "after_step")
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
        self._gradients: dict[str, bool] = {}
        """By terms whose loss was taken in the epoch in hand, whether it ever had a gradient."""
        self._group: Group | None = None
        self.by_columns = False
        """Whether this process has columns of the model's tables alone."""
        self._divided: dict[str, bool] = {}

    def _find_row_tables(self, trained: Mapping[str, nn.Parameter]) -> dict[str, list[RowTable]]:
        """The model's parameters that row tables alone hold, each with its tables; none if the model has an ``after_step``
        hook, which may work on parameters."""
        if self._after_step is not None:
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
        named = trait(self.model, "score_tables")
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

    def join(self, group: Group | None, *, alone: bool) -> None:
        """Trains with the other processes of a group from now on; by itself for None. ``alone``: no peer trains beside it.

        Afterwards ``divides`` says whether the processes are to get a share of each batch each. They are where its loss, or a
        part of it, is a sum over the batch's rows or entities; parts that are not are worked out by all of them alike. A model
        that holds columns of its tables alone (`Hooks.collective`) gets every batch whole.
        """
        self._group = group
        self.by_columns = group is not None and bool(trait(self.model, "collective"))
        self._divided = {}
        if group is None or self.by_columns or not alone or self.task.flat:
            return
        # of the very classes: one that inherits may have another loss
        parts = {"base": self.model, **{term.name: term.distiller for term in self._active}}
        self._divided = {name: "splits" in vars(type(own)) and bool(own.splits) for name, own in parts.items()}
        self._divided["base"] &= self.base is None or self.base == getattr(self.model, "loss", None)
        for term in self._active:
            term.distiller.part = group.rank if self._divided[term.name] else 0
        if not self._all_divided:
            self._tables = None

    @property
    def divides(self) -> bool:
        """Whether a batch is divided among the processes."""
        return any(self._divided.values())

    @property
    def _all_divided(self) -> bool:
        return all(self._divided.values())

    def start(self, epoch: Epoch, samples: Sequence[Any]) -> None:
        """Begins an epoch with the samples that were drawn for its terms.

        Until ``finish`` rows of the model's tables (`RowTable`) may owe steps, which they take when they are read.
        """
        self.model.train()
        self._gradients.clear()
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
            asked = self._asked(batch).queries
            self.knowledge.look(asked, self.model(asked))
        elif self._active:
            self.knowledge.look(batch.queries, self.model(batch.queries), partial(self._scores, batch))

    def _asked(self, batch: Batch) -> Batch:
        """What the model is asked for: a process's share, or the whole batch, where a part of the loss needs it."""
        return batch.whole if isinstance(batch, Part) and not self._all_divided else batch

    def losses(self, batch: Batch) -> list[Tensor]:
        """The parts of the loss of a batch, weights applied: base first (0 where there is none), then the terms. Of a share of
        a batch, what it adds to them."""
        self._slopes = None
        asked = self._asked(batch)
        view = self.knowledge.looked_at(asked.queries)
        if view is None:
            view = self.model(asked.queries)
            self.knowledge.look(asked.queries, view)
        if not isinstance(batch, Part):
            return [self._base_loss(view, batch), *(self._weighed_loss(term, view, batch) for term in self._active)]
        assert self._group is not None
        own = view if asked is batch else view.at(batch.queries)
        losses: dict[str, Callable[[View, Batch], Tensor]] = {"base": self._base_loss}
        losses |= {term.name: partial(self._weighed_loss, term) for term in self._active}
        found = []
        for name, loss in losses.items():
            if not self._divided[name]:
                found.append(loss(view, batch.whole) / self._group.size)  # all work it out: a share each
            elif batch.idle:
                found.append(torch.zeros((), device=batch.queries.rows.device))
            else:
                averages = name == "base" and bool(trait(self.model, "averages"))
                found.append(loss(own, batch) * (batch.share if averages else 1.0))
        return found

    def _base_loss(self, view: View, batch: Batch) -> Tensor:
        if self.base is None:
            return torch.zeros((), device=batch.queries.rows.device)
        return _scalar(self.base(view, self._own_batch(batch)), "base")

    def _weighed_loss(self, term: Term, view: View, batch: Batch) -> Tensor:
        if self._on_term is not None:
            self._on_term(term.name)
        loss = _scalar(term.distiller.loss(view, batch), term.name)
        self._gradients[term.name] = self._gradients.get(term.name, False) or loss.requires_grad
        return term.weight * loss

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
            self._slopes = self._of_all(batch, ids, torch.cat(slopes, dim=1))
        return list(found)

    def _of_all(self, batch: Batch, ids: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Users, items and slopes of the whole batch. The first two each process knows; slopes of its rows it is told."""
        if not isinstance(batch, Part):
            return batch.queries.users, ids, slopes
        assert self._group is not None
        (known,) = self._score_losses(batch.whole)  # type: ignore[misc]  # of the model alone: see join
        slopes = self._group.gather_parts(slopes, batch.counts)
        return batch.whole.queries.users[batch.order], known.ids[batch.order], slopes

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
        scores = self.optimizer.scores(*self._tables, batch.queries.users, ids)
        if self.by_columns and self._group is not None:  # each process has those of its coordinates
            self._group.add_up(scores)
        return scores

    def backward(self, parts: Sequence[Tensor]) -> None:
        """Leaves the gradients of what ``forward`` returned with the optimizer."""
        self.optimizer.zero_grad()
        if self._slopes is None:
            total = parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum()
            if not (total.requires_grad or self.divides):
                raise TrainingError(
                    f"no part of the loss ({', '.join(self.parts)}) has a gradient",
                    "compute one from the view's scores or vectors, without detach(), item() or no_grad()",
                )
            if total.requires_grad:  # an idle share has nothing to add
                total.backward()

    def step(self) -> None:
        self.knowledge.look_away()
        slopes, self._slopes = self._slopes, None
        if slopes is None:
            if self.divides and self._group is not None:
                exchange(self.optimizer.parameters, self._group)
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
        if self._tables is None or not self._is_plain_bpr or self._group is not None:
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
        """Warns, once, of terms whose loss had no gradient, or was 0 as ``parts`` were, in all of an epoch."""
        for name in [name for name, had in self._gradients.items() if not (had or name in parts)]:
            if name not in self._idle:
                self._idle.add(name)
                warnings.warn(
                    f"the loss of {name!r} had no gradient in a whole epoch: it taught nothing; compute it of the student",
                    stacklevel=2,
                )
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

    def stored(self) -> Mapping[str, Any]:
        """``state`` as it is stored: tables of which this process has some columns alone are brought together."""
        tensors = self.state()
        held: Columns | None = getattr(self.model, "held", None)
        return tensors if held is None else spread(tensors, list(self.columns), held)

    @property
    def columns(self) -> dict[str, slice]:
        """Of a model that has some columns of its tables alone, these: by the names of ``state``, as `fit` stores it, and of
        the weights by themselves."""
        held: Columns | None = getattr(self.model, "held", None)
        if held is None:
            return {}
        tables: Sequence[str] = self.model.spread  # type: ignore[assignment]
        parts = [f"optimizer/model.{name}/{part}" for name in tables for part in self.optimizer.STATE]
        own = [*(f"model.{name}" for name in tables), *parts]
        means = [f"{MEAN}{name}" for name in tables]
        return dict.fromkeys([*tables, *own, *means, *(f"0/{name}" for name in own)], held.own)

    def shared_state(self) -> dict[str, Tensor]:
        """Of ``state`` what every process of a group has alike."""
        return {name: t for name, t in self.stored().items() if isinstance(t, Tensor)}

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
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        self._check_moments(own)
        self.optimizer.load_state(own)

    def _check_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ``ArtefactError`` for an optimizer's state that is of other parameters, sizes or kinds, or in part."""
        found: dict[str, set[str]] = {}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition("/")
            parameter = self.optimizer.parameters.get(name)
            fits = parameter is not None and part in self.optimizer.STATE and bool(torch.isfinite(tensor).all())
            if parameter is not None and fits and part != "step":
                fits = (tensor.shape, tensor.dtype) == (parameter.shape, parameter.dtype)
            elif fits:
                fits = bool(((tensor >= 0) & (tensor < 2**31)).all())
            if not fits:
                raise ArtefactError(
                    f"the checkpoint does not fit the optimizer: {shown(key)} is {tensor.dtype} of shape {list(tensor.shape)}"
                )
            found.setdefault(name, set()).add(part)
        for name, parts in found.items():
            if parts != set(self.optimizer.STATE):
                raise ArtefactError(
                    f"the checkpoint does not fit the optimizer: of {shown(name)} it has {sorted(parts)} alone"
                )


def _scalar(loss: Tensor, part: str) -> Tensor:
    """A loss as it was given. Raises ``TrainingError`` for what is none: it comes of code of one's own."""
    if not isinstance(loss, Tensor) or loss.ndim:
        what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise TrainingError(
            f"the loss ({part}) is {what}", "return a scalar tensor: the sum over the batch, or the mean"
        )
    return loss


def _weighed(part: ScoreLoss, weight: float, scores: Tensor) -> tuple[Tensor, Tensor]:
    loss, gradient = part.of(scores)
    return weight * loss, gradient.mul_(weight)
