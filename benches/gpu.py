"""What there is to see on a GPU, in one short visit: tests, steps and epochs beside the CPU, the evaluator, a whole training.

    python benches/gpu.py --prepare [--python 3.12]       before, without a GPU: data set, teacher, wheels
    python benches/gpu.py [--device cuda] [--minutes 10]  the visit
    python benches/gpu.py --device cpu --quick            the same program without a GPU, in a minute or two

In this order: the tests marked ``gpu``; steps of models and methods in float32, TF32 and, where a method has it, bfloat16,
beside the CPU's; epochs of models; the evaluator on factors of the device; HyperKDMA 200 -> 20 with 8 assistants on CiteULike,
leave-one-out, to its end.

Each figure is a file of its own in ``--out``/figures, written when it is known, and ``gpu.md`` there is made of all of them
again: a kill loses nothing. The same command goes on where it was stopped; ``--again`` forgets former figures. A case that
fails or takes longer than its share is noted, and the next one begins: each runs in a process of its own.

What was prepared lies in ``--out``: data, teacher, and wheels of kdrs and of what it and the tests need. With them the visit
needs PyTorch, NumPy and this checkout: no network, no Rust, no data sets (``make gpu`` installs the wheels where there is no
cargo). Without them it needs CiteULike in the folder that KDRS_DATA names; steps take made-up pairs of its size where it is
absent.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_cases import BATCH, METHODS, MODELS, STUDENT, TEACHER, Figures, run_case

HERE = Path(__file__).resolve()
SHARES = {"tests": 130.0, "steps": 190.0, "epochs": 50.0, "evaluator": 30.0}
"""Seconds that a stage may take at most, of ten minutes; the training has what is left."""
CASE = 45.0
"""Seconds of one case."""


# --- the visit ------------------------------------------------------------------------------------------------------


class Visit:
    """The stages, one after the other, while there is time."""

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
            own = ["--case", case, "--device", self.options.device, "--out", str(self.out)]  # and what was prepared
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


def wheels(place: Path, python: str, has: list[str]) -> None:
    """Wheels of kdrs and of what it and the tests need, for that Python on Linux of this processor, but for what the machine
    ``has``."""
    shutil.rmtree(place, ignore_errors=True)
    build = [sys.executable, "-m", "maturin", "build", "--release", "--out", str(place)]
    subprocess.run(build, check=True)
    needed: dict[str, str] = {}
    there: dict[str, str] = {}
    for name in has:
        closure(name, there)
    for name in ("kdrs", "pytest", "pytest-xdist", "hypothesis"):
        closure(name, needed)
    pins = [f"{name}=={version}" for name, version in sorted(needed.items()) if name not in {*there, "kdrs"}]
    machine = platform.machine()
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in (17, 24, 27, 28)] + [f"manylinux2014_{machine}", "any"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(place),
    ]
    target = ["--python-version", python, "--implementation", "cp", *(f"--platform={name}" for name in platforms)]
    subprocess.run([*command, *target, *pins], check=True)


def closure(name: str, found: dict[str, str]) -> None:
    """Adds an installed package and all that it needs here, with versions; extras are left out."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    name = canonicalize_name(name)
    if name in found:
        return
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:  # for another system
        return
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            closure(requirement.name, found)


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
    parser.add_argument("--python", default=f"3.{sys.version_info[1]}", help="of the machine that is prepared for")
    parser.add_argument("--has", default="torch,numpy", help="packages that it has, with all that they need")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        run_case(options.case, options.device, options.quick, Figures(options.out / "figures"), options.out / "data")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what runs is ended too
    if options.prepare:
        options.device = "cpu"
        data, teacher = prepared(options.out, options)
        shutil.rmtree(teacher / "checkpoint", ignore_errors=True)  # three quarters of what would travel; it has ended
        wheels(options.out / "wheels", options.python, options.has.split(","))
        print(f"\nprepared: {data}, {teacher}, {options.out / 'wheels'}")
        return
    if options.again:
        for path in (options.out / "figures").glob("*.json"):
            path.unlink()
    Visit(options).all()


if __name__ == "__main__":
    main()
