"""``kdrs models`` and ``kdrs methods``: what there is, and what each takes."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kdrs.settings import Settings

models = typer.Typer(help="The base models and their options.", no_args_is_help=False, invoke_without_command=True)
methods = typer.Typer(
    help="The distillation methods and their options.", no_args_is_help=False, invoke_without_command=True
)
presets = typer.Typer(
    help="Run files of published experiments, to be named in a run file's place.", invoke_without_command=True
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def register(app: typer.Typer) -> None:
    app.add_typer(models, name="models")
    app.add_typer(methods, name="methods")
    app.add_typer(presets, name="presets")


@models.callback()
def _models(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_models(as_json)


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """All base models."""
    from kdrs.models import MODELS

    _print_list({name: cls.reference for name, cls in MODELS.items()}, as_json)


@models.command("show")
def show_model(name: str, as_json: Json = False) -> None:
    """One model: what it is, its options and their defaults."""
    from kdrs.models import model_class

    cls = model_class(name)
    entry: dict[str, Any] = {"name": name, "reference": cls.reference}
    if training := cls.train_defaults(cls.Config()):
        entry["trained with"] = training if as_json else ", ".join(f"{key} {value}" for key, value in training.items())
    entry |= {"text": inspect.getdoc(cls), "options": _options(cls.Config)}
    _print_entry(entry, as_json)


@presets.callback()
def _presets(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_presets(as_json)


@presets.command("list")
def list_presets(as_json: Json = False) -> None:
    """All presets, by the first line of each."""
    from kdrs.config import PRESETS

    lines = {name: path.read_text("utf-8").splitlines()[0].removeprefix("# ") for name, path in PRESETS.items()}
    _print_list(lines, as_json)


@presets.command("show")
def show_preset(name: str) -> None:
    """A preset's run file, to be used as it is or as a start for one's own."""
    from kdrs.config import PRESETS
    from kdrs.errors import ConfigError, nearest

    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}", nearest(name, PRESETS))
    typer.echo(PRESETS[name].read_text("utf-8"), nl=False)


@methods.callback()
def _methods(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_methods(as_json)


@methods.command("list")
def list_methods(as_json: Json = False) -> None:
    """All distillation methods."""
    from kdrs.distillers import DISTILLERS

    _print_list({name: cls.purpose for name, cls in DISTILLERS.items()}, as_json)


@methods.command("show")
def show_method(name: str, as_json: Json = False) -> None:
    """One method: purpose, citation, options, what it needs of a teacher, where it departs from the authors' code."""
    from kdrs.distillers import distiller_class

    cls = distiller_class(name)
    entry = {
        "name": name,
        "purpose": cls.purpose,
        "reference": cls.reference,
        "needs of a teacher": cls.needs,
        "default weight": cls.default_weight,
        "text": inspect.getdoc(cls),
        "options": _options(cls.Config),
    }
    _print_entry(entry, as_json)


def _options(config: type[Settings]) -> dict[str, dict[str, Any]]:
    return {
        name: {"default": field.get_default(), "meaning": " ".join((field.description or "").split())}
        for name, field in config.model_fields.items()
    }


def _print_list(entries: dict[str, str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"schema": 1, "entries": entries}, indent=2))
        return
    width = max(map(len, entries))
    for name, text in entries.items():
        typer.echo(f"{name:<{width}}  {text}")


def _print_entry(entry: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"schema": 1, **entry}, indent=2))
        return
    for key, value in entry.items():
        if key == "text":
            typer.echo(f"\n{value}\n")
        elif key == "options":
            typer.echo("options:")
            for name, option in value.items():
                typer.echo(f"  {name} = {json.dumps(option['default'])}\n      {option['meaning']}")
        else:
            typer.echo(f"{key}: {value}")
