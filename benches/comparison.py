"""Every method once with its defaults, beside the student alone and the teacher: a Markdown table of finished runs.

    python benches/comparison.py --runs runs/reproduce [--costs costs.json] [--early 10,30] --out docs/results/methods.md

Reads what ``benches/reproduce.py`` left. ``--costs`` takes the output of ``benches/costs.py --json`` for peak memory. A second
table has the runs that were begun and not carried to their end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tomllib
from pathlib import Path
from typing import Any

from reproduce import METHODS

PUBLISHED = {
    "student": "0.4486 (log)",
    "de": "0.4773 (log)",
    "rrd": "0.4698 (log)",
    "ir-rrd": "0.4947 (log)",
    "rd": "0.4533 (DE-RRD's table)",
    "cd": "0.4550 (DE-RRD's table)",
    "de+rrd": "0.4843 (DE-RRD's table)",
    "teacher": "0.5135 (DE-RRD's table)",
}
"""Test H@5 for 200 -> 20 dimensions, own candidates and splits each."""


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def unfinished(runs: Path, early: int) -> list[Path]:
    """Runs of methods without a report that are past epoch ``early``."""
    begun = (path.parent for path in sorted(runs.glob("*/seed-0/metrics.jsonl")))
    left = [run for run in begun if run.parent.name in METHODS and not (run / "report.json").exists()]
    return [run for run in left if len(history(run)) > early]


def dim(run: Path) -> int:
    return int(tomllib.loads((run / "config.toml").read_text("utf-8"))["model"]["dim"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--costs", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/methods.md"))
    parser.add_argument("--early", default="10", help="epochs, from 0, at which unfinished runs are compared")
    options = parser.parse_args()
    early = [int(epoch) for epoch in options.early.split(",")]
    costs = {}
    if options.costs is not None:
        costs = {row["case"]: row for row in json.loads(options.costs.read_text("utf-8"))["rows"]}
    found: dict[str, list[Path]] = {}
    for report in sorted(options.runs.glob("**/report.json")):
        run = report.parent
        if not {"parts", "peers"} & set(run.parts):
            name = run.parent.name if run.name.startswith("seed-") else run.name
            found.setdefault(name, []).append(run)
    found.pop("trajectory", None)  # the teacher once more, with its stages
    rows = []
    for name, runs in found.items():
        ends = [json.loads((run / "report.json").read_text("utf-8")) for run in runs]
        own = [end["per_metric_best"] for end in ends]
        lines = [line for run in runs for line in history(run)]
        values = {metric: [end[metric]["test"] for end in own] for metric in ("hit@5", "hit@10", "ndcg@5")}
        rows.append(
            {
                "name": name,
                "seeds": len(runs),
                **{metric: statistics.mean(found) for metric, found in values.items()},
                "spread": statistics.stdev(values["hit@5"]) if len(runs) > 1 else None,
                "epochs": ", ".join(str(end["epochs"]) for end in ends),
                "seconds": statistics.median(line["seconds"] for line in lines),
                "peak": costs.get("alone" if name == "student" else name, {}).get("peak MB"),
                "published": PUBLISHED.get(name, "-") if dim(runs[0]) in (20, 200) else "-",
            }
        )
    rows.sort(key=lambda row: -row["hit@5"])
    sizes = dim(found["teacher"][0]), dim(found["student"][0])
    environment = json.loads((found["student"][0] / "env.json").read_text("utf-8"))
    text = [
        f"# Methods on CiteULike, BPR {sizes[0]} -> {sizes[1]}",
        "",
        "Leave-one-out, 499 candidates (`citeulike-loo`); each method once with its defaults, Adam with learning rate and "
        "weight decay 1e-3, batch 1,024, patience 20 (ftd: 100; bd: at most 100 epochs, from the trained student). Test "
        "values at the epoch with the best validation value of the same K. One standard error of H@5 on 5,219 users is 0.007: "
        "differences below 0.014 from one seed say little. cd-2 draws 2 items, dcd-1e-3 has that weight; takd, dgkd and "
        f"hyperkdma have four assistants. Written by `python benches/comparison.py` from the runs of "
        f"`python benches/reproduce.py --dims {sizes[0]},{sizes[1]}`.",
        "",
        f"Machine: {environment['processor']}, {environment['cores']} cores, torch {environment['torch']}, "
        f"{environment['torch_threads']} thread a run, others beside it: seconds an epoch are those of a shared machine, "
        "[costs](costs.md) has undisturbed ones.",
        "",
        "| method | H@5 | H@10 | NDCG@5 | seeds | epochs | s an epoch | peak MB | published H@5 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.4f}"
        text.append(
            f"| {row['name']} | {row['hit@5']:.4f}{spread} | {row['hit@10']:.4f} | {row['ndcg@5']:.4f} | {row['seeds']} | "
            f"{row['epochs']} | {row['seconds']:.2f} | {row['peak'] or '-'} | {row['published']} |"
        )
    begun = unfinished(options.runs, early[0])
    if begun:
        text += [
            "",
            "## Begun and not carried to their end",
            "",
            "Test H@5 after epochs counted from 0; below the student alone, DE and RRD after the same ones.",
            "",
            f"| method | {' | '.join(f'epoch {epoch}' for epoch in early)} | s an epoch |",
            "|---|---|" + "---|" * len(early),
        ]
        same = [run for name in ("student", "de", "rrd") if (run := options.runs / name / "seed-0").exists()]
        for run in [*begun, *same]:
            lines = history(run)
            values = [f"{lines[epoch]['test']['hit@5']:.4f}" if epoch < len(lines) else "-" for epoch in early]
            seconds = statistics.median(line["seconds"] for line in lines)
            text.append(f"| {run.parent.name} | {' | '.join(values)} | {seconds:.2f} |")
            if run in begun:
                found[run.parent.name] = [run]
    text += ["", "## Commands", ""]
    for runs in found.values():
        for run in runs:
            words = json.loads((run / "env.json").read_text("utf-8"))["command"][1:]
            text.append(f"- `kdrs {' '.join(words)}`")
    options.out.write_text("\n".join(text) + "\n", "utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
