"""What the Python snippets of the pages take for granted, and what must come of them: rows of test_pages.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

import kdrs
from commands import imports_undone, write_own
from commands import kdrs as run_command
from conftest import toy_dataset

Names = dict[str, Any]
Example = Generator[Names, Names, None]
"""Yields the names that a snippet takes for granted, and gets all that it made; ``printed`` is its output."""
EXAMPLES: dict[tuple[str, str], Callable[[], Example]] = {}


def example(page: str, holds: str) -> Callable[[Callable[[], Example]], Callable[[], Example]]:
    """Of the one Python block of a page that holds a text."""

    def add(made: Callable[[], Example]) -> Callable[[], Example]:
        EXAMPLES[page, holds] = made
        return made

    return add


def toy(**options: Any) -> kdrs.Dataset:
    return toy_dataset(400, 80, **{"candidates": None, **options})


def trained(data: kdrs.Dataset, dim: int = 32, epochs: int = 15) -> tuple[kdrs.PairTask, Any]:
    torch.manual_seed(0)
    task = kdrs.PairTask(data.train)
    model = kdrs.models.BPR(kdrs.models.BPR.Config(dim=dim), task)
    kdrs.fit(kdrs.Learner(model, task, lr=1e-2), task, epochs=epochs)
    return task, model


def ndcg(data: kdrs.Dataset, scorer: Any) -> float:
    return kdrs.Evaluator.of(data)(scorer)["test"].mean("ndcg@10")


def assert_learnt(data: kdrs.Dataset, value: float) -> None:
    """Four times what popularity and chance have here. Trained from N(0, 1), a model has hardly more than they."""
    rng = np.random.default_rng(0)
    chance = tuple(rng.standard_normal((n, 8)).astype(np.float32) for n in data.train.shape)
    assert value > 4 * max(ndcg(data, kdrs.popularity(data.train)), ndcg(data, chance)), value


def write_clicks(path: Path, columns: str = "visitor,product,rating,timestamp") -> None:
    rng = np.random.default_rng(0)
    liked = np.where(np.arange(60)[:, None] % 4 == np.arange(60) % 4, 0.7, 0.1)
    users, items = np.nonzero(rng.random((60, 60)) < liked)
    rows = (f"u{u},i{i},{3 + n % 3},{881250949 + n}\n" for n, (u, i) in enumerate(zip(users, items, strict=True)))
    path.write_text(columns + "\n" + "".join(rows))


def run_directory(path: str, data: str, *options: str) -> None:
    common = ("--model", "bpr", "--dim", "16", "--lr", "0.01", "--epochs", "15", "--device", "cpu", "--threads", "1")
    done = run_command("train", "--data", data, *common, *options, "--out", path, "--quiet")
    assert done.code == 0, done.err


@example("README.md", "30)\nprint(")
def readme_first_lines() -> Example:
    data = toy()
    data.save("datasets/ml-100k")
    names = yield {}
    assert_learnt(data, float(names["printed"]))
    assert ndcg(data, names["big"].factors()) > 0.2
    assert names["small"].factors().items.shape == (80, 10)
    assert names["tiny"].n_bytes < names["tiny"].source_bytes / 15
    assert ndcg(data, names["tiny"].model.factors()) > 0.2


def saved_by_id(block_data: kdrs.Dataset) -> Example:
    """Vectors in another order, with ids as numbers; what they recommend is what the model does."""
    block_data.save("datasets/mine")
    task, model = trained(block_data)
    vectors, rng = model.factors(), np.random.default_rng(1)
    given: Names = {}
    for side, ids, table in (("user", block_data.users, vectors.queries), ("item", block_data.items, vectors.items)):
        order = rng.permutation(len(ids))
        given[f"their_{side}_ids"] = np.array([int(ids[place]) for place in order])
        given[f"their_{side}_vectors"] = table.numpy()[order]
    yield given
    teacher = kdrs.FileTeacher("theirs.safetensors", task, dataset=block_data)
    assert ndcg(block_data, teacher) == pytest.approx(ndcg(block_data, vectors))


@example("README.md", "kdrs.save_teacher(")
def readme_teacher_file() -> Example:
    yield from saved_by_id(toy())


@example("docs/teachers.md", "their_user_vectors")
def teachers_from_python() -> Example:
    yield from saved_by_id(toy())


@example("docs/teachers.md", "instance_topk=")
def teachers_of_instances() -> Example:
    data, asked = toy(), []

    def answers(instances: kdrs.Queries) -> np.ndarray:
        asked.append(instances)
        rng = np.random.default_rng(0)
        return np.argsort(rng.random((len(instances), data.n_items)), axis=1)[:, :20]

    class Ones:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.ones((len(asked[0]), 20), np.float32)

    names = yield {"data": data, "torch": torch, "answers": answers, "confidences": Ones()}
    task = names["task"]
    assert names["instances"].history.shape == (task.n_rows, task.length)
    teacher = kdrs.FileTeacher("instances.safetensors", task, dataset=data)
    assert (teacher.topk(5).items[task.n_users :] >= 0).any()
    assert teacher.confidence() is not None


@example("README.md", "kdrs.sampling.stream")
def readme_fast_parts() -> Example:
    data = toy()
    _, model = trained(data)
    vectors, train = model.factors(), data.train
    drawn: list[np.ndarray] = []
    own = kdrs.sampling.negatives

    def watched(*given: Any, **options: Any) -> Any:
        drawn.append(own(*given, **options))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdrs.sampling, "negatives", watched)
        names = yield {
            "users": train.row_of_pair,
            "items": train.indices,
            "test_users": data.test.row_of_pair,
            "test_items": data.test.indices,
            "user_vectors": vectors.queries,
            "item_vectors": vectors.items,
        }
    assert names["seen"].n_pairs == train.n_pairs
    assert len(drawn) == 3
    for index, draw in enumerate(drawn):
        assert draw.shape == (train.n_pairs, 1)
        assert not names["seen"].to_csr()[train.row_of_pair, draw[:, 0]].sum()
        assert all((draw != other).mean() > 0.8 for other in drawn[:index]), "an epoch repeats another's draws"
    assert names["best"].items.shape == (400, 50)
    assert_learnt(data, names["reports"]["test"].mean("ndcg@10"))
    assert float(names["printed"]) == names["reports"]["test"].mean("ndcg@10")


@example("docs/data.md", "kdrs.data.prepare(")
def data_prepare() -> Example:
    write_clicks(Path("clicks.csv"))
    names = yield {}
    assert names["data"].train.n_pairs > 200
    assert set(names["data"].users) <= {f"u{n}" for n in range(60)}
    assert names["data"].candidates.shape[1] == names["data"].n_items  # fewer than 499
    assert names["data"].order is not None


@example("docs/evaluation.md", "kdrs.Evaluator(train,")
def evaluation_reports() -> Example:
    data = toy()
    _, model = trained(data)
    vectors = model.factors()
    names = yield {
        "train": data.train,
        "valid": data.valid,
        "test": data.test,
        "user_vectors": vectors.queries,
        "item_vectors": vectors.items,
    }
    assert set(names["reports"]) == {"valid", "test"}
    assert_learnt(data, names["reports"]["test"].mean("ndcg@10"))
    assert names["reports"]["test"].mean("ndcg@10") == pytest.approx(ndcg(data, vectors))


@example("docs/evaluation.md", "ks=(10, 50)")
def evaluation_of_another_k() -> Example:
    data = toy()
    _, model = trained(data)
    vectors = model.factors()
    names = yield {"dataset": data, "user_vectors": vectors.queries, "item_vectors": vectors.items}
    assert set(names["report"].values) == {"recall@10", "recall@50", "ndcg@10", "ndcg@50"}
    assert float(names["printed"]) >= names["report"].mean("recall@10") > 0
    assert names["report"].mean("ndcg@10") == pytest.approx(ndcg(data, vectors))


@example("docs/evaluation.md", "kdrs.compare(")
def evaluation_compare() -> Example:
    pytest.importorskip("matplotlib")
    data = toy()
    evaluator = kdrs.Evaluator.of(data)
    reports = {f"{name}_reports": evaluator(trained(data, dim, epochs)[1].factors())
               for name, dim, epochs in (("teacher", 32, 15), ("alone", 2, 15), ("student", 4, 15))}  # fmt: skip
    names = yield reports
    assert names["comparison"].teacher == "BPR 200"
    assert names["comparison"].baseline == "BPR 20"
    assert "against BPR 20" in names["printed"]
    assert {path.name for path in Path("out").iterdir()} == {
        "report.html", *(f"comparison.{form}" for form in ("json", "md", "tex", "csv", "png", "svg", "pdf"))
    }  # fmt: skip


@example("docs/runs.md", "run.factors()")
def run_without_its_data() -> Example:
    data = toy()
    data.save("datasets/toy")
    run_directory("runs/student", "datasets/toy")
    names = yield {"kdrs": kdrs}
    assert_learnt(data, ndcg(data, names["run"].factors()))
    assert list(names["run"].items) == list(data.items)


@example("docs/compact.md", "run.model.encode(")
def compact_new_users() -> Example:
    data = toy()
    data.save("datasets/toy")
    run_directory("runs/teacher", "datasets/toy")
    kdrs.compress("runs/teacher", 8, users="sum", out="runs/small")
    names = yield {}
    run, histories = names["run"], names["histories"]
    assert histories.shape == (2, data.n_items)
    assert [len(basket) for basket in names["names"]] == [10, 10]
    for basket, best in zip(names["baskets"], names["names"], strict=True):
        assert set(basket) <= set(data.items)
        assert not set(basket) & set(best)
    scores = names["asked"].vectors() @ run.model.item_side.vectors().T
    scores[histories.row_of_pair, histories.indices] = -np.inf
    assert names["names"][0][0] == run.items[int(scores[0].argmax())]


@example("docs/compact.md", "data.without_users(new)")
def compact_known_users() -> Example:
    data = toy_dataset(400, 80, candidates=None)
    data.save("datasets/ml-100k")
    names = yield {}
    known = kdrs.Dataset.load("datasets/known")
    assert not known.full.row_degrees[names["new"]].any()
    assert known.full.n_pairs == data.full.n_pairs - data.full.row_degrees[names["new"]].sum()


@example("docs/compact.md", 'kdrs.load_run("runs/known-student")')
def compact_unseen_users() -> Example:
    data = toy()
    new = np.arange(40, 120)
    data.without_users(new).save("datasets/known")
    run_directory("runs/teacher", "datasets/known")
    kdrs.compress("runs/teacher", 8, users="sum", out="runs/known-student")
    names = yield {"kdrs": kdrs, "np": np, "data": data, "new": new}
    value = float(names["printed"])
    assert_learnt(data, value)


@example("docs/compact.md", "kdrs.compress(")
def compact_python() -> Example:
    data = toy()
    data.save("datasets/toy")
    run_directory("runs/teacher", "datasets/toy")
    vectors = kdrs.load_run("runs/teacher").factors()
    names = yield {"user_vectors": vectors.queries, "item_vectors": vectors.items, "seen": data.train}
    made = names["made"]
    assert made.n_bytes < made.source_bytes / 8
    assert_learnt(data, made.reports["test"].mean("ndcg@10"))
    assert ndcg(data, kdrs.load_run("runs/small").factors()) == made.reports["test"].mean("ndcg@10")
    assert ndcg(data, names["small"].model.factors()) == pytest.approx(ndcg(data, vectors), rel=0.1)
    assert names["best"].items.shape == (400, 10)
    assert names["codes"].bits == 3
    error = names["codes"].vectors() - vectors.items.numpy()
    assert 0 < np.square(error).mean() < 0.06 * float(vectors.items.square().mean())


@example("docs/production.md", "data.train.union(data.valid)")
def production_both() -> Example:
    data = toy()
    data.save("datasets/ml-100k")
    yield {}
    both = kdrs.Dataset.load("datasets/both")
    assert both.train.n_pairs == data.train.n_pairs + data.valid.n_pairs
    assert both.users.digest == data.users.digest
    assert both.test.intersection(data.test).n_pairs == data.test.n_pairs == both.test.n_pairs


@example("docs/methods.md", "class Mine")
def model_of_ones_own() -> Example:
    data = toy()
    task, model = trained(data)
    names = yield {"data": data, "teacher": kdrs.ModelTeacher(model, task)}
    value = ndcg(data, names["model"].factors())
    assert f"ndcg@10={value:.4f}" in names["printed"]
    assert_learnt(data, value)
    again = kdrs.ModelTeacher(names["model"], task)
    assert ndcg(data, again) == pytest.approx(value)


BY_NAME = ("--data", "mine", "--model", "mymodels:BiasedMF", "--lr", "0.01", "--threads", "1", "--device", "cpu")


@example("docs/methods.md", "class BiasedMF")
def model_by_name() -> Example:
    data = toy()
    data.save("mine")
    yield {}
    write_own(Path())
    with imports_undone():
        done = run_command("train", *BY_NAME, "--dim", "16", "--epochs", "15", "--out", "run", "--quiet")
        assert done.code == 0, done.err
        assert_learnt(data, ndcg(data, kdrs.load_run("run").factors()))


@example("docs/methods.md", "class ListKL")
def method_by_name() -> Example:
    data = toy()
    data.save("mine")
    run_directory("teacher", "mine")
    yield {}
    write_own(Path())
    with imports_undone():
        for weight in ("0", "5"):
            term = ("--teacher", "teacher", "--method", "mymethods:ListKL", "--weight", weight)
            done = run_command("distill", *BY_NAME, *term, "--dim", "4", "--epochs", "15", "--out", f"s{weight}", "-q")
            assert done.code == 0, done.err
        teachers = {path: kdrs.load_run(path).teacher() for path in ("teacher", "s0", "s5")}
    lists, rows = torch.as_tensor(teachers["teacher"].topk(20).items).long(), torch.arange(400)
    laws = {path: one.score_pairs(rows, lists).double().softmax(1) for path, one in teachers.items()}
    far = {path: float((laws["teacher"] * (laws["teacher"] / laws[path]).log()).sum(1).mean()) for path in ("s0", "s5")}
    assert far["s5"] < far["s0"] / 2, far


@example("docs/runs.md", "class Lines")
def tracker_of_ones_own() -> Example:
    toy().save("mine")
    yield {}
    write_own(Path())
    with imports_undone():
        run_directory("run", "mine", "--log", "mytracker:Lines")
        rows = [json.loads(line) for line in Path("run/lines/lines.jsonl").read_text().splitlines()]
    assert rows[0] == {"run": "run", "first": 0, "lr": 0.01}
    assert [row["step"] for row in rows[1:-1]] == [*range(15), 14]
    assert rows[5]["train/loss"] > 0
    assert rows[-2]["final/test/ndcg@10"] > 0
    assert rows[-1] == {"status": "finished"}


@example("docs/guide.md", "student.teacher().factors()")
def guide_serve() -> Example:
    data = toy()
    data.save("datasets/ml-100k")
    run_directory("runs/student", "datasets/ml-100k")
    names = yield {}
    scores = names["vectors"].queries @ names["vectors"].items.T
    scores[data.train.row_of_pair, data.train.indices] = -torch.inf
    assert names["first"] == [data.items[item] for item in scores[0].topk(10).indices]


@example("docs/guide.md", "data.train.to_csr()")
def guide_matrix() -> Example:
    data = toy()
    data.save("datasets/mine")
    names = yield {}
    assert names["matrix"].shape == data.train.shape
    names["matrix"].data[0] = 1.0  # writable
    assert kdrs.Interactions.from_csr(names["matrix"]) == data.train


@example("docs/teachers.md", "AlternatingLeastSquares")
def teachers_als() -> Example:
    """implicit itself is no dependency: a module of its name, which fits nothing and gives a trained model's vectors."""
    data = toy()
    data.save("datasets/mine")
    task, trained_model = trained(data)
    vectors = trained_model.factors()
    fitted: list[Any] = []

    class AlternatingLeastSquares:
        def __init__(self, *, factors: int, alpha: float, regularization: float, iterations: int):
            self.user_factors, self.item_factors = vectors.queries.numpy(), vectors.items.numpy()

        def fit(self, matrix: Any) -> None:
            matrix.data[0] = 1.0  # implicit's compiled code refuses what cannot be written to
            fitted.append(matrix)

    als = SimpleNamespace(AlternatingLeastSquares=AlternatingLeastSquares)
    with patch.dict(sys.modules, {"implicit": SimpleNamespace(als=als)}):  # type: ignore[dict-item]
        yield {}
    assert kdrs.Interactions.from_csr(fitted[0]) == data.train
    teacher = kdrs.FileTeacher("als.safetensors", task, dataset=data)
    assert ndcg(data, teacher) == pytest.approx(ndcg(data, vectors))


@example("docs/guide.md", "model.user_factors")
def guide_implicit() -> Example:
    data = toy()
    task, model = trained(data)
    vectors = model.factors()

    class Fitted:  # what implicit's models hold: arrays, Fortran-ordered now and then
        user_factors = np.asfortranarray(vectors.queries.numpy().astype(np.float64))
        item_factors = vectors.items.numpy()

    yield {"model": Fitted(), "data": data}
    teacher = kdrs.FileTeacher("implicit.safetensors", task, dataset=data)
    assert ndcg(data, teacher) == pytest.approx(ndcg(data, vectors))


def served(path: str = "student.safetensors") -> kdrs.Dataset:
    data = toy_dataset(400, 200, candidates=None)
    data.save("datasets/toy")
    run_directory("runs/teacher", "datasets/toy")
    kdrs.export("runs/teacher", path, seen=True)
    return data


@example("docs/serving.md", "found.to_polars()")
def serving_first_lines() -> Example:
    data = served()
    names = yield {}
    found = names["found"]
    assert found.users.tolist() == ["42", "7"]
    assert found.counts.tolist() == [10, 10]
    for row, items in zip(data.users.index(found.users), found.items, strict=True):
        assert not set(data.items.index(items)) & set(data.train.row(row))


@example("docs/serving.md", "histories=[[")
def serving_new_users() -> Example:
    served()
    names = yield {}
    ids, scores = zip(*names["best"], strict=True)
    assert len(ids) == 5
    assert not {"50", "181", "174"} & set(ids)
    assert list(scores) == sorted(scores, reverse=True)


@example("docs/search.md", "kdrs.sweep(")
def searched() -> Example:
    toy().save("toy")
    run = "device = 'cpu'\n[data]\npath = 'toy'\n[model]\nname = 'bpr'\ndim = 4\n[train]\nepochs = 2\n"
    term = "[[distill]]\nmethod = 'cd'\nteacher = 'teacher'\npool = 40\nitems = 20\n"
    run_command(
        "train", "--data", "toy", "--model", "bpr", "--dim", 8, "--epochs", 2, "--device", "cpu", "--out", "teacher"
    )
    Path("study.toml").write_text(f"{run}{term}[sweep]\ntrials = 2\n[sweep.space]\n'train.lr' = [0.01, 0.02]\n")
    names = yield {}
    assert [trial.error for trial in names["found"].trials["cd"]] == [None, None]
    assert names["printed"].startswith("{'train.lr': ")


class Frame:
    """Of an engine, as far as the page asks: what is called, and with what."""

    def __init__(self) -> None:
        self.calls: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Frame:
            self.calls[name] = (given, named)
            return self

        return self if name in ("read", "write", "data") else call


@example("docs/scale.md", "map_batches")
def scale_ray() -> Example:
    """With a stand-in: a cluster of two workers is in test_batches.py."""
    data, frame = served(), Frame()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", frame)  # type: ignore[arg-type]
        yield {"path": Path("student.safetensors").absolute()}
    (made,), options = frame.calls["map_batches"]
    found = made(*options["fn_constructor_args"])({"user": list(data.users)[:3]})
    assert len(found["item"]) == 60
    assert set(options) == {"fn_constructor_args", "concurrency", "batch_size"}


@example("docs/scale.md", "mapInArrow")
def scale_spark() -> Example:
    """With a stand-in: batches of Arrow are in test_batches.py."""
    data, frame = served(), Frame()
    names = yield {"path": Path("student.safetensors").absolute(), "spark": frame}
    (function, schema), _ = frame.calls["mapInArrow"]
    assert function == names["lists"].arrow
    assert schema == kdrs.Recommend.SCHEMA
    assert len(names["lists"]({"user": list(data.users)[:3]})["item"]) == 60
