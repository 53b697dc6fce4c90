"""Models of few bytes: rounding in training, users without a table, what a run keeps of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from conftest import toy_dataset
from kdrs import Evaluator, Interactions
from kdrs.compact.reduce import of_scores, singular, with_bias
from kdrs.core.kernels import Table
from kdrs.core.tables import RowTable
from kdrs.distillers import DISTILLERS
from kdrs.errors import ArtefactError, ConfigError, DataError
from kdrs.fitting.fit import fit
from kdrs.fitting.learner import Learner, Term
from kdrs.models import MODELS
from kdrs.models.compact import Compact, codes_of, compact_class
from kdrs.models.stored import StoredModel
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from kdrs.runs.opened import LoadedRun
from kdrs.runs.start import vectors_of
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Batch
from kdrs.training.rounding import SHARES, RoundedRows, levels_of, rounded
from test_contract import SMALL, build, same, state, task_of

FORMS = [
    ("bpr", 2, "encoded"),
    ("lightgcn", 3, "table"),
    ("ngcf", 8, "encoded"),
    ("sgl", 1, "encoded"),
    ("lightgcn-ssm", 2, "encoded"),
    ("cdae", 4, "table"),
]
"""A form of every model that has one."""


def compact(model: str, bits: int, users: str, task, dim: int = 4, seed: int = 1, **options):
    torch.manual_seed(seed)
    cls = MODELS[model]
    return compact_class(cls)(cls.Config(dim=dim, bits=bits, users=users, **options), task)


# --- rounding --------------------------------------------------------------------------------------------------------------


def test_levels_by_hand():
    row = torch.tensor([[1.0, -2.0, 0.5, 4.0]])
    rms = (21.25 / 4) ** 0.5
    levels, scales = levels_of(row, 2)
    assert scales.item() == pytest.approx(0.498 * rms)  # 1.148: up to 2.296 is level 1, beyond it 3
    assert levels.tolist() == [[1, -1, 1, 3]]
    levels, scales = levels_of(row, 1)
    assert (levels.tolist(), scales.item()) == ([[1, -1, 1, 1]], pytest.approx(1.875))
    levels, scales = levels_of(row, 8)
    assert (levels.tolist(), scales.item()) == ([[32, -64, 16, 127]], pytest.approx(4 / 127))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_a_row_of_zeros_stays_finite(bits):
    assert not rounded(torch.zeros(2, 5), bits).any()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_share_is_the_best_one_for_normal_coordinates(bits):
    x = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))
    half = 2 ** (bits - 1)

    def error(share: float) -> float:
        levels = (x / (2 * share)).floor().clamp(-half, half - 1) * 2 + 1
        return float((x - share * levels).square().mean())

    assert error(SHARES[bits]) <= min(error(SHARES[bits] * step) for step in (0.93, 0.97, 1.03, 1.07))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 6), st.integers(1, 9), st.integers(0, 9999))
def test_what_is_kept_is_what_was_read_in_training(bits, n, dim, seed):
    vectors = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    assert np.allclose(codes_of(vectors, bits).turned(), rounded(vectors, bits), rtol=1e-6, atol=0)


def test_gradients_pass_straight_through():
    x = torch.randn(3, 4, requires_grad=True)
    weights = torch.randn(3, 4)
    (rounded(x, 2) * weights).sum().backward()
    assert torch.equal(x.grad, weights)


@pytest.mark.parametrize("bits", [2, 32])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_rounded_rows_agree_with_a_dense_table(bits, device):
    torch.manual_seed(0)
    table = RowTable(9, 5).to(device)
    rows = RoundedRows(table, bits)
    ids = torch.tensor([[3, 3, 8], [0, 3, 1]], device=device)
    flat, starts = torch.tensor([1, 1, 4, 3] + [2] * 9, device=device), torch.tensor([0, 3, 3, 4], device=device)
    own = torch.randn(2, 5, device=device, requires_grad=True)

    def total(products, chosen, sums):
        return (
            products.square().sum()
            + chosen.sin().sum()
            + (sums * torch.arange(4, device=device).unsqueeze(1)).cos().sum()
        )

    found = total(rows.table().products(own, ids), rows.table().rows(ids), rows.table().sums(flat, starts))
    found.backward()
    gradient, to_own = table.weight.grad.to_dense(), own.grad.clone()
    table.weight.grad = own.grad = None
    dense = rounded(table.weight, bits)
    places = torch.tensor([0, 0, 0, 2] + [3] * 9, device=device)
    sums = torch.zeros(4, 5, device=device).index_add(0, places, dense[flat])
    expected = total((own.unsqueeze(1) * dense[ids]).sum(-1), dense[ids], sums)
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(gradient, table.weight.grad, atol=1e-5)
    assert torch.allclose(to_own, own.grad, atol=1e-5)


def test_rows_are_rounded_anew_after_a_change():
    table = RowTable(4, 3)
    rows, ids = RoundedRows(table, 1), torch.arange(4)
    before = rows.table().rows(ids).detach().clone()
    with torch.no_grad():
        table.weight.neg_()
    assert torch.equal(rows.table().rows(ids), before)  # the step has not ended
    rows.renew()
    assert torch.equal(rows.table().rows(ids), rounded(table.weight, 1))


def test_sums_of_a_table_of_other_numbers_take_the_plain_way():
    values = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    table = Table(values)
    found = table.sums(torch.tensor([1, 2, 2]), torch.tensor([0, 1, 1]))
    assert torch.allclose(found, torch.stack([values[1], torch.zeros(3, dtype=torch.float64), 2 * values[2]]))
    assert torch.equal(table.rows(torch.tensor([[4]])), values[4].view(1, 1, 3))


# --- fewer directions ------------------------------------------------------------------------------------------------------


def test_singular_directions_are_those_of_all_scores():
    rng = np.random.default_rng(0)
    users, items = (rng.standard_normal((n, 6)).astype(np.float32) for n in (30, 20))
    for dim in (6, 3, 1):
        u, v = singular(users, items, dim)
        left, values, right = np.linalg.svd((users @ items.T).astype(np.float64), full_matrices=False)
        best = (left[:, :dim] * values[:dim]) @ right[:dim]
        assert np.allclose(u @ v.T, best, atol=1e-4)
        assert np.allclose(np.linalg.norm(u, axis=0), np.linalg.norm(v, axis=0), rtol=1e-3)


def test_tables_of_lower_rank_than_asked_for():
    users = np.outer(np.arange(5), [1, 2, 3]).astype(np.float32)
    u, v = singular(users, np.eye(3, dtype=np.float32), 2)
    assert u.shape == (5, 2)
    assert np.allclose(u @ v.T, users, atol=1e-4)
    with pytest.raises(ConfigError, match="dim is 4; the vectors have 3"):
        singular(users, np.eye(3, dtype=np.float32), 4)


def test_a_bias_becomes_a_coordinate():
    users, items, bias = np.ones((2, 1), np.float32), np.ones((3, 1), np.float32), np.arange(3, dtype=np.float32)
    u, v = with_bias(users, items, bias)
    assert np.allclose(u @ v.T, users @ items.T + bias)


def test_scores_that_are_no_products():
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((40, 5)) @ rng.standard_normal((5, 30)) + rng.standard_normal((40, 1))
    u, v = of_scores(lambda rows: torch.from_numpy(scores[rows]), 40, 30, 6)
    assert np.allclose(u @ v.T, scores - scores.mean(1, keepdims=True), atol=1e-3)


# --- in training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "bits", "users"), FORMS)
@pytest.mark.parametrize("method", DISTILLERS)
def test_every_method_trains_every_form(method, model, bits, users):
    task = task_of(model)
    teacher = build(task, model, 8)

    def trained() -> Learner:
        cls, student = DISTILLERS[method], compact(model, bits, users, task)
        known = ModelTeacher(teacher, task, asked=task, live=cls.mutual)
        distiller = cls(cls.Config(**SMALL[method]), [known], task, student.dim, 0)
        base = None if distiller.replaces_base else "model"
        learner = Learner(student, task, [Term(method, 0.1, distiller)], lr=1e-2, base=base)
        fit([learner, *learner.counterparts()], task, epochs=1)
        return learner

    before, untrained = state(teacher), state(compact(model, bits, users, task))
    learner = trained()
    assert not same(untrained, state(learner.model))
    assert all(torch.isfinite(tensor).all() for tensor in learner.state().values() if tensor.is_floating_point())
    teacher.load_state_dict(before)
    assert same(state(learner.model), state(trained().model))


@pytest.mark.parametrize(("model", "bits", "users"), FORMS)
def test_what_is_stored_ranks_as_the_model_in_training(model, bits, users, toy):
    task = task_of(model)
    own = compact(model, bits, users, task).eval()
    stored = own.stored()
    queries = task.queries(torch.arange(20))
    with torch.no_grad():
        scores, kept = own(queries).all_scores(), stored(queries).all_scores()
    assert torch.allclose(
        scores, kept, rtol=0.02, atol=0.02 * float(scores.abs().max())
    )  # scales are short, queries codes
    found = Evaluator.of(toy)(stored.factors()), Evaluator.of(toy)(ModelTeacher(own, task))
    assert found[0]["test"].means() == found[1]["test"].means()
    again = StoredModel.from_tensors(stored.state_dict(), json.loads(json.dumps(stored.description())), task, "here")
    assert Evaluator.of(toy)(again.factors())["test"].means() == found[0]["test"].means()
    assert stored.nbytes == sum(tensor.nbytes for tensor in stored.state_dict().values())


def test_training_lowers_the_loss_of_what_is_read(toy):
    task = PairTask(toy.train, batch_size=64)
    learner = Learner(compact("bpr", 2, "encoded", task, dim=8), task, lr=1e-2)
    losses = [row["loss"] for row in fit(learner, task, epochs=30).rows]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("model", ["neumf", "sasrec", "caser", "multvae", "iae", "cml"])
def test_models_without_a_form_say_what_to_do(model, toy_path, tmp_path):
    for option in ({"bits": 2}, {"users": "encoded"}):
        values = {"data": {"path": str(toy_path)}, "model": {"name": model, "dim": 4, **option}}
        with pytest.raises(ConfigError, match=rf"(?s)model.{next(iter(option))} is .*{model}.*kdrs compress"):
            execute(resolve(values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- runs ------------------------------------------------------------------------------------------------------------------


def values_of(data: Path, teacher: Path | None = None, **changes) -> dict:
    train = {"epochs": 4, "batch_size": 64, "checkpoint_seconds": 0, "lr": 1e-2}
    values = {
        "data": {"path": str(data)},
        "model": {"name": "bpr", "dim": 6, "bits": 2},
        "train": train,
        "device": "cpu",
    }
    if teacher is not None:
        values["distill"] = [{"method": "cd", "teacher": str(teacher), "items": 5, "pool": 30}]
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return values


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("compact")
    toy_dataset().save(place / "toy")
    execute(resolve(values_of(place / "toy", model={"bits": 32, "dim": 8})), place / "teacher")
    return place / "teacher"


TRAINED = {"users": "encoded", "encoder": "trained"}


@pytest.mark.parametrize(
    "form",
    [
        {"bits": 2, **TRAINED},
        {"bits": 2, **TRAINED, "history_dropout": 0.3},
        {"bits": 1},
        {"name": "lightgcn", "bits": 4, **TRAINED},
    ],
)
def test_a_resumed_run_keeps_the_same_codes(form, teacher, tmp_path):
    data = teacher.parent / "toy"
    whole = execute(resolve(values_of(data, teacher, model=form, start="teacher")), tmp_path / "whole")
    execute(resolve(values_of(data, teacher, model=form, start="teacher", train={"epochs": 2})), tmp_path / "half")
    execute(resolve(values_of(data, teacher, model=form, start="teacher")), tmp_path / "half", resume=True)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "half")]
    assert files[0] == files[1]
    with safe_open(tmp_path / "whole" / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert sum(file.get_tensor(name).nbytes for name in names) == LoadedRun.open(tmp_path / "whole").model.nbytes
    users = (
        {"encoder_levels", "encoder_scales", "encoder_power"} if "users" in form else {"users_codes", "users_scales"}
    )
    assert names == {"items_codes", "items_scales", *users}
    opened = LoadedRun.open(tmp_path / "whole")
    reports = Evaluator.of(opened.dataset)(opened.teacher())
    assert reports["test"].means() == whole.reports["test"].means()


def test_encoded_users_answer_for_any_history(teacher, tmp_path):
    data = teacher.parent / "toy"
    execute(resolve(values_of(data, teacher, model={"users": "encoded"})), tmp_path / "run")
    opened = LoadedRun.open(tmp_path / "run")
    known = opened.factors().queries
    assert known == opened.model.encode(opened.dataset.train)
    swapped = Interactions.from_csr(opened.dataset.train.to_csr()[::-1])
    assert np.array_equal(opened.model.encode(swapped).data[::-1], known.data)
    execute(resolve(values_of(data)), tmp_path / "table")
    table = LoadedRun.open(tmp_path / "table").model
    with pytest.raises(DataError, match="have a table, and it knows no others"):
        table.encode(opened.dataset.train)


def test_a_run_without_its_data_set_still_answers(teacher, tmp_path):
    data = tmp_path / "toy"
    toy_dataset().save(data)
    execute(resolve(values_of(data)), tmp_path / "table")
    execute(resolve(values_of(data, model={"users": "encoded"})), tmp_path / "encoded")
    before = {name: LoadedRun.open(tmp_path / name).factors() for name in ("table", "encoded")}
    data.rename(tmp_path / "elsewhere")
    assert LoadedRun.open(tmp_path / "table").factors() == before["table"]
    from kdrs.errors import MissingKnowledge

    without = LoadedRun.open(tmp_path / "encoded")
    assert without.model.item_side == before["encoded"].items
    with pytest.raises(MissingKnowledge, match="what users have seen in training is needed"):
        without.factors()


def test_a_compact_run_teaches_and_is_started_from(teacher, tmp_path):
    data = teacher.parent / "toy"
    execute(resolve(values_of(data, model={"users": "encoded"})), tmp_path / "first")
    execute(resolve(values_of(data, tmp_path / "first", model={"bits": 1})), tmp_path / "student")
    again = values_of(data, model={"users": "encoded"}, start=str(tmp_path / "first"), train={"lr": 1e-9, "epochs": 1})
    execute(resolve(again), tmp_path / "again")
    items = [LoadedRun.open(tmp_path / name).model.item_side for name in ("first", "again")]
    assert np.mean(items[0].levels() == items[1].levels()) > 0.97  # decoded and rounded anew


@pytest.mark.parametrize("model", ["bpr", "lightgcn"])
def test_a_start_from_the_teacher_has_its_best_directions(model, teacher, tmp_path):
    data = teacher.parent / "toy"
    values = values_of(
        data, teacher, model={"name": model, "bits": 32, "dim": 4}, start="teacher", train={"lr": 1e-9, "epochs": 1}
    )
    execute(resolve(values), tmp_path / "run")
    users, items = vectors_of(LoadedRun.open(teacher).teacher(), 4)
    model_ = LoadedRun.open(tmp_path / "run").model
    table = model_.items.weight if model == "bpr" else model_.vectors[len(users) :]
    assert np.allclose(table.detach(), items, atol=1e-6)


def test_a_start_from_a_smaller_teacher_fills_up(teacher, tmp_path):
    values = values_of(teacher.parent / "toy", teacher, model={"bits": 32, "dim": 10}, start="teacher")
    execute(resolve(values), tmp_path / "run")
    own = LoadedRun.open(tmp_path / "run").factors()
    assert own.items.shape[1] == 10
    assert float(own.items[:, 8:].abs().max()) > 0


def test_a_start_from_a_teacher_that_is_no_product(teacher, tmp_path):
    data = teacher.parent / "toy"
    execute(resolve(values_of(data, model={"name": "neumf", "bits": 32, "dim": 4})), tmp_path / "neumf")
    execute(resolve(values_of(data, tmp_path / "neumf", start="teacher", model={"bits": 3})), tmp_path / "run")


def test_starts_that_cannot_be(teacher, tmp_path):
    data = teacher.parent / "toy"
    with pytest.raises(ConfigError, match="start is 'teacher', and the run has no teacher"):
        resolve(values_of(data, start="teacher"))
    with pytest.raises(ConfigError, match="NGCF cannot start from a teacher's vectors"):
        execute(resolve(values_of(data, teacher, model={"name": "ngcf", "bits": 32}, start="teacher")), tmp_path / "a")
    with pytest.raises(ArtefactError, match="from its teacher's vectors: --start teacher"):
        execute(resolve(values_of(data, teacher, start=str(teacher))), tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, d: t.pop("items_scales"), "'items_scales' is missing"),
        (lambda t, d: t.update(items_scales=t["items_scales"].float()), "the scales of items are float32"),
        (lambda t, d: t.update(items_codes=t["items_codes"].repeat(1, 2)), "data are uint8"),
        (lambda t, d: t.update(more=t["items_codes"]), "nothing is known of the tensor more"),
        (lambda t, d: t.update(encoder_levels=t["encoder_levels"][:2]), "none that this kdrs knows"),
        (lambda t, d: d.update(dim="six"), "dim is six; allowed: 1 to"),
        (
            lambda t, d: t.update(items_scales=t["items_scales"].bfloat16()),
            "scales of items are uint16; allowed: uint8",
        ),
        (lambda t, d: d["items"].pop("exponent"), "scales of items are uint8; allowed: bfloat16"),
        (lambda t, d: d["items"].update(exponent=121), "items.exponent is 121; allowed: -120 to 120"),
        (lambda t, d: d["items"].update(exponent=1.0), r"items.exponent is 1\.0; allowed: -120 to 120"),
        (lambda t, d: d["items"].update(bits=5), "items.bits is 5; allowed: 1, 2, 3, 4, 8, 32"),
        (lambda t, d: d.pop("encoder"), "nothing is known of the tensor"),
        (lambda t, d: t.update(bias=torch.zeros(3)), "bias is float32"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, words, toy):
    task = PairTask(toy.train)
    stored = compact("bpr", 2, "encoded", task).stored()
    tensors, told = stored.state_dict(), json.loads(json.dumps(stored.description()))
    change(tensors, told)
    with pytest.raises(ArtefactError, match=words):
        StoredModel.from_tensors(tensors, told, task, "here")


def test_a_batch_has_one_pass_through_the_table(toy):
    """All that reads the items in a step shares one gradient of the table."""
    task = PairTask(toy.train, batch_size=64)
    model = compact("bpr", 2, "encoded", task)
    model.train()
    from kdrs.training.queries import Epoch

    batch: Batch = next(iter(task.draw(Epoch(0, 0, 1))))
    view = model(batch.queries)
    (model.loss(view, batch) + view.items(batch.positives).sum()).backward()
    assert model.items.weight.grad.is_sparse
    rows = model.items.weight.grad._indices()[0]
    assert torch.equal(rows, rows.unique())


@pytest.mark.parametrize(
    "model", [name for name, cls in MODELS.items() if cls.compactable and not issubclass(cls, Compact)]
)
def test_no_name_of_the_form_hides_one_of_the_model(model):
    from kdrs.models.base import Recommender

    meant = {
        "__init__",
        "__module__",
        "__doc__",
        "__annotations__",
        "__dict__",
        "__weakref__",
        "forward",
        "factors",
        "begin_with",
        "on_epoch_start",
    }
    theirs = {name for cls in MODELS[model].__mro__ if issubclass(cls, Recommender) for name in vars(cls)}
    assert not (set(vars(Compact)) & theirs) - meant
    torch.manual_seed(0)
    own, task = build(task_of(model), model, 4), task_of(model)
    made = compact_class(MODELS[model])(MODELS[model].Config(dim=4, bits=2), task)
    added = {"bits", "user_encoder", "_rounded_rows", "task"}
    assert not added & set(vars(own)) - {"task"}
    assert not added & {name for name, _ in own.named_modules()}
    assert set(own.state_dict()) == set(made.state_dict())
