"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import errno
import os
import re
import sys
from contextlib import suppress
from typing import Any

import typer

from kdrs._launch import launched
from kdrs._libraries import missing
from kdrs.cli import catalogue, compress, data, doctor, evaluation, refit, reproduce, running, serving, sweep, teacher
from kdrs.cli.output import mute, prepare_streams, say, tell
from kdrs.errors import ConfigError, KdrsError, is_panic, nearest, shown
from kdrs.plugins import blamed, look_in

# Before torch is loaded. Its workers would spin for milliseconds after each of its calls, on the processors that the core's
# threads need meanwhile: a step of RRD on two processors takes 7 ms instead of 17.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Large tensors in large pages: rows of a table lie anywhere, and with small pages the processor looks most of them up anew.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

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

        say(f"kdrs {__version__}")
        raise typer.Exit()


TOGETHER = ("train", "distill", "resume", "refit", "eval")
"""Commands that several processes carry out as one."""


@app.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    if debug:
        os.environ["KDRS_DEBUG"] = "1"
    launch, command = launched(), context.invoked_subcommand
    if launch is not None and command not in TOGETHER:
        raise ConfigError(
            f"kdrs {command} is started as {launch.size} processes, and is one",
            f"call it without torchrun; with it go: {', '.join(TOGETHER)}",
        )


app.add_typer(data.app, name="data")
app.add_typer(teacher.app, name="teacher")
running.register(app)
refit.register(app)
compress.register(app)
evaluation.register(app)
serving.register(app)
sweep.register(app)
reproduce.register(app)
catalogue.register(app)
doctor.register(app)


USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]  # of click, or of the copy that newer typers bring along
MACHINE_ERRORS = {
    getattr(errno, name): remedy
    for names, remedy in (
        (
            ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE"),
            "check permissions and free space",
        ),
        (("ENAMETOOLONG",), "a shorter name, or a folder less deep"),
        (("ELOOP",), "the path leads through a link that leads back to itself: name the file behind it"),
    )
    for name in names
}
"""Errors of the system that are the machine's or the path's, with what to do."""


BUG = "kdrs --debug ... for the traceback, and report it with the output of kdrs doctor"


OWN = "it comes from code of your own: kdrs --debug ... for the traceback"


def main() -> None:
    """Entry point of ``kdrs``: turns errors into two lines on stderr and the documented exit codes."""
    prepare_streams()
    launch = launched()
    speaks = launch is None or launch.first
    mute(not speaks)
    with suppress(OSError):  # a folder that was deleted
        look_in(os.getcwd())
    try:
        code = app(prog_name="kdrs", standalone_mode=False)  # however it was called: remedies name it
        if sys.stdout is not None:
            sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        tell("interrupted")
        code = 130
    except BrokenPipeError:  # whoever read stdout has had enough, as in `kdrs models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        mute(not getattr(error, "speaks", speaks))
        if os.environ.get("KDRS_DEBUG"):
            raise
        code, cause, remedy = _explain(error)
        if cause:  # none where `kdrs` alone has printed its help
            tell(f"error: {cause}")
            if remedy:
                tell(f"  try: {remedy}")
    except BaseException as error:
        if not is_panic(error) or os.environ.get("KDRS_DEBUG"):
            raise
        code = 1
        tell(f"error: internal: the core panicked: {shown(str(error), 500)}")
        tell(f"  try: {BUG}; the last checkpoint of a run is untouched")
    sys.exit(code or 0)


def _commands_with(option: str | None, context: Any) -> list[str]:
    """The commands beside the one in hand that have an option which it has not."""
    group = None if context is None else context.parent

    def takes(command: Any) -> bool:
        return any(option in parameter.opts for parameter in command.params)

    if option is None or group is None or takes(context.command):
        return []
    return [f"{group.command_path} {name}" for name, command in group.command.commands.items() if takes(command)]


def _commands_in(context: Any) -> list[str]:
    return [] if context is None else list(getattr(context.command, "commands", ()))


def _explain(error: Exception) -> tuple[int, str, str | None]:
    """Exit code, cause and remedy of an error."""
    if isinstance(error, ModuleNotFoundError):
        error = missing(error, "this command") or error
    if isinstance(error, KdrsError):
        return error.exit_code, error.cause, error.remedy
    if isinstance(error, USAGE_ERROR):
        context = getattr(error, "ctx", None)
        where = "kdrs" if context is None else context.command_path
        if others := _commands_with(option := getattr(error, "option_name", None), context):
            return 2, f"No such option: {option}", f"leave it out, or use {' or '.join(others)}"
        message = error.format_message().strip().rstrip(".")  # type: ignore[attr-defined]
        if wrong := re.match("No such command '(.+?)'", message):  # younger typers alone say which is near
            return 2, f"No such command {shown(wrong[1])}", nearest(wrong[1], _commands_in(context))
        return 2, message, f"{where} --help"
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search("can't allocate memory|out of memory", str(error))
    ):
        return 5, "out of memory", "a smaller batch, model or data set"
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from "):  # pathlib before Python 3.13
        error = OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(error).removeprefix("Symlink loop from ").strip("'"))
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        place = "" if error.filename is None else f" {shown(str(error.filename))}"
        return 5, f"cannot read or write{place}: {error.strerror}", MACHINE_ERRORS[error.errno]
    if (line := blamed(error)) is not None:
        return 1, f"{line}: {shown(f'{type(error).__name__}: {error}', 500)}", OWN
    return (
        1,
        f"internal: {shown(f'{type(error).__name__}: {error}', 500)}",
        BUG,
    )
