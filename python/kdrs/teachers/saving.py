"""Teacher files, written: ``kdrs = "teacher/2"``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdrs._files import allow_as_usual, replacing
from kdrs.core.names import Names
from kdrs.core.sampling import numpy_of
from kdrs.errors import ArtefactError, ConfigError, DataError, shown
from kdrs.teachers.ids import KINDS, texts
from kdrs.teachers.tensors import check_owners, ordered_instances, read_lists, read_weights
from kdrs.teachers.values import as_float32, as_int32

FORMAT = "teacher/2"
MISSING = ("refuse", "mean", "drop")
"""What may become of ids of the data set that a file lacks."""
ALONE = ("mean", "none")
"""What users may be where a file holds item vectors and no user vectors."""
LISTS = ("topk", "instance_topk")
KEYS = ("instance_users", "instance_known")
FILE = "the teacher"
"""What checks of a file call it before it is written."""
ROWS = {
    "users": "users", "items": "items", "item_bias": "items", "topk": "users", "topk_scores": "users",
    "topk_weights": "users",
}  # fmt: skip
"""The side whose ids name a tensor's rows."""


def save_teacher(
    path: str | Path,
    *,
    users: Any = None,
    items: Any = None,
    item_bias: Any = None,
    topk: Any = None,
    topk_scores: Any = None,
    topk_weights: Any = None,
    instance_topk: Any = None,
    instance_topk_scores: Any = None,
    instance_topk_weights: Any = None,
    instance_users: Any = None,
    instance_known: Any = None,
    user_ids: Iterable[Any] | None = None,
    item_ids: Iterable[Any] | None = None,
    missing: str = "refuse",
    items_alone: str = "mean",
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes a teacher file that any data set with the same ids can be taught from; `kdrs.FileTeacher` reads it.

    ``users`` float [U, D] and ``items`` float [I, D], whose dot product (plus ``item_bias`` float [I]) is the score; or
    ``items`` alone. ``topk`` int [U, K]: places in ``item_ids``, best first, -1 where a list is shorter, with
    ``topk_scores`` (descending) and ``topk_weights`` (0 or more: how far each entry is to be trusted). The same a training
    instance of a sequence model: ``instance_topk`` int [N, K], in the order of `kdrs.SequenceTask`, or keyed by
    ``instance_users`` int [N] (places in ``user_ids``) and ``instance_known`` int [N], how many of the user's training items
    come before the one that is to be predicted.

    ``user_ids`` and ``item_ids`` are strings or integers, a row each, in any order; or ``{id: row}``. Rows are joined by id
    when the file is read: ids that a data set does not have are left out. Of ids that the file lacks ``missing`` says:
    ``refuse`` (an error), ``mean`` (the mean of the other rows) or ``drop`` (such users have empty lists, such items come
    last). ``items_alone`` says what users are where there are item vectors only: the ``mean`` of the vectors of their training
    items, so that every method runs; or ``none``, and the methods on representations leave the users out.
    ``about`` is kept in the metadata as JSON. Values are stored as float32 and int32.

    Raises ``DataError`` for arrays that do not fit each other, values that are not finite or past float32, lists that hold an
    item twice or none at all or places outside ``item_ids``, or whose scores rise, weights below 0, two lists of one training
    instance, vectors of 0 dimensions, ids that come twice or have no order, and rows of ``{id: row}`` that are not 0 to n - 1;
    ``ConfigError`` for other words than those above;
    ``MachineError`` if the disk does not take it.
    """
    from safetensors.numpy import save_file

    given = {
        "users": users,
        "items": items,
        "item_bias": item_bias,
        "topk": topk,
        "topk_scores": topk_scores,
        "topk_weights": topk_weights,
        "instance_topk": instance_topk,
        "instance_topk_scores": instance_topk_scores,
        "instance_topk_weights": instance_topk_weights,
        "instance_users": instance_users,
        "instance_known": instance_known,
    }
    tensors, metadata = contents(given, user_ids, item_ids, missing, items_alone, about)
    with replacing(Path(path), needed=sum(array.nbytes for array in tensors.values())) as temporary:
        save_file(tensors, temporary, metadata=metadata)
        _sort_metadata(temporary)
        allow_as_usual(temporary)


def contents(
    given: Mapping[str, Any],
    user_ids: Iterable[Any] | None,
    item_ids: Iterable[Any] | None,
    missing: str,
    items_alone: str,
    about: Mapping[str, Any] | None,
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of a teacher file."""
    for name, word, allowed in (("missing", missing, MISSING), ("items_alone", items_alone, ALONE)):
        if word not in allowed:
            raise ConfigError(f"{name} is {word!r}", f"allowed: {', '.join(allowed)}")
    tensors = {name: _array(name, value) for name, value in given.items() if value is not None}
    if not tensors.keys() & {"items", *LISTS}:
        raise DataError("a teacher of nothing", "give items, with users or alone; or topk")
    if "users" in tensors and "items" not in tensors:
        raise DataError("users are given without items", "give both")
    if "item_bias" in tensors and "items" not in tensors:
        raise DataError("item_bias is given without items", "give both")
    ids = {"users": user_ids, "items": item_ids}
    named = {side: texts(own, f"{side[:-1]}_ids") for side, own in ids.items() if own is not None}
    counts = {side: len(own) for side, own in named.items()}
    _check_rows(tensors, counts)
    _check_readable(tensors, counts)
    for side, own in named.items():
        tensors |= Names.of(own, KINDS[side]).tensors()
    metadata = {"kdrs": FORMAT, "missing": missing}
    if "items" in tensors and "users" not in tensors:
        metadata["users"] = items_alone
    if about is not None:
        metadata["about"] = json.dumps(about, ensure_ascii=False)
    return tensors, metadata


def _sort_metadata(path: Path) -> None:
    """safetensors writes metadata in an order that changes from run to run; the same contents shall be the same bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(length))
        head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
        text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _array(name: str, value: Any) -> NDArray[Any]:
    array = numpy_of(value, name)
    whole = name in LISTS or name in KEYS
    kinds = "iu" if whole else "fiu"
    ndim = 1 if name in (*KEYS, "item_bias") else 2
    if array.dtype.kind not in kinds or array.ndim != ndim:
        wanted = "integers" if whole else "floats"
        raise DataError(
            f"{name} is {array.dtype} of shape {array.shape}",
            f"allowed: {wanted} of {'one dimension' if ndim == 1 else 'two dimensions'}",
        )
    if whole:
        return as_int32(array, name)
    return as_float32(array, name, finite=not name.endswith("topk_scores"))  # what stands at padding may be -inf


def _check_rows(tensors: Mapping[str, NDArray[Any]], counts: Mapping[str, int]) -> None:
    for name, side in ROWS.items():
        if name in tensors:
            _need(side, counts, name)
            if len(tensors[name]) != counts[side]:
                raise DataError(
                    f"{name} has {len(tensors[name]):,} rows, {side[:-1]}_ids {counts[side]:,}",
                    f"one row for each id; {_guess(tensors[name], counts, side)}",
                )
    for name in ("users", "items"):
        if name in tensors and not tensors[name].shape[1]:
            raise DataError(f"{name} have 0 dimensions", "give vectors of one or more")
    if {"users", "items"} <= tensors.keys() and tensors["users"].shape[1] != tensors["items"].shape[1]:
        raise DataError(
            f"users have {tensors['users'].shape[1]} dimensions, items {tensors['items'].shape[1]}",
            "allowed: equally many; their dot product is the score",
        )
    for kind in LISTS:
        beside = [name for name in (f"{kind}_scores", f"{kind}_weights") if name in tensors]
        if kind not in tensors and beside:
            raise DataError(f"{beside[0]} is given without {kind}", "give both")
        for name in beside:
            if tensors[name].shape != tensors[kind].shape:
                raise DataError(f"{name} is {tensors[name].shape}, {kind} {tensors[kind].shape}", "give equal shapes")
        if kind in tensors:
            _need("items", counts, kind)
    keys = [name for name in KEYS if name in tensors]
    if keys:
        _need("users", counts, keys[0])
        if len(keys) < 2 or "instance_topk" not in tensors:
            raise DataError(f"{keys[0]} is given alone", "give instance_topk, instance_users and instance_known")
        if any(len(tensors[name]) != len(tensors["instance_topk"]) for name in keys):
            raise DataError(
                "instance_users, instance_known and instance_topk differ in length", "one entry for each list"
            )


def _check_readable(tensors: Mapping[str, NDArray[Any]], counts: Mapping[str, int]) -> None:
    """What is refused when the file is read is not written."""
    try:
        for kind in LISTS:
            if kind in tensors:
                lists, scores, weights = (_tensor(tensors.get(f"{kind}{end}")) for end in ("", "_scores", "_weights"))
                assert lists is not None
                known, _ = read_lists(FILE, lists, scores, counts["items"], kind)
                if weights is not None:
                    read_weights(FILE, kind, known, weights)
        if KEYS[0] in tensors:
            owners, past = (tensors[name].astype(np.int64) for name in KEYS)
            check_owners(FILE, owners, counts["users"])
            ordered_instances(FILE, owners, past, int(past.max(initial=0)) + 1)
    except ArtefactError as error:
        raise DataError(error.cause.removeprefix(f"{shown(FILE)}: "), error.remedy) from None


def _tensor(array: NDArray[Any] | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(np.require(array, requirements="W"))


def _guess(rows: NDArray[Any], counts: Mapping[str, int], side: str) -> str:
    """What may have happened to an array that has not a row for each id."""
    if rows.ndim == 2 and rows.shape[1] == counts[side]:
        return "is it transposed? give its .T"
    if len(rows) == next((count for own, count in counts.items() if own != side), None):
        return "are users and items exchanged?"
    return "a row more is often a padding row" if len(rows) == counts[side] + 1 else "are these the ids of its rows?"


def _need(side: str, counts: Mapping[str, int], name: str) -> None:
    if side not in counts:
        raise DataError(f"{name} is given without {side[:-1]}_ids", f"give the ids: {side[:-1]}_ids=")
