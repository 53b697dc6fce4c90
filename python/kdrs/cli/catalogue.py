"""``kdrs models`` and ``kdrs methods``: what there is, and what each takes."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdrs.cli.choices import METHODS, MODELS, listed
from kdrs.cli.output import aligned, say, say_json, wrapped

if TYPE_CHECKING:
    from kdrs.distillers.base import Distiller
    from kdrs.distillers.measured import Measured
    from kdrs.models.base import Recommender
    from kdrs.settings import Settings

models = typer.Typer(help="The base models and their options.", no_args_is_help=False, invoke_without_command=True)
methods = typer.Typer(
    help="The distillation methods and their options.", no_args_is_help=False, invoke_without_command=True
)
presets = typer.Typer(
    help="Run files of published experiments, to be named in a run file's place.", invoke_without_command=True
)
ANY_MODEL = f"{listed(MODELS)}; or a class of your own."
ANY_METHOD = f"{listed(METHODS)}; or a class of your own."
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
ONE_SEED = "¹"


def _misplaced(group: str, command: str) -> Exception:
    from kdrs.errors import ConfigError

    remedy = "leave it out" if (group, command) == ("presets", "show") else f"kdrs {group} {command} ... --json"
    return ConfigError(f"--json stands before {command}, where it says nothing", remedy)


def register(app: typer.Typer) -> None:
    app.add_typer(models, name="models")
    app.add_typer(methods, name="methods")
    app.add_typer(presets, name="presets")


@models.callback()
def _models(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_models(as_json)
    elif as_json:
        raise _misplaced("models", context.invoked_subcommand)


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """All base models, those of installed packages included."""
    from kdrs.models import KIND, MODELS
    from kdrs.plugins import descriptions

    _print_list({name: cls.reference for name, cls in MODELS.items()} | descriptions(KIND), as_json)


@models.command("show")
def show_model(name: Annotated[str, typer.Argument(help=ANY_MODEL)], as_json: Json = False) -> None:
    """One model: what it is, its options, their defaults and allowed values."""
    from kdrs.models import model_class

    cls = model_class(name)
    entry: dict[str, Any] = {"name": name, "reference": cls.reference}
    if training := _training_of(cls):
        entry["trained with"] = training if as_json else ", ".join(f"{key} {value}" for key, value in training.items())
    entry |= {"text": _text_of(cls), "options": _options(cls.Config)}
    _print_entry(entry, as_json)


def _training_of(cls: type[Recommender]) -> dict[str, Any]:
    """Training settings that a model of default options brings along."""
    from kdrs.errors import ConfigError

    try:
        return cls.train_defaults(cls.Config.parse({}, ""))
    except ConfigError:  # of a class of one's own, with options that must be given
        return {}


@presets.callback()
def _presets(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_presets(as_json)
    elif as_json:
        raise _misplaced("presets", context.invoked_subcommand)


@presets.command("list")
def list_presets(as_json: Json = False) -> None:
    """All presets, by the first line of each."""
    from kdrs.runs.config import PRESETS

    lines = {name: path.read_text("utf-8").splitlines()[0].removeprefix("# ") for name, path in PRESETS.items()}
    _print_list(lines, as_json)


@presets.command("show")
def show_preset(name: Annotated[str, typer.Argument(help="A preset: kdrs presets lists them.")]) -> None:
    """A preset's run file, to be used as it is or as a start for one's own."""
    from kdrs.errors import ConfigError, nearest, shown
    from kdrs.runs.config import PRESETS

    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{shown(name)}'", nearest(name, PRESETS))
    say(PRESETS[name].read_text("utf-8"), end="")


@methods.callback()
def _methods(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_methods(as_json)
    elif as_json:
        raise _misplaced("methods", context.invoked_subcommand)


@methods.command("list")
def list_methods(as_json: Json = False) -> None:
    """All distillation methods, the best first, with what was measured of each; then those of installed packages."""
    from kdrs.distillers import DISTILLERS, KIND
    from kdrs.distillers.measured import measured, settings
    from kdrs.plugins import descriptions

    known = measured()
    purposes = {name: cls.purpose for name, cls in DISTILLERS.items()} | descriptions(KIND)
    if as_json:
        figures = {name: asdict(one) for name, one in known.items()}
        say_json({"entries": purposes, "measured": figures, "settings": settings()})
        return
    columns = ["tuned", "published", "epoch"]
    rows = {"": "".join(f"{title:>10}" for title in columns) + "  take it when"}
    for name, one in known.items():
        setting = "published" if "published" in one.ratios else "chains"
        epoch = "" if one.epoch is None else f"{one.epoch:,.0f} x" if one.epoch >= 10 else f"{one.epoch:.2g} x"
        cells = [_ratio(one, "tuned"), _ratio(one, setting), epoch]
        rows[name] = "".join(f"{cell:>10}" for cell in cells) + f"  {one.when}"
    rows |= {name: " " * 10 * len(columns) + f"  {text}" for name, text in purposes.items() if name not in known}
    say(aligned(rows))
    told = settings()
    say(
        "\ntuned, published: the transfer ratio. 0 is the student alone, 1 its teacher.\n"
        f"tuned: {told['tuned']}\npublished: {told['published']}\n*: {told['chains']}\n"
        f"{ONE_SEED}: one seed: the order of such methods may be chance\n"
        "epoch: its time, as times of plain training\n"
        "What one does, needs and takes: kdrs methods show NAME. Nothing to choose: kdrs distill without --method."
    )


def _ratio(one: Measured, setting: str) -> str:
    """A method's transfer ratio in a setting, and marks beside it, always as wide."""
    if setting not in one.ratios:
        return ""
    marks = ("*" if setting == "chains" else "") + (ONE_SEED if one.seeds[setting] == 1 else "")
    return f"{one.ratios[setting]:.2f}{marks:2}"


@methods.command("show")
def show_method(name: Annotated[str, typer.Argument(help=ANY_METHOD)], as_json: Json = False) -> None:
    """One method: purpose, citation, what it needs of a teacher, where it departs from the authors' code, its options, defaults
    and allowed values."""
    from kdrs.distillers import distiller_class

    cls = distiller_class(name)
    entry = {
        "name": name,
        "purpose": cls.purpose,
        "reference": cls.reference,
        "needs of a teacher": cls.needs,
        "default weight": cls.default_weight,
        **({} if cls.published_weight is None else {"published weight": cls.published_weight}),
        "text": _text_of(cls),
        "options": {**_entry_options(name, cls), **_options(cls.Config)},
    }
    _print_entry(entry, as_json)


def _entry_options(name: str, cls: type[Distiller]) -> dict[str, dict[str, Any]]:
    """What any ``[[distill]]`` entry may state beside the method's own options."""
    from kdrs.plugins import label
    from kdrs.runs.config import TermSettings

    options = _options(TermSettings)
    for key in ("teacher", "name"):  # a single teacher need not be a list; a name has rules of its own
        del options[key]["allowed"]
    defaults = {
        "weight": cls.default_weight,
        "name": label(name),
        **({} if cls.chain is None else {"chain": cls.default_chain}),
    }
    return {
        "teacher": options["teacher"],
        **{key: {**options[key], "default": value} for key, value in defaults.items()},
        **({} if cls.mutual else {"teacher_users": options["teacher_users"]}),
    }


def _options(config: type[Settings]) -> dict[str, dict[str, Any]]:
    """Meaning, allowed values as JSON Schema and, unless it must be given, default of every option."""
    from pydantic import TypeAdapter

    options = {}
    for name, shape in config.model_json_schema()["properties"].items():
        field = config.model_fields[name]
        meaning = " ".join(shape.pop("description", "").split())
        for key in ("title", "default"):
            shape.pop(key, None)
        allowed = shape or TypeAdapter(field.annotation or Any).json_schema()  # a validator of its own hides the type
        default = {} if field.is_required() else {"default": field.get_default()}
        options[name] = {**default, "allowed": allowed, "meaning": meaning}
    return options


def _text_of(cls: type) -> str:
    """A class's own docstring."""
    return inspect.cleandoc(cls.__doc__ or "")


BOUNDS = {
    "minimum": "{:g} or more",
    "exclusiveMinimum": "above {:g}",
    "maximum": "at most {:g}",
    "exclusiveMaximum": "below {:g}",
}
KINDS = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true, false"}


def _in_words(allowed: dict[str, Any]) -> str:
    """A JSON Schema as people say it. None is said by leaving an option out."""
    if "anyOf" in allowed:
        return "; or ".join(_in_words(branch) for branch in allowed["anyOf"] if branch.get("type") != "null")
    if values := allowed.get("enum", [allowed["const"]] if "const" in allowed else []):
        return ", ".join(map(json.dumps, values))
    if allowed.get("type") == "array" and "items" in allowed:
        least = f" of {allowed['minItems']} or more" if "minItems" in allowed else ""
        return f"a list{least}, each {_in_words(allowed['items'])}"
    if allowed.get("type") not in KINDS:  # options of one's own may be anything
        return "see its class"
    bounds = [words.format(allowed[bound]) for bound, words in BOUNDS.items() if bound in allowed]
    return ", ".join([KINDS[allowed["type"]], *bounds])


def _print_list(entries: dict[str, str], as_json: bool) -> None:
    if as_json:
        say_json({"entries": entries})
        return
    say(aligned(entries))


def _print_entry(entry: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say_json(entry)
        return
    for key, value in entry.items():
        if key == "text":
            say(f"\n{_folded(value)}\n")
        elif key == "options":
            say("options:")
            for name, option in value.items():
                default = f" = {json.dumps(option['default'])}" if "default" in option else ""
                say(f"  {name}{default}")
                say(wrapped(option["meaning"], *[" " * 6] * 2))
                if "allowed" in option:
                    say(wrapped(f"allowed: {_in_words(option['allowed'])}", *[" " * 6] * 2))
        elif value != "":
            say(wrapped(f"{key}: {value}", "", " " * 4))


def _folded(text: str) -> str:
    """The paragraphs and list items of a docstring, folded anew; what stands in by four is formulas or code, and stays."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if any(line.startswith("    ") for line in lines):
            paragraphs.append(paragraph)
            continue
        items: list[str] = []
        for line in lines:
            if line.startswith("- ") or not items:
                items.append(line)
            else:
                items[-1] += f" {line.strip()}"
        paragraphs.append("\n".join(wrapped(item, "", "  " if item.startswith("- ") else "") for item in items))
    return "\n\n".join(paragraphs)
