"""When a run should stop: rules of early stopping on recorded curves, and verdicts beside tests over seeds.

    python benches/stopping.py [--out runs/stopping] [--seeds 0,1,2,3,4] [--only stopping,verdicts] [--record]

Stopping: the student alone (BPR, 8 dimensions) on three data sets, each seed trained until 200 evaluations bring no gain
(`--patience 200`), test measured beside validation after every epoch. A rule is then followed along each curve, and the test
value at the epoch that it keeps is compared with what the whole curve gives. Verdicts: a teacher of 64 dimensions, the student
alone, score matching, RRD, CD and DE with three seeds each, stopped by default. Finished runs are skipped, begun ones resumed.
Needs the data sets in the folder that KDRS_DATA names. ``--record`` writes docs/results/stopping.json and verdicts.json, of
which pages.py makes pages.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kdrs
from kdrs.evaluation.protocols import EarlyStopping, Plateau
from reproduce import carry_out
from reproduce import kdrs as command

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
SOURCES = {
    "ml-100k": ("ml-100k/ml-100k.inter", "--min-rating", "4", "--k-core", "5"),
    "citeulike": ("citeulike/users.dat", "--format", "counted-lists", "--min-user", "5"),
    "beauty": ("beauty/Beauty.txt", "--format", "user-lists"),
}
SPLIT = ("--split", "ratio", "--fractions", "0.8,0.1,0.1")
LONG = 200
RULES: dict[str, int | Plateau] = {
    "20 evaluations (the former default)": 20,
    "50 evaluations": 50,
    "100 evaluations": 100,
    "**plateau** (the default)": Plateau(),
    "200 evaluations": LONG,
}
METHODS = ("score-matching", "rrd", "cd", "de")
METRIC = "ndcg@10"
LEVEL = 0.05
VERDICTS = [
    f"Full ranking, 8:1:1 at random; test {METRIC}, mean ± standard deviation over seeds. p-values after Holm's correction.",
    "The word in brackets is the test that is clear by itself.",
    "Without a transfer ratio the teacher's lead over the model alone is not clear, seeds and users taken together.",
]
READING = [f"Full ranking, 8:1:1 at random. Each rule keeps the epoch of its best validation {METRIC}."]
Row = Mapping[str, Any]


def prepared(name: str, folder: Path) -> Path:
    place = folder / f"stopping-{name}"
    if not place.exists():
        source, *options = SOURCES[name]
        data = Path(os.environ.get("KDRS_DATA", "../shared/data"))
        command("data", "prepare", str(data / source), *options, *SPLIT, "--out", str(place))
    return place


def rows_of(run: Path) -> list[Row]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def followed(rows: Sequence[Row], rule: int | Plateau) -> tuple[float, int]:
    """The test value at the epoch that the rule keeps, and how many epochs are trained under it."""
    stopping = EarlyStopping(kdrs.Selection((METRIC,), patience=rule))
    for row in rows:
        if stopping.update(row["epoch"], row["valid"], row["loss"]).stop:
            break
    epoch, _ = stopping.best[METRIC]
    assert stopping.last_epoch is not None
    return rows[epoch]["test"][METRIC], stopping.last_epoch + 1


def spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.4f} ± {100 * statistics.stdev(values) / mean:.1f} %" if len(values) > 1 else f"{mean:.4f}"


def stopping_record(runs: Path, seeds: Sequence[str]) -> dict[str, Any]:
    figures = []
    for name in SOURCES:
        done = [seed for seed in seeds if (runs / name / f"seed-{seed}" / "report.json").is_file()]
        curves = [rows_of(runs / name / f"seed-{seed}") for seed in done]
        whole = [followed(rows, LONG)[0] for rows in curves]
        lines = []
        for title, rule in RULES.items():
            found = [followed(rows, rule) for rows in curves]
            values, epochs = [value for value, _ in found], [count for _, count in found]
            shares = [value / best for value, best in zip(values, whole, strict=True)]
            lines.append(
                [
                    title,
                    spread(values),
                    f"{statistics.fmean(values) / statistics.fmean(whole):.3f}",
                    f"{min(shares):.3f}",
                    f"{statistics.fmean(epochs):.0f}",
                    f"{min(epochs)} to {max(epochs)}",
                ]
            )
        columns = ["stops after", f"test {METRIC}", "of patience 200", "worst seed", "epochs", "from, to"]
        figures.append(
            {
                "title": name,
                **origin([runs / name / f"seed-{seed}" for seed in done], done),
                "reading": READING,
                "columns": columns,
                "rows": lines,
            }
        )
    return {
        "title": "When a run stops",
        "question": "Does the default rule end a run on its plateau?",
        "answer": [
            "On these curves it keeps what a patience of 200 finds; 20 evaluations keep less, and another share for each seed.",
            "± is the standard deviation over seeds, as a share of the mean. What is left under the plateau's rule is that of "
            "the plateau itself: seeds end at other optima.",
        ],
        "figures": figures,
        "notes": "notes/stopping.md",
    }


def verdict_record(data: Path, runs: Path, seeds: Sequence[str]) -> dict[str, Any]:
    models = {name: [runs / name / f"seed-{seed}" for seed in seeds] for name in ("alone", *METHODS)}
    found = kdrs.compare_runs(
        [runs / "teacher", *(place for places in models.values() for place in places)],
        dataset=kdrs.Dataset.load(data), metrics=[METRIC], time_scoring=False,
    )  # fmt: skip
    lines = []
    for line in found.to_json()["runs"]:
        against, over = line["against_baseline"].get(METRIC), line["against_baseline_by_seed"].get(METRIC)
        ratio = line["transfer_ratio"].get(METRIC)
        verdict = line["verdicts"].get(METRIC)
        lines.append(
            [
                line["name"],
                f"{line['metrics'][METRIC]['mean']:.4f}"
                + (f" ± {line['metrics'][METRIC]['sd']:.4f}" if line["metrics"][METRIC].get("sd") else ""),
                f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio and ratio["clear"] else "",
                f"{against['difference']:+.4f}" if against else "",
                _p(against),
                _p(over),
                " ".join([verdict["word"], f"({', '.join(verdict['tests'])})" if verdict["tests"] else ""]).strip()
                if verdict
                else "",
            ]
        )
    columns = ["model", f"test {METRIC}", "transfer ratio", "from alone", "p, queries", "p, seeds", "verdict"]
    return {
        "title": "Verdicts beside seeds",
        "question": "Do the verdicts of `kdrs eval` agree with the tests over seeds?",
        "answer": [
            agreement(found.to_json()["runs"]),
            "The teacher has one seed, so its verdict is that of queries alone, and it is not among the corrected comparisons.",
        ],
        "figures": [
            {
                "title": "MovieLens 100K, BPR 64 -> 8",
                **origin([runs / "teacher", *(place for places in models.values() for place in places)], seeds),
                "reading": VERDICTS,
                "columns": columns,
                "rows": lines,
            }
        ],
    }


def agreement(lines: Sequence[Mapping[str, Any]]) -> str:
    """How many students' verdicts are what both tests say: a difference where both are clear, none else."""
    agree, students = 0, [line for line in lines if METRIC in line["against_baseline_by_seed"]]
    for line in students:
        tests = [line[key][METRIC] for key in ("against_baseline", "against_baseline_by_seed")]
        word = line["verdicts"][METRIC]["word"]
        agree += (word in ("better", "worse")) == all(test["p_adjusted"] < LEVEL for test in tests)
    return f"{agree} of {len(students)} do: a student is better or worse where both tests are below {LEVEL} after correction."


def _p(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    p = difference["p"] if difference.get("p_adjusted") is None else difference["p_adjusted"]
    return f"{p:.4f}"


def origin(runs: Sequence[Path], seeds: Sequence[str]) -> dict[str, str]:
    """Where the figures of such runs come from: the machine of the last, and every commit."""
    found = [json.loads((run / "env.json").read_text("utf-8")) for run in runs]
    env = found[-1]
    machine = f"{env['processor']}, {env['cores']} cores, no GPU; torch {env['torch']}, Python {env['python']}"
    return {
        "command": "`python benches/stopping.py --record`",
        "machine": machine,
        "commit": ", ".join(dict.fromkeys(str(own["commit"]) for own in found)),
        "seed": ", ".join(seeds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/stopping"))
    parser.add_argument("--data", type=Path, default=Path("datasets"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--only", default="stopping,verdicts")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    seeds, wanted = options.seeds.split(","), options.only.split(",")
    machine = ("--model", "bpr", "--device", "cpu", "--threads", options.threads)
    if "stopping" in wanted:
        places = {name: prepared(name, options.data) for name in SOURCES}
        long = ("--dim", "8", "--epochs", "3000", "--patience", str(LONG), "--set", "train.test_every_epoch=true")
        for seed in seeds:
            for name, data in places.items():
                run = options.out / name / f"seed-{seed}"
                carry_out(run, "train", "--data", str(data), *machine, *long, "--seed", seed)
        if options.record:
            write("stopping", stopping_record(options.out, seeds))
    if "verdicts" in wanted:
        data, place, few = prepared("ml-100k", options.data), options.out / "verdicts", seeds[:3]
        common = ("--data", str(data), *machine)
        carry_out(place / "teacher", "train", *common, "--dim", "64", "--seed", "0")
        for seed in few:
            own = (*common, "--dim", "8", "--seed", seed)
            carry_out(place / "alone" / f"seed-{seed}", "train", *own)
            for method in METHODS:
                taught = ("--teacher", str(place / "teacher"), "--method", method)
                carry_out(place / method / f"seed-{seed}", "distill", *own, *taught)
        if options.record:
            write("verdicts", verdict_record(data, place, few))


def write(name: str, record: dict[str, Any]) -> None:
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
