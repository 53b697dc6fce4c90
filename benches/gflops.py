"""Arithmetic rate of the fused top-50 against the machine's best single-precision matrix product, by dimension."""

from __future__ import annotations

import numpy as np
import torch

from kdrs.core import ranking
from measure import arguments, citeulike, factors, report, times


def main() -> None:
    options = arguments(__doc__)
    side = 3072
    a = torch.rand(side, side)
    b, out = a.numpy(), torch.empty_like(a)
    target = np.empty_like(b)
    best = times({"torch": lambda: torch.mm(a, a, out=out), "NumPy": lambda: np.matmul(b, b, out=target)}, 5)
    sgemm = max(2e-9 * side**3 / seconds for seconds in best.values())
    seen = citeulike()
    rows = []
    for dim in (8, 16, 32, 64, 128, 256, 512):
        q, x = factors(*seen.shape, dim)
        tq, tx, scores = torch.from_numpy(q), torch.from_numpy(x), torch.empty(seen.shape)
        t = times(
            {
                "kdrs": lambda q=q, x=x: ranking.topk(q, x, 50, seen=seen, threads=options.threads),
                "mm": lambda q=tq, x=tx, out=scores: torch.mm(q, x.T, out=out),
            },
            options.repeats,
            5,
        )
        rate = {name: 2e-9 * len(q) * len(x) * dim / seconds for name, seconds in t.items()}
        rows.append(
            {
                "dim": dim,
                "kdrs, ms": t["kdrs"] * 1e3,
                "kdrs, GFLOP/s": rate["kdrs"],
                "torch.mm on the same factors, GFLOP/s": rate["mm"],
                "kdrs of best sgemm": rate["kdrs"] / sgemm,
            }
        )
    notes = [
        f"Best sgemm ({side}^3): {sgemm:.0f} GFLOP/s. A rate counts 2 x queries x items x dim as if all were computed."
    ]
    report("Arithmetic rate", rows, options, notes)


if __name__ == "__main__":
    main()
