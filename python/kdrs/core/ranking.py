"""Top-k lists, exact ranks, metrics and neighbours.

NumPy arrays or torch tensors in, the same kind out (on the device of the main array). A score is one chain of fused
multiply-adds over the dimension in index order that starts at the item's bias; ties go to the lower item id. The shape
legend is Q queries, B a block of queries, I items, D dimension, K list length, T targets, C candidates, N vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdrs import _core
from kdrs.core.sampling import (
    array_of,
    check_room,
    count_of,
    csr_of,
    like,
    numpy_of,
    on_other_device,
    rows_of,
    simd_path,
    threads_of,
)
from kdrs.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    import torch

    from kdrs.core.sampling import Array


METRICS = ("hit", "recall", "precision", "ndcg", "mrr", "map")


class Ranking(NamedTuple):
    """Lists, best first."""

    items: Any
    """int32 ``[Q, K]``, -1 after the last item."""
    scores: Any
    """float32 ``[Q, K]``, -infinity after the last item."""


class Ranks(NamedTuple):
    """Places of targets, from counting. The best possible rank (from 0) is ``better``, the worst ``better + tied``."""

    better: Any
    """int32: items that score strictly better; -1 where there is no target."""
    tied: Any
    """int32: other items with an equal score; -1 where there is no target."""


def topk(
    queries: Array,
    items: Array,
    k: int,
    *,
    seen: Any = None,
    rows: Array | None = None,
    bias: Array | None = None,
    threads: int | None = None,
) -> Ranking:
    """The ``k`` best items of each query by dot product plus bias, less what it has seen.

    ``queries`` is float ``[Q, D]``, ``items`` ``[I, D]``, ``bias`` ``[I]``; float16, bfloat16 and float64 are converted
    to float32. ``rows`` (int ``[Q]``) says which rows of ``seen`` the queries are, all in order without it. Scoring,
    masking and selection are one pass: no score matrix is made. Raises ``DataError`` naming the first row that holds
    NaN or infinity, and where finite factors are so large that scores would overflow.

    Tensors on another device than the CPU are scored and cut there, a block of queries at a time, by the same tie rule;
    their scores are rounded as that device's matrix product rounds.
    """
    if on_other_device(queries):
        q_there: Any = queries
        x_there: Any = items
        return topk_on_device(q_there, x_there, k, seen=seen, rows=rows, bias=bias)
    q, x, b = _factors(queries, items, bias)
    check_room(2 * len(q) * count_of(k, "k"))
    out = _core.topk(q, x, b, _seen(seen), rows_of(rows), count_of(k, "k"), threads_of(threads), simd_path())
    return Ranking(*(like(part, queries) for part in out))


def topk_on_device(
    queries: torch.Tensor,
    items: torch.Tensor,
    k: int,
    *,
    seen: Any = None,
    rows: Array | None = None,
    bias: Array | None = None,
    block_bytes: int = 2**28,
) -> Ranking:
    """:func:`topk` by torch, on the device of ``queries``; a block of scores takes at most ``block_bytes``."""
    import torch

    device, n_items = queries.device, items.shape[0]
    q, x = queries.detach().float(), items.detach().to(device).float()
    b = None if bias is None else torch.as_tensor(bias).detach().to(device).float()
    for name, values in (("queries", q), ("items", x), ("bias", b)):
        if values is not None and not bool((finite := torch.isfinite(values.reshape(len(values), -1)).all(1)).all()):
            raise DataError(
                f"{name}: row {int((~finite).nonzero()[0])} holds NaN or infinity",
                "all values must be finite: look for a diverged model",
            )
    csr = None if seen is None else csr_of(seen)
    if csr is not None and csr[2] != n_items:
        raise DataError(f"`seen` has {csr[2]} items, the catalogue {n_items}")
    which = np.arange(len(q)) if rows is None else array_of(rows, "rows", np.int64, 1)
    if csr is not None and (len(which) != len(q) or (len(q) and not 0 <= which.min() <= which.max() < len(csr[0]) - 1)):
        raise DataError(f"`seen` has {len(csr[0]) - 1} rows; rows= names others, or not one for each query")
    wanted, taken = count_of(k, "k"), min(k, n_items)
    ids = torch.full((len(q), wanted), -1, dtype=torch.int32, device=device)
    best = torch.full((len(q), wanted), -torch.inf, device=device)
    step = max(1, block_bytes // (4 * max(n_items, 1)))
    for start in range(0, len(q), step) if taken else ():
        scores = q[start : start + step] @ x.T
        scores = scores if b is None else scores + b
        if csr is not None:
            lows, highs = csr[0][which[start : start + step]], csr[0][which[start : start + step] + 1]
            lengths = highs - lows
            offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            columns = torch.from_numpy(csr[1][np.repeat(lows, lengths) + offsets].astype(np.int64)).to(device)
            scores[torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device), columns] = -torch.inf
        values, places = scores.topk(taken, dim=1)
        # torch.topk takes any of the items that tie for the last place: those rows are sorted in full, stably.
        tied = ((scores >= values[:, -1:]).sum(1) > taken).nonzero().flatten()
        if len(tied):
            values[tied], places[tied] = (
                part[:, :taken] for part in scores[tied].sort(dim=1, descending=True, stable=True)
            )
        places, order = places.sort(dim=1)
        values, again = values.gather(1, order).sort(dim=1, descending=True, stable=True)
        places = places.gather(1, again).int()
        ids[start : start + step, :taken] = places.masked_fill(values == -torch.inf, -1)
        best[start : start + step, :taken] = values
    return Ranking(ids, best)


def topk_scores(
    scores: Array, k: int, *, seen: Any = None, rows: Array | None = None, threads: int | None = None
) -> Ranking:
    """The ``k`` best items of each row of a score block, float ``[B, I]``, less what it has seen.

    -infinity is a legal score and ranks last; NaN and +infinity raise ``DataError`` naming the row.
    """
    block = array_of(scores, "scores", np.float32, 2)
    check_room(2 * len(block) * count_of(k, "k"))
    out = _core.topk_scores(block, _seen(seen), rows_of(rows), count_of(k, "k"), threads_of(threads), simd_path())
    return Ranking(*(like(part, scores) for part in out))


def ranks(
    queries: Array,
    items: Array,
    truth: Any,
    *,
    seen: Any = None,
    rows: Array | None = None,
    bias: Array | None = None,
    threads: int | None = None,
) -> Ranks:
    """Ranks of the truth among the whole catalogue less what is seen, each ``[pairs of truth]`` in CSR order.

    ``truth`` is ``Interactions`` or a SciPy CSR (with ``rows``: of its rows ``rows[0]``, ``rows[1]``, ...), or int32
    lists ``[Q, T]`` with -1 as padding, giving ``[Q, T]``. The target itself is always eligible; other truth items
    count as any item does.
    """
    q, x, b = _factors(queries, items, bias)
    goal, shape = _truth(truth)
    out = _core.ranks(q, x, b, goal, _seen(seen), rows_of(rows), threads_of(threads), simd_path())
    return Ranks(*(like(part.reshape(shape), queries) for part in out))


def ranks_scores(
    scores: Array, truth: Any, *, seen: Any = None, rows: Array | None = None, threads: int | None = None
) -> Ranks:
    """:func:`ranks` on a score block, float ``[B, I]``."""
    block = array_of(scores, "scores", np.float32, 2)
    goal, shape = _truth(truth)
    out = _core.ranks_scores(block, goal, _seen(seen), rows_of(rows), threads_of(threads), simd_path())
    return Ranks(*(like(part.reshape(shape), scores) for part in out))


def candidate_ranks(
    queries: Array,
    items: Array,
    targets: Array,
    candidates: Array,
    *,
    rows: Array | None = None,
    bias: Array | None = None,
    threads: int | None = None,
) -> Ranks:
    """Ranks of each query's targets among its own candidates, each ``[Q, T]``.

    ``targets`` is int ``[Q, T]`` and ``candidates`` int ``[Q, C]``, -1 is padding in both. Targets do not compete with
    each other, and a candidate that is the target itself does not count. ``rows`` (int ``[Q]``) says which rows of
    ``queries`` the lists belong to, all in order without it.
    """
    q, x, b = _factors(queries, items, bias)
    goal = array_of(targets, "targets", np.int32, 2)
    pool = array_of(candidates, "candidates", np.int32, 2)
    out = _core.candidate_ranks(q, rows_of(rows), x, b, goal, pool, threads_of(threads), simd_path())
    return Ranks(*(like(part.reshape(goal.shape), queries) for part in out))


def candidate_ranks_scores(
    target_scores: Array, candidate_scores: Array, *, candidates: Array | None = None, threads: int | None = None
) -> Ranks:
    """:func:`candidate_ranks` of scores ``[Q, T]`` and ``[Q, C]``.

    A target score of NaN means that there is no target. ``candidates`` (int ``[Q, C]``) marks padding with -1.
    """
    goal = array_of(target_scores, "target scores", np.float32, 2)
    block = array_of(candidate_scores, "candidate scores", np.float32, 2)
    ids = None if candidates is None else array_of(candidates, "candidates", np.int32, 2)
    out = _core.candidate_ranks_scores(goal, block, ids, threads_of(threads))
    return Ranks(*(like(part.reshape(goal.shape), target_scores) for part in out))


def metrics(
    ranked: Array,
    truth: Any,
    ks: Sequence[int],
    names: Sequence[str] = METRICS,
    *,
    rows: Array | None = None,
    threads: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Metrics of ranked lists, one value a query: ``{"ndcg@10": float64 [Q], ...}``.

    ``ranked`` is int32 ``[Q, K]``, best first, -1 after the last; ``truth`` is ``Interactions`` or a SciPy CSR and
    ``rows`` (int ``[Q]``) says which of its rows the queries are. With h the hits at positions p_1 < p_2 < ... (from 1)
    up to K and t the number of relevant items:

    - hit@K = 1 if h > 0 else 0
    - recall@K = h / t
    - precision@K = h / K
    - ndcg@K = sum_j 1 / log2(p_j + 1) / sum_{p = 1..min(t, K)} 1 / log2(p + 1)
    - mrr@K = 1 / p_1, or 0 without a hit
    - map@K = sum_j j / p_j / min(t, K)

    A query without relevant items has NaN. A K past the list's length counts what the list holds.
    """
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"metric {shown(name)}", f"allowed: {', '.join(METRICS)}")
    cuts = [count_of(k, "K") for k in ks]
    if 0 in cuts:
        raise ConfigError("K is 0", "allowed: 1 or more")
    lists, goal = array_of(ranked, "ranked", np.int32, 2), csr_of(truth)
    # K beyond the catalogue is in the denominator of precision alone, and the core has a table as long as K
    kept = [min(k, max(goal[2], 1)) for k in cuts]
    values = _core.metrics(lists, goal, rows_of(rows), kept, list(names), threads_of(threads))
    for c, (k, cut) in enumerate(zip(cuts, kept, strict=True)):
        if k > cut and "precision" in names:
            hits = np.rint(values[list(names).index("precision"), c] * cut)
            values[list(names).index("precision"), c] = hits / k
    return {f"{name}@{k}": values[n, c] for n, name in enumerate(names) for c, k in enumerate(cuts)}


def neighbours(
    vectors: Array,
    k: int,
    *,
    metric: Literal["euclidean", "cosine", "dot"] = "euclidean",
    threads: int | None = None,
) -> Ranking:
    """The ``k`` nearest other rows of each row of ``vectors``, float ``[N, D]``: exact, the row itself left out by id.

    Scores are minus the distance for ``"euclidean"`` (differences are squared directly, nothing cancels), the cosine
    (0 for a vector of length 0), or the dot product.
    """
    if metric not in ("euclidean", "cosine", "dot"):
        raise ConfigError(f"metric {shown(metric)}", "allowed: euclidean, cosine, dot")
    x = array_of(vectors, "vectors", np.float32, 2)
    check_room(2 * len(x) * count_of(k, "k"))
    out = _core.neighbours(x, count_of(k, "k"), metric, threads_of(threads), simd_path())
    return Ranking(*(like(part, vectors) for part in out))


def _factors(queries: Array, items: Array, bias: Array | None) -> tuple[Any, Any, Any]:
    q, x = array_of(queries, "queries", np.float32, 2), array_of(items, "items", np.float32, 2)
    if q.shape[1] != x.shape[1]:
        raise DataError(f"queries have dim {q.shape[1]}, items {x.shape[1]}", "pass the factors of one model")
    return q, x, None if bias is None else array_of(bias, "bias", np.float32, 1)


def _seen(seen: Any) -> Any:
    return None if seen is None else csr_of(seen)


def _truth(truth: Any) -> tuple[Any, tuple[int, ...]]:
    if hasattr(truth, "indptr"):
        return csr_of(truth), (-1,)
    lists = array_of(numpy_of(truth), "truth", np.int32, 2)
    return lists, lists.shape
