"""What the page of a comparison tells besides its numbers, out of the data set and the runs themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdrs.comparison.background import Background, Item, Listed, Person, spread
from kdrs.comparison.groups import Trait
from kdrs.data import Dataset
from kdrs.data.titles import Titles
from kdrs.evaluation.evaluator import Evaluator

PEOPLE = 20
LISTED = 10
HISTORY = 15
"""Items of a history that are shown."""
HELD_OUT = 10
LISTS = 8
"""Models whose lists are shown."""


def traits_of(dataset: Dataset, part: str) -> tuple[Trait, ...]:
    """What queries are grouped by: how popular their held-out items are, and how active their user is."""
    truth = {"valid": dataset.valid, "test": dataset.test}[part]
    popularity = np.full(dataset.n_users, np.nan)
    sums = np.bincount(truth.row_of_pair, dataset.train.column_degrees[truth.indices], minlength=dataset.n_users)
    np.divide(sums, truth.row_degrees, out=popularity, where=truth.row_degrees > 0)
    several = truth.n_pairs > 0 and int(truth.row_degrees.max()) > 1
    counted = "the mean over the user's held-out items" if several else "that of the user's held-out item"
    return (
        Trait(
            "popularity",
            "By popularity of what was held out",
            "popularity: users who have the held-out items in training"
            if several
            else "popularity: users who have the held-out item in training",
            f"Popularity of an item is how many users have it in training; of a query, {counted}.",
            popularity,
        ),
        Trait(
            "activity",
            "By activity of the user",
            "activity: training items of the user",
            "Activity of a user is how many items they have in training.",
            dataset.train.row_degrees.astype(np.float64),
        ),
    )


def background_of(
    dataset: Dataset,
    evaluator: Evaluator,
    part: str,
    scorers: Mapping[str, Any],
    teacher: str | None,
    titles: Titles | None,
    several: bool,
) -> Background:
    """``scorers`` are what the evaluator ranked, by model, of one seed each; ``several`` says whether there are more."""
    truth = evaluator.truths[part]
    rows = spread(dataset.train.row_degrees, np.flatnonzero(truth.row_degrees > 0), PEOPLE)
    names = [name for name in scorers if name != teacher]
    names = [*([] if teacher is None or teacher not in scorers else [teacher]), *names][:LISTS]
    lists = {name: evaluator.lists(scorers[name], part, rows, LISTED) for name in names} if rows.size else {}

    def item(place: int) -> Item:
        return Item(dataset.items[place], None if titles is None else titles[place])

    people = []
    for at, row in enumerate(rows.tolist()):
        own = dataset.train.row(row)
        if dataset.order is not None:
            own = dataset.order[dataset.train.indptr[row] : dataset.train.indptr[row + 1]][::-1]
        held = truth.row(row).tolist()
        theirs = set() if teacher not in lists else set(lists[teacher][at].tolist())
        listed = {
            name: tuple(Listed(item(i), i in held, i in theirs) for i in found[at].tolist() if i >= 0)
            for name, found in lists.items()
        }
        shown = tuple(map(item, own[:HISTORY].tolist()))
        people.append(Person(dataset.users[row], int(own.size), shown, tuple(map(item, held[:HELD_OUT])), listed))
    return Background(
        _facts(dataset, evaluator, titles), tuple(people), _notes(dataset, evaluator, len(scorers), len(names), several)
    )


def _facts(dataset: Dataset, evaluator: Evaluator, titles: Titles | None) -> tuple[tuple[str, str], ...]:
    pairs = ", ".join(f"{getattr(dataset, part).n_pairs:,} {part}" for part in ("train", "valid", "test"))
    split = ", ".join(f"{key} {value}" for key, value in dataset.split.items() if key != "kind")
    ranked = "all items" if evaluator.candidates is None else f"{evaluator.candidates.shape[1]} stored candidates"
    facts = [
        ("data set", dataset.name),
        ("users and items", f"{dataset.n_users:,} users, {dataset.n_items:,} items"),
        ("pairs", pairs),
        ("split", f"{dataset.split.get('kind', 'given')}" + (f" ({split})" if split else "")),
        ("ranked", ranked),
        ("fingerprint", dataset.fingerprint[:16]),
    ]
    if titles is not None:
        facts.append(("titles", f"{titles.source}: {titles.n_known:,} of {dataset.n_items:,} items"))
    return tuple(facts)


def _notes(dataset: Dataset, evaluator: Evaluator, n_models: int, n_shown: int, several: bool) -> tuple[str, ...]:
    order = "the latest first" if dataset.order is not None else "in no order, for the data have none"
    notes = [
        f"Up to {PEOPLE} users with held-out items, evenly spaced from the least active to the most; nobody chose them.",
        f"Of each history up to {HISTORY} training items, {order}; of each list the first {LISTED}. Lists leave out what the "
        "user has in training" + (", and in the other held-out part." if evaluator.mask != "train" else "."),
    ]
    if evaluator.candidates is not None:
        notes.append("These lists rank all items; the metrics above rank stored candidates.")
    if several:
        notes.append("Of a model with several seeds the first one's lists are shown.")
    if n_shown < n_models:
        notes.append(f"Lists of the first {n_shown} of {n_models} models are shown.")
    return tuple(notes)
