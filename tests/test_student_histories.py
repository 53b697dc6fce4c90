"""Students of models that encode histories: the network in the file, against the model itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import kdrs
from commands import ok
from conftest import toy_dataset
from kdrs.compact.encoders import asked
from kdrs.data import Dataset, Interactions
from kdrs.errors import ArtefactError
from kdrs.student import Student, file

RUNS = {
    "ccd": ("multvae",),
    "wide": ("multvae", "--set", "model.form=mult_vae", "--set", "model.width=20"),
    "cdae": ("cdae",),
}
WHOLE = ("ccd", "wide")
"""Models whose users are their histories and nothing else."""
N_USERS, N_ITEMS = 60, 70


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("histories")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toy_dataset(N_USERS, N_ITEMS, candidates=None).save("d")
        for name, (model, *more) in RUNS.items():
            ok("train", "--data", "d", "--model", model, *more, "--dim", "8", "--batch-size", "32", "--lr", "0.01",
               "--epochs", "8", "--device", "cpu", "--threads", "1", "--quiet", "--out", name)  # fmt: skip
            ok("export", name, "--seen", "--out", f"{name}.safetensors")
    return folder


@pytest.fixture
def here(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    return place


def opened(name: str) -> tuple[kdrs.LoadedRun, Student]:
    return kdrs.load_run(name), Student.load(f"{name}.safetensors")


def histories_of(data: Dataset) -> list[list[str]]:
    """Each user's training items as ids, oldest first."""
    ends = data.train.indptr
    return [[data.items[int(i)] for i in data.order[ends[u] : ends[u + 1]]] for u in range(data.n_users)]


def new_histories(data: Dataset, n: int = 9) -> list[list[int]]:
    """Of nobody: rows of items, in an order, of several lengths."""
    rng = np.random.default_rng(5)
    return [rng.permutation(data.n_items)[: 1 + 3 * length].tolist() for length in range(n)]


def vectors_of(run: kdrs.LoadedRun, lists: list[list[int]]) -> np.ndarray:
    """What the torch model itself computes of these histories, for users that it does not know."""
    model, n_items = run.model, run.dataset.n_items
    rows = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    seen = Interactions.from_pairs(rows, [i for one in lists for i in one], len(lists), n_items)
    with torch.no_grad():
        if run.config.model["name"] == "multvae":
            model.rows.indptr, model.rows.columns = (
                torch.from_numpy(seen.indptr.copy()),
                torch.from_numpy(seen.indices.copy()),
            )
            return model.represent(torch.arange(len(lists))).numpy()
        if run.config.model["name"] == "cdae":
            model.users.weight.zero_()
            model.rows.indptr, model.rows.columns = (
                torch.from_numpy(seen.indptr.copy()),
                torch.from_numpy(seen.indices.copy()),
            )
            return model.encode(torch.arange(len(lists))).numpy()
    raise AssertionError(run.config.model["name"])


def best_of(vectors: np.ndarray, run: kdrs.LoadedRun, hidden: Interactions, k: int = 10) -> np.ndarray:
    _, items, bias = run.factors()
    items, bias = items.numpy(), None if bias is None else bias.numpy()
    return np.asarray(kdrs.ranking.topk(vectors, items, k, seen=hidden, bias=bias).items)


@pytest.mark.parametrize("name", RUNS)
def test_known_users_have_the_lists_of_the_run(here, name):
    run, student = opened(name)
    assert (student.tables.users is None) == (name in WHOLE)
    data = run.dataset
    wanted = best_of(run.factors().queries.numpy(), run, data.train)
    assert np.array_equal(student.recommend(list(data.users), 10).places, wanted)


@pytest.mark.parametrize("name", RUNS)
def test_training_items_give_the_models_own_vector(here, name):
    run, student = opened(name)
    own = run.factors().queries.numpy()
    if name in WHOLE:
        assert np.abs(student.fold_in(histories_of(run.dataset)) - own).max() < 1e-5
        assert student.card["new_users"]["share"] == pytest.approx(1, abs=1e-6)
    else:  # without the vectors that users have of their own
        assert np.abs(student.fold_in(histories_of(run.dataset)) - own).max() > 1e-3
    assert student.card["new_users"]["encoder"] == f"the model's own, {student.tables.encoder.kind}"
    assert student.card["bytes"] == student.nbytes == sum(part.nbytes for part in student.tables.tensors().values())


@pytest.mark.parametrize("name", RUNS)
def test_new_users_have_the_lists_of_the_model(here, name):
    run, student = opened(name)
    lists = new_histories(run.dataset)
    ids = [[run.dataset.items[item] for item in one] for one in lists]
    hidden = Interactions.from_pairs(
        np.repeat(np.arange(len(lists)), [len(one) for one in lists]),
        [item for one in lists for item in one],
        len(lists),
        run.dataset.n_items,
    )
    fresh = kdrs.load_run(name)
    vectors = vectors_of(fresh, lists)
    assert np.abs(student.fold_in(ids) - vectors).max() < 1e-5
    assert np.array_equal(student.recommend(histories=ids, k=10).places, best_of(vectors, run, hidden))


@pytest.mark.parametrize("name", RUNS)
def test_a_user_is_encoded_alike_in_any_company(here, name, monkeypatch):
    """To the last bit, also in blocks of few users."""
    run, student = opened(name)
    lists = histories_of(run.dataset)
    together = student.fold_in(lists)
    assert len({one.tobytes() for one in together}) > 40
    for user in range(0, N_USERS, 7):
        assert student.fold_in([lists[user]]).tobytes() == together[user].tobytes()
        assert student.fold_in(lists[user : user + 3])[0].tobytes() == together[user].tobytes()
    monkeypatch.setattr("kdrs.compact.encoders.BLOCK", 100)
    assert student.fold_in(lists).tobytes() == together.tobytes()


@pytest.mark.parametrize("name", RUNS)
def test_without_an_encoder_users_have_a_table(here, name, tmp_path):
    ok("export", name, "--no-fold-in", "--out", tmp_path / "table.safetensors")
    student, run = Student.load(tmp_path / "table.safetensors"), kdrs.load_run(name)
    assert not student.encodes
    assert student.tables.users.tobytes() == run.factors().queries.numpy().tobytes()


def test_a_user_who_has_nothing_is_what_the_network_says(here):
    """The file refuses an empty history; tables of all users, for other tools, have a row for such a user."""
    run, student = opened("ccd")
    nobody = Interactions.from_pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), 2, N_ITEMS)
    found = asked(student.tables.encoder, nobody, student.tables.items)
    assert np.abs(found - vectors_of(run, [[], []])).max() < 1e-5


def damaged(name: str, target: Path, change) -> Path:
    """The same file with other tensors, its checksum made anew."""
    found = file.read(Path(f"{name}.safetensors"))
    tensors, metadata = {key: value.copy() for key, value in found.tensors.items()}, dict(found.metadata)
    change(tensors, metadata)
    file.write(target, tensors, {key: value for key, value in metadata.items() if key not in ("kdrs", "crc32")})
    return target


def changed(name: str, make):
    return lambda tensors, _: tensors.update({name: make(tensors[name])})


def without(name: str):
    return lambda tensors, _: tensors.pop(name)


def nan_first(array: np.ndarray) -> np.ndarray:
    array.reshape(-1)[0] = np.nan
    return array


def another_kind(kind: str):
    def change(_, metadata) -> None:
        metadata["tables"] = json.dumps(json.loads(metadata["tables"]) | {"encoder": kind})

    return change


DAMAGE = {
    "a row less": ("wide", changed("encoder_table", lambda a: a[:-1])),
    "not finite": ("wide", changed("encoder_weight_1", nan_first)),
    "another type": ("wide", changed("encoder_bias", lambda a: a.astype(np.float64))),
    "a layer missing": ("wide", without("encoder_weight_2")),
    "no bias": ("cdae", without("encoder_bias")),
    "one activation more": ("ccd", changed("encoder_activations", lambda a: np.append(a, a[-1:]))),
    "no such activation": ("ccd", changed("encoder_activations", lambda a: a + np.uint8(9))),
    "no activations": ("ccd", changed("encoder_activations", lambda a: a[:0])),
    "no power": ("ccd", changed("encoder_power", lambda a: a - 1)),
    "turned": ("wide", changed("encoder_weight_1", lambda a: a.T.copy())),
    "a sum": ("cdae", another_kind("sum")),
    "unknown": ("cdae", another_kind("magic")),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_one_clear_error(here, tmp_path, what):
    name, change = DAMAGE[what]
    with pytest.raises(ArtefactError) as error:
        Student.load(damaged(name, tmp_path / "bad.safetensors", change))
    assert "is damaged: " in str(error.value)
    assert "encoder" in str(error.value)
    assert "\n" not in error.value.cause
