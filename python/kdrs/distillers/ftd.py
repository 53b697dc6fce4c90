"""Full topology distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrs.distillers._hidden import Entities
from kdrs.distillers.base import Distiller, only
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Batch, Task
from kdrs.training.view import View


class FTD(Distiller):
    """Full topology distillation (Kang, Hwang, Kweon & Yu, "Topology distillation for recommender system", KDD 2021).

        L = Σ_{a,b} (cos(h_T(a), h_T(b)) - cos(h_S(a), h_S(b)))²

    The student's space reproduces the cosines between all entities of the batch, unique users and unique items together:
    ``Σ_{a,b} (cos_T(a, b) - cos_S(a, b))²`` over all ordered pairs. For students of nearly the teacher's capacity; small
    ones do better with HTD.

    Computed without the pairs: with unit rows N_T and N_S it is ``‖N_TᵀN_T‖² - 2‖N_TᵀN_S‖² + ‖N_SᵀN_S‖²``, small matrices
    in float64, since the three nearly cancel. Equal to the authors' code, which forms both matrices of cosines.
    """

    purpose = "reproduce the cosines between all users and items of a batch"
    reference = "Kang, Hwang, Kweon & Yu, Topology distillation for recommender system, KDD 2021"
    needs = "user and item representations"
    default_weight = 1e-3

    def __init__(self, config: Settings, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        self.teacher = only(teachers)
        _ = self.teacher.dim  # refuse early

    def loss(self, student: View, batch: Batch) -> Tensor:
        entities = Entities(batch, self.task, self.teacher.sides)
        own, target = (
            torch.cat(vectors) for vectors in (entities.of_student(student), entities.of_teacher(self.teacher))
        )
        return cosine_gap(target, own)


def cosine_gap(target: Tensor, source: Tensor) -> Tensor:
    """``Σ_{a,b} (cos(t_a, t_b) - cos(s_a, s_b))²`` over all ordered pairs of rows of [E, d_T] and [E, d_S]."""
    t, s = (F.normalize(vectors.double(), dim=-1, eps=1e-12) for vectors in (target, source))
    gap = (t.T @ t).square().sum() - 2 * (t.T @ s).square().sum() + (s.T @ s).square().sum()
    return gap.to(source.dtype)
