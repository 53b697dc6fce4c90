"""A teacher from another library: read, joined by id, measured on the split, written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrs._files import replacing
from kdrs.data import Dataset
from kdrs.errors import ConfigError, quoted, shown
from kdrs.evaluation.report import Report
from kdrs.runs.build import build_evaluator, choose_protocol, choose_selection
from kdrs.runs.config import EvalSettings, resolve
from kdrs.runs.records import PATH
from kdrs.runs.results import measure_teachers
from kdrs.runs.source import pool_of
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.importers import read_source
from kdrs.teachers.importing import Matched, matched
from kdrs.teachers.saving import ALONE, MISSING, save_teacher
from kdrs.training.rows import UserTask

DIM = 16
"""Dimensions of the student that is proposed; of small teachers, half of theirs."""


@dataclass
class Imported:
    """A teacher file that was written, and what is known of it."""

    path: Path
    matched: Matched
    reports: dict[str, Report]
    """The teacher's quality on each part; empty for lists where candidates are ranked, and for items alone without users."""
    selects: str
    """The metric that selects the best epoch of a run on this data set."""
    held_out: bool = True
    """Whether the data set holds anything out to measure by."""

    @property
    def dim(self) -> int | None:
        """Of its vectors; None for lists."""
        items = self.matched.contents.get("items")
        return None if items is None else int(items.shape[1])

    @property
    def listed(self) -> int | None:
        """Items of its longest list; None for vectors."""
        lists = self.matched.contents.get("topk")
        return None if lists is None else int(lists.shape[1])


def import_teacher(
    source: str | Path,
    form: str,
    dataset: Dataset | str | Path,
    out: str | Path,
    *,
    users: str | Path | None = None,
    user_ids: str | Path | Iterable[Any] | None = None,
    item_ids: str | Path | Iterable[Any] | None = None,
    missing: str = "refuse",
    items_alone: str | None = None,
    dim: int | None = None,
    normalise: bool = False,
    columns: str | Sequence[str] | None = None,
    header: bool = True,
    overwrite: bool = False,
    protocol_name: str | None = None,
    threads: int | None = None,
) -> Imported:
    """Makes a teacher file of what another library wrote, joined with a prepared data set by id.

    ``form``: implicit, recbole, lightfm, lenskit, npz, word2vec, parquet, npy or lists (docs/teachers.md tells what each is).
    ``source`` holds the items where a form has a file a side, and ``users`` the users; without it items are alone, and
    ``items_alone`` says what users are then: ``mean`` of the vectors of their training items (default), or ``none``.
    ``user_ids`` and ``item_ids`` name the rows of sources without ids: files, ids in their order, or ``{id: row}``.
    ``missing`` says what becomes of ids of the data set that the source lacks: ``refuse``, ``mean``, ``drop``. ``dim`` keeps
    the first dimensions, ``normalise`` makes lengths 1. Of lists ``columns`` names user, item and perhaps the score, and
    without ``header`` line 1 is a row: columns are then called 0, 1, ...

    The teacher is measured on the data set's split, with warnings if it ranks no better than popularity, if its ids seem
    out of order or if it seems to know held-out pairs. ``out`` is written last, or not at all.

    Raises ``DataError`` for a source that cannot be read, ``ArtefactError`` for ids that do not match, ``ConfigError`` for
    options that do not go together and for an ``out`` that exists (unless ``overwrite``).
    """
    place, name = Path(out), shown(str(source), PATH)
    if place.suffix != ".safetensors":
        raise ConfigError(f"out is {shown(str(place), PATH)}", "a teacher file is named NAME.safetensors")
    if os.path.lexists(place) and (place.is_dir() or not overwrite):
        raise ConfigError(
            f"{shown(str(place), PATH)} exists", "name another file, or replace it with --overwrite (overwrite=True)"
        )
    for option, word, allowed in (("missing", missing, MISSING), ("items_alone", items_alone or ALONE[0], ALONE)):
        if word not in allowed:
            raise ConfigError(f"{option} is {shown(word)}", f"allowed: {', '.join(allowed)}")
    data = dataset if isinstance(dataset, Dataset) else Dataset.load(dataset)
    found = read_source(source, form, users=users, user_ids=user_ids, item_ids=item_ids, columns=columns, header=header)
    made = matched(found, data, dim=dim, normalise=normalise, missing=missing, file=name)
    if items_alone is not None and (found.users is not None or found.lists is not None):
        raise ConfigError(
            f"--items-alone is {shown(items_alone)}, and {name} holds {'lists' if found.users is None else 'users too'}",
            "leave --items-alone out",
        )
    config = resolve(
        {"data": {"path": str(dataset) if not isinstance(dataset, Dataset) else ""}, "model": {"name": "bpr"}}
    )
    if protocol_name is not None:
        config = config.model_copy(update={"eval": EvalSettings(protocol=protocol_name)})
    if threads is not None:
        config = config.model_copy(update={"threads": threads})
    evaluator = build_evaluator(config, data)
    for side in made.trusted:
        warnings.warn(
            f"{name} has no ids of {side}: that its rows are in the data set's order is taken on trust; look at its quality",
            stacklevel=2,
        )
    about = {"source": Path(source).name, "from": form, "data": data.name}
    with replacing(place, make_folder=True) as temporary:
        save_teacher(temporary, **made.contents, missing=missing, items_alone=items_alone or ALONE[0], about=about)
        teacher = FileTeacher(temporary, UserTask(data.train), dataset=data, name=str(place))
        reports = measure_teachers({place.name: teacher}, evaluator, data).get(place.name, {})
    selects = choose_selection(config, choose_protocol(config, data)).metrics[0]
    return Imported(place, made, reports, selects, data.holds_out)


def next_command(made: Imported, data: str) -> str:
    """A command that uses the teacher, for a student that is smaller."""
    method = "rrd" if made.dim is None else "de" if "users" not in made.matched.contents else "cd"
    dim = DIM if made.dim is None else min(DIM, max(made.dim // 2, 1))
    return (
        f"kdrs distill --data {quoted(data)} --teacher {quoted(made.path)} --method {method} {pool_of(made.listed)}"
        f"--model bpr --dim {dim} --out runs/student"
    )
