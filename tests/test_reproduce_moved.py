"""Recipes that were stopped, damaged, copied and moved: what is said of them, and that they go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Result, kdrs, ok
from kdrs.cli.stopping import Stopper
from kdrs.data import Dataset
from kdrs.studies.printed import write_results
from kdrs.studies.recipe import read_recipe, reproduce
from test_reproduce import place, values, written

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
