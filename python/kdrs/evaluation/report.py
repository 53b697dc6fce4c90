"""The metrics of one part, one value a query kept, and their files."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrs._documents import read_json, read_whole
from kdrs._files import write_bytes
from kdrs._libraries import need
from kdrs.errors import ArtefactError, ConfigError, nearest, shown

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Report:
    """The metrics of one part, one value a query kept.

    Printed and JSON names carry the setting where candidates were sampled: ``hit@5 sampled(499)`` and ``hit@5`` are
    different quantities and must not be compared (Krichene and Rendle, KDD 2020).
    """

    values: dict[str, NDArray[np.float64]]
    """Metric name such as ``ndcg@10`` -> float64 [n]."""
    rows: NDArray[np.int64]
    """int64 [n]: which queries, ascending."""
    setting: str = "full"
    """``full``, or ``sampled(C)`` for C stored candidates."""
    part: str = "test"
    n_queries: int = 0
    """Queries in all; ``n_queries - n`` had nothing held out and are not in the means."""
    rules: dict[str, str] = field(default_factory=dict)
    """The options ties, mask, average and formulas that the values were made with."""
    beyond: dict[str, float] = field(default_factory=dict)
    """``coverage@K``, ``popularity@K``, ``gini@K``, ``novelty@K`` of the lists, see ``beyond_accuracy``."""
    tied: float | None = None
    """Share of queries where equal scores touch the result: a list (full) or a target (sampled) is tied."""
    history: str = "train"
    """What the scorer knew of each user: ``train``, or ``train+valid`` for a model of sequences that was asked for a test part
    whose validation items come before it (``train+earlier`` where these are no part)."""

    @property
    def n(self) -> int:
        return int(self.rows.size)

    def mean(self, name: str) -> float:
        """The mean over the queries kept, summed in their order; NaN where there are none."""
        if name not in self.values:
            raise ConfigError(f"the report holds no {shown(name)!r}", nearest(name, self.values))
        values = self.values[name]
        # A running sum has one order on every machine; a plain sum may be reassociated for the machine's vector width.
        return float(np.cumsum(values)[-1] / values.size) if values.size else math.nan

    def means(self) -> dict[str, float]:
        return {name: self.mean(name) for name in self.values}

    def shown_name(self, name: str) -> str:
        """The metric's name as it may be printed."""
        return name if self.setting == "full" else f"{name} {self.setting}"

    def to_json(self) -> dict[str, Any]:
        means = {self.shown_name(name): value if math.isfinite(value) else None for name, value in self.means().items()}
        return {
            "schema": SCHEMA,
            "part": self.part,
            "setting": self.setting,
            "n": self.n,
            "n_queries": self.n_queries,
            "rules": dict(self.rules),
            "metrics": means,
            "beyond": dict(self.beyond),
            "tied": self.tied,
            "history": self.history,
        }

    def save(self, path: str | Path) -> None:
        """Writes ``path`` (JSON) and, beside it, the per-query values (``.npz``); each appears whole or not at all."""
        path = _json_path(path)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, rows=self.rows, **self.values)  # type: ignore[arg-type]
        arrays = buffer.getvalue()
        head = self.to_json() | {"values": list(self.values), "sha256": hashlib.sha256(arrays).hexdigest()}
        write_bytes(path.with_suffix(".npz"), arrays, make_folder=True)
        write_bytes(path, (json.dumps(head, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """The report that ``save`` wrote. Raises ``ArtefactError`` if it is absent, damaged or of another version."""
        path = _json_path(path)
        remedy = "evaluate the run again with kdrs eval"
        name, beside = shown(str(path), 300), path.with_suffix(".npz")
        if not path.exists():
            raise ArtefactError(f"no report at {name}", remedy)
        stored = read_json(path, remedy)
        if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
            found = stored.get("schema") if isinstance(stored, dict) else type(stored).__name__
            raise ArtefactError(f"{name} has schema {shown(found)}; this kdrs reads {SCHEMA}", remedy)
        need("pydantic", "a stored report")
        from kdrs.evaluation._head import head_of

        try:
            head = head_of(stored)
        except ValueError as problem:
            raise ArtefactError(f"{name} is damaged: {problem}", remedy) from None
        content = read_whole(beside, remedy, most=2**34, kind=ArtefactError)
        if hashlib.sha256(content).hexdigest() != head.sha256:
            raise ArtefactError(f"{shown(str(beside), 300)} is damaged or belongs to another report", remedy)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                values = {metric: arrays[metric] for metric in head.values}
                rows = arrays["rows"]
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
            raise ArtefactError(f"{name} is damaged: {shown(str(problem))}", remedy) from problem
        if rows.dtype != np.int64 or any((v.dtype, v.shape) != (np.float64, (rows.size,)) for v in values.values()):
            raise ArtefactError(f"{shown(str(beside), 300)} is damaged: its arrays are no values of queries", remedy)
        return cls(values, rows, **head.model_dump(exclude={"values", "sha256"}))

    def __repr__(self) -> str:
        means = ", ".join(f"{self.shown_name(name)}={value:.4f}" for name, value in self.means().items())
        return f"Report({self.part}, n={self.n}: {means})"


def _json_path(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" else path.with_name(path.name + ".json")
