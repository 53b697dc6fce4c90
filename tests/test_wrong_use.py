"""Wrong combinations are refused with one clear error and the documented exit code before anything is trained, whether the
teacher exists or is a part that the same run trains first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import save_file

from commands import fails, listing, ok
from conftest import toy_dataset
from kdrs.core import sampling
from kdrs.data import Dataset
from kdrs.distillers import DCD, DGKD, RRD, HyperKDMA
from kdrs.errors import ConfigError
from kdrs.fitting.fit import fit
from kdrs.fitting.learner import Learner, Term
from kdrs.models import BPR
from kdrs.teachers.model import ModelTeacher

BIG = {"model": {"name": "bpr", "dim": 16}}


@pytest.fixture(scope="module")
def unordered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_dataset(ordered=False).save(tmp_path_factory.mktemp("data") / "unordered")


@pytest.fixture
def lists_only(toy: Dataset, tmp_path: Path) -> str:
    """A teacher file that holds a ranking and nothing else."""
    best = torch.rand(toy.n_users, toy.n_items, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :40]
    path = tmp_path / "lists.safetensors"
    digests = {"users_digest": toy.users.digest, "items_digest": toy.items.digest}
    save_file({"topk": best.int()}, path, metadata={"kdrs": "teacher/1", **digests})
    return str(path)


def write(folder: Path, data: Path, **changes) -> Path:
    values = {
        "data": {"path": str(data)},
        "model": {"name": "bpr", "dim": 4},
        "train": {"epochs": 1, "batch_size": 64},
        "device": "cpu",
        **changes,
    }
    (folder / "run.toml").write_text(tomli_w.dumps(values))
    return folder / "run.toml"


def refused(code: int, words: list[str], folder: Path, data: Path, **changes) -> None:
    """The run, and its dry run, end with ``code`` and leave nothing behind."""
    file = write(folder, data, **changes)
    before = listing(folder)
    for dry in ((), ("--dry-run",)):
        error = fails(code, "distill", file, "--out", folder / "run", *dry)
        for word in words:
            assert word in error, error
        assert listing(folder) == before


def with_part(term: dict, **part) -> dict:
    return {"teachers": {"big": {**BIG, **part}}, "distill": [{"teacher": "big", **term}]}


@pytest.fixture(scope="module")
def big(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("runs") / "big"
    ok(
        "train",
        "--data",
        toy_path,
        "--model",
        "bpr",
        "--dim",
        16,
        "--epochs",
        1,
        "--device",
        "cpu",
        "--out",
        place,
        "-q",
    )
    return str(place)


@pytest.mark.parametrize("method", ["de", "phr", "takd", "hint", "ftd"])
def test_vectors_wanted_of_a_ranking(toy_path, tmp_path, lists_only, method):
    terms = [{"method": method, "teacher": lists_only}]
    refused(4, ["lists.safetensors", "holds", "embeddings"], tmp_path, toy_path, distill=terms)
    # the part would be trained first, and for nothing
    terms.append({"method": "rrd", "pool": 20, "interesting": 5, "uninteresting": 5, "teacher": "big"})
    refused(4, ["lists.safetensors", "holds", "embeddings"], tmp_path, toy_path, teachers={"big": BIG}, distill=terms)


def test_rd_past_the_catalogue(toy_path, tmp_path, big):
    words = ["items is 500, the catalogue has 80 items", "1 to 80"]
    refused(2, words, tmp_path, toy_path, distill=[{"method": "rd", "items": 500, "teacher": big}])
    refused(2, words, tmp_path, toy_path, **with_part({"method": "rd", "items": 500}))


def test_hetcomp_without_stages(toy_path, tmp_path, big):
    words = ["1 state(s) of its training", "train.stages_every"]
    refused(4, words, tmp_path, toy_path, distill=[{"method": "hetcomp", "teacher": big}])
    refused(4, words, tmp_path, toy_path, **with_part({"method": "hetcomp"}))
    trains = {"epochs": 3, "stages_every": 1}
    ok(
        "distill", write(tmp_path, toy_path, **with_part({"method": "hetcomp", "states": 2, "target": 20}, train=trains)),
        "--dry-run",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("term", "part", "words"),
    [
        (
            {"method": "takd", "chain": 3},
            {"model": {"name": "bpr", "dim": 4}},
            ["no assistant fits", "teacher of 4", "or chain = 0"],
        ),
        ({"method": "takd", "chain": [16, 8]}, {}, ["chain is [16, 8]", "teacher of 16", "student of 4"]),
        ({"method": "dgkd", "chain": [3]}, {}, ["chain is [3]"]),
        ({"method": "dgkd"}, {"model": {"name": "bpr", "dim": 4}}, ["no assistant fits", "or chain = 0"]),
        ({"method": "hyperkdma"}, {"model": {"name": "bpr", "dim": 4}}, ["no assistant fits", "assistants = 0"]),
        (
            {"method": "hyperkdma", "assistants": "given", "chain": 2},
            {"model": {"name": "bpr", "dim": 4}},
            ["no assistant fits", "or assistants = 0 and chain = 0"],
        ),
        ({"method": "de"}, {"model": {"name": "neumf", "dim": 4, "layers": 5}}, ["part 'big'", "layers is 5"]),
        ({"method": "de"}, {"model": {"name": "ngcf", "dim": 2, "layers": 2}}, ["part 'big'", "dim is 2 for 3"]),
    ],
)
def test_sizes_that_make_no_sense(toy_path, tmp_path, term, part, words):
    refused(2, words, tmp_path, toy_path, **with_part(term, **part))


@pytest.mark.parametrize("model", ["caser", "sasrec"])
def test_sequences_of_data_without_order(unordered, tmp_path, big, model):
    one = {"name": model, "dim": 4}
    words = ["sequential model", "no order"]
    error = fails(3, "train", write(tmp_path, unordered, model=one), "--out", tmp_path / "run")
    assert all(word in error for word in words)
    refused(3, [*words, "part 'big'"], tmp_path, unordered, **with_part({"method": "cd"}, model=one))


def test_two_learners_of_different_data(toy_path, tmp_path):
    part = {"model": {"name": "cdae", "dim": 4}}
    refused(2, ["UserTask", "PairTask"], tmp_path, toy_path, **with_part({"method": "bd"}, **part))


def test_a_start_of_another_size(toy_path, tmp_path):
    refused(4, ["start", "16 dimensions"], tmp_path, toy_path, start="big", **with_part({"method": "cd"}))


def test_a_wrong_term_of_a_later_part(toy_path, tmp_path):
    """Two parts deep: the second part's own term is checked before the first is trained."""
    tables = {"big": BIG, "mid": {**BIG, "distill": [{"method": "rd", "items": 500, "teacher": "big"}]}}
    refused(
        2, ["part 'mid'", "items is 500"], tmp_path, toy_path, teachers=tables,
        distill=[{"method": "cd", "teacher": "mid"}],
    )  # fmt: skip


def test_a_part_whose_directory_holds_another(toy_path, tmp_path, big):
    tables = {"first": BIG, "big": {"model": {"name": "bpr", "dim": 8}}}
    terms = [{"method": "cd", "name": name, "items": 5, "pool": 20, "teacher": name} for name in tables]
    place = Path(big).parent
    before = sorted(place.iterdir())
    file = write(tmp_path, toy_path, teachers=tables, distill=terms, parts=str(place))
    assert "model.dim = 16, now it is 8" in fails(2, "distill", file, "--out", tmp_path / "run")
    assert sorted(place.iterdir()) == before  # the first part is not there


def test_what_went_wrong_is_told_in_one_line_each(toy_path, tmp_path):
    """STATUS.json holds cause and remedy apart."""
    file = write(tmp_path, toy_path, train={"epochs": 2, "lr": 1e38, "optimizer": "lazy-adam", "batch_size": 64})
    fails(1, "train", file, "--out", tmp_path / "run")
    status = json.loads((tmp_path / "run/STATUS.json").read_text())
    assert status["status"] == "failed"
    assert status["error"].startswith("TrainingError: the loss")
    assert "\\n" not in status["error"]
    assert "lower the learning rate" in status["remedy"]


@pytest.mark.parametrize(
    ("method", "sizes", "options", "cause"),
    [
        (HyperKDMA, (9,), {"assistants": 0, "anchor": 1.0}, "anchor is 1 without assistants that count"),
        (HyperKDMA, (9,), {"ta_dims": (3, 5)}, r"ta_dims is \[3, 5\], with a teacher of 9 and a student of 3"),
        (HyperKDMA, (9,), {"ta_dims": (5, 9)}, r"ta_dims is \[5, 9\]"),
        (HyperKDMA, (9,), {"ta_dims": (5, 5)}, r"ta_dims is \[5, 5\]"),
        (HyperKDMA, (9, 20), {"assistants": "given"}, "an assistant has 20 dimensions, the teacher 9"),
        (HyperKDMA, (9, 5), {"assistants": "given", "ta_sum": "none"}, 'ta_sum is "none" with assistants = "given"'),
        (DGKD, (5, 9), {}, "an assistant has 9 dimensions, the teacher 5"),
        (DCD, (9,), {"ranking_weight": 0.0, "user_weight": 0.0, "item_weight": 0.0}, "nothing has a weight"),
    ],
)
def test_sizes_and_weights_that_make_no_sense(task, method, sizes, options, cause):
    teachers = [ModelTeacher(BPR(BPR.Config(dim=dim), task), task) for dim in sizes]
    with pytest.raises(ConfigError, match=cause):
        method(method.Config(**options), teachers, task, 3)


def test_a_term_that_teaches_nothing_is_named_once(task):
    """The list is the catalogue: there is no item below it, and one item alone has no order."""
    teacher = ModelTeacher(BPR(BPR.Config(dim=4), task), task)
    term = Term("flat", 1.0, RRD(RRD.Config(interesting=1, pool=500), [teacher], task, 3))
    with pytest.warns(UserWarning, match="the loss of 'flat' was 0 in a whole epoch") as warned:
        fit(Learner(BPR(BPR.Config(dim=3), task), task, [term]), task, epochs=3)
    assert len([warning for warning in warned if "the loss of" in str(warning.message)]) == 1


def test_draws_that_the_machine_cannot_hold(toy):
    rows, lists = np.arange(toy.n_users), np.zeros((toy.n_users, 1), np.int32)
    most = 2**31 - 1
    for draw in (
        lambda: sampling.negatives(toy.train, rows, most, seed=0),
        lambda: sampling.weighted(lists, np.ones(1), most, seed=0),
        lambda: sampling.outside(toy.train, lists, most, seed=0),
        lambda: sampling.discrepancy(lists * 1.0, lists * 1.0, None, most, law="exp", sharpness=1.0, seed=0),
    ):
        with pytest.raises(MemoryError):
            draw()


def test_no_memory_is_exit_code_5(toy_path, tmp_path):
    common = ("--data", toy_path, "--model", "bpr", "--device", "cpu", "--epochs", 1, "--out", tmp_path / "run")
    assert "GiB of memory; this process may have" in fails(5, "train", *common, "--dim", 2**31 - 1)


def test_terms_are_told_by_where_they_come_from(toy_path: Path, tmp_path: Path) -> None:
    file = write(tmp_path, toy_path, distill=[{"method": "cd", "teacher": "x"}])
    assert "the run file or --set has [[distill]] terms" in fails(2, "train", file)
    stated = ("--set", "distill.0.weight=3")
    command = ("train", "--data", toy_path, "--model", "bpr", "--dry-run")
    error = fails(2, *command, *stated)
    assert "error: --set states distill\n  try: use kdrs distill, or leave that out" in error
    ok(*command)
