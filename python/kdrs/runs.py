"""The run directory: everything that a training leaves behind, read and written nowhere else.

::

    config.toml           resolved options; `kdrs train` (or `distill`) `config.toml` repeats the run
    env.json              versions, machine, threads, commit, command line, folder
    data.json, ids/       fingerprint, counts, split; the id lists, so that the model can be served
    metrics.jsonl         one line an epoch
    model.safetensors     the best epoch's weights
    checkpoint/           what a resume with the same bytes needs; manifest.json names the files and their SHA-256
    stages/0010.safetensors   weights of earlier epochs, where they were asked for
    report.json, *.npz    the final evaluation, one value a query
    STATUS.json, LOCK

Every file is written to a temporary name in its folder, flushed to disk, then renamed: a file is complete or absent.
Nothing is ever a pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kdrs._files import replacing, sync, unwritable, write_bytes
from kdrs.errors import ArtefactError, ConfigError, MachineError, shown

if TYPE_CHECKING:
    from torch import Tensor

    from kdrs.data import Dataset

MODEL_FORMAT = "kdrs-model/1"
CHECKPOINT_FORMAT = "kdrs-checkpoint/1"
PATH = 300
"""Characters of a path that a message shows: its end says most."""
MAY_CHANGE = {"train.epochs", "train.checkpoint_seconds", "train.patience", "device", "threads"}
"""Options that a resumed run may state differently."""


RESTORE = "restore it from a copy of the run, or train the run anew in another folder"
NO_CHECKPOINT = "no whole checkpoint is left; start the run anew in another folder"


@dataclass(frozen=True)
class Checkpoint:
    """A run as it stood after an epoch."""

    epoch: int
    state: dict[str, Tensor]
    best: dict[str, Tensor]
    meta: dict[str, Any]


class Run:
    """A run directory. ``Run.create`` starts or resumes one and holds its lock; ``Run.open`` only reads."""

    def __init__(self, path: Path):
        self.path = path
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any], dataset: Dataset, *, resume: bool = False) -> Run:
        """A new run directory, or an unfinished one to go on with (``resume=True``).

        Raises ``MachineError`` if the place cannot be written or another process holds it, ``ConfigError`` if it holds a
        run already (and ``resume`` is off) or a run of other options, ``ArtefactError`` if the run is of other data.
        """
        run = cls(Path(path))
        head = run.path / "config.toml"
        try:
            if run.path.exists() and not head.is_file() and (not run.path.is_dir() or any(_foreign(run.path))):
                raise ConfigError(
                    f"{shown(str(path), PATH)} exists and is no run directory", "name another folder with --out"
                )
            run.path.mkdir(parents=True, exist_ok=True)
            run._acquire()
            exists = head.is_file()  # asked under the lock: another process may have begun a run here, and ended it
            if exists and not resume:
                state = run.status().get("status", "unknown")
                raise ConfigError(
                    f"{shown(str(path), PATH)} already holds a run ({state})",
                    "go on with it by --resume, or name another folder with --out",
                )
            for pattern in ("*.tmp", ".tmp*"):  # ours, and safetensors' own
                for orphan in run.path.rglob(pattern):
                    orphan.unlink()
            if exists:
                run._check_same(config, dataset)
                if run._folder() not in (None, os.getcwd()):
                    config = with_paths(config, os.path.abspath)
                write_bytes(head, _toml(config))  # as it is now: more epochs, another device
            else:
                run._write_head(config, dataset)
        except OSError as error:
            run.close()
            raise unwritable(run.path, error) from error
        except BaseException:
            run.close()
            raise
        run.set_status("running")
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run directory, for reading. Raises ``ArtefactError`` if it is none."""
        run = cls(Path(path))
        if not (run.path / "config.toml").is_file():
            seeds = sorted(head.parent.name for head in run.path.glob("seed-*/config.toml"))
            remedy = f"name the runs in it: {', '.join(seeds)}" if seeds else "check the path"
            raise ArtefactError(f"{shown(str(path), PATH)} is no run directory: it has no config.toml", remedy)
        return run

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """The resolved options. Relative paths, which are those of the folder that the run was started in, are made to hold
        in the present one."""
        path = self.path / "config.toml"
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ArtefactError(f"{shown(str(path), PATH)} cannot be read: {shown(str(error))}", RESTORE) from error
        if not {"data", "model"} <= set(values):
            raise ArtefactError(f"{shown(str(path), PATH)} is damaged: it names no data set or no model", RESTORE)
        return self._placed(values)

    def _placed(self, values: dict[str, Any]) -> dict[str, Any]:
        folder = self._folder()
        if folder is None or folder == os.getcwd():
            return values

        def here(path: str) -> str:
            there = os.path.join(folder, path)
            moved = not os.path.exists(there) and os.path.exists(path)  # everything together, to another place
            return path if moved else there

        return with_paths(values, here)

    def _folder(self) -> str | None:
        """Where the run was started, if that is known."""
        return self._read_json("env.json").get("folder") if (self.path / "env.json").is_file() else None

    @property
    def data(self) -> dict[str, Any]:
        """Name, fingerprint, counts, split and id digests of the data set that the run was trained on."""
        return self._read_json("data.json")

    def status(self) -> dict[str, Any]:
        """``{"status": "running" | "finished" | "interrupted" | "failed", ...}``; empty before the first step."""
        return self._read_json("STATUS.json") if (self.path / "STATUS.json").is_file() else {}

    def check_ids(self) -> None:
        """Raises ``ArtefactError`` if the ids beside the run are not those that were written."""
        for kind, stated in self.data["digests"].items():
            path = self.path / "ids" / f"{kind}.json"
            if not path.is_file() or file_digest(path) != stated:
                raise ArtefactError(
                    f"{shown(str(path), PATH)} is {'damaged' if path.is_file() else 'missing'}",
                    f"copy {kind}.json from the data set that the run was trained on",
                )

    def remedy(self) -> str:
        """What to do about a run that has not all that a finished one has."""
        if self.status().get("status") == "finished":
            return "resume it: its checkpoint still holds the weights"
        return f"finish it: kdrs resume {shown(str(self.path), PATH)}"

    def set_status(self, status: str, **details: Any) -> None:
        write_json(self.path / "STATUS.json", {"status": status, **details})

    # --- metrics ----------------------------------------------------------------------------------------------------

    def log(self, row: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        line = json.dumps(row, allow_nan=False) + "\n"
        try:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise unwritable(self.path / "metrics.jsonl", error) from error

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that a crash cut off is left out."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        rows = []
        for number, line in enumerate(lines := path.read_text("utf-8").splitlines()):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                if number + 1 < len(lines):
                    raise ArtefactError(
                        f"{shown(str(path), PATH)}:{number + 1} is damaged", "restore the line, or start the run anew"
                    ) from None
        return rows

    def keep_rows(self, until_epoch: int) -> list[dict[str, Any]]:
        """Drops the lines of epochs after ``until_epoch``: a resumed run writes them again."""
        rows = [row for row in self.rows() if row["epoch"] <= until_epoch]
        write_bytes(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        return rows

    # --- weights ----------------------------------------------------------------------------------------------------

    def save_model(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        write_safetensors(self.path / "model.safetensors", tensors, {"format": MODEL_FORMAT, **metadata})

    def load_model(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The best epoch's weights and their metadata. Raises ``ArtefactError`` if they are absent or damaged."""
        path = self.path / "model.safetensors"
        if not path.is_file():
            state = self.status().get("status", "unknown")
            raise ArtefactError(f"{shown(str(self.path), PATH)} has no trained model (status: {state})", self.remedy())
        stated = self.status().get("model_sha256")
        if stated is not None and file_digest(path) != stated:
            raise ArtefactError(
                f"{shown(str(path), PATH)} is damaged: its SHA-256 is not the one that was written",
                "delete model.safetensors and resume the run: its checkpoint still holds the weights",
            )
        tensors, metadata = _read_safetensors(path)
        if metadata.get("format") != MODEL_FORMAT:
            raise ArtefactError(
                f"{shown(str(path), PATH)} has format {shown(str(metadata.get('format')))}; this kdrs reads {MODEL_FORMAT}",
                "use the version of kdrs that wrote it",
            )
        return tensors, metadata

    def save_stage(self, epoch: int, tensors: Mapping[str, Tensor]) -> None:
        path = self.path / "stages" / f"{epoch:04d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        write_safetensors(path, tensors, {"format": MODEL_FORMAT})
        write_json(path.parent / "digests.json", {**self._stage_digests(), path.name: file_digest(path)})

    def stages(self) -> list[int]:
        """Epochs whose weights were kept, ascending."""
        found = []
        for path in (self.path / "stages").glob("*.safetensors"):
            if not path.stem.isdecimal():
                raise ArtefactError(
                    f"{shown(str(path), PATH)} is no stage of the run", "take it away: stages are NNNN.safetensors"
                )
            found.append(int(path.stem))
        return sorted(found)

    def load_stage(self, epoch: int) -> dict[str, Tensor]:
        """Weights of an earlier epoch. Raises ``ArtefactError`` if they are damaged."""
        path = self.path / "stages" / f"{epoch:04d}.safetensors"
        stated = self._stage_digests().get(path.name)
        if stated is not None and path.is_file() and file_digest(path) != stated:
            raise ArtefactError(
                f"{shown(str(path), PATH)} is damaged: its SHA-256 is not the one that was written",
                "train the run anew",
            )
        return _read_safetensors(path)[0]

    def _stage_digests(self) -> dict[str, str]:
        return self._read_json("stages/digests.json") if (self.path / "stages" / "digests.json").is_file() else {}

    # --- checkpoint -------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Stores what a resume needs. The former checkpoint stays until this one is complete, and one longer."""
        folder = self.path / "checkpoint"
        try:
            folder.mkdir(exist_ok=True)
            former, _ = self._manifests()
            files = {}
            for part, tensors in (("state", checkpoint.state), ("best", checkpoint.best)):
                name = f"{part}-{checkpoint.epoch:06d}.safetensors"
                write_safetensors(folder / name, tensors, {"format": CHECKPOINT_FORMAT})
                files[part] = {
                    "name": name,
                    "bytes": (folder / name).stat().st_size,
                    "sha256": file_digest(folder / name),
                }
            manifest = {"format": CHECKPOINT_FORMAT, "epoch": checkpoint.epoch, "files": files, "meta": checkpoint.meta}
            manifest["sha256"] = _manifest_digest(manifest)
            if (rows := self.path / "metrics.jsonl").exists():
                sync(rows)
            if former:
                write_json(folder / "previous.json", former[0])
            write_json(folder / "manifest.json", manifest)
            kept = {f["name"] for m in (manifest, *former[:1]) for f in m["files"].values()}
            for path in folder.glob("*.safetensors"):
                if path.name not in kept:
                    path.unlink()
        except OSError as error:
            raise unwritable(folder, error) from error

    def load_checkpoint(self) -> Checkpoint | None:
        """The latest checkpoint that is whole; the one before, with a warning, if the latest is damaged; None if there
        is none yet. Raises ``ArtefactError`` if there are checkpoints and all are damaged."""
        folder = self.path / "checkpoint"
        manifests, problems = self._manifests()
        for manifest in manifests:
            try:
                parts = {part: self._load_part(folder, record) for part, record in manifest["files"].items()}
            except ArtefactError as error:
                problems.append(error.cause)
                continue
            if problems:
                warnings.warn(
                    f"{problems[0]}; going on from the checkpoint before, epoch {manifest['epoch']}", stacklevel=2
                )
            return Checkpoint(manifest["epoch"], parts["state"], parts["best"], manifest["meta"])
        if problems:
            raise ArtefactError(problems[0], NO_CHECKPOINT)
        return None

    def check_checkpoint(self) -> None:
        """Raises ``ArtefactError`` where `load_checkpoint` would, and reads no weights."""
        manifests, problems = self._manifests()
        for manifest in manifests:
            try:
                for record in manifest["files"].values():
                    self._check_part(self.path / "checkpoint" / record["name"], record)
            except ArtefactError as error:
                problems.append(error.cause)
            else:
                return
        if problems:
            raise ArtefactError(problems[0], NO_CHECKPOINT)

    def _load_part(self, folder: Path, record: dict[str, Any]) -> dict[str, Tensor]:
        path = folder / record["name"]
        self._check_part(path, record)
        return _read_safetensors(path)[0]

    @staticmethod
    def _check_part(path: Path, record: dict[str, Any]) -> None:
        if not path.is_file():
            raise ArtefactError(f"{shown(str(path), PATH)} is missing")
        if path.stat().st_size != record["bytes"]:
            raise ArtefactError(
                f"{shown(str(path), PATH)} has {path.stat().st_size} bytes; {record['bytes']} were written"
            )
        if file_digest(path) != record["sha256"]:
            raise ArtefactError(f"{shown(str(path), PATH)} is damaged: its SHA-256 is not the one that was written")

    def _manifests(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The manifests that are whole, the latest first, and what is wrong with the others."""
        found, problems = [], []
        for name in ("manifest.json", "previous.json"):
            path = self.path / "checkpoint" / name
            if not path.is_file():
                continue
            try:
                manifest = json.loads(path.read_text("utf-8"))
                if manifest["format"] != CHECKPOINT_FORMAT:
                    raise ArtefactError(
                        f"{shown(str(path), PATH)} has format {shown(str(manifest['format']))}; this kdrs reads "
                        f"{CHECKPOINT_FORMAT}",
                        "use the version of kdrs that wrote it",
                    )
                whole = manifest["sha256"] == _manifest_digest(manifest)
            except (OSError, ValueError, KeyError, TypeError):
                whole = False
            if whole:
                found.append(manifest)
            else:
                problems.append(f"{shown(str(path), PATH)} is damaged")
        return found, problems

    # --- locking, heads ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _acquire(self) -> None:
        import fcntl

        lock = (self.path / "LOCK").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the kernel when its holder dies, however
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise MachineError(
                f"{shown(str(self.path), PATH)} is in use by {holder}", "wait for it, or name another folder"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        lock.flush()
        self._lock = lock

    def _write_head(self, config: dict[str, Any], dataset: Dataset) -> None:
        ids = self.path / "ids"
        ids.mkdir(exist_ok=True)
        write_bytes(ids / "users.json", dataset.users.to_json())
        write_bytes(ids / "items.json", dataset.items.to_json())
        write_json(self.path / "data.json", describe_data(dataset))
        write_json(self.path / "env.json", {**environment(config.get("threads")), "folder": os.getcwd()})
        # last: a directory without config.toml is no run yet
        write_bytes(self.path / "config.toml", _toml(config))

    def _check_same(self, config: dict[str, Any], dataset: Dataset) -> None:
        saved = self.data["fingerprint"]
        if saved != dataset.fingerprint:
            raise ArtefactError(
                f"{shown(str(self.path), PATH)} was trained on other data (fingerprint {saved[:12]}, now "
                f"{dataset.fingerprint[:12]})",
                "give the data set that it was started with, or start a new run",
            )
        self.check_options(config)
        trained, asked = len(self.rows()), config["train"]["epochs"]
        if asked < trained:
            raise ConfigError(
                f"{shown(str(self.path), PATH)} has trained {trained} epochs, now {asked} are asked for",
                "ask for as many or more, or start a run of so many in another folder",
            )
        self.check_checkpoint()
        threads = self._read_json("env.json").get("torch_threads")
        import torch

        if threads != torch.get_num_threads():
            warnings.warn(
                f"the run was started with {threads} torch threads, now there are {torch.get_num_threads()}: results may "
                "differ in the last bits",
                stacklevel=3,
            )

    def check_options(self, config: dict[str, Any]) -> None:
        """Raises ``ConfigError`` naming the first option in which the run differs, but for those that may change."""
        from kdrs.config import resolve

        # with the defaults of options that are younger than the run
        before = _flat(_without_none(resolve(self.config).to_dict()))
        now = _flat(_without_none(config))
        for key in sorted({*before, *now}):
            # a part's own directory decides about the part
            if re.sub(r"^teachers\.[^.]+\.(?=train\.)|^teachers\..+\.(?=train\.)", "", key) in MAY_CHANGE:
                continue
            if before.get(key) != now.get(key) and not (_is_path(key) and _same_places(before.get(key), now.get(key))):
                raise ConfigError(
                    f"the run was started with {key} = {shown(before.get(key))}, now it is {shown(now.get(key))}",
                    f"on resume only these may differ: {', '.join(sorted(MAY_CHANGE))}",
                )

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ArtefactError(
                f"{shown(str(self.path / name), PATH)} cannot be read: {shown(str(error))}", RESTORE
            ) from error


def with_paths(config: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A run's plain values with every path in them changed. Names of parts are no paths."""
    parts = config.get("teachers", {})

    def placed(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: placed(f"{key}.{name}", entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [placed(key, entry) for entry in value]
        return change(value) if isinstance(value, str) and _is_path(key) and value not in parts else value

    return {key: placed(key, value) for key, value in config.items()}


def _is_path(key: str) -> bool:
    """Whether a run's option, named by dots, holds paths: data, parts, and what may stand for teachers or a start."""
    return key in ("data.path", "parts") or re.fullmatch(r"(.+\.)?(start|teacher)", key) is not None


def _same_places(one: Any, other: Any) -> bool:
    """Whether two paths, or two lists of them, are the same places."""
    pair = [[value] if isinstance(value, str) else value for value in (one, other)]
    if not all(isinstance(paths, list) for paths in pair):
        return False
    left, right = ([os.path.realpath(path) for path in paths] for paths in pair)
    return left == right


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """What a run keeps about its data."""
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "pairs": {part: getattr(dataset, part).n_pairs for part in ("train", "valid", "test")},
        "split": dataset.split,
        "digests": {"users": dataset.users.digest, "items": dataset.items.digest},
    }


def environment(threads: int | None = None) -> dict[str, Any]:
    """Versions, machine and commit, as stored with a run and shown by ``kdrs doctor``."""
    import numpy
    import torch

    from kdrs import __version__

    return {
        "kdrs": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "threads": threads,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _commit() -> str | None:
    """Commit of the checkout that this package is run from; None for an installed one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "rust").is_dir():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "") if head.returncode == 0 else None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


# --- files ----------------------------------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors. The metadata go under one key: safetensors writes several in an order that changes from run to run."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    one = {"kdrs": json.dumps(dict(metadata), sort_keys=True)}
    with replacing(path) as temporary:
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, metadata=one)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error)) from error
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # safetensors gives 0600, whatever the umask


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from kdrs.teachers import read_safetensors

    tensors, metadata = read_safetensors(path)
    try:
        return tensors, json.loads(metadata["kdrs"])
    except (KeyError, ValueError):
        raise ArtefactError(f"{shown(str(path), PATH)} was not written by a kdrs run", "check the path") from None


def _foreign(path: Path) -> Iterator[Path]:
    return (
        entry
        for entry in path.iterdir()
        if entry.name not in ("LOCK", "ids", "data.json", "env.json", "STATUS.json") and entry.suffix != ".tmp"
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            for index, entry in enumerate(value):
                flat.update(_flat(entry, f"{prefix}{key}.{index}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _toml(config: Mapping[str, Any]) -> bytes:
    import tomli_w

    return tomli_w.dumps(_without_none(config)).encode()


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all of a manifest but its own digest, in the form that it has once it was read from JSON."""
    values = json.loads(json.dumps({key: value for key, value in manifest.items() if key != "sha256"}))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_without_none(entry) for entry in value]
    return value
