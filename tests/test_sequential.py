"""Sequences: the task, Caser and SASRec against slow forms, and knowledge between models of other kinds of task."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import toy_dataset
from kdrs.data import Interactions
from kdrs.errors import ConfigError, DataError
from kdrs.evaluation.evaluator import Evaluator
from kdrs.fitting.learner import Learner
from kdrs.models import MODELS, Caser, SASRec
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch
from kdrs.training.sequences import SequenceBatch, SequenceTask

USERS = [[4, 2, 7, 0, 5, 1], [3], [], [6, 1, 2], [0, 1]]
N_ITEMS = 9
PAD = N_ITEMS


def sequences(users=USERS, n_items: int = N_ITEMS) -> tuple[Interactions, np.ndarray]:
    owners = np.repeat(np.arange(len(users)), [len(own) for own in users])
    items = np.array([item for own in users for item in own], np.int32)
    return Interactions.from_pairs(owners, items, len(users), n_items), items


def task_of(users=USERS, n_items: int = N_ITEMS, **options) -> SequenceTask:
    return SequenceTask(*sequences(users, n_items), **{"length": 3, "batch_size": 4, **options})


def toy_task(name: str, **options) -> SequenceTask:
    cls, data = MODELS[name], toy_dataset()
    return cls.make_task(cls.Config(dim=4, **options), data.train, order=data.order, batch_size=16)


def built(name: str, task, seed: int = 0, **options):
    torch.manual_seed(seed)
    cls = MODELS[name]
    return cls(cls.Config(**{"dim": 4, **options}), task).eval()


def padded(items: list[int], length: int) -> list[int]:
    return [PAD] * max(0, length - len(items)) + items[-length:]


# --- the task -------------------------------------------------------------------------------------------------------


def test_the_first_queries_are_the_users_as_of_now():
    task = task_of()
    queries = task.queries(torch.arange(5))
    assert queries.users.tolist() == queries.rows.tolist() == [0, 1, 2, 3, 4]
    assert queries.history.tolist() == [padded(own, 3) for own in USERS]
    assert task.owners[:5].tolist() == [0, 1, 2, 3, 4]
    assert task.seen.shape == (5, N_ITEMS)


def test_a_task_once_users_have_another_item():
    later = [[8], [], [5], [], [3]]
    more = Interactions.from_pairs(np.array([0, 2, 4]), np.array([8, 5, 3]), 5, N_ITEMS)
    task = task_of()
    after = task.after(more)
    assert after is task.after(more)
    assert after.queries(torch.arange(5)).history.tolist() == [
        padded(own + new, 3) for own, new in zip(USERS, later, strict=True)
    ]
    assert task.queries(torch.arange(5)).history.tolist() == [padded(own, 3) for own in USERS]
    two = Interactions.from_pairs(np.array([0, 0]), np.array([8, 3]), 5, N_ITEMS)
    with pytest.raises(DataError, match="user 0 has 2 later items"):
        task.after(two)


@pytest.mark.parametrize("name", ["caser", "sasrec"])
def test_the_validation_item_is_known_when_the_test_item_is_asked_for(name: str):
    data = toy_dataset(candidates=None)
    ordered = replace(data, split={"kind": "last-n", "n_valid": 1, "n_test": 1, "last": "test", "order": "file"})
    assert ordered.test_follows_valid
    assert not data.test_follows_valid
    assert not replace(ordered, split={**ordered.split, "last": "valid"}).test_follows_valid
    task = toy_task(name)
    teacher = ModelTeacher(built(name, task), task)
    known = Evaluator.of(ordered)(teacher)
    plain = Evaluator.of(data)(teacher)
    by_hand = Evaluator.of(data)(ModelTeacher(teacher.model, task.after(data.valid)))
    for metric, values in known["test"].values.items():
        assert np.array_equal(values, by_hand["test"].values[metric]), metric
        assert np.array_equal(known["valid"].values[metric], plain["valid"].values[metric]), metric
    assert not all(np.array_equal(known["test"].values[m], plain["test"].values[m]) for m in plain["test"].values)
    assert (known["test"].history, known["valid"].history, plain["test"].history) == ("train+valid", "train", "train")
    users = PairTask(data.train)
    factors = ModelTeacher(built("bpr", users), users)
    assert Evaluator.of(ordered)(factors)["test"].means() == Evaluator.of(data)(factors)["test"].means()


@pytest.mark.parametrize(("length", "targets"), [(3, 1), (2, 1), (2, 2), (5, 1), (9, 1), (3, 3), (1, 1)])
def test_windows_against_a_slow_form(length: int, targets: int):
    """All windows of L + T items; a user with fewer has one, padded, as long as an item is left to read."""
    expected = []
    for user, own in enumerate(USERS):
        if len(own) <= targets:
            continue
        for end in range(max(len(own) - targets, 0) + 1):
            if end >= length or (end == len(own) - targets and len(own) < length + targets):
                expected.append((user, padded(own[:end], length), own[end : end + targets]))
    task = task_of(length=length, targets=targets)
    assert task.n_rows == len(expected) == task.n_queries - 5
    queries = task.queries(torch.arange(5, task.n_queries))
    assert queries.users.tolist() == [user for user, *_ in expected] == task.owners[5:].tolist()
    assert queries.history.tolist() == [history for _, history, _ in expected]
    found = []
    for batch in task.draw(Epoch(0, 0, 1)):
        if targets == 1:
            assert not isinstance(batch, SequenceBatch)
            own = batch.positives.unsqueeze(1).tolist()
        else:
            assert batch.steps.unique().tolist() == [length - 1]
            own = [batch.positives[batch.positive_rows == row].tolist() for row in range(len(batch.queries))]
        rows = zip(batch.queries.users.tolist(), batch.queries.history.tolist(), own, strict=True)
        found += [(user, history, items) for user, history, items in rows]
        assert batch.queries.history.tolist() == task.queries(batch.queries.rows).history.tolist()
    assert sorted(found) == sorted(expected)


def test_the_published_count_of_instances():
    """c - L - T + 1 windows a user: Gowalla's 433,356 - 5 · 13,149 = 367,611 in small."""
    rng = np.random.default_rng(0)
    users = [rng.permutation(40)[:n].tolist() for n in rng.integers(6, 30, 50)]
    task = task_of(users, 40, length=5)
    assert task.n_rows == sum(len(own) for own in users) - 5 * 50


@pytest.mark.parametrize("length", [1, 2, 3, 8])
def test_whole_sequences_against_a_slow_form(length: int):
    task = task_of(length=length, form="whole", n_negatives=2, batch_size=2)
    expected = {}
    for user, own in enumerate(USERS):
        if len(own) > 1:
            read = own[:-1][-length:]
            expected[user] = (
                padded(read, length),
                [(length - len(read) + n, item) for n, item in enumerate(own[-len(read) :])],
            )
    assert (task.n_rows, task.n_short) == (3, 1)
    found = {}
    for batch in task.draw(Epoch(0, 0, 1)):
        assert batch.negative_rows.tolist() == [row for row in batch.positive_rows.tolist() for _ in range(2)]
        for row, (user, history) in enumerate(
            zip(batch.queries.users.tolist(), batch.queries.history.tolist(), strict=True)
        ):
            own = batch.positive_rows == row
            pairs = zip(batch.steps[own].tolist(), batch.positives[own].tolist(), strict=True)
            found[user] = (history, list(pairs))
            assert not set(batch.negatives[batch.negative_rows == row].tolist()) & set(USERS[user])
    assert found == expected


@pytest.mark.parametrize("form", ["windows", "whole"])
def test_epochs_are_drawn_by_the_epoch_alone(form: str):
    data = toy_dataset()
    task = SequenceTask(data.train, data.order, length=4, form=form, batch_size=16, n_negatives=3)
    first, again, other = (list(task.draw(Epoch(n, 0, 9))) for n in (0, 0, 1))
    assert len(first) == task.n_batches
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.negatives, two.negatives)
        assert torch.equal(one.queries.rows, two.queries.rows)
    assert not torch.equal(first[0].queries.rows, other[0].queries.rows)
    assert torch.equal(task.draw(Epoch(0, 0, 9))[2].negatives, first[2].negatives)
    seen = data.train.to_csr().toarray() > 0
    for batch in first:
        users = batch.queries.users[batch.positive_rows]
        negatives = batch.negatives.view(-1, 3)
        assert not seen[users[:, None].numpy(), negatives.numpy()].any()
        assert seen[users.numpy(), batch.positives.numpy()].all()
        if form == "windows":
            assert np.array_equal(task.row_users[batch.places.numpy()], users.numpy())
    assert (task.row_users is None) == (form == "whole")
    counted = np.concatenate([batch.queries.rows.numpy() for batch in first])
    assert np.array_equal(np.sort(counted), np.arange(task.n_users, task.n_queries))


def test_a_target_keeps_its_own_negatives():
    batch = task_of(form="whole", n_negatives=2).draw(Epoch(0, 0, 1))[0]
    rows, positives, negatives = batch.triples
    assert torch.equal(rows, batch.positive_rows)
    assert torch.equal(positives, batch.positives)
    assert torch.equal(negatives.flatten(), batch.negatives)
    assert torch.equal(rows.repeat_interleave(2), batch.negative_rows)


def test_users_without_a_negative_are_left_out_and_counted():
    task = task_of([[0, 1, 2], [2, 0]], 3, length=2)
    assert (task.n_skipped, task.n_rows) == (1, 1)
    whole = task_of([[0, 1, 2], [2, 0]], 3, length=2, form="whole")
    assert (whole.n_skipped, whole.n_rows) == (2, 1)
    with pytest.raises(DataError, match="no training instance is left: of 1 users 0 have too few items"):
        task_of([[0, 1, 2]], 3)
    with pytest.raises(DataError, match="of 2 users 2 have too few items"):
        task_of([[0], [1]], 3)


def test_what_a_task_can_not_be_made_of():
    seen, order = sequences()
    with pytest.raises(DataError, match="the data set has no order"):
        SequenceTask(seen, None, length=3)
    for wrong in (order[:-1], np.roll(order, 1), np.zeros_like(order)):
        with pytest.raises(DataError, match="does not hold the 12 training items"):
            SequenceTask(seen, wrong, length=3)
    with pytest.raises(ConfigError, match="length is 0"):
        SequenceTask(seen, order, length=0)
    with pytest.raises(ConfigError, match="allowed: windows, or whole with 1 target"):
        SequenceTask(seen, order, length=2, targets=2, form="whole")


@pytest.mark.parametrize("name", ["caser", "sasrec"])
def test_a_model_of_sequences_refuses_other_tasks(name: str):
    cls, data = MODELS[name], toy_dataset(ordered=False)
    with pytest.raises(ConfigError, match=rf"the task is a PairTask(.|\n)*{cls.__name__}\.make_task"):
        cls(cls.Config(), PairTask(data.train))
    with pytest.raises(ConfigError, match="sequences of 7 items, the task is of length 3"):
        cls(cls.Config(length=7), toy_task(name, length=3))
    with pytest.raises(DataError, match="the data set has no order"):
        cls.make_task(cls.Config(), data.train, order=data.order, layout="triples")


# --- Caser ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "count"), [(100, 5_584_102), (50, 2_794_102)])
def test_the_published_size_of_caser(dim: int, count: int):
    users, items = 13_149, 14_009
    pairs = Interactions.from_pairs([0, 0], [0, 1], users, items)
    task = SequenceTask(pairs, np.array([1, 0]), length=5)
    assert sum(p.numel() for p in Caser(Caser.Config(dim=dim), task).parameters()) == count


def test_initial_values_of_caser():
    """Tables N(0, 1/width²), no bias of items, filters and the layer on them uniform within ±1/√fan-in."""
    model = built("caser", toy_task("caser"), dim=32, vertical=40)
    for table, width in ((model.users, 32), (model.items, 32), (model.outputs, 64)):
        assert table.weight.std().item() == pytest.approx(1 / width, rel=0.06)
    assert (model.bias == 0).all()
    layers = [(5, model.down), *((32 * height, own) for height, own in enumerate(model.across, 1))]
    for fan_in, layer in (*layers, (40 * 32 + 16 * 5, model.joined)):
        for parameter in (layer.weight, layer.bias):
            assert parameter.abs().max() <= fan_in**-0.5
        assert layer.weight.abs().max() > 0.9 * fan_in**-0.5


@pytest.mark.parametrize(("conv", "full"), [("identity", "sigmoid"), ("relu", "tanh")])
def test_caser_against_convolutions(conv: str, full: str):
    """The same filters as torch's own two-dimensional convolutions, pooled over time."""
    task = toy_task("caser")
    model = built("caser", task, vertical=2, horizontal=3, conv_activation=conv, activation=full)
    queries = task.queries(torch.tensor([0, 3, 60, 70]))
    image = model.items(queries.history).unsqueeze(1)  # [B, 1, L, d]
    parts = [F.conv2d(image, model.down.weight.view(2, 1, 5, 1), model.down.bias).flatten(1)]
    for height, filters in enumerate(model.across, 1):
        wide = F.conv2d(image, filters.weight.view(3, 1, height, 4), filters.bias).squeeze(3)
        wide = wide if conv == "identity" else torch.relu(wide)
        parts.append(F.max_pool1d(wide, wide.shape[2]).squeeze(2))
    z = model.joined(torch.cat(parts, 1))
    z = torch.sigmoid(z) if full == "sigmoid" else torch.tanh(z)
    x = torch.cat([z, model.users(queries.users)], 1)
    assert x.shape[1] == model.dim == 8
    assert torch.allclose(model(queries).queries, x, atol=1e-6)
    with torch.no_grad():
        model.bias.normal_()
    scores = x @ model.outputs.weight[:80].T + model.bias[:80]
    assert torch.allclose(model(queries).all_scores(), scores, atol=1e-6)


@pytest.mark.parametrize("targets", [1, 2])
def test_casers_loss_by_hand(targets: int):
    """softplus(-s) of targets and softplus(s) of negatives, summed or averaged over instances."""
    task = task_of(length=2, targets=targets, n_negatives=3, batch_size=3)
    options = {"length": 2, "targets": targets}
    model = built("caser", task, reduction="sum", **options)
    batch = task.draw(Epoch(0, 0, 1))[0]
    every = model(batch.queries).all_scores()
    rows = batch.positive_rows if targets > 1 else torch.arange(3)
    expected = 0.0
    for n, row in enumerate(rows.tolist()):
        expected += math.log1p(math.exp(-every[row, batch.positives[n]].item()))
        expected += sum(math.log1p(math.exp(every[row, j].item())) for j in batch.negatives.view(-1, 3)[n].tolist())
    assert model.loss(model(batch.queries), batch).item() == pytest.approx(expected, rel=1e-5)
    mean = built("caser", task, **options)
    assert mean.loss(mean(batch.queries), batch).item() == pytest.approx(expected / 3, rel=1e-5)


def test_casers_first_loss_is_that_of_chance():
    task = toy_task("caser")
    model = built("caser", task)
    with torch.no_grad():
        model.outputs.weight.zero_()
    batch = task.draw(Epoch(0, 0, 1))[0]
    assert model.loss(model(batch.queries), batch).item() == pytest.approx(2 * math.log(2), rel=1e-6)
    with pytest.raises(ConfigError, match="vertical and horizontal are both 0"):
        built("caser", task, vertical=0, horizontal=0)
    for options in ({"vertical": 0}, {"horizontal": 0}):
        assert torch.isfinite(built("caser", task, **options)(batch.queries).all_scores()).all()


# --- SASRec ---------------------------------------------------------------------------------------------------------


def slow_states(model: SASRec, items: list[int], form: str) -> torch.Tensor:
    """One user's sequence without padding, attention written out place by place and head by head."""
    d, heads = model.dim, model.config.heads
    x = model.items.weight[items] * math.sqrt(d) + model.positions[-len(items) :]
    for block in model.blocks:
        y = block.norms[0](x)
        source = x if form == "code" else y
        q, k, v = block.query(y), block.key(source), block.value(source)
        out = torch.zeros_like(x)
        size = d // heads
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(items)):
                weights = torch.softmax(k[: t + 1, part] @ q[t, part] / math.sqrt(size), 0)
                out[t, part] = weights @ v[: t + 1, part]
        x = (y if form == "code" else x) + out
        y = block.norms[1](x)
        x = (y if form == "code" else x) + block.outer(torch.relu(block.inner(y)))
    return model.norm(x)


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("heads", [1, 2])
def test_sasrec_against_a_slow_form(form: str, heads: int):
    """Users of different lengths in one batch: padding changes nothing."""
    task = task_of(length=5, form="whole")
    model = built("sasrec", task, length=5, heads=heads, block_form=form, init_std=0.5)
    queries = task.queries(torch.tensor([0, 3, 1]))
    view = model(queries)
    for row, user in enumerate((0, 3, 1)):
        own = slow_states(model, USERS[user][-5:], form)
        assert torch.allclose(view.states[row, -len(own) :], own, atol=1e-5)
        assert torch.allclose(view.queries[row], own[-1], atol=1e-5)
    assert torch.allclose(view.all_scores(), view.queries @ model.items.weight[:N_ITEMS].T, atol=1e-6)


def test_sasrec_norms_add_a_hundred_millionth():
    """(1e-4, -1e-4) has variance 1e-8: divided by sqrt(2e-8) it is (1, -1) / sqrt(2)."""
    model = built("sasrec", task_of(length=5, form="whole"), length=5, dim=2)
    for norm in (model.norm, *model.blocks[0].norms, *model.blocks[1].norms):
        found = norm(torch.tensor([1e-4, -1e-4])).tolist()
        assert found == pytest.approx([0.70711, -0.70711], abs=1e-4)


def test_sasrec_begins_as_its_code_does():
    """Matrices uniform up to sqrt(6 / (64 + 64)) = 0.2165, no bias; tables, asked for, up to sqrt(6 / (rows + 64))."""
    task = toy_task("sasrec", length=30)
    model = built("sasrec", task, length=30, dim=64, init="glorot")
    for block in model.blocks:
        for layer in (block.query, block.key, block.value, block.inner, block.outer):
            assert 0.21 < layer.weight.abs().max() <= 0.2166
        assert not block.inner.bias.any()
        assert not block.outer.bias.any()
    for table, rows in ((model.items.weight, 81), (model.positions, 30)):
        bound = (6 / (rows + 64)) ** 0.5
        assert 0.98 * bound < table.abs().max() <= bound
        assert table.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not model.items.weight[80].any()
    usual = built("sasrec", task, length=30, dim=64)
    assert usual.positions.std().item() == pytest.approx(0.02, rel=0.05)


def test_sasrec_does_not_look_ahead():
    task = toy_task("sasrec", length=8)
    model = built("sasrec", task, length=8, init_std=0.5)
    queries = task.queries(torch.arange(task.n_users, task.n_users + 6))
    before = model(queries).states
    history = queries.history.clone()
    history[:, 5:] = (history[:, 5:] + 1) % 80
    after = model(type(queries)(queries.rows, queries.users, history)).states
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-2)


def test_a_user_without_items_has_finite_scores():
    for name, options in (("sasrec", {}), ("caser", {})):
        form = {"sasrec": "whole", "caser": "windows"}[name]
        model = built(name, task_of(length=3, form=form), length=3, **options)
        assert torch.isfinite(model(model.task.queries(torch.tensor([2]))).all_scores()).all()


@pytest.mark.parametrize("objective", ["bce", "sampled-softmax", "softmax"])
def test_sasrecs_losses_by_hand(objective: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kdrs.training.losses._LogSumExp.TILE_FLOATS", 20)
    task = task_of(length=4, form="whole", n_negatives=2, batch_size=3)
    model = built("sasrec", task, length=4, objective=objective, init_std=0.5)
    batch = task.draw(Epoch(0, 0, 1))[0]
    view = model(batch.queries)
    expected = torch.zeros(())
    users = batch.queries.users.tolist()
    for n, (row, place) in enumerate(zip(batch.positive_rows.tolist(), batch.steps.tolist(), strict=True)):
        read = [item for item in batch.queries.history[row].tolist() if item != PAD]
        state = slow_states(model, read, "paper")[place - (4 - len(read))]
        scores = model.items.weight[:N_ITEMS] @ state
        own = scores[batch.positives[n]]
        others = scores[batch.negatives.view(-1, 2)[n]]
        if objective == "bce":
            expected = expected + F.softplus(-own) + F.softplus(others).sum()
        elif objective == "softmax":
            expected = expected + torch.logsumexp(scores, 0) - own
        else:
            expected = expected + torch.logsumexp(torch.cat([own.view(1), others]), 0) - own
        assert batch.positives[n] in USERS[users[row]]
    loss = model.loss(view, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    slow = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    loss.backward()
    for (name, parameter), gradient in zip(model.named_parameters(), slow, strict=True):
        if gradient is not None:
            found = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            known = gradient.to_dense() if gradient.is_sparse else gradient
            assert torch.allclose(found[:N_ITEMS], known[:N_ITEMS], atol=1e-4), name
    mean = built("sasrec", task, length=4, objective=objective, init_std=0.5, reduction="mean")
    total = batch.positives.shape[0]
    assert mean.loss(mean(batch.queries), batch).item() == pytest.approx(expected.item() / total, rel=1e-5)


def test_sasrecs_padding_stays_zero_and_heads_divide():
    from kdrs.fitting.fit import fit

    task = toy_task("sasrec", length=30)
    model = built("sasrec", task, length=30)
    fit(Learner(model, task, lr=1e-2, weight_decay=1e-3), task, epochs=2)
    assert not model.items.weight[80].any()
    with pytest.raises(ConfigError, match="heads must divide dim"):
        built("sasrec", task, length=30, heads=3)


@pytest.mark.parametrize("name", ["caser", "sasrec"])
def test_sequences_are_learnt(name: str):
    """Item n + 1 follows item n: after training, the next item is first for nearly everyone."""
    from kdrs.fitting.fit import fit

    rng = np.random.default_rng(0)
    users = [
        ((start + np.arange(n)) % 40).tolist()
        for start, n in zip(rng.integers(0, 40, 300), rng.integers(8, 20, 300), strict=True)
    ]
    cls = MODELS[name]
    options = {"caser": {"dropout": 0.1}, "sasrec": {"length": 6, "dropout": 0.1}}[name]
    config = cls.Config(dim=16, **options)
    seen, order = sequences(users, 40)
    task = cls.make_task(config, seen, order=order, batch_size=64, n_negatives=3)
    torch.manual_seed(0)
    model = cls(config, task)
    fit(Learner(model, task, lr=1e-2), task, epochs=20 if name == "caser" else 60)
    best = ModelTeacher(model.eval(), task).topk(1).items[:300, 0]
    expected = np.array([(own[-1] + 1) % 40 for own in users])
    assert (best == expected).mean() > 0.9
