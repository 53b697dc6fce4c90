"""``--budget``: which student has so many bytes, and how it is best trained.

What it chooses was best on validation: docs/results/frontier.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdrs._launch import launched
from kdrs.compact.tables import BITS
from kdrs.data import Dataset
from kdrs.errors import ConfigError, KdrsError, MissingKnowledge, shown
from kdrs.models import MODELS, model_class
from kdrs.runs.build import choose_protocol, choose_selection
from kdrs.runs.compared import size_of
from kdrs.runs.compress import FEW, best_form
from kdrs.runs.config import RunConfig, config_of, resolve
from kdrs.runs.directory import Run
from kdrs.runs.forms import Budget, Form
from kdrs.runs.learners import Planned, load_teacher
from kdrs.runs.places import check_free, check_none_begun, holds_run
from kdrs.runs.race import laps_of, race
from kdrs.runs.source import distil_lists
from kdrs.runs.values import FROM_TEACHER
from kdrs.teachers.base import Teacher
from kdrs.teachers.file import FileTeacher
from kdrs.training.outline import OUTLINE
from kdrs.training.rows import UserTask

RECOMMENDED = "1/16"
"""What `kdrs distill` takes where nothing is stated: its students rank better than teachers that are `CHEAPER` on CiteULike,
both splits, and on MovieLens 100K, after minutes (docs/results/frontier.md). Beside teachers that are `MODEL` they are level or
a little below (docs/results/elsa.md)."""
EPOCHS = 15
"""Of students by `CHEAPER`, which are best after three to ten; of `MODEL` the least."""
EVERY = 5
"""Epochs between evaluations of large data."""
MOST_USERS = 1024
"""Of a batch of `MODEL`, whose vectors, one a pair, are held at once."""
STEPS, MOST_EPOCHS = 600, 100
"""Of `MODEL`, whose epochs are few batches on few users: epochs that make so many steps with `DIM` dimensions, and at most how
many. Fewer dimensions make more steps, in inverse proportion (docs/results/notes/frontier.md)."""


MODEL, CHEAPER = "elsa", "bpr"
"""Which students it trains, and where an epoch would take too long."""
STRONG = (MODEL, "lightgcn-ssm")
"""Models that learn from a softmax over items: as teachers level with `MODEL`, or better (docs/results/elsa.md, gowalla.md)."""
DIM = 200
"""Dimensions of a model trained alone where none are stated: those of the teachers in docs/results."""
MOST = 1e12
"""Products of an epoch of `MODEL`, users x items x dimensions, up to which its softmax counts all items: four times those of
Gowalla. Beyond, each batch counts so many that there are no more products, but `SAMPLE` at least."""
SAMPLE = 4096
"""On Gowalla so many give .1287 of NDCG@10 in the place of .1300, in epochs of about half the time
(docs/results/notes/frontier.md)."""
DEAREST = 1e13
"""Products of an epoch up to which `MODEL` is taken. A step passes over the whole table too: by estimate as long as the
products of a `PASSES`-th of the items for each of its users, where batches are large."""
PASSES = 25


def model_of(n_users: int, n_items: int, dim: int) -> dict[str, Any]:
    """The model of a budget's student, unless one is stated, for a teacher of ``dim`` dimensions."""
    users = float(n_users)
    if users * n_items * dim <= MOST:
        return {"name": MODEL}
    sample = max(SAMPLE, int(MOST / (users * dim)))
    if users * (sample + n_items / PASSES) * dim > DEAREST:
        return {"name": CHEAPER}
    return {"name": MODEL} | ({"softmax_items": sample} if sample < n_items else {})


def coarse(form: Form) -> bool:
    """Whether items have few values a coordinate and few bytes: what is best for them is another thing."""
    return form.bits <= 2 and form.bits * form.dim <= FEW


def training_of(form: Form, model: str, n_users: int) -> dict[str, Any]:
    """Training settings that were best on validation: signs take larger steps; coarse rows, of which a step changes
    much, are means over epochs, and so are all of `MODEL`, whose other settings are its own."""
    if model == MODEL:
        return _own_training(form.dim, form.bits, n_users)
    found: dict[str, Any] = {"lr": 2e-3 if form.bits == 1 else 1e-3, "weight_decay": 0.0, "epochs": EPOCHS}
    return found | ({"average": 0.5} if coarse(form) else {})


def _own_training(dim: int, bits: Any, n_users: int) -> dict[str, Any]:
    """Of `MODEL`. On many users batches are larger, and with their root the rate: Adam's law for noisy gradients (Malladi et
    al., NeurIPS 2022), which held on Gowalla."""
    cls = MODELS[MODEL]
    defaults = cls.train_defaults(cls.Config(bits=bits if bits in BITS else 32))
    batch = usual = int(defaults["batch_size"])
    while n_users >= STEPS * 2 * batch and batch < MOST_USERS:  # steps are enough, and each passes over all items
        batch *= 2
    epochs = -(-STEPS * DIM * batch // (dim * max(n_users, 1)))
    found = {"epochs": max(EPOCHS, min(epochs, MOST_EPOCHS)), "average": 0.5}
    return found if batch == usual else {**found, "batch_size": batch, "lr": defaults["lr"] * (batch / usual) ** 0.5}


def _seldom(model: Mapping[str, Any]) -> dict[str, Any]:
    """Where not even an epoch counts all users x items, an evaluation, which does, is rare."""
    return {"every": EVERY} if "softmax_items" in model else {}


def with_model(
    values: Mapping[str, Any], begun: RunConfig | None = None, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """A run's plain values with a model, trained alone, where they name none. What is stated wins.

    It is that of the run that was ``begun`` and goes on, with its training settings; or of the run that is started from, with
    its dimensions. Else the recommended one: `MODEL`, which ranks better than `CHEAPER` on CiteULike, MovieLens 100K and
    Gowalla, with a sampled softmax on large data; `CHEAPER` where an epoch would take too long even so. Raises
    ``ConfigError`` for a model that is no table.
    """
    model, place, train = values.get("model", {}), values.get("data"), values.get("train", {})
    if not isinstance(model, Mapping):
        raise ConfigError(f"model is {shown(model)}", "write it as a table: [model]")
    path = place.get("path") if isinstance(place, Mapping) else None
    if "name" in model or not isinstance(path, str) or not isinstance(train, Mapping):
        return dict(values)
    if begun is not None:
        former = begun.to_dict()
        return {**values, "model": {**former["model"], **model}, "train": {**former["train"], **train}}
    start, dim = values.get("start"), model.get("dim", DIM)
    if isinstance(start, str) and holds_run(Path(start)):
        theirs = config_of(Run.open(Path(start))).model
        tell(f"no model is given: that of {shown(start)}, {theirs['name']} of {theirs['dim']} dimensions")
        return {**values, "model": {"name": theirs["name"], "dim": theirs["dim"], **model}}
    size = dim if type(dim) is int and dim > 0 else DIM  # a wrong one is told when the run is resolved
    dataset = Dataset.load(path)
    found = model_of(dataset.n_users, dataset.n_items, size)
    if found["name"] == MODEL:
        train = {**_own_training(size, model.get("bits"), dataset.n_users), **_seldom(found), **train}
    if size == dim:
        why = "" if found["name"] == MODEL else f", as an epoch of {MODEL} would take too long"
        if "softmax_items" in found:
            why = f", its softmax over {found['softmax_items']:,} items a batch"
        tell(f"no model is given: {found['name']} of {dim} dimensions{why}")
    return {**values, "model": {**found, "dim": dim, **model}, "train": train}


def ways_of(form: Form, teacher: Teacher, model: str, kind: str | None = None) -> list[dict[str, Any]]:
    """The terms that were best on validation, the likelier first. One or two bits and few bytes an item: the teacher's lists,
    of users that are a function of their items where its scores are products, or its scores; the data decide which. More: its
    scores, which leave more for users not seen. `MODEL` learns well by itself, and tries the teacher's own lists or scores;
    of a teacher whose ``kind`` is `STRONG`, as good as itself or better, it takes the lists with ten times the weight."""
    if model == MODEL and kind in STRONG:
        return [{"method": "rrd", "weight": 0.3}]
    if model == MODEL:
        return [{"method": "rrd", "weight": 0.03}, {"method": "cd", "weight": 0.1}]
    if not coarse(form):
        return [{"method": "cd", "weight": 0.5}]
    users = {"teacher_users": "encoded"} if teacher.scores_are_products else {}
    return [{"method": "rrd", "weight": 0.03, **users}, {"method": "cd", "weight": 0.1}]


def chosen(
    values: Mapping[str, Any],
    budget: str,
    teachers: list[str],
    *,
    planned: Mapping[str, Planned] | None = None,
    begun: RunConfig | None = None,
    raced: bool = True,
    check: Callable[[RunConfig], None] = lambda config: None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """A run's plain values with what the budget chooses: model, start, method, training. What ``values`` state already wins,
    but for the model's size.

    The form of `MODEL` is the one of those that fit with the most dimensions; of other models the one whose compressed teacher
    is best on validation, with what training is expected to add (`kdrs.runs.compress.best_form`). Of the methods that suit it
    (`ways_of`) each is trained for the first epochs, and the better one on validation is taken (`kdrs.runs.race.race`); the
    likelier one without a validation part, and where they are not ``raced``. ``check`` is given each run before that, to raise
    what is wrong with it; ``tell`` hears how they did.

    A run that was ``begun`` goes on with what was chosen then, if its form is one of this budget's; a younger kdrs may choose
    something else.

    Where runs are ``planned``, by their directories, nothing is compressed and nothing trained: the form is the usual one that
    fits, the method the likelier one.

    Raises ``ConfigError`` for sizes that are stated beside the budget, for several teachers, and for a model without a
    compact form; ``MissingKnowledge`` for a teacher of lists alone.
    """
    told = Budget.parse(budget)
    for key in ("model", "train"):
        if not isinstance(values.get(key, {}), Mapping):
            raise ConfigError(f"{key} is {shown(values[key])}", f"write it as a table: [{key}]")
    model = dict(values.get("model", {}))
    for key in ("dim", "bits", "users"):
        if key in model:
            raise ConfigError(
                f"model.{key} is {shown(model[key])}, and --budget chooses it", "leave one of the two out"
            )
    if values.get("start", FROM_TEACHER) != FROM_TEACHER:
        raise ConfigError(
            f"start is {shown(values['start'])}, and --budget starts from the teacher", "leave one of the two out"
        )
    stated = model.get("name", None if begun is None else begun.model["name"])
    cls = model_class(str(stated or MODEL))
    if "users" not in cls.compactable or not cls.begins:
        name = str(stated)
        able = [name for name, other in MODELS.items() if "users" in other.compactable and other.begins]
        raise ConfigError(
            f"--budget with {name}, which has no form for it", f"take one of {', '.join(able)}, or leave --model out"
        )
    if len(set(teachers)) != 1:
        raise ConfigError(
            f"--budget with {len(set(teachers))} teachers", "give the one whose bytes count: --teacher RUN"
        )
    (reference,) = set(teachers)
    dataset = Dataset.load(values["data"]["path"])
    task = UserTask(dataset.train, device="cpu" if planned is None else OUTLINE)
    teacher = load_teacher(reference, dataset, task, planned=planned)
    if isinstance(teacher, FileTeacher) and teacher.factors() is None:
        if "users" not in teacher.sides:
            teacher.check_scores()  # says what it lacks
        raise MissingKnowledge(
            f"teacher {shown(reference)} holds lists alone, so that nothing can be started from it",
            f"give --method, --model and --dim instead of --budget: {distil_lists(teacher, values['data']['path'])}",
        )
    terms = values.get("distill")
    if isinstance(terms, Mapping):  # of --set, before there was a term
        raise ConfigError(
            "distill is set, and --budget chooses the method", "name it, and its options can be set: --method cd"
        )
    config = resolve(
        {"data": {"path": values["data"]["path"]}, "model": {"name": "bpr"}, "eval": values.get("eval", {})}
    )
    former = None if begun is None else (int(begun.model["dim"]), int(begun.model["bits"]))
    usual = model_of(dataset.n_users, dataset.n_items, teacher.dim)
    name = str(stated or usual["name"])
    own = usual if name == usual["name"] else {"name": name}
    measured, wide = planned is None, name == MODEL
    form = best_form(teacher, dataset, told, config, trained=True, measured=measured, wide=wide, begun=former)
    _, whole, _ = size_of(teacher, dataset)
    if whole:
        tell(f"{form.n_bytes:,} bytes of the teacher's {whole:,}: 1/{whole / form.n_bytes:.1f}")
    train = training_of(form, name, dataset.n_users) | _seldom(own)
    ways = ways_of(form, teacher, name, _kind_of(reference, planned))
    if begun is not None and begun.distill and former == (form.dim, form.bits):
        train |= {key: getattr(begun.train, key) for key in ("lr", "weight_decay", "average", "batch_size")}
        first = begun.distill[0]
        ways = [{"method": first.method, "weight": first.weight}]
        ways[0] |= {} if first.teacher_users == "own" else {"teacher_users": first.teacher_users}
    found = {
        **values,
        "model": {**own, **model, "dim": form.dim, "bits": form.bits, "users": "encoded"},
        "start": FROM_TEACHER,
        "train": {**train, **values.get("train", {})},
    }
    if terms:
        return {**found, "distill": terms}
    choices = [{**found, "distill": [{**way, "teacher": reference}]} for way in ways]
    names = [str(way["method"]) for way in ways]
    if len(ways) == 1 or begun is not None or planned is not None or not dataset.valid.n_pairs:
        return choices[0]
    if not raced:
        tell(f"{names[0]} is shown; a short trial of {' and '.join(names)} decides when it is carried out")
        return choices[0]
    runs = [resolve(choice) for choice in choices]
    for run in runs:
        check(run)
    return choices[_winner(runs, names, dataset, tell)]


def _kind_of(reference: str, planned: Mapping[str, Planned] | None) -> str | None:
    """The model of a teacher that is a run."""
    if planned and reference in planned:
        return str(planned[reference].config.model["name"])
    return str(config_of(Run.open(Path(reference))).model["name"]) if holds_run(Path(reference)) else None


def _winner(runs: Sequence[RunConfig], names: Sequence[str], dataset: Dataset, tell: Callable[[str], None]) -> int:
    """The run that is better after the first epochs, the earlier one of equals."""
    epochs = laps_of(dataset, runs[0].train.epochs)
    each = "an epoch" if epochs == 1 else f"{epochs} epochs"
    tell(f"trying {each} of each method: {', '.join(names)}")
    values = race(runs, dataset)
    told = ", ".join(f"{name} {value:.4f}" for name, value in zip(names, values, strict=True))
    tell(f"{choose_selection(runs[0], choose_protocol(runs[0], dataset)).metrics[0]} on validation: {told}")
    return values.index(max(values))


def begun_at(places: Sequence[Path], resume: bool) -> RunConfig | None:
    """The options of the run that goes on, the first one of several seeds. Raises what `kdrs.runs.places.check_free` does
    where no new one has a place, and ``ConfigError`` where one of several seeds was begun and is not to go on."""
    launch = launched()
    if resume or (launch is not None and launch.restarts):  # torchrun begins anew: the run does not
        return next((config_of(Run.open(place)) for place in places if holds_run(place)), None)
    if len(places) > 1:
        check_none_begun(places)
    taken = []
    for place in places:
        try:
            check_free(place, "go on with it by --resume, or name another folder with --out")
        except KdrsError as error:
            taken.append(error)
    if len(taken) == len(places):  # of several seeds those that have a place are trained
        raise taken[0]
    return None
