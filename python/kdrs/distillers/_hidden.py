"""What the methods on hidden representations share: the entities of a batch, hints, and the sizes of assistants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrs.core.kernels import sparse_csr
from kdrs.core.sampling import stream
from kdrs.distillers import _bfloat16
from kdrs.distillers._experts import NO_EFFECT, Experts, mean_of_two, temperature
from kdrs.distillers.base import Distiller, noise_on, seeded
from kdrs.errors import ConfigError, MissingKnowledge, shown
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher
from kdrs.training import losses
from kdrs.training.devices import counts_of, numbers_of, to_device
from kdrs.training.outline import is_outline
from kdrs.training.queries import Batch, Epoch, Queries, Task
from kdrs.training.view import View

Kind: TypeAlias = Literal["users", "items"]


class EntityConfig(Settings):
    item_share: Literal["half", "full"] = "half"
    """``half``: an item counts ½ for each of its roles, positive and negative, in the batch (code, and all published
    numbers). ``full``: every item counts 1 (HyperKDMA's equation 8)."""


class ExpertConfig(EntityConfig):
    experts: int = Field(30, ge=1)
    """Experts for users, and as many for items: M."""
    final_temperature: float = Field(1e-10, gt=0, le=1)
    """τ falls from 1 to this over the planned epochs."""
    schedule_epochs: int = Field(1000, ge=1)
    """Epochs that the fall is spread over; the published runs plan 1,000, whenever they stop."""
    schedule_lag: Literal[0, 1] = 1
    """Epochs by which the fall lags behind: 1 in the authors' code, 0 in re-implementations."""
    cutoff: float = Field(NO_EFFECT, gt=0)
    """Experts whose logit is this far below the best take no part: their share is at most exp(-cutoff). The default leaves
    out what a float32 sum rounds away; 104 only shares that are exactly 0."""
    item_noise: Literal["role", "item"] = "role"
    """Noise of an item that is positive and negative in a batch. ``role``: drawn for either role by itself (code). ``item``:
    drawn once for both, which has the same mean and, of that item, twice the variance. An item that counts once (``item_share =
    "full"``) has one draw."""

    @property
    def draws_by_role(self) -> bool:
        """Whether an item has a draw for each of its roles; a single expert needs none."""
        return self.item_noise == "role" and self.item_share == "half" and self.experts > 1


class PersonalConfig(EntityConfig):
    enrich: Literal["full", "batch", "none"] = "full"
    """What the personalisation network reads. ``full``: the mean of the teacher's vector and its training neighbours' mean
    vector (paper). ``batch``: of the neighbours only those that are in the batch (a routine of the code that it leaves
    unused). ``none``: the teacher's vector alone (code, and so the published tables)."""
    hidden: Literal["half", "full"] = "half"
    """Width of its hidden layer: ⌊(d_T + d_T·d_S) / 2⌋ (paper), or d_T + d_T·d_S (code of PHR for BPR and NeuMF)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16`` does the large products in bfloat16, weights staying float32: several times faster where the processor has
    instructions for it. Experts are not concerned."""


class HintConfig(ExpertConfig, PersonalConfig):
    """Options of methods that can use either hint; those of the other one have no effect."""

    hint: Literal["de", "phr"] = "de"
    """The loss between two spaces: distillation experts or personalised hint regression."""


class Vectors(NamedTuple):
    """Something for the distinct users of a batch and something for its distinct items: representations or losses."""

    users: Tensor
    """float32 [E, ...]"""
    items: Tensor
    """float32 [E', ...]"""


class Entities:
    """The distinct users and items of a batch: U_B and I_B = P_B ∪ N_B. Of ``sides`` without users (a teacher of item
    vectors alone, `Teacher.sides`) U_B is empty."""

    def __init__(self, batch: Batch, task: Task, sides: Sequence[str] = ("users", "items")):
        self.batch, self.sides = batch, sides
        asked = batch.unique_queries
        self.rows, self.first = (asked.ids, asked.first) if "users" in sides else (asked.ids[:0], asked.first[:0])
        self.items, self.roles = batch.item_roles
        self.queries: Queries = task.queries(self.rows)

    @property
    def both_roles(self) -> Tensor:
        """int64 [T]: places of the items that are positive and negative, ascending."""
        return self.batch.both_roles

    def of_student(self, view: View) -> Vectors:
        """Representations from the view of the batch."""
        return Vectors(view.queries[self.first], view.items(self.items))

    def of_teacher(self, teacher: Teacher) -> Vectors:
        view = teacher.view(self.queries)
        items = view.items(self.items)
        return Vectors(view.queries if "users" in self.sides else items[:0], items)

    def weights(self, item_share: str) -> Tensor:
        """float32 [E']: what an item's loss counts."""
        return self.roles / 2 if item_share == "half" else torch.ones_like(self.roles)

    def sum(self, losses: Vectors, item_share: str) -> Tensor:
        """Σ over users + Σ over items by their weight: Agg_half or Agg_paper of one loss an entity."""
        return losses.users.sum() + (self.weights(item_share) * losses.items).sum()


class Hint:
    """Losses of rebuilding target vectors from the student's by networks that are trained along.

    No module itself: its owner registers ``modules``, so that the owner decides on the names that checkpoints hold.
    """

    modules: dict[str, nn.Module]

    def start(self, epoch: Epoch, noise_seed: int) -> None:
        """Moves schedules and seeds the noise of an epoch."""

    def losses(self, kind: Kind, target: Tensor, source: Tensor, guide: Tensor | None = None) -> Tensor:
        """float32 [E]: one loss an entity, from ``target`` [E, d_T] and ``source`` [E, d_S].

        ``guide`` [E, d_T] is what the choice of the mapping depends on, the target itself unless given.
        """
        raise NotImplementedError

    def both(self, entities: Entities, target: Vectors, source: Vectors, guide: Vectors | None = None) -> Vectors:
        """The losses of a batch's users and items."""
        users = self.losses("users", target.users, source.users, guide and guide.users)
        return Vectors(users, self.losses("items", target.items, source.items, guide and guide.items))


class ExpertHint(Hint):
    """DE's: ``‖t - Σ_m q_m(t) E_m(s)‖²``, experts and selection network for users and items apart."""

    def __init__(self, config: ExpertConfig, source_dim: int, target_dim: int, seed: int, device: torch.device):
        self.config = config
        with seeded(seed):
            self.users = Experts(source_dim, target_dim, config.experts, config.cutoff)
            self.items = Experts(source_dim, target_dim, config.experts, config.cutoff)
        self.modules = {"users": self.users.to(device), "items": self.items.to(device)}
        self.temperature = 1.0
        self._noise = noise_on(device)

    def start(self, epoch: Epoch, noise_seed: int) -> None:
        self.temperature = temperature(epoch.index, self.config)
        self._noise.manual_seed(noise_seed)

    def losses(self, kind: Kind, target: Tensor, source: Tensor, guide: Tensor | None = None) -> Tensor:
        experts = self.users if kind == "users" else self.items
        shares = experts.shares(target if guide is None else guide, self.temperature, self._noise)
        return losses.squared_distances(target, experts(source, shares))

    def both(self, entities: Entities, target: Vectors, source: Vectors, guide: Vectors | None = None) -> Vectors:
        if not self.config.draws_by_role:
            return super().both(entities, target, source, guide)
        users = self.losses("users", target.users, source.users, guide and guide.users)
        rows = (target.items, source.items) if guide is None else (target.items, source.items, guide.items)
        return Vectors(users, mean_of_two(partial(self.losses, "items"), entities.both_roles, *rows))


class PersonalHint(Hint):
    """PHR's: ``‖t - Θ(v) s‖²``, one network for users and items that turns the guide v into the mapping Θ, d_T x d_S."""

    def __init__(self, config: PersonalConfig, source_dim: int, target_dim: int, seed: int, device: torch.device):
        width = target_dim + target_dim * source_dim
        hidden = width // 2 if config.hidden == "half" else width
        with seeded(seed):
            self.first = nn.Linear(target_dim, hidden)
            self.second = nn.Linear(hidden, target_dim * source_dim)
        self.modules = {"first": self.first.to(device), "second": self.second.to(device)}
        self._linear = _bfloat16.linear if config.precision == "bf16" else F.linear

    def losses(self, kind: Kind, target: Tensor, source: Tensor, guide: Tensor | None = None) -> Tensor:
        first, second = self.first, self.second
        code = torch.relu(self._linear(target if guide is None else guide, first.weight, first.bias))
        mapping = self._linear(code, second.weight, second.bias).view(-1, target.shape[1], source.shape[1])
        rebuilt = torch.bmm(mapping, source.unsqueeze(-1)).squeeze(-1)
        return losses.squared_distances(target, rebuilt)


def make_hint(config: HintConfig, source_dim: int, target_dim: int, seed: int, device: torch.device) -> Hint:
    cls = ExpertHint if config.hint == "de" else PersonalHint
    return cls(config, source_dim, target_dim, seed, device)


class Neighbourhoods:
    """PHR's enriched teacher vectors: v_e = ½ (h_T(e) + mean of h_T over e's neighbours in the training data).

    An entity without neighbours keeps h_T(e). The means are computed once, the teacher being at rest: two sparse
    products and U + I vectors kept.
    """

    BLOCK = 1 << 14
    """Queries asked of the teacher at a time."""

    def __init__(self, teacher: Teacher, task: Task):
        seen, device = task.seen, task.device
        users = torch.arange(seen.shape[0], device=device)
        user_vectors = torch.cat([teacher.view(task.queries(rows)).queries for rows in users.split(self.BLOCK)])
        item_vectors = teacher.view(task.queries(users[:1])).items(torch.arange(task.n_items, device=device))
        self.users = _neighbour_means(seen, item_vectors)  # [U, d_T]
        self.items = _neighbour_means(seen.transpose(), user_vectors)  # [I, d_T]
        self._lonely_users = torch.from_numpy(seen.row_degrees == 0).to(device)
        self._lonely_items = torch.from_numpy(seen.column_degrees == 0).to(device)

    def enrich(self, entities: Entities, vectors: Vectors) -> Vectors:
        users, items = entities.queries.users, entities.items
        return Vectors(
            _halfway(vectors.users, self.users[users], self._lonely_users[users]),
            _halfway(vectors.items, self.items[items], self._lonely_items[items]),
        )


class BatchNeighbourhoods:
    """The same with those neighbours alone that are in the batch: a user's training items in I_B, an item's users in U_B."""

    def __init__(self, task: Task):
        self._seen = task.seen

    def enrich(self, entities: Entities, vectors: Vectors) -> Vectors:
        items = entities.items
        found = self._seen.pairs_of(numbers_of(entities.queries.users))
        rows, ids = (to_device(part, items.device) for part in found)
        places = torch.searchsorted(items, ids).clamp_(max=items.shape[0] - 1)
        met = items[places] == ids
        rows, places = rows[met], places[met]
        return Vectors(
            _met(vectors.users, vectors.items, rows, places), _met(vectors.items, vectors.users, places, rows)
        )


def _met(own: Tensor, others: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """½ (own_r + mean of others_p over the pairs (r, p)) for each row r of ``own``; rows without pairs as they are."""
    counts = counts_of(rows, own.shape[0]).unsqueeze(-1)
    sums = own.new_zeros(own.shape).index_add_(0, rows, others[places])
    return _halfway(own, sums / counts.clamp(min=1), counts.squeeze(-1) == 0)


def _halfway(own: Tensor, neighbours: Tensor, lonely: Tensor) -> Tensor:
    return torch.where(lonely.unsqueeze(-1), own, (own + neighbours) / 2)


def _neighbour_means(adjacency: Any, vectors: Tensor) -> Tensor:
    """Mean of the ``vectors`` of each row's columns; 0 for rows that have none."""
    degrees = np.maximum(adjacency.row_degrees, 1).astype(np.float32)
    indptr = torch.from_numpy(adjacency.indptr.astype(np.int64))  # a copy: the array itself may be read-only
    indices = torch.from_numpy(adjacency.indices.astype(np.int64))
    values = torch.from_numpy(1 / degrees[adjacency.row_of_pair])
    return sparse_csr(indptr, indices, values, adjacency.shape[1]).to(vectors.device) @ vectors


class TeacherHint:
    """A hint towards one frozen teacher, enriched by its neighbourhoods where the hint wants that."""

    def __init__(self, teacher: Teacher, task: Task, config: EntityConfig, hint: Hint, *, enrich: bool = True):
        self.teacher, self.hint = teacher, hint
        how = getattr(config, "enrich", "none") if enrich and isinstance(hint, PersonalHint) else "none"
        self.neighbourhoods: Neighbourhoods | BatchNeighbourhoods | None = None
        if how == "full" and "users" not in teacher.sides:
            raise MissingKnowledge(
                f"teacher {shown(teacher.name, 300)} has no vectors of users, which items are enriched with",
                "leave them as they are: the option enrich = none of phr; or let users be the mean of their items' vectors: "
                "kdrs teacher import --items-alone mean",
            )
        if how != "none" and not is_outline(task):
            self.neighbourhoods = Neighbourhoods(teacher, task) if how == "full" else BatchNeighbourhoods(task)

    def losses(self, entities: Entities, source: Vectors, target: Vectors | None = None) -> Vectors:
        """One loss an entity; ``target`` are the teacher's vectors where they are at hand."""
        target = entities.of_teacher(self.teacher) if target is None else target
        guide = None if self.neighbourhoods is None else self.neighbourhoods.enrich(entities, target)
        return self.hint.both(entities, target, source, guide)


class HintDistiller(Distiller):
    """A method that is one hint from one teacher."""

    config: EntityConfig

    def _use(self, teacher: Teacher, hint: Hint) -> None:
        self._hint = TeacherHint(teacher, self.task, self.config, hint)
        for name, module in hint.modules.items():
            self.add_module(name, module)

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        self._hint.hint.start(epoch, self.noise_stream(epoch))

    def loss(self, student: View, batch: Batch) -> Tensor:
        entities = Entities(batch, self.task, self._hint.teacher.sides)
        losses = self._hint.losses(entities, entities.of_student(student))
        return entities.sum(losses, self.config.item_share)


def assistant_dims(
    teacher_dim: int, student_dim: int, assistants: int, *, none: str = "assistants = 0"
) -> tuple[int, ...]:
    """Sizes of the assistants between student and teacher, ascending (HyperKDMA, equation 20).

    ``d_k = ⌊d_S + k (d_T - d_S) / (m + 1)⌋`` for k = 1 to m, in integers. Small gaps give fewer: sizes that repeat, or that
    are the student's own, are left out. Raises ``ConfigError`` where no size lies between; ``none`` are the options
    that do without assistants.
    """
    if assistants < 0:
        raise ConfigError(f"assistants is {assistants}", "allowed: 0 or more")
    steps = assistants + 1
    dims = {(student_dim * steps + k * (teacher_dim - student_dim)) // steps for k in range(1, steps)}
    between = tuple(sorted(dim for dim in dims if student_dim < dim < teacher_dim))
    if assistants and not between:
        raise ConfigError(
            f"no assistant fits between a teacher of {teacher_dim} and a student of {student_dim} dimensions",
            f"take a larger teacher, a smaller student, or {none}",
        )
    return between


def require_assistants(teacher_dim: int, dims: Sequence[int]) -> None:
    """Refuses assistants that are larger than their teacher."""
    if dims and max(dims) > teacher_dim:
        raise ConfigError(
            f"an assistant has {max(dims)} dimensions, the teacher {teacher_dim}",
            "name the teacher first, then its assistants, none larger than it",
        )


class Group(nn.Module):
    """Modules by name; `nn.ModuleDict` refuses names such as ``items``."""

    def __init__(self, modules: Mapping[str, nn.Module]):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def modules_of(hints: Sequence[Hint]) -> nn.ModuleList:
    """The modules of hints, for their owner to register."""
    return nn.ModuleList(Group(hint.modules) for hint in hints)


def noise_seed(seed: int, epoch: Epoch, index: int) -> int:
    """A seed for the noise of the hint towards source number ``index``; the first one's is that of a single hint."""
    return stream(seed, "noise", epoch.index) if index == 0 else stream(seed, "noise", index, epoch.index)


def init_seed(seed: int, index: int) -> int:
    """A seed for the initial values of the hint of that number."""
    return stream(seed, "init") if index == 0 else stream(seed, "init", index)
