"""Every method once with its published weight, beside the student alone and the teacher: a Markdown table of finished runs.

    python benches/comparison.py --runs runs/reproduce [--costs costs.json] [--early 10,30] --out docs/results/methods.md

Reads what ``benches/reproduce.py`` left. What it finds goes to a JSON file beside the page, of the same name, and the page is
written from that: methods whose runs are not at hand keep what an earlier call found, each with its machine. ``--costs`` takes
the output of ``benches/costs.py --json`` for peak memory. A second table has the runs that were begun and not carried to their
end.
"""

from __future__ import annotations

import argparse
import json
import shlex
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

ALWAYS = ["student", "de", "rrd"]
"""What unfinished runs are compared with after the same epochs."""


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def dim(run: Path) -> int:
    return int(tomllib.loads((run / "config.toml").read_text("utf-8"))["model"]["dim"])


def origin(runs: list[Path]) -> dict[str, Any]:
    """Where runs were begun, and by what commands."""
    made = [json.loads((run / "env.json").read_text("utf-8")) for run in runs]
    machines = dict.fromkeys(f"{env['processor']}, {env['cores']} cores, torch {env['torch']}" for env in made)
    return {
        "machine": " and ".join(machines),
        "commands": [f"kdrs {' '.join(env['command'][1:])}" for env in made],
    }


def finished(runs: list[Path], peak: int | None) -> dict[str, Any]:
    """The row of a method, from its runs by seed."""
    ends = [json.loads((run / "report.json").read_text("utf-8")) for run in runs]
    values = {
        metric: [end["per_metric_best"][metric]["test"] for end in ends] for metric in ("hit@5", "hit@10", "ndcg@5")
    }
    return {
        **{metric: statistics.mean(found) for metric, found in values.items()},
        "spread": statistics.stdev(values["hit@5"]) if len(runs) > 1 else None,
        "epochs": [end["epochs"] for end in ends],
        "seconds": statistics.median(line["seconds"] for run in runs for line in history(run)),
        "peak": peak,
        **origin(runs),
    }


def early_values(run: Path, epochs: list[int]) -> dict[str, Any]:
    """The test values of a run after some epochs."""
    lines = history(run)
    return {
        "hit@5": {str(epoch): lines[epoch]["test"]["hit@5"] for epoch in epochs if epoch < len(lines)},
        "seconds": statistics.median(line["seconds"] for line in lines),
        **origin([run]),
    }


def gather(runs: Path, early: list[int], costs: dict[str, Any], known: dict[str, Any]) -> None:
    """Adds what the runs in a folder show to what is known. Raises ``SystemExit`` if they have other sizes."""
    found: dict[str, list[Path]] = {}
    for report in sorted(runs.glob("**/report.json")):
        run = report.parent
        if not {"parts", "peers"} & set(run.relative_to(runs).parts):
            name = run.parent.name if run.name.startswith("seed-") else run.name
            found.setdefault(name, []).append(run)
    found.pop("trajectory", None)  # the teacher once more, with its stages
    for name, own in found.items():
        _check_size(known, "teacher" if name == "teacher" else "student", dim(own[0]), runs)
        before = known["finished"].get(name, {"epochs": []})
        if len(own) < len(before["epochs"]):
            continue  # fewer seeds than stand there
        peak = costs.get("alone" if name == "student" else name, {}).get("peak MB", before.get("peak"))
        known["finished"][name] = finished(own, peak)
        if name not in ALWAYS:
            known["early"].pop(name, None)
    for path in sorted(runs.glob("*/seed-0/metrics.jsonl")):
        run, name = path.parent, path.parent.parent.name
        begun = name in METHODS and name not in known["finished"]
        if (begun or name in ALWAYS) and len(history(run)) > early[0]:
            row, before = early_values(run, early), known["early"].get(name, {"hit@5": {}})
            known["early"][name] = row | {"hit@5": before["hit@5"] | row["hit@5"]}


def _check_size(known: dict[str, Any], role: str, dim: int, runs: Path) -> None:
    if known["sizes"].setdefault(role, dim) != dim:
        raise SystemExit(
            f"{runs} has a {role} of {dim} dimensions, the page is of {known['sizes'][role]}: name another --out"
        )


COMMON = {
    "--data": None, "--model": None, "--lr": "1e-3", "--weight-decay": "1e-3", "--batch-size": "1024", "--device": None,
    "--epochs": "1000", "--threads": None, "--dim": None, "--seed": None, "--teacher": None, "--out": None, "--method": None,
}  # fmt: skip
"""Options that the page does not repeat for each method, with the value that they are left out for (None: any)."""
WEIGHTS = {"de": "0.01", "rrd": "0.001"}
"""Defaults that some of the first commands stated."""


def own_options(name: str, command: str) -> str:
    """What a method's command has beside the options that all have."""
    words = [word for word in shlex.split(command)[2:] if word != "--quiet"]
    kept = []
    for option, value in zip(words[::2], words[1::2], strict=True):
        usual = option in COMMON and COMMON[option] in (None, value)
        if not usual and not (option == "--weight" and WEIGHTS.get(name) == value):
            kept.append(f"{option} {value}")
    return f"`{' '.join(kept)}`" if kept else ""


def title(known: dict[str, Any]) -> str:
    return f"Methods on CiteULike, BPR {known['sizes']['teacher']} -> {known['sizes']['student']}"


def page(known: dict[str, Any], record: str) -> str:
    """The page of what is known; ``record`` is the name of the file that holds it."""
    ends, begun = known["finished"], known["early"]
    sizes = known["sizes"]["teacher"], known["sizes"]["student"]
    if not set(begun) - set(ALWAYS):
        begun = {}
    machines = list(dict.fromkeys(row["machine"] for row in [*ends.values(), *begun.values()]))
    mark = {machine: chr(ord("A") + place) for place, machine in enumerate(machines)}
    published = PUBLISHED if sizes == (200, 20) else {}
    best = max((name for name in ends if name != "teacher"), key=lambda name: ends[name]["hit@5"])
    text = [
        f"# {title(known)}",
        "",
        f"**What does each method bring, weights as published?** The most: `{best}`. Which to take: [first page](README.md).",
        "",
        "- Leave-one-out, 499 candidates (`citeulike-loo`). Adam, learning rate and weight decay 1e-3, batch 1,024.",
        "- Patience 20 (ftd: 100; bd: at most 100 epochs, from the trained student).",
        "- Test values at the epoch with the best validation value of the same K.",
        "- One standard error of H@5 on 5,219 users is 0.007: differences below 0.014 from one seed say little.",
        "- Written by `python benches/comparison.py` from the runs of "
        f"`python benches/reproduce.py --dims {sizes[0]},{sizes[1]}`.",
        *(f"- Machine {letter}: {machine}." for machine, letter in mark.items()),
        "- One or two threads, others beside it: seconds an epoch are those of shared machines, [costs](costs.md) has "
        "undisturbed ones.",
        "- Commits: [notes](notes/runs.md).",
        "",
        "| method | H@5 | H@10 | NDCG@5 | seeds | epochs | s an epoch | peak MB | machine | published H@5 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(ends.items(), key=lambda item: -item[1]["hit@5"]):
        spread = "" if row["spread"] is None else f" ± {row['spread']:.4f}"
        text.append(
            f"| {name} | {row['hit@5']:.4f}{spread} | {row['hit@10']:.4f} | {row['ndcg@5']:.4f} | {len(row['epochs'])} | "
            f"{', '.join(map(str, row['epochs']))} | {row['seconds']:.2f} | {row['peak'] or '-'} | {mark[row['machine']]} | "
            f"{published.get(name, '-')} |"
        )
    if begun:
        epochs = sorted({int(epoch) for row in begun.values() for epoch in row["hit@5"]})
        text += [
            "",
            "## Begun and not carried to their end",
            "",
            "Test H@5 after epochs counted from 0; below the student alone, DE and RRD after the same ones.",
            "",
            f"| method | {' | '.join(f'epoch {epoch}' for epoch in epochs)} | s an epoch | machine |",
            "|---|---|---|" + "---|" * len(epochs),
        ]
        for name in sorted(begun, key=lambda name: (name in ALWAYS, ALWAYS.index(name) if name in ALWAYS else name)):
            row = begun[name]
            values = [f"{row['hit@5'][str(e)]:.4f}" if str(e) in row["hit@5"] else "-" for e in epochs]
            text.append(f"| {name} | {' | '.join(values)} | {row['seconds']:.2f} | {mark[row['machine']]} |")
    return "\n".join([*text, "", *_commands(known, record)]) + "\n"


def _commands(known: dict[str, Any], record: str) -> list[str]:
    """One command whole, and what the others have beside it; all of them stand in the record."""
    rows = known["finished"] | {name: row for name, row in known["early"].items() if name not in known["finished"]}
    whole = next(command for name, row in rows.items() if name != "teacher" for command in row["commands"])
    own = {name: own_options(name, row["commands"][0]) for name, row in rows.items()}
    return [
        "## Commands",
        "",
        f"All of them, seed by seed: `commands` in [{record}]({record}). One of them:",
        "",
        "```sh",
        whole,
        "```",
        "",
        "The others have their own `--method` (`--method de --method rrd` for de+rrd; `kdrs train` for the student), and "
        "beside that:",
        "",
        *(f"- {name}: {options}" for name, options in sorted(own.items()) if options),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--costs", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/methods.md"))
    parser.add_argument("--early", default="10", help="epochs, from 0, at which unfinished runs are compared")
    options = parser.parse_args()
    costs = {}
    if options.costs is not None:
        costs = {row["case"]: row for row in json.loads(options.costs.read_text("utf-8"))["rows"]}
    record = options.out.with_suffix(".json")
    known: dict[str, Any] = {"sizes": {}, "finished": {}, "early": {}}
    if record.is_file():
        known = json.loads(record.read_text("utf-8"))
    gather(options.runs, [int(epoch) for epoch in options.early.split(",")], costs, known)
    record.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
    options.out.write_text(page(known, record.name), "utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
