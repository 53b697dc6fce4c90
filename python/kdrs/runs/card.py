"""The card of a run, README.md: what it is, what it was made from, how good it is, how to use it.

It says nothing that changes from one carrying out to the next: no times, no machine, no place. So a resumed run has the same
card as an uninterrupted one. Nothing reads it again; a card that was edited is kept.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from kdrs._documents import read_json
from kdrs._files import write_bytes
from kdrs.data import Dataset
from kdrs.data.known import known_by_files
from kdrs.errors import KdrsError, shown
from kdrs.escaping import markdown
from kdrs.evaluation.protocols import cutoff
from kdrs.evaluation.report import Report
from kdrs.evaluation.significance import enough_resamples, resampled_means
from kdrs.models.stored import StoredModel, encoder_of
from kdrs.runs.config import RunConfig, config_of
from kdrs.runs.directory import Run
from kdrs.runs.parts import teachers_of
from kdrs.runs.places import holds_run
from kdrs.runs.records import PATH, RESTORE
from kdrs.runs.reported import reports_before
from kdrs.teachers.file import read_head, trajectory_files
from kdrs.teachers.ids import IDS
from kdrs.training.hooks import hook
from kdrs.training.view import frozen

if TYPE_CHECKING:
    from kdrs.evaluation.transfer import Transfer
    from kdrs.runs.opened import LoadedRun

NAME = "README.md"
GOES_BACK = "what it learnt goes back to "
"""Begins a sentence about a run's teachers that those who learn from the run have too."""
_MARK = re.compile(r"\n<!-- Written by kdrs\. sha256 of what stands above: ([0-9a-f]{64}) -->\n\Z")


@dataclass(frozen=True)
class _Subject:
    """What a card is of."""

    config: RunConfig
    data: Mapping[str, Any]
    """As data.json has it."""
    dataset: Dataset | None
    model: nn.Module
    reports: Mapping[str, Report]
    status: Mapping[str, Any]
    place: Path
    transfer: Mapping[str, Transfer]
    doubts: Mapping[str, Sequence[str]]
    """Sentences about teachers that seem to know held-out pairs, by name."""


def card_of(run: LoadedRun, *, transfer: Mapping[str, Transfer] | None = None, use: Sequence[str] | None = None) -> str:
    """The card of a finished run, as Markdown; ``transfer`` are its transfer ratios by metric, where a comparison is known
    (`kdrs.comparison.result.Line.transfer`); ``use`` are the paragraphs that say how to use it, those of a run unless given.
    Raises ``ArtefactError`` where the run has no evaluation."""
    known = run._dataset
    subject = _Subject(
        run.config, run.run.data, known, run.model, run.report(), run.run.status(), run.run.path, transfer or {},
        doubts_in(run.run),
    )  # fmt: skip
    return _text(subject, use)


def doubts_in(run: Run) -> dict[str, list[str]]:
    """What its report says of its teachers, by name: those that seem to know held-out pairs. Older runs say nothing."""
    told = None
    with suppress(KdrsError, OSError):
        told = read_json(run.path / "report.json", RESTORE)
    told = told.get("doubts") if isinstance(told, dict) else None
    pairs = told.items() if isinstance(told, dict) else ()
    lists = ((name, sentences) for name, sentences in pairs if isinstance(sentences, list))
    return {name: [one for one in sentences if isinstance(one, str)] for name, sentences in lists}


def handed_down(reference: str, told: Mapping[str, Sequence[str]]) -> list[str]:
    """What its own teachers say against a teacher, or a start, that is a run: who learns from it learns what they knew. The
    teacher file at the end of a chain is named once, however many ways lead to it; what is ``told`` already is left out."""
    path, known = Path(reference), {doubt for doubts in told.values() for doubt in doubts}
    found = []
    for name, doubts in (doubts_in(Run.open(path)) if holds_run(path) else {}).items():
        found += [doubt if doubt.startswith(GOES_BACK) else f"{GOES_BACK}{shown(name)}: {doubt}" for doubt in doubts]
    return [doubt for doubt in dict.fromkeys(found) if doubt not in known]


def write_card(
    run: Run,
    config: RunConfig,
    dataset: Dataset,
    model: nn.Module,
    reports: Mapping[str, Report],
    doubts: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes README.md of a run that has just finished. It never fails a run: what goes wrong is a warning. A card that
    somebody edited, or a README of somebody else, is left as it is."""
    path = run.path / NAME
    try:
        if os.path.lexists(path) and not _is_ours(path):
            warnings.warn(
                f"{shown(str(path), PATH)} was edited and is left as it is; a new one is written where there is none",
                stacklevel=3,
            )
            return
        text = _text(_Subject(config, run.data, dataset, model, reports, run.status(), run.path, {}, doubts or {}))
        digest = hashlib.sha256(text.encode()).hexdigest()
        write_bytes(path, f"{text}\n<!-- Written by kdrs. sha256 of what stands above: {digest} -->\n".encode())
    except Exception as error:
        cause = error.cause if isinstance(error, KdrsError) else f"{type(error).__name__}: {error}"
        warnings.warn(f"{shown(str(path), PATH)} was not written: {shown(cause, 300)}", stacklevel=3)


def _is_ours(path: Path) -> bool:
    """Whether a card is as kdrs wrote it."""
    if not path.is_file():
        return False
    text = path.read_bytes().decode("utf-8", "replace")
    mark = _MARK.search(text)
    return mark is not None and hashlib.sha256(text[: mark.start()].encode()).hexdigest() == mark[1]


def _text(of: _Subject, use: Sequence[str] | None = None) -> str:
    teachers = _teachers(of)
    blocks = [
        f"# {_title(of.config, teachers)}",
        "A recommender, made by kdrs (knowledge distillation for recommenders).",
        _table(_what(of, teachers)),
        "## Data",
        _table(_data(of)),
        "## Quality",
        *(f"**Warning.** {markdown(told)}." for told in sentences_of(of.doubts)),
        *_quality(of),
        "## Use",
        *(_use(of) if use is None else use),
    ]
    return "\n\n".join(blocks) + "\n"


# --- what it is -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Teacher:
    name: str
    says: str
    n_bytes: int | None


def _teachers(of: _Subject) -> list[_Teacher]:
    """The run's teachers by name; what they are and their bytes, where they still are where they were."""
    found: dict[Path, _Teacher] = {}
    for place in teachers_of(of.config, of.place):
        says, n_bytes = "", None
        with suppress(KdrsError, OSError):
            if (place / "config.toml").is_file():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the run itself has told what is wrong with its teachers
                    says = model_in_words(config_of(Run.open(place)).model)
                file = place / "model.safetensors"
            else:
                files = trajectory_files(place)
                file = files[-1] if files else place
            tensors, names = read_head(file)[0], {name for both in IDS.values() for name in both}
            n_bytes = sum(tensor.nbytes for name, tensor in tensors.items() if name not in names)
        found[place] = _Teacher(named(place), says, n_bytes)
    return list(found.values())


def named(place: Path) -> str:
    """The last name of a path, which a run that has moved keeps; of a seed's folder with its model's."""
    return f"{place.parent.name}/{place.name}" if re.fullmatch(r"seed-\d+", place.name) else place.name


def model_in_words(model: Mapping[str, Any]) -> str:
    """Its name, dimensions, bits, and whether users have a table."""
    said = [str(model["name"])]
    said += [f"{key} {model[key]}" for key in ("dim", "bits") if key in model and (key, model[key]) != ("bits", 32)]
    return ", ".join([*said, *(["users without a table"] if model.get("users") == "encoded" else [])])


def _title(config: RunConfig, teachers: Sequence[_Teacher]) -> str:
    model = model_in_words(config.model)
    if not teachers:
        return markdown(model)
    names = " and ".join(teacher.name for teacher in teachers)
    if config.compress is not None:
        return markdown(f"{model}: {names}, compressed")
    return markdown(f"{model}: a student of {names} by {' and '.join(term.method for term in config.distill)}")


def _what(of: _Subject, teachers: Sequence[_Teacher]) -> list[tuple[str, str]]:
    config = of.config
    own = _bytes_of(of.model)
    rows = [("model", model_in_words(config.model))]
    for term in config.distill:
        called = "" if term.name == term.method else f", called {term.name}"
        rows.append(("method", f"{term.method}{called}, weight {term.weight:g}"))
    if config.compress is not None:
        rows.append(("method", f"kdrs compress, users: {config.compress.how}"))
    for teacher in teachers:
        size = "" if teacher.n_bytes is None else f"; {teacher.n_bytes:,} bytes, {teacher.n_bytes / own:.3g} times this"
        rows.append(("teacher", teacher.name + (f" ({teacher.says})" if teacher.says else "") + size))
    if config.start is not None:
        start = "its teacher's vectors" if config.start == "teacher" else f"the weights of {named(Path(config.start))}"
        rows.append(("starts from", start))
    if config.refit is not None:
        rows.append(("settings", f"those of {named(Path(config.refit))}, and as many epochs as its best weights had"))
    rows.append(("bytes", f"{own:,} of all its tables, ids left out"))
    if config.compress is None and encoder_of(of.model) == "ridge":
        chosen = ": better on validation than the matrix that was trained" if config.model["encoder"] == "best" else ""
        rows.append(("users", f"ridge regression on their items{chosen}"))
    if of.status.get("epochs"):
        best = of.status.get("best_epoch")
        kept = "" if best is None else f", the weights are those of epoch {best} (counted from 0)"
        rows.append(("training", f"{of.status['epochs']:,} epochs{kept}; seed {config.train.seed}"))
    return rows


def _bytes_of(model: nn.Module) -> int:
    return max(1, sum(tensor.nbytes for tensor in model.state_dict().values()))


# --- its data -------------------------------------------------------------------------------------------------------


def _data(of: _Subject) -> list[tuple[str, str]]:
    data, pairs = of.data, of.data["pairs"]
    split = ", ".join(f"{key} {value}" for key, value in data["split"].items() if key != "kind")
    ranked = "nothing is held out"
    if of.reports:
        report = of.reports.get("test") or next(iter(of.reports.values()))
        ranked = "all items are ranked" if report.setting == "full" else f"stored candidates, {report.setting}"
    known = None if of.dataset is None else known_by_files(of.dataset.sources)
    rows = [
        ("name", data["name"]),
        ("counts", f"{data['users']:,} users, {data['items']:,} items"),
        ("pairs", ", ".join(f"{n:,} {part}" for part, n in pairs.items())),
        ("split", f"{data['split'].get('kind', 'given')}" + (f" ({split})" if split else "")),
        ("protocol", f"{of.config.eval.protocol}: {ranked}"),
        ("fingerprint", data["fingerprint"]),
    ]
    if known is not None:
        rows.append(("source", f"{known.title}: {known.source}"))
    terms = None if known is None else known.terms
    rows.append(("licence", terms or "see the source of the data"))
    return rows


def sentences_of(doubts: Mapping[str, Sequence[str]]) -> list[str]:
    """One sentence a doubt, with the name of the teacher, or of the run that learnt from it."""
    role = {True: "", False: "Teacher "}
    return [f"{role[one.startswith(GOES_BACK)]}{shown(name)}: {one}" for name, found in doubts.items() for one in found]


# --- how good it is -------------------------------------------------------------------------------------------------


def _quality(of: _Subject) -> list[str]:
    if of.reports:
        return _measured(of, of.reports)
    said = "All pairs were trained on, so nothing was measured."
    if not (before := reports_before(of.config)):
        return [f"{said} See the run whose settings it has."]
    assert of.config.refit is not None
    name = markdown(named(Path(of.config.refit)))
    return [f"{said} {name}, of the same settings and trained on a part of them, had:", *_measured(of, before)]


def _measured(of: _Subject, reports: Mapping[str, Report]) -> list[str]:
    part = "test" if "test" in reports else next(iter(reports))
    report = reports[part]
    names = _near(report)
    if not report.n or not names:
        return [f"No query of the {part} part has a held-out item, so nothing was measured."]
    low, high = _intervals(np.stack([report.values[name] for name in names]))
    head = ["metric", part, "95 % interval", *(["valid"] if part == "test" and "valid" in reports else [])]
    rows = [head, [":--", *["--:"] * (len(head) - 1)]]
    for at, name in enumerate(names):
        row = [report.shown_name(name), f"{report.mean(name):.4f}", f"{low[at]:.4f} to {high[at]:.4f}"]
        if "valid" in head:
            valid = reports["valid"]
            row.append(f"{valid.mean(name):.4f}" if name in valid.values and valid.n else "")
        rows.append(row)
    said = [
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
        f"Means over {report.n:,} queries of the {part} part. The interval is a bootstrap over these queries: it speaks of "
        "other users for these weights, not of training again."
        + (" All metrics: `report.json`." if of.reports else ""),
    ]
    for metric, transfer in of.transfer.items():
        if transfer.ratio is not None:
            ends = f"{transfer.low:.2f} to {transfer.high:.2f}"
            said.append(
                f"Transfer ratio by {report.shown_name(metric)}: {transfer.ratio:.2f} ({transfer.confidence:.0%} interval "
                f"{ends}); 0 is a model of this size that was trained alone, 1 the teacher."
            )
    return said


def _near(report: Report) -> list[str]:
    """The metrics at one K: that next to 10, or next to 5 where candidates were sampled; all that have no K."""
    usual = 10 if report.setting == "full" else 5
    lengths = [k for name in report.values if (k := cutoff(name)) is not None]
    chosen = min(lengths, key=lambda k: (abs(k - usual), k), default=None)
    return [name for name in report.values if cutoff(name) in (None, chosen)]


def _intervals(values: np.ndarray) -> np.ndarray:
    """float64 [2, m]: ends of the percentile intervals of the means of ``values`` [m, n] over resampled queries: those of a
    comparison."""
    means = resampled_means(values, enough_resamples(values.shape[1]), seed=0)
    return np.asarray(np.quantile(means, [0.025, 0.975], axis=0))


# --- how to use it --------------------------------------------------------------------------------------------------


def _use(of: _Subject) -> list[str]:
    said = [
        "In this folder, where its data set is still at hand:",
        "```python\n"
        "import kdrs\n\n"
        'run = kdrs.load_run(".")\n'
        "lists = run.teacher().topk(10).items  # int32 [users, 10], rows of run.items; what users have seen is left out\n"
        "```",
    ]
    if is_product(of.model):
        said += [
            "As one file that needs neither torch nor the data set:",
            "```sh\nkdrs export . --out student.safetensors --seen\n```",
            "```python\n"
            "import kdrs\n\n"
            'student = kdrs.Student.load("student.safetensors")\n'
            f"found = student.recommend([{_first_user(of)}], k=10)\n"
            "```",
        ]
    if of.reports:
        said.append("To compare it with others: `kdrs eval RUN OTHER`, `kdrs report RUN OTHER --out FOLDER`.")
    return said


def is_product(model: nn.Module) -> bool:
    """Whether its scores are products of vectors, as exported files hold them."""
    if isinstance(model, StoredModel) or hook(model, "factors_of") is not None:
        return True
    with frozen(model):
        return model.factors() is not None  # type: ignore[operator]


def _first_user(of: _Subject) -> str:
    if of.dataset is not None:
        return ascii(of.dataset.users[0])
    from kdrs.data import Ids

    return ascii(Ids.from_json((of.place / "ids" / "users.json").read_bytes(), "user")[0])


def _table(rows: Sequence[tuple[str, str]]) -> str:
    body = [f"| {name} | {markdown(value)} |" for name, value in rows]
    return "\n".join(["| | |", "|:--|:--|", *body])
