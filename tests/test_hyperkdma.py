"""HyperKDMA: the symmetric form against the hypernetwork as the paper writes it, and the loss against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kdrs.distillers import DE, PHR, HyperKDMA
from kdrs.distillers import _hypernetwork as hypernetwork
from kdrs.distillers._hidden import Entities, Vectors
from kdrs.distillers._hypernetwork import Hypernetwork
from kdrs.errors import ConfigError
from kdrs.fitting.fit import _Draws, _train_epoch, fit
from kdrs.fitting.learner import Learner, Term
from kdrs.teachers.model import ModelTeacher
from kdrs.training.optim import Adam
from kdrs.training.queries import Epoch
from test_distillers import batch_of, bpr, started


def generated(weight: torch.Tensor, bias: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Equations 13 and 14 letter by letter: ``weight`` [d D, d], ``bias`` [d D], ``vectors`` [E, d] -> [E, D]."""
    matrices = torch.nn.functional.linear(vectors, weight, bias).view(vectors.shape[0], -1, vectors.shape[1])
    return torch.einsum("ead,ed->ea", matrices, vectors)


def symmetric(weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype = torch.float32) -> Hypernetwork:
    """The symmetric form of a full layer."""
    dim = weight.shape[1]
    out_dim = weight.shape[0] // dim
    full = weight.detach().view(out_dim, dim, dim)
    half = (full + full.transpose(1, 2)) / 2
    rows, columns = torch.triu_indices(dim, dim, 1)
    network = Hypernetwork(dim, out_dim).to(dtype)
    with torch.no_grad():
        network.squares.copy_(half.diagonal(dim1=1, dim2=2).T)
        network.pairs.copy_(half[:, rows, columns].T)
        network.linear.copy_(bias.view(out_dim, dim).T)
    return network


# --- the hypernetwork -------------------------------------------------------------------------------------------------


def test_hypernetwork_worked_example():
    """h = (1, 2), W_P = [[1, 2], [3, 4]], b_P = (1, -1): p = (6, 10), h_1 = 26."""
    weight, bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, -1.0])
    vectors = torch.tensor([[1.0, 2.0]])
    assert (vectors @ weight.T + bias).tolist() == [[6.0, 10.0]]
    network = symmetric(weight, bias)
    assert network(vectors).tolist() == [[26.0]]
    assert network.squares.tolist() == [[1.0], [4.0]]
    assert network.pairs.tolist() == [[2.5]]  # the output's coefficient of h_1 h_2 is 5


@pytest.mark.parametrize(("block_rows", "path"), [(1, "portable"), (7, "portable"), (2048, "portable"), (2048, None)])
@pytest.mark.parametrize("dim", [1, 2, 3, 9])
def test_hypernetwork_is_the_full_layer(dim, block_rows, path, monkeypatch):
    monkeypatch.setattr(hypernetwork._Pairs, "BLOCK_ROWS", block_rows)
    if path is not None:
        monkeypatch.setenv("KDRS_SIMD", path)  # torch's products, block by block, instead of the core's
    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        layer = nn.Linear(dim, dim * 4).to(dtype)
        vectors, back = torch.randn(6, dim, dtype=dtype), torch.randn(6, 4, dtype=dtype)
        network = symmetric(layer.weight, layer.bias, dtype)
        full, half = generated(layer.weight, layer.bias, vectors), network(vectors)
        assert torch.allclose(full, half, rtol=tolerance, atol=tolerance)
        (full * back).sum().backward()
        (half * back).sum().backward()
        gradient = layer.weight.grad.view(4, dim, dim)
        assert torch.allclose(gradient, gradient.transpose(1, 2), atol=tolerance)  # W_P's gradient is symmetric
        rows, columns = torch.triu_indices(dim, dim, 1)
        assert torch.allclose(network.pairs.grad, 2 * gradient[:, rows, columns].T, rtol=tolerance, atol=tolerance)
        assert torch.allclose(network.squares.grad, gradient.diagonal(dim1=1, dim2=2).T, rtol=tolerance, atol=tolerance)
        assert torch.allclose(network.linear.grad, layer.bias.grad.view(4, dim).T, rtol=tolerance, atol=tolerance)


def test_hypernetwork_is_quadratic_plus_linear():
    network, vectors = Hypernetwork(5, 3), torch.randn(4, 5)
    linear = vectors @ network.linear
    quadratic = network(vectors) - linear
    assert torch.allclose(network(3 * vectors), 9 * quadratic + 3 * linear, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        network.linear.zero_()
    assert torch.equal(network(-vectors), network(vectors))


@pytest.mark.parametrize(("weight_decay", "symmetric_start"), [(0.0, False), (1e-2, True)])
def test_hypernetwork_trains_as_the_full_layer_does(weight_decay, symmetric_start):
    """50 steps of Adam in float64: the outputs agree to rounding, so ε and decay of the pairs are right; those of a single
    weight are not."""
    torch.manual_seed(0)
    dim, out_dim = 6, 4
    layer = nn.Linear(dim, dim * out_dim).double()
    if symmetric_start:
        with torch.no_grad():
            full = layer.weight.view(out_dim, dim, dim)
            full.copy_((full + full.transpose(1, 2)) / 2)
    vectors = torch.randn(8, dim, dtype=torch.float64)
    target = 1e-6 * torch.randn(8, out_dim, dtype=torch.float64)  # small gradients: ε matters

    def run(module: nn.Module, forward, multiplicities):
        optimizer = Adam(
            dict(module.named_parameters()), lr=1e-3, weight_decay=weight_decay, multiplicities=multiplicities
        )
        for _ in range(50):
            optimizer.zero_grad()
            (1e-7 * (forward(vectors) - target).square().sum()).backward()
            optimizer.step()
        return forward(vectors).detach()

    half, plain = symmetric(layer.weight, layer.bias, torch.float64), symmetric(layer.weight, layer.bias, torch.float64)
    expected = run(layer, lambda v: generated(layer.weight, layer.bias, v), None)
    assert torch.allclose(run(half, half, Hypernetwork.MULTIPLICITIES), expected, rtol=1e-11, atol=1e-13)
    assert not torch.allclose(run(plain, plain, None), expected, rtol=1e-6, atol=1e-8)


def test_hypernetwork_starts_like_a_linear_layer():
    torch.manual_seed(0)
    network, bound = Hypernetwork(100, 40), 0.1
    for parameter, variance in ((network.squares, 1 / 3), (network.linear, 1 / 3), (network.pairs, 1 / 6)):
        assert parameter.abs().max() <= bound
        assert parameter.var().item() == pytest.approx(variance * bound**2, rel=0.05)


@pytest.mark.parametrize("path", [None, "portable"])
def test_hypernetwork_in_bfloat16(path, monkeypatch):
    if path is not None:
        monkeypatch.setenv("KDRS_SIMD", path)  # torch's products instead of the core's
    torch.manual_seed(0)
    exact, rough = Hypernetwork(70, 33), Hypernetwork(70, 33, bf16=True)
    rough.load_state_dict(exact.state_dict())
    vectors, back = torch.randn(45, 70), torch.randn(45, 33)
    outputs, gradients = [], []
    for network in (exact, rough):
        out = network(vectors)
        (out * back).sum().backward()
        outputs.append(out.detach())
        gradients.append(network.pairs.grad)
    for one, other in (outputs, gradients):
        error = (one - other).norm() / one.norm()
        assert 0 < error < 0.01


def test_hypernetwork_has_the_papers_size():
    with torch.device("meta"):
        network = Hypernetwork(200, 880)
    assert sum(p.numel() for p in network.parameters()) == 17_688_000 + 176_000


# --- the loss ---------------------------------------------------------------------------------------------------------


def made(task, student_dim=3, seed=2, teacher_dim=9, **options):
    config = HyperKDMA.Config(**{"assistants": 2, "experts": 1, **options})
    return HyperKDMA(config, [ModelTeacher(bpr(task, teacher_dim), task)], task, student_dim, seed)


BATCH = ([0, 4, 4], [1, 2, 1], [3, 3, 5])


def loss_of(distiller, student, arguments=BATCH):
    batch = batch_of(*arguments)
    return distiller.loss(student(batch.queries), batch)


@pytest.mark.parametrize("hint", ["de", "phr"])
@pytest.mark.parametrize("item_share", ["half", "full"])
def test_hyperkdma_is_equation_17(task, hint, item_share):
    """Teacher and assistants, entity by entity, with the full hypernetwork; M = 1, so that there is no noise."""
    student = bpr(task, 3, seed=1)
    distiller = made(task, hint=hint, item_share=item_share, teacher_weight=0.7, assistant_weight=0.3, enrich="none")
    started(distiller, student, task)
    assert distiller.dims == (5, 7)
    network = distiller.hypernetwork
    dim, total = 9, 12
    rows, columns = torch.triu_indices(dim, dim, 1)
    full = torch.zeros(total, dim, dim)
    full[:, rows, columns] = network.pairs.detach().T
    full = full + full.transpose(1, 2) + torch.diag_embed(network.squares.detach().T)
    weight, bias = full.reshape(total * dim, dim), network.linear.detach().T.reshape(-1)

    def plain(index, kind, target, source):
        modules = distiller.hints[index]
        if hint == "de":
            return (target - getattr(modules, kind)(source, torch.ones(1, 1))).square().sum()
        mapping = modules.second(torch.relu(modules.first(target))).view(target.shape[1], 3)
        return (target[0] - mapping @ source[0]).square().sum()

    expected = 0.0
    counted = (("users", 0, 1.0), ("users", 4, 1.0), ("items", 1, 0.5), ("items", 2, 0.5), ("items", 3, 0.5),
               ("items", 5, 0.5))  # fmt: skip
    for kind, entity, count in counted:
        target = getattr(distiller.teacher.model, kind).weight[entity : entity + 1].detach()
        source = getattr(student, kind).weight[entity : entity + 1].detach()
        count = 1.0 if item_share == "full" else count
        expected += count * 0.7 * plain(0, kind, target, source).item()
        gate = torch.softmax(distiller.gate(target), dim=-1)[0]
        assistants = generated(weight, bias, target).split((5, 7), dim=1)
        for k in range(2):
            expected += count * 0.3 * (gate[k] * plain(k + 1, kind, assistants[k], source)).item()
    assert loss_of(distiller, student).item() == pytest.approx(expected, rel=1e-4)


def test_hyperkdma_gradients_reach_what_they_should(task):
    student = bpr(task, 3, seed=1)
    distiller = started(made(task, experts=3), student, task)
    loss_of(distiller, student).backward()
    assert all(p.grad is None for p in distiller.teacher.model.parameters())
    for name, parameter in (*distiller.named_parameters(), *student.named_parameters()):
        gradient = parameter.grad
        assert gradient is not None, name
        assert (gradient.to_dense() != 0).any(), name


@pytest.mark.parametrize("hint", ["de", "phr"])
@pytest.mark.parametrize("use", ["target", "input", "gate"])
def test_hyperkdma_slopes_are_those_of_its_loss(task, hint, use):
    """Against differences: of the hypernetwork, whose vectors are the student's targets (alone here where nothing is chosen by
    them) and what its mapping is chosen by, and of the gate, which weighs their losses."""
    student = bpr(task, 3, seed=1).double()
    distiller = made(task, hint=hint, experts=3, enrich="none").double()
    distiller.teacher = ModelTeacher(distiller.teacher.model.double(), task)
    distiller._from_teacher.teacher = distiller.teacher
    for own in distiller.hints[1:] if use == "target" else ():
        choosers = [own.first] if hint == "phr" else [own.users.selector, own.items.selector]
        for layer in choosers:
            nn.init.zeros_(layer.weight)
    reader = distiller.gate if use == "gate" else distiller.hypernetwork
    parameters = list(reader.parameters())
    directions = [torch.randn_like(parameter) for parameter in parameters]

    def loss(step: float = 0.0) -> torch.Tensor:
        started(distiller, student, task)  # the same noise
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += step * direction
        return loss_of(distiller, student)

    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
    difference = (loss(1e-6) - loss(-2e-6)).item() / 2e-6
    assert abs(slope) > 0.1
    assert slope == pytest.approx(difference, rel=1e-4)


def test_hyperkdma_with_one_assistant_has_no_gate_to_speak_of(task):
    student = bpr(task, 3, seed=1)
    gated = started(made(task, assistants=1), student, task)
    entities = Entities(batch_of(*BATCH), task)
    assert all((gates == 1).all() for gates in gated.gates(entities.of_teacher(gated.teacher)))
    uniform = started(made(task, assistants=1, gate="uniform"), student, task)
    assert loss_of(gated, student).item() == loss_of(uniform, student).item()


def test_hyperkdma_gate_of_equal_logits_is_the_mean(task):
    student = bpr(task, 3, seed=1)
    gated, uniform = started(made(task), student, task), started(made(task, gate="uniform"), student, task)
    with torch.no_grad():
        gated.gate.weight.zero_()
        gated.gate.bias.zero_()
    assert loss_of(gated, student).item() == pytest.approx(loss_of(uniform, student).item(), rel=1e-6)
    entities = Entities(batch_of(*BATCH), task)
    rows = torch.cat(made(task).gates(entities.of_teacher(gated.teacher)))
    assert torch.allclose(rows.sum(-1), torch.ones(rows.shape[0]))


def test_hyperkdma_gate_weighs_each_entity_or_the_batch(task):
    distiller = made(task)
    entities = Entities(batch_of(*BATCH), task)  # users 0, 4; items 1, 2 positive, 3, 5 negative
    losses = Vectors(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0], [0, 1], [2, 2], [1, 3]]))
    gates = Vectors(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([[1.0, 0], [0.5, 0.5], [0.5, 0.5], [0, 1]]))
    # users 1.5 + 3.75; items 1, 0.5, 2, 3 at ½
    assert distiller._gated(entities, losses, gates).item() == pytest.approx(1.5 + 3.75 + 3.25)
    distiller.config = HyperKDMA.Config(gate="batch_scalar")
    # users (0.75, 1.25)·(4, 6) = 10.5; positives (1.5, 0.5)·(1, 1) = 2; negatives (0.5, 1.5)·(3, 5) = 9, at ½
    assert distiller._gated(entities, losses, gates).item() == pytest.approx(10.5 + 1 + 4.5)
    distiller.config = HyperKDMA.Config(gate="batch_scalar", item_share="full")
    # all items (2, 2)·(4, 6) = 20
    assert distiller._gated(entities, losses, gates).item() == pytest.approx(10.5 + 20)


def test_hyperkdma_adds_up_over_halves_of_a_batch_unless_the_gate_is_the_codes(task):
    student = bpr(task, 3, seed=1)
    halves = (([0], [1], [3]), ([4], [2], [5]))
    whole = tuple(a + b for a, b in zip(*halves, strict=True))
    for gate, adds in (("per_entity", True), ("uniform", True), ("batch_scalar", False)):
        distiller = started(made(task, gate=gate), student, task)
        parts = sum(loss_of(distiller, student, half).item() for half in halves)
        assert (loss_of(distiller, student, whole).item() == pytest.approx(parts, rel=1e-4)) is adds


def test_hyperkdma_does_not_care_how_assistants_are_numbered(task):
    student = bpr(task, 3, seed=1)
    first = started(made(task, ta_dims=(5, 7)), student, task)
    second = started(made(task, ta_dims=(7, 5)), student, task)
    with torch.no_grad():
        for name, parameter in first.hypernetwork.named_parameters():
            parts = parameter.split((5, 7), dim=1)
            getattr(second.hypernetwork, name).copy_(torch.cat(parts[::-1], dim=1))
        for here, there in zip(first.gate.parameters(), second.gate.parameters(), strict=True):
            there.copy_(here.flip(0))
    second.hints[0].load_state_dict(first.hints[0].state_dict())
    for here, there in ((1, 2), (2, 1)):
        second.hints[there].load_state_dict(first.hints[here].state_dict())
    assert loss_of(first, student).item() == pytest.approx(loss_of(second, student).item(), rel=1e-5)


@pytest.mark.parametrize("assistants", [2, "given"])
def test_hyperkdma_enriches_the_teacher_alone(task, assistants):
    student = bpr(task, 3, seed=1)
    dims = (9, 5, 7) if assistants == "given" else (9,)
    losses = {}
    for weight in (0.0, 1.0):
        for enrich in ("none", "full", "batch"):
            options = {"hint": "phr", "enrich": enrich, "assistants": assistants, "teacher_weight": weight}
            teachers = [ModelTeacher(bpr(task, dim, seed=dim), task) for dim in dims]
            distiller = HyperKDMA(HyperKDMA.Config(**options), teachers, task, 3, 2)
            losses[weight, enrich] = loss_of(started(distiller, student, task), student).item()
    assert losses[0.0, "full"] == losses[0.0, "batch"] == losses[0.0, "none"]
    assert len({losses[1.0, enrich] for enrich in ("none", "full", "batch")}) == 3


@pytest.mark.parametrize(("hint", "assistants"), [("de", 4.64e6), ("phr", 25.0e6)])
def test_hyperkdma_has_the_papers_size(task, hint, assistants):
    """Eight assistants between 200 and 20 dimensions: 1,600 weights of the gate; 4.64 M of experts, or 25.0 M of networks that
    personalise."""
    distiller = made(task, student_dim=20, teacher_dim=200, hint=hint, experts=30, assistants=8)
    own = {name: p.numel() for name, p in distiller.hints[1:].named_parameters() if "selector" not in name}
    assert distiller.gate.weight.numel() == 1600
    assert sum(own.values()) == pytest.approx(assistants, rel=5e-3)


@pytest.mark.parametrize(("hint", "method"), [("de", DE), ("phr", PHR)])
@pytest.mark.parametrize("off", [{"assistants": 0}, {"assistant_weight": 0.0}, {"ta_sum": "none"}])
def test_hyperkdma_without_assistants_is_the_hint_itself(task, hint, method, off):
    knowledge = ModelTeacher(bpr(task, 9), task)
    options = {"experts": 3} if hint == "de" else {}
    states = []
    for distiller in (
        method(method.Config(**options), [knowledge], task, 3, 5),
        HyperKDMA(HyperKDMA.Config(hint=hint, experts=3, **off), [knowledge], task, 3, 5),
    ):
        learner = Learner(bpr(task, 3, seed=1), task, [Term("term", 0.1, distiller)], lr=1e-2)
        fit(learner, task, epochs=3)
        states.append(learner.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_hyperkdma_last_assistant_only(task):
    """The others' modules are out of the graph; their part of the hypernetwork and of the gate has gradient 0 or the gate's."""
    student = bpr(task, 3, seed=1)
    distiller = started(made(task, ta_sum="last", experts=2), student, task)
    loss_of(distiller, student).backward()
    assert all(p.grad is None for p in distiller.hints[1].parameters())
    assert all(p.grad is not None for p in distiller.hints[2].parameters())
    first, last = distiller.hypernetwork.pairs.grad.split(distiller.dims, dim=1)
    assert (first == 0).all()
    assert (last != 0).any()
    everything, alone = (started(made(task, ta_sum=which), student, task) for which in ("all", "last"))
    entities = Entities(batch_of(*BATCH), task)
    target, source = entities.of_teacher(alone.teacher), entities.of_student(student(entities.batch.queries))
    assistants, gates = alone.assistants(entities, target), alone.gates(target)
    first_losses = alone._assistants[0].both(assistants[0], source)
    gated = Vectors(*(g[:, 0] * own for g, own in zip(gates, first_losses, strict=True)))
    difference = loss_of(everything, student).item() - loss_of(alone, student).item()
    assert difference == pytest.approx(entities.sum(gated, "half").item(), rel=1e-4)


def test_hyperkdma_anchor(task):
    student = bpr(task, 3, seed=1)
    free, held = started(made(task), student, task), started(made(task, anchor=2.0), student, task)
    entities = Entities(batch_of(*BATCH), task)
    target = entities.of_teacher(held.teacher)
    assistants = held.assistants(entities, target)
    gap = [
        sum((goal - own @ decode.weight.T).square().sum(-1) for own, decode in zip(kind, held.decoders, strict=True))
        for goal, kind in zip(target, zip(*assistants, strict=True), strict=True)
    ]
    expected = loss_of(free, student).item() + 2 * entities.sum(Vectors(*gap), "half").item()
    assert loss_of(held, student).item() == pytest.approx(expected, rel=1e-5)


def test_hyperkdma_given_assistants(task):
    """Without hypernetwork: fixed models between teacher and student, equal for all entities but for the gate."""
    student = bpr(task, 3, seed=1)
    teachers = [ModelTeacher(bpr(task, dim, seed=dim), task) for dim in (9, 5, 7)]
    distiller = HyperKDMA(HyperKDMA.Config(assistants="given", experts=1), teachers, task, 3, 2)
    started(distiller, student, task)
    assert distiller.dims == (5, 7)
    assert distiller.hypernetwork is None
    assert distiller.multiplicities == {}
    entities = Entities(batch_of(*BATCH), task)
    source, target = entities.of_student(student(entities.batch.queries)), entities.of_teacher(teachers[0])
    gates = distiller.gates(target)
    expected = entities.sum(distiller._from_teacher.losses(entities, source), "half").item()
    for k, teacher in enumerate(teachers[1:]):
        losses = distiller._assistants[k].both(entities.of_teacher(teacher), source)
        expected += entities.sum(Vectors(*(g[:, k] * own for g, own in zip(gates, losses, strict=True))), "half").item()
    loss = loss_of(distiller, student)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(p.grad is None for teacher in teachers for p in teacher.model.parameters())


@pytest.mark.parametrize(
    ("options", "dims", "student_dim", "message"),
    [
        ({}, (9, 7), 3, "got 2 teachers; hyperkdma takes exactly 1"),
        ({"assistants": "given"}, (9,), 3, "got 1 teachers; with assistants"),
        ({"assistants": "given", "ta_dims": (4,)}, (9, 7), 3, "ta_dims is"),
        ({"assistants": "given", "anchor": 1.0}, (9, 7), 3, "anchor is"),
        ({}, (4,), 9, "no assistant fits"),
    ],
)
def test_hyperkdma_wrong_use_is_refused_when_it_is_built(task, options, dims, student_dim, message):
    teachers = [ModelTeacher(bpr(task, dim), task) for dim in dims]
    with pytest.raises(ConfigError, match=message):
        HyperKDMA(HyperKDMA.Config(**options), teachers, task, student_dim)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"assistants": -1}, r"^distill\.0\.assistants is -1\nallowed: integers from 0 on, 'given'"),
        ({"assistants": "gven"}, r"^distill\.0\.assistants is gven\nallowed: integers from 0 on, 'given'"),
        ({"assistants": True}, r"^distill\.0\.assistants is True"),
        ({"ta_dims": []}, r"^distill\.0\.ta_dims is"),
        ({"ta_dims": [40, 0]}, r"^distill\.0\.ta_dims\.1 is 0\nallowed: greater than or equal to 1"),
        ({"gate": "none"}, r"allowed: 'per_entity', 'uniform' or 'batch_scalar'"),
    ],
)
def test_hyperkdma_options_that_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        HyperKDMA.Config.parse(values, "distill.0")


def test_hyperkdma_options_of_run_files():
    config = HyperKDMA.Config.parse({"assistants": "given"}, "distill.0")
    assert config.assistants == "given"
    assert HyperKDMA.Config.parse({"ta_dims": [40, 60]}, "distill.0").ta_dims == (40, 60)


def test_hyperkdma_logs_its_assistants(task, tmp_path):
    student = bpr(task, 3, seed=1)
    distiller = started(made(task), student, task)
    assert distiller.diagnostics() == {}
    loss_of(distiller, student)
    entities = Entities(batch_of(*BATCH), task)
    target = entities.of_teacher(distiller.teacher)
    assistants, gates = distiller.assistants(entities, target), torch.cat(distiller.gates(target))
    found = distiller.diagnostics()
    for kind in ("users", "items"):
        squares = torch.stack([getattr(a, kind).square().sum(-1) for a in assistants])
        assert found[f"assistants_{kind}"] == pytest.approx(squares.mean().item(), rel=1e-5)
    assert found["gate_entropy"] == pytest.approx((-(gates * gates.log()).sum(-1)).mean().item(), rel=1e-5)
    assert found["gate_entropy"] <= math.log(2)
    learner = Learner(bpr(task, 3), task, [Term("h", 0.1, made(task))])
    rows = fit(learner, task, epochs=2).rows
    assert [set(row["diagnostics"]["h"]) for row in rows] == [
        {"assistants_users", "assistants_items", "gate_entropy"}
    ] * 2
    assert rows[0]["diagnostics"] != rows[1]["diagnostics"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_hyperkdma_goes_on_with_the_same_bytes(task, precision):
    def learner():
        terms = [Term("h", 0.1, made(task, experts=2, anchor=0.1, precision=precision))]
        return Learner(bpr(task, 3, seed=1), task, terms, weight_decay=1e-3)

    whole, first, second = learner(), learner(), learner()
    assert whole.optimizer.multiplicities == {"terms.h.hypernetwork.pairs": 2.0}
    fit(whole, task, epochs=3)
    fit(first, task, epochs=2)
    second.load_state({name: t.clone() for name, t in first.state().items()})
    epoch = Epoch(2, 0, 3)
    _train_epoch([second], _Draws(epoch, task.draw(epoch), [[None]]), 0)
    assert all(torch.equal(t, second.state()[name]) for name, t in whole.state().items())
