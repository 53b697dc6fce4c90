"""``kdrs train``, ``kdrs distill``, ``kdrs resume``; what carries runs out."""

from __future__ import annotations

import json
import re
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdrs._files import REMEDY
from kdrs.cli.early import check_early
from kdrs.cli.ending import finish, finish_seeds
from kdrs.cli.options import (
    HOW,
    SETTINGS,
    Assignments,
    BatchSize,
    Budget,
    Data,
    Decay,
    Device,
    Dim,
    DryRun,
    Epochs,
    File,
    Jobs,
    Json,
    Log,
    LongerEpochs,
    Methods,
    Model,
    MovedData,
    MovedTeachers,
    Optimizer,
    Out,
    Patience,
    ProtocolName,
    Quiet,
    Rate,
    Resume,
    Seed,
    Seeds,
    Start,
    Teachers,
    Threads,
    Verbose,
    Weights,
)  # fmt: skip
from kdrs.cli.output import messages, say, say_json, tell
from kdrs.cli.progress import Progress
from kdrs.cli.stopping import kept, spoken, stopping
from kdrs.errors import ArtefactError, ConfigError, MachineError, quoted, shown
from kdrs.escaping import toml_text, visible
from kdrs.plugins import closed, label

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kdrs.runs.config import RunConfig
    from kdrs.training.processes import Group


def register(app: typer.Typer) -> None:
    app.command("train")(spoken(train))
    app.command("distill")(spoken(distill))
    app.command("resume")(spoken(resume))


def train(
    file: File = None, data: Data = None, model: Model = None, dim: Dim = None, out: Out = None, epochs: Epochs = None,
    lr: Rate = None, weight_decay: Decay = None, batch_size: BatchSize = None, optimizer: Optimizer = None,
    patience: Patience = None, protocol: ProtocolName = None, start: Start = None,
    log: Log = [], assignments: Assignments = [], seed: Seed = None,  # noqa: B006
    seeds: Seeds = None, jobs: Jobs = None, device: Device = None, threads: Threads = None, resume: Resume = False,
    dry_run: DryRun = False, as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Train a model alone: a teacher, or a student to compare with. Without a model it is the recommended one, elsa.

    kdrs train --data datasets/ml-100k --out runs/teacher
    kdrs train --data datasets/ml-100k --model bpr --dim 200 --out runs/teacher
    """
    given = locals()
    values = _values(given)
    if values.get("distill"):
        stated = "--set states distill" if file is None else "the run file or --set has [[distill]] terms"
        raise ConfigError(stated, "use kdrs distill, or leave that out: kdrs train has no teacher")
    values = _modelled(values, out, seeds, resume)
    carry_out(values, **{name: given[name] for name in HOW})


def distill(
    file: File = None, data: Data = None,
    teacher: Teachers = [], method: Methods = [], weight: Weights = [],  # noqa: B006
    budget: Budget = None, model: Model = None, dim: Dim = None, out: Out = None, epochs: Epochs = None,
    lr: Rate = None, weight_decay: Decay = None, batch_size: BatchSize = None, optimizer: Optimizer = None,
    patience: Patience = None, protocol: ProtocolName = None, start: Start = None,
    log: Log = [], assignments: Assignments = [], seed: Seed = None,  # noqa: B006
    seeds: Seeds = None, jobs: Jobs = None, device: Device = None, threads: Threads = None, resume: Resume = False,
    dry_run: DryRun = False, as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Train a student with a teacher's help. Without a model and a size it is the recommended one, as --budget 1/16.

    A size alone: --budget 1/20. --dim needs --method; without --model it is then elsa, in float32.

    kdrs distill --data datasets/ml-100k --teacher runs/teacher --out runs/student
    kdrs distill --data datasets/ml-100k --teacher runs/teacher --budget 1/20 --out runs/student
    kdrs distill --data datasets/ml-100k --teacher runs/teacher --method rrd --model bpr --dim 20 --out runs/student
    """
    given = locals()
    terms: list[dict[str, Any]] = []
    if len(weight) not in (0, len(method)):
        raise ConfigError(
            f"got {len(weight)} weights for {len(method)} methods",
            "give one --weight a --method, or none; the weight of a run file is changed by --set distill.0.weight=NUMBER",
        )
    if file is None and not any(one.lstrip().startswith("teachers.") for one in assignments):  # nor trained here
        check_early(teacher, resume=resume)
    if teacher and budget is None:
        budget = _recommended(given, teacher)
    for index, name in enumerate(method):
        if not teacher:
            raise ConfigError(f"method {shown(name)!r} has no teacher", "give one with --teacher")
        terms.append({"method": name, "teacher": list(teacher)})
        if weight:
            terms[-1]["weight"] = weight[index]
    values = _values(given, terms)
    if budget is not None:
        values = _within(values, budget, teacher, {name: given[name] for name in HOW if name != "quiet"})
    if not values.get("distill"):
        raise ConfigError(
            "nothing to distil: no method is given",
            "give --teacher; beside it --method or --budget, or neither for the recommended student; or [[distill]] in the run "
            "file",
        )
    if budget is None and _sized(values):
        values = _modelled(values, out, seeds, resume)
    carry_out(values, **{name: given[name] for name in HOW})


def resume(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    data: MovedData = None, teacher: MovedTeachers = [], epochs: LongerEpochs = None, log: Log = [],  # noqa: B006
    device: Device = None, threads: Threads = None, as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Go on with an interrupted run: it ends with the same bytes as an uninterrupted one.

    Device and threads may be those of another machine, data set and teachers may lie elsewhere; what is given here is written
    to the run's config.toml.
    """
    check_early(teacher, data)
    from kdrs.runs.directory import Run
    from kdrs.runs.references import elsewhere

    given = locals()
    seeds = sorted(head.parent.name for head in run.glob("seed-*/config.toml"))
    if seeds and not (run / "config.toml").is_file():
        raise ArtefactError(
            f"{shown(str(run))} is no run directory: it holds one a seed, {', '.join(seeds)}",
            f"the command that began them, with --resume, goes on with all; kdrs resume {quoted(run / seeds[0])} with one",
        )
    values = elsewhere(run, Run.open(run).config, teacher)
    state(values, given)
    with closed(run):
        carry_out(values, run, None, None, True, False, as_json, quiet, verbose)


def _modelled(values: dict[str, Any], out: Path | None, seeds: str | None, resume: bool) -> dict[str, Any]:
    """The values with a model, if they name none."""
    from kdrs.runs.budget import begun_at, with_model

    model = values.get("model", {})
    named = isinstance(model, dict) and "name" in model
    places = [] if named or out is None else _places(out, None if seeds is None else _parse_seeds(seeds))
    return with_model(values, begun_at(places, resume) if places else None, tell)


def _sized(values: dict[str, Any]) -> bool:
    """Whether the size of a student is stated, by itself or as that of the run which it starts from."""
    from kdrs.runs.values import FROM_TEACHER

    model = values.get("model", {})
    return (isinstance(model, dict) and "dim" in model) or values.get("start", FROM_TEACHER) != FROM_TEACHER


def _recommended(given: dict[str, Any], teachers: list[str]) -> str | None:
    """The budget of a command that states no model and no size; with a method, None where it states either."""
    from kdrs.runs.budget import RECOMMENDED
    from kdrs.runs.values import FROM_TEACHER

    values = _values(given)
    model, parts = values.get("model", {}), values.get("teachers", {})
    stated = [key for key in ("dim", "bits", "users") if isinstance(model, dict) and key in model]
    named = not isinstance(model, dict) or "name" in model or values.get("start", FROM_TEACHER) != FROM_TEACHER
    trained_here = isinstance(parts, dict) and teachers[0] in parts
    if given["method"] and (stated or named or trained_here or len(set(teachers)) > 1):
        return None
    if not given["method"] and (values.get("distill") or stated):
        why = f", and model.{stated[0]} is {shown(model[stated[0]])}" if stated else ""
        raise ConfigError(
            f"teacher {shown(teachers[0])!r} is given without a method{why}",
            "give one with --method, or a size alone: --budget 1/20; the teacher of a run file is changed by --set "
            "distill.0.teacher=RUN",
        )
    tell(f"no {'model' if given['method'] else 'method'} and no size are given: as --budget {RECOMMENDED}")
    return RECOMMENDED


def _within(values: dict[str, Any], budget: str, teachers: list[str], how: dict[str, Any]) -> dict[str, Any]:
    """The values with what the budget chooses, which is told as a run file. What was chosen before for the same run stays.
    ``how`` it is carried out is checked first, and the run before methods are tried: that takes a while."""
    from kdrs.runs.budget import begun_at, chosen
    from kdrs.runs.execute import plan
    from kdrs.runs.places import check_writable
    from kdrs.runs.values import to_toml

    out, seeds = how["out"], check_how(**how)
    if out is None and not how["dry_run"] and isinstance(values["data"], dict):
        check_writable(Path("runs", Path(str(values["data"].get("path"))).name))
    begun = None if out is None else begun_at(_places(out, seeds), how["resume"])

    def check(config: RunConfig) -> None:
        place = out or _default_place(config)
        check_writable(place)
        plan(config, _places(place, seeds)[0])

    terms = values.get("distill", [])
    known = [term for term in terms if isinstance(term, dict)] if isinstance(terms, list) else []
    named = [one for term in known for one in _listed(term.get("teacher", []))]
    if not (teachers or named):
        raise ConfigError(
            f"--budget {shown(budget)} without a teacher", "give the one whose bytes count: --teacher RUN"
        )
    with messages():
        values = chosen(
            values, budget, teachers or named, begun=begun, raced=not how["dry_run"], check=check, tell=tell
        )
    told = {key: values[key] for key in ("start", "model", "train", "distill")}
    tell(f"# chosen for --budget {budget}")
    for line in to_toml(told).decode().splitlines():
        tell(line)
    return values


def _places(out: Path, seeds: Sequence[int] | None) -> list[Path]:
    """Of the run, or of each of several seeds."""
    return [out] if seeds is None else [out / f"seed-{seed}" for seed in seeds]


def _listed(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _values(given: dict[str, Any], terms: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A run's plain values out of a command's arguments: the file's, then --set, then the options."""
    check_early(data=given["data"], resume=given["resume"])
    from kdrs.runs.config import assign

    if given["seed"] is not None and given["seeds"] is not None:
        raise ConfigError(
            f"--seed {given['seed']} and --seeds {shown(given['seeds'])} are both given", "leave one of them out"
        )
    values = {} if given["file"] is None else read_file(given["file"])
    if terms:
        values["distill"] = terms
    for setting in given["assignments"]:
        if given["seeds"] is not None and setting.partition("=")[0].strip() == "train.seed":
            raise ConfigError(
                f"--set {shown(setting)} and --seeds {shown(given['seeds'])} are both given", "leave one of them out"
            )
        assign(values, setting)
    state(values, given)
    place = values.setdefault("data", {})
    if isinstance(place, dict) and "path" not in place:
        raise ConfigError("no data set is given", "give one with --data; kdrs data prepare makes one")
    return values


def _trackers(names: list[str] | None) -> list[str] | None:
    """Those of --log; None where it does not stand."""
    if not names:
        return None
    if "none" in names and set(names) != {"none"}:
        raise ConfigError(
            f"--log none and --log {shown(next(n for n in names if n != 'none'))}", "leave one of them out"
        )
    return [] if "none" in names else list(names)


def read_file(file: Path) -> dict[str, Any]:
    """A run file's values. Classes that it names may lie beside it, but never in a run's folder."""
    from kdrs.plugins import look_in
    from kdrs.runs.config import is_of_a_run, read_run_file

    values = read_run_file(file)
    if file.is_file() and not is_of_a_run(file):
        look_in(file.absolute().parent, Path.cwd())
    return values


def state(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Enters the settings that a command's options state."""
    for option, key in SETTINGS.items():
        value = given.get(option)
        if option == "log":
            value = _trackers(value)
        if value is not None:
            group, _, name = key.rpartition(".")
            place = values.setdefault(group, {}) if group else values
            if not isinstance(place, dict):
                raise ConfigError(
                    f"{group} is {shown(place)}", f"leave --set {group}=... out, or write it as a table: [{group}]"
                )
            place[name] = value


def check_how(
    out: Path | None, seeds: str | None, jobs: int | None, resume: bool, dry_run: bool, as_json: bool, verbose: bool
) -> Sequence[int] | None:
    """Refuses options that the chosen way of carrying a run out does not read, and cannot follow; the seeds, if several."""
    from kdrs.runs.pool import check_jobs

    if jobs is not None and seeds is None:
        raise ConfigError(
            f"--jobs {jobs} without --seeds, and one run is one process", "leave it out, or give --seeds 0..4"
        )
    if jobs is not None and dry_run:
        raise ConfigError("--dry-run and --jobs are both given, and a dry run trains nothing", "leave --jobs out")
    if resume and out is None:
        raise ConfigError("--resume without a run to go on with", "name its directory with --out")
    if dry_run and resume:
        raise ConfigError(
            "--dry-run and --resume are both given, and a dry run goes on with nothing", "leave --resume out"
        )
    if verbose and (dry_run or as_json):
        other = "--dry-run" if dry_run else "--json"
        why = "prints no metrics" if dry_run else "prints all metrics as it is"
        raise ConfigError(f"--verbose and {other} are both given, and {other} {why}", "leave --verbose out")
    numbers = None if seeds is None else _parse_seeds(seeds)
    check_jobs(1 if jobs is None else jobs)
    if resume and out is not None and not (out / "config.toml").is_file() and seeds is None:
        raise ConfigError(f"{shown(str(out), 300)} holds no run to resume", "leave --resume out, or check --out")
    return numbers


def carry_out(
    values: dict[str, Any], out: Path | None, seeds: str | None, jobs: int | None, resume: bool, dry_run: bool,
    as_json: bool, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    from kdrs.runs.config import resolve

    numbers = check_how(out, seeds, jobs, resume, dry_run, as_json, verbose)
    config = resolve(values)
    if numbers is not None and len(numbers) == 1 and not quiet:
        tell(_one_seed(numbers[0]))
    if dry_run:
        with messages():
            _print_plan(config, out or _default_place(config), numbers, as_json)
        return
    from kdrs.runs.execute import execute
    from kdrs.runs.seeds import execute_seeds
    from kdrs.training.processes import joined

    said = {"command": "train", "--out": out, "--seeds": seeds, "--resume": resume}
    with (
        messages(),
        _going_on(out if resume else None),
        joined(said) as group,  # before signals mean anything else: until all have met, one ends it at once
        stopping(lambda: kept(out, several=numbers is not None)) as stopper,
        nullcontext(out) if out is not None else _claimed(config, group) as out,
    ):
        if group is not None and group.restarts:  # torchrun begins anew: the run does not
            resume = resume or numbers is not None or (out / "config.toml").is_file()
        with Progress(config.train.epochs, quiet or not (group is None or group.first)) as show:
            hooks: dict[str, Any] = {"on_start": show.start, "on_epoch": show.epoch, "should_stop": stopper.asked}
            if numbers is None:
                outcome = execute(config, out, resume=resume, **hooks)
            else:
                results = execute_seeds(numbers, config, out, resume=resume, jobs=1 if jobs is None else jobs, **hooks)
        if numbers is None:
            finish(outcome, show.selects, stopper, as_json, verbose)
        else:
            finish_seeds(numbers, results, config, out, show.selects, stopper, as_json, verbose)


@contextmanager
def _going_on(run: Path | None) -> Iterator[None]:
    """Where a run that goes on cannot be written, another folder is no remedy."""
    try:
        yield
    except MachineError as error:
        if run is None or error.remedy != REMEDY:
            raise
        again = "kdrs resume COPY" if (run / "config.toml").is_file() else "the same command with --out COPY"
        raise MachineError(
            error.cause,
            f"make {quoted(run)} writable, or free space there; or go on in a copy: cp -r {quoted(run)} COPY, then {again}",
        ) from error


@contextmanager
def _claimed(config: RunConfig, group: Group | None) -> Iterator[Path]:
    """A folder for a run whose place is not said, the same in all processes."""
    from kdrs.runs.places import claimed

    if group is not None and not group.first:
        yield Path(group.told(None))
        return
    with claimed(_default_place(config)) as place:
        if group is not None:
            group.told(str(place))
        yield place


def _default_place(config: RunConfig) -> Path:
    import hashlib

    values = config.to_dict()
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    method = "+".join(term.name for term in config.distill) or label(config.model["name"])
    return (
        Path("runs")
        / Path(config.data.path).name
        / method
        / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{digest}"
    )


def _parse_seeds(text: str) -> Sequence[int]:
    from kdrs.runs.seeds import check_seeds

    form = r"\s*\d{1,18}\s*"
    if match := re.fullmatch(rf"({form})\.\.({form})", text, re.ASCII):
        seeds: Sequence[int] = range(int(match[1]), int(match[2]) + 1)  # as long as it may be: nothing is listed
    elif re.fullmatch(rf"{form}(,{form})*", text, re.ASCII):
        seeds = [int(part) for part in text.split(",")]
    else:
        seeds = []
    if not seeds:
        raise ConfigError(f"--seeds is {shown(text)}", "write it as 0..4 or 0,1,2")
    try:
        check_seeds(seeds)
    except ConfigError as error:
        raise ConfigError(f"--seeds is {shown(text)}: {error.cause}", error.remedy) from None
    return list(seeds)


def _one_seed(seed: int) -> str:
    """Before anything is trained: a single number is easily taken for how many."""
    many = f"; {seed} runs are --seeds 0..{seed - 1}" if seed > 1 else ""
    return f"--seeds {seed} is one run, with seed {seed}{many}"


def _print_plan(config: RunConfig, out: Path, seeds: Sequence[int] | None, as_json: bool) -> None:
    from kdrs.runs.execute import plan
    from kdrs.runs.places import check_free

    for place in _places(out, seeds):
        check_free(place)
    several = {} if seeds is None else {"seeds": seeds}
    found = {"out": str(out), **several, "config": config.to_dict(), **plan(config, out)}
    if as_json:
        say_json(found)
        return
    import tomli_w

    say(toml_text(tomli_w.dumps(found["config"])))
    for key, value in found.items():
        if key != "config":
            say(f"# {key}: {visible(str(value))}")
