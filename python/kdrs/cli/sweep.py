"""``kdrs sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdrs.cli.choices import SAMPLERS, listed
from kdrs.cli.options import Assignments, Document, Jobs, Quiet
from kdrs.cli.output import messages, say, say_json, tell
from kdrs.errors import ConfigError, TrainingError, quoted
from kdrs.escaping import visible

if TYPE_CHECKING:
    from kdrs.studies.plan import Study
    from kdrs.studies.sweep import Found
    from kdrs.studies.trials import Trial


def register(app: typer.Typer) -> None:
    app.command("sweep")(sweep)


def sweep(
    file: Annotated[Path, typer.Argument(help="Run file with a table called sweep: ranges, trials, arms.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the study.")],
    trials: Annotated[
        int | None,
        typer.Option("--trials", help="Trials of each arm, 1 or more. (default: the file's, 20)", show_default=False),
    ] = None,
    jobs: Jobs = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            help=f"{listed(SAMPLERS)}. tpe needs Optuna. (default: the file's, tpe where it is installed)",
            show_default=False,
        ),
    ] = None,
    assignments: Assignments = [],  # noqa: B006
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study in --out, or work on it beside other processes.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the study, print its arms, write nothing.")] = False,
    as_json: Document = False,
    quiet: Quiet = False,
) -> None:
    """Search the settings of a run: the same number of trials with a teacher and alone, chosen on validation.

    kdrs sweep study.toml --out studies/cd --trials 20 --jobs 2
    """
    from kdrs.cli.running import read_file
    from kdrs.cli.stopping import stopping
    from kdrs.runs.config import assign
    from kdrs.runs.pool import check_jobs
    from kdrs.studies.plan import parse_study
    from kdrs.studies.points import has_optuna
    from kdrs.studies.rehearsal import Rehearsal
    from kdrs.studies.sweep import begin, carry_out

    jobs = 1 if jobs is None else jobs
    check_jobs(jobs)
    if dry_run and resume:
        raise ConfigError(
            "--dry-run and --resume are both given, and a dry run goes on with nothing", "leave --resume out"
        )
    values = read_file(file)
    for setting in assignments:
        assign(values, setting)
    for key, value in (("trials", trials), ("sampler", sampler)):
        if value is not None:
            assign(values, f"sweep.{key}={value}")
    with messages():
        if dry_run:
            study = parse_study(values, sampler="tpe" if has_optuna() else "random")
            Rehearsal().arms(study, out)
            _print_plan(study, as_json)
            return
        study = begin(values, out, resume=resume)
        show = _Lines(study, quiet)
        with stopping() as stop:
            found = carry_out(study, out, jobs=jobs, on_trial=show.trial, on_seed=show.seed, should_stop=stop.asked)
        if found.interrupted:
            ended = sum(map(len, found.trials.values()))
            tell(
                f"interrupted; {ended} trials have ended; go on with the same command, --out {quoted(out)} and --resume"
            )
            raise typer.Exit(stop.code)
        _print(found, as_json)
    lost = [arm.name for arm in study.arms if found.best(arm.name) is None]
    if lost or found.failed:
        first = next(iter(found.failed.values()), None)
        raise TrainingError(
            f"no trial of {', '.join(lost)} could be trained" if lost else f"failed: {', '.join(found.failed)}",
            f"see the errors in {quoted(out / 'trials.csv')}"
            if lost or first is None
            else str(first).replace("\n", "; "),
        )


class _Lines:
    """A line on stderr for each trial that ends."""

    def __init__(self, study: Study, quiet: bool):
        self.study, self.quiet = study, quiet
        self.best: dict[str, Trial] = {}
        self.count = dict.fromkeys((arm.name for arm in study.arms), 0)
        self.metric = study.arms[0].metric

    def trial(self, trial: Trial) -> None:
        from kdrs.studies.trials import best_of

        self.count[trial.arm] += 1
        known = [self.best[trial.arm]] if trial.arm in self.best else []
        best = best_of([*known, trial])
        if best is not None:
            self.best[trial.arm] = best
        if self.quiet:
            return
        (arm,) = (arm for arm in self.study.arms if arm.name == trial.arm)
        of = self.study.settings.trials if arm.space else 1
        how = f"failed: {trial.error}" if trial.value is None else f"valid {self.metric} {trial.value:.4f}"
        best_told = "" if best is None else f", best {best.value:.4f} (trial {best.number})"
        point = " ".join(f"{key}={_short(value)}" for key, value in trial.point.items())
        tell(f"{trial.arm} {self.count[trial.arm]}/{of}: {how}{best_told}, {trial.seconds:.0f} s  {point}")

    def seed(self, arm: str, seed: int) -> None:
        if not self.quiet:
            tell(f"{arm}: best point trained with seed {seed}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_plan(study: Study, as_json: bool) -> None:
    arms: dict[str, dict[str, Any]] = {
        arm.name: {
            "trials": study.settings.trials if arm.space else 1,
            "default": arm.default(),
            "space": {key: span.plain() for key, span in arm.space.items()},
        }
        for arm in study.arms
    }
    if as_json:
        say_json({"sampler": study.settings.sampler, "metric": study.arms[0].metric, "arms": arms})
        return
    say(f"sampler {study.settings.sampler}, chosen by valid {study.arms[0].metric}")
    for name, arm in arms.items():
        say(f"{name}: {arm['trials']} trials")
        for key, span in arm["space"].items():
            say(visible(f"  {key} = {_short(arm['default'].get(key, 'unset'))}  in {span}"))


def _print(found: Found, as_json: bool) -> None:
    from kdrs.studies.found import rows_of, table_of, write_report

    written = write_report(found)
    if as_json:
        say_json({"out": str(found.out), "metric": found.study.arms[0].metric, "arms": rows_of(found)})
        return
    say(table_of(found).text())
    for path in written:
        say(visible(str(path)))
