"""What there is to see on a GPU, in one short visit: tests, steps and epochs beside the CPU, the evaluator, a whole training.

    python benches/gpu.py --prepare                       before, without a GPU: data set, teacher, wheel
    python benches/gpu.py [--device cuda] [--minutes 10]  the visit
    python benches/gpu.py --device cpu --quick            the same program without a GPU, in two minutes

In this order: the tests marked ``gpu``; steps of models and methods in float32, TF32 and, where a method has it, bfloat16,
beside the CPU's; epochs of models; the evaluator on factors of the device; HyperKDMA 200 -> 20 with 8 assistants on CiteULike,
leave-one-out, to its end.

Each figure is a file of its own in ``--out``/figures, written when it is known, and ``gpu.md`` there is made of all of them
again: a kill loses nothing. The same command goes on where it was stopped; ``--again`` forgets former figures. A case that
fails or takes longer than its share is noted, and the next one begins: each runs in a process of its own.

Needs CiteULike in the folder that KDRS_DATA names; steps take made-up pairs of its size where it is absent.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).resolve()
MODELS = ("bpr", "lightgcn", "sasrec")
METHODS = ("de", "cd", "rrd", "freqd", "hyperkdma", "bd", "hetcomp")
OPTIONS: dict[str, dict[str, Any]] = {
    "hyperkdma": {"assistants": 8},
    "hetcomp": {"states": 1},
}
HALVES = {"hyperkdma": {"precision": "bf16"}}
"""Methods with an option for bfloat16."""
SHARES = {"tests": 130.0, "steps": 190.0, "epochs": 50.0, "evaluator": 30.0}
"""Seconds that a stage may take at most, of ten minutes; the training has what is left."""
CASE = 45.0
FIRST = 3
"""Steps whose losses are compared between devices."""
TEACHER, STUDENT, BATCH = 200, 20, 1024


# --- figures --------------------------------------------------------------------------------------------------------


class Figures:
    """A folder of figures, a file each, and a page of all of them."""

    def __init__(self, place: Path):
        self.place = place
        place.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        return (self.place / f"{name}.json").is_file()

    def add(self, name: str, value: dict[str, Any]) -> None:
        self._write(f"{name}.json", json.dumps(value, indent=1) + "\n")
        self._write("gpu.md", page_of(self.all()))
        print(f"{name}: {json.dumps(value)[:300]}", flush=True)

    def all(self) -> dict[str, dict[str, Any]]:
        found = (path for path in sorted(self.place.glob("*.json"), key=lambda path: path.stat().st_mtime))
        return {path.stem: json.loads(path.read_text("utf-8")) for path in found}

    def _write(self, name: str, text: str) -> None:
        temporary = self.place / f".{name}.tmp"
        temporary.write_text(text, "utf-8")
        temporary.replace(self.place / name)


def page_of(figures: dict[str, dict[str, Any]]) -> str:
    """Figures by kind, a table each."""
    lines = ["# On a GPU", ""]
    kinds: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, value in figures.items():
        kinds.setdefault(name.partition("-")[0], []).append((name, value))
    for kind, rows in kinds.items():
        flat = [{"figure": name} | {k: v for k, v in value.items() if not isinstance(v, list)} for name, value in rows]
        columns = list(dict.fromkeys(key for row in flat for key in row))
        lines += [f"## {kind}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in flat] + [""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("\n", " ").replace("|", "\\|")


# --- what a case measures, in its own process -----------------------------------------------------------------------


def learners_of(case: str, device: str, quick: bool, options: dict[str, Any] | None = None) -> tuple[list[Any], Any]:
    """The learners of a model, or of a method on BPR, and their task; the same weights on every device."""
    import torch

    from kdrs.distillers import DISTILLERS
    from kdrs.fitting.learner import Learner, Term
    from kdrs.models import MODELS as classes
    from kdrs.teachers.model import ModelTeacher
    from measure import citeulike, made_up

    train = made_up(300, 500, 8000) if quick else citeulike()
    cls = classes[case if case in MODELS else "bpr"]

    def made(dim: int, task: Any = None) -> Any:
        torch.manual_seed(dim)
        options: Any = {} if dim == STUDENT or case in MODELS else {"init_std": 0.1}
        config = cls.Config(dim=dim, **options)
        if task is None:
            order = train.indices if case == "sasrec" else None  # any order will do for its time
            return cls.make_task(config, train, order=order, batch_size=64 if quick else BATCH, device=device)
        return cls(config, task).to(task.device)

    task, terms = made(STUDENT), []
    base: str | None = "model"
    student = made(STUDENT, task)
    if case not in MODELS:
        method = DISTILLERS[case]
        teacher = ModelTeacher(made(TEACHER, task), task, live=method.mutual)
        distiller = method(method.Config(**OPTIONS.get(case, {}), **(options or {})), [teacher], task, STUDENT, 1)
        terms, base = [Term(case, method.default_weight, distiller)], None if distiller.replaces_base else "model"
    learner = Learner(student, task, terms, weight_decay=1e-3, base=base)
    return [learner, *learner.counterparts()], task


def batches_of(learners: list[Any], task: Any) -> Iterator[Any]:
    """Batches of one epoch after the other, each begun when its turn comes."""
    from kdrs.training.queries import Epoch

    for index in range(1000):
        epoch = Epoch(index, 0, 1000)
        for learner in learners:
            learner.start(epoch, [term.distiller.draw(epoch) for term in learner.terms])
        yield from task.draw(epoch)
        for learner in learners:
            learner.finish()


def done(device: str) -> None:
    """Waits for the device."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def steps(learners: list[Any], task: Any, device: str, kind: str, quick: bool) -> dict[str, Any]:
    """Milliseconds of a step, the loss of the first ones together, and what a step waits for."""
    import torch

    from kdrs.fitting.fit import step_of

    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    torch.manual_seed(0)
    batches = batches_of(learners, task)
    total = sum(float(value) for _ in range(FIRST) for part in step_of(learners, next(batches)) for value in part)
    on_cpu = torch.device(device).type == "cpu"
    taken: list[float] = []
    for _ in range(0 if on_cpu else 7):
        step_of(learners, next(batches))
    began = time.perf_counter()
    for batch in batches:
        done(device)
        at = time.perf_counter()
        step_of(learners, batch)
        done(device)
        taken.append(time.perf_counter() - at)
        if len(taken) >= (3 if quick else 60) or time.perf_counter() - began > 4:
            break
    found = {"milliseconds": statistics.median(taken) * 1e3, "n": len(taken), f"loss of {FIRST} steps": total}
    found |= waits(learners, batches, device) | memory(device)
    for learner in learners:
        learner.finish()
    return found


def waits(learners: list[Any], batches: Iterator[Any], device: str) -> dict[str, Any]:
    """How often a step makes the host wait, and copies from the device, by the profiler; nothing on the CPU."""
    import torch

    if torch.device(device).type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    from kdrs.fitting.fit import step_of

    own = [batch for batch, _ in zip(batches, range(4), strict=False)]
    if len(own) < 4:
        return {}
    done(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for batch in own:
            step_of(learners, batch)
    counts = {event.key: event.count for event in seen.key_averages()}
    stops = sum(n for key, n in counts.items() if "Synchronize" in key and "Device" not in key)
    copies = sum(n for key, n in counts.items() if "Memcpy DtoH" in key)
    kernels = sum(n for key, n in counts.items() if "cudaLaunchKernel" in key or "cuLaunchKernel" in key)
    return {"waits a step": stops / 4, "copies back a step": copies / 4, "kernels a step": kernels / 4}


def memory(device: str) -> dict[str, Any]:
    import torch

    if torch.device(device).type != "cuda":
        return {}
    return {"peak MB": torch.cuda.max_memory_allocated(device) / 1e6}


def epochs(case: str, device: str, quick: bool) -> dict[str, Any]:
    """Seconds of an epoch of `fit`, draws and evaluation left out: the second and third of three."""
    from kdrs.fitting.fit import fit

    learners, task = learners_of(case, device, quick)
    rows = fit(learners, task, epochs=3).rows
    return {"seconds": min(row["seconds"] for row in rows[1:]), "batches": task.n_batches, "loss": rows[-1]["loss"]}


def evaluator(device: str, quick: bool) -> dict[str, Any]:
    """Seconds for all metrics of all users by factors of the device and of the CPU, and by how much the means differ."""
    import numpy as np
    import torch

    from kdrs.data.interactions import Interactions
    from kdrs.evaluation.evaluator import Evaluator
    from measure import citeulike, made_up

    train = made_up(300, 500, 8000) if quick else citeulike()
    rng = np.random.default_rng(0)
    n_users, n_items = train.shape
    held = rng.integers(0, n_items, n_users)
    fresh = ~np.isin(
        np.arange(n_users) * np.int64(n_items) + held, train.row_of_pair * np.int64(n_items) + train.indices
    )
    truth = Interactions.from_pairs(np.flatnonzero(fresh), held[fresh], n_users, n_items)
    measure = Evaluator(train, {"test": truth})
    found: dict[str, Any] = {}
    means = {}
    for dim in (STUDENT, TEACHER):
        vectors = [torch.from_numpy(rng.standard_normal((n, dim), np.float32)) for n in (n_users, n_items)]
        for name in dict.fromkeys((device, "cpu")):
            there = tuple(table.to(name) for table in vectors)
            means[name] = measure(there)["test"].means()
            done(name)
            at = time.perf_counter()
            measure(there)
            found[f"{dim} dims, {name}, seconds"] = time.perf_counter() - at
        gaps = [abs(value - means["cpu"][metric]) for metric, value in means[device].items()]
        found[f"{dim} dims, largest difference of a mean"] = max(gaps)
    return found


def run_case(name: str, device: str, quick: bool, figures: Figures) -> None:
    """All figures of a case; those that are there already are left."""
    import torch

    kind, _, case = name.partition("-")
    if quick:  # tiny sizes: threads would wait for each other
        torch.set_num_threads(1)
    torch.manual_seed(0)
    if kind == "steps":
        plans = [(device, "float32"), (device, "tf32"), ("cpu", "float32"), (device, "bf16"), ("cpu", "bf16")]
        made: tuple[str, list[Any], Any, list[dict[str, Any]]] | None = None
        for place, precision in dict.fromkeys(plans):
            figure = f"steps-{case}-{place.replace(':', '')}-{precision}"
            if figures.has(figure) or (precision == "bf16" and case not in HALVES):
                continue
            if made is None or made[0] != place or precision == "bf16":
                learners, task = learners_of(case, place, quick, HALVES[case] if precision == "bf16" else None)
                states = [{name: tensor.clone() for name, tensor in own.state().items()} for own in learners]
                made = place, learners, task, states
            _, learners, task, states = made
            for learner, state in zip(learners, states, strict=True):  # each begins with the same weights
                learner.load_state(state)
            figures.add(figure, steps(learners, task, place, precision, quick))
    elif kind == "epochs":
        for place in dict.fromkeys((device, "cpu")):
            if not figures.has(figure := f"epochs-{case}-{place.replace(':', '')}"):
                figures.add(figure, epochs(case, place, quick))
    elif not figures.has("evaluator"):
        figures.add("evaluator", evaluator(device, quick))


# --- the visit ------------------------------------------------------------------------------------------------------


class Visit:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.out: Path = options.out
        self.figures = Figures(self.out / "figures")
        self.end = time.monotonic() + 60 * options.minutes

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def all(self) -> None:
        stages: dict[str, Callable[[], None]] = {
            "tests": self.tests,
            "steps": lambda: self.cases("steps", (*MODELS, *METHODS)),
            "epochs": lambda: self.cases("epochs", MODELS),
            "evaluator": lambda: self.cases("evaluator", ("",)),
            "hyperkdma": self.training,
        }
        self.figures.add("machine", machine_of(self.options.device))
        for name in self.options.only.split(","):
            stages[name]()
        print(f"\n{self.out / 'figures/gpu.md'}")

    def tests(self) -> None:
        if self.figures.has("tests"):
            return
        began = time.monotonic()
        limit = min(SHARES["tests"], self.left)
        log = self.out / "tests.log"
        workers = ["-n", str(min(4, os.cpu_count() or 1))] if self.options.device != "cpu" else []
        # without a GPU: those of one file, all skipped
        chosen = ["tests"] if not self.options.quick else ["tests/test_ranking.py"]
        record = self.out / "tests.xml"
        record.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "pytest",
            *chosen,
            "-m",
            "gpu",
            "-q",
            "-rfE",
            "-p",
            "no:cacheprovider",
            *workers,
        ]
        code = run([*command, f"--junitxml={record}"], limit, log)
        tail = log.read_text("utf-8", "replace").splitlines()[-40:]
        found = {"exit code": code, "seconds": time.monotonic() - began, "end": [line[:300] for line in tail]}
        counts: dict[str, Any] = {"note": "timed out"} if code is None else {}
        if record.is_file():
            suite = ElementTree.parse(record).getroot().find("testsuite")
            if suite is not None:
                counts |= {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
        self.figures.add("tests", {**counts, **found})

    def cases(self, kind: str, names: tuple[str, ...]) -> None:
        end = min(time.monotonic() + SHARES[kind], self.end)
        for name in names:
            case = f"{kind}-{name}".rstrip("-")
            limit = min(CASE, end - time.monotonic())
            if limit < 3:
                self.figures.add(f"{case}-left", {"note": "no time was left for it"})
                continue
            (self.figures.place / f"{case}-left.json").unlink(missing_ok=True)
            own = ["--case", case, "--device", self.options.device, "--out", str(self.out)]
            command = [sys.executable, str(HERE), *own, *(["--quick"] if self.options.quick else [])]
            log = self.out / f"{case}.log"
            code = run(command, limit, log)
            if code != 0:
                tail = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
                why = "timed out" if code is None else f"exit code {code}: {' '.join(tail)[:300]}"
                self.figures.add(f"{case}-left", {"note": why})

    def training(self) -> None:
        """HyperKDMA beside the student alone; both stop at an end of time, with a checkpoint, and go on another time."""
        data, teacher = prepared(self.out, self.options)
        common = training_options(data, self.options)
        runs = {
            "alone": ["train", *common, "--dim", str(STUDENT)],
            "hyperkdma": [
                "distill", *common, "--dim", str(STUDENT), "--teacher", str(teacher), "--method", "hyperkdma", "--set",
                f"distill.0.assistants={2 if self.options.quick else 8}",
            ],
        }  # fmt: skip
        for name in ("hyperkdma", "alone"):
            if self.left > 5:
                self.carry_out(name, runs[name])

    def carry_out(self, name: str, arguments: list[str]) -> None:
        place, began = self.out / name, time.monotonic()
        started = (place / "config.toml").is_file()
        if not started or status_of(place).get("status") != "finished":
            own = ["resume", str(place)] if started else [*arguments, "--out", str(place)]
            run(kdrs(*own, "--quiet"), self.left, self.out / f"{name}.log")
        self.figures.add(f"hyperkdma-{name}", summary_of(place) | {"seconds of this visit": time.monotonic() - began})


def training_options(data: Path, options: argparse.Namespace) -> list[str]:
    common = [
        "--data",
        str(data),
        "--model",
        "bpr",
        "--lr",
        "1e-3",
        "--weight-decay",
        "1e-3",
        "--batch-size",
        str(BATCH),
    ]
    return [*common, "--epochs", "3" if options.quick else "1000", "--device", options.device, "--seed", "0"]


def prepared(out: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """The data set and the teacher, made where they are not there yet."""
    data, teacher = out / "data", out / "teacher"
    if not data.exists():
        if options.quick:
            import numpy as np

            from measure import made_up

            pairs = made_up(300, 500, 8000)
            rows = zip(pairs.row_of_pair.tolist(), np.asarray(pairs.indices).tolist(), strict=True)
            source = out / "clicks.csv"
            source.write_text("user,item\n" + "".join(f"u{user},i{item}\n" for user, item in rows), "utf-8")
            how = [str(source), "--split", "ratio"]
        else:
            how = ["citeulike-loo"]
        subprocess.run(kdrs("data", "prepare", *how, "--out", str(data)), check=True)
    if not (teacher / "config.toml").is_file():
        own = ["train", *training_options(data, options), "--dim", str(TEACHER)]
        subprocess.run(kdrs(*own, "--out", str(teacher), "--quiet"), check=True)
    elif status_of(teacher).get("status") != "finished":
        subprocess.run(kdrs("resume", str(teacher), "--quiet"), check=True)
    return data, teacher


def kdrs(*arguments: str) -> list[str]:
    """The command line, as a command; printed."""
    print("$ kdrs", shlex.join(arguments), flush=True)
    return [sys.executable, "-m", "kdrs", *arguments]


def run(command: list[str], limit: float, log: Path) -> int | None:
    """The exit code, or None for what had to be stopped: asked first, so that a training leaves its checkpoint."""
    with log.open("wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return child.wait(max(limit, 1))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            return None
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            raise


def status_of(place: Path) -> dict[str, Any]:
    path = place / "STATUS.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def summary_of(place: Path) -> dict[str, Any]:
    """How far a run came and how good it is: at its end, or after its last epoch."""
    metrics, report = place / "metrics.jsonl", place / "report.json"
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()] if metrics.is_file() else []
    found: dict[str, Any] = {"status": status_of(place).get("status"), "epochs": len(rows)}
    if rows:
        found["seconds an epoch"] = statistics.median(row["seconds"] for row in rows)
        found["seconds an evaluation"] = statistics.median(row.get("evaluation_seconds", 0.0) for row in rows)
    if report.is_file():
        parts = json.loads(report.read_text("utf-8"))["parts"]["test"]
        found |= {name: value for name, value in parts.items() if name.startswith(("hit@5", "ndcg@5", "hit@20"))}
    return found


def machine_of(device: str) -> dict[str, Any]:
    import torch

    from measure import machine

    own = machine() | {"torch": torch.__version__, "cuda": torch.version.cuda, "device": device}
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        own |= {
            "gpu": properties.name,
            "GB": properties.total_memory / 1e9,
            "processors": properties.multi_processor_count,
        }
    return own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny data and few steps: whether the program works")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--only", default="tests,steps,epochs,evaluator,hyperkdma", help="stages, in their order")
    parser.add_argument("--again", action="store_true", help="measure again what has been")
    parser.add_argument("--prepare", action="store_true", help="make data set, teacher and wheel, and measure nothing")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        run_case(options.case, options.device, options.quick, Figures(options.out / "figures"))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if options.prepare:
        options.device = "cpu"
        prepared(options.out, options)
        wheel = [sys.executable, "-m", "maturin", "build", "--release", "--out", str(options.out / "wheel")]
        subprocess.run(wheel, check=True)
        return
    if options.again:
        for path in (options.out / "figures").glob("*.json"):
            path.unlink()
    Visit(options).all()


if __name__ == "__main__":
    main()
