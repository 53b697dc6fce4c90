"""What every distillation method offers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kdrs.core.sampling import stream
from kdrs.errors import ConfigError, shown
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.devices import host_of, known, to_device
from kdrs.training.losses import ScoreLoss
from kdrs.training.outline import OUTLINE, is_outline
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View

T = TypeVar("T")


class Counterpart(NamedTuple):
    """The other side of a mutual method: how the teacher's own learner is made."""

    distiller: Distiller
    teacher: ModelTeacher
    weight: float
    lr: float | None
    """The student's learning rate if None."""
    weight_decay: float


class Distiller(nn.Module):
    """A loss that compares two views.

    Learnable helpers are parameters, trained by the student's optimizer. Per-query tables that are drawn anew each epoch
    are plain attributes; what a curriculum carries from epoch to epoch is a persistent buffer, so that it is in the
    checkpoint; such buffers have their final shape from the start. Teachers are never submodules, and a live one is asked
    for its lists in ``on_epoch_start`` and not before. Noise comes from generators of the method's own, seeded each epoch by
    ``stream``: torch's global one would couple the terms.

    ``seed`` starts the method's own random streams, so that switching one term of a sum off leaves the others as they were.

    A method of an outline (`kdrs.training.outline`) is asked for its parameters and for what it refuses. ``__init__`` first
    checks options and teachers (``check_scores``, ``check_lists``) and makes the helpers. What is read of teachers or is as
    long as the data comes after that, and in an outline not at all.
    """

    Config: ClassVar[type[Settings]] = Settings
    purpose: ClassVar[str] = ""
    reference: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    """What a teacher must hold."""
    default_weight: ClassVar[float] = 1.0
    """The weight that the paper's experiments use, or that was better on validation (docs/results/notes/weights.md)."""
    published_weight: ClassVar[float | None] = None
    """The paper's, where the default is another."""
    replaces_base: bool = False
    """The method's loss stands in the place of the model's own."""
    restarts_patience: bool = False
    """In an epoch at whose start the method changed what it trains for: early stopping counts anew."""
    chain: ClassVar[Literal["last", "all", "given"] | None] = None
    """How the method uses assistants that a run trains first, one after the other. ``last``: each is taught by the one before
    it, and the student by the last. ``all``: each is taught by all before it, and so is the student. ``given``: each is taught
    by the one before it, and the student by all."""
    default_chain: ClassVar[int] = 0
    """Assistants that a run trains first unless it says how many."""
    mutual: ClassVar[bool] = False
    """The teacher is trained along with the student: ``counterpart`` is its term."""

    splits: bool = False
    """Whether the loss of a batch of pairs is a sum over its rows, its ``unique_queries`` or its ``item_roles``: processes may
    then take some of each. A loss that looks at several of them together, or that finds the batch's entities in another way,
    is worked out by every process for the whole batch. Counts only where the method's very class says so."""

    def __init__(self, config: Settings, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__()
        for teacher in teachers:
            if isinstance(teacher, str | os.PathLike | nn.Module):
                raise ConfigError(
                    f"a teacher is given as a {type(teacher).__name__}",
                    "give what answers for it: kdrs.ModelTeacher(model, task), kdrs.FileTeacher(path, task) or "
                    "kdrs.load_run(path).teacher(task)",
                )
        self.config, self.task, self.seed = config, task, seed
        self.part = 0
        """Number of the share of each batch that it gets, where it ``splits``: seeds ``noise_stream``."""

    @property
    def outlined(self) -> bool:
        """Whether sizes alone are asked for (`kdrs.training.outline.OUTLINE`)."""
        return is_outline(self.task)

    def draw(self, epoch: Epoch) -> Any:
        """An epoch's samples, as far as they do not depend on the student: runs ahead, in another thread."""
        return None

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        """Takes the epoch's samples; draws what depends on the ``student`` as it stands; moves schedules."""

    def loss(self, student: View, batch: Batch) -> Tensor:
        """The method's loss on a batch: a scalar, unweighted, summed over queries or entities unless an option says
        otherwise."""
        raise NotImplementedError

    def score_loss(self, batch: Batch) -> ScoreLoss | None:
        """``loss`` of methods that read a few scores of the student alone, which a model may then differentiate without
        autograd; None of others. Called without gradients."""
        return None

    def base_batch(self, batch: Batch) -> Batch:
        """The batch that the model's own loss gets while this term is on: for methods that choose its negatives."""
        return batch

    def counterpart(self, student: Teacher) -> Counterpart:
        """Of a mutual method: how the teacher is trained, with the student in training as its teacher."""
        raise NotImplementedError

    def diagnostics(self) -> dict[str, float]:
        """What is worth watching besides the loss, of the epoch that has just ended: goes into its line of metrics.jsonl."""
        return {}

    @property
    def multiplicities(self) -> Mapping[str, float]:
        """Parameters that stand for several equal ones each, and for how many; see `kdrs.training.optim.Adam`."""
        return {}

    def stream(self, epoch: Epoch, name: str) -> int:
        """A seed for one use in one epoch, of this term alone."""
        return stream(self.seed, name, epoch.index)

    def noise_stream(self, epoch: Epoch) -> int:
        """A seed for the noise within the losses of an epoch, another one for each share of a batch."""
        return stream(self.seed, "noise", *(("part", self.part) if self.part else ()), epoch.index)


def only(teachers: Sequence[T]) -> T:
    """The one teacher of a method that takes exactly one."""
    if len(teachers) != 1:
        raise ConfigError(
            f"got {len(teachers)} teachers; this method takes exactly 1",
            "give one teacher; where other terms take several, one of its own: --set distill.N.teacher=RUN, N its place from 0",
        )
    return teachers[0]


def count_alike(teacher: Teacher, method: str) -> None:
    """Warns of a teacher whose lists have weights, for a method that reads the lists and has no use for them."""
    if teacher.confidence() is not None:
        warnings.warn(
            f"the lists of {shown(teacher.name, 300)} have weights, and {method} counts all entries alike", stacklevel=4
        )


def noise_on(device: torch.device) -> torch.Generator:
    """A generator for noise on a device; in an outline one that nobody asks."""
    return torch.Generator("cpu" if device == OUTLINE else device)


def distinct(ids: Tensor, size: int) -> Tensor:
    """The distinct ids of any shape, ascending, int64 [M]; -1 is padding. ``size`` is how many ids there are."""
    host = host_of(ids)
    if host is not None:
        found = np.unique(host)
        found = found[np.searchsorted(found, 0) :]
        return known(to_device(found, ids.device), found)
    ids = ids.reshape(-1)
    if size > 16 * ids.numel():
        ids = torch.unique(ids)
        return ids[ids >= 0]
    marked = torch.zeros(size + 1, dtype=torch.bool, device=ids.device)  # cheaper than sorting
    return marked.index_fill_(0, ids + 1, True)[1:].nonzero().squeeze(1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Parameters created inside draw their initial values from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
