"""The run directory: everything that a training leaves behind, read and written nowhere else.

::

    config.toml           resolved options; `kdrs train` (or `distill`) `config.toml` repeats the run
    env.json              versions, machine, threads, commit, command line, folder, options as the run was started with
    data.json, ids/       fingerprint, counts, split; the id lists, so that the model can be served
    metrics.jsonl         one line an epoch
    model.safetensors     the best epoch's weights
    checkpoint/           what a resume with the same bytes needs; manifest.json names the files and their SHA-256
    stages/0010.safetensors   weights of earlier epochs, where they were asked for
    report.json, *.npz    the final evaluation, one value a query
    README.md             its card, for people; nothing reads it
    STATUS.json, LOCK

Every file is written to a temporary name in its folder, flushed to disk, then renamed: a file is complete or absent.
Nothing is ever a pickle.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrs._documents import read_toml
from kdrs._files import unwritable, write_bytes
from kdrs.data.dataset import Dataset, is_dataset
from kdrs.errors import ArtefactError, ConfigError, quoted, shown
from kdrs.escaping import is_unicode
from kdrs.fitting.checkpoint import Checkpoint
from kdrs.runs.checkpoints import Checkpoints
from kdrs.runs.environment import environment
from kdrs.runs.files import file_digest, read_run_tensors, write_json, write_safetensors
from kdrs.runs.journal import MetricsFile
from kdrs.runs.own import code_of, warn_of_changed_code
from kdrs.runs.places import Lock, check_inside, check_place, holds_run, own_folder, sweep
from kdrs.runs.records import PATH, RESTORE, DataHead, StageDigests, Started, Status, plain, read_record
from kdrs.runs.references import Digests, check_unchanged, digests_of, moved, note_places
from kdrs.runs.values import same_places, to_toml, with_former, with_paths, without_none
from kdrs.runs.vouching import Complete, Options, check_checkpoint, check_head, check_options

if TYPE_CHECKING:
    from torch import Tensor


MODEL_FORMAT = "kdrs-model/1"
HEAD = ("STATUS.json", "env.json", "data.json", "ids/users.json", "ids/items.json", "LOCK")
"""What a new run writes beside ``config.toml``."""


def _what_else(path: Path) -> str:
    """What a path is that is no run."""
    if is_dataset(path):
        return "it is a prepared data set"
    return "it is a file" if path.is_file() else "it has no config.toml"


def _instead(path: Path) -> str:
    if is_dataset(path):
        return "name a run; a data set is given by --data"
    if path.is_file():
        return "name the folder of a run; of an exported student the run that it was made of"
    seeds = sorted(head.parent.name for head in path.glob("seed-*/config.toml"))
    return (
        f"name one of the runs in it: {', '.join(quoted(path / seed) for seed in seeds)}" if seeds else "check the path"
    )


class Run:
    """A run directory. ``Run.create`` starts or resumes one and holds its lock; ``Run.open`` only reads."""

    writes = True
    """Whether this process writes it: of several that train a run, the first alone."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics = MetricsFile(path / "metrics.jsonl")
        self.checkpoints = Checkpoints(path / "checkpoint", self.metrics)
        self._options: Options | None = None
        self._lock: Lock | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Options,
        dataset: Dataset,
        *,
        resume: bool = False,
        complete: Complete = dict,
        teachers: Digests | None = None,
    ) -> Run:
        """A new run directory, or an unfinished one to go on with (``resume=True``).

        ``config`` are all options, plain; ``complete`` gives stored ones the defaults of options that are younger than the run
        (`kdrs.runs.config.completed`). ``teachers`` are the digests of those that were read, if they were before.

        Raises ``MachineError`` if the place cannot be written or another process holds it, ``ConfigError`` if it is of
        something else, holds a run already (and ``resume`` is off) or a run of other options, ``ArtefactError`` if the run
        is of other data or teachers, damaged, or has lost what it needs to go on. What is refused is left as it was.
        """
        run = cls(Path(path))
        run._options = config
        head = run.path / "config.toml"
        if not is_unicode(str(path)):  # safetensors opens no such file
            raise ConfigError(f"{shown(str(path), PATH)} is no Unicode text", "name another folder with --out")
        try:
            check_place(run.path)
            if holds_run(run.path):
                _ = run.config, run.data, run.status()  # before anything is written, LOCK included
            with run._beginning():
                run._lock = Lock(run.path)
                check_place(run.path)
                exists = holds_run(
                    run.path
                )  # asked under the lock: another process may have begun a run here, and ended it
                if exists and not resume:
                    state = run.status().get("status", "unknown")
                    raise ConfigError(
                        f"{shown(str(path), PATH)} already holds a run ({state})",
                        "go on with it by --resume, or name another folder with --out",
                    )
                if exists:
                    run._check_same(config, dataset, complete)
                    check_inside(run.path)
                sweep(run.path)
                if exists:
                    note_places(run.path, config)
                    if run._folder() not in (None, os.getcwd()):
                        config = with_paths(config, os.path.abspath)
                    write_bytes(head, to_toml(config))  # as it is now: more epochs, another device
                else:
                    run._write_head(config, dataset, digests_of(config) if teachers is None else teachers)
                run.set_status("running")
        except OSError as error:
            run.close()
            raise unwritable(run.path, error) from error
        except BaseException:
            run.close()
            raise
        return run

    @contextmanager
    def _beginning(self) -> Iterator[None]:
        """Where there was no run before there is none after an error either."""
        new = not holds_run(self.path)
        made = [place for place in (self.path, *self.path.parents) if not place.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            yield
        except BaseException:
            if new and self._lock is not None:
                self._remove()
            for place in made:
                with suppress(OSError):
                    place.rmdir()
            raise

    @contextmanager
    def whole(self) -> Iterator[None]:
        """For a new run that cannot be gone on with: what is written inside stays if all of it could be."""
        try:
            yield
        except BaseException:
            self._remove(*(path.name for path in self.path.glob("report*")), "model.safetensors", "README.md")
            with suppress(OSError):
                self.path.rmdir()
            raise

    def _remove(self, *others: str) -> None:
        """Takes a run's head away, and others of its files. Its end is that of ``config.toml``, which comes first."""
        for name in ("config.toml", *others, *HEAD):
            with suppress(OSError):
                (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            (self.path / "ids").rmdir()

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run directory, for reading. Raises ``ArtefactError`` if it is none."""
        run = cls(Path(path))
        if not (run.path / "config.toml").is_file():
            raise ArtefactError(
                f"{shown(str(path), PATH)} is no run directory: {_what_else(run.path)}", _instead(run.path)
            )
        return run

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Options:
        """The resolved options, those that are younger than the run as it was then (`with_former`). Relative paths, which are
        those of the folder that the run was started in, are made to hold in the present one."""
        return self._placed(with_former(self.stored()))

    def stored(self) -> Options:
        """The options as config.toml states them."""
        path = self.path / "config.toml"
        values = read_toml(path, RESTORE, ArtefactError)
        name = shown(str(path), PATH)
        if not {"data", "model"} <= set(values):
            raise ArtefactError(f"{name} is damaged: it names no data set or no model", RESTORE)
        for key in ("data", "model", "train", "eval", "teachers"):
            if not isinstance(values.get(key, {}), dict):
                raise ArtefactError(f"{name} is damaged: {key} is {shown(values[key])}, no table", RESTORE)
        return values

    def _placed(self, values: Options) -> Options:
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
        return self.started().folder

    def started(self) -> Started:
        """What env.json holds of the run's beginning; empty, with a warning, where it is missing."""
        path = self.path / "env.json"
        if os.path.lexists(path):
            return read_record(path, Started)
        warnings.warn(
            f"{shown(str(path), PATH)} is missing: a changed config.toml would not be noticed, nor other threads, and relative "
            "paths are taken from here",
            stacklevel=1,
        )
        return Started()

    @property
    def data(self) -> dict[str, Any]:
        """Name, fingerprint, counts, split and id digests of the data set that the run was trained on."""
        return read_record(self.path / "data.json", DataHead).model_dump()

    def status(self) -> dict[str, Any]:
        """``{"status": "running" | "finished" | "interrupted" | "failed", ...}``; empty before the first step, and where
        STATUS.json is lost. Raises ``ArtefactError`` if it is damaged."""
        path = self.path / "STATUS.json"
        return plain(read_record(path, Status)) if os.path.lexists(path) else {}

    def check_ids(self) -> None:
        """Raises ``ArtefactError`` if the ids beside the run are not those that were written."""
        for kind, stated in self.data["digests"].items():
            path = self.path / "ids" / f"{kind}.json"
            if not path.is_file() or file_digest(path) != stated:
                raise ArtefactError(
                    f"{shown(str(path), PATH)} is {'damaged' if path.is_file() else 'missing'}",
                    f"copy {kind}.json from the data set that the run was trained on",
                )

    @property
    def holds_out(self) -> bool:
        """Whether anything was held out of what it was trained on."""
        return any(n for part, n in self.data["pairs"].items() if part != "train")

    def remedy(self) -> str:
        """What to do about a run that has not all that a finished one has."""
        status = self.status()
        if status.get("status") == "finished":
            return f"resume it, its checkpoint still holds the weights: kdrs resume {quoted(self.path)}"
        if status.get("status") == "failed":
            noted = [status[key] for key in ("error", "remedy") if isinstance(status.get(key), str)]
            why = f"it ended with {shown('; '.join(noted), 1000)}; " if noted else ""
            return f"{why}with the options that it has it goes on by kdrs resume {quoted(self.path)}"
        return f"finish it: kdrs resume {quoted(self.path)}"

    def set_status(self, status: str, **details: Any) -> None:
        """Writes STATUS.json. The weights of an earlier end, which a run that goes on still has, stay vouched for."""
        if status != "finished":
            before = self.status() if (self.path / "model.safetensors").is_file() else {}
            details |= {key: value for key, value in before.items() if key in ("model_sha256", "best_epoch")}
        write_json(self.path / "STATUS.json", {"status": status, **details})

    # --- metrics ----------------------------------------------------------------------------------------------------

    def log(self, row: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        self.metrics.append(row)

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that a crash cut off is left out. Raises ``ArtefactError`` where lines of a
        finished run are changed or lost."""
        status = self.status()
        stated = status.get("metrics_sha256") if status.get("status") == "finished" else None
        if stated is not None and self.metrics.sha256() != stated:
            rows = self.metrics.rows() if self.metrics.path.is_file() else []  # where a line is damaged it is named
            raise ArtefactError(
                f"{shown(str(self.metrics.path), PATH)} is not as it was written: it has {len(rows)} whole lines, the run "
                f"{status.get('epochs')} epochs",
                RESTORE,
            )
        return self.metrics.rows()

    def keep_rows(self, until_epoch: int) -> list[dict[str, Any]]:
        """Drops the lines of epochs after ``until_epoch``: a resumed run writes them again."""
        return self.metrics.keep(until_epoch)

    # --- weights ----------------------------------------------------------------------------------------------------

    def save_model(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        write_safetensors(self.path / "model.safetensors", tensors, {"format": MODEL_FORMAT, **metadata})

    def load_model(self, *, head: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The best epoch's weights and their metadata. Raises ``ArtefactError`` if they are absent or damaged, or if
        STATUS.json and data.json speak of others. For ``head`` they have their shapes and no values, and damage that the
        file's head does not show is not noticed."""
        path, name = self.path / "model.safetensors", shown(str(self.path / "model.safetensors"), PATH)
        status = self.status()
        if not path.is_file():
            state = status.get("status", "unknown")
            raise ArtefactError(f"{shown(str(self.path), PATH)} has no trained model (status: {state})", self.remedy())
        if not status:
            raise ArtefactError(
                f"{shown(str(self.path / 'STATUS.json'), PATH)} is missing: nothing says which weights the run ended with",
                f"kdrs resume {quoted(self.path)} writes it anew"
                if (self.path / "checkpoint" / "manifest.json").is_file()
                else RESTORE,
            )
        stated = status.get("model_sha256")
        if stated is None:
            warnings.warn(
                f"STATUS.json states no SHA-256 of {name}: weights that were changed would not be noticed", stacklevel=3
            )
        elif not head and file_digest(path) != stated:
            raise ArtefactError(
                f"{name} is damaged: its SHA-256 is not the one that was written",
                f"delete it, the run's checkpoint still holds the weights: then kdrs resume {quoted(self.path)}",
            )
        tensors, metadata = read_run_tensors(path, head=head)
        if metadata.get("format") != MODEL_FORMAT:
            raise ArtefactError(
                f"{name} has format {shown(str(metadata.get('format')))}; this kdrs reads {MODEL_FORMAT}",
                "use the version of kdrs that wrote it",
            )
        if "best_epoch" in status and metadata.get("epoch") != str(status["best_epoch"]):
            raise ArtefactError(
                f"{shown(str(self.path / 'STATUS.json'), PATH)} says that epoch {status['best_epoch']} is the best; the "
                f"weights are of epoch {shown(str(metadata.get('epoch')))}",
                f"delete STATUS.json and kdrs resume {shown(str(self.path), PATH)}, which writes it anew",
            )
        if metadata.get("data", self.data["fingerprint"]) != self.data["fingerprint"]:
            raise ArtefactError(f"{name} was trained on other data than data.json names", RESTORE)
        if status["status"] != "finished":
            warnings.warn(
                f"{shown(str(self.path), PATH)} goes on and has not ended (status: {status['status']}): these are the weights "
                "of its earlier end",
                stacklevel=3,
            )
        return tensors, metadata

    def save_stage(self, epoch: int, tensors: Mapping[str, Tensor]) -> None:
        path = own_folder(self.path / "stages") / f"{epoch:04d}.safetensors"
        write_safetensors(path, tensors, {"format": MODEL_FORMAT})
        digests = self._stage_digests() or {}
        write_json(path.parent / "digests.json", {**digests, path.name: file_digest(path)})

    def stages(self) -> list[int]:
        """Epochs whose weights were kept, ascending."""
        folder = self.path / "stages"
        found = []
        for path in folder.glob("*.safetensors"):
            if not re.fullmatch(r"[0-9]{4,10}", path.stem):
                raise ArtefactError(
                    f"{shown(str(path), PATH)} is no stage of the run", "take it away: stages are NNNN.safetensors"
                )
            found.append(int(path.stem))
        digests = self._stage_digests()
        if digests is None and found:
            warnings.warn(
                f"{shown(str(folder / 'digests.json'), PATH)} is missing: changed or lost stages would not be noticed",
                stacklevel=2,
            )
        for name in digests or {}:
            if not (folder / name).is_file():
                raise ArtefactError(f"{shown(str(folder / name), PATH)} is missing: a stage that the run kept", RESTORE)
        return sorted(found)

    def load_stage(self, epoch: int) -> dict[str, Tensor]:
        """Weights of an earlier epoch. Raises ``ArtefactError`` if they are damaged."""
        path = self.path / "stages" / f"{epoch:04d}.safetensors"
        digests = self._stage_digests()
        if digests is not None and path.is_file() and file_digest(path) != digests.get(path.name):
            state = "damaged: its SHA-256 is not the one that was written"
            if path.name not in digests:
                state = "no stage that the run finished writing: stages/digests.json does not name it"
            raise ArtefactError(f"{shown(str(path), PATH)} is {state}", "train the run anew")
        return read_run_tensors(path)[0]

    def _stage_digests(self) -> dict[str, str] | None:
        path = self.path / "stages" / "digests.json"
        return read_record(path, StageDigests).model_dump() if os.path.lexists(path) else None

    # --- checkpoint -------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Stores what a resume needs, after the lines of metrics.jsonl that belong to it."""
        self.metrics.flush()
        self.checkpoints.save(checkpoint, self._options)

    def load_checkpoint(self) -> Checkpoint | None:
        """As `Checkpoints.load`."""
        return self.checkpoints.load()

    # --- locking, heads ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write_head(self, config: Options, dataset: Dataset, teachers: Digests) -> None:
        ids = own_folder(self.path / "ids")
        write_bytes(ids / "users.json", dataset.users.to_json())
        write_bytes(ids / "items.json", dataset.items.to_json())
        write_json(self.path / "data.json", describe_data(dataset))
        began = {"folder": os.getcwd(), "options": without_none(config)}
        if code := code_of(config):
            began["code"] = code
        if teachers:
            began["teachers"] = teachers
        write_json(self.path / "env.json", {**environment(config.get("threads")), **began})
        # last: a directory without config.toml is no run yet
        write_bytes(self.path / "config.toml", to_toml(config))

    def elsewhere(self, config: Options, before: Options, fingerprint: str | None = None) -> set[str]:
        """Options in which ``config`` names other places than the run's own, ``before``, where the same data set and teachers
        are. Raises ``ArtefactError`` where others are. The ``fingerprint`` of the data set is read if it is not given, and
        neither it nor data.json where the data set is at its old place."""
        there = config["data"]["path"]
        if fingerprint is None and same_places(there, before["data"]["path"]):
            return {"data.path", *moved(self.path, config, before)}
        fingerprint, saved = fingerprint or Dataset.check(there), self.data["fingerprint"]
        if fingerprint != saved:
            raise ArtefactError(
                f"{shown(str(self.path), PATH)} was trained on other data (fingerprint {saved[:12]}, now {fingerprint[:12]})",
                "give the data set that it was started with, or start a new run",
            )
        return {"data.path", *moved(self.path, config, before)}

    def _check_same(self, config: Options, dataset: Dataset, complete: Complete) -> None:
        before = complete(self.config)
        check_options(config, before, self.elsewhere(config, before, dataset.fingerprint))
        check_unchanged(self.path, config)
        started = self.started()
        check_head(self.path, self.stored(), started, complete)
        warn_of_changed_code(self.path, config, started.code)
        self.check_ids()
        self._stage_digests()
        epochs, asked = len(self.metrics.rows()), config["train"]["epochs"]
        if asked < epochs:
            raise ConfigError(
                f"{shown(str(self.path), PATH)} has trained {epochs} epochs, now {asked} are asked for",
                "ask for as many or more, or start a run of so many in another folder",
            )
        check_checkpoint(self.path, self.stored(), self.checkpoints, started, self.status(), epochs, complete)
        threads = started.torch_threads
        import torch

        if threads is not None and threads != torch.get_num_threads():
            warnings.warn(
                f"the run was started with {threads} torch threads, now there are {torch.get_num_threads()}: results may "
                "differ in the last bits",
                stacklevel=3,
            )


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
