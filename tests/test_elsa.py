"""ELSA: its loss against a slow oracle, its users, its codes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdrs.core import ranking
from kdrs.data.interactions import Interactions
from kdrs.models import ELSA, model_class
from kdrs.models._softmax import CatalogueSoftmax
from kdrs.models.compact import codes_of, compact_class
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from kdrs.training import losses, units
from kdrs.training.queries import Epoch
from kdrs.training.view import frozen


def of_loss(histories: list[list[int]], items: np.ndarray, weight: np.ndarray, temperature: float) -> float:
    """The formula of the docstring, pair by pair."""

    def cosines(history: list[int]) -> np.ndarray:
        own = weight @ items[history].sum(0)
        length = np.linalg.norm(own)
        return items @ own / (length if length > 1e-12 else 1.0) / temperature

    total = 0.0
    for history in histories:
        unseen = [item for item in range(len(items)) if item not in history]
        against = sum(math.exp(score) for score in cosines(history)[unseen])
        for item in history:
            left = cosines([other for other in history if other != item])[item] if len(history) > 1 else 0.0
            total -= left - math.log(math.exp(left) + against)
    return total


def made(pairs: list[tuple[int, int]], shape: tuple[int, int], **options: object) -> tuple[ELSA, object]:
    users, items = zip(*pairs, strict=True)
    train = Interactions.from_pairs(list(users), list(items), *shape)
    config = ELSA.Config(**options)
    task = ELSA.make_task(config, train, batch_size=64)
    torch.manual_seed(0)
    return ELSA(config, task), task


def units_of(vectors: np.ndarray, pairs: set[tuple[int, int]], layers: int, n_users: int = 5) -> np.ndarray:
    """The docstring's v, by dense matrices."""
    seen = np.zeros((n_users, len(vectors)))
    seen[tuple(zip(*pairs, strict=True))] = 1
    of_users, of_items = (np.maximum(seen.sum(axis), 1) for axis in (1, 0))
    step = (seen / of_users[:, None]).T @ seen / np.sqrt(np.outer(of_items, of_items))
    total = sum(np.linalg.matrix_power(step, layer) @ vectors for layer in range(layers + 1))
    return total / np.linalg.norm(total, axis=1, keepdims=True)


@given(
    pairs=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1),
    dim=st.integers(1, 5),
    layers=st.integers(0, 3),
    temperature=st.sampled_from([0.1, 0.5, 2.0]),
    reduction=st.sampled_from(["sum", "mean"]),
)
def test_the_loss_is_that_of_the_formula(pairs, dim, layers, temperature, reduction):
    model, task = made(sorted(pairs), (5, 7), dim=dim, layers=layers, temperature=temperature, reduction=reduction)
    with torch.no_grad():
        model.user_encoder.weight.copy_(torch.randn(dim, dim) + 2 * torch.eye(dim))
    (batch,) = task.draw(Epoch(0, 0, 1))
    found = model.loss(model(batch.queries), batch).item()
    items = units_of(model.vectors.detach().double().numpy(), pairs, layers)
    histories = [[int(item) for item in task.seen.pairs_of(np.array([user]))[1]] for user in range(5)]
    histories = [history for history in histories if history]
    weight = model.user_encoder.weight.detach().double().numpy()
    expected = of_loss(histories, items, weight, temperature) / (len(histories) if reduction == "mean" else 1)
    assert found == pytest.approx(expected, rel=2e-4, abs=1e-4)


def test_its_own_item_adds_nothing_to_a_pairs_score():
    """Of a user of one item nothing is left without it: the pair's own score is 0."""
    model, task = made([(0, 0)], (1, 4), dim=3)
    (batch,) = task.draw(Epoch(0, 0, 1))
    loss = model.loss(model(batch.queries), batch)
    unseen = torch.nn.functional.normalize(model.vectors, dim=1)
    scores = (unseen[1:] @ unseen[0]) / 0.1
    assert loss.item() == pytest.approx(torch.nn.functional.softplus(scores.logsumexp(0)).item(), rel=1e-5)


@pytest.mark.parametrize("bits", [1, 4, 32])
def test_lengths_of_weights_change_nothing(bits):
    model, task = made([(0, 0), (0, 1), (1, 2), (2, 1)], (3, 5), dim=8, bits=bits)
    (batch,) = task.draw(Epoch(0, 0, 1))
    before = model.loss(model(batch.queries), batch).item()
    with torch.no_grad():
        model.vectors.mul_(2.0 ** torch.randint(-3, 4, (5, 1)))  # exactly: nothing tips over to another level
    assert model.loss(model(batch.queries), batch).item() == pytest.approx(before, rel=1e-5)


@given(
    pairs=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1),
    size=st.integers(1, 9),
    past=st.integers(0, 3),
)
def test_a_sample_stands_for_the_catalogue(pairs, size, past):
    """The sum over unseen items of the sample counts as often as the sample goes into the catalogue."""
    model, task = made(sorted(pairs), (5, 7), dim=3, softmax_items=size, temperature=0.5)
    epoch = Epoch(0, 0, 1)
    model.on_epoch_start(epoch)
    order = np.random.default_rng(epoch.stream("softmax")).permutation(7)
    (batch,) = task.draw(epoch)
    for _ in range(past + 1):
        found = model.loss(model(batch.queries), batch)
    sample = [int(order[(past * size + place) % 7]) for place in range(size)] if size < 7 else list(range(7))
    items = torch.nn.functional.normalize(model.vectors, dim=1)
    expected = 0.0
    for user in {user for user, _ in pairs}:
        history = [item for owner, item in sorted(pairs) if owner == user]
        unit = torch.nn.functional.normalize(items[history].sum(0), dim=0)
        unseen = [item for item in sample if item not in history]
        against = max(7 / size, 1) * (items[unseen] @ unit / 0.5).exp().sum().item()
        for item in history:
            left = [other for other in history if other != item]
            own = (torch.nn.functional.normalize(items[left].sum(0), dim=0) @ items[item]).item() / 0.5 if left else 0.0
            expected -= own - math.log(math.exp(own) + against)
    assert found.item() == pytest.approx(expected, rel=2e-4, abs=1e-4)


def test_all_items_have_their_turns():
    """In five calls of four of ten items each counts twice."""
    softmax, queries, items = CatalogueSoftmax(10, 4), torch.zeros(1, 10), torch.eye(10)
    nobody = np.zeros(0, np.int64)

    def turns() -> list[list[int]]:
        softmax.shuffle(3)
        found = []
        for _ in range(5):
            own = items.clone().requires_grad_()
            softmax.others(queries + 1, own, nobody, nobody).sum().backward()
            found.append(own.grad.sum(1).nonzero().flatten().tolist())
        return found

    first = turns()
    assert np.bincount(np.concatenate(first)).tolist() == [2] * 10
    assert turns() == first  # a resumed epoch has the same


@given(rows=st.integers(0, 6), dim=st.integers(1, 5), block=st.integers(1, 12), seed=st.integers(0, 9))
def test_unit_rows_and_their_gradients(rows, dim, block, seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    table[::3] = 0.0
    table[1::3] *= 1e-14
    gradient = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "BLOCK_FLOATS", block)
        for way in (units.unit_rows, lambda own: torch.nn.functional.normalize(own, dim=1)):
            own = table.clone().requires_grad_()
            value = way(own)
            value.backward(gradient)
            found.append((value.detach(), own.grad))
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)


def test_ids_that_the_host_knows_are_hidden_alike(monkeypatch):
    """On an accelerator the pairs of a batch are sorted where they came from, and nobody waits."""
    rows, columns = torch.randint(0, 40, (90,)), torch.randint(0, 500, (90,))
    monkeypatch.setattr(losses._LogSumExp, "TILE_FLOATS", 700)
    found = []
    for known in (lambda ids: None, lambda ids: ids.numpy()):
        monkeypatch.setattr(losses, "host_of", known)
        torch.manual_seed(0)
        own, items = torch.randn(40, 6, requires_grad=True), torch.randn(500, 6, requires_grad=True)
        value = losses.logsumexp_products(own, items, hidden=(rows, columns))
        value.square().sum().backward()
        scores = (own @ items.T).index_put((rows, columns), torch.tensor(-torch.inf))
        assert torch.allclose(value, scores.logsumexp(1), rtol=1e-5)
        found.append((value.detach(), own.grad, items.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("bits", [1, 4, 32])
def test_frequent_items_are_ranked_by_a_power_of_their_frequency(bits):
    """The loss knows nothing of it. What is kept, and what is evaluated, has the lengths, in the sums of users too."""
    pairs, found = [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1)], {}
    for power in (0.0, 0.5):
        model, task = made(pairs, (4, 3), dim=16, bits=bits, popularity=power)
        (batch,) = task.draw(Epoch(0, 0, 1))
        loss, (queries, items, _) = model.loss(model(batch.queries), batch).item(), model.factors()
        known = tuple(np.asarray(side if bits == 32 else side.vectors()) for side in (queries, items))
        found[power] = loss, *known
        with frozen(model):
            view, own = model(task.queries(torch.arange(4))), model._own_view(task.queries(torch.arange(4)))
            if bits == 32:  # nothing is rounded: the view before the rounding is the same
                assert torch.allclose(own.queries, view.queries)
            assert np.allclose(view.scores(torch.arange(3).expand(4, 3)), known[0] @ known[1].T, rtol=0.03, atol=0.03)
    (plain_loss, _, plain), (loss, users, items) = found[0.0], found[0.5]
    assert loss == plain_loss
    if bits == 32:
        assert np.allclose(np.linalg.norm(plain, axis=1), 1)
    rate = 0.05 if bits == 1 else 0.01  # of a scale of few bits
    assert np.allclose(items, plain * np.array([2, 1, 0])[:, None], rtol=rate)  # nobody has the last
    assert np.allclose(users[0], (items[0] + items[1]) / 2**0.5, rtol=0.02, atol=0.02)  # W is the identity still
    assert np.allclose(users[1], items[0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bits", [1, 2, 8, 32])
def test_an_item_that_nobody_has_sways_no_user(bits):
    """Of 0 users no direction was learnt: of whoever has such an item since, the other items count alone."""
    model, _ = made([(0, 0), (0, 1), (1, 2)], (2, 5), dim=8, bits=bits)
    stored = model.stored()
    new = [Interactions.from_pairs(np.zeros(len(row), int), np.array(row), 1, 5) for row in ([0], [0, 3, 4])]
    one, other = (ranking.topk(stored.encode(history), stored.item_side, 5).items for history in new)
    assert one.tolist() == other.tolist()
    assert not np.asarray(stored.item_side.turned() if bits < 32 else stored.item_side)[3:].any()
    assert made([(0, 0)], (1, 2), dim=8, bits=bits, popularity=0.0)[0].lengths.tolist() == [1, 1]


@given(
    pairs=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1),
    layers=st.integers(1, 2),
    seed=st.integers(0, 9),
)
def test_gradients_pass_through_the_layers(pairs, layers, seed):
    model, _ = made(sorted(pairs), (5, 7), dim=3, layers=layers)
    half = model.to_users.to_dense()
    step, towards = half.T @ half, torch.randn(7, 3, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(model.to_items.to_dense(), half.T)
    (model._propagated() * towards).sum().backward()
    expected = sum(torch.linalg.matrix_power(step, layer).T @ towards for layer in range(layers + 1))
    assert torch.allclose(model.vectors.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 32])
def test_what_is_kept_has_the_layers(bits):
    """The file's items are those that were ranked with in training, and nothing else is kept."""
    pairs = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 3)]
    model, plain = (made(pairs, (3, 5), dim=8, bits=bits, layers=layers, popularity=0.0)[0] for layers in (2, 0))
    side = model.stored().item_side
    expected = units_of(model.vectors.detach().double().numpy(), set(pairs), 2, 3)
    if bits == 32:
        assert np.allclose(side.detach().numpy(), expected, atol=1e-5)
    else:
        wanted = codes_of(torch.from_numpy(expected.astype(np.float32)), bits)
        assert np.allclose(side.turned(), wanted.turned(), rtol=0.05)  # of a scale in a byte; levels are apart by more
    shapes = ({name: part.shape for name, part in own.state_dict().items()} for own in (model, plain))
    assert next(shapes) == next(shapes)


@pytest.mark.parametrize("options", [{"softmax_items": 7}, {"softmax_items": 7, "bits": 2}, {"layers": 2, "bits": 1}])
def test_it_goes_on_with_the_same_bytes(toy_path, tmp_path, options):
    values = {"data": {"path": str(toy_path)}, "model": {"name": "elsa", "dim": 8, **options}, "device": "cpu"}
    train = {"batch_size": 16, "average": 0.5}
    execute(resolve({**values, "train": {**train, "epochs": 4}}), tmp_path / "whole")
    execute(resolve({**values, "train": {**train, "epochs": 2}}), tmp_path / "parts")
    execute(resolve({**values, "train": {**train, "epochs": 4}}), tmp_path / "parts", resume=True)
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_it_is_a_form_of_few_bytes_by_itself():
    assert compact_class(ELSA) is ELSA
    assert model_class("elsa") is ELSA
    model, _ = made([(0, 0), (1, 1)], (2, 3), dim=8, bits=2)
    assert model.stored().user_encoder.kind == "sum"


def test_signs_take_larger_steps():
    assert ELSA.train_defaults(ELSA.Config(bits=1))["lr"] > ELSA.train_defaults(ELSA.Config(bits=2))["lr"]


def test_it_learns_what_is_seen_together():
    """Items in two groups that no user mixes: what is left of a group comes before the other one."""
    rng = np.random.default_rng(0)
    pairs = {(user, int(item) + 10 * (user % 2)) for user in range(60) for item in rng.choice(10, 5, replace=False)}
    model, task = made(sorted(pairs), (60, 20), dim=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for index in range(20):
        for batch in task.draw(Epoch(index, 0, 20)):
            optimizer.zero_grad()
            model.loss(model(batch.queries), batch).backward()
            optimizer.step()
    queries, items, _ = model.factors()
    scores = np.asarray(queries @ items.T)
    own = np.arange(60)[:, None] % 2 == np.arange(20)[None] // 10
    assert scores[own].min() > scores[~own].max()
