"""What hostile users and damaged files do to compact runs: one clear error, nothing half-written, the remedy works."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import kdrs
from commands import FAST, fails, listing, ok, write_clicks
from kdrs.distillers.unkd import group_lists
from kdrs.errors import ArtefactError, ConfigError, DataError

TRAINED = (*FAST, "--dim", "6", "--epochs", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("attacks")
    ok("data", "prepare", write_clicks(folder / "clicks.csv"), "--out", folder / "data")
    ok("train", "--data", folder / "data", *TRAINED, "--out", folder / "teacher")
    for users in ("table", "sum", "ridge"):
        ok("compress", folder / "teacher", "--bits", "2", "--users", users, "--out", folder / users)
    ok("compress", folder / "teacher", "--bits", "4", "--users", "sum", "--out", folder / "four")
    return folder


def changed(source: Path, target: Path, tensors=None, told=None) -> Path:
    """A copy of a run whose file holds other tensors, or says other things of them, and whose status vouches for nothing."""
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    with safe_open(str(path), "pt") as file:
        held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        head = json.loads(file.metadata()["kdrs"])
    held |= {key: change(held.get(key)) for key, change in (tensors or {}).items()}
    if isinstance(told, str):
        head["tables"] = told
    elif told is not None:
        head["tables"] = json.dumps(json.loads(head["tables"]) | told)
    save_file(held, str(path), {"kdrs": json.dumps(head)})
    status = json.loads((target / "STATUS.json").read_text())
    del status["model_sha256"]
    (target / "STATUS.json").write_text(json.dumps(status))
    return target


@pytest.mark.filterwarnings("ignore:STATUS.json states no SHA-256")
@pytest.mark.parametrize(
    ("of", "told"),
    [
        ("sum", "{"),
        ("sum", "[" * 100_000),
        ("sum", '{"dim": Infinity, "items": {"bits": 2, "seed": 0}, "encoder": "sum"}'),
        ("sum", {"dim": "6"}),
        ("sum", {"dim": 6.5}),
        ("sum", {"dim": 0}),
        ("sum", {"dim": 10**400}),
        ("sum", {"items": {"bits": True, "seed": 0}}),
        ("sum", {"items": {"bits": 2}}),
        ("sum", {"items": {"bits": 2, "seed": -1}}),
        ("sum", {"encoder": ["sum"]}),
        ("sum", {"encoder": None}),
        ("table", {"users": {"bits": 2, "seed": 5}}),
        ("table", {"encoder": "sum"}),
    ],
)
def test_a_description_that_does_not_fit_is_one_error(of, told, place, tmp_path):
    with pytest.raises(ArtefactError, match="tables"):
        kdrs.load_run(changed(place / of, tmp_path / "run", told=told))


@pytest.mark.filterwarnings("ignore:STATUS.json states no SHA-256")
@pytest.mark.parametrize(
    ("of", "name", "change"),
    [
        ("four", "items_scales", lambda part: -part),
        ("sum", "encoder_scales", lambda part: part * float("nan")),
        ("sum", "encoder_levels", lambda part: part * 0 - 128),
        ("sum", "encoder_power", lambda part: part * 0 - 1e308),
        ("ridge", "encoder_alpha", lambda part: part * float("nan")),
        ("ridge", "encoder_alpha", lambda part: -part),
        ("ridge", "encoder_reg", lambda part: part * 0),
        ("sum", "bias", lambda _: torch.full((60,), float("inf"))),
        ("sum", "more", lambda _: torch.zeros(1)),
    ],
)
def test_tensors_that_no_model_has_are_one_error(of, name, change, place, tmp_path):
    with pytest.raises(ArtefactError, match="do not fit their description"):
        kdrs.load_run(changed(place / of, tmp_path / "run", {name: change}))


@pytest.mark.parametrize("users", ["sum", "ridge"])
def test_histories_of_another_catalogue_are_refused(users, place):
    run = kdrs.load_run(place / users)
    for n_items in (len(run.items) - 1, len(run.items) + 1):
        with pytest.raises(DataError, match="histories are of"):
            run.model.encode(kdrs.Interactions.from_pairs([0, 0], [0, 1], 1, n_items))
    with pytest.raises(DataError, match="histories is a list"):
        run.model.encode([[1, 2]])
    nobody = run.model.encode(kdrs.Interactions.from_pairs([], [], 2, len(run.items)))
    assert not np.asarray(nobody.vectors()).any()


def test_the_run_in_this_folder(place, monkeypatch):
    monkeypatch.chdir(place / "teacher")
    ok("compress", ".", "--bits", "1")
    assert (place / "teacher-compressed" / "model.safetensors").is_file()
    assert "--out" in fails(2, "compress", ".")  # compress has no --resume
    fails(4, "compress", "..")
    fails(4, "compress", "/")


def test_a_place_that_cannot_be_taken_is_refused_before_any_work(place, tmp_path, monkeypatch):
    monkeypatch.setattr("kdrs.runs.compress.build_evaluator", lambda *_: pytest.fail("it worked for nothing"))
    (tmp_path / "file").write_text("mine")
    before = listing(tmp_path)
    fails(2, "compress", place / "teacher", "--out", tmp_path / "file")
    fails(5, "compress", place / "teacher", "--out", tmp_path / "file" / "run")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", ["save_model", "set_status"])
def test_an_interrupted_compression_leaves_nothing(error, at, place, tmp_path, monkeypatch):
    """It cannot be resumed, so that a begun run would only be in the way."""
    own = getattr(kdrs.runs.directory.Run, at)

    def stopping(run, *arguments, **named):
        if at == "save_model" or arguments[0] == "finished":
            raise error("no more")
        return own(run, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(kdrs.runs.directory.Run, at, stopping)
        with pytest.raises(error):
            kdrs.compress(place / "teacher", out=tmp_path / "deep" / "small")
    assert not os.path.lexists(tmp_path / "deep" / "small")
    assert kdrs.compress(place / "teacher", out=tmp_path / "deep" / "small").run is not None


def test_catalogues_of_fewer_items_than_lists_are_compared_by(tmp_path):
    for part, rows in {"train": "a,x\nb,y\n", "valid": "a,y\n", "test": "b,x\n"}.items():
        (tmp_path / f"{part}.csv").write_text(f"user,item\n{rows}")
    ok("data", "prepare", tmp_path, "--out", tmp_path / "data")
    ok("train", "--data", tmp_path / "data", *FAST, "--dim", "2", "--epochs", "1", "--out", tmp_path / "teacher")
    ok("compress", tmp_path / "teacher", "--bits", "1", "--out", tmp_path / "small")
    assert ok("eval", tmp_path / "teacher", tmp_path / "small").code == 0


def test_a_budget_changes_no_option_of_a_method_that_it_chooses_itself(place):
    told = ("--data", place / "data", "--teacher", place / "teacher", "--budget", "1/3", "--epochs", "1")
    error = fails(2, "distill", *told, "--set", "distill.0.weight=2", "--out", place / "set")
    assert "--method cd" in error
    ok("distill", *told, "--method", "cd", "--set", "distill.0.weight=2", "--out", place / "set", "--device", "cpu")


@pytest.mark.parametrize("bits", [1, 32])
def test_factors_that_are_not_finite_are_refused(bits):
    users, items = np.ones((4, 3), np.float32), np.full((5, 3), np.nan, np.float32)
    for dim in (None, 2):
        with pytest.raises(DataError, match="items hold NaN"):
            kdrs.compress((users, items), bits, dim)
    assert kdrs.compress((users, users), bits, np.int64(2)).model.dim == 2


def test_what_cannot_be_done_is_not_passed_over(place):
    with pytest.raises(ConfigError, match="there is no data set to choose by"):
        kdrs.compress((np.ones((4, 3)), np.ones((5, 3))), budget="1/2")
    ok("data", "prepare", place / "clicks.csv", "--split", "ratio", "--out", place / "other")
    with pytest.raises(ArtefactError, match="another split"):
        kdrs.compress(kdrs.load_run(place / "teacher"), dataset=place / "other")


def test_codes_as_teacher_of_groups(place):
    """unKD asks for the best of a group of items: codes give the lists that their scores give."""
    run = kdrs.load_run(place / "sum")
    teacher, group = run.teacher(), np.array([50, 3, 17, 18, 40, 41, 5])
    found = group_lists(teacher, run.task, group, 4)
    for user in range(5):
        inside = np.setdiff1d(np.sort(group), run.task.seen.to_csr()[user].indices)
        scores = teacher.score_block(np.array([user]))[0].numpy()[inside]
        best = inside[np.argsort(-scores, kind="stable")][:4]
        assert found[user][: len(best)].tolist() == best.tolist()


@pytest.mark.parametrize("teacher", ["sum", "table"])
def test_a_compact_teacher_is_not_trained_along(teacher, place, tmp_path):
    told = ("--data", place / "data", *TRAINED, "--method", "bd", "--out", tmp_path / "run")
    assert "cannot be trained" in fails(2, "distill", "--teacher", place / teacher, *told)
    assert not (tmp_path / "run").exists()


def test_a_part_that_will_be_compact_is_not_trained_along(place, tmp_path):
    """Known before the part is trained."""
    (tmp_path / "run.toml").write_text(
        f'[data]\npath = "{place / "data"}"\n[model]\nname = "bpr"\ndim = 4\n[teachers.X]\n'
        'model = { name = "bpr", dim = 6, bits = 2 }\n[[distill]]\nmethod = "bd"\nteacher = "X"\n'
    )
    assert "bits = 32" in fails(2, "distill", tmp_path / "run.toml", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
