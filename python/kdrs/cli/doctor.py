"""``kdrs doctor``: what this machine offers and whether kdrs is whole."""

from __future__ import annotations

from typing import Annotated

import typer

from kdrs.cli.output import aligned, say, say_json


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False) -> None:
    """Versions, processor, threads, devices, memory, write access: the first thing to look at, and to report."""
    from kdrs.escaping import visible
    from kdrs.runs.environment import examine

    findings = examine()
    if as_json:
        say_json(findings)
    else:
        say(aligned({key: visible(str(value)) for key, value in findings.items()}))
    if findings["problems"]:
        raise typer.Exit(5)
