"""Distillation through a chain of teacher assistants."""

from __future__ import annotations

from collections.abc import Sequence

from kdrs.core.sampling import stream
from kdrs.distillers._hidden import HintConfig, HintDistiller, make_hint
from kdrs.distillers.base import only
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Task


class TAKD(HintDistiller):
    """One stage of teacher-assistant distillation (Mirzadeh et al., AAAI 2020), on hidden representations.

        T → TA_m → … → TA_1 → student, each stage
        L    = Σ_{u∈U} ℓ(u) + ½ [Σ_{i∈P} ℓ(i) + Σ_{j∈N} ℓ(j)]
        ℓ(e) = ‖h_before(e) - Σ_m q_m(e) E_m(h(e))‖²,  or PHR's

    Between teacher T and student stand recommenders of the student's kind, of the sizes of ``assistant_dims``; each is
    trained from scratch and distilled from the next larger one alone, frozen at its best validation epoch:
    T → TA_m → … → TA_1 → student. This term is one stage of that chain: its single teacher is the model before it, and its
    loss is DE's or PHR's towards it (``hint``), with modules of its own. So a chain of no assistants is DE or PHR itself,
    byte for byte, and whatever stood before the teacher has no influence.

    Differs from the paper, which distils class probabilities: HyperKDMA compares with the chain on representations and
    publishes no code of it, so the definition is this library's. Sizes, number of assistants (HyperKDMA's: 8) and order
    belong to the runs.
    """

    Config = HintConfig
    config: HintConfig
    purpose = "learn from the last of a chain of ever smaller assistants instead of the teacher itself"
    reference = "Mirzadeh et al., Improved knowledge distillation via teacher assistant, AAAI 2020"
    needs = "user and item representations of the last assistant"
    default_weight = 1e-2
    chain = "last"
    default_chain = 8

    def __init__(self, config: HintConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        teacher = only(teachers)
        self._use(teacher, make_hint(config, student_dim, teacher.dim, stream(seed, "init"), task.device))
