"""An encoder of new users for models whose users have a table."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

from kdrs.compact.encoders import Encoder, asked
from kdrs.compact.tables import Tables
from kdrs.core.codes import Codes
from kdrs.data import Dataset
from kdrs.errors import KdrsError, shown
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.significance import paired_test
from kdrs.models.stored import StoredModel
from kdrs.runs import kept
from kdrs.runs.build import build_evaluator, choose_protocol, choose_selection
from kdrs.runs.config import RunConfig
from kdrs.runs.encoded import candidates, made_as
from kdrs.runs.opened import LoadedRun
from kdrs.runs.records import PATH
from kdrs.runs.source import Source
from kdrs.runs.vectors import tables_of
from kdrs.training.hooks import hook, trait
from kdrs.training.rows import UserTask

OWN = "the model's own"


def network_of(run: LoadedRun | None) -> tuple[Encoder | None, bool]:
    """The model's own encoder of histories, and whether users need no table beside it."""
    offered = None if run is None else hook(run.model, "history_encoder")
    network: Encoder | None = None if offered is None else offered()
    return network, network is not None and run is not None and trait(run.model, "encodes_known")


def encoder_for(
    tables: Tables, data: Dataset, config: RunConfig, network: Encoder | None, enough: bool
) -> tuple[Encoder, dict[str, Any]]:
    """An encoder for users who have a table, and what it costs them on test: known users, as if they were new. It is the
    model's own ``network`` where that is ``enough``, or else the best on validation of it and fitted ones."""
    assert tables.users is not None
    evaluator = build_evaluator(config, data)
    selects = choose_selection(config, choose_protocol(config, data)).metrics[0]
    part = "test" if data.test.n_pairs else "valid"
    items = tables.items
    encoder, name = network, "" if network is None else f"{OWN}, {network.kind}"
    before = None if enough or data.valid.n_pairs else _chosen_before(config)
    if before is not None:
        if not before.startswith(OWN):
            encoder, name = _made_as(before, tables, data), before
    elif network is None or (not enough and data.valid.n_pairs):
        fitted, its_name, value = _fitted(tables, data, evaluator, selects)
        if network is not None:  # a network that lacks what known users have may be worse than a matrix
            vectors = asked(network, kept.seen_of(data, network), items)
            own = evaluator((vectors, items, tables.bias), parts=["valid"])["valid"].mean(selects)
        if network is None or value > own:
            encoder, name = fitted, its_name
    assert encoder is not None
    histories = kept.seen_of(data, encoder)
    measured: dict[str, Any] = {"encoder": name}
    if data.holds_out:
        measured |= {"metric": selects, "part": part, "users": "known ones, from their training items"}
        table, found = (
            evaluator((queries, items, tables.bias), parts=[part])[part]
            for queries in (tables.users, asked(encoder, histories, items))
        )
        change = paired_test(found.values[selects], table.values[selects])
        mean = table.mean(selects)
        ends = [1 + end / mean for end in (change.low, change.high)] if mean else None
        measured |= {
            "value": found.mean(selects),
            "table": mean,
            "share": found.mean(selects) / mean if mean else None,
            "interval": ends,
        }
    return encoder, measured


def _chosen_before(config: RunConfig) -> str | None:
    """Of a refit: the encoder that validation chooses for the run whose settings it has, by its name; None where that run or
    its data set are gone, which is warned of."""
    if config.refit is None:
        return None
    with suppress(KdrsError, OSError):
        run = LoadedRun.open(config.refit)
        data, tables = run.dataset, tables_of(Source.of(run, None), run)
        if data.valid.n_pairs and tables.encoder is None:
            return str(encoder_for(tables, data, run.config, *network_of(run))[1]["encoder"])
    warnings.warn(
        f"{shown(config.refit, PATH)} or its data set are gone: the encoder of new users has constants that nothing chose",
        stacklevel=4,
    )
    return None


def _made_as(name: str, tables: Tables, data: Dataset) -> Encoder:
    """The encoder of that name, for these tables."""
    encoder = made_as(name, *_sides(tables), tables.bias, UserTask(data.train)).user_encoder
    assert encoder is not None
    return encoder


def _sides(tables: Tables) -> tuple[Any, Any, int]:
    """Vectors of users, items as a `StoredModel` has them, and their bits."""
    users, items = tables.users, tables.items
    assert users is not None
    own = users.vectors() if isinstance(users, Codes) else users
    return own, _side(items), items.bits if isinstance(items, Codes) else 32


def _fitted(tables: Tables, data: Dataset, evaluator: Evaluator, selects: str) -> tuple[Encoder, str, float]:
    """The encoder that is best on validation, its name, its value there."""

    def value(model: StoredModel) -> float:
        return evaluator(model.factors(), parts=["valid"])["valid"].mean(selects)

    measure = value if data.valid.n_pairs else None
    best = None
    for one in candidates("encoded", *_sides(tables), tables.bias, UserTask(data.train), measure):
        if best is None or one.value > best.value:
            best = one
    assert best is not None
    encoder = best.model.user_encoder
    assert encoder is not None
    return encoder, best.name, best.value


def _side(items: Any) -> Any:
    import torch

    return items if isinstance(items, Codes) else torch.from_numpy(items)
