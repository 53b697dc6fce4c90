"""A student's vectors for other tools: arrays, a column, text, or an index that is checked against the exact lists.

Vectors are float32 there: codes are decoded, so a product differs from the student's own score by rounding alone. Users without
a table are encoded from their training items, where the student knows those.

===========  ===================================================================================================
``npz``      ``users`` float32 [N, D], ``items`` [M, D], ``item_bias`` [M], ``user_ids``, ``item_ids``: unicode
``parquet``  one side, a row an id: ``id``, ``vector`` (list of float32), and of items ``bias``
``word2vec`` one side as text: a line "rows dimensions", then a line an id
``faiss``    ``IndexHNSWFlat`` of the items for inner products
``usearch``  ``Index`` of the items, metric ``ip``
``onnx``     a graph: ``queries`` float32 [Q, D] and ``k`` int64 [1] to ``items`` int64 [Q, k], ``scores`` float32 [Q, k]
===========  ===================================================================================================

Beside the last three lies FILE.json: the ids in the order of the rows, how the index was made, and its recall. A bias is one
more dimension of an index, where a query has 1; the graph adds it itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdrs._documents import write_json
from kdrs._files import replacing
from kdrs.compact.encoders import Items, asked
from kdrs.core import ranking
from kdrs.core.codes import Codes
from kdrs.core.names import Names
from kdrs.core.sampling import check_room, threads_of
from kdrs.errors import ArtefactError, ConfigError, DataError, KdrsError, MachineError, MissingKnowledge, shown

if TYPE_CHECKING:
    from kdrs.student.student import Student

FORMATS = ("npz", "parquet", "word2vec", "faiss", "usearch", "onnx")
SIDES = ("items", "users")
SIDED = ("parquet", "word2vec")
"""Formats that hold one side, which may be chosen."""
EXTRAS = {"faiss": ("faiss",), "usearch": ("usearch.index",), "onnx": ("onnx", "onnxruntime")}
"""Modules of a format; the extra of kdrs has the format's name."""
K, USERS = 20, 1000
"""Recall is that of lists of K items, on so many users."""
LINKS, BUILD = 32, 200
"""Of HNSW: links of a node, and candidates while it is built."""
SEARCH = (64, 128, 256, 512)
"""Candidates of a search: the fewest of these by which `ENOUGH` of the exact lists is found."""
ENOUGH = 0.99
_NEAR = 1e-5
"""Of the largest score of a list: what is nearer than this to its last score ties with it."""
_CELLS = 1 << 24
_LARGEST = 2**31 - 2**20
"""Bytes of an ONNX file, which is one message of Protocol Buffers, less what stands beside the table."""


class Written(NamedTuple):
    """What was written."""

    files: tuple[Path, ...]
    """The file, and what lies beside it."""
    facts: dict[str, Any]
    """``rows``, ``dim``, and of an index ``recall@K``, ``users``, ``index``: JSON values."""
    notes: tuple[str, ...]
    """What the format does not hold, for people."""

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def check(to: str, side: str | None) -> None:
    """Raises ``ConfigError`` for an unknown format or side, ``MachineError`` where what it needs is not installed."""
    if to not in FORMATS:
        raise ConfigError(f"the format is {shown(to)}", f"allowed: student, {', '.join(FORMATS)}")
    if side is not None and side not in SIDES:
        raise ConfigError(f"side is {shown(side)}", f"allowed: {', '.join(SIDES)}")
    if side is not None and to not in SIDED:
        raise ConfigError(
            f"a side is chosen, and {to} holds " + ("both" if to == "npz" else "items"),
            f"leave --side out, or take {' or '.join(SIDED)}",
        )
    for module in EXTRAS.get(to, ()):
        try:
            importlib.import_module(module)
        except ImportError:
            raise MachineError(
                f"{to} needs the package {module.partition('.')[0]}, which is not installed",
                f'pip install "kdrs[{to}]"',
            ) from None


def places(out: Path, to: str) -> tuple[Path, ...]:
    """The files of a format."""
    return (out, out.with_name(f"{out.name}.json")) if to in EXTRAS else (out,)


def write(student: Student, out: Path, to: str, *, side: str | None = None, threads: int | None = None) -> Written:
    """Writes ``student`` as ``to``; nothing is there, and nothing stays if it fails.

    Raises what `check` does, ``MissingKnowledge`` for users that the student has no vectors of, ``DataError`` for ids that the
    format cannot hold, ``ArtefactError`` for vectors that are not finite.
    """
    check(to, side)
    if to in EXTRAS:
        return _index(student, out, to, threads)
    if to == "npz":
        return _npz(student, out)
    vectors, names = _side(student, side or "items")
    bias = _bias(student) if side != "users" else None
    notes = _decoded(student)
    with replacing(out, needed=vectors.nbytes) as temporary:
        if to == "parquet":
            _parquet(temporary, vectors, names, bias)
        else:
            _word2vec(temporary, vectors, names)
            if student.tables.bias is not None and side != "users":
                notes = (*notes, "the bias of items is left out: word2vec has no place for it")
    return Written((out,), {"rows": len(vectors), "dim": vectors.shape[1], "side": side or "items"}, notes)


# --- vectors --------------------------------------------------------------------------------------------------------


def _floats(side: Items, what: str) -> NDArray[np.float32]:
    found = side.vectors() if isinstance(side, Codes) else np.ascontiguousarray(side, np.float32)
    finite = np.isfinite(found).all(1)
    if not finite.all():
        raise ArtefactError(
            f"{what}: row {int(np.argmin(finite))} holds NaN or infinity", "look for a diverged model; train it again"
        )
    return found


def _bias(student: Student) -> NDArray[np.float32]:
    bias = student.tables.bias
    return np.zeros(len(student.items), np.float32) if bias is None else bias


def _queries(student: Student, rows: NDArray[Any] | None = None) -> Items | None:
    """What users ask with: all, or some rows; None where the student does not know."""
    tables = student.tables
    if tables.users is not None:
        return tables.users if rows is None else tables.users[rows]
    if student.seen is None or tables.encoder is None:
        return None
    return asked(tables.encoder, student.seen if rows is None else student.seen.rows(rows), tables.items)


def _side(student: Student, side: str) -> tuple[NDArray[np.float32], Names]:
    if side == "items":
        return _floats(student.tables.items, "items"), student.items
    queries = _queries(student)
    if queries is None or student.users is None:
        raise MissingKnowledge(
            "users have no table in this student, and what they have seen is not known",
            "export the run, whose data set is there: kdrs export RUN --side users",
        )
    return _floats(queries, "users"), student.users


def _decoded(student: Student) -> tuple[str, ...]:
    items = student.tables.items
    return (f"codes of {items.bits} bits are decoded to float32",) if isinstance(items, Codes) else ()


# --- arrays, columns, text ------------------------------------------------------------------------------------------


def _npz(student: Student, out: Path) -> Written:
    items, names = _side(student, "items")
    arrays: dict[str, NDArray[Any]] = {"items": items, "item_bias": _bias(student), "item_ids": _unicode(names)}
    notes = _decoded(student)
    if student.users is not None and (queries := _queries(student)) is not None:
        arrays |= {"users": _floats(queries, "users"), "user_ids": _unicode(student.users)}
    else:
        notes = (*notes, "users are left out: they have no table, and what they have seen is not known")
    with (
        replacing(out, needed=sum(array.nbytes for array in arrays.values())) as temporary,
        temporary.open("wb") as file,
    ):
        # none of objects, so no pickle; older NumPy would keep allow_pickle=False as an array of that name
        assert not any(array.dtype.hasobject for array in arrays.values())
        np.savez(file, **arrays)  # type: ignore[arg-type]
    facts = {"rows": len(items), "dim": items.shape[1], "users": len(arrays.get("users", ()))}
    return Written((out,), facts, notes)


def _unicode(names: Names) -> NDArray[np.str_]:
    """Ids as an array of as many characters each as the longest has."""
    values = names.take(np.arange(len(names)))
    longest = max(map(len, values), default=1)
    check_room(longest * len(values))
    for value in values:
        if value.endswith("\0"):  # NumPy cuts these off
            raise DataError(f"{names.kind} {shown(value)} ends with a null character", "export --to parquet instead")
    return np.array(values, f"<U{longest}")


def _parquet(place: Path, vectors: NDArray[np.float32], names: Names, bias: NDArray[np.float32] | None) -> None:
    from kdrs._libraries import polars as pl

    column = pl.Series("vector", vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])).cast(pl.List(pl.Float32))
    ids = names.take(np.arange(len(names))).tolist()
    frame = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String), "vector": column})
    if bias is not None:
        frame = frame.with_columns(pl.Series("bias", bias, dtype=pl.Float32))
    frame.write_parquet(place)


def _word2vec(place: Path, vectors: NDArray[np.float32], names: Names) -> None:
    from kdrs._libraries import polars as pl

    ids = names.take(np.arange(len(names)))
    for value in ids:
        if any(map(str.isspace, value)):
            raise DataError(
                f"{names.kind} {shown(value)} holds a blank, which ends an id in word2vec's text",
                "export --to parquet or npz instead",
            )
    with place.open("wb") as file:
        file.write(f"{len(vectors)} {vectors.shape[1]}\n".encode())
        step = max(1, _CELLS // 4 // max(vectors.shape[1], 1))
        for start in range(0, len(vectors), step):
            block = pl.DataFrame(vectors[start : start + step].T.copy(), [str(d) for d in range(vectors.shape[1])])
            block.insert_column(0, pl.Series("id", ids[start : start + step].tolist(), dtype=pl.String))
            block.write_csv(file, include_header=False, separator=" ", quote_style="never")


# --- indexes --------------------------------------------------------------------------------------------------------

_Measured = tuple[float | None, int]
"""Recall, and the candidates of a search."""
_Made = tuple[bytes, dict[str, Any], float | None]
"""Contents of the file, how it was made, recall."""
Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]
"""Rows of items, int64 [Q, k], of queries float32 [Q, D]; -1 where fewer are found."""


def _index(student: Student, out: Path, to: str, threads: int | None) -> Written:
    vectors, bias = _floats(student.tables.items, "items"), student.tables.bias
    if not len(vectors):
        raise DataError("the student has no items", f"there is nothing to write as {to}")
    run = threads_of(threads)
    longer = vectors if bias is None or to == "onnx" else np.column_stack([vectors, bias])
    exact = _Exact.of(student, longer.shape[1], run)
    with _known(to):
        if to == "onnx":
            content, facts, recall = _graph(exact, vectors, bias, run)
        else:
            content, facts, recall = (_faiss if to == "faiss" else _usearch)(exact, longer, run)
    measured = {f"recall@{min(K, len(vectors))}": recall, "users": 0 if exact is None else len(exact.vectors)}
    about = {
        "schema": 1, "kdrs": _version(), "format": to, "items": len(vectors), "dim": vectors.shape[1],
        "bias": "none" if bias is None else "added by the graph" if to == "onnx" else "the last dimension, 1 in a query",
        **measured, "index": facts, "source": student.card.get("source"),
        "ids": student.items.take(np.arange(len(vectors))).tolist(),
    }  # fmt: skip
    beside = places(out, to)[1]
    try:
        with (
            replacing(out, needed=len(content)) as temporary,
            replacing(beside) as told,
        ):
            temporary.write_bytes(content)
            told.write_bytes(write_json(about, indent=None))
    except BaseException:
        beside.unlink(missing_ok=True)  # it came first, and was not there before
        raise
    notes = _decoded(student)
    if recall is None:
        notes = (*notes, "recall is not measured: the student knows no users to ask for")
    return Written((out, beside), {"rows": len(vectors), "dim": vectors.shape[1], **measured, "index": facts}, notes)


@contextmanager
def _known(to: str) -> Iterator[None]:
    """What a library raises, as an error of ours."""
    try:
        yield
    except (KdrsError, MemoryError, OSError):
        raise
    except Exception as error:
        name = type(error).__name__
        raise ArtefactError(
            f"{to} does not take these vectors: {name}: {shown(str(error), 200)}", "export --to npz or parquet instead"
        ) from error


def _faiss(exact: _Exact | None, vectors: NDArray[np.float32], threads: int) -> _Made:
    faiss = importlib.import_module("faiss")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD
        index.add(vectors)

        def search(queries: NDArray[np.float32], k: int, ef: int) -> NDArray[np.int64]:
            index.hnsw.efSearch = ef
            return index.search(queries, k)[1]

        recall, ef = _searched(exact, search)
        index.hnsw.efSearch = ef
        content = faiss.serialize_index(index).tobytes()
    finally:
        faiss.omp_set_num_threads(before)
    return content, {"kind": "IndexHNSWFlat", "M": LINKS, "efConstruction": BUILD, "efSearch": ef}, recall


def _usearch(exact: _Exact | None, vectors: NDArray[np.float32], threads: int) -> _Made:
    index = importlib.import_module("usearch.index").Index(
        ndim=vectors.shape[1],
        metric="ip",
        dtype="f32",
        connectivity=LINKS,
        expansion_add=BUILD,
        expansion_search=SEARCH[0],
    )
    index.add(np.arange(len(vectors)), vectors, threads=threads)

    def search(queries: NDArray[np.float32], k: int, ef: int) -> NDArray[np.int64]:
        index.expansion_search = ef
        found = index.search(queries, k, threads=threads)
        keys, counts = np.atleast_2d(found.keys), np.atleast_1d(getattr(found, "counts", k))
        return np.where(np.arange(keys.shape[1]) < counts[:, None], keys, -1).astype(np.int64)

    recall, ef = _searched(exact, search)
    facts = {"kind": "usearch", "connectivity": LINKS, "expansion_add": BUILD, "expansion_search": ef}
    return bytes(index.save()), facts, recall


def _graph(exact: _Exact | None, vectors: NDArray[np.float32], bias: NDArray[np.float32] | None, threads: int) -> _Made:
    onnx, onnxruntime = (importlib.import_module(name) for name in EXTRAS["onnx"])
    helper, numpy_helper, kinds = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    if vectors.nbytes + 4 * len(vectors) > _LARGEST:
        raise DataError(
            f"the items take {vectors.nbytes / 1e9:.1f} GB, an ONNX file holds 2", "export --to faiss, usearch or npz"
        )
    tables = [numpy_helper.from_array(np.ascontiguousarray(vectors.T), "table")]
    nodes = [helper.make_node("MatMul", ["queries", "table"], ["products"])]
    if bias is not None:
        tables.append(numpy_helper.from_array(bias, "bias"))
        nodes.append(helper.make_node("Add", ["products", "bias"], ["sums"]))
    nodes.append(helper.make_node("TopK", [nodes[-1].output[0], "k"], ["scores", "items"], axis=1, largest=1, sorted=1))
    takes = [
        helper.make_tensor_value_info("queries", kinds.FLOAT, ["Q", vectors.shape[1]]),
        helper.make_tensor_value_info("k", kinds.INT64, [1]),
    ]
    gives = [
        helper.make_tensor_value_info("items", kinds.INT64, ["Q", "K"]),
        helper.make_tensor_value_info("scores", kinds.FLOAT, ["Q", "K"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "kdrs", takes, gives, tables),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="kdrs",
        producer_version=_version(),
    )
    onnx.checker.check_model(model)
    content = model.SerializeToString(deterministic=True)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])

    def search(queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        step = max(1, _CELLS // len(vectors))
        blocks = (queries[start : start + step] for start in range(0, len(queries), step))
        given = np.array([k], np.int64)
        return np.concatenate([session.run(["items"], {"queries": block, "k": given})[0] for block in blocks])

    return content, {"kind": "MatMul, TopK", "opset": 17}, None if exact is None else exact.recall(search)


@dataclass(frozen=True)
class _Exact:
    """The exact lists of some of the student's users, seen items included, as far as recall needs them."""

    queries: Items
    vectors: NDArray[np.float32]
    """The same, as an index takes them."""
    items: Items
    bias: NDArray[np.float32] | None
    k: int
    least: NDArray[np.float32]
    """The score of each list's last item: what ties with it may stand in its place."""
    threads: int

    @classmethod
    def of(cls, student: Student, dim: int, threads: int) -> _Exact | None:
        """None where the student knows no users."""
        tables, rows = student.tables, _sample(student)
        queries = _queries(student, rows) if rows.size else None
        if queries is None:
            return None
        vectors = _floats(queries, "users")
        if dim > vectors.shape[1]:
            vectors = np.column_stack([vectors, np.ones(len(vectors), np.float32)])
        k = min(K, len(student.items))
        scores = ranking.topk(queries, tables.items, k, bias=tables.bias, threads=threads).scores
        least = scores[:, -1] - np.float32(_NEAR) * np.abs(scores).max(1)
        return cls(queries, vectors, tables.items, tables.bias, k, least, threads)

    def recall(self, search: Search) -> float:
        """The share of the exact lists that ``search`` finds."""
        found = np.sort(search(self.vectors, self.k), axis=1)
        found[:, 1:][found[:, 1:] == found[:, :-1]] = -1  # none counts twice
        scores = ranking.scores(self.queries, self.items, found, bias=self.bias, threads=self.threads)
        return float((scores >= self.least[:, None]).mean())


def _searched(exact: _Exact | None, search: Callable[[NDArray[np.float32], int, int], NDArray[np.int64]]) -> _Measured:
    """The fewest candidates by which `ENOUGH` is found, and recall with them."""
    if exact is None:
        return None, SEARCH[0]
    recall = 0.0
    for ef in SEARCH:

        def tried(queries: NDArray[np.float32], k: int, ef: int = ef) -> NDArray[np.int64]:
            return search(queries, k, ef)

        recall = exact.recall(tried)
        if recall >= ENOUGH:
            break
    return recall, ef


def _sample(student: Student) -> NDArray[np.int64]:
    """Rows of users who can ask, `USERS` of them at most, drawn by a fixed seed."""
    if student.tables.users is None:
        if student.seen is None:
            return np.zeros(0, np.int64)
        rows = np.flatnonzero(student.seen.row_degrees)
    else:
        rows = np.arange(len(student.tables.users))
    if len(rows) <= USERS:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, USERS, replace=False))


def _version() -> str:
    from kdrs import __version__

    return __version__
