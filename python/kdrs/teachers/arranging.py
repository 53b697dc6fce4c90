"""Rows of a teacher file put into a data set's order, and what becomes of those that it lacks."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdrs.core import ranking
from kdrs.data.interactions import Interactions
from kdrs.errors import ArtefactError, shown
from kdrs.teachers.ids import KINDS, Joined


def check_matched(
    file: str, side: str, joined: Joined, missing: str | None, *, vectors: bool = True, lists: bool = False
) -> None:
    """Raises ``ArtefactError`` where no id of a side is on both, and where the data set's are missing and may not be; warns
    of those that may. ``None`` for a side that need not be complete. ``vectors`` and ``lists`` are what the file holds of it:
    there is no mean of lists."""
    if not joined.n_matched:
        raise ArtefactError(
            f"{shown(file, 300)}: none of its {joined.places.size:,} {side} is in the data set; it has "
            f"{_few(joined.unknown)}, the data set {_few(joined.missing)}",
            "take off the blanks around its ids"
            if any(one != one.strip() for one in joined.unknown)
            else f"check that the ids are written alike (007 and 7 are two), that these are its {side}, and that it is the "
            "right data set",
        )
    if missing is None or not joined.n_missing:
        return
    lacking = (
        f"{shown(file, 300)} lacks {joined.n_missing:,} of the data set's {joined.rows.size:,} {side}, first "
        f"{_few(joined.missing)}"
    )
    if missing == "refuse":
        raise ArtefactError(
            lacking,
            "say what they are: --missing mean (the mean of the others) or drop (users with empty lists, items that come "
            "last) of kdrs teacher import, missing= of kdrs.save_teacher"
            if vectors
            else "say that their lists may be empty: --missing drop of kdrs teacher import, missing= of kdrs.save_teacher",
        )
    means = f"they are left out ({KINDS[side]}s dropped)"
    if not vectors:
        means = "their lists are empty"
    elif missing == "mean":
        means = "they get the mean of the others" + ("' vectors, and empty lists" if lists else "")
    warnings.warn(f"teacher {lacking}; {means}", stacklevel=6)


def arranged(tensor: Tensor, joined: Joined, missing: str) -> Tensor:
    """Vectors or biases with a row for each of the data set's ids. Rows that the file lacks are the mean of those that both
    know, or 0 if they are to be dropped."""
    if tensor.is_meta:
        return torch.empty((joined.rows.size, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
    if joined.identical:
        return tensor
    rows = torch.from_numpy(joined.rows)
    out, lacking = tensor[rows.clamp(min=0)], rows < 0
    if lacking.any():
        # what the data set does not know has no part in the mean
        out[lacking] = tensor[rows[~lacking]].double().mean(dim=0).to(out.dtype) if missing == "mean" else 0
    return out


def means_of_items(items: Tensor, seen: Interactions, known: NDArray[np.bool_] | None) -> tuple[Tensor, Tensor]:
    """float32 [U, D]: the mean of the vectors [I, D] of each user's training items, of those that are ``known``; 0 for users
    who have none, bool [U]."""
    kept = np.ones(seen.n_pairs, np.float32) if known is None else known[seen.indices].astype(np.float32)
    matrix = scipy.sparse.csr_array((kept, seen.indices, seen.indptr), shape=seen.shape)
    counts = np.asarray(matrix.sum(axis=1), np.float32)
    sums = np.asarray(matrix @ items.numpy(), np.float32)
    return torch.from_numpy(sums / np.maximum(counts, 1)[:, None]), torch.from_numpy(counts == 0)


def bias_of_the_last(
    users: Tensor, items: Tensor, bias: Tensor | None, known_users: NDArray[np.bool_], known_items: NDArray[np.bool_]
) -> Tensor:
    """float32 [I]: the bias, such that items of vector 0 that are not known come after all others for every user, and no
    further down than that takes: methods that match scores read it."""
    own = torch.zeros(len(items)) if bias is None else bias.clone()
    rows, columns = torch.from_numpy(known_users), torch.from_numpy(known_items)
    worst = ranking.topk(users[rows], -items[columns], 1, bias=-own[columns])
    lowest = -float(np.asarray(worst.scores).max())
    own[~columns] = lowest - 1e-3 * max(abs(lowest), 1e-3)
    return own


def _few(ids: tuple[str, ...]) -> str:
    return ", ".join(shown(one if one == one.strip() else repr(one), 30) for one in ids)
