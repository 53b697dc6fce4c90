"""docs/results/headlines.json and its picture: what papers printed, beside what their recipes have reached so far.

    kdrs reproduce examples/reproduce/bd.toml --out reproduced/bd
    python benches/headlines.py --out reproduced

Every recipe of examples/reproduce that states printed values counts, once it has a folder of its name under ``--out``. A run
that is not finished stands there with the epoch that it reached and its best values so far. Recipes of the last record whose
folders are gone stay as they were. Then `python benches/pages.py`.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

from frontier import RESULTS, origins
from kdrs.runs.directory import Run
from kdrs.studies.printed import state_of

RECIPES = Path(__file__).resolve().parents[1] / "examples" / "reproduce"
POINTS = 100
ANSWERS: dict[str, str] = {
    "bd": "Bidirectional distillation: yes. After 101 epochs the student has hit@50 .0853, its notebook printed .0849 (.0680 "
    "before them, ours .0692 after the first), and the teacher .1489 (.1429); "
    "hit@200 is .1920 for .1997.",
    "htd": "Topology distillation: nearly. HTD gains .0425 of Recall@50 over the student alone, in its log .0468; FTD .0211 "
    "for .0240. All four runs end .008 to .017 below the log's: as much as another draw of the split changes "
    "([three others](notes/ftd.md#other-draws-of-the-split)).",
    "hyperkdma": "HyperKDMA's family: begun. The teacher has hit@5 .5256 (printed .5273), the student alone .4646 (.4432) "
    "after 459 epochs. DE has .4637 (.4791): 20 epochs of patience ended it at 184; three other seeds had .4765 after 200 "
    "([trajectories](trajectories.md)). An epoch of PHR takes two to six minutes of one core, so the others take days.",
}
"""A sentence a recipe, by hand, from its table."""


class Headline:
    """A recipe that states what was printed, and what it has made."""

    def __init__(self, name: str, out: Path):
        self.name, self.place = name, out / name
        self.values = tomllib.loads((RECIPES / f"{name}.toml").read_text("utf-8"))
        self.metrics: list[str] = self.values["metrics"]
        self.runs: dict[str, dict[str, Any]] = self.values["runs"]

    def states(self) -> dict[str, dict[str, Any]]:
        """The state of the first seed of each run that was begun."""
        found = {}
        for name, run in self.runs.items():
            state = state_of(self._run(name, run), self.metrics)
            if state["state"] != "not begun":
                found[name] = state
        return found

    def _run(self, name: str, run: dict[str, Any]) -> Path:
        return self.place / "runs" / name / f"seed-{run.get('seeds', [0])[0]}"

    def curve(self, name: str) -> dict[int, float]:
        """The deciding metric on test by epoch counted from 1, where it was measured."""
        metric, rows = self.metrics[0], Run.open(self._run(name, self.runs[name])).rows()
        return {row["epoch"] + 1: row["test"][metric] for row in rows if metric in row.get("test", {})}

    def figures(self) -> list[dict[str, Any]]:
        states = self.states()
        if not states:
            return []
        heads = [head for metric in self.metrics for head in (metric, "printed")]
        rows = []
        for name, run in self.runs.items():
            state = states.get(name, {"state": "not begun"})
            cells = [name, state["state"], str(state.get("epochs") or "")]
            for metric in self.metrics:
                value, printed = state.get("values", {}).get(metric), run.get("printed", {}).get(metric)
                cells += ["" if value is None else f"{value:.4f}", "" if printed is None else f"{printed:.4f}"]
            rows.append([*cells, f"{state['seconds'] / 60:.0f}" if "seconds" in state else ""])
        sources = sorted({run["source"] for run in self.runs.values() if "source" in run})
        envs = [self._run(name, self.runs[name]) / "env.json" for name in states]
        own = {
            "title": self.values["title"],
            "command": f"`kdrs reproduce examples/reproduce/{self.name}.toml --out reproduced/{self.name}`, then "
            "`python benches/headlines.py --out reproduced`",
            **origins(envs),
            "seed": "0",
            "reading": [
                *self.values["about"],
                f"Printed: {'; '.join(sources)}.",
                "Minutes of the run itself, without the trainings of teachers that it declares, on a shared machine.",
            ],
            "columns": ["run", "state", "epochs", *heads, "minutes"],
            "rows": rows,
        }
        return [own | {"recipe": self.name, "curves": self._curves(states)}]

    def _curves(self, states: dict[str, Any]) -> dict[str, str]:
        """What the picture draws of each run: ``epoch:value``, of at most `POINTS` epochs and the last one."""
        found = {}
        for name in states:
            points = list(self.curve(name).items())
            kept = [*points[:: -(-len(points) // POINTS) or 1], *points[-1:]]
            found[name] = " ".join(f"{epoch}:{value:.4f}" for epoch, value in dict(kept).items())
        return found


def picture(figures: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    colours = ("#555555", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    figure = Figure(figsize=(11, 3.9 * -(-len(figures) // 2)), dpi=120, layout="constrained")
    axes = figure.subplots(-(-len(figures) // 2), 2, squeeze=False).ravel()
    for axis, table in zip(axes, figures, strict=False):
        rows = {row[0]: row for row in table["rows"]}
        for colour, (name, curve) in zip(colours, table["curves"].items(), strict=False):
            points = [(int(epoch), float(value)) for epoch, _, value in (one.partition(":") for one in curve.split())]
            if not points:
                continue
            axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.3, label=name)
            if printed := rows[name][table["columns"].index("printed")]:
                axis.axhline(
                    float(printed), color=colour, linewidth=0.9, linestyle=(0, (4, 3)), label=f"{name}, printed"
                )
        axis.set_title(table["title"].partition(":")[0], fontsize=9)
        axis.set(xlabel="epoch", ylabel=f"{table['columns'][3]}, test")
        if axis.lines:
            axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(figures) :]:
        axis.set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def names() -> list[str]:
    """Recipes that state what was printed."""
    found = {path.stem: tomllib.loads(path.read_text("utf-8")) for path in sorted(RECIPES.glob("*.toml"))}
    return [name for name, values in found.items() if any("printed" in run for run in values.get("runs", {}).values())]


def record(out: Path, former: dict[str, Any]) -> dict[str, Any]:
    known = {figure["recipe"]: figure for figure in former.get("figures", [])}
    known |= {name: figure for name in names() for figure in Headline(name, out).figures()}
    return {
        "title": "Headline results of the papers",
        "question": "Does kdrs reach what the papers printed?",
        "answer": [ANSWERS[name] for name in known if name in ANSWERS],
        "picture": "headlines.png",
        "figures": [known[name] for name in names() if name in known],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reproduced"), help="the folder of the recipes' folders")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    path = options.results / "headlines.json"
    found = record(options.out, json.loads(path.read_text("utf-8")) if path.is_file() else {})
    if not found["figures"]:
        parser.error(f"{options.out} holds no folder of {', '.join(names())}: carry one out with kdrs reproduce")
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    picture(found["figures"], path.with_suffix(".png"))


if __name__ == "__main__":
    main()
