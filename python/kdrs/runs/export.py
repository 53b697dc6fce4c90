"""A finished run, or a teacher file, as a student file: what serves, and what it says of itself."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdrs.compact.tables import Tables
from kdrs.core.names import Names
from kdrs.data import Dataset
from kdrs.errors import ArtefactError, ConfigError, KdrsError, MissingKnowledge, quoted, shown
from kdrs.evaluation.report import Report
from kdrs.evaluation.significance import bootstrap_means
from kdrs.evaluation.transfer import Transfer
from kdrs.models.stored import StoredModel
from kdrs.runs import kept
from kdrs.runs.card import card_of, doubts_in, sentences_of
from kdrs.runs.compared import compare_runs
from kdrs.runs.config import RunConfig
from kdrs.runs.fold_in import encoder_for, network_of
from kdrs.runs.opened import LoadedRun
from kdrs.runs.parts import teachers_of
from kdrs.runs.records import PATH
from kdrs.runs.reported import reports_before
from kdrs.runs.source import Source
from kdrs.runs.vectors import no_product, tables_of, whole
from kdrs.student import Student, file, formats
from kdrs.student.student import MOST_POPULAR

TAILS = (0.025, 0.975)
RESAMPLES = 1000


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    student: Student
    path: Path
    file_bytes: int
    """Of the whole file: tables, ids, seen pairs, card; of another format, of all its files."""
    table_bytes: int
    written: formats.Written | None = None
    """Of another format than ``student``: its files, and what was measured."""

    @property
    def parts(self) -> dict[str, int]:
        """The bytes of a student file by what they hold; ``card`` is the file's head, card and readme."""
        held = self.student.sizes()
        return {**held, "card": self.file_bytes - sum(held.values())}

    @property
    def new_users(self) -> dict[str, Any] | None:
        """What encoding a user costs or gains; None where nothing was encoded or could be measured."""
        return self.student.card.get("new_users")


def export(
    source: Any,
    out: str | Path,
    *,
    to: str = "student",
    side: str | None = None,
    seen: bool = False,
    seen_parts: str | None = None,
    fold_in: bool = True,
    dataset: Dataset | str | Path | None = None,
    alone: str | Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
) -> Exported:
    """Writes the student file of a finished run (or teacher file, with its data set), or its vectors for other tools.

    ``seen`` keeps what users have seen in training: it can then be left out of lists, and encoded users be asked for by id.
    ``seen_parts`` says of which parts: ``train``, as without it, or ``all``. With ``all`` lists hold nothing that a user has in
    any part, and encoded users are made of all these items: for serving, not for measuring. The card says which.

    ``fold_in`` gives a student of user vectors an encoder for users it has never seen; what that costs known users is measured
    on the data set and kept in the card. ``alone`` is the run of a student without a teacher: the card then has the transfer
    ratio.

    ``to`` is ``student`` or one of `kdrs.student.formats`: npz, parquet, word2vec, faiss, usearch, onnx. ``source`` may be a
    student file for these, and ``side`` (items, the default, or users) is for those that hold one; ``seen``, ``seen_parts``,
    ``fold_in`` and ``alone`` are of a student file alone.

    ``overwrite`` replaces a student file by the new one, in one go: who has the old one open goes on reading it. Nothing else
    is replaced: no link, no file of another kind.

    Raises ``ConfigError`` where ``out`` exists and is not to be, or cannot be, replaced, and for ``seen_parts`` without
    ``seen``, ``MissingKnowledge`` for scores that are no products, ``MachineError`` where what a format needs is not
    installed, and what opening a run does."""
    place = Path(out)
    if to != "student":
        told = seen or seen_parts is not None or not fold_in or alone is not None
        if overwrite:
            raise ConfigError(
                f"--overwrite replaces student files, and the format is {shown(to)}",
                "leave it out, and name another file with --out",
            )
        return _other(source, place, to, side, told, dataset, threads)
    if side is not None:
        raise ConfigError("a side is chosen, and a student file holds both", "leave --side out, or give --to parquet")
    if isinstance(source, str | Path) and file.is_one(Path(source)):
        raise ConfigError(
            f"{shown(str(source), PATH)} is a student file already",
            "copy it; or write its vectors for other tools: --to npz, parquet, word2vec, ...",
        )
    kept.check_parts(seen_parts, seen)
    _check_free(place, overwrite)
    student = student_of(
        source, seen=seen, seen_parts=seen_parts, fold_in=fold_in, dataset=dataset, alone=alone, threads=threads
    )
    size = student.save(place)
    return Exported(student, place, size, student.nbytes)


def _other(
    source: Any, place: Path, to: str, side: str | None, told: bool, dataset: Any, threads: int | None
) -> Exported:
    """Another format than ``student``."""
    formats.check(to, side)
    if told:
        raise ConfigError(
            "what a student file keeps is chosen, and another format is asked for",
            "leave --seen, --seen-parts, --no-fold-in and --alone out, or leave --to out",
        )
    for one in formats.places(place, to):
        _check_free(one)
    if isinstance(source, str | Path) and file.is_one(Path(source)):
        if dataset is not None:
            raise ConfigError("a data set is given, and a student file needs none", "leave --data out")
        student = Student.load(source)
    else:
        run = _opened(source, dataset)
        seen = run is None or run._dataset is not None
        student = student_of(run or source, seen=seen, fold_in=False, dataset=dataset, threads=threads)
    written = formats.write(student, place, to, side=side, threads=threads)
    return Exported(student, place, written.n_bytes, student.nbytes, written)


def _check_free(place: Path, overwrite: bool | None = None) -> None:
    """``overwrite`` is None where there is no such option."""
    name = shown(str(place), PATH)
    if os.path.lexists(place):
        if not overwrite:
            other = "" if overwrite is None or not file.is_one(place) else ", or replace it with --overwrite"
            raise ConfigError(f"{name} is there already", f"name another file with --out{other}")
        if place.is_symlink() or not file.is_one(place):
            what = "a link" if place.is_symlink() else "no student file"
            raise ConfigError(f"{name} is {what}, and is not replaced", "name another file with --out")
    if not place.parent.exists():
        raise ConfigError(
            f"the folder of {name} does not exist",
            f"make it first: mkdir -p {quoted(place.parent)}; or name another file with --out",
        )


def student_of(
    source: Any,
    *,
    seen: bool | None = True,
    seen_parts: str | None = None,
    fold_in: bool = True,
    dataset: Dataset | str | Path | None = None,
    alone: str | Path | None = None,
    threads: int | None = None,
) -> Student:
    """The student of a run in memory; arguments and errors as of `export`. ``seen`` None keeps what users have seen where the
    data set is there."""
    own = _opened(source, dataset)
    if own is not None and own._dataset is None:
        return _of_run_alone(own, bool(seen))
    seen = seen is not False
    given = Source.of(own or source, None if own is not None else dataset)
    if given.teacher is None:
        raise ConfigError("factors have no ids", "write a teacher file, or give kdrs.Student its tables and Names")
    data, config = given.dataset, given.config(None, threads)
    tables = counted = tables_of(given, own)
    measured = None
    if tables.encoder is None and fold_in:
        network, enough = network_of(own)
        encoder, measured = encoder_for(tables, data, config, network, enough)
        tables = tables._replace(encoder=encoder, users=None if enough else tables.users)
        counted = tables if encoder is network else counted  # a fitted encoder is no part of the model
    card: dict[str, Any] = _card(given, own, counted)
    if measured is not None:
        card["new_users"] = measured
    ratio: Mapping[str, Transfer] = {}
    if alone is not None:
        ratio = _transfer(given, own, alone, data, threads)
        card["transfer_ratio"] = {name: value.to_json() for name, value in ratio.items()}
    degrees = data.train.column_degrees
    best = np.argsort(-degrees, kind="stable")[:MOST_POPULAR]
    popular = best[degrees[best] > 0].astype(np.int32)
    items_of = kept.seen_of(data, tables.encoder, seen_parts) if seen else None
    if items_of is not None:
        card["seen"] = kept.told(data, items_of, seen_parts)
    knows_users = tables.users is not None or seen
    use = _use(data.users, data.items, tables, seen)
    if seen:
        use.append(kept.said(kept.parts_of(data, seen_parts), data.holds_out))
    return Student(
        tables,
        Names.of(data.items, "item"),
        Names.of(data.users, "user") if knows_users else None,
        seen=items_of,
        popular=popular,
        popular_counts=degrees[popular].astype(np.int32),
        card=card,
        readme=_readme(own, ratio, use),
    )


def _opened(source: Any, dataset: Dataset | str | Path | None) -> LoadedRun | None:
    """A run, opened once, with its data set where it is given or still there; None for what is no run."""
    data = dataset if isinstance(dataset, Dataset) or dataset is None else Dataset.load(dataset)
    if isinstance(source, LoadedRun):
        if data is None:
            return source
        source = source.run.path
    if not isinstance(source, str | Path) or not (Path(source) / "config.toml").is_file():
        return None
    return LoadedRun.open(source, data)


def _of_run_alone(run: LoadedRun, seen: bool) -> Student:
    """Of what a run itself holds: tables and ids."""
    name = shown(str(run.run.path), PATH)
    if isinstance(run.model, StoredModel):
        tables = run.model.tables()
    else:
        factors = run.factors()
        if factors is None:
            raise no_product(str(run.run.path))
        tables = whole(factors.queries, factors.items, factors.bias)
    if seen:
        alone = (
            "; or go without: kdrs recommend --seen none, kdrs export without --seen"
            if tables.users is not None
            else ""
        )
        raise MissingKnowledge(
            f"what users have seen is in the data set of {name}, which is not at {shown(run.config.data.path, PATH)}",
            f"give it: --data{alone}",
        )
    warnings.warn(
        f"the data set of {name} is not there: no popular items are known"
        + ("" if tables.encoder is not None else ", no encoder for new users"),
        stacklevel=3,
    )
    card = _facts(run, tables)
    users = Names.of(run.users, "user") if tables.users is not None else None
    return Student(
        tables,
        Names.of(run.items, "item"),
        users,
        card=card,
        readme=_readme(run, {}, _use(run.users, run.items, tables, False)),
    )


# --- the card -------------------------------------------------------------------------------------------------------


def _card(given: Source, run: LoadedRun | None, tables: Tables) -> dict[str, Any]:
    if run is not None:
        return _facts(run, tables)
    data = given.dataset
    return {
        "schema": 1,
        "kdrs": _version(),
        "source": Path(given.name).name,
        "data": {"name": data.name, "fingerprint": data.fingerprint, "users": data.n_users, "items": data.n_items},
        "bytes": tables.nbytes,
    }


def _facts(run: LoadedRun, tables: Tables) -> dict[str, Any]:
    config, data = run.config, run.run.data
    reports: Mapping[str, Report] = {}
    with suppress(ArtefactError):
        reports = run.report()
    return {
        "schema": 1,
        "kdrs": _version(),
        "source": run.run.path.name,
        "model": dict(config.model),
        "methods": [term.method for term in config.distill],
        "teachers": [path.name for path in teachers_of(config, run.run.path)],
        "data": {key: data[key] for key in ("name", "fingerprint", "users", "items", "split") if key in data},
        "protocol": config.eval.protocol,
        "metrics": {part: _metrics(report) for part, report in reports.items()},
        **_before(config),
        "bytes": tables.nbytes,
        **({"warnings": told} if (told := sentences_of(doubts_in(run.run))) else {}),
    }


def _before(config: RunConfig) -> dict[str, Any]:
    """Of a refit: the run whose settings it has, and what that was measured to have."""
    if config.refit is None:
        return {}
    metrics = {part: _metrics(report) for part, report in reports_before(config).items()}
    return {"refit": {"of": Path(config.refit).name, "metrics": metrics}}


def _metrics(report: Report) -> dict[str, Any]:
    """Means, and the ends of their intervals over queries."""
    found = {}
    for name, values in report.values.items():
        known = values[np.isfinite(values)]
        if known.size:
            low, high = np.quantile(bootstrap_means(known, RESAMPLES, seed=0), TAILS)
            found[report.shown_name(name)] = {"mean": report.mean(name), "low": float(low), "high": float(high)}
    return found


def _transfer(
    given: Source, run: LoadedRun | None, alone: str | Path, data: Dataset, threads: int | None
) -> dict[str, Transfer]:
    if run is None:
        raise ConfigError("alone is given, and the source is no run that was distilled", "leave --alone out")
    teachers = teachers_of(run.config, run.run.path)
    taught = f"the teacher of {shown(given.name, PATH)}"
    for other, what in ((run.run.path, "the run itself"), *((path, taught) for path in teachers)):
        if Path(alone).resolve() == other.resolve():
            raise ConfigError(
                f"alone is {shown(str(alone), PATH)}, which is {what}, and no student alone",
                "name the run of the same student without a teacher (kdrs train, of the same model and size), or leave "
                "--alone out",
            )
    here = [path for path in teachers if path.exists()]
    if not here:
        raise MissingKnowledge(
            f"the transfer ratio of {shown(given.name, PATH)} needs its teacher, which is not there",
            "leave --alone out",
        )
    paths = [here[0], Path(alone), run.run.path]
    found = compare_runs(
        paths, dataset=data, time_scoring=False, threads=threads, teacher=str(here[0]), baseline=str(alone)
    )
    return dict(found.lines[-1].transfer)


def _use(users: Sequence[str], items: Sequence[str], tables: Tables, seen: bool) -> list[str]:
    """How the file is used, with a question that it can answer."""
    if len(users) and (seen or tables.users is not None):
        ask = f"[{users[0]!a}], k=10" + ("" if seen else ", seen=False")
    elif len(items) and tables.encoder is not None:
        ask = f"histories=[[{items[0]!a}]], k=10"
    else:
        return ["`kdrs.Student.load(FILE)` opens it."]
    return [
        "```python\n"
        "import kdrs\n\n"
        'student = kdrs.Student.load("student.safetensors")  # this file; neither torch nor the data set is needed\n'
        f"found = student.recommend({ask})\n"
        "```"
    ]


def _readme(run: LoadedRun | None, transfer: Mapping[str, Transfer], use: Sequence[str]) -> str:
    if run is None:
        return ""
    try:
        return card_of(run, transfer=transfer, use=use)
    except KdrsError:
        return ""


def _version() -> str:
    from kdrs import __version__

    return __version__
