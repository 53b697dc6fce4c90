"""``kdrs teacher import``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdrs.cli.choices import FORMS, ITEMS_ALONE, MISSING, PROTOCOLS, SCRIPTED, listed
from kdrs.cli.options import CoreThreads, Document
from kdrs.cli.output import messages, say, say_json
from kdrs.errors import ConfigError
from kdrs.escaping import visible

if TYPE_CHECKING:
    from kdrs.runs.importing import Imported

app = typer.Typer(help="Bring a teacher from another library.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Bring a teacher from another library."""


@app.command("import")
def import_(
    source: Annotated[
        Path | None, typer.Argument(help="The teacher's file; that of its items, if users have their own.", show_default=False)
    ] = None,
    form: Annotated[
        str | None, typer.Option("--from", help=f"What wrote it: {listed(FORMS)}.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Prepared data set, whose ids the teacher is joined with.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Teacher file to write. (default: SOURCE.safetensors)", show_default=False)
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(
            "--users", help="File of the users, for word2vec, parquet, npy. (default: items alone)", show_default=False
        ),
    ] = None,
    user_ids: Annotated[
        Path | None,
        typer.Option(
            "--user-ids",
            help="Ids of the users' rows: text with one a line, .npy, .json (a list, or {id: row}), or a column of .csv or "
            ".parquet. "
            "(default: those in the file, else the data set's own in its order)",
            show_default=False,
        ),
    ] = None,
    item_ids: Annotated[
        Path | None, typer.Option("--item-ids", help="Ids of the items' rows. (default: as --user-ids)", show_default=False)
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            help="USER,ITEM or USER,ITEM,SCORE: what these columns of lists are called, or their places from 0 with "
            "--no-header. (default: the usual names)",
            show_default=False,
        ),
    ] = None,
    no_header: Annotated[bool, typer.Option("--no-header", help="Line 1 of lists is a row, and names no columns.")] = False,
    missing: Annotated[
        str,
        typer.Option(
            "--missing",
            help=f"Ids of the data set that the source lacks: {listed(MISSING)}. mean is the mean of the others; drop leaves "
            "users' lists empty and puts items last. (default: refuse)",
            show_default=False,
        ),
    ] = "refuse",
    items_alone: Annotated[
        str | None,
        typer.Option(
            "--items-alone",
            help=f"Users, where there are item vectors only: {listed(ITEMS_ALONE)}. mean is that of their training items' "
            "vectors; none leaves users out of the methods on representations. (default: mean)",
            show_default=False,
        ),
    ] = None,
    dim: Annotated[
        int | None,
        typer.Option("--dim", help="Dimensions to keep, the first: Matryoshka vectors. (default: all)", show_default=False),
    ] = None,
    normalise: Annotated[bool, typer.Option("--normalise", help="Make all vectors of length 1.")] = False,
    script: Annotated[
        bool,
        typer.Option(
            "--print-script", help=f"Print the lines that write the file, to run where {listed(SCRIPTED)} is installed."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file at --out.")] = False,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol", help=f"How quality is measured: auto, {listed(PROTOCOLS)}. (default: auto)", show_default=False
        ),
    ] = None,
    threads: CoreThreads = None,
    as_json: Document = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="All metrics, not the most telling ones alone.")] = False,
) -> None:  # fmt: skip
    """Make a teacher file of what another library wrote: joined by id, measured on the split.

    kdrs teacher import als.npz --from implicit --user-ids users.txt --item-ids items.txt --data d --out als.safetensors
    """
    if script:
        _print_script(form, source=source, data=data, out=out, as_json=as_json)
        return
    from kdrs.runs.importing import import_teacher, next_command

    if as_json and verbose:
        raise ConfigError(
            "--verbose and --json are both given, and --json prints all metrics as it is", "leave --verbose out"
        )
    for name, given, form_of in (
        ("SOURCE", source, "the teacher's file"), ("--from", form, "what wrote it"), ("--data", data, "the prepared data set"),
    ):  # fmt: skip
        if given is None:
            raise ConfigError(
                f"{name} is not given",
                f"name {form_of}: kdrs teacher import SOURCE --from FORM --data DATA",
            )
    assert source is not None
    assert form is not None
    assert data is not None
    place = out if out is not None else source.with_suffix(".safetensors")
    with messages():
        made = import_teacher(
            source, form, data, place, users=users, user_ids=user_ids, item_ids=item_ids, missing=missing,
            items_alone=items_alone, dim=dim, normalise=normalise, columns=columns, header=not no_header,
            overwrite=overwrite, protocol_name=protocol, threads=threads,
        )  # fmt: skip
    if as_json:
        say_json(_document(made))
        return
    say("\n".join([*_lines(made), *_table(made, verbose)]))
    say(f"next: {visible(next_command(made, data))}")


def _print_script(form: str | None, **unused: Any) -> None:
    from kdrs.teachers.importers import print_script

    given = [name for name, value in unused.items() if value]
    if given:
        name = {"source": "SOURCE", "as_json": "--json"}.get(given[0], f"--{given[0]}")
        raise ConfigError(f"{name} has no use for --print-script, which reads and writes nothing", "leave it out")
    if form is None:
        raise ConfigError("--print-script without --from", f"name the library: --from {listed(SCRIPTED)}")
    say(print_script(form), end="")


def _lines(made: Imported) -> list[str]:
    """What was matched and what not."""
    match = made.matched
    shape = f"{made.dim} dimensions" if made.dim is not None else f"lists of up to {made.listed} items"
    lines = [f"{visible(str(made.path))}: {shape}"]
    for side, joined in match.joined.items():
        line = f"  {side}: {joined.n_matched:,} of the data set's {joined.rows.size:,}"
        if joined.n_missing and (side == "users" or side in match.contents):
            line += f"; {joined.n_missing:,} missing, first {_named(joined.missing)}"
        elif joined.n_missing:
            line += "; the others are on no list"
        if joined.n_unknown:
            line += f"; {joined.n_unknown:,} of the source's {joined.places.size:,} are not in the data set"
            line += f", first {_named(joined.unknown)}"
        if match.empty.get(side):
            line += f"; {match.empty[side]:,} rows of zeros"
        lines.append(line)
    if made.dim is not None and "users" not in match.contents:
        lines.append("  users: none, items are alone")
    return [*lines, *(f"  {note}" for note in match.notes)]


def _named(ids: tuple[str, ...]) -> str:
    return ", ".join(visible(one) for one in ids)


def _table(made: Imported, verbose: bool) -> list[str]:
    from kdrs.cli.results import UNMEASURED, results_table

    if made.held_out and not made.reports:
        return ["quality: not measured, for lists where candidates are ranked and for items without users"]
    return results_table(made.reports, [made.selects], verbose) or [UNMEASURED]


def _document(made: Imported) -> dict[str, Any]:
    from kdrs.runs.results import means_of

    return {
        "teacher": str(made.path),
        "dim": made.dim,
        "listed": made.listed,
        **{side: joined.document() for side, joined in made.matched.joined.items()},
        "zero_rows": made.matched.empty,
        "in_order": made.matched.trusted,
        "notes": made.matched.notes,
        "parts": means_of(made.reports),
    }
