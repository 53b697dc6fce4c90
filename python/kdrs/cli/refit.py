"""``kdrs refit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdrs.cli.options import (
    HOW,
    Data,
    Device,
    DryRun,
    Json,
    Log,
    Out,
    Quiet,
    Resume,
    Substitutes,
    Threads,
    Verbose,
)  # fmt: skip
from kdrs.cli.output import messages
from kdrs.cli.running import carry_out, check_how, state
from kdrs.cli.stopping import spoken
from kdrs.errors import ConfigError, quoted
from kdrs.plugins import closed

Began = Annotated[
    str | None,
    typer.Option(
        "--start",
        help="Takes the place of the run that it started from: its refit. (default: the run's own)",
        show_default=False,
    ),
]
OwnSeed = Annotated[
    int | None,
    typer.Option("--seed", help="Start of every random stream. (default: the run's own)", show_default=False),
]


def register(app: typer.Typer) -> None:
    app.command("refit")(spoken(refit))


def refit(
    run: Annotated[Path, typer.Argument(help="Finished run whose settings are taken.")],
    data: Data = None, teacher: Substitutes = [], start: Began = None, out: Out = None, log: Log = [],  # noqa: B006
    seed: OwnSeed = None, device: Device = None, threads: Threads = None, resume: Resume = False, dry_run: DryRun = False,
    as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Train again with the settings of a finished run, for as many epochs as its best weights had: on all pairs, to serve.

    kdrs data prepare datasets/mine --split none --out datasets/all
    kdrs refit runs/teacher --data datasets/all --out final/teacher
    kdrs refit runs/student --data datasets/all --teacher final/teacher --out final/student
    """
    from kdrs.runs.directory import Run
    from kdrs.runs.refit import refitted

    given = locals()
    if data is None:
        theirs = quoted(str(Run.open(run).config["data"]["path"]))
        raise ConfigError("no data set is given", f"kdrs data prepare {theirs} --split none --out ALL, then --data ALL")
    how = {"seeds": None, "jobs": None, **{name: given[name] for name in HOW if name in given}}
    check_how(**{name: value for name, value in how.items() if name != "quiet"})
    with messages():
        values = refitted(run, data, teacher, start).to_dict()
    state(values, {name: value for name, value in given.items() if name not in ("data", "start")})
    with closed(run):
        carry_out(values, **how)
