"""Faults of the command line by the numbers of the table of faults: extras, run files, records beside a run, terminals."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apart import Forks
from commands import FAST, fails, kdrs, listing, ok, write_clicks

TRAIN = ("train", "--data", "d", *FAST, "--dim", "2", "--epochs", "1")
FILE = "[data]\npath = 'd'\n[model]\nname = 'bpr'\ndim = 2\n[train]\nepochs = 1\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_clicks(folder / "clicks.csv")
        ok("data", "prepare", "clicks.csv", "--out", "d", "--candidates", 20, "--name", "klick ± ü")
        ok(*TRAIN, "--out", "t")
        ok(*TRAIN, "--seed", 1, "--out", "ü ≤")
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)


# --- 65: an extra that is not installed -----------------------------------------------------------------------------


def test_fault_65_a_report_without_matplotlib(tmp_path, monkeypatch):
    """All but the pictures, and the line that installs what they need, before anything is computed."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = ok("report", "t", "ü ≤", "--out", tmp_path / "r")
    forms = ["comparison.json", "comparison.md", "comparison.tex", "comparison.csv"]
    assert [Path(line).name for line in result.out.splitlines()] == ["report.html", *forms]
    assert "pip install 'kdrs[plots]'" in result.err.splitlines()[0]
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"report.html", *forms}
    wrong = kdrs("report", "t", "nowhere", "--out", tmp_path / "s")
    assert wrong.err.index("pip install") < wrong.err.index("error: ")
    # pictures of an earlier comparison do not stay beside the new tables
    for suffix in (".png", ".svg", ".pdf"):
        (tmp_path / f"r/comparison{suffix}").write_bytes(b"old")
    ok("report", "t", "--out", tmp_path / "r")
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"report.html", *forms}


def test_fault_65_a_picture_asked_for_by_a_program_is_error_5(tmp_path, monkeypatch):
    from kdrs.errors import MachineError
    from kdrs.runs.compared import compare_runs

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MachineError, match=r'pip install "kdrs\[plots\]"') as found:
        compare_runs(["t"], time_scoring=False).picture(tmp_path / "x.png")
    assert found.value.exit_code == 5


EXTRAS = """
import json, os, sys
for name in ("matplotlib", "optuna", "onnx", "onnxruntime", "usearch", "tensorboard", "mlflow", "wandb", "pandas"):
    sys.modules[name] = None  # importing it fails
from kdrs.cli import main
import kdrs
import torch  # none of ours, and each fork would load it anew
for number, command in enumerate(json.loads(sys.argv[1])):
    if not os.fork():
        sys.argv = ["kdrs", *command]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            main()
        except SystemExit as leaving:
            os._exit(leaving.code)
    print(number, os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
WITHOUT = [[*TRAIN, "--dry-run"], ["eval", "t"], ["data", "describe", "d"], ["doctor"], ["methods"]]


@pytest.fixture(scope="module")
def without(made: Path) -> tuple[dict[str, str], str]:
    """How these commands end where no extra is installed, and what they say."""
    command = [sys.executable, "-c", EXTRAS, json.dumps(WITHOUT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=made)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines()), done.stderr


@pytest.mark.parametrize("number", range(len(WITHOUT)), ids=lambda number: WITHOUT[number][0])
def test_fault_65_nothing_but_pictures_needs_an_extra(without, number):
    codes, errors = without
    assert codes[str(number)] == "0", errors


# --- 66: run files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FILE + "lrr = 1\n", ["unknown key 'train.lrr'", "did you mean 'lr'", "weight_decay"]),
        (FILE + "[trian]\nepochs = 2\n", ["unknown key 'trian'", "did you mean 'train'"]),
        (FILE.replace("dim = 2", "dims = 2"), ["unknown key 'model.dims'", "did you mean 'dim'"]),
        (FILE + "epochs = 2\n", ["run.toml", "line 8"]),
        (FILE + "[model]\nname = 'bpr'\n", ["run.toml", "line 8"]),
        (FILE + "lr = '1e-3'\n", ["train.lr is 1e-3", "number"]),
        (FILE + "lr = true\n", ["train.lr is True", "number"]),
        (FILE + "batch_size = 64.0\n", ["train.batch_size is 64.0", "integer"]),
        (FILE + "keep = 'frist'\n", ["train.keep is frist", "'best' or 'last'"]),
        (FILE + "leak_held_out = 'no'\n", ["train.leak_held_out is no", "boolean"]),
        (FILE + "stages = 3\n", ["train.stages is 3", "list"]),
        (FILE + "lr = on\n", ["run.toml", "line 8"]),
        ("train = 3\n" + FILE.partition("[train]")[0], ["train is 3"]),
        (FILE + "lr = nan\n", ["train.lr is nan", "finite"]),
    ],
)  # fmt: skip
def test_fault_66_a_wrong_run_file_names_key_value_and_what_is_allowed(tmp_path, text, words):
    (tmp_path / "run.toml").write_text(text)
    before = listing(tmp_path)
    error = fails(2, "train", tmp_path / "run.toml", "--out", tmp_path / "run")
    for word in words:
        assert word in error, error
    assert "\n  try: " in error
    assert listing(tmp_path) == before


def test_fault_66_numbers_in_both_forms(tmp_path):
    for form in ("1e-3", "0.001", "1E-3"):
        (tmp_path / "run.toml").write_text(FILE + f"lr = {form}\n")
        assert ok("train", tmp_path / "run.toml", "--dry-run", "--json").document["config"]["train"]["lr"] == 0.001
        assert (
            ok(*TRAIN[:-2], "--set", f"train.lr={form}", "--dry-run", "--json").document["config"]["train"]["lr"]
            == 0.01
        )
        bare = tuple(word for word in TRAIN if word not in ("--lr", "0.01"))
        assert ok(*bare, "--set", f"train.lr={form}", "--dry-run", "--json").document["config"]["train"]["lr"] == 0.001


# --- 70: the record beside a run ------------------------------------------------------------------------------------


def test_fault_70_a_run_folder_that_is_taken_away_meanwhile(tmp_path, monkeypatch):
    """Its record is the run itself: an error that says where, not a run that seems to have gone well."""
    from kdrs.cli.progress import Progress

    run = tmp_path / "run"
    plain = Progress.epoch
    monkeypatch.setattr(
        Progress, "epoch", lambda self, row: (shutil.rmtree(run, ignore_errors=True), plain(self, row))[1]
    )
    result = kdrs(*TRAIN[:-1], "5", "--out", run)
    assert result.code == 5, result
    assert str(run) in result.err
    assert "Traceback" not in result.err


def test_fault_70_lines_of_the_record_are_whole(made):
    rows = (made / "t/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [0]


def test_fault_70_a_tracker_that_fails(tmp_path, monkeypatch):
    """One warning, and the run is what it is without."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_tracker.py").write_text(
        "import kdrs\nclass T(kdrs.trackers.Tracker):\n    def begin(self, run, config): 1 / 0\n"
        "    def log(self, step, values): pass\n    def end(self, status): pass\n"
    )
    result = ok(*TRAIN, "--log", "failing_tracker:T", "--out", tmp_path / "run")
    assert result.err.count("failing_tracker:T failed (beginning): ZeroDivisionError") == 1


# --- 71: terminals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_fault_71_a_terminal_that_is_not_utf_8(forks, encoding):
    """What it cannot show comes in plain letters or escaped; JSON is the same everywhere."""
    commands: tuple[list[object], ...] = (["eval", "t", "ü ≤"],)
    if encoding == "ascii":  # the narrowest
        commands = (
            *commands, ["data", "describe", "d"],
            ["eval", "t", "ü ≤", "--json"], ["train", "--help"], ["methods", "show", "cpd"], ["eval", "ü ≥"],
            [*TRAIN, "--seeds", "0,1", "--out", "s"],
        )  # fmt: skip
    for number, command in enumerate(commands):
        if encoding == "ascii" and number == 0:  # by an interpreter that opens its streams itself, which takes seconds
            own = [sys.executable, "-m", "kdrs", *map(str, command)]
            environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
            done = subprocess.run(own, capture_output=True, env=environment, timeout=300)
        else:
            done = forks.run(*command, PYTHONIOENCODING=encoding)
        assert b"Traceback" not in done.stderr, done.stderr
        assert b"internal" not in done.stderr, done.stderr
        out = done.stdout.decode(encoding)
        if "--json" in command:
            assert [run["name"] for run in json.loads(out)["runs"]] == ["t", "ü ≤"]
        elif command[0] == "eval" and done.returncode == 0:
            assert ("ü ≤" in out) == (encoding == "utf-8")
            assert encoding != "ascii" or "\\xfc <=" in out
        if "--seeds" in command:
            assert "mean +/- standard deviation" in out


@pytest.mark.parametrize(
    "command",
    [["eval", "t", "ü ≤"], ["eval", "t", "--json"], ["models"], ["methods", "show", "rrd"], ["data", "describe", "d"]],
)
def test_fault_71_a_closed_stdout(forks, command):
    """Whether it is closed before the first byte or there is none at all."""
    reading, writing = os.pipe()
    os.close(reading)
    done = forks.run(*command, stdout=writing, whole=True)
    os.close(writing)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert done.returncode == 1
    if shutil.which("sh") and command[:2] in (["eval", "t"], ["models"]) and "--json" not in command:
        # a result and a catalogue: a new interpreter, which takes seconds
        none = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "kdrs", *command], stderr=subprocess.PIPE
        )
        assert b"Traceback" not in none.stderr


ESCAPE = re.compile(rb"\x1b\[[0-9;]*m")


def on_terminal(forks: Forks, *command: str, stdout: int | None = None, **variables: str) -> bytes:
    """What a command writes to a terminal, or with a ``stdout`` elsewhere, what it says there beside its result."""
    import pty

    mine, theirs = pty.openpty()
    child = forks.begin(*command, stdout=stdout or theirs, stderr=theirs, TERM="xterm-256color", **variables)
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(mine, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(mine)
    assert child.wait() == 0
    return seen


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("plain", [True, False])
def test_fault_71_no_color(forks, monkeypatch, plain):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    for command in (["train", "--help"], ["eval", "t", "ü ≤"]):
        seen = on_terminal(forks, *command, COLUMNS="120")
        colours = {found for found in ESCAPE.findall(seen) if re.search(rb"\[(3[0-7]|9[0-7]|4[0-7]|[34]8;)", found)}
        assert not (plain and colours), colours


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_fault_71_a_bar_on_a_terminal_and_none_elsewhere(forks, tmp_path):
    """Epoch, loss, the selecting metric, its best and the time left, on one line, gone at the end; --quiet shows nothing."""

    def shown(*more: str) -> str:
        words = [*TRAIN[:-1], "6", "--out", str(tmp_path / f"run{len(more)}"), *more]
        with open(os.devnull, "wb") as nowhere:
            seen = on_terminal(forks, *words, stdout=nowhere.fileno(), COLUMNS="80")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())

    seen = shown()
    assert re.search(r"[1-6]/6  loss \d\S*  hit@5 0\.\d{4}  best 0\.\d{4} at [0-5](  ≤ \S+ \w+ left)?", seen), seen
    first = seen.splitlines()[0]
    assert first.startswith("klick ± ü: 40 users")
    assert "━" not in first
    assert shown("--quiet") == ""
