"""Means of weights over epochs: what is ranked with, selected and kept; training itself stays the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdrs.errors import ArtefactError, ConfigError
from kdrs.evaluation.protocols import Selection
from kdrs.fitting.fit import fit
from kdrs.fitting.learner import Learner
from kdrs.models import MODELS
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.training.pairs import PairTask
from test_contract import build, task_of
from test_train import final_bytes, run_values

SHARE = 0.6


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def learner_of(toy, optimizer: str = "adam") -> Learner:
    task = PairTask(toy.train, batch_size=64)
    torch.manual_seed(0)
    model = MODELS["bpr"](MODELS["bpr"].Config(dim=4, init_std=0.3), task)
    return Learner(model, task, lr=1e-2, weight_decay=0.01, optimizer=optimizer)


@pytest.mark.parametrize("optimizer", ["adam", "lazy-adam"])
def test_what_is_measured_and_kept_is_the_mean_of_what_training_had(toy, optimizer):
    plain, seen, losses = learner_of(toy, optimizer), [], []
    fit(
        plain, plain.task, epochs=5, seed=1, keep="last",
        evaluate=lambda model: seen.append(weights(model)) or {"valid": {"hit@5": 0.0}},
        on_epoch=lambda row: losses.append(row["loss"]), selection=Selection(("hit@5",), patience=9),
    )  # fmt: skip
    means = [seen[0]]
    for own in seen[1:]:
        means.append({name: means[-1][name] * SHARE + own[name] * (1 - SHARE) for name in own})
    averaged, found, again = learner_of(toy, optimizer), [], []
    values = iter([0.1, 0.2, 0.5, 0.3, 0.4])
    outcome = fit(
        averaged, averaged.task, epochs=5, seed=1, average=SHARE,
        evaluate=lambda model: found.append(weights(model)) or {"valid": {"hit@5": next(values)}},
        on_epoch=lambda row: again.append(row["loss"]), selection=Selection(("hit@5",), patience=9),
    )  # fmt: skip
    assert again == losses
    for one, other in zip(found, means, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-7)
    assert outcome.best_epoch == 2
    assert all(torch.equal(tensor, found[2][name]) for name, tensor in weights(averaged.model).items())


def test_without_validation_the_mean_is_kept_too(toy):
    plain, averaged = learner_of(toy), learner_of(toy)
    fit(plain, plain.task, epochs=3, seed=1)
    fit(averaged, averaged.task, epochs=3, seed=1, average=SHARE)
    one, other = weights(plain.model), weights(averaged.model)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    once = learner_of(toy)
    fit(once, once.task, epochs=1, seed=1, average=SHARE)
    first = learner_of(toy)
    fit(first, first.task, epochs=1, seed=1)
    assert all(torch.equal(tensor, weights(first.model)[name]) for name, tensor in weights(once.model).items())


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_model(model):
    """Buffers, tables of their own, towers: the mean goes in and the weights come back."""
    task, losses = task_of(model), []
    for share in (0.0, SHARE):
        torch.manual_seed(0)
        learner = Learner(build(task, model, 4), task, lr=1e-2)
        fit(learner, task, epochs=2, seed=1, average=share, on_epoch=lambda row: losses.append(row["loss"]))
    assert losses[:2] == losses[2:]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train": {"optimizer": "lazy-adam"}},
        {"train": {"keep": "last", "stages_every": 2}},
        {"model": {"name": "bpr", "dim": 6, "bits": 1, "users": "encoded"}},
        {"model": {"name": "lightgcn", "dim": 4}},
    ],
)
def test_a_run_that_was_stopped_ends_with_the_same_bytes(toy_path, tmp_path, changes):
    def asked(epochs: int):
        values = run_values(toy_path, average=SHARE, epochs=epochs, **changes.get("train", {}))
        return resolve({**values, "model": changes.get("model", values["model"])})

    execute(asked(5), tmp_path / "whole")
    execute(asked(2), tmp_path / "parts")
    execute(asked(5), tmp_path / "parts", resume=True)
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")
    for stage in (tmp_path / "whole/stages").glob("*.safetensors"):
        assert stage.read_bytes() == (tmp_path / "parts/stages" / stage.name).read_bytes()


def test_a_checkpoint_without_the_mean_is_refused(toy_path, tmp_path):
    execute(resolve(run_values(toy_path, epochs=2)), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.average"):  # another run
        execute(resolve(run_values(toy_path, epochs=3, average=SHARE)), tmp_path / "run", resume=True)
    execute(resolve(run_values(toy_path, epochs=2, average=SHARE)), tmp_path / "mean")
    held = load_file(next((tmp_path / "mean/checkpoint").glob("state-*.safetensors")))
    assert {name for name in held if name.startswith("mean/")} == {"mean/users.weight", "mean/items.weight"}
    checkpoint = Run.open(tmp_path / "mean").load_checkpoint()
    assert checkpoint is not None
    learner = learner_of_run(tmp_path / "mean")

    class Journal:
        def load_checkpoint(self):
            state = {name: t for name, t in checkpoint.state.items() if not name.startswith("mean/")}
            return type(checkpoint)(checkpoint.epoch, state, checkpoint.best, checkpoint.meta)

    with pytest.raises(ArtefactError, match="do not fit the model"):
        fit(learner, learner.task, epochs=3, average=SHARE, run=Journal(), resume=True)  # type: ignore[arg-type]


def learner_of_run(path: Path) -> Learner:
    from kdrs.data import Dataset
    from kdrs.runs.build import build_task
    from kdrs.runs.config import config_of
    from kdrs.runs.learners import build_learner

    run = Run.open(path)
    data, config = Dataset.load(run.config["data"]["path"]), config_of(run)
    return build_learner(config, data, build_task(config, data))


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_shares_that_are_none(toy_path, share):
    with pytest.raises(ConfigError, match=r"train\.average"):
        resolve(run_values(toy_path, average=share))
