"""The documentation site, where its tools are installed (`make docs` installs them): built strictly, and read again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import kdrs
from docs_check import ROOT

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("mkdocs", "material", "mkdocstrings"))),
    reason="the docs group is not installed (make docs)",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        str(ROOT / "website/mkdocs.yml"),
        "-d",
        str(out),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(Path(kdrs.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path):
    loading = re.compile(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=[\"']?(?:https?:)?//", re.IGNORECASE)
    for path in site.rglob("*.html"):
        assert not loading.search(path.read_text("utf-8")), path
    assert not any("@import" in path.read_text("utf-8") for path in site.rglob("*.css"))


@pytest.mark.slow
def test_every_method_and_model_has_a_page_with_its_equation(site: Path):
    entries = [f"methods/{name}" for name in kdrs.distillers.DISTILLERS] + [
        f"models/{name}" for name in kdrs.models.MODELS
    ]
    for entry in entries:
        page = (site / f"{entry}.html").read_text("utf-8")
        table = re.search(r'<table class="equation">(.*?)</table>', page, re.DOTALL)
        assert table, entry
        assert not re.search(r"_\{|Σ_|\^\(l", table[1]), f"{entry}: not set: {table[1]}"


@pytest.mark.slow
def test_every_public_name_is_described(site: Path):
    pages = "".join(path.read_text("utf-8") for path in (site / "api").glob("*.html"))
    for name in kdrs.__all__:
        if name != "__version__":
            assert re.search(rf"<h2[^>]*>[^\n]*(?:\n[^\n]*){{0,6}}kdrs\.{name}\b", pages), name
