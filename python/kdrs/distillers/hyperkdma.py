"""Hypernetwork-based teacher assistants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PlainValidator
from torch import Tensor, nn

from kdrs.core.sampling import stream
from kdrs.distillers._hidden import (
    Entities,
    HintConfig,
    TeacherHint,
    Vectors,
    assistant_dims,
    init_seed,
    make_hint,
    modules_of,
    noise_seed,
    require_assistants,
)
from kdrs.distillers._hypernetwork import Hypernetwork
from kdrs.distillers.base import Distiller, seeded
from kdrs.errors import ConfigError
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View


def _count_or_given(value: Any) -> Any:
    if value == "given" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError("integers from 0 on, 'given'")


class HyperKDMAConfig(HintConfig):
    assistants: Annotated[int | Literal["given"], PlainValidator(_count_or_given)] = 8
    """Assistants that the hypernetwork generates: m; 0 leaves the teacher alone. ``given``: the assistants are trained
    models, all teachers but the first (the ablation without hypernetwork)."""
    ta_dims: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=1)
    """Sizes of the generated assistants instead of equation 20's; the published code takes 40 and 60 whatever it is told."""
    gate: Literal["per_entity", "uniform", "batch_scalar"] = "per_entity"
    """How assistants are weighed: by a network on the teacher's vector of the entity; all alike (the ablation without gate);
    or, as the published code of PHR does, sum of the gates times sum of the losses over users, positives and negatives."""
    ta_sum: Literal["all", "last", "none"] = "all"
    """Assistants whose loss is added: all of them (paper); the last one, which the published code does for NeuMF with DE; or
    none, which it does for BPR and LightGCN with DE, so that plain DE remains."""
    teacher_weight: float = Field(1.0, ge=0)
    """Weight of the teacher within the term: λ_T is this times the term's weight."""
    assistant_weight: float = Field(1.0, ge=0)
    """Weight of all assistants within the term: λ_TA is this times the term's weight."""
    anchor: float = Field(0.0, ge=0)
    """Weight within the term of ``Σ_k ‖h_T - A_k h_k‖²`` with linear decoders A_k shared by all entities: an assistant must
    keep what the teacher knows. Not in the paper, where nothing ties generated assistants to the teacher."""


class HyperKDMA(Distiller):
    """Hypernetwork-based knowledge distillation with multiple assistants ("HyperKDMA: Distilling recommender systems via
    hypernetwork-based teacher assistants", manuscript without authors' names).

        L      = teacher_weight · Agg(ℓ(h, h_S)) + assistant_weight · Agg(Σ_k g_k ℓ(h_k, h_S))
        h_k    = Θ_k h,  Θ = reshape(W_P h + b_P)
        g      = softmax(Θ_G h + c_G)
        Agg(ℓ) = Σ_{u∈U} ℓ(u) + ½ [Σ_{i∈P} ℓ(i) + Σ_{j∈N} ℓ(j)]
        d_k    = ⌊d_S + k (d_T - d_S) / (m + 1)⌋,  k = 1 … m

    For each entity a hypernetwork on the teacher's vector h writes the vectors of m assistants of sizes between student and
    teacher, ``h_k = Θ_k h`` with ``Θ = reshape(W_P h + b_P)`` (equations 13, 14), a gate weighs them, ``g = softmax(Θ_G h +
    c_G)`` (15), and the student learns from teacher and assistants at once (16, 17):
    ``Agg(ℓ(h, h_S)) + Agg(Σ_k g_k ℓ(h_k, h_S))``, ℓ being DE's or PHR's (``hint``) with modules for the teacher and each
    assistant, PHR's enrichment for the teacher alone. Sizes by equation 20. Hypernetwork and gate serve users and items.
    Only h is frozen: the assistants carry gradient to the hypernetwork, as target, as input of the selection and through
    the gate.

    Nothing but the loss itself ties an assistant to the teacher; assistants that shrink to 0 are the cheapest. Watch
    ``assistants_users`` and ``assistants_items`` (mean ‖h_k‖²) and ``gate_entropy`` in the log; ``anchor`` holds them.

    Differs from the published code, in which the assistants' loss is not added for BPR and LightGCN with DE (``ta_sum =
    "none"``) and only the last one's for NeuMF (``"last"``), the gate of PHR is no entity's own (``gate =
    "batch_scalar"``), and sizes are fixed (``ta_dims = [40, 60]``); so its loop cannot reproduce the published rows. PHR's
    teacher term counts users once, and student vectors are the model's own (propagated for LightGCN). The hypernetwork is
    kept in its symmetric form, which trains alike (`Hypernetwork`).
    """

    Config = HyperKDMAConfig
    config: HyperKDMAConfig
    purpose = "learn from assistants of many sizes that a hypernetwork generates for each entity, beside the teacher"
    reference = "HyperKDMA: Distilling recommender systems via hypernetwork-based teacher assistants, manuscript"
    needs = 'user and item representations; with assistants = "given" further teachers, which are the assistants'
    default_weight = 1e-2
    chain = "given"

    def __init__(
        self, config: HyperKDMAConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0
    ):
        super().__init__(config, teachers, task, student_dim, seed)
        self.given = _given(config, teachers)
        self.teacher = teachers[0]
        self.dims = _dims(config, self.teacher.dim, student_dim, self.given)
        if config.anchor and (config.ta_sum == "none" or not config.assistant_weight or not self.dims):
            raise ConfigError(f"anchor is {config.anchor:g} without assistants that count", "leave anchor out")
        if config.ta_sum == "none" or not config.assistant_weight:
            self.dims = ()  # what has no weight is not built: the term is the plain hint
        count = len(self.dims)
        hints = [
            make_hint(config, student_dim, dim, init_seed(seed, index), task.device)
            for index, dim in enumerate((self.teacher.dim, *self.dims))
        ]
        self.hints = modules_of(hints)
        self._from_teacher, self._assistants = TeacherHint(self.teacher, task, config, hints[0]), hints[1:]
        dim, total = self.teacher.dim, sum(self.dims)
        with seeded(stream(seed, "init", "hypernetwork")):
            generated = count and self.given is None
            self.hypernetwork = Hypernetwork(dim, total, bf16=config.precision == "bf16") if generated else None
        with seeded(stream(seed, "init", "gate")):
            self.gate = nn.Linear(dim, count) if count and config.gate != "uniform" else None
        with seeded(stream(seed, "init", "anchor")):
            decoders = [nn.Linear(own, dim, bias=False) for own in self.dims] if config.anchor else []
            self.decoders = nn.ModuleList(decoders)
        self.to(task.device)
        self._watched: Tensor | None = None

    @property
    def multiplicities(self) -> Mapping[str, float]:
        if self.hypernetwork is None:
            return {}
        return {f"hypernetwork.{name}": n for name, n in Hypernetwork.MULTIPLICITIES.items()}

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        for index, hint in enumerate([self._from_teacher.hint, *self._assistants]):
            hint.start(epoch, noise_seed(self.seed, epoch, index))
        self._watched = None

    def loss(self, student: View, batch: Batch) -> Tensor:
        config = self.config
        entities = Entities(batch, self.task, self.teacher.sides)
        source, target = entities.of_student(student), entities.of_teacher(self.teacher)
        own = entities.sum(self._from_teacher.losses(entities, source, target), config.item_share)
        total = config.teacher_weight * own
        if not self.dims:
            return total
        assistants = self.assistants(entities, target)
        gates = self.gates(target)
        used = range(len(self.dims))[-1 if config.ta_sum == "last" else 0 :]
        losses = [self._assistants[k].both(entities, assistants[k], source) for k in used]
        stacked = Vectors(*(torch.stack([getattr(each, kind) for each in losses], dim=1) for kind in Vectors._fields))
        weights = Vectors(*(own[:, used.start :] for own in gates))
        total = total + config.assistant_weight * self._gated(entities, stacked, weights)
        if config.anchor:
            total = total + config.anchor * entities.sum(self._anchored(target, assistants), config.item_share)
        self._watch(assistants, gates)
        return total

    def assistants(self, entities: Entities, target: Vectors) -> list[Vectors]:
        """The vectors of each assistant; those of a hypernetwork carry gradient."""
        if self.given is not None:
            return [entities.of_teacher(teacher) for teacher in self.given]
        assert self.hypernetwork is not None
        generated = self.hypernetwork(torch.cat(target))  # [E + E', D]
        users, items = generated.split([target.users.shape[0], target.items.shape[0]])
        pairs = zip(users.split(self.dims, dim=1), items.split(self.dims, dim=1), strict=True)
        return [Vectors(*pair) for pair in pairs]

    def gates(self, target: Vectors) -> Vectors:
        """Weights of the assistants, float32 [E, m] for users and items; each row sums to 1."""
        if self.gate is None:
            return Vectors(*(t.new_full((t.shape[0], len(self.dims)), 1 / len(self.dims)) for t in target))
        return Vectors(*(torch.softmax(self.gate(t), dim=-1) for t in target))

    def _gated(self, entities: Entities, losses: Vectors, gates: Vectors) -> Tensor:
        """Σ of the assistants' losses, [E, k] and [E', k], by gate and by entity."""
        if self.config.gate != "batch_scalar":
            weighted = (g * own for g, own in zip(gates, losses, strict=True))
            return entities.sum(Vectors(*(each.sum(-1) for each in weighted)), self.config.item_share)
        total = (gates.users.sum(0) * losses.users.sum(0)).sum()
        if self.config.item_share == "full":
            return total + (gates.items.sum(0) * losses.items.sum(0)).sum()
        for ids in (entities.batch.positives, entities.batch.negatives):
            role = torch.isin(entities.items, ids).to(losses.items.dtype)
            total = total + ((role @ gates.items) * (role @ losses.items)).sum() / 2
        return total

    def _anchored(self, target: Vectors, assistants: Sequence[Vectors]) -> Vectors:
        """Σ_k ‖h_T - A_k h_k‖² for each entity."""
        kinds = []
        for kind in Vectors._fields:
            goal = getattr(target, kind)
            rebuilt = [decode(getattr(a, kind)) for decode, a in zip(self.decoders, assistants, strict=True)]
            kinds.append(sum(((goal - each).square().sum(-1) for each in rebuilt), goal.new_zeros(goal.shape[0])))
        return Vectors(*kinds)

    @torch.no_grad()
    def _watch(self, assistants: Sequence[Vectors], gates: Vectors) -> None:
        """Adds the batch to the epoch's sums: ‖h_k‖² of users and items, gate entropy, and how many of each there were."""
        rows = torch.cat(gates)
        sizes = [vectors.shape[0] for vectors in assistants[0]]
        squares = [torch.stack([getattr(a, k).square().sum() for a in assistants]).sum() for k in Vectors._fields]
        entropy = torch.special.entr(rows).sum()
        found = torch.stack([*squares, entropy, *(rows.new_tensor(float(size)) for size in sizes)]).double()
        self._watched = found if self._watched is None else self._watched + found

    def diagnostics(self) -> dict[str, float]:
        if self._watched is None:
            return {}
        users, items, entropy, n_users, n_items = self._watched.tolist()
        count = len(self.dims)
        return {
            "assistants_users": users / (n_users * count),
            "assistants_items": items / (n_items * count),
            "gate_entropy": entropy / (n_users + n_items),
        }


def _given(config: HyperKDMAConfig, teachers: Sequence[Teacher]) -> list[Teacher] | None:
    """The assistants that were given as trained models; None if they are generated."""
    if config.assistants != "given":
        if len(teachers) != 1:
            raise ConfigError(
                f"got {len(teachers)} teachers; hyperkdma takes exactly 1 where it generates its assistants",
                'give one teacher, or assistants = "given" to take the others as assistants',
            )
        return None
    if len(teachers) < 2:
        raise ConfigError(
            f'got {len(teachers)} teachers; with assistants = "given" the first is the teacher, the others the assistants',
            "give at least 2 teachers",
        )
    if config.ta_sum == "none":
        raise ConfigError('ta_sum is "none" with assistants = "given"', "leave the assistants out, or ta_sum")
    for name, value in (("ta_dims", config.ta_dims), ("anchor", config.anchor or None)):
        if value is not None:
            raise ConfigError(
                f'{name} is {value} with assistants = "given"', f"leave {name} out: it shapes generated ones"
            )
    return list(teachers[1:])


def _dims(
    config: HyperKDMAConfig, teacher_dim: int, student_dim: int, given: Sequence[Teacher] | None
) -> tuple[int, ...]:
    if given is not None:
        require_assistants(teacher_dim, [teacher.dim for teacher in given])
        return tuple(teacher.dim for teacher in given)
    assert isinstance(config.assistants, int)
    if config.ta_dims is not None:
        # saved options state defaults too
        if config.assistants not in (len(config.ta_dims), type(config).model_fields["assistants"].default):
            raise ConfigError(
                f"assistants is {config.assistants}, ta_dims names {len(config.ta_dims)} sizes", "leave one of them out"
            )
        sizes = set(config.ta_dims)
        if len(sizes) != len(config.ta_dims) or not all(student_dim < dim < teacher_dim for dim in sizes):
            raise ConfigError(
                f"ta_dims is {list(config.ta_dims)}, with a teacher of {teacher_dim} and a student of {student_dim} dimensions",
                f"allowed: different sizes from {student_dim + 1} to {teacher_dim - 1}",
            )
        return config.ta_dims
    return assistant_dims(teacher_dim, student_dim, config.assistants)
