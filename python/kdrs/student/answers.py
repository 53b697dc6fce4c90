"""What a student answers with: lists in the caller's ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdrs.core.names import Names
from kdrs.errors import MachineError

if TYPE_CHECKING:
    import polars


class Recommendations:
    """Lists of Q askers, best first, K places each.

    ``places`` int32 ``[Q, K]`` are rows of the item table, -1 after the last item; ``scores`` float32 ``[Q, K]``, -infinity
    there. Columns of the long form are ``user`` (or ``of``, of similar items), ``item``, ``score``, ``rank`` from 1.
    """

    def __init__(
        self,
        asked: Sequence[Any],
        places: NDArray[np.int32],
        scores: NDArray[np.float32],
        names: Names,
        *,
        popular: NDArray[np.bool_] | None = None,
        skipped: Sequence[Any] = (),
        by: str = "user",
    ):
        self.asked, self.places, self.scores, self._names = asked, places, scores, names
        self.popular = np.zeros(len(asked), bool) if popular is None else popular
        """bool ``[Q]``: who got the most popular items instead; their scores are counts of training pairs."""
        self.skipped = skipped
        """Who is left out, by ``unknown="skip"``."""
        self.by = by

    @property
    def users(self) -> NDArray[np.object_]:
        """Who asked, as they were given, object ``[Q]``."""
        return _objects(self.asked)

    @cached_property
    def items(self) -> NDArray[np.object_]:
        """Ids, object ``[Q, K]``; None after the last item."""
        return self._names.take(self.places)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """int64 ``[Q]``: items in each list."""
        return (self.places >= 0).sum(1)

    @property
    def n_short(self) -> int:
        """Lists with fewer than K items, since no more were allowed."""
        return int((self.counts < self.places.shape[1]).sum())

    def columns(self) -> dict[str, NDArray[Any]]:
        """The long form, a row an item: ``user``, ``item`` (object), ``score`` float32, ``rank`` int32 from 1."""
        listed = self.places >= 0
        ranks = np.broadcast_to(np.arange(1, self.places.shape[1] + 1, dtype=np.int32), self.places.shape)
        return {
            self.by: np.repeat(self.users, self.counts),
            "item": self._names.take(self.places[listed]),
            "score": self.scores[listed],
            "rank": ranks[listed],
        }

    def to_polars(self) -> polars.DataFrame:
        """The long form as a frame. Who asked is a string where strings and integers asked together."""
        from kdrs._libraries import polars

        listed = self.places >= 0
        ranks = np.broadcast_to(np.arange(1, self.places.shape[1] + 1, dtype=np.int32), self.places.shape)
        rows = np.repeat(np.arange(len(self.asked)), self.counts)
        kind = None if rows.size else polars.String
        try:
            asked = polars.Series(list(self.asked), dtype=kind)
        except TypeError:
            asked = polars.Series([str(one) for one in self.asked], dtype=kind)
        items = self._names.column().gather(self.places[listed])
        return polars.DataFrame(
            {self.by: asked.gather(rows), "item": items, "score": self.scores[listed], "rank": ranks[listed]}
        )

    def to_pandas(self) -> Any:
        """The long form as a pandas frame. Raises ``MachineError`` without pandas."""
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise MachineError("pandas is not installed", "pip install pandas, or take to_polars()") from None
        return pandas.DataFrame(self.columns())

    def __iter__(self) -> Iterator[tuple[Any, list[tuple[str, float]]]]:
        """(who asked, [(item, score), ...]) of each."""
        for asked, items, scores, count in zip(self.asked, self.items, self.scores, self.counts.tolist(), strict=True):
            yield asked, list(zip(items[:count].tolist(), scores[:count].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.asked)

    def __repr__(self) -> str:
        notes = [f"{self.n_short:,} shorter"] * bool(self.n_short)
        notes += [f"{int(self.popular.sum()):,} by popularity"] * bool(self.popular.any())
        notes += [f"{len(self.skipped):,} skipped"] * bool(self.skipped)
        return f"Recommendations({len(self):,} lists of {self.places.shape[1]}{''.join(f', {note}' for note in notes)})"


def _objects(values: Sequence[Any]) -> NDArray[np.object_]:
    found = np.empty(len(values), object)
    found[:] = list(values)
    return found
