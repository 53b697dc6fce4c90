"""Students of models that encode histories: the network in the file, against the model itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import kdrs
from commands import ok
from conftest import toy_dataset
from kdrs.compact.encoders import asked
from kdrs.data import Dataset, Histories, Interactions
from kdrs.errors import ArtefactError, ConfigError, DataError
from kdrs.student import Student, file
from kdrs.training.queries import Queries

RUNS = {
    "ccd": ("multvae",),
    "wide": ("multvae", "--set", "model.form=mult_vae", "--set", "model.width=20"),
    "cdae": ("cdae",),
    "sasrec": ("sasrec", "--set", "model.length=6", "--set", "model.heads=2"),
    "code": (
        "sasrec",
        "--set",
        "model.length=30",
        "--set",
        "model.block_form=code",
        "--set",
        "model.objective=softmax",
    ),
    "caser": ("caser", "--set", "model.conv_activation=relu"),
    "vertical": ("caser", "--set", "model.horizontal=0", "--set", "model.activation=identity"),
    "horizontal": ("caser", "--set", "model.vertical=0", "--set", "model.length=7", "--set", "model.activation=tanh"),
    "shallow": ("sasrec", "--set", "model.blocks=1"),
}
WHOLE = ("ccd", "wide", "sasrec", "code", "shallow")
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
            if name not in WHOLE:  # whichever encoder is the better
                Path(f"{name}.safetensors").rename(f"{name}.chosen.safetensors")
                of_network(name).save(f"{name}.safetensors")
    return folder


def of_network(name: str) -> Student:
    """The exported file with the model's own encoder, known users by their table."""
    run, chosen = kdrs.load_run(name), Student.load(f"{name}.chosen.safetensors")
    seen = Histories.of(run.dataset.train, run.dataset.order)
    tables = chosen.tables._replace(encoder=run.model.history_encoder())
    return Student(tables, chosen.items, chosen.users, seen=seen if tables.encoder.ordered else run.dataset.train)


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
        if run.config.model["name"] in ("sasrec", "caser"):
            if run.config.model["name"] == "caser":
                model.users.weight.zero_()
            history = torch.full((len(lists), model.task.length), n_items)
            for row, one in enumerate(lists):
                latest = one[-model.task.length :]
                history[row, model.task.length - len(latest) :] = torch.tensor(latest, dtype=torch.int64)
            return model.encode(Queries(torch.arange(len(lists)), torch.arange(len(lists)), history)).numpy()
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
        assert student.card["new_users"]["encoder"] == f"the model's own, {student.tables.encoder.kind}"
        tensors = student.tables.tensors()
        assert student.card["bytes"] == student.nbytes == sum(part.nbytes for part in tensors.values())
    else:  # without the vectors that users have of their own
        assert np.abs(student.fold_in(histories_of(run.dataset)) - own).max() > 1e-3


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


@pytest.mark.parametrize("name", RUNS)
def test_a_user_who_has_nothing_is_what_the_network_says(here, name):
    """The file refuses an empty history; tables of all users, for other tools, have a row for such a user."""
    run, student = opened(name)
    nobody = Histories.from_pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), 2, N_ITEMS)
    found = asked(student.tables.encoder, nobody, student.tables.items)
    assert np.abs(found - vectors_of(run, [[], []])).max() < 1e-5


def test_order_counts(here):
    """Of a model of sequences: in the lists that are given, in what was seen, and in vectors for other tools."""
    run, student = opened("sasrec")
    data = run.dataset
    lists = histories_of(data)
    backwards = [one[::-1] for one in lists]
    own = run.factors().queries.numpy()
    assert np.abs(student.fold_in(backwards) - own).max() > 1e-3
    twice = [[*one, one[0]] for one in lists]  # counts where it comes first, as in prepared data
    assert student.fold_in(twice).tobytes() == student.fold_in(lists).tobytes()
    assert np.array_equal(student.seen.order, data.order)
    assert student.fold_in(student.seen).tobytes() == student.fold_in(lists).tobytes()
    asked_for = ["17", "3", "44"]
    vectors = student.fold_in([lists[int(user)] for user in asked_for])
    found = student.recommend(asked_for, 10)
    assert np.array_equal(found.places, student.recommend(histories=[lists[int(u)] for u in asked_for], k=10).places)
    scores = student.score(asked_for, found.items.tolist())
    assert scores.tobytes() == found.scores.tobytes()
    assert np.abs(vectors - own[[17, 3, 44]]).max() < 1e-5


def test_a_matrix_has_no_order(here):
    run, student = opened("sasrec")
    for given in (run.dataset.train, run.dataset.train.to_csr()):
        with pytest.raises(ConfigError, match="a matrix, which has no order") as error:
            student.recommend(histories=given)
        assert "oldest first" in error.value.remedy
        with pytest.raises(ConfigError, match="a matrix, which has no order"):
            student.fold_in(given)
    with pytest.raises(DataError, match="histories have no order"):
        student.tables.encoder.encode(run.dataset.train, student.tables.items)


def test_a_set_has_no_order(here):
    """It would give another list in each process, since the order of strings in it changes."""
    student = Student.load("sasrec.safetensors")
    ids = [student.items[place] for place in (3, 9, 4)]
    for row in (set(ids), frozenset(ids), dict.fromkeys(ids).keys()):
        with pytest.raises(ConfigError, match="a set, which has no order"):
            student.recommend(histories=[ids, row], k=5)
        with pytest.raises(ConfigError, match="a set, which has no order"):
            student.fold_in([row])
        assert len(student.recommend(histories=[ids], k=5, exclude=[row])) == 1
    bag = Student.load("ccd.safetensors")
    found = [bag.recommend(histories=[row], k=5).places.tolist() for row in (ids, set(ids))]
    assert found[0] == found[1]


def test_histories_as_files_keep_their_order(here, tmp_path):
    _, student = opened("sasrec")
    rows = [("b", "9"), ("a", "3"), ("b", "1"), ("a", "60"), ("b", "30"), ("a", "5")]
    (tmp_path / "new.csv").write_text("user,item\n" + "".join(f"{user},{item}\n" for user, item in rows))
    ok("recommend", "sasrec.safetensors", "--histories", tmp_path / "new.csv", "--k", 5, "--out", tmp_path / "l.csv")
    frame = pl.read_csv(tmp_path / "l.csv", schema_overrides={"item": pl.String})
    wanted = student.recommend(["b", "a"], 5, histories=[["9", "1", "30"], ["3", "60", "5"]])
    assert frame["item"].to_list() == wanted.to_polars()["item"].to_list()


@pytest.mark.parametrize("name", [name for name in RUNS if name not in WHOLE])
def test_the_better_encoder_is_kept(here, name, tmp_path, monkeypatch):
    """Where users have vectors of their own: the network without them, or a fitted one."""
    run, chosen = kdrs.load_run(name), Student.load(f"{name}.chosen.safetensors")
    data = run.dataset
    _, items, bias = run.factors()
    valid = kdrs.Evaluator(data.train, data.valid)

    def value(encoder) -> float:
        seen = Histories.of(data.train, data.order)
        (report,) = valid((asked(encoder, seen, items.numpy()), items, bias)).values()
        return report.mean("ndcg@10")

    own = value(run.model.history_encoder())
    assert value(chosen.tables.encoder) >= own
    assert (chosen.tables.encoder.kind in ("sum", "ridge")) == (value(chosen.tables.encoder) > own)
    assert chosen.tables.users is not None
    # and the network, where no fitted one is as good
    from kdrs.runs import fold_in

    fitted = fold_in._fitted
    monkeypatch.setattr(fold_in, "_fitted", lambda *told: (*fitted(*told)[:2], -1.0))
    ok("export", name, "--seen", "--out", tmp_path / "own.safetensors")
    student = Student.load(tmp_path / "own.safetensors")
    assert student.card["new_users"]["encoder"] == f"the model's own, {student.tables.encoder.kind}"
    assert student.card["bytes"] == student.nbytes
    assert student.seen == data.train
    assert isinstance(student.seen, Histories) == student.tables.encoder.ordered


def test_noise_in_evaluation_is_no_function_of_a_history(here, tmp_path):
    ok("train", "--data", "d", "--model", "multvae", "--dim", "4", "--epochs", "1", "--set", "model.ccd_noise=true",
       "--device", "cpu", "--quiet", "--out", tmp_path / "noisy")  # fmt: skip
    ok("export", tmp_path / "noisy", "--out", tmp_path / "noisy.safetensors")
    student = Student.load(tmp_path / "noisy.safetensors")
    assert student.tables.users.tobytes() == kdrs.load_run(tmp_path / "noisy").factors().queries.numpy().tobytes()
    assert student.tables.encoder.kind in ("sum", "ridge")


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
    "a block less": ("sasrec", changed("encoder_key", lambda a: a[1:])),
    "heads that do not divide": ("sasrec", changed("encoder_heads", lambda a: a + np.int32(1))),
    "no heads": ("code", changed("encoder_heads", lambda a: a - np.int32(1))),
    "no positions": ("code", changed("encoder_positions", lambda a: a[:0])),
    "a third form": ("sasrec", changed("encoder_code", lambda a: a + np.uint8(2))),
    "a norm of another size": ("sasrec", changed("encoder_norm_bias", lambda a: a[:-1])),
    "a filter less": ("caser", changed("encoder_across_2", lambda a: a[1:])),
    "a height less": ("caser", without("encoder_across_3")),
    "no padding": ("caser", changed("encoder_table", lambda a: a[:-1])),
    "no filters": ("vertical", without("encoder_down")),
    "no length": ("vertical", changed("encoder_length", lambda a: a - a)),
    "seen without order": ("caser", without("seen_order")),
    "no order": ("sasrec", without("seen_order")),
    "another order": ("sasrec", changed("seen_order", lambda a: a[::-1].copy())),
    "a sum": ("cdae", another_kind("sum")),
    "unknown": ("cdae", another_kind("magic")),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_one_clear_error(here, tmp_path, what):
    name, change = DAMAGE[what]
    with pytest.raises(ArtefactError) as error:
        Student.load(damaged(name, tmp_path / "bad.safetensors", change))
    assert "is damaged: " in str(error.value)
    assert ("order is no" if what == "another order" else "encoder") in str(error.value)
    assert "\n" not in error.value.cause
