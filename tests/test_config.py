"""Run files: every form of a run resolves to the same run, and what is wrong is named."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrs.distillers import DISTILLERS, RRD
from kdrs.errors import ConfigError
from kdrs.models import MODELS
from kdrs.runs.config import PRESETS, RunConfig, assign, read_run_file, resolve


def small(**groups: Any) -> dict[str, Any]:
    return {"data": {"path": "d"}, "model": {"name": "bpr"}, **groups}


# --- there and back -------------------------------------------------------------------------------------------------

text = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00", exclude_categories=("Cs",)), min_size=1, max_size=12
)
positive = st.floats(1e-8, 1e3, allow_nan=False)
count = st.integers(1, 10**6)
train = st.fixed_dictionaries(
    {},
    optional={
        "epochs": count, "batch_size": count, "negatives": count, "layout": st.sampled_from(["triples", "rows"]),
        "lr": positive, "weight_decay": st.just(0.0) | positive, "optimizer": st.sampled_from(["adam", "lazy-adam", "adagrad"]),
        "seed": st.integers(0, 2**31 - 1), "patience": count, "every": count, "test_every_epoch": st.booleans(),
        "select": st.lists(st.sampled_from(["ndcg@10", "hit@5"]), min_size=1, max_size=2, unique=True),
        "stages": st.lists(st.integers(0, 99), max_size=3), "checkpoint_seconds": st.just(0) | positive,
        "average": st.floats(0, 1, exclude_max=True),
    },
)  # fmt: skip
terms = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"method": st.just("rrd"), "teacher": text}, optional={"pool": count, "weight": positive}
        ),
        st.fixed_dictionaries({"method": st.just("de"), "teacher": st.lists(text, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"method": st.just("cd"), "teacher": text, "temperature": positive}),
    ),
    max_size=3,
    unique_by=lambda term: term["method"],
)
runs = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries({"path": text}),
        "model": st.fixed_dictionaries({"name": st.sampled_from(sorted(MODELS))}, optional={"dim": count}),
    },
    optional={
        "train": train,
        "eval": st.fixed_dictionaries({}, optional={"ks": st.lists(count, min_size=1, max_size=3), "protocol": text}),
        "distill": terms,
        "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:1"]),
        "threads": st.integers(1, 1024),
    },
)


@given(runs)
@settings(max_examples=60)
def test_a_resolved_run_written_as_toml_is_the_same_run(values):
    config = resolve(values)
    again = resolve(tomllib.loads(tomli_w.dumps(config.to_dict())))
    assert again == config
    assert again.to_dict() == config.to_dict()
    for name, value in values.get("train", {}).items():  # and nothing that was stated got lost on the way
        found = getattr(config.train, name)
        assert (list(found) if isinstance(found, tuple) else found) == value
    for term, given_term in zip(config.distill, values.get("distill", []), strict=True):
        stated = {key: value for key, value in given_term.items() if key not in ("method", "teacher", "weight", "name")}
        assert {key: term.options[key] for key in stated} == stated


@given(runs)
@settings(max_examples=30)
def test_resolving_changes_nothing_that_it_was_given(values):
    copy = tomllib.loads(tomli_w.dumps(values))
    resolve(values)
    assert values == copy


leaves = (
    st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.floats(allow_nan=False)
    | text
    | st.lists(st.integers(0, 9), max_size=3)
)


@given(st.lists(st.sampled_from(["a", "b", "c-d", "e_1"]), min_size=1, max_size=4), leaves)
@settings(max_examples=80)
def test_any_toml_value_can_be_set(keys, value):
    values: dict[str, Any] = {"kept": 1}
    line = tomli_w.dumps({"value": value}).strip().partition("=")[2]
    assign(values, f"{'.'.join(keys)}={line}" if "\n" not in line else f"{'.'.join(keys)}={tomllib_line(value)}")
    place: Any = values
    for key in keys:
        place = place[key]
    assert place == value
    assert type(place) is type(value)
    assert values["kept"] == 1


def tomllib_line(value: Any) -> str:
    """A list on one line; tomli_w spreads them."""
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else repr(value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("k=1", 1),
        ("k = 1e-3", 1e-3),
        ("k=runs/teacher", "runs/teacher"),
        ('k="7"', "7"),
        ("k=a=b", "a=b"),
        ("k=[1, 2]", [1, 2]),
        ("k=", ""),
        ("k=1\nother = 2", "1\nother = 2"),
        ("k=true", True),
    ],
)
def test_set_reads_toml_or_else_text(setting, value):
    values: dict[str, Any] = {}
    assign(values, setting)
    assert values == {"k": value}


def test_set_reaches_into_lists():
    values = small(
        distill=[{"method": "de", "teacher": "t"}, {"method": "rrd", "teacher": "t"}], train={"stages": [1, 2]}
    )
    assign(values, "distill.1.pool=7")
    assign(values, "distill.0.weight=0.5")
    assign(values, "train.stages.1=9")
    config = resolve(values)
    assert [term.weight for term in config.distill] == [0.5, RRD.default_weight]
    assert config.distill[1].options["pool"] == 7
    assert config.train.stages == (1, 9)


@pytest.mark.parametrize(
    ("setting", "cause", "remedy"),
    [
        ("train.lr", "--set train.lr", "write it as"),
        ("=1", "--set =1", "write it as"),
        ("train..lr=1", "--set train..lr=1", "write it as"),
        ("distill.2.pool=7", "there is no entry 2", "allowed: 0 to 1"),
        ("distill.x.pool=7", "there is no entry x", "allowed: 0 to 1"),
        ("train.stages.0=7", "there is no entry 0", "it has no entries"),
        ("device.x=7", "device is a value and has no keys", None),
    ],
)
def test_settings_that_cannot_be(setting, cause, remedy):
    values = small(distill=[{}, {}], train={"stages": []}, device="cpu")
    with pytest.raises(ConfigError) as error:
        assign(values, setting)
    assert cause in error.value.cause
    assert remedy is None or remedy in error.value.remedy


# --- defaults and refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"dim": -1}, "dim is -1\nallowed: greater than or equal to 1"),
        ({"dims": 3}, "unknown key 'dims'\ndid you mean 'dim'?"),
        ({"dim": "x"}, "dim is x\nallowed: a valid integer"),
    ],
)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_options_that_are_given_by_hand_are_told_alike(model, values, told):
    with pytest.raises(ConfigError) as caught:
        MODELS[model].Config(**values)
    assert str(caught.value).startswith(told)
    assert caught.value.__suppress_context__


def test_every_default_is_filled_in():
    config = resolve(small(distill=[{"method": name, "teacher": "t"} for name in DISTILLERS]))
    assert config.train.lr == 1e-3
    assert config.model == {
        "name": "bpr",
        "dim": 64,
        "bits": 32,
        "users": "table",
        "encoder": "best",
        "history_dropout": 0.0,
        "negative_reduction": "sum",
        "init_std": 0.01,
    }
    for term in config.distill:
        cls = DISTILLERS[term.method]
        assert term.options == cls.Config().model_dump(exclude_none=True)
        assert (term.name, term.weight, term.teacher) == (term.method, cls.default_weight, ("t",))


def test_a_resolved_run_cannot_be_changed():
    config = resolve(small())
    with pytest.raises(ValueError, match="frozen"):
        config.train.lr = 2.0


@pytest.mark.parametrize(
    ("values", "cause", "remedy"),
    [
        (small(trian={}), "unknown key 'trian'", "did you mean 'train'?"),
        (small(train={"epoch": 3}), "unknown key 'train.epoch'", "did you mean 'epochs'?"),
        (small(eval={"k": [5]}), "unknown key 'eval.k'", "allowed: ks, protocol"),
        (small(model={"name": "bpr", "dims": 3}), "unknown key 'model.dims'", "did you mean 'dim'?"),
        (small(model={"name": "bqr"}), "unknown model 'bqr'", "did you mean 'bpr'?"),
        (small(model={"name": "light-gcn"}), "unknown model 'light-gcn'", "did you mean 'lightgcn'?"),
        (small(model="bpr"), "model.name is missing", "kdrs models"),
        (small(model={"dim": 3}), "model.name is missing", "kdrs models"),
        ({"model": {"name": "bpr"}}, "'data' is missing", None),
        (small(data={}), "'data.path' is missing", None),
        (small(data={"path": 3}), "data.path is 3", "a valid string"),
        (small(data=3), "data is 3", "write it as a table: [data]"),
        (small(train=3), "train is 3", "write it as a table: [train]"),
        (small(train={"epochs": True}), "train.epochs is True", "a valid integer"),
        (small(train={"epochs": "3"}), "train.epochs is 3", "a valid integer"),
        (small(train={"epochs": 3.5}), "train.epochs is 3.5", "a valid integer"),
        (small(train={"epochs": 0}), "train.epochs is 0", "greater than or equal to 1"),
        (small(train={"lr": "fast"}), "train.lr is fast", "a valid number"),
        (small(train={"lr": float("nan")}), "train.lr is nan", "a finite number"),
        (small(train={"lr": float("inf")}), "train.lr is inf", "a finite number"),
        (small(train={"lr": -1.0}), "train.lr is -1.0", "greater than 0"),
        (small(train={"seed": 2**31}), "train.seed is 2147483648", "less than 2147483648"),
        (small(train={"layout": "triple"}), "train.layout is triple", "'triples' or 'rows'"),
        (small(train={"stages": [1, "x"]}), "train.stages.1 is x", "a valid integer"),
        (small(train={"stages": 3}), "train.stages is 3", "a list"),
        (small(device="gpu"), "device is gpu", "auto, cpu, cuda, cuda:N"),
        (small(device="cpu:1"), "device is cpu:1", "auto, cpu, cuda, cuda:N"),
        (small(threads=0), "threads is 0", "greater than or equal to 1"),
        (small(distill={"method": "rrd"}), "distill must be a list of tables", "[[distill]]"),
        (small(distill=["rrd"]), "distill must be a list of tables", "[[distill]]"),
        (small(distill=[{"teacher": "t"}]), "distill.0.method is missing", "kdrs methods"),
        (small(distill=[{"method": "rrd"}]), "distill.0.teacher is missing", "run directory"),
        (small(distill=[{"method": "rrdd", "teacher": "t"}]), "unknown method 'rrdd'", "did you mean 'rrd'?"),
        (small(distill=[{"method": "rrd", "teacher": "t", "pol": 3}]), "unknown key 'distill.0.pol'", "did you mean 'pool'?"),
        (small(distill=[{"method": "rrd", "teacher": "t", "wieght": 3}]), "unknown key 'distill.0.wieght'", "'weight'?"),
        (small(distill=[{"method": "rrd", "teacher": "t", "pool": 0}]), "distill.0.pool is 0", "equal to 1"),
        (small(distill=[{"method": "rrd", "teacher": "t", "weight": -1.0}]), "distill.0.weight is -1.0", "equal to 0"),
        (small(distill=[{"method": "rrd", "teacher": "t"}] * 2), "terms are named ['rrd', 'rrd']", "distill.1.name=rrd-2"),
        (small(distill=[{"method": "rrd", "teacher": ["t", "t"]}]), "distill.0.teacher is ['t', 't']", "each teacher once"),
        (small(train={"negatives": 2**31}), "train.negatives is 2147483648", "at most 2147483647"),
        (small(train={"stages": [1, -1]}), "train.stages.1 is -1", "greater than or equal to 0"),
        (small(threads=5000), "threads is 5000", "less than or equal to 1024"),
        (small(distill=[{"method": "rrd", "teacher": "t", "pool": 2**40}]), "distill.0.pool is 1099511627776", "at most"),
        (small(distill=[{"method": "takd", "teacher": "t", "chain": -1}]), "distill.0.chain is -1", "equal to 0"),
        (
            small(distill=[{"method": "hyperkdma", "teacher": "t", "ta_dims": []}]),
            "distill.0.ta_dims is []",
            "a list of 1 or more",
        ),
        (small(train={"lr": "x" * 500}), "train.lr is xxx", "a valid number"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(values, cause, remedy):
    with pytest.raises(ConfigError) as error:
        resolve(values)
    assert cause in error.value.cause
    assert len(error.value.cause) < 150
    assert remedy is None or remedy in error.value.remedy


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[train\nlr = 1", r"is no TOML: .*line 1"),
        (b"[train]\nlr = 1\nlr = 2\n[eval]", r"is no TOML: .*line 3"),
        (b"[train]\nlr = fast", r"is no TOML: .*line 2"),
        (b"\xff\xfe", "is no TOML: .*UTF-8"),
        (None, "cannot read .*No such file"),
    ],
)
def test_files_that_are_no_run_files(tmp_path, content, message):
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_run_file(file)


EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_resolve(path):
    values = read_run_file(path)
    assert ("sweep" in values) == (path.name == "sweep.toml")
    config = resolve({key: value for key, value in values.items() if key != "sweep"})
    assert isinstance(config, RunConfig)
    assert bool(config.distill) == (path.name != "teacher.toml")


def test_there_are_examples():
    assert {"teacher.toml", "rrd.toml", "de-rrd.toml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_complete_run_file(name):
    config = resolve(read_run_file(Path(name)))
    assert config.distill
    assert config.eval.protocol != "auto"
    assert all(teacher in config.teachers for term in config.distill for teacher in term.teacher)
    assert config.start is None or config.start in config.teachers


def test_a_name_that_is_neither_file_nor_preset():
    with pytest.raises(ConfigError, match="de-rrd"):
        read_run_file(Path("de-rdr"))
