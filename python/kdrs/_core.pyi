"""The Rust core. ``kdrs.sampling``, ``kdrs.ranking`` and ``kdrs.kernels`` are its only users and document what it computes.

Arrays are C-contiguous, aligned and of exactly the stated dtype; results are new arrays. Refusals are
``kdrs.errors.DataError``; a result that the machine cannot hold is a ``MemoryError``. Lists are no longer than the catalogue.
"""

from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PackedCodes",
    "PackedFactors",
    "adam_catch_up",
    "adam_catch_up_rows",
    "adam_step_rows",
    "bpr_step",
    "candidate_ranks",
    "candidate_ranks_codes",
    "candidate_ranks_scores",
    "check_codes",
    "code_sums",
    "code_vectors",
    "discrepancy",
    "dropout",
    "has_bfloat16_tiles",
    "listed_scores",
    "metrics",
    "mixture",
    "mixture_gradient",
    "names_places",
    "names_table",
    "negatives",
    "neighbours",
    "neighbours_codes",
    "outside",
    "pack_codes",
    "product_scatter",
    "product_sums",
    "products",
    "quadratic",
    "quadratic_gradient",
    "ranks",
    "ranks_codes",
    "ranks_scores",
    "relaxed_ranking",
    "round_codes",
    "score_step",
    "simd_paths",
    "table_scores",
    "topk",
    "topk_codes",
    "topk_scores",
    "turn_vectors",
    "unpack_codes",
    "weighted",
    "weighted_negatives",
]

_Ints: TypeAlias = NDArray[np.int32]
_Rows: TypeAlias = NDArray[np.int64]
_Floats: TypeAlias = NDArray[np.float32]
_Seen: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int32], int]
_Layers: TypeAlias = tuple[_Floats, _Floats, _Floats, _Floats]
_Table: TypeAlias = tuple[_Floats, _Floats, _Floats]
_Ledger: TypeAlias = tuple[_Floats, _Ints, bool]
_Step: TypeAlias = tuple[float, float, float]
_Codes: TypeAlias = tuple[NDArray[np.uint8], _Floats, int, int]
_Scorer: TypeAlias = _Floats | tuple[_Floats, _Floats] | tuple[_Floats, _Floats, _Floats]

@final
class PackedFactors:
    """Items [I, D] and biases [I], which are read again by each call, packed."""

    def __new__(cls, items: _Floats, bias: _Floats | None, threads: int, simd_path: str | None) -> PackedFactors: ...
    def topk(
        self, queries: _Floats, seen: _Seen | None, rows: _Rows | None, k: int, threads: int, simd_path: str | None
    ) -> tuple[_Ints, _Floats]: ...
    @property
    def nbytes(self) -> int: ...

@final
class PackedCodes:
    """Items of codes and biases [I], packed."""

    def __new__(cls, items: _Codes, bias: _Floats | None, threads: int, simd_path: str | None) -> PackedCodes: ...
    def topk(
        self, queries: _Codes, seen: _Seen | None, rows: _Rows | None, k: int, threads: int, simd_path: str | None
    ) -> tuple[_Ints, _Floats]: ...
    @property
    def nbytes(self) -> int: ...

def negatives(
    seen: _Seen, rows: NDArray[np.integer], n: int, seed: int, mask: bool, threads: int, simd_path: str | None
) -> _Ints: ...
def weighted_negatives(
    seen: _Seen,
    rows: NDArray[np.integer],
    n: int,
    weights: NDArray[np.float64],
    seed: int,
    mask: bool,
    threads: int,
    simd_path: str | None,
) -> _Ints: ...
def weighted(
    lists: _Ints,
    weights: NDArray[np.floating],
    n: int,
    seed: int,
    draw_order: bool,
    threads: int,
    simd_path: str | None,
) -> _Ints: ...
def outside(
    items: int,
    seen: _Seen | None,
    rows: _Rows | None,
    lists: _Ints,
    n: int,
    seed: int,
    threads: int,
    simd_path: str | None,
) -> _Ints: ...
def discrepancy(
    student: _Scorer,
    teacher: _Scorer,
    seen: _Seen | None,
    rows: _Rows | None,
    laws: list[tuple[str, float]],
    ends: list[_Rows],
    seed: int,
    threads: int,
    simd_path: str | None,
) -> list[_Ints]: ...
def topk(
    queries: _Floats,
    items: _Floats,
    bias: _Floats | None,
    seen: _Seen | None,
    rows: _Rows | None,
    k: int,
    threads: int,
    simd_path: str | None,
) -> tuple[_Ints, _Floats]: ...
def topk_scores(
    scores: _Floats, seen: _Seen | None, rows: _Rows | None, k: int, threads: int, simd_path: str | None
) -> tuple[_Ints, _Floats]: ...
def ranks(
    queries: _Floats,
    items: _Floats,
    bias: _Floats | None,
    truth: _Seen | _Ints,
    seen: _Seen | None,
    rows: _Rows | None,
    threads: int,
    simd_path: str | None,
) -> tuple[_Ints, _Ints]: ...
def ranks_scores(
    scores: _Floats,
    truth: _Seen | _Ints,
    seen: _Seen | None,
    rows: _Rows | None,
    threads: int,
    simd_path: str | None,
) -> tuple[_Ints, _Ints]: ...
def candidate_ranks(
    queries: _Floats,
    rows: _Rows | None,
    items: _Floats,
    bias: _Floats | None,
    targets: _Ints,
    candidates: _Ints,
    threads: int,
    simd_path: str | None,
) -> tuple[_Ints, _Ints]: ...
def candidate_ranks_scores(
    targets: _Floats, scores: _Floats, candidates: _Ints | None, ids: _Ints | None, threads: int, simd_path: str | None
) -> tuple[_Ints, _Ints]: ...
def metrics(
    ranked: _Ints,
    truth: _Seen,
    rows: _Rows | None,
    ks: list[int],
    names: list[str],
    threads: int,
    simd_path: str | None,
) -> NDArray[np.float64]: ...
def neighbours(vectors: _Floats, k: int, metric: str, threads: int, simd_path: str | None) -> tuple[_Ints, _Floats]: ...
def check_codes(table: _Codes, threads: int, simd_path: str | None) -> None:
    """Refuses scales that are negative or not finite, and -128 among codes of eight bits."""

def unpack_codes(table: _Codes, threads: int, simd_path: str | None) -> NDArray[np.int8]:
    """The levels [N, D] of a table: data [N, ceil(D bits / 8)], scales [N], D, bits."""

def pack_codes(levels: NDArray[np.int8], bits: int, threads: int, simd_path: str | None) -> NDArray[np.uint8]:
    """Levels [N, D], all of which are some of these bits, as data."""

def round_codes(
    vectors: _Floats, rotation: int | None, bits: int, threads: int, simd_path: str | None
) -> tuple[NDArray[np.uint8], _Floats]:
    """Data and scales of vectors [N, D], turned first if there is a rotation; infinite scales where rows are too long."""

def turn_vectors(vectors: _Floats, rotation: int, threads: int, simd_path: str | None) -> _Floats:
    """Vectors [N, D] in turned directions."""

def code_vectors(table: _Codes, rotation: int, threads: int, simd_path: str | None) -> _Floats:
    """The rows of a table in the original directions, [N, D]."""

def code_sums(
    table: _Codes,
    indptr: NDArray[np.int64],
    indices: _Ints,
    weights: _Floats | None,
    threads: int,
    simd_path: str | None,
) -> _Floats:
    """Sums of a table's rows by lists, [Q, D], in turned directions."""

def topk_codes(
    queries: _Codes,
    items: _Codes,
    bias: _Floats | None,
    seen: _Seen | None,
    rows: _Rows | None,
    k: int,
    threads: int,
    simd_path: str | None,
) -> tuple[_Ints, _Floats]: ...
def listed_scores(
    queries: _Floats, items: _Floats, bias: _Floats | None, lists: _Ints, threads: int, simd_path: str | None
) -> _Floats:
    """Scores of the items that lists name, [Q, L]; -infinity at -1."""

def names_table(bytes: NDArray[np.uint8], ends: _Rows, threads: int, simd_path: str | None) -> _Ints:
    """Places of names by their hash, -1 where there is none. Not to be stored: its layout is this version's own."""

def names_places(
    bytes: NDArray[np.uint8],
    ends: _Rows,
    table: _Ints,
    wanted: NDArray[np.uint8],
    wanted_ends: _Rows,
    threads: int,
    simd_path: str | None,
) -> _Ints:
    """The place of each wanted name, -1 for unknown ones."""

def neighbours_codes(table: _Codes, k: int, threads: int, simd_path: str | None) -> tuple[_Ints, _Floats]: ...
def ranks_codes(
    queries: _Codes,
    items: _Codes,
    bias: _Floats | None,
    truth: _Seen | _Ints,
    seen: _Seen | None,
    rows: _Rows | None,
    threads: int,
    simd_path: str | None,
) -> tuple[_Ints, _Ints]: ...
def candidate_ranks_codes(
    queries: _Codes,
    rows: _Rows | None,
    items: _Codes,
    bias: _Floats | None,
    targets: _Ints,
    candidates: _Ints,
    threads: int,
    simd_path: str | None,
) -> tuple[_Ints, _Ints]: ...
def products(own: _Floats, table: _Floats, ids: _Rows, threads: int, simd_path: str | None) -> _Floats:
    """Products of each of R own vectors [R, D] with its ids' [R, K] in a table [M, D]: [R, K]."""

def product_sums(weights: _Floats, table: _Floats, ids: _Rows, threads: int, simd_path: str | None) -> _Floats:
    """``sum_k weights[r, k] table[ids[r, k]]``: [R, D]."""

def product_scatter(
    groups: list[tuple[_Floats, _Floats, _Rows]],
    items: int,
    dim: int,
    dense: bool,
    threads: int,
    simd_path: str | None,
) -> tuple[_Rows, _Floats]:
    """Sums of ``weights[r, k] own[r]`` by ``ids[r, k]`` over all groups (weights, own, ids): the ids that occur, ascending,
    and their sums [T, dim]; ``dense``, no ids and the sums of all, [items, dim]."""

def relaxed_ranking(
    scores: _Floats, listed: int, known: NDArray[np.bool_] | None, threads: int, simd_path: str | None
) -> tuple[_Floats, _Floats]:
    """The relaxed ranking loss of rows [B, W] whose first ``listed`` entries are in order, [B], and its gradient [B, W]."""

def mixture(
    source: _Floats, shares: _Floats, layers: _Layers, out: _Floats, threads: int, simd_path: str | None
) -> None:
    """``Σ_m shares[:, m] (relu(source W1_m + b1_m) W2_m + b2_m)`` to ``out`` [E, T], of vectors [E, S], shares [E, M] and
    layers W1 [M, S, H], b1 [M, H], W2 [M, H, T], b2 [M, T]. Pairs whose share is 0 are left out."""

def mixture_gradient(
    source: _Floats, shares: _Floats, layers: _Layers, gradient: _Floats, threads: int, simd_path: str | None
) -> tuple[_Floats, _Floats, _Floats, _Floats, _Floats, _Floats]:
    """Gradients of source, shares and the four layers, from that of what `mixture` gives; a share of 0 has none."""

def dropout(
    values: _Floats,
    out: _Floats,
    gate: _Floats | None,
    seed: int,
    dropped: int,
    threads: int,
    simd_path: str | None,
) -> None:
    """``values`` [N] to ``out`` [N]: 0 with the probability ``dropped`` / 65,536 or where ``gate`` [N] is 0 or less, and scaled
    otherwise. What is dropped belongs to (``seed``, place)."""

def quadratic(
    vectors: _Floats, weights: _Floats, out: _Floats, bf16: bool, threads: int, simd_path: str | None
) -> None:
    """Σ_{b<c} 2 h_b h_c weights[(b, c)] to ``out`` [E, D], of vectors [E, d] and weights [d (d-1) / 2, D], row after row of the
    triangle; ``bf16`` rounds features and weights to bfloat16, sums are float32."""

def quadratic_gradient(
    vectors: _Floats, gradient: _Floats, out: _Floats, bf16: bool, threads: int, simd_path: str | None
) -> None:
    """Gradient of the weights to ``out`` [d (d-1) / 2, D], from that of what `quadratic` gives, [E, D]."""

def has_bfloat16_tiles(simd_path: str | None) -> bool:
    """Whether the path multiplies matrices of bfloat16 numbers in tile registers."""

def simd_paths() -> list[str]:
    """The names that KDRS_SIMD may have on this machine, the fastest first."""

def adam_catch_up(arrays: _Table, owed: _Ledger, threads: int, simd_path: str | None) -> None: ...
def adam_catch_up_rows(arrays: _Table, owed: _Ledger, rows: _Rows, threads: int, simd_path: str | None) -> None: ...
def adam_step_rows(
    arrays: _Table,
    owed: _Ledger,
    rows: _Rows,
    gradients: _Floats,
    step: _Step,
    threads: int,
    simd_path: str | None,
) -> None: ...
def table_scores(
    users: tuple[_Table, _Ledger],
    items: tuple[_Table, _Ledger],
    rows: _Rows,
    ids: _Rows,
    threads: int,
    simd_path: str | None,
) -> _Floats: ...
def score_step(
    users: tuple[_Table, _Ledger, _Step],
    items: tuple[_Table, _Ledger, _Step],
    rows: _Rows,
    ids: _Rows,
    slopes: _Floats,
    threads: int,
    simd_path: str | None,
) -> None: ...
def bpr_step(
    users: tuple[_Table, _Ledger, _Step],
    items: tuple[_Table, _Ledger, _Step],
    rows: _Rows,
    positives: _Rows,
    negatives: _Rows,
    threads: int,
    simd_path: str | None,
) -> float: ...
