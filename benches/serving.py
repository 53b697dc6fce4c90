"""A student, served: loading, memory, one user's list, batches of users, lists of all users into a file; beside the peers.

    [PARTS=load,one,batch,command,query] python benches/serving.py [--record docs/results/serving.json]

Standard normal vectors of 64 dimensions, 20 seen items a user, which are left out of lists of 20.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from kdrs import Codes, Student
from kdrs.compact.tables import Tables
from kdrs.core import ranking
from kdrs.core.names import Names
from kdrs.data.interactions import Interactions
from measure import SETTLE, arguments, factors, machine, report, shown, times

K, DIM, SEEN = 20, 64, 20
BITS = (None, 8, 4, 2, 1)


def student(n_users: int, n_items: int, bits: int | None, seen: bool = True) -> Student:
    q, x = factors(n_users, n_items, DIM)
    users, items = (Codes.of(side, bits) if bits else side for side in (q, x))
    rng = np.random.default_rng(1)
    pairs = Interactions.from_pairs(
        np.repeat(np.arange(n_users), SEEN), rng.integers(0, n_items, n_users * SEEN), n_users, n_items
    )
    popular = np.argsort(-pairs.column_degrees, kind="stable")[:1000].astype(np.int32)
    return Student(
        Tables(items, users),
        Names.of([f"item-{n}" for n in range(n_items)], "item"),
        Names.of([f"user-{n}" for n in range(n_users)], "user"),
        seen=pairs if seen else None,
        popular=popular,
        popular_counts=pairs.column_degrees[popular].astype(np.int32),
    )


def called(bits: int | None) -> str:
    return "float32" if bits is None else f"{bits} bit" + "s" * (bits > 1)


# --- loading, in a process of its own -------------------------------------------------------------------------------

LOADING = """
import json, sys, time
from kdrs import Student

def resident():
    with open("/proc/self/status") as status:
        found = dict(line.split(":", 1) for line in status)
    return [int(found[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon")]

path, out = sys.argv[1], {}
before = resident()
began = time.perf_counter()
student = Student.load(path)
out["first"] = time.perf_counter() - began
out["loaded"] = [now - then for now, then in zip(resident(), before)]
rng = __import__("numpy").random.default_rng(0)
for user in rng.integers(0, len(student.users), 100).tolist():
    student.recommend([f"user-{user}"], 20, seen=student.seen is not None)
out["asked"] = [now - then for now, then in zip(resident(), before)]
out["torch"] = "torch" in sys.modules
for name, verify in (("checked", True), ("unchecked", False)):
    taken = []
    for _ in range(15):
        began = time.perf_counter()
        Student.load(path, verify=verify)
        taken.append(time.perf_counter() - began)
    out[name] = sorted(taken)[7], min(taken)
print(json.dumps(out))
"""


def loading(path: Path) -> dict[str, Any]:
    run = subprocess.run([sys.executable, "-c", LOADING, str(path)], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def load_rows(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for bits in (None, 4):
        for seen in (False, True):
            path = folder / "load.safetensors"
            size = student(100_000, 100_000, bits, seen).save(path)
            found = loading(path)
            assert not found["torch"]
            rows.append({
                "tables": called(bits), "seen pairs": "20 a user" if seen else "none", "file, MB": size / 1e6,
                "load, ms": found["checked"][0] * 1e3, "least": found["checked"][1] * 1e3,
                "first in a process": found["first"] * 1e3, "verify=False": found["unchecked"][0] * 1e3,
                "resident - file, MB": (found["loaded"][0] - size) / 1e6,
                "after 100 requests": (found["asked"][0] - size) / 1e6, "of its own (anonymous)": found["asked"][1] / 1e6,
            })  # fmt: skip
            path.unlink()
    return rows


# --- one user, and many ---------------------------------------------------------------------------------------------


def peers(made: Student, threads: int) -> dict[str, Callable[[list[int]], Any]]:
    """What the others do for some users (rows): lists of K without what was seen. Those that cannot leave out items are
    asked for more and cut."""
    q, x, seen = made.tables.users, made.tables.items, made.seen
    assert isinstance(q, np.ndarray)
    assert isinstance(x, np.ndarray)
    assert seen is not None
    found: dict[str, Callable[[list[int]], Any]] = {}

    def cut(rows: list[int], places: Any, scores: Any) -> Any:
        out = []
        for row, own, values in zip(rows, places, scores, strict=True):
            kept = ~np.isin(own, seen.row(row))
            out.append((own[kept][:K], values[kept][:K]))
        return out

    def more(rows: list[int]) -> int:
        return K + int(seen.row_degrees[rows].max())

    try:
        base = importlib.import_module("implicit.cpu.matrix_factorization_base")
        model = type("Model", (base.MatrixFactorizationBase,), {"fit": None, "save": None, "load": None})(threads)
        model.user_factors, model.item_factors = q, x
        matrix = scipy.sparse.csr_matrix(seen.to_csr())

        def by_implicit(rows: list[int]) -> Any:
            if len(rows) == 1:
                return model.recommend(rows[0], matrix[rows[0]], N=K)
            return model.recommend(np.array(rows), matrix[rows], N=K)

        found["implicit"] = by_implicit
    except ImportError:
        pass
    try:
        faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(DIM)
        index.add(x)

        def by_faiss(rows: list[int]) -> Any:
            scores, places = index.search(q[rows], more(rows))
            return cut(rows, places, scores)

        found["faiss, flat"] = by_faiss
    except ImportError:
        pass
    try:
        usearch = importlib.import_module("usearch.index")

        def by_usearch(rows: list[int]) -> Any:
            matches = usearch.search(x, q[rows], more(rows), metric="ip", exact=True, threads=threads)
            return cut(rows, np.atleast_2d(matches.keys), -np.atleast_2d(matches.distances))

        found["usearch, exact"] = by_usearch
    except ImportError:
        pass
    return found


def asking(made: Student, threads: int) -> Callable[[list[int]], Any]:
    return lambda rows: made.recommend([f"user-{row}" for row in rows], K, threads=threads)


def in_turns(calls: dict[str, Callable[[int], Any]], requests: int, step: int = 50) -> dict[str, np.ndarray]:
    """Seconds of each request: the calls take turns, so that what disturbs the machine disturbs all alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for start in range(0, requests, step):
        for name, call in calls.items():
            time.sleep(SETTLE)
            call(start)
            for number in range(start, start + step):
                began = time.perf_counter()
                call(number)
                taken[name].append(time.perf_counter() - began)
    return {name: np.array(values) * 1e3 for name, values in taken.items()}


def spread(taken: dict[str, np.ndarray], what: str, base: str) -> list[dict[str, Any]]:
    return [
        {
            what: name,
            **{f"p{p}, ms": float(np.quantile(values, p / 100)) for p in (10, 50, 99)},
            f"of {base}, p10": float(np.quantile(values, 0.1) / np.quantile(taken[base], 0.1)),
        }
        for name, values in taken.items()
    ]


def one_rows(made: dict[int | None, Student], threads: int, requests: int) -> list[dict[str, Any]]:
    rows = np.random.default_rng(2).integers(0, len(made[None].users or ()), requests + 1).tolist()
    calls = {f"kdrs, {called(bits)}": asking(one, threads) for bits, one in made.items()}
    calls |= {"ranking.topk, float32": lambda one: bare(made[None], np.array(one), threads)()} | peers(
        made[None], threads
    )
    taken = in_turns({name: lambda at, call=call: call([rows[at]]) for name, call in calls.items()}, requests)
    return spread(taken, "one user's list", "kdrs, float32")


def query_rows(threads: int, requests: int = 150) -> list[dict[str, Any]]:
    """`ranking.topk` of one query, without seen items."""
    import torch

    rows = []
    for n_items, dim in ((2078, 16), (20_000, 16), (200_000, 16), (200_000, 64)):
        q, x = factors(requests + 1, n_items, dim)
        tq, tx = torch.from_numpy(q), torch.from_numpy(x)

        def by_numpy(at: int, q: Any = q, x: Any = x) -> Any:
            scores = x @ q[at]
            best = np.argpartition(scores, -K)[-K:]
            return best[np.argsort(-scores[best])]

        calls = {
            "kdrs": lambda at, q=q, x=x: ranking.topk(q[at : at + 1], x, K, threads=threads),
            "NumPy": by_numpy,
            "torch": lambda at, q=tq, x=tx: torch.mv(x, q[at]).topk(K),
        }
        taken = in_turns(calls, requests, 25)
        low = {name: float(np.quantile(values, 0.1)) for name, values in taken.items()}
        rows.append(
            {"items x dimensions": f"{n_items:,} x {dim}"}
            | {f"{name}, p10 ms": value for name, value in low.items()}
            | {f"{name}, p50": float(np.median(values)) for name, values in taken.items()}
            | {"of the faster peer, p10": low["kdrs"] / min(low["NumPy"], low["torch"])}
        )
    return rows


def batch_rows(made: dict[int | None, Student], options: Any, size: int = 4096) -> list[dict[str, Any]]:
    rows = np.random.default_rng(3).permutation(len(made[None].users or ()))[:size]
    calls: dict[str, Any] = {}
    for bits, one in made.items():
        calls[f"ranking.topk, {called(bits)}"] = bare(one, rows, options.threads)
        calls[f"kdrs, {called(bits)}"] = lambda one=one: asking(one, options.threads)(rows.tolist())
    for name, call in peers(made[None], options.threads).items():
        calls[name] = lambda call=call: call(rows.tolist())
    taken = times(calls, options.repeats, 8)
    return [
        {
            f"{size:,} users' lists": name, "ms": seconds * 1e3, "users a second": size / seconds,
            "of kdrs, float32": seconds / taken["kdrs, float32"],
            "of ranking.topk": seconds / taken[name.replace("kdrs", "ranking.topk")] if name.startswith("kdrs") else None,
        }
        for name, seconds in taken.items()
    ]  # fmt: skip


def bare(made: Student, rows: np.ndarray, threads: int) -> Callable[[], Any]:
    users: Any = made.tables.users
    return lambda: ranking.topk(users[rows], made.tables.items, K, seen=made.seen, rows=rows, threads=threads)


# --- lists of all users into a file ---------------------------------------------------------------------------------


def command_rows(folder: Path, n_users: int) -> list[dict[str, Any]]:
    rows = []
    for bits in (None, 4):
        path = folder / "s.safetensors"
        made = student(n_users, 100_000, bits)
        size = made.save(path)
        began = time.perf_counter()
        step = 1 << 15
        for start in range(0, n_users, step):
            bare(made, np.arange(start, min(n_users, start + step)), len(os.sched_getaffinity(0)))()
        kernel = time.perf_counter() - began
        del made
        for ending in (".parquet", ".csv"):
            out = folder / f"lists{ending}"
            words = ["recommend", path, "--k", K, "--out", out]
            seconds, peak = measured([str(word) for word in words])
            rows.append({
                "tables": called(bits), "into": ending, "seconds": seconds, "users a second": n_users / seconds,
                "of the lists alone": seconds / kernel, "file, MB": size / 1e6, "peak - file, MB": peak / 1e6 - size / 1e6,
                "written, MB": out.stat().st_size / 1e6,
            })  # fmt: skip
            out.unlink()
        path.unlink()
    return rows


COMMAND = """
import sys
from kdrs.cli import main

try:
    main()
finally:
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM:")), file=sys.stderr)
"""


def measured(words: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of a ``kdrs`` command. What wait4 tells counts the parent's memory in: the kernel keeps
    the peak of the process that was forked."""
    began = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, check=True)
    return time.perf_counter() - began, int(run.stderr.split()[-1]) * 1024


# --- the record -----------------------------------------------------------------------------------------------------

TITLES = {
    "load": "Loading: 100,000 users x 100,000 items",
    "one": "One user: 25,182 items",
    "batch": "4,096 users: 25,182 items",
    "command": "`kdrs recommend`: 300,000 users x 100,000 items",
    "query": "One query of `ranking.topk`, nothing left out",
}
READINGS = {
    "load": [
        "Bars: 50 ms; the file and 30 MB. A process that imports `kdrs.Student` alone; its memory then is subtracted.",
        "Median and least of 15. Pages of the file that were read count as resident; anonymous memory is what is its own.",
    ],
    "one": [
        "Bars: p50 0.3 ms, p99 1 ms. 5,219 users, ids in, ids out for kdrs; rows for the peers.",
        "faiss and usearch cannot leave out items: they are asked for 20 more, and cut.",
        "p10 is nearest to an idle machine; p99 is the neighbours' work as much as ours.",
    ],
    "batch": [
        "The same students and peers, 4,096 users at once. Shares of `ranking.topk` below 1 are the noise of a shared machine."
    ],
    "command": [
        "Bar: 1 GB above the file. Seconds of the whole process. The lists alone are `ranking.topk`, 32,768 users at a time.",
    ],
    "query": ["NumPy: `x @ q`, argpartition, sort. torch: `mv`, `topk`."],
}


def figure(part: str, rows: list[dict[str, Any]], load: tuple[float, float]) -> dict[str, Any]:
    about = machine()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {
        "title": TITLES[part],
        "command": f"`PARTS={part} python benches/serving.py`",
        "machine": f"{about['processor']}, {about['processors']} cores, shared: load {load[0]:.1f} to {load[1]:.1f}; "
        f"Python {about['python']}, NumPy {np.__version__}",
        "commit": about["commit"],
        "reading": READINGS[part],
        "columns": columns,
        "rows": [[shown(row.get(column)) for column in columns] for row in rows],
    }


def answers(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    load, one, command = rows["load"], rows["one"], rows["command"]
    quick = {row["one user's list"]: row for row in one}
    batch = {row["4,096 users' lists"]: row for row in rows["batch"]}
    ours = [row["of ranking.topk"] for row in batch.values() if row["of ranking.topk"] is not None]
    mine, peer = quick["kdrs, float32"], quick.get("implicit")
    beside = "" if peer is None else f"; implicit: {peer['p10, ms']:.2f} and {peer['p50, ms']:.2f} ms"
    return [
        f"A file of 100,000 users and items opens in {max(row['load, ms'] for row in load):.0f} ms or less (bar 50) and takes "
        f"{max(row['after 100 requests'] for row in load):.0f} MB beside itself (bar 30).",
        f"One user's list among 25,182 items takes {mine['p10, ms']:.2f} ms at p10 and {mine['p50, ms']:.2f} at p50 (bar 0.3)"
        f"{beside}.",
        f"Batches take {min(ours):.2f} to {max(ours):.2f} of the time of `ranking.topk`.",
        f"300,000 users' lists are a file in {min(row['seconds'] for row in command):.0f} to "
        f"{max(row['seconds'] for row in command):.0f} s, in {max(row['peak - file, MB'] for row in command):.0f} MB beside "
        "the student's file (bar 1,000).",
    ]


def main() -> None:
    options = arguments(__doc__, record=True)
    parts = os.environ.get("PARTS", ",".join(TITLES)).split(",")
    found: dict[str, list[dict[str, Any]]] = {}
    figures = []
    with tempfile.TemporaryDirectory() as name:
        made = {bits: student(5219, 25_182, bits) for bits in BITS} if {"one", "batch"} & set(parts) else {}
        runs: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "load": lambda: load_rows(Path(name)),
            "one": lambda: one_rows(made, options.threads, 1000),
            "batch": lambda: batch_rows(made, options),
            "command": lambda: command_rows(Path(name), 300_000),
            "query": lambda: query_rows(options.threads),
        }
        for part in parts:
            before = os.getloadavg()[0]
            found[part] = runs[part]()
            if options.record is None:
                report(TITLES[part], found[part], options)
            else:
                figures.append(figure(part, found[part], (before, os.getloadavg()[0])))
    if options.record is not None:
        record = {
            "title": "Serving: speed and memory", "question": "How fast does a student answer, and in how much memory?",
            "answer": answers(found), "figures": figures,
        }  # fmt: skip
        options.record.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
