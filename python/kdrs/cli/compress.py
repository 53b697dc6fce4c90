"""``kdrs compress``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdrs.cli.choices import PROTOCOLS, USERS, listed
from kdrs.cli.early import check_early
from kdrs.cli.options import CoreThreads, Document, OwnData
from kdrs.cli.output import messages, say, say_json
from kdrs.errors import ConfigError
from kdrs.escaping import visible

if TYPE_CHECKING:
    from kdrs.runs.compress import Compressed

Bits = Annotated[
    int | None,
    typer.Option(
        "--bits", help="Bits of a coordinate: 1, 2, 3, 4 or 8; 32 for float32. (default: 3)", show_default=False
    ),
]
Dim = Annotated[
    int | None,
    typer.Option("--dim", help="Dimensions to keep, the best ones for all scores. (default: all)", show_default=False),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Chooses bits and dimensions on the validation part: 1/20 of the source's bytes, 40B an item, or 2MB in all. "
        "(default: as --bits and --dim say)",
        show_default=False,
    ),
]
Users = Annotated[
    str,
    typer.Option(
        "--users",
        help=f"How users are had: {listed(USERS)}. table keeps one; sum and ridge work them out of their items, for new users "
        "too; encoded is the better of these, auto of all, on the validation part. (default: auto)",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Run directory. (default: SOURCE-compressed)", show_default=False)
]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help=f"How quality is measured: auto, {listed(PROTOCOLS)}. (default: the run's own)",
        show_default=False,
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="All metrics, and every way to have users that was tried.")
]


def register(app: typer.Typer) -> None:
    app.command("compress")(compress)


def compress(
    source: Annotated[Path, typer.Argument(help="Run directory or teacher file.")],
    bits: Bits = None, dim: Dim = None, budget: Budget = None, users: Users = "auto", out: Out = None, data: OwnData = None,
    protocol: ProtocolName = None,
    threads: CoreThreads = None, as_json: Document = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Make a teacher or a student small without training: few bits, fewer dimensions, users without a table. Takes seconds.

    kdrs compress runs/teacher --bits 2 --out runs/small
    """
    check_early([source])
    from kdrs.runs.compress import compress as make

    if as_json and verbose:
        raise ConfigError(
            "--verbose and --json are both given, and --json prints all metrics as it is", "leave --verbose out"
        )
    place = out if out is not None else _beside(source)
    with messages():
        made = make(
            source, bits, dim, budget=budget, users=users, dataset=data, out=place,  # type: ignore[arg-type]
            protocol_name=protocol, threads=threads,
        )  # fmt: skip
    if as_json:
        say_json(_document(made, place))
        return
    ratio = "" if made.source_bytes is None else f", 1/{made.source_bytes / made.n_bytes:.1f} of {made.source_bytes:,}"
    shape = f"{made.model.dim} dimensions, {made.bits} bits, users: {made.users}"
    say(f"{visible(str(place))}: {made.n_bytes:,} bytes{ratio}; {shape}; {made.seconds:.1f} s")
    if verbose:
        for line in made.tried:
            say(f"  {line['how']}: {made.selects} {line[made.selects]:.4f} on valid")
    say("\n".join(_table(made, verbose)))


def _beside(source: Path) -> Path:
    """SOURCE-compressed, in the folder that SOURCE is in."""
    named = source if source.name not in ("", "..") else Path(os.path.abspath(source))
    return named.parent / f"{named.stem if named.is_file() else named.name}-compressed"


def _document(made: Compressed, place: Path) -> dict[str, Any]:
    from kdrs.runs.results import means_of

    return {
        "run": str(place),
        "bytes": made.n_bytes,
        "source_bytes": made.source_bytes,
        "dim": made.model.dim,
        "bits": made.bits,
        "users": made.users,
        "seconds": made.seconds,
        "parts": means_of(made.reports),
        "source": means_of(made.source),
        "tried": made.tried,
    }


def _table(made: Compressed, verbose: bool) -> list[str]:
    """Quality beside the source's, a metric a line."""
    from kdrs.cli.results import UNMEASURED, results_table

    reports = {}
    for part, report in made.reports.items():
        if part in made.source:
            reports[f"{part}, source"] = made.source[part]
        reports[part] = report
    return results_table(reports, [made.selects], verbose) or [UNMEASURED]
