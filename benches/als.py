"""A teacher in a minute: implicit's ALS, and kdrs's students of it. ELSA, kdrs's own: `elsa.py`.

    python benches/als.py --out runs/als --sets citeulike,ml-100k [--shares 10,30] [--record docs/results/als.json]

Each data set has a grid of regularisation and weight, chosen by NDCG@10 on validation, for the teacher of 200 dimensions and
for ALS alone of as many bytes as a student. Students are `kdrs distill --budget --model bpr`. All of it is resumed where it
stopped. Needs implicit (`pip install --group bench`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import implicit
from threadpoolctl import threadpool_limits

import frontier
import kdrs
from kdrs.runs.environment import environment
from reproduce import kdrs as command

REGULARISATION = (10.0, 30.0, 100.0)
WEIGHTS = (10.0, 40.0, 150.0)
ROUNDS = 15
DIM = 200
METRICS = ["ndcg@10", "recall@20"]
MADE = {"compressed": "compressed", "student": "distilled, `--budget --model bpr`"}
ANSWER = [
    "[ELSA](elsa.md), kdrs's own, with its defaults: NDCG@10 .2267 on MovieLens 100K and .1107 on CiteULike leave-one-out.",
    "ALS of implicit is quicker, 2 to 24 s a fit, but has two constants to choose: .2201 and .0975; CiteULike 8:1:1 .1118. BPR "
    "of as many dimensions has .2095, .0895 and .0997.",
    "Students of ALS at a thirtieth have .2364, .1117 (8:1:1) and .0922, with `--model bpr`.",
    "The [lines that make such teachers](../teachers.md#no-teacher-yet).",
]
"""By hand, from the table."""


def best_of_grid(data: kdrs.Dataset, dim: int, path: Path) -> None:
    """The teacher file of the best point on validation, and beside it how it was found."""
    if path.is_file():
        return
    matrix = data.train.to_csr().copy()  # implicit refuses arrays that are read-only
    evaluator = kdrs.Evaluator.of(data, kdrs.protocols.protocol("default"))
    best: tuple[float, dict[str, float], Any] | None = None
    began = time.monotonic()
    for regularisation in REGULARISATION:
        for weight in WEIGHTS:
            started = time.monotonic()
            model = implicit.als.AlternatingLeastSquares(
                factors=dim,
                regularization=regularisation,
                alpha=weight,
                iterations=ROUNDS,
                num_threads=1,
                random_state=0,
            )
            model.fit(matrix, show_progress=False)
            seconds = time.monotonic() - started
            value = evaluator((model.user_factors, model.item_factors), parts=["valid"])["valid"].mean(METRICS[0])
            print(f"{path}: {regularisation:g}, {weight:g}: {value:.4f}, {seconds:.0f} s", flush=True)
            if best is None or value > best[0]:
                found = {"regularization": regularisation, "alpha": weight, "seconds": seconds}
                best = value, found, (model.user_factors.copy(), model.item_factors.copy())
    assert best is not None
    _, found, (users, items) = best
    kdrs.save_teacher(path, users=users, items=items, user_ids=data.users, item_ids=data.items)
    path.with_suffix(".json").write_text(json.dumps({**found, "grid": time.monotonic() - began}), "utf-8")


def make(kind: str, share: int, place: Path, folder: Path) -> None:
    """A student of a share of the teacher's bytes, compressed or distilled, and beside it the seconds that it took."""
    run, began = folder / f"{kind}-{share}", time.monotonic()
    if (run / "report.json").is_file():
        return
    teacher = str(folder / "als.safetensors")
    common = ("--budget", f"1/{share}", "--protocol", "default", "--threads", "1")
    if kind == "compressed":
        command("compress", teacher, "--data", str(place), *common, "--out", str(run))
    else:
        again = ("--resume",) if (run / "config.toml").is_file() else ()
        own = ("--device", "cpu", "--quiet", "--out", str(run), *again)
        command("distill", "--teacher", teacher, "--data", str(place), "--model", "bpr", *common, *own)
    run.with_suffix(".json").write_text(json.dumps({"seconds": time.monotonic() - began}), "utf-8")


def rows_of(name: str, folder: Path, data: kdrs.Dataset, shares: Sequence[int]) -> list[list[str]]:
    teacher = folder / "als.safetensors"
    found = json.loads(teacher.with_suffix(".json").read_text("utf-8"))
    how = f"alpha {found['alpha']:g}, regularization {found['regularization']:g}"
    rows: list[list[str]] = []
    for share in shares:
        alone = folder / f"als-{DIM // share}.safetensors"
        made = {title: folder / f"{kind}-{share}" for kind, title in MADE.items()}
        made = {title: run for title, run in made.items() if (run / "report.json").is_file()}
        compared = kdrs.compare_runs(
            [str(teacher), str(alone), *made.values()], dataset=data, protocol_name="default", metrics=METRICS,
            time_scoring=False, teacher=str(teacher), baseline=str(alone),
        ).to_json()  # fmt: skip
        one, other, *lines = compared["runs"]
        if not rows:
            rows.append(
                [f"{name}: ALS {DIM}, {how}", f"{one['n_bytes']:,}", *_values(one), "1", f"{found['seconds']:.0f}"]
            )
        own = json.loads(alone.with_suffix(".json").read_text("utf-8"))
        rows.append(
            [f"1/{share}: ALS {DIM // share}", f"{other['n_bytes']:,}", *_values(other), "0", f"{own['seconds']:.0f}"]
        )
        for line, (title, run) in zip(lines, made.items(), strict=True):
            seconds = json.loads(run.with_suffix(".json").read_text("utf-8"))["seconds"]
            rows.append(
                [
                    f"1/{share}: {title}",
                    f"{line['n_bytes']:,}",
                    *_values(line),
                    frontier.ratio_of(line),
                    f"{seconds:,.0f}",
                ]
            )
    return rows


def _values(line: dict[str, Any]) -> list[str]:
    return [f"{line['metrics'][metric]['mean']:.4f}" for metric in METRICS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/als"))
    parser.add_argument("--data", type=Path, default=Path("datasets"))
    parser.add_argument("--sets", default="citeulike-loo,citeulike,ml-100k,gowalla")
    parser.add_argument("--shares", default="10,30")
    parser.add_argument("--only", default="compressed,student")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    threadpool_limits(1, "blas")  # as implicit asks for
    shares, rows = [int(share) for share in options.shares.split(",")], []
    for name in options.sets.split(","):
        place = frontier.prepared(name, options.data)
        data, folder = kdrs.Dataset.load(place), options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        best_of_grid(data, DIM, folder / "als.safetensors")
        for share in shares:
            best_of_grid(data, DIM // share, folder / f"als-{DIM // share}.safetensors")
            for kind in options.only.split(","):
                make(kind, share, place, folder)
        rows += rows_of(frontier.TITLES[name], folder, data, shares)
    env = environment()
    commits = {str(json.loads(path.read_text("utf-8"))["commit"]) for path in options.out.glob("*/*/env.json")}
    figure = {
        "title": "Teachers by ALS, students by a budget",
        "command": "`python benches/als.py --sets ml-100k,citeulike,citeulike-loo --record docs/results/als.json`",
        "machine": f"{env['processor']}, {env['cores']} cores, no GPU; implicit {implicit.__version__}, torch {env['torch']}",
        "commit": ", ".join(sorted(commits)),
        "seed": "0",
        "reading": [
            "All items ranked, test part. Constants of ALS are the best of nine pairs on validation, of each size.",
            "Transfer ratio of NDCG@10: 0 is ALS alone of the same share of dimensions, 1 the teacher; paired bootstrap over "
            "queries, 95 %. Empty: the teacher's lead is not clear.",
            "Seconds: of ALS one fit at the best constants; of a student the whole command; one thread of a machine that did "
            "other work too, pauses included.",
        ],
        "columns": ["model", "bytes", "NDCG@10", "Recall@20", "transfer ratio", "s"],
        "rows": rows,
    }
    record = {
        "title": "A teacher in a minute: ELSA, or ALS of implicit",
        "question": "I have no teacher. What is the quickest good one?",
        "answer": ANSWER,
        "figures": [figure],
    }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    print(text) if options.record is None else options.record.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
