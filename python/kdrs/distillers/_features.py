"""Parts of the methods that rebuild the teacher's representations: projectors, and the entities of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrs.core import kernels
from kdrs.teachers.base import Teacher
from kdrs.training.queries import Batch, Task
from kdrs.training.view import View

Kind = Literal["users", "items"]


class Projector(nn.Module):
    """Mean of E networks Linear-ReLU-Linear from the student's space to the teacher's.

    ``dropout`` zeroes inputs of either layer, for each network by itself, by the generator that ``forward`` is given.
    """

    def __init__(self, source_dim: int, target_dim: int, hidden: int, n_experts: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.weight1, self.bias1 = _linear(n_experts, source_dim, hidden)
        self.weight2, self.bias2 = _linear(n_experts, hidden, target_dim)

    def forward(
        self, source: Tensor, noise: torch.Generator | None = None, combine: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """float32 [X, d_S] -> [X, d_T], or what ``combine``, a linear map of rows, makes of it: as cheap as its result is
        short, since it is applied before the second layers, with which it commutes."""
        n_experts, source_dim, hidden = self.weight1.shape
        out_dim, bias = self.weight2.shape[-1], self.bias2.mean(dim=0)
        share = 0.0 if noise is None else self.dropout
        if not share and combine is None:
            first = self.weight1.transpose(0, 1).reshape(source_dim, -1)
            layer = torch.addmm(self.bias1.view(-1), source, first).relu()  # [X, E H]
            # the sum of all second layers is one product
            return layer @ self.weight2.reshape(n_experts * hidden, out_dim) / n_experts + bias
        drop = partial(kernels.dropout, share=share, noise=noise)
        out: Tensor | None = None
        for m in range(n_experts):
            layer = torch.addmm(self.bias1[m], drop(source), self.weight1[m])
            layer = drop(layer, relu=True)
            layer = layer if combine is None else combine(layer)
            out = layer @ self.weight2[m] if out is None else torch.addmm(out, layer, self.weight2[m])
        assert out is not None
        ones = 1.0 if combine is None else combine(source.new_ones(source.shape[0], 1))
        return out / n_experts + ones * bias


def _linear(n_experts: int, fan_in: int, fan_out: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights [E, in, out] and biases [E, out], uniform in ±1/√in."""
    bound = 1.0 / math.sqrt(fan_in)
    return tuple(  # type: ignore[return-value]
        nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        for shape in ((n_experts, fan_in, fan_out), (n_experts, fan_out))
    )


def cosine_losses(target: Tensor, rebuilt: Tensor) -> Tensor:
    """1 - cos of each pair of rows; the cosine with a vector of length 0 is 0."""
    return 1.0 - (F.normalize(target, dim=-1, eps=1e-12) * F.normalize(rebuilt, dim=-1, eps=1e-12)).sum(-1)


def vectors(view: View, task: Task, kind: Kind, ids: Tensor) -> Tensor:
    """Representations of users or items by id, [...] -> [..., D], out of the view's forward state."""
    if kind == "items":
        return view.items(ids)
    queries: Tensor = view.at(task.queries(ids.reshape(-1))).queries
    return queries.view(*ids.shape, queries.shape[-1])


def all_vectors(teacher: Teacher, task: Task, kind: Kind) -> Tensor:
    """A teacher's whole table, float32 [U, D] or [I, D], without gradient."""
    ids = torch.arange(task.n_users if kind == "users" else task.n_items, device=task.device)
    return vectors(teacher.view(task.queries(ids[:1])), task, kind, ids)


class Side(NamedTuple):
    """The distinct users or items of a batch."""

    kind: Kind
    ids: Tensor
    """int64 [X]"""
    student: Tensor
    """float32 [X, d_S]"""
    teacher: Tensor
    """float32 [X, d_T]"""
    weights: Tensor
    """float32 [X]: 1 for users, ½ for each role, positive and negative, of an item."""


def sides(student: View, teacher: View, batch: Batch, kinds: Sequence[str] = ("users", "items")) -> tuple[Side, ...]:
    """The batch's users and items as both sides represent them; ``teacher`` is a view of its distinct queries. Items alone
    where ``kinds`` has no users."""
    asked, (items, roles) = batch.unique_queries, batch.item_roles
    of_items = Side("items", items, student.items(items), teacher.items(items), roles / 2)
    if "users" not in kinds:
        return (of_items,)
    users = Side(
        "users",
        batch.queries.users[asked.first],
        student.queries[asked.first],
        teacher.queries,
        roles.new_ones(len(asked.ids)),
    )
    return users, of_items
