"""A dry run: the counts of the run itself, what the run refuses, and neither tables nor lists."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import ok
from conftest import toy_dataset
from kdrs.core import ranking
from kdrs.data import Dataset, Interactions
from kdrs.distillers import DISTILLERS
from kdrs.distillers.base import Distiller
from kdrs.errors import KdrsError, MachineError
from kdrs.fitting.learner import Learner
from kdrs.models import MODELS
from kdrs.runs.build import build_evaluator, build_task
from kdrs.runs.config import resolve
from kdrs.runs.directory import Run
from kdrs.runs.execute import execute, plan, rehearse
from kdrs.teachers.base import Scored
from kdrs.teachers.file import FileTeacher
from kdrs.teachers.model import ModelTeacher
from kdrs.training.outline import OUTLINE
from test_contract import SMALL, SMALL_MODELS
from test_parts import values

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(no better than|states no|of training data|was still rising|times what)"
)

OTHER_FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "phr as the hint": ("takd", {"hint": "phr"}),
    "phr of a full width": ("phr", {"hidden": "full", "enrich": "batch"}),
    "a hypernetwork of stated sizes": ("hyperkdma", {"ta_dims": [12, 9], "experts": 2, "anchor": 0.1}),
    "cpd's experts": ("cpd", {**SMALL["cpd"], "projector": "experts", "experts": 3}),
    "cpd asks the student": ("cpd", {**SMALL["cpd"], "guide": "student", "refresh": 3}),
    "mkd alone": ("mkd", {**SMALL["mkd"], "output_weight": 0.0}),
    "rce-kd keeps its sets": ("rce-kd", {**SMALL["rce-kd"], "refresh": 3}),
    "dcd keeps its corrections": ("dcd", {**SMALL["dcd"], "refresh": 3}),
    "cd draws from all": ("cd", {"items": 5, "law": "uniform"}),
}


def described(data: Path, method: str, teacher: Path | str, options: dict[str, Any], **changes: Any) -> dict[str, Any]:
    found = values(data, distill=[{"method": method, "teacher": str(teacher), **options}], **changes)
    if DISTILLERS[method].chain is not None:
        found["distill"][0]["chain"] = 0
    return found


@pytest.fixture(scope="module")
def trained(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 16 dimensions with a trajectory, and student's models of 4."""
    folder = tmp_path_factory.mktemp("runs")
    train = {"epochs": 4, "batch_size": 64, "stages_every": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        execute(resolve(values(toy_path, model={"name": "bpr", "dim": 16}, train=train)), folder / "teacher")
        for length in (5, 8):
            model = {"name": "caser", "dim": 4, "vertical": 2, "horizontal": 3, "length": length}
            execute(resolve(values(toy_path, model=model, train={"epochs": 1})), folder / f"caser-{length}")
    generator = torch.Generator().manual_seed(0)
    lists = torch.stack([torch.randperm(80, generator=generator)[:12] for _ in range(50)]).int()
    save_file({"topk": lists}, folder / "lists.safetensors", metadata={"kdrs": "teacher/1"})
    factors = {"users": torch.randn(50, 16, generator=generator), "items": torch.randn(80, 16, generator=generator)}
    save_file(factors, folder / "factors.safetensors", metadata={"kdrs": "teacher/1"})
    return folder


def counted(learners: list[Learner]) -> tuple[int, int, int]:
    trained = sum(p.numel() for learner in learners for p in learner.optimizer.parameters.values())
    return sum(p.numel() for p in learners[0].model.parameters()), trained, learners[0].task.n_batches


def agrees(config: dict[str, Any], out: Path) -> None:
    """The plan's counts are those of what is built for good."""
    resolved = resolve(config)
    found = plan(resolved, out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = Dataset.load(resolved.data.path)
        learners = rehearse(resolved, out, data, build_evaluator(resolved, data))
    assert (found["parameters"], found["trained_parameters"], found["batches_per_epoch"]) == counted(learners)
    assert found["device"] == str(learners[0].task.device)
    assert not out.exists()


CASES = {**{name: (name, SMALL[name]) for name in DISTILLERS}, **OTHER_FORMS}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_counts_what_a_method_has(toy_path, trained, tmp_path, name):
    method, options = CASES[name]
    agrees(described(toy_path, method, trained / "teacher", options), tmp_path / "run")
    if not DISTILLERS[method].mutual and method != "hetcomp":
        agrees(described(toy_path, method, trained / "factors.safetensors", options), tmp_path / "run")


@pytest.mark.parametrize("optimizer", ["adam", "lazy-adam", "adagrad"])
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_counts_what_a_model_has(toy_path, tmp_path, name, optimizer):
    config = values(toy_path, model={"name": name, "dim": 4, **SMALL_MODELS.get(name, {})})
    config["train"]["optimizer"] = optimizer
    agrees(config, tmp_path / "run")


@pytest.mark.parametrize("model", ["lightgcn", "caser", "multvae", "iae", "cml"])
@pytest.mark.parametrize("method", ["de", "rrd", "bd", "phr", "dgkd"])
def test_a_plan_counts_teachers_that_are_still_to_be_trained(toy_path, tmp_path, method, model):
    part = {"model": {"name": model, "dim": 10, **SMALL_MODELS.get(model, {})}, "train": {"epochs": 2}}
    own = {"name": model, "dim": 4, **SMALL_MODELS.get(model, {})}
    config = described(toy_path, method, "big", SMALL[method], model=own, teachers={"big": part})
    agrees(config, tmp_path / "run")


def test_a_plan_is_what_the_run_then_says_of_itself(toy_path, trained, tmp_path):
    config = resolve(described(toy_path, "hyperkdma", trained / "teacher", SMALL["hyperkdma"]))
    told: list[dict[str, Any]] = []
    found = plan(config, tmp_path / "run")
    execute(config, tmp_path / "run", on_start=told.append)
    same = ("users", "items", "parameters", "trained_parameters", "device")
    assert {key: found[key] for key in same} == {key: told[0][key] for key in same}
    assert found["training_pairs"] == told[0]["pairs"]
    with Run.open(tmp_path / "run") as run:
        checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    moments = [tensor for name, tensor in checkpoint.state.items() if name.endswith("/exp_avg")]
    assert sum(tensor.numel() for tensor in moments) == found["trained_parameters"]


# --- what it leaves alone -----------------------------------------------------------------------------------------------


def forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("a dry run ranks nothing and asks nobody for scores")


@pytest.fixture
def nothing_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("topk", "topk_scores", "metrics"):
        monkeypatch.setattr(ranking, name, forbidden)
    for cls in (Scored, ModelTeacher, FileTeacher):
        for name in ("topk", "topk_blocks", "top_users", "view", "factors", "score_block", "score_pairs"):
            if name in vars(cls):
                monkeypatch.setattr(cls, name, forbidden)
    for cls in DISTILLERS.values():
        monkeypatch.setattr(cls, "draw", forbidden)


@pytest.mark.usefixtures("nothing_ranks")
@pytest.mark.parametrize("name", CASES)
def test_a_plan_asks_no_teacher_for_lists(toy_path, trained, tmp_path, name):
    method, options = CASES[name]
    plan(resolve(described(toy_path, method, trained / "teacher", options)), tmp_path / "run")


def test_a_run_does_ask(toy_path, trained, tmp_path, nothing_ranks):
    with pytest.raises(AssertionError, match="ranks nothing"):
        execute(resolve(described(toy_path, "rrd", trained / "teacher", SMALL["rrd"])), tmp_path / "run")


def built(method: str, device: str) -> Distiller:
    data = toy_dataset()
    task = MODELS["bpr"].make_task(MODELS["bpr"].Config(), data.train, device=device)
    with torch.device(device):
        model = MODELS["bpr"](MODELS["bpr"].Config(dim=16), task)
        teacher = ModelTeacher(model, task, live=DISTILLERS[method].mutual)
        stages = {"states": 1} if method == "hetcomp" else {}
        cls = DISTILLERS[method]
        return cls(cls.Config(**{**SMALL[method], **stages}), [teacher], task, 4)


@pytest.mark.parametrize("method", DISTILLERS)
def test_an_outline_holds_nothing_as_long_as_the_data(method):
    """Its helpers have the shapes of the real ones, and no values; what else it holds is short."""
    real, outline = built(method, "cpu"), built(method, OUTLINE.type)
    assert outline.outlined
    shapes = [{name: tuple(p.shape) for name, p in own.named_parameters()} for own in (real, outline)]
    assert shapes[0] == shapes[1]
    assert all(parameter.is_meta for parameter in outline.parameters())
    for name, value in vars(outline).items():
        if isinstance(value, torch.Tensor):
            assert value.is_meta or value.numel() <= 50, name


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200,000 users and 100,000 items, of whom few have met."""
    users = torch.arange(30_000).repeat_interleave(3).numpy()
    items = (torch.arange(90_000) * 7 % 100_000).numpy()
    parts = [Interactions.from_pairs(users[at::3], items[at::3], 200_000, 100_000) for at in range(3)]
    data = Dataset.from_interactions(*parts, order=parts[0].indices, name="large")
    return data.save(tmp_path_factory.mktemp("data") / "large")


DIM = 100_000
"""Tables of 300,000 such vectors take 120 GB."""


def vast(data: Path, method: str, options: dict[str, Any], model: str = "bpr") -> dict[str, Any]:
    own = {"name": model, "dim": DIM}
    return described(data, method, "big", options, model=own, teachers={"big": {"model": {"name": "bpr", "dim": 64}}})


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rrd", {"pool": 5000}),
        ("cd", {}),
        ("nkd", {}),
        ("freqd", {}),
        ("rd", {}),
        ("ir-rrd", {}),
        ("rce-kd", {}),
        ("unkd", {}),
    ],
)
def test_a_plan_of_tables_that_fit_nowhere(large, tmp_path, monkeypatch, method, options):
    """It is answered without them where memory is not asked for, and refused for memory alone."""
    config = resolve(vast(large, method, options))
    monkeypatch.setattr("kdrs.runs.build.memory_limit", lambda: 8 << 30)
    with pytest.raises(MachineError, match=r"at least [0-9,.]+ GiB of memory"):
        plan(config, tmp_path / "run")
    monkeypatch.setattr("kdrs.runs.build.memory_limit", lambda: None)
    tracemalloc.start()
    try:
        found = plan(config, tmp_path / "run")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["parameters"] == 300_000 * DIM
    assert found["memory_bytes"] > 4 * 4 * 300_000 * DIM
    assert peak < 200 << 20  # the data set, its ids and the evaluator; lists of 5,000 for each user would be 4 GB


def test_what_is_refused_for_its_size_is_refused_before_the_run_too(large, tmp_path, monkeypatch):
    monkeypatch.setattr("kdrs.runs.build.memory_limit", lambda: 8 << 30)
    with pytest.raises(MachineError, match=r"lower model\.dim"):
        execute(resolve(values(large, model={"name": "bpr", "dim": DIM})), tmp_path / "run")
    # all tables of the run, not the items' alone
    config = resolve(values(large, model={"name": "bpr", "dim": 4000}))
    with pytest.raises(MachineError, match=r"lower model\.dim"):
        plan(config, tmp_path / "run")


# --- what it refuses ----------------------------------------------------------------------------------------------------


def unfinished(toy_path: Path, trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "teacher", tmp_path / "t")
    (tmp_path / "t/model.safetensors").unlink()
    return tmp_path / "t"


def of_other_data(toy_path: Path, trained: Path, tmp_path: Path) -> Path:
    other = toy_dataset(seed=5).save(tmp_path / "other")
    execute(resolve(values(other, train={"epochs": 1})), tmp_path / "t")
    return tmp_path / "t"


def of_other_sizes(toy_path: Path, trained: Path, tmp_path: Path) -> Path:
    """Vouched for, and of another size than config.toml says."""
    shutil.copytree(trained / "teacher", tmp_path / "t")
    for name, (old, new) in {"config.toml": ("dim = 16", "dim = 15"), "env.json": ('"dim": 16', '"dim": 15')}.items():
        file = tmp_path / "t" / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    return tmp_path / "t"


def file_of(**changes: torch.Tensor) -> Any:
    def made(toy_path: Path, trained: Path, tmp_path: Path) -> Path:
        tensors = {**load_file(trained / "factors.safetensors"), **changes}
        save_file(tensors, tmp_path / "t.safetensors", metadata={"kdrs": "teacher/1"})
        return tmp_path / "t.safetensors"

    return made


def of_other_ids(toy_path: Path, trained: Path, tmp_path: Path) -> Path:
    digests = {"users_digest": "0" * 64, "items_digest": "0" * 64}
    save_file(load_file(trained / "factors.safetensors"), tmp_path / "t", metadata={"kdrs": "teacher/1", **digests})
    return tmp_path / "t"


def named(name: str) -> Any:
    return lambda toy_path, trained, tmp_path: trained / name


def nowhere(toy_path: Path, trained: Path, tmp_path: Path) -> Path:
    return tmp_path / "nowhere"


SHORT = {"ir-rrd": {"pool": 10}, "dcd": {"pool": 10, "correction_pool": 10}}
"""Lists that the file of lists has, of methods that need more than lists."""
CASER = {"name": "caser", "dim": 4, "vertical": 2, "horizontal": 3, "length": 5}
REFUSED: dict[str, tuple[str, dict[str, Any], Any, str, dict[str, Any]]] = {
    "no teacher": ("rrd", SMALL["rrd"], nowhere, "no file", {}),
    "not finished": ("rrd", SMALL["rrd"], unfinished, "no trained model", {}),
    "of other data": ("rrd", SMALL["rrd"], of_other_data, "trained on", {}),
    "of another size": ("de", SMALL["de"], of_other_sizes, "do not fit its configuration", {}),
    "a file of other ids": ("rrd", SMALL["rrd"], of_other_ids, "made for other users", {}),
    "a file of other sizes": ("rrd", SMALL["rrd"], file_of(users=torch.zeros(49, 16)), r"shape \[49, 16\]", {}),
    "a file of integers": ("de", SMALL["de"], file_of(users=torch.zeros(50, 16).int()), "floats", {}),
    "a file of an unknown tensor": ("de", SMALL["de"], file_of(bias=torch.zeros(50)), "holds bias", {}),
    "scores of other lists": (
        "de", SMALL["de"], file_of(topk=torch.zeros(50, 1).int(), topk_scores=torch.zeros(50, 2)), "topk_scores is", {},
    ),
    **{
        f"{name} of lists": (name, {**SMALL[name], **SHORT.get(name, {})}, named("lists.safetensors"), "only a ranking", {})
        for name in DISTILLERS if name not in ("rrd", "bd", "rd", "hetcomp")
    },
    "longer lists than there are": ("rrd", SMALL["rrd"], named("lists.safetensors"), "lists 12 items a query; 20", {}),
    "rd's lists": ("rd", {"items": 13}, named("lists.safetensors"), "lists 12 items a query; 13", {}),
    "seen items of lists": ("rd", {"items": 5, "exclude": "target-only"}, named("lists.safetensors"), "only a ranking", {}),
    "hetcomp of lists": ("hetcomp", SMALL["hetcomp"], named("lists.safetensors"), "lists 12 items|only a ranking", {}),
    "hetcomp without stages": ("hetcomp", {"target": 10, "states": 3}, named("factors.safetensors"), "1 state", {}),
    "a file to be trained": ("bd", SMALL["bd"], named("factors.safetensors"), "cannot be trained", {}),
    "another kind to be trained": ("bd", SMALL["bd"], named("caser-5"), "learns from SequenceTask", {}),
    "another length to be trained": ("bd", SMALL["bd"], named("caser-8"), "8 items", {"model": CASER}),
    "a draw without weights": (
        "rrd", {**SMALL["rrd"], "temperature": 1e-3}, named("teacher"), "temperature", {},
    ),
    "more items than there are": ("rd", {"items": 81}, named("teacher"), "81", {}),
    "a start of another size": ("rrd", SMALL["rrd"], named("teacher"), "16 dimensions", {"start": "teacher"}),
    "no metric of that name": ("rrd", SMALL["rrd"], named("teacher"), "ndcg@11", {"train": {"select": "ndcg@11"}}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_plan_refuses_what_the_run_refuses(toy_path, trained, tmp_path, name):
    method, options, teacher, words, changes = REFUSED[name]
    if "start" in changes:
        changes = {"start": str(trained / changes["start"])}
    config = described(toy_path, method, teacher(toy_path, trained, tmp_path), options, **changes)
    messages = []
    for carry_out in (plan, execute):
        with pytest.raises(KdrsError, match=words) as refused:
            carry_out(resolve(config), tmp_path / "run")
        messages.append((type(refused.value), str(refused.value)))
    assert messages[0] == messages[1]
    assert not (tmp_path / "run").exists()


def test_weights_are_left_to_the_run(toy_path, trained, tmp_path):
    """Values are not read: damage that only they show is found when the run begins, before it trains."""
    shutil.copytree(trained / "teacher", tmp_path / "t")
    file = tmp_path / "t/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    config = resolve(described(toy_path, "rrd", tmp_path / "t", SMALL["rrd"]))
    plan(config, tmp_path / "run")
    with pytest.raises(KdrsError, match="SHA-256"):
        execute(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_says_the_same(toy_path, trained, tmp_path):
    config = described(toy_path, "de", trained / "teacher", SMALL["de"])
    found = plan(resolve(config), tmp_path / "run")
    options = [f"--set=distill.0.{key}={value}" for key, value in SMALL["de"].items()]
    shown = ok(
        "distill", "--data", toy_path, "--teacher", trained / "teacher", "--method", "de", "--model", "bpr", "--dim", 4,
        "--batch-size", 64, "--device", "cpu", *options, "--dry-run", "--json",
    ).document  # fmt: skip
    assert {key: shown[key] for key in found} == found


def test_parameters_of_an_outline_and_of_its_batches(toy_path, tmp_path):
    """Batches are those of the training pairs, which an outline does not leave out."""
    for layout, negatives in (("rows", 3), ("triples", 3)):
        config = values(toy_path)
        config["train"].update(layout=layout, negatives=negatives)
        resolved = resolve(config)
        found = plan(resolved, tmp_path / "run")
        assert found["batches_per_epoch"] == build_task(resolved, Dataset.load(toy_path)).n_batches


def test_an_outline_does_without_torchs_compiler(toy_path, tmp_path):
    """Loading it takes longer than all else."""
    program = (
        "import sys; from kdrs.runs.config import resolve; from kdrs.runs.execute import plan; before = set(sys.modules)\n"
        "for values in {!r}: plan(resolve(values), {!r})\n"
        "print([name for name in sys.modules if name not in before and name.startswith(('torch._dynamo', 'torch._inductor'))])"
    )
    models = [values(toy_path, model={"name": name, "dim": 4, **SMALL_MODELS.get(name, {})}) for name in MODELS]
    part = {"big": {"model": {"name": "bpr", "dim": 16}, "train": {"epochs": 4, "stages_every": 1}}}
    methods = [described(toy_path, method, "big", options, teachers=part) for method, options in CASES.values()]
    command = [sys.executable, "-W", "ignore", "-c", program.format(models + methods, str(tmp_path / "run"))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
