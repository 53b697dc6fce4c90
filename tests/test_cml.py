"""CML's two forms against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdrs.data import Interactions
from kdrs.errors import ConfigError
from kdrs.fitting.fit import fit
from kdrs.fitting.learner import Learner
from kdrs.models import CML
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Batch, Queries
from test_distillers import batch_of


def build(task: PairTask, dim: int = 5, **options) -> CML:
    torch.manual_seed(0)
    return CML(CML.Config(dim=dim, **options), task)


def placed(task: PairTask, users: list[float], items: list[float], **options) -> CML:
    """A model on a line: the first users and items at these points."""
    model = build(task, dim=1, covariance=0.0, **options)
    with torch.no_grad():
        model.users.weight[: len(users), 0] = torch.tensor(users)
        model.items.weight[: len(items), 0] = torch.tensor(items)
    return model


def wide(users: list[int], positives: list[int], negatives: list[list[int]]) -> Batch:
    asked = torch.tensor(users)
    return Batch(Queries(asked, asked), torch.tensor(positives), torch.tensor(negatives))


def test_the_nearest_negative_counts_by_its_rank(task: PairTask):
    """User at 0, positive at 0.5: d = 0.25. Negatives at 1, -0.8, 0.2, 3: squared 1, 0.64, 0.04, 9; three of four within 1.5,
    so (0.25 - 0.04 + 1.5) · ln(1 + 80 · 3/4) = 1.71 · ln 61."""
    model = placed(task, [0.0], [0.5, 1.0, -0.8, 0.2, 3.0])
    batch = wide([0, 0], [0, 0], [[1, 2, 3, 4], [4, 4, 4, 4]])
    assert model.loss(model(batch.queries), batch).item() == pytest.approx(1.71 * math.log(61), rel=1e-6)


def test_concf_is_a_plain_hinge_on_shortened_vectors(task: PairTask):
    """User at 2, drawn in to 1; items at 0.5 and -3, drawn in to -1: 1 + 0.25 - 4 < 0; the other way 1 + 4 - 0.25."""
    model = placed(task, [2.0], [0.5, -3.0], variant="concf")
    for positive, negative, expected in ((0, 1, 0.0), (1, 0, 4.75)):
        batch = batch_of([0], [positive], [negative])
        assert model.loss(model(batch.queries), batch).item() == pytest.approx(expected)
    users = torch.tensor([0])
    assert model(Queries(users, users)).scores(torch.tensor([[0, 1]])).tolist() == [[pytest.approx(-0.5), -2.0]]
    batch = wide([0, 0], [1, 1], [[0, 0], [0, 1]])
    assert model.loss(model(batch.queries), batch).item() == pytest.approx(3 * 4.75 + 1)


def test_the_rank_weight_has_no_gradient(task: PairTask):
    """d/dp of (p - 0.5)² - (p - 0.2)² at p = 0 is -1 + 0.4, times the weight alone."""
    model = placed(task, [0.0], [0.5, 1.0, -0.8, 0.2, 3.0])
    batch = wide([0], [0], [[1, 2, 3, 4]])
    model.loss(model(batch.queries), batch).backward()
    assert model.users.weight.grad.to_dense()[0].item() == pytest.approx(-0.6 * math.log(61), rel=1e-5)


@pytest.mark.parametrize("penalty", ["squared", "plain"])
def test_covariance_penalty(task: PairTask, penalty: str):
    model = build(task, dim=3, penalty=penalty, covariance=0.7)
    points = torch.cat([model.users.weight, model.items.weight]).detach().numpy()
    covariances = np.cov(points.T, bias=True)
    between = covariances[~np.eye(3, dtype=bool)]
    expected = 0.7 * (between**2 if penalty == "squared" else between).sum()
    assert model._penalty().item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 0.8), ({"covariance": 0.5}, 4.0), ({"covariance": 0.5, "penalty": "plain"}, 2.0), ({"covariance": 0.0}, 0.0)],
)
def test_the_penalty_is_part_of_the_loss(options, expected: float):
    """All points at ±(2, 1): a covariance of 2, counted twice and squared, a tenth of it by default. The hinge is 0."""
    model = build(PairTask(Interactions.from_pairs([0, 1], [0, 1], 2, 2)), dim=2, **options)
    with torch.no_grad():
        for table in (model.users.weight, model.items.weight):
            table.copy_(torch.tensor([[2.0, 1.0], [-2.0, -1.0]]))
    batch = wide([0, 1], [0, 1], [[1], [0]])
    assert model.loss(model(batch.queries), batch).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("options", "std"), [({}, 1 / 8), ({"variant": "concf"}, 0.01), ({"init_std": 0.3}, 0.3)])
def test_initial_points(task: PairTask, options, std: float):
    model = build(task, dim=64, **options)
    for table in (model.users.weight, model.items.weight):
        assert table.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("variant", ["collmetric", "concf"])
def test_scores_are_distances(task: PairTask, variant: str):
    """Against differences squared one by one; a shift of all points changes nothing; distances obey the triangle."""
    model = build(task, variant=variant, init_std=0.2)
    users = torch.arange(9)
    scores = model(Queries(users, users)).all_scores()
    difference = model.users.weight[:9, None] - model.items.weight
    squared = difference.square().sum(-1)
    expected = -squared if variant == "collmetric" else -squared.sqrt()
    assert torch.allclose(scores, expected, atol=1e-5)
    if variant == "collmetric":
        with torch.no_grad():
            model.users.weight += 0.3
            model.items.weight += 0.3
        assert torch.allclose(model(Queries(users, users)).all_scores(), scores, atol=1e-5)
    length = (-scores).sqrt() if variant == "collmetric" else -scores
    between_items = torch.cdist(model.items.weight, model.items.weight)
    assert (length[:, :, None] <= length[:, None, :] + between_items + 1e-3).all()


@pytest.mark.parametrize("variant", ["collmetric", "concf"])
def test_a_point_on_its_item_has_finite_gradients(task: PairTask, variant: str):
    model = placed(task, [0.5], [0.5], variant=variant)
    users = torch.tensor([0])
    score = model(Queries(users, users)).pairs(users, users)
    score.sum().backward()
    assert score.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(model.users.weight.grad.to_dense()).all()


def test_points_stay_in_the_unit_ball(task: PairTask):
    model = build(task)
    assert torch.linalg.vector_norm(model.users.weight, dim=1).max() > 1
    fit(Learner(model, task, lr=0.1, optimizer="adagrad"), task, epochs=2)
    for table in (model.users.weight, model.items.weight):
        assert torch.linalg.vector_norm(table, dim=1).max() <= 1 + 1e-6


def test_the_teachers_scores_are_the_models_own(task: PairTask):
    for variant in ("collmetric", "concf"):
        model = build(task, variant=variant)
        ranked = ModelTeacher(model, task).topk(7)
        users = torch.arange(task.n_users)
        own = model(Queries(users, users)).scores(torch.from_numpy(ranked.items).long())
        assert torch.allclose(torch.from_numpy(ranked.scores), own, atol=1e-5)


def test_a_run_is_trained_as_the_code_does_unless_told_otherwise(toy_path, tmp_path):
    values = {"data": {"path": str(toy_path)}, "model": {"name": "cml", "dim": 4}, "device": "cpu"}
    train = resolve(values).train
    assert (train.negatives, train.layout, train.optimizer, train.lr, train.weight_decay) == (
        20,
        "rows",
        "adagrad",
        0.1,
        0,
    )
    assert resolve({**values, "train": {"lr": 0.05}}).train.lr == 0.05
    concf = resolve({**values, "model": {"name": "cml", "variant": "concf"}}).train
    assert (concf.negatives, concf.optimizer, concf.lr) == (1, "adam", 1e-3)
    outcome = execute(resolve({**values, "train": {"epochs": 25, "batch_size": 32}}), tmp_path / "run")
    assert outcome.reports["test"].mean("hit@10") > 0.6  # chance: 10 of 21
    with pytest.raises(ConfigError, match="the nearest one to each pair"):
        execute(resolve({**values, "train": {"layout": "triples"}}), tmp_path / "other")
