"""LightGCN with the sampled softmax loss: against a slow oracle, its lengths, what it refuses, its training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdrs.data.interactions import Interactions
from kdrs.errors import ConfigError
from kdrs.models import LightGCNSSM
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from kdrs.training.queries import Epoch, Queries
from kdrs.training.view import frozen

PAIRS = st.sets(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1).filter(
    lambda pairs: all(sum(owner == user for owner, _ in pairs) < 7 for user in range(5))
)
"""Of 5 users and 7 items, of which nobody has all."""


def made(pairs, batch_size: int = 64, **options: object) -> tuple[LightGCNSSM, object]:
    users, items = zip(*sorted(pairs), strict=True)
    config = LightGCNSSM.Config(**options)
    train = Interactions.from_pairs(list(users), list(items), 5, 7)
    task = LightGCNSSM.make_task(config, train, batch_size=batch_size)
    torch.manual_seed(0)
    return LightGCNSSM(config, task), task


@given(
    pairs=PAIRS,
    size=st.integers(1, 9),
    layers=st.integers(0, 2),
    reg=st.sampled_from([0.0, 0.7]),
    reduction=st.sampled_from(["sum", "mean"]),
    past=st.integers(0, 3),
)
def test_the_loss_is_that_of_the_formula(pairs, size, layers, reg, reduction, past):
    """Pair by pair; the sum over unseen items of the sample counts as often as the sample goes into the catalogue."""
    options = {"layers": layers, "reg": reg, "reduction": reduction, "init_std": 0.5}
    model, task = made(pairs, dim=3, softmax_items=size, temperature=0.5, **options)
    epoch = Epoch(0, 0, 1)
    model.on_epoch_start(epoch)
    (batch,) = task.draw(epoch)
    for _ in range(past + 1):
        found = model.loss(model(batch.queries), batch)
    sample = list(range(7))
    if size < 7:
        order = np.random.default_rng(epoch.stream("softmax")).permutation(7)
        sample = [int(order[(past * size + place) % 7]) for place in range(size)]
    vectors = F.normalize(model.propagated().detach().double(), dim=1)
    expected = 0.0
    for user, item in pairs:
        cosines = (vectors[5:] @ vectors[user] / 0.5).tolist()
        against = sum(math.exp(cosines[other]) for other in sample if (user, other) not in pairs)
        expected -= cosines[item] - math.log(math.exp(cosines[item]) + against * 7 / len(sample))
        expected += reg * sum(model.vectors[row].square().sum().item() for row in (user, 5 + item))
    expected /= len(pairs) if reduction == "mean" else 1
    assert found.item() == pytest.approx(expected, rel=2e-4, abs=1e-4)
    found.backward()
    assert torch.isfinite(model.vectors.grad).all()


@given(pairs=PAIRS, popularity=st.sampled_from([0.0, 0.05, 1.0]))
def test_scores_are_cosines_by_the_temperature_and_a_power_of_frequency(pairs, popularity):
    model, task = made(pairs, dim=4, popularity=popularity, temperature=0.2)
    vectors = F.normalize(model.propagated().detach(), dim=1)
    counts = torch.from_numpy(task.seen.column_degrees).float()
    everyone = torch.arange(5)
    cosines = vectors[:5] @ vectors[5:].T / 0.2
    with frozen(model):
        shown = model(Queries(everyone, everyone)).all_scores()
    assert torch.allclose(shown, cosines * counts**popularity, atol=1e-5)
    found = model.factors()
    assert torch.allclose(found.queries @ found.items.T, shown, atol=1e-5)
    assert torch.allclose(model(Queries(everyone, everyone)).all_scores(), cosines, atol=1e-5)  # while it learns


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"negatives": 3}, "train.negatives is 3"),
        ({"layout": "rows"}, "train.layout 'rows'"),
        ({"leak_held_out": True}, "leak_held_out is true"),
    ],
)
def test_negatives_of_pairs_are_refused(toy_path: Path, tmp_path: Path, train, told):
    values = {"data": {"path": str(toy_path)}, "model": {"name": "lightgcn-ssm"}, "train": train, "device": "cpu"}
    with pytest.raises(ConfigError, match=told):
        execute(resolve(values), tmp_path / "run")


@pytest.mark.parametrize("bits", [2, 32])
def test_a_resumed_run_is_an_uninterrupted_one(toy_path: Path, tmp_path: Path, bits: int):
    model = {"name": "lightgcn-ssm", "dim": 8, "softmax_items": 13, "bits": bits}
    values = {"data": {"path": str(toy_path)}, "model": model, "device": "cpu"}
    train = {"batch_size": 64, "average": 0.5}
    execute(resolve({**values, "train": {**train, "epochs": 4}}), tmp_path / "whole")
    execute(resolve({**values, "train": {**train, "epochs": 2}}), tmp_path / "parts")
    execute(resolve({**values, "train": {**train, "epochs": 4}}), tmp_path / "parts", resume=True)
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize("layers", [0, 2])
def test_it_learns_what_is_seen_together(layers: int):
    """Items in two groups that no user mixes: what is left of a group comes before the other one, mostly."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.choice(10, 5, replace=False) + 10 * (user % 2) for user in range(60)])
    users = np.repeat(np.arange(60), 5)
    config = LightGCNSSM.Config(dim=4, layers=layers, softmax_items=8)
    task = LightGCNSSM.make_task(config, Interactions.from_pairs(users, items, 60, 20), batch_size=50)
    torch.manual_seed(0)
    model = LightGCNSSM(config, task)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for index in range(20):
        epoch = Epoch(index, 0, 20)
        model.on_epoch_start(epoch)
        for batch in task.draw(epoch):
            optimizer.zero_grad()
            model.loss(model(batch.queries), batch).backward()
            optimizer.step()
    queries, vectors, _ = model.factors()
    scores = np.asarray(queries @ vectors.T)
    own = np.arange(60)[:, None] % 2 == np.arange(20)[None] // 10
    unseen = own.copy()
    unseen[users, items] = False
    above = [scores[user][unseen[user]][:, None] > scores[user][~own[user]] for user in range(60)]
    assert np.mean(above) > 0.95
