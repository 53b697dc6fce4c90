"""Multi-layer knowledge distillation: the sum of its three parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from kdrs.distillers.base import noise_on
from kdrs.distillers.cpd import Penalty, PenaltyConfig
from kdrs.distillers.nkd import NKD, NKDConfig
from kdrs.distillers.sld import SLD, SLDConfig
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View


class MKDConfig(NKDConfig, PenaltyConfig, SLDConfig):
    output_weight: float = Field(2e-3, ge=0)
    """λ_o / λ_f: weight of the soft labels beside that of the features."""


class MKD(NKD):
    """Multi-layer knowledge distillation (Zhu & Zhang, arXiv 2311.04549v1, 2023): NKD on the input, CPD's penalty on the
    projectors, SLD on the output. **How the parts combine is a reconstruction**, and so is SLD.

        L = L_NKD + α L_pair + β L_list + output_weight · L_SLD

    ``L_NKD + α Σ pairwise + β Σ listwise + output_weight · L_SLD``, NKD's projectors under CPD's penalty, which looks at
    representations that are not mixed. A weight of 0 switches its part off exactly. Not to be confused with the class ``MKD``
    of the authors' public code, which is RCE-KD.
    """

    Config = MKDConfig
    config: MKDConfig
    purpose = "NKD, CPD's penalty and SLD together (the combination is a reconstruction)"
    needs = "user and item representations, and scores of any item"
    default_weight = 0.5

    def __init__(self, config: MKDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        self.penalty = Penalty(config, self.teacher, task)
        self.sld = SLD(config, teachers, task, student_dim, seed) if config.output_weight else None
        self.to(task.device)
        self._penalty_noise = noise_on(task.device)

    def draw(self, epoch: Epoch) -> tuple[Any, Any]:
        return self.penalty.draw(self.stream(epoch, "lists")), None if self.sld is None else self.sld.draw(epoch)

    def on_epoch_start(self, epoch: Epoch, samples: tuple[Any, Any], student: Teacher) -> None:
        super().on_epoch_start(epoch, None, student)
        self._penalty_noise.manual_seed(self.stream(epoch, "penalty noise"))
        self.penalty.start(epoch, samples[0], student, self.stream(epoch, "lists"))
        if self.sld is not None:
            self.sld.on_epoch_start(epoch, samples[1], student)

    def loss(self, student: View, batch: Batch) -> Tensor:
        loss = super().loss(student, batch)
        penalty: Tensor = self.penalty(student, batch, *(self._bare(part) for part in (self.users, self.items)))
        if self.sld is None:
            return loss + penalty
        return loss + penalty + self.config.output_weight * self.sld.loss(student, batch)

    def _bare(self, projector: torch.nn.Module) -> Any:
        return lambda source: projector(source, self._penalty_noise)
