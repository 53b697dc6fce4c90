"""Training steps and epochs of the costly methods beside plain torch loops that compute the same by the letter of the papers.

    python benches/steps.py [--only "de;rrd"] [--rounds 3] [--threads 2] [--json]

Needs torch alone; CiteULike's sizes: BPR 200 -> 20, batch 1,024, random vectors. The plain loops are what published code
does: one pair of layers an expert for all rows, three blocks [rows, d_T, M] a mixture, the hypernetwork's whole output
[rows, d_T, D] for users, positives and negatives in turn, autograd through all of it, torch.optim.Adam on dense gradients,
users x items masks and rankings for draws. Each side of a case runs in a process of its own, one after the other, ``rounds``
times over; a side's figure is the median of its steps, over all rounds. ``bar`` is what a step (epoch) may take at most of the
plain one: the seconds asked for over the seconds of the authors' code on the machine where both were set.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # both as the command line does, before torch is loaded
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEACHER, STUDENT, BATCH = 200, 20, 1024
EXPERTS, ASSISTANTS = 30, (40, 60, 80, 100, 120, 140, 160, 180)
FINAL = 1e-10
ANNEALED = 300
"""The epoch that stands for a temperature that has fallen."""
INTERESTING, UNINTERESTING, POOL = 40, 40, 500
BD_BATCH, BD_UPDATE = 128, 10

BARS = {
    "de": 0.10 / 0.197,
    "de, annealed": 0.025 / 0.197,
    "hyperkdma": 1.5 / 11.8,
    "hyperkdma bf16": 0.6 / 11.8,
    "rrd": 1.5,
    "rrd draws": None,
    "bd": 1 / 100,
}
MEMORY_BARS = {"hyperkdma": 1.5 / 4.2}


class PlainExperts(nn.Module):
    """DE's mixture, one expert after the other."""

    def __init__(self, source: int, target: int):
        super().__init__()
        width = (source + target) // 2
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(source, width), nn.ReLU(), nn.Linear(width, target)) for _ in range(EXPERTS)
        )
        self.selector = nn.Linear(target, EXPERTS)

    def forward(self, target: Tensor, source: Tensor, temperature: float) -> Tensor:
        shares = torch.softmax(self.selector(target), dim=-1)
        noise = -torch.log(-torch.log(torch.rand_like(shares) + 1e-10) + 1e-10)
        shares = torch.softmax((torch.log(shares + 1e-10) + noise) / temperature, dim=-1)
        outputs = torch.stack([network(source) for network in self.networks], dim=-1)  # [E, d_T, M]
        mixed = (outputs * shares.unsqueeze(1)).sum(-1)
        return ((target - mixed) ** 2).sum(-1)


class Plain(nn.Module):
    """A BPR student with dense gradients, and DE or HyperKDMA over DE."""

    def __init__(self, n_users: int, n_items: int, case: str):
        super().__init__()
        self.users, self.items = nn.Embedding(n_users, STUDENT), nn.Embedding(n_items, STUDENT)
        self.teacher = [torch.randn(n, TEACHER) * 0.1 for n in (n_users, n_items)]
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.01)
        sizes = {"de": (TEACHER,), "hyperkdma": (TEACHER, *ASSISTANTS)}.get(case.split(",")[0].split()[0], ())
        self.experts = nn.ModuleList(
            nn.ModuleDict({kind: PlainExperts(STUDENT, size) for kind in ("of_users", "of_items")}) for size in sizes
        )
        if len(sizes) > 1:
            self.hypernetwork = nn.Linear(TEACHER, TEACHER * sum(ASSISTANTS))
            self.gate = nn.Linear(TEACHER, len(ASSISTANTS))

    def base(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        own = self.users(users)
        gap = (own * self.items(negatives)).sum(-1) - (own * self.items(positives)).sum(-1)
        return F.softplus(gap).sum()

    def hint(self, kind: str, ids: Tensor, temperature: float) -> Tensor:
        ids = torch.unique(ids)
        source = (self.users if kind == "of_users" else self.items)(ids)
        target = self.teacher[kind == "of_items"][ids]
        total = self.experts[0][kind](target, source, temperature).sum()
        if len(self.experts) > 1:
            gates = torch.softmax(self.gate(target), dim=-1)
            start, written = 0, self.hypernetwork(target)  # [E, d_T D]
            for k, size in enumerate(ASSISTANTS):
                mapping = written[:, start : start + size * TEACHER].view(-1, size, TEACHER)
                assistant = torch.bmm(mapping, target.unsqueeze(-1)).squeeze(-1)
                losses = self.experts[1 + k][kind](assistant, source, temperature)
                total = total + (gates[:, k] * losses).sum()
                start += size * TEACHER
        return total

    def hints(self, users: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
        items = self.hint("of_items", positives, temperature) + self.hint("of_items", negatives, temperature)
        return self.hint("of_users", users, temperature) + items / 2

    def relaxed_ranking(self, users: Tensor, lists: Tensor) -> Tensor:
        ids = torch.unique(users)
        scores = torch.bmm(self.items(lists[ids]), self.users(ids).unsqueeze(-1)).squeeze(-1)
        listed, rest = scores[:, :INTERESTING], scores[:, INTERESTING:].exp().sum(-1, keepdim=True)
        above = (listed.exp().flip(-1).cumsum(-1).flip(-1) + rest).log()
        return (above - listed).sum()

    def scoring(self, users: Tensor, lists: Tensor) -> Tensor:
        """The products that such a loss reads, and nothing made of them."""
        ids = torch.unique(users)
        return torch.bmm(self.items(lists[ids]), self.users(ids).unsqueeze(-1)).sum()


def plain_steps(case: str) -> Iterator[Callable[[], Any]]:
    from kdrs.training.pairs import PairTask
    from kdrs.training.queries import Epoch
    from measure import citeulike

    train = citeulike()
    batches = PairTask(train, batch_size=BATCH).draw(Epoch(0, 0, 1000))
    torch.manual_seed(0)
    model = Plain(*train.shape, case)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)
    epoch = ANNEALED if "annealed" in case else 0
    temperature = FINAL ** (max(epoch - 1, 0) / 1000)
    lists = torch.randint(train.shape[1], (train.shape[0], INTERESTING + UNINTERESTING))
    for batch in batches:

        def step(batch: Any = batch) -> None:
            own = (batch.queries.users, batch.positives, batch.negatives[:, 0])
            loss = model.base(*own)
            if case == "rrd":
                loss = loss + 1e-3 * model.relaxed_ranking(own[0], lists)
            elif case == "scoring":
                loss = loss + 1e-3 * model.scoring(own[0], lists)
            elif len(model.experts):
                loss = loss + 1e-2 * model.hints(*own, temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        yield step


def kdrs_steps(case: str) -> Iterator[Callable[[], Any]]:
    from kdrs.distillers import DISTILLERS
    from kdrs.fitting.fit import step_of
    from kdrs.fitting.learner import Learner, Term
    from kdrs.models import BPR
    from kdrs.teachers.model import ModelTeacher
    from kdrs.training.pairs import PairTask
    from kdrs.training.queries import Epoch
    from measure import citeulike

    train = citeulike()
    task = PairTask(train, batch_size=BATCH)
    torch.manual_seed(0)
    student, teacher = BPR(BPR.Config(dim=STUDENT), task), BPR(BPR.Config(dim=TEACHER, init_std=0.1), task)
    terms = []
    if case != "alone":
        method = DISTILLERS[case.split(",")[0].split()[0]]
        options = {"precision": "bf16"} if "bf16" in case else {}
        distiller = method(method.Config(**options), [ModelTeacher(teacher, task)], task, STUDENT, 1)
        terms = [Term(method.__name__.lower(), method.default_weight, distiller)]
    learners = [Learner(student, task, terms, weight_decay=1e-3)]
    epoch = Epoch(ANNEALED if "annealed" in case else 0, 0, 1000)
    learners[0].start(epoch, [term.distiller.draw(epoch) for term in terms])
    for batch in task.draw(epoch):
        yield lambda batch=batch: step_of(learners, batch)


def rrd_pool(shape: tuple[int, int]) -> Any:
    """int32 [U, 500]"""
    import numpy as np

    return np.stack([np.random.default_rng(u).choice(shape[1], POOL, replace=False) for u in range(shape[0])]).astype(
        "i4"
    )


def kdrs_draws(case: str) -> Iterator[Callable[[], Any]]:
    """RRD's lists of an epoch."""
    import numpy as np

    from kdrs.core import sampling
    from measure import citeulike

    seen = citeulike()
    pool, law = rrd_pool(seen.shape), np.exp(-np.arange(1, POOL + 1) / 10)

    def draw(seed: int) -> None:
        sampling.weighted(pool, law, INTERESTING, seed=seed, order="list")
        sampling.outside(seen, pool, UNINTERESTING, seed=seed)

    for seed in range(100):
        yield lambda seed=seed: draw(seed)


def plain_draws(case: str) -> Iterator[Callable[[], Any]]:
    """RRD's lists of an epoch from a dense mask."""
    from measure import citeulike

    seen = citeulike()
    mask = torch.ones(seen.shape)
    mask[torch.tensor(seen.row_of_pair).long(), torch.tensor(seen.indices).long()] = 0
    mask.scatter_(1, torch.from_numpy(rrd_pool(seen.shape)).long(), 0)
    weights = torch.exp(-torch.arange(1, POOL + 1) / 10).expand(seen.shape[0], -1)

    def draw() -> None:
        torch.multinomial(weights, INTERESTING).sort(dim=-1)
        torch.multinomial(mask, UNINTERESTING)

    while True:
        yield draw


def kdrs_bd() -> dict[str, Any]:
    """BD's epochs, 50 and 5 dimensions, batch 128: what every tenth begins with, and a step of both learners."""
    from kdrs.distillers import DISTILLERS
    from kdrs.fitting.fit import step_of
    from kdrs.fitting.learner import Learner, Term
    from kdrs.models import BPR
    from kdrs.teachers.model import ModelTeacher
    from kdrs.training.pairs import PairTask
    from kdrs.training.queries import Epoch
    from measure import citeulike

    task = PairTask(citeulike(), batch_size=BD_BATCH)
    torch.manual_seed(0)
    student, teacher = BPR(BPR.Config(dim=5, init_std=1.0), task), BPR(BPR.Config(dim=50, init_std=1.0), task)
    method = DISTILLERS["bd"]
    distiller = method(method.Config(), [ModelTeacher(teacher, task, live=True)], task, 5, 1)
    first = Learner(student, task, [Term("bd", method.default_weight, distiller)])
    learners = [first, *first.counterparts()]
    epoch = Epoch(0, 0, 100)
    samples = [[term.distiller.draw(epoch) for term in learner.terms] for learner in learners]
    batches = task.draw(epoch)
    began = time.perf_counter()
    for learner, own in zip(learners, samples, strict=True):
        learner.start(epoch, own)
    refresh, taken = time.perf_counter() - began, []
    for batch in batches:
        began = time.perf_counter()
        step_of(learners, batch)
        taken.append(time.perf_counter() - began)
        if len(taken) > 100:
            break
    return {"refresh": refresh, "step": statistics.median(taken), "steps": len(batches)}


def plain_bd() -> dict[str, Any]:
    """The same: ranks by sorting every user's scores twice, dense weights, draws of a batch from its users' rows of them."""
    from kdrs.training.pairs import PairTask
    from kdrs.training.queries import Epoch
    from measure import citeulike

    seen = citeulike()
    users, items = torch.tensor(seen.row_of_pair).long(), torch.tensor(seen.indices).long()
    torch.manual_seed(0)
    tables = [[nn.Parameter(torch.randn(n, dim)) for n in seen.shape] for dim in (5, 50)]
    optimizers = [torch.optim.Adam(own, lr=1e-3) for own in tables]
    batches = PairTask(seen, batch_size=BD_BATCH).draw(Epoch(0, 0, 100))

    def refresh() -> list[Tensor]:
        unseen = torch.ones(seen.shape)
        unseen[users, items] = 0
        with torch.no_grad():
            ranks = []
            for queries, table in tables:
                order = (queries @ table.T).argsort(dim=1, descending=True)
                ranks.append(order.argsort(dim=1))
        gap = (ranks[0] - ranks[1]).float()  # the student's less the teacher's
        return [(1e-2 * gap).clamp(min=0).tanh() * unseen, (-1e-4 * gap).exp() * unseen]

    def scores(own: list[nn.Parameter], asked: Tensor, ids: Tensor) -> Tensor:
        return (F.embedding(asked, own[0]) * F.embedding(ids, own[1])).sum(-1)

    def step(weights: list[Tensor], batch: Any) -> None:
        asked, positives, negatives = batch.queries.users, batch.positives, batch.negatives[:, 0]
        drawn = [torch.multinomial(own[asked], 1, replacement=True)[:, 0] for own in weights]
        losses = []
        for own, other, ids in zip(tables, tables[::-1], drawn, strict=True):
            gap = scores(own, asked, negatives) - scores(own, asked, positives)
            labels = torch.sigmoid(scores(other, asked, ids).detach() / 5)
            soft = F.binary_cross_entropy_with_logits(scores(own, asked, ids), labels, reduction="sum")
            losses.append(F.softplus(gap).sum() + 0.5 * soft)
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    began = time.perf_counter()
    weights = refresh()
    taken, refreshed = [], time.perf_counter() - began
    for batch in batches:
        began = time.perf_counter()
        step(weights, batch)
        taken.append(time.perf_counter() - began)
        if len(taken) > 50:
            break
    return {"refresh": refreshed, "step": statistics.median(taken), "steps": len(batches)}


STEPS = {"hyperkdma": 3, "hyperkdma bf16": 3}
"""Timed steps a round; others 10."""


def measure(case: str, side: str) -> dict[str, Any]:
    from kdrs.fitting.fit import flushing_subnormals

    make = {
        ("kdrs", False): kdrs_steps,
        ("plain", False): plain_steps,
        ("kdrs", True): kdrs_draws,
        ("plain", True): plain_draws,
    }[side, "draws" in case]
    count, taken = STEPS.get(case, 10), []
    if case == "bd":
        with flushing_subnormals():
            found = {"kdrs": kdrs_bd, "plain": plain_bd}[side]()
        epoch = found["refresh"] / BD_UPDATE + found["step"] * found["steps"]
        return {"taken": [epoch], "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, **found}
    if side == "plain" and case == "hyperkdma bf16":
        case = "hyperkdma"
    with flushing_subnormals():
        for index, step in enumerate(make(case)):
            began = time.perf_counter()
            step()
            taken.append(time.perf_counter() - began)
            if index == count or sum(taken) > 120:
                break
    return {"taken": taken[1:] or taken, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"of {'; '.join(BARS)}; separated by semicolons")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(*options.case)))
        return
    cases = list(BARS) if options.only is None else options.only.split(";")
    if unknown := set(cases) - set(BARS):
        parser.error(f"no case {unknown.pop()!r}; allowed: {'; '.join(BARS)}")
    rows = []
    for case in cases:
        sides = [("kdrs", case), ("plain", case)]
        if case == "rrd":
            sides += [("plain", "scoring"), ("kdrs", "alone"), ("plain", "alone")]
        found: dict[tuple[str, str], list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, own in sides:
                command = [sys.executable, str(Path(__file__)), "--threads", str(options.threads), "--case", own, side]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[side, own].append(json.loads(done.stdout.splitlines()[-1]))
        ms = {side: 1e3 * statistics.median(t for one in own for t in one["taken"]) for side, own in found.items()}
        peak = {side: max(one["peak"] for one in own) for side, own in found.items()}
        ours, plain = ("kdrs", case), ("plain", case)
        row = {
            "case": case,
            "kdrs ms": ms[ours],
            "plain ms": ms[plain],
            "of plain": ms[ours] / ms[plain],
            "bar": BARS[case],
        }
        if case == "rrd":  # its bar is over plain BPR with the scoring of the lists
            row["of plain"], row["note"] = ms[ours] / ms["plain", "scoring"], "of plain BPR with scoring: "
            row["note"] += (
                f"{ms['plain', 'scoring']:.3g} ms; BPR alone {ms['plain', 'alone']:.3g}, kdrs {ms['kdrs', 'alone']:.3g}"
            )
        rows.append(row | {"kdrs MB": round(peak[ours]), "plain MB": round(peak[plain])})
        if case == "bd":
            parts = {side: found[side, case][-1] for side in ("kdrs", "plain")}
            rows[-1]["note"] = "an epoch, with a tenth of a refresh; refresh s, step ms: " + "; ".join(
                f"{side} {own['refresh']:.3g}, {1e3 * own['step']:.3g}" for side, own in parts.items()
            )
        if case in MEMORY_BARS:
            rows[-1]["note"] = f"memory {peak[ours] / peak[plain]:.2f} of plain, bar {MEMORY_BARS[case]:.2f}"
        print(rows[-1], file=sys.stderr)
    from measure import report

    report(f"Steps, CiteULike's sizes, {options.threads} thread(s)", rows, options)


if __name__ == "__main__":
    main()
