"""``kdrs`` from the first file to the report: streams, documents, precedence, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from commands import FAST, fails, kdrs, listing, ok, write_clicks
from kdrs.distillers import DISTILLERS
from kdrs.models import MODELS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared data set, a teacher, two students and one trained alone."""
    folder = tmp_path_factory.mktemp("cli")
    source = write_clicks(folder / "clicks.csv")
    ok("data", "prepare", source, "--out", folder / "d", "--candidates", 20)
    common = ("--data", folder / "d", *FAST)
    ok("train", *common, "--dim", 16, "--epochs", 6, "--out", folder / "teacher")
    taught = ("distill", *common, "--dim", 4, "--epochs", 3, "--teacher", folder / "teacher")
    ok(*taught, "--method", "rrd", "--set", "distill.0.pool=20", "--out", folder / "rrd")
    ok(*taught, "--method", "de", "--method", "rrd", "--weight", 0.1, "--weight", 0.01, "--out", folder / "sum")
    ok("train", *common, "--dim", 4, "--epochs", 3, "--seeds", "0..1", "--out", folder / "alone")
    return folder


def train(place: Path, *more: object) -> tuple[object, ...]:
    return ("train", "--data", place / "d", *FAST, "--dim", 4, "--epochs", 3, *more)


# --- the main job ---------------------------------------------------------------------------------------------------


def test_runs_are_left_complete(place):
    for name in ("teacher", "rrd", "sum", "alone/seed-0", "alone/seed-1"):
        assert json.loads((place / name / "STATUS.json").read_text())["status"] == "finished"
    config = tomllib.loads((place / "sum/config.toml").read_text())
    assert [(term["method"], term["weight"]) for term in config["distill"]] == [("de", 0.1), ("rrd", 0.01)]
    assert tomllib.loads((place / "rrd/config.toml").read_text())["distill"][0]["pool"] == 20
    known = json.loads((place / "rrd/teachers.json").read_text())[str(place / "teacher")]
    assert set(known) == {"valid", "test"}
    losses = json.loads((place / "sum/metrics.jsonl").read_text().splitlines()[-1])["losses"]
    assert set(losses) == {"base", "de", "rrd"}


def test_eval_compares(place):
    runs = [place / name for name in ("teacher", "rrd", "sum", "alone/seed-0", "alone/seed-1")]
    document = ok("eval", *runs, "--metrics", "hit@5,ndcg@10", "--json").document
    assert document["schema"] == 1
    rows = {row["name"]: row for row in document["runs"]}
    assert [(name, row["role"]) for name, row in rows.items()] == [
        ("teacher", "teacher"), ("rrd", "student"), ("sum", "student"), ("alone", "alone"),
    ]  # fmt: skip
    assert rows["alone"]["seeds"] == [0, 1]
    assert rows["rrd"]["n_parameters"] == 4 * 100
    assert set(rows["rrd"]["metrics"]) == {"hit@5 sampled(20)", "ndcg@10 sampled(20)"}
    quality = {name: row["metrics"]["hit@5 sampled(20)"]["mean"] for name, row in rows.items()}
    assert rows["rrd"]["share_of_teacher"]["hit@5 sampled(20)"] == pytest.approx(quality["rrd"] / quality["teacher"])
    stored = json.loads((place / "rrd/report.json").read_text())["parts"]["test"]["hit@5 sampled(20)"]
    assert quality["rrd"] == pytest.approx(stored)
    table = ok("eval", *runs, "--part", "valid", "--baseline", place / "rrd").out
    assert "against rrd" in table
    assert table.startswith("valid, sampled(20), 40 queries")


def test_eval_under_another_protocol(place):
    document = ok("eval", place / "rrd", "--protocol", "default", "--data", place / "d", "--json").document
    assert document["setting"] == "full"


def test_report_writes_every_form(place, tmp_path):
    result = ok("report", place / "teacher", place / "rrd", "--out", tmp_path / "new/report")
    forms = ("json", "md", "tex", "csv", "png", "svg", "pdf")
    assert [Path(line).name for line in result.out.splitlines()] == ["report.html", *(f"comparison.{f}" for f in forms)]
    assert json.loads((tmp_path / "new/report/comparison.json").read_text())["runs"]
    assert (tmp_path / "new/report/comparison.png").read_bytes().startswith(b"\x89PNG")
    help_ = ok("report", "--help").out
    assert all(said in help_ for said in ("report.html", ".json", ".md", ".tex", ".csv", ".png", ".svg", ".pdf"))


@pytest.mark.usefixtures("png_alone")
def test_a_report_takes_no_folder_of_something_else(place, tmp_path):
    (tmp_path / "notes").mkdir()
    for name in ("notes.txt", "comparison.md", "comparison.json"):
        (tmp_path / "notes" / name).write_text("{}")
    before = listing(tmp_path)
    error = fails(2, "report", place / "teacher", place / "rrd", "--out", tmp_path / "notes")
    assert "is not empty and holds no report of kdrs\n  try: name another folder with --out" in error
    assert listing(tmp_path) == before
    (tmp_path / "empty").mkdir()
    for _ in range(2):  # the second time over the first
        ok("report", place / "teacher", place / "rrd", "--out", tmp_path / "empty")


def test_resume_lengthens_a_run(place, tmp_path):
    ok(*train(place, "--out", tmp_path / "a"))
    document = ok("resume", tmp_path / "a", "--epochs", 5, "--json").document
    assert document["epochs"] == 5
    ok(*train(place, "--out", tmp_path / "b", "--epochs", 5))
    for name in ("model.safetensors", "config.toml", "report-test.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = ok("resume", tmp_path / "a", "--json").document
    assert again["parts"] == document["parts"]


@pytest.mark.parametrize("how", ["resume", "train --resume"])
def test_resume_on_another_machine(place, tmp_path, how):
    """Device and threads may be others; they are checked as ever, and config.toml is brought up to date."""
    run = tmp_path / "run"
    ok(*train(place, "--threads", 1, "--out", run))
    again = ("resume", run) if how == "resume" else train(place, "--out", run, "--resume")
    assert "threads is 0" in fails(2, *again, "--threads", 0)
    assert "device is tpu" in fails(2, *again, "--device", "tpu")
    result = ok(*again, "--epochs", 4, "--threads", 2, "--device", "auto")
    assert "started with 1 torch threads, now there are 2" in result.err
    config = tomllib.loads((run / "config.toml").read_text())
    assert (config["threads"], config["device"], config["train"]["epochs"]) == (2, "auto", 4)


def test_seeds_that_were_stopped_say_how_to_go_on(place, tmp_path, monkeypatch):
    folder = tmp_path / "s"
    seeds = train(place, "--seeds", "0..2", "--out", folder, "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr("kdrs.cli.stopping.Stopper.asked", lambda _: (folder / "seed-1").exists())
        result = kdrs(*seeds)
    assert result.code == 130
    message = f"interrupted; seeds finished: 0; left: 1, 2; go on with the same command, --out {folder} and --resume\n"
    assert result.err == message
    error = fails(4, "resume", folder)
    assert "it holds one a seed, seed-0, seed-1\n" in error
    assert "the command that began them, with --resume, goes on with all" in error
    result = ok(*seeds, "--resume")
    assert result.err == ""
    assert "seeds                              3                3" in result.out


def test_a_run_is_repeated_by_its_own_config(place, tmp_path):
    ok("distill", place / "rrd/config.toml", "--out", tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (place / "rrd/model.safetensors").read_bytes()


def test_seeds(place, tmp_path):
    result = ok(*train(place, "--seeds", "1,3", "--out", tmp_path / "s", "--json"))
    document = result.document
    assert (document["schema"], document["seeds"], document["failed"]) == (1, [1, 3], {})
    metric = document["parts"]["test"]["ndcg@10 sampled(20)"]
    assert metric["n"] == 2
    assert metric["mean"] == pytest.approx(sum(metric["values"]) / 2)
    alone = (place / "alone/seed-1/model.safetensors").read_bytes()
    assert (tmp_path / "s/seed-1/model.safetensors").read_bytes() == alone
    ok(*train(place, "--seed", 1, "--out", tmp_path / "one"))
    assert (tmp_path / "one/model.safetensors").read_bytes() == alone
    more = ok(*train(place, "--seeds", "1,2,3", "--out", tmp_path / "s", "--resume", "--json")).document
    assert more["seeds"] == [1, 2, 3]
    assert more["parts"]["test"]["ndcg@10 sampled(20)"]["values"][::2] == metric["values"]


@pytest.mark.parametrize("other", [("--dim", 5), ("--model", "elsa"), ("--lr", 0.5)])
@pytest.mark.parametrize("resume", [("--resume",), ()])
def test_seeds_of_other_options_are_not_added(place, tmp_path, other, resume):
    """Neither trained nor left half: a comparison would take them for seeds of one model."""
    ok(*train(place, "--seeds", "0,1", "--out", tmp_path / "s"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    error = fails(2, *train(place, *other, "--seeds", "0..2", "--out", tmp_path / "s", *resume))
    assert f"seed-0 was started with {'model.name' if other[0] == '--model' else ''}" in error
    assert "seeds of one model differ in nothing else" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_single_number_of_seeds_says_what_it_is(place, tmp_path):
    result = ok(*train(place, "--seeds", "3", "--out", tmp_path / "s"))
    assert result.err.splitlines()[0] == "--seeds 3 is one run, with seed 3; 3 runs are --seeds 0..2"
    assert ": seed 3 alone\n" in result.out
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["seed-3"]
    several = ok(*train(place, "--seeds", "0,1", "--out", tmp_path / "t"))
    assert "is one run" not in several.err
    assert ": seeds 0, 1; mean ± standard deviation\n" in several.out
    assert "N seeds" in ok("train", "--help").out


def test_a_failing_seed_is_listed_and_the_others_count(place, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/seed-1").write_text("in the way")
    result = kdrs(*train(place, "--seeds", "0..2", "--out", tmp_path / "s", "--json"))
    assert result.code == 1
    assert result.document["seeds"] == [0, 2]
    assert "no run directory" in result.document["failed"]["1"]
    assert "seed 1 failed: " in result.err
    assert "error: 1 of 3 seeds failed: [1]\n  try: see to the causes above; the same command with --out" in result.err


def test_without_out_every_run_gets_its_own_folder(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [Path(ok(*train(place, "--epochs", 1, "--json")).document["run"]) for _ in range(2)]
    assert runs[0] != runs[1]
    for run in runs:
        assert run.parts[:3] == ("runs", "d", "bpr")
        assert (run / "model.safetensors").is_file()


# --- documents and streams ------------------------------------------------------------------------------------------


def test_results_go_to_stdout_and_the_rest_to_stderr(place, tmp_path):
    result = ok(*train(place, "--out", tmp_path / "a"))
    assert re.fullmatch(r".*a: 3 epochs, best is [012], stopped by epochs", result.out.splitlines()[0])
    pairs = json.loads((place / "teacher/data.json").read_text())["pairs"]["train"]
    sizes = f"40 users, 60 items, {pairs:,} training pairs"
    assert result.err == f"clicks: {sizes}; bpr with 400 parameters on cpu\n"
    assert ok(*train(place, "--out", tmp_path / "b", "--quiet")).err == ""
    document = ok(*train(place, "--out", tmp_path / "c", "--json")).document
    assert document["schema"] == 1
    assert document["run"] == str(tmp_path / "c")
    assert document["parts"] == json.loads((tmp_path / "c/report.json").read_text())["parts"]


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize("seeds", [(), ("--seeds", "0..1")])
def test_a_dry_run_writes_nothing(place, tmp_path, monkeypatch, form, seeds):
    monkeypatch.chdir(tmp_path)
    before = listing(place / "teacher")
    options = ("--teacher", place / "teacher", "--method", "rrd", "--dry-run", *seeds, *form)
    result = ok("distill", *train(place)[1:], *options)
    assert not list(tmp_path.iterdir())
    assert listing(place / "teacher") == before
    plan = result.document if form else tomllib.loads(result.out)
    config = plan["config"] if form else plan
    assert config["distill"][0]["method"] == "rrd"
    if form:
        assert (plan["schema"], plan["users"], plan["parameters"]) == (1, 40, 400)
        assert plan["memory_bytes"] > 0


def test_a_printed_plan_is_a_run_file(place, tmp_path):
    plan = ok(*train(place, "--dry-run")).out
    (tmp_path / "run.toml").write_text(plan)
    ok("train", tmp_path / "run.toml", "--out", tmp_path / "a")
    ok(*train(place, "--out", tmp_path / "b"))
    assert (tmp_path / "a/config.toml").read_bytes() == (tmp_path / "b/config.toml").read_bytes()


def test_options_win_over_set_and_set_over_the_file(place, tmp_path):
    file = tmp_path / "run.toml"
    values = {"data": {"path": str(place / "d")}, "model": {"name": "bpr", "dim": 3}}
    values["train"] = {"lr": 0.1, "epochs": 7, "patience": 2}
    file.write_text(tomli_w.dumps(values))

    def resolved(*more: object) -> dict:
        return ok("train", file, *more, "--dry-run", "--json").document["config"]

    plain = resolved()
    assert (plain["train"]["lr"], plain["train"]["epochs"], plain["model"]["dim"]) == (0.1, 7, 3)
    given = resolved("--set", "train.lr=0.2", "--set", "model.dim=5", "--epochs", 9)
    assert (given["train"]["lr"], given["train"]["epochs"], given["model"]["dim"]) == (0.2, 9, 5)
    assert resolved("--epochs", 9, "--set", "train.epochs=8")["train"]["epochs"] == 9
    assert resolved("--set", "train.lr=0.2", "--set", "train.lr=0.3")["train"]["lr"] == 0.3
    assert given["train"]["patience"] == 2


def test_methods_are_listed_by_what_was_measured():
    """The tuned ones first, by their transfer ratios; every method once, also one that nobody measured."""
    document = ok("methods", "--json").document
    lines = ok("methods", "list").out.splitlines()
    end = lines.index("")
    listed = [line.split()[0] for line in lines[1:end]]
    assert sorted(listed) == sorted(DISTILLERS)
    figures = document["measured"]
    assert set(figures) <= set(DISTILLERS)
    ratios = [figures[name]["ratios"].get("tuned") for name in listed if name in figures]
    tuned = [ratio for ratio in ratios if ratio is not None]
    assert tuned
    assert ratios[: len(tuned)] == sorted(tuned, reverse=True)
    for name, line in zip(listed, lines[1:end], strict=True):
        assert line.endswith(figures[name]["when"] if name in figures else document["entries"][name])
        for setting, ratio in figures.get(name, {"ratios": {}})["ratios"].items():
            hidden = setting == "chains" and "published" in figures[name]["ratios"]
            mark = ("*" if setting == "chains" else "") + ("¹" if figures[name]["seeds"][setting] == 1 else " ")
            assert f"{ratio:.2f}{mark}" in line or hidden, (name, setting)
    for text in document["settings"].values():
        assert text in ok("methods").out


def test_catalogues():
    assert set(ok("models", "--json").document["entries"]) == set(MODELS)
    assert set(ok("methods", "list", "--json").document["entries"]) == set(DISTILLERS)
    for name in DISTILLERS:
        entry = ok("methods", "show", name, "--json").document
        assert entry["reference"]
        assert all(option["meaning"] for option in entry["options"].values()), name
    for name in MODELS:
        options = ok("models", "show", name, "--json").document["options"]
        assert options["dim"]["default"] in (64, 128)
        assert all(option["meaning"] for option in options.values()), name
        assert name in ok("models").out
    text = ok("methods", "show", "rrd").out
    for word in ("CIKM 2020", "Differs from the authors' code", "pool = 500", "needs of a teacher"):
        assert word in text


def test_catalogues_say_what_is_allowed():
    def options(*show: str) -> dict:
        return ok(*show, "--json").document["options"]

    hyperkdma, bpr = options("methods", "show", "hyperkdma"), options("models", "show", "bpr")
    assert bpr["dim"]["allowed"] == {"type": "integer", "minimum": 1}
    assert bpr["negative_reduction"]["allowed"]["enum"] == ["sum", "mean"]
    assert hyperkdma["final_temperature"]["allowed"] == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    assert any(one.get("const") == "given" for one in hyperkdma["assistants"]["allowed"]["anyOf"])
    for show in [("methods", "show", name) for name in DISTILLERS] + [("models", "show", name) for name in MODELS]:
        found = options(*show)
        assert all("allowed" in option for name, option in found.items() if name not in ("teacher", "name")), show
        assert ok(*show).out.count("\n      allowed: ") == len(found.keys() - {"teacher", "name"})
    text = ok("methods", "show", "hyperkdma").out
    for name, words in {
        "hint": '"de", "phr"',
        "final_temperature": "a number, above 0, at most 1",
        "ta_dims": "a list of 1 or more, each a whole number, 1 or more",
    }.items():
        folded = re.escape(words).replace("\\ ", r"\s+")
        assert re.search(rf"^  {name} = .*\n(      .*\n)+?      allowed: {folded}$", text, re.MULTILINE), name


@pytest.mark.parametrize(("method", "chain"), [("takd", 8), ("dgkd", 8), ("hyperkdma", 0), ("rrd", None)])
def test_methods_show_the_options_of_their_entry(place, method, chain):
    options = ok("methods", "show", method, "--json").document["options"]
    assert list(options)[:3] == ["teacher", "weight", "name"]
    assert "default" not in options["teacher"]
    assert options["weight"]["default"] == DISTILLERS[method].default_weight
    assert options["name"]["default"] == method
    assert options.get("chain", {}).get("default") == chain
    text = ok("methods", "show", method).out
    assert (f"\n  chain = {chain}\n" in text) == (chain is not None)
    assert f"\n  weight = {options['weight']['default']}\n" in text
    # what is shown is what an entry may state
    values = [f"--set=distill.0.{name}={json.dumps(o['default'])}" for name, o in options.items() if o.get("default")]
    ok("distill", *train(place)[1:], "--teacher", place / "teacher", "--method", method, *values, "--dry-run")


def test_doctor(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = ok("doctor", "--json").document
    assert found["problems"] == []
    assert found["core"] == "works"
    assert found["torch"]
    assert "working_folder" in ok("doctor").out
    assert not list(tmp_path.iterdir())


# --- wrong use ------------------------------------------------------------------------------------------------------

TAUGHT = ("--model", "bpr", "--method", "cd", "--teacher", "{rrd}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command trian\n  try: did you mean 'train'? allowed: "),
        (["data", "prepar"], "No such command prepar\n  try: did you mean 'prepare'? allowed: "),
        (["train", "--dimm", "3"], "No such option: --dimm"),
        (["train", "--data", "{d}", "--model", "bpr", "--method", "rrd"], "kdrs distill\n"),
        (["train", "--dim"], "Option '--dim' requires an argument"),
        (["train", "--dim", "x"], "Invalid value for '--dim'"),
        (["train", "a.toml", "b.toml"], "unexpected extra argument"),
        (["eval"], "no run is named"),
        (["train"], "no data set is given\n  try: give one with --data"),
        (["train", "--set", "data=3"], "model.name is missing"),
        (["train", "--set", "data=3", "--model", "bpr"], "data is 3\n  try: write it as a table: [data]"),
        (["train", "no.toml"], "cannot read no.toml: No such file"),
        (["train", "--data", "{d}", "--model", "bpq"], "unknown model 'bpq'\n  try: did you mean 'bpr'?"),
        (["train", "--data", "{d}", "--model", "bpr", "--protocol", "caesar"], "unknown protocol 'caesar'"),
        (["train", "--data", "{d}", "--model", "bpr", "--optimizer", "sgd"], "train.optimizer is sgd"),
        (["train", "--data", "{d}", "--model", "bpr", "--set", "train.lrr=1"], "'train.lrr'\n  try: did you mean 'lr'?"),
        (["train", "--data", "{d}", "--model", "bpr", "--set", "lr"], "write it as --set train.lr=1e-3"),
        (["train", "--data", "{d}", "--model", "bpr", "--seeds", "3..1"], "--seeds is 3..1\n  try: write it as 0..4 or 0,1,2"),
        (["train", "--data", "{d}", "--model", "bpr", "--seeds", "1,1", "--dry-run"], "--seeds is 1,1"),
        (["train", "--data", "{d}", "--model", "bpr", "--resume", "--out", "none"], "none holds no run to resume"),
        (["train", "--data", "{d}", "--model", "bpr", "--resume", "--seeds", "0,1"], "try: name its directory with --out"),
        (["train", "--data", "{d}", "--model", "bpr", "--seeds", "0,1", "--seed", "3"], "--seed 3 and --seeds 0,1 are both"),
        (["distill", "--data", "{d}", *TAUGHT, "--seeds", "0,1", "--seed", "0"], "--seed 0 and --seeds 0,1 are both given"),
        (["train", "--data", "{d}", "--model", "bpr", "--set", 'train.select=["hit@7"]'], "selected by hit@7, which is not"),
        (["train", "{rrd}/config.toml"], "has [[distill]] terms\n  try: use kdrs distill"),
        (["distill", "--data", "{d}", "--model", "bpr"], "nothing to distil"),
        (["distill", "--data", "{d}", "--model", "bpr", "--method", "rrd"], "method 'rrd' has no teacher"),
        (["distill", "--data", "{d}", "--model", "bpr", "--method", "rrdd", "--teacher", "{rrd}"], "did you mean 'rrd'?"),
        (["distill", "--data", "{d}", *TAUGHT, "--weight", "1", "--weight", "2"], "got 2 weights for 1 methods"),
        (["distill", "--data", "{d}", *TAUGHT, "--method", "de", "--weight", "1"], "got 1 weights for 2 methods"),
        (["distill", "{rrd}/config.toml", "--weight", "1"], "is changed by --set distill.0.weight=NUMBER"),
        (["distill", "{rrd}/config.toml", "--teacher", "{rrd}"], ", and model.dim is 4\n  try: give one with --method"),
        (["eval", "{rrd}", "--metrics", "hits@5"], "no 'hits@5'\n  try: "),
        (["eval", "{rrd}", "--metrics", "ndcg@0"], "no 'ndcg@0'\n  try: "),
        (["eval", "{rrd}", "--metrics", "ndcg@x"], "no 'ndcg@x'\n  try: "),
        (["eval", "{rrd}", "--test", "bootstrap"], "test bootstrap has nothing to compare: no run was trained alone"),
        (["eval", "{d}/../teacher", "--test", "bootstrap"], "nothing to compare: there is only teacher"),
        (["eval", "{rrd}", "--part", "tset"], "--part is tset\n  try: did you mean 'test'?"),
        (["eval", "{rrd}", "--test", "student"], "allowed: bootstrap, randomisation"),
        (["eval", "{rrd}", "{d}/../rrd"], "is given twice"),
        (["eval", "{rrd}", "{d}/../teacher", "--baseline", "sum"], "no run is called 'sum'"),
        (["methods", "show", "rrdd"], "unknown method 'rrdd'\n  try: did you mean 'rrd'?"),
        (["models", "show", "bp"], "did you mean 'bpr'?"),
    ],
)  # fmt: skip
def test_wrong_use_is_code_2(place, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {"d": place / "d", "rrd": place / "rrd"}
    assert message in fails(2, *(argument.format(**names) for argument in arguments))
    assert not list(tmp_path.iterdir())


def test_a_traceback_only_with_debug(place, monkeypatch):
    monkeypatch.setenv("KDRS_DEBUG", "")  # what --debug sets, put back afterwards
    assert "Traceback" not in fails(2, "train", "--data", place / "d", "--model", "bpq")
    from kdrs.errors import ConfigError

    with pytest.raises(ConfigError, match="unknown model"):
        kdrs("--debug", "train", "--data", place / "d", "--model", "bpq")


def test_an_internal_error_says_how_to_report_it(monkeypatch):
    monkeypatch.setattr("kdrs.runs.environment.examine", lambda: 1 / 0)
    result = kdrs("doctor")
    assert result.code == 1
    assert result.err == (
        "error: internal: ZeroDivisionError: division by zero\n"
        "  try: kdrs --debug ... for the traceback, and report it with the output of kdrs doctor\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 5, "out of memory"),
        (OSError(28, "No space left on device", "runs/x"), 5, "cannot read or write runs/x: No space left on device"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_of_the_machine(monkeypatch, error, code, message):
    def examine() -> None:
        raise error

    monkeypatch.setattr("kdrs.runs.environment.examine", examine)
    result = kdrs("doctor")
    assert result.code == code
    assert message in result.err


# --- processes of their own -----------------------------------------------------------------------------------------

HELP = """
import sys, contextlib, io
import kdrs
from kdrs.cli import main
heavy = {"torch", "numpy", "scipy", "polars", "matplotlib", "safetensors", "pydantic"}
for command in ([], ["train"], ["distill"], ["eval"], ["report"], ["resume"], ["doctor"], ["data"], ["data", "prepare"],
                ["models"], ["models", "show"], ["methods"]):
    sys.argv = ["kdrs", *command, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as leaving:
            assert leaving.code == 0, command
    assert "Usage" in out.getvalue()
    assert not heavy & set(sys.modules), (command, heavy & set(sys.modules))
    heavy.discard("pydantic")  # typer's own way of checking the options of a command
"""


def test_help_imports_nothing_heavy():
    subprocess.run([sys.executable, "-c", HELP], check=True)


def test_a_process_of_its_own(place, tmp_path):
    arguments = [str(a) for a in train(place, "--out", tmp_path / "run", "--json")]
    done = subprocess.run([sys.executable, "-m", "kdrs", *arguments], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["epochs"] == 3
    assert "\x1b" not in done.stderr
    assert (tmp_path / "run/model.safetensors").read_bytes() == (place / "alone/seed-0/model.safetensors").read_bytes()


@pytest.mark.parametrize("command", [["train", "--help"], ["data", "fetch", "list"]])
def test_a_closed_stdout_is_no_traceback(command):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "kdrs", *command], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 1
