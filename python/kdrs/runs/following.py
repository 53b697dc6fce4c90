"""The directory of a run that several processes train: the first one writes it, the others read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrs.fitting.checkpoint import Checkpoint
from kdrs.runs.directory import Run
from kdrs.runs.references import Digests
from kdrs.runs.vouching import Complete, Options
from kdrs.training.columns import drain
from kdrs.training.processes import current

if TYPE_CHECKING:
    from kdrs.data import Dataset


class Following(Run):
    """A run directory in a process that writes nothing. It does its part where all of them hold what is written."""

    writes = False

    def log(self, row: dict[str, Any]) -> None: ...

    def set_status(self, status: str, **details: Any) -> None: ...

    def keep_rows(self, until_epoch: int) -> list[dict[str, Any]]:
        return self.metrics.rows()[: until_epoch + 1] if until_epoch >= 0 else []

    def save_model(self, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        drain(tensors)

    def save_stage(self, epoch: int, tensors: Mapping[str, Any]) -> None:
        drain(tensors)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        drain(checkpoint.state)
        drain(checkpoint.best)


def create(
    path: str | Path,
    config: Options,
    dataset: Dataset,
    *,
    resume: bool,
    complete: Complete,
    teachers: Digests | None = None,
) -> Run:
    """`Run.create`, in the first of several processes; the others follow it, and raise what it raises."""

    def begin() -> Run:
        return Run.create(path, config, dataset, resume=resume, complete=complete, teachers=teachers)

    group = current()
    if group is None:
        return begin()
    group.any(False)  # nothing is made before all are as far: one of them may have been refused
    run = group.on_first(begin)
    return Following(Path(path)) if run is None else run


def decided(flag: bool) -> bool:
    """What the first of several processes has found, in all of them: what is on the disk may change between two looks."""
    group = current()
    return flag if group is None else group.told("yes" if flag else "no") == "yes"
