"""TensorBoard: event files in the run's own folder, ``RUN/tensorboard``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kdrs.tracking.base import Option, Watched, check_package

FLUSH_SECONDS = 10
"""Between two writes to the disk: TensorBoard's own two minutes are lost when a run is killed."""


class TensorBoard:
    """Written by torch's ``SummaryWriter``. Seen with ``tensorboard --logdir runs``."""

    _writer: Any

    @staticmethod
    def check() -> None:
        check_package("tensorboard", "tensorboard")

    def begin(self, run: Watched, config: dict[str, Option]) -> int:
        tensorboard = import_module("torch.utils.tensorboard")
        hparams = import_module("torch.utils.tensorboard.summary").hparams  # its writer's own makes another folder
        folder = run.folder("tensorboard")
        goes_on = any(folder.glob("events.out.tfevents.*"))
        # epochs that are trained again take the place of what was written of them
        purged = {"purge_step": run.first} if goes_on else {}
        self._writer = tensorboard.SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS, **purged)
        if not goes_on:
            experiment, started, _ = hparams(config, dict.fromkeys(("train/loss", *run.selects), 0.0))
            for summary in (experiment, started):
                self._writer.file_writer.add_summary(summary)
            rows = "".join(f"| {key} | {value} |\n" for key, value in config.items())
            self._writer.add_text("config", f"| option | value |\n|---|---|\n{rows}", 0)
        return run.first if goes_on else 0

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, status: str) -> None:
        self._writer.close()
