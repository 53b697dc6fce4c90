"""Masked top-50 lists of packed codes, against a bare product of the float32 factors and the top-k of those."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kdrs import Codes
from kdrs.core import ranking
from measure import arguments, citeulike, factors, report, times

K = 50
BITS = ((8, 8), (4, 4), (3, 3), (2, 2), (1, 1), (8, 3), (8, 2), (8, 1))
"""Of queries and of items."""


def calls(q: np.ndarray, x: np.ndarray, seen: Any, threads: int) -> dict[str, Any]:
    tq, tx = torch.from_numpy(q), torch.from_numpy(x)
    step = max(1, 2**29 // (4 * len(x)))
    out = torch.empty(min(step, len(q)), len(x))

    def product() -> None:
        for start in range(0, len(q), step):
            part = tq[start : start + step]
            torch.mm(part, tx.T, out=out[: len(part)])

    made = {bits: (Codes.of(q, bits), Codes.of(x, bits)) for bits in sorted({b for pair in BITS for b in pair})}

    def coded(mine: int, theirs: int) -> Any:
        return lambda: ranking.topk(made[mine][0], made[theirs][1], K, seen=seen, threads=threads)

    return {
        "torch.mm, float32": product,
        "float32": lambda: ranking.topk(q, x, K, seen=seen, threads=threads),
        **{f"{mine} x {theirs} bits": coded(mine, theirs) for mine, theirs in BITS},
    }


def main() -> None:
    options = arguments(__doc__)
    seen = citeulike()
    q, x = factors(*seen.shape, 200)
    taken = times(calls(q, x, seen, options.threads), options.repeats, 8)
    product = taken["torch.mm, float32"]
    rows = [
        {"what": name, "ms": seconds * 1e3, "of torch.mm": seconds / product, "of float32": seconds / taken["float32"]}
        for name, seconds in taken.items()
    ]
    report(f"Masked top-50 of codes, {len(q):,} x {len(x):,} x 200", rows, options)


if __name__ == "__main__":
    main()
