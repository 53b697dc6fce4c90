"""What a student is asked, as rows: ids to places, lists of ids to CSR."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, MappingView, Sequence, Set
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdrs.core.names import Names
from kdrs.data.histories import Histories
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError, shown

USUAL = 20
"""Items of a list where no number is stated."""
UNKNOWN = ("error", "skip", "popular")
SKIP = 'ask with unknown="skip" or "popular" (--unknown skip)'
MEANING = {
    "items": "no list can hold them",
    "exclude": "they block nothing",
    "seen": "they leave nothing out",
}
"""What unknown ids come to in what `Student.recommend` is given."""


class Strangers(NamedTuple):
    """Ids that are unknown: how many of how many, and the first."""

    number: int
    of: int
    first: str
    kind: str = "item ids"

    @classmethod
    def among(cls, ids: Sequence[Any], places: NDArray[np.int32], kind: str = "item ids") -> Strangers:
        """Of ``ids`` those whose place is -1."""
        bad = places < 0
        return cls(int(bad.sum()), len(ids), str(ids[int(np.argmax(bad))]) if bad.any() else "", kind)

    def warn(self, what: str, stacklevel: int) -> None:
        """Says what they come to, where there are any."""
        if self.number:
            warnings.warn(f"{what}: {self}: {MEANING[what]}", stacklevel=stacklevel + 1)

    def __str__(self) -> str:
        return f"{self.number:,} of {self.of:,} {self.kind} are unknown, first {shown(self.first)}"


def ids_of(values: Any, what: str) -> list[Any]:
    """Ids as a list. One string or number is refused by name: a list of its letters would be no list of ids."""
    if _is_single(values):
        raise ConfigError(f"{what} is {shown(values)}", f"give a list of ids: {what}=[{shown(values)!r}]")
    if hasattr(values, "to_list") and not isinstance(values, np.ndarray):  # a column of a frame
        return list(values.to_list())
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _is_single(values: Any) -> bool:
    """Whether it is one value where a list belongs; an array without an axis is one too."""
    return isinstance(values, str | bytes) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0


def held(lists: Any, what: str) -> Any:
    """Ids, or a list of them for each user, as they can be looked at more than once: a generator is read out. Raises
    ``ConfigError`` for one value, and for a dict, whose keys would be taken for ids."""
    if isinstance(lists, Interactions) or hasattr(lists, "tocsr"):
        return lists
    if isinstance(lists, Mapping):
        raise ConfigError(f"{what} is a dict", f"give a list for each user, in their order: {what}=[[...], ...]")
    if _is_single(lists):
        raise ConfigError(f"{what} is {shown(lists)}", f"give a list of ids: {what}=[{shown(lists)!r}]")
    return lists if hasattr(lists, "__len__") else list(lists)


def in_order(values: Any, what: str) -> Any:
    """The same, where each of ``values`` goes with what stands at its place elsewhere. Raises ``ConfigError`` for a set."""
    if isinstance(values, Set) and not isinstance(values, MappingView):
        raise ConfigError(
            f"{what} is a {type(values).__name__}, which has no order",
            f"give a list, in the order of the others: {what}=[...]",
        )
    return values


def count_of(k: Any, names: Names, most: int | None = None) -> int:
    """``k`` as it was stated; else `USUAL`, or as many as there are at the ``most``. Raises ``ConfigError`` unless there can be
    as many."""
    if k is None:
        return max(1, min(USUAL, len(names) if most is None else most))
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= max(len(names), 1):
        raise ConfigError(f"k is {shown(k)}", f"allowed: 1 to {len(names):,}, the {names.kind}s of this student")
    return int(k)


def texts(values: Sequence[Any]) -> list[str]:
    """Ids are strings; integers are written out."""
    if all(type(value) is str for value in values):
        return list(values)
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    raise DataError(
        f"an id is {shown(value)} ({type(value).__name__})", "ids are strings, or integers that stand for them"
    )


def places_of(names: Names, values: Sequence[Any], threads: int | None) -> NDArray[np.int32]:
    return names.index(texts(values), unknown="mark", threads=threads)


def is_nested(lists: Any) -> bool:
    """Whether ``lists``, as `held` gives them, hold a list for each query rather than one for all."""
    if isinstance(lists, Interactions) or hasattr(lists, "tocsr"):
        return True
    first = next(iter(lists), None)
    return first is not None and not isinstance(first, str | bytes | int | np.integer)


def csr_of_lists(
    names: Names,
    lists: Any,
    what: str,
    queries: int | None,
    threads: int | None,
    *,
    skip: bool = False,
    ordered: bool = False,
) -> tuple[Interactions, Strangers]:
    """Lists of item ids, one a query, as rows; and which of them were unknown. `Interactions` and SciPy matrices, in the
    rows of the file's items, are taken as they are. Unknown ids raise ``DataError`` unless ``skip``.

    ``ordered`` gives `Histories`, in the lists' order, and refuses what has none by ``ConfigError``."""
    kind = Histories if ordered else Interactions
    if isinstance(lists, Interactions) or hasattr(lists, "tocsr"):
        found = lists if isinstance(lists, Interactions) else Interactions.from_csr(lists)
        if found.shape[1] != len(names):
            raise DataError(
                f"{what} are of {found.shape[1]:,} items, the student knows {len(names):,}",
                "give rows of the file's items, or lists of ids",
            )
        if not isinstance(found, kind):
            raise ConfigError(
                f"{what} are a matrix, which has no order, and this student reads items oldest first",
                "give lists of item ids, oldest first",
            )
        unknown = Strangers(0, found.n_pairs, "")
    else:
        if _is_single(lists) or isinstance(lists, Mapping):
            raise ConfigError(f"{what} is {shown(lists)}", f"give a list of ids for each user: {what}=[[...], ...]")
        parts = []
        for row in in_order(lists, what):
            if _is_single(row):
                raise ConfigError(
                    f"{what} holds {shown(row)}", f"give a list of ids for each user: {what}=[[...], ...]"
                )
            if ordered and isinstance(row, Set):
                raise ConfigError(
                    f"{what} holds a set, which has no order, and this student reads items oldest first",
                    "give lists of item ids, oldest first",
                )
            parts.append(ids_of(row, what))
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        flat = list(chain.from_iterable(parts))
        places = places_of(names, flat, threads)
        bad = places < 0
        unknown = Strangers.among(flat, places)
        if unknown.number and not skip:
            raise DataError(
                f"{what}: {unknown}",
                'leave them out, or recommend with unknown="skip" (--unknown skip)',
            )
        rows = np.repeat(np.arange(len(parts)), lengths)[~bad]
        found = kind.from_pairs(rows, places[~bad], len(parts), len(names))
    if queries is not None and found.shape[0] != queries:
        raise ConfigError(
            f"{what} are {found.shape[0]:,} lists for {queries:,} users", "give one for each, in their order"
        )
    return found, unknown


def warn_of_blank(blank: NDArray[np.bool_], kind: str, what: str, stacklevel: int) -> None:
    """Says that nothing was learnt of some users or items, and that ``what`` they get says nothing."""
    if number := int(blank.sum()):
        said = f"nothing was learnt of {number:,} of {len(blank):,} {kind}: their {what} say nothing"
        warnings.warn(said, stacklevel=stacklevel + 1)


def refuse_empty(
    names: Sequence[Any], good: NDArray[np.bool_], lengths: NDArray[np.int64], what: str, lacks: str
) -> None:
    """Raises ``DataError`` for the first whose items, of histories of these ``lengths``, are not ``good`` to rank by."""
    if not good.all():
        place = int(np.argmin(good))
        why = "has only items that nobody had in training" if lengths[place] else lacks
        raise DataError(f"{what} {shown(str(names[place]))} {why}", SKIP)
