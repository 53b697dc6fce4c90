"""``kdrs`` as its users call it, inside this process: importing torch anew for every command would cost seconds."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

from kdrs.cli import main

TWO_LINES = re.compile(r"error: [^\n]+\n(  try: [^\n]+\n)?\Z")
get_command = functools.cache(typer.main.get_command)
"""The commands of a program, made once: Typer makes all of them anew for every call, in 70 ms."""
FAST = ("--model", "bpr", "--batch-size", "64", "--lr", "0.01", "--device", "cpu")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Stdout, which must be one JSON document and nothing else."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(self.out, parse_constant=refuse)


def kdrs(*arguments: object) -> Result:
    """Runs a command; whatever leaves ``main`` but SystemExit is raised."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kdrs", *map(str, arguments)])
        patch.setattr(typer.main, "get_command", get_command)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as leaving:
            main()
    code = leaving.value.code
    assert isinstance(code, int)
    return Result(code, out.getvalue(), err.getvalue())


def runner() -> CliRunner:
    """Typer's own way to call a command, stdout and stderr apart in every version: click before 8.2 mixes them unless told."""
    try:
        return CliRunner(mix_stderr=False)
    except TypeError:
        return CliRunner()


def ok(*arguments: object) -> Result:
    result = kdrs(*arguments)
    assert result.code == 0, result.err
    return result


def fails(code: int, *arguments: object) -> str:
    """Runs a command that must fail with ``code`` in the documented style; returns its stderr."""
    result = kdrs(*arguments)
    assert result.code == code, (result.code, result.err)
    assert "Traceback" not in result.err
    assert "internal" not in result.err
    # what is known of the run may stand before the error
    assert TWO_LINES.search(result.err), result.err
    assert result.out == ""
    return result.err


def listing(folder: Path) -> dict[str, bytes | None]:
    """All that is below a folder, with contents."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def write_clicks(path: Path, n_users: int = 40, n_items: int = 60) -> Path:
    """Rated, timed interactions of users with tastes, as CSV."""
    rng = np.random.default_rng(0)
    liked = np.where(np.arange(n_users)[:, None] % 4 == np.arange(n_items) % 4, 0.6, 0.06)
    users, items = np.nonzero(rng.random((n_users, n_items)) < liked)
    rows = (
        f"u{u},i{i},{rng.integers(1, 6)},{881250949 + n}\n" for n, (u, i) in enumerate(zip(users, items, strict=True))
    )
    path.write_text("user,item,rating,timestamp\n" + "".join(rows))
    return path


@contextlib.contextmanager
def imports_undone() -> Iterator[None]:
    """Modules that are imported inside, and folders that are searched, are forgotten after it."""
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and not file.startswith(
                tuple(filter(None, path))
            ):  # torch and the like are loaded once
                del sys.modules[name]


def python_blocks(page: Path) -> list[str]:
    """The Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def write_own(folder: Path) -> None:
    """The classes of the pages, as they say: ``mymodels.py``, ``mymethods.py``, ``mytracker.py``."""
    pages = Path(__file__).parents[1] / "docs"
    for name, page, holds in (
        ("mymodels", "methods", "class BiasedMF"),
        ("mymethods", "methods", "class ListKL"),
        ("mytracker", "runs", "class Lines"),
    ):
        (block,) = (block for block in python_blocks(pages / f"{page}.md") if holds in block)
        (folder / f"{name}.py").write_text(block, "utf-8")
