"""The order of the Rust modules, read from their ``use`` statements, and the length of their files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

RUST = Path(__file__).parent.parent / "rust"
LONGEST = 500
"""Lines of a file."""
ORDERS = {
    "core": (
        ("error", "rng", "math", "select", "simd", "team"),
        ("csr", "exec", "room"),
        ("codes", "matrix", "names"),
        ("score", "bfloat16", "products", "tables"),
        ("float32", "listed", "negatives", "outside", "weighted", "metrics", "dropout", "relaxed"),
        ("quadratic", "mixture", "pairwise", "ranks", "topk", "discrepancy"),
    ),
    "python": (
        ("error", "args"),
        ("threads",),
        ("call",),
        ("draws", "lists", "names", "networks", "products", "tables"),
        ("codes",),
        ("catalogue",),
    ),
}
"""Lowest first. A module uses what stands before it, and what belongs to itself."""

pytestmark = pytest.mark.skipif(not RUST.is_dir(), reason="the sources of the core are not here")


def files(crate: str) -> list[Path]:
    return sorted((RUST / crate / "src").rglob("*.rs"))


def module(crate: str, path: Path) -> str:
    return path.relative_to(RUST / crate / "src").parts[0].removesuffix(".rs")


def used(text: str) -> set[str]:
    """Modules that a file names by ``crate::``; not in its tests, comments and strings."""
    text = re.sub(r"//[^\n]*", "", text).partition("#[cfg(test)]\nmod tests {")[0]
    groups = re.findall(r"\bcrate::\{([^}]*)\}", text)
    inside = {name for group in groups for name in re.findall(r"(?:^|,)\s*(\w+)", group)}
    return set(re.findall(r"(?<!\$)\bcrate::([a-z]\w*)", text)) | {name for name in inside if name.islower()}


@pytest.mark.parametrize("crate", ORDERS)
def test_every_module_has_a_place(crate: str):
    found = {module(crate, path) for path in files(crate)} - {"lib"}
    assert found == {name for names in ORDERS[crate] for name in names}


@pytest.mark.parametrize("crate", ORDERS)
def test_modules_use_what_stands_before_them(crate: str):
    level = {name: number for number, names in enumerate(ORDERS[crate]) for name in names}
    for path in files(crate):
        own = module(crate, path)
        if own == "lib" or path.name == "tests.rs":
            continue
        wrong = {name for name in used(path.read_text("utf-8")) - {own} if level[name] >= level[own]}
        assert not wrong, f"{path}: {own} may use what stands before it in the order"


def test_no_file_is_long():
    lengths = {
        path: len(path.read_text("utf-8").splitlines()) for path in RUST.rglob("*.rs") if "target" not in path.parts
    }
    assert lengths
    assert {str(path): length for path, length in lengths.items() if length > LONGEST} == {}


def test_the_reader_of_uses_sees_what_it_should():
    text = (
        "use crate::error::Error;\nuse crate::{exec::Exec, matrix};\n// crate::topk\nfn f() { crate::rng::at(1, 2); }\n"
        "macro_rules! m { () => { $crate::simd::compiled }; }\n#[cfg(test)]\nmod tests {\n    use crate::ranks;\n}\n"
    )
    assert used(text) == {"error", "exec", "matrix", "rng"}
