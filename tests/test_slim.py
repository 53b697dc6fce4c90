"""kdrs with NumPy and safetensors alone: what `pip install --no-deps` leaves. No other can be imported in a child process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kdrs
from kdrs._libraries import PACKAGES
from kdrs.compact.encoders import row_sums
from kdrs.compact.networks import activated
from test_student import made

ONLY = """
import importlib.abc, json, sys

class Only(importlib.abc.MetaPathFinder):
    '''As if nothing were installed but the packages that are named.'''

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top.startswith("_sysconfig") or top in ALLOWED:
            return None
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

ALLOWED = {"kdrs", "numpy", "safetensors"}
sys.meta_path.insert(0, Only())
sys.path.insert(0, PACKAGE)
"""
SLIM = {
    "Codes", "Dataset", "Evaluator", "Interactions", "Names", "Recommend", "Recommendations", "Report", "Selection", "Student",
    "data", "errors", "overlap", "popularity", "protocols", "ranking", "sampling", "significance", "compare", "Entry",
    "scoring_seconds", "trackers",
}  # fmt: skip
"""Names of kdrs that are there."""


def alone(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """The end of a process that has NumPy and safetensors alone."""
    head = ONLY.replace("PACKAGE", repr(str(Path(kdrs.__file__).parents[1])))
    command = [sys.executable, "-c", f"{head}\n{code}", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def answered(code: str, *words: object) -> object:
    done = alone(code, *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_child_has_nothing_else():
    done = alone("import kdrs\ntry:\n    import polars\nexcept ImportError:\n    print('none')")
    assert done.stdout == "none\n", done.stderr
    assert alone("import torch").returncode != 0


def test_every_name_is_there_or_says_what_is_missing():
    found = answered(
        "import kdrs\nfound = {}\nfor name in kdrs.__all__:\n"
        "    try:\n        found[name] = bool(getattr(kdrs, name))\n"
        "    except kdrs.errors.MachineError as error:\n        found[name] = [error.cause, error.remedy]\n"
        "print(json.dumps(found))"
    )
    assert {name for name, value in found.items() if value is True} == SLIM | {"__version__"}
    for name, value in found.items():
        if value is not True:
            cause, remedy = value
            assert cause.startswith(f"kdrs.{name} needs "), value
            assert cause.endswith(", which is not installed"), value
            package = cause.split(" needs ")[1].partition(",")[0]
            assert remedy.startswith(f"pip install {package};"), value


STUDENT = """
import kdrs
student = kdrs.Student.load(sys.argv[1])
users = list(student.users) if student.users is not None else []
histories = [["item 3", "item 7"], ["item 1"], ["item 9", "item 2", "item 30"]]
found = [student.recommend(histories=histories, k=7)]
found += [student.similar(["item 4"], 5), student.similar(["item 4"], 3, metric="dot")]
if users:
    found += [student.recommend(users, 10), student.recommend(users[:3], 4, seen=False, exclude=["item 1"]),
              student.recommend([*users[:2], "nobody"], 5, unknown="popular", items=[f"item {n}" for n in range(20)])]
vectors = student.fold_in(histories)
vectors = vectors.data if isinstance(vectors, kdrs.Codes) else vectors
print(json.dumps({
    "lists": [[one.items.tolist(), one.scores.tolist(), one.counts.tolist()] for one in found],
    "vectors": vectors.tolist(), "rows": {k: v.tolist() for k, v in found[0].columns().items()},
    "scores": student.score(users, ["item 5"] * len(users)).tolist() if users else [], "readme": student.readme,
    "heavy": sorted({"torch", "polars", "scipy", "pydantic"} & set(sys.modules)),
}))
"""


@pytest.mark.parametrize(("bits", "encoded"), [(32, False), (2, False), (32, True), (1, True)])
def test_a_student_answers_as_everywhere(bits, encoded, tmp_path, monkeypatch, capsys):
    """The same bytes as in this process, which has all libraries."""
    path = tmp_path / "student.safetensors"
    made(bits, encoded=encoded).save(path)
    found = answered(STUDENT, path)
    assert found.pop("heavy") == []
    monkeypatch.setattr(sys, "argv", ["", str(path)])
    exec(compile(STUDENT, "<student>", "exec"), {"json": json, "sys": sys})
    here = json.loads(capsys.readouterr().out)
    here.pop("heavy")
    assert found == here
    assert len(found["lists"]) == 6


def test_the_script_that_tries_wheels():
    script = Path(__file__).with_name("slim_wheel.py")
    done = alone(f"import runpy\nrunpy.run_path({str(script)!r}, run_name='__main__')")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"kdrs {kdrs.__version__} with NumPy ")


CORE = """
import numpy as np, kdrs
rng = np.random.default_rng(0)
users, items = rng.integers(0, 30, 200), rng.integers(0, 50, 200)
seen = kdrs.Interactions.from_pairs(users, items, 30, 50)
rows = np.arange(30)
negatives = kdrs.sampling.negatives(seen, rows, 3, seed=kdrs.sampling.stream(0, "negatives", 1))
pairs = set(zip(users.tolist(), items.tolist()))
assert not any((row, int(item)) in pairs for row, drawn in enumerate(negatives) for item in drawn)
law = kdrs.sampling.weighted(np.tile(np.arange(50, dtype=np.int32), (30, 1)), np.ones(50), 5, seed=1)
queries, table = rng.normal(size=(30, 8)).astype(np.float32), rng.normal(size=(50, 8)).astype(np.float32)
best = kdrs.ranking.topk(queries, table, 10, seen=seen)
codes = kdrs.Codes.of(table, 2)
truth = kdrs.Interactions.from_pairs(rows, kdrs.sampling.negatives(seen, rows, 1, seed=5)[:, 0], 30, 50)
report = kdrs.Evaluator(seen, truth)((queries, table))["test"]
popular = kdrs.Evaluator(seen, truth)(kdrs.popularity(seen))["test"]
print(json.dumps([negatives.tolist(), law.tolist(), best.items.tolist(), best.scores.tolist(), codes.data.tolist(),
    report.means(), popular.means(), kdrs.ranking.neighbours(table, 3).items.tolist(),
    [part.tolist() for part in kdrs.ranking.ranks(queries, table, truth, seen=seen)]]))
"""


def test_sampling_ranking_and_evaluation(capsys):
    found = answered(CORE)
    exec(compile(CORE, "<core>", "exec"), {"json": json, "sys": sys})
    assert found == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("code", "package"),
    [
        ("student.recommend(['ü1'], 3).to_polars()", "polars"),
        ("kdrs.data.read('clicks.csv')", "polars"),
        ("kdrs.data.from_frame({'user': [1], 'item': [2]})", "polars"),
        ("kdrs.Dataset.load('data')", "pydantic"),
        ("kdrs.Report.load('report.json')", "pydantic"),
        ("kdrs.Interactions.from_pairs([0], [0]).to_csr()", "scipy"),
        ("kdrs.data.fetch('ml-100k')", "platformdirs"),
        ("kdrs.load_run('run')", None),
        ("kdrs.fit", "torch"),
    ],
)
def test_what_needs_more_is_one_clear_error(code, package, tmp_path, monkeypatch, toy):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDRS_CACHE", raising=False)
    made().save(tmp_path / "student.safetensors")
    Path("clicks.csv").write_text("user,item\na,b\n")
    toy.save("data")
    kdrs.Evaluator.of(toy)(kdrs.popularity(toy.train))["test"].save("report.json")
    done = alone(f"import kdrs\nstudent = kdrs.Student.load('student.safetensors')\n{code}")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-2:]
    assert last[0].startswith("kdrs.errors.MachineError: "), done.stderr
    assert f"needs {package or ''}" in last[0], done.stderr
    assert last[1].startswith("pip install "), done.stderr


@pytest.mark.parametrize("words", ["", "recommend student.safetensors --k 3 --out lists.parquet"])
def test_the_command_line_says_what_it_lacks(words):
    done = alone(f"sys.argv = ['kdrs', *{words.split()}]\nimport runpy\nrunpy.run_module('kdrs', run_name='__main__')")
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines() == [
        "error: the command line needs typer, which is not installed",
        "  try: pip install typer; or pip install kdrs, without --no-deps, for all that kdrs needs",
    ]


def test_a_command_that_lacks_a_library_ends_with_code_5():
    """Where the command line's own libraries are installed and torch is not."""
    beside = {
        "typer",
        "click",
        "rich",
        "shellingham",
        "annotated_doc",
        "typing_extensions",
        "markdown_it",
        "pygments",
        "mdurl",
    }
    done = alone(f"ALLOWED |= {beside}\nsys.argv = ['kdrs', 'methods']\nfrom kdrs.__main__ import main\nmain()")
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("error: this command needs "), done.stderr
    assert "which is not installed\n  try: pip install " in done.stderr


def test_packages_are_those_of_the_project():
    """A library that becomes a dependency has its clear error too."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    names = {one.partition(">")[0] for one in project["dependencies"]}
    assert set(PACKAGES.values()) == names - {"numpy", "safetensors"}


@pytest.mark.parametrize(("n", "dim"), [(1, 1), (1, 8), (4, 3), (200, 1), (200, 8), (0, 4)])
def test_sums_have_the_bytes_of_scipy(n, dim):
    rng = np.random.default_rng(n + dim)
    lengths = np.minimum(rng.geometric(0.05, n), 60) * (rng.random(n) < 0.8)
    rows = np.repeat(np.arange(n), lengths)
    histories = kdrs.Interactions.from_pairs(rows, rng.integers(0, 90, rows.size), n, 90)
    items = rng.normal(size=(90, dim)).astype(np.float32)
    items[rng.random((90, dim)) < 0.3] = -0.0
    expected = np.asarray(histories.to_csr() @ items, np.float32)
    assert row_sums(histories, items).tobytes() == expected.tobytes()


def test_the_logistic_function_is_exact_to_float32_and_silent():
    values = np.array([-np.inf, -3e38, -800, -90, -20, -1, -0.0, 1e-8, 0.5, 17, 90, 3e38, np.inf], np.float32)
    from scipy.special import expit

    with np.errstate(all="raise"):
        found = activated(values, "sigmoid")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expit(values.astype(np.float64)).astype(np.float32))
