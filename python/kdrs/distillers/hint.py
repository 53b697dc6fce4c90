"""Linear hints."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kdrs.core.sampling import stream
from kdrs.distillers._hidden import EntityConfig, Hint, HintDistiller, Kind
from kdrs.distillers.base import only, seeded
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Task


class HintRegression(HintDistiller):
    """Hint regression (Romero et al., "FitNets", ICLR 2015), between the representations of two recommenders.

        L    = Σ_{u∈U} ℓ(u) + ½ [Σ_{i∈P} ℓ(i) + Σ_{j∈N} ℓ(j)]
        ℓ(e) = ‖h_T(e) - (W h_S(e) + b)‖²
        U, P, N: distinct users, positives and negatives of the batch

    A linear projector lifts the student's vector of an entity to the teacher's size, one for users and one for items:
    ``ℓ(e) = ‖h_T(e) - (W h_S(e) + b)‖²``, summed over coordinates, over unique users, and over unique items by
    ``item_share``. The baseline that DE and PHR are measured against: one mapping for all entities where they have many.

    Differs from the paper: recommenders have no hidden layer in the middle to be hinted and no second stage after it, so
    the term is added to the base loss throughout, and the projector is linear (the paper's is a convolution with maxout); a
    student of rank d_S can thus reach only a subspace of the teacher's.
    """

    Config = EntityConfig
    config: EntityConfig
    purpose = "rebuild the teacher's representations by one linear map: the plain baseline of feature distillation"
    reference = "Romero et al., FitNets: hints for thin deep nets, ICLR 2015"
    needs = "user and item representations"
    default_weight = 1e-2
    splits = True

    def __init__(self, config: EntityConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        teacher = only(teachers)
        with seeded(stream(seed, "init")):
            hint = LinearHint(nn.Linear(student_dim, teacher.dim), nn.Linear(student_dim, teacher.dim))
        self._use(teacher, hint)
        self.to(task.device)


class LinearHint(Hint):
    """``‖t - (W s + b)‖²``."""

    def __init__(self, users: nn.Module, items: nn.Module):
        self.modules = {"users": users, "items": items}

    def losses(self, kind: Kind, target: Tensor, source: Tensor, guide: Tensor | None = None) -> Tensor:
        return (target - self.modules[kind](source)).square().sum(-1)
