"""Task, model, protocol and evaluator out of a run's options."""

from __future__ import annotations

from typing import Any

import torch

from kdrs.core.sampling import stream
from kdrs.data import Dataset
from kdrs.distillers.base import seeded
from kdrs.errors import ConfigError, MachineError, shown
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.protocols import Protocol, Selection, protocol
from kdrs.models import ModelConfig, Recommender, model_class
from kdrs.runs.config import RunConfig, TrainSettings
from kdrs.training.queries import Task


def device_of(name: str) -> torch.device:
    """The device to compute on. Raises ``MachineError`` for a CUDA device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise MachineError(
            f"device {name!r} is not available: {torch.cuda.device_count()} CUDA devices are seen", "use --device cpu"
        )
    return device


def build_task(config: RunConfig, dataset: Dataset, device: torch.device | None = None) -> Task:
    """The training data in the form that the run's model learns from, on the run's device unless another is given."""
    train = config.train
    cls, options = model_of(config)
    special: dict[str, Any] = {"never": dataset.full} if train.leak_held_out else {}
    if train.draws != "pairs":
        special["draws"] = train.draws
    return cls.make_task(
        options,
        dataset.train,
        **special,
        order=dataset.order,
        batch_size=train.batch_size,
        n_negatives=train.negatives,
        layout=train.layout,
        device=device or device_of(config.device),
        threads=config.threads,
    )


def build_model(config: RunConfig, task: Task) -> Recommender:
    """The run's model with its seeded initial weights, on the task's device."""
    cls, options = model_of(config)
    with seeded(stream(config.train.seed, "init")):
        return cls(options, task).to(task.device)


def model_of(config: RunConfig) -> tuple[type[Recommender], ModelConfig]:
    cls = model_class(config.model["name"])
    return cls, cls.Config(**{key: value for key, value in config.model.items() if key != "name"})


def stage_epochs(config: RunConfig) -> list[int]:
    """Epochs whose weights a run of all its epochs keeps, ascending."""
    train = config.train
    every = train.stages_every
    regular = range(every - 1, train.epochs, every) if every else ()
    return sorted({*(epoch for epoch in train.stages if epoch < train.epochs), *regular})


def choose_protocol(config: RunConfig, dataset: Dataset) -> Protocol:
    """The evaluation protocol of a run; ``auto`` ranks stored candidates where the data set has them."""
    name = config.eval.protocol
    if name == "auto":
        name = "loo-499" if dataset.candidates is not None else "default"
    return protocol(name)


def choose_selection(config: RunConfig, chosen: Protocol) -> Selection:
    """The protocol's rule for the best epoch, changed by what the run states."""
    rule, train = chosen.selection, config.train
    metrics, per_metric, digits = rule.metrics, rule.per_metric_best, rule.digits
    if train.select is not None:
        metrics, per_metric, digits = train.select, False, None
    return Selection(
        metrics=metrics,
        patience=train.patience if train.patience is not None else rule.patience,
        min_delta=rule.min_delta,
        digits=digits,
        per_metric_best=per_metric,
        any_of=rule.any_of,
    )


def build_evaluator(config: RunConfig, dataset: Dataset) -> Evaluator:
    options: dict[str, Any] = {"threads": config.threads}
    if config.eval.ks is not None:
        options["ks"] = config.eval.ks
    return Evaluator.of(dataset, choose_protocol(config, dataset), **options)


def check_measured(selection: Selection, evaluator: Evaluator, dataset: Dataset, train: TrainSettings | None = None) -> None:
    """Raises ``ConfigError`` where the best epoch is selected by what is not measured, or where settings of ``train`` are about
    a validation that the data set does not allow."""
    if train is not None and not dataset.valid.n_pairs:
        for name in ("patience", "select", "test_every_epoch"):
            if getattr(train, name) not in (None, False):
                raise ConfigError(
                    f"train.{name} is {shown(getattr(train, name))}, but the data set has no validation part",
                    "leave it out, or prepare the data set with a validation part",
                )
    missing = [name for name in selection.metrics if name not in evaluator.names]
    if missing and dataset.valid.n_pairs:
        raise ConfigError(
            f"the best epoch is selected by {missing[0]}, which is not evaluated",
            f"set train.select to one of: {', '.join(evaluator.names)}",
        )
