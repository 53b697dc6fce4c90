"""``kdrs eval`` and ``kdrs report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kdrs.comparison.compare import Comparison

Runs = Annotated[
    list[Path], typer.Argument(help="Run directories or teacher files; seed-N folders of one parent are one model.")
]
Data = Annotated[
    str | None, typer.Option("--data", help="Prepared data set. [default: the first run's]", show_default=False)
]
ProtocolName = Annotated[
    str | None, typer.Option("--protocol", help="Evaluation preset. [default: the first run's]", show_default=False)
]
Part = Annotated[str, typer.Option("--part", help="valid or test.")]
Metrics = Annotated[
    str | None, typer.Option("--metrics", help="Comma-separated, such as hit@5,ndcg@10.", show_default=False)
]
Teacher = Annotated[
    str | None,
    typer.Option("--teacher", help="Run that ratios are of. [default: the one distilled from]", show_default=False),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        "--baseline", help="Run to compare with. [default: the one trained alone of nearest size]", show_default=False
    ),
]
Test = Annotated[str, typer.Option("--test", help="Paired test: randomisation or bootstrap.")]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of the core.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)
    app.command("report")(report)


def evaluate(
    runs: Runs, data: Data = None, protocol: ProtocolName = None, part: Part = "test", metrics: Metrics = None,
    teacher: Teacher = None, baseline: Baseline = None, test: Test = "randomisation", threads: Threads = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Evaluate finished runs anew and compare them: transfer ratio, quality, bytes, speed, paired tests."""
    compared = _compare(runs, data, protocol, part, metrics, teacher, baseline, test, threads)
    if as_json:
        _warn(compared)
        typer.echo(json.dumps(compared.to_json(), indent=2))
    else:
        compared.print()


def report(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", help="Folder for comparison.json, comparison.md and comparison.png.")],
    data: Data = None, protocol: ProtocolName = None, part: Part = "test", metrics: Metrics = None,
    teacher: Teacher = None, baseline: Baseline = None, test: Test = "randomisation", threads: Threads = None,
) -> None:  # fmt: skip
    """Write the comparison of finished runs as JSON, Markdown and a picture."""
    from kdrs.comparison.compare import check_folder
    from kdrs.errors import MachineError, shown

    try:
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"cannot write {shown(str(out))}: {error.strerror}", "name another folder with --out"
        ) from error
    compared = _compare(runs, data, protocol, part, metrics, teacher, baseline, test, threads)
    _warn(compared)
    for path in compared.save(out):
        typer.echo(str(path))


def _warn(compared: Comparison) -> None:
    """Warnings of a comparison that is not printed as text, which has them itself."""
    for warning in compared.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _compare(
    runs: list[Path], data: str | None, protocol: str | None, part: str, metrics: str | None, teacher: str | None,
    baseline: str | None, test: str, threads: int | None,
) -> Comparison:  # fmt: skip
    from kdrs.cli.running import messages
    from kdrs.data import Dataset
    from kdrs.errors import ConfigError, nearest, shown
    from kdrs.runs.compared import compare_runs

    for option, value, allowed in (
        ("--part", part, ("valid", "test")),
        ("--test", test, ("randomisation", "bootstrap")),
    ):
        if value not in allowed:
            raise ConfigError(f"{option} is {shown(value)}", nearest(value, allowed))
    options: dict[str, Any] = {"protocol_name": protocol, "part": part, "teacher": teacher, "baseline": baseline}
    if metrics is not None:
        options["metrics"] = tuple(name.strip() for name in metrics.split(","))
    with messages():
        dataset = None if data is None else Dataset.load(data)
        return compare_runs(runs, dataset=dataset, test=test, threads=threads, **options)
