"""Top-k lists, exact ranks, metrics and neighbours.

NumPy arrays or torch tensors in, the same kind out (on the device of the main array). A score is one chain of fused
multiply-adds over the dimension in index order that starts at the item's bias; ties go to the lower item id. No score or
metric is -0.0. Arrays may have any strides, alignment, byte order and width of number, and are never written to. The shape
legend is Q queries, B a block of queries, I items, D dimension, K list length, T targets, C candidates, N vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdrs import _core
from kdrs.core.codes import Codes, pair_scores, paired
from kdrs.core.sampling import (
    array_of,
    check_room,
    csr_of,
    length_of,
    like,
    numpy_of,
    on_other_device,
    rows_of,
    simd_path,
    threads_of,
)
from kdrs.data.checks import check_lists
from kdrs.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    import torch

    from kdrs.core.sampling import Array


METRICS = ("hit", "recall", "precision", "ndcg", "mrr", "map")


class Ranking(NamedTuple):
    """Lists, best first."""

    items: Any
    """int32 ``[Q, K]``, -1 after the last item; K is what was asked for, but no more than there are items."""
    scores: Any
    """float32 ``[Q, K]``, -infinity after the last item."""


class Ranks(NamedTuple):
    """Places of targets, from counting. The best possible rank (from 0) is ``better``, the worst ``better + tied``."""

    better: Any
    """int32: items that score strictly better; -1 where there is no target."""
    tied: Any
    """int32: other items with an equal score; -1 where there is no target."""


def topk(
    queries: Array | Codes,
    items: Array | Codes,
    k: int,
    *,
    seen: Any = None,
    rows: Array | None = None,
    bias: Array | None = None,
    threads: int | None = None,
) -> Ranking:
    """The ``k`` best items of each query by dot product plus bias, less what it has seen: lists ``[Q, min(k, I)]``.

    ``queries`` is float ``[Q, D]``, ``items`` ``[I, D]``, ``bias`` ``[I]``; float16, bfloat16 and float64 are converted
    to float32. ``rows`` (int ``[Q]``) says which rows of ``seen`` the queries are, all in order without it. Scoring,
    masking and selection are one pass: no score matrix is made. Raises ``DataError`` naming the first row that holds
    NaN or infinity, and where finite factors are so large that scores would overflow; ``MemoryError`` where the machine
    cannot hold the lists.

    Tensors on another device than the CPU are scored and cut there, a block of queries at a time, by the same tie rule;
    their scores are rounded as that device's matrix product rounds.

    ``queries`` and ``items`` may be :class:`kdrs.Codes`, of different bits if need be; float queries of coded items are
    rounded to eight bits first. Their scores are exact integers times two scales.
    """
    if coded(queries, items):
        mine, theirs = paired(queries, items)
        length, b = _length(k, len(mine), len(theirs)), _bias(bias)
        run = threads_of(threads), simd_path()
        out = _core.topk_codes(mine.parts(), theirs.parts(), b, _seen(seen), rows_of(rows), length, *run)
        return Ranking(*(_like(part, queries) for part in out))
    if on_other_device(queries):
        q_there: Any = queries
        x_there: Any = items
        return topk_on_device(q_there, x_there, k, seen=seen, rows=rows, bias=bias)
    q, x, b = _factors(queries, items, bias)
    length = _length(k, len(q), len(x))
    out = _core.topk(q, x, b, _seen(seen), rows_of(rows), length, threads_of(threads), simd_path())
    return Ranking(*(like(part, queries) for part in out))


def scores(
    queries: Array | Codes,
    items: Array | Codes,
    lists: Array,
    *,
    bias: Array | None = None,
    threads: int | None = None,
) -> Any:
    """Scores of given items, float32 ``[Q, L]``: the numbers that :func:`topk` gives. ``lists`` is int ``[Q, L]``; -1 has the
    score -infinity. Arguments and refusals are otherwise those of :func:`topk`."""
    wanted = array_of(lists, "lists", np.int32, 2)
    check_room(2 * wanted.size)
    if coded(queries, items):
        mine, theirs = paired(queries, items)
        if len(mine) != len(wanted):
            raise DataError(f"{len(wanted)} lists for {len(mine)} queries", "give one for each, in their order")
        if wanted.size and not -1 <= wanted.min() <= wanted.max() < len(theirs):
            bad = (wanted < -1) | (wanted >= len(theirs))
            raise DataError(
                f"lists: row {int(np.argmax(bad.any(1)))} holds item {wanted[bad][0]}; allowed: 0 to {len(theirs) - 1}"
            )
        rows, columns = np.nonzero(wanted >= 0)
        out = np.full(wanted.shape, -np.inf, np.float32)
        out[rows, columns] = pair_scores(mine, theirs, _bias(bias), rows, wanted[rows, columns])
        return _like(out, queries)
    q, x, b = _factors(queries, items, bias)
    return like(_core.listed_scores(q, x, b, wanted, threads_of(threads), simd_path()), queries)


def topk_on_device(
    queries: torch.Tensor,
    items: Array,
    k: int,
    *,
    seen: Any = None,
    rows: Array | None = None,
    bias: Array | None = None,
    block_bytes: int = 2**28,
) -> Ranking:
    """:func:`topk` by torch, on the device of ``queries``; a block of scores takes at most ``block_bytes``."""
    import torch

    device = queries.device
    q, x = queries.detach().float(), _tensor(items, "items", 2).to(device).float()
    b = None if bias is None else _tensor(bias, "bias", 1).to(device).float()
    if q.ndim != 2 or x.ndim != 2 or q.shape[1] != x.shape[1]:
        raise DataError(f"queries have shape {tuple(q.shape)}, items {tuple(x.shape)}; allowed: [Q, D], [I, D]")
    if q.is_meta or x.is_meta:
        raise DataError("tensors on the device 'meta' have no values", "give tensors with data")
    n_items = x.shape[0]
    if b is not None and b.shape != (n_items,):
        raise DataError(f"bias has shape {tuple(b.shape)}; allowed: [{n_items}]")
    for name, values in (("queries", q), ("items", x), ("bias", b)):
        if values is None:
            continue
        finite = torch.isfinite(values if values.ndim == 2 else values[:, None]).all(1)
        if not bool(finite.all()):
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
    taken = min(length_of(k, "k"), n_items)
    ids = torch.full((len(q), taken), -1, dtype=torch.int32, device=device)
    best = torch.full((len(q), taken), -torch.inf, device=device)
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
        best[start : start + step, :taken] = values + 0.0  # -0.0 is 0
    return Ranking(ids, best)


def topk_scores(
    scores: Array, k: int, *, seen: Any = None, rows: Array | None = None, threads: int | None = None
) -> Ranking:
    """The ``k`` best items of each row of a score block, float ``[B, I]``, less what it has seen: lists ``[B, min(k, I)]``.

    -infinity is a legal score and ranks last; NaN and +infinity raise ``DataError`` naming the row.
    """
    block = array_of(scores, "scores", np.float32, 2)
    length = _length(k, *block.shape)
    out = _core.topk_scores(block, _seen(seen), rows_of(rows), length, threads_of(threads), simd_path())
    return Ranking(*(like(part, scores) for part in out))


def ranks(
    queries: Array | Codes,
    items: Array | Codes,
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
    count as any item does. :class:`kdrs.Codes` are taken as by :func:`topk`.
    """
    goal, shape = _truth(truth)
    if coded(queries, items):
        mine, theirs = paired(queries, items)
        run = threads_of(threads), simd_path()
        found = _core.ranks_codes(mine.parts(), theirs.parts(), _bias(bias), goal, _seen(seen), rows_of(rows), *run)
        return Ranks(*(_like(part.reshape(shape), queries) for part in found))
    q, x, b = _factors(queries, items, bias)
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
    queries: Array | Codes,
    items: Array | Codes,
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
    ``queries`` the lists belong to, all in order without it. :class:`kdrs.Codes` are taken as by :func:`topk`.
    """
    goal = array_of(targets, "targets", np.int32, 2)
    pool = array_of(candidates, "candidates", np.int32, 2)
    if coded(queries, items):
        mine, theirs = paired(queries, items)
        run = threads_of(threads), simd_path()
        found = _core.candidate_ranks_codes(mine.parts(), rows_of(rows), theirs.parts(), _bias(bias), goal, pool, *run)
        return Ranks(*(_like(part.reshape(goal.shape), queries) for part in found))
    q, x, b = _factors(queries, items, bias)
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
    out = _core.candidate_ranks_scores(goal, block, ids, threads_of(threads), simd_path())
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

    A query without relevant items has NaN. A K past the list's length counts what the list holds; the
    denominators keep K. Raises ``DataError``
    for a list that holds an item twice, an id outside the catalogue or an item after -1.
    """
    lists = array_of(ranked, "ranked", np.int32, 2)
    check_lists(lists, csr_of(truth)[2], "the list of query")
    return metrics_of_distinct(lists, truth, ks, names, rows=rows, threads=threads)


def metrics_of_distinct(
    lists: NDArray[np.int32],
    truth: Any,
    ks: Sequence[int],
    names: Sequence[str] = METRICS,
    *,
    rows: Array | None = None,
    threads: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """:func:`metrics` of lists that are known to be right: those that this module made, or checked before."""
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"metric {shown(name)}", f"allowed: {', '.join(METRICS)}")
    for k in ks:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k < 2**64:
            raise ConfigError(f"K is {shown(k)}", "allowed: integers from 1 to 2^64 - 1")
    cuts = [int(k) for k in ks]
    check_room(4 * len(lists) * len(cuts) * len(names))  # float64, twice
    values = _core.metrics(lists, csr_of(truth), rows_of(rows), cuts, list(names), threads_of(threads), simd_path())
    return {f"{name}@{k}": values[n, c] for n, name in enumerate(names) for c, k in enumerate(cuts)}


def neighbours(
    vectors: Array | Codes,
    k: int,
    *,
    metric: Literal["euclidean", "cosine", "dot"] = "euclidean",
    threads: int | None = None,
) -> Ranking:
    """The ``k`` nearest other rows of each row of ``vectors``, float ``[N, D]``: exact, the row itself left out by id; lists
    ``[N, min(k, N - 1)]``.

    Scores are minus the distance for ``"euclidean"`` (differences are squared directly, nothing cancels), the cosine
    (0 for a vector of length 0), or the dot product. :class:`kdrs.Codes` have the dot product only.
    """
    if metric not in ("euclidean", "cosine", "dot"):
        raise ConfigError(f"metric {shown(metric)}", "allowed: euclidean, cosine, dot")
    if isinstance(vectors, Codes):
        if metric != "dot":
            raise ConfigError(
                f"codes have no exact neighbours by metric {shown(metric)}", "use metric='dot', or pass codes.vectors()"
            )
        length = _length(k, len(vectors), max(len(vectors) - 1, 0))
        return Ranking(*_core.neighbours_codes(vectors.parts(), length, threads_of(threads), simd_path()))
    x = array_of(vectors, "vectors", np.float32, 2)
    length = _length(k, len(x), max(len(x) - 1, 0))
    out = _core.neighbours(x, length, metric, threads_of(threads), simd_path())
    return Ranking(*(like(part, vectors) for part in out))


def _factors(queries: Any, items: Any, bias: Array | None) -> tuple[Any, Any, Any]:
    q, x = array_of(queries, "queries", np.float32, 2), array_of(items, "items", np.float32, 2)
    if q.shape[1] != x.shape[1]:
        raise DataError(f"queries have dim {q.shape[1]}, items {x.shape[1]}", "pass the factors of one model")
    return q, x, _bias(bias)


def coded(queries: Any, items: Any) -> bool:
    return isinstance(queries, Codes) or isinstance(items, Codes)


def _bias(bias: Array | None) -> NDArray[np.float32] | None:
    return None if bias is None else array_of(bias, "bias", np.float32, 1)


def _like(result: Any, queries: Any) -> Any:
    return result if isinstance(queries, Codes) else like(result, queries)


def _length(k: int, rows: int, most: int) -> int:
    """``k``, but no more than ``most``, if so many places of ``rows`` lists can be had."""
    length = min(length_of(k, "k"), most)
    check_room(2 * rows * length)
    return length


def _tensor(values: Any, name: str, ndim: int) -> torch.Tensor:
    """Factors as a tensor without gradient, wherever they are."""
    import torch

    if isinstance(values, torch.Tensor):
        return values.detach()
    return torch.from_numpy(array_of(values, name, np.float32, ndim).copy())


def _seen(seen: Any) -> Any:
    return None if seen is None else csr_of(seen)


def _truth(truth: Any) -> tuple[Any, tuple[int, ...]]:
    if hasattr(truth, "indptr") or hasattr(truth, "tocoo"):
        return csr_of(truth), (-1,)
    lists = array_of(numpy_of(truth, "truth"), "truth", np.int32, 2)
    return lists, lists.shape
