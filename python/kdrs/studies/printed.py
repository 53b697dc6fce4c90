"""A recipe's page of results: what was found beside what was printed, every run with its end and its origin."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdrs._documents import read_json, write_json
from kdrs._files import write_bytes
from kdrs.comparison.tables import Table
from kdrs.errors import KdrsError, shown
from kdrs.escaping import markdown
from kdrs.runs.build import stored_protocol
from kdrs.runs.compared import compare_runs
from kdrs.runs.directory import Run
from kdrs.runs.records import RESTORE
from kdrs.runs.reported import load_reports
from kdrs.studies.found import counted, rows_of, so_far, table_of
from kdrs.studies.recipe import Entry, Made
from kdrs.studies.sweep import Found


@dataclass(frozen=True)
class Results:
    """What was written of a recipe."""

    values: dict[str, Any]
    """What results.json holds."""
    page: str
    """What results.md holds."""
    paths: list[Path]


def _values_of(made: Made, found: Mapping[str, Found | None]) -> dict[str, Any]:
    """Plain values of the page: by run what was found by metric and seed, what was printed, protocol, epochs, seconds, origin;
    by study and arm the same of the runs of its best point.

    Values are those of the test part at the weights that validation chose; under a protocol that reports each K from its own
    best epoch, at that one.
    """
    runs = {entry.name: _of_run(made, entry) for entry in made.recipe.runs}
    studies = {name: _of_study(made, study) for name, study in found.items() if study is not None}
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
        why, known = made.failed.get(f"{entry.name}, seed {seed}"), {}
        try:
            known = state_of(entry.place(made.out, seed), made.recipe.metrics)
        except KdrsError:
            if why is None:
                raise
        as_it_is = why is None or known.get("state") == "failed"
        seeds[str(seed)] = known if as_it_is else {"state": "failed", "error": str(why)}  # no part of a mean
    told = {"printed": entry.printed, "source": entry.source, "note": entry.note}
    return {"protocol": stored_protocol(entry.config).name, "seeds": seeds, **told}


def _studies(made: Made) -> dict[str, Found | None]:
    """In the recipe's order, with what is there of those that were not carried out to their end now; None where nothing is."""
    return {
        name: made.studies.get(name) or so_far(made.out / "studies" / name, values)
        for name, (values, _) in made.recipe.studies.items()
    }


def _of_study(made: Made, found: Found) -> dict[str, Any]:
    rows = rows_of(found)
    for arm in found.study.arms:
        places = {path.name.removeprefix("seed-"): path for path in found.runs.get(arm.name, ())}
        rows[arm.name]["protocol"] = stored_protocol(arm.at({})).name
        rows[arm.name]["seeds"] = {seed: state_of(path, made.recipe.metrics) for seed, path in places.items()}
    return rows


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


def _page_of(made: Made, found: Mapping[str, Any], studies: Mapping[str, Found | None]) -> str:
    """The page, in Markdown."""
    lines = [f"# {markdown(found['title'])}", "", *(f"- {markdown(one)}" for one in found["about"]), ""]
    models = [*found["runs"].values(), *(row for study in found["studies"].values() for row in study.values())]
    differ = len({model["protocol"] for model in models}) > 1
    if found["runs"]:
        lines += [_table(found, differ).markdown(), ""]
        notes = [f"- {markdown(name)}: {markdown(run['note'])}" for name, run in found["runs"].items() if run["note"]]
        lines += [*notes, ""] if notes else []
    for name, study in studies.items():
        lines += [f"## {markdown(name)}", ""]
        if name not in made.studies:
            lines += ["Not begun." if study is None else "What its records hold so far.", ""]
        if study is not None:
            lines += [table_of(study).markdown(), ""]
        if study is not None and differ:
            protocols = dict.fromkeys(row["protocol"] for row in found["studies"][name].values())
            lines += [f"Measured by the protocol {', '.join(protocols)}.", ""]
    if differ:
        lines += [
            "Values of different protocols do not compare. `report` measures all of them anew by that of the first.",
            "",
        ]
    origins = [seed.get("origin", {}) for model in models for seed in model["seeds"].values()]
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


def _table(found: Mapping[str, Any], differ: bool) -> Table:
    """A row a run, with its protocol where these ``differ``. A mean is one of finished seeds; best values so far are shown
    where there is none, and never mixed with them."""
    metrics = found["metrics"]
    rows = []
    for name, run in found["runs"].items():
        seeds = run["seeds"].values()
        states = Counter(seed["state"] for seed in seeds)
        told = ", ".join(state if len(states) == 1 else f"{n} {state}" for state, n in sorted(states.items()))
        known = [seed for seed in seeds if seed.get("values")]
        ended = [seed for seed in known if seed["state"] == "finished"] or known
        of = counted(len(ended), len(seeds))
        cells = [name, told, *([run["protocol"]] if differ else []), of, _range([seed.get("epochs") for seed in seeds])]
        for metric in metrics:
            values = [seed["values"][metric] for seed in ended if metric in seed["values"]]
            printed = run["printed"].get(metric)
            cells += [_mean(values), "" if printed is None else f"{printed:.4f}"]
        minutes = sum(seed.get("seconds", 0.0) for seed in seeds) / 60
        rows.append((*cells, f"{minutes:.1f}" if minutes else "", shown(run["source"] or "", 60)))
    heads = [head for metric in metrics for head in (metric, "printed")]
    own = ("protocol",) if differ else ()
    head = ("run", "state", *own, "seeds", "epochs", *heads, "minutes", "printed in")
    notes = (
        "Test values where validation is best, of the seeds that are finished; where none is, the best so far. "
        "Seeds: of how many values are.",
    )
    return Table("runs", head, tuple(rows), notes, words=2 + len(own))


def _range(counts: list[int | None]) -> str:
    known = sorted({count for count in counts if count is not None})
    return "" if not known else str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def write_results(made: Made, *, picture: bool = True) -> Results:
    """results.json, results.md, and, unless it was interrupted, a comparison of all finished runs, those of the studies' best
    points among them, in ``report``. Raises ``ArtefactError`` for damaged runs and records, ``DataError`` for a data set that
    is needed and not there."""
    studies = _studies(made)
    values = _values_of(made, studies)
    page = _page_of(made, values, studies)
    written = [made.out / "results.md", made.out / "results.json"]
    write_bytes(written[0], page.encode())
    write_bytes(written[1], write_json(values))
    runs = made.finished()
    if not made.interrupted and len({path.parent for path in runs}) > 1:
        compared = compare_runs(runs, metrics=made.recipe.metrics)
        written += compared.save(made.out / "report", picture=picture)
    return Results(values, page, written)
