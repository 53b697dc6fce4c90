"""Distillation experts."""

from __future__ import annotations

from collections.abc import Sequence

from kdrs.core.sampling import stream
from kdrs.distillers._hidden import ExpertConfig, ExpertHint, HintDistiller
from kdrs.distillers.base import only
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Task


class DE(HintDistiller):
    """Distillation experts (Kang, Hwang, Kweon & Yu, "DE-RRD", CIKM 2020, section 3.1).

        L    = Σ_{u∈U} ℓ(u) + ½ [Σ_{i∈P} ℓ(i) + Σ_{j∈N} ℓ(j)]
        ℓ(e) = ‖h_T(e) - Σ_m q_m(e) E_m(h_S(e))‖²
        q(e) = softmax((log softmax(v(h_T(e))) + Gumbel noise) / τ)
        τ    = final_temperature^((epoch - schedule_lag) / schedule_epochs), from 1 down

    The teacher's representation of every user and item of the batch is reconstructed from the student's by a mixture of M
    small networks; a selection network on the teacher's representation mixes them, with Gumbel noise and a temperature that
    falls until each entity has one expert. ``ℓ(e) = ‖h_T(e) - Σ_m q_m E_m(h_S(e))‖²``, summed over coordinates, over
    unique users, and over unique items by ``item_share``.

    An item that is both positive and negative in a batch has a draw of noise for each role, as in the authors' code
    (``item_noise``). Differs from it: the hidden layer is weighted before the second one, and experts whose
    share is lost in rounding are left out (``cutoff``), which on the CPU spares their work. The paper prints the norm
    without its square; code, and this class, square it.
    """

    Config = ExpertConfig
    config: ExpertConfig
    purpose = "rebuild the teacher's representations from the student's, a specialist for each group of entities"
    reference = "Kang, Hwang, Kweon & Yu, DE-RRD: a knowledge distillation framework for recommender system, CIKM 2020"
    needs = "user and item representations"
    default_weight = 1e-2
    splits = True

    def __init__(self, config: ExpertConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        teacher = only(teachers)
        self._use(teacher, ExpertHint(config, student_dim, teacher.dim, stream(seed, "init"), task.device))
