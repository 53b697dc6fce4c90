"""``kdrs train``, ``kdrs distill``, ``kdrs resume``."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdrs.errors import ArtefactError, ConfigError, KdrsError, TrainingError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kdrs.runs.config import RunConfig
    from kdrs.runs.execute import Outcome

File = Annotated[Path | None, typer.Argument(help="TOML run file; options below win over it.", show_default=False)]
Data = Annotated[str | None, typer.Option("--data", help="Prepared data set (kdrs data prepare).", show_default=False)]
Model = Annotated[str | None, typer.Option("--model", help="Base model, see kdrs models.", show_default=False)]
Dim = Annotated[int | None, typer.Option("--dim", help="Size of the model's representations.", show_default=False)]
Out = Annotated[
    Path | None, typer.Option("--out", help="Run directory. [default: runs/DATA/METHOD/TIME-HASH]", show_default=False)
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Most epochs.", show_default=False)]
Rate = Annotated[float | None, typer.Option("--lr", help="Learning rate.", show_default=False)]
Decay = Annotated[
    float | None, typer.Option("--weight-decay", help="L2 weight inside the optimizer.", show_default=False)
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Training rows a step.", show_default=False)]
Optimizer = Annotated[str | None, typer.Option("--optimizer", help="adam, lazy-adam or adagrad.", show_default=False)]
Patience = Annotated[
    int | None, typer.Option("--patience", help="Evaluations without improvement.", show_default=False)
]
ProtocolName = Annotated[str | None, typer.Option("--protocol", help="Evaluation preset.", show_default=False)]
Teachers = Annotated[list[str], typer.Option("--teacher", help="Run directory or teacher file.", show_default=False)]
Methods = Annotated[
    list[str], typer.Option("--method", help="Method, see kdrs methods; several for a sum.", show_default=False)
]
Weights = Annotated[list[float], typer.Option("--weight", help="Weight of each method, in order.", show_default=False)]
Start = Annotated[
    str | None, typer.Option("--start", help="Finished run whose weights the model starts from.", show_default=False)
]
Assignments = Annotated[list[str], typer.Option("--set", help="Any setting: --set train.every=5", show_default=False)]
Seed = Annotated[int | None, typer.Option("--seed", help="Start of every random stream.", show_default=False)]
Seeds = Annotated[
    str | None, typer.Option("--seeds", help="Several runs: 0..4 or 0,1,2; into OUT/seed-N.", show_default=False)
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N.", show_default=False)]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of torch and of the core.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out from its last checkpoint.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the resolved run, write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


SETTINGS = {
    "data": "data.path", "model": "model.name", "dim": "model.dim", "epochs": "train.epochs", "lr": "train.lr",
    "weight_decay": "train.weight_decay", "batch_size": "train.batch_size", "optimizer": "train.optimizer",
    "patience": "train.patience", "seed": "train.seed", "protocol": "eval.protocol", "start": "start", "device": "device",
    "threads": "threads",
}  # fmt: skip
"""Options of the command line and the settings that they state."""
HOW = ("out", "seeds", "resume", "dry_run", "as_json", "quiet")
"""Options that say how a run is carried out."""


def register(app: typer.Typer) -> None:
    app.command("train")(train)
    app.command("distill")(distill)
    app.command("resume")(resume)


def train(
    file: File = None, data: Data = None, model: Model = None, dim: Dim = None, out: Out = None, epochs: Epochs = None,
    lr: Rate = None, weight_decay: Decay = None, batch_size: BatchSize = None, optimizer: Optimizer = None,
    patience: Patience = None, protocol: ProtocolName = None, start: Start = None,
    assignments: Assignments = [], seed: Seed = None,  # noqa: B006
    seeds: Seeds = None, device: Device = None, threads: Threads = None, resume: Resume = False, dry_run: DryRun = False,
    as_json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Train a model alone: a teacher, or a student to compare with.

    kdrs train --data datasets/ml-100k --model bpr --dim 200 --out runs/teacher
    """
    given = locals()
    values = _values(given)
    if values.get("distill"):
        raise ConfigError("the run file has [[distill]] terms", "use kdrs distill")
    _carry_out(values, **{name: given[name] for name in HOW})


def distill(
    file: File = None, data: Data = None,
    teacher: Teachers = [], method: Methods = [], weight: Weights = [],  # noqa: B006
    model: Model = None, dim: Dim = None, out: Out = None, epochs: Epochs = None,
    lr: Rate = None, weight_decay: Decay = None, batch_size: BatchSize = None, optimizer: Optimizer = None,
    patience: Patience = None, protocol: ProtocolName = None, start: Start = None,
    assignments: Assignments = [], seed: Seed = None,  # noqa: B006
    seeds: Seeds = None, device: Device = None, threads: Threads = None, resume: Resume = False, dry_run: DryRun = False,
    as_json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Train a student with a teacher's help.

    kdrs distill --data datasets/ml-100k --teacher runs/teacher --method rrd --model bpr --dim 20 --out runs/student
    """
    given = locals()
    terms: list[dict[str, Any]] = []
    if teacher and not method:
        raise ConfigError(
            f"teacher {shown(teacher[0])!r} is given without a method",
            "give one with --method; the teacher of a run file is changed by --set distill.0.teacher=...",
        )
    if len(weight) not in (0, len(method)):
        raise ConfigError(
            f"got {len(weight)} weights for {len(method)} methods",
            "give one --weight a --method, or none; the weight of a run file is changed by --set distill.0.weight=...",
        )
    for index, name in enumerate(method):
        if not teacher:
            raise ConfigError(f"method {shown(name)!r} has no teacher", "give one with --teacher")
        terms.append({"method": name, "teacher": list(teacher)})
        if weight:
            terms[-1]["weight"] = weight[index]
    values = _values(given, terms)
    if not values.get("distill"):
        raise ConfigError(
            "nothing to distil: no method is given", "give --teacher and --method, or [[distill]] in the run file"
        )
    _carry_out(values, **{name: given[name] for name in HOW})


def resume(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    epochs: Epochs = None, device: Device = None, threads: Threads = None, as_json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Go on with an interrupted run: it ends with the same bytes as an uninterrupted one.

    Device and threads may be those of another machine; what is given here is written to the run's config.toml.
    """
    from kdrs.runs.directory import Run

    given = locals()
    seeds = sorted(head.parent.name for head in run.glob("seed-*/config.toml"))
    if seeds and not (run / "config.toml").is_file():
        raise ArtefactError(
            f"{shown(str(run))} is no run directory: it holds one a seed, {', '.join(seeds)}",
            f"the command that began them, with --resume, goes on with all; kdrs resume {run / seeds[0]} with one",
        )
    values = Run.open(run).config
    _state(values, given)
    _carry_out(values, run, None, True, False, as_json, quiet)


def _values(given: dict[str, Any], terms: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A run's plain values out of a command's arguments: the file's, then --set, then the options."""
    from kdrs.runs.config import assign, read_run_file

    if given["seed"] is not None and given["seeds"] is not None:
        raise ConfigError(
            f"--seed {given['seed']} and --seeds {shown(given['seeds'])} are both given", "leave one of them out"
        )
    values = {} if given["file"] is None else read_run_file(given["file"])
    if terms:
        values["distill"] = terms
    for setting in given["assignments"]:
        assign(values, setting)
    _state(values, given)
    place = values.setdefault("data", {})
    if isinstance(place, dict) and "path" not in place:
        raise ConfigError("no data set is given", "give one with --data; kdrs data prepare makes one")
    return values


def _state(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Enters the settings that a command's options state."""
    for option, key in SETTINGS.items():
        if (value := given.get(option)) is not None:
            group, _, name = key.rpartition(".")
            place = values.setdefault(group, {}) if group else values
            if not isinstance(place, dict):
                raise ConfigError(f"{group} is {shown(place)}", f"write it as a table: [{group}]")
            place[name] = value


def _carry_out(
    values: dict[str, Any], out: Path | None, seeds: str | None, resume: bool, dry_run: bool, as_json: bool, quiet: bool
) -> None:
    from kdrs.runs.config import resolve

    config = resolve(values)
    numbers = None if seeds is None else _parse_seeds(seeds)
    if resume and out is None:
        raise ConfigError("--resume without a run to go on with", "name its directory with --out")
    if resume and out is not None and not (out / "config.toml").is_file() and seeds is None:
        raise ConfigError(f"{shown(str(out))} holds no run to resume", "leave --resume out, or check --out")
    if dry_run:
        with messages():
            _print_plan(config, out or _default_place(config), as_json)
        return
    from kdrs.runs.execute import execute
    from kdrs.runs.places import claimed
    from kdrs.runs.seeds import execute_seeds

    with (
        messages(),
        nullcontext(out) if out is not None else claimed(_default_place(config)) as out,
        _stopper() as stopper,
    ):
        if numbers is None:
            show = _Progress(config.train.epochs, quiet)
            with show:
                outcome = execute(
                    config, out, resume=resume, on_start=show.start, on_epoch=show.epoch, should_stop=stopper.asked
                )
            _finish(outcome, stopper, as_json)
            return
        show = _Progress(config.train.epochs, quiet)
        with show:
            results = execute_seeds(
                numbers, config, out, resume=resume,
                on_start=show.start, on_epoch=show.epoch, should_stop=stopper.asked,
            )  # fmt: skip
        _finish_seeds(numbers, results, out, stopper, as_json)


def _default_place(config: RunConfig) -> Path:
    import hashlib

    values = config.to_dict()
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    method = "+".join(term.name for term in config.distill) or config.model["name"]
    return (
        Path("runs")
        / Path(config.data.path).name
        / method
        / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{digest}"
    )


def _parse_seeds(text: str) -> Sequence[int]:
    from kdrs.runs.seeds import check_seeds

    form = r"\s*\d{1,18}\s*"
    if match := re.fullmatch(rf"({form})\.\.({form})", text, re.ASCII):
        seeds: Sequence[int] = range(int(match[1]), int(match[2]) + 1)  # as long as it may be: nothing is listed
    elif re.fullmatch(rf"{form}(,{form})*", text, re.ASCII):
        seeds = [int(part) for part in text.split(",")]
    else:
        seeds = []
    if not seeds:
        raise ConfigError(f"--seeds {shown(text)}", "write it as 0..4 or 0,1,2")
    try:
        check_seeds(seeds)
    except ConfigError as error:
        raise ConfigError(f"--seeds {shown(text)}: {error.cause}", error.remedy) from None
    return seeds


def _print_plan(config: RunConfig, out: Path, as_json: bool) -> None:
    from kdrs.runs.execute import plan

    found = {"schema": 1, "out": str(out), "config": config.to_dict(), **plan(config, out)}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    import tomli_w

    typer.echo(tomli_w.dumps(found["config"]))
    for key, value in found.items():
        if key not in ("schema", "config"):
            typer.echo(f"# {key}: {value}")


class _Stopper:
    """Counts requests to stop: the first ends the run after the epoch in hand, the second at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def asked(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: object) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        # not through sys.stderr: the signal may have come in the middle of a write to it
        os.write(2, b"stopping after this epoch; once more to stop at once (the last checkpoint stays)\n")


@contextmanager
def _stopper() -> Iterator[_Stopper]:
    stopper = _Stopper()
    former = {number: signal.signal(number, stopper.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopper
    except KeyboardInterrupt:
        raise typer.Exit(128 + (stopper.signal or signal.SIGINT)) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def messages() -> Iterator[None]:
    """Warnings as single lines on stderr."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        typer.echo(f"warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", module="torch")
        warnings.filterwarnings("ignore", message=".*[Ss]parse.*(beta|invariant).*")
        warnings.showwarning = show
        yield


def _nearby(name: str) -> str:
    """A path as it is called from here, where it lies below."""
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name


class _Progress:
    """A bar on stderr where that is a terminal; what is known before the first epoch; nothing else."""

    def __init__(self, epochs: int, quiet: bool, label: str = "training"):
        self._epochs, self._quiet, self._label = epochs, quiet, label
        self._bar: Any = None

    def __enter__(self) -> _Progress:
        if not self._quiet and sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = [
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
            ]
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._label, total=self._epochs, note="")
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, known: dict[str, Any]) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                total=known.get("epochs", self._epochs),
                completed=0,
                description=known.get("part", self._label),
            )
        if self._quiet:
            return
        if "part" in known:
            typer.echo(f"part {known['part']}", err=True)
        sizes = f"{known['users']:,} users, {known['items']:,} items, {known['pairs']:,} training pairs"
        typer.echo(
            f"{known['data']}: {sizes}; {known['model']} with {known['parameters']:,} parameters on {known['device']}",
            err=True,
        )
        if known["skipped_pairs"]:
            typer.echo(
                f"{known['skipped_pairs']:,} training pairs belong to users who have seen every item and are left out",
                err=True,
            )
        for name, parts in known["teachers"].items():
            for part, means in parts.items():
                metrics = ", ".join(f"{metric} {value:.4f}" for metric, value in list(means.items())[:3])
                typer.echo(f"teacher {shown(_nearby(name))} on {part}: {metrics}", err=True)

    def epoch(self, row: dict[str, Any]) -> None:
        if self._bar is None:
            return
        note = f"loss {row['loss']:.1f}"
        for name, value in list(row.get("valid", {}).items())[:1]:
            note += f"  {name} {value:.4f}"
        self._bar.update(self._task, completed=row["epoch"] + 1, note=note)


def _finish(outcome: Outcome, stopper: _Stopper, as_json: bool) -> None:
    if outcome.fit.stopped == "interrupted":
        part, epochs = outcome.part or (None, outcome.fit.epochs)
        where = "" if part is None else f" in part {part}"
        typer.echo(f"interrupted{where} after {epochs} epochs; go on with: kdrs resume {outcome.run.path}", err=True)
        raise typer.Exit(128 + (stopper.signal or signal.SIGINT))
    if as_json:
        report = json.loads((outcome.run.path / "report.json").read_text("utf-8"))
        typer.echo(json.dumps({"run": str(outcome.run.path), **report}, indent=2))
        return
    fit = outcome.fit
    typer.echo(f"{outcome.run.path}: {fit.epochs} epochs, best is {fit.best_epoch}, stopped by {fit.stopped}")
    for part, report in outcome.reports.items():
        typer.echo(
            f"{part} ({report.n:,} queries): "
            + ", ".join(f"{report.shown_name(n)} {v:.4f}" for n, v in report.means().items())
        )


def _finish_seeds(seeds: Sequence[int], results: dict[int, Any], out: Path, stopper: _Stopper, as_json: bool) -> None:
    from kdrs.runs.seeds import summarise_seeds

    summary = summarise_seeds(results)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "out": str(out), **summary}, indent=2))
    else:
        for part, metrics in summary["parts"].items():
            for name, row in metrics.items():
                spread = "" if row["sd"] is None else f" ± {row['sd']:.4f}"
                typer.echo(f"{part} {name}: {row['mean']:.4f}{spread} (n = {row['n']})")
    failed = {seed: error for seed, error in results.items() if isinstance(error, Exception)}
    for seed, error in failed.items():
        cause = error.cause if isinstance(error, KdrsError) else f"{type(error).__name__}: {error}"
        typer.echo(f"seed {seed} failed: {cause}", err=True)
    if left := [seed for seed in seeds if seed not in results]:
        finished = ", ".join(map(str, summary["seeds"])) or "none"
        typer.echo(
            f"interrupted; seeds finished: {finished}; left: {', '.join(map(str, left))}; go on with the same command, "
            f"--out {out} and --resume",
            err=True,
        )
        raise typer.Exit(128 + (stopper.signal or signal.SIGINT))
    if failed:
        error = next(iter(failed.values()))
        if len(failed) == len(results) and isinstance(error, KdrsError):
            raise error
        raise TrainingError(f"{len(failed)} of {len(results)} seeds failed: {sorted(failed)}")
