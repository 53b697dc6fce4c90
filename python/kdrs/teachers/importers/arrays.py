"""Vectors in NumPy's files: implicit's models, what the printed scripts write, plain arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdrs.data.npy import array_names, load_array, load_arrays
from kdrs.errors import DataError, shown
from kdrs.teachers.ids import texts
from kdrs.teachers.importers.found import Found, Side, as_bias, as_vectors


def read_implicit(path: Path) -> Found:
    """A model that implicit saved (``model.save``): ``user_factors`` [U, f] and ``item_factors`` [I, f], and nothing else.

    BPR has one column more, the item's bias beside the user's 1; LMF two, the bias of either beside the other's 1: both are
    told by their ones, and taken apart. A user's bias changes no ranking and is left out.
    """
    name = shown(str(path), 300)
    arrays = _arrays(
        path,
        ("user_factors", "item_factors"),
        "save it again with implicit 0.5 or newer, whose files hold plain arrays; or np.savez(file, "
        "user_factors=np.asarray(model.user_factors), item_factors=np.asarray(model.item_factors))",
    )
    lacking = [wanted for wanted in ("user_factors", "item_factors") if wanted not in arrays]
    if lacking:
        raise DataError(
            f"{name} has no {lacking[0]}; it holds {_listed(array_names(path))}",
            "allowed: what model.save of a matrix factorisation writes; of others (nearest neighbours) give lists",
        )
    users, items = (as_vectors(arrays[own], f"{name}, {own}") for own in ("user_factors", "item_factors"))
    if users.shape[1] != items.shape[1]:
        raise DataError(
            f"{name}: user_factors has {users.shape[1]} columns, item_factors {items.shape[1]}", "save the model again"
        )
    if users.shape[1] > 2 and (users[:, -2] == 1).all() and (items[:, -1] == 1).all():
        note = "logistic matrix factorisation, by its columns of ones: item biases taken apart"
        bias = np.ascontiguousarray(items[:, -2])
        return Found(Side(users[:, :-2].copy()), Side(items[:, :-2].copy(), bias=bias), notes=[note])
    if users.shape[1] > 1 and (users[:, -1] == 1).all():
        note = "BPR, by its column of ones: item biases taken apart"
        bias = np.ascontiguousarray(items[:, -1])
        return Found(Side(users[:, :-1].copy()), Side(items[:, :-1].copy(), bias=bias), notes=[note])
    return Found(Side(users), Side(items))


def read_archive(path: Path) -> Found:
    """An ``.npz`` of arrays by our names: ``users`` [U, D], ``items`` [I, D], ``user_ids``, ``item_ids``, ``item_bias``; as the
    printed scripts write it (`kdrs.teachers.importers.scripts`). ``users`` may be left out."""
    name = shown(str(path), 300)
    wanted = ("users", "items", "user_ids", "item_ids", "item_bias")
    arrays = _arrays(path, wanted, "save ids as text: np.asarray(ids, dtype=str)")
    if "items" not in arrays:
        raise DataError(
            f"{name} has no array items; it holds {_listed(array_names(path))}",
            f"allowed: {', '.join(wanted)}; kdrs teacher import --from recbole --print-script prints the lines that write it",
        )
    sides = {}
    for side in ("users", "items"):
        if side in arrays:
            ids = arrays.get(f"{side[:-1]}_ids")
            own = Side(as_vectors(arrays[side], f"{name}, {side}"))
            own.ids = None if ids is None else texts(ids, f"{name}, {side[:-1]}_ids")
            sides[side] = own
    if "item_bias" in arrays:
        sides["items"].bias = as_bias(arrays["item_bias"], len(sides["items"].vectors), f"{name}, item_bias")
    return Found(sides.get("users"), sides["items"])


def read_npy(path: Path) -> Side:
    """An array [rows, D], whose ids are in a file of their own."""
    return Side(as_vectors(load_array(path), shown(str(path), 300)))


def _arrays(path: Path, names: tuple[str, ...], remedy: str) -> dict[str, NDArray[np.generic]]:
    try:
        return load_arrays(path, names)
    except DataError as error:
        if "Python objects" not in error.cause:
            raise
        raise DataError(error.cause, remedy) from None


def _listed(names: list[str]) -> str:
    return ", ".join(shown(name, 30) for name in names[:12]) or "nothing"
