"""Run files: TOML, overridden by ``--set``, checked by pydantic models that refuse unknown keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from kdrs._documents import read_toml, toml_value
from kdrs.core.sampling import stream
from kdrs.data.dataset import is_dataset
from kdrs.distillers import DISTILLERS, distiller_class
from kdrs.errors import ConfigError, nearest, shown
from kdrs.escaping import is_unicode
from kdrs.models import MODELS, ModelConfig, model_class
from kdrs.plugins import label
from kdrs.runs.directory import Run
from kdrs.runs.records import PATH
from kdrs.runs.values import FROM_TEACHER, flat, with_former
from kdrs.runs.vouching import check_head
from kdrs.settings import Settings
from kdrs.tracking import tracker_class


class DataSettings(Settings):
    path: str
    """A prepared data set: the directory that `kdrs data prepare` wrote."""


class TrainSettings(Settings):
    """How a run is trained. A model whose paper trains it otherwise has other defaults; `kdrs models show NAME` prints them."""

    epochs: int = Field(1000, ge=1)
    """Most epochs; early stopping usually ends a run before."""
    batch_size: int = Field(1024, ge=1)
    """Training rows a step."""
    negatives: int = Field(1, ge=1)
    """Fresh negatives for each observed pair and epoch."""
    layout: Literal["triples", "rows"] = "triples"
    """With several negatives: a training row of each, or one row a pair."""
    draws: Literal["pairs", "users"] = "pairs"
    """Training rows of an epoch: every observed pair once, or as many users, drawn uniformly, each with one of its pairs, as
    LightGCN's PyTorch code has it. Models of pairs alone."""
    leak_held_out: bool = False
    """Never draw a user's validation and test items as negatives, which betrays them to the model: BD's notebook does, and
    its printed numbers need it."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate."""
    weight_decay: float = Field(1e-3, ge=0)
    """L2 weight, coupled (inside the optimizer's gradient)."""
    shard: Literal["none", "columns"] = "none"
    """What each of several processes (torchrun) holds: the whole model, batches divided; or some ``columns`` of its tables and
    of their moments, for tables larger than one machine (bpr, lightgcn). One process holds everything."""
    optimizer: Literal["adam", "lazy-adam", "adagrad"] = "adam"
    """``adam`` steps every row of every table in each iteration, as the papers do; ``lazy-adam`` the touched rows only,
    which then make up for what they missed by an estimate; ``adagrad`` with accumulators from 0.1 on, for CML."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Start of every random stream."""
    patience: Annotated[int, Field(ge=1)] | Literal["plateau"] | None = None
    """When to stop: after exactly so many evaluations without improvement, or ``plateau``, in no dip before it
    (`kdrs.evaluation.protocols.Plateau`). The protocol's own rule unless given."""
    select: tuple[str, ...] | None = None
    """Validation metrics that select the best epoch, the first deciding; the protocol's own unless given."""
    every: int = Field(1, ge=1)
    """Epochs between evaluations."""
    every_from: int | None = Field(None, ge=0)
    """Epoch, counted from 0, of the first evaluation and of the first stage that ``stages_every`` keeps. Default: after
    ``every`` (``stages_every``) epochs of training. 0 evaluates after epochs 0, ``every``, 2 ``every``, as HetComp's code
    does."""
    keep: Literal["best", "last"] = "best"
    """The weights that the run ends with: those of the best epoch, or of the last, as code that selects none has it."""
    average: float = Field(0.0, ge=0, lt=1)
    """Rank with, select and keep a mean of the weights at the ends of epochs: this share of the mean before, the rest of the
    new weights. 0 takes the weights as they are. Training itself stays the same."""
    test_every_epoch: bool | None = None
    """Log test metrics at every evaluation, for learning curves; they never select. Default: only where candidates make
    them cheap, or the protocol reports each K from its own best epoch."""
    stages: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Epochs, counted from 0, whose weights are kept beside the best ones."""
    stages_every: int | None = Field(None, ge=1)
    """Keep the weights of every so many epochs: a trajectory, for methods that teach along one (hetcomp)."""
    checkpoint_seconds: float = Field(30.0, ge=0)
    """Least time between checkpoints."""


class EvalSettings(Settings):
    protocol: str = "auto"
    """A preset of `kdrs.protocols`; ``auto`` ranks the stored candidates if the data set has them (``loo-499``), else
    the whole catalogue (``default``)."""
    ks: tuple[int, ...] | None = None
    """List lengths, if not the protocol's."""


class TermSettings(Settings):
    method: str
    """A method of `kdrs methods`."""
    teacher: tuple[str, ...]
    """Run directories or teacher files."""
    weight: float = Field(ge=0)
    """Weight of the term beside the model's own loss; the method's default one unless given."""
    name: str
    """How the term is called in the log; the method's name unless given."""
    chain: Annotated[int, Field(ge=0, le=1000)] | tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Assistants between teacher and student that the run trains first, each a part of its own: how many (sizes evenly
    spaced), or their sizes, largest first. None of methods that use none."""
    teacher_users: Literal["own", "encoded"] = "own"
    """Whose vectors of users the teacher's lists and scores come from: its own, or, where these rank worse on validation, a sum
    or a ridge regression over each user's training items, as `kdrs compress` has them. Its scores must be products."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The method's own options, checked by its Config."""

    @field_validator("teacher")
    @classmethod
    def _different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each teacher once")
        return value

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the form of a run file."""
        chain = {"chain": list(self.chain) if isinstance(self.chain, tuple) else self.chain}
        own = {"method": self.method, "name": self.name, "teacher": list(self.teacher), "weight": self.weight}
        users = {} if self.teacher_users == "own" else {"teacher_users": self.teacher_users}
        return {**own, **users, **({} if self.chain is None else chain), **self.options}


class PartSettings(Settings):
    """A model that a run trains first, to teach or to start from."""

    model: dict[str, Any]
    """``name`` and the model's options."""
    train: TrainSettings = TrainSettings()
    """As the run's own, but for what the part's model brings along and what is stated."""
    distill: tuple[TermSettings, ...] = ()
    """Terms of its own; their teachers may be parts declared before it."""
    start: str | None = None


class CompressSettings(Settings):
    """What a run says that no training made."""

    teacher: str
    """What was made small: a run directory or a teacher file."""
    how: str
    """How users are had, with the constants that validation chose."""


class RunConfig(Settings):
    """A run, resolved: everything that decides its result."""

    data: DataSettings
    model: dict[str, Any]
    """``name`` and the model's options."""
    train: TrainSettings = TrainSettings()
    eval: EvalSettings = EvalSettings()
    distill: tuple[TermSettings, ...] = ()
    start: str | None = None
    """A finished run, or a part by its name, whose weights the model starts from; or ``teacher``: the first teacher's vectors,
    their best directions where it has more than the model. From scratch unless given."""
    teachers: dict[str, PartSettings] = Field(default_factory=dict)
    """Models trained first, in this order; terms and ``start`` name them. Tables ``[teachers.NAME]`` of a run file."""
    parts: str | None = None
    """Folder of the parts' runs, for several runs that share them; ``parts`` in the run directory unless given."""
    compress: CompressSettings | None = None
    """Of a run that `kdrs compress` made; it cannot be trained anew."""
    refit: str | None = None
    """Of a run that `kdrs refit` made: the run whose settings it has."""
    log: tuple[str, ...] = ()
    """Trackers that watch the run: ``tensorboard``, ``mlflow``, ``wandb``, or a class ``package.module:Class``."""
    device: str = "auto"
    """``auto`` (a CUDA device where there is one), ``cpu``, ``cuda`` or ``cuda:N``."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Threads of torch and of the core; all available ones unless given."""

    @field_validator("log")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each tracker once")
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        kind, _, index = value.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
            raise ValueError("auto, cpu, cuda, cuda:N")
        return value

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the form of a run file."""
        values = self.model_dump(exclude_none=True)
        values["distill"] = [term.to_dict() for term in self.distill]
        for name, part in self.teachers.items():
            values["teachers"][name]["distill"] = [term.to_dict() for term in part.distill]
        for place in (values, *values["teachers"].values()):
            if not place["distill"]:
                del place["distill"]
        for key in ("teachers", "log"):
            if not values[key]:
                del values[key]
        return values


PRESETS = {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.toml"))}
"""Run files that come along: published experiments, by name."""


def read_run_file(path: Path) -> dict[str, Any]:
    """The values of a TOML run file, or of the preset of that name where there is no such file. A run's own ``config.toml``
    holds in any folder.

    Raises ``ConfigError`` with the line for what is no TOML.
    """
    if not path.is_file() and str(path) in PRESETS:
        path = PRESETS[str(path)]
    elif not path.exists() and not path.suffix:
        raise ConfigError(f"no run file and no preset {shown(str(path), PATH)}", nearest(str(path), PRESETS))
    if is_dataset(path):
        raise ConfigError(f"{shown(str(path), PATH)} is a prepared data set, and no run file", "give it with --data")
    if is_of_a_run(path):
        values = Run.open(path.parent).config
        return {key: value for key, value in values.items() if key != "refit"}  # what is made of it need not be one
    return read_toml(path, "check the path, and see the examples folder")


def is_of_a_run(path: Path) -> bool:
    """Whether a run file is that of a run directory."""
    return path.name == "config.toml" and (path.parent / "env.json").is_file()


def assign(values: dict[str, Any], setting: str) -> None:
    """Carries out one ``--set a.b=c``: keys by dots, list entries by their number, the value as TOML or else as text."""
    key, equals, text = setting.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ConfigError(f"--set {shown(setting)}", "write it as --set train.lr=1e-3")
    put(
        values,
        key.strip(),
        toml_value(text, f"--set {shown(key.strip())}"),
        f"--set {shown(setting)}",
        "--set {}=VALUE",
    )


def put(values: dict[str, Any], key: str, value: Any, told: str, form: str = "{} = VALUE") -> None:
    """Enters a value under a key by dots, list entries by their number. ``told`` names the key in errors, ``form`` says how one
    is set."""
    path = key.split(".")
    place: Any = values
    for position, part in enumerate(path):
        last = position == len(path) - 1
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                allowed = f"allowed: 0 to {len(place) - 1}" if place else "it has no entries"
                raise ConfigError(f"{told}: there is no entry {shown(part)}", allowed)
            index: Any = int(part)
        elif isinstance(place, dict):
            index = part
            if not last:
                place.setdefault(part, {})
        else:
            whole = shown(".".join(path[:position]))
            raise ConfigError(f"{told}: {whole} is a value and has no keys", f"set it: {form.format(whole)}")
        if last:
            place[index] = value
        else:
            place = place[index]


def resolve(values: dict[str, Any], *, opened: bool = False) -> RunConfig:
    """A checked run of plain values, every default filled in, the model's and methods' options included.

    Of an ``opened`` run, which states all options, those of classes that are not ours are taken as they stand, and no such
    class is imported: its weights may not need it.

    Raises ``ConfigError`` naming the key, the value and what is allowed, for unknown models, methods and keys with the
    nearest name.
    """
    _check_unicode(values)
    values = dict(values)
    if isinstance(values.get("log"), str):
        values["log"] = [values["log"]]
    values["model"] = _model(values.get("model", {}), "model", opened)
    values["distill"] = _terms(values.pop("distill", []), "distill", opened)
    declared = values.pop("teachers", {})
    if not isinstance(declared, dict) or not all(isinstance(part, dict) for part in declared.values()):
        raise ConfigError("teachers must be tables", "write each as [teachers.NAME]")
    own = values.get("train", {})
    alone = ("stages", "stages_every", "seed", "draws")
    inherited = {key: value for key, value in own.items() if key not in alone} if isinstance(own, dict) else {}
    seed = own.get("seed", 0) if isinstance(own, dict) else 0
    parts: dict[str, PartSettings] = {}
    for name, part in declared.items():
        where = f"teachers.{name}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
            raise ConfigError(f"part name {shown(name)}", "allowed: letters, digits, _ . + -")
        train, model = part.get("train", {}), _model(part.get("model", {}), f"{where}.model", opened)
        if isinstance(seed, int):
            inherited["seed"] = part_seed(seed, name)
        parts[name] = PartSettings.parse(
            {
                **part,
                "model": model,
                "distill": _terms(part.get("distill", []), f"{where}.distill", opened),
                # what the run states was stated for its own model
                "train": {**inherited, **_train_defaults(model, opened), **train} if isinstance(train, dict) else train,
            },
            where,
        )
    values["teachers"] = parts
    if isinstance(own, dict):
        values["train"] = {**_train_defaults(values["model"], opened), **own}
    config = RunConfig.parse(values, "")
    for name in config.log if not opened else ():
        tracker_class(name)
    if config.start == FROM_TEACHER and FROM_TEACHER not in config.teachers and not config.distill:
        raise ConfigError(
            f"start is {FROM_TEACHER!r}, and the run has no teacher",
            f"name one: kdrs distill with --method and --teacher; a folder of that name is ./{FROM_TEACHER}",
        )
    return config


def _check_unicode(value: Any, where: str = "") -> None:
    """TOML holds Unicode text alone; names of files may be any bytes."""
    if isinstance(value, str) and not is_unicode(value):
        raise ConfigError(
            f"{where} is {shown(value)}, which is no Unicode text, as run files hold it",
            "rename it, or make a link to it that has another name, and give that",
        )
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _check_unicode(inner, f"{where}.{key}" if where else str(key))


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """A run's stored options with every default filled in, those of options that are younger than the run as it was then."""
    return resolve(with_former(values)).to_dict()


def config_of(run: Run) -> RunConfig:
    """A run's options, checked against what the run says that it was started with. Imports no class that is not ours.

    Raises ``ArtefactError`` if config.toml was changed since, but for options that may differ on resume.
    """
    check_head(
        run.path, run.stored(), run.started(), lambda values: resolve(with_former(values), opened=True).to_dict()
    )
    return resolve(run.config, opened=True)


def as_begun(config: RunConfig, run: Run) -> RunConfig:
    """The options that a run is gone on with: where an older kdrs began it, those that did not exist and are at their default
    are as they were then."""
    began = run.started().options if (run.path / "env.json").is_file() else None
    began = run.stored() if began is None else began
    then, values = flat(with_former(began)), config.to_dict()
    changed = {key: value for key, value in then.items() if key not in flat(began)}
    for key, value in changed.items():
        if flat(values).get(key) == ModelConfig.model_fields[key.rpartition(".")[2]].default:
            put(values, key, value, key)
    return resolve(values) if changed else config


def part_seed(seed: int, name: str) -> int:
    """The seed of a declared part that states none: parts of one run are no copies of each other."""
    return stream(seed, "part", name) % 2**31


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The run with another seed, its own parts along with it; parts in a folder that runs share stay as they are."""
    parts = dict(config.teachers)
    for name, part in parts.items() if config.parts is None else ():
        if part.train.seed == part_seed(config.train.seed, name):
            train = part.train.model_copy(update={"seed": part_seed(seed, name)})
            parts[name] = part.model_copy(update={"train": train})
    train = config.train.model_copy(update={"seed": seed})
    return config.model_copy(update={"train": train, "teachers": parts})


def chain_of(method: str) -> str | None:
    """How a method uses assistants that the run trains first; None where it does not."""
    return distiller_class(method).chain


def _model(model: Any, where: str, opened: bool) -> dict[str, Any]:
    if not isinstance(model, dict) or "name" not in model:
        raise ConfigError(f"{where}.name is missing", "name a model of `kdrs models`, such as bpr")
    name, options = str(model["name"]), {key: value for key, value in model.items() if key != "name"}
    if opened and name not in MODELS:
        common = {key: options[key] for key in ("dim", "bits", "users") if key in options}  # others may be its own
        return {"name": name, **ModelConfig.parse(common, where).model_dump(), **options}
    config = model_class(name).Config.parse(options, where)
    return {"name": name, **config.model_dump(exclude_none=True)}


def _train_defaults(model: dict[str, Any], opened: bool) -> dict[str, Any]:
    """Training settings that a resolved model brings along."""
    if opened and model["name"] not in MODELS:
        return {}
    cls = model_class(model["name"])
    return cls.train_defaults(cls.Config(**{key: value for key, value in model.items() if key != "name"}))


def _terms(terms: Any, place: str, opened: bool) -> tuple[TermSettings, ...]:
    if not isinstance(terms, list) or not all(isinstance(term, dict) for term in terms):
        raise ConfigError(f"{place} must be a list of tables", f"write each term as [[{place}]]")
    own = set(TermSettings.model_fields) - {"options"}
    resolved = []
    for index, term in enumerate(terms):
        where = f"{place}.{index}"
        if "method" not in term:
            raise ConfigError(f"{where}.method is missing", "name a method of `kdrs methods`, such as rrd")
        method = str(term["method"])
        if opened and method not in DISTILLERS:
            options = {key: value for key, value in term.items() if key not in own}
            stated = {key: value for key, value in term.items() if key in own}
            resolved.append(TermSettings.parse({**stated, "options": options}, where))
            continue
        cls = distiller_class(method)
        given = {key: value for key, value in term.items() if key not in own}
        unknown = sorted(set(given) - set(cls.Config.model_fields))
        if unknown:
            raise ConfigError(
                f"unknown key '{where}.{unknown[0]}'", nearest(unknown[0], {*own, *cls.Config.model_fields})
            )
        teacher = term.get("teacher")
        if teacher is None:
            raise ConfigError(f"{where}.teacher is missing", "give a run directory or a teacher file")
        named = {key: value for key, value in term.items() if key in own}
        named["teacher"] = (teacher,) if isinstance(teacher, str) else teacher
        named.setdefault("weight", cls.default_weight)
        named.setdefault("name", label(method))
        if cls.mutual and named.get("teacher_users", "own") != "own":
            raise ConfigError(
                f"{where}.teacher_users is {shown(named['teacher_users'])}; {method} trains its teacher on, whose users have a "
                "table",
                "leave it out",
            )
        if cls.chain is None and named.pop("chain", None):
            raise ConfigError(f"{where}.chain is {term['chain']}; {method} uses no assistants", "leave it out")
        if cls.chain is not None:
            named.setdefault("chain", cls.default_chain if len(named["teacher"]) == 1 else 0)
        if named.get("chain") and len(named["teacher"]) != 1:
            raise ConfigError(
                f"{where} has {len(named['teacher'])} teachers and a chain", "give one teacher, or chain = 0"
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_+-]*", str(named["name"])) or named["name"] == "base":
            raise ConfigError(
                f"{where}.name is {shown(named['name'])}", "allowed: letters, digits, _ + -, and not base"
            )
        options = cls.Config.parse(given, where).model_dump(exclude_none=True)
        if cls.chain == "given" and named.get("chain") and options.get("assistants") != "given":
            raise ConfigError(f"{where} has a chain and generates its assistants", 'set assistants = "given"')
        resolved.append(TermSettings.parse({**named, "options": options}, where))
    names = [term.name for term in resolved]
    if len(set(names)) != len(names):
        again = next(index for index, name in enumerate(names) if name in names[:index])
        raise ConfigError(
            f"terms are named {names}",
            f"give every [[{place}]] its own name: --set {place}.{again}.name={names[again]}-{again + 1}",
        )
    return tuple(resolved)
