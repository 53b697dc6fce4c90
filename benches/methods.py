"""What the methods draw and rank in an epoch: RRD, BD, leave-one-out with 499 candidates."""

from __future__ import annotations

import resource

import numpy as np
import torch

from kdrs.core import ranking, sampling
from measure import arguments, citeulike, factors, report, times


def main() -> None:
    options = arguments(__doc__)
    threads, seen = options.threads, citeulike()
    n_users, n_items = seen.shape
    rng = np.random.default_rng(0)
    pool = np.stack([rng.choice(n_items, 500, replace=False) for _ in range(n_users)]).astype(np.int32)
    law = np.exp(-np.arange(500) / 10)

    def rrd() -> None:
        sampling.weighted(pool, law, 100, seed=1, threads=threads)
        sampling.outside(seen, pool, 200, seed=2, threads=threads)

    mask = torch.ones(n_users, n_items)
    mask[torch.tensor(seen.row_of_pair).long(), torch.tensor(seen.indices).long()] = 0
    mask[torch.arange(n_users)[:, None], torch.from_numpy(pool).long()] = 0
    weights = torch.from_numpy(law).float().expand(n_users, -1)

    def rrd_by_torch() -> None:
        torch.multinomial(weights, 100)
        torch.multinomial(mask, 200)

    student, teacher = factors(n_users, n_items, 5), factors(n_users, n_items, 50, seed=1)

    def bd() -> None:
        sampling.discrepancy(
            student,
            teacher,
            seen,
            seen.row_degrees * 10,
            law=("exp", "tanh"),
            sharpness=(1e-4, 1e-2),
            seed=3,
            threads=threads,
        )

    def bd_by_torch() -> None:
        """A tenth of the users: ranks by two sorts, weights, draws of one epoch instead of ten."""
        for start in range(0, n_users // 10, 64):
            part = slice(start, min(start + 64, n_users // 10))
            ranks = []
            for q, x in (student, teacher):
                scores = torch.from_numpy(q[part]) @ torch.from_numpy(x).T
                ranks.append(scores.argsort(descending=True).argsort().float())
            gap = ranks[1] - ranks[0]
            n = int(seen.row_degrees[part].max())
            torch.multinomial((1e-4 * gap).exp(), n, replacement=True)
            torch.multinomial((-1e-2 * gap).clamp(min=0).tanh() + 1e-12, n, replacement=True)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bd()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    q, x = factors(n_users, n_items, 20)
    targets, candidates = pool[:, 499:].repeat(2, 1), np.ascontiguousarray(pool[:, :499])
    tq, tx, tc = torch.from_numpy(q), torch.from_numpy(x), torch.from_numpy(candidates).long()

    def loo() -> None:
        ranking.candidate_ranks(q, x, targets, candidates, threads=threads)

    def loo_by_torch() -> None:
        scores = torch.einsum("qd,qcd->qc", tq, tx[tc])
        for target in torch.from_numpy(targets).long().T:
            (scores > (tq * tx[target]).sum(1, keepdim=True)).sum(1)

    rows = []
    for name, ours, theirs, factor, bar in (
        ("RRD: 100 of 500 and 200 outside, each user", rrd, rrd_by_torch, 1, 20),
        ("BD: ranks refreshed, both laws drawn for 10 epochs", bd, bd_by_torch, 10, 1500),
        ("leave-one-out, 499 candidates, both targets", loo, loo_by_torch, 1, 15),
    ):
        taken = times({"ours": ours, "theirs": theirs}, 3 if bar > 1000 else options.repeats, 10)
        rows.append(
            {
                "work": name,
                "kdrs, ms": taken["ours"] * 1e3,
                "torch, ms": taken["theirs"] * factor * 1e3,
                "times torch": taken["theirs"] * factor / taken["ours"],
                "bar, ms": bar,
            }
        )
    notes = [
        f"Peak memory grew by {grown:.0f} MB in BD's draws. torch's BD time is that of a tenth of the users, times ten."
    ]
    report("An epoch's draws and ranks, CiteULike", rows, options, notes)


if __name__ == "__main__":
    main()
