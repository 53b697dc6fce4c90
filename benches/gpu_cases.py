"""Figures of one case of gpu.py, measured in a process of its own, and the folder that keeps figures."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODELS = ("bpr", "lightgcn", "sasrec")
METHODS = ("de", "cd", "rrd", "freqd", "hyperkdma", "bd", "hetcomp")
OPTIONS: dict[str, dict[str, Any]] = {
    "hyperkdma": {"assistants": 8},
    "hetcomp": {"states": 1},
}
HALVES = {"hyperkdma": {"precision": "bf16"}}
"""Methods with an option for bfloat16."""
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


# --- what is measured -----------------------------------------------------------------------------------------------


PREPARED: list[Path] = []
"""The data set that `gpu.py --prepare` left, if any."""


def train_pairs(quick: bool) -> Any:
    """The training pairs that are stepped through: few made-up ones, those that were prepared, or CiteULike's."""
    from measure import citeulike, made_up

    if quick:
        return made_up(300, 500, 8000)
    if PREPARED:
        from kdrs.data import Dataset

        return Dataset.load(PREPARED[0]).train
    return citeulike()


def learners_of(case: str, device: str, quick: bool, options: dict[str, Any] | None = None) -> tuple[list[Any], Any]:
    """The learners of a model, or of a method on BPR, and their task; the same weights on every device."""
    import torch

    from kdrs.distillers import DISTILLERS
    from kdrs.fitting.learner import Learner, Term
    from kdrs.models import MODELS as classes
    from kdrs.teachers.model import ModelTeacher

    train = train_pairs(quick)
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
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
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

    train = train_pairs(quick)
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


def run_case(name: str, device: str, quick: bool, figures: Figures, data: Path | None = None) -> None:
    """All figures of a case; those that are there already are left. ``data`` is a prepared data set that may be there."""
    import torch

    PREPARED[:] = [data] if data is not None and (data / "dataset.json").is_file() else []

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
