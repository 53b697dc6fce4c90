"""CDAE, Mult-VAE and I-AE against dense forms of their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdrs.data import Interactions
from kdrs.errors import ConfigError
from kdrs.fitting.fit import fit
from kdrs.fitting.learner import Learner
from kdrs.models import CDAE, IAE, MODELS, MultVAE, cdae, iae, multvae
from kdrs.models._noise import normal, uniform
from kdrs.teachers.model import ModelTeacher
from kdrs.training.queries import Batch, Epoch, Queries
from kdrs.training.rows import ItemTask, UserTask

ROWS = (CDAE, MultVAE, IAE)


def build(cls, seen: Interactions, seed: int = 0, **options):
    torch.manual_seed(seed)
    config = cls.Config(**{"dim": 6, **options})
    task = cls.make_task(config, seen, batch_size=16)
    return cls(config, task), task


def asked(*users: int) -> Queries:
    rows = torch.tensor(users)
    return Queries(rows, rows)


def dense(seen: Interactions) -> torch.Tensor:
    return torch.from_numpy(seen.to_csr().toarray())


# --- noise ----------------------------------------------------------------------------------------------------------


def test_uniform_noise():
    values = uniform(5, torch.arange(200_000))
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.histc(values, 20, 0, 1)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 43.8  # chi-square, 19 degrees, p = 0.001
    assert torch.equal(values[7:9], uniform(5, torch.tensor([7, 8])))
    other = uniform(6, torch.arange(200_000))
    assert abs(np.corrcoef(values, other)[0, 1]) < 0.01
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01


def test_normal_noise():
    values = normal(2**62 + 1, torch.arange(200_000)).double()
    assert values.mean().item() == pytest.approx(0, abs=0.01)
    assert values.var().item() == pytest.approx(1, abs=0.02)
    assert (values**4).mean().item() == pytest.approx(3, abs=0.1)
    assert torch.isfinite(values).all()


@pytest.mark.parametrize("cls", ROWS)
def test_a_pass_has_one_noise(toy, cls):
    """Asked again, in another order or through another view, the scores of a training pass are the same."""
    model, _ = build(cls, toy.train)
    model.on_epoch_start(Epoch(0, 0, 1))
    view = model(asked(3, 8))
    first = view.all_scores()
    assert torch.allclose(view.at(asked(8, 5, 3)).all_scores()[[2, 0]], first, atol=1e-6)
    ids = torch.tensor([[4, 9, 1], [7, 0, 2]])
    assert torch.allclose(view.scores(ids), first.gather(1, ids), atol=1e-5)
    later = model(asked(3, 8)).all_scores()
    assert not torch.allclose(first, later, atol=1e-3)
    model.on_epoch_start(Epoch(0, 0, 1))
    assert torch.equal(model(asked(3, 8)).all_scores(), first)
    model.on_epoch_start(Epoch(1, 0, 1))
    assert not torch.allclose(model(asked(3, 8)).all_scores(), first, atol=1e-3)


@pytest.mark.parametrize("cls", ROWS)
def test_representations_carry_no_noise(toy, cls):
    model, _ = build(cls, toy.train)
    users, items = asked(3, 8), torch.tensor([2, 2, 70])
    training = [(view.queries, view.items(items)) for view in (model(users), model(users))]
    view = model.eval()(users)
    for queries, vectors in training:
        assert torch.allclose(queries, view.queries, atol=1e-6)
        assert torch.allclose(vectors, view.items(items), atol=1e-6)
    assert view.queries.shape == (2, model.dim)
    assert view.items(items).shape == (3, model.dim)


@pytest.mark.parametrize("cls", ROWS)
def test_models_side_by_side_have_noises_of_their_own(toy, cls):
    one, other = (build(cls, toy.train, seed=seed)[0] for seed in (0, 1))
    other.load_state_dict({**one.state_dict(), "salt": other.salt})
    for model in (one, other):
        model.on_epoch_start(Epoch(0, 0, 1))
    assert not torch.allclose(*(model(asked(3)).all_scores() for model in (one, other)), atol=1e-3)


# --- CDAE -----------------------------------------------------------------------------------------------------------


def cdae_by_definition(model: CDAE, inputs: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
    z = torch.sigmoid(inputs @ model.encoder + model.encoder_bias + model.users.weight[users])
    return z @ model.items.weight.T + model.item_bias


def test_cdae_scores(toy):
    model, _ = build(CDAE, toy.train)
    users = torch.tensor([0, 7, 49])
    view = model.eval()(Queries(users, users))
    expected = cdae_by_definition(model, dense(toy.train)[users], users)
    assert torch.allclose(view.all_scores(), expected, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == 6 * (50 + 2 * 80 + 1) + 80


def dropped(model: CDAE, view, users: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The input of a training pass, read off the noise that belongs to its entries."""
    model._passes -= 1
    kept = uniform(model.pass_seed(), users[:, None] * 80 + torch.arange(80)) >= model.config.dropout
    return x[users] * kept / (1 - model.config.dropout)


@pytest.mark.parametrize("dropout", [0.5, 0.2])
def test_cdae_loss_is_that_of_the_dense_rows(toy, dropout: float):
    """Σ over the items of m = 1 of the cross-entropy, m being the user's items and the drawn ones; gradients too."""
    model, task = build(CDAE, toy.train, dropout=dropout)
    model.on_epoch_start(Epoch(0, 0, 1))
    batch = task.draw(Epoch(0, 0, 1))[0]
    users, x = batch.queries.users, dense(toy.train)
    mask = x[users].clone()
    mask[batch.negative_rows, batch.negatives] = 1
    view = model(batch.queries)
    loss = model.loss(view, batch)
    inputs = dropped(model, view, users, x)
    assert inputs.unique().tolist() == pytest.approx([0.0, 1 / (1 - dropout)])
    expected = F.binary_cross_entropy_with_logits(
        cdae_by_definition(model, inputs, users), x[users], weight=mask, reduction="sum"
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = torch.autograd.grad(loss, list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    for left, right in zip(ours, theirs, strict=True):
        assert torch.allclose(left.to_dense(), right.to_dense(), atol=1e-5)


def test_cdae_drops_half_of_the_input(toy):
    model, _ = build(CDAE, toy.train)
    with torch.no_grad():
        model.encoder.fill_(1.0)
    users = torch.arange(50)
    sums = torch.stack([model.rows.sums(users, model.encoder, 0.5, seed)[:, 0] for seed in range(400)])
    degrees = torch.from_numpy(toy.train.row_degrees).float()
    assert torch.allclose(sums.mean(0) / degrees, torch.ones(50), atol=0.15)
    assert (sums.mean() / degrees.mean()).item() == pytest.approx(1, abs=0.01)
    assert torch.allclose(sums.var(0), degrees, rtol=0.35)  # n · 4 · ½ · ½


def test_cdae_initial_values(toy):
    """Users N(0, 1); both layers uniform within ±1/√fan-in: 80 items, 64 dimensions."""
    model, _ = build(CDAE, toy.train, dim=64)
    assert model.users.weight.std().item() == pytest.approx(1, rel=0.05)
    assert model.users.weight.abs().max() > 2
    layers = ((80, model.encoder, model.encoder_bias), (64, model.items.weight, model.item_bias))
    for fan_in, weight, bias in layers:
        bound = 1 / math.sqrt(fan_in)
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        for parameter in (weight, bias):
            assert 0.9 * bound < parameter.abs().max() <= bound


def test_a_user_without_items_has_a_vector_all_the_same():
    seen = Interactions.from_pairs([0, 0, 2], [1, 3, 2], 4, 5)
    model, task = build(CDAE, seen)
    view = model.eval()(asked(1, 3))
    expected = torch.sigmoid(model.encoder_bias + model.users.weight[[1, 3]])
    assert torch.allclose(view.queries, expected)
    assert task.n_rows == 2
    for cls in (MultVAE, IAE):
        other, _ = build(cls, seen)
        assert torch.isfinite(other(asked(0, 1, 2, 3)).all_scores()).all()


def test_cdae_takes_batches_of_pairs_too(task):
    """A peer's task: the cross-entropy of the batch's own pairs."""
    torch.manual_seed(0)
    model = CDAE(CDAE.Config(dim=4, dropout=0), task).train()
    batch = task.draw(Epoch(0, 0, 1))[0]
    scores = model(batch.queries).scores(torch.cat([batch.positives[:, None], batch.negatives], dim=1))
    expected = F.softplus(-scores[:, 0]).sum() + F.softplus(scores[:, 1:]).sum()
    assert model.loss(model(batch.queries), batch).item() == pytest.approx(expected.item(), rel=1e-5)


# --- Mult-VAE -------------------------------------------------------------------------------------------------------


def vae_by_definition(model, x: torch.Tensor, rows: torch.Tensor, noise: torch.Tensor | None, kept=None):
    """Logits, μ and log σ of dense rows."""
    inputs = x[rows] / x[rows].norm(dim=1, keepdim=True).clamp(min=1)
    inputs = inputs if kept is None else inputs * kept * 2
    hidden = torch.tanh(inputs @ model.encoder + model.encoder_bias)
    mean = hidden @ model.mean.weight.T + model.mean.bias
    log_sd = hidden @ model.log_sd.weight.T + model.log_sd.bias
    z = mean if noise is None else mean + noise * log_sd.exp()
    if model.widen is not None:
        z = torch.tanh(z @ model.widen.weight.T + model.widen.bias)
    return z @ model.decoder.weight.T + model.decoder_bias, mean, log_sd


@pytest.mark.parametrize("form", ["ccd", "mult_vae"])
def test_multvae_scores(toy, form: str):
    model, _ = build(MultVAE, toy.train, form=form, width=11)
    assert model.dim == (6 if form == "ccd" else 11)
    assert model.encoder.shape == (80, model.dim)
    users = torch.tensor([0, 7, 49])
    expected, mean, _ = vae_by_definition(model, dense(toy.train), users, None)
    view = model.eval()(Queries(users, users))
    assert torch.allclose(view.all_scores(), expected, atol=1e-5)
    if form == "ccd":
        assert torch.allclose(view.queries, mean, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("steps", [0, 20_000, 100_000])
@pytest.mark.parametrize("form", ["ccd", "mult_vae"])
def test_multvae_loss(toy, form: str, steps: int, reduction: str):
    model, task = build(MultVAE, toy.train, form=form, width=11, reduction=reduction)
    model.on_epoch_start(Epoch(0, 0, 1))
    model.steps.fill_(steps)
    batch = task.draw(Epoch(0, 0, 1))[0]
    assert batch.negatives.numel() == 0
    view = model(batch.queries)
    loss = model.loss(view, batch)
    assert model.steps.item() == steps + 1
    rows, x = torch.unique(batch.queries.rows), dense(toy.train)
    noise = normal(view.seed, rows[:, None] * 6 + torch.arange(6) + 2**62)
    kept = None if form == "ccd" else uniform(view.seed, rows[:, None] * 80 + torch.arange(80)) >= 0.5
    logits, mean, log_sd = vae_by_definition(model, x, rows, noise, kept)
    target = x[rows] / x[rows].norm(dim=1, keepdim=True) if form == "ccd" else x[rows]
    entropy = -(target * torch.log(torch.softmax(logits, dim=1) + 1e-12)).sum()
    divergence = 0.5 * (mean**2 + torch.exp(2 * log_sd) - 2 * log_sd).sum()
    expected = entropy + min(0.2, steps / 200_000) * divergence
    if reduction == "mean":
        expected = expected / len(rows)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = torch.autograd.grad(loss, list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    for left, right in zip(ours, theirs, strict=True):
        assert torch.allclose(left.to_dense(), right, atol=1e-4, rtol=1e-4)


def test_multvae_probabilities_have_a_floor():
    """An item whose probability is 0 in float32 costs log 1e-12 and not infinity: one user with one item of two."""
    model, _ = build(MultVAE, Interactions.from_pairs([0], [0], 1, 2), dim=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.decoder_bias.copy_(torch.tensor([-500.0, 500.0]))
    loss = model.rows_loss(torch.tensor([0]), 1)
    assert loss.item() == pytest.approx(-math.log(1e-12), rel=1e-5)


def test_multvae_divergence_by_hand():
    """μ = 1, log σ = 0 in two dimensions, weight 0.2: 0.2 · ½ · 2 · (1 + 1 - 0) = 0.4; the entropy of two equals is ln 2."""
    model, _ = build(MultVAE, Interactions.from_pairs([0], [0], 1, 2), dim=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.mean.bias.fill_(1.0)
    model.steps.fill_(10**6)
    assert model.rows_loss(torch.tensor([0]), 1).item() == pytest.approx(0.4 + math.log(2), rel=1e-5)


def test_multvae_initial_values(toy):
    model, _ = build(MultVAE, toy.train, dim=400)
    assert model.encoder.std().item() == pytest.approx(math.sqrt(2 / 480), rel=0.02)
    assert model.decoder.weight.std().item() == pytest.approx(math.sqrt(2 / 480), rel=0.02)
    assert model.mean.weight.std().item() == pytest.approx(math.sqrt(2 / 800), rel=0.02)
    assert model.mean.bias.std().item() == pytest.approx(1, abs=0.15)
    original, _ = build(MultVAE, toy.train, form="mult_vae")
    assert original.dim == 600
    assert original.encoder_bias.abs().max() < 0.01


@pytest.mark.parametrize("cls", [MultVAE, IAE])
def test_ccd_noise(toy, cls):
    """Uniform on [0, 1), in evaluation too, where it is the same every time."""
    model, _ = build(cls, toy.train, ccd_noise=True)
    rows = torch.arange(model.n_rows)
    mean, log_sd = model.posterior(rows, None)
    for seed in (None, 7):
        noise = (model.sample(rows, seed)[0] - mean) / log_sd.exp()
        assert noise.min() > -1e-3
        assert noise.max() < 1.001
        assert noise.mean().item() == pytest.approx(0.5, abs=0.06)
    model.eval()
    one, two = (model(asked(4, 9)).all_scores() for _ in range(2))
    assert torch.equal(one, two)
    factors = model.factors()
    bias = 0 if factors.bias is None else factors.bias
    assert torch.allclose((factors.queries @ factors.items.T + bias)[[4, 9]], one, atol=1e-5)
    plain, _ = build(cls, toy.train)
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain.eval()(asked(4, 9)).all_scores(), one, atol=1e-3)


# --- I-AE -----------------------------------------------------------------------------------------------------------


def test_iae_is_multvae_with_users_and_items_exchanged(toy):
    mirrored = toy.train.transpose()
    one, _ = build(IAE, toy.train)
    other, _ = build(MultVAE, mirrored)
    other.load_state_dict(one.state_dict())
    items = torch.tensor([3, 50, 79])
    for model in (one, other):
        model.steps.fill_(30_000)
    assert torch.equal(one.rows_loss(items, 5), other.rows_loss(items, 5))
    logits = other.eval()(Queries(items, items)).all_scores()
    users = torch.arange(50)
    own = one.eval()(Queries(users, users)).all_scores()[:, items]
    assert torch.allclose(own, torch.log_softmax(logits, dim=1).T, atol=1e-5)


def test_iae_scores_are_probabilities_over_users(toy):
    model, task = build(IAE, toy.train)
    users = torch.arange(50)
    scores = model.eval()(Queries(users, users)).all_scores()
    assert torch.allclose(scores.exp().sum(0), torch.ones(80), atol=1e-5)
    logits, _ = build(IAE, toy.train, score="logits")
    raw = logits.eval()(Queries(users, users)).all_scores()
    assert torch.allclose(torch.log_softmax(raw, dim=0), scores, atol=1e-5)
    assert (raw.argsort(dim=1) != scores.argsort(dim=1)).any()
    ranked = ModelTeacher(model, task).topk(10).items
    hidden = scores.clone()
    hidden[
        torch.from_numpy(toy.train.row_of_pair.copy()).long(), torch.from_numpy(toy.train.indices.copy()).long()
    ] = -1e9
    assert (hidden.exp().topk(10).indices.numpy() == ranked).all()


def test_iae_batches_hold_their_items_only(toy):
    model, task = build(IAE, toy.train)
    model.on_epoch_start(Epoch(0, 0, 1))
    batch = task.draw(Epoch(0, 0, 1))[0]
    view = model(batch.queries)
    loss = model.loss(view, batch)
    model.steps.zero_()
    assert loss.item() == model.rows_loss(torch.unique(batch.positives), view.seed).item()


def test_an_item_nobody_has_seen():
    model, task = build(IAE, Interactions.from_pairs([0, 1, 1], [0, 0, 2], 2, 4))
    assert torch.isfinite(model.rows_loss(torch.tensor([1, 0]), 3))
    assert torch.isfinite(model.eval()(asked(0, 1)).all_scores()).all()
    assert task.n_rows == 2


# --- all three ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "module", "name"), [(CDAE, cdae, "USERS"), (MultVAE, multvae, "USERS"), (IAE, iae, "ITEMS")]
)
def test_factors_do_not_depend_on_blocks(toy, monkeypatch, cls, module, name: str):
    model, _ = build(cls, toy.train)
    whole = model.eval().factors()
    monkeypatch.setattr(module, f"BLOCK_{name}", 7)
    for left, right in zip(whole, model.factors(), strict=True):
        assert torch.allclose(left, right, atol=1e-5)


@pytest.mark.parametrize(("cls", "kind"), [(CDAE, UserTask), (MultVAE, UserTask), (IAE, ItemTask)])
def test_they_make_tasks_of_their_own(toy, cls, kind):
    task = cls.make_task(
        cls.Config(), toy.train, batch_size=9, n_negatives=1, layout="triples", device="cpu", threads=1
    )
    assert isinstance(task, kind)
    assert task.batch_size == 9
    for wrong in ({"n_negatives": 3}, {"layout": "rows"}):
        with pytest.raises(ConfigError, match=f"{cls.__name__} learns from whole rows"):
            cls.make_task(cls.Config(), toy.train, **wrong)
    if cls is CDAE:
        assert task.ratio == 5.0


@pytest.mark.parametrize("name", ["cdae", "multvae", "iae"])
def test_training_learns_the_tastes(toy, name: str):
    from kdrs.evaluation.evaluator import Evaluator

    cls = MODELS[name]
    model, task = build(cls, toy.train, dim=16)
    options = cls.train_defaults(model.config)
    learner = Learner(model, task, lr=1e-2, weight_decay=options.get("weight_decay", 0.0))
    evaluator = Evaluator.of(toy)
    before = evaluator(learner.knowledge)["test"].mean("hit@5")
    fit(learner, task, epochs=30)
    assert evaluator(learner.knowledge)["test"].mean("hit@5") > before + 0.2


def test_what_is_read_of_a_pass_changes_no_other_pass(toy):
    """A term that asks for other users' scores and vectors leaves the training as it was."""
    trained = []
    for curious in (False, True):
        model, task = build(CDAE, toy.train)

        def base(view, batch: Batch, model=model, curious=curious) -> torch.Tensor:
            if curious:
                other = view.at(asked(1, 2, 3))
                _ = other.all_scores(), other.queries, view.queries
            return model.loss(view, batch)

        fit(Learner(model, task, base=base), task, epochs=2)
        trained.append(model)
    assert all(torch.equal(*pair) for pair in zip(*(model.parameters() for model in trained), strict=True))
