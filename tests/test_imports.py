"""The layers of the package, read from its import statements, and constructs that are kept out of it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import kdrs

ROOT = Path(kdrs.__file__).parent
LAYERS = (
    ("escaping",),
    ("errors",),
    ("_files", "_documents", "_launch", "_libraries", "_memory", "plugins", "settings"),
    ("_parts",),
    ("data",),
    ("core",),
    ("compact",),
    ("training", "evaluation", "student", "tracking"),
    ("models", "teachers", "comparison"),
    ("distillers",),
    ("fitting",),
    ("runs",),
    ("studies",),
    ("cli",),
)
"""The floors of docs/architecture.md, lowest first. A module imports from lower floors and from within its own room only:
at the top of the file and inside functions alike."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def unit(path: Path) -> str:
    """The module or subpackage that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(node: ast.AST, *, top_level: bool) -> set[str]:
    """Modules of kdrs that are imported, with dots: ``data.ids``. Never what only a type checker sees."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and (child.module or "").partition(".")[0] == "kdrs":
            inside = (child.module or "").partition(".")[2]
            found |= {inside} if inside else {alias.name for alias in child.names}
        elif isinstance(child, ast.Import):
            found |= {a.name.partition(".")[2] for a in child.names if a.name.startswith("kdrs.")}
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        elif not (top_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            found |= imports(child, top_level=top_level)
    return found


def top(module: str) -> str:
    return module.partition(".")[0]


LIBRARY = [path for path in FILES if path.name not in ("__init__.py", "__main__.py") or path.parent != ROOT]


def test_every_module_has_a_layer():
    assert {unit(path) for path in LIBRARY} == set(LEVEL)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path):
    own = unit(path)
    wrong = {
        name
        for name in imports(tree(path), top_level=False)
        if top(name) not in (own, "_core", "__version__") and LEVEL[top(name)] >= LEVEL[own]
    }
    assert not wrong, f"{own} may import what stands before it in {LAYERS}"


def module_of(path: Path) -> str:
    """The dotted name of a file below the package; a room's own file has the room's name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_circle_within_a_room():
    """Of modules, not only of rooms, whatever is imported inside functions included."""
    modules = {module_of(path): path for path in LIBRARY}
    arrows = {}
    for name, path in modules.items():
        found = imports(tree(path), top_level=False)
        reached = {other if other in modules else other.rpartition(".")[0] for other in found}
        # a room's own file gathers what is in it
        arrows[name] = {other for other in reached & set(modules) if other != name and not name.startswith(f"{other}.")}
    done: set[str] = set()
    while len(done) < len(arrows):
        free = {name for name, others in arrows.items() if name not in done and others <= done}
        assert free, f"in or behind a circle: {sorted(set(arrows) - done)}"
        done |= free


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("models", "distillers"),
        ("distillers", "models"),
        ("teachers", "models"),
        ("evaluation", "training"),
    ],
)
def test_strangers_to_each_other(package: str, never: str):
    """Not even inside a function."""
    for path in FILES:
        if unit(path) == package:
            assert never not in map(top, imports(tree(path), top_level=False)), path


def test_few_modules_know_the_core():
    knowing = {unit(path) for path in FILES if "_core" in map(top, imports(tree(path), top_level=False))}
    assert knowing == {"core"}


LIMIT = 500
"""Lines of a file."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path: Path):
    assert len(path.read_text("utf-8").splitlines()) <= LIMIT, "split it by what its parts mean"


@pytest.mark.parametrize("room", ["data", "evaluation", "comparison"])
def test_rooms_that_need_no_torch(room: str):
    for path in FILES:
        if unit(path) == room:
            names = {
                (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
                for node in ast.walk(tree(path))
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in node.names
            }
            assert not any(name.partition(".")[0] == "torch" for name in names), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_constructs_that_are_kept_out(path: Path):
    for node in ast.walk(tree(path)):
        place = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr != "cuda", f"{place}: devices come from the tensors at hand"
            if node.func.attr == "load" and isinstance(node.func.value, ast.Name) and node.func.value.id == "torch":
                raise AssertionError(f"{place}: torch.load reads pickles")
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle":
                    assert isinstance(keyword.value, ast.Constant), place
                    assert keyword.value.value is False, f"{place}: a pickle may run code"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{place}: a bare except hides interrupts"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            assert not names & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}, place
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), place


def test_the_reader_of_imports_sees_what_it_should():
    tree = ast.parse(
        "from kdrs import sampling\nimport kdrs.data.ids\nif TYPE_CHECKING:\n    from kdrs.cli import main\n"
        "try:\n    from kdrs.errors import shown\nexcept ImportError:\n    pass\n"
        "def f():\n    from kdrs.models import BPR\nclass A:\n    from kdrs.training.view import View\n"
    )
    assert imports(tree, top_level=True) == {"sampling", "data.ids", "errors", "training.view"}
    assert imports(tree, top_level=False) == {"sampling", "data.ids", "errors", "training.view", "models"}
