"""Negatives for each training pair, one and ten, in millions a second."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kdrs.core import sampling
from kdrs.data.interactions import Interactions
from measure import arguments, citeulike, movielens, report, times


def peers(seen: Interactions, threads: int, n: int) -> dict[str, Any]:
    rows = seen.row_of_pair
    keys = torch.from_numpy(rows.astype(np.int64) * seen.shape[1] + seen.indices)
    users = torch.from_numpy(rows).long().repeat_interleave(n)

    def rejection() -> None:
        drawn = torch.randint(seen.shape[1], users.shape)
        left = torch.arange(len(users))
        while len(left):
            key = users[left] * seen.shape[1] + drawn[left]
            place = torch.searchsorted(keys, key).clamp_(max=len(keys) - 1)
            left = left[keys[place] == key]
            drawn[left] = torch.randint(seen.shape[1], left.shape)

    sets = [set(seen.row(row).tolist()) for row in range(seen.shape[0])]

    def loop() -> None:
        rng = np.random.default_rng(0)
        for row in rows[:20_000]:
            item = rng.integers(seen.shape[1])
            while item in sets[row]:
                item = rng.integers(seen.shape[1])

    calls: dict[str, Any] = {
        "kdrs": lambda: sampling.negatives(seen, rows, n, seed=1, threads=threads),
        "kdrs, one thread": lambda: sampling.negatives(seen, rows, n, seed=1, threads=1),
        "torch rejection": rejection,
        "Python loop": loop,
    }
    try:
        import pandas as pd
        from lenskit.data import from_interactions_df

        frame = pd.DataFrame({"user_id": rows, "item_id": seen.indices})
        matrix = from_interactions_df(frame).interactions().matrix()
        theirs = np.asarray(rows, np.int32)
        calls["LensKit"] = lambda: matrix.sample_negatives(theirs, n=n)
    except (ImportError, AttributeError) as error:
        calls.pop("LensKit", None)
        print(f"LensKit left out: {error}")
    return calls


def main() -> None:
    options = arguments(__doc__)
    rng = np.random.default_rng(0)
    half = Interactions.from_pairs(*np.nonzero(rng.random((300, 1682)) < 0.5), 300, 1682)
    rows = []
    data = {"CiteULike": citeulike(), "MovieLens 100K": movielens(), "half of all seen": half}
    for name, n in (*((name, 1) for name in data), ("CiteULike", 10)):
        seen = data[name]
        taken = times(peers(seen, options.threads, n), max(options.repeats, 25), 3)
        draws = n * seen.n_pairs
        count = {peer: 20_000 if peer == "Python loop" else draws for peer in taken}
        rows.append({"data": name, "a pair": n, "draws": draws} | {p: count[p] / t / 1e6 for p, t in taken.items()})
    notes = [
        "Millions of draws a second. LensKit may return positives (it gives up after some attempts); the others never do."
    ]
    report("Negatives for each pair", rows, options, notes)


if __name__ == "__main__":
    main()
