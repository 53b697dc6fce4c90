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

import errno
import json
import os
import re
import socket
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kdrs._files import sync, unwritable, write_bytes
from kdrs.errors import ArtefactError, ConfigError, MachineError, quoted, shown
from kdrs.escaping import is_unicode
from kdrs.fitting.checkpoint import Checkpoint
from kdrs.runs.checkpoints import Checkpoints
from kdrs.runs.environment import environment
from kdrs.runs.files import PATH, file_digest, read_run_tensors, write_json, write_safetensors
from kdrs.runs.values import flat, is_path, same_places, to_toml, with_paths, without_none

if TYPE_CHECKING:
    from torch import Tensor

    from kdrs.data import Dataset


MODEL_FORMAT = "kdrs-model/1"
MAY_CHANGE = {"train.epochs", "train.checkpoint_seconds", "train.patience", "device", "threads"}
"""Options that a resumed run may state differently."""


RESTORE = "restore it from a copy of the run, or train the run anew in another folder"


class Run:
    """A run directory. ``Run.create`` starts or resumes one and holds its lock; ``Run.open`` only reads."""

    def __init__(self, path: Path):
        self.path = path
        self._lock: IO[str] | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: dict[str, Any],
        dataset: Dataset,
        *,
        resume: bool = False,
        complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> Run:
        """A new run directory, or an unfinished one to go on with (``resume=True``).

        ``config`` are all options, plain; ``complete`` gives stored ones the defaults of options that are younger than the run
        (`kdrs.runs.config.completed`).

        Raises ``MachineError`` if the place cannot be written or another process holds it, ``ConfigError`` if it holds a
        run already (and ``resume`` is off) or a run of other options, ``ArtefactError`` if the run is of other data.
        """
        run = cls(Path(path))
        head = run.path / "config.toml"
        if not is_unicode(str(path)):  # safetensors opens no such file
            raise ConfigError(f"{shown(str(path), PATH)} is no Unicode text", "name another folder with --out")
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
                run._check_same(config, dataset, complete)
                if run._folder() not in (None, os.getcwd()):
                    config = with_paths(config, os.path.abspath)
                write_bytes(head, to_toml(config))  # as it is now: more epochs, another device
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
            named = " ".join(quoted(run.path / seed) for seed in seeds)
            remedy = f"name the runs in it: {named}" if seeds else "check the path"
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
            return f"resume it, its checkpoint still holds the weights: kdrs resume {quoted(self.path)}"
        return f"finish it: kdrs resume {quoted(self.path)}"

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
                f"delete it, the run's checkpoint still holds the weights: then kdrs resume {quoted(self.path)}",
            )
        tensors, metadata = read_run_tensors(path)
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
        return read_run_tensors(path)[0]

    def _stage_digests(self) -> dict[str, str]:
        return self._read_json("stages/digests.json") if (self.path / "stages" / "digests.json").is_file() else {}

    # --- checkpoint -------------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path / "checkpoint")

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Stores what a resume needs, after the lines of metrics.jsonl that belong to it."""
        if (rows := self.path / "metrics.jsonl").exists():
            try:
                sync(rows)
            except OSError as error:
                raise unwritable(rows, error) from error
        self.checkpoints.save(checkpoint)

    def load_checkpoint(self) -> Checkpoint | None:
        """As `Checkpoints.load`."""
        return self.checkpoints.load()

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
        write_bytes(self.path / "config.toml", to_toml(config))

    def _check_same(
        self, config: dict[str, Any], dataset: Dataset, complete: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        saved = self.data["fingerprint"]
        if saved != dataset.fingerprint:
            raise ArtefactError(
                f"{shown(str(self.path), PATH)} was trained on other data (fingerprint {saved[:12]}, now "
                f"{dataset.fingerprint[:12]})",
                "give the data set that it was started with, or start a new run",
            )
        self.check_options(config, complete(self.config))
        trained, asked = len(self.rows()), config["train"]["epochs"]
        if asked < trained:
            raise ConfigError(
                f"{shown(str(self.path), PATH)} has trained {trained} epochs, now {asked} are asked for",
                "ask for as many or more, or start a run of so many in another folder",
            )
        self.checkpoints.check()
        threads = self._read_json("env.json").get("torch_threads")
        import torch

        if threads != torch.get_num_threads():
            warnings.warn(
                f"the run was started with {threads} torch threads, now there are {torch.get_num_threads()}: results may "
                "differ in the last bits",
                stacklevel=3,
            )

    def check_options(self, config: dict[str, Any], before: dict[str, Any]) -> None:
        """Raises ``ConfigError`` naming the first option in which the run, whose options are ``before``, differs, but for those
        that may change."""
        before = flat(without_none(before))
        now = flat(without_none(config))
        for key in sorted({*before, *now}):
            # a part's own directory decides about the part
            if re.sub(r"^teachers\.[^.]+\.(?=train\.)|^teachers\..+\.(?=train\.)", "", key) in MAY_CHANGE:
                continue
            if before.get(key) != now.get(key) and not (is_path(key) and same_places(before.get(key), now.get(key))):
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


def check_free(path: Path) -> None:
    """Raises what `Run.create` would raise for the place of a new run, and makes nothing."""
    if (path / "config.toml").is_file():
        raise ConfigError(f"{shown(str(path), PATH)} already holds a run", "name another folder with --out")
    if path.exists() and (not path.is_dir() or any(_foreign(path))):
        raise ConfigError(f"{shown(str(path), PATH)} exists and is no run directory", "name another folder with --out")
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    for wrong, code in ((not nearest.is_dir(), errno.ENOTDIR), (not os.access(nearest, os.W_OK), errno.EACCES)):
        if wrong:
            raise unwritable(path, OSError(code, os.strerror(code)))


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


def _foreign(path: Path) -> Iterator[Path]:
    return (
        entry
        for entry in path.iterdir()
        if entry.name not in ("LOCK", "ids", "data.json", "env.json", "STATUS.json") and entry.suffix != ".tmp"
    )
