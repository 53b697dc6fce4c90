"""The runs of reproduce.py beside the authors' logs: a Markdown table and a picture.

    python benches/trajectories.py --runs runs/reproduce --out docs/results

The reference values are those of the logs published with DE-RRD and IR-RRD (CiteULike, leave-one-out, split seed 0,
BPR 200 -> 20).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

TITLE = "CiteULike, BPR 200 -> 20, against the published logs"

# epoch: (mean batch loss, test H@5, test N@5)
LOGS = {
    "student": {
        0: (706.21, 0.0889, 0.0626), 1: (699.50, 0.1997, 0.1462), 2: (659.14, 0.2194, 0.1587), 5: (464.15, 0.2374, 0.1743),
        10: (304.46, 0.2650, 0.1936), 20: (183.80, 0.2993, 0.2200), 50: (79.76, 0.3606, 0.2627), 100: (43.43, 0.3991, 0.2945),
        150: (34.11, 0.4217, 0.3110), 200: (29.93, 0.4307, 0.3189), 300: (27.09, 0.4432, 0.3304),
    },
    "de": {
        0: (868.54, 0.1399, 0.1013), 1: (814.63, 0.2447, 0.1768), 2: (735.84, 0.2667, 0.1919), 5: (514.63, 0.2767, 0.2011),
        10: (324.02, 0.3033, 0.2214), 20: (183.42, 0.3436, 0.2524), 50: (79.10, 0.4075, 0.3001), 100: (49.57, 0.4516, 0.3370),
        150: (41.97, 0.4706, 0.3507), 200: (38.46, 0.4717, 0.3560),
    },
    "rrd": {
        0: (822.53, 0.1054, 0.0746), 1: (812.59, 0.2221, 0.1627), 2: (763.67, 0.2394, 0.1726), 5: (557.12, 0.2602, 0.1888),
        10: (388.37, 0.2849, 0.2091), 20: (257.35, 0.3324, 0.2437), 50: (152.18, 0.3911, 0.2882), 100: (114.03, 0.4319, 0.3251),
        150: (101.65, 0.4499, 0.3386), 200: (95.56, 0.4579, 0.3465), 300: (92.15, 0.4629, 0.3512),
    },
}  # fmt: skip
ENDS = {"student": (0.4486, 0.3353, 0.5559), "de": (0.4773, 0.3595, 0.5796), "rrd": (0.4698, 0.3554, 0.5727)}
"""Test H@5, N@5, H@10 at the epochs with the best validation H@5 and H@10."""


def seeds_of(folder: Path, method: str) -> dict[str, list[dict]]:
    """Lines of metrics.jsonl by seed; a run still in training counts as far as it is."""
    found = {}
    for place in sorted((folder / method).glob("seed-*")):
        lines = (place / "metrics.jsonl").read_text("utf-8").splitlines()
        found[place.name] = [json.loads(line) for line in lines if line.endswith("}")]
    return found


def spread(values: list[float]) -> str:
    return "" if len(values) < 2 else f" ± {statistics.stdev(values):.4f}"


def trajectory_table(folder: Path) -> list[list[str]]:
    out = []
    for method, log in LOGS.items():
        runs = [{row["epoch"]: row for row in rows} for rows in seeds_of(folder, method).values()]
        for epoch, (loss, hit, ndcg) in log.items():
            rows = [run[epoch] for run in runs if epoch in run]
            if not rows:
                continue
            own = statistics.mean(row["loss"] for row in rows)
            hits, gains = ([row["test"][name] for row in rows] for name in ("hit@5", "ndcg@5"))
            quality = [f"{statistics.mean(hits):.4f}{spread(hits)}", f"{hit:.4f}"]
            gain = [f"{statistics.mean(gains):.4f}{spread(gains)}", f"{ndcg:.4f}"]
            change = f"{100 * (own / loss - 1):+.1f} %"
            out.append([method, f"{epoch}", f"{len(rows)}", f"{own:.2f}", f"{loss:.2f}", change, *quality, *gain])
    return out


def end_table(folder: Path) -> list[list[str]]:
    out = []
    places = [folder / "teacher", *(p for method in LOGS for p in sorted((folder / method).glob("seed-*")))]
    for place in places:
        report = place / "report.json"
        if not report.is_file():
            continue
        found = json.loads(report.read_text("utf-8"))
        best = found["per_metric_best"]
        log = ENDS.get(place.parent.name)
        out.append([
            str(place.relative_to(folder)),
            f"{found['epochs']}",
            f"{best['hit@5']['test']:.4f} ({best['hit@5']['epoch']})",
            f"{best['ndcg@5']['test']:.4f}",
            f"{best['hit@10']['test']:.4f} ({best['hit@10']['epoch']})",
            "" if log is None else ", ".join(f"{value:.4f}" for value in log),
        ])  # fmt: skip
    return out


def circumstances(folder: Path) -> list[dict[str, Any]]:
    out = []
    for place in [folder / "teacher", *(p for method in LOGS for p in sorted((folder / method).glob("seed-*")))]:
        if (place / "env.json").is_file():
            env = json.loads((place / "env.json").read_text("utf-8"))
            status = json.loads((place / "STATUS.json").read_text("utf-8"))["status"]
            command = " ".join(["kdrs", *env["command"][1:]])
            out.append({"command": command, "commit": env["commit"], "threads": env["torch_threads"], "status": status})
    return out


def page(known: dict[str, Any], record: str) -> str:
    """The page of a record; ``record`` is the name of the file that holds it."""
    along = ["method", "epoch", "seeds", "loss", "log", "difference", "test H@5", "log", "test N@5", "log"]
    ends = ["run", "epochs", "H@5 (epoch)", "N@5", "H@10 (epoch)", "log: H@5, N@5, H@10"]
    runs = [
        [
            re.sub(r".* --out (\S+).*", r"\1", run["command"]),
            run["commit"] or "unknown",
            f"{run['threads']}",
            run["status"],
        ]
        for run in known["runs"]
    ]
    row = lambda cells: f"| {' | '.join(cells)} |"
    lines = [
        f"# {TITLE}",
        "",
        "**Do the student, DE and RRD train as their authors' logs say?** Yes, epoch by epoch.",
        "",
        "- Losses are means over batches of batch sums.",
        "- Candidates and seeds are our own: values agree statistically, not digit by digit.",
        f"- Machine: {known['machine']}.",
        f"- Commands, run by run: `runs` in [{record}]({record}).",
        "- `make reproduce` makes the runs, `python benches/trajectories.py` writes this page.",
        "",
        "![Trajectories](trajectories.png)",
        "",
        "## Along the way",
        "",
        *map(row, (along, ["---"] * len(along), *known["along"])),
        "",
        "## At the end",
        "",
        "Test metrics at the epoch with the best validation value of the same K, as the logs report.",
        "",
        *map(row, (ends, ["---"] * len(ends), *known["ends"])),
        "",
        "## Runs",
        "",
        *map(row, (["run", "commit", "torch threads", "status"], ["---"] * 4, *runs)),
    ]
    return "\n".join(lines) + "\n"


def draw(folder: Path, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for color, (method, log) in zip(("#555555", "#d1495b", "#00798c"), LOGS.items(), strict=True):
        for index, rows in enumerate(seeds_of(folder, method).values()):
            epochs = [row["epoch"] + 1 for row in rows]
            label = f"{method}, kdrs (one line a seed)" if index == 0 else None
            axes[0].plot(epochs, [row["test"]["hit@5"] for row in rows], color=color, lw=0.9, alpha=0.8, label=label)
            axes[1].plot(epochs, [row["loss"] for row in rows], color=color, lw=0.9, alpha=0.8)
        points = [epoch + 1 for epoch in log]
        axes[0].plot(
            points,
            [hit for _, hit, _ in log.values()],
            "o",
            mfc="none",
            color=color,
            ms=6,
            label=f"{method}, published log",
        )
        axes[1].plot(points, [loss for loss, _, _ in log.values()], "o", mfc="none", color=color, ms=6)
    axes[0].set(xscale="log", xlabel="epoch", ylabel="test H@5, sampled(499)", title="Quality")
    axes[1].set(xscale="log", yscale="log", xlabel="epoch", ylabel="mean batch loss (sums)", title="Loss")
    axes[0].legend(fontsize=8, frameon=False)
    for axis in axes:
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    env = json.loads((options.runs / "teacher" / "env.json").read_text("utf-8"))
    known = {
        "machine": f"{env['processor']}, {env['cores']} cores, torch {env['torch']}",
        "along": trajectory_table(options.runs),
        "ends": end_table(options.runs),
        "runs": circumstances(options.runs),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "trajectories.json"
    record.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", "utf-8")
    record.with_suffix(".md").write_text(page(known, record.name), "utf-8")
    draw(options.runs, options.out / "trajectories.png")


if __name__ == "__main__":
    main()
