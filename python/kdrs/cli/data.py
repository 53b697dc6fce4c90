"""``kdrs data fetch | prepare | describe``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdrs.cli.choices import SETS, listed
from kdrs.cli.output import say, say_json, tell
from kdrs.escaping import visible

if TYPE_CHECKING:
    from kdrs.data import Dataset, Table

app = typer.Typer(help="Fetch, prepare and describe interaction data.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Column = "column, by name or by place from 0; the usual names are recognised"
Format = Annotated[
    str | None,
    typer.Option(help="auto, csv, tsv, parquet, inter, movielens, counted-lists (users.dat), user-lists, npy or npz."),
]
User = Annotated[str | None, typer.Option(help=f"User {Column}.")]
Item = Annotated[str | None, typer.Option(help=f"Item {Column}.")]
Rating = Annotated[str | None, typer.Option(help=f"Rating {Column}; none for no column.")]
Timestamp = Annotated[str | None, typer.Option(help=f"Time {Column}; none for no column.")]
Separator = Annotated[str | None, typer.Option(help="Separator of CSV: a character, 'tab', 'space' or '::'.")]
Header = Annotated[bool | None, typer.Option("--header/--no-header", help="Whether line 1 names columns.")]
Quotes = Annotated[bool | None, typer.Option("--quotes/--no-quotes", help="Whether fields may be quoted.")]
OnBadLine = Annotated[str | None, typer.Option(help="error, or skip up to 1 % of the lines.")]
Strip = Annotated[
    bool | None,
    typer.Option("--strip", "--strip-ids", help="Take blanks off around ids, numbers, dates and column names."),
]
FloatIds = Annotated[str | None, typer.Option(help="Ids such as 12.0: error, whole (12) or exact.")]
KeepCounts = Annotated[
    bool | None, typer.Option("--keep-counts", help="Take the counts of users.dat for items, as BD's notebook does.")
]
Zeros = Annotated[str | None, typer.Option(help="Rows rated 0: drop (they are not rated), or keep as positives.")]
TimeUnit = Annotated[str | None, typer.Option(help="auto, s, ms, us, ns, or order for bare order numbers.")]
TimeFormat = Annotated[
    str | None, typer.Option(help='Form of dates, as in strptime: "%d/%m/%Y %H:%M"; UTC unless it has %z.')
]


@app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(help=f"A known data set, {listed(SETS)}; or 'list' for a word on each.", metavar="NAME")
    ],
    to: Annotated[
        Path | None, typer.Option(help="Folder for the files. (default: the cache)", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch a known data set: from KDRS_DATA, the cache or its public address, checked by SHA-256."""
    from kdrs.data import KNOWN
    from kdrs.data import fetch as fetch_files
    from kdrs.errors import ConfigError

    if name == "list":
        if to is not None:
            raise ConfigError("--to has no use for list, which fetches nothing", "leave it out, or name a data set")
        rows = [{"name": data.name, "title": data.title, "source": data.source} for data in KNOWN.values()]
        _print(as_json, {"sets": rows}, [f"{row['name']:<14} {row['title']} [{row['source']}]" for row in rows])
        return
    _tell_source(name)
    files = {part: str(path) for part, path in fetch_files(name, to).items()}
    _print(as_json, {"name": name, "files": files}, list(files.values()))


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(help="A file, a folder of ready-made parts (train.*, valid.*, test.*), or a known data set."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the prepared data set. (default: none, which takes --dry-run)")
    ] = None,
    valid: Annotated[Path | None, typer.Option(help="Validation part, if SOURCE is the train part.")] = None,
    test: Annotated[Path | None, typer.Option(help="Test part, if SOURCE is the train part.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the data set, shown in reports. (default: the source's)")
    ] = None,
    format: Format = None,
    user: User = None,
    item: Item = None,
    rating: Rating = None,
    timestamp: Timestamp = None,
    separator: Separator = None,
    header: Header = None,
    quotes: Quotes = None,
    on_bad_line: OnBadLine = None,
    strip: Strip = None,
    float_ids: FloatIds = None,
    keep_counts: KeepCounts = None,
    zeros: Zeros = None,
    time_unit: TimeUnit = None,
    time_format: TimeFormat = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Published protocol: loo-499, fr-811, hetcomp, bd, bd-notebook, fr-caser or unkd. Options win over it. "
            "(default: none)"
        ),
    ] = None,
    duplicates: Annotated[
        str | None, typer.Option(help="Row of a pair that stays: first, last, max, sum or error. (default: first)")
    ] = None,
    min_rating: Annotated[float | None, typer.Option(help="Drop rows rated lower. (default: none)")] = None,
    k_core: Annotated[
        int | None,
        typer.Option(help="Drop users and items with fewer rows until none is left. (default: none)"),
    ] = None,
    min_user: Annotated[int | None, typer.Option(help="Drop users with fewer rows, once. (default: none)")] = None,
    min_item: Annotated[int | None, typer.Option(help="Drop items with fewer rows, once. (default: none)")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="leave-one-out, ratio, ratio-users, ordered, last-n, time, given or none, of which all pairs train. "
            "(default: leave-one-out; given for parts)"
        ),
    ] = None,
    fractions: Annotated[
        str | None,
        typer.Option(
            help="Shares of train, valid and test, for ratio, ratio-users, ordered and time. (default: 0.8,0.1,0.1)"
        ),
    ] = None,
    n_valid: Annotated[int | None, typer.Option(help="Pairs a user for validation, for last-n. (default: 1)")] = None,
    n_test: Annotated[int | None, typer.Option(help="Pairs a user for testing, for last-n. (default: 1)")] = None,
    short_users: Annotated[
        str | None,
        typer.Option(help="Users with fewer than 3 pairs, for leave-one-out: keep (in train) or drop. (default: keep)"),
    ] = None,
    cold_items: Annotated[
        str | None, typer.Option(help="Held-out items without training pairs: keep or drop. (default: keep)")
    ] = None,
    cold_users: Annotated[
        str | None, typer.Option(help="Held-out users without training pairs: keep or drop. (default: keep)")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Items stored a user to rank held-out ones among; 0 ranks all. (default: 0)")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of split and candidates. (default: 0)")] = None,
    id_order: Annotated[
        str | None, typer.Option(help="Numbering of ids: appearance or numeric. (default: appearance)")
    ] = None,
    allow_leak: Annotated[bool | None, typer.Option("--allow-leak", help="Let a pair be in two parts.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a prepared data set in the way.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do it all, write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Read, filter and split a source, and write the prepared data set. Known data sets bring choices of their own along."""
    from kdrs.cli.output import messages
    from kdrs.data import is_dataset
    from kdrs.data import prepare as prepare_data
    from kdrs.data.dataset import check_target
    from kdrs.data.known import fetch as fetch_files
    from kdrs.data.known import known
    from kdrs.data.prepare import PRESETS, Recipe, with_options
    from kdrs.errors import ConfigError, nearest, shown

    if out is None and not dry_run:
        raise ConfigError("prepare needs a folder to write to", "name it with --out DIR, or say --dry-run")
    if overwrite and out is None:
        raise ConfigError("--overwrite has no use without --out", "leave it out, or name the folder with --out DIR")
    if out is not None:
        check_target(out, overwrite)
    options: dict[str, Any] = {
        **_reading(locals()),
        "duplicates": duplicates,
        "min_rating": min_rating,
        "k_core": k_core,
        "min_user": min_user,
        "min_item": min_item,
        "fractions": _fractions(fractions),
        "n_valid": n_valid,
        "n_test": n_test,
        "short_users": short_users,
        "cold_items": cold_items,
        "cold_users": cold_users,
        "candidates": candidates,
        "seed": seed,
        "id_order": id_order,
        "allow_leak": allow_leak,
    }
    if split == "none" and is_dataset(source):
        whole = _whole(Path(source), {**options, "valid": valid, "test": test, "preset": preset}, name)
        _keep(whole, out, overwrite, dry_run, as_json)
        return
    recipe, files = Recipe(), _parts(source, valid, test)
    if files is None:
        data = known(source)
        _tell_source(source)
        recipe, files, name = data.recipe, dict(fetch_files(source)), name or data.name
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(f"unknown preset '{shown(preset)}'", nearest(preset, PRESETS))
        recipe = with_options(Recipe(recipe.read, seed=recipe.seed), **PRESETS[preset])
    given = "all" not in files
    if given and split is None and preset is None:
        split = "given"
    recipe = with_options(recipe, split=split, **options)
    with messages():
        dataset = prepare_data(files if given else files["all"], recipe, name=name, published=preset is not None)
    _keep(dataset, out, overwrite, dry_run, as_json)


def _whole(place: Path, others: Mapping[str, Any], name: str | None) -> Dataset:
    """A prepared data set with all its pairs in train. Raises ``ConfigError`` for options that are of files."""
    from dataclasses import replace

    from kdrs.data import Dataset
    from kdrs.errors import ConfigError, shown

    stated = [option.replace("_", "-") for option, value in others.items() if value is not None]
    if stated:
        raise ConfigError(
            f"{', '.join(stated)} with {shown(str(place))}, which is prepared already",
            "leave it out: --split none joins the parts of a prepared data set as they are",
        )
    parted = Dataset.load(place)
    whole = parted.whole()
    if parted.order is not None and whole.order is None:
        tell(
            "the order of held-out pairs is not known, so the whole has none: models of sequences need the file itself, kdrs "
            "data prepare FILE --split none"
        )
    return whole if name is None else replace(whole, name=name)


def _keep(dataset: Dataset, out: Path | None, overwrite: bool, dry_run: bool, as_json: bool) -> None:
    """Writes a data set, unless it is a dry run, and tells what it is."""
    for line in _history(dataset.steps):
        tell(line)
    if out is not None and not dry_run:
        dataset.save(out, overwrite=overwrite)
    written = None if dry_run or out is None else str(out)
    _print(as_json, {"path": written, "dry_run": dry_run, **dataset.describe()}, _summary(dataset, written))


@app.command()
def describe(
    path: Annotated[Path, typer.Argument(help="A prepared data set, or a file of interactions.", metavar="DIR|FILE")],
    format: Format = None,
    user: User = None,
    item: Item = None,
    rating: Rating = None,
    timestamp: Timestamp = None,
    separator: Separator = None,
    header: Header = None,
    quotes: Quotes = None,
    on_bad_line: OnBadLine = None,
    strip: Strip = None,
    float_ids: FloatIds = None,
    keep_counts: KeepCounts = None,
    zeros: Zeros = None,
    time_unit: TimeUnit = None,
    time_format: TimeFormat = None,
    as_json: Json = False,
) -> None:
    """Tell what a prepared data set holds, or a file or folder of interactions that is read with the options given."""
    from kdrs.data import Dataset, is_dataset, looks_parted, read
    from kdrs.data.dataset import put_back
    from kdrs.errors import ConfigError, shown

    options = _reading(locals())
    stated: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    put_back(path)
    if is_dataset(path) or (path.is_dir() and not looks_parted(path)):
        if stated:
            flags = ", ".join(option.replace("_", "-") for option in stated)
            raise ConfigError(
                f"{flags} with {shown(str(path))}, which is prepared already", "leave it out: it is for files"
            )
        dataset = Dataset.load(path)
        _print(as_json, dataset.describe(), [*_summary(dataset, str(path)), *_history(dataset.steps)])
        return
    table = read(path, **stated)
    facts = _table_facts(table, path)
    for source in table.sources:
        tell(f"  columns {_columns(source['columns'])}")
    told = {
        **facts,
        "file": shown(str(path)),
        "steps": [{key: value for key, value in step.items() if key != "columns"} for step in table.steps],
    }
    _print(as_json, facts, [f"{key:<12} {_text(value)}" for key, value in told.items()])


def _tell_source(name: str) -> None:
    """Who publishes a known data set, and on what terms, before anything is fetched."""
    from kdrs.data import known

    tell(f"{known(name).title}: {known(name).source}")


READING = (
    "format", "user", "item", "rating", "timestamp", "separator", "header", "quotes", "on_bad_line", "strip", "float_ids",
    "keep_counts", "zeros", "time_unit", "time_format",
)  # fmt: skip
"""Options of how a file is read."""


def _reading(given: Mapping[str, Any]) -> dict[str, Any]:
    """They among a command's arguments."""
    return {**{name: given[name] for name in READING}, "separator": _separator(given["separator"])}


def _separator(stated: str | None) -> str | None:
    return {"tab": "\t", "\\t": "\t", "space": " "}.get(stated or "", stated)


def _parts(source: str, valid: Path | None, test: Path | None) -> dict[str, Path] | None:
    """The files that SOURCE means; ``None`` if it can only be a known name."""
    from kdrs.data import looks_parted
    from kdrs.data.dataset import is_dataset
    from kdrs.data.known import KNOWN, is_known
    from kdrs.errors import ConfigError, DataError, nearest, quoted, shown

    path = Path(source)
    held_out = {part: file for part, file in (("valid", valid), ("test", test)) if file is not None}
    if held_out:
        return {"train": path, **held_out}
    if is_dataset(path):
        raise DataError(
            f"{shown(source, 300)} is prepared already",
            f"train on it, see it with kdrs data describe {quoted(source)}, or join its parts: --split none",
        )
    if is_known(source) and not path.is_file():
        return None
    if not path.exists() and path.name == source and not path.suffix:
        raise ConfigError(f"'{shown(source)}' is no file and no known data set", nearest(source, KNOWN))
    if not path.is_dir():
        return {"all": path}
    found = {
        part: sorted(file for file in path.glob(f"{part}.*") if not file.name.endswith(".crc"))
        for part in ("train", "valid", "test")
    }
    if not any(found.values()) and looks_parted(path):
        return {"all": path}  # one table in parts
    alone = len(found["train"]) == 1 and all(len(files) <= 1 for files in found.values())
    if not alone or not (found["valid"] or found["test"]):
        raise DataError(
            f"{shown(source, 300)} is a folder without one file each for train.* and valid.* or test.*",
            "name a file, or the parts: kdrs data prepare TRAIN --valid FILE --test FILE; a folder is one table if it holds "
            "Parquet files, or text files named part-0, part-1, ...",
        )
    return {part: files[0] for part, files in found.items() if files}


def _fractions(text: str | None) -> tuple[float, ...] | None:
    from kdrs.errors import ConfigError, shown

    if text is None:
        return None
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError as error:
        raise ConfigError(f"fractions {shown(text)} are no numbers", "for example 0.8,0.1,0.1") from error


def _table_facts(table: Table, path: Path) -> dict[str, Any]:
    import numpy as np

    pairs = table.interactions().n_pairs
    facts: dict[str, Any] = {
        "file": str(path),
        "format": table.options["format"],
        **table.counts(),
        "pairs": pairs,
        "repeated": table.n_rows - pairs,
        "order": table.order_by,
    }
    if table.ratings is not None:
        values, counts = np.unique(table.ratings, return_counts=True)
        facts["ratings"] = {"min": float(values[0]), "max": float(values[-1]), "distinct": int(values.size)}
        if values.size <= 20:
            facts["ratings"]["counts"] = {f"{value:g}": int(n) for value, n in zip(values, counts, strict=True)}
    if table.times is not None:
        first, last = int(table.times.min()), int(table.times.max())
        if table.time_unit == "us":
            facts["times"] = {"first": _moment(first), "last": _moment(last)}
        else:
            facts["times"] = {"first": first, "last": last}
    facts["steps"] = list(table.steps)
    return facts


def _moment(micros: int) -> str:
    import numpy as np

    return f"{np.datetime64(micros, 'us').astype('datetime64[s]')}Z"


def _summary(dataset: Dataset, path: str | None) -> list[str]:
    from kdrs.errors import shown

    facts = dataset.describe()
    pairs, cold = facts["pairs"], facts["cold_pairs"]
    degrees = facts["items_per_user"]
    lines = [
        f"{facts['name']}: {facts['users']:,} users, {facts['items']:,} items, {pairs['all']:,} pairs "
        f"(density {facts['density']:.4%})",
        f"split       {_text(facts['split'])}",
    ]
    lines += [
        f"{part:<11} {pairs[part]:,} pairs of {facts['users_with'][part]:,} users"
        for part in ("train", "valid", "test")
    ]
    lines += [
        f"per user    {degrees['min']} to {degrees['max']} items, median {degrees['median']:g}",
        *(
            (
                f"cold users  {facts['cold_users']:,} of the held-out parts have no training pair",
                f"cold items  {facts['cold_items']:,} (in {cold['valid']:,} validation and {cold['test']:,} test pairs)",
            )
            if dataset.holds_out
            else ()
        ),
        f"popular     {_popular(facts['popular_share'])} of the pairs ask for the 1 % most frequent items of train, "
        f"{facts['popular_items']:,} here",
        f"candidates  {facts['candidates'] or ('none: all items are ranked' if dataset.holds_out else 'none')}",
        f"order       {facts['order'] or 'none'}",
        f"fingerprint {facts['fingerprint']}",
    ]
    return [shown(line, 2000) for line in ([*lines, f"folder      {path}"] if path else lines)]


def _popular(shares: dict[str, float | None]) -> str:
    return ", ".join(f"{part} {share:.1%}" for part, share in shares.items() if share is not None) or "none"


def _columns(columns: dict[str, str | int]) -> str:
    """Which columns were taken for what, by name or place, as the file has them."""
    from kdrs.errors import shown

    return (
        " ".join(f"{role}={shown(str(name), 30)}" for role, name in columns.items()) or "none: a line is a user's list"
    )


def _history(steps: tuple[dict[str, Any], ...]) -> list[str]:
    from kdrs.errors import shown

    lines = []
    for step in steps:
        facts = {key: value for key, value in step.items() if key not in ("step", "before", "after", "columns")}
        if "columns" in step:  # names of the file, as they stand there
            facts["columns"] = _columns(step["columns"])
        left = ", ".join(f"{n:,} {what}" for what, n in step.get("after", {}).items())
        told = ", ".join(f"{key} {value if key == 'columns' else _text(value)}" for key, value in facts.items())
        lines.append(shown(f"  {step['step']}: {left}{'; ' * bool(left and told)}{told}", 2000))
    return lines


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(_text(inner) for inner in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("_", " ") if isinstance(value, str) else str(value)


def _print(as_json: bool, document: dict[str, Any], lines: list[str]) -> None:
    if as_json:
        say_json(document)
    else:
        say("\n".join(map(visible, lines)))
