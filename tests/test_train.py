"""The loop, and that a run goes on with the same bytes after any interruption."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import toy_dataset
from kdrs.data import Dataset, Interactions
from kdrs.errors import ArtefactError, TrainingError
from kdrs.evaluation.evaluator import Evaluator
from kdrs.evaluation.protocols import Selection
from kdrs.fitting.fit import fit
from kdrs.fitting.learner import Learner
from kdrs.models import BPR, MODELS
from kdrs.runs.config import resolve
from kdrs.runs.execute import execute
from kdrs.runs.opened import load_run
from kdrs.runs.results import measure_teachers
from kdrs.teachers.model import ModelTeacher
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch

SMALL = {"interesting": 5, "uninteresting": 5, "pool": 20}


def run_values(data: Path, **train) -> dict:
    return {
        "data": {"path": str(data)},
        "model": {"name": "bpr", "dim": 4},
        "train": {"epochs": 6, "batch_size": 64, "lr": 1e-2, "checkpoint_seconds": 0, **train},
        "device": "cpu",
    }


def final_bytes(path: Path) -> dict[str, object]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds"), row.pop("evaluation_seconds", None)
    report = json.loads((path / "report.json").read_text())
    return {
        "model": (path / "model.safetensors").read_bytes(),
        "rows": rows,
        "report": report,
        "values": (path / "report-test.json").read_bytes(),
    }


def test_models_are_measured_and_left_in_evaluation_mode(toy):
    from kdrs.models import NGCF

    task, seen = PairTask(toy.train, batch_size=64), []
    model = NGCF(NGCF.Config(dim=4, message_dropout=0.5), task)

    def evaluate(candidate):
        seen.append(candidate.training)
        return {"valid": {"hit@5": 0.0, "hit@10": 0.0, "hit@20": 0.0}}

    fit(Learner(model, task), task, epochs=2, evaluate=evaluate, selection=Selection(("hit@5",)))
    assert seen == [False, False]
    assert not model.training
    assert torch.equal(model.factors().queries, model.factors().queries)


@pytest.mark.parametrize(
    ("every_from", "looks", "stages"),
    [(None, [2, 5, 7], [1, 3, 5, 7]), (0, [0, 3, 6, 7], [0, 2, 4, 6]), (4, [4, 7], [4, 6])],
)
def test_evaluations_and_stages_begin_where_they_are_told_to(toy_path, tmp_path, every_from, looks, stages):
    """Every third of 8 epochs, the last one too; the weights of every second."""
    where = {} if every_from is None else {"every_from": every_from}
    values = run_values(toy_path, epochs=8, every=3, stages_every=2, **where)
    execute(resolve(values), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "valid" in row] == looks
    assert sorted(int(path.stem) for path in (tmp_path / "run/stages").glob("*.safetensors")) == stages


@pytest.fixture(scope="module")
def teacher(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    values = run_values(toy_path, epochs=8)
    values["model"]["dim"] = 8
    execute(resolve(values), out)
    return out


@pytest.mark.parametrize("optimizer", ["adam", "lazy-adam"])
@pytest.mark.parametrize("options", [{}, {"n_negatives": 3, "layout": "rows"}])
def test_bpr_in_one_pass_is_the_loop_of_autograd(toy_path: Path, optimizer: str, options: dict):
    """Losses and weights over some epochs."""
    task = PairTask(Dataset.load(toy_path).train, batch_size=64, **options)

    class Plain(BPR):
        """Another class, which has no ways of its own to step."""

    learners = []
    for kind in (BPR, Plain):
        torch.manual_seed(0)
        learners.append(
            Learner(kind(BPR.Config(dim=21, init_std=0.3), task), task, lr=1e-2, weight_decay=0.01, optimizer=optimizer)
        )
    before = learners[0].model.items.weight.detach().clone()
    rows = [fit(learner, task, epochs=3, seed=5).rows for learner in learners]
    fast, plain = learners
    assert [row["loss"] for row in rows[0]] == pytest.approx([row["loss"] for row in rows[1]], rel=1e-4)
    for ours, theirs in zip(fast.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-4)
    assert not torch.equal(before, fast.model.items.weight)
    for name, tensor in fast.state().items():
        assert tensor.shape == plain.state()[name].shape, name


def test_a_frozen_table_stays_as_it_is(toy_path: Path):
    task = PairTask(Dataset.load(toy_path).train, batch_size=64)
    model = BPR(BPR.Config(dim=4), task)
    model.items.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(Learner(model, task, lr=1e-2), task, epochs=1)
    assert torch.equal(model.items.weight, before["items.weight"])
    assert not torch.equal(model.users.weight, before["users.weight"])


def test_rows_that_owe_steps_have_taken_them_when_anybody_looks(toy_path: Path):
    task = PairTask(Dataset.load(toy_path).train, batch_size=16)
    torch.manual_seed(0)
    one, other = (Learner(BPR(BPR.Config(dim=5), task), task, weight_decay=0.1) for _ in range(2))
    other.model.load_state_dict(one.model.state_dict())
    for index, batch in enumerate(task.draw(Epoch(0, 0, 1))):
        one.step_alone(batch), other.step_alone(batch)
        if index % 3 == 0:
            other.finish()
    assert not torch.equal(one.model.items.weight, other.model.items.weight)  # some rows still owe steps
    state = one.state()  # asking for the state settles too
    other.finish()
    assert torch.equal(one.model.items.weight, other.model.items.weight)
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in state.items())


def distilled(toy_path: Path, teacher: Path, **train) -> dict:
    values = run_values(toy_path, **train)
    values["distill"] = [
        {"method": "rrd", "teacher": str(teacher), "weight": 0.1, **SMALL},
        {"method": "de", "teacher": str(teacher), "weight": 0.1, "experts": 2},
        {"method": "cd", "teacher": str(teacher), "weight": 0.1, "items": 5, "pool": 30},
        {"method": "hyperkdma", "teacher": str(teacher), "weight": 0.1, "experts": 2, "ta_dims": [5, 6]},
        {"method": "rd", "teacher": str(teacher), "weight": 0.1, "items": 5, "samples": 20, "warmup_epochs": 2},
    ]
    return values


# --- the task -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("negatives", "layout", "rows"), [(1, "triples", 1), (3, "triples", 3), (3, "rows", 1)])
def test_an_epoch_holds_every_pair_and_only_unseen_negatives(toy, negatives, layout, rows):
    task = PairTask(toy.train, batch_size=64, n_negatives=negatives, layout=layout)
    batches = task.draw(Epoch(0, 0, 1))
    drawn = list(batches)
    assert len(drawn) == len(batches) == task.n_batches
    users = torch.cat([b.queries.users for b in drawn])
    positives = torch.cat([b.positives for b in drawn])
    unseen = torch.cat([b.negatives for b in drawn])
    assert sorted(zip(users.tolist(), positives.tolist(), strict=True)) == sorted(
        (u, i)
        for u, i in zip(toy.train.row_of_pair.tolist(), toy.train.indices.tolist(), strict=True)
        for _ in range(rows)
    )
    assert unseen.shape == (users.shape[0], negatives if layout == "rows" else 1)
    seen = toy.train.to_csr().toarray() > 0
    assert not seen[users[:, None].numpy(), unseen.numpy()].any()
    for index in (0, len(drawn) - 1):
        assert torch.equal(batches[index].positives, drawn[index].positives)
        assert torch.equal(batches[index].negatives, drawn[index].negatives)
    again, other = task.draw(Epoch(0, 0, 1)), task.draw(Epoch(1, 0, 1))
    assert torch.equal(again[0].negatives, drawn[0].negatives)
    assert not torch.equal(other[0].positives, drawn[0].positives)


def test_users_who_have_seen_everything_are_left_out_and_counted():
    from kdrs.data import Interactions
    from kdrs.errors import DataError

    task = PairTask(Interactions.from_pairs([0, 0, 0, 1], [0, 1, 2, 1], 2, 3))
    assert task.n_skipped == 3
    assert torch.cat([b.queries.users for b in task.draw(Epoch(0, 0, 1))]).tolist() == [1]
    with pytest.raises(DataError, match="seen every item"):
        PairTask(Interactions.from_pairs([0, 0], [0, 1], 1, 2))


def test_batch_entities_are_unique():
    from test_distillers import batch_of

    batch = batch_of([5, 3, 5], [1, 2, 2], [2, 9, 9])
    assert batch.unique_queries.ids.tolist() == [3, 5]
    assert batch.queries.rows[batch.unique_queries.first].tolist() == [3, 5]
    items, roles = batch.item_roles
    assert dict(zip(items.tolist(), roles.tolist(), strict=True)) == {1: 1.0, 2: 2.0, 9: 1.0}


# --- the loop -------------------------------------------------------------------------------------------------------


def learner(task: PairTask, **options) -> Learner:
    torch.manual_seed(0)
    return Learner(BPR(BPR.Config(dim=4), task), task, lr=1e-2, **options)


@pytest.mark.parametrize("name", ["bpr", "lightgcn"])
def test_an_epochs_loss_is_the_plain_mean_of_its_batches(toy, name: str):
    """Of sums, the last and shorter batch counting as much as any other."""
    task = PairTask(toy.train, batch_size=64)
    torch.manual_seed(0)
    model = MODELS[name](MODELS[name].Config(dim=4, init_std=0.5), task)
    batches = list(task.draw(Epoch(0, 0, 1)))
    assert len(batches[-1].positives) < 64
    row = fit(Learner(model, task, lr=1e-12), task, epochs=1).rows[0]
    expected = sum(model.loss(model(batch.queries), batch).item() for batch in batches) / len(batches)
    assert row["loss"] == pytest.approx(expected, rel=1e-6)


def test_the_published_first_loss_of_bpr():
    """B ln 2 = 709.8 for 1,024 triples; 706.3 over the 113 batches of CiteULike's 115,142 pairs, the last of 454."""
    pairs = np.arange(115_142)
    task = PairTask(Interactions.from_pairs(pairs % 5219, pairs // 5219, 5219, 25_181))
    torch.manual_seed(0)
    model = BPR(BPR.Config(dim=20), task)
    batch = task.draw(Epoch(0, 0, 1))[0]
    assert model.loss(model(batch.queries), batch).item() == pytest.approx(709.8, abs=0.05)
    assert fit(Learner(model, task, lr=1e-12), task, epochs=1).rows[0]["loss"] == pytest.approx(706.3, abs=0.05)


def test_training_beats_chance(toy):
    task = PairTask(toy.train, batch_size=64)
    trained = learner(task)
    from kdrs.evaluation.evaluator import Evaluator

    evaluator = Evaluator.of(toy)
    before = evaluator(trained.knowledge)["test"].mean("hit@5")
    fit(trained, task, epochs=20)
    assert evaluator(trained.knowledge)["test"].mean("hit@5") > before + 0.1


def test_subnormal_weights_are_flushed_while_training_and_only_then(toy):
    task = PairTask(toy.train, batch_size=64)
    seen = []

    class Watched(BPR):
        def loss(self, view, batch):
            seen.append((self.users.weight.new_tensor([1e-39]) * 1.0).item())
            return super().loss(view, batch)

    model = Watched(BPR.Config(dim=4), task)
    fit(Learner(model, task, base=model.loss), task, epochs=1)
    assert set(seen) == {0.0} or not torch.set_flush_denormal(False)
    assert (torch.tensor([1e-39]) * 1.0).item() > 0


def test_the_best_weights_are_kept(toy):
    task = PairTask(toy.train, batch_size=64)
    trained = learner(task)
    kept = {}

    def evaluate(model):
        epoch = len(kept)
        kept[epoch] = model.users.weight.detach().clone()
        return {"valid": {"ndcg@10": [0.1, 0.3, 0.2, 0.25, 0.1][epoch]}}

    result = fit(trained, task, epochs=5, evaluate=evaluate, selection=Selection(patience=3))
    assert result.best_epoch == 1
    assert result.stopped == "patience"
    assert result.epochs == 5
    assert torch.equal(trained.model.users.weight, kept[1])


def test_a_loss_that_is_not_finite_is_named(toy):
    task = PairTask(toy.train, batch_size=64)
    trained = learner(task)
    with torch.no_grad():
        trained.model.users.weight[7] = float("nan")
    with pytest.raises(TrainingError, match=r"student base.*nan in epoch 0, batch \d+"):
        fit(trained, task, epochs=1)


def test_several_learners_see_one_state_each_batch(toy):
    """Two peers that pull towards each other: all losses, then all backward passes, then all steps."""
    task = PairTask(toy.train, batch_size=10**6)
    torch.manual_seed(0)
    peers = [BPR(BPR.Config(dim=2, init_std=0.5), task) for _ in range(2)]
    starts = [p.users.weight.detach().clone() for p in peers]

    def pull(other):
        return lambda view, batch: (view.queries - other(batch.queries).queries.detach()).square().sum()

    learners = [
        Learner(peer, task, lr=1e-3, base=pull(other), name=name)
        for peer, other, name in ((peers[0], peers[1], "a"), (peers[1], peers[0], "b"))
    ]
    result = fit(learners, task, epochs=1)
    # one step of Adam is lr * sign(gradient), and the gradients are opposite if both saw the starting state
    moved = [peer.users.weight.detach() - start for peer, start in zip(peers, starts, strict=True)]
    assert torch.allclose(moved[0], -moved[1], atol=1e-6)
    assert result.rows[0]["loss"] == pytest.approx(result.rows[0]["b.loss"])


def test_an_epoch_draws_from_separate_streams():
    epoch = Epoch(3, 0, 10)
    assert len({epoch.stream("negatives"), epoch.stream("order"), Epoch(4, 0, 10).stream("order")}) == 3


# --- resume ---------------------------------------------------------------------------------------------------------


def stop_after(epoch: int):
    seen = []

    def should_stop() -> bool:
        seen.append(None)
        return len(seen) > epoch

    return should_stop


@pytest.mark.parametrize("optimizer", ["adam", "lazy-adam", "adagrad"])
def test_a_resumed_run_ends_with_the_same_bytes(toy_path, teacher, tmp_path, optimizer):
    config = resolve(distilled(toy_path, teacher, optimizer=optimizer))
    whole = execute(config, tmp_path / "whole")
    assert whole.fit.epochs == 6
    for epoch in (0, 3):
        outcome = execute(config, tmp_path / "parts", should_stop=stop_after(epoch), resume=epoch > 0)
        assert outcome.fit.stopped == "interrupted"
        assert outcome.run.status()["status"] == "interrupted"
    execute(config, tmp_path / "parts", resume=True)
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")


def test_a_finished_run_can_be_lengthened(toy_path, tmp_path):
    short, long = (resolve(run_values(toy_path, epochs=n)) for n in (3, 6))
    execute(short, tmp_path / "a")
    execute(long, tmp_path / "a", resume=True)
    execute(long, tmp_path / "b")
    assert final_bytes(tmp_path / "a") == final_bytes(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["distill", "train"])
def test_kill_at_random_moments(forks, toy_path, teacher, tmp_path, verb):
    """kill -9 in mid-epoch, in mid-save, in mid-evaluation: the run goes on and ends with the same bytes. A model that is
    trained alone takes another way through its steps, and a shorter one."""
    import tomli_w

    wanted = int(os.environ.get("KDRS_KILLS", 2))
    epochs = 15 * wanted if verb == "distill" else 60 * wanted
    settings = {"epochs": epochs, "patience": epochs}
    values = distilled(toy_path, teacher, **settings) if verb == "distill" else run_values(toy_path, **settings)
    file = tmp_path / "run.toml"
    file.write_text(tomli_w.dumps(values))
    execute(resolve(values), tmp_path / "whole")
    rng = random.Random(0)
    command = [verb, file, "--out", tmp_path / "killed", "--quiet"]
    kills = 0
    for _ in range(wanted):
        begun = (tmp_path / "killed" / "config.toml").is_file()
        process = forks.begin(*command, *(["--resume"] if begun else []))
        status = tmp_path / "killed" / "STATUS.json"
        while process.poll() is None and not (status.is_file() and "running" in status.read_text()):
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.8))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        ended = process.ended()
        assert ended.returncode in (0, -9), ended.stderr
        if ended.returncode == 0:
            break
    finish = [*command, "--resume"] if (tmp_path / "killed" / "config.toml").is_file() else command
    assert forks.run(*finish).returncode == 0
    print(f"{kills} kills")
    assert kills
    assert final_bytes(tmp_path / "killed") == final_bytes(tmp_path / "whole")


# --- teachers -------------------------------------------------------------------------------------------------------


def test_a_teacher_of_another_data_set_is_refused(toy_path, teacher, tmp_path):
    other = toy_dataset(n_users=40).save(tmp_path / "other")
    with pytest.raises(ArtefactError, match="40 users, 80 items"):
        execute(resolve(distilled(other, teacher)), tmp_path / "run")
    split = toy_dataset(seed=3).save(tmp_path / "split")
    with pytest.raises(ArtefactError, match="another split"):
        execute(resolve(distilled(split, teacher)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pickle_is_never_loaded(toy_path, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    import pickle

    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), tmp_path / "torch.pth")
    for name in ("plain.pkl", "torch.pth"):
        values = run_values(toy_path)
        values["distill"] = [{"method": "rrd", "teacher": str(tmp_path / name), **SMALL}]
        with pytest.raises(ArtefactError, match="pickle"):
            execute(resolve(values), tmp_path / "run")
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "run").exists()


def test_a_header_that_looks_like_a_pickle_is_none(tmp_path):
    """A file begins with its header's length, whose low byte may be a pickle's first one, and whose first two a torch
    archive's."""
    from safetensors.torch import save_file

    from kdrs.teachers.file import read_safetensors

    heads = set()
    for length in (640, 0x4B50):
        for padding in range(length - 200, length):
            path = tmp_path / "teacher.safetensors"
            save_file({"users": torch.ones(1, 1)}, path, metadata={"kdrs": "teacher/1", "note": "x" * padding})
            if path.read_bytes()[:2] in (b"\x80\x02", b"PK"):
                heads.add(path.read_bytes()[:2])
                assert read_safetensors(path)[1]["kdrs"] == "teacher/1"
    assert heads == {b"\x80\x02", b"PK"}


def test_a_teacher_worse_than_popularity_is_warned_of(toy_path, toy, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    vectors = {"users": torch.rand(toy.n_users, 4), "items": -torch.rand(toy.n_items, 4)}
    vectors["items"] -= torch.from_numpy(toy.train.column_degrees.copy()).float()[:, None]
    digests = {"users_digest": toy.users.digest, "items_digest": toy.items.digest}
    save_file(vectors, tmp_path / "bad.safetensors", metadata={"kdrs": "teacher/1", **digests})
    values = run_values(toy_path, epochs=1)
    values["distill"] = [{"method": "rrd", "teacher": str(tmp_path / "bad.safetensors"), **SMALL}]
    with pytest.warns(UserWarning, match="no better than popularity.*are its ids in the data set's order"):
        execute(resolve(values), tmp_path / "run")
    assert json.loads((tmp_path / "run/teachers.json").read_text())
    model = BPR(BPR.Config(dim=4), PairTask(toy.train))
    model.load_state_dict({f"{name}.weight": table for name, table in vectors.items()})
    with pytest.warns(
        UserWarning, match="no better than popularity.*: it has little to teach"
    ):  # a run's ids are known
        measure_teachers({"run": ModelTeacher(model, PairTask(toy.train))}, Evaluator.of(toy), toy)


def test_a_teacher_file_does_what_its_run_does(toy_path, toy, teacher, tmp_path):
    """A run's vectors, exported as a teacher file, teach the same student."""
    from safetensors.torch import save_file

    factors = load_run(teacher).teacher().factors()
    digests = {"users_digest": toy.users.digest, "items_digest": toy.items.digest}
    path = tmp_path / "teacher.safetensors"
    save_file(
        {"users": factors.queries.clone(), "items": factors.items.clone()},
        path,
        metadata={"kdrs": "teacher/1", **digests},
    )
    for name, reference in (("run", teacher), ("file", path)):
        execute(resolve(distilled(toy_path, reference, epochs=2)), tmp_path / name)
    assert final_bytes(tmp_path / "run")["model"] == final_bytes(tmp_path / "file")["model"]


@pytest.mark.filterwarnings("ignore:.*states no .*_digest")
@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"users": (50, 4), "items": (81, 4)}, {}, "padding row"),
        ({"users": (80, 4), "items": (50, 4)}, {}, "exchanged"),
        ({"users": (50, 4)}, {}, "go together"),
        ({"users": (50, 4), "items": (80, 3)}, {}, "4 dimensions, items 3"),
        ({"users": (50, 4), "items": (80, 4), "extra": (1,)}, {}, "'?extra'?"),
        ({"users": (50, 4), "items": (80, 4)}, {"users_digest": "0" * 64}, "made for other users"),
        ({"users": (50, 4), "items": (80, 4)}, {"kdrs": "teacher/9"}, "no kdrs teacher file"),
    ],
)
def test_teacher_files_that_do_not_fit(toy, task, tmp_path, tensors, metadata, message):
    from safetensors.torch import save_file

    from kdrs.teachers.file import FileTeacher

    path = tmp_path / "t.safetensors"
    save_file({k: torch.ones(*s) for k, s in tensors.items()}, path, metadata={"kdrs": "teacher/1", **metadata})
    digests = {"users": toy.users.digest, "items": toy.items.digest}
    with pytest.raises(ArtefactError, match=message):
        FileTeacher(path, task, digests=digests)
