"""The checkpoints of a run: what a resume with the same bytes needs, whole or not there."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrs._files import unwritable
from kdrs.errors import ArtefactError, shown
from kdrs.fitting.checkpoint import Checkpoint
from kdrs.runs.files import PATH, file_digest, read_run_tensors, write_json, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT_FORMAT = "kdrs-checkpoint/1"
NO_CHECKPOINT = "no whole checkpoint is left; start the run anew in another folder"


class Checkpoints:
    """The folder ``checkpoint`` of a run: ``manifest.json`` names the files of the latest one and their SHA-256,
    ``previous.json`` those of the one before."""

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Stores what a resume needs. The former checkpoint stays until this one is complete, and one longer."""
        folder = self.folder
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
            manifest["sha256"] = manifest_digest(manifest)
            if former:
                write_json(folder / "previous.json", former[0])
            write_json(folder / "manifest.json", manifest)
            kept = {f["name"] for m in (manifest, *former[:1]) for f in m["files"].values()}
            for path in folder.glob("*.safetensors"):
                if path.name not in kept:
                    path.unlink()
        except OSError as error:
            raise unwritable(folder, error) from error

    def load(self) -> Checkpoint | None:
        """The latest checkpoint that is whole; the one before, with a warning, if the latest is damaged; None if there
        is none yet. Raises ``ArtefactError`` if there are checkpoints and all are damaged."""
        manifests, problems = self._manifests()
        for manifest in manifests:
            try:
                parts = {part: self._load_part(record) for part, record in manifest["files"].items()}
            except ArtefactError as error:
                problems.append(error.cause)
                continue
            if problems:
                warnings.warn(
                    f"{problems[0]}; going on from the checkpoint before, epoch {manifest['epoch']}", stacklevel=3
                )
            return Checkpoint(manifest["epoch"], parts["state"], parts["best"], manifest["meta"])
        if problems:
            raise ArtefactError(problems[0], NO_CHECKPOINT)
        return None

    def check(self) -> None:
        """Raises ``ArtefactError`` where `load` would, and reads no weights."""
        manifests, problems = self._manifests()
        for manifest in manifests:
            try:
                for record in manifest["files"].values():
                    self._check_part(self.folder / record["name"], record)
            except ArtefactError as error:
                problems.append(error.cause)
            else:
                return
        if problems:
            raise ArtefactError(problems[0], NO_CHECKPOINT)

    def _load_part(self, record: dict[str, Any]) -> dict[str, Tensor]:
        path = self.folder / record["name"]
        self._check_part(path, record)
        return read_run_tensors(path)[0]

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
            path = self.folder / name
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
                whole = manifest["sha256"] == manifest_digest(manifest)
            except (OSError, ValueError, KeyError, TypeError):
                whole = False
            if whole:
                found.append(manifest)
            else:
                problems.append(f"{shown(str(path), PATH)} is damaged")
        return found, problems


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all of a manifest but its own digest, in the form that it has once it was read from JSON."""
    values = json.loads(json.dumps({key: value for key, value in manifest.items() if key != "sha256"}))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
