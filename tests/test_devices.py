"""Training on a device that is not the CPU, without one: nothing mixes, a step waits for nothing but what it says here, and
what is learnt is the same. `pretend` has the device."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import toy_dataset
from kdrs.core import ranking
from kdrs.core.sampling import stream
from kdrs.distillers import DISTILLERS
from kdrs.distillers._hypernetwork import Hypernetwork, _Pairs
from kdrs.evaluation.evaluator import Evaluator
from kdrs.fitting import fit as fitting
from kdrs.fitting.fit import fit, step_of
from kdrs.fitting.learner import Learner, Term
from kdrs.models import MODELS
from kdrs.runs import build as building
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from kdrs.runs.opened import load_run
from kdrs.teachers.model import ModelTeacher
from kdrs.training import devices
from kdrs.training.optim import OPTIMIZERS
from kdrs.training.queries import Epoch
from pretend import DEVICE, MixedDevices, Pretended, Watch, pretending
from test_contract import SMALL, build, task_of

DISTINCT = "distillers/base.py:distinct"
WAITS: dict[str, dict[str, int]] = {
    # how many items are asked for decides the sizes of all that follows; the lists they come from are on the device
    "cpd": {DISTINCT: 1},
    "mkd": {DISTINCT: 1},
    "dcd": {DISTINCT: 2},
    "ir-rrd": {DISTINCT: 2},
    # of three subgraphs: which entries the noise keeps, and how many entities are then needed
    "freqd": {DISTINCT: 3, "distillers/freqd.py:low_pass": 3},
    # seen and target items are as many as the users of the batch have; the catalogue's tiles take their share of them
    "hetcomp": {"distillers/hetcomp.py:_hidden": 2, "training/losses.py:__init__": 1},
    # each group has a product of its own size
    "htd": {"distillers/htd.py:topology": 1},
}
"""What a step of a method on BPR waits for, by the function that asks; nothing else. The reason stands above each."""


def learners_of(device: Any, method: str | None, model: str, optimizer: str = "adam") -> list[Learner]:
    task = task_of(model, device)
    student, terms, base = build(task, model, 4, seed=1), [], "model"
    if method is not None:
        cls = DISTILLERS[method]
        known = ModelTeacher(build(task, model, 8), task, live=cls.mutual)
        distiller = cls(cls.Config(**SMALL[method]), [known], task, student.dim, stream(0, method))  # type: ignore[arg-type]
        terms, base = [Term(method, 0.1, distiller)], None if distiller.replaces_base else "model"  # type: ignore[assignment]
    learner = Learner(student, task, terms, lr=1e-2, base=base, optimizer=optimizer)
    return [learner, *learner.counterparts()]


def a_step(learners: list[Learner], watch: Watch) -> tuple[Counter[str], Counter[str], int]:
    """Waits and uploads of the steps of a second epoch, and how many steps these are."""
    task = learners[0].task
    for index in range(2):
        epoch = Epoch(index, 0, 2)
        for learner in learners:
            learner.start(epoch, [term.distiller.draw(epoch) for term in learner.terms])
        drawn, steps = task.draw(epoch), 0
        watch.events.clear()
        for batch in drawn:
            step_of(learners, batch)
            steps += 1
        found = watch.count("wait"), watch.count("upload"), steps
        for learner in learners:
            learner.finish()
    return found


@pytest.mark.parametrize("method", [None, *DISTILLERS])
def test_a_step_waits_for_nothing_but_what_it_says(method: str | None):
    with pretending() as watch:
        learners = learners_of(DEVICE, method, "bpr")
        assert all(isinstance(p, Pretended) for own in learners for p in own.model.parameters())
        waits, uploads, steps = a_step(learners, watch)
    allowed = {} if method is None else WAITS.get(method, {})
    assert waits == {place: count * steps for place, count in allowed.items()}
    assert not uploads, "a copy from memory that is not pinned keeps the host waiting"


@pytest.mark.gpu
@pytest.mark.parametrize("method", [None, *DISTILLERS])
def test_a_step_on_a_gpu_waits_for_nothing_else(method: str | None):
    """The same on the real thing, by the profiler: a wait is a copy back, after which the stream is waited for."""
    from torch.profiler import ProfilerActivity, profile

    learners = learners_of("cuda", method, "bpr")
    for index in range(2):
        epoch = Epoch(index, 0, 2)
        for learner in learners:
            learner.start(epoch, [term.distiller.draw(epoch) for term in learner.terms])
        batches = list(learners[0].task.draw(epoch))  # the copies to the device: not those of the steps
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            for batch in batches:
                step_of(learners, batch)
        torch.cuda.synchronize()
        for learner in learners:
            learner.finish()
    counts = Counter({event.key: event.count for event in seen.key_averages()})
    allowed = len(batches) * sum(WAITS.get(method or "", {}).values())
    # some operations look twice
    assert sum(n for key, n in counts.items() if "StreamSynchronize" in key) <= 2 * allowed
    assert sum(n for key, n in counts.items() if "DtoH" in key) <= 2 * allowed


@pytest.mark.parametrize("method", [None, "de", "rrd"])
@pytest.mark.parametrize("model", [name for name in MODELS if name != "bpr"])
def test_steps_of_other_models(model: str, method: str | None):
    with pretending() as watch:
        waits, uploads, steps = a_step(learners_of(DEVICE, method, model), watch)
    # what is taught of an autoencoder over items is worked out once for each distinct one
    allowed = {"items": "de", "pairs": "rrd"} if model == "iae" else {}
    expected = {f"models/iae.py:{place}": steps for place, own in allowed.items() if own == method}
    if expected:
        expected["models/_rows.py:entries"] = steps
    assert waits == expected
    assert not uploads


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(optimizer: str):
    with pretending() as watch:
        waits, uploads, steps = a_step(learners_of(DEVICE, None, "bpr", optimizer), watch)
    # which rows were touched: of each table; of lazy Adam also those that are read, where any may owe steps
    allowed = {"adagrad": ("step", 2), "lazy-adam": ("_step_rows catch_up", 4)}.get(optimizer, ("", 0))
    assert set(waits) == {f"training/optim.py:{place}" for place in allowed[0].split()}
    assert sum(waits.values()) == allowed[1] * steps
    assert not uploads


# --- what is learnt -------------------------------------------------------------------------------------------------


class Inline:
    """An executor without threads: the pretended device is there in one of them."""

    def __init__(self, *args: Any, **options: Any):
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def submit(self, work: Any, *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*args))
        except Exception as error:
            done.set_exception(error)
        return done


@contextmanager
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    monkeypatch.setattr(fitting, "ThreadPoolExecutor", Inline)
    with pretending() as watch:
        yield watch


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.inner if isinstance(t, Pretended) else t for name, t in model.state_dict().items()}


@pytest.mark.parametrize(
    ("method", "model"),
    [(None, "bpr"), (None, "lightgcn"), (None, "cml"), (None, "multvae"), ("rrd", "bpr"), ("cd", "bpr"), ("phr", "bpr"),
     ("ftd", "lightgcn"), ("score-matching", "bpr"), ("unkd", "bpr"), ("hetcomp", "bpr"), ("bd", "bpr"), ("ir-rrd", "bpr")],
)  # fmt: skip
def test_the_device_learns_what_the_cpu_learns(method: str | None, model: str, monkeypatch):
    """Of what draws no noise on the device itself, up to rounding."""
    here = learners_of("cpu", method, model)
    fit(here, here[0].task, epochs=3)
    with there(monkeypatch):
        learners = learners_of(DEVICE, method, model)
        found = fit(learners, learners[0].task, epochs=3)
    assert np.isfinite([row["loss"] for row in found.rows]).all()
    expected, own = weights(here[0].model), weights(learners[0].model)
    for name, tensor in expected.items():
        if tensor.is_floating_point() and not tensor.is_sparse_csr:
            torch.testing.assert_close(own[name], tensor, atol=2e-4, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("bf16", [False, True])
def test_the_hypernetwork_is_the_same_function_there(bf16: bool, monkeypatch):
    """Its features come by few large kernels there; here by a row of the triangle at a time."""
    monkeypatch.setattr(_Pairs, "DEVICE_ROWS", 7)
    torch.manual_seed(0)
    vectors, slopes = torch.randn(9, 6), torch.randn(9, 5)

    def made() -> tuple[Hypernetwork, Tensor]:
        torch.manual_seed(1)
        network = Hypernetwork(6, 5, bf16=bf16).to(place)
        out = network(vectors.to(place))
        (out * slopes.to(place)).sum().backward()
        return network, out

    place: Any = "cpu"
    network, out = made()
    place = DEVICE
    with pretending():
        other, found = made()
        bounds = {"atol": 0.05, "rtol": 0.05} if bf16 else {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(found.cpu(), out, **bounds)
        for own, there_ in zip(network.parameters(), other.parameters(), strict=True):
            assert own.grad is not None
            assert there_.grad is not None
            torch.testing.assert_close(there_.grad.cpu(), own.grad, **bounds)


def test_factors_on_the_device_are_ranked_alike():
    data = toy_dataset(candidates=None)
    rng = np.random.default_rng(0)
    users, items = (torch.from_numpy(rng.standard_normal((n, 6), np.float32)) for n in (data.n_users, data.n_items))
    expected = Evaluator.of(data)((users, items))
    with pretending():
        there_users, there_items = users.to(DEVICE), items.to(DEVICE)
        assert isinstance(there_users, Pretended)
        found = Evaluator.of(data)((there_users, there_items))
        lists = ranking.topk(there_users, there_items, 10, seen=data.train)
        assert isinstance(lists.items, Pretended)
        ids = lists.items.cpu().numpy()
    for part, report in expected.items():
        for name, values in report.values.items():
            np.testing.assert_allclose(found[part].values[name], values, err_msg=f"{part} {name}")
    np.testing.assert_array_equal(ids, ranking.topk(users, items, 10, seen=data.train).items.numpy())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_is_written_resumed_and_opened(optimizer: str, tmp_path, monkeypatch):
    """From the options to files and back: the state of the optimizer goes to the device again."""
    toy_dataset(candidates=None).save(tmp_path / "d")
    options = {
        "data": {"path": str(tmp_path / "d")},
        "model": {"name": "bpr", "dim": 4},
        "train": {"epochs": 6, "batch_size": 64, "optimizer": optimizer},
    }
    monkeypatch.setattr(building, "device_of", lambda name: DEVICE)
    with there(monkeypatch):
        whole = execute(resolve(options), tmp_path / "whole")
        asked = iter([False, False, True])
        begun = execute(resolve(options), tmp_path / "parts", should_stop=lambda: next(asked, True))
        assert begun.fit.stopped == "interrupted"
        done = execute(resolve(options), tmp_path / "parts", resume=True)
    assert (tmp_path / "parts/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert done.reports["test"].means() == whole.reports["test"].means()
    monkeypatch.undo()
    opened = load_run(tmp_path / "whole")
    assert opened.report()["test"].means() == pytest.approx(whole.reports["test"].means())


# --- the device itself, and what is known of ids --------------------------------------------------------------------


def test_the_device_refuses_what_cuda_refuses():
    with pretending() as watch:
        here, away = torch.ones(3), torch.ones(3, device=DEVICE)
        assert away.device.type == DEVICE.type
        assert (away * torch.tensor(2.0)).cpu().tolist() == [2.0] * 3  # numbers may be operands
        with pytest.raises(MixedDevices, match="add of tensors"):
            here + away
        with pytest.raises(MixedDevices, match="index"):
            _ = away[torch.tensor([1])]
        with pytest.raises(MixedDevices, match="generator"):
            torch.rand(3, device=DEVICE, generator=torch.Generator())
        torch.rand(3, device=DEVICE, generator=torch.Generator(DEVICE))
        with pytest.raises(RuntimeError):
            away.numpy()
        watch.events.clear()
        away.requires_grad_()
        (away * away).sum().backward()
        assert isinstance(away.grad, Pretended)
        assert not watch.events
        for wait in (
            lambda: away.sum().item(), lambda: bool((away > 0).all()), lambda: away.tolist(), lambda: away[away > 0],
            lambda: torch.unique(away), lambda: (away > 0).nonzero(), lambda: away.cpu(),
        ):  # fmt: skip
            watch.events.clear()
            wait()
            assert [event.kind for event in watch.events] == ["wait"]
        watch.events.clear()
        here.to(DEVICE)
        assert [event.kind for event in watch.events] == ["upload"]
        watch.events.clear()
        devices.to_device(np.arange(3, dtype=np.int32), DEVICE)
        assert not watch.events
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(devices, "PINNED", 11)
            assert devices.to_device(np.arange(3, dtype=np.int32), DEVICE).cpu().tolist() == [0, 1, 2]
        assert [event.kind for event in watch.events] == ["upload", "wait"]


def test_what_the_host_knows_is_what_the_device_has():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30, 50, dtype=np.int32)
    with pretending() as watch:
        tensor = devices.known(devices.to_device(ids, DEVICE), ids)
        assert tensor.dtype == torch.int64
        watch.events.clear()
        assert devices.numbers_of(tensor) is ids
        distinct, counts = devices.unique_of(tensor)
        all_counts = devices.counts_of(tensor, 30)
        assert not watch.events
        assert devices.host_of(tensor[:5]) is None
        assert devices.host_of(tensor + 1) is None
        for found, expected in ((distinct, np.unique(ids)), (counts, np.unique(ids, return_counts=True)[1])):
            np.testing.assert_array_equal(found.cpu().numpy(), expected)
        np.testing.assert_array_equal(all_counts.cpu().numpy(), np.bincount(ids, minlength=30))
    fixed = ids.copy()
    fixed.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert devices.to_device(fixed, torch.device("cpu")).tolist() == ids.tolist()
    here = devices.known(torch.from_numpy(ids), ids)
    assert devices.host_of(here) is None
    np.testing.assert_array_equal(devices.counts_of(here.long(), 30).numpy(), np.bincount(ids, minlength=30))


@pytest.mark.parametrize("model", ["bpr", "sasrec", "caser", "multvae"])
def test_batches_say_the_same_of_their_ids(model: str):
    """Distinct queries, items and their roles, from the host or from the device."""
    here = list(task_of(model).draw(Epoch(0, 0, 1)))
    with pretending():
        there_ = list(task_of(model, DEVICE).draw(Epoch(0, 0, 1)))
        for own, other in zip(here, there_, strict=True):
            for read in (
                lambda b: b.unique_queries.ids, lambda b: b.unique_queries.first, lambda b: b.item_roles[0],
                lambda b: b.item_roles[1], lambda b: b.both_roles, lambda b: b.triples.rows, lambda b: b.triples.negatives,
            ):  # fmt: skip
                found = read(other)
                assert isinstance(found, Pretended)
                torch.testing.assert_close(found.cpu(), read(own))
            assert devices.host_of(other.positives) is not None
