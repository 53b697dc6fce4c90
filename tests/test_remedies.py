"""Remedies: each is followed on the input that provoked it, and helps. The cases are in remedies*.py."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdrs as package
from commands import Result, kdrs, ok, write_clicks
from kdrs.errors import KdrsError
from remedies import CASES, PREPARE, TAUGHT, TRAIN
from remedies_compact import CASES as COMPACT
from remedies_refit import CASES as REFIT
from remedies_resume import CASES as RESUME
from remedies_runs import CASES as RUNS
from remedies_serving import CASES as SERVING
from remedies_sweep import CASES as SWEEP
from remedies_teacher import CASES as TEACHER

ROOT = Path(package.__file__).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remedies") / "made"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_clicks(folder / "clicks.csv")
        ok(*PREPARE, "--out", "d", "--candidates", 20)
        ok(*PREPARE, "--out", "other", "--candidates", 20, "--seed", 1)
        ok(*PREPARE, "--out", "no-valid", "--split", "ordered", "--fractions", "0.8,0,0.2")
        ok(*TRAIN, "--out", "t")
        ok(*TRAIN, "--seed", 1, "--out", "u")
        ok(*TRAIN, "--dim", 12, "--out", "wide")
        ok(*TRAIN, "--epochs", 2, "--out", "longer")
        ok(*TRAIN, "--seeds", "0,1", "--out", "a")
        ok(*TAUGHT, "--out", "s")
    # elsewhere now, so that in copies of it runs find what lies beside them
    return folder.rename(folder.with_name("kept"))


provoked: set[tuple[str, str]] = set()
"""File and function of every raise that a case has met."""
done: set[str] = set()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = KdrsError.__init__

    def noted(self: KdrsError, cause: str, remedy: str | None = None) -> None:
        frame = sys._getframe(1)
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT):
            provoked.add((path.relative_to(ROOT).as_posix(), frame.f_code.co_name))
        plain(self, cause, remedy)

    monkeypatch.setattr(KdrsError, "__init__", noted)


def failed(result: Result) -> tuple[str, str]:
    """Cause and remedy."""
    assert result.code in (1, 2, 3, 4, 5), result
    found = re.search(r"error: ([^\n]+)\n  try: ([^\n]+)\n\Z", result.err)
    assert found is not None, result.err
    return found[1], found[2]


def spelt_out(remedy: str) -> list[str]:
    """The command after ``kdrs``, up to the end or a word that goes on with the sentence."""
    command = remedy[remedy.index("kdrs ") + 5 :]
    return shlex.split(re.split(r" with one|; |, or |, which", command)[0])


ALL = CASES | COMPACT | REFIT | RESUME | RUNS | SERVING | SWEEP | TEACHER


@pytest.mark.usefixtures("png_alone")
@pytest.mark.parametrize("name", ALL)
def test_a_remedy_helps(place, tmp_path, monkeypatch, watched, name):
    case = ALL[name]
    folder = Path(shutil.copytree(place, tmp_path / "here"))
    monkeypatch.chdir(folder)
    if case.before is not None:
        case.before(folder)
    cause, remedy = failed(kdrs(*case.wrong))
    assert case.error in cause + remedy
    if case.right is None:
        right = spelt_out(remedy)
    else:
        right = list(case.right)
        for option in {word for word in right if word.startswith("--")} - set(case.wrong):
            assert option in cause + remedy or case.names, (option, remedy)
        if right[0] != case.wrong[0] and not case.names:
            assert right[0] in cause + remedy, remedy
        for word in case.names:
            assert word in cause + remedy, remedy
    if case.then is not None:
        case.then(folder)
    again = kdrs(*right)
    assert again.code == 0, (right, again.err)
    done.add(name)


# --- none is left out -----------------------------------------------------------------------------------------------

ELSEWHERE = {
    ("studies/plan.py", "_keys"): "a key that is searched twice: test_sweep.py",
    ("studies/found.py", "so_far"): "a damaged study.toml: test_reproduce.py",
    ("studies/plan.py", "_mapping"): "a damaged study.toml: test_reproduce.py",
    ("studies/recipe.py", "_check_order"): "runs that wait for each other: test_reproduce.py",
    ("studies/recipe.py", "_is_finished"): "a teacher that was changed: test_reproduce_changed.py",
    ("studies/rehearsal.py", "_build"): "teachers that are not there: test_reproduce.py",
    ("studies/rehearsal.py", "_check"): "metrics that nothing measures: test_reproduce.py",
    ("studies/points.py", "_estimated"): "a study of an estimator that is not installed: test_sweep.py",
    ("cli/__init__.py", "_root"): "several processes: test_processes.py",
    ("cli/running.py", "_going_on"): "a folder that cannot be written: test_resume_moved.py",
    ("runs/seeds.py", "execute_seeds"): "several processes: test_processes.py",
    ("runs/build.py", "device_of"): "a machine without the device: test_faults.py",
    ("runs/directory.py", "stages"): "files among a run's stages: test_runs.py",
    ("runs/directory.py", "load_stage"): "damaged stages: test_runs.py",
    ("runs/files.py", "read_run_tensors"): "a foreign file whose digest is right",
    ("runs/config.py", "_check_unicode"): "names that are no Unicode: test_names.py",
    ("cli/data.py", "describe"): "reader options with a prepared data set: test_data_cli.py",
    ("runs/build.py", "check_room"): "less memory than a run needs: test_fault_table_runs.py",
    ("runs/build.py", "stage_epochs"): "more stages than may be kept: test_fault_table_runs.py",
    ("runs/checkpoints.py", "_first"): "lost rows and checkpoints: test_run_damage.py",
    ("runs/directory.py", "rows"): "lost rows: test_run_damage.py",
    ("runs/directory.py", "stored"): "heads of runs: test_run_damage.py",
    ("runs/journal.py", "rows"): "damaged rows: test_run_damage.py",
    ("runs/source.py", "_arrays"): "Python alone: factors, test_compress.py",
    ("runs/compress.py", "_saved"): "Python alone: a data set that is not a folder, test_compress.py",
    ("runs/compress.py", "best_form"): "Python alone: a teacher that does not tell its bytes, test_budget.py",
    ("runs/learners.py", "teacher"): "methods that train their teacher, of a compact part: test_compact_attacks.py",
    ("runs/learners.py", "build_term"): "a method of one's own that is not begun: test_own_losses.py",
    ("runs/export.py", "student_of"): "Python alone: factors, test_export.py",
    ("runs/own.py", "needing"): "classes that are gone, and come back: test_own.py",
    ("runs/opened.py", "stored_model"): "tables that do not fit: test_compact.py",
    ("runs/opened.py", "__getattr__"): "Python alone: runs without their data set, test_fault_table_runs.py",
    ("runs/opened.py", "_without_data"): "Python alone: runs without their data set, test_fault_table_runs.py",
    ("runs/opened.py", "dataset"): "Python alone: runs without their data set, test_fault_table_runs.py",
    ("runs/parts.py", "check_teachers"): "a run as its own teacher: test_fault_table_runs.py",
    ("runs/places.py", "__init__"): "locks that are links: test_run_folders.py",
    ("runs/places.py", "append"): "links in a run: test_run_folders.py",
    ("runs/places.py", "check_inside"): "links in a run: test_run_folders.py",
    ("runs/records.py", "checked"): "values of wrong types: test_run_damage.py",
    ("runs/records.py", "parse_metadata"): "weights of something else: test_run_damage.py",
    ("runs/results.py", "measure_teachers"): "a teacher whose scores are not finite: test_fault_table_core.py",
    ("runs/seeds.py", "check_seeds"): "handed on by --seeds: test_cli.py, test_options.py",
    ("runs/values.py", "to_toml"): "paths that are no UTF-8: test_names.py",
    ("runs/vouching.py", "_compare"): "changed options: test_run_damage.py",
    ("runs/vouching.py", "check_checkpoint"): "changed options: test_run_damage.py",
}
"""Raises that need what a case cannot have, and where they are met."""


OURS = ("ConfigError", "DataError", "ArtefactError", "MissingKnowledge", "MachineError", "TrainingError")


def raises() -> Iterator[tuple[str, str, ast.Call]]:
    """File, function and call of every error of ours in the upper rooms."""
    for path in (path for room in ("cli", "runs", "studies") for path in sorted((ROOT / room).glob("*.py"))):
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef):
                for node in _own(function):
                    called = node.exc if isinstance(node, ast.Raise) else None
                    if isinstance(called, ast.Call) and getattr(called.func, "id", "") in OURS:
                        yield path.relative_to(ROOT).as_posix(), function.name, called


def _own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Nodes of a function without those of functions in it."""
    stack: list[ast.AST] = list(function.body)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, ast.FunctionDef):
            stack += ast.iter_child_nodes(node)


INNER = {("runs/checkpoints.py", "_check_part"), ("runs/checkpoints.py", "_manifests")}
"""Told as a part of another error, which has the remedy."""


def test_every_error_has_a_remedy():
    for path, function, call in raises():
        handed_on = any(isinstance(part, ast.Starred) for part in call.args)
        assert (path, function) in INNER or handed_on or len(call.args) == 2, (
            f"{path}: {function} says what is wrong, and not what to do"
        )


def test_no_function_that_raises_is_left_out():
    if len(done) < len(ALL):
        pytest.skip("not all cases have been run, or one has failed")
    missed = {(path, function) for path, function, _ in raises()} - provoked - ELSEWHERE.keys() - INNER
    assert not missed, "\n".join(map(str, sorted(missed)))
