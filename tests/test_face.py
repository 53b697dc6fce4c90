"""What a visitor meets: one version, a citation file, a promise of security, equations of every method, the site's pages."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest

import kdrs
from docs_check import ROOT

ENTRIES = {f"method {name}": cls for name, cls in kdrs.distillers.DISTILLERS.items()} | {
    f"model {name}": cls for name, cls in kdrs.models.MODELS.items()
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_the_version_is_one():
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    locked = {one["name"]: one["version"] for one in tomllib.loads(text_of("Cargo.lock"))["package"]}
    found = {
        "pyproject.toml": project["version"],
        "Cargo.toml": tomllib.loads(text_of("Cargo.toml"))["workspace"]["package"]["version"],
        "Cargo.lock": locked["kdrs-core"],
        "Cargo.lock, kdrs-python": locked["kdrs-python"],
        "CITATION.cff": re.search(r"^version: (\S+)$", text_of("CITATION.cff"), re.MULTILINE)[1],
        "CHANGELOG.md": re.search(r"^## (\d\S*)", text_of("CHANGELOG.md"), re.MULTILINE)[1],
    }
    assert found == dict.fromkeys(found, kdrs.__version__)


def test_the_changelog_begins_with_what_is_to_come():
    heads = re.findall(r"^## (.+)$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert heads[0] == "Unreleased"


def test_every_paper_is_in_the_citation_file():
    """By the word that a method's or model's reference has of its title, and its year."""
    cited = text_of("CITATION.cff").lower()
    for name, cls in ENTRIES.items():
        if "manuscript" in cls.reference:
            continue
        year = re.findall(r"(?:19|20)\d\d", cls.reference)[-1]
        words = set(re.findall(r"[a-z-]{4,}", cls.reference.lower()))
        titles = re.findall(r'title: "(.+?)"\n\s+year: (\d+)', cited)
        assert any(year == of and len(words & set(re.findall(r"[a-z-]{4,}", title))) >= 2 for title, of in titles), name


@pytest.mark.parametrize("name", ENTRIES)
def test_every_method_and_model_shows_its_equation(name: str):
    """A block that stands in by four, in lines that a terminal of 100 columns holds, each bracket closed."""
    lines = inspect.cleandoc(ENTRIES[name].__doc__).splitlines()
    block = [line.strip() for line in lines if line.startswith("    ")]
    assert any(re.match(r"(L|ℓ|L_\w+|s\(.*\))\s*=", line) for line in block), block
    assert max(map(len, lines)) <= 124
    text = " ".join(block)
    for left, right in ("()", "{}"):
        assert text.count(left) == text.count(right), text


def test_tests_that_the_promise_of_security_names_are_there():
    text = text_of("SECURITY.md")
    files = [ROOT / name for name in re.findall(r"\]\((tests/\w+\.py)\)", text)]
    assert len(files) > 8
    source = "\n".join(path.read_text("utf-8") for path in files)
    names = re.findall(r"`(test_\w+)`", text)
    assert len(names) >= 3
    assert not [name for name in names if f"def {name}(" not in source]


def test_every_public_name_has_its_place_in_the_reference():
    hooks = text_of("website/hooks.py")
    groups = hooks[hooks.index("GROUPS = {") : hooks.index('"""Public names by page')]
    placed = set(re.findall(r'"(\w+)"', groups)) | set(re.findall(r'"([\w ]+)":', groups))
    assert set(kdrs.__all__) - {"__version__"} <= placed


def test_every_page_stands_in_the_navigation():
    navigation = text_of("website/mkdocs.yml")
    for path in ROOT.glob("docs/*.md"):
        assert f"- {path.name}" in navigation, path.name


def test_notebooks_are_small_and_hold_no_output():
    import json

    found = sorted(ROOT.glob("examples/notebooks/*.ipynb"))
    assert {path.stem for path in found} == {"bring-a-teacher", "first-student", "serve"}
    for path in found:
        book = json.loads(path.read_text("utf-8"))
        for cell in book["cells"]:
            assert not cell.get("outputs"), path.name
            assert cell.get("execution_count") is None, path.name
        assert Path(path).stat().st_size < 20_000
