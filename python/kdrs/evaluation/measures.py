"""Formulas: metrics of counted ranks, equal scores included, and what lists show apart from being right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdrs.errors import ConfigError
from kdrs.evaluation.protocols import METRICS


def rank_metrics(
    better: NDArray[np.integer[Any]],
    tied: NDArray[np.integer[Any]],
    degrees: NDArray[np.integer[Any]],
    ks: Sequence[int],
    names: Sequence[str] = METRICS,
    *,
    ties: str = "expected",
    formulas: str = "standard",
    n_items: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Metrics of held-out items whose ranks are known by counting: float64 ``[Q]`` by name, NaN without truth.

    ``better`` and ``tied`` [pairs] count the items strictly better and those equal (other held-out items included),
    queries one after the other, ``degrees`` [Q] of them each.

    ``expected`` is the exact mean over a uniformly random order of equal scores. With g better items, t = tied + 1
    equal ones of which m are held out, h held-out items before them and c = clamp(K - g, 0, t) places of the tie
    inside the list: hits m c/t; no hit C(t-m, c)/C(t, c); DCG (m/t) sum_{p=g+1}^{g+c} 1/log2(p+1); AP numerator
    (m/t) sum_{s=1}^{c} (h + 1 + (s-1)(m-1)/(t-1)) / (g+s). For one held-out item that is the rule of the
    leave-one-out protocol: hit clamp((K-g)/t, 0, 1), NDCG and MRR means over its t places. ``optimistic`` puts
    held-out items first among equals, ``pessimistic`` last.

    ``formulas``: ``standard``: hit, recall hits/|truth|, precision hits/K, NDCG over the ideal of min(|truth|, K)
    places, MRR 1/first, MAP over min(|truth|, K). ``bd``: rank r (from 1) counts if r < K and adds 1/log2(r+2), not
    normalised. ``caser``: NDCG looks at the first min(|truth|, K) places only; ``map`` becomes ``map@all``, over the
    whole ranking and divided by |truth|; it needs ``n_items``.
    """
    degrees = np.asarray(degrees, np.int64)
    g = np.asarray(better, np.int64)
    t = np.asarray(tied, np.int64) + 1
    starts = (np.cumsum(degrees) - degrees)[degrees > 0]
    if starts.size == g.size:  # one held-out item a query, nothing to sort or to group
        h = r = np.zeros_like(g)
        m = np.ones_like(g)
    else:
        query = np.repeat(np.arange(degrees.size), degrees)
        order = np.lexsort((g, query))
        query, g, t = query[order], g[order], t[order]
        place = np.arange(g.size) - np.repeat(starts, degrees[degrees > 0])
        opens = np.ones(g.size, bool)
        opens[1:] = (query[1:] != query[:-1]) | (g[1:] != g[:-1])
        group = np.cumsum(opens) - 1
        m = np.bincount(group)[group]
        r = np.arange(g.size) - np.flatnonzero(opens)[group]
        h = place - r
    if ties != "expected":
        g = g + r if ties == "optimistic" else g + t - m + r
        t = m = np.ones_like(g)
        h, r = h + r, np.zeros_like(g)
    pairs = _Tied(g.astype(np.float64), t.astype(np.float64), m.astype(np.float64), h, r, starts)

    truth = degrees[degrees > 0].astype(np.float64)
    # no table is longer than the last place that can count, whatever K
    counted_places = (g + t)[g < max(ks)].max(initial=0)
    depth = min(max(ks), max(int(counted_places), int(degrees.max(initial=0)))) + 1
    discount = 1 / np.log2(np.arange(1, depth + 1) + (2.0 if formulas == "bd" else 1.0))
    discounts = np.concatenate([[0.0], np.cumsum(discount)])
    ideal = np.concatenate([[1.0], np.cumsum(1 / np.log2(np.arange(2, depth + 2)))])
    found: dict[str, NDArray[np.float64]] = {}
    for k in ks:
        inside = pairs.inside(k - 1 if formulas == "bd" else k)
        hits = pairs.total(inside / pairs.t)
        places = np.minimum(truth, k)
        for name in names:
            if name == "hit":
                value = 1 - pairs.product(np.maximum(pairs.t - inside - pairs.r, 0) / (pairs.t - pairs.r))
            elif name == "recall":
                value = hits / truth
            elif name == "precision":
                value = hits / k
            elif name == "ndcg":
                if formulas == "caser":
                    counted = pairs.inside(np.repeat(places, truth.astype(np.int64)))
                else:
                    counted = inside
                gain = pairs.total(pairs.summed(discounts, counted, discount))
                value = gain if formulas == "bd" else gain / ideal[places.astype(np.int64)]
            elif name == "mrr":
                value = pairs.first_reciprocal(inside)
            elif formulas == "caser":
                continue
            else:
                value = pairs.total(pairs.precision_sums(inside)) / places
            found[f"{name}@{k}"] = value
    if formulas == "caser" and "map" in names:
        if n_items is None:
            raise ConfigError("MAP over the whole ranking needs n_items")
        found["map@all"] = pairs.total(pairs.precision_sums(pairs.inside(n_items))) / truth
    if starts.size == degrees.size:
        return found
    spread = {}
    for name, value in found.items():
        spread[name] = np.full(degrees.size, np.nan)
        spread[name][degrees > 0] = value
    return spread


class _Tied(NamedTuple):
    """Held-out items sorted by rank within their query; the letters are those of ``rank_metrics``."""

    g: NDArray[np.float64]
    t: NDArray[np.float64]
    m: NDArray[np.float64]
    h: NDArray[np.int64]
    r: NDArray[np.int64]
    """Number of the item within its tie, from 0."""
    starts: NDArray[np.int64]
    """First pair of each query that has one."""

    @property
    def any_tied(self) -> bool:
        return bool((self.t != 1).any())

    def inside(self, k: int | NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(k - self.g, 0, self.t)

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values if self.starts.size == values.size else np.add.reduceat(values, self.starts)

    def product(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values if self.starts.size == values.size else np.multiply.reduceat(values, self.starts)

    def summed(
        self, running: NDArray[np.float64], inside: NDArray[np.float64], single: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The mean of a place's weight over the tie, places past the list weighing 0."""
        low = np.minimum(self.g, running.size - 1).astype(np.int64)
        alone = np.where(inside > 0, single[np.minimum(low, single.size - 1)], 0.0)
        if not self.any_tied:
            return alone
        high = np.minimum(self.g + inside, running.size - 1).astype(np.int64)
        return np.where(self.t == 1, alone, (running[high] - running[low]) / self.t)

    def reciprocals(self, inside: NDArray[np.float64]) -> NDArray[np.float64]:
        """sum_{p=g+1}^{g+c} 1/p."""
        last = np.where(inside > 0, self.g + inside, 0).astype(np.int64)
        first = np.where(inside > 0, self.g, 0).astype(np.int64)
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, last.max(initial=0) + 1))])
        return harmonic[last] - harmonic[first]

    def precision_sums(self, inside: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each item's share of the sum of precisions at hits."""
        h1 = self.h + 1.0
        alone = np.where(inside > 0, h1 / (self.g + 1), 0.0)
        if not self.any_tied:
            return alone
        reciprocals = self.reciprocals(inside)
        slope = (self.m - 1) / np.maximum(self.t - 1, 1)
        tie = h1 * reciprocals + slope * (inside - (self.g + 1) * reciprocals)
        return np.where(self.t == 1, alone, tie / self.t)

    def first_reciprocal(self, inside: NDArray[np.float64]) -> NDArray[np.float64]:
        """E[1/place of the first held-out item, 0 past the list]; the best tie of a query always holds it."""
        g, t, m, c = (values[self.starts] for values in (self.g, self.t, self.m, inside))
        value = np.where(c > 0, 1 / (g + 1), 0.0)
        loose = np.flatnonzero((t > 1) & (c > 0))
        if loose.size:
            g, t, m, c = g[loose], t[loose], m[loose], c[loose]
            none_yet, mean = np.ones(loose.size), np.zeros(loose.size)
            for s in range(1, int(c.max()) + 1):
                chance = np.minimum(m / np.maximum(t - s + 1, 1), 1.0)
                mean += np.where(s <= c, none_yet * chance / (g + s), 0.0)
                none_yet *= 1 - chance
            value[loose] = mean
        return value


def beyond_accuracy(
    exposure: NDArray[np.integer[Any]], popularity: NDArray[np.integer[Any]], n_users: int
) -> dict[str, float]:
    """What lists show, apart from being right. ``exposure`` and ``popularity`` count, per item [I], how many lists
    show it and how many users have it in train; empty for no lists.

    * ``coverage``: share of the catalogue shown in at least one list.
    * ``popularity``: mean train count of the entries of all lists.
    * ``gini``: sum_i (2i - I - 1) x_i / (I sum_i x_i) over exposures x ascending; 0 shows all items equally often,
      towards 1 shows ever fewer.
    * ``novelty``: mean of -log2(count / users) over the entries, in bits (self-information; Zhou et al., PNAS 2010);
      an item nobody has counts as one that one user has.
    """
    shown_in_all = int(exposure.sum())
    if not shown_in_all:
        return {}
    n_items = exposure.size
    ascending = np.sort(exposure).astype(np.float64)
    weights = 2.0 * np.arange(1, n_items + 1) - n_items - 1
    information = -np.log2(np.maximum(popularity, 1) / max(n_users, 1))
    return {
        "coverage": float(np.count_nonzero(exposure) / n_items),
        "popularity": float(np.cumsum(exposure * popularity)[-1] / shown_in_all),
        "gini": float(np.cumsum(weights * ascending)[-1] / (n_items * shown_in_all)),
        "novelty": float(np.cumsum(exposure * information)[-1] / shown_in_all),
    }
