"""Does a teacher file know what it should not, or nothing at all? Its scores of train, validation and test pairs compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdrs.core.ranking import Ranking
from kdrs.data.interactions import Interactions
from kdrs.teachers.base import Scored, as_array
from kdrs.teachers.file import FileTeacher

USERS = 2000
"""Users that are looked at, drawn at random with a fixed seed."""
BLOCK_SCORES = 1 << 22
"""Scores that are held at a time: 16 MiB."""

# Thresholds. Measured on MovieLens 100K (rating >= 4, leave-one-out and 8:1:1) and CiteULike (8:1:1 by order); teachers BPR
# (trained well, for 3 to 10 epochs, with much decay, far past its best epoch), LightGCN, Mult-VAE, SASRec; each as it is, with
# users or items shuffled or moved by one row, and trained on test, validation or both besides train. In brackets: the findings.
PERSONAL = 0.05
"""Excess of own training items over another user's, below which a teacher tells users no better than chance (honest: .30 or
more, .06 where no more than popularity was learnt; ids out of order: .05 at most, and not clear. A Mult-VAE that had learnt no
more than popularity keeps .07 when its users are shuffled, which changes nothing that it recommends)."""
SHIFTED = 3 * PERSONAL
"""Excess of the items one row away over another user's from which they are what is meant (moved by one: .20 or more, where
anything was learnt)."""
LEAKED_TEST = 0.4
"""(test - valid) / (train - valid) from which test items were trained on (leaked: .67 to 1.15, but .04 of one Mult-
VAE whose test items had gained nothing by it; honest: 0 at most)."""
LEAKED_VALID = 0.7
"""(valid - test) / (train - test), likewise (leaked: 1.1 or more; honest: .50 at most, where that was clear)."""
LEAKED_BOTH = 0.95
"""Held-out items' mean as a share of training items' from which both were trained on (leaked: .98 or more; honest: .89)."""
LEARNT = 0.5
"""Training items' mean below which a teacher has learnt too little for that share to say anything."""
CLEAR = 3.0
"""Standard errors from which a difference counts."""
LISTED = 1.15
"""Own test items in lists against own validation items, each less what other users' lists hold of them (lists of 50: leaked
1.24 to 3.8, but a LightGCN's 1.06 and 1.09, which lists alone do not show; honest: 1.09 at most)."""


@dataclass(frozen=True)
class Knowledge:
    """How highly a teacher scores a user's pairs of each part, above what user and item explain; one value a user.

    A score is put in standard deviations twice: of the user's scores of items that the user has in no part, then of the
    item's such scores by all users looked at. Popular items and generous users have no advantage: what is left is what the
    teacher knows of this user with this item. 0 is nothing.
    """

    parts: dict[str, NDArray[np.float64]]
    """float64 [users] by part (``train``, ``valid``, ``test``), NaN for a user who has no pair there; ``other``: training items
    of another user; ``above`` and ``below``: the items one row after and before the own training items."""

    def mean(self, name: str) -> float:
        return _mean(self.parts[name])

    def excess(self, name: str, over: str) -> tuple[float, float]:
        """Mean difference over users who have both, and that in standard errors."""
        difference = self.parts[name] - self.parts[over]
        difference = difference[np.isfinite(difference)]
        if difference.size < 2:
            return 0.0, 0.0
        error = float(difference.std(ddof=1)) / np.sqrt(difference.size)
        mean = float(difference.mean())
        return mean, mean / error if error > 0 else float(np.sign(mean)) * np.inf if mean else 0.0


def knowledge_of(teacher: Scored, parts: Mapping[str, Interactions], *, users: int = USERS) -> Knowledge:
    """What a teacher knows of the pairs of each part; ``train`` must be among them. Blocks of users x items only."""
    train = parts["train"]
    full = train
    for part in parts.values():
        full = full.union(part)
    n_items = train.shape[1]
    candidates = np.flatnonzero(train.row_degrees)
    rows = np.sort(np.random.default_rng(0).choice(candidates, min(users, candidates.size), replace=False))
    sums, squares, counts = np.zeros(n_items), np.zeros(n_items), np.zeros(n_items)
    asked: dict[str, list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]] = {}
    size = max(1, BLOCK_SCORES // n_items)
    for start in range(0, rows.size, size):
        block = rows[start : start + size]
        scores = np.array(as_array(teacher.score_block(block)), np.float32)
        query, own = full.pairs_of(block)
        _standardise(scores, query, own)
        held = scores[query, own].astype(np.float64)
        sums += scores.sum(axis=0, dtype=np.float64) - np.bincount(own, held, n_items)
        squares += np.einsum("ui,ui->i", scores, scores, dtype=np.float64) - np.bincount(own, held**2, n_items)
        counts += block.size - np.bincount(own, minlength=n_items)
        keys = query * n_items + own
        following = rows[(np.arange(start, start + block.size) + 1) % rows.size]
        at, items = train.pairs_of(block)
        chosen = {name: part.pairs_of(block) for name, part in parts.items()}
        chosen |= {"other": train.pairs_of(following), "above": (at, items + 1), "below": (at, items - 1)}
        for name, (at, items) in chosen.items():
            if name not in parts:
                inside = (items >= 0) & (items < n_items) & ~np.isin(at * n_items + items, keys)
                at, items = at[inside], items[inside]
            asked.setdefault(name, []).append(
                (at + start, items.astype(np.int64), scores[at, items].astype(np.float64))
            )
    mean = sums / np.maximum(counts, 1)
    deviation = np.sqrt(np.maximum(squares / np.maximum(counts, 1) - mean**2, 0))
    found = {}
    for name, blocks in asked.items():
        at, items, scores = (np.concatenate(column) for column in zip(*blocks, strict=True))
        known = deviation[items] > 1e-6
        levels = np.where(known, (scores - mean[items]) / np.where(known, deviation[items], 1), 0)
        pairs = np.bincount(at, minlength=rows.size)
        found[name] = np.bincount(at, levels, rows.size) / np.where(pairs, pairs, np.nan)
    return Knowledge(found)


def teacher_doubts(teacher: Scored, parts: Mapping[str, Interactions]) -> list[str]:
    """Sentences about a teacher whose ids seem out of order, or that seems to have been trained on held-out pairs.

    ``parts`` are ``train`` and whichever of ``valid`` and ``test`` there are, all of the users' items. Empty for a teacher
    that looks honest. A teacher that learnt little more than popularity can hide a leak, and can do little with it.
    """
    parts = {name: part for name, part in parts.items() if part.n_pairs}
    if isinstance(teacher, FileTeacher) and teacher.factors() is None:
        return _list_doubts(teacher, parts)
    known = knowledge_of(teacher, parts)
    doubts = _order_doubts(known)
    return doubts or _leak_doubts(known, parts)


def _order_doubts(known: Knowledge) -> list[str]:
    train = known.mean("train")
    for name, way in (("above", "later"), ("below", "earlier")):
        shift, errors = known.excess(name, "train")
        knows, _ = known.excess(name, "other")
        if shift > PERSONAL and knows > SHIFTED and errors > CLEAR:
            return [
                f"its items, or its users, seem to be one row out of place: it scores the items one row "
                f"{way} than a user's training items "
                f"higher than these ({known.mean(name):.2f} against {train:.2f} standard deviations); was a padding row kept, "
                "or one left out twice?"
            ]
    excess, errors = known.excess("train", "other")
    if excess < PERSONAL or errors < CLEAR:
        return [
            "it scores a user's own training items no higher than another user's "
            f"({train:.2f} against {known.mean('other'):.2f} standard deviations): its users or items seem to be in another "
            "order than the data set's, or it knows nothing but popularity; export it again with its rows joined by id"
        ]
    return []


def _leak_doubts(known: Knowledge, parts: Mapping[str, Interactions]) -> list[str]:
    train = known.mean("train")
    held = [name for name in ("valid", "test") if name in parts]
    if not held:
        return []
    level = ", ".join(f"{name} {known.mean(name):.2f}" for name in ("train", *held))
    names = {"valid": "validation", "test": "test"}
    advice = (
        "its quality, and its students', would be measured on what it was told; train it on the training part alone"
    )

    def said(who: str) -> list[str]:
        return [
            f"it seems to have been trained on the {who} part: it scores those pairs as it scores training pairs "
            f"(in standard deviations: {level}); {advice}"
        ]

    def leaked(name: str, other: str, limit: float) -> bool:
        gap, errors = known.excess(name, other)
        room, _ = known.excess("train", other)
        return errors > CLEAR and gap > PERSONAL and gap >= limit * room > 0

    if len(held) == 2 and leaked("test", "valid", LEAKED_TEST):
        return said("test")
    if train >= LEARNT and np.mean([known.mean(name) for name in held]) >= LEAKED_BOTH * train:
        return said(" and the ".join(names[name] for name in held))
    if len(held) == 2 and leaked("valid", "test", LEAKED_VALID):
        return said("validation")
    return []


def _list_doubts(teacher: FileTeacher, parts: Mapping[str, Interactions]) -> list[str]:
    """Of lists alone: held-out items of either part should be in them equally often."""
    lists = teacher.lists
    if lists is None or "valid" not in parts or "test" not in parts:
        return []
    found = {name: _listed(lists, parts[name]) for name in ("valid", "test")}
    known = Knowledge(found)
    gap, errors = known.excess("test", "valid")
    valid, test = known.mean("valid"), known.mean("test")
    if errors > CLEAR and gap > 0 and test >= LISTED * max(valid, 0):
        return [
            f"its lists hold {test:.1%} of the test items and {valid:.1%} of the validation items (less what other users' "
            "lists hold of them), as if it had been trained on the test part; train it on the training part alone"
        ]
    return []


def _listed(lists: Ranking, part: Interactions) -> NDArray[np.float64]:
    """float64 [U]: share of each user's held-out items in the own list less their share in another user's; NaN for none."""
    n_users, width = lists.items.shape
    other = np.roll(lists.items, 1, axis=0)
    total = np.zeros(n_users)
    size = max(1, BLOCK_SCORES // max(1, width))
    pairs, items = part.row_of_pair, part.indices
    for start in range(0, items.size, size):
        user, item = pairs[start : start + size], items[start : start + size, None]
        own = (lists.items[user] == item).any(axis=1).astype(np.float64) - (other[user] == item).any(axis=1)
        total += np.bincount(user, own, n_users)
    return total / np.where(part.row_degrees, part.row_degrees, np.nan)


def _standardise(scores: NDArray[np.float32], query: NDArray[np.int64], own: NDArray[np.int32]) -> None:
    """Rows in standard deviations from their mean, both over the items that the user does not have; in place."""
    n = np.maximum(scores.shape[1] - np.bincount(query, minlength=len(scores)), 1)
    mean = (scores.sum(axis=1, dtype=np.float64) - np.bincount(query, scores[query, own], len(scores))) / n
    scores -= mean[:, None].astype(np.float32)
    held = scores[query, own].astype(np.float64)
    squares = np.einsum("ui,ui->u", scores, scores, dtype=np.float64) - np.bincount(query, held**2, len(scores))
    deviation = np.sqrt(np.maximum(squares / n, 0))
    scores /= np.where(deviation > 0, deviation, 1)[:, None].astype(np.float32)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
