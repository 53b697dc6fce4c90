"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys

import typer

from kdrs.cli import catalogue, data, doctor, evaluation, running
from kdrs.errors import KdrsError

EPILOG = (
    "Exit codes: 0 success · 1 the run failed · 2 wrong options or configuration · 3 unusable data · "
    "4 unusable checkpoint or teacher · 5 the machine falls short · 130 interrupted · 143 terminated"
)

app = typer.Typer(
    name="kdrs",
    help="Knowledge distillation for recommender systems: train a teacher, distil a small student, prove what was kept.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from kdrs import __version__

        typer.echo(f"kdrs {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    if debug:
        os.environ["KDRS_DEBUG"] = "1"


app.add_typer(data.app, name="data")
running.register(app)
evaluation.register(app)
catalogue.register(app)
doctor.register(app)


def main() -> None:
    """Entry point of ``kdrs``: turns errors into two lines on stderr and the documented exit codes."""
    try:
        app()
    except KdrsError as error:
        if os.environ.get("KDRS_DEBUG"):
            raise
        typer.echo(f"error: {error.cause}", err=True)
        if error.remedy:
            typer.echo(f"  try: {error.remedy}", err=True)
        sys.exit(error.exit_code)
    except MemoryError:
        typer.echo("error: out of memory\n  try: a smaller batch, model or data set", err=True)
        sys.exit(5)
    except Exception as error:
        if os.environ.get("KDRS_DEBUG"):
            raise
        typer.echo(f"error: internal: {type(error).__name__}: {error}", err=True)
        typer.echo("  try: kdrs --debug ... for the traceback, and report it with the output of kdrs doctor", err=True)
        sys.exit(1)
