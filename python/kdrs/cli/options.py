"""The options of ``kdrs train``, ``distill`` and ``resume``, and the settings of a run that they state.

Help texts hold allowed values and defaults: typer's own would need what is heavy to import. A test holds them to the settings.
Square brackets are no good there, rich takes them for markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdrs.cli.choices import METHODS, MODELS, OPTIMIZERS, PROTOCOLS, TRACKERS, listed

File = Annotated[
    Path | None,
    typer.Argument(
        help="TOML run file, or the name of a preset (kdrs presets). Options win over it.", show_default=False
    ),
]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Prepared data set: the folder that kdrs data prepare wrote.", show_default=False),
]
OwnData = Annotated[
    str | None, typer.Option("--data", help="Prepared data set. (default: the run's own)", show_default=False)
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"Base model: {listed(MODELS)}; or a class of your own, package.module:Class. kdrs models show NAME explains one. "
        "(default: elsa for kdrs train, and where --budget chooses)",
        show_default=False,
    ),
]
Dim = Annotated[
    int | None,
    typer.Option(
        "--dim",
        help="Size of the model's representations, 1 or more. (default: 64; iae 128; kdrs train without --model 200)",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Run directory. (default: runs/DATA/METHOD/TIME-HASH)", show_default=False),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        help="Most epochs, 1 or more. (default: 1000 or the model's own; without --model, or by --budget, 15 to 100)",
        show_default=False,
    ),
]
LongerEpochs = Annotated[
    int | None,
    typer.Option(
        "--epochs", help="Most epochs, as many as are trained or more. (default: as before)", show_default=False
    ),
]
Rate = Annotated[
    float | None,
    typer.Option("--lr", help="Learning rate, above 0. (default: 0.001 or the model's own)", show_default=False),
]
Decay = Annotated[
    float | None,
    typer.Option(
        "--weight-decay",
        help="L2 weight inside the optimizer, 0 or more. (default: 0.001 or the model's own)",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", help="Training rows a step, 1 or more. (default: 1024 or the model's own)", show_default=False
    ),
]
Optimizer = Annotated[
    str | None,
    typer.Option("--optimizer", help=f"{listed(OPTIMIZERS)}. (default: adam or the model's own)", show_default=False),
]


def _patience(text: str) -> int | str:
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 20 else text


Patience = Annotated[
    Any,
    typer.Option(
        "--patience",
        parser=_patience,
        metavar="INTEGER|plateau",
        help="When to stop: after so many evaluations without improvement, 1 or more, or plateau: not before the model has "
        "stopped improving. (default: the protocol's, plateau in full ranking)",
        show_default=False,
    ),
]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help=f"How quality is measured: auto, {listed(PROTOCOLS)}. auto ranks the data set's candidates (loo-499) where it "
        "has them, else all items (default). (default: auto)",
        show_default=False,
    ),
]
Teachers = Annotated[
    list[str],
    typer.Option("--teacher", help="Run directory or teacher file; can be repeated.", show_default=False),
]
MovedData = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Where the run's data set is now. It must be the same. (default: where it was)",
        show_default=False,
    ),
]
MovedTeachers = Annotated[
    list[str],
    typer.Option(
        "--teacher",
        help="Where the run's teacher is now, or the run that it starts from; one for each, in their order. It must be the "
        "same. (default: where it was)",
        show_default=False,
    ),
]
Substitutes = Annotated[
    list[str],
    typer.Option(
        "--teacher",
        help="Takes the place of the run's own teacher: its refit; one for each, in their order. (default: the run's own)",
        show_default=False,
    ),
]
Methods = Annotated[
    list[str],
    typer.Option(
        "--method",
        help=f"Distillation method, several for a sum: {listed(METHODS)}; or a class of your own, package.module:Class. "
        "kdrs methods show NAME explains one.",
        show_default=False,
    ),
]
Weights = Annotated[
    list[float],
    typer.Option(
        "--weight",
        help="Weight of a method, 0 or more, one for each --method in order. (default: each method's own)",
        show_default=False,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="What the student may take: 1/20 of the teacher's bytes, 40B an item, or 2MB in all. Chooses dimension, bits, "
        "start and method, and trains in minutes. (default: as --dim says)",
        show_default=False,
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        "--start",
        help="Finished run whose weights the model starts from, or teacher: its vectors, the best directions of them. "
        "(default: from scratch)",
        show_default=False,
    ),
]
Log = Annotated[
    list[str],
    typer.Option(
        "--log",
        help=f"Tracker that watches the run: {listed(TRACKERS)}; or a class of your own, package.module:Class; can be "
        "repeated. none for none. (default: as the run file says, none)",
        show_default=False,
    ),
]
Assignments = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="Any setting, as KEY=VALUE: --set train.every=5. --dry-run prints all of them with their values.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Start of every random stream, 0 or more. (default: 0)", show_default=False),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        "--seeds",
        help="Several runs, one a seed, into OUT/seed-N: 0..4 for 0 to 4, 0,2,5 for these three. A single number N is seed N "
        "alone, in OUT/seed-N, not N seeds. (default: one run with --seed)",
        show_default=False,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        help="Runs at a time, each in a process with its share of the processors, 1 to 256. (default: 1)",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="auto, cpu, cuda or cuda:N; auto is CUDA where there is some. (default: auto)",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", help="Threads of torch and of the core, 1 to 1024. (default: all available)", show_default=False
    ),
]
CoreThreads = Annotated[
    int | None,
    typer.Option("--threads", help="Threads of the core, 1 to 1024. (default: all available)", show_default=False),
]
Document = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out from its last checkpoint.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check the run at once, print it with its sizes, write nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout: all metrics.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="All metrics, not the most telling ones alone.")]


SETTINGS = {
    "data": "data.path", "model": "model.name", "dim": "model.dim", "epochs": "train.epochs", "lr": "train.lr",
    "weight_decay": "train.weight_decay", "batch_size": "train.batch_size", "optimizer": "train.optimizer",
    "patience": "train.patience", "seed": "train.seed", "protocol": "eval.protocol", "start": "start", "device": "device",
    "threads": "threads", "log": "log",
}  # fmt: skip
"""Options of the command line and the settings that they state."""
HOW = ("out", "seeds", "jobs", "resume", "dry_run", "as_json", "quiet", "verbose")
"""Options that say how a run is carried out."""
