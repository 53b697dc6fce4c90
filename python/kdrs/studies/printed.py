"""A recipe's page of results: what was found beside what was printed, every run with its end and its origin."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdrs._documents import read_json, write_json
from kdrs._files import write_bytes
from kdrs.comparison.tables import Table
from kdrs.errors import shown
from kdrs.escaping import markdown
from kdrs.runs.compared import compare_runs
from kdrs.runs.directory import Run
from kdrs.runs.records import RESTORE
from kdrs.runs.reported import load_reports
from kdrs.studies.found import rows_of, table_of
from kdrs.studies.recipe import Entry, Made


def results_of(made: Made) -> dict[str, Any]:
    """Plain values of the page: by run what was found by metric and seed, what was printed, epochs, seconds, origin.

    Values are those of the test part at the weights that validation chose; under a protocol that reports each K from its own
    best epoch, at that one.
    """
    runs = {entry.name: _of_run(made, entry) for entry in made.recipe.runs}
    studies = {name: rows_of(found) for name, found in made.studies.items()}
    return {
        "schema": 1,
        "title": made.recipe.title,
        "about": list(made.recipe.about),
        "metrics": list(made.recipe.metrics),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "runs": runs,
        "studies": studies,
    }


def _of_run(made: Made, entry: Entry) -> dict[str, Any]:
    seeds: dict[str, Any] = {}
    for seed in entry.seeds:
        seeds[str(seed)] = state_of(entry.place(made.out, seed), made.recipe.metrics)
        why = made.failed.get(f"{entry.name}, seed {seed}")
        if why is not None and seeds[str(seed)]["state"] == "not begun":
            seeds[str(seed)] = {"state": "failed", "error": str(why)}
    return {"seeds": seeds, "printed": entry.printed, "source": entry.source, "note": entry.note}


def state_of(place: Path, metrics: Sequence[str]) -> dict[str, Any]:
    """How far a run is: its state, epochs, seconds, test values by metric, origin; of a folder without one the state alone."""
    if not (place / "config.toml").is_file():
        return {"state": "not begun"}
    run = Run.open(place)
    status, rows = run.status(), run.rows()
    return {
        "state": status.get("status", "unknown"),
        "epochs": len(rows),
        "stopped": status.get("stopped"),
        "seconds": round(sum(row.get("seconds", 0.0) for row in rows), 1),
        "values": _values(metrics, place, rows),
        "origin": _origin(place),
    }


def _values(metrics: Sequence[str], place: Path, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Test values of a finished run; of one that goes on those of its best epoch so far, where it measures test."""
    if (place / "report.json").is_file():
        own = read_json(place / "report.json", RESTORE).get("per_metric_best", {})
        reports = load_reports(Run.open(place))
        test = reports["test"].means() if "test" in reports else {}
        return {
            metric: own[metric]["test"] if metric in own else test[metric]
            for metric in metrics
            if metric in own or metric in test
        }
    found = {}
    for metric in metrics:
        known = [row for row in rows if metric in row.get("valid", {}) and metric in row.get("test", {})]
        if known:
            found[metric] = max(known, key=lambda row: row["valid"][metric])["test"][metric]
    return found


def _origin(place: Path) -> dict[str, Any]:
    env = read_json(place / "env.json", RESTORE)
    kept = ("command", "processor", "cores", "threads", "torch", "python", "commit", "kdrs")
    return {key: env[key] for key in kept if key in env}


def page_of(made: Made) -> str:
    """The page, in Markdown."""
    found = results_of(made)
    lines = [f"# {markdown(found['title'])}", "", *(f"- {markdown(one)}" for one in found["about"]), ""]
    if found["runs"]:
        lines += [_table(found).markdown(), ""]
        notes = [f"- {markdown(name)}: {markdown(run['note'])}" for name, run in found["runs"].items() if run["note"]]
        lines += [*notes, ""] if notes else []
    for name, study in made.studies.items():
        lines += [f"## {markdown(name)}", "", table_of(study).markdown(), ""]
    origins = [seed.get("origin", {}) for run in found["runs"].values() for seed in run["seeds"].values()]
    machines = {_machine(origin) for origin in origins if origin}
    lines += [f"- {markdown(machine)}" for machine in sorted(machines)]
    return "\n".join(lines).rstrip() + "\n"


def _machine(origin: dict[str, Any]) -> str:
    told = {"torch": origin.get("torch"), "commit": str(origin.get("commit"))[:12]}
    parts = [
        str(origin.get("processor", "?")),
        f"{origin.get('cores', '?')} cores",
        *(f"{k} {v}" for k, v in told.items()),
    ]
    return ", ".join(parts)


def _table(found: dict[str, Any]) -> Table:
    metrics = found["metrics"]
    rows = []
    for name, run in found["runs"].items():
        seeds = run["seeds"].values()
        states = sorted({seed["state"] for seed in seeds})
        cells = [name, ", ".join(states), str(len(run["seeds"])), _range([seed.get("epochs") for seed in seeds])]
        for metric in metrics:
            values = [seed["values"][metric] for seed in seeds if metric in seed.get("values", {})]
            printed = run["printed"].get(metric)
            cells += [_mean(values), "" if printed is None else f"{printed:.4f}"]
        minutes = sum(seed.get("seconds", 0.0) for seed in seeds) / 60
        rows.append((*cells, f"{minutes:.1f}" if minutes else "", shown(run["source"] or "", 60)))
    heads = [head for metric in metrics for head in (metric, "printed")]
    head = ("run", "state", "seeds", "epochs", *heads, "minutes", "printed in")
    notes = ("Test values where validation is best. Of runs that are not finished: their best so far.",)
    return Table("runs", head, tuple(rows), notes)


def _range(counts: list[int | None]) -> str:
    known = sorted({count for count in counts if count is not None})
    return "" if not known else str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def write_results(made: Made, *, picture: bool = True) -> list[Path]:
    """results.json, results.md, and a comparison of all finished runs in ``report``. Paths of what was written."""
    written = [made.out / "results.md", made.out / "results.json"]
    write_bytes(written[0], page_of(made).encode())
    write_bytes(written[1], write_json(results_of(made)))
    runs = [path for paths in made.done.values() for path in sorted(paths)]
    if len({path.parent for path in runs}) > 1:
        compared = compare_runs(runs, metrics=made.recipe.metrics)
        written += compared.save(made.out / "report", picture=picture)
    return written
