"""What a run says of itself in more than one place is compared, before anything goes on from it."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from kdrs.errors import ArtefactError, ConfigError, shown
from kdrs.runs.checkpoints import Checkpoints
from kdrs.runs.records import PATH, RESTORE, Started
from kdrs.runs.values import flat, is_path, same_name, same_places, without_none

Options = dict[str, Any]
Complete = Callable[[Options], Options]
"""Gives stored options the defaults of those that are younger than the run (`kdrs.runs.config.completed`)."""
MAY_CHANGE = {"train.epochs", "train.checkpoint_seconds", "train.patience", "train.shard", "device", "threads", "log"}
"""Options that a resumed run may state differently."""
OF_NO_ACCOUNT = MAY_CHANGE - {"train.epochs", "train.patience"}
"""Those of them that leave the result as it is."""


def check_options(config: Options, before: Options, same: Collection[str] = ()) -> None:
    """Raises ``ConfigError`` naming the first option in which the run, whose options are ``before``, differs, but for those
    that may change, and those whose paths lead to the ``same``."""
    if (found := difference(config, before, same=same)) is not None:
        key, now, then = found
        raise ConfigError(
            f"the run was started with {key} = {shown(then)}, now it is {shown(now)}",
            "put it back there: the run has no digest to know it by elsewhere"
            if is_path(key) and now is not None and then is not None
            else f"on resume only these may differ: {', '.join(sorted(MAY_CHANGE))}; another run takes another folder",
        )


def difference(
    config: Options,
    other: Options,
    *,
    paths: bool = True,
    same: Collection[str] = (),
    may_change: Collection[str] = MAY_CHANGE,
) -> tuple[str, Any, Any] | None:
    """The first option in which two runs differ, and what it is in either, but for those that ``may_change``, and those whose
    paths lead to the ``same``; without ``paths`` their data and teachers may lie elsewhere."""
    one, two = flat(without_none(config)), flat(without_none(other))
    names = "model.name", "distill.0.method"  # what others follow from comes first
    for key in sorted({*one, *two}, key=lambda key: (key not in names, key)):
        if _is_one_of(may_change, key) or key in same or one.get(key) == two.get(key):
            continue
        if not is_path(key) or (paths and not same_places(one.get(key), two.get(key))):
            return key, one.get(key), two.get(key)
    return None


def check_head(path: Path, stored: Options, started: Started, complete: Complete) -> None:
    """Raises ``ArtefactError`` if config.toml of the run at ``path`` has other options than the run was started with, but for
    those that may change on resume; warns where nothing says what it was started with."""
    if started.options is not None:
        _compare(path, complete(stored), complete(started.options), "env.json", started)
    elif os.path.lexists(path / "env.json"):
        warnings.warn(
            f"{shown(str(path), PATH)} was written by an older kdrs: a changed config.toml would not be noticed",
            stacklevel=1,
        )


def check_checkpoint(
    path: Path,
    stored: Options,
    checkpoints: Checkpoints,
    started: Started,
    status: Mapping[str, Any],
    trained: int,
    complete: Complete,
) -> None:
    """Raises ``ArtefactError`` for a checkpoint that is lost, of other options, or not the one that STATUS.json speaks of."""
    manifest = checkpoints.check()
    ended = status.get("status") == "finished" or (status.get("status") == "interrupted" and status.get("epochs"))
    if manifest is None:
        if trained and (ended or "model_sha256" in status):
            raise ArtefactError(
                f"{shown(str(checkpoints.folder), PATH)} holds no checkpoint, though the run has trained {trained} epochs",
                RESTORE,
            )
        return
    if manifest.options is not None:
        _compare(path, complete(stored), complete(manifest.options), "the checkpoint's manifest", started)
    told = manifest.meta.best_epoch
    last = status.get("status") == "finished" and manifest.epoch + 1 == status.get("epochs")
    if last and "best_epoch" in status and status["best_epoch"] != told:
        raise ArtefactError(
            f"{shown(str(path / 'STATUS.json'), PATH)} says that epoch {status['best_epoch']} is the best, the checkpoint that "
            f"it is epoch {told}",
            f"delete STATUS.json, then kdrs resume {shown(str(path), PATH)} writes it anew",
        )


def _compare(path: Path, stored: Options, vouched: Options, where: str, started: Started) -> None:
    now, before = flat(without_none(stored)), flat(without_none(vouched))
    began = flat(without_none(started.options or {}))
    for key in sorted({*now, *before}):
        # where the data are is of no account: their fingerprint is compared
        if _is_one_of(MAY_CHANGE, key) or key == "data.path":
            continue
        one, other = now.get(key), before.get(key)
        names = (other, began.get(key), *started.moved.get(key, ()))
        if one != other and not (is_path(key) and any(same_name(one, name) for name in names)):
            says, had = (f"no {key}" if value is None else f"{key} = {shown(value)}" for value in (one, other))
            raise ArtefactError(
                f"{shown(str(path / 'config.toml'), PATH)} says {says}; {where} has {had}",
                f"put it back; on resume these may differ, as options: {', '.join(sorted(MAY_CHANGE))}",
            )


def _is_one_of(options: Collection[str], key: str) -> bool:
    # a part's own directory decides about the part
    return re.sub(r"^teachers\.[^.]+\.(?=train\.)|^teachers\..+\.(?=train\.)", "", key) in options
