"""``kdrs export``, ``recommend`` and ``similar``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdrs.cli import choices
from kdrs.cli.asked import BLOCK, Asked, columns_of, ids_in, items_in, pairs_in
from kdrs.cli.early import check_early
from kdrs.cli.options import CoreThreads, Document, OwnData
from kdrs.cli.output import aligned, messages, say, say_json
from kdrs.errors import ConfigError, MissingKnowledge, shown
from kdrs.escaping import visible

if TYPE_CHECKING:
    from kdrs.student import Recommendations, Student
    from kdrs.student.formats import Written

Source = Annotated[Path, typer.Argument(help="Student file (kdrs export) or run directory.")]
Count = Annotated[
    int | None,
    typer.Option(
        "--k", help="Length of the lists, 1 or more. (default: 20, or all of a smaller catalogue)", show_default=False
    ),
]
Lists = Annotated[
    Path | None,
    typer.Option(
        "--out", help="File of the lists: .parquet, .csv or .jsonl. (default: on the screen)", show_default=False
    ),
]

Users = Annotated[
    list[str], typer.Option("--user", help="Id of a user; can be repeated. (default: all users)", show_default=False)
]
UsersFile = Annotated[
    Path | None,
    typer.Option(
        "--users", help="File of user ids, one a line, or a column of a table. (default: all users)", show_default=False
    ),
]
Histories = Annotated[
    Path | None,
    typer.Option(
        "--histories",
        help="Table of user and item: lists for these users, known or new, by what they have. (default: none)",
        show_default=False,
    ),
]
Allow = Annotated[
    Path | None,
    typer.Option(
        "--items", help="Allow list: item ids, or a table of user and item. (default: all items)", show_default=False
    ),
]
Block = Annotated[
    Path | None,
    typer.Option(
        "--exclude", help="Block list: item ids, or a table of user and item. (default: none)", show_default=False
    ),
]
Seen = Annotated[
    str,
    typer.Option(
        "--seen",
        help="What is left out: data, what the file keeps as seen; none; or a table of user and item. (default: data)",
        show_default=False,
    ),
]
Named = Annotated[
    str | None,
    typer.Option(
        "--columns",
        help="USER,ITEM: what these columns are called in the tables of --histories, --seen, --items and --exclude. (default: "
        "the usual names)",
        show_default=False,
    ),
]
Unknown = Annotated[
    str | None,
    typer.Option(
        "--unknown",
        help="Users who are unknown or have no items that were trained: error, skip, or popular items. (default: error; "
        "popular for all users)",
        show_default=False,
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="This share of the users alone, into a part beside --out. (default: 1/1)",
        show_default=False,
    ),
]
Merge = Annotated[bool, typer.Option("--merge", help="Join the parts that lie beside --out.")]
Items = Annotated[
    list[str], typer.Option("--item", help="Id of an item; can be repeated. (default: all items)", show_default=False)
]
ItemsFile = Annotated[
    Path | None,
    typer.Option(
        "--items", help="File of item ids, one a line, or a column of a table. (default: all items)", show_default=False
    ),
]
Alone = Annotated[
    Path | None,
    typer.Option(
        "--alone",
        help="Run of the student without a teacher: the card then has the transfer ratio. (default: none)",
        show_default=False,
    ),
]
KeepSeen = Annotated[
    bool, typer.Option("--seen", help="Keep what users have seen in training, to leave it out of their lists.")
]
SeenParts = Annotated[
    str | None,
    typer.Option(
        "--seen-parts",
        metavar="PARTS",
        help=f"With --seen: {choices.listed(choices.SEEN_PARTS)}. What users have in all parts is then left out, for "
        "serving. (default: train)",
        show_default=False,
    ),
]
To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help=f"{choices.listed(choices.EXPORTS)}. The last three need extra packages. (default: student)",
        show_default=False,
    ),
]
Side = Annotated[
    str | None,
    typer.Option("--side", help="Of parquet and word2vec: items or users. (default: items)", show_default=False),
]


def register(app: typer.Typer) -> None:
    app.command("export")(export)
    app.command("recommend")(recommend)
    app.command("similar")(similar)


def export(
    source: Annotated[
        Path, typer.Argument(help="Run directory, or a teacher file with --data; with --to, a student file too.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    to: To = "student", side: Side = None, seen: KeepSeen = False,
    no_fold_in: Annotated[
        bool, typer.Option("--no-fold-in", help="No encoder of new users beside a table of users.")
    ] = False,
    seen_parts: SeenParts = None, alone: Alone = None, data: OwnData = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the student file at --out.")
    ] = False,
    threads: CoreThreads = None, as_json: Document = False,
) -> None:  # fmt: skip
    """Write a student as one file that serves: tables, ids, an encoder of new users, a card. Or its vectors for other tools.

    kdrs export runs/student --out student.safetensors --seen

    kdrs export runs/student --out items.parquet --to parquet
    """
    check_early([source])
    from kdrs.runs.export import export as make

    began = time.monotonic()
    with messages():
        made = make(
            source, out, to=to, side=side, seen=seen, seen_parts=seen_parts, fold_in=not no_fold_in, dataset=data,
            alone=alone, overwrite=overwrite, threads=threads,
        )  # fmt: skip
    if made.written is not None:
        _tell(made.written, to, time.monotonic() - began, as_json)
        return
    if as_json:
        sizes = {"file_bytes": made.file_bytes, "table_bytes": made.table_bytes}
        say_json({"file": str(out), **sizes, "parts": made.parts, "card": made.student.card})
        return
    say(f"{visible(str(out))}: {made.file_bytes:,} bytes; {_described(made.student)}; {time.monotonic() - began:.1f} s")
    words = {"seen": "what was seen", "popular": "popular items", "card": "head and card"}
    say(f"its bytes: {', '.join(f'{words.get(name, name)} {count:,}' for name, count in made.parts.items() if count)}")
    if (new := made.new_users) and new.get("share") is not None:
        low, high = new["interval"]
        say(
            f"users by their items ({new['encoder']}): {new['metric']} {new['value']:.4f} on {new['part']}, by their table "
            f"{new['table']:.4f}; {new['share']:.3f} [{low:.3f}, {high:.3f}] of it"
        )


def _tell(written: Written, to: str, seconds: float, as_json: bool) -> None:
    """What was written in another format."""
    sizes = {path.name: path.stat().st_size for path in written.files}
    if as_json:
        files = [str(path) for path in written.files]
        say_json({"files": files, "format": to, "bytes": sum(sizes.values()), **written.facts, "notes": written.notes})
        return
    facts = written.facts
    say(f"{visible(str(written.files[0]))}: {to}, {facts['rows']:,} x {facts['dim']} float32, {seconds:.1f} s")
    if len(written.files) > 1:
        say(f"  ids and how it was made: {visible(written.files[1].name)}")
    for name, value in facts.items():
        if name.startswith("recall") and value is not None:
            how = ", ".join(f"{key} {setting}" for key, setting in facts["index"].items())
            say(f"  {name} against the exact lists of {facts['users']:,} users: {value:.4f} ({how})")
    for note in written.notes:
        say(f"  {visible(note)}")


def _described(student: Student) -> str:
    users = f"{len(student.users):,} users" if student.users is not None else "users by their histories"
    parts = student.seen_parts
    seen = f", with what they have seen{' in all parts' if len(parts) > 1 else ''}" if parts else ""
    return f"{users}{seen}, {len(student.items):,} items, {student.nbytes:,} bytes of tables"


def recommend(
    source: Annotated[Path | None, typer.Argument(help="Student file or run directory.", show_default=False)] = None,
    k: Count = None, user: Users = [], users: UsersFile = None, histories: Histories = None, items: Allow = None,  # noqa: B006
    exclude: Block = None, seen: Seen = "data", columns: Named = None, unknown: Unknown = None, part: Part = None,
    merge: Merge = False,
    out: Lists = None, data: OwnData = None, threads: CoreThreads = None, as_json: Document = False,
) -> None:  # fmt: skip
    """Lists for all users, some, or new ones: streamed into a file, or on the screen.

    kdrs recommend student.safetensors --k 20 --out lists.parquet
    """
    from kdrs._parts import describe, part_of, share_of
    from kdrs.student.streams import check_ending, made_of, write
    from kdrs.student.streams import merge as join

    if merge:
        if source is not None or out is None:
            raise ConfigError(
                "--merge joins the parts of a file, and needs no student"
                if source is not None
                else "--merge without --out",
                "kdrs recommend --merge --out FILE",
            )
        others = {
            "--user": user, "--users": users, "--histories": histories, "--items": items, "--exclude": exclude,
            "--unknown": unknown, "--part": part, "--data": data, "--columns": columns,
        }  # fmt: skip
        if idle := next((name for name, value in others.items() if value), None):
            raise ConfigError(f"{idle} is given with --merge, which joins lists as they are", f"leave {idle} out")
        count, _ = join(out)
        if as_json:
            say_json({"file": str(out), "parts": count})
        else:
            say(f"{visible(str(out))}: {count} parts joined")
        return
    if source is None:
        raise ConfigError("no student is named", "kdrs recommend STUDENT_OR_RUN --out FILE")
    share = None if part is None else share_of(part, "--part")
    if share is not None and out is None:
        raise ConfigError("--part without --out", "name the whole file: the part lies beside it")
    if out is not None:
        check_ending(out)
    given = [name for name, value in (("--user", user), ("--users", users), ("--histories", histories)) if value]
    if len(given) > 1:
        raise ConfigError(f"{given[0]} and {given[1]} are both given", "name users in one way")
    if not given and out is None:
        raise ConfigError(
            "all users are asked for, and no file for their lists", "name one by --out, or users by --user"
        )
    named, tables = columns_of(columns), [histories, items, exclude, *([] if seen in ("data", "none") else [seen])]
    if named is not None and not any(tables):
        raise ConfigError(f"--columns is {shown(columns)}, and no table is given", "leave it out")
    began = time.monotonic()
    by_id = histories is None
    student = _opened(source, data, threads, fold_in=not by_id, by_id=by_id, seen=by_id and seen == "data")
    asked = Asked(student, k, unknown or ("error" if given else "popular"), threads)
    asked.users = list(user) if user else None
    if users is not None:
        asked.take_users(users)
    if histories is not None:
        asked.take_histories(histories, named)
    asked.items, asked.exclude = (
        asked.known(items_in(path, option, named, student.items), option)
        for path, option in ((items, "--items"), (exclude, "--exclude"))
    )
    asked.seen = seen == "data" if seen in ("data", "none") else asked.known(pairs_in(Path(seen), named), "--seen")
    if share is not None:
        asked.share = share
    if out is None:
        with messages():
            _show(list(asked), as_json)
        asked.tell_unknown()
        return
    place = out if share is None else part_of(out, *share)
    with messages():
        rows = write(place, asked)
    if share is not None:
        options = {
            "--k": asked.k, "--unknown": asked.unknown, "--seen": seen if seen in ("data", "none") else asked.seen,
            "the users": asked.users, "--histories": asked.histories, "--items": asked.items, "--exclude": asked.exclude,
        }  # fmt: skip
        describe(place, share, made_of(student, options))
    told = {"short": asked.short, "popular": asked.popular, "skipped": asked.skipped}
    seconds = time.monotonic() - began
    if as_json:
        say_json({"file": str(place), "users": asked.done, "rows": rows, **told, "seconds": seconds})
        return
    words = {"short": f"lists shorter than {asked.k}", "popular": "by popularity", "skipped": "skipped"}
    notes = [f"{count:,} {words[name]}" for name, count in told.items() if count]
    say(f"{visible(str(place))}: {'; '.join([f'{asked.done:,} users, {rows:,} rows', *notes, f'{seconds:.1f} s'])}")


def similar(
    source: Source, item: Items = [], items: ItemsFile = None, k: Count = None,  # noqa: B006
    metric: Annotated[str, typer.Option("--metric", help="cosine, or dot. (default: cosine)", show_default=False)] = "cosine",
    out: Lists = None, data: OwnData = None, threads: CoreThreads = None, as_json: Document = False,
) -> None:  # fmt: skip
    """The items nearest to an item, by their vectors.

    kdrs similar student.safetensors --item 50 --k 10
    """
    from kdrs.student.streams import check_ending, write

    if item and items is not None:
        raise ConfigError("--item and --items are both given", "name items in one way")
    if metric not in ("cosine", "dot"):
        raise ConfigError(f"metric is {shown(metric)}", "allowed: cosine, dot")
    if not item and items is None and out is None:
        raise ConfigError(
            "all items are asked for, and no file for their lists", "name one by --out, or items by --item"
        )
    if out is not None:
        check_ending(out)
    student = _opened(source, data, threads)
    wanted = list(item) or (
        list(student.items) if items is None else ids_in(items, "item", "--items", "--item", known=student.items)
    )

    def lists() -> Iterator[Recommendations]:
        for start in range(0, len(wanted), BLOCK):
            yield student.similar(wanted[start : start + BLOCK], k, metric=metric, threads=threads)  # type: ignore[arg-type]

    with messages():
        if out is None:
            _show(list(lists()), as_json)
            return
        rows = write(out, lists(), by="of")
    if as_json:
        say_json({"file": str(out), "items": len(wanted), "rows": rows})
    else:
        say(f"{visible(str(out))}: {len(wanted):,} items, {rows:,} rows")


def _opened(
    source: Path,
    data: str | None,
    threads: int | None,
    *,
    fold_in: bool = False,
    by_id: bool = False,
    seen: bool = False,
) -> Student:
    """The student to ask, of users ``by_id``, less what they have ``seen``: of a run without its data set too, if it can."""
    from kdrs.student import Student

    if source.is_file():
        if data is not None:
            raise ConfigError("--data is given, and a student file needs none", "leave --data out")
        return Student.load(source)
    from kdrs.runs.export import student_of

    with messages():
        student = student_of(source, seen=seen or None, fold_in=fold_in, dataset=data, threads=threads)
    if by_id and student.users is None:
        raise MissingKnowledge(
            f"users of {shown(str(source), 300)} are a function of their items, and its data set is not there",
            "give it: --data",
        )
    return student


def _show(lists: list[Recommendations], as_json: bool) -> None:
    """Lists on the screen."""
    if as_json:
        made = [
            {one.by: str(asked), "items": [{"item": item, "score": score} for item, score in found]}
            | ({"popular": True} if popular else {})
            for one in lists
            for (asked, found), popular in zip(one, one.popular.tolist(), strict=True)
        ]
        say_json({"lists": made})
        return
    for one in lists:
        for asked, found in one:
            say(visible(str(asked)))
            rows = {f"  {rank}": f"{visible(item)}  {score:.4f}" for rank, (item, score) in enumerate(found, 1)}
            say(aligned(rows) if rows else "  nothing is left")
