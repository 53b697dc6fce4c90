"""Top-k lists, exact ranks, metrics and neighbours.

NumPy arrays or torch tensors in, the same kind out (on the device of the main array). A score is one chain of fused
multiply-adds over the dimension in index order that starts at the item's bias; ties go to the lower item id. No score or
metric is -0.0. Arrays may have any strides, alignment, byte order and width of number, and are never written to. The shape
legend is Q queries, B a block of queries, I items, D dimension, K list length, T targets, C candidates, N vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdrs import _core
from kdrs.core.codes import Codes, pair_scores, paired
from kdrs.core.on_device import lists_on_device
from kdrs.core.sampling import (
    array_of,
    check_room,
    csr_of,
    length_of,
    like,
    numpy_of,
    on_other_device,
    padded_of,
    rows_of,
    simd_path,
    threads_of,
)
from kdrs.data.checks import check_lists
from kdrs.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    import torch

    from kdrs.core.sampling import Array


MAX_DIM = (1 << 16) - 1
"""Sums of products of bytes fit 32 bits up to here."""
FEW = 8
"""Queries up to which a packed catalogue is passed over for one at a time."""

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


class Catalogue:
    """Items that are packed once and asked often: what :func:`topk` gives, byte for byte, sooner.

    ``items`` is float ``[I, D]`` or :class:`kdrs.Codes`, ``bias`` float ``[I]`` or None. Arrays of float32 are read where they
    lie, also by later calls: nobody may change them meanwhile. Beside them it takes ``nbytes``: about D + 13 bytes an item of
    floats, the bytes of the table and 17 an item of codes.

    One user's list is found by passing over a byte a number, and scoring exactly the few items that may be among the best.
    Raises ``DataError`` as :func:`topk` does, of items when it is made. Tensors on another device than the CPU are kept, and
    not packed.
    """

    def __init__(self, items: Array | Codes, *, bias: Array | None = None, threads: int | None = None):
        self.items: Any = items
        self.bias: Any = bias
        self._packed: _core.PackedFactors | _core.PackedCodes | None = None
        self._small = math.prod(np.shape(items)) < 1 << 21
        if on_other_device(items):
            return
        self.bias = _bias(bias)
        run = threads_of(threads), simd_path()
        if isinstance(items, Codes):
            self._packed = _core.PackedCodes(items.parts(), self.bias, *run)
            return
        self.items = array_of(items, "items", np.float32, 2)
        if self.items.shape[1] <= MAX_DIM:
            self._packed = _core.PackedFactors(self.items, self.bias, *run)

    def __getstate__(self) -> tuple[Any, ...]:
        return self.items, self.bias

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        items, bias = state  # packed anew: another machine may pack otherwise
        self.__init__(items, bias=bias)  # type: ignore[misc]

    def topk(
        self,
        queries: Array | Codes,
        k: int,
        *,
        seen: Any = None,
        rows: Array | None = None,
        threads: int | None = None,
    ) -> Ranking:
        """:func:`topk` of these items: lists ``[Q, min(k, I)]``."""
        packed = self._packed
        if packed is None or on_other_device(queries):
            return topk(queries, self.items, k, seen=seen, rows=rows, bias=self.bias, threads=threads)
        given: Any
        if isinstance(self.items, Codes):
            mine, _ = paired(queries, self.items)
            if (
                self.items.bits == mine.bits == 1 and len(mine) > FEW
            ):  # words of signs are compared sooner than bytes multiplied
                return topk(queries, self.items, k, seen=seen, rows=rows, bias=self.bias, threads=threads)
            count, given = len(mine), mine.parts()
        else:
            if isinstance(queries, Codes):
                paired(queries, self.items)  # says what to do
            given = queries if _is_ready(queries) else array_of(queries, "queries", np.float32, 2)
            if given.shape[1] != self.items.shape[1]:
                raise DataError(
                    f"queries have dim {given.shape[1]}, items {self.items.shape[1]}", "pass the factors of one model"
                )
            count = len(given)
        length = _length(k, count, len(self.items))
        # Of a few queries of a small catalogue no helper is worth waking, and one user's list waits for this.
        alone = threads is None and self._small and count <= FEW
        workers = 1 if alone else threads_of(threads)
        out = packed.topk(given, _seen(seen), rows_of(rows), length, workers, simd_path())
        return Ranking(*out) if given is queries else Ranking(*(_like(part, queries) for part in out))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes beside the items."""
        return 0 if self._packed is None else self._packed.nbytes

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        kind = f"{self.items.bits} bits" if isinstance(self.items, Codes) else "float32"
        dim = self.items.shape[1]
        return f"Catalogue({len(self):,} items, {dim} dimensions of {kind}, {self.nbytes:,} bytes packed)"


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
        none, b = np.zeros((len(mine), 0), np.int32), _bias(bias)
        run = threads_of(threads), simd_path()
        # Without targets: it refuses what cannot be scored.
        _core.candidate_ranks_codes(mine.parts(), None, theirs.parts(), b, none, none, *run)
        rows, columns = np.nonzero(wanted >= 0)
        out = np.full(wanted.shape, -np.inf, np.float32)
        out[rows, columns] = pair_scores(mine, theirs, b, rows, wanted[rows, columns])
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
    return Ranking(*lists_on_device(queries, items, k, seen=seen, rows=rows, bias=bias, block_bytes=block_bytes))


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
    target_scores: Array,
    candidate_scores: Array,
    *,
    targets: Array | None = None,
    candidates: Array | None = None,
    threads: int | None = None,
) -> Ranks:
    """:func:`candidate_ranks` of scores ``[Q, T]`` and ``[Q, C]``.

    A target score of NaN means that there is no target. ``candidates`` (int ``[Q, C]``) marks padding with -1. With
    ``targets`` (int ``[Q, T]``) too, a candidate that is the target itself does not count; without them it is tied with it.
    Raises ``ConfigError`` for ``targets`` alone.
    """
    if targets is not None and candidates is None:
        raise ConfigError("targets are given without candidates", "give both, or neither")
    goal = array_of(target_scores, "target scores", np.float32, 2)
    block = array_of(candidate_scores, "candidate scores", np.float32, 2)
    ids = None if candidates is None else padded_of(candidates, "candidates")
    own = None if targets is None else array_of(targets, "targets", np.int32, 2)
    out = _core.candidate_ranks_scores(goal, block, ids, own, threads_of(threads), simd_path())
    return Ranks(*(like(part.reshape(goal.shape), target_scores) for part in out))


def metrics(
    ranked: Array,
    truth: Any,
    ks: int | Sequence[int],
    names: str | Sequence[str] = METRICS,
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
    lists, goal = array_of(ranked, "ranked", np.int32, 2), csr_of(truth)
    if rows is None and len(lists) != len(goal[0]) - 1:
        raise DataError(
            f"`truth` has {len(goal[0]) - 1} rows for {len(lists)} queries",
            "pass rows= to say which rows of `truth` the queries are",
        )
    check_lists(lists, goal[2], "the list of query")
    return metrics_of_distinct(lists, truth, ks, names, rows=rows, threads=threads)


def metrics_of_distinct(
    lists: NDArray[np.int32],
    truth: Any,
    ks: int | Sequence[int],
    names: str | Sequence[str] = METRICS,
    *,
    rows: Array | None = None,
    threads: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """:func:`metrics` of lists that are known to be right: those that this module made, or checked before."""
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"metric {shown(name)}", f"allowed: {', '.join(METRICS)}")
    ks = tuple(np.atleast_1d(np.asarray(ks, object)))
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


def _is_ready(values: Any) -> bool:
    """Whether the core can read them as they are."""
    if type(values) is not np.ndarray or values.dtype != np.float32 or values.ndim != 2:
        return False
    flags = values.flags
    return flags.c_contiguous and flags.aligned


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


def _seen(seen: Any) -> Any:
    return None if seen is None else csr_of(seen)


def _truth(truth: Any) -> tuple[Any, tuple[int, ...]]:
    if hasattr(truth, "indptr") or hasattr(truth, "tocoo"):
        return csr_of(truth), (-1,)
    lists = array_of(numpy_of(truth, "truth"), "truth", np.int32, 2)
    return lists, lists.shape
