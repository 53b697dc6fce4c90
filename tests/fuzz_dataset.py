"""Mutates a prepared data set and looks at what `kdrs data describe` and `kdrs train --dry-run` make of it.

    python tests/fuzz_dataset.py --seconds 600 --seed 0

Each round changes one to three things: values of the head by type and range, bytes or whole arrays, ids, missing files,
links, pipes and folders in the place of files. In most rounds sizes, digests, fingerprint and checksum are made right
again, so that what is behind them is reached. Told as faults: an exit code other than 0, 3 and 5, an internal error, a
panic, more than 60 seconds, more than 1 GB of new memory, a file that was changed, and data that are accepted though they
contradict themselves. Exits with 1 if there was a fault; --seed repeats a run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from kdrs.data import Dataset, Recipe, Table, prepare
from kdrs.data._stored import canonical

FILES = ("dataset.json", "interactions.safetensors", "users.json", "items.json")
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    -(2**31),
    0.5,
    -0.0,
)
VALUES = (None, True, False, "", "x", "\0", "\x1b[31m", "../../etc", "é" * 50, [], [1], {}, {"a": {}}, [[[]]], *NUMBERS)
RAW = (b"NaN", b"-Infinity", b"1e999", b"1" * 5000, b"[" * 100000, b'"\\ud800"', b"{", b"\xff", b'{"a":1,"a":2}', b"")
DTYPES = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64, np.float32, np.float64, np.bool_)

SPECIAL = ("missing", "link", "dangling", "loop", "pipe", "folder", "zeros", "huge", "extra")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        found += places(entry, (*path, key))
    return found


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    spot = document
    for key in path[:-1]:
        spot = spot[key]
    spot[path[-1]] = value
    return document


def id_list(values: Any) -> bytes:
    """Ids as kdrs writes them."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


class Mutant:
    """A data set as parts: head, id lists and arrays as values, or as bytes where they are no values any more."""

    def __init__(self, folder: Path, rng: random.Random):
        self.rng = rng
        self.head: Any = json.loads((folder / "dataset.json").read_text())
        self.ids: dict[str, Any] = {name: json.loads((folder / name).read_text()) for name in FILES[2:]}
        self.arrays = load((folder / FILES[1]).read_bytes())
        self.raw: dict[str, bytes] = {}
        self.special: dict[str, str] = {}
        self.right = rng.random() < 0.85
        self.log: list[str] = []

    def change(self) -> None:
        kinds = (self.value, self.remove, self.add, self.array, self.id, self.bytes, self.file)
        self.rng.choices(kinds, (2, 1, 1, 3, 1, 1, 1))[0]()

    def note(self, *words: Any) -> None:
        self.log.append(" ".join(str(word)[:60] for word in words))

    def value(self) -> None:
        path = self.rng.choice(places(self.head))
        value = copy.deepcopy(self.rng.choice(VALUES))
        self.note("value", path, repr(value))
        self.head = put(self.head, path, value)

    def remove(self) -> None:
        path = self.rng.choice([path for path in places(self.head) if path] or [()])
        if path:
            self.note("remove", path)
            spot = self.head
            for key in path[:-1]:
                spot = spot[key]
            del spot[path[-1]]

    def add(self) -> None:
        path = self.rng.choice(places(self.head))
        spot = self.head
        for key in path:
            spot = spot[key]
        value = copy.deepcopy(self.rng.choice(VALUES))
        self.note("add", path, repr(value))
        if isinstance(spot, dict):
            spot[self.rng.choice(("extra", "kind", "last", "cold_users", "", "checksum"))] = value
        elif isinstance(spot, list):
            spot.insert(0, value)

    def array(self) -> None:
        if not self.arrays:
            return
        name = self.rng.choice(sorted(self.arrays))
        array = self.arrays[name].copy()
        how = self.rng.choice(
            ("entry", "swap", "type", "cut", "grow", "reshape", "drop", "new", "sort", "shift", "row")
        )
        self.note("array", name, how)
        if how == "drop":
            del self.arrays[name]
        elif how == "new":
            self.arrays[self.rng.choice(("extra", "train.data", "candidates", "train_order"))] = array
        elif how == "type":
            with np.errstate(all="ignore"):
                self.arrays[name] = array.astype(self.rng.choice(DTYPES))
        elif array.size and array.dtype.kind in "iu":
            flat = array.reshape(-1)
            one, other = self.rng.randrange(flat.size), self.rng.randrange(flat.size)
            if how == "entry":
                info = np.iinfo(array.dtype)
                flat[one] = self.rng.choice([n for n in NUMBERS if isinstance(n, int) and info.min <= n <= info.max])
            elif how == "swap":
                flat[one], flat[other] = flat[other], flat[one]
            elif how == "shift":
                flat += self.rng.choice((-1, 1))
            elif how == "sort":
                flat.sort()
            elif how == "row" and array.ndim == 2:
                array[self.rng.randrange(len(array))] = array[self.rng.randrange(len(array))]
            elif how == "cut":
                array = array[: self.rng.randrange(len(array))]
            elif how == "grow":
                array = np.concatenate([array, array[:1]])
            elif how == "reshape":
                array = array.reshape(1, -1)
            self.arrays[name] = array

    def id(self) -> None:
        name = self.rng.choice(FILES[2:])
        value = copy.deepcopy(self.rng.choice(VALUES))
        self.note("id", name, repr(value))
        if self.rng.random() < 0.1 or not isinstance(self.ids[name], list) or not self.ids[name]:
            self.ids[name] = value
        elif self.rng.random() < 0.2:
            self.ids[name].pop()
        else:
            self.ids[name][self.rng.randrange(len(self.ids[name]))] = value

    def bytes(self) -> None:
        name = self.rng.choice(FILES)
        self.note("bytes", name)
        self.raw[name] = b""  # made from what is written

    def file(self) -> None:
        name = self.rng.choice(FILES)
        self.special[name] = self.rng.choice(SPECIAL)
        self.note("file", name, self.special[name])

    def write(self, folder: Path, elsewhere: Path) -> None:
        content = {name: id_list(self.ids[name]) for name in FILES[2:]}
        try:
            content[FILES[1]] = save({name: np.ascontiguousarray(array) for name, array in self.arrays.items()})
        except Exception:
            content[FILES[1]] = b""
        for name in self.raw:
            if name in content:
                content[name] = self.damaged(content[name])
        if self.right and isinstance(self.head, dict):
            self.make_right(content)
        try:
            content[FILES[0]] = json.dumps(self.head, ensure_ascii=self.rng.random() < 0.5).encode(
                "utf-8", "surrogatepass"
            )
        except (TypeError, ValueError):
            content[FILES[0]] = b"{}"
        if FILES[0] in self.raw:
            content[FILES[0]] = self.damaged(content[FILES[0]])
        for name, data in content.items():
            (folder / name).write_bytes(data)
        for name, how in self.special.items():
            self.place(folder / name, how, elsewhere)

    def make_right(self, content: dict[str, bytes]) -> None:
        """Sizes, digests, counts and fingerprint in the head as the files have them, then the checksum."""
        files = self.head.get("files")
        for name, data in content.items():
            digest = hashlib.sha256(data).hexdigest()
            if isinstance(files, dict) and isinstance(files.get(name), dict) and "files" not in str(self.log):
                files[name] |= {"bytes": len(data), "sha256": digest}
            digests = self.head.get("digests")
            key = name.removesuffix(".json")
            if isinstance(digests, dict) and key in digests and "digests" not in str(self.log):
                digests[key] = digest
        counts = self.head.get("counts")
        if isinstance(counts, dict) and "counts" not in str(self.log) and self.rng.random() < 0.8:
            for part in ("train", "valid", "test"):
                if f"{part}.indices" in self.arrays:
                    counts[part] = int(self.arrays[f"{part}.indices"].size)
            for name in FILES[2:]:
                if isinstance(self.ids[name], list):
                    counts[name.removesuffix(".json")] = len(self.ids[name])
        with contextlib.suppress(Exception):
            if "fingerprint" not in str(self.log):
                self.head["fingerprint"] = self.fingerprint(content)
        with contextlib.suppress(Exception):
            self.head.pop("checksum", None)
            self.head["checksum"] = hashlib.sha256(canonical(self.head)).hexdigest()

    def fingerprint(self, content: dict[str, bytes]) -> str:
        arrays = {
            name: [str(a.dtype), list(a.shape), hashlib.sha256(np.ascontiguousarray(a).data).hexdigest()]
            for name, a in self.arrays.items()
        }
        digests = {name.removesuffix(".json"): hashlib.sha256(content[name]).hexdigest() for name in FILES[2:]}
        return hashlib.sha256(canonical({**digests, "arrays": arrays, "split": self.head["split"]})).hexdigest()

    def damaged(self, data: bytes) -> bytes:
        rng, out = self.rng, bytearray(data)
        how = rng.randrange(6)
        if how == 0 or not out:
            return rng.choice(RAW)
        if how == 1:
            return bytes(out[: rng.randrange(len(out))])
        if how == 2:
            at = rng.randrange(len(out))
            return bytes(out[:at]) + rng.choice(RAW) + bytes(out[at:])
        for _ in range(rng.choice((1, 1, 5))):
            out[rng.randrange(min(len(out), 400) if how == 3 else len(out))] = rng.randrange(256)
        return bytes(out)

    def place(self, path: Path, how: str, elsewhere: Path) -> None:
        content = path.read_bytes() if path.is_file() else b""
        path.unlink(missing_ok=True)
        if how == "link":
            (elsewhere / path.name).write_bytes(content)
            path.symlink_to(elsewhere / path.name)
        elif how == "dangling":
            path.symlink_to(elsewhere / "nowhere")
        elif how == "loop":
            path.symlink_to(path)
        elif how == "pipe":
            os.mkfifo(path)
        elif how == "folder":
            path.mkdir()
        elif how == "zeros":
            path.symlink_to("/dev/zero")
        elif how == "huge":
            path.write_bytes(content)
            os.truncate(path, 2**42)
        elif how == "extra":
            path.write_bytes(content)
            (path.parent / "notes").write_bytes(b"x")


def contradictions(folder: Path) -> str | None:
    """What is wrong with an accepted data set, by slow and obvious rules."""
    data = Dataset.load(folder)
    users, items = data.n_users, data.n_items
    parts = [data.train, data.valid, data.test]
    seen = [set(), set(), set()]
    for part, pairs in zip(parts, seen, strict=True):
        for user in range(users):
            row = part.row(user).tolist()
            if row != sorted(set(row)) or any(not 0 <= item < items for item in row):
                return f"row {user} is {row}"
            pairs |= {(user, item) for item in row}
    whole = seen[0] | seen[1] | seen[2]
    if data.order is not None:
        for user in range(users):
            mine = data.order[data.train.indptr[user] : data.train.indptr[user + 1]].tolist()
            if sorted(mine) != data.train.row(user).tolist():
                return f"order of {user}"
    if data.candidates is not None:
        for user, row in enumerate(data.candidates.tolist()):
            real = [item for item in row if item >= 0]
            if len(set(real)) < len(real) or row[len(real) :] != [-1] * (len(row) - len(real)):
                return f"candidates of {user}"
            if any((user, item) in whole or item >= items for item in real):
                return f"a candidate of {user} is the user's own"
    head = json.loads((folder / "dataset.json").read_text())
    counts = {"users": users, "items": items, "train": len(seen[0]), "valid": len(seen[1]), "test": len(seen[2])}
    if head["counts"] != counts or head["fingerprint"] != data.fingerprint or head["candidates"] != data.n_candidates:
        return "the head says otherwise"
    if len(set(data.users)) < users or "" in set(data.users) | set(data.items):
        return "ids"
    return None


def commands_of(folder: Path) -> list[list[str]]:
    return [
        ["data", "describe", str(folder)],
        ["train", "--data", str(folder), "--model", "bpr", "--dim", "2", "--dry-run"],
    ]


def called(arguments: list[str]) -> tuple[int, str]:
    """The command line in this process: exit code, and all that was printed."""
    import kdrs.cli

    out = io.StringIO()
    before = sys.argv
    sys.argv = ["kdrs", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            kdrs.cli.main()
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    except BaseException:
        return -1, out.getvalue() + traceback.format_exc()
    finally:
        sys.argv = before
    return 0, out.getvalue()


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
    }


class _TooSlow(BaseException):
    pass


def _too_slow(*_: Any) -> None:
    raise _TooSlow


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-share", type=float, default=0.3, help="rounds that also plan a run")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_slow)
    tally: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        numbers = np.random.default_rng(0)
        table = Table.from_pairs(
            numbers.integers(0, 9, 90), numbers.integers(0, 25, 90), times=numbers.integers(0, 99, 90)
        )
        sources = [
            prepare(table, Recipe(candidates=5)).save(root / "a"),
            prepare(table, Recipe(split="time")).save(root / "b"),
            prepare(table, Recipe(split="last-n", last="valid")).save(root / "c"),
        ]
        for source in sources:  # and what is imported late is there
            for command in commands_of(source):
                assert called(command)[0] == 0, command
        end, number = time.monotonic() + options.seconds, 0
        while time.monotonic() < end:
            number += 1
            rng = random.Random(f"{options.seed}/{number}")
            folder, elsewhere = root / "w" / "d", root / "w" / "elsewhere"
            for place in (folder, elsewhere):
                place.mkdir(parents=True)
            mutant = Mutant(rng.choice(sources), rng)
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                with contextlib.suppress(KeyError, IndexError, TypeError):
                    mutant.change()
            mutant.write(folder, elsewhere)
            before = listing(root / "w")
            commands = commands_of(folder)[: 1 + (rng.random() < options.train_share)]
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            codes = []
            problem = None
            for command in commands:
                signal.alarm(60)
                try:
                    code, text = called(command)
                except _TooSlow:
                    code, text = -2, "too slow"
                finally:
                    signal.alarm(0)
                codes.append(code)
                if (
                    code not in (0, 3, 5)
                    or "internal" in text
                    or "anic" in text
                    or "Traceback" in text
                    or "\x1b" in text
                ):
                    problem = f"{command[0]} ended with {code}: {text[-400:]}"
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory > 2**20:
                problem = problem or "more than 1 GB of memory"
            if listing(root / "w") != before:
                problem = problem or "something was changed"
            if not problem and codes[0] == 0:
                with contextlib.suppress(FileNotFoundError):
                    problem = contradictions(folder)
            if not problem and len(codes) == 2 and codes[1] == 0 != codes[0]:
                problem = f"train takes what describe refuses ({codes})"
            tally[f"exit {codes[0]}"] += 1
            tally["training planned"] += len(codes) - 1
            if problem:
                faults.append(f"round {number}: {'; '.join(mutant.log)}\n  {problem}")
                print(faults[-1], flush=True)
            shutil.rmtree(root / "w")
    print(json.dumps({"seed": options.seed, "rounds": number, "faults": len(faults), **tally}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
