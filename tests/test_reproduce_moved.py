"""Recipes that were stopped, damaged, copied and moved: what is said of them, and that they go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from commands import Result, fails, kdrs, ok
from kdrs.cli.stopping import Stopper
from kdrs.data import Dataset
from kdrs.studies.printed import write_results
from kdrs.studies.recipe import read_recipe, reproduce
from test_reproduce import FEW, place, values, written

__all__ = ["place"]
pytestmark = pytest.mark.filterwarnings("ignore:.*(rising when|an epoch takes|transfer ratio)")


def stopped(monkeypatch: pytest.MonkeyPatch, file: Path, out: Path, there: Path) -> Result:
    """The command, asked to stop once something is there."""
    with monkeypatch.context() as patch:
        patch.setattr(Stopper, "asked", lambda self: there.exists())
        return kdrs("reproduce", file, "--out", out, "--quiet")


@pytest.mark.parametrize(("name", "text"), [("study.toml", "arms = 3\n"), ("trials/run/0000.json", "{")])
def test_a_page_that_cannot_be_written_hides_no_interruption(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    study = values(place)["studies"]["tuned"]
    file, out = (
        written(tmp_path / "r.toml", values(place, runs={"one": {}}, studies={"tuned": study})),
        tmp_path / "out",
    )
    assert stopped(monkeypatch, file, out, out / "studies/tuned/trials/run/0000.json").code == 130
    (out / "studies/tuned" / name).write_text(text)
    result = stopped(monkeypatch, file, out, file)
    assert result.code == 130
    first, second = result.err.splitlines()
    assert first == f"interrupted; go on with the same command: kdrs reproduce {file} --out {out}"
    assert second.startswith("warning: what there is so far could not be written: ")
    assert Path(name).name in second


def test_the_page_reads_no_whole_data_set(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its protocols are told by options, and by the head of the data set where they say auto."""
    studies = {"tuned": values(place)["studies"]["tuned"]}
    given = values(
        place, metrics=["ndcg@10"], runs={"one": {}, "other": {"eval": {"protocol": "kds"}}}, studies=studies
    )
    out = tmp_path / "out"
    made = reproduce(read_recipe(written(tmp_path / "r.toml", given), out), out)
    made.studies.clear()  # their records are read, as after Ctrl-C
    made.interrupted = True

    def never(path: object) -> Dataset:
        raise AssertionError(path)

    monkeypatch.setattr(Dataset, "load", never)
    found = write_results(made).values
    assert [run["protocol"] for run in found["runs"].values()] == ["default", "kds"]
    assert found["studies"]["tuned"]["run"]["protocol"] == "default"


def test_seeds_of_a_study_that_was_stopped_are_told_as_those_of_runs(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = values(place)["studies"]["tuned"]
    study["sweep"]["seeds"] = [0, 1]
    given = values(place, metrics=["ndcg@10"], runs={"one": {"seeds": [0, 1]}}, studies={"tuned": study})
    file, out = written(tmp_path / "r.toml", given), tmp_path / "out"

    def seeds(head: str) -> str:
        """Of the first row of the table whose first column is called so."""
        lines = [line.strip("| ").split(" | ") for line in (out / "results.md").read_text().splitlines()]
        at = next(at for at, cells in enumerate(lines) if cells[0] == head)
        return lines[at + 2][lines[at].index("seeds")]

    stopped(monkeypatch, file, out, out / "runs/one/seed-0/report.json")
    assert seeds("run") == "1 of 2"
    stopped(monkeypatch, file, out, out / "studies/tuned/best/run/seed-0/report.json")
    assert seeds("arm") == "1 of 2"
    ok("reproduce", file, "--out", out, "--quiet")
    assert seeds("arm") == "2"


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_a_copied_or_moved_recipe_goes_on(place: Path, tmp_path: Path, how: str) -> None:
    """Its studies too, with all that they have: best runs of every seed, and teachers that are searched."""
    distill = [{"method": "cd", "teacher": "big", "pool": 20, **FEW}]
    space = {"distill.0.teacher": ["big", "wide"], "distill.0.weight": [0.1, 0.5]}
    sweep = {"trials": 2, "batch": 1, "sampler": "random", "alone": False, "seeds": [0, 1], "space": space}
    runs = {"big": {"model": {"dim": 12}}, "wide": {"model": {"dim": 16}}, "one": {}}
    given = values(place, metrics=["ndcg@10"], runs=runs, studies={"which": {"distill": distill, "sweep": sweep}})
    file, out, new = written(tmp_path / "r.toml", given), tmp_path / "a/out", tmp_path / "b/copy"
    ok("reproduce", file, "--out", out, "--quiet")
    new.parent.mkdir()
    if how == "copied":
        shutil.copytree(out, new)
    else:
        shutil.move(out, new)
    shutil.rmtree(new / "runs/one")
    study = new / "studies/which"
    trained = {path: path.read_bytes() for path in study.rglob("model.safetensors")}
    shutil.rmtree(study / "best/cd/seed-1")
    result = ok("reproduce", file, "--out", new)
    assert "which, cd 1: " in result.err
    assert (new / "runs/one/seed-0/report.json").is_file()
    assert not (study / "former").exists()
    assert {path: path.read_bytes() for path in study.rglob("model.safetensors")} == trained
    own = [study / "study.toml", study / "best/cd.toml", *study.glob("trials/cd/*.json")]
    assert len(own) == 4
    assert not any(str(out) in path.read_text() for path in own)
    assert ok("reproduce", file, "--out", new, "--json", "--quiet").document["studies"]["which"]["cd"]["test"]["n"] == 2
    sweep["space"] = {**space, "distill.0.teacher": ["wide", "big"]}
    other = written(tmp_path / "other.toml", given)
    shutil.move(new, out.parent / "again")
    error = fails(2, "reproduce", other, "--out", out.parent / "again", "--quiet")
    assert "holds a study of another arms.cd.space.distill.0.teacher" in error
