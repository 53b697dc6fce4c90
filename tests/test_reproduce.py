"""Recipes: runs and studies in order, stopped and gone on with, beside what was printed."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from commands import fails, kdrs, ok
from conftest import toy_dataset
from kdrs.cli.stopping import Stopper
from kdrs.data import Dataset
from kdrs.errors import ArtefactError
from kdrs.runs.directory import Run
from kdrs.runs.opened import load_run
from kdrs.runs.values import to_toml
from kdrs.studies.found import so_far
from kdrs.studies.printed import write_results
from kdrs.studies.recipe import read_recipe, reproduce

pytestmark = pytest.mark.filterwarnings("ignore:.*(rising when|an epoch takes|transfer ratio)")
FEW = {"items": 5}
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reproduce")
    toy_dataset(candidates=None).save(folder / "toy")
    return folder


def values(place: Path, **changed: Any) -> dict[str, Any]:
    study = {
        "distill": [{"method": "cd", "teacher": "tuned", "pool": 20, **FEW}],
        "sweep": {"trials": 2, "sampler": "random", "space": {"distill.0.weight": [0.1, 0.5, 1.0]}},
    }
    tuned = {
        "model": {"dim": 8},
        "sweep": {"trials": 2, "sampler": "random", "space": {"train.lr": [0.01, 0.02, 0.05]}},
    }
    return {
        "title": "A recipe",
        "about": ["A sentence."],
        "metrics": ["ndcg@10", "hit@5"],
        "data": {"path": str(place / "toy")},
        "run": {
            "device": "cpu",
            "threads": 1,
            "model": {"name": "bpr", "dim": 4},
            "train": {"epochs": 2, "batch_size": 64, "lr": 0.02},
        },
        "runs": {
            "student": {
                "distill": [{"method": "rrd", "teacher": "big", "pool": 20, "interesting": 4, "uninteresting": 4}],
                "seeds": [3, 5],
            },
            "big": {
                "model": {"dim": 12},
                "printed": {"ndcg@10": 0.25},
                "source": "table 1",
                "note": "As in the paper.",
            },
            "taught": {"distill": [{"method": "cd", "teacher": "tuned", "pool": 20, **FEW}]},
            "pupil": {"distill": [{"method": "cd", "teacher": "search", "pool": 20, **FEW}]},
        },
        "studies": {"search": study, "tuned": tuned},
        **changed,
    }


def written(file: Path, given: dict[str, Any]) -> Path:
    file.write_bytes(to_toml(given))
    return file


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    file = written(place / "recipe.toml", values(place))
    made = reproduce(read_recipe(file, place / "whole"), place / "whole")
    assert not made.failed, made.failed
    write_results(made, picture=False)
    return place / "whole"


def test_each_learns_from_what_it_names(whole: Path) -> None:
    student = Run.open(whole / "runs/student/seed-5").config
    assert Path(student["distill"][0]["teacher"][0]).samefile(whole / "runs/big/seed-0")
    taught = Run.open(whole / "runs/taught/seed-0").config
    assert Path(taught["distill"][0]["teacher"][0]).samefile(whole / "studies/tuned/best/run/seed-0")
    assert student["train"]["seed"] == 5
    pupil = Run.open(whole / "runs/pupil/seed-0").config  # of a study that declares no arms: the one that is taught
    assert Path(pupil["distill"][0]["teacher"][0]).samefile(whole / "studies/search/best/cd/seed-0")


def test_the_page_states_what_was_found(whole: Path) -> None:
    page = (whole / "results.md").read_text()
    found = json.loads((whole / "results.json").read_text())
    mean = Run.open(whole / "runs/big/seed-0")
    value = json.loads((mean.path / "report.json").read_text())["parts"]["test"]["ndcg@10"]
    assert found["runs"]["big"]["seeds"]["0"]["values"]["ndcg@10"] == value
    assert f"{value:.4f} | 0.2500" in page
    assert "As in the paper." in page
    assert "table 1" in page
    for study in ("search", "tuned"):
        assert f"## {study}" in page
    assert set(found["studies"]["search"]) == {"alone", "cd"}
    assert "±" in page, "two seeds have a spread"
    assert (whole / "report/report.html").is_file()
    assert "protocol" not in page, "all have the same"


def test_the_report_has_all_in_the_recipes_order(whole: Path) -> None:
    """Whichever ended first: big before student, which learns from it. Studies take part with the runs of their best points."""
    with (whole / "report/comparison.csv").open() as file:
        models = dict.fromkeys(row["model"] for row in csv.DictReader(file))
    assert list(models) == ["student", "big", "taught", "pupil", "alone", "cd", "run"]


def test_runs_of_studies_say_where_they_come_from(whole: Path) -> None:
    found = json.loads((whole / "results.json").read_text())
    page = (whole / "results.md").read_text()
    for study, arm in (("search", "cd"), ("tuned", "run")):
        known = found["studies"][study][arm]
        (run,) = known["seeds"].values()
        assert run["values"]["ndcg@10"] == known["test"]["mean"]
        assert set(run["values"]) == {"ndcg@10", "hit@5"}
        assert run["origin"]["command"]
        assert run["origin"]["commit"][:12] in page


def test_studies_alone_are_compared_and_protocols_told(place: Path, tmp_path: Path) -> None:
    tuned = values(place)["studies"]["tuned"]
    studies = {"other": {**tuned, "model": {"dim": 6}, "eval": {"protocol": "kds"}}, "tuned": tuned}
    given, out = values(place, metrics=["ndcg@10"], runs={}, studies=studies), tmp_path / "out"
    ok("reproduce", written(tmp_path / "r.toml", given), "--out", out)
    page = (out / "results.md").read_text()
    assert page.index("Measured by the protocol kds.") < page.index("Measured by the protocol default.")
    assert "do not compare" in page
    assert "cores, torch" in page
    with (out / "report/comparison.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_mean_says_of_how_many_seeds_it_is(place: Path, tmp_path: Path) -> None:
    out, runs = tmp_path / "out", {"one": {"seeds": [0, 1, 2]}, "other": {"eval": {"protocol": "kds"}}}
    file = written(tmp_path / "r.toml", values(place, metrics=["ndcg@10"], runs=runs, studies={}))
    ok("reproduce", file, "--out", out, "--dry-run")
    (out / "runs/one/seed-1").mkdir(parents=True)
    (out / "runs/one/seed-1/mine.txt").touch()
    result = kdrs("reproduce", file, "--out", out)
    assert result.code == 1
    assert "1 run failed: one, seed 1" in result.err
    assert "| one | 1 failed, 2 finished | default | 2 of 3 |" in result.out
    assert "| other | finished | kds | 1 |" in result.out


def test_what_was_stopped_has_a_page(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_tuned = {"distill": [{"method": "cd", "teacher": "tuned", "pool": 20, **FEW}]}
    given = values(place, runs={"one": {}, "taught": from_tuned})
    file, out = written(tmp_path / "r.toml", given), tmp_path / "out"

    def stopped_once(there: Path) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(Stopper, "asked", lambda self: there.exists())
            result = kdrs("reproduce", file, "--out", out)
        assert result.code == 130
        assert "what there is so far" in result.err
        assert not (out / "report").exists()
        return (out / "results.md").read_text()

    page = stopped_once(out / "studies/tuned/trials/run/0000.json")
    assert "| one | finished | 1 |" in page
    assert "| taught | not begun | 0 of 1 |" in page
    assert "What its records hold so far." in page[page.index("## tuned") :]
    assert "Not begun." in page[page.index("## search") : page.index("## tuned")]
    made = reproduce(read_recipe(file, out), out)
    write_results(made, picture=False)
    whole, table = (out / "results.md").read_text(), r"^\| (?:run|alone|cd) \|.*$"
    for path in (out / "report").iterdir():
        path.unlink()
    (out / "report").rmdir()
    again = stopped_once(file)  # before any study is looked at
    assert re.findall(table, again, re.MULTILINE) == re.findall(table, whole, re.MULTILINE)
    damaged = out / "studies/tuned/study.toml"
    damaged.write_text("arms = 3\n")
    with pytest.raises(ArtefactError, match=r"study\.toml: arms is 3"):
        so_far(damaged.parent)


def test_a_run_that_was_begun_otherwise_is_named(place: Path, tmp_path: Path) -> None:
    """Before anything is trained; and a study, once it is its turn."""
    runs: dict[str, Any] = {"one": {}, "two": {}}
    studies = {"tuned": values(place)["studies"]["tuned"]}
    out = tmp_path / "out"
    ok("reproduce", written(tmp_path / "r.toml", values(place, runs=runs, studies=studies)), "--out", out, "--quiet")

    def refused(**changed: Any) -> str:
        given = values(place, **{"runs": runs, "studies": studies, **changed})
        return fails(2, "reproduce", written(tmp_path / "other.toml", given), "--out", out, "--quiet")

    error = refused(runs={"new": {}, "one": {}, "two": {"train": {"lr": 0.5}}})
    assert "runs.two, seed 0: the run was started with train.lr = 0.02, now it is 0.5" in error
    assert not (out / "runs/new").exists()
    changed = {"tuned": {**studies["tuned"], "model": {"dim": 6}}}
    error = refused(studies=changed)
    assert "studies.tuned: " in error
    assert "holds a study of another arms.run.run.model.dim" in error
    # as the remedy says
    more = {"runs": {**runs, "three": {"train": {"lr": 0.5}}}, "studies": studies}
    ok("reproduce", written(tmp_path / "more.toml", values(place, **more)), "--out", out, "--quiet")


def test_stopped_anywhere_it_ends_the_same(whole: Path, place: Path) -> None:
    file, out = place / "recipe.toml", place / "stopped"
    for most in (3, 9, 20, 10**9):
        calls = iter(range(10**9))
        made = reproduce(read_recipe(file, out), out, should_stop=lambda c=calls, m=most: next(c) > m)
    assert not made.interrupted
    write_results(made, picture=False)
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (whole, out))
    for name, run in one["runs"].items():
        for seed, known in run["seeds"].items():
            assert other["runs"][name]["seeds"][seed]["values"] == known["values"]
    for left, right in zip(sorted(whole.glob("runs/*/*/model*")), sorted(out.glob("runs/*/*/model*")), strict=True):
        assert left.read_bytes() == right.read_bytes()


@pytest.mark.slow
def test_the_command_with_two_jobs(ready: None, whole: Path, place: Path) -> None:
    file, out = place / "recipe.toml", place / "jobs"
    plan = ok("reproduce", file, "--out", out, "--dry-run", "--json").document
    assert plan["runs"]["student"]["after"] == ["big"]
    assert plan["studies"]["search"]["after"] == ["tuned"]
    result = ok("reproduce", file, "--out", out, "--jobs", 2)
    assert "student, seed 3: finished by" in result.err
    assert "0.2500" in result.out
    again = ok("reproduce", file, "--out", out, "--json", "--quiet")
    one = json.loads((whole / "results.json").read_text())
    for name, run in again.document["runs"].items():
        assert {s: v["values"] for s, v in run["seeds"].items()} == {
            s: v["values"] for s, v in one["runs"][name]["seeds"].items()
        }


@pytest.mark.usefixtures("png_alone")
def test_a_run_that_fails_leaves_the_others(place: Path) -> None:
    lost = {"train": {"lr": 1e38}, "sweep": {"trials": 1, "space": {"model.dim": [4, 6]}}}
    given = values(place, studies={"lost": lost})
    given["runs"] = {
        "bad": {"train": {"lr": 1e38}},
        "pupil": {"distill": [{"method": "cd", "teacher": "bad", "pool": 20, **FEW}]},
        "good": {},
    }
    file, out = written(place / "failing.toml", given), place / "failing"
    result = kdrs("reproduce", file, "--out", out)
    assert result.code == 1
    assert "bad, seed 0: failed" in result.err
    assert "2 runs failed: bad, seed 0, lost, run" in result.err
    found = json.loads((out / "results.json").read_text())["runs"]
    assert [found[name]["seeds"]["0"]["state"] for name in ("bad", "pupil", "good")] == [
        "failed",
        "not begun",
        "finished",
    ]


def test_a_data_set_is_prepared_as_stated(place: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDRS_DATA", str(data_folder))
    data = {"known": "ml-100k", "choices": {"split": "ratio", "min_rating": 4, "k_core": 5}}
    given = values(place, data=data, studies={}, runs={"one": {}})
    out = place / "prepared"
    ok("reproduce", written(place / "prepared.toml", given), "--out", out, "--dry-run")
    assert Dataset.load(out / "data").split["kind"] == "ratio"


def test_wrong_recipes_are_refused(place: Path, tmp_path: Path) -> None:
    def refused(code: int = 2, **changed: Any) -> str:
        if "studies" in changed:  # which runs learn from, unless others are given
            changed = {"runs": {"one": {}}, **changed}
        error = fails(
            code, "reproduce", written(tmp_path / "r.toml", values(place, **changed)), "--out", tmp_path / "out"
        )
        assert not list((tmp_path / "out").glob("runs"))
        for left in (tmp_path / "out").glob("*"):
            left.unlink()
        return error

    assert "unknown key 'run_s'" in refused(run_s={})
    assert "is a run and a study" in refused(runs={"tuned": {}})
    assert "no runs and no studies" in refused(runs={}, studies={})
    assert "data set is not named" in refused(data={"name": "x"})
    assert "unknown data set" in refused(data={"known": "netflicks"})
    assert "data.choices.splits" in refused(data={"known": "ml-100k", "choices": {"splits": 3}})
    assert "unknown preset" in refused(data={"known": "ml-100k", "choices": {"preset": "none"}})
    assert "runs.a: unknown model" in refused(runs={"a": {"model": {"name": "bqr"}}})
    assert "runs.a.seeds" in refused(runs={"a": {"seeds": ["x"]}})
    assert "a seed is given twice" in refused(runs={"a": {"seeds": [1, 1]}})
    assert "[runs.a]" in refused(runs={"a": 3})
    assert "[studies.a]" in refused(studies={"a": 3})
    assert "studies.a: the study searches nothing" in refused(studies={"a": {"sweep": {}}})
    assert "letters, digits" in refused(runs={"a b": {}})
    assert "[runs]" in refused(runs=3)
    assert "runs.taught: teacher tuned is no run and no study of the recipe" in refused(
        runs=values(place)["runs"], studies={}
    )
    learns = [{"method": "cd", "teacher": "s"}]
    assert "studies.s is 3" in refused(runs={"a": {"distill": learns}}, studies={"s": 3})
    assert "studies.s.sweep is 3" in refused(runs={"a": {"distill": learns}}, studies={"s": {"sweep": 3}})
    assert "studies.s.train is 3" in refused(runs={"a": {"distill": learns}}, studies={"s": {"train": 3}})
    assert "studies.s.sweep.arms is []" in refused(studies={"s": {"sweep": {"arms": []}}})
    assert "runs.a.teachers is 3" in refused(runs={"a": {"teachers": 3}})
    assert "data set is not named" in refused(data={"path": 3})
    assert "data set is not named" in refused(data={"path": str(place / "toy"), "known": "ml-100k"})
    assert "none" in refused(3, data={"path": str(tmp_path / "none")})
    assert "unknown preset" in refused(data={"known": "ml-100k", "choices": {"preset": ["x"]}})
    assert "check the path" in fails(2, "reproduce", tmp_path / "none.toml", "--out", tmp_path / "out")


def test_metrics_that_nothing_measures_are_refused_before_anything_is_trained(place: Path, tmp_path: Path) -> None:
    """They were an empty column, or the end of the comparison once all was trained."""

    def refused(**changed: Any) -> str:
        file = written(tmp_path / "r.toml", values(place, **changed))
        error = fails(2, "reproduce", file, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return error

    assert "runs.big: metrics names ndgc@10, which is not evaluated" in refused(metrics=["ndgc@10"])
    assert "take some of: hit@5, hit@10" in refused(metrics=["ndcg@10", "ndcg@7"])
    assert "runs.one: metrics names" in refused(metrics=["auc"], runs={"one": {}}, studies={})
    assert "studies.tuned: metrics names" in refused(
        metrics=["auc"], runs={}, studies={"tuned": values(place)["studies"]["tuned"]}
    )
    assert "runs.one: printed names ndcg@99" in refused(runs={"one": {"printed": {"ndcg@99": 0.1}}}, studies={})
    assert "runs.b: metrics names hit@5" in refused(runs={"a": {}, "b": {"eval": {"ks": [10]}}}, studies={})
    assert "selected by ndcg@99" in refused(runs={"a": {}, "b": {"train": {"select": ["ndcg@99"]}}}, studies={})


def budgeted(place: Path, teacher: str = "big", **arm: Any) -> dict[str, Any]:
    """A recipe with a study of an arm that has so many bytes, and a run that learns from its best."""
    own = {
        "budget": "1/4",
        "distill": [{"method": "cd", "teacher": teacher, "pool": 20, **FEW}],
        "train": {"epochs": 2},
        "space": {"distill.0.weight": [0.1, 0.5]},
        **arm,
    }
    runs = {
        "big": {"model": {"dim": 12}},
        "pupil": {"distill": [{"method": "rrd", "teacher": "small", "pool": 20, "interesting": 4, "uninteresting": 4}]},
    }
    small = {"sweep": {"trials": 2, "sampler": "random", "arms": {"coded": own}}}
    return values(place, runs=runs, studies={"small": small})


def test_arms_of_a_budget_are_checked_before_their_teacher_is_trained(place: Path, tmp_path: Path) -> None:
    def refused(code: int = 2, **arm: Any) -> str:
        error = fails(
            code,
            "reproduce",
            written(tmp_path / "r.toml", budgeted(place, **arm)),
            "--out",
            tmp_path / "out",
            "--dry-run",
        )
        assert not (tmp_path / "out").exists()
        return error

    assert "budget is 1/0" in refused(budget="1/0")
    assert "the smallest student has" in refused(budget="1B")
    assert "start is here, and --budget" in refused(start="here")
    assert "--budget with neumf" in refused(model={"name": "neumf"})
    assert "distill.0.weight = -1" in refused(space={"distill.0.weight": [0.1, -1]})
    assert "unknown key 'distill.0.pol'" in refused(space={"distill.0.pol": [5, 10]})
    assert "no file nobody" in refused(4, teacher="nobody")


def test_a_recipe_with_a_budget_is_carried_out(place: Path, tmp_path: Path) -> None:
    file, out = written(tmp_path / "r.toml", budgeted(place)), tmp_path / "out"
    ok("reproduce", file, "--out", out, "--dry-run")
    made = reproduce(read_recipe(file, out), out)
    assert not made.failed, made.failed
    pupil = Run.open(out / "runs/pupil/seed-0").config
    best = out / "studies/small/best/coded/seed-0"
    assert Path(pupil["distill"][0]["teacher"][0]).samefile(best)
    assert Run.open(best).config["model"]["users"] == "encoded"


def test_runs_that_could_not_be_built_are_refused_before_others_are_trained(place: Path, tmp_path: Path) -> None:
    """Against runs that are still to be trained, too."""

    def refused(code: int, **runs: Any) -> str:
        file = written(tmp_path / "r.toml", values(place, studies={}, runs=runs))
        error = fails(code, "reproduce", file, "--out", tmp_path / "out", "--dry-run")
        assert not (tmp_path / "out").exists()
        return error

    big = {"model": {"dim": 12}}
    assert "runs.b: start" in refused(4, big=big, b={"start": "big"})
    chain = {"distill": [{"method": "takd", "teacher": "big", "chain": [40]}]}
    assert "runs.b: " in refused(2, big=big, b=chain)


def test_a_searched_teacher_is_a_run_of_the_recipe(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill = [{"method": "cd", "teacher": "big", "pool": 20, **FEW}]
    space = {"distill.0.teacher": ["big", "wide"]}
    study = {"distill": distill, "sweep": {"trials": 3, "sampler": "random", "alone": False, "space": space}}
    given = values(
        place, runs={"big": {"model": {"dim": 12}}, "wide": {"model": {"dim": 16}}}, studies={"which": study}
    )
    file = written(tmp_path / "r.toml", given)
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    calls = iter(range(10**9))
    assert reproduce(read_recipe(file, "out"), "out", should_stop=lambda: next(calls) > 25).interrupted
    monkeypatch.chdir(tmp_path)  # and gone on with from another folder
    made = reproduce(read_recipe(file, "a/out"), "a/out")
    assert not made.failed, made.failed
    trials = made.studies["which"].trials["cd"]
    assert all(trial.error is None for trial in trials)
    taught = {Path(trial.point["distill.0.teacher"]) for trial in trials}
    assert taught <= {tmp_path / "a/out/runs" / name / "seed-0" for name in ("big", "wide")}


def test_runs_that_wait_for_each_other_are_refused(place: Path, tmp_path: Path) -> None:
    def from_(name: str) -> dict[str, Any]:
        return {"distill": [{"method": "cd", "teacher": name, "pool": 20, **FEW}]}

    for runs in ({"a": from_("a")}, {"a": from_("b"), "b": from_("c"), "c": from_("a"), "good": {}}):
        file = written(tmp_path / "r.toml", values(place, metrics=["ndcg@10"], runs=runs, studies={}))
        error = fails(2, "reproduce", file, "--out", tmp_path / "out")
        assert "wait for each other: a after" in error
        assert not (tmp_path / "out").exists()


def test_what_a_killed_beginning_left_is_in_nobodys_way(place: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".data.0123456789ab.tmp").mkdir(parents=True)
    (tmp_path / "out" / ".recipe.toml.0123456789ab.tmp").touch()
    file = written(tmp_path / "r.toml", values(place, studies={}, runs={"one": {}}))
    ok("reproduce", file, "--out", tmp_path / "out", "--dry-run")


def test_a_folder_belongs_to_one_recipe(whole: Path, place: Path, tmp_path: Path) -> None:
    given = values(place)
    given["run"]["train"]["lr"] = 0.5
    other = written(tmp_path / "other.toml", given)
    assert "made by another recipe" in fails(2, "reproduce", other, "--out", whole)
    assert "of no recipe" in fails(2, "reproduce", other, "--out", place / "toy")
    more = values(place)
    more["runs"]["another"] = {}
    plan = ok("reproduce", written(tmp_path / "more.toml", more), "--out", whole, "--dry-run").out
    assert "another: seeds 0" in plan


@pytest.mark.parametrize("recipe", sorted((ROOT / "examples" / "reproduce").glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_along_can_be_carried_out(
    recipe: Path, tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDRS_DATA", str(data_folder))
    plan = ok("reproduce", recipe, "--out", tmp_path / "out", "--dry-run", "--json").document
    assert plan["title"]
    names = {*plan["runs"], *plan["studies"]}
    assert all(set(told["after"]) <= names for told in [*plan["runs"].values(), *plan["studies"].values()])


def test_values_of_stored_candidates_are_on_the_page(tmp_path: Path) -> None:
    """Their reports call a metric ``hit@5 sampled(20)``; recipes call it hit@5."""
    toy_dataset().save(tmp_path / "toy")
    given = values(tmp_path, metrics=["hit@5"], runs={"one": {"eval": {"protocol": "loo-499-paper"}}}, studies={})
    ok("reproduce", written(tmp_path / "r.toml", given), "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out/results.json").read_text())["runs"]["one"]["seeds"]["0"]["values"]
    assert found["hit@5"] == pytest.approx(load_run(tmp_path / "out/runs/one/seed-0").report()["test"].mean("hit@5"))
