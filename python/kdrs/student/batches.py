"""A student as a function of batches, for engines that spread rows over processes and machines: Ray Data, Spark, any other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs.errors import DataError, MachineError, shown
from kdrs.student.answers import Recommendations
from kdrs.student.student import Student, Unknown

Columns = dict[str, NDArray[Any]]


class Recommend:
    """Lists for the users of a batch: columns in, the long form (``user``, ``item``, ``score``, ``rank``) out.

    Only the path and the options travel to workers. Each process opens the file when it is first called: tables are mapped, so
    the workers of a machine share one copy in memory.

    ``user`` is the column of ids, ``histories`` that of lists of item ids, if users are to be answered by theirs. ``k``,
    ``unknown`` and ``seen`` (True or False) are those of `Student.recommend`, and a ``k`` past the catalogue is all of it;
    ``threads`` are those of each process. Without ``verify`` the file's checksum is not
    compared, which every process would do anew.

    A class for Ray Data: ``users.map_batches(kdrs.Recommend, fn_constructor_args=(path, k), concurrency=2)``.
    """

    SCHEMA = "user string, item string, score float, rank int"
    """Of what ``arrow`` gives, as Spark writes schemas."""

    def __init__(
        self,
        path: str | Path,
        k: int | None = 20,
        *,
        user: str = "user",
        histories: str | None = None,
        seen: bool = True,
        unknown: Unknown = "popular",
        threads: int = 1,
        verify: bool = False,
    ):
        self.path, self.k, self.user, self.histories = str(path), k, user, histories
        self.seen, self.unknown, self.threads, self.verify = seen, unknown, threads, verify
        self._student: Student | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_student": None}

    @property
    def student(self) -> Student:
        """Opened once a process. Raises ``ArtefactError`` for what is no student file."""
        if self._student is None:
            self._student = Student.load(self.path, verify=self.verify)
        return self._student

    def __call__(self, batch: Mapping[str, Any]) -> Columns:
        """Of columns by name (arrays or lists ``[rows]``; a frame has them too). Raises ``DataError`` for a column that is not
        there, and as `Student.recommend` does."""
        given = None if self.histories is None else self._column(batch, self.histories)
        found = self._found(self._column(batch, self.user), given)
        return {name: _texts(values) if values.dtype == object else values for name, values in found.columns().items()}

    def arrow(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Of Arrow record batches, one for one, as Spark's ``mapInArrow`` asks. Raises ``MachineError`` without pyarrow."""
        try:
            pa = import_module("pyarrow")
        except ImportError:
            raise MachineError("pyarrow is not installed", "pip install pyarrow") from None
        types = {"user": pa.string(), "item": pa.string(), "score": pa.float32(), "rank": pa.int32()}
        for batch in batches:
            columns = self({name: batch.column(name).to_pylist() for name in batch.schema.names if name in self._asked})
            arrays = [pa.array(columns[name], kind) for name, kind in types.items()]
            yield pa.RecordBatch.from_arrays(arrays, names=list(types))

    @property
    def _asked(self) -> tuple[str | None, ...]:
        return self.user, self.histories

    def _column(self, batch: Mapping[str, Any], name: str) -> list[Any]:
        try:
            values = batch[name]
        except (KeyError, IndexError):
            raise DataError(
                f"the batch has no column {shown(name)}; it has {shown(', '.join(map(str, batch)))}",
                "name the columns: Recommend(..., user=, histories=)",
            ) from None
        return values.tolist() if hasattr(values, "tolist") else list(values)

    def _found(self, users: list[Any], histories: list[Any] | None) -> Recommendations:
        if not users:
            return Recommendations([], np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32), self.student.items)
        most = max(len(self.student.items), 1)
        return self.student.recommend(
            users,
            most if isinstance(self.k, int | np.integer) and self.k > most else self.k,
            histories=histories,
            seen=self.seen,
            unknown=self.unknown,
            threads=self.threads,
        )


def _texts(values: NDArray[Any]) -> NDArray[np.object_]:
    """Ids as strings, whatever they were asked by."""
    found = np.empty(len(values), object)
    found[:] = [str(value) for value in values]
    return found
