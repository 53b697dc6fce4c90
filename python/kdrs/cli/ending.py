"""What ``kdrs train``, ``distill`` and ``resume`` say at the end of a run, or of one run a seed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from kdrs.cli.output import say, say_json, tell
from kdrs.errors import KdrsError, TrainingError, quoted
from kdrs.escaping import visible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kdrs.cli.stopping import Stopper
    from kdrs.runs.config import RunConfig
    from kdrs.runs.execute import Outcome


def finish(outcome: Outcome, selects: Sequence[str], stopper: Stopper, as_json: bool, verbose: bool) -> None:
    from kdrs.cli.results import UNMEASURED, results_table

    if outcome.fit.stopped == "interrupted":
        part, epochs = outcome.part or (None, outcome.fit.epochs)
        where = "" if part is None else f" in part {part}"
        tell(f"interrupted{where} after {epochs} epochs; go on with: kdrs resume {quoted(outcome.run.path)}")
        raise typer.Exit(stopper.code)
    if as_json:
        report = json.loads((outcome.run.path / "report.json").read_text("utf-8"))
        say_json({"run": str(outcome.run.path), **report})
        return
    fit = outcome.fit
    how = f"best is {fit.best_epoch}, stopped by {fit.stopped}" if outcome.reports else "the last weights are kept"
    say(f"{visible(str(outcome.run.path))}: {fit.epochs} epochs, {how}")
    model = outcome.run.config["model"]
    if outcome.encoder == "ridge":
        chosen = ", better on validation than the matrix that was trained" if model.get("encoder") == "best" else ""
        say(f"users: ridge regression on their items{chosen}")
    if not outcome.reports:
        say(UNMEASURED)
        if outcome.product:
            say(f"next: kdrs export {quoted(outcome.run.path)} --seen --out student.safetensors")
        return
    say("\n".join(results_table(outcome.reports, selects, verbose)))


def finish_seeds(
    seeds: Sequence[int], results: dict[int, Any], config: RunConfig, out: Path, selects: Sequence[str], stopper: Stopper,
    as_json: bool, verbose: bool,
) -> None:  # fmt: skip
    from kdrs.cli.results import UNMEASURED, seeds_table
    from kdrs.runs.seeds import summarise_seeds

    summary = summarise_seeds(results)
    if as_json:
        say_json({"out": str(out), **summary})
    elif summary["seeds"]:
        finished = ", ".join(map(str, summary["seeds"]))
        several = len(summary["seeds"]) > 1
        said = f"seeds {finished}; mean ± standard deviation" if several else f"seed {finished} alone"
        say(f"{visible(str(out))}: {said}")
        table = seeds_table(summary["parts"], selects or _selects(config), verbose)
        say("\n".join(table or [UNMEASURED]))
    failed = {seed: error for seed, error in results.items() if isinstance(error, Exception)}
    for seed, error in failed.items():
        cause = error.cause if isinstance(error, KdrsError) else f"{type(error).__name__}: {error}"
        tell(f"seed {seed} failed: {cause}")
        if isinstance(error, KdrsError) and error.remedy and len(failed) < len(results):  # else it is told below
            tell(f"  try: {error.remedy}")
    if left := [seed for seed in seeds if seed not in results]:
        finished = ", ".join(map(str, summary["seeds"])) or "none"
        tell(
            f"interrupted; seeds finished: {finished}; left: {', '.join(map(str, left))}; go on with the same command, "
            f"--out {quoted(out)} and --resume"
        )
        raise typer.Exit(stopper.code)
    if failed:
        error = next(iter(failed.values()))
        if len(failed) == len(results) and isinstance(error, KdrsError):
            raise error
        raise TrainingError(
            f"{len(failed)} of {len(results)} seeds failed: {sorted(failed)}",
            f"see to the causes above; the same command with --out {quoted(out)} --resume trains what is missing",
        )


def _selects(config: RunConfig) -> tuple[str, ...]:
    """The metrics that pick the best epoch, of a run that was finished before."""
    from kdrs.data import Dataset
    from kdrs.runs.build import choose_protocol, choose_selection

    return choose_selection(config, choose_protocol(config, Dataset.load(config.data.path))).metrics
