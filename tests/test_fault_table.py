"""docs/faults.md against the tests: each of the 73 faults has tests by its number, or says why it is not promised."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "faults.md"
NUMBERS = range(1, 74)
NAMED = re.compile(r"test_fault_(\d\d)_\w+")
LINK = re.compile(r"\[[^\]]+\]\(\.\./tests/(\w+\.py)\)")


def cells_of(page: str) -> list[list[str]]:
    """The cells of the rows that begin with a number."""
    rows = [line.strip().strip("|").split(" | ") for line in page.splitlines() if re.match(r"\| *\d+ *\|", line)]
    return [[cell.strip() for cell in row] for row in rows]


def numbers_of(path: Path) -> set[int]:
    """The numbers of the tests that a file has at its top level: defined there, or imported under such a name."""
    names: list[str] = []
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
    return {int(found[1]) for name in names if (found := NAMED.fullmatch(name))}


@functools.cache
def numbered() -> dict[str, set[int]]:
    """The numbers of all files that have any."""
    return {path.name: found for path in sorted((ROOT / "tests").glob("test_*.py")) if (found := numbers_of(path))}


ROWS = cells_of(PAGE.read_text("utf-8"))


def test_every_fault_has_one_row():
    assert [int(row[0]) for row in ROWS] == list(NUMBERS)
    for row in ROWS:
        assert len(row) == 5, row[0]
        assert all(row), row[0]


def test_every_row_names_the_files_that_have_its_tests_or_says_why_not():
    for number, _, does, code, tests in ROWS:
        found = [name for name, numbers in numbered().items() if int(number) in numbers]
        named = LINK.findall(tests)
        assert sorted(named) == found, f"row {number} names {named}; its tests are in {found}"
        if named:
            assert re.fullmatch(r"\d+(, \d+)*", code), f"row {number} has the code {code}"
        else:
            assert does.startswith("not promised: "), f"row {number} has no test and no reason"


def test_no_test_is_of_a_row_that_is_not_there():
    for name, numbers in numbered().items():
        assert numbers <= set(NUMBERS), name


def test_a_wrong_page_would_be_seen(tmp_path):
    """The reading of page and files can tell."""
    (tmp_path / "test_x.py").write_text(
        "from y import a as test_fault_12_a, b as other\n"
        "def test_fault_07_b(): ...\n"
        "def test_fault_8_c(): ...\n"
        "class T:\n    def test_fault_09_d(self): ...\n"
    )
    assert numbers_of(tmp_path / "test_x.py") == {7, 12}
    assert cells_of("# 1\n| # | a |\n|---|---|\n| 3 | x | y |\n|4 | z |\ntext | 5 |") == [["3", "x", "y"], ["4", "z"]]
