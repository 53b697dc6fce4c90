"""Mutates run directories and run files, and looks at what the commands make of them.

    python tests/fuzz_runs.py --seconds 600 --seed 1

Bytes are flipped, cut and doubled; values of records are changed in type and range, with digests made right again where that
can be; files are taken away, replaced by links, folders and pipes. Then a command is carried out in this process. Flagged are
internal errors, panics, hangs, changes that nobody noticed, and refusals that changed the run. Exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import tomllib
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

sys.path.insert(0, str(Path(__file__).parent))

from commands import FAST, kdrs, ok, write_clicks
from kdrs.errors import KdrsError, is_panic
from kdrs.runs.checkpoints import manifest_digest
from kdrs.runs.config import completed, resolve
from kdrs.runs.files import file_digest
from kdrs.runs.opened import load_run
from kdrs.runs.values import flat, same_name, to_toml
from kdrs.runs.vouching import MAY_CHANGE

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 7, 2**31 - 1, 2**31, 2**63, 10**40, 0.5, -0.0, 1e308, 1e-320, "", "x", "0" * 64, "\0", "é",
    "../x", "cuda", "auto", "bpr", "lightgcn", "rrd", [], {}, [[]], [1, 2], ["hit@5"], {"a": 1}, "a" * 5000, "\u202e",
]  # fmt: skip
RECORDS = ("STATUS.json", "data.json", "env.json", "checkpoint/manifest.json", "checkpoint/previous.json", 
           "stages/digests.json", "report-test.json", "ids/users.json")  # fmt: skip
SECONDS = 60


class Hang(BaseException):
    pass


class Fuzzer:
    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self.rng = folder, rng
        self.counts: collections.Counter[str] = collections.Counter()
        self.found: list[str] = []
        ok("data", "prepare", write_clicks(folder / "clicks.csv"), "--out", folder / "d", "--candidates", 20)
        common = ("--data", folder / "d", *FAST, "--threads", 1, "--set", "train.checkpoint_seconds=0")
        ok("train", *common, "--epochs", 3, "--dim", 8, "--set", "train.stages_every=1", "--out", folder / "t")
        student = (*common, "--teacher", folder / "t", "--method", "rrd", "--dim", 4)
        ok("distill", *student, "--epochs", 3, "--out", folder / "s")
        from kdrs.runs.execute import execute

        shutil.copytree(folder / "s", folder / "i")
        longer = resolve(tomllib.loads((folder / "i/config.toml").read_text()) | {})
        train = longer.train.model_copy(update={"epochs": 6})
        execute(longer.model_copy(update={"train": train}), folder / "i", resume=True, should_stop=lambda: True)

    # --- mutations: each says what it did, and whether somebody has to notice -------------------------------------------

    def mutate_bytes(self, run: Path) -> str:
        path = self.pick(run)
        content = bytearray(path.read_bytes())
        how = self.rng.choice(("flip", "cut", "double", "insert", "empty", "random"))
        at = self.rng.randrange(len(content) + 1)
        if how == "flip" and content:
            content[min(at, len(content) - 1)] ^= 1 << self.rng.randrange(8)
        elif how == "cut":
            del content[at:]
        elif how == "double":
            content += content[at:]
        elif how == "insert":
            content[at:at] = self.rng.choice((b"\0", b"\xff", b"\n", b"{", b"\\ud800", b"9" * 5000, b"[" * 3000))
        elif how == "empty":
            content.clear()
        else:
            content = bytearray(self.rng.randbytes(self.rng.randrange(200)))
        path.write_bytes(content)
        return f"{how} at {at} of {path.relative_to(run)}"

    def mutate_json(self, run: Path) -> str:
        path = run / self.rng.choice([name for name in RECORDS if (run / name).is_file()])
        document = json.loads(path.read_text())
        what = self.change(document)
        if path.parent.name == "checkpoint" and self.rng.random() < 0.8 and isinstance(document, dict):
            with contextlib.suppress(ValueError):
                document["sha256"] = manifest_digest(document)
        path.write_text(json.dumps(document))
        return f"{what} in {path.relative_to(run)}"

    def mutate_rows(self, run: Path) -> str:
        path = run / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        what = self.change(rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if self.rng.random() < 0.5:
            self.vouch_rows(run)
            what += ", vouched for"
        return f"{what} in metrics.jsonl"

    def vouch_rows(self, run: Path) -> None:
        import hashlib

        lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        for name in ("manifest.json", "previous.json"):
            path = run / "checkpoint" / name
            manifest = json.loads(path.read_text())
            kept = lines[: manifest["rows"]["count"]]
            manifest["rows"]["sha256"] = hashlib.sha256(b"".join(kept)).hexdigest()
            path.write_text(json.dumps({**manifest, "sha256": manifest_digest(manifest)}))
        status = json.loads((run / "STATUS.json").read_text())
        if "metrics_sha256" in status:
            (run / "STATUS.json").write_text(
                json.dumps(status | {"metrics_sha256": file_digest(run / "metrics.jsonl")})
            )

    def mutate_config(self, run: Path) -> str:
        path = run / "config.toml"
        values = tomllib.loads(path.read_text())
        what = self.change(values)
        try:
            path.write_bytes(to_toml(values))
        except (KdrsError, TypeError, AttributeError, ValueError):
            path.write_text("")
            what = "emptied"
        if self.rng.random() < 0.3:  # both records alike
            for name in ("env.json", "checkpoint/manifest.json", "checkpoint/previous.json"):
                record = json.loads((run / name).read_text())
                record["options"] = values
                if "sha256" in record:
                    record["sha256"] = manifest_digest(record)
                (run / name).write_text(json.dumps(record))
            what += ", everywhere"
        return f"{what} in config.toml"

    def mutate_tensors(self, run: Path) -> str:
        """Other tensors, with digests made right again."""
        import torch

        from kdrs.runs.files import read_run_tensors, write_safetensors

        path = self.rng.choice(sorted(run.rglob("*.safetensors")))
        tensors, metadata = read_run_tensors(path)
        name = self.rng.choice(sorted(tensors))
        kind = self.rng.choice(("nan", "shape", "dtype", "missing", "more", "metadata", "huge"))
        if kind == "nan":
            tensors[name] = torch.full_like(tensors[name].float(), float("nan"))
        elif kind == "shape":
            tensors[name] = tensors[name].reshape(-1)[:3].clone()
        elif kind == "dtype":
            tensors[name] = tensors[name].to(self.rng.choice((torch.int64, torch.float64, torch.bool, torch.float16)))
        elif kind == "missing":
            del tensors[name]
        elif kind == "more":
            tensors["other"] = torch.zeros(2)
        elif kind == "metadata":
            metadata = {"format": metadata["format"]} | {"epoch": "x", "data": "y", "model": "z"}
        else:
            tensors[name] = torch.full_like(tensors[name].float(), 3e38)
        write_safetensors(path, tensors, metadata)
        if path.name == "model.safetensors" and (run / "STATUS.json").is_file():
            status = json.loads((run / "STATUS.json").read_text())
            (run / "STATUS.json").write_text(json.dumps(status | {"model_sha256": file_digest(path)}))
        for record in ("manifest.json", "previous.json"):
            manifest = json.loads((run / "checkpoint" / record).read_text())
            for part in manifest["files"].values():
                if part["name"] == path.name:
                    part |= {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            (run / "checkpoint" / record).write_text(json.dumps({**manifest, "sha256": manifest_digest(manifest)}))
        if path.parent.name == "stages":
            digests = json.loads((path.parent / "digests.json").read_text())
            (path.parent / "digests.json").write_text(json.dumps(digests | {path.name: file_digest(path)}))
        return f"{kind} of {name} in {path.relative_to(run)}, vouched for"

    def mutate_files(self, run: Path) -> str:
        path = self.rng.choice(sorted(run.rglob("*")))
        how = self.rng.choice(("missing", "link", "dangling", "folder", "pipe", "elsewhere", "stranger"))
        name = path.relative_to(run)
        if how == "stranger":
            place = path if path.is_dir() else path.parent
            (
                place / self.rng.choice(("notes.tmp", "0007.safetensors", "x.json", "état", "state-000001.safetensors"))
            ).write_text("x")
            return f"stranger beside {name}"
        moved = run.parent / "moved"
        shutil.move(path, moved)
        if how in ("link", "elsewhere"):
            path.symlink_to(moved)
        elif how == "dangling":
            path.symlink_to("nowhere")
        elif how == "folder":
            path.mkdir()
        elif how == "pipe":
            os.mkfifo(path)
        return f"{how} for {name}"

    def pick(self, run: Path) -> Path:
        return self.rng.choice([path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "LOCK"])

    def change(self, document: Any) -> str:
        """Changes one entry of a document, in place."""
        place, key = self.entry(document)
        if place is None:
            return "nothing"
        how = self.rng.choice(("value", "value", "value", "number", "delete", "add"))
        before = place[key]
        if how == "delete":
            del place[key]
            return f"{key} deleted"
        if how == "add" and isinstance(place, dict):
            place[self.rng.choice(("x", "", "a.b", "é", "0"))] = self.rng.choice(VALUES)
            return f"a key beside {key}"
        if how == "number" and isinstance(before, int | float) and not isinstance(before, bool):
            place[key] = before + self.rng.choice((-1, 1, 2, 1000, -before))
        else:
            place[key] = self.rng.choice(VALUES)
        return f"{key}: {str(before)[:30]!r} -> {str(place[key])[:30]!r}"

    def entry(self, document: Any) -> tuple[Any, Any]:
        places: list[tuple[Any, Any]] = []

        def walk(value: Any) -> None:
            pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            for key, entry in pairs:
                places.append((value, key))
                walk(entry)

        walk(document)
        return self.rng.choice(places) if places else (None, None)

    # --- commands ---------------------------------------------------------------------------------------------------

    def commands(self, run: Path) -> list[tuple[str, Callable[[], tuple[int, str]]]]:
        teacher = self.folder / "t"

        def cli(*arguments: object) -> Callable[[], tuple[int, str]]:
            def carry_out() -> tuple[int, str]:
                result = kdrs(*arguments)
                return result.code, result.err

            return carry_out

        def opened() -> tuple[int, str]:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                try:
                    loaded = load_run(run)
                    loaded.teacher().factors(), loaded.report(), loaded.run.rows()
                    for stage in loaded.teacher().stages():
                        stage.load()
                except KdrsError as error:
                    return error.exit_code, str(error)
            return 0, "".join(f"warning: {warning.message}\n" for warning in told)

        student = (
            "distill",
            "--data",
            self.folder / "d",
            *FAST,
            "--dim",
            2,
            "--method",
            "rrd",
            "--teacher",
            run,
            "--dry-run",
        )
        return [
            ("resume", cli("resume", run, "--epochs", 7, "-q")),
            ("resume", cli("resume", run, "--epochs", 7, "-q")),
            ("dry", cli("distill", run / "config.toml", "--out", run, "--resume", "--dry-run")),
            ("eval", cli("eval", run, teacher)),
            ("report", cli("report", run, "--out", run.parent / "r")),
            ("teacher", cli(*student)),
            ("load", opened),
        ]

    def round(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            base = self.rng.choice(("s", "s", "t", "i"))
            run = Path(shutil.copytree(self.folder / base, Path(folder) / "run"))
            name, mutate = self.rng.choice([(n, getattr(self, n)) for n in dir(self) if n.startswith("mutate_")])
            what = mutate(run)
            verb, command = self.rng.choice(self.commands(run))
            self.counts[f"{name.removeprefix('mutate_')} {verb}"] += 1
            before = snapshot(run)
            title = f"{base}: {what}; {verb}"
            code, told = self.guarded(title, command)
            self.counts[f"exit {code}"] += 1
            after = snapshot(run)
            if code not in (0, None) and after != before:
                differing = {key for key in {*before, *after} if before.get(key) != after.get(key)}
                late = verb == "resume" and b'"failed"' in after.get("STATUS.json", b"")
                # weights that are vouched for are read when the run goes on, and are not looked through before
                if late and "vouched for" in title and differing <= {"STATUS.json", "config.toml"}:
                    self.counts["vouched for, refused late"] += 1
                else:
                    self.flag(
                        title, f"refused{' late' * late} with {code}, and changed {sorted(differing)}: {told[-300:]}"
                    )
            if code == 0 and not told.count("warning:"):
                self.check_noticed(title, base, run, before, verb)

    def check_noticed(self, title: str, base: str, run: Path, before: dict[str, Any], verb: str) -> None:
        """Whether what was accepted without a word was what the run had been."""
        original = snapshot(self.folder / base)
        changed = {name for name in {*original, *before} if original.get(name) != before.get(name)}
        read = {"model.safetensors"} if verb in ("eval", "load", "teacher") else set()
        if verb in ("resume", "dry") and base != "i":
            read |= {"metrics.jsonl"} if verb == "resume" else set()
        if verb in ("report", "eval") and base != "i":
            read |= {"metrics.jsonl"}
        if "vouched for" in title:
            read.clear()
        for name in changed & read:
            if isinstance(original.get(name), bytes) and isinstance(before.get(name), bytes):
                self.flag(title, f"nobody noticed that {name} was changed")
        if "config.toml" in changed and "everywhere" not in title and verb != "dry":
            with contextlib.suppress(KdrsError, ValueError, AttributeError):
                one = flat(completed(tomllib.loads(original["config.toml"].decode())))
                other = flat(completed(tomllib.loads(before["config.toml"].decode())))
                for key in {*one, *other} - MAY_CHANGE - {"data.path"}:
                    if one.get(key) != other.get(key) and not same_name(one.get(key), other.get(key)):
                        self.flag(title, f"nobody noticed that {key} was changed")

    def run_file(self) -> None:
        """A run file with a change in it, written as TOML where it can be, else in bytes."""
        values = {**tomllib.loads((self.folder / "s/config.toml").read_text())}
        what = ", ".join(self.change(values) for _ in range(self.rng.choice((1, 1, 2, 3))))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            file = Path(folder) / "run.toml"
            try:
                file.write_text(tomli_w.dumps(values), "utf-8")
            except (TypeError, ValueError, AttributeError):
                return
            if self.rng.random() < 0.2:
                content = bytearray(file.read_bytes())
                content[self.rng.randrange(len(content))] = self.rng.randrange(256)
                file.write_bytes(content)
            self.counts["run file"] += 1
            title = f"run file: {what}"
            code, _ = self.guarded(
                title,
                lambda: (lambda r: (r.code, r.err))(kdrs("distill", file, "--dry-run", "--out", Path(folder) / "x")),
            )
            self.counts[f"exit {code}"] += 1
            if code == 0:
                plain = resolve(tomllib.loads(file.read_text())).to_dict()
                if resolve(tomllib.loads(to_toml(plain).decode())).to_dict() != plain:
                    self.flag(title, "what was accepted reads otherwise once it is written")

    def guarded(self, title: str, command: Callable[[], tuple[int, str]]) -> tuple[int | None, str]:
        def alarm(*_: object) -> None:
            raise Hang

        signal.signal(signal.SIGALRM, alarm)
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                code, told = command()
            signal.alarm(0)
            if "internal:" in told or code not in (0, 1, 2, 3, 4, 5):
                self.flag(title, f"exit {code}: {told[-400:]}")
            return code, told
        except Hang:
            self.flag(title, f"no answer within {SECONDS} s")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.flag(
                title, ("panic: " if is_panic(error) else "") + "".join(traceback.format_exception(error))[-1500:]
            )
        finally:
            signal.alarm(0)
        return None, ""

    def flag(self, title: str, problem: str) -> None:
        self.counts["flagged"] += 1
        self.found.append(f"{title}\n    {problem}")
        print(f"FLAG {title}\n    {problem}", flush=True)


def snapshot(run: Path) -> dict[str, Any]:
    """Contents by name; LOCK is of the last process that worked there, and no account of the run."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if name == "LOCK":
            continue
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found


def main() -> int:
    import time

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder), random.Random(options.seed))
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            fuzzer.run_file() if fuzzer.rng.random() < 0.2 else fuzzer.round()
    for key, count in sorted(fuzzer.counts.items()):
        print(f"{key}: {count}")
    return 1 if fuzzer.found else 0


if __name__ == "__main__":
    sys.exit(main())
