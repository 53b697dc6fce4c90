"""Task, model, protocol and evaluator out of a run's options."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kdrs._memory import memory_limit
from kdrs.core.sampling import stream
from kdrs.data import Dataset
from kdrs.data.dataset import empty, has_candidates
from kdrs.distillers import distiller_class
from kdrs.distillers.base import seeded
from kdrs.errors import ConfigError, MachineError
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.protocols import Plateau, Protocol, Selection, protocol
from kdrs.models import ModelConfig, Recommender, model_class
from kdrs.models.compact import check_compact, compact_class, is_compact
from kdrs.models.sharded import check_sharded, sharded_class
from kdrs.runs.config import RunConfig
from kdrs.training.columns import Columns
from kdrs.training.outline import building, is_outline
from kdrs.training.processes import current
from kdrs.training.queries import Task

MOST_STAGES = 100_000


def device_of(name: str) -> torch.device:
    """The device to compute on; of several processes on a machine each has the CUDA device of its number. Raises
    ``MachineError`` for a CUDA device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device, group = torch.device(name), current()
    if device.type == "cuda" and group is not None:
        device = torch.device("cuda", group.local_rank)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise MachineError(
            f"device {name!r} is not available: {torch.cuda.device_count()} CUDA devices are seen", "use --device cpu"
        )
    return device


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """torch's threads inside, if a number is given."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def memory_of(config: RunConfig, dataset: Dataset, task: Task, evaluator: Evaluator) -> int:
    """Bytes that a run takes beside its model: ids of the data, draws of this and the next epoch, lists."""
    pools = sum(
        min(int(term.options["pool"]), dataset.n_items)
        for term in config.distill
        if isinstance(term.options.get("pool"), int)
    )
    values = 8 * len(evaluator.names) * sum(part.n_pairs > 0 for part in (dataset.valid, dataset.test))
    listed = 8 * min(
        max(evaluator.ks), dataset.n_items
    )  # of a block of queries, as the least of them that there can be
    return (
        8 * dataset.train.n_pairs + 2 * 8 * task.n_rows + task.n_queries * 8 * pools + dataset.n_users * values + listed
    )


def check_memory(config: RunConfig, dataset: Dataset, task: Task, evaluator: Evaluator) -> None:
    """Raises ``MachineError`` where the least that a run takes is more than this process may have."""
    # a table of all items, its gradient or copy, and two moments: the least of any model
    columns = columns_of(config)
    dim = int(config.model["dim"]) if columns is None else columns.width
    needed = memory_of(config, dataset, task, evaluator) + 4 * 4 * dataset.n_items * dim
    check_room(needed, "the run takes", "lower model.dim, train.negatives, the K of eval.ks or the method's pool")


def check_room(needed: int, what: str, remedy: str) -> None:
    """Raises ``MachineError`` where this process may not have so many bytes."""
    limit = memory_limit()
    if limit is not None and needed > limit:
        raise MachineError(
            f"{what} at least {needed / 2**30:,.1f} GiB of memory; this process may have {limit / 2**30:,.1f} GiB",
            f"{remedy}, or take a larger machine",
        )


def columns_of(config: RunConfig) -> Columns | None:
    """The columns of the run's model that this process holds; None where it holds the whole."""
    group = current()
    if group is None or config.train.shard != "columns":
        return None
    cls, options = model_of(config)
    return Columns(group, cls.size_of(options))


def check_shards(config: RunConfig) -> None:
    """Raises ``ConfigError`` for a run that asks for columns of a model that has none, or with a method that trains another
    model along, and for one device that several processes would share."""
    group = current()
    if group is not None and ":" in config.device:
        raise ConfigError(
            f"device is {config.device!r} for {group.size} processes, of which each needs a device of its own",
            "write --device cuda; CUDA_VISIBLE_DEVICES chooses among the machine's",
        )
    if config.train.shard != "columns":
        return
    check_sharded(config.model["name"], *model_of(config))
    for term in config.distill:
        if distiller_class(term.method).mutual:
            raise ConfigError(
                f'train.shard is "columns", and {term.method} trains its teacher along, which is held whole',
                "leave train.shard out, or take another method",
            )
    columns_of(config)  # that there are enough of them


def build_model(config: RunConfig, task: Task, columns: Columns | None = None) -> Recommender:
    """The run's model with its seeded initial weights, on the task's device; for an outline its parameters' shapes. Of
    ``columns`` a model that has these alone."""
    cls, options = model_of(config)
    check_compact(config.model["name"], cls, options)
    if is_compact(options):
        cls = compact_class(cls)  # type: ignore[arg-type]
    if is_outline(task):
        bare = copy.copy(task)
        bare.seen = empty(task.seen.shape)  # graphs and rows of training pairs are no parameters
        with building(task):
            return cls(options, bare).to(task.device)
    if columns is not None:
        cls = sharded_class(cls, columns)
    check_room(
        4 * task.n_items * (options.dim if columns is None else columns.width),
        "the model's table of items takes",
        "lower model.dim",
    )
    with seeded(stream(config.train.seed, "init")):
        return cls(options, task).to(task.device)


def model_of(config: RunConfig) -> tuple[type[Recommender], ModelConfig]:
    """Class and options of the run's model. Raises ``ConfigError`` if the class is not there, or has no such options."""
    cls = model_class(config.model["name"])
    return cls, cls.Config.parse({key: value for key, value in config.model.items() if key != "name"}, "model")


def stage_epochs(config: RunConfig) -> list[int]:
    """Epochs whose weights a run of all its epochs keeps, ascending. Raises ``ConfigError`` for more than ``MOST_STAGES``."""
    train = config.train
    if train.stages_every and train.epochs // train.stages_every > MOST_STAGES:
        raise ConfigError(
            f"train.stages_every is {train.stages_every} with {train.epochs:,} epochs, whose weights would all be kept",
            f"allowed: {MOST_STAGES:,} of them; keep fewer, or train fewer epochs",
        )
    every = train.stages_every
    first = train.every_from if train.every_from is not None else (every or 1) - 1
    regular = range(first, train.epochs, every) if every else ()
    return sorted({*(epoch for epoch in train.stages if epoch < train.epochs), *regular})


def choose_protocol(config: RunConfig, dataset: Dataset) -> Protocol:
    """The evaluation protocol of a run; ``auto`` ranks stored candidates where the data set has them."""
    return protocol(_protocol_name(config, dataset.candidates is not None))


def stored_protocol(config: RunConfig) -> Protocol:
    """The same by the data set as it is stored: for ``auto`` its head is read, for a stated protocol nothing. Raises
    ``DataError`` for a head that is not there or damaged."""
    return protocol(_protocol_name(config, config.eval.protocol == "auto" and has_candidates(config.data.path)))


def _protocol_name(config: RunConfig, candidates: bool) -> str:
    name = config.eval.protocol
    return name if name != "auto" else "loo-499" if candidates else "default"


def choose_selection(config: RunConfig, chosen: Protocol) -> Selection:
    """The protocol's rule for the best epoch, changed by what the run states."""
    rule, train = chosen.selection, config.train
    metrics, per_metric, digits = rule.metrics, rule.per_metric_best, rule.digits
    if train.select is not None:
        metrics, per_metric, digits = train.select, False, None
    return Selection(
        metrics=metrics,
        patience=Plateau()
        if train.patience == "plateau"
        else rule.patience
        if train.patience is None
        else train.patience,
        min_delta=rule.min_delta,
        digits=digits,
        per_metric_best=per_metric,
        any_of=rule.any_of,
    )


def build_evaluator(config: RunConfig, dataset: Dataset) -> Evaluator:
    """What a run is measured by: of a data set that holds nothing out, nothing."""
    options: dict[str, Any] = {"threads": config.threads, "team": current(), "nothing": True}
    if config.eval.ks is not None:
        options["ks"] = config.eval.ks
    return Evaluator.of(dataset, choose_protocol(config, dataset), **options)


def check_measured(config: RunConfig, selection: Selection, evaluator: Evaluator, dataset: Dataset) -> None:
    """Raises ``ConfigError`` if what the best epoch is selected by is not measured."""
    about_it = ("patience", "select", "test_every_epoch")
    stated = [key for key in about_it if getattr(config.train, key) not in (None, False)]
    if stated and not dataset.valid.n_pairs:
        raise ConfigError(
            f"train.{stated[0]} is given, and the data set has no validation part to select by",
            "leave it out: the last weights are kept; or prepare the data with a validation part",
        )
    missing = [name for name in selection.metrics if name not in evaluator.names]
    if missing and dataset.valid.n_pairs:
        raise ConfigError(
            f"the best epoch is selected by {missing[0]}, which is not evaluated",
            f"set train.select to one of: {', '.join(evaluator.names)}",
        )
