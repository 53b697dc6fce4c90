"""What some of a part's queries bring, measured by one of several machines; joined, the report that one machine makes."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs._documents import DocumentError, parse_json, write_json
from kdrs._files import write_bytes
from kdrs._parts import parts_beside
from kdrs.errors import DataError, quoted, shown
from kdrs.evaluation.measures import beyond_accuracy
from kdrs.evaluation.report import Report

_HEAD = ("part", "setting", "n_queries", "average", "rules", "tied", "history")


@dataclass(frozen=True, eq=False)
class Portion:
    """The values of consecutive queries, and the sums that no mean is taken of before all are there."""

    values: dict[str, NDArray[np.float64]]
    """Metric name -> float64 [n]."""
    rows: NDArray[np.int64]
    """int64 [n]: which queries, ascending."""
    exposure: dict[int, NDArray[np.int64]]
    """K -> int64 [items]: how often an item stands in places past the K before and up to this one."""
    popularity: NDArray[np.int64]
    """int64 [items]: training pairs; empty where nothing is asked of them."""
    part: str
    setting: str
    n_queries: int
    average: str
    rules: dict[str, str]
    tied: int
    """Queries where equal scores touch the result."""
    history: str = "train"

    def report(self) -> Report:
        values = self.values
        if self.average == "all-queries":
            values = {name: np.where(np.isnan(own), 0.0, own) for name, own in values.items()}
        beyond: dict[str, float] = {}
        for k, counts in zip(self.exposure, np.cumsum(list(self.exposure.values()), axis=0), strict=True):
            found = beyond_accuracy(counts, self.popularity, self.n_queries)
            beyond |= {f"{name}@{k}": value for name, value in found.items()}
        return Report(
            values,
            self.rows,
            setting=self.setting,
            part=self.part,
            n_queries=self.n_queries,
            rules=self.rules,
            beyond=beyond,
            tied=self.tied / self.rows.size if self.rows.size else None,
            history=self.history,
        )

    def save(self, path: Path) -> None:
        """Writes an ``.npz`` file, whole or not at all."""
        head = {name: getattr(self, name) for name in _HEAD} | {"values": list(self.values), "ks": list(self.exposure)}
        arrays: dict[str, NDArray[Any]] = {f"value {number}": own for number, own in enumerate(self.values.values())}
        arrays |= {f"exposure {k}": counts for k, counts in self.exposure.items()}
        arrays |= {"rows": self.rows, "popularity": self.popularity}
        arrays["head"] = np.frombuffer(write_json(head), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_bytes(path, buffer.getvalue(), make_folder=True)

    @classmethod
    def load(cls, path: Path) -> Portion:
        """What ``save`` wrote. Raises ``DataError`` for anything else."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                head = parse_json(stored["head"].tobytes())
                values = {name: stored[f"value {number}"] for number, name in enumerate(head.pop("values"))}
                exposure = {int(k): stored[f"exposure {k}"] for k in head.pop("ks")}
                rows, popularity = stored["rows"], stored["popularity"]
            made = cls(values, rows, exposure, popularity, **head)
            sizes = {(own.dtype.str, own.shape) for own in values.values()}
            if sizes - {("<f8", rows.shape)} or {counts.shape for counts in exposure.values()} - {popularity.shape}:
                raise ValueError("its arrays do not fit together")
            return made
        except (DocumentError, KeyError, TypeError, ValueError, AttributeError, OSError, EOFError, zipfile.BadZipFile,
                zlib.error) as error:  # fmt: skip
            raise DataError(
                f"{shown(str(path), 300)} is no part of a report: {shown(str(error))}",
                "make it again with kdrs eval --share",
            ) from None


def joined(portions: Sequence[Portion]) -> Portion:
    """All queries' portion, of those that follow each other."""
    first = portions[0]
    return replace(
        first,
        values={name: np.concatenate([one.values[name] for one in portions]) for name in first.values},
        rows=np.concatenate([one.rows for one in portions]),
        exposure={k: np.sum([one.exposure[k] for one in portions], axis=0) for k in first.exposure},
        tied=sum(one.tied for one in portions),
    )


def merge(path: Path) -> tuple[int, Report]:
    """Joins the parts of a report that lie beside ``path``, writes it there, and returns how many they were and the report.

    Raises ``DataError`` as `parts_beside` does.
    """
    parts = parts_beside(portions_of(path), lambda part, of: f"kdrs eval RUN --share {part}/{of} --out {quoted(path)}")
    report = joined([Portion.load(part) for part in parts]).report()
    report.save(path)
    return len(parts), report


def portions_of(path: Path) -> Path:
    """The name that parts of a report are called by."""
    return path.with_suffix(".npz") if path.suffix == ".json" else path.with_name(f"{path.name}.npz")
