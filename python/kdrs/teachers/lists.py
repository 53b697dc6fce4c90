"""Lists of a teacher file, put into the order of a task's users or training instances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrs.core.ranking import Ranking
from kdrs.data.interactions import Interactions
from kdrs.errors import ArtefactError, shown
from kdrs.teachers.ids import Joined
from kdrs.teachers.tensors import check_owners, ordered_instances, read_lists, read_weights
from kdrs.training.sequences import SequenceTask


class Lists(NamedTuple):
    """Lists of unseen items, best first."""

    ranked: Ranking
    """int32 and float32 [R, K], padded at the end with -1 and -inf; scores are NaN where there are none"""
    weights: NDArray[np.float32] | None = None
    """float32 [R, K]"""


def arranged_lists(
    file: str,
    name: str,
    tensors: Mapping[str, Tensor],
    items: Joined,
    rows: NDArray[np.int64],
    seen: Interactions,
    owners: NDArray[np.int64] | None = None,
) -> Lists:
    """The lists ``name`` of a file, of the file's items, as lists of the data set's: ``rows`` [R] names the file's list of
    each row, -1 for none. Items that the data set does not know and those that the row's user has seen in training
    (``owners`` [R]; the row itself if None) are left out, the rest moves up."""
    lists, scores = read_lists(file, tensors[name], tensors.get(f"{name}_scores"), items.places.size, name)
    given = tensors.get(f"{name}_weights")
    weights = None if given is None else read_weights(file, name, lists, given)
    lists = np.append(items.places, -1)[lists][rows]
    lists[rows < 0] = -1
    users = np.arange(rows.size) if owners is None else owners
    dropped = (lists < 0) | np.isin(users[:, None] * np.int64(seen.shape[1]) + lists, _keys(seen))
    order = np.argsort(dropped, axis=1, kind="stable")

    def kept(values: NDArray[np.generic], padding: float) -> NDArray[np.generic]:
        return np.take_along_axis(np.where(dropped, padding, values), order, 1)

    ranked = Ranking(kept(lists, -1).astype(np.int32), kept(scores[rows], -np.inf).astype(np.float32))
    return Lists(ranked, None if weights is None else kept(weights[rows], 0).astype(np.float32))


def _keys(seen: Interactions) -> NDArray[np.int64]:
    return seen.row_of_pair.astype(np.int64) * seen.shape[1] + seen.indices


def instance_rows(
    file: str, tensors: Mapping[str, Tensor], users: Joined, task: SequenceTask, missing: str
) -> NDArray[np.int64]:
    """int64 [instances]: the file's list of each training instance of a sequence task, -1 where it has none.

    Raises ``ArtefactError`` for another number of lists than there are instances, for two lists of one instance, and for
    instances without a list if these are to be refused.
    """
    n, given = task.n_rows, len(tensors["instance_topk"])
    if "instance_users" not in tensors:
        if given != n:
            raise ArtefactError(
                f"{shown(file, 300)} holds lists for {given:,} training instances, the task has {n:,}",
                "make them of the queries from n_users on of kdrs.SequenceTask, with the student's own length and targets; or "
                "name each list's user and how many items it knows: instance_users, instance_known",
            )
        return np.arange(n)
    owners = np.asarray(task.owners)[task.n_users :]
    known = task.ends(torch.arange(task.n_users, task.n_queries, device=task.device)).cpu().numpy()
    theirs = [tensors[name].numpy().astype(np.int64) for name in ("instance_users", "instance_known")]
    check_owners(file, theirs[0], users.places.size)
    width = int(max(known.max(initial=0), theirs[1].max(initial=0))) + 1
    order, ordered = ordered_instances(file, users.places[theirs[0]], theirs[1], width)
    wanted = owners * width + known
    at = np.minimum(np.searchsorted(ordered, wanted), max(ordered.size - 1, 0))
    rows = np.where(ordered[at] == wanted, order[at], -1) if ordered.size else np.full(n, -1)
    lacking = int(np.count_nonzero(rows < 0))
    if lacking == n or (lacking and missing == "refuse"):
        raise ArtefactError(
            f"{shown(file, 300)} has no list for {lacking:,} of the task's {n:,} training instances",
            "give every instance a list; or let them be empty: missing = drop",
        )
    return rows


def stacked(users: Lists | None, instances: Lists, n_users: int) -> Lists:
    """Lists of users, empty where there are none, above those of training instances: one a query of a sequence task."""
    (items, scores), weights = instances
    width = items.shape[1]

    def joined(above: NDArray[np.generic] | None, below: NDArray[np.generic], padding: float) -> NDArray[np.generic]:
        out = np.full((n_users + len(below), width), padding, below.dtype)
        if above is not None:
            out[:n_users, : above.shape[1]] = above[:, :width]
        out[n_users:] = below
        return out

    ranked = Ranking(
        joined(None if users is None else users.ranked.items, items, -1),
        joined(None if users is None else users.ranked.scores, scores, -np.inf),
    )
    own = None if users is None else users.weights
    if weights is None and own is None:
        return Lists(ranked)
    ones = np.ones(items.shape, np.float32)
    return Lists(ranked, joined(own, ones if weights is None else weights, 1.0).astype(np.float32))
