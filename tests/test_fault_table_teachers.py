"""Rows 33 to 38 of the table of faults: teachers of other programs, and what kdrs does with each kind of bad one."""

from __future__ import annotations

import bz2
import io
import pickle
import re
import shlex
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from safetensors.torch import save_file

import kdrs
from commands import fails, listing, ok
from conftest import toy_dataset
from kdrs.core import ranking
from kdrs.data import PRESETS, Dataset, Recipe, prepare
from kdrs.errors import ArtefactError
from kdrs.evaluation.evaluator import Evaluator
from kdrs.runs.compared import compare_runs
from kdrs.runs.results import measure_teachers
from kdrs.teachers import audit
from kdrs.teachers.audit import knowledge_of, teacher_doubts
from kdrs.teachers.file import FileTeacher
from kdrs.training.pairs import PairTask


class Payload:
    """Writes a marker when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def about(data: Dataset) -> dict[str, str]:
    return {"kdrs": "teacher/1", "users_digest": data.users.digest, "items_digest": data.items.digest}


def written(path: Path, data: Dataset, **tensors: object) -> Path:
    held = {name: torch.as_tensor(value) for name, value in tensors.items()}
    try:
        save_file({name: value.contiguous() for name, value in held.items()}, path, metadata=about(data))
    except KeyError as error:
        pytest.skip(f"this safetensors cannot write {error}")
    return path


def opened(path: Path, data: Dataset) -> FileTeacher:
    return FileTeacher(path, PairTask(data.train), digests={"users": data.users.digest, "items": data.items.digest})


def refused(path: Path, data: Dataset) -> str:
    with pytest.raises(ArtefactError) as caught:
        opened(path, data)
    assert caught.value.exit_code == 4
    assert caught.value.remedy
    return str(caught.value)


def factors(data: Dataset, dim: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "users": torch.randn(data.n_users, dim, generator=generator),
        "items": torch.randn(data.n_items, dim, generator=generator),
    }


# 33: pickles.


def pickles(marker: Path) -> dict[str, bytes]:
    payload = Payload(marker)
    archive, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"w": payload}, archive)
    torch.save({"w": payload}, legacy, _use_new_zipfile_serialization=False)
    objects = io.BytesIO()
    np.savez(objects, users=np.array([payload], dtype=object))
    found = {f"protocol {n}": pickle.dumps([payload], protocol=n) for n in range(6)}
    found |= {f"bare, protocol {n}": pickle.dumps(payload, protocol=n) for n in range(6)}
    joblib = b"\x80\x04\x95\x31\x00\x00\x00\x00\x00\x00\x00\x8c\x13joblib.numpy_pickle\x94"
    return found | {
        "torch archive": archive.getvalue(),
        "old torch archive": legacy.getvalue(),
        "object array": objects.getvalue(),
        "joblib": joblib + pickle.dumps(payload, protocol=4),
        "compressed by zlib": zlib.compress(pickle.dumps(payload)),
        "compressed by bzip2": bz2.compress(pickle.dumps(payload)),
    }


KINDS = {
    "torch archive": r"is a torch archive \(torch.save\)",
    "old torch archive": "is a torch archive of old form",
    "object array": r"NumPy's archive.*is pickled",
    "joblib": "is a pickle of joblib.dump",
    "compressed by zlib": "compressed by zlib",
    "compressed by bzip2": "compressed by bzip2",
}


@pytest.mark.parametrize("kind", pickles(Path("unused")))
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_fault_33_pickles_are_told_and_never_loaded(tmp_path, toy, kind, suffix):
    marker = tmp_path / "marker"
    path = tmp_path / f"teacher{suffix}"
    path.write_bytes(pickles(marker)[kind])
    message = refused(path, toy)
    assert not marker.exists()
    assert re.search(KINDS.get(kind, "is a pickle, which can run code"), message)
    assert "safetensors" in message


def test_fault_33_on_the_command_line(tmp_path, toy, toy_path):
    marker, path = tmp_path / "marker", tmp_path / "teacher.pkl"
    path.write_bytes(pickle.dumps(Payload(marker)))
    command = ["distill", "--data", toy_path, "--teacher", path, "--method", "rrd", "--model", "bpr", "--dim", "4"]
    error = fails(4, *command, "--out", tmp_path / "run")
    assert "is a pickle" in error
    assert set(listing(tmp_path)) == {"teacher.pkl"}


def test_fault_33_an_archive_of_arrays_is_no_pickle(tmp_path, toy, toy_path):
    mine = {name.rstrip("s") + "_factors": value.numpy() for name, value in factors(toy).items()}
    np.savez(tmp_path / "factors.npz", **mine, factors=8)
    command = [
        "distill",
        "--data",
        toy_path,
        "--teacher",
        tmp_path / "factors.npz",
        "--method",
        "rrd",
        "--model",
        "bpr",
    ]
    error = fails(4, *command, "--dim", "4", "--dry-run")
    assert "is NumPy's archive (.npz)" in error
    assert "pickle or" not in error
    assert "torch archive" not in error
    assert "user_factors float32 [50, 8]" in error
    # the remedy works as it stands
    words = shlex.split(error[error.index("kdrs teacher import") :])
    for kind, ids in (("user", toy.users), ("item", toy.items)):
        (tmp_path / f"{kind}s.txt").write_text("".join(f"{one}\n" for one in ids))
        words[words.index(f"--{kind}-ids") + 1] = str(tmp_path / f"{kind}s.txt")
    words[words.index("--data") + 1], words[words.index("--out") + 1] = (
        str(toy_path),
        str(tmp_path / "teacher.safetensors"),
    )
    ok(*words[1:])
    teacher = FileTeacher(tmp_path / "teacher.safetensors", PairTask(toy.train), dataset=toy)
    assert torch.equal(teacher.factors().items, factors(toy)["items"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04" + b"\x00" * 40, "cut short or damaged"),
        (b"PK\x05\x06" + b"\x00" * 18, "nothing in it"),
        (b"\x93NUMPY\x01\x00v\x00", "one NumPy array"),
        (b"\x89HDF\r\n\x1a\n" + b"\x00" * 9, "HDF5"),
        (b"PAR1" + b"\x00" * 9, "Parquet"),
        (b"", "no readable safetensors"),
        (b"users,items\n1,2\n", "no readable safetensors"),
    ],
)
def test_fault_33_other_files_are_named(tmp_path, toy, content, says):
    (tmp_path / "teacher").write_bytes(content)
    assert says in refused(tmp_path / "teacher", toy)


# 34: other ids, other shapes.


def test_fault_34_other_ids_are_refused(tmp_path, toy):
    path = tmp_path / "t"
    save_file(factors(toy), path, metadata=about(toy) | {"items_digest": "0" * 64})
    assert "was made for other items" in refused(path, toy)
    save_file(factors(toy), path, metadata={"kdrs": "teacher/1"})
    with pytest.warns(UserWarning, match="states no (users|items)_digest") as caught:
        opened(path, toy)
    assert {str(warning.message).split(" states no ")[1].split(":")[0] for warning in caught} == {
        "users_digest",
        "items_digest",
    }


@pytest.mark.parametrize(
    ("name", "shape", "hint"),
    [
        ("users", (51, 8), "padding row"),
        ("items", (81, 8), r"items\[1:\]"),
        ("users", (49, 8), "1 rows fewer"),
        ("items", (90, 8), "10 rows more"),
        ("users", (80, 8), "exchanged"),
        ("users", (8, 50), r"transposed\? save users.T"),
        ("items", (8, 81), r"items.T\[1:\]"),
        ("items", (80, 1, 8), r"items.squeeze\(1\)"),
        ("users", (50,), r"allowed: floats \(float32\) of shape \[50, D\]"),
        ("item_bias", (80, 1), r"item_bias.squeeze\(1\)"),
        ("item_bias", (1, 80), r"item_bias.squeeze\(0\)"),
        ("item_bias", (81,), r"item_bias\[1:\]"),
        ("item_bias", (80, 3), r"allowed: floats \(float32\) of shape \[80\]"),
        ("item_bias", (), r"of shape \[80\]"),
        ("users", (50, 0), "0 dimensions"),
        ("users", (50, 7), "7 dimensions, items 8"),
    ],
)
def test_fault_34_shapes_come_with_what_is_allowed_and_how_to_mend_them(tmp_path, toy, name, shape, hint):
    path = written(tmp_path / "t", toy, **(factors(toy) | {name: torch.zeros(shape)}))
    message = refused(path, toy)
    assert name in message
    assert re.search(hint, message)
    assert "allowed" in message


# 35 and 36: ids out of order, held-out pairs known.


@pytest.fixture(scope="module")
def tastes() -> Dataset:
    return toy_dataset(300, 160, candidates=None)


def learnt(data: Dataset, *parts: str, dim: int = 12) -> dict[str, np.ndarray]:
    """Factors that a least-squares fit of these parts has: a truncated singular value decomposition."""
    known = data.train
    for part in parts:
        known = known.union(getattr(data, part))
    start = np.random.default_rng(0).standard_normal(min(known.shape))  # older SciPy takes no rng
    u, s, v = scipy.sparse.linalg.svds(known.to_csr().astype(float), dim, v0=start)
    return {"users": (u * s).astype(np.float32), "items": v.T.astype(np.float32).copy()}


def doubts(path: Path, data: Dataset, **tensors: object) -> list[str]:
    teacher = opened(written(path, data, **tensors), data)
    return teacher_doubts(teacher, {"train": data.train, "valid": data.valid, "test": data.test})


def test_an_honest_teacher_is_not_doubted(tmp_path, tastes):
    assert doubts(tmp_path / "t", tastes, **learnt(tastes)) == []
    assert doubts(tmp_path / "t", tastes, **learnt(tastes, dim=40)) == []


@pytest.mark.parametrize("side", ["users", "items"])
@pytest.mark.parametrize("how", ["shuffled", "moved"])
def test_fault_35_ids_out_of_order_are_warned_of(tmp_path, tastes, side, how):
    mine = learnt(tastes)
    rng = np.random.default_rng(5)
    mine[side] = rng.permutation(mine[side]) if how == "shuffled" else np.roll(mine[side], 1, axis=0)
    (doubt,) = doubts(tmp_path / "t", tastes, **mine)
    # tastes repeat with every fourth user and item: users moved on look as items moved back
    assert ("one row out of place" if how == "moved" else "in another order") in doubt


def test_fault_35_it_is_said_before_training_and_in_the_comparison(tmp_path, tastes):
    mine = learnt(tastes)
    mine["items"] = np.random.default_rng(5).permutation(mine["items"])
    tastes.save(tmp_path / "d")
    path = written(tmp_path / "shuffled", tastes, **mine)
    small = ["--data", tmp_path / "d", "--model", "bpr", "--dim", "4", "--epochs", "2", "--device", "cpu"]
    result = ok("distill", *small, "--teacher", path, "--method", "score-matching", "--out", tmp_path / "run")
    assert "in another order than the data set's" in result.err
    ok("train", *small, "--out", tmp_path / "alone")
    found = compare_runs([path, tmp_path / "run", tmp_path / "alone"], time_scoring=False)
    assert any("in another order" in warning for warning in found.warnings)
    assert any("not clearly better than the model alone, alone" in warning for warning in found.warnings)
    result = ok("report", path, tmp_path / "run", tmp_path / "alone", "--out", tmp_path / "report")
    assert "in another order" in result.err
    assert "in another order" in (tmp_path / "report/comparison.md").read_text()


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (("test",), "trained on the test part"),
        (("valid",), "trained on the validation part"),
        (("valid", "test"), "trained on the validation and the test part"),
    ],
)
def test_fault_36_held_out_pairs_that_a_teacher_knows_are_warned_of(tmp_path, tastes, parts, says):
    (doubt,) = doubts(tmp_path / "t", tastes, **learnt(tastes, *parts, dim=40))
    assert says in doubt
    assert "train it on the training part alone" in doubt


def test_fault_36_lists_alone_show_the_test_part_too(tmp_path, tastes):
    for parts, found in (((), 0), (("test",), 1)):
        mine = learnt(tastes, *parts, dim=40)
        best = ranking.topk(mine["users"], mine["items"], 20, seen=tastes.train)
        said = doubts(tmp_path / "t", tastes, topk=best.items)
        assert len(said) == found
        assert all("of the test items" in doubt for doubt in said)


def test_fault_36_it_is_said_before_training(tmp_path, tastes):
    path = written(tmp_path / "t", tastes, **learnt(tastes, "test", dim=40))
    with pytest.warns(
        UserWarning, match="teacher 't': it seems to have been trained on the test part|trained on the test part"
    ):
        measure_teachers({"t": opened(path, tastes)}, Evaluator.of(tastes), tastes)
    with pytest.warns(UserWarning, match="trained on the test part"):
        kdrs.compress(path, bits=4, users="table", dataset=tastes)


def test_what_a_teacher_knows_is_measured_against_a_slow_count(tmp_path, toy, monkeypatch):
    monkeypatch.setattr(audit, "BLOCK_SCORES", 80 * 7)  # seven users a block
    teacher = opened(written(tmp_path / "t", toy, **factors(toy)), toy)
    parts = {"train": toy.train, "valid": toy.valid, "test": toy.test}
    found = knowledge_of(teacher, parts)
    scores = teacher.score_block(np.arange(toy.n_users)).numpy().astype(float)
    free = ~(toy.full.to_csr().toarray() > 0)
    rows = np.stack([(s - s[f].mean()) / s[f].std() for s, f in zip(scores, free, strict=True)])
    levels = np.stack([(c - c[f].mean()) / c[f].std() for c, f in zip(rows.T, free.T, strict=True)]).T
    for name, part in parts.items():
        expected = [levels[u, part.row(u)].mean() for u in range(toy.n_users)]
        assert found.parts[name] == pytest.approx(expected, abs=1e-4)
    mine = [set(toy.full.row(u).tolist()) for u in range(toy.n_users)]
    other = [[i for i in toy.train.row((u + 1) % toy.n_users) if i not in mine[u]] for u in range(toy.n_users)]
    assert found.parts["other"] == pytest.approx([levels[u, o].mean() for u, o in enumerate(other)], abs=1e-4)


def test_parts_that_are_empty_are_no_obstacle(tmp_path, tastes):
    bare = Dataset.from_interactions(tastes.train, None, tastes.test, users=tastes.users, items=tastes.items)
    assert doubts(tmp_path / "t", bare, **learnt(tastes, dim=40)) == []
    (doubt,) = doubts(tmp_path / "t", bare, **learnt(tastes, "test", dim=40))
    assert "trained on the test part" in doubt
    alone = Dataset.from_interactions(tastes.train, users=tastes.users, items=tastes.items)
    assert doubts(tmp_path / "t", alone, **learnt(tastes)) == []


@pytest.mark.slow
def test_real_data_tell_honest_teachers_from_bad_ones(tmp_path, data_folder):
    data = prepare(
        data_folder / "ml-100k/ml-100k.inter", Recipe(**PRESETS["loo-499"] | {"candidates": 0, "min_rating": 4})
    )
    for dim in (8, 32, 100):
        assert doubts(tmp_path / "t", data, **learnt(data, dim=dim)) == [], dim
    mine = learnt(data, dim=32)
    for side in ("users", "items"):
        bad = mine | {side: np.random.default_rng(0).permutation(mine[side])}
        assert doubts(tmp_path / "t", data, **bad), side
    for part in ("valid", "test"):
        assert "trained on" in doubts(tmp_path / "t", data, **learnt(data, part, dim=100))[0], part


# 37: types and layouts.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_fault_37_every_float_type_is_read_as_float32(tmp_path, toy, dtype):
    given = {name: value.to(dtype) for name, value in factors(toy).items()}
    bias = torch.linspace(-1, 1, toy.n_items).to(dtype)
    path = written(tmp_path / "t", toy, **given, item_bias=bias)
    before = path.read_bytes()
    teacher = opened(path, toy)
    scores = teacher.score_block(np.arange(3))
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    expected = given["users"][:3].float() @ given["items"].float().T + bias.float()
    assert torch.allclose(scores, expected, atol=1e-4)
    teacher.topk(5)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["users", "items", "item_bias", "topk", "topk_scores"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float32])
def test_fault_37_types_that_mean_something_else_are_refused(tmp_path, toy, name, dtype):
    shapes = {"users": (50, 8), "items": (80, 8), "item_bias": (80,), "topk": (50, 4), "topk_scores": (50, 4)}
    fits = torch.int32 if name == "topk" else torch.float32
    lists = torch.arange(4, dtype=torch.int32).repeat(50, 1)
    whole = factors(toy) | {"topk": lists, "topk_scores": torch.zeros(50, 4)}
    path = written(
        tmp_path / "t",
        toy,
        **whole | {name: torch.zeros(shapes[name]).to(dtype) if dtype != fits else whole.get(name, torch.zeros(80))},
    )
    if dtype == fits or (name, dtype) == ("topk_scores", torch.int32):
        opened(path, toy)
    else:
        message = refused(path, toy)
        assert f"{name} is {str(dtype).removeprefix('torch.')} of shape {list(shapes[name])}" in message
        assert "allowed: " in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_fault_37_values_past_float32_are_named(tmp_path, toy, value):
    mine = {name: tensor.double() for name, tensor in factors(toy).items()}
    mine["items"][7, 3] = value
    message = refused(written(tmp_path / "t", toy, **mine), toy)
    assert "items row 7 is not finite" in message
    big = {name: tensor * 1e25 for name, tensor in factors(toy).items()}
    assert "past the float32 range" in refused(written(tmp_path / "t", toy, **big), toy)


# 38: lists.


def lists_of(data: Dataset, k: int = 6) -> tuple[np.ndarray, np.ndarray]:
    best = ranking.topk(*(value.numpy() for value in factors(data).values()), k, seen=data.train)
    return best.items.copy(), best.scores.copy()


def test_fault_38_lists_run_best_first(tmp_path, toy):
    items, scores = lists_of(toy)
    assert (
        opened(written(tmp_path / "t", toy, topk=items, topk_scores=scores), toy).lists.items.tolist() == items.tolist()
    )
    message = refused(written(tmp_path / "t", toy, topk=items[:, ::-1].copy(), topk_scores=scores[:, ::-1].copy()), toy)
    assert "topk_scores row 0 rises" in message
    assert "worst first" in message
    items[9, [1, 4]], scores[9, [1, 4]] = items[9, [4, 1]], scores[9, [4, 1]]
    message = refused(written(tmp_path / "t", toy, topk=items, topk_scores=scores), toy)
    assert "topk_scores row 9 rises" in message
    assert "at place 2" in message
    assert "argsort" in message


def test_fault_38_scores_of_another_precision_or_equal_ones_are_in_order(tmp_path, toy):
    items, scores = lists_of(toy)
    for given in (scores.astype(np.float16), np.zeros_like(scores), scores + 1e-6 * np.arange(6), np.round(scores)):
        opened(written(tmp_path / "t", toy, topk=items, topk_scores=given), toy)


@pytest.mark.parametrize("filling", [0.0, 1e9, float("nan"), float("-inf"), float("inf")])
def test_fault_38_scores_at_padding_do_not_count(tmp_path, toy, filling):
    items, scores = lists_of(toy)
    items[:, 4:], scores[:, 4:] = -1, filling
    items[3, 2], scores[3, 2] = -1, filling  # a hole
    items[5], scores[5] = -1, filling
    found = opened(written(tmp_path / "t", toy, topk=items, topk_scores=scores), toy).lists
    assert found.items[0].tolist() == [*items[0, :4].tolist(), -1, -1]
    assert found.items[3, :4].tolist() == [*items[3, [0, 1, 3]].tolist(), -1]
    assert (found.items[5] == -1).all()
    scores[3, 3] = scores[3, 1] + 1  # the rise across the hole is seen
    assert "topk_scores row 3 rises" in refused(written(tmp_path / "t", toy, topk=items, topk_scores=scores), toy)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_fault_38_listed_items_have_finite_scores(tmp_path, toy, bad):
    items, scores = lists_of(toy)
    scores[11, 5] = bad
    message = refused(written(tmp_path / "t", toy, topk=items, topk_scores=scores), toy)
    assert f"topk_scores row 11 is {bad} at place 5, where topk lists item {items[11, 5]}" in message


@pytest.mark.parametrize(
    ("value", "says"),
    [(80, "id outside the catalogue: 80"), (-2, "catalogue: -2"), (2**40, "catalogue"), (None, "an item twice")],
)
def test_fault_38_ids_are_of_the_catalogue_and_once(tmp_path, toy, value, says):
    items = lists_of(toy)[0].astype(np.int64)
    items[13, 2] = items[13, 0] if value is None else value
    message = refused(written(tmp_path / "t", toy, topk=items), toy)
    assert "topk row 13" in message
    assert says in message


def test_fault_38_lists_and_scores_belong_together(tmp_path, toy):
    items, scores = lists_of(toy)
    message = refused(written(tmp_path / "t", toy, topk=items, topk_scores=scores[:, :4].copy()), toy)
    assert "topk_scores is float32 of shape [50, 4]" in message
    assert "[50, 6]" in message
    assert "topk_scores without topk" in refused(written(tmp_path / "t", toy, **factors(toy), topk_scores=scores), toy)
    assert "no item at all" in refused(written(tmp_path / "t", toy, topk=np.full_like(items, -1)), toy)
    for shape in ((49, 6), (50,), (50, 1, 6), (50, 0)):
        assert "topk is int32 of shape" in refused(written(tmp_path / "t", toy, topk=np.zeros(shape, np.int32)), toy)


def test_fault_38_seen_items_leave_the_lists(tmp_path, toy):
    items, _ = lists_of(toy)
    seen = toy.train.row(0)
    items[0, :2] = seen[:2]
    found = opened(written(tmp_path / "t", toy, topk=items), toy).lists.items[0]
    assert found.tolist() == [*items[0, 2:].tolist(), -1, -1]


def test_no_warning_of_numpy_leaks_out_of_the_checks(tmp_path, toy):
    items, scores = lists_of(toy)
    items[0], scores[0] = -1, np.nan
    items[1, 0], scores[1, 0] = -1, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(written(tmp_path / "t", toy, topk=items, topk_scores=scores), toy)
