"""The records of docs/results/study.json and study-citeulike.json: every method at its best, of what a recipe of studies has
made so far.

    kdrs reproduce examples/reproduce/study-ml-100k.toml --out reproduced/study-ml-100k
    python benches/study.py --out reproduced/study-ml-100k --record docs/results/study.json
    python benches/study.py --recipe citeulike --out reproduced/study-citeulike --record docs/results/study-citeulike.json

An arm counts once all its trials and seeds are done; those that are not are named. Arms of the last record whose runs are gone
stay as they were, as long as the teacher is the same. Then `python benches/pages.py`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from kdrs.runs.compared import compare_runs

METRIC = "ndcg@10"
RECIPES = Path(__file__).resolve().parents[1] / "examples" / "reproduce"


def arms_of(study: Path, asked: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Arms of a study whose trials and seeds are done: trials, validation of the default and the best, minutes, runs."""
    found = {}
    wanted = asked["sweep"].get("seeds", [])
    for folder in sorted((study / "trials").glob("*/")):
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        runs = sorted((study / "best" / folder.name).glob("seed-*"))
        done = [run for run in runs if json.loads((run / "STATUS.json").read_text()).get("status") == "finished"]
        values = [record for record in records if record["value"] is not None]
        if len(records) < asked["sweep"]["trials"] or len(done) < max(1, len(wanted)) or not values:
            continue
        best = max(values, key=lambda record: (record["value"], -record["number"]))
        found[folder.name] = {
            "default": records[0]["value"],
            "best": best["value"],
            "point": best["point"],
            "minutes": sum(record["seconds"] for record in records) / 60,
            "epochs": best["epochs"],
            "seconds": best["seconds"],
            "trials": len(records),
            "runs": done,
        }
    return found


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


COMPARED = {
    "alone": "For float32 students that is `alone`.",
    "coded-alone": "For `coded` it is `coded-alone`, and the ratio is empty where the teacher's lead over that is not clear.",
    "elsa-alone": "For those of `elsa` it is `elsa-alone`, better than the teacher.",
    "coded-rrd": "For `coded-rrd` it is `alone`.",
}
"""What an arm is compared with, by the arm that must be there for it to be said."""


MOST = 1000
"""Epochs of a run that no file limits."""
LATE = f"Ended at {MOST:,} epochs, the most, and may rise further: "


def late_of(arms: dict[str, dict[str, Any]], former: dict[str, Any], kept: list[list[str]]) -> list[str]:
    """Arms whose best point had not reached its plateau in any seed; of those that are ``kept`` as the record has it."""
    told = next((line for line in former.get("reading", []) if line.startswith(LATE)), "")
    late = [row[0] for row in kept if f"`{row[0]}`" in told]
    for name, arm in arms.items():
        states = [json.loads((run / "STATUS.json").read_text()) for run in arm["runs"]]
        late += [name] * all(state["stopped"] == "epochs" and state["epochs"] == MOST for state in states)
    return sorted(late)


def record(out: Path, which: str, former: dict[str, Any]) -> dict[str, Any]:
    done = tomllib.loads((out / "recipe.toml").read_text())
    recipe = tomllib.loads((RECIPES / f"study-{which}.toml").read_text())
    arms: dict[str, dict[str, Any]] = {}
    for name, asked in done["studies"].items():
        if name != "teacher" and (out / "studies" / name / "trials").is_dir():
            arms.update(arms_of(out / "studies" / name, asked))
    asked = [
        arm for name, study in recipe["studies"].items() for arm in study["sweep"].get("arms", {}) if name != "teacher"
    ]
    places = (out / "runs/teacher", out / "studies/teacher/best/run")
    teacher = next(run for place in places for run in sorted(place.glob("seed-*")))
    runs = [teacher, *(run for arm in arms.values() for run in arm["runs"])]
    compared = compare_runs(runs, metrics=(METRIC, "recall@20"), teacher=str(teacher), time_scoring=False).to_json()
    by_name = {run["name"]: run for run in compared["runs"]}
    first, *rows = [
        row_of(name, arms.get(name), by_name[name if name in by_name else "run"]) for name in ("teacher", *arms)
    ]
    kept = [row for row in former.get("rows", [])[1:] if row[0] not in arms]
    if kept and former["rows"][0][:4] != first[:4]:
        raise SystemExit(
            f"the teacher has {first[1:4]}, that of the record {former['rows'][0][1:4]}: take one study alone"
        )
    rows = sorted([*rows, *kept], key=lambda row: -float(row[2].partition(" ")[0]))
    origins = [json.loads((run / "env.json").read_text()) for run in runs]
    machines = {f"{o['processor']}, {o['cores']} cores, torch {o['torch']}" for o in origins}
    commits = {str(o["commit"])[:12] for o in origins}
    if kept:
        machines |= set(former["machine"].split("; "))
        commits |= set(former["commit"].split(", "))
    left = [arm for arm in asked if arm not in {row[0] for row in rows}]
    reading = [
        *recipe["about"],
        "Test values are means over the seeds of the best point, ± standard deviation. Transfer ratio: 0 is the tuned model "
        "alone that is nearest in bytes, 1 the teacher; paired bootstrap over queries and seeds, 95 %. "
        + " ".join(told for arm, told in COMPARED.items() if arm in {row[0] for row in rows}),
        "Minutes are those of all trials together, on one thread each, on a shared machine under load.",
    ]
    if any(row[4] == "1" for row in rows):
        reading.append("Arms of one seed have no ±: another seed may order them otherwise.")
    if late := late_of(arms, former, kept):
        reading.append(LATE + ", ".join(f"`{name}`" for name in late) + ".")
    if left:
        reading.append(f"Not done yet: {', '.join(left)}.")
    titled = recipe["title"].partition(": ")[2]
    return {
        "title": f"Each method at its best: {titled.partition(',')[0]}",
        "question": "Which method is best where all are tuned alike?",
        "answer": answer(first, rows, left),
        "figures": [
            {
                "title": titled,
                "command": commands(which),
                "machine": "; ".join(sorted(machines)),
                "commit": ", ".join(sorted(commits)),
                "seed": "0 of trials; 0, 1, 2 of best points",
                "reading": reading,
                "columns": [
                    "arm", "bytes", "NDCG@10", "Recall@20", "seeds", "transfer ratio", "valid, default", "valid, best",
                    "best point", "minutes",
                ],
                "rows": [first, *rows],
            }
        ],
    }  # fmt: skip


def commands(name: str) -> str:
    first, own = name == "ml-100k", f"study-{name}"
    of, kept = ("", "study") if first else (f"--recipe {name} ", own)
    return (
        f"`kdrs reproduce examples/reproduce/{own}.toml --out reproduced/{own} --jobs 2`, then `python benches/study.py "
        f"{of}--out reproduced/{own} --record docs/results/{kept}.json`"
    )


def row_of(name: str, arm: dict[str, Any] | None, run: dict[str, Any]) -> list[str]:
    def mean(metric: str) -> str:
        known = run["metrics"][metric]
        return f"{known['mean']:.4f}" + (f" ± {known['sd']:.4f}" if known.get("sd") is not None else "")

    ratio = (run.get("transfer_ratio") or {}).get(METRIC)
    told = (
        ""
        if not ratio or ratio.get("ratio") is None
        else f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    )
    cells = [name, f"{run['n_bytes']:,}", mean(METRIC), mean("recall@20"), str(len(run["seeds"]) or 1), told]
    if arm is None:
        return [*cells, "", "", "", ""]
    point = ", ".join(
        f"{key.removeprefix('train.').removeprefix('distill.0.')} {short(value)}" for key, value in arm["point"].items()
    )
    default = "failed" if arm["default"] is None else f"{arm['default']:.4f}"
    return [*cells, default, f"{arm['best']:.4f}", point, f"{arm['minutes']:.0f}"]


def _interval(row: list[str]) -> tuple[float, float]:
    """NDCG@10 less and plus its standard deviation."""
    mean, _, spread = row[2].partition(" ± ")
    return float(mean) - float(spread or 0), float(mean) + float(spread or 0)


def answer(teacher: list[str], rows: list[list[str]], left: list[str]) -> list[str]:
    """Of rows by their NDCG@10, the highest first, and of the arms that are ``left`` to do."""
    if not rows:
        return []
    told = []
    others = [row for row in rows if not row[0].startswith("elsa") and not row[0].endswith("alone")]
    if left and not [row for row in others if not row[0].startswith("coded")]:
        told.append("Begun: no float32 method has been run, so the question is open.")
    best = _interval(rows[0])[0]
    level = [f"`{row[0]}`" for row in rows[1:] if _interval(row)[1] >= best]
    told.append(
        f"{'So far, of' if left else 'Of'} {len(rows)} arms `{rows[0][0]}` has the highest NDCG@10, {rows[0][2]}"
        + (f", level with {' and '.join(level)}: their ± meet" if level else "")
        + f"; the teacher has {teacher[2]}."
    )
    by_name = {row[0]: row for row in rows}
    if "elsa-alone" in by_name:
        which = "the best distilled student" if len(others) > 1 else "the one distilled student"
        told.append(
            f"The student's model matters most: `elsa` without a teacher has {by_name['elsa-alone'][2]}"
            + (f"; {which} of `bpr` has {others[0][2]}." if others else ".")
        )
    if "alone" in by_name and by_name["alone"][6] != "failed":
        gain = float(by_name["alone"][7]) - float(by_name["alone"][6])
        told.append(f"Tuning alone moves the float32 student without a teacher by {gain:+.4f} on validation.")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="ml-100k", help="NAME of examples/reproduce/study-NAME.toml")
    parser.add_argument("--out", type=Path, default=Path("reproduced/study-ml-100k"), help="folder of kdrs reproduce")
    parser.add_argument("--record", type=Path, help="write the record there instead of a table")
    options = parser.parse_args()
    former = (
        json.loads(options.record.read_text("utf-8"))["figures"][0]
        if options.record and options.record.is_file()
        else {}
    )
    made = record(options.out, options.recipe, former)
    if options.record:
        options.record.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", "utf-8")
    else:
        csv.writer(sys.stdout).writerows([made["figures"][0]["columns"], *made["figures"][0]["rows"]])


if __name__ == "__main__":
    main()
