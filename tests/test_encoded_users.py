"""Users without a table: what a vector of a user is in closed form and in training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from commands import ok
from kdrs import Codes, Evaluator, Interactions
from kdrs.compact.encoders import RidgeEncoder, SumEncoder, history_sums
from kdrs.errors import ConfigError, DataError
from kdrs.models.bpr import BPR, BPRConfig
from kdrs.models.compact import check_compact
from kdrs.runs.checkpoints import manifest_digest
from kdrs.runs.config import resolve
from kdrs.runs.encoded import best_encoder
from kdrs.runs.execute import execute
from kdrs.runs.opened import load_run
from kdrs.runs.values import to_toml
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch, Queries
from test_compact import compact

pytestmark = pytest.mark.filterwarnings("ignore:.*rising when")


@pytest.fixture
def histories() -> Interactions:
    return Interactions.from_pairs([0, 0, 0, 2, 3, 3, 3, 3, 3, 3], [0, 1, 4, 2, 0, 1, 2, 3, 4, 5], 4, 6)


@pytest.mark.parametrize("coded", [False, True])
def test_sums_of_histories_by_hand(histories, coded):
    items = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    given = Codes.of(items, 3) if coded else items
    plain = given.turned() if coded else items
    sums = history_sums(histories, given, 0.5)
    assert np.allclose(sums[0], plain[[0, 1, 4]].sum(0) / 3**0.5, atol=1e-6)
    assert not sums[1].any()
    assert np.allclose(sums[3], plain.sum(0) / 6**0.5, atol=1e-6)
    with pytest.raises(DataError, match="histories are of 6 items, the vectors of 5"):
        history_sums(histories, given[:5])


def test_the_matrix_is_that_of_ridge_regression(histories):
    rng = np.random.default_rng(0)
    sums, users = rng.standard_normal((50, 3)).astype(np.float32), rng.standard_normal((50, 3)).astype(np.float32)
    sums[7] = 0
    found = SumEncoder.fit(users, sums, reg=0.1).weight
    known = np.arange(50) != 7
    gram = sums[known].T @ sums[known]
    gram += 0.1 * gram.diagonal().mean() * np.eye(3)
    assert np.allclose(found, np.linalg.solve(gram, sums[known].T @ users[known]).T, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-42])
def test_items_as_good_as_zero_say_nothing_of_users(scale):
    histories = Interactions.from_pairs([0, 1, 1], [2, 0, 1], 3, 4)
    found = RidgeEncoder(0.3, 0.5).encode(histories, np.full((4, 5), scale, np.float32))
    assert np.array_equal(found, np.zeros((3, 5), np.float32))


@pytest.mark.parametrize("dim", [3, 8])
def test_ridge_is_the_half_step_of_ials(histories, dim):
    items = np.random.default_rng(0).standard_normal((6, dim)).astype(np.float32)
    found = RidgeEncoder(0.3, 0.5).encode(histories, items)
    weighted = 0.3 * items.T @ items
    weighted += 0.5 * weighted.diagonal().mean() * np.eye(dim)
    for user in range(4):
        own = items[histories.indices[histories.indptr[user] : histories.indptr[user + 1]]]
        expected = np.linalg.solve(weighted + own.T @ own, own.sum(0))
        assert np.allclose(found[user], expected, atol=1e-4)


def test_a_target_is_left_out_of_its_own_history(toy):
    task = PairTask(toy.train)
    model = compact("bpr", 32, "encoded", task)
    user = int(np.argmax(toy.train.row_degrees))
    held = toy.train.indices[toy.train.indptr[user] : toy.train.indptr[user + 1]]
    ids, target = torch.tensor([user]), torch.tensor([int(held[1])])
    vectors = model.items.weight.detach()
    rest = [item for item in held if item != held[1]]
    with torch.no_grad():
        whole = model(Queries(ids, ids)).queries[0]
        without = model(Queries(ids, ids, targets=target)).queries[0]
    assert torch.allclose(whole, vectors[held].sum(0) / len(held) ** 0.5, atol=1e-6)
    assert torch.allclose(without, vectors[rest].sum(0) / len(rest) ** 0.5, atol=1e-6)


def test_batches_of_pairs_say_their_targets(task):
    for batch in task.draw(Epoch(0, 0, 1)):
        assert torch.equal(batch.queries.targets, batch.positives)
        assert torch.equal(batch.queries.at(torch.tensor([0])).targets, batch.positives[:1])


# --- histories of which training sees a part ------------------------------------------------------------------------


def dropped(task, share: float):
    """A model of one dimension whose user vectors are plain sums."""
    model = compact("bpr", 32, "encoded", task, dim=1, history_dropout=share)
    model.user_encoder.power.zero_()
    model.train()
    return model


def test_items_are_left_out_anew_in_each_pass(toy):
    task = PairTask(toy.train)
    model = dropped(task, 0.4)
    everyone = torch.arange(toy.n_users)
    with torch.no_grad():
        model.items.weight.fill_(1.0)  # a sum counts the items that are left
        queries = Queries(everyone, everyone)
        model.on_epoch_start(Epoch(3, 0, 9))
        first, second = (model(queries).queries[:, 0].numpy() for _ in range(2))
        model.on_epoch_start(Epoch(3, 0, 9))
        assert np.array_equal(model(queries).queries[:, 0].numpy(), first)
        model.on_epoch_start(Epoch(4, 0, 9))
        assert not np.array_equal(model(queries).queries[:, 0].numpy(), first)
        model.eval()
        whole = model(queries).queries[:, 0].numpy()
    assert np.array_equal(whole, toy.train.row_degrees)
    assert not np.array_equal(first, second)
    assert first.sum() / whole.sum() == pytest.approx(0.6, abs=0.08)


def test_a_target_is_left_out_once(toy):
    """A target that the pass has dropped is not subtracted a second time, and a user has the same items in all queries."""
    task = PairTask(toy.train)
    model = dropped(task, 0.5)
    users, items = (
        torch.from_numpy(toy.train.row_of_pair.astype(np.int64)),
        torch.from_numpy(toy.train.indices.copy()).long(),
    )
    with torch.no_grad():
        model.items.weight.fill_(1.0)
        model.on_epoch_start(Epoch(0, 0, 1))
        whole = model(Queries(users, users)).queries[:, 0]
        model.on_epoch_start(Epoch(0, 0, 1))
        less = model(Queries(users, users, targets=items)).queries[:, 0]
    gone = (whole - less).numpy()
    assert set(gone.tolist()) == {0.0, 1.0}
    for user in range(toy.n_users):
        own = users.numpy() == user
        assert gone[own].sum() == whole[own][0]  # each item that is left is subtracted where it is the target


@pytest.mark.parametrize(("key", "value"), [("history_dropout", 0.2), ("encoder", "trained")])
def test_options_of_encoded_users_are_refused_with_a_table(toy_path, tmp_path, key, value):
    model = {"name": "bpr", "dim": 4, key: value}
    with pytest.raises(ConfigError, match=f"model.{key} is {value!r}, and the model's users have a table"):
        execute(resolve({"data": {"path": str(toy_path)}, "model": model, "train": {"epochs": 1}}), tmp_path / "run")


@pytest.mark.parametrize("name", ["multvae", "bpr"])
def test_users_that_cannot_be_encoded_are_not_the_remedy(toy_path, tmp_path, name):
    model = {"name": name, "dim": 4, "encoder": "trained"}
    with pytest.raises(ConfigError) as found:
        execute(resolve({"data": {"path": str(toy_path)}, "model": model, "train": {"epochs": 1}}), tmp_path / "run")
    assert ("users" in found.value.remedy) == (name == "bpr")


class OwnConfig(BPRConfig):
    encoder: Literal["mlp", "gru"] = "mlp"  # type: ignore[assignment]


class Own(BPR):
    Config = OwnConfig


@pytest.mark.parametrize("encoder", ["mlp", "gru"])
def test_a_model_of_ones_own_may_call_an_option_encoder(toy_path, encoder):
    check_compact("mine:Own", Own, OwnConfig(encoder=encoder))
    model = {"name": "mine:Own", "dim": 4, "encoder": encoder}
    opened = resolve({"data": {"path": str(toy_path)}, "model": model}, opened=True)  # the class is not there any more
    assert opened.model["encoder"] == encoder


# --- the encoder that is kept ---------------------------------------------------------------------------------------


def test_validation_chooses_the_encoder(task):
    kept = compact("bpr", 3, "encoded", task).stored()
    assert best_encoder(kept, lambda model: 1.0) is kept  # no better: as it was trained

    def second(model) -> float:
        return float(getattr(model.user_encoder, "reg", 0.0) == 0.3)

    found = best_encoder(kept, second)
    assert isinstance(found.user_encoder, RidgeEncoder)
    assert found.user_encoder.reg == 0.3
    assert found.item_side is kept.item_side
    assert found.nbytes < kept.nbytes


def options(toy_path: Path, encoder: str = "best", **eval: object) -> dict[str, Any]:
    model = {"name": "bpr", "dim": 8, "bits": 4, "users": "encoded", "encoder": encoder}
    train = {"epochs": 3, "batch_size": 64, "lr": 1e-2}
    return {"data": {"path": str(toy_path)}, "model": model, "train": train, "eval": eval, "device": "cpu"}


@pytest.mark.parametrize("encoder", ["best", "trained"])
def test_a_run_keeps_and_reports_the_encoder_that_ranks_best(toy_path, tmp_path, encoder):
    outcome = execute(resolve(options(toy_path, encoder)), tmp_path / "run")
    opened = load_run(tmp_path / "run")
    reports = Evaluator.of(opened.dataset)(opened.model.factors())
    assert reports["test"].means() == outcome.reports["test"].means()
    trained = next(row["valid"] for row in outcome.fit.rows if row["epoch"] == outcome.fit.best_epoch)
    value = outcome.reports["valid"].means()["hit@10"]
    said = json.loads((tmp_path / "run/report.json").read_text())["encoder"]
    card = (tmp_path / "run/README.md").read_text()
    assert said == outcome.encoder == opened.model.user_encoder.kind
    if encoder == "trained":
        assert isinstance(opened.model.user_encoder, SumEncoder)
        assert value == trained["hit@10"]
        assert "ridge" not in card
    else:
        assert isinstance(opened.model.user_encoder, RidgeEncoder)  # as validation has it on these data
        assert value > trained["hit@10"]
        assert "| users | ridge regression on their items: better on validation" in card


def test_the_last_lines_of_a_training_say_which_encoder_is_kept(toy_path, tmp_path):
    for encoder, told in (("best", True), ("trained", False)):
        (tmp_path / f"{encoder}.toml").write_bytes(to_toml(options(toy_path, encoder)))
        out = ok("train", tmp_path / f"{encoder}.toml", "--out", tmp_path / encoder).out
        assert ("users: ridge regression on their items" in out) == told


@pytest.mark.parametrize("encoder", ["best", "trained"])
def test_values_of_epochs_do_not_stand_beside_those_of_another_encoder(toy_path, tmp_path, encoder):
    """A protocol that reports each K from its own best epoch has these values of the matrix that was trained alone."""
    values = options(toy_path, encoder, protocol="loo-499")
    outcome = execute(resolve(values), tmp_path / "run")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert outcome.encoder == report["encoder"] == ("ridge" if encoder == "best" else "sum")
    assert ("per_metric_best" in report) == (encoder == "trained")


def of_an_older_version(run: Path) -> None:
    """As if the options of encoded users had not existed."""
    config = run / "config.toml"
    lines = [
        line for line in config.read_text().splitlines(True) if not line.startswith(("encoder", "history_dropout"))
    ]
    config.write_text("".join(lines))
    for path in (run / "env.json", *(run / "checkpoint").glob("*.json")):
        record = json.loads(path.read_text())
        for key in ("encoder", "history_dropout"):
            del record["options"]["model"][key]
        path.write_text(json.dumps({**record, "sha256": manifest_digest(record)} if "sha256" in record else record))


@pytest.mark.parametrize("epochs", [3, 5])
def test_a_run_that_is_older_than_the_choice_keeps_its_matrix(toy_path, tmp_path, epochs):
    """It ends, resumed or carried out anew, as the version ended it that began it."""
    execute(resolve(options(toy_path, "trained")), tmp_path / "old")
    of_an_older_version(tmp_path / "old")
    ok("train", tmp_path / "old/config.toml", "--epochs", epochs, "--out", tmp_path / "again")
    shutil.copytree(tmp_path / "old", tmp_path / "same command")
    given = options(toy_path)
    del given["model"]["encoder"]
    (tmp_path / "given.toml").write_bytes(to_toml(given))
    for _ in range(2):  # the first writes what it made of the options
        ok("resume", tmp_path / "old", "--epochs", epochs)
        ok("train", tmp_path / "given.toml", "--epochs", epochs, "--out", tmp_path / "same command", "--resume")
    expected = resolve({**options(toy_path, "trained"), "train": {**options(toy_path)["train"], "epochs": epochs}})
    execute(expected, tmp_path / "expected")
    for name in ("old", "again", "same command"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == (
            tmp_path / "expected/model.safetensors"
        ).read_bytes()
