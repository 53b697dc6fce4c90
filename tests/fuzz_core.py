"""Calls of the core with random arguments: sizes from 0, any strides, types and alignment, numbers from wrong to absurd.

``python tests/fuzz_core.py --seconds 600`` prints how many calls gave a result and how many were refused, by function. Anything
else than a result, a ``KdrsError``, a ``ValueError`` or a ``MemoryError`` ends it with the seed of the call.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kdrs.core import kernels, ranking, sampling
from kdrs.core.codes import Codes
from kdrs.data.interactions import Interactions
from kdrs.errors import KdrsError

REFUSALS = (KdrsError, ValueError, MemoryError)
Rng = np.random.Generator


class Call(NamedTuple):
    """A function and its arguments: ``arrays`` by name, which may be twisted, and the rest."""

    function: Callable[..., Any]
    arrays: dict[str, Any]
    rest: dict[str, Any]

    def run(self, **twisted: Any) -> Any:
        return self.function(**{**self.arrays, **twisted}, **self.rest)


def quarters(rng: Rng, *shape: int) -> np.ndarray:
    """float32 that float16 and bfloat16 hold exactly."""
    return (rng.integers(-8, 9, shape) / 4).astype(np.float32)


def ids(rng: Rng, below: int, *shape: int, low: int = 0) -> np.ndarray:
    return rng.integers(low, max(below, low + 1), shape).astype(np.int32)


def floats(values: Any) -> torch.Tensor:
    """A float32 tensor; tensors keep their strides."""
    if isinstance(values, torch.Tensor):
        return (
            torch.as_tensor(sampling.numpy_of(values))
            if values.is_sparse or values.is_meta
            else values.detach().float()
        )
    try:
        return torch.from_numpy(sampling.numpy_of(values).astype(np.float32))
    except TypeError as error:
        raise ValueError("no numbers") from error


def seen_of(rng: Rng, rows: int, items: int) -> Interactions:
    pairs = rng.random((rows, items)) < rng.choice([0.0, 0.3, 0.9])
    users, columns = np.nonzero(pairs)
    return Interactions.from_pairs(users, columns, rows, items)


def size(rng: Rng, most: int = 6) -> int:
    """0 one time in five."""
    return int(rng.choice([0, *rng.integers(1, most + 1, 4)]))


def number(rng: Rng) -> int:
    return int(rng.choice([0, 1, 2, 5, 40]))


def negatives(rng: Rng) -> Call:
    users, items = size(rng), size(rng)
    arrays = {"rows": ids(rng, users, size(rng) if users else 0)}
    if rng.random() < 0.5:
        arrays["weights"] = np.abs(quarters(rng, items))
    rest = {"seen": seen_of(rng, users, items), "n": number(rng), "seed": 1, "exhausted": "mask"}
    return Call(sampling.negatives, arrays, rest)


def weighted(rng: Rng) -> Call:
    queries, width = size(rng), size(rng)
    shape = (width,) if rng.random() < 0.5 else (queries, width)
    arrays = {"lists": ids(rng, 50, queries, width, low=-1), "weights": np.abs(quarters(rng, *shape))}
    return Call(sampling.weighted, arrays, {"n": number(rng), "seed": 1, "order": str(rng.choice(["list", "draw"]))})


def outside(rng: Rng) -> Call:
    queries, items = size(rng), size(rng)
    lists = ids(rng, items, queries, size(rng), low=-1)
    return Call(sampling.outside, {"lists": lists}, {"seen": seen_of(rng, queries, items), "n": number(rng), "seed": 1})


def discrepancy(rng: Rng) -> Call:
    queries, items = size(rng), size(rng)
    arrays = {"student": quarters(rng, queries, items), "teacher": quarters(rng, queries, items)}
    draws = number(rng) if rng.random() < 0.5 else rng.integers(0, 4, queries)
    law = str(rng.choice(["exp", "tanh", "tanh-over"]))
    seen = None if rng.random() < 0.5 else seen_of(rng, queries, items)
    return Call(sampling.discrepancy, arrays, {"seen": seen, "draws": draws, "law": law, "sharpness": 0.5, "seed": 1})


def discrepancy_of_factors(rng: Rng) -> Call:
    queries, items, dim = size(rng), size(rng), size(rng)

    def run(q: Any, x: Any, bias: Any, **rest: Any) -> Any:
        return sampling.discrepancy((q, x, bias), (q, x), None, 3, law="exp", sharpness=1.0, seed=2, **rest)

    arrays = {"q": quarters(rng, queries, dim), "x": quarters(rng, items, dim), "bias": quarters(rng, items)}
    return Call(run, arrays, {})


def _factors(rng: Rng) -> tuple[dict[str, np.ndarray], int, int]:
    queries, items, dim = size(rng), size(rng, 40), size(rng, 9)
    arrays = {"queries": quarters(rng, queries, dim), "items": quarters(rng, items, dim)}
    if rng.random() < 0.5:
        arrays["bias"] = quarters(rng, items)
    return arrays, queries, items


def topk(rng: Rng) -> Call:
    arrays, queries, items = _factors(rng)
    seen = None if rng.random() < 0.5 else seen_of(rng, queries, items)
    return Call(ranking.topk, arrays, {"k": number(rng), "seen": seen})


def topk_scores(rng: Rng) -> Call:
    queries, items = size(rng), size(rng, 40)
    seen = None if rng.random() < 0.5 else seen_of(rng, queries, items)
    return Call(ranking.topk_scores, {"scores": quarters(rng, queries, items)}, {"k": number(rng), "seen": seen})


def topk_on_device(rng: Rng) -> Call:
    arrays, queries, items = _factors(rng)
    seen = None if rng.random() < 0.5 else seen_of(rng, queries, items)

    def run(queries: Any, items: Any, bias: Any = None, **rest: Any) -> Any:
        tensors = [floats(part) for part in (queries, items)]
        return ranking.topk_on_device(*tensors, bias=bias, **rest)

    bias = arrays.pop("bias", None)
    return Call(run, arrays, {"bias": bias, "k": number(rng), "seen": seen})


def ranks(rng: Rng) -> Call:
    arrays, queries, items = _factors(rng)
    seen = None if rng.random() < 0.5 else seen_of(rng, queries, items)
    if rng.random() < 0.5:
        return Call(ranking.ranks, arrays, {"truth": seen_of(rng, queries, items), "seen": seen})
    return Call(ranking.ranks, {**arrays, "truth": ids(rng, items, queries, size(rng), low=-1)}, {"seen": seen})


def ranks_scores(rng: Rng) -> Call:
    queries, items = size(rng), size(rng)
    arrays = {"scores": quarters(rng, queries, items), "truth": ids(rng, items, queries, size(rng), low=-1)}
    return Call(ranking.ranks_scores, arrays, {})


def candidate_ranks(rng: Rng) -> Call:
    arrays, queries, items = _factors(rng)
    arrays["targets"] = ids(rng, items, queries, size(rng), low=-1)
    arrays["candidates"] = ids(rng, items, queries, size(rng, 30), low=-1)
    return Call(ranking.candidate_ranks, arrays, {})


def candidate_ranks_scores(rng: Rng) -> Call:
    queries, count = size(rng), size(rng)
    arrays = {"target_scores": quarters(rng, queries, size(rng)), "candidate_scores": quarters(rng, queries, count)}
    if rng.random() < 0.5:
        arrays["candidates"] = ids(rng, 5, queries, count, low=-1)
    return Call(ranking.candidate_ranks_scores, arrays, {})


def metrics(rng: Rng) -> Call:
    queries, items = size(rng), size(rng, 20)
    width = min(size(rng), items)
    lists = np.stack([rng.permutation(items)[:width] for _ in range(queries)]) if queries else np.zeros((0, width))
    ks = [int(k) for k in rng.choice([1, 2, 5, 100, 2**31 - 1, 2**62], size(rng, 3))]
    return Call(ranking.metrics, {"ranked": lists.astype(np.int32)}, {"truth": seen_of(rng, queries, items), "ks": ks})


def neighbours(rng: Rng) -> Call:
    metric = str(rng.choice(["euclidean", "cosine", "dot"]))
    vectors = quarters(rng, size(rng, 40), size(rng, 9))
    return Call(ranking.neighbours, {"vectors": vectors}, {"k": number(rng), "metric": metric})


def codes_of(vectors: Any, bits: int) -> Codes:
    return Codes.of(sampling.numpy_of(vectors), bits)


def codes(rng: Rng) -> Call:
    """Made, taken apart and made again."""
    bits = int(rng.choice([1, 2, 3, 4, 8]))

    def run(vectors: Any, scales: Any) -> Any:
        made = codes_of(vectors, bits)
        again = Codes.from_parts(made.data, scales, bits, made.shape[1])
        return again.vectors(), ranking.neighbours(again, 3, metric="dot")

    n = size(rng)
    return Call(run, {"vectors": quarters(rng, n, size(rng, 70)), "scales": np.abs(quarters(rng, n))}, {})


def codes_ranked(rng: Rng) -> Call:
    """Lists, ranks and candidate ranks; queries may be floats."""
    queries, items, dim = size(rng, 20), size(rng, 70), size(rng, 140)
    mine, theirs = (int(b) for b in rng.choice([1, 1, 2, 3, 4, 8], 2))
    seen, coded = seen_of(rng, queries, items), bool(rng.random() < 0.7)

    def run(q: Any, x: Any, bias: Any, targets: Any, k: int) -> Any:
        given, table = codes_of(q, mine) if coded else q, codes_of(x, theirs)
        return (
            ranking.topk(given, table, k, seen=seen, bias=bias),
            ranking.ranks(given, table, targets, bias=bias),
            ranking.candidate_ranks(given, table, targets, targets, bias=bias),
        )

    arrays = {"q": quarters(rng, queries, dim), "x": quarters(rng, items, dim), "bias": quarters(rng, items)}
    arrays["targets"] = ids(rng, items, queries, size(rng) if items else 0, low=-1)
    return Call(run, arrays, {"k": number(rng)})


def table_products(rng: Rng) -> Call:
    rows, dim, items, width = size(rng), size(rng, 40), size(rng), size(rng)

    def run(own: Any, table: Any, ids: Any) -> Any:
        values = floats(table).requires_grad_()
        vectors = floats(own).requires_grad_()
        scores = kernels.Table(values).products(
            vectors, torch.from_numpy(sampling.array_of(ids, "ids", np.int64, 2).copy())
        )
        gradients = torch.autograd.grad(scores.sum(), [values, vectors], allow_unused=True)
        return scores.detach(), *gradients

    chosen = ids(rng, items, rows, width if items else 0)
    return Call(run, {"own": quarters(rng, rows, dim), "table": quarters(rng, items, dim), "ids": chosen}, {})


def relaxed(rng: Rng) -> Call:
    rows, width = size(rng), size(rng, 20)

    def run(scores: Any, listed: int) -> Any:
        return kernels.RelaxedRanking.apply(floats(scores), listed, None)

    return Call(run, {"scores": quarters(rng, rows, width)}, {"listed": int(rng.integers(0, width + 1))})


def mixture(rng: Rng) -> Call:
    e, m, s, h, t = (size(rng) for _ in range(5))

    def run(**given: Any) -> Any:
        return kernels.mixture(*(floats(part) for part in given.values()))

    shapes = {"source": (e, s), "shares": (e, m), "w1": (m, s, h), "b1": (m, h), "w2": (m, h, t), "b2": (m, t)}
    return Call(run, {name: quarters(rng, *shape) for name, shape in shapes.items()}, {})


def quadratic(rng: Rng) -> Call:
    e, d, out = size(rng), size(rng), size(rng)
    bf16 = bool(rng.random() < 0.5)

    def run(vectors: Any, weights: Any) -> Any:
        v, w = (floats(part) for part in (vectors, weights))
        found = kernels.quadratic(v, w, bf16=bf16)
        return found, kernels.quadratic_gradient(v, found, bf16=bf16)

    return Call(run, {"vectors": quarters(rng, e, d), "weights": quarters(rng, d * (d - 1) // 2, out)}, {})


CALLS: dict[str, Callable[[Rng], Call]] = {
    made.__name__: made
    for made in (
        negatives, weighted, outside, discrepancy, discrepancy_of_factors, topk, topk_scores, topk_on_device, ranks,
        ranks_scores, candidate_ranks, candidate_ranks_scores, metrics, neighbours, codes, codes_ranked,
        table_products,
        relaxed, mixture, quadratic,
    )
}  # fmt: skip


def misaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    other = memory[1:].view(array.dtype).reshape(array.shape) if array.size else array
    other[...] = array
    return other


def strided(array: np.ndarray) -> np.ndarray:
    wide = np.repeat(array, 2, axis=-1)
    return wide[..., ::2]


def read_only(array: np.ndarray) -> np.ndarray:
    other = array.copy()
    other.flags.writeable = False
    return other


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def turned(array: np.ndarray) -> np.ndarray:
    """With strides that go backwards."""
    flip = tuple(slice(None, None, -1) for _ in array.shape)
    return array[flip].copy()[flip]


TWISTS: dict[str, Callable[[np.ndarray], Any]] = {
    "misaligned": misaligned,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "strided": strided,
    "reversed": turned,
    "fortran": np.asfortranarray,
    "read-only": read_only,
    "wide": lambda a: a.astype(np.float64 if a.dtype.kind == "f" else np.int64),
    "narrow": lambda a: a.astype(np.float16 if a.dtype.kind == "f" else np.int16),
    "tensor": tensor,
    "wide tensor": lambda a: tensor(a).double() if a.dtype.kind == "f" else tensor(a).long(),
    "narrow tensor": lambda a: tensor(a).half() if a.dtype.kind == "f" else tensor(a).short(),
    "bfloat16": lambda a: tensor(a).bfloat16() if a.dtype.kind == "f" else tensor(a),
    "requires grad": lambda a: tensor(a).requires_grad_() if a.dtype.kind == "f" else tensor(a),
    "transposed tensor": lambda a: tensor(np.ascontiguousarray(a.T)).T if a.ndim == 2 else tensor(a),
    "negated tensor": lambda a: torch._neg_view(-tensor(a)) if a.dtype.kind == "f" else tensor(a),
}
"""The same values in other memory."""

ABSURD: tuple[Callable[[Rng, np.ndarray], Any], ...] = (
    lambda rng, a: a[..., :-1] if a.ndim else a,
    lambda rng, a: a[:-1],
    lambda rng, a: a[None],
    lambda rng, a: a.ravel(),
    lambda rng, a: a.astype(complex),
    lambda rng, a: a.astype(str),
    lambda rng, a: a.astype(object),
    lambda rng, a: a.astype(bool),
    lambda rng, a: np.full(a.shape, np.nan),
    lambda rng, a: np.full(a.shape, 1e30),
    lambda rng, a: np.full(a.shape, int(rng.choice([-(2**63), -2, 2**31 - 1, 2**31, 2**63 - 1]))),
    lambda rng, a: np.full(a.shape, 2**64 - 1, np.uint64),
    lambda rng, a: a.astype(np.float32) * np.float32(3e38),
    lambda rng, a: torch.empty(a.shape, device="meta"),
    lambda rng, a: torch.zeros(a.shape).to_sparse(),
    lambda rng, a: [[1, 2], [3]],
    lambda rng, a: None,
    lambda rng, a: "text",
)
"""Other arguments in an array's place."""
NUMBERS = (-1, 0, 3, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 2**70, 1.5, True, "3", None, np.int64(4), float("nan"))


def absurd(rng: Rng, call: Call) -> Call:
    """The call with one or two arguments exchanged."""
    arrays, rest = dict(call.arrays), dict(call.rest)
    for _ in range(int(rng.integers(1, 3))):
        if rng.random() < 0.6 or not rest:
            name = str(rng.choice(list(arrays)))
            if isinstance(arrays[name], np.ndarray):
                arrays[name] = ABSURD[int(rng.integers(len(ABSURD)))](rng, arrays[name])
        elif numbers := [name for name in ("n", "k", "seed", "draws", "sharpness", "listed") if name in rest]:
            name, value = str(rng.choice(numbers)), NUMBERS[int(rng.integers(len(NUMBERS)))]
            rest[name] = value + 1 if name in ("n", "draws") and value == 2**31 - 1 and not limited else value
        elif "ks" in rest:
            rest["ks"] = [NUMBERS[int(rng.integers(len(NUMBERS)))] for _ in range(2)]
    return Call(call.function, arrays, rest)


def one(seed: int) -> tuple[str, str]:
    """The call that this number stands for: its function, and what came of it."""
    rng = np.random.default_rng(seed)
    name = str(rng.choice(list(CALLS)))
    call, twisted = CALLS[name](rng), {}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
        if rng.random() < 0.5:
            call = absurd(rng, call)
        for key, array in call.arrays.items():
            if isinstance(array, np.ndarray) and array.dtype in (np.float32, np.int32) and rng.random() < 0.5:
                twisted[key] = TWISTS[str(rng.choice(list(TWISTS)))](array)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
            call.run(**twisted)
    except REFUSALS as refusal:
        return name, type(refusal).__name__
    except BaseException as failure:
        failure.add_note(f"seed {seed}, {name}, {call}, twisted {twisted}")
        raise
    return name, "result"


limited = False
"""Whether this process may not have much memory: draws of 8 GB would else be granted, and take minutes."""


def limit_memory(more: int = 2**30) -> None:
    """Lets this process have so many bytes more."""
    global limited
    if sys.platform.startswith("linux"):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        limited = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    limit_memory()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    end, seed = time.monotonic() + asked.seconds, asked.seed
    while time.monotonic() < end:
        counts[one(seed)] += 1
        seed += 1
    found: dict[str, dict[str, int]] = {}
    for (name, outcome), count in sorted(counts.items()):
        found.setdefault(name, {})[outcome] = count
    print(json.dumps({"calls": sum(counts.values()), "seeds": [asked.seed, seed - 1], "by function": found}, indent=1))


if __name__ == "__main__":
    main()
