"""Frequency-aware feature distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdrs.core import ranking
from kdrs.core.kernels import propagate, sparse_csr
from kdrs.core.sampling import stream
from kdrs.data.interactions import Interactions
from kdrs.distillers._features import Kind, Projector, cosine_losses, vectors
from kdrs.distillers.base import Distiller, distinct, noise_on, only, seeded
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher, row_blocks
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View


class FreqDConfig(Settings):
    strength: float = Field(0.5, ge=0, le=1)
    """a: the filter passes the frequency λ with 1 - a λ. At 0 this is plain feature distillation."""
    neighbours: int = Field(5, ge=1)
    """Others that share most interactions with an entity, to which it is linked: K."""
    keep: float = Field(0.5, gt=0, le=1)
    """Share of the graph's entries that are kept in a batch, scaled up by its inverse; 1 leaves the filter as it is."""
    cosine: bool = True
    """Whether the error is 1 - cos, or else the squared distance."""
    experts: int = Field(5, ge=1)
    """Networks whose mean is the projector."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout before either layer of the projector."""


class FreqD(Distiller):
    """Frequency-aware feature distillation (Zhu & Zhang, KDD 2025).

        L = ℓ(U) + ½ [ℓ(P) + ℓ(N)]
        ℓ = Σ_e [1 - cos((H T)_e, (H F(S))_e)]    or Σ_e ‖(H T)_e - (H F(S))_e‖²
        H = (1 - a) I + a D^-½ A D^-½

    The error between the teacher's representations and the student's, projected, is weighed towards low frequencies by a graph
    filter H = (1 - a) I + a A: ``Σ_e 1 - cos((H T)_e, (H F(S))_e)``, or squared distances, over the batch's distinct users,
    plus half of that over its positives and half over its negatives. A links each user (item) with the K others that share most
    items (users) with it, symmetric and normalised by degrees; each of the three sums drops entries of its own, the same for
    teacher and student. F is the mean of E networks Linear(d_S, d_T)-ReLU-Linear(d_T, d_T) with dropout.

    Follows the authors' public code (its head). Differs from it: only the rows that a batch needs are filtered; an entity is
    left out of its own links by its id, and links need a shared interaction (it drops the first of the sorted list and fills up
    with arbitrary ids); LightGCN's student is read after propagation, as every model is here, where it reads the raw table.
    """

    Config = FreqDConfig
    config: FreqDConfig
    purpose = "rebuild the teacher's representations, slow changes over the interaction graph first"
    reference = "Zhu & Zhang, Exploring feature-based KD for recommender system: a frequency perspective, KDD 2025"
    needs = "user and item representations"
    default_weight = 0.5

    def __init__(self, config: FreqDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        self.teacher = only(teachers)
        target_dim = self.teacher.dim
        with seeded(stream(seed, "init")):
            self.users, self.items = (
                Projector(student_dim, target_dim, target_dim, config.experts, config.dropout) for _ in range(2)
            )
        self.to(task.device)
        self._noise = noise_on(task.device)
        if self.outlined:
            return
        self.graphs: dict[Kind, Graph] = {
            "users": Graph(shared_graph(task.seen, config.neighbours), task.device),
            "items": Graph(shared_graph(task.seen.transpose(), config.neighbours), task.device),
        }

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        self._noise.manual_seed(self.stream(epoch, "noise"))

    def loss(self, student: View, batch: Batch) -> Tensor:
        teacher = self.teacher.view(self.task.queries(batch.unique_queries.ids))
        users = distinct(batch.queries.users, self.task.n_users)
        positives, negatives = (distinct(ids, self.task.n_items) for ids in (batch.positives, batch.negatives))
        of_users = self._loss(student, teacher, "users", users) if "users" in self.teacher.sides else None
        of_items = [self._loss(student, teacher, "items", ids) for ids in (positives, negatives)]
        own = (of_items[0] + of_items[1]) / 2
        return own if of_users is None else of_users + own

    def _loss(self, student: View, teacher: View, kind: Kind, ids: Tensor) -> Tensor:
        low_pass = self.graphs[kind].low_pass(ids, self.config.strength, self.config.keep, self._noise)
        projector = self.users if kind == "users" else self.items
        target = low_pass(vectors(teacher, self.task, kind, low_pass.needed))
        rebuilt = projector(vectors(student, self.task, kind, low_pass.needed), self._noise, low_pass)
        if self.config.cosine:
            return cosine_losses(target, rebuilt).sum()
        return (target - rebuilt).square().sum()


class LowPass(NamedTuple):
    """Some rows of the filter (1 - a) I + a A, over those entities that they need."""

    needed: Tensor
    """int64 [M], ascending"""
    matrix: Tensor
    """Sparse CSR [X, M]"""
    transposed: Tensor

    def __call__(self, table: Tensor) -> Tensor:
        """Vectors of the needed entities [M, D] -> filtered ones of the X asked for [X, D]."""
        return propagate(self.matrix, table, self.transposed)


class Graph:
    """A sparse matrix of which a few rows are asked for at a time."""

    def __init__(self, matrix: scipy.sparse.csr_array, device: torch.device):
        self.size = matrix.shape[0]
        self._indptr, self._columns, self._values = (
            torch.from_numpy(part).to(device)
            for part in (
                matrix.indptr.astype(np.int64),
                matrix.indices.astype(np.int64),
                matrix.data.astype(np.float32),
            )
        )

    def rows(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Entries of rows int64 [X], row after row: where each row begins, int64 [X], columns int64 [E], values float32 [E]."""
        first, lengths = self._indptr[ids], self._indptr[ids + 1] - self._indptr[ids]
        starts = lengths.cumsum(0) - lengths
        places = torch.repeat_interleave(first - starts, lengths)
        places += torch.arange(places.shape[0], device=places.device)
        return starts, self._columns[places], self._values[places]

    def low_pass(
        self, ids: Tensor, strength: float, keep: float = 1.0, noise: torch.Generator | None = None
    ) -> LowPass:
        """The filter's rows of the distinct ``ids``, int64 [X]; each entry of the graph is kept with the probability ``keep``,
        by ``noise``, and scaled up by its inverse."""
        starts, linked, values = self.rows(ids)
        own = torch.arange(ids.shape[0], device=ids.device)
        rows = torch.repeat_interleave(own, starts.diff(append=starts.new_tensor([linked.shape[0]])))
        if keep < 1:
            kept = torch.rand(values.shape, generator=noise, device=values.device) < keep
            rows, linked, values = rows[kept], linked[kept], values[kept] / keep
        if not strength:
            rows, linked, values = rows[:0], linked[:0], values[:0]
        both = torch.cat([ids, linked])
        needed = distinct(both, self.size)
        rows, columns = torch.cat([own, rows]), torch.searchsorted(needed, both)
        weights = torch.cat([values.new_full(own.shape, 1 - strength), strength * values])
        return LowPass(
            needed,
            _csr(rows, columns, weights, ids.shape[0], needed.shape[0]),
            _csr(columns, rows, weights, needed.shape[0], ids.shape[0]),
        )


def _csr(rows: Tensor, columns: Tensor, values: Tensor, n_rows: int, n_columns: int) -> Tensor:
    order = torch.argsort(rows, stable=True)
    indptr = F.pad(torch.bincount(rows, minlength=n_rows).cumsum(0), (1, 0))
    return sparse_csr(indptr, columns[order], values[order], n_columns)


def shared_graph(seen: Interactions, count: int) -> scipy.sparse.csr_array:
    """Rows of ``seen`` linked with the ``count`` others that share most columns with them (ties by id), then made symmetric,
    (B + Bᵀ) / 2, and normalised, D^-1/2 A D^-1/2; float64 [N, N]."""
    matrix, n = seen.to_csr(), seen.shape[0]
    transposed = matrix.T.tocsr()
    linked = np.full((n, min(count, n)), -1, np.int32)
    for rows in row_blocks(n, n):
        shared = np.asarray((matrix[rows] @ transposed).todense(), np.float32)
        shared[np.arange(rows.size), rows] = 0
        found = ranking.topk_scores(shared, linked.shape[1])
        linked[rows] = np.where(found.scores > 0, found.items, -1)
    row, place = np.nonzero(linked >= 0)
    links: Any = scipy.sparse.csr_array((np.ones(row.size), (row, linked[row, place])), shape=(n, n))
    links = (links + links.T) / 2
    degrees: np.ndarray = np.asarray(links.sum(axis=1)).ravel()
    scale = scipy.sparse.diags_array(1 / np.sqrt(np.where(degrees > 0, degrees, 1.0)))
    return scipy.sparse.csr_array(scale @ links @ scale)
