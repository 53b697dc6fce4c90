"""An item that is positive and negative in a batch has a draw of DE's noise for each role, as in the authors' program."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdrs.distillers import CPD, DE, DGKD, TAKD, HyperKDMA
from kdrs.distillers._experts import Experts, mean_of_two
from kdrs.distillers._hidden import Entities, Vectors
from kdrs.teachers.model import ModelTeacher
from test_distillers import batch_of, bpr, started

BOTH = ([0, 1], [5, 6], [7, 5])
"""Item 5 is positive and negative, 6 and 7 are one of them."""
METHODS = {
    "de": (DE, {}),
    "takd": (TAKD, {}),
    "dgkd": (DGKD, {}),
    "hyperkdma": (HyperKDMA, {"assistants": 1, "assistant_weight": 0.0}),
    "cpd": (CPD, {"projector": "experts", "pairwise_weight": 0.0, "listwise_weight": 0.0}),
}


def fixed(experts: Experts, values: list[float]) -> None:
    """Constant experts, chosen with equal probability."""
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.zero_()
        experts.bias2.copy_(torch.tensor(values).unsqueeze(1).expand_as(experts.bias2))


def worked(task, method, **options):
    """Users cost nothing. Item vectors are 0, and two experts make 0 and 2 of them, in each of 4 coordinates: a draw costs 0
    or 16 at low temperatures."""
    cls, own = METHODS[method]
    teacher, student = bpr(task, 4), bpr(task, 2, seed=1)
    for table in (teacher.users, teacher.items):
        torch.nn.init.zeros_(table.weight)
    config = cls.Config(experts=2, schedule_epochs=1, **own, **options)
    distiller = cls(config, [ModelTeacher(teacher, task)], task, 2, seed=3)
    modules = distiller.hints[0] if hasattr(distiller, "hints") else distiller
    fixed(modules.users, [0.0, 0.0])
    fixed(modules.items, [0.0, 2.0])
    return started(distiller, student, task, index=5), student


def losses_of(distiller, student, batch, count=1500) -> np.ndarray:
    with torch.no_grad():
        view = student(batch.queries)
        return np.array([distiller.loss(view, batch).item() for _ in range(count)])


@pytest.mark.parametrize("method", METHODS)
def test_two_roles_have_two_draws(task, method):
    """½ · (0 or 16) + ½ · (0 or 16): 0, 8 or 16 with ¼, ½, ¼. Variance 32, where one draw for both roles has 64."""
    batch = batch_of([0], [5], [5])
    found = losses_of(*worked(task, method), batch)
    shares = [np.mean(found == value) for value in (0.0, 8.0, 16.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.045)
    assert found.var() == pytest.approx(32, rel=0.1)
    once = losses_of(*worked(task, method, item_noise="item"), batch)
    assert set(once.tolist()) == {0.0, 16.0}
    assert [found.mean(), once.mean()] == pytest.approx([8, 8], abs=0.5)
    assert once.var() == pytest.approx(64, rel=0.05)


def test_items_of_one_role_have_one_draw(task):
    """Of item 5 two draws, of 6 and 7 one each, all of them by half: 8 times a binomial number of 4."""
    found = losses_of(*worked(task, "de"), batch_of(*BOTH))
    counts = np.bincount((found / 8).astype(int), minlength=5) / found.size
    assert set(found.tolist()) == {0.0, 8.0, 16.0, 24.0, 32.0}
    assert counts == pytest.approx([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], abs=0.045)


def test_an_item_that_counts_once_has_one_draw(task):
    """HyperKDMA's equation 8 sums over the set of items: 16 or nothing."""
    found = losses_of(*worked(task, "de", item_share="full"), batch_of([0], [5], [5]), 200)
    assert set(found.tolist()) == {0.0, 16.0}


def test_a_loss_has_the_law_of_sums_over_roles(task):
    """Random experts at a temperature of 1 against the authors' sum: users, and half of positives' and of negatives' losses,
    each with noise of its own."""
    teacher, student = bpr(task, 6), bpr(task, 3, seed=1)
    distiller = started(DE(DE.Config(experts=4), [ModelTeacher(teacher, task)], task, 3, seed=7), student, task)
    batch, noise = batch_of([0, 1, 1], [5, 6, 7], [6, 5, 7]), torch.Generator().manual_seed(5)

    def part(kind, ids):
        experts = getattr(distiller, kind)
        target, source = (getattr(model, kind).weight[ids] for model in (teacher, student))
        return (target - experts(source, experts.shares(target, 1.0, noise))).square().sum()

    with torch.no_grad():
        theirs = [
            (part("users", [0, 1]) + (part("items", [5, 6, 7]) + part("items", [5, 6, 7])) / 2).item()
            for _ in range(1500)
        ]
    ours = losses_of(distiller, student, batch)
    error = np.std(theirs) * (2 / 1500) ** 0.5
    assert abs(np.mean(theirs) - ours.mean()) < 4 * error
    assert ours.std() == pytest.approx(np.std(theirs), rel=0.08)
    distiller.config = distiller._hint.hint.config = DE.Config(experts=4, item_noise="item")
    assert losses_of(distiller, student, batch).std() > 1.1 * np.std(theirs)


def test_gradients_are_those_of_both_draws():
    rows, twice = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 2])
    factors = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0, 30.0])  # of four rows, then of rows 0 and 2 again
    found = mean_of_two(lambda own: own.sum(-1) * factors, twice, rows)
    expected = torch.tensor([5.5, 2.0, 16.5, 4.0])
    assert torch.allclose(found, rows.detach().sum(-1) * expected)
    found.sum().backward()
    assert torch.equal(rows.grad, expected.unsqueeze(1).expand(4, 3))


def test_generated_assistants_draw_for_roles_too(task):
    """Their targets, sources and noise: with two fixed experts the two draws are seen in the mean."""
    distiller = HyperKDMA(
        HyperKDMA.Config(experts=2, assistants=1, schedule_epochs=1), [ModelTeacher(bpr(task, 6), task)], task, 2
    )
    student = bpr(task, 2, seed=1)
    fixed(distiller.hints[1].items, [0.0, 2.0])
    started(distiller, student, task, index=5)
    entities = Entities(batch_of(*BOTH), task)
    assert entities.both_roles.tolist() == [0]
    target = Vectors(torch.zeros(2, 4), torch.zeros(3, 4))
    hint = distiller._assistants[0]
    found = [hint.both(entities, target, entities.of_student(student(entities.batch.queries))).items for _ in range(99)]
    values = torch.stack(found).round().unique(dim=0)
    assert set(values[:, 0].tolist()) == {0.0, 8.0, 16.0}
    assert set(values[:, 1:].flatten().tolist()) == {0.0, 16.0}
