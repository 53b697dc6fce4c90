"""Trackers: what they are told, and that whatever they do leaves the run as it is."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apart import Forks
from commands import FAST, fails, imports_undone, kdrs, ok
from kdrs.runs import watching
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.watching import values_of
from kdrs.tracking import TRACKERS, Tracker

FAKE = '''
import json, os, time

FILE = os.environ["FAKE_TRACKER"]


class Fake:
    """Notes what it is told; gets into the trouble that is asked for."""

    def note(self, what, *more):
        with open(FILE, "a") as file:
            file.write(json.dumps([what, *more]) + "\\n")
        where, _, kind = os.environ.get("FAKE_TROUBLE", "").partition(":")
        if where == what:
            if kind == "raise":
                raise ValueError("no more")
            if kind == "leave":
                raise SystemExit(3)
            if kind == "hang":
                time.sleep(1000)

    def begin(self, run, config):
        self.run = run
        self.note("begin", run.name, run.first, list(run.selects), dict(run.kept), config)
        run.kept["id"] = "seven"
        config.clear()
        wanted = os.environ.get("FAKE_WANTS")
        return None if wanted is None else int(wanted)

    def log(self, step, values):
        self.note("log", step, values)
        values.clear()

    def end(self, status):
        self.note("end", status)
'''


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file in which a tracker ``fake:Fake`` notes what it was told."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKE_TRACKER", str(tmp_path / "told"))
    with imports_undone():
        yield tmp_path / "told"


def told(file: Path, what: str | None = None) -> list[Any]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return lines if what is None else [line[1:] for line in lines if line[0] == what]


def command(data: Path, *options: object, epochs: int = 3) -> tuple[object, ...]:
    return ("train", "--data", data, *FAST, "--dim", 4, "--epochs", epochs, "--threads", 1, "-q", *options)


LOG = ("--log", "fake:Fake")


# --- what it is told ------------------------------------------------------------------------------------------------


def test_a_tracker_hears_of_the_options_every_epoch_and_the_final_report(toy_path: Path, fake: Path):
    ok(*command(toy_path, *LOG, "--out", "runs/r"))
    run = Run.open("runs/r")
    lines = told(fake)
    assert [line[0] for line in lines] == ["begin", "log", "log", "log", "log", "end"]
    _, name, first, selects, kept, config = lines[0]
    assert (name, first, kept) == ("runs/r", 0, {})
    assert selects[0].startswith("valid/")
    assert config["model.name"] == "bpr"
    assert config["train.lr"] == 0.01
    assert config["log"] == '["fake:Fake"]'
    for row, (_, step, values) in zip(run.rows(), lines[1:4], strict=True):
        assert step == row["epoch"]
        assert values["train/loss"] == row["loss"]
        assert {key: value for key, value in values.items() if key.startswith("valid/")} == {
            f"valid/{key}": value for key, value in row["valid"].items()
        }
        assert values["train/seconds"] == row["seconds"]
    report = json.loads(Path("runs/r/report.json").read_text())["parts"]
    assert lines[4][1] == 2
    assert lines[4][2] == {"final/best_epoch": run.status()["best_epoch"]} | {
        f"final/{part}/{key}": value for part, means in report.items() for key, value in means.items()
    }
    assert lines[5] == ["end", "finished"]


def test_the_names_of_values():
    row = {
        "epoch": 3, "loss": 2, "losses": {"base": 1.5, "rrd": 0.5}, "diagnostics": {"rrd": {"t": 1}}, "seconds": 0.1,
        "valid": {"ndcg@10": 0.2, "mrr@10": None}, "test": {"ndcg@10": float("nan")}, "rd-teacher.loss": 4.0,
        "rd-teacher.valid": {"ndcg@10": 0.3}, "evaluation_seconds": 0.2,
    }  # fmt: skip
    assert values_of(row) == {
        "train/loss": 2.0, "train/losses/base": 1.5, "train/losses/rrd": 0.5, "train/diagnostics/rrd/t": 1.0,
        "train/seconds": 0.1, "valid/ndcg@10": 0.2, "train/rd-teacher.loss": 4.0, "rd-teacher.valid/ndcg@10": 0.3,
        "train/evaluation_seconds": 0.2,
    }  # fmt: skip


def test_parts_of_the_loss_and_one_tracker_run_for_each_part_of_a_run(toy_path: Path, fake: Path):
    Path("run.toml").write_text(
        f'log = "fake:Fake"\n[data]\npath = "{toy_path}"\n[model]\nname = "bpr"\ndim = 2\n[train]\nepochs = 1\n'
        '[teachers.big]\nmodel = { name = "bpr", dim = 4 }\n[[distill]]\nmethod = "cd"\nteacher = "big"\n'
    )
    ok("distill", "run.toml", "--out", "r", "-q")
    assert [line[0].rpartition("/parts/")[2] for line in told(fake, "begin")] == ["big", "r"]
    assert {"train/losses/base", "train/losses/cd"} <= set(told(fake, "log")[2][1])


def test_every_seed_has_its_own(toy_path: Path, fake: Path):
    ok(*command(toy_path, *LOG, "--seeds", "0,1", "--out", "s", epochs=1))
    assert [line[0] for line in told(fake, "begin")] == ["s/seed-0", "s/seed-1"]
    assert [line[4]["train.seed"] for line in told(fake, "begin")] == [0, 1]


def test_on_resume_the_curve_goes_on(toy_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch):
    ok(*command(toy_path, *LOG, "--out", "r", epochs=2))
    fake.unlink()
    ok("resume", "r", "--epochs", 4, "-q")
    (begin,) = told(fake, "begin")
    assert begin[1] == 2
    assert begin[3] == {"id": "seven"}
    assert [line[0] for line in told(fake, "log")] == [2, 3, 3]
    # nothing left to train
    fake.unlink()
    ok("resume", "r", "-q")
    assert [line[0] for line in told(fake, "log")] == [3]
    # a tracker that asks for all, or has some already
    for wants, steps in (("0", [0, 1, 2, 3, 4, 4]), ("3", [3, 4, 5, 5]), ("99", [6])):
        fake.unlink()
        monkeypatch.setenv("FAKE_WANTS", wants)
        ok("resume", "r", "--epochs", {"0": 5, "3": 6, "99": 7}[wants], "-q")
        assert [line[0] for line in told(fake, "log")] == steps


def test_which_trackers_may_differ_on_resume(toy_path: Path, fake: Path):
    ok(*command(toy_path, "--out", "r", epochs=1))
    assert "log" not in Run.open("r").config
    ok("resume", "r", *LOG, "--epochs", 2, "-q")
    assert Run.open("r").config["log"] == ["fake:Fake"]
    assert told(fake, "end") == [["finished"]]
    ok("resume", "r", "--log", "none", "--epochs", 3, "-q")
    assert "log" not in Run.open("r").config
    assert len(told(fake, "begin")) == 1


def test_how_a_run_ended(toy_path: Path, fake: Path):
    values = {"data": {"path": str(toy_path)}, "model": {"name": "bpr", "dim": 4}, "log": ["fake:Fake"]}
    sys.path.append(str(fake.parent))
    config = resolve({**values, "train": {"epochs": 5, "batch_size": 64}, "device": "cpu"})
    execute(config, "r", should_stop=lambda: True)
    assert told(fake, "end") == [["interrupted"]]
    fake.unlink()

    def stumble(row: dict[str, Any]) -> None:
        raise RuntimeError("elsewhere")

    with pytest.raises(RuntimeError, match="elsewhere"):
        execute(config, "q", on_epoch=stumble)
    assert told(fake, "end") == [["failed"]]


# --- whatever it does -----------------------------------------------------------------------------------------------

TROUBLES = [f"{where}:{kind}" for where in ("begin", "log", "end") for kind in ("raise", "leave", "hang")]


@pytest.fixture(scope="module")
def plain(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "run"
    ok(*command(toy_path, "--out", path))
    return path


@pytest.mark.parametrize("trouble", ["", *TROUBLES])
def test_no_tracker_stops_a_run_or_changes_its_bytes(
    toy_path: Path, plain: Path, fake: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
):
    """It raises, leaves, or hangs, at each point; it also empties what it is given."""
    monkeypatch.setenv("FAKE_TROUBLE", trouble)
    monkeypatch.setattr(watching, "PATIENCE", dict.fromkeys(watching.PATIENCE, 0.3))
    result = ok(*command(toy_path, *LOG, "--out", "r"))
    for name in ("model.safetensors", "report.json", "report-test.npz"):
        assert (fake.parent / "r" / name).read_bytes() == (plain / name).read_bytes()
    rows = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in Run.open(path).rows()] for path in ("r", plain)
    ]
    assert rows[0] == rows[1]
    assert Run.open("r").status()["status"] == "finished"
    where, _, kind = trouble.partition(":")
    warned = re.findall(r"warning: the tracker fake:Fake (.*)", result.err)
    assert len(warned) == (1 if trouble else 0), result.err
    if kind == "hang":
        assert "does not answer" in warned[0]
    elif kind:
        place = {"begin": "beginning", "log": "epoch 0", "end": "its end"}[where]
        what = {"raise": "ValueError: no more", "leave": "SystemExit: 3"}[kind]
        assert warned[0].startswith(f"failed ({place}): {what}.")
    if where in ("begin", "log") and trouble:
        assert [line[0] for line in told(fake)] == (["begin"] if where == "begin" else ["begin", "log"]), "asked again"
    monkeypatch.setenv("FAKE_TROUBLE", "")
    ok("resume", "r", "--epochs", 4, "-q")
    assert told(fake, "end")[-1] == ["finished"]


def test_a_tracker_that_cannot_be_made(toy_path: Path, fake: Path):
    with (fake.parent / "fake.py").open("a") as file:
        file.write("\n    def __init__(self):\n        raise OSError('no room')\n")
    assert "fake:Fake failed (beginning): OSError: no room" in ok(*command(toy_path, *LOG, "--out", "r")).err


def test_a_damaged_memory_of_a_tracker_stops_no_run(toy_path: Path, fake: Path):
    ok(*command(toy_path, *LOG, "--out", "r", epochs=1))
    (kept,) = Path("r/trackers").iterdir()
    assert json.loads(kept.read_text()) == {"state": {"id": "seven"}}
    kept.write_text('{"state": 3}')
    assert "fake:Fake failed (beginning)" in ok("resume", "r", "--epochs", 2, "-q").err
    kept.unlink()
    Path("r/trackers").rmdir()
    Path("elsewhere").mkdir()
    Path("r/trackers").symlink_to(Path("elsewhere").absolute())
    result = kdrs("resume", "r", "--epochs", 3, "-q")
    assert result.code == 5, "a link in the place of a folder of a run is refused, as every other"
    assert not list(Path("elsewhere").iterdir())


def test_a_slow_tracker_is_not_waited_for_in_training(toy_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch):
    """It is still busy with the first epoch when the run ends; then it is given its time, as long as it does something."""
    with (fake.parent / "fake.py").open("a") as file:
        file.write("\n    def __getattribute__(self, name):\n        if name == 'log': time.sleep(0.25)\n")
        file.write("        return object.__getattribute__(self, name)\n")
    sys.path.append(str(fake.parent))
    monkeypatch.setattr(watching, "PATIENCE", dict.fromkeys(watching.PATIENCE, 5.0))
    values = {
        "data": {"path": str(toy_path)},
        "model": {"name": "bpr", "dim": 4},
        "log": ["fake:Fake"],
        "device": "cpu",
    }
    config = resolve({**values, "train": {"epochs": 8, "batch_size": 64, "patience": 8}})
    known: list[int] = []
    execute(config, "r", on_epoch=lambda row: known.append(len(told(fake, "log")) if fake.exists() else 0))
    assert known[-1] < 8, "the epochs waited for it"
    assert [line[0] for line in told(fake, "log")] == [*range(8), 7]
    assert told(fake, "end") == [["finished"]]


def test_ctrl_c_while_a_tracker_is_waited_for(forks: Forks, toy_path: Path, fake: Path):
    """The run has ended and stays finished."""
    child = forks.begin(*command(toy_path, *LOG, "--out", "r", epochs=1), FAKE_TROUBLE="end:hang")
    until = time.monotonic() + 120
    while not (fake.exists() and told(fake, "end")) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(0.3)
    for _ in range(2):
        child.send_signal(signal.SIGINT)
        time.sleep(0.3)
    ended = child.ended(60)
    assert ended.returncode == 0, ended.stderr
    assert b"does not answer" in ended.stderr
    assert Run.open("r").status()["status"] == "finished"


# --- refused before training ----------------------------------------------------------------------------------------


def test_trackers_that_are_none(toy_path: Path, fake: Path):
    assert "unknown tracker 'tensorbord'" in (said := fails(2, *command(toy_path, "--log", "tensorbord", "--out", "r")))
    assert "did you mean 'tensorboard'" in said
    assert "log is ['fake:Fake', 'fake:Fake']" in fails(2, *command(toy_path, *LOG, *LOG, "--out", "r"))
    assert "--log none and --log wandb" in fails(2, *command(toy_path, "--log", "none", "--log", "wandb"))
    assert "there is no module nowhere" in fails(2, *command(toy_path, "--log", "nowhere:T", "--out", "r"))
    (fake.parent / "half.py").write_text("class Half:\n    def begin(self, run, config): pass\n")
    assert "is the class Half, not derived from kdrs.trackers.Tracker" in fails(
        2, *command(toy_path, "--log", "half:Half")
    )
    assert not Path("r").exists()


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb")])
def test_a_missing_package_is_refused_before_training(
    toy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
):
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda asked, *more: None if asked == module else find(asked, *more)
    )
    for words in (command(toy_path, "--log", name, "--out", "r"), command(toy_path, "--log", name, "--dry-run")):
        said = fails(5, *words)
        assert f"the tracker '{name}' needs {module}, which is not installed" in said
        assert f"try: pip install 'kdrs[{name}]'; or leave it out: --log none" in said
    assert not Path("r").exists()


def test_mlflow_without_a_store_of_its_own(toy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """mlflow-skinny brings none: it is of use with a server."""
    monkeypatch.chdir(tmp_path)
    absent = {"sqlalchemy": None, "mlflow": object()}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda asked, *more: absent[asked] if asked in absent else find(asked)
    )
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "needs sqlalchemy" in fails(5, *command(toy_path, "--log", "mlflow", "--out", "r"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    TRACKERS["mlflow"].check()  # type: ignore[attr-defined]


def test_ours_are_trackers():
    assert all(issubclass(cls, Tracker) for cls in TRACKERS.values())


def test_logged_in_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from kdrs.tracking.wandb import has_key

    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com/")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert has_key()


# --- the real ones, where they are installed ------------------------------------------------------------------------


@pytest.fixture
def quiet_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(watching, "PATIENCE", dict.fromkeys(watching.PATIENCE, 300.0))
    return tmp_path


NDCG = "ndcg@10 sampled(20)"


def final_ndcg(path: str) -> float:
    return json.loads(Path(path, "report.json").read_text())["parts"]["test"][NDCG]


def test_tensorboard_has_the_curve_once(toy_path: Path, plain: Path, quiet_place: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ok(*command(toy_path, "--log", "tensorboard", "--out", "r"))
    assert Path("r/model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    ok("resume", "r", "--epochs", 5, "-q")
    events = EventAccumulator("r/tensorboard")
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3, 4]
    losses = [row["loss"] for row in Run.open("r").rows()]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert events.Scalars(f"final/test/{NDCG}")[-1].value == pytest.approx(final_ndcg("r"))
    assert "config/text_summary" in events.Tags()["tensors"]
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_mlflow_has_the_curve_once(toy_path: Path, plain: Path, quiet_place: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{quiet_place}/store.db")
    ok(*command(toy_path, "--log", "mlflow", "--out", "runs/r"))
    assert Path("runs/r/model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    ok("resume", "runs/r", "--epochs", 5, "-q")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("kdrs").experiment_id])
    assert (run.info.run_name, run.info.status) == ("runs/r", "FINISHED")
    assert run.data.params["model.name"] == "bpr"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [entry.step for entry in history] == [0, 1, 2, 3, 4]
    assert run.data.metrics["final/test/ndcg_at_10 sampled_20_"] == pytest.approx(final_ndcg("runs/r"))
    ok(*command(toy_path, "--log", "mlflow", "--out", "other", epochs=1))
    assert len(client.search_runs([run.info.experiment_id])) == 2


def test_wandb_writes_offline_and_keeps_its_id(toy_path: Path, plain: Path, quiet_place: Path):
    pytest.importorskip("wandb")
    ok(*command(toy_path, "--log", "wandb", "--out", "r"))
    assert Path("r/model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    ok("resume", "r", "--epochs", 5, "-q")
    state = json.loads(Path("r/trackers/wandb.json").read_text())["state"]
    assert state["next"] == "5"
    folders = {path.name.rpartition("-")[2] for path in Path("wandb").glob("offline-run-*")}
    assert folders == {state["id"]}
    assert list(Path("wandb").glob("offline-run-*/*.wandb"))
