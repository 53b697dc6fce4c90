"""Personalised hint regression."""

from __future__ import annotations

from collections.abc import Sequence

from kdrs.core.sampling import stream
from kdrs.distillers._hidden import HintDistiller, PersonalConfig, PersonalHint
from kdrs.distillers.base import only
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Task


class PHR(HintDistiller):
    """Personalised hint regression (Kang, Lee, Kweon & Yu, Knowledge-Based Systems 239, 2022), as HyperKDMA restates it in
    its equations 9 to 12; the article itself was not available.

        L    = Σ_{u∈U} ℓ(u) + ½ [Σ_{i∈P} ℓ(i) + Σ_{j∈N} ℓ(j)]
        ℓ(e) = ‖h_T(e) - Θ_e h_S(e)‖²
        Θ_e  = W2 relu(W1 v_e + b1) + b2,  of shape d_T x d_S
        v_e  = ½ (h_T(e) + mean of h_T over e's neighbours)

    A personalisation network reads the teacher's vector of an entity, enriched by its neighbours' in the training data, and
    writes the matrix that lifts the student's vector into the teacher's space:
    ``v_e = ½ (h_T(e) + mean over neighbours of h_T)``, ``Θ_e = W2 relu(W1 v_e + b1) + b2`` of shape d_T x d_S,
    ``ℓ(e) = ‖h_T(e) - Θ_e h_S(e)‖²``, summed as DE's. One network serves users and items.

    Differs from the code of HyperKDMA: neighbours are used (it skips them: ``enrich = "none"``; its unused routine averages
    over those of the batch: ``"batch"``), the hidden layer has the paper's half width (``hidden``), and LightGCN's student
    vector is the propagated one (the code takes the raw one). The formula prints non-interacted items as neighbours; its
    text, the code and this class take the interacted ones. Adding the two spaces of users and items in v_e makes sense
    where they are one space, as in dot-product models.
    """

    Config = PersonalConfig
    config: PersonalConfig
    purpose = "rebuild the teacher's representations by a mapping that is generated for each entity"
    reference = (
        "Kang, Lee, Kweon & Yu, Personalized knowledge distillation for recommender system, Knowledge-Based Systems 239, "
        "2022"
    )
    needs = "user and item representations"
    default_weight = 1e-2

    @property
    def splits(self) -> bool:  # type: ignore[override]
        return self.config.enrich != "batch"

    def __init__(
        self, config: PersonalConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0
    ):
        super().__init__(config, teachers, task, student_dim, seed)
        teacher = only(teachers)
        self._use(teacher, PersonalHint(config, student_dim, teacher.dim, stream(seed, "init"), task.device))
