"""Models and methods that kdrs does not bring along, from the command line: ``module:Class`` and entry points."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdrs as package
from commands import FAST, fails, imports_undone, kdrs, listing, ok, write_own
from kdrs.errors import ConfigError, MissingKnowledge
from kdrs.plugins import blamed, label
from kdrs.runs.directory import Run
from kdrs.runs.reported import load_reports

SHORT = (*FAST[2:], "--epochs", "2", "--threads", "1", "-q")
MODEL, METHOD = "mymodels:BiasedMF", "mymethods:ListKL"


@pytest.fixture(scope="module")
def made(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the classes of the page; teachers of our own and of one's own; a student by one's own method, one without
    a table of users, and one that one's own model has by few bits."""
    folder = tmp_path_factory.mktemp("own") / "made"
    folder.mkdir()
    shutil.copytree(toy_path, folder / "d")
    write_own(folder)
    with pytest.MonkeyPatch.context() as patch, imports_undone():
        patch.chdir(folder)
        ok("train", "--data", "d", "--model", "bpr", "--dim", 8, *SHORT, "--out", "t")
        ok("train", "--data", "d", "--model", MODEL, "--dim", 8, *SHORT, "--out", "own")
        taught = ("distill", "--data", "d", "--teacher", "t", "--dim", 4, *SHORT)
        ok(*taught, "--model", "bpr", "--method", METHOD, "--out", "student")
        ok(*taught, "--model", MODEL, "--method", "cd", "--set", "model.bits=4", "--out", "compact")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(shutil.copytree(made, tmp_path / "here"))
    monkeypatch.chdir(folder)
    with imports_undone():
        yield folder


@pytest.fixture
def without(here: Path) -> Path:
    """As ``here``, and the modules are gone."""
    for name in ("mymodels", "mymethods"):
        (here / f"{name}.py").rename(here / f"{name}.gone")
    shutil.rmtree(here / "__pycache__", ignore_errors=True)
    return here


# --- it works -------------------------------------------------------------------------------------------------------


def test_a_model_of_ones_own_is_trained_repeated_resumed_and_evaluated(here: Path):
    common = ("train", "--data", "d", "--model", MODEL, "--dim", 8, *FAST[2:], "--threads", 1, "-q")
    ok(*common, "--epochs", 4, "--out", "whole")
    ok(*common, "--epochs", 2, "--out", "parts")
    ok("resume", "parts", "--epochs", 4, "-q")
    ok("train", "whole/config.toml", "--out", "again", "-q")
    weights = (here / "whole" / "model.safetensors").read_bytes()
    assert (here / "parts" / "model.safetensors").read_bytes() == weights
    assert (here / "again" / "model.safetensors").read_bytes() == weights
    assert "whole" in ok("eval", "whole", "t").out
    opened = package.load_run("whole")
    assert type(opened.model).__name__ == "BiasedMF"
    assert opened.factors().bias is not None


@pytest.mark.parametrize("method", ["cd", "rrd", "de"])
def test_our_methods_teach_a_model_of_ones_own(here: Path, method: str):
    ok(
        "distill",
        "--data",
        "d",
        "--teacher",
        "own",
        "--method",
        method,
        "--model",
        MODEL,
        "--dim",
        4,
        *SHORT,
        "--out",
        "s",
    )
    rows = Run.open("s").rows()
    assert all(row["losses"][method] > 0 for row in rows)


@pytest.mark.parametrize("model", ["bpr", "lightgcn", "multvae"])
def test_a_method_of_ones_own_teaches_our_models(here: Path, model: str):
    options = ("--model", model, "--dim", 4, *SHORT, "--set", "distill.0.pool=7")
    ok("distill", "--data", "d", "--teacher", "own", "--method", METHOD, *options, "--out", "s")
    assert all(row["losses"]["ListKL"] > 0 for row in Run.open("s").rows())
    assert Run.open("s").config["distill"][0]["pool"] == 7


@pytest.mark.parametrize("form", [("model.bits=2",), ("model.users=encoded",), ("model.bits=4", "model.users=encoded")])
def test_compact_forms_of_a_model_that_says_so(here: Path, form: tuple[str, ...]):
    settings = [word for one in form for word in ("--set", one)]
    options = ("--method", METHOD, "--model", MODEL, "--dim", 4, *SHORT, *settings)
    ok("distill", "--data", "d", "--teacher", "own", *options, "--out", "s")
    assert "tables" in Run.open("s").load_model()[1]
    ok("eval", "own", "s")


def test_the_whole_as_a_run_file_with_parts_seeds_and_a_dry_run(here: Path):
    Path("run.toml").write_text(
        f'parts = "parts"\n[data]\npath = "d"\n[model]\nname = "{MODEL}"\ndim = 4\ninit_std = 0.1\n[train]\nepochs = 1\n'
        f'[teachers.big]\nmodel = {{ name = "{MODEL}", dim = 8 }}\n[[distill]]\nmethod = "{METHOD}"\nteacher = "big"\n'
    )
    plan = ok("distill", "run.toml", "--dry-run", "--json").document
    assert plan["config"]["model"]["init_std"] == 0.1
    assert plan["config"]["distill"][0]["name"] == "ListKL"
    assert "ListKL" in plan["out"]
    ok("distill", "run.toml", "--seeds", "0,1", "--out", "two", "-q")
    ok("distill", "run.toml", "--seeds", "0,1", "--out", "two", "--resume", "-q")
    assert Run.open("parts/big").config["model"]["name"] == MODEL


def test_options_are_strict(here: Path):
    common = ("train", "--data", "d", "--model", MODEL)
    assert "unknown key 'model.init_sd'" in (said := fails(2, *common, "--set", "model.init_sd=1"))
    assert "did you mean 'init_std'" in said
    assert "model.init_std is much" in fails(2, *common, "--set", "model.init_std=much")
    taught = ("distill", "--data", "d", "--model", "bpr", "--teacher", "t", "--method", METHOD)
    assert "unknown key 'distill.0.temprature'" in fails(2, *taught, "--set", "distill.0.temprature=1")


def test_show(here: Path):
    entry = ok("models", "show", MODEL, "--json").document
    assert entry["options"]["init_std"]["meaning"] == "Standard deviation of the first vectors."
    assert entry["text"] == "Vectors of users and items, and a bias for each item."
    entry = ok("methods", "show", METHOD, "--json").document
    assert entry["options"]["name"]["default"] == "ListKL"
    assert entry["default weight"] == 0.1
    assert "Length of the teacher's list." in ok("methods", "show", METHOD).out


def test_labels():
    names = {"bpr": "bpr", "a.b:C": "C", "a:B.C": "C", "a:_C": "C", "a:Größe": "Gr-e", "a:Ж": "own"}
    assert {name: label(name) for name in names} == names


# --- it is not there ------------------------------------------------------------------------------------------------


def test_a_run_whose_class_is_missing_says_so_wherever_it_is_needed(without: Path):
    what = "no module mymodels"
    was = f"when the run was started it was of {without.parent}"
    for command in (
        ("eval", "own"),
        ("eval", "t", "own"),
        ("report", "t", "own", "--out", "r"),
        ("compress", "own", "--out", "small"),
        (
            "distill",
            "--data",
            "d",
            "--teacher",
            "own",
            "--method",
            "rrd",
            "--model",
            "bpr",
            "--dim",
            4,
            *SHORT,
            "--out",
            "s",
        ),
    ):
        said = fails(4, *command)
        assert "own needs model 'mymodels:BiasedMF': there is no module mymodels" in said, command
        assert "PYTHONPATH=FOLDER kdrs" in said
        assert "mymodels.py" in said, was
    assert what in fails(2, "resume", "own", "--epochs", 3)
    assert what in fails(2, "train", "own/config.toml", "--out", "again")
    assert not Path("again").exists()
    with pytest.raises(MissingKnowledge, match="no module mymodels"):
        package.load_run("own")


def test_the_remedy_for_a_missing_class_works(without: Path, monkeypatch: pytest.MonkeyPatch):
    Path("elsewhere").mkdir()
    Path("mymodels.gone").rename("elsewhere/mymodels.py")
    monkeypatch.syspath_prepend("elsewhere")  # what PYTHONPATH does for a new process
    ok("eval", "own")
    ok("resume", "own", "--epochs", 3, "-q")


def test_what_needs_no_class_opens_without_it(without: Path):
    run = Run.open("own")
    assert run.config["model"]["name"] == MODEL
    assert run.status()["status"] == "finished"
    assert run.rows()
    assert load_reports(run)["test"].mean("ndcg@10") >= 0
    # a model of ours, taught by a method that is gone; tables of a model that is gone
    for path in ("student", "compact"):
        ok("eval", path, "t")
        ok("compress", path, "--bits", 8, "--out", f"small-{path}")
        assert package.load_run(path).factors() is not None
        options = ("--method", "rrd", "--model", "bpr", "--dim", 2, *SHORT)
        ok("distill", "--data", "d", "--teacher", path, *options, "--out", f"s-{path}")
    assert "no module mymethods" in fails(2, "resume", "student", "--epochs", 3)
    assert not {"mymodels", "mymethods"} & set(sys.modules)


def test_opening_imports_no_method_though_it_is_there(here: Path):
    package.load_run("student")
    package.load_run("compact")
    ok("eval", "student", "compact", "t")
    assert not {"mymodels", "mymethods"} & set(sys.modules)


def test_code_that_was_changed_is_warned_of_on_resume(here: Path):
    with Path("mymodels.py").open("a") as file:
        file.write("# another thought\n")
    result = ok("resume", "own", "--epochs", 3, "-q")
    assert "mymodels.py, which has mymodels:BiasedMF, was changed since own was started" in result.err
    assert "was changed" not in ok("resume", "student", "--epochs", 3, "-q").err


# --- it is wrong ----------------------------------------------------------------------------------------------------

BAD = """
import kdrs
class Plain: pass
class NoLoss(kdrs.models.Recommender):
    def forward(self, queries): return None
class NoConfig(NoLoss):
    Config = dict
    def loss(self, view, batch): return None
class Nothing(kdrs.distillers.Distiller):
    Config = Plain
    def loss(self, student, batch): return 0
number = 3
"""
WRONG = {
    "mine:": "names no class",
    ":Mine": "names no class",
    "my-models:Mine": "names no class",
    "a b:Mine": "names no class",
    "nowhere:Mine": "no module nowhere",
    "os.nowhere:Mine": "no module os.nowhere",
    "bad:Missing": "bad has no Missing",
    "bad:NoLos": "did you mean 'NoLoss'",
    "bad:Plain": "is the class Plain, not derived from kdrs.models.Recommender",
    "bad:number": "is a int, not derived from",
    "bad:NoLoss": "NoLoss defines no loss",
    "bad:NoConfig": "its Config is the class dict, which are no options",
    "bad:Nothing": "not derived from kdrs.models.Recommender",
    "bad.Plain": "a class of your own is written as bad:Plain",
    "failing:Mine": "cannot be imported: ZeroDivisionError: division by zero (",
    "broken:Mine": "cannot be imported: SyntaxError",
    "leaving:Mine": "cannot be imported: SystemExit: 3",
    "needing:Mine": "its module needing needs nowhere, which is not installed",
    "kdrs.models:Recommender": "defines no forward",
}


@pytest.fixture
def bad(here: Path) -> Path:
    Path("bad.py").write_text(BAD)
    Path("failing.py").write_text("\n1 / 0\n")
    Path("broken.py").write_text("def\n")
    Path("leaving.py").write_text("import sys\nsys.exit(3)\n")
    Path("needing.py").write_text("import nowhere.at.all\n")
    return here


@pytest.mark.parametrize("name", WRONG)
def test_a_class_that_cannot_be_used_is_one_error(bad: Path, name: str):
    said = fails(2, "train", "--data", "d", "--model", name, "--out", "r")
    assert WRONG[name] in said
    assert "try:" in said
    assert not Path("r").exists()


def test_lines_of_errors_and_methods_that_are_none(bad: Path):
    assert "failing.py:2)" in fails(2, "models", "show", "failing:Mine")
    assert "broken.py:1)" in fails(2, "models", "show", "broken:Mine")
    for name, error in (("bad:Nothing", "its Config is the class Plain"), ("bad:NoLoss", "kdrs.distillers.Distiller")):
        assert error in fails(2, "distill", "--data", "d", "--model", "bpr", "--teacher", "t", "--method", name)


def test_debug_shows_the_traceback_of_the_import(bad: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KDRS_DEBUG", "1")
    with pytest.raises(ConfigError) as caught:
        kdrs("models", "show", "failing:Mine")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("super().__init__(config, task)", "super().__init__(config, tusk)"), "NameError: name 'tusk'"),
        (("return kdrs.losses.bpr(", "return kdrs.losses.bpq("), "AttributeError: "),
    ],
)
def test_an_error_of_ones_own_code_names_its_line(here: Path, change: tuple[str, str], line: str):
    text = Path("mymodels.py").read_text().replace(*change)
    Path("wrong.py").write_text(text)
    number = next(n for n, row in enumerate(text.splitlines(), 1) if change[1] in row)
    said = fails(1, "train", "--data", "d", "--model", "wrong:BiasedMF", *SHORT, "--out", "r")
    assert f"wrong.py:{number}: {line}" in said
    assert "code of your own" in said


def test_errors_of_ours_are_blamed_on_nobody(here: Path):
    ok("models", "show", MODEL)
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    assert blamed(caught.value) is None


def test_a_view_that_is_no_product_of_a_model_that_says_compactable(here: Path):
    text = Path("mymodels.py").read_text().replace("return kdrs.DotView(", "return Other(")
    Path("other.py").write_text(text + "\n\nclass Other:\n    def __init__(self, *given): pass\n")
    said = fails(2, "train", "--data", "d", "--model", "other:BiasedMF", "--set", "model.bits=2", *SHORT, "--out", "r")
    assert "BiasedMF says that it is compactable, and its view is a Other" in said


# --- where it is looked for -----------------------------------------------------------------------------------------


def test_no_code_is_taken_from_a_run_directory(here: Path, monkeypatch: pytest.MonkeyPatch):
    """However it came onto the path: somebody else's run brings no code along."""
    Path("mymodels.py").rename("own/mymodels.py")
    Path("own/deep").mkdir()
    shutil.copy("own/mymodels.py", "own/deep/mymodels.py")
    (here / "own/parcel").mkdir()
    (here / "own/parcel/__init__.py").write_text("raise AssertionError('run')")
    for place in (here / "own", here / "own" / "deep"):
        monkeypatch.chdir(place)
        before = listing(here / "own")
        for command in (("eval", here / "own"), ("train", "--data", here / "d", "--model", MODEL)):
            said = kdrs(*command)
            assert said.code in (2, 4)
            assert "lies in the run directory" in said.err, said.err
        assert {name for name in listing(here / "own") if name not in before} == set()
    with monkeypatch.context() as patch:
        patch.chdir(here)
        patch.syspath_prepend(str(here / "own"))
        assert "lies in the run directory" in fails(4, "eval", "own")
        assert "lies in the run directory" in fails(2, "models", "show", "parcel:Mine")
    # what is left of a run is one as well
    monkeypatch.chdir(here / "own")
    for name in ("data.json", "STATUS.json", "env.json"):
        (here / "own" / name).unlink()
    assert "lies in the run directory" in fails(2, "resume", ".")
    taught = (
        "distill",
        "--data",
        here / "d",
        "--teacher",
        here / "own",
        "--method",
        "rrd",
        "--model",
        "bpr",
        "--dim",
        2,
    )
    assert "lies in the run directory" in fails(4, *taught, "--out", here / "s")
    assert "mymodels" not in sys.modules


def test_beside_the_run_file_but_not_beside_a_run(here: Path):
    Path("configs").mkdir()
    Path("mymodels.py").rename("configs/mymodels.py")
    Path("configs/run.toml").write_text(
        f'[data]\npath = "d"\n[model]\nname = "{MODEL}"\ndim = 4\n[train]\nepochs = 1\n'
    )
    ok("train", "configs/run.toml", "--out", "r", "-q")
    del sys.modules["mymodels"]
    sys.path.remove(str(here / "configs"))
    assert "no module mymodels" in fails(4, "eval", "r")


SCRIPT = "import sys; from kdrs.cli import main; sys.argv[0] = 'kdrs'; main()"


@pytest.mark.parametrize(
    ("start", "code"),
    [(("-c", f"import sys; sys.path.remove(''); {SCRIPT}"), 0), (("-m", "kdrs"), 0), (("-P", "-m", "kdrs"), 2)],
    ids=["script", "module", "safe path"],
)
def test_the_current_folder_is_searched_however_kdrs_is_started(here: Path, start: tuple[str, ...], code: int):
    """The script's own folder stands first on its path; ``-P`` asks for no folder but those that are installed."""
    environ = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, *start, "models", "show", MODEL],
        capture_output=True,
        text=True,
        env=environ,
        cwd=here,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert ("a bias for each item" in done.stdout) == (code == 0)


# --- installed packages ---------------------------------------------------------------------------------------------


@pytest.fixture
def installed(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages with entry points, as pip leaves them."""
    site = here / "site"
    write_own(here)
    for name, entries in {
        "first": "[kdrs.models]\nbiased-mf = mymodels:BiasedMF\nbpr = mymodels:BiasedMF\ngone = nowhere:Model\ntwice = a:B\n"
        "[kdrs.distillers]\nlist-kl = mymethods:ListKL\n",
        "second": "[kdrs.models]\ntwice = c:D\n",
    }.items():
        folder = site / f"{name}-1.2.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (folder / "entry_points.txt").write_text(entries)
    for name in ("mymodels.py", "mymethods.py"):
        (here / name).rename(site / name)
    monkeypatch.syspath_prepend(str(site))
    return site


def test_installed_classes_count_like_ours(installed: Path):
    listed = ok("models", "--json").document["entries"]
    assert listed["biased-mf"] == "first 1.2: mymodels:BiasedMF"
    assert listed["gone"] == "first 1.2: nowhere:Model"
    assert listed["bpr"].startswith("Rendle"), "a name of ours wins"
    assert "list-kl" in ok("methods").out
    assert "mymodels" not in sys.modules, "listing imports nothing"
    assert "Standard deviation" in ok("models", "show", "biased-mf").out
    ok("train", "--data", "d", "--model", "biased-mf", "--dim", 4, *SHORT, "--out", "r")
    options = ("--method", "list-kl", "--model", "bpr", "--dim", 2, *SHORT)
    ok("distill", "--data", "d", "--teacher", "r", *options, "--out", "s")
    assert Run.open("s").config["distill"][0]["name"] == "list-kl"
    assert Run.open("r").started().code["biased-mf"].package == "first 1.2"
    assert "train" in ok("train", "--data", "d", "--model", "bpr", "--dry-run").out


def test_installed_classes_that_are_not_there(installed: Path, monkeypatch: pytest.MonkeyPatch):
    said = fails(2, "train", "--data", "d", "--model", "gone")
    assert "model 'gone' of the package first 1.2: there is no module nowhere" in said
    said = fails(2, "train", "--data", "d", "--model", "twice")
    assert "is in 2 packages: first 1.2, second 1.2" in said
    assert "a:B or c:D" in said
    assert "did you mean 'biased-mf'" in fails(2, "train", "--data", "d", "--model", "biased-mg")
    ok("train", "--data", "d", "--model", "biased-mf", "--dim", 4, *SHORT, "--out", "r")
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(installed)])
    said = fails(4, "eval", "r")
    assert "r needs unknown model 'biased-mf'; when the run was started it was of first 1.2" in said
