"""A comparison as CSV, for spreadsheets and data frames: a row for each model and metric."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kdrs.escaping import visible

if TYPE_CHECKING:
    from kdrs.comparison.result import Comparison, Line
    from kdrs.evaluation.significance import Difference

Value = str | float | None


def csv_of(comparison: Comparison) -> str:
    """Numbers in full precision; what does not exist is empty. The first line names the columns."""
    file = io.StringIO()
    rows = list(rows_of(comparison))
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(file, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return file.getvalue()


def rows_of(comparison: Comparison) -> Iterator[dict[str, Value]]:
    """What a row says, by column."""
    for line in comparison.lines:
        for metric in comparison.metrics:
            yield _row(comparison, line, metric)


def _row(comparison: Comparison, line: Line, metric: str) -> dict[str, Value]:
    spread = line.quality[metric]
    low, high = line.intervals.get(metric, (None, None))
    transfer = line.transfer.get(metric)
    over_queries, over_seeds = line.against.get(metric), line.against_by_seed.get(metric)
    standing = line.standings.get(metric)
    return {
        "model": line.name,
        "role": line.role,
        "seeds": " ".join(str(seed) for seed in line.seeds if seed is not None),
        "part": comparison.part,
        "setting": comparison.setting,
        "metric": comparison.shown_name(metric),
        "mean": spread.mean,
        "sd": spread.sd,
        "n": spread.n,
        "low": low,
        "high": high,
        "confidence": comparison.confidence,
        "n_queries": comparison.n,
        "place": None if standing is None else standing.place,
        "best": None if standing is None else standing.best,
        "against_best": None if standing is None or standing.verdict is None else str(standing.verdict),
        "n_parameters": line.n_parameters,
        "n_bytes": line.n_bytes,
        "bytes_per_row": line.bytes_per_row,
        "seconds_per_1000_queries": line.seconds_per_1000,
        "teacher": comparison.teacher,
        "share_of_teacher": line.kept.get(metric),
        "baseline": line.baseline,
        "transfer_ratio": None if transfer is None else transfer.ratio,
        "transfer_ratio_low": None if transfer is None else transfer.low,
        "transfer_ratio_high": None if transfer is None else transfer.high,
        "difference": None if over_queries is None else over_queries.difference,
        "difference_low": None if over_queries is None else over_queries.low,
        "difference_high": None if over_queries is None else over_queries.high,
        **_p_values("queries", over_queries),
        **_p_values("seeds", over_seeds),
        "verdict": str(line.verdicts[metric]) if metric in line.verdicts else None,
        **{f"teacher_{name}": value for name, value in line.agreement.items()},
    }


def _p_values(over: str, d: Difference | None) -> dict[str, Value]:
    return {
        f"p_over_{over}": None if d is None else d.p,
        f"p_over_{over}_holm": None if d is None else d.p_adjusted,
    }


def _cell(value: Value) -> str:
    """Names are other people's: one line each, and nothing unseen in them."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return visible(value) if isinstance(value, str) else repr(value)
