"""``kdrs doctor``: what this machine offers and whether kdrs is whole."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False) -> None:
    """Versions, processor, threads, devices, memory, write access: the first thing to look at, and to report."""
    from kdrs.runs.environment import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps({"schema": 1, **findings}, indent=2))
    else:
        width = max(map(len, findings))
        for key, value in findings.items():
            typer.echo(f"{key:<{width}}  {value}")
    if findings["problems"]:
        raise typer.Exit(5)
