"""Every option of every command: it is read or refused, and ``--help`` says what it takes."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import typer
from typer.models import ArgumentInfo

from commands import FAST, fails, kdrs, listing, ok, write_clicks
from kdrs.cli import app, choices
from kdrs.cli.options import SETTINGS
from kdrs.data import Dataset


def walk(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command by the words that call it."""
    found = {path: command}
    for name, inner in getattr(command, "commands", {}).items():
        found |= walk(inner, (*path, name))
    return found


COMMANDS = walk(typer.main.get_command(app))
GROUPS = {path for path, command in COMMANDS.items() if getattr(command, "commands", None)}


def options(*path: str) -> dict[str, Any]:
    """The options of a command by their long names, without --help."""
    return {
        max(parameter.opts, key=len): parameter
        for parameter in COMMANDS[path].params
        if parameter.param_type_name == "option" and "--help" not in parameter.opts
    }


def test_arguments_of_any_number_have_no_list_as_default():
    """click before 8.2, which the oldest allowed typer brings along, refuses the whole command line for one."""
    found = 0
    for path, command in COMMANDS.items():
        if command.callback is None:
            continue
        call = inspect.unwrap(command.callback)
        for name, told in get_type_hints(call, include_extras=True).items():
            own = getattr(told, "__metadata__", ())
            if any(isinstance(one, ArgumentInfo) for one in own) and "list[" in str(told):
                found += 1
                assert inspect.signature(call).parameters[name].default in (None, inspect.Parameter.empty), (path, name)
    assert found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    write_clicks(folder / "clicks.csv")
    ok("data", "prepare", folder / "clicks.csv", "--out", folder / "d", "--candidates", 20)
    ok(
        "data", "prepare", folder / "clicks.csv", "--out", folder / "no-valid", "--split", "ordered", "--fractions", "0.8,0,0.2"
    )  # fmt: skip
    run = ("--data", folder / "d", *FAST, "--dim", 2, "--epochs", 1)
    ok("train", *run, "--out", folder / "t")
    ok("train", *run, "--seed", 1, "--out", folder / "u")
    ok("distill", *run, "--teacher", folder / "t", "--method", "rrd", "--out", folder / "s")
    data, rng = Dataset.load(folder / "d"), np.random.default_rng(0)
    sides = {"users": data.users, "items": data.items}
    tables = {side: rng.standard_normal((len(ids), 3)) for side, ids in sides.items()}
    np.savez(folder / "vectors.npz", **tables, **{f"{side[:-1]}_ids": list(ids) for side, ids in sides.items()})
    np.save(folder / "bare.npy", tables["items"])
    (folder / "study.toml").write_text(
        f"[data]\npath = '{folder / 'd'}'\n[model]\nname = 'bpr'\n[sweep.space]\n'train.lr' = [0.1, 0.2]\n"
    )
    (folder / "recipe.toml").write_text(
        f"title = 'x'\n[data]\npath = '{folder / 'd'}'\n[run]\nmodel = {{ name = 'bpr' }}\n[runs.one]\n"
    )
    return folder


# --- read: a value that cannot be is refused on every path ----------------------------------------------------------

IMPOSSIBLE = {
    "--data": "nowhere", "--model": "none", "--dim": 0, "--out": "file/run", "--epochs": 0, "--lr": 0, "--weight-decay": -1,
    "--batch-size": 0, "--optimizer": "sgd", "--patience": 0, "--protocol": "none", "--start": "nowhere", "--set": "x=1",
    "--seed": -1, "--seeds": "4..0", "--device": "tpu", "--threads": 0, "--teacher": "nowhere", "--method": "none",
    "--weight": -1, "--part": "tset", "--metrics": "none@5", "--baseline": "nowhere", "--test": "none",
    "--valid": "nowhere", "--preset": "none", "--duplicates": "none", "--min-rating": "nan", "--k-core": 0, "--min-user": 0,
    "--min-item": 0, "--split": "halves", "--fractions": "1,1,1", "--n-valid": -1, "--n-test": -1, "--short-users": "none",
    "--alone": "nowhere", "--seen-parts": "other",
    "--k": 0, "--histories": "nowhere", "--items": "nowhere", "--exclude": "nowhere", "--unknown": "none",
    "--metric": "none", "--side": "none", "--item-names": "nowhere", "--budget": "9/1", "--bits": 5, "--users": "none",
    "--from": "none", "--user-ids": "nowhere", "--item-ids": "nowhere", "--missing": "none", "--items-alone": "nobody",
    "--log": "nothing", "--jobs": 0, "--trials": 0, "--sampler": "none", "--share": "3/2",
    "--cold-items": "none", "--cold-users": "none", "--candidates": -1, "--id-order": "none", "--columns": "one",
}  # fmt: skip
FLAGS = {
    "--resume",
    "--dry-run",
    "--json",
    "--quiet",
    "--verbose",
    "--overwrite",
    "--allow-leak",
    "--debug",
    "--normalise",
    "--print-script",
    "--version",
    "--no-fold-in",
    "--no-header",
    "--merge",
    "--seen",  # of kdrs recommend a value: tests of serving
}
"""Options without a value: what they do, and where they do nothing, is told below."""
READERS = {
    "--format", "--user", "--item", "--rating", "--timestamp", "--separator", "--header", "--quotes", "--on-bad-line",
    "--strip-ids", "--float-ids", "--keep-counts", "--zeros", "--time-unit", "--time-format",
}  # fmt: skip
"""Of how a file is read: tests of the readers."""
FREE = {"--name", "--to"}
"""Any value is possible."""

RUN = ("--data", "{d}", *FAST, "--dim", "2", "--epochs", "1")
TAUGHT = (*RUN, "--teacher", "{t}", "--method", "rrd", "--weight", "1")
PREPARE = ("data", "prepare", "{clicks}")
IMPORT = ("teacher", "import", "{vectors}", "--from", "npz", "--data", "{d}", "--out", "v.safetensors")
PATHS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train": (("train",), RUN),
    "train, dry": (("train",), (*RUN, "--dry-run")),
    "train, seeds": (("train",), (*RUN, "--seeds", "0,1")),
    "train, resume": (("train",), (*RUN, "--out", "{t}", "--resume")),
    "distill": (("distill",), TAUGHT),
    "distill, dry": (("distill",), (*TAUGHT, "--dry-run")),
    "distill, seeds": (("distill",), (*TAUGHT, "--seeds", "0,1")),
    "distill, a run's own file": (("distill",), ("{s}/config.toml",)),
    "resume": (("resume",), ("{t}",)),
    "refit": (("refit",), ("{s}", "--data", "{d}")),
    "refit, dry": (("refit",), ("{s}", "--data", "{d}", "--dry-run")),
    "sweep": (("sweep",), ("{study}", "--out", "w")),
    "sweep, dry": (("sweep",), ("{study}", "--out", "w", "--dry-run")),
    "reproduce": (("reproduce",), ("{recipe}", "--out", "w")),
    "compress": (("compress",), ("{t}", "--out", "c")),
    "export": (("export",), ("{t}", "--out", "e.safetensors")),
    "recommend": (("recommend",), ("{t}", "--out", "l.csv")),
    "similar": (("similar",), ("{t}", "--out", "n.csv")),
    "teacher import": (("teacher", "import"), IMPORT[2:]),
    "teacher import, bare": (
        ("teacher", "import"),
        ("{bare}", "--from", "npy", "--data", "{d}", "--out", "v.safetensors"),
    ),
    "eval, two": (("eval",), ("{t}", "{s}")),
    "eval, one": (("eval",), ("{t}",)),
    "eval, out": (("eval",), ("{t}", "--out", "e.json")),
    "report": (("report",), ("{t}", "{s}", "--out", "r")),
    "prepare": (("data", "prepare"), ("{clicks}", "--out", "p")),
    "prepare, dry": (("data", "prepare"), ("{clicks}", "--dry-run")),
}


def filled(place: Path, arguments: tuple[Any, ...]) -> list[str]:
    names = {"d": place / "d", "t": place / "t", "u": place / "u", "s": place / "s", "clicks": place / "clicks.csv"}
    names |= {
        "study": place / "study.toml",
        "recipe": place / "recipe.toml",
        "vectors": place / "vectors.npz",
        "bare": place / "bare.npy",
    }
    return [str(argument).format(**names) for argument in arguments]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_passes_an_option_over(place, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    command, base = PATHS[path]
    before = listing(place), listing(tmp_path)
    for option in options(*command):
        if option in FLAGS | READERS | FREE or (option, path.partition(",")[0]) == ("--seed", "prepare"):
            continue
        value = "." if (option, path.partition(",")[0]) == ("--out", "prepare") else str(IMPOSSIBLE[option])
        words = filled(place, (*command, *base))
        if option in words and option not in ("--teacher", "--method", "--set"):
            at = words.index(option)
            words[at + 1] = value
            if option == "--out":
                words = [word for word in words if word not in ("--resume", "--dry-run")]
        elif option == "--weight":
            words += ["--teacher", str(place / "t"), "--method", "rrd", "--weight", "-1"]
        elif option in ("--teacher", "--method") and path == "distill, a run's own file":
            words += ["--teacher", str(place / "t"), "--method", "rrd", option, value]
        else:
            words += [option, value]
        result = kdrs(*words)
        assert result.code in (2, 3, 4, 5), (words, result)
        assert "internal" not in result.err
        # the last line names the option's value, its name or its setting
        error = result.err[result.err.index("error: ") :]
        setting = SETTINGS.get(option[2:].replace("-", "_"), option[2:]).rpartition(".")[2]
        assert re.search(f"{re.escape(value)}|'x'|{setting.replace('_', '.')}|file", error), (words, error)
    assert (listing(place), listing(tmp_path)) == before


def test_every_option_is_in_one_of_the_lists():
    for path in COMMANDS:
        for option in options(*path):
            assert option in IMPOSSIBLE.keys() | FLAGS | READERS | FREE | {
                "--install-completion",
                "--show-completion",
            }, path


# --- refused: what would do nothing ---------------------------------------------------------------------------------

NOTHING = {
    "a dry run resumes nothing": ("train", *RUN, "--out", "{t}", "--resume", "--dry-run"),
    "a dry run has no metrics": ("train", *RUN, "--dry-run", "--verbose"),
    "JSON holds all metrics": ("train", *RUN, "--json", "--verbose"),
    "and on resume": ("resume", "{t}", "--json", "--verbose"),
    "resume without a run": ("train", *RUN, "--resume"),
    "two kinds of seed": ("train", *RUN, "--seed", "1", "--seeds", "1,2"),
    "and by --set": ("train", *RUN, "--set", "train.seed=1", "--seeds", "1,2"),
    "methods on train": ("train", *RUN, "--method", "rrd"),
    "a teacher on train": ("train", *RUN, "--teacher", "{t}"),
    "weights on train": ("train", *RUN, "--weight", "1"),
    "a teacher without a method": ("distill", *RUN, "--teacher", "{t}"),
    "a weight without a method": ("distill", "{s}/config.toml", "--weight", "1"),
    "a method without a teacher": ("distill", *RUN, "--method", "rrd"),
    "seeds on resume": ("resume", "{t}", "--seeds", "0,1"),
    "a learning rate on resume": ("resume", "{t}", "--lr", "1"),
    "a place on resume": ("resume", "{t}", "--out", "x"),
    "a baseline of one": ("eval", "{t}", "--baseline", "{t}"),
    "a teacher of one": ("eval", "{t}", "--teacher", "{t}"),
    "parts of what is not kept": ("export", "{t}", "--seen-parts", "all", "--out", "e.safetensors"),
    "users of items and users": (*IMPORT, "--items-alone", "none"),
    "ids that are in the file": (*IMPORT, "--item-ids", "x"),
    "users of a file with users": (*IMPORT, "--users", "x"),
    "a source that nothing reads": ("teacher", "import", "x", "--from", "recbole", "--print-script"),
    "data that nothing reads": ("teacher", "import", "--from", "recbole", "--print-script", "--data", "{d}"),
    "a test of one": ("eval", "{t}", "--test", "randomisation"),
    "a test without a baseline": ("eval", "{s}", "{t}", "--test", "randomisation"),
    "and on report": ("report", "{s}", "{t}", "--test", "bootstrap", "--out", "r"),
    "a baseline of one on report": ("report", "{t}", "--baseline", "{t}", "--out", "r"),
    "patience without validation": ("train", "--data", "no-valid", *RUN[2:], "--patience", "3"),
    "and dry": ("train", "--data", "no-valid", *RUN[2:], "--patience", "3", "--dry-run"),
    "a choice without validation": ("train", "--data", "no-valid", *RUN[2:], "--set", 'train.select=["ndcg@10"]'),
    "looks without validation": ("train", "--data", "no-valid", *RUN[2:], "--set", "train.test_every_epoch=true"),
    "a folder for a list": ("data", "fetch", "list", "--to", "x"),
    "overwriting nothing": (*PREPARE, "--dry-run", "--overwrite"),
    "a seed that draws nothing": (*PREPARE, "--dry-run", "--split", "time", "--seed", "1"),
    "a leak that cannot be": (*PREPARE, "--dry-run", "--allow-leak"),
    "shares of leave-one-out": (*PREPARE, "--dry-run", "--fractions", "0.8,0.1,0.1"),
    "numbers of leave-one-out": (*PREPARE, "--dry-run", "--n-valid", "2"),
    "and of the test part": (*PREPARE, "--dry-run", "--n-test", "2"),
    "short users of a ratio": (*PREPARE, "--dry-run", "--split", "ratio", "--short-users", "drop"),
    "JSON before a command": ("models", "--json", "list"),
    "of methods": ("methods", "--json", "show", "rrd"),
    "of presets": ("presets", "--json", "show", "rd-caser"),
    "JSON of a preset": ("presets", "show", "rd-caser", "--json"),
    "threads of what is only listed": ("models", "list", "--threads", "1"),
}


@pytest.mark.parametrize("why", NOTHING)
def test_an_option_that_would_do_nothing_is_refused(place, tmp_path, monkeypatch, why):
    """By name, with something to do, and doing that helps: leave it out."""
    monkeypatch.chdir(tmp_path)
    words = ["no-valid" if word == "no-valid" else word for word in filled(place, NOTHING[why])]
    if "no-valid" in words:
        words[words.index("no-valid")] = str(place / "no-valid")
    before = listing(place)
    error = fails(2, *words)
    assert "\n  try: " in error
    assert listing(place) == before
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_the_seeds_of_a_plan_are_in_it(place):
    plan = ok(*filled(place, ("train", *RUN, "--seeds", "3..5", "--dry-run", "--json"))).document
    assert plan["seeds"] == [3, 4, 5]
    assert "# seeds: [3, 4, 5]" in ok(*filled(place, ("train", *RUN, "--seeds", "3..5", "--dry-run"))).out


@pytest.mark.parametrize(("text", "seeds"), [("0..2", [0, 1, 2]), ("0,2,5", [0, 2, 5]), ("3", [3]), ("4..4", [4])])
def test_forms_of_seeds(place, text, seeds):
    assert ok(*filled(place, ("train", *RUN, "--seeds", text, "--dry-run", "--json"))).document["seeds"] == seeds


# --- --help ---------------------------------------------------------------------------------------------------------


def test_help_repeats_the_tables():
    from kdrs.data import KNOWN
    from kdrs.distillers import DISTILLERS
    from kdrs.evaluation.protocols import PROTOCOLS
    from kdrs.evaluation.significance import TESTS
    from kdrs.models import MODELS
    from kdrs.runs.config import TrainSettings
    from kdrs.runs.kept import SEEN_PARTS
    from kdrs.student.formats import FORMATS
    from kdrs.teachers.importers import SCRIPTS, SIDED, WHOLE
    from kdrs.teachers.saving import ALONE, MISSING
    from kdrs.tracking import TRACKERS

    assert tuple(MODELS) == choices.MODELS
    assert sorted(choices.METHODS) == sorted(DISTILLERS)
    assert tuple(PROTOCOLS) == choices.PROTOCOLS
    assert tuple(TESTS) == choices.TESTS
    assert tuple(TRACKERS) == choices.TRACKERS
    assert tuple(KNOWN) == choices.SETS
    assert ("student", *FORMATS) == choices.EXPORTS
    assert SEEN_PARTS == choices.SEEN_PARTS
    assert {*choices.FORMS, "recbole-npz"} == WHOLE.keys() | SIDED.keys()
    assert (MISSING, ALONE, tuple(SCRIPTS)) == (choices.MISSING, choices.ITEMS_ALONE, choices.SCRIPTED)
    assert tuple(TrainSettings.model_json_schema()["properties"]["optimizer"]["enum"]) == choices.OPTIMIZERS


def text_of(command: tuple[str, ...], option: str) -> str:
    return " ".join((options(*command)[option].help or "").split())


@pytest.mark.parametrize("command", ["train", "distill"])
def test_help_states_the_settings_allowed_values_and_defaults(command):
    """As the settings have them, so that a changed default changes the text."""
    from kdrs.runs.config import RunConfig, TrainSettings

    schema = TrainSettings.model_json_schema()["properties"]
    for option, setting in SETTINGS.items():
        group, _, name = setting.rpartition(".")
        said = text_of((command,), f"--{option.replace('_', '-')}")
        if group == "train":
            default = TrainSettings.model_fields[name].default
            assert f"(default: {'the protocol' if default is None else default}" in said, option
            for value in schema[name].get("enum", []):
                assert value in said
            bounds = schema[name] if "anyOf" not in schema[name] else schema[name]["anyOf"][0]
            if "minimum" in bounds:
                assert f"{bounds['minimum']:g} or more" in said, option
            if "exclusiveMinimum" in bounds:
                assert f"above {bounds['exclusiveMinimum']:g}" in said
    assert "1 to 1024" in text_of((command,), "--threads")
    assert f"(default: {RunConfig.model_fields['device'].default})" in text_of((command,), "--device")
    for names, option in ((choices.MODELS, "--model"), (choices.PROTOCOLS, "--protocol"), (choices.TRACKERS, "--log")):
        assert choices.listed(names) in text_of((command,), option)


def test_every_option_that_takes_a_value_says_which_and_what_else():
    """Those without a default are marked by what happens without them."""
    for path in COMMANDS:
        for name, option in options(*path).items():
            assert option.help, (path, name)
            if not option.is_flag and name not in READERS | {"--install-completion", "--show-completion"}:
                assert "default:" in option.help or option.required or name in WITHOUT, (path, name)


WITHOUT = {"--from", "--data", "--model", "--teacher", "--method", "--set", "--valid", "--test"}
"""Options that must be given, by themselves or in a run file, or of which there is none."""


def test_help_of_prepare_states_the_recipe():
    from kdrs.data.filters import RULES
    from kdrs.data.prepare import ID_ORDERS, PRESETS, Recipe
    from kdrs.data.splits import KINDS

    for option, names in (
        ("--duplicates", RULES),
        ("--split", KINDS),
        ("--preset", tuple(PRESETS)),
        ("--id-order", ID_ORDERS),
    ):
        assert choices.listed(names) in text_of(("data", "prepare"), option)
    for name, default in Recipe().__dict__.items():
        if (option := f"--{name.replace('_', '-')}") in options("data", "prepare"):
            stated = {None: "none", (0.8, 0.1, 0.1): "0.8,0.1,0.1"}.get(default, default)
            if option != "--allow-leak":
                assert f"(default: {stated}" in text_of(("data", "prepare"), option), option


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_help_at_80_columns(path, monkeypatch):
    """Nothing is cut off, nothing taken for markup."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    text = ok(*path, "--help").out
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    plain = " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())
    for option in options(*path).values():
        for word in re.findall(r"\(default: [^ )]+", option.help or ""):
            assert word in plain or word.partition(" ")[2] in plain


@pytest.mark.parametrize("command", [("methods", "show"), ("models", "show")])
def test_show_at_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name in choices.METHODS if command[0] == "methods" else choices.MODELS:
        wide = [line for line in ok(*command, name).out.splitlines() if len(line) > 80]
        # a formula, or a word that is longer than a line
        assert all(line.startswith("    ") for line in wide), wide
        entry = ok(*command, name, "--json").document
        shown = " ".join(ok(*command, name).out.split())
        for option, facts in entry["options"].items():
            assert " ".join(facts["meaning"].split()) in shown
            if "default" in facts:
                assert f"{option} = {json.dumps(facts['default'])}" in shown


def test_brackets_in_help_are_no_markup():
    assert "OUT/seed-N" in text_of(("train",), "--seeds")
    assert not any("[" in (option.help or "") for path in COMMANDS for option in options(*path).values())


def test_the_page_says_which_commands_are_quiet():
    page = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text("utf-8")
    (row,) = re.findall(r"^\| `--quiet`, `-q` \|.*: (.*) \|$", page, re.MULTILINE)
    assert row == ", ".join(
        f"`{' '.join(path)}`" for path in COMMANDS if path not in GROUPS and "--quiet" in options(*path)
    )
