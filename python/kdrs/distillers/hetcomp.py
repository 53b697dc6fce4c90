"""Heterogeneous model compression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdrs.core import sampling
from kdrs.distillers.base import Distiller, count_alike
from kdrs.distillers.dcd import item_ranks
from kdrs.errors import ConfigError, MissingKnowledge
from kdrs.settings import Settings
from kdrs.teachers.base import Stage, Teacher
from kdrs.training import losses
from kdrs.training.devices import counts_of, numbers_of, to_device
from kdrs.training.queries import Batch, Epoch, Queries, Task, Unique
from kdrs.training.view import View

LISTED = 100
"""Items of a permutation that count; exp(-rho / 10) is taken as 0 behind them."""
DEPTH = 50
"""Places that the discrepancy compares."""
BLOCK_FLOATS = 1 << 26
"""Scores of a block of users, in numbers."""
CLAMP = 40.0
"""Student scores are held within this."""


class HetCompConfig(Settings):
    target: int = Field(100, ge=1)
    """Unobserved items that the ensemble's list holds for each user: K; at most 100 for each teacher."""
    states: int = Field(4, ge=1)
    """States taken from each teacher's trajectory, the converged one last: E."""
    choose: Literal["quarters", "first"] = "quarters"
    """Which stages: nearest to (e + 1) / E of the epochs up to the best, ties to the earlier, or the first E that were
    saved (KDs)."""
    every: int = Field(10, ge=1)
    """Epochs between looks at the student's progress: p. A look is taken after each epoch whose number it divides."""
    alpha: float = Field(1.05, gt=0)
    """Start of the threshold α · 0.995^(epoch / p) that a user's progress must pass."""
    dkc_gain: Literal["rank", "position"] = "rank"
    """Gain of a hit in the discrepancy: by its rank in the teacher's list (paper), or by the student's position (code)."""
    advance_if_receding: bool = True
    """Advance also where the student moves away from the next state (released code), so that every user arrives."""
    importance: Literal["exp", "ccd"] = "exp"
    """Importance of rank ρ (from 0) in a permutation: exp(-ρ / 10), or (1 / (ρ + 1))^0.05. Items past the 100th have none."""
    consistency: int = Field(0, ge=0)
    """Add the stability exp(-s / 100) to each importance, s being the standard deviation of the item's rank over so many
    saved stages up to the state: ConCF's rule, which takes 5. 0: without."""
    observed: Literal["ensemble", "stored"] = "ensemble"
    """Training items of a user that are ranked too: the ensemble's best ones, or the first by id, which is the stored order of
    CiteULike (KDs)."""
    observed_items: Annotated[int, Field(ge=1)] | Literal["fewest"] = 10
    """How many; ``fewest``: as many as the user with fewest has (KDs)."""
    fine: Literal["submitted", "released"] = "submitted"
    """Form of the second stage's loss: one list of K (paper), or lists of K/2 and K/10 (released code)."""
    overall_weight: float = Field(0.01, ge=0)
    """Weight of the first stage's loss, on top of the term's."""
    fine_weight: float = Field(0.005, ge=0)
    """Weight of the second stage's loss, on top of the term's."""
    stage: Literal["all", "rounded", "user"] = "all"
    """Go over to the second stage when all users have arrived at all final states; when their mean states, each rounded to
    two decimals, are the final ones (code); or each user when it has."""
    background: int | None = Field(None, ge=1)
    """Estimate the sum over lower-ranked items from so many uniform draws a user and epoch; None: exact."""
    base: bool = False
    """Keep the model's own loss beside the method's (KDs); the paper trains by the method alone."""
    unique_queries: bool = True
    """Count each query once a batch. Otherwise once a training row (KDs)."""
    restart_patience: bool = True
    """Early stopping counts anew when the second stage begins."""


class HetComp(Distiller):
    """HetComp (Kang et al., Distillation from heterogeneous models for top-K recommendation, WWW 2023).

        L   = overall_weight · L_O, then fine_weight · L_R
        L_O = Σ_u Σ_{k ∈ observed ∪ target} [log(exp s_k + Σ_{j lower} exp s_j) - s_k]
        L_R = RR(observed; lower) + RR(target; lower)
        RR  = Σ_k [log(Σ_{m≥k} exp s_m + Σ_{j lower} exp s_j) - s_k]

    The student is fed an easy-to-hard sequence of rankings out of its teachers' training trajectories. For every user and
    teacher one state v counts; a user's target list is the first K unseen items by the sum over teachers of the items'
    importance exp(-ρ / 10) at those states. Every ``every`` epochs (from the one of that number on), v advances where the
    student's discrepancy D = 1 - NDCG@50 to the next state has fallen by the factor α · 0.995^(epoch / p) since v last moved
    (dynamic knowledge construction). The loss goes from coarse to fine (adaptive knowledge transfer): L_O, of observed and
    target items k against unseen items j outside the target, until all states are final; then L_R.

    Weighted 0.01 and 0.005 as in the code; there is no other base loss unless ``base``. Scores are held in [-40, 40].
    Only permutations of 100 items a state are kept, int32 [M, E, U, 100]; the sums over the catalogue are exact, a part of
    the scores at a time. Differs from the code: masked log-sum-exp where the code subtracts sums; seen items cannot be
    targets; ties by item id; D = 0 counts as arrived. How trajectories, importances and observed lists were made is not in
    the code: states nearest to the best epoch's quarters, the group's ConCF rule and the teachers' final states stand here.
    """

    Config = HetCompConfig
    config: HetCompConfig
    purpose = "compress an ensemble of different teachers, along their training trajectories, from easy to hard"
    reference = "Kang et al., Distillation from heterogeneous models for top-K recommendation, WWW 2023"
    needs = "saved stages of each teacher (`train.stages_every`, or a folder of teacher files), and scores; one or more"
    default_weight = 1.0

    v: Tensor
    last: Tensor
    targets: Tensor
    fine: Tensor

    def __init__(self, config: HetCompConfig, teachers: Sequence[Teacher], task: Task, student_dim: int, seed: int = 0):
        super().__init__(config, teachers, task, student_dim, seed)
        if not teachers:
            raise ConfigError("got no teachers", "give one or several, each with saved stages")
        if config.consistency and config.importance != "exp":
            raise ConfigError(
                f"consistency is {config.consistency} with importance = {config.importance!r}",
                'it belongs to importance = "exp"; leave one of the two out',
            )
        if config.target > LISTED * len(teachers):
            raise ConfigError(
                f"target is {config.target} with {len(teachers)} teacher(s), of whose lists {LISTED} items count",
                f"allowed: 1 to {LISTED * len(teachers)}",
            )
        if not config.overall_weight and not config.fine_weight:
            raise ConfigError("nothing has a weight: overall_weight and fine_weight are 0", "give one a weight above 0")
        self.replaces_base = not config.base
        trajectories = [list(teacher.stages()) for teacher in teachers]
        chosen = [choose_stages(*pair, config) for pair in zip(teachers, trajectories, strict=True)]
        if config.target >= (unseen := task.n_items - int(task.seen.row_degrees.min())):
            raise ConfigError(
                f"target is {config.target}, and no user has more than {unseen} unseen items: none is left below",
                f"allowed: 1 to {unseen - 1}",
            )
        listed = min(LISTED, task.n_items)
        for teacher, stages, states in zip(teachers, trajectories, chosen, strict=True):
            if states[-1] is stages[-1]:  # earlier ones are asked when they are loaded
                teacher.check_lists(listed)
                count_alike(teacher, "hetcomp")
                if config.observed == "ensemble":
                    check_ranked(teacher)
        if self.outlined:
            return
        users = np.arange(task.n_users)
        self.lists = np.full((len(teachers), config.states, task.n_users, listed), -1, np.int32)
        self.stability = np.zeros(self.lists.shape if config.consistency else (0,), np.float32)
        ranks = []
        for m, stages in enumerate(chosen):
            for e, stage in enumerate(stages):
                state = stage.load()
                found = np.asarray(state.topk(listed).items)[users]
                self.lists[m, e, :, : found.shape[1]] = found
                if config.consistency:
                    self.stability[m, e] = stability(trajectories[m], stage, self.lists[m, e], config.consistency)
                if e == config.states - 1 and config.observed == "ensemble":
                    ranks.append(ranks_of_seen(state, task))
        device = task.device
        count = config.observed_items
        if count == "fewest":
            degrees = task.seen.row_degrees
            count = int(degrees[degrees > 0].min())
        # in order of rank, so that the sum is the same whichever teachers the ranks are of
        observed = np.exp(-np.sort(ranks, axis=0) / 10).sum(axis=0) if ranks else np.zeros(task.seen.n_pairs)
        self._observed = to_device(best_seen(task, observed, count), device)  # [U, O]
        self.register_buffer("v", torch.zeros(len(teachers), task.n_users, dtype=torch.int64))
        self.register_buffer("last", torch.full((len(teachers), task.n_users), -1.0, dtype=torch.float64))
        self.register_buffer("targets", torch.full((task.n_users, config.target), -1, dtype=torch.int32))
        self.register_buffer("fine", torch.zeros(task.n_users, dtype=torch.bool))
        self._drawn: Tensor | None = None
        seen = task.seen
        self._starts, self._counts, self._items = (
            torch.from_numpy(np.array(part)).to(device) for part in (seen.indptr[:-1], seen.row_degrees, seen.indices)
        )
        self._build()
        self.to(device)

    def on_epoch_start(self, epoch: Epoch, samples: Any, student: Teacher) -> None:
        ended, before = epoch.index - 1, self.fine.clone()
        if ended >= self.config.every and ended % self.config.every == 0 and not bool(self.fine.all()):
            self._advance(ended, student)
            self._build()
        self._fine_host = self.fine.cpu().numpy()
        changed = not torch.equal(before, self.fine)
        self.restarts_patience = self.config.restart_patience and changed and bool(self.fine.all())
        if self.config.background is not None:
            rows, taken = np.arange(self.task.n_users), self.targets.cpu().numpy()
            seed = self.stream(epoch, "background")
            drawn = sampling.outside(self.task.seen, taken, self.config.background, seed=seed, rows=rows)
            self._drawn = to_device(drawn, self.task.device)

    def loss(self, student: View, batch: Batch) -> Tensor:
        unique = batch.unique_queries
        users = batch.queries.users[unique.first]
        counts = torch.ones_like(users, dtype=torch.float32)
        if not self.config.unique_queries:
            counts = counts_of(torch.searchsorted(unique.ids, batch.queries.rows), unique.ids.shape[0]).float()
        observed, targets = self._observed[users], self.targets[users].long()
        ids = torch.cat([observed, targets], dim=1)
        scores = student.pairs(unique.first.unsqueeze(1), ids.clamp(min=0)).clamp(-CLAMP, CLAMP)
        own, listed = scores.split([observed.shape[1], targets.shape[1]], dim=1)
        known, filled = observed >= 0, targets >= 0
        below = self._below(student, batch, unique.first, users, targets).unsqueeze(1)  # [E, 1]
        fine, coarse = self._by_stage(batch, unique, users)
        total = torch.zeros((), device=users.device)
        if coarse.numel():
            terms = torch.logaddexp(scores, below) - scores
            per_user = terms.masked_fill(~torch.cat([known, filled], dim=1), 0.0).sum(1)
            total = total + self.config.overall_weight * (per_user * counts)[coarse].sum()
        if fine.numel():
            per_user = self._order(own, known, listed, filled, below)
            total = total + self.config.fine_weight * (per_user * counts)[fine].sum()
        return total

    def _by_stage(self, batch: Batch, unique: Unique, users: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the users at their final states and of the others, int64."""
        own = self._fine_host[numbers_of(batch.queries.users)[numbers_of(unique.first)]]
        return to_device(np.flatnonzero(own), users.device), to_device(np.flatnonzero(~own), users.device)

    def _order(self, own: Tensor, known: Tensor, listed: Tensor, filled: Tensor, below: Tensor) -> Tensor:
        """L_R a user, float32 [E]."""
        ranking = losses.relaxed_ranking
        if self.config.fine == "submitted":
            return ranking(own, below, known) + ranking(listed, below, filled)
        size = self.config.target
        half, tenth = max(size // 2, 1), max(size // 10, 1)
        hidden = listed.masked_fill(~filled, torch.finfo(listed.dtype).min)

        def outside(first: int) -> Tensor:  # the unseen items that are not among the first ones
            return torch.cat([hidden[:, first:], below], dim=1).logsumexp(1, keepdim=True)

        return ranking(own, outside(half), known) + 0.5 * (
            ranking(listed[:, :half], outside(half), filled[:, :half])
            + ranking(listed[:, :tenth], outside(tenth), filled[:, :tenth])
        )

    def _below(self, student: View, batch: Batch, first: Tensor, users: Tensor, targets: Tensor) -> Tensor:
        """log Σ exp s over the unseen items outside the target, float32 [E]."""
        if self._drawn is not None:
            drawn = self._drawn[users]
            scores = student.pairs(first.unsqueeze(1), drawn.clamp(min=0)).clamp(-CLAMP, CLAMP)
            known = drawn >= 0
            sums = scores.masked_fill(~known, torch.finfo(scores.dtype).min).logsumexp(1)
            left = self.task.n_items - self._counts[users] - (targets >= 0).sum(1)
            return sums + torch.log(left / known.sum(1).clamp(min=1))
        asked = batch.queries
        if (factors := student.factored()) is not None:
            own, items, bias = factors
            return losses.logsumexp_products(own[first], items, bias, hidden=self._hidden(users, targets), bound=CLAMP)
        size = max(1, BLOCK_FLOATS // self.task.n_items)
        if first.shape[0] <= size:
            return _sums(student, asked.at(first), *self._hidden(users, targets))
        # what all views share is made here: made within a block, its second pass would not find it again
        _ = student.at(asked.at(first[:1])).all_scores()
        parts = []
        for start in range(0, first.shape[0], size):  # the scores of one block at a time, made again for the gradient
            rows = slice(start, start + size)
            arguments = student, asked.at(first[rows]), *self._hidden(users[rows], targets[rows])
            parts.append(checkpoint(_sums, *arguments, use_reentrant=False))
        return torch.cat(parts)

    def _hidden(self, users: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(row, item) of what the sum leaves out: seen and target items."""
        starts, counts = self._starts[users], self._counts[users]
        rows = torch.arange(users.shape[0], device=users.device).repeat_interleave(counts)
        within = torch.arange(rows.shape[0], device=users.device) - (counts.cumsum(0) - counts)[rows]
        listed, places = (targets >= 0).nonzero(as_tuple=True)
        items = torch.cat([self._items[starts[rows] + within].long(), targets[listed, places]])
        return torch.cat([rows, listed]), items

    def _build(self) -> None:
        """Target lists of the present states, and who is at the final ones."""
        states, device = self.v.cpu().numpy(), self.targets.device
        best = ensemble(self.lists, states, self.config, self.stability if self.config.consistency else None)
        self.targets.copy_(torch.from_numpy(best).to(device))
        arrived = (self.v == self.config.states - 1).all(0)
        if self.config.stage == "rounded":
            means = np.round(states.mean(axis=1), 2)
            self.fine.fill_(bool(means.sum() >= (self.config.states - 1) * len(means)))
        else:
            self.fine.copy_(arrived if self.config.stage == "user" else arrived.all().expand_as(arrived))
        self._fine_host = self.fine.cpu().numpy()

    def _advance(self, ended: int, student: Teacher) -> None:
        """One step of dynamic knowledge construction, after epoch ``ended``."""
        config, final = self.config, self.config.states - 1
        own = np.asarray(student.topk(DEPTH).items)[: self.task.n_users]
        v, last = self.v.cpu().numpy(), self.last.cpu().numpy()
        threshold = progress_asked(config, ended)
        everyone = np.arange(self.task.n_users)
        for m in range(v.shape[0]):
            now = self._discrepancy(own, self.lists[m, np.minimum(v[m] + 1, final), everyone])
            if (last[m] < 0).any():  # the first look only sets what progress is measured against
                last[m] = now
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(now == 0, np.inf, last[m] / now)
            moving = ratio > threshold
            if config.advance_if_receding:
                moving |= ratio < 1
            moving &= v[m] < final
            v[m] += moving
            after = self._discrepancy(own, self.lists[m, np.minimum(v[m] + 1, final), everyone])
            last[m] = np.where(moving, after, last[m])
        self.v.copy_(torch.from_numpy(v))
        self.last.copy_(torch.from_numpy(last))

    def _discrepancy(self, own: np.ndarray, lists: np.ndarray) -> np.ndarray:
        return discrepancy(own, lists[:, :DEPTH], by_position=self.config.dkc_gain == "position")


def _sums(student: View, queries: Queries, rows: Tensor, columns: Tensor) -> Tensor:
    sums: Tensor = _MaskedLogSumExp.apply(student.at(queries).all_scores(), rows, columns)
    return sums


class _MaskedLogSumExp(torch.autograd.Function):
    """log Σ_j exp clamp(s_j) over the columns that are not hidden, a row. One buffer as large as the scores, no more."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        shares = scores.clamp(-CLAMP, CLAMP)
        shares[rows, columns] = -torch.inf
        sums = shares.logsumexp(1)
        shares.sub_(sums.clamp(min=torch.finfo(sums.dtype).min).unsqueeze(1)).exp_()
        shares.masked_fill_(scores.abs() > CLAMP, 0.0)
        ctx.save_for_backward(shares)
        return sums.clamp(min=torch.finfo(sums.dtype).min)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (shares,) = ctx.saved_tensors
        return shares * gradients[0].unsqueeze(1), None, None


def progress_asked(config: HetCompConfig, epoch: int) -> float:
    """The factor by which a user's discrepancy must have fallen for its state to advance after an epoch."""
    return config.alpha * 0.995 ** (epoch // config.every)


def choose_stages(teacher: Teacher, stages: Sequence[Stage], config: HetCompConfig) -> list[Stage]:
    """A teacher's E states, oldest first, out of its stages.

    Raises ``MissingKnowledge`` for a teacher without saved stages (with ``states=1`` none is needed).
    """
    # a teacher that was at its best early has few stages: one may then stand for several states
    if len(stages) < (config.states if config.choose == "first" else min(config.states, 2)):
        raise MissingKnowledge(
            f"teacher {teacher.name!r} holds {len(stages)} state(s) of its training; {config.states} were asked for",
            "train it with train.stages_every, so that earlier weights are kept, give a folder of teacher files, or lower "
            "`states`",
        )
    if config.choose == "first":
        return list(stages[: config.states])
    best = stages[-1].epoch
    if best < 0 or any(stage.epoch < 0 for stage in stages):
        # of unknown epochs: taken as evenly spaced, the nearest place counted from 1, ties to the earlier
        places = np.ceil(len(stages) * (np.arange(config.states) + 1) / config.states - 0.5).astype(int)
        return [stages[max(place - 1, 0)] for place in places]
    epochs = np.array([stage.epoch for stage in stages])
    # epochs are counted from 0: best + 1 of them are trained
    wanted = (best + 1) * (np.arange(config.states) + 1) / config.states - 1
    return [stages[int(np.abs(epochs - epoch).argmin())] for epoch in wanted[:-1]] + [stages[-1]]


def stability(stages: Sequence[Stage], stage: Stage, lists: np.ndarray, evaluations: int) -> np.ndarray:
    """exp(-s / 100) of the items in the lists of one of a teacher's stages, int32 [U, N] -> float32 [U, N], 0 where a list is
    padded.

    s is the standard deviation of the item's rank, among unseen items and from 0, over the last ``evaluations`` of the
    ``stages`` up to this one, fewer where there are fewer. A stage that is a ranking alone places items outside its list
    right behind it.
    """
    place = next(index for index, other in enumerate(stages) if other is stage)
    window = stages[max(place + 1 - evaluations, 0) : place + 1]
    total, squares = np.zeros(lists.shape), np.zeros(lists.shape)
    for other in window:
        ranks = _ranks_in(other.load(), lists).astype(np.float64)
        total += ranks
        squares += ranks * ranks
    mean = total / len(window)
    deviation = np.sqrt(np.maximum(squares / len(window) - mean * mean, 0))
    return np.where(lists >= 0, np.exp(-deviation / 100), 0).astype(np.float32)


def _ranks_in(state: Teacher, lists: np.ndarray) -> np.ndarray:
    """Ranks of the items of each user's list by a teacher, whole or of lists alone: float32 [U, N]."""
    try:
        return item_ranks(state, lists, unseen=True)
    except MissingKnowledge:
        own = np.asarray(state.topk(lists.shape[1]).items)[: lists.shape[0]]
    out = np.empty(lists.shape, np.float32)
    for rows in _blocks(lists.shape[0], lists.shape[1] ** 2):
        same = (lists[rows][:, :, None] == own[rows][:, None, :]) & (own[rows] >= 0)[:, None, :]
        out[rows] = np.where(same.any(2), same.argmax(2), (own[rows] >= 0).sum(1, keepdims=True))
    return out


def check_ranked(teacher: Teacher) -> None:
    """Raises ``MissingKnowledge`` for a teacher that is a ranking alone."""
    try:
        teacher.check_scores()
    except MissingKnowledge as error:
        raise MissingKnowledge(
            f"teacher {teacher.name!r} holds only a ranking; hetcomp needs scores to rank the training items",
            'set observed = "stored", or export user and item vectors',
        ) from error


def ranks_of_seen(teacher: Teacher, task: Task) -> np.ndarray:
    """Rank, from 0, of each training pair among its user's training items by the teacher's scores: int64 [pairs].

    Raises ``MissingKnowledge`` for a teacher that is a ranking alone.
    """
    check_ranked(teacher)
    seen = task.seen
    rows = seen.row_of_pair.astype(np.int64)
    scores = np.empty(seen.n_pairs, np.float32)
    for start in range(0, seen.n_pairs, 1 << 18):
        part = slice(start, start + (1 << 18))
        users, within = np.unique(rows[part], return_inverse=True)
        asked, places, items = (to_device(ids, task.device) for ids in (users, within, seen.indices[part]))
        scores[part] = teacher.view(task.queries(asked)).pairs(places, items).cpu().numpy()
    order = np.lexsort((seen.indices, -scores, rows))
    ranks = np.empty(seen.n_pairs, np.int64)
    ranks[order] = np.arange(seen.n_pairs) - seen.indptr[rows[order]]
    return ranks


def best_seen(task: Task, values: np.ndarray, count: int) -> np.ndarray:
    """Each user's ``count`` training items of the highest value, ties by id: int64 [U, count], padded with -1."""
    seen = task.seen
    rows = seen.row_of_pair.astype(np.int64)
    order = np.lexsort((seen.indices, -values, rows))
    place = np.arange(seen.n_pairs) - seen.indptr[rows]
    kept = place < count
    lists = np.full((task.n_users, count), -1, np.int64)
    lists[rows[kept], place[kept]] = seen.indices[order][kept]
    return lists


def ensemble(
    lists: np.ndarray, states: np.ndarray, config: HetCompConfig, stable: np.ndarray | None = None
) -> np.ndarray:
    """The first K items a user by summed importance, ties by id: int32 [U, K], padded with -1.

    ``lists`` int32 [M, E, U, N], ``states`` int [M, U]; ``stable`` float32 like lists is added to the importances. A
    merge of at most M·N candidates a user.
    """
    n_teachers, _, n_users, listed = lists.shape
    rho = np.arange(listed)
    weights = np.exp(-rho / 10) if config.importance == "exp" else (1.0 / (rho + 1)) ** 0.05
    out = np.full((n_users, config.target), -1, np.int32)
    for rows in _blocks(n_users, n_teachers * listed):
        users = np.arange(n_users)[rows]
        items = np.stack([lists[m, states[m, users], users] for m in range(n_teachers)], axis=1)  # [b, M, N]
        known = items >= 0
        keys = (np.arange(users.size)[:, None, None] * np.int64(2**31) + items)[known]
        importances = np.broadcast_to(weights, items.shape)
        if stable is not None:
            more = [stable[m, states[m, users], users] for m in range(n_teachers)]
            importances = importances + np.stack(more, axis=1)
        values = importances[known]
        distinct, inverse = np.unique(keys, return_inverse=True)
        # each item's importances in ascending order: equal ones have equal sums, whichever teachers they are of
        placed = np.lexsort((values, inverse))
        sums = np.bincount(inverse[placed], values[placed], minlength=distinct.size)
        user, item = distinct >> 31, (distinct & (2**31 - 1)).astype(np.int32)
        order = np.lexsort((item, -sums, user))
        counts = np.bincount(user, minlength=users.size)
        place = np.arange(user.size) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = place < config.target
        out[users[user[kept]], place[kept]] = item[order][kept]
    return out


def discrepancy(own: np.ndarray, lists: np.ndarray, *, by_position: bool = False) -> np.ndarray:
    """D = 1 - NDCG of the student's lists against a teacher's, both int [U, k], padded with -1: float64 [U].

    Gain g(ρ) = 2^exp(-ρ / 10) - 1 of the item's rank in the teacher's list; ``by_position``: of the student's position,
    NDCG rounded to 4 decimals, as the authors' code has it.
    """
    depth = min(own.shape[1], lists.shape[1])
    own, lists = own[:, :depth], lists[:, :depth]
    gain = np.exp2(np.exp(-np.arange(depth) / 10)) - 1
    discount = np.log2(np.arange(depth) + 2)
    out = np.empty(own.shape[0])
    for rows in _blocks(own.shape[0], depth * depth):
        same = (own[rows][:, :, None] == lists[rows][:, None, :]) & (own[rows] >= 0)[:, :, None]  # [b, own, list]
        gains = same.any(2) * gain if by_position else same @ gain
        out[rows] = (gains / discount).sum(1) / (gain / discount).sum()
    return 1 - np.minimum(np.round(out, 4) if by_position else out, 1)


def _blocks(n_rows: int, width: int) -> Iterator[slice]:
    size = max(1, (1 << 24) // max(width, 1))
    return (slice(start, start + size) for start in range(0, n_rows, size))
