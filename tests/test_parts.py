"""Runs that train other models first: declared teachers, chains, trajectories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from commands import ok
from kdrs.data import Dataset
from kdrs.errors import ConfigError
from kdrs.runs.build import build_model, build_task
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute, plan
from kdrs.runs.learners import build_learner
from kdrs.runs.opened import load_run
from kdrs.runs.parts import expand, size_of, teachers_of
from kdrs.runs.seeds import execute_seeds

RRD = {"interesting": 5, "uninteresting": 5, "pool": 20}

pytestmark = pytest.mark.filterwarnings("ignore:.*no better than")


def values(data: Path, **changes) -> dict:
    return {
        "data": {"path": str(data)},
        "model": {"name": "bpr", "dim": 4},
        "train": {"epochs": 3, "batch_size": 64, "lr": 1e-2, "checkpoint_seconds": 0},
        "device": "cpu",
        **changes,
    }


def teacher_table(**changes) -> dict:
    return {"model": {"name": "bpr", "dim": 16}, "train": {"epochs": 5}, **changes}


def teacher_and_student(toy_path: Path, folder: Path) -> Path:
    """A teacher of 16 and a student of 4 dimensions, in the folder."""
    execute(resolve(values(toy_path, model={"name": "bpr", "dim": 16})), folder / "teacher")
    execute(resolve(values(toy_path)), folder / "student")
    return folder


@pytest.fixture(scope="module")
def trained(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_and_student(toy_path, tmp_path_factory.mktemp("runs"))


def losses(path: Path) -> list:
    return [json.loads(line)["losses"] for line in (path / "metrics.jsonl").read_text().splitlines()]


# --- declared teachers -------------------------------------------------------------------------------------------------


def test_one_run_file_trains_the_teacher_and_the_student(toy_path, tmp_path):
    config = resolve(
        values(toy_path, teachers={"big": teacher_table()}, distill=[{"method": "de", "experts": 2, "teacher": "big"}])
    )
    outcome = execute(config, tmp_path / "run")
    part = Run.open(tmp_path / "run" / "parts" / "big")
    assert part.status()["status"] == "finished"
    assert part.config["train"]["epochs"] == 5
    assert part.config["train"]["lr"] == 1e-2  # inherited
    assert list(outcome.teachers) == [str(tmp_path / "run" / "parts" / "big")]
    apart = resolve(
        values(toy_path, distill=[{"method": "de", "experts": 2, "teacher": str(tmp_path / "run/parts/big")}])
    )
    execute(apart, tmp_path / "apart")
    assert losses(tmp_path / "run") == losses(tmp_path / "apart")
    assert load_run(tmp_path / "run").report()["test"].n == 50


def test_a_part_is_trained_as_its_model_is_unless_told_otherwise(toy_path, tmp_path):
    """What the run states was stated for its own model; pairs for CML, whole users for CDAE."""
    tables = {
        "metric": {"model": {"name": "cml", "dim": 4}, "train": {"epochs": 1, "negatives": 5}},
        "users": {"model": {"name": "cdae", "dim": 4}, "train": {"epochs": 1, "batch_size": 10}},
    }
    terms = [
        {"method": "rrd", "pool": 20, "interesting": 5, "uninteresting": 5, "name": n, "teacher": n} for n in tables
    ]
    config = resolve(values(toy_path, teachers=tables, distill=terms))
    metric, users = (config.teachers[name].train for name in tables)
    assert (metric.optimizer, metric.lr, metric.layout, metric.negatives) == ("adagrad", 0.1, "rows", 5)
    assert (users.lr, users.batch_size, users.negatives, users.optimizer) == (2e-3, 10, 1, "adam")
    assert (config.train.lr, config.train.optimizer) == (1e-2, "adam")
    assert resolve(config.to_dict()) == config
    execute(config, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "parts").iterdir() if path.is_dir()} == set(tables)


def test_parts_are_resumed_and_finished_ones_are_taken_as_they_are(toy_path, tmp_path):
    described = values(
        toy_path, teachers={"big": teacher_table()}, distill=[{"method": "de", "experts": 2, "teacher": "big"}]
    )
    execute(resolve(described), tmp_path / "whole")
    rows = []
    stopped = execute(resolve(described), tmp_path / "cut", on_epoch=rows.append, should_stop=lambda: len(rows) == 2)
    assert stopped.fit.stopped == "interrupted"
    assert Run.open(tmp_path / "cut").status() == {
        "status": "interrupted", "epochs": 0, "part": "big", "part_epochs": 2
    }  # fmt: skip
    assert stopped.part == ("big", 2)
    assert Run.open(tmp_path / "cut/parts/big").status()["status"] == "interrupted"
    rows.clear()
    stopped = execute(
        resolve(described), tmp_path / "cut", resume=True, on_epoch=rows.append, should_stop=lambda: len(rows) == 4
    )
    assert Run.open(tmp_path / "cut/parts/big").status()["status"] == "finished"
    written = (tmp_path / "cut/parts/big/model.safetensors").stat().st_mtime_ns
    execute(resolve(described), tmp_path / "cut", resume=True)
    assert (tmp_path / "cut/parts/big/model.safetensors").stat().st_mtime_ns == written
    for name in ("model.safetensors", "parts/big/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_parts_of_one_run_are_no_copies_and_follow_its_seed(toy_path, tmp_path):
    described = values(
        toy_path,
        teachers={"a": teacher_table(), "b": teacher_table(), "c": teacher_table(train={"seed": 7})},
        distill=[{"method": "cd", "items": 5, "pool": 30, "teacher": "a"}],
    )
    seeds = {name: part.train.seed for name, part in resolve(described).teachers.items()}
    assert len(set(seeds.values())) == 3
    assert seeds["c"] == 7
    execute_seeds([0, 1], resolve(described), tmp_path / "runs")
    for name, same in (("a", False), ("c", True)):
        first, second = (
            (tmp_path / f"runs/seed-{seed}/parts/{name}/model.safetensors").read_bytes() for seed in (0, 1)
        )
        assert (first == second) is same


def test_a_part_that_is_asked_for_more_epochs_goes_on_and_for_fewer_is_refused(toy_path, tmp_path):
    described = values(
        toy_path, teachers={"big": {"model": {"name": "bpr", "dim": 16}}}, parts=str(tmp_path / "shared"),
        distill=[{"method": "de", "experts": 2, "teacher": "big"}],
    )  # fmt: skip
    execute(resolve(described), tmp_path / "one")
    described["train"]["epochs"] = 5
    execute(resolve(described), tmp_path / "one", resume=True)
    part = Run.open(tmp_path / "shared/big")
    assert part.status()["epochs"] == 5
    assert part.config["train"]["epochs"] == 5
    described["train"]["epochs"] = 2
    with pytest.raises(ConfigError, match="up to 5 epochs"):
        execute(resolve(described), tmp_path / "two")


def test_a_run_may_be_resumed_by_another_path(toy_path, tmp_path, monkeypatch):
    described = values(
        toy_path,
        teachers={"big": teacher_table(), "mid": teacher_table(distill=[{"method": "rrd", "teacher": "big", **RRD}])},
        distill=[{"method": "de", "experts": 2, "teacher": "mid"}],
    )
    monkeypatch.chdir(tmp_path)
    rows = []
    execute(resolve(described), "run", on_epoch=rows.append, should_stop=lambda: len(rows) == 7)
    execute(resolve(described), tmp_path / "run", resume=True)
    assert Run.open(tmp_path / "run").status()["status"] == "finished"


def test_a_run_goes_on_and_is_read_from_any_folder(toy_path, tmp_path, monkeypatch):
    """Relative paths, of the data set, a teacher and a part's teacher, are those of the folder the run was started in."""
    home, away = tmp_path / "home", tmp_path / "away"
    for folder in (home, away):
        folder.mkdir()
    (home / "toy").symlink_to(toy_path)
    monkeypatch.chdir(home)
    alone = {**values(Path("toy"), model={"name": "bpr", "dim": 8}), "parts": "shared"}
    alone["train"]["epochs"] = 1
    execute(resolve(alone), "old")
    described = values(
        Path("toy"),
        teachers={"big": teacher_table(distill=[{"method": "rrd", "teacher": "old", **RRD}])},
        distill=[{"method": "de", "experts": 2, "teacher": ["big"]}, {"method": "rrd", "teacher": "old", **RRD}],
        parts="shared",
    )
    execute(resolve(described), "whole")
    described["parts"] = "others"
    rows = []
    execute(resolve(described), "cut", on_epoch=rows.append, should_stop=lambda: len(rows) == 6)
    assert Run.open("cut").config["data"]["path"] == "toy"
    monkeypatch.chdir(away)
    (away / "old").mkdir()  # something of that name is here too
    ok("resume", home / "cut", "-q")
    ok("distill", home / "whole/config.toml", "--out", home / "again", "-q")
    for name in ("cut", "again"):
        assert (home / name / "model.safetensors").read_bytes() == (home / "whole/model.safetensors").read_bytes()
    assert sorted(path.name for path in away.iterdir()) == ["old"]
    compared = ok("eval", home / "cut", home / "old", "--json").document
    assert {entry["name"]: entry["role"] for entry in compared["runs"]} == {"cut": "student", "old": "teacher"}
    monkeypatch.chdir(home)
    execute(resolve(described), "cut", resume=True)  # absolute by now, and still the same run
    home.rename(tmp_path / "moved")  # data and runs together, to another place
    monkeypatch.chdir(tmp_path / "moved")
    ok("eval", "whole", "--json")


def test_two_models_of_one_kind_have_noise_of_their_own(toy_path, tmp_path):
    """Teacher and student of bidirectional distillation share the run's seed, not their dropout."""
    from kdrs.training.queries import Epoch

    described = values(
        toy_path, model={"name": "cdae", "dim": 4},
        teachers={"t": {"model": {"name": "cdae", "dim": 4}, "train": {"epochs": 1}}},
        distill=[{"method": "bd", "teacher": "t"}],
    )  # fmt: skip
    described["train"]["epochs"] = 1
    execute(resolve(described), tmp_path / "run")
    config = resolve(values(toy_path, model={"name": "cdae", "dim": 4}, distill=[
        {"method": "bd", "teacher": str(tmp_path / "run/parts/t")}
    ]))  # fmt: skip
    dataset = Dataset.load(toy_path)
    task = build_task(config, dataset)
    learner = build_learner(config, dataset, task)
    learners = [learner, *learner.counterparts()]
    learners[1].model.load_state_dict(learner.model.state_dict())
    for one in learners:
        one.start(Epoch(0, 0, 1), [term.distiller.draw(Epoch(0, 0, 1)) for term in one.terms])
    batch = next(iter(task.draw(Epoch(0, 0, 1))))
    ids = torch.arange(10).expand(len(batch.queries), 10)
    passes = [one.model(batch.queries).scores(ids) for one in learners]
    assert not torch.equal(*passes)


def test_runs_share_parts_and_refuse_others(toy_path, tmp_path):
    described = values(
        toy_path, teachers={"big": teacher_table()}, distill=[{"method": "de", "experts": 2, "teacher": "big"}],
        parts=str(tmp_path / "shared"),
    )  # fmt: skip
    for name in ("one", "two"):
        execute(resolve(described), tmp_path / name)
        assert not (tmp_path / name / "parts").exists()
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    described["teachers"]["big"]["model"]["dim"] = 12
    with pytest.raises(ConfigError, match=r"model\.dim = 16, now it is 12"):
        execute(resolve(described), tmp_path / "three")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": {"a/b": teacher_table()}}, "part name"),
        ({"teachers": {"a": {}}}, "teachers.a.model.name is missing"),
        ({"teachers": {"a": teacher_table(wrong=1)}}, "wrong"),
        ({"teachers": {"a": teacher_table(train={"epochs": 0})}}, "teachers.a.train.epochs"),
        ({"teachers": {"a": teacher_table(distill=[{"method": "de"}])}}, "teachers.a.distill.0.teacher is missing"),
        ({"distill": [{"method": "rrd", "teacher": "t", "chain": 2}]}, "uses no assistants"),
        ({"distill": [{"method": "takd", "teacher": ["t", "s"], "chain": 2}]}, "2 teachers and a chain"),
        ({"distill": [{"method": "hyperkdma", "teacher": "t", "chain": 2}]}, "generates its assistants"),
        ({"distill": [{"method": "de", "teacher": "t", "name": "base"}]}, "name is base"),
        ({"distill": [{"method": "de", "teacher": "t", "name": "../a"}]}, "name is ../a"),
    ],
)
def test_wrong_parts(toy_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        resolve(values(toy_path, **changes))


def test_a_part_may_use_parts_before_it_only(toy_path, tmp_path):
    term = {"method": "de", "experts": 2, "teacher": "b"}
    parts = {"a": teacher_table(distill=[term]), "b": teacher_table()}
    with pytest.raises(ConfigError, match="declared after it"):
        expand(resolve(values(toy_path, teachers=parts)), tmp_path)
    made, _ = expand(resolve(values(toy_path, teachers={"b": parts["b"], "a": parts["a"]})), tmp_path)
    assert [part.name for part in made] == ["b", "a"]
    assert made[1].config.distill[0].teacher == (str(tmp_path / "parts" / "b"),)


# --- chains ------------------------------------------------------------------------------------------------------------


def test_a_chain_of_assistants_is_made_and_each_sees_the_one_before(toy_path, trained, tmp_path):
    term = {"method": "takd", "experts": 2, "teacher": str(trained / "teacher"), "chain": 2}
    config = resolve(values(toy_path, distill=[term]))
    parts, student = expand(config, tmp_path / "run")
    folder = tmp_path / "run" / "parts"
    assert [part.name for part in parts] == ["takd-12", "takd-8"]
    assert [part.config.distill[0].teacher for part in parts] == [
        (str(trained / "teacher"),),
        (str(folder / "takd-12"),),
    ]
    assert student.distill[0].teacher == (str(folder / "takd-8"),)
    assert [part.config.model["dim"] for part in parts] == [12, 8]
    assert len({part.config.train.seed for part in parts} | {config.train.seed}) == 3
    execute(config, tmp_path / "run")
    assert sorted(p.name for p in folder.iterdir()) == ["takd-12", "takd-8"]


def test_a_chain_of_none_is_the_plain_method(toy_path, trained, tmp_path):
    for name, options in (("de", {}), ("takd", {"chain": 0})):
        term = {"method": name, "name": "t", "experts": 2, "teacher": str(trained / "teacher"), **options}
        execute(resolve(values(toy_path, distill=[term])), tmp_path / name)
    assert losses(tmp_path / "de") == losses(tmp_path / "takd")
    assert (tmp_path / "de/model.safetensors").read_bytes() == (tmp_path / "takd/model.safetensors").read_bytes()


def test_assistants_of_all_before_them(toy_path, trained, tmp_path):
    teacher = str(trained / "teacher")
    config = resolve(values(toy_path, distill=[{"method": "dgkd", "experts": 2, "teacher": teacher, "chain": [12, 8]}]))
    parts, student = expand(config, tmp_path / "run")
    folder = tmp_path / "run" / "parts"
    first, second = str(folder / "dgkd-12"), str(folder / "dgkd-8")
    assert [part.config.distill[0].teacher for part in parts] == [(teacher,), (teacher, first)]
    assert student.distill[0].teacher == (teacher, first, second)
    execute(config, tmp_path / "run")


def test_hyperkdma_with_trained_assistants(toy_path, trained, tmp_path):
    teacher = str(trained / "teacher")
    term = {"method": "hyperkdma", "assistants": "given", "experts": 2, "teacher": teacher, "chain": 2}
    config = resolve(values(toy_path, distill=[term]))
    parts, student = expand(config, tmp_path / "run")
    assert [part.config.distill[0].method for part in parts] == ["takd", "takd"]
    assert len(student.distill[0].teacher) == 3
    execute(config, tmp_path / "run")


@pytest.mark.parametrize("chain", [[8, 12], [12, 12], [12, 2], [12, 4], [500, 8], [16, 8]])
def test_sizes_that_make_no_chain(toy_path, trained, tmp_path, chain):
    term = {"method": "takd", "teacher": str(trained / "teacher"), "chain": chain}
    with pytest.raises(ConfigError, match="chain is"):
        expand(resolve(values(toy_path, distill=[term])), tmp_path)


SIZED = [
    ({"name": "bpr", "dim": 12}, 12),
    ({"name": "neumf", "dim": 12}, 12),
    ({"name": "neumf", "dim": 12, "hidden": "both"}, 24),
    ({"name": "caser", "dim": 12}, 24),
    ({"name": "sasrec", "dim": 12}, 12),
    ({"name": "ngcf", "dim": 13, "layers": 2}, 13),
    ({"name": "ngcf", "dim": 12, "layers": 2, "size": "block"}, 36),
    ({"name": "lightgcn", "dim": 12}, 12),
    ({"name": "sgl", "dim": 12}, 12),
    ({"name": "lightgcn-ssm", "dim": 12}, 12),
    ({"name": "cml", "dim": 12}, 12),
    ({"name": "cdae", "dim": 12}, 12),
    ({"name": "multvae", "dim": 12}, 12),
    ({"name": "multvae", "dim": 5, "form": "mult_vae", "width": 12}, 12),
    ({"name": "iae", "dim": 12}, 12),
]


@pytest.mark.parametrize(("model", "size"), SIZED, ids=lambda value: str(value))
def test_the_size_of_representations_is_known_without_a_model(toy_path, model, size):
    config = resolve(values(toy_path, model=model))
    task = build_task(config, Dataset.load(toy_path))
    built = build_model(config, task).eval()
    view = built(task.queries(torch.arange(3)))
    assert size_of(config.model) == built.dim == view.queries.shape[1] == view.items(torch.arange(3)).shape[1] == size


@pytest.mark.parametrize(
    ("student", "teacher", "chain", "dims"),
    [
        ({"name": "bpr", "dim": 4}, {"name": "neumf", "dim": 12, "hidden": "both"}, 3, [19, 14, 9]),
        ({"name": "neumf", "dim": 2, "hidden": "both"}, {"name": "bpr", "dim": 24}, 3, [9, 7, 4]),
        ({"name": "caser", "dim": 2}, {"name": "caser", "dim": 12}, [6, 3], [6, 3]),
        ({"name": "bpr", "dim": 4}, {"name": "multvae", "dim": 2, "form": "mult_vae", "width": 24}, 3, [19, 14, 9]),
        ({"name": "ngcf", "dim": 2, "layers": 1, "size": "block"}, {"name": "bpr", "dim": 24}, 3, [9, 7, 4]),
    ],
)
def test_chains_are_of_the_sizes_that_the_models_have(toy_path, tmp_path, student, teacher, chain, dims):
    """Between 4 and 24 dimensions lie 19, 14 and 9; models whose representations have 2 dim take half of these."""
    described = values(
        toy_path, model=student, teachers={"big": {"model": teacher}},
        distill=[{"method": "takd", "experts": 2, "teacher": "big", "chain": chain}],
    )  # fmt: skip
    parts, _ = expand(resolve(described), tmp_path / "run")
    assert [part.config.model["dim"] for part in parts[1:]] == dims
    plan(resolve(described), tmp_path / "run")
    described["train"]["epochs"] = 1
    described.pop("teachers")
    alone = values(toy_path, model=teacher, train={"epochs": 1, "batch_size": 64})
    execute(resolve(alone), tmp_path / "big")  # and of a run that is there already
    described["distill"][0]["teacher"] = str(tmp_path / "big")
    parts, _ = expand(resolve(described), tmp_path / "run")
    assert [part.config.model["dim"] for part in parts] == dims


@pytest.mark.parametrize("chain", [3, [10, 8]])
def test_a_student_whose_size_is_not_its_dim_has_no_chain(toy_path, tmp_path, chain):
    described = values(
        toy_path, model={"name": "multvae", "dim": 4, "form": "mult_vae", "width": 10}, teachers={"big": teacher_table()},
        distill=[{"method": "takd", "experts": 2, "teacher": "big", "chain": chain}],
    )  # fmt: skip
    with pytest.raises(ConfigError, match="10 dimensions whatever dim is"):
        expand(resolve(described), tmp_path / "run")


def test_a_chain_in_a_part_knows_the_parts_before_it(toy_path, tmp_path):
    tables = {
        "big": teacher_table(train={"epochs": 1}),
        "mid": {
            "model": {"name": "bpr", "dim": 8},
            "train": {"epochs": 1},
            "distill": [{"method": "takd", "experts": 2, "teacher": "big", "chain": 1}],
        },
    }
    described = values(toy_path, teachers=tables, distill=[{"method": "cd", "items": 5, "pool": 30, "teacher": "mid"}])
    plan(resolve(described), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    execute(resolve(described), tmp_path / "run")
    assert Run.open(tmp_path / "run/parts/mid/parts/takd-12").status()["status"] == "finished"


# --- trajectories ------------------------------------------------------------------------------------------------------


def test_trajectories_of_several_teachers(toy_path, tmp_path):
    teachers = {
        "mf": teacher_table(train={"epochs": 9, "stages_every": 1}),
        "gnn": {"model": {"name": "lightgcn", "dim": 8}, "train": {"epochs": 9, "stages_every": 1, "patience": 9}},
    }
    term = {"method": "hetcomp", "teacher": ["mf", "gnn"], "target": 10, "states": 2, "every": 1}
    execute(resolve(values(toy_path, teachers=teachers, distill=[term])), tmp_path / "run")
    assert all(row["base"] == 0 and row["hetcomp"] > 0 for row in losses(tmp_path / "run"))
    teacher = load_run(tmp_path / "run/parts/gnn").teacher()
    assert teachers_of(resolve(Run.open(tmp_path / "run").config), tmp_path / "run") == [
        tmp_path / "run/parts/mf", tmp_path / "run/parts/gnn"
    ]  # fmt: skip
    epochs = [stage.epoch for stage in teacher.stages()]
    assert epochs == (list(range(epochs[-1] + 1)) if epochs[-1] else [0, 0])
    teacher = load_run(tmp_path / "run/parts/mf").teacher()
    assert teacher.epoch > 0
    middle = teacher.stages()[0].load()
    assert not torch.equal(middle.model.users.weight, teacher.model.users.weight)
