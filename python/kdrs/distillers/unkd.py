"""Unbiased knowledge distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdrs.core import ranking, sampling
from kdrs.core.codes import Codes
from kdrs.data.interactions import Interactions
from kdrs.distillers.base import Distiller, only
from kdrs.settings import Settings
from kdrs.teachers.base import Teacher, owners_of, row_blocks
from kdrs.training.queries import Batch, Epoch, Task
from kdrs.training.view import View


class UnKDConfig(Settings):
    groups: int = Field(4, ge=1)
    """Popularity groups aimed at; the walk over the items can end with another number."""
    pairs: int = Field(30, ge=1)
    """Pairs of items drawn for each user and epoch, over all groups."""
    group_power: float = Field(0.0, ge=0, le=100)
    """λ: a group's share of the pairs is its ratio to this power; 0 makes them equal. Unpopular groups have high ratios."""
    draw_temperature: float = Field(20.0, ge=0.2, le=1e6)
    """μ of the draw: weight of rank r within the group is exp(-r / μ), the flatter the higher. Below 0.2 two draws hardly ever
    differ."""
    pool: int = Field(200, ge=2)
    """Length of each user's list in a group. The authors keep 1000; 200 change a draw with probability 4.5e-5."""
    reduction: Literal["sum", "mean", "paper"] = "sum"
    """``sum``: mean over the user's pairs, summed over batch rows as base losses are here. ``mean``: mean over the rows too,
    the authors' code, whose base loss is a mean. ``paper``: sum over pairs, mean over the batch's distinct users. Beside a base
    loss that is a sum the last two count a batch's rows (users) times less: give the term that much more weight."""


class UnKD(Distiller):
    """Unbiased knowledge distillation (Chen, Chen, Feng, Zhou & He, WSDM 2023).

        L = Σ_rows (1/|P_u|) Σ_{(i,j)∈P_u} -log σ(s_ui - s_uj)
        P_u: pairs within groups of like popularity, i above j in the teacher's ranking,
        places drawn with p ∝ exp(-rank / μ)

    Items are parted by popularity into groups of about equal numbers of interactions. For each user and group, pairs of unseen
    items are drawn by the teacher's rank within the group, p ∝ exp(-rank / μ); the student should score the better one
    higher: ``Σ -log σ(s_ui+ - s_ui-)``. No teacher value enters but through the draws, so that whatever raises a whole group's
    scores changes nothing. Items that nobody has seen in training are in no group; a group with fewer than two unseen items is
    left out for that user.

    Differs from the authors' code: see ``reduction``; equally popular items go by id, where it goes by first appearance; it
    fails when the groups become fewer than planned, and does not end where a group has one candidate.
    """

    Config = UnKDConfig
    config: UnKDConfig
    purpose = "keep the teacher's order among items of like popularity, without its popularity bias"
    reference = "Chen, Chen, Feng, Zhou & He, Unbiased knowledge distillation for recommendation, WSDM 2023"
    needs = "scores of any item"
    default_weight = 1.0

    def __init__(self, config: UnKDConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        teacher = only(teachers)
        teacher.check_scores()
        self._pairs: Tensor | None = None
        if self.outlined:
            return
        popularity = task.seen.column_degrees
        self.groups = popularity_groups(popularity, config.groups)
        self.counts = pairs_of_groups(
            [popularity[group].mean() for group in self.groups], config.pairs, config.group_power
        )
        self.lists = [  # each [Q, C]: a group's unseen items by the teacher's score
            group_lists(teacher, task, group, config.pool) for group in self.groups
        ]

    def draw(self, epoch: Epoch) -> Tensor:
        """int64 [Q, P, 2]: the better and the worse item of each pair; -1 where there is no pair."""
        rng, parts = np.random.default_rng(self.stream(epoch, "pairs")), []
        for lists, count in zip(self.lists, self.counts, strict=True):
            lengths = (lists >= 0).sum(axis=1)
            places = draw_places(lengths, count, self.config.draw_temperature, rng)  # [Q, n, 2]
            rows = np.arange(lists.shape[0])[:, None, None]
            parts.append(np.where(places >= 0, lists[rows, np.maximum(places, 0)], -1))
        return torch.from_numpy(np.concatenate(parts, axis=1)).long().to(self.task.device)

    def on_epoch_start(self, epoch: Epoch, samples: Tensor, student: Teacher) -> None:
        self._pairs = samples

    def loss(self, student: View, batch: Batch) -> Tensor:
        assert self._pairs is not None
        asked = batch.unique_queries
        pairs = self._pairs[asked.ids]  # [E, P, 2]
        scores = student.pairs(asked.first.unsqueeze(1), pairs.clamp(min=0).flatten(1)).view(pairs.shape)
        present = pairs[..., 0] >= 0
        losses = F.softplus(scores[..., 1] - scores[..., 0]).masked_fill(~present, 0.0).sum(-1)  # [E]
        if self.config.reduction == "paper":
            return losses.mean()
        losses = losses / present.sum(-1).clamp(min=1)
        times = torch.bincount(torch.searchsorted(asked.ids, batch.queries.rows), minlength=asked.ids.shape[0])
        total = (times * losses).sum()
        return total / len(batch.queries) if self.config.reduction == "mean" else total


def popularity_groups(popularity: np.ndarray, planned: int) -> list[np.ndarray]:
    """Items that were seen, parted into runs of about total / planned interactions, most popular first (ties by id).

    A group closes before the item that would carry it past that number. What is left at the end is a group if it holds more
    than half of it, else it joins the last.
    """
    order = np.argsort(-popularity, kind="stable")
    order = order[popularity[order] > 0]
    counts = popularity[order].astype(np.int64)
    target = counts.sum() / planned
    starts, running = [0], 0
    for place, count in enumerate(counts.tolist()):
        if running and running + count > target:
            starts.append(place)
            running = 0
        running += count
    if len(starts) > 1 and running <= target / 2:
        starts.pop()
    return np.split(order, starts[1:])


def pairs_of_groups(mean_popularity: Sequence[float], pairs: int, power: float) -> list[int]:
    """How many pairs each group gets: round(pairs · share), one more for the first groups if that falls short."""
    means = np.asarray(mean_popularity, float)
    ratios = means.max() + means.min() - means
    ratios = np.maximum(np.round(ratios / ratios.sum(), 2), 0.1) ** power
    counts = np.round(pairs * ratios / ratios.sum()).astype(int)
    counts[: max(0, pairs - int(counts.sum()))] += 1
    return [int(count) for count in counts]


def group_lists(teacher: Teacher, task: Task, group: np.ndarray, length: int) -> np.ndarray:
    """int32 [Q, C]: the best ``length`` of a group's items for each query, by the teacher, without what it has seen."""
    place = np.full(task.n_items, -1, np.int64)
    group = np.sort(group)  # ties go to the lower id
    place[group] = np.arange(group.size)
    inside = place[task.seen.indices] >= 0
    seen = Interactions.from_pairs(
        task.seen.row_of_pair[inside], place[task.seen.indices[inside]], task.seen.shape[0], group.size
    )
    factors, length = teacher.factors(), min(length, group.size)
    if factors is not None and task.owners is None:
        columns, own, bias = torch.from_numpy(group), factors.items, factors.bias
        bias = None if bias is None else bias[columns.to(bias.device)]
        items = own[group] if isinstance(own, Codes) else own[columns.to(own.device)]
        rows = owners_of(task, np.arange(task.n_queries))
        found = [ranking.topk(factors.queries, items, length, seen=seen, rows=rows, bias=bias).items]
    else:
        found = [
            ranking.topk_scores(
                teacher.score_block(rows)[:, torch.from_numpy(group)], length, seen=seen, rows=owners_of(task, rows)
            ).items
            for rows in row_blocks(task.n_queries, task.n_items)
        ]
    places = np.concatenate([sampling.numpy_of(part) for part in found])
    return np.where(places >= 0, group[np.maximum(places, 0)], -1).astype(np.int32)


def draw_places(lengths: np.ndarray, count: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """int64 [Q, n, 2]: two different places, the smaller first, each drawn from a list of the given length with weights
    exp(-place / scale); -1 for lists of fewer than two."""
    n = np.repeat(lengths[:, None], count, axis=1)[..., None].repeat(2, axis=2)
    places = np.full(n.shape, -1, np.int64)
    open_pairs = (n[..., 0] >= 2).reshape(-1)
    flat, lengths_of = places.reshape(-1, 2), n.reshape(-1, 2)
    which = np.flatnonzero(open_pairs)
    q = np.exp(-1.0 / scale)
    while which.size:  # both places anew where they are one: the law of pairs that differ
        length = lengths_of[which]
        x = rng.random(length.shape)
        drawn = np.floor(np.log1p(-x * (1 - q**length)) / np.log(q)).astype(np.int64)
        flat[which] = np.sort(np.minimum(drawn, length - 1), axis=1)
        which = which[flat[which, 0] == flat[which, 1]]
    return places
