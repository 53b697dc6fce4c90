"""Bidirectional distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdrs.core import sampling
from kdrs.distillers.base import Counterpart, Distiller, only
from kdrs.errors import ConfigError
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher, row_blocks
from kdrs.teachers.model import ModelTeacher
from kdrs.training import losses
from kdrs.training.devices import to_device
from kdrs.training.outline import is_outline
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View, frozen


class BDConfig(Settings):
    teacher_weight: float = Field(0.5, ge=0)
    """Weight of the teacher's own term: lambda_T. The student's is the term's weight."""
    student_temperature: float = Field(5.0, gt=0)
    """Divides the student's score in the labels that teach the teacher. The paper's code uses 2 with CDAE."""
    teacher_temperature: float = Field(5.0, gt=0)
    """Divides the teacher's score in the labels that teach the student. The paper's code uses 2 with CDAE."""
    exp_sharpness: float = Field(1e-4, ge=0)
    """Sharpness of the draws for the teacher, exp(ε (r_T - r_S))."""
    tanh_sharpness: float = Field(1e-2, gt=0)
    """Sharpness of the draws for the student, tanh(max(ε (r_S - r_T), 0)). The paper's code uses 1e-4 with CDAE."""
    refresh: int = Field(10, ge=1)
    """Epochs between rankings by the two models; draws in between come from the frozen weights."""
    draws: int = Field(5, ge=1)
    """Models that are not trained on single pairs: items a user, direction and step, as a multiple of the user's positives in
    the batch (models of whole users: of all the user's training items)."""
    negatives: Literal["own", "shared"] = "own"
    """Negatives of the models' own loss: uniform, drawn for each model (abstract); ``shared``: the drawn item (notebook)."""
    direction: Literal["paper", "notebook"] = "paper"
    """``paper``: each model learns on items that the other places higher, as the paper is understood; its body could not be
    read for kdrs. ``notebook`` exchanges the two rankings in both laws, as the released code does by an ascending sort; all
    results that it prints are of that direction."""
    mask: Literal["exclude", "multiply", "multiply-sigmoid"] = "exclude"
    """``multiply`` ranks seen items too, with score 0, as the notebook does; they can then be drawn. ``multiply-sigmoid``
    takes the scores' sigmoid before, as its CDAE does."""
    idle: Literal["skip", "uniform"] = "skip"
    """Users for whom both models rank alike have nothing to teach the student: leave them out until the next ranking, or
    draw uniformly."""
    teacher_lr: float | None = Field(None, gt=0)
    """Learning rate of the teacher; the student's unless given."""
    teacher_weight_decay: float = Field(0.0, ge=0)
    """L2 weight of the teacher while both train."""


class BD(Distiller):
    """Bidirectional distillation (Kweon, Kang & Yu, WWW 2021): teacher and student, both trained before, go on together.

        L_S = Σ_{(u,i) drawn} BCE(s_ui, σ(t_ui / τ))    w = tanh(max(ε_t (r_S - r_T), 0))
        L_T = Σ_{(u,i) drawn} BCE(t_ui, σ(s_ui / τ))    w = exp(ε_e (r_T - r_S))
        BCE(s, y) = -y log σ(s) - (1 - y) log(1 - σ(s))

    Each learns by binary cross-entropy, in scores, from the other's soft label σ(z / τ) on items drawn by rank discrepancy:
    the teacher on items that the student places higher, w = exp(ε_e (r_T - r_S)), the student on items that it underrates,
    w = tanh(max(ε_t (r_S - r_T), 0)); ranks count from 1 among unseen items. Ranks are taken every ``refresh`` epochs and
    frozen in between; labels always come from the parameters of the step, out of the same forward pass as the source's own
    loss. One item a training row and direction; models of whole users, of whole items and of sequences with several
    targets have ``draws`` items a positive, which are used once, repeats within a query of a batch counted once (published for
    whole users alone). Losses are summed over the batch.

    **The direction of the differences is a reading**: the paper's body could not be read. Comments in the released notebook,
    the signs in its first revision and the same group's later code speak for it; what the notebook computes, and so all that it
    prints, is the other one (``direction = "notebook"``): each model learns on items that it places higher than the other.

    This object is the student's term; ``counterpart`` makes the teacher's. The term's weight is lambda_S.

    Everything that is drawn until the next refresh is drawn at the refresh, which is the same law, and kept as ids in the
    checkpoint. Differs from the released notebook in what ``direction``, ``mask``, ``negatives`` and ``idle`` say: their
    other values imitate it, as ``train.leak_held_out`` and ``train.keep = "last"`` do (the presets bd-mf and bd-cdae).
    """

    Config = BDConfig
    config: BDConfig
    purpose = "let teacher and student teach each other, on the items whose ranks they disagree about most"
    reference = "Kweon, Kang & Yu, Bidirectional distillation for top-K recommender system, WWW 2021"
    needs = "a trained model that can be trained on, of the same kind of training data as the student"
    default_weight = 0.5
    mutual = True

    pool: Tensor

    def __init__(self, config: BDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        source = only(teachers)
        if not isinstance(source, ModelTeacher) or not source.live or next(source.model.parameters(), None) is None:
            raise ConfigError(
                f"bd trains its teacher along, and {source.name!r} cannot be trained",
                "give the run directory of a kdrs model of float32 and a table of users; in Python, ModelTeacher(model, task, "
                "live=True)",
            )
        if task.draws != "pairs":
            raise ConfigError(
                f"train.draws is {task.draws!r} with bd, which draws an item for every training pair",
                "leave it out",
            )
        kinds = [type(own).__name__ for own in (source.task, task)]
        if kinds[0] != kinds[1]:
            raise ConfigError(
                f"the teacher of bd, {source.name!r}, learns from {kinds[0]}, its student from {kinds[1]}",
                "train both in the same batches: take models of the same kind of training data",
            )
        if source.task.flat != task.flat:
            targets = ["several targets each" if own.flat else "one target each" for own in (source.task, task)]
            raise ConfigError(
                f"the teacher of bd, {source.name!r}, learns from sequences with {targets[0]}, its student with {targets[1]}",
                "train both in the same batches: model.targets = 1 gives one target, a larger one several",
            )
        check_understood(source, task)
        self.source, self.temperature = source, config.teacher_temperature
        self._other: tuple[BD, ...] = ()
        self._taught = False
        self._negatives: Tensor | None = None
        self._redraws = (0, 0)
        self._by_row = task.row_users is not None
        if config.negatives == "shared" and not self._by_row:
            raise ConfigError(
                "negatives is 'shared' with a model that does not train on pairs", 'allowed: negatives = "own"'
            )
        if self.outlined:
            return
        counts = (task.positives_per_user * (1 if self._by_row else config.draws)).astype(np.int64)
        first = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(task.n_users), counts)
        # entry e of user u in the epoch k after a refresh lies in the pool at refresh·first[u] + k·counts[u] + (e - first[u])
        self._count = torch.from_numpy(counts).to(task.device)
        self._first = torch.from_numpy(first).to(task.device)
        self._used = torch.zeros_like(self._count)
        self._start = torch.from_numpy(first[owner] * (config.refresh - 1) + np.arange(owner.size)).to(task.device)
        self._stride = torch.from_numpy(counts[owner]).to(task.device)
        self.register_buffer("pool", torch.full((owner.size * config.refresh,), -1, dtype=torch.int32))
        self._drawn = torch.full((owner.size,), -1, dtype=torch.int64, device=task.device)
        self._all_drawn = False
        self.to(task.device)

    def counterpart(self, student: Teacher) -> Counterpart:
        config = self.config
        other = BD(config, [student], self.task, self.source.dim, sampling.stream(self.seed, "teacher"))
        other.temperature = config.student_temperature
        self._other, other._taught = (other,), True
        return Counterpart(other, self.source, config.teacher_weight, config.teacher_lr, config.teacher_weight_decay)

    def draw(self, epoch: Epoch) -> np.ndarray | None:
        if self._other or self.config.negatives == "shared":
            return None
        return self.task.fresh_negatives(self.stream(epoch, "negatives"))

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        self._redraws = (self.stream(epoch, "negatives"), 0)
        self._used.zero_()
        since = epoch.index % self.config.refresh
        if self._other and since == 0:
            self._refresh(epoch, student)
        self._drawn = self.pool[self._start + since * self._stride].long()
        self._all_drawn = bool((self._drawn >= 0).all())
        self._negatives = None if samples is None else to_device(samples, self.task.device)

    def base_batch(self, batch: Batch) -> Batch:
        if batch.places is None:
            return self._redrawn(batch)
        if self.config.negatives == "shared":
            drawn = self._drawn[batch.places].unsqueeze(1)
            return replace(batch, negatives=torch.where(drawn >= 0, drawn, batch.negatives[:, :1]))
        return batch if self._negatives is None else replace(batch, negatives=self._negatives[batch.places])

    def _redrawn(self, batch: Batch) -> Batch:
        """A batch of whole users, or of instances with several targets, with the teacher's own negatives."""
        if self._other:
            return batch
        seed, count = self._redraws
        self._redraws = (seed, count + 1)
        return self.task.redrawn(batch, sampling.stream(seed, count))

    def loss(self, student: View, batch: Batch) -> Tensor:
        source = self._look_up(batch)
        if self._by_row:
            known, ids = self._of_rows(batch)
            own, theirs = student.scores(ids), source.scores(ids)
        else:
            rows, ids = self._of_batch(batch)  # [P]
            known = None
            own, theirs = student.pairs(rows, ids), source.pairs(rows, ids)
        return losses.soft_pointwise(own, self._labels(theirs), known)

    def score_loss(self, batch: Batch) -> losses.ScoreLoss | None:
        if not self._by_row:
            return None
        known, ids = self._of_rows(batch)
        # as the other's own loss reads it, where that goes by autograd: one forward pass serves both
        with torch.enable_grad():
            labels = self._labels(self._look_up(batch).scores(ids))
        return losses.ScoreLoss(ids, lambda own: losses.soft_pointwise_gradient(own, labels, known))

    def _look_up(self, batch: Batch) -> View:
        """What the other model answers to the batch."""
        if not (self._other or self._taught):
            raise ConfigError(
                "bd's teacher is not trained along", "call fit([learner, *learner.counterparts()], ...) with both"
            )
        return self.source.view(batch.queries)

    def _labels(self, theirs: Tensor) -> Tensor:
        return torch.sigmoid(theirs / self.temperature)

    def _of_rows(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Whether each row has an item, None where all have, and the items, both [B, 1]."""
        assert batch.places is not None
        drawn = self._drawn[batch.places].unsqueeze(1)
        return (None, drawn) if self._all_drawn else (drawn >= 0, drawn.clamp(min=0))

    def _of_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The next of the epoch's draws for each positive of the batch as (batch row, item), repeats within a row once."""
        users, n = batch.queries.users, len(batch.queries)
        counts = torch.bincount(batch.positive_rows, minlength=n) * self.config.draws
        order = torch.argsort(users, stable=True)  # a user may be asked several times in a batch
        before = counts[order].cumsum(0) - counts[order]
        _, sizes = torch.unique_consecutive(users[order], return_counts=True)
        of_group = torch.repeat_interleave(sizes)
        within = before - before[sizes.cumsum(0) - sizes][of_group]
        starts = torch.empty_like(counts)
        starts[order] = self._used[users[order]] + within
        self._used.index_add_(0, users, counts)
        rows = torch.arange(n, device=users.device).repeat_interleave(counts)
        place = torch.arange(rows.shape[0], device=users.device) - (counts.cumsum(0) - counts)[rows]
        ids = self._drawn[self._first[users][rows] + starts[rows] + place]
        keys = torch.unique(rows[ids >= 0] * self.task.n_items + ids[ids >= 0])
        return keys // self.task.n_items, keys % self.task.n_items

    def _refresh(self, epoch: Epoch, student: Teacher) -> None:
        """Ranks by both models as they stand and draws both pools."""
        (other,) = self._other
        assert isinstance(student, ModelTeacher)
        draws = self._count.cpu().numpy() * self.config.refresh
        ours, theirs = student.factors(), self.source.factors()
        if self.config.mask == "exclude" and ours is not None and theirs is not None:
            for_teacher, for_student = self._discrepancy(ours.plain(), theirs.plain(), None, draws, epoch)
        else:
            blocks = row_blocks(self.task.n_users, self.task.n_items)
            parts = [self._block(rows, student, draws[rows], epoch) for rows in blocks]
            for_teacher, for_student = (np.concatenate(part) for part in zip(*parts, strict=True))
        if self.config.idle == "uniform":
            for_student = self._fill(for_student, draws, epoch)
        other.pool.copy_(torch.from_numpy(for_teacher))
        self.pool.copy_(torch.from_numpy(for_student))

    def _discrepancy(self, student: Any, teacher: Any, rows: Any, draws: Any, epoch: Epoch, block: int = 0) -> Any:
        if self.config.direction == "notebook":
            student, teacher = teacher, student
        drawn = sampling.discrepancy(
            student,
            teacher,
            self.task.seen if self.config.mask == "exclude" else None,
            (draws, draws),
            law=("exp", "tanh"),
            sharpness=(self.config.exp_sharpness, self.config.tanh_sharpness),
            seed=sampling.stream(self.stream(epoch, "pool"), block),
            rows=rows,
        )
        return tuple(sampling.numpy_of(part) for part in drawn)

    def _block(self, rows: Any, student: ModelTeacher, draws: np.ndarray, epoch: Epoch) -> Any:
        block_seed = int(rows[0]) + 1
        ours, theirs = (model.score_block(rows).clone() for model in (student, self.source))
        if self.config.mask != "exclude":
            within, items = self.task.seen.pairs_of(rows)
            for block in (ours, theirs):
                if self.config.mask == "multiply-sigmoid":
                    block.sigmoid_()
                block[to_device(within, block.device), to_device(items, block.device)] = 0.0
            rows = None
        return self._discrepancy(ours, theirs, rows, draws, epoch, block_seed)

    def _fill(self, drawn: np.ndarray, draws: np.ndarray, epoch: Epoch) -> np.ndarray:
        """Uniform unseen items in the place of what could not be drawn."""
        missing = np.flatnonzero(drawn < 0)
        users = np.repeat(np.arange(draws.size), draws)[missing]
        missing, users = missing[open_ := self.task.seen.row_degrees[users] < self.task.n_items], users[open_]
        drawn[missing] = sampling.negatives(self.task.seen, users, 1, seed=self.stream(epoch, "idle"))[:, 0]
        return drawn


def check_understood(teacher: ModelTeacher, task: Task) -> None:
    """Raises ``ConfigError`` unless the student's queries mean something to the teacher."""
    rows = torch.zeros(1, dtype=torch.int64, device=task.device)
    given, read = (own.queries(rows).history for own in (task, teacher.task))
    if given is not None and read is not None and given.shape[1] != read.shape[1]:
        raise ConfigError(
            f"bd's teacher {teacher.name!r} reads histories of {read.shape[1]} items, its student of {given.shape[1]}",
            "train both with the same model.length",
        )
    if not is_outline(task):
        with frozen(teacher.model):
            _ = teacher.model(task.queries(rows)).queries
