"""A hypernetwork's two products, forward and for the weights' gradient, in turns: the core's and torch's, bfloat16 and float32.

    python benches/quadratic.py [--threads 2] [--rounds 15] [--entities 2638] [--dim 200] [--out-dim 880]

Processors slow down while their tile registers are busy, and neighbours on a shared machine share them: compare what
stands in one round, not one run with another.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch

from kdrs.core import kernels
from kdrs.distillers._hypernetwork import _Pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--entities", type=int, default=2638)
    parser.add_argument("--dim", type=int, default=200)
    parser.add_argument("--out-dim", type=int, default=880)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    vectors, back = torch.randn(options.entities, options.dim), torch.randn(options.entities, options.out_dim)
    pairs = torch.randn(options.dim * (options.dim - 1) // 2, options.out_dim).mul_(0.05).requires_grad_()
    if not kernels.has_quadratic(vectors, bf16=True):
        print("no tile registers here: the core leaves bfloat16 to torch")
    times: dict[tuple[str, str], list[float]] = {}

    def clocked(name: str, part: str, work: Callable[[], object]) -> object:
        start = time.perf_counter()
        found = work()
        times.setdefault((name, part), []).append(time.perf_counter() - start)
        return found

    for _ in range(options.rounds):
        for name, bf16 in (("core bf16", True), ("torch bf16", True), ("core fp32", False), ("torch fp32", False)):
            chosen = kernels.has_quadratic if name.startswith("core") else lambda *_, bf16: False
            with mock.patch.object(kernels, "has_quadratic", chosen):
                out = clocked(name, "forward", lambda bf16=bf16: _Pairs.apply(vectors, pairs, bf16))
                clocked(name, "gradient", lambda out=out: torch.autograd.grad(out, pairs, back))
    operations = 2 * options.entities * pairs.numel()
    print("| | | least ms | median ms | GFLOP/s, least |\n|---|---|---|---|---|")
    for (name, part), seconds in times.items():
        least, middle = min(seconds), statistics.median(seconds)
        print(f"| {name} | {part} | {least * 1e3:.0f} | {middle * 1e3:.0f} | {operations / least / 1e9:.0f} |")


if __name__ == "__main__":
    main()
