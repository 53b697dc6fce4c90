"""What was read of another library, made into the contents of a teacher file for a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.core.names import Names
from kdrs.data.dataset import Dataset
from kdrs.data.ids import Ids
from kdrs.errors import ConfigError, DataError
from kdrs.teachers.arranging import check_matched
from kdrs.teachers.ids import KINDS, Joined
from kdrs.teachers.importers import Found, Listed, Side


@dataclass
class Matched:
    """What `kdrs.save_teacher` takes, and what was found on the way."""

    contents: dict[str, Any]
    joined: dict[str, Joined]
    """By side: ids of the source beside the data set's."""
    notes: list[str] = field(default_factory=list)
    trusted: list[str] = field(default_factory=list)
    """Sides without ids, whose rows are taken to be in the data set's order."""
    empty: dict[str, int] = field(default_factory=dict)
    """Rows of zeros among those that matched, by side."""


def matched(
    found: Found,
    dataset: Dataset,
    *,
    dim: int | None = None,
    normalise: bool = False,
    missing: str = "refuse",
    file: str,
) -> Matched:
    """The rows whose ids the data set has, in its order; ``file`` is what messages call the source.

    ``dim`` keeps the first dimensions of every vector, ``normalise`` makes their lengths 1 (after that). Raises
    ``ArtefactError`` where nothing matches, and for missing ids that are to be refused; ``DataError`` for sides without ids
    that do not have the data set's number of rows; ``ConfigError`` for ``dim`` beyond the vectors' own.
    """
    out = Matched({}, {}, list(found.notes))
    if found.lists is not None:
        if dim is not None or normalise:
            raise ConfigError(f"{'--dim' if dim is not None else '--normalise'} is given for lists", "leave it out")
        _take_lists(out, found.lists, dataset, missing, file)
        return out
    for side, own in (("users", found.users), ("items", found.items)):
        if own is not None:
            _take_side(out, side, own, getattr(dataset, side), dim, normalise, missing, file)
    users, items = (out.contents.get(side) for side in ("users", "items"))
    if users is not None and items is not None and users.shape[1] != items.shape[1]:
        raise DataError(
            f"users have {users.shape[1]} dimensions, items {items.shape[1]}",
            "allowed: equally many; their dot product is the score",
        )
    return out


def _take_side(
    out: Matched, side: str, own: Side, ours: Ids, dim: int | None, normalise: bool, missing: str, file: str
) -> None:
    kind, ids = KINDS[side], own.ids
    if ids is None:
        if len(own.vectors) != len(ours):
            raise DataError(
                f"{file} has {len(own.vectors):,} rows of {side} without ids, the data set {len(ours):,}",
                f"name them: --{kind}-ids FILE ({kind}_ids=), one id for each row",
            )
        out.trusted.append(side)
        ids = list(ours)
    joined = Joined.of(ours, Names.of(ids, kind))
    check_matched(file, side, joined, "refuse" if missing == "refuse" else None)
    rows = joined.rows[joined.rows >= 0]
    vectors = own.vectors[rows]
    if dim is not None:
        if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)) or not 1 <= dim <= vectors.shape[1]:
            raise ConfigError(f"dim is {dim}; the {side} have {vectors.shape[1]}", f"allowed: 1 to {vectors.shape[1]}")
        vectors = vectors[:, :dim]
    out.empty[side] = int(np.count_nonzero(~vectors.any(axis=1)))
    if normalise:
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        vectors = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    out.joined[side] = joined
    out.contents[side] = np.ascontiguousarray(vectors)
    out.contents[f"{kind}_ids"] = _kept(ours, joined)
    if own.bias is not None:
        out.contents["item_bias"] = own.bias[rows]


def _take_lists(out: Matched, lists: Listed, dataset: Dataset, missing: str, file: str) -> None:
    users = Joined.of(dataset.users, Names.of(lists.users, "user"))
    items = Joined.of(dataset.items, Names.of(lists.items, "item"))
    check_matched(file, "users", users, "refuse" if missing == "refuse" else None, vectors=False)
    check_matched(file, "items", items, None)
    out.joined = {"users": users, "items": items}
    ids = _kept(dataset.items, items)
    place = np.full(len(lists.items) + 1, -1, np.int32)
    place[items.rows[items.rows >= 0]] = np.arange(len(ids), dtype=np.int32)
    topk = place[lists.topk[users.rows[users.rows >= 0]]]
    order = np.argsort(topk < 0, axis=1, kind="stable")  # what the data set does not know leaves no hole

    def kept(values: NDArray[Any], padding: float) -> NDArray[Any]:
        return np.take_along_axis(np.where(topk < 0, padding, values), order, 1)

    width = max(int((topk >= 0).sum(axis=1).max(initial=0)), 1)
    out.contents = {"user_ids": _kept(dataset.users, users), "item_ids": ids, "topk": kept(topk, -1)[:, :width]}
    rows = users.rows[users.rows >= 0]
    for name, values in (("topk_scores", lists.scores), ("topk_weights", lists.weights)):
        if values is not None:
            out.contents[name] = kept(values[rows], 0)[:, :width]


def _kept(ours: Ids, joined: Joined) -> list[str]:
    """The data set's ids that the source has, in the data set's order."""
    return list(ours) if joined.n_matched == len(ours) else list(ours.take(np.flatnonzero(joined.rows >= 0)))
