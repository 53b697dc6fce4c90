"""Why a comparison, or a part of it, should not be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kdrs.errors import shown

if TYPE_CHECKING:
    from kdrs.comparison.compare import Entry
    from kdrs.comparison.result import Comparison

SAME_SIZE = 1.1
"""Models are of one size if neither has more than this many times the other's bytes."""


def warnings_of(comparison: Comparison, entries: Sequence[Entry]) -> tuple[str, ...]:
    """A teacher with nothing to teach, runs that were selected differently, baselines of another size, and what is known
    against single runs; one sentence each."""
    found = [*_no_lead(comparison), *_selections(entries), *_sizes(comparison)]
    seeds = {entry.name: sum(other.name == entry.name for other in entries) for entry in entries}
    for entry in entries:
        name = shown(entry.name) + (f", seed {entry.seed}" if seeds[entry.name] > 1 else "")
        found += [f"{name}: {doubt}" for doubt in entry.doubts]
    return tuple(dict.fromkeys(found))


def _no_lead(comparison: Comparison) -> Iterator[str]:
    for line in comparison.lines:
        for metric, transfer in line.transfer.items():
            if not transfer.clear and line.role == "student":
                yield (
                    f"no transfer ratio by {comparison.shown_name(metric)}: the teacher, {shown(str(comparison.teacher))}, is "
                    f"not clearly better than the model alone, {shown(str(line.baseline))} ({transfer.lead:+.4f}, "
                    f"[{transfer.lead_low:+.4f}, {transfer.lead_high:+.4f}]); there is no lead that a student could take over"
                )


def _selections(entries: Sequence[Entry]) -> Iterator[str]:
    by_rule: dict[str, list[str]] = {}
    for entry in entries:
        if entry.selection is not None and entry.role != "teacher":
            by_rule.setdefault(entry.selection, []).append(entry.name)
    if len(by_rule) > 1:
        rules = "; ".join(f"{', '.join(map(shown, dict.fromkeys(names)))} by {rule}" for rule, names in by_rule.items())
        yield f"the runs' epochs were selected by different rules ({rules}): a difference may come from the rule"


def _sizes(comparison: Comparison) -> Iterator[str]:
    sizes = {line.name: line.n_bytes for line in comparison.lines}
    for line in comparison.lines:
        theirs = sizes.get(line.baseline) if line.baseline is not None else None
        if line.role == "student" and line.n_bytes and theirs:
            times = line.n_bytes / theirs
            if not 1 / SAME_SIZE <= times <= SAME_SIZE:
                yield (
                    f"{shown(line.name)} has {times:.3g} times the bytes of {shown(str(line.baseline))}: the student alone "
                    "should be of the student's size"
                )
