"""One query of a catalogue that was packed once, and one user's list of a student; beside the peers, in one run.

    [PARTS=query,student,packing] python benches/one_query.py [--record docs/results/one-query.json]

Standard normal vectors, lists of 20. Nothing is left out of the first, 20 seen items a user of the second.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from kdrs import Codes
from kdrs.core import ranking
from measure import arguments, factors, machine, report, shown
from serving import asking, called, in_turns, peers, spread, student

K = 20
SIZES = ((2078, 16), (20_000, 16), (200_000, 16), (200_000, 64))


def calls_of(q: np.ndarray, x: np.ndarray, threads: int) -> dict[str, Callable[[int], Any]]:
    """Every way to one query's best, by its row."""
    import torch

    tq, tx = torch.from_numpy(q), torch.from_numpy(x)
    catalogue = ranking.Catalogue(x)

    def by_numpy(at: int) -> Any:
        scores = x @ q[at]
        best = np.argpartition(scores, -K)[-K:]
        return best[np.argsort(-scores[best])]

    found: dict[str, Callable[[int], Any]] = {
        "Catalogue": lambda at: catalogue.topk(q[at : at + 1], K, threads=threads),
        "topk": lambda at: ranking.topk(q[at : at + 1], x, K, threads=threads),
        "NumPy": by_numpy,
        "torch": lambda at: torch.mv(tx, tq[at]).topk(K),
    }
    try:
        implicit = import_module("implicit.cpu.topk")
        found["implicit"] = lambda at: implicit.topk(x, q[at : at + 1], K, num_threads=threads)
    except ImportError:
        pass
    return found


def query_rows(threads: int, requests: int) -> list[dict[str, Any]]:
    rows = []
    for n_items, dim in SIZES:
        q, x = factors(requests + 1, n_items, dim)
        taken = in_turns(calls_of(q, x, threads), requests, 25)
        least, low, middle = ({name: float(of(values)) for name, values in taken.items()} for of in (
            np.min, lambda values: np.quantile(values, 0.1), np.median,
        ))  # fmt: skip
        others = [name for name in taken if name not in ("Catalogue", "topk")]
        rows.append(
            {"items x dimensions": f"{n_items:,} x {dim}"}
            | {f"{name}, p10 ms": value for name, value in low.items()}
            | {f"{name}, p50": value for name, value in middle.items()}
            | {
                "of the best peer, least": least["Catalogue"] / min(least[name] for name in others),
                "p10": low["Catalogue"] / min(low[name] for name in others),
                "p50": middle["Catalogue"] / min(middle[name] for name in others),
            }
        )
    return rows


def student_rows(threads: int, requests: int) -> list[dict[str, Any]]:
    made = {bits: student(5219, 25_182, bits) for bits in (None, 8, 4, 1)}
    rows = np.random.default_rng(2).integers(0, 5219, requests + 1).tolist()
    calls = {f"kdrs, {called(bits)}": asking(one, threads) for bits, one in made.items()} | peers(made[None], threads)
    taken = in_turns({name: lambda at, call=call: call([rows[at]]) for name, call in calls.items()}, requests)
    table = spread(taken, "one user's list", "kdrs, float32")
    for row in table:
        # What a neighbour takes is not in it; nor are helpers, whom a catalogue of this size does not wake.
        if row["one user's list"] in calls and row["one user's list"].startswith("kdrs"):
            own = [processor_time(calls[row["one user's list"]], [one]) for one in rows]
            row |= {f"processor time, p{p}": float(np.quantile(own, p / 100)) * 1e3 for p in (50, 99)}
    return table


def processor_time(call: Callable[[list[int]], Any], rows: list[int]) -> float:
    began = time.thread_time()
    call(rows)
    return time.thread_time() - began


def packing_rows(threads: int) -> list[dict[str, Any]]:
    rows = []
    for n_items, dim in SIZES:
        x = factors(1, n_items, dim)[1]
        for bits in (None, 8, 4, 1):
            items = x if bits is None else Codes.of(x, bits)
            taken = []
            for _ in range(5):
                began = time.perf_counter()
                made = ranking.Catalogue(items, threads=threads)
                taken.append(time.perf_counter() - began)
            rows.append({
                "items x dimensions": f"{n_items:,} x {dim}", "items": called(bits),
                "packing, ms (median of 5)": sorted(taken)[2] * 1e3, "bytes an item, packed": made.nbytes / n_items,
                "of the items": made.nbytes / items.nbytes,
            })  # fmt: skip
    return rows


TITLES = {
    "query": "One query, nothing left out",
    "student": "One user's list of a student: 25,182 items x 64",
    "packing": "What packing costs, once",
}
READINGS = {
    "query": [
        "Aim: never slower than the best peer; at 200,000 x 64 at most half of it.",
        "`Catalogue` is `kdrs.ranking.Catalogue(items)`, packed before; `topk` is `kdrs.ranking.topk`, which packs nothing.",
        "implicit: its compiled `topk`. NumPy: `x @ q`, argpartition, sort. torch: `mv`, `topk`. All with the same threads.",
        "The calls take turns, 25 queries each. p10 and the least are nearest to an idle machine.",
    ],
    "student": [
        "Bars: p50 0.3 ms, p99 1 ms. 5,219 users, ids in, ids out for kdrs; rows for the peers.",
        "20 seen items a user are left out.",
        "faiss cannot leave out items: it is asked for 20 more, and cut.",
        "p99 is the neighbours' work as much as ours. Processor time is this thread's alone, in ms.",
    ],
    "packing": ["A student packs its items when the first list is asked for."],
}


def figure(part: str, rows: list[dict[str, Any]], load: tuple[float, float]) -> dict[str, Any]:
    about = machine()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {
        "title": TITLES[part],
        "command": f"`PARTS={part} python benches/one_query.py`",
        "machine": f"{about['processor']}, {about['processors']} cores, shared: load {load[0]:.1f} to {load[1]:.1f}; "
        f"Python {about['python']}, NumPy {np.__version__}",
        "commit": about["commit"],
        "reading": READINGS[part],
        "columns": columns,
        "rows": [[shown(row.get(column)) for column in columns] for row in rows],
    }


def answers(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    said = []
    if "query" in rows:
        shares = ", ".join(f"{row['p10']:.2f} at {row['items x dimensions']}" for row in rows["query"])
        said.append(f"Of the time of the best of implicit, NumPy and torch, at p10: {shares}.")
    if "student" in rows:
        quick = {row["one user's list"]: row for row in rows["student"]}
        mine, peer = quick["kdrs, float32"], quick.get("implicit")
        beside = (
            ""
            if peer is None
            else f"; implicit's {peer['p10, ms']:.2f}, {peer['p50, ms']:.2f} and {peer['p99, ms']:.1f}"
        )
        said.append(
            f"One user's list of a student takes {mine['p10, ms']:.2f} ms at p10, {mine['p50, ms']:.2f} at p50 and "
            f"{mine['p99, ms']:.1f} at p99, of processor time {mine['processor time, p50']:.2f} at p50 and "
            f"{mine['processor time, p99']:.2f} at p99{beside}."
        )
    return said


def main() -> None:
    options = arguments(__doc__, record=True)
    parts = os.environ.get("PARTS", ",".join(TITLES)).split(",")
    found: dict[str, list[dict[str, Any]]] = {}
    figures = []
    runs: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "query": lambda: query_rows(options.threads, 300),
        "student": lambda: student_rows(options.threads, 1000),
        "packing": lambda: packing_rows(options.threads),
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
            "title": "One query", "question": "How fast is one list, beside implicit, NumPy and torch?",
            "answer": answers(found), "figures": figures,
        }  # fmt: skip
        options.record.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
