"""Names from outside, which may be anything: wherever they are shown they drive no terminal, break no line, are no markup."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdrs as package
from commands import FAST, Result, kdrs, listing, write_clicks
from kdrs.errors import quoted, shown
from kdrs.escaping import is_visible, json_text, markdown, plot, toml_text, visible, visible_lines

HOSTILE = {
    "colour": "\x1b[31mRED\x1b]0;owned\x07",
    "c1": "a\x9b31mb\x85c",
    "delete": "a\x7f\x08b",
    "direction": "abc\u202egpj.exe\u2066",
    "zero width": "a\u200bb\u2060c\ufeff",
    "lines": "a\u2028b\u2029c\vd",
    "unseen letters": "a\u3164b\u2800c\U000e0041",
    "markup": "<script>x</script>![x](http://e) |*b*| `c` $x^2$ _d_ [red]e[/red]",
}
UNSEEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\u3164\u2800\ud800-\udfff\U000e0041]"
)


def check(result: Result) -> Result:
    for stream in (result.out, result.err):
        assert not UNSEEN.search(stream), ascii(UNSEEN.search(stream))
    assert "Traceback" not in result.err
    return result


def good(*arguments: object) -> Result:
    result = check(kdrs(*arguments))
    assert result.code == 0, result.err
    return result


def bad(*arguments: object) -> str:
    result = check(kdrs(*arguments))
    assert result.code in (2, 3, 4, 5), (result.code, result.err)
    error = result.err[result.err.index("error: ") :]
    assert error.count("\n") <= 2, "a name broke the line"
    return error


# --- escapers -------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(codec=None)))
def test_visible_is_visible_once_and_for_all(text):
    seen = visible(text)
    assert is_visible(seen)
    assert "\n" not in seen
    assert visible(seen) == seen
    if text.isascii() and text.isprintable():
        assert seen == text


@given(st.text(st.characters(codec=None)))
def test_every_form_reads_back(text):
    assert json.loads(json_text({"x": text})) == {"x": text}
    assert json.loads(json_text({"x": text}, ascii=False)) == {"x": text}
    assert json_text([text]).isascii()
    assert is_visible(json_text([text], ascii=False))


@given(st.text())
def test_toml_reads_back(text):
    import tomli_w

    document = toml_text(tomli_w.dumps({"x": text, text: 1} if text != "x" else {"x": text}))
    assert tomllib.loads(document)["x"] == text
    assert is_visible(document.replace("\n", "").replace("\t", ""))


def test_forms_by_hand():
    assert visible("Zoë\x1b\n\\") == "Zoë\\x1b\\n\\\\"
    assert visible("a\\b") == "a\\b"
    assert visible("\ud800\u202e\U000e0041") == "\\ud800\\u202e\\U000e0041"
    assert visible_lines("a\tb\nc\r") == "a\\tb\nc\\r"
    assert json_text({"a": [float("nan"), 1.5]}) == '{"a": [null, 1.5]}'
    assert markdown("my_run") == "my_run"
    assert markdown("_a_ *b* |c| [d](e) `f` <g> & $h$ ~i~ \\") == (
        r"\_a\_ \*b\* \|c\| \[d\](e) \`f\` &lt;g&gt; &amp; \$h\$ \~i\~ \\"
    )
    assert markdown("# a") == "\\# a"
    assert plot("_$x$") == r" _\$x\$"


@pytest.mark.parametrize("name", [*HOSTILE.values(), "it's", "a b", "two\nlines", "back\\slash"])
def test_a_quoted_path_is_taken_by_a_shell(tmp_path, name):
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    path = tmp_path / name.replace("/", ":")
    path.mkdir()
    assert is_visible(quoted(path))
    assert subprocess.run(["bash", "-c", f"test -d {quoted(path)}"]).returncode == 0


def test_pictures_show_names_as_they_are(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    for name in (*HOSTILE.values(), "_hidden", "$unclosed", "$$", "a\\$b", "\\frac{1}{2}"):
        figure = Figure()
        legend = figure.legend([Line2D([], [])], [plot(name)])
        (text,) = legend.get_texts()
        drawn, is_formula = text._preprocess_math(text.get_text())
        assert (drawn.strip(), is_formula) == (visible(name), False)
        figure.savefig(tmp_path / "x.svg", format="svg")


# --- the whole command line -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    write_clicks(folder / "clicks.csv")
    return folder


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_name_from_file_to_report(place, tmp_path, monkeypatch, kind):
    """One name for file, data set, folders, runs, teacher and part of a path."""
    monkeypatch.chdir(tmp_path)
    name = HOSTILE[kind]
    file = name.replace("/", ":")
    source = Path(shutil.copy(place / "clicks.csv", f"{file}.csv"))
    good("data", "prepare", source, "--out", f"d{file}", "--name", name, "--candidates", 20)
    good("data", "prepare", source, "--dry-run", "--json")
    good("data", "describe", f"d{file}")
    assert good("data", "describe", f"d{file}", "--json").document["name"] == name
    good("data", "describe", source)
    common = ("--data", f"d{file}", *FAST, "--dim", 2, "--epochs", 1)
    good("train", *common, "--out", f"t{file}")
    plan = good("train", *common, "--dry-run").out
    assert tomllib.loads(plan)["data"]["path"] == f"d{file}"
    good("train", *common, "--dry-run", "--json")
    good("train", *common, "--seeds", "0,1", "--out", f"a{file}")
    good("distill", *common, "--teacher", f"t{file}", "--method", "rrd", "--out", f"s{file}")
    assert good("resume", f"s{file}", "--epochs", 2, "--json").document["run"] == f"s{file}"
    runs = [f"t{file}", f"s{file}", *(f"a{file}/seed-{seed}" for seed in (0, 1))]
    assert visible(f"s{file}") in good("eval", *runs).out
    assert [run["name"] for run in good("eval", *runs, "--json").document["runs"]] == [
        f"t{file}",
        f"s{file}",
        f"a{file}",
    ]
    good("report", *runs, "--out", f"r{file}")
    for path in Path(f"r{file}").iterdir():
        if path.suffix in (".md", ".json"):
            assert not UNSEEN.search(path.read_text("utf-8"))
    table = Path(f"r{file}/comparison.md").read_text("utf-8")
    assert not re.search(r"<(?!br>)|(?<!\\)`|(?<!\\)!\[|(?<!\\)\$", table)
    for block in table.split("\n\n"):
        rows = [row for row in block.splitlines() if row.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1, "a name made a column"
    for path in Path.cwd().rglob("*"):
        if path.suffix in (".json", ".jsonl", ".toml") and "ids" not in path.parts:
            assert not UNSEEN.search(path.read_text("utf-8")), path.name


@pytest.mark.parametrize("kind", ["colour", "direction", "lines"])
def test_hostile_names_in_errors(place, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    name = HOSTILE[kind].replace("/", ":") + "\nerror: forged"
    train, taught = ("train", "--data", "d", "--model", "bpr"), ("distill", "--data", "d", "--model", "bpr")
    source = place / "clicks.csv"
    for arguments in (
        [name], ["train", f"--{name}"], ["train", "--dim", name], ["train", name], ["train", "--data", name, "--model", "bpr"],
        ["train", "--data", "d", "--model", name], [*train, "--protocol", name], [*train, "--optimizer", name],
        [*train, "--set", name], [*train, "--set", f"{name}=1"], [*train, "--set", f"train.lr={name}"],
        [*train, "--seeds", name], [*train, "--device", name], [*train, "--set", f"teachers.{name}.model.name=bpr"],
        [*train, "--out", name, "--resume"], [*train, "--start", name],
        [*taught, "--method", name, "--teacher", name], [*taught, "--method", name], ["distill", "--teacher", name],
        [*taught, "--method", "rrd", "--teacher", "t", "--set", f"distill.0.{name}=1"],
        [*taught, "--method", "rrd", "--teacher", "t", "--set", f"distill.0.name={name}"],
        ["resume", name], ["eval", name], ["eval", "x", "--part", name], ["eval", "x", "--test", name],
        ["report", name, "--out", name], ["data", "prepare", name, "--out", "x"], ["data", "describe", name],
        ["data", "prepare", "x", "--preset", name, "--dry-run"], ["data", "fetch", name],
        ["data", "prepare", source, "--user", name, "--dry-run"], ["data", "prepare", source, "--split", name, "--dry-run"],
        ["data", "prepare", source, "--fractions", name, "--split", "ratio", "--dry-run"],
        ["models", "show", name], ["methods", "show", name], ["presets", "show", name], ["models", name],
    ):  # fmt: skip
        assert "\nerror: forged" not in bad(*arguments), arguments


def test_a_folder_of_seeds_with_a_hostile_name(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = HOSTILE["colour"].replace("/", ":")
    good("data", "prepare", place / "clicks.csv", "--out", "d", "--candidates", 20)
    good("train", "--data", "d", *FAST, "--dim", 2, "--epochs", 1, "--seeds", "0,1", "--out", name)
    error = bad("resume", name)
    assert quoted(Path(name) / "seed-0") in error
    (Path(name) / "seed-1/model.safetensors").unlink()
    bad("eval", f"{name}/seed-0", f"{name}/seed-1")
    Path(name, "seed-0/metrics.jsonl").write_text("{\x1b\n{}\n")
    bad("eval", f"{name}/seed-0")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode there")
def test_names_that_are_no_unicode(place, tmp_path, monkeypatch):
    """Bytes that are no UTF-8 come as lone surrogates."""
    monkeypatch.chdir(tmp_path)
    source = Path(shutil.copy(place / "clicks.csv", "c\udcff.csv"))
    good("data", "prepare", source, "--out", "d", "--candidates", 20)
    good("data", "prepare", source, "--out", "n\udcff", "--name", "fine")
    common = ("--data", "d", *FAST, "--dim", 2, "--epochs", 1)
    good("train", *common, "--out", "t")
    good("report", "t", "--out", "r\udcff")
    before = listing(tmp_path)
    assert "data.path is n\\udcff, which is no Unicode text" in bad("train", "--data", "n\udcff", *FAST, "--out", "x")
    assert "is no Unicode text" in bad("distill", *common, "--method", "rrd", "--teacher", "t\udcff", "--out", "x")
    assert "t\\udcff is no Unicode text\n  try: name another folder with --out" in bad(
        "train", *common, "--out", "t\udcff"
    )
    assert listing(tmp_path) == before
    Path("link").symlink_to("n\udcff")  # as the error says
    good("train", "--data", "link", *FAST, "--dim", 2, "--epochs", 1, "--out", "x")
    good("data", "prepare", source, "--name", "n\udcff", "--out", "y")
    assert good("data", "describe", "y", "--json").document["name"] == "n\\udcff"


def test_warnings_and_progress(monkeypatch, capsys):
    from kdrs.cli.output import messages, tell
    from kdrs.cli.progress import Progress

    with messages():
        warnings.warn(HOSTILE["colour"] + "\nsecond line", stacklevel=1)
    known = {
        "part": HOSTILE["c1"], "data": HOSTILE["lines"] + "\nforged", "users": 1, "items": 1, "pairs": 1, "model": "bpr",
        "parameters": 1, "device": "cpu", "skipped_pairs": 0, "teachers": {HOSTILE["direction"]: {"valid": {"ndcg@10": 0.1}}},
        "selects": ("ndcg@10",),
    }  # fmt: skip
    monkeypatch.setattr("kdrs.cli.progress.BETWEEN_LINES", 0.0)
    with Progress(3, quiet=False) as show:
        show.start(known)
        show.epoch({"epoch": 0, "loss": 1.0, "valid": {"ndcg@10": 0.5}})
    tell(HOSTILE["zero width"])
    found = capsys.readouterr().err
    assert not UNSEEN.search(found)
    assert len(found.splitlines()) == 6
    assert "\nepoch 0 of 0 to 2: loss 1, ndcg@10 0.5000, best 0.5000 at 0, at most 0 s left" in found


# --- one way out ----------------------------------------------------------------------------------------------------

STREAMS = ("sys.stdout", "sys.stderr")
WRITERS = {"cli/output.py", "cli/progress.py", "comparison/result.py"}
"""The files that may write to a stream: what goes through the first, a bar, and a comparison's own tables."""


def test_nothing_else_writes_to_a_stream():
    root = Path(package.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            name = (
                called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
            )
            on = ast.unparse(called.value) if isinstance(called, ast.Attribute) else ""
            writes = (name == "print" and not on) or name in ("echo", "secho", "Console") or on in STREAMS
            if writes and name not in ("isatty", "fileno", "flush"):
                found.add(path.relative_to(root).as_posix())
    assert found <= WRITERS


def test_shown_cuts_after_escaping():
    assert shown("\x1b" * 100) == "\\x1b" * 19 + "\\x1…"
