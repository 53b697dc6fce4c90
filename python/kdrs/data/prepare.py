"""From a source to a prepared data set: read, filter, split, draw candidates; every step counted."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.data import filters, splits
from kdrs.data._options import Options, check_flags
from kdrs.data.candidates import draw_candidates
from kdrs.data.checks import INT32_MAX, as_doubles
from kdrs.data.dataset import PARTS, Dataset
from kdrs.data.interactions import Interactions
from kdrs.data.readers import read_parts, read_with
from kdrs.data.table import Table, aligned, concatenated, stable_order
from kdrs.errors import ConfigError, DataError, nearest, shown

ID_ORDERS = ("appearance", "numeric")


@dataclass(frozen=True)
class Recipe:
    """What is done to a source, in this order: read, one row a pair, rating, k-core, per user, per item, split."""

    read: Options = field(default_factory=Options)
    duplicates: str = "first"
    """Which of several rows of one pair stays: first, last, max, sum or error."""
    min_rating: float | None = None
    """Rows rated lower are dropped."""
    k_core: int | None = None
    """Users and items with fewer rows are dropped until none is left."""
    min_user: int | None = None
    """Users with fewer rows are dropped, once."""
    min_item: int | None = None
    """Items with fewer rows are dropped, once."""
    split: str = "leave-one-out"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of train, valid and test, for ratio, ratio-users, ordered and time."""
    n_valid: int = 1
    n_test: int = 1
    last: str = "test"
    """Which part the very last pairs go to, for last-n."""
    short_users: str = "keep"
    """Users with fewer than three pairs under leave-one-out: keep (in train only) or drop."""
    cold_items: str = "keep"
    """Held-out pairs of items that are not trained on: keep or drop."""
    cold_users: str = "keep"
    """Held-out pairs of users who are not trained on: keep (counted, and warned of in training) or drop."""
    complete_users: bool = False
    """Hold out nothing of users that lack validation or test pairs."""
    candidates: int = 0
    """Items stored for each user to rank the held-out ones among; 0 ranks all items."""
    seed: int = 0
    id_order: str = "appearance"
    allow_leak: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("split", self.split, splits.KINDS),
            ("duplicates", self.duplicates, filters.RULES),
            ("short users", self.short_users, ("keep", "drop")),
            ("cold items", self.cold_items, ("keep", "drop")),
            ("cold users", self.cold_users, ("keep", "drop")),
            ("id order", self.id_order, ID_ORDERS),
        ):
            if value not in allowed:
                raise ConfigError(f"unknown {name} {shown(value)}", nearest(str(value), allowed))
        for name, least in (
            *(("k_core", 1), ("min_user", 1), ("min_item", 1)),
            *(("n_valid", 0), ("n_test", 0), ("candidates", 0), ("seed", 0)),
        ):
            value = getattr(self, name)
            if value is None and name in ("k_core", "min_user", "min_item"):
                continue
            object.__setattr__(self, name, whole_number(value, name.replace("_", "-"), least))
        check_flags(self, "complete_users", "allow_leak")
        if not isinstance(self.read, Options):
            raise ConfigError(f"read is {shown(self.read)}", "allowed: kdrs.data.Options(...)")
        if self.min_rating is not None:
            number = not isinstance(self.min_rating, bool) and isinstance(self.min_rating, (int, float, np.number))
            if not number or not np.isfinite(self.min_rating):
                raise ConfigError(f"min-rating is {shown(self.min_rating)}; allowed: a finite number")
            object.__setattr__(self, "min_rating", float(as_doubles(np.asarray(self.min_rating))) + 0.0)  # never -0
        object.__setattr__(self, "fractions", splits.checked_fractions(self.fractions))

    def stated(self) -> dict[str, Any]:
        """The choices that differ from the defaults, ready for JSON."""
        mine, default = asdict(self), asdict(Recipe())
        changed = {name: value for name, value in mine.items() if name != "read" and value != default[name]}
        if "fractions" in changed:
            changed["fractions"] = list(changed["fractions"])
        return {**({"read": self.read.stated()} if self.read.stated() else {}), **changed}


def whole_number(value: Any, name: str, least: int) -> int:
    """An integer from ``least`` to 2^31 - 1, which is as far as runs and prepared data sets are read back."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= INT32_MAX:
        raise ConfigError(f"{name} is {shown(value)}", f"allowed: integers from {least} to {INT32_MAX}")
    return int(value)


PRESETS: dict[str, dict[str, Any]] = {
    "loo-499": {"min_user": 5, "split": "leave-one-out", "candidates": 499},
    "fr-811": {"min_user": 5, "split": "ordered", "fractions": (0.8, 0.1, 0.1)},
    "hetcomp": {
        "min_user": 5,
        "split": "ratio",
        "fractions": (0.6, 0.2, 0.2),
        "cold_items": "drop",
        "complete_users": True,
    },
    "bd": {"min_user": 5, "split": "last-n", "last": "valid"},
    "bd-notebook": {"keep_counts": True, "duplicates": "last", "min_user": 6, "split": "last-n", "last": "valid"},
    "fr-caser": {"split": "ordered", "fractions": (0.8, 0.0, 0.2)},
    "unkd": {"min_user": 5, "split": "ratio-users", "fractions": (0.8, 0.04, 0.16)},
}
"""Splits of published protocols: DE-RRD and HyperKDMA, KDs and RCE-KD, HetComp, BD (order of the file; as its notebook has it,
each line's count taken for an item), Caser and RD (whose hyperparameters were tuned on 0.7, 0.1, 0.2), UnKD."""


def prepare(
    source: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | Mapping[str, Table] | Table,
    recipe: Recipe | None = None,
    *,
    name: str | None = None,
    published: bool = False,
) -> Dataset:
    """The data set of a file, a table, or ready-made parts (files or tables): ``{"train": ..., "valid": ..., "test": ...}``.

    Warns of what makes results doubtful (`doubts_of`), unless the recipe is a ``published`` one that is followed as it is.

    Raises ``DataError`` for input that cannot be used or a step that leaves nothing, ``ConfigError`` for a recipe
    that does not fit the source.
    """
    _check_source(source)
    recipe = recipe or Recipe(split="given" if isinstance(source, Mapping) else Recipe.split)
    if isinstance(source, Mapping):
        return prepare_given(_read_given(source, recipe), recipe, name=name or "data")
    if recipe.split == "given":
        raise ConfigError("split 'given' needs the files of the parts", "name them with --valid FILE and --test FILE")
    if recipe.split == "none" and recipe.candidates:
        raise ConfigError(
            f"candidates is {recipe.candidates}, and split 'none' holds nothing out to rank among them",
            "leave it out, or choose another split",
        )
    if isinstance(source, Table):
        _refuse_reading(recipe)
    table = source if isinstance(source, Table) else read_with(source, recipe.read)
    if not published:
        for doubt in doubts_of(table, recipe):
            warnings.warn(doubt, stacklevel=2)
    table = filtered(table, recipe).compact(recipe.id_order)
    split = split_table(table, recipe)
    if recipe.split != "none" and not (split.part > splits.TRAIN).any():
        raise DataError(
            f"split {recipe.split!r} holds nothing out: {table.n_rows:,} pairs of {len(table.user_ids):,} users",
            "users have too few pairs for it; loosen the filters or choose another split",
        )
    table = table.noted(f"split: {recipe.split}", **split.facts, **_sizes(split.part))
    parts = [_rows(table, split.part == code) for code in (splits.TRAIN, splits.VALID, splits.TEST)]
    default = "table" if isinstance(source, Table) else Path(source).stem or "data"
    return _assembled(parts, table, recipe, split.spec, name or default)


def _check_source(source: Any) -> None:
    """Raises ``ConfigError`` for what is no path, table or parts, such as a data frame."""
    columns = isinstance(source, Mapping) and source.keys() and not set(source) & set(PARTS)
    if isinstance(source, (str, os.PathLike, Table)) or (isinstance(source, Mapping) and not columns):
        return
    allowed = "allowed: a path, a table, or the paths of parts by name (train, valid, test)"
    if isinstance(source, Dataset):
        raise ConfigError(f"the source is a prepared data set; {allowed}", "it is ready: train on it")
    what = (
        f"a map of {', '.join(shown(str(name), 20) for name in list(source)[:4])}"
        if columns
        else f"a {type(source).__name__}"
    )
    raise ConfigError(
        f"the source is {what}; {allowed}", "of a data frame or columns: kdrs.data.prepare(kdrs.data.from_frame(FRAME))"
    )


AT_RANDOM = ("leave-one-out", "ratio", "ratio-users")
"""Splits that hold out at random."""


def doubts_of(table: Table, recipe: Recipe) -> list[str]:
    """What makes results on this data set doubtful, in words: all ratings taken as positives, a split that trains on what
    comes after the test."""
    doubts = []
    ratings = table.ratings
    if recipe.min_rating is None and ratings is not None and ratings.size and ratings.min() < ratings.max():
        low, high = float(ratings.min()), float(ratings.max())
        doubts.append(
            f"ratings from {low:g} to {high:g} all count as liked: say from which on with --min-rating ({low:g} takes all)"
        )
    if recipe.split in AT_RANDOM and table.times is not None and table.times.min() < table.times.max():
        doubts.append(
            f"split {recipe.split!r} holds out at random, and the rows have times: what is trained on may come after what is "
            "tested. --split last-n or time keep the order"
        )
    return doubts


def prepare_given(tables: Mapping[str, Table], recipe: Recipe, *, name: str = "data") -> Dataset:
    """The data set of ready-made parts: tables by name, as ``read_parts`` gives; those of other ids are joined by id."""
    for option in ("k_core", "min_user", "min_item"):
        if getattr(recipe, option) is not None:
            raise ConfigError(
                f"{option.replace('_', '-')} would change a ready-made split",
                "filter before you split, or join the files and let kdrs split them",
            )
    _check_names(tables)
    present = [part for part in PARTS if part in tables]
    cleaned = [filtered(table, recipe) for table in aligned([tables[part] for part in present])]
    whole = concatenated(cleaned).compact(recipe.id_order)
    bounds = np.cumsum([table.n_rows for table in cleaned])[:-1]
    codes = np.split(np.arange(whole.n_rows), bounds)
    empty = np.zeros(0, np.int64)
    rows = {part: codes[present.index(part)] if part in present else empty for part in PARTS}
    trained = np.bincount(whole.users[rows["train"]], minlength=len(whole.user_ids)) > 0
    facts: dict[str, int] = {"users_not_in_train": int(np.count_nonzero(~trained))}
    spec: dict[str, Any] = {"kind": "given", **({"seed": recipe.seed} if recipe.candidates else {})}
    if recipe.cold_users == "drop":
        known = {part: rows[part][trained[whole.users[rows[part]]]] for part in PARTS}
        facts["cold_user_pairs_left_out"] = sum(int(rows[part].size - known[part].size) for part in PARTS)
        rows, spec = known, {**spec, "cold_users": "drop"}
    whole = whole.noted("parts as given", **facts, **{part: int(rows[part].size) for part in PARTS})
    return _assembled(
        [_rows(whole, rows[part]) for part in PARTS],
        whole,
        recipe,
        spec,
        name,
    )


def filtered(table: Table, recipe: Recipe) -> Table:
    """The table after the filters of a recipe."""
    table = filters.collapse(table, recipe.duplicates)
    if recipe.min_rating is not None:
        table = filters.min_rating(table, recipe.min_rating)
    if recipe.k_core is not None:
        table = filters.k_core(table, recipe.k_core)
    if recipe.min_user is not None:
        table = filters.min_per_user(table, recipe.min_user)
    if recipe.min_item is not None:
        table = filters.min_per_item(table, recipe.min_item)
    if recipe.short_users == "drop" and recipe.split == "leave-one-out":
        table = filters.min_per_user(table, 3)
    return table


def split_table(table: Table, recipe: Recipe) -> splits.Split:
    """The split of a recipe over a table of distinct pairs."""
    match recipe.split:
        case "leave-one-out":
            split = splits.leave_one_out(table, recipe.seed)
        case "ratio":
            split = splits.ratio(table, recipe.fractions, recipe.seed)
        case "ratio-users":
            split = splits.ratio_users(table, recipe.fractions, recipe.seed)
        case "ordered":
            split = splits.ordered(table, recipe.fractions)
        case "last-n":
            split = splits.last_n(table, recipe.n_valid, recipe.n_test, last=recipe.last)
        case "time":
            split = splits.by_time(table, recipe.fractions)
        case "none":
            split = splits.none(table)
        case _:
            raise ConfigError(f"split {shown(recipe.split)} cannot be made", nearest(recipe.split, splits.KINDS))
    if recipe.cold_items == "drop":
        split = splits.only_known_items(table, split)
    if recipe.cold_users == "drop":
        split = splits.only_known_users(table, split)
    if recipe.complete_users:
        split = splits.only_complete_users(table, split)
    return split


def _read_given(source: Mapping[str, Any], recipe: Recipe) -> dict[str, Table]:
    """The tables of parts that are files, or tables already."""
    if recipe.split != "given":
        remedy = "use --split given"
        if recipe.split == "none":
            remedy += "; to join the parts, prepare them, then: kdrs data prepare PREPARED --split none --out ALL"
        raise ConfigError(f"the parts are given, but split {recipe.split!r} was asked for", remedy)
    _check_names(source)
    parts = {part: source[part] for part in PARTS if part in source}
    if all(isinstance(part, Table) for part in parts.values()):
        _refuse_reading(recipe)
        return parts
    for name, part in parts.items():
        if not isinstance(part, (str, os.PathLike)):
            raise ConfigError(
                f"{name} is a {type(part).__name__}; allowed: paths, or tables of all parts",
                "kdrs.data.from_frame makes a table of a frame, kdrs.data.read of a file",
            )
    if len({os.path.realpath(path) for path in parts.values()}) < len(parts):
        raise ConfigError("one file is named for two parts", "name a file for each part")
    return read_parts(parts, recipe.read)


def _check_names(parts: Mapping[str, Any]) -> None:
    if set(parts) - set(PARTS) or "train" not in parts:
        raise ConfigError(f"parts {sorted(parts)}; allowed: train, and perhaps valid and test")


def _refuse_reading(recipe: Recipe) -> None:
    """Raises ``ConfigError`` for options of reading with tables, which are read already."""
    if recipe.read.stated():
        raise ConfigError(
            f"{', '.join(name.replace('_', '-') for name in recipe.read.stated())} with a table, which is read already",
            "give them to kdrs.data.read",
        )


class _Part:
    """Pairs of one part: the matrix, and its rows in order."""

    def __init__(self, table: Table, rows: NDArray[np.int64]):
        shape = (len(table.user_ids), len(table.item_ids))
        self.interactions = Interactions.from_pairs(table.users[rows], table.items[rows], *shape)
        self.table, self.rows = table, rows

    def ordered_items(self) -> NDArray[np.int32]:
        """int32 ``[pairs]``: items by user, oldest first, or first in the file first."""
        times = self.table.times
        rows = self.rows if times is None else self.rows[np.argsort(times[self.rows], kind="stable")]
        return self.table.items[rows[stable_order(self.table.users[rows])]]


def _rows(table: Table, rows: NDArray[Any]) -> _Part:
    return _Part(table, np.flatnonzero(rows) if rows.dtype == bool else rows)


def _sizes(part: NDArray[np.int8]) -> dict[str, int]:
    sizes = {name: int(np.count_nonzero(part == code)) for code, name in enumerate(PARTS)}
    left_out = int(np.count_nonzero(part == splits.LEFT_OUT))
    return {**sizes, **({"left_out": left_out} if left_out else {})}


def _assembled(parts: list[_Part], table: Table, recipe: Recipe, spec: dict[str, Any], name: str) -> Dataset:
    train, valid, test = (part.interactions for part in parts)
    candidates = None
    steps = list(table.steps)
    if recipe.candidates:
        full = train.union(valid).union(test)
        candidates = draw_candidates(full, recipe.candidates, recipe.seed)
        spec = {**spec, "candidates": recipe.candidates}
        width = candidates.shape[1]
        short = len(candidates) if width < recipe.candidates else int(np.count_nonzero(candidates[:, -1] < 0))
        if short:
            fewest = int(np.count_nonzero(candidates >= 0, axis=1).min())
            warnings.warn(
                f"{short:,} of {len(candidates):,} users have fewer than {recipe.candidates:,} unseen items (the fewest "
                f"{fewest:,}), and so fewer candidates",
                stacklevel=2,
            )
        steps.append({"step": f"{recipe.candidates} candidates a user", "users_with_fewer": short})
    return Dataset.from_interactions(
        train,
        valid,
        test,
        users=table.user_ids,
        items=table.item_ids,
        name=name,
        order=None if table.order_by is None else parts[0].ordered_items(),
        order_by=table.order_by,
        candidates=candidates,
        split=spec,
        sources=table.sources,
        options={**recipe.stated(), "format": table.options.get("format", "table")},
        steps=steps,
        allow_leak=recipe.allow_leak,
    )


HOLDING = tuple(kind for kind in splits.KINDS if kind != "none")
"""Splits that hold something out."""
SPLIT_OPTIONS = {
    "candidates": HOLDING,
    "fractions": ("ratio", "ratio-users", "ordered", "time"),
    "n_valid": ("last-n",),
    "n_test": ("last-n",),
    "last": ("last-n",),
    "short_users": ("leave-one-out",),
    "cold_items": tuple(kind for kind in HOLDING if kind != "given"),
    "cold_users": HOLDING,
    "complete_users": tuple(kind for kind in HOLDING if kind != "given"),
    "allow_leak": ("given",),
}
"""Options that some splits alone read."""


def with_options(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with reader options and choices replaced; ``None`` changes nothing.

    Raises ``ConfigError`` for a choice that the recipe's split does not read.
    """
    stated = {name: value for name, value in changes.items() if value is not None}
    of_reader = {name: stated.pop(name) for name in list(stated) if name in Options.__dataclass_fields__}
    changed = replace(recipe, read=replace(recipe.read, **of_reader), **stated)
    for name in stated:
        if changed.split not in (known := SPLIT_OPTIONS.get(name, splits.KINDS)):
            raise ConfigError(
                f"split {changed.split!r} has no use for {name.replace('_', '-')}",
                f"leave it out, or choose another split: {', '.join(known)}",
            )
    if changed.split == "none":  # what the usual preparation brings along for what it holds out
        changed = replace(changed, candidates=0, cold_items="keep", cold_users="keep", complete_users=False)
    drawing = AT_RANDOM
    if "seed" in stated and changed.split not in drawing and not changed.candidates:
        raise ConfigError(
            f"seed {changed.seed} has no use: split {changed.split!r} draws nothing, and no candidates are drawn",
            f"leave it out, ask for candidates, or choose another split: {', '.join(drawing)}",
        )
    return changed
