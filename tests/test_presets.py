"""Every preset, end to end on a small data set, and what the printed numbers of BD's notebook need."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import fails, ok
from conftest import toy_dataset
from kdrs.data import PRESETS as SPLITS
from kdrs.data import Dataset, Recipe, prepare
from kdrs.distillers import DISTILLERS
from kdrs.fitting.fit import fit
from kdrs.fitting.learner import Learner
from kdrs.models import BPR
from kdrs.runs.build import build_task
from kdrs.runs.config import PRESETS, resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute
from kdrs.runs.parts import ConfigError
from kdrs.training.pairs import PairTask
from kdrs.training.queries import Epoch
from kdrs.training.rows import UserTask

SOURCES = {
    "bd-cdae": "bd-notebook",
    "bd-mf": "bd-notebook",
    "hetcomp": "hetcomp",
    "rce-kd": "fr-811",
    "rce-kd-lightgcn": "fr-811",
    "rce-kd-lightgcn-mf": "fr-811",
    "rd-caser": "fr-caser",
    "unkd": "unkd",
}


@pytest.fixture(scope="module")
def users_dat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like citeulike-t's: a line a user, the count first, then ids in ascending order."""
    rng = np.random.default_rng(0)
    liked = rng.random((60, 220)) < np.where(np.arange(60)[:, None] % 4 == np.arange(220) % 4, 0.3, 0.03)
    path = tmp_path_factory.mktemp("source") / "users.dat"
    path.write_text("".join(f"{row.sum()} {' '.join(map(str, np.flatnonzero(row)))}\n" for row in liked))
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_end_to_end(users_dat, tmp_path, name):
    source = SOURCES.get(name, "loo-499")
    assert f"--preset {source}" in PRESETS[name].read_text()
    more = ("--candidates", 50) if source == "loo-499" else ()
    if source == "fr-caser":  # needs an order
        table = tmp_path / "clicks.csv"
        lines = [line.split()[1:] for line in users_dat.read_text().splitlines()]
        rows = [
            f"u{user},{item},{1_500_000_000 + 60 * place}"
            for user, items in enumerate(lines)
            for place, item in enumerate(items)
        ]
        table.write_text("\n".join(["user,item,time", *rows]))
        users_dat = table
    ok("data", "prepare", users_dat, "--preset", source, *more, "--out", tmp_path / "d")
    stated = tomllib.loads(PRESETS[name].read_text())
    short = ["--epochs", 2, "--set", f"data.path={tmp_path / 'd'}", "--device", "cpu"]
    for part in stated["teachers"]:
        short += ["--set", f"teachers.{part}.train.epochs=2"]
        if "stages_every" in stated["teachers"][part].get("train", {}):
            short += ["--set", f"teachers.{part}.train.stages_every=1"]
    for index, term in enumerate(stated["distill"]):  # fewer assistants, for time
        short += [
            part for key in ("chain", "assistants") if key in term for part in ("--set", f"distill.{index}.{key}=2")
        ]
    plan = ok("distill", name, *short, "--out", tmp_path / "run", "--dry-run", "--json").document
    chains = sum(2 for term in stated["distill"] if "chain" in term)
    assert len(plan["parts"]) == len(stated["teachers"]) + chains
    ok("distill", name, *short, "--out", tmp_path / "run", "-q")
    run = Run.open(tmp_path / "run")
    assert run.status()["status"] == "finished"
    for term in stated["distill"]:
        assert all(np.isfinite(row["losses"][term["method"]]) for row in run.rows())
        if term["method"] == "bd":  # the notebook prints both
            assert all(row["bd-teacher.test"].keys() == row["test"].keys() for row in run.rows())
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["parts"]["test"]
    assert all((tmp_path / f"run/parts/{part}/model.safetensors").is_file() for part in stated["teachers"])


# --- published values -------------------------------------------------------------------------------------------------

METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "bd": {"default_weight": 0.5, "teacher_weight": 0.5, "refresh": 10, "exp_sharpness": 1e-4, "tanh_sharpness": 1e-2},
    "cd": {
        "default_weight": 0.5, "guide": "student", "law": "linear", "items": 50, "pool": 3000, "temperature": 2.0, "shift": 0.0,
    },
    "cpd": {
        "pairwise_weight": 0.1, "listwise_weight": 1.0, "pairwise": "relu", "lists": "rank", "listed": 20,
        "list_temperature": 5.0, "list_pool": 500, "list_draw_temperature": 10.0, "experts": 5, "projector": "mean",
    },
    "dcd": {
        "published_weight": 1e-2, "ranking_weight": 1.0, "user_weight": 1.0, "item_weight": 1.0, "under": 100, "over": 100,
        "correction_pool": 500,
    },
    "de": {
        "default_weight": 1e-2, "experts": 30, "item_share": "half", "final_temperature": 1e-10, "schedule_epochs": 1000,
        "schedule_lag": 1,
    },
    "dgkd": {
        "default_weight": 1e-2, "default_chain": 8, "n_drop": 1, "drop_probability": None, "teacher_weight": 1.0,
        "assistant_weight": 1.0,
    },
    "freqd": {"default_weight": 0.5, "strength": 0.5, "neighbours": 5, "keep": 0.5, "experts": 5, "dropout": 0.2},
    "ftd": {"default_weight": 1e-3},
    "hetcomp": {
        "default_weight": 1.0, "overall_weight": 0.01, "fine_weight": 0.005, "target": 100, "states": 4, "alpha": 1.05,
        "every": 10,
    },
    "htd": {"default_weight": 1e-3, "groups": 30, "gamma": 0.5},
    "hyperkdma": {
        "default_weight": 1e-2, "experts": 30, "item_share": "half", "assistants": 8, "ta_dims": None, "gate": "per_entity",
        "ta_sum": "all", "teacher_weight": 1.0, "assistant_weight": 1.0, "anchor": 0.0,
    },
    "ir-rrd": {
        "default_weight": 1e-3, "interesting": 40, "uninteresting": 40, "temperature": 10.0, "pool": 500,
        "item_weight": 0.5, "interesting_users": 20, "uninteresting_users": 20, "user_temperature": 10.0, "user_pool": 500,
    },
    "mkd": {
        "default_weight": 0.5, "output_weight": 2e-3, "pairwise_weight": 0.1, "listwise_weight": 1.0, "neighbours": 5,
        "own_share": 0.5, "mixing": "soft", "top": 100, "rest": 200,
    },
    "nkd": {
        "default_weight": 0.5, "mixing": "soft", "own_share": 0.5, "neighbours": 5, "components": 150, "experts": 5,
        "dropout": 0.1,
    },
    "phr": {"default_weight": 1e-2, "enrich": "full", "hidden": "half", "item_share": "half"},
    "rce-kd": {"default_weight": 500.0, "top": 50, "sampled": 50, "pool": 200, "overlap_decay": 3.0, "temperature": 1.0},
    "rd": {
        "default_weight": 1.0, "items": 10, "temperature": 1.0, "sharpness": 0.1, "samples": 100, "warmup_epochs": 10,
        "weights": "normalised", "exclude": "seen", "unique_queries": False, "reduction": "base",
    },
    "rrd": {
        "published_weight": 1e-3, "interesting": 40, "uninteresting": 40, "temperature": 10.0, "pool": 500, "choice": "sampled",
        "clip": None,
    },
    "sld": {
        "default_weight": 1e-3, "top": 100, "rest": 200, "pool": 500, "draw_temperature": 10.0, "teacher_share": 0.5,
        "temperature": 1.0,
    },
    "takd": {"default_weight": 1e-2, "default_chain": 8, "experts": 30},
    "unkd": {"default_weight": 1.0, "groups": 4, "pairs": 30, "draw_temperature": 20.0, "group_power": 0.0, "pool": 200},
}  # fmt: skip
"""Defaults that sources state, of methods: the term's weight, the assistants trained first, and options."""

MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "bpr": {"init_std": 0.01},
    "caser": {
        "length": 5, "targets": 1, "vertical": 2, "horizontal": 16, "dropout": 0.5, "conv_activation": "identity",
        "activation": "sigmoid", "reduction": "mean",
        "train": {"epochs": 50, "batch_size": 512, "negatives": 3, "weight_decay": 1e-6, "every": 10, "lr": 1e-3},
    },
    "cdae": {"dropout": 0.5, "negatives": 5.0, "train": {"batch_size": 128, "lr": 2e-3, "weight_decay": 1e-3}},
    "cml": {
        "variant": "collmetric", "covariance": 0.1, "penalty": "squared",
        "train": {"negatives": 20, "layout": "rows", "optimizer": "adagrad", "lr": 0.1, "weight_decay": 0.0},
    },
    "lightgcn": {"layers": 3, "init_std": 0.1, "reg": 0.0, "reduction": "sum", "hidden": "propagated"},
    "lightgcn-ssm": {
        "layers": 2, "init_std": 0.01, "temperature": 0.1, "popularity": 0.05, "softmax_items": 1024, "reg": 0.0,
        "train": {"batch_size": 2048, "lr": 5e-3, "weight_decay": 0.0},
    },
    "neumf": {"layers": 1, "init_std": 0.01, "hidden": "mf"},
    "ngcf": {"adjacency": "row", "message_dropout": 0.1, "node_dropout": 0.1, "reg": 1e-5, "size": "total", "reduction": "sum"},
    "sgl": {
        "layers": 3, "augmentation": "edges", "ssl": 0.1, "drop": 0.1, "temperature": 0.2, "reg": 1e-4,
        "train": {"batch_size": 2048, "weight_decay": 0.0, "lr": 1e-3},
    },
}  # fmt: skip
"""Those of models, and of the training of each."""

TRAIN_DEFAULTS = {
    "epochs": 1000, "batch_size": 1024, "negatives": 1, "layout": "triples", "draws": "pairs", "optimizer": "adam", "lr": 1e-3,
    "weight_decay": 1e-3, "every": 1, "keep": "best", "leak_held_out": False,
}  # fmt: skip
"""Of the training of all others."""


@pytest.mark.parametrize("name", METHOD_DEFAULTS)
def test_a_methods_defaults_are_the_published_ones(name: str):
    """But for weights that were tuned, whose published values are kept beside them."""
    cls, expected = DISTILLERS[name], METHOD_DEFAULTS[name]
    config = cls.Config()
    assert {key: getattr(config if hasattr(config, key) else cls, key) for key in expected} == expected


@pytest.mark.parametrize("name", MODEL_DEFAULTS)
def test_a_models_defaults_are_the_published_ones(name: str):
    options = dict(MODEL_DEFAULTS[name])
    expected = {**TRAIN_DEFAULTS, **options.pop("train", {})}
    config = resolve({"data": {"path": "d"}, "model": {"name": name}})
    assert {key: config.model[key] for key in options} == options
    assert {key: getattr(config.train, key) for key in expected} == expected


def of(place: str, **values: Any) -> dict[str, Any]:
    return {f"{place}.{key}": value for key, value in values.items()}


def models(student: int, teacher: int, **options: Any) -> dict[str, Any]:
    """A student and its one teacher, of these sizes and otherwise alike."""
    return {**of("model", dim=student, **options), **of("teachers.teacher.model", dim=teacher, **options)}


def trained(**options: Any) -> dict[str, Any]:
    """Both trained alike."""
    return {**of("train", **options), **of("teachers.teacher.train", **options)}


def term(method: str, **options: Any) -> dict[str, Any]:
    return of("distill.0", method=method, **options)


CASER = {key: value for key, value in MODEL_DEFAULTS["caser"].items() if key != "train"}
LIGHTGCN = {"name": "lightgcn", "reduction": "sum", "hidden": "propagated"}
LOO = {
    **models(20, 200, name="bpr", init_std=0.01),
    **trained(lr=1e-3, weight_decay=1e-3, batch_size=1024, epochs=1000, negatives=1, keep="best"),
    "eval.protocol": "hyperkdma",
}
RRD = {"weight": 1e-3, "interesting": 40, "uninteresting": 40, "temperature": 10.0, "pool": 500, "choice": "sampled"}
HINT = {"weight": 1e-2, "item_share": "half"}
EXPERTS = {**HINT, "experts": 30, "schedule_epochs": 1000, "schedule_lag": 1}
HYPER = {**HINT, "assistants": 8, "gate": "per_entity", "ta_sum": "all", "teacher_weight": 1.0, "assistant_weight": 1.0}
RCE = {
    "top": 50, "pool": 200, "draw_temperature": 10.0, "counted": "all", "overlap": "sampled", "first": "student",
    "keep_seen": True, "unique_queries": False,
}  # fmt: skip
KDS = {**trained(lr=1e-3, batch_size=2048, epochs=1000, negatives=1), "eval.protocol": "kds"}
NOTEBOOK = {
    "start": "student",
    **{f"{place}train.{key}": value for place in ("", "teachers.teacher.", "teachers.student.")
       for key, value in {"batch_size": 128, "leak_held_out": True, "keep": "last"}.items()},
    **of("train", weight_decay=0.0, test_every_epoch=True),
    **of("teachers.teacher.train", weight_decay=1e-3, epochs=1000),
    "teachers.student.train.epochs": 1000,
    **term("bd", teacher=["teacher"], weight=0.5, teacher_weight=0.5, teacher_weight_decay=0.0, refresh=10),
    **of("distill.0", exp_sharpness=1e-4, direction="notebook", idle="skip"),
}  # fmt: skip
PARTS = {"mf": "bpr", "ml": "cml", "dl": "neumf", "gnn": "lightgcn", "ae": "multvae", "iae": "iae"}

PUBLISHED: dict[str, dict[str, Any]] = {
    "bd-cdae": {
        **NOTEBOOK,
        **models(5, 50, name="cdae", dropout=0.5, negatives=5.0),
        **of("teachers.student.model", name="cdae", dim=5),
        **trained(lr=2e-3),
        **of("teachers.student.train", lr=2e-3, weight_decay=1e-3),
        "train.epochs": 1001,
        "eval.protocol": "bd-cdae",
        **of("distill.0", student_temperature=2.0, teacher_temperature=2.0, tanh_sharpness=1e-4),
        **of("distill.0", draws=5, mask="multiply-sigmoid", negatives="own"),
    },
    "bd-mf": {
        **NOTEBOOK,
        **models(5, 50, name="bpr", init_std=1.0),
        **of("teachers.student.model", name="bpr", dim=5, init_std=1.0),
        **trained(lr=1e-3),
        **of("teachers.student.train", lr=1e-3, weight_decay=0.0),
        "train.epochs": 101,
        "eval.protocol": "bd",
        **of("distill.0", student_temperature=5.0, teacher_temperature=5.0, tanh_sharpness=1e-2),
        **of("distill.0", mask="multiply", negatives="shared"),
    },
    "de-rrd": {**LOO, "eval.protocol": "loo-499", **term("de", **EXPERTS), **of("distill.1", method="rrd", **RRD)},
    "dgkd": {**LOO, **term("dgkd", hint="de", chain=8, n_drop=1, **EXPERTS)},
    "hetcomp": {
        **of("model", name="bpr", dim=6, init_std=0.01),
        **of("train", lr=1e-3, weight_decay=1e-5, batch_size=1024, epochs=1000, every=10, every_from=0, patience=5),
        "train.select": ("recall@50",),
        "eval.protocol": "hetcomp",
        **{f"teachers.{part}.model.name": name for part, name in PARTS.items()},
        **{f"teachers.{part}.model.dim": 128 if part == "iae" else 64 for part in PARTS},
        **{f"teachers.{part}.train.stages_every": 10 for part in PARTS},
        **{f"teachers.{part}.train.batch_size": 512 if part in ("ae", "iae") else 1024 for part in PARTS},
        "teachers.ml.model.variant": "concf",
        **term("hetcomp", teacher=list(PARTS), weight=1.0, target=100, states=4, every=10, alpha=1.05),
        **of("distill.0", dkc_gain="position", advance_if_receding=True, fine="released", stage="rounded"),
        **of("distill.0", overall_weight=0.01, fine_weight=0.005, observed_items=10, base=False),
        "distill.0.restart_patience": False,
    },
    "htd": {
        **LOO,
        **trained(epochs=101, patience=101, select=("recall@50",)),
        "train.test_every_epoch": True,
        **of("eval", protocol="default", ks=(50,)),
        **term("htd", weight=1e-3, groups=30, gamma=0.5, pairs="positive", group_level="second"),
        **of("distill.0", schedule_epochs=100, schedule_lag=1),
    },
    "hyperkdma": {**LOO, **term("hyperkdma", hint="de", **EXPERTS | HYPER)},
    "hyperkdma-lightgcn": {
        **LOO,
        **models(20, 200, **LIGHTGCN, layers=1, init_std=0.01, reg=2e-4),
        **term("hyperkdma", hint="de", **EXPERTS | HYPER),
    },
    "hyperkdma-neumf": {
        **LOO,
        **models(25, 250, name="neumf", layers=1, init_std=0.01, hidden="mf"),
        **term("hyperkdma", hint="de", **EXPERTS | HYPER),
    },
    "hyperkdma-phr": {**LOO, **term("hyperkdma", hint="phr", enrich="none", hidden="half", **HYPER)},
    "ir-rrd": {
        **LOO,
        **term("ir-rrd", **RRD, item_weight=0.5, interesting_users=20, uninteresting_users=20),
        **of("distill.0", user_temperature=10.0, user_pool=500),
    },
    "phr": {**LOO, **term("phr", enrich="none", hidden="full", **HINT)},
    "rce-kd": {
        **KDS,
        **models(20, 400, name="bpr", init_std=0.01),
        "train.weight_decay": 1e-5,
        "teachers.teacher.train.weight_decay": 1e-4,
        **term("rce-kd", **RCE, weight=500.0, temperature=1.0, sampled=50, overlap_decay=3.0),
    },
    "rce-kd-lightgcn": {
        **KDS,
        **models(20, 2000, **LIGHTGCN, layers=3, init_std=0.1, reg=0.0),
        **trained(weight_decay=1e-5),
        **term("rce-kd", **RCE, weight=500.0, temperature=1.0, sampled=100, overlap_decay=10.0),
    },
    "rce-kd-lightgcn-mf": {
        **KDS,
        **of("model", name="bpr", dim=20, init_std=0.01),
        **of("teachers.teacher.model", dim=2000, **LIGHTGCN, layers=3, init_std=0.1, reg=0.0),
        "train.weight_decay": 1e-7,
        "teachers.teacher.train.weight_decay": 1e-5,
        **term("rce-kd", **RCE, weight=100.0, temperature=10.0, sampled=50, overlap_decay=5.0),
    },
    "rd-caser": {
        **models(50, 100, name="caser", **CASER),
        **trained(**MODEL_DEFAULTS["caser"]["train"], keep="last"),
        "eval.protocol": "caser",
        **term("rd", weight=1.0, items=10, temperature=1.0, sharpness=0.1, samples=100, warmup_epochs=10),
        **of("distill.0", weights="product", exclude="target-only", unique_queries=False, reduction="base"),
    },
    "takd": {**LOO, **term("takd", hint="de", chain=8, **EXPERTS)},
    "unkd": {
        **models(10, 100, name="ngcf", layers=0, node_dropout=0.0, message_dropout=0.0, reg=1e-3, reduction="mean"),
        **trained(lr=1e-3, weight_decay=0.0, batch_size=2048, epochs=1000, every=5, patience=20, select=("ndcg@20",)),
        **of("eval", protocol="default", ks=(10, 20)),
        **term("unkd", weight=1.0, groups=4, pairs=30, reduction="mean", draw_temperature=20.0),
    },
}
"""What each preset needs to reproduce its printed numbers, defaults included."""


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_holds_what_its_printed_numbers_need(name: str):
    values = resolve(tomllib.loads(PRESETS[name].read_text())).to_dict()

    def found(key: str) -> Any:
        place: Any = values
        for part in key.split("."):
            place = place[int(part) if isinstance(place, list) else part]
        return place

    assert {key: found(key) for key in PUBLISHED[name]} == PUBLISHED[name]
    assert len(values["distill"]) == (2 if name == "de-rrd" else 1)


def test_fr_caser_tests_on_the_last_fifth_of_each_user(tmp_path):
    """In the order of the rows, nothing for validation."""
    assert SPLITS["fr-caser"] == {"split": "ordered", "fractions": (0.8, 0.0, 0.2)}
    items = {"a": [7, 3, 9, 1, 5, 8, 2, 6, 4, 0], "b": [4, 8, 0, 2, 6]}
    source = tmp_path / "clicks.csv"
    source.write_text("\n".join(["user,item", *(f"{user},{item}" for user, own in items.items() for item in own)]))
    data = prepare(source, Recipe(**SPLITS["fr-caser"]))
    assert data.valid.n_pairs == 0
    for user, own in items.items():
        row = data.users.index([user])[0]
        held = len(own) // 5
        assert {data.items[item] for item in data.test.row(row)} == {str(item) for item in own[-held:]}
        assert data.train.row_degrees[row] == len(own) - held


# --- BD's notebook ----------------------------------------------------------------------------------------------------


def test_counts_are_items_if_they_are_to_be_kept(users_dat, tmp_path):
    plain = ok("data", "prepare", users_dat, "--preset", "bd", "--dry-run", "--json").document
    kept = ok("data", "prepare", users_dat, "--preset", "bd-notebook", "--out", tmp_path / "d", "--json").document
    counts = {line.split()[0] for line in users_dat.read_text().splitlines()}
    items = {item for line in users_dat.read_text().splitlines() for item in line.split()[1:]}
    assert plain["items"] == len(items)
    assert kept["items"] == len(items | counts)
    own = ok("data", "prepare", users_dat, "--keep-counts", "--dry-run", "--json").document
    assert own["items"] == len(items | counts)
    dataset = Dataset.load(tmp_path / "d")
    for user, line in enumerate(users_dat.read_text().splitlines()):
        last, one_before = (dataset.items[part.row(user)[0]] for part in (dataset.valid, dataset.test))
        assert [one_before, last] == line.split()[-2:]
    table = tmp_path / "clicks.csv"
    table.write_text("user,item\n" + "".join(f"u{n % 5},i{n}\n" for n in range(30)))
    assert "only counted-lists" in fails(2, "data", "prepare", table, "--keep-counts", "--dry-run")


@pytest.mark.parametrize("kind", [PairTask, UserTask])
def test_negatives_leave_out_held_out_items_only_if_told_to(kind):
    toy = toy_dataset()
    held = toy.full.to_csr().toarray() - toy.train.to_csr().toarray() > 0
    options = {"batch_size": 64} if kind is PairTask else {"batch_size": 16, "ratio": 5.0}
    for never, found in ((None, True), (toy.full, False)):
        task = kind(toy.train, never=never, **options)
        hits = 0
        for index in range(5):
            for batch in task.draw(Epoch(index, 0, 9)):
                users = batch.queries.users[batch.negative_rows].numpy()
                hits += held[users, batch.negatives.flatten().numpy()].sum()
        assert bool(hits) is found
        assert task.seen is toy.train  # lists and evaluation still leave out training items alone


def test_the_leak_is_an_option_of_training(toy_path, tmp_path):
    values = {
        "data": {"path": str(toy_path)}, "model": {"name": "bpr"}, "train": {"leak_held_out": True},
        "teachers": {"big": {"model": {"name": "bpr"}}},
    }  # fmt: skip
    config = resolve(values)
    assert config.teachers["big"].train.leak_held_out
    dataset = Dataset.load(toy_path)
    for model, fits in (("bpr", True), ("cdae", True), ("multvae", False), ("iae", False), ("caser", False)):
        one = resolve({**values, "model": {"name": model}})
        if fits:
            assert build_task(one, dataset)._never is not dataset.train
        else:
            with pytest.raises(ConfigError, match="leak_held_out"):
                build_task(one, dataset)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_weights_kept_are_the_best_or_the_last(keep):
    toy = toy_dataset()
    task = PairTask(toy.train, batch_size=64)
    learner = Learner(BPR(BPR.Config(dim=4), task), task, lr=0.05)
    history, values = [], iter([0.2, 0.5, 0.1, 0.3])

    def evaluate(model):
        history.append(model.users.weight.detach().clone())
        return {"valid": {"ndcg@10": next(values)}}

    outcome = fit(learner, task, epochs=4, evaluate=evaluate, keep=keep)
    wanted = 1 if keep == "best" else 3
    assert outcome.best_epoch == wanted
    assert (learner.model.users.weight == history[wanted]).all()
    assert outcome.best["ndcg@10"] == (1, 0.5)


def test_the_last_weights_are_kept_over_an_interruption(toy_path, tmp_path):
    values = {
        "data": {"path": str(toy_path)}, "model": {"name": "bpr", "dim": 4}, "device": "cpu",
        "train": {"epochs": 6, "batch_size": 64, "lr": 0.1, "keep": "last", "checkpoint_seconds": 0},
    }  # fmt: skip
    execute(resolve(values), tmp_path / "whole")
    rows: list = []
    execute(resolve(values), tmp_path / "cut", on_epoch=rows.append, should_stop=lambda: len(rows) == 3)
    execute(resolve(values), tmp_path / "cut", resume=True)
    assert Run.open(tmp_path / "cut").status()["best_epoch"] == 5
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert first == second


def test_a_run_that_is_older_than_an_option_goes_on(toy_path, tmp_path):
    """Options that its config.toml does not know have their defaults."""
    values = {
        "data": {"path": str(toy_path)}, "model": {"name": "bpr", "dim": 4}, "device": "cpu",
        "train": {"epochs": 2, "batch_size": 64},
    }  # fmt: skip
    execute(resolve(values), tmp_path / "run")
    head = tmp_path / "run/config.toml"
    lines = [line for line in head.read_text().splitlines() if not line.startswith(("leak_held_out", "keep"))]
    head.write_text("\n".join(lines))
    ok("resume", tmp_path / "run", "--epochs", 3, "-q")
    assert Run.open(tmp_path / "run").status()["epochs"] == 3
