"""``kdrs reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdrs.cli.options import Document, Jobs, Quiet
from kdrs.cli.output import messages, say, say_json, tell
from kdrs.errors import KdrsError, TrainingError, quoted
from kdrs.escaping import visible

if TYPE_CHECKING:
    from kdrs.studies.recipe import Recipe
    from kdrs.studies.trials import Trial


def register(app: typer.Typer) -> None:
    app.command("reproduce")(reproduce)


def reproduce(
    recipe: Annotated[Path, typer.Argument(help="Recipe: a data set, runs and studies, in TOML.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of all that it makes.")],
    jobs: Jobs = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Prepare the data set, check all runs, train nothing.")
    ] = False,
    as_json: Document = False,
    quiet: Quiet = False,
) -> None:
    """Carry out a recipe: what is there is taken as it is, what was stopped goes on.

    kdrs reproduce examples/reproduce/study-ml-100k.toml --out reproduced/ml-100k
    """
    from kdrs.cli.stopping import stopping
    from kdrs.runs.pool import check_jobs
    from kdrs.studies.printed import write_results
    from kdrs.studies.recipe import read_recipe
    from kdrs.studies.recipe import reproduce as carry_out

    jobs = 1 if jobs is None else jobs
    check_jobs(jobs)
    with messages():
        plan = read_recipe(recipe, out)
        if dry_run:
            _print_plan(plan, as_json)
            return

        def on_run(name: str, seed: int, how: str) -> None:
            if not quiet:
                tell(f"{name}, seed {seed}: {how}")

        def on_trial(study: str, trial: Trial) -> None:
            if not quiet:
                value = "failed" if trial.value is None else f"{trial.value:.4f}"
                tell(f"{study}, {trial.arm} {trial.number}: {value}")

        with stopping() as stop:
            made = carry_out(plan, out, jobs=jobs, on_run=on_run, on_trial=on_trial, should_stop=stop.asked)
        if made.interrupted:
            tell(f"interrupted; go on with the same command: kdrs reproduce {quoted(recipe)} --out {quoted(out)}")
            try:
                tell(f"what there is so far: {quoted(write_results(made).paths[0])}")
            except KdrsError as error:
                tell(f"warning: what there is so far could not be written: {'; '.join(str(error).splitlines())}")
            raise typer.Exit(stop.code)
        results = write_results(made)
        if as_json:
            say_json({"out": str(out), **{k: v for k, v in results.values.items() if k != "schema"}})
        else:
            say(results.page)
            for path in results.paths:
                say(visible(str(path)))
    if made.failed:
        raise TrainingError(
            f"{len(made.failed)} run{'s' * (len(made.failed) > 1)} failed: {', '.join(made.failed)}",
            str(next(iter(made.failed.values()))).replace("\n", "; "),
        )


def _print_plan(plan: Recipe, as_json: bool) -> None:
    runs = {
        e.name: {"seeds": list(e.seeds), "after": sorted(e.after), "model": e.config.model["name"]} for e in plan.runs
    }
    studies = {name: {"after": sorted(after)} for name, (_, after) in plan.studies.items()}
    if as_json:
        say_json({"title": plan.title, "runs": runs, "studies": studies})
        return
    say(visible(plan.title))
    for name, told in {**runs, **studies}.items():
        after = f", after {', '.join(told['after'])}" if told["after"] else ""
        seeds = f"seeds {', '.join(map(str, told['seeds']))}" if "seeds" in told else "study"
        say(visible(f"  {name}: {seeds}{after}"))
