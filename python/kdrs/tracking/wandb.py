"""Weights & Biases: synchronised where one is logged in, else on the disk alone."""

from __future__ import annotations

import netrc
import os
import secrets
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kdrs.tracking.base import Option, Watched, check_package

PROJECT = "kdrs"
"""Where WANDB_PROJECT names none."""


class WandB:
    """By the environment's own variables: WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR, WANDB_MODE.

    Without WANDB_MODE and without a key it writes offline, and ``wandb sync`` brings it up: nobody is asked to log in.
    """

    _run: Any

    @staticmethod
    def check() -> None:
        check_package("wandb", "wandb")

    def begin(self, run: Watched, config: dict[str, Option]) -> int:
        wandb = import_module("wandb")
        goes_on = "id" in run.kept
        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        self._kept = run.kept
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.name,
            id=run.kept.setdefault("id", secrets.token_hex(8)),
            # offline there is nothing to look up
            resume="allow" if mode == "online" else None,
            mode=mode,
            config=dict(config),
            reinit="create_new",
            # stdout has the results; a run of one's own in the same process is left alone
            settings=wandb.Settings(console="off", silent=True),
        )
        if not goes_on or mode == "online":
            return int(self._run.step)
        # offline nothing can be looked up: the earlier session is another folder, which `wandb sync` puts before this one
        return max(run.first, int(run.kept.get("next", 0)))

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)
        self._kept["next"] = str(step + 1)

    def end(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


def has_key() -> bool:
    """Whether somebody is logged in, as ``wandb login`` leaves it; asks nobody."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and netrc.netrc(Path(path).expanduser()).authenticators(host):
                return True
        except (OSError, RuntimeError, netrc.NetrcParseError):
            continue
    return False
