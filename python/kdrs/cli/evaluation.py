"""``kdrs eval`` and ``kdrs report``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdrs._launch import launched
from kdrs.cli.choices import PARTS, PROTOCOLS, TESTS, listed
from kdrs.cli.early import check_early
from kdrs.cli.options import CoreThreads, Document
from kdrs.cli.output import aligned, messages, results, say, say_json, tell
from kdrs.errors import ConfigError, MachineError, nearest, shown
from kdrs.escaping import visible

if TYPE_CHECKING:
    from kdrs.comparison.compare import Comparison
    from kdrs.evaluation.report import Report

Runs = Annotated[
    list[Path],
    typer.Argument(help="Run directories, teacher or student files; seed-N folders are one model, as is their parent."),
]
Some = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Run directories, teacher or student files; seed-N folders are one model, as is their parent.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None, typer.Option("--data", help="Prepared data set. (default: the first run's)", show_default=False)
]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help=f"How quality is measured: auto, {listed(PROTOCOLS)}. (default: the first run's)",
        show_default=False,
    ),
]
Part = Annotated[
    str, typer.Option("--part", help=f"Held-out part: {listed(PARTS)}. (default: test)", show_default=False)
]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        help="Comma-separated, such as hit@5,ndcg@10. (default: recall@10,ndcg@10; hit@5,ndcg@5 with sampled candidates)",
        show_default=False,
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option("--teacher", help="Run that ratios are of. (default: the one distilled from)", show_default=False),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        "--baseline", help="Run to compare with. (default: the one trained alone of nearest size)", show_default=False
    ),
]
Test = Annotated[
    str | None,
    typer.Option("--test", help=f"Paired test: {listed(TESTS)}. (default: randomisation)", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="File for the report of one run, .json, with the values of all queries beside it. (default: none)",
        show_default=False,
    ),
]
Share = Annotated[
    str | None,
    typer.Option(
        "--share",
        metavar="I/N",
        help="This share of the queries alone, into a part beside --out. (default: 1/1)",
        show_default=False,
    ),
]
Merge = Annotated[bool, typer.Option("--merge", help="Join the parts that lie beside --out.")]
ItemNames = Annotated[
    Path | None,
    typer.Option(
        "--item-names",
        help="Titles of items for the page: CSV, TSV, Parquet or JSON of id and title. (default: ids are shown)",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)
    app.command("report")(report)


def evaluate(
    runs: Some = None,  # no list: click before 8.2 refuses a default of so many arguments
    data: Data = None, protocol: ProtocolName = None, part: Part = "test", metrics: Metrics = None,
    teacher: Teacher = None, baseline: Baseline = None, test: Test = None, out: Out = None, share: Share = None,
    merge: Merge = False, threads: CoreThreads = None, as_json: Document = False,
) -> None:  # fmt: skip
    """Evaluate finished runs anew and compare them: transfer ratio, quality, bytes, speed, paired tests."""
    runs = runs or []
    if out is not None or share is not None or merge:
        others = {"--metrics": metrics, "--teacher": teacher, "--baseline": baseline, "--test": test}
        if merge:
            others |= {"--share": share, "--data": data, "--protocol": protocol}
        _write(runs, out, share, merge, others, (data, protocol, part, threads), as_json)
        return
    if not runs:
        raise ConfigError("no run is named", "kdrs eval RUN")
    compared = _compare(runs, data, protocol, part, metrics, teacher, baseline, test, threads)
    if as_json:
        _warn(compared)
        say_json(compared.to_json())
    else:
        compared.print(results())


def _write(
    runs: list[Path], out: Path | None, share: str | None, merge: bool, others: dict[str, Any],
    options: tuple[str | None, str | None, str, int | None], as_json: bool,
) -> None:  # fmt: skip
    """The report of one run into a file, or a share of it, or shares joined."""
    from kdrs._parts import describe, part_of, share_of
    from kdrs.evaluation.portions import merge as join
    from kdrs.evaluation.portions import portions_of

    option = "--merge" if merge else "--share" if share is not None else "--out"
    if out is None:
        raise ConfigError(f"{option} without --out", "name the file of the whole report: parts lie beside it")
    if idle := next((name for name, value in others.items() if value is not None), None):
        doing = "joins parts as they are" if merge else "writes all metrics of one run"
        raise ConfigError(f"{idle} is given with {option}, which {doing}", f"leave {idle} out")
    if merge:
        if runs:
            raise ConfigError("--merge joins the parts of a file, and needs no run", "kdrs eval --merge --out FILE")
        if (launch := launched()) is None or launch.first:  # each part is read once
            count, whole = join(out)
            _say_report(out, whole, as_json, {"parts": count})
        return
    if len(runs) != 1:
        raise ConfigError(
            f"--out is the report of one run, and {len(runs)} are named", "name one, or compare several by kdrs report"
        )
    part_and_of = None if share is None else share_of(share, "--share")
    data, protocol, part, threads = options
    _check_name("--part", part, PARTS)
    from kdrs.data import Dataset
    from kdrs.runs.compared import measured
    from kdrs.training.processes import joined

    said = {"command": "eval --out", "run": str(runs[0]), "--out": out, "--share": share, "--part": part}
    with messages(), joined({**said, "--protocol": protocol, "--threads": threads}) as group:
        dataset = None if data is None else Dataset.load(data)
        portion, made_of = measured(
            runs[0], part_and_of or (1, 1), dataset=dataset, protocol_name=protocol, part=part, threads=threads
        )
        place = out if part_and_of is None else part_of(portions_of(out), *part_and_of)
        report = portion.report() if part_and_of is None else None

        def write() -> None:
            if report is not None:
                report.save(place)
            elif part_and_of is not None:
                portion.save(place)
                describe(place, part_and_of, made_of)

        if group is None:
            write()
        else:
            group.on_first(write)
    if report is not None:
        _say_report(out, report, as_json, {})
    elif as_json:
        say_json({"file": str(place), "queries": portion.rows.size})
    else:
        say(f"{visible(str(place))}: {portion.rows.size:,} queries")


def _say_report(out: Path, report: Report, as_json: bool, more: dict[str, Any]) -> None:
    if as_json:
        say_json({"file": str(out), **more, **report.to_json()})
        return
    joined = f" of {more['parts']} parts" if more else ""
    say(f"{visible(str(out))}: the report{joined}, {report.part}, {report.n:,} queries")
    say(aligned({f"  {report.shown_name(name)}": f"{value:.4f}" for name, value in report.means().items()}))


def _check_name(option: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise ConfigError(f"{option} is {shown(value)}", nearest(value, allowed))


def report(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", help="Folder to write, new, empty or that of an earlier report.")],
    data: Data = None, protocol: ProtocolName = None, part: Part = "test", metrics: Metrics = None,
    teacher: Teacher = None, baseline: Baseline = None, test: Test = None, threads: CoreThreads = None,
    item_names: ItemNames = None,
) -> None:  # fmt: skip
    """Write the comparison of finished runs into a folder.

    report.html, a page to open; comparison.json, .md (Markdown), .tex (LaTeX tables, with booktabs) and .csv (a row for each
    model and metric); the picture as comparison.png, .svg and .pdf. Tables mark the best of all models but the teacher bold
    and the second best underlined, and those that paired tests do not tell from the best with ≈.
    """
    from kdrs.comparison.compare import check_folder

    made = [place for place in (out, *out.parents) if not place.exists()]
    try:
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"cannot write {shown(str(out))}: {error.strerror}", "name another folder with --out"
        ) from error
    picture = _can_draw()
    try:
        compared = _compare(
            runs, data, protocol, part, metrics, teacher, baseline, test, threads, page=True, item_names=item_names
        )
        with messages():
            written = compared.save(out, picture=picture)
    except BaseException:
        with suppress(OSError):  # of what was made for it, the empty ones
            for place in made:
                place.rmdir()
        raise
    _warn(compared)
    for path in written:
        say(visible(str(path)))


def _can_draw() -> bool:
    """Whether there is matplotlib; where there is none, that is said before anything is computed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        tell("the pictures are left out: they need matplotlib, which is not installed: pip install 'kdrs[plots]'")
        return False
    return True


def _warn(compared: Comparison) -> None:
    """Warnings of a comparison that is not printed as text, which has them itself."""
    for warning in compared.warnings:
        tell(f"warning: {warning}")


def _compare(
    runs: list[Path], data: str | None, protocol: str | None, part: str, metrics: str | None, teacher: str | None,
    baseline: str | None, test: str | None, threads: int | None, *, page: bool = False, item_names: Path | None = None,
) -> Comparison:  # fmt: skip
    _check_name("--part", part, PARTS)
    _check_name("--test", test, TESTS)
    check_early(runs)
    from kdrs.data import Dataset
    from kdrs.runs.compared import compare_runs

    options: dict[str, Any] = {"protocol_name": protocol, "part": part, "teacher": teacher, "baseline": baseline}
    if metrics is not None:
        options["metrics"] = tuple(name.strip() for name in metrics.split(","))
    from kdrs.training.processes import joined

    said = {"command": "eval", "runs": [str(run) for run in runs], **options, "test": test, "threads": threads}
    with messages(), joined(said):
        dataset = None if data is None else Dataset.load(data)
        return compare_runs(
            runs, dataset=dataset, test=test, threads=threads, page=page, item_names=item_names, **options
        )
