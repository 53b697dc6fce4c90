"""What a student file keeps of its users' items, and of which parts of the data set."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from kdrs.compact.encoders import Encoder
from kdrs.data import Dataset, Histories, Interactions
from kdrs.errors import ConfigError, nearest, shown
from kdrs.runs.results import held_out

SEEN_PARTS = ("train", "all")
"""``train``: what users have in training. ``all``: what they have in any part."""


def check_parts(seen_parts: str | None, seen: bool) -> None:
    """Raises ``ConfigError`` for parts that are none, and for parts of what is not kept."""
    if seen_parts is None:
        return
    if seen_parts not in SEEN_PARTS:
        raise ConfigError(f"seen_parts is {shown(seen_parts)}", nearest(seen_parts, SEEN_PARTS))
    if not seen:
        raise ConfigError(
            f"seen_parts is {seen_parts}, and what users have seen is not kept",
            f"keep it: --seen --seen-parts {seen_parts}; or leave --seen-parts out",
        )


def seen_of(data: Dataset, encoder: Encoder | None, seen_parts: str | None = None) -> Interactions:
    """The items of each user, [users, items]: those of ``train`` unless it is ``all`` parts; as `Histories` where the
    ``encoder`` reads them in their order, which a data set with such a model has.

    Held-out items then come after the training items, in the order of their parts. A warning says so where the data set does
    not know whether they do."""
    whole = seen_parts == "all"
    if encoder is None or not encoder.ordered:
        return data.full if whole else data.train
    assert data.order is not None
    ordered = Histories.of(data.train, data.order)
    if not whole or not data.holds_out:
        return ordered
    later = data.held_in_order()
    if later is None:
        later = [data.valid, data.test]
        warnings.warn(
            "the model reads items in their order, and the data set keeps none of held-out items: they count as the latest, "
            "those of validation first",
            stacklevel=4,
        )
    users = np.concatenate([part.row_of_pair for part in (data.train, *later)])
    items = np.concatenate([ordered.order, *(part.indices for part in later)])
    return Histories.from_pairs(users, items, data.n_users, data.n_items)


def parts_of(data: Dataset, seen_parts: str | None) -> list[str]:
    """The names of the parts that hold pairs and are kept."""
    later = [name for name, part in held_out(data).items() if part.n_pairs]
    return ["train", *(later if seen_parts == "all" else [])]


def told(data: Dataset, seen: Interactions, seen_parts: str | None) -> dict[str, Any]:
    """What the card says of them."""
    return {"parts": parts_of(data, seen_parts), "pairs": seen.n_pairs}


def said(parts: list[str], holds_out: bool) -> str:
    """The same for people."""
    if not holds_out:
        return "`recommend` leaves out what users have in the data set."
    words = {"train": "training", "valid": "validation", "test": "test"}
    *first, last = (words[part] for part in parts)
    if first:
        return f"`recommend` leaves out what users have in any part of the data set: {', '.join(first)} and {last}."
    return f"`recommend` leaves out what users have in the {last} part of the data set. Lists may hold held-out items."
