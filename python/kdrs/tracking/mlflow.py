"""MLflow: a run in the store that its own variables name, or in a local one."""

from __future__ import annotations

import os
import re
import time
from importlib import import_module
from typing import Any

from kdrs.tracking.base import Option, Watched, check_package

EXPERIMENT = "kdrs"
"""Where MLFLOW_EXPERIMENT_NAME and MLFLOW_EXPERIMENT_ID name none."""
LONGEST_KEY, LONGEST_VALUE, MOST_PARAMS, MOST_METRICS = 250, 500, 100, 1000
"""What stores of all versions take; the last two in one request."""
BETWEEN = 2.0
"""Seconds between two requests. A local store takes 20 ms for one, of the processors that train: an epoch of small data."""
ENDED = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
STEPS = "train/loss"
"""The values that tell which epochs are there."""


class MLflow:
    """By MLflow's client, which knows no active run: a run of one's own in the same process is left alone."""

    _client: Any
    _run: str

    def __init__(self) -> None:
        self._waiting: list[Any] = []
        self._sent = 0.0

    @staticmethod
    def check() -> None:
        check_package("mlflow", "mlflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri or uri.startswith("sqlite:"):  # mlflow-skinny has no store of its own
            check_package("mlflow", "sqlalchemy")

    def begin(self, run: Watched, config: dict[str, Option]) -> int:
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout has the results
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow = import_module("mlflow")
        self._entities = import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        store = str(mlflow.get_tracking_uri())
        if run.kept.get("store") == store and (found := self._found(run.kept.get("run", ""))):
            self._run = found
            self._client.update_run(found, status="RUNNING")
            history = self._client.get_metric_history(found, STEPS)
            return 1 + max((entry.step for entry in history), default=-1)
        name = {"mlflow.runName": run.name, "kdrs.path": str(run.path.resolve())}
        self._run = str(self._client.create_run(self._experiment(), tags=name).info.run_id)
        run.kept.update(store=store, run=self._run)
        params = [
            self._entities.Param(_allowed(key), str(value)[:LONGEST_VALUE])
            for key, value in config.items()
            if value != ""
        ]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._run, params=params[start : start + MOST_PARAMS])
        return 0

    def _found(self, run_id: str) -> str | None:
        """The run of an earlier session, unless it was deleted."""
        try:
            info = self._client.get_run(run_id).info
        except Exception:
            return None
        return run_id if info.lifecycle_stage == "active" else None

    def _experiment(self) -> str:
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        for _ in range(2):
            if (found := self._client.get_experiment_by_name(name)) is not None:
                return str(found.experiment_id)
            try:
                return str(self._client.create_experiment(name))
            except Exception:  # another process made it meanwhile
                time.sleep(0.1)
        return str(self._client.create_experiment(name))

    def log(self, step: int, values: dict[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        self._waiting += [self._entities.Metric(_allowed(name), value, now, step) for name, value in values.items()]
        if len(self._waiting) >= MOST_METRICS or time.monotonic() - self._sent >= BETWEEN:
            self._send()

    def _send(self) -> None:
        for start in range(0, len(self._waiting), MOST_METRICS):
            self._client.log_batch(self._run, metrics=self._waiting[start : start + MOST_METRICS])
        self._waiting, self._sent = [], time.monotonic()

    def end(self, status: str) -> None:
        self._send()
        self._client.set_terminated(self._run, status=ENDED[status])


def _allowed(name: str) -> str:
    """A key of letters that MLflow takes: ``ndcg_at_10`` for ndcg@10, as MLflow itself has it."""
    return re.sub(r"[^\w./ -]", "_", name.replace("@", "_at_"))[:LONGEST_KEY]
