"""The checkpoints of a run: what a resume with the same bytes needs, whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kdrs._documents import read_json
from kdrs._files import unwritable
from kdrs.errors import ArtefactError, shown
from kdrs.fitting.checkpoint import Checkpoint
from kdrs.runs.files import file_digest, read_run_tensors, write_json, write_safetensors
from kdrs.runs.journal import LOST, MetricsFile
from kdrs.runs.places import own_folder
from kdrs.runs.records import PATH, CheckpointFile, Manifest, checked

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT_FORMAT = "kdrs-checkpoint/1"
CHECKPOINT_FILE = re.compile(r"(state|best)-\d{6,}\.safetensors")
NO_CHECKPOINT = "no whole checkpoint is left; start the run anew in another folder"


Found = TypeVar("Found")


class Checkpoints:
    """The folder ``checkpoint`` of a run: ``manifest.json`` names the files of the latest one and their SHA-256,
    ``previous.json`` those of the one before. A manifest also vouches for the lines of metrics.jsonl so far, and
    holds the run's options."""

    def __init__(self, folder: Path, metrics: MetricsFile):
        self.folder, self.metrics = folder, metrics
        self._unusable: set[str] = set()
        self.columns: dict[str, slice] = {}
        """Of tables of which this process holds some columns: these alone are read."""

    def save(self, checkpoint: Checkpoint, options: dict[str, Any] | None = None) -> None:
        """Stores what a resume needs. The former checkpoint stays until this one is complete, and one longer."""
        folder = own_folder(self.folder)
        try:
            former = [values for found, values in self._manifests()[0] if found.sha256 not in self._unusable]
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
            manifest |= {"rows": self.metrics.stamp()} | ({} if options is None else {"options": options})
            manifest["sha256"] = manifest_digest(manifest)
            if former:
                write_json(folder / "previous.json", former[0])
            write_json(folder / "manifest.json", manifest)
            kept = {f["name"] for m in (manifest, *former[:1]) for f in m["files"].values()}
            for path in folder.iterdir():
                if path.name not in kept and CHECKPOINT_FILE.fullmatch(path.name):
                    path.unlink()
        except OSError as error:
            raise unwritable(folder, error) from error

    def load(self) -> Checkpoint | None:
        """The latest checkpoint that is whole; the one before, with a warning, if the latest is damaged; None if there
        is none yet. Raises ``ArtefactError`` if there are checkpoints and all are damaged."""

        def read(manifest: Manifest, values: dict[str, Any]) -> Checkpoint:
            files = manifest.files
            state, best = (self._load_part(record) for record in (files.state, files.best))
            return Checkpoint(manifest.epoch, state, best, values["meta"])

        return self._first(read, warn=True)

    def check(self) -> Manifest | None:
        """The manifest of what `load` would give. Raises ``ArtefactError`` where it would, and reads no weights."""

        def look(manifest: Manifest, values: dict[str, Any]) -> Manifest:
            for record in (manifest.files.state, manifest.files.best):
                self._check_part(self.folder / record.name, record)
            return manifest

        return self._first(look, warn=False)

    def _first(self, take: Callable[[Manifest, dict[str, Any]], Found], *, warn: bool) -> Found | None:
        """What ``take`` makes of the latest checkpoint that is whole, metrics.jsonl included."""
        manifests, problems = self._manifests()
        for manifest, values in manifests:
            if (lost := self.metrics.problem(manifest.rows, manifest.epoch)) is not None:
                problems.append((lost, LOST))
                self._unusable.add(manifest.sha256)
                continue
            try:
                found = take(manifest, values)
            except ArtefactError as error:
                problems.append((error.cause, NO_CHECKPOINT))
                self._unusable.add(manifest.sha256)
                continue
            if warn and problems:
                warnings.warn(
                    f"{problems[0][0]}; going on from the checkpoint before, epoch {manifest.epoch}", stacklevel=4
                )
            if warn and manifest.rows is None:
                warnings.warn(
                    f"{shown(str(self.folder), PATH)} was written by an older kdrs: lines of metrics.jsonl that were changed "
                    "would not be noticed",
                    stacklevel=4,
                )
            return found
        if problems:
            raise ArtefactError(*problems[0])
        return None

    def _load_part(self, record: CheckpointFile) -> dict[str, Tensor]:
        path = self.folder / record.name
        self._check_part(path, record)
        return read_run_tensors(path, columns=self.columns)[0]

    @staticmethod
    def _check_part(path: Path, record: CheckpointFile) -> None:
        if not path.is_file():
            raise ArtefactError(f"{shown(str(path), PATH)} is missing")
        if path.stat().st_size != record.bytes:
            raise ArtefactError(
                f"{shown(str(path), PATH)} has {path.stat().st_size} bytes; {record.bytes} were written"
            )
        if file_digest(path) != record.sha256:
            raise ArtefactError(f"{shown(str(path), PATH)} is damaged: its SHA-256 is not the one that was written")

    def _manifests(self) -> tuple[list[tuple[Manifest, dict[str, Any]]], list[tuple[str, str]]]:
        """The manifests that are whole, the latest first, as they are written too; what is wrong with the others, and the
        remedy."""
        found, problems = [], []
        for name in ("manifest.json", "previous.json"):
            path = self.folder / name
            if not os.path.lexists(path):
                if name == "manifest.json" and (self.folder / "previous.json").is_file():
                    problems.append((f"{shown(str(path), PATH)} is missing", NO_CHECKPOINT))
                continue
            try:
                values = read_json(path, NO_CHECKPOINT)
                stated = values.get("format") if isinstance(values, dict) else None
                if isinstance(stated, str) and stated != CHECKPOINT_FORMAT:
                    problems.append(
                        (
                            f"{shown(str(path), PATH)} has format {shown(stated)}; this kdrs reads {CHECKPOINT_FORMAT}",
                            "use the version of kdrs that wrote it",
                        )
                    )
                    continue
                manifest = checked(values, Manifest, shown(str(path), PATH), NO_CHECKPOINT)
                if manifest.sha256 != manifest_digest(values):
                    raise ArtefactError(f"{shown(str(path), PATH)} is damaged: its SHA-256 is not its own")
            except ArtefactError as error:
                problems.append((error.cause, NO_CHECKPOINT))
            else:
                found.append((manifest, values))
        return found, problems


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all of a manifest but its own digest, in the form that it has once it was read from JSON."""
    values = json.loads(json.dumps({key: value for key, value in manifest.items() if key != "sha256"}))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
