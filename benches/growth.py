"""How time grows when users, items, interactions, K or draws double; and memory for a streamed catalogue."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import numpy as np

from kdrs.core import ranking, sampling
from measure import arguments, factors, made_up, report, times


def calls(users: int, items: int, pairs: int, k: int, threads: int) -> dict[str, Callable[[], Any]]:
    seen = made_up(users, items, pairs)
    q, x = factors(users, items, 32)
    lists = ranking.topk(q, x, k, seen=seen, threads=threads).items
    rows_of_pairs, few = seen.row_of_pair, np.arange(users // 10)
    return {
        "topk": lambda: ranking.topk(q, x, k, seen=seen, threads=threads),
        "ranks": lambda: ranking.ranks(q, x, seen, threads=threads),
        "metrics": lambda: ranking.metrics(lists, seen, [k], threads=threads),
        "negatives": lambda: sampling.negatives(seen, rows_of_pairs, 10, seed=1, threads=threads),
        "outside": lambda: sampling.outside(seen, lists, k, seed=1, threads=threads),
        "discrepancy": lambda: sampling.discrepancy(
            (q[few], x), (-q[few], x), seen, 20, rows=few, law="exp", sharpness=1e-4, seed=1, threads=threads
        ),
    }


def main() -> None:
    options = arguments(__doc__)
    threads = options.threads
    base = {"users": 4000, "items": 20_000, "pairs": 100_000, "k": 50}
    rows: list[dict[str, Any]] = []
    for grown in (None, *base):
        size = base | ({grown: 2 * base[grown]} if grown else {})
        taken = times(calls(**size, threads=threads), options.repeats, 3)
        rows.append({"doubled": grown or "nothing"} | {name: t * 1e3 for name, t in taken.items()})
    first = rows[0]
    for row in rows[1:]:
        row.update({name: f"{row[name]:.3g} ({row[name] / first[name]:.2f}x)" for name in row if name != "doubled"})
    q, x = factors(2_000, 1_000_000, 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ranking.topk(q, x, 100, threads=threads)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    notes = [
        "Milliseconds. 2,000 queries x 1,000,000 items x 32, top-100: the items take "
        f"{x.nbytes / 2**20:.0f} MB, the call {grown_mb:.0f} MB more, of which the packed catalogue does not depend on the "
        "number of queries: for 1 M queries only the lists (0.8 GB at K 100) are added."
    ]
    report("Growth", rows, options, notes)


if __name__ == "__main__":
    main()
