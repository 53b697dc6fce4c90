"""Mutates valid files of every form and reads them: no internal error, panic, hang or crash, and no wrong result.

    python tests/fuzz_readers.py --seconds 600 --seed 1

Each case depends on (seed, number) alone and runs ``kdrs data prepare --dry-run`` in a process of its own kind, with
limits on time and memory. What is accepted is compared with a slow reader written apart (``csv``, ``float``, loops),
where that one can decide. Findings are kept in ``--keep``; the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import collections
import csv
import gzip
import io
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

SECONDS_A_CASE = 30
MEMORY = 3 * 2**30
TOKENS = [
    *(
        b"\n",
        b"\r\n",
        b"\r",
        b",",
        b";",
        b"\t",
        b"::",
        b"|",
        b'"',
        b'""',
        b" ",
        b"\0",
        b"\x1f",
        b"\xff",
        b"\xef\xbb\xbf",
    ),
    *(
        b"nan",
        b"inf",
        b"-1",
        b"0",
        b"1e5",
        b"1e400",
        b"12.0",
        b"007",
        b"9" * 25,
        b"2012-04-05",
        b"05/04/2012",
        b"20120405",
    ),
    *(b"user", b"item", b"rating", b"timestamp", b"none", b"user_id:token", b"=1+1", "é".encode(), "e\u0301".encode()),
    *(
        "\u00a0".encode(),
        "\u2028".encode(),
        b"PAR1",
        b"\x1f\x8b",
        b"PK\x03\x04",
        b"\x93NUMPY",
        b"\x7f" * 4,
        b"\xff" * 8,
    ),
]
FLAGS = [
    *(["--strip"], ["--on-bad-line", "skip"], ["--float-ids", "whole"], ["--float-ids", "exact"], ["--no-header"]),
    *(["--header"], ["--user", "0", "--item", "1"], ["--user", "1", "--item", "0"], ["--rating", "none"], ["--quotes"]),
    *(["--timestamp", "none"], ["--time-unit", "order"], ["--time-unit", "s"], ["--time-format", "%Y%m%d"]),
    *(["--separator", ","], ["--separator", "tab"], ["--separator", "space"], ["--format", "csv"], ["--no-quotes"]),
    *(["--format", "user-lists"], ["--format", "counted-lists"], ["--keep-counts"], ["--item", "zzz"]),
]


# Valid files


def rows_of(rng: random.Random) -> list[tuple[str, str, str, str]]:
    prefix = rng.choice(["", "", "u", "é", "x y"])
    n = rng.randint(1, 60)
    return [
        (
            f"{prefix}{rng.randint(1, 9)}",
            f"{prefix}{rng.randint(1, 15)}",
            rng.choice(["1", "2.5", "3", "4.0", "5"]),
            str(881250949 + rng.randint(0, 10**7)),
        )
        for _ in range(n)
    ]


def delimited(rng: random.Random, separator: str) -> bytes:
    width = rng.choice([2, 3, 4, 4])
    lines = [list(row[:width]) for row in rows_of(rng)]
    if rng.random() < 0.8:
        names = rng.choice(
            [["user", "item", "rating", "timestamp"], ["uid", "iid", "stars", "time"], ["a", "b", "c", "d"]]
        )
        lines.insert(0, names[:width])
    out = io.StringIO()
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    csv.writer(out, delimiter=separator, lineterminator=rng.choice(["\n", "\n", "\r\n"]), quoting=quoting).writerows(
        lines
    )
    return out.getvalue().encode()


def counted(rng: random.Random) -> bytes:
    lists = [rng.sample(range(40), rng.randint(0, 8)) for _ in range(rng.randint(2, 25))]
    return "".join(f"{len(mine)} {' '.join(map(str, mine))}".strip() + "\n" for mine in lists).encode()


def user_lists(rng: random.Random) -> bytes:
    return "".join(
        f"{user} {' '.join(str(rng.randint(0, 40)) for _ in range(rng.randint(1, 6)))}\n" for user in range(15)
    ).encode()


def movielens(rng: random.Random) -> bytes:
    return "".join(
        "\t".join((row[0].strip("uéx y") or "1", row[1].strip("uéx y") or "1", "3", row[3])) + "\n"
        for row in rows_of(rng)
    ).encode()


def inter(rng: random.Random) -> bytes:
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    return (head + "".join("\t".join(row) + "\n" for row in rows_of(rng))).encode()


def arrays(rng: random.Random) -> dict:
    import numpy as np

    rows = rows_of(rng)
    users, items = (np.array([row[n] for row in rows]) for n in (0, 1))
    if rng.random() < 0.6:
        users, items = (np.array([rng.randint(0, 300) for _ in rows], rng.choice(["i8", "u2", ">i4"])) for _ in (0, 1))
    found = {"users": users, "items": items}
    if rng.random() < 0.5:
        found["ratings"] = np.array([float(row[2]) for row in rows], rng.choice(["f8", "f4"]))
    if rng.random() < 0.5:
        found["timestamps"] = np.array([int(row[3]) for row in rows])
    return found


def npy(rng: random.Random) -> bytes:
    import numpy as np

    out = io.BytesIO()
    if rng.random() < 0.5:
        np.save(out, np.array([[rng.randint(0, 300) for _ in range(2)] for _ in range(rng.randint(1, 50))]))
    else:
        found = arrays(rng)
        table = np.empty(len(found["users"]), [(name, column.dtype) for name, column in found.items()])
        for name, column in found.items():
            table[name] = column
        np.save(out, table)
    return out.getvalue()


def npz(rng: random.Random) -> bytes:
    import numpy as np
    import scipy.sparse

    out = io.BytesIO()
    if rng.random() < 0.5:
        matrix = scipy.sparse.random_array(
            (12, 20), density=0.3, random_state=np.random.default_rng(rng.randint(0, 9**9))
        )
        scipy.sparse.save_npz(
            out, getattr(matrix, rng.choice(["tocsr", "tocsc", "tocoo"]))(), compressed=rng.random() < 0.5
        )
    else:
        (np.savez if rng.random() < 0.5 else np.savez_compressed)(out, **arrays(rng))
    return out.getvalue()


def parquet(rng: random.Random) -> bytes:
    import polars as pl

    out = io.BytesIO()
    found = {name: column.astype(column.dtype.newbyteorder("=")) for name, column in arrays(rng).items()}
    frame = pl.DataFrame(found)
    compression = rng.choice(["uncompressed", "snappy", "zstd", "gzip", "lz4"])
    frame.write_parquet(
        out, compression=compression, row_group_size=rng.choice([5, 20, None]), statistics=rng.random() < 0.5
    )
    return out.getvalue()


FORMS = {
    "a.csv": lambda rng: delimited(rng, rng.choice(",;|")),
    "a.tsv": lambda rng: delimited(rng, "\t"),
    "users.dat": counted,
    "lists.txt": user_lists,
    "u.data": movielens,
    "a.inter": inter,
    "a.npy": npy,
    "a.npz": npz,
    "a.parquet": parquet,
    "a.csv.gz": lambda rng: gzip.compress(delimited(rng, ",")),
}


# Mutations


def mutated(data: bytes, rng: random.Random) -> bytes:
    content = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 8])):
        start = rng.randint(0, len(content))
        stop = min(start + rng.choice([0, 0, 1, 1, 2, 4, 16, 64]), len(content))
        kind = rng.random()
        if kind < 0.45:
            content[start:stop] = rng.choice(TOKENS)
        elif kind < 0.6 and start < len(content):
            content[start] ^= 1 << rng.randint(0, 7)
        elif kind < 0.75:
            content[start:stop] = bytes(rng.randint(0, 255) for _ in range(rng.randint(0, 6)))
        elif kind < 0.85:
            other = rng.randint(0, len(content))
            content[start:start] = content[other : other + rng.choice([1, 5, 30])]
        elif kind < 0.93:
            content[start:stop] = b""
        else:
            del content[start:]
    return bytes(content)


def inside(data: bytes, rng: random.Random) -> bytes:
    """A zip archive, one of its members mutated and packed again, so that the checksums are right."""
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
            chosen = rng.choice(old.namelist())
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, mutated(content, rng) if name == chosen else content)
    except (zipfile.BadZipFile, IndexError):
        return data
    return out.getvalue()


def case(seed: int, number: int, folder: Path) -> tuple[Path, list[str]]:
    """The file (or folder of parts) of a case, and its options."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choice(list(FORMS))
    data = FORMS[name](rng)
    if name == "a.npz" and rng.random() < 0.5:
        data = inside(data, rng)
    flags = [flag for chosen in rng.sample(FLAGS, rng.choice([0, 0, 0, 1, 1, 2])) for flag in chosen]
    if rng.random() < 0.15 and name in ("a.csv", "a.parquet", "a.inter"):
        parts = folder / f"case-{number}"
        parts.mkdir()
        for part in range(rng.randint(1, 4)):
            other = data if rng.random() < 0.6 else FORMS[name](rng)
            (parts / f"part-{part}{Path(name).suffix}").write_bytes(
                mutated(other, rng) if rng.random() < 0.3 else other
            )
        return parts, flags
    path = folder / name
    path.write_bytes(mutated(data, rng))
    return path, flags


# The slow reader


class Undecided(Exception):
    """The slow reader does not know."""


def slow_text(path: Path) -> list[str]:
    text = path.read_bytes().decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    if "\r" in text:
        text = text.replace("\r", "\n")
    return text.rstrip("\n").split("\n")


def slow_rows(path: Path, form: str, columns: dict, header: bool | None) -> list[tuple[str, str, float | None]]:
    """User, item and rating of each row; ``AssertionError`` for a file that must not have been accepted."""
    if path.is_dir() or form not in ("csv", "tsv", "inter", "movielens", "counted-lists", "user-lists"):
        return slow_typed(path, form, columns)
    lines = slow_text(path)
    if form == "counted-lists":
        found = []
        for user, line in enumerate(lines):
            count, *items = line.replace("\t", " ").split(" ") if line.strip(" \t") else [""]
            items = [item for item in items if item]
            if not line.startswith((" ", "\t")):
                assert int(count) == len(items) == len(set(items)), f"line {user + 1}: {line!r}"
            else:
                raise Undecided
            found += [(str(user), item, None) for item in items]
        return found
    if form == "user-lists":
        words = [[word for word in line.replace("\t", " ").split(" ") if word] for line in lines]
        assert all(words), "a blank line"
        return [(line[0], item, None) for line in words for item in line[1:]]
    head = lines[0]
    separator = next((mark for mark in ("\t", "::", ",", ";", "|", " ") if mark in head), ",")
    if sum(mark in head for mark in ("\t", "::", ",", ";", "|")) > 1:
        raise Undecided
    quoted = separator in ",;" and form != "inter"
    if quoted and any('"' in line for line in lines):
        rows = list(csv.reader(io.StringIO("\n".join(lines) + "\n", newline=""), delimiter=separator, strict=True))
    else:
        rows = [line.split(separator) for line in lines]
    assert len({len(row) for row in rows}) == 1, "lines of unequal length"
    names = [name.partition(":")[0] if form == "inter" else name for name in rows[0]]
    places = {}
    for role, column in columns.items():
        if isinstance(column, str):
            assert names.count(column) >= 1, f"no column {column!r}"
            places[role] = names.index(column)
        else:
            places[role] = column
    named = any(isinstance(column, str) for column in columns.values())
    assert named or len(rows[0]) == 2 or form == "movielens" or header is not None, "columns without names were guessed"
    rating = places.get("rating")
    return [
        (row[places["user"]], row[places["item"]], None if rating is None else float(row[rating]))
        for row in rows[named:]
    ]


def slow_typed(path: Path, form: str, columns: dict) -> list[tuple[str, str, float | None]]:
    """Typed forms by their libraries' own readers, value by value."""
    import numpy as np

    if path.is_dir() or form not in ("npy", "npz"):
        raise Undecided
    loaded = np.load(path, allow_pickle=False)
    if form == "npz" and "format" in loaded:
        import scipy.sparse

        kind, shape = loaded["format"].item(), tuple(loaded["shape"])  # no other member than those with a use
        kind = kind.decode() if isinstance(kind, bytes) else kind
        if kind == "coo":
            matrix = scipy.sparse.coo_array((loaded["data"], (loaded["row"], loaded["col"])), shape)
        else:
            make = scipy.sparse.csr_array if kind == "csr" else scipy.sparse.csc_array
            matrix = make((loaded["data"], loaded["indices"], loaded["indptr"]), shape).tocoo()
        kept = matrix.data != 0
        return sorted(
            zip(*(part[kept].astype(str).tolist() for part in matrix.coords), [None] * kept.sum(), strict=True)
        )
    column = {role: loaded[name] if isinstance(name, str) else loaded[:, name] for role, name in columns.items()}
    rating = column.get("rating")
    return [
        (str(user), str(item), None if rating is None else float(rating[row]))
        for row, (user, item) in enumerate(zip(column["user"].tolist(), column["item"].tolist(), strict=True))
    ]


def compared(path: Path, flags: list[str]) -> str | None:
    """What is wrong with the table of an accepted file; ``None`` if nothing is, or nothing can be said."""
    from kdrs.data import read

    options = {"--no-header": {"header": False}, "--user": {"user": "0", "item": "1"}}
    known = {"--no-header", "--user", "--item", "0", "1"}
    if set(flags) - known or flags == ["--item", "zzz"] or flags[:2] == ["--user", "1"]:
        return None
    stated = {key: value for flag in flags for key, value in options.get(flag, {}).items()}
    table = read(path, **stated)
    source = table.sources[0]
    found = [
        (table.user_ids[u], table.item_ids[i]) for u, i in zip(table.users.tolist(), table.items.tolist(), strict=True)
    ]
    ratings = [None] * len(found) if table.ratings is None else table.ratings.tolist()
    mine = [(*pair, rating) for pair, rating in zip(found, ratings, strict=True)]
    try:
        expected = slow_rows(path, source["form"], source["columns"], False if stated else None)
    except Undecided:
        return None
    except Exception as error:
        return f"accepted, but the slow reader says {type(error).__name__}: {error}"
    if source["columns"].get("user") == "row":
        mine = sorted((user, item, None) for user, item, _ in mine)
    # Rows rated 0 may be left out, counted in the steps.
    if mine != expected and mine != [row for row in expected if row[2] != 0]:
        first = next(
            (pair for pair in zip(mine, expected, strict=False) if pair[0] != pair[1]), (len(mine), len(expected))
        )
        return f"another result: {first}"
    return None


# Running


def run_case(path: Path, flags: list[str]) -> tuple[str, str]:
    """The kind of a case's end ("accepted", "refused N", "memory", or a finding), and what there is to say of it."""
    from typer.testing import CliRunner

    from kdrs.cli.data import app
    from kdrs.errors import KdrsError

    try:
        CliRunner().invoke(app, ["prepare", str(path), "--dry-run", *flags], catch_exceptions=False)
    except KdrsError as error:
        if "\n" in error.cause or not error.cause.isprintable() or len(error.cause) > 1000:
            return "FINDING message", repr(error.cause)
        if " cannot be read: " in error.cause:
            return "FINDING unforeseen", error.cause
        later = ("holds nothing out", "leaves nothing", "unseen items")
        if not any(text in error.cause for text in later):
            return f"refused {error.exit_code}", error.cause
    except MemoryError:
        return "memory", ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "FINDING internal", f"{type(error).__name__}: {error}"
    wrong = compared(path, flags)
    return ("accepted", "") if wrong is None else ("FINDING wrong", wrong)


def work(seed: int, numbers: tuple[int, int], pipe) -> None:
    """Cases from ``numbers[0]`` in steps of ``numbers[1]``, each told before and after."""
    import logging
    import warnings

    logging.disable()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    number = numbers[0]
    while True:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            path, flags = case(seed, number, Path(folder))
            pipe.send((number, None, None))
            kind, what = run_case(path, flags)
            pipe.send((number, kind, what))
        number += numbers[1]


def keep(seed: int, number: int, folder: Path, kind: str, what: str) -> None:
    target = folder / f"{seed}-{number}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    _, flags = case(seed, number, target)
    (target / "FINDING").write_text(f"{kind}: {what}\nflags: {' '.join(flags)}\n", errors="backslashreplace")
    print(f"case {number}: {kind}: {what[:300]} [{' '.join(flags)}] kept in {target}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", dest="first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-readers")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    counts: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + given.seconds
    number = given.first
    while time.monotonic() < end:
        mine, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(given.seed, (number, 1), theirs), daemon=True)
        worker.start()
        theirs.close()
        fatal = None
        while fatal is None and time.monotonic() < end:
            try:
                if not mine.poll(SECONDS_A_CASE):
                    fatal = "FINDING hang"
                    break
                number, kind, what = mine.recv()
            except EOFError:
                worker.join(5)
                fatal = f"FINDING crash ({worker.exitcode})"
                break
            if kind is not None:
                counts[kind] += 1
                if kind.startswith("FINDING"):
                    keep(given.seed, number, given.keep, kind, what)
        worker.kill()
        worker.join()
        if fatal is not None:
            counts[fatal] += 1
            keep(given.seed, number, given.keep, fatal, "")
            number += 1
    print(
        f"seed {given.seed}, {sum(counts.values())} cases:",
        ", ".join(f"{kind} {n}" for kind, n in sorted(counts.items())),
    )
    return int(any(kind.startswith("FINDING") for kind in counts))


if __name__ == "__main__":
    sys.exit(main())
