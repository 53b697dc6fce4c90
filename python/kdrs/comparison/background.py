"""What a page tells besides numbers: of the data, and of some users, what each model lists for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Item:
    """An item as people know it."""

    id: str
    title: str | None = None


@dataclass(frozen=True)
class Listed:
    """An entry of a list."""

    item: Item
    hit: bool
    """Whether it is one of the user's held-out items."""
    shared: bool
    """Whether the teacher lists it too."""


@dataclass(frozen=True)
class Person:
    """A user with a history, and what the models list."""

    user: str
    n_history: int
    """Training items."""
    history: tuple[Item, ...]
    """Some of them, the latest first where the data have an order."""
    held_out: tuple[Item, ...]
    """Of the part that is compared."""
    lists: Mapping[str, tuple[Listed, ...]]
    """By model."""


@dataclass(frozen=True)
class Background:
    """What is known besides reports."""

    facts: tuple[tuple[str, str], ...]
    """Of the data and the protocol: name and value."""
    people: tuple[Person, ...] = ()
    people_notes: tuple[str, ...] = ()
    """How the users were chosen, and what their lists are."""


def spread(activity: NDArray[np.int64], rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """``n`` of the queries ``rows``, evenly spaced from the least active to the most: always the same ones."""
    order = rows[np.lexsort((rows, activity[rows]))]
    places = np.unique(np.linspace(0, max(order.size - 1, 0), min(n, order.size)).round().astype(np.int64))
    return order[places] if order.size else order
