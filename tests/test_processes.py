"""Several processes that train and evaluate together: the same run, whoever does which part of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import toy_dataset
from kdrs._launch import Launch, launched
from kdrs.distillers import DISTILLERS
from kdrs.errors import ConfigError
from kdrs.evaluation.evaluator import Evaluator
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.opened import load_run
from kdrs.training import processes
from together import Pairs, free_port

EPOCHS = 3
CLOSE = {"rtol": 2e-3, "atol": 2e-4}
"""Between sums in another order, after some steps of Adam."""


@pytest.fixture(scope="module")
def teacher(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    execute(resolve(values(toy_path, dim=12)), out)
    return out


def values(toy_path: Path, *, dim: int = 5, shard: str = "none", **options: Any) -> dict[str, Any]:
    model = {"name": "bpr", "dim": dim, **options.pop("model", {})}
    train = {"epochs": EPOCHS, "batch_size": 64, "lr": 1e-2, "checkpoint_seconds": 0, "shard": shard}
    train |= options.pop("train", {})
    return {"data": {"path": str(toy_path)}, "device": "cpu", "threads": 1, **options, "model": model, "train": train}


def cases(teacher: Path) -> dict[str, dict[str, Any]]:
    """Runs that both ways of sharing take. One expert draws no noise: DE is then the same however its entities are shared."""

    def terms(*methods: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"teacher": str(teacher), **method} for method in methods]

    graph = {"name": "lightgcn", "layers": 2, "reg": 1e-3, "reduction": "mean"}
    cd = {"method": "cd", "guide": "teacher", "pool": 30, "items": 8}
    return {
        "bpr": {},
        "lazy": {"train": {"optimizer": "lazy-adam", "negatives": 3, "layout": "rows"}},
        "lightgcn": {"model": graph},
        "cd": {"distill": terms(cd)},
        "de": {"distill": terms({"method": "de", "experts": 1, "weight": 0.1})},
        "both": {"model": {"name": "lightgcn"}, "distill": terms(cd, {"method": "de", "experts": 1, "weight": 0.1})},
    }


REPLICATED: dict[str, dict[str, Any]] = {
    "neumf": {"model": {"name": "neumf"}},
    "sgl": {"model": {"name": "sgl"}},
    "ssm": {"model": {"name": "lightgcn-ssm", "softmax_items": 16}},
    "cdae": {"model": {"name": "cdae"}, "train": {"batch_size": 16}},
}


def rest(teacher: Path) -> dict[str, dict[str, Any]]:
    """Runs of losses that look at whole batches, alone and beside some that do not."""
    own = {"teacher": str(teacher)}
    return {
        **REPLICATED,
        "ftd": {"distill": [{"method": "ftd", "weight": 0.01, **own}]},
        "rrd": {"distill": [{"method": "rrd", "pool": 20, "interesting": 5, "uninteresting": 5, **own}]},
        "bd": {"distill": [{"method": "bd", **own}], "start": str(teacher), "model": {"dim": 12}},
    }


@pytest.fixture(scope="module")
def trained(together: Pairs, toy_path: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All runs: alone, by two processes that divide batches, twice, and by two that divide columns."""
    folder = tmp_path_factory.mktemp("trained")
    shared = cases(teacher)
    everything = {**shared, **rest(teacher)}
    jobs = {f"divided-{name}": values(toy_path, **dict(own)) for name, own in everything.items()}
    jobs |= {f"again-{name}": jobs[f"divided-{name}"] for name in ("cd", "both", "ftd")}
    jobs |= {f"columns-{name}": values(toy_path, shard="columns", **dict(own)) for name, own in shared.items()}
    ranked = {"method": "cd", "teacher": str(teacher), "pool": 30, "items": 8}  # by the student's own lists
    jobs["columns-ranked"] = values(toy_path, shard="columns", distill=[ranked], eval={"protocol": "default"})
    told = folder / "told.json"
    named = [(job, str(folder / name)) for name, job in jobs.items()]
    ended = together.run(call="train", arguments=[named, str(told)])
    assert ended.codes == [0, 0], ended.err
    found = dict(zip(jobs, json.loads(told.read_text()), strict=True))
    for name, own in everything.items():
        execute(resolve(values(toy_path, **dict(own))), folder / f"alone-{name}")
    return {"folder": folder, "told": found}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return Run.open(run).load_model()[0]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in Run.open(run).rows()]


ALL = ("bpr", "lazy", "lightgcn", "cd", "de", "both", "neumf", "sgl", "ssm", "cdae", "ftd", "rrd", "bd")


@pytest.mark.parametrize("name", ALL)
def test_batches_divided_give_what_one_process_gives(trained, name: str):
    folder = trained["folder"]
    one, two = (folder / f"{how}-{name}" for how in ("alone", "divided"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    theirs = weights(one)
    for key, own in weights(two).items():
        torch.testing.assert_close(own, theirs[key], **CLOSE)


@pytest.mark.parametrize("name", ["bpr", "lazy", "lightgcn", "cd", "de", "both"])
def test_columns_give_what_one_process_gives(trained, name: str):
    folder = trained["folder"]
    one, two = (folder / f"{how}-{name}" for how in ("alone", "columns"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    theirs = weights(one)
    for key, own in weights(two).items():
        torch.testing.assert_close(own, theirs[key], **CLOSE)


@pytest.mark.parametrize("name", ["cd", "both", "ftd"])
def test_as_many_processes_give_the_same_bytes(trained, name: str):
    one, two = (trained["folder"] / f"{how}-{name}/model.safetensors" for how in ("divided", "again"))
    assert one.read_bytes() == two.read_bytes()


def test_what_travels(trained):
    """Of plain BPR slopes alone, of columns scores: four bytes each; nothing where every process does all."""
    told = {name: found["sent"] for name, found in trained["told"].items()}
    pairs = load_run(trained["folder"] / "alone-bpr").dataset.train.n_pairs
    assert 8 * pairs * EPOCHS < told["divided-bpr"] < 8 * pairs * EPOCHS + 60_000  # and the evaluation's values
    assert told["divided-bpr"] < told["divided-cd"]
    assert told["divided-bd"] < 60_000
    scores = 2 * 4 * pairs * EPOCHS
    assert scores < told["columns-bpr"]


@pytest.mark.parametrize("name", ["bpr", "both"])
def test_a_run_of_columns_is_a_run(trained, name: str):
    """Its files are those of one process: it opens, evaluates and teaches, and its checkpoint goes on in one process."""
    run = load_run(trained["folder"] / f"columns-{name}")
    factors = run.factors()
    assert factors is not None
    assert factors.queries.shape == (run.dataset.n_users, 5)
    again = Evaluator.of(run.dataset)(run.teacher())["test"]
    assert again.means() == pytest.approx(run.report()["test"].means(), abs=1e-6)
    ranked = load_run(trained["folder"] / "columns-ranked")  # whole vectors, a few at a time: to the byte
    again = Evaluator.of(ranked.dataset, "default")(ranked.teacher())["test"]
    for metric, own in ranked.report()["test"].values.items():
        assert own.tobytes() == again.values[metric].tobytes()
    alone = Run.open(trained["folder"] / f"alone-{name}").checkpoints.load()
    ours = run.run.checkpoints.load()
    assert ours is not None
    assert alone is not None
    assert {key: (t.shape, t.dtype) for key, t in ours.state.items()} == {
        k: (t.shape, t.dtype) for k, t in alone.state.items()
    }


def test_any_number_of_processes_goes_on(together: Pairs, trained, toy_path: Path, tmp_path: Path):
    """From a checkpoint of two that held columns: one, two with whole models, and two with columns."""
    import shutil

    before = trained["folder"] / "columns-bpr"
    assert launched() is None
    ends = {}
    for how, size, shard in (("one", 1, "columns"), ("whole", 2, "none"), ("columns", 2, "columns")):
        out = tmp_path / how
        shutil.copytree(before, out)
        options = [
            "--data",
            toy_path,
            "--model",
            "bpr",
            "--dim",
            5,
            "--batch-size",
            64,
            "--lr",
            0.01,
            "--device",
            "cpu",
        ]
        settings = ["--set", "train.checkpoint_seconds=0", "--set", f"train.shard={shard}", "--threads", 1]
        argv = ["train", *options, *settings, "--epochs", EPOCHS + 2, "--out", out, "--resume", "--quiet"]
        ended = together.run(argv=[str(word) for word in argv], size=size)
        assert ended.codes == [0] * size, ended.err
        assert [bool(text) for text in ended.out] == [rank == 0 for rank in range(size)]
        ends[how] = weights(out)
        assert len(Run.open(out).rows()) == EPOCHS + 2
    for how in ("whole", "columns"):
        for key, own in ends[how].items():
            torch.testing.assert_close(own, ends["one"][key], **CLOSE)


def test_evaluation_is_the_same_to_the_byte(together: Pairs, toy_path: Path, tmp_path: Path):
    ended = together.run(call="evaluate", arguments=[str(toy_path), str(tmp_path / "told")], size=3)
    assert ended.codes == [0, 0, 0], ended.err
    same = json.loads((tmp_path / "told").read_text())
    assert len(same) == 8
    assert all(same)


def test_a_group_of_three(together: Pairs, tmp_path: Path):
    ended = together.run(call="words", arguments=[str(tmp_path / "told")], size=3)
    assert ended.codes == [0, 0, 0], ended.err
    assert json.loads((tmp_path / "told").read_text())["sent"] > 0


def test_refused_before_anything_is_done(together: Pairs, toy_path: Path, teacher: Path, tmp_path: Path):
    bad = {
        "each needs a device of its own": {"device": "cuda:0"},
        "mixes the coordinates": {"model": {"name": "sgl"}},
        "few bits": {"model": {"bits": 2}},
        "trains its teacher along": {"distill": [{"method": "bd", "teacher": str(teacher)}]},
        "model.dim is 1 for 2 processes": {"dim": 1},
    }
    jobs = [(values(toy_path, shard="columns", **own), str(tmp_path / "no")) for own in bad.values()]
    ended = together.run(call="train", arguments=[jobs, str(tmp_path / "told")])
    assert ended.codes == [0, 0], ended.err
    for words, found in zip(bad, json.loads((tmp_path / "told").read_text()), strict=True):
        assert words in found["error"]
        assert not found["left"]


def test_refusals_hold_for_one_process_too(toy_path: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="mixes the coordinates"):
        execute(resolve(values(toy_path, shard="columns", model={"name": "ngcf"})), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_other_commands_are_one_process(together: Pairs):
    ended = together.run(argv=["models"])
    assert ended.codes == [2, 2]
    assert ended.err[0].startswith("error: kdrs models is started as 2 processes")
    assert ended.err[1] == ""


def test_seeds_and_jobs(together: Pairs, toy_path: Path, tmp_path: Path):
    """Seeds go one after the other, each by all processes; jobs of one's own beside them are refused."""
    options = [
        "--data",
        toy_path,
        "--model",
        "bpr",
        "--dim",
        4,
        "--epochs",
        1,
        "--device",
        "cpu",
        "--seeds",
        "0,1",
        "--quiet",
    ]
    argv = [str(word) for word in ["train", *options, "--out", tmp_path / "seeds"]]
    ended = together.run(argv=argv)
    assert ended.codes == [0, 0], ended.err
    assert ended.out[0].count("seeds 0, 1") == 1
    assert ended.out[1] == ""
    assert {load_run(tmp_path / "seeds" / f"seed-{seed}").config.train.seed for seed in (0, 1)} == {0, 1}
    ended = together.run(argv=[*argv[:-1], str(tmp_path / "no"), "--jobs", "2"])
    assert ended.codes == [2, 2]
    assert "2 jobs are asked for in each of 2 processes" in "".join(ended.err)
    assert not (tmp_path / "no").exists()


def test_one_error_is_told_once(together: Pairs, tmp_path: Path):
    argv = ["train", "--data", str(tmp_path), "--model", "bpr", "--dim", "4", "--out", str(tmp_path / "out")]
    ended = together.run(argv=argv)
    assert ended.codes == [3, 3], ended.err
    assert "".join(ended.err).count("error:") == 1


OPTIONS: dict[str, dict[str, Any]] = {
    "cd": {"pool": 20, "items": 5},
    "rrd": {"pool": 10, "interesting": 4, "uninteresting": 4},
    "hetcomp": {"target": 8, "states": 2},
    "unkd": {"pool": 10, "pairs": 8},
}


def test_every_method_both_ways(together: Pairs, tmp_path: Path):
    """The losses of an epoch are those of one process, whatever a method looks at."""
    path = toy_dataset(20, 30, candidates=None).save(tmp_path / "toy")
    run = values(path, dim=8, train={"epochs": 3, "stages_every": 1})
    execute(resolve(run), tmp_path / "teacher")
    jobs: dict[tuple[str, str], dict[str, Any]] = {}
    for method, cls in DISTILLERS.items():
        term = {"method": method, "teacher": str(tmp_path / "teacher"), **OPTIONS.get(method, {})}
        term |= {} if cls.chain is None else {"chain": 0}
        term |= {"experts": 1} if method == "de" else {}
        for shard in ("none", "columns"):
            jobs[method, shard] = values(path, shard=shard, distill=[term], train={"epochs": 1})
    both = [key for key in jobs if not (DISTILLERS[key[0]].mutual and key[1] == "columns")]
    named = [(jobs[key], str(tmp_path / "-".join(key))) for key in both]
    ended = together.run(call="train", arguments=[named, str(tmp_path / "told")])
    assert ended.codes == [0, 0], ended.err
    assert not [found for found in json.loads((tmp_path / "told").read_text()) if "error" in found]
    for method in DISTILLERS:
        execute(resolve(jobs[method, "none"]), tmp_path / method)
    for method, shard in both:
        alone = losses(tmp_path / method)
        assert losses(tmp_path / f"{method}-{shard}") == pytest.approx(alone, rel=1e-5), (method, shard)


# --- ends ---------------------------------------------------------------------------------------------------------------


def command(toy_path: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A job that goes on with its run if there is one, as torchrun's restarts do."""
    options = [
        "--data",
        toy_path,
        "--model",
        "lightgcn",
        "--dim",
        4,
        "--batch-size",
        128,
        "--epochs",
        4,
        "--device",
        "cpu",
    ]
    settings = ["--set", "train.checkpoint_seconds=0", "--threads", 1, "--lr", 0.01, "--quiet"]
    for key, value in changes.items():
        settings += ["--set", f"train.{key}={value}"]
    argv = [str(word) for word in ["train", *options, *settings, "--out", out]]
    return {"argv": argv, "environment": {"TORCHELASTIC_RESTART_COUNT": "1"}}


def left(run: Path) -> tuple[bytes, list[dict[str, Any]]]:
    rows = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in Run.open(run).rows()]
    return (run / "model.safetensors").read_bytes(), rows


MOMENTS = {"none": (1, 3, 12, 19, 30), "columns": (2, 5, 9, 13, 17)}
"""Collectives before which a process kills itself, each in the session that goes on from the one before: while a run is begun,
within epochs, in evaluations, while a checkpoint is written."""


@pytest.mark.parametrize("shard", list(MOMENTS))
def test_fault_73_a_killed_process_ends_the_others_and_the_run_goes_on(
    together: Pairs, toy_path: Path, tmp_path: Path, shard: str
):
    """Ten moments, five each way of sharing; the weights that are kept are means over epochs."""
    whole = together.run(**command(toy_path, tmp_path / "whole", shard=shard, average=0.5))
    assert whole.codes == [0, 0], whole.err
    out = tmp_path / "out"
    for count, at in enumerate(MOMENTS[shard]):
        rank = count % 2
        ended = together.run(**command(toy_path, out, shard=shard, average=0.5), kill={"rank": rank, "at": at})
        assert ended.codes[rank] == -signal.SIGKILL, (at, ended)
        assert ended.codes[1 - rank] == 5, (at, ended)
        assert ended.err[1 - rank].count("error:") == 1
        # the first kill is early: the other process may still be joining
        assert "lost another one" in ended.err[1 - rank] or (
            at == 1 and "cannot reach the others" in ended.err[1 - rank]
        )
        assert ended.seconds < 60
    ended = together.run(**command(toy_path, out, shard=shard, average=0.5))
    assert ended.codes == [0, 0], ended.err
    assert left(out) == left(tmp_path / "whole")


def test_who_finds_nobody_says_so(together: Pairs, toy_path: Path, tmp_path: Path):
    """The first process, which else speaks for all, is not there."""
    job = command(toy_path, tmp_path / "out")
    alone = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    job["environment"] |= {**alone, "KDRS_PROCESS_TIMEOUT": "1"}
    ended = together.run(**job, size=1)
    assert ended.codes == [5], ended.err
    assert "process 1 of 2 cannot reach the others" in ended.err[0]
    assert not (tmp_path / "out").exists()


def test_a_process_that_does_not_answer_is_given_up(together: Pairs, toy_path: Path, tmp_path: Path):
    job = command(toy_path, tmp_path / "out")
    job["environment"]["KDRS_PROCESS_TIMEOUT"] = "8"
    ended = together.run(**job, hang={"rank": 0, "at": 14})
    assert ended.codes == [-signal.SIGKILL, 5], ended.err
    assert "did not answer in time" in ended.err[1]
    assert together.run(**command(toy_path, tmp_path / "out")).codes == [0, 0]


def test_a_program_with_a_group_of_its_own_is_told(monkeypatch: pytest.MonkeyPatch):
    for name, value in (
        ("RANK", 1),
        ("LOCAL_RANK", 1),
        ("WORLD_SIZE", 2),
        ("MASTER_ADDR", "localhost"),
        ("MASTER_PORT", 1),
    ):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"has called torch\.distributed"), processes.joined():
        pass
    assert processes.current() is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    with processes.joined() as group:
        assert group is None


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan", "inf"])
def test_patience_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("KDRS_PROCESS_TIMEOUT", text)
    with pytest.raises(ConfigError, match=f"KDRS_PROCESS_TIMEOUT is {text}"):
        processes._patience()


def test_a_request_to_stop_reaches_all(together: Pairs, toy_path: Path, tmp_path: Path):
    """One process is told; all finish the epoch, and the run goes on to the same bytes."""
    whole = together.run(**command(toy_path, tmp_path / "whole"))
    ended = together.run(**command(toy_path, tmp_path / "out"), stop={"rank": 1, "at": 12})
    assert whole.codes == [0, 0]
    assert ended.codes == [130, 143], ended.err
    assert Run.open(tmp_path / "out").status()["status"] == "interrupted"
    assert "go on with: kdrs resume" in ended.err[0]
    assert ended.err[1] == ""
    assert together.run(**command(toy_path, tmp_path / "out")).codes == [0, 0]
    assert left(tmp_path / "out") == left(tmp_path / "whole")


def test_torchrun(toy_path: Path, tmp_path: Path):
    """The real one: a run whose folder is not named, told once."""
    options = [
        "--data",
        toy_path,
        "--model",
        "bpr",
        "--dim",
        4,
        "--epochs",
        2,
        "--device",
        "cpu",
        "--set",
        "train.shard=columns",
    ]
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "kdrs", "train", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [str(word) for word in words], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("2 epochs, best is") == 1
    (run,) = (tmp_path / "runs").glob("*/*/*/model.safetensors")
    assert load_run(run.parent).factors() is not None


def test_what_gloo_still_holds_is_kept():
    """Python lets go of it last: a thread that does so while the process ends is aborted with it."""
    group = processes.Group(Launch(rank=0, size=2, local_rank=0, restarts=0), None)
    held, free = torch.ones(2, requires_grad=True), torch.ones(2)
    holder = held.exp() * held  # holds it outside Python, as gloo's operations do
    with group._lending(held, free):
        pass
    assert [id(tensor) for tensor in group._lent] == [id(held)]
    del holder
    group.take_back()
    assert group._lent == []
