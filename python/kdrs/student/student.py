"""A student, served: opened from its file, asked by ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdrs._documents import DocumentError, write_json
from kdrs.compact.encoders import Items, asked
from kdrs.compact.tables import Tables
from kdrs.core import ranking
from kdrs.core.codes import Codes
from kdrs.core.names import Names
from kdrs.data.histories import Histories
from kdrs.data.interactions import Interactions
from kdrs.errors import ArtefactError, ConfigError, DataError, MissingKnowledge, shown
from kdrs.student import file
from kdrs.student.answers import Recommendations
from kdrs.student.lists import Allowed, blank, filled, less, mask_of, merged, part, popular, ranked, rows_of, unit
from kdrs.student.requests import (
    SKIP,
    UNKNOWN,
    Strangers,
    count_of,
    csr_of_lists,
    held,
    ids_of,
    in_order,
    is_nested,
    places_of,
    refuse_empty,
    warn_of_blank,
)

Unknown = Literal["error", "skip", "popular"]
MOST_POPULAR = 1000
"""Items that are kept for users who are unknown."""
PARTS = {"item_ids": "ids", "user_ids": "ids", "seen_": "seen", "popular": "popular"}
"""What tensors of a file are, by how their names begin; all others are tables."""
WORKED_OUT = ("_blank_items", "_catalogue", "_unit_items")


class Student:
    """A ranking that needs nothing but its file: no torch, no data set, no run.

    Made by `load`, or of tables and ids. Users and items are asked for by their ids, which are strings; integers stand for
    their decimal digits. Scores are exact products, best first, ties in the order of the file's items: the same lists as those
    of `kdrs.Evaluator` and ``kdrs recommend``; of a network that encodes its users, to rounding between NumPy and torch.

    ``seen`` are the items of its users, int32 rows ``[users, items]``, or None, `Histories` for an encoder of sequences: those
    of training, or of all parts (`seen_parts`). ``popular`` int32 ``[P]`` and
    ``popular_counts`` the items with the most training pairs; ``card`` is what it says of itself, JSON values.
    """

    def __init__(
        self,
        tables: Tables,
        items: Names,
        users: Names | None = None,
        *,
        seen: Interactions | None = None,
        popular: NDArray[np.int32] | None = None,
        popular_counts: NDArray[np.int32] | None = None,
        card: dict[str, Any] | None = None,
        readme: str = "",
    ):
        self.tables, self.items, self.users, self.seen = tables, items, users, seen
        self.popular = np.zeros(0, np.int32) if popular is None else popular
        self.popular_counts = np.zeros_like(self.popular) if popular_counts is None else popular_counts
        self.card, self.readme = card or {}, readme
        self._check()

    # --- its file -----------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> Student:
        """Opens a file of ``kdrs export``. Tables are mapped, so they take memory as they are used.

        ``verify`` reads the file once and compares its checksum; without it, damaged tables may go unnoticed. Raises
        ``ArtefactError`` for what is no such file, of another version, cut short, damaged, or with an id that comes twice.
        """
        place = Path(path)
        tensors, metadata = file.read(place, verify=verify)
        name, left = shown(str(place), 300), dict(tensors)
        try:
            items, users = file.names_of(left, "item"), file.names_of(left, "user") if "user_ids" in left else None
            seen = None
            if "seen_ends" in left:
                seen = Interactions(left.pop("seen_ends"), left.pop("seen_items"), (len(users or ()), len(items)))
                if "seen_order" in left:
                    seen = Histories.of(seen, left.pop("seen_order"))
            popular, counts = left.pop("popular", None), left.pop("popular_counts", None)
            told, card = (file.object_of(metadata, key) for key in ("tables", "card"))
            tables = Tables.from_tensors(left, told, len(users or ()), len(items), copy=False)
            return cls(
                tables,
                items,
                users,
                seen=seen,
                popular=popular,
                popular_counts=counts,
                card=card,
                readme=metadata.get("readme", ""),
            )
        except KeyError as error:
            raise ArtefactError(f"{name} lacks {shown(error.args[0])}", file.AGAIN) from None
        except (DataError, DocumentError) as error:
            cause = error.cause if isinstance(error, DataError) else str(error)
            raise ArtefactError(f"{name} is damaged: {shown(cause, 300)}", file.AGAIN) from None

    def save(self, path: str | Path) -> int:
        """Writes its file in one go; the bytes of the file. Raises ``MachineError`` where the disk does not take it."""
        told = {"tables": self.tables.description(), "card": self.card}
        texts = {key: write_json(value, indent=None).decode() for key, value in told.items()}
        return file.write(Path(path), self._tensors(), {**texts, "readme": self.readme})

    def fingerprint(self) -> str:
        """32 hexadecimal digits of all that its lists follow from: tables, ids, what was seen, popular items. The card is none
        of it."""
        found = hashlib.blake2b(write_json(self.tables.description(), indent=None), digest_size=16)
        for name, tensor in sorted(self._tensors().items()):
            array = np.asarray(tensor, order="C")
            found.update(f"{name} {array.dtype.str} {array.shape}".encode())
            found.update(array.ravel().data.cast("B") if array.nbytes else b"")
        return found.hexdigest()

    def _tensors(self) -> dict[str, NDArray[Any]]:
        """All that its file holds."""
        tensors = {**self.tables.tensors(), **self.items.tensors()}
        if self.users is not None:
            tensors |= self.users.tensors()
        if self.seen is not None:
            tensors |= {"seen_ends": self.seen.indptr, "seen_items": self.seen.indices}
            if isinstance(self.seen, Histories):
                tensors["seen_order"] = self.seen.order
        if self.popular.size:
            tensors |= {"popular": self.popular, "popular_counts": self.popular_counts}
        return tensors

    def __getstate__(self) -> dict[str, Any]:
        """Without what is worked out of the tables when it is asked for."""
        return {name: value for name, value in self.__dict__.items() if name not in WORKED_OUT}

    def _check(self) -> None:
        n_users, n_items = len(self.users or ()), len(self.items)
        if any(one.dtype != np.int32 or one.ndim != 1 for one in (self.popular, self.popular_counts)):
            raise DataError("popular and popular_counts are no int32 [P]")
        for name, got, expected in (
            ("item table", len(self.tables.items), n_items),
            ("user table", None if self.tables.users is None else len(self.tables.users), n_users),
            ("bias", None if self.tables.bias is None else len(self.tables.bias), n_items),
            ("seen rows", None if self.seen is None else self.seen.shape[0], n_users),
            ("seen columns", None if self.seen is None else self.seen.shape[1], n_items),
            ("popular_counts", len(self.popular_counts), len(self.popular)),
        ):
            if got is not None and got != expected:
                raise DataError(f"{name}: {got:,}; {expected:,} are expected")
        if self._ordered and self.seen is not None and not isinstance(self.seen, Histories):
            raise DataError("the encoder reads items in their order, and those that users have seen have none")
        if self.popular.size and not 0 <= self.popular.min() <= self.popular.max() < n_items:
            raise DataError("popular holds rows that are no items")
        if len(np.unique(self.popular)) < len(self.popular):
            raise DataError("popular holds an item twice")

    @property
    def nbytes(self) -> int:
        """Bytes of all tables: what is counted when students are compared. Ids, seen pairs and popular items come on top."""
        return self.tables.nbytes

    def sizes(self) -> dict[str, int]:
        """Bytes of what its file holds beside the card: tables with the encoder, ids, seen items, popular items."""
        found = dict.fromkeys(("tables", "ids", "seen", "popular"), 0)
        for name, tensor in self._tensors().items():
            kind = next((kind for start, kind in PARTS.items() if name.startswith(start)), "tables")
            found[kind] += file.narrow(name, tensor).nbytes
        return found

    @property
    def seen_parts(self) -> tuple[str, ...]:
        """The parts of the data set whose items it keeps as seen, by its card: ``train`` alone, or ``valid`` and ``test`` too.
        Empty where it keeps none."""
        if self.seen is None:
            return ()
        told = self.card.get("seen")
        parts = told.get("parts") if isinstance(told, dict) else None
        known = isinstance(parts, list) and all(isinstance(part, str) for part in parts)
        return tuple(parts) if known and parts else ("train",)

    @property
    def encodes(self) -> bool:
        """Whether it answers for histories."""
        return self.tables.encoder is not None

    @property
    def _ordered(self) -> bool:
        """Whether it reads histories in their order."""
        return self.tables.encoder is not None and self.tables.encoder.ordered

    def __repr__(self) -> str:
        side = self.tables.items
        kind = f"{side.bits} bits" if isinstance(side, Codes) else "float32"
        users = "users encoded" if self.tables.users is None else f"{len(self.users or ()):,} users"
        return f"Student({users}, {len(self.items):,} items, {self.tables.dim} dimensions of {kind}, {self.nbytes:,} bytes)"

    # --- lists --------------------------------------------------------------------------------------------------------

    def recommend(
        self,
        users: Sequence[Any] | None = None,
        k: int | None = None,
        *,
        histories: Any = None,
        seen: Any = True,
        items: Any = None,
        exclude: Any = None,
        unknown: Unknown = "error",
        threads: int | None = None,
    ) -> Recommendations:
        """The ``k`` best items of each user, fewer only where fewer are allowed (``n_short``). Unless stated ``k`` is 20, or
        the whole of a smaller catalogue.

        ``users`` are ids; or ``histories`` are lists of item ids, one a user, known or new, and ``users``, if given, their
        names. Models of sequences read the lists in their order, oldest first.

        ``seen``: True leaves out what the file says that a user has seen, or the history itself; False leaves nothing out;
        lists of item ids, one a user, leave out those. ``items`` is an allow list, ``exclude`` a block list: one for all, or a
        list of lists, one a user. Histories, ``seen``, ``items`` and ``exclude`` may be `Interactions` or SciPy matrices in
        the file's rows.

        ``unknown`` says what happens to users who are not in the file or of whom nothing was learnt, and to those whose history
        is empty or has only items of which nothing was learnt: ``error``, ``skip``, or ``popular``, the items with the most
        training pairs, whose counts are then the scores. Item ids that are unknown are an error in ``histories`` unless
        ``unknown`` is another; in ``seen``, ``exclude`` and ``items`` they mean nothing, and a warning says how many there
        are; of ``items`` one at least must be known.

        Raises ``DataError`` for unknown ids, ``ConfigError`` for what cannot be asked, ``MissingKnowledge`` for what the file
        does not hold.
        """
        if unknown not in UNKNOWN:
            raise ConfigError(f"unknown is {shown(unknown)}", f"allowed: {', '.join(UNKNOWN)}")
        k = count_of(k, self.items)
        items, exclude = (
            None if one is None else held(one, what) for one, what in ((items, "items"), (exclude, "exclude"))
        )
        if histories is None:
            if users is None:
                raise ConfigError("neither users nor histories are given", "name users, or give their histories")
            paired = not isinstance(seen, bool) or any(one is not None and is_nested(one) for one in (items, exclude))
            names = ids_of(in_order(users, "users") if paired else users, "users")
            rows = self._rows(names, unknown, threads)
            own = self._seen_of(rows) if seen is True or self.tables.users is None else None
            good = self._learnt(rows, own)
            if unknown == "error" and self.tables.users is None:
                kind = "items" if len(self.seen_parts) > 1 else "training items"
                refuse_empty(names, good, self._known_histories().row_degrees[rows], "user", f"has no {kind}")
            elif unknown == "error":
                refuse_empty(names, good, np.zeros_like(rows), "user", "is one of whom nothing was learnt")
            kept = np.flatnonzero(good)
            queries = self._asking(rows[kept], part(own, kept))
        else:
            own, _ = csr_of_lists(
                self.items, histories, "histories", None, threads, skip=unknown != "error", ordered=self._ordered
            )
            names = list(range(own.shape[0])) if users is None else ids_of(in_order(users, "users"), "users")
            if len(names) != own.shape[0]:
                raise ConfigError(
                    f"histories are {own.shape[0]:,} lists for {len(names):,} users",
                    "give one for each, in their order",
                )
            good = self._telling(own)
            if unknown == "error":
                refuse_empty(names, good, own.row_degrees, "history", "is empty")
            kept = np.flatnonzero(good)
            queries = self.fold_in(part(own, kept), threads=threads)

        blocked: list[Interactions | NDArray[np.int32] | None] = []
        if seen is not False:
            blocked.append(own if seen is True else self._lists(seen, "seen", len(names), threads))
        allowed: Allowed = None
        if items is not None:
            if is_nested(items):
                allowed = self._lists(items, "items", len(names), threads)
            else:
                allowed = self._places(items, "items", threads)
        if exclude is not None:
            if is_nested(exclude):
                blocked.append(self._lists(exclude, "exclude", len(names), threads))
            else:
                of_all = self._places(exclude, "exclude", threads)
                # A pair for each user and item would outgrow the item table, which is then cut instead.
                if allowed is not None or len(names) * of_all.size > len(self.items):
                    allowed = less(allowed, of_all, len(self.items))
                else:
                    blocked.append(of_all)
        mask = mask_of([part(one, kept) for one in blocked], len(kept), len(self.items))
        found = ranked(self.tables, lambda: self._catalogue, queries, k, mask, part(allowed, kept), threads)
        if unknown == "popular" and len(kept) < len(names):
            left = np.flatnonzero(~good)
            mask = mask_of([part(one, left) for one in blocked], len(left), len(self.items))
            rest = popular(
                self.popular, self.popular_counts.astype(np.float32), k, mask, part(allowed, left), len(left)
            )
            found = merged(found, kept, rest, left)
            return Recommendations(names, *found, self.items, popular=~good)
        chosen = [names[place] for place in kept.tolist()]
        skipped = [names[place] for place in np.flatnonzero(~good).tolist()]
        return Recommendations(chosen, *found, self.items, skipped=skipped)

    def similar(
        self,
        items: Sequence[Any],
        k: int | None = None,
        *,
        metric: Literal["cosine", "dot"] = "cosine",
        threads: int | None = None,
    ) -> Recommendations:
        """The ``k`` items nearest to each of ``items`` by their vectors, the item itself left out. Unless stated ``k`` is 20,
        or all there are. Cosines of codes are exact in the sense of `Codes`: integers times two scales. Raises ``DataError``
        for unknown ids."""
        return self._similar(self.items, self.tables.items, items, k, metric, threads)

    def similar_users(
        self,
        users: Sequence[Any],
        k: int | None = None,
        *,
        metric: Literal["cosine", "dot"] = "cosine",
        threads: int | None = None,
    ) -> Recommendations:
        """The same of users. Raises ``MissingKnowledge`` where they have no table."""
        if self.tables.users is None or self.users is None:
            raise MissingKnowledge("users have no table in this student", "compare the vectors of fold_in(histories)")
        return self._similar(self.users, self.tables.users, users, k, metric, threads)

    def score(self, users: Sequence[Any], items: Any, *, threads: int | None = None) -> NDArray[np.float32]:
        """Scores of pairs, those of `recommend`: float32 ``[Q]`` where ``items`` are as many ids as users, ``[Q, L]`` where
        they are lists of equal length. Warns of users of whom nothing was learnt: their scores say nothing. Raises
        ``DataError`` for unknown ids, ``ConfigError`` for sets: no order."""
        names = ids_of(in_order(users, "users"), "users")
        rows = self._rows(names, "error", threads, "leave them out")
        items = held(in_order(items, "items"), "items")
        nested = is_nested(items)
        wanted = [
            ids_of(in_order(one, "items"), "items") if nested else [one]
            for one in (items if nested else ids_of(items, "items"))
        ]
        if len(wanted) != len(names) or len({len(one) for one in wanted}) > 1:
            raise ConfigError(
                f"items are {len(wanted):,} for {len(names):,} users, or lists of several lengths",
                "give an id for each user, or lists of one length",
            )
        flat = [item for one in wanted for item in one]
        places = places_of(self.items, flat, threads)
        if (places < 0).any():
            raise DataError(f"item {shown(str(flat[int(np.argmax(places < 0))]))} is unknown", "leave it out")
        own = self._seen_of(rows) if self.tables.users is None else None
        warn_of_blank(~self._learnt(rows, own), "users", "scores", stacklevel=2)
        queries = self._asking(rows, own)
        lists = places.reshape(len(names), len(wanted[0]) if wanted else 1)
        found = ranking.scores(queries, self.tables.items, lists, bias=self.tables.bias, threads=threads)
        return found if nested else found[:, 0]

    def fold_in(self, histories: Any, *, threads: int | None = None) -> Any:
        """What users with these items ask with: float32 ``[Q, D]``, or `Codes` where items are codes.

        ``histories`` are lists of item ids, one a user, or `Interactions` or a SciPy matrix in the file's rows. Models of
        sequences read lists alone, oldest first, or `Histories`; an item that comes twice counts where it comes first. Raises
        ``MissingKnowledge`` where the file has no encoder, ``DataError`` for unknown ids and for an empty history.
        """
        if self.tables.encoder is None:
            raise MissingKnowledge(
                "this student has no encoder of histories", "export it again: kdrs export RUN --out FILE"
            )
        given, _ = csr_of_lists(self.items, histories, "histories", None, threads, ordered=self._ordered)
        if (given.row_degrees == 0).any():
            raise DataError(
                f"history {int(np.argmin(given.row_degrees))} is empty",
                'leave it out, or recommend with unknown="popular"',
            )
        return asked(self.tables.encoder, given, self.tables.items)

    # --- within -------------------------------------------------------------------------------------------------------

    def _rows(self, names: list[Any], unknown: str, threads: int | None, way: str = SKIP) -> NDArray[np.int32]:
        if self.users is None:
            raise MissingKnowledge(
                "this student knows no users, only histories", "give histories=, or export it with --seen"
            )
        rows = places_of(self.users, names, threads)
        if unknown == "error" and (rows < 0).any():
            known = f"; a known id is {shown(self.users.take(np.arange(1))[0])}" if len(self.users) else ""
            raise DataError(
                str(Strangers.among(names, rows, "users")),
                way + (", or give their histories to recommend" if self.encodes else "") + known,
            )
        return rows

    def _places(self, ids: Any, what: str, threads: int | None) -> NDArray[np.int32]:
        """The known ones of some items, ascending; a warning where there are others. Of ``items`` one must be known."""
        wanted = ids_of(ids, what)
        places = places_of(self.items, wanted, threads)
        known = np.unique(places[places >= 0])
        if what == "items" and not known.size:
            raise DataError(f"items: none of the {len(wanted):,} ids is known", "give ids of the file's items")
        Strangers.among(wanted, places).warn(what, stacklevel=3)
        return known

    def _lists(self, lists: Any, what: str, queries: int, threads: int | None) -> Interactions:
        """The known ones of each user's items; a warning where there are others."""
        found, strangers = csr_of_lists(self.items, lists, what, queries, threads, skip=True)
        strangers.warn(what, stacklevel=3)
        return found

    def _learnt(self, rows: NDArray[np.int32], own: Interactions | None) -> NDArray[np.bool_]:
        """Of which users something was learnt; those without items, which are their ``own``, are as good as unknown."""
        good, users = rows >= 0, self.tables.users
        if users is not None and self.tables.bias is None:
            good[good] = ~blank(users[rows[good]])
        return good if own is None or users is not None else self._telling(own)

    def _telling(self, histories: Interactions) -> NDArray[np.bool_]:
        """Whose items say anything. The sum of items of which nothing was learnt is 0."""
        encoder = self.tables.encoder
        sums = encoder is not None and encoder.kind in ("sum", "ridge") and self.tables.bias is None
        if not sums or not self._blank_items.any():
            return histories.row_degrees > 0
        told = histories.row_of_pair[~self._blank_items[histories.indices]]
        return np.bincount(told, minlength=histories.shape[0]) > 0

    def _known_histories(self) -> Interactions:
        if self.seen is None:
            raise MissingKnowledge(
                "this student does not know what users have seen",
                "export it with --seen; ask with seen=False (--seen none), or give seen= as lists of item ids",
            )
        return self.seen

    def _seen_of(self, rows: NDArray[np.int32]) -> Interactions:
        """Of users who are unknown, -1, nothing."""
        return rows_of(self._known_histories(), rows)

    def _asking(self, rows: NDArray[np.int32], histories: Interactions | None) -> Any:
        if self.tables.users is not None:
            return self.tables.users[rows]
        assert self.tables.encoder is not None
        assert histories is not None
        return asked(self.tables.encoder, histories, self.tables.items)

    def _similar(
        self, names: Names, side: Items, ids: Sequence[Any], k: int | None, metric: str, threads: int | None
    ) -> Recommendations:
        if metric not in ("cosine", "dot"):
            raise ConfigError(f"metric is {shown(metric)}", "allowed: cosine, dot")
        asked_for = ids_of(ids, f"{names.kind}s")
        rows = places_of(names, asked_for, threads)
        if (rows < 0).any():
            first = shown(str(asked_for[int(np.argmax(rows < 0))]))
            count = f"{int((rows < 0).sum()):,} of {len(rows):,}"
            raise DataError(f"{count} {names.kind}s are unknown, first {first}", "leave them out")
        warn_of_blank(blank(side[rows]), f"{names.kind}s", "lists", stacklevel=3)
        itself = Interactions.from_pairs(np.arange(len(rows)), rows, len(rows), len(names))
        k = count_of(k, names, len(names) - 1)
        if metric == "cosine" and side is self.tables.items:
            found = self._unit_items.topk(self._unit_items.items[rows], k, seen=itself, threads=threads)
        else:
            table = side if metric == "dot" else unit(side)
            found = ranking.topk(table[rows], table, k, seen=itself, threads=threads)
        return Recommendations(asked_for, *filled(found, k), names, by="of")

    @cached_property
    def _blank_items(self) -> NDArray[np.bool_]:
        return blank(self.tables.items)

    @cached_property
    def _catalogue(self) -> ranking.Catalogue:
        return ranking.Catalogue(self.tables.items, bias=self.tables.bias)

    @cached_property
    def _unit_items(self) -> ranking.Catalogue:
        return ranking.Catalogue(unit(self.tables.items))

    def blocks(self, users: Sequence[Any] | None = None, size: int = 8192) -> Iterator[list[Any]]:
        """Its users, or those given, some at a time: what streams ask for."""
        if users is None:
            if self.users is None:
                raise MissingKnowledge("this student knows no users", "export it with --seen, or give histories")
            names = self.users
            yield from (
                names.take(np.arange(start, min(start + size, len(names)))).tolist()
                for start in range(0, len(names), size)
            )
        else:
            yield from (list(users[start : start + size]) for start in range(0, len(users), size))
