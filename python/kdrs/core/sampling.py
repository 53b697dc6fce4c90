"""Draws: negatives, weighted lists, background items, rank discrepancies.

NumPy arrays or torch tensors in, the same kind out (on the device of the main array). Every draw is decided by the seed
and its place in the result, so threads and batches never change a result. Arrays may have any strides, alignment, byte
order and width of number; they are copied where the core needs that, and never written to. The shape legend is Q queries
(rows), R positions, I items, W list width, D dimension.
"""

from __future__ import annotations

import hashlib
import logging
import operator
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from kdrs import _core
from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    import torch

    Array: TypeAlias = NDArray[Any] | torch.Tensor
    Model: TypeAlias = Array | tuple[Array, Array] | tuple[Array, Array, Array | None]

INT32_MAX = 2**31 - 1
LARGE = 1 << 20
"""Places of a SciPy matrix from which on its conversion takes longer than what one user waits for."""
log = logging.getLogger("kdrs.core")
_TOLD: set[str] = set()


def stream(seed: int, *names: str | int) -> int:
    """A seed of 63 bits for the random stream called ``names`` in a run seeded ``seed``.

    BLAKE2b of the seed and the names, so any two streams of a run are unrelated and the value is the same for ever.
    ``1`` and ``"1"`` are different names. Raises ``TypeError`` for a seed that is no integer.
    """
    digest = hashlib.blake2b(f"i{operator.index(seed)}".encode(), digest_size=8)
    for name in names:
        text = f"i{int(name)}" if isinstance(name, (int, np.integer)) else f"s{name}"
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little") >> 1


def negatives(
    seen: Any,
    rows: Array,
    n: int = 1,
    *,
    weights: Array | None = None,
    seed: int,
    threads: int | None = None,
    exhausted: Literal["error", "mask"] = "error",
) -> Any:
    """Unseen items for each of ``rows``: int32 ``[R, n]``, drawn with replacement.

    ``rows`` is int ``[R]`` and may repeat; draws are independent for each position. Items are uniform over the unseen
    ones, or proportional to ``weights`` (float ``[I]``). A draw is never a positive, at the same cost for a row that
    has seen nearly everything. A row with nothing left raises ``DataError``, or with ``exhausted="mask"`` gets -1. Raises
    ``MemoryError`` where the machine cannot hold the result, as all draws do.
    """
    if exhausted not in ("error", "mask"):
        raise ConfigError(f"exhausted={shown(exhausted)}", "allowed: error, mask")
    csr, ids = csr_of(seen), ids_of(rows, "rows")
    mask, workers = exhausted == "mask", threads_of(threads)
    check_room(ids.size * count_of(n, "n"))
    if weights is None:
        drawn = _core.negatives(csr, ids, count_of(n, "n"), seed_of(seed), mask, workers, simd_path())
    else:
        law = array_of(weights, "weights", np.float64, 1)
        drawn = _core.weighted_negatives(csr, ids, count_of(n, "n"), law, seed_of(seed), mask, workers, simd_path())
    return like(drawn, rows)


def weighted(
    lists: Array,
    weights: Array,
    n: int,
    *,
    seed: int,
    threads: int | None = None,
    order: Literal["list", "draw"] = "list",
) -> Any:
    """``n`` items of each list without replacement: int32 ``[Q, n]``, by the law of successive draws.

    ``lists`` is int32 ``[Q, W]`` with -1 as padding, ``weights`` float ``[W]`` or ``[Q, W]``. Each draw is proportional
    to the weights of the items that are left, as ``torch.multinomial(replacement=False)``. ``order="list"`` returns
    them as they stand in the list, ``"draw"`` as they were drawn. A row with fewer than ``n`` items of positive weight
    is padded with -1.
    """
    if order not in ("list", "draw"):
        raise ConfigError(f"order={shown(order)}", "allowed: list, draw")
    items = padded_of(lists, "lists")
    law = numpy_of(weights, "weights")
    law = array_of(law, "weights", np.float32 if law.ndim == 2 and law.dtype == np.float32 else np.float64, law.ndim)
    if law.shape not in (items.shape, items.shape[1:]):
        raise DataError(f"weights have shape {law.shape}; allowed: {items.shape[1:]} or {items.shape}")
    check_room(len(items) * count_of(n, "n"))
    drawn = _core.weighted(
        items, law, count_of(n, "n"), seed_of(seed), order == "draw", threads_of(threads), simd_path()
    )
    return like(drawn, lists)


def falling_weights(width: int, scale: float, count: int, option: str) -> NDArray[np.float64]:
    """exp(-r / T) of the ranks r from 1 to ``width``, T being ``scale``: a law for `weighted`, float64 ``[width]``.

    Raises ``ConfigError``, naming the ``option`` that T is, where fewer than ``count`` of them are above 0.
    """
    weights = np.exp(-np.arange(1, width + 1) / scale)
    above = int(np.count_nonzero(weights))
    if above < min(count, width):
        raise ConfigError(
            f"{option} is {scale:g}, at which only the first {above} ranks have a weight above 0; {count} are drawn",
            f"allowed: from {count / 700:.2g} on",
        )
    return weights


def outside(
    seen: Any, lists: Array, n: int, *, rows: Array | None = None, seed: int, threads: int | None = None
) -> Any:
    """``n`` distinct items for each row, uniform over those neither seen nor on its list: int32 ``[Q, n]``.

    ``lists`` is int32 ``[Q, W]`` with -1 as padding; ``rows`` (int ``[Q]``) says which rows of ``seen`` the lists
    belong to, all in order without it. Padded with -1 where fewer exist.
    """
    csr = csr_of(seen)
    items = array_of(lists, "lists", np.int32, 2)
    check_room(len(items) * count_of(n, "n"))
    drawn = _core.outside(
        csr[2], csr, rows_of(rows), items, count_of(n, "n"), seed_of(seed), threads_of(threads), simd_path()
    )
    return like(drawn, lists)


def discrepancy(
    student: Model,
    teacher: Model,
    seen: Any,
    draws: Any,
    *,
    law: str | Sequence[str],
    sharpness: float | Sequence[float],
    seed: int,
    rows: Array | None = None,
    threads: int | None = None,
) -> Any:
    """Unseen items drawn with replacement by how much two rankings disagree (Bidirectional Distillation, WWW 2021).

    ``student`` and ``teacher`` are factors ``(queries [Q, D], items [I, D])`` or ``(queries, items, bias [I])``, or
    score blocks ``[Q, I]``. Ranks count from 1 (best), among a row's unseen items, ties by item id. The laws, with
    s = ``sharpness``:

    - ``"exp"``: w = exp(s (r_teacher - r_student)); what the student places higher, for the teacher to learn
    - ``"tanh"``: w = tanh(max(s (r_student - r_teacher), 0)); what the student underrates
    - ``"tanh-over"``: w = tanh(max(s (r_teacher - r_student), 0)); what the student overrates (DCD)

    ``draws`` is an int, giving int32 ``[Q, draws]``, or int ``[Q]``, giving int32 ``[draws.sum()]``, row after row. A
    row whose weights are all zero gets -1. Several laws in one pass, which ranks only once: tuples of laws and
    sharpnesses (and of draws, if they differ) give a tuple of results.
    """
    single = isinstance(law, str)
    laws = (law,) if isinstance(law, str) else tuple(law)
    strengths: tuple[Any, ...] = (
        (sharpness,) * len(laws) if np.ndim(sharpness) == 0 else tuple(cast("Sequence[float]", sharpness))
    )
    amounts = tuple(draws) if isinstance(draws, tuple) else (draws,) * len(laws)
    if not len(laws) == len(strengths) == len(amounts):
        raise ConfigError(f"{len(laws)} laws, {len(strengths)} sharpnesses, {len(amounts)} draws; they must agree")
    for name, strength in zip(laws, strengths, strict=True):
        if name not in ("exp", "tanh", "tanh-over"):
            raise ConfigError(f"law {shown(name)}", "allowed: exp, tanh, tanh-over")
        if not (isinstance(strength, (int, float, np.number)) and 0 <= strength <= sys.float_info.max):
            raise ConfigError(f"sharpness {shown(strength)} of law {name}", "allowed: finite numbers from 0 on")
    sides = [_scorer(student, "student"), _scorer(teacher, "teacher")]
    queries = sides[0][0].shape[0] if isinstance(sides[0], tuple) else sides[0].shape[0]
    ends = []
    for amount in amounts:
        if np.ndim(amount) == 0:
            each = count_of(amount.item() if hasattr(amount, "item") else amount, "draws")
            check_room(queries * each)
            ends.append(np.arange(1, queries + 1, dtype=np.int64) * each)
        else:
            counts = array_of(amount, "draws", np.int64, 1)
            if len(counts) != queries:
                raise DataError(f"draws for {len(counts)} rows, not {queries}")
            if counts.size and counts.min() < 0:
                raise DataError(f"draws: row {int(counts.argmin())} asks for {counts.min()}", "allowed: 0 or more")
            check_room(int(counts.sum(dtype=np.float64)))  # which the sum of integers may pass
            ends.append(np.cumsum(counts))
    drawn = _core.discrepancy(
        sides[0],
        sides[1],
        None if seen is None else csr_of(seen),
        rows_of(rows),
        [(name, float(strength)) for name, strength in zip(laws, strengths, strict=True)],
        ends,
        seed_of(seed),
        threads_of(threads),
        simd_path(),
    )
    shaped = (
        d.reshape(queries, d.size // queries if queries else int(a)) if np.ndim(a) == 0 else d
        for d, a in zip(drawn, amounts, strict=True)
    )
    main = student[0] if isinstance(student, tuple) else student
    results = tuple(like(items, main) for items in shaped)
    return results[0] if single else results


def _scorer(model: Model, name: str) -> Any:
    if not isinstance(model, tuple):
        return array_of(model, name, np.float32, 2)
    queries, items = (array_of(part, name, np.float32, 2) for part in model[:2])
    if len(model) == 2 or model[2] is None:
        return queries, items
    return queries, items, array_of(model[2], f"{name} bias", np.float32, 1)


# What follows turns arguments into what _core reads; ranking.py shares it.


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def on_other_device(value: Any) -> bool:
    """Whether ``value`` is a tensor that does not lie in the CPU's memory."""
    return is_tensor(value) and value.device.type != "cpu"


def numpy_of(value: Any, name: str = "values") -> NDArray[Any]:
    """``value`` as a NumPy array, without a copy where that can be; ``DataError`` for what is none."""
    try:
        if is_tensor(value):
            tensor = value.detach().cpu().resolve_conj().resolve_neg()
            return cast("NDArray[Any]", (tensor if str(tensor.dtype) != "torch.bfloat16" else tensor.float()).numpy())
        if np.ma.is_masked(value):
            raise DataError(f"{name} are a masked array", "fill what is masked: scores with .filled(-np.inf)")
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # sparse, quantised or meta tensors; rows of several lengths
        kind = f"{value.dtype} tensor, {value.layout}" if is_tensor(value) else type(value).__name__
        raise DataError(f"{name}: no array can be made of this {kind}", "allowed: dense arrays of numbers") from error


def plain(array: NDArray[Any], dtype: Any = None) -> NDArray[Any]:
    """``array``, or a copy that is C-contiguous and aligned, as the core reads arrays."""
    return np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"])


def array_of(value: Any, name: str, dtype: type[np.generic], ndim: int) -> NDArray[Any]:
    """``value`` as an array of ``dtype`` and ``ndim`` dimensions that the core can read; ids are checked before they are cut.

    Any strides, alignment and byte order are taken, with a copy where needed; so are all widths of floats, for floats, and of
    integers. ``value`` is never written to.
    """
    array = numpy_of(value, name)
    if array.ndim != ndim:
        raise DataError(f"{name} have shape {array.shape}; allowed: {ndim} dimension(s)")
    if array.dtype == dtype:
        return plain(array)
    wanted = np.dtype(dtype)
    if array.dtype.kind not in ("iu" if wanted.kind == "i" else "fiu") and array.size:
        raise DataError(f"{name} are {array.dtype}; allowed: {'integers' if wanted.kind == 'i' else 'real numbers'}")
    if wanted == np.int32 and array.size and (array.min() < -(2**31) or array.max() > INT32_MAX):
        raise DataError(f"{name} run from {array.min()} to {array.max()}; allowed: int32")
    if wanted == np.int64 and array.dtype.kind == "u" and array.size and array.max() > 2**63 - 1:
        raise DataError(f"{name} run to {array.max()}; allowed: int64")
    # A value past float32 becomes infinite here and is then refused by name.
    with np.errstate(over="ignore"):
        return plain(array, dtype)


def padded_of(lists: Any, name: str) -> NDArray[np.int32]:
    """Lists of ids from 0, int32 ``[Q, W]``, which -1 pads."""
    ids = array_of(lists, name, np.int32, 2)
    if ids.size and ids.min() < -1:
        row, place = (int(at[0]) for at in np.nonzero(ids < -1))
        raise DataError(f"{name}: row {row} holds item {ids[row, place]}; allowed: from 0 on, and -1 as padding")
    return ids


def ids_of(value: Any, name: str) -> NDArray[Any]:
    """Ids ``[R]`` as int32 or int64, whichever they are."""
    array = numpy_of(value, name)
    if array.ndim == 1 and array.dtype in (np.int32, np.int64):
        return plain(array)
    return array_of(array, name, np.int64, 1)


def rows_of(rows: Any) -> NDArray[np.int64] | None:
    return None if rows is None else array_of(rows, "rows", np.int64, 1)


def csr_of(seen: Any) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """``(indptr, indices, columns)`` of ``Interactions`` or a SciPy sparse matrix, which ``Interactions.from_csr`` checks.

    A matrix may change between calls, so each call converts it anew. Of a large one that is told, once for each format.
    """
    if isinstance(seen, Interactions):
        return plain(seen.indptr), plain(seen.indices), seen.shape[1]
    kind = str(getattr(seen, "format", ""))
    if kind and kind not in _TOLD and seen.nnz >= LARGE:
        _TOLD.add(kind)
        log.warning(
            "a SciPy %s matrix of %s places is checked and converted on every call; pass kdrs.Interactions.from_csr(matrix), "
            "made once, where there are many",
            kind.upper(),
            f"{seen.nnz:,}",
        )
    seen = Interactions.from_csr(seen)
    return plain(seen.indptr), plain(seen.indices), seen.shape[1]


def count_of(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= INT32_MAX:
        raise ConfigError(f"{name} is {shown(value)}", f"allowed: integers from 0 to {INT32_MAX}")
    return int(value)


def length_of(value: int, name: str) -> int:
    """A length of lists, however large: the core cuts it to the catalogue."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ConfigError(f"{name} is {shown(value)}", "allowed: integers from 0; lists end with the catalogue")
    return min(int(value), INT32_MAX)


def seed_of(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ConfigError(
            f"seed is {shown(seed)}", "allowed: integers from 0 to 2^64 - 1; kdrs.core.sampling.stream gives one"
        )
    return int(seed)


def check_room(entries: int) -> None:
    """Raises ``MemoryError`` for a result of so many int32 that the machine cannot hold, before the system ends the process.

    The core itself refuses what the system does not give; many systems promise more memory than there is.
    """
    if entries < 1 << 20:  # no machine is that small, and one user's list waits for the answer
        return
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize
    if 4 * entries > physical:
        raise MemoryError(f"the result takes {4 * entries:,} bytes; this machine has {physical:,}")


def threads_of(threads: int | None) -> int:
    """``threads``, or KDRS_NUM_THREADS, or the processors that this process may use."""
    if threads is None:
        stated = os.environ.get("KDRS_NUM_THREADS")
        if stated is None:
            return _usable_processors()
        if not stated.isdecimal() or not 1 <= int(stated) <= 1024:
            raise ConfigError(f"KDRS_NUM_THREADS is {shown(stated)}", "allowed: 1 to 1024, or unset")
        return int(stated)
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or not 1 <= threads <= 1024:
        raise ConfigError(f"threads is {shown(threads)}", "allowed: 1 to 1024; the machine's unless given")
    return int(threads)


def _usable_processors() -> int:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _quota()))


@cache
def _quota() -> int:
    """Whole processors of the control group's quota, which a container sets below the machine's."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return INT32_MAX
    return INT32_MAX if quota == "max" else max(1, int(quota) // int(period))


def simd_path() -> str | None:
    """KDRS_SIMD: amx, avx512, avx2, neon or portable; the machine's best where it is unset."""
    name = os.environ.get("KDRS_SIMD")
    if name is not None and name not in _core.simd_paths():
        raise ConfigError(f"KDRS_SIMD is {shown(name)}", f"allowed here: {', '.join(_core.simd_paths())}, or unset")
    return name


def like(result: NDArray[Any], main: Any) -> Any:
    """``result`` as the kind of array that ``main`` is, on its device."""
    if not is_tensor(main):
        return result
    tensor = sys.modules["torch"].from_numpy(result)
    return tensor.to(main.device) if main.device.type != "cpu" else tensor
