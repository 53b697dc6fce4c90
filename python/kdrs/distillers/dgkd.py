"""Densely guided distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from kdrs.distillers._hidden import (
    Entities,
    HintConfig,
    TeacherHint,
    init_seed,
    make_hint,
    modules_of,
    noise_seed,
    require_assistants,
)
from kdrs.distillers.base import Distiller
from kdrs.errors import ConfigError
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View


class DGKDConfig(HintConfig):
    n_drop: int = Field(1, ge=0)
    """Sources left out of each batch, drawn uniformly without replacement; at least one always stays. 0: none is."""
    drop_probability: float | None = Field(None, ge=0, lt=1)
    """Leave each source out with this probability instead, independently; one drawn uniformly stays if all would go."""
    teacher_weight: float = Field(1.0, ge=0)
    """Weight of the teacher within the term: λ_T is this times the term's weight."""
    assistant_weight: float = Field(1.0, ge=0)
    """Weight of each assistant within the term: λ_TA is this times the term's weight."""


class DGKD(Distiller):
    """Densely guided knowledge distillation (Son, Na, Choi & Hwang, ICCV 2021), on hidden representations.

        L        = Σ_{src kept in this batch} λ_src Agg(ℓ_src)
        Agg(ℓ)   = Σ_{u∈U} ℓ(u) + ½ [Σ_{i∈P} ℓ(i) + Σ_{j∈N} ℓ(j)]
        ℓ_src(e) = ‖h_src(e) - Σ_m q_m(e) E_m(h_S(e))‖²,  or PHR's

    The student learns from the teacher and from all assistants at once. The first of the teachers is the teacher T, the
    others are the assistants, trained models that stay fixed: ``Σ_src λ_src Agg(ℓ(h_src, h_S))`` over the sources that the
    batch keeps, with DE's or PHR's loss (``hint``) and modules of its own for each source. In every batch ``n_drop`` sources
    are left out at random, the teacher as likely as an assistant; the rest is not scaled up. Modules of a source that is
    left out take no step in that batch.

    An assistant is trained the same way, from the teacher and all larger assistants. With one teacher this is DE or PHR.

    Differs from the paper, which distils class probabilities: HyperKDMA compares with DGKD on representations and publishes
    no code of it, so the definition is this library's. As in the code of DGKD a fixed number of sources is dropped and the
    kept ones are summed; the paper speaks of a survival probability (``drop_probability``).
    """

    Config = DGKDConfig
    config: DGKDConfig
    purpose = "learn from the teacher and all assistants at once, some left out of each batch"
    reference = (
        "Son, Na, Choi & Hwang, Densely guided knowledge distillation using multiple teacher assistants, ICCV 2021"
    )
    needs = "user and item representations; the first teacher is the teacher, the others are assistants"
    default_weight = 1e-2
    chain = "all"
    default_chain = 8

    def __init__(self, config: DGKDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        if not teachers:
            raise ConfigError("got no teacher; this method takes the teacher and any number of assistants", "give one")
        if config.drop_probability is not None and config.n_drop != type(config).model_fields["n_drop"].default:
            raise ConfigError(
                f"n_drop is {config.n_drop} and drop_probability {config.drop_probability}", "leave one of them out"
            )
        if not config.teacher_weight and not (config.assistant_weight and len(teachers) > 1):
            raise ConfigError("nothing has a weight: neither the teacher nor an assistant", "give one a weight above 0")
        require_assistants(teachers[0].dim, [teacher.dim for teacher in teachers[1:]])
        hints = [
            make_hint(config, student_dim, teacher.dim, init_seed(seed, index), task.device)
            for index, teacher in enumerate(teachers)
        ]
        self.sources = [TeacherHint(teacher, task, config, hint) for teacher, hint in zip(teachers, hints, strict=True)]
        self.hints = modules_of(hints)
        self._draws = torch.Generator()  # on the CPU: which terms exist must be known there

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        for index, source in enumerate(self.sources):
            source.hint.start(epoch, noise_seed(self.seed, epoch, index))
        self._draws.manual_seed(self.stream(epoch, "dropped"))

    def kept(self) -> list[int]:
        """The sources of the next batch, ascending."""
        count, probability = len(self.sources), self.config.drop_probability
        if count == 1:
            return [0]
        order = torch.randperm(count, generator=self._draws).tolist()
        if probability is None:
            return sorted(order[: max(count - self.config.n_drop, 1)])
        stays = (torch.rand(count, generator=self._draws) >= probability).tolist()
        return [index for index in range(count) if stays[index]] or order[:1]

    def loss(self, student: View, batch: Batch) -> Tensor:
        entities = Entities(batch, self.task, self.sources[0].teacher.sides)
        vectors = entities.of_student(student)
        total = vectors.users.new_zeros(())
        for index in self.kept():
            weight = self.config.assistant_weight if index else self.config.teacher_weight
            losses = self.sources[index].losses(entities, vectors)
            total = total + weight * entities.sum(losses, self.config.item_share)
        return total
