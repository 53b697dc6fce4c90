"""Checks of a teacher file's tensors: what was got, what is allowed, how to mend it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from kdrs.errors import ArtefactError, shown

RISE = 1e-4
"""Scores of a list may rise by this share of their range: sorted in one precision, stored in another."""
BLOCK = 1 << 22
"""Entries of lists that are checked at a time."""


def check_tensor(
    file: str, name: str, tensor: Tensor, rows: int, columns: str | None, sizes: Mapping[str, int], *, ids: bool = False
) -> None:
    """Raises ``ArtefactError`` unless the tensor is [rows, ``columns``] (``None``: [rows]) of finite floats, or of integers
    for ``ids``. ``sizes`` are the data set's numbers of users and items, for guesses at what went wrong."""
    wanted = f"[{rows}]" if columns is None else f"[{rows}, {columns}]"
    of_what = "training instance" if name.startswith("instance") else "user" if name in ("users", "topk") else "item"
    kind = "integers (int32)" if ids else "floats (float32)"
    allowed = f"allowed: {kind} of shape {wanted}, one row for each {of_what} in the data set's order"
    cause = f"{shown(file)}: {name} is {_dtype(tensor)} of shape {list(tensor.shape)}"
    hint = _shape_hint(name, tensor, rows, columns, sizes)
    if hint is not None:
        raise ArtefactError(cause, f"{allowed}; {hint}" if hint else allowed)
    if ids == tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        cast = "save the items' row numbers, as int32" if ids else f"convert it: {name}.astype(np.float32)"
        raise ArtefactError(cause, f"{allowed}; {cast}")
    if not (ids or tensor.is_meta):
        finite = torch.isfinite(tensor.float())
        if not finite.all():
            place = [int(at) for at in (~finite).nonzero()[0]]
            value = float(tensor[tuple(place)])
            past = " as float32" if np.isfinite(value) else ""
            raise ArtefactError(
                f"{shown(file)}: {name} row {place[0]} is not finite{past}: it holds {value}", "export it again"
            )


def _shape_hint(name: str, tensor: Tensor, rows: int, columns: str | None, sizes: Mapping[str, int]) -> str | None:
    """What to do about a shape that does not fit; empty where nothing comes to mind, ``None`` for a shape that does."""
    shape, ndim = list(tensor.shape), 1 if columns is None else 2
    if len(shape) == ndim and shape[0] == rows and (columns != "K" or shape[1]):
        return None
    squeezed = [n for n in shape if n != 1]
    if len(shape) > ndim and len(squeezed) <= ndim and rows in squeezed:
        extra = len(shape) - ndim
        axes = [at for at, n in enumerate(shape) if n == 1][-extra:]
        return f"take out the axis of length 1: {name}.squeeze({axes[0] if extra == 1 else tuple(axes)})"
    if len(shape) == ndim and shape[0] == rows + 1:
        return f"one row too many: is row 0 a padding row, as RecBole writes it? leave it out: {name}[1:]"
    other = sizes["items"] if rows == sizes["users"] else sizes["users"]
    if len(shape) == 2 and ndim == 2:
        if shape[1] == rows and shape[0] != other:
            return f"is it transposed? save {name}.T"
        if shape[0] == other:
            return "are users and items exchanged?"
        if shape[1] == rows + 1:
            return f"is it transposed, with a padding column? save {name}.T[1:]"
    if len(shape) == ndim and shape[0] != rows:
        more = "more" if shape[0] > rows else "fewer"
        return f"it has {abs(shape[0] - rows)} rows {more} than that: join by id: kdrs.save_teacher takes ids along"
    return ""


def check_beside(file: str, tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises ``ArtefactError`` unless the scores and weights of the lists ``name``, if there are any, are numbers of their
    shape."""
    for beside, word in ((f"{name}_scores", "score"), (f"{name}_weights", "weight")):
        given = tensors.get(beside)
        if given is None:
            continue
        if name not in tensors:
            raise ArtefactError(f"{shown(file)} holds {beside} without {name}", f"save the lists' items as {name}")
        items = tensors[name]
        if given.shape != items.shape or given.is_complex() or given.dtype == torch.bool:
            raise ArtefactError(
                f"{shown(file)}: {beside} is {_dtype(given)} of shape {list(given.shape)}",
                f"allowed: floats (float32) of {name}'s shape {list(items.shape)}, one {word} for each place",
            )


def read_weights(file: str, name: str, lists: np.ndarray, given: Tensor) -> np.ndarray:
    """float32 [R, K]: weights of the entries of lists [R, K]. Raises ``ArtefactError`` for one that is negative or not
    finite; what stands at padding does not count."""
    weights = given.float().numpy()
    bad = (lists >= 0) & ~((weights >= 0) & (weights < np.inf))
    if bad.any():
        row, place = (int(at[0]) for at in np.nonzero(bad))
        raise ArtefactError(
            f"{shown(file)}: {name}_weights row {row} is {weights[row, place]} at place {place}",
            "allowed: finite numbers of 0 or more; 1 counts as an entry without a weight does",
        )
    return weights


def read_lists(
    file: str, items: Tensor, given: Tensor | None, n_items: int, name: str = "topk"
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [U, K] and float32 [U, K]: lists and their scores (NaN where none are given), block by block.

    Raises ``ArtefactError`` naming the row for ids outside the catalogue, items twice in a list, scores of listed items that
    are not finite, and scores that rise along a list. What stands at padding (-1) in the scores does not count.
    """
    lists = items.numpy().astype(np.int64)
    if items.dtype == torch.uint64 and (lists < 0).any():
        lists[lists < 0] = n_items  # past the range of int64, so no item
    scores = np.full(lists.shape, np.nan, np.float32) if given is None else given.float().numpy()
    size = max(1, BLOCK // max(1, lists.shape[1]))
    for start in range(0, len(lists), size):
        part = slice(start, start + size)
        _check_items(file, name, lists[part], start, n_items)
        if given is not None:
            _check_scores(file, name, lists[part], scores[part], start)
    if not (lists >= 0).any():
        raise ArtefactError(f"{shown(file)}: {name} holds no item at all, only padding", "export it again")
    return lists, scores


def check_owners(file: str, owners: np.ndarray, n_users: int) -> None:
    """Raises ``ArtefactError`` unless instance_users, int64 [N], are places in user_ids."""
    if owners.size and (owners.min() < 0 or owners.max() >= n_users):
        raise ArtefactError(
            f"{shown(file, 300)}: instance_users holds {owners.min()} to {owners.max()}",
            f"allowed: 0 to {n_users - 1}, places in user_ids",
        )


def ordered_instances(file: str, owners: np.ndarray, known: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [N] each: the order of lists by ``owner * width + known``, and these keys in that order; -1 where either is
    negative. Raises ``ArtefactError`` for two lists of one instance."""
    keys = np.where((owners >= 0) & (known >= 0), owners * width + known, -1)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    twice = (ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)
    if twice.any():
        first, second = sorted(order[int(np.argmax(twice)) :][:2].tolist())
        raise ArtefactError(
            f"{shown(file, 300)}: lists {first} and {second} are of the same user and the same number of known items",
            "one list for each training instance",
        )
    return order, ordered


def _check_items(file: str, name: str, lists: np.ndarray, start: int, n_items: int) -> None:
    outside = (lists < -1) | (lists >= n_items)
    if outside.any():
        row, place = (int(at[0]) for at in np.nonzero(outside))
        raise ArtefactError(
            f"{shown(file)}: {name} row {start + row} holds an id outside the catalogue: {lists[row, place]}",
            f"allowed: 0 to {n_items - 1}, the items' places in the data set, and -1 as padding; export it again",
        )
    order = np.argsort(lists, axis=1, kind="stable")
    ordered = np.take_along_axis(lists, order, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if repeated.any():
        row, place = (int(at[0]) for at in np.nonzero(repeated))
        raise ArtefactError(
            f"{shown(file)}: {name} row {start + row} holds an item twice: {ordered[row, place]}",
            "list every item once",
        )


def _check_scores(file: str, name: str, lists: np.ndarray, scores: np.ndarray, start: int) -> None:
    listed = lists >= 0
    bad = listed & ~np.isfinite(scores)
    if bad.any():
        row, place = (int(at[0]) for at in np.nonzero(bad))
        raise ArtefactError(
            f"{shown(file)}: {name}_scores row {start + row} is {scores[row, place]} at place {place}, where {name} lists item "
            f"{lists[row, place]}",
            "give listed items finite scores; what is no recommendation is -1 in the list",
        )
    # Padding takes the score before it: then only listed items are compared.
    last = np.maximum.accumulate(np.where(listed, np.arange(lists.shape[1]), -1), axis=1)
    filled = np.where(last < 0, np.inf, np.take_along_axis(scores, np.maximum(last, 0), axis=1)).astype(np.float64)
    known = np.where(listed, scores, np.nan)
    with np.errstate(invalid="ignore"):
        span = np.where(listed, scores, -np.inf).max(axis=1) - np.where(listed, scores, np.inf).min(axis=1)
        rises = filled[:, 1:] - filled[:, :-1] > RISE * np.maximum(span, 0)[:, None]
    if not rises.any():
        return
    row, place = (int(at[0]) for at in np.nonzero(rises))
    steps = int(listed[row].sum()) - 1
    if int(rises[row].sum()) == steps:
        remedy = (
            "is it worst first? turn both round: topk[:, ::-1], topk_scores[:, ::-1]; are the scores ranks or distances? "
            "give their negatives"
        )
    else:
        remedy = (
            "sort both: order = np.argsort(-topk_scores, axis=1, kind='stable'), then np.take_along_axis(topk, order, 1) and "
            "the same for topk_scores"
        )
    before, after = known[row, last[row, place]], known[row, place + 1]
    raise ArtefactError(
        f"{shown(file)}: {name}_scores row {start + row} rises from {before:.6g} to {after:.6g} at place {place + 1}; a list "
        "runs best first, so its scores must descend",
        remedy,
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
