"""Holds the documents to the code: `make check` runs this.

Relative links lead somewhere; `kdrs` commands in code blocks have the commands, options and arguments that the program has;
Python blocks parse; project files name no package index's host and no path of the machine that they were written on.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)
# written in parts, so that this file passes its own check
HOSTS = re.compile("|".join(("pypi" + r"\.org", "python" + r"hosted\.org", "crates" + r"\.io", "ana" + r"conda\.org")))
PLACES = re.compile(r"(?<![\w.~-])/(?:ro{}t|wor{}|hom{}|User{}|mn{})/[\w.-]+".format(*"okest"))
TEXT = {".md", ".py", ".pyi", ".rs", ".toml", ".txt", ".yml", ".yaml", ".json", ".cfg", ".sh", ".lock", ""}


def project_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # a source archive
        files = [
            path
            for path in ROOT.rglob("*")
            if not {".venv", "target", "dist", "runs"} & set(path.relative_to(ROOT).parts)
        ]
    return [path for path in files if path.is_file()]


def anchors(text: str) -> set[str]:
    """Names of headings as GitHub makes them."""
    return {slug(heading) for heading in HEADING.findall(FENCE.sub("", text))}


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken_links(path: Path, text: str) -> Iterator[str]:
    for found in LINK.finditer(FENCE.sub("", text)):
        target = found[1] or found[2]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = path if not name else (path.parent / name).resolve()
        if not file.exists():
            yield f"link to {target}: no such file"
        elif not file.is_relative_to(ROOT):
            yield f"link to {target} leaves the project"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text("utf-8")):
            yield f"link to {target}: no such heading"


def command_lines(text: str) -> Iterator[str]:
    """`kdrs` commands of shell blocks, continued lines joined, comments and output left out."""
    for language, block in FENCE.findall(text):
        if language not in ("sh", "bash", "console", "shell"):
            continue
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = line.strip().removeprefix("$ ")
            if language == "console" and not block.lstrip().startswith("$"):
                continue
            line = re.sub(r"^((?:\w+=\S+ )*)torchrun .*?-m (?=kdrs )", r"\1", line)  # one process stands in for several
            if re.match(r"(\w+=\S+ )*kdrs( |$)", line):
                yield line


def wrong_command(line: str, program: Any) -> str | None:
    """What is wrong with a command, by the program's own parser; nothing is run."""
    words = shlex.split(line, comments=True)
    words = words[words.index("kdrs") + 1 :]
    for stop in ("|", ">", "2>", "&&", ";", "&"):
        if stop in words:
            words = words[: words.index(stop)]
    context, command = program.make_context("kdrs", [], resilient_parsing=True), program
    while hasattr(command, "commands"):
        words = [word for word in words if word != "--debug"]
        if not words or words[0].startswith("-") or words[0] not in command.commands:
            known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
            if words and words[0] not in known:
                return f"there is no command {words[0]!r}; there are {', '.join(command.commands)}"
            return None
        command, words = command.commands[words[0]], words[1:]
        context = type(context)(command, info_name=command.name, parent=context)
    if {"--help", "-h"} & set(words):
        return None
    try:
        command.parse_args(context, words)
    except Exception as error:
        return str(error.format_message() if hasattr(error, "format_message") else error)
    return None


def check_markdown(path: Path, program: Any) -> Iterator[str]:
    text = path.read_text("utf-8")
    yield from broken_links(path, text)
    for line in command_lines(text):
        problem = wrong_command(line, program)
        if problem is not None:
            yield f"`{line}`: {problem}"
    for language, block in FENCE.findall(text):
        if language in ("python", "py"):
            try:
                ast.parse(block)
            except SyntaxError as error:
                yield f"Python block: {error}"


def main() -> int:
    from typer.main import get_command

    from kdrs.cli import app

    program = get_command(app)
    problems, commands, documents = [], 0, 0
    for path in project_files():
        if path.suffix not in TEXT:
            continue
        text = path.read_text("utf-8", errors="replace")
        name = path.relative_to(ROOT)
        if path.suffix != ".lock":
            problems += [f"{name}: names the package index {found[0]}" for found in HOSTS.finditer(text)]
        problems += [f"{name}: holds the machine's path {found[0]}" for found in PLACES.finditer(text)]
        if path.suffix == ".md":
            documents += 1
            commands += len(list(command_lines(text)))
            problems += [f"{name}: {problem}" for problem in check_markdown(path, program)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{documents} documents, {commands} commands: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
