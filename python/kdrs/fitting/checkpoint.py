"""A training as it stood after an epoch, and what keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A training as it stood after an epoch."""

    epoch: int
    state: Mapping[str, Any]
    """Tensors by name; of tables that are divided by columns what brings them together (`kdrs.training.columns.Spread`)."""
    best: Mapping[str, Any]
    meta: dict[str, Any]


class Journal(Protocol):
    """Where `fit` writes down what it does, and finds it again: a run directory."""

    def log(self, row: dict[str, Any]) -> None:
        """Adds the line of an epoch."""

    def keep_rows(self, until_epoch: int) -> list[dict[str, Any]]:
        """Drops the lines of epochs after ``until_epoch``; the others."""

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Stores what a resume needs."""

    def load_checkpoint(self) -> Checkpoint | None:
        """The latest checkpoint; None if there is none yet."""

    def save_stage(self, epoch: int, tensors: Mapping[str, Tensor]) -> None:
        """Keeps the model's weights of an epoch."""
